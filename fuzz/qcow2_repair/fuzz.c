/* SPDX-License-Identifier: MIT */
/* A damaged qcow2 image, and what a repair makes of it: see lib/repair_target.c. */
#include "repair_target.h"

FUZZ_REPAIR_TARGET("qcow2")
