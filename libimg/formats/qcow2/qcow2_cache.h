/* SPDX-License-Identifier: MIT */
/* The cache as the two that write it back see it: flush.c in its order, txn.c to places that nothing refers to yet. */
#ifndef QCOW2_CACHE_H
#define QCOW2_CACHE_H

#include "qcow2_engine.h"

struct qcow2_cache {
	size_t budget, nr, nr_dirty; /* slices */
	unsigned hash_bits;
	struct qcow2_slice **hash;
	struct qcow2_slice *all_first, *dirty_first;
	struct qcow2_slice *hand; /* of the clock; NULL: at the first */
};

/* Ascending offsets; malloc'ed, also when *nr is 0. Valid until the next call into the cache. */
int qcow2_cache_dirty_list(struct qcow2_engine *e, struct qcow2_slice ***out, size_t *nr, struct img_error *err);
void qcow2_cache_clean(struct qcow2_engine *e, struct qcow2_slice *s);
/* Forgets every change: a transaction that is given up. */
void qcow2_cache_drop_dirty(struct qcow2_engine *e);
/* Reads from the image file; what lies past its end is zeros. */
int qcow2_read_clipped(struct qcow2_engine *e, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* Applies the decrements that waited (map wr), when nothing on disk refers to them any more. */
int qcow2_pending_apply(struct qcow2_engine *e, struct qcow2_pending *list, size_t nr, struct img_error *err);

#endif
