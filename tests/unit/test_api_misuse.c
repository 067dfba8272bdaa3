/* SPDX-License-Identifier: MIT */
/* What a caller can get wrong, one mistake per test: each is answered with the documented code, and nothing is harmed. */
#include <fcntl.h>

#include "image_fixture.h"

static struct img *img; /* 64 KiB, writable, filled with 0x77 */
static struct img *reader_of_other;
static uint8_t buf[4096];

static int setup(void **state)
{
	static uint8_t fill[64 << 10];

	if (fixture_setup(state) != 0)
		return -1;
	make_image("a", "raw", sizeof(fill), NULL, NULL);
	make_image("b", "raw", sizeof(fill), NULL, NULL);
	img = open_image("a", "raw", IMG_OPEN_WRITE);
	reader_of_other = open_image("b", NULL, 0);
	memset(fill, 0x77, sizeof(fill));
	assert_ok(img_pwrite(img, fill, sizeof(fill), 0, 0, ERR));
	return 0;
}

static int teardown(void **state)
{
	/* After all mistakes the content is as it was. */
	uint8_t *content = read_all(img);

	for (size_t i = 0; i < 64 << 10; i++)
		assert_int_equal(content[i], 0x77);
	free(content);
	close_image(img);
	close_image(reader_of_other);
	return fixture_teardown(state);
}

/* A test named after the mistake: the call must answer with the code and fill err with the same. */
#define MISTAKE(name, code_, call)                  \
	static void name(void **state)              \
	{                                           \
		struct img_error *err = ERR;        \
		struct img *out = NULL;             \
		size_t nr = 0;                      \
                                                    \
		(void)state;                        \
		(void)out;                          \
		(void)nr;                           \
		memset(err, 0, sizeof(*err));       \
		assert_int_equal(call, code_);      \
		assert_int_equal(err->code, code_); \
		assert_true(err->msg[0] != '\0');   \
		assert_null(out);                   \
	}

#define OPEN(...)   (&(struct img_open_options){ .struct_size = sizeof(struct img_open_options), __VA_ARGS__ })
#define CREATE(...) (&(struct img_create_options){ .struct_size = sizeof(struct img_create_options), __VA_ARGS__ })

MISTAKE(open_without_path, IMG_E_INVALID, img_open(NULL, NULL, &out, err))
MISTAKE(open_without_place, IMG_E_INVALID, img_open(in_dir("b"), NULL, NULL, err))
MISTAKE(open_without_struct_size, IMG_E_INVALID,
	img_open(in_dir("b"), &(struct img_open_options){ .format = "raw" }, &out, err))
MISTAKE(open_with_unknown_flag, IMG_E_INVALID, img_open(in_dir("b"), OPEN(.flags = 1u << 31), &out, err))
MISTAKE(open_with_unknown_policy, IMG_E_INVALID, img_open(in_dir("b"), OPEN(.refs = (enum img_refs)9), &out, err))
MISTAKE(open_to_write_beside_others, IMG_E_INVALID,
	img_open(in_dir("b"), OPEN(.format = "raw", .flags = IMG_OPEN_WRITE | IMG_OPEN_FORCE_SHARE), &out, err))
MISTAKE(open_snapshot_to_write, IMG_E_READONLY,
	img_open(in_dir("b"), OPEN(.snapshot = "s", .flags = IMG_OPEN_WRITE), &out, err))
MISTAKE(open_snapshot_without_name, IMG_E_INVALID, img_open(in_dir("b"), OPEN(.snapshot = ""), &out, err))
MISTAKE(open_unknown_format, IMG_E_UNSUPPORTED, img_open(in_dir("b"), OPEN(.format = ""), &out, err))
MISTAKE(open_bad_descriptor, IMG_E_INVALID, img_open_fd(-1, NULL, &out, err))
MISTAKE(open_closed_descriptor, IMG_E_IO, img_open_fd(1000000, NULL, &out, err))

MISTAKE(create_without_path, IMG_E_INVALID, img_create(NULL, CREATE(.format = "raw"), err))
MISTAKE(create_with_empty_path, IMG_E_INVALID, img_create("", CREATE(.format = "raw"), err))
MISTAKE(create_odd_size, IMG_E_INVALID, img_create(in_dir("c"), CREATE(.format = "raw", .size_bytes = 511), err))
MISTAKE(create_too_large, IMG_E_LIMIT,
	img_create(in_dir("c"), CREATE(.format = "raw", .size_bytes = UINT64_C(1) << 63), err))
