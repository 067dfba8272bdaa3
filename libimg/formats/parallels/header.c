/* SPDX-License-Identifier: MIT */
/* The header: read and judged once, written as one piece of one sector. */
#include <inttypes.h>
#include <string.h>

#include "prl.h"

struct prl_image *prl_image_of(const struct node *node)
{
	return node->state;
}

uint64_t prl_disk_bytes(const struct prl_header *h)
{
	return h->nr_sectors * PRL_SECTOR_BYTES;
}

uint64_t prl_table_end(const struct prl_header *h)
{
	return PRL_TABLE_OFF + (uint64_t)h->nr_entries * PRL_ENTRY_BYTES;
}

uint64_t prl_unit_bytes(const struct prl_header *h)
{
	return h->v2 ? h->cluster_bytes : PRL_SECTOR_BYTES;
}

uint64_t prl_place_at(const struct prl_header *h, uint64_t off)
{
	uint64_t base = h->v2 ? 0 : h->data_off;

	return base + round_up(max_u64(off, h->data_off) - base, h->cluster_bytes);
}

int prl_header_set_size(struct prl_header *h, uint64_t disk_bytes, struct img_error *err)
{
	uint64_t sectors = disk_bytes / PRL_SECTOR_BYTES;
	uint64_t nr = disk_bytes / h->cluster_bytes + (disk_bytes % h->cluster_bytes != 0);

	if (!h->v2 && sectors > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes are more than this version of the format holds: convert it to "
				 "parallels with version=2",
				 disk_bytes);
	if (nr > PRL_ENTRIES_MAX || disk_bytes > INT64_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes are more than a table with clusters of 0x%" PRIx32
				 " bytes can hold: take a larger cluster_size",
				 disk_bytes, h->cluster_bytes);
	h->nr_sectors = sectors;
	h->nr_entries = (uint32_t)nr;
	h->heads = PRL_HEADS;
	h->cylinders = (uint32_t)min_u64(sectors / PRL_SECTORS_PER_CYLINDER, UINT32_MAX);
	return 0;
}

/* ---- from disk --------------------------------------------------------------------------------------------------- */

static int corrupt(struct img_error *err, uint64_t off, const char *what, uint64_t value)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "the header says %s 0x%" PRIx64, what, value);
}

/* PRL-2, PRL-3 */
static int judge_sizes(const struct disk_prl_header *d, struct prl_header *h, uint64_t file_bytes,
		       struct img_error *err)
{
	uint32_t cluster_sectors = le32_get(d->cluster_sectors);

	if (cluster_sectors == 0 || cluster_sectors > PRL_CLUSTER_MAX / PRL_SECTOR_BYTES)
		return corrupt(err, PRL_AT(cluster_sectors), "clusters of sectors:", cluster_sectors);
	h->cluster_bytes = cluster_sectors * PRL_SECTOR_BYTES;
	if (h->nr_sectors == 0 || h->nr_sectors > INT64_MAX / PRL_SECTOR_BYTES)
		return corrupt(err, PRL_AT(nr_sectors), "a disk of sectors:", h->nr_sectors);
	if (h->nr_entries == 0 || h->nr_entries > PRL_ENTRIES_MAX)
		return corrupt(err, PRL_AT(nr_entries), "entries of the block table:", h->nr_entries);
	if ((uint64_t)h->nr_entries * cluster_sectors < h->nr_sectors)
		return error_set(err, IMG_E_CORRUPT, 0, PRL_AT(nr_entries), LAYER,
				 "0x%" PRIx32 " clusters are less than the disk, 0x%" PRIx64 " sectors", h->nr_entries,
				 h->nr_sectors);
	if (prl_table_end(h) > file_bytes)
		return error_set(err, IMG_E_CORRUPT, 0, PRL_AT(nr_entries), LAYER,
				 "the block table ends at 0x%" PRIx64 ", behind the end of the file, 0x%" PRIx64,
				 prl_table_end(h), file_bytes);
	return 0;
}

/* PRL-3 */
static int judge_offsets(const struct disk_prl_header *d, struct prl_header *h, struct img_error *err)
{
	uint64_t ext = le64_get(d->ext_off);

	h->data_off = (uint64_t)le32_get(d->data_off) * PRL_SECTOR_BYTES;
	if (h->data_off == 0)
		h->data_off = round_up(prl_table_end(h), PRL_SECTOR_BYTES);
	if (h->data_off < prl_table_end(h))
		return corrupt(err, PRL_AT(data_off), "that data begins before the block table ends, at", h->data_off);
	if (ext > INT64_MAX / PRL_SECTOR_BYTES)
		return corrupt(err, PRL_AT(ext_off), "an extension at sector", ext);
	h->ext_off = ext * PRL_SECTOR_BYTES;
	return 0;
}

int prl_header_load(struct node *file, struct prl_header *out, struct img_error *err)
{
	struct disk_prl_header d;
	int ret;

	memset(out, 0, sizeof(*out));
	if (node_size(file) < sizeof(d))
		return error_set(err, IMG_E_CORRUPT, 0, 0, LAYER, "the file is too short for a header");
	ret = node_pread(file, &d, sizeof(d), 0, 0, err);
	if (ret != 0)
		return ret;
	out->v2 = memcmp(d.magic, PRL_MAGIC_V2, PRL_MAGIC_BYTES) == 0;
	if (!out->v2 && memcmp(d.magic, PRL_MAGIC_V1, PRL_MAGIC_BYTES) != 0)
		return error_set(err, IMG_E_CORRUPT, 0, 0, LAYER, "this is no Parallels image");
	if (le32_get(d.version) != PRL_VERSION)
		return error_set(err, IMG_E_UNSUPPORTED, 0, PRL_AT(version), LAYER, "version %" PRIu32 " is not known",
				 le32_get(d.version));
	out->heads = le32_get(d.heads);
	out->cylinders = le32_get(d.cylinders);
	out->nr_entries = le32_get(d.nr_entries);
	out->nr_sectors = le64_get(d.nr_sectors);
	out->in_use = le32_get(d.in_use);
	out->flags = le32_get(d.flags);
	if (!out->v2) {
		out->high_sectors = out->nr_sectors > UINT32_MAX;
		out->nr_sectors &= UINT32_MAX;
	}
	ret = judge_sizes(&d, out, node_size(file), err);
	return ret == 0 ? judge_offsets(&d, out, err) : ret;
}

/* ---- to disk ----------------------------------------------------------------------------------------------------- */

int prl_header_store(struct node *file, const struct prl_header *h, struct img_error *err)
{
	struct disk_prl_header d;

	memcpy(d.magic, h->v2 ? PRL_MAGIC_V2 : PRL_MAGIC_V1, PRL_MAGIC_BYTES);
	d.version = le32_of(PRL_VERSION);
	d.heads = le32_of(h->heads);
	d.cylinders = le32_of(h->cylinders);
	d.cluster_sectors = le32_of(h->cluster_bytes / PRL_SECTOR_BYTES);
	d.nr_entries = le32_of(h->nr_entries);
	d.nr_sectors = le64_of(h->nr_sectors);
	d.in_use = le32_of(h->in_use);
	/* Never 0: it would move with the table. */
	d.data_off = le32_of((uint32_t)(h->data_off / PRL_SECTOR_BYTES));
	d.flags = le32_of(h->flags);
	d.ext_off = le64_of(h->ext_off / PRL_SECTOR_BYTES);
	return node_pwrite(file, &d, sizeof(d), 0, 0, err);
}
