/* SPDX-License-Identifier: MIT */
/*
 * References by cluster. A page of 16-bit words covers 4096 clusters and exists once one of them is referenced, so that
 * memory follows what is used and not how long the file claims to be; the low 10 bits of a word count, larger counts
 * stand in a map of their own.
 */
#include <stdlib.h>

#include "qcow2_check.h"

#define PAGE_CLUSTERS (1u << COUNTS_PAGE_SHIFT)
#define COUNT_BITS    10u
#define COUNT_MASK    ((1u << COUNT_BITS) - 1)
#define COUNT_FULL    COUNT_MASK /* the count is in the map */

/* ---- the map ---- */

static uint64_t slot_of(const struct map64 *m, uint64_t key)
{
	return (key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - m->bits);
}

uint64_t *map64_find(const struct map64 *m, uint64_t key)
{
	uint64_t mask = (UINT64_C(1) << m->bits) - 1;

	if (m->bits == 0)
		return NULL;
	for (uint64_t i = slot_of(m, key + 1); m->slot[i].key; i = (i + 1) & mask)
		if (m->slot[i].key == key + 1)
			return &m->slot[i].value;
	return NULL;
}

static bool map64_grow(struct map64 *m)
{
	struct map64 bigger = { .bits = m->bits ? m->bits + 1 : 6, .nr = m->nr };
	uint64_t mask = (UINT64_C(1) << bigger.bits) - 1;

	bigger.slot = bigger.bits < 40 ? calloc((size_t)mask + 1, sizeof(*bigger.slot)) : NULL;
	if (!bigger.slot)
		return false;
	for (uint64_t i = 0; m->bits && i < UINT64_C(1) << m->bits; i++) {
		uint64_t to;

		if (!m->slot[i].key)
			continue;
		to = slot_of(&bigger, m->slot[i].key);
		while (bigger.slot[to].key)
			to = (to + 1) & mask;
		bigger.slot[to] = m->slot[i];
	}
	free(m->slot);
	*m = bigger;
	return true;
}

uint64_t *map64_put(struct map64 *m, uint64_t key)
{
	uint64_t *found = map64_find(m, key);
	uint64_t i;

	if (found)
		return found;
	if ((m->bits == 0 || m->nr >= UINT64_C(1) << (m->bits - 1)) && !map64_grow(m))
		return NULL;
	i = slot_of(m, key + 1);
	while (m->slot[i].key)
		i = (i + 1) & ((UINT64_C(1) << m->bits) - 1);
	m->slot[i] = (struct map64_slot){ .key = key + 1 };
	m->nr++;
	return &m->slot[i].value;
}

void map64_free(struct map64 *m)
{
	free(m->slot);
	*m = (struct map64){ 0 };
}

/* ---- pages ---- */

static uint16_t *page_find(struct counts *c, uint64_t cluster)
{
	uint64_t index = cluster >> COUNTS_PAGE_SHIFT, *at;

	if (c->last && c->last_index == index)
		return c->last;
	at = map64_find(&c->pages, index);
	if (!at)
		return NULL;
	c->last_index = index;
	c->last = (uint16_t *)(uintptr_t)*at;
	return c->last;
}

static uint16_t *page_make(struct counts *c, uint64_t cluster, struct img_error *err)
{
	uint16_t *page = page_find(c, cluster);
	uint64_t *at;

	if (page)
		return page;
	if (c->bytes >= COUNTS_MAX_BYTES) {
		error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			  "the image refers to more clusters than a check counts in %llu MiB of memory",
			  (unsigned long long)(COUNTS_MAX_BYTES >> 20));
		return NULL;
	}
	page = calloc(PAGE_CLUSTERS, sizeof(*page));
	at = page ? map64_put(&c->pages, cluster >> COUNTS_PAGE_SHIFT) : NULL;
	if (!at) {
		free(page);
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		return NULL;
	}
	*at = (uintptr_t)page;
	c->bytes += PAGE_CLUSTERS * sizeof(*page);
	c->last_index = cluster >> COUNTS_PAGE_SHIFT;
	c->last = page;
	return page;
}

