/* SPDX-License-Identifier: MIT */
/*
 * Overlays in the native format: on raw bases, on each other, on named snapshots of a parent that goes on changing;
 * what happens when the parent is not what it was. The core's part of chains, on a format of the test's own, is in
 * test_chain.c.
 */
#include "image_fixture.h"


#include "image.h"

#define SIZE (2 * MIB)

static uint8_t *flat; /* SIZE bytes: what the image under test must read as */

static int setup(void **state)
{
	flat = calloc(1, SIZE);
	return flat ? fixture_setup(state) : -1;
}

static int teardown(void **state)
{
	free(flat);
	return fixture_teardown(state);
}

static int make_overlay(const char *name, const char *backing, const char *snapshot, const char *format)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.backing = backing,
		.backing_snapshot = snapshot,
		.backing_format = format,
	};

	return img_create(in_dir(name), &create, ERR);
}

/* Writes to the image and to the flat array. */
static void put(struct img *img, uint64_t off, uint64_t bytes, uint64_t seed)
{
	pattern(flat + off, bytes, seed);
	assert_ok(img_pwrite(img, flat + off, bytes, off, 0, ERR));
}

static void put_zero(struct img *img, uint64_t off, uint64_t bytes)
{
	memset(flat + off, 0, bytes);
	assert_ok(img_zero(img, bytes, off, 0, ERR));
}

static void change(const char *name, uint64_t off, uint64_t seed)
{
	struct img *img = open_image(name, NULL, IMG_OPEN_WRITE);

	write_pattern(img, off, 4096, seed);
	close_image(img);
}

static int try_open(const char *name, const char *snapshot, unsigned flags)
{
	struct img_open_options open = { .struct_size = sizeof(open), .snapshot = snapshot, .flags = flags };
	struct img *img;
	int ret = img_open(in_dir(name), &open, &img, ERR);

	if (ret == 0)
		close_image(img);
	return ret;
}

static void expect(const char *name, unsigned depth)
{
	struct img *img = open_image(name, NULL, 0);

	assert_int_equal(img_chain_depth(img), depth);
	assert_content(img, flat, SIZE);
	close_image(img);
}

/* A parent of SIZE with a snapshot "gold" of what flat holds, and a head that went on. */
static void make_golden(const char *name)
{
	struct img *img;

	memset(flat, 0, SIZE);
	make_image(name, "limg", SIZE, NULL, NULL);
	img = open_image(name, NULL, IMG_OPEN_WRITE);
	put(img, 100 * KIB, 300 * KIB, 1);
	put(img, MIB, 4096, 2);
	assert_ok(img_snapshot_create(img, "gold", 0, ERR));
	write_pattern(img, 0, 512 * KIB, 3);
	close_image(img);
}

static void test_overlay_of_overlay_on_raw(void **state)
{
	struct img *img;

	(void)state;
	memset(flat, 0, SIZE);
	make_image("base.raw", "raw", SIZE, NULL, NULL);
	img = open_image("base.raw", "raw", IMG_OPEN_WRITE);
	put(img, 0, SIZE / 2, 1);
	close_image(img);
	assert_int_equal(make_overlay("mid", "base.raw", NULL, NULL), IMG_E_REFUSED);
	assert_ok(make_overlay("mid", "base.raw", NULL, "raw"));
	expect("mid", 2);
	img = open_image("mid", NULL, IMG_OPEN_WRITE);
	put(img, 10 * KIB + 7, 5000, 2);
	put_zero(img, 64 * KIB, 64 * KIB);
	put(img, SIZE - 512, 512, 3);
	close_image(img);
	expect("mid", 2);
	assert_ok(make_overlay("top", "mid", NULL, NULL));
	img = open_image("top", NULL, IMG_OPEN_WRITE);
	put(img, 100 * KIB, 1, 4);
	put_zero(img, 11 * KIB, 333);
	assert_content(img, flat, SIZE);
	close_image(img);
	expect("top", 3);
	fixture_files(true);
}

