/* SPDX-License-Identifier: MIT */
/*
 * Filter "fault". Every call is counted by the plan and either passed to the child or failed. A failed read leaves
 * rubbish in the buffer, a failed write may have written its beginning: callers must expect both. There is no map: what
 * would be mapped is read, and so can fail.
 *
 * Full disk: a bitmap per node knows which 4 KiB blocks of the child are backed by the host. It starts from what the
 * child says holds data; writes and reservations pay for the blocks they add, discards, unmapping zeroes and truncation
 * refund. What was reserved but is still a hole when the node closes is refunded too, because the next node could not
 * know of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "fault.h"

#define LAYER	    "fault"
#define BLOCK_BYTES 4096u
#define TEAR_BYTES  512u

struct fault_state {
	struct fault_plan *plan;
	uint8_t *backed; /* plan->lock; one byte per block, 1: the host has space for it. Full-disk mode only */
	uint64_t nr_backed_slots; /* plan->lock; length of the array */
	_Atomic bool dirty;	  /* changed since the last flush began: closing flushes, and that may fail */
};

static const char *const op_names[FAULT_NR_OPS] = {
	[FAULT_READ] = "read",	 [FAULT_WRITE] = "write",   [FAULT_ZERO] = "zero",	   [FAULT_DISCARD] = "discard",
	[FAULT_FLUSH] = "flush", [FAULT_RESIZE] = "resize", [FAULT_ALLOCATE] = "allocate", [FAULT_STATUS] = "status",
	[FAULT_STAT] = "stat",	 [FAULT_LOCK] = "lock",
};

void fault_plan_init(struct fault_plan *plan)
{
	memset(plan, 0, sizeof(*plan));
	pthread_mutex_init(&plan->lock, NULL);
}

void fault_plan_destroy(struct fault_plan *plan)
{
	pthread_mutex_destroy(&plan->lock);
}

void fault_plan_arm(struct fault_plan *plan, unsigned ops, uint64_t nth, int sys_errno, bool for_good)
{
	pthread_mutex_lock(&plan->lock);
	plan->ops = ops;
	plan->nth = nth;
	plan->sys_errno = sys_errno;
	plan->for_good = for_good;
	plan->seen = 0;
	plan->failed = 0;
	pthread_mutex_unlock(&plan->lock);
}

void fault_plan_disarm(struct fault_plan *plan)
{
	fault_plan_arm(plan, 0, 0, 0, false);
}

/* ---- what fails -------------------------------------------------------------------------------------------------- */

/* The errno of this call, 0 if it is to succeed. */
static int decide(struct fault_plan *plan, enum fault_op op)
{
	int e = 0;

	pthread_mutex_lock(&plan->lock);
	plan->calls[op]++;
	if (plan->ops & (1u << op)) {
		plan->seen++;
		if (plan->nth != 0 && (plan->seen == plan->nth || (plan->for_good && plan->seen > plan->nth))) {
			plan->failed++;
			e = plan->sys_errno;
		}
	}
	pthread_mutex_unlock(&plan->lock);
	return e;
}

static int injected(const struct node *node, enum fault_op op, int e, uint64_t off, struct img_error *err)
{
	return error_errno(err, e, off, LAYER, "%s: injected failure of %s", node->path, op_names[op]);
}

/* ---- full disk --------------------------------------------------------------------------------------------------- */

/* plan->lock is held. */
static int make_slots(struct fault_state *st, uint64_t nr)
{
	uint8_t *grown;

	if (nr <= st->nr_backed_slots)
		return 0;
	nr = max_u64(nr, st->nr_backed_slots * 2);
	grown = realloc(st->backed, (size_t)nr);
	if (grown == NULL)
		return ENOMEM;
	memset(grown + st->nr_backed_slots, 0, (size_t)(nr - st->nr_backed_slots));
	st->backed = grown;
	st->nr_backed_slots = nr;
	return 0;
}

