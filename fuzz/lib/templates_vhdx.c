/* SPDX-License-Identifier: MIT */
/*
 * VHDX images: fixed, dynamic, differences, both sizes of sectors, and one whose log waits. The walk makes the
 * checksums of headers, region tables and entries of the log right again.
 */
#include "crc32c.h"
#include "refix.h"
#include "vhdx_disk.h"

#define KIB	    1024u
#define TABLE_LOOK  16u /* entries that are told as fields */
#define ITEMS_LOOK  7u
#define ENTRIES_MAX 8u /* of the log */

static void fill(struct img *img)
{
	make_write(img, 1000, 6000, 1, 0);
	make_write(img, 1500 * KIB, 4 * KIB, 2, 0);
	MAKE_OK(img_zero(img, 2 * KIB, 30 * KIB, 0, NULL));
	make_write(img, img_size(img) - 4 * KIB, 4 * KIB, 3, 0);
}

static void plain(struct memfs *fs, const char *name, const char *options)
{
	struct img *img;

	make_image(fs, name, "vhdx", 3072 * KIB, options);
	img = make_open(fs, name, "vhdx");
	fill(img);
	make_close(img);
}

static void make_usual(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, "block_size=1M");
}

static void make_fixed(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, "subformat=fixed,block_size=1M");
}

static void make_4096(struct memfs *fs)
{
	plain(fs, FUZZ_IMAGE, "block_size=2M,logical_sector_size=4096");
}

/* As a crash leaves it: the log as it is, places as if nothing of the last entry had reached them. */
static void make_logged(struct memfs *fs)
{
	struct mem_content *image, *open;
	static uint8_t buf[1 << 20];
	struct img *img;

	make_image(fs, FUZZ_IMAGE, "vhdx", 3072 * KIB, "block_size=1M");
	img = make_open(fs, FUZZ_IMAGE, "vhdx");
	make_write(img, 5000, 6000, 4, 0);
	MAKE_OK(img_flush(img, 0, NULL));
	make_write(img, 2500 * KIB, 6000, 5, 0);
	MAKE_OK(img_flush(img, 0, NULL));
	image = memfs_find(fs, FUZZ_IMAGE);
	open = mem_content_clone(image);
	FUZZ_CHECK(open != NULL);
	make_close(img);
	FUZZ_CHECK(mem_content_zero(open, 4096, 3072 * KIB) == 0); /* the table of blocks */
	FUZZ_CHECK(mem_content_resize(image, mem_content_size(open)) == 0);
	for (uint64_t at = 0; at < mem_content_size(open); at += sizeof(buf)) {
		mem_content_read(open, buf, sizeof(buf), at);
		FUZZ_CHECK(mem_content_write(image, buf, sizeof(buf), at) == 0);
	}
	mem_content_unref(open);
}

static void make_overlaid(struct memfs *fs)
{
	struct img *img;

	plain(fs, "base", "block_size=1M");
	make_overlay(fs, FUZZ_IMAGE, "vhdx", "block_size=1M", "base", "vhdx", NULL);
	img = make_open(fs, FUZZ_IMAGE, "vhdx");
	make_write(img, 10 * KIB, 3000, 7, 0);
	MAKE_OK(img_zero(img, 1024 * KIB, 1100 * KIB, 0, NULL));
	make_close(img);
}

/* The checksum stands at 4. */
static void sum_again(const struct walk *w, uint8_t *buf, size_t bytes, const char *signature, uint64_t off)
{
	struct le32 sum;

	if (!(w->fix & FUZZ_FIX_METADATA) || memcmp(buf, signature, 4) != 0)
		return;
	memset(buf + 4, 0, 4);
	sum = le32_of(crc32c(0, buf, bytes));
	memcpy(buf + 4, &sum, 4);
	walk_store(w, buf, bytes, off);
}

static void walk_header(struct walk *w, uint64_t off, struct disk_vhdx_header *h)
{
	static const uint8_t fields[][2] = { { 8, 8 },	{ 16, 8 }, { 32, 8 }, { 48, 8 },
					     { 64, 2 }, { 66, 2 }, { 68, 4 }, { 72, 8 } };

	if (!walk_load(w, h, sizeof(*h), off))
		return;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		walk_field(w, off + fields[i][0], fields[i][1]);
	sum_again(w, (uint8_t *)h, sizeof(*h), "head", off);
}

