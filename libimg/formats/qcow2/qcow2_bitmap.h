/* SPDX-License-Identifier: MIT */
/*
 * Persistent dirty bitmaps; what the files about them share.
 *
 * What a bitmap says while it is followed is what its clusters on disk say, up to disk_bits, or what its pages in
 * memory say: pages hold only what was set since, so that following needs no reading, and memory in proportion to what
 * is written. On disk it is marked in use meanwhile; at the end the pages are merged into new clusters.
 *
 * Changes on disk are atomic each by one write inside a sector: of the flags of a directory entry, of its table's
 * offset, or, where entries come and go, of the header's first sector with the place of a new directory. What they
 * refer to is synced before.
 *
 * Locks: ops, outermost; one operation at a time, no note. Then map (engine), where clusters are taken or given back
 * and the list changes. Then lock, innermost: rd for notes, wr for changes of who is followed, of pages as a whole, and
 * of the list.
 */
#ifndef QCOW2_BITMAP_H
#define QCOW2_BITMAP_H

#include "qcow2_engine.h"

#define BITMAP_GRANULARITY_MIN 9u
#define BITMAP_GRANULARITY_MAX 31u
#define BITMAP_MAX_BYTES       (UINT64_C(512) << 20) /* of content; QEMU's */
#define BITMAP_PAGES_MAX_BYTES (UINT64_C(256) << 20) /* of memory, all bitmaps of an engine together */
#define BITMAP_TYPE_DIRTY      1
#define BITMAP_FLAGS_KNOWN     (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_COMPATIBLE)
#define BITMAP_ENTRY_FLAGS_OFF 12u
#define BITMAP_ALL_ONES	       UINT64_C(1) /* table entry */

/* Bits as on disk, in pieces of a cluster; absent: all clear. Set by several threads at once. */
struct bitmap_pages {
	_Atomic(uint8_t *) *at; /* NULL: none */
	uint64_t nr;
	_Atomic bool lost; /* some bits could not be kept */
};

struct qcow2_bitmap {
	char *name; /* owned, NUL-terminated; may hold anything else */
	uint32_t name_bytes;
	uint8_t *extra; /* owned */
	uint32_t extra_bytes;
	uint64_t entry_off; /* in the file */
	uint64_t table_off;
	uint32_t table_entries;
	uint32_t flags; /* as on disk */
	uint8_t type, granularity_bits;
	bool followed;	    /* by this handle: in use on disk because of us */
	uint64_t bits;	    /* of the present disk */
	uint64_t disk_bits; /* so many of the content on disk count, the rest is clear */
	bool has_tail; /* the content on disk has bits behind them, which others must not find when the disk grows */
	struct bitmap_pages pages;
};

struct qcow2_bitmaps {
	pthread_mutex_t ops;
	pthread_rwlock_t lock;
	struct qcow2_bitmap **list;
	uint32_t nr;
	bool active;  /* ops: begin() was called */
	bool damaged; /* the directory; why says how. The list is empty then */
	struct img_error why;
	uint64_t disk_bytes;	       /* lock: what lies behind, a resize clears without changing the disk */
	_Atomic unsigned nr_recording; /* followed and enabled */
	_Atomic uint64_t page_bytes;
};

/* ---- bitmap.c ---- ops held */
/* Marked in use on disk (without sync), and from here on the pages collect what happens. What we cannot follow is
 * marked only. */
int qcow2_bitmap_follow(struct qcow2_engine *e, struct qcow2_bitmap *b, struct img_error *err);
void qcow2_bitmap_unfollow(struct qcow2_engine *e, struct qcow2_bitmap *b);
/* In memory only, for one that is followed. */
void qcow2_bitmap_set_flags(struct qcow2_engine *e, struct qcow2_bitmap *b, uint32_t flags);

