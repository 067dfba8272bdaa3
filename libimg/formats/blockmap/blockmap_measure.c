/* SPDX-License-Identifier: MIT */
/* How much room the blocks of an image will take: those in which the source holds data, each with its prefix. */
#include <inttypes.h>

#include "blockmap_int.h"

struct counting {
	uint64_t block_bytes;
	uint64_t next; /* blocks before it are counted */
	uint64_t nr;
};

static int count_data(void *arg, uint64_t off, uint64_t bytes)
{
	struct counting *c = arg;
	uint64_t first = max_u64(off / c->block_bytes, c->next), end;

	if (bytes == 0)
		return 0;
	end = (off + bytes - 1) / c->block_bytes + 1;
	if (first < end) {
		c->nr += end - first;
		c->next = end;
	}
	return 0;
}

int blockmap_measure(const struct img_measure_args *args, uint64_t block_bytes, uint64_t prefix_bytes, uint64_t *data,
		     uint64_t *full, struct img_error *err)
{
	struct counting c = { .block_bytes = block_bytes };
	uint64_t nr = args->size_bytes / block_bytes + (args->size_bytes % block_bytes != 0);
	int ret = args->each_data ? args->each_data(args->ctx, count_data, &c, err) : 0;

	if (ret != 0)
		return ret;
	if (mul_overflows(nr, block_bytes + prefix_bytes, full))
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes are more than a file holds", args->size_bytes);
	*data = c.nr * (block_bytes + prefix_bytes);
	return 0;
}
