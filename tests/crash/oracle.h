/* SPDX-License-Identifier: MIT */
/*
 * What may be on the disk. Every write of a test fills its sectors with a pattern that names the write (an id from 1 to
 * 63; 0 is zeros) and the sector, so that a sector read back tells which write it is from. A *world* is one state that
 * an image may be found in: for each sector of the head the set of ids that are allowed, and snapshots whose every
 * sector is known. An operation that is atomic and under way gives two worlds, before and after; an image is right when
 * it fits one of them.
 */
#ifndef TESTS_ORACLE_H
#define TESTS_ORACLE_H

#include "image.h"

#define SECTOR	    512u
#define MAX_SECTORS 2560u /* 1.25 MiB: a limg leaf of 4 KiB blocks is 1 MiB */
#define MAX_VM	    128u
#define MAX_SNAPS   5u
#define MAX_WORLDS  16u

/* Where a format keeps machine state. */
enum machine_state {
	VM_NOWHERE,
	VM_EVERYWHERE,	 /* in snapshots, and what is worked on outlives the handle */
	VM_IN_SNAPSHOTS, /* what is worked on is gone with the handle: of the head it is not looked at */
};
#define VM_NOT_SEEN UINT32_MAX

/* Content that is known exactly. */
struct content {
	uint32_t sectors, vm_sectors; /* vm_sectors of an observed head may be VM_NOT_SEEN */
	uint8_t id[MAX_SECTORS], vm[MAX_VM];
};

struct snap_content {
	char name[16];
	struct content content;
};

struct world {
	bool absent;					   /* there is no such image; nothing else counts */
	struct content latest;				   /* the head as the last writer left it */
	uint64_t allowed[MAX_SECTORS], vm_allowed[MAX_VM]; /* bit per id */
	unsigned nr_snaps;
	struct snap_content snap[MAX_SNAPS];
	bool has_new; /* the file that convert makes is there */
	struct content made;
};

struct worlds {
	unsigned nr;
	struct world w[MAX_WORLDS]; /* the last one is what the running program sees */
};

/* What was found in an image. */
struct observed {
	bool absent;
	bool committing; /* of an interrupted commit: it can be read, and is not changed before that is run again */
	struct content head;
	unsigned nr_snaps;
	struct snap_content snap[MAX_SNAPS];
	bool has_new;
	struct content made;
};

#define VM_SEED 0x10000u /* sectors of machine state are numbered from here in their patterns */

void pattern_fill(void *buf, uint64_t bytes, uint32_t first_sector, uint8_t id);

/* Reads everything that img shows into *out. 0, or -1 with a sentence in why: unreadable, or a sector that no write
 * wrote. */
int observe(struct img *img, enum machine_state vm, struct observed *out, char *why, size_t why_bytes);
int observe_disk(struct img *img, struct content *out, char *why, size_t why_bytes);
bool observed_equal(const struct observed *a, const struct observed *b);
/* Does what was seen fit one of the worlds? why says how it differs from the last one. */
bool worlds_allow(const struct worlds *ws, const struct observed *seen, char *why, size_t why_bytes);

/* One world: exactly what was seen. */
void worlds_of_observed(const struct observed *seen, struct worlds *ws);

/* ---- what operations do to worlds ---- */

struct world *worlds_latest(struct worlds *ws);
void worlds_append(struct worlds *ws, const struct world *w);
/* Only the latest is left, with exactly what its writer sees. */
void worlds_settle(struct worlds *ws);
/* The same for the disk only: a flush covers no machine state (libimg.h: it is durable with a snapshot or checkpoint). */
void worlds_settle_disk(struct worlds *ws);
void world_settle(struct world *w);
/* In every world: these sectors may now also hold id; the latest writer sees it. */
void worlds_write(struct worlds *ws, uint32_t first, uint32_t nr, uint8_t id);
void worlds_write_vm(struct worlds *ws, uint32_t first, uint32_t nr, uint8_t id);
struct snap_content *world_snap(struct world *w, const char *name);
void world_drop_snap(struct world *w, const char *name);
void world_set_size(struct world *w, uint32_t sectors);
/* The head becomes exactly this. */
void world_set_head(struct world *w, const struct content *c);

#endif
