/* SPDX-License-Identifier: MIT */
/*
 * Refcounts: one table of blocks, each a cluster full of counters of 1 to 64 bits. The table is held in memory, blocks
 * come and go through the cache.
 *
 * In a transaction a block is copied to a free cluster before its first change. That cluster, and the one it leaves,
 * have counters of their own, perhaps in other blocks, which must be copied then, too: such changes are put off
 * (qcow2_txn_defer) and done before qcow2_refcount_add() returns, until there are none. It ends, since each block is
 * copied once.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_refcount.h"

uint64_t qcow2_refcount_load(const uint8_t *data, uint64_t i, unsigned order)
{
	switch (order) {
	case 3: return data[i];
	case 4: return be16_get(((const struct be16 *)(const void *)data)[i]);
	case 5: return be32_get(((const struct be32 *)(const void *)data)[i]);
	case 6: return be64_get(((const struct be64 *)(const void *)data)[i]);
	default: /* less than a byte: the low bits first */
		return (uint64_t)data[i >> (3 - order)] >> ((i << order) & 7) & ((1u << (1u << order)) - 1);
	}
}

void qcow2_refcount_store(uint8_t *data, uint64_t i, unsigned order, uint64_t value)
{
	switch (order) {
	case 3: data[i] = (uint8_t)value; return;
	case 4: ((struct be16 *)(void *)data)[i] = be16_of((uint16_t)value); return;
	case 5: ((struct be32 *)(void *)data)[i] = be32_of((uint32_t)value); return;
	case 6: ((struct be64 *)(void *)data)[i] = be64_of(value); return;
	default: {
		unsigned shift = (unsigned)(i << order) & 7, mask = ((1u << (1u << order)) - 1) << shift;
		uint8_t *at = &data[i >> (3 - order)];

		*at = (uint8_t)((*at & ~mask) | ((unsigned)value << shift));
	}
	}
}

/* Counters in a slice. */
static uint64_t slice_counters(const struct qcow2_engine *e)
{
	return e->slice_bytes * 8 >> e->h.refcount_order;
}

static uint64_t counter_off(const struct qcow2_engine *e, uint64_t block_off, uint64_t in_block)
{
	return block_off + in_block / slice_counters(e) * e->slice_bytes;
}

/* ---- the table ---- */

int qcow2_reftable_load(struct qcow2_engine *e, struct img_error *err)
{
	uint64_t bytes = (uint64_t)e->h.reftable_clusters << e->h.cluster_bits, n = bytes / 8;
	struct be64 *disk = malloc((size_t)max_u64(bytes, 8));
	uint64_t *table = calloc((size_t)max_u64(n, 1), sizeof(*table));
	uint8_t *dirty = calloc((size_t)(n / 64 + 1), 1);
	int ret = 0;

	if (!disk || !table || !dirty)
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (ret == 0)
		ret = qcow2_read_clipped(e, disk, bytes, e->h.reftable_off, err);
	for (uint64_t i = 0; ret == 0 && i < n; i++) {
		uint64_t v = be64_get(disk[i]);

		table[i] = v & ~QCOW2_RT_RESERVED;
		if ((v & QCOW2_RT_RESERVED) || table[i] % e->cluster_bytes)
			ret = error_set(err, IMG_E_CORRUPT, 0, e->h.reftable_off + 8 * i, LAYER,
					"entry %" PRIu64 " of the refcount table is 0x%" PRIx64
					", no offset of a cluster: run imgtool check --repair",
					i, v);
	}
	free(disk);
	if (ret != 0) {
		free(table);
		free(dirty);
		return ret;
	}
	e->reftable = table;
	e->reftable_entries = n;
	e->reftable_dirty = dirty;
	return 0;
}

void qcow2_reftable_mark(struct qcow2_engine *e, uint64_t block)
{
	e->reftable_dirty[block / 64] = 1;
	e->any_reftable_dirty = true;
}

int qcow2_reftable_grow(struct qcow2_engine *e, uint64_t entries, struct img_error *err)
{
	uint64_t per_cluster = e->cluster_bytes / 8, n = round_up(entries, per_cluster);
	uint64_t *table;
	uint8_t *dirty;

	if (n <= e->reftable_entries)
		return 0;
	if (n * 8 > QCOW2_REFTABLE_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "the refcount table would have more than %" PRIu64 " bytes: the image file is full",
				 QCOW2_REFTABLE_MAX_BYTES);
	table = realloc(e->reftable, (size_t)(n * sizeof(*table)));
	if (table)
		e->reftable = table;
	dirty = realloc(e->reftable_dirty, (size_t)(n / 64 + 1));
	if (dirty)
		e->reftable_dirty = dirty;
	if (!table || !dirty)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memset(table + e->reftable_entries, 0, (size_t)((n - e->reftable_entries) * sizeof(*table)));
	memset(dirty + e->reftable_entries / 64 + 1, 0, (size_t)(n / 64 - e->reftable_entries / 64));
	e->reftable_entries = n;
	return 0;
}

