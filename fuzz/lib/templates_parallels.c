/* SPDX-License-Identifier: MIT */
/* Parallels images: both versions, clusters at both ends and of an odd size, one that was not closed, one with dirty
 * bitmaps. */
#include "prl.h"
#include "refix.h"

#define KIB	   1024u
#define TABLE_LOOK 64u /* entries that are told as fields */
#define EXT_MAX	   (64 * KIB)

static void make_usual(struct memfs *fs)
{
	make_simple(fs, "parallels", 4096 * KIB, NULL);
}

static void make_small(struct memfs *fs)
{
	make_simple(fs, "parallels", 128 * KIB, "cluster_size=512");
}

static void make_version_1(struct memfs *fs)
{
	make_simple(fs, "parallels", 128 * KIB + 512, "cluster_size=4K,version=1");
}

static void make_odd(struct memfs *fs)
{
	make_simple(fs, "parallels", 256 * KIB, "cluster_size=32256,version=1");
}

/* A descriptor, and two images that it names. */
static void make_bundle(struct memfs *fs)
{
	make_simple(fs, "parallels", 192 * KIB, "subformat=bundle,split_size=128K,cluster_size=4K");
}

static void make_plain_bundle(struct memfs *fs)
{
	make_simple(fs, "parallels", 96 * KIB, "subformat=plain");
}

static void make_unclosed(struct memfs *fs)
{
	struct le32 in_use = le32_of(PRL_IN_USE);

	make_simple(fs, "parallels", 128 * KIB, "cluster_size=4K");
	make_patch(fs, PRL_AT(in_use), &in_use, sizeof(in_use));
}

/* The checksum of the extension at off, which is cluster bytes long. */
static void sum(struct mem_content *image, uint64_t off, uint32_t cluster, uint8_t out[16])
{
	uint8_t buf[512];
	struct prl_md5 m;

	prl_md5_start(&m);
	for (uint32_t at = sizeof(struct disk_prl_ext); at < cluster; at += (uint32_t)sizeof(buf)) {
		size_t n = cluster - at < sizeof(buf) ? cluster - at : sizeof(buf);

		mem_content_read(image, buf, n, off + at);
		prl_md5_add(&m, buf, n);
	}
	prl_md5_end(&m, out);
}

/* Two clusters behind the data: the extension, and the bits of its bitmap. */
static void make_bitmap(struct memfs *fs)
{
	struct {
		struct disk_prl_ext ext;
		struct disk_prl_section section;
		struct disk_prl_bitmap bitmap;
		struct le64 l1, unused[3];
		uint8_t rest[4096 - 24 - 24 - 32 - 32];
	} d;
	struct mem_content *image;
	struct le64 sector;
	uint64_t off;

	make_simple(fs, "parallels", 128 * KIB, "cluster_size=4K");
	image = memfs_find(fs, FUZZ_IMAGE);
	off = mem_content_size(image);
	memset(&d, 0, sizeof(d));
	d.ext.magic = le64_of(PRL_EXT_MAGIC);
	d.section.magic = le64_of(PRL_EXT_BITMAP);
	d.section.data_bytes = le32_of(sizeof(d.bitmap) + sizeof(d.l1));
	d.bitmap.nr_sectors = le64_of(256);
	d.bitmap.granularity = le32_of(8);
	d.bitmap.nr_l1 = le32_of(1);
	d.l1 = le64_of((off + sizeof(d)) / PRL_SECTOR_BYTES);
	make_patch(fs, off, &d, sizeof(d));
	make_patch(fs, off + sizeof(d), &d.rest, sizeof(d.rest));
	FUZZ_CHECK(mem_content_resize(image, off + 2 * sizeof(d)) == 0);
	sum(image, off, sizeof(d), d.ext.md5);
	make_patch(fs, off, &d.ext, sizeof(d.ext));
	sector = le64_of(off / PRL_SECTOR_BYTES);
	make_patch(fs, PRL_AT(ext_off), &sector, sizeof(sector));
}

static void walk_ext(struct walk *w, uint64_t off, uint32_t cluster)
{
	struct disk_prl_ext d;

	if (cluster < sizeof(d) || cluster > EXT_MAX || !walk_load(w, &d, sizeof(d), off) ||
	    cluster > w->file_bytes - off)
		return;
	for (unsigned i = 0; i < 12; i++)
		walk_field(w, off + sizeof(d) + 8 * i, 8);
	if (!(w->fix & FUZZ_FIX_METADATA))
		return;
	sum(w->image, off, cluster, d.md5);
	walk_store(w, &d, sizeof(d), off);
}

static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	static const uint16_t words[] = { 0,
					  12,
					  PRL_AT(version),
					  PRL_AT(heads),
					  PRL_AT(cylinders),
					  PRL_AT(cluster_sectors),
					  PRL_AT(nr_entries),
					  PRL_AT(in_use),
					  PRL_AT(data_off),
					  PRL_AT(flags) };
	struct walk w = { .image = image,
			  .file_bytes = mem_content_size(image),
			  .fix = fix,
			  .field = field,
			  .ctx = ctx,
			  .pages_left = 2 };
	struct disk_prl_header d;
	uint32_t nr;

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		walk_field(&w, words[i], 4);
	walk_field(&w, PRL_AT(nr_sectors), 8);
	walk_field(&w, PRL_AT(ext_off), 8);
	if (!walk_load(&w, &d, sizeof(d), 0))
		return;
	nr = le32_get(d.nr_entries) < TABLE_LOOK ? le32_get(d.nr_entries) : TABLE_LOOK;
	for (uint32_t i = 0; i < nr && PRL_TABLE_OFF + 4u * (i + 1) <= w.file_bytes; i++)
		walk_field(&w, PRL_TABLE_OFF + 4u * i, 4);
	if (le64_get(d.ext_off) > 0 && le64_get(d.ext_off) < INT64_MAX / PRL_SECTOR_BYTES &&
	    le32_get(d.cluster_sectors) <= EXT_MAX / PRL_SECTOR_BYTES)
		walk_ext(&w, le64_get(d.ext_off) * PRL_SECTOR_BYTES, le32_get(d.cluster_sectors) * PRL_SECTOR_BYTES);
}

static const struct fuzz_recipe recipes[] = {
	{ "usual", make_usual },   { "small", make_small },	   { "version-1", make_version_1 },
	{ "odd", make_odd },	   { "unclosed", make_unclosed },  { "bitmap", make_bitmap },
	{ "bundle", make_bundle }, { "plain", make_plain_bundle },
};

const struct fuzz_format fuzz_format_parallels = {
	.name = "parallels", .recipes = recipes, .nr_recipes = sizeof(recipes) / sizeof(recipes[0]), .walk = walk
};
