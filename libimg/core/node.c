/* SPDX-License-Identifier: MIT */
/*
 * The chokepoint, data path: every read, write, zero, discard, flush, status and resize of every layer passes here.
 *
 * In: the range is inside the node (protocols and filters may grow by writing), the node is open, writable where it
 * must be, and not poisoned. Out: a failure has filled err; status answers are ascending, contiguous, not empty, and
 * clipped. Between: emulation of what a driver lacks: zero by writing zeros, FUA by a flush, zero detection, and
 * read-modify-write for drivers that take aligned requests only. The rest of the driver's members is called in
 * node_ops.c and node_vmstate.c.
 *
 * States of a node: new -> open -> closed; open -> poisoned by a failed flush, for changes only. A format whose flush
 * fails for want of space decides itself (it may not have lost anything); for all others a failed flush may have lost
 * what was written before, and the kernel will not say so twice.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "is_zero.h"
#include "node_int.h"

#define LAYER	     "node"
#define BOUNCE_BYTES (1u << 20)
#define DETECT_BYTES 4096u

static const _Alignas(4096) uint8_t zeros[64u << 10];

static unsigned long long ull(uint64_t v)
{
	return v;
}

static bool begins_with_part(const struct img_error *err, const struct node *node)
{
	for (size_t i = 0; i < node->nr_parts; i++)
		if (img_error_reason(err, node->parts[i]->path))
			return true;
	return false;
}

/* Formats speak of what is wrong in their file; which of the open files that is, is known here. The layers below said
 * it already. */
static void name_file(const struct node *node, struct img_error *err)
{
	if (!err || node->drv->kind != DRIVER_FORMAT || node->path[0] == '\0')
		return;
	for (const struct node *layer = node; layer; layer = layer->backing)
		for (const struct node *n = layer; n; n = n->file)
			if (img_error_reason(err, n->path) || begins_with_part(err, n))
				return;
	error_prefix(err, "%s", node->path);
}

int node_judge(struct node *node, int ret, const char *what, struct img_error *err)
{
	if (ret == 0)
		return 0;
	if (ret > 0) {
		error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "%s: driver %s broke its contract: %s returned %d",
			  node->path, node->drv->name, what, ret);
		return IMG_E_IO;
	}
	/* Only where the driver forgot. */
	error_set(err, ret, 0, NO_OFFSET, node->drv->name, "%s: %s failed: %s", node->path, what, img_strerror(ret));
	name_file(node, err);
	return ret;
}

static bool grows(const struct node *node)
{
	return node->drv->kind != DRIVER_FORMAT;
}

static int check_open(const struct node *node, const char *what, struct img_error *err)
{
	if (!node->opened)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: %s before it is open", node->path, what);
	return 0;
}

int node_check_change(struct node *node, const char *what, struct img_error *err)
{
	int ret = check_open(node, what, err);

	if (ret != 0)
		return ret;
	if (!node->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, node->drv->name,
				 "%s: cannot %s: it is open read-only", node->path, what);
	if (atomic_load_explicit(&node->poisoned, memory_order_relaxed))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, node->drv->name,
				 "%s: cannot %s: an earlier flush failed; close the image and open it again",
				 node->path, what);
	return 0;
}

static int check_buffer(const struct node *node, const void *buf, uint64_t bytes, struct img_error *err)
{
	if (!buf)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: no buffer", node->path);
	if (bytes > PTRDIFF_MAX)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: 0x%llx bytes are more than memory holds",
				 node->path, ull(bytes));
	return 0;
}

static int check_inside(const struct node *node, uint64_t bytes, uint64_t off, const char *what, struct img_error *err)
{
	uint64_t size = node_size(node);

	if (range_inside(off, bytes, size))
		return 0;
	if (grows(node))
		return error_set(err, IMG_E_IO, 0, off, node->drv->name,
				 "%s: %s of 0x%llx bytes at 0x%llx: the file ends at 0x%llx", node->path, what,
				 ull(bytes), ull(off), ull(size));
	return error_set(err, IMG_E_INVALID, 0, off, LAYER,
			 "%s: %s of 0x%llx bytes at 0x%llx is beyond the size, 0x%llx", node->path, what, ull(bytes),
			 ull(off), ull(size));
}

