/* SPDX-License-Identifier: MIT */
/*
 * The header: read and judged once, written as one piece. Geometry and what lies behind known fields is kept as it is
 * on disk: a store changes the fields of struct vdi_header and nothing else.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "is_zero.h"
#include "vdi.h"

static bool power_of_two(uint64_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

struct vdi_state *vdi_state_of(const struct node *node)
{
	return node->state;
}

uint64_t vdi_place_bytes(const struct vdi_header *h)
{
	return (uint64_t)h->extra_bytes + h->block_bytes;
}

uint64_t vdi_disk_bytes(const struct vdi_header *h)
{
	return round_down(h->disk_bytes, VDI_SECTOR_BYTES);
}

int vdi_blocks_for(uint64_t disk_bytes, uint32_t block_bytes, uint32_t *nr, struct img_error *err)
{
	uint64_t n = disk_bytes / block_bytes + (disk_bytes % block_bytes != 0);

	if (n > VDI_BLOCKS_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes are more than a VDI with blocks of 0x%" PRIx32
				 " bytes can hold: take a larger block_size",
				 disk_bytes, block_bytes);
	*nr = (uint32_t)n;
	return 0;
}

/* ---- UUIDs ------------------------------------------------------------------------------------------------------- */

int vdi_uuid_new(uint8_t *out, struct img_error *err)
{
	if (getrandom(out, 16, 0) != 16)
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers for a UUID");
	out[7] = (uint8_t)((out[7] & 0x0f) | 0x40); /* version 4; this field is little-endian */
	out[8] = (uint8_t)((out[8] & 0x3f) | 0x80);
	return 0;
}

bool vdi_uuid_is_null(const uint8_t *uuid)
{
	return is_zero(uuid, 16);
}

void vdi_uuid_swap(const uint8_t *uuid, uint8_t *out)
{
	static const uint8_t from[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

	for (unsigned i = 0; i < 16; i++)
		out[i] = uuid[from[i]];
}

void vdi_uuid_text(const uint8_t *uuid, char *out)
{
	uint8_t u[16];

	vdi_uuid_swap(uuid, u);
	(void)snprintf(out, VDI_UUID_TEXT_BYTES, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
		       u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
		       u[15]);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool vdi_uuid_parse(const char *text, uint8_t *out)
{
	uint8_t u[16];
	unsigned n = 0;

	for (unsigned i = 0; i < 36; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		int high, low;

		if (dash && text[i] == '-')
			continue;
		high = hex_digit(text[i]);
		low = high < 0 ? -1 : hex_digit(text[i + 1]);
		if (dash || low < 0)
			return false;
		u[n++] = (uint8_t)(high << 4 | low);
		i++;
	}
	vdi_uuid_swap(u, out);
	return text[36] == '\0';
}

/* ---- from disk --------------------------------------------------------------------------------------------------- */

static int corrupt(struct img_error *err, uint64_t off, const char *what, uint64_t value)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "the header says %s 0x%" PRIx64, what, value);
}

static void take0(const struct disk_vdi_header0 *d, struct vdi_header *h)
{
	h->type = le32_get(d->type);
	h->flags = le32_get(d->flags);
	memcpy(h->comment, d->comment, VDI_COMMENT_BYTES);
	h->disk_bytes = le64_get(d->disk_bytes);
	h->block_bytes = le32_get(d->block_bytes);
	h->nr_blocks = le32_get(d->nr_blocks);
	h->nr_allocated = le32_get(d->nr_allocated);
	h->header_bytes = sizeof(*d);
	/* Fixed places: the map follows the header, the data follows the map. */
	h->map_off = VDI_HEADER_OFF + sizeof(*d);
	h->data_off = h->nr_blocks <= VDI_BLOCKS_MAX ? (uint32_t)(h->map_off + h->nr_blocks * 4) : 0;
	memcpy(h->uuid, d->uuid, 16);
	memcpy(h->modification, d->modification, 16);
	memcpy(h->parent, d->parent, 16);
}

