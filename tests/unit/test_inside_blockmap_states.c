/* SPDX-License-Identifier: MIT */
/*
 * The block engine in states that formats bring about rarely: shapes that make no sense, devices, files that were cut
 * off, moves, bitmaps of all kinds, entries that make no sense, a cache that is too small.
 */
#include "blockmap_inside.h"

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

static void test_shapes(void **state)
{
	const struct blockmap_shape good = { .disk_bytes = MIB,
					     .block_bytes = 4096,
					     .nr_blocks = 256,
					     .entry_bytes = 4,
					     .bitmap_bytes = 1,
					     .sector_bytes = 512 };
	struct blockmap_shape bad[8];
	struct rig *r = rig_new(0);

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		bad[i] = good;
	bad[0].page_bytes = 10;
	bad[1].place_stride = 4095;
	bad[2].disk_bytes = UINT64_C(1) << 63;
	bad[3].nr_slots = UINT64_MAX / 4 + 1;
	bad[4].nr_slots = UINT64_C(1) << 61; /* a table of half of all numbers */
	bad[5].sector_bytes = 0;
	bad[6].sector_bytes = 3000;
	bad[7].sector_bytes = 256;
	r->shape = good;
	assert_ok(rig_open(r));
	assert_fails(blockmap_reshape(r->bm, &bad[1], ERR), IMG_E_LIMIT, "too large");
	blockmap_free(r->bm);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		r->shape = bad[i];
		assert_fails(rig_open(r), IMG_E_CORRUPT, "make no sense");
		assert_null(r->bm);
	}
	rig_end(r);
}

/* ---- a device: it has a size, and holds anything ----------------------------------------------------------------- */

static void test_device(void **state)
{
	struct blockmap_shape shape;
	struct rig *r = rig_new(0);
	uint64_t off;

	(void)state;
	block_device = true;
	assert_ok(node_pwrite(r->node->file, filled(r, 0xee, 40 * BLOCK), 40 * BLOCK, DATA_OFF, 0, ERR));
	assert_ok(rig_open(r));
	assert_ok(put(r, 1, 512, 512));
	holds(r, 0, 512, 0);
	holds(r, 0, BLOCK - 1024, 1024);
	assert_ok(blockmap_stop(r->bm, ERR));
	shape = *blockmap_shape(r->bm);
	shape.end_off = blockmap_end(r->bm);
	assert_ok(blockmap_reshape(r->bm, &shape, ERR));
	blockmap_start(r->bm);
	assert_ok(put(r, 1, 512, 5 * BLOCK));
	holds(r, 0, BLOCK - 512, 5 * BLOCK + 512);
	/* Room of its own holds zeros, too. */
	assert_ok(blockmap_take_room(r->bm, 1000, &off, ERR));
	assert_ok(node_pread(r->node->file, r->seen, 1000, off, 0, ERR));
	assert_int_equal(r->seen[0] | r->seen[999], 0);
	fault_plan_arm(&inside_plan, 1u << FAULT_ZERO, 1, EIO, false);
	assert_int_equal(blockmap_take_room(r->bm, 1000, &off, ERR), IMG_E_IO);
	fault_plan_arm(&inside_plan, 1u << FAULT_ZERO, 1, EIO, false);
	assert_int_equal(put(r, 1, 512, 9 * BLOCK), IMG_E_IO); /* a place that is not blank */
	fault_plan_disarm(&inside_plan);
	/* Room that begins where it ends, and such that no file has. */
	blockmap_set_end(r->bm, node_size(r->node->file));
	assert_ok(blockmap_take_room(r->bm, 1000, &off, ERR));
	assert_int_equal(off, DATA_OFF + 40 * BLOCK);
	assert_int_equal(blockmap_end(r->bm), off + 1000);
	assert_fails(blockmap_take_room(r->bm, UINT64_MAX, &off, ERR), IMG_E_LIMIT, "no file is that long");
	assert_fails(blockmap_take_room(r->bm, INT64_MAX, &off, ERR), IMG_E_LIMIT, "no file is that long");
	rig_end(r);
}

