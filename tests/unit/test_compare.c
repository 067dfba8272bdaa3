/* SPDX-License-Identifier: MIT */
/* img_compare() against a comparison byte by byte. */
#include "image_fixture.h"

#define SIZE (5 * MIB)

struct ranges {
	struct {
		uint64_t off, bytes;
	} r[200];
	size_t nr, stop_after;
};

static int collect(void *ctx, uint64_t off, uint64_t bytes)
{
	struct ranges *ranges = ctx;

	assert_int_equal(off % 512, 0);
	assert_int_equal(bytes % 512, 0);
	assert_true(bytes > 0);
	if (ranges->nr > 0) /* ascending and merged */
		assert_true(off > ranges->r[ranges->nr - 1].off + ranges->r[ranges->nr - 1].bytes);
	assert_true(ranges->nr < 200);
	ranges->r[ranges->nr].off = off;
	ranges->r[ranges->nr].bytes = bytes;
	ranges->nr++;
	return ranges->stop_after && ranges->nr == ranges->stop_after;
}

static void make_pair(struct img **a, struct img **b, uint64_t a_bytes, uint64_t b_bytes)
{
	make_image("a", "raw", a_bytes, NULL, NULL);
	make_image("b", "raw", b_bytes, NULL, NULL);
	*a = open_image("a", "raw", IMG_OPEN_WRITE);
	*b = open_image("b", "raw", IMG_OPEN_WRITE);
}

static void close_pair(struct img *a, struct img *b)
{
	close_image(a);
	close_image(b);
	fixture_files(true);
}

static void same_content_in_other_holes(void **state)
{
	struct img_compare_result result;
	struct img *a, *b;
	uint8_t *zeroes = calloc(1, MIB);

	(void)state;
	make_pair(&a, &b, SIZE, SIZE);
	write_pattern(a, 100, 70000, 3);
	write_pattern(b, 100, 70000, 3);
	assert_ok(img_pwrite(b, zeroes, MIB, 2 * MIB, 0, ERR));
	free(zeroes);
	assert_ok(img_compare(a, b, NULL, NULL, NULL, &result, ERR));
	assert_true(result.same);
	assert_false(result.size_differs);
	assert_ok(img_compare(a, a, NULL, NULL, NULL, &result, ERR));
	assert_true(result.same);
	close_pair(a, b);
}

static void finds_the_first_byte(void **state)
{
	static const uint64_t places[] = { 0, 1, 511, 512, 4095, 4096, MIB - 1, MIB, 3 * MIB + 17, SIZE - 1 };

	(void)state;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		struct ranges ranges = { .nr = 0 };
		struct img_compare_result result;
		struct img *a, *b;

		make_pair(&a, &b, SIZE, SIZE);
		assert_ok(img_pwrite(i % 2 ? a : b, "x", 1, places[i], 0, ERR));
		assert_ok(img_compare(a, b, NULL, NULL, NULL, &result, ERR));
		assert_false(result.same);
		assert_int_equal(result.first_diff, places[i]);
		assert_ok(img_compare(a, b, collect, &ranges, NULL, &result, ERR));
		assert_int_equal(ranges.nr, 1);
		assert_int_equal(ranges.r[0].off, places[i] / 512 * 512);
		assert_int_equal(ranges.r[0].bytes, 512);
		close_pair(a, b);
	}
}

