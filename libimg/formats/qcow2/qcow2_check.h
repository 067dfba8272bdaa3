/* SPDX-License-Identifier: MIT */
/*
 * The inside of the check. It works on the file alone, past cache, tables and lists of the engine, which may not even
 * be loaded:
 *
 *   check_counts.c   references by cluster, sparse and bounded
 *   check_walk.c     L1 and L2 tables: what they refer to, and whether their entries make sense
 *   check_tables.c   everything else that refers to clusters: snapshot table, bitmaps, refcount table and blocks
 *   check_refs.c     compares references with refcounts, and COPIED flags with both; mends them in place
 *   repair.c         a new refcount structure
 *   check.c          the order of it all, findings, progress
 */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "qcow2_engine.h"

/* ---- check_counts.c ---- */

/* Integer to integer, growing; keys below UINT64_MAX. */
struct map64 {
	struct map64_slot {
		uint64_t key, value; /* key is one more than what was put */
	} * slot;
	uint64_t nr;
	unsigned bits; /* log2 of the slots; 0: none */
};
/* NULL: not there. Valid until the next put. */
uint64_t *map64_find(const struct map64 *m, uint64_t key);
/* The value's place, 0 where it is new; NULL: no memory. */
uint64_t *map64_put(struct map64 *m, uint64_t key);
void map64_free(struct map64 *m);

/* What uses a cluster, and what its refcount is. */
enum cluster_use {
	USE_ALONE = 1u << 0, /* metadata that never has a second owner */
	USE_L2 = 1u << 1,    /* shared by L1 tables only */
	USE_DATA = 1u << 2,
	USE_PACKED = 1u << 3,  /* compressed */
	USE_REFS = 1u << 4,	/* the refcount structure itself, which a repair may replace */
	USE_REF_ONE = 1u << 5, /* the refcount is one: on disk, or, in a repair, afterwards */
};
#define COUNTS_PAGE_SHIFT 12u
#define COUNTS_MAX_BYTES  (UINT64_C(1) << 30) /* of pages: half a billion clusters */

struct counts {
	struct map64 pages;    /* cluster >> COUNTS_PAGE_SHIFT -> uint16_t[]: count, and uses above it */
	struct map64 overflow; /* counts that do not fit */
	uint64_t bytes;
	uint64_t last_index; /* of the page that was used last */
	uint16_t *last;
};
int counts_add(struct counts *c, uint64_t first, uint64_t nr, uint64_t times, unsigned uses, struct img_error *err);
/* References of a cluster and what uses it (enum cluster_use; may be NULL). */
uint64_t counts_get(struct counts *c, uint64_t cluster, unsigned *uses);
int counts_set(struct counts *c, uint64_t cluster, uint64_t count, struct img_error *err);
/* Only where there is a count. */
void counts_mark_one(struct counts *c, uint64_t cluster, bool one);
/* Forgets a use; was it there? */
bool counts_take_use(struct counts *c, uint64_t cluster, unsigned use);
/* Is any cluster of [first, first + nr) referenced? May say yes wrongly, never no. */
bool counts_any(const struct counts *c, uint64_t first, uint64_t nr);
/* Indexes of all pages, ascending, malloc'ed; NULL: no memory, or (nr 0) none. */
uint64_t *counts_pages(const struct counts *c, uint64_t *nr);
void counts_free(struct counts *c);

/* ---- check.c ---- */

/* An L1 table and all that it leads to. Snapshots that share one are one tree. */
struct check_tree {
	uint64_t l1_off;
	uint32_t l1_entries;
	uint32_t times;
	bool active;
	const char *name; /* of the (first) snapshot, "" for the head */
};

/* An L2 table, whoever refers to it. */
struct check_l2 {
	uint64_t off;
	uint64_t times;
	uint32_t tree, index; /* where it was met first; in the head, if that uses it */
	bool active;
};

enum block_state { BLOCK_NONE, BLOCK_GOOD, BLOCK_BAD };

