/* SPDX-License-Identifier: MIT */
/* The counts of a qcow2 check, and checks of images that are in use: progress, cancellation, repair under the engine. */
#include "image_fixture.h"

#include <fcntl.h>

#include "qcow2_check.h"

#define SIZE	(16 * MIB)
#define OFFSETS UINT64_C(0x00fffffffffffe00)

/* ---- counts ---- */

static void test_map64(void **state)
{
	struct map64 m = { 0 };

	(void)state;
	assert_null(map64_find(&m, 0));
	for (uint64_t i = 0; i < 5000; i++) {
		uint64_t *at = map64_put(&m, i * i * 4096);

		assert_non_null(at);
		assert_true(*at == 0);
		*at = i + 1;
	}
	for (uint64_t i = 0; i < 5000; i++)
		assert_true(*map64_find(&m, i * i * 4096) == i + 1);
	assert_null(map64_find(&m, 4095));
	assert_true(*map64_put(&m, 4096) == 2);
	assert_true(m.nr == 5000);
	map64_free(&m);
}

static void test_counts(void **state)
{
	struct counts c = { 0 };
	struct img_error err = { .code = IMG_OK };
	unsigned uses;
	uint64_t nr;
	uint64_t *pages;

	(void)state;
	assert_true(counts_get(&c, 7, &uses) == 0);
	assert_true(uses == 0);
	/* Across a page, far out, and far more often than a word counts. */
	assert_int_equal(counts_add(&c, 4090, 12, 1, USE_DATA, &err), 0);
	assert_int_equal(counts_add(&c, UINT64_C(1) << 52, 1, 3, USE_ALONE, &err), 0);
	assert_int_equal(counts_add(&c, 4095, 1, 1021, USE_L2, &err), 0);
	assert_true(counts_get(&c, 4095, &uses) == 1022);
	assert_true(uses == (USE_DATA | USE_L2));
	for (uint64_t i = 1; i <= 3; i++) {
		assert_int_equal(counts_add(&c, 4095, 1, 1, 0, &err), 0);
		assert_true(counts_get(&c, 4095, NULL) == 1022 + i);
	}
	assert_int_equal(counts_add(&c, 4095, 1, UINT64_C(1) << 40, USE_PACKED, &err), 0);
	assert_true(counts_get(&c, 4095, &uses) == (UINT64_C(1) << 40) + 1025);
	assert_true(uses == (USE_DATA | USE_L2 | USE_PACKED));
	assert_true(counts_get(&c, 4096, NULL) == 1);
	assert_true(counts_get(&c, 4089, NULL) == 0);
	assert_true(counts_get(&c, UINT64_C(1) << 52, NULL) == 3);

	assert_int_equal(counts_set(&c, 4095, 2, &err), 0);
	assert_true(counts_get(&c, 4095, NULL) == 2);
	counts_mark_one(&c, 4095, true);
	counts_get(&c, 4095, &uses);
	assert_true(uses & USE_REF_ONE);
	assert_true(counts_take_use(&c, 4095, USE_L2));
	assert_false(counts_take_use(&c, 4095, USE_L2));
	assert_true(counts_get(&c, 4095, NULL) == 2);

	pages = counts_pages(&c, &nr);
	assert_true(nr == 3);
	assert_true(pages[0] == 0 && pages[1] == 1 && pages[2] == UINT64_C(1) << 40);
	free(pages);
	assert_true(counts_any(&c, 0, 1));
	assert_false(counts_any(&c, 8192, 4096));
	counts_free(&c);
}

/* ---- images ---- */

static uint64_t get64(int fd, uint64_t off)
{
	uint8_t b[8];
	uint64_t v = 0;

	assert_int_equal(pread(fd, b, sizeof(b), (off_t)off), sizeof(b));
	for (unsigned i = 0; i < 8; i++)
		v = v << 8 | b[i];
	return v;
}

static void put(int fd, uint64_t off, uint64_t v, unsigned bytes)
{
	uint8_t b[8];

	for (unsigned i = 0; i < bytes; i++)
		b[i] = (uint8_t)(v >> 8 * (bytes - 1 - i));
	assert_int_equal(pwrite(fd, b, bytes, (off_t)off), bytes);
}

static struct img *make(void)
{
	struct img *img;