/* The range of a change: inside, or past the end where the node grows by it. */
static int check_target(const struct node *node, uint64_t bytes, uint64_t off, const char *what, struct img_error *err)
{
	if (!grows(node))
		return check_inside(node, bytes, off, what, err);
	if (!range_inside(off, bytes, INT64_MAX))
		return error_set(err, IMG_E_INVALID, 0, off, LAYER,
				 "%s: %s of 0x%llx bytes at 0x%llx: no file is that long", node->path, what, ull(bytes),
				 ull(off));
	return 0;
}

uint64_t node_size(const struct node *node)
{
	return node->opened ? node->drv->size(node) : 0;
}

void node_limits(const struct node *node, struct driver_limits *out)
{
	memset(out, 0, sizeof(*out));
	if (node->drv->limits && node->opened)
		node->drv->limits(node, out);
	if (out->request_align == 0)
		out->request_align = 1;
	if (out->block_bytes == 0)
		out->block_bytes = 1;
	if (out->optimal_bytes == 0)
		out->optimal_bytes = out->block_bytes;
	if (out->max_size_bytes == 0)
		out->max_size_bytes = INT64_MAX;
}

static uint32_t request_align(const struct node *node)
{
	struct driver_limits limits;

	node_limits(node, &limits);
	return limits.request_align;
}

static bool is_aligned(uint32_t align, const void *buf, uint64_t bytes, uint64_t off)
{
	return (off | bytes | (uintptr_t)buf) % align == 0;
}

/* ---- requests that do not fit a driver's alignment --------------------------------------------------------------- */

static void *bounce_new(const struct node *node, uint32_t align, size_t bytes, struct img_error *err)
{
	void *p = NULL;

	if (posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, bytes) != 0) {
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: no memory for a buffer of %zu bytes", node->path,
			  bytes);
		return NULL;
	}
	return p;
}

/* Reads whole blocks; those beyond the end of a node that grows are zeros. off and bytes are aligned. */
static int read_blocks(struct node *node, uint8_t *buf, uint64_t bytes, uint64_t off, uint32_t align,
		       struct img_error *err)
{
	uint64_t end = round_up(node_size(node), align);
	uint64_t there = off < end ? min_u64(bytes, end - off) : 0;

	memset(buf + there, 0, (size_t)(bytes - there));
	if (there == 0)
		return 0;
	return node_judge(node, node->drv->pread(node, buf, there, off, 0, err), "read", err);
}

static size_t bounce_bytes(uint32_t align, uint64_t bytes, uint64_t off)
{
	return (size_t)min_u64(max_u64(BOUNCE_BYTES, align), round_up(off + bytes, align) - round_down(off, align));
}

static int read_bounced(struct node *node, uint8_t *buf, uint64_t bytes, uint64_t off, uint32_t align,
			struct img_error *err)
{
	size_t cap = bounce_bytes(align, bytes, off);
	uint8_t *bounce = bounce_new(node, align, cap, err);
	int ret = 0;

	if (!bounce)
		return IMG_E_NOMEM;
	while (bytes > 0 && ret == 0) {
		uint64_t first = round_down(off, align);
		uint64_t n = min_u64(bytes, cap - (off - first));

		ret = read_blocks(node, bounce, round_up(off - first + n, align), first, align, err);
		if (ret != 0)
			break;
		memcpy(buf, bounce + (off - first), (size_t)n);
		buf += n;
		off += n;
		bytes -= n;
	}
	free(bounce);
	return ret;
}