struct check {
	struct qcow2_engine *e;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
	bool repair;
	const char *part; /* the snapshot that alone is checked, so that refcounts may be higher than what it needs;
			     NULL: all */
	const char *where;
	uint64_t file_bytes;
	uint64_t dangling_end; /* of what is referred to not far behind the end of the file: nothing is to be put there */

	struct counts counts;
	struct check_tree *tree;
	uint32_t nr_trees;
	struct map64 tree_by_off;
	uint64_t l1_bytes; /* of all trees */
	struct check_l2 *l2;
	uint64_t nr_l2, cap_l2;
	struct map64 l2_by_off;

	uint64_t *table; /* refcount table, offsets of blocks */
	uint8_t *block;	 /* enum block_state of each */
	uint64_t nr_blocks;

	struct qcow2_snapshot *snapshots; /* borrowed or owned */
	bool own_snapshots;
	uint64_t bitmap_bytes; /* of directory, tables and data */
	bool bitmaps_cut;      /* they are more than the file holds */
	uint8_t *new_snapshots; /* the table is to be replaced by this */
	uint64_t new_snapshots_bytes, old_snapshots_bytes;

	bool packed_copied; /* some compressed cluster has the flag COPIED */
	bool incomplete;    /* references may be missing: nothing is freed */
	bool rebuild;	    /* refcounts cannot be mended where they stand */
	uint8_t *buf;	    /* max(cluster, CHECK_BUF_BYTES) */
	uint64_t done_bytes, total_bytes, next_report;
};
#define CHECK_BUF_BYTES (UINT64_C(64) << 10)

/* What a finding is about; counts as weight in the result. rule is the NN of QCOW2-NN, 0: none. */
struct check_at {
	enum img_finding_kind kind;
	unsigned rule;
	uint64_t file_off, guest_off;
	uint64_t weight;
	bool repaired;
};
void check_found(struct check *k, const struct check_at *at, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The short form: damage that stays. */
#define check_damage(k, nr, off, guest, times, ...)                 \
	check_found((k),                                            \
		    &(struct check_at){ .kind = IMG_FINDING_DAMAGE, \
					.rule = (nr),               \
					.file_off = (off),          \
					.guest_off = (guest),       \
					.weight = (times) },        \
		    __VA_ARGS__)
/* A failed read becomes a finding and makes the check incomplete; what has nothing to do with the image is passed on. */
int check_unreadable(struct check *k, int rc, const struct img_error *why, struct img_error *err);
/* Reads from the image file; what lies past its end is zeros. */
int check_read(struct check *k, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* Counts bytes of metadata as seen; IMG_E_CANCELLED. */
int check_progress(struct check *k, uint64_t bytes, struct img_error *err);
/* Does the range end a cluster or more past the end of the file? Its last cluster need not be whole. */
bool check_beyond(const struct check *k, uint64_t off, uint64_t bytes);
/* References to every cluster of a range. What lies a cluster or more past the end of the file is a finding instead. */
int check_refer(struct check *k, uint64_t off, uint64_t bytes, uint64_t times, unsigned uses, uint64_t guest_off,
		struct img_error *err);

/* ---- check_walk.c ---- */
int check_trees(struct check *k, struct img_error *err);
/* Compares the head's COPIED flags with refcounts (USE_REF_ONE), and mends them. */
int check_copied(struct check *k, struct img_error *err);

/* ---- check_tables.c ---- */
/* The trees of head and snapshots, and what the snapshot table itself takes. */
int check_snapshots(struct check *k, struct img_error *err);
int check_bitmaps(struct check *k, struct img_error *err);
int check_refcount_table(struct check *k, struct img_error *err);
/* References of the refcount structure itself are taken back, before it is replaced. */
int check_forget_refcounts(struct check *k, struct img_error *err);

/* ---- check_refs.c ---- */
int check_refs(struct check *k, struct img_error *err);
/* What else is in a cluster of the old refcount structure, whose reference was taken back. */
void check_replaced(struct check *k, uint64_t cluster);

/* ---- repair.c ---- */
int repair_rebuild(struct check *k, struct img_error *err);

#endif