	make_image("a", "qcow2", SIZE, NULL, NULL);
	img = open_image("a", NULL, IMG_OPEN_WRITE);
	write_pattern(img, 0, 2 * MIB, 1);
	write_pattern(img, 8 * MIB, MIB, 2);
	assert_ok(img_flush(img, 0, ERR));
	return img;
}

/* Behind the engine's back: a leak, a refcount that is too low, a COPIED flag that is not there. */
static void damage(void)
{
	int fd = open(in_dir("a"), O_RDWR | O_CLOEXEC);
	uint64_t block, l2;

	assert_true(fd >= 0);
	block = get64(fd, get64(fd, 48));
	l2 = get64(fd, get64(fd, 40)) & OFFSETS;
	put(fd, block + 2 * ((get64(fd, l2) & OFFSETS) >> 16), 0, 2);
	put(fd, block + 2 * ((get64(fd, l2 + 8) & OFFSETS) >> 16), 4, 2);
	put(fd, l2 + 16, get64(fd, l2 + 16) & OFFSETS, 8);
	close(fd);
}

/* The engine has the tables in memory: they are what was mended, for it and for what it writes later. */
static void test_repair_in_use(void **state)
{
	struct img_check_result r;
	static uint8_t before[SIZE], after[SIZE];
	struct img *img = make();

	(void)state;
	assert_ok(img_pread(img, before, SIZE, 0, 0, ERR));
	damage();
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &r, ERR));
	/* The refcounts, and the three flags that do not go with them. */
	assert_true(r.damage == 4 && r.leaks == 1 && r.repaired == 0);
	assert_ok(img_check(img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage + r.leaks == r.repaired && r.leaks == 1);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage == 0 && r.leaks == 0);
	assert_ok(img_pread(img, after, SIZE, 0, 0, ERR));
	assert_memory_equal(before, after, SIZE);

	/* What it allocates is free. */
	write_pattern(img, 4 * MIB, 4 * MIB, 3);
	write_pattern(img, 64 * KIB, 128 * KIB, 4);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	write_pattern(img, 0, MIB, 5);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage == 0 && r.leaks == 0);
	assert_ok(img_pread(img, before, SIZE, 0, 0, ERR));
	close_image(img);
	img = open_image("a", NULL, 0);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage == 0 && r.leaks == 0);
	assert_ok(img_pread(img, after, SIZE, 0, 0, ERR));
	assert_memory_equal(before, after, SIZE);
	close_image(img);
}

/* The refcount table leads nowhere: a new structure is made while the engine is in use. */
static void test_rebuild_in_use(void **state)
{
	struct img_check_result r;
	static uint8_t before[SIZE], after[SIZE];
	struct img *img = make();
	int fd;

	(void)state;
	assert_ok(img_pread(img, before, SIZE, 0, 0, ERR));
	fd = open(in_dir("a"), O_RDWR | O_CLOEXEC);
	put(fd, get64(fd, 48), UINT64_C(1) << 40, 8);
	close(fd);
	assert_ok(img_check(img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage > 0 && r.damage + r.leaks == r.repaired);
	write_pattern(img, 4 * MIB, 2 * MIB, 3);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	write_pattern(img, 0, 64 * KIB, 1);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage == 0 && r.leaks == 0);
	assert_ok(img_snapshot_revert(img, "s", ERR));
	assert_ok(img_pread(img, after, 4 * MIB, 0, 0, ERR));
	assert_memory_equal(before, after, 4 * MIB);
	close_image(img);
}

/*
 * Clusters with more references than a refcount can say, and refcounts of zero: a repair cannot make that right, but
 * must not take them for free either, where it mends refcounts in place and where it makes a new structure.
 */
