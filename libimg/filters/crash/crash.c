/* SPDX-License-Identifier: MIT */
/* Filter "crash": the node. Every change that the child accepted is logged after it returned; see crash_log.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "crash_int.h"

#define LAYER "crash"

struct crash_state {
	struct crash_log *log;
	unsigned file;
	_Atomic bool dirty; /* changed since the last flush began */
};

static int log_change(struct node *node, int ret, enum crash_kind kind, uint64_t bytes, uint64_t off,
		      struct img_error *err)
{
	struct crash_state *st = node->state;
	struct crash_entry entry = { .kind = kind, .file = st->file, .off = off, .bytes = bytes };

	if (ret != 0)
		return ret;
	atomic_store(&st->dirty, true);
	ret = crash_log_take(st->log, &entry);
	return ret == 0 ? 0 : error_set(err, ret, ENOMEM, off, LAYER, "%s: no memory for the log", node->path);
}

static int crash_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	(void)err;
	node->writable = args->writable;
	return 0;
}

static uint64_t crash_size(const struct node *node)
{
	return node_size(node->file);
}

static void crash_limits(const struct node *node, struct driver_limits *out)
{
	node_limits(node->file, out);
}

static int crash_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	return node_pread(node->file, buf, bytes, off, flags, err);
}

static int crash_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	struct crash_state *st = node->state;
	struct crash_entry entry = { .kind = CRASH_WRITE, .file = st->file, .off = off, .bytes = bytes };
	int ret;

	entry.data = malloc((size_t)bytes);
	if (entry.data == NULL)
		return error_set(err, IMG_E_NOMEM, ENOMEM, off, LAYER, "%s: no memory for the log", node->path);
	memcpy(entry.data, buf, (size_t)bytes);
	ret = node_pwrite(node->file, buf, bytes, off, flags, err);
	atomic_store(&st->dirty, true);
	if (ret == 0) {
		ret = crash_log_take(st->log, &entry);
		if (ret == 0)
			return 0;
		error_set(err, ret, ENOMEM, off, LAYER, "%s: no memory for the log", node->path);
	}
	free(entry.data);
	return ret;
}

static int crash_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return log_change(node, node_zero(node->file, bytes, off, flags, err), CRASH_ZERO, bytes, off, err);
}

static int crash_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return log_change(node, node_discard(node->file, bytes, off, flags, err), CRASH_DISCARD, bytes, off, err);
}

static int crash_flush(struct node *node, unsigned flags, struct img_error *err)
{
	struct crash_state *st = node->state;
	struct crash_entry entry = { .kind = CRASH_FLUSH, .file = st->file, .covers = crash_log_position(st->log) };
	int ret;

	atomic_store(&st->dirty, false);
	ret = node_flush(node->file, flags, err);
	if (ret != 0)
		return ret;
	ret = crash_log_take(st->log, &entry);
	return ret == 0 ? 0 : error_set(err, ret, ENOMEM, NO_OFFSET, LAYER, "%s: no memory for the log", node->path);
}

/* Closing a protocol node makes its file durable: here the filter stands for the host. */
static int crash_close(struct node *node, struct img_error *err)
{
	struct crash_state *st = node->state;

	return node->writable && atomic_load(&st->dirty) ? crash_flush(node, 0, err) : 0;
}

static int crash_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			size_t *nr, struct img_error *err)
{
	return node_status(node->file, bytes, off, out, cap, nr, err);
}

static int crash_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	return log_change(node, node_resize(node->file, size_bytes, err), CRASH_TRUNCATE, size_bytes, 0, err);
}

static int crash_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	return node_stat(node->file, out, err);
}

static int crash_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return log_change(node, node_allocate(node->file, bytes, off, err), CRASH_ALLOCATE, bytes, off, err);
}

static int crash_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	return node_lock_byte(node->file, byte, mode, err);
}

static int crash_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	return node_share(node->file, use, forbid, err);
}

/* Private pages: nothing comes back. */
static int crash_map(struct node *node, void *addr, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return node_map(node->file, addr, bytes, off, err);
}

int crash_node_new(struct node *child, struct crash_log *log, unsigned file, struct node **out, struct img_error *err)
{
	struct driver_open open = { .writable = child->writable };
	struct node *node = node_new(&crash_driver, child->path, err);
	struct crash_state *st;
	int ret;

	*out = NULL;
	if (node == NULL) {
		node_close(child, NULL);
		return IMG_E_NOMEM;
	}
	st = node->state;
	st->log = log;
	st->file = file;
	node->file = child;
	ret = node_open(node, &open, err);
	if (ret != 0) {
		node_close(node, NULL);
		return ret;
	}
	*out = node;
	return 0;
}

const struct img_driver crash_driver = {
	.name = "crash",
	.kind = DRIVER_FILTER,
	.state_bytes = sizeof(struct crash_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.open = crash_open,
	.close = crash_close,
	.size = crash_size,
	.limits = crash_limits,
	.pread = crash_pread,
	.pwrite = crash_pwrite,
	.zero = crash_zero,
	.discard = crash_discard,
	.flush = crash_flush,
	.status = crash_status,
	.resize = crash_resize,
	.stat = crash_stat,
	.allocate = crash_allocate,
	.lock_byte = crash_lock_byte,
	.share = crash_share,
	.map = crash_map,
};
