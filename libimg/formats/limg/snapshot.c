/* SPDX-License-Identifier: MIT */
/* Snapshot operations of the driver: each is one checkpoint with an action; deleting goes on until the space is free. */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "limg.h"

/* Bytes far above any file: who reads a snapshot beside a writer shares the byte, who deletes it holds it alone. */
#define SNAP_LOCK_BASE (UINT64_C(1) << 62)
#define REVERT_LEAVES  64u /* what a revert reclaims of the state it left, so that its own cost stays constant */

static struct limg_state *state_of(struct node *n)
{
	return n->state;
}

static int head_only(struct node *n, struct img_error *err)
{
	if (state_of(n)->view.snap)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "a snapshot cannot be changed");
	return engine_writable(state_of(n)->e, err);
}

int snapshot_lock(struct engine *e, uint64_t id, enum byte_lock mode, struct img_error *err)
{
	return node_lock_byte(e->file, SNAP_LOCK_BASE + id, mode, err);
}

int limg_snap_create(struct node *n, const char *name, unsigned flags, const int64_t *created_ns, struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_SNAP_CREATE, .name = name, .flags = flags, .created_ns = created_ns };
	int rc = head_only(n, err);

	if (!rc)
		rc = snapshot_name_check(name, err);
	return rc ? rc : engine_checkpoint(state_of(n)->e, &req, err);
}

int limg_snap_rename(struct node *n, const char *name, const char *new_name, struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_SNAP_RENAME, .name = name, .new_name = new_name };
	int rc = head_only(n, err);

	if (!rc)
		rc = snapshot_name_check(new_name, err);
	return rc ? rc : engine_checkpoint(state_of(n)->e, &req, err);
}

int limg_snap_revert(struct node *n, const char *name, struct img_error *err)
{
	struct ckpt_req req = {
		.action = CKPT_SNAP_REVERT, .name = name, .reclaim_leaves = REVERT_LEAVES, .reclaim_small = true
	};
	int rc = head_only(n, err);

	return rc ? rc : engine_checkpoint(state_of(n)->e, &req, err);
}

int limg_snap_delete(struct node *n, const char *name, struct img_error *err)
{
	struct engine *e = state_of(n)->e;
	struct ckpt_req req = { .action = CKPT_SNAP_DELETE, .name = name, .reclaim_leaves = RECLAIM_LEAVES };
	struct snap *s;
	uint64_t id = 0;
	int rc = head_only(n, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&e->cat_lock);
	s = catalog_find(e, name);
	if (s)
		id = s->id;
	pthread_mutex_unlock(&e->cat_lock);
	if (!id)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot of this name");
	rc = snapshot_lock(e, id, BYTE_EXCLUSIVE, err);
	if (rc) {
		error_prefix(err, "snapshot %.64s is being read", name);
		return rc;
	}
	rc = engine_checkpoint(e, &req, err);
	snapshot_lock(e, id, BYTE_UNLOCK, NULL);
	while (!rc && req.more) {
		req = (struct ckpt_req){ .action = CKPT_PLAIN, .reclaim_leaves = RECLAIM_LEAVES };
		rc = engine_checkpoint(e, &req, err);
	}
	return rc;
}

/* The parent that a user sees: deleted ancestors are skipped. */
static uint64_t live_parent(struct engine *e, const struct snap *s)
{
	while (s && s->parent) {
		const struct snap *p = catalog_by_id(e, s->parent);

		if (p && p->state == SNAP_LIVE)
			return p->id;
		s = p;
	}
	return 0;
}

static int by_id(const void *a, const void *b)
{
	const struct img_snapshot *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

/* The head as it was at one moment; volumes without size where changes wait to be merged. */
struct head_state {
	bool known;
	struct volume disk, vm;
};

static void look_at_head(struct engine *e, struct head_state *head)
{
	pthread_mutex_lock(&e->lock);
	head->disk = e->sb.disk;
	head->vm = e->sb.vm;
	head->known = overlay_empty(e) && atomic_load(&e->disk_bytes) == e->sb.disk.size_bytes &&
		      atomic_load(&e->vm_bytes) == e->sb.vm.size_bytes;
	pthread_mutex_unlock(&e->lock);
}

/* Trees are never changed in place: the same root is the same content. */
static bool is_head(const struct head_state *head, const struct snap *s)
{
	if (!head->known || head->disk.root.word != s->disk.root.word || head->disk.size_bytes != s->disk.size_bytes)
		return false;
	if (!s->has_vmstate)
		return head->vm.size_bytes == 0;
	return head->vm.root.word == s->vm.root.word && head->vm.size_bytes == s->vm.size_bytes;
}

int limg_snap_list(struct node *n, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err)
{
	struct engine *e = state_of(n)->e;
	struct head_state head;
	struct img_snapshot *all;
	size_t k = 0;
	int rc = catalog_usable(e, err);

	if (rc)
		return rc;
	look_at_head(e, &head);
	pthread_mutex_lock(&e->cat_lock);
	all = calloc(e->nr_slots + 1, sizeof(*all));
	for (size_t i = 0; all && i < e->nr_slots; i++) {
		const struct snap *s = e->snap[i];
		struct img_snapshot *o = &all[k];

		if (!s || s->state != SNAP_LIVE)
			continue;
		strcpy(o->name, s->name);
		memcpy(o->uuid, s->uuid, 16);
		o->id = s->id;
		o->parent = live_parent(e, s);
		o->created_ns = s->created_ns;
		o->size_bytes = s->disk.size_bytes;
		o->data_bytes = s->disk.root.count << e->block_shift;
		o->vmstate_bytes = s->has_vmstate ? s->vm.size_bytes : 0;
		o->vmstate_data_bytes = s->has_vmstate ? s->vm.root.count << e->block_shift : 0;
		o->is_head = is_head(&head, s);
		volume_logical_root(&s->disk, o->hash);
		k++;
	}
	pthread_mutex_unlock(&e->cat_lock);
	if (!all)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	qsort(all, k, sizeof(*all), by_id);
	if (cap > 0) /* out may be NULL then */
		memcpy(out, all, (k < cap ? k : cap) * sizeof(*all));
	*nr = k;
	free(all);
	return 0;
}