/* ---- blocks ---- */

int qcow2_refblock_new(struct qcow2_engine *e, uint64_t block, uint64_t cluster, struct img_error *err)
{
	uint64_t off = cluster << e->h.cluster_bits;

	for (uint64_t at = 0; at < e->cluster_bytes; at += e->slice_bytes) {
		struct qcow2_slice *s;
		int ret = qcow2_cache_new(e, off + at, SLICE_REFBLOCK, &s, err);

		if (ret != 0) {
			qcow2_cache_drop(e, off, e->cluster_bytes);
			return ret;
		}
	}
	e->reftable[block] = off;
	qcow2_reftable_mark(e, block);
	return e->txn ? qcow2_txn_block_copied(e, block, err) : qcow2_meta_add(e, off, e->cluster_bytes, err);
}

/* In a transaction: the block as a copy of this transaction's own. */
static int own_block(struct qcow2_engine *e, uint64_t block, struct img_error *err)
{
	uint64_t old = e->reftable[block], cluster, off;
	int ret;

	if (!e->txn || qcow2_txn_block_is_new(e, block))
		return 0;
	ret = qcow2_alloc_uncounted(e, &cluster, err);
	off = cluster << e->h.cluster_bits;
	for (uint64_t at = 0; ret == 0 && at < e->cluster_bytes; at += e->slice_bytes) {
		struct qcow2_slice *s;

		/* The old content goes through the new slice, not through the cache. */
		ret = qcow2_cache_new(e, off + at, SLICE_REFBLOCK, &s, err);
		if (ret == 0)
			ret = qcow2_read_clipped(e, s->data, e->slice_bytes, old + at, err);
	}
	if (ret == 0)
		ret = qcow2_txn_block_copied(e, block, err);
	if (ret != 0)
		return ret;
	e->reftable[block] = off;
	qcow2_reftable_mark(e, block);
	ret = qcow2_txn_defer(e, cluster, 1, err);
	return ret == 0 ? qcow2_txn_defer(e, old >> e->h.cluster_bits, -1, err) : ret;
}

/* ---- counters ---- */

int qcow2_reftable_run(struct qcow2_engine *e, const struct qcow2_reftable *t, uint64_t first, uint64_t max,
		       uint64_t *value, uint64_t *nr, struct img_error *err)
{
	uint64_t per_slice = slice_counters(e), at = first, end = max > UINT64_MAX - first ? UINT64_MAX : first + max;

	while (at < end) {
		uint64_t block = at >> e->rb_shift, in_block = at & ((UINT64_C(1) << e->rb_shift) - 1);
		uint64_t in_slice = in_block % per_slice, n = min_u64(per_slice - in_slice, end - at), i;
		struct qcow2_slice *s;
		int ret;

		if (block >= t->entries || t->block[block] == 0) {
			if (at > first && *value != 0)
				break;
			*value = 0;
			at = block >= t->entries ? end : min_u64(end, (block + 1) << e->rb_shift);
			continue;
		}
		ret = qcow2_cache_get(e, counter_off(e, t->block[block], in_block), SLICE_REFBLOCK, &s, err);
		if (ret != 0)
			return ret;
		if (at == first)
			*value = qcow2_refcount_load(s->data, in_slice, e->h.refcount_order);
		for (i = 0; i < n; i++) {
			if (qcow2_refcount_load(s->data, in_slice + i, e->h.refcount_order) != *value)
				break;
		}
		at += i;
		if (i < n)
			break;
	}
	*nr = at - first;
	return 0;
}

/* The first zero counter of data in [i, end), or end. */
static uint64_t find_zero(const uint8_t *data, uint64_t i, uint64_t end, unsigned order)
{
	if (order == 4) {
		const struct be16 *v = (const struct be16 *)(const void *)data;

		while (i < end && (v[i].b[0] | v[i].b[1]))
			i++;
		return i;
	}
	while (i < end && qcow2_refcount_load(data, i, order) != 0)
		i++;
	return i;
}

int qcow2_reftable_next_free(struct qcow2_engine *e, const struct qcow2_reftable *t, uint64_t from, uint64_t *out,
			     struct img_error *err)
{
	uint64_t per_slice = slice_counters(e);

