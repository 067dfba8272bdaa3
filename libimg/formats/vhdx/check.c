/* SPDX-License-Identifier: MIT */
/*
 * Check and repair. The rules VHDX-nn are those of format-spec/vhdx.md. What decides whether the image opens at all was
 * judged then; here are the second copies, the entries of bitmaps, and what the engine says of the table, all of it as
 * the log leaves it.
 *
 * A repair replays the log (as every writer does), writes second copies anew, frees entries that lead nowhere, puts
 * zeros where the file was cut off inside a block, and cuts off what is nobody's at the end. It guesses at no content.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

struct check {
	struct vhdx_state *s;
	bool repair;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
	/* Log, regions and bitmap blocks: ascending, without overlaps. */
	struct img_range *taken;
	size_t nr_taken;
	uint64_t end; /* of them, and then of everything */
};

static void found(struct check *k, enum img_finding_kind kind, unsigned rule, uint64_t off, bool repaired,
		  const char *fmt, ...) __attribute__((format(printf, 6, 7)));
static void found(struct check *k, enum img_finding_kind kind, unsigned rule, uint64_t off, bool repaired,
		  const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = off, .guest_off = NO_OFFSET, .repaired = repaired };
	va_list ap;

	k->out->damage += kind == IMG_FINDING_DAMAGE;
	k->out->leaks += kind == IMG_FINDING_LEAK;
	k->out->redundancy += kind == IMG_FINDING_REDUNDANCY;
	k->out->repaired += repaired;
	if (!k->fn)
		return;
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	(void)snprintf(f.rule, sizeof(f.rule), "VHDX-%u", rule % 100);
	k->fn(k->ctx, &f);
}

/* ---- second copies ----------------------------------------------------------------------------------------------- */

static int check_headers(struct check *k, struct img_error *err)
{
	struct vhdx_state *s = k->s;
	struct vhdx_header h;
	int ret = 0;

	pthread_mutex_lock(&s->header_lock);
	h = s->h;
	if (h.bad_copy && k->repair) {
		ret = vhdx_header_store(s->node->file, &h, true, err);
		if (ret == 0)
			s->h = h;
		h.bad_copy = true;
	}
	pthread_mutex_unlock(&s->header_lock);
	if (ret == 0 && h.bad_copy)
		found(k, IMG_FINDING_REDUNDANCY, 2,
		      k->repair ? NO_OFFSET :
		      h.which	? VHDX_HEADER_A :
				  VHDX_HEADER_B,
		      k->repair, "one copy of the header does not hold");
	return ret;
}

static int check_regions(struct check *k, struct img_error *err)
{
	bool differ;
	int ret = vhdx_regions_repair(k->s->node->file, k->repair, &differ, err);

	if (ret == 0 && differ)
		found(k, IMG_FINDING_REDUNDANCY, 3, VHDX_REGIONS_A, k->repair,
		      "the copies of the region table are not the same: the first one that holds counts");
	return ret;
}

/* ---- what lies among the blocks ---------------------------------------------------------------------------------- */

static void take(struct check *k, uint64_t off, uint64_t bytes)
{
	if (bytes == 0 || !range_inside(off, bytes, node_size(k->s->node->file)))
		return;
	k->taken[k->nr_taken++] = (struct img_range){ off, bytes };
	k->end = max_u64(k->end, off + bytes);
}

/* A chunk without a bitmap has no partial blocks. */
static int check_chunk(struct check *k, uint64_t chunk, struct img_error *err)
{
	const struct vhdx_meta *m = &k->s->m;
	uint64_t first = chunk * m->chunk_ratio, end = min_u64(first + m->chunk_ratio, m->nr_blocks);

	for (uint64_t i = first; (i = blockmap_next_used(k->s->bm, i, end)) < end; i++) {
		struct img_error why = { .code = IMG_OK };
		struct blockmap_entry e;
		int ret = blockmap_get(k->s->bm, i, &e, &why);

		if (ret != 0 && ret != IMG_E_CORRUPT) {
			if (err)
				*err = why;
			return ret;
		}
		if (ret != 0 || e.state != BLOCKMAP_PARTIAL)
			continue;
		found(k, IMG_FINDING_DAMAGE, 12, m->bat.off + vhdx_bitmap_slot(m, chunk) * 8, false,
		      "blocks %" PRIu64 " to %" PRIu64 " have no sector bitmap, and some of them need it", first,
		      end - 1);
		break;
	}
	return 0;
}

static int check_bitmaps(struct check *k, struct img_error *err)
{
	const struct vhdx_meta *m = &k->s->m;
	int ret = 0;

	for (uint64_t chunk = 0; m->has_parent && vhdx_bitmap_slot(m, chunk) < m->nr_slots && ret == 0; chunk++) {
		uint64_t at = m->bat.off + vhdx_bitmap_slot(m, chunk) * 8, place;
		uint8_t raw[8];

		ret = blockmap_slot_get(k->s->bm, vhdx_bitmap_slot(m, chunk), raw, err);
		if (ret != 0)
			break;
		place = le64_at(raw, 0) & VHDX_PLACE_MASK;
		if ((le64_at(raw, 0) & VHDX_STATE_MASK) != VHDX_PRESENT)
			ret = check_chunk(k, chunk, err);
		else if (place < VHDX_MIB || !range_inside(place, VHDX_MIB, node_size(k->s->node->file)))
			found(k, IMG_FINDING_DAMAGE, 12, at, false,
			      "a sector bitmap at 0x%" PRIx64 " lies outside the file", place);
		else
			take(k, place, VHDX_MIB);
	}
	return ret;
}

