/* SPDX-License-Identifier: MIT */
/*
 * What a disk holds at first sight: boot sector, GPT, discs. Firmware, boot loaders and kernels each believe one of the
 * tables that a disk can carry at once; where these disagree, the disk is not the same to all of them. A file that is
 * its own disk (raw) is judged; inside of an image what only the guest sees is a note, but for copies of a GPT that
 * differ.
 *
 * Sources: UEFI 2.10 chapter 5 (MBR, GPT); ECMA-119 (ISO 9660) 7.1.1; ECMA-167 (UDF) 2/9.1.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LAYER "inspect"

/* ---- boot sector ------------------------------------------------------------------------------------------------- */

#define SECTOR_BYTES   512u
#define MBR_TABLE      446u
#define MBR_ENTRIES    4u
#define MBR_PROTECTIVE 0xee
#define FAT_NR_FATS    0x10 /* BIOS parameter block: copies of the table, */
#define FAT_MEDIA      0x15 /* and kind of medium */
#define FAT_FIXED_DISK 0xf8

struct disk_mbr_entry {
	uint8_t boot, start[3], type, end[3];
	struct le32 first, sectors;
};
_Static_assert(sizeof(struct disk_mbr_entry) == 16, "partition record");

struct disk_gpt {
	uint8_t magic[8];
	struct le32 revision, header_bytes, crc, reserved;
	struct le64 my_lba, other_lba, first_lba, last_lba;
	uint8_t guid[16];
	struct le64 entries_lba;
	struct le32 nr_entries, entry_bytes, entries_crc;
};
_Static_assert(sizeof(struct disk_gpt) == 92, "GPT header");
#define GPT_ENTRIES_MAX_BYTES (1u << 20) /* of the array; the usual one has 16 KiB */

struct disk {
	struct inspector *in;
	struct node *node;
	bool raw;
	uint64_t bytes;
	bool has_mbr, has_protective, has_partitions, has_gpt;
	bool is_fat;
};

#define ON_DISK(d, id, off, ...)                                             \
	do {                                                                 \
		if ((d)->raw)                                                \
			inspect_found((d)->in, (id), (off), __VA_ARGS__);    \
		else                                                         \
			inspect_note((d)->in, (id), NO_OFFSET, __VA_ARGS__); \
	} while (0)

static bool is_fat(const uint8_t *sector)
{
	return sector[FAT_NR_FATS] == 2 && sector[FAT_MEDIA] == FAT_FIXED_DISK;
}

static void judge_mbr(struct disk *d, const uint8_t *sector)
{
	unsigned used = 0;

	for (unsigned i = 0; i < MBR_ENTRIES; i++) {
		uint64_t at = MBR_TABLE + i * sizeof(struct disk_mbr_entry);
		struct disk_mbr_entry e;

		memcpy(&e, sector + at, sizeof(e));
		if (e.boot != 0 && e.boot != 0x80)
			ON_DISK(d, INSPECT_MBR_INVALID, at, "MBR partition %u has the boot flag 0x%02x", i + 1, e.boot);
		if (e.type == 0)
			continue;
		used |= 1u << i;
		if (e.type != MBR_PROTECTIVE)
			continue;
		d->has_protective = true;
		if (e.start[0] != 0 || e.start[1] != 2 || e.start[2] != 0 || le32_get(e.first) != 1)
			ON_DISK(d, INSPECT_MBR_INVALID, at,
				"the MBR's partition that protects a GPT does not start at sector 1");
	}
	d->has_partitions = used != 0;
	if (d->has_protective && used != 1)
		ON_DISK(d, INSPECT_MBR_HYBRID, MBR_TABLE, "the MBR has partitions beside the one that protects a GPT");
	if (!used)
		ON_DISK(d, INSPECT_MBR_EMPTY, MBR_TABLE, "a boot sector without partitions");
}

