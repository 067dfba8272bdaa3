/* SPDX-License-Identifier: MIT */
/* The VDI driver: what the core sees of it. See vdi.h. */
#include <string.h>

#include "vdi.h"

static struct blockmap *bm_of(const struct node *n)
{
	return vdi_state_of(n)->bm;
}

static int probe(const struct probe_data *d)
{
	struct disk_vdi_preheader pre;

	if (d->head_bytes < sizeof(pre))
		return 0;
	memcpy(&pre, d->head, sizeof(pre));
	return le32_get(pre.magic) == VDI_MAGIC ? 100 : 0;
}

static uint64_t size(const struct node *n)
{
	return blockmap_size(bm_of(n));
}

static void limits(const struct node *n, struct driver_limits *out)
{
	uint32_t block_bytes = vdi_state_of(n)->h.block_bytes;
	uint64_t map_max = UINT32_MAX - 2 * VDI_ALIGN_DEFAULT; /* its end is a 32 bit field */

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = block_bytes,
		.optimal_bytes = (uint32_t)min_u64(max_u64(block_bytes, 1u << 20), 16u << 20),
		.max_size_bytes = min_u64(INT64_MAX, min_u64(VDI_BLOCKS_MAX, map_max / 4) * block_bytes),
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

const struct img_driver vdi_driver = {
	.name = "vdi",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct vdi_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_CHECK,
	.create_help = VDI_OPTIONS_HELP,
	.probe = probe,
	.create = vdi_create,
	.open = vdi_open,
	.close = vdi_close,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.pwrite = pwrite_member,
	.zero = zero,
	.discard = discard,
	.flush = flush,
	.status = status,
	.resize = vdi_resize,
	.get_backing = vdi_get_backing,
	.set_backing = vdi_set_backing,
	.empties_in_steps = true,
	.id = vdi_id,
	.info = vdi_info,
	.info_details = vdi_info_details,
	.amend = vdi_amend,
	.measure = vdi_measure,
	.check = vdi_check,
	.inspect = vdi_inspect,
};
