/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing. A fixed disk is its file without the footer; any other one gets the block engine, and the
 * parent's name if it has one.
 *
 * New blocks go behind the footer: it is where everything ends. So who writes reads the whole table first, and an entry
 * that leads there is a reason to stop. What a crash left before the footer, or behind it where it is missing, is
 * nobody's, and goes when the image is opened for writing.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

#define TABLE_PIECE_BYTES (64u << 10)
#define TRIM_BLOCKS_MAX \
	(UINT64_C(1) << 20) /* entries that are looked at at every opening for writing: 2 TiB of usual blocks */

void vhd_shape(const struct vhd_state *s, struct blockmap_shape *out)
{
	uint32_t bitmap = vhd_bitmap_bytes(s->head.block_bytes);
	uint64_t size = vhd_footer_size(&s->foot.f);

	*out = (struct blockmap_shape){
		.disk_bytes = size,
		.block_bytes = s->head.block_bytes,
		.nr_blocks = size / s->head.block_bytes + (size % s->head.block_bytes != 0),
		.nr_slots = s->head.max_entries,
		.entry_bytes = 4,
		.table_off = s->head.table_off,
		.prefix_bytes = bitmap,
		.end_off = round_up(s->foot.tail_off, VHD_SECTOR_BYTES),
		.bitmap_bytes = bitmap,
		.sector_bytes = VHD_SECTOR_BYTES,
		.bitmap_msb_first = true,
		.bitmap_always = vhd_footer_type(&s->foot.f) == VHD_DYNAMIC,
	};
}

static int by_off(const void *a, const void *b)
{
	const struct img_range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

void vhd_learn_structures(struct vhd_state *s)
{
	const struct vhd_header *h = &s->head;
	struct img_range *r = s->structure;
	size_t nr = 0, kept = 1;

	r[nr++] = (struct img_range){ 0, VHD_SECTOR_BYTES };
	r[nr++] = (struct img_range){ h->off, sizeof(h->disk) };
	if (h->max_entries > 0)
		r[nr++] = (struct img_range){ h->table_off, (uint64_t)h->max_entries * 4 };
	s->texts_outside = false;
	for (unsigned i = 0; i < VHD_LOCATORS && s->names_parent; i++) {
		uint64_t off = be64_get(h->disk.locator[i].off), bytes = be32_get(h->disk.locator[i].length);

		if (bytes > 0 && range_inside(off, bytes, s->texts_limit))
			r[nr++] = (struct img_range){ off, bytes };
		else if (bytes > 0)
			s->texts_outside = true;
	}
	qsort(r, nr, sizeof(*r), by_off);
	s->structures_overlap = false;
	for (size_t i = 1; i < nr; i++) {
		struct img_range *last = &r[kept - 1];

		if (r[i].off >= last->off + last->bytes) {
			r[kept++] = r[i];
			continue;
		}
		s->structures_overlap = true;
		last->bytes = max_u64(last->off + last->bytes, r[i].off + r[i].bytes) - last->off;
	}
	s->nr_structures = kept;
}

/* Written, they would destroy each other. */
static int judge_structures(struct node *n, const struct vhd_state *s, struct img_error *err)
{
	const struct img_range *last = &s->structure[s->nr_structures - 1];

	if (s->texts_outside)
		return error_set(
			err, IMG_E_CORRUPT, 0, s->head.off, LAYER,
			"%s: texts that name the parent lie outside the file, where blocks would be written, so that "
			"it can only be read",
			n->path);
	if (!s->structures_overlap && last->off + last->bytes <= round_up(s->foot.tail_off, VHD_SECTOR_BYTES))
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, last->off, LAYER,
			 "%s: structures of the image lie over each other, so that it can only be read", n->path);
}

/* New blocks go behind the end: none may be said to lie there already, in part or whole (VHD-7). */
static int judge_entry(struct node *n, const struct vhd_state *s, uint64_t block, uint64_t off, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);

	if (blockmap_place_inside(shape, block, off, min_u64(shape->end_off, node_size(n->file)), true))
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, s->head.table_off + block * 4, LAYER,
			 "%s: block %" PRIu64 " leads to 0x%" PRIx64
			 ", and not all of that place is inside the file: run imgtool check --repair",
			 n->path, block, off);
}

