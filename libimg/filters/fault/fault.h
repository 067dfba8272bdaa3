/* SPDX-License-Identifier: MIT */
/*
 * Filter "fault": a disk that fails on order, for tests. A plan says which call fails and how; one plan may serve
 * several nodes (an image, its backing, the file that is being made), whose calls it counts together. It belongs to the
 * test and outlives the nodes.
 */
#ifndef FILTERS_FAULT_H
#define FILTERS_FAULT_H

#include <pthread.h>

#include "node.h"

extern const struct img_driver fault_driver;

enum fault_op {
	FAULT_READ,
	FAULT_WRITE,
	FAULT_ZERO,
	FAULT_DISCARD,
	FAULT_FLUSH,
	FAULT_RESIZE,
	FAULT_ALLOCATE,
	FAULT_STATUS,
	FAULT_STAT,
	FAULT_LOCK, /* lock_byte and share */
	FAULT_NR_OPS,
};
#define FAULT_ALL ((1u << FAULT_NR_OPS) - 1)

struct fault_plan {
	pthread_mutex_t lock; /* of all that follows */

	unsigned ops;  /* bit per enum fault_op: the calls that are counted, and one of which fails */
	uint64_t nth;  /* the first to fail, from 1; 0: none */
	bool for_good; /* all after it fail too */
	int sys_errno; /* how they fail */
	/*
	 * A failing write first transfers this many of its bytes, less than all, and ends at a whole sector of the
	 * file: neither a disk nor a page cache leaves part of one, and no format here could stand it.
	 */
	uint64_t short_bytes;

	bool disk_full_mode; /* free_bytes counts */
	uint64_t free_bytes; /* what the host disk still has, in all files of the plan; ENOSPC when it is used up */

	uint64_t seen;		      /* calls in ops so far */
	uint64_t failed;	      /* failures injected so far, full disk included */
	uint64_t calls[FAULT_NR_OPS]; /* all calls so far, by kind */
};

/* A plan in which nothing fails. */
void fault_plan_init(struct fault_plan *plan);
void fault_plan_destroy(struct fault_plan *plan);
/* From now on: the nth call of these kinds fails with sys_errno. Counting starts anew. */
void fault_plan_arm(struct fault_plan *plan, unsigned ops, uint64_t nth, int sys_errno, bool for_good);
void fault_plan_disarm(struct fault_plan *plan);

/* A node that passes everything to child, which it takes over (also on failure), but for what the plan says. */
int fault_node_new(struct node *child, struct fault_plan *plan, struct node **out, struct img_error *err);

#endif
