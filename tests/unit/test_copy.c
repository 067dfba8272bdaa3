/* SPDX-License-Identifier: MIT */
/* img_copy() and img_convert(): content, sparseness, progress, cancellation, and that failures leave nothing behind. */
#include "fault_env.h"

#define SIZE (9 * MIB + 512)

static const char *const formats[] = {
	"raw",
	"limg",
};
#define NR_FORMATS (sizeof(formats) / sizeof(formats[0]))

static struct img_copy_options copy_opts(unsigned threads, unsigned flags)
{
	return (struct img_copy_options){ .struct_size = sizeof(struct img_copy_options), .threads = threads, .flags = flags };
}

static void make_source(const char *name, const char *format)
{
	struct img *img;

	make_image(name, format, SIZE, NULL, NULL);
	img = open_image(name, format, IMG_OPEN_WRITE);
	scribble(img, 40, 700 * KIB);
	write_pattern(img, SIZE - 700, 700, 5);
	close_image(img);
}

static void check_same(const char *a, const char *a_format, const char *b, const char *b_format)
{
	struct img *img_a = open_image(a, a_format, 0), *img_b = open_image(b, b_format, 0);
	uint8_t *content = read_all(img_a);

	assert_content(img_b, content, img_size(img_a));
	free(content);
	close_image(img_a);
	close_image(img_b);
}

static void copies_content(void **state)
{
	static const unsigned threads[] = { 1, 2, 7, 0 };

	(void)state;
	for (size_t s = 0; s < NR_FORMATS; s++) {
		for (size_t d = 0; d < NR_FORMATS; d++) {
			for (size_t t = 0; t < 4; t++) {
				struct img_copy_options opts = copy_opts(threads[t], t % 2 ? IMG_COPY_COMPRESS : 0);
				struct img *src, *dst;

				make_source("a", formats[s]);
				make_image("b", formats[d], SIZE + 3 * MIB, NULL, NULL);
				src = open_image("a", formats[s], 0);
				dst = open_image("b", formats[d], IMG_OPEN_WRITE);
				/* What the target held must not shine through holes, nor beyond the source's end. */
				scribble(dst, 20, 2 * MIB);
				assert_ok(img_copy(src, dst, &opts, ERR));
				close_image(src);
				close_image(dst);
				check_same("a", formats[s], "b", formats[d]);
				fixture_files(true);
			}
		}
	}
}

static void target_zero_writes_no_zeroes(void **state)
{
	static const uint8_t zeroes[32 * 1024];
	struct img_copy_options opts = copy_opts(2, IMG_COPY_TARGET_ZERO);
	struct img *src, *dst;

	(void)state;
	make_image("a", "raw", 64 * MIB, NULL, NULL);
	make_image("b", "raw", 64 * MIB, NULL, NULL);
	src = open_image("a", "raw", IMG_OPEN_WRITE);
	write_pattern(src, 10 * MIB, 64 * KIB, 1);
	write_pattern(src, 20 * MIB, 64 * KIB, 1);
	assert_ok(img_pwrite(src, zeroes, sizeof(zeroes), 20 * MIB + 16 * KIB, 0, ERR)); /* data that is zeros */
	dst = open_image("b", "raw", IMG_OPEN_WRITE);
	assert_ok(img_copy(src, dst, &opts, ERR));
	close_image(src);
	close_image(dst);
	check_same("a", "raw", "b", "raw");
	assert_true(allocated_bytes("b") >= 96 * KIB);
	assert_true(allocated_bytes("b") <= 100 * KIB);
}

static void no_detect_keeps_data_allocated(void **state)
{
	struct img_copy_options opts = copy_opts(1, IMG_COPY_TARGET_ZERO | IMG_COPY_NO_DETECT);
	uint8_t *zeroes = calloc(1, MIB);
	struct img *src, *dst;

	(void)state;
	make_image("a", "raw", 8 * MIB, NULL, NULL);
	make_image("b", "raw", 8 * MIB, NULL, NULL);
	src = open_image("a", "raw", IMG_OPEN_WRITE);
	assert_ok(img_pwrite(src, zeroes, MIB, MIB, 0, ERR));
	free(zeroes);
	dst = open_image("b", "raw", IMG_OPEN_WRITE);
	assert_ok(img_copy(src, dst, &opts, ERR));
	close_image(src);
	close_image(dst);
	assert_true(allocated_bytes("b") >= MIB);
}

static void refuses_what_cannot_work(void **state)
{
	struct img *small, *large, *reader;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	make_image("b", "raw", 2 * MIB, NULL, NULL);
	make_image("c", "raw", 2 * MIB, NULL, NULL);
	small = open_image("a", "raw", IMG_OPEN_WRITE);
	large = open_image("b", "raw", IMG_OPEN_WRITE);
	reader = open_image("c", "raw", 0);
	assert_int_equal(img_copy(large, small, NULL, ERR), IMG_E_INVALID);
	assert_int_equal(img_copy(large, large, NULL, ERR), IMG_E_INVALID);
	assert_int_equal(img_copy(small, reader, NULL, ERR), IMG_E_READONLY);
	assert_int_equal(img_copy(NULL, large, NULL, ERR), IMG_E_INVALID);
	close_image(small);
	close_image(large);
	close_image(reader);
}