/* Pays for the blocks of the range that have no space yet. All or nothing. */
static int charge(struct fault_state *st, uint64_t bytes, uint64_t off)
{
	uint64_t first = off / BLOCK_BYTES, end = (off + bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
	uint64_t need = 0;
	int e;

	pthread_mutex_lock(&st->plan->lock);
	if (!st->plan->disk_full_mode) {
		pthread_mutex_unlock(&st->plan->lock);
		return 0;
	}
	e = make_slots(st, end);
	for (uint64_t i = first; e == 0 && i < end; i++)
		need += st->backed[i] ? 0 : BLOCK_BYTES;
	if (e == 0 && need > st->plan->free_bytes)
		e = ENOSPC;
	if (e != 0)
		st->plan->failed++;
	else
		st->plan->free_bytes -= need;
	for (uint64_t i = first; e == 0 && i < end; i++)
		st->backed[i] = 1;
	pthread_mutex_unlock(&st->plan->lock);
	return e;
}

/* Gives back the whole blocks of [off, end). */
static void refund(struct fault_state *st, uint64_t off, uint64_t end)
{
	pthread_mutex_lock(&st->plan->lock);
	for (uint64_t i = round_up(off, BLOCK_BYTES) / BLOCK_BYTES; i < min_u64(end / BLOCK_BYTES, st->nr_backed_slots);
	     i++) {
		st->plan->free_bytes += st->backed[i] ? BLOCK_BYTES : 0;
		st->backed[i] = 0;
	}
	pthread_mutex_unlock(&st->plan->lock);
}

/* Calls mark for every run of data that the child holds. */
static int each_data_run(struct node *child, void (*mark)(struct fault_state *, uint64_t, uint64_t),
			 struct fault_state *st, struct img_error *err)
{
	struct status_extent extents[32];
	uint64_t off = 0, size = node_size(child);

	while (off < size) {
		size_t nr = 0;
		int ret = node_status(child, size - off, off, extents, ARRAY_LEN(extents), &nr, err);

		if (ret != 0)
			return ret;
		for (size_t i = 0; i < nr; i++) {
			off = extents[i].off + extents[i].bytes;
			if (extents[i].kind == STATUS_DATA)
				mark(st, extents[i].off, off);
		}
	}
	return 0;
}

static void mark_backed(struct fault_state *st, uint64_t off, uint64_t end)
{
	uint64_t last = round_up(end, BLOCK_BYTES) / BLOCK_BYTES;

	if (make_slots(st, last) != 0)
		return;
	for (uint64_t i = off / BLOCK_BYTES; i < last; i++)
		st->backed[i] = 1;
}

static void mark_kept(struct fault_state *st, uint64_t off, uint64_t end)
{
	for (uint64_t i = off / BLOCK_BYTES; i < min_u64(round_up(end, BLOCK_BYTES) / BLOCK_BYTES, st->nr_backed_slots);
	     i++)
		st->backed[i] = 0;
}

/* ---- the driver -------------------------------------------------------------------------------------------------- */

static int fault_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct fault_state *st = node->state;

	node->writable = args->writable;
	if (!st->plan->disk_full_mode)
		return 0;
	return each_data_run(node->file, mark_backed, st, err);
}

static uint64_t fault_size(const struct node *node)
{
	return node_size(node->file);
}

static void fault_limits(const struct node *node, struct driver_limits *out)
{
	node_limits(node->file, out);
}

static int fault_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_READ);

	if (e == 0)
		return node_pread(node->file, buf, bytes, off, flags, err);
	memset(buf, 0xee, (size_t)bytes);
	return injected(node, FAULT_READ, e, off, err);
}

static int fault_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_WRITE);
	uint64_t end;

	atomic_store(&st->dirty, true);
	if (e == 0)
		e = charge(st, bytes, off);
	if (e == 0)
		return node_pwrite(node->file, buf, bytes, off, flags, err);
	pthread_mutex_lock(&st->plan->lock);
	end = round_down(off + min_u64(st->plan->short_bytes, bytes - 1), TEAR_BYTES);
	pthread_mutex_unlock(&st->plan->lock);
	if (end > off)
		(void)node_pwrite(node->file, buf, end - off, off, flags, NULL);
	return injected(node, FAULT_WRITE, e, off, err);
}

static int fault_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_ZERO);
	int ret;

	atomic_store(&st->dirty, true);
	if (e == 0 && (flags & IMG_IO_NO_UNMAP))
		e = charge(st, bytes, off);
	if (e != 0)
		return injected(node, FAULT_ZERO, e, off, err);
	ret = node_zero(node->file, bytes, off, flags, err);
	if (ret == 0 && !(flags & IMG_IO_NO_UNMAP))
		refund(st, off, off + bytes);
	return ret;
}

