/* SPDX-License-Identifier: MIT */
/* Inside of codec/: what a codec gives to the table in codec.c. Contracts as in codec.h. */
#ifndef CODEC_CODEC_OPS_H
#define CODEC_CODEC_OPS_H

#include "codec.h"

struct codec_ops {
	enum codec_id id;
	const char *name;
	int max_level; /* levels run from 1; 0: the codec takes none */
	/* State of one context; made when the codec is first used in it. */
	void *(*new_state)(void);
	void (*free_state)(void *state);
	int (*compress)(void *state, int level, const void *src, size_t src_bytes, void *dst, size_t dst_cap,
			size_t *out);
	int (*expand)(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes);
	int (*expand_prefix)(void *state, const void *src, size_t src_bytes, void *dst, size_t dst_bytes);
};

extern const struct codec_ops codec_zstd, codec_deflate, codec_deflate_4k;

#endif