/* *out: how many entries lead into the file. What makes no sense leads to nothing. */
static int scan_table(struct node *n, const struct vhd_state *s, bool strict, uint64_t *out, struct img_error *err)
{
	uint64_t bytes = blockmap_shape(s->bm)->nr_blocks * 4, file_bytes = node_size(n->file), nr = 0;
	uint8_t *buf = malloc(TABLE_PIECE_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t done = 0; done < bytes && ret == 0; done += TABLE_PIECE_BYTES) {
		uint64_t piece = min_u64(TABLE_PIECE_BYTES, bytes - done);

		ret = node_pread(n->file, buf, piece, s->head.table_off + done, 0, err);
		for (uint64_t at = 0; at < piece && ret == 0; at += 4) {
			uint64_t sector = be32_at(buf, (size_t)at);

			if (sector == 0 || sector == VHD_FREE)
				continue;
			if (strict)
				ret = judge_entry(n, s, (done + at) / 4, sector * VHD_SECTOR_BYTES, err);
			nr += sector * VHD_SECTOR_BYTES < file_bytes;
		}
	}
	free(buf);
	*out = nr;
	return ret;
}

static int prepare_writer(struct node *n, const struct vhd_state *s, struct budget *budget, struct img_error *err)
{
	uint64_t nr;
	int ret = budget_metadata(budget, n->path, blockmap_shape(s->bm)->nr_blocks * 4, err);

	return ret == 0 ? scan_table(n, s, true, &nr, err) : ret;
}

/* Blocks that share their places are a bomb. Only where a file is small for its disk all entries have to be looked at. */
static int judge_expansion(struct node *n, const struct vhd_state *s, struct budget *budget, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	uint64_t file_bytes = node_size(n->file), nr;
	int ret;

	if (budget_expansion_fits(budget, shape->disk_bytes, file_bytes))
		return 0;
	ret = budget_metadata(budget, n->path, shape->nr_blocks * 4, err);
	if (ret == 0)
		ret = scan_table(n, s, false, &nr, err);
	return ret == 0 ? budget_expansion(budget, n->path, nr * shape->block_bytes, file_bytes, err) : ret;
}

static int open_blocks(struct node *n, struct vhd_state *s, const struct driver_open *args, struct img_error *err)
{
	struct blockmap_shape shape;
	int ret = vhd_header_load(n->file, &s->foot, &s->head, err);

	if (ret == 0 && vhd_footer_type(&s->foot.f) == VHD_DIFFERENCING) {
		s->names_parent = true;
		ret = vhd_parent_paths(n->file, &s->head.disk, &s->parent, err);
	}
	if (ret != 0)
		return ret;
	s->texts_limit = node_size(n->file);
	vhd_learn_structures(s);
	if (args->writable && !args->for_check)
		ret = judge_structures(n, s, err);
	if (ret != 0)
		return ret;
	vhd_shape(s, &shape);
	ret = blockmap_open(n, &shape, &vhd_block_ops, s, args, &s->bm, err);
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(n, s, args->budget, err);
	if (ret == 0 && args->writable && !args->for_check)
		ret = prepare_writer(n, s, args->budget, err);
	return ret;
}

/* Footers that are missing, or say different things, before anything else changes. */
static int put_right(struct node *n, struct vhd_state *s, struct img_error *err)
{
	const struct vhd_footers *foot = &s->foot;

	if (foot->tail == VHD_GOOD && foot->tail_bytes == VHD_SECTOR_BYTES && !foot->differ &&
	    (!s->bm || foot->head == VHD_GOOD))
		return 0;
	vhd_footer_seal(&s->foot.f);
	/* Growing a fixed disk was interrupted where there is none: the longer file is not recognised by others. */
	return vhd_write_footers(s, n->file,
				 s->bm			  ? blockmap_end(s->bm) :
				 foot->tail == VHD_ABSENT ? vhd_footer_size(&s->foot.f) :
							    foot->tail_off,
				 err);
}

/* What a crash left behind everything else goes, if the table is short enough to be looked at and says so. */
static int trim(struct node *n, struct vhd_state *s, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	struct blockmap_shape now;
	uint64_t end;
	int ret;

	if (shape->nr_blocks > TRIM_BLOCKS_MAX || vhd_content_end(s, &end, NULL) != 0 ||
	    end + shape->prefix_bytes + shape->block_bytes > blockmap_end(s->bm))
		return 0;
	ret = vhd_write_tail(s, n->file, end, err);
	if (ret != 0)
		return ret;
	vhd_shape(s, &now);
	return blockmap_reshape(s->bm, &now, err);
}