	for (;;) {
		uint64_t block = from >> e->rb_shift, in_block = from & ((UINT64_C(1) << e->rb_shift) - 1);
		uint64_t in_slice = in_block % per_slice, at;
		struct qcow2_slice *s;
		int ret;

		*out = from;
		if (block >= t->entries || t->block[block] == 0)
			return 0;
		ret = qcow2_cache_get(e, counter_off(e, t->block[block], in_block), SLICE_REFBLOCK, &s, err);
		if (ret != 0)
			return ret;
		at = find_zero(s->data, in_slice, per_slice, e->h.refcount_order);
		*out = from + (at - in_slice);
		if (at < per_slice)
			return 0;
		from = *out;
	}
}

int qcow2_refcount_run(struct qcow2_engine *e, uint64_t first, uint64_t max, uint64_t *out, uint64_t *nr,
		       struct img_error *err)
{
	struct qcow2_reftable t = { e->reftable, e->reftable_entries };

	return qcow2_reftable_run(e, &t, first, max, out, nr, err);
}

int qcow2_refcount_get(struct qcow2_engine *e, uint64_t cluster, uint64_t *out, struct img_error *err)
{
	uint64_t nr;

	return qcow2_refcount_run(e, cluster, 1, out, &nr, err);
}

static int bad_counter(struct qcow2_engine *e, uint64_t cluster, int delta, struct img_error *err)
{
	if (delta > 0)
		return error_set(
			err, IMG_E_LIMIT, 0, cluster << e->h.cluster_bits, LAYER,
			"a cluster has as many references as refcounts of %u bits can count: an image with larger "
			"refcount_bits is needed (imgtool convert -o refcount_bits=16)",
			1u << e->h.refcount_order);
	return error_set(err, IMG_E_CORRUPT, 0, cluster << e->h.cluster_bits, LAYER,
			 "a cluster in use has refcount 0: run imgtool check --repair");
}

/* A transaction may count a cluster for which there is no block yet. */
static int block_for_new_cluster(struct qcow2_engine *e, uint64_t block, struct img_error *err)
{
	uint64_t cluster;
	int ret = qcow2_alloc_uncounted(e, &cluster, err);

	if (ret == 0)
		ret = qcow2_refblock_new(e, block, cluster, err);
	return ret == 0 ? qcow2_txn_defer(e, cluster, 1, err) : ret;
}

/* Within one slice. *done: how many were changed. */
static int add_in_slice(struct qcow2_engine *e, uint64_t first, uint64_t nr, int delta, uint64_t *done,
			struct img_error *err)
{
	uint64_t per_slice = slice_counters(e), block = first >> e->rb_shift;
	uint64_t in_block = first & ((UINT64_C(1) << e->rb_shift) - 1), in_slice = in_block % per_slice;
	struct qcow2_slice *s = NULL;
	int ret = 0;

	*done = 0;
	if (e->txn && delta > 0 && block < e->reftable_entries && e->reftable[block] == 0)
		ret = block_for_new_cluster(e, block, err);
	else if (block >= e->reftable_entries || e->reftable[block] == 0)
		ret = bad_counter(e, first, -1, err);
	if (ret == 0)
		ret = own_block(e, block, err);
	if (ret == 0)
		ret = qcow2_cache_get(e, counter_off(e, e->reftable[block], in_block), SLICE_REFBLOCK, &s, err);
	if (ret != 0)
		return ret;
	nr = min_u64(nr, per_slice - in_slice);
	qcow2_cache_dirty(e, s);
	for (; *done < nr; (*done)++) {
		uint64_t i = in_slice + *done, v = qcow2_refcount_load(s->data, i, e->h.refcount_order);

		if (delta > 0 ? v == e->refcount_max : v == 0) {
			ret = bad_counter(e, first + *done, delta, err);
			break;
		}
		v = delta > 0 ? v + 1 : v - 1;
		qcow2_refcount_store(s->data, i, e->h.refcount_order, v);
		if (v == 0)
			qcow2_note_freed(e, first + *done);
	}
	return ret;
}

static int add_range(struct qcow2_engine *e, uint64_t first, uint64_t nr, int delta, struct img_error *err)
{
	while (nr > 0) {
		uint64_t done;
		int ret = add_in_slice(e, first, nr, delta, &done, err);

		if (ret != 0)
			return ret;
		first += done;
		nr -= done;
	}
	return 0;
}

int qcow2_refcount_add(struct qcow2_engine *e, uint64_t first, uint64_t nr, int delta, struct img_error *err)
{
	uint64_t cluster;
	int later, ret = e->txn ? qcow2_txn_spill(e, err) : 0;

	if (ret == 0)
		ret = add_range(e, first, nr, delta, err);
	while (ret == 0 && qcow2_txn_deferred(e, &cluster, &later))
		ret = add_range(e, cluster, 1, later, err);
	return ret;
}
