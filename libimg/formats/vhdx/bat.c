/* SPDX-License-Identifier: MIT */
/*
 * The block allocation table: 8 bytes for each block, and after each chunk of blocks 8 bytes for the block of the
 * sector bitmap that describes the chunk, a bit for each sector, set where this image holds it. Only differences have
 * bitmaps. [MS-VHDX] 2.5.
 *
 * New blocks of a difference are "partially present", and stay so when all of their bits are set. A bitmap block is
 * made with the first partial block of its chunk, and reads as zeros then.
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

static bool meets(const struct vhdx_range *r, uint64_t off, uint64_t bytes)
{
	return r->off < off + bytes && off < r->off + r->bytes;
}

/* No block is in the first MiB (VHDX-8), and a writer must not destroy what finds the blocks, whatever an entry says
 * (VHDX-9). */
static int judge_place(const struct blockmap *bm, uint64_t off, uint64_t bytes, struct img_error *err)
{
	const struct vhdx_state *s = state_of(bm);

	if (s->check_only)
		return 0;
	if (off < VHDX_MIB)
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "an entry leads to 0x%" PRIx64 ", into the headers",
				 off);
	if (!s->writable)
		return 0;
	if (bytes <= INT64_MAX - off && !meets(&s->m.bat, off, bytes) && !meets(&s->m.metadata, off, bytes) &&
	    !meets(&s->log.ring, off, bytes))
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
			 "an entry leads to 0x%" PRIx64 ", over the image's own structures", off);
}

static int decode_place(const struct blockmap *bm, enum blockmap_state state, uint64_t entry,
			struct blockmap_entry *out, struct img_error *err)
{
	*out = (struct blockmap_entry){ .state = state, .off = entry & VHDX_PLACE_MASK };
	return judge_place(bm, out->off, state_of(bm)->m.block_bytes, err);
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
	case VHDX_PRESENT: return decode_place(bm, BLOCKMAP_DATA, entry, out, err);
	case VHDX_PARTLY:
		if (!m->has_parent)
			break;
		return decode_place(bm, BLOCKMAP_PARTIAL, entry, out, err);
	default: break;
	}
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "state %u is none that this image can have",
			 (unsigned)(entry & VHDX_STATE_MASK));
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	static const uint8_t states[] = { [BLOCKMAP_FREE] = VHDX_NOT_PRESENT,
					  [BLOCKMAP_ZERO] = VHDX_ZERO,
					  [BLOCKMAP_DATA] = VHDX_PRESENT,
					  [BLOCKMAP_PARTIAL] = VHDX_PARTLY };
	bool placed = entry->state == BLOCKMAP_DATA || entry->state == BLOCKMAP_PARTIAL;
	struct le64 d = le64_of((placed ? entry->off & VHDX_PLACE_MASK : 0) | states[entry->state]);

	(void)bm;
	(void)block;
	memcpy(raw, &d, sizeof(d));
}

static uint64_t slot(const struct blockmap *bm, uint64_t block)
{
	return block + block / state_of(bm)->m.chunk_ratio;
}

uint64_t vhdx_bitmap_slot(const struct vhdx_meta *m, uint64_t chunk)
{
	return chunk * (m->chunk_ratio + 1) + m->chunk_ratio;
}

/* The bitmap block of a chunk: the entry says where, or is to say so. */
static int make_bitmap_block(struct blockmap *bm, uint64_t at, uint64_t *place, struct img_error *err)
{
	struct le64 d;
	int ret = blockmap_take_room(bm, VHDX_MIB, place, err);

	if (ret == 0 && state_of(bm)->solid)
		ret = node_allocate(blockmap_node(bm)->file, VHDX_MIB, *place, err);
	d = le64_of(*place | VHDX_PRESENT);
	return ret == 0 ? blockmap_slot_set(bm, at, (const uint8_t *)&d, err) : ret;
}

