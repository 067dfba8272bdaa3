/* SPDX-License-Identifier: MIT */
/*
 * Building the next trees: copy on write from the leaves up, each touched node once for a checkpoint. What is replaced
 * and was the head's own leaves the persistent map; what a snapshot shares stays. Runs only inside a checkpoint, by one
 * thread; recursion is as deep as a tree (6).
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "engine.h"

int ckpt_free(struct ckpt *c, uint64_t addr, uint64_t aus, struct img_error *err)
{
	int rc = space_persist_free(c->e, addr, aus, err);

	if (!rc)
		runs_add(&c->freed, addr, aus);
	return rc;
}

int ckpt_alloc_page(struct ckpt *c, uint64_t *addr, struct img_error *err)
{
	int rc = space_pool_take(c->e, addr, err);

	return rc ? rc : space_persist_use(c->e, *addr, 1, err);
}

int batch_flush(struct ckpt *c, struct img_error *err)
{
	int rc;

	if (!c->batch_nr)
		return 0;
	rc = node_pwrite(c->e->file, c->batch, au_off(c->batch_nr), au_off(c->batch_addr), 0, err);
	c->batch_nr = 0;
	return rc;
}

int batch_add(struct ckpt *c, uint64_t addr, const uint8_t *page, struct img_error *err)
{
	if (c->batch_nr == BATCH_PAGES || (c->batch_nr && addr != c->batch_addr + c->batch_nr)) {
		int rc = batch_flush(c, err);

		if (rc)
			return rc;
	}
	if (!c->batch_nr)
		c->batch_addr = addr;
	memcpy(c->batch + au_off(c->batch_nr++), page, AU_BYTES);
	return 0;
}

/* ---- what is the head's own ---- */

/* end: first block after what the entry or node covers. */
static bool is_private(const struct ckpt *c, unsigned vol, uint64_t birth, uint64_t end)
{
	if (vol == VOL_CATALOG)
		return true;
	if (c->cursor_vol && (vol < c->cursor_vol || (vol == c->cursor_vol && end <= c->cursor)))
		return birth > c->boundary_before;
	return birth > c->boundary;
}

static uint64_t span_end(unsigned level, uint64_t index)
{
	return (index + 1) << (LEAF_SHIFT + FANOUT_SHIFT * level);
}

static uint64_t volume_blocks(const struct ckpt *c, unsigned vol, const struct volume *v)
{
	unsigned shift = vol_shift(c->e, vol);

	return (v->size_bytes + (UINT64_C(1) << shift) - 1) >> shift;
}

/* ---- writing nodes ---- */

void leaf_logical(const struct entry *en, uint8_t logical[16], uint64_t *count)
{
	struct le64 content[LEAF_ENTRIES];

	*count = 0;
	for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
		unsigned st = word_state(en[i].word);

		content[i] = le64_of(st >= ST_RAW ? (en[i].csum & ~UINT64_C(0xff)) | 2 : st);
		*count += st >= ST_RAW;
	}
	xxh128_store(content, sizeof content, logical);
}

void node_logical(const struct ptr *child, uint8_t logical[16], uint64_t *count)
{
	uint8_t all[FANOUT][16];

	*count = 0;
	for (unsigned i = 0; i < FANOUT; i++) {
		memcpy(all[i], child[i].logical, 16);
		*count += child[i].count;
	}
	xxh128_store(all, sizeof all, logical);
}

static void ptr_hole(struct ptr *p, enum entry_state st, uint64_t epoch)
{
	memset(p, 0, sizeof *p);
	if (st == ST_ZERO) {
		p->word = word_make(0, epoch, ST_ZERO);
		p->logical[0] = 1;
	}
}

static int page_out(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, const uint8_t *page, struct ptr *p,
		    struct img_error *err)
{
	struct page *cached;
	uint64_t addr;
	int rc = ckpt_alloc_page(c, &addr, err);

	if (rc)
		return rc;
	p->csum = XXH3_64bits_withSeed(page, AU_BYTES, page_identity(c->e, vol, level, index));
	p->word = word_make(addr, c->next.epoch, ST_NODE);
	cached = cache_insert(&c->e->cache, addr, p->csum, page);
	if (cached)
		cache_put(cached);
	return batch_add(c, addr, page, err);
}

static int node_free(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, const struct ptr *p,
		     struct img_error *err)
{
	if (word_state(p->word) != ST_NODE || !is_private(c, vol, word_birth(p->word), span_end(level, index)))
		return 0;
	return ckpt_free(c, word_addr(p->word), 1, err);
}

