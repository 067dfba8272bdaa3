/* SPDX-License-Identifier: MIT */
/* VHDX as it stands on disk; little-endian. [MS-VHDX] section 2, whose names are given where ours differ. */
#ifndef VHDX_DISK_H
#define VHDX_DISK_H

#include "disk_int.h"

#define VHDX_KIB	   UINT64_C(1024)
#define VHDX_MIB	   (1024 * VHDX_KIB)
#define VHDX_HEADER_A	   (64 * VHDX_KIB)
#define VHDX_HEADER_B	   (128 * VHDX_KIB)
#define VHDX_REGIONS_A	   (192 * VHDX_KIB)
#define VHDX_REGIONS_B	   (256 * VHDX_KIB)
#define VHDX_TABLE_BYTES   (64 * VHDX_KIB) /* of a region table, and of the metadata table */
#define VHDX_ENTRIES_MAX   2047u	   /* of each of them */
#define VHDX_SECTOR_BYTES  4096u	   /* of headers and of the log */
#define VHDX_DISK_MAX	   (UINT64_C(64) << 40)
#define VHDX_BLOCK_MIN	   VHDX_MIB
#define VHDX_BLOCK_MAX	   (256 * VHDX_MIB)
#define VHDX_LOCATOR_MAX   (64 * VHDX_KIB)
#define VHDX_CREATOR_BYTES 512u		       /* behind the signature at 0, UTF-16 */
#define VHDX_CHUNK_SECTORS (UINT64_C(1) << 23) /* of the disk, that one block of the sector bitmap describes */

struct disk_vhdx_header {
	uint8_t signature[4]; /* "head" */
	struct le32 checksum; /* CRC-32C of the 4 KiB with this field zero */
	struct le64 sequence;
	uint8_t file_write[16], data_write[16], log[16]; /* GUIDs; log: none of its entries counts where it is zero */
	struct le16 log_version, version;
	struct le32 log_bytes;
	struct le64 log_off;
	uint8_t reserved[4016];
} __attribute__((packed));
_Static_assert(sizeof(struct disk_vhdx_header) == VHDX_SECTOR_BYTES, "header");

struct disk_vhdx_regions {
	uint8_t signature[4]; /* "regi" */
	struct le32 checksum; /* of 64 KiB */
	struct le32 nr, reserved;
} __attribute__((packed));

struct disk_vhdx_region {
	uint8_t guid[16];
	struct le64 off;
	struct le32 bytes, required;
} __attribute__((packed));

struct disk_vhdx_items {
	uint8_t signature[8]; /* "metadata" */
	struct le16 reserved, nr;
	uint8_t reserved2[20];
} __attribute__((packed));

struct disk_vhdx_item {
	uint8_t guid[16];
	struct le32 off, bytes; /* within the region */
	struct le32 flags;
	struct le32 reserved;
} __attribute__((packed));
#define VHDX_ITEM_VIRTUAL_DISK 2u /* describes the disk, not the file */
#define VHDX_ITEM_REQUIRED     4u

struct disk_vhdx_parameters {
	struct le32 block_bytes;
	struct le32 flags;
} __attribute__((packed));
#define VHDX_LEAVE_BLOCKS 1u
#define VHDX_HAS_PARENT	  2u

struct disk_vhdx_locator {
	uint8_t type[16];
	struct le16 reserved, nr;
} __attribute__((packed));

struct disk_vhdx_locator_entry {
	struct le32 key, value; /* offsets within the item */
	struct le16 key_bytes, value_bytes;
} __attribute__((packed));

struct disk_vhdx_log_entry {
	uint8_t signature[4]; /* "loge" */
	struct le32 checksum; /* of the whole entry */
	struct le32 bytes, tail;
	struct le64 sequence;
	struct le32 nr_descriptors, reserved;
	uint8_t log[16];
	struct le64 flushed_file_bytes, last_file_bytes;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_vhdx_log_entry) == 64, "log entry");

/* "zero": bytes of zeros; "desc": a sector of data, the first and last bytes of which stand here. */
struct disk_vhdx_descriptor {
	uint8_t signature[4];
	struct le32 trailing; /* "desc" */
	struct le64 leading;  /* "zero": how many bytes */
	struct le64 off, sequence;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_vhdx_descriptor) == 32, "descriptor");

struct disk_vhdx_log_data {
	uint8_t signature[4]; /* "data" */
	struct le32 sequence_high;
	uint8_t data[4084];
	struct le32 sequence_low;
} __attribute__((packed));
_Static_assert(sizeof(struct disk_vhdx_log_data) == VHDX_SECTOR_BYTES, "data sector");

/* Entries of the block allocation table: state in bits 0 to 2, place in MiB from bit 20. */
#define VHDX_STATE_MASK UINT64_C(7)
#define VHDX_PLACE_MASK (~(VHDX_MIB - 1))
enum vhdx_entry_state {
	VHDX_NOT_PRESENT = 0,
	VHDX_UNDEFINED = 1,
	VHDX_ZERO = 2,
	VHDX_UNMAPPED = 3,
	VHDX_PRESENT = 6, /* of a bitmap block too */
	VHDX_PARTLY = 7,
};

#endif
