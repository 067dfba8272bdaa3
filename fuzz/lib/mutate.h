/* SPDX-License-Identifier: MIT */
/*
 * Changes inputs of patch.h as such: patches come, go, move and change, and aim at the fields of their template.
 * FUZZ_IMAGE_MUTATOR(format) gives a target the two functions that libFuzzer calls; replay.c calls them where there is
 * no engine (--mutate), and lib/afl.c for AFL++.
 */
#ifndef FUZZ_MUTATE_H
#define FUZZ_MUTATE_H

#include "patch.h"

/* format: whose templates are meant; NULL: all. Returns the new length; the same seed does the same. */
size_t fuzz_mutate(const char *format, uint8_t *data, size_t bytes, size_t max, unsigned seed);
/* Of two inputs one. */
size_t fuzz_cross_over(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes, uint8_t *out, size_t max,
		       unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes, uint8_t *out,
				 size_t max, unsigned seed);

#define FUZZ_IMAGE_MUTATOR(format)                                                                           \
	size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t max, unsigned seed)               \
	{                                                                                                    \
		return fuzz_mutate(format, data, bytes, max, seed);                                          \
	}                                                                                                    \
	size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes, \
					 uint8_t *out, size_t max, unsigned seed)                            \
	{                                                                                                    \
		return fuzz_cross_over(a, a_bytes, b, b_bytes, out, max, seed);                              \
	}

#endif
