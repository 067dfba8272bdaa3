/* SPDX-License-Identifier: MIT */
/* Inside of codec/: what a codec gives to the table in codec.c. Contracts as in codec.h. */
#ifndef CODEC_CODEC_OPS_H
#define CODEC_CODEC_OPS_H

#include "codec.h"

struct codec_ops {
	enum codec_id id;
	const char *name;
	int max_level;	     /* levels run from 1; 0: the codec takes none */
	bool chosen_by_name; /* by codec_parse(): users may have it written */
	/* State of one context; made when the codec is first used in it. */
	void *(*new_state)(void);
	void (*free_state)(void *state);
	/* NULL: it only expands. */
	int (*compress)(void *state, int level, const void *src, size_t src_bytes, void *dst, size_t dst_cap,
			size_t *out);
	int (*expand)(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes);
	int (*expand_prefix)(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes);
};

extern const struct codec_ops codec_zstd, codec_deflate, codec_deflate_4k, codec_zlib, codec_adc, codec_lzfse;
/* The same with nothing but zlib: what codec_zlib is made of where it has no better. */
extern const struct codec_ops codec_zlib_by_zlib;
#ifdef IMG_HAVE_BZIP2
extern const struct codec_ops codec_bzip2;
#endif
#ifdef IMG_HAVE_LZMA
extern const struct codec_ops codec_xz;
#endif

#endif
