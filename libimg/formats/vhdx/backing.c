/* SPDX-License-Identifier: MIT */
/*
 * The parent on record: the GUID of its last change of data, and its name (VHDX-7). Writing to a parent changes that
 * GUID, whoever does it, so that its children refuse it afterwards; that is what the format wants, for they cannot be
 * right any more.
 *
 * A commit is a write to the parent too. Before it, the child records that it is under way (a key of ours in the
 * parent locator, which others pass over: to them the parent has simply changed); at its end, in one entry of the log,
 * the child's table is empty and it names the parent's new GUID.
 *
 * An image that gets its first parent needs entries for the bitmap of the last chunk, and so perhaps a longer table.
 * One that loses it has no partial blocks any more: what the bits leave out is written first.
 */
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

bool vhdx_get_backing(struct node *n, struct backing_ref *out)
{
	const struct vhdx_state *s = vhdx_state_of(n);

	if (!s->m.has_parent)
		return false;
	memset(out, 0, sizeof(*out));
	memcpy(out->name, s->parent.name[0], sizeof(out->name));
	memcpy(out->other, s->parent.name[1], sizeof(out->other));
	memcpy(out->format, "vhdx", sizeof("vhdx"));
	out->pin.kind = PIN_ID;
	memcpy(out->pin.uuid, s->parent.linkage, sizeof(out->pin.uuid));
	memcpy(out->pin.snapshot_uuid, s->parent.linkage2, sizeof(out->pin.snapshot_uuid));
	out->pin.sector_bytes = s->m.sector_bytes;
	out->id = out->pin;
	out->committing = s->parent.committing;
	return true;
}

void vhdx_id(struct node *n, struct pin *out)
{
	struct vhdx_state *s = vhdx_state_of(n);

	out->kind = PIN_ID;
	out->sector_bytes = s->m.sector_bytes;
	pthread_mutex_lock(&s->header_lock);
	memcpy(out->uuid, s->h.data_write, sizeof(out->uuid));
	pthread_mutex_unlock(&s->header_lock);
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

/* What is below will not be there any more: nothing of blocks that have a place may be left to it. */
static int fill_clear_bits(struct vhdx_state *s, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	uint64_t off = 0;

	while (off < shape->disk_bytes) {
		struct status_extent x;
		struct blockmap_entry e;
		uint64_t block_end = round_down(off, shape->block_bytes) + shape->block_bytes;
		size_t nr;
		int ret = blockmap_get(s->bm, off / shape->block_bytes, &e, err);

		if (ret == 0 && e.state != BLOCKMAP_PARTIAL) {
			off = block_end;
			continue;
		}
		if (ret == 0)
			ret = blockmap_status(s->bm, min_u64(block_end, shape->disk_bytes) - off, off, &x, 1, &nr, err);
		if (ret == 0 && x.kind == STATUS_UNALLOCATED)
			ret = blockmap_zero(s->bm, x.bytes, x.off, 0, err);
		if (ret != 0)
			return ret;
		off += x.bytes;
	}
	return 0;
}

/* No partial blocks, no bitmaps. Behind the disk's end a last block may have clear bits: nobody reads there. */
static int drop_bitmaps(struct vhdx_state *s, struct img_error *err)
{
	static const uint8_t none[8];
	struct blockmap_entry e;
	uint8_t raw[8];
	int ret = 0;

	for (uint64_t i = 0; i < s->m.nr_blocks && ret == 0; i++) {
		ret = blockmap_get(s->bm, i, &e, err);
		if (ret != 0 || e.state != BLOCKMAP_PARTIAL)
			continue;
		e.state = BLOCKMAP_DATA;
		ret = blockmap_set(s->bm, i, &e, err);
	}
	/* An entry without a bitmap is never on disk before its block is whole. */
	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	for (uint64_t slot = s->m.chunk_ratio; slot < s->m.nr_slots && ret == 0; slot += s->m.chunk_ratio + 1) {
		ret = blockmap_slot_get(s->bm, slot, raw, err);
		if (ret == 0 && memcmp(raw, none, sizeof(raw)) != 0)
			ret = blockmap_slot_set(s->bm, slot, none, err);
	}
	return ret == 0 ? blockmap_flush_stopped(s->bm, err) : ret;
}

/* Entries of bitmaps say nothing yet, and there is room for the last one. */
static int make_room_for_bitmaps(struct vhdx_state *s, struct img_error *err)
{
	struct vhdx_meta m = s->m;
	struct blockmap_shape shape;
	static const uint8_t none[8];
	int ret = 0;

	m.has_parent = true;
	vhdx_count_slots(&m);
	if (m.nr_slots * 8 > m.bat.bytes)
		ret = vhdx_move_bat(s, m.nr_slots, err);
	if (ret != 0)
		return ret;
	m.bat = s->m.bat;
	shape = vhdx_bat_shape(&m);
	shape.bitmap_bytes = 0;
	shape.end_off = blockmap_end(s->bm);
	ret = blockmap_reshape(s->bm, &shape, err);
	for (uint64_t slot = m.chunk_ratio; slot < m.nr_slots && ret == 0; slot += m.chunk_ratio + 1)
		ret = blockmap_slot_set(s->bm, slot, none, err);
	return ret == 0 ? blockmap_flush_stopped(s->bm, err) : ret;
}

static int change_parent(struct vhdx_state *s, const struct vhdx_parent *p, bool empty, struct img_error *err)
{
	struct vhdx_meta_change c = { .set_parent = true, .parent = p, .empty = empty };
	bool dropped = !p && s->m.has_parent;
	int ret = 0;

	if (dropped && !empty)
		ret = drop_bitmaps(s, err);
	if (p && !s->m.has_parent && !empty)
		ret = make_room_for_bitmaps(s, err);
	if (ret == 0)
		ret = vhdx_meta_store(s, &c, err);
	if (ret == 0)
		ret = vhdx_reshape(s, blockmap_end(s->bm), err);
	if (ret != 0)
		blockmap_break(s->bm);
	/* The room of blocks or bitmaps goes back. That it does not is no failure: it is the next writer's. */
	if (ret == 0 && (empty || dropped))
		(void)vhdx_cut(s, NULL);
	return ret;
}

int vhdx_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);
	struct vhdx_parent *p = NULL;
	int ret = blockmap_may_change(s->bm, err);

	if (ret == 0 && ref && s->m.leave_blocks)
		ret = error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				"a fixed VHDX holds the whole disk: there can be no backing file");
	if (ret != 0)
		return ret;
	if (ref) {
		p = calloc(1, sizeof(*p));
		if (!p)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		ret = vhdx_parent_of(ref, s->m.sector_bytes, p, err);
	}
	if (ret == 0)
		ret = vhdx_touch(s, false, err); /* what the guest sees stays */
	if (ret == 0 && !ref && s->m.has_parent && how != BACKING_SET_EMPTY)
		ret = fill_clear_bits(s, err);
	if (ret == 0)
		ret = blockmap_stop(s->bm, err);
	if (ret == 0) {
		ret = change_parent(s, p, how == BACKING_SET_EMPTY, err);
		blockmap_start(s->bm);
	}
	free(p);
	return ret;
}