MISTAKE(create_with_unknown_flag, IMG_E_INVALID, img_create(in_dir("c"), CREATE(.format = "raw", .flags = 0x100), err))
MISTAKE(create_unknown_format, IMG_E_UNSUPPORTED, img_create(in_dir("c"), CREATE(.format = "mem"), err))
MISTAKE(create_raw_on_backing, IMG_E_UNSUPPORTED,
	img_create(in_dir("c"), CREATE(.format = "raw", .backing = "b", .backing_format = "raw"), err))
MISTAKE(create_snapshot_of_no_backing, IMG_E_INVALID,
	img_create(in_dir("c"), CREATE(.format = "raw", .backing_snapshot = "s"), err))
MISTAKE(create_with_unknown_option, IMG_E_INVALID,
	img_create(in_dir("c"), CREATE(.format = "raw", .size_bytes = 512, .options = "a=b"), err))

MISTAKE(read_without_image, IMG_E_INVALID, img_pread(NULL, buf, 1, 0, 0, err))
MISTAKE(read_without_buffer, IMG_E_INVALID, img_pread(img, NULL, 1, 0, 0, err))
MISTAKE(read_with_flags, IMG_E_INVALID, img_pread(img, buf, 1, 0, IMG_IO_FUA, err))
MISTAKE(read_past_the_end, IMG_E_INVALID, img_pread(img, buf, 2, (64 << 10) - 1, 0, err))
MISTAKE(read_wraps_around, IMG_E_INVALID, img_pread(img, buf, 4096, UINT64_MAX - 100, 0, err))
MISTAKE(write_without_image, IMG_E_INVALID, img_pwrite(NULL, buf, 1, 0, 0, err))
MISTAKE(write_without_buffer, IMG_E_INVALID, img_pwrite(img, NULL, 1, 0, 0, err))
MISTAKE(write_with_unknown_flag, IMG_E_INVALID, img_pwrite(img, buf, 1, 0, 1u << 20, err))
MISTAKE(write_past_the_end, IMG_E_INVALID, img_pwrite(img, buf, 1, 64 << 10, 0, err))
MISTAKE(write_wraps_around, IMG_E_INVALID, img_pwrite(img, buf, UINT64_MAX, 2, 0, err))
MISTAKE(write_to_a_reader, IMG_E_READONLY, img_pwrite(reader_of_other, buf, 1, 0, 0, err))
MISTAKE(zero_without_image, IMG_E_INVALID, img_zero(NULL, 1, 0, 0, err))
MISTAKE(zero_past_the_end, IMG_E_INVALID, img_zero(img, 1, 64 << 10, 0, err))
MISTAKE(zero_with_compression, IMG_E_INVALID, img_zero(img, 1, 0, IMG_IO_COMPRESS, err))
MISTAKE(discard_past_the_end, IMG_E_INVALID, img_discard(img, UINT64_MAX, 0, 0, err))
MISTAKE(discard_on_a_reader, IMG_E_READONLY, img_discard(reader_of_other, 512, 0, 0, err))
MISTAKE(flush_without_image, IMG_E_INVALID, img_flush(NULL, 0, err))
MISTAKE(flush_with_io_flag, IMG_E_INVALID, img_flush(img, IMG_IO_FUA, err))

MISTAKE(vector_does_not_add_up, IMG_E_INVALID,
	img_pwritev(img, (struct iovec[]){ { buf, 10 }, { buf, 10 } }, 2, 21, 0, 0, err))
MISTAKE(vector_adds_up_to_less, IMG_E_INVALID,
	img_preadv(img, (struct iovec[]){ { buf, 10 }, { buf, 10 } }, 2, 19, 0, 0, err))
MISTAKE(vector_without_base, IMG_E_INVALID, img_preadv(img, (struct iovec[]){ { NULL, 10 } }, 1, 10, 0, 0, err))
MISTAKE(vector_missing, IMG_E_INVALID, img_preadv(img, NULL, 2, 10, 0, 0, err))
MISTAKE(vector_negative, IMG_E_INVALID, img_preadv(img, (struct iovec[]){ { buf, 10 } }, -1, 10, 0, 0, err))
MISTAKE(vector_past_the_end, IMG_E_INVALID,
	img_pwritev(img, (struct iovec[]){ { buf, 512 }, { buf, 1 } }, 2, 513, (64 << 10) - 512, 0, err))

