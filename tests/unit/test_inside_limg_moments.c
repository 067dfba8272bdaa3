/* SPDX-License-Identifier: MIT */
/* limg: what happens at the one moment at which it must not. */
#include "limg_inside.h"

#define LEAVES(n) ((uint64_t)(n)*LEAF_BYTES)

static struct img *growing;
static unsigned nr_writes;

static int checkpoint_meanwhile(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
				struct img_error *err)
{
	struct ckpt_req plain = { .action = CKPT_PLAIN };

	if (++nr_writes == 3)
		assert_ok(engine_checkpoint(engine_of(growing), &plain, ERR));
	return fault_driver.pwrite(n, buf, bytes, off, flags, err);
}

/* A checkpoint in the midst of a write that makes machine state longer: what is there is not what a shrink left. */
static void machine_state_grows(void **state)
{
	static struct img_driver hooked;
	static uint8_t out[8 * LEAF_BYTES], in[8 * LEAF_BYTES];
	struct img *img = limg_new(16 * MIB);

	(void)state;
	growing = img;
	nr_writes = 0;
	memset(out, 7, sizeof(out));
	hooked = fault_driver;
	hooked.pwrite = checkpoint_meanwhile;
	engine_of(img)->file->drv = &hooked;
	assert_ok(img_vmstate_write(img, out, sizeof(out), 0, ERR));
	engine_of(img)->file->drv = &fault_driver;
	assert_true(nr_writes > 3);
	assert_ok(img_vmstate_read(img, NULL, in, sizeof(in), 0, ERR));
	assert_memory_equal(in, out, sizeof(out));
	inside_close(img);
}

static unsigned nr_flushes;

static int count_flush(struct node *n, unsigned flags, struct img_error *err)
{
	nr_flushes++;
	return fault_driver.flush(n, flags, err);
}

/* What a writer that was killed left in the host's cache alone is durable before the next one writes. */
static void mended_is_synced(void **state)
{
	static struct img_driver counting;
	struct img *img = limg_new(16 * MIB);
	struct engine *e = engine_of(img);
	bool damaged = false;

	(void)state;
	inside_fill(img, 0, MIB, 1);
	assert_ok(img_flush(img, IMG_FLUSH_CHECKPOINT, ERR));
	counting = fault_driver;
	counting.flush = count_flush;
	e->file->drv = &counting;
	nr_flushes = 0;
	assert_ok(super_mend(e->file, &e->sb, &damaged, ERR));
	assert_false(damaged);
	assert_int_equal(nr_flushes, 1);
	e->file->drv = &fault_driver;
	inside_close(img);
}

/* An overlay is emptied while a deleted snapshot below its head is half reclaimed. */
static void emptied_half_reclaimed(void **state)
{
	struct ckpt_req delete = { .action = CKPT_SNAP_DELETE, .name = "S", .reclaim_leaves = 10 };
	struct img *img = limg_new(LEAVES(200));
	struct node *node = img->top;

	(void)state;
	for (unsigned i = 0; i < 100; i++)
		inside_fill(img, LEAVES(i), 2 * BLOCK, (uint8_t)i);
	assert_ok(img_snapshot_create(img, "S", 0, ERR));
	for (unsigned i = 0; i < 100; i++)
		inside_fill(img, LEAVES(i), BLOCK, (uint8_t)(i + 7));
	assert_ok(engine_checkpoint(engine_of(img), &delete, ERR));
	assert_true(delete.more);
	assert_ok(node_set_backing(node, NULL, BACKING_SET_EMPTY, ERR));
	for (bool more = true; more;) {
		struct ckpt_req step = { .action = CKPT_PLAIN, .reclaim_leaves = 20 };

		assert_ok(engine_checkpoint(engine_of(img), &step, ERR));
		more = step.more;
	}
	inside_close(img);
	inside_expect_clean("a");
}

static struct img *deleting, *view;
static int opened;

/* The record of the freeze goes to the ring: here the delete has been checked, and has not been done. */
static int open_meanwhile(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			  struct img_error *err)
{
	struct engine *e = engine_of(deleting);
	uint64_t ring = au_off(e->journal.addr);

	if (opened == 1 && e->ckpt_busy && off >= ring && off < ring + au_off(e->journal.aus)) {
		struct img_error why = { 0 };

		opened = img_snapshot_open(deleting, "S", &view, &why);
	}
	return fault_driver.pwrite(n, buf, bytes, off, flags, err);
}

static void opened_while_deleted(void **state)
{
	static struct img_driver hooked;
	struct img *img = limg_new(16 * MIB);

	(void)state;
	deleting = img;
	opened = 1;
	inside_fill(img, 0, 2 * MIB, 1);
	assert_ok(img_snapshot_create(img, "S", 0, ERR));
	inside_fill(img, 0, 2 * MIB, 2);
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 0, BLOCK, 3);
	hooked = fault_driver;
	hooked.pwrite = open_meanwhile;
	engine_of(img)->file->drv = &hooked;
	assert_ok(img_snapshot_delete(img, "S", ERR));
	assert_int_equal(opened, IMG_E_NOENT);
	engine_of(img)->file->drv = &fault_driver;
	inside_close(img);
	inside_expect_clean("a");
}

/* What cannot be done is said before anything has changed: the image can be written on. */
static void limits_come_first(void **state)
{
	struct ckpt_req empty = { .action = CKPT_BACKING, .empty = true };
	struct img *img = limg_new(16 * MIB);
	struct engine *e = engine_of(img);
	size_t nr = e->nr_slots, cap = e->cap_slots, all = MAX_SNAPSHOTS + 1;
	struct snap **old = e->snap, **full = calloc(all, sizeof(*full)), one = { .state = SNAP_DELETED };
	uint64_t epoch = e->sb.epoch;

	(void)state;
	assert_non_null(full);
	inside_fill(img, 0, BLOCK, 1);
	for (size_t i = 0; i < all; i++)
		full[i] = &one;
	e->snap = full;
	e->nr_slots = e->cap_slots = all;
	assert_int_equal(img_snapshot_create(img, "one more", 0, ERR), IMG_E_LIMIT);
	e->snap = old;
	e->nr_slots = nr;
	e->cap_slots = cap;
	free(full);
	error_clear(ERR);
	inside_fill(img, 0, BLOCK, 2);

	e->sb.epoch = MAX_EPOCH - 1;
	assert_int_equal(engine_checkpoint(e, &empty, ERR), IMG_E_LIMIT);
	e->sb.epoch = epoch;
	error_clear(ERR);
	inside_fill(img, 0, BLOCK, 3);
	inside_close(img);
	inside_expect_clean("a");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(machine_state_grows, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(mended_is_synced, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(emptied_half_reclaimed, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(opened_while_deleted, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(limits_come_first, inside_setup, inside_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
