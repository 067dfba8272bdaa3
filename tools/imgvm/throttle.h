/* SPDX-License-Identifier: MIT */
/*
 * A token bucket against noisy neighbours: so many requests and bytes a second, with bursts of a tenth of a second. The
 * disks of a machine share one. Any thread.
 */
#ifndef IMGVM_THROTTLE_H
#define IMGVM_THROTTLE_H

#include <pthread.h>
#include <stdint.h>

struct throttle {
	uint64_t iops, bps; /* 0: no limit; constant */
	pthread_mutex_t lock;
	/* under lock */
	double requests, bytes; /* tokens; may be negative: a request larger than the burst is paid afterwards */
	uint64_t last_ns;	/* when they were counted; 0: full */
};

void throttle_init(struct throttle *t, uint64_t iops, uint64_t bps);
/* Pays for a request at the time now_ns (monotonic). Returns 0, or how many ns to wait before asking again: then
 * nothing was paid. */
uint64_t throttle_take(struct throttle *t, uint64_t now_ns, uint64_t bytes);

#endif
