/* SPDX-License-Identifier: MIT */
/*
 * Another size. Every step leaves the old disk or the new one:
 *
 *   fixed, growing    the footer is written where it is going to stand, saying the old size; what lies between the disk
 * and it becomes zeros; the footer says the new size fixed, shrinking  the footer says the new size where it stands;
 * then it is written behind the new end, and the file is cut dynamic, growing  the table grows, into room behind it or
 * to a new place; what will be part of the disk becomes zeros; then the footers say the new size dynamic, shrinking the
 * footers say the new size; then entries behind it become free, the table short, and the file is cut
 *
 * A footer of a fixed disk that stands further behind than the disk ends is no fault (VHD-6), so the two first ones
 * need no more.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

#define COPY_BYTES (64u << 10)

/* ---- fixed ------------------------------------------------------------------------------------------------------- */

static int put_size(struct vhd_state *s, struct node *file, uint64_t size, uint64_t end, struct img_error *err)
{
	struct disk_vhd_footer before = s->foot.f;
	int ret;

	vhd_footer_set_size(&s->foot.f, size);
	vhd_footer_seal(&s->foot.f);
	ret = vhd_is_fixed(s) ? vhd_write_tail(s, file, end, err) : vhd_write_head(s, file, err);
	if (ret != 0) {
		s->foot.f = before;
		vhd_break(s);
		return ret;
	}
	atomic_store(&s->disk_bytes, size);
	/* It is done. The other copy is put right by whoever opens the image next. */
	if (!vhd_is_fixed(s) && vhd_write_tail(s, file, end, NULL) != 0)
		vhd_break(s);
	return 0;
}

static int grow_fixed(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	uint64_t old = atomic_load(&s->disk_bytes), end = max_u64(size, s->foot.tail_off);
	int ret = 0;

	if (end != s->foot.tail_off || s->foot.tail_bytes != VHD_SECTOR_BYTES) {
		ret = vhd_write_footers(s, n->file, end, err);
		if (ret != 0)
			return ret;
	}
	/* Among it the footer that was. */
	ret = node_zero(n->file, end - old, old, 0, err);
	if (ret == 0)
		ret = node_flush(n->file, 0, err);
	if (ret == 0)
		ret = put_size(s, n->file, size, end, err);
	return ret;
}

static int resize_fixed(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	if (size > VHD_FIXED_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "%s: a fixed VHD has at most 2^62 bytes",
				 n->path);
	if (size > atomic_load(&s->disk_bytes))
		ret = grow_fixed(n, size, err);
	else
		ret = put_size(s, n->file, size, s->foot.tail_off, err);
	/* What is behind the new end goes, if it can; nobody reads it. */
	if (ret == 0 && s->foot.tail_off != size && vhd_write_tail(s, n->file, size, NULL) != 0)
		vhd_break(s);
	return ret;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static int fill_free(struct node *file, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint8_t *buf = malloc(COPY_BYTES);
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memset(buf, 0xff, COPY_BYTES);
	for (uint64_t done = 0; done < bytes && ret == 0; done += COPY_BYTES)
		ret = node_pwrite(file, buf, min_u64(COPY_BYTES, bytes - done), off + done, 0, err);
	free(buf);
	return ret;
}

static int copy_table(struct node *file, uint64_t from, uint64_t to, uint64_t bytes, struct img_error *err)
{
	uint8_t *buf = malloc(COPY_BYTES);
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t done = 0; done < bytes && ret == 0; done += COPY_BYTES) {
		uint64_t nr = min_u64(COPY_BYTES, bytes - done);

		ret = node_pread(file, buf, nr, from + done, 0, err);
		if (ret == 0)
			ret = node_pwrite(file, buf, nr, to + done, 0, err);
	}
	free(buf);
	return ret;
}

int vhd_write_header(struct node *n, const struct vhd_header *h, struct img_error *err)
{
	int ret = node_pwrite(n->file, &h->disk, VHD_HEADER_FIRST_BYTES, h->off, 0, err);

	if (ret == 0)
		ret = node_flush(n->file, 0, err);
	if (ret != 0)
		vhd_break(vhd_state(n));
	else
		vhd_state(n)->head = *h;
	return ret;
}

bool vhd_in_way(uint64_t off, uint64_t bytes, uint64_t from, uint64_t to)
{
	return bytes > 0 && off < to && (off >= from || bytes > from - off);
}

