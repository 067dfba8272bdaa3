/* SPDX-License-Identifier: MIT */
/* An image of a format that is only read, or only recognised, of which anything may be wrong: see lib/image_target.c. */
#include "image_target.h"

FUZZ_IMAGE_TARGET("foreign")
