/* SPDX-License-Identifier: MIT */
/* Bzip2 by libbz2; only to expand. One stream, as DMG has it. */
#ifdef IMG_HAVE_BZIP2
#include <bzlib.h>
#include <limits.h>

#include "codec_ops.h"
#include "libimg.h"

/* libbz2 has no reset: a stream is made for each buffer, and there is nothing to keep. */
static char stateless;

static void *bzip2_new_state(void)
{
	return &stateless;
}

static void bzip2_free_state(void *state)
{
	(void)state;
}

static int bzip2_expand(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes)
{
	bz_stream in = { 0 };
	int answer;

	(void)state;
	if (src_bytes > UINT_MAX || dst_bytes > UINT_MAX)
		return IMG_E_INVALID;
	if (BZ2_bzDecompressInit(&in, 0, 0) != BZ_OK)
		return IMG_E_NOMEM;
	in.next_in = (char *)(uintptr_t)src; /* libbz2 does not write through it */
	in.avail_in = (unsigned)src_bytes;
	in.next_out = dst;
	in.avail_out = (unsigned)dst_bytes;
	/* It stops at the end of a block of output, too: until nothing moves. */
	do {
		answer = BZ2_bzDecompress(&in);
	} while (answer == BZ_OK && in.avail_in > 0 && in.avail_out > 0);
	/* The last bytes of a stream are its checksum: they may be due with the output full. */
	if (answer == BZ_OK && in.avail_out == 0)
		answer = BZ2_bzDecompress(&in);
	BZ2_bzDecompressEnd(&in);
	if (answer == BZ_MEM_ERROR)
		return IMG_E_NOMEM;
	return answer == BZ_STREAM_END && in.avail_out == 0 && in.avail_in == 0 ? 0 : IMG_E_CORRUPT;
}

const struct codec_ops codec_bzip2 = {
	.id = CODEC_BZIP2,
	.name = "bzip2",
	.new_state = bzip2_new_state,
	.free_state = bzip2_free_state,
	.expand = bzip2_expand,
};
#endif
