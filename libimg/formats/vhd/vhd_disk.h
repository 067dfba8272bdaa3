/* SPDX-License-Identifier: MIT */
/*
 * VHD as it stands on disk; everything is big-endian but the UTF-16LE of parent locators. Facts from the Virtual Hard
 * Disk Image Format Specification (Microsoft, 2006); what is relied on, and which limits are set, is in
 * format-spec/vhd.md.
 */
#ifndef VHD_DISK_H
#define VHD_DISK_H

#include "disk_int.h"

#define VHD_SECTOR_BYTES 512u

struct disk_vhd_footer {
	uint8_t cookie[8];
	struct be32 features, version;
	struct be64 data_off; /* of the dynamic disk header; all ones: a fixed disk has none */
	struct be32 timestamp;
	uint8_t creator[4];
	struct be32 creator_version;
	uint8_t creator_os[4];
	struct be64 original_bytes, current_bytes;
	struct be16 cylinders;
	uint8_t heads, sectors; /* sectors per track */
	struct be32 type, checksum;
	uint8_t uuid[16];
	uint8_t saved;
	uint8_t reserved[427];
};
_Static_assert(sizeof(struct disk_vhd_footer) == 512, "a footer is a sector");

#define VHD_COOKIE	     "conectix"
#define VHD_OLD_FOOTER_BYTES 511u /* Virtual PC before 2004 */
#define VHD_FEATURES	     2u	  /* reserved, always set */
#define VHD_VERSION	     0x00010000u
#define VHD_NO_DATA_OFF	     UINT64_MAX
#define VHD_EPOCH	     946684800 /* 2000-01-01 00:00:00 UTC, in seconds since 1970 */
#define VHD_NS_PER_SECOND    INT64_C(1000000000)

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

/* The geometry of disks that are too large for one. */
#define VHD_CYLINDERS_MAX 65535u
#define VHD_HEADS_MAX	  16u
#define VHD_SECTORS_MAX	  255u

struct disk_vhd_locator {
	uint8_t code[4];
	struct be32 space;  /* of the room: sectors by the specification, bytes as Windows writes it */
	struct be32 length; /* of the text, in bytes */
	struct be32 reserved;
	struct be64 off;
};
_Static_assert(sizeof(struct disk_vhd_locator) == 24, "a locator has 24 bytes");

#define VHD_LOCATORS   8u
#define VHD_NAME_BYTES 512u /* of the parent's name in UTF-16BE */

struct disk_vhd_header {
	uint8_t cookie[8];
	struct be64 data_off; /* all ones */
	struct be64 table_off;
	struct be32 version, max_entries, block_bytes, checksum;
	uint8_t parent_uuid[16];
	struct be32 parent_timestamp;
	struct be32 reserved;
	uint8_t parent_name[VHD_NAME_BYTES];
	struct disk_vhd_locator locator[VHD_LOCATORS];
	uint8_t reserved2[256];
};
_Static_assert(sizeof(struct disk_vhd_header) == 1024, "the dynamic disk header has two sectors");

#define VHD_HEADER_COOKIE "cxsparse"

/* What may change by one write of one sector: everything before the last bytes of the name, and the locators. */
#define VHD_HEADER_FIRST_BYTES VHD_SECTOR_BYTES

#define VHD_FREE UINT32_MAX /* entry of a block that has no place; else its sector */

/* Where new images have it. */
#define VHD_HEADER_OFF 512u
#define VHD_TABLE_OFF  1536u

/* The largest disk of the specification, which others do not exceed; a table of 32-bit sectors reaches to 2 TiB. */
#define VHD_DYNAMIC_MAX_BYTES (UINT64_C(2040) << 30)
/* A fixed disk has no such limit: Azure takes 32 TiB. */
#define VHD_FIXED_MAX_BYTES ((UINT64_C(1) << 62) - VHD_SECTOR_BYTES)

#define VHD_BLOCK_MIN_BYTES	4096u
#define VHD_BLOCK_MAX_BYTES	(256u << 20)
#define VHD_BLOCK_DEFAULT_BYTES (2u << 20)
#define VHD_DATA_ALIGN_BYTES	4096u /* of blocks' data in files that we write */

#endif
