/* SPDX-License-Identifier: MIT */
/* Grain tables of sparse VMDK extents that are not where they should be, or not on disk yet: files that were cut off,
 * power failures while new tables are told to the directories, a grow that fails. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cut_power.h"
#include "image.h"
#include "memfs_wraps.h"
#include "sparse.h"
#include "vmdk.h"

#define NAME	     "disk"
#define GRAIN	     4096u
#define OLD_BYTES    (1u << 20)			/* one table, made with the image */
#define TABLE_COVERS ((uint64_t)GRAIN * 512)	/* bytes of the disk */
#define DISK_BYTES   (8 * TABLE_COVERS)		/* the others are made when they are needed */
#define LARGE_BYTES  (200 * TABLE_COVERS)	/* the directories have no room for that many */
#define FAR	     (2 * TABLE_COVERS + GRAIN) /* in a table of the second kind */

static struct memfs fs;
static struct fault_plan plan;
static struct img_error err;
static uint8_t a[GRAIN], b[GRAIN], c[GRAIN], zeros[GRAIN];

#define assert_ok(call)                                     \
	do {                                                \
		if ((call) != 0)                            \
			fail_msg("%s: %s", #call, err.msg); \
	} while (0)

static int open_it(unsigned flags, struct img **img)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = "vmdk", .flags = flags };

	return image_open_env(NAME, &o, &fs.env, img, &err);
}

static void write_at(const uint8_t *data, uint64_t off)
{
	struct img *img;

	assert_ok(open_it(IMG_OPEN_WRITE, &img));
	assert_ok(img_pwrite(img, data, GRAIN, off, 0, &err));
	assert_ok(img_close(img, &err));
}

static void assert_content(const uint8_t *data, uint64_t bytes, uint64_t off)
{
	uint8_t got[GRAIN];
	struct img *img;

	assert_ok(open_it(0, &img));
	assert_ok(img_pread(img, got, bytes, off, 0, &err));
	assert_memory_equal(got, data, bytes);
	assert_ok(img_close(img, &err));
}

static struct img_check_result check(bool repair)
{
	struct img_open_options o = { .struct_size = sizeof(o),
				      .format = "vmdk",
				      .flags = repair ? IMG_OPEN_WRITE : 0 };
	struct img_check_result result;
	struct img *img;

	assert_ok(image_open_for_check(NAME, &o, &fs.env, &img, &err));
	assert_ok(img_check(img, repair ? IMG_CHECK_REPAIR : 0, NULL, NULL, NULL, &result, &err));
	assert_ok(img_close(img, &err));
	return result;
}

static void assert_clean(void)
{
	struct img_check_result result = check(false);

	assert_int_equal(result.damage + result.leaks, 0);
}

/* Damaged, so that nobody writes; repaired, everybody does. */
static void assert_repair(void)
{
	struct img_check_result result = check(false);
	struct img *img;

	assert_int_not_equal(result.damage, 0);
	assert_int_equal(open_it(IMG_OPEN_WRITE, &img), IMG_E_CORRUPT);
	assert_non_null(strstr(err.msg, "run imgtool check --repair"));
	result = check(true);
	assert_int_not_equal(result.repaired, 0);
	assert_clean();
	write_at(c, 6 * TABLE_COVERS);
	assert_content(c, GRAIN, 6 * TABLE_COVERS);
	assert_clean();
}

static struct vmdk_header header(void)
{
	struct disk_vmdk_header d;
	struct vmdk_header h;

	mem_content_read(memfs_find(&fs, NAME), &d, sizeof(d), 0);
	assert_ok(vmdk_header_decode(&d, 0, NAME, &h, &err));
	return h;
}

static uint64_t file_bytes(void)
{
	return mem_content_size(memfs_find(&fs, NAME));
}

static void cut(uint64_t bytes)
{
	assert_int_equal(mem_content_resize(memfs_find(&fs, NAME), bytes), 0);
}

/* Entry i of the directory at off. */
static uint64_t place(uint64_t off, uint64_t i)
{
	struct le32 d;

	mem_content_read(memfs_find(&fs, NAME), &d, sizeof(d), off + i * sizeof(d));
	return (uint64_t)le32_get(d) * VMDK_SECTOR_BYTES;
}

