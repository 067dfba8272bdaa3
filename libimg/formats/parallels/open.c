/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing an expandable image, and what the engine asks of the format.
 *
 * Who writes must know the last cluster that is in use: the whole table is read for that, once, and an entry that leads
 * out of the file is a reason to stop. Where the last writer did not close the image nobody knows how far it came; then
 * two entries that lead to one cluster are such a reason, too (PRL-4).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "prl.h"

#define SCAN_BYTES 65536u

/* ---- the engine's questions -------------------------------------------------------------------------------------- */

static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	const struct prl_image *p = blockmap_format(bm);
	uint32_t entry;
	struct le32 d;
	uint64_t off;

	(void)block;
	memcpy(&d, raw, sizeof(d));
	entry = le32_get(d);
	if (entry == 0) {
		out->state = BLOCKMAP_FREE;
		return 0;
	}
	off = entry * prl_unit_bytes(&p->h);
	if (off < p->h.data_off)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "leads to 0x%" PRIx64 ", before the data area, 0x%" PRIx64, off, p->h.data_off);
	*out = (struct blockmap_entry){ .state = BLOCKMAP_DATA, .off = off };
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *entry)
{
	const struct prl_image *p = blockmap_format(bm);
	bool placed = entry->state == BLOCKMAP_DATA;
	struct le32 d = le32_of(placed ? (uint32_t)(entry->off / prl_unit_bytes(&p->h)) : 0);

	(void)block;
	memcpy(raw, &d, sizeof(d));
}

/* PRL-7 */
static int allocate(struct blockmap *bm, uint64_t nr, uint64_t *off, struct img_error *err)
{
	const struct prl_image *p = blockmap_format(bm);
	uint64_t last;

	*off = prl_place_at(&p->h, *off);
	last = *off + (nr - 1) * (uint64_t)p->h.cluster_bytes;
	if (last / prl_unit_bytes(&p->h) > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, *off, LAYER,
				 "the block table cannot lead that far into the file");
	return 0;
}

static int sync_unless_bulk(const struct prl_image *p, struct img_error *err)
{
	return p->bulk ? 0 : node_flush(p->file, 0, err);
}

/* PRL-4, and PRL-10: dirty bitmaps would miss what changes now. */
static int begin(struct blockmap *bm, struct img_error *err)
{
	struct prl_image *p = blockmap_format(bm);
	struct prl_header h;
	int ret;

	pthread_mutex_lock(&p->header_lock);
	h = p->h;
	h.in_use = PRL_IN_USE;
	h.ext_off = 0;
	h.flags &= ~PRL_FLAG_EMPTY;
	ret = prl_header_store(p->file, &h, err);
	if (ret == 0)
		ret = sync_unless_bulk(p, err);
	if (ret == 0) {
		/* Only these: the others are read meanwhile. */
		p->h.in_use = h.in_use;
		p->h.ext_off = h.ext_off;
		p->h.flags = h.flags;
		p->marked = true;
	}
	pthread_mutex_unlock(&p->header_lock);
	return ret;
}

static const struct blockmap_ops ops = {
	.decode = decode,
	.encode = encode,
	.allocate = allocate,
	.begin = begin,
};

struct prl_header prl_header_now(struct prl_image *p)
{
	struct prl_header h;

	pthread_mutex_lock(&p->header_lock);
	h = p->h;
	pthread_mutex_unlock(&p->header_lock);
	return h;
}

struct blockmap_shape prl_shape(const struct prl_header *h)
{
	return (struct blockmap_shape){
		.disk_bytes = prl_disk_bytes(h),
		.block_bytes = h->cluster_bytes,
		.nr_blocks = h->nr_entries,
		.entry_bytes = PRL_ENTRY_BYTES,
		.table_off = PRL_TABLE_OFF,
		.place_align = 1, /* allocate() knows where places begin */
		.end_off = h->data_off,
	};
}

int prl_replace_header(struct prl_image *p, const struct prl_header *h, struct img_error *err)
{
	int ret = prl_header_store(p->file, h, err);

	if (ret == 0)
		ret = sync_unless_bulk(p, err);
	if (ret != 0) {
		blockmap_break(p->bm);
		return ret;
	}
	pthread_mutex_lock(&p->header_lock);
	p->h = *h;
	pthread_mutex_unlock(&p->header_lock);
	return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

struct scan {
	const struct prl_header *h;
	struct blockmap_shape shape; /* h's */
	uint64_t file_bytes;
	bool strict;	  /* entries that lead out of the file are a failure */
	uint8_t *seen;	  /* a bit for each place; two entries for one are a failure; NULL: they are not looked for */
	uint64_t end;	  /* behind the last place that is in use */
	uint64_t nr_data; /* entries that lead to a place */
};

static int bad_entry(uint64_t block, uint64_t off, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, PRL_TABLE_OFF + block * PRL_ENTRY_BYTES, LAYER,
			 "block 0x%" PRIx64 " leads to 0x%" PRIx64 ", %s: run imgtool check --repair", block, off,
			 what);
}

static int scan_entry(struct scan *s, uint32_t entry, uint64_t block, struct img_error *err)
{
	const struct prl_header *h = s->h;
	uint64_t off = entry * prl_unit_bytes(h), place;

	if (entry == 0)
		return 0;
	if (s->strict && (off < h->data_off || !blockmap_place_inside(&s->shape, block, off, s->file_bytes, false)))
		return bad_entry(block, off, "not all of which is inside the file's data area", err);
	s->end = max_u64(s->end, off + h->cluster_bytes);
	s->nr_data++;
	if (!s->seen)
		return 0;
	if (prl_place_at(h, off) != off)
		return bad_entry(block, off, "between two clusters, in an image that was not closed", err);
	place = (off - prl_place_at(h, 0)) / h->cluster_bytes;
	if (s->seen[place / 8] & 1u << place % 8)
		return bad_entry(block, off, "as another one does, in an image that was not closed", err);
	s->seen[place / 8] |= (uint8_t)(1u << place % 8);
	return 0;
}

