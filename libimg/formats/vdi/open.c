/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing, and what the engine asks of the format: entries, the modification UUID before the first change,
 * the count of places before entries lead to new ones.
 *
 * Who writes must know the highest place that is in use: the whole map is read for that, once, and an entry that leads
 * out of the file is a reason to stop (new blocks would go where it leads).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vdi.h"

#define SCAN_BYTES 65536u

/* ---- the engine's questions -------------------------------------------------------------------------------------- */

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	const struct vdi_state *v = blockmap_format(bm);
	uint64_t off;
	struct le32 d;
	uint32_t entry;

	(void)block;
	memcpy(&d, raw, sizeof(d));
	entry = le32_get(d);
	if (entry == VDI_ENTRY_FREE) {
		out->state = BLOCKMAP_FREE;
	} else if (entry == VDI_ENTRY_ZERO) {
		out->state = BLOCKMAP_ZERO;
	} else {
		if (mul_overflows(entry, vdi_place_bytes(&v->h), &off) || off > INT64_MAX)
			return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "leads to place 0x%" PRIx32, entry);
		*out = (struct blockmap_entry){ .state = BLOCKMAP_DATA, .off = v->h.data_off + off };
	}
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	const struct vdi_state *v = blockmap_format(bm);
	struct le32 d;

	(void)block;
	if (entry->state == BLOCKMAP_FREE)
		d = le32_of(VDI_ENTRY_FREE);
	else if (entry->state == BLOCKMAP_ZERO)
		d = le32_of(VDI_ENTRY_ZERO);
	else
		d = le32_of((uint32_t)((entry->off - v->h.data_off) / vdi_place_bytes(&v->h)));
	memcpy(raw, &d, sizeof(d));
}

/* There are as many places as blocks: VirtualBox opens no image that says more. Only gaps between places can make that
 * too few. */
static int allocate(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	const struct vdi_state *v = blockmap_format(bm);
	uint64_t first = (*off - v->h.data_off) / vdi_place_bytes(&v->h);

	if (first + nr > (v->resizing ? VDI_PLACES_MAX : v->h.nr_blocks))
		return error_set(err, IMG_E_NOSPC, 0, NO_OFFSET, LAYER,
				 "all places are taken, some of them by nobody: run imgtool check --repair");
	return 0;
}

static int sync_unless_bulk(const struct vdi_state *v, struct img_error *err)
{
	return v->bulk ? 0 : node_flush(v->node->file, 0, err);
}

/* Children know their parent's state by this UUID: it is on disk before any data changes. */
static int begin(struct blockmap *bm, struct img_error *err)
{
	struct vdi_state *v = blockmap_format(bm);
	struct vdi_header h;
	int ret;

	pthread_mutex_lock(&v->header_lock);
	h = v->h;
	ret = vdi_uuid_new(h.modification, err);
	if (ret == 0)
		ret = vdi_header_store(v->node->file, &h, err);
	if (ret == 0)
		ret = sync_unless_bulk(v, err);
	if (ret == 0)
		memcpy(v->h.modification, h.modification, 16);
	pthread_mutex_unlock(&v->header_lock);
	return ret;
}

int vdi_store_count(struct vdi_state *v, uint64_t nr, struct img_error *err)
{
	struct vdi_header h;
	int ret = 0;

	pthread_mutex_lock(&v->header_lock);
	if (nr != v->h.nr_allocated) {
		h = v->h;
		h.nr_allocated = (uint32_t)nr;
		ret = vdi_header_store(v->node->file, &h, err);
		if (ret == 0)
			v->h.nr_allocated = h.nr_allocated;
	}
	pthread_mutex_unlock(&v->header_lock);
	return ret;
}

/* VDI-8 */
static int settle(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	struct vdi_state *v = blockmap_format(bm);

	return vdi_store_count(v, (end - v->h.data_off) / vdi_place_bytes(&v->h), err);
}

static const struct blockmap_ops ops = {
	.decode = decode,
	.encode = encode,
	.allocate = allocate,
	.begin = begin,
	.settle = settle,
};

struct vdi_header vdi_header_now(struct vdi_state *v)
{
	struct vdi_header h;

	pthread_mutex_lock(&v->header_lock);
	h = v->h;
	pthread_mutex_unlock(&v->header_lock);
	return h;
}

struct blockmap_shape vdi_shape(const struct vdi_header *h)
{
	return (struct blockmap_shape){
		.disk_bytes = vdi_disk_bytes(h),
		.block_bytes = h->block_bytes,
		.nr_blocks = h->nr_blocks,
		.entry_bytes = 4,
		.table_off = h->map_off,
		.prefix_bytes = h->extra_bytes,
		.place_align = 1, /* places follow each other, wherever the first one lies */
		.end_off = h->data_off + min_u64(h->nr_allocated, h->nr_blocks) * vdi_place_bytes(h),
		.has_zero = true,
	};
}

