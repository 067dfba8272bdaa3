/* SPDX-License-Identifier: MIT */
/*
 * Files of formats that this build does not open, and what looks like them: made by hand, as far as an inspection
 * looks. When a format becomes one of ours it gets templates of its own.
 */
#include "refix.h"

static struct mem_content *new_file(struct memfs *fs, uint64_t bytes)
{
	struct mem_content *content = mem_content_new();

	FUZZ_CHECK(content && mem_content_resize(content, bytes) == 0);
	memfs_put(fs, FUZZ_IMAGE, content);
	return content;
}

static void put(struct mem_content *content, uint64_t off, const void *data, size_t bytes)
{
	FUZZ_CHECK(mem_content_write(content, data, bytes, off) == 0);
}

static void put64(struct mem_content *content, uint64_t off, uint64_t value)
{
	struct le64 v = le64_of(value);

	put(content, off, &v, sizeof(v));
}

static void put32(struct mem_content *content, uint64_t off, uint32_t value)
{
	struct le32 v = le32_of(value);

	put(content, off, &v, sizeof(v));
}

static const char descriptor[] = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
				 "createType=\"monolithicSparse\"\n\n# Extent description\n"
				 "RW 128 SPARSE \"disk.vmdk\"\n\n# The Disk Data Base\n#DDB\n"
				 "ddb.geometry.cylinders = \"1\"\n";

static void make_vmdk_text(struct memfs *fs)
{
	put(new_file(fs, 512), 0, descriptor, sizeof(descriptor) - 1);
}

/* Capacity, grain and places in sectors, as VMware's "Virtual Disk Format 5.0" has them. */
static void make_vmdk(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 128 << 10);

	put(c, 0, "KDMV", 4);
	put32(c, 4, 1);
	put32(c, 8, 3);
	put64(c, 12, 128);
	put64(c, 20, 128);
	put64(c, 28, 1);
	put64(c, 36, 20);
	put32(c, 44, 512);
	put64(c, 48, 21);
	put64(c, 56, 26);
	put64(c, 64, 128);
	put(c, 73, "\n \r\n", 4);
	put(c, 512, descriptor, sizeof(descriptor) - 1);
	put32(c, 21 * 512, 22);
	put32(c, 26 * 512, 27);
}

static void make_vdi(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 8192);

	put(c, 0, "<<< VirtualBox Disk Image >>>\n", 30);
	put32(c, 64, 0xbeda107f);
	put32(c, 68, 0x10001);
	put32(c, 72, 400);
	put32(c, 76, 1);
	put32(c, 340, 512);
	put32(c, 344, 1024);
	put32(c, 360, 512);
	put64(c, 368, 1 << 20);
	put32(c, 376, 1 << 20);
	put32(c, 384, 1);
}

static void make_vhd(struct memfs *fs)
{
	static const uint8_t footer[80] = { 'c', 'o', 'n', 'e', 'c', 't', 'i', 'x', 0,	 0, 0, 2, 0, 1,	  0,
					    0,	 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 'i', 'm',
					    'g', 0,   0,   1,	0,   0,	  0,   0,   0,	 0, 0, 0, 0, 0x80 };
	struct mem_content *c = new_file(fs, (32 << 10) + 512);

	put(c, 32 << 10, footer, sizeof(footer));
}

/* Signatures, the region table and the metadata table; MS-VHDX section 2. */
static void make_vhdx(struct memfs *fs)
{
	static const uint8_t bat[16] = { 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
					 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 };
	static const uint8_t metadata[16] = { 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
					      0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };
	static const uint8_t locator[16] = { 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45,
					     0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c };
	static const uint8_t size[16] = { 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48,
					  0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 };
	struct mem_content *c = new_file(fs, 4 << 20);

	put(c, 0, "vhdxfile", 8);
	for (unsigned i = 1; i <= 2; i++) {
		put(c, i << 16, "head", 4);
		put64(c, (i << 16) + 8, i);
		put(c, (i + 2) << 16, "regi", 4);
		put32(c, ((i + 2) << 16) + 8, 2);
		put(c, ((i + 2) << 16) + 16, bat, 16);
		put64(c, ((i + 2) << 16) + 32, 3 << 20);
		put32(c, ((i + 2) << 16) + 40, 1 << 20);
		put(c, ((i + 2) << 16) + 48, metadata, 16);
		put64(c, ((i + 2) << 16) + 64, 2 << 20);
		put32(c, ((i + 2) << 16) + 72, 1 << 20);
	}
	put(c, 2 << 20, "metadata", 8);
	put32(c, (2 << 20) + 8, 2 << 16);
	put(c, (2 << 20) + 32, size, 16);
	put32(c, (2 << 20) + 48, 65536);
	put32(c, (2 << 20) + 52, 8);
	put64(c, (2 << 20) + 65536, 64 << 20);
	put(c, (2 << 20) + 64, locator, 16);
	put32(c, (2 << 20) + 80, 65536 + 16);
	put32(c, (2 << 20) + 84, 80);
	put32(c, (2 << 20) + 65536 + 16 + 18, 1);
	put32(c, (2 << 20) + 65536 + 16 + 20, 40);
	put32(c, (2 << 20) + 65536 + 16 + 24, 60);
	put32(c, (2 << 20) + 65536 + 16 + 28, 8 | 8 << 16);
}

static void make_qed(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 16384);

	put(c, 0, "QED\0", 4);
	put32(c, 4, 4096);
	put32(c, 8, 1);
	put32(c, 12, 1);
	put64(c, 16, 1);
	put64(c, 40, 4096);
	put64(c, 48, 65536);
	put32(c, 56, 64);
	put32(c, 60, 4);
	put(c, 64, "base", 4);
}

