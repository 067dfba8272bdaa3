/* SPDX-License-Identifier: MIT */
/*
 * What would make two runs of one program differ, made equal: random numbers and the clock. Linked with -Wl,--wrap, so
 * that it stands before the C library for the images under test, and for nothing else.
 */
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "fixed_host.h"

static uint64_t random_state;
static int64_t ticks;

void fixed_host_reset(uint64_t seed)
{
	random_state = seed;
	ticks = 0;
}

ssize_t __wrap_getrandom(void *buf, size_t bytes, unsigned flags)
{
	uint8_t *p = buf;

	(void)flags;
	for (size_t i = 0; i < bytes; i++) {
		random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		p[i] = (uint8_t)(random_state >> 56);
	}
	return (ssize_t)bytes;
}

int __real_clock_gettime(clockid_t clock, struct timespec *out);

int __wrap_clock_gettime(clockid_t clock, struct timespec *out)
{
	/* Waits with a deadline need the time that passes. */
	if (clock != CLOCK_REALTIME)
		return __real_clock_gettime(clock, out);
	ticks += 1000000;
	out->tv_sec = (time_t)(1700000000 + ticks / 1000000000);
	out->tv_nsec = (long)(ticks % 1000000000);
	return 0;
}
