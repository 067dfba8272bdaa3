/* SPDX-License-Identifier: MIT */
/*
 * Headers: of two copies the one with the higher sequence number counts, if its checksum holds; writers change them in
 * turn. Region tables: two copies that are the same; one that holds is enough. Regions and items stand in any order,
 * and what is not known is refused if it is marked as required. [MS-VHDX] 2.2 and 2.6.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "crc32c.h"
#include "is_zero.h"
#include "vhdx.h"

const uint8_t vhdx_guid_bat[16] = { 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
				    0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 };
const uint8_t vhdx_guid_metadata[16] = { 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
					 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };
const uint8_t vhdx_guid_parameters[16] = { 0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d,
					   0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b };
const uint8_t vhdx_guid_size[16] = { 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48,
				     0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 };
const uint8_t vhdx_guid_logical[16] = { 0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47,
					0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f };
const uint8_t vhdx_guid_physical[16] = { 0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44,
					 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56 };
const uint8_t vhdx_guid_page83[16] = { 0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45,
				       0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46 };
const uint8_t vhdx_guid_locator[16] = { 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45,
					0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c };

static bool is_guid(const uint8_t *a, const uint8_t *b)
{
	return memcmp(a, b, VHDX_GUID_BYTES) == 0;
}

void vhdx_guid_text(const uint8_t g[16], char out[40])
{
	(void)snprintf(out, 40, "{%08" PRIx32 "-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x}", le32_at(g, 0),
		       le16_at(g, 4), le16_at(g, 6), g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

uint32_t vhdx_sum(uint8_t *data, size_t bytes)
{
	uint8_t field[4];
	uint32_t sum;

	memcpy(field, data + 4, 4);
	memset(data + 4, 0, 4);
	sum = crc32c(0, data, bytes);
	memcpy(data + 4, field, 4);
	return sum;
}

static bool sum_holds(uint8_t *data, size_t bytes)
{
	return vhdx_sum(data, bytes) == le32_at(data, 4);
}

/* ---- headers ----------------------------------------------------------------------------------------------------- */

static int read_headers(struct node *file, struct disk_vhdx_header h[2], bool good[2], struct img_error *err)
{
	static const uint64_t place[2] = { VHDX_HEADER_A, VHDX_HEADER_B };

	for (unsigned i = 0; i < 2; i++) {
		int ret = node_pread(file, &h[i], sizeof(h[i]), place[i], 0, err);

		if (ret != 0)
			return ret;
		good[i] = memcmp(h[i].signature, "head", 4) == 0 && sum_holds((uint8_t *)&h[i], sizeof(h[i]));
	}
	return 0;
}

/* VHDX-2. Disk2vhd leaves both copies with one number; they are the same then. */
static int choose_header(struct disk_vhdx_header h[2], const bool good[2], unsigned *which, struct img_error *err)
{
	uint64_t a = le64_get(h[0].sequence), b = le64_get(h[1].sequence);

	if (!good[0] && !good[1])
		return error_set(err, IMG_E_CORRUPT, 0, VHDX_HEADER_A, LAYER, "neither copy of the header holds");
	*which = good[0] && (!good[1] || a >= b) ? 0 : 1;
	if (good[0] && good[1] && a == b && memcmp(&h[0], &h[1], sizeof(h[0])) != 0)
		return error_set(err, IMG_E_CORRUPT, 0, VHDX_HEADER_A, LAYER,
				 "both copies of the header have the number %" PRIu64 " and say different things", a);
	return 0;
}

bool vhdx_log_is_sane(const struct vhdx_header *h, uint64_t file_bytes)
{
	return h->log.off >= VHDX_MIB && h->log.off % VHDX_MIB == 0 && h->log.bytes % VHDX_MIB == 0 &&
	       h->log.bytes > 0 && range_inside(h->log.off, h->log.bytes, file_bytes);
}

