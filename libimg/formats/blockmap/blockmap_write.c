/* SPDX-License-Identifier: MIT */
/*
 * Writing. What a block already holds is overwritten in place, without a lock. Blocks without a place, and sectors that
 * a bitmap says are the backing's, are claimed first: whoever else wants to give them a place waits until the claim
 * ends, and then finds them written. Readers do not wait: until the entry changes they read what was there before.
 *
 * New neighbours get neighbouring places and are written at once. What a request leaves out of a new block (or of a new
 * sector of a PARTIAL one) comes from the backing where the entry was FREE, and is zeros otherwise; the room behind all
 * places reads as zeros, or is wiped first (BM-1, BM-4).
 */
#include <stdlib.h>
#include <string.h>

#include "blockmap_int.h"
#include "is_zero.h"

#define NEW_BYTES_MAX (UINT64_C(16) << 20) /* of new blocks in one run, unless one block is larger */
#define COPY_BYTES    (UINT64_C(1) << 20)

bool backed(const struct blockmap *bm)
{
	return bm->node->backing || bm->node->backing_missing || bm->node->backing_changes;
}

/* ---- claims ------------------------------------------------------------------------------------------------------ */

static bool claimed_locked(const struct blockmap *bm, uint64_t first, uint64_t nr)
{
	for (const struct claim *c = bm->claims; c; c = c->next)
		if (c->first < first + nr && first < c->first + c->nr)
			return true;
	return false;
}

bool claimed(struct blockmap *bm, uint64_t first, uint64_t nr)
{
	bool is;

	pthread_mutex_lock(&bm->claim_lock);
	is = claimed_locked(bm, first, nr);
	pthread_mutex_unlock(&bm->claim_lock);
	return is;
}

void claim_wait_map(struct blockmap *bm, uint64_t first, uint64_t nr)
{
	for (;;) {
		pthread_rwlock_wrlock(&bm->map);
		if (!claimed(bm, first, nr))
			return;
		pthread_rwlock_unlock(&bm->map);
		pthread_mutex_lock(&bm->claim_lock);
		while (claimed_locked(bm, first, nr))
			pthread_cond_wait(&bm->claim_gone, &bm->claim_lock);
		pthread_mutex_unlock(&bm->claim_lock);
	}
}

static void claim_add(struct blockmap *bm, struct claim *c)
{
	pthread_mutex_lock(&bm->claim_lock);
	c->next = bm->claims;
	bm->claims = c;
	pthread_mutex_unlock(&bm->claim_lock);
}

static void claim_end(struct blockmap *bm, struct claim *c)
{
	struct claim **at = &bm->claims;

	pthread_mutex_lock(&bm->claim_lock);
	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	pthread_cond_broadcast(&bm->claim_gone);
	pthread_mutex_unlock(&bm->claim_lock);
}

/* ---- a run of new blocks, or of new sectors of one --------------------------------------------------------------- */

struct fresh {
	struct claim claim;
	bool partial;	   /* sectors of a block that has a place already */
	bool bits;	   /* a bitmap will say which sectors are this layer's */
	bool from_backing; /* what the request leaves out */
	bool wipe;	   /* the places hold something */
	enum blockmap_state before;
	uint64_t place;	     /* of the first block */
	uint64_t off, bytes; /* of the disk: the request's part */
	uint64_t first, end; /* of the disk: what is to be written, whole blocks or sectors */
	uint64_t host_first; /* where first lies */
};

/* From the first new place to the end of the last one. */
static uint64_t span(const struct blockmap *bm, const struct fresh *f)
{
	return (f->claim.nr - 1) * bm->shape.place_stride + place_bytes(bm);
}

/* Disk bytes [off, end) from the backing to where they belong. Zeros need not be written to what is zeros. */
static int copy_up(struct blockmap *bm, const struct fresh *f, uint64_t off, uint64_t end, struct img_error *err)
{
	uint64_t size = blockmap_size(bm), host_off = f->host_first + (off - f->first);
	bool blank = !f->partial;
	uint8_t *buf;
	int ret = 0;

	/* Behind the disk nothing is the backing's; what a smaller disk left there is wiped when it grows. */
	end = f->partial ? end : min_u64(end, size);
	if (off >= end)
		return 0;
	buf = malloc((size_t)min_u64(end - off, COPY_BYTES));
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (off < end && ret == 0) {
		uint64_t n = min_u64(end - off, COPY_BYTES), there = off < size ? min_u64(n, size - off) : 0;

		memset(buf + there, 0, (size_t)(n - there));
		if (f->from_backing && there > 0)
			ret = node_read_backing(bm->node, buf, there, bm->shape.disk_off + off, err);
		else
			memset(buf, 0, (size_t)n);
		if (ret == 0 && !(blank && is_zero(buf, (size_t)n)))
			ret = node_pwrite(bm->file, buf, n, host_off, 0, err);
		off += n;
		host_off += n;
	}
	free(buf);
	return ret;
}