/* ---- a file that is shorter than its table says ------------------------------------------------------------------ */

static void test_cut_off(void **state)
{
	const struct blockmap_entry e = { .state = BLOCKMAP_DATA, .off = DATA_OFF };
	struct status_extent x[2];
	struct rig *r = rig_start(BACKED);
	size_t nr;

	(void)state;
	assert_ok(blockmap_set(r->bm, 3, &e, ERR));
	assert_ok(blockmap_flush(r->bm, ERR));
	assert_fails(put(r, 1, 512, 3 * BLOCK), IMG_E_CORRUPT, "beyond the end");
	assert_fails(blockmap_zero(r->bm, 512, 3 * BLOCK, 0, ERR), IMG_E_CORRUPT, "beyond the end");
	assert_fails(blockmap_pread(r->bm, r->seen, 512, 3 * BLOCK, ERR), IMG_E_CORRUPT, "beyond the end");
	assert_ok(blockmap_status(r->bm, BLOCK, 3 * BLOCK, x, 2, &nr, ERR));
	assert_true(nr == 1 && x[0].kind == STATUS_DATA);
	/* What a last place lacks is zeros, and it gets its length. */
	assert_ok(blockmap_zero_tail(r->bm, 3 * BLOCK + 512, ERR));
	assert_int_equal(node_size(r->node->file), DATA_OFF + BLOCK);
	holds(r, 0, BLOCK, 3 * BLOCK);
	assert_ok(node_resize(r->node->file, DATA_OFF + 700, ERR));
	assert_ok(blockmap_move(r->bm, 3, 0, ERR));
	assert_ok(blockmap_wipe(r->bm, 3, ERR));
	assert_ok(node_resize(r->node->file, DATA_OFF, ERR));
	assert_ok(blockmap_wipe(r->bm, 3, ERR));
	holds(r, 0, BLOCK, 3 * BLOCK);
	assert_ok(blockmap_wipe(r->bm, 30, ERR));			/* has none */
	assert_ok(node_resize(r->node->file, entry_of(r, 3).off, ERR)); /* nothing to copy, and no room to say so */
	assert_ok(blockmap_status(r->bm, 2 * BLOCK, 2 * BLOCK, x, 1, &nr, ERR));
	assert_true(nr == 1 && x[0].bytes == BLOCK && x[0].kind == STATUS_UNALLOCATED);
	assert_ok(blockmap_move(r->bm, 3, DATA_OFF + 4 * BLOCK, ERR));
	assert_ok(node_resize(r->node->file, DATA_OFF + 5 * BLOCK, ERR));
	holds(r, 0, BLOCK, 3 * BLOCK);
	rig_end(r);
}

/* Places that were somebody's are wiped, or written as a whole; long ones go in pieces. */
static void test_move(void **state)
{
	const uint64_t large = 2 * MIB;
	struct rig *r = rig_new(BACKED);

	(void)state;
	r->shape.block_bytes = large;
	r->shape.disk_bytes = NR_BLOCKS * large;
	assert_ok(node_resize(r->node->backing, NR_BLOCKS * large, ERR));
	assert_ok(node_pwrite(r->node->file, filled(r, 0xee, DISK), DISK, DATA_OFF, 0, ERR));
	assert_ok(rig_open(r));
	assert_ok(put(r, 1, 512, large - 512));
	assert_ok(put(r, 2, 512, large));
	assert_ok(blockmap_move(r->bm, 1, 0, ERR));
	assert_ok(blockmap_move(r->bm, 0, DATA_OFF + large, ERR)); /* where block 1 was */
	assert_int_equal(entry_of(r, 0).off, DATA_OFF + large);
	assert_ok(blockmap_move(r->bm, 1, DATA_OFF, ERR)); /* where block 0 was, and something else before */
	holds(r, 0xb0, 512, 0);
	holds(r, 1, 512, large - 512);
	holds(r, 2, 512, large);
	holds(r, 0, BLOCK, large + BLOCK);
	/* Two pieces of data, the first of which is longer than what is copied at once. */
	for (unsigned i = 0; i < 7; i++)
		assert_ok(put(r, 3, DISK, i * DISK));
	for (unsigned k = 1; k <= 3; k++) {
		fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, k, EIO, false);
		assert_int_equal(blockmap_move(r->bm, 0, 0, ERR), IMG_E_IO);
		fault_plan_arm(&inside_plan, 1u << FAULT_READ, k, EIO, false);
		assert_int_equal(blockmap_move(r->bm, 0, 0, ERR), IMG_E_IO);
		fault_plan_disarm(&inside_plan);
	}
	assert_int_equal(entry_of(r, 0).off, DATA_OFF + large);
	fault_plan_arm(&inside_plan, 1u << FAULT_READ, 1, EIO, false);
	assert_int_equal(put(r, 1, 512, 6 * large - 512), IMG_E_IO); /* of what it leaves out */
	fault_plan_disarm(&inside_plan);
	holds(r, 3, DISK, 6 * DISK);
	rig_end(r);
}