static void ranges_match_a_plain_comparison(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 12; round++) {
		uint64_t a_bytes = SIZE - 512 * random_below(3000), b_bytes = SIZE - 512 * random_below(3000);
		uint64_t longer = a_bytes > b_bytes ? a_bytes : b_bytes, first = UINT64_MAX;
		uint8_t *content_a = calloc(1, SIZE), *content_b = calloc(1, SIZE);
		struct img_compare_result result;
		struct ranges ranges = { .nr = 0 };
		struct img *a, *b;
		size_t at = 0;

		make_pair(&a, &b, a_bytes, b_bytes);
		random_state = round / 2; /* each second round they have the same content where both reach */
		scribble(a, 5, MIB);
		random_state = round % 2 ? round : round / 2;
		scribble(b, 5, MIB);
		assert_ok(img_pread(a, content_a, a_bytes, 0, 0, ERR));
		assert_ok(img_pread(b, content_b, b_bytes, 0, 0, ERR));
		assert_ok(img_compare(a, b, collect, &ranges, NULL, &result, ERR));
		assert_int_equal(result.size_differs, a_bytes != b_bytes);
		for (uint64_t off = 0; off < longer; off += 512) {
			bool differs = memcmp(content_a + off, content_b + off, 512) != 0, told;

			while (at < ranges.nr && off >= ranges.r[at].off + ranges.r[at].bytes)
				at++;
			told = at < ranges.nr && off >= ranges.r[at].off;
			if (differs != told)
				fail_msg("sector at 0x%llx: differs %d, told %d", (unsigned long long)off, differs, told);
			for (uint64_t i = off; differs && first == UINT64_MAX; i++)
				if (content_a[i] != content_b[i])
					first = i;
		}
		assert_int_equal(result.same, first == UINT64_MAX);
		if (!result.same)
			assert_int_equal(result.first_diff, first);
		free(content_a);
		free(content_b);
		close_pair(a, b);
	}
}

static void surplus_of_zeroes_is_same(void **state)
{
	struct img_compare_result result;
	struct img *a, *b;

	(void)state;
	make_pair(&a, &b, MIB, 3 * MIB);
	write_pattern(a, 0, 4096, 1);
	write_pattern(b, 0, 4096, 1);
	assert_ok(img_compare(a, b, NULL, NULL, NULL, &result, ERR));
	assert_true(result.same);
	assert_true(result.size_differs);
	assert_ok(img_pwrite(b, "x", 1, 2 * MIB, 0, ERR));
	assert_ok(img_compare(a, b, NULL, NULL, NULL, &result, ERR));
	assert_false(result.same);
	assert_int_equal(result.first_diff, 2 * MIB);
	assert_ok(img_compare(b, a, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.first_diff, 2 * MIB);
	close_pair(a, b);
}

static void stops_when_told(void **state)
{
	struct ranges ranges = { .stop_after = 2 };
	struct img_compare_result result;
	struct img *a, *b;

	(void)state;
	make_pair(&a, &b, SIZE, SIZE);
	for (uint64_t off = 0; off < SIZE; off += 64 * KIB)
		assert_ok(img_pwrite(a, "x", 1, off, 0, ERR));
	assert_ok(img_compare(a, b, collect, &ranges, NULL, &result, ERR));
	assert_int_equal(ranges.nr, 2);
	assert_false(result.same);
	close_pair(a, b);
}

static int cancel(void *ctx, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)done;
	(void)total;
	return 1;
}

static void can_be_cancelled_and_misused(void **state)
{
	struct img_progress progress = { .fn = cancel };
	struct img_compare_result result;
	struct img *a, *b;

	(void)state;
	make_pair(&a, &b, SIZE, SIZE);
	assert_int_equal(img_compare(a, b, NULL, NULL, &progress, &result, ERR), IMG_E_CANCELLED);
	assert_int_equal(img_compare(a, NULL, NULL, NULL, NULL, &result, ERR), IMG_E_INVALID);
	assert_int_equal(img_compare(a, b, NULL, NULL, NULL, NULL, ERR), IMG_E_INVALID);
	close_pair(a, b);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(same_content_in_other_holes), T(finds_the_first_byte), T(ranges_match_a_plain_comparison),
		T(surplus_of_zeroes_is_same),	T(stops_when_told),	 T(can_be_cancelled_and_misused),
	};

	return cmocka_run_group_tests_name("compare", tests, NULL, NULL);
}