static int judge_log(const struct vhdx_header *h, uint64_t file_bytes, struct img_error *err)
{
	if (h->needs_replay && !vhdx_log_is_sane(h, file_bytes))
		return error_set(err, IMG_E_CORRUPT, 0, VHDX_HEADER_A + 68, LAYER,
				 "the log of 0x%" PRIx64 " bytes at 0x%" PRIx64 " does not lie inside the file",
				 h->log.bytes, h->log.off);
	return 0;
}

int vhdx_header_load(struct node *file, struct vhdx_header *out, struct img_error *err)
{
	struct disk_vhdx_header *h;
	bool good[2];
	uint8_t magic[8];
	unsigned i = 0;
	int ret;

	if (node_size(file) < VHDX_MIB)
		return error_set(err, IMG_E_CORRUPT, 0, node_size(file), LAYER,
				 "shorter than the headers of a VHDX image");
	ret = node_pread(file, magic, sizeof(magic), 0, 0, err);
	if (ret == 0 && memcmp(magic, "vhdxfile", 8) != 0)
		ret = error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "no VHDX image");
	if (ret != 0)
		return ret;
	h = malloc(2 * sizeof(*h));
	if (!h)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = read_headers(file, h, good, err);
	if (ret == 0)
		ret = choose_header(h, good, &i, err);
	if (ret == 0 && (le16_get(h[i].version) != 1 || le16_get(h[i].log_version) != 0))
		ret = error_set(err, IMG_E_UNSUPPORTED, 0, VHDX_HEADER_A + 64, LAYER,
				"version %u with log version %u; 1 with 0 is known", le16_get(h[i].version),
				le16_get(h[i].log_version));
	if (ret == 0) {
		memcpy(out->file_write, h[i].file_write, 16);
		memcpy(out->data_write, h[i].data_write, 16);
		memcpy(out->log_guid, h[i].log, 16);
		out->log = (struct vhdx_range){ le64_get(h[i].log_off), le32_get(h[i].log_bytes) };
		out->needs_replay = !is_zero(h[i].log, 16);
		out->sequence = le64_get(h[i].sequence);
		out->which = i;
		out->bad_copy = !good[!i];
		ret = judge_log(out, node_size(file), err);
	}
	free(h);
	return ret;
}

int vhdx_header_store(struct node *file, struct vhdx_header *h, bool flush, struct img_error *err)
{
	struct disk_vhdx_header *d = calloc(1, sizeof(*d));
	unsigned which = !h->which;
	int ret;

	if (!d)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (h->sequence == UINT64_MAX) {
		free(d);
		return error_set(err, IMG_E_LIMIT, 0, VHDX_HEADER_A, LAYER,
				 "the header has been changed as often as its number can say: convert the image");
	}
	/* NOLINTNEXTLINE(bugprone-not-null-terminated-result): a signature is no string */
	memcpy(d->signature, "head", 4);
	d->sequence = le64_of(h->sequence + 1);
	memcpy(d->file_write, h->file_write, 16);
	memcpy(d->data_write, h->data_write, 16);
	memcpy(d->log, h->log_guid, 16);
	d->version = le16_of(1);
	d->log_off = le64_of(h->log.off);
	d->log_bytes = le32_of((uint32_t)h->log.bytes);
	d->checksum = le32_of(vhdx_sum((uint8_t *)d, sizeof(*d)));
	ret = node_pwrite(file, d, sizeof(*d), which ? VHDX_HEADER_B : VHDX_HEADER_A, 0, err);
	if (ret == 0 && flush)
		ret = node_flush(file, 0, err);
	if (ret == 0) {
		h->which = which;
		h->sequence++;
		h->bad_copy = false;
	}
	free(d);
	return ret;
}

void vhdx_uuid_of_guid(const uint8_t guid[16], uint8_t out[16])
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

	for (unsigned i = 0; i < 16; i++)
		out[i] = guid[order[i]];
}

