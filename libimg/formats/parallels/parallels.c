/* SPDX-License-Identifier: MIT */
/* The Parallels driver: what the core sees of it. See prl.h. */
#include <string.h>

#include "prl.h"

static struct blockmap *bm_of(const struct node *n)
{
	return prl_image_of(n)->bm;
}

static int probe(const struct probe_data *d)
{
	if (d->head_bytes < PRL_MAGIC_BYTES)
		return 0;
	if (memcmp(d->head, PRL_MAGIC_V1, PRL_MAGIC_BYTES) != 0 && memcmp(d->head, PRL_MAGIC_V2, PRL_MAGIC_BYTES) != 0)
		return 0;
	return 100;
}

static uint64_t size(const struct node *n)
{
	return blockmap_size(bm_of(n));
}

static void limits(const struct node *n, struct driver_limits *out)
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

static int pread_member(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_pread(bm_of(n), buf, bytes, off, err);
}

static int pwrite_member(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	(void)flags;
	return blockmap_pwrite(bm_of(n), buf, bytes, off, err);
}

static int zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return blockmap_zero(bm_of(n), bytes, off, flags, err);
}

static int discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_discard(bm_of(n), bytes, off, err);
}

static int flush(struct node *n, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_flush(bm_of(n), err);
}

/* Own layer only. */
static int status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return blockmap_status(bm_of(n), bytes, off, out, cap, nr, err);
}

const struct img_driver parallels_driver = {
	.name = "parallels",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct prl_image),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_CHECK,
	.create_help = PRL_OPTIONS_HELP,
	.probe = probe,
	.create = prl_image_create,
	.open = prl_image_open,
	.close = prl_image_close,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.pwrite = pwrite_member,
	.zero = zero,
	.discard = discard,
	.flush = flush,
	.status = status,
	.resize = prl_image_resize,
	.info = prl_image_info,
	.info_details = prl_image_info_details,
	.measure = prl_image_measure,
	.check = prl_image_check,
	.inspect = prl_inspect,
};
