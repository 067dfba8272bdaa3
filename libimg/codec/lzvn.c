/* SPDX-License-Identifier: MIT */
/*
 * LZVN: operations of one to three bytes, each with literals (L), which follow it, and a match (M bytes, from D bytes
 * back), done in this order. D may be that of the operation before.
 *
 *   LLMMMDDD dddddddd             short distance       LLMMM110            the distance before
 *   101LLMMM DDDDDDmm dddddddd    middle               LLMMM111 DD DD      long
 *   1110LLLL, 11100000 LLLLLLLL   only literals        1111MMMM, 11110000 MMMMMMMM    only a match
 *   00000110 (and 7 zeros)        the end              00001110, 00010110  nothing
 *
 * Source: the format as Apple's published lzfse implementation reads it.
 */
#include "lzvn.h"

#include <stdbool.h>
#include <string.h>

#include "libimg.h"

#define END_BYTES 8u

struct op {
	size_t bytes; /* of the operation itself */
	size_t literals, match, back;
	bool end;
};

/* Of 11100000 and 11110000 the length follows. Returns the operation's bytes. */
static size_t long_count(const uint8_t *at, size_t *out)
{
	*out = *at & 15;
	if (*out != 0)
		return 1;
	*out = (size_t)at[1] + 16;
	return 2;
}

static bool is_undefined(uint8_t code)
{
	return (code & 0xf0) == 0x70 || (code & 0xf0) == 0xd0 || ((code & 7) == 6 && code >= 0x1e && code < 0x40);
}

/* Of the kinds with two bits for the literals and three for the match. */
static void take_common(const uint8_t *at, struct op *op)
{
	op->literals = *at >> 6;
	op->match = (size_t)(*at >> 3 & 7) + 3;
	if ((*at & 7) == 6) {
		op->bytes = 1;
	} else if ((*at & 7) == 7) {
		op->bytes = 3;
		op->back = at[1] | (size_t)at[2] << 8;
	} else {
		op->bytes = 2;
		op->back = (size_t)(*at & 7) << 8 | at[1];
	}
}

/* at has three bytes. op->back keeps the distance before where there is no new one. */
static int take_op(const uint8_t *at, struct op *op)
{
	uint8_t code = *at;

	op->literals = op->match = 0;
	if (is_undefined(code))
		return IMG_E_CORRUPT;
	if (code == 0x06) {
		op->end = true;
		op->bytes = END_BYTES;
	} else if (code == 0x0e || code == 0x16) {
		op->bytes = 1;
	} else if (code >= 0xf0) {
		op->bytes = long_count(at, &op->match);
	} else if (code >= 0xe0) {
		op->bytes = long_count(at, &op->literals);
	} else if ((code & 0xe0) == 0xa0) {
		op->bytes = 3;
		op->literals = code >> 3 & 3;
		op->match = ((size_t)(code & 7) << 2 | (at[1] & 3)) + 3;
		op->back = at[1] >> 2 | (size_t)at[2] << 6;
	} else {
		take_common(at, op);
	}
	return 0;
}

int lzvn_expand(const uint8_t *src, size_t src_bytes, const uint8_t *begin, uint8_t *out, size_t raw_bytes)
{
	const uint8_t *end = src + src_bytes;
	uint8_t *out_end = out + raw_bytes;
	struct op op = { 0 };

	while (!op.end) {
		uint8_t head[3] = { 0 };
		size_t left = (size_t)(end - src);

		if (left == 0)
			return IMG_E_CORRUPT;
		memcpy(head, src, left < sizeof(head) ? left : sizeof(head));
		if (take_op(head, &op) != 0 || left < op.bytes || left - op.bytes < op.literals)
			return IMG_E_CORRUPT;
		src += op.bytes;
		if ((size_t)(out_end - out) < op.literals || (size_t)(out_end - out) - op.literals < op.match)
			return IMG_E_CORRUPT;
		memcpy(out, src, op.literals);
		src += op.literals;
		out += op.literals;
		if (op.match > 0 && (op.back == 0 || op.back > (size_t)(out - begin)))
			return IMG_E_CORRUPT;
		for (; op.match > 0; op.match--, out++)
			*out = *(out - op.back);
	}
	return out == out_end && src == end ? 0 : IMG_E_CORRUPT;
}
