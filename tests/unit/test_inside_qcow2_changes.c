/* SPDX-License-Identifier: MIT */
/*
 * qcow2's changes of the whole structure, and its write-back, with each allocation and each call of the host failing:
 * afterwards the image holds what it held before or what it was to hold, and nothing of it is damaged. Leaks are the
 * format's.
 */
#include "inside.h"

#include <xxhash.h>

#include "qcow2_txn.h"

#define DISK (3 * MIB)

static struct qcow2_engine *engine_of(struct img *img)
{
	struct qcow2_view *view = img->top->state;

	return view->e;
}

/* Of the size, and of as much as every version of the image has. */
static uint64_t hash_of(const char *name)
{
	static uint8_t buf[DISK];
	struct img *img = inside_open(name, 0);
	uint64_t n = min_u64(img_size(img), DISK), hash;

	assert_ok(img_pread(img, buf, n, 0, 0, ERR));
	hash = XXH3_64bits_withSeed(buf, (size_t)n, img_size(img));
	inside_close(img);
	return hash;
}

static const struct kind {
	const char *options;
	bool compress;
} kinds[] = {
	{ "cluster_size=512,refcount_bits=16", true },
	{ "cluster_size=4096,refcount_bits=1", false },
	{ "cluster_size=16384,extended_l2=on", true },
};

/* Two snapshots; what they hold is shared, cut up, compressed, zero. */
static void make_base(const struct kind *k)
{
	struct img *img;
	uint8_t same[16 * 1024];

	inside_create("base", "qcow2", DISK, k->options);
	img = inside_open("base", IMG_OPEN_WRITE);
	memset(same, 'c', sizeof(same));
	inside_fill(img, 0, 40 * KIB, 1);
	if (k->compress) {
		assert_ok(img_pwrite(img, same, sizeof(same), 64 * KIB, IMG_IO_COMPRESS, ERR));
		assert_ok(img_pwrite(img, same, sizeof(same), 96 * KIB, IMG_IO_COMPRESS, ERR));
	}
	inside_fill(img, MIB, 5 * KIB, 2);
	assert_ok(img_zero(img, 64 * KIB, 2 * MIB, 0, ERR));
	if (k->compress) {
		assert_ok(img_snapshot_create(img, "A", 0, ERR));
		inside_fill(img, 4 * KIB, KIB, 3);
		assert_ok(img_snapshot_create(img, "B", 0, ERR));
		inside_fill(img, 16 * KIB, 8 * KIB, 4);
		inside_fill(img, 66 * KIB, KIB, 5);
	}
	inside_fill(img, 2 * MIB + 512 * KIB, KIB, 6);
	inside_close(img);
}

/* ---- one change, with each failure ------------------------------------------------------------------------------- */

struct change {
	int (*act)(struct img *img);
	uint64_t before, after;
	struct img *img;
};

static void fresh(void *ctx)
{
	struct change *c = ctx;

	inside_copy("base", "a");
	c->img = inside_open("a", IMG_OPEN_WRITE);
}

static int act(void *ctx)
{
	struct change *c = ctx;

	error_clear(ERR);
	return c->act(c->img);
}

static void judge(void *ctx, int ret)
{
	struct change *c = ctx;
	uint64_t now;

	(void)img_close(c->img, NULL);
	inside_expect_undamaged("a");
	now = hash_of("a");
	assert_true(now == c->after || (ret != 0 && now == c->before));
}

static void with_each_failure(int (*what)(struct img *img))
{
	struct change c = { .act = what };
	struct inside_failures f = { fresh, act, judge, &c, FAULT_ALL & ~(1u << FAULT_LOCK), false };

	fresh(&c);
	assert_ok(what(c.img));
	inside_close(c.img);
	c.before = hash_of("base");
	c.after = hash_of("a");
	assert_true(inside_fail_each(&f) > 2);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 2);
}

static int create_c(struct img *img)
{
	return img_snapshot_create(img, "C", 0, ERR);
}