static void walk_regions(struct walk *w, uint64_t off)
{
	static uint8_t table[VHDX_TABLE_BYTES];

	if (!walk_load(w, table, sizeof(table), off))
		return;
	walk_field(w, off + 8, 4);
	for (unsigned i = 0; i < 2; i++) {
		walk_field(w, off + 16 + 32 * i, 8);
		walk_field(w, off + 32 + 32 * i, 8);
		walk_field(w, off + 40 + 32 * i, 4);
		walk_field(w, off + 44 + 32 * i, 4);
	}
	sum_again(w, table, sizeof(table), "regi", off);
}

/* Where new images have it. */
static void walk_metadata(const struct walk *w, uint64_t off)
{
	static const uint8_t values[][2] = { { 0, 4 }, { 4, 4 }, { 8, 8 }, { 16, 4 }, { 20, 4 } };

	walk_field(w, off + 10, 2);
	for (unsigned i = 0; i < ITEMS_LOOK; i++) {
		walk_field(w, off + 32 + 32 * i, 8);
		walk_field(w, off + 48 + 32 * i, 4);
		walk_field(w, off + 52 + 32 * i, 4);
		walk_field(w, off + 56 + 32 * i, 4);
	}
	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
		walk_field(w, off + VHDX_TABLE_BYTES + values[i][0], values[i][1]);
	for (unsigned i = 0; i < 4; i++)
		walk_field(w, off + VHDX_TABLE_BYTES + 4096 + 18 + 4 * i, 4); /* the parent locator */
}

static void walk_entry(struct walk *w, uint8_t *entry, size_t bytes, uint64_t off)
{
	static const uint8_t fields[][2] = {
		{ 8, 4 }, { 12, 4 }, { 16, 8 }, { 24, 4 }, { 32, 8 }, { 48, 8 }, { 56, 8 }
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		walk_field(w, off + fields[i][0], fields[i][1]);
	for (unsigned i = 0; i < 2; i++) {
		walk_field(w, off + 64 + 32 * i, 4);
		walk_field(w, off + 72 + 32 * i, 8);
		walk_field(w, off + 80 + 32 * i, 8);
		walk_field(w, off + 88 + 32 * i, 8);
	}
	sum_again(w, entry, bytes, "loge", off);
}

static void walk_log(struct walk *w, uint64_t off, uint64_t bytes)
{
	static uint8_t entry[64 * 4096];
	uint64_t at = 0;

	for (unsigned i = 0; i < ENTRIES_MAX && at + sizeof(struct disk_vhdx_log_entry) <= bytes; i++) {
		uint32_t n;

		if (!walk_load(w, entry, sizeof(struct disk_vhdx_log_entry), off + at) || memcmp(entry, "loge", 4) != 0)
			return;
		n = le32_at(entry, 8);
		if (n == 0 || n % 4096 != 0 || n > sizeof(entry) || n > bytes - at)
			n = 4096;
		if (!walk_load(w, entry, n, off + at))
			return;
		walk_entry(w, entry, n, off + at);
		at += n;
	}
}

static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	struct walk w = { .image = image,
			  .file_bytes = mem_content_size(image),
			  .fix = fix,
			  .field = field,
			  .ctx = ctx,
			  .pages_left = 24 };
	struct disk_vhdx_header a = { 0 }, b = { 0 };

	walk_header(&w, VHDX_HEADER_A, &a);
	walk_header(&w, VHDX_HEADER_B, &b);
	walk_regions(&w, VHDX_REGIONS_A);
	walk_regions(&w, VHDX_REGIONS_B);
	walk_metadata(&w, 2 * VHDX_MIB);
	for (unsigned i = 0; i < TABLE_LOOK; i++)
		walk_field(&w, 3 * VHDX_MIB + 8u * i, 8);
	walk_field(&w, 3 * VHDX_MIB + 8u * 4096, 8); /* the first bitmap of blocks of 1 MiB */
	walk_log(&w, VHDX_MIB, VHDX_MIB);
}

static const struct fuzz_recipe recipes[] = {
	{ "usual", make_usual },   { "fixed", make_fixed },	 { "sectors-4096", make_4096 },
	{ "logged", make_logged }, { "overlay", make_overlaid },
};

const struct fuzz_format fuzz_format_vhdx = {
	.name = "vhdx",
	.recipes = recipes,
	.nr_recipes = sizeof(recipes) / sizeof(recipes[0]),
	.walk = walk,
};
