/* SPDX-License-Identifier: MIT */
/*
 * Reading and status. Both ask for one run after the other: as many blocks as are of one kind, and lie behind each
 * other in the file, so that a long read of neighbours is one read of the host.
 */
#include <inttypes.h>
#include <string.h>

#include "blockmap_int.h"

#define RUN_STEPS_MAX 4096u /* blocks with data, or pages of others, that are looked at under one hold of map */

/* Of a PARTIAL block: the run of like bits that begins at the sector of in. */
static int partial_run(struct blockmap *bm, uint64_t block, const struct blockmap_entry *e, uint64_t in, bool may_load,
		       struct run *out, struct img_error *err)
{
	const struct blockmap_shape *s = &bm->shape;
	uint64_t sector = in / s->sector_bytes, nr;
	struct page *p = cache_find(bm, PAGE_BITMAP | block);
	int ret = 0;

	if (!p && !may_load)
		return 1;
	if (!p)
		ret = cache_bitmap(bm, block, e, false, &p, err);
	if (ret != 0)
		return ret;
	nr = bit_run(bm, p->data, sector, s->block_bytes / s->sector_bytes);
	out->state = bit_get(bm, p->data, sector) ? BLOCKMAP_DATA : BLOCKMAP_FREE;
	out->bytes = (sector + nr) * s->sector_bytes - in;
	out->host_off = e->off + s->prefix_bytes + in;
	return 0;
}

static bool joins(const struct blockmap *bm, const struct run *run, const struct blockmap_entry *e)
{
	if (e->state != run->state)
		return false;
	return e->state != BLOCKMAP_DATA || (dense(bm) && e->off == run->host_off + run->bytes);
}

int run_at_mapped(struct blockmap *bm, uint64_t off, uint64_t bytes, bool may_load, struct run *out,
		  struct img_error *err)
{
	const struct blockmap_shape *s = &bm->shape;
	uint64_t block = off / s->block_bytes, in = off % s->block_bytes, next = block + 1;
	uint64_t end = min_u64(block + (in + bytes - 1) / s->block_bytes + 1, s->nr_blocks);
	struct blockmap_entry e;
	int ret = entry_get(bm, block, may_load, &e, err);

	if (ret != 0)
		return ret;
	if (e.state == BLOCKMAP_PARTIAL) {
		ret = partial_run(bm, block, &e, in, may_load, out, err);
		if (ret == 0)
			out->bytes = min_u64(out->bytes, bytes);
		return ret;
	}
	*out = (struct run){ .state = e.state, .bytes = s->block_bytes - in };
	if (e.state == BLOCKMAP_DATA)
		out->host_off = e.off + s->prefix_bytes + in;
	for (unsigned i = 1; next < end && i < RUN_STEPS_MAX; i++) {
		uint64_t nr;

		/* What cannot be known yet, or makes no sense, is the next run's business. */
		if (entry_get(bm, next, false, &e, NULL) != 0 || !joins(bm, out, &e))
			break;
		nr = e.state == BLOCKMAP_DATA ? 1 : like_run(bm, next, end);
		out->bytes += nr * s->block_bytes;
		next += nr;
	}
	out->bytes = min_u64(out->bytes, bytes);
	return 0;
}

