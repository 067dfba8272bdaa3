/* SPDX-License-Identifier: MIT */
/* The VHDX driver: what the core sees of the format. Requests are the block engine's. */
#include <string.h>

#include "vhdx.h"

static int probe(const struct probe_data *d)
{
	return d->head_bytes >= 8 && memcmp(d->head, "vhdxfile", 8) == 0 ? 100 : 0;
}

static uint64_t size(const struct node *n)
{
	return blockmap_size(vhdx_state_of(n)->bm);
}

static void limits(const struct node *n, struct driver_limits *out)
{
	const struct vhdx_meta *m = &vhdx_state_of(n)->m;

	*out = (struct driver_limits){
		/* A bit stands for a sector: it cannot be a part of one. It may get a parent any time. */
		.request_align = m->leave_blocks ? 1 : m->sector_bytes,
		.block_bytes = (uint32_t)m->block_bytes,
		.optimal_bytes = 1u << 20,
		.max_size_bytes = VHDX_DISK_MAX,
	};
}

static int pread_member(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_pread(vhdx_state_of(n)->bm, buf, bytes, off, err);
}

static int pwrite_member(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	(void)flags;
	return blockmap_pwrite(vhdx_state_of(n)->bm, buf, bytes, off, err);
}

static int zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);

	return blockmap_zero(s->bm, bytes, off, s->solid ? flags | IMG_IO_NO_UNMAP : flags, err);
}

static int discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);

	(void)flags;
	return s->solid ? blockmap_may_change(s->bm, err) : blockmap_discard(s->bm, bytes, off, err);
}

static int flush(struct node *n, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_flush(vhdx_state_of(n)->bm, err);
}

static int status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return blockmap_status(vhdx_state_of(n)->bm, bytes, off, out, cap, nr, err);
}

const struct img_driver vhdx_driver = {
	.name = "vhdx",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct vhdx_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_CHECK,
	.create_help = VHDX_OPTIONS_HELP,
	.probe = probe,
	.create = vhdx_create,
	.open = vhdx_open,
	.close = vhdx_close,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.pwrite = pwrite_member,
	.zero = zero,
	.discard = discard,
	.flush = flush,
	.status = status,
	.resize = vhdx_resize,
	.get_backing = vhdx_get_backing,
	.set_backing = vhdx_set_backing,
	.id = vhdx_id,
	.info = vhdx_info,
	.info_details = vhdx_info_details,
	.measure = vhdx_measure,
	.check = vhdx_check,
	.inspect = vhdx_inspect,
};
