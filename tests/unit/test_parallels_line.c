/* SPDX-License-Identifier: MIT */
/* Parallels images whose clusters lie between two places (PRL-7): a resize to less and a repair bring them in line,
 * whatever fails meanwhile. */
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
#include "prl.h"

#define NAME	   "askew"
#define CLUSTER	   4096u
#define NR_BLOCKS  64u
#define DISK_BYTES (NR_BLOCKS * CLUSTER)
#define LESS_BYTES (40 * CLUSTER + 512)

static struct memfs fs;
static struct fault_plan plan;
static struct img_error err;
static struct mem_content *askew;
static uint8_t want[DISK_BYTES], got[DISK_BYTES];

#define assert_ok(call)                                     \
	do {                                                \
		if ((call) != 0)                            \
			fail_msg("%s: %s", #call, err.msg); \
	} while (0)

static int open_it(unsigned flags, struct img **img)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = "parallels", .flags = flags };

	return image_open_env(NAME, &o, &fs.env, img, &err);
}

static struct mem_content *copy_of(struct mem_content *content)
{
	struct mem_content *copy = mem_content_clone(content);

	assert_non_null(copy);
	return copy;
}

/* Every second block has a place, three sectors behind where it belongs; between them is room that is nobody's. */
static void make_askew(void)
{
	struct img_create_options o = { .struct_size = sizeof(o),
					.format = "parallels",
					.options = "cluster_size=4096,version=1",
					.size_bytes = DISK_BYTES };
	struct host_open how = { .writable = true };
	struct prl_header h;
	struct node *file;
	struct img *img;

	for (size_t i = 0; i < DISK_BYTES; i++)
		want[i] = (uint8_t)(1 + i * 7 + i / CLUSTER);
	assert_ok(image_create_env(NAME, &o, &fs.env, &err));
	assert_ok(open_it(IMG_OPEN_WRITE, &img));
	assert_ok(img_pwrite(img, want, DISK_BYTES, 0, 0, &err));
	assert_ok(img_close(img, &err));
	assert_ok(mem_node_on(memfs_find(&fs, NAME), NAME, &how, &file, &err));
	assert_ok(prl_header_load(file, &h, &err));
	for (uint64_t i = 0; i < NR_BLOCKS; i++) {
		uint64_t at = PRL_TABLE_OFF + i * PRL_ENTRY_BYTES;
		struct le32 entry;

		assert_ok(node_pread(file, &entry, sizeof(entry), at, 0, &err));
		entry = le32_of(i % 2 ? 0 : le32_get(entry) + 3);
		assert_ok(node_pwrite(file, &entry, sizeof(entry), at, 0, &err));
	}
	assert_ok(node_close(file, &err));
	assert_ok(open_it(0, &img));
	assert_ok(img_pread(img, want, DISK_BYTES, 0, 0, &err));
	assert_ok(img_close(img, &err));
	askew = copy_of(memfs_find(&fs, NAME));
}

static int setup(void **state)
{
	(void)state;
	memfs_init(&fs);
	fault_plan_init(&plan);
	make_askew();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	mem_content_unref(askew);
	fault_plan_destroy(&plan);
	memfs_destroy(&fs);
	return 0;
}

/* As users do: a whole session. What its end says counts as well. */
static int run(bool repair)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = "parallels", .flags = IMG_OPEN_WRITE };
	struct img_check_result result;
	struct img *img = NULL;
	int ret = repair ? image_open_for_check(NAME, &o, &fs.env, &img, &err) : open_it(IMG_OPEN_WRITE, &img), end;

	if (ret == 0)
		ret = repair ? img_check(img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, &err) :
			       img_resize(img, LESS_BYTES, IMG_RESIZE_SHRINK, &err);
	end = img ? img_close(img, NULL) : 0;
	return ret == 0 ? end : ret;
}

