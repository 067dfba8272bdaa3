/* SPDX-License-Identifier: MIT */
/*
 * What differs between two states. Two L1 entries with the same table, and two L2 entries with the same content, are
 * equal, so the cost follows the difference. Tables of snapshots never change while they exist; those of the head are
 * copied out of the cache one at a time, and no lock is held while the caller is told.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_snapshot.h"

enum content { HOLE, ZEROS, BYTES, NOTHING /* beyond the end of the disk */ };

struct side {
	struct qcow2_view view; /* of a snapshot; else empty */
	bool is_head, is_nothing;
	uint64_t disk_bytes;
	uint64_t entries; /* of L1, for the disk alone */
	uint64_t tables;  /* entries that there are: a snapshot's disk can be said to be larger than any L1 */
	uint8_t *table;	  /* one L2 table, as on disk */
	bool has_table;
};

struct diff {
	struct qcow2_engine *e;
	bool hole_is_zero; /* no backing */
	img_diff_fn fn;
	void *ctx;
	struct side a, b;
	/* run not yet reported */
	uint64_t off, bytes;
	enum img_diff_kind kind;
};

/* ---- telling ------------------------------------------------------------------------------------------------------ */

static int report(struct diff *d, struct img_error *err)
{
	uint64_t end = min_u64(d->off + d->bytes, d->b.disk_bytes);
	int stop = end > d->off && d->bytes ? d->fn(d->ctx, d->off, end - d->off, d->kind) : 0;

	d->bytes = 0;
	return stop ? error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped") : 0;
}

static int add(struct diff *d, uint64_t off, uint64_t bytes, enum img_diff_kind kind, struct img_error *err)
{
	int r = 0;

	if (d->bytes && d->kind == kind && d->off + d->bytes == off) {
		d->bytes += bytes;
		return 0;
	}
	if (d->bytes)
		r = report(d, err);
	d->off = off;
	d->bytes = bytes;
	d->kind = kind;
	return r;
}

/* ---- entries ------------------------------------------------------------------------------------------------------ */

static struct qcow2_entry entry_at(const struct diff *d, const struct side *s, uint64_t i)
{
	struct qcow2_entry en = { 0, 0 };
	struct be64 raw[2] = { 0 };

	if (s->has_table)
		memcpy(raw, s->table + i * d->e->entry_bytes, d->e->entry_bytes);
	en.desc = be64_get(raw[0]) & ~QCOW2_COPIED;
	if (d->e->subclusters > 1)
		en.bitmap = be64_get(raw[1]);
	return en;
}

/* Of subcluster k, or of the whole cluster. */
static enum content content_of(const struct diff *d, const struct qcow2_entry *en, unsigned k)
{
	if (en->desc & QCOW2_COMPRESSED)
		return BYTES;
	if (d->e->subclusters > 1)
		return en->bitmap >> k & 1 ? BYTES : en->bitmap >> (32 + k) & 1 ? ZEROS : HOLE;
	if (en->desc & QCOW2_ZERO && d->e->h.version >= 3)
		return ZEROS;
	return en->desc & QCOW2_OFFSET_MASK || d->e->external ? (en->desc ? BYTES : HOLE) : HOLE;
}

static enum content effective(const struct diff *d, enum content c)
{
	return c == HOLE && d->hole_is_zero ? ZEROS : c;
}

static enum img_diff_kind kind_of(enum content c)
{
	return c == BYTES ? IMG_DIFF_DATA : c == ZEROS ? IMG_DIFF_ZERO : IMG_DIFF_UNMAPPED;
}

/* What is beyond the end of a disk reads as zeros once the disk grows, whatever the backing holds there. */
static enum content in_disk(const struct side *s, uint64_t off, enum content c)
{
	if (s->is_nothing)
		return HOLE;
	return off < s->disk_bytes ? c : NOTHING;
}

static bool same_place(const struct qcow2_entry *a, const struct qcow2_entry *b)
{
	return (a->desc & ~QCOW2_ZERO) == (b->desc & ~QCOW2_ZERO);
}

static int compare_cluster(struct diff *d, uint64_t off, const struct qcow2_entry *a, const struct qcow2_entry *b,
			   struct img_error *err)
{
	int r = 0;

	for (unsigned k = 0; k < d->e->subclusters && r == 0; k++) {
		uint64_t at = off + k * d->e->sub_bytes;
		enum content ca = effective(d, in_disk(&d->a, at, content_of(d, a, k)));
		enum content cb = effective(d, in_disk(&d->b, at, content_of(d, b, k)));

		if (cb == NOTHING || (ca == NOTHING && cb == ZEROS))
			continue;
		if (ca == cb && (ca != BYTES || same_place(a, b)))
			continue;
		r = add(d, at, d->e->sub_bytes, kind_of(cb), err);
	}
	return r;
}

/* ---- tables ------------------------------------------------------------------------------------------------------- */

/* The host offset of the L2 table; for the head, with what the cache holds of it. */
static int head_table(struct diff *d, struct side *s, uint64_t i, uint64_t other, uint64_t *off, struct img_error *err)
{
	struct qcow2_engine *e = d->e;
	int r = 0;

	pthread_rwlock_wrlock(&e->map);
	*off = i < s->entries && i < e->h.l1_entries ? e->l1[i] & QCOW2_OFFSET_MASK : 0;
	for (uint64_t at = 0; *off && *off != other && at < e->cluster_bytes && r == 0; at += e->slice_bytes) {
		struct qcow2_slice *slice;

		r = qcow2_cache_get(e, *off + at, SLICE_L2, &slice, err);
		if (r == 0)
			memcpy(s->table + at, slice->data, (size_t)e->slice_bytes);
	}
	pthread_rwlock_unlock(&e->map);
	s->has_table = *off != 0;
	return r;
}