static int boot_sector(struct disk *d, struct img_error *err)
{
	uint8_t sector[SECTOR_BYTES];
	int ret = d->bytes < SECTOR_BYTES ? 0 : node_pread(d->node, sector, SECTOR_BYTES, 0, 0, err);

	if (ret != 0 || d->bytes < SECTOR_BYTES || sector[510] != 0x55 || sector[511] != 0xaa)
		return ret;
	d->is_fat = is_fat(sector);
	if (d->is_fat) {
		inspect_note(d->in, INSPECT_CONTENT, d->raw ? 0 : NO_OFFSET, "a FAT file system");
		return 0;
	}
	d->has_mbr = true;
	judge_mbr(d, sector);
	return 0;
}

/* ---- GPT --------------------------------------------------------------------------------------------------------- */

struct gpt {
	bool magic, whole;
	uint64_t lba;
	struct disk_gpt h;
};

static int entries_hold(const struct disk *d, const struct disk_gpt *h, uint64_t lba_bytes, bool *hold,
			struct img_error *err)
{
	uint64_t bytes = (uint64_t)le32_get(h->nr_entries) * le32_get(h->entry_bytes), off;
	uint8_t *buf;
	int ret;

	*hold = false;
	if (bytes == 0 || bytes > GPT_ENTRIES_MAX_BYTES || mul_overflows(le64_get(h->entries_lba), lba_bytes, &off) ||
	    !range_inside(off, bytes, d->bytes))
		return 0;
	buf = malloc((size_t)bytes);
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = node_pread(d->node, buf, bytes, off, 0, err);
	*hold = ret == 0 && crc32(0, buf, (uInt)bytes) == le32_get(h->entries_crc);
	free(buf);
	return ret;
}

/* A copy at lba; not there is not an error. */
static int read_gpt(const struct disk *d, uint64_t lba, uint64_t lba_bytes, struct gpt *out, struct img_error *err)
{
	struct disk_gpt sum;
	uint8_t sector[4096];
	uint64_t off;
	uint32_t bytes;
	int ret;

	*out = (struct gpt){ .lba = lba };
	if (mul_overflows(lba, lba_bytes, &off) || !range_inside(off, lba_bytes, d->bytes))
		return 0;
	ret = node_pread(d->node, sector, lba_bytes, off, 0, err);
	if (ret != 0)
		return ret;
	memcpy(&out->h, sector, sizeof(out->h));
	out->magic = memcmp(out->h.magic, "EFI PART", 8) == 0;
	bytes = le32_get(out->h.header_bytes);
	if (!out->magic || bytes < sizeof(out->h) || bytes > lba_bytes || le64_get(out->h.my_lba) != lba)
		return 0;
	memcpy(&sum, &out->h, sizeof(sum));
	sum.crc = le32_of(0);
	memcpy(sector, &sum, sizeof(sum));
	if (crc32(0, sector, bytes) != le32_get(out->h.crc))
		return 0;
	return entries_hold(d, &out->h, lba_bytes, &out->whole, err);
}

static bool same_table(const struct disk_gpt *a, const struct disk_gpt *b)
{
	return memcmp(a->guid, b->guid, sizeof(a->guid)) == 0 && le64_get(a->first_lba) == le64_get(b->first_lba) &&
	       le64_get(a->last_lba) == le64_get(b->last_lba) &&
	       memcmp(&a->nr_entries, &b->nr_entries, sizeof(a->nr_entries) * 3) == 0;
}

