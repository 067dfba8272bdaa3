/* SPDX-License-Identifier: MIT */
/* The Parallels driver: what the core sees of it. See prl.h. */
#include <string.h>

#include "prl_bundle.h"

static struct blockmap *bm_of(const struct node *n)
{
	return prl_image_of(n)->bm;
}

uint64_t prl_image_size(const struct node *n)
{
	return blockmap_size(bm_of(n));
}

void prl_image_limits(const struct node *n, struct driver_limits *out)
{
	const struct prl_header *h = &prl_image_of(n)->h;
	uint64_t max = min_u64(INT64_MAX, (uint64_t)PRL_ENTRIES_MAX * h->cluster_bytes);

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = h->cluster_bytes,
		.optimal_bytes = (uint32_t)min_u64(max_u64(h->cluster_bytes, 1u << 20), 16u << 20),
		.max_size_bytes = h->v2 ? max : min_u64(max, (uint64_t)UINT32_MAX * PRL_SECTOR_BYTES),
	};
}

int prl_image_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_pread(bm_of(n), buf, bytes, off, err);
}

int prl_image_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		     struct img_error *err)
{
	(void)flags;
	return blockmap_pwrite(bm_of(n), buf, bytes, off, err);
}

int prl_image_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return blockmap_zero(bm_of(n), bytes, off, flags, err);
}

int prl_image_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_discard(bm_of(n), bytes, off, err);
}

int prl_image_flush(struct node *n, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_flush(bm_of(n), err);
}

/* Own layer only. */
int prl_image_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		     struct img_error *err)
{
	return blockmap_status(bm_of(n), bytes, off, out, cap, nr, err);
}

/* ---- one image, or a bundle -------------------------------------------------------------------------------------- */

static int probe(const struct probe_data *d)
{
	if (d->head_bytes >= PRL_MAGIC_BYTES && (memcmp(d->head, PRL_MAGIC_V1, PRL_MAGIC_BYTES) == 0 ||
						 memcmp(d->head, PRL_MAGIC_V2, PRL_MAGIC_BYTES) == 0))
		return 100;
	return prl_descriptor_is(d->head, d->head_bytes) ? 100 : 0;
}

static int open_any(struct node *n, const struct driver_open *args, struct img_error *err)
{
	char head[PRL_MAGIC_BYTES];
	int ret;

	if (node_size(n->file) < sizeof(head))
		return prl_image_open(n, args, err);
	ret = node_pread(n->file, head, sizeof(head), 0, 0, err);
	if (ret != 0)
		return ret;
	return head[0] == '<' || (uint8_t)head[0] == 0xef || head[0] == ' ' || head[0] == '\n' || head[0] == '\r' ?
		       prl_bundle_open(n, args, err) :
		       prl_image_open(n, args, err);
}

static int close_any(struct node *n, struct img_error *err)
{
	return prl_state_of(n)->span ? prl_bundle_close(n, err) : prl_image_close(n, err);
}

static uint64_t size(const struct node *n)
{
	const struct prl_state *s = prl_state_of(n);

	return s->span ? span_size(s->span) : prl_image_size(n);
}

static void limits(const struct node *n, struct driver_limits *out)
{
	if (prl_state_of(n)->span)
		prl_bundle_limits(n, out);
	else
		prl_image_limits(n, out);
}

static int pread_any(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct prl_state *s = prl_state_of(n);

	return s->span ? span_pread(s->span, buf, bytes, off, err) : prl_image_pread(n, buf, bytes, off, flags, err);
}

static int pwrite_any(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err)
{
	struct prl_state *s = prl_state_of(n);

	return s->span ? span_pwrite(s->span, buf, bytes, off, err) : prl_image_pwrite(n, buf, bytes, off, flags, err);
}

static int zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct prl_state *s = prl_state_of(n);

	return s->span ? span_zero(s->span, bytes, off, flags, err) : prl_image_zero(n, bytes, off, flags, err);
}

static int discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct prl_state *s = prl_state_of(n);

	return s->span ? span_discard(s->span, bytes, off, err) : prl_image_discard(n, bytes, off, flags, err);
}

static int flush(struct node *n, unsigned flags, struct img_error *err)
{
	struct prl_state *s = prl_state_of(n);

	return s->span ? span_flush(s->span, err) : prl_image_flush(n, flags, err);
}

static int status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	struct prl_state *s = prl_state_of(n);

	return s->span ? span_status(s->span, bytes, off, out, cap, nr, err) :
			 prl_image_status(n, bytes, off, out, cap, nr, err);
}

static int resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	if (prl_state_of(n)->span)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "the disk of a bundle keeps its size: convert it");
	return prl_image_resize(n, size_bytes, err);
}

static int info(struct node *n, struct img_info *out, struct img_error *err)
{
	return prl_state_of(n)->span ? prl_bundle_info(n, out, err) : prl_image_info(n, out, err);
}

static int info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err)
{
	return prl_state_of(n)->span ? prl_bundle_info_details(n, fn, ctx, err) :
				       prl_image_info_details(n, fn, ctx, err);
}

static int refuse_change(struct node *n, struct img_error *err)
{
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			 prl_state_of(n)->span ?
				 "snapshots of a bundle are only read: convert it to a format that makes them" :
				 "a single Parallels image holds no snapshots");
}

static int snap_create(struct node *n, const char *name, unsigned flags, const int64_t *created_ns,
		       struct img_error *err)
{
	(void)name;
	(void)flags;
	(void)created_ns;
	return refuse_change(n, err);
}

static int snap_change(struct node *n, const char *name, struct img_error *err)
{
	(void)name;
	return refuse_change(n, err);
}

static int snap_rename(struct node *n, const char *name, const char *new_name, struct img_error *err)
{
	(void)name;
	(void)new_name;
	return refuse_change(n, err);
}

static int check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err)
{
	return prl_state_of(n)->span ? prl_bundle_check(n, flags, fn, ctx, progress, out, err) :
				       prl_image_check(n, flags, fn, ctx, progress, out, err);
}

const struct img_driver parallels_driver = {
	.name = "parallels",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct prl_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_CHECK,
	.checks_data = true,
	.snapshots_have_parents = true,
	.create_help = PRL_OPTIONS_HELP,
	.probe = probe,
	.create = prl_create,
	.open = open_any,
	.close = close_any,
	.size = size,
	.limits = limits,
	.pread = pread_any,
	.pwrite = pwrite_any,
	.zero = zero,
	.discard = discard,
	.flush = flush,
	.status = status,
	.resize = resize,
	.snap_create = snap_create,
	.snap_delete = snap_change,
	.snap_revert = snap_change,
	.snap_rename = snap_rename,
	.snap_list = prl_bundle_snap_list,
	.snap_open = prl_bundle_snap_open,
	.snap_diff = prl_bundle_snap_diff,
	.info = info,
	.info_details = info_details,
	.measure = prl_measure,
	.check = check,
	.inspect = prl_inspect,
};
