/* SPDX-License-Identifier: MIT */
/*
 * The block engine on a host and with memory that fail, call after call, and under a format that does. After each
 * failure an engine that goes on reads what one that is opened afterwards reads, and the table leads to nothing wrong.
 */
#include "blockmap_inside.h"

/* ---- each failure ------------------------------------------------------------------------------------------------ */

struct attempt {
	unsigned what;
	struct rig *r;
	void (*prepare)(struct rig *r);
	int (*act)(struct rig *r);
};

static void attempt_before(void *ctx)
{
	struct attempt *a = ctx;

	a->r = rig_start(a->what);
	if (a->prepare)
		a->prepare(a->r);
}

static int attempt_act(void *ctx)
{
	return ((struct attempt *)ctx)->act(((struct attempt *)ctx)->r);
}

static void attempt_after(void *ctx, int ret)
{
	struct rig *r = ((struct attempt *)ctx)->r;

	(void)ret;
	if (!is_broken(r) && blockmap_flush(r->bm, ERR) == 0) {
		assert_ok(blockmap_pread(r->bm, r->buf, DISK, 0, ERR));
		rig_reopen(r);
		assert_ok(blockmap_pread(r->bm, r->seen, DISK, 0, ERR));
		assert_memory_equal(r->buf, r->seen, DISK);
	} else {
		rig_reopen(r);
	}
	if (!(r->what & READONLY))
		sound(r);
	rig_end(r);
}

static void each_failure(unsigned what, void (*prepare)(struct rig *r), int (*act)(struct rig *r))
{
	struct attempt a = { .what = what, .prepare = prepare, .act = act };
	struct inside_failures f = { attempt_before, attempt_act, attempt_after, &a, FAULT_ALL, false };

	assert_true(inside_fail_each(&f) > 0);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 0);
}

static void prepare_some(struct rig *r)
{
	assert_ok(put(r, 1, 3 * BLOCK, 2 * BLOCK));
	assert_ok(put(r, 2, 1000, 20 * BLOCK + 700));
	assert_ok(blockmap_flush(r->bm, ERR));
	rig_reopen(r);
}

/* Requests of all kinds, over what is there and what is not. */
static int requests(struct rig *r)
{
	struct status_extent e[6];
	size_t nr;
	int ret = put(r, 3, 3 * BLOCK + 900, BLOCK + 300);

	if (ret == 0)
		ret = put(r, 4, 700, 20 * BLOCK + 100);
	if (ret == 0)
		ret = blockmap_zero(r->bm, 5 * BLOCK, BLOCK / 2, 0, ERR);
	if (ret == 0)
		ret = blockmap_zero(r->bm, 3 * BLOCK, 8 * BLOCK, 0, ERR);
	if (ret == 0)
		ret = put(r, 5, 100, 9 * BLOCK + 100);
	if (ret == 0)
		ret = blockmap_discard(r->bm, 30 * BLOCK, 0, ERR);
	if (ret == 0)
		ret = put(r, 6, 600, DISK - 600);
	if (ret == 0)
		ret = blockmap_status(r->bm, DISK, 0, e, 6, &nr, ERR);
	if (ret == 0)
		ret = blockmap_pread(r->bm, r->seen, DISK, 0, ERR);
	return ret == 0 ? blockmap_flush(r->bm, ERR) : ret;
}

/* What formats put together. */
static int steps(struct rig *r)
{
	struct blockmap_shape shape = r->shape;
	int ret = blockmap_stop(r->bm, ERR);

	if (ret != 0)
		return ret;
	ret = blockmap_move(r->bm, 2, 0, ERR);
	if (ret == 0)
		ret = blockmap_move(r->bm, 40, 0, ERR); /* has no place */
	if (ret == 0)
		ret = blockmap_zero_tail(r->bm, 3 * BLOCK + 512, ERR);
	if (ret == 0)
		ret = blockmap_zero_tail(r->bm, 7 * BLOCK + 512, ERR);
	if (ret == 0)
		ret = blockmap_wipe(r->bm, 4, ERR);
	if (ret == 0)
		ret = blockmap_clear(r->bm, 4, 10, ERR);
	if (ret == 0)
		ret = blockmap_flush_stopped(r->bm, ERR);
	if (ret == 0) {
		shape.end_off = blockmap_end(r->bm);
		ret = blockmap_reshape(r->bm, &shape, ERR);
	}
	blockmap_start(r->bm);
	return ret;
}

static int finish(struct rig *r)
{
	int ret = put(r, 7, 2 * BLOCK, BLOCK);

	return ret == 0 ? blockmap_finish(r->bm, ERR) : ret;
}

static void test_failures(void **state)
{
	static const unsigned kinds[] = { 0,
					  BACKED,
					  BACKED | WITH_ZERO | OPS,
					  BITMAPS | BACKED | OPS,
					  BITMAPS | FULL,
					  BITMAPS | APART | BACKED | OPS,
					  PAGED | BACKED,
					  BULK,
					  BULK | BITMAPS | BACKED };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		each_failure(kinds[i], prepare_some, requests);
		each_failure(kinds[i], prepare_some, steps);
		each_failure(kinds[i], NULL, finish);
	}
}

