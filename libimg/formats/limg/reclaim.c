/* SPDX-License-Identifier: MIT */
/*
 * Freeing what deleted snapshots alone held. A deleted record with at most one child is walked in block order against
 * that child: what was born after the parent's epoch and is not at the same place of the child is nobody else's. With
 * two children it waits: a block that both share would have no owner left. Each step runs inside a checkpoint, after
 * the head was merged, and commits its cursor with its frees. What the head may call its own meanwhile is in merge.c
 * (is_private).
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"

#define SMALL_GROUPS 6u /* a small step stops once this many pages of the free-space map are to be written */

struct walk {
	struct ckpt *c;
	unsigned vol;
	uint64_t parent_epoch;
	uint64_t cursor; /* block; in: where to go on, out: where it stopped */
	uint64_t budget; /* leaves */
	bool small, stopped;
};

static bool candidate(struct engine *e, const struct snap *s, uint64_t head_parent)
{
	return s && s->state == SNAP_DELETED && catalog_children(e, s->id, head_parent) <= 1;
}

/* The one that was begun goes first: there is at most one. */
static struct snap *pick(struct engine *e, uint64_t head_parent)
{
	struct snap *found = NULL;

	for (size_t i = 0; i < e->nr_slots; i++) {
		struct snap *s = e->snap[i];

		if (s && s->state == SNAP_DELETED && s->cursor_vol)
			return s;
		if (!found && candidate(e, s, head_parent))
			found = s;
	}
	return found;
}

bool reclaim_possible(struct engine *e, uint64_t head_parent)
{
	bool any = false;

	pthread_mutex_lock(&e->cat_lock);
	for (size_t i = 0; i < e->nr_slots && !any; i++)
		any = candidate(e, e->snap[i], head_parent);
	pthread_mutex_unlock(&e->cat_lock);
	return any;
}

static bool unit_holds(const struct engine *e, const struct page *pg, unsigned slot, uint64_t word)
{
	unsigned first = slot / e->unit_blocks * e->unit_blocks;

	for (unsigned k = first; pg && k < first + e->unit_blocks; k++) {
		struct entry en;

		leaf_entry(pg, k, &en);
		if (en.word == word)
			return true;
	}
	return false;
}

static int leaf_walk(struct walk *w, const struct page *mine, const struct page *child, struct img_error *err)
{
	struct engine *e = w->c->e;
	int rc = 0;

	for (unsigned i = 0; !rc && i < LEAF_ENTRIES; i++) {
		struct entry en, theirs = { 0, 0 };
		unsigned st;
		bool seen = false;

		leaf_entry(mine, i, &en);
		st = word_state(en.word);
		if (st < ST_RAW || word_birth(en.word) <= w->parent_epoch)
			continue;
		if (child)
			leaf_entry(child, i, &theirs);
		if (st == ST_RAW) {
			if (theirs.word != en.word)
				rc = ckpt_free(w->c, word_addr(en.word), vol_aus(e, w->vol), err);
			continue;
		}
		for (unsigned k = i; k-- > i / e->unit_blocks * e->unit_blocks && !seen;) {
			struct entry before;

			leaf_entry(mine, k, &before);
			seen = before.word == en.word;
		}
		if (!seen && !unit_holds(e, child, i, en.word))
			rc = ckpt_free(w->c, word_addr(en.word), entry_unit_aus(&en), err);
	}
	return rc;
}

static bool out_of_budget(struct walk *w)
{
	if (w->budget == 0)
		return true;
	return w->small && space_dirty_groups(w->c->e) > SMALL_GROUPS;
}

/* mine: pointer of the deleted tree; child: pointer at the same place of the child's, or NULL. */
/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int tree_walk(struct walk *w, unsigned level, uint64_t index, const struct ptr *mine, const struct ptr *child,
		     struct img_error *err)
{
	uint64_t end = (index + 1) << (LEAF_SHIFT + FANOUT_SHIFT * level);
	struct page *pg = NULL, *cpg = NULL;
	int rc;

