/* SPDX-License-Identifier: MIT */
/*
 * Check and repair. The engine judges the table; here are the header's own statements and the Format Extension.
 *
 * Repair: entries that lead nowhere become free, a file that ends inside a cluster gets zeros up to the cluster's end,
 * clusters come in line, gaps are closed and the file is cut off behind the last cluster, the mark of an open image
 * goes. Clusters that two entries lead to are left alone: nobody knows whose they are; a conversion gives each block
 * its own. As every change, a repair takes the extension off (PRL-10).
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "prl.h"

#define REPORT_BLOCKS 65536u

struct check {
	struct prl_image *p;
	bool repair;
	img_finding_fn fn;
	void *ctx;
	struct img_check_result *out;
	struct blockmap_census census;
	struct prl_ext ext;
	bool askew; /* some clusters are out of line */
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

static void check_header(struct check *k)
{
	const struct prl_header *h = &k->p->h;

	if (h->in_use == PRL_IN_USE && !k->p->marked)
		found(k, IMG_FINDING_NOTE, "PRL-4", PRL_AT(in_use), k->repair,
		      "the last writer did not close it; what it had written durably is there");
	if (h->high_sectors)
		found(k, IMG_FINDING_NOTE, "PRL-3", PRL_AT(nr_sectors), false,
		      "the high half of the size is set, which this version of the format has no use for");
	if ((uint64_t)(h->nr_entries - 1) * h->cluster_bytes >= prl_disk_bytes(h))
		found(k, IMG_FINDING_NOTE, "PRL-3", PRL_AT(nr_entries), false,
		      "%" PRIu32 " clusters are more than the disk needs", h->nr_entries);
	if (h->v2 && h->data_off % h->cluster_bytes != 0)
		found(k, IMG_FINDING_NOTE, "PRL-3", PRL_AT(data_off), false,
		      "data begins at 0x%" PRIx64 ", which is no multiple of a cluster", h->data_off);
}

/* PRL-10 */
static int check_ext(struct check *k, struct img_error *err)
{
	struct prl_image *p = k->p;
	int ret = prl_ext_load(p->file, &p->h, p->node->path, NULL, &k->ext, err);

	if (ret != 0)
		return ret;
	k->out->metadata_bytes += p->h.cluster_bytes;
	if (k->ext.damage[0])
		found(k, IMG_FINDING_REDUNDANCY, "PRL-10", k->ext.damage_off, k->repair,
		      "the Format Extension, which backup programs use, is damaged: %s", k->ext.damage);
	k->out->redundancy += k->ext.damage[0] != 0;
	if (k->ext.nr_bitmaps > 0)
		found(k, IMG_FINDING_NOTE, "PRL-10", p->h.ext_off, false,
		      "%" PRIu64 " dirty bitmaps of other programs, which any change of the image takes off",
		      k->ext.nr_bitmaps);
	return 0;
}

static int judge_empty(struct check *k)
{
	if (!(k->p->h.flags & PRL_FLAG_EMPTY) || k->census.nr_data == 0)
		return 0;
	found(k, IMG_FINDING_NOTE, "PRL-5", PRL_AT(flags), k->repair,
	      "it is marked as empty, but %" PRIu64 " clusters are there", k->census.nr_data);
	return 0;
}

/* Entries of which the place is between two places. */
static int check_line(struct check *k, const struct img_progress *progress, struct img_error *err)
{
	const struct prl_header *h = &k->p->h;
	struct blockmap_entry e;
	uint64_t nr = 0, first = 0;

	for (uint64_t i = 0; i < h->nr_entries; i++) {
		struct img_error why = { .code = IMG_OK };
		uint64_t used = blockmap_next_used(k->p->bm, i, h->nr_entries);
		int ret;

		if (i / REPORT_BLOCKS != (used + 1) / REPORT_BLOCKS && progress && progress->fn &&
		    progress->fn(progress->ctx, 0, h->nr_entries) != 0)
			return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped");
		i = used;
		if (i == h->nr_entries)
			break;
		ret = blockmap_get(k->p->bm, i, &e, &why);
		if (ret != 0 && ret != IMG_E_CORRUPT) {
			if (err)
				*err = why;
			return ret;
		}
		if (ret != 0 || e.state != BLOCKMAP_DATA || prl_place_at(h, e.off) == e.off)
			continue;
		first = nr++ == 0 ? e.off : first;
	}
	k->askew = nr > 0;
	if (k->askew)
		found(k, IMG_FINDING_NOTE, "PRL-7", first, k->repair && blockmap_may_move(&k->census),
		      "%" PRIu64 " clusters are out of line with the data area: other programs may refuse them", nr);
	return 0;
}

/* All that the findings promised. */
static int repair(struct check *k, struct img_error *err)
{
	struct prl_image *p = k->p;
	struct blockmap_shape shape;
	int ret = blockmap_touch(p->bm, err);

	if (ret != 0)
		return ret;
	shape = prl_shape(&p->h);
	shape.end_off = k->census.end_off;
	ret = blockmap_reshape(p->bm, &shape, err);
	return ret == 0 && blockmap_may_move(&k->census) ? prl_compact(p, err) : ret;
}

static bool repair_is_due(const struct check *k)
{
	const struct prl_header *h = &k->p->h;

	if (!k->repair)
		return false;
	return k->out->damage + k->out->leaks + k->out->redundancy > 0 || h->in_use == PRL_IN_USE || k->askew ||
	       ((h->flags & PRL_FLAG_EMPTY) && k->census.nr_data > 0);
}

static int check_stopped(struct check *k, const struct img_progress *progress, struct img_error *err)
{
	struct blockmap_rules rules = { .entry = "PRL-6", .overlap = "PRL-8", .leak = "PRL-9", .closes_gaps = true };
	struct prl_image *p = k->p;
	int ret = 0;

	check_header(k);
	if (p->h.ext_off)
		ret = check_ext(k, err);
	if (ret == 0 && k->repair && k->ext.must_stay)
		ret = error_set(
			err, IMG_E_UNSUPPORTED, 0, p->h.ext_off, LAYER,
			"the Format Extension holds something that is not known, and that says of itself that it "
			"has to stay as it is: nothing can be repaired; convert it");
	if (ret != 0)
		return ret;
	rules.taken = k->ext.taken;
	rules.nr_taken = k->ext.nr_taken;
	ret = blockmap_check(p->bm, &rules, p->h.data_off, k->repair, k->fn, k->ctx, progress, k->out, &k->census, err);
	if (ret == 0)
		ret = check_line(k, progress, err);
	if (ret == 0)
		ret = judge_empty(k);
	k->out->metadata_bytes += sizeof(struct disk_prl_header);
	return ret == 0 && repair_is_due(k) ? repair(k, err) : ret;
}

int prl_image_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		    const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	struct prl_image *p = prl_image_of(node);
	struct check k = { .p = p, .repair = flags & IMG_CHECK_REPAIR, .fn = fn, .ctx = ctx, .out = out };
	int ret;

	memset(out, 0, sizeof(*out));
	if (k.repair && !p->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing");
	ret = blockmap_stop(p->bm, err);
	if (ret != 0)
		return ret;
	ret = check_stopped(&k, progress, err);
	free(k.ext.taken);
	blockmap_start(p->bm);
	return ret;
}
