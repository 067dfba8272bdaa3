/* SPDX-License-Identifier: MIT */
/*
 * Integers as they stand on disk. Each is a struct of bytes, so that using one without converting it does not compile,
 * and a packed struct of them has no alignment.
 */
#ifndef UTIL_DISK_INT_H
#define UTIL_DISK_INT_H

#include <stdint.h>

#define DISK_INT(end, bits)                                                                                            \
	struct end##bits {                                                                                             \
		uint8_t b[(bits) / 8];                                                                                 \
	}

DISK_INT(le, 16);
DISK_INT(le, 32);
DISK_INT(le, 64);
DISK_INT(be, 16);
DISK_INT(be, 32);
DISK_INT(be, 64);

static inline uint64_t disk_le_get(const uint8_t *b, unsigned nr)
{
	uint64_t v = 0;

	for (unsigned i = nr; i-- > 0;)
		v = v << 8 | b[i];
	return v;
}

static inline uint64_t disk_be_get(const uint8_t *b, unsigned nr)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < nr; i++)
		v = v << 8 | b[i];
	return v;
}

#define DISK_INT_OPS(bits)                                                                                             \
	static inline uint##bits##_t le##bits##_get(struct le##bits d)                                                 \
	{                                                                                                              \
		return (uint##bits##_t)disk_le_get(d.b, (bits) / 8);                                                   \
	}                                                                                                              \
	static inline struct le##bits le##bits##_of(uint##bits##_t v)                                                  \
	{                                                                                                              \
		struct le##bits d;                                                                                     \
		for (unsigned i = 0; i < (bits) / 8; i++)                                                              \
			d.b[i] = (uint8_t)(v >> (8 * i));                                                              \
		return d;                                                                                              \
	}                                                                                                              \
	static inline uint##bits##_t be##bits##_get(struct be##bits d)                                                 \
	{                                                                                                              \
		return (uint##bits##_t)disk_be_get(d.b, (bits) / 8);                                                   \
	}                                                                                                              \
	static inline struct be##bits be##bits##_of(uint##bits##_t v)                                                  \
	{                                                                                                              \
		struct be##bits d;                                                                                     \
		for (unsigned i = 0; i < (bits) / 8; i++)                                                              \
			d.b[(bits) / 8 - 1 - i] = (uint8_t)(v >> (8 * i));                                             \
		return d;                                                                                              \
	}

DISK_INT_OPS(16)
DISK_INT_OPS(32)
DISK_INT_OPS(64)

#endif
