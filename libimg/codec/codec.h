/* SPDX-License-Identifier: MIT */
/*
 * Compression behind one small table: whole buffers in, whole buffers out, as image formats store them. The identifiers
 * are those of the entry states in format-spec/limg.md.
 *
 * Threads: a context belongs to one thread at a time; distinct contexts are independent.
 */
#ifndef CODEC_CODEC_H
#define CODEC_CODEC_H

#include <stdbool.h>
#include <stddef.h>

enum codec_id {
	CODEC_NONE = 0,
	CODEC_ZSTD = 3,
	CODEC_DEFLATE = 4,
	CODEC_DEFLATE_4K = 0x100, /* for qcow2: as DEFLATE, but what is written needs a window of no more than 4 KiB */
	CODEC_ZLIB,		  /* VMDK, DMG, cloop: deflate with zlib's header and checksum (RFC 1950) */
	/* These only expand. */
	CODEC_BZIP2, /* DMG; where the build has libbz2 */
	CODEC_XZ,    /* DMG; where the build has liblzma */
	CODEC_ADC,   /* DMG: Apple Data Compression */
	CODEC_LZFSE, /* DMG: LZFSE, and LZVN within */
};

struct codec_ctx; /* compressors and expanders of one thread, made when they are first used */

/* NULL: no memory. */
struct codec_ctx *codec_ctx_new(void);
/* NULL is allowed. */
void codec_ctx_free(struct codec_ctx *ctx);

/*
 * Compresses src into dst. Returns 0 and the size in *out; 1 when the result does not fit into dst_cap, which is no
 * error (the content of dst is then undefined); IMG_E_NOMEM; or IMG_E_INVALID for a codec or level that does not exist
 * or a codec that only expands. Level 0 is the codec's default.
 */
int codec_compress(struct codec_ctx *ctx, enum codec_id id, int level, const void *src, size_t src_bytes, void *dst,
		   size_t dst_cap, size_t *out);

/*
 * Expands src, which may come from an attacker, to exactly dst_bytes. CODEC_ZSTD: one frame without dictionary, window
 * at most 8 MiB; CODEC_DEFLATE: one raw stream (RFC 1951). A result that is shorter or longer, trailing input, and
 * anything malformed is IMG_E_CORRUPT; dst is then undefined. Else 0, IMG_E_NOMEM or IMG_E_INVALID (unknown codec, or
 * one that this build does not have). Memory does not depend on src, but CODEC_XZ's, which takes at most 32 MiB.
 */
int codec_expand(struct codec_ctx *ctx, enum codec_id id, const void *src, size_t src_bytes, void *dst,
		 size_t dst_bytes);

/*
 * As codec_expand(), where the end of the stored bytes is known only up to a sector: expanding ends when dst is full,
 * and what follows in src is not looked at. CODEC_ZSTD: several frames in a row may make up dst; one that is longer
 * than what is left of it is corrupt.
 */
int codec_expand_prefix(struct codec_ctx *ctx, enum codec_id id, const void *src, size_t src_bytes, void *dst,
			size_t dst_bytes);

/* Is it there, in this build? */
bool codec_has(enum codec_id id);

/* "none", "zstd", "zlib", "bzip2", "xz", "adc", "lzfse"; "unknown" for anything else. */
const char *codec_name(enum codec_id id);

/* What limg and qcow2 are written with. Reads "none", "zstd", "zstd:LEVEL" (1 to 22), "zlib" or "zlib:LEVEL" (1 to 9).
 * *level is 0 where none is given. -1: none of these. */
int codec_parse(const char *text, enum codec_id *id, int *level);

#endif
