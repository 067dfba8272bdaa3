/* SPDX-License-Identifier: MIT */
/*
 * The ordered write-back. What is dirty is copied at one moment, under map, and written without it:
 *
 *   1  refcount blocks; a refcount table that grew, at its new place           sync (with it: all data written before)
 *   2  entries of the refcount table, or the header that names the new one     sync
 *   3  L2 tables                                                               sync
 *   4  L1                                                                      sync
 *   5  requests under way are waited for, and the references that were given up before the moment are dropped
 *
 * Steps without work are left out together with their sync; one sync at the end there always is. Since every copy is of
 * one moment, changes made meanwhile cannot break the order; they are the next write-back's. A failed write leaves
 * everything to be written again; a failed sync cannot be repeated and ends all changes.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_refcount.h"

#define MAX_PENDING   65536u
#define RUN_BYTES_MAX (1u << 20)

struct piece {
	uint64_t off;
	uint32_t bytes;
	size_t at; /* in the buffer of its batch */
};

/* Things to be written in one step. */
struct batch {
	struct piece *piece;
	size_t nr, cap;
	uint8_t *buf;
	size_t bytes, cap_bytes;
};

struct writeback {
	struct batch blocks, table, l2, l1;
	struct qcow2_pending *pending;
	size_t nr_pending;
	uint64_t moved_to, moved_clusters; /* the refcount table's new place; 0: it stays */
	bool sync_failed;
};

static int batch_add(struct batch *b, const void *data, uint32_t bytes, uint64_t off, struct img_error *err)
{
	if (b->nr == b->cap) {
		size_t cap = b->cap ? 2 * b->cap : 64;
		struct piece *more = realloc(b->piece, cap * sizeof(*more));

		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		b->piece = more;
		b->cap = cap;
	}
	if (!b->buf || b->cap_bytes - b->bytes < bytes) {
		size_t cap = (size_t)max_u64(2 * b->cap_bytes, b->bytes + bytes + 65536);
		uint8_t *more = realloc(b->buf, cap);

		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		b->buf = more;
		b->cap_bytes = cap;
	}
	memcpy(b->buf + b->bytes, data, bytes);
	b->piece[b->nr++] = (struct piece){ off, bytes, b->bytes };
	b->bytes += bytes;
	return 0;
}

/* Pieces come in ascending order, so that neighbours on disk are neighbours in the buffer. */
static int batch_write(struct qcow2_engine *e, const struct batch *b, struct img_error *err)
{
	size_t i = 0;

	while (i < b->nr) {
		const struct piece *first = &b->piece[i];
		uint64_t bytes = 0;
		int ret;

		while (i < b->nr && b->piece[i].off == first->off + bytes && bytes < RUN_BYTES_MAX)
			bytes += b->piece[i++].bytes;
		ret = node_pwrite(e->file, b->buf + first->at, bytes, first->off, 0, err);
		if (ret != 0)
			return ret;
	}
	return 0;
}

static void writeback_free(struct writeback *w)
{
	struct batch *all[] = { &w->blocks, &w->table, &w->l2, &w->l1 };

	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		free(all[i]->piece);
		free(all[i]->buf);
	}
	free(w->pending);
}

/* ---- the moment ---- */

static int collect_slices(struct qcow2_engine *e, struct writeback *w, struct img_error *err)
{
	struct qcow2_slice **list;
	size_t nr;
	int ret = qcow2_cache_dirty_list(e, &list, &nr, err);

	for (size_t i = 0; ret == 0 && i < nr; i++)
		ret = batch_add(list[i]->kind == SLICE_L2 ? &w->l2 : &w->blocks, list[i]->data,
				(uint32_t)e->slice_bytes, list[i]->off, err);
	for (size_t i = 0; ret == 0 && i < nr; i++) {
		qcow2_cache_clean(e, list[i]);
		list[i]->writing = true;
	}
	free(list);
	return ret;
}

/* Entries of a table of host integers that are dirty, as 512-byte pieces of it. */
static int collect_table(const uint64_t *table, uint64_t entries, uint64_t off, const uint8_t *dirty, struct batch *b,
			 struct img_error *err)
{
	for (uint64_t i = 0; i < entries; i += 64) {
		struct be64 sector[64];
		uint64_t n = min_u64(64, entries - i);
		int ret;

		if (dirty && !dirty[i / 64])
			continue;
		for (uint64_t j = 0; j < n; j++)
			sector[j] = be64_of(table[i + j]);
		ret = batch_add(b, sector, (uint32_t)(8 * n), off + 8 * i, err);
		if (ret != 0)
			return ret;
	}
	return 0;
}

