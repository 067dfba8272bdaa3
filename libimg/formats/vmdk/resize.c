/* SPDX-License-Identifier: MIT */
/*
 * Resizing disks of one extent. The extent is never shorter than the descriptor says: growing changes it first, the
 * descriptor then; shrinking goes the other way. A crash between the two leaves the smaller disk.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "image.h"

static int set_text(struct vmdk_state *v, uint64_t bytes, struct img_error *err)
{
	size_t text_bytes;
	char *text;
	int ret;

	pthread_mutex_lock(&v->lock);
	ret = vmdk_descriptor_resize(&v->d, 0, bytes, &text, &text_bytes, err);
	if (ret == 0)
		ret = vmdk_text_store(v, text, text_bytes, err);
	pthread_mutex_unlock(&v->lock);
	return ret;
}

static int resize_extent(struct vmdk_state *v, uint64_t bytes, struct img_error *err)
{
	struct vmdk_part *p = &v->parts[0];
	uint64_t file_off;
	int ret;

	if (p->sparse)
		return p->sparse->h.capacity_bytes == bytes ? 0 : vmdk_sparse_resize(p->sparse, bytes, err);
	pthread_mutex_lock(&v->lock);
	file_off = v->d.extents[0].file_off;
	pthread_mutex_unlock(&v->lock);
	ret = node_resize(p->file, file_off + bytes, err);
	return ret == 0 && !v->bulk ? node_flush(p->file, 0, err) : ret;
}

/* Only as much of a raw file as is ours; and nothing of a file that others may use. lock is held. */
static int judge_extent(const struct vmdk_state *v, struct img_error *err)
{
	const struct vmdk_extent *e = &v->d.extents[0];

	if (e->access != VMDK_RW)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "the extent is only read");
	if (v->parts[0].sparse)
		return 0;
	if (!v->parts[0].file || e->file_off + e->bytes != node_size(v->parts[0].file))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "the extent is a part of its file, which is not resized: convert the image");
	return 0;
}

static int judge(struct vmdk_state *v, struct img_error *err)
{
	int ret;

	if (v->nr_parts != 1)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a disk in several extents is not resized: convert it");
	pthread_mutex_lock(&v->lock);
	ret = judge_extent(v, err);
	pthread_mutex_unlock(&v->lock);
	return ret;
}

/* What a larger parent holds behind the old end does not show: it is zeros, said by this layer. */
static int hide_parent(struct vmdk_state *v, uint64_t from, uint64_t to, struct img_error *err)
{
	struct node *backing = v->node->backing;
	uint64_t below = backing ? min_u64(node_size(backing), to) : 0;
	int ret;

	if (!v->parts[0].sparse || below <= from)
		return 0;
	ret = blockmap_zero(v->parts[0].sparse->bm, below - from, from, 0, err);
	return ret == 0 ? blockmap_flush(v->parts[0].sparse->bm, err) : ret;
}

/* The extent first, so that the descriptor never says more. */
static int grow(struct vmdk_state *v, uint64_t to, struct img_error *err)
{
	uint64_t from = span_size(v->span);
	int ret = 0;

	if (v->node->backing_missing)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: cannot grow without its backing file, which may reach further", v->node->path);
	/* What an earlier one left too long goes, or old content would come back. */
	if (v->parts[0].sparse && v->parts[0].sparse->h.capacity_bytes > from)
		ret = resize_extent(v, from, err);
	if (ret == 0)
		ret = resize_extent(v, to, err);
	if (ret == 0)
		ret = hide_parent(v, from, to, err);
	if (ret == 0)
		ret = set_text(v, to, err);
	if (ret == 0)
		span_set_size(v->span, to);
	return ret;
}

static int shrink(struct vmdk_state *v, uint64_t to, struct img_error *err)
{
	int ret = set_text(v, to, err);

	if (ret != 0)
		return ret;
	span_set_size(v->span, to);
	return resize_extent(v, to, err);
}

int vmdk_resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	int ret = vmdk_may_change(v, err);

	if (ret == 0)
		ret = judge(v, err);
	if (ret == 0 && size_bytes == 0)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a VMDK holds a disk of at least 512 bytes");
	if (ret == 0)
		ret = vmdk_touch(v, err);
	if (ret != 0 || size_bytes == span_size(v->span))
		return ret;
	pthread_mutex_lock(&v->size_lock);
	ret = size_bytes > span_size(v->span) ? grow(v, size_bytes, err) : shrink(v, size_bytes, err);
	pthread_mutex_unlock(&v->size_lock);
	return ret;
}
