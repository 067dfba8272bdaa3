/* SPDX-License-Identifier: MIT */
/*
 * The inside of the engine:
 *
 *   blockmap.c         life, geometry, the file's end
 *   blockmap_cache.c   pages of the table and bitmaps, entries in them
 *   blockmap_read.c    what lies where: runs of blocks; reading, status
 *   blockmap_write.c   overwriting, new blocks
 *   blockmap_zero.c    zeroing and discarding
 *   blockmap_flush.c   the order on disk
 *   blockmap_alone.c   steps of resizing and committing
 *   blockmap_check.c, blockmap_measure.c
 */
#ifndef BLOCKMAP_INT_H
#define BLOCKMAP_INT_H

#include <pthread.h>

#include "blockmap.h"
#include "checked.h"
#include "error.h"

#define LAYER "blockmap"

#define HOLES_MAX 64u

/* What a page is of: the table, by number of the page, or the bitmap of a block. */
#define PAGE_BITMAP (UINT64_C(1) << 63)

struct page {
	struct page *hash_next, *next; /* next: of all, in a ring */
	uint64_t key;
	uint64_t off;	/* on disk; 0: nowhere yet */
	uint32_t bytes; /* on disk; what the last page of a table lacks stays FREE */
	_Atomic bool used;
	bool dirty;
	bool writing; /* a flush has a copy that is newer than the disk: not to be forgotten */
	uint8_t data[];
};

struct page_cache {
	struct page **hash;
	unsigned hash_bits;
	struct page *hand; /* of the ring; NULL: empty */
	size_t nr_pages, nr_dirty;
	uint64_t bytes, budget_bytes, dirty_bytes;
};

/* Blocks that a writer is about to give a place, or bits in the bitmap. On its stack. */
struct claim {
	uint64_t first, nr;
	struct claim *next;
};

struct blockmap {
	struct node *node, *file;
	const struct blockmap_ops *ops;
	void *format;
	bool writable, bulk;
	_Atomic bool broken;
	_Atomic bool touched;	 /* ops->begin is done */
	_Atomic bool data_dirty; /* something was written since the last sync */

	pthread_rwlock_t gate;
	pthread_mutex_t flushing;
	pthread_mutex_t touching;

	pthread_rwlock_t map;	     /* below: its own; reading suffices to look, page->used is atomic */
	struct blockmap_shape shape; /* gate, too: changes only while nobody else is in */
	_Atomic uint64_t disk_bytes;
	struct page_cache cache;
	uint64_t end_off;    /* the first byte behind all places */
	uint64_t clean_from; /* the file reads as zeros from here on */
	bool allocated;	     /* end_off moved since ops->settle */
	bool lost;	     /* a failed write left places that are nobody's */

	/* What the host says of holes: asked once for a long range, as asking costs a walk to the next hole each time. */
	pthread_mutex_t holes_lock;
	struct host_holes {
		uint64_t changes; /* bm->changes when it was asked */
		uint64_t end;	  /* what is known: from part[0].off to here */
		struct status_extent part[HOLES_MAX];
		size_t nr;
	} holes;
	_Atomic uint64_t changes; /* of the file's data */

	pthread_mutex_t claim_lock;
	pthread_cond_t claim_gone;
	struct claim *claims;
};

/* After each change of the file's data. */
static inline void data_changed(struct blockmap *bm)
{
	atomic_fetch_add_explicit(&bm->changes, 1, memory_order_release);
	atomic_store(&bm->data_dirty, true);
}

/* ---- blockmap_cache.c: map is held, for writing where "load" or more is said ---- */

int bm_cache_init(struct blockmap *bm, uint64_t budget_bytes, struct img_error *err);
void bm_cache_free(struct blockmap *bm);
/* Forgets all pages; none is dirty. */
void bm_cache_drop(struct blockmap *bm);
bool cache_crowded(const struct blockmap *bm);
/* NULL: not in memory. */
struct page *cache_find(const struct blockmap *bm, uint64_t key);
/* The page of a block's entry. load: from disk if need be. */
int cache_table_page(struct blockmap *bm, uint64_t block, struct page **out, struct img_error *err);
/* The bitmap of a PARTIAL block. fresh: it was just given a place, all bits are clear. */
int cache_bitmap(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, bool fresh, struct page **out,
		 struct img_error *err);
void cache_dirty(struct blockmap *bm, struct page *p);
uint32_t page_bytes(const struct blockmap *bm);
uint64_t slot_of(const struct blockmap *bm, uint64_t block);

/* 1: a page is missing, and may_load is not given. */
int entry_get(struct blockmap *bm, uint64_t block, bool may_load, struct blockmap_entry *out, struct img_error *err);
/* Block is FREE or ZERO, and its page in memory: how many from it on, of the same page and below end, are the same.
 * end: no more than there are blocks. */
uint64_t like_run(struct blockmap *bm, uint64_t block, uint64_t end);
/* The same of blocks that are FREE; 0: this one is not. For writing, as entry_get() that may load. */
uint64_t free_run(struct blockmap *bm, uint64_t block, uint64_t end);
/* For writing. */
int entry_set(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, struct img_error *err);

bool bit_get(const struct blockmap *bm, const uint8_t *bits, uint64_t sector);
void bits_set(const struct blockmap *bm, uint8_t *bits, uint64_t first, uint64_t nr);
/* How many of the sectors [first, end) are like the first one. */
uint64_t bit_run(const struct blockmap *bm, const uint8_t *bits, uint64_t first, uint64_t end);

/* ---- blockmap_read.c ---- */

/* A range of the disk of one kind: FREE (or PARTIAL's clear bits), ZERO, or DATA at host_off. */
struct run {
	enum blockmap_state state;
	uint64_t bytes, host_off;
};
/* What is at off, at most bytes. Takes map. */
int run_at(struct blockmap *bm, uint64_t off, uint64_t bytes, struct run *out, struct img_error *err);
/* The same under map; 1 as entry_get. */
int run_at_mapped(struct blockmap *bm, uint64_t off, uint64_t bytes, bool may_load, struct run *out,
		  struct img_error *err);

/* ---- blockmap_write.c: gate is held ---- */

/* buf NULL: zeros. */
int write_range(struct blockmap *bm, const uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* Waits until no claim covers a block of the range. Returns with map held for writing and nothing claimed there. */
void claim_wait_map(struct blockmap *bm, uint64_t first, uint64_t nr);
bool claimed(struct blockmap *bm, uint64_t first, uint64_t nr);
/* Does anything lie below this layer, or will it? */
bool backed(const struct blockmap *bm);
/* Room for nr blocks; map is held for writing. */
int allocate_places(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err);

/* ---- blockmap_flush.c ---- */

/* Everything, in order. gate is held, either way. */
int flush_all(struct blockmap *bm, struct img_error *err);
/* If the cache is full of dirty pages. */
int flush_if_crowded(struct blockmap *bm, struct img_error *err);

static inline uint64_t place_bytes(const struct blockmap *bm)
{
	return bm->shape.prefix_bytes + bm->shape.block_bytes;
}

/* Is the data of neighbouring places one piece? */
static inline bool dense(const struct blockmap *bm)
{
	return bm->shape.place_stride == bm->shape.block_bytes;
}

#endif