int vhd_open(struct node *n, const struct driver_open *args, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: a VHD has no snapshots, so there is no '%s'", n->path, args->snapshot);
	pthread_mutex_init(&s->still, NULL);
	ret = vhd_footers_load(n->file, &s->foot, err);
	if (ret == 0 && s->foot.stale && args->writable && !args->for_check)
		ret = error_set(
			err, IMG_E_CORRUPT, 0, s->foot.tail_off, LAYER,
			"%s: the footer's checksum does not hold, so that the image can only be read: run imgtool "
			"check --repair if it reads right",
			n->path);
	s->writable = args->writable;
	s->check_only = args->for_check;
	s->bulk = args->bulk;
	if (ret == 0 && !vhd_is_fixed(s))
		ret = open_blocks(n, s, args, err);
	if (ret == 0)
		atomic_store(&s->disk_bytes, vhd_footer_size(&s->foot.f));
	if (ret == 0 && args->writable && !args->for_check)
		ret = put_right(n, s, err);
	if (ret == 0 && args->writable && !args->for_check && s->bm)
		ret = trim(n, s, err);
	if (ret != 0) {
		blockmap_free(s->bm);
		s->bm = NULL;
		pthread_mutex_destroy(&s->still);
	}
	return ret;
}

/* What failed writes left behind everything else goes; it is no fault if it cannot. */
static int close_blocks(struct node *n, struct vhd_state *s, struct img_error *err)
{
	uint64_t end;
	int ret = blockmap_finish(s->bm, err);

	if (ret != 0 || !blockmap_lost_places(s->bm) || blockmap_stop(s->bm, NULL) != 0)
		return ret;
	if (vhd_content_end(s, &end, NULL) == 0 && end < blockmap_end(s->bm))
		(void)vhd_write_tail(s, n->file, end, NULL);
	blockmap_start(s->bm);
	return 0;
}

int vhd_close(struct node *n, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret = 0;

	if (s->bm && s->writable && !s->check_only)
		ret = close_blocks(n, s, err);
	else if (!s->bm && s->writable && atomic_load(&s->dirty))
		ret = node_flush(n->file, 0, err);
	blockmap_free(s->bm);
	s->bm = NULL;
	pthread_mutex_destroy(&s->still);
	return ret;
}

int vhd_stop(struct vhd_state *s, struct img_error *err)
{
	int ret;

	pthread_mutex_lock(&s->still);
	ret = s->bm ? blockmap_stop(s->bm, err) : 0;
	if (ret != 0)
		pthread_mutex_unlock(&s->still);
	return ret;
}

void vhd_start(struct vhd_state *s)
{
	if (s->bm)
		blockmap_start(s->bm);
	pthread_mutex_unlock(&s->still);
}

int vhd_may_change(struct node *n, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);

	if (s->bm)
		return blockmap_may_change(s->bm, err);
	if (!s->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "the image is open read-only");
	if (atomic_load(&s->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again");
	return 0;
}

void vhd_break(struct vhd_state *s)
{
	atomic_store(&s->broken, true);
	if (s->bm)
		blockmap_break(s->bm);
}

int vhd_write_head(struct vhd_state *s, struct node *file, struct img_error *err)
{
	int ret = 0;

	if (vhd_is_fixed(s))
		return 0;
	ret = node_pwrite(file, &s->foot.f, sizeof(s->foot.f), 0, 0, err);
	if (ret == 0)
		ret = node_flush(file, 0, err);
	if (ret == 0)
		s->foot.head = VHD_GOOD;
	return ret;
}

int vhd_write_tail(struct vhd_state *s, struct node *file, uint64_t end, struct img_error *err)
{
	int ret = node_pwrite(file, &s->foot.f, sizeof(s->foot.f), end, 0, err);

	if (ret == 0)
		ret = node_flush(file, 0, err);
	/* The new end is there before the old one goes. */
	if (ret == 0 && node_size(file) != end + sizeof(s->foot.f)) {
		ret = node_resize(file, end + sizeof(s->foot.f), err);
		if (ret == 0)
			ret = node_flush(file, 0, err);
	}
	if (ret != 0)
		return ret;
	s->foot.tail = VHD_GOOD;
	s->foot.tail_off = end;
	s->foot.tail_bytes = sizeof(s->foot.f);
	s->foot.differ = s->foot.stale = false;
	return 0;
}

int vhd_write_footers(struct vhd_state *s, struct node *file, uint64_t end, struct img_error *err)
{
	int ret = vhd_write_head(s, file, err);

	return ret == 0 ? vhd_write_tail(s, file, end, err) : ret;
}
