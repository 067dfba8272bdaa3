/* SPDX-License-Identifier: MIT */
/* See fixed.h. */
#include "fixed.h"

#include <stdatomic.h>
#include <stdint.h>

#define FIRST_SECOND 1700000000 /* 2023-11-14 22:13:20 UTC */
#define NS_PER_MS    1000000

static _Atomic uint64_t randoms, looks;

void fixed_reset(void)
{
	atomic_store(&randoms, 0);
	atomic_store(&looks, 0);
}

/* splitmix64 of a counter. */
static uint64_t next_random(void)
{
	uint64_t v = (atomic_fetch_add(&randoms, 1) + 1) * UINT64_C(0x9e3779b97f4a7c15);

	v = (v ^ v >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	v = (v ^ v >> 27) * UINT64_C(0x94d049bb133111eb);
	return v ^ v >> 31;
}

ssize_t fixed_getrandom(void *buf, size_t bytes, unsigned flags)
{
	uint8_t *out = buf;

	(void)flags;
	for (size_t i = 0; i < bytes; i++)
		out[i] = (uint8_t)next_random();
	return (ssize_t)bytes;
}

int fixed_clock_gettime(clockid_t clock, struct timespec *out)
{
	uint64_t ms = atomic_fetch_add(&looks, 1);

	out->tv_sec = (time_t)(ms / 1000) + (clock == CLOCK_REALTIME ? FIRST_SECOND : 1);
	out->tv_nsec = (long)(ms % 1000) * NS_PER_MS;
	return 0;
}
