/* SPDX-License-Identifier: MIT */
/* The inside of the mem protocol: mem_content.c keeps bytes, mem.c is the driver. */
#ifndef PROTOCOLS_MEM_INT_H
#define PROTOCOLS_MEM_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "mem.h"

#define MEM_LAYER "mem"

struct mem_table;
struct mem_opener;

struct mem_content {
	_Atomic unsigned refs;
	pthread_rwlock_t lock;
	struct mem_table *root; /* lock; NULL: no page */
	uint64_t size;		/* lock */
	uint64_t changes;	/* lock; stands for the modification time */
	uint64_t nr_pages;	/* lock */

	pthread_mutex_t openers_lock;
	struct mem_opener *openers; /* openers_lock; who has it open, with the locks held */
};

/* The first page at or after index, below end, that is present (or absent); end if none. The caller holds
 * content->lock. */
uint64_t mem_next_present(const struct mem_content *content, uint64_t index, uint64_t end);
uint64_t mem_next_absent(const struct mem_content *content, uint64_t index, uint64_t end);

#endif
