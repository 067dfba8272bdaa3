/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing. A fixed disk is its file without the footer; any other one gets the block engine, and the
 * parent's name if it has one.
 *
 * New blocks go behind the footer: it is where everything ends. Where it is missing (a crash while the file grew) they
 * go behind the file's end, and what was allocated before and never entered into the table is leaked.
 */
#include <string.h>

#include "vhd.h"

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

/* Blocks that share their places are a bomb. Only where a file is small for its disk all entries have to be looked at. */
static int judge_expansion(struct node *n, const struct vhd_state *s, struct budget *budget, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	uint64_t file_bytes = node_size(n->file), nr = 0;
	struct blockmap_entry e;

	if (budget_expansion_fits(budget, shape->disk_bytes, file_bytes))
		return 0;
	for (uint64_t b = 0; b < shape->nr_blocks; b++) {
		struct img_error why = { .code = IMG_OK };
		int ret = blockmap_get(s->bm, b, &e, &why);

		/* What makes no sense leads to nothing. */
		if (ret != 0 && ret != IMG_E_CORRUPT) {
			if (err)
				*err = why;
			return ret;
		}
		nr += ret == 0 && e.state != BLOCKMAP_FREE;
	}
	return budget_expansion(budget, n->path, nr * shape->block_bytes, file_bytes, err);
}

static int open_blocks(struct node *n, struct vhd_state *s, const struct driver_open *args, struct img_error *err)
{
	struct blockmap_shape shape;
	int ret = vhd_header_load(n->file, &s->foot, &s->head, err);

	if (ret == 0 && vhd_footer_type(&s->foot.f) == VHD_DIFFERENCING) {
		s->names_parent = true;
		ret = vhd_parent_name(n->file, &s->head.disk, s->parent, err);
	}
	if (ret != 0)
		return ret;
	vhd_shape(s, &shape);
	ret = blockmap_open(n, &shape, &vhd_block_ops, s, args, &s->bm, err);
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(n, s, args->budget, err);
	return ret;
}

int vhd_open(struct node *n, const struct driver_open *args, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret;

	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: a VHD has no snapshots, so there is no '%s'", n->path, args->snapshot);
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
	/* Growing a fixed disk was interrupted: the longer file is not recognised by others. */
	if (ret == 0 && !s->bm && s->foot.tail == VHD_ABSENT && args->writable && !args->for_check)
		ret = vhd_write_footers(s, n->file, vhd_footer_size(&s->foot.f), err);
	if (ret != 0) {
		blockmap_free(s->bm);
		s->bm = NULL;
	}
	return ret;
}

int vhd_close(struct node *n, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	int ret = 0;

	if (s->bm && s->writable && !s->check_only)
		ret = blockmap_finish(s->bm, err);
	else if (!s->bm && s->writable && atomic_load(&s->dirty))
		ret = node_flush(n->file, 0, err);
	blockmap_free(s->bm);
	s->bm = NULL;
	return ret;
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