static int collect(struct qcow2_engine *e, struct writeback *w, struct img_error *err)
{
	int ret = 0;

	if (e->any_l1_dirty)
		ret = collect_table(e->l1, e->h.l1_entries, e->h.l1_off, e->l1_dirty, &w->l1, err);
	if (ret == 0 && e->any_reftable_dirty)
		ret = collect_table(e->reftable, e->reftable_entries,
				    e->reftable_moved_to ? e->reftable_moved_to : e->h.reftable_off,
				    e->reftable_moved_to ? NULL : e->reftable_dirty, &w->table, err);
	if (ret == 0)
		ret = collect_slices(e, w, err); /* last: it changes the cache */
	if (ret != 0)
		return ret;
	if (e->any_l1_dirty)
		memset(e->l1_dirty, 0, e->h.l1_entries / 64 + 1);
	if (e->any_reftable_dirty)
		memset(e->reftable_dirty, 0, (size_t)(e->reftable_entries / 64 + 1));
	e->any_l1_dirty = e->any_reftable_dirty = false;
	w->moved_to = e->reftable_moved_to;
	w->moved_clusters = e->reftable_entries * 8 >> e->h.cluster_bits;
	w->pending = e->pending;
	w->nr_pending = e->nr_pending;
	e->pending = NULL;
	e->nr_pending = e->cap_pending = 0;
	return 0;
}

/* ---- writing ---- */

static int sync_files(struct qcow2_engine *e, struct writeback *w, struct img_error *err)
{
	int ret = 0;

	if (e->bulk)
		return 0;
	if (e->data != e->file)
		ret = node_flush(e->data, 0, err);
	if (ret == 0)
		ret = node_flush(e->file, 0, err);
	w->sync_failed = ret != 0;
	return ret;
}

/*
 * The header names the new table. A table that has been moved on since is on disk all the same, and the header must go
 * step by step, so it is set to what was collected.
 */
static int switch_table(struct qcow2_engine *e, struct writeback *w, struct img_error *err)
{
	int ret;

	pthread_rwlock_wrlock(&e->map);
	e->h.reftable_off = w->moved_to;
	e->h.reftable_clusters = (uint32_t)w->moved_clusters;
	if (e->reftable_moved_to == w->moved_to)
		e->reftable_moved_to = 0;
	ret = qcow2_header_write_fields(e, err);
	if (ret != 0)
		atomic_store(&e->broken, true); /* the disk may hold either, and the old table must not be given up */
	pthread_rwlock_unlock(&e->map);
	return ret;
}

static int write_steps(struct qcow2_engine *e, struct writeback *w, struct img_error *err)
{
	int ret = batch_write(e, &w->blocks, err);

	if (ret == 0 && w->moved_to)
		ret = batch_write(e, &w->table, err);
	if (ret == 0 && (w->table.nr || w->l2.nr || w->l1.nr))
		ret = sync_files(e, w, err);
	if (ret == 0 && w->table.nr) {
		ret = w->moved_to ? switch_table(e, w, err) : batch_write(e, &w->table, err);
		if (ret == 0 && (w->l2.nr || w->l1.nr))
			ret = sync_files(e, w, err);
	}
	if (ret == 0)
		ret = batch_write(e, &w->l2, err);
	if (ret == 0 && w->l2.nr && w->l1.nr)
		ret = sync_files(e, w, err);
	if (ret == 0)
		ret = batch_write(e, &w->l1, err);
	return ret == 0 ? sync_files(e, w, err) : ret;
}

