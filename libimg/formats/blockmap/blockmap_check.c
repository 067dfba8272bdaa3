/* SPDX-License-Identifier: MIT */
/*
 * Is the table in order? One walk judges each entry by itself and counts. Then the places are sorted, so that
 * neighbours show overlaps and gaps; where there are more of them than memory is spent on, that is done for one window
 * of the file after the other: more places than fit into a window's bytes overlap, whatever they are.
 *
 * Bad entries in a row are one finding.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmap_int.h"

#define PLACES_MAX    (UINT64_C(4) << 20) /* in memory at once: 64 MiB */
#define PLACES_MIN    1024u
#define REPORT_BLOCKS 65536u
#define SECTOR_BYTES  512u

struct place {
	uint64_t off, block;
};

struct check {
	struct blockmap *bm;
	const struct blockmap_rules *rules;
	uint64_t data_off, end_off;
	bool repair;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
	struct blockmap_census *census;

	/* bad entries in a row */
	uint64_t bad_first, bad_nr, bad_fixed;
	bool bad_cut; /* they lead to places that are cut off */
	char bad_why[200];

	bool no_growth;	      /* the end of all places stays where it is */
	uint64_t grown_bytes; /* where a repair has moved it; 0: nowhere yet */

	struct place *place;
	uint64_t nr_places, cap_places;
	uint64_t nr_overlaps;
	uint64_t done, total;
};