/* buf NULL: zeros. The caller holds rmw_lock exclusive. */
static int write_bounced(struct node *node, const uint8_t *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 uint32_t align, struct img_error *err)
{
	size_t cap = bounce_bytes(align, bytes, off);
	uint8_t *bounce = bounce_new(node, align, cap, err);
	uint64_t end = max_u64(node_size(node), off + bytes);
	int ret = 0;

	if (!bounce)
		return IMG_E_NOMEM;
	while (bytes > 0 && ret == 0) {
		uint64_t first = round_down(off, align);
		uint64_t n = min_u64(bytes, cap - (off - first));
		uint64_t whole = round_up(off - first + n, align);

		if (off != first || n != whole)
			ret = read_blocks(node, bounce, whole, first, align, err);
		if (ret != 0)
			break;
		if (buf)
			memcpy(bounce + (off - first), buf, (size_t)n);
		else
			memset(bounce + (off - first), 0, (size_t)n);
		ret = node_judge(node, node->drv->pwrite(node, bounce, whole, first, flags, err), "write", err);
		buf = buf ? buf + n : NULL;
		off += n;
		bytes -= n;
	}
	free(bounce);
	/* A file whose end is not aligned keeps it. */
	if (ret == 0 && grows(node) && node_size(node) > end && node->drv->resize)
		ret = node_judge(node, node->drv->resize(node, end, err), "resize", err);
	return ret;
}

static int write_any(struct node *node, const uint8_t *buf, uint64_t bytes, uint64_t off, unsigned flags,
		     struct img_error *err)
{
	uint32_t align = request_align(node);
	int ret;

	if (align <= 1)
		return node_judge(node, node->drv->pwrite(node, buf, bytes, off, flags, err), "write", err);
	if (is_aligned(align, buf, bytes, off)) {
		pthread_rwlock_rdlock(&node->rmw_lock);
		ret = node_judge(node, node->drv->pwrite(node, buf, bytes, off, flags, err), "write", err);
	} else {
		pthread_rwlock_wrlock(&node->rmw_lock);
		ret = write_bounced(node, buf, bytes, off, flags, align, err);
	}
	pthread_rwlock_unlock(&node->rmw_lock);
	return ret;
}

/* ---- reading and writing ----------------------------------------------------------------------------------------- */

int node_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	uint32_t align;
	int ret = check_open(node, "read", err);

	if (ret == 0)
		ret = check_inside(node, bytes, off, "read", err);
	if (ret != 0 || bytes == 0)
		return ret;
	ret = check_buffer(node, buf, bytes, err);
	if (ret != 0)
		return ret;
	if (!node->drv->pread)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: %s cannot be read", node->path,
				 node->drv->name);
	atomic_fetch_add_explicit(&node->counters.reads, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&node->counters.bytes_read, bytes, memory_order_relaxed);
	align = request_align(node);
	if (is_aligned(align, buf, bytes, off) || align <= 1)
		return node_judge(node, node->drv->pread(node, buf, bytes, off, flags, err), "read", err);
	return read_bounced(node, buf, bytes, off, align, err);
}

static int zero_any(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);

/* Runs of zero blocks are zeroed, the rest is written. Compressed writes are looked at by whole units, which they need.
 */
static int write_detecting(struct node *node, const uint8_t *buf, uint64_t bytes, uint64_t off, unsigned flags,
			   struct img_error *err)
{
	struct driver_limits limits;
	uint64_t grain, end = off + bytes;
	int ret = 0;

	node_limits(node, &limits);
	grain = max_u64(limits.block_bytes, DETECT_BYTES);
	if (flags & IMG_IO_COMPRESS)
		grain = max_u64(limits.unit_bytes, grain);
	flags &= ~(unsigned)IMG_IO_DETECT_ZEROES;
	while (off < end && ret == 0) {
		uint64_t stop = min_u64(round_down(off, grain) + grain, end);
		bool zero = is_zero(buf, (size_t)(stop - off));

		while (stop < end) {
			uint64_t n = min_u64(grain, end - stop);

			if (is_zero(buf + (stop - off), (size_t)n) != zero)
				break;
			stop += n;
		}
		if (zero)
			ret = zero_any(node, stop - off, off, flags & ~(unsigned)IMG_IO_COMPRESS, err);
		else
			ret = write_any(node, buf, stop - off, off, flags, err);
		buf += stop - off;
		off = stop;
	}
	return ret;
}

