/* SPDX-License-Identifier: MIT */
/* img_rebase() and img_flatten(): the content stays, whatever the old and the new chain hold. */
#include "fault_env.h"


#define SIZE (3 * MIB)

static void make_full(const char *name, const char *format, uint64_t size_bytes, const char *backing,
		      const char *backing_format)
{
	struct img *img;

	make_image(name, format, size_bytes, backing, backing_format);
	img = open_image(name, format, IMG_OPEN_WRITE);
	scribble(img, 10, 500 * KIB);
	close_image(img);
}

static uint8_t *content_of(const char *name)
{
	struct img *img = open_image(name, "limg", 0);
	uint8_t *content = read_all(img);

	close_image(img);
	return content;
}

static void check_content(const char *name, const uint8_t *content, uint64_t bytes)
{
	struct img *img = open_image(name, "limg", 0);

	assert_int_equal(img_size(img), bytes);
	assert_content(img, content, bytes);
	close_image(img);
}

static struct img_rebase_options onto(const char *backing, const char *format)
{
	return (struct img_rebase_options){
		.struct_size = sizeof(struct img_rebase_options),
		.backing = backing,
		.backing_format = format,
	};
}

static void content_stays(void **state)
{
	static const uint64_t new_sizes[] = { SIZE, SIZE / 2, 2 * SIZE, MIB + 512 };

	(void)state;
	for (unsigned i = 0; i < 16; i++) {
		const char *old_format = i % 2 ? "raw" : "limg", *new_format = i % 4 < 2 ? "limg" : "raw";
		uint64_t over_bytes = i % 3 ? SIZE : SIZE + 3 * MIB / 2;
		struct img_rebase_options opts = onto("new", new_format);
		uint8_t *content;
		struct img *img;

		random_state = 100 + i;
		make_full("old", old_format, SIZE, NULL, NULL);
		make_full("new", new_format, new_sizes[i / 4], NULL, NULL);
		make_full("over", "limg", over_bytes, "old", old_format);
		content = content_of("over");
		img = open_image("over", "limg", IMG_OPEN_WRITE);
		assert_ok(img_rebase(img, &opts, ERR));
		assert_content(img, content, over_bytes);
		close_image(img);
		unlink(in_dir("old"));
		check_content("over", content, over_bytes);
		free(content);
		fixture_files(true);
	}
}

/* base <- middle <- over becomes base <- over, and what only middle held is all that is copied. */
static void a_layer_can_be_taken_out(void **state)
{
	struct img_rebase_options opts = onto("base", "raw");
	struct img_extent ext;
	uint8_t *content;
	struct img *img;
	size_t nr;

	(void)state;
	make_full("base", "raw", SIZE, NULL, NULL);
	make_image("middle", "limg", 0, "base", "raw");
	img = open_image("middle", "limg", IMG_OPEN_WRITE);
	write_pattern(img, MIB, 64 * KIB, 5);
	close_image(img);
	make_image("over", "limg", 0, "middle", "limg");
	content = content_of("over");
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	assert_int_equal(img_chain_depth(img), 3);
	assert_ok(img_rebase(img, &opts, ERR));
	assert_int_equal(img_chain_depth(img), 2);
	assert_ok(img_extents(img, MIB, 0, IMG_EXTENTS_OWN, &ext, 1, &nr, ERR));
	assert_int_equal(ext.flags, 0);
	assert_int_equal(ext.bytes, MIB);
	assert_ok(img_extents(img, SIZE - MIB - 64 * KIB, MIB + 64 * KIB, IMG_EXTENTS_OWN, &ext, 1, &nr, ERR));
	assert_int_equal(ext.flags, 0);
	assert_int_equal(ext.bytes, SIZE - MIB - 64 * KIB);
	close_image(img);
	unlink(in_dir("middle"));
	check_content("over", content, SIZE);
	free(content);
}

static void flattened_stands_alone(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uint64_t over_bytes = i % 2 ? SIZE : SIZE + MIB;
		uint8_t *content;
		struct img *img;

		make_full("base", i < 2 ? "raw" : "limg", SIZE, NULL, NULL);
		make_full("middle", "limg", 0, "base", i < 2 ? "raw" : "limg");
		make_full("over", "limg", over_bytes, "middle", "limg");
		content = content_of("over");
		img = open_image("over", "limg", IMG_OPEN_WRITE);
		assert_ok(img_flatten(img, NULL, ERR));
		assert_null(img_backing(img));
		assert_content(img, content, over_bytes);
		assert_ok(img_flatten(img, NULL, ERR)); /* once more is nothing */
		close_image(img);
		unlink(in_dir("base"));
		unlink(in_dir("middle"));
		check_content("over", content, over_bytes);
		free(content);
		fixture_files(true);
	}
}

static void an_image_can_be_put_on_a_base(void **state)
{
	struct img_rebase_options opts = onto("base", "raw");
	uint8_t *content;
	struct img *img;

	(void)state;
	make_full("base", "raw", SIZE, NULL, NULL);
	make_full("over", "limg", SIZE, NULL, NULL);
	content = content_of("over");
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	assert_ok(img_rebase(img, &opts, ERR));
	assert_content(img, content, SIZE);
	close_image(img);
	check_content("over", content, SIZE);
	free(content);
}