static int by_offset(const void *a, const void *b)
{
	const struct img_range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

/* Those that overlap are made one. */
static void order(struct check *k)
{
	size_t kept = 0;

	qsort(k->taken, k->nr_taken, sizeof(*k->taken), by_offset);
	for (size_t i = 1; i < k->nr_taken; i++) {
		struct img_range *last = &k->taken[kept], *r = &k->taken[i];

		if (r->off >= last->off + last->bytes) {
			k->taken[++kept] = *r;
			continue;
		}
		found(k, IMG_FINDING_DAMAGE, 9, r->off, false,
		      "log, metadata, table or sector bitmaps lie over each other");
		last->bytes = max_u64(last->off + last->bytes, r->off + r->bytes) - last->off;
	}
	k->nr_taken = k->nr_taken > 0 ? kept + 1 : 0;
}

static int learn_taken(struct check *k, struct img_error *err)
{
	const struct vhdx_state *s = k->s;
	uint64_t chunks = s->m.has_parent ? s->m.nr_slots / (s->m.chunk_ratio + 1) : 0;
	int ret;

	k->taken = calloc((size_t)chunks + 3, sizeof(*k->taken));
	if (!k->taken)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	take(k, s->m.bat.off, s->m.bat.bytes);
	take(k, s->m.metadata.off, s->m.metadata.bytes);
	take(k, s->h.log.off, s->h.log.bytes);
	ret = check_bitmaps(k, err);
	order(k);
	return ret;
}

/* The table of a difference ends with a whole chunk. Nobody reads what stands there, until the disk grows. */
static int check_behind(struct check *k, struct img_error *err)
{
	const struct vhdx_meta *m = &k->s->m;
	uint64_t chunks = m->has_parent ? m->nr_slots / (m->chunk_ratio + 1) : 0, nr = 0;
	uint64_t end = chunks * m->chunk_ratio;
	struct blockmap_entry e;
	int ret;

	for (uint64_t i = m->nr_blocks; (i = blockmap_next_used(k->s->bm, i, end)) < end; i++) {
		struct img_error why = { .code = IMG_OK };

		ret = blockmap_get(k->s->bm, i, &e, &why);
		if (ret != 0 && ret != IMG_E_CORRUPT) {
			if (err)
				*err = why;
			return ret;
		}
		nr += ret != 0 || e.state != BLOCKMAP_FREE;
	}
	if (nr == 0)
		return 0;
	found(k, IMG_FINDING_LEAK, 14, m->bat.off, k->repair,
	      "%" PRIu64 " entries behind the disk's last block are in use", nr);
	if (!k->repair)
		return 0;
	ret = blockmap_touch(k->s->bm, err);
	if (ret == 0)
		ret = blockmap_clear(k->s->bm, m->nr_blocks, chunks * m->chunk_ratio - m->nr_blocks, err);
	return ret == 0 ? blockmap_flush_stopped(k->s->bm, err) : ret;
}

/* ---- the end of the file ----------------------------------------------------------------------------------------- */

static int check_end(struct check *k, bool sound, struct img_error *err)
{
	struct node *file = k->s->node->file;
	struct host_stat host;
	bool cut = false;
	int ret = node_stat(file, &host, err);

	if (ret != 0 || host.is_block_device || node_size(file) < k->end + VHDX_MIB)
		return ret;
	/* What failed writes of this handle left goes when it is closed. */
	if (k->s->writable && !k->s->check_only && blockmap_lost_places(k->s->bm) && !k->repair)
		return 0;
	if (k->repair && sound)
		cut = vhdx_cut(k->s, NULL) == 0;
	found(k, IMG_FINDING_LEAK, 13, k->end, cut,
	      "what lies behind 0x%" PRIx64 ", the end of everything, is nobody's", k->end);
	if (!cut)
		k->out->leaked_bytes += node_size(file) - k->end;
	return 0;
}

static int check_stopped(struct check *k, struct img_error *err)
{
	struct blockmap_rules rules = { .entry = "VHDX-8", .overlap = "VHDX-9", .whole = true };
	struct blockmap_census census;
	int ret = check_headers(k, err);

	if (ret == 0)
		ret = check_regions(k, err);
	if (ret == 0)
		ret = learn_taken(k, err);
	if (ret == 0)
		ret = check_behind(k, err);
	if (ret != 0)
		return ret;
	rules.taken = k->taken;
	rules.nr_taken = k->nr_taken;
	k->out->metadata_bytes += VHDX_MIB + k->s->m.bat.bytes + k->s->m.metadata.bytes;
	ret = blockmap_check(k->s->bm, &rules, VHDX_MIB, k->repair, k->fn, k->ctx, k->progress, k->out, &census, err);
	if (ret != 0)
		return ret;
	k->end = max_u64(k->end, census.end_off);
	return check_end(k, k->out->damage == 0 || (k->repair && k->out->damage <= k->out->repaired), err);
}

int vhdx_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);
	struct check k = {
		.s = s, .repair = flags & IMG_CHECK_REPAIR, .fn = fn, .ctx = ctx, .progress = progress, .out = out
	};
	int ret;

	if (k.repair && !s->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing");
	ret = s->writable ? blockmap_stop(s->bm, err) : 0;
	if (ret != 0)
		return ret;
	ret = check_stopped(&k, err);
	free(k.taken);
	if (s->writable)
		blockmap_start(s->bm);
	return ret;
}
