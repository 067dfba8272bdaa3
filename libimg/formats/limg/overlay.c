/* SPDX-License-Identifier: MIT */
/*
 * The overlay: mappings that are newer than the trees, in shards by leaf. An entry goes active -> (named by a journal
 * record) -> frozen (a checkpoint merges it) -> gone. Each shard also holds a copy of the current roots, so that a
 * reader takes one lock for a consistent answer: overlay, and the root to go on with.
 *
 * What becomes of a block that an active entry superseded (trap 1 of the design):
 *   never named by a record    -> reusable at once
 *   named by a record          -> shard->deferred, reusable once the record that names its successor is durable
 *   only in frozen or the tree -> the next merge sees it
 */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

struct shard *overlay_shard(struct engine *e, unsigned vol, uint64_t leaf)
{
	return &e->shard[((leaf + ((uint64_t)vol << 50)) * UINT64_C(0x9e3779b97f4a7c15)) >> 58];
}

int overlay_init(struct engine *e)
{
	for (unsigned i = 0; i < NR_SHARDS; i++)
		pthread_mutex_init(&e->shard[i].lock, NULL);
	return 0;
}

void dmap_free(struct engine *e, struct dmap *m)
{
	for (size_t b = 0; b < m->nr_buckets; b++) {
		struct dleaf *d = m->bucket[b];

		while (d) {
			struct dleaf *next = d->next;

			free(d->e);
			free(d);
			d = next;
		}
	}
	atomic_fetch_sub(&e->nr_pending, m->nr_entries);
	atomic_fetch_sub(&e->nr_dirty_leaves, m->nr_leaves);
	free(m->bucket);
	memset(m, 0, sizeof *m);
}

void overlay_destroy(struct engine *e)
{
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct shard *s = &e->shard[i];

		dmap_free(e, &s->active);
		dmap_free(e, &s->frozen);
		runs_free(&s->deferred);
		pthread_mutex_destroy(&s->lock);
	}
}

bool overlay_empty(struct engine *e)
{
	return atomic_load(&e->nr_pending) == 0;
}

/* ---- one map ---- */

static size_t dmap_bucket(const struct dmap *m, unsigned vol, uint64_t leaf)
{
	return (size_t)(((leaf + ((uint64_t)vol << 50)) * UINT64_C(0xff51afd7ed558ccd)) >> 24) & (m->nr_buckets - 1);
}

static struct dleaf *dmap_find(const struct dmap *m, unsigned vol, uint64_t leaf)
{
	if (!m->nr_leaves)
		return NULL;
	for (struct dleaf *d = m->bucket[dmap_bucket(m, vol, leaf)]; d; d = d->next)
		if (d->index == leaf && d->vol == vol)
			return d;
	return NULL;
}

static bool dmap_grow(struct dmap *m)
{
	struct dmap bigger = *m;

	bigger.nr_buckets = m->nr_buckets ? m->nr_buckets * 2 : 16;
	bigger.bucket = calloc(bigger.nr_buckets, sizeof(*bigger.bucket));
	if (!bigger.bucket)
		return false;
	for (size_t b = 0; b < m->nr_buckets; b++)
		for (struct dleaf *d = m->bucket[b], *next; d; d = next) {
			struct dleaf **at = &bigger.bucket[dmap_bucket(&bigger, d->vol, d->index)];

			next = d->next;
			d->next = *at;
			*at = d;
		}
	free(m->bucket);
	*m = bigger;
	return true;
}

static struct dleaf *dmap_add(struct engine *e, struct dmap *m, unsigned vol, uint64_t leaf)
{
	struct dleaf *d, **at;

	if (m->nr_leaves >= m->nr_buckets && !dmap_grow(m) && !m->nr_buckets)
		return NULL;
	d = calloc(1, sizeof(*d));
	if (!d)
		return NULL;
	d->vol = (uint8_t)vol;
	d->index = leaf;
	at = &m->bucket[dmap_bucket(m, vol, leaf)];
	d->next = *at;
	*at = d;
	m->nr_leaves++;
	atomic_fetch_add(&e->nr_dirty_leaves, 1);
	return d;
}

