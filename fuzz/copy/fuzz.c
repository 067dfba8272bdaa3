/* SPDX-License-Identifier: MIT */
/* Copying, converting, comparing and summing up; see copy.h. */
#include "copy.h"
#include "fixed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct fuzz_input in = { data, data + bytes };
	static struct scene s;

	fixed_reset();
	scene_build(&s, &in);
	for (unsigned i = 0; i < MAX_COMMANDS && in.at < in.end; i++)
		scene_command(&s, &in);
	scene_free(&s);
	return 0;
}
