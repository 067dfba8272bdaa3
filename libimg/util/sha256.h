/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 (FIPS 180-4), for digests that can be compared with those of other programs. A crypto library is not linked
 * for it: that costs every process a millisecond at its start and 1.5 MiB of memory, also those that never ask for a
 * digest.
 */
#ifndef UTIL_SHA256_H
#define UTIL_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

struct sha256 {
	uint32_t h[8];
	uint64_t bytes;	   /* taken so far */
	uint8_t block[64]; /* bytes % 64 of them wait here */
	void (*blocks)(uint32_t h[8], const uint8_t *p, size_t nr);
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, size_t bytes);
/* s is to be initialised again after it. */
void sha256_final(struct sha256 *s, uint8_t out[SHA256_BYTES]);

/* What sha256_init() chooses on a processor without instructions for it; for tests. */
void sha256_blocks_portable(uint32_t h[8], const uint8_t *p, size_t nr);

#endif