int vdi_replace_header(struct vdi_state *v, const struct vdi_header *h, struct img_error *err)
{
	int ret = vdi_header_store(v->node->file, h, err);

	if (ret == 0)
		ret = sync_unless_bulk(v, err);
	if (ret != 0) {
		blockmap_break(v->bm);
		return ret;
	}
	pthread_mutex_lock(&v->header_lock);
	v->h = *h;
	pthread_mutex_unlock(&v->header_lock);
	return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

struct scan {
	struct blockmap_shape shape;
	uint64_t file_bytes; /* places reach no further; 0: wherever they like */
	uint64_t nr_places;  /* the highest one that is in use, and all below */
	uint64_t nr_data;    /* entries that lead to a place */
};

static int scan_entry(struct scan *s, uint32_t entry, uint64_t block, const struct vdi_header *h, struct img_error *err)
{
	if (entry >= VDI_ENTRY_ZERO)
		return 0;
	if (s->file_bytes > 0 &&
	    !blockmap_place_inside(&s->shape, block, h->data_off + entry * vdi_place_bytes(h), s->file_bytes, false))
		return error_set(err, IMG_E_CORRUPT, 0, h->map_off + block * 4, LAYER,
				 "block 0x%" PRIx64 " leads to place 0x%" PRIx32
				 ", which is not all inside the file: run imgtool check --repair",
				 block, entry);
	s->nr_places = max_u64(s->nr_places, (uint64_t)entry + 1);
	s->nr_data++;
	return 0;
}

/* strict: entries that lead out of the file are a failure. */
static int scan_map(struct node *file, const struct vdi_header *h, bool strict, struct scan *s, struct img_error *err)
{
	uint64_t bytes = (uint64_t)h->nr_blocks * 4;
	uint8_t *buf = malloc(SCAN_BYTES);
	int ret = 0;

	*s = (struct scan){ .shape = vdi_shape(h), .file_bytes = strict ? node_size(file) : 0 };
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t at = 0; at < bytes && ret == 0; at += SCAN_BYTES) {
		uint64_t n = min_u64(bytes - at, SCAN_BYTES);

		ret = node_pread(file, buf, n, h->map_off + at, 0, err);
		for (uint64_t i = 0; i < n && ret == 0; i += 4) {
			struct le32 d;

			memcpy(&d, buf + i, sizeof(d));
			ret = scan_entry(s, le32_get(d), (at + i) / 4, h, err);
		}
	}
	free(buf);
	return ret;
}

/*
 * The map says how many places there are, not the count: too low a count would have new blocks written over old ones,
 * too high a one is a writer's that was interrupted, and what it gave away is nobody's.
 */
static int prepare_writer(struct vdi_state *v, struct blockmap_shape *shape, struct budget *budget,
			  struct img_error *err)
{
	struct scan s;
	int ret = budget_metadata(budget, v->node->path, (uint64_t)v->h.nr_blocks * 4, err);

	if (ret == 0)
		ret = scan_map(v->node->file, &v->h, true, &s, err);
	if (ret == 0)
		shape->end_off = v->h.data_off + s.nr_places * vdi_place_bytes(&v->h);
	return ret;
}

/* A map can lead from everywhere to one place. What is mapped is counted where it could be too much. */
static int judge_expansion(struct vdi_state *v, struct budget *budget, struct img_error *err)
{
	uint64_t file_bytes = node_size(v->node->file), block_bytes = v->h.block_bytes;
	struct scan s;
	int ret;

	if (budget_expansion_fits(budget, v->h.nr_blocks * block_bytes, file_bytes))
		return 0;
	ret = budget_metadata(budget, v->node->path, (uint64_t)v->h.nr_blocks * 4, err);
	if (ret == 0)
		ret = scan_map(v->node->file, &v->h, false, &s, err);
	return ret == 0 ? budget_expansion(budget, v->node->path, s.nr_data * block_bytes, file_bytes, err) : ret;
}

static int load(struct vdi_state *v, const struct driver_open *args, struct img_error *err)
{
	struct blockmap_shape shape;
	int ret = vdi_header_load(v->node->file, args->writable, &v->h, err);

	if (ret != 0)
		return ret;
	shape = vdi_shape(&v->h);
	if (args->writable && !args->for_check)
		ret = prepare_writer(v, &shape, args->budget, err);
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(v, args->budget, err);
	return ret == 0 ? blockmap_open(v->node, &shape, &ops, v, args, &v->bm, err) : ret;
}

int vdi_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	int ret;

	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "VDI images hold no snapshots, so there is no '%s'", args->snapshot);
	v->node = node;
	v->writable = args->writable;
	v->bulk = args->bulk;
	v->check_only = args->for_check;
	pthread_mutex_init(&v->header_lock, NULL);
	ret = load(v, args, err);
	if (ret != 0)
		pthread_mutex_destroy(&v->header_lock);
	return ret;
}

int vdi_close(struct node *node, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	int ret = blockmap_finish(v->bm, err);

	blockmap_free(v->bm);
	v->bm = NULL;
	pthread_mutex_destroy(&v->header_lock);
	return ret;
}
