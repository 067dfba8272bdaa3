/* SPDX-License-Identifier: MIT */
/* img_commit(): content, refusals, and that a commit which stops at any call to the host can be run again and loses nothing. */
#include "fault_env.h"


#define SIZE (3 * MIB)
#define COMMIT_FLAGS (IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING | IMG_OPEN_UNSAFE_BACKING)

static const char *const base_formats[] = { "raw", "limg" };

static void make_base(const char *format, uint64_t size_bytes)
{
	struct img *img;

	make_image("base", format, size_bytes, NULL, NULL);
	img = open_image("base", format, IMG_OPEN_WRITE);
	scribble(img, 12, 600 * KIB);
	close_image(img);
}

/* An overlay with content of its own; what it reads is returned, to be freed. */
static uint8_t *make_overlay(const char *backing_format, uint64_t size_bytes)
{
	struct img *img;
	uint8_t *content;

	make_image("over", "limg", size_bytes, "base", backing_format);
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	scribble(img, 12, 400 * KIB);
	content = read_all(img);
	close_image(img);
	return content;
}

static void check_content(const char *name, const char *format, const uint8_t *content, uint64_t bytes)
{
	struct img *img = open_image(name, format, 0);

	assert_content(img, content, bytes);
	close_image(img);
}

static void assert_empty(const char *name)
{
	struct img *img = open_image(name, "limg", IMG_OPEN_NO_BACKING);
	struct img_extent ext;
	size_t nr;

	assert_ok(img_extents(img, img_size(img), 0, IMG_EXTENTS_OWN, &ext, 1, &nr, ERR));
	assert_int_equal(ext.bytes, img_size(img));
	assert_int_equal(ext.flags, 0);
	close_image(img);
}

/* With the handle open as for a guest, and as the tool opens it. */
static void content_goes_into_the_parent(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		const char *format = base_formats[i % 2];
		struct img_copy_options opts = { .struct_size = sizeof(opts), .threads = 1 + i };
		struct img *img;
		uint8_t *content;

		random_state = i;
		make_base(format, SIZE);
		content = make_overlay(format, SIZE);
		img = open_image("over", "limg", i < 4 ? IMG_OPEN_WRITE : COMMIT_FLAGS);
		assert_ok(img_commit(img, &opts, ERR));
		assert_content(img, content, SIZE);
		/* It goes on as an overlay. */
		write_pattern(img, 5000, 9000, 77);
		assert_ok(img_pread(img, content + 5000, 9000, 5000, 0, ERR));
		assert_content(img, content, SIZE);
		assert_ok(img_commit(img, NULL, ERR));
		close_image(img);
		assert_empty("over");
		check_content("base", format, content, SIZE);
		check_content("over", "limg", content, SIZE);
		free(content);
		fixture_files(true);
	}
}

static void sizes_may_differ(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		const char *format = base_formats[i % 2];
		uint64_t base_bytes = i < 2 ? SIZE : 2 * SIZE + 512, over_bytes = i < 2 ? 2 * SIZE + 512 : SIZE;
		struct img *img;
		uint8_t *content, *grown;

		make_base(format, base_bytes);
		content = make_overlay(format, over_bytes);
		img = open_image("over", "limg", COMMIT_FLAGS);
		assert_ok(img_commit(img, NULL, ERR));
		close_image(img);
		check_content("over", "limg", content, over_bytes);
		img = open_image("base", format, 0);
		assert_int_equal(img_size(img), 2 * SIZE + 512);
		grown = realloc(content, 2 * SIZE + 512);
		assert_non_null(grown);
		content = grown;
		if (i >= 2) /* what lies beyond the overlay is as it was */
			assert_ok(img_pread(img, content + SIZE, SIZE + 512, SIZE, 0, ERR));
		assert_content(img, content, 2 * SIZE + 512);
		close_image(img);
		free(content);
		fixture_files(true);
	}
}

static void refusals_change_nothing(void **state)
{
	struct img *img, *other;
	uint8_t *content;

	(void)state;
	make_base("limg", SIZE);
	img = open_image("base", "limg", IMG_OPEN_WRITE);
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_REFUSED); /* no backing */
	close_image(img);
	content = make_overlay("limg", SIZE);
	img = open_image("over", "limg", 0);
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_READONLY);
	close_image(img);
	img = open_image("over", "limg", COMMIT_FLAGS);
	other = open_image("base", "limg", 0); /* a reader keeps writers out */
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_BUSY);
	close_image(other);
	close_image(img);
	check_content("over", "limg", content, SIZE); /* not marked: it opens */
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_REFUSED);
	assert_content(img, content, SIZE);
	close_image(img);
	assert_int_equal(img_commit(NULL, NULL, ERR), IMG_E_INVALID);
	free(content);
}

