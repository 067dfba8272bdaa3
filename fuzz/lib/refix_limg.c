/* SPDX-License-Identifier: MIT */
/*
 * Walks limg images as format-spec/limg.md has them: from the superblocks of the highest generation down, checksums
 * from the leaves up, the catalog's records before the page that they stand on. Of older superblocks only their own
 * checksum is made right.
 */
#include <xxhash.h>

#include "limg_disk.h"
#include "refix.h"

#define PAGES_MAX	 800u
#define RECORDS_MAX	 64u
#define FIELDS_MAX	 48u /* of one page */
#define NR_COPIES	 4u
#define WORD_STATE(word) ((word) >> 60)
#define WORD_ADDR(word)	 ((word) & ((UINT64_C(1) << ADDR_BITS) - 1))
#define KIND_CATALOG	 0u
#define KIND_SPACE	 0x0fu
enum { STATE_NODE = 2, STATE_RAW = 2, STATE_ZSTD = 3, STATE_DEFLATE = 4 };

struct limg {
	struct walk w;
	uint8_t uuid[16];
	unsigned block_shift;
};

static void put_xxh128(const void *data, size_t bytes, uint8_t out[16])
{
	XXH128_hash_t h = XXH3_128bits(data, bytes);
	struct le64 v[2] = { le64_of(h.low64), le64_of(h.high64) };

	memcpy(out, v, 16);
}

static struct le64 page_csum(const struct limg *l, unsigned kind, unsigned level, uint64_t index, const void *page)
{
	struct {
		uint8_t uuid[16];
		struct le32 kind, level;
		struct le64 index;
	} id;

	memcpy(id.uuid, l->uuid, 16);
	id.kind = le32_of(kind);
	id.level = le32_of(level);
	id.index = le64_of(index);
	return le64_of(XXH3_64bits_withSeed(page, AU_BYTES, XXH3_64bits(&id, sizeof(id))));
}

/* ---- data ---- */

static void fix_raw(struct limg *l, uint64_t addr, uint64_t bytes, struct le64 *csum)
{
	uint8_t *buf = malloc(bytes);

	FUZZ_CHECK(buf);
	if (walk_load(&l->w, buf, bytes, addr << AU_SHIFT))
		*csum = le64_of(XXH3_64bits(buf, bytes));
	free(buf);
}

/* The checksum of what is stored; those of the plain text stay. */
static void walk_unit(struct limg *l, uint64_t addr, uint64_t aus)
{
	uint8_t *buf = malloc(aus << AU_SHIFT);
	struct disk_unit *d = (struct disk_unit *)buf;
	uint64_t off = addr << AU_SHIFT;

	FUZZ_CHECK(buf);
	if (aus > 0 && walk_load(&l->w, buf, aus << AU_SHIFT, off)) {
		uint32_t payload = le32_get(d->payload_bytes);

		walk_field(&l->w, off, 4);
		walk_field(&l->w, off + sizeof(*d), 8);
		if (l->w.fix & FUZZ_FIX_DATA && payload <= (aus << AU_SHIFT) - sizeof(*d)) {
			d->csum = le64_of(XXH3_64bits(buf + sizeof(*d), payload));
			walk_store(&l->w, d, sizeof(*d), off);
		}
	}
	free(buf);
}

/* NOLINTBEGIN(misc-no-recursion): a level less each time, and only a catalog leads to volumes, of which none is one */

static void walk_volume(struct limg *l, unsigned kind, struct disk_volume *v, uint64_t at);

