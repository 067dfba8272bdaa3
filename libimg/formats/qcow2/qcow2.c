/* SPDX-License-Identifier: MIT */
/* The qcow2 driver: what the core sees of the engine. */
#include <string.h>

#include "qcow2_engine.h"
#include "qcow2_inspect.h"
#include "qcow2_options.h"

static struct qcow2_view *view_of(const struct node *n)
{
	return &((struct qcow2_state *)n->state)->view;
}

static int probe(const struct probe_data *d)
{
	struct disk_qcow2_header h;

	if (d->head_bytes < 8)
		return 0;
	memcpy(&h, d->head, 8);
	/* Version 1 is another format with the same magic. */
	return be32_get(h.magic) == QCOW2_MAGIC && be32_get(h.version) != 1 ? 100 : 0;
}

static uint64_t size(const struct node *n)
{
	const struct qcow2_view *v = view_of(n);

	return v->is_snapshot ? v->size_bytes : atomic_load(&v->e->disk_bytes);
}

static void limits(const struct node *n, struct driver_limits *out)
{
	const struct qcow2_engine *e = view_of(n)->e;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = (uint32_t)e->sub_bytes,
		.optimal_bytes = (uint32_t)max_u64(e->cluster_bytes, 1u << 20),
		.unit_bytes = e->external ? 0 : (uint32_t)e->cluster_bytes,
		.max_size_bytes = min_u64(INT64_MAX, (QCOW2_L1_MAX_BYTES / 8) << e->l2_shift << e->h.cluster_bits)
	};
}

static int pread_member(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return qcow2_view_read(view_of(n), buf, bytes, off, err);
}

static int pwrite_member(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	struct qcow2_engine *e;
	int ret = qcow2_head(n, &e, err);

	return ret ? ret : qcow2_write(e, buf, bytes, off, flags, err);
}

static int zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct qcow2_engine *e;
	int ret = qcow2_head(n, &e, err);

	return ret ? ret : qcow2_zero(e, bytes, off, !(flags & IMG_IO_NO_UNMAP), false, err);
}

static int discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct qcow2_engine *e;
	int ret = qcow2_head(n, &e, err);

	(void)flags;
	return ret ? ret : qcow2_zero(e, bytes, off, true, true, err);
}

static int flush(struct node *n, unsigned flags, struct img_error *err)
{
	struct qcow2_view *v = view_of(n);

	(void)flags;
	if (v->is_snapshot || !v->e->writable)
		return 0;
	return qcow2_flush_all(v->e, err);
}

/* Own layer only. */
static int status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return qcow2_view_status(view_of(n), bytes, off, out, cap, nr, err);
}

const struct img_driver qcow2_driver = {
	.name = "qcow2",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct qcow2_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_SNAPSHOTS | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD |
		IMG_CAP_COMPRESS | IMG_CAP_CHECK | IMG_CAP_VMSTATE | IMG_CAP_BITMAPS,
	.create_help = QCOW2_OPTIONS_HELP,
	.anchors = { { 0, 512 } },
	.probe = probe,
	.create = qcow2_create,
	.open = qcow2_open,
	.close = qcow2_close,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.pwrite = pwrite_member,
	.zero = zero,
	.discard = discard,
	.flush = flush,
	.status = status,
	.resize = qcow2_resize,
	.get_backing = qcow2_get_backing,
	.set_backing = qcow2_set_backing,
	.snap_create = qcow2_snap_create,
	.snap_delete = qcow2_snap_delete,
	.snap_revert = qcow2_snap_revert,
	.snap_rename = qcow2_snap_rename,
	.snap_list = qcow2_snap_list,
	.snap_open = qcow2_snap_open,
	.snap_diff = qcow2_snap_diff,
	.vmstate_write = qcow2_vmstate_write,
	.vmstate_read = qcow2_vmstate_read,
	.vmstate_zero = qcow2_vmstate_zero,
	.vmstate_status = qcow2_vmstate_status,
	.vmstate_resize = qcow2_vmstate_resize,
	.vmstate_size = qcow2_vmstate_size,
	.info = qcow2_info,
	.measure = qcow2_measure,
	.info_details = qcow2_info_details,
	.amend = qcow2_amend,
	.check = qcow2_check,
	.inspect = qcow2_inspect,
	.bitmap_list = qcow2_bitmap_list,
	.bitmap_add = qcow2_bitmap_add,
	.bitmap_remove = qcow2_bitmap_remove,
	.bitmap_enable = qcow2_bitmap_enable,
	.bitmap_clear = qcow2_bitmap_clear,
	.bitmap_merge = qcow2_bitmap_merge,
	.bitmap_ranges = qcow2_bitmap_ranges,
};