/* Random writes to the top of chains of growing depth. */
static void test_deep_chain(void **state)
{
	char name[16], below[16];

	(void)state;
	memset(flat, 0, SIZE);
	make_image("0", "limg", SIZE, NULL, NULL);
	for (int i = 0; i < 12; i++) {
		struct img *img;

		snprintf(name, sizeof(name), "%d", i);
		snprintf(below, sizeof(below), "%d", i - 1);
		if (i > 0)
			assert_ok(make_overlay(name, below, NULL, NULL));
		img = open_image(name, NULL, IMG_OPEN_WRITE);
		for (int k = 0; k < 10; k++) {
			uint64_t bytes = random_below(60000) + 1, off = random_below(SIZE - bytes);

			if (k % 3)
				put(img, off, bytes, (uint64_t)i * 100 + (uint64_t)k);
			else
				put_zero(img, off, bytes);
		}
		close_image(img);
		expect(name, (unsigned)i + 1);
	}
	fixture_files(true);
}

static void test_extents_agree_with_content(void **state)
{
	struct img_extent e[7];
	struct img *img;
	uint64_t off = 0;
	size_t nr;

	(void)state;
	make_golden("base");
	assert_ok(make_overlay("top", "base", "gold", NULL));
	img = open_image("top", NULL, IMG_OPEN_WRITE);
	put(img, 200 * KIB, 8192, 5);
	put_zero(img, 300 * KIB, 8192);
	for (off = 0; off < SIZE; off = e[nr - 1].off + e[nr - 1].bytes) {
		assert_ok(img_extents(img, SIZE - off, off, 0, e, 7, &nr, ERR));
		for (size_t i = 0; i < nr; i++) {
			bool zero = true;

			for (uint64_t k = e[i].off; k < e[i].off + e[i].bytes; k++)
				zero = zero && flat[k] == 0;
			if (e[i].flags & IMG_EXT_ZERO)
				assert_true(zero);
			if (e[i].off == 200 * KIB || e[i].off == 300 * KIB)
				assert_int_equal(e[i].depth, 0);
			else if (e[i].flags & IMG_EXT_DATA)
				assert_int_equal(e[i].depth, 1);
		}
	}
	close_image(img);
	fixture_files(true);
}

/* ---- on a snapshot ----------------------------------------------------------------------------------------------- */

static void test_on_a_snapshot_of_a_moving_parent(void **state)
{
	struct img_info info;
	struct img *img;

	(void)state;
	make_golden("base");
	assert_ok(make_overlay("web", "base", "gold", NULL));
	expect("web", 2);
	change("base", 120 * KIB, 77);
	expect("web", 2);
	img = open_image("web", NULL, 0);
	assert_ok(img_info(img, &info, ERR));
	assert_true(info.has_backing);
	assert_string_equal(info.backing, "base");
	assert_string_equal(info.backing_format, "limg");
	assert_string_equal(info.backing_snapshot, "gold");
	assert_string_equal(info.backing_pin, "strong");
	close_image(img);
	/* The head is another thing. */
	assert_ok(make_overlay("head", "base", NULL, NULL));
	change("base", 120 * KIB, 78);
	assert_int_equal(try_open("head", NULL, 0), IMG_E_CHANGED);
	fixture_files(true);
}

static void test_beside_the_parents_writer(void **state)
{
	struct img *writer, *img;

	(void)state;
	make_golden("base");
	assert_ok(make_overlay("web", "base", "gold", NULL));
	assert_ok(make_overlay("head", "base", NULL, NULL));
	writer = open_image("base", NULL, IMG_OPEN_WRITE);
	expect("web", 2);
	assert_int_equal(try_open("head", NULL, 0), IMG_E_BUSY);
	/* And an overlay may be made and written meanwhile. */
	assert_ok(make_overlay("web2", "base", "gold", NULL));
	img = open_image("web2", NULL, IMG_OPEN_WRITE);
	write_pattern(writer, 100 * KIB, MIB, 9);
	assert_ok(img_flush(writer, IMG_FLUSH_CHECKPOINT, ERR));
	put(img, 4096, 4096, 10);
	assert_content(img, flat, SIZE);
	/* What an overlay of ours has open is not deleted under it. */
	assert_int_equal(img_snapshot_delete(writer, "gold", ERR), IMG_E_BUSY);
	close_image(img);
	assert_ok(img_snapshot_delete(writer, "gold", ERR));
	close_image(writer);
	assert_int_equal(try_open("web2", NULL, 0), IMG_E_CHANGED);
	fixture_files(true);
}