static void found(struct check *k, struct img_finding *f, uint64_t weight, const char *rule, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
static void found(struct check *k, struct img_finding *f, uint64_t weight, const char *rule, const char *fmt, ...)
{
	va_list ap;

	if (f->kind == IMG_FINDING_DAMAGE)
		k->out->damage += weight;
	else if (f->kind == IMG_FINDING_LEAK)
		k->out->leaks += weight;
	if (f->repaired)
		k->out->repaired += weight;
	if (!k->fn)
		return;
	(void)snprintf(f->rule, sizeof(f->rule), "%s", rule ? rule : "");
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	(void)vsnprintf(f->msg, sizeof(f->msg), fmt, ap);
	va_end(ap);
	k->fn(k->ctx, f);
}

/* nr more blocks are done. */
static int progress(struct check *k, uint64_t nr, struct img_error *err)
{
	const struct img_progress *p = k->progress;
	uint64_t before = k->done;

	k->done += nr;
	if (before / REPORT_BLOCKS == k->done / REPORT_BLOCKS || !p || !p->fn)
		return 0;
	if (p->fn(p->ctx, k->done, max_u64(k->done, k->total)) == 0)
		return 0;
	return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped");
}

/* ---- entries by themselves --------------------------------------------------------------------------------------- */

static void tell_bad(struct check *k)
{
	struct img_finding f = { .kind = IMG_FINDING_DAMAGE, .file_off = NO_OFFSET };

	if (k->bad_nr == 0)
		return;
	f.guest_off = k->bad_first * k->bm->shape.block_bytes;
	f.repaired = k->bad_fixed == k->bad_nr;
	if (!k->bm->ops->locate)
		f.file_off = k->bm->shape.table_off + slot_of(k->bm, k->bad_first) * k->bm->shape.entry_bytes;
	if (k->bad_nr == 1)
		found(k, &f, 1, k->rules->entry, "the entry of block %" PRIu64 ": %s", k->bad_first, k->bad_why);
	else
		found(k, &f, k->bad_nr, k->rules->entry, "the entries of blocks %" PRIu64 " to %" PRIu64 ": %s",
		      k->bad_first, k->bad_first + k->bad_nr - 1, k->bad_why);
	k->bad_nr = k->bad_fixed = 0;
}

static void say_why(struct check *k, uint64_t block, const struct blockmap_entry *outside)
{
	struct img_error why = { .code = IMG_OK };
	struct blockmap_entry e;

	if (outside)
		(void)snprintf(k->bad_why, sizeof(k->bad_why),
			       "leads to 0x%" PRIx64 ", out of the data area 0x%" PRIx64 " to 0x%" PRIx64, outside->off,
			       k->data_off, k->end_off);
	else if (blockmap_get(k->bm, block, &e, &why) != 0)
		(void)snprintf(k->bad_why, sizeof(k->bad_why), "%.199s", why.msg);
	else
		(void)snprintf(k->bad_why, sizeof(k->bad_why), "could not be read for a moment");
}

/*
 * outside: what leads out of the data area; NULL: what cannot be read or makes no sense. A row of such entries is told
 * of by its first one: messages for all would cost more than everything else.
 */
static void bad_entries(struct check *k, uint64_t block, uint64_t nr, const struct blockmap_entry *outside)
{
	static const struct blockmap_entry none = { .state = BLOCKMAP_FREE };

	if (k->bad_nr > 0 && (k->bad_cut || k->bad_first + k->bad_nr != block))
		tell_bad(k);
	if (k->bad_nr == 0) {
		k->bad_first = block;
		k->bad_cut = false;
		say_why(k, block, outside);
	}
	k->bad_nr += nr;
	k->census->nr_bad += nr;
	for (uint64_t i = 0; i < nr && k->repair; i++)
		k->bad_fixed += blockmap_touch(k->bm, NULL) == 0 && blockmap_set(k->bm, block + i, &none, NULL) == 0;
}

/*
 * The end of all places goes to `end`. Places that do not overlap are cut off one at most: where a map says so of a
 * second one, all are given the room that they can need at once, instead of step by step.
 */
static bool extend(struct check *k, uint64_t end)
{
	struct blockmap *bm = k->bm;
	int ret;

	if (!k->repair || k->no_growth)
		return false;
	if (end <= k->grown_bytes)
		return true;
	if (k->grown_bytes > 0)
		end = round_up(k->end_off, SECTOR_BYTES) + place_bytes(bm);
	ret = blockmap_touch(bm, NULL);
	if (ret == 0)
		ret = k->rules->extend ? k->rules->extend(bm, end, NULL) : node_resize(bm->file, end, NULL);
	k->no_growth = ret != 0;
	if (ret != 0)
		return false;
	data_changed(bm);
	k->grown_bytes = end;
	bm->end_off = max_u64(bm->end_off, end);
	return true;
}

/* The file ends inside the block's place. What lies before its end is the block's, and reads as it always did. */
static void cut_entry(struct check *k, uint64_t block, const struct blockmap_entry *e)
{
	bool fixed = extend(k, e->off + place_bytes(k->bm));

	if (k->bad_nr > 0 && (!k->bad_cut || k->bad_first + k->bad_nr != block || (k->bad_fixed > 0) != fixed))
		tell_bad(k);
	if (k->bad_nr == 0) {
		k->bad_first = block;
		k->bad_cut = true;
		(void)snprintf(k->bad_why, sizeof(k->bad_why),
			       "its place at 0x%" PRIx64 " is cut off at 0x%" PRIx64 "; what followed is lost%s",
			       e->off, k->end_off,
			       fixed	 ? " and reads as zeros now, the rest stays" :
			       k->repair ? ", and the file cannot become longer: copy the image and repair the copy" :
					   ", a repair keeps the rest");
	}
	k->bad_nr++;
	k->bad_fixed += fixed;
	k->census->nr_bad++;
	k->census->nr_cut += !fixed;
}

bool blockmap_place_inside(const struct blockmap_shape *s, uint64_t block, uint64_t off, uint64_t file_bytes,
			   bool whole)
{
	uint64_t start = block * s->block_bytes;
	uint64_t need = start < s->disk_bytes ? min_u64(s->block_bytes, s->disk_bytes - start) : 0;

	return range_inside(off, s->prefix_bytes + (whole ? s->block_bytes : need), file_bytes);
}

enum fit { PLACE_INSIDE, PLACE_CUT, PLACE_OUTSIDE };

/* Does the place lie where places may lie? Where nothing of its data is in the file it does not. */
static enum fit fit(const struct check *k, uint64_t block, uint64_t off)
{
	const struct blockmap_shape *s = &k->bm->shape;

	if (off < k->data_off)
		return PLACE_OUTSIDE;
	if (blockmap_place_inside(s, block, off, k->end_off, k->rules->whole))
		return PLACE_INSIDE;
	return off < k->end_off && k->end_off - off > s->prefix_bytes ? PLACE_CUT : PLACE_OUTSIDE;
}

/* Blocks from this one on to there need as much room as it does: those of the disk, and those behind it. */
static uint64_t end_of_kind(const struct check *k, uint64_t block)
{
	const struct blockmap_shape *s = &k->bm->shape;
	uint64_t whole = s->disk_bytes / s->block_bytes;

	if (block < whole)
		return min_u64(whole, s->nr_blocks);
	return block * s->block_bytes < s->disk_bytes ? block + 1 : s->nr_blocks;
}

/* 1: it has a place. Of a row that cannot be read, or leads out of the data area, *block becomes the last one. */
static int judge_entry(struct check *k, uint64_t *block, struct blockmap_entry *e, bool tell, struct img_error *err)
{
	int ret = blockmap_get(k->bm, *block, e, NULL);
	enum fit where;

	if (ret != 0 && ret != IMG_E_CORRUPT)
		ret = blockmap_get(k->bm, *block, e, err); /* again: for the message */
	/* What cannot be read, or only not now, is no damage: a repair would make it one. */
	if (ret != 0 && ret != IMG_E_CORRUPT)
		return ret;
	if (ret != 0) {
		uint64_t nr = max_u64(blockmap_unreadable(k->bm, *block, k->bm->shape.nr_blocks), 1);

		if (tell)
			bad_entries(k, *block, nr, NULL);
		*block += nr - 1;
		return 0;
	}
	if (e->state == BLOCKMAP_FREE || e->state == BLOCKMAP_ZERO) {
		if (tell && e->state == BLOCKMAP_FREE)
			k->census->nr_free++;
		else if (tell)
			k->census->nr_zero++;
		return 0;
	}
	where = fit(k, *block, e->off);
	if (where == PLACE_CUT && tell)
		cut_entry(k, *block, e);
	if (where == PLACE_OUTSIDE) {
		uint64_t nr = blockmap_same(k->bm, *block, end_of_kind(k, *block));

		if (tell)
			bad_entries(k, *block, nr, e);
		*block += nr - 1;
		return 0;
	}
	return 1;
}

static int walk_entries(struct check *k, struct img_error *err)
{
	const struct blockmap_shape *s = &k->bm->shape;
	struct blockmap_entry e;

	for (uint64_t block = 0; block < s->nr_blocks; block++) {
		uint64_t used = blockmap_next_used(k->bm, block, s->nr_blocks);
		int ret = progress(k, used - block, err);

		k->census->nr_free += used - block;
		block = used;
		if (ret == 0 && block == s->nr_blocks)
			break;
		if (ret == 0)
			ret = judge_entry(k, &block, &e, true, err);
		if (ret < 0)
			return ret;
		if (ret == 1) {
			if (e.state == BLOCKMAP_DATA)
				k->census->nr_data++;
			else
				k->census->nr_partial++;
			k->census->end_off = max_u64(k->census->end_off, e.off + place_bytes(k->bm));
			k->census->first_off = min_u64(k->census->first_off, e.off);
		}
		ret = progress(k, block - used + 1, err);
		if (ret != 0)
			return ret;
	}
	tell_bad(k);
	k->out->metadata_bytes += s->nr_slots * s->entry_bytes;
	return 0;
}

/* ---- places against each other ----------------------------------------------------------------------------------- */

static int by_off(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->off != y->off)
		return x->off < y->off ? -1 : 1;
	return x->block < y->block ? -1 : x->block > y->block;
}

