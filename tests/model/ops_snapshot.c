/* SPDX-License-Identifier: MIT */
/* Operations on snapshots of the top. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "model.h"

static struct mfile *top(struct model *m)
{
	return &m->files[m->top];
}

void snap_created(struct model *m, const char *name, bool vm)
{
	struct mfile *f = top(m);
	struct msnap *s = &f->snaps[f->nr_snaps++];

	m->snap_seq++;
	memset(s, 0, sizeof(*s));
	snprintf(s->name, sizeof(s->name), "%s", name);
	flat_copy(&s->disk, &f->head);
	flat_copy(&s->vm, &f->vm);
	s->has_vm = vm;
	s->id = f->next_id++;
	s->parent = f->head_parent;
	f->head_parent = s->id;
}

int op_snap_create(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct mfile *f = top(m);
	bool vm = r[0] & 1, again = f->nr_snaps && r[1] % 16 == 0;
	char name[24];
	int ret;

	if (f->nr_snaps == MODEL_MAX_SNAPS && !again)
		return 0;
	snprintf(name, sizeof(name), "s%u", m->snap_seq);
	if (again)
		snprintf(name, sizeof(name), "%s", pick_snap(m, r[2])->name);
	ret = img_snapshot_create(m->img, name, vm ? IMG_SNAPSHOT_VMSTATE : 0, &err);
	if (ret == IMG_E_LIMIT && !again && m->geometry.refcount_bits)
		return 0; /* all is as before, which is looked at in time */
	if (expect(m, ret, again ? IMG_E_EXISTS : 0, &err, "snapshot create") != 0)
		return -1;
	if (again)
		return 0;
	snap_created(m, name, vm);
	if (m->verbose)
		printf("      %s%s\n", name, vm ? " with vmstate" : "");
	return 0;
}

static int delete_missing(struct model *m)
{
	struct img_error err = { 0 };

	return expect(m, img_snapshot_delete(m->img, "none", &err), IMG_E_NOENT, &err,
		      "delete of a snapshot that is not there");
}

void snap_deleted(struct model *m, struct msnap *s)
{
	struct mfile *f = top(m);
	size_t i = (size_t)(s - f->snaps);

	f->gone[f->nr_gone].id = s->id;
	f->gone[f->nr_gone++].parent = s->parent;
	free_snap(s);
	memmove(s, s + 1, (--f->nr_snaps - i) * sizeof(*s));
}

int op_snap_delete(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct mfile *f = top(m);
	struct msnap *s = pick_snap(m, r[0]);
	bool held = s && m->held && strcmp(m->held_name, s->name) == 0;

	if (!s)
		return r[1] % 8 ? 0 : delete_missing(m);
	if (f->nr_gone == sizeof(f->gone) / sizeof(f->gone[0]))
		return 0;
	if (m->verbose)
		printf("      %s%s\n", s->name, held ? ", which is open" : "");
	if (expect(m, img_snapshot_delete(m->img, s->name, &err), held ? IMG_E_BUSY : 0, &err, "snapshot delete") != 0)
		return -1;
	if (held)
		return 0;
	snap_deleted(m, s);
	return 0;
}

void snap_reverted(struct model *m, const struct msnap *s)
{
	struct mfile *f = top(m);

	flat_free(&f->head);
	flat_free(&f->vm);
	flat_copy(&f->head, &s->disk);
	flat_copy(&f->vm, &s->vm);
	f->head_parent = s->id;
	if (!s->has_vm) /* a snapshot of the disk only */
		flat_resize(&f->vm, 0);
}

int op_snap_revert(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct msnap *s = pick_snap(m, r[0]);
	uint64_t was;
	int ret;

	if (!s)
		return expect(m, img_snapshot_revert(m->img, "none", &err), IMG_E_NOENT, &err, "revert to nothing");
	if (m->verbose)
		printf("      %s\n", s->name);
	ret = img_snapshot_revert(m->img, s->name, &err);
	if (ret == IMG_E_LIMIT && m->geometry.refcount_bits)
		return 0;
	if (ret == IMG_E_REFUSED && s->disk.size_bytes == 0 && m->has_bitmaps) /* as a resize to nothing */
		return 0;
	if (expect(m, ret, 0, &err, "revert") != 0)
		return -1;
	was = top(m)->head.size_bytes;
	snap_reverted(m, s);
	bitmaps_resized(m, m->top, was);
	return 0;
}

void snap_renamed(struct model *m, struct msnap *s, const char *name)
{
	m->snap_seq++;
	if (m->held && strcmp(m->held_name, s->name) == 0)
		snprintf(m->held_name, sizeof(m->held_name), "%s", name);
	snprintf(s->name, sizeof(s->name), "%s", name);
}