static void test_renamed_snapshot_is_found(void **state)
{
	struct img *img;

	(void)state;
	make_golden("base");
	assert_ok(make_overlay("web", "base", "gold", NULL));
	img = open_image("base", NULL, IMG_OPEN_WRITE);
	assert_ok(img_snapshot_rename(img, "gold", "silver", ERR));
	close_image(img);
	expect("web", 2);
	/* Another one that took the name is not mistaken for it. */
	img = open_image("base", NULL, IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "gold", 0, ERR));
	close_image(img);
	expect("web", 2);
	fixture_files(true);
}

static void test_snapshot_made_again_is_another(void **state)
{
	struct img *img;

	(void)state;
	make_golden("base");
	assert_ok(make_overlay("web", "base", "gold", NULL));
	img = open_image("base", NULL, IMG_OPEN_WRITE);
	assert_ok(img_snapshot_delete(img, "gold", ERR));
	assert_ok(img_snapshot_create(img, "gold", 0, ERR));
	close_image(img);
	assert_int_not_equal(try_open("web", NULL, 0), 0);
	assert_ok(try_open("web", NULL, IMG_OPEN_UNSAFE_BACKING));
	assert_int_equal(make_overlay("none", "base", "platinum", NULL), IMG_E_NOENT);
	fixture_files(true);
}

/* Snapshots of an overlay share its backing. */
static void test_snapshots_of_an_overlay(void **state)
{
	struct img *img, *view;
	uint8_t *then = malloc(SIZE);

	(void)state;
	assert_non_null(then);
	make_golden("base");
	assert_ok(make_overlay("web", "base", "gold", NULL));
	img = open_image("web", NULL, IMG_OPEN_WRITE);
	put(img, 8192, 8192, 5);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	memcpy(then, flat, SIZE);
	put(img, 100 * KIB, 100 * KIB, 6);
	assert_ok(img_snapshot_open(img, "s", &view, ERR));
	assert_content(view, then, SIZE);
	assert_content(img, flat, SIZE);
	assert_int_equal(img_chain_depth(view), 2);
	assert_ptr_equal(img_backing(view), img_backing(img));
	assert_int_equal(img_pwrite(view, "x", 1, 0, 0, NULL), IMG_E_READONLY);
	assert_int_equal(img_snapshot_delete(img, "s", ERR), IMG_E_BUSY);
	close_image(view);
	close_image(img);
	{
		struct img_open_options at = { .struct_size = sizeof(at), .snapshot = "s" };

		assert_ok(img_open(in_dir("web"), &at, &view, ERR));
		assert_content(view, then, SIZE);
		close_image(view);
	}
	/* And may be stood upon in turn. */
	assert_ok(make_overlay("web.s", "web", "s", NULL));
	memcpy(flat, then, SIZE);
	expect("web.s", 3);
	free(then);
	fixture_files(true);
}

/* ---- changed parents --------------------------------------------------------------------------------------------- */

static void test_changed_parents_are_refused(void **state)
{
	struct img *img;

	(void)state;
	make_golden("base");
	assert_ok(make_overlay("top", "base", NULL, NULL));
	assert_ok(make_overlay("topmost", "top", NULL, NULL));
	assert_ok(try_open("topmost", NULL, 0));
	change("base", 0, 50);
	assert_int_equal(try_open("top", NULL, 0), IMG_E_CHANGED);
	assert_int_equal(try_open("topmost", NULL, IMG_OPEN_WRITE), IMG_E_CHANGED);
	assert_ok(try_open("topmost", NULL, IMG_OPEN_UNSAFE_BACKING));
	assert_ok(try_open("topmost", NULL, IMG_OPEN_NO_BACKING));
	/* Opened and closed without a change is the same; so is a block written as it was. */
	make_golden("base2");
	assert_ok(make_overlay("top2", "base2", NULL, NULL));
	img = open_image("base2", NULL, IMG_OPEN_WRITE);
	close_image(img);
	assert_ok(try_open("top2", NULL, 0));
	fixture_files(true);
}

static void test_exchanged_parent_is_refused(void **state)
{
	(void)state;
	make_golden("base");
	make_golden("twin");
	assert_ok(make_overlay("top", "base", NULL, NULL));
	assert_int_equal(rename(in_dir("twin"), in_dir("base")), 0);
	assert_int_equal(try_open("top", NULL, 0), IMG_E_CHANGED);
	assert_non_null(strstr(ERR->msg, "uuid"));
	fixture_files(true);
}

