/* SPDX-License-Identifier: MIT */
/*
 * Clusters: finding free ones, giving them back. The search goes from a hint upwards; freeing lowers the hint. What is
 * given back is free only after the next write-back, when nothing on disk refers to it any more and no request can
 * still be reading it.
 *
 * A refcount block that does not exist yet is made when a cluster that it describes is taken, and lies right behind the
 * clusters that made it necessary, so that it may describe itself.
 *
 * In a transaction a free cluster is one that is free before and after it: what is on disk stays whole until the header
 * is written.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_refcount.h"

#define MAX_FREED	    (1u << 18)
#define SKIP_CLUSTERS	    65536u /* passed at once where a transaction freed much */
#define MAX_HOST_CLUSTER(e) (QCOW2_OFFSET_MASK >> (e)->h.cluster_bits)

/* Neighbours are one entry. Where there is no memory, or too many, the space stays: nothing else is lost. */
static void note_space(struct qcow2_engine *e, uint64_t cluster)
{
	struct qcow2_pending *last = e->nr_freed ? &e->freed[e->nr_freed - 1] : NULL;

	if (last && last->first + last->nr == cluster) {
		last->nr++;
		return;
	}
	if (e->nr_freed == e->cap_freed) {
		size_t cap = e->cap_freed ? 2 * e->cap_freed : 64;
		struct qcow2_pending *more = cap > MAX_FREED ? NULL : realloc(e->freed, cap * sizeof(*more));

		if (!more)
			return;
		e->freed = more;
		e->cap_freed = cap;
	}
	assert(e->freed);
	e->freed[e->nr_freed++] = (struct qcow2_pending){ cluster, 1 };
}

void qcow2_note_freed(struct qcow2_engine *e, uint64_t cluster)
{
	uint64_t off = cluster << e->h.cluster_bits;

	if (!e->txn && cluster < e->alloc_hint)
		e->alloc_hint = cluster;
	/* It may have been an L2 table that snapshots kept. The end of a transaction makes the set anew. */
	if (!e->txn)
		qcow2_meta_remove(e, off, e->cluster_bytes);
	if (e->packed_off > off && e->packed_off < off + e->cluster_bytes)
		e->packed_off = e->packed_end = 0;
	note_space(e, cluster);
}

/* The end of a file is cut off; only clusters that were seen to become free are, whatever refcounts say of others. */
static void give_to_host(struct qcow2_engine *e, uint64_t off, uint64_t bytes)
{
	bool regular = e->file_end != UINT64_MAX;

	if (regular && off + bytes >= node_size(e->file)) {
		if (off < node_size(e->file))
			(void)node_resize(e->file, off, NULL);
		return;
	}
	(void)node_discard(e->file, bytes, off, 0, NULL);
}

void qcow2_punch_freed(struct qcow2_engine *e)
{
	for (size_t i = 0; i < e->nr_freed; i++) {
		uint64_t at = e->freed[i].first, end = at + e->freed[i].nr;

		while (at < end) {
			uint64_t refs, nr;

			if (qcow2_refcount_run(e, at, end - at, &refs, &nr, NULL) != 0)
				break;
			if (refs == 0)
				give_to_host(e, at << e->h.cluster_bits, nr << e->h.cluster_bits);
			at += nr;
		}
	}
	e->nr_freed = 0;
}

/* In a transaction, of nr free clusters from first: how many were free before it, or else how many were not. */
static int clip_to_old(struct qcow2_engine *e, uint64_t first, uint64_t *nr, uint64_t *skip, struct img_error *err)
{
	struct qcow2_reftable old;
	uint64_t value, n;
	int ret;

	*skip = 0;
	if (!e->txn)
		return 0;
	old = qcow2_txn_old_table(e);
	ret = qcow2_reftable_run(e, &old, first, *nr, &value, &n, err);
	if (ret != 0)
		return ret;
	*nr = value == 0 ? n : 0;
	*skip = value == 0 ? 0 : n;
	return 0;
}