static void walk_catalog_page(struct limg *l, uint64_t addr, struct le64 *csum)
{
	static const uint8_t fields[][2] = { { 0, 8 },	{ 8, 4 },  { 12, 4 }, { 32, 8 }, { 40, 8 },
					     { 56, 8 }, { 64, 4 }, { 68, 4 }, { 184, 8 } };
	struct disk_snapshot rec[SNAPS_PER_PAGE];
	uint64_t off = addr << AU_SHIFT;

	if (!walk_load(&l->w, rec, sizeof(rec), off))
		return;
	for (unsigned i = 0; i < SNAPS_PER_PAGE; i++) {
		uint64_t at = off + i * sizeof(rec[0]);

		if (le64_get(rec[i].id) == 0)
			continue;
		for (unsigned f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
			walk_field(&l->w, at + fields[f][0], fields[f][1]);
		walk_field(&l->w, at + offsetof(struct disk_snapshot, name), 1);
		walk_volume(l, 1, &rec[i].disk, at + offsetof(struct disk_snapshot, disk));
		walk_volume(l, 2, &rec[i].vm, at + offsetof(struct disk_snapshot, vm));
	}
	walk_store(&l->w, rec, sizeof(rec), off);
	*csum = le64_of(XXH3_64bits(rec, sizeof(rec)));
}

/* ---- trees ---- */

static void walk_entry(struct limg *l, unsigned kind, struct disk_entry *e)
{
	uint64_t word = le64_get(e->word), addr = WORD_ADDR(word);
	unsigned state = (unsigned)WORD_STATE(word);
	struct le64 csum = e->csum;

	if (state == STATE_RAW && kind == KIND_CATALOG)
		walk_catalog_page(l, addr, &csum);
	else if (state == STATE_RAW && l->w.fix & FUZZ_FIX_DATA)
		fix_raw(l, addr, UINT64_C(1) << l->block_shift, &csum);
	else if (state == STATE_ZSTD || state == STATE_DEFLATE)
		walk_unit(l, addr, le64_get(e->csum) & 0xff);
	if (l->w.fix & (kind == KIND_CATALOG ? FUZZ_FIX_METADATA : FUZZ_FIX_DATA))
		e->csum = csum;
}

static void leaf_logical(const struct disk_leaf *leaf, struct disk_ptr *p)
{
	struct le64 v[LEAF_ENTRIES];
	uint64_t count = 0;

	for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
		unsigned state = (unsigned)WORD_STATE(le64_get(leaf->e[i].word));

		count += state >= STATE_RAW;
		v[i] = le64_of(state >= STATE_RAW ? (le64_get(leaf->e[i].csum) & ~UINT64_C(0xff)) | 2 : state);
	}
	put_xxh128(v, sizeof(v), p->logical);
	p->count = le64_of(count);
}

static void node_logical(const struct disk_node *node, struct disk_ptr *p)
{
	uint8_t v[FANOUT][16];
	uint64_t count = 0;

	for (unsigned i = 0; i < FANOUT; i++) {
		memcpy(v[i], node->child[i].logical, 16);
		count += le64_get(node->child[i].count);
	}
	put_xxh128(v, sizeof(v), p->logical);
	p->count = le64_of(count);
}

static void walk_leaf(struct limg *l, unsigned kind, struct disk_leaf *leaf, uint64_t off)
{
	unsigned fields = 0, last = 0;

	for (unsigned i = 0; i < LEAF_ENTRIES; i++) {
		if (le64_get(leaf->e[i].word) == 0)
			continue;
		/* the first of a run, and what follows the last */
		if (fields < FIELDS_MAX && (i == 0 || i != last + 1 || i % 16 == 0)) {
			walk_field(&l->w, off + i * sizeof(leaf->e[0]), 8);
			walk_field(&l->w, off + i * sizeof(leaf->e[0]) + 8, 8);
			fields++;
		}
		last = i;
		walk_entry(l, kind, &leaf->e[i]);
	}
	walk_field(&l->w, off + (last + 1) % LEAF_ENTRIES * sizeof(leaf->e[0]), 8);
}

static void walk_ptr(struct limg *l, unsigned kind, unsigned level, uint64_t index, struct disk_ptr *p, uint64_t at);

