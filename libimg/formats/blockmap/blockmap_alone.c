/* SPDX-License-Identifier: MIT */
/*
 * Steps that formats put together to a resize or to the end of a commit, while no request is under way. Each leaves the
 * image readable as it was or as it will be; the order between them is the format's.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "blockmap_int.h"

#define COPY_BYTES  (UINT64_C(1) << 20)
#define LOOK_BLOCKS 65536u /* at once, for blockmap_next_used() */

int blockmap_stop(struct blockmap *bm, struct img_error *err)
{
	int ret = blockmap_flush(bm, err); /* most of it, while requests go on */

	if (ret != 0)
		return ret;
	pthread_rwlock_wrlock(&bm->gate);
	if (bm->writable)
		ret = flush_all(bm, err);
	if (ret != 0)
		pthread_rwlock_unlock(&bm->gate);
	return ret;
}

void blockmap_start(struct blockmap *bm)
{
	pthread_rwlock_unlock(&bm->gate);
}

int blockmap_flush_stopped(struct blockmap *bm, struct img_error *err)
{
	return flush_all(bm, err);
}

int blockmap_get(struct blockmap *bm, uint64_t block, struct blockmap_entry *out, struct img_error *err)
{
	int ret;

	pthread_rwlock_wrlock(&bm->map);
	ret = entry_get(bm, block, true, out, err);
	pthread_rwlock_unlock(&bm->map);
	return ret;
}

uint64_t blockmap_next_used(struct blockmap *bm, uint64_t block, uint64_t end)
{
	uint64_t stop = min_u64(end, block + LOOK_BLOCKS), nr;

	pthread_rwlock_wrlock(&bm->map);
	do {
		nr = block < stop ? free_run(bm, block, end) : 0;
		block += nr;
	} while (nr > 0);
	pthread_rwlock_unlock(&bm->map);
	return block;
}

uint64_t blockmap_unreadable(struct blockmap *bm, uint64_t block, uint64_t end)
{
	uint64_t per_page = page_bytes(bm) / bm->shape.entry_bytes, key = slot_of(bm, block) / per_page, next = block;
	struct page *p;

	pthread_rwlock_wrlock(&bm->map);
	while (next < end && slot_of(bm, next) / per_page == key &&
	       (next > block || cache_table_page(bm, block, &p, NULL) == IMG_E_CORRUPT))
		next++;
	pthread_rwlock_unlock(&bm->map);
	return next - block;
}

uint64_t blockmap_same(struct blockmap *bm, uint64_t block, uint64_t end)
{
	struct blockmap_entry e;
	uint64_t nr = 1;

	pthread_rwlock_wrlock(&bm->map);
	if (block < end && entry_get(bm, block, true, &e, NULL) == 0)
		nr = like_run(bm, block, end);
	pthread_rwlock_unlock(&bm->map);
	return nr;
}

int blockmap_set(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, struct img_error *err)
{
	int ret;

	pthread_rwlock_wrlock(&bm->map);
	ret = entry_set(bm, block, entry, err);
	pthread_rwlock_unlock(&bm->map);
	return ret == 0 ? flush_if_crowded(bm, err) : ret;
}

int blockmap_clear(struct blockmap *bm, uint64_t first, uint64_t nr, struct img_error *err)
{
	static const struct blockmap_entry none = { .state = BLOCKMAP_FREE };
	uint64_t end = first + nr;
	struct blockmap_entry e;
	int ret = 0;

	for (uint64_t block = first; ret == 0 && (block = blockmap_next_used(bm, block, end)) < end; block++) {
		ret = blockmap_get(bm, block, &e, NULL);
		if (ret != 0 && ret != IMG_E_CORRUPT)
			ret = blockmap_get(bm, block, &e, err); /* again: for the message */
		/* What makes no sense is cleared too; what cannot be read is a failure. */
		if (ret != 0 && ret != IMG_E_CORRUPT)
			return ret;
		if (ret != 0 || e.state != BLOCKMAP_FREE)
			ret = blockmap_set(bm, block, &none, err);
	}
	return ret;
}