/* The first run of at least least and at most want free clusters, from the hint on. */
static int find_run(struct qcow2_engine *e, uint64_t least, uint64_t want, uint64_t *first, uint64_t *nr,
		    struct img_error *err)
{
	const struct qcow2_reftable t = { e->reftable, e->reftable_entries };
	uint64_t at = e->alloc_hint, longest = e->txn ? max_u64(want, SKIP_CLUSTERS) : want;
	bool passed_all = true; /* nothing from the hint to here is of use to anybody */

	for (;;) {
		uint64_t value, n, skip;
		int ret = qcow2_reftable_next_free(e, &t, at, &at, err);

		if (ret != 0)
			return ret;
		if (at > MAX_HOST_CLUSTER(e) - want)
			return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "no more space in the image file");
		if (passed_all)
			e->alloc_hint = at;
		ret = qcow2_reftable_run(e, &t, at, longest, &value, &n, err);
		if (ret == 0)
			ret = clip_to_old(e, at, &n, &skip, err);
		if (ret != 0)
			return ret;
		if (n >= least) {
			*first = at;
			*nr = min_u64(n, want);
			return 0;
		}
		passed_all = passed_all && n == 0;
		at += n + skip;
	}
}

/* Blocks that [first, first + nr) needs and that do not exist, those of the blocks' own clusters included, which
 * follow. */
static uint64_t missing_blocks(const struct qcow2_engine *e, uint64_t first, uint64_t nr)
{
	uint64_t missing = 0, before;

	do {
		uint64_t last = (first + nr + missing - 1) >> e->rb_shift;

		before = missing;
		missing = 0;
		for (uint64_t b = first >> e->rb_shift; b <= last; b++)
			missing += b >= e->reftable_entries || e->reftable[b] == 0;
	} while (missing > before);
	return missing;
}

/* Grows the table on disk, too: a new place for all of it, written by the next write-back. */
/* NOLINTNEXTLINE(misc-no-recursion): each time the table has grown by half, and it has a limit */
static int move_reftable(struct qcow2_engine *e, uint64_t least_entries, struct img_error *err)
{
	uint64_t limit = QCOW2_REFTABLE_MAX_BYTES / 8, old_moved = e->reftable_moved_to;
	uint64_t old_clusters = e->reftable_entries * 8 >> e->h.cluster_bits, off, clusters;
	int ret = qcow2_reftable_grow(e, max_u64(least_entries, min_u64(e->reftable_entries * 3 / 2, limit)), err);

	if (ret != 0 || e->txn)
		return ret;
	clusters = e->reftable_entries * 8 >> e->h.cluster_bits;
	ret = qcow2_alloc_exact(e, clusters, &off, err);
	if (ret == 0)
		ret = qcow2_meta_add(e, off, clusters << e->h.cluster_bits, err);
	if (ret != 0) {
		/* It has grown and has no place: written where it is, it would lie over what is behind it. */
		if (e->reftable_moved_to == old_moved)
			atomic_store(&e->broken, true);
		return ret;
	}
	if (e->reftable_moved_to != old_moved) {
		/* Making room for it, the table outgrew it. */
		qcow2_meta_remove(e, off, clusters << e->h.cluster_bits);
		return qcow2_free(e, off, clusters, err);
	}
	if (!old_moved) {
		old_moved = e->h.reftable_off;
		old_clusters = e->h.reftable_clusters;
	}
	e->reftable_moved_to = off;
	e->any_reftable_dirty = true;
	qcow2_meta_remove(e, old_moved, old_clusters << e->h.cluster_bits);
	return qcow2_free(e, old_moved, old_clusters, err);
}

/* Takes [first, first + nr), with the missing blocks behind it. The run is free, and so is what follows as far as
 * needed. */
