/* SPDX-License-Identifier: MIT */
/*
 * The metadata cache: slices of L2 tables and refcount blocks in a hash table, with a clock that evicts what is clean.
 * Nothing here writes: dirty slices stay until flush.c or txn.c has written them in their order, so the budget bounds
 * what is clean and is a threshold (qcow2_cache_crowded()) for what is dirty.
 *
 * All functions need map for writing, but peek, for which reading suffices: it changes nothing but the atomic clock bit.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_cache.h"

#define HASH_MIN	  64u
#define BUDGET_SLICES_MIN 64u

static size_t bucket_of(const struct qcow2_cache *c, uint64_t slice_no)
{
	return (size_t)((slice_no * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - c->hash_bits));
}

int qcow2_cache_init(struct qcow2_engine *e, uint64_t budget_bytes, struct img_error *err)
{
	struct qcow2_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	c->budget = (size_t)max_u64(budget_bytes / e->slice_bytes, BUDGET_SLICES_MIN);
	c->hash_bits = 6;
	while ((size_t)1 << c->hash_bits < c->budget && c->hash_bits < 24)
		c->hash_bits++;
	c->hash = calloc((size_t)1 << c->hash_bits, sizeof(*c->hash));
	if (!c->hash) {
		free(c);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	e->cache = c;
	return 0;
}

struct qcow2_slice *qcow2_cache_peek(struct qcow2_engine *e, uint64_t off)
{
	struct qcow2_cache *c = e->cache;
	uint64_t at = round_down(off, e->slice_bytes);
	struct qcow2_slice *s = c->hash[bucket_of(c, at / e->slice_bytes)];

	while (s && s->off != at)
		s = s->hash_next;
	if (s && !atomic_load_explicit(&s->used, memory_order_relaxed))
		atomic_store_explicit(&s->used, true, memory_order_relaxed);
	return s;
}

static void unlink_dirty(struct qcow2_cache *c, struct qcow2_slice *s)
{
	if (s->dirty_prev)
		s->dirty_prev->dirty_next = s->dirty_next;
	else
		c->dirty_first = s->dirty_next;
	if (s->dirty_next)
		s->dirty_next->dirty_prev = s->dirty_prev;
	s->dirty_prev = s->dirty_next = NULL;
	s->dirty = false;
	c->nr_dirty--;
}

static void remove_slice(struct qcow2_engine *e, struct qcow2_slice *s)
{
	struct qcow2_cache *c = e->cache;
	struct qcow2_slice **at = &c->hash[bucket_of(c, s->off / e->slice_bytes)];

	while (*at != s)
		at = &(*at)->hash_next;
	*at = s->hash_next;
	if (c->hand == s)
		c->hand = s->all_next;
	if (s->all_prev)
		s->all_prev->all_next = s->all_next;
	else
		c->all_first = s->all_next;
	if (s->all_next)
		s->all_next->all_prev = s->all_prev;
	if (s->dirty)
		unlink_dirty(c, s);
	c->nr--;
	free(s);
}

void qcow2_cache_free(struct qcow2_engine *e)
{
	if (!e->cache)
		return;
	while (e->cache->all_first)
		remove_slice(e, e->cache->all_first);
	free(e->cache->hash);
	free(e->cache);
	e->cache = NULL;
}

/* Makes room for one by the clock. Where all is dirty or being written there is none: the cache grows. */
static void evict_one(struct qcow2_engine *e)
{
	struct qcow2_cache *c = e->cache;

	for (size_t steps = 0; steps < 2 * c->nr; steps++) {
		struct qcow2_slice *s = c->hand ? c->hand : c->all_first;

		c->hand = s->all_next;
		if (s->dirty || s->writing)
			continue;
		if (atomic_exchange_explicit(&s->used, false, memory_order_relaxed))
			continue;
		remove_slice(e, s);
		return;
	}
}

static struct qcow2_slice *add_slice(struct qcow2_engine *e, uint64_t at, enum qcow2_slice_kind kind)
{
	struct qcow2_cache *c = e->cache;
	size_t b = bucket_of(c, at / e->slice_bytes);
	struct qcow2_slice *s;