static void test_huge_blocks(void **state)
{
	const uint64_t huge = 16 * MIB;
	struct rig *r = rig_new(0);
	struct node *file;

	(void)state;
	r->shape.block_bytes = huge;
	r->shape.file = file = file_new("other");
	assert_ok(node_resize(file, DATA_OFF, ERR));
	assert_ok(rig_open(r));
	assert_ok(put(r, 4, 1024, huge - 512)); /* one after the other */
	holds(r, 4, 1024, huge - 512);
	assert_ptr_equal(blockmap_node(r->bm), r->node);
	assert_int_equal(node_size(r->node->file), DATA_OFF);
	assert_int_equal(node_size(file), DATA_OFF + 2 * huge);
	rig_end(r);
	file_end(file);
	node_close(file, NULL);
}

/* More blocks than are looked at in one go. */
static void test_long_requests(void **state)
{
	const uint64_t nr = 9000;
	struct status_extent x[2];
	struct rig *r = rig_new(BACKED | WITH_ZERO);
	const struct driver_open args = { .writable = true };
	size_t got;

	(void)state;
	r->shape.nr_blocks = nr;
	r->shape.disk_bytes = nr * BLOCK;
	r->shape.end_off = DATA_OFF + MIB;
	assert_ok(node_resize(r->node->file, DATA_OFF + MIB, ERR));
	assert_ok(blockmap_open(r->node, &r->shape, &r->ops, r, &args, &r->bm, ERR));
	for (unsigned round = 0; round < 2; round++) {
		assert_ok(blockmap_status(r->bm, nr * BLOCK, 0, x, 2, &got, ERR));
		assert_true(got == 1 && x[0].bytes == nr * BLOCK);
		assert_int_equal(x[0].kind, round ? STATUS_ZERO : STATUS_UNALLOCATED);
		assert_ok(blockmap_zero(r->bm, nr * BLOCK, 0, 0, ERR));
	}
	rig_end(r);
}

/* More holes in the file than one question to the host answers. */
static void test_many_holes(void **state)
{
	static struct status_extent x[400];
	struct rig *r = rig_new(0);
	const uint64_t block = MIB;
	size_t nr;

	(void)state;
	r->shape.block_bytes = block;
	assert_ok(rig_open(r));
	for (uint64_t at = 0; at < block; at += 2 * MEM_PAGE_BYTES)
		assert_ok(put(r, 1, 512, at));
	for (unsigned round = 0; round < 2; round++) {
		assert_ok(blockmap_status(r->bm, block, 0, x, ARRAY_LEN(x), &nr, ERR));
		assert_int_equal(nr, block / MEM_PAGE_BYTES);
		for (size_t i = 0; i < nr; i++)
			assert_int_equal(x[i].kind, i % 2 ? STATUS_ZERO : STATUS_DATA);
		assert_ok(put(r, 2, 512, 0)); /* what was said no longer counts */
	}
	rig_end(r);
}

/* ---- bitmaps ----------------------------------------------------------------------------------------------------- */

