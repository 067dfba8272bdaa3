/* SPDX-License-Identifier: MIT */
/* img_measure(): what it foretells against what a conversion then takes. */
#include "image_fixture.h"

#define SIZE (24 * MIB)

static void raw_is_its_size(void **state)
{
	struct img_measure m;

	(void)state;
	assert_ok(img_measure(NULL, 10 * MIB + 1, "raw", NULL, &m, ERR));
	assert_int_equal(m.required_bytes, 10 * MIB + 512);
	assert_int_equal(m.fully_allocated_bytes, 10 * MIB + 512);
	assert_ok(img_measure(NULL, 0, "raw", NULL, &m, ERR));
	assert_int_equal(m.required_bytes, 0);
}

static void refuses_nonsense(void **state)
{
	struct img_measure m;

	(void)state;
	assert_int_equal(img_measure(NULL, MIB, "nonsense", NULL, &m, ERR), IMG_E_UNSUPPORTED);
	assert_true(img_measure(NULL, MIB, "raw", "nonsense=1", &m, ERR) < 0);
	assert_int_equal(img_measure(NULL, UINT64_MAX, "raw", NULL, &m, ERR), IMG_E_LIMIT);
	assert_int_equal(img_measure(NULL, MIB, "raw", NULL, NULL, ERR), IMG_E_INVALID);
}

static uint64_t converted_bytes(struct img *src)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "limg" };
	struct img_copy_options opts = { .struct_size = sizeof(opts), .flags = IMG_COPY_NO_DETECT };
	struct stat sb;

	assert_ok(img_convert(src, in_dir("out"), &create, &opts, ERR));
	assert_int_equal(stat(in_dir("out"), &sb), 0);
	unlink(in_dir("out"));
	return (uint64_t)sb.st_size;
}

/* The answer is an upper bound, and not far off. */
static void limg_is_foretold(void **state)
{
	struct img_measure m, empty;
	uint64_t taken;
	struct img *src;

	(void)state;
	assert_ok(img_measure(NULL, SIZE, "limg", NULL, &empty, ERR));
	assert_true(empty.required_bytes < 3 * MIB);
	make_image("a", "raw", SIZE, NULL, NULL);
	src = open_image("a", "raw", IMG_OPEN_WRITE);
	for (unsigned round = 0; round < 6; round++) {
		scribble(src, 3, 2 * MIB);
		assert_ok(img_measure(src, 0, "limg", NULL, &m, ERR));
		taken = converted_bytes(src);
		assert_true(taken <= m.required_bytes);
		assert_true(m.required_bytes <= taken + taken / 10 + 3 * MIB);
		assert_true(m.required_bytes <= m.fully_allocated_bytes);
		assert_int_equal(m.fully_allocated_bytes, empty.fully_allocated_bytes);
	}
	write_pattern(src, 0, SIZE, 1);
	assert_ok(img_measure(src, 0, "limg", NULL, &m, ERR));
	assert_int_equal(m.required_bytes, m.fully_allocated_bytes);
	assert_true(m.required_bytes >= SIZE);
	close_image(src);
}

/* Little data, and data in many small pieces: what writers leave over counts most there. */
static void limg_in_small_pieces(void **state)
{
	struct img_measure m;
	struct img *src;

	(void)state;
	make_image("b", "raw", 64 * MIB, NULL, NULL);
	src = open_image("b", "raw", IMG_OPEN_WRITE);
	for (unsigned nr = 1; nr <= 1024; nr *= 4) {
		for (unsigned i = 0; i < nr; i++)
			write_pattern(src, random_below(64 * MIB / 4096) * 4096, 4096, i);
		assert_ok(img_measure(src, 0, "limg", NULL, &m, ERR));
		assert_true(converted_bytes(src) <= m.required_bytes);
	}
	close_image(src);
}

/* What is created is no larger, down to a disk of no size. */
static void small_qcow2_is_foretold(void **state)
{
	static const uint64_t sizes[] = { 0, 512, 4096, 64 * KIB, MIB };
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "qcow2", .options = "cluster_size=4096", .size_given = true
	};
	struct img_measure m;
	struct stat sb;

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		create.size_bytes = sizes[i];
		assert_ok(img_measure(NULL, sizes[i], "qcow2", create.options, &m, ERR));
		assert_ok(img_create(in_dir("q"), &create, ERR));
		assert_int_equal(stat(in_dir("q"), &sb), 0);
		assert_true((uint64_t)sb.st_size <= m.required_bytes);
		unlink(in_dir("q"));
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(raw_is_its_size),	 T(refuses_nonsense),	     T(limg_is_foretold),
		T(limg_in_small_pieces), T(small_qcow2_is_foretold),
	};

	return cmocka_run_group_tests_name("measure", tests, NULL, NULL);
}
