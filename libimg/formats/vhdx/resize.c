/* SPDX-License-Identifier: MIT */
/*
 * Another size. The item of metadata that says it is one sector, and changes by the log:
 *
 *   growing    first what the new size needs: a longer table (at a new place if need be), entries that say what the
 *              blocks behind the old end are, places for them in a fixed image; then the size
 *   shrinking  first the size; then entries behind it go, and what is nobody's at the end of the file
 *
 * Entries behind the disk's end are nobody's in between, and are cleared before they come into sight.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

static uint64_t blocks_of(const struct vhdx_meta *m, uint64_t size)
{
	return size == 0 ? 0 : (size - 1) / m->block_bytes + 1;
}

/* The bitmap blocks of chunks from the first on, as long as there are entries for them. */
static int clear_bitmaps(struct vhdx_state *s, uint64_t chunk, struct img_error *err)
{
	static const uint8_t none[8];
	uint8_t raw[8];
	int ret = 0;

	for (; vhdx_bitmap_slot(&s->m, chunk) < s->m.nr_slots && ret == 0; chunk++) {
		uint64_t slot = vhdx_bitmap_slot(&s->m, chunk);

		ret = blockmap_slot_get(s->bm, slot, raw, err);
		if (ret == 0 && memcmp(raw, none, sizeof(raw)) != 0)
			ret = blockmap_slot_set(s->bm, slot, none, err);
	}
	return ret;
}

/* ---- growing ----------------------------------------------------------------------------------------------------- */

/* The engine sees blocks up to a new end; the disk has its old one. */
static int show_blocks(struct vhdx_state *s, uint64_t size, struct img_error *err)
{
	uint64_t disk_bytes = s->m.disk_bytes, old = s->m.nr_blocks;
	struct vhdx_meta m = s->m;
	struct blockmap_shape shape;
	int ret = 0;

	m.disk_bytes = size;
	vhdx_count_slots(&m);
	if (m.nr_slots * 8 > s->m.bat.bytes)
		ret = vhdx_move_bat(s, m.nr_slots, err);
	if (ret != 0)
		return ret;
	m.bat = s->m.bat;
	s->m = m;
	shape = vhdx_bat_shape(&m);
	shape.disk_bytes = disk_bytes;
	shape.end_off = blockmap_end(s->bm);
	ret = blockmap_reshape(s->bm, &shape, err);
	/* What a larger disk left there, or somebody else. A chunk that is begun has its bitmap. */
	if (ret == 0)
		ret = blockmap_clear(s->bm, old, m.nr_blocks - old, err);
	if (ret == 0)
		ret = clear_bitmaps(s, (old - 1) / m.chunk_ratio + (m.has_parent ? 1 : 0), err);
	return ret;
}

/* What a parent has behind the old end is not to come into sight. */
static int hide_parent(struct vhdx_state *s, uint64_t first, uint64_t size, struct img_error *err)
{
	static const struct blockmap_entry zero = { .state = BLOCKMAP_ZERO };
	uint64_t below = s->node->backing ? node_size(s->node->backing) : 0;
	uint64_t end = blocks_of(&s->m, min_u64(below, size));
	int ret = 0;

	for (uint64_t i = first; i < end && ret == 0; i++)
		ret = blockmap_set(s->bm, i, &zero, err);
	return ret;
}

/* A fixed image has a place for each block. */
static int fill_places(struct vhdx_state *s, uint64_t first, struct img_error *err)
{
	uint64_t nr = s->m.nr_blocks - first, off = 0;
	int ret = nr > 0 ? blockmap_take_room(s->bm, nr * s->m.block_bytes, &off, err) : 0;

	if (ret == 0 && nr > 0 && s->solid)
		ret = node_allocate(s->node->file, nr * s->m.block_bytes, off, err);
	for (uint64_t i = first; i < s->m.nr_blocks && ret == 0; i++, off += s->m.block_bytes) {
		struct blockmap_entry e = { .state = BLOCKMAP_DATA, .off = off };

		ret = blockmap_set(s->bm, i, &e, err);
	}
	return ret;
}

