/* SPDX-License-Identifier: MIT */
/*
 * Files that end inside a block's place: what is there of the block is read, nobody writes, and a repair puts zeros
 * where the rest was, whatever fails meanwhile.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cut_power.h"
#include "disk_int.h"
#include "image.h"
#include "memfs_wraps.h"

#define NAME	   "cut"
#define NR_BLOCKS  3u
#define BLOCK_MAX  (1u << 20)
#define FOOTER	   512u
#define NEVER_USED (NR_BLOCKS * block())

struct format {
	const char *name, *options;
	uint32_t block;
	uint32_t behind; /* the last block, in the file */
	uint32_t lost;	 /* of its bytes */
	bool footer;	 /* and what is behind it stands where these were */
};

static const struct format formats[] = {
	{ "vdi", "block_size=4096", 4096, 0, 700, false },
	{ "parallels", "cluster_size=4096", 4096, 0, 700, false },
	{ "vhdx", "block_size=1M", 1u << 20, 0, 700, false },
	{ "vhd", "block_size=4096", 4096, FOOTER, 700, false },
	{ "vhd", "block_size=4096", 4096, FOOTER, 1024, true },
};
static const struct format *is;

static struct memfs fs;
static struct fault_plan plan;
static struct img_error err;
static struct mem_content *cut;
static uint8_t want[(NR_BLOCKS + 1) * BLOCK_MAX], got[(NR_BLOCKS + 1) * BLOCK_MAX];

#define assert_ok(call)                                                   \
	do {                                                              \
		if ((call) != 0)                                          \
			fail_msg("%s: %s: %s", is->name, #call, err.msg); \
	} while (0)

static uint64_t block(void)
{
	return is->block;
}

/* One block more than is ever written here. */
static uint64_t disk(void)
{
	return (NR_BLOCKS + 1) * block();
}

static int open_it(unsigned flags, struct img **img)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = is->name, .flags = flags };

	return image_open_env(NAME, &o, &fs.env, img, &err);
}

static struct mem_content *copy_of(struct mem_content *content)
{
	struct mem_content *copy = mem_content_clone(content);

	assert_non_null(copy);
	return copy;
}

static void make(void)
{
	struct img_create_options o = {
		.struct_size = sizeof(o), .format = is->name, .options = is->options, .size_bytes = disk()
	};
	struct mem_content *content;
	uint8_t footer[FOOTER];
	struct img *img;
	uint64_t size;

	memset(want, 0, sizeof(want));
	for (size_t i = 0; i < NR_BLOCKS * block(); i++)
		want[i] = (uint8_t)(1 + i * 7 + i / 512);
	assert_ok(image_create_env(NAME, &o, &fs.env, &err));
	assert_ok(open_it(IMG_OPEN_WRITE, &img));
	assert_ok(img_pwrite(img, want, NR_BLOCKS * block(), 0, 0, &err));
	assert_ok(img_close(img, &err));
	content = memfs_find(&fs, NAME);
	size = mem_content_size(content) - is->behind;
	mem_content_read(content, footer, is->behind, size);
	size -= is->lost;
	assert_ok(mem_content_resize(content, size));
	if (is->footer)
		assert_ok(mem_content_write(content, footer, sizeof(footer), size));
	memset(want + NR_BLOCKS * block() - is->lost, 0, is->lost);
	cut = copy_of(content);
}

static int run(bool repair, struct img_check_result *result)
{
	struct img_open_options o = { .struct_size = sizeof(o),
				      .format = is->name,
				      .flags = repair ? IMG_OPEN_WRITE : 0 };
	struct img *img = NULL;
	int ret = image_open_for_check(NAME, &o, &fs.env, &img, &err), end;

	memset(result, 0, sizeof(*result));
	if (ret == 0)
		ret = img_check(img, repair ? IMG_CHECK_REPAIR : 0, NULL, NULL, NULL, result, &err);
	end = img ? img_close(img, NULL) : 0;
	return ret == 0 ? end : ret;
}

static void assert_rest_reads(void)
{
	uint64_t there = NR_BLOCKS * block() - is->lost;
	struct img *img;

	there -= there % 512;
	assert_ok(open_it(0, &img));
	assert_ok(img_pread(img, got, there, 0, 0, &err));
	assert_memory_equal(got, want, there);
	assert_ok(img_close(img, &err));
}

