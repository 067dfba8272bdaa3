/* SPDX-License-Identifier: MIT */
/*
 * Check and inspection of extents of compressed grains. Two walks have to agree: the one of the tables, which opens
 * every grain (lookup.h), and the one of the file from marker to marker. What a table does not lead to any more reads
 * as zeros without a word: only the second walk finds that. Rules: VMDK-40 to VMDK-47.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "is_zero.h"
#include "stream_int.h"

#define PROGRESS_STEP 1024u /* markers between two reports */
#define COMPARE_BYTES 65536u

struct check {
	struct vmdk_stream *s;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
};

static void __attribute__((format(printf, 6, 7))) found(struct check *k, enum img_finding_kind kind, const char *rule,
							uint64_t file_off, uint64_t guest_off, const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = file_off, .guest_off = guest_off };
	va_list ap;

	k->out->damage += kind == IMG_FINDING_DAMAGE;
	k->out->redundancy += kind == IMG_FINDING_REDUNDANCY;
	if (!k->fn)
		return;
	(void)snprintf(f.rule, sizeof(f.rule), "%s", rule);
	va_start(ap, fmt);
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	k->fn(k->ctx, &f);
}

/* ---- from marker to marker --------------------------------------------------------------------------------------- */

struct walk {
	uint64_t off;
	uint64_t next_sector; /* of the disk: what comes now is not below it */
	uint64_t nr;
	bool ended, disordered;
};

static int take_grain(struct check *k, struct walk *w, uint64_t sector, uint64_t bytes, struct img_error *err)
{
	struct lookup *l = &k->s->lookup;
	uint64_t grain_sectors = l->cluster_bytes / VMDK_SECTOR_BYTES;
	struct lookup_entry e;
	int ret;

	if (sector % grain_sectors != 0 || sector >= l->disk_bytes / VMDK_SECTOR_BYTES ||
	    !range_inside(w->off + VMDK_GRAIN_MARKER_BYTES, bytes, l->file_bytes)) {
		found(k, IMG_FINDING_DAMAGE, VMDK_RULE_MARKERS, w->off, NO_OFFSET,
		      "a marker makes no sense: sector 0x%" PRIx64 ", %" PRIu64 " bytes; what follows is not looked at",
		      sector, bytes);
		w->ended = true;
		return 0;
	}
	ret = lookup_entry_of(l, sector / grain_sectors, &e, err);
	/* An entry that leads nowhere was told by the other walk. */
	if (ret != 0 && ret != IMG_E_CORRUPT)
		return ret;
	if (ret == 0 && (e.kind != LOOKUP_PACKED || e.off != w->off))
		found(k, IMG_FINDING_DAMAGE, VMDK_RULE_LEAK, w->off, sector * VMDK_SECTOR_BYTES,
		      "the tables do not lead to the grain for sector 0x%" PRIx64 ": what it holds is not read",
		      sector);
	if (sector < w->next_sector && !w->disordered) {
		found(k, IMG_FINDING_NOTE, VMDK_RULE_ORDER, w->off, sector * VMDK_SECTOR_BYTES,
		      "grains do not ascend: some readers of streams refuse that");
		w->disordered = true;
	}
	w->next_sector = sector + grain_sectors;
	w->off = round_up(w->off + VMDK_GRAIN_MARKER_BYTES + bytes, VMDK_SECTOR_BYTES);
	return 0;
}

/* A marker of what is not a grain. */
static void take_mark(struct check *k, struct walk *w, uint64_t sectors, uint32_t type)
{
	uint64_t size = k->s->lookup.file_bytes, bytes;

	if (type == VMDK_MARKER_EOS) {
		/* Where there is no footer nothing says where the stream ends: files are padded with zeros. */
		if (k->s->has_footer && (w->off + VMDK_SECTOR_BYTES != size || sectors != 0))
			found(k, IMG_FINDING_DAMAGE, VMDK_RULE_MARKERS, w->off, NO_OFFSET,
			      "the mark of the end, and 0x%" PRIx64 " bytes follow", size - w->off);
		w->ended = true;
		return;
	}
	if (type > VMDK_MARKER_FOOTER || mul_overflows(sectors, VMDK_SECTOR_BYTES, &bytes) ||
	    !range_inside(w->off + VMDK_SECTOR_BYTES, bytes, size)) {
		found(k, IMG_FINDING_DAMAGE, VMDK_RULE_MARKERS, w->off, NO_OFFSET,
		      "a marker makes no sense: type %" PRIu32 ", 0x%" PRIx64 " sectors; what follows is not looked at",
		      type, sectors);
		w->ended = true;
		return;
	}
	w->off += VMDK_SECTOR_BYTES + bytes;
}

