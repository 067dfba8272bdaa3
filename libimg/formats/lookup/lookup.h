/* SPDX-License-Identifier: MIT */
/*
 * An engine for formats that are only read and find their clusters through two levels of tables: qcow version 1, QED.
 * A format describes the tables by struct lookup and says what an entry means; reading, the map and the check are here.
 *
 * Tables are not held: a request reads the entries that it needs, many at once, and the host's cache does the rest. So
 * an image costs no memory, however large it says that it is. One expanded cluster is kept, for readers in small steps.
 *
 * Threads: all functions but open and close may be called at once.
 */
#ifndef FORMATS_LOOKUP_H
#define FORMATS_LOOKUP_H

#include <pthread.h>

#include "budget.h"
#include "codec.h"
#include "node.h"

struct inspector;

#define LOOKUP_MAX_PACKED (UINT64_C(2) << 20) /* bytes of a cluster that may be packed */

enum lookup_kind {
	LOOKUP_BELOW, /* the backing, or zeros */
	LOOKUP_ZERO,
	LOOKUP_DATA,
	LOOKUP_PACKED,
};

struct lookup_entry {
	enum lookup_kind kind;
	uint64_t off, bytes; /* of the file: DATA (bytes: a cluster), PACKED */
};

struct lookup;

struct lookup_ops {
	/* What an entry of the second level means. CORRUPT: nothing; that it lies inside the file is seen to here. */
	int (*decode)(const struct lookup *l, uint64_t raw, struct lookup_entry *out, struct img_error *err);
	bool big_endian;       /* entries, 8 bytes each */
	enum codec_id codec;   /* of PACKED; a stream whose end is not known exactly */
	const char *rule;      /* of an entry that leads nowhere, or shares a cluster with another */
	const char *data_rule; /* of a cluster that cannot be read */
};

struct lookup {
	const struct lookup_ops *ops;
	struct node *node; /* its file and backing are read */
	uint64_t disk_bytes, cluster_bytes;
	uint64_t first_off;	/* table of the first level: offset, in a place that the format has judged */
	uint64_t table_entries; /* of one table of the second level */
	uint64_t file_bytes;
	/* its own */
	pthread_mutex_t lock;
	struct codec_ctx *codec;
	uint8_t *kept;		       /* expanded cluster */
	uint64_t kept_off, kept_bytes; /* where it is in the file; bytes 0: none */
};

/* The fields up to file_bytes are filled. NOMEM. */
int lookup_open(struct lookup *l, struct img_error *err);
void lookup_close(struct lookup *l);

/* As driver.h's members. */
int lookup_pread(struct lookup *l, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int lookup_status(struct lookup *l, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err);
/* Every entry, and every cluster with them unless flags say otherwise. Memory: a bit for each 512 bytes of the file. */
int lookup_check(struct lookup *l, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err);
/*
 * Bytes of the disk that entries lead to, for budgets; stops at more than limit. *bad: entries that lead nowhere. What
 * it takes is bounded by the size of the file.
 */
int lookup_mapped(struct lookup *l, uint64_t limit, uint64_t *bytes, uint64_t *bad, struct img_error *err);
/* LIMIT: the mapping leads to more data than the file is worth. */
int lookup_judge(struct lookup *l, const struct budget *budget, struct img_error *err);
/* Findings on the mapping. */
int lookup_inspect(struct lookup *l, struct inspector *in, struct img_error *err);

#endif