static void test_bitmaps(void **state)
{
	const struct blockmap_entry zero = { .state = BLOCKMAP_ZERO },
				    part = { .state = BLOCKMAP_PARTIAL, .off = DATA_OFF };
	struct rig *r = rig_new(BITMAPS | BACKED | WITH_ZERO);

	(void)state;
	/* A disk that ends inside a sector, all of which is the image's then. */
	r->shape.disk_bytes = 10 * BLOCK + 612;
	assert_ok(rig_open(r));
	assert_ok(put(r, 1, 512, 10 * BLOCK - 512));
	assert_ok(put(r, 1, 512, 9 * BLOCK));
	assert_ok(put(r, 2, 50, 10 * BLOCK));
	assert_ok(put(r, 3, 50, 10 * BLOCK + 562));
	holds(r, 2, 50, 10 * BLOCK);
	holds(r, 0xb0, 512, 10 * BLOCK + 50);
	holds(r, 3, 50, 10 * BLOCK + 562);
	/* A block that said zeros is the image's as a whole. */
	assert_ok(blockmap_set(r->bm, 4, &zero, ERR));
	assert_ok(put(r, 4, 512, 4 * BLOCK + 1024));
	holds(r, 0, 1024, 4 * BLOCK);
	holds(r, 4, 512, 4 * BLOCK + 1024);
	holds(r, 0, BLOCK - 1536, 4 * BLOCK + 1536);
	assert_ok(blockmap_zero(r->bm, 1024, 9 * BLOCK + 1024, 0, ERR)); /* sectors of the backing's */
	holds(r, 0, 1024, 9 * BLOCK + 1024);
	rig_end(r);

	/* Long runs of like bits; what an image without a backing lacks is zeros. */
	r = rig_new(BITMAPS);
	r->shape.block_bytes = 64 * 512;
	r->shape.bitmap_bytes = 8;
	assert_ok(rig_open(r));
	assert_ok(put(r, 1, 40 * 512, 3 * 512));
	assert_ok(put(r, 2, 100, 50 * 512 + 10));
	holds(r, 0, 3 * 512, 0);
	holds(r, 1, 40 * 512, 3 * 512);
	holds(r, 0, 7 * 512 + 10, 43 * 512);
	holds(r, 2, 100, 50 * 512 + 10);
	rig_end(r);

	r = rig_new(BITMAPS); /* bits that are no whole bytes */
	r->shape.block_bytes = 12 * 512;
	r->shape.bitmap_bytes = 2;
	assert_ok(rig_open(r));
	assert_ok(put(r, 1, 12 * 512, 0));
	holds(r, 1, 12 * 512, 0);
	rig_end(r);

	/* A format whose bitmaps are full found one that is not. */
	r = rig_new(BITMAPS | FULL);
	assert_ok(node_resize(r->node->file, DATA_OFF + 512 + BLOCK, ERR));
	r->shape.end_off = DATA_OFF + 512 + BLOCK;
	assert_ok(rig_open(r));
	assert_ok(blockmap_set(r->bm, 2, &part, ERR));
	assert_ok(put(r, 5, 512, 2 * BLOCK + 512));
	holds(r, 0, 512, 2 * BLOCK);
	holds(r, 5, 512, 2 * BLOCK + 512);
	rig_end(r);
}

