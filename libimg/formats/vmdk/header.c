/* SPDX-License-Identifier: MIT */
/*
 * The header of a sparse extent. It has no checksum: what it says is checked against itself here, and against the file
 * by vmdk_header_judge(). Rules: VMDK-1 to VMDK-5.
 */
#include <inttypes.h>
#include <string.h>

#include "vmdk.h"

/* A directory of a disk of 2^63 bytes in tables of 1 GiB; who wants more has no disk in mind. */
#define TABLES_MAX (UINT64_C(1) << 28)

static int bad(const char *path, uint64_t off, const char *what, uint64_t value, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the header of the extent %s (0x%" PRIx64 ")", path,
			 what, value);
}

/* Sectors to bytes. */
static bool too_far(struct le64 sectors, uint64_t *bytes)
{
	return mul_overflows(le64_get(sectors), VMDK_SECTOR_BYTES, bytes) || *bytes > INT64_MAX;
}

static int check_kind(const struct vmdk_header *h, const struct disk_vmdk_header *d, uint64_t at, const char *path,
		      struct img_error *err)
{
	uint32_t unknown = h->flags & VMDK_FLAGS_INCOMPATIBLE & ~(uint32_t)(VMDK_COMPRESSED | VMDK_MARKERS);

	if (h->version < 1 || h->version > VMDK_VERSION_MAX)
		return error_set(err, IMG_E_UNSUPPORTED, 0, at + offsetof(struct disk_vmdk_header, version), LAYER,
				 "%s: a sparse extent of version %" PRIu32 " (known are 1 to 3)", path, h->version);
	if (unknown)
		return error_set(err, IMG_E_UNSUPPORTED, 0, at + offsetof(struct disk_vmdk_header, flags), LAYER,
				 "%s: the extent uses unknown features (flags 0x%" PRIx32 ")", path, h->flags);
	if (h->flags & VMDK_NEWLINES_VALID && memcmp(d->newlines, VMDK_NEWLINES, sizeof(d->newlines)) != 0)
		return error_set(err, IMG_E_CORRUPT, 0, at + offsetof(struct disk_vmdk_header, newlines), LAYER,
				 "%s: line ends were changed: the file was transferred as text; transfer it again as "
				 "binary data",
				 path);
	if (h->flags & VMDK_COMPRESSED && h->compression != VMDK_DEFLATE)
		return error_set(err, IMG_E_UNSUPPORTED, 0, at + offsetof(struct disk_vmdk_header, compression), LAYER,
				 "%s: grains are compressed by an unknown method (%u)", path, (unsigned)h->compression);
	return 0;
}

int vmdk_header_count(struct vmdk_header *h, const char *path, struct img_error *err)
{
	uint64_t table_bytes = h->grain_bytes * h->nr_gtes;

	h->nr_grains = h->capacity_bytes / h->grain_bytes + (h->capacity_bytes % h->grain_bytes != 0);
	h->nr_tables = h->capacity_bytes / table_bytes + (h->capacity_bytes % table_bytes != 0);
	if (h->nr_tables > TABLES_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "%s: a disk of 0x%" PRIx64 " bytes in grains of 0x%" PRIx64 " has too many tables",
				 path, h->capacity_bytes, h->grain_bytes);
	return 0;
}

int vmdk_header_decode(const struct disk_vmdk_header *d, uint64_t at, const char *path, struct vmdk_header *out,
		       struct img_error *err)
{
	struct vmdk_header *h = out;
	int ret;