static uint64_t snapshot_table(const struct side *s, uint64_t i)
{
	return !s->is_nothing && !s->is_head && i < s->entries && i < s->view.l1_entries ?
		       s->view.l1[i] & QCOW2_OFFSET_MASK :
		       0;
}

static int load_table(struct diff *d, struct side *s, uint64_t off, struct img_error *err)
{
	uint64_t file_bytes = node_size(d->e->file), have;

	s->has_table = off != 0;
	if (!off)
		return 0;
	have = off < file_bytes ? min_u64(d->e->cluster_bytes, file_bytes - off) : 0;
	memset(s->table + have, 0, (size_t)(d->e->cluster_bytes - have));
	return have ? node_pread(d->e->file, s->table, have, off, 0, err) : 0;
}

/* The tables of L1 entry i. *same: there is nothing to compare. The head's comes first: with it the comparison is of
 * one moment. */
static int load_tables(struct diff *d, uint64_t i, bool *same, struct img_error *err)
{
	uint64_t off_a = snapshot_table(&d->a, i), off_b = snapshot_table(&d->b, i);
	uint64_t reach = d->e->cluster_bytes << d->e->l2_shift;
	int r = 0;

	if (d->a.is_head)
		r = head_table(d, &d->a, i, off_b, &off_a, err);
	if (d->b.is_head && r == 0)
		r = head_table(d, &d->b, i, off_a, &off_b, err);
	/* Where one of them ends within the table, equal entries may still differ. */
	*same = off_a == off_b &&
		(d->a.is_nothing || d->a.disk_bytes >= d->b.disk_bytes || (i + 1) * reach <= d->a.disk_bytes);
	if (*same || r < 0)
		return r;
	if (off_a == off_b && (d->a.is_head || d->b.is_head))
		r = load_table(d, d->a.is_head ? &d->a : &d->b, off_a,
			       err); /* it was skipped above; shared, so not in change */
	if (!d->a.is_head && r == 0)
		r = load_table(d, &d->a, off_a, err);
	if (!d->b.is_head && r == 0)
		r = load_table(d, &d->b, off_b, err);
	return r;
}

static int compare_tables(struct diff *d, uint64_t i, struct img_error *err)
{
	uint64_t first = i << d->e->l2_shift, per_table = UINT64_C(1) << d->e->l2_shift;
	bool same;
	int r = load_tables(d, i, &same, err);

	for (uint64_t k = 0; k < per_table && r == 0 && !same; k++) {
		struct qcow2_entry a = entry_at(d, &d->a, k), b = entry_at(d, &d->b, k);
		uint64_t off = (first + k) << d->e->h.cluster_bits;

		if (off >= d->b.disk_bytes)
			break;
		r = compare_cluster(d, off, &a, &b, err);
	}
	return r;
}

/* Behind the last table of either there are holes; where a has ended, and b shows its backing, they differ. */
static int compare_rest(struct diff *d, uint64_t first, struct img_error *err)
{
	uint64_t off = first * (d->e->cluster_bytes << d->e->l2_shift);

	off = max_u64(off, d->a.disk_bytes);
	if (d->hole_is_zero || d->a.is_nothing || off >= d->b.disk_bytes)
		return 0;
	return add(d, off, d->b.disk_bytes - off, IMG_DIFF_UNMAPPED, err);
}

/* ---- sides -------------------------------------------------------------------------------------------------------- */

static int open_side(struct diff *d, struct side *s, const char *name, struct img_error *err)
{
	int r = 0;

	s->table = malloc((size_t)d->e->cluster_bytes);
	if (!s->table)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for a table");
	if (s->is_nothing)
		return 0;
	if (name) {
		r = qcow2_snapshot_view(d->e, name, &s->view, err);
		s->disk_bytes = s->view.size_bytes;
	} else {
		s->is_head = true;
		s->disk_bytes = atomic_load(&d->e->disk_bytes);
	}
	s->entries = qcow2_l1_entries_for(d->e, s->disk_bytes);
	if (s->is_head)
		pthread_rwlock_rdlock(&d->e->map);
	s->tables = min_u64(s->entries, s->is_head ? d->e->h.l1_entries : s->view.l1_entries);
	if (s->is_head)
		pthread_rwlock_unlock(&d->e->map);
	return r;
}

static void close_side(struct side *s)
{
	if (s->view.l1)
		qcow2_view_release(&s->view);
	free(s->table);
}

int qcow2_snap_diff(struct node *n, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err)
{
	const struct qcow2_view *v = &((struct qcow2_state *)n->state)->view;
	struct diff d = { .e = v->e, .fn = fn, .ctx = ctx };
	uint64_t end;
	int r;

	d.hole_is_zero = d.e->h.backing[0] == '\0';
	d.a.is_nothing = !a;
	r = open_side(&d, &d.a, a, err);
	if (r == 0)
		r = open_side(&d, &d.b, b, err);
	end = min_u64(max_u64(d.a.tables, d.b.tables), d.b.entries);
	for (uint64_t i = 0; r == 0 && i < end; i++)
		r = compare_tables(&d, i, err);
	if (r == 0)
		r = compare_rest(&d, end, err);
	if (r == 0 && d.bytes)
		r = report(&d, err);
	close_side(&d.a);
	close_side(&d.b);
	return r;
}
