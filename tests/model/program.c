/* SPDX-License-Identifier: MIT */
/* Making and printing programs. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "model.h"

/* What a format must have for an operation. */
enum need { NOTHING, PARENTS, SNAPSHOTS, BITMAPS };

/* How often each operation is drawn. */
static const struct {
	const char *name;
	unsigned weight;
	enum need need;
} kinds[NR_OPS] = {
	[OP_WRITE] = { "write", 180, NOTHING },
	[OP_WRITE_BLOCKS] = { "write-blocks", 150, NOTHING },
	[OP_WRITE_UNITS] = { "write-units", 90, NOTHING },
	[OP_ZERO] = { "zero", 60, NOTHING },
	[OP_DISCARD] = { "discard", 60, NOTHING },
	[OP_READ] = { "read", 120, NOTHING },
	[OP_FLUSH] = { "flush", 70, NOTHING },
	[OP_CHECKPOINT] = { "checkpoint", 40, NOTHING },
	[OP_SNAP_CREATE] = { "snapshot-create", 50, SNAPSHOTS },
	[OP_SNAP_DELETE] = { "snapshot-delete", 45, SNAPSHOTS },
	[OP_SNAP_REVERT] = { "snapshot-revert", 20, SNAPSHOTS },
	[OP_SNAP_RENAME] = { "snapshot-rename", 10, SNAPSHOTS },
	[OP_SNAP_READ] = { "snapshot-read", 40, SNAPSHOTS },
	[OP_SNAP_HOLD] = { "snapshot-hold", 12, SNAPSHOTS },
	[OP_DIFF] = { "diff", 25, SNAPSHOTS },
	[OP_EXTENTS] = { "extents", 20, NOTHING },
	[OP_VM_WRITE] = { "vmstate-write", 25, SNAPSHOTS },
	[OP_VM_ZERO] = { "vmstate-zero", 15, SNAPSHOTS },
	[OP_VM_READ] = { "vmstate-read", 15, SNAPSHOTS },
	[OP_VM_LOAD] = { "vmstate-load", 10, SNAPSHOTS },
	[OP_VM_RESIZE] = { "vmstate-resize", 8, SNAPSHOTS },
	[OP_RESIZE] = { "resize", 15, NOTHING },
	[OP_OVERLAY] = { "overlay", 7, PARENTS },
	[OP_POP] = { "pop", 4, PARENTS },
	[OP_COMMIT] = { "commit", 5, PARENTS },
	[OP_REBASE] = { "rebase", 4, PARENTS },
	[OP_FLATTEN] = { "flatten", 3, PARENTS },
	[OP_REOPEN] = { "reopen", 10, NOTHING },
	[OP_REPLAY] = { "replay", 8, PARENTS },
	[OP_CHECK] = { "check", 8, NOTHING },
	[OP_COMPARE] = { "compare", 4, NOTHING },
	[OP_CONVERT] = { "convert", 3, NOTHING },
	[OP_TOUCH_PARENT] = { "touch-parent", 4, PARENTS },
	[OP_AMEND] = { "amend", 20, NOTHING },
	[OP_BITMAP_ADD] = { "bitmap-add", 16, BITMAPS },
	[OP_BITMAP_REMOVE] = { "bitmap-remove", 5, BITMAPS },
	[OP_BITMAP_SWITCH] = { "bitmap-switch", 10, BITMAPS },
	[OP_BITMAP_CLEAR] = { "bitmap-clear", 8, BITMAPS },
	[OP_BITMAP_MERGE] = { "bitmap-merge", 10, BITMAPS },
};