static void tell_leak(struct check *k, uint64_t from, uint64_t to)
{
	struct img_finding f = { .kind = IMG_FINDING_LEAK,
				 .file_off = from,
				 .guest_off = NO_OFFSET,
				 .repaired = k->repair && k->rules->closes_gaps && k->nr_overlaps == 0 &&
					     k->census->nr_cut == 0 };
	uint64_t nr = to > from ? (to - from) / place_bytes(k->bm) : 0;

	if (nr == 0)
		return;
	if (!f.repaired)
		k->out->leaked_bytes += nr * place_bytes(k->bm);
	found(k, &f, nr, k->rules->leak, "room for %" PRIu64 " blocks at 0x%" PRIx64 " is nobody's", nr, from);
}

/* What the format itself has there is not nobody's. */
static void tell_gap(struct check *k, uint64_t from, uint64_t to)
{
	if (!k->rules->leak)
		return;
	for (size_t i = 0; i < k->rules->nr_taken; i++) {
		const struct img_range *t = &k->rules->taken[i];

		if (t->off >= to || t->off + t->bytes <= from)
			continue;
		tell_leak(k, from, t->off);
		from = t->off + t->bytes;
	}
	tell_leak(k, from, to);
}

static bool is_taken(const struct check *k, uint64_t off)
{
	const struct img_range *t = k->rules->taken;
	size_t from = 0, to = k->rules->nr_taken;

	/* The first one that ends behind off. */
	while (from < to) {
		size_t mid = from + (to - from) / 2;

		if (t[mid].off + t[mid].bytes <= off)
			from = mid + 1;
		else
			to = mid;
	}
	return from < k->rules->nr_taken && t[from].off < off + place_bytes(k->bm);
}

/* nr places from p on, in order, that begin where others still go on. One hostile map can make them millions. */
static void tell_overlaps(struct check *k, const struct place *p, uint64_t nr)
{
	struct img_finding f = { .kind = IMG_FINDING_DAMAGE };

	if (nr == 0)
		return;
	f.file_off = p->off;
	f.guest_off = p->block * k->bm->shape.block_bytes;
	k->nr_overlaps += nr;
	if (nr == 1)
		found(k, &f, 1, k->rules->overlap,
		      "the place of block %" PRIu64 ", 0x%" PRIx64 ", belongs to another block as well", p->block,
		      p->off);
	else
		found(k, &f, nr, k->rules->overlap,
		      "the places of %" PRIu64 " blocks from block %" PRIu64 " at 0x%" PRIx64
		      " on belong to other blocks as well",
		      nr, p->block, p->off);
}