/* ---- progress ---------------------------------------------------------------------------------------------------- */

struct listener {
	uint64_t last, total, calls, cancel_after;
	int inside;
};

static int listen(void *ctx, uint64_t done, uint64_t total)
{
	struct listener *l = ctx;

	assert_int_equal(__atomic_fetch_add(&l->inside, 1, __ATOMIC_SEQ_CST), 0);
	assert_true(done >= l->last);
	assert_true(done <= total);
	l->last = done;
	l->total = total;
	l->calls++;
	__atomic_fetch_sub(&l->inside, 1, __ATOMIC_SEQ_CST);
	return l->cancel_after && l->calls >= l->cancel_after;
}

static void progress_ends_at_total(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw" };
	struct listener l = { 0 };
	struct img_copy_options opts = copy_opts(4, 0);
	struct img *src;

	(void)state;
	opts.progress = (struct img_progress){ listen, &l };
	make_source("a", "raw");
	src = open_image("a", "raw", 0);
	assert_ok(img_convert(src, in_dir("b"), &create, &opts, ERR));
	close_image(src);
	assert_true(l.calls > 0);
	assert_int_equal(l.last, l.total);
	assert_int_equal(l.total, SIZE);
}

static void cancelled_convert_leaves_nothing(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create) };
	struct listener l = { .cancel_after = 1 };
	struct img_copy_options opts = copy_opts(2, 0);
	struct img *src;

	(void)state;
	opts.progress = (struct img_progress){ listen, &l };
	make_source("a", "raw");
	src = open_image("a", "raw", 0);
	for (size_t f = 0; f < NR_FORMATS; f++) {
		l = (struct listener){ .cancel_after = 1 };
		create.format = formats[f];
		assert_int_equal(img_convert(src, in_dir("b"), &create, &opts, ERR), IMG_E_CANCELLED);
		assert_int_equal(ERR->code, IMG_E_CANCELLED);
		assert_int_equal(fixture_files(false), 1);
	}
	close_image(src);
}

/* ---- convert ----------------------------------------------------------------------------------------------------- */

static void converts_between_formats(void **state)
{
	(void)state;
	for (size_t s = 0; s < NR_FORMATS; s++) {
		for (size_t d = 0; d < NR_FORMATS; d++) {
			for (unsigned flags = 0; flags <= IMG_COPY_COMPRESS; flags++) {
				struct img_create_options create = { .struct_size = sizeof(create), .format = formats[d] };
				struct img_copy_options opts = copy_opts(3, flags);
				struct img *src;

				make_source("a", formats[s]);
				src = open_image("a", formats[s], 0);
				assert_ok(img_convert(src, in_dir("b"), &create, &opts, ERR));
				close_image(src);
				assert_int_equal(fixture_files(false), 2);
				check_same("a", formats[s], "b", formats[d]);
				fixture_files(true);
			}
		}
	}
}

static void odd_sizes_are_rounded_up(void **state)
{
	static const uint64_t sizes[] = { 1, 511, 513, 4097, MIB - 1, MIB + 1, 0 };

	(void)state;
	for (size_t d = 0; d < NR_FORMATS; d++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			struct img_create_options create = { .struct_size = sizeof(create), .format = formats[d] };
			FILE *file = fopen(in_dir("odd"), "w");
			struct img *src, *dst;
			uint8_t *content;

			assert_non_null(file);
			for (uint64_t k = 0; k < sizes[i]; k++)
				fputc((int)('a' + k % 26), file);
			fclose(file);
			src = open_image("odd", "raw", 0);
			assert_int_equal(img_size(src), sizes[i]);
			assert_ok(img_convert(src, in_dir("even"), &create, NULL, ERR));
			dst = open_image("even", formats[d], 0);
			assert_int_equal(img_size(dst), (sizes[i] + 511) / 512 * 512);
			content = read_all(src);
			assert_content(dst, content, sizes[i]);
			free(content);
			close_image(src);
			close_image(dst);
			fixture_files(true);
		}
	}
}

static void size_may_be_larger_not_smaller(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_bytes = 16 * MIB };
	struct img *src, *dst;

	(void)state;
	make_source("a", "raw");
	src = open_image("a", "raw", 0);
	assert_ok(img_convert(src, in_dir("b"), &create, NULL, ERR));
	dst = open_image("b", "raw", 0);
	assert_int_equal(img_size(dst), 16 * MIB);
	close_image(dst);
	check_same("a", "raw", "b", "raw");
	create.size_bytes = MIB;
	assert_int_equal(img_convert(src, in_dir("c"), &create, NULL, ERR), IMG_E_INVALID);
	create.size_bytes = 16 * MIB + 1;
	assert_int_equal(img_convert(src, in_dir("c"), &create, NULL, ERR), IMG_E_INVALID);
	close_image(src);
	assert_int_equal(fixture_files(false), 2);
}

