/* SPDX-License-Identifier: MIT */
/*
 * Zeroing and discarding. Whole clusters change only their entries: version 3 has a flag for zeros (with subclusters
 * one for each), version 2 has nothing but leaving a cluster out, which is zeros only without a backing file. What
 * cannot be said by entries is written as zeros, or for a discard left alone. In an external data file that is to be a
 * raw image of its own, the zeros are put there, too.
 *
 * Long ranges go in steps of at most one L2 table, and tables that do not exist, where nothing lies below, are passed
 * at once.
 */
#include <inttypes.h>

#include "qcow2_io.h"

#define STEP_MAX 8192u /* clusters under one hold of map */

static const uint8_t zeros[64u << 10];

static bool backed(const struct qcow2_engine *e)
{
	return qcow2_backed(e) || e->h.backing[0] || e->node->backing_changes;
}

/* ---- whole clusters ---- */

enum change { KEEP, SET, SET_AND_FREE, WRITE };

static enum change zero_subclusters_all(const struct qcow2_engine *e, uint64_t g, const struct qcow2_entry *old,
					struct qcow2_zeroing how, struct qcow2_entry *en)
{
	bool host = qcow2_entry_has_host(e, old->desc);

	en->bitmap = qcow2_bitmap_of(0, QCOW2_ALL_SUBCLUSTERS);
	if (!(old->desc & QCOW2_COMPRESSED)) {
		if (!host && qcow2_sub_zero(old) == QCOW2_ALL_SUBCLUSTERS)
			return KEEP;
		if (!host && qcow2_sub_zero(old) == 0 && !backed(e))
			return KEEP;
	}
	if (host && !how.unmap && qcow2_entry_owned(e, g, old->desc)) {
		en->desc = old->desc;
		return SET;
	}
	return SET_AND_FREE;
}

static enum change zero_cluster(const struct qcow2_engine *e, uint64_t g, const struct qcow2_entry *old,
				struct qcow2_zeroing how, struct qcow2_entry *en)
{
	bool host = qcow2_entry_has_host(e, old->desc), nothing = !host && !(old->desc & QCOW2_COMPRESSED);

	*en = (struct qcow2_entry){ 0 };
	if (e->subclusters > 1)
		return zero_subclusters_all(e, g, old, how, en);
	if (e->h.version < 3) {
		/* Behind the disk, where machine state is, nothing lies below. */
		if (backed(e) && g << e->cluster_bits < atomic_load(&e->disk_bytes))
			return how.discard ? KEEP : WRITE;
		return nothing ? KEEP : SET_AND_FREE;
	}
	en->desc = QCOW2_ZERO;
	if (nothing && ((old->desc & QCOW2_ZERO) || !backed(e)))
		return KEEP;
	if (host && !how.unmap) {
		if (old->desc & QCOW2_ZERO)
			return KEEP;
		if (qcow2_entry_owned(e, g, old->desc)) {
			en->desc = old->desc | QCOW2_ZERO;
			return SET;
		}
	}
	return SET_AND_FREE;
}

/* One step; *nr is how far it came. map wr. */
static int zero_step(struct qcow2_engine *e, uint64_t g, uint64_t *nr, struct qcow2_zeroing how, bool *done,
		     struct img_error *err)
{
	uint64_t max = *nr;

	for (*nr = 0; *nr < max; ++*nr) {
		struct qcow2_entry old, en;
		enum change change;
		int rc = qcow2_entry_get(e, g + *nr, &old, err);

		if (!rc)
			rc = qcow2_entry_check(e, &old, (g + *nr) << e->cluster_bits, err);
		if (rc)
			return rc;
		change = zero_cluster(e, g + *nr, &old, how, &en);
		if (change == KEEP)
			continue;
		if (change == WRITE) {
			*done = false;
			return 0;
		}
		rc = qcow2_entry_set(e, g + *nr, &en, err);
		if (!rc && change == SET_AND_FREE)
			rc = qcow2_free_entry(e, old.desc, err);
		if (rc)
			return rc;
	}
	return 0;
}

