/* SPDX-License-Identifier: MIT */
/* The targets <format>_repair: see repair_target.c. */
#ifndef FUZZ_REPAIR_TARGET_H
#define FUZZ_REPAIR_TARGET_H

#include "mutate.h"

void fuzz_repair(const char *format, const uint8_t *data, size_t bytes);

#define FUZZ_REPAIR_TARGET(format)                                    \
	int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) \
	{                                                             \
		fuzz_repair(format, data, bytes);                     \
		return 0;                                             \
	}                                                             \
	FUZZ_IMAGE_MUTATOR(format)

#endif