static void set_place(uint64_t off, uint64_t i, uint64_t to)
{
	struct le32 d = le32_of((uint32_t)(to / VMDK_SECTOR_BYTES));

	assert_int_equal(mem_content_write(memfs_find(&fs, NAME), &d, sizeof(d), off + i * sizeof(d)), 0);
}

static void set_unclean(void)
{
	static const uint8_t unclean = 1;

	assert_int_equal(
		mem_content_write(memfs_find(&fs, NAME), &unclean, 1, offsetof(struct disk_vmdk_header, unclean)), 0);
}

static void grow(uint64_t bytes)
{
	struct img *img;

	assert_ok(open_it(IMG_OPEN_WRITE, &img));
	assert_ok(img_resize(img, bytes, 0, &err));
	assert_ok(img_close(img, &err));
}

static void create_as(const char *options, uint64_t bytes)
{
	struct img_create_options o = {
		.struct_size = sizeof(o), .format = "vmdk", .options = options, .size_bytes = bytes
	};

	memfs_remove(&fs, NAME);
	assert_ok(image_create_env(NAME, &o, &fs.env, &err));
}

static void create(uint64_t bytes)
{
	create_as("grain_size=4K", bytes);
}

/* a in the first table, b in one that a writer made behind it, at the end of the file, with its copy. */
static void make(void)
{
	create(OLD_BYTES);
	write_at(a, 0);
	grow(DISK_BYTES);
	write_at(b, FAR);
	assert_clean();
}

static int setup(void **state)
{
	(void)state;
	memfs_init(&fs);
	fault_plan_init(&plan);
	memset(a, 'a', sizeof(a));
	memset(b, 'b', sizeof(b));
	memset(c, 'c', sizeof(c));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fault_plan_destroy(&plan);
	memfs_destroy(&fs);
	return 0;
}

/* ---- files that were cut off ------------------------------------------------------------------------------------- */

/* A new grain at the end of the file would be the lost one's, too. */
static void test_grain_cut(void **state)
{
	static const uint64_t lost[] = { GRAIN, GRAIN / 2, 1 };
	uint8_t kept[GRAIN];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(lost); i++) {
		memcpy(kept, b, GRAIN);
		memset(kept + GRAIN - lost[i], 0, lost[i]);
		create(DISK_BYTES);
		write_at(a, 0);
		write_at(b, FAR);
		cut(file_bytes() - lost[i]);
		assert_repair();
		assert_content(a, GRAIN, 0);
		assert_content(kept, GRAIN, FAR);
	}
}

/* Behind the disk's end nothing is needed of the last grain; it is its room all the same. */
static void test_last_grain_short(void **state)
{
	struct img *img;

	(void)state;
	create_as("grain_size=64K", OLD_BYTES + 512);
	assert_ok(open_it(IMG_OPEN_WRITE, &img));
	assert_ok(img_pwrite(img, b, 512, OLD_BYTES, 0, &err));
	assert_ok(img_close(img, &err));
	cut(file_bytes() - 65536 + 512);
	assert_clean();
	write_at(a, 0);
	assert_clean();
	grow(DISK_BYTES);
	assert_clean();
	assert_content(a, GRAIN, 0);
	assert_content(b, 512, OLD_BYTES);
	assert_content(zeros, GRAIN - 512, OLD_BYTES + 512);
}

/* The copy is gone, the table is, or both; what the file still holds of one of them is there again. */
static void test_table_cut(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < 6; kind++) {
		bool unclean = kind & 1;
		struct vmdk_header h;

		make();
		h = header();
		if (kind / 2 == 0)
			cut(place(h.rgd_off, 2));
		else if (kind / 2 == 1)
			cut(place(h.gd_off, 2) + 100);
		else
			set_place(h.gd_off, 2, UINT64_C(1) << 36);
		if (unclean)
			set_unclean();
		assert_repair();
		assert_content(a, GRAIN, 0);
		assert_content(kind / 2 == 1 ? zeros : b, GRAIN, FAR);
		assert_int_not_equal(header().rgd_off, 0);
	}
}

/* ---- power failures ---------------------------------------------------------------------------------------------- */