/* Is [from, to) nobody's? What is below the first place and no structure. */
static int is_free_room(struct vhd_state *s, uint64_t from, uint64_t to, bool *is, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	const struct disk_vhd_locator *l = s->head.disk.locator;
	uint64_t place = shape->prefix_bytes + shape->block_bytes;
	struct blockmap_entry e;

	*is = from == to || (to <= blockmap_end(s->bm) && !vhd_in_way(s->head.off, sizeof(s->head.disk), from, to) &&
			     !vhd_in_way(0, VHD_SECTOR_BYTES, from, to));
	for (unsigned i = 0; i < VHD_LOCATORS; i++)
		if (vhd_in_way(be64_get(l[i].off), be32_get(l[i].length), from, to))
			*is = false;
	for (uint64_t b = 0; b < shape->nr_blocks && *is && from != to; b++) {
		int ret = blockmap_get(s->bm, b, &e, err);

		if (ret != 0)
			return ret;
		if (e.state != BLOCKMAP_FREE && vhd_in_way(e.off, place, from, to))
			*is = false;
	}
	return 0;
}

/* So that it has `entries`. Stopped; nothing is dirty. *end: of the file's content, afterwards. */
static int grow_table(struct node *n, uint32_t entries, uint64_t *end, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	struct vhd_header h = s->head;
	uint64_t have = (uint64_t)h.max_entries * 4, need = vhd_table_bytes(entries);
	bool here;
	int ret = is_free_room(s, h.table_off + have, h.table_off + need, &here, err);

	if (ret != 0)
		return ret;
	h.max_entries = entries;
	if (!here) {
		h.table_off = *end + VHD_SECTOR_BYTES; /* the present footer stays for now */
		ret = copy_table(n->file, s->head.table_off, h.table_off, have, err);
		*end = h.table_off + need;
	}
	if (ret == 0)
		ret = fill_free(n->file, h.table_off + have, need - have, err);
	if (ret == 0)
		ret = node_flush(n->file, 0, err);
	if (ret != 0)
		return ret;
	vhd_header_seal(&h);
	return vhd_write_header(n, &h, err);
}

/* ---- dynamic ----------------------------------------------------------------------------------------------------- */

static uint64_t blocks_of(const struct vhd_state *s, uint64_t size)
{
	return size / s->head.block_bytes + (size % s->head.block_bytes != 0);
}

static int reshape(struct vhd_state *s, uint64_t size, uint64_t end, struct img_error *err)
{
	struct blockmap_shape shape;
	int ret;

	vhd_learn_structures(s);
	vhd_shape(s, &shape);
	shape.disk_bytes = size;
	shape.nr_blocks = blocks_of(s, size);
	shape.end_off = end;
	ret = blockmap_reshape(s->bm, &shape, err);
	if (ret != 0)
		vhd_break(s);
	return ret;
}

