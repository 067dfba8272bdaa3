/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images: both versions, cluster sizes at both ends, refcounts of several widths, subclusters, both codecs,
 * snapshots with machine state, bitmaps, data files, overlays, and the states that another program may leave.
 */
#include "qcow2_disk.h"
#include "refix.h"

#define KIB 1024u
#define MIB (1024u * KIB)

static struct img *start(struct memfs *fs, uint64_t size_bytes, const char *options)
{
	make_image(fs, FUZZ_IMAGE, "qcow2", size_bytes, options);
	return make_open(fs, FUZZ_IMAGE, "qcow2");
}

static void snapshot(struct img *img, const char *name, unsigned flags)
{
	MAKE_OK(img_snapshot_create(img, name, flags, NULL));
}

static void fill(struct img *img)
{
	make_write(img, 1000, 6000, 1, 0);
	make_write(img, 40 * KIB, 4 * KIB, 2, 0);
	MAKE_OK(img_zero(img, 24 * KIB, 64 * KIB, 0, NULL));
	make_write(img, img_size(img) - 2 * KIB, 2 * KIB, 3, 0);
}

static void plain(struct memfs *fs, uint64_t size_bytes, const char *options)
{
	struct img *img = start(fs, size_bytes, options);

	fill(img);
	make_close(img);
}

static void make_classic(struct memfs *fs)
{
	struct img *img = start(fs, MIB, "compat=0.10,cluster_size=4K");

	fill(img);
	snapshot(img, "old", 0);
	make_write(img, 0, 4 * KIB, 4, IMG_IO_COMPRESS);
	make_close(img);
}

static void make_small(struct memfs *fs)
{
	plain(fs, 256 * KIB, "cluster_size=512");
}

static void make_usual(struct memfs *fs)
{
	plain(fs, 4 * MIB, NULL);
}

static void make_large(struct memfs *fs)
{
	plain(fs, 4 * MIB, "cluster_size=256K");
}

static void make_snapshots(struct memfs *fs)
{
	struct img *img = start(fs, 128 * KIB, "cluster_size=1K");

	fill(img);
	snapshot(img, "first", 0);
	make_write(img, 2 * KIB, 3 * KIB, 5, 0);
	make_vmstate(img, 0, 5000, 6);
	snapshot(img, "second", IMG_SNAPSHOT_VMSTATE);
	MAKE_OK(img_resize(img, 192 * KIB, 0, NULL));
	make_write(img, 180 * KIB, KIB, 7, 0);
	make_close(img);
}

static void compressed(struct memfs *fs, const char *options)
{
	struct img *img = start(fs, 256 * KIB, options);

	for (unsigned i = 0; i < 6; i++)
		make_write(img, i * 8 * KIB, 4 * KIB, i, IMG_IO_COMPRESS);
	make_write(img, 4 * KIB, 12 * KIB, 9, 0);
	snapshot(img, "packed", 0);
	make_write(img, 8 * KIB, 4 * KIB, 10, IMG_IO_COMPRESS);
	make_close(img);
}

static void make_deflate(struct memfs *fs)
{
	compressed(fs, "cluster_size=4K");
}

static void make_zstd(struct memfs *fs)
{
	compressed(fs, "cluster_size=4K,compression_type=zstd");
}

static void make_subclusters(struct memfs *fs)
{
	struct img *img = start(fs, 512 * KIB, "cluster_size=16K,extended_l2=on");

	fill(img);
	make_write(img, 160 * KIB, 512, 4, 0);
	MAKE_OK(img_zero(img, 512, 40 * KIB, 0, NULL));
	make_write(img, 192 * KIB, 16 * KIB, 5, IMG_IO_COMPRESS);
	make_close(img);
}

static void make_one_bit(struct memfs *fs)
{
	plain(fs, 128 * KIB, "cluster_size=512,refcount_bits=1");
}

static void make_64_bits(struct memfs *fs)
{
	struct img *img = start(fs, 128 * KIB, "cluster_size=512,refcount_bits=64,lazy_refcounts=on");

	fill(img);
	snapshot(img, "s", 0);
	make_close(img);
}

static void make_preallocated(struct memfs *fs)
{
	plain(fs, 128 * KIB, "cluster_size=4K,preallocation=metadata");
}

static void make_data_file(struct memfs *fs)
{
	plain(fs, 128 * KIB, "cluster_size=4K,data_file=data");
}

static void make_raw_data_file(struct memfs *fs)
{
	plain(fs, 128 * KIB, "cluster_size=4K,data_file=data,data_file_raw=on");
}

static void make_bitmaps(struct memfs *fs)
{
	struct img *img = start(fs, 256 * KIB, "cluster_size=1K");

	MAKE_OK(img_bitmap_add(img, "daily", 4096, 0, NULL));
	MAKE_OK(img_bitmap_add(img, "fine", 512, 0, NULL));
	make_write(img, 0, 6000, 1, 0);
	MAKE_OK(img_bitmap_disable(img, "daily", NULL));
	make_write(img, 100 * KIB, 6000, 1, 0);
	make_close(img);
	/* written, closed and opened again: what was in memory is on disk */
	img = make_open(fs, FUZZ_IMAGE, "qcow2");
	make_write(img, 200 * KIB, KIB, 2, 0);
	make_close(img);
}

