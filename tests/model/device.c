/* SPDX-License-Identifier: MIT */
/* See device.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "device.h"
#include "error.h"

#define LAYER	     "device"
#define SECTOR_BYTES 512u
#define PIECE_BYTES  (1u << 20)
#define OLD_BYTE     0x5a /* of whoever had the device before */

bool device_make(struct memfs *fs, const char *name)
{
	struct mem_content *device = mem_content_new();
	uint8_t *piece = malloc(PIECE_BYTES);
	bool ok = device && piece;

	if (piece)
		memset(piece, OLD_BYTE, PIECE_BYTES);
	for (uint64_t off = 0; ok && off < DEVICE_BYTES; off += PIECE_BYTES)
		ok = mem_content_write(device, piece, PIECE_BYTES, off) == 0;
	free(piece);
	if (ok)
		memfs_put(fs, name, device);
	else
		mem_content_unref(device);
	return ok;
}

static int device_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	(void)err;
	node->writable = args->writable;
	return 0;
}

static int device_close(struct node *node, struct img_error *err)
{
	(void)node;
	(void)err;
	return 0;
}

static uint64_t device_size(const struct node *node)
{
	return node_size(node->file);
}

static void device_limits(const struct node *node, struct driver_limits *out)
{
	node_limits(node->file, out);
}

static int device_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	return node_pread(node->file, buf, bytes, off, flags, err);
}

static int check_room(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	if (range_inside(off, bytes, DEVICE_BYTES))
		return 0;
	return error_set(err, IMG_E_NOSPC, ENOSPC, off, LAYER, "%s: the device is full", node->path);
}

static int device_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	int ret = check_room(node, bytes, off, err);

	return ret ? ret : node_pwrite(node->file, buf, bytes, off, flags, err);
}

static int device_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = check_room(node, bytes, off, err);

	return ret ? ret : node_zero(node->file, bytes, off, flags, err);
}

/* Whole sectors; who reads them may find anything. */
static int device_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	uint64_t at = round_up(off, SECTOR_BYTES), end = round_down(off + bytes, SECTOR_BYTES);
	uint8_t old[SECTOR_BYTES];
	int ret = check_room(node, bytes, off, err);

	memset(old, OLD_BYTE, sizeof(old));
	for (; ret == 0 && at < end; at += SECTOR_BYTES)
		ret = node_pwrite(node->file, old, SECTOR_BYTES, at, flags, err);
	return ret;
}

static int device_flush(struct node *node, unsigned flags, struct img_error *err)
{
	return node_flush(node->file, flags, err);
}

static int device_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			 size_t *nr, struct img_error *err)
{
	(void)node;
	(void)err;
	*nr = cap > 0 && bytes > 0;
	if (*nr)
		out[0] = (struct status_extent){ .off = off, .bytes = bytes, .kind = STATUS_DATA, .host_off = off };
	return 0;
}

static int device_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	if (size_bytes < DEVICE_BYTES)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: a device keeps its size",
				 node->path);
	return check_room(node, size_bytes, 0, err);
}

static int device_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	int ret = node_stat(node->file, out, err);

	out->mtime_ns = 0;
	out->allocated_bytes = out->file_bytes = DEVICE_BYTES;
	out->is_block_device = true;
	return ret;
}

static int device_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return check_room(node, bytes, off, err);
}

static int device_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	return node_lock_byte(node->file, byte, mode, err);
}

static int device_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	return node_share(node->file, use, forbid, err);
}

static const struct img_driver device_driver = {
	.name = "device",
	.kind = DRIVER_FILTER,
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.open = device_open,
	.close = device_close,
	.size = device_size,
	.limits = device_limits,
	.pread = device_pread,
	.pwrite = device_pwrite,
	.zero = device_zero,
	.discard = device_discard,
	.flush = device_flush,
	.status = device_status,
	.resize = device_resize,
	.stat = device_stat,
	.allocate = device_allocate,
	.lock_byte = device_lock_byte,
	.share = device_share,
};

int device_wrap(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		struct img_error *err)
{
	struct driver_open open = { .writable = child->writable };
	struct node *node;
	int ret;

	(void)ctx;
	(void)name;
	(void)args;
	*out = child;
	if (node_size(child) != DEVICE_BYTES)
		return 0;
	*out = NULL;
	node = node_new(&device_driver, child->path, err);
	if (!node) {
		node_close(child, NULL);
		return IMG_E_NOMEM;
	}
	node->file = child;
	ret = node_open(node, &open, err);
	if (ret != 0)
		node_close(node, NULL);
	else
		*out = node;
	return ret;
}
