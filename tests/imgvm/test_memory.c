/* SPDX-License-Identifier: MIT */
/* Guest addresses become pointers only where all of a range is RAM; pages that devices write are known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "memory.h"

#define MIB (UINT64_C(1) << 20)

static void test_low(void **unused)
{
	struct img_error err = { 0 };
	struct memory mem;

	(void)unused;
	assert_int_equal(memory_init(&mem, 16 * MIB, &err), 0);
	assert_ptr_equal(memory_at(&mem, 0, 1), mem.base);
	assert_ptr_equal(memory_at(&mem, 0, 0xa0000), mem.base);
	assert_null(memory_at(&mem, 0, 0xa0001));
	assert_null(memory_at(&mem, 0x9ffff, 2));
	assert_null(memory_at(&mem, 0xa0000, 1));
	assert_null(memory_at(&mem, 0xbffff, 1));
	assert_ptr_equal(memory_at(&mem, 0xc0000, 16 * MIB - 0xc0000), mem.base + 0xc0000);
	assert_ptr_equal(memory_at(&mem, 16 * MIB - 1, 1), mem.base + 16 * MIB - 1);
	assert_null(memory_at(&mem, 16 * MIB - 1, 2));
	assert_null(memory_at(&mem, 16 * MIB, 1));
	/* sums that overflow */
	assert_null(memory_at(&mem, 0xc0000, UINT64_MAX));
	assert_null(memory_at(&mem, UINT64_MAX, 1));
	assert_null(memory_at(&mem, UINT64_MAX, UINT64_MAX));
	assert_null(memory_at(&mem, 0xfffff, UINT64_MAX - 0xffffe));
	memory_free(&mem);
	assert_null(mem.base);
}

/* The hole for devices divides RAM; linear, it is one piece. Nothing is touched, so that 4 GiB cost nothing. */
static void test_above_the_hole(void **unused)
{
	struct img_error err = { 0 };
	struct memory mem;

	(void)unused;
	assert_int_equal(memory_init(&mem, 4096 * MIB, &err), 0);
	assert_ptr_equal(memory_at(&mem, MEMORY_HOLE - 1, 1), mem.base + MEMORY_HOLE - 1);
	assert_null(memory_at(&mem, MEMORY_HOLE - 1, 2));
	assert_null(memory_at(&mem, MEMORY_HOLE, 1));
	assert_null(memory_at(&mem, MEMORY_HIGH - 1, 1));
	assert_null(memory_at(&mem, MEMORY_HIGH - 1, 2));
	assert_ptr_equal(memory_at(&mem, MEMORY_HIGH, 1024 * MIB), mem.base + MEMORY_HOLE);
	assert_null(memory_at(&mem, MEMORY_HIGH, 1024 * MIB + 1));
	assert_null(memory_at(&mem, MEMORY_HIGH + 1024 * MIB, 1));
	memory_free(&mem);
	/* exactly as much as fits below the hole has no third slot */
	assert_int_equal(memory_init(&mem, MEMORY_HOLE, &err), 0);
	assert_int_equal(mem.nr_slots, 2);
	assert_null(memory_at(&mem, MEMORY_HIGH, 1));
	memory_free(&mem);
}

static void test_sizes(void **unused)
{
	static const uint64_t bad[] = {
		0, 4096, MEMORY_MIN_BYTES - 4096, MEMORY_MIN_BYTES + 1, MEMORY_MAX_BYTES + 4096, UINT64_MAX
	};
	struct memory mem;

	(void)unused;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct img_error err = { 0 };

		assert_int_equal(memory_init(&mem, bad[i], &err), IMG_E_INVALID);
		assert_int_equal(err.code, IMG_E_INVALID);
		memory_free(&mem);
	}
}

static void test_dirty(void **unused)
{
	uint64_t words[64] = { 0 };
	struct img_error err = { 0 };
	struct memory mem;

	(void)unused;
	assert_int_equal(memory_init(&mem, 16 * MIB, &err), 0);
	memory_wrote(&mem, mem.base, 4096); /* not tracked: nothing to note, and nothing to fall over */
	assert_int_equal(memory_track(&mem, &err), 0);
	memory_wrote(&mem, mem.base + 4095, 2);		/* pages 0 and 1 */
	memory_wrote(&mem, mem.base + 70 * 4096, 4096); /* 70 */
	memory_wrote(&mem, mem.base + 16 * MIB - 1, 1); /* the last one */
	memory_wrote(&mem, mem.base + 100 * 4096, 0);	/* none */
	words[1] = UINT64_C(1) << 5;			/* or-ed, not replaced */
	memory_take_dirty(&mem, 0, words, 64);
	assert_int_equal(words[0], 3);
	assert_int_equal(words[1], UINT64_C(1) << 6 | UINT64_C(1) << 5);
	assert_int_equal(words[63], UINT64_C(1) << 63);
	memset(words, 0, sizeof(words));
	memory_take_dirty(&mem, 0, words, 64);
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(words[i], 0);
	/* tracking anew forgets */
	memory_wrote(&mem, mem.base, 1);
	assert_int_equal(memory_track(&mem, &err), 0);
	memory_take_dirty(&mem, 0, words, 64);
	assert_int_equal(words[0], 0);
	memory_free(&mem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_low),
		cmocka_unit_test(test_above_the_hole),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_dirty),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
