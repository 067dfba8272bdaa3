/* SPDX-License-Identifier: MIT */
/*
 * streamOptimized VMDK: streams with small and usual grains, an empty one, and the dialect with its tables at the head,
 * with markers and without.
 *
 * What is made right again: the footer, which is a copy of the header; and the checksum of a grain's data (Adler-32,
 * behind it) where what was changed in it still expands to a grain. Much of what is changed in deflated data does not:
 * the fields of markers are worth more.
 */
#include <zlib.h>

#include "image.h"
#include "refix.h"
#include "vmdk_disk.h"

#define KIB	      1024u
#define SECTOR	      VMDK_SECTOR_BYTES
#define AT(field)     offsetof(struct disk_vmdk_header, field)
#define GRAIN_MAX     65536u
#define MARKERS_LOOK  24u /* that are told as fields */
#define ENTRIES_LOOK  16u
#define PAGES_LOOK    128u
#define HEAD_OVERHEAD 64u /* sectors */

/* ---- making ------------------------------------------------------------------------------------------------------ */

static void stream(struct memfs *fs, uint64_t size_bytes, const char *options)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "vmdk", .options = options };
	struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 1 };
	struct img *img;

	make_image(fs, "source", "raw", size_bytes, NULL);
	img = make_open(fs, "source", "raw");
	make_write(img, 1000, 6000, 1, 0);
	make_write(img, 40 * KIB, 4 * KIB, 2, 0);
	make_write(img, size_bytes / 2, 5 * KIB, 3, 0);
	make_write(img, size_bytes - 512, 512, 4, 0);
	MAKE_OK(image_convert_env(img, FUZZ_IMAGE, &create, &copy, &fs->env, NULL));
	make_close(img);
	memfs_remove(fs, "source");
}

static void make_usual(struct memfs *fs)
{
	stream(fs, 256 * KIB + 512, "subformat=streamOptimized");
}

/* Three tables. */
static void make_small(struct memfs *fs)
{
	stream(fs, 5120 * KIB, "subformat=streamOptimized,grain_size=4K");
}

static void make_empty(struct memfs *fs)
{
	make_image(fs, FUZZ_IMAGE, "vmdk", 64 * KIB, "subformat=streamOptimized");
}

static void put(struct mem_content *image, const void *data, size_t bytes, uint64_t off)
{
	FUZZ_CHECK(mem_content_write(image, data, bytes, off) == 0);
}

static void put32(struct mem_content *image, uint32_t value, uint64_t off)
{
	struct le32 d = le32_of(value);

	put(image, &d, sizeof(d), off);
}

/* A stream's header and descriptor, and behind them two directories with a table each, and three grains. */
static void tables_at_the_head(struct memfs *fs, uint32_t markers)
{
	static uint8_t plain[4 * KIB], packed[8 * KIB];
	struct disk_vmdk_header h;
	struct mem_content *image;
	uint64_t off = HEAD_OVERHEAD * SECTOR;

	stream(fs, 64 * KIB, "subformat=streamOptimized,grain_size=4K");
	image = memfs_find(fs, FUZZ_IMAGE);
	mem_content_read(image, &h, sizeof(h), 0);
	h.flags = le32_of(VMDK_NEWLINES_VALID | VMDK_RGD_VALID | VMDK_COMPRESSED | markers);
	h.rgd_off = le64_of(24);
	h.gd_off = le64_of(32);
	h.overhead = le64_of(HEAD_OVERHEAD);
	FUZZ_CHECK(mem_content_resize(image, 21 * SECTOR) == 0);
	put(image, &h, sizeof(h), 0);
	put32(image, 25, 24 * SECTOR);
	put32(image, 33, 32 * SECTOR);
	for (uint32_t grain = 1; grain < 16; grain += 7) {
		struct disk_vmdk_marker m = { .val = le64_of(grain * 8) };
		uLongf n = sizeof(packed);

		make_pattern(plain, sizeof(plain), grain * 4 * KIB, grain);
		FUZZ_CHECK(compress(packed, &n, plain, sizeof(plain)) == Z_OK);
		m.size = le32_of((uint32_t)n);
		put32(image, (uint32_t)(off / SECTOR), 25 * SECTOR + 4 * grain);
		put32(image, (uint32_t)(off / SECTOR), 33 * SECTOR + 4 * grain);
		if (markers)
			put(image, &m, VMDK_GRAIN_MARKER_BYTES, off);
		put(image, packed, n, off + (markers ? VMDK_GRAIN_MARKER_BYTES : 0));
		off = (off + VMDK_GRAIN_MARKER_BYTES + n + SECTOR - 1) / SECTOR * SECTOR;
	}
	FUZZ_CHECK(mem_content_resize(image, off) == 0);
}

static void make_head(struct memfs *fs)
{
	tables_at_the_head(fs, VMDK_MARKERS);
}

static void make_unmarked(struct memfs *fs)
{
	tables_at_the_head(fs, 0);
}

/* ---- walking ----------------------------------------------------------------------------------------------------- */

