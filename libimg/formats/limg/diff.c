/* SPDX-License-Identifier: MIT */
/*
 * What differs between two states. Two pointers with the same word are the same node, two with the same logical hash
 * the same content: both end the descent, so the cost follows the difference.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "limg.h"

struct side {
	struct ptr p;
	unsigned level; /* of the node that p points to; may be below the level at hand: then it is its first child */
};

struct diff {
	struct engine *e;
	uint64_t size;	   /* of b */
	bool hole_is_zero; /* no backing: unallocated reads as zeros */
	img_diff_fn fn;
	void *ctx;
	/* run not yet reported */
	uint64_t off, bytes;
	enum img_diff_kind kind;
};

static int report(struct diff *d, struct img_error *err)
{
	uint64_t bytes = min_u64(d->bytes, d->size - min_u64(d->size, d->off));
	int stop = bytes ? d->fn(d->ctx, d->off, bytes, d->kind) : 0;

	d->bytes = 0;
	return stop ? error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped") : 0;
}

static int add(struct diff *d, uint64_t block, uint64_t blocks, enum img_diff_kind kind, struct img_error *err)
{
	uint64_t off = block << d->e->block_shift, bytes = blocks << d->e->block_shift;

	if (d->bytes && d->kind == kind && d->off + d->bytes == off) {
		d->bytes += bytes;
		return 0;
	}
	if (d->bytes) {
		int rc = report(d, err);

		if (rc)
			return rc;
	}
	d->off = off;
	d->bytes = bytes;
	d->kind = kind;
	return 0;
}

static unsigned effective(const struct diff *d, unsigned st)
{
	return st == ST_NONE && d->hole_is_zero ? ST_ZERO : st;
}

static bool entry_differs(const struct diff *d, const struct entry *a, const struct entry *b)
{
	unsigned sa = effective(d, word_state(a->word)), sb = effective(d, word_state(b->word));

	if (a->word == b->word)
		return false;
	if (sa >= ST_RAW && sb >= ST_RAW)
		return (a->csum ^ b->csum) >> 8 != 0 || (sa == ST_RAW && sb == ST_RAW && a->csum != b->csum);
	return sa != sb;
}

static enum img_diff_kind kind_of(const struct diff *d, unsigned st)
{
	st = effective(d, st);
	return st >= ST_RAW ? IMG_DIFF_DATA : st == ST_ZERO ? IMG_DIFF_ZERO : IMG_DIFF_UNMAPPED;
}

static int side_page(struct diff *d, unsigned level, uint64_t index, const struct side *s, struct page **pg,
		     struct img_error *err)
{
	*pg = NULL;
	if (s->level != level || word_state(s->p.word) != ST_NODE)
		return 0;
	return tree_page(d->e, VOL_DISK, level, index, &s->p, pg, err);
}

static void side_entry(const struct side *s, const struct page *pg, unsigned i, struct entry *en)
{
	if (pg)
		leaf_entry(pg, i, en);
	else
		*en = (struct entry){ word_state(s->p.word) == ST_ZERO ? word_make(0, word_birth(s->p.word), ST_ZERO) :
									 0,
				      0 };
}

static struct side side_child(const struct side *s, unsigned level, const struct page *pg, unsigned i)
{
	struct side c = { .level = level - 1 };

	if (s->level < level) { /* a lower tree: all of it is the first child */
		if (i == 0)
			return *s;
		return c;
	}
	if (pg)
		node_child(pg, i, &c.p);
	else if (word_state(s->p.word) == ST_ZERO)
		c.p = s->p;
	return c;
}

/* A tree that is lower than the level at hand and not empty: what it says holds for its first child only. */
static bool is_low(const struct side *s, unsigned level)
{
	return s->level < level && word_state(s->p.word) != ST_NONE;
}

static bool side_equal(const struct diff *d, unsigned level, const struct side *a, const struct side *b)
{
	unsigned sa = word_state(a->p.word), sb = word_state(b->p.word);

	if (is_low(a, level) || is_low(b, level))
		return false;
	if (sa != ST_NODE && sb != ST_NODE)
		return effective(d, sa) == effective(d, sb);
	if (sa != sb || a->level != b->level)
		return false;
	return a->p.word == b->p.word || !memcmp(a->p.logical, b->p.logical, 16);
}

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int walk(struct diff *d, unsigned level, uint64_t index, const struct side *a, const struct side *b,
		struct img_error *err)
{
	struct page *pa, *pb = NULL;
	uint64_t start = index << (FANOUT_SHIFT * level + LEAF_SHIFT);
	int rc;

