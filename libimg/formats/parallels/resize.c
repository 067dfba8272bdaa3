/* SPDX-License-Identifier: MIT */
/*
 * Resizing. The header's one sector decides: what a new size needs is on disk before, what an old one had is given up
 * after.
 *
 * Growing: entries of new clusters are cleared behind the table's end, then the header. Where they do not fit before
 * the data, the first clusters make room:
 *
 *   1  what lies there is copied behind all others, and its entries changed; durable
 *   2  the table's new entries are cleared, over what was there; durable
 *   3  the header tells the new size, and where data begins now
 *
 * Shrinking: the header first. The clusters that are gone are nobody's then: others from the end of the file fill them,
 * and the file is cut off (prl_compact()). Only where a cluster is out of line that takes room before it gives any.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "prl.h"

/* ---- growing ----------------------------------------------------------------------------------------------------- */

/* Step 1: nothing leads before limit. */
static int make_way(struct prl_image *p, uint64_t limit, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = 0;

	if (blockmap_end(p->bm) < limit)
		blockmap_set_end(p->bm, limit);
	for (uint32_t i = 0; i < p->h.nr_entries && ret == 0; i++) {
		ret = blockmap_get(p->bm, i, &e, err);
		if (ret == 0 && e.state == BLOCKMAP_DATA && e.off < limit)
			ret = blockmap_move(p->bm, i, 0, err);
	}
	if (ret == 0)
		ret = blockmap_flush_stopped(p->bm, err);
	if (ret == 0 && node_size(p->file) < limit)
		ret = node_resize(p->file, limit, err);
	return ret;
}

static int make_room(struct prl_image *p, struct prl_header *h, struct img_error *err)
{
	uint64_t lack;

	if (prl_table_end(h) <= h->data_off)
		return 0;
	lack = prl_table_end(h) - h->data_off;
	h->data_off += round_up(lack, h->cluster_bytes);
	if (h->data_off / PRL_SECTOR_BYTES > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "the block table of 0x%" PRIx64 " bytes has no room", prl_disk_bytes(h));
	return make_way(p, h->data_off, err);
}

/* Some images have more entries than their disk needs, which come into sight as well: as zeros, in the places that they
 * have. */
static int wipe_behind(struct prl_image *p, struct img_error *err)
{
	uint64_t disk = prl_disk_bytes(&p->h), first = disk / p->h.cluster_bytes + (disk % p->h.cluster_bytes != 0);
	int ret = 0;

	for (uint64_t i = first; ret == 0 && i < p->h.nr_entries; i++)
		ret = blockmap_wipe(p->bm, i, err);
	return ret;
}