static uint64_t word_count(const struct counts *c, uint64_t cluster, uint16_t word)
{
	uint64_t *big;

	if ((word & COUNT_MASK) != COUNT_FULL)
		return word & COUNT_MASK;
	big = map64_find(&c->overflow, cluster);
	return big ? *big : COUNT_FULL;
}

static int word_set(struct counts *c, uint64_t cluster, uint16_t *word, uint64_t count, struct img_error *err)
{
	uint64_t *big;

	if (count < COUNT_FULL) {
		*word = (uint16_t)((*word & ~COUNT_MASK) | count);
		return 0;
	}
	big = map64_put(&c->overflow, cluster);
	if (!big)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	*big = count;
	*word = (uint16_t)(*word | COUNT_FULL);
	return 0;
}

int counts_add(struct counts *c, uint64_t first, uint64_t nr, uint64_t times, unsigned uses, struct img_error *err)
{
	int rc = 0;

	for (uint64_t i = first; rc == 0 && i < first + nr; i++) {
		uint16_t *page = page_make(c, i, err), *word;

		if (!page)
			return err ? err->code : IMG_E_NOMEM;
		word = &page[i & (PAGE_CLUSTERS - 1)];
		*word = (uint16_t)(*word | uses << COUNT_BITS);
		rc = word_set(c, i, word, word_count(c, i, *word) + times, err);
	}
	return rc;
}

uint64_t counts_get(struct counts *c, uint64_t cluster, unsigned *uses)
{
	const uint16_t *page = page_find(c, cluster);
	uint16_t word = page ? page[cluster & (PAGE_CLUSTERS - 1)] : 0;

	if (uses)
		*uses = (unsigned)word >> COUNT_BITS;
	return word_count(c, cluster, word);
}

int counts_set(struct counts *c, uint64_t cluster, uint64_t count, struct img_error *err)
{
	uint16_t *page = page_make(c, cluster, err);

	if (!page)
		return err ? err->code : IMG_E_NOMEM;
	return word_set(c, cluster, &page[cluster & (PAGE_CLUSTERS - 1)], count, err);
}

void counts_mark_one(struct counts *c, uint64_t cluster, bool one)
{
	uint16_t *page = page_find(c, cluster), *word;

	if (!page)
		return;
	word = &page[cluster & (PAGE_CLUSTERS - 1)];
	*word = (uint16_t)(one ? *word | USE_REF_ONE << COUNT_BITS : *word & ~(USE_REF_ONE << COUNT_BITS));
}

bool counts_take_use(struct counts *c, uint64_t cluster, unsigned use)
{
	uint16_t *page = page_find(c, cluster), *word;
	bool had;

	if (!page)
		return false;
	word = &page[cluster & (PAGE_CLUSTERS - 1)];
	had = *word & use << COUNT_BITS;
	*word = (uint16_t)(*word & ~(use << COUNT_BITS));
	return had;
}

bool counts_any(const struct counts *c, uint64_t first, uint64_t nr)
{
	if (nr > UINT64_C(64) << COUNTS_PAGE_SHIFT)
		return true;
	for (uint64_t p = first >> COUNTS_PAGE_SHIFT; p <= (first + nr - 1) >> COUNTS_PAGE_SHIFT; p++)
		if (map64_find(&c->pages, p))
			return true;
	return false;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

uint64_t *counts_pages(const struct counts *c, uint64_t *nr)
{
	uint64_t *out = c->pages.nr ? malloc((size_t)(c->pages.nr * sizeof(*out))) : NULL;

	*nr = 0;
	if (!out)
		return NULL;
	for (uint64_t i = 0; i < UINT64_C(1) << c->pages.bits; i++)
		if (c->pages.slot[i].key)
			out[(*nr)++] = c->pages.slot[i].key - 1;
	qsort(out, (size_t)*nr, sizeof(*out), by_value);
	return out;
}

void counts_free(struct counts *c)
{
	for (uint64_t i = 0; c->pages.bits && i < UINT64_C(1) << c->pages.bits; i++)
		if (c->pages.slot[i].key)
			free((void *)(uintptr_t)c->pages.slot[i].value);
	map64_free(&c->pages);
	map64_free(&c->overflow);
	*c = (struct counts){ 0 };
}