static void make_luks(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 65536);
	struct be32 slot[12] = { be32_of(0x00ac71f3), be32_of(100000) };

	put(c, 0, "LUKS\xba\xbe\0\1aes", 11);
	put(c, 40, "xts-plain64", 11);
	put(c, 72, "sha256", 6);
	put(c, 208, slot, sizeof(slot));
}

static void make_luks2(struct memfs *fs)
{
	static const char json[] = "{\"keyslots\":{\"0\":{\"type\":\"luks2\",\"kdf\":{\"type\":\"argon2id\",\"time\":4,"
				   "\"memory\":1048576,\"cpus\":4}}}}";
	struct mem_content *c = new_file(fs, 65536);

	put(c, 0, "LUKS\xba\xbe\0\2\0\0\0\0\0\0\x40", 15);
	put(c, 4096, json, sizeof(json));
}

static void make_qcow(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 4096);

	put(c, 0, "QFI\xfb\0\0\0\1\0\0\0\0\0\0\0\x30\0\0\0\4", 20);
	put(c, 48, "base", 4);
}

static void make_parallels(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 4096);

	put(c, 0, "WithoutFreeSpace", 16);
	put32(c, 16, 2);
	put32(c, 28, 63);
	put32(c, 32, 1);
	put32(c, 36, 128);
}

static void make_dmg(struct memfs *fs)
{
	put(new_file(fs, 8192), 8192 - 512, "koly\0\0\0\4\0\0\2", 11);
}

static void put_be64(struct mem_content *content, uint64_t off, uint64_t value)
{
	struct be64 v = be64_of(value);

	put(content, off, &v, sizeof(v));
}

/* Chunks of 64 KiB: one for the table, one for the second piece of the disk. */
static void make_asif(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 192 << 10);

	put(c, 0, "shdw\0\0\0\1\0\0\2\0", 12);
	put_be64(c, 16, 512);
	put_be64(c, 24, 1024);
	put_be64(c, 48, 500);
	put_be64(c, 56, 3 * 2048 * 128);
	put(c, 64, "\0\1\0\0\2\0", 6);
	put_be64(c, 512, 1);
	put_be64(c, 1024, 2);
	put_be64(c, 1032, 1);
	put_be64(c, 65536 + 8, UINT64_C(1) << 62 | 2);
	put(c, 131072, "data", 4);
}

/* Clusters of 512 bytes: a table, a plain one, one that is packed. */
static void make_qcow_data(struct memfs *fs)
{
	static const uint8_t packed[] = { 0x63, 0x60, 0x18, 0x05, 0xa3, 0x60, 0x14, 0x0c, 0x3f, 0x00, 0x00 };
	struct mem_content *c = new_file(fs, 4096);

	put(c, 0, "QFI\xfb\0\0\0\1", 8);
	put_be64(c, 24, 65536);
	put(c, 32, "\x9\x6", 2);
	put_be64(c, 40, 512);
	put_be64(c, 512, 1024);
	put_be64(c, 1024, 1536);
	put_be64(c, 1032, UINT64_C(1) << 63 | (uint64_t)sizeof(packed) << 54 | 2048);
	put(c, 1536, "data", 4);
	put(c, 2048, packed, sizeof(packed));
}

static void make_qed_data(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 24576);

	put(c, 0, "QED\0", 4);
	put32(c, 4, 4096);
	put32(c, 8, 2);
	put32(c, 12, 1);
	put64(c, 40, 4096);
	put64(c, 48, 1 << 20);
	put64(c, 4096, 12288);
	put64(c, 12288, 20480);
	put64(c, 12296, 1);
	put(c, 20480, "data", 4);
}

static void make_disc(struct memfs *fs)
{
	struct mem_content *c = new_file(fs, 65536);

	put(c, 32768, "\1CD001\1", 7);
	put(c, 510, "\x55\xaa", 2);
	put(c, 446, "\x80\0\1\0\x17\0\0\0\0\0\0\0\x80", 13);
}

static void walk(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx)
{
	uint64_t bytes = mem_content_size(image);

	(void)fix;
	for (unsigned off = 0; field && off < 512 && off + 8 <= bytes; off += off < 128 ? 4 : 16)
		field(ctx, off, off % 8 ? 4 : 8);
	for (unsigned off = 512; field && off <= 520 && off <= bytes; off += 4)
		field(ctx, bytes - off, 4);
	for (uint64_t off = 65536; field && off < bytes; off += 65536)
		for (unsigned i = 0; i < 64; i += 8)
			field(ctx, off + i, 8);
}

static const struct fuzz_recipe recipes[] = {
	{ "vmdk-text", make_vmdk_text }, { "vmdk", make_vmdk }, { "vdi", make_vdi },   { "vhd", make_vhd },
	{ "vhdx", make_vhdx },		 { "qed", make_qed },	{ "luks", make_luks }, { "luks2", make_luks2 },
	{ "qcow", make_qcow },		 { "dmg", make_dmg },	{ "disc", make_disc }, { "parallels", make_parallels },
	{ "asif", make_asif }, { "qcow-data", make_qcow_data }, { "qed-data", make_qed_data },
};

const struct fuzz_format fuzz_format_foreign = {
	.name = "foreign", .recipes = recipes, .nr_recipes = sizeof(recipes) / sizeof(recipes[0]), .walk = walk
};