/* The parent is another than the overlay was made on: writing into it would not give what the overlay reads. */
static void changed_parent_is_refused(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct img *img;

		make_base(base_formats[i], SIZE);
		free(make_overlay(base_formats[i], SIZE));
		img = open_image("base", base_formats[i], IMG_OPEN_WRITE);
		write_pattern(img, 0, SIZE, 99);
		close_image(img);
		img = open_image("over", "limg", COMMIT_FLAGS);
		assert_int_equal(img_commit(img, NULL, ERR), IMG_E_CHANGED);
		close_image(img);
		img = open_image("base", base_formats[i], 0);
		assert_int_equal(img_size(img), SIZE);
		close_image(img);
		fixture_files(true);
	}
}

static void make_overlay_on_snapshot(void)
{
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "limg", .backing = "base", .backing_snapshot = "s", .backing_format = "limg"
	};
	struct img *img;

	make_base("limg", SIZE);
	img = open_image("base", "limg", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	close_image(img);
	assert_ok(img_create(in_dir("over"), &create, ERR));
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	scribble(img, 10, 300 * KIB);
	close_image(img);
}

static void snapshot_that_is_the_head(void **state)
{
	struct img_open_options open = { .struct_size = sizeof(open), .snapshot = "s" };
	uint8_t *content, *before;
	struct img *img;

	(void)state;
	make_overlay_on_snapshot();
	img = open_image("base", "limg", 0);
	before = read_all(img);
	close_image(img);
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	content = read_all(img);
	assert_ok(img_commit(img, NULL, ERR));
	assert_content(img, content, SIZE);
	close_image(img);
	check_content("over", "limg", content, SIZE);
	check_content("base", "limg", content, SIZE);
	assert_ok(img_open(in_dir("base"), &open, &img, ERR));
	assert_content(img, before, SIZE); /* the snapshot is as it was */
	close_image(img);
	free(content);
	free(before);
}

static void snapshot_that_the_head_left(void **state)
{
	uint8_t *content, *head;
	struct img *img;

	(void)state;
	make_overlay_on_snapshot();
	img = open_image("base", "limg", IMG_OPEN_WRITE);
	write_pattern(img, 123, 456, 7);
	head = read_all(img);
	close_image(img);
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	content = read_all(img);
	assert_int_equal(img_commit(img, NULL, ERR), IMG_E_REFUSED);
	assert_content(img, content, SIZE);
	close_image(img);
	check_content("base", "limg", head, SIZE);
	check_content("over", "limg", content, SIZE);
	free(content);
	free(head);
}

/* ---- stopping half way ------------------------------------------------------------------------------------------- */

static int cancel_at_once(void *ctx, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)done;
	(void)total;
	return 1;
}

static void cancelled_and_resumed_on_one_handle(void **state)
{
	struct img_copy_options opts = { .struct_size = sizeof(opts), .progress = { .fn = cancel_at_once } };
	struct img_open_options open = { .struct_size = sizeof(open), .format = "limg", .flags = IMG_OPEN_WRITE };
	struct img *img;
	uint8_t *content;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		make_base(base_formats[i % 2], SIZE);
		content = make_overlay(base_formats[i % 2], SIZE);
		img = open_image("over", "limg", IMG_OPEN_WRITE);
		assert_int_equal(img_commit(img, &opts, ERR), IMG_E_CANCELLED);
		assert_content(img, content, SIZE); /* the parent is put back */
		if (i >= 2) {
			close_image(img);
			check_content("over", "limg", content, SIZE);
			assert_int_equal(img_open(in_dir("over"), &open, &img, ERR), IMG_E_REFUSED);
			assert_non_null(strstr(ERR->msg, "run imgtool commit again"));
			img = open_image("over", "limg", COMMIT_FLAGS);
			assert_int_equal(img_snapshot_create(img, "s", 0, ERR), IMG_E_REFUSED);
			assert_non_null(strstr(ERR->msg, "run imgtool commit again"));
		}
		assert_ok(img_commit(img, NULL, ERR));
		assert_content(img, content, SIZE);
		close_image(img);
		check_content("base", base_formats[i % 2], content, SIZE);
		check_content("over", "limg", content, SIZE);
		assert_empty("over");
		free(content);
		fixture_files(true);
	}
}