/* After a failure everything collected is dirty again. */
static void take_back(struct qcow2_engine *e, struct writeback *w)
{
	const struct batch *cached[] = { &w->blocks, &w->l2 };
	struct qcow2_pending *all;

	for (size_t b = 0; b < ARRAY_LEN(cached); b++) {
		for (size_t i = 0; i < cached[b]->nr; i++) {
			struct qcow2_slice *s = qcow2_cache_peek(e, cached[b]->piece[i].off);

			if (s)
				qcow2_cache_dirty(e, s);
		}
	}
	if (w->l1.nr > 0) {
		memset(e->l1_dirty, 1, e->h.l1_entries / 64 + 1);
		e->any_l1_dirty = true;
	}
	if (w->table.nr > 0) {
		memset(e->reftable_dirty, 1, (size_t)(e->reftable_entries / 64 + 1));
		e->any_reftable_dirty = true;
	}
	all = realloc(w->pending, (w->nr_pending + e->nr_pending + 1) * sizeof(*all));
	if (!all) {
		atomic_store(&e->broken, true); /* clusters would be lost */
		return;
	}
	if (e->nr_pending > 0)
		memcpy(all + w->nr_pending, e->pending, e->nr_pending * sizeof(*all));
	free(e->pending);
	e->pending = all;
	e->nr_pending += w->nr_pending;
	e->cap_pending = e->nr_pending + 1;
	w->pending = NULL;
}

static void writing_ends(struct qcow2_engine *e, const struct batch *b)
{
	for (size_t i = 0; i < b->nr; i++) {
		struct qcow2_slice *s = qcow2_cache_peek(e, b->piece[i].off);

		if (s)
			s->writing = false;
	}
}

/* No request may still use what becomes free: those that looked it up hold the gate. */
static int let_go(struct qcow2_engine *e, struct writeback *w, bool gate_held, struct img_error *err)
{
	int ret;

	if (w->nr_pending == 0)
		return 0;
	if (!gate_held)
		pthread_rwlock_wrlock(&e->gate);
	pthread_rwlock_wrlock(&e->map);
	ret = qcow2_pending_apply(e, w->pending, w->nr_pending, err);
	qcow2_punch_freed(e);
	pthread_rwlock_unlock(&e->map);
	if (!gate_held)
		pthread_rwlock_unlock(&e->gate);
	if (ret != 0)
		atomic_store(&e->broken, true);
	return ret;
}

static int flush_locked(struct qcow2_engine *e, bool gate_held, struct img_error *err)
{
	struct writeback w = { 0 };
	int ret;

	if (atomic_load(&e->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again");
	pthread_rwlock_wrlock(&e->map);
	ret = collect(e, &w, err);
	pthread_rwlock_unlock(&e->map);
	if (ret == 0) {
		ret = write_steps(e, &w, err);
		pthread_rwlock_wrlock(&e->map);
		writing_ends(e, &w.blocks);
		writing_ends(e, &w.l2);
		if (ret != 0)
			take_back(e, &w);
		pthread_rwlock_unlock(&e->map);
		if (ret == 0)
			ret = let_go(e, &w, gate_held, err);
		if (w.sync_failed)
			atomic_store(&e->broken, true);
	}
	writeback_free(&w);
	return ret;
}

int qcow2_flush_all(struct qcow2_engine *e, struct img_error *err)
{
	int ret;

	pthread_mutex_lock(&e->flushing);
	ret = flush_locked(e, false, err);
	pthread_mutex_unlock(&e->flushing);
	return ret;
}

bool qcow2_all_written(struct qcow2_engine *e)
{
	return !e->cache->dirty_first && !e->any_l1_dirty && !e->any_reftable_dirty && e->nr_pending == 0;
}

int qcow2_settle_gated(struct qcow2_engine *e, struct img_error *err)
{
	bool done = false;
	int ret = 0;

	while (ret == 0 && !done) {
		pthread_rwlock_rdlock(&e->map);
		done = qcow2_all_written(e);
		pthread_rwlock_unlock(&e->map);
		if (!done)
			ret = flush_locked(e, true, err);
	}
	return ret;
}

int qcow2_settle(struct qcow2_engine *e, struct img_error *err)
{
	bool done = false;
	int ret = 0;

	/* References that one write-back drops are the next one's refcount blocks. */
	while (ret == 0 && !done) {
		ret = qcow2_flush_all(e, err);
		pthread_rwlock_rdlock(&e->map);
		done = qcow2_all_written(e);
		pthread_rwlock_unlock(&e->map);
	}
	return ret;
}

int qcow2_make_room(struct qcow2_engine *e, struct img_error *err)
{
	bool due;

	pthread_rwlock_rdlock(&e->map);
	due = qcow2_cache_crowded(e) || e->nr_pending > MAX_PENDING;
	pthread_rwlock_unlock(&e->map);
	return due ? qcow2_flush_all(e, err) : 0;
}