/* Where the bitmap of a PARTIAL block is: a part of the chunk's. */
static int locate_bitmap(struct blockmap *bm, uint64_t block, const struct blockmap_entry *entry, bool make,
			 uint64_t *off, struct img_error *err)
{
	const struct vhdx_state *s = state_of(bm);
	const struct vhdx_meta *m = &s->m;
	uint64_t bytes = m->block_bytes / m->sector_bytes / 8, place = 0;
	uint64_t at = vhdx_bitmap_slot(m, block / m->chunk_ratio);
	uint8_t raw[8];
	int ret = blockmap_slot_get(bm, at, raw, err);

	(void)entry;
	if (ret != 0)
		return ret;
	place = le64_at(raw, 0) & VHDX_PLACE_MASK;
	if (make && (le64_at(raw, 0) & VHDX_STATE_MASK) == VHDX_NOT_PRESENT)
		ret = make_bitmap_block(bm, at, &place, err);
	else if ((le64_at(raw, 0) & VHDX_STATE_MASK) != VHDX_PRESENT || place < VHDX_MIB ||
		 !range_inside(place, VHDX_MIB, node_size(s->node->file)))
		ret = error_set(err, IMG_E_CORRUPT, 0, m->bat.off + at * 8, LAYER,
				"the sector bitmap of block 0x%" PRIx64 " is not there", block);
	else
		ret = judge_place(bm, place, VHDX_MIB, err);
	*off = place + block % m->chunk_ratio * bytes;
	return ret;
}

/* ---- what the engine asks of a writer ---------------------------------------------------------------------------- */

static int allocate(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	const struct vhdx_state *s = state_of(bm);

	return s->solid ? node_allocate(s->node->file, nr * s->m.block_bytes, *off, err) : 0;
}

static uint64_t release(struct blockmap *bm, uint64_t off)
{
	(void)bm;
	return off;
}

/* Children know their parent's content by this GUID: it is on disk before any data changes (2.2.2). */
static int begin(struct blockmap *bm, struct img_error *err)
{
	return vhdx_touch(state_of(bm), true, err);
}

static int settle(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	(void)err;
	state_of(bm)->log.end = end;
	return 0;
}

const struct blockmap_ops vhdx_bat_ops = {
	.decode = decode,
	.encode = encode,
	.slot = slot,
	.locate_bitmap = locate_bitmap,
	.allocate = allocate,
	.release = release,
	.begin = begin,
	.settle = settle,
	.store = vhdx_journal_store,
	.sync = vhdx_journal_sync,
};

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

/* ---- the whole table --------------------------------------------------------------------------------------------- */

static void count_entry(struct node *file, const struct vhdx_meta *m, uint64_t at, uint64_t entry,
			struct vhdx_census *out)
{
	bool is_bitmap = at % (m->chunk_ratio + 1) == m->chunk_ratio;
	uint64_t state = entry & VHDX_STATE_MASK, place = entry & VHDX_PLACE_MASK;
	uint64_t size = is_bitmap ? VHDX_MIB : m->block_bytes;
	bool bad;

	/* Behind the last block: nobody's (VHDX-14). */
	if (!is_bitmap && at - at / (m->chunk_ratio + 1) >= m->nr_blocks)
		return;
	if (state != VHDX_PRESENT && state != VHDX_PARTLY) {
		bad = state == 4 || state == 5;
	} else {
		out->mapped += is_bitmap ? 0 : m->block_bytes;
		bad = place < VHDX_MIB || !range_inside(place, size, node_size(file)) ||
		      (state == VHDX_PARTLY && (is_bitmap || !m->has_parent));
		if (!bad)
			out->end = max_u64(out->end, place + size);
	}
	if (bad && out->bad++ == 0)
		out->first_bad = at;
}

int vhdx_bat_census(struct node *file, const struct vhdx_meta *m, struct vhdx_census *out, struct img_error *err)
{
	uint64_t bytes = m->nr_slots * 8;
	uint8_t *buf = malloc(BATCH_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	*out = (struct vhdx_census){ 0 };
	for (uint64_t at = 0; at < bytes && ret == 0; at += BATCH_BYTES) {
		uint64_t n = min_u64(BATCH_BYTES, bytes - at);

		ret = node_pread(file, buf, n, m->bat.off + at, 0, err);
		for (uint64_t i = 0; i < n && ret == 0; i += 8)
			count_entry(file, m, (at + i) / 8, le64_at(buf, (size_t)i), out);
	}
	free(buf);
	return ret;
}
