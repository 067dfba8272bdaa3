/* SPDX-License-Identifier: MIT */
/*
 * The library without chance and clock: fuzz/CMakeLists.txt makes img_fixed of its objects, in which getrandom() and
 * clock_gettime() are these. An image is then made of the same bytes every time, and an input does the same every time.
 */
#ifndef FUZZ_FIXED_H
#define FUZZ_FIXED_H

#include <sys/types.h>
#include <time.h>

/* Random numbers and clocks begin anew. At the start of every input. */
void fixed_reset(void);

/* In place of the C library's. Each look at a clock takes a millisecond, so that limits of time are reached by work. */
ssize_t fixed_getrandom(void *buf, size_t bytes, unsigned flags);
int fixed_clock_gettime(clockid_t clock, struct timespec *out);

#endif
