/* SPDX-License-Identifier: MIT */
/*
 * Resizing. The header's one sector decides: what a new size needs is on disk before, what an old one had is given up
 * after.
 *
 * Growing: the entries of new blocks are written behind the map's end, then the header. Where they do not fit between
 * map and data, the map moves to where the first places are now:
 *
 *   1  the blocks in these places are copied behind all others, and their entries changed; durable
 *   2  the whole map, with its entries counted from the new beginning of the data, is written over the empty places;
 *      durable
 *   3  the header tells the new places of map and data, the new size and the new count
 *
 * Shrinking: the header first. The places of the blocks that are gone are nobody's then: blocks from the end of the
 * file fill them, and the file is cut off (vdi_compact()).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vdi.h"

#define CHUNK_ENTRIES 16384u

/* What new blocks are: behind the end of a smaller disk its parent may hold something. */
static uint32_t entry_of_new(const struct vdi_state *v)
{
	return v->h.type == VDI_DIFFERENCING ? VDI_ENTRY_ZERO : VDI_ENTRY_FREE;
}

static uint64_t places_until(const struct vdi_header *h, uint64_t end)
{
	return end > h->data_off ? (end - h->data_off + vdi_place_bytes(h) - 1) / vdi_place_bytes(h) : 0;
}

/* ---- moving the map ---------------------------------------------------------------------------------------------- */

/* Step 1: nr places from the first on become empty. */
static int empty_places(struct vdi_state *v, uint64_t nr, struct img_error *err)
{
	uint64_t limit = v->h.data_off + nr * vdi_place_bytes(&v->h);
	struct blockmap_entry e;
	int ret = 0;

	if (blockmap_end(v->bm) < limit)
		blockmap_set_end(v->bm, limit);
	for (uint32_t i = 0; i < v->h.nr_blocks && ret == 0; i++) {
		ret = blockmap_get(v->bm, i, &e, err);
		if (ret == 0 && e.state == BLOCKMAP_DATA && e.off < limit)
			ret = blockmap_move(v->bm, i, 0, err);
	}
	return ret == 0 ? blockmap_flush_stopped(v->bm, err) : ret;
}

/* Step 2. */
static int write_moved_map(struct vdi_state *v, const struct vdi_header *h, uint32_t nr_gone, struct img_error *err)
{
	struct le32 *buf = malloc(CHUNK_ENTRIES * sizeof(*buf));
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t first = 0; first < v->h.nr_blocks && ret == 0; first += CHUNK_ENTRIES) {
		uint64_t n = min_u64(CHUNK_ENTRIES, v->h.nr_blocks - first);

		ret = node_pread(v->node->file, buf, n * sizeof(*buf), v->h.map_off + first * sizeof(*buf), 0, err);
		for (uint64_t i = 0; i < n && ret == 0; i++) {
			uint32_t entry = le32_get(buf[i]);

			if (entry < VDI_ENTRY_ZERO)
				buf[i] = le32_of(entry - nr_gone);
		}
		if (ret == 0)
			ret = node_pwrite(v->node->file, buf, n * sizeof(*buf), h->map_off + first * sizeof(*buf), 0,
					  err);
	}
	free(buf);
	return ret;
}

/* The map of h->nr_blocks entries gets a new place; h is the header that will say so. Steps 1 and 2. */
static int move_map(struct vdi_state *v, struct vdi_header *h, struct img_error *err)
{
	uint64_t place = vdi_place_bytes(h), map_off = round_up(h->data_off, VDI_SECTOR_BYTES), data_off, nr;
	int ret;

	nr = (map_off + (uint64_t)h->nr_blocks * 4 - h->data_off + place - 1) / place;
	data_off = h->data_off + nr * place;
	if (data_off > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "the block map of 0x%" PRIx64 " bytes has no room: convert to a larger block_size",
				 h->disk_bytes);
	ret = empty_places(v, nr, err);
	if (ret != 0)
		return ret;
	h->map_off = (uint32_t)map_off;
	if (node_size(v->node->file) < data_off)
		ret = node_resize(v->node->file, data_off, err);
	if (ret == 0)
		ret = write_moved_map(v, h, (uint32_t)nr, err);
	if (ret == 0)
		ret = vdi_write_entries(v->node->file, h->map_off, v->h.nr_blocks, h->nr_blocks - v->h.nr_blocks,
					entry_of_new(v), 0, err);
	h->data_off = (uint32_t)data_off;
	return ret;
}

