/* SPDX-License-Identifier: MIT */
/* The kinds of segments that formats have in common. */
#include <inttypes.h>
#include <string.h>

#include "blockmap.h"
#include "error.h"
#include "span.h"

#define LAYER "span"

/* ---- a range of a file ------------------------------------------------------------------------------------------- */

static int file_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return node_pread(ctx, buf, bytes, off, 0, err);
}

static int file_pwrite(void *ctx, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return node_pwrite(ctx, buf, bytes, off, 0, err);
}

static int file_zero(void *ctx, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return node_zero(ctx, bytes, off, flags & IMG_IO_NO_UNMAP, err);
}

static int file_discard(void *ctx, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return node_discard(ctx, bytes, off, 0, err);
}

/* Nothing lies below a file: its holes are zeros. */
static int file_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		       struct img_error *err)
{
	int ret = node_status(ctx, bytes, off, out, cap, nr, err);

	for (size_t i = 0; ret == 0 && i < *nr; i++)
		if (out[i].kind == STATUS_UNALLOCATED)
			out[i].kind = STATUS_ZERO;
	return ret;
}

static int file_flush(void *ctx, struct img_error *err)
{
	return node_flush(ctx, 0, err);
}

const struct span_ops span_file = {
	.pread = file_pread,
	.pwrite = file_pwrite,
	.zero = file_zero,
	.discard = file_discard,
	.status = file_status,
	.flush = file_flush,
};

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static int blocks_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return blockmap_pread(ctx, buf, bytes, off, err);
}

static int blocks_pwrite(void *ctx, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return blockmap_pwrite(ctx, buf, bytes, off, err);
}

static int blocks_zero(void *ctx, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return blockmap_zero(ctx, bytes, off, flags, err);
}

static int blocks_discard(void *ctx, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return blockmap_discard(ctx, bytes, off, err);
}

static int blocks_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			 struct img_error *err)
{
	return blockmap_status(ctx, bytes, off, out, cap, nr, err);
}

static int blocks_flush(void *ctx, struct img_error *err)
{
	return blockmap_flush(ctx, err);
}

const struct span_ops span_blocks = {
	.pread = blocks_pread,
	.pwrite = blocks_pwrite,
	.zero = blocks_zero,
	.discard = blocks_discard,
	.status = blocks_status,
	.flush = blocks_flush,
};

/* ---- zeros, and what must not be touched -------------------------------------------------------------------------- */

static int zeros_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	(void)ctx;
	(void)off;
	(void)err;
	memset(buf, 0, (size_t)bytes);
	return 0;
}

static int zeros_zero(void *ctx, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)ctx;
	(void)bytes;
	(void)off;
	(void)flags;
	(void)err;
	return 0;
}

static int zeros_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			struct img_error *err)
{
	(void)ctx;
	(void)cap;
	(void)err;
	out[0] = (struct status_extent){ .off = off, .bytes = bytes, .kind = STATUS_ZERO, .host_off = STATUS_NO_HOST };
	*nr = 1;
	return 0;
}

const struct span_ops span_zeros = {
	.pread = zeros_pread,
	.zero = zeros_zero,
	.status = zeros_status,
};

static int noaccess_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	(void)ctx;
	(void)buf;
	(void)off;
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			 "0x%" PRIx64 " bytes lie in an extent that the image forbids access to (NOACCESS)", bytes);
}

const struct span_ops span_noaccess = {
	.pread = noaccess_pread,
};
