/* SPDX-License-Identifier: MIT */
/*
 * Expandable images of Parallels as they stand on disk, little-endian. Source: docs/interop/parallels.rst of QEMU; what
 * is relied on, and the PRL-NN that comments here and findings name: format-spec/parallels.md.
 */
#ifndef PRL_DISK_H
#define PRL_DISK_H

#include <assert.h>
#include <stddef.h>

#include "disk_int.h"

#define PRL_MAGIC_BYTES 16u
#define PRL_MAGIC_V1	"WithoutFreeSpace" /* entries count sectors */
#define PRL_MAGIC_V2	"WithouFreSpacExt" /* entries count clusters */
#define PRL_VERSION	2u

#define PRL_SECTOR_BYTES    512u
#define PRL_CLUSTER_DEFAULT (1u << 20)
#define PRL_CLUSTER_MAX	    (1u << 30) /* ours; the largest that is known to be used is 2 MiB */
#define PRL_ENTRIES_MAX	    (1u << 30) /* QEMU's: the table is at most 4 GiB */

/* in_use: what a writer has open; what it writes at the end. Parallels itself puts its version there ("pd17"). */
#define PRL_IN_USE 0x746f6e59u
#define PRL_CLOSED 0x312e3276u

#define PRL_FLAG_EMPTY 1u /* nothing was written yet */

struct disk_prl_header {
	char magic[PRL_MAGIC_BYTES];
	struct le32 version, heads, cylinders;
	struct le32 cluster_sectors; /* "tracks" */
	struct le32 nr_entries;
	struct le64 nr_sectors; /* V1: the low half of it */
	struct le32 in_use;
	struct le32 data_off; /* sectors; V1: 0 means right behind the table */
	struct le32 flags;
	struct le64 ext_off; /* sectors; 0: none */
};

static_assert(sizeof(struct disk_prl_header) == 64, "64 bytes");
static_assert(offsetof(struct disk_prl_header, nr_sectors) == 36, "not aligned");
static_assert(offsetof(struct disk_prl_header, ext_off) == 56, "the last one");

#define PRL_TABLE_OFF	sizeof(struct disk_prl_header)
#define PRL_AT(field)	offsetof(struct disk_prl_header, field)
#define PRL_ENTRY_BYTES 4u

/* The geometry that is made up for new images, as QEMU and Parallels do. */
#define PRL_HEADS		 16u
#define PRL_SECTORS_PER_TRACK	 32u
#define PRL_SECTORS_PER_CYLINDER (PRL_HEADS * PRL_SECTORS_PER_TRACK)

/* ---- the Format Extension, one cluster --------------------------------------------------------------------------- */

#define PRL_EXT_MAGIC	 UINT64_C(0xab234cef23dcea87)
#define PRL_EXT_BITMAP	 UINT64_C(0x20385fae252cb34a)
#define PRL_EXT_END	 UINT64_C(0)
#define PRL_EXT_NEEDED	 1u /* who does not understand it must not change the image */
#define PRL_EXT_TRANSIT	 2u /* who does not understand it leaves it as it is */
#define PRL_SECTIONS_MAX 1024u

struct disk_prl_ext {
	struct le64 magic;
	uint8_t md5[16]; /* of all that follows in the cluster */
};

struct disk_prl_section {
	struct le64 magic, flags;
	struct le32 data_bytes, unused;
};

struct disk_prl_bitmap {
	struct le64 nr_sectors;
	uint8_t id[16];
	struct le32 granularity; /* sectors */
	struct le32 nr_l1;
	/* nr_l1 times le64: 0: all bits clear, 1: all set, else the sector of a cluster of bits */
};

static_assert(sizeof(struct disk_prl_ext) == 24, "24 bytes");
static_assert(sizeof(struct disk_prl_section) == 24, "24 bytes");
static_assert(sizeof(struct disk_prl_bitmap) == 32, "32 bytes");

#endif