/* One directory knows of the table: no damage where a writer was interrupted; else a repair decides. */
static void test_alone(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < 4; kind++) {
		bool unclean = kind & 1, only_copy = kind & 2;
		struct img_check_result result;
		struct vmdk_header h;

		make();
		h = header();
		set_place(only_copy ? h.gd_off : h.rgd_off, 2, 0);
		if (unclean) {
			set_unclean();
			result = check(false);
			assert_int_equal(result.damage, 0);
			assert_int_not_equal(result.leaks, 0);
			write_at(c, GRAIN);
			assert_content(c, GRAIN, GRAIN);
			assert_clean();
		} else {
			assert_repair();
		}
		h = header();
		assert_true((place(h.gd_off, 2) == 0) == only_copy);
		assert_true((place(h.rgd_off, 2) == 0) == only_copy);
		assert_content(a, GRAIN, 0);
		assert_content(only_copy ? zeros : b, GRAIN, FAR);
	}
}

/* A new table is on its way to the directories: whatever of it arrives, the image can be written, and lost nothing. */
static void test_crashes(void **state)
{
	struct crash_log *log = crash_log_new();
	struct mem_content *before;
	uint64_t random = 1;

	(void)state;
	assert_non_null(log);
	create(OLD_BYTES);
	write_at(a, 0);
	grow(DISK_BYTES);
	before = mem_content_clone(memfs_find(&fs, NAME));
	assert_non_null(before);
	fs.wrap = wrap_logged;
	fs.wrap_ctx = log;
	write_at(b, FAR);
	fs.wrap = NULL;
	for (size_t i = 0; i < 30 * crash_log_nr(log); i++) {
		struct mem_content *copy = mem_content_clone(before);

		assert_non_null(copy);
		memfs_put(&fs, NAME, copy);
		cut_power(copy, NAME, log, i / 30 + 1, &random);
		assert_int_equal(check(false).damage, 0);
		write_at(c, FAR + TABLE_COVERS);
		assert_clean();
		assert_content(a, GRAIN, 0);
		assert_content(c, GRAIN, FAR + TABLE_COVERS);
	}
	crash_log_free(log);
	mem_content_unref(before);
}

/* ---- a grow that fails ------------------------------------------------------------------------------------------- */

/* The directories are written behind everything: what is there of them is not in the grains that come next. */
static void test_grow_fails(void **state)
{
	bool failed = true;
	unsigned tried = 0;

	(void)state;
	for (unsigned n = 1; failed; n++) {
		struct img *img;
		int ret;

		make();
		fs.wrap = wrap_faulty;
		fs.wrap_ctx = &plan;
		assert_ok(open_it(IMG_OPEN_WRITE, &img));
		fs.wrap = NULL;
		fault_plan_arm(&plan, 1u << FAULT_WRITE | 1u << FAULT_RESIZE | 1u << FAULT_FLUSH, n, ENOSPC, false);
		ret = img_resize(img, LARGE_BYTES, 0, &err);
		failed = plan.failed > 0;
		fault_plan_disarm(&plan);
		assert_true(failed || ret == 0);
		/* Some failures forbid changes until it is opened again. */
		ret = img_pwrite(img, "x", 1, 16 * GRAIN, 0, &err);
		if (ret == 0) {
			assert_ok(img_close(img, &err));
			assert_content((const uint8_t *)"x", 1, 16 * GRAIN);
			assert_content(zeros, GRAIN - 1, 16 * GRAIN + 1);
			assert_clean();
		} else {
			(void)img_close(img, NULL);
			assert_int_equal(check(true).damage, 0);
		}
		assert_content(a, GRAIN, 0);
		assert_content(b, GRAIN, FAR);
		tried++;
	}
	assert_true(tried > 5);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* So many things have no address, and are not a few. */
static void test_no_such_array(void **state)
{
	void *one = vmdk_new_array(0, 16);

	(void)state;
	assert_non_null(one);
	free(one);
	assert_null(vmdk_new_array(UINT64_MAX / 16 + 2, 16));
	if (sizeof(size_t) == sizeof(uint32_t))
		assert_null(vmdk_new_array((UINT64_C(1) << 28) + 4, sizeof(struct img_range)));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_grain_cut, setup, teardown),
		cmocka_unit_test_setup_teardown(test_last_grain_short, setup, teardown),
		cmocka_unit_test_setup_teardown(test_table_cut, setup, teardown),
		cmocka_unit_test_setup_teardown(test_alone, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crashes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_grow_fails, setup, teardown),
		cmocka_unit_test(test_no_such_array),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
