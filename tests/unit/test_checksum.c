/* SPDX-License-Identifier: MIT */
/* img_checksum() against digests computed here, from their definitions, over the plain content. */
#include "fault_env.h"

#include <openssl/sha.h>
#include <xxhash.h>

static const uint64_t sizes[] = { 0, 512, 4096, MIB - 512, MIB, MIB + 512, 4 * MIB, 5 * MIB, 9 * MIB + 512, 17 * MIB };
#define NR_SIZES (sizeof(sizes) / sizeof(sizes[0]))

static void plain_xxh128(const uint8_t *content, uint64_t size, uint8_t out[16])
{
	XXH128_canonical_t canonical;
	uint8_t *tree = malloc(size / MIB * 16 + 32);
	size_t at = 0;

	for (uint64_t off = 0; off < size; off += MIB, at += 16) {
		XXH128_canonicalFromHash(&canonical, XXH3_128bits(content + off, size - off < MIB ? size - off : MIB));
		memcpy(tree + at, &canonical, 16);
	}
	for (unsigned i = 0; i < 8; i++)
		tree[at++] = (uint8_t)(size >> (8 * i));
	XXH128_canonicalFromHash(&canonical, XXH3_128bits(tree, at));
	memcpy(out, &canonical, 16);
	free(tree);
}

static void check_digests(struct img *img)
{
	uint8_t *content = read_all(img), expected[32], found[32];
	size_t bytes = 0;

	SHA256(content, img_size(img), expected);
	assert_ok(img_checksum(img, IMG_DIGEST_SHA256, NULL, found, &bytes, ERR));
	assert_int_equal(bytes, 32);
	assert_memory_equal(found, expected, 32);
	plain_xxh128(content, img_size(img), expected);
	assert_ok(img_checksum(img, IMG_DIGEST_XXH128, NULL, found, &bytes, ERR));
	assert_int_equal(bytes, 16);
	assert_memory_equal(found, expected, 16);
	free(content);
}

static void equals_the_definition(void **state)
{
	(void)state;
	for (size_t i = 0; i < NR_SIZES; i++) {
		struct img *img;

		make_image("a", "raw", sizes[i], NULL, NULL);
		img = open_image("a", "raw", IMG_OPEN_WRITE);
		check_digests(img); /* one hole */
		if (sizes[i] > 0) {
			write_pattern(img, sizes[i] - 1, 1, 4);
			check_digests(img);
			scribble(img, 12, 1500 * KIB);
			check_digests(img);
		}
		close_image(img);
		fixture_files(true);
	}
}

static void sees_every_byte(void **state)
{
	uint8_t before[32], after[32];
	struct img *img;
	size_t bytes;

	(void)state;
	make_image("a", "raw", 6 * MIB, NULL, NULL);
	img = open_image("a", "raw", IMG_OPEN_WRITE);
	assert_ok(img_checksum(img, IMG_DIGEST_XXH128, NULL, before, &bytes, ERR));
	for (unsigned i = 0; i < 20; i++) {
		assert_ok(img_pwrite(img, "\x80", 1, random_below(6 * MIB), 0, ERR));
		assert_ok(img_checksum(img, IMG_DIGEST_XXH128, NULL, after, &bytes, ERR));
		assert_memory_not_equal(before, after, 16);
		memcpy(before, after, 16);
	}
	close_image(img);
}

static int cancel(void *ctx, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)done;
	(void)total;
	return 1;
}

static void failures_end_it(void **state)
{
	struct img_progress progress = { .fn = cancel };
	uint8_t out[32];
	struct img *img;
	size_t bytes;

	(void)state;
	make_image("a", "raw", 40 * MIB, NULL, NULL);
	img = open_image("a", "raw", IMG_OPEN_WRITE);
	for (uint64_t off = 0; off < 40 * MIB; off += MIB)
		write_pattern(img, off, 4096, off);
	assert_int_equal(img_checksum(img, IMG_DIGEST_SHA256, &progress, out, &bytes, ERR), IMG_E_CANCELLED);
	assert_int_equal(img_checksum(img, IMG_DIGEST_XXH128, &progress, out, &bytes, ERR), IMG_E_CANCELLED);
	assert_int_equal(img_checksum(img, (enum img_digest)9, NULL, out, &bytes, ERR), IMG_E_INVALID);
	assert_int_equal(img_checksum(img, IMG_DIGEST_SHA256, NULL, NULL, &bytes, ERR), IMG_E_INVALID);
	assert_int_equal(img_checksum(NULL, IMG_DIGEST_SHA256, NULL, out, &bytes, ERR), IMG_E_INVALID);
	close_image(img);
}

/* Some member's read fails, and the others must not wait for its turn. */
static void a_failed_read_ends_it(void **state)
{
	uint8_t out[32];
	struct img *img;
	size_t bytes;

	(void)state;
	make_image("a", "raw", 40 * MIB, NULL, NULL);
	img = open_image("a", "raw", IMG_OPEN_WRITE);
	for (uint64_t off = 0; off < 40 * MIB; off += MIB)
		write_pattern(img, off, 4096, off);
	close_image(img);
	img = open_faulty("a", "raw", 0);
	for (uint64_t n = 1; n <= 10; n++) {
		fault_plan_arm(&fault_env_plan, 1u << FAULT_READ, n, EIO, false);
		assert_int_equal(img_checksum(img, IMG_DIGEST_SHA256, NULL, out, &bytes, ERR), IMG_E_IO);
		assert_true(strlen(ERR->msg) > 0);
		fault_plan_arm(&fault_env_plan, 1u << FAULT_READ, n, EIO, false);
		assert_int_equal(img_checksum(img, IMG_DIGEST_XXH128, NULL, out, &bytes, ERR), IMG_E_IO);
	}
	fault_plan_disarm(&fault_env_plan);
	check_digests(img);
	close_image(img);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)
	const struct CMUnitTest tests[] = {
		T(equals_the_definition),
		T(sees_every_byte),
		T(failures_end_it),
		cmocka_unit_test_setup_teardown(a_failed_read_ends_it, fault_env_setup, fault_env_teardown),
	};

	return cmocka_run_group_tests_name("checksum", tests, NULL, NULL);
}