/* ---- leaves ---- */

struct leaf_work {
	struct entry old[LEAF_ENTRIES], now[LEAF_ENTRIES];
	uint8_t page[AU_BYTES];
};

static int leaf_read(struct ckpt *c, unsigned vol, uint64_t index, const struct ptr *p, uint64_t nr_blocks,
		     struct entry *en, struct img_error *err)
{
	struct page *pg;
	int rc;

	if (word_state(p->word) == ST_NODE) {
		rc = tree_page(c->e, vol, 0, index, p, &pg, err);
		if (rc)
			return rc;
		for (unsigned i = 0; i < LEAF_ENTRIES; i++)
			leaf_entry(pg, i, &en[i]);
		cache_put(pg);
		return 0;
	}
	memset(en, 0, LEAF_ENTRIES * sizeof(*en));
	if (word_state(p->word) == ST_ZERO)
		for (unsigned i = 0; i < LEAF_ENTRIES && (index << LEAF_SHIFT) + i < nr_blocks; i++)
			en[i].word = word_make(0, word_birth(p->word), ST_ZERO);
	return 0;
}

static bool unit_has(const struct engine *e, const struct entry *en, unsigned slot, uint64_t word)
{
	unsigned first = slot / e->unit_blocks * e->unit_blocks;

	for (unsigned k = first; k < first + e->unit_blocks; k++)
		if (en[k].word == word)
			return true;
	return false;
}

/* Does an earlier entry of the same unit carry the same word? Then its space was dealt with there. */
static bool unit_seen(const struct engine *e, const struct entry *en, unsigned slot)
{
	for (unsigned k = slot; k-- > slot / e->unit_blocks * e->unit_blocks;)
		if (en[k].word == en[slot].word)
			return true;
	return false;
}

static int entry_free(struct ckpt *c, unsigned vol, uint64_t index, const struct entry *en, struct img_error *err)
{
	unsigned st = word_state(en->word);

	if (st < ST_RAW || !is_private(c, vol, word_birth(en->word), span_end(0, index)))
		return 0;
	return ckpt_free(c, word_addr(en->word), st == ST_RAW ? vol_aus(c->e, vol) : entry_unit_aus(en), err);
}

static int leaf_release_old(struct ckpt *c, unsigned vol, uint64_t index, struct leaf_work *w, struct img_error *err)
{
	int rc = 0;

	for (unsigned i = 0; !rc && i < LEAF_ENTRIES; i++) {
		unsigned st = word_state(w->old[i].word);

		if (w->old[i].word == w->now[i].word || st < ST_RAW)
			continue;
		if (state_compressed(st) && (unit_has(c->e, w->now, i, w->old[i].word) || unit_seen(c->e, w->old, i)))
			continue;
		rc = entry_free(c, vol, index, &w->old[i], err);
	}
	return rc;
}

static int leaf_claim_new(struct ckpt *c, unsigned vol, struct leaf_work *w, struct img_error *err)
{
	unsigned step = vol_aus(c->e, vol);
	uint64_t addr = 0, aus = 0;
	int rc = 0;

	for (unsigned i = 0; !rc && i < LEAF_ENTRIES; i++) {
		unsigned st = word_state(w->now[i].word);
		uint64_t n = st == ST_RAW ? step : entry_unit_aus(&w->now[i]), at = word_addr(w->now[i].word);

		if (w->old[i].word == w->now[i].word || st < ST_RAW)
			continue;
		if (state_compressed(st) && unit_seen(c->e, w->now, i))
			continue;
		if (aus && addr + aus == at && at % GROUP_AUS) {
			aus += n;
			continue;
		}
		if (aus)
			rc = space_persist_use(c->e, addr, aus, err);
		addr = at;
		aus = n;
	}
	if (!rc && aus)
		rc = space_persist_use(c->e, addr, aus, err);
	return rc;
}

/* Writes the leaf, or the hole that it amounts to. */
static int leaf_finish(struct ckpt *c, unsigned vol, uint64_t index, uint64_t nr_blocks, struct leaf_work *w,
		       struct ptr *p, struct img_error *err)
{
	struct disk_leaf *d = (struct disk_leaf *)w->page;
	uint64_t data = 0, zero = 0,
		 inside = min_u64(LEAF_ENTRIES, nr_blocks - min_u64(nr_blocks, index << LEAF_SHIFT));

	for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
		unsigned st = word_state(w->now[i].word);

