/* SPDX-License-Identifier: MIT */
/* VMDK images: one sparse file with grains at both ends and entries that say zeros, a second directory that is missing,
 * descriptors of several extents, overlays. */
#include "refix.h"
#include "vmdk_disk.h"

#define KIB	 1024u
#define GDE_LOOK 4u  /* entries of a directory that are told as fields */
#define GTE_LOOK 32u /* and of the first table */

static void make_usual(struct memfs *fs)
{
	make_simple(fs, "vmdk", 4096 * KIB, NULL);
}

static void make_small(struct memfs *fs)
{
	make_simple(fs, "vmdk", 128 * KIB + 512, "grain_size=4K");
}

static void make_zeros(struct memfs *fs)
{
	make_simple(fs, "vmdk", 3000 * KIB, "grain_size=4K,zeroed_grain=on");
}

static void make_split(struct memfs *fs)
{
	make_simple(fs, "vmdk", 300 * KIB, "subformat=twoGbMaxExtentSparse,extent_size=128K,grain_size=4K");
}

static void make_flat(struct memfs *fs)
{
	make_simple(fs, "vmdk", 300 * KIB, "subformat=twoGbMaxExtentFlat,extent_size=128K");
}

/* No copies of the tables, and not closed. */
static void make_single(struct memfs *fs)
{
	static const uint8_t unclean = 1;

	make_small(fs);
	make_patch32(fs, offsetof(struct disk_vmdk_header, flags), VMDK_NEWLINES_VALID);
	make_patch(fs, offsetof(struct disk_vmdk_header, unclean), &unclean, sizeof(unclean));
}

static void make_overlaid(struct memfs *fs)
{
	make_simple_on(fs, "vmdk", "grain_size=8K", "grain_size=4K,zeroed_grain=on");
}

/*
 * Extents of ESX, which the library only reads: written out as the specification has them, behind their descriptor.
 * 128 KiB, grains of 4 KiB, of which some are there.
 */
#define ESX_AT	    1024u
#define ESX_SECTORS 256u
#define ESX_GRAIN   8u

static struct mem_content *descriptor(struct memfs *fs, const char *type, const char *kind)
{
	struct mem_content *image = mem_content_new();
	char text[ESX_AT] = { 0 };

	FUZZ_CHECK(image);
	(void)snprintf(text, sizeof(text),
		       "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"%s\"\n"
		       "RW %u %s \"" FUZZ_EXTENT "\"\n",
		       type, ESX_SECTORS, kind);
	FUZZ_CHECK(mem_content_write(image, text, sizeof(text), 0) == 0);
	memfs_put(fs, FUZZ_IMAGE, image);
	return image;
}

static void put_words(struct mem_content *image, uint64_t off, const uint32_t *words, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		struct le32 d = le32_of(words[i]);

		FUZZ_CHECK(mem_content_write(image, &d, sizeof(d), ESX_AT + off + 4u * i) == 0);
	}
}

static void put_quads(struct mem_content *image, uint64_t off, const uint64_t *quads, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		put_words(image, off + 8u * i, (const uint32_t[]){ (uint32_t)quads[i], (uint32_t)(quads[i] >> 32) }, 2);
}

static void put_data(struct mem_content *image, uint64_t off, unsigned nr_grains)
{
	uint8_t data[ESX_GRAIN * VMDK_SECTOR_BYTES];

	for (unsigned i = 0; i < nr_grains; i++) {
		make_pattern(data, sizeof(data), sizeof(data) * i, 5);
		FUZZ_CHECK(mem_content_write(image, data, sizeof(data), ESX_AT + off + sizeof(data) * i) == 0);
	}
}

