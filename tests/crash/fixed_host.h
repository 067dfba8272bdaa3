/* SPDX-License-Identifier: MIT */
/* Random numbers and wall clock that are the same in every run; see fixed_host.c. For one thread. */
#ifndef TESTS_FIXED_HOST_H
#define TESTS_FIXED_HOST_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

void fixed_host_reset(uint64_t seed);
ssize_t __wrap_getrandom(void *buf, size_t bytes, unsigned flags);
int __wrap_clock_gettime(clockid_t clock, struct timespec *out);

#endif
