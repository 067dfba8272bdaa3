/* SPDX-License-Identifier: MIT */
/*
 * Zeroing and discarding. Where a block has a place, zeros go there, as a hole if the host can; the block keeps the
 * place. Where it has none, nothing is to be done if nothing lies below; else the entry says ZERO if the format can say
 * so of a whole block, and if not, the zeros are written as data.
 */
#include "blockmap_int.h"

#define STEP_BLOCKS_MAX 4096u /* entries that are changed under one hold of map */

/* Zeros over the backing, in whole blocks as far as they go: entries. *done: bytes that are dealt with, perhaps 0. */
static int zero_entries(struct blockmap *bm, uint64_t bytes, uint64_t off, uint64_t *done, struct img_error *err)
{
	static const struct blockmap_entry zero = { .state = BLOCKMAP_ZERO };
	const struct blockmap_shape *s = &bm->shape;
	uint64_t block = off / s->block_bytes, size = blockmap_size(bm);
	struct blockmap_entry e;
	int ret = 0;

	*done = 0;
	claim_wait_map(bm, block, 1);
	for (unsigned i = 0; i < STEP_BLOCKS_MAX && *done < bytes && ret == 0; i++, block++) {
		/* The last block is whole where the disk ends. */
		uint64_t n = min_u64(s->block_bytes, size - block * s->block_bytes);

		if (bytes - *done < n || claimed(bm, block, 1))
			break;
		ret = entry_get(bm, block, true, &e, err);
		if (ret == 0 && e.state != BLOCKMAP_FREE)
			break;
		if (ret == 0)
			ret = entry_set(bm, block, &zero, err);
		if (ret == 0)
			*done += n;
	}
	pthread_rwlock_unlock(&bm->map);
	return ret;
}

static int zero_placed(struct blockmap *bm, const struct run *run, unsigned flags, struct img_error *err)
{
	int ret;

	if (!range_inside(run->host_off, run->bytes, node_size(bm->file)))
		return error_set(err, IMG_E_CORRUPT, 0, run->host_off, LAYER,
				 "the block table leads beyond the end of the file: run imgtool check");
	ret = node_zero(bm->file, run->bytes, run->host_off, flags & IMG_IO_NO_UNMAP, err);
	data_changed(bm);
	return ret;
}

/* What has no place. *done: bytes. */
static int zero_free(struct blockmap *bm, const struct run *run, uint64_t off, uint64_t *done, struct img_error *err)
{
	uint64_t block_bytes = bm->shape.block_bytes, in = off % block_bytes;
	int ret;

	*done = run->bytes;
	if (!backed(bm))
		return 0;
	if (in == 0 && bm->shape.has_zero) {
		ret = zero_entries(bm, run->bytes, off, done, err);
		if (ret != 0 || *done > 0)
			return ret;
	}
	/* The rest of this block. */
	*done = min_u64(run->bytes, block_bytes - in);
	return write_range(bm, NULL, *done, off, err);
}

static int zero_gated(struct blockmap *bm, uint64_t bytes, uint64_t off, unsigned flags, bool discard,
		      struct img_error *err)
{
	while (bytes > 0) {
		struct run run;
		uint64_t done;
		int ret = run_at(bm, off, bytes, &run, err);

		if (ret != 0)
			return ret;
		done = run.bytes;
		if (run.state == BLOCKMAP_DATA)
			ret = zero_placed(bm, &run, flags, err);
		else if (run.state != BLOCKMAP_ZERO && !discard)
			ret = zero_free(bm, &run, off, &done, err);
		if (ret == 0)
			ret = flush_if_crowded(bm, err);
		if (ret != 0)
			return ret;
		off += done;
		bytes -= done;
	}
	return 0;
}

static int zero_or_discard(struct blockmap *bm, uint64_t bytes, uint64_t off, unsigned flags, bool discard,
			   struct img_error *err)
{
	int ret = blockmap_may_change(bm, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&bm->gate);
	ret = blockmap_touch(bm, err);
	if (ret == 0)
		ret = zero_gated(bm, bytes, off, flags, discard, err);
	pthread_rwlock_unlock(&bm->gate);
	return ret;
}

int blockmap_zero(struct blockmap *bm, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return zero_or_discard(bm, bytes, off, flags, false, err);
}

int blockmap_discard(struct blockmap *bm, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return zero_or_discard(bm, bytes, off, 0, true, err);
}
