/* SPDX-License-Identifier: MIT */
/*
 * Walks qcow2 images. Nothing in them has a checksum but the name that a pin belongs to; FUZZ_FIX_DERIVED puts magic
 * and version back, so that a change of many bytes does not end at the door.
 */
#include <xxhash.h>

#include "qcow2_disk.h"
#include "refix.h"

#define PAGES_MAX      400u
#define EXTENSIONS_MAX 16u
#define ENTRIES_MAX    40u /* of one table that are told */
#define PIN_HASH_OFF   8u
#define PIN_MIN_BYTES  96u

struct qcow2 {
	struct walk w;
	struct disk_qcow2_header h;
	unsigned cluster_bits;
};

typedef void (*entry_fn)(struct qcow2 *q, uint64_t value);

/* The entries of a table of 64-bit words that are not zero, and the one after the last. */
static void walk_words(struct qcow2 *q, uint64_t off, uint64_t nr, entry_fn below)
{
	unsigned found = 0;
	struct be64 v;

	for (uint64_t i = 0; i < nr && i < 4096 && found < ENTRIES_MAX; i++) {
		if (off + 8 * i + 8 > q->w.file_bytes || off + 8 * i + 8 < off)
			return;
		mem_content_read(q->w.image, &v, sizeof(v), off + 8 * i);
		if (be64_get(v) == 0 && i != nr - 1)
			continue;
		walk_field(&q->w, off + 8 * i, 8);
		found++;
		if (below && q->w.pages_left > 0) {
			q->w.pages_left--;
			below(q, be64_get(v));
		}
	}
}

static void walk_l2(struct qcow2 *q, uint64_t l1_entry)
{
	uint64_t off = l1_entry & QCOW2_OFFSET_MASK;

	if (off)
		walk_words(q, off, UINT64_C(1) << (q->cluster_bits - 3), NULL);
}

static void walk_refblock(struct qcow2 *q, uint64_t entry)
{
	uint64_t off = entry & ~QCOW2_RT_RESERVED;

	for (unsigned i = 0; off && i < 32; i += 2)
		if (off + i + 2 <= q->w.file_bytes)
			walk_field(&q->w, off + i, 2);
}

/* ---- the header and what stands behind it ---- */

static void walk_bitmap_table(struct qcow2 *q, uint64_t entry)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK;

	if (off && off + 16 <= q->w.file_bytes) {
		walk_field(&q->w, off, 8);
		walk_field(&q->w, off + 8, 8);
	}
}

