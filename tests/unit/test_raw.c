/* SPDX-License-Identifier: MIT */
/* raw: the file is the content; holes; growing and shrinking; never guessed for writing; preallocation. */
#include "image_fixture.h"

static void test_content_is_the_file(void **state)
{
	struct img *img;
	uint8_t *flat = calloc(1, MIB), *file = malloc(MIB);
	FILE *f;

	(void)state;
	assert_non_null(flat);
	assert_non_null(file);
	make_image("a.raw", "raw", MIB, NULL, NULL);
	img = open_image("a.raw", "raw", IMG_OPEN_WRITE);
	for (int i = 0; i < 200; i++) {
		uint64_t bytes = random_below(20000) + 1, off = random_below(MIB - bytes);

		if (i % 3) {
			pattern(flat + off, bytes, (uint64_t)i);
			assert_ok(img_pwrite(img, flat + off, bytes, off, 0, ERR));
		} else {
			memset(flat + off, 0, bytes);
			assert_ok(img_zero(img, bytes, off, 0, ERR));
		}
	}
	assert_content(img, flat, MIB);
	close_image(img);
	f = fopen(in_dir("a.raw"), "rb");
	assert_non_null(f);
	assert_int_equal(fread(file, 1, MIB, f), MIB);
	assert_int_equal(fgetc(f), EOF);
	fclose(f);
	assert_memory_equal(file, flat, MIB);
	free(flat);
	free(file);
	fixture_files(true);
}

static void test_empty_image(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_given = true };
	struct img_extent e;
	struct img *img;
	size_t nr = 7;
	char byte;

	(void)state;
	assert_ok(img_create(in_dir("e.raw"), &create, ERR));
	img = open_image("e.raw", "raw", IMG_OPEN_WRITE);
	assert_int_equal(img_size(img), 0);
	assert_int_equal(img_pread(img, &byte, 1, 0, 0, NULL), IMG_E_INVALID);
	assert_ok(img_pread(img, &byte, 0, 0, 0, ERR));
	assert_ok(img_extents(img, 0, 0, 0, &e, 1, &nr, ERR));
	assert_int_equal(nr, 0);
	assert_ok(img_flush(img, 0, ERR));
	close_image(img);
	fixture_files(true);
}

/* A file that is no multiple of anything opens and reads to its last byte. */
static void test_odd_size(void **state)
{
	struct img *img;
	char buf[8] = "";
	FILE *f = fopen(in_dir("odd.raw"), "wb");

	(void)state;
	assert_non_null(f);
	fputs("abcde", f);
	fclose(f);
	img = open_image("odd.raw", NULL, 0);
	assert_int_equal(img_size(img), 5);
	assert_ok(img_pread(img, buf, 5, 0, 0, ERR));
	assert_string_equal(buf, "abcde");
	assert_int_equal(img_pread(img, buf, 1, 5, 0, NULL), IMG_E_INVALID);
	close_image(img);
	fixture_files(true);
}

static void test_resize(void **state)
{
	struct img *img;
	uint8_t buf[1024];

	(void)state;
	make_image("r.raw", "raw", 64 * KIB, NULL, NULL);
	img = open_image("r.raw", "raw", IMG_OPEN_WRITE);
	write_pattern(img, 0, 64 * KIB, 1);
	assert_int_equal(img_resize(img, 32 * KIB, 0, ERR), IMG_E_REFUSED);
	assert_int_equal(img_size(img), 64 * KIB);
	assert_ok(img_resize(img, 32 * KIB, IMG_RESIZE_SHRINK, ERR));
	assert_ok(img_resize(img, 64 * KIB, 0, ERR));
	assert_int_equal(img_size(img), 64 * KIB);
	assert_ok(img_pread(img, buf, sizeof(buf), 32 * KIB, 0, ERR));
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 0);
	assert_int_equal(img_resize(img, 1000, IMG_RESIZE_SHRINK, NULL), IMG_E_INVALID);
	close_image(img);
	fixture_files(true);
}