		d->e[i].word = le64_of(w->now[i].word);
		d->e[i].csum = le64_of(w->now[i].csum);
		data += st >= ST_RAW;
		zero += st == ST_ZERO;
	}
	if (!data && (!zero || zero == inside)) {
		ptr_hole(p, zero ? ST_ZERO : ST_NONE, c->next.epoch);
		return 0;
	}
	leaf_logical(w->now, p->logical, &p->count);
	return page_out(c, vol, 0, index, w->page, p, err);
}

static int leaf_merge(struct ckpt *c, unsigned vol, uint64_t index, struct ptr *p, const struct merge_leaf *m,
		      uint64_t nr_blocks, struct img_error *err)
{
	struct leaf_work *w = malloc(sizeof *w);
	int rc;

	if (!w)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = leaf_read(c, vol, index, p, nr_blocks, w->old, err);
	if (!rc) {
		memcpy(w->now, w->old, sizeof w->now);
		for (unsigned i = 0; i < m->d->nr; i++) {
			const struct dentry *d = &m->d->e[i];

			/* A write that raced a shrink: its block is beyond the end, its space only held in memory. */
			if ((index << LEAF_SHIFT) + d->slot >= nr_blocks) {
				if (word_state(d->word) == ST_RAW)
					runs_add(&c->freed, word_addr(d->word), vol_aus(c->e, vol));
				continue;
			}
			w->now[d->slot] = (struct entry){ d->word, d->csum };
		}
		rc = leaf_release_old(c, vol, index, w, err);
	}
	if (!rc)
		rc = leaf_claim_new(c, vol, w, err);
	if (!rc)
		rc = node_free(c, vol, 0, index, p, err);
	if (!rc)
		rc = leaf_finish(c, vol, index, nr_blocks, w, p, err);
	free(w);
	return rc;
}

/* ---- interior nodes ---- */

struct node_work {
	struct ptr child[FANOUT];
	uint8_t page[AU_BYTES];
};

static int node_read(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, const struct ptr *p,
		     uint64_t nr_blocks, struct ptr *child, struct img_error *err)
{
	struct page *pg;
	int rc;

	if (word_state(p->word) == ST_NODE) {
		rc = tree_page(c->e, vol, level, index, p, &pg, err);
		if (rc)
			return rc;
		for (unsigned i = 0; i < FANOUT; i++)
			node_child(pg, i, &child[i]);
		cache_put(pg);
		return 0;
	}
	memset(child, 0, FANOUT * sizeof(*child));
	if (word_state(p->word) == ST_ZERO)
		for (unsigned i = 0; i < FANOUT && span_end(level - 1, (index << FANOUT_SHIFT) + i - 1) < nr_blocks;
		     i++)
			ptr_hole(&child[i], ST_ZERO, word_birth(p->word));
	return 0;
}

static int node_finish(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, uint64_t nr_blocks,
		       struct node_work *w, struct ptr *p, struct img_error *err)
{
	struct disk_node *d = (struct disk_node *)w->page;
	unsigned nodes = 0, zero = 0, inside = 0;

	memset(d, 0, sizeof *d);
	d->magic = le32_of(NODE_MAGIC);
	d->level = (uint8_t)level;
	d->kind = (uint8_t)vol;
	d->index = le64_of(index);
	for (unsigned i = 0; i < FANOUT; i++) {
		uint64_t start = ((index << FANOUT_SHIFT) + i) << (LEAF_SHIFT + FANOUT_SHIFT * (level - 1));
		unsigned st = word_state(w->child[i].word);

		ptr_store(&d->child[i], &w->child[i]);
		nodes += st == ST_NODE;
		zero += st == ST_ZERO;
		inside += start < nr_blocks;
	}
	if (!nodes && (!zero || zero == inside)) {
		ptr_hole(p, zero ? ST_ZERO : ST_NONE, c->next.epoch);
		return 0;
	}
	node_logical(w->child, p->logical, &p->count);
	return page_out(c, vol, level, index, w->page, p, err);
}

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int node_merge(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, struct ptr *p,
		      const struct merge_leaf *m, size_t nr, uint64_t nr_blocks, struct img_error *err)
{
	struct node_work *w;
	int rc;

	if (level == 0)
		return leaf_merge(c, vol, index, p, m, nr_blocks, err);
	w = malloc(sizeof *w);
	if (!w)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = node_read(c, vol, level, index, p, nr_blocks, w->child, err);
	while (!rc && nr) {
		uint64_t k = m->index >> (FANOUT_SHIFT * (level - 1));
		size_t n = 1;

		while (n < nr && m[n].index >> (FANOUT_SHIFT * (level - 1)) == k)
			n++;
		rc = node_merge(c, vol, level - 1, k, &w->child[k & (FANOUT - 1)], m, n, nr_blocks, err);
		m += n;
		nr -= n;
	}
	if (!rc)
		rc = node_free(c, vol, level, index, p, err);
	if (!rc)
		rc = node_finish(c, vol, level, index, nr_blocks, w, p, err);
	free(w);
	return rc;
}

