/* SPDX-License-Identifier: MIT */
/*
 * limg images: a tree of one leaf and of several levels, every kind of entry, snapshots with shared and reclaimable
 * content, overlays with both kinds of pins, and images whose writer died with changes in the journal.
 */
#include "refix.h"

#define KIB 1024u
#define MIB (1024u * KIB)

static struct img *start(struct memfs *fs, uint64_t size_bytes, const char *options)
{
	make_image(fs, FUZZ_IMAGE, "limg", size_bytes, options);
	return make_open(fs, FUZZ_IMAGE, "limg");
}

/* Everything that is in memory now stays there: the file is as a crash leaves it. */
static void die(struct memfs *fs, struct img *img)
{
	struct mem_content *now = mem_content_clone(memfs_find(fs, FUZZ_IMAGE));

	FUZZ_CHECK(now);
	make_close(img);
	memfs_put(fs, FUZZ_IMAGE, now);
}

static void snapshot(struct img *img, const char *name, unsigned flags)
{
	MAKE_OK(img_snapshot_create(img, name, flags, NULL));
}

static void make_empty(struct memfs *fs)
{
	make_image(fs, FUZZ_IMAGE, "limg", 64 * KIB, NULL);
}

static void make_data(struct memfs *fs)
{
	struct img *img = start(fs, 256 * KIB, NULL);

	make_write(img, 0, 12 * KIB, 1, 0);
	make_write(img, 50000, 3000, 2, 0);
	MAKE_OK(img_zero(img, 16 * KIB, 100 * KIB, 0, NULL));
	make_write(img, 252 * KIB, 4 * KIB, 3, 0);
	make_close(img);
}

/* More than a leaf: the root is an interior node. */
static void make_levels(struct memfs *fs)
{
	struct img *img = start(fs, 8 * MIB, NULL);

	for (unsigned i = 0; i < 8; i++)
		make_write(img, i * MIB + i * 4096, 4 * KIB, i, 0);
	MAKE_OK(img_zero(img, 2 * MIB, 5 * MIB, 0, NULL));
	make_close(img);
}

/* Three levels, and snapshots whose trees share most of them. */
static void make_deep(struct memfs *fs)
{
	struct img *img = start(fs, UINT64_C(40) << 30, NULL);

	make_write(img, 0, 4 * KIB, 1, 0);
	make_write(img, UINT64_C(39) << 30, 4 * KIB, 2, 0);
	snapshot(img, "deep", 0);
	make_write(img, UINT64_C(20) << 30, 4 * KIB, 3, 0);
	make_close(img);
}

static void make_snapshots(struct memfs *fs)
{
	struct img *img = start(fs, 2 * MIB, NULL);

	make_write(img, 0, 16 * KIB, 1, 0);
	snapshot(img, "first", 0);
	make_write(img, 8 * KIB, 16 * KIB, 2, 0);
	make_vmstate(img, 0, 10000, 3);
	snapshot(img, "second", IMG_SNAPSHOT_VMSTATE);
	MAKE_OK(img_resize(img, 3 * MIB, 0, NULL));
	make_write(img, 2 * MIB + 8 * KIB, 4 * KIB, 4, 0);
	MAKE_OK(img_discard(img, 8 * KIB, 0, 0, NULL));
	snapshot(img, "third", 0);
	MAKE_OK(img_snapshot_revert(img, "first", NULL));
	make_write(img, 64 * KIB, 4 * KIB, 5, 0);
	make_close(img);
}

/* A deleted snapshot with two children has to wait; its record is there without a name. */
static void make_deleted(struct memfs *fs)
{
	struct img *img = start(fs, 2 * MIB, NULL);

	make_write(img, 0, 64 * KIB, 1, 0);
	snapshot(img, "root", 0);
	make_write(img, 0, 8 * KIB, 2, 0);
	snapshot(img, "left", 0);
	MAKE_OK(img_snapshot_revert(img, "root", NULL));
	make_write(img, 16 * KIB, 8 * KIB, 3, 0);
	snapshot(img, "right", 0);
	MAKE_OK(img_snapshot_delete(img, "root", NULL));
	make_close(img);
}

static void compressed(struct memfs *fs, const char *options)
{
	struct img *img = start(fs, 512 * KIB, options);

	make_write(img, 0, 128 * KIB, 1, IMG_IO_COMPRESS);
	make_write(img, 256 * KIB, 64 * KIB, 7, IMG_IO_COMPRESS);
	make_write(img, 68 * KIB, 4 * KIB, 2, 0);
	snapshot(img, "compressed", 0);
	make_write(img, 0, 64 * KIB, 3, IMG_IO_COMPRESS);
	make_close(img);
}

