/* SPDX-License-Identifier: MIT */
/* What is known of the beginning of a disk, in pieces that could be read or not. */
#ifndef FUZZ_SHADOW_H
#define FUZZ_SHADOW_H

#include "session.h"

#define SHADOW_BYTES (512u << 10)
#define SHADOW_PIECE 4096u

struct shadow {
	uint8_t data[SHADOW_BYTES];
	uint8_t known[SHADOW_BYTES / SHADOW_PIECE];
	uint64_t bytes;
};

/* All that can be read. */
void shadow_read(struct shadow *sh, struct img *img);
/* What is written; data NULL: nobody knows what is there now. A piece that is unknown, and not written whole, stays so.
 */
void shadow_write(struct shadow *sh, const uint8_t *data, uint64_t bytes, uint64_t off);
/* What is known, and not beyond the end of img, is there. */
void shadow_compare(const struct shadow *sh, struct img *img);

#endif