/* What lies below, although nothing is attached. */
static void test_backing_elsewhere(void **state)
{
	struct rig *r = rig_start(WITH_ZERO);

	(void)state;
	assert_ok(blockmap_zero(r->bm, BLOCK, 0, 0, ERR));
	assert_int_equal(entry_of(r, 0).state, BLOCKMAP_FREE);
	r->node->backing_changes = true;
	assert_ok(blockmap_zero(r->bm, BLOCK, 0, 0, ERR));
	assert_int_equal(entry_of(r, 0).state, BLOCKMAP_ZERO);
	r->node->backing_changes = false;
	r->node->backing_missing = true;
	assert_ok(blockmap_zero(r->bm, BLOCK, BLOCK, 0, ERR));
	assert_int_equal(entry_of(r, 1).state, BLOCKMAP_ZERO);
	r->node->backing_missing = false;
	/* Room that is taken is made known, if no data is either. */
	assert_ok(blockmap_flush(r->bm, ERR));
	blockmap_set_end(r->bm, blockmap_end(r->bm) + 512);
	assert_ok(blockmap_flush(r->bm, ERR));
	rig_end(r);
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static void test_entries(void **state)
{
	const struct blockmap_entry zero = { .state = BLOCKMAP_ZERO };
	const uint8_t nonsense[8] = { 7 };
	struct rig *r = rig_start(BACKED | WITH_ZERO);
	struct blockmap_entry e;
	uint8_t raw[8];

	(void)state;
	assert_fails(blockmap_get(r->bm, NR_BLOCKS, &e, ERR), IMG_E_CORRUPT, "no entry 48");
	assert_fails(blockmap_set(r->bm, NR_BLOCKS, &zero, ERR), IMG_E_CORRUPT, "no entry 48");
	assert_fails(blockmap_slot_get(r->bm, NR_BLOCKS, raw, ERR), IMG_E_CORRUPT, "no entry 48");
	assert_fails(blockmap_slot_set(r->bm, NR_BLOCKS, raw, ERR), IMG_E_CORRUPT, "no entry 48");
	/* What makes no sense is in nobody's way but its own. */
	assert_ok(blockmap_slot_set(r->bm, 5, nonsense, ERR));
	assert_ok(blockmap_slot_get(r->bm, 5, raw, ERR));
	assert_memory_equal(raw, nonsense, 8);
	assert_fails(put(r, 1, 512, 5 * BLOCK), IMG_E_CORRUPT, "bits 0x7");
	assert_fails(put(r, 1, 3 * BLOCK, 3 * BLOCK), IMG_E_CORRUPT, "bits 0x7"); /* with others */
	assert_fails(blockmap_zero(r->bm, 3 * BLOCK, 3 * BLOCK, 0, ERR), IMG_E_CORRUPT, "bits 0x7");
	assert_fails(blockmap_zero_tail(r->bm, 5 * BLOCK + 1, ERR), IMG_E_CORRUPT, "bits 0x7");
	assert_fails(blockmap_wipe(r->bm, 5, ERR), IMG_E_CORRUPT, "bits 0x7");
	assert_fails(blockmap_move(r->bm, 5, 0, ERR), IMG_E_CORRUPT, "bits 0x7");
	assert_ok(blockmap_clear(r->bm, 5, 1, ERR));
	holds(r, 0xb0, 512, 5 * BLOCK);
	/* Tails of what is zeros already. */
	assert_ok(blockmap_set(r->bm, 6, &zero, ERR));
	assert_ok(blockmap_zero_tail(r->bm, 6 * BLOCK + 512, ERR));
	assert_int_equal(entry_of(r, 6).state, BLOCKMAP_ZERO);
	assert_ok(put(r, 1, 512, 6 * BLOCK)); /* the rest comes from nowhere */
	holds(r, 0, BLOCK - 512, 6 * BLOCK + 512);
	rig_end(r);
	r = rig_start(0);
	assert_ok(blockmap_zero_tail(r->bm, 6 * BLOCK + 512, ERR)); /* nothing lies below */
	assert_int_equal(entry_of(r, 6).state, BLOCKMAP_FREE);
	rig_end(r);
}

/* blockmap_clear() ends with what it cannot read, said or not. */
static void test_clear_unread(void **state)
{
	const struct blockmap_entry zero = { .state = BLOCKMAP_ZERO };
	struct rig *r;

	(void)state;
	for (unsigned nr = 1; nr < 5; nr++) { /* it may try again; what it says is true */
		int ret;

		r = rig_start(WITH_ZERO);
		assert_ok(blockmap_set(r->bm, 31, &zero, ERR));
		assert_ok(blockmap_flush(r->bm, ERR));
		rig_reopen(r);
		reads_fail = nr;
		ret = blockmap_clear(r->bm, 30, 2, ERR);
		reads_fail = 0;
		assert_true(ret == 0 || ret == IMG_E_IO);
		assert_true(nr < 4 || ret == IMG_E_IO);
		assert_int_equal(entry_of(r, 31).state, ret == 0 ? BLOCKMAP_FREE : BLOCKMAP_ZERO);
		rig_end(r);
	}
	/* Nor does it go on where the cache is full of entries that cannot be written. */
	r = rig_new(WITH_ZERO);
	r->shape.nr_blocks = 400;
	r->shape.nr_slots = 400;
	assert_ok(rig_open(r));
	for (uint64_t i = 0; i < 400; i++)
		assert_ok(blockmap_set(r->bm, i, &zero, ERR));
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 1, EIO, false);
	assert_int_equal(blockmap_clear(r->bm, 0, 400, ERR), IMG_E_IO);
	fault_plan_disarm(&inside_plan);
	assert_true(is_broken(r));
	rig_end(r);
}

