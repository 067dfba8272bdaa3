/* SPDX-License-Identifier: MIT */
/*
 * seSparse extents: the delta disks of ESX on VMFS 6, and of disks above 2 TiB. Read only. A constant header says where
 * everything is; directory and tables have entries of 64 bits. A journal that ESX did not replay may hold newer tables
 * than those in place, and its layout is not known: such an extent is refused (VMDK-21).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

#define GTES		(SESPARSE_TABLE_SECTORS * VMDK_SECTOR_BYTES / SESPARSE_ENTRY_BYTES)
#define GRAIN_BYTES	((uint64_t)SESPARSE_GRAIN_SECTORS * VMDK_SECTOR_BYTES)
#define TABLE_BYTES	((uint64_t)SESPARSE_TABLE_SECTORS * VMDK_SECTOR_BYTES)
#define GDE_ALLOCATED	UINT64_C(0x1000000000000000)
#define GDE_HIGH	UINT64_C(0xffffffff00000000)
#define GTE_KIND	UINT64_C(0xf000000000000000)
#define GTE_UNALLOCATED UINT64_C(0x0000000000000000)
#define GTE_FALLTHROUGH UINT64_C(0x1000000000000000)
#define GTE_ZERO	UINT64_C(0x2000000000000000)
#define GTE_ALLOCATED	UINT64_C(0x3000000000000000)
/* The number of a grain: its lowest 12 bits stand above the others. */
#define GTE_LOW	       UINT64_C(0x0fff000000000000)
#define GTE_LOW_SHIFT  48
#define GTE_HIGH       UINT64_C(0x0000ffffffffffff)
#define GTE_HIGH_SHIFT 12

static int bad(struct node *file, uint64_t off, const char *what, uint64_t value, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the header of the seSparse extent %s (0x%" PRIx64 ")",
			 file->path, what, value);
}

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	const struct vmdk_esx *e = blockmap_format(bm);
	uint64_t entry = le64_at(raw, 0);
	uint64_t grain = (entry & GTE_LOW) >> GTE_LOW_SHIFT | (entry & GTE_HIGH) << GTE_HIGH_SHIFT;

	(void)block;
	switch (entry & GTE_KIND) {
	case GTE_UNALLOCATED:
		if (entry != 0)
			break;
		out->state = BLOCKMAP_FREE;
		return 0;
	case GTE_FALLTHROUGH: out->state = BLOCKMAP_FREE; return 0;
	case GTE_ZERO: out->state = BLOCKMAP_ZERO; return 0;
	case GTE_ALLOCATED:
		if (mul_overflows(grain, GRAIN_BYTES, &out->off) || add_overflows(out->off, e->grains_off, &out->off) ||
		    out->off > INT64_MAX)
			break;
		out->state = BLOCKMAP_DATA;
		return 0;
	default: break;
	}
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "is 0x%" PRIx64 ", which makes no sense", entry);
}

/* Pages that are nowhere are made of these; nothing else is encoded. */
static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	(void)bm;
	(void)block;
	(void)entry;
	memset(raw, 0, SESPARSE_ENTRY_BYTES);
}

static const struct blockmap_ops ops = { .decode = decode, .encode = encode, .locate = vmdk_esx_locate };

/* An area of the header, in bytes, inside the file. */
static int area(struct node *file, const struct disk_sesparse_area *a, const char *what, uint64_t *off, uint64_t *bytes,
		struct img_error *err)
{
	if (mul_overflows(le64_get(a->off), VMDK_SECTOR_BYTES, off) ||
	    mul_overflows(le64_get(a->sectors), VMDK_SECTOR_BYTES, bytes) || *off < VMDK_SECTOR_BYTES ||
	    *off > node_size(file))
		return bad(file, 0, what, le64_get(a->off), err);
	return 0;
}

static int check_kind(struct node *file, const struct disk_sesparse_header *h, struct img_error *err)
{
	if (le64_get(h->magic) != SESPARSE_MAGIC)
		return bad(file, 0, "is missing", le64_get(h->magic), err);
	if (le64_get(h->version) != SESPARSE_VERSION)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 8, LAYER, "%s: a seSparse extent of version 0x%" PRIx64,
				 file->path, le64_get(h->version));
	if (le64_get(h->grain) != SESPARSE_GRAIN_SECTORS || le64_get(h->table_sectors) != SESPARSE_TABLE_SECTORS)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 24, LAYER,
				 "%s: a seSparse extent with grains of %" PRIu64 " and tables of %" PRIu64
				 " sectors (known are 8 and 64)",
				 file->path, le64_get(h->grain), le64_get(h->table_sectors));
	if (le64_get(h->flags) != 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 40, LAYER,
				 "%s: the seSparse extent uses unknown features (flags 0x%" PRIx64 ")", file->path,
				 le64_get(h->flags));
	return 0;
}