static const struct traits formats[] = {
	{ .name = "raw", .raw = true },
	{ .name = "limg", .discard_zeroes = true, .has_parents = true, .strong_pins = true, .keeps_vm = true },
	{ .name = "qcow2", .may_leak = true, .bitmaps = true },
	{ .name = "limg",
	  .kind = "limg-device",
	  .discard_zeroes = true,
	  .has_parents = true,
	  .keeps_vm = true,
	  .device = true },
	{ .name = "qcow2", .kind = "qcow2-device", .may_leak = true, .bitmaps = true, .device = true },
	{ .name = "vdi", .may_leak = true, .plain = true },
	{ .name = "vhd", .may_leak = true, .plain = true, .ids = true },
	{ .name = "vmdk", .may_leak = true, .plain = true },
	{ .name = "vmdk", .kind = "vmdk-split", .may_leak = true, .plain = true, .several = true },
	{ .name = "vmdk", .kind = "vmdk-flat", .may_leak = true, .plain = true, .alone = true, .several = true },
	{ .name = "parallels", .may_leak = true, .plain = true, .alone = true },
	{ .name = "parallels", .kind = "bundle", .may_leak = true, .plain = true, .alone = true, .several = true },
	{ .name = "vhdx", .may_leak = true, .plain = true },
};

static const char *kind_of(const struct traits *t)
{
	return t->kind ? t->kind : t->name;
}

const struct traits *traits_of(const char *kind)
{
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		if (strcmp(kind_of(&formats[i]), kind) == 0)
			return &formats[i];
	}
	return NULL;
}

const char *op_name(enum op_kind kind)
{
	return kinds[kind].name;
}

/* splitmix64 */
uint64_t rng_next(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static uint64_t pick_size(uint64_t *rng, uint32_t block)
{
	static const uint32_t most[] = { 0, 4096, 65536, 1u << 20, 1u << 20, 1100000, 2u << 20, MODEL_MAX_BYTES };
	uint64_t r = rng_next(rng), max = most[r % 8];

	if (max == 0)
		return r >> 8 & 1 ? 0 : 512 * (1 + (r >> 9) % 9);
	if (r >> 8 & 1)
		return (r >> 16) % max / 512 * 512;
	return ((r >> 16) % max / block + 1) * block;
}

/* Is the kind in the list "name,name"? */
static bool named(const char *list, const char *name)
{
	size_t n = strlen(name);

	for (const char *at = list; at && (at = strstr(at, name)); at += n) {
		if ((at == list || at[-1] == ',') && (at[n] == ',' || at[n] == '\0'))
			return true;
	}
	return false;
}

static unsigned weight_of(size_t kind, const struct traits *format, const char *without)
{
	enum need has = format->raw || format->alone ? NOTHING :
			format->plain		     ? PARENTS :
			format->bitmaps		     ? BITMAPS :
						       SNAPSHOTS;

	/* Chains go by the time of a parent, which a device has not. */
	if (format->device && kinds[kind].need == PARENTS)
		return 0;
	return kinds[kind].need > has || named(without, kinds[kind].name) ? 0 : kinds[kind].weight;
}

static void limg_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t blocks[] = { 4096, 4096, 4096, 16384, 65536 };
	static const char *const codecs[] = { "none", "zstd", "zstd", "zlib" };

	g->block_bytes = blocks[rng_next(rng) % 5];
	g->unit_bytes = UINT32_C(65536) << rng_next(rng) % 3;
	if (g->unit_bytes < g->block_bytes)
		g->unit_bytes = g->block_bytes;
	snprintf(g->options, sizeof(g->options), "block_size=%u,unit_size=%u,compression=%s", g->block_bytes,
		 g->unit_bytes, codecs[rng_next(rng) % 4]);
}

