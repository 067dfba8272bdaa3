/* SPDX-License-Identifier: MIT */
/* LZVN, which LZFSE streams use for small blocks. */
#ifndef CODEC_LZVN_H
#define CODEC_LZVN_H

#include <stddef.h>
#include <stdint.h>

/*
 * Expands one block to exactly raw_bytes at out; matches may reach back to begin, which is at or before out. 0 or
 * IMG_E_CORRUPT.
 */
int lzvn_expand(const uint8_t *src, size_t src_bytes, const uint8_t *begin, uint8_t *out, size_t raw_bytes);

#endif
