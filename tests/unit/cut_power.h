/* SPDX-License-Identifier: MIT */
/* Power failures of a file in memory of which a log was kept, chosen at random. After cmocka.h. */
#ifndef TESTS_UNIT_CUT_POWER_H
#define TESTS_UNIT_CUT_POWER_H

#include "crash.h"
#include "mem.h"

static uint64_t random_next(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *state >> 33;
}

/* The file is as a power failure before entry `at` left it: what no flush covers is there, or not, or in part. */
static void cut_power(struct mem_content *content, const char *name, const struct crash_log *log, size_t at,
		      uint64_t *random)
{
	struct host_open how = { .writable = true };
	struct node *node;

	assert_int_equal(mem_node_on(content, name, &how, &node, NULL), 0);
	for (size_t i = 0; i < at; i++) {
		struct crash_fate fate = { .kind = FATE_APPLIED };

		if (!crash_is_volatile(crash_log_at(log, i)))
			continue;
		if (!crash_is_durable(log, i, at))
			fate = (struct crash_fate){ .kind = random_next(random) % 3,
						    .tear_bytes = 512,
						    .seed = *random };
		assert_int_equal(crash_apply(node, crash_log_at(log, i), &fate), 0);
	}
	assert_int_equal(node_close(node, NULL), 0);
}

#endif