static void make_cowd(struct memfs *fs)
{
	enum { GD = 4, GT = GD + 1, DATA = GT + 32 };
	struct mem_content *image = descriptor(fs, "vmfsSparse", "VMFSSPARSE");
	const uint32_t table[] = { DATA, DATA + ESX_GRAIN, 0, DATA + 2 * ESX_GRAIN };

	FUZZ_CHECK(mem_content_write(image, "COWD", 4, ESX_AT) == 0);
	put_words(image, 4, (const uint32_t[]){ 1, 3, ESX_SECTORS, ESX_GRAIN, GD, 1, DATA + 3 * ESX_GRAIN }, 7);
	put_words(image, GD * VMDK_SECTOR_BYTES, (const uint32_t[]){ GT }, 1);
	put_words(image, GT * VMDK_SECTOR_BYTES, table, sizeof(table) / sizeof(table[0]));
	put_data(image, DATA * VMDK_SECTOR_BYTES, 3);
}

static void make_sesparse(struct memfs *fs)
{
	enum { GD = 8, GT = 16, DATA = GT + 64 };
	static const uint64_t head[] = { 0xcafebabe,  UINT64_C(0x200000001),
					 ESX_SECTORS, ESX_GRAIN,
					 64,	      0,
					 0,	      0,
					 0,	      0,
					 1,	      1,
					 2,	      2,
					 4,	      4,
					 GD,	      8,
					 GT,	      64,
					 DATA,	      0,
					 DATA,	      0,
					 DATA,	      2 * ESX_GRAIN };
	/* a grain, one that says that it is not there, zeros, nothing, the second grain of the file */
	static const uint64_t table[] = { UINT64_C(3) << 60, UINT64_C(1) << 60, UINT64_C(2) << 60, 0,
					  UINT64_C(3) << 60 | UINT64_C(1) << 48 };
	struct mem_content *image = descriptor(fs, "seSparse", "SESPARSE");

	put_quads(image, 0, head, sizeof(head) / sizeof(head[0]));
	put_quads(image, VMDK_SECTOR_BYTES, (const uint64_t[]){ 0xcafecafe, 0, 0, 0 }, 4);
	put_quads(image, GD * VMDK_SECTOR_BYTES, (const uint64_t[]){ UINT64_C(1) << 60 }, 1);
	put_quads(image, GT * VMDK_SECTOR_BYTES, table, sizeof(table) / sizeof(table[0]));
	put_data(image, DATA * VMDK_SECTOR_BYTES, 2);
}

/* Headers, the directory and the first table, wherever they stand when nothing has been changed. */
static void walk_esx(struct walk *w)
{
	bool cowd;
	uint8_t magic[4];

	if (!walk_load(w, magic, sizeof(magic), ESX_AT))
		return;
	cowd = memcmp(magic, "COWD", 4) == 0;
	for (uint64_t off = cowd ? 4 : 8; off < (cowd ? 32u : 208u); off += cowd ? 4 : 8)
		walk_field(w, ESX_AT + off, cowd ? 4 : 8);
	for (uint64_t off = 0; off < 6 * 8; off += cowd ? 4 : 8) {
		walk_field(w, ESX_AT + (cowd ? 4 : 8) * VMDK_SECTOR_BYTES + off, cowd ? 4 : 8);
		walk_field(w, ESX_AT + (cowd ? 5 : 16) * VMDK_SECTOR_BYTES + off, cowd ? 4 : 8);
	}
	if (!cowd)
		walk_field(w, ESX_AT + VMDK_SECTOR_BYTES + 24, 8);
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
		walk_esx(&w);
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
	{ "usual", make_usual },      { "small", make_small }, { "zeros", make_zeros },
	{ "split", make_split },      { "flat", make_flat },   { "single", make_single },
	{ "overlay", make_overlaid }, { "cowd", make_cowd },   { "sesparse", make_sesparse },
};

static uint64_t extent_at(const char *recipe)
{
	return strcmp(recipe, "cowd") == 0 || strcmp(recipe, "sesparse") == 0 ? ESX_AT : 0;
}

const struct fuzz_format fuzz_format_vmdk = { .name = "vmdk",
					      .recipes = recipes,
					      .nr_recipes = sizeof(recipes) / sizeof(recipes[0]),
					      .walk = walk,
					      .extent_at = extent_at };
