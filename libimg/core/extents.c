/* SPDX-License-Identifier: MIT */
/*
 * Extents: what lies where, through the whole chain. Each layer's driver answers for itself, in batches that are kept
 * in a cursor per layer; here they are put on top of each other: a range that a layer does not say anything about is
 * looked up in the one below, as far as that reaches. Neighbours of one kind are merged.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "image_int.h"

#define LAYER "extents"
#define BATCH 32

struct cursor {
	struct node *node;
	size_t pos, nr;
	struct status_extent batch[BATCH];
};

/*
 * What this layer says about off, clipped to end. Its driver is asked up to stop (both lie inside the layer): an
 * overlay of many small extents must not cost its backing a question for each gap.
 */
static int ask_layer(struct cursor *c, uint64_t off, uint64_t end, uint64_t stop, struct status_extent *out,
		     struct img_error *err)
{
	int ret;

	while (c->pos < c->nr && c->batch[c->pos].off + c->batch[c->pos].bytes <= off)
		c->pos++;
	if (c->pos == c->nr || c->batch[c->pos].off > off) {
		c->pos = 0;
		c->nr = 0;
		ret = node_status(c->node, stop - off, off, c->batch, BATCH, &c->nr, err);
		if (ret != 0)
			return ret;
	}
	*out = c->batch[c->pos];
	if (out->kind == STATUS_DATA && out->host_off != STATUS_NO_HOST)
		out->host_off += off - out->off;
	out->bytes = min_u64(out->off + out->bytes, end) - off;
	out->off = off;
	return 0;
}

static uint32_t flags_of(const struct status_extent *e)
{
	switch (e->kind) {
	case STATUS_ZERO: return IMG_EXT_ZERO | IMG_EXT_ALLOCATED;
	case STATUS_DATA:
		return IMG_EXT_DATA | IMG_EXT_ALLOCATED |
		       (e->host_off != STATUS_NO_HOST ? (uint32_t)IMG_EXT_OFFSET : 0);
	case STATUS_COMPRESSED: return IMG_EXT_DATA | IMG_EXT_ALLOCATED | IMG_EXT_COMPRESSED;
	case STATUS_UNALLOCATED:
	default: return 0;
	}
}

static int missing_backing(const struct node *node, uint64_t off, struct img_error *err)
{
	return error_set(
		err, IMG_E_REFUSED, 0, off, LAYER,
		"%s: 0x%llx is not in this file, and its backing file was not opened on purpose; ask for this layer only",
		node->path, (unsigned long long)off);
}

/* The one extent that begins at off. */
static int resolve(struct cursor *cursors, unsigned nr_layers, bool own, uint64_t off, uint64_t end,
		   struct img_extent *out, struct img_error *err)
{
	uint64_t stop = end;

	for (unsigned depth = 0; depth < nr_layers; depth++) {
		struct node *node = cursors[depth].node;
		uint64_t size = node_size(node);
		struct status_extent e;
		int ret;

		/* Beyond the end of a shorter backing there is nothing. */
		if (off >= size)
			break;
		ret = ask_layer(&cursors[depth], off, min_u64(end, size), min_u64(stop, size), &e, err);
		if (ret != 0)
			return ret;
		end = off + e.bytes;
		if (e.kind != STATUS_UNALLOCATED || own) {
			*out = (struct img_extent){
				.off = off, .bytes = e.bytes, .flags = flags_of(&e), .depth = depth
			};
			if (out->flags & IMG_EXT_OFFSET)
				out->host_off = e.host_off;
			return 0;
		}
		if (node->backing_missing)
			return missing_backing(node, off, err);
	}
	*out = (struct img_extent){ .off = off, .bytes = end - off, .flags = IMG_EXT_ZERO };
	return 0;
}

static bool merges(const struct img_extent *a, const struct img_extent *b)
{
	if (a->flags != b->flags || a->depth != b->depth)
		return false;
	return !(a->flags & IMG_EXT_OFFSET) || a->host_off + a->bytes == b->host_off;
}

static int walk(struct cursor *cursors, unsigned nr_layers, bool own, uint64_t off, uint64_t end,
		struct img_extent *out, size_t cap, size_t *nr, struct img_error *err)
{
	while (off < end) {
		struct img_extent e;
		int ret = resolve(cursors, nr_layers, own, off, end, &e, err);

		if (ret != 0) {
			*nr = 0;
			return ret;
		}
		if (*nr > 0 && merges(&out[*nr - 1], &e))
			out[*nr - 1].bytes += e.bytes;
		else if (*nr == cap)
			break;
		else
			out[(*nr)++] = e;
		off += e.bytes;
	}
	return 0;
}

static int extents_locked(struct img *img, uint64_t bytes, uint64_t off, bool own, struct img_extent *out, size_t cap,
			  size_t *nr, struct img_error *err)
{
	unsigned nr_layers = 0;
	struct cursor *cursors;
	int ret;

	if (!range_inside(off, bytes, node_size(img->top)))
		return error_set(err, IMG_E_INVALID, 0, off, LAYER,
				 "%s: 0x%llx bytes at 0x%llx are beyond the size, 0x%llx", img->path,
				 (unsigned long long)bytes, (unsigned long long)off,
				 (unsigned long long)node_size(img->top));
	if (bytes == 0)
		return 0;
	cursors = malloc(img->depth * sizeof(*cursors));
	if (!cursors)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", img->path);
	for (struct node *n = img->top; n && nr_layers < img->depth; n = n->backing) {
		cursors[nr_layers].node = n;
		cursors[nr_layers].pos = 0;
		cursors[nr_layers].nr = 0;
		nr_layers++;
	}
	ret = walk(cursors, nr_layers, own, off, off + bytes, out, cap, nr, err);
	free(cursors);
	return ret;
}

int img_extents(struct img *img, uint64_t bytes, uint64_t off, unsigned flags, struct img_extent *out, size_t cap,
		size_t *nr, struct img_error *err)
{
	int ret;

	error_clear(err);
	if (!img || !nr || !out || cap == 0)
		return image_invalid(err, "no image, or no place for the extents");
	*nr = 0;
	ret = image_check_flags(flags, IMG_EXTENTS_OWN, err);
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = extents_locked(img, bytes, off, (flags & IMG_EXTENTS_OWN) != 0, out, cap, nr, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}