	if (end <= w->cursor || word_state(mine->word) != ST_NODE || word_birth(mine->word) <= w->parent_epoch)
		return 0;
	if (child && (word_state(child->word) != ST_NODE || child->word == mine->word)) {
		if (child->word == mine->word)
			return 0; /* shared, with all that is below */
		child = NULL;
	}
	if (level == 0 && out_of_budget(w)) {
		w->cursor = index << LEAF_SHIFT;
		w->stopped = true;
		return 0;
	}
	rc = tree_page(w->c->e, w->vol, level, index, mine, &pg, err);
	if (!rc && child)
		rc = tree_page(w->c->e, w->vol, level, index, child, &cpg, err);
	if (!rc && level == 0) {
		w->budget--;
		rc = leaf_walk(w, pg, cpg, err);
	}
	for (unsigned i = 0; !rc && level && i < FANOUT && !w->stopped; i++) {
		struct ptr m, t;

		node_child(pg, i, &m);
		if (cpg)
			node_child(cpg, i, &t);
		rc = tree_walk(w, level - 1, (index << FANOUT_SHIFT) + i, &m, cpg ? &t : NULL, err);
	}
	if (pg)
		cache_put(pg);
	if (cpg)
		cache_put(cpg);
	if (!rc && !w->stopped)
		rc = ckpt_free(w->c, word_addr(mine->word), 1, err);
	return rc;
}

/* The child's pointer at the level of the deleted tree's root. */
static int child_root(struct walk *w, const struct volume *child, unsigned levels, struct ptr *out,
		      struct img_error *err)
{
	*out = child->root;
	if (word_state(out->word) != ST_NODE)
		return 0;
	if (child->levels < levels)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "a tree is lower than that of its ancestor (LIMG-13)");
	for (unsigned l = child->levels; l > levels && word_state(out->word) == ST_NODE; l--) {
		struct page *pg;
		int rc = tree_page(w->c->e, w->vol, l, 0, out, &pg, err);

		if (rc)
			return rc;
		node_child(pg, 0, out);
		cache_put(pg);
	}
	return 0;
}

static int volume_walk(struct walk *w, const struct volume *mine, const struct volume *child, struct img_error *err)
{
	struct ptr t;
	int rc = child ? child_root(w, child, mine->levels, &t, err) : 0;

	return rc ? rc : tree_walk(w, mine->levels, 0, &mine->root, child ? &t : NULL, err);
}

static struct snap *only_child(struct engine *e, uint64_t id)
{
	for (size_t i = 0; i < e->nr_slots; i++)
		if (e->snap[i] && e->snap[i]->parent == id)
			return e->snap[i];
	return NULL;
}

/* One record, as far as the budget goes. */
static int reclaim_one(struct walk *w, struct snap *s, struct img_error *err)
{
	struct ckpt *c = w->c;
	struct engine *e = c->e;
	struct snap *parent = catalog_by_id(e, s->parent), *child = only_child(e, s->id);
	bool head = c->next.head_parent == s->id;
	int rc = 0;

	w->parent_epoch = parent ? parent->epoch : 0;
	if (!s->cursor_vol)
		s->cursor_vol = VOL_DISK;
	catalog_touch(e, s);
	for (; !rc && s->cursor_vol <= VOL_VM; s->cursor_vol++, s->cursor = 0) {
		const struct volume *mine = s->cursor_vol == VOL_DISK ? &s->disk : &s->vm, *theirs = NULL;

		if (head)
			theirs = s->cursor_vol == VOL_DISK ? &c->next.disk : &c->next.vm;
		else if (child)
			theirs = s->cursor_vol == VOL_DISK ? &child->disk : &child->vm;
		w->vol = s->cursor_vol;
		w->cursor = s->cursor;
		rc = volume_walk(w, mine, theirs, err);
		if (w->stopped) {
			s->cursor = w->cursor;
			return rc;
		}
	}
	if (rc)
		return rc;
	if (head)
		c->next.head_parent = s->parent;
	if (child) {
		child->parent = s->parent;
		catalog_touch(e, child);
	}
	catalog_remove(e, s);
	return 0;
}

int reclaim_step(struct ckpt *c, uint64_t leaves, bool small, bool *more, struct img_error *err)
{
	struct walk w = { .c = c, .budget = leaves, .small = small };
	struct snap *s;
	int rc = batch_flush(c, err); /* the walk may read what the merge has just built */

	pthread_mutex_lock(&c->e->cat_lock);
	while (!rc && !w.stopped && leaves && (s = pick(c->e, c->next.head_parent)) != NULL)
		rc = reclaim_one(&w, s, err);
	*more = !rc && pick(c->e, c->next.head_parent) != NULL;
	pthread_mutex_unlock(&c->e->cat_lock);
	return rc;
}
