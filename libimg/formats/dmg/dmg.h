/* SPDX-License-Identifier: MIT */
/* Inside of the format "dmg": what stands on disk, and the walk over its tables. See dmg.c and format-spec/dmg.md. */
#ifndef FORMATS_DMG_H
#define FORMATS_DMG_H

#include "chunks.h"
#include "disk_int.h"

#define DMG_SECTOR_BYTES 512u

struct disk_dmg_checksum {
	struct be32 type; /* 0: none; 2: CRC-32 */
	struct be32 bits;
	uint8_t value[128];
} __attribute__((packed));

#define DMG_CHECKSUM_NONE  0u
#define DMG_CHECKSUM_CRC32 2u

/* The last 512 bytes of the file. */
struct disk_dmg_trailer {
	uint8_t magic[4]; /* "koly" */
	struct be32 version, header_bytes, flags;
	struct be64 running_data_off;
	struct be64 data_off, data_bytes; /* the pieces lie in it */
	struct be64 resource_off, resource_bytes;
	struct be32 segment, nr_segments;
	uint8_t segment_id[16];
	struct disk_dmg_checksum data_checksum; /* of the data fork as it stands */
	struct be64 list_off, list_bytes;	/* the property list */
	uint8_t reserved[120];
	struct disk_dmg_checksum checksum; /* CRC-32 of the tables' CRCs, one behind the other */
	struct be32 variant;
	struct be64 nr_sectors;
	uint8_t reserved2[12];
} __attribute__((packed));

/* A table, of a partition as a rule. */
struct disk_dmg_table {
	uint8_t magic[4]; /* "mish" */
	struct be32 version;
	struct be64 first_sector, nr_sectors;
	struct be64 data_off; /* of the pieces, within the data fork */
	struct be32 buffers, descriptor;
	uint8_t reserved[24];
	struct disk_dmg_checksum checksum; /* of the content, without what is to be ignored */
	struct be32 nr_runs;
} __attribute__((packed));

struct disk_dmg_run {
	struct be32 type, comment;
	struct be64 first_sector; /* within the table */
	struct be64 nr_sectors;
	struct be64 off, bytes; /* within the table's data */
} __attribute__((packed));

enum dmg_run_type {
	DMG_ZERO = 0,
	DMG_PLAIN = 1,
	DMG_IGNORE = 2, /* nobody wrote it: zeros */
	DMG_ADC = 0x80000004u,
	DMG_ZLIB = 0x80000005u,
	DMG_BZIP2 = 0x80000006u,
	DMG_LZFSE = 0x80000007u,
	DMG_XZ = 0x80000008u,
	DMG_COMMENT = 0x7ffffffeu,
	DMG_END = 0xffffffffu,
};

/* A table in memory. */
struct dmg_table {
	const struct disk_dmg_table *head;
	const struct disk_dmg_run *runs;
	uint32_t nr_runs;
};

/* Called with each table; what is not 0 ends the walk and is returned. */
typedef int (*dmg_table_fn)(void *ctx, const struct dmg_table *table, struct img_error *err);

/* Reads the trailer. FORMAT: none; UNSUPPORTED: one of several parts, encrypted. */
int dmg_read_trailer(struct node *file, const char *path, struct disk_dmg_trailer *out, struct img_error *err);
/* From the property list, or from the resource fork of old images. CORRUPT, LIMIT, IO. */
int dmg_each_table(struct node *file, const char *path, const struct disk_dmg_trailer *t, struct budget *budget,
		   dmg_table_fn fn, void *ctx, struct img_error *err);
/* 1: a piece of the disk, in *out; 0: none (comment, end); else the error. */
int dmg_chunk_of(const char *path, const struct disk_dmg_trailer *t, const struct dmg_table *table, uint32_t run,
		 struct chunk *out, struct img_error *err);

#endif
