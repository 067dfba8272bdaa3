/* SPDX-License-Identifier: MIT */
/* A damaged limg image, and what a repair makes of it: see lib/repair_target.c. */
#include "repair_target.h"

FUZZ_REPAIR_TARGET("limg")
