/* SPDX-License-Identifier: MIT */
/* VDI images: block sizes at both ends, fixed and dynamic, a map that fills its room, overlays, extra bytes, version 0.
 */
#include "refix.h"
#include "vdi_disk.h"

#define KIB	 1024u
#define MAP_LOOK 64u /* entries that are told as fields */

static void make_usual(struct memfs *fs)
{
	make_simple(fs, "vdi", 4096 * KIB, NULL);
}

static void make_small(struct memfs *fs)
{
	make_simple(fs, "vdi", 128 * KIB, "block_size=512,align=512");
}

static void make_pages(struct memfs *fs)
{
	make_simple(fs, "vdi", 128 * KIB + 512, "block_size=4K,align=512");
}

static void make_fixed(struct memfs *fs)
{
	make_simple(fs, "vdi", 128 * KIB, "block_size=16K,align=4K,subformat=fixed");
}

static void make_overlaid(struct memfs *fs)
{
	make_simple_on(fs, "vdi", "block_size=8K,align=512", "block_size=4K,align=512");
}

static void make_large_overlaid(struct memfs *fs)
{
	make_simple_on(fs, "vdi", "block_size=8K,align=512", "block_size=64K,align=512");
}

/* Half of each place is made extra bytes: other blocks, of half the size. */
static void make_extra(struct memfs *fs)
{
	make_simple(fs, "vdi", 64 * KIB, "block_size=8K,align=512,subformat=fixed");
	make_patch32(fs, VDI_AT(block_bytes), 4 * KIB);
	make_patch32(fs, VDI_AT(extra_bytes), 4 * KIB);
	make_patch32(fs, VDI_AT(disk_bytes), 32 * KIB);
}

/* The old header, and the map behind it. */
static void make_version_0(struct memfs *fs)
{
	struct disk_vdi_header0 d;

	make_simple(fs, "vdi", 64 * KIB, "block_size=8K,align=512,subformat=fixed");
	memset(&d, 0, sizeof(d));
	d.type = le32_of(VDI_FIXED);
	d.disk_bytes = le64_of(64 * KIB);
	d.block_bytes = le32_of(8 * KIB);
	d.nr_blocks = d.nr_allocated = le32_of(8);
	d.uuid[0] = d.modification[0] = 1;
	make_patch32(fs, offsetof(struct disk_vdi_preheader, version), VDI_VERSION_0);
	make_patch(fs, VDI_HEADER_OFF, &d, sizeof(d));
	for (uint32_t i = 0; i < 8; i++)
		make_patch32(fs, VDI_HEADER_OFF + sizeof(d) + 4 * i, i);
}

/* There are no checksums: the fields are told, and the first entries of the map. */
static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	static const uint16_t words[] = {
		64,
		68,
		VDI_AT(header_bytes),
		VDI_AT(type),
		VDI_AT(flags),
		VDI_AT(map_off),
		VDI_AT(data_off),
		VDI_AT(block_bytes),
		VDI_AT(extra_bytes),
		VDI_AT(nr_blocks),
		VDI_AT(nr_allocated),
		VDI_AT(comment),
		VDI_AT(comment) + 14, /* of the name, after "libimg parent=" */
		VDI_AT(uuid),
		VDI_AT(modification),
		VDI_AT(parent),
		VDI_AT(parent_modification),
	};
	struct walk w = { .image = image,
			  .file_bytes = mem_content_size(image),
			  .fix = fix,
			  .field = field,
			  .ctx = ctx,
			  .pages_left = 2 };
	struct le32 map_off, nr_blocks;
	uint32_t nr;

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		walk_field(&w, words[i], 4);
	walk_field(&w, VDI_AT(disk_bytes), 8);
	if (!walk_load(&w, &map_off, 4, VDI_AT(map_off)) || !walk_load(&w, &nr_blocks, 4, VDI_AT(nr_blocks)))
		return;
	nr = le32_get(nr_blocks) < MAP_LOOK ? le32_get(nr_blocks) : MAP_LOOK;
	for (uint32_t i = 0; i < nr && le32_get(map_off) + 4u * (i + 1) <= w.file_bytes; i++)
		walk_field(&w, le32_get(map_off) + 4u * i, 4);
}

static const struct fuzz_recipe recipes[] = {
	{ "usual", make_usual }, { "small", make_small },	  { "pages", make_pages },
	{ "fixed", make_fixed }, { "overlay", make_overlaid },	  { "large-overlay", make_large_overlaid },
	{ "extra", make_extra }, { "version-0", make_version_0 },
};

const struct fuzz_format fuzz_format_vdi = {
	.name = "vdi", .recipes = recipes, .nr_recipes = sizeof(recipes) / sizeof(recipes[0]), .walk = walk
};