static int delete_a(struct img *img)
{
	return img_snapshot_delete(img, "A", ERR);
}

static int revert_a(struct img *img)
{
	return img_snapshot_revert(img, "A", ERR);
}

static int rename_a(struct img *img)
{
	return img_snapshot_rename(img, "A", "Z", ERR);
}

static int grow(struct img *img)
{
	return img_resize(img, 4 * DISK, 0, ERR);
}

static int shrink(struct img *img)
{
	return img_resize(img, MIB + KIB, IMG_RESIZE_SHRINK, ERR);
}

/* Its content does not change; what it holds does. */
static int write_the_same(struct img *img)
{
	uint8_t buf[8 * 1024];

	for (uint64_t off = 0; off < 128 * KIB; off += sizeof(buf)) {
		int ret = img_pread(img, buf, sizeof(buf), off, 0, ERR);

		if (ret == 0)
			ret = img_pwrite(img, buf, sizeof(buf), off, 0, ERR);
		if (ret == 0)
			ret = img_zero(img, 64 * KIB, 2 * MIB, 0, ERR);
		if (ret != 0)
			return ret;
	}
	return img_flush(img, 0, ERR);
}

static int flush_twice(struct img *img)
{
	int ret = write_the_same(img);

	return ret == 0 ? write_the_same(img) : ret;
}

static void test_changes(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		inside_teardown(NULL);
		inside_setup(NULL);
		make_base(&kinds[i]);
		with_each_failure(grow);
		with_each_failure(shrink);
		with_each_failure(flush_twice);
		if (!kinds[i].compress)
			continue;
		with_each_failure(create_c);
		with_each_failure(delete_a);
		with_each_failure(revert_a);
		with_each_failure(rename_a);
	}
}

/* Counters of one bit cannot count what a snapshot shares. */
static void test_full_counters(void **state)
{
	struct img *img;

	(void)state;
	make_base(&kinds[1]);
	img = inside_open("base", IMG_OPEN_WRITE);
	assert_fails(img_snapshot_create(img, "A", 0, ERR), IMG_E_LIMIT, "refcount_bits");
	inside_close(img);
	inside_expect_undamaged("base");
}

/* ---- tables that are wrong --------------------------------------------------------------------------------------- */

static void poke(const char *name, uint64_t off, uint64_t value)
{
	struct be64 v = be64_of(value);

	inside_write(name, &v, sizeof(v), off);
}

static uint64_t peek(const char *name, uint64_t off)
{
	struct be64 v;

	inside_read(name, &v, sizeof(v), off);
	return be64_get(v);
}

static void make_again(const struct kind *k)
{
	inside_teardown(NULL);
	inside_setup(NULL);
	make_base(k);
}

static void test_bad_tables(void **state)
{
	uint64_t reftable, block;
	struct img *img;

	(void)state;
	make_base(&kinds[0]);
	reftable = peek("base", 48);
	block = peek("base", reftable);
	/* An entry of the refcount table with a reserved bit, and one that is no offset of a cluster. */
	inside_copy("base", "a");
	poke("a", reftable, block | 1);
	assert_fails(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_CORRUPT, "refcount table");
	poke("a", reftable, 512 + 256);
	assert_fails(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_CORRUPT, "refcount table");
	make_again(&kinds[1]);
	inside_copy("base", "a");
	poke("a", peek("a", 48), 4096 + 512);
	assert_fails(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_CORRUPT, "refcount table");
	make_again(&kinds[0]);
	/* All counters are gone: what is in use has refcount 0. */
	for (unsigned i = 0; i < 2; i++) {
		inside_copy("base", "a");
		if (i == 0)
			poke("a", reftable, 0);
		else
			for (unsigned k = 0; k < 512; k += 8)
				poke("a", block + k, 0);
		img = inside_open("a", IMG_OPEN_WRITE);
		assert_int_not_equal(img_snapshot_delete(img, "A", ERR), 0);
		(void)img_close(img, NULL);
	}
}

