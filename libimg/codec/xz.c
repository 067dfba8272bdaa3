/* SPDX-License-Identifier: MIT */
/* Xz by liblzma; only to expand. One stream, as DMG has it. */
#ifdef IMG_HAVE_LZMA
#include <lzma.h>

#include "codec_ops.h"
#include "libimg.h"

/* The dictionary's size comes from the stream. DMG's are 8 MiB at most (presets up to 6). */
#define MEMORY_LIMIT (UINT64_C(32) << 20)

/* liblzma's decoders of whole buffers keep nothing. */
static char stateless;

static void *xz_new_state(void)
{
	return &stateless;
}

static void xz_free_state(void *state)
{
	(void)state;
}

static int xz_expand(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	size_t in = 0, out = 0;
	uint64_t limit = MEMORY_LIMIT;
	lzma_ret answer;

	(void)state;
	answer = lzma_stream_buffer_decode(&limit, 0, NULL, src, &in, src_bytes, dst, &out, dst_bytes);
	if (answer == LZMA_MEM_ERROR)
		return IMG_E_NOMEM;
	return answer == LZMA_OK && in == src_bytes && out == dst_bytes ? 0 : IMG_E_CORRUPT;
}

const struct codec_ops codec_xz = {
	.id = CODEC_XZ,
	.name = "xz",
	.new_state = xz_new_state,
	.free_state = xz_free_state,
	.expand = xz_expand,
};
#endif
