/* SPDX-License-Identifier: MIT */
/*
 * The ordered write-back (BM-2, BM-3):
 *
 *   1  what is dirty is copied at one moment, under map, with the end of all places at that moment
 *   2  ops->settle if places were given since the last time; then data is made durable, and with it all that the copies
 *      lead to
 *   3  the copies are written and made durable (ops->store)
 *
 * What changes meanwhile is dirty again and the next flush's. A page that is being written is not forgotten. After a
 * failure the copies count as dirty again; only a disk that is full, before anything was lost, is no reason to stop.
 */
#include <stdlib.h>
#include <string.h>

#include "blockmap_int.h"

#define RUN_BYTES_MAX (1u << 20) /* neighbouring pages in one write */

struct copies {
	struct page **page;
	struct blockmap_write *write;
	uint8_t *buf;
	size_t nr;
	uint64_t end_off;
	bool settle;
};

static int by_offset(const void *a, const void *b)
{
	const struct page *const *x = a, *const *y = b;

	return (*x)->off < (*y)->off ? -1 : (*x)->off > (*y)->off;
}

static int copies_alloc(struct copies *c, size_t nr, uint64_t bytes, struct img_error *err)
{
	c->page = calloc(nr ? nr : 1, sizeof(struct page *));
	c->write = calloc(nr ? nr : 1, sizeof(struct blockmap_write));
	c->buf = malloc((size_t)(bytes ? bytes : 1));
	if (!c->page || !c->write || !c->buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	return 0;
}

static void copies_free(struct copies *c)
{
	free(c->page);
	free(c->write);
	free(c->buf);
}

/* Neighbours on disk are neighbours in buf, so that they make one write. */
static void copy_pages(struct copies *c)
{
	uint64_t at = 0;
	size_t n = 0;

	for (size_t i = 0; i < c->nr; i++) {
		struct page *p = c->page[i];
		struct blockmap_write *w = n > 0 ? &c->write[n - 1] : NULL;

		memcpy(c->buf + at, p->data, p->bytes);
		if (w && w->off + w->bytes == p->off && w->bytes < RUN_BYTES_MAX)
			w->bytes += p->bytes;
		else
			c->write[n++] = (struct blockmap_write){ .buf = c->buf + at, .bytes = p->bytes, .off = p->off };
		at += p->bytes;
	}
	c->nr = n;
}

/* Step 1. map is held for writing. *nr: pages. */
static int take_copies(struct blockmap *bm, struct copies *c, size_t *nr, struct img_error *err)
{
	struct page_cache *cache = &bm->cache;
	struct page *p = cache->hand;
	int ret = copies_alloc(c, cache->nr_dirty, cache->dirty_bytes, err);

	*nr = 0;
	if (ret != 0)
		return ret;
	for (size_t i = 0; i < cache->nr_pages; i++, p = p->next)
		if (p->dirty)
			c->page[(*nr)++] = p;
	qsort(c->page, *nr, sizeof(struct page *), by_offset);
	c->nr = *nr;
	copy_pages(c);
	for (size_t i = 0; i < *nr; i++) {
		c->page[i]->dirty = false;
		c->page[i]->writing = true;
	}
	cache->nr_dirty = 0;
	cache->dirty_bytes = 0;
	c->end_off = bm->end_off;
	c->settle = bm->allocated;
	bm->allocated = false;
	return 0;
}

static void end_copies(struct blockmap *bm, const struct copies *c, size_t nr, bool failed)
{
	pthread_rwlock_wrlock(&bm->map);
	for (size_t i = 0; i < nr; i++) {
		c->page[i]->writing = false;
		if (failed)
			cache_dirty(bm, c->page[i]);
	}
	if (failed && c->settle)
		bm->allocated = true;
	pthread_rwlock_unlock(&bm->map);
}

static int sync_file(struct blockmap *bm, struct img_error *err)
{
	if (bm->bulk)
		return 0;
	return bm->ops->sync ? bm->ops->sync(bm, err) : node_flush(bm->file, 0, err);
}

static int store_plain(struct blockmap *bm, const struct copies *c, struct img_error *err)
{
	for (size_t i = 0; i < c->nr; i++) {
		int ret = node_pwrite(bm->file, c->write[i].buf, c->write[i].bytes, c->write[i].off, 0, err);

		if (ret != 0)
			return ret;
	}
	return bm->bulk ? 0 : node_flush(bm->file, 0, err);
}

/* Steps 2 and 3. */
static int write_copies(struct blockmap *bm, const struct copies *c, struct img_error *err)
{
	bool dirty = atomic_exchange(&bm->data_dirty, false);
	int ret = 0;

	if (c->settle && bm->ops->settle)
		ret = bm->ops->settle(bm, c->end_off, err);
	if (ret == 0 && (dirty || c->settle))
		ret = sync_file(bm, err);
	if (ret == 0 && c->nr > 0)
		ret = bm->ops->store ? bm->ops->store(bm, c->write, c->nr, err) : store_plain(bm, c, err);
	if (ret != 0)
		atomic_store(&bm->data_dirty, true);
	return ret;
}

int flush_all(struct blockmap *bm, struct img_error *err)
{
	struct copies c = { 0 };
	size_t nr;
	int ret = blockmap_may_change(bm, err);

	if (ret != 0)
		return ret;
	pthread_mutex_lock(&bm->flushing);
	pthread_rwlock_wrlock(&bm->map);
	ret = take_copies(bm, &c, &nr, err);
	pthread_rwlock_unlock(&bm->map);
	if (ret == 0) {
		ret = write_copies(bm, &c, err);
		end_copies(bm, &c, nr, ret != 0);
		if (ret != 0 && ret != IMG_E_NOSPC && ret != IMG_E_NOMEM)
			blockmap_break(bm);
	}
	pthread_mutex_unlock(&bm->flushing);
	copies_free(&c);
	return ret;
}

int flush_if_crowded(struct blockmap *bm, struct img_error *err)
{
	bool crowded;

	pthread_rwlock_rdlock(&bm->map);
	crowded = cache_crowded(bm);
	pthread_rwlock_unlock(&bm->map);
	return crowded ? flush_all(bm, err) : 0;
}

int blockmap_flush(struct blockmap *bm, struct img_error *err)
{
	int ret;

	if (!bm->writable)
		return 0;
	pthread_rwlock_rdlock(&bm->gate);
	ret = flush_all(bm, err);
	pthread_rwlock_unlock(&bm->gate);
	return ret;
}

int blockmap_finish(struct blockmap *bm, struct img_error *err)
{
	bool bulk = bm->bulk;
	int ret;

	if (!bm->writable)
		return 0;
	if (atomic_load(&bm->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure kept the last changes from being written");
	pthread_rwlock_rdlock(&bm->gate);
	ret = flush_all(bm, err);
	pthread_rwlock_unlock(&bm->gate);
	bm->bulk = false;
	return ret == 0 && bulk ? node_flush(bm->file, 0, err) : ret;
}
