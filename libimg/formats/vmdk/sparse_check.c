/* SPDX-License-Identifier: MIT */
/*
 * Check, repair and resize of a KDMV extent. The engine judges the entries; here are the copies of the tables, the
 * mark, and what lies behind all grains.
 *
 * Repair: tables that are not in the file come back from their copies (sparse_mend.c), entries that lead nowhere become
 * free, copies become what the tables are (they count), and the file is cut off behind the last grain. Grains that
 * share a place are left alone.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

struct check {
	struct vmdk_sparse *s;
	bool repair;
	img_finding_fn fn;
	void *ctx;
	struct img_check_result *out;
	struct blockmap_census census;
};

static void found(struct check *k, enum img_finding_kind kind, const char *rule, uint64_t off, bool repaired,
		  const char *fmt, ...) __attribute__((format(printf, 6, 7)));
static void found(struct check *k, enum img_finding_kind kind, const char *rule, uint64_t off, bool repaired,
		  const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = off, .guest_off = NO_OFFSET, .repaired = repaired };
	va_list ap;

	k->out->damage += kind == IMG_FINDING_DAMAGE;
	k->out->leaks += kind == IMG_FINDING_LEAK;
	k->out->repaired += repaired;
	if (!k->fn)
		return;
	(void)snprintf(f.rule, sizeof(f.rule), "%s", rule);
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	k->fn(k->ctx, &f);
}

static int write_header(struct vmdk_sparse *s, const struct vmdk_header *h, struct img_error *err)
{
	struct disk_vmdk_header old, d;
	int ret = node_pread(s->file, &old, sizeof(old), 0, 0, err);

	if (ret != 0)
		return ret;
	vmdk_header_encode(h, &d);
	/* What we do not know stays. */
	memcpy(d.pad, old.pad, sizeof(d.pad));
	memcpy(d.newlines, old.newlines, sizeof(d.newlines));
	ret = node_pwrite(s->file, &d, sizeof(d), 0, 0, err);
	return ret == 0 ? node_flush(s->file, 0, err) : ret;
}

/* Before the entries are: they are looked for in the tables that count afterwards. */
static int check_places(struct check *k, struct img_error *err)
{
	struct vmdk_sparse *s = k->s;
	/* What overlaps is not written. */
	bool repair = k->repair && !s->t.overlap;
	uint64_t outside, alone;
	int ret;

	vmdk_tables_judge(&s->t, node_size(s->file), &outside, &alone);
	if (outside > 0)
		found(k, IMG_FINDING_DAMAGE, "VMDK-8", s->h.gd_off, repair,
		      "%" PRIu64 " grain tables or their copies lie behind the end of the file, 0x%" PRIx64, outside,
		      node_size(s->file));
	/* After a crash that is how it is: the next writer puts it right. */
	if (alone > 0)
		found(k, s->h.unclean ? IMG_FINDING_LEAK : IMG_FINDING_DAMAGE, "VMDK-8", s->h.rgd_off, repair,
		      "%" PRIu64 " grain tables are known to one of the two directories only%s", alone,
		      s->h.unclean ? ", as the last writer did not close the extent" : "");
	if (!repair || outside + alone == 0)
		return 0;
	ret = blockmap_touch(s->bm, err);
	return ret == 0 ? vmdk_sparse_mend(s, err) : ret;
}

static int check_copies(struct check *k, struct img_error *err)
{
	struct vmdk_sparse *s = k->s;
	bool repair = k->repair && !s->t.overlap;
	uint64_t differ;
	int ret = vmdk_tables_compare(s->file, &s->t, repair, &differ, err);

	/* As above. */
	if (ret == 0 && differ > 0)
		found(k, s->h.unclean ? IMG_FINDING_LEAK : IMG_FINDING_DAMAGE, "VMDK-8", s->h.rgd_off, repair,
		      "%" PRIu64 " grain tables differ from their copies%s", differ,
		      s->h.unclean ? ", as the last writer did not close the extent" : "");
	return ret;
}