/* ---- bitmap_dir.c ---- */
bool qcow2_bitmap_stale(const struct qcow2_engine *e);
uint64_t qcow2_bitmap_bits(uint64_t disk_bytes, unsigned granularity_bits);
/* Clusters that so many bits take. */
uint64_t qcow2_bitmap_clusters(const struct qcow2_engine *e, uint64_t bits);
/* The rules for an entry, apart from in use. */
int qcow2_bitmap_check(const struct qcow2_engine *e, const struct qcow2_bitmap *b, struct img_error *err);
bool qcow2_bitmap_known(const struct qcow2_bitmap *b); /* of a kind that we understand */
/* Neither in use by somebody else nor stale, and good. */
bool qcow2_bitmap_usable(const struct qcow2_engine *e, const struct qcow2_bitmap *b);
void qcow2_bitmap_free(struct qcow2_bitmap *b); /* NULL: nothing */
/* ops: the directory with these bitmaps replaces the present one; list is owned by e->bitmaps after success. */
int qcow2_bitmap_dir_write(struct qcow2_engine *e, struct qcow2_bitmap **list, uint32_t nr, struct img_error *err);
/* ops: stale ones, and a damaged directory, are forgotten. */
int qcow2_bitmap_drop_stale(struct qcow2_engine *e, struct img_error *err);
/* ops: in place; without sync. */
int qcow2_bitmap_write_flags(struct qcow2_engine *e, struct qcow2_bitmap *b, uint32_t flags, struct img_error *err);
int qcow2_bitmap_write_table_place(struct qcow2_engine *e, struct qcow2_bitmap *b, uint64_t off, uint32_t nr,
				   struct img_error *err);
int qcow2_bitmap_sync(struct qcow2_engine *e, struct img_error *err);

/* ---- bitmap_data.c ---- */
int qcow2_bitmap_pages_init(struct bitmap_pages *p, uint64_t nr, struct img_error *err);
void qcow2_bitmap_pages_free(struct qcow2_engine *e, struct bitmap_pages *p);
/* Bits [first, last]; failure is noted as lost. */
void qcow2_bitmap_pages_set(struct qcow2_engine *e, struct bitmap_pages *p, uint64_t first, uint64_t last);
/* lock wr, for a disk of another size. */
void qcow2_bitmap_pages_resize(struct qcow2_engine *e, struct bitmap_pages *p, uint64_t bits);

/* Table of b as host integers (malloc), checked. */
int qcow2_bitmap_table_load(struct qcow2_engine *e, const struct qcow2_bitmap *b, uint64_t **out,
			    struct img_error *err);
/* Runs of set bits from bit on, ascending; fn returns false to stop. ops held. */
typedef bool (*qcow2_bitmap_run_fn)(void *ctx, uint64_t first, uint64_t nr);
int qcow2_bitmap_scan(struct qcow2_engine *e, const struct qcow2_bitmap *b, uint64_t bit, qcow2_bitmap_run_fn fn,
		      void *ctx, struct img_error *err);

/* New content on its way to disk. ops held. */
struct bitmap_change {
	struct qcow2_bitmap *b;
	uint64_t *old, *new; /* tables, owned; [n] entries */
	uint32_t nr_old, nr_new;
	uint64_t new_off;
};
/* Present content (not if clear) and pages (NULL: none) in new clusters, what is unchanged in the old ones. Not synced.
 */
int qcow2_bitmap_change_prepare(struct qcow2_engine *e, struct qcow2_bitmap *b, const struct bitmap_pages *pages,
				bool clear, struct bitmap_change *c, struct img_error *err);
/* Syncs what is new, switches to it, syncs, gives back the old. */
int qcow2_bitmap_change_commit(struct qcow2_engine *e, struct bitmap_change *c, size_t nr, struct img_error *err);
/* Instead of a commit: gives back the new. */
void qcow2_bitmap_change_abort(struct qcow2_engine *e, struct bitmap_change *c);
/* Clusters for metadata: taken, and known as such; *off is 0 if that fails. map wr. */
int qcow2_bitmap_take(struct qcow2_engine *e, uint64_t clusters, uint64_t *off, struct img_error *err);
int qcow2_bitmap_give(struct qcow2_engine *e, uint64_t off, uint64_t clusters, struct img_error *err);
/* Gives back table and clusters; nothing if the table cannot be trusted. map wr. */
int qcow2_bitmap_give_all(struct qcow2_engine *e, const struct qcow2_bitmap *b, struct img_error *err);

#endif