static void test_changed_raw_base_is_refused(void **state)
{
	struct img *img;

	(void)state;
	make_image("base.raw", "raw", SIZE, NULL, NULL);
	assert_ok(make_overlay("top", "base.raw", NULL, "raw"));
	assert_ok(try_open("top", NULL, 0));
	img = open_image("base.raw", "raw", IMG_OPEN_WRITE);
	write_pattern(img, 0, 4096, 1);
	close_image(img);
	assert_int_equal(try_open("top", NULL, 0), IMG_E_CHANGED);
	fixture_files(true);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

static void test_sizes(void **state)
{
	struct img_create_options larger = { .struct_size = sizeof(larger),
					     .size_bytes = SIZE + MIB,
					     .backing = "base" };
	struct img_create_options smaller = { .struct_size = sizeof(smaller),
					      .size_bytes = 512 * KIB,
					      .backing = "base" };
	struct img *img;
	uint8_t *buf = malloc(SIZE + MIB);

	(void)state;
	assert_non_null(buf);
	memset(flat, 0, SIZE);
	make_image("base", "limg", SIZE, NULL, NULL);
	img = open_image("base", NULL, IMG_OPEN_WRITE);
	put(img, 0, SIZE, 1);
	close_image(img);
	assert_ok(img_create(in_dir("larger"), &larger, ERR));
	img = open_image("larger", NULL, 0);
	assert_int_equal(img_size(img), SIZE + MIB);
	assert_content(img, flat, SIZE);
	close_image(img);
	assert_ok(img_create(in_dir("smaller"), &smaller, ERR));
	img = open_image("smaller", NULL, IMG_OPEN_WRITE);
	assert_int_equal(img_size(img), 512 * KIB);
	assert_content(img, flat, 512 * KIB);
	/* What a resize adds is zeros, whatever the parent holds there. */
	assert_ok(img_resize(img, SIZE, 0, ERR));
	memset(flat + 512 * KIB, 0, SIZE - 512 * KIB);
	assert_content(img, flat, SIZE);
	close_image(img);
	expect("smaller", 2);
	free(buf);
	fixture_files(true);
}

/* Chains under a policy: the snapshot's parent is named relative to the overlay's folder, not to ours. */
static void test_folders(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .backing = "sub/base",
					     .backing_snapshot = "gold" };
	struct img_open_options none = { .struct_size = sizeof(none), .refs = IMG_REFS_NONE };
	struct img *img;
	char command[600];

	(void)state;
	assert_int_equal(mkdir(in_dir("sub"), 0755), 0);
	make_golden("sub/base");
	assert_ok(img_create(in_dir("top"), &create, ERR));
	expect("top", 2);
	assert_int_equal(img_open(in_dir("top"), &none, &img, ERR), IMG_E_REFUSED);
	create.backing = "../top";
	create.backing_snapshot = NULL;
	assert_int_equal(img_create(in_dir("sub/up"), &create, ERR), IMG_E_REFUSED);
	create.refs = IMG_REFS_ANY;
	assert_ok(img_create(in_dir("sub/up"), &create, ERR));
	assert_int_equal(try_open("sub/up", NULL, 0), IMG_E_REFUSED);
	none.refs = IMG_REFS_ANY;
	assert_ok(img_open(in_dir("sub/up"), &none, &img, ERR));
	assert_int_equal(img_chain_depth(img), 3);
	assert_content(img, flat, SIZE);
	close_image(img);
	snprintf(command, sizeof(command), "rm -r '%s/sub'", fixture_dir);
	assert_int_equal(system(command), 0);
	fixture_files(true);
}

static int clean(void **state)
{
	(void)state;
	fixture_files(true);
	return 0;
}

/* What a failed test leaves behind must not fail the next. */
#define TEST(name) cmocka_unit_test_teardown(name, clean)


int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_overlay_of_overlay_on_raw),
		TEST(test_deep_chain),
		TEST(test_extents_agree_with_content),
		TEST(test_on_a_snapshot_of_a_moving_parent),
		TEST(test_beside_the_parents_writer),
		TEST(test_renamed_snapshot_is_found),
		TEST(test_snapshot_made_again_is_another),
		TEST(test_snapshots_of_an_overlay),
		TEST(test_changed_parents_are_refused),
		TEST(test_exchanged_parent_is_refused),
		TEST(test_changed_raw_base_is_refused),
		TEST(test_sizes),
		TEST(test_folders),
	};

	return cmocka_run_group_tests_name("overlay", tests, setup, teardown);
}