static void walk_node(struct limg *l, unsigned kind, unsigned level, uint64_t index, struct disk_node *node,
		      uint64_t off)
{
	walk_field(&l->w, off + offsetof(struct disk_node, level), 1);
	walk_field(&l->w, off + offsetof(struct disk_node, index), 8);
	for (unsigned i = 0; i < FANOUT; i++)
		walk_ptr(l, kind, level - 1, index * FANOUT + i, &node->child[i],
			 off + offsetof(struct disk_node, child) + i * sizeof(node->child[0]));
}

static void walk_ptr(struct limg *l, unsigned kind, unsigned level, uint64_t index, struct disk_ptr *p, uint64_t at)
{
	uint64_t off = WORD_ADDR(le64_get(p->word)) << AU_SHIFT;
	union {
		struct disk_leaf leaf;
		struct disk_node node;
	} page;

	if (le64_get(p->word) == 0)
		return;
	walk_field(&l->w, at, 8);
	walk_field(&l->w, at + offsetof(struct disk_ptr, csum), 8);
	walk_field(&l->w, at + offsetof(struct disk_ptr, count), 8);
	if (WORD_STATE(le64_get(p->word)) != STATE_NODE || !walk_load(&l->w, &page, sizeof(page), off))
		return;
	if (level == 0)
		walk_leaf(l, kind, &page.leaf, off);
	else
		walk_node(l, kind, level, index, &page.node, off);
	if (l->w.fix & FUZZ_FIX_METADATA) {
		walk_store(&l->w, &page, sizeof(page), off);
		p->csum = page_csum(l, kind, level, index, &page);
	}
	if (l->w.fix & FUZZ_FIX_DERIVED && level == 0)
		leaf_logical(&page.leaf, p);
	else if (l->w.fix & FUZZ_FIX_DERIVED)
		node_logical(&page.node, p);
}

static void walk_volume(struct limg *l, unsigned kind, struct disk_volume *v, uint64_t at)
{
	walk_field(&l->w, at, 8);
	walk_field(&l->w, at + offsetof(struct disk_volume, levels), 1);
	if (v->levels <= MAX_LEVELS)
		walk_ptr(l, kind, v->levels, 0, &v->root, at + offsetof(struct disk_volume, root));
}

/* ---- free-space map ---- */

static void walk_space(struct limg *l, unsigned level, uint64_t index, struct disk_space_entry *e, uint64_t at)
{
	uint64_t group = index, off;
	struct disk_space_entry page[SPACE_FANOUT];

	if (!(e->flags & SPACE_PRESENT))
		return;
	walk_field(&l->w, at, 8);
	walk_field(&l->w, at + offsetof(struct disk_space_entry, free), 4);
	walk_field(&l->w, at + offsetof(struct disk_space_entry, version), 1);
	for (unsigned i = 0; i < level; i++)
		group *= SPACE_FANOUT;
	off = (group * GROUP_AUS + SPACE_FIXED_AU + 2u * level + (e->version & 1)) << AU_SHIFT;
	if (!walk_load(&l->w, page, sizeof(page), off))
		return;
	for (unsigned i = 0; level > 0 && i < SPACE_FANOUT; i++)
		walk_space(l, level - 1, index * SPACE_FANOUT + i, &page[i], off + i * sizeof(page[0]));
	for (unsigned i = 0; level == 0 && i < 64; i += 8)
		walk_field(&l->w, off + i, 8);
	if (l->w.fix & FUZZ_FIX_METADATA) {
		walk_store(&l->w, page, sizeof(page), off);
		e->csum = page_csum(l, KIND_SPACE, level, index, page);
	}
}

/* NOLINTEND(misc-no-recursion) */

/* ---- journal ---- */

