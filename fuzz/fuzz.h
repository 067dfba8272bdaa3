/* SPDX-License-Identifier: MIT */
/* What every fuzz target has: the entry that engines call, and a reader for inputs that are programs. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Holds in every build: a broken promise of ours, as a crash is. */
#define FUZZ_CHECK(condition)                                                      \
	do {                                                                       \
		if (!(condition)) {                                                \
			dprintf(2, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                   \
		}                                                                  \
	} while (0)

struct fuzz_input {
	const uint8_t *at, *end;
};

/* Little-endian, zeros past the end. */
static inline uint64_t fuzz_take(struct fuzz_input *in, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes && in->at < in->end; i++)
		v |= (uint64_t)*in->at++ << (8 * i);
	return v;
}

#endif