/* The data of a place from `in` on. A last place may have been left short; what it lacks are zeros. */
static int wipe_place(struct blockmap *bm, const struct blockmap_entry *e, uint64_t in, struct img_error *err)
{
	uint64_t host_off = e->off + bm->shape.prefix_bytes + in, end = e->off + place_bytes(bm);
	uint64_t size = node_size(bm->file);
	int ret = 0;

	if (host_off < size)
		ret = node_zero(bm->file, min_u64(end, size) - host_off, host_off, 0, err);
	if (ret == 0 && size < end)
		ret = node_resize(bm->file, end, err);
	data_changed(bm);
	return ret;
}

int blockmap_zero_tail(struct blockmap *bm, uint64_t from, struct img_error *err)
{
	const struct blockmap_shape *s = &bm->shape;
	uint64_t block = from / s->block_bytes, in = from % s->block_bytes;
	struct blockmap_entry e;
	int ret;

	if (in == 0)
		return 0;
	ret = blockmap_get(bm, block, &e, err);
	if (ret != 0)
		return ret;
	if (e.state == BLOCKMAP_ZERO || (e.state == BLOCKMAP_FREE && !backed(bm)))
		return 0;
	ret = blockmap_touch(bm, err);
	if (ret == 0 && e.state == BLOCKMAP_DATA)
		return wipe_place(bm, &e, in, err);
	return ret == 0 ? write_range(bm, NULL, s->block_bytes - in, from, err) : ret;
}

int blockmap_wipe(struct blockmap *bm, uint64_t block, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = blockmap_get(bm, block, &e, err);

	if (ret != 0 || e.state != BLOCKMAP_DATA)
		return ret;
	ret = blockmap_touch(bm, err);
	return ret == 0 ? wipe_place(bm, &e, 0, err) : ret;
}

static int copy_data(struct blockmap *bm, uint8_t *buf, uint64_t from, uint64_t to, uint64_t bytes,
		     struct img_error *err)
{
	int ret = 0;

	while (bytes > 0 && ret == 0) {
		uint64_t n = min_u64(bytes, COPY_BYTES);

		ret = node_pread(bm->file, buf, n, from, 0, err);
		if (ret == 0)
			ret = node_pwrite(bm->file, buf, n, to, IMG_IO_DETECT_ZEROES, err);
		from += n;
		to += n;
		bytes -= n;
	}
	return ret;
}

/* Holes are left out: where it goes reads as zeros. The last place of a file may be short. */
static int copy_place(struct blockmap *bm, uint64_t from, uint64_t to, struct img_error *err)
{
	uint64_t size = node_size(bm->file), left = from < size ? min_u64(place_bytes(bm), size - from) : 0;
	uint8_t *buf = malloc((size_t)min_u64(place_bytes(bm), COPY_BYTES));
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (left > 0 && ret == 0) {
		struct status_extent e;
		size_t nr;

		ret = node_status(bm->file, left, from, &e, 1, &nr, err);
		if (ret == 0 && e.kind == STATUS_DATA)
			ret = copy_data(bm, buf, from, to, e.bytes, err);
		if (ret == 0) {
			from += e.bytes;
			to += e.bytes;
			left -= e.bytes;
		}
	}
	free(buf);
	return ret;
}

static int place_for(struct blockmap *bm, uint64_t *to, struct img_error *err)
{
	int ret = 0;

	pthread_rwlock_wrlock(&bm->map);
	if (*to == 0)
		ret = allocate_places(bm, 1, to, err);
	pthread_rwlock_unlock(&bm->map);
	/* Zeros of the block are not copied, so that holes stay holes. */
	if (ret == 0 && *to < bm->clean_from)
		ret = node_zero(bm->file, place_bytes(bm), *to, 0, err);
	return ret;
}

int blockmap_move(struct blockmap *bm, uint64_t block, uint64_t to, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = blockmap_get(bm, block, &e, err);

	if (ret != 0 || (e.state != BLOCKMAP_DATA && e.state != BLOCKMAP_PARTIAL))
		return ret;
	ret = blockmap_touch(bm, err);
	if (ret == 0)
		ret = place_for(bm, &to, err);
	if (ret == 0)
		ret = copy_place(bm, e.off, to, err);
	data_changed(bm);
	e.off = to;
	return ret == 0 ? blockmap_set(bm, block, &e, err) : ret;
}