static void open_before(void *ctx)
{
	((struct attempt *)ctx)->r = rig_new(0);
}

static int open_act(void *ctx)
{
	return rig_open(((struct attempt *)ctx)->r);
}

static void open_after(void *ctx, int ret)
{
	struct rig *r = ((struct attempt *)ctx)->r;

	assert_true((ret == 0) == (r->bm != NULL));
	rig_end(r);
}

static void test_open(void **state)
{
	struct attempt a = { .what = 0 };
	struct inside_failures f = { open_before, open_act, open_after, &a, FAULT_ALL, false };

	(void)state;
	assert_int_equal(inside_fail_each(&f), 1); /* the file's size */
	f.memory = true;
	assert_int_equal(inside_fail_each(&f), 2); /* the engine, its cache */
}

/* ---- what a format's own functions refuse ------------------------------------------------------------------------ */

static void test_format_fails(void **state)
{
	const struct blockmap_entry placed = { .state = BLOCKMAP_DATA, .off = DATA_OFF };
	struct rig *r = rig_start(OPS | BACKED | WITH_ZERO);

	(void)state;
	r->fail_begin = IMG_E_IO;
	assert_fails(put(r, 1, 512, 0), IMG_E_IO, "toy fails");
	assert_fails(blockmap_zero(r->bm, 512, 0, 0, ERR), IMG_E_IO, "toy fails");
	assert_ok(blockmap_set(r->bm, 1, &placed, ERR)); /* what a format does by itself it announces by itself */
	assert_fails(blockmap_zero_tail(r->bm, BLOCK + 512, ERR), IMG_E_IO, "toy fails");
	assert_fails(blockmap_zero_tail(r->bm, 2 * BLOCK + 512, ERR), IMG_E_IO, "toy fails");
	assert_fails(blockmap_wipe(r->bm, 1, ERR), IMG_E_IO, "toy fails");
	assert_fails(blockmap_move(r->bm, 1, 0, ERR), IMG_E_IO, "toy fails");
	assert_ok(blockmap_clear(r->bm, 1, 1, ERR));
	r->fail_begin = 0;
	assert_ok(put(r, 1, 512, 0)); /* is asked again */
	r->fail_allocate = IMG_E_LIMIT;
	assert_fails(put(r, 1, 512, 9 * BLOCK), IMG_E_LIMIT, "toy fails");
	r->fail_allocate = 0;
	r->allocate_at = INT64_MAX - 511;
	assert_fails(put(r, 1, 512, 9 * BLOCK), IMG_E_LIMIT, "no file is that long");
	r->allocate_at = UINT64_MAX - 511;
	assert_fails(put(r, 1, 512, 9 * BLOCK), IMG_E_LIMIT, "no file is that long");
	r->allocate_at = 0;
	holds(r, 0xb0, 512, 9 * BLOCK);
	/* A full disk is no reason to stop; nor is memory. Nothing else is forgiven. */
	r->fail_settle = IMG_E_NOSPC;
	assert_fails(blockmap_flush(r->bm, ERR), IMG_E_NOSPC, "toy fails");
	r->fail_settle = 0;
	r->fail_store = IMG_E_NOMEM;
	assert_fails(blockmap_flush(r->bm, ERR), IMG_E_NOMEM, "toy fails");
	r->fail_store = 0;
	assert_ok(blockmap_flush(r->bm, ERR));
	assert_ok(put(r, 2, 512, 0));
	r->fail_sync = IMG_E_IO;
	assert_fails(blockmap_flush(r->bm, ERR), IMG_E_IO, "toy fails");
	r->fail_sync = 0;
	assert_fails(blockmap_flush(r->bm, ERR), IMG_E_POISONED, "opened again");
	assert_fails(put(r, 2, 512, 0), IMG_E_POISONED, "opened again");
	assert_fails(blockmap_discard(r->bm, 512, 0, ERR), IMG_E_POISONED, "opened again");
	assert_fails(blockmap_stop(r->bm, ERR), IMG_E_POISONED, "opened again");
	assert_fails(blockmap_finish(r->bm, ERR), IMG_E_POISONED, "earlier failure");
	holds(r, 2, 512, 0);
	rig_end(r);
}

/* A page of the table that cannot be found, and one that gets no room. */
static void test_no_page(void **state)
{
	struct rig *r = rig_start(PAGED | BACKED | WITH_ZERO);

	(void)state;
	r->fail_locate = IMG_E_IO;
	assert_fails(blockmap_pread(r->bm, r->seen, 512, 0, ERR), IMG_E_IO, "toy fails");
	r->fail_locate = 0;
	holds(r, 0xb0, 512, 0);
	r->fail_locate = IMG_E_NOSPC;
	assert_fails(blockmap_zero(r->bm, 2 * BLOCK, 0, 0, ERR), IMG_E_NOSPC, "toy fails");
	assert_fails(put(r, 1, 512, 0), IMG_E_NOSPC, "toy fails");
	r->fail_locate = 0;
	holds(r, 0xb0, 2 * BLOCK, 0);
	assert_ok(blockmap_zero(r->bm, 2 * BLOCK, 0, 0, ERR));
	holds(r, 0, 2 * BLOCK, 0);
	assert_ok(blockmap_flush(r->bm, ERR));
	/* A page that was, in a file that is shorter now. */
	rig_reopen(r);
	r->directory[0] = DATA_OFF + MIB;
	assert_fails(blockmap_pread(r->bm, r->seen, 512, 0, ERR), IMG_E_CORRUPT, "over the end of the file");
	rig_end(r);
}

