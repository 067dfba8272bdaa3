/* SPDX-License-Identifier: MIT */
/* A VMDK of which anything may be wrong: see lib/image_target.c. */
#include "image_target.h"

FUZZ_IMAGE_TARGET("vmdk")
