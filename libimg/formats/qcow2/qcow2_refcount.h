/* SPDX-License-Identifier: MIT */
/* What refcount.c, alloc.c, flush.c and txn.c share about the refcount structure. All of it under map for writing. */
#ifndef QCOW2_REFCOUNT_H
#define QCOW2_REFCOUNT_H

#include "qcow2_cache.h"

/* nr clusters from first lose one reference when the next write-back has ended. */
struct qcow2_pending {
	uint64_t first, nr;
};

/* A refcount table in memory: the live one, or the one that is on disk while a transaction runs. */
struct qcow2_reftable {
	const uint64_t *block; /* offsets */
	uint64_t entries;
};

static inline uint64_t qcow2_clusters(const struct qcow2_engine *e, uint64_t bytes)
{
	return bytes / e->cluster_bytes + (bytes % e->cluster_bytes != 0);
}

/* As qcow2_refcount_run() on the given table. Clusters without a block have refcount 0. */
int qcow2_reftable_run(struct qcow2_engine *e, const struct qcow2_reftable *t, uint64_t first, uint64_t max,
		       uint64_t *value, uint64_t *nr, struct img_error *err);
/* The first cluster from from on that has refcount 0. */
int qcow2_reftable_next_free(struct qcow2_engine *e, const struct qcow2_reftable *t, uint64_t from, uint64_t *out,
			     struct img_error *err);
/* Makes the table of memory hold at least so many entries. On disk it grows by the write-back or the transaction. */
int qcow2_reftable_grow(struct qcow2_engine *e, uint64_t entries, struct img_error *err);
/* A new block of zeros at the given cluster, which is not yet counted. */
int qcow2_refblock_new(struct qcow2_engine *e, uint64_t block, uint64_t cluster, struct img_error *err);
void qcow2_reftable_mark(struct qcow2_engine *e, uint64_t block);

/* alloc.c: a free cluster for a block's copy, not counted; never the same twice in a transaction. */
int qcow2_alloc_uncounted(struct qcow2_engine *e, uint64_t *cluster, struct img_error *err);
/* A cluster that nothing refers to any more. */
void qcow2_note_freed(struct qcow2_engine *e, uint64_t cluster);
/* Gives the space of what was noted, and is still free, back to the host: best effort. Gate and map held for writing. */
void qcow2_punch_freed(struct qcow2_engine *e);

/* flush.c: nothing waits for a write-back (map held). */
bool qcow2_all_written(struct qcow2_engine *e);
/* Writes back until nothing waits. flushing and, for writing, gate are held: with requests running it might never end. */
int qcow2_settle_gated(struct qcow2_engine *e, struct img_error *err);

/* txn.c */
bool qcow2_txn_block_is_new(const struct qcow2_engine *e, uint64_t block);
int qcow2_txn_block_copied(struct qcow2_engine *e, uint64_t block, struct img_error *err); /* marks it */
int qcow2_txn_defer(struct qcow2_engine *e, uint64_t cluster, int delta, struct img_error *err);
bool qcow2_txn_deferred(struct qcow2_engine *e, uint64_t *cluster, int *delta); /* takes one */
struct qcow2_reftable qcow2_txn_old_table(const struct qcow2_engine *e);
int qcow2_txn_spill(struct qcow2_engine *e, struct img_error *err); /* writes what is dirty when the cache is crowded */

#endif
