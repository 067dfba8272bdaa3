/* SPDX-License-Identifier: MIT */
/*
 * An engine for formats that are only read and find their clusters through two levels of tables: qcow version 1, QED,
 * compressed VMDK.
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

#define LOOKUP_NAME_MAX 1023u /* bytes of a backing file's name */
#define LOOKUP_CODECS	8u    /* expanders that are kept: more readers at once make their own */

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
	/*
	 * A PACKED cluster, for disk_off of the disk, to out, which has room for one. CORRUPT: *rule, which is
	 * data_rule, may be set to a better one. NULL: by codec, a stream whose end is not known exactly.
	 */
	int (*expand)(struct lookup *l, struct codec_ctx *codec, const struct lookup_entry *e, uint64_t disk_off,
		      uint8_t *out, const char **rule, struct img_error *err);
	bool big_endian;       /* entries */
	uint32_t entry_bytes;  /* 4, or 0: 8 */
	uint32_t scale;	       /* bytes that entries of the first level count in; 0: 1 */
	enum codec_id codec;   /* without expand */
	const char *rule;      /* of an entry that leads nowhere, or shares a cluster with another */
	const char *data_rule; /* of a cluster that cannot be read */
};

struct lookup {
	const struct lookup_ops *ops;
	struct node *node; /* whose the disk is; its backing is read */
	struct node *file; /* that has tables and clusters: node->file, or another one */
	uint64_t disk_bytes, cluster_bytes;
	uint64_t first_off;	/* table of the first level: offset, in a place that the format has judged */
	uint64_t table_entries; /* of one table of the second level */
	uint64_t file_bytes;
	/* The format fills them, or not. */
	const char *packed;		   /* how clusters are compressed; NULL: they never are */
	char backing[LOOKUP_NAME_MAX + 1]; /* "" for none */
	const char *backing_format;	   /* NULL: not on record */
	bool dirty;
	/* its own */
	pthread_mutex_t lock;			/* of what follows; not held while anything is read or expanded */
	struct codec_ctx *codec[LOOKUP_CODECS]; /* NULL: a reader has it, or it was not made yet */
	uint8_t *kept;				/* expanded cluster */
	uint64_t kept_off, kept_bytes;		/* where it is in the file; bytes 0: none */
};

/*
 * Bytes of the disk that entries lead to, for budgets; stops at more than limit; all of the disk where tables are used
 * more than once. *bad: entries that lead nowhere. What
 * it takes is bounded by the size of the file.
 */
int lookup_mapped(struct lookup *l, uint64_t limit, uint64_t *bytes, uint64_t *bad, struct img_error *err);

/* ---- for formats with a state of their own ---- */

/* The last step of an open: l is filled up to `dirty` but for node and file. NOMEM; LIMIT: the mapping is more than the
 * file is worth. */
int lookup_open(struct lookup *l, struct node *node, struct node *file, const struct budget *budget,
		struct img_error *err);
/* Releases what lookup_open() made. */
void lookup_close(struct lookup *l);
void lookup_limits(const struct lookup *l, struct driver_limits *out);
int lookup_pread(struct lookup *l, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int lookup_status(struct lookup *l, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err);
int lookup_info(const struct lookup *l, struct img_info *out);
/* What a cluster of the disk is; nothing of it is read. CORRUPT. */
int lookup_entry_of(struct lookup *l, uint64_t cluster, struct lookup_entry *out, struct img_error *err);
/* Every entry, and every cluster with them unless flags say otherwise. Memory: a bit for each 512 bytes of the file. */
int lookup_check(struct lookup *l, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err);

/* ---- driver members of formats whose state begins with a struct lookup ---- */

/* As lookup_open(), with node->state. */
int lookup_node_open(struct node *node, const struct budget *budget, struct img_error *err);
int lookup_node_close(struct node *node, struct img_error *err);
uint64_t lookup_node_size(const struct node *node);
void lookup_node_limits(const struct node *node, struct driver_limits *out);
int lookup_node_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err);
int lookup_node_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err);
bool lookup_node_get_backing(struct node *node, struct backing_ref *out);
int lookup_node_info(struct node *node, struct img_info *out, struct img_error *err);
int lookup_node_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err);

/* The name of the backing file into l->backing; at: of the header's field, for messages. CORRUPT, IO. */
int lookup_read_backing(struct lookup *l, struct node *node, uint64_t off, uint64_t bytes, uint64_t at,
			struct img_error *err);

/* ---- inspection: findings on the backing file's name and on the mapping ---- */

int lookup_inspect_backing(struct inspector *in, struct node *file, uint64_t off, uint64_t bytes,
			   struct img_error *err);
/* l as for lookup_node_open(), but for node. */
int lookup_inspect(struct lookup *l, struct node *file, struct inspector *in, struct img_error *err);

#endif