/* Room for the new size, on disk and in memory; the footers still say the old one. */
static int prepare_growth(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	uint64_t old_blocks = blocks_of(s, atomic_load(&s->disk_bytes)), blocks = blocks_of(s, size), end;
	int ret = blockmap_stop(s->bm, err);

	if (ret != 0)
		return ret;
	/* What a larger disk left there. */
	ret = blockmap_clear(s->bm, old_blocks, s->head.max_entries - old_blocks, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	end = blockmap_end(s->bm);
	if (ret == 0 && blocks > s->head.max_entries)
		ret = grow_table(n, (uint32_t)blocks, &end, err);
	if (ret == 0)
		ret = reshape(s, size, end, err);
	blockmap_start(s->bm);
	return ret;
}

/* The rest of the last block, and what a parent has there that is longer than this disk was. */
static int zero_growth(struct node *n, uint64_t old, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	uint64_t below = n->backing ? node_size(n->backing) : 0;
	uint64_t to = max_u64(min_u64(round_up(old, s->head.block_bytes), size), min_u64(below, size));

	return to > old ? blockmap_zero(s->bm, to - old, old, 0, err) : 0;
}

static int grow_dynamic(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	uint64_t old = atomic_load(&s->disk_bytes);
	int ret;

	if (size > VHD_DYNAMIC_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "%s: a dynamic VHD has at most 2040 GiB",
				 n->path);
	if (n->backing_missing)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: cannot grow without its backing file, which may reach further", n->path);
	ret = prepare_growth(n, size, err);
	if (ret == 0)
		ret = zero_growth(n, old, size, err);
	if (ret == 0)
		ret = blockmap_stop(s->bm, err);
	if (ret != 0)
		return ret;
	ret = put_size(s, n->file, size, blockmap_end(s->bm), err);
	blockmap_start(s->bm);
	return ret;
}

/* The first byte behind all that is in use. */
int vhd_content_end(struct vhd_state *s, uint64_t *out, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	const struct disk_vhd_locator *l = s->head.disk.locator;
	uint64_t end = s->head.off + sizeof(s->head.disk), limit = blockmap_end(s->bm);
	struct blockmap_entry e;

	end = max_u64(end, s->head.table_off + vhd_table_bytes(s->head.max_entries));
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		uint64_t off = be64_get(l[i].off), bytes = max_u64(be32_get(l[i].length), be32_get(l[i].space));

		if (be32_get(l[i].length) > 0 && range_inside(off, bytes, limit))
			end = max_u64(end, off + bytes);
		else if (be32_get(l[i].length) > 0)
			end = limit; /* who knows */
	}
	for (uint64_t b = 0; b < shape->nr_blocks; b++) {
		int ret = blockmap_get(s->bm, b, &e, err);

		if (ret != 0)
			return ret;
		if (e.state != BLOCKMAP_FREE)
			end = max_u64(end, e.off + shape->prefix_bytes + shape->block_bytes);
	}
	*out = min_u64(round_up(end, VHD_SECTOR_BYTES), limit);
	return 0;
}

/* Blocks that are no part of the disk any more: their room goes back to the host; the entries are cleared next. */
static int give_up(struct node *n, uint64_t first, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	uint64_t place = shape->prefix_bytes + shape->block_bytes;
	struct blockmap_entry e;
	int ret = 0;

	for (uint64_t b = first; b < shape->nr_slots && ret == 0; b++) {
		ret = blockmap_get(s->bm, b, &e, err);
		if (ret == 0 && e.state != BLOCKMAP_FREE && range_inside(e.off, place, blockmap_end(s->bm)))
			ret = node_discard(n->file, place, e.off, 0, err);
	}
	return ret;
}

/* The footers say the new size: the rest is tidied up. */
static int cut_dynamic(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	uint64_t blocks = blocks_of(s, size), end;
	struct vhd_header h = s->head;
	int ret = give_up(n, blocks, err);

	if (ret == 0)
		ret = blockmap_clear(s->bm, blocks, s->head.max_entries - blocks, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret == 0) {
		h.max_entries = (uint32_t)blocks;
		vhd_header_seal(&h);
		ret = vhd_write_header(n, &h, err);
	}
	if (ret == 0)
		ret = reshape(s, size, blockmap_end(s->bm), err);
	if (ret == 0)
		ret = vhd_content_end(s, &end, err);
	if (ret == 0 && end < blockmap_end(s->bm)) {
		ret = vhd_write_footers(s, n->file, end, err);
		if (ret == 0)
			ret = reshape(s, size, end, err);
	}
	return ret;
}

static int shrink_dynamic(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret = blockmap_stop(s->bm, err);

	if (ret != 0)
		return ret;
	ret = put_size(s, n->file, size, blockmap_end(s->bm), err);
	if (ret == 0)
		ret = reshape(s, size, blockmap_end(s->bm), err);
	/* The disk has its new size, whether the rest can be tidied up or not. */
	if (ret == 0 && !atomic_load(&s->broken))
		(void)cut_dynamic(n, size, NULL);
	blockmap_start(s->bm);
	return ret;
}

int vhd_resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret = vhd_may_change(n, err);

	if (ret != 0)
		return ret;
	if (!s->bm) {
		ret = vhd_stop(s, err);
		if (ret == 0) {
			ret = resize_fixed(n, size_bytes, err);
			vhd_start(s);
		}
		return ret;
	}
	ret = blockmap_touch(s->bm, err);
	if (ret == 0 && size_bytes > atomic_load(&s->disk_bytes))
		ret = grow_dynamic(n, size_bytes, err);
	else if (ret == 0)
		ret = shrink_dynamic(n, size_bytes, err);
	return ret;
}
