/* SPDX-License-Identifier: MIT */
/* Raw images: all there is to them is that their content may look like something else. */
#include "template.h"

static void make_empty(struct memfs *fs)
{
	make_image(fs, FUZZ_IMAGE, "raw", 0, NULL);
}

static void make_data(struct memfs *fs)
{
	struct img *img;

	make_image(fs, FUZZ_IMAGE, "raw", 256 << 10, NULL);
	img = make_open(fs, FUZZ_IMAGE, "raw");
	make_write(img, 0, 10000, 1, 0);
	make_write(img, 100 << 10, 5000, 2, 0);
	make_close(img);
}

/* A disk with a boot sector and both headers of a GPT, of which the first is at 512. */
static void make_disk(struct memfs *fs)
{
	static const uint8_t boot[2] = { 0x55, 0xaa };
	static const uint8_t mbr[16] = { 0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0, 0, 0 };
	uint8_t gpt[92] = "EFI PART";
	struct img *img;

	make_image(fs, FUZZ_IMAGE, "raw", 128 << 10, NULL);
	img = make_open(fs, FUZZ_IMAGE, "raw");
	MAKE_OK(img_pwrite(img, mbr, sizeof(mbr), 446, 0, NULL));
	MAKE_OK(img_pwrite(img, boot, sizeof(boot), 510, 0, NULL));
	gpt[10] = 1; /* revision 1.0 */
	gpt[12] = sizeof(gpt);
	gpt[24] = 1;   /* where this one is */
	gpt[32] = 255; /* and the other */
	gpt[72] = 2;   /* its entries */
	gpt[80] = 4;
	gpt[84] = 128;
	MAKE_OK(img_pwrite(img, gpt, sizeof(gpt), 512, 0, NULL));
	gpt[24] = 255;
	gpt[32] = 1;
	gpt[72] = 254;
	MAKE_OK(img_pwrite(img, gpt, sizeof(gpt), 255 * 512, 0, NULL));
	make_close(img);
}

static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	(void)image;
	(void)fix;
	/* magics of other formats, partition tables; a footer */
	for (unsigned off = 0; field && off < 128; off += 8)
		field(ctx, off, 8);
	for (unsigned off = 440; field && off < 608; off += 4)
		field(ctx, off, 4);
}

static const struct fuzz_recipe recipes[] = { { "empty", make_empty }, { "data", make_data }, { "disk", make_disk } };

const struct fuzz_format fuzz_format_raw = {
	.name = "raw", .recipes = recipes, .nr_recipes = sizeof(recipes) / sizeof(recipes[0]), .walk = walk
};