/* The bitmap of a block that is all this layer's, in a format without backing. */
static int write_full_bitmap(struct blockmap *bm, uint64_t place, struct img_error *err)
{
	uint8_t *bits = calloc(1, bm->shape.bitmap_bytes);
	int ret;

	if (!bits)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	bits_set(bm, bits, 0, bm->shape.block_bytes / bm->shape.sector_bytes);
	ret = node_pwrite(bm->file, bits, bm->shape.bitmap_bytes, place, 0, err);
	free(bits);
	return ret;
}

static int write_fresh(struct blockmap *bm, const struct fresh *f, const uint8_t *buf, struct img_error *err)
{
	uint64_t host_off = f->host_first + (f->off - f->first);
	bool fill = f->partial || f->from_backing;
	int ret = 0;

	if (f->wipe)
		ret = node_zero(bm->file, span(bm, f), f->place, 0, err);
	if (ret == 0 && bm->shape.bitmap_always && !f->partial)
		ret = write_full_bitmap(bm, f->place, err);
	if (ret == 0 && fill)
		ret = copy_up(bm, f, f->first, f->off, err);
	if (ret == 0 && buf)
		ret = node_pwrite(bm->file, buf, f->bytes, host_off, 0, err);
	else if (ret == 0 && f->partial)
		ret = node_zero(bm->file, f->bytes, host_off, 0, err);
	if (ret == 0 && fill)
		ret = copy_up(bm, f, f->off + f->bytes, f->end, err);
	data_changed(bm);
	return ret;
}

/* Now the entries may lead there. An entry goes before its bits: without them it reads as the backing, as it did. */
static int publish(struct blockmap *bm, const struct fresh *f, struct img_error *err)
{
	struct blockmap_entry e = { .state = f->bits ? BLOCKMAP_PARTIAL : BLOCKMAP_DATA, .off = f->place };
	struct page *p;
	int ret = 0;

	for (uint64_t i = 0; i < f->claim.nr && ret == 0 && !f->partial; i++) {
		ret = entry_set(bm, f->claim.first + i, &e, err);
		e.off += bm->shape.place_stride;
	}
	if (ret != 0 || !f->bits)
		return ret;
	e.off = f->place;
	ret = cache_bitmap(bm, f->claim.first, &e, !f->partial, &p, err);
	if (ret != 0 && !f->partial) {
		/* Its page is dirty, and so in memory: this cannot fail. */
		e = (struct blockmap_entry){ .state = f->before };
		(void)entry_set(bm, f->claim.first, &e, NULL);
		bm->lost = true;
	}
	if (ret != 0)
		return ret;
	bits_set(bm, p->data, f->first % bm->shape.block_bytes / bm->shape.sector_bytes,
		 (f->end - f->first) / bm->shape.sector_bytes);
	cache_dirty(bm, p);
	return 0;
}

/* Nobody came after: the room is free again, but not blank. */
static void give_back(struct blockmap *bm, const struct fresh *f)
{
	uint64_t end = f->place + span(bm, f);

	if (f->partial)
		return;
	if (bm->end_off != end) {
		bm->lost = true;
		return;
	}
	bm->end_off = bm->ops->release ? bm->ops->release(bm, f->place) : f->place;
	bm->clean_from = max_u64(bm->clean_from, end);
}

/* How many blocks from the claim's first one on get places in one go. map is held for writing. */
static int count_new(struct blockmap *bm, enum blockmap_state state, uint64_t last, uint64_t *nr, struct img_error *err)
{
	uint64_t first = last - *nr + 1, max = max_u64(NEW_BYTES_MAX / bm->shape.block_bytes, 1), n = 1;
	struct blockmap_entry e;
	int ret;

	/* Nothing may lie between data that is to be written at once. */
	while (n < *nr && n < max && dense(bm) && bm->shape.bitmap_bytes == 0) {
		ret = entry_get(bm, first + n, true, &e, err);
		if (ret != 0)
			return ret;
		if (e.state != state || claimed(bm, first + n, 1))
			break;
		n++;
	}
	*nr = n;
	return 0;
}

