/* SPDX-License-Identifier: MIT */
/*
 * The engine under copy, convert, commit, rebase and flatten: threads that bring ranges of one image to another, as a
 * plan says. The plan decides what each range needs (that is where the operations differ); the engine cuts the ranges
 * into aligned pieces, reads, finds zeros and differences, and writes.
 */
#ifndef CORE_TRANSFER_H
#define CORE_TRANSFER_H

#include "libimg.h"

enum transfer_action {
	TRANSFER_SKIP, /* leave the target as it is; with IMG_COPY_TARGET_ZERO the source reads as zeros here */
	TRANSFER_ZERO, /* make it zeros */
	TRANSFER_DATA, /* write what the source holds */
	TRANSFER_DIFF, /* write what the source holds where `base` holds something else */
};

/*
 * Sets what is to be done from off on, and for how many bytes (at least 1; it may reach beyond the end). Calls come from
 * one thread at a time, with ascending off, and under a lock of the engine: it may read metadata and do nothing else.
 */
typedef int (*transfer_plan_fn)(void *ctx, uint64_t off, uint64_t *bytes, enum transfer_action *action,
				struct img_error *err);

struct transfer {
	struct img *src;  /* read for DATA and DIFF; zeros beyond its end, or where it is NULL */
	struct img *base; /* read for DIFF; zeros beyond its end */
	struct img *dst;  /* may be src where the plan names ranges that hold their content elsewhere */
	uint64_t bytes;	  /* [0, bytes) is gone through; within dst */
	unsigned flags;	  /* enum img_copy_flags */
	transfer_plan_fn plan;
	void *ctx;
};

/*
 * Does it. 0: every range is written, not flushed. After a failure (the first one, or IMG_E_CANCELLED) some are.
 * threads and progress as in struct img_copy_options.
 */
int transfer_run(const struct transfer *transfer, unsigned threads, const struct img_progress *progress,
		 struct img_error *err);

#endif
