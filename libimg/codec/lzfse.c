/* SPDX-License-Identifier: MIT */
/*
 * LZFSE; only to expand. A stream is a sequence of blocks, each with a magic of four bytes: "bvx-" plain, "bvxn" LZVN,
 * "bvx2" LZ77 whose literals and (L, M, D) triples are coded by finite state entropy, "bvx$" the end. No library for it
 * is in Debian 12, and images that macOS makes use it.
 *
 * A block of "bvx2": counts, initial states and the frequency of each symbol, packed; then the bits of the literals,
 * read from their end to their beginning by four states in turn; then those of the triples, by one state for each of L,
 * M, D. A D of 0 is the one before. All tables are rebuilt for each block from the frequencies.
 *
 * Source: the format as Apple's published lzfse implementation reads it.
 */
#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec_ops.h"
#include "libimg.h"
#include "lzvn.h"

#define NR_L	     20u
#define NR_M	     20u
#define NR_D	     64u
#define NR_LITERAL   256u
#define L_STATES     64u
#define M_STATES     64u
#define D_STATES     256u
#define LIT_STATES   1024u
#define MAX_LITERALS 40000u
#define MAX_MATCHES  10000u
#define HEAD_BYTES   32u /* of a bvx2 block before the frequencies */

/* A state of a decoder: bits to take, of which the low value_bits are the value's; where to go, what it means. */
struct cell {
	uint8_t bits, value_bits;
	int16_t delta;
	uint32_t base;
};

struct lzfse_state {
	uint16_t freq[NR_L + NR_M + NR_D + NR_LITERAL];
	struct cell l[L_STATES], m[M_STATES], d[D_STATES], literal[LIT_STATES];
	uint8_t literals[MAX_LITERALS];
};

struct block {
	uint32_t raw_bytes, head_bytes;
	uint32_t nr_literals, literal_bytes, nr_matches, match_bytes;
	int literal_bits, match_bits; /* of the last byte; 0 to -7 */
	uint32_t literal_state[4], l_state, m_state, d_state;
};

/* ---- what a symbol means ----------------------------------------------------------------------------------------- */

static const uint8_t l_bits[NR_L] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 5, 8 };
static const uint32_t l_base[NR_L] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 28, 60 };
static const uint8_t m_bits[NR_M] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 5, 8, 11 };
static const uint32_t m_base[NR_M] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 56, 312 };