static int take_run(struct qcow2_engine *e, uint64_t first, uint64_t nr, uint64_t missing, struct img_error *err)
{
	uint64_t last = (first + nr + missing - 1) >> e->rb_shift, at = first + nr, where, end;
	int ret = 0;

	if (qcow2_meta_overlaps(e, first << e->h.cluster_bits, (nr + missing) << e->h.cluster_bits, &where))
		return qcow2_mark_corrupt(e, where, err, "a cluster with refcount 0 holds metadata");
	qcow2_cache_drop(e, first << e->h.cluster_bits, (nr + missing) << e->h.cluster_bits);
	for (uint64_t b = first >> e->rb_shift; ret == 0 && b <= last; b++) {
		if (e->reftable[b] == 0)
			ret = qcow2_refblock_new(e, b, at++, err);
	}
	if (ret == 0)
		ret = qcow2_refcount_add(e, first, nr + missing, 1, err);
	if (ret != 0) {
		/* A block whose own cluster is not counted must not be built on. */
		atomic_store(&e->broken, true);
		return ret;
	}
	end = (first + nr + missing) << e->h.cluster_bits;
	if (end > e->file_end)
		e->file_end = end;
	return 0;
}

/* How much of a run of found free clusters can be taken together with the blocks that it needs; 0: less than least. */
static uint64_t fit_run(const struct qcow2_engine *e, uint64_t first, uint64_t found, uint64_t least, uint64_t want,
			uint64_t *missing)
{
	uint64_t nr = min_u64(found, want);

	for (;;) {
		*missing = missing_blocks(e, first, nr);
		if (nr + *missing <= found)
			return nr;
		if (found < least + *missing)
			return 0;
		nr = found - *missing;
	}
}

/* NOLINTNEXTLINE(misc-no-recursion): each time the table has grown by half, and it has a limit */
static int alloc_run(struct qcow2_engine *e, uint64_t least, uint64_t want, uint64_t *off, uint64_t *got,
		     struct img_error *err)
{
	uint64_t first, found, nr, missing, need = least;
	int ret;

	for (;;) {
		uint64_t last;

		ret = find_run(e, need, max_u64(want + (want >> e->rb_shift) + 3, need), &first, &found, err);
		if (ret != 0)
			return ret;
		nr = fit_run(e, first, found, least, want, &missing);
		if (nr == 0) {
			need = max_u64(need + 1, least + missing);
			continue;
		}
		last = (first + nr + missing - 1) >> e->rb_shift;
		if (last < e->reftable_entries)
			break;
		ret = move_reftable(e, last + 1, err);
		if (ret != 0)
			return ret;
	}
	/* Counting it may need clusters for copies of blocks, in a transaction: not these. */
	if (first == e->alloc_hint || e->txn)
		e->alloc_hint = first + nr + missing;
	ret = take_run(e, first, nr, missing, err);
	if (ret != 0)
		return ret;
	*off = first << e->h.cluster_bits;
	*got = nr;
	return 0;
}

int qcow2_alloc(struct qcow2_engine *e, uint64_t want, uint64_t *off, uint64_t *got, struct img_error *err)
{
	return alloc_run(e, 1, want, off, got, err);
}

/* NOLINTNEXTLINE(misc-no-recursion): each time the table has grown by half, and it has a limit */
int qcow2_alloc_exact(struct qcow2_engine *e, uint64_t want, uint64_t *off, struct img_error *err)
{
	uint64_t got;

	return alloc_run(e, want, want, off, &got, err);
}

