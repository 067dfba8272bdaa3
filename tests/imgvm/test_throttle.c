/* SPDX-License-Identifier: MIT */
/* The token bucket, at times of our own making: the mean is what was asked for, and bursts are a tenth of a second. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>

#include "throttle.h"

#define S UINT64_C(1000000000)

/* Requests of `bytes` as fast as they are let through, for `ns`. Returns how many. */
static uint64_t run(struct throttle *t, uint64_t start, uint64_t ns, uint64_t bytes)
{
	uint64_t now = start, nr = 0;

	while (now < start + ns) {
		uint64_t wait = throttle_take(t, now, bytes);

		if (!wait)
			nr++;
		now += wait;
	}
	return nr;
}

static void no_limit(void **unused)
{
	struct throttle t;

	(void)unused;
	throttle_init(&t, 0, 0);
	for (unsigned i = 0; i < 100000; i++)
		assert_int_equal(throttle_take(&t, S, UINT32_MAX), 0);
}

static void requests(void **unused)
{
	struct throttle t;
	uint64_t nr;

	(void)unused;
	throttle_init(&t, 500, 0);
	nr = run(&t, S, 10 * S, 1 << 20);
	assert_in_range(nr, 5000, 5052);
	/* rest does not add up to more than a burst */
	nr = 0;
	while (!throttle_take(&t, 1000 * S, 512))
		nr++;
	assert_in_range(nr, 50, 51);
}

static void bytes(void **unused)
{
	struct throttle t;
	uint64_t nr;

	(void)unused;
	throttle_init(&t, 0, 1 << 20);
	nr = run(&t, S, 10 * S, 4096);
	assert_in_range(nr, 2560, 2590);
	/* one larger than a burst goes through, and is paid for afterwards */
	assert_int_equal(throttle_take(&t, 100 * S, 10 << 20), 0);
	assert_true(throttle_take(&t, 100 * S, 512) > 0);
	assert_true(throttle_take(&t, 105 * S, 512) > 0);
	assert_int_equal(throttle_take(&t, 110 * S, 512), 0);
}

static void both(void **unused)
{
	struct throttle t;

	(void)unused;
	throttle_init(&t, 100, 1 << 20);
	assert_in_range(run(&t, S, 10 * S, 512), 1000, 1012);
	assert_in_range(run(&t, 100 * S, 10 * S, 64 << 10), 160, 165);
}

static void smallest(void **unused)
{
	struct throttle t;
	uint64_t wait;

	(void)unused;
	throttle_init(&t, 1, 1);
	assert_int_equal(throttle_take(&t, S, 512), 0);
	/* nobody sleeps for minutes at once */
	wait = throttle_take(&t, S, 512);
	assert_in_range(wait, 1, S);
	assert_true(throttle_take(&t, 500 * S, 512) > 0);
	assert_int_equal(throttle_take(&t, 514 * S, 512), 0);
}

static void clocks_out_of_order(void **unused)
{
	struct throttle t;

	(void)unused;
	throttle_init(&t, 10, 0);
	assert_int_equal(throttle_take(&t, 5 * S, 1), 0);
	assert_true(throttle_take(&t, 4 * S, 1) > 0);
	assert_true(throttle_take(&t, 5 * S, 1) > 0);
	assert_int_equal(throttle_take(&t, 6 * S, 1), 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_limit), cmocka_unit_test(requests), cmocka_unit_test(bytes),
		cmocka_unit_test(both),	    cmocka_unit_test(smallest), cmocka_unit_test(clocks_out_of_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
