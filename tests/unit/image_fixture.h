/* SPDX-License-Identifier: MIT */
/* Images in a folder of their own, with content from seeds: what the tests of whole-image operations share. */
#ifndef TESTS_UNIT_IMAGE_FIXTURE_H
#define TESTS_UNIT_IMAGE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libimg.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * 1024)

/* Not every test uses every helper. */
#pragma GCC diagnostic ignored "-Wunused-function"

static char fixture_dir[256];

static int fixture_setup(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	snprintf(fixture_dir, sizeof(fixture_dir), "%s/libimg-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
	return mkdtemp(fixture_dir) ? 0 : -1;
}

/* Number of files in the folder; removes them where asked. */
static unsigned fixture_files(bool remove_them)
{
	DIR *dir = opendir(fixture_dir);
	struct dirent *entry;
	unsigned nr = 0;
	char path[600];

	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		nr++;
		snprintf(path, sizeof(path), "%s/%s", fixture_dir, entry->d_name);
		if (remove_them)
			unlink(path);
	}
	closedir(dir);
	return nr;
}

static int fixture_teardown(void **state)
{
	(void)state;
	fixture_files(true);
	return rmdir(fixture_dir);
}

/* Path of a name in the folder; valid until the eighth call after. */
static const char *in_dir(const char *name)
{
	static char paths[8][512];
	static unsigned next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", fixture_dir, name);
	return path;
}

/* Fails the test with the library's message. */
#define assert_ok(call)                                                                                           \
	do {                                                                                                      \
		struct img_error *fixture_err_ = &fixture_error;                                                  \
		int fixture_ret_ = (call);                                                                        \
		if (fixture_ret_ != 0)                                                                            \
			fail_msg("%s = %d: %s: %s", #call, fixture_ret_, fixture_err_->layer, fixture_err_->msg); \
	} while (0)

static struct img_error fixture_error;
#define ERR (&fixture_error)

static uint64_t mix(uint64_t v)
{
	v ^= v >> 31;
	v *= UINT64_C(0x7fb5d329728ea185);
	v ^= v >> 27;
	v *= UINT64_C(0x81dadef4bc2dd44d);
	return v ^ v >> 33;
}

static uint64_t random_state = 1;
static uint64_t random_below(uint64_t limit)
{
	random_state += UINT64_C(0x9e3779b97f4a7c15);
	return mix(random_state) % limit;
}

/* Bytes that depend on the seed and on nothing else; every other 4 KiB compresses well. */
static void pattern(uint8_t *buf, size_t bytes, uint64_t seed)
{
	uint64_t v = 0;

	for (size_t i = 0; i < bytes; i++) {
		if (i % 8 == 0)
			v = mix(seed * 0x100000001b3 + i / 8);
		buf[i] = (uint8_t)((i / 4096) % 2 ? seed + i / 512 + 1 : v >> (8 * (i % 8)));
	}
}

static void make_image(const char *name, const char *format, uint64_t size_bytes, const char *backing,
		       const char *backing_format)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = format,
		.size_bytes = size_bytes,
		.backing = backing,
		.backing_format = backing_format,
	};

	assert_ok(img_create(in_dir(name), &create, ERR));
}

static struct img *open_image(const char *name, const char *format, unsigned flags)
{
	struct img_open_options open = { .struct_size = sizeof(open), .format = format, .flags = flags };
	struct img *img = NULL;

	assert_ok(img_open(in_dir(name), &open, &img, ERR));
	assert_non_null(img);
	return img;
}

static void close_image(struct img *img)
{
	assert_ok(img_close(img, ERR));
}

static void write_pattern(struct img *img, uint64_t off, uint64_t bytes, uint64_t seed)
{
	uint8_t *buf = malloc(bytes);

	assert_non_null(buf);
	pattern(buf, bytes, seed);
	assert_ok(img_pwrite(img, buf, bytes, off, 0, ERR));
	free(buf);
}

/* The whole content; to be freed. */
static uint8_t *read_all(struct img *img)
{
	uint64_t size = img_size(img);
	uint8_t *buf = malloc(size + 1);

	assert_non_null(buf);
	if (size > 0)
		assert_ok(img_pread(img, buf, size, 0, 0, ERR));
	return buf;
}

static void assert_content(struct img *img, const uint8_t *expected, uint64_t bytes)
{
	uint8_t *buf = read_all(img);
	uint64_t size = img_size(img);

	assert_true(size >= bytes);
	for (uint64_t i = 0, end = memcmp(buf, expected, bytes) ? bytes : 0; i < end; i++)
		if (buf[i] != expected[i])
			fail_msg("byte 0x%llx is 0x%02x, not 0x%02x", (unsigned long long)i, buf[i], expected[i]);
	for (uint64_t i = bytes; i < size; i++)
		if (buf[i] != 0)
			fail_msg("byte 0x%llx beyond the content is 0x%02x", (unsigned long long)i, buf[i]);
	free(buf);
}

/* Random writes, zeros and gaps, as of a used disk. */
static void scribble(struct img *img, unsigned nr, uint64_t max_bytes)
{
	uint64_t size = img_size(img);

	for (unsigned i = 0; i < nr; i++) {
		uint64_t bytes = random_below(max_bytes) + 1, off;

		if (random_below(2))
			bytes = (bytes + 4095) / 4096 * 4096;
		bytes = bytes > size ? size : bytes;
		off = random_below(size - bytes + 1);
		if (random_below(2))
			off = off / 4096 * 4096;
		if (random_below(4) == 0)
			assert_ok(img_zero(img, bytes, off, 0, ERR));
		else
			write_pattern(img, off, bytes, random_below(1000));
	}
}

static uint64_t allocated_bytes(const char *name)
{
	struct stat sb;

	assert_int_equal(stat(in_dir(name), &sb), 0);
	return (uint64_t)sb.st_blocks * 512;
}

static bool file_exists(const char *name)
{
	return access(in_dir(name), F_OK) == 0;
}

#endif