	/* When most is dirty a walk finds little: the write-back that is due makes room. */
	if (c->nr >= c->budget && c->nr_dirty < c->nr - c->nr / 8)
		evict_one(e);
	s = calloc(1, (size_t)(sizeof(*s) + e->slice_bytes));
	if (!s)
		return NULL;
	s->off = at;
	s->kind = kind;
	atomic_store_explicit(&s->used, true, memory_order_relaxed);
	s->hash_next = c->hash[b];
	c->hash[b] = s;
	s->all_next = c->all_first;
	if (s->all_next)
		s->all_next->all_prev = s;
	c->all_first = s;
	c->nr++;
	return s;
}

int qcow2_read_clipped(struct qcow2_engine *e, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size = node_size(e->file), there = off < size ? min_u64(bytes, size - off) : 0;

	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there ? node_pread(e->file, buf, there, off, 0, err) : 0;
}

int qcow2_cache_get(struct qcow2_engine *e, uint64_t off, enum qcow2_slice_kind kind, struct qcow2_slice **out,
		    struct img_error *err)
{
	uint64_t at = round_down(off, e->slice_bytes);
	struct qcow2_slice *s = qcow2_cache_peek(e, at);
	int ret;

	*out = s;
	if (s)
		return 0;
	s = add_slice(e, at, kind);
	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = qcow2_read_clipped(e, s->data, e->slice_bytes, at, err);
	if (ret != 0) {
		remove_slice(e, s);
		return ret;
	}
	*out = s;
	return 0;
}

int qcow2_cache_new(struct qcow2_engine *e, uint64_t off, enum qcow2_slice_kind kind, struct qcow2_slice **out,
		    struct img_error *err)
{
	uint64_t at = round_down(off, e->slice_bytes);
	struct qcow2_slice *s = qcow2_cache_peek(e, at);

	if (!s)
		s = add_slice(e, at, kind);
	*out = s;
	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	s->kind = kind;
	memset(s->data, 0, (size_t)e->slice_bytes);
	qcow2_cache_dirty(e, s);
	return 0;
}

void qcow2_cache_dirty(struct qcow2_engine *e, struct qcow2_slice *s)
{
	struct qcow2_cache *c = e->cache;

	if (s->dirty)
		return;
	s->dirty = true;
	s->dirty_prev = NULL;
	s->dirty_next = c->dirty_first;
	if (s->dirty_next)
		s->dirty_next->dirty_prev = s;
	c->dirty_first = s;
	c->nr_dirty++;
}

void qcow2_cache_clean(struct qcow2_engine *e, struct qcow2_slice *s)
{
	if (s->dirty)
		unlink_dirty(e->cache, s);
}

void qcow2_cache_drop(struct qcow2_engine *e, uint64_t off, uint64_t bytes)
{
	struct qcow2_cache *c = e->cache;

	if (bytes / e->slice_bytes < c->nr) {
		for (uint64_t at = round_down(off, e->slice_bytes); at < off + bytes; at += e->slice_bytes) {
			struct qcow2_slice *s = qcow2_cache_peek(e, at);

			if (s)
				remove_slice(e, s);
		}
		return;
	}
	for (struct qcow2_slice *s = c->all_first, *next; s; s = next) {
		next = s->all_next;
		if (s->off + e->slice_bytes > off && s->off < off + bytes)
			remove_slice(e, s);
	}
}

void qcow2_cache_drop_dirty(struct qcow2_engine *e)
{
	for (struct qcow2_slice *s = e->cache->dirty_first, *next; s; s = next) {
		next = s->dirty_next;
		remove_slice(e, s);
	}
}

bool qcow2_cache_crowded(struct qcow2_engine *e)
{
	return e->cache->nr_dirty > e->cache->budget / 2;
}

/* ---- writing, for flush.c and txn.c ---- */

static int by_offset(const void *a, const void *b)
{
	const struct qcow2_slice *const *x = a, *const *y = b;

	return (*x)->off < (*y)->off ? -1 : (*x)->off > (*y)->off;
}

int qcow2_cache_dirty_list(struct qcow2_engine *e, struct qcow2_slice ***out, size_t *nr, struct img_error *err)
{
	struct qcow2_cache *c = e->cache;
	struct qcow2_slice **list = calloc(c->nr_dirty + 1, sizeof(struct qcow2_slice *));
	size_t n = 0;

	*out = list;
	*nr = 0;
	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (struct qcow2_slice *s = c->dirty_first; s; s = s->dirty_next)
		list[n++] = s;
	qsort(list, n, sizeof(struct qcow2_slice *), by_offset);
	*nr = n;
	return 0;
}
