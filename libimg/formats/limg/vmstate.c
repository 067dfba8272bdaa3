/* SPDX-License-Identifier: MIT */
/*
 * Views of snapshots, and machine state: volume 2 beside the disk. It has no backing, and becomes durable with the
 * snapshot that takes it, not by flushes.
 */
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "limg.h"

#define ZERO_LEAVES  32u
#define STATUS_BATCH 64u

static struct limg_state *state_of(const struct node *n)
{
	return n->state;
}

int view_named(struct engine *e, const char *name, struct view *v, struct img_error *err)
{
	struct snap *s;
	int rc;

	*v = (struct view){ .e = e };
	if (!name)
		return 0;
	rc = catalog_usable(e, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&e->cat_lock);
	s = catalog_view(e, name);
	if (s) {
		*v = (struct view){ .e = e, .snap = s, .disk = s->disk, .vm = s->vm };
	}
	pthread_mutex_unlock(&e->cat_lock);
	return s ? 0 : error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot %.64s", name);
}

void view_release(struct view *v)
{
	if (!v->snap)
		return;
	pthread_mutex_lock(&v->e->cat_lock);
	v->snap->nr_views--;
	pthread_mutex_unlock(&v->e->cat_lock);
}

static int limit_of(uint64_t off, uint64_t bytes, uint64_t *end, struct img_error *err)
{
	if (!add_overflows(off, bytes, end) && *end <= MAX_VOLUME_BYTES)
		return 0;
	return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "machine state is limited to 32 TiB");
}

static void grow_to(struct engine *e, uint64_t end)
{
	uint64_t have = atomic_load(&e->vm_bytes);

	while (have < end && !atomic_compare_exchange_weak(&e->vm_bytes, &have, end))
		;
}

int limg_vmstate_write(struct node *n, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct engine *e;
	uint64_t end;
	int rc = limg_head(n, &e, err);

	if (!rc)
		rc = limit_of(off, bytes, &end, err);
	if (rc)
		return rc;
	/* First: a checkpoint in between drops entries behind the end, as those of a write that lost to a shrink. */
	grow_to(e, end);
	return bytes ? head_write(e, VOL_VM, buf, bytes, off, 0, err) : 0;
}

/* Data becomes holes, in steps that need no checkpoint: who zeroes machine state is in a hurry. */
static int zero_data(struct engine *e, uint64_t off, uint64_t end, struct img_error *err)
{
	struct view head = { .e = e };
	uint64_t step = (uint64_t)ZERO_LEAVES * LEAF_ENTRIES << e->block_shift;
	int rc = 0;

	while (!rc && off < end) {
		struct status_extent x[STATUS_BATCH];
		size_t nr;

		rc = view_status(&head, VOL_VM, end - off, off, x, STATUS_BATCH, &nr, err);
		for (size_t i = 0; !rc && i < nr; i++) {
			off = x[i].off + x[i].bytes;
			if (x[i].kind == STATUS_UNALLOCATED || x[i].kind == STATUS_ZERO)
				continue;
			for (uint64_t at = x[i].off; !rc && at < off; at += min_u64(step, off - at))
				rc = head_zero(e, VOL_VM, min_u64(step, off - at), at, true, err);
		}
	}
	return rc;
}

/* Behind its end the volume holds nothing but zeros. */
int limg_vmstate_zero(struct node *n, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct engine *e;
	uint64_t end;
	int rc = limg_head(n, &e, err);

	if (!rc)
		rc = limit_of(off, bytes, &end, err);
	if (!rc)
		rc = zero_data(e, off, min_u64(end, atomic_load(&e->vm_bytes)), err);
	if (!rc)
		grow_to(e, end);
	return rc;
}

uint64_t vm_size(const struct view *v)
{
	if (v->snap)
		return v->snap->has_vmstate ? v->vm.size_bytes : 0;
	return atomic_load(&v->e->vm_bytes);
}

int limg_vmstate_read(struct node *n, const char *snap, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct view v;
	int rc = view_named(state_of(n)->e, snap, &v, err);

	if (rc)
		return rc;
	if (!range_inside(off, bytes, vm_size(&v)))
		rc = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "the machine state ends at 0x%llx",
			       (unsigned long long)vm_size(&v));
	else if (bytes)
		rc = view_read(&v, VOL_VM, buf, bytes, off, err);
	view_release(&v);
	return rc;
}

int limg_vmstate_status(struct node *n, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			size_t cap, size_t *nr, struct img_error *err)
{
	struct view v;
	int rc = view_named(state_of(n)->e, snap, &v, err);

	if (rc)
		return rc;
	rc = view_status(&v, VOL_VM, bytes, off, out, cap, nr, err);
	view_release(&v);
	return rc;
}

int limg_vmstate_resize(struct node *n, uint64_t bytes, struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_VM_RESIZE, .size_bytes = bytes };
	struct engine *e;
	int rc = limg_head(n, &e, err);

	if (!rc && bytes > MAX_VOLUME_BYTES)
		rc = error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "machine state is limited to 32 TiB");
	return rc ? rc : engine_checkpoint(e, &req, err);
}

int limg_vmstate_size(struct node *n, const char *snap, uint64_t *bytes, struct img_error *err)
{
	struct view v;
	int rc;

	*bytes = 0;
	if (!snap && state_of(n)->view.snap)
		return 0; /* the head's may change beside us */
	rc = view_named(state_of(n)->e, snap, &v, err);
	if (rc)
		return rc;
	*bytes = vm_size(&v);
	view_release(&v);
	return 0;
}