static void walk_bitmaps(struct qcow2 *q, uint64_t at)
{
	static const uint8_t fields[][2] = { { 0, 8 },	{ 8, 4 },  { 12, 4 }, { 16, 1 },
					     { 17, 1 }, { 18, 2 }, { 20, 4 }, { 24, 1 } };
	struct disk_qcow2_bitmaps_ext ext;
	uint64_t off;

	if (!walk_load(&q->w, &ext, sizeof(ext), at))
		return;
	walk_field(&q->w, at + 8, 8);
	walk_field(&q->w, at + 16, 8);
	off = be64_get(ext.directory_off);
	for (unsigned i = 0; i < 8 && i < be32_get(ext.nr_bitmaps); i++) {
		struct disk_qcow2_bitmap b;

		if (!walk_load(&q->w, &b, sizeof(b), off))
			return;
		for (unsigned f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
			walk_field(&q->w, off + fields[f][0], fields[f][1]);
		walk_words(q, be64_get(b.table_off), be32_get(b.table_entries), walk_bitmap_table);
		off += (sizeof(b) + be32_get(b.extra_bytes) + be16_get(b.name_bytes) + 7) & ~UINT64_C(7);
	}
}

static void fix_pin(struct qcow2 *q, uint64_t at, uint32_t bytes)
{
	uint64_t off = be64_get(q->h.backing_off);
	uint32_t name_bytes = be32_get(q->h.backing_bytes);
	uint8_t name[QCOW2_NAME_MAX];
	struct be64 hash;

	if (!(q->w.fix & FUZZ_FIX_METADATA) || bytes < PIN_MIN_BYTES || name_bytes > sizeof(name) ||
	    !walk_load(&q->w, name, name_bytes, off))
		return;
	hash = be64_of(XXH3_64bits(name, name_bytes));
	walk_store(&q->w, &hash, sizeof(hash), at + PIN_HASH_OFF);
}

static void walk_extensions(struct qcow2 *q, uint64_t at)
{
	struct disk_qcow2_extension ext;

	for (unsigned i = 0; i < EXTENSIONS_MAX && walk_load(&q->w, &ext, sizeof(ext), at); i++) {
		uint32_t type = be32_get(ext.type), bytes = be32_get(ext.bytes);

		walk_field(&q->w, at, 4);
		walk_field(&q->w, at + 4, 4);
		at += sizeof(ext);
		if (type == QCOW2_EXT_END || bytes > q->w.file_bytes)
			return;
		for (unsigned f = 0; f < 4 && f * 8 + 8 <= bytes; f++)
			walk_field(&q->w, at + f * 8, f % 2 ? 8 : 4);
		if (type == QCOW2_EXT_BITMAPS)
			walk_bitmaps(q, at);
		else if (type == QCOW2_EXT_PIN)
			fix_pin(q, at, bytes);
		at += (bytes + 7u) & ~7u;
	}
}

static void walk_snapshots(struct qcow2 *q)
{
	static const uint8_t fields[][2] = { { 0, 8 },	{ 8, 4 },  { 12, 2 }, { 14, 2 }, { 16, 4 },
					     { 24, 8 }, { 32, 4 }, { 36, 4 }, { 40, 8 }, { 48, 8 } };
	uint64_t off = be64_get(q->h.snapshots_off);

	for (unsigned i = 0; i < 8 && i < be32_get(q->h.nr_snapshots); i++) {
		struct disk_qcow2_snapshot s;

		if (!walk_load(&q->w, &s, sizeof(s), off))
			return;
		for (unsigned f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
			walk_field(&q->w, off + fields[f][0], fields[f][1]);
		walk_words(q, be64_get(s.l1_off), be32_get(s.l1_entries), walk_l2);
		off += (sizeof(s) + be32_get(s.extra_bytes) + be16_get(s.id_bytes) + be16_get(s.name_bytes) + 7) &
		       ~UINT64_C(7);
	}
}

static void walk_header(struct qcow2 *q)
{
	static const uint8_t fields[][2] = { { 0, 4 },	{ 4, 4 },  { 8, 8 },   { 16, 4 }, { 20, 4 }, { 24, 8 },
					     { 32, 4 }, { 36, 4 }, { 40, 8 },  { 48, 8 }, { 56, 4 }, { 60, 4 },
					     { 64, 8 }, { 72, 8 }, { 80, 8 },  { 88, 8 }, { 96, 4 }, { 100, 4 },
					     { 79, 1 }, { 95, 1 }, { 104, 1 }, { 112, 8 } };

	for (unsigned f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
		walk_field(&q->w, fields[f][0], fields[f][1]);
}

void refix_qcow2(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	struct qcow2 q = { .w = { .image = image, .fix = fix, .field = field, .ctx = ctx, .pages_left = PAGES_MAX } };
	uint32_t header_bytes;

	q.w.file_bytes = mem_content_size(image);
	if (!walk_load(&q.w, &q.h, sizeof(q.h), 0))
		return;
	if (fix & FUZZ_FIX_DERIVED) {
		q.h.magic = be32_of(QCOW2_MAGIC);
		if (be32_get(q.h.version) != 2)
			q.h.version = be32_of(3);
		walk_store(&q.w, &q.h, sizeof(q.h), 0);
	}
	q.cluster_bits = be32_get(q.h.cluster_bits);
	if (q.cluster_bits < QCOW2_CLUSTER_BITS_MIN || q.cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		q.cluster_bits = 16;
	header_bytes = be32_get(q.h.version) == 2 ? QCOW2_HEADER_V2_BYTES : be32_get(q.h.header_bytes);
	walk_extensions(&q, header_bytes);
	if (!field)
		return;
	walk_header(&q);
	walk_words(&q, be64_get(q.h.l1_off), be32_get(q.h.l1_entries), walk_l2);
	walk_words(&q, be64_get(q.h.reftable_off), (uint64_t)be32_get(q.h.reftable_clusters) << (q.cluster_bits - 3),
		   walk_refblock);
	walk_snapshots(&q);
	walk_field(&q.w, be64_get(q.h.backing_off), 8);
}