/* Small clusters most of the time: many tables, and tables that grow. */
static void qcow2_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t clusters[] = { 512, 512, 512, 4096, 4096, 16384, 16384, 65536 };
	static const unsigned bits[] = { 16, 16, 16, 64, 32, 8, 4, 2, 1 };
	uint64_t r = rng_next(rng);
	bool old = r % 6 == 0, extended;
	int n;

	g->block_bytes = g->unit_bytes = clusters[(r >> 8) % 8];
	extended = !old && g->block_bytes >= 16384 && (r >> 16) % 3 != 0;
	g->refcount_bits = old ? 16 : bits[(r >> 24) % 9];
	n = snprintf(g->options, sizeof(g->options), "compat=%s,cluster_size=%u", old ? "0.10" : "1.1", g->block_bytes);
	if (!old)
		snprintf(g->options + n, sizeof(g->options) - (size_t)n,
			 ",refcount_bits=%u,extended_l2=%s,compression_type=%s,lazy_refcounts=%s", g->refcount_bits,
			 extended ? "on" : "off", r >> 32 & 1 ? "zstd" : "zlib", (r >> 33) % 4 ? "off" : "on");
	/* Compressed clusters share what they lie in, so that also 8 bits may be few. */
	g->is_v2 = old;
	if (g->refcount_bits > 8)
		g->refcount_bits = 0;
}

/* Blocks from one sector on, the map near the data, so that it has to move when the disk grows. */
static void vdi_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t blocks[] = { 512, 4096, 4096, 16384, 65536, 1u << 20 };
	static const char *const aligns[] = { "512", "512", "4096", "1M" };

	g->block_bytes = g->unit_bytes = blocks[rng_next(rng) % 6];
	snprintf(g->options, sizeof(g->options), "block_size=%u,align=%s", g->block_bytes,
		 g->block_bytes == 1u << 20 ? "512" : aligns[rng_next(rng) % 4]);
}

/* Blocks so small that one bitmap is for few sectors, and some usual ones; now and then the first file is a fixed disk.
 */
static void vhd_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t blocks[] = { 4096, 4096, 4096, 16384, 65536, 2u << 20 };

	g->block_bytes = g->unit_bytes = blocks[rng_next(rng) % 6];
	snprintf(g->options, sizeof(g->options), "block_size=%u", g->block_bytes);
	if (rng_next(rng) % 6 == 0)
		snprintf(g->base_options, sizeof(g->base_options), "subformat=fixed");
}

/* Clusters from one sector on, of an odd number of them too, so that the table needs their room when the disk grows. */
static void parallels_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t clusters[] = { 512, 4096, 4096, 16384, 32256, 1u << 20 };

	g->block_bytes = g->unit_bytes = clusters[rng_next(rng) % 6];
	snprintf(g->options, sizeof(g->options), "cluster_size=%u,version=%u", g->block_bytes,
		 (unsigned)(1 + rng_next(rng) % 2));
}

/* Small blocks, so that there are some; now and then the first file is a fixed disk. */
static void vhdx_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t blocks[] = { 1u << 20, 1u << 20, 1u << 20, 2u << 20 };

	g->block_bytes = g->unit_bytes = blocks[rng_next(rng) % 4];
	snprintf(g->options, sizeof(g->options), "block_size=%u", g->block_bytes);
	if (rng_next(rng) % 6 == 0)
		snprintf(g->base_options, sizeof(g->base_options), "subformat=fixed,block_size=1M");
}

/* Small grains; entries that say zeros, or cannot. */
static void vmdk_geometry(struct geometry *g, uint64_t *rng)
{
	static const uint32_t grains[] = { 4096, 4096, 8192, 65536, 65536, 2u << 20 };

	g->block_bytes = g->unit_bytes = grains[rng_next(rng) % 6];
	snprintf(g->options, sizeof(g->options), "grain_size=%u,zeroed_grain=%s", g->block_bytes,
		 rng_next(rng) % 2 ? "on" : "off");
}

