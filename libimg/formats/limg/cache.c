/* SPDX-License-Identifier: MIT */
/*
 * The node cache. Keys are (address, checksum): a page that was freed and rewritten at the same address has another
 * checksum in its parent, so a stale page is never found and nothing needs invalidation. Sharded; each shard evicts by
 * the clock algorithm and never evicts a page that somebody holds (the page then merely leaves the cache and is freed
 * by its last holder).
 */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static struct cache_shard *shard_of(struct cache *c, uint64_t addr)
{
	return &c->shard[(addr * UINT64_C(0x9e3779b97f4a7c15)) >> 60];
}

static struct page **bucket_of(struct cache_shard *s, uint64_t addr)
{
	return &s->bucket[((addr * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (s->nr_buckets - 1)];
}

int cache_init(struct cache *c, uint64_t bytes)
{
	size_t cap = (size_t)(bytes / sizeof(struct page) / NR_CACHE_SHARDS);

	if (cap < 16)
		cap = 16;
	for (unsigned i = 0; i < NR_CACHE_SHARDS; i++) {
		struct cache_shard *s = &c->shard[i];

		pthread_mutex_init(&s->lock, NULL);
		s->cap = cap;
		s->nr_buckets = 16;
		while (s->nr_buckets < cap)
			s->nr_buckets *= 2;
		s->bucket = calloc(s->nr_buckets, sizeof(*s->bucket));
		s->clock = calloc(cap, sizeof(*s->clock));
		if (!s->bucket || !s->clock)
			return IMG_E_NOMEM;
	}
	return 0;
}

void cache_put(struct page *p)
{
	if (atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) == 1)
		free(p);
}

void cache_destroy(struct cache *c)
{
	for (unsigned i = 0; i < NR_CACHE_SHARDS; i++) {
		struct cache_shard *s = &c->shard[i];

		for (size_t k = 0; k < s->nr; k++)
			cache_put(s->clock[k]);
		free(s->bucket);
		free(s->clock);
		if (s->cap)
			pthread_mutex_destroy(&s->lock);
	}
}

static struct page *find(struct cache_shard *s, uint64_t addr, uint64_t csum)
{
	for (struct page *p = *bucket_of(s, addr); p; p = p->next)
		if (p->addr == addr && p->csum == csum)
			return p;
	return NULL;
}

struct page *cache_get(struct cache *c, uint64_t addr, uint64_t csum)
{
	struct cache_shard *s = shard_of(c, addr);
	struct page *p;

	pthread_mutex_lock(&s->lock);
	p = find(s, addr, csum);
	if (p) {
		atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
		atomic_store_explicit(&p->hot, true, memory_order_relaxed);
	}
	pthread_mutex_unlock(&s->lock);
	return p;
}

static void unhash(struct cache_shard *s, struct page *victim)
{
	struct page **at = bucket_of(s, victim->addr);

	while (*at != victim)
		at = &(*at)->next;
	*at = victim->next;
}

/* A place in the ring for one more page: a new one, or that of the first page that was not used since the hand last
 * passed. */
static size_t place(struct cache_shard *s)
{
	if (s->nr < s->cap)
		return s->nr++;
	for (;;) {
		struct page *p = s->clock[s->hand];
		size_t at = s->hand;

		s->hand = (s->hand + 1) % s->cap;
		if (atomic_exchange_explicit(&p->hot, false, memory_order_relaxed))
			continue;
		unhash(s, p);
		cache_put(p);
		return at;
	}
}

struct page *cache_insert(struct cache *c, uint64_t addr, uint64_t csum, const uint8_t *data)
{
	struct cache_shard *s = shard_of(c, addr);
	struct page *p = malloc(sizeof(*p)), *have;
	struct page **bucket;

	if (!p)
		return NULL;
	p->addr = addr;
	p->csum = csum;
	atomic_init(&p->refs, 2); /* the cache's and the caller's */
	atomic_init(&p->hot, true);
	memcpy(p->data, data, AU_BYTES);

	pthread_mutex_lock(&s->lock);
	have = find(s, addr, csum);
	if (have) {
		atomic_fetch_add_explicit(&have->refs, 1, memory_order_relaxed);
		pthread_mutex_unlock(&s->lock);
		free(p);
		return have;
	}
	s->clock[place(s)] = p;
	bucket = bucket_of(s, addr);
	p->next = *bucket;
	*bucket = p;
	pthread_mutex_unlock(&s->lock);
	return p;
}