static void overlay(struct memfs *fs, const char *options, const char *format, const char *named)
{
	struct img *img;

	make_image(fs, "base", format, 128 * KIB, strcmp(format, "qcow2") == 0 ? "cluster_size=4K" : NULL);
	img = make_open(fs, "base", format);
	make_write(img, 0, 20 * KIB, 1, 0);
	if (named)
		snapshot(img, named, 0);
	make_close(img);
	make_overlay(fs, FUZZ_IMAGE, "qcow2", options, "base", format, named);
	img = make_open(fs, FUZZ_IMAGE, "qcow2");
	make_write(img, 4 * KIB, 5000, 2, 0);
	MAKE_OK(img_zero(img, 4 * KIB, 16 * KIB, 0, NULL));
	make_close(img);
}

static void make_on_raw(struct memfs *fs)
{
	overlay(fs, "cluster_size=1K", "raw", NULL);
}

static void make_on_qcow2(struct memfs *fs)
{
	overlay(fs, "cluster_size=16K,extended_l2=on", "qcow2", "base snapshot");
}

static void make_on_limg(struct memfs *fs)
{
	overlay(fs, "cluster_size=512", "limg", NULL);
}

/* ---- what others leave ---- */

static void poke64(struct memfs *fs, uint64_t off, uint64_t value)
{
	struct be64 v = be64_of(value);

	make_patch(fs, off, &v, sizeof(v));
}

static void make_dirty(struct memfs *fs)
{
	plain(fs, 128 * KIB, "cluster_size=4K,lazy_refcounts=on");
	poke64(fs, offsetof(struct disk_qcow2_header, incompatible), QCOW2_DIRTY);
	poke64(fs, 8 * KIB + 8, 0); /* refcounts of four clusters */
}

static void make_corrupt(struct memfs *fs)
{
	plain(fs, 128 * KIB, "cluster_size=4K");
	poke64(fs, offsetof(struct disk_qcow2_header, incompatible), QCOW2_CORRUPT);
}

/* All of a large disk is one cluster: every L1 entry leads to one L2 table, every entry of that to one cluster of data.
 */
static void make_aliased(struct memfs *fs)
{
	struct img *img = start(fs, UINT64_C(64) << 30, NULL);
	struct be64 l1_off, l1, l2;
	struct mem_content *image;

	make_write(img, 0, 64 * KIB, 1, 0);
	make_close(img);
	image = memfs_find(fs, FUZZ_IMAGE);
	mem_content_read(image, &l1_off, 8, offsetof(struct disk_qcow2_header, l1_off));
	mem_content_read(image, &l1, 8, be64_get(l1_off));
	mem_content_read(image, &l2, 8, be64_get(l1) & QCOW2_OFFSET_MASK);
	for (unsigned i = 0; i < 128; i++)
		poke64(fs, be64_get(l1_off) + i * 8, be64_get(l1) & QCOW2_OFFSET_MASK);
	for (unsigned i = 0; i < 8192; i++)
		poke64(fs, (be64_get(l1) & QCOW2_OFFSET_MASK) + i * 8, be64_get(l2) & QCOW2_OFFSET_MASK);
}

/* As QEMU's crypt_method 2: a header extension names a range that holds a LUKS header of version 1. */
static void make_luks(struct memfs *fs)
{
	static const char luks[] = "LUKS\xba\xbe\0\1aes\0";
	uint8_t ext[40] = { 0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x10 };
	static const uint8_t crypt[4] = { 0, 0, 0, 2 };
	struct mem_content *image;

	make_image(fs, FUZZ_IMAGE, "qcow2", 64 * KIB, "cluster_size=4K");
	image = memfs_find(fs, FUZZ_IMAGE);
	FUZZ_CHECK(mem_content_write(image, crypt, 4, offsetof(struct disk_qcow2_header, crypt_method)) == 0);
	FUZZ_CHECK(mem_content_write(image, ext, sizeof(ext), sizeof(struct disk_qcow2_header)) == 0);
	FUZZ_CHECK(mem_content_resize(image, 36 * KIB) == 0);
	FUZZ_CHECK(mem_content_write(image, luks, sizeof(luks), 32 * KIB) == 0);
}

static const struct fuzz_recipe recipes[] = {
	{ "classic", make_classic },
	{ "small", make_small },
	{ "usual", make_usual },
	{ "large", make_large },
	{ "snapshots", make_snapshots },
	{ "deflate", make_deflate },
	{ "zstd", make_zstd },
	{ "subclusters", make_subclusters },
	{ "one-bit", make_one_bit },
	{ "64-bits", make_64_bits },
	{ "preallocated", make_preallocated },
	{ "data-file", make_data_file },
	{ "raw-data-file", make_raw_data_file },
	{ "bitmaps", make_bitmaps },
	{ "on-raw", make_on_raw },
	{ "on-qcow2", make_on_qcow2 },
	{ "on-limg", make_on_limg },
	{ "dirty", make_dirty },
	{ "corrupt", make_corrupt },
	{ "luks", make_luks },
	{ "aliased", make_aliased },
};

const struct fuzz_format fuzz_format_qcow2 = { .name = "qcow2",
					       .big_endian = true,
					       .recipes = recipes,
					       .nr_recipes = sizeof(recipes) / sizeof(recipes[0]),
					       .walk = refix_qcow2 };