/* FUA where the driver leaves it to us. */
static int durable(struct node *node, unsigned flags, struct img_error *err)
{
	if (!(flags & IMG_IO_FUA) || (node->drv->native_io & IMG_IO_FUA))
		return 0;
	return node_flush(node, 0, err);
}

static unsigned native_flags(const struct node *node, unsigned flags)
{
	return flags & (~(unsigned)(IMG_IO_FUA | IMG_IO_DETECT_ZEROES) | node->drv->native_io);
}

int node_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = node_check_change(node, "write", err);

	if (ret == 0)
		ret = check_target(node, bytes, off, "write", err);
	if (ret == 0 && bytes > 0)
		ret = check_buffer(node, buf, bytes, err);
	if (ret != 0)
		return ret;
	if (!node->drv->pwrite)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: %s cannot be written", node->path,
				 node->drv->name);
	if (bytes > 0) {
		atomic_fetch_add_explicit(&node->counters.writes, 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&node->counters.bytes_written, bytes, memory_order_relaxed);
		if ((flags & IMG_IO_DETECT_ZEROES) && !(node->drv->native_io & IMG_IO_DETECT_ZEROES))
			ret = write_detecting(node, buf, bytes, off, native_flags(node, flags) | IMG_IO_DETECT_ZEROES,
					      err);
		else
			ret = write_any(node, buf, bytes, off, native_flags(node, flags), err);
	}
	return ret == 0 ? durable(node, flags, err) : ret;
}

static int zero_by_writing(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = 0;

	if (!node->drv->pwrite)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: %s cannot be written", node->path,
				 node->drv->name);
	while (bytes > 0 && ret == 0) {
		uint64_t n = min_u64(bytes, sizeof(zeros) - off % DETECT_BYTES);

		ret = write_any(node, zeros, n, off, flags, err);
		off += n;
		bytes -= n;
	}
	return ret;
}

static int zero_any(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	uint32_t align = request_align(node);
	uint64_t first = round_up(off, align), last = round_down(off + bytes, align);
	int ret = 0;

	if (!node->drv->zero || first >= last)
		return zero_by_writing(node, bytes, off, flags, err);
	if (off < first)
		ret = zero_by_writing(node, first - off, off, flags, err);
	if (ret == 0 && align > 1) {
		pthread_rwlock_rdlock(&node->rmw_lock);
		ret = node_judge(node, node->drv->zero(node, last - first, first, flags, err), "zero", err);
		pthread_rwlock_unlock(&node->rmw_lock);
	} else if (ret == 0) {
		ret = node_judge(node, node->drv->zero(node, last - first, first, flags, err), "zero", err);
	}
	if (ret == 0 && last < off + bytes)
		ret = zero_by_writing(node, off + bytes - last, last, flags, err);
	return ret;
}

int node_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = node_check_change(node, "zero", err);

	if (ret == 0)
		ret = check_target(node, bytes, off, "zero", err);
	if (ret != 0)
		return ret;
	if (bytes > 0) {
		atomic_fetch_add_explicit(&node->counters.zeroes, 1, memory_order_relaxed);
		ret = zero_any(node, bytes, off, native_flags(node, flags), err);
	}
	return ret == 0 ? durable(node, flags, err) : ret;
}

int node_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	uint32_t align = request_align(node);
	uint64_t size = node_size(node), first, last;
	int ret = node_check_change(node, "discard", err);

	if (ret == 0)
		ret = check_target(node, bytes, off, "discard", err);
	if (ret != 0)
		return ret;
	/* Past the end there is nothing to give back. */
	last = off + bytes < size ? round_down(off + bytes, align) : round_up(size, align);
	first = round_up(off, align);
	if (node->drv->discard && first < last) {
		atomic_fetch_add_explicit(&node->counters.discards, 1, memory_order_relaxed);
		ret = node_judge(node, node->drv->discard(node, min_u64(last, size) - first, first, 0, err), "discard",
				 err);
	}
	return ret == 0 && (flags & IMG_IO_FUA) ? node_flush(node, 0, err) : ret;
}

