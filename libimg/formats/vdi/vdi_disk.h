/* SPDX-License-Identifier: MIT */
/*
 * VDI as it stands on disk, little-endian. Sources: VirtualBox' VDICore.h and VDI.cpp (there is no other
 * specification); what is relied on, and the VDI-NN that comments here and findings name: format-spec/vdi.md.
 */
#ifndef VDI_DISK_H
#define VDI_DISK_H

#include <assert.h>
#include <stddef.h>

#include "disk_int.h"

#define VDI_MAGIC     0xbeda107fu
#define VDI_VERSION_0 0x00000002u /* before 1.0 */
#define VDI_VERSION_1 0x00010001u

enum vdi_type { VDI_DYNAMIC = 1, VDI_FIXED = 2, VDI_UNDO = 3, VDI_DIFFERENCING = 4 };

/* The only flag that a reader may meet: new blocks are to be zeroed. Means nothing here: they always are. */
#define VDI_FLAG_ZERO_EXPAND 1u

/* Entries of the block map; all else is the index of a block's place. */
#define VDI_ENTRY_FREE 0xffffffffu
#define VDI_ENTRY_ZERO 0xfffffffeu
#define VDI_PLACES_MAX 0xfffffffeu /* indexes below */

#define VDI_COMMENT_BYTES 256u
#define VDI_BLOCK_MIN	  512u
#define VDI_BLOCK_DEFAULT (1u << 20)
#define VDI_BLOCK_MAX	  (1u << 31)
#define VDI_ALIGN_DEFAULT (1u << 20) /* of block map and data, as VirtualBox writes */
#define VDI_SECTOR_BYTES  512u
#define VDI_BLOCKS_MAX	  0x3fffffffu /* QEMU's limit; VirtualBox' sums of the map's size overflow there, too */

struct disk_vdi_preheader {
	char text[64];
	struct le32 magic, version;
};

struct disk_vdi_geometry {
	struct le32 cylinders, heads, sectors, sector_bytes;
};

struct disk_vdi_header0 {
	struct le32 type, flags;
	char comment[VDI_COMMENT_BYTES];
	struct disk_vdi_geometry geometry;
	struct le64 disk_bytes;
	struct le32 block_bytes, nr_blocks, nr_allocated;
	uint8_t uuid[16], modification[16], parent[16];
};

struct disk_vdi_header1 {
	struct le32 header_bytes, type, flags;
	char comment[VDI_COMMENT_BYTES];
	struct le32 map_off, data_off;
	struct disk_vdi_geometry geometry; /* unused since 1.1 */
	struct le32 unused;
	struct le64 disk_bytes;
	struct le32 block_bytes, extra_bytes, nr_blocks, nr_allocated;
	uint8_t uuid[16], modification[16], parent[16], parent_modification[16];
	struct disk_vdi_geometry lchs; /* from header_bytes 400 on */
};

#define VDI_HEADER_OFF	   sizeof(struct disk_vdi_preheader)
#define VDI_HEADER1_BYTES  384u /* without lchs */
#define VDI_HEADER1P_BYTES 400u

static_assert(sizeof(struct disk_vdi_preheader) == 72, "72 bytes");
static_assert(sizeof(struct disk_vdi_header0) == 348, "348 bytes");
static_assert(offsetof(struct disk_vdi_header1, lchs) == VDI_HEADER1_BYTES, "384 bytes");
static_assert(sizeof(struct disk_vdi_header1) == VDI_HEADER1P_BYTES, "400 bytes");
static_assert(VDI_HEADER_OFF + VDI_HEADER1P_BYTES <= VDI_SECTOR_BYTES, "changes are atomic: one sector");

/* Of a field of version 1, in the file. */
#define VDI_AT(field) (VDI_HEADER_OFF + offsetof(struct disk_vdi_header1, field))

#endif