static int fault_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_DISCARD);
	int ret;

	atomic_store(&st->dirty, true);
	if (e != 0)
		return injected(node, FAULT_DISCARD, e, off, err);
	ret = node_discard(node->file, bytes, off, flags, err);
	if (ret == 0)
		refund(st, off, off + bytes);
	return ret;
}

static int fault_flush(struct node *node, unsigned flags, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_FLUSH);

	atomic_store(&st->dirty, false);
	return e != 0 ? injected(node, FAULT_FLUSH, e, NO_OFFSET, err) : node_flush(node->file, flags, err);
}

/* A protocol node flushes when it closes, which can fail like any flush. */
static int fault_close(struct node *node, struct img_error *err)
{
	struct fault_state *st = node->state;
	int ret = node->writable && atomic_load(&st->dirty) ? fault_flush(node, 0, err) : 0;

	if (st->backed != NULL) {
		/* What stays marked after the data is unmarked was reserved only. */
		(void)each_data_run(node->file, mark_kept, st, NULL);
		refund(st, 0, st->nr_backed_slots * BLOCK_BYTES);
	}
	free(st->backed);
	return ret;
}

static int fault_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			size_t *nr, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_STATUS);

	return e != 0 ? injected(node, FAULT_STATUS, e, off, err) :
			node_status(node->file, bytes, off, out, cap, nr, err);
}

static int fault_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_RESIZE);
	int ret;

	atomic_store(&st->dirty, true);
	if (e != 0)
		return injected(node, FAULT_RESIZE, e, NO_OFFSET, err);
	ret = node_resize(node->file, size_bytes, err);
	if (ret == 0)
		refund(st, size_bytes, UINT64_MAX);
	return ret;
}

static int fault_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_STAT);

	return e != 0 ? injected(node, FAULT_STAT, e, NO_OFFSET, err) : node_stat(node->file, out, err);
}

static int fault_sync_time(struct node *node, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_FLUSH);

	return e != 0 ? injected(node, FAULT_FLUSH, e, NO_OFFSET, err) : node_sync_time(node->file, err);
}

static int fault_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_ALLOCATE);

	atomic_store(&st->dirty, true);
	if (e == 0)
		e = charge(st, bytes, off);
	return e != 0 ? injected(node, FAULT_ALLOCATE, e, off, err) : node_allocate(node->file, bytes, off, err);
}

static int fault_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	struct fault_state *st = node->state;
	/* Nobody fails to let go. */
	int e = mode == BYTE_UNLOCK ? 0 : decide(st->plan, FAULT_LOCK);

	return e != 0 ? injected(node, FAULT_LOCK, e, NO_OFFSET, err) : node_lock_byte(node->file, byte, mode, err);
}

static int fault_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	struct fault_state *st = node->state;
	int e = decide(st->plan, FAULT_LOCK);

	return e != 0 ? injected(node, FAULT_LOCK, e, NO_OFFSET, err) : node_share(node->file, use, forbid, err);
}

int fault_node_new(struct node *child, struct fault_plan *plan, struct node **out, struct img_error *err)
{
	struct driver_open open = { .writable = child->writable };
	struct node *node = node_new(&fault_driver, child->path, err);
	int ret;

	*out = NULL;
	if (node == NULL) {
		node_close(child, NULL);
		return IMG_E_NOMEM;
	}
	((struct fault_state *)node->state)->plan = plan;
	node->file = child;
	ret = node_open(node, &open, err);
	if (ret != 0) {
		free(((struct fault_state *)node->state)->backed);
		node_close(node, NULL);
		return ret;
	}
	*out = node;
	return 0;
}

const struct img_driver fault_driver = {
	.name = "fault",
	.kind = DRIVER_FILTER,
	.state_bytes = sizeof(struct fault_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.open = fault_open,
	.close = fault_close,
	.size = fault_size,
	.limits = fault_limits,
	.pread = fault_pread,
	.pwrite = fault_pwrite,
	.zero = fault_zero,
	.discard = fault_discard,
	.flush = fault_flush,
	.status = fault_status,
	.resize = fault_resize,
	.stat = fault_stat,
	.sync_time = fault_sync_time,
	.allocate = fault_allocate,
	.lock_byte = fault_lock_byte,
	.share = fault_share,
};
