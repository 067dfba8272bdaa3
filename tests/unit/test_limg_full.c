/* SPDX-License-Identifier: MIT */
/*
 * limg on a disk that is full: space that was freed while the image is open serves what is written next, although it
 * lies elsewhere. What there was: a snapshot of a machine that failed gave its memory back, and the guest's next write
 * met a full disk.
 */
#include "fault_env.h"

#define IMAGE_BYTES (64u << 20)
#define STATE_BYTES (900u << 10) /* less than what the allocator goes back for */
#define WRITE_BYTES (384u << 10)
#define SPARE_BYTES (128u << 10) /* for what is in hand, and for nodes */

static struct img *make(const char *name)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .format = "limg",
					     .size_bytes = IMAGE_BYTES };

	assert_ok(image_create_env(in_dir(name), &create, &fault_env, ERR));
	return open_faulty(name, "limg", IMG_OPEN_WRITE);
}

static void fill(uint8_t *buf, size_t bytes, uint32_t seed)
{
	for (size_t i = 0; i < bytes; i++) {
		seed = seed * 1664525u + 1013904223u;
		buf[i] = (uint8_t)(seed >> 24) | 1;
	}
}

/* In pieces, as guests write: each goes through a stream of its own size. */
static int write_pieces(struct img *img, const uint8_t *buf, size_t bytes, uint64_t off, size_t piece)
{
	int ret = 0;

	for (size_t at = 0; at < bytes && ret == 0; at += piece)
		ret = img_pwrite(img, buf + at, piece, off + at, 0, ERR);
	return ret;
}

static void freed_space_serves(size_t piece, bool scattered)
{
	static uint8_t buf[STATE_BYTES], got[WRITE_BYTES];
	struct img *img;

	fault_env_plan.disk_full_mode = true;
	fault_env_plan.free_bytes = UINT64_C(1) << 40;
	img = make("full.limg");
	fill(buf, sizeof(buf), 1);
	assert_ok(img_pwrite(img, buf, WRITE_BYTES, 0, 0, ERR));
	assert_ok(img_flush(img, IMG_FLUSH_CHECKPOINT, ERR));
	assert_ok(img_vmstate_write(img, buf, STATE_BYTES, 0, ERR));
	if (scattered) {
		/* Holes of one block are not worth a punch each when they are freed. */
		assert_ok(img_flush(img, IMG_FLUSH_CHECKPOINT, ERR));
		for (uint64_t off = 0; off < STATE_BYTES; off += 8192)
			assert_ok(img_vmstate_zero(img, 4096, off, ERR));
		assert_ok(img_flush(img, IMG_FLUSH_CHECKPOINT, ERR));
	} else {
		assert_ok(img_vmstate_zero(img, STATE_BYTES, 0, ERR));
	}
	fault_env_plan.free_bytes = SPARE_BYTES;
	fill(buf, WRITE_BYTES, 2);
	assert_ok(write_pieces(img, buf, WRITE_BYTES, 8u << 20, piece));
	assert_ok(img_flush(img, 0, ERR));
	assert_ok(img_pread(img, got, WRITE_BYTES, 8u << 20, 0, ERR));
	assert_memory_equal(got, buf, WRITE_BYTES);
	/* It is really full in the end, and says so. */
	fault_env_plan.free_bytes = 0;
	assert_int_equal(write_pieces(img, buf, STATE_BYTES - STATE_BYTES % piece, 24u << 20, piece), IMG_E_NOSPC);
	fault_env_plan.free_bytes = UINT64_C(1) << 40;
	assert_ok(img_close(img, ERR));
	img = open_faulty("full.limg", "limg", 0);
	assert_ok(img_pread(img, got, WRITE_BYTES, 8u << 20, 0, ERR));
	assert_memory_equal(got, buf, WRITE_BYTES);
	assert_ok(img_close(img, ERR));
}

static void test_small_writes(void **unused)
{
	(void)unused;
	freed_space_serves(4096, false);
}

static void test_scattered(void **unused)
{
	(void)unused;
	freed_space_serves(4096, true);
}

static void test_large_writes(void **unused)
{
	(void)unused;
	freed_space_serves(64u << 10, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_small_writes, fault_env_setup, fault_env_teardown),
		cmocka_unit_test_setup_teardown(test_scattered, fault_env_setup, fault_env_teardown),
		cmocka_unit_test_setup_teardown(test_large_writes, fault_env_setup, fault_env_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