/* Decides, under map. run is what is at f->off. */
static int plan_fresh(struct blockmap *bm, const struct run *run, struct fresh *f, struct img_error *err)
{
	const struct blockmap_shape *s = &bm->shape;
	uint64_t block = f->off / s->block_bytes, grain = s->block_bytes;
	uint64_t last = (f->off + f->bytes - 1) / s->block_bytes, nr = last - block + 1;
	struct blockmap_entry e = { .state = BLOCKMAP_FREE };
	int ret;

	/* Its page is in memory and it made sense: run was made of it under the same hold of map. */
	(void)entry_get(bm, block, true, &e, NULL);
	f->claim = (struct claim){ .first = block, .nr = 1 };
	f->before = e.state;
	f->partial = e.state == BLOCKMAP_PARTIAL;
	f->bits = f->partial || (s->bitmap_bytes > 0 && !s->bitmap_always);
	f->from_backing = e.state != BLOCKMAP_ZERO && backed(bm);
	if (f->bits && e.state != BLOCKMAP_ZERO)
		grain = s->sector_bytes;
	if (f->partial) {
		f->place = e.off;
		f->bytes = min_u64(f->bytes, run->bytes);
	} else {
		ret = count_new(bm, e.state, last, &nr, err);
		if (ret == 0)
			ret = allocate_places(bm, nr, &f->place, err);
		if (ret != 0)
			return ret;
		f->claim.nr = nr;
		f->wipe = f->place < bm->clean_from;
		f->bytes = min_u64(f->bytes, (block + nr) * s->block_bytes - f->off);
	}
	f->first = round_down(f->off, grain);
	f->end = round_up(f->off + f->bytes, grain);
	f->host_first = f->place + s->prefix_bytes + (f->first - block * s->block_bytes);
	return 0;
}

/* *done 0: somebody else was faster, look again. */
static int write_new(struct blockmap *bm, const uint8_t *buf, uint64_t bytes, uint64_t off, uint64_t *done,
		     struct img_error *err)
{
	struct fresh f = { .off = off, .bytes = bytes };
	struct run run;
	int ret;

	*done = 0;
	claim_wait_map(bm, off / bm->shape.block_bytes, 1);
	ret = run_at_mapped(bm, off, bytes, true, &run, err);
	if (ret != 0 || run.state == BLOCKMAP_DATA) {
		pthread_rwlock_unlock(&bm->map);
		return ret;
	}
	ret = plan_fresh(bm, &run, &f, err);
	if (ret == 0)
		claim_add(bm, &f.claim);
	pthread_rwlock_unlock(&bm->map);
	if (ret != 0)
		return ret;
	ret = write_fresh(bm, &f, buf, err);
	pthread_rwlock_wrlock(&bm->map);
	if (ret == 0)
		ret = publish(bm, &f, err);
	else
		give_back(bm, &f);
	pthread_rwlock_unlock(&bm->map);
	claim_end(bm, &f.claim);
	*done = f.bytes;
	return ret;
}

static int overwrite(struct blockmap *bm, const uint8_t *buf, const struct run *run, struct img_error *err)
{
	int ret;

	/* A short file, whose table leads behind its end, does not grow by guesses. */
	if (!range_inside(run->host_off, run->bytes, node_size(bm->file)))
		return error_set(err, IMG_E_CORRUPT, 0, run->host_off, LAYER,
				 "the block table leads beyond the end of the file: run imgtool check");
	if (buf)
		ret = node_pwrite(bm->file, buf, run->bytes, run->host_off, 0, err);
	else
		ret = node_zero(bm->file, run->bytes, run->host_off, 0, err);
	data_changed(bm);
	return ret;
}

int write_range(struct blockmap *bm, const uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	while (bytes > 0) {
		struct run run;
		uint64_t done;
		int ret = run_at(bm, off, bytes, &run, err);

		if (ret == 0 && run.state == BLOCKMAP_DATA) {
			ret = overwrite(bm, buf, &run, err);
			done = run.bytes;
		} else if (ret == 0) {
			ret = write_new(bm, buf, bytes, off, &done, err);
		}
		if (ret == 0)
			ret = flush_if_crowded(bm, err);
		if (ret != 0)
			return ret;
		buf = buf ? buf + done : NULL;
		off += done;
		bytes -= done;
	}
	return 0;
}

int blockmap_pwrite(struct blockmap *bm, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret = blockmap_may_change(bm, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&bm->gate);
	ret = blockmap_touch(bm, err);
	if (ret == 0)
		ret = write_range(bm, buf, bytes, off, err);
	pthread_rwlock_unlock(&bm->gate);
	return ret;
}