static void make_zstd(struct memfs *fs)
{
	compressed(fs, "unit_size=64K,compression=zstd");
}

static void make_deflate(struct memfs *fs)
{
	compressed(fs, "unit_size=64K,compression=zlib");
}

static void make_block16(struct memfs *fs)
{
	struct img *img = start(fs, MIB, "block_size=16K,unit_size=64K");

	make_write(img, 1000, 40 * KIB, 1, 0);
	make_write(img, 128 * KIB, 64 * KIB, 2, IMG_IO_COMPRESS);
	snapshot(img, "s", 0);
	make_write(img, 16 * KIB, 16 * KIB, 3, 0);
	make_close(img);
}

static void make_block64(struct memfs *fs)
{
	struct img *img = start(fs, MIB, "block_size=64K,unit_size=128K");

	make_write(img, 1000, 70 * KIB, 1, 0);
	make_vmstate(img, 0, 5000, 2);
	snapshot(img, "s", IMG_SNAPSHOT_VMSTATE);
	make_write(img, 512 * KIB, 64 * KIB, 3, 0);
	MAKE_OK(img_flush(img, 0, NULL));
	die(fs, img);
}

static void overlay(struct memfs *fs, const char *format, const char *named)
{
	struct img *img;

	make_image(fs, "base", format, 256 * KIB, NULL);
	img = make_open(fs, "base", format);
	make_write(img, 0, 32 * KIB, 1, 0);
	if (named)
		snapshot(img, named, 0);
	make_close(img);
	make_overlay(fs, FUZZ_IMAGE, "limg", NULL, "base", format, named);
	img = make_open(fs, FUZZ_IMAGE, "limg");
	make_write(img, 4 * KIB, 8 * KIB, 2, 0);
	MAKE_OK(img_zero(img, 4 * KIB, 20 * KIB, 0, NULL));
	make_close(img);
}

static void make_on_limg(struct memfs *fs)
{
	overlay(fs, "limg", "base snapshot");
}

static void make_on_raw(struct memfs *fs)
{
	overlay(fs, "raw", NULL);
}

/* Records that nobody folded into the trees; later ones supersede blocks of earlier ones. */
static void make_journal(struct memfs *fs)
{
	struct img *img = start(fs, 2 * MIB, "unit_size=64K");

	make_write(img, 0, 16 * KIB, 1, 0);
	MAKE_OK(img_flush(img, IMG_FLUSH_CHECKPOINT, NULL));
	for (unsigned i = 0; i < 6; i++) {
		make_write(img, i * 4 * KIB, 8 * KIB, 10 + i, 0);
		if (i == 2)
			MAKE_OK(img_zero(img, 8 * KIB, MIB, 0, NULL));
		if (i == 3)
			make_write(img, MIB + 64 * KIB, 64 * KIB, 7, IMG_IO_COMPRESS);
		MAKE_OK(img_flush(img, 0, NULL));
	}
	die(fs, img);
}

static void make_journal_snapshot(struct memfs *fs)
{
	struct img *img = start(fs, 512 * KIB, NULL);

	make_write(img, 0, 16 * KIB, 1, 0);
	snapshot(img, "before", 0);
	make_write(img, 4 * KIB, 4 * KIB, 2, 0);
	MAKE_OK(img_flush(img, 0, NULL));
	MAKE_OK(img_discard(img, 8 * KIB, 0, 0, NULL));
	MAKE_OK(img_flush(img, 0, NULL));
	MAKE_OK(img_resize(img, 600 * KIB, 0, NULL));
	make_write(img, 590 * KIB, 4 * KIB, 3, 0);
	MAKE_OK(img_flush(img, 0, NULL));
	die(fs, img);
}

static const struct fuzz_recipe recipes[] = {
	{ "empty", make_empty },	 { "data", make_data },
	{ "levels", make_levels },	 { "deep", make_deep },
	{ "snapshots", make_snapshots }, { "deleted", make_deleted },
	{ "zstd", make_zstd },		 { "deflate", make_deflate },
	{ "block16", make_block16 },	 { "block64", make_block64 },
	{ "on-limg", make_on_limg },	 { "on-raw", make_on_raw },
	{ "journal", make_journal },	 { "journal-snapshot", make_journal_snapshot },
};

const struct fuzz_format fuzz_format_limg = {
	.name = "limg", .recipes = recipes, .nr_recipes = sizeof(recipes) / sizeof(recipes[0]), .walk = refix_limg
};