int qcow2_alloc_uncounted(struct qcow2_engine *e, uint64_t *cluster, struct img_error *err)
{
	uint64_t nr, where;
	int ret = find_run(e, 1, 1, cluster, &nr, err);

	if (ret != 0)
		return ret;
	if (qcow2_meta_overlaps(e, *cluster << e->h.cluster_bits, e->cluster_bytes, &where))
		return qcow2_mark_corrupt(e, where, err, "a cluster with refcount 0 holds metadata");
	/* Its block, if there is none, is made when it is counted. */
	if (*cluster >> e->rb_shift >= e->reftable_entries) {
		ret = qcow2_reftable_grow(e, (*cluster >> e->rb_shift) + 1, err);
		if (ret != 0)
			return ret;
	}
	e->alloc_hint = *cluster + 1;
	if (e->file_end < (*cluster + 1) << e->h.cluster_bits)
		e->file_end = (*cluster + 1) << e->h.cluster_bits;
	return 0;
}

int qcow2_alloc_packed(struct qcow2_engine *e, uint64_t bytes, uint64_t *off, struct img_error *err)
{
	uint64_t room = e->packed_end - e->packed_off, next, refs, got;
	int ret;

	if (room > 0) {
		ret = qcow2_refcount_get(e, e->packed_off >> e->h.cluster_bits, &refs, err);
		if (ret != 0)
			return ret;
		if (refs == e->refcount_max || refs == 0)
			room = 0;
	}
	if (bytes <= room) {
		*off = e->packed_off;
		e->packed_off += bytes;
		return qcow2_refcount_add(e, *off >> e->h.cluster_bits, 1, 1, err);
	}
	ret = qcow2_alloc(e, 1, &next, &got, err);
	if (ret != 0)
		return ret;
	*off = next;
	if (room > 0 && next == e->packed_end) {
		ret = qcow2_refcount_add(e, e->packed_off >> e->h.cluster_bits, 1, 1, err);
		if (ret != 0)
			return ret;
		*off = e->packed_off;
	}
	e->packed_off = *off + bytes;
	e->packed_end = next + e->cluster_bytes;
	return 0;
}

/* ---- giving back ---- */

static int add_pending(struct qcow2_engine *e, uint64_t first, uint64_t nr, struct img_error *err)
{
	struct qcow2_pending *last = e->nr_pending ? &e->pending[e->nr_pending - 1] : NULL;

	if (last && last->first + last->nr == first) {
		last->nr += nr;
		return 0;
	}
	if (e->nr_pending == e->cap_pending) {
		size_t cap = e->cap_pending ? 2 * e->cap_pending : 64;
		struct qcow2_pending *more = realloc(e->pending, cap * sizeof(*more));

		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		e->pending = more;
		e->cap_pending = cap;
	}
	assert(e->pending);
	e->pending[e->nr_pending++] = (struct qcow2_pending){ first, nr };
	return 0;
}

int qcow2_free(struct qcow2_engine *e, uint64_t off, uint64_t nr, struct img_error *err)
{
	uint64_t first = off >> e->h.cluster_bits;

	if (nr == 0)
		return 0;
	return e->txn ? qcow2_refcount_add(e, first, nr, -1, err) : add_pending(e, first, nr, err);
}

int qcow2_free_entry(struct qcow2_engine *e, uint64_t desc, struct img_error *err)
{
	uint64_t off = desc & QCOW2_OFFSET_MASK, bytes = e->cluster_bytes, where;

	if (e->external)
		return 0;
	if (desc & QCOW2_COMPRESSED) {
		qcow2_compressed_range(e, desc, &off, &bytes);
		bytes += off % e->cluster_bytes;
		off = round_down(off, e->cluster_bytes);
	}
	if (off == 0)
		return 0;
	if (qcow2_meta_overlaps(e, off, bytes, &where))
		return qcow2_mark_corrupt(e, where, err, "an L2 entry refers to metadata");
	return qcow2_free(e, off, qcow2_clusters(e, bytes), err);
}

int qcow2_pending_apply(struct qcow2_engine *e, struct qcow2_pending *list, size_t nr, struct img_error *err)
{
	for (size_t i = 0; i < nr; i++) {
		int ret = qcow2_refcount_add(e, list[i].first, list[i].nr, -1, err);

		if (ret != 0)
			return ret;
	}
	return 0;
}
