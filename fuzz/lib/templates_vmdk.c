/* SPDX-License-Identifier: MIT */
/* VMDK images: one sparse file with grains at both ends and entries that say zeros, a second directory that is missing,
 * descriptors of several extents, overlays. */
#include "refix.h"
#include "vmdk_disk.h"

#define KIB	 1024u
#define GDE_LOOK 4u  /* entries of a directory that are told as fields */
#define GTE_LOOK 32u /* and of the first table */

static void fill(struct img *img)
{
	make_write(img, 1000, 6000, 1, 0);
	make_write(img, 40 * KIB, 4 * KIB, 2, 0);
	MAKE_OK(img_zero(img, 24 * KIB, 30 * KIB, 0, NULL));
	make_write(img, img_size(img) - 2 * KIB, 2 * KIB, 3, 0);
}

static void plain(struct memfs *fs, const char *name, uint64_t size_bytes, const char *options)
{
	struct img *img;

	make_image(fs, name, "vmdk", size_bytes, options);
	img = make_open(fs, name, "vmdk");
	fill(img);
	make_close(img);
}

static void make_usual(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, 4096 * KIB, NULL);
}

static void make_small(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, 128 * KIB + 512, "grain_size=4K");
}

static void make_zeros(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, 3000 * KIB, "grain_size=4K,zeroed_grain=on");
}

static void make_split(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, 300 * KIB, "subformat=twoGbMaxExtentSparse,extent_size=128K,grain_size=4K");
}

static void make_flat(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, 300 * KIB, "subformat=twoGbMaxExtentFlat,extent_size=128K");
}

static void put32(struct memfs *fs, uint64_t off, uint32_t value)
{
	struct le32 d = le32_of(value);

	FUZZ_CHECK(mem_content_write(memfs_find(fs, FUZZ_IMAGE), &d, sizeof(d), off) == 0);
}

/* No copies of the tables, and not closed. */
static void make_single(struct memfs *fs)
{
	static const uint8_t unclean = 1;

	make_small(fs);
	put32(fs, offsetof(struct disk_vmdk_header, flags), VMDK_NEWLINES_VALID);
	FUZZ_CHECK(mem_content_write(memfs_find(fs, FUZZ_IMAGE), &unclean, 1,
				     offsetof(struct disk_vmdk_header, unclean)) == 0);
}

static void make_overlaid(struct memfs *fs)
{
	struct img *img;

	plain(fs, "base", 128 * KIB, "grain_size=8K");
	make_overlay(fs, FUZZ_IMAGE, "vmdk", "grain_size=4K,zeroed_grain=on", "base", "vmdk", NULL);
	img = make_open(fs, FUZZ_IMAGE, "vmdk");
	make_write(img, 10 * KIB, 3000, 7, 0);
	MAKE_OK(img_zero(img, 32 * KIB, 64 * KIB, 0, NULL));
	make_close(img);
}

/* Of a directory: some entries, and some of its first table. */
static void walk_directory(struct walk *w, uint64_t off)
{
	struct le32 table;

	for (uint32_t i = 0; i < GDE_LOOK && off + 4u * (i + 1) <= w->file_bytes; i++)
		walk_field(w, off + 4u * i, 4);
	if (!walk_load(w, &table, 4, off))
		return;
	for (uint32_t i = 0; i < GTE_LOOK; i++) {
		uint64_t at = (uint64_t)le32_get(table) * VMDK_SECTOR_BYTES + 4u * i;

		if (at + 4 <= w->file_bytes)
			walk_field(w, at, 4);
	}
}

/* There are no checksums: fields of the header, entries, and the first bytes of the descriptor's lines. */
static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	struct walk w = { .image = image,
			  .file_bytes = mem_content_size(image),
			  .fix = fix,
			  .field = field,
			  .ctx = ctx,
			  .pages_left = 2 };
	struct disk_vmdk_header h;

	if (!walk_load(&w, &h, sizeof(h), 0) || memcmp(h.magic, VMDK_MAGIC, 4) != 0) {
		for (uint32_t at = 20; at < 400 && at + 4 <= w.file_bytes; at += 12)
			walk_field(&w, at, 4);
		return;
	}
	walk_field(&w, offsetof(struct disk_vmdk_header, version), 4);
	walk_field(&w, offsetof(struct disk_vmdk_header, flags), 4);
	for (uint64_t off = offsetof(struct disk_vmdk_header, capacity); off <= 36; off += 8)
		walk_field(&w, off, 8);
	walk_field(&w, offsetof(struct disk_vmdk_header, nr_gtes), 4);
	for (uint64_t off = offsetof(struct disk_vmdk_header, rgd_off); off <= 64; off += 8)
		walk_field(&w, off, 8);
	if (le64_get(h.gd_off) < w.file_bytes / VMDK_SECTOR_BYTES)
		walk_directory(&w, le64_get(h.gd_off) * VMDK_SECTOR_BYTES);
	if (le64_get(h.rgd_off) < w.file_bytes / VMDK_SECTOR_BYTES)
		walk_directory(&w, le64_get(h.rgd_off) * VMDK_SECTOR_BYTES);
	for (uint32_t at = 512 + 20; at < 512 + 256; at += 12)
		walk_field(&w, at, 4);
}

static const struct fuzz_recipe recipes[] = {
	{ "usual", make_usual }, { "small", make_small },   { "zeros", make_zeros },	  { "split", make_split },
	{ "flat", make_flat },	 { "single", make_single }, { "overlay", make_overlaid },
};

const struct fuzz_format fuzz_format_vmdk = {
	.name = "vmdk", .recipes = recipes, .nr_recipes = sizeof(recipes) / sizeof(recipes[0]), .walk = walk
};
