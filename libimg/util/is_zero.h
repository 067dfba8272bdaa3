/* SPDX-License-Identifier: MIT */
/* Is a buffer all zeros? Data differs from zero near its start nearly always, so that is looked at before the loop
 * begins. */
#ifndef UTIL_IS_ZERO_H
#define UTIL_IS_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Any alignment, any length. The inner loop has a fixed count and no exit, so that compilers make vectors of it. */
static inline bool is_zero(const void *buf, size_t bytes)
{
	const uint8_t *p = buf;
	uint64_t word;

	for (; bytes >= 256; p += 256, bytes -= 256) {
		uint64_t any = 0, words[32];

		memcpy(&word, p, sizeof(word));
		if (word)
			return false;
		memcpy(words, p, sizeof(words));
		for (unsigned i = 0; i < 32; i++)
			any |= words[i];
		if (any)
			return false;
	}
	for (; bytes >= sizeof(word); p += sizeof(word), bytes -= sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		if (word)
			return false;
	}
	for (; bytes > 0; p++, bytes--)
		if (*p)
			return false;
	return true;
}

#endif
