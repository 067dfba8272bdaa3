/* SPDX-License-Identifier: MIT */
/*
 * COWD extents: the delta disks of ESX on VMFS before version 6 (createType vmfsSparse). Read only: a header, one
 * directory, tables of 4,096 entries of 32 bits; grains of one sector, usually.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

#define COWD_GRAIN_MAX (1u << 20)

/* ---- what both kinds of ESX have in common ----------------------------------------------------------------------- */

int vmdk_esx_locate(struct blockmap *bm, uint64_t page, bool make, uint64_t *off, struct img_error *err)
{
	const struct vmdk_esx *e = blockmap_format(bm);

	(void)make; /* nobody writes */
	(void)err;
	*off = page < e->nr_tables ? e->place[page] : 0;
	return 0;
}

int vmdk_esx_blocks_open(struct vmdk_esx *e, struct node *node, const struct blockmap_shape *shape,
			 const struct blockmap_ops *ops, const struct driver_open *args, struct img_error *err)
{
	struct driver_open how = *args;
	uint64_t mapped = shape->nr_blocks * shape->block_bytes, tables = 0;
	int ret;

	how.writable = false;
	/* Without looking at each entry: no more than the tables that are there can map. */
	for (uint64_t i = 0; i < e->nr_tables; i++)
		tables += e->place[i] != 0;
	mapped = min_u64(mapped, tables * (shape->page_bytes / shape->entry_bytes) * shape->block_bytes);
	ret = blockmap_open(node, shape, ops, e, &how, &e->bm, err);
	if (ret != 0 || budget_expansion_fits(args->budget, mapped, node_size(e->file)))
		return ret;
	mapped = 0;
	for (uint64_t b = 0; b < shape->nr_blocks && ret == 0; b++) {
		struct blockmap_entry entry;
		int got;

		if (e->place[b / (shape->page_bytes / shape->entry_bytes)] == 0) {
			b += shape->page_bytes / shape->entry_bytes - 1;
			continue;
		}
		got = blockmap_get(e->bm, b, &entry, NULL);
		mapped += got == 0 && entry.state == BLOCKMAP_DATA ? shape->block_bytes : 0;
		if (got != 0 && got != IMG_E_CORRUPT)
			ret = error_set(err, got, 0, NO_OFFSET, LAYER, "%s: cannot read its tables", e->file->path);
	}
	return ret == 0 ? budget_expansion(args->budget, e->file->path, mapped, node_size(e->file), err) : ret;
}

struct blockmap *vmdk_esx_blocks(struct vmdk_esx *e)
{
	return e->bm;
}

void vmdk_esx_close(struct vmdk_esx *e)
{
	if (!e)
		return;
	blockmap_free(e->bm);
	free(e->place);
	free(e);
}

/* ---- COWD -------------------------------------------------------------------------------------------------------- */

static int bad(struct node *file, uint64_t off, const char *what, uint64_t value, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the header of the COWD extent %s (0x%" PRIx64 ")",
			 file->path, what, value);
}

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	uint32_t entry = le32_at(raw, 0);

	(void)bm;
	(void)block;
	(void)err;
	out->state = entry ? BLOCKMAP_DATA : BLOCKMAP_FREE;
	out->off = (uint64_t)entry * VMDK_SECTOR_BYTES;
	return 0;
}

/* Pages that are nowhere are made of these; nothing else is encoded. */
static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	(void)bm;
	(void)block;
	(void)entry;
	memset(raw, 0, VMDK_GTE_BYTES);
}

static const struct blockmap_ops ops = { .decode = decode, .encode = encode, .locate = vmdk_esx_locate };

static int load_directory(struct vmdk_esx *e, uint64_t off, struct budget *budget, struct img_error *err)
{
	struct le32 *d;
	int ret;

	if (off < sizeof(struct disk_cowd_header) || !range_inside(off, e->nr_tables * sizeof(*d), node_size(e->file)))
		return bad(e->file, offsetof(struct disk_cowd_header, gd_off), "has a directory outside the file", off,
			   err);
	ret = budget_metadata(budget, e->file->path, e->nr_tables * (sizeof(*d) + sizeof(*e->place)), err);
	if (ret != 0)
		return ret;
	d = malloc((size_t)e->nr_tables * sizeof(*d) + 1);
	e->place = malloc((size_t)e->nr_tables * sizeof(*e->place) + 1);
	ret = d && e->place ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (ret == 0)
		ret = node_pread(e->file, d, e->nr_tables * sizeof(*d), off, 0, err);
	for (uint64_t i = 0; ret == 0 && i < e->nr_tables; i++)
		e->place[i] = (uint64_t)le32_get(d[i]) * VMDK_SECTOR_BYTES;
	free(d);
	return ret;
}

static int open_extent(struct vmdk_esx *e, struct node *node, uint64_t bytes, uint64_t disk_off,
		       const struct driver_open *args, struct img_error *err)
{
	struct disk_cowd_header h;
	struct blockmap_shape shape;
	uint64_t capacity, grain;
	int ret;

	if (node_size(e->file) < sizeof(h))
		return bad(e->file, 0, "is cut off", node_size(e->file), err);
	ret = node_pread(e->file, &h, sizeof(h), 0, 0, err);
	if (ret != 0)
		return ret;
	capacity = (uint64_t)le32_get(h.capacity) * VMDK_SECTOR_BYTES;
	grain = (uint64_t)le32_get(h.grain) * VMDK_SECTOR_BYTES;
	if (memcmp(h.magic, COWD_MAGIC, sizeof(h.magic)) != 0)
		return bad(e->file, 0, "is missing", le32_at(h.magic, 0), err);
	if (le32_get(h.version) != 1)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 4, LAYER, "%s: a COWD extent of version %" PRIu32,
				 e->file->path, le32_get(h.version));
	if (grain == 0 || grain > COWD_GRAIN_MAX)
		return bad(e->file, 16, "asks for grains of no possible size", le32_get(h.grain), err);
	if (capacity < bytes)
		return bad(e->file, 12, "has less than the descriptor says", le32_get(h.capacity), err);
	e->nr_tables = (capacity / grain + (capacity % grain != 0) + COWD_GTES - 1) / COWD_GTES;
	if (le32_get(h.nr_gdes) < e->nr_tables)
		return bad(e->file, 24, "has a directory that is too short", le32_get(h.nr_gdes), err);
	ret = load_directory(e, (uint64_t)le32_get(h.gd_off) * VMDK_SECTOR_BYTES, args->budget, err);
	if (ret != 0)
		return ret;
	shape = (struct blockmap_shape){
		.disk_bytes = capacity,
		.block_bytes = grain,
		.nr_blocks = capacity / grain + (capacity % grain != 0),
		.nr_slots = e->nr_tables * COWD_GTES,
		.entry_bytes = VMDK_GTE_BYTES,
		.page_bytes = COWD_GTES * VMDK_GTE_BYTES,
		.file = e->file,
		.disk_off = disk_off,
	};
	return vmdk_esx_blocks_open(e, node, &shape, &ops, args, err);
}

int vmdk_cowd_open(struct node *node, struct node *file, uint64_t bytes, uint64_t disk_off,
		   const struct driver_open *args, struct vmdk_esx **out, struct img_error *err)
{
	struct vmdk_esx *e = calloc(1, sizeof(*e));
	int ret;

	*out = NULL;
	if (!e)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	e->file = file;
	ret = open_extent(e, node, bytes, disk_off, args, err);
	if (ret != 0) {
		vmdk_esx_close(e);
		return ret;
	}
	*out = e;
	return 0;
}
