/* SPDX-License-Identifier: MIT */
/* The VHD driver: what the core sees of the format. */
#include <string.h>

#include "is_zero.h"
#include "vhd.h"

static bool has_cookie(const uint8_t *p)
{
	return memcmp(p, VHD_COOKIE, 8) == 0;
}

static int probe(const struct probe_data *d)
{
	struct disk_vhd_footer f;
	bool found;

	if (d->head_bytes >= 8 && has_cookie(d->head))
		return 100;
	/* A fixed disk shows it at its end alone. */
	if (d->tail_bytes >= VHD_SECTOR_BYTES && has_cookie(d->tail + d->tail_bytes - VHD_SECTOR_BYTES))
		return 100;
	if (d->tail_bytes >= VHD_OLD_FOOTER_BYTES && has_cookie(d->tail + d->tail_bytes - VHD_OLD_FOOTER_BYTES))
		return 100;
	/* One that was growing shows it before zeros. */
	if (d->tail_bytes < VHD_SECTOR_BYTES || !is_zero(d->tail + d->tail_bytes - VHD_SECTOR_BYTES, VHD_SECTOR_BYTES))
		return 0;
	return vhd_find_lost_footer(d->file, &f, &found, NULL) == 0 && found ? 100 : 0;
}

static uint64_t size(const struct node *n)
{
	return atomic_load(&vhd_state(n)->disk_bytes);
}

static void limits(const struct node *n, struct driver_limits *out)
{
	const struct vhd_state *s = vhd_state(n);

	*out = (struct driver_limits){
		/* A bit stands for a sector: it cannot be a part of one. */
		.request_align = s->bm ? VHD_SECTOR_BYTES : 1,
		.block_bytes = s->bm ? s->head.block_bytes : 1,
		.optimal_bytes = s->bm ? s->head.block_bytes : 64u << 10,
		.max_size_bytes = s->bm ? VHD_DYNAMIC_MAX_BYTES : VHD_FIXED_MAX_BYTES,
	};
}

const struct img_driver vhd_driver = {
	.name = "vhd",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct vhd_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_CHECK,
	.create_help = VHD_OPTIONS_HELP,
	.probe = probe,
	.create = vhd_create,
	.open = vhd_open,
	.close = vhd_close,
	.size = size,
	.limits = limits,
	.pread = vhd_pread,
	.pwrite = vhd_pwrite,
	.zero = vhd_zero,
	.discard = vhd_discard,
	.flush = vhd_flush,
	.status = vhd_status,
	.resize = vhd_resize,
	.get_backing = vhd_get_backing,
	.set_backing = vhd_set_backing,
	.id = vhd_id,
	.info = vhd_info,
	.info_details = vhd_info_details,
	.amend = vhd_amend,
	.measure = vhd_measure,
	.check = vhd_check,
	.inspect = vhd_inspect,
};
