/* SPDX-License-Identifier: MIT */
/* Images that are made on block devices: whatever fails, there is a whole one or none. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cut_power.h"
#include "device.h"
#include "fault.h"
#include "image.h"

#define MIB	  (UINT64_C(1) << 20)
#define DISK_SIZE (3 * MIB)
#define NAME	  "device"

static struct memfs fs;
static struct fault_plan plan;
static struct img_error err;
static const char *const formats[] = { "limg", "qcow2" };

#define assert_ok(call)                                     \
	do {                                                \
		if ((call) != 0)                            \
			fail_msg("%s: %s", #call, err.msg); \
	} while (0)

/* What fails is what the device sees: it is below the fault filter. */
static int wrap(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		struct img_error *e)
{
	int ret = device_wrap(NULL, child, name, args, &child, e);

	*out = NULL;
	if (ret != 0)
		return ret;
	return fault_node_new(child, ctx, out, e);
}

static int setup(void **state)
{
	(void)state;
	memfs_init(&fs);
	fault_plan_init(&plan);
	fs.wrap = wrap;
	fs.wrap_ctx = &plan;
	return device_make(&fs, NAME) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	fault_plan_destroy(&plan);
	memfs_destroy(&fs);
	return 0;
}

static int open_it(const char *format, unsigned flags, struct img **img)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = format, .flags = flags };

	return image_open_env(NAME, &o, &fs.env, img, &err);
}

static int create(const char *format, unsigned flags, uint64_t size)
{
	struct img_create_options o = { .struct_size = sizeof(o), .format = format, .size_bytes = size, .flags = flags };

	return image_create_env(NAME, &o, &fs.env, &err);
}

static void fill(uint8_t *buf)
{
	for (size_t i = 0; i < DISK_SIZE; i++)
		buf[i] = i / MIB == 1 ? 0 : (uint8_t)(i * 7 + i / 4096);
}

/* A disk in memory to convert from. */
static struct img *source(void)
{
	struct img_create_options o = { .struct_size = sizeof(o), .format = "raw", .size_bytes = DISK_SIZE };
	struct img_open_options in = { .struct_size = sizeof(in), .format = "raw", .flags = IMG_OPEN_WRITE };
	uint8_t *buf = malloc(DISK_SIZE);
	struct img *img;

	assert_non_null(buf);
	fill(buf);
	assert_ok(image_create_env("source", &o, &fs.env, &err));
	assert_ok(image_open_env("source", &in, &fs.env, &img, &err));
	assert_ok(img_pwrite(img, buf, DISK_SIZE, 0, 0, &err));
	assert_ok(img_close(img, &err));
	in.flags = 0;
	assert_ok(image_open_env("source", &in, &fs.env, &img, &err));
	free(buf);
	return img;
}

static int convert(struct img *src, const char *format)
{
	struct img_create_options o = { .struct_size = sizeof(o), .format = format, .flags = IMG_CREATE_DEVICE };
	struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 1 };

	return image_convert_env(src, NAME, &o, &copy, &fs.env, &err);
}

/* The image is whole: filled says with what. */
static void assert_whole(const char *format, bool filled)
{
	uint8_t *want = calloc(1, DISK_SIZE), *got = malloc(DISK_SIZE);
	struct img_check_result result;
	struct img *img;

	assert_non_null(want);
	assert_non_null(got);
	if (filled)
		fill(want);
	assert_ok(open_it(NULL, 0, &img));
	assert_int_equal(img_size(img), DISK_SIZE);
	assert_ok(img_pread(img, got, DISK_SIZE, 0, 0, &err));
	assert_memory_equal(got, want, DISK_SIZE);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.damage, 0);
	assert_ok(img_close(img, &err));
	/* and goes on to live there */
	assert_ok(open_it(format, IMG_OPEN_WRITE, &img));
	assert_ok(img_pwrite(img, "new", 3, MIB + 1000, 0, &err));
	memcpy(want + MIB + 1000, "new", 3);
	assert_ok(img_close(img, &err));
	assert_ok(open_it(format, 0, &img));
	assert_ok(img_pread(img, got, DISK_SIZE, 0, 0, &err));
	assert_memory_equal(got, want, DISK_SIZE);
	assert_ok(img_close(img, &err));
	free(want);
	free(got);
}