static void tell_header(const struct walk *w, uint64_t off)
{
	static const uint8_t fields[][2] = {
		{ AT(version), 4 },	{ AT(flags), 4 },	   { AT(capacity), 8 },
		{ AT(grain), 8 },	{ AT(descriptor_off), 8 }, { AT(descriptor_sectors), 8 },
		{ AT(nr_gtes), 4 },	{ AT(rgd_off), 8 },	   { AT(gd_off), 8 },
		{ AT(overhead), 8 },	{ AT(unclean), 1 },	   { AT(newlines), 4 },
		{ AT(compression), 2 },
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		walk_field(w, off + fields[i][0], fields[i][1]);
}

/* The footer becomes what the header says, but for the directory. Returns where the directory is, 0: nowhere. */
static uint64_t walk_footer(struct walk *w, struct disk_vmdk_header *head)
{
	uint64_t at = w->file_bytes >= 3 * SECTOR ? w->file_bytes - 2 * SECTOR : 0;
	struct disk_vmdk_header footer;
	struct le64 gd_off;

	if (le64_get(head->gd_off) != VMDK_AT_END)
		return le64_get(head->gd_off) * SECTOR;
	if (at == 0 || !walk_load(w, &footer, sizeof(footer), at))
		return 0;
	for (unsigned i = 0; i < 2; i++)
		walk_field(w, at - SECTOR + 8 * i, 8);
	tell_header(w, at);
	gd_off = footer.gd_off;
	if (w->fix & FUZZ_FIX_METADATA) {
		footer = *head;
		footer.gd_off = gd_off;
		walk_store(w, &footer, sizeof(footer), at);
	}
	return le64_get(gd_off) * SECTOR;
}

static void walk_tables(struct walk *w, uint64_t directory)
{
	for (unsigned i = 0; i < ENTRIES_LOOK / 4; i++) {
		struct le32 entry;

		if (!walk_load(w, &entry, sizeof(entry), directory + 4 * i))
			return;
		walk_field(w, directory + 4 * i, 4);
		for (unsigned j = 0; le32_get(entry) != 0 && j < ENTRIES_LOOK; j++)
			walk_field(w, (uint64_t)le32_get(entry) * SECTOR + 4 * j, 4);
	}
}

/* The right checksum behind data that expands. */
static void mend_grain(struct walk *w, uint64_t off, uint32_t bytes)
{
	static uint8_t packed[2 * GRAIN_MAX], plain[GRAIN_MAX + 1];
	z_stream z = { .next_in = packed + 2, .next_out = plain, .avail_out = sizeof(plain) };
	struct be32 sum;

	if (bytes < 8 || bytes > sizeof(packed) || !walk_load(w, packed, bytes, off))
		return;
	z.avail_in = bytes - 6;
	FUZZ_CHECK(inflateInit2(&z, -15) == Z_OK);
	if (inflate(&z, Z_FINISH) == Z_STREAM_END) {
		sum = be32_of((uint32_t)adler32(1, plain, (uInt)(sizeof(plain) - z.avail_out)));
		walk_store(w, &sum, sizeof(sum), off + bytes - 4);
	}
	inflateEnd(&z);
}

static void walk_markers(struct walk *w, uint64_t off)
{
	for (unsigned i = 0; i < MARKERS_LOOK; i++) {
		struct disk_vmdk_marker m;
		uint64_t sectors;

		if (!walk_load(w, &m, 16, off))
			return;
		walk_field(w, off, 8);
		walk_field(w, off + 8, 4);
		if (le32_get(m.size) != 0) {
			if (w->fix & FUZZ_FIX_DATA)
				mend_grain(w, off + VMDK_GRAIN_MARKER_BYTES, le32_get(m.size));
			off = (off + VMDK_GRAIN_MARKER_BYTES + le32_get(m.size) + SECTOR - 1) / SECTOR * SECTOR;
			continue;
		}
		walk_field(w, off + 12, 4);
		sectors = le64_get(m.val);
		if (le32_get(m.type) == VMDK_MARKER_EOS || sectors > w->file_bytes)
			return;
		off += (1 + sectors) * SECTOR;
	}
}

static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	struct walk w = { .image = image,
			  .file_bytes = mem_content_size(image),
			  .fix = fix,
			  .field = field,
			  .ctx = ctx,
			  .pages_left = PAGES_LOOK };
	struct disk_vmdk_header head;
	uint64_t directory;

	if (!walk_load(&w, &head, sizeof(head), 0))
		return;
	tell_header(&w, 0);
	directory = walk_footer(&w, &head);
	if (directory != 0)
		walk_tables(&w, directory);
	if (le64_get(head.overhead) < w.file_bytes)
		walk_markers(&w, le64_get(head.overhead) * SECTOR);
}

static const struct fuzz_recipe recipes[] = {
	{ "usual", make_usual }, { "small", make_small },	{ "empty", make_empty },
	{ "head", make_head },	 { "unmarked", make_unmarked },
};

const struct fuzz_format fuzz_format_vmdk_stream = {
	.name = "vmdk-stream",
	.driver = "vmdk",
	.recipes = recipes,
	.nr_recipes = sizeof(recipes) / sizeof(recipes[0]),
	.walk = walk,
};