/* All that the disk holds is there, and nothing is nobody's. */
static void assert_in_line(uint64_t disk_bytes)
{
	struct img_check_result result;
	struct node *file;
	struct img *img;

	assert_ok(open_it(0, &img));
	assert_int_equal(img_size(img), disk_bytes);
	assert_ok(img_pread(img, got, disk_bytes, 0, 0, &err));
	assert_memory_equal(got, want, disk_bytes);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.damage + result.leaks, 0);
	assert_ok(img_close(img, &err));
	/* the header and its table take one cluster */
	assert_ok(mem_node_on(memfs_find(&fs, NAME), NAME, &(struct host_open){ 0 }, &file, &err));
	assert_int_equal(node_size(file), CLUSTER * (1 + (disk_bytes == DISK_BYTES ? NR_BLOCKS / 2 : 21)));
	assert_ok(node_close(file, &err));
}

/* What a session that failed has left: content of the old size or the new one, no damage; a repair does the rest. */
static void assert_whole(bool repair)
{
	struct img_check_result result;
	struct img *img;
	uint64_t size;

	assert_ok(open_it(0, &img));
	size = img_size(img);
	assert_true(size == DISK_BYTES || (!repair && size == LESS_BYTES));
	assert_ok(img_pread(img, got, size, 0, 0, &err));
	assert_memory_equal(got, want, size);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.damage, 0);
	assert_ok(img_close(img, &err));
	assert_ok(run(true));
	assert_in_line(size);
}

static void test_in_line(void **state)
{
	struct img_check_result result;
	struct img *img;

	(void)state;
	assert_ok(open_it(0, &img));
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.damage, 0);
	assert_int_not_equal(result.leaks, 0);
	assert_ok(img_close(img, &err));
	assert_ok(run(false));
	assert_in_line(LESS_BYTES);
	memfs_put(&fs, NAME, copy_of(askew));
	assert_ok(run(true));
	assert_in_line(DISK_BYTES);
}

/* Each call to the host fails, alone and from there on; the disk is full. */
static void test_failures(void **state)
{
	unsigned tried = 0;

	(void)state;
	for (unsigned kind = 0; kind < 6; kind++) {
		bool repair = kind & 1, for_good = kind & 2, full = kind & 4, failed = true;

		for (uint64_t n = 1; failed; n++) {
			int ret;

			memfs_put(&fs, NAME, copy_of(askew));
			fs.wrap = wrap_faulty;
			fs.wrap_ctx = &plan;
			fault_plan_arm(&plan, FAULT_ALL, full ? 0 : n, EIO, for_good);
			plan.disk_full_mode = full;
			plan.free_bytes = (n - 1) * CLUSTER;
			ret = run(repair);
			failed = plan.failed > 0;
			plan.disk_full_mode = false;
			fault_plan_disarm(&plan);
			fs.wrap = NULL;
			assert_true(failed || ret == 0);
			if (failed)
				assert_whole(repair);
			else
				assert_in_line(repair ? DISK_BYTES : LESS_BYTES);
			tried++;
		}
	}
	print_message("%u failures\n", tried);
	assert_true(tried > 200);
}

static void test_crashes(void **state)
{
	uint64_t random = 1;
	unsigned tried = 0;

	(void)state;
	for (unsigned kind = 0; kind < 2; kind++) {
		struct crash_log *log = crash_log_new();

		assert_non_null(log);
		memfs_put(&fs, NAME, copy_of(askew));
		fs.wrap = wrap_logged;
		fs.wrap_ctx = log;
		assert_ok(run(kind));
		fs.wrap = NULL;
		for (size_t i = 0; i < 4 * crash_log_nr(log); i++, tried++) {
			memfs_put(&fs, NAME, copy_of(askew));
			cut_power(memfs_find(&fs, NAME), NAME, log, i / 4 + 1, &random);
			assert_whole(kind);
		}
		crash_log_free(log);
	}
	print_message("%u power failures\n", tried);
	assert_true(tried > 200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_in_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failures, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crashes, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
