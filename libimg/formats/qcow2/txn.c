/* SPDX-License-Identifier: MIT */
/*
 * Changes of the whole structure: snapshots, a new L1, repair. Nothing that the header reaches is written: refcount
 * blocks, L2 tables, L1, snapshot table, and refcount table are written anew, to clusters that are free before and
 * after; one write of the header's first sector makes them the image. Until then a crash leaves the old image, whose
 * refcounts never heard of the new clusters: no leak.
 *
 * It begins when everything is written back, so that what is dirty afterwards belongs to the transaction, and giving up
 * means to forget it. Gate, map, and flushing are held from begin to end: no request runs beside it.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_txn.h"

#define RUN_BYTES (256u << 10)

/* ---- begin ---- */

static void unlock_all(struct qcow2_engine *e)
{
	pthread_rwlock_unlock(&e->map);
	pthread_rwlock_unlock(&e->gate);
	pthread_mutex_unlock(&e->flushing);
}

static void txn_free(struct qcow2_engine *e)
{
	struct qcow2_txn *t = e->txn;

	e->txn = NULL;
	free(t->reftable);
	free(t->block_is_new);
	free(t->deferred);
	free(t);
}

static int txn_new(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_txn *t = calloc(1, sizeof(*t));
	size_t bytes = (size_t)max_u64(e->reftable_entries, 1) * sizeof(*t->reftable);

	if (t) {
		t->reftable = malloc(bytes);
		t->block_is_new = calloc((size_t)max_u64(e->reftable_entries, 1), 1);
	}
	if (!t || !t->reftable || !t->block_is_new) {
		if (t)
			free(t->block_is_new), free(t->reftable);
		free(t);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	t->h = e->h;
	memcpy(t->reftable, e->reftable, (size_t)e->reftable_entries * sizeof(*t->reftable));
	t->reftable_entries = t->nr_blocks = e->reftable_entries;
	t->alloc_hint = e->alloc_hint;
	t->file_end = e->file_end;
	t->packed_off = e->packed_off;
	t->packed_end = e->packed_end;
	t->disk_bytes = atomic_load(&e->disk_bytes);
	e->txn = t;
	return 0;
}

int qcow2_txn_begin(struct qcow2_engine *e, struct img_error *err)
{
	int ret = qcow2_flush_all(e, err); /* most of it, while requests go on */

	if (ret != 0)
		return ret;
	pthread_mutex_lock(&e->flushing);
	pthread_rwlock_wrlock(&e->gate);
	ret = qcow2_settle_gated(e, err);
	pthread_rwlock_wrlock(&e->map);
	if (ret == 0)
		ret = txn_new(e, err);
	if (ret != 0)
		unlock_all(e);
	return ret;
}

/* ---- for refcount.c and alloc.c ---- */

bool qcow2_txn_block_is_new(const struct qcow2_engine *e, uint64_t block)
{
	return block < e->txn->nr_blocks && e->txn->block_is_new[block];
}

int qcow2_txn_block_copied(struct qcow2_engine *e, uint64_t block, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;

	if (block >= t->nr_blocks) {
		uint8_t *more = realloc(t->block_is_new, (size_t)e->reftable_entries);

		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		memset(more + t->nr_blocks, 0, (size_t)(e->reftable_entries - t->nr_blocks));
		t->block_is_new = more;
		t->nr_blocks = e->reftable_entries;
	}
	t->block_is_new[block] = 1;
	return 0;
}

int qcow2_txn_defer(struct qcow2_engine *e, uint64_t cluster, int delta, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;

	if (t->nr_deferred == t->cap_deferred) {
		size_t cap = t->cap_deferred ? 2 * t->cap_deferred : 16;
		struct qcow2_deferred *more = realloc(t->deferred, cap * sizeof(*more));

		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		t->deferred = more;
		t->cap_deferred = cap;
	}
	t->deferred[t->nr_deferred++] = (struct qcow2_deferred){ cluster, delta };
	return 0;
}

bool qcow2_txn_deferred(struct qcow2_engine *e, uint64_t *cluster, int *delta)
{
	struct qcow2_txn *t = e->txn;

	if (!t || t->nr_deferred == 0)
		return false;
	t->nr_deferred--;
	*cluster = t->deferred[t->nr_deferred].cluster;
	*delta = t->deferred[t->nr_deferred].delta;
	return true;
}

struct qcow2_reftable qcow2_txn_old_table(const struct qcow2_engine *e)
{
	return (struct qcow2_reftable){ e->txn->reftable, e->txn->reftable_entries };
}

/* Nothing on disk refers to what is dirty now: no order, no sync. */
static int write_dirty(struct qcow2_engine *e, struct img_error *err)
{
	uint8_t *run = malloc(RUN_BYTES);
	struct qcow2_slice **list = NULL;
	size_t nr = 0, i = 0;
	int ret = 0;

	if (!run)
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (ret == 0)
		ret = qcow2_cache_dirty_list(e, &list, &nr, err);
	while (ret == 0 && i < nr) {
		uint64_t off = list[i]->off, bytes = 0;

		while (i < nr && list[i]->off == off + bytes && bytes + e->slice_bytes <= RUN_BYTES) {
			memcpy(run + bytes, list[i]->data, (size_t)e->slice_bytes);
			bytes += e->slice_bytes;
			i++;
		}
		ret = node_pwrite(e->file, run, bytes, off, 0, err);
	}
	for (i = 0; ret == 0 && i < nr; i++)
		qcow2_cache_clean(e, list[i]);
	free(list);
	free(run);
	return ret;
}

int qcow2_txn_spill(struct qcow2_engine *e, struct img_error *err)
{
	return qcow2_cache_crowded(e) ? write_dirty(e, err) : 0;
}

/* ---- what is to become ---- */

void qcow2_txn_set_l1(struct qcow2_engine *e, uint64_t *l1, uint32_t n)
{
	free(e->txn->l1);
	e->txn->l1 = l1;
	e->txn->l1_entries = n;
}

void qcow2_txn_set_snapshots(struct qcow2_engine *e, struct qcow2_snapshot *list, uint32_t n)
{
	if (e->txn->new_snapshots)
		qcow2_snapshots_free(e->txn->snapshots, e->txn->nr_snapshots);
	e->txn->new_snapshots = true;
	e->txn->snapshots = list;
	e->txn->nr_snapshots = n;
}

void qcow2_txn_whole_header(struct qcow2_engine *e)
{
	e->txn->whole_header = true;
}

int qcow2_txn_new_table(struct qcow2_engine *e, uint64_t bytes, uint64_t *off, struct img_error *err)
{
	*off = 0;
	return bytes ? qcow2_alloc_exact(e, qcow2_clusters(e, bytes), off, err) : 0;
}

/* ---- end ---- */

static void forget_targets(struct qcow2_txn *t)
{
	free(t->l1);
	t->l1 = NULL;
	if (t->new_snapshots)
		qcow2_snapshots_free(t->snapshots, t->nr_snapshots);
	t->new_snapshots = false;
}

void qcow2_txn_abort(struct qcow2_engine *e)
{
	struct qcow2_txn *t = e->txn;

	forget_targets(t);
	qcow2_cache_drop_dirty(e);
	free(e->reftable);
	e->reftable = t->reftable;
	t->reftable = NULL;
	e->reftable_entries = t->reftable_entries;
	memset(e->reftable_dirty, 0, (size_t)(e->reftable_entries / 64 + 1));
	e->any_reftable_dirty = false;
	e->h = t->h;
	e->nr_freed = 0;
	e->alloc_hint = t->alloc_hint;
	/* Clusters beyond the old end have been written to. */
	e->packed_off = t->packed_off;
	e->packed_end = t->packed_end;
	atomic_store(&e->disk_bytes, t->disk_bytes);
	txn_free(e);
	unlock_all(e);
}

/* A table of host integers to clusters of its own. */
static int write_table(struct qcow2_engine *e, const uint64_t *table, uint64_t n, uint64_t off, struct img_error *err)
{
	uint64_t bytes = qcow2_clusters(e, 8 * n) << e->h.cluster_bits;
	struct be64 *disk = calloc(1, (size_t)max_u64(bytes, 1));
	int ret;

	if (!disk)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t i = 0; i < n; i++)
		disk[i] = be64_of(table[i]);
	ret = bytes ? node_pwrite(e->file, disk, bytes, off, 0, err) : 0;
	free(disk);
	return ret;
}