static void test_made(void **state)
{
	struct img *src = source();

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		assert_ok(create(formats[i], IMG_CREATE_DEVICE, DISK_SIZE));
		assert_whole(formats[i], false);
		assert_ok(convert(src, formats[i]));
		assert_whole(formats[i], true);
	}
	assert_ok(img_close(src, &err));
}

static void test_refused(void **state)
{
	static const char *const others[] = { "raw", "vdi", "vhd", "vhdx", "vmdk", "parallels" };
	struct img_create_options o = { .struct_size = sizeof(o), .size_bytes = DISK_SIZE, .flags = IMG_CREATE_DEVICE };
	struct img *img;

	(void)state;
	assert_ok(create("limg", IMG_CREATE_DEVICE, DISK_SIZE));
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		assert_int_equal(create(others[i], IMG_CREATE_DEVICE, DISK_SIZE), IMG_E_UNSUPPORTED);
	o.format = "qcow2";
	o.options = "data_file=other";
	assert_int_not_equal(image_create_env(NAME, &o, &fs.env, &err), 0);
	assert_null(memfs_find(&fs, "other"));
	/* no device */
	o.options = NULL;
	assert_ok(image_create_env("file", &(struct img_create_options){ .struct_size = sizeof(o) }, &fs.env, &err));
	assert_int_equal(image_create_env("file", &o, &fs.env, &err), IMG_E_INVALID);
	assert_int_equal(image_create_env("nothing", &o, &fs.env, &err), IMG_E_NOENT);
	/* what does not fit, to begin with */
	o.options = "preallocation=full";
	o.size_bytes = 2 * (uint64_t)DEVICE_BYTES;
	assert_int_not_equal(image_create_env(NAME, &o, &fs.env, &err), 0);
	assert_int_not_equal(open_it("qcow2", 0, &img), 0);
}

static uint8_t *device_bytes(void)
{
	uint8_t *all = malloc(DEVICE_BYTES);
	struct img *img;

	assert_non_null(all);
	assert_ok(open_it("raw", 0, &img));
	assert_ok(img_pread(img, all, DEVICE_BYTES, 0, 0, &err));
	assert_ok(img_close(img, &err));
	return all;
}

/* A disk with a snapshot, which a copy does not have. */
static struct img *source_with_snapshot(void)
{
	struct img_create_options o = { .struct_size = sizeof(o), .format = "limg", .size_bytes = DISK_SIZE };
	struct img_open_options in = { .struct_size = sizeof(in), .flags = IMG_OPEN_WRITE };
	struct img *img;

	assert_ok(image_create_env("marked", &o, &fs.env, &err));
	assert_ok(image_open_env("marked", &in, &fs.env, &img, &err));
	assert_ok(img_snapshot_create(img, "one", 0, &err));
	return img;
}

/* What is refused at once leaves the device as it was, to the byte. */
static void test_refused_for_nothing(void **state)
{
	static const struct {
		const char *format, *options;
		uint64_t size;
	} bad[] = {
		{ "limg", "bogus=1", DISK_SIZE },
		{ "limg", "block_size=3", DISK_SIZE },
		{ "limg", NULL, 100 * MIB * MIB },
		{ "qcow2", "bogus=1", DISK_SIZE },
		{ "qcow2", "cluster_size=3", DISK_SIZE },
		{ "qcow2", "data_file=other", DISK_SIZE },
		{ "qcow2", "cluster_size=512", 100 * MIB * MIB },
		{ "qcow2", "preallocation=full", 2 * (uint64_t)DEVICE_BYTES },
		{ "qcow2", "preallocation=falloc", 2 * (uint64_t)DEVICE_BYTES },
		{ "qcow2", "preallocation=metadata", 2 * (uint64_t)DEVICE_BYTES },
	};
	struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 1, .flags = IMG_COPY_STRICT };
	struct img *src;
	uint8_t *before, *after;

	(void)state;
	assert_ok(create("qcow2", IMG_CREATE_DEVICE, DISK_SIZE));
	src = source();
	assert_ok(convert(src, "qcow2"));
	assert_ok(img_close(src, &err));
	src = source_with_snapshot();
	before = device_bytes();
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]) + 2; i++) {
		bool copies = i < 2;
		struct img_create_options o = { .struct_size = sizeof(o),
						.flags = IMG_CREATE_DEVICE,
						.format = copies ? formats[i] : bad[i - 2].format,
						.options = copies ? NULL : bad[i - 2].options,
						.size_bytes = copies ? 0 : bad[i - 2].size };

		if (copies)
			assert_int_equal(image_convert_env(src, NAME, &o, &copy, &fs.env, &err), IMG_E_REFUSED);
		else
			assert_int_not_equal(image_create_env(NAME, &o, &fs.env, &err), 0);
		after = device_bytes();
		if (memcmp(before, after, DEVICE_BYTES) != 0)
			fail_msg("%s, %s: the device has changed", o.format, copies ? "strict" : o.options);
		free(after);
	}
	free(before);
	assert_ok(img_close(src, &err));
}

