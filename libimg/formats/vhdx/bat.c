/* SPDX-License-Identifier: MIT */
/*
 * The block allocation table: 8 bytes for each block, and after each chunk of blocks 8 bytes for the block of the
 * sector bitmap that describes the chunk, a bit for each sector, set where this image holds it. Only differences have
 * bitmaps. [MS-VHDX] 2.5.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

#define BATCH_BYTES (64u << 10)

static struct vhdx_state *state_of(const struct blockmap *bm)
{
	return blockmap_format(bm);
}

/* An UNDEFINED or UNMAPPED block holds nothing that anybody may rely on: zeros, whatever the parent has. */
static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	const struct vhdx_meta *m = &state_of(bm)->m;
	uint64_t entry = le64_at(raw, 0);

	(void)block;
	*out = (struct blockmap_entry){ .state = BLOCKMAP_ZERO };
	switch (entry & VHDX_STATE_MASK) {
	case VHDX_NOT_PRESENT: out->state = BLOCKMAP_FREE; return 0;
	case VHDX_UNDEFINED:
	case VHDX_ZERO:
	case VHDX_UNMAPPED: return 0;
	case VHDX_PRESENT:
		*out = (struct blockmap_entry){ .state = BLOCKMAP_DATA, .off = entry & VHDX_PLACE_MASK };
		return 0;
	case VHDX_PARTLY:
		if (!m->has_parent)
			break;
		*out = (struct blockmap_entry){ .state = BLOCKMAP_PARTIAL, .off = entry & VHDX_PLACE_MASK };
		return 0;
	default: break;
	}
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "state %u is none that this image can have",
			 (unsigned)(entry & VHDX_STATE_MASK));
}

static uint64_t slot(const struct blockmap *bm, uint64_t block)
{
	return block + block / state_of(bm)->m.chunk_ratio;
}

/* Where the bitmap of a PARTIAL block is: a part of the chunk's. */
static int locate_bitmap(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, bool make,
			 uint64_t *off, struct img_error *err)
{
	const struct vhdx_state *s = state_of(bm);
	const struct vhdx_meta *m = &s->m;
	uint64_t chunk = block / m->chunk_ratio, bytes = m->block_bytes / m->sector_bytes / 8;
	uint64_t at = m->bat.off + (chunk * (m->chunk_ratio + 1) + m->chunk_ratio) * 8, place;
	uint8_t raw[8];
	int ret = node_pread(s->node->file, raw, sizeof(raw), at, 0, err);

	(void)entry;
	(void)make; /* images are only read */
	if (ret != 0)
		return ret;
	place = le64_at(raw, 0) & VHDX_PLACE_MASK;
	if ((le64_at(raw, 0) & VHDX_STATE_MASK) != VHDX_PRESENT || place < VHDX_MIB ||
	    !range_inside(place, VHDX_MIB, node_size(s->node->file)))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "the sector bitmap of block 0x%" PRIx64 " is not there", block);
	*off = place + block % m->chunk_ratio * bytes;
	return 0;
}

const struct blockmap_ops vhdx_bat_ops = { .decode = decode, .slot = slot, .locate_bitmap = locate_bitmap };

struct blockmap_shape vhdx_bat_shape(const struct vhdx_meta *m)
{
	return (struct blockmap_shape){
		.disk_bytes = m->disk_bytes,
		.block_bytes = m->block_bytes,
		.nr_blocks = m->nr_blocks,
		.nr_slots = m->nr_slots,
		.entry_bytes = 8,
		.table_off = m->bat.off,
		.place_align = VHDX_MIB,
		.end_off = 0, /* a writer's */
		.has_zero = true,
		.bitmap_bytes = m->has_parent ? (uint32_t)(m->block_bytes / m->sector_bytes / 8) : 0,
		.sector_bytes = m->sector_bytes,
	};
}

int vhdx_bat_sum(struct node *file, const struct vhdx_meta *m, uint64_t *mapped, uint64_t *bad, struct img_error *err)
{
	uint64_t bytes = m->nr_slots * 8;
	uint8_t *buf = malloc(BATCH_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	*mapped = *bad = 0;
	for (uint64_t at = 0; at < bytes && ret == 0; at += BATCH_BYTES) {
		uint64_t n = min_u64(BATCH_BYTES, bytes - at);

		ret = node_pread(file, buf, n, m->bat.off + at, 0, err);
		for (uint64_t i = 0; i < n && ret == 0; i += 8) {
			bool is_bitmap = (at + i) / 8 % (m->chunk_ratio + 1) == m->chunk_ratio;
			uint64_t entry = le64_at(buf, i), state = entry & VHDX_STATE_MASK;
			uint64_t size = is_bitmap ? VHDX_MIB : m->block_bytes;

			if (state != VHDX_PRESENT && state != VHDX_PARTLY) {
				*bad += state == 4 || state == 5;
				continue;
			}
			*mapped += is_bitmap ? 0 : m->block_bytes;
			*bad += (entry & VHDX_PLACE_MASK) < VHDX_MIB ||
				!range_inside(entry & VHDX_PLACE_MASK, size, node_size(file)) ||
				(state == VHDX_PARTLY && (is_bitmap || !m->has_parent));
		}
	}
	free(buf);
	return ret;
}