static int place_l1(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;
	uint64_t off;
	int ret;

	if (!t->l1)
		return 0;
	ret = qcow2_txn_new_table(e, 8 * (uint64_t)t->l1_entries, &off, err);
	if (ret == 0)
		ret = write_table(e, t->l1, t->l1_entries, off, err);
	if (ret == 0 && t->h.l1_off)
		ret = qcow2_free(e, t->h.l1_off, qcow2_clusters(e, 8 * (uint64_t)t->h.l1_entries), err);
	e->h.l1_off = off;
	e->h.l1_entries = t->l1_entries;
	return ret;
}

static int place_snapshots(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;
	uint8_t *buf;
	uint64_t bytes, off;
	int ret;

	if (!t->new_snapshots)
		return 0;
	ret = qcow2_snapshots_store(t->snapshots, t->nr_snapshots, e->h.version, &buf, &bytes, err);
	if (ret != 0)
		return ret;
	ret = qcow2_txn_new_table(e, bytes, &off, err);
	if (ret == 0 && bytes)
		ret = node_pwrite(e->file, buf, bytes, off, 0, err);
	free(buf);
	if (ret == 0 && t->h.nr_snapshots)
		ret = qcow2_free(e, t->h.snapshots_off, qcow2_clusters(e, e->snapshots_bytes), err);
	e->h.snapshots_off = off;
	e->h.nr_snapshots = t->nr_snapshots;
	e->snapshots_bytes = bytes;
	return ret;
}

