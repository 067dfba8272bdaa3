/* SPDX-License-Identifier: MIT */
/*
 * The geometries that programs start from: small ones, with tables that are full after few writes, and of each format
 * every variation that is stored in another way.
 */
#include <string.h>

#include "ops.h"

#define KIB(n) ((n)*UINT64_C(1024))

struct recipe {
	const char *options;
	uint32_t block_bytes, unit_bytes;
	uint64_t size_bytes;
	const char *base;
	unsigned refcount_bits;
	bool fixed_by_snaps;
};

static const struct recipe raw_recipes[] = {
	{ NULL, 4096, 65536, KIB(128), NULL, 0, false },
	{ NULL, 4096, 65536, 512 * 37, NULL, 0, false },
	{ NULL, 4096, 65536, 0, NULL, 0, false },
};

static const struct recipe limg_recipes[] = {
	{ "block_size=4096,unit_size=65536,compression=zstd", 4096, 65536, KIB(192), NULL, 0, false },
	{ "block_size=4096,unit_size=65536,compression=zlib", 4096, 65536, KIB(1088), NULL, 0, false },
	{ "block_size=16384,unit_size=65536,compression=none", 16384, 65536, KIB(256), NULL, 0, false },
	{ "block_size=65536,unit_size=131072,compression=zstd", 65536, 131072, KIB(512), NULL, 0, false },
	{ "block_size=4096,unit_size=65536,compression=zstd", 4096, 65536, KIB(160), "raw", 0, false },
	{ "block_size=4096,unit_size=65536,compression=zstd", 4096, 65536, KIB(130) + 512, "limg", 0, false },
	{ "block_size=4096,unit_size=65536,compression=zstd", 4096, 65536, 0, NULL, 0, false },
};

/* Reference counts of few bits set a limit to snapshots; compressed clusters share, so that 8 bits may be few. */
static const struct recipe qcow2_recipes[] = {
	{ "compat=1.1,cluster_size=4096", 4096, 4096, KIB(128), NULL, 0, false },
	{ "compat=1.1,cluster_size=512", 512, 512, KIB(64), NULL, 0, false },
	{ "compat=0.10,cluster_size=512", 512, 512, KIB(48), NULL, 16, true },
	{ "compat=1.1,cluster_size=512,refcount_bits=1", 512, 512, KIB(64), NULL, 1, false },
	{ "compat=1.1,cluster_size=512,refcount_bits=2,compression_type=zstd", 512, 512, KIB(40), NULL, 2, false },
	{ "compat=1.1,cluster_size=4096,refcount_bits=64,lazy_refcounts=on", 4096, 4096, KIB(128), NULL, 0, false },
	{ "compat=1.1,cluster_size=16384,extended_l2=on", 16384, 16384, KIB(256), NULL, 0, false },
	{ "compat=1.1,cluster_size=16384,extended_l2=on,compression_type=zstd", 16384, 16384, KIB(300), "raw", 0,
	  false },
	{ "compat=1.1,cluster_size=65536", 65536, 65536, KIB(512), NULL, 0, false },
	{ "compat=1.1,cluster_size=512", 512, 512, KIB(40), "raw", 0, false },
	{ "compat=1.1,cluster_size=4096,compression_type=zstd", 4096, 4096, KIB(100), "limg", 0, false },
	{ "compat=0.10,cluster_size=4096", 4096, 4096, KIB(96) + 512, "qcow2", 16, true },
	{ "compat=1.1,cluster_size=512,refcount_bits=8,lazy_refcounts=on", 512, 512, 0, NULL, 8, false },
};

/* The map near the data, so that it has to move when the disk grows. */
static const struct recipe vdi_recipes[] = {
	{ "block_size=512,align=512", 512, 512, KIB(40), NULL, 0, false },
	{ "block_size=4096,align=512", 4096, 4096, KIB(128), NULL, 0, false },
	{ "block_size=4096,align=4096", 4096, 4096, KIB(100) + 512, NULL, 0, false },
	{ "block_size=65536,align=512", 65536, 65536, KIB(300), NULL, 0, false },
};