/* First entry with slot >= the given one. */
static unsigned dleaf_seek(const struct dleaf *d, unsigned slot)
{
	unsigned lo = 0, hi = d->nr;

	if (hi && d->e[hi - 1].slot < slot)
		return hi; /* appending is the common case */
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (d->e[mid].slot < slot)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool dleaf_room(struct dleaf *d, unsigned more)
{
	unsigned cap = d->cap ? d->cap : 2;
	struct dentry *bigger;

	if (d->nr + more <= d->cap)
		return true;
	while (cap < d->nr + more)
		cap *= 2;
	if (cap > LEAF_ENTRIES)
		cap = LEAF_ENTRIES;
	bigger = realloc(d->e, cap * sizeof(*bigger));
	if (!bigger)
		return false;
	d->e = bigger;
	d->cap = (uint16_t)cap;
	return true;
}

/* ---- looking up ---- */

static void fill_from(const struct dmap *m, unsigned vol, uint64_t leaf, unsigned slot, unsigned nr, struct entry *en,
		      bool *have)
{
	const struct dleaf *d = dmap_find(m, vol, leaf);

	if (!d)
		return;
	for (unsigned i = dleaf_seek(d, slot); i < d->nr && d->e[i].slot < slot + nr; i++) {
		unsigned k = d->e[i].slot - slot;

		en[k].word = d->e[i].word;
		en[k].csum = d->e[i].csum;
		have[k] = true;
	}
}

uint64_t overlay_get(struct engine *e, unsigned vol, uint64_t leaf, unsigned slot, unsigned nr, struct entry *en,
		     bool *have, struct ptr *root, unsigned *levels)
{
	struct shard *s = overlay_shard(e, vol, leaf);
	uint64_t gen;

	memset(have, 0, nr * sizeof(*have));
	pthread_mutex_lock(&s->lock);
	fill_from(&s->frozen, vol, leaf, slot, nr, en, have);
	fill_from(&s->active, vol, leaf, slot, nr, en, have);
	*root = s->root[vol];
	*levels = s->levels[vol];
	gen = s->root_gen;
	pthread_mutex_unlock(&s->lock);
	return gen;
}

/* ---- changing ---- */

/*
 * The entry at position i of d is about to be replaced: is its space free then, and how much of it? Compressed units
 * are shared by the entries of their unit, all of one leaf.
 */
static uint64_t superseded_aus(const struct engine *e, const struct dleaf *d, unsigned i)
{
	const struct dentry *old = &d->e[i];
	unsigned st = word_state(old->word);

	if (st == ST_RAW)
		return vol_aus(e, d->vol);
	if (!state_compressed(st))
		return 0;
	for (unsigned k = i; k-- > 0 && old->slot / e->unit_blocks == d->e[k].slot / e->unit_blocks;)
		if (d->e[k].word == old->word)
			return 0;
	for (unsigned k = i + 1; k < d->nr && old->slot / e->unit_blocks == d->e[k].slot / e->unit_blocks; k++)
		if (d->e[k].word == old->word)
			return 0;
	return old->csum & 0xff;
}

static void replace(struct engine *e, struct shard *s, struct dleaf *d, unsigned i, const struct dentry *now,
		    struct runs *reusable)
{
	uint64_t aus = superseded_aus(e, d, i);

	if (aus)
		runs_add(d->e[i].journaled ? &s->deferred : reusable, word_addr(d->e[i].word), aus);
	d->e[i] = *now;
}

static bool still_holds(const struct engine *e, struct shard *s, unsigned vol, uint64_t leaf, unsigned slot,
			const struct mapping *m)
{
	struct entry now;
	bool have = false;

	(void)e;
	fill_from(&s->frozen, vol, leaf, slot, 1, &now, &have);
	fill_from(&s->active, vol, leaf, slot, 1, &now, &have);
	if (have)
		return now.word == m->e.word && now.csum == m->e.csum;
	return !m->pending && s->root_gen == m->root_gen;
}

static void mark_dirty(struct shard *s, struct dleaf *d)
{
	if (d->on_dirty || d->vol != VOL_DISK)
		return; /* vm state is made durable by its snapshot, not by the journal */
	d->on_dirty = true;
	d->next_dirty = s->dirty;
	s->dirty = d;
}

/* Inserts nr entries; room was made. Returns how many are new. */
static unsigned insert_run(struct engine *e, struct shard *s, struct dleaf *d, unsigned slot, unsigned nr,
			   uint64_t word, const uint64_t *csum, bool journaled, struct runs *reusable)
{
	unsigned step = word_state(word) == ST_RAW ? vol_aus(e, d->vol) : 0, added = 0;
	unsigned at = dleaf_seek(d, slot);

	for (unsigned i = 0; i < nr; i++, at++) {
		struct dentry now = { word + (uint64_t)i * step, csum ? csum[i] : 0, (uint8_t)(slot + i), journaled };

		if (at < d->nr && d->e[at].slot == slot + i) {
			replace(e, s, d, at, &now, reusable);
			continue;
		}
		memmove(&d->e[at + 1], &d->e[at], (d->nr - at) * sizeof(d->e[0]));
		d->e[at] = now;
		d->nr++;
		added++;
	}
	return added;
}

static struct dleaf *leaf_for(struct engine *e, struct shard *s, unsigned vol, uint64_t leaf, unsigned nr)
{
	struct dleaf *d = dmap_find(&s->active, vol, leaf);

	if (!d)
		d = dmap_add(e, &s->active, vol, leaf);
	if (!d || !dleaf_room(d, nr))
		return NULL;
	return d;
}

int overlay_put(struct engine *e, unsigned vol, uint64_t block, unsigned nr, uint64_t word, const uint64_t *csum,
		const struct mapping *expect, bool *stale, struct img_error *err)
{
	uint64_t leaf = block >> LEAF_SHIFT;
	unsigned slot = (unsigned)(block & (LEAF_ENTRIES - 1));
	struct shard *s = overlay_shard(e, vol, leaf);
	struct runs reusable = { 0 };
	struct dleaf *d;
	unsigned added;

	pthread_mutex_lock(&s->lock);
	if (expect && !still_holds(e, s, vol, leaf, slot, expect)) {
		pthread_mutex_unlock(&s->lock);
		*stale = true;
		return 0;
	}
	d = leaf_for(e, s, vol, leaf, nr);
	if (!d) {
		pthread_mutex_unlock(&s->lock);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	if (word_state(word) != ST_NONE)
		word |= s->epoch << ADDR_BITS;
	added = insert_run(e, s, d, slot, nr, word, csum, false, &reusable);
	s->active.nr_entries += added;
	mark_dirty(s, d);
	pthread_mutex_unlock(&s->lock);

	atomic_fetch_add(&e->nr_pending, added);
	atomic_fetch_add(&e->write_count, 1);
	for (size_t i = 0; i < reusable.nr; i++)
		space_free_data(e, reusable.v[i].addr, reusable.v[i].aus);
	runs_free(&reusable);
	return 0;
}

int overlay_replay(struct engine *e, unsigned vol, uint64_t block, unsigned nr, uint64_t word, const uint64_t *csum,
		   struct img_error *err)
{
	uint64_t leaf = block >> LEAF_SHIFT;
	struct shard *s = overlay_shard(e, vol, leaf);
	struct runs gone = { 0 };
	struct dleaf *d = leaf_for(e, s, vol, leaf, nr);
	unsigned added;

	if (!d)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	added = insert_run(e, s, d, (unsigned)(block & (LEAF_ENTRIES - 1)), nr, word, csum, false, &gone);
	s->active.nr_entries += added;
	atomic_fetch_add(&e->nr_pending, added);
	runs_free(&gone);
	return 0;
}
