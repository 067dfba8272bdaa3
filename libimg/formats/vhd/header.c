/* SPDX-License-Identifier: MIT */
/* The dynamic disk header: how large blocks are, and where their table lies. It has no copy, so its checksum must hold
 * (VHD-5). */
#include <inttypes.h>
#include <string.h>

#include "vhd.h"

static uint32_t header_checksum(const struct disk_vhd_header *h)
{
	return vhd_checksum(h, sizeof(*h), offsetof(struct disk_vhd_header, checksum));
}

uint32_t vhd_bitmap_bytes(uint32_t block_bytes)
{
	return (uint32_t)round_up(block_bytes / VHD_SECTOR_BYTES / 8, VHD_SECTOR_BYTES);
}

uint64_t vhd_table_bytes(uint64_t entries)
{
	return round_up(entries * 4, VHD_SECTOR_BYTES);
}

static int bad(struct node *file, uint64_t off, const char *what, uint64_t value, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the dynamic disk header %s (0x%" PRIx64 ")",
			 file->path, what, value);
}

static int check_header(struct node *file, const struct vhd_footers *foot, const struct vhd_header *h,
			struct img_error *err)
{
	uint64_t disk = vhd_footer_size(&foot->f), end = node_size(file);
	uint64_t table = (uint64_t)h->max_entries * 4;

	if (be32_get(h->disk.version) >> 16 != VHD_VERSION >> 16)
		return error_set(err, IMG_E_UNSUPPORTED, 0, h->off, LAYER,
				 "%s: dynamic disk header of version 0x%" PRIx32, file->path,
				 be32_get(h->disk.version));
	if (h->block_bytes & (h->block_bytes - 1) || h->block_bytes < VHD_BLOCK_MIN_BYTES ||
	    h->block_bytes > VHD_BLOCK_MAX_BYTES)
		return bad(file, h->off, "asks for blocks of no possible size", h->block_bytes, err);
	if ((uint64_t)h->max_entries * h->block_bytes < disk)
		return bad(file, h->off, "has a table that is shorter than the disk", h->max_entries, err);
	if (h->table_off < VHD_SECTOR_BYTES || !range_inside(h->table_off, table, end))
		return bad(file, h->off, "has a table that lies outside the file", h->table_off, err);
	if (h->table_off < h->off + sizeof(h->disk) && h->off < h->table_off + table)
		return bad(file, h->off, "lies in its own table", h->table_off, err);
	return 0;
}

int vhd_header_load(struct node *file, const struct vhd_footers *foot, struct vhd_header *out, struct img_error *err)
{
	int ret;

	memset(out, 0, sizeof(*out));
	out->off = be64_get(foot->f.data_off);
	if (out->off < VHD_SECTOR_BYTES || out->off % VHD_SECTOR_BYTES != 0 ||
	    !range_inside(out->off, sizeof(out->disk), node_size(file)))
		return bad(file, NO_OFFSET, "is where it cannot be", out->off, err);
	ret = node_pread(file, &out->disk, sizeof(out->disk), out->off, 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(out->disk.cookie, VHD_HEADER_COOKIE, sizeof(out->disk.cookie)) != 0)
		return bad(file, out->off, "is missing", out->off, err);
	if (be32_get(out->disk.checksum) != header_checksum(&out->disk))
		return bad(file, out->off, "is damaged: its checksum does not hold", be32_get(out->disk.checksum), err);
	out->table_off = be64_get(out->disk.table_off);
	out->max_entries = be32_get(out->disk.max_entries);
	out->block_bytes = be32_get(out->disk.block_bytes);
	return check_header(file, foot, out, err);
}

void vhd_header_init(struct vhd_header *h, uint64_t table_off, uint32_t max_entries, uint32_t block_bytes)
{
	memset(h, 0, sizeof(*h));
	memcpy(h->disk.cookie, VHD_HEADER_COOKIE, sizeof(h->disk.cookie));
	h->disk.data_off = be64_of(VHD_NO_DATA_OFF);
	h->disk.version = be32_of(VHD_VERSION);
	h->off = VHD_HEADER_OFF;
	h->table_off = table_off;
	h->max_entries = max_entries;
	h->block_bytes = block_bytes;
}

void vhd_header_seal(struct vhd_header *h)
{
	h->disk.table_off = be64_of(h->table_off);
	h->disk.max_entries = be32_of(h->max_entries);
	h->disk.block_bytes = be32_of(h->block_bytes);
	h->disk.checksum = be32_of(header_checksum(&h->disk));
}