/* The image is as a repair leaves it: zeros where something was lost, and it can be written. */
static void assert_mended(void)
{
	static const uint8_t new[512] = { 1 };
	struct img_check_result result;
	struct img *img;

	assert_ok(run(false, &result));
	assert_int_equal(result.damage + result.leaks + result.redundancy, 0);
	assert_ok(open_it(IMG_OPEN_WRITE, &img));
	assert_ok(img_pwrite(img, new, sizeof(new), NEVER_USED, 0, &err));
	assert_ok(img_pread(img, got, NR_BLOCKS * block(), 0, 0, &err));
	assert_memory_equal(got, want, NR_BLOCKS * block());
	assert_ok(img_close(img, &err));
	assert_ok(run(true, &result));
	assert_int_equal(result.damage + result.leaks, 0);
}

static void each_format(void (*test)(void))
{
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		is = &formats[i];
		memfs_init(&fs);
		fault_plan_init(&plan);
		make();
		test();
		mem_content_unref(cut);
		fault_plan_destroy(&plan);
		memfs_destroy(&fs);
	}
}

static void repair_it(void)
{
	struct img_check_result result;
	struct img *img;

	assert_rest_reads();
	assert_ok(run(false, &result));
	assert_int_equal(result.damage, 1);
	assert_int_equal(open_it(IMG_OPEN_WRITE, &img), IMG_E_CORRUPT);
	assert_non_null(strstr(err.msg, "run imgtool check --repair"));
	assert_ok(run(true, &result));
	assert_int_equal(result.damage, 1);
	assert_int_equal(result.repaired, result.damage + result.redundancy);
	assert_mended();
}

static void fail_each(void)
{
	struct img_check_result result;

	for (unsigned for_good = 0; for_good < 2; for_good++) {
		bool failed = true;

		for (uint64_t n = 1; failed; n++) {
			memfs_put(&fs, NAME, copy_of(cut));
			fs.wrap = wrap_faulty;
			fs.wrap_ctx = &plan;
			fault_plan_arm(&plan, FAULT_ALL, n, EIO, for_good);
			(void)run(true, &result);
			failed = plan.failed > 0;
			fault_plan_disarm(&plan);
			fs.wrap = NULL;
			assert_rest_reads();
			assert_ok(run(true, &result));
			assert_mended();
		}
	}
}

static void crash_everywhere(void)
{
	struct crash_log *log = crash_log_new();
	struct img_check_result result;
	uint64_t random = 1;

	assert_non_null(log);
	fs.wrap = wrap_logged;
	fs.wrap_ctx = log;
	assert_ok(run(true, &result));
	fs.wrap = NULL;
	assert_true(crash_log_nr(log) > 0);
	for (size_t i = 0; i < 8 * crash_log_nr(log); i++) {
		memfs_put(&fs, NAME, copy_of(cut));
		cut_power(memfs_find(&fs, NAME), NAME, log, i / 8 + 1, &random);
		assert_rest_reads();
		assert_ok(run(true, &result));
		assert_mended();
	}
	crash_log_free(log);
}

/* ---- a block device ---------------------------------------------------------------------------------------------- */

static struct img_driver device;

static int device_stat(struct node *n, struct host_stat *out, struct img_error *e)
{
	int ret = fault_driver.stat(n, out, e);

	out->is_block_device = true;
	return ret;
}

static int wrap_device(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		       struct img_error *e)
{
	int ret = wrap_faulty(ctx, child, name, args, out, e);

	device = fault_driver;
	device.stat = device_stat;
	if (ret == 0)
		(*out)->drv = &device;
	return ret;
}

/* It cannot grow: nothing is thrown away, and the damage stays told. */
static void leave_on_device(void)
{
	struct img_check_result result;

	fs.wrap = wrap_device;
	fs.wrap_ctx = &plan;
	for (unsigned i = 0; i < 2; i++) {
		assert_ok(run(true, &result));
		assert_true(result.damage > 0 && result.repaired <= result.redundancy);
		assert_rest_reads();
	}
	assert_int_equal(plan.calls[FAULT_RESIZE], 0);
	fs.wrap = NULL;
	assert_ok(run(true, &result));
	assert_mended();
}

static void test_repair(void **state)
{
	(void)state;
	each_format(repair_it);
}

static void test_failures(void **state)
{
	(void)state;
	each_format(fail_each);
}

static void test_crashes(void **state)
{
	(void)state;
	each_format(crash_everywhere);
}

static void test_device(void **state)
{
	(void)state;
	each_format(leave_on_device);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_repair),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_crashes),
		cmocka_unit_test(test_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