int merge_leaves(struct ckpt *c, unsigned vol, struct volume *v, const struct merge_leaf *leaves, size_t nr,
		 struct img_error *err)
{
	while (nr && leaves[nr - 1].index >= level_leaves(v->levels))
		nr--; /* raced a shrink */
	if (!nr)
		return 0;
	return node_merge(c, vol, v->levels, 0, &v->root, leaves, nr, volume_blocks(c, vol, v), err);
}

int merge_grow(struct ckpt *c, unsigned vol, struct volume *v, unsigned levels, struct img_error *err)
{
	while (v->levels < levels) {
		int rc = 0;

		v->levels++;
		if (word_state(v->root.word) != ST_NONE) {
			struct node_work *w = calloc(1, sizeof *w);

			if (!w)
				return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
			w->child[0] = v->root;
			/* UINT64_MAX blocks: the old root is one of many children, never the whole. */
			rc = node_finish(c, vol, v->levels, 0, UINT64_MAX, w, &v->root, err);
			free(w);
		}
		if (rc)
			return rc;
	}
	return 0;
}

/* ---- whole ranges ---- */

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int subtree_free(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, const struct ptr *p,
			struct img_error *err)
{
	struct page *pg;
	int rc;

	/* What a snapshot shares is shared with all that is below it. */
	if (word_state(p->word) != ST_NODE || !is_private(c, vol, word_birth(p->word), span_end(level, index)))
		return 0;
	rc = tree_page(c->e, vol, level, index, p, &pg, err);
	if (rc)
		return rc;
	if (level == 0) {
		struct entry en[LEAF_ENTRIES];

		for (unsigned i = 0; i < LEAF_ENTRIES; i++)
			leaf_entry(pg, i, &en[i]);
		for (unsigned i = 0; !rc && i < LEAF_ENTRIES; i++)
			if (!state_compressed(word_state(en[i].word)) || !unit_seen(c->e, en, i))
				rc = entry_free(c, vol, index, &en[i], err);
	} else {
		for (unsigned i = 0; !rc && i < FANOUT; i++) {
			struct ptr child;

			node_child(pg, i, &child);
			rc = subtree_free(c, vol, level - 1, (index << FANOUT_SHIFT) + i, &child, err);
		}
	}
	cache_put(pg);
	if (!rc)
		rc = node_free(c, vol, level, index, p, err);
	return rc;
}

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int range_set(struct ckpt *c, unsigned vol, unsigned level, uint64_t index, struct ptr *p, uint64_t first,
		     uint64_t end, enum entry_state st, uint64_t nr_blocks, struct img_error *err)
{
	uint64_t start = index << (FANOUT_SHIFT * level), stop = start + level_leaves(level);
	struct node_work *w;
	int rc;

	if (stop <= first || start >= end || word_state(p->word) == (unsigned)st)
		return 0;
	if (start >= first && stop <= end) {
		rc = subtree_free(c, vol, level, index, p, err);
		ptr_hole(p, start << LEAF_SHIFT < nr_blocks ? st : ST_NONE, c->next.epoch);
		return rc;
	}
	w = malloc(sizeof *w);
	if (!w)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = node_read(c, vol, level, index, p, nr_blocks, w->child, err);
	for (unsigned i = 0; !rc && i < FANOUT; i++)
		rc = range_set(c, vol, level - 1, (index << FANOUT_SHIFT) + i, &w->child[i], first, end, st, nr_blocks,
			       err);
	if (!rc)
		rc = node_free(c, vol, level, index, p, err);
	if (!rc)
		rc = node_finish(c, vol, level, index, nr_blocks, w, p, err);
	free(w);
	return rc;
}

int merge_range(struct ckpt *c, unsigned vol, struct volume *v, uint64_t first, uint64_t nr, enum entry_state st,
		struct img_error *err)
{
	uint64_t end = min_u64(first + nr, level_leaves(v->levels));

	return range_set(c, vol, v->levels, 0, &v->root, first, end, st, volume_blocks(c, vol, v), err);
}
