/* SPDX-License-Identifier: MIT */
/* The limg driver: what the core sees of the engine. */
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "limg.h"
#include "options.h"

static struct limg_state *state_of(const struct node *n)
{
	return n->state;
}

/* ---- small members ---- */

/*
 * With the first place of the superblock lost, nothing but the second tells the file from a raw disk, as which it must
 * not be read. It lies where a raw disk has data: only a whole superblock counts.
 */
static bool second_place(const struct probe_data *d)
{
	uint8_t page[AU_BYTES];
	struct super sb;

	for (unsigned slot = 0; slot < 2; slot++) {
		uint64_t at = au_off(super_slot_au(1, slot));
		int rc;

		if (!range_inside(at, AU_BYTES, d->file_bytes) || node_pread(d->file, page, AU_BYTES, at, 0, NULL))
			continue;
		rc = super_decode(page, &sb, NULL);
		if (rc == IMG_E_UNSUPPORTED || (!rc && (sb.generation & 1) == slot))
			return true;
	}
	return false;
}

static int limg_probe(const struct probe_data *d)
{
	static const uint8_t magic[8] = { 'L', 'I', 'M', 'G', 0x0d, 0x0a, 0x1a, 0x00 };

	if (d->head_bytes >= 8 && !memcmp(d->head, magic, 8))
		return 100;
	if (d->head_bytes >= AU_BYTES + 8 && !memcmp(d->head + AU_BYTES, magic, 8))
		return 100;
	return second_place(d) ? 90 : 0;
}

static uint64_t limg_size(const struct node *n)
{
	const struct limg_state *st = state_of(n);

	return st->view.snap ? st->view.disk.size_bytes : atomic_load(&st->e->disk_bytes);
}

static void limg_limits(const struct node *n, struct driver_limits *out)
{
	const struct engine *e = state_of(n)->e;

	*out = (struct driver_limits){ .request_align = 1,
				       .block_bytes = e->block_bytes,
				       .optimal_bytes = 1u << 20,
				       .unit_bytes = e->unit_bytes,
				       .max_size_bytes = MAX_VOLUME_BYTES };
}

int limg_head(struct node *n, struct engine **e, struct img_error *err)
{
	struct limg_state *st = state_of(n);

	*e = st->e;
	if (st->view.snap)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "a snapshot cannot be changed");
	return engine_writable(st->e, err);
}

static int limg_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return view_read(&state_of(n)->view, VOL_DISK, buf, bytes, off, err);
}

static int limg_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	struct engine *e;
	int rc = limg_head(n, &e, err);

	return rc ? rc : head_write(e, VOL_DISK, buf, bytes, off, flags, err);
}

static int limg_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct engine *e;
	int rc = limg_head(n, &e, err);

	(void)flags;
	return rc ? rc : head_zero(e, VOL_DISK, bytes, off, false, err);
}

static int limg_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct engine *e;
	int rc = limg_head(n, &e, err);

	(void)flags;
	return rc ? rc : head_zero(e, VOL_DISK, bytes, off, true, err);
}

static int limg_flush(struct node *n, unsigned flags, struct img_error *err)
{
	struct engine *e = state_of(n)->e;
	struct ckpt_req req = { .action = CKPT_PLAIN };

	if (state_of(n)->view.snap || !e->writable)
		return 0;
	if (flags & IMG_FLUSH_CHECKPOINT && engine_unmerged(e))
		return engine_checkpoint(e, &req, err);
	return engine_flush(e, err);
}

static int limg_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		       struct img_error *err)
{
	return view_status(&state_of(n)->view, VOL_DISK, bytes, off, out, cap, nr, err);
}

static int limg_resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_RESIZE, .size_bytes = size_bytes };
	struct engine *e;
	int rc = limg_head(n, &e, err);

	if (!rc && (size_bytes % 512 || size_bytes > MAX_VOLUME_BYTES))
		rc = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
			       "a limg disk is a multiple of 512 bytes, at most 32 TiB");
	return rc ? rc : engine_checkpoint(e, &req, err);
}

static bool limg_get_backing(struct node *n, struct backing_ref *out)
{
	struct engine *e = state_of(n)->e;
	bool has;

	pthread_mutex_lock(&e->lock);
	has = e->sb.has_backing;
	if (has)
		*out = e->sb.backing;
	pthread_mutex_unlock(&e->lock);
	return has;
}