int vhdx_guid_new(uint8_t guid[16], struct img_error *err)
{
	if (getrandom(guid, 16, 0) != 16)
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers for a GUID");
	guid[7] = (uint8_t)((guid[7] & 0x0f) | 0x40); /* version 4; the third group is little-endian */
	guid[8] = (uint8_t)((guid[8] & 0x3f) | 0x80);
	return 0;
}

/* ---- regions ----------------------------------------------------------------------------------------------------- */

static int take_region(const uint8_t *entry, uint64_t file_bytes, struct vhdx_meta *m, struct img_error *err)
{
	struct disk_vhdx_region d;
	struct vhdx_range r, *to = NULL;

	memcpy(&d, entry, sizeof(d));
	r = (struct vhdx_range){ le64_get(d.off), le32_get(d.bytes) };
	if (is_guid(d.guid, vhdx_guid_bat))
		to = &m->bat;
	else if (is_guid(d.guid, vhdx_guid_metadata))
		to = &m->metadata;
	else if (le32_get(d.required) & 1)
		return error_set(err, IMG_E_UNSUPPORTED, 0, VHDX_REGIONS_A, LAYER, "needs a region that is not known");
	if (r.off < VHDX_MIB || r.off % VHDX_MIB != 0 || r.bytes % VHDX_MIB != 0 || r.bytes == 0 ||
	    !range_inside(r.off, r.bytes, file_bytes))
		return error_set(err, IMG_E_CORRUPT, 0, VHDX_REGIONS_A, LAYER,
				 "a region of 0x%" PRIx64 " bytes at 0x%" PRIx64 " does not lie inside the file",
				 r.bytes, r.off);
	if (to && to->bytes != 0)
		return error_set(err, IMG_E_CORRUPT, 0, VHDX_REGIONS_A, LAYER, "a region is there twice");
	if (to)
		*to = r;
	return 0;
}

static bool overlap(const struct vhdx_range *a, const struct vhdx_range *b)
{
	return a->off < b->off + b->bytes && b->off < a->off + a->bytes;
}

int vhdx_regions_read(struct node *file, uint8_t *buf, bool good[2], struct img_error *err)
{
	static const uint64_t place[2] = { VHDX_REGIONS_A, VHDX_REGIONS_B };
	bool is_good = false;
	int ret = 0;

	for (unsigned i = 0; i < 2 && ret == 0 && !is_good; i++) {
		ret = node_pread(file, buf, VHDX_TABLE_BYTES, place[i], 0, err);
		is_good = ret == 0 && memcmp(buf, "regi", 4) == 0 && sum_holds(buf, VHDX_TABLE_BYTES);
		if (good)
			good[i] = is_good;
	}
	if (ret == 0 && (!is_good || le32_at(buf, offsetof(struct disk_vhdx_regions, nr)) > VHDX_ENTRIES_MAX))
		ret = error_set(err, IMG_E_CORRUPT, 0, VHDX_REGIONS_A, LAYER, "neither copy of the region table holds");
	return ret;
}

/* VHDX-3. buf: room for a table. */
static int load_regions(struct node *file, uint8_t *buf, struct vhdx_meta *m, struct img_error *err)
{
	uint32_t nr = 0;
	int ret = vhdx_regions_read(file, buf, NULL, err);

	if (ret == 0)
		nr = le32_at(buf, offsetof(struct disk_vhdx_regions, nr));
	for (uint32_t i = 0; i < nr && ret == 0; i++)
		ret = take_region(buf + sizeof(struct disk_vhdx_regions) + sizeof(struct disk_vhdx_region) * i,
				  node_size(file), m, err);
	if (ret == 0 && (m->bat.bytes == 0 || m->metadata.bytes == 0 || overlap(&m->bat, &m->metadata)))
		ret = error_set(err, IMG_E_CORRUPT, 0, VHDX_REGIONS_A, LAYER,
				"a region for blocks or for metadata is missing, or one lies over the other");
	return ret;
}

/* ---- metadata ---------------------------------------------------------------------------------------------------- */