static void test_too_many_references(void **state)
{
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "qcow2", .size_bytes = 1024 * MIB, .options = "refcount_bits=1"
	};
	struct img_open_options o = { .struct_size = sizeof(o), .flags = IMG_OPEN_WRITE };
	static uint8_t before[MIB], after[MIB];
	struct img_check_result r;
	struct img *img;
	uint64_t l1, l2, block;
	uint8_t bits;
	int fd;

	(void)state;
	for (unsigned rebuild = 0; rebuild < 2; rebuild++) {
		assert_ok(img_create(in_dir("b"), &create, ERR));
		img = open_image("b", NULL, IMG_OPEN_WRITE);
		write_pattern(img, 0, MIB / 2, 1);
		close_image(img);
		fd = open(in_dir("b"), O_RDWR | O_CLOEXEC);
		l1 = get64(fd, 40);
		l2 = get64(fd, l1) & OFFSETS;
		block = get64(fd, get64(fd, 48));
		put(fd, l1 + 8, l2, 8);
		for (unsigned i = 8; i < 16; i++)
			put(fd, l2 + 8 * i, get64(fd, l2) & OFFSETS, 8);
		put(fd, block, 0, 8); /* 64 clusters: all that there are */
		if (rebuild)
			put(fd, 56, 0, 4); /* no refcount table */
		close(fd);
		img = open_image("b", NULL, 0);
		assert_ok(img_pread(img, before, MIB, 0, 0, ERR));
		close_image(img);
		assert_ok(img_check_file(in_dir("b"), &o, IMG_CHECK_REPAIR, NULL, NULL, NULL, &r, ERR));
		assert_true(r.repaired > 0 && r.repaired < r.damage);
		img = open_image("b", NULL, 0);
		assert_ok(img_pread(img, after, MIB, 0, 0, ERR));
		assert_memory_equal(before, after, MIB);
		close_image(img);
		fd = open(in_dir("b"), O_RDWR | O_CLOEXEC);
		block = get64(fd, get64(fd, 48));
		assert_int_equal(pread(fd, &bits, 1, (off_t)(block + (l2 >> 16) / 8)), 1);
		assert_true(bits >> (l2 >> 16) % 8 & 1); /* in use */
		close(fd);
		fixture_files(true);
	}
}

static int stop(void *ctx, uint64_t done, uint64_t total)
{
	unsigned *calls = ctx;

	assert_true(done <= total);
	return ++*calls == 3;
}

/* 4 GiB in clusters of 4 KiB: 8 MiB of L2 tables. */
static void test_cancel(void **state)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "qcow2",
		.size_bytes = 4096 * MIB,
		.options = "cluster_size=4096,preallocation=metadata",
	};
	struct img_open_options o = { .struct_size = sizeof(o) };
	struct img_check_result r;
	unsigned calls = 0;
	const struct img_progress progress = { stop, &calls };

	(void)state;
	assert_ok(img_create(in_dir("p"), &create, ERR));
	assert_int_equal(img_check_file(in_dir("p"), &o, 0, NULL, NULL, &progress, &r, ERR), IMG_E_CANCELLED);
	assert_int_equal(calls, 3);
	assert_ok(img_check_file(in_dir("p"), &o, 0, NULL, NULL, NULL, &r, ERR));
	assert_true(r.damage == 0 && r.leaks == 0 && r.metadata_bytes > 8 * MIB);
}

static void test_file_arguments(void **state)
{
	struct img_open_options o = { .struct_size = sizeof(o), .snapshot = "none" };
	struct img_check_result r;

	(void)state;
	close_image(make());
	assert_int_equal(img_check_file(NULL, NULL, 0, NULL, NULL, NULL, &r, ERR), IMG_E_INVALID);
	assert_int_equal(img_check_file(in_dir("none"), NULL, 0, NULL, NULL, NULL, &r, ERR), IMG_E_NOENT);
	assert_int_equal(img_check_file(in_dir("a"), NULL, 1u << 20, NULL, NULL, NULL, &r, ERR), IMG_E_INVALID);
	assert_int_equal(img_check_file(in_dir("a"), &o, 0, NULL, NULL, NULL, &r, ERR), IMG_E_NOENT);
	/* A repair needs a file that may be written. */
	assert_int_equal(img_check_file(in_dir("a"), NULL, IMG_CHECK_REPAIR, NULL, NULL, NULL, &r, ERR),
			 IMG_E_READONLY);
	assert_ok(img_check_file(in_dir("a"), NULL, 0, NULL, NULL, NULL, NULL, ERR));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map64),
		cmocka_unit_test(test_counts),
		cmocka_unit_test_setup_teardown(test_repair_in_use, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_rebuild_in_use, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_too_many_references, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_cancel, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_file_arguments, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