/* UNSAFE only records the parent: for one that was moved, or changed on purpose. */
static void unsafe_records_only(void **state)
{
	struct img_rebase_options opts = onto("moved", "raw");
	uint8_t *content;
	struct img *img;

	(void)state;
	make_full("base", "raw", SIZE, NULL, NULL);
	make_full("over", "limg", SIZE, "base", "raw");
	content = content_of("over");
	assert_int_equal(rename(in_dir("base"), in_dir("moved")), 0);
	img = open_image("over", "limg", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING);
	assert_int_equal(img_rebase(img, &opts, ERR), IMG_E_INVALID); /* it would have to read the old one */
	opts.flags = IMG_REBASE_UNSAFE;
	assert_ok(img_rebase(img, &opts, ERR));
	assert_content(img, content, SIZE);
	close_image(img);
	check_content("over", content, SIZE);
	free(content);
}

static void refusals_change_nothing(void **state)
{
	struct img_rebase_options opts = onto("new", "limg");
	uint8_t *content;
	struct img *img;

	(void)state;
	make_full("base", "limg", SIZE, NULL, NULL);
	make_full("new", "limg", SIZE, NULL, NULL);
	make_full("over", "limg", SIZE, "base", "limg");
	content = content_of("over");
	img = open_image("over", "limg", 0);
	assert_int_equal(img_rebase(img, &opts, ERR), IMG_E_READONLY);
	assert_int_equal(img_flatten(img, NULL, ERR), IMG_E_READONLY);
	close_image(img);
	img = open_image("over", "limg", IMG_OPEN_WRITE);
	opts.backing = "nowhere";
	assert_int_equal(img_rebase(img, &opts, ERR), IMG_E_NOENT);
	opts.backing = "over";
	assert_true(img_rebase(img, &opts, ERR) < 0);
	opts.backing = "/etc/passwd";
	opts.backing_format = "raw";
	assert_int_equal(img_rebase(img, &opts, ERR), IMG_E_REFUSED); /* outside of the image's folder */
	assert_content(img, content, SIZE);
	assert_ok(img_snapshot_create(img, "s", 0, ERR));
	opts = onto("new", "limg");
	assert_int_equal(img_rebase(img, &opts, ERR), IMG_E_REFUSED);
	assert_int_equal(img_flatten(img, NULL, ERR), IMG_E_REFUSED);
	close_image(img);
	check_content("over", content, SIZE);
	free(content);
	img = open_image("new", "limg", IMG_OPEN_WRITE);
	assert_int_equal(img_rebase(NULL, &opts, ERR), IMG_E_INVALID);
	close_image(img);
	make_image("plain", "raw", MIB, NULL, NULL);
	img = open_image("plain", "raw", IMG_OPEN_WRITE);
	assert_int_equal(img_rebase(img, &opts, ERR), IMG_E_UNSUPPORTED);
	close_image(img);
}

static void save_file(const char *from, const char *to)
{
	char command[1200];

	snprintf(command, sizeof(command), "cp --sparse=always --preserve=timestamps '%s' '%s'", in_dir(from),
		 in_dir(to));
	assert_int_equal(system(command), 0);
}

static void stopped_at_any_call(struct img_rebase_options opts)
{
	unsigned failed = 0;
	uint8_t *content;
	int r;

	make_full("base", "raw", SIZE, NULL, NULL);
	make_full("new", "limg", SIZE, NULL, NULL);
	make_full("over", "limg", SIZE, "base", "raw");
	content = content_of("over");
	save_file("over", "over.saved");
	for (uint64_t n = 1;; n = next_call(n)) {
		struct img *img;

		save_file("over.saved", "over");
		img = open_faulty("over", "limg", IMG_OPEN_WRITE);
		fault_plan_arm(&fault_env_plan, FAULT_ALL, n, EIO, true);
		r = img_rebase(img, &opts, ERR);
		assert_int_equal(r, ERR->code);
		(void)img_close(img, NULL);
		fault_plan_disarm(&fault_env_plan);
		if (r == 0)
			break;
		failed++;
		check_content("over", content, SIZE);
		img = open_image("over", "limg", IMG_OPEN_WRITE);
		assert_ok(img_rebase(img, &opts, ERR));
		assert_content(img, content, SIZE);
		close_image(img);
		check_content("over", content, SIZE);
	}
	assert_true(failed > 10);
	check_content("over", content, SIZE);
	free(content);
}

static void rebase_stopped_at_any_call(void **state)
{
	(void)state;
	stopped_at_any_call(onto("new", "limg"));
}

static void flatten_stopped_at_any_call(void **state)
{
	(void)state;
	stopped_at_any_call(onto(NULL, NULL));
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
#define F(f) cmocka_unit_test_setup_teardown(f, fault_env_setup, fault_env_teardown)
	const struct CMUnitTest tests[] = {
		T(content_stays),
		T(a_layer_can_be_taken_out),
		T(flattened_stands_alone),
		T(an_image_can_be_put_on_a_base),
		T(unsafe_records_only),
		T(refusals_change_nothing),
		F(rebase_stopped_at_any_call),
		F(flatten_stopped_at_any_call),
	};

	return cmocka_run_group_tests_name("rebase", tests, NULL, NULL);
}