int run_at(struct blockmap *bm, uint64_t off, uint64_t bytes, struct run *out, struct img_error *err)
{
	int ret;

	pthread_rwlock_rdlock(&bm->map);
	ret = run_at_mapped(bm, off, bytes, false, out, err);
	pthread_rwlock_unlock(&bm->map);
	if (ret != 1)
		return ret;
	pthread_rwlock_wrlock(&bm->map);
	ret = run_at_mapped(bm, off, bytes, true, out, err);
	pthread_rwlock_unlock(&bm->map);
	return ret;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static int read_host(struct blockmap *bm, void *buf, const struct run *run, uint64_t off, struct img_error *err)
{
	if (!range_inside(run->host_off, run->bytes, node_size(bm->file)))
		return error_set(err, IMG_E_CORRUPT, 0, run->host_off, LAYER,
				 "0x%" PRIx64 " of the disk is mapped to 0x%" PRIx64
				 ", beyond the end of the file, 0x%" PRIx64 ": it was cut off, or its table is damaged",
				 off, run->host_off, node_size(bm->file));
	return node_pread(bm->file, buf, run->bytes, run->host_off, 0, err);
}

static int read_gated(struct blockmap *bm, uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	const struct blockmap_shape *s = &bm->shape;

	while (bytes > 0) {
		struct run run;
		int ret = run_at(bm, off, bytes, &run, err);

		if (ret != 0)
			return ret;
		switch (run.state) {
		case BLOCKMAP_DATA: ret = read_host(bm, buf, &run, off, err); break;
		case BLOCKMAP_ZERO: memset(buf, 0, (size_t)run.bytes); break;
		case BLOCKMAP_FREE:
		case BLOCKMAP_PARTIAL:
		default: ret = node_read_backing(bm->node, buf, run.bytes, s->disk_off + off, err); break;
		}
		if (ret != 0)
			return ret;
		buf += run.bytes;
		off += run.bytes;
		bytes -= run.bytes;
	}
	return 0;
}

int blockmap_pread(struct blockmap *bm, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret;

	pthread_rwlock_rdlock(&bm->gate);
	ret = read_gated(bm, buf, bytes, off, err);
	pthread_rwlock_unlock(&bm->gate);
	return ret;
}

/* ---- status ------------------------------------------------------------------------------------------------------ */

struct answer {
	struct status_extent *out;
	size_t cap, nr;
};

/* False: there is no room for it. */
static bool tell(struct answer *a, uint64_t off, uint64_t bytes, enum status_kind kind, uint64_t host_off)
{
	struct status_extent *last = a->nr > 0 ? &a->out[a->nr - 1] : NULL;

	if (last && last->kind == kind && (kind != STATUS_DATA || last->host_off + last->bytes == host_off)) {
		last->bytes += bytes;
		return true;
	}
	if (a->nr == a->cap)
		return false;
	a->out[a->nr++] = (struct status_extent){ .off = off, .bytes = bytes, .kind = kind, .host_off = host_off };
	return true;
}

/* What the host says of off, at most bytes. On some file systems each question walks to the next hole, however far it
 * is, and blocks of one disk lie behind each other in one piece of data: so one answer is kept for many questions. */
static int host_kind(struct blockmap *bm, uint64_t off, uint64_t bytes, struct status_extent *out,
		     struct img_error *err)
{
	uint64_t changes = atomic_load_explicit(&bm->changes, memory_order_acquire);
	struct host_holes *h = &bm->holes;
	size_t i = 0;
	int ret = 0;

	pthread_mutex_lock(&bm->holes_lock);
	if (h->nr == 0 || h->changes != changes || off < h->part[0].off || off >= h->end) {
		h->nr = 0;
		ret = node_status(bm->file, node_size(bm->file) - off, off, h->part, HOLES_MAX, &h->nr, err);
		h->changes = changes;
		h->end = ret == 0 && h->nr > 0 ? h->part[h->nr - 1].off + h->part[h->nr - 1].bytes : 0;
	}
	while (ret == 0 && i + 1 < h->nr && h->part[i + 1].off <= off)
		i++;
	if (ret == 0 && h->nr > 0) {
		*out = h->part[i];
		out->bytes = min_u64(out->off + out->bytes - off, bytes);
		out->off = off;
	} else {
		h->nr = 0;
		*out = (struct status_extent){ .off = off, .bytes = bytes, .kind = STATUS_DATA };
	}
	pthread_mutex_unlock(&bm->holes_lock);
	return ret;
}

/* Holes of the file are zeros: those of images that were made at full size, and blocks that were zeroed. */
static int tell_data(struct blockmap *bm, struct answer *a, const struct run *run, uint64_t off, uint64_t *told,
		     struct img_error *err)
{
	struct status_extent e;
	bool is_data;
	int ret;

	*told = 0;
	if (!range_inside(run->host_off, run->bytes, node_size(bm->file))) {
		*told = tell(a, off, run->bytes, STATUS_DATA, STATUS_NO_HOST) ? run->bytes : 0;
		return 0;
	}
	while (*told < run->bytes) {
		ret = host_kind(bm, run->host_off + *told, run->bytes - *told, &e, err);
		if (ret != 0)
			return ret;
		is_data = e.kind == STATUS_DATA;
		if (!tell(a, off + *told, e.bytes, is_data ? STATUS_DATA : STATUS_ZERO,
			  is_data ? e.off : STATUS_NO_HOST))
			break;
		*told += e.bytes;
	}
	return 0;
}

static int status_gated(struct blockmap *bm, uint64_t bytes, uint64_t off, struct answer *a, struct img_error *err)
{
	uint64_t told = 1;

	while (bytes > 0 && told > 0) {
		struct run run;
		int ret = run_at(bm, off, bytes, &run, err);

		if (ret != 0)
			return ret;
		if (run.state == BLOCKMAP_DATA)
			ret = tell_data(bm, a, &run, off, &told, err);
		else
			told = tell(a, off, run.bytes, run.state == BLOCKMAP_ZERO ? STATUS_ZERO : STATUS_UNALLOCATED,
				    STATUS_NO_HOST) ?
				       run.bytes :
				       0;
		if (ret != 0)
			return ret;
		off += told;
		bytes -= told;
		if (told < run.bytes && a->nr == a->cap)
			break;
	}
	return 0;
}

int blockmap_status_stopped(struct blockmap *bm, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			    size_t *nr, struct img_error *err)
{
	struct answer a = { .out = out, .cap = cap };
	int ret = status_gated(bm, bytes, off, &a, err);

	*nr = a.nr;
	return ret;
}

int blockmap_status(struct blockmap *bm, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		    size_t *nr, struct img_error *err)
{
	int ret;

	pthread_rwlock_rdlock(&bm->gate);
	ret = blockmap_status_stopped(bm, bytes, off, out, cap, nr, err);
	pthread_rwlock_unlock(&bm->gate);
	return ret;
}