int node_flush(struct node *node, unsigned flags, struct img_error *err)
{
	int ret = check_open(node, "flush", err);

	if (ret != 0)
		return ret;
	if (!node->writable)
		return 0;
	ret = node_check_change(node, "flush", err);
	if (ret != 0 || !node->drv->flush)
		return ret;
	atomic_fetch_add_explicit(&node->counters.flushes, 1, memory_order_relaxed);
	ret = node_judge(node, node->drv->flush(node, flags, err), "flush", err);
	if (ret != 0 && !(node->drv->kind == DRIVER_FORMAT && ret == IMG_E_NOSPC))
		atomic_store(&node->poisoned, true);
	return ret;
}

int node_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	int ret = node_check_change(node, "resize", err);

	if (ret != 0)
		return ret;
	if (size_bytes > INT64_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "%s: 0x%llx bytes are more than 2^63 - 1",
				 node->path, ull(size_bytes));
	if (!node->drv->resize)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: %s cannot be resized", node->path,
				 node->drv->name);
	return node_judge(node, node->drv->resize(node, size_bytes, err), "resize", err);
}

/* ---- status ------------------------------------------------------------------------------------------------------ */

int node_police_status(const struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err)
{
	uint64_t pos = off, end = off + bytes;

	if (*nr == 0 || *nr > cap)
		return error_set(err, IMG_E_IO, 0, off, LAYER, "%s: driver %s broke its contract: %zu extents for %zu",
				 node->path, node->drv->name, *nr, cap);
	for (size_t i = 0; i < *nr; i++) {
		struct status_extent *e = &out[i];

		if (e->off != pos || e->bytes == 0 || e->bytes > UINT64_MAX - e->off || e->kind > STATUS_COMPRESSED)
			return error_set(
				err, IMG_E_IO, 0, e->off, LAYER,
				"%s: driver %s broke its contract: extent 0x%llx+0x%llx of kind %d where 0x%llx is next",
				node->path, node->drv->name, ull(e->off), ull(e->bytes), (int)e->kind, ull(pos));
		if (e->kind != STATUS_DATA)
			e->host_off = STATUS_NO_HOST;
		e->bytes = min_u64(e->bytes, end - pos);
		pos += e->bytes;
		/* What follows lies outside the range. */
		if (pos == end)
			*nr = i + 1;
	}
	return 0;
}

int node_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		struct img_error *err)
{
	int ret = check_open(node, "status", err);

	*nr = 0;
	if (ret == 0)
		ret = check_inside(node, bytes, off, "status", err);
	if (ret != 0 || bytes == 0)
		return ret;
	if (!out || cap == 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: no room for extents", node->path);
	if (!node->drv->status) {
		out[0] = (struct status_extent){
			.off = off, .bytes = bytes, .kind = STATUS_DATA, .host_off = STATUS_NO_HOST
		};
		*nr = 1;
		return 0;
	}
	ret = node_judge(node, node->drv->status(node, bytes, off, out, cap, nr, err), "status", err);
	if (ret != 0)
		return ret;
	return node_police_status(node, bytes, off, out, cap, nr, err);
}

int node_read_backing(struct node *node, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct node *backing = node->backing;
	uint64_t size, there = 0;

	if (node->backing_missing)
		return error_set(err, IMG_E_REFUSED, 0, off, LAYER,
				 "%s: 0x%llx is not in this file, and its backing file was not opened on purpose",
				 node->path, ull(off));
	if (backing) {
		size = node_size(backing);
		there = off < size ? min_u64(bytes, size - off) : 0;
	}
	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there > 0 ? node_pread(backing, buf, there, off, 0, err) : 0;
}