/* ---- the cache --------------------------------------------------------------------------------------------------- */

/* More bitmaps than the cache takes, in few buckets; a page that has the cache to itself. */
static void test_cache(void **state)
{
	const uint64_t nr = 3000;
	struct rig *r = rig_new(BITMAPS | BACKED);

	(void)state;
	r->shape.page_bytes = 4096; /* the cache has room for 16 of them, and 64 buckets */
	r->shape.nr_blocks = nr;
	r->shape.disk_bytes = nr * BLOCK;
	assert_ok(rig_open(r));
	for (uint64_t i = 0; i < nr; i++)
		assert_ok(put(r, (int)(i & 0x7f), 512, i * BLOCK));
	assert_ok(blockmap_flush(r->bm, ERR));
	for (uint64_t i = 0; i < nr; i++)
		holds(r, (int)(i & 0x7f), 512, i * BLOCK);
	rig_end(r);

	r = rig_new(BITMAPS | BACKED);
	r->shape.bitmap_bytes = 8192; /* more than pages of 64 bytes let it have */
	r->shape.prefix_bytes = 8192;
	assert_ok(rig_open(r));
	for (unsigned i = 0; i < 4; i++)
		assert_ok(put(r, (int)i, 512, i * BLOCK + 512));
	assert_ok(blockmap_flush(r->bm, ERR));
	for (unsigned i = 0; i < 4; i++)
		holds(r, (int)i, 512, i * BLOCK + 512);
	rig_end(r);
}

/* A table that would want more buckets than there may be. */
static void test_large_table(void **state)
{
	const struct driver_open args = { .writable = true };
	struct rig *r = rig_new(0);

	(void)state;
	r->shape.page_bytes = 8;
	r->shape.nr_slots = 4u << 20;
	assert_ok(blockmap_open(r->node, &r->shape, &r->ops, r, &args, &r->bm, ERR));
	assert_int_equal(entry_of(r, 5).state, BLOCKMAP_FREE);
	rig_end(r);
}

/* Writes of a flush are a MiB at most each, and ascending. */
static void test_long_flush(void **state)
{
	const struct driver_open args = { .writable = true };
	const struct blockmap_entry zero = { .state = BLOCKMAP_ZERO };
	struct rig *r = rig_new(WITH_ZERO);
	uint64_t before;

	(void)state;
	r->shape.page_bytes = 4096;
	r->shape.nr_slots = 160000; /* 1.2 MiB of entries */
	r->shape.end_off = 2 * MIB;
	assert_ok(node_resize(r->node->file, 2 * MIB, ERR));
	assert_ok(blockmap_open(r->node, &r->shape, &r->ops, r, &args, &r->bm, ERR));
	for (uint64_t i = 0; i < 160000; i += 512)
		assert_ok(blockmap_set(r->bm, i, &zero, ERR));
	before = inside_plan.calls[FAULT_WRITE];
	assert_ok(blockmap_flush(r->bm, ERR));
	assert_int_equal(inside_plan.calls[FAULT_WRITE] - before, 2);
	rig_end(r);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_shapes),	TEST(test_device),	 TEST(test_cut_off),
		TEST(test_move),	TEST(test_huge_blocks),	 TEST(test_long_requests),
		TEST(test_many_holes),	TEST(test_bitmaps),	 TEST(test_backing_elsewhere),
		TEST(test_entries),	TEST(test_clear_unread), TEST(test_cache),
		TEST(test_large_table), TEST(test_long_flush),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
