/* SPDX-License-Identifier: MIT */
/*
 * Filter "crash": records what reaches the host, so that tests can build every state in which a power failure could
 * have left the disk. One log serves all files of a test, in the order in which the host saw things; it belongs to the
 * test and outlives the nodes.
 *
 * The model: what a file received before a flush of that file began is durable once that flush returned. Everything
 * later is volatile: at a crash each such entry independently is there, or not, or in part, whatever the order of
 * issue. Names (create, rename) are durable after a sync of the folder.
 */
#ifndef FILTERS_CRASH_H
#define FILTERS_CRASH_H

#include "node.h"

extern const struct img_driver crash_driver;

struct crash_log;

enum crash_kind {
	CRASH_WRITE,
	CRASH_ZERO,
	CRASH_DISCARD,
	CRASH_TRUNCATE,
	CRASH_ALLOCATE,
	CRASH_FLUSH,	/* returned; covers what its file received before entry `covers` */
	CRASH_CREATE,	/* `file` exists, under the name `name` */
	CRASH_RENAME,	/* `file` moved to the name `name` */
	CRASH_UNLINK,	/* the name `name` is gone */
	CRASH_SYNC_DIR, /* returned; covers the name entries before it */
	CRASH_MARK,	/* the test's own: `off` is its number */
};

struct crash_entry {
	enum crash_kind kind;
	unsigned file;	     /* number given by the test */
	uint64_t off, bytes; /* TRUNCATE: bytes is the new size */
	size_t covers;	     /* FLUSH: index of the first entry that it says nothing about */
	uint8_t *data;	     /* WRITE: bytes of them, owned by the log */
	unsigned name;	     /* number given by the test */
};

/* How one volatile entry fares in a crash. */
enum crash_fate_kind {
	FATE_DROPPED,
	FATE_APPLIED,
	FATE_TORN,    /* WRITE, ZERO, DISCARD: only some sectors of tear_bytes, chosen by seed; others: as dropped */
	FATE_PREFIX,  /* as TORN: the first `sectors` of them */
	FATE_SUFFIX,  /* as TORN: all but the first `sectors` */
	FATE_GARBAGE, /* WRITE: rubbish in its place, of the seed; others: as applied */
	FATE_LENGTH,  /* the file is as long as after it, but what it wrote is not there (new bytes are zeros) */
};

struct crash_fate {
	enum crash_fate_kind kind;
	uint32_t tear_bytes; /* TORN, PREFIX, SUFFIX: 512 or 4096 */
	uint64_t sectors;
	uint64_t seed;
};

struct crash_log *crash_log_new(void); /* NULL: no memory */
void crash_log_free(struct crash_log *log);
/* Appends an entry of the test's (names, marks); a copy, data is not looked at. 0 or IMG_E_NOMEM. */
int crash_log_add(struct crash_log *log, const struct crash_entry *entry);
/* Entries may be looked at while no node is writing. */
size_t crash_log_nr(const struct crash_log *log);
const struct crash_entry *crash_log_at(const struct crash_log *log, size_t i);

/* Entries that change content or names, and so can be lost. */
bool crash_is_volatile(const struct crash_entry *entry);
/* Is entry i durable in a crash that finds exactly the first nr entries done? */
bool crash_is_durable(const struct crash_log *log, size_t i, size_t nr);
/* Does to the file target what is left of entry under this fate. Name entries and marks: nothing. 0 or an enum
 * img_code. */
int crash_apply(struct node *target, const struct crash_entry *entry, const struct crash_fate *fate);

/* A node that passes everything to child, which it takes over (also on failure), and logs it as file. */
int crash_node_new(struct node *child, struct crash_log *log, unsigned file, struct node **out, struct img_error *err);

#endif