static void take1(const struct disk_vdi_header1 *d, struct vdi_header *h)
{
	h->header_bytes = le32_get(d->header_bytes);
	h->type = le32_get(d->type);
	h->flags = le32_get(d->flags);
	memcpy(h->comment, d->comment, VDI_COMMENT_BYTES);
	h->map_off = le32_get(d->map_off);
	h->data_off = le32_get(d->data_off);
	h->disk_bytes = le64_get(d->disk_bytes);
	h->block_bytes = le32_get(d->block_bytes);
	h->extra_bytes = le32_get(d->extra_bytes);
	h->nr_blocks = le32_get(d->nr_blocks);
	h->nr_allocated = le32_get(d->nr_allocated);
	memcpy(h->uuid, d->uuid, 16);
	memcpy(h->modification, d->modification, 16);
	memcpy(h->parent, d->parent, 16);
	memcpy(h->parent_modification, d->parent_modification, 16);
}

/* VDI-2 */
static int judge_kind(const struct vdi_header *h, struct img_error *err)
{
	if (h->version == VDI_VERSION_1 && h->header_bytes < VDI_HEADER1_BYTES)
		return corrupt(err, VDI_AT(header_bytes), "that it has bytes:", h->header_bytes);
	if (h->type == VDI_UNDO)
		return error_set(err, IMG_E_UNSUPPORTED, 0, VDI_AT(type), LAYER,
				 "undo images are not supported: nothing is known that writes them");
	if (h->type < VDI_DYNAMIC || h->type > VDI_DIFFERENCING)
		return corrupt(err, VDI_AT(type), "type", h->type);
	if (h->flags & ~VDI_FLAG_ZERO_EXPAND)
		return error_set(err, IMG_E_UNSUPPORTED, 0, VDI_AT(flags), LAYER, "flags 0x%" PRIx32 " are not known",
				 h->flags);
	if (h->type == VDI_DIFFERENCING && vdi_uuid_is_null(h->parent))
		return error_set(err, IMG_E_CORRUPT, 0, VDI_AT(parent), LAYER,
				 "a differencing image that does not say of what: its parent's UUID is missing");
	return 0;
}

/* VDI-3 to VDI-5 */
static int judge_sizes(const struct vdi_header *h, uint64_t file_bytes, struct img_error *err)
{
	uint64_t map_end = h->map_off + (uint64_t)h->nr_blocks * 4;

	if (!power_of_two(h->block_bytes) || h->block_bytes < VDI_BLOCK_MIN)
		return corrupt(err, VDI_AT(block_bytes), "blocks of bytes:", h->block_bytes);
	if (h->extra_bytes != 0 && !power_of_two(h->extra_bytes))
		return corrupt(err, VDI_AT(extra_bytes), "extra bytes of each block:", h->extra_bytes);
	if (h->disk_bytes < VDI_SECTOR_BYTES || h->disk_bytes > INT64_MAX)
		return corrupt(err, VDI_AT(disk_bytes), "a disk of bytes:", h->disk_bytes);
	if (h->nr_blocks == 0 || h->nr_blocks > VDI_BLOCKS_MAX)
		return corrupt(err, VDI_AT(nr_blocks), "blocks:", h->nr_blocks);
	if ((uint64_t)h->nr_blocks * h->block_bytes < h->disk_bytes)
		return error_set(err, IMG_E_CORRUPT, 0, VDI_AT(nr_blocks), LAYER,
				 "0x%" PRIx32 " blocks are less than the disk, 0x%" PRIx64 " bytes", h->nr_blocks,
				 h->disk_bytes);
	if (h->version == VDI_VERSION_1 && h->map_off < VDI_HEADER_OFF + VDI_HEADER1_BYTES)
		return corrupt(err, VDI_AT(map_off), "that the block map lies in the header, at", h->map_off);
	if (map_end > h->data_off)
		return corrupt(err, VDI_AT(data_off), "that data begins before the block map ends, at", h->data_off);
	if (map_end > file_bytes)
		return error_set(err, IMG_E_CORRUPT, 0, VDI_AT(map_off), LAYER,
				 "the block map ends at 0x%" PRIx64 ", behind the end of the file, 0x%" PRIx64, map_end,
				 file_bytes);
	return 0;
}