int op_snap_rename(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct msnap *s = pick_snap(m, r[0]), *other = pick_snap(m, r[1]);
	bool taken = r[2] % 4 == 0;
	char name[24];

	if (!s || (taken && s == other))
		return 0;
	snprintf(name, sizeof(name), "r%u", m->snap_seq);
	if (taken)
		snprintf(name, sizeof(name), "%s", other->name);
	if (expect(m, img_snapshot_rename(m->img, s->name, name, &err), taken ? IMG_E_EXISTS : 0, &err, "rename") != 0)
		return -1;
	if (!taken)
		snap_renamed(m, s, name);
	return 0;
}

int op_snap_read(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct msnap *s = pick_snap(m, r[0]);
	struct img *view = NULL;
	uint64_t off, bytes;
	int ret;

	if (!s || s->disk.size_bytes == 0)
		return 0;
	off = r[1] % s->disk.size_bytes;
	bytes = min_u64(1 + r[2] % 300000, s->disk.size_bytes - off);
	if (m->held && strcmp(m->held_name, s->name) == 0)
		return check_range(m, m->held, &s->disk, bytes, off, "held snapshot");
	if (expect(m, img_snapshot_open(m->img, s->name, &view, &err), 0, &err, "snapshot open") != 0)
		return -1;
	ret = check_range(m, view, &s->disk, bytes, off, "snapshot");
	if (ret == 0 && r[3] % 8 == 0)
		ret = expect(m, img_pwrite(view, m->buf, 1, off, 0, &err), IMG_E_READONLY, &err, "write to a snapshot");
	return expect(m, img_close(view, &err), 0, &err, "close of a snapshot") || ret ? -1 : 0;
}

/* Opens a snapshot for a while; while it is open it cannot be deleted. */
int op_snap_hold(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct msnap *s = pick_snap(m, r[0]);

	if (m->held) {
		struct msnap *old = find_snap(top(m), m->held_name);

		if (check_image(m, m->held, &old->disk, "held snapshot") != 0)
			return -1;
		return release_held(m);
	}
	if (!s)
		return 0;
	snprintf(m->held_name, sizeof(m->held_name), "%s", s->name);
	return expect(m, img_snapshot_open(m->img, s->name, &m->held, &err), 0, &err, "snapshot open");
}

/* What img_snapshot_diff() says of a to b, checked as it comes. */
struct diff_check {
	struct model *m;
	const struct flat *a, *b, *below; /* a, below: may be NULL */
	uint64_t at;			  /* where the next range may begin */
	int ret;
};

static const struct flat nothing;

/* Nothing was said about [d->at, off): both must be the same there. */
static int check_unsaid(struct diff_check *d, uint64_t off)
{
	uint64_t end = min_u64(off, d->b->size_bytes), differs;
	const struct flat *a = d->a;

	/* Beyond its end a says nothing, so that what shows through from below in b is no difference. */
	if (a && d->below)
		end = min_u64(end, a->size_bytes);
	if (!a)
		a = d->below ? d->below : &nothing;
	if (end <= d->at)
		return 0;
	differs = flat_diff(a, d->b, end - d->at, d->at);
	if (differs != UINT64_MAX)
		return fail(d->m, "diff does not name 0x%" PRIx64 ", which differs", differs);
	return 0;
}

static int diff_range(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	struct diff_check *d = ctx;

	d->ret = -1;
	if (bytes == 0 || off < d->at || off + bytes > d->b->size_bytes)
		return fail(d->m, "diff names 0x%" PRIx64 " at 0x%" PRIx64 ", after 0x%" PRIx64, bytes, off, d->at);
	if (check_unsaid(d, off) != 0)
		return -1;
	if (kind == IMG_DIFF_ZERO && !flat_is_zero(d->b, bytes, off))
		return fail(d->m, "diff says zeros of 0x%" PRIx64 " at 0x%" PRIx64, bytes, off);
	if (kind == IMG_DIFF_UNMAPPED && flat_diff(d->below ? d->below : &nothing, d->b, bytes, off) != UINT64_MAX)
		return fail(d->m, "diff says unmapped of 0x%" PRIx64 " at 0x%" PRIx64, bytes, off);
	d->at = off + bytes;
	d->ret = 0;
	return 0;
}

int op_diff(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct mfile *f = top(m);
	struct msnap *a = r[0] % 8 ? pick_snap(m, r[1]) : NULL, *b = r[0] >> 8 & 1 ? pick_snap(m, r[2]) : NULL;
	struct diff_check d = {
		.m = m,
		.a = a ? &a->disk : NULL,
		.b = b ? &b->disk : &f->head,
		.below = parent_content(m, f),
	};
	int ret = img_snapshot_diff(m->img, a ? a->name : NULL, b ? b->name : NULL, diff_range, &d, &err);

	if (m->verbose)
		printf("      %s to %s\n", a ? a->name : "nothing", b ? b->name : "head");
	if (d.ret != 0 || expect(m, ret, 0, &err, "diff") != 0)
		return -1;
	return check_unsaid(&d, UINT64_MAX);
}