/* Clusters from g on, at most nr, that have no L2 table, and where that is zeros. map. */
static uint64_t nothing_there(const struct qcow2_engine *e, uint64_t g, uint64_t nr)
{
	uint64_t at = g, end = g + nr;

	if (backed(e))
		return 0;
	while (at < end) {
		uint64_t i = at >> e->l2_shift;

		if (i < e->h.l1_entries && e->l1[i])
			break;
		at = (i + 1) << e->l2_shift;
	}
	return min_u64(at, end) - g;
}

/* What lies in an external data file. */
static int zero_external(struct qcow2_engine *e, uint64_t g, uint64_t nr, struct qcow2_zeroing how,
			 struct img_error *err)
{
	uint64_t off = g << e->cluster_bits, disk = atomic_load(&e->disk_bytes);
	uint64_t end = min_u64((g + nr) << e->cluster_bits, disk);

	if (!e->external || off >= end)
		return 0;
	if (e->h.autoclear & QCOW2_DATA_FILE_RAW)
		return node_zero(e->data, end - off, off, how.unmap ? 0 : IMG_IO_NO_UNMAP, err);
	return how.unmap ? node_discard(e->data, end - off, off, 0, err) : 0;
}

int qcow2_zero_clusters(struct qcow2_engine *e, uint64_t g, uint64_t nr, struct qcow2_zeroing how, bool *done,
			struct img_error *err)
{
	struct qcow2_inflight range;
	uint64_t end = g + nr;
	int rc;

	*done = true;
	if (nr == 0)
		return 0;
	qcow2_range_begin(e, &range, g, end - 1);
	rc = zero_external(e, g, nr, how, err);
	while (!rc && *done && g < end) {
		uint64_t n;

		pthread_rwlock_wrlock(&e->map);
		n = nothing_there(e, g, end - g);
		if (n == 0) {
			n = min_u64(end - g, STEP_MAX);
			rc = zero_step(e, g, &n, how, done, err);
		}
		pthread_rwlock_unlock(&e->map);
		g += n;
	}
	qcow2_range_end(e, &range);
	return rc;
}

/* ---- parts of clusters ---- */

/* Zeros as data, where something else is read. */
static int write_zeros(struct qcow2_engine *e, uint64_t off, uint64_t end, struct qcow2_zeroing how,
		       struct img_error *err)
{
	struct qcow2_view v = qcow2_head_view(e);
	int rc = 0;

	if (how.discard || off >= end || qcow2_reads_zero(&v, off, end - off))
		return 0;
	while (!rc && off < end) {
		uint64_t n = min_u64(end - off, sizeof(zeros));

		rc = qcow2_write_held(e, zeros, n, off, err);
		off += n;
	}
	return rc;
}

/* Subclusters [first, last] of guest cluster g; false in *done: not to be said by its entry. map wr. */
static int set_sub_zero(struct qcow2_engine *e, uint64_t g, unsigned first, unsigned last, struct qcow2_zeroing how,
			bool *done, struct img_error *err)
{
	uint32_t mask = qcow2_sub_mask(first, last), data, zero;
	struct qcow2_entry old, en;
	int rc = qcow2_entry_get(e, g, &old, err);

	if (!rc)
		rc = qcow2_entry_check(e, &old, g << e->cluster_bits, err);
	if (rc)
		return rc;
	*done = !(old.desc & QCOW2_COMPRESSED);
	if (!*done)
		return 0;
	data = qcow2_sub_allocated(&old) & ~mask;
	zero = qcow2_sub_zero(&old) | (backed(e) ? mask : mask & qcow2_sub_allocated(&old));
	en = (struct qcow2_entry){ old.desc, qcow2_bitmap_of(data, zero) };
	if (how.unmap && !data && qcow2_entry_has_host(e, old.desc))
		en.desc = 0;
	if (en.desc == old.desc && en.bitmap == old.bitmap)
		return 0;
	rc = qcow2_entry_set(e, g, &en, err);
	return rc || en.desc == old.desc ? rc : qcow2_free_entry(e, old.desc, err);
}