static void judge_copies(struct disk *d, const struct gpt *first, const struct gpt *named, const struct gpt *last,
			 uint64_t lba_bytes)
{
	const struct gpt *second = named->whole ? named : last;
	uint64_t at = d->raw ? second->lba * lba_bytes : NO_OFFSET;

	if (!first->whole) {
		if (last->whole)
			inspect_found(d->in, INSPECT_GPT_PRIMARY, d->raw ? lba_bytes : NO_OFFSET,
				      "the GPT at the beginning is %s, the one at the end is whole",
				      first->magic ? "damaged" : "missing");
		return;
	}
	if (!second->whole)
		inspect_found(d->in, INSPECT_GPT_BACKUP, at, "the second copy of the GPT is missing or damaged");
	if (named->whole && !same_table(&first->h, &named->h))
		inspect_found(d->in, INSPECT_GPT_DIFFER, at, "the two copies of the GPT differ");
	else if (last->whole && !same_table(&first->h, &last->h))
		inspect_found(d->in, INSPECT_GPT_DIFFER, d->raw ? last->lba * lba_bytes : NO_OFFSET,
			      "another GPT stands at the end of the disk than at its beginning");
	if (le64_get(first->h.other_lba) != last->lba && named->whole)
		inspect_found(d->in, INSPECT_GPT_ELSEWHERE, at,
			      "the second copy of the GPT is at sector %" PRIu64 ", the last one is %" PRIu64,
			      le64_get(first->h.other_lba), last->lba);
}

static int partition_table(struct disk *d, uint64_t lba_bytes, struct img_error *err)
{
	struct gpt first, last, named = { 0 };
	int ret;

	if (d->bytes < 3 * lba_bytes)
		return 0;
	ret = read_gpt(d, 1, lba_bytes, &first, err);
	if (ret == 0)
		ret = read_gpt(d, d->bytes / lba_bytes - 1, lba_bytes, &last, err);
	if (ret == 0 && first.whole)
		ret = read_gpt(d, le64_get(first.h.other_lba), lba_bytes, &named, err);
	if (ret != 0 || (!first.magic && !last.whole))
		return ret;
	d->has_gpt = true;
	inspect_note(d->in, INSPECT_CONTENT, d->raw ? lba_bytes : NO_OFFSET, "a GPT with sectors of %" PRIu64 " bytes",
		     lba_bytes);
	judge_copies(d, &first, &named, &last, lba_bytes);
	return 0;
}

/* ---- discs ------------------------------------------------------------------------------------------------------- */

#define DISC_SECTOR_BYTES 2048u
#define DISC_FIRST	  16u /* sector of the first descriptor */

static int disc(struct disk *d, struct img_error *err)
{
	uint64_t off = (uint64_t)DISC_SECTOR_BYTES * DISC_FIRST;
	uint8_t id[6];
	int ret = range_inside(off, sizeof(id), d->bytes) ? node_pread(d->node, id, sizeof(id), off, 0, err) : 1;

	if (ret != 0)
		return ret < 0 ? ret : 0;
	if (memcmp(id + 1, "CD001", 5) != 0 && memcmp(id + 1, "NSR0", 4) != 0 && memcmp(id + 1, "BEA01", 5) != 0)
		return 0;
	inspect_note(d->in, INSPECT_CONTENT, d->raw ? off : NO_OFFSET, "a disc (ISO 9660 or UDF)");
	if (d->has_mbr || d->has_gpt)
		ON_DISK(d, INSPECT_HYBRID_ISO, 0, "a disc (ISO 9660 or UDF) that is a partitioned disk as well");
	return 0;
}

int inspect_disk(struct inspector *in, struct node *node, bool raw, struct img_error *err)
{
	struct disk d = { .in = in, .node = node, .raw = raw, .bytes = node_size(node) };
	int ret = boot_sector(&d, err);

	if (ret == 0)
		ret = partition_table(&d, 512, err);
	if (ret == 0 && !d.has_gpt)
		ret = partition_table(&d, 4096, err);
	if (ret == 0 && d.has_partitions && !d.has_protective)
		inspect_note(in, INSPECT_CONTENT, raw ? MBR_TABLE : NO_OFFSET, "an MBR with partitions");
	if (ret == 0 && d.has_gpt && d.has_partitions && !d.has_protective)
		ON_DISK(&d, INSPECT_MBR_HYBRID, MBR_TABLE, "the MBR's partitions are not those of the GPT");
	if (ret == 0)
		ret = disc(&d, err);
	return ret;
}