static void walk_deltas(struct limg *l, uint8_t *rec, uint32_t bytes, uint64_t off)
{
	const struct disk_record *d = (const struct disk_record *)rec;
	uint32_t at = sizeof(*d);

	for (uint32_t i = 0; i < le32_get(d->nr_deltas) && at + sizeof(struct disk_delta) <= bytes - 16; i++) {
		struct disk_delta *delta = (struct disk_delta *)(rec + at);
		uint64_t word = le64_get(delta->word);
		uint32_t nr = WORD_STATE(word) >= STATE_RAW ? le32_get(delta->nr) : 0;

		walk_field(&l->w, off + at, 8);
		walk_field(&l->w, off + at + 8, 8);
		walk_field(&l->w, off + at + 16, 4);
		walk_field(&l->w, off + at + 20, 1);
		at += (uint32_t)sizeof(*delta);
		if (nr > LEAF_ENTRIES || nr * 8 > bytes - 16 - at)
			return;
		for (uint32_t b = 0; b < nr; b++, at += 8) {
			struct le64 *csum = (struct le64 *)(rec + at);

			if (b == 0)
				walk_field(&l->w, off + at, 8);
			if (WORD_STATE(word) == STATE_RAW && l->w.fix & FUZZ_FIX_DATA)
				fix_raw(l, WORD_ADDR(word) + ((uint64_t)b << (l->block_shift - AU_SHIFT)),
					UINT64_C(1) << l->block_shift, csum);
		}
	}
}