/* Of few files each, so that an image, one over it and a copy have room in the folder. */
static void several_geometry(struct geometry *g, const struct traits *format)
{
	uint64_t part = max_u64(round_up(g->size_bytes / 4, 65536), 65536);
	size_t n = strlen(g->options);

	if (format->alone && strcmp(format->name, "vmdk") == 0)
		snprintf(g->options, sizeof(g->options), "subformat=twoGbMaxExtentFlat,extent_size=%" PRIu64, part);
	else if (strcmp(format->name, "vmdk") == 0)
		snprintf(g->options + n, sizeof(g->options) - n, ",subformat=twoGbMaxExtentSparse,extent_size=%" PRIu64,
			 part);
	else
		snprintf(g->options + n, sizeof(g->options) - n, ",subformat=%s,split_size=%" PRIu64,
			 g->size_bytes / 512 % 3 ? "bundle" : "plain", part);
}

static void make_geometry(struct geometry *g, const struct traits *format, uint64_t *rng)
{
	*g = (struct geometry){ .format = format, .block_bytes = 4096, .unit_bytes = 65536 };
	if (strcmp(format->name, "limg") == 0)
		limg_geometry(g, rng);
	else if (strcmp(format->name, "vdi") == 0)
		vdi_geometry(g, rng);
	else if (strcmp(format->name, "vhd") == 0)
		vhd_geometry(g, rng);
	else if (strcmp(format->name, "vmdk") == 0)
		vmdk_geometry(g, rng);
	else if (strcmp(format->name, "parallels") == 0)
		parallels_geometry(g, rng);
	else if (strcmp(format->name, "vhdx") == 0)
		vhdx_geometry(g, rng);
	else if (!format->raw)
		qcow2_geometry(g, rng);
	g->size_bytes = pick_size(rng, g->block_bytes);
	g->max_bytes = MODEL_MAX_BYTES;
	if (rng_next(rng) % 24 == 0) {
		g->max_bytes = MODEL_WIDE_BYTES;
		g->size_bytes = rng_next(rng) % MODEL_WIDE_BYTES / 512 * 512;
	}
	if (format->device) { /* so that all that becomes of it has room there */
		g->max_bytes = DEVICE_BYTES / 32;
		g->size_bytes %= g->max_bytes;
		return;
	}
	if (format->plain) {
		/* No disk without a sector, and none but their own kind to stand on. */
		g->size_bytes += g->size_bytes == 0 ? 512 : 0;
		if (format->several)
			several_geometry(g, format);
		return;
	}
	if (!format->raw && rng_next(rng) % 4 == 0)
		g->base = traits_of("raw");
	else if (!format->raw && !format->has_parents && rng_next(rng) % 8 == 0)
		g->base = traits_of("limg");
}

void program_make(struct program *p, uint64_t seed, size_t nr_ops, const char *format, const char *without)
{
	const struct traits *traits = traits_of(format);
	uint64_t rng = seed * 2 + 1;
	unsigned total = 0;

	*p = (struct program){ .seed = seed, .nr = nr_ops };
	p->ops = calloc(nr_ops + 1, sizeof(*p->ops));
	if (!p->ops)
		abort();
	make_geometry(&p->geometry, traits, &rng);
	for (size_t i = 0; i < NR_OPS; i++)
		total += weight_of(i, traits, without);
	for (size_t i = 0; i < nr_ops; i++) {
		unsigned at = (unsigned)(rng_next(&rng) % total), kind = 0;

		while (at >= weight_of(kind, traits, without))
			at -= weight_of(kind++, traits, without);
		p->ops[i].kind = (enum op_kind)kind;
		for (size_t j = 0; j < 4; j++)
			p->ops[i].r[j] = (uint32_t)rng_next(&rng);
	}
}

void program_print(const struct program *p)
{
	const struct geometry *g = &p->geometry;

	printf("seed %" PRIu64 ": %s size %" PRIu64 " %s%s%s\n", p->seed, kind_of(g->format), g->size_bytes, g->options,
	       g->base ? " on a base of " : "", g->base ? g->base->name : "");
	for (size_t i = 0; i < p->nr; i++) {
		printf("%5zu %-16s", i, op_name(p->ops[i].kind));
		for (size_t j = 0; j < 4; j++)
			printf(" 0x%08x", p->ops[i].r[j]);
		putchar('\n');
	}
}