static int report(struct check *k, const struct walk *w, struct img_error *err)
{
	const struct img_progress *p = k->progress;

	if (w->nr % PROGRESS_STEP != 0 || !p || !p->fn || p->fn(p->ctx, w->off, k->s->lookup.file_bytes) == 0)
		return 0;
	return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "%s: cancelled", k->s->lookup.node->path);
}

static int walk_markers(struct check *k, struct img_error *err)
{
	struct lookup *l = &k->s->lookup;
	struct walk w = { .off = k->s->head.overhead_bytes };
	int ret = 0;

	if (!(k->s->h.flags & VMDK_MARKERS) || w.off < VMDK_SECTOR_BYTES)
		return 0;
	while (ret == 0 && !w.ended && range_inside(w.off, 16, l->file_bytes)) {
		uint8_t raw[16];

		ret = node_pread(l->file, raw, sizeof(raw), w.off, 0, err);
		if (ret == 0 && le32_at(raw, 8) != 0)
			ret = take_grain(k, &w, le64_at(raw, 0), le32_at(raw, 8), err);
		else if (ret == 0)
			take_mark(k, &w, le64_at(raw, 0), le32_at(raw, 12));
		w.nr++;
		if (ret == 0)
			ret = report(k, &w, err);
	}
	if (ret == 0 && !w.ended && k->s->has_footer)
		found(k, IMG_FINDING_DAMAGE, VMDK_RULE_MARKERS, l->file_bytes, NO_OFFSET,
		      "the file has a footer, but no mark of the end behind it");
	return ret;
}

/* ---- copies of the same thing ------------------------------------------------------------------------------------ */

static int check_footer(struct check *k, struct img_error *err)
{
	const struct vmdk_stream *s = k->s;
	uint64_t size = s->lookup.file_bytes;
	uint8_t end[VMDK_SECTOR_BYTES];
	int ret;

	if (!s->has_footer)
		return 0;
	if (s->head.gd_off != VMDK_AT_END && s->head.gd_off != s->h.gd_off)
		found(k, IMG_FINDING_DAMAGE, VMDK_RULE_FOOTER, size - VMDK_FOOTER_BYTES, NO_OFFSET,
		      "header and footer name different directories: others may read what the header's leads to");
	if (s->head.version != s->h.version || s->head.flags != s->h.flags ||
	    s->head.descriptor_off != s->h.descriptor_off || s->head.descriptor_bytes != s->h.descriptor_bytes)
		found(k, IMG_FINDING_REDUNDANCY, VMDK_RULE_FOOTER, size - VMDK_FOOTER_BYTES, NO_OFFSET,
		      "the footer is no copy of the header");
	ret = node_pread(s->lookup.file, end, sizeof(end), size - sizeof(end), 0, err);
	if (ret == 0 && !is_zero(end, sizeof(end)))
		found(k, IMG_FINDING_DAMAGE, VMDK_RULE_MARKERS, size - sizeof(end), NO_OFFSET,
		      "there is no mark of the end behind the footer");
	return ret;
}

/* One table and its copy, as the entries of both directories have them. */
static int same_table(const struct vmdk_stream *s, const uint8_t *a, const uint8_t *b, bool *same,
		      struct img_error *err)
{
	uint64_t bytes = (uint64_t)s->h.nr_gtes * VMDK_GTE_BYTES, size = s->lookup.file_bytes;
	uint64_t at[2] = { (uint64_t)le32_at(a, 0) * VMDK_SECTOR_BYTES, (uint64_t)le32_at(b, 0) * VMDK_SECTOR_BYTES };
	uint8_t *buf;
	int ret = 0;

	*same = at[0] == at[1];
	/* What lies outside was told, if it is the first one. */
	if (*same || at[0] == 0 || at[1] == 0 || !range_inside(at[0], bytes, size) || !range_inside(at[1], bytes, size))
		return 0;
	buf = malloc(2 * (size_t)bytes);
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (unsigned i = 0; i < 2 && ret == 0; i++)
		ret = node_pread(s->lookup.file, buf + i * bytes, bytes, at[i], 0, err);
	*same = ret == 0 && memcmp(buf, buf + bytes, (size_t)bytes) == 0;
	free(buf);
	return ret;
}

