/* SPDX-License-Identifier: MIT */
/*
 * The engine of formats that map a disk by one table of equal blocks: VDI, VHD, VHDX, VMDK, Parallels and their like.
 * No driver: formats of that kind include this header, describe their table by a struct blockmap_shape and a few
 * functions, and get reading, writing, zeroing, status, flush, check and the steps of a resize.
 *
 *   entry    what the table says of one block: FREE (the backing, or zeros), ZERO, DATA at a place of the file, or
 *            PARTIAL: a bitmap says sector by sector whether the block or the backing holds it.
 *   page     4 KiB of the table, or the bitmap of one block: the unit that is read, cached and written.
 *   prefix   bytes of the format's own at the head of each block's place (VHD's bitmap, VDI's extra bytes).
 *
 * Order of writes (BM-1 to BM-4 in blockmap.c): a new block's data is written first, its entry changes in memory only;
 * flush makes data durable, writes what is dirty of table and bitmaps, and makes that durable. A crash leaves each
 * entry old or new, never one that leads to what was not written; room that no entry leads to is a leak at the end.
 * A block that has a place keeps it: zeroing gives its host space back (a hole) without touching the table. So no place
 * is ever used twice, and there is nothing to order but the above. What a write that fails or is cut off by a crash
 * leaves are whole 512-byte sectors, old or new: an entry lies within one, and a session that saw the failure writes no
 * more, or the same again.
 *
 * Threads: all functions but open, free and those marked "alone" may be called at once. Reads and overwrites run in
 * parallel; new blocks are claimed under a lock; two writes to the same new block go one after the other.
 * Locks, in the order in which they are taken: gate (shared by requests; exclusive: blockmap_stop()), flushing, map.
 */
#ifndef BLOCKMAP_H
#define BLOCKMAP_H

#include "budget.h"
#include "node.h"

#define BLOCKMAP_PAGE_BYTES 4096u
#define BLOCKMAP_ENTRY_MAX  8u /* bytes */

enum blockmap_state { BLOCKMAP_FREE, BLOCKMAP_ZERO, BLOCKMAP_DATA, BLOCKMAP_PARTIAL };

struct blockmap_entry {
	enum blockmap_state state;
	uint64_t off; /* DATA, PARTIAL: of the block's place in the file, prefix first */
};

/* One write of metadata; buf is valid during the call. */
struct blockmap_write {
	const void *buf;
	uint64_t bytes, off;
};

struct blockmap;

/* What a format does by itself. Members are called as noted; NULL: the plain thing. */
struct blockmap_ops {
	/*
	 * Entry of a block from its bytes on disk, and back. decode refuses what makes no sense (IMG_E_CORRUPT); that a
	 * place lies inside the file is the engine's to check. encode gets the old bytes and keeps what is not the
	 * engine's. map is held; no I/O.
	 */
	int (*decode)(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		      struct img_error *err);
	void (*encode)(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry);
	/* Index of a block's entry in the table; NULL: the block's number. Entries of other things stand between
	 * (VHDX). */
	uint64_t (*slot)(const struct blockmap *bm, uint64_t block);
	/*
	 * Where page `page` of the table lies; NULL: table_off + page * page_bytes. *off 0: nowhere, all of
	 * its blocks are free; with make it is given a place, whose content may be anything (VMDK). map is held for
	 * writing.
	 */
	int (*locate)(struct blockmap *bm, uint64_t page, bool make, uint64_t *off, struct img_error *err);
	/* Where the bitmap of a PARTIAL block lies; NULL: at the head of its place. make: it is to be written. map held
	 * for writing. */
	int (*locate_bitmap)(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, bool make,
			     uint64_t *off, struct img_error *err);
	/*
	 * Room for nr blocks in a row: *off is where the engine would put them, behind all others and aligned; may be
	 * moved on, or refused. NULL: it is fine. map is held for writing; no I/O.
	 */
	int (*allocate)(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err);
	/*
	 * The last places that allocate gave, at off, were not used: what the end of all places is now. NULL, with
	 * allocate: they stay as they are. map is held for writing; no I/O.
	 */
	uint64_t (*release)(struct blockmap *bm, uint64_t off);
	/*
	 * Before the first change since it was opened, once: what tells others that the content changes. To be made
	 * durable by itself. A failure fails the request, and is tried again by the next one.
	 */
	int (*begin)(struct blockmap *bm, struct img_error *err);
	/*
	 * In each flush that follows an allocation, before data is made durable: what must be on disk before entries
	 * lead to new places (a count of blocks, a footer behind them). end: blockmap_end() at that time.
	 */
	int (*settle)(struct blockmap *bm, uint64_t end, struct img_error *err);
	/* Writes pages (ascending, neighbours in one) and makes them durable, data being so already; NULL: plain
	 * writes, then one flush of the file. One call at a time, as settle and sync. */
	int (*store)(struct blockmap *bm, const struct blockmap_write *writes, size_t nr, struct img_error *err);
	/* Makes the file's data durable; NULL: node_flush of the file. */
	int (*sync)(struct blockmap *bm, struct img_error *err);
};

