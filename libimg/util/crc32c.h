/* SPDX-License-Identifier: MIT */
/* CRC-32C (Castagnoli, reflected, RFC 3720 section 12.1), as VHDX has it. */
#ifndef UTIL_CRC32C_H
#define UTIL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from crc, 0 at the beginning. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

#endif