MISTAKE(resize_without_image, IMG_E_INVALID, img_resize(NULL, 512, 0, err))
MISTAKE(resize_to_odd_size, IMG_E_INVALID, img_resize(img, (64 << 10) + 1, 0, err))
MISTAKE(resize_smaller_without_saying_so, IMG_E_REFUSED, img_resize(img, 512, 0, err))
MISTAKE(resize_too_large, IMG_E_LIMIT, img_resize(img, UINT64_C(1) << 63, 0, err))
MISTAKE(resize_with_unknown_flag, IMG_E_INVALID, img_resize(img, 64 << 10, 8, err))
MISTAKE(resize_a_reader, IMG_E_READONLY, img_resize(reader_of_other, 128 << 10, 0, err))

MISTAKE(extents_without_room, IMG_E_INVALID, img_extents(img, 1, 0, 0, &(struct img_extent){ 0 }, 0, &nr, err))
MISTAKE(extents_without_place, IMG_E_INVALID, img_extents(img, 1, 0, 0, NULL, 1, &nr, err))
MISTAKE(extents_past_the_end, IMG_E_INVALID, img_extents(img, 1, 64 << 10, 0, &(struct img_extent){ 0 }, 1, &nr, err))

MISTAKE(snapshot_without_name, IMG_E_INVALID, img_snapshot_create(img, NULL, 0, err))
MISTAKE(snapshot_with_empty_name, IMG_E_INVALID, img_snapshot_create(img, "", 0, err))
MISTAKE(snapshot_with_at, IMG_E_INVALID, img_snapshot_create(img, "a@b", 0, err))
MISTAKE(snapshot_with_slash, IMG_E_INVALID, img_snapshot_create(img, "a/b", 0, err))
MISTAKE(snapshot_with_control, IMG_E_INVALID, img_snapshot_create(img, "a\nb", 0, err))
MISTAKE(snapshot_with_broken_utf8, IMG_E_INVALID, img_snapshot_create(img, "a\xc3", 0, err))
MISTAKE(snapshot_with_overlong_utf8, IMG_E_INVALID, img_snapshot_create(img, "\xc0\xaf", 0, err))
MISTAKE(snapshot_with_surrogate, IMG_E_INVALID, img_snapshot_create(img, "\xed\xa0\x80", 0, err))
MISTAKE(snapshot_with_unknown_flag, IMG_E_INVALID, img_snapshot_create(img, "a", 0x40, err))
MISTAKE(snapshot_of_raw, IMG_E_UNSUPPORTED, img_snapshot_create(img, "\xc3\xa9t\xc3\xa9", 0, err))
MISTAKE(snapshot_rename_to_nothing, IMG_E_INVALID, img_snapshot_rename(img, "a", "", err))
MISTAKE(snapshot_list_without_count, IMG_E_INVALID, img_snapshot_list(img, NULL, 0, NULL, err))
MISTAKE(snapshot_open_without_place, IMG_E_INVALID, img_snapshot_open(img, "a", NULL, err))
MISTAKE(snapshot_diff_without_callback, IMG_E_INVALID, img_snapshot_diff(img, "a", "b", NULL, NULL, err))
MISTAKE(vmstate_size_without_place, IMG_E_INVALID, img_vmstate_size(img, NULL, NULL, err))

MISTAKE(info_without_place, IMG_E_INVALID, img_info(img, NULL, err))
MISTAKE(check_with_unknown_flag, IMG_E_INVALID, img_check(img, 0x80, NULL, NULL, NULL, NULL, err))
MISTAKE(check_of_raw, IMG_E_UNSUPPORTED, img_check(img, 0, NULL, NULL, NULL, NULL, err))
MISTAKE(probe_without_place, IMG_E_INVALID, img_probe(in_dir("b"), NULL, err))

static void snapshot_name_too_long(void **state)
{
	char name[IMG_SNAPSHOT_NAME_MAX + 2];

	(void)state;
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(img_snapshot_create(img, name, 0, ERR), IMG_E_INVALID);
	name[IMG_SNAPSHOT_NAME_MAX] = '\0';
	assert_int_equal(img_snapshot_create(img, name, 0, ERR), IMG_E_UNSUPPORTED);
}

static void close_nothing(void **state)
{
	(void)state;
	assert_int_equal(img_close(NULL, NULL), 0);
}

