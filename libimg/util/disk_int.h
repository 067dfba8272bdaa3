/* SPDX-License-Identifier: MIT */
/*
 * Integers as they stand on disk. Each is a struct of bytes, so that using one without converting it does not compile,
 * and a packed struct of them has no alignment.
 */
#ifndef UTIL_DISK_INT_H
#define UTIL_DISK_INT_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DISK_INT(end, bits)            \
	struct end##bits {             \
		uint8_t b[(bits) / 8]; \
	}

DISK_INT(le, 16);
DISK_INT(le, 32);
DISK_INT(le, 64);
DISK_INT(be, 16);
DISK_INT(be, 32);
DISK_INT(be, 64);

#define DISK_INT_OPS(bits)                                             \
	static inline uint##bits##_t le##bits##_get(struct le##bits d) \
	{                                                              \
		uint##bits##_t v;                                      \
		memcpy(&v, d.b, sizeof v);                             \
		return le##bits##toh(v);                               \
	}                                                              \
	static inline struct le##bits le##bits##_of(uint##bits##_t v)  \
	{                                                              \
		struct le##bits d;                                     \
		v = htole##bits(v);                                    \
		memcpy(d.b, &v, sizeof v);                             \
		return d;                                              \
	}                                                              \
	static inline uint##bits##_t be##bits##_get(struct be##bits d) \
	{                                                              \
		uint##bits##_t v;                                      \
		memcpy(&v, d.b, sizeof v);                             \
		return be##bits##toh(v);                               \
	}                                                              \
	static inline struct be##bits be##bits##_of(uint##bits##_t v)  \
	{                                                              \
		struct be##bits d;                                     \
		v = htobe##bits(v);                                    \
		memcpy(d.b, &v, sizeof v);                             \
		return d;                                              \
	}

DISK_INT_OPS(16)
DISK_INT_OPS(32)
DISK_INT_OPS(64)

/* Of a buffer, at an offset in bytes: for fields that have no struct. */
#define DISK_INT_AT(end, bits)                                                            \
	static inline uint##bits##_t end##bits##_at(const uint8_t *buf, size_t off_bytes) \
	{                                                                                 \
		struct end##bits d;                                                       \
		memcpy(&d, buf + off_bytes, sizeof d);                                    \
		return end##bits##_get(d);                                                \
	}

DISK_INT_AT(le, 16)
DISK_INT_AT(le, 32)
DISK_INT_AT(le, 64)
DISK_INT_AT(be, 16)
DISK_INT_AT(be, 32)
DISK_INT_AT(be, 64)

#endif