static int grow(struct vhdx_state *s, uint64_t size, struct img_error *err)
{
	struct vhdx_meta_change c = { .disk_bytes = size };
	struct vhdx_meta before = s->m;
	uint64_t old = s->m.nr_blocks;
	int ret = blockmap_zero_tail(s->bm, s->m.disk_bytes, err);

	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret == 0)
		ret = show_blocks(s, size, err);
	if (ret == 0 && s->m.has_parent)
		ret = hide_parent(s, old, size, err);
	if (ret == 0 && s->m.leave_blocks)
		ret = fill_places(s, old, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret == 0)
		ret = vhdx_meta_store(s, &c, err);
	if (ret == 0)
		return vhdx_reshape(s, blockmap_end(s->bm), err);
	/* It has its old size, and in memory perhaps entries behind it that nobody asks for. */
	before.bat = s->m.bat;
	s->m = before;
	blockmap_break(s->bm);
	return ret;
}

/* ---- shrinking --------------------------------------------------------------------------------------------------- */

/* The size is the new one, whatever becomes of the rest. Blocks that are gone give their room back to the host. */
static int tidy(struct vhdx_state *s, const struct vhdx_meta *before, struct img_error *err)
{
	struct vhdx_meta now = s->m;
	struct blockmap_entry e;
	int ret;

	s->m.nr_blocks = before->nr_blocks;
	s->m.nr_slots = before->nr_slots;
	ret = vhdx_reshape(s, blockmap_end(s->bm), err);
	for (uint64_t i = now.nr_blocks; i < before->nr_blocks && ret == 0; i++) {
		ret = blockmap_get(s->bm, i, &e, err);
		if (ret == 0 && (e.state == BLOCKMAP_DATA || e.state == BLOCKMAP_PARTIAL) && !s->solid &&
		    range_inside(e.off, s->m.block_bytes, node_size(s->node->file)))
			ret = node_discard(s->node->file, s->m.block_bytes, e.off, 0, err);
	}
	if (ret == 0)
		ret = blockmap_clear(s->bm, now.nr_blocks, before->nr_blocks - now.nr_blocks, err);
	if (ret == 0)
		ret = clear_bitmaps(s, (now.nr_blocks - 1) / now.chunk_ratio + 1, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	s->m = now;
	if (vhdx_reshape(s, blockmap_end(s->bm), err) != 0)
		return ret;
	return ret == 0 ? vhdx_cut(s, err) : ret;
}

static int shrink(struct vhdx_state *s, uint64_t size, struct img_error *err)
{
	struct vhdx_meta_change c = { .disk_bytes = size };
	struct vhdx_meta before = s->m;
	int ret = vhdx_meta_store(s, &c, err);

	if (ret == 0 && tidy(s, &before, NULL) != 0)
		blockmap_break(s->bm);
	return ret;
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

static int judge_size(const struct vhdx_state *s, uint64_t size, struct img_error *err)
{
	if (size == 0 || size % s->m.sector_bytes != 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "%s holds a disk of whole sectors of %u bytes, at least one", s->node->path,
				 s->m.sector_bytes);
	if (size > VHDX_DISK_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "a VHDX has at most 64 TiB");
	if (size > s->m.disk_bytes && s->node->backing_missing)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: cannot grow without its backing file, which may reach further", s->node->path);
	return 0;
}

int vhdx_resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);
	int ret = blockmap_may_change(s->bm, err);

	if (ret == 0)
		ret = judge_size(s, size_bytes, err);
	if (ret != 0 || size_bytes == blockmap_size(s->bm))
		return ret;
	ret = blockmap_touch(s->bm, err);
	if (ret == 0)
		ret = blockmap_stop(s->bm, err);
	if (ret != 0)
		return ret;
	ret = size_bytes > s->m.disk_bytes ? grow(s, size_bytes, err) : shrink(s, size_bytes, err);
	blockmap_start(s->bm);
	return ret;
}
