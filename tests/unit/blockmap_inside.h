/* SPDX-License-Identifier: MIT */
/*
 * For tests of the block engine's inside: an engine under a format that is made up, on a host and with memory that
 * fail, and that do something else on order while they are asked.
 */
#ifndef TESTS_UNIT_BLOCKMAP_INSIDE_H
#define TESTS_UNIT_BLOCKMAP_INSIDE_H

#include <pthread.h>

#include "inside.h"

#include "blockmap_int.h"
#include "disk_int.h"

#define BLOCK	  4096u
#define NR_BLOCKS 48u
#define DISK	  (NR_BLOCKS * BLOCK - 512u)
#define TABLE_OFF 4096u
#define DATA_OFF  65536u
#define PAGE	  64u /* bytes: 8 entries */
#define SECTORS	  (BLOCK / 512)

enum {
	BACKED = 1,
	BITMAPS = 2,	/* of partial blocks, at the head of their places */
	FULL = 4,	/* with BITMAPS: kept full, and no partial blocks */
	APART = 8,	/* with BITMAPS: in room of their own */
	PAGED = 16,	/* pages of the table come into being one by one */
	OPS = 32,	/* everything that a format can do by itself */
	WITH_ZERO = 64, /* entries can say ZERO */
	BULK = 128,
	READONLY = 256,
	CHECKED = 512,	  /* what is left is looked at */
	ONE_PLACE = 1024, /* new places lie apart */
};

struct rig {
	unsigned what;
	struct blockmap_ops ops;
	struct blockmap_shape shape;
	struct node *node;
	struct blockmap *bm;
	uint64_t directory[NR_BLOCKS / 8 + 1], bitmap_at[NR_BLOCKS]; /* PAGED, APART */
	int fail_begin, fail_settle, fail_store, fail_sync, fail_allocate, fail_bitmap, fail_locate;
	_Atomic int fail_decode;
	uint64_t allocate_at; /* OPS: instead of the engine's place; 0: its own */
	uint8_t buf[DISK + BLOCK], seen[DISK + BLOCK];
};

/* ---- the host: a file that does more than fail ------------------------------------------------------------------- */

static struct img_driver hooked;
typedef void (*hook_fn)(void);
static _Atomic(hook_fn) at_read, at_write; /* called once */
static bool block_device;
static unsigned reads_fail; /* so many more */

static void call(_Atomic(hook_fn) *hook)
{
	hook_fn now = atomic_exchange(hook, NULL);

	if (now)
		now();
}

static int hooked_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	call(&at_read);
	if (reads_fail > 0 && reads_fail--)
		return error_set(err, IMG_E_IO, EIO, off, "test", "injected failure of a read");
	return fault_driver.pread(n, buf, bytes, off, flags, err);
}

static int hooked_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	call(&at_write);
	return fault_driver.pwrite(n, buf, bytes, off, flags, err);
}

static int hooked_stat(struct node *n, struct host_stat *out, struct img_error *err)
{
	int ret = fault_driver.stat(n, out, err);

	out->is_block_device = block_device;
	return ret;
}

static struct node *file_new(const char *name)
{
	struct node *inner, *out;

	hooked = fault_driver;
	hooked.pread = hooked_pread;
	hooked.pwrite = hooked_pwrite;
	hooked.stat = hooked_stat;
	assert_ok(mem_node_new(name, &inner, ERR));
	assert_ok(fault_node_new(inner, &inside_plan, &out, ERR));
	out->drv = &hooked;
	return out;
}

static void file_end(struct node *n)
{
	n->drv = &fault_driver;
}

/* ---- the format -------------------------------------------------------------------------------------------------- */

static struct rig *rig_of(const struct blockmap *bm)
{
	return blockmap_format(bm);
}

static int toy_fails(int code, struct img_error *err)
{
	return code ? error_set(err, code, 0, NO_OFFSET, "toy", "the toy fails") : 0;
}

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	uint64_t v = le64_at(raw, 0);

	(void)block;
	if (rig_of(bm)->fail_decode)
		return toy_fails(rig_of(bm)->fail_decode, err);
	if ((v & 511) > BLOCKMAP_PARTIAL)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, "toy", "bits 0x%x", (unsigned)(v & 511));
	*out = (struct blockmap_entry){ .state = (enum blockmap_state)(v & 511), .off = v & ~UINT64_C(511) };
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *e)
{
	bool placed = e->state == BLOCKMAP_DATA || e->state == BLOCKMAP_PARTIAL;
	struct le64 d = le64_of(placed ? e->off | e->state : (uint64_t)e->state);

	(void)bm;
	(void)block;
	memcpy(raw, &d, sizeof(d));
}

static int locate(struct blockmap *bm, uint64_t page, bool make, uint64_t *off, struct img_error *err)
{
	struct rig *r = rig_of(bm);
	int ret = toy_fails(r->fail_locate, err);

	if (ret == 0 && make)
		ret = blockmap_take_room(bm, PAGE, &r->directory[page], err);
	if (ret != 0 && make)
		r->directory[page] = 0;
	*off = r->directory[page];
	return ret;
}

static int locate_bitmap(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, bool make,
			 uint64_t *off, struct img_error *err)
{
	struct rig *r = rig_of(bm);
	int ret = toy_fails(r->fail_bitmap, err);

	(void)entry;
	if (ret == 0 && make)
		ret = blockmap_take_room(bm, 512, &r->bitmap_at[block], err);
	*off = r->bitmap_at[block];
	return ret;
}

