/* SPDX-License-Identifier: MIT */
/*
 * Life and geometry of the engine. What the rest keeps:
 *
 *   BM-1  An entry leads to a place only when all of that place is written: prefix, data, and what the request left out
 *         (from the backing where the entry was FREE and something lies below, else zeros).
 *   BM-2  Entries reach the disk after the data and the prefixes that they lead to are durable.
 *   BM-3  A bit of a bitmap reaches the disk after its sector is durable, and a bitmap is clear on disk before an entry
 *         can lead to it, so that any mix of old and new bits and entries reads as an old or a new state.
 *   BM-4  A place belongs to one block for good. New ones come from behind all others, and what the file holds there
 *         already is wiped first.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockmap_int.h"

#define CACHE_DEFAULT_BYTES (UINT64_C(16) << 20)
#define SECTOR_BYTES	    512u

static void init_locks(struct blockmap *bm)
{
	pthread_rwlockattr_t attr;

	/* Who wants to stop the engine must not wait for a guest to stop reading. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&bm->gate, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&bm->flushing, NULL);
	pthread_mutex_init(&bm->touching, NULL);
	pthread_rwlock_init(&bm->map, NULL);
	pthread_mutex_init(&bm->holes_lock, NULL);
	pthread_mutex_init(&bm->claim_lock, NULL);
	pthread_cond_init(&bm->claim_gone, NULL);
}

static void complete(struct blockmap_shape *s)
{
	if (s->nr_slots == 0)
		s->nr_slots = s->nr_blocks;
	if (s->page_bytes == 0)
		s->page_bytes = BLOCKMAP_PAGE_BYTES;
	if (s->place_align == 0)
		s->place_align = SECTOR_BYTES;
	if (s->place_stride == 0)
		s->place_stride = s->prefix_bytes + s->block_bytes;
}

/* Formats said in their own words what is wrong with an image; here it is only made sure that no sum overflows. */
static bool sane(const struct blockmap_shape *s)
{
	uint64_t bytes;

	if ((s->entry_bytes != 4 && s->entry_bytes != 8) || s->page_bytes % s->entry_bytes != 0)
		return false;
	if (s->place_stride < s->prefix_bytes + s->block_bytes)
		return false;
	if (s->block_bytes == 0 || s->block_bytes % SECTOR_BYTES != 0 || s->disk_bytes > INT64_MAX)
		return false;
	if (mul_overflows(s->nr_blocks, s->block_bytes, &bytes) || bytes < s->disk_bytes)
		return false;
	if (mul_overflows(s->nr_slots, s->entry_bytes, &bytes) || add_overflows(bytes, s->table_off, &bytes))
		return false;
	if (bytes > INT64_MAX || s->end_off > INT64_MAX || s->nr_slots < s->nr_blocks)
		return false;
	if (s->bitmap_bytes == 0)
		return !s->bitmap_always;
	return s->sector_bytes != 0 && s->block_bytes % s->sector_bytes == 0 &&
	       (uint64_t)s->bitmap_bytes * 8 >= s->block_bytes / s->sector_bytes;
}

/* Beyond the end of a regular file there are zeros; a device holds anything. */
static int learn_file(struct blockmap *bm, struct img_error *err)
{
	struct host_stat host;
	int ret = node_stat(bm->file, &host, err);

	if (ret == 0)
		bm->clean_from = host.is_block_device ? UINT64_MAX : node_size(bm->file);
	return ret;
}

int blockmap_open(struct node *node, const struct blockmap_shape *shape, const struct blockmap_ops *ops, void *format,
		  const struct driver_open *args, struct blockmap **out, struct img_error *err)
{
	uint64_t budget = args->cache_bytes ? args->cache_bytes : CACHE_DEFAULT_BYTES;
	struct blockmap *bm;
	int ret;

	*out = NULL;
	bm = calloc(1, sizeof(*bm));
	if (!bm)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	init_locks(bm);
	bm->node = node;
	bm->file = shape->file ? shape->file : node->file;
	bm->ops = ops;
	bm->format = format;
	bm->writable = args->writable;
	bm->bulk = args->bulk;
	bm->shape = *shape;
	complete(&bm->shape);
	bm->end_off = bm->shape.end_off;
	atomic_store(&bm->disk_bytes, bm->shape.disk_bytes);
	ret = sane(&bm->shape) ? 0 : error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "the sizes make no sense");
	if (ret == 0)
		budget = min_u64(budget, bm->shape.nr_slots * bm->shape.entry_bytes * 2 + (1u << 20));
	if (ret == 0)
		ret = budget_metadata(args->budget, node->path, budget, err);
	if (ret == 0)
		ret = learn_file(bm, err);
	if (ret == 0)
		ret = bm_cache_init(bm, budget, err);
	if (ret != 0) {
		blockmap_free(bm);
		return ret;
	}
	*out = bm;
	return 0;
}

