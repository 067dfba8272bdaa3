/* SPDX-License-Identifier: MIT */
/*
 * Budgets: what opening an image, and checking it, may cost. An image comes from a stranger, and a few bytes of it can
 * ask for much: tables, snapshots, a chain of files, a disk of terabytes that one cluster is all of. The limits of the
 * formats end what makes no sense at all; the budgets here end what makes sense, but not to this caller.
 *
 * This is the one place that knows limits, defaults and what is said. Formats report what they find in an image while
 * they open it, before they allocate for it; the core reports layers and references.
 */
#include <time.h>

#include "budget.h"
#include "checked.h"
#include "error.h"
#include "image_int.h"

#define LAYER "budget"

#define METADATA_DEFAULT   (UINT64_C(1) << 30)
#define EXPANSION_DEFAULT  50000u /* one byte value all over a disk, in zstd clusters of 2 MiB, reaches 20000 */
#define REFERENCES_DEFAULT 128u	  /* a chain of the default depth with a data file in each layer */
#define SNAPSHOTS_DEFAULT  65536u
#define CHECK_DEFAULT	   86400u /* seconds: a day */
/* Who wants less than this is not harmed by it, whatever the ratio. */
#define EXPANSION_HARMLESS (UINT64_C(1) << 30)

/* name: of imgtool's option --limit NAME=VALUE. */
static const struct item {
	const char *name, *wants;
} items[BUDGET_ITEMS] = {
	[BUDGET_VIRTUAL] = { "virtual-size", "bytes of disk" },
	[BUDGET_DEPTH] = { "depth", "layers" },
	[BUDGET_METADATA] = { "metadata", "bytes of tables" },
	[BUDGET_EXPANSION] = { "expansion", "bytes of data for each byte of the file" },
	[BUDGET_REFERENCES] = { "references", "files that it names" },
	[BUDGET_SNAPSHOTS] = { "snapshots", "snapshots" },
	[BUDGET_CHECK] = { "check-time", "seconds of checking" },
};

static uint64_t or_default(uint64_t given, uint64_t otherwise)
{
	return given ? given : otherwise;
}

int budget_complete(struct img_budget *out, const struct img_budget *given, struct img_error *err)
{
	int ret = image_copy_options(out, sizeof(*out), given, err);

	out->metadata_bytes = or_default(out->metadata_bytes, METADATA_DEFAULT);
	out->expansion = or_default(out->expansion, EXPANSION_DEFAULT);
	out->references = or_default(out->references, REFERENCES_DEFAULT);
	out->snapshots = or_default(out->snapshots, SNAPSHOTS_DEFAULT);
	out->check_seconds = or_default(out->check_seconds, CHECK_DEFAULT);
	return ret;
}

int budget_init(struct budget *b, const struct img_open_options *o, struct img_error *err)
{
	struct img_budget given;
	int ret = budget_complete(&given, o->budget, err);

	*b = (struct budget){ .limit = {
				      [BUDGET_VIRTUAL] =
					      min_u64(or_default(o->max_virtual_bytes, INT64_MAX), INT64_MAX),
				      [BUDGET_DEPTH] = or_default(o->max_depth, CHAIN_DEPTH_DEFAULT),
				      [BUDGET_METADATA] = given.metadata_bytes,
				      [BUDGET_EXPANSION] = given.expansion,
				      [BUDGET_REFERENCES] = given.references,
				      [BUDGET_SNAPSHOTS] = given.snapshots,
				      [BUDGET_CHECK] = given.check_seconds,
			      } };
	return ret;
}

/* A limit that no option can raise is named without one. */
static int exceeded(enum budget_item item, uint64_t wanted, uint64_t limit, const char *path, struct img_error *err)
{
	return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			 "%s: wants %llu %s, above the limit of %llu; --limit %s=%llu allows it", path,
			 (unsigned long long)wanted, items[item].wants, (unsigned long long)limit, items[item].name,
			 (unsigned long long)wanted);
}

int budget_judge(const struct budget *b, enum budget_item item, uint64_t wanted, const char *path,
		 struct img_error *err)
{
	if (!b || wanted <= b->limit[item])
		return 0;
	return exceeded(item, wanted, b->limit[item], path, err);
}

/* ---- formats ----------------------------------------------------------------------------------------------------- */

int budget_metadata(struct budget *b, const char *path, uint64_t bytes, struct img_error *err)
{
	if (!b)
		return 0;
	if (add_overflows(b->metadata_bytes, bytes, &b->metadata_bytes))
		b->metadata_bytes = UINT64_MAX;
	return budget_judge(b, BUDGET_METADATA, b->metadata_bytes, path, err);
}

int budget_snapshots(const struct budget *b, const char *path, uint64_t nr, struct img_error *err)
{
	return budget_judge(b, BUDGET_SNAPSHOTS, nr, path, err);
}

/* Rounded up: at a limit of 10, eleven bytes of one are refused. */
static uint64_t ratio(uint64_t mapped_bytes, uint64_t file_bytes)
{
	uint64_t file = max_u64(file_bytes, 1);

	return mapped_bytes / file + (mapped_bytes % file != 0);
}

bool budget_expansion_fits(const struct budget *b, uint64_t mapped_bytes, uint64_t file_bytes)
{
	return !b || mapped_bytes <= EXPANSION_HARMLESS ||
	       ratio(mapped_bytes, file_bytes) <= b->limit[BUDGET_EXPANSION];
}

int budget_expansion(const struct budget *b, const char *path, uint64_t mapped_bytes, uint64_t file_bytes,
		     struct img_error *err)
{
	if (budget_expansion_fits(b, mapped_bytes, file_bytes))
		return 0;
	return budget_judge(b, BUDGET_EXPANSION, ratio(mapped_bytes, file_bytes), path, err);
}

/* ---- the core ---------------------------------------------------------------------------------------------------- */

void budget_layer(struct budget *b)
{
	b->metadata_bytes = 0;
}

int budget_reference(struct budget *b, const char *path, struct img_error *err)
{
	return b ? budget_judge(b, BUDGET_REFERENCES, ++b->references, path, err) : 0;
}

uint64_t budget_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int tick(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
	struct budget_timer *t = ctx;

	if (budget_now_ms() >= t->end_ms) {
		t->over = true;
		return 1;
	}
	return t->caller && t->caller->fn ? t->caller->fn(t->caller->ctx, done_bytes, total_bytes) : 0;
}

void budget_timer_start(struct budget_timer *t, uint64_t seconds, const struct img_progress *caller)
{
	uint64_t ms;

	*t = (struct budget_timer){ .progress = { .fn = tick, .ctx = t }, .caller = caller };
	if (mul_overflows(seconds, 1000, &ms) || add_overflows(budget_now_ms(), ms, &t->end_ms))
		t->end_ms = UINT64_MAX;
}

int budget_timer_end(const struct budget_timer *t, int ret, uint64_t seconds, const char *path, struct img_error *err)
{
	if (ret != IMG_E_CANCELLED || !t->over)
		return ret;
	error_clear(err);
	return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			 "%s: the check took longer than the limit of %llu seconds; --limit check-time=N gives it more",
			 path, (unsigned long long)seconds);
}
