/* SPDX-License-Identifier: MIT */
/* The targets <format>_image: see image_target.c. */
#ifndef FUZZ_IMAGE_TARGET_H
#define FUZZ_IMAGE_TARGET_H

#include "mutate.h"

void fuzz_image(const char *format, const uint8_t *data, size_t bytes);

#define FUZZ_IMAGE_TARGET(format)                                     \
	int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) \
	{                                                             \
		fuzz_image(format, data, bytes);                      \
		return 0;                                             \
	}                                                             \
	FUZZ_IMAGE_MUTATOR(format)

#endif
