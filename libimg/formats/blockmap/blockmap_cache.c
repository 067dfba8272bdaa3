/* SPDX-License-Identifier: MIT */
/*
 * Pages in memory: a hash table, and a ring on which a hand looks for what can be forgotten. Dirty pages stay, so that
 * the budget bounds what is clean and is a threshold (cache_crowded()) for what is dirty.
 *
 * A page of the table that has no place on disk is all FREE. Its bytes are those of free entries, as encode makes them.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockmap_int.h"

#define HASH_BITS_MIN 6u
#define HASH_BITS_MAX 20u
#define PAGES_MIN     16u

static size_t bucket_of(const struct page_cache *c, uint64_t key)
{
	return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - c->hash_bits));
}

uint32_t page_bytes(const struct blockmap *bm)
{
	return bm->shape.page_bytes;
}

uint64_t slot_of(const struct blockmap *bm, uint64_t block)
{
	return bm->ops->slot ? bm->ops->slot(bm, block) : block;
}

int bm_cache_init(struct blockmap *bm, uint64_t budget_bytes, struct img_error *err)
{
	struct page_cache *c = &bm->cache;

	c->budget_bytes = max_u64(budget_bytes, (uint64_t)PAGES_MIN * page_bytes(bm));
	c->hash_bits = HASH_BITS_MIN;
	while (c->hash_bits < HASH_BITS_MAX && ((uint64_t)page_bytes(bm) << c->hash_bits) < c->budget_bytes)
		c->hash_bits++;
	c->hash = calloc((size_t)1 << c->hash_bits, sizeof(struct page *));
	return c->hash ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

void bm_cache_drop(struct blockmap *bm)
{
	struct page_cache *c = &bm->cache;
	struct page *p = c->hand;

	for (size_t i = 0; i < c->nr_pages; i++) {
		struct page *next = p->next;

		free(p);
		p = next;
	}
	if (c->hash)
		memset(c->hash, 0, sizeof(struct page *) << c->hash_bits);
	c->hand = NULL;
	c->nr_pages = c->nr_dirty = 0;
	c->bytes = c->dirty_bytes = 0;
}

void bm_cache_free(struct blockmap *bm)
{
	bm_cache_drop(bm);
	free(bm->cache.hash);
	bm->cache.hash = NULL;
}

bool cache_crowded(const struct blockmap *bm)
{
	return bm->cache.dirty_bytes > bm->cache.budget_bytes / 2;
}

struct page *cache_find(const struct blockmap *bm, uint64_t key)
{
	struct page *p = bm->cache.hash[bucket_of(&bm->cache, key)];

	while (p && p->key != key)
		p = p->hash_next;
	if (p && !atomic_load_explicit(&p->used, memory_order_relaxed))
		atomic_store_explicit(&p->used, true, memory_order_relaxed);
	return p;
}

/* The page behind the hand goes. */
static void remove_next(struct page_cache *c)
{
	struct page *p = c->hand->next, **at = &c->hash[bucket_of(c, p->key)];

	while (*at != p)
		at = &(*at)->hash_next;
	*at = p->hash_next;
	if (p == c->hand)
		c->hand = NULL;
	else
		c->hand->next = p->next;
	c->nr_pages--;
	c->bytes -= sizeof(*p) + p->bytes;
	free(p);
}

/* Makes room within the budget as far as clean pages go; two rounds, the first takes back the marks of use. */
static void make_room(struct page_cache *c, uint64_t bytes)
{
	size_t steps = 2 * c->nr_pages;

	while (c->hand && c->bytes + bytes > c->budget_bytes && steps-- > 0) {
		struct page *p = c->hand->next;

		if (p->dirty || p->writing || atomic_exchange_explicit(&p->used, false, memory_order_relaxed))
			c->hand = p;
		else
			remove_next(c);
	}
}

static void insert(struct page_cache *c, struct page *p)
{
	struct page **at = &c->hash[bucket_of(c, p->key)];

	p->hash_next = *at;
	*at = p;
	if (c->hand) {
		p->next = c->hand->next;
		c->hand->next = p;
	} else {
		p->next = p;
	}
	c->hand = p;
	c->nr_pages++;
	c->bytes += sizeof(*p) + p->bytes;
	atomic_store_explicit(&p->used, true, memory_order_relaxed);
}

static struct page *page_new(struct blockmap *bm, uint64_t key, uint32_t bytes, struct img_error *err)
{
	struct page *p;

	make_room(&bm->cache, sizeof(*p) + bytes);
	p = calloc(1, sizeof(*p) + bytes);
	if (!p) {
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		return NULL;
	}
	p->key = key;
	p->bytes = bytes;
	return p;
}