static int grow(struct prl_image *p, struct prl_header *h, struct img_error *err)
{
	struct blockmap_shape shape;
	uint64_t end;
	/* What the last cluster holds behind the disk's end comes into sight. */
	int ret = blockmap_zero_tail(p->bm, prl_disk_bytes(&p->h), err);

	if (ret == 0)
		ret = wipe_behind(p, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(p->bm, err);
	if (ret == 0)
		ret = make_room(p, h, err);
	if (ret == 0 && h->nr_entries > p->h.nr_entries)
		ret = prl_write_free(p->file, p->h.nr_entries, h->nr_entries - p->h.nr_entries, err);
	if (ret == 0)
		ret = node_flush(p->file, 0, err);
	if (ret != 0)
		return ret;
	end = max_u64(blockmap_end(p->bm), h->data_off);
	ret = prl_replace_header(p, h, err);
	if (ret != 0)
		return ret;
	shape = prl_shape(h);
	shape.end_off = end;
	return blockmap_reshape(p->bm, &shape, err);
}

/* ---- shrinking --------------------------------------------------------------------------------------------------- */

static uint64_t first_place(const struct prl_image *p)
{
	return prl_place_at(&p->h, 0);
}

/* A cluster between two places takes the room of both: it goes behind all others, to a place that is its own (PRL-7). */
static int bring_in_line(struct prl_image *p, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = 0;

	for (uint32_t i = 0; i < p->h.nr_entries && ret == 0; i++) {
		ret = blockmap_get(p->bm, i, &e, err);
		if (ret == 0 && e.state == BLOCKMAP_DATA && prl_place_at(&p->h, e.off) != e.off)
			ret = blockmap_move(p->bm, i, 0, err);
	}
	return ret == 0 ? blockmap_flush_stopped(p->bm, err) : ret;
}

/* How many entries lead to places. */
static int count_used(struct prl_image *p, uint64_t *nr, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = 0;

	*nr = 0;
	for (uint32_t i = 0; i < p->h.nr_entries && ret == 0; i++) {
		ret = blockmap_get(p->bm, i, &e, err);
		*nr += ret == 0 && e.state == BLOCKMAP_DATA;
	}
	return ret;
}

/* Places below nr that an entry leads to, as bits. */
static int mark_used(struct prl_image *p, uint8_t *used, uint64_t nr, struct img_error *err)
{
	struct blockmap_entry e;
	int ret = 0;

	for (uint32_t i = 0; i < p->h.nr_entries && ret == 0; i++) {
		uint64_t place;

		ret = blockmap_get(p->bm, i, &e, err);
		if (ret != 0 || e.state != BLOCKMAP_DATA)
			continue;
		place = (e.off - first_place(p)) / p->h.cluster_bytes;
		if (place < nr)
			used[place / 8] |= (uint8_t)(1u << place % 8);
	}
	return ret;
}

/* Clusters in places from nr on go to the places below it that are free: as many as there are such clusters. */
static int fill_gaps(struct prl_image *p, const uint8_t *used, uint64_t nr, struct img_error *err)
{
	uint64_t gap = 0, cluster = p->h.cluster_bytes, limit = first_place(p) + nr * cluster;
	struct blockmap_entry e;
	int ret = 0;

	for (uint32_t i = 0; i < p->h.nr_entries && ret == 0; i++) {
		ret = blockmap_get(p->bm, i, &e, err);
		if (ret != 0 || e.state != BLOCKMAP_DATA || e.off < limit)
			continue;
		while (gap < nr && (used[gap / 8] & 1u << gap % 8))
			gap++;
		if (gap == nr)
			return error_set(err, IMG_E_CORRUPT, 0, e.off, LAYER, "two blocks share a cluster");
		ret = blockmap_move(p->bm, i, first_place(p) + gap * cluster, err);
		gap++;
	}
	return ret == 0 ? blockmap_flush_stopped(p->bm, err) : ret;
}

int prl_compact(struct prl_image *p, struct img_error *err)
{
	struct blockmap_shape shape;
	uint8_t *used;
	uint64_t nr;
	int ret = bring_in_line(p, err);

	if (ret == 0)
		ret = count_used(p, &nr, err);
	if (ret != 0)
		return ret;
	used = calloc(1, (size_t)(nr / 8 + 1));
	if (!used)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = mark_used(p, used, nr, err);
	if (ret == 0)
		ret = fill_gaps(p, used, nr, err);
	free(used);
	if (ret != 0)
		return ret;
	shape = prl_shape(&p->h);
	shape.end_off = first_place(p) + nr * p->h.cluster_bytes;
	(void)node_resize(p->file, nr ? shape.end_off : p->h.data_off, NULL); /* what stays is the next writer's */
	return blockmap_reshape(p->bm, &shape, err);
}

static int shrink(struct prl_image *p, struct prl_header *h, struct img_error *err)
{
	struct blockmap_shape shape;
	uint64_t end = blockmap_end(p->bm);
	int ret = prl_replace_header(p, h, err);

	if (ret != 0)
		return ret;
	shape = prl_shape(h);
	shape.end_off = end;
	ret = blockmap_reshape(p->bm, &shape, err);
	return ret == 0 ? prl_compact(p, err) : ret;
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

int prl_image_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	struct prl_image *p = prl_image_of(node);
	struct prl_header h = prl_header_now(p);
	uint64_t now = prl_disk_bytes(&h);
	int ret = blockmap_may_change(p->bm, err);

	if (ret == 0 && (size_bytes == 0 || size_bytes % PRL_SECTOR_BYTES != 0))
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				"a Parallels image holds a disk of whole sectors of 512 bytes, at least one");
	if (ret == 0)
		ret = prl_header_set_size(&h, size_bytes, err);
	if (ret != 0 || size_bytes == now)
		return ret;
	ret = blockmap_touch(p->bm, err);
	if (ret == 0)
		ret = blockmap_stop(p->bm, err);
	if (ret != 0)
		return ret;
	h = p->h;
	ret = prl_header_set_size(&h, size_bytes, err);
	if (ret == 0 && size_bytes > prl_disk_bytes(&p->h)) {
		/* Some images have more entries than their disk needs. */
		h.nr_entries = (uint32_t)max_u64(h.nr_entries, p->h.nr_entries);
		ret = grow(p, &h, err);
	} else if (ret == 0) {
		ret = shrink(p, &h, err);
	}
	blockmap_start(p->bm);
	return ret;
}