static void save_file(const char *from, const char *to)
{
	char command[1200];

	snprintf(command, sizeof(command), "cp --sparse=always --preserve=timestamps '%s' '%s'", in_dir(from), in_dir(to));
	assert_int_equal(system(command), 0);
}

/* What the overlay holds is enough, on any parent that has the rest: here the parent before the commit. */
static void check_way_out(const char *base_format, const uint8_t *content)
{
	struct img_rebase_options rebase = { .struct_size = sizeof(rebase),
					     .backing = "base.saved",
					     .backing_format = base_format };
	struct img *img;

	save_file("over", "over.rebased");
	img = open_image("over.rebased", "limg", COMMIT_FLAGS);
	assert_int_equal(img_rebase(img, &rebase, ERR), IMG_E_REFUSED);
	assert_int_equal(img_flatten(img, NULL, ERR), IMG_E_REFUSED);
	rebase.flags = IMG_REBASE_UNSAFE;
	assert_ok(img_rebase(img, &rebase, ERR));
	assert_content(img, content, SIZE);
	close_image(img);
	img = open_image("over.rebased", "limg", IMG_OPEN_WRITE);
	assert_content(img, content, SIZE);
	close_image(img);
}

/* From the nth call on everything fails, as when the process is killed there; then it is run again. */
static void stopped_at_any_call(const char *base_format)
{
	struct img_open_options open = { .struct_size = sizeof(open), .format = "limg", .flags = IMG_OPEN_WRITE };
	uint8_t *content;
	unsigned refused = 0, failed = 0;
	int r;

	make_base(base_format, SIZE);
	content = make_overlay(base_format, SIZE);
	save_file("base", "base.saved");
	save_file("over", "over.saved");
	for (uint64_t n = 1;; n = next_call(n)) {
		struct img *img;

		save_file("base.saved", "base");
		save_file("over.saved", "over");
		img = open_faulty("over", "limg", COMMIT_FLAGS);
		fault_plan_arm(&fault_env_plan, FAULT_ALL, n, EIO, true);
		r = img_commit(img, NULL, ERR);
		assert_int_equal(r, ERR->code);
		(void)img_close(img, NULL);
		fault_plan_disarm(&fault_env_plan);
		if (r == 0)
			break;
		failed++;
		check_content("over", "limg", content, SIZE); /* whatever the parent has got */
		r = img_open(in_dir("over"), &open, &img, ERR);
		if (r == 0) {
			assert_content(img, content, SIZE);
			close_image(img);
		} else {
			assert_int_equal(r, IMG_E_REFUSED); /* committing */
			refused++;
			check_way_out(base_format, content);
		}
		img = open_image("over", "limg", COMMIT_FLAGS);
		assert_ok(img_commit(img, NULL, ERR));
		assert_content(img, content, SIZE);
		close_image(img);
		check_content("base", base_format, content, SIZE);
		check_content("over", "limg", content, SIZE);
	}
	assert_true(failed > 20);
	assert_true(refused > 5);
	check_content("base", base_format, content, SIZE);
	check_content("over", "limg", content, SIZE);
	free(content);
}

static void stopped_at_any_call_raw(void **state)
{
	(void)state;
	stopped_at_any_call("raw");
}

static void stopped_at_any_call_limg(void **state)
{
	(void)state;
	stopped_at_any_call("limg");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
#define F(f) cmocka_unit_test_setup_teardown(f, fault_env_setup, fault_env_teardown)
	const struct CMUnitTest tests[] = {
		T(content_goes_into_the_parent),
		T(sizes_may_differ),
		T(refusals_change_nothing),
		T(changed_parent_is_refused),
		T(snapshot_that_is_the_head),
		T(snapshot_that_the_head_left),
		T(cancelled_and_resumed_on_one_handle),
		F(stopped_at_any_call_raw),
		F(stopped_at_any_call_limg),
	};

	return cmocka_run_group_tests_name("commit", tests, NULL, NULL);
}

