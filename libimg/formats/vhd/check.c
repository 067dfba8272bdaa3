/* SPDX-License-Identifier: MIT */
/*
 * Check and repair. The rules VHD-nn are those of format-spec/vhd.md. The footers and what they say of the file come
 * first, then the header's structures, then the engine walks the table. A repair writes footers anew, frees entries
 * that lead nowhere, puts zeros where the file was cut off inside a block, and cuts off what is nobody's at the end; it
 * guesses at no content.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "vhd.h"

#define REPORT_BLOCKS 65536u

struct check {
	struct node *n;
	struct vhd_state *s;
	bool repair;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
	bool footers_due; /* a repair writes them */
	bool bad_table;	  /* entries are damaged */
};

static void found(struct check *k, enum img_finding_kind kind, unsigned rule, uint64_t off, bool repaired,
		  const char *fmt, ...) __attribute__((format(printf, 6, 7)));
static void found(struct check *k, enum img_finding_kind kind, unsigned rule, uint64_t off, bool repaired,
		  const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = off, .guest_off = NO_OFFSET, .repaired = repaired };
	va_list ap;

	if (kind == IMG_FINDING_DAMAGE)
		k->out->damage++;
	else if (kind == IMG_FINDING_LEAK)
		k->out->leaks++;
	else if (kind == IMG_FINDING_REDUNDANCY)
		k->out->redundancy++;
	if (repaired && kind != IMG_FINDING_NOTE)
		k->out->repaired++;
	if (!k->fn)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	(void)snprintf(f.rule, sizeof(f.rule), "VHD-%u", rule % 100);
	k->fn(k->ctx, &f);
}

static void footer_found(struct check *k, enum img_finding_kind kind, unsigned rule, uint64_t off, const char *what)
{
	k->footers_due = true;
	found(k, kind, rule, off, k->repair, "%s", what);
}

/* ---- footers ----------------------------------------------------------------------------------------------------- */

/* Those whose sizes every program takes from the footer. */
static bool creator_is_plain(const struct disk_vhd_footer *f)
{
	static const char *const plain[] = { "win ", "qem2", "d2v ", "tap", "CTXS" };

	for (size_t i = 0; i < ARRAY_LEN(plain); i++)
		if (memcmp(f->creator, plain[i], 4) == 0)
			return true;
	return be16_get(f->cylinders) == VHD_CYLINDERS_MAX && f->heads == VHD_HEADS_MAX &&
	       f->sectors == VHD_SECTORS_MAX;
}

static void check_sizes(struct check *k)
{
	const struct disk_vhd_footer *f = &k->s->foot.f;
	uint64_t footer = be64_get(f->current_bytes), geometry = vhd_geometry_bytes(f);

	if (footer == geometry || creator_is_plain(f))
		return;
	found(k, IMG_FINDING_NOTE, 4, NO_OFFSET, false,
	      "the footer says 0x%" PRIx64 " bytes, the geometry 0x%" PRIx64
	      ": programs differ in which they show; imgtool amend -o size_from=footer or geometry settles it",
	      footer, geometry);
}

static void check_footers(struct check *k)
{
	const struct vhd_footers *foot = &k->s->foot;

	if (foot->stale)
		footer_found(k, IMG_FINDING_DAMAGE, 3, foot->tail_off, "the footer's checksum does not hold");
	else if (foot->tail == VHD_ABSENT)
		footer_found(k, IMG_FINDING_REDUNDANCY, 2, foot->tail_off, "the footer at the end is missing");
	else if (foot->tail == VHD_STALE)
		footer_found(k, IMG_FINDING_REDUNDANCY, 2, foot->tail_off, "the footer at the end is damaged");
	else if (k->s->bm && foot->head != VHD_GOOD)
		footer_found(k, IMG_FINDING_REDUNDANCY, 2, 0,
			     "the footer's copy at the beginning is missing or damaged");
	else if (foot->differ)
		footer_found(k, IMG_FINDING_REDUNDANCY, 2, 0, "the footer and its copy at the beginning differ");
	if (foot->tail_bytes == VHD_OLD_FOOTER_BYTES)
		found(k, IMG_FINDING_NOTE, 1, foot->tail_off, false,
		      "the footer has 511 bytes, as old programs wrote it");
	if (foot->f.saved)
		found(k, IMG_FINDING_NOTE, 14, foot->tail_off + offsetof(struct disk_vhd_footer, saved), false,
		      "marked as in saved state: the memory of a machine may belong to this disk");
	check_sizes(k);
}