static void tell_taken(struct check *k, const struct place *p)
{
	struct img_finding f = { .kind = IMG_FINDING_DAMAGE,
				 .file_off = p->off,
				 .guest_off = p->block * k->bm->shape.block_bytes };

	k->nr_overlaps++;
	found(k, &f, 1, k->rules->overlap,
	      "the place of block %" PRIu64 ", 0x%" PRIx64 ", lies over the image's own structures", p->block, p->off);
}

/* *end: of the places before; goes on from window to window. */
static void judge_places(struct check *k, uint64_t *end)
{
	uint64_t before = *end, reach = *end, run = 0;

	qsort(k->place, (size_t)k->nr_places, sizeof(*k->place), by_off);
	for (uint64_t i = 0; i < k->nr_places; i++) {
		const struct place *p = &k->place[i];

		if (p->off < reach) {
			run++;
		} else {
			tell_overlaps(k, p - run, run);
			run = 0;
			if (is_taken(k, p->off))
				tell_taken(k, p);
		}
		reach = max_u64(reach, p->off + place_bytes(k->bm));
	}
	tell_overlaps(k, k->place + k->nr_places - run, run);
	for (uint64_t i = 0; i < k->nr_places; i++) {
		tell_gap(k, before, k->place[i].off);
		before = max_u64(before, k->place[i].off + place_bytes(k->bm));
	}
	*end = reach;
}

/* Places that begin in [from, to). 1: more than can be without overlaps. */
static int collect(struct check *k, uint64_t from, uint64_t to, struct img_error *err)
{
	struct blockmap_entry e;

	k->nr_places = 0;
	for (uint64_t block = 0; block < k->bm->shape.nr_blocks; block++) {
		uint64_t used = blockmap_next_used(k->bm, block, k->bm->shape.nr_blocks);
		int ret = progress(k, used - block, err);

		block = used;
		if (ret == 0 && block == k->bm->shape.nr_blocks)
			break;
		if (ret == 0)
			ret = judge_entry(k, &block, &e, false, err);
		if (ret < 0)
			return ret;
		if (ret == 1 && e.off >= from && e.off < to) {
			if (k->nr_places == k->cap_places)
				return 1;
			k->place[k->nr_places++] = (struct place){ .off = e.off, .block = block };
		}
		ret = progress(k, block - used + 1, err);
		if (ret != 0)
			return ret;
	}
	return 0;
}

static int compare_places(struct check *k, struct img_error *err)
{
	uint64_t nr = k->census->nr_data + k->census->nr_partial, from = k->data_off, end = from;
	uint64_t window = nr <= PLACES_MAX ? UINT64_MAX : (PLACES_MAX - 2) * place_bytes(k->bm);
	int ret = 0;

	k->cap_places = nr <= PLACES_MAX ? max_u64(nr, PLACES_MIN) : PLACES_MAX;
	k->place = malloc((size_t)k->cap_places * sizeof(*k->place));
	if (!k->place)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (nr > 0 && from < k->census->end_off && ret == 0) {
		uint64_t to = window > UINT64_MAX - from ? UINT64_MAX : from + window;

		ret = collect(k, from, to, err);
		if (ret < 0)
			return ret;
		judge_places(k, &end);
		from = to;
	}
	if (ret == 1) {
		struct img_finding f = { .kind = IMG_FINDING_DAMAGE, .file_off = from, .guest_off = NO_OFFSET };

		k->nr_overlaps++;
		found(k, &f, 1, k->rules->overlap, "too many blocks share their places to name them all");
		return 0;
	}
	tell_gap(k, end, k->end_off);
	return 0;
}

int blockmap_check(struct blockmap *bm, const struct blockmap_rules *rules, uint64_t data_off, bool repair,
		   img_finding_fn fn, void *ctx, const struct img_progress *progress_, struct img_check_result *out,
		   struct blockmap_census *census, struct img_error *err)
{
	struct check k = {
		.bm = bm,
		.rules = rules,
		.data_off = data_off,
		.end_off = rules->end_off ? rules->end_off : node_size(bm->file),
		.repair = repair,
		.fn = fn,
		.ctx = ctx,
		.progress = progress_,
		.out = out,
		.census = census,
		.total = 2 * bm->shape.nr_blocks,
	};
	struct host_stat host;
	int ret = node_stat(bm->file, &host, err);

	*census = (struct blockmap_census){ .first_off = UINT64_MAX, .end_off = data_off };
	if (ret != 0)
		return ret;
	k.no_growth = host.is_block_device;
	ret = walk_entries(&k, err);
	if (ret == 0)
		ret = compare_places(&k, err);
	census->nr_overlaps = k.nr_overlaps;
	if (ret == 0 && repair)
		ret = flush_all(bm, err);
	free(k.place);
	return ret;
}