static int allocate(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	struct rig *r = rig_of(bm);

	(void)nr;
	if (r->allocate_at)
		*off = r->allocate_at;
	return toy_fails(r->fail_allocate, err);
}

static uint64_t release(struct blockmap *bm, uint64_t off)
{
	(void)bm;
	return off;
}

static int begin(struct blockmap *bm, struct img_error *err)
{
	return toy_fails(rig_of(bm)->fail_begin, err);
}

static int settle(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	(void)end;
	return toy_fails(rig_of(bm)->fail_settle, err);
}

static int store(struct blockmap *bm, const struct blockmap_write *writes, size_t nr, struct img_error *err)
{
	int ret = toy_fails(rig_of(bm)->fail_store, err);

	for (size_t i = 0; i < nr && ret == 0; i++)
		ret = node_pwrite(rig_of(bm)->node->file, writes[i].buf, writes[i].bytes, writes[i].off, 0, err);
	return ret == 0 ? node_flush(rig_of(bm)->node->file, 0, err) : ret;
}

static int sync_toy(struct blockmap *bm, struct img_error *err)
{
	int ret = toy_fails(rig_of(bm)->fail_sync, err);

	return ret == 0 ? node_flush(rig_of(bm)->node->file, 0, err) : ret;
}

static const struct img_driver toy_driver = { .name = "toy", .kind = DRIVER_FORMAT };

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int rig_open(struct rig *r)
{
	const struct driver_open args = { .writable = !(r->what & READONLY), .bulk = r->what & BULK, .cache_bytes = 1 };

	return blockmap_open(r->node, &r->shape, &r->ops, r, &args, &r->bm, ERR);
}

/* Without the engine. */
static struct rig *rig_new(unsigned what)
{
	struct rig *r = calloc(1, sizeof(*r));

	assert_non_null(r);
	block_device = false;
	reads_fail = 0;
	at_read = at_write = NULL;
	r->what = what;
	r->ops = (struct blockmap_ops){ .decode = decode, .encode = encode };
	r->shape = (struct blockmap_shape){ .disk_bytes = DISK,
					    .block_bytes = BLOCK,
					    .nr_blocks = NR_BLOCKS,
					    .entry_bytes = 8,
					    .table_off = TABLE_OFF,
					    .page_bytes = PAGE,
					    .end_off = DATA_OFF,
					    .has_zero = what & WITH_ZERO };
	if (what & PAGED)
		r->ops.locate = locate;
	if (what & APART)
		r->ops.locate_bitmap = locate_bitmap;
	if (what & OPS) {
		r->ops.allocate = allocate;
		r->ops.release = release;
		r->ops.begin = begin;
		r->ops.settle = settle;
		r->ops.store = store;
		r->ops.sync = sync_toy;
	}
	if (what & BITMAPS) {
		r->shape.prefix_bytes = what & APART ? 0 : 512;
		r->shape.bitmap_bytes = SECTORS / 8;
		r->shape.sector_bytes = 512;
		r->shape.bitmap_always = what & FULL;
	}
	if (what & ONE_PLACE)
		r->shape.place_stride = BLOCK + 1024;
	r->node = node_new(&toy_driver, "toy", ERR);
	assert_non_null(r->node);
	r->node->file = file_new("f");
	assert_ok(node_resize(r->node->file, DATA_OFF, ERR));
	if (what & BACKED) {
		r->node->backing = file_new("b");
		memset(r->buf, 0xb0, sizeof(r->buf));
		assert_ok(node_pwrite(r->node->backing, r->buf, DISK / 2 + 100, 0, 0, ERR));
	}
	return r;
}

static struct rig *rig_start(unsigned what)
{
	struct rig *r = rig_new(what);

	assert_ok(rig_open(r));
	return r;
}

static void rig_end(struct rig *r)
{
	blockmap_free(r->bm);
	file_end(r->node->file);
	if (r->node->backing)
		file_end(r->node->backing);
	node_close(r->node, NULL);
	free(r);
}

static void rig_reopen(struct rig *r)
{
	r->shape.end_off = blockmap_end(r->bm);
	blockmap_free(r->bm);
	assert_ok(rig_open(r));
}

static uint8_t *filled(struct rig *r, int with, uint64_t bytes)
{
	memset(r->buf, with, bytes);
	return r->buf;
}

static int put(struct rig *r, int with, uint64_t bytes, uint64_t off)
{
	return blockmap_pwrite(r->bm, filled(r, with, bytes), bytes, off, ERR);
}

static void holds(struct rig *r, int with, uint64_t bytes, uint64_t off)
{
	assert_ok(blockmap_pread(r->bm, r->seen, bytes, off, ERR));
	for (uint64_t i = 0; i < bytes; i++)
		if (r->seen[i] != with)
			fail_msg("0x%llx holds 0x%02x, not 0x%02x", (unsigned long long)(off + i), r->seen[i], with);
}

static struct blockmap_entry entry_of(struct rig *r, uint64_t block)
{
	struct blockmap_entry e;

	assert_ok(blockmap_get(r->bm, block, &e, ERR));
	return e;
}

static bool is_broken(struct rig *r)
{
	return blockmap_may_change(r->bm, NULL) != 0;
}

/* No entry leads to what is wrong. */
static void sound(struct rig *r)
{
	const struct blockmap_rules rules = { .entry = "T-1", .overlap = "T-2" };
	struct img_check_result result = { 0 };
	struct blockmap_census census;

	assert_ok(blockmap_check(r->bm, &rules, DATA_OFF, false, NULL, NULL, NULL, &result, &census, ERR));
	assert_int_equal(result.damage, 0);
}

#endif