static int write_footers(struct check *k, uint64_t end, struct img_error *err)
{
	vhd_footer_seal(&k->s->foot.f);
	return vhd_write_footers(k->s, k->n->file, end, err);
}

static int check_fixed(struct check *k, struct img_error *err)
{
	uint64_t size = atomic_load(&k->s->disk_bytes), end = k->s->foot.tail_off;

	if (end > size) {
		k->out->leaked_bytes += end - size;
		found(k, IMG_FINDING_LEAK, 6, size, k->repair, "0x%" PRIx64 " bytes between the disk and its footer",
		      end - size);
	}
	k->out->metadata_bytes += VHD_SECTOR_BYTES;
	return k->repair && (k->footers_due || end > size) ? write_footers(k, size, err) : 0;
}

/* ---- structures -------------------------------------------------------------------------------------------------- */

/* Texts outside the file, structures over each other. */
static void check_structures(struct check *k)
{
	const struct vhd_header *h = &k->s->head;
	uint64_t file_bytes = node_size(k->n->file);

	for (unsigned i = 0; i < VHD_LOCATORS && k->s->names_parent; i++) {
		const struct disk_vhd_locator *l = &h->disk.locator[i];

		if (be32_get(l->length) > 0 && !range_inside(be64_get(l->off), be32_get(l->length), file_bytes))
			found(k, IMG_FINDING_DAMAGE, 10, h->off, false, "the text of locator %u lies outside the file",
			      i);
	}
	if (k->s->structures_overlap)
		found(k, IMG_FINDING_DAMAGE, 5, h->off, false,
		      "header, table and texts of locators lie over each other");
}

static void check_header(struct check *k)
{
	const struct vhd_header *h = &k->s->head;
	const struct blockmap_shape *shape = blockmap_shape(k->s->bm);

	if (h->max_entries > shape->nr_blocks)
		found(k, IMG_FINDING_NOTE, 15, h->off, k->repair,
		      "the table has %" PRIu32 " entries, the disk %" PRIu64 " blocks: Azure refuses that",
		      h->max_entries, shape->nr_blocks);
	if (k->s->names_parent && k->s->parent.at[0][0] == '\0')
		found(k, IMG_FINDING_DAMAGE, 10, h->off, false, "the parent is nowhere named");
}

/* Asked once in REPORT_BLOCKS, wherever a step ends. */
static bool is_stopped(const struct check *k, uint64_t before, uint64_t done, uint64_t total)
{
	return before / REPORT_BLOCKS != done / REPORT_BLOCKS && k->progress && k->progress->fn &&
	       k->progress->fn(k->progress->ctx, done, total) != 0;
}

/* Entries behind the disk; nobody reads them until it grows. */
static int check_beyond(struct check *k, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(k->s->bm);
	struct blockmap_entry e;
	uint64_t nr = 0;
	int ret;

	for (uint64_t b = shape->nr_blocks; b < shape->nr_slots; b++) {
		uint64_t used = blockmap_next_used(k->s->bm, b, shape->nr_slots);

		if (is_stopped(k, b, used + 1, shape->nr_slots))
			return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped");
		b = used;
		if (b == shape->nr_slots)
			break;
		/* Messages cost more than all the rest where entries are many and make no sense. */
		ret = blockmap_get(k->s->bm, b, &e, NULL);
		if (ret != 0 && ret != IMG_E_CORRUPT)
			ret = blockmap_get(k->s->bm, b, &e, err);
		if (ret != 0 && ret != IMG_E_CORRUPT)
			return ret;
		nr += ret != 0 || e.state != BLOCKMAP_FREE;
	}
	if (nr == 0)
		return 0;
	found(k, IMG_FINDING_LEAK, 13, k->s->head.table_off, k->repair,
	      "%" PRIu64 " entries behind the disk's last block are in use", nr);
	if (!k->repair)
		return 0;
	ret = blockmap_clear(k->s->bm, shape->nr_blocks, shape->nr_slots - shape->nr_blocks, err);
	return ret == 0 ? blockmap_flush_stopped(k->s->bm, err) : ret;
}