static bool waits_for_reclaim(struct engine *e)
{
	bool waits;

	checkpoint_begin(e);
	waits = reclaim_possible(e, e->sb.head_parent);
	checkpoint_end(e);
	return waits;
}

static int limg_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how,
			    struct img_error *err)
{
	struct ckpt_req req = {
		.action = CKPT_BACKING, .ref = ref, .empty = how == BACKING_SET_EMPTY, .reclaim_leaves = RECLAIM_LEAVES
	};
	struct engine *e;
	int rc = limg_head(n, &e, err);

	/* A deleted record that is half reclaimed has one child, against which it is walked. The emptied head and the
	 * record of what it held would be two. */
	while (!rc && req.empty && waits_for_reclaim(e)) {
		struct ckpt_req step = { .action = CKPT_PLAIN, .reclaim_leaves = RECLAIM_LEAVES };

		rc = engine_checkpoint(e, &step, err);
	}
	return rc ? rc : engine_checkpoint(e, &req, err);
}

static int limg_pin(struct node *n, struct pin *out, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	struct engine *e = st->e;

	memset(out, 0, sizeof *out);
	out->kind = PIN_STRONG;
	memcpy(out->uuid, e->uuid, 16);
	if (st->view.snap) {
		memcpy(out->snapshot_uuid, st->view.snap->uuid, 16);
		out->size_bytes = st->view.disk.size_bytes;
		volume_logical_root(&st->view.disk, out->hash);
		return 0;
	}
	if (!overlay_empty(e)) {
		struct ckpt_req req = { .action = CKPT_PLAIN };
		int rc;

		if (!e->writable)
			return error_set(
				err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				"it was not closed cleanly, so its content has no identity yet: run imgtool check --repair on it");
		rc = engine_checkpoint(e, &req, err);
		if (rc)
			return rc;
	}
	pthread_mutex_lock(&e->lock);
	out->size_bytes = e->sb.disk.size_bytes;
	volume_logical_root(&e->sb.disk, out->hash);
	pthread_mutex_unlock(&e->lock);
	return 0;
}

/* ---- snapshots as images ---- */

static int limg_snap_open(struct node *n, const char *name, struct node *view, struct img_error *err)
{
	struct limg_state *st = view->state;
	int rc = view_named(state_of(n)->e, name, &st->view, err);

	if (!rc)
		st->e = state_of(n)->e;
	return rc;
}

const struct img_driver limg_driver = {
	.name = "limg",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct limg_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_SNAPSHOTS | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD |
		IMG_CAP_COMPRESS | IMG_CAP_CHECK | IMG_CAP_VMSTATE | IMG_CAP_CHECKSUMS | IMG_CAP_SNAPSHOTS_BESIDE,
	.snapshots_have_parents = true,
	.create_help = LIMG_OPTIONS_HELP,
	/* two slots in two places */
	.anchors = { { SUPER_PLACE_A * AU_BYTES, AU_BYTES },
		     { (SUPER_PLACE_A + 1) * AU_BYTES, AU_BYTES },
		     { SUPER_PLACE_B * AU_BYTES, AU_BYTES },
		     { (SUPER_PLACE_B + 1) * AU_BYTES, AU_BYTES } },
	.probe = limg_probe,
	.create = limg_create,
	.open = limg_open,
	.close = limg_close,
	.size = limg_size,
	.limits = limg_limits,
	.pread = limg_pread,
	.pwrite = limg_pwrite,
	.zero = limg_zero,
	.discard = limg_discard,
	.flush = limg_flush,
	.status = limg_status,
	.resize = limg_resize,
	.get_backing = limg_get_backing,
	.set_backing = limg_set_backing,
	.pin = limg_pin,
	.snap_create = limg_snap_create,
	.snap_delete = limg_snap_delete,
	.snap_revert = limg_snap_revert,
	.snap_rename = limg_snap_rename,
	.snap_list = limg_snap_list,
	.snap_open = limg_snap_open,
	.snap_diff = limg_snap_diff,
	.vmstate_write = limg_vmstate_write,
	.vmstate_read = limg_vmstate_read,
	.vmstate_zero = limg_vmstate_zero,
	.vmstate_status = limg_vmstate_status,
	.vmstate_resize = limg_vmstate_resize,
	.vmstate_size = limg_vmstate_size,
	.info = limg_info,
	.measure = limg_measure,
	.check = limg_check,
	.inspect = limg_inspect,
};