/* Small blocks, whose table has to move when the disk grows. */
static const struct recipe vhd_recipes[] = {
	{ "block_size=4096", 4096, 4096, KIB(128), NULL, 0, false },
	{ "block_size=4096", 4096, 4096, KIB(100) + 512, NULL, 0, false },
	{ "block_size=16384", 16384, 16384, KIB(300), NULL, 0, false },
	{ "block_size=65536", 65536, 65536, KIB(300), NULL, 0, false },
};

/* The smallest blocks; disks of less than one, and of more. */
static const struct recipe vhdx_recipes[] = {
	{ "block_size=1M", 1 << 20, 1 << 20, KIB(300), NULL, 0, false },
	{ "block_size=1M", 1 << 20, 1 << 20, KIB(1700) + 512, NULL, 0, false },
};

/* The table near the data, so that it needs the first clusters' room when the disk grows. */
static const struct recipe parallels_recipes[] = {
	{ "cluster_size=512", 512, 512, KIB(40), NULL, 0, false },
	{ "cluster_size=4096,version=1", 4096, 4096, KIB(128), NULL, 0, false },
	{ "cluster_size=4608,version=1", 4608, 4608, KIB(100) + 512, NULL, 0, false },
	{ "cluster_size=65536", 65536, 65536, KIB(300), NULL, 0, false },
};

/* Grains of one page and usual ones, entries that say zeros, a second table. */
static const struct recipe vmdk_recipes[] = {
	{ "grain_size=4096", 4096, 4096, KIB(128), NULL, 0, false },
	{ "grain_size=4096,zeroed_grain=on", 4096, 4096, KIB(100) + 512, NULL, 0, false },
	{ "grain_size=8192", 8192, 8192, KIB(200) + 4096, NULL, 0, false },
	{ "grain_size=65536", 65536, 65536, KIB(300), NULL, 0, false },
};

void ops_template(const char *format, unsigned number, struct geometry *out)
{
	static const struct {
		const char *format;
		const struct recipe *recipes;
		size_t nr;
	} tables[] = {
		{ "raw", raw_recipes, sizeof(raw_recipes) / sizeof(raw_recipes[0]) },
		{ "limg", limg_recipes, sizeof(limg_recipes) / sizeof(limg_recipes[0]) },
		{ "qcow2", qcow2_recipes, sizeof(qcow2_recipes) / sizeof(qcow2_recipes[0]) },
		{ "vdi", vdi_recipes, sizeof(vdi_recipes) / sizeof(vdi_recipes[0]) },
		{ "vhd", vhd_recipes, sizeof(vhd_recipes) / sizeof(vhd_recipes[0]) },
		{ "vmdk", vmdk_recipes, sizeof(vmdk_recipes) / sizeof(vmdk_recipes[0]) },
		{ "vhdx", vhdx_recipes, sizeof(vhdx_recipes) / sizeof(vhdx_recipes[0]) },
		{ "parallels", parallels_recipes, sizeof(parallels_recipes) / sizeof(parallels_recipes[0]) },
	};
	const struct recipe *r = NULL;

	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
		if (strcmp(tables[i].format, format) == 0)
			r = &tables[i].recipes[number % tables[i].nr];
	}
	FUZZ_CHECK(r != NULL);
	*out = (struct geometry){
		.format = traits_of(format),
		.block_bytes = r->block_bytes,
		.unit_bytes = r->unit_bytes,
		.size_bytes = r->size_bytes,
		.max_bytes = r->size_bytes ? r->size_bytes * 2 : KIB(64),
		.base = r->base ? traits_of(r->base) : NULL,
		.refcount_bits = r->refcount_bits,
		.is_v2 = r->fixed_by_snaps,
	};
	FUZZ_CHECK(out->max_bytes <= (uint64_t)OPS_SECTORS * OPS_SECTOR);
	if (r->options)
		snprintf(out->options, sizeof(out->options), "%s", r->options);
}