enum { HAS_PARAMETERS = 1, HAS_SIZE = 2, HAS_SECTOR = 4, HAS_PHYSICAL = 8, HAS_PAGE83 = 16, HAS_LOCATOR = 32 };

/* Items by their GUIDs, and how long they are; the locator has any length. */
static const struct item {
	const uint8_t *guid;
	unsigned flag;
	uint32_t bytes;
} items[] = {
	{ vhdx_guid_parameters, HAS_PARAMETERS, 8 }, { vhdx_guid_size, HAS_SIZE, 8 },
	{ vhdx_guid_logical, HAS_SECTOR, 4 },	     { vhdx_guid_physical, HAS_PHYSICAL, 4 },
	{ vhdx_guid_page83, HAS_PAGE83, 16 },	     { vhdx_guid_locator, HAS_LOCATOR, 0 },
};

struct seen {
	unsigned flags;
	struct vhdx_range at[ARRAY_LEN(items)]; /* of the region */
	size_t nr;
};

static const struct item *find_item(const uint8_t *guid)
{
	for (size_t i = 0; i < ARRAY_LEN(items); i++) {
		if (is_guid(items[i].guid, guid))
			return &items[i];
	}
	return NULL;
}

static void take_value(unsigned flag, const uint8_t v[16], struct vhdx_meta *m)
{
	switch (flag) {
	case HAS_PARAMETERS:
		m->block_bytes = le32_at(v, offsetof(struct disk_vhdx_parameters, block_bytes));
		m->leave_blocks = le32_at(v, offsetof(struct disk_vhdx_parameters, flags)) & VHDX_LEAVE_BLOCKS;
		m->has_parent = le32_at(v, offsetof(struct disk_vhdx_parameters, flags)) & VHDX_HAS_PARENT;
		break;
	case HAS_SIZE: m->disk_bytes = le64_at(v, 0); break;
	case HAS_SECTOR: m->sector_bytes = le32_at(v, 0); break;
	case HAS_PHYSICAL: m->physical_bytes = le32_at(v, 0); break;
	default: memcpy(m->page83, v, 16); break;
	}
}

static int take_item(struct node *file, const uint8_t *entry, struct vhdx_meta *m, struct seen *seen,
		     struct img_error *err)
{
	const struct item *item = find_item(entry);
	struct disk_vhdx_item d;
	uint8_t value[16] = { 0 };
	uint64_t off;
	uint32_t bytes;
	int ret = 0;

	memcpy(&d, entry, sizeof(d));
	bytes = le32_get(d.bytes);
	if (!item && le32_get(d.flags) & VHDX_ITEM_REQUIRED)
		return error_set(err, IMG_E_UNSUPPORTED, 0, m->metadata.off, LAYER,
				 "needs an item of metadata that is not known");
	if (!item)
		return 0;
	if (seen->flags & item->flag)
		return error_set(err, IMG_E_CORRUPT, 0, m->metadata.off, LAYER, "an item of metadata is there twice");
	seen->flags |= item->flag;
	if (le32_get(d.off) < VHDX_TABLE_BYTES || !range_inside(le32_get(d.off), bytes, m->metadata.bytes) ||
	    (item->bytes != 0 && bytes != item->bytes))
		return error_set(err, IMG_E_CORRUPT, 0, m->metadata.off, LAYER,
				 "an item of metadata has 0x%" PRIx32 " bytes at 0x%" PRIx32 " of its region", bytes,
				 le32_get(d.off));
	seen->at[seen->nr] = (struct vhdx_range){ le32_get(d.off), bytes };
	for (size_t i = 0; i < seen->nr; i++) /* a change of one would change the other */
		if (overlap(&seen->at[i], &seen->at[seen->nr]))
			return error_set(err, IMG_E_CORRUPT, 0, m->metadata.off, LAYER,
					 "two items of metadata lie over each other at 0x%" PRIx32 " of their region",
					 le32_get(d.off));
	seen->nr++;
	off = m->metadata.off + le32_get(d.off);
	if (item->flag == HAS_LOCATOR) {
		m->locator = (struct vhdx_range){ off, bytes };
		return 0;
	}
	ret = node_pread(file, value, bytes, off, 0, err);
	if (ret == 0)
		take_value(item->flag, value, m);
	return ret;
}