/* The table is as long as the disk needs it: a crash while it grew leaves it longer. */
static int shorten_table(struct check *k, struct img_error *err)
{
	struct vhd_state *s = k->s;
	struct vhd_header h = s->head;
	struct blockmap_shape now;
	int ret;

	h.max_entries = (uint32_t)blockmap_shape(s->bm)->nr_blocks;
	if (h.max_entries == s->head.max_entries)
		return 0;
	vhd_header_seal(&h);
	ret = vhd_write_header(k->n, &h, err);
	if (ret != 0)
		return ret;
	vhd_learn_structures(s);
	vhd_shape(s, &now);
	now.end_off = blockmap_end(s->bm);
	return blockmap_reshape(s->bm, &now, err);
}

/* Without a parent, a clear bit means zeros to us, and to QEMU whatever stands there. */
static int check_bits(struct check *k, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(k->s->bm);
	uint64_t nr = 0;

	for (uint64_t b = 0; b < shape->nr_blocks && vhd_footer_type(&k->s->foot.f) == VHD_DYNAMIC; b++) {
		uint64_t used = blockmap_next_used(k->s->bm, b, shape->nr_blocks), off, bytes;
		struct status_extent x[4];
		struct blockmap_entry e;
		bool clear = false;
		size_t got;

		if (is_stopped(k, b, used + 1, shape->nr_blocks))
			return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped");
		b = used;
		if (b == shape->nr_blocks)
			break;
		off = b * shape->block_bytes;
		bytes = min_u64(shape->block_bytes, shape->disk_bytes - off);
		if (blockmap_get(k->s->bm, b, &e, NULL) != 0 || e.state == BLOCKMAP_FREE)
			continue;
		if (blockmap_status_stopped(k->s->bm, bytes, off, x, ARRAY_LEN(x), &got, NULL) != 0)
			continue; /* told by the engine's check */
		for (size_t i = 0; i < got; i++)
			clear = clear || x[i].kind == STATUS_UNALLOCATED;
		nr += clear;
		k->out->metadata_bytes += shape->bitmap_bytes;
	}
	if (nr > 0)
		found(k, IMG_FINDING_NOTE, 8, NO_OFFSET, false,
		      "%" PRIu64
		      " blocks have sectors that are marked as never written, which QEMU reads as they stand",
		      nr);
	return 0;
}

/*
 * What is nobody's. Behind all others it is what a crash left, and a repair cuts it off. Between others it is room of
 * blocks that a smaller disk gave up, given back to the host, and of structures that moved: no fault, and no way to use
 * it.
 */
static void tell_unused(struct check *k, const struct blockmap_census *census)
{
	const struct blockmap_shape *shape = blockmap_shape(k->s->bm);
	uint64_t place = shape->prefix_bytes + shape->block_bytes, used = 0;

	for (size_t i = 0; i < k->s->nr_structures; i++)
		used += k->s->structure[i].bytes;
	used += (census->nr_data + census->nr_partial) * place;
	if (census->end_off > used && census->end_off - used >= place)
		found(k, IMG_FINDING_NOTE, 12, NO_OFFSET, false,
		      "0x%" PRIx64 " bytes between blocks are nobody's; a conversion leaves them out",
		      census->end_off - used);
}