	if (side_equal(d, level, a, b) || start << d->e->block_shift >= d->size)
		return 0;
	if (word_state(b->p.word) != ST_NODE && word_state(a->p.word) != ST_NODE && !is_low(a, level) &&
	    !is_low(b, level))
		return add(d, start, level_leaves(level) << LEAF_SHIFT, kind_of(d, word_state(b->p.word)), err);
	rc = side_page(d, level, index, a, &pa, err);
	if (!rc)
		rc = side_page(d, level, index, b, &pb, err);
	for (unsigned i = 0; !rc && level == 0 && i < LEAF_ENTRIES; i++) {
		struct entry ea, eb;

		side_entry(a, pa, i, &ea);
		side_entry(b, pb, i, &eb);
		if (entry_differs(d, &ea, &eb))
			rc = add(d, start + i, 1, kind_of(d, word_state(eb.word)), err);
	}
	for (unsigned i = 0; !rc && level && i < FANOUT; i++) {
		struct side ca = side_child(a, level, pa, i), cb = side_child(b, level, pb, i);

		rc = walk(d, level - 1, (index << FANOUT_SHIFT) + i, &ca, &cb, err);
	}
	if (pa)
		cache_put(pa);
	if (pb)
		cache_put(pb);
	return rc;
}

/* Name to tree; NULL: the head. pinned snapshots cannot be deleted meanwhile. */
static int side_open(struct engine *e, const char *name, struct volume *v, struct snap **pinned, struct img_error *err)
{
	int rc = name ? catalog_usable(e, err) : 0;

	*pinned = NULL;
	if (rc)
		return rc;
	if (name) {
		pthread_mutex_lock(&e->cat_lock);
		*pinned = catalog_view(e, name);
		if (*pinned)
			*v = (*pinned)->disk;
		pthread_mutex_unlock(&e->cat_lock);
		return *pinned ? 0 : error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot %.64s", name);
	}
	/* The head's tree only says everything when nothing is pending. */
	if (e->writable) {
		struct ckpt_req req = { .action = CKPT_PLAIN };

		rc = overlay_empty(e) ? 0 : engine_checkpoint(e, &req, err);
		if (rc)
			return rc;
	} else if (!overlay_empty(e)) {
		return error_set(
			err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			"the image was not closed cleanly: open it once for writing (imgtool check --repair), then compare");
	}
	pthread_mutex_lock(&e->shard[0].lock);
	v->root = e->shard[0].root[VOL_DISK];
	v->levels = e->shard[0].levels[VOL_DISK];
	v->size_bytes = atomic_load(&e->disk_bytes);
	pthread_mutex_unlock(&e->shard[0].lock);
	return 0;
}

static void side_close(struct engine *e, struct snap *pinned)
{
	if (!pinned)
		return;
	pthread_mutex_lock(&e->cat_lock);
	pinned->nr_views--;
	pthread_mutex_unlock(&e->cat_lock);
}

int limg_snap_diff(struct node *n, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err)
{
	struct engine *e = ((struct limg_state *)n->state)->e;
	struct volume va = { 0 }, vb = { 0 };
	struct snap *pa = NULL, *pb = NULL;
	struct diff d = { .e = e, .fn = fn, .ctx = ctx };
	int rc = a ? side_open(e, a, &va, &pa, err) : 0;

	if (!rc)
		rc = side_open(e, b, &vb, &pb, err);
	if (!rc) {
		struct side sa = { va.root, va.levels }, sb = { vb.root, vb.levels };

		d.size = vb.size_bytes;
		d.hole_is_zero = !atomic_load(&e->has_backing);
		rc = walk(&d, va.levels > vb.levels ? va.levels : vb.levels, 0, &sa, &sb, err);
		if (!rc && d.bytes)
			rc = report(&d, err);
	}
	side_close(e, pa);
	side_close(e, pb);
	return rc;
}