static int scan_table(struct node *file, struct scan *s, struct img_error *err)
{
	uint64_t bytes = (uint64_t)s->h->nr_entries * PRL_ENTRY_BYTES;
	uint8_t *buf = malloc(SCAN_BYTES);
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	s->shape = prl_shape(s->h);
	for (uint64_t at = 0; at < bytes && ret == 0; at += SCAN_BYTES) {
		uint64_t n = min_u64(bytes - at, SCAN_BYTES);

		ret = node_pread(file, buf, n, PRL_TABLE_OFF + at, 0, err);
		for (uint64_t i = 0; i < n && ret == 0; i += PRL_ENTRY_BYTES)
			ret = scan_entry(s, le32_at(buf, (size_t)i), (at + i) / PRL_ENTRY_BYTES, err);
	}
	free(buf);
	return ret;
}

/* PRL-10 */
static int judge_ext(struct prl_image *p, struct budget *budget, struct img_error *err)
{
	struct prl_ext ext;
	int ret = prl_ext_load(p->file, &p->h, p->node->path, budget, &ext, err);

	if (ret != 0)
		return ret;
	free(ext.taken);
	if (!ext.must_stay)
		return 0;
	return error_set(
		err, IMG_E_UNSUPPORTED, 0, p->h.ext_off, LAYER,
		"the Format Extension holds something that is not known, and that says of itself that it has to "
		"stay as it is: the image can only be read; convert it");
}

static int prepare_writer(struct prl_image *p, struct blockmap_shape *shape, struct budget *budget,
			  struct img_error *err)
{
	uint64_t file_bytes = node_size(p->file), places = file_bytes / p->h.cluster_bytes + 1;
	struct scan s = { .h = &p->h, .file_bytes = file_bytes, .strict = true, .end = p->h.data_off };
	int ret = p->h.ext_off ? judge_ext(p, budget, err) : 0;

	if (ret == 0)
		ret = budget_metadata(budget, p->node->path, (uint64_t)p->h.nr_entries * PRL_ENTRY_BYTES, err);
	if (ret == 0 && p->h.in_use == PRL_IN_USE) {
		ret = budget_metadata(budget, p->node->path, places / 8 + 1, err);
		s.seen = ret == 0 ? calloc(1, (size_t)(places / 8 + 1)) : NULL;
		if (ret == 0 && !s.seen)
			ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	if (ret == 0)
		ret = scan_table(p->file, &s, err);
	free(s.seen);
	shape->end_off = s.end;
	return ret;
}

/* A table can lead from everywhere to one cluster. What is mapped is counted where it could be too much. */
static int judge_expansion(struct prl_image *p, struct budget *budget, struct img_error *err)
{
	uint64_t file_bytes = node_size(p->file), cluster = p->h.cluster_bytes;
	struct scan s = { .h = &p->h, .file_bytes = file_bytes };
	int ret;

	if (budget_expansion_fits(budget, p->h.nr_entries * cluster, file_bytes))
		return 0;
	ret = budget_metadata(budget, p->node->path, (uint64_t)p->h.nr_entries * PRL_ENTRY_BYTES, err);
	if (ret == 0)
		ret = scan_table(p->file, &s, err);
	return ret == 0 ? budget_expansion(budget, p->node->path, s.nr_data * cluster, file_bytes, err) : ret;
}

static int load(struct prl_image *p, const struct driver_open *args, struct img_error *err)
{
	struct blockmap_shape shape;
	int ret = prl_header_load(p->file, &p->h, err);

	if (ret != 0)
		return ret;
	shape = prl_shape(&p->h);
	shape.file = p->file;
	if (args->writable && !args->for_check)
		ret = prepare_writer(p, &shape, args->budget, err);
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(p, args->budget, err);
	return ret == 0 ? blockmap_open(p->node, &shape, &ops, p, args, &p->bm, err) : ret;
}

int prl_image_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct prl_image *p = prl_image_of(node);
	int ret;

	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a single Parallels image holds no snapshots, so there is no '%s'", args->snapshot);
	p->node = node;
	p->file = p->file ? p->file : node->file;
	p->writable = args->writable;
	p->bulk = args->bulk;
	p->check_only = args->for_check;
	pthread_mutex_init(&p->header_lock, NULL);
	ret = load(p, args, err);
	if (ret != 0)
		pthread_mutex_destroy(&p->header_lock);
	return ret;
}

/* The mark goes when all else is durable. After a failure it stays, and tells the next one. */
static int unmark(struct prl_image *p, struct img_error *err)
{
	int ret;

	if (!p->marked)
		return 0;
	p->h.in_use = PRL_CLOSED;
	ret = prl_header_store(p->file, &p->h, err);
	return ret == 0 ? node_flush(p->file, 0, err) : ret;
}

int prl_image_close(struct node *node, struct img_error *err)
{
	struct prl_image *p = prl_image_of(node);
	int ret = blockmap_finish(p->bm, err);

	if (ret == 0)
		ret = unmark(p, err);
	blockmap_free(p->bm);
	p->bm = NULL;
	pthread_mutex_destroy(&p->header_lock);
	return ret;
}