static void test_holes_are_extents(void **state)
{
	struct img_extent e[8];
	struct img *img;
	size_t nr;

	(void)state;
	make_image("h.raw", "raw", MIB, NULL, NULL);
	img = open_image("h.raw", "raw", IMG_OPEN_WRITE);
	write_pattern(img, 256 * KIB, 64 * KIB, 3);
	assert_ok(img_flush(img, 0, ERR));
	assert_ok(img_extents(img, MIB, 0, 0, e, 8, &nr, ERR));
	assert_int_equal(nr, 3);
	assert_int_equal(e[0].flags, IMG_EXT_ZERO | IMG_EXT_ALLOCATED);
	assert_int_equal(e[1].flags, IMG_EXT_DATA | IMG_EXT_ALLOCATED | IMG_EXT_OFFSET);
	assert_int_equal(e[1].off, 256 * KIB);
	assert_int_equal(e[1].bytes, 64 * KIB);
	assert_int_equal(e[1].host_off, 256 * KIB);
	assert_int_equal(e[2].flags, IMG_EXT_ZERO | IMG_EXT_ALLOCATED);
	/* Discarded space is a hole again, and reads as zeros on this host. */
	assert_ok(img_discard(img, 64 * KIB, 256 * KIB, 0, ERR));
	assert_ok(img_extents(img, MIB, 0, 0, e, 8, &nr, ERR));
	assert_int_equal(nr, 1);
	close_image(img);
	fixture_files(true);
}

static void test_preallocation(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_bytes = MIB };

	(void)state;
	create.options = "preallocation=off";
	assert_ok(img_create(in_dir("off"), &create, ERR));
	create.options = "preallocation=falloc";
	assert_ok(img_create(in_dir("falloc"), &create, ERR));
	create.options = "preallocation=full";
	assert_ok(img_create(in_dir("full"), &create, ERR));
	assert_true(allocated_bytes("off") < 64 * KIB);
	assert_true(allocated_bytes("falloc") >= MIB);
	assert_true(allocated_bytes("full") >= MIB);
	create.options = "preallocation=some";
	assert_int_equal(img_create(in_dir("bad"), &create, ERR), IMG_E_INVALID);
	create.options = "cluster_size=4096";
	assert_int_equal(img_create(in_dir("bad"), &create, ERR), IMG_E_INVALID);
	assert_non_null(strstr(ERR->msg, "cluster_size"));
	create.options = NULL;
	create.backing = "off";
	create.backing_format = "raw";
	assert_int_equal(img_create(in_dir("bad"), &create, ERR), IMG_E_UNSUPPORTED);
	/* Nothing of the refused ones is left, not even a temporary file. */
	assert_int_equal(fixture_files(true), 3);
}

static void test_no_snapshots(void **state)
{
	struct img_open_options open = { .struct_size = sizeof(open), .format = "raw", .snapshot = "a" };
	struct img *img, *view;
	size_t nr = 9;

	(void)state;
	make_image("s.raw", "raw", MIB, NULL, NULL);
	assert_int_equal(img_open(in_dir("s.raw"), &open, &img, ERR), IMG_E_UNSUPPORTED);
	img = open_image("s.raw", "raw", IMG_OPEN_WRITE);
	assert_int_equal(img_snapshot_create(img, "a", 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_snapshot_open(img, "a", &view, NULL), IMG_E_UNSUPPORTED);
	assert_ok(img_snapshot_list(img, NULL, 0, &nr, ERR));
	assert_int_equal(nr, 0);
	assert_int_equal(img_check(img, 0, NULL, NULL, NULL, NULL, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(img_vmstate_write(img, "x", 1, 0, NULL), IMG_E_UNSUPPORTED);
	close_image(img);
	fixture_files(true);
}

static void test_info(void **state)
{
	struct img_info info;
	struct img *img;

	(void)state;
	make_image("i.raw", "raw", MIB, NULL, NULL);
	img = open_image("i.raw", NULL, 0);
	assert_ok(img_info(img, &info, ERR));
	assert_string_equal(info.format, "raw");
	assert_int_equal(info.virtual_bytes, MIB);
	assert_int_equal(info.file_bytes, MIB);
	assert_true(info.allocated_bytes < MIB);
	assert_string_equal(info.compression, "none");
	assert_false(info.has_backing);
	assert_int_equal(info.nr_snapshots, 0);
	close_image(img);
	fixture_files(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_content_is_the_file),
		cmocka_unit_test(test_empty_image),
		cmocka_unit_test(test_odd_size),
		cmocka_unit_test(test_resize),
		cmocka_unit_test(test_holes_are_extents),
		cmocka_unit_test(test_preallocation),
		cmocka_unit_test(test_no_snapshots),
		cmocka_unit_test(test_info),
	};

	return cmocka_run_group_tests_name("raw", tests, fixture_setup, fixture_teardown);
}
