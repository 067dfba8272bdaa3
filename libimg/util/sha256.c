/* SPDX-License-Identifier: MIT */
/*
 * SHA-256. Names are those of FIPS 180-4, sections 4.1.2 and 6.2. Two functions take whole blocks: one for every
 * processor, one for the SHA extensions of x86 (Intel SDM volume 2, SHA256RNDS2, SHA256MSG1, SHA256MSG2), which is
 * chosen when a digest begins.
 */
#include "sha256.h"

#include <string.h>

#include "disk_int.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#include <immintrin.h>
#define HAVE_X86 1
#endif

static const uint32_t K[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* ---- every processor --------------------------------------------------------------------------------------------- */

static uint32_t rotr(uint32_t x, unsigned n)
{
	return x >> n | x << (32 - n);
}

static void schedule(uint32_t w[64], const uint8_t *p)
{
	struct be32 word;

	for (unsigned t = 0; t < 16; t++) {
		memcpy(&word, p + t * sizeof(word), sizeof(word));
		w[t] = be32_get(word);
	}
	for (unsigned t = 16; t < 64; t++) {
		uint32_t s0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
		uint32_t s1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19) ^ w[t - 2] >> 10;

		w[t] = s1 + w[t - 7] + s0 + w[t - 16];
	}
}

void sha256_blocks_portable(uint32_t h[8], const uint8_t *p, size_t nr)
{
	uint32_t w[64];

	for (; nr > 0; nr--, p += 64) {
		uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], i = h[7];

		schedule(w, p);
		for (unsigned t = 0; t < 64; t++) {
			uint32_t sum1 = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25), ch = (e & f) ^ (~e & g);
			uint32_t sum0 = rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22), maj = (a & b) ^ (a & c) ^ (b & c);
			uint32_t t1 = i + sum1 + ch + K[t] + w[t], t2 = sum0 + maj;

			i = g;
			g = f;
			f = e;
			e = d + t1;
			d = c;
			c = b;
			b = a;
			a = t1 + t2;
		}
		h[0] += a;
		h[1] += b;
		h[2] += c;
		h[3] += d;
		h[4] += e;
		h[5] += f;
		h[6] += g;
		h[7] += i;
	}
}

/* ---- x86 with SHA extensions ------------------------------------------------------------------------------------- */

#ifdef HAVE_X86

#define TARGET_SHA __attribute__((target("sha,sse4.1,ssse3")))

/* Rounds t to t + 3. The instruction takes two, and the working variables as (a, b, e, f) and (c, d, g, h). */
static inline TARGET_SHA void four_rounds(__m128i *abef, __m128i *cdgh, __m128i w, const uint32_t *k)
{
	__m128i wk = _mm_add_epi32(w, _mm_load_si128((const __m128i *)k));

	*cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, wk);
	*abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(wk, 0x0e));
}

/* The four words of the schedule that follow a, b, c and d. */
static inline TARGET_SHA __m128i next_words(__m128i a, __m128i b, __m128i c, __m128i d)
{
	__m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(a, b), _mm_alignr_epi8(d, c, 4));

	return _mm_sha256msg2_epu32(sum, d);
}

static inline TARGET_SHA __m128i load_words(const uint8_t *p)
{
	const __m128i reverse = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);

	return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p), reverse);
}

static TARGET_SHA void blocks_x86(uint32_t h[8], const uint8_t *p, size_t nr)
{
	/* Lanes are named from the highest to the lowest. */
	__m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xb1);
	__m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1b);
	__m128i abef = _mm_alignr_epi8(badc, efgh, 8), cdgh = _mm_blend_epi16(efgh, badc, 0xf0);

	for (; nr > 0; nr--, p += 64) {
		__m128i abef_before = abef, cdgh_before = cdgh;
		__m128i w0 = load_words(p), w1 = load_words(p + 16), w2 = load_words(p + 32), w3 = load_words(p + 48);

		for (unsigned t = 0;; t += 16) {
			four_rounds(&abef, &cdgh, w0, K + t);
			four_rounds(&abef, &cdgh, w1, K + t + 4);
			four_rounds(&abef, &cdgh, w2, K + t + 8);
			four_rounds(&abef, &cdgh, w3, K + t + 12);
			if (t == 48)
				break;
			w0 = next_words(w0, w1, w2, w3);
			w1 = next_words(w1, w2, w3, w0);
			w2 = next_words(w2, w3, w0, w1);
			w3 = next_words(w3, w0, w1, w2);
		}
		abef = _mm_add_epi32(abef, abef_before);
		cdgh = _mm_add_epi32(cdgh, cdgh_before);
	}
	/* Back to the order of h. */
	badc = _mm_shuffle_epi32(abef, 0x1b); /* feba */
	efgh = _mm_shuffle_epi32(cdgh, 0xb1); /* dchg */
	_mm_storeu_si128((__m128i *)h, _mm_blend_epi16(badc, efgh, 0xf0));
	_mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(efgh, badc, 8));
}

/* Of leaf 1: SSSE3 and SSE4.1; of leaf 7: SHA (Intel SDM volume 2, CPUID). */
static int has_sha(void)
{
	unsigned a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 9) || !(c & 1u << 19))
		return 0;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);
}

#endif

/* ---- the digest -------------------------------------------------------------------------------------------------- */

void sha256_init(struct sha256 *s)
{
	static const uint32_t first[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
					   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };

	memset(s, 0, sizeof(*s));
	memcpy(s->h, first, sizeof(first));
	s->blocks = sha256_blocks_portable;
#ifdef HAVE_X86
	if (has_sha())
		s->blocks = blocks_x86;
#endif
}

void sha256_update(struct sha256 *s, const void *data, size_t bytes)
{
	const uint8_t *p = data;
	size_t have = (size_t)(s->bytes % sizeof(s->block)), n;

	s->bytes += bytes;
	if (have > 0) {
		n = sizeof(s->block) - have;
		n = bytes < n ? bytes : n;
		memcpy(s->block + have, p, n);
		p += n;
		bytes -= n;
		if (have + n < sizeof(s->block))
			return;
		s->blocks(s->h, s->block, 1);
	}
	n = bytes / sizeof(s->block);
	if (n > 0)
		s->blocks(s->h, p, n);
	if (bytes % sizeof(s->block) > 0)
		memcpy(s->block, p + n * sizeof(s->block), bytes % sizeof(s->block));
}

void sha256_final(struct sha256 *s, uint8_t out[SHA256_BYTES])
{
	static const uint8_t end[64] = { 0x80 };
	struct be64 bits = be64_of(s->bytes * 8);
	size_t have = (size_t)(s->bytes % sizeof(s->block));

	sha256_update(s, end, (have < 56 ? 56 : 120) - have);
	sha256_update(s, bits.b, sizeof(bits.b));
	for (unsigned i = 0; i < 8; i++) {
		struct be32 word = be32_of(s->h[i]);

		memcpy(out + i * sizeof(word), word.b, sizeof(word));
	}
}