static void check_header(struct check *k)
{
	const struct vmdk_sparse *s = k->s;

	if (s->t.overlap)
		found(k, IMG_FINDING_DAMAGE, "VMDK-7", NO_OFFSET, false,
		      "header, descriptor, directories and tables lie over each other");
	if (s->h.unclean)
		found(k, IMG_FINDING_NOTE, "VMDK-9", offsetof(struct disk_vmdk_header, unclean), k->repair,
		      "the last writer did not close the extent");
}

static uint64_t structures_end(const struct vmdk_sparse *s)
{
	uint64_t end = min_u64(s->h.overhead_bytes, node_size(s->file));

	for (size_t i = 0; i < s->t.nr_taken; i++)
		end = max_u64(end, round_up(s->t.taken[i].off + s->t.taken[i].bytes, VMDK_SECTOR_BYTES));
	return end;
}

static int check_end(struct check *k, struct img_error *err)
{
	struct vmdk_sparse *s = k->s;
	uint64_t end = max_u64(k->census.end_off, structures_end(s)), size = node_size(s->file);
	bool repair = k->repair && k->census.nr_overlaps == 0 && !s->t.overlap;
	struct blockmap_shape shape = *blockmap_shape(s->bm);
	int ret = 0;

	if (end >= size)
		return 0;
	found(k, IMG_FINDING_LEAK, "VMDK-9", end, repair,
	      "0x%" PRIx64 " bytes at the end of the file belong to no grain", size - end);
	if (repair)
		ret = node_resize(s->file, end, err);
	shape.end_off = node_size(s->file);
	return ret == 0 && repair ? blockmap_reshape(s->bm, &shape, err) : ret;
}

int vmdk_sparse_check(struct vmdk_sparse *s, bool repair, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	struct check k = { .s = s, .repair = repair, .fn = fn, .ctx = ctx, .out = out };
	struct blockmap_rules rules = { .entry = "VMDK-6", .overlap = "VMDK-7" };
	uint64_t before;
	int ret;

	check_header(&k);
	ret = check_places(&k, err);
	if (ret != 0)
		return ret;
	rules.taken = s->t.taken;
	rules.nr_taken = s->t.nr_taken;
	before = out->damage;
	ret = blockmap_check(s->bm, &rules, VMDK_SECTOR_BYTES, repair && !s->t.overlap, fn, ctx, progress, out,
			     &k.census, err);
	/* What became free is so on disk before its copy is compared. */
	if (ret == 0 && repair && out->damage > before)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret == 0)
		ret = check_copies(&k, err);
	if (ret == 0)
		ret = check_end(&k, err);
	out->metadata_bytes += VMDK_SECTOR_BYTES + s->h.nr_tables * (s->t.table_bytes + VMDK_GDE_BYTES);
	if (ret == 0 && repair && s->h.unclean) {
		s->h.unclean = false;
		if (!atomic_load(&s->marked)) /* a writer's own mark goes when it closes: it may go on writing */
			ret = write_header(s, &s->h, err);
	}
	return ret;
}

/* ---- resize ------------------------------------------------------------------------------------------------------ */

/* Is there room for so many entries where the directory is? Behind it, up to the end of its sector, nothing may lie. */
static bool fits(const struct vmdk_sparse *s, uint64_t off, uint64_t nr)
{
	uint64_t old = s->h.nr_tables * VMDK_GDE_BYTES, bytes = nr * VMDK_GDE_BYTES;

	if (nr <= s->h.nr_tables)
		return true;
	return round_up(off + bytes, VMDK_SECTOR_BYTES) == round_up(off + old, VMDK_SECTOR_BYTES) &&
	       !vmdk_tables_take(&s->t, off + old, bytes - old);
}