static int check_journal(struct node *file, const struct disk_sesparse_header *h, bool for_check, struct img_error *err)
{
	struct disk_sesparse_volatile v;
	uint64_t off, bytes;
	int ret = area(file, &h->volatile_header, "has its second header outside the file", &off, &bytes, err);

	if (ret == 0 && !range_inside(off, sizeof(v), node_size(file)))
		ret = bad(file, 80, "has its second header outside the file", off, err);
	if (ret == 0)
		ret = node_pread(file, &v, sizeof(v), off, 0, err);
	if (ret != 0)
		return ret;
	if (le64_get(v.magic) != SESPARSE_VOLATILE_MAGIC)
		return bad(file, off, "has a second header that is none", le64_get(v.magic), err);
	if (le64_get(v.replay) != 0 && !for_check)
		return error_set(err, IMG_E_UNSUPPORTED, 0, off + 24, LAYER,
				 "%s: the seSparse extent has a journal to be replayed, which only ESX can do: open it "
				 "there once",
				 file->path);
	return 0;
}

static int load_directory(struct vmdk_esx *e, uint64_t off, uint64_t bytes, uint64_t tables_off, uint64_t tables_bytes,
			  struct budget *budget, struct img_error *err)
{
	struct le64 *d;
	int ret;

	if (bytes / sizeof(*d) < e->nr_tables || !range_inside(off, e->nr_tables * sizeof(*d), node_size(e->file)))
		return bad(e->file, 128, "has a directory that is too short", bytes, err);
	ret = budget_metadata(budget, e->file->path, 2 * e->nr_tables * sizeof(*d), err);
	if (ret != 0)
		return ret;
	d = vmdk_new_array(e->nr_tables, sizeof(*d));
	e->place = vmdk_new_array(e->nr_tables, sizeof(*e->place));
	ret = d && e->place ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (ret == 0)
		ret = node_pread(e->file, d, e->nr_tables * sizeof(*d), off, 0, err);
	for (uint64_t i = 0; ret == 0 && i < e->nr_tables; i++) {
		uint64_t entry = le64_get(d[i]), at = (entry & ~GDE_HIGH) * TABLE_BYTES;

		if (entry == 0)
			continue;
		if ((entry & GDE_HIGH) != GDE_ALLOCATED || !range_inside(at, TABLE_BYTES, tables_bytes))
			ret = error_set(err, IMG_E_CORRUPT, 0, off + i * sizeof(*d), LAYER,
					"%s: entry %" PRIu64 " of the directory makes no sense (0x%" PRIx64 ")",
					e->file->path, i, entry);
		e->place[i] = tables_off + at;
	}
	free(d);
	return ret;
}

static int open_extent(struct vmdk_esx *e, struct node *node, uint64_t bytes, uint64_t disk_off,
		       const struct driver_open *args, struct img_error *err)
{
	struct disk_sesparse_header h;
	struct blockmap_shape shape;
	uint64_t capacity, gd_off, gd_bytes, gt_off, gt_bytes, grains_bytes;
	int ret;

	if (node_size(e->file) < sizeof(h))
		return bad(e->file, 0, "is cut off", node_size(e->file), err);
	ret = node_pread(e->file, &h, sizeof(h), 0, 0, err);
	if (ret == 0)
		ret = check_kind(e->file, &h, err);
	if (ret == 0)
		ret = check_journal(e->file, &h, args->for_check, err);
	if (ret == 0)
		ret = area(e->file, &h.directory, "has its directory outside the file", &gd_off, &gd_bytes, err);
	if (ret == 0)
		ret = area(e->file, &h.tables, "has its tables outside the file", &gt_off, &gt_bytes, err);
	if (ret == 0)
		ret = area(e->file, &h.grains, "has its grains outside the file", &e->grains_off, &grains_bytes, err);
	if (ret != 0)
		return ret;
	if (mul_overflows(le64_get(h.capacity), VMDK_SECTOR_BYTES, &capacity) || capacity > INT64_MAX ||
	    capacity < bytes)
		return bad(e->file, 16, "has another size than the descriptor says", le64_get(h.capacity), err);
	e->nr_tables = (capacity - 1) / (GRAIN_BYTES * GTES) + 1;
	ret = load_directory(e, gd_off, gd_bytes, gt_off, gt_bytes, args->budget, err);
	if (ret != 0)
		return ret;
	shape = (struct blockmap_shape){
		.disk_bytes = capacity,
		.block_bytes = GRAIN_BYTES,
		.nr_blocks = (capacity - 1) / GRAIN_BYTES + 1,
		.nr_slots = e->nr_tables * GTES,
		.entry_bytes = SESPARSE_ENTRY_BYTES,
		.page_bytes = (uint32_t)TABLE_BYTES,
		.file = e->file,
		.disk_off = disk_off,
		.has_zero = true,
	};
	return vmdk_esx_blocks_open(e, node, &shape, &ops, args, err);
}

int vmdk_sesparse_open(struct node *node, struct node *file, uint64_t bytes, uint64_t disk_off,
		       const struct driver_open *args, struct vmdk_esx **out, struct img_error *err)
{
	struct vmdk_esx *e = calloc(1, sizeof(*e));
	int ret;

	*out = NULL;
	if (!e)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	e->file = file;
	ret = bytes > 0 ? open_extent(e, node, bytes, disk_off, args, err) :
			  error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "%s: an extent of no bytes", file->path);
	if (ret != 0) {
		vmdk_esx_close(e);
		return ret;
	}
	*out = e;
	return 0;
}