/* [off, end) inside one cluster, not all of it; gate held. */
static int zero_part(struct qcow2_engine *e, uint64_t off, uint64_t end, struct qcow2_zeroing how,
		     struct img_error *err)
{
	uint64_t first = round_up(off, e->sub_bytes), last = round_down(end, e->sub_bytes);
	uint64_t g = off >> e->cluster_bits;
	struct qcow2_inflight range;
	bool done = false;
	int rc = 0;

	if (e->subclusters == 1 || first >= last || (e->external && (e->h.autoclear & QCOW2_DATA_FILE_RAW)))
		return write_zeros(e, off, end, how, err);
	qcow2_range_begin(e, &range, g, g);
	pthread_rwlock_wrlock(&e->map);
	rc = set_sub_zero(e, g, (unsigned)(first % e->cluster_bytes / e->sub_bytes),
			  (unsigned)((last - 1) % e->cluster_bytes / e->sub_bytes), how, &done, err);
	pthread_rwlock_unlock(&e->map);
	qcow2_range_end(e, &range);
	if (!rc && !done)
		return write_zeros(e, off, end, how, err);
	if (!rc)
		rc = write_zeros(e, off, first, how, err);
	return rc ? rc : write_zeros(e, last, end, how, err);
}

/* ---- requests ---- */

static int zero_whole(struct qcow2_engine *e, uint64_t off, uint64_t end, struct qcow2_zeroing how,
		      struct img_error *err)
{
	uint64_t table_bytes = e->cluster_bytes << e->l2_shift;
	int rc = 0;

	while (!rc && off < end) {
		uint64_t stop = min_u64(end, round_down(off, table_bytes) + table_bytes), g = off >> e->cluster_bits, n;
		bool done;

		rc = qcow2_make_room(e, err);
		if (rc)
			return rc;
		pthread_rwlock_rdlock(&e->gate);
		if (!e->external) {
			pthread_rwlock_rdlock(&e->map);
			n = nothing_there(e, g, (end - off) >> e->cluster_bits);
			pthread_rwlock_unlock(&e->map);
			stop = max_u64(stop, (g + n) << e->cluster_bits);
		}
		rc = qcow2_zero_clusters(e, g, (stop - off) >> e->cluster_bits, how, &done, err);
		if (!rc && !done)
			rc = write_zeros(e, off, min_u64(stop, max_u64(off, atomic_load(&e->disk_bytes))), how, err);
		pthread_rwlock_unlock(&e->gate);
		off = stop;
	}
	return rc;
}

static int zero_edge(struct qcow2_engine *e, uint64_t off, uint64_t end, struct qcow2_zeroing how,
		     struct img_error *err)
{
	int rc;

	if (off >= end)
		return 0;
	rc = qcow2_make_room(e, err);
	if (rc)
		return rc;
	pthread_rwlock_rdlock(&e->gate);
	rc = zero_part(e, off, end, how, err);
	pthread_rwlock_unlock(&e->gate);
	return rc;
}

int qcow2_zero(struct qcow2_engine *e, uint64_t bytes, uint64_t off, bool unmap, bool discard, struct img_error *err)
{
	struct qcow2_zeroing how = { .unmap = unmap, .discard = discard };
	uint64_t disk = atomic_load(&e->disk_bytes), end = off + bytes, first, last;
	int rc = qcow2_touch(e, err);

	if (rc)
		return rc;
	if (off < disk)
		qcow2_bitmaps_note(e, off, min_u64(bytes, disk - off));
	/* Behind the end of the disk nobody looks, up to where machine state may begin. */
	if (end == disk)
		end = round_up(end, e->cluster_bytes);
	first = round_up(off, e->cluster_bytes);
	last = round_down(end, e->cluster_bytes);
	if (first > last)
		return zero_edge(e, off, end, how, err);
	rc = zero_edge(e, off, first, how, err);
	if (!rc)
		rc = zero_whole(e, first, last, how, err);
	return rc ? rc : zero_edge(e, last, end, how, err);
}