/* ---- growing ----------------------------------------------------------------------------------------------------- */

/* Some images have more blocks than their disk needs, which come into sight as well: as zeros, in the places that they
 * have. */
static int wipe_behind(struct vdi_state *v, struct img_error *err)
{
	static const struct blockmap_entry kinds[] = { { .state = BLOCKMAP_FREE }, { .state = BLOCKMAP_ZERO } };
	const struct blockmap_entry *none = &kinds[v->h.type == VDI_DIFFERENCING];
	struct blockmap_entry e;
	uint32_t first;
	int ret = vdi_blocks_for(vdi_disk_bytes(&v->h), v->h.block_bytes, &first, err);

	for (uint32_t i = first; ret == 0 && i < v->h.nr_blocks; i++) {
		ret = blockmap_get(v->bm, i, &e, err);
		if (ret == 0 && e.state == BLOCKMAP_DATA)
			ret = blockmap_wipe(v->bm, i, err);
		else if (ret == 0 && e.state != none->state)
			ret = blockmap_set(v->bm, i, none, err);
	}
	return ret;
}

/* A fixed image has a place for each block. */
static int fill_places(struct vdi_state *v, uint32_t first, struct img_error *err)
{
	uint64_t place = vdi_place_bytes(&v->h), off = blockmap_end(v->bm);
	int ret = node_resize(v->node->file, off + (v->h.nr_blocks - first) * place, err);

	for (uint32_t i = first; i < v->h.nr_blocks && ret == 0; i++, off += place) {
		struct blockmap_entry e = { .state = BLOCKMAP_DATA, .off = off };

		ret = blockmap_set(v->bm, i, &e, err);
		blockmap_set_end(v->bm, off + place);
	}
	return ret == 0 ? blockmap_flush_stopped(v->bm, err) : ret;
}

static int grow(struct vdi_state *v, struct vdi_header *h, struct img_error *err)
{
	struct node *file = v->node->file;
	struct blockmap_shape shape;
	uint64_t end;
	int ret;

	if (h->map_off + (uint64_t)h->nr_blocks * 4 <= h->data_off)
		ret = vdi_write_entries(file, h->map_off, v->h.nr_blocks, h->nr_blocks - v->h.nr_blocks,
					entry_of_new(v), 0, err);
	else
		ret = move_map(v, h, err);
	if (ret == 0)
		ret = node_flush(file, 0, err);
	if (ret != 0)
		return ret;
	end = max_u64(blockmap_end(v->bm), h->data_off);
	h->nr_allocated = (uint32_t)places_until(h, end);
	memcpy(h->modification, v->h.modification, 16);
	ret = vdi_replace_header(v, h, err);
	if (ret != 0)
		return ret;
	shape = vdi_shape(h);
	shape.end_off = end;
	return blockmap_reshape(v->bm, &shape, err);
}

/* ---- shrinking --------------------------------------------------------------------------------------------------- */

/* Places below nr that an entry leads to, as bits. */
static int mark_used(struct vdi_state *v, uint8_t *used, uint64_t nr, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = 0;

	for (uint32_t i = 0; i < v->h.nr_blocks && ret == 0; i++) {
		uint64_t place;

		ret = blockmap_get(v->bm, i, &e, err);
		if (ret != 0 || e.state != BLOCKMAP_DATA)
			continue;
		place = (e.off - v->h.data_off) / vdi_place_bytes(&v->h);
		if (place < nr)
			used[place / 8] |= (uint8_t)(1u << place % 8);
	}
	return ret;
}

static int count_used(struct vdi_state *v, uint64_t *nr, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = 0;

	*nr = 0;
	for (uint32_t i = 0; i < v->h.nr_blocks && ret == 0; i++) {
		ret = blockmap_get(v->bm, i, &e, err);
		*nr += ret == 0 && e.state == BLOCKMAP_DATA;
	}
	return ret;
}

