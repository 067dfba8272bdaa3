/* SPDX-License-Identifier: MIT */
/*
 * Deflate by zlib: raw (RFC 1951), without header and trailer, with a window of 32 KiB, or of 4 KiB for those whose
 * readers have no more; or, for zlib.c, in zlib's own wrapping (RFC 1950). Expanding always takes the large window.
 */
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <zlib.h>

#include "codec_ops.h"
#include "libimg.h"

#define DEFAULT_LEVEL	 6
#define RAW_WINDOW_BITS	 (-15)
#define RAW_4K_BITS	 (-12)
#define ZLIB_WINDOW_BITS 15
#define MEM_LEVEL	 8

struct deflate_state {
	z_stream out, in; /* compressor, expander */
	int level;	  /* of the compressor; 0: not made yet */
	int window_bits;
	bool has_in;
};

static void *new_state(int window_bits)
{
	struct deflate_state *state = calloc(1, sizeof(*state));

	if (state)
		state->window_bits = window_bits;
	return state;
}

static void *deflate_new_state(void)
{
	return new_state(RAW_WINDOW_BITS);
}

static void *deflate_4k_new_state(void)
{
	return new_state(RAW_4K_BITS);
}

static void *zlib_new_state(void)
{
	return new_state(ZLIB_WINDOW_BITS);
}

static void deflate_free_state(void *opaque)
{
	struct deflate_state *state = opaque;

	if (state->level)
		deflateEnd(&state->out);
	if (state->has_in)
		inflateEnd(&state->in);
	free(state);
}

/* Makes the compressor ready for a new stream at this level. */
static int begin_deflate(struct deflate_state *state, int level)
{
	if (state->level == level)
		return deflateReset(&state->out) == Z_OK ? 0 : IMG_E_INVALID;
	if (state->level)
		deflateEnd(&state->out);
	state->level = 0;
	state->out = (z_stream){ 0 };
	if (deflateInit2(&state->out, level, Z_DEFLATED, state->window_bits, MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
		return IMG_E_NOMEM;
	state->level = level;
	return 0;
}

static int deflate_compress(void *opaque, int level, const void *src, size_t src_bytes, void *dst, size_t dst_cap,
			    size_t *out)
{
	struct deflate_state *state = opaque;
	int r;

	if (src_bytes > UINT_MAX || dst_cap > UINT_MAX)
		return IMG_E_INVALID;
	r = begin_deflate(state, level ? level : DEFAULT_LEVEL);
	if (r < 0)
		return r;
	state->out.next_in = (Bytef *)(uintptr_t)src; /* zlib does not write through it */
	state->out.avail_in = (uInt)src_bytes;
	state->out.next_out = dst;
	state->out.avail_out = (uInt)dst_cap;
	if (deflate(&state->out, Z_FINISH) != Z_STREAM_END)
		return 1;
	*out = dst_cap - state->out.avail_out;
	return 0;
}

static int begin_inflate(struct deflate_state *state)
{
	if (state->has_in)
		return inflateReset(&state->in) == Z_OK ? 0 : IMG_E_INVALID;
	state->in = (z_stream){ 0 };
	if (inflateInit2(&state->in, state->window_bits > 0 ? ZLIB_WINDOW_BITS : RAW_WINDOW_BITS) != Z_OK)
		return IMG_E_NOMEM;
	state->has_in = true;
	return 0;
}

/* inflate() of everything; its answer in *answer. */
static int expand(struct deflate_state *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes,
		  int *answer)
{
	int r;

	if (src_bytes > UINT_MAX || dst_bytes > UINT_MAX)
		return IMG_E_INVALID;
	r = begin_inflate(state);
	if (r < 0)
		return r;
	state->in.next_in = (Bytef *)(uintptr_t)src;
	state->in.avail_in = (uInt)src_bytes;
	state->in.next_out = dst;
	state->in.avail_out = (uInt)dst_bytes;
	*answer = inflate(&state->in, Z_FINISH);
	return *answer == Z_MEM_ERROR ? IMG_E_NOMEM : 0;
}

static int deflate_expand(void *opaque, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	struct deflate_state *state = opaque;
	int answer, r = expand(state, src, src_bytes, dst, dst_bytes, &answer);

	if (r < 0)
		return r;
	/* A stream that wants more room ends in Z_BUF_ERROR, a short one leaves room, and neither may leave input. */
	if (answer != Z_STREAM_END || state->in.avail_out != 0 || state->in.avail_in != 0)
		return IMG_E_CORRUPT;
	return 0;
}

static int deflate_expand_prefix(void *opaque, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	struct deflate_state *state = opaque;
	int answer, r = expand(state, src, src_bytes, dst, dst_bytes, &answer);

	if (r < 0)
		return r;
	return (answer == Z_STREAM_END || answer == Z_BUF_ERROR) && state->in.avail_out == 0 ? 0 : IMG_E_CORRUPT;
}

const struct codec_ops codec_deflate = {
	.id = CODEC_DEFLATE,
	.name = "zlib",
	.max_level = 9,
	.chosen_by_name = true,
	.new_state = deflate_new_state,
	.free_state = deflate_free_state,
	.compress = deflate_compress,
	.expand = deflate_expand,
	.expand_prefix = deflate_expand_prefix,
};

const struct codec_ops codec_deflate_4k = {
	.id = CODEC_DEFLATE_4K,
	.name = "zlib",
	.max_level = 9,
	.new_state = deflate_4k_new_state,
	.free_state = deflate_free_state,
	.compress = deflate_compress,
	.expand = deflate_expand,
	.expand_prefix = deflate_expand_prefix,
};

const struct codec_ops codec_zlib_by_zlib = {
	.id = CODEC_ZLIB,
	.name = "zlib",
	.max_level = 9,
	.new_state = zlib_new_state,
	.free_state = deflate_free_state,
	.compress = deflate_compress,
	.expand = deflate_expand,
	.expand_prefix = deflate_expand_prefix,
};