/* Directories for h->nr_tables: where they are, or behind everything. On failure what was written there is nobody's. */
static int place_directories(struct vmdk_sparse *s, struct vmdk_header *h, struct img_error *err)
{
	uint64_t bytes = round_up(h->nr_tables * VMDK_GDE_BYTES, VMDK_SECTOR_BYTES), off;
	int ret = 0;

	if (!fits(s, h->gd_off, h->nr_tables) || (h->rgd_off && !fits(s, h->rgd_off, h->nr_tables))) {
		ret = blockmap_take_room(s->bm, h->rgd_off ? 2 * bytes : bytes, &off, err);
		if (ret != 0)
			return ret;
		h->gd_off = off;
		h->rgd_off = h->rgd_off ? off + bytes : 0;
	}
	/* Where they stay, the file may end within their last sector. */
	off = round_up(max_u64(h->gd_off, h->rgd_off) + h->nr_tables * VMDK_GDE_BYTES, VMDK_SECTOR_BYTES);
	ret = node_resize(s->file, max_u64(off, node_size(s->file)), err);
	if (ret == 0)
		ret = vmdk_sparse_write_directory(s, s->t.place, h->gd_off, h->nr_tables, err);
	if (ret == 0 && h->rgd_off)
		ret = vmdk_sparse_write_directory(s, s->t.copy_place, h->rgd_off, h->nr_tables, err);
	return ret == 0 ? node_flush(s->file, 0, err) : ret;
}

static int grow(struct vmdk_sparse *s, struct vmdk_header *h, struct img_error *err)
{
	uint64_t last = min_u64(h->nr_grains, s->h.nr_tables * s->h.nr_gtes);
	int ret = blockmap_zero_tail(s->bm, s->h.capacity_bytes, err);

	/* What the last table says of grains behind the old end is nobody's word. */
	if (ret == 0 && last > s->h.nr_grains)
		ret = blockmap_clear(s->bm, s->h.nr_grains, last - s->h.nr_grains, err);
	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret != 0)
		return ret;
	ret = place_directories(s, h, err);
	if (ret != 0) {
		(void)vmdk_sparse_trim(s, NULL);
		return ret;
	}
	ret = write_header(s, h, err);
	if (ret == 0)
		ret = vmdk_sparse_follow(s, h, blockmap_end(s->bm), err);
	if (ret != 0)
		blockmap_break(s->bm); /* nobody knows which one the disk holds */
	return ret;
}

static int shrink(struct vmdk_sparse *s, struct vmdk_header *h, struct img_error *err)
{
	int ret = blockmap_clear(s->bm, h->nr_grains, s->h.nr_grains - h->nr_grains, err);

	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret != 0)
		return ret;
	ret = write_header(s, h, err);
	if (ret == 0)
		ret = vmdk_sparse_follow(s, h, blockmap_end(s->bm), err);
	if (ret == 0)
		ret = vmdk_sparse_trim(s, err);
	if (ret != 0)
		blockmap_break(s->bm);
	return ret;
}

int vmdk_sparse_resize(struct vmdk_sparse *s, uint64_t bytes, struct img_error *err)
{
	struct vmdk_header h;
	int ret = blockmap_may_change(s->bm, err);

	if (ret == 0)
		ret = blockmap_touch(s->bm, err);
	if (ret == 0)
		ret = blockmap_stop(s->bm, err);
	if (ret != 0)
		return ret;
	h = s->h;
	h.unclean = atomic_load(&s->marked);
	h.capacity_bytes = bytes;
	ret = vmdk_header_count(&h, s->file->path, err);
	if (ret == 0)
		ret = bytes > s->h.capacity_bytes ? grow(s, &h, err) : shrink(s, &h, err);
	blockmap_start(s->bm);
	return ret;
}

int vmdk_sparse_empty(struct vmdk_sparse *s, struct img_error *err)
{
	struct blockmap_shape shape = *blockmap_shape(s->bm);
	uint64_t end = structures_end(s);
	int ret = blockmap_clear(s->bm, 0, s->h.nr_grains, err);

	if (ret == 0)
		ret = blockmap_flush_stopped(s->bm, err);
	if (ret != 0 || end >= node_size(s->file))
		return ret;
	/* That the room does not go back is no failure: it is nobody's. */
	(void)node_resize(s->file, end, NULL);
	shape.end_off = node_size(s->file);
	return blockmap_reshape(s->bm, &shape, err);
}
