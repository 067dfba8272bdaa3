/* SPDX-License-Identifier: MIT */
/* qcow2's bitmaps where a change of them fails: what it took is given back once, and nothing else is. */
#include "inside.h"

#include "qcow2_txn.h"

#define CLUSTER	  4096u
#define DISK	  (MIB)
#define FREE_TAIL 16u /* clusters of old content behind the image's end */

static struct qcow2_engine *engine_of(struct img *img)
{
	struct qcow2_view *view = img->top->state;

	return view->e;
}

/* ---- a host that does not write ---------------------------------------------------------------------------------- */

/* Where the file has the guest's cluster, which is full of one byte. */
static uint64_t find_cluster(const char *name, uint8_t byte)
{
	uint8_t buf[CLUSTER], want[CLUSTER];

	memset(want, byte, sizeof(want));
	for (uint64_t off = 0;; off += CLUSTER) {
		inside_read(name, buf, sizeof(buf), off);
		if (memcmp(buf, want, sizeof(buf)) == 0)
			return off;
	}
}

/* All that is free holds what may have been a bitmap's table once, of clusters that are the guest's by now. */
static void make_stale(void)
{
	struct be64 table[CLUSTER / 8];
	uint8_t data[CLUSTER];
	uint64_t guest, end;
	struct img *img;

	inside_create("a", "qcow2", DISK, "cluster_size=4096");
	img = inside_open("a", IMG_OPEN_WRITE);
	memset(data, 0xab, sizeof(data));
	assert_ok(img_pwrite(img, data, sizeof(data), 0, 0, ERR));
	inside_close(img);
	guest = find_cluster("a", 0xab);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		table[i] = be64_of(guest);
	img = inside_open("a", 0);
	end = node_size(img->top->file);
	inside_close(img);
	for (uint64_t i = 0; i < FREE_TAIL; i++)
		inside_write("a", table, sizeof(table), round_up(end, CLUSTER) + i * CLUSTER);
}

static void add_before(void *ctx)
{
	struct img **img = ctx;

	inside_copy("a", "b");
	*img = inside_open("b", IMG_OPEN_WRITE);
}

static int add_act(void *ctx)
{
	struct img **img = ctx;

	return img_bitmap_add(*img, "new", 512, 0, ERR);
}

static void add_after(void *ctx, int ret)
{
	struct img **img = ctx;
	uint8_t data[CLUSTER], want[CLUSTER];

	(void)ret;
	/* Takes what is free, where the image goes on. */
	memset(want, 0xcd, sizeof(want));
	for (uint64_t i = 1; i < 8; i++)
		(void)img_pwrite(*img, want, sizeof(want), i * CLUSTER, 0, NULL);
	(void)img_close(*img, NULL);
	*img = inside_open("b", 0);
	memset(want, 0xab, sizeof(want));
	assert_ok(img_pread(*img, data, sizeof(data), 0, 0, ERR));
	assert_memory_equal(data, want, sizeof(data));
	inside_close(*img);
	inside_expect_undamaged("b");
}

/* A table that was not written is not read to see what it holds. */
static void test_table_not_written(void **state)
{
	struct img *img = NULL;
	struct inside_failures f = { add_before, add_act, add_after, &img, 1u << FAULT_WRITE, false };

	(void)state;
	make_stale();
	assert_true(inside_fail_each(&f) > 1);
}

/* ---- no memory for what is known to be metadata ------------------------------------------------------------------ */

/* Until one more needs memory. */
static void fill_set(struct qcow2_engine *e)
{
	uint64_t off = UINT64_C(1) << 50;
	int ret = 0;

	alloc_fault_arm(1, true);
	for (; ret == 0; off += CLUSTER)
		ret = qcow2_meta_add(e, off, CLUSTER, NULL);
	alloc_fault_disarm();
	assert_int_equal(ret, IMG_E_NOMEM);
}

static int do_add(struct img *img)
{
	return img_bitmap_add(img, "new", 512, 0, ERR);
}

static int do_clear(struct img *img)
{
	return img_bitmap_clear(img, "b", ERR);
}

static int do_merge(struct img *img)
{
	return img_bitmap_merge(img, "b", NULL, "c", ERR);
}

static int (*const changes[])(struct img *) = { do_add, do_clear, do_merge };

struct change {
	int (*act)(struct img *img);
	struct img *img;
};

static void change_before(void *ctx)
{
	struct change *c = ctx;

	inside_copy("a", "b");
	c->img = inside_open("b", IMG_OPEN_WRITE);
	fill_set(engine_of(c->img));
}

static int change_act(void *ctx)
{
	struct change *c = ctx;

	return c->act(c->img);
}

/* The image goes on where it may: nothing in it was given back twice. Leaks are the format's. */
static void change_after(void *ctx, int ret)
{
	struct change *c = ctx;

	if (!atomic_load(&engine_of(c->img)->broken)) {
		inside_fill(c->img, 512 * KIB, 20 * KIB, 3);
		inside_close(c->img);
	} else {
		assert_int_not_equal(ret, 0);
		(void)img_close(c->img, NULL);
	}
	inside_expect_undamaged("b");
}

static void test_no_memory_for_the_set(void **state)
{
	struct img *img;

	(void)state;
	inside_create("a", "qcow2", DISK, "cluster_size=4096");
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_ok(img_bitmap_add(img, "b", 512, 0, ERR));
	assert_ok(img_bitmap_add(img, "c", 512, 0, ERR));
	inside_fill(img, 0, 8 * KIB, 1);
	assert_ok(img_bitmap_disable(img, "b", ERR));
	inside_fill(img, 256 * KIB, 8 * KIB, 1);
	assert_ok(img_bitmap_disable(img, "c", ERR));
	inside_close(img);
	for (size_t i = 0; i < ARRAY_LEN(changes); i++) {
		struct change c = { .act = changes[i] };
		struct inside_failures f = { change_before, change_act, change_after, &c, 0, true };

		assert_true(inside_fail_each(&f) > 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_table_not_written, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_no_memory_for_the_set, inside_setup, inside_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