static void ask_nothing(void **state)
{
	struct img_limits limits;

	(void)state;
	assert_int_equal(img_size(NULL), 0);
	assert_int_equal(img_caps(NULL), 0);
	assert_string_equal(img_format(NULL), "");
	assert_string_equal(img_path(NULL), "");
	assert_null(img_backing(NULL));
	assert_int_equal(img_chain_depth(NULL), 0);
	img_limits(NULL, &limits);
	img_limits(img, NULL);
}

static void err_may_be_missing(void **state)
{
	struct img *out;

	(void)state;
	assert_int_equal(img_open(in_dir("none"), NULL, &out, NULL), IMG_E_NOENT);
	assert_int_equal(img_pread(img, buf, 1, UINT64_MAX, 0, NULL), IMG_E_INVALID);
	assert_int_equal(img_create(NULL, NULL, NULL), IMG_E_INVALID);
}

/* An error that a caller uses again holds the last failure, and none after success. */
static void err_is_used_again(void **state)
{
	(void)state;
	assert_int_equal(img_pread(img, buf, 1, UINT64_MAX, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_pwrite(reader_of_other, buf, 1, 0, 0, ERR), IMG_E_READONLY);
	assert_int_equal(ERR->code, IMG_E_READONLY);
	assert_int_equal(img_pread(img, buf, 1, 0, 0, ERR), 0);
	assert_int_equal(ERR->code, IMG_OK);
	assert_string_equal(ERR->msg, "");
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(open_without_path),
		TEST(open_without_place),
		TEST(open_without_struct_size),
		TEST(open_with_unknown_flag),
		TEST(open_with_unknown_policy),
		TEST(open_to_write_beside_others),
		TEST(open_snapshot_to_write),
		TEST(open_snapshot_without_name),
		TEST(open_unknown_format),
		TEST(open_bad_descriptor),
		TEST(open_closed_descriptor),
		TEST(create_without_path),
		TEST(create_with_empty_path),
		TEST(create_odd_size),
		TEST(create_too_large),
		TEST(create_with_unknown_flag),
		TEST(create_unknown_format),
		TEST(create_raw_on_backing),
		TEST(create_snapshot_of_no_backing),
		TEST(create_with_unknown_option),
		TEST(read_without_image),
		TEST(read_without_buffer),
		TEST(read_with_flags),
		TEST(read_past_the_end),
		TEST(read_wraps_around),
		TEST(write_without_image),
		TEST(write_without_buffer),
		TEST(write_with_unknown_flag),
		TEST(write_past_the_end),
		TEST(write_wraps_around),
		TEST(write_to_a_reader),
		TEST(zero_without_image),
		TEST(zero_past_the_end),
		TEST(zero_with_compression),
		TEST(discard_past_the_end),
		TEST(discard_on_a_reader),
		TEST(flush_without_image),
		TEST(flush_with_io_flag),
		TEST(vector_does_not_add_up),
		TEST(vector_adds_up_to_less),
		TEST(vector_without_base),
		TEST(vector_missing),
		TEST(vector_negative),
		TEST(vector_past_the_end),
		TEST(resize_without_image),
		TEST(resize_to_odd_size),
		TEST(resize_smaller_without_saying_so),
		TEST(resize_too_large),
		TEST(resize_with_unknown_flag),
		TEST(resize_a_reader),
		TEST(extents_without_room),
		TEST(extents_without_place),
		TEST(extents_past_the_end),
		TEST(snapshot_without_name),
		TEST(snapshot_with_empty_name),
		TEST(snapshot_with_at),
		TEST(snapshot_with_slash),
		TEST(snapshot_with_control),
		TEST(snapshot_with_broken_utf8),
		TEST(snapshot_with_overlong_utf8),
		TEST(snapshot_with_surrogate),
		TEST(snapshot_with_unknown_flag),
		TEST(snapshot_of_raw),
		TEST(snapshot_rename_to_nothing),
		TEST(snapshot_list_without_count),
		TEST(snapshot_open_without_place),
		TEST(snapshot_diff_without_callback),
		TEST(vmstate_size_without_place),
		TEST(snapshot_name_too_long),
		TEST(info_without_place),
		TEST(check_with_unknown_flag),
		TEST(check_of_raw),
		TEST(probe_without_place),
		TEST(close_nothing),
		TEST(ask_nothing),
		TEST(err_may_be_missing),
		TEST(err_is_used_again),
	};

	return cmocka_run_group_tests_name("api misuse", tests, setup, teardown);
}