static int page_read(struct blockmap *bm, struct page *p, const char *what, struct img_error *err)
{
	if (!range_inside(p->off, p->bytes, node_size(bm->file)))
		return error_set(err, IMG_E_CORRUPT, 0, p->off, LAYER,
				 "%s at 0x%" PRIx64 " reaches over the end of the file, 0x%" PRIx64, what, p->off,
				 node_size(bm->file));
	return node_pread(bm->file, p->data, p->bytes, p->off, 0, err);
}

/* What a page holds that is nowhere: free entries. */
static void fill_free(const struct blockmap *bm, struct page *p, uint64_t first_slot)
{
	static const struct blockmap_entry none = { .state = BLOCKMAP_FREE };

	for (uint32_t at = 0; at < p->bytes; at += bm->shape.entry_bytes)
		bm->ops->encode(bm, first_slot + at / bm->shape.entry_bytes, p->data + at, &none);
}

/* The last page of a table may be short, so each look asks. */
static int check_slot(const struct blockmap *bm, uint64_t slot, struct img_error *err)
{
	if (slot < bm->shape.nr_slots)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			 "there is no entry %" PRIu64 ": the table ends at %" PRIu64, slot, bm->shape.nr_slots);
}

static int slot_page(struct blockmap *bm, uint64_t slot, struct page **out, struct img_error *err)
{
	const struct blockmap_shape *s = &bm->shape;
	uint64_t per_page = page_bytes(bm) / s->entry_bytes, key = slot / per_page;
	struct page *p;
	int ret = check_slot(bm, slot, err);

	if (ret != 0)
		return ret;
	*out = cache_find(bm, key);
	if (*out)
		return 0;
	p = page_new(bm, key, (uint32_t)min_u64(per_page, s->nr_slots - key * per_page) * s->entry_bytes, err);
	if (!p)
		return IMG_E_NOMEM;
	if (bm->ops->locate)
		ret = bm->ops->locate(bm, key, false, &p->off, err);
	else
		p->off = s->table_off + key * page_bytes(bm);
	if (ret == 0 && p->off != 0)
		ret = page_read(bm, p, "the block table", err);
	else if (ret == 0)
		fill_free(bm, p, key * per_page);
	if (ret != 0) {
		free(p);
		return ret;
	}
	insert(&bm->cache, p);
	*out = p;
	return 0;
}

int cache_table_page(struct blockmap *bm, uint64_t block, struct page **out, struct img_error *err)
{
	return slot_page(bm, slot_of(bm, block), out, err);
}

static int slot_raw(struct blockmap *bm, uint64_t slot, uint8_t **raw, struct page **page, struct img_error *err)
{
	uint64_t per_page = page_bytes(bm) / bm->shape.entry_bytes;
	int ret = slot_page(bm, slot, page, err);

	*raw = ret == 0 ? (*page)->data + slot % per_page * bm->shape.entry_bytes : NULL;
	return ret;
}

int blockmap_slot_get(struct blockmap *bm, uint64_t slot, uint8_t *raw, struct img_error *err)
{
	struct page *p;
	uint8_t *at;
	int ret = slot_raw(bm, slot, &at, &p, err);

	if (ret == 0)
		memcpy(raw, at, bm->shape.entry_bytes);
	return ret;
}

int blockmap_slot_set(struct blockmap *bm, uint64_t slot, const uint8_t *raw, struct img_error *err)
{
	struct page *p;
	uint8_t *at;
	int ret = slot_raw(bm, slot, &at, &p, err);

	if (ret != 0)
		return ret;
	memcpy(at, raw, bm->shape.entry_bytes);
	cache_dirty(bm, p);
	return 0;
}

int cache_bitmap(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, bool fresh, struct page **out,
		 struct img_error *err)
{
	struct page *p;
	int ret = 0;

	*out = cache_find(bm, PAGE_BITMAP | block);
	if (*out)
		return 0;
	p = page_new(bm, PAGE_BITMAP | block, bm->shape.bitmap_bytes, err);
	if (!p)
		return IMG_E_NOMEM;
	if (bm->ops->locate_bitmap)
		ret = bm->ops->locate_bitmap(bm, block, entry, fresh, &p->off, err);
	else
		p->off = entry->off;
	if (ret == 0 && !fresh)
		ret = page_read(bm, p, "the bitmap of a block", err);
	if (ret != 0) {
		free(p);
		return ret;
	}
	insert(&bm->cache, p);
	*out = p;
	return 0;
}