/* The geometry; all of it checked by the format, and again by blockmap_open() where a mistake would hurt. */
struct blockmap_shape {
	uint64_t disk_bytes;  /* what the guest sees */
	uint64_t block_bytes; /* of data; a multiple of 512 */
	uint64_t nr_blocks;   /* at least disk_bytes / block_bytes, rounded up */
	uint64_t nr_slots;    /* entries of the table; 0: nr_blocks */
	uint32_t entry_bytes; /* 4 or 8 */
	uint64_t table_off;
	uint32_t page_bytes;   /* 0: BLOCKMAP_PAGE_BYTES; a multiple of entry_bytes */
	uint32_t prefix_bytes; /* of each place */
	uint64_t place_align;  /* of new places; 0: 512 */
	uint64_t place_stride; /* from one place to the next of the same allocation; 0: prefix and block */
	uint64_t end_off;      /* the first byte behind all places, for a writer: new blocks go there or later */
	struct node *file;     /* that the table and the blocks are in; NULL: node->file */
	uint64_t disk_off;     /* of block 0 in node's disk, for what is below: an engine may hold a part of the disk */

	bool has_zero;	       /* entries can say ZERO */
	uint32_t bitmap_bytes; /* of one block; 0: no entry is PARTIAL */
	uint32_t sector_bytes; /* of one bit */
	bool bitmap_msb_first; /* the first sector is bit 7 of byte 0 */
	bool bitmap_always; /* DATA blocks of an image without backing have the bitmap too, which is kept full (VHD) */
};

/*
 * Opens the engine on shape->file. format is the caller's, for its ops. args: cache_bytes, budget, bulk, writable. On
 * success *out is to be freed with blockmap_free(). Nothing is read yet.
 */
int blockmap_open(struct node *node, const struct blockmap_shape *shape, const struct blockmap_ops *ops, void *format,
		  const struct driver_open *args, struct blockmap **out, struct img_error *err);
/* Frees memory only: flush first. NULL is fine. */
void blockmap_free(struct blockmap *bm);

void *blockmap_format(const struct blockmap *bm);
struct node *blockmap_node(const struct blockmap *bm);
/* Valid until the next blockmap_reshape(). */
const struct blockmap_shape *blockmap_shape(const struct blockmap *bm);
/* The first byte behind all places. */
uint64_t blockmap_end(const struct blockmap *bm);
/* Moves it on, for room that the format itself takes there. map is held (in ops), or alone. */
void blockmap_set_end(struct blockmap *bm, uint64_t end);
/* Room for something of the format's own behind all places, which reads as zeros: durably so with the next flush,
 * before what that writes of the table. map is held for writing (in ops), or alone. */
