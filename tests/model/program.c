/* SPDX-License-Identifier: MIT */
/* Making and printing programs. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* How often each operation is drawn, and whether formats without snapshots have it. */
static const struct {
	const char *name;
	unsigned weight;
	bool raw_too;
} kinds[NR_OPS] = {
	[OP_WRITE] = { "write", 180, true },
	[OP_WRITE_BLOCKS] = { "write-blocks", 150, true },
	[OP_WRITE_UNITS] = { "write-units", 90, true },
	[OP_ZERO] = { "zero", 60, true },
	[OP_DISCARD] = { "discard", 60, true },
	[OP_READ] = { "read", 120, true },
	[OP_FLUSH] = { "flush", 70, true },
	[OP_CHECKPOINT] = { "checkpoint", 40, true },
	[OP_SNAP_CREATE] = { "snapshot-create", 50, false },
	[OP_SNAP_DELETE] = { "snapshot-delete", 45, false },
	[OP_SNAP_REVERT] = { "snapshot-revert", 20, false },
	[OP_SNAP_RENAME] = { "snapshot-rename", 10, false },
	[OP_SNAP_READ] = { "snapshot-read", 40, false },
	[OP_SNAP_HOLD] = { "snapshot-hold", 12, false },
	[OP_DIFF] = { "diff", 25, false },
	[OP_EXTENTS] = { "extents", 20, true },
	[OP_VM_WRITE] = { "vmstate-write", 25, false },
	[OP_VM_READ] = { "vmstate-read", 15, false },
	[OP_VM_RESIZE] = { "vmstate-resize", 8, false },
	[OP_RESIZE] = { "resize", 15, true },
	[OP_OVERLAY] = { "overlay", 7, false },
	[OP_POP] = { "pop", 4, false },
	[OP_COMMIT] = { "commit", 5, false },
	[OP_REBASE] = { "rebase", 4, false },
	[OP_FLATTEN] = { "flatten", 3, false },
	[OP_REOPEN] = { "reopen", 10, true },
	[OP_REPLAY] = { "replay", 8, false },
	[OP_CHECK] = { "check", 8, true },
	[OP_COMPARE] = { "compare", 4, true },
	[OP_CONVERT] = { "convert", 3, true },
	[OP_TOUCH_PARENT] = { "touch-parent", 4, false },
};

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

static unsigned weight_of(size_t kind, bool raw, const char *without)
{
	return (raw && !kinds[kind].raw_too) || named(without, kinds[kind].name) ? 0 : kinds[kind].weight;
}

void program_make(struct program *p, uint64_t seed, size_t nr_ops, const char *format, const char *without)
{
	static const uint32_t blocks[] = { 4096, 4096, 4096, 16384, 65536 };
	static const char *const codecs[] = { "none", "zstd", "zstd", "zlib" };
	bool raw = strcmp(format, "raw") == 0;
	uint64_t rng = seed * 2 + 1;
	unsigned total = 0;

	*p = (struct program){ .seed = seed, .nr = nr_ops };
	p->ops = calloc(nr_ops + 1, sizeof(*p->ops));
	if (!p->ops)
		abort();
	p->geometry.format = format;
	p->geometry.block_bytes = blocks[rng_next(&rng) % 5];
	p->geometry.unit_bytes = UINT32_C(65536) << rng_next(&rng) % 3;
	p->geometry.size_bytes = pick_size(&rng, p->geometry.block_bytes);
	p->geometry.max_bytes = MODEL_MAX_BYTES;
	if (rng_next(&rng) % 24 == 0) {
		p->geometry.max_bytes = MODEL_WIDE_BYTES;
		p->geometry.size_bytes = rng_next(&rng) % MODEL_WIDE_BYTES / 512 * 512;
	}
	p->geometry.raw_base = !raw && rng_next(&rng) % 4 == 0;
	p->geometry.codec = codecs[rng_next(&rng) % 4];
	for (size_t i = 0; i < NR_OPS; i++)
		total += weight_of(i, raw, without);
	for (size_t i = 0; i < nr_ops; i++) {
		unsigned at = (unsigned)(rng_next(&rng) % total), kind = 0;

		while (at >= weight_of(kind, raw, without))
			at -= weight_of(kind++, raw, without);
		p->ops[i].kind = (enum op_kind)kind;
		for (size_t j = 0; j < 4; j++)
			p->ops[i].r[j] = (uint32_t)rng_next(&rng);
	}
}

void program_print(const struct program *p)
{
	const struct geometry *g = &p->geometry;

	printf("seed %" PRIu64 ": %s size %" PRIu64 " block %u unit %u codec %s%s\n", p->seed, g->format, g->size_bytes,
	       g->block_bytes, g->unit_bytes, g->codec, g->raw_base ? " on a raw base" : "");
	for (size_t i = 0; i < p->nr; i++) {
		printf("%5zu %-16s", i, op_name(p->ops[i].kind));
		for (size_t j = 0; j < 4; j++)
			printf(" 0x%08x", p->ops[i].r[j]);
		putchar('\n');
	}
}