/* Last, when no counter changes any more but those that this changes itself. */
static int place_reftable(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;
	uint64_t off = 0, clusters = 0;
	int ret = qcow2_free(e, t->h.reftable_off, t->h.reftable_clusters, err);

	while (ret == 0) {
		clusters = e->reftable_entries * 8 >> e->h.cluster_bits;
		ret = qcow2_alloc_exact(e, clusters, &off, err);
		if (ret != 0 || e->reftable_entries * 8 >> e->h.cluster_bits == clusters)
			break;
		ret = qcow2_free(e, off, clusters, err); /* it outgrew the place */
	}
	if (ret == 0)
		ret = write_dirty(e, err);
	if (ret == 0)
		ret = write_table(e, e->reftable, e->reftable_entries, off, err);
	e->h.reftable_off = off;
	e->h.reftable_clusters = (uint32_t)clusters;
	return ret;
}

static int sync_both(struct qcow2_engine *e, struct img_error *err)
{
	int ret = e->data != e->file ? node_flush(e->data, 0, err) : 0;

	return ret == 0 ? node_flush(e->file, 0, err) : ret;
}

/* The new image is on disk. */
static int take_over(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;

	if (t->l1) {
		free(e->l1);
		e->l1 = t->l1;
		t->l1 = NULL;
	}
	if (t->new_snapshots) {
		qcow2_snapshots_free(e->snapshots, t->h.nr_snapshots);
		e->snapshots = t->snapshots;
		t->new_snapshots = false;
	}
	memset(e->reftable_dirty, 0, (size_t)(e->reftable_entries / 64 + 1));
	e->any_reftable_dirty = false;
	e->alloc_hint = 0;
	qcow2_punch_freed(e);
	qcow2_meta_free(e);
	return qcow2_meta_build(e, err);
}

int qcow2_txn_commit(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_txn *t = e->txn;
	uint64_t old_snapshots_bytes = e->snapshots_bytes;
	uint8_t *l1_dirty = NULL;
	int ret = 0;

	if (t->l1) {
		l1_dirty = calloc(t->l1_entries / 64 + 1, 1);
		if (!l1_dirty)
			ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	if (ret == 0)
		ret = place_l1(e, err);
	if (ret == 0)
		ret = place_snapshots(e, err);
	if (ret == 0)
		ret = place_reftable(e, err);
	if (ret == 0)
		ret = sync_both(e, err);
	if (ret != 0) {
		free(l1_dirty);
		e->snapshots_bytes = old_snapshots_bytes;
		qcow2_txn_abort(e);
		return ret;
	}
	ret = t->whole_header ? qcow2_header_write(e, err) : qcow2_header_write_fields(e, err);
	if (ret == 0)
		ret = node_flush(e->file, 0, err);
	if (ret != 0) {
		/* Which of the two images the disk holds is known when it is opened again; memory goes on with the old.
		 */
		atomic_store(&e->broken, true);
		free(l1_dirty);
		e->snapshots_bytes = old_snapshots_bytes;
		qcow2_txn_abort(e);
		return ret;
	}
	if (l1_dirty) {
		free(e->l1_dirty);
		e->l1_dirty = l1_dirty;
		e->any_l1_dirty = false;
	}
	/* It has happened, and is durable: what is missing now is only what later changes would need. */
	if (take_over(e, NULL) != 0)
		atomic_store(&e->broken, true);
	txn_free(e);
	unlock_all(e);
	return ret;
}
