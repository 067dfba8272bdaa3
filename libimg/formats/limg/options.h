/* SPDX-License-Identifier: MIT */
/* Creation options of limg. */
#ifndef LIMG_OPTIONS_H
#define LIMG_OPTIONS_H

#include "engine.h"

struct limg_options {
	unsigned block_shift, unit_shift;
	enum codec_id codec;
	int level;
};

#define LIMG_OPTIONS_HELP                                                  \
	"block_size=SIZE   4K, 16K or 64K (default 4K, above 1 TiB 16K)\n" \
	"unit_size=SIZE    compression unit, 64K to 1M (default 512K)\n"   \
	"compression=CODEC none, zstd[:LEVEL] or zlib[:LEVEL]: how new data is stored (default none)\n"

int options_parse(const char *text, uint64_t size_bytes, struct limg_options *out, struct img_error *err);

#endif
