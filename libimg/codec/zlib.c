/* SPDX-License-Identifier: MIT */
/*
 * Deflate in zlib's wrapping (RFC 1950): by libdeflate where the build has it, which takes whole buffers only and is
 * two to three times as fast, else by zlib. What looks as if nothing could be gained is stored (RFC 1951, 3.2.4): most
 * of what disks hold that does not compress was compressed before, and trying costs more than reading it.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#ifdef IMG_HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif

#include "codec_ops.h"
#include "libimg.h"

/*
 * Both come out smaller than zlib's own default, 6, or within 1 % of it, in a third, or two thirds, of its time
 * (format-spec/vmdk.md has the figures).
 */
#define DEFAULT_LEVEL 5
#define MAX_LEVEL     9

#define STORED_MAX   65535u /* bytes of one stored block */
#define STORED_FRAME 6u	    /* zlib's header and checksum */
#define STORED_BLOCK 5u	    /* head of a block */

struct zlib_state {
	void *plain; /* of codec_zlib_by_zlib */
#ifdef IMG_HAVE_LIBDEFLATE
	struct libdeflate_compressor *out; /* for level */
	int level;
	struct libdeflate_decompressor *in;
#endif
};

static void *zlib_new_state(void)
{
	struct zlib_state *state = calloc(1, sizeof(*state));

	if (!state)
		return NULL;
	state->plain = codec_zlib_by_zlib.new_state();
	if (!state->plain) {
		free(state);
		return NULL;
	}
	return state;
}

static void zlib_free_state(void *opaque)
{
	struct zlib_state *state = opaque;

#ifdef IMG_HAVE_LIBDEFLATE
	libdeflate_free_compressor(state->out);
	libdeflate_free_decompressor(state->in);
#endif
	codec_zlib_by_zlib.free_state(state->plain);
	free(state);
}

/* ---- what does not compress -------------------------------------------------------------------------------------- */

#define SMALL	      4096u /* bytes of which nothing can be said */
#define PROBE_STEP    32u   /* places where repeats are looked for: what repeats on disks begins at a sector */
#define PROBE_BITS    11
#define FLAT_PER_MILL 1012u /* a sum of squares so near to that of even noise leaves coding by frequency 1 % at most */

/* All bytes are about equally frequent. */
static bool is_flat(const uint8_t *src, size_t bytes)
{
	uint32_t count[4][256] = { { 0 } };
	uint64_t sum = 0, even;

	for (size_t i = 0; i + 4 <= bytes; i += 4)
		for (unsigned k = 0; k < 4; k++)
			count[k][src[i + k]]++;
	for (unsigned v = 0; v < 256; v++) {
		uint64_t c = (uint64_t)count[0][v] + count[1][v] + count[2][v] + count[3][v];

		sum += c * c;
	}
	/* What noise of this length comes to: n^2 / 256, and its own spread, n. */
	even = (uint64_t)bytes * bytes / 256 + bytes;
	return sum < even / 1000 * FLAT_PER_MILL;
}

/* Eight bytes at one of the places stand at another, too. */
static bool repeats(const uint8_t *src, size_t bytes)
{
	uint64_t seen[1u << PROBE_BITS] = { 0 };

	for (size_t i = 0; i + 8 <= bytes; i += PROBE_STEP) {
		uint64_t v, *place;

		memcpy(&v, src + i, sizeof(v));
		place = &seen[v * UINT64_C(0x9e3779b97f4a7c15) >> (64 - PROBE_BITS)];
		if (*place == v)
			return true;
		*place = v;
	}
	return false;
}

static int store(const uint8_t *src, size_t bytes, uint8_t *dst, size_t dst_cap, size_t *out)
{
	size_t blocks = (bytes + STORED_MAX - 1) / STORED_MAX;
	uint8_t *to = dst;
	uLong sum = adler32(adler32(0, NULL, 0), src, (uInt)bytes);

	if (dst_cap < STORED_FRAME || dst_cap - STORED_FRAME < bytes + blocks * STORED_BLOCK)
		return 1;
	*to++ = 0x78; /* deflate, a window of 32 KiB */
	*to++ = 0x01; /* no dictionary; makes the two a multiple of 31 */
	for (size_t n; bytes > 0; src += n, bytes -= n) {
		n = bytes < STORED_MAX ? bytes : STORED_MAX;
		*to++ = n == bytes; /* the last one */
		*to++ = (uint8_t)n;
		*to++ = (uint8_t)(n >> 8);
		*to++ = (uint8_t)~n;
		*to++ = (uint8_t)(~n >> 8);
		memcpy(to, src, n);
		to += n;
	}
	for (int shift = 24; shift >= 0; shift -= 8)
		*to++ = (uint8_t)(sum >> shift);
	*out = (size_t)(to - dst);
	return 0;
}

/* ---- compressing and expanding ----------------------------------------------------------------------------------- */

static int squeeze(struct zlib_state *state, int level, const void *src, size_t src_bytes, void *dst, size_t dst_cap,
		   size_t *out)
{
#ifdef IMG_HAVE_LIBDEFLATE
	if (state->level != level) {
		libdeflate_free_compressor(state->out);
		state->level = 0;
		state->out = libdeflate_alloc_compressor(level);
		if (!state->out)
			return IMG_E_NOMEM;
		state->level = level;
	}
	*out = libdeflate_zlib_compress(state->out, src, src_bytes, dst, dst_cap);
	return *out == 0;
#else
	return codec_zlib_by_zlib.compress(state->plain, level, src, src_bytes, dst, dst_cap, out);
#endif
}

static int zlib_compress(void *opaque, int level, const void *src, size_t src_bytes, void *dst, size_t dst_cap,
			 size_t *out)
{
	if (src_bytes > UINT32_MAX / 2 || dst_cap > UINT32_MAX)
		return IMG_E_INVALID;
	if (src_bytes > SMALL && is_flat(src, src_bytes) && !repeats(src, src_bytes))
		return store(src, src_bytes, dst, dst_cap, out);
	return squeeze(opaque, level ? level : DEFAULT_LEVEL, src, src_bytes, dst, dst_cap, out);
}

static int zlib_expand(void *opaque, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	struct zlib_state *state = opaque;
#ifdef IMG_HAVE_LIBDEFLATE
	size_t taken = 0;

	if (!state->in)
		state->in = libdeflate_alloc_decompressor();
	if (!state->in)
		return IMG_E_NOMEM;
	if (libdeflate_zlib_decompress_ex(state->in, src, src_bytes, dst, dst_bytes, &taken, NULL) !=
		    LIBDEFLATE_SUCCESS ||
	    taken != src_bytes)
		return IMG_E_CORRUPT;
	return 0;
#else
	return codec_zlib_by_zlib.expand(state->plain, src, src_bytes, dst, dst_bytes);
#endif
}

/* libdeflate wants to see where the stream ends. */
static int zlib_expand_prefix(void *opaque, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	struct zlib_state *state = opaque;

	return codec_zlib_by_zlib.expand_prefix(state->plain, src, src_bytes, dst, dst_bytes);
}

const struct codec_ops codec_zlib = {
	.id = CODEC_ZLIB,
	.name = "zlib",
	.max_level = MAX_LEVEL,
	.new_state = zlib_new_state,
	.free_state = zlib_free_state,
	.compress = zlib_compress,
	.expand = zlib_expand,
	.expand_prefix = zlib_expand_prefix,
};
