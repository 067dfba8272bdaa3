/* SPDX-License-Identifier: MIT */
/*
 * limg on disk: format-spec/limg.md as packed structs. Only the load and store functions of super.c, tree.c, space.c,
 * journal.c, catalog.c and unit.c touch them; everything else sees the host-order structs of engine.h.
 */
#ifndef LIMG_DISK_H
#define LIMG_DISK_H

#include <assert.h>
#include <stddef.h>

#include "disk_int.h"

#define AU_SHIFT 12
#define AU_BYTES 4096u /* allocation unit, tree node, free-space page, superblock */

/* Section 2: fixed places */
#define GROUP_AUS      32768u /* one bitmap page of bits */
#define SUPER_PLACE_A  0u
#define SUPER_PLACE_B  192u /* 768 KiB: far from the first, inside the smallest image */
#define SPACE_FIXED_AU 2u   /* level l: versions at 2 + 2 l and 3 + 2 l of the first group that it covers */
#define SPACE_LEVELS   4u   /* bitmap and three levels of tables: 2 PiB */
#define SPACE_FANOUT   256u
#define MIN_FILE_AUS   194u

/* Section 5: trees */
#define LEAF_SHIFT   8
#define LEAF_ENTRIES 256u
#define FANOUT_SHIFT 6
#define FANOUT	     64u
#define MAX_LEVELS   5u /* 256 * 64^5 blocks: more than any size allowed */
#define NODE_MAGIC   0x444e494cu

#define ADDR_BITS  38
#define BIRTH_BITS 22
#define MAX_EPOCH  ((1u << BIRTH_BITS) - 1)

/* Sizes: 16 TiB is the promise; twice that still fits the tree with 4 KiB blocks and keeps arithmetic far from 2^63. */
#define MAX_VOLUME_BYTES (UINT64_C(1) << 45)
#define MAX_SNAPSHOTS	 65536u
#define MAX_RING_AUS	 16384u /* 64 MiB */
#define MAX_COUNTER	 (UINT64_C(1) << 62) /* generation, ids, sequence: no writer gets there, and none wraps */

struct disk_entry {
	struct le64 word, csum;
};
static_assert(sizeof(struct disk_entry) == 16, "leaf entry");

struct disk_ptr {
	struct le64 word, csum;
	uint8_t logical[16];
	struct le64 count;
};
static_assert(sizeof(struct disk_ptr) == 40, "node pointer");

struct disk_leaf {
	struct disk_entry e[LEAF_ENTRIES];
};
static_assert(sizeof(struct disk_leaf) == AU_BYTES, "leaf");

struct disk_node {
	struct le32 magic;
	uint8_t level, kind, zero[2];
	struct le64 index;
	uint8_t zero2[48];
	struct disk_ptr child[FANOUT];
	uint8_t zero3[1472];
};
static_assert(sizeof(struct disk_node) == AU_BYTES, "interior node");
static_assert(offsetof(struct disk_node, child) == 64, "interior node");

struct disk_volume {
	struct le64 size;
	uint8_t levels, zero[7];
	struct disk_ptr root;
};
static_assert(sizeof(struct disk_volume) == 56, "volume");

struct disk_space_entry {
	struct le64 csum;
	struct le32 free;
	uint8_t version, flags, zero[2];
};
static_assert(sizeof(struct disk_space_entry) == 16, "table entry");
#define SPACE_PRESENT 1u

struct disk_backing {
	struct le32 flags, name_bytes;
	char format[16];
	uint8_t uuid[16], snapshot_uuid[16], hash[16];
	struct le64 size, mtime;
	struct le32 pin, snapshot_bytes;
	char snapshot[256];
	char name[1024];
};
static_assert(sizeof(struct disk_backing) == 1376, "backing");
#define BACKING_PRESENT	   1u
#define BACKING_SNAPSHOT   2u
#define BACKING_COMMITTING 4u

struct disk_super {
	uint8_t magic[8];
	struct le32 version, header_bytes;
	struct le64 incompat, rocompat, compat;
	uint8_t uuid[16];
	struct le64 generation;
	uint8_t block_shift, unit_shift, codec, level;
	struct le32 zero;
	struct le64 file_bytes, epoch, head_parent, next_id, nr_slots, salt;
	struct le64 ring_addr, ring_aus, ring_tail, ring_seq;
	uint8_t ring_prev[16];
	struct disk_volume disk, vm, catalog;
	struct disk_space_entry space;
	struct le64 nr_groups, used_aus, hint, created;
	uint8_t zero2[128];
	struct disk_backing backing;
	uint8_t zero3[2192];
	uint8_t csum[16];
};
static_assert(sizeof(struct disk_super) == AU_BYTES, "superblock");
static_assert(offsetof(struct disk_super, disk) == 168, "superblock");
static_assert(offsetof(struct disk_super, space) == 336, "superblock");
static_assert(offsetof(struct disk_super, backing) == 512, "superblock");
static_assert(offsetof(struct disk_super, csum) == 4080, "superblock");

struct disk_snapshot {
	struct le64 id;
	struct le32 state, name_bytes;
	uint8_t uuid[16];
	struct le64 parent, epoch, created, cursor;
	struct le32 cursor_vol, flags;
	struct disk_volume disk, vm;
	uint8_t zero2[72];
	char name[256];
};
static_assert(sizeof(struct disk_snapshot) == 512, "snapshot record");
static_assert(offsetof(struct disk_snapshot, disk) == 72, "snapshot record");
#define SNAPS_PER_PAGE	 8u
#define SNAP_HAS_VMSTATE 1u

struct disk_record {
	struct le32 magic, bytes;
	uint8_t uuid[16];
	struct le64 salt, seq;
	uint8_t prev[16];
	struct le64 stable;
	struct le32 kind, nr_deltas, delta_bytes, zero;
	struct le64 disk_size, zero2;
};
static_assert(sizeof(struct disk_record) == 96, "journal record");
#define RECORD_MAGIC  0x4e524a4cu
#define RECORD_DELTAS 1u
#define RECORD_WRAP   2u

struct disk_delta {
	struct le64 block, word;
	struct le32 nr;
	uint8_t vol, zero[3];
};
static_assert(sizeof(struct disk_delta) == 24, "delta");

struct disk_unit {
	struct le32 payload_bytes, zero;
	struct le64 csum;
};
static_assert(sizeof(struct disk_unit) == 16, "compressed unit");

#endif