/* Blocks in places from nr on go to the places below it that are free: as many as there are such blocks. */
static int fill_gaps(struct vdi_state *v, uint8_t *used, uint64_t nr, struct img_error *err)
{
	uint64_t gap = 0, limit = v->h.data_off + nr * vdi_place_bytes(&v->h);
	struct blockmap_entry e;
	int ret = 0;

	for (uint32_t i = 0; i < v->h.nr_blocks && ret == 0; i++) {
		ret = blockmap_get(v->bm, i, &e, err);
		if (ret != 0 || e.state != BLOCKMAP_DATA || e.off < limit)
			continue;
		while (gap < nr && (used[gap / 8] & 1u << gap % 8))
			gap++;
		if (gap == nr)
			return error_set(err, IMG_E_CORRUPT, 0, e.off, LAYER, "two blocks share a place");
		ret = blockmap_move(v->bm, i, v->h.data_off + gap * vdi_place_bytes(&v->h), err);
		gap++;
	}
	return ret == 0 ? blockmap_flush_stopped(v->bm, err) : ret;
}

int vdi_compact(struct vdi_state *v, struct img_error *err)
{
	struct blockmap_shape shape;
	uint8_t *used;
	uint64_t nr;
	int ret = count_used(v, &nr, err);

	if (ret != 0)
		return ret;
	used = calloc(1, (size_t)(nr / 8 + 1));
	if (!used)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = mark_used(v, used, nr, err);
	if (ret == 0)
		ret = fill_gaps(v, used, nr, err);
	free(used);
	/* Nothing leads behind the nr-th place any more. */
	if (ret == 0)
		ret = vdi_store_count(v, nr, err);
	if (ret == 0)
		ret = node_flush(v->node->file, 0, err);
	if (ret != 0)
		return ret;
	shape = vdi_shape(&v->h);
	(void)node_resize(v->node->file, shape.end_off, NULL); /* what stays is the next writer's room */
	return blockmap_reshape(v->bm, &shape, err);
}

static int shrink(struct vdi_state *v, struct vdi_header *h, struct img_error *err)
{
	struct blockmap_shape shape;
	uint64_t end = blockmap_end(v->bm);
	int ret;

	memcpy(h->modification, v->h.modification, 16);
	/* The count stays for now, as blocks that stay may be in the last places: it may be more than there are blocks,
	 * which VirtualBox does not open. That is better than what it would write over. */
	h->nr_allocated = v->h.nr_allocated;
	ret = vdi_replace_header(v, h, err);
	if (ret != 0)
		return ret;
	shape = vdi_shape(h);
	shape.end_off = end;
	ret = blockmap_reshape(v->bm, &shape, err);
	return ret == 0 ? vdi_compact(v, err) : ret;
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

static int resize_stopped(struct vdi_state *v, struct vdi_header *h, struct img_error *err)
{
	uint32_t before = v->h.nr_blocks;
	int ret;

	if (h->disk_bytes < vdi_disk_bytes(&v->h))
		return shrink(v, h, err);
	/* What the last block holds behind the disk's end comes into sight. */
	ret = blockmap_zero_tail(v->bm, vdi_disk_bytes(&v->h), err);
	if (ret == 0)
		ret = wipe_behind(v, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(v->bm, err);
	if (ret == 0)
		ret = grow(v, h, err);
	if (ret == 0 && h->type == VDI_FIXED && before < h->nr_blocks)
		ret = fill_places(v, before, err);
	return ret;
}

int vdi_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	struct vdi_header h = vdi_header_now(v);
	uint32_t nr;
	int ret = blockmap_may_change(v->bm, err);

	if (ret == 0 && (size_bytes == 0 || size_bytes % VDI_SECTOR_BYTES != 0))
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				"a VDI holds a disk of whole sectors of 512 bytes, at least one");
	if (ret == 0)
		ret = vdi_blocks_for(size_bytes, h.block_bytes, &nr, err);
	if (ret != 0 || size_bytes == vdi_disk_bytes(&h))
		return ret;
	ret = blockmap_touch(v->bm, err);
	if (ret == 0)
		ret = blockmap_stop(v->bm, err);
	if (ret != 0)
		return ret;
	h = v->h;
	/* Some images have more blocks than their disk needs. */
	h.nr_blocks = size_bytes > vdi_disk_bytes(&v->h) && nr < h.nr_blocks ? h.nr_blocks : nr;
	h.disk_bytes = size_bytes;
	v->resizing = true;
	ret = resize_stopped(v, &h, err);
	v->resizing = false;
	blockmap_start(v->bm);
	return ret;
}