static int cut_end(struct check *k, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(k->s->bm);
	uint64_t place = shape->prefix_bytes + shape->block_bytes, was = blockmap_end(k->s->bm), end;
	struct img_error why = { .code = IMG_OK };
	struct blockmap_shape now;
	bool cut;
	int ret = vhd_content_end(k->s, &end, &why);

	if (ret == IMG_E_CORRUPT || (ret == 0 && (end >= was || was - end < place)))
		return 0;
	if (ret != 0) {
		if (err)
			*err = why;
		return ret;
	}
	/* What failed writes of this handle left goes when it is closed. */
	if (k->s->writable && !k->s->check_only && blockmap_lost_places(k->s->bm) && !k->repair)
		return 0;
	/* Where entries are damaged, what they led to may be there. */
	cut = k->repair && !k->bad_table;
	k->out->leaked_bytes += was - end;
	found(k, IMG_FINDING_LEAK, 12, end, cut, "room for %" PRIu64 " blocks behind all others is nobody's",
	      (was - end) / place);
	if (!cut)
		return 0;
	ret = write_footers(k, end, err);
	vhd_shape(k->s, &now);
	return ret == 0 ? blockmap_reshape(k->s->bm, &now, err) : ret;
}

/*
 * The last block is cut off by the end of the file, or by a footer, which is no part of it. The copy at the head is good
 * before the one behind the blocks goes; a crash in between leaves a file that ends there, and a block that is cut off.
 */
static int move_footer(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	struct vhd_state *s = blockmap_format(bm);
	struct node *file = blockmap_node(bm)->file;
	const struct img_range *last = &s->structure[s->nr_structures - 1];
	uint64_t from = min_u64(blockmap_end(bm), node_size(file));
	int ret;

	if (last->off + last->bytes > from)
		return error_set(err, IMG_E_CORRUPT, 0, last->off, LAYER,
				 "structures lie behind the end of everything");
	vhd_footer_seal(&s->foot.f);
	ret = vhd_write_head(s, file, err);
	if (ret == 0)
		ret = node_zero(file, node_size(file) - from, from, 0, err);
	/* Or the block would end with what was a footer. */
	if (ret == 0)
		ret = node_flush(file, 0, err);
	return ret == 0 ? vhd_write_tail(s, file, end, err) : ret;
}

static int check_blocks(struct check *k, struct img_error *err)
{
	struct blockmap_rules rules = { .entry = "VHD-7", .overlap = "VHD-9", .whole = true, .extend = move_footer };
	struct blockmap_census census;
	uint64_t damage;
	int ret = 0;

	rules.nr_taken = k->s->nr_structures;
	rules.taken = k->s->structure;
	rules.end_off = min_u64(blockmap_end(k->s->bm), node_size(k->n->file));
	check_structures(k);
	check_header(k);
	k->out->metadata_bytes += 2 * VHD_SECTOR_BYTES + sizeof(k->s->head.disk);
	ret = check_beyond(k, err);
	damage = k->out->damage;
	if (ret == 0)
		ret = blockmap_check(k->s->bm, &rules, VHD_SECTOR_BYTES, k->repair, k->fn, k->ctx, k->progress, k->out,
				     &census, err);
	k->bad_table = k->out->damage > damage;
	if (ret == 0)
		tell_unused(k, &census);
	if (ret == 0 && k->repair)
		ret = shorten_table(k, err);
	if (ret == 0)
		ret = cut_end(k, err);
	if (ret == 0 && k->repair && k->footers_due)
		ret = write_footers(k, blockmap_end(k->s->bm), err);
	return ret;
}

int vhd_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	      struct img_check_result *out, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	struct check k = { .n = n,
			   .s = s,
			   .repair = flags & IMG_CHECK_REPAIR,
			   .fn = fn,
			   .ctx = ctx,
			   .progress = progress,
			   .out = out };
	int ret;

	if (k.repair && !s->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing");
	ret = vhd_stop(s, err);
	if (ret != 0)
		return ret;
	check_footers(&k);
	if (!s->bm)
		ret = check_fixed(&k, err);
	else
		ret = check_bits(&k, err);
	if (ret == 0 && s->bm)
		ret = check_blocks(&k, err);
	vhd_start(s);
	return ret;
}
