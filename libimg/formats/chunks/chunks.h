/* SPDX-License-Identifier: MIT */
/*
 * An engine for formats that only ever are read and keep their disk as a list of pieces of their own sizes, most of
 * them compressed: cloop, DMG. The format reads its tables, appends the pieces in the order of the disk, and leaves
 * reading, the map and the check to this.
 *
 * Expanded pieces that a request took only a part of are kept for the next one, in a cache whose size does not depend
 * on the image. Threads: chunks_read(), chunks_status() and chunks_check() may run side by side; each expands with what
 * it needs itself, and no lock is held meanwhile.
 */
#ifndef FORMATS_CHUNKS_H
#define FORMATS_CHUNKS_H

#include "budget.h"
#include "codec.h"
#include "node.h"

struct inspector;

/* Largest piece that is compressed: it is expanded as a whole. DMG's have 256 KiB to 1 MiB, cloop's up to some MiB. */
#define CHUNK_MAX_BYTES (UINT64_C(16) << 20)

enum chunk_kind {
	CHUNK_ZERO,
	CHUNK_PLAIN,
	CHUNK_PACKED,
	CHUNK_UNREADABLE, /* the image names a way to pack that this build does not have: a read of it says which */
};

struct chunk {
	uint64_t off, bytes;	       /* of the disk */
	uint64_t host_off, host_bytes; /* of the file: PLAIN, PACKED */
	enum chunk_kind kind;
	enum codec_id codec; /* PACKED */
	const char *what;    /* UNREADABLE: static, "LZFSE" */
};

/* CORRUPT, LIMIT: it lies outside a file of file_bytes, or is packed and too large. at: file offset of what says so. */
int chunk_judge(const struct chunk *chunk, uint64_t file_bytes, const char *path, uint64_t at, struct img_error *err);

struct chunks; /* opaque */

/* budget and path are asked and named when room is needed; path must live as long. NULL: no memory (err filled). */
struct chunks *chunks_new(struct budget *budget, const char *path, struct img_error *err);
void chunks_free(struct chunks *c); /* NULL is allowed */

/*
 * The next piece: off is where the last one ended (0 for the first). CORRUPT, LIMIT: as chunk_judge(), it leaves a gap,
 * or the budget is exceeded.
 */
int chunks_add(struct chunks *c, const struct chunk *chunk, uint64_t file_bytes, uint64_t at, struct img_error *err);
/* Of the disk so far. */
uint64_t chunks_size(const struct chunks *c);
/* Bytes of the file that pieces lie in, counted as often as they are named; and of the disk that they hold. */
uint64_t chunks_host_bytes(const struct chunks *c);
uint64_t chunks_mapped_bytes(const struct chunks *c);
/* i from 0; NULL past the end. */
const struct chunk *chunks_at(const struct chunks *c, size_t i);

/* [off, off + bytes) lies inside the size. CORRUPT: a piece that does not expand to what it should. */
int chunks_read(struct chunks *c, struct node *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* As driver.h's status. */
int chunks_status(const struct chunks *c, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		  size_t *nr);

/* One piece into buf, which has room for its bytes; nothing is kept. For checks that go over all of them. */
int chunks_expand(struct chunks *c, struct node *file, const struct chunk *chunk, void *buf, struct img_error *err);

/* ---- driver members of formats whose state begins with this; open fills it ---- */

struct chunks_state {
	struct chunks *chunks;
	/* load fills them, or not. */
	uint32_t block_bytes;	 /* in which the disk is divided; 0: in none */
	const char *packed;	 /* static: how most of it is; NULL: it is not */
	const char *rule;	 /* static: of a piece that cannot be read, for the check */
	uint64_t metadata_bytes; /* for the check */
	bool has_uuid;
	uint8_t uuid[16];
};
/* Where a format reads its tables. */
struct chunks_source {
	struct node *file;
	const char *path; /* for messages */
	struct budget *budget;
};
/* Reads header and tables: fills state, whose list is there and empty, with every piece of the disk. */
typedef int (*chunks_load_fn)(const struct chunks_source *src, struct chunks_state *state, struct img_error *err);

/* load, and whether the disk is more than the file is worth. */
int chunks_node_open(struct node *node, const struct driver_open *args, chunks_load_fn load, struct img_error *err);
/* load once more, of which nothing is kept: what it refuses is a finding. state: zeroed. */
int chunks_inspect(struct node *file, struct inspector *in, chunks_load_fn load, struct chunks_state *state,
		   struct img_error *err);

uint64_t chunks_node_size(const struct node *node);
int chunks_node_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err);
int chunks_node_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err);
int chunks_node_close(struct node *node, struct img_error *err);
void chunks_node_limits(const struct node *node, struct driver_limits *out);
int chunks_node_info(struct node *node, struct img_info *out, struct img_error *err);
/* Reads every piece, in the order of the disk. */
int chunks_node_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err);

/* Where a check tells what it finds. */
struct chunks_check {
	const char *rule;  /* of a piece that does not expand, or is not readable */
	img_finding_fn fn; /* may be NULL */
	void *ctx;
	const struct img_progress *progress; /* may be NULL */
	struct img_check_result *out;
};
/* Damage, with the place of chunk (NULL: none). */
void chunks_found(const struct chunks_check *k, const char *rule, const struct chunk *chunk, const char *msg);
/*
 * Reads one piece, the content of which goes to fn part by part (NULL for zeros, and for what is damaged, which is
 * told). fn may be NULL. buf has room for CHUNKS_PART_BYTES and for chunk->bytes where it is packed.
 */
typedef void (*chunks_part_fn)(void *ctx, const uint8_t *data, uint64_t bytes);
#define CHUNKS_PART_BYTES (UINT64_C(1) << 20)
int chunks_check_one(struct node *node, const struct chunks_check *k, const struct chunk *chunk, uint8_t *buf,
		     chunks_part_fn fn, void *ctx, struct img_error *err);

#endif