/* Distances: four symbols for each number of extra bits from 0 to 15, each range begins where the last one ends. */
static void d_meaning(uint8_t bits[NR_D], uint32_t base[NR_D])
{
	uint32_t next = 0;

	for (unsigned i = 0; i < NR_D; i++) {
		bits[i] = (uint8_t)(i / 4);
		base[i] = next;
		next += 1u << bits[i];
	}
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

/* bits, base: what symbols mean; NULL: themselves. False: the frequencies are more than the states. */
static bool build(const uint16_t *freq, unsigned nr_symbols, unsigned nr_states, const uint8_t *bits,
		  const uint32_t *base, struct cell *out)
{
	unsigned used = 0;

	memset(out, 0, nr_states * sizeof(*out));
	for (unsigned i = 0; i < nr_symbols; i++) {
		unsigned f = freq[i], shift, first;

		if (f == 0)
			continue;
		if (f > nr_states - used)
			return false;
		/* The first states of a symbol take one bit more, so that all together reach each state once. */
		shift = (unsigned)(__builtin_clz(f) - __builtin_clz(nr_states));
		first = ((2 * nr_states) >> shift) - f;
		for (unsigned k = 0; k < f; k++) {
			struct cell *c = &out[used++];

			c->value_bits = bits ? bits[i] : 0;
			c->base = base ? base[i] : i;
			if (k < first) {
				c->bits = (uint8_t)(shift + c->value_bits);
				c->delta = (int16_t)(((f + k) << shift) - nr_states);
			} else {
				c->bits = (uint8_t)(shift - 1 + c->value_bits);
				c->delta = (int16_t)((k - first) << (shift - 1));
			}
		}
	}
	return true;
}

static bool build_all(struct lzfse_state *s)
{
	uint8_t d_bits[NR_D];
	uint32_t d_base[NR_D];

	d_meaning(d_bits, d_base);
	return build(s->freq, NR_L, L_STATES, l_bits, l_base, s->l) &&
	       build(s->freq + NR_L, NR_M, M_STATES, m_bits, m_base, s->m) &&
	       build(s->freq + NR_L + NR_M, NR_D, D_STATES, d_bits, d_base, s->d) &&
	       build(s->freq + NR_L + NR_M + NR_D, NR_LITERAL, LIT_STATES, NULL, NULL, s->literal);
}

/* A frequency is coded in 2 to 14 bits. Returns how many. */
static unsigned decode_freq(uint32_t bits, uint16_t *out)
{
	static const uint8_t length[32] = { 2, 3, 2, 5, 2, 3, 2, 8, 2, 3, 2, 5, 2, 3, 2, 14,
					    2, 3, 2, 5, 2, 3, 2, 8, 2, 3, 2, 5, 2, 3, 2, 14 };
	static const uint8_t value[32] = { 0, 2, 1, 4, 0, 3, 1, 0, 0, 2, 1, 5, 0, 3, 1, 0,
					   0, 2, 1, 6, 0, 3, 1, 0, 0, 2, 1, 7, 0, 3, 1, 0 };
	unsigned n = length[bits & 31];

	if (n == 8)
		*out = (uint16_t)(8 + (bits >> 4 & 0xf));
	else if (n == 14)
		*out = (uint16_t)(24 + (bits >> 4 & 0x3ff));
	else
		*out = value[bits & 31];
	return n;
}

static int read_freqs(struct lzfse_state *s, const uint8_t *at, size_t bytes)
{
	const uint8_t *end = at + bytes;
	uint32_t bits = 0;
	unsigned nr_bits = 0;

	memset(s->freq, 0, sizeof(s->freq));
	for (size_t i = 0; bytes > 0 && i < sizeof(s->freq) / sizeof(s->freq[0]); i++) {
		unsigned n;

		for (; at < end && nr_bits + 8 <= 32; nr_bits += 8)
			bits |= (uint32_t)*at++ << nr_bits;
		n = decode_freq(bits, &s->freq[i]);
		if (n > nr_bits)
			return IMG_E_CORRUPT;
		bits >>= n;
		nr_bits -= n;
	}
	return at == end && nr_bits < 8 && build_all(s) ? 0 : IMG_E_CORRUPT;
}

/* ---- bits, from the end ------------------------------------------------------------------------------------------ */

struct bits {
	const uint8_t *begin, *at;
	uint64_t held;
	int nr; /* of held; less than 0 before the first byte where the last bits of it are none */
};

static void refill(struct bits *b)
{
	for (; b->nr <= 56 && b->at > b->begin; b->nr += 8)
		b->held = b->held << 8 | *--b->at;
}

/* more: 0 to -7, by how much the last byte is not full. */
static int start_bits(struct bits *b, const uint8_t *begin, size_t bytes, int more)
{
	*b = (struct bits){ .begin = begin, .at = begin + bytes, .nr = more };
	refill(b);
	return b->nr < 0 || (b->nr < 64 && b->held >> b->nr != 0) ? IMG_E_CORRUPT : 0;
}

/* -1: there are not so many. */
static int64_t take_bits(struct bits *b, unsigned n)
{
	uint64_t out;

	if (n == 0)
		return 0;
	if ((int)n > b->nr)
		return -1;
	b->nr -= (int)n; /* 63 at most */
	out = b->held >> b->nr;
	b->held &= (UINT64_C(1) << b->nr) - 1;
	return (int64_t)out;
}

/* The value of the state, which moves on. -1: damage. */
static int64_t decode(const struct cell *table, uint32_t *state, struct bits *b)
{
	const struct cell *c = &table[*state];
	int64_t got = take_bits(b, c->bits);

	if (got < 0)
		return -1;
	/* bits and delta were made for each other: the next state exists, also where frequencies leave states unused */
	*state = (uint32_t)(c->delta + (got >> c->value_bits));
	return c->base + (got & ((INT64_C(1) << c->value_bits) - 1));
}

/* ---- a block ----------------------------------------------------------------------------------------------------- */

static uint32_t u32_at(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static uint64_t u64_at(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

static uint32_t field(uint64_t v, unsigned at, unsigned bits)
{
	return (uint32_t)(v >> at & ((UINT64_C(1) << bits) - 1));
}

static int read_head(const uint8_t *at, size_t bytes, struct block *out)
{
	uint64_t v[3];
	uint64_t all;

	if (bytes < HEAD_BYTES)
		return IMG_E_CORRUPT;
	for (unsigned i = 0; i < 3; i++)
		v[i] = u64_at(at + 8 + 8 * i);
	*out = (struct block){
		.raw_bytes = u32_at(at + 4),
		.head_bytes = field(v[2], 0, 32),
		.nr_literals = field(v[0], 0, 20),
		.literal_bytes = field(v[0], 20, 20),
		.nr_matches = field(v[0], 40, 20),
		.literal_bits = (int)field(v[0], 60, 3) - 7,
		.literal_state = { field(v[1], 0, 10), field(v[1], 10, 10), field(v[1], 20, 10), field(v[1], 30, 10) },
		.match_bytes = field(v[1], 40, 20),
		.match_bits = (int)field(v[1], 60, 3) - 7,
		.l_state = field(v[2], 32, 10),
		.m_state = field(v[2], 42, 10),
		.d_state = field(v[2], 52, 10),
	};
	all = (uint64_t)out->head_bytes + out->literal_bytes + out->match_bytes;
	if (out->head_bytes < HEAD_BYTES || all > bytes || out->nr_literals > MAX_LITERALS ||
	    out->nr_literals % 4 != 0 || out->nr_matches > MAX_MATCHES || out->l_state >= L_STATES ||
	    out->m_state >= M_STATES || out->d_state >= D_STATES)
		return IMG_E_CORRUPT;
	return 0;
}

static int read_literals(struct lzfse_state *s, struct block *h, const uint8_t *payload)
{
	struct bits b;

	if (start_bits(&b, payload, h->literal_bytes, h->literal_bits) != 0)
		return IMG_E_CORRUPT;
	for (uint32_t i = 0; i < h->nr_literals; i++) {
		int64_t value;

		if (i % 4 == 0)
			refill(&b);
		value = decode(s->literal, &h->literal_state[i % 4], &b);
		if (value < 0)
			return IMG_E_CORRUPT;
		s->literals[i] = (uint8_t)value;
	}
	return 0;
}

static int read_matches(struct lzfse_state *s, struct block *h, const uint8_t *payload, const uint8_t *begin,
			uint8_t *out)
{
	const uint8_t *literal = s->literals, *literals_end = s->literals + h->nr_literals;
	uint8_t *end = out + h->raw_bytes;
	size_t back = 0;
	struct bits b;

	if (start_bits(&b, payload, h->match_bytes, h->match_bits) != 0)
		return IMG_E_CORRUPT;
	for (uint32_t i = 0; i < h->nr_matches; i++) {
		int64_t l, m, d;

		refill(&b); /* a triple has 54 bits at most */
		l = decode(s->l, &h->l_state, &b);
		m = decode(s->m, &h->m_state, &b);
		d = decode(s->d, &h->d_state, &b);
		if (l < 0 || m < 0 || d < 0 || l > literals_end - literal || l > end - out || m > end - out - l)
			return IMG_E_CORRUPT;
		memcpy(out, literal, (size_t)l);
		literal += l;
		out += l;
		back = d > 0 ? (size_t)d : back;
		if (m > 0 && (back == 0 || back > (size_t)(out - begin)))
			return IMG_E_CORRUPT;
		for (; m > 0; m--, out++)
			*out = *(out - back);
	}
	return out == end ? 0 : IMG_E_CORRUPT;
}

/* Each of these takes one block at at and says how much of the input it was. */

static int expand_fse(struct lzfse_state *s, const uint8_t *at, size_t bytes, const uint8_t *begin, uint8_t *out,
		      size_t room, size_t *taken, size_t *made)
{
	struct block h;

	if (read_head(at, bytes, &h) != 0 || h.raw_bytes > room ||
	    read_freqs(s, at + HEAD_BYTES, h.head_bytes - HEAD_BYTES) != 0 ||
	    read_literals(s, &h, at + h.head_bytes) != 0 ||
	    read_matches(s, &h, at + h.head_bytes + h.literal_bytes, begin, out) != 0)
		return IMG_E_CORRUPT;
	*taken = (size_t)h.head_bytes + h.literal_bytes + h.match_bytes;
	*made = h.raw_bytes;
	return 0;
}

static int expand_lzvn(const uint8_t *at, size_t bytes, const uint8_t *begin, uint8_t *out, size_t room, size_t *taken,
		       size_t *made)
{
	if (bytes < 12 || u32_at(at + 8) > bytes - 12 || u32_at(at + 4) > room)
		return IMG_E_CORRUPT;
	*taken = 12 + (size_t)u32_at(at + 8);
	*made = u32_at(at + 4);
	return lzvn_expand(at + 12, *taken - 12, begin, out, *made);
}

static int copy_plain(const uint8_t *at, size_t bytes, uint8_t *out, size_t room, size_t *taken, size_t *made)
{
	if (bytes < 8 || u32_at(at + 4) > bytes - 8 || u32_at(at + 4) > room)
		return IMG_E_CORRUPT;
	*made = u32_at(at + 4);
	*taken = 8 + *made;
	memcpy(out, at + 8, *made);
	return 0;
}

static void *lzfse_new_state(void)
{
	return calloc(1, sizeof(struct lzfse_state));
}

static int lzfse_expand(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	const uint8_t *at = src, *end = at + src_bytes;
	uint8_t *out = dst;
	size_t left = dst_bytes;

	for (;;) {
		size_t bytes = (size_t)(end - at), taken = 0, made = 0;
		int ret = IMG_E_CORRUPT;

		if (bytes < 4)
			return IMG_E_CORRUPT;
		if (memcmp(at, "bvx$", 4) == 0)
			return bytes == 4 && left == 0 ? 0 : IMG_E_CORRUPT;
		if (memcmp(at, "bvx2", 4) == 0)
			ret = expand_fse(state, at, bytes, dst, out, left, &taken, &made);
		else if (memcmp(at, "bvxn", 4) == 0)
			ret = expand_lzvn(at, bytes, dst, out, left, &taken, &made);
		else if (memcmp(at, "bvx-", 4) == 0)
			ret = copy_plain(at, bytes, out, left, &taken, &made);
		if (ret != 0)
			return ret;
		at += taken;
		out += made;
		left -= made;
	}
}

const struct codec_ops codec_lzfse = {
	.id = CODEC_LZFSE,
	.name = "lzfse",
	.new_state = lzfse_new_state,
	.free_state = free,
	.expand = lzfse_expand,
};