void cache_dirty(struct blockmap *bm, struct page *p)
{
	if (p->dirty)
		return;
	p->dirty = true;
	bm->cache.nr_dirty++;
	bm->cache.dirty_bytes += sizeof(*p) + p->bytes;
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static uint8_t *raw_of(const struct blockmap *bm, struct page *p, uint64_t block)
{
	uint64_t per_page = page_bytes(bm) / bm->shape.entry_bytes;

	return p->data + slot_of(bm, block) % per_page * bm->shape.entry_bytes;
}

int entry_get(struct blockmap *bm, uint64_t block, bool may_load, struct blockmap_entry *out, struct img_error *err)
{
	uint64_t per_page = page_bytes(bm) / bm->shape.entry_bytes, slot = slot_of(bm, block);
	int ret = check_slot(bm, slot, err);
	struct page *p;

	if (ret != 0)
		return ret;
	p = cache_find(bm, slot / per_page);
	if (!p && !may_load)
		return 1;
	if (!p)
		ret = slot_page(bm, slot, &p, err);
	if (ret != 0)
		return ret;
	*out = (struct blockmap_entry){ .state = BLOCKMAP_FREE };
	return bm->ops->decode(bm, block, raw_of(bm, p, block), out, err);
}

/* Entries have 4 or 8 bytes. */
static bool same_raw(const struct blockmap *bm, const uint8_t *a, const uint8_t *b)
{
	if (bm->shape.entry_bytes == sizeof(uint32_t))
		return memcmp(a, b, sizeof(uint32_t)) == 0;
	return memcmp(a, b, sizeof(uint64_t)) == 0;
}

/* What looks like an entry that is FREE is one, and so with ZERO: decoding looks at the block's number only to
 * complain. */
uint64_t like_run(struct blockmap *bm, uint64_t block, uint64_t end)
{
	uint64_t per_page = page_bytes(bm) / bm->shape.entry_bytes, key = slot_of(bm, block) / per_page, next = block;
	uint64_t left = min_u64(end - block, per_page - slot_of(bm, block) % per_page);
	struct page *p = cache_find(bm, key);
	const uint8_t *at = raw_of(bm, p, block);

	/* each is like the one before it: mostly all are */
	if (!bm->ops->slot && memcmp(at, at + bm->shape.entry_bytes, (size_t)(left - 1) * bm->shape.entry_bytes) == 0)
		return left;
	do
		next++;
	while (next < end && slot_of(bm, next) / per_page == key && same_raw(bm, raw_of(bm, p, next), at));
	return next - block;
}

uint64_t free_run(struct blockmap *bm, uint64_t block, uint64_t end)
{
	struct blockmap_entry e;

	if (entry_get(bm, block, true, &e, NULL) != 0 || e.state != BLOCKMAP_FREE)
		return 0;
	return like_run(bm, block, end);
}

int entry_set(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, struct img_error *err)
{
	struct page *p;
	int ret = cache_table_page(bm, block, &p, err);

	if (ret == 0 && p->off == 0)
		ret = bm->ops->locate(bm, p->key, true, &p->off, err);
	if (ret != 0)
		return ret;
	bm->ops->encode(bm, block, raw_of(bm, p, block), entry);
	cache_dirty(bm, p);
	return 0;
}

/* ---- bitmaps ----------------------------------------------------------------------------------------------------- */

static uint8_t mask_of(const struct blockmap *bm, uint64_t sector)
{
	return (uint8_t)(bm->shape.bitmap_msb_first ? 0x80u >> (sector & 7) : 1u << (sector & 7));
}

bool bit_get(const struct blockmap *bm, const uint8_t *bits, uint64_t sector)
{
	return (bits[sector / 8] & mask_of(bm, sector)) != 0;
}

void bits_set(const struct blockmap *bm, uint8_t *bits, uint64_t first, uint64_t nr)
{
	for (uint64_t s = first; s < first + nr;) {
		if (s % 8 == 0 && first + nr - s >= 8) {
			bits[s / 8] = 0xff;
			s += 8;
		} else {
			bits[s / 8] |= mask_of(bm, s);
			s++;
		}
	}
}

uint64_t bit_run(const struct blockmap *bm, const uint8_t *bits, uint64_t first, uint64_t end)
{
	bool is = bit_get(bm, bits, first);
	uint8_t whole = is ? 0xff : 0;
	uint64_t s = first + 1;

	while (s < end) {
		if (s % 8 == 0 && end - s >= 8 && bits[s / 8] == whole)
			s += 8;
		else if (bit_get(bm, bits, s) == is)
			s++;
		else
			break;
	}
	return s - first;
}
