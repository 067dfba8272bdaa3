/* SPDX-License-Identifier: MIT */
/*
 * VMDK as it stands on disk; all integers are little-endian, lengths and places are counted in sectors. Facts from the
 * "Virtual Disk Format 5.0" technical note (VMware, 2011) and, for what it does not describe (COWD, seSparse), from the
 * libvmdk documentation and from files of ESX; what is relied on, and which limits are set, is in format-spec/vmdk.md.
 */
#ifndef VMDK_DISK_H
#define VMDK_DISK_H

#include "disk_int.h"

#define VMDK_SECTOR_BYTES 512u

/* ---- sparse extents of hosted products, and streamOptimized ------------------------------------------------------- */

struct __attribute__((packed)) disk_vmdk_header {
	uint8_t magic[4];
	struct le32 version, flags;
	struct le64 capacity, grain, descriptor_off, descriptor_sectors;
	struct le32 nr_gtes;
	struct le64 rgd_off, gd_off, overhead;
	uint8_t unclean;
	uint8_t newlines[4]; /* what a transfer as text would change */
	struct le16 compression;
	uint8_t pad[433];
};
_Static_assert(sizeof(struct disk_vmdk_header) == VMDK_SECTOR_BYTES, "the header is a sector");
_Static_assert(offsetof(struct disk_vmdk_header, unclean) == 72, "the flag behind the fields");

#define VMDK_MAGIC	 "KDMV"
#define VMDK_NEWLINES	 "\n \r\n"
#define VMDK_VERSION_MAX 3u

enum vmdk_flags {
	VMDK_NEWLINES_VALID = 1u << 0,
	VMDK_RGD_VALID = 1u << 1,   /* a second copy of directory and tables */
	VMDK_ZERO_GRAINS = 1u << 2, /* an entry of 1 is a grain of zeros */
	VMDK_COMPRESSED = 1u << 16,
	VMDK_MARKERS = 1u << 17,
};
/* Whoever does not know one of these cannot read the extent; the lower half may be ignored. */
#define VMDK_FLAGS_INCOMPATIBLE 0xffff0000u

#define VMDK_AT_END	   UINT64_MAX /* gd_off: the footer has it */
#define VMDK_DEFLATE	   1u	      /* compression: zlib streams (RFC 1950) */
#define VMDK_GTE_ZERO	   1u	      /* with VMDK_ZERO_GRAINS */
#define VMDK_GTE_BYTES	   4u
#define VMDK_GDE_BYTES	   4u
#define VMDK_GTES	   512u /* of a table, in all files that VMware writes */
#define VMDK_GTES_MAX	   4096u
#define VMDK_GRAIN_DEFAULT 65536u
#define VMDK_GRAIN_MIN	   512u
#define VMDK_GRAIN_MAX	   (16u << 20)

/* Before each piece of a streamOptimized file. size 0: a mark of `type`, of `val` sectors that follow; else a grain of
 * `size` bytes of data from offset 12 on, for the sector `val` of the disk. */
struct __attribute__((packed)) disk_vmdk_marker {
	struct le64 val;
	struct le32 size, type;
	uint8_t pad[496];
};
_Static_assert(sizeof(struct disk_vmdk_marker) == VMDK_SECTOR_BYTES, "a marker is a sector");

enum vmdk_marker { VMDK_MARKER_EOS = 0, VMDK_MARKER_GT = 1, VMDK_MARKER_GD = 2, VMDK_MARKER_FOOTER = 3 };
#define VMDK_GRAIN_MARKER_BYTES 12u

/* ---- extents of ESX before version 6.5 ----------------------------------------------------------------------------- */

struct __attribute__((packed)) disk_cowd_header {
	uint8_t magic[4];
	struct le32 version, flags; /* version 1 */
	struct le32 capacity, grain, gd_off, nr_gdes, next_free;
	/* A disk at the root of a chain has its geometry here, others their parent's name. */
	uint8_t parent_name[1024];
	struct le32 parent_generation, generation;
	uint8_t name[60], description[512];
	struct le32 saved_generation;
	uint8_t reserved[8];
	struct le32 unclean;
	uint8_t pad[396];
};
_Static_assert(sizeof(struct disk_cowd_header) == 4 * VMDK_SECTOR_BYTES, "four sectors");

#define COWD_MAGIC "COWD"
#define COWD_GTES  4096u

/* ---- extents of ESX from version 6.5 on (seSparse) ----------------------------------------------------------------- */

struct __attribute__((packed)) disk_sesparse_area {
	struct le64 off, sectors;
};

struct __attribute__((packed)) disk_sesparse_header {
	struct le64 magic, version, capacity, grain, table_sectors, flags, reserved1[4];
	struct disk_sesparse_area volatile_header, journal_header, journal, directory, tables, free_bitmap, backmap,
		grains;
	uint8_t pad[304];
};
_Static_assert(sizeof(struct disk_sesparse_header) == VMDK_SECTOR_BYTES, "the constant header is a sector");

struct __attribute__((packed)) disk_sesparse_volatile {
	struct le64 magic, free_gt, next_txn, replay;
	uint8_t pad[480];
};
_Static_assert(sizeof(struct disk_sesparse_volatile) == VMDK_SECTOR_BYTES, "the volatile header is a sector");

#define SESPARSE_MAGIC		UINT64_C(0x00000000cafebabe)
#define SESPARSE_VOLATILE_MAGIC UINT64_C(0x00000000cafecafe)
#define SESPARSE_VERSION	UINT64_C(0x0000000200000001)
#define SESPARSE_GRAIN_SECTORS	8u
#define SESPARSE_TABLE_SECTORS	64u
#define SESPARSE_ENTRY_BYTES	8u

#endif