/* An L1 entry that is no offset of a cluster, here and in a snapshot. */
static void test_bad_l1(void **state)
{
	uint64_t l1;
	struct img *img;

	(void)state;
	make_base(&kinds[2]);
	l1 = peek("base", 40);
	inside_copy("base", "a");
	poke("a", l1, peek("a", l1) + 512);
	assert_int_equal(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_CORRUPT);
	l1 = peek("base", peek("base", 64)); /* of the first snapshot */
	inside_copy("base", "a");
	poke("a", l1, peek("a", l1) + 512);
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_int_equal(img_snapshot_revert(img, "A", ERR), IMG_E_CORRUPT);
	assert_int_equal(img_snapshot_delete(img, "A", ERR), IMG_E_CORRUPT);
	(void)img_close(img, NULL);
}

/* COPIED on what is compressed, or on nothing: the flag goes with the next transaction. */
static void test_copied_on_compressed(void **state)
{
	uint64_t l1, l2, at = 0;
	struct img *img;

	(void)state;
	make_base(&kinds[0]);
	l1 = peek("base", 40);
	for (unsigned t = 0; t < 96 && at == 0; t++) {
		l2 = peek("base", l1 + 8 * t) & QCOW2_OFFSET_MASK;
		for (unsigned i = 0; l2 && i < 64 && at == 0; i++)
			if (peek("base", l2 + 8 * i) & QCOW2_COMPRESSED)
				at = l2 + 8 * i;
	}
	assert_int_not_equal(at, 0);
	poke("base", at, peek("base", at) | QCOW2_COPIED);
	img = inside_open("base", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "C", 0, ERR));
	inside_close(img);
	inside_expect_undamaged("base");
}

/* ---- an image without anything ----------------------------------------------------------------------------------- */

static void test_empty_image(void **state)
{
	struct img *img;

	(void)state;
	inside_create("a", "qcow2", 0, "cluster_size=512");
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "A", 0, ERR));
	assert_ok(img_snapshot_revert(img, "A", ERR));
	assert_ok(img_snapshot_delete(img, "A", ERR));
	assert_ok(img_resize(img, MIB, 0, ERR));
	assert_ok(img_snapshot_create(img, "A", 0, ERR));
	assert_ok(img_snapshot_delete(img, "A", ERR));
	inside_fill(img, 0, KIB, 1);
	assert_ok(img_resize(img, 0, IMG_RESIZE_SHRINK, ERR));
	inside_close(img);
	inside_expect_undamaged("a");
}

/* ---- more dirty tables than the cache wants to hold -------------------------------------------------------------- */

static void test_crowded_transaction(void **state)
{
	struct img_open_options o = { .struct_size = sizeof(o), .flags = IMG_OPEN_WRITE, .cache_bytes = 1 };
	struct img *img;

	(void)state;
	inside_create("a", "qcow2", 64 * MIB, "cluster_size=512");
	img = inside_open("a", IMG_OPEN_WRITE);
	for (unsigned i = 0; i < 1200; i++)
		inside_fill(img, i * 32 * KIB, 512, (uint8_t)i);
	inside_fill(img, 40 * MIB, 10 * MIB, 1);
	inside_close(img);
	assert_ok(image_open_env("a", &o, &inside_host.env, &img, ERR));
	assert_ok(img_snapshot_create(img, "A", 0, ERR));
	for (unsigned i = 0; i < 1200; i++)
		inside_fill(img, i * 32 * KIB, 512, (uint8_t)(i + 1));
	assert_ok(img_snapshot_create(img, "B", 0, ERR));
	assert_true(engine_of(img)->cache->nr > 0);
	assert_ok(img_snapshot_delete(img, "A", ERR));
	inside_close(img);
	inside_expect_undamaged("a");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_changes),     T(test_full_counters),	  T(test_bad_tables), T(test_copied_on_compressed),
		T(test_empty_image), T(test_crowded_transaction), T(test_bad_l1),
	};

	return cmocka_run_group_tests_name("inside-qcow2-changes", tests, NULL, NULL);
}
