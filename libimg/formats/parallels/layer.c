/* SPDX-License-Identifier: MIT */
/*
 * Images of a bundle as nodes: an expandable one is the same as when it stands alone, but that its file is the
 * bundle's; a plain one is a range of its file.
 */
#include <inttypes.h>

#include "prl_bundle.h"

/* ---- plain ones -------------------------------------------------------------------------------------------------- */

struct plain {
	struct node *file;
	uint64_t bytes;
};

static struct plain *plain_of(const struct node *n)
{
	return n->state;
}

static int plain_open(struct node *n, const struct driver_open *args, struct img_error *err)
{
	const struct plain *p = plain_of(n);

	(void)args;
	if (node_size(p->file) >= p->bytes)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "%s: has 0x%" PRIx64 " bytes, its storage 0x%" PRIx64,
			 p->file->path, node_size(p->file), p->bytes);
}

static int plain_close(struct node *n, struct img_error *err)
{
	return n->writable ? node_flush(plain_of(n)->file, 0, err) : 0;
}

static uint64_t plain_size(const struct node *n)
{
	return plain_of(n)->bytes;
}

static int plain_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return node_pread(plain_of(n)->file, buf, bytes, off, 0, err);
}

static int plain_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	(void)flags;
	return node_pwrite(plain_of(n)->file, buf, bytes, off, 0, err);
}

static int plain_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return node_zero(plain_of(n)->file, bytes, off, flags & IMG_IO_NO_UNMAP, err);
}

static int plain_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return node_discard(plain_of(n)->file, bytes, off, 0, err);
}

static int plain_flush(struct node *n, unsigned flags, struct img_error *err)
{
	(void)flags;
	return node_flush(plain_of(n)->file, 0, err);
}

/* Nothing lies below: what the file does not hold is zeros. */
static int plain_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			struct img_error *err)
{
	int ret = node_status(plain_of(n)->file, bytes, off, out, cap, nr, err);

	for (size_t i = 0; ret == 0 && i < *nr; i++)
		if (out[i].kind == STATUS_UNALLOCATED)
			out[i].kind = STATUS_ZERO;
	return ret;
}

/* There is nothing that could be wrong. */
static int plain_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx,
		       const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	(void)n;
	(void)flags;
	(void)fn;
	(void)ctx;
	(void)progress;
	(void)err;
	*out = (struct img_check_result){ 0 };
	return 0;
}

static const struct img_driver plain_driver = {
	.name = "parallels",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct plain),
	.caps = IMG_CAP_WRITE,
	.open = plain_open,
	.close = plain_close,
	.size = plain_size,
	.pread = plain_pread,
	.pwrite = plain_pwrite,
	.zero = plain_zero,
	.discard = plain_discard,
	.flush = plain_flush,
	.status = plain_status,
	.check = plain_check,
};

/* ---- expandable ones --------------------------------------------------------------------------------------------- */

static const struct img_driver expandable_driver = {
	.name = "parallels",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct prl_image),
	.caps = IMG_CAP_WRITE,
	.open = prl_image_open,
	.close = prl_image_close,
	.size = prl_image_size,
	.limits = prl_image_limits,
	.pread = prl_image_pread,
	.pwrite = prl_image_pwrite,
	.zero = prl_image_zero,
	.discard = prl_image_discard,
	.flush = prl_image_flush,
	.status = prl_image_status,
	.info = prl_image_info,
	.check = prl_image_check,
};

static int judge_size(const struct node *layer, uint64_t storage_bytes, struct img_error *err)
{
	if (node_size(layer) == storage_bytes)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			 "%s: is an image of 0x%" PRIx64 " bytes, its storage has 0x%" PRIx64, layer->path,
			 node_size(layer), storage_bytes);
}

int prl_layer_open(struct node *file, bool plain, uint64_t storage_bytes, struct node *backing,
		   const struct driver_open *args, struct node **out, struct img_error *err)
{
	struct node *layer = node_new(plain ? &plain_driver : &expandable_driver, file->path, err);
	int ret;

	*out = NULL;
	if (!layer)
		return IMG_E_NOMEM;
	if (plain)
		*plain_of(layer) = (struct plain){ .file = file, .bytes = storage_bytes };
	else
		prl_image_of(layer)->file = file;
	layer->backing = backing;
	ret = node_open(layer, args, err);
	if (ret == 0)
		ret = judge_size(layer, storage_bytes, err);
	if (ret != 0) {
		layer->backing = NULL;
		node_close(layer, NULL);
		return ret;
	}
	*out = layer;
	return 0;
}

/* ---- as segments ------------------------------------------------------------------------------------------------- */

/* Some files written on, and one that can no longer be made durable, would tear the disk. */
static int may_change(const struct prl_layer *l, struct img_error *err)
{
	if (!atomic_load(&l->bundle->broken))
		return 0;
	return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
			 "an earlier failure forbids changes until the image is opened again");
}

static int changed(const struct prl_layer *l, int ret)
{
	if (ret != 0 && (node_is_poisoned(l->file) || node_is_poisoned(l->node)))
		atomic_store(&l->bundle->broken, true);
	return ret;
}

static int layer_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	const struct prl_layer *l = ctx;

	return node_pread(l->node, buf, bytes, off, 0, err);
}

static int layer_pwrite(void *ctx, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	const struct prl_layer *l = ctx;
	int ret = may_change(l, err);

	return ret == 0 ? changed(l, node_pwrite(l->node, buf, bytes, off, 0, err)) : ret;
}

static int layer_zero(void *ctx, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	const struct prl_layer *l = ctx;
	int ret = may_change(l, err);

	return ret == 0 ? changed(l, node_zero(l->node, bytes, off, flags & IMG_IO_NO_UNMAP, err)) : ret;
}

static int layer_discard(void *ctx, uint64_t bytes, uint64_t off, struct img_error *err)
{
	const struct prl_layer *l = ctx;
	int ret = may_change(l, err);

	return ret == 0 ? changed(l, node_discard(l->node, bytes, off, 0, err)) : ret;
}

static int layer_flush(void *ctx, struct img_error *err)
{
	const struct prl_layer *l = ctx;

	return changed(l, node_flush(l->node, 0, err));
}

int prl_extent_at(struct node *top, const struct node *stop, uint64_t bytes, uint64_t off, struct status_extent *out,
		  struct img_error *err)
{
	size_t nr;
	int ret = 0;

	*out = (struct status_extent){ .off = off, .bytes = bytes, .kind = STATUS_UNALLOCATED };
	for (; ret == 0 && top && top != stop && out->kind == STATUS_UNALLOCATED; top = top->backing)
		ret = node_status(top, out->bytes, off, out, 1, &nr, err);
	return ret;
}

static int layer_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			struct img_error *err)
{
	const struct prl_layer *l = ctx;

	*nr = 0;
	while (bytes > 0 && *nr < cap) {
		struct status_extent e = { .bytes = 0 }, *last = *nr > 0 ? &out[*nr - 1] : NULL;
		int ret = prl_extent_at(l->node, NULL, bytes, off, &e, err);

		if (ret != 0)
			return ret;
		e.host_off = STATUS_NO_HOST; /* of several files */
		if (last && last->kind == e.kind)
			last->bytes += e.bytes;
		else
			out[(*nr)++] = e;
		off += e.bytes;
		bytes -= e.bytes;
	}
	return 0;
}

const struct span_ops prl_layer_ops = {
	.pread = layer_pread,
	.pwrite = layer_pwrite,
	.zero = layer_zero,
	.discard = layer_discard,
	.status = layer_status,
	.flush = layer_flush,
};
