/* SPDX-License-Identifier: MIT */
/*
 * qcow2 as it stands on disk; everything is big-endian. Facts from QEMU's docs/interop/qcow2.rst; what is relied on, and
 * which limits are set, is in format-spec/qcow2.md.
 */
#ifndef QCOW2_DISK_H
#define QCOW2_DISK_H

#include "disk_int.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

struct disk_qcow2_header {
	struct be32 magic, version;
	struct be64 backing_off;
	struct be32 backing_bytes; /* of the name */
	struct be32 cluster_bits;
	struct be64 size;
	struct be32 crypt_method, l1_entries;
	struct be64 l1_off, reftable_off;
	struct be32 reftable_clusters, nr_snapshots;
	struct be64 snapshots_off;
	/* from version 3 */
	struct be64 incompatible, compatible, autoclear;
	struct be32 refcount_order, header_bytes;
	uint8_t compression_type, pad[7];
};
#define QCOW2_HEADER_V2_BYTES  72u
#define QCOW2_HEADER_MIN_BYTES 104u /* version 3 without compression_type */
_Static_assert(sizeof(struct disk_qcow2_header) == 112, "the header has 112 bytes");

enum qcow2_incompatible {
	QCOW2_DIRTY = 1u << 0,	      /* refcounts may be wrong */
	QCOW2_CORRUPT = 1u << 1,      /* not to be written */
	QCOW2_DATA_FILE = 1u << 2,    /* guest data stands in another file */
	QCOW2_COMPRESSION = 1u << 3,  /* compression_type is not deflate */
	QCOW2_EXTENDED_L2 = 1u << 4,  /* subclusters */
	QCOW2_INCOMPATIBLE_KNOWN = (1u << 5) - 1,
};
enum qcow2_compatible { QCOW2_LAZY_REFCOUNTS = 1u << 0, QCOW2_COMPATIBLE_KNOWN = 1 };
enum qcow2_autoclear {
	QCOW2_BITMAPS = 1u << 0,       /* the bitmaps extension is consistent */
	QCOW2_DATA_FILE_RAW = 1u << 1, /* the data file alone is the disk's content */
	QCOW2_AUTOCLEAR_KNOWN = 3,
};
enum qcow2_compression { QCOW2_DEFLATE = 0, QCOW2_ZSTD = 1 };

struct disk_qcow2_extension {
	struct be32 type, bytes; /* followed by the data, padded to 8 */
};
#define QCOW2_EXT_END		 0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES	 0x6803f857u
#define QCOW2_EXT_BITMAPS	 0x23852875u
#define QCOW2_EXT_LUKS		 0x0537be77u
#define QCOW2_EXT_DATA_FILE	 0x44415441u
/* Ours, kept by others as unknown: the identity of the backing file, see format-spec/qcow2.md. */
#define QCOW2_EXT_PIN 0x6c696d67u /* "limg" */

/* L1 and L2 entries */
#define QCOW2_OFFSET_MASK   UINT64_C(0x00fffffffffffe00)
#define QCOW2_COPIED	    (UINT64_C(1) << 63) /* refcount is exactly one: may be written in place */
#define QCOW2_COMPRESSED    (UINT64_C(1) << 62)
#define QCOW2_ZERO	    UINT64_C(1) /* standard L2 entries from version 3, not with subclusters */
#define QCOW2_L1_RESERVED   UINT64_C(0x7f000000000001ff)
#define QCOW2_L2_RESERVED   UINT64_C(0x3f000000000001fe)
#define QCOW2_RT_RESERVED   UINT64_C(0x1ff) /* of the refcount table; the rest is the offset */
#define QCOW2_SUBCLUSTERS   32u

struct disk_qcow2_snapshot {
	struct be64 l1_off;
	struct be32 l1_entries;
	struct be16 id_bytes, name_bytes;
	struct be32 date_sec, date_nsec;
	struct be64 vm_clock_nsec;
	struct be32 vm_state_bytes, extra_bytes;
	/* extra data: be64 vm_state_bytes, be64 disk_bytes, be64 icount, more; then id, name, padding to 8 */
};
_Static_assert(sizeof(struct disk_qcow2_snapshot) == 40, "a snapshot table entry has 40 bytes before its extra data");

struct disk_qcow2_bitmaps_ext {
	struct be32 nr_bitmaps, reserved;
	struct be64 directory_bytes, directory_off;
};

struct disk_qcow2_bitmap {
	struct be64 table_off;
	struct be32 table_entries;
	struct be32 flags;
	uint8_t type, granularity_bits;
	struct be16 name_bytes;
	struct be32 extra_bytes;
	/* extra data, name, padding to 8 */
};
_Static_assert(sizeof(struct disk_qcow2_bitmap) == 24, "a bitmap directory entry has 24 bytes before its extra data");
enum qcow2_bitmap_flags { QCOW2_BITMAP_IN_USE = 1, QCOW2_BITMAP_AUTO = 2, QCOW2_BITMAP_EXTRA_COMPATIBLE = 4 };

/* Limits; those of QEMU, so that what one opens the other does. */
#define QCOW2_CLUSTER_BITS_MIN	9u
#define QCOW2_CLUSTER_BITS_MAX	21u
#define QCOW2_L1_MAX_BYTES	(UINT64_C(32) << 20)
#define QCOW2_REFTABLE_MAX_BYTES (UINT64_C(8) << 20)
#define QCOW2_SNAPSHOTS_MAX	65536u
#define QCOW2_SNAPSHOT_EXTRA_MAX 1024u
#define QCOW2_SNAPSHOT_TABLE_MAX_BYTES (UINT64_C(64) << 20)
#define QCOW2_BITMAPS_MAX	65535u
#define QCOW2_BITMAP_DIR_MAX_BYTES (UINT64_C(64) << 20)
#define QCOW2_BITMAP_NAME_MAX	1023u
#define QCOW2_NAME_MAX		1023u /* of a backing file */

#endif