/* The length of the record; 0: there is none. */
static uint32_t walk_record(struct limg *l, const struct disk_super *sb, uint64_t off, uint64_t seq, uint8_t prev[16],
			    uint32_t *kind)
{
	static const uint8_t fields[][2] = { { 4, 4 },	{ 24, 8 }, { 32, 8 }, { 56, 8 },
					     { 64, 4 }, { 68, 4 }, { 72, 4 }, { 80, 8 } };
	struct disk_record head, *d;
	uint32_t bytes;
	uint8_t *rec;

	if (!walk_load(&l->w, &head, sizeof(head), off) || le32_get(head.magic) != RECORD_MAGIC)
		return 0;
	bytes = le32_get(head.bytes);
	if (bytes == 0 || bytes % AU_BYTES || bytes > 64 * AU_BYTES || bytes > l->w.file_bytes - off)
		return 0;
	rec = malloc(bytes);
	FUZZ_CHECK(rec);
	mem_content_read(l->w.image, rec, bytes, off);
	d = (struct disk_record *)rec;
	for (unsigned f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
		walk_field(&l->w, off + fields[f][0], fields[f][1]);
	walk_deltas(l, rec, bytes, off);
	if (l->w.fix & FUZZ_FIX_DERIVED) {
		memcpy(d->uuid, sb->uuid, 16);
		d->salt = sb->salt;
		d->seq = le64_of(seq);
		memcpy(d->prev, prev, 16);
	}
	if (l->w.fix & FUZZ_FIX_METADATA) {
		put_xxh128(rec, bytes - 16, rec + bytes - 16);
		walk_store(&l->w, rec, bytes, off);
	}
	memcpy(prev, rec + bytes - 16, 16);
	*kind = le32_get(d->kind);
	free(rec);
	return bytes;
}

static void walk_ring(struct limg *l, const struct disk_super *sb)
{
	uint64_t aus = le64_get(sb->ring_aus), at = le64_get(sb->ring_tail), seq = le64_get(sb->ring_seq);
	uint64_t start = le64_get(sb->ring_addr);
	uint8_t prev[16];

	if (start > l->w.file_bytes >> AU_SHIFT || aus > MAX_RING_AUS || at % AU_BYTES)
		return;
	memcpy(prev, sb->ring_prev, 16);
	for (unsigned i = 0; i < RECORDS_MAX && at <= aus << AU_SHIFT; i++) {
		uint32_t kind = 0, bytes;

		if (at == aus << AU_SHIFT)
			at = 0;
		bytes = walk_record(l, sb, (start << AU_SHIFT) + at, seq++, prev, &kind);
		if (bytes == 0)
			return;
		at = kind == RECORD_WRAP ? 0 : at + bytes;
	}
}

/* ---- superblocks ---- */

static void super_fields(struct limg *l, uint64_t off)
{
	static const uint16_t fields[][2] = { { 0, 8 },	  { 8, 4 },   { 12, 4 },  { 16, 8 },  { 24, 8 },  { 32, 8 },
					      { 40, 8 },  { 56, 8 },  { 64, 1 },  { 65, 1 },  { 66, 1 },  { 67, 1 },
					      { 68, 4 },  { 72, 8 },  { 80, 8 },  { 88, 8 },  { 96, 8 },  { 104, 8 },
					      { 112, 8 }, { 120, 8 }, { 128, 8 }, { 136, 8 }, { 144, 8 }, { 152, 8 },
					      { 352, 8 }, { 360, 8 }, { 368, 8 }, { 376, 8 }, { 384, 8 } };
	static const uint16_t backing[][2] = { { 512, 4 }, { 516, 4 }, { 520, 8 }, { 536, 8 }, { 552, 8 }, { 568, 8 },
					       { 584, 8 }, { 592, 8 }, { 600, 4 }, { 604, 4 }, { 608, 8 }, { 864, 8 } };

	for (unsigned f = 0; f < sizeof(fields) / sizeof(fields[0]); f++)
		walk_field(&l->w, off + fields[f][0], fields[f][1]);
	for (unsigned f = 0; f < sizeof(backing) / sizeof(backing[0]); f++)
		walk_field(&l->w, off + backing[f][0], backing[f][1]);
}

static void walk_super(struct limg *l, struct disk_super *sb, uint64_t off)
{
	memcpy(l->uuid, sb->uuid, 16);
	l->block_shift = sb->block_shift >= AU_SHIFT && sb->block_shift <= 16 ? sb->block_shift : AU_SHIFT;
	super_fields(l, off);
	walk_volume(l, 1, &sb->disk, off + offsetof(struct disk_super, disk));
	walk_volume(l, 2, &sb->vm, off + offsetof(struct disk_super, vm));
	walk_volume(l, KIND_CATALOG, &sb->catalog, off + offsetof(struct disk_super, catalog));
	walk_space(l, SPACE_LEVELS - 1, 0, &sb->space, off + offsetof(struct disk_super, space));
	walk_ring(l, sb);
}

void refix_limg(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	static const uint64_t place[NR_COPIES] = { SUPER_PLACE_A, SUPER_PLACE_B, SUPER_PLACE_A + 1, SUPER_PLACE_B + 1 };
	static const char magic[8] = "LIMG\r\n\x1a";
	struct limg l = { .w = { .image = image, .fix = fix, .field = field, .ctx = ctx, .pages_left = PAGES_MAX } };
	uint64_t newest = 0;
	struct disk_super sb;

	l.w.file_bytes = mem_content_size(image);
	for (unsigned i = 0; i < NR_COPIES; i++)
		if (walk_load(&l.w, &sb, sizeof(sb), place[i] << AU_SHIFT) && memcmp(sb.magic, magic, 8) == 0 &&
		    le64_get(sb.generation) > newest)
			newest = le64_get(sb.generation);
	for (unsigned i = 0; i < NR_COPIES; i++) {
		uint64_t off = place[i] << AU_SHIFT;

		if (!walk_load(&l.w, &sb, sizeof(sb), off) || memcmp(sb.magic, magic, 8) != 0)
			continue;
		if (le64_get(sb.generation) == newest)
			walk_super(&l, &sb, off);
		if (!(fix & FUZZ_FIX_METADATA))
			continue;
		put_xxh128(&sb, offsetof(struct disk_super, csum), sb.csum);
		walk_store(&l.w, &sb, sizeof(sb), off);
		/* the first of a pair is what counts: the second becomes the same */
		if (fix & FUZZ_FIX_DERIVED && i % 2 == 0)
			walk_store(&l.w, &sb, sizeof(sb), place[i + 1] << AU_SHIFT);
	}
}
