/* SPDX-License-Identifier: MIT */
/*
 * Requests. Of a fixed disk they go to the file, whose end is out of reach: the core lets none beyond the disk's. All
 * others are the block engine's, which asks back for what is here.
 *
 * The place of a block: its bitmap, then its data, which begins on a page of the host in files that we write. Between
 * the end of a place and the next one there is so always room for a footer, and that is where it stands while it is the
 * file's end (VHD-6). The file is made longer by the block and the footer in one step: whatever a crash leaves, the
 * last sector is never one of the guest's.
 */
#include <inttypes.h>
#include <string.h>

#include "vhd.h"

/* ---- what the engine asks ---------------------------------------------------------------------------------------- */

/* A writer must not destroy what finds the blocks, whatever an entry says (VHD-9). */
static bool in_the_way(const struct blockmap *bm, const struct vhd_state *s, uint64_t off)
{
	const struct blockmap_shape *shape = blockmap_shape(bm);
	uint64_t end = off + shape->prefix_bytes + shape->block_bytes;

	for (size_t i = 0; i < s->nr_structures && s->structure[i].off < end; i++)
		if (off < s->structure[i].off + s->structure[i].bytes)
			return true;
	return end > blockmap_end(bm);
}

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	const struct vhd_state *s = blockmap_format(bm);
	struct be32 d;
	uint32_t sector;

	memcpy(&d, raw, sizeof(d));
	sector = be32_get(d);
	if (sector == VHD_FREE) {
		out->state = BLOCKMAP_FREE;
		return 0;
	}
	if (sector == 0)
		return error_set(err, IMG_E_CORRUPT, 0, 0, LAYER, "block %" PRIu64 " leads to the footer's copy",
				 block);
	if (s->writable && !s->check_only && !atomic_load(&s->broken) &&
	    in_the_way(bm, s, (uint64_t)sector * VHD_SECTOR_BYTES))
		return error_set(err, IMG_E_CORRUPT, 0, (uint64_t)sector * VHD_SECTOR_BYTES, LAYER,
				 "block %" PRIu64 " lies over the image's own structures", block);
	/* A clear bit of a dynamic disk means zeros, as one of a differencing disk means the parent (VHD-8). */
	out->state = BLOCKMAP_PARTIAL;
	out->off = (uint64_t)sector * VHD_SECTOR_BYTES;
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	bool placed = entry->state == BLOCKMAP_DATA || entry->state == BLOCKMAP_PARTIAL;
	struct be32 d = be32_of(placed ? (uint32_t)(entry->off / VHD_SECTOR_BYTES) : VHD_FREE);

	(void)bm;
	(void)block;
	memcpy(raw, &d, sizeof(d));
}

static int allocate(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(bm);
	struct node *file = blockmap_node(bm)->file;
	uint64_t place = shape->prefix_bytes + shape->block_bytes, end;
	struct vhd_state *s = blockmap_format(bm);
	int ret = 0;

	/* The engine asks for one at a time where there are bitmaps: the data of two places is no one write. */
	*off = round_up(blockmap_end(bm) + VHD_SECTOR_BYTES + shape->prefix_bytes, VHD_DATA_ALIGN_BYTES) -
	       shape->prefix_bytes;
	end = *off + nr * place;
	if (end / VHD_SECTOR_BYTES >= VHD_FREE)
		return error_set(err, IMG_E_LIMIT, 0, *off, LAYER, "a VHD file has at most 2 TiB");
	if (node_size(file) < end + VHD_SECTOR_BYTES)
		ret = node_resize(file, end + VHD_SECTOR_BYTES, err);
	if (ret == 0) {
		s->last_place = *off;
		s->end_before = blockmap_end(bm);
	}
	return ret;
}

static uint64_t release(struct blockmap *bm, uint64_t off)
{
	const struct vhd_state *s = blockmap_format(bm);

	return s->last_place == off ? s->end_before : off;
}

static int settle(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	struct vhd_state *s = blockmap_format(bm);

	return node_pwrite(blockmap_node(bm)->file, &s->foot.f, sizeof(s->foot.f), end, 0, err);
}

const struct blockmap_ops vhd_block_ops = {
	.decode = decode,
	.encode = encode,
	.allocate = allocate,
	.release = release,
	.settle = settle,
};

/* ---- requests ---------------------------------------------------------------------------------------------------- */

int vhd_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);

	(void)flags;
	return s->bm ? blockmap_pread(s->bm, buf, bytes, off, err) : node_pread(n->file, buf, bytes, off, 0, err);
}

/* After the change, whatever became of it: a flush that began before it ended does not cover it. */
static int touched(struct vhd_state *s, int ret)
{
	atomic_store(&s->dirty, true);
	return ret;
}

int vhd_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	(void)flags;
	if (s->bm)
		return blockmap_pwrite(s->bm, buf, bytes, off, err);
	ret = vhd_may_change(n, err);
	return ret == 0 ? touched(s, node_pwrite(n->file, buf, bytes, off, 0, err)) : ret;
}

int vhd_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	if (s->bm)
		return blockmap_zero(s->bm, bytes, off, flags, err);
	ret = vhd_may_change(n, err);
	return ret == 0 ? touched(s, node_zero(n->file, bytes, off, flags & IMG_IO_NO_UNMAP, err)) : ret;
}

int vhd_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	(void)flags;
	if (s->bm)
		return blockmap_discard(s->bm, bytes, off, err);
	ret = vhd_may_change(n, err);
	return ret == 0 ? touched(s, node_discard(n->file, bytes, off, 0, err)) : ret;
}

int vhd_flush(struct node *n, unsigned flags, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	(void)flags;
	if (s->bm)
		return blockmap_flush(s->bm, err);
	atomic_store(&s->dirty, false);
	ret = node_flush(n->file, 0, err);
	if (ret != 0)
		atomic_store(&s->dirty, true);
	return ret;
}

int vhd_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
	       struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	if (s->bm)
		return blockmap_status(s->bm, bytes, off, out, cap, nr, err);
	ret = node_status(n->file, bytes, off, out, cap, nr, err);
	for (size_t i = 0; ret == 0 && i < *nr; i++) {
		/* Nothing lies below: what the file does not hold is zeros. */
		if (out[i].kind == STATUS_UNALLOCATED)
			out[i].kind = STATUS_ZERO;
		if (out[i].kind == STATUS_DATA)
			out[i].host_off = out[i].off;
	}
	return ret;
}