/* Each call to the host fails, alone and from there on. */
static void test_failures(void **state)
{
	struct img *src = source();
	unsigned tried = 0;

	(void)state;
	for (unsigned kind = 0; kind < 8; kind++) {
		const char *format = formats[kind & 1], *before = formats[!(kind & 1)];
		bool filled = kind & 2, for_good = kind & 4, failed = true;

		for (uint64_t n = 1; failed; n += 1 + n / 40) {
			struct img *img;
			int ret;

			assert_ok(create(before, IMG_CREATE_DEVICE, MIB));
			fault_plan_arm(&plan, FAULT_ALL, n, EIO, for_good);
			ret = filled ? convert(src, format) : create(format, IMG_CREATE_DEVICE, DISK_SIZE);
			failed = plan.failed > 0;
			fault_plan_disarm(&plan);
			assert_true(failed || ret == 0);
			if (ret == 0) {
				assert_whole(format, filled);
			} else if (open_it(format, 0, &img) == 0) { /* its name stood there when the rest failed */
				assert_ok(img_close(img, &err));
				assert_whole(format, filled);
			}
			tried++;
		}
	}
	assert_ok(img_close(src, &err));
	print_message("%u failures\n", tried);
}

static int wrap_logged(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		       struct img_error *e)
{
	int ret = device_wrap(NULL, child, name, args, &child, e);

	*out = child;
	if (ret != 0 || !args->writable)
		return ret;
	return crash_node_new(child, ctx, 0, out, e);
}

static void test_crashes(void **state)
{
	struct img *src = source();
	uint64_t random = 1;
	unsigned whole = 0, none = 0;

	(void)state;
	for (unsigned kind = 0; kind < 4; kind++) {
		const char *format = formats[kind & 1];
		struct crash_log *log = crash_log_new();
		struct mem_content *before;
		struct img *img;

		assert_non_null(log);
		assert_ok(create(formats[!(kind & 1)], IMG_CREATE_DEVICE, MIB));
		before = mem_content_clone(memfs_find(&fs, NAME));
		assert_non_null(before);
		fs.wrap = wrap_logged;
		fs.wrap_ctx = log;
		assert_ok(kind & 2 ? convert(src, format) : create(format, IMG_CREATE_DEVICE, DISK_SIZE));
		fs.wrap = device_wrap;
		for (unsigned i = 0; i < 150; i++) {
			size_t nr = crash_log_nr(log), at = i < 40 ? nr - i % nr : random_next(&random) % (nr + 1);

			memfs_put(&fs, NAME, mem_content_clone(before));
			cut_power(memfs_find(&fs, NAME), NAME, log, at, &random);
			if (open_it(format, 0, &img) != 0) {
				none++;
				continue;
			}
			assert_ok(img_close(img, &err));
			assert_whole(format, kind & 2);
			whole++;
		}
		mem_content_unref(before);
		crash_log_free(log);
	}
	assert_ok(img_close(src, &err));
	print_message("%u whole images, %u times none\n", whole, none);
	assert_in_range(whole, 4, 400);
	assert_in_range(none, 100, 596);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_made, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused_for_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failures, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crashes, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