	memset(h, 0, sizeof(*h));
	if (memcmp(d->magic, VMDK_MAGIC, sizeof(d->magic)) != 0)
		return bad(path, at, "is missing", le32_at(d->magic, 0), err);
	h->version = le32_get(d->version);
	h->flags = le32_get(d->flags);
	h->compression = h->flags & VMDK_COMPRESSED ? le16_get(d->compression) : 0;
	h->unclean = d->unclean != 0;
	ret = check_kind(h, d, at, path, err);
	if (ret != 0)
		return ret;
	if (too_far(d->capacity, &h->capacity_bytes))
		return bad(path, at + offsetof(struct disk_vmdk_header, capacity), "has a capacity of too many sectors",
			   le64_get(d->capacity), err);
	if (too_far(d->grain, &h->grain_bytes) || h->grain_bytes < VMDK_GRAIN_MIN || h->grain_bytes > VMDK_GRAIN_MAX ||
	    h->grain_bytes & (h->grain_bytes - 1))
		return bad(path, at + offsetof(struct disk_vmdk_header, grain), "asks for grains of no possible size",
			   le64_get(d->grain), err);
	h->nr_gtes = le32_get(d->nr_gtes);
	if (h->nr_gtes == 0 || h->nr_gtes > VMDK_GTES_MAX || h->nr_gtes & (h->nr_gtes - 1))
		return bad(path, at + offsetof(struct disk_vmdk_header, nr_gtes),
			   "asks for grain tables of no possible length", h->nr_gtes, err);
	if (too_far(d->descriptor_off, &h->descriptor_off) || too_far(d->descriptor_sectors, &h->descriptor_bytes))
		return bad(path, at + offsetof(struct disk_vmdk_header, descriptor_off),
			   "has its descriptor out of all bounds", le64_get(d->descriptor_off), err);
	if (h->descriptor_off == 0 || h->descriptor_bytes == 0)
		h->descriptor_off = h->descriptor_bytes = 0;
	h->gd_off = VMDK_AT_END;
	if (le64_get(d->gd_off) != VMDK_AT_END && too_far(d->gd_off, &h->gd_off))
		return bad(path, at + offsetof(struct disk_vmdk_header, gd_off), "has its directory out of all bounds",
			   le64_get(d->gd_off), err);
	if (h->flags & VMDK_RGD_VALID && too_far(d->rgd_off, &h->rgd_off))
		return bad(path, at + offsetof(struct disk_vmdk_header, rgd_off),
			   "has its second directory out of all bounds", le64_get(d->rgd_off), err);
	/* Informative; what writers put there is not always true. */
	if (too_far(d->overhead, &h->overhead_bytes))
		h->overhead_bytes = 0;
	return vmdk_header_count(h, path, err);
}

int vmdk_header_load(struct node *file, uint64_t at, struct vmdk_header *out, struct img_error *err)
{
	struct disk_vmdk_header d;
	int ret;

	if (!range_inside(at, sizeof(d), node_size(file)))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: the file ends before the header of the extent does", file->path);
	ret = node_pread(file, &d, sizeof(d), at, 0, err);
	return ret == 0 ? vmdk_header_decode(&d, at, file->path, out, err) : ret;
}

static int judge_range(const char *path, const char *what, uint64_t off, uint64_t bytes, uint64_t file_bytes,
		       struct img_error *err)
{
	if (off >= VMDK_SECTOR_BYTES && range_inside(off, bytes, file_bytes))
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
			 "%s: %s of 0x%" PRIx64 " bytes lies outside the file of 0x%" PRIx64, path, what, bytes,
			 file_bytes);
}

int vmdk_header_judge(const struct vmdk_header *h, uint64_t file_bytes, const char *path, struct img_error *err)
{
	uint64_t bytes = h->nr_tables * VMDK_GDE_BYTES;
	int ret = 0;

	if (h->gd_off != VMDK_AT_END)
		ret = judge_range(path, "the grain directory", h->gd_off, bytes, file_bytes, err);
	if (ret == 0 && h->rgd_off != 0)
		ret = judge_range(path, "the second grain directory", h->rgd_off, bytes, file_bytes, err);
	/* Its end may be missing where nothing else follows; the text ends with the file then. */
	if (ret == 0 && h->descriptor_bytes > 0)
		ret = judge_range(path, "the descriptor", h->descriptor_off, 1, file_bytes, err);
	return ret;
}

static struct le64 sectors(uint64_t bytes)
{
	return le64_of(bytes == VMDK_AT_END ? VMDK_AT_END : bytes / VMDK_SECTOR_BYTES);
}

void vmdk_header_encode(const struct vmdk_header *h, struct disk_vmdk_header *out)
{
	memset(out, 0, sizeof(*out));
	memcpy(out->magic, VMDK_MAGIC, sizeof(out->magic));
	out->version = le32_of(h->version);
	out->flags = le32_of(h->flags);
	out->capacity = sectors(h->capacity_bytes);
	out->grain = sectors(h->grain_bytes);
	out->descriptor_off = sectors(h->descriptor_off);
	out->descriptor_sectors = sectors(h->descriptor_bytes);
	out->nr_gtes = le32_of(h->nr_gtes);
	out->rgd_off = sectors(h->rgd_off);
	out->gd_off = sectors(h->gd_off);
	out->overhead = sectors(h->overhead_bytes);
	out->unclean = h->unclean;
	memcpy(out->newlines, VMDK_NEWLINES, sizeof(out->newlines));
	out->compression = le16_of(h->compression);
}