static int judge_writable(const struct vdi_header *h, struct img_error *err)
{
	if (h->version != VDI_VERSION_1)
		return error_set(err, IMG_E_UNSUPPORTED, 0, VDI_HEADER_OFF, LAYER,
				 "images of this old version (0x%" PRIx32 ") can only be read: convert it", h->version);
	/* An entry that lies across two sectors could be torn. */
	if (h->map_off % 4 != 0 || h->map_off < VDI_HEADER_OFF + h->header_bytes)
		return error_set(err, IMG_E_UNSUPPORTED, 0, VDI_AT(map_off), LAYER,
				 "the block map's place, 0x%" PRIx32 ", lets it only be read: convert the image",
				 h->map_off);
	return 0;
}

int vdi_header_load(struct node *file, bool writable, struct vdi_header *out, struct img_error *err)
{
	struct {
		struct disk_vdi_preheader pre;
		union {
			struct disk_vdi_header0 v0;
			struct disk_vdi_header1 v1;
		} u;
	} d;
	uint64_t file_bytes = node_size(file);
	int ret;

	memset(&d, 0, sizeof(d));
	memset(out, 0, sizeof(*out));
	ret = node_pread(file, &d, min_u64(sizeof(d), file_bytes), 0, 0, err);
	if (ret != 0)
		return ret;
	if (le32_get(d.pre.magic) != VDI_MAGIC)
		return error_set(err, IMG_E_CORRUPT, 0, offsetof(struct disk_vdi_preheader, magic), LAYER,
				 "this is no VDI");
	out->version = le32_get(d.pre.version);
	if (out->version == VDI_VERSION_0)
		take0(&d.u.v0, out);
	else if (out->version == VDI_VERSION_1)
		take1(&d.u.v1, out);
	else
		return error_set(err, IMG_E_UNSUPPORTED, 0, offsetof(struct disk_vdi_preheader, version), LAYER,
				 "VDI version 0x%" PRIx32 " is not known", out->version);
	ret = judge_kind(out, err);
	if (ret == 0)
		ret = judge_sizes(out, file_bytes, err);
	return ret == 0 && writable ? judge_writable(out, err) : ret;
}

/* ---- to disk ----------------------------------------------------------------------------------------------------- */

static void put1(const struct vdi_header *h, struct disk_vdi_header1 *d)
{
	d->header_bytes = le32_of(h->header_bytes);
	d->type = le32_of(h->type);
	d->flags = le32_of(h->flags);
	memcpy(d->comment, h->comment, VDI_COMMENT_BYTES);
	d->map_off = le32_of(h->map_off);
	d->data_off = le32_of(h->data_off);
	d->disk_bytes = le64_of(h->disk_bytes);
	d->block_bytes = le32_of(h->block_bytes);
	d->extra_bytes = le32_of(h->extra_bytes);
	d->nr_blocks = le32_of(h->nr_blocks);
	d->nr_allocated = le32_of(h->nr_allocated);
	memcpy(d->uuid, h->uuid, 16);
	memcpy(d->modification, h->modification, 16);
	memcpy(d->parent, h->parent, 16);
	memcpy(d->parent_modification, h->parent_modification, 16);
}

int vdi_header_store(struct node *file, const struct vdi_header *h, struct img_error *err)
{
	uint64_t bytes = min_u64(h->header_bytes, VDI_HEADER1P_BYTES);
	struct disk_vdi_header1 d;
	int ret;

	memset(&d, 0, sizeof(d));
	ret = node_pread(file, &d, bytes, VDI_HEADER_OFF, 0, err);
	if (ret != 0)
		return ret;
	put1(h, &d);
	return node_pwrite(file, &d, bytes, VDI_HEADER_OFF, 0, err);
}

int vdi_header_create(struct node *file, const struct vdi_header *h, struct img_error *err)
{
	struct {
		struct disk_vdi_preheader pre;
		struct disk_vdi_header1 v1;
	} d;

	memset(&d, 0, sizeof(d));
	(void)snprintf(d.pre.text, sizeof(d.pre.text), "<<< libimg VirtualBox Disk Image >>>\n");
	d.pre.magic = le32_of(VDI_MAGIC);
	d.pre.version = le32_of(VDI_VERSION_1);
	put1(h, &d.v1);
	/* No geometry: whoever wants one makes it up from the size. */
	d.v1.geometry.sector_bytes = d.v1.lchs.sector_bytes = le32_of(VDI_SECTOR_BYTES);
	return node_pwrite(file, &d, sizeof(d), 0, 0, err);
}