static void replaces_only_when_asked(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw" };
	struct img *src, *dst;

	(void)state;
	make_source("a", "raw");
	make_image("b", "raw", MIB, NULL, NULL);
	src = open_image("a", "raw", 0);
	assert_int_equal(img_convert(src, in_dir("b"), &create, NULL, ERR), IMG_E_EXISTS);
	dst = open_image("b", "raw", 0);
	assert_int_equal(img_size(dst), MIB);
	close_image(dst);
	create.flags = IMG_CREATE_OVERWRITE;
	assert_ok(img_convert(src, in_dir("b"), &create, NULL, ERR));
	close_image(src);
	check_same("a", "raw", "b", "raw");
}

static void failures_leave_nothing(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .options = "nonsense=1" };
	struct img *src;

	(void)state;
	make_source("a", "raw");
	src = open_image("a", "raw", 0);
	assert_true(img_convert(src, in_dir("b"), &create, NULL, ERR) < 0);
	create.options = NULL;
	create.format = "nonsense";
	assert_int_equal(img_convert(src, in_dir("b"), &create, NULL, ERR), IMG_E_UNSUPPORTED);
	create.format = "raw";
	assert_int_equal(img_convert(src, in_dir("nowhere/b"), &create, NULL, ERR), IMG_E_NOENT);
	close_image(src);
	assert_int_equal(fixture_files(false), 1);
}

/* Each call to the host fails once, in source and target: the convert fails with a message and leaves nothing, or did not need it. */
static void every_call_may_fail(void **state)
{
	(void)state;
	for (size_t d = 0; d < NR_FORMATS; d++) {
		struct img_create_options create = { .struct_size = sizeof(create), .format = formats[d] };
		struct img_copy_options opts = copy_opts(2, 0);
		unsigned failures = 0;

		make_source("a", "raw");
		for (uint64_t n = 1;; n = next_call(n)) {
			struct img *src = open_faulty("a", "raw", 0);
			int r;

			fault_plan_arm(&fault_env_plan, FAULT_ALL, n, EIO, true);
			r = image_convert_env(src, in_dir("b"), &create, &opts, &fault_env, ERR);
			fault_plan_disarm(&fault_env_plan);
			assert_int_equal(r, ERR->code);
			assert_int_equal(r == 0, ERR->msg[0] == '\0');
			close_image(src);
			if (r == 0)
				break;
			failures++;
			assert_int_equal(fixture_files(false), 1);
		}
		assert_true(failures > 10);
		check_same("a", "raw", "b", formats[d]);
		fixture_files(true);
	}
}

static void full_disk_leaves_nothing(void **state)
{
	(void)state;
	for (size_t d = 0; d < NR_FORMATS; d++) {
		struct img_create_options create = { .struct_size = sizeof(create), .format = formats[d] };
		struct img *src;

		make_image("a", "raw", 8 * MIB, NULL, NULL);
		src = open_image("a", "raw", IMG_OPEN_WRITE);
		write_pattern(src, 0, 8 * MIB, 3);
		fault_env_plan.disk_full_mode = true;
		fault_env_plan.free_bytes = 3 * MIB;
		assert_int_equal(image_convert_env(src, in_dir("b"), &create, NULL, &fault_env, ERR), IMG_E_NOSPC);
		fault_env_plan.disk_full_mode = false;
		close_image(src);
		assert_int_equal(fixture_files(false), 1);
		fixture_files(true);
	}
}

/* Holes of a terabyte cost nothing: neither time nor space. */
static void huge_and_empty(void **state)
{
	static const uint64_t size = UINT64_C(4) << 40;

	(void)state;
	for (size_t d = 0; d < NR_FORMATS; d++) {
		struct img_create_options create = { .struct_size = sizeof(create), .format = formats[d] };
		struct img *src, *dst;
		uint8_t buf[8];

		make_image("a", "raw", size, NULL, NULL);
		src = open_image("a", "raw", IMG_OPEN_WRITE);
		assert_ok(img_pwrite(src, "here", 4, size - 4, 0, ERR));
		assert_ok(img_convert(src, in_dir("b"), &create, NULL, ERR));
		close_image(src);
		dst = open_image("b", formats[d], 0);
		assert_ok(img_pread(dst, buf, 4, size - 4, 0, ERR));
		assert_memory_equal(buf, "here", 4);
		close_image(dst);
		assert_true(allocated_bytes("b") < MIB);
		fixture_files(true);
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(copies_content),
		T(target_zero_writes_no_zeroes),
		T(no_detect_keeps_data_allocated),
		T(refuses_what_cannot_work),
		T(progress_ends_at_total),
		T(cancelled_convert_leaves_nothing),
		T(converts_between_formats),
		T(odd_sizes_are_rounded_up),
		T(size_may_be_larger_not_smaller),
		T(replaces_only_when_asked),
		T(failures_leave_nothing),
		cmocka_unit_test_setup_teardown(every_call_may_fail, fault_env_setup, fault_env_teardown),
		cmocka_unit_test_setup_teardown(full_disk_leaves_nothing, fault_env_setup, fault_env_teardown),
		T(huge_and_empty),
	};

	return cmocka_run_group_tests_name("copy", tests, NULL, NULL);
}
