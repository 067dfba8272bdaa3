/* SPDX-License-Identifier: MIT */
/* What the files about the header share. */
#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include "qcow2_engine.h"

#define QCOW2_EXTENDED_BITS_MIN 14u /* clusters of an image with subclusters */
#define QCOW2_SECTOR_BYTES	512u

/* Format name under which the header hides that the image stands on a snapshot: others must not read the head instead. */
#define QCOW2_PINNED_FORMAT "limg-pin"

/* Our extension; numbers big-endian. format-spec/qcow2.md, section "The pin extension". */
struct disk_qcow2_pin {
	uint8_t version; /* 1 */
	uint8_t kind;	 /* enum pin_kind */
	uint8_t flags;
	uint8_t snapshot_bytes; /* of the name behind the struct */
	struct be32 reserved;
	struct be64 backing_hash; /* XXH3-64 of the backing file's name */
	uint8_t uuid[16], snapshot_uuid[16], hash[16];
	struct be64 size_bytes, mtime_ns;
	char format[16]; /* of the backing file, NUL-padded */
};
_Static_assert(sizeof(struct disk_qcow2_pin) == 96, "the pin has 96 bytes before the snapshot's name");
enum qcow2_pin_flags { QCOW2_PIN_COMMITTING = 1 };

/* Log2 of the bytes of the disk that one L2 table maps. */
static inline unsigned qcow2_l2_span_shift(const struct qcow2_header *h)
{
	return 2 * h->cluster_bits - (h->incompatible & QCOW2_EXTENDED_L2 ? 4 : 3);
}

static inline uint64_t qcow2_header_l1_entries(const struct qcow2_header *h, uint64_t size_bytes)
{
	unsigned shift = qcow2_l2_span_shift(h);

	return (size_bytes >> shift) + ((size_bytes & ((UINT64_C(1) << shift) - 1)) != 0);
}

/* Everything between the header's fields and the backing file's name; h has version, header_bytes, autoclear, and the
 * backing's name and place. */
int qcow2_extensions_load(struct qcow2_header *h, const uint8_t *cluster, struct img_error *err);

/* "subclusters, bit 9": incompatible features by the image's own table of names. */
void qcow2_feature_names(const struct qcow2_header *h, uint64_t bits, char *out, size_t out_bytes);

/* Records ref, with the pin; NULL: none. Changes h alone. IMG_E_INVALID for what the format cannot hold: then h is as
 * it was. */
int qcow2_header_set_backing(struct qcow2_header *h, const struct backing_ref *ref, struct img_error *err);
/* IMG_E_LIMIT if names and extensions of e->h do not fit into the header's cluster: for a transaction, before its
 * commit. */
int qcow2_header_fits(struct qcow2_engine *e, struct img_error *err);

/* Our extension as bytes; out has room for QCOW2_PIN_MAX_BYTES. Returns its length, 0 where there is nothing to record.
 */
#define QCOW2_PIN_MAX_BYTES (sizeof(struct disk_qcow2_pin) + IMG_SNAPSHOT_NAME_MAX)
uint32_t qcow2_pin_store(const struct qcow2_header *h, uint8_t *out);

#endif
