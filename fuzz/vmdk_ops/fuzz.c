/* SPDX-License-Identifier: MIT */
/* Programs of operations on VMDK images and their overlays; see fuzz/ops/ops.h for what an input is and what must hold. */
#include "ops.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	ops_run("vmdk", data, bytes);
	return 0;
}