/* VHDX-5 */
static const char *bad_geometry(const struct vhdx_meta *m)
{
	if (m->sector_bytes != 512 && m->sector_bytes != 4096)
		return "the size of a logical sector";
	if (m->physical_bytes != 512 && m->physical_bytes != 4096)
		return "the size of a physical sector";
	if (m->block_bytes < VHDX_BLOCK_MIN || m->block_bytes > VHDX_BLOCK_MAX ||
	    (m->block_bytes & (m->block_bytes - 1)) != 0)
		return "the size of a block";
	if (m->disk_bytes == 0 || m->disk_bytes > VHDX_DISK_MAX || m->disk_bytes % m->sector_bytes != 0)
		return "the size of the disk";
	return NULL;
}

void vhdx_count_slots(struct vhdx_meta *m)
{
	m->chunk_ratio = VHDX_CHUNK_SECTORS * m->sector_bytes / m->block_bytes;
	m->nr_blocks = (m->disk_bytes - 1) / m->block_bytes + 1;
	if (m->has_parent)
		m->nr_slots = ((m->nr_blocks - 1) / m->chunk_ratio + 1) * (m->chunk_ratio + 1);
	else
		m->nr_slots = m->nr_blocks + (m->nr_blocks - 1) / m->chunk_ratio;
}

static int judge_meta(struct vhdx_meta *m, unsigned seen, struct img_error *err)
{
	const unsigned needed = HAS_PARAMETERS | HAS_SIZE | HAS_SECTOR | HAS_PHYSICAL;
	const char *bad;

	if ((seen & needed) != needed || (m->has_parent && !(seen & HAS_LOCATOR)))
		return error_set(err, IMG_E_CORRUPT, 0, m->metadata.off, LAYER, "an item of metadata is missing");
	bad = bad_geometry(m);
	if (bad)
		return error_set(err, IMG_E_CORRUPT, 0, m->metadata.off, LAYER, "%s is none that VHDX has", bad);
	vhdx_count_slots(m);
	if (m->nr_slots * 8 > m->bat.bytes)
		return error_set(err, IMG_E_CORRUPT, 0, m->bat.off, LAYER,
				 "the table of blocks has 0x%" PRIx64 " bytes, and 0x%" PRIx64 " are needed",
				 m->bat.bytes, m->nr_slots * 8);
	return 0;
}

static int load_items(struct node *file, uint8_t *buf, struct vhdx_meta *m, struct img_error *err)
{
	struct seen seen = { 0 };
	uint32_t nr;
	int ret = node_pread(file, buf, VHDX_TABLE_BYTES, m->metadata.off, 0, err);

	if (ret != 0)
		return ret;
	nr = le16_at(buf, offsetof(struct disk_vhdx_items, nr));
	if (memcmp(buf, "metadata", 8) != 0 || nr > VHDX_ENTRIES_MAX)
		return error_set(err, IMG_E_CORRUPT, 0, m->metadata.off, LAYER, "there is no table of metadata");
	for (uint32_t i = 0; i < nr && ret == 0; i++)
		ret = take_item(file, buf + sizeof(struct disk_vhdx_items) + sizeof(struct disk_vhdx_item) * i, m,
				&seen, err);
	return ret ? ret : judge_meta(m, seen.flags, err);
}

int vhdx_meta_load(struct node *file, struct vhdx_meta *out, struct img_error *err)
{
	uint8_t *buf = malloc(VHDX_TABLE_BYTES);
	int ret;

	memset(out, 0, sizeof(*out));
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = load_regions(file, buf, out, err);
	if (ret == 0)
		ret = load_items(file, buf, out, err);
	free(buf);
	return ret;
}