/* A bitmap that has no room takes its block's entry back. */
static void test_no_bitmap(void **state)
{
	struct rig *r = rig_start(BITMAPS | APART | BACKED);

	(void)state;
	r->fail_bitmap = IMG_E_NOSPC;
	assert_fails(put(r, 1, 512, 4 * BLOCK), IMG_E_NOSPC, "toy fails");
	assert_int_equal(entry_of(r, 4).state, BLOCKMAP_FREE);
	assert_true(blockmap_lost_places(r->bm));
	r->fail_bitmap = 0;
	assert_ok(put(r, 1, 512, 4 * BLOCK));
	assert_int_equal(entry_of(r, 4).state, BLOCKMAP_PARTIAL);
	assert_ok(blockmap_flush(r->bm, ERR));
	rig_reopen(r);
	r->fail_bitmap = IMG_E_IO; /* of a block that has its place */
	assert_fails(put(r, 2, 512, 4 * BLOCK + 1024), IMG_E_IO, "toy fails");
	assert_int_equal(entry_of(r, 4).state, BLOCKMAP_PARTIAL);
	r->fail_bitmap = 0;
	holds(r, 1, 512, 4 * BLOCK);
	holds(r, 0xb0, 512, 4 * BLOCK + 1024);
	rig_end(r);
}

/* The bitmap of a block goes from memory while data is copied, and does not come back. */
static struct rig *evict_rig;

#define EVICTING 40u /* blocks, of which bitmaps fill the cache whatever a pointer takes in there */

static void evict(void)
{
	for (unsigned i = 1; i <= EVICTING; i++)
		if (i != 20)
			holds(evict_rig, 1, 512, i * BLOCK);
	evict_rig->fail_bitmap = IMG_E_IO;
}

static void test_bitmap_gone(void **state)
{
	struct rig *r = rig_start(BITMAPS | APART | BACKED);

	(void)state;
	for (unsigned i = 1; i <= EVICTING; i++)
		assert_ok(put(r, 1, 512, i * BLOCK));
	assert_ok(blockmap_flush(r->bm, ERR));
	rig_reopen(r);
	holds(r, 1, 512, 20 * BLOCK);
	evict_rig = r;
	at_read = NULL;
	at_write = evict;
	assert_fails(put(r, 2, 512, 20 * BLOCK + 1024), IMG_E_IO, "toy fails");
	assert_null(at_write);
	r->fail_bitmap = 0;
	holds(r, 1, 512, 20 * BLOCK);
	holds(r, 0xb0, 512, 20 * BLOCK + 1024);
	rig_end(r);
}

/* A page that cannot be read now is no damage: a check says so, and a repair leaves its entries alone. */
static void test_check_unread(void **state)
{
	const struct blockmap_rules rules = { .entry = "T-1", .overlap = "T-2" };
	struct rig *r = rig_start(0);

	(void)state;
	assert_ok(put(r, 1, 12 * BLOCK, 0));
	assert_ok(blockmap_flush(r->bm, ERR));
	for (unsigned nr = 1; nr <= 4; nr++) { /* it may try again */
		struct img_check_result result = { 0 };
		struct blockmap_census census;
		int ret;

		rig_reopen(r);
		reads_fail = nr;
		ret = blockmap_check(r->bm, &rules, DATA_OFF, true, NULL, NULL, NULL, &result, &census, ERR);
		reads_fail = 0;
		assert_true(ret == IMG_E_IO || (ret == 0 && nr < 4));
		assert_int_equal(result.damage + result.repaired, 0);
		assert_ok(blockmap_flush(r->bm, ERR));
		rig_reopen(r);
		holds(r, 1, 12 * BLOCK, 0);
	}
	rig_end(r);
}

static void test_readonly(void **state)
{
	struct rig *r = rig_start(READONLY);

	(void)state;
	assert_fails(put(r, 1, 512, 0), IMG_E_READONLY, "read-only");
	assert_ok(blockmap_flush(r->bm, ERR));
	assert_ok(blockmap_finish(r->bm, ERR));
	assert_ok(blockmap_stop(r->bm, ERR));
	blockmap_start(r->bm);
	holds(r, 0, DISK, 0);
	rig_end(r);
	blockmap_free(NULL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_failures),  TEST(test_open),	      TEST(test_format_fails), TEST(test_no_page),
		TEST(test_no_bitmap), TEST(test_bitmap_gone), TEST(test_check_unread), TEST(test_readonly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
