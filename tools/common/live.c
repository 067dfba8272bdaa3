/* SPDX-License-Identifier: MIT */
/* See live.h. */
#include "live.h"

#include <stdint.h>
#include <stdio.h>

#include "output.h"

static double real(const json_t *answer, const char *key)
{
	return json_real_value(json_object_get(answer, key));
}

void live_print_snapshot(const json_t *answer)
{
	json_int_t ram = json_integer_value(json_object_get(answer, "ram_bytes"));
	char size[SIZE_TEXT_BYTES];

	if (json_is_true(json_object_get(answer, "disk_only")))
		printf("the machine's disk was kept, the machine was not: it stood still for %.1f ms\n",
		       real(answer, "pause_ms"));
	else
		printf("the machine was kept: %s of memory, stood still for %.1f ms of %.1f ms\n",
		       output_size(ram < 0 ? 0 : (uint64_t)ram, size), real(answer, "pause_ms"),
		       real(answer, "total_ms"));
}

void live_print_revert(const json_t *answer)
{
	printf("the machine went back: %.1f ms\n", real(answer, "total_ms"));
}