int blockmap_take_room(struct blockmap *bm, uint64_t bytes, uint64_t *off, struct img_error *err);
/* Entries that belong to no block, entry_bytes in raw. map is held for writing (in ops), or alone. */
int blockmap_slot_get(struct blockmap *bm, uint64_t slot, uint8_t *raw, struct img_error *err);
int blockmap_slot_set(struct blockmap *bm, uint64_t slot, const uint8_t *raw, struct img_error *err);

/* ---- requests, as the driver's members of these names ------------------------------------------------------------ */

uint64_t blockmap_size(const struct blockmap *bm);
int blockmap_pread(struct blockmap *bm, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int blockmap_pwrite(struct blockmap *bm, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int blockmap_zero(struct blockmap *bm, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int blockmap_discard(struct blockmap *bm, uint64_t bytes, uint64_t off, struct img_error *err);
int blockmap_status(struct blockmap *bm, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		    size_t *nr, struct img_error *err);
/* After a failure that may have lost something the engine is broken: it refuses changes (IMG_E_POISONED). */
int blockmap_flush(struct blockmap *bm, struct img_error *err);
/* IMG_E_READONLY, IMG_E_POISONED. */
int blockmap_may_change(struct blockmap *bm, struct img_error *err);
/* ops->begin, if it is due; for changes that the format makes by itself. */
int blockmap_touch(struct blockmap *bm, struct img_error *err);
void blockmap_break(struct blockmap *bm);
/* A failed write left places that are nobody's, before others. Stopped, or alone. */
bool blockmap_lost_places(const struct blockmap *bm);
/* The last flush, for the driver's close; makes all durable, after bulk too. IMG_E_POISONED if broken. */
int blockmap_finish(struct blockmap *bm, struct img_error *err);

/* ---- steps of resize and of the end of a commit: alone ----------------------------------------------------------- */

/* Waits for all requests to end, flushes, and keeps others out until blockmap_start(). On failure nobody is kept out. */
int blockmap_stop(struct blockmap *bm, struct img_error *err);
void blockmap_start(struct blockmap *bm);
/* Between the two: */
int blockmap_flush_stopped(struct blockmap *bm, struct img_error *err);
int blockmap_status_stopped(struct blockmap *bm, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			    size_t *nr, struct img_error *err);
int blockmap_get(struct blockmap *bm, uint64_t block, struct blockmap_entry *out, struct img_error *err);
/*
 * The first block of [block, end) that is not FREE, or that blockmap_get() fails on; end if there is none. For walks
 * over tables of which most is empty. Looks at some thousand blocks at most, so that the walk can tell of its progress:
 * what it returns may be FREE.
 */
uint64_t blockmap_next_used(struct blockmap *bm, uint64_t block, uint64_t end);
/* How many blocks from this one on, below end, have their entries on a page that cannot be (IMG_E_CORRUPT); 0: it can. */
uint64_t blockmap_unreadable(struct blockmap *bm, uint64_t block, uint64_t end);
/* How many blocks from this one on, below end, have entries that are stored as its is: 1 at least, and not all. */
uint64_t blockmap_same(struct blockmap *bm, uint64_t block, uint64_t end);
/* In memory until the next flush. Blocks up to nr_slots, beyond the present disk too. */
int blockmap_set(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, struct img_error *err);
/* All blocks of [first, first + nr) become FREE. Pages that are not there stay away. */
int blockmap_clear(struct blockmap *bm, uint64_t first, uint64_t nr, struct img_error *err);
/*
 * The disk beyond from, to the end of its block, reads as zeros afterwards, whatever the backing or the block's place
 * hold: for growing a disk that ends inside a block. Reaches over the disk's end. Durable with the next flush.
 */
int blockmap_zero_tail(struct blockmap *bm, uint64_t from, struct img_error *err);
/* The place of a DATA block holds zeros, others stay. Durable with the next flush. */
int blockmap_wipe(struct blockmap *bm, uint64_t block, struct img_error *err);
/*
 * Copies a block's place (prefix and data) to `to`, 0: behind all others, and makes its entry lead there, in memory
 * until the next flush. What `to` holds must be nobody's, durably.
 */
int blockmap_move(struct blockmap *bm, uint64_t block, uint64_t to, struct img_error *err);
/*
 * A new geometry, after the format wrote it. Only sizes, counts, table_off, end_off and what is said of bitmaps may
 * differ; pages are forgotten, so nothing may be dirty where table_off or the meaning of entries changed. IMG_E_NOMEM
 * leaves all as it was.
 */
int blockmap_reshape(struct blockmap *bm, const struct blockmap_shape *shape, struct img_error *err);

/* ---- check (blockmap_check.c) ------------------------------------------------------------------------------------ */

/*
 * Does the place of a block lie inside a file of that size? The one in which the disk ends may be cut off there, unless
 * whole. Of the shape only the sizes of disk, block and prefix are looked at.
 */
bool blockmap_place_inside(const struct blockmap_shape *shape, uint64_t block, uint64_t off, uint64_t file_bytes,
			   bool whole);

/* How the format calls the invariants that the engine checks; "" where it has none. */
struct blockmap_rules {
	const char *entry;   /* an entry makes sense, and its place lies inside the file */
	const char *overlap; /* no two places overlap, none lies over other structures */
	const char *leak;    /* every place belongs to an entry; NULL: the format looks for itself */
	/* Structures among the places: neither leaks, nor may a place lie over one. Ascending, without overlaps. */
	const struct img_range *taken;
	size_t nr_taken;
	bool closes_gaps; /* a repair by the caller does away with leaks, if places may move: they are told as repaired
			   */
	bool whole;	  /* see blockmap_place_inside() */
	uint64_t end_off; /* places end there at the latest, because something follows them; 0: the file's end */
	/* Moves that to `end`, zeros up to there, durably; by steps of which each leaves the image as good as it was.
	 * NULL: the file becomes longer. */
	int (*extend)(struct blockmap *bm, uint64_t end, struct img_error *err);
};
struct blockmap_census {
	uint64_t nr_free, nr_zero, nr_data, nr_partial;
	uint64_t nr_overlaps;
	uint64_t nr_cut;    /* places of which the end is not in the file, and that no repair has mended */
	uint64_t nr_bad;    /* entries that were told as damage */
	uint64_t end_off;   /* the first byte behind all places */
	uint64_t first_off; /* of the lowest place; UINT64_MAX: none */
};
/* What a repair of the caller's wants to know before it copies places from here to there. */
static inline bool blockmap_may_move(const struct blockmap_census *census)
{
	return census->nr_overlaps == 0 && census->nr_cut == 0;
}
/*
 * Walks all entries and tells what is wrong: bad entries, places out of [data_off, the file's end), overlaps. fn may be
 * NULL. repair: entries that lead nowhere become free (what they held is lost either way); where the file ends inside
 * a place it becomes longer, by zeros, so that what is there of the block stays (a block device cannot: nothing is done
 * there); overlaps stay. Alone, or on an engine opened for check. Adds to out; fills census. IMG_E_CANCELLED. Memory is
 * bounded, whatever the table says.
 */
int blockmap_check(struct blockmap *bm, const struct blockmap_rules *rules, uint64_t data_off, bool repair,
		   img_finding_fn fn, void *ctx, const struct img_progress *progress, struct img_check_result *out,
		   struct blockmap_census *census, struct img_error *err);

/* ---- measure ----------------------------------------------------------------------------------------------------- */

/* Bytes of blocks (with prefix) that the data of args needs, in *data, and all of the disk's, in *full. IMG_E_LIMIT. */
int blockmap_measure(const struct img_measure_args *args, uint64_t block_bytes, uint64_t prefix_bytes, uint64_t *data,
		     uint64_t *full, struct img_error *err);

#endif
