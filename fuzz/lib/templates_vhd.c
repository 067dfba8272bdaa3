/* SPDX-License-Identifier: MIT */
/*
 * VHD images: block sizes at both ends, fixed, a disk without parent that has clear bits, a table that moved, overlays.
 * The walk makes the checksums of footers and header right again.
 */
#include "refix.h"
#include "vhd_disk.h"

#define KIB	   1024u
#define TABLE_LOOK 64u /* entries that are told as fields */

static void make_usual(struct memfs *fs)
{
	make_simple(fs, "vhd", 4096 * KIB, NULL);
}

static void make_small(struct memfs *fs)
{
	make_simple(fs, "vhd", 128 * KIB + 512, "block_size=4K");
}

static void make_fixed(struct memfs *fs)
{
	make_simple(fs, "vhd", 128 * KIB, "subformat=fixed");
}

/* A table and texts that are not where new images have them. */
static void make_moved(struct memfs *fs)
{
	struct img *img;

	make_simple(fs, "vhd", 128 * KIB, "block_size=4K");
	img = make_open(fs, FUZZ_IMAGE, "vhd");
	MAKE_OK(img_resize(img, 1024 * KIB, 0, NULL));
	make_write(img, 900 * KIB, 5000, 5, 0);
	make_close(img);
}

static void make_overlaid(struct memfs *fs)
{
	make_simple_on(fs, "vhd", "block_size=8K", "block_size=4K");
}

static void make_large_overlaid(struct memfs *fs)
{
	make_simple_on(fs, "vhd", "block_size=8K", "block_size=64K");
}

static uint32_t sum_of(const void *p, size_t bytes, size_t field_off)
{
	const uint8_t *b = p;
	uint32_t sum = 0;

	for (size_t i = 0; i < bytes; i++)
		sum += i < field_off || i >= field_off + 4 ? b[i] : 0;
	return ~sum;
}

/* The type of a differencing disk made that of one without parent: its clear bits stay. */
static void make_clear_bits(struct memfs *fs)
{
	struct mem_content *image;
	struct disk_vhd_footer f;

	make_simple_on(fs, "vhd", "block_size=8K", "block_size=8K");
	image = memfs_find(fs, FUZZ_IMAGE);
	mem_content_read(image, &f, sizeof(f), 0);
	f.type = be32_of(VHD_DYNAMIC);
	f.checksum = be32_of(sum_of(&f, sizeof(f), offsetof(struct disk_vhd_footer, checksum)));
	FUZZ_CHECK(mem_content_write(image, &f, sizeof(f), 0) == 0);
	FUZZ_CHECK(mem_content_write(image, &f, sizeof(f), mem_content_size(image) - sizeof(f)) == 0);
}

static void walk_footer(struct walk *w, uint64_t off, struct disk_vhd_footer *f)
{
	static const uint8_t fields[][2] = { { 8, 4 },	{ 12, 4 }, { 16, 8 }, { 28, 4 }, { 40, 8 },
					     { 48, 8 }, { 56, 2 }, { 58, 1 }, { 59, 1 }, { 60, 4 },
					     { 64, 4 }, { 68, 4 }, { 84, 1 } };

	if (!walk_load(w, f, sizeof(*f), off))
		return;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		walk_field(w, off + fields[i][0], fields[i][1]);
	if (w->fix & FUZZ_FIX_METADATA && memcmp(f->cookie, VHD_COOKIE, sizeof(f->cookie)) == 0) {
		f->checksum = be32_of(sum_of(f, sizeof(*f), offsetof(struct disk_vhd_footer, checksum)));
		walk_store(w, f, sizeof(*f), off);
	}
}

static void walk_header(struct walk *w, uint64_t off, struct disk_vhd_header *h)
{
	static const uint16_t fields[][2] = { { 16, 8 }, { 24, 4 }, { 28, 4 }, { 32, 4 },
					      { 36, 4 }, { 40, 4 }, { 64, 2 } };

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		walk_field(w, off + fields[i][0], fields[i][1]);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t at = off + offsetof(struct disk_vhd_header, locator) + i * sizeof(h->locator[0]);

		walk_field(w, at, 4);
		walk_field(w, at + offsetof(struct disk_vhd_locator, length), 4);
		walk_field(w, at + offsetof(struct disk_vhd_locator, off), 8);
	}
	if (w->fix & FUZZ_FIX_METADATA) {
		h->checksum = be32_of(sum_of(h, sizeof(*h), offsetof(struct disk_vhd_header, checksum)));
		walk_store(w, h, sizeof(*h), off);
	}
}

static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	struct walk w = { .image = image,
			  .file_bytes = mem_content_size(image),
			  .fix = fix,
			  .field = field,
			  .ctx = ctx,
			  .pages_left = 3 };
	struct disk_vhd_footer head = { 0 }, tail = { 0 };
	struct disk_vhd_header h;
	uint64_t off, table;

	walk_footer(&w, 0, &head);
	if (w.file_bytes >= 2 * sizeof(tail))
		walk_footer(&w, w.file_bytes - sizeof(tail), &tail);
	off = be64_get(head.data_off);
	if (!walk_load(&w, &h, sizeof(h), off))
		return;
	walk_header(&w, off, &h);
	table = be64_get(h.table_off);
	for (uint32_t i = 0; i < TABLE_LOOK && i < be32_get(h.max_entries); i++)
		if (table < w.file_bytes && w.file_bytes - table >= 4u * (i + 1))
			walk_field(&w, table + 4u * i, 4);
}

static const struct fuzz_recipe recipes[] = {
	{ "usual", make_usual },	   { "small", make_small },	 { "fixed", make_fixed },
	{ "moved", make_moved },	   { "overlay", make_overlaid }, { "large-overlay", make_large_overlaid },
	{ "clear-bits", make_clear_bits },
};

const struct fuzz_format fuzz_format_vhd = {
	.name = "vhd",
	.big_endian = true,
	.recipes = recipes,
	.nr_recipes = sizeof(recipes) / sizeof(recipes[0]),
	.walk = walk,
};