/* qemu-img's dialect has the tables twice; the second ones are not read. */
static int check_second(struct check *k, struct img_error *err)
{
	const struct vmdk_stream *s = k->s;
	uint64_t nr = s->h.nr_tables, step = COMPARE_BYTES / VMDK_GDE_BYTES, bad = 0;
	uint8_t *buf;
	int ret = 0;

	if (!(s->h.flags & VMDK_RGD_VALID) || s->h.rgd_off == 0 || s->h.rgd_off == s->h.gd_off)
		return 0;
	buf = malloc(2 * COMPARE_BYTES);
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t i = 0; i < nr && ret == 0; i += step) {
		uint64_t n = min_u64(step, nr - i), at = i * VMDK_GDE_BYTES;

		ret = node_pread(s->lookup.file, buf, n * VMDK_GDE_BYTES, s->h.gd_off + at, 0, err);
		if (ret == 0)
			ret = node_pread(s->lookup.file, buf + COMPARE_BYTES, n * VMDK_GDE_BYTES, s->h.rgd_off + at, 0,
					 err);
		for (uint64_t j = 0; j < n && ret == 0 && bad == 0; j++) {
			bool same = true;

			ret = same_table(s, buf + j * VMDK_GDE_BYTES, buf + COMPARE_BYTES + j * VMDK_GDE_BYTES, &same,
					 err);
			bad += !same;
		}
	}
	free(buf);
	if (ret == 0 && bad > 0)
		found(k, IMG_FINDING_REDUNDANCY, VMDK_RULE_SECOND_GD, s->h.rgd_off, NO_OFFSET,
		      "the second directory leads to other tables than the first");
	return ret;
}

int vmdk_stream_check(struct vmdk_stream *s, unsigned flags, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	struct check k = { .s = s, .fn = fn, .ctx = ctx, .progress = progress, .out = out };
	int ret = lookup_check(&s->lookup, flags, fn, ctx, progress, out, err);

	if (ret == 0)
		ret = check_footer(&k, err);
	if (ret == 0)
		ret = check_second(&k, err);
	return ret == 0 ? walk_markers(&k, err) : ret;
}

/* ---- what it is -------------------------------------------------------------------------------------------------- */

int vmdk_stream_details(struct vmdk_stream *s, img_detail_fn fn, void *ctx, struct img_error *err)
{
	const struct img_detail d = { .key = "footer", .kind = IMG_DETAIL_BOOL, .number = s->has_footer };

	(void)err;
	fn(ctx, &d);
	return 0;
}

/* Marker, header, end marker: the last three sectors. */
static int inspect_footer(struct node *file, struct inspector *in, const struct vmdk_header *h,
			  struct vmdk_header *tables, bool *readable, struct img_error *err)
{
	uint64_t size = node_size(file), at = size >= VMDK_FOOTER_BYTES ? size - VMDK_FOOTER_BYTES : 0;
	struct img_error why = { 0 };
	uint8_t raw[VMDK_FOOTER_BYTES];
	bool there = false;
	int ret = inspect_read(file, raw, sizeof(raw), at, err);

	*readable = false;
	if (ret != 0)
		return ret;
	ret = vmdk_stream_footer(file, h, tables, &there, &why);
	if (ret == IMG_E_IO || ret == IMG_E_NOMEM) {
		if (err)
			*err = why;
		return ret;
	}
	if (ret != 0) {
		inspect_found(in, h->gd_off == VMDK_AT_END && !there ? INSPECT_TRUNCATED : INSPECT_HEAD_TAIL, at, "%s",
			      why.msg);
		return 0;
	}
	*readable = true;
	if (!there) {
		*tables = *h;
		return 0;
	}
	if (tables->version != h->version || tables->descriptor_off != h->descriptor_off ||
	    tables->descriptor_bytes != h->descriptor_bytes ||
	    (h->gd_off != VMDK_AT_END && h->gd_off != tables->gd_off))
		inspect_found(in, INSPECT_HEAD_TAIL, at + VMDK_SECTOR_BYTES,
			      "the footer says something else than the header");
	if (!is_zero(raw + 16, VMDK_SECTOR_BYTES - 16) || !is_zero(raw + 2 * VMDK_SECTOR_BYTES, VMDK_SECTOR_BYTES))
		inspect_found(in, INSPECT_HEAD_TAIL, at, "the markers around the footer are wrong");
	return 0;
}

int vmdk_stream_inspect(struct node *file, struct inspector *in, const struct vmdk_header *h, struct img_error *err)
{
	struct vmdk_stream s = { .head = *h };
	struct img_error why = { 0 };
	bool readable;
	int ret = inspect_footer(file, in, h, &s.h, &readable, err);

	if (ret != 0 || !readable)
		return ret;
	if (vmdk_header_judge(&s.h, node_size(file), in->path, &why) != 0) {
		inspect_found(in, INSPECT_TABLE_BOUNDS, why.offset, "%s", why.msg);
		return 0;
	}
	vmdk_stream_tables(&s.lookup, &s.h, node_size(file));
	return lookup_inspect(&s.lookup, file, in, err);
}