void blockmap_free(struct blockmap *bm)
{
	if (!bm)
		return;
	bm_cache_free(bm);
	pthread_cond_destroy(&bm->claim_gone);
	pthread_mutex_destroy(&bm->claim_lock);
	pthread_mutex_destroy(&bm->holes_lock);
	pthread_rwlock_destroy(&bm->map);
	pthread_mutex_destroy(&bm->touching);
	pthread_mutex_destroy(&bm->flushing);
	pthread_rwlock_destroy(&bm->gate);
	free(bm);
}

void *blockmap_format(const struct blockmap *bm)
{
	return bm->format;
}

struct node *blockmap_node(const struct blockmap *bm)
{
	return bm->node;
}

const struct blockmap_shape *blockmap_shape(const struct blockmap *bm)
{
	return &bm->shape;
}

uint64_t blockmap_size(const struct blockmap *bm)
{
	return atomic_load_explicit(&bm->disk_bytes, memory_order_relaxed);
}

uint64_t blockmap_end(const struct blockmap *bm)
{
	return bm->end_off;
}

void blockmap_set_end(struct blockmap *bm, uint64_t end)
{
	bm->end_off = end;
	bm->allocated = true;
}

bool blockmap_lost_places(const struct blockmap *bm)
{
	return bm->lost;
}

void blockmap_break(struct blockmap *bm)
{
	atomic_store(&bm->broken, true);
}

int blockmap_may_change(struct blockmap *bm, struct img_error *err)
{
	if (!bm->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "the image is open read-only");
	if (atomic_load(&bm->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again");
	return 0;
}

int blockmap_touch(struct blockmap *bm, struct img_error *err)
{
	int ret = 0;

	if (atomic_load_explicit(&bm->touched, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&bm->touching);
	if (!atomic_load(&bm->touched)) {
		if (bm->ops->begin)
			ret = bm->ops->begin(bm, err);
		if (ret == 0)
			atomic_store_explicit(&bm->touched, true, memory_order_release);
	}
	pthread_mutex_unlock(&bm->touching);
	return ret;
}

/* ---- room -------------------------------------------------------------------------------------------------------- */

int allocate_places(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	/* Of one request: several places are far less than a file can have, see count_new(). */
	uint64_t bytes = (nr - 1) * bm->shape.place_stride + place_bytes(bm), end;
	int ret = 0;

	*off = round_up(bm->end_off, bm->shape.place_align);
	if (bm->ops->allocate)
		ret = bm->ops->allocate(bm, nr, off, err);
	if (ret != 0)
		return ret;
	if (add_overflows(*off, bytes, &end) || end > INT64_MAX)
		return error_set(err, IMG_E_LIMIT, 0, *off, LAYER, "no file is that long");
	/* Only here does the file grow, so that two requests cannot cut off each other's blocks. */
	if (node_size(bm->file) < end)
		ret = node_resize(bm->file, end, err);
	if (ret != 0)
		return ret;
	bm->end_off = max_u64(bm->end_off, end);
	bm->allocated = true;
	return 0;
}

int blockmap_take_room(struct blockmap *bm, uint64_t bytes, uint64_t *off, struct img_error *err)
{
	uint64_t end;
	int ret = 0;

	*off = round_up(bm->end_off, bm->shape.place_align);
	if (add_overflows(*off, bytes, &end) || end > INT64_MAX)
		return error_set(err, IMG_E_LIMIT, 0, *off, LAYER, "no file is that long");
	if (*off < bm->clean_from && *off < node_size(bm->file))
		ret = node_zero(bm->file, min_u64(end, node_size(bm->file)) - *off, *off, 0, err);
	if (ret == 0 && node_size(bm->file) < end)
		ret = node_resize(bm->file, end, err);
	if (ret != 0)
		return ret;
	blockmap_set_end(bm, end);
	data_changed(bm);
	return 0;
}

/* ---- a new geometry ---------------------------------------------------------------------------------------------- */

int blockmap_reshape(struct blockmap *bm, const struct blockmap_shape *shape, struct img_error *err)
{
	struct blockmap_shape s = *shape;

	complete(&s);
	if (!sane(&s))
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "the new sizes are too large");
	pthread_rwlock_wrlock(&bm->map);
	bm_cache_drop(bm);
	/* What was given up behind the new end is not blank, unless it was cut off. */
	if (bm->clean_from != UINT64_MAX)
		bm->clean_from = min_u64(max_u64(bm->clean_from, bm->end_off), node_size(bm->file));
	bm->shape = s;
	bm->end_off = s.end_off;
	atomic_store(&bm->disk_bytes, s.disk_bytes);
	pthread_rwlock_unlock(&bm->map);
	return 0;
}
