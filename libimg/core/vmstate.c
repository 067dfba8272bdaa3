/* SPDX-License-Identifier: MIT */
/*
 * Machine state of an image: checks of arguments, the format's own doing, and loading into memory.
 *
 * A load begins with one anonymous mapping over the whole range, so that holes are fresh zero pages, and nothing of an
 * older load (which may be file pages that have lost their file) is left below. Then, extent by extent as the format
 * tells them, runs that lie plain and page-aligned in the file are mapped from it and the rest is read. Reading
 * verifies and mapping does not, and every mapping costs a system call, a kernel object of which a process has a
 * limited number, and faults later: short runs are read. How short is decided by a walk over the extents before.
 */
#include <sys/mman.h>
#include <unistd.h>

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "image_int.h"

#define LAYER "vmstate"

#define VERIFY_BYTES   (256u << 10)
#define MAP_MIN_PAGES  2u    /* a page is read about as fast as it is mapped, and costs no fault later */
#define MAP_MAX_RUNS   8192u /* of one load; the kernel's default limit is 65530 mappings of a process */
#define STATUS_BATCH   64u
#define NR_RUN_CLASSES 64u /* of runs, by the power of two in their length */

static int begin(struct img *img, const char *snapshot, struct img_error *err)
{
	error_clear(err);
	if (!img)
		return image_invalid(err, "no image");
	return snapshot ? image_check_given_snapshot(snapshot, err) : 0;
}

int img_vmstate_write(struct img *img, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret = begin(img, NULL, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_vmstate_write(img->top, buf, bytes, off, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_vmstate_zero(struct img *img, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret = begin(img, NULL, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_vmstate_zero(img->top, bytes, off, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_vmstate_read(struct img *img, const char *snapshot, void *buf, uint64_t bytes, uint64_t off,
		     struct img_error *err)
{
	int ret = begin(img, snapshot, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_vmstate_read(img->top, snapshot, buf, bytes, off, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_vmstate_resize(struct img *img, uint64_t bytes, struct img_error *err)
{
	int ret = begin(img, NULL, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_wrlock(&img->content_lock);
	ret = node_vmstate_resize(img->top, bytes, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_vmstate_size(struct img *img, const char *snapshot, uint64_t *bytes, struct img_error *err)
{
	int ret = begin(img, snapshot, err);

	if (ret == 0 && !bytes)
		ret = image_invalid(err, "no place for the size");
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_vmstate_size(img->top, snapshot, bytes, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int image_vmstate_hole(struct img *img, const char *snapshot, uint64_t bytes, uint64_t off, bool *hole, uint64_t *run,
		       struct img_error *err)
{
	struct status_extent x = { .bytes = bytes };
	size_t nr;
	int ret;

	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_vmstate_status(img->top, snapshot, bytes, off, &x, 1, &nr, err);
	pthread_rwlock_unlock(&img->content_lock);
	*hole = x.kind != STATUS_DATA && x.kind != STATUS_COMPRESSED;
	*run = x.bytes;
	return ret;
}

/* ---- the layout -------------------------------------------------------------------------------------------------- */

static int check_range(struct node *node, const char *snapshot, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size;
	int ret = node_vmstate_size(node, snapshot, &size, err);

	if (ret != 0 || range_inside(off, bytes, size))
		return ret;
	return error_set(err, IMG_E_INVALID, 0, off, LAYER,
			 "%s: machine state ends at 0x%llx: it does not hold 0x%llx bytes at 0x%llx", node->path,
			 (unsigned long long)size, (unsigned long long)bytes, (unsigned long long)off);
}

typedef int (*extent_fn)(void *ctx, const struct status_extent *x, struct img_error *err);

/* Does b go on where a ends, in the volume and in the file? */
static bool continues(const struct status_extent *a, const struct status_extent *b)
{
	if (a->kind != b->kind)
		return false;
	if (a->kind != STATUS_DATA || (a->host_off == STATUS_NO_HOST && b->host_off == STATUS_NO_HOST))
		return true;
	return a->host_off != STATUS_NO_HOST && b->host_off != STATUS_NO_HOST && a->host_off + a->bytes == b->host_off;
}

/* Calls fn for the extents of [off, off + bytes), ascending, neighbours that continue each other as one. */
static int each_extent(struct node *node, const char *snapshot, uint64_t bytes, uint64_t off, extent_fn fn, void *ctx,
		       struct img_error *err)
{
	struct status_extent batch[STATUS_BATCH], x = { 0 };
	uint64_t end = off + bytes;

	while (off < end) {
		size_t nr;
		int ret = node_vmstate_status(node, snapshot, end - off, off, batch, STATUS_BATCH, &nr, err);

		for (size_t i = 0; ret == 0 && i < nr; i++) {
			if (x.bytes > 0 && continues(&x, &batch[i])) {
				x.bytes += batch[i].bytes;
				continue;
			}
			if (x.bytes > 0)
				ret = fn(ctx, &x, err);
			x = batch[i];
		}
		if (ret != 0)
			return ret;
		off = batch[nr - 1].off + batch[nr - 1].bytes;
	}
	return x.bytes > 0 ? fn(ctx, &x, err) : 0;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

struct load {
	struct node *node;
	const char *snapshot;
	uint8_t *addr; /* of off */
	uint64_t off, page_bytes;
	uint64_t file_bytes; /* a page beyond the file's end would be a SIGBUS */
	uint64_t nr_runs[NR_RUN_CLASSES];
	unsigned last_class; /* shorter runs are not mapped; maps_left counts those of this class ... */
	bool planned;	     /* ... and, where this is false, those above it, too */
	uint64_t maps_left;
	bool too_many;		       /* to be planned: nothing else counts */
	uint64_t read_off, read_bytes; /* to be read in one go */
};

/* The whole pages of x that can be mapped, where they are worth it. */
static bool mappable(const struct load *l, const struct status_extent *x, uint64_t *first, uint64_t *last,
		     uint64_t *host_off)
{
	if (x->kind != STATUS_DATA || x->host_off == STATUS_NO_HOST)
		return false;
	*first = round_up(x->off, l->page_bytes);
	*last = round_down(x->off + x->bytes, l->page_bytes);
	*host_off = x->host_off + (*first - x->off);
	return *first < *last && *last - *first >= MAP_MIN_PAGES * l->page_bytes && *host_off % l->page_bytes == 0 &&
	       range_inside(*host_off, *last - *first, l->file_bytes);
}

static unsigned run_class(uint64_t bytes)
{
	return 63u - (unsigned)__builtin_clzll(bytes);
}

static int count_run(void *ctx, const struct status_extent *x, struct img_error *err)
{
	struct load *l = ctx;
	uint64_t first, last, host_off;

	(void)err;
	if (mappable(l, x, &first, &last, &host_off))
		l->nr_runs[run_class(last - first)]++;
	return 0;
}

/* The longest runs are mapped: all above some length, and as many of the class below as may be. */
static void plan_runs(struct load *l)
{
	unsigned class = NR_RUN_CLASSES;

	l->maps_left = MAP_MAX_RUNS;
	while (class > 0 && l->nr_runs[class - 1] <= l->maps_left)
		l->maps_left -= l->nr_runs[--class];
	l->last_class = class > 0 ? class - 1 : 0;
	l->planned = true;
	l->too_many = false;
}

static bool chosen(struct load *l, uint64_t bytes)
{
	unsigned class = run_class(bytes);

	if (class < l->last_class)
		return false;
	if (l->planned && class > l->last_class)
		return true;
	if (l->maps_left == 0) {
		l->too_many = !l->planned;
		return false;
	}
	l->maps_left--;
	return true;
}

static int fresh_pages(void *addr, uint64_t bytes, struct img_error *err)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;

	if (mmap(addr, (size_t)bytes, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED)
		return 0;
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no mapping of 0x%llx bytes for machine state",
			 (unsigned long long)bytes);
}

static int read_pending(struct load *l, struct img_error *err)
{
	uint64_t bytes = l->read_bytes;

	l->read_bytes = 0;
	return node_vmstate_read(l->node, l->snapshot, l->addr + (l->read_off - l->off), bytes, l->read_off, err);
}

/* Blocks that follow each other in the volume are read together, wherever they lie in the file. */
static int read_part(struct load *l, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret = 0;

	if (bytes == 0)
		return 0;
	if (l->read_bytes > 0 && l->read_off + l->read_bytes != off)
		ret = read_pending(l, err);
	if (l->read_bytes == 0)
		l->read_off = off;
	l->read_bytes += bytes;
	return ret;
}

static int load_extent(void *ctx, const struct status_extent *x, struct img_error *err)
{
	struct load *l = ctx;
	uint64_t first, last, host_off;
	void *at;
	int ret;

	if (l->too_many || (x->kind != STATUS_DATA && x->kind != STATUS_COMPRESSED))
		return 0;
	if (!mappable(l, x, &first, &last, &host_off) || !chosen(l, last - first))
		return read_part(l, x->bytes, x->off, err);
	ret = read_part(l, first - x->off, x->off, err);
	if (ret != 0)
		return ret;
	at = l->addr + (first - l->off);
	if (node_vmstate_map(l->node, at, last - first, host_off, NULL) == 0)
		return read_part(l, x->off + x->bytes - last, last, err);
	/* The file, or the number of mappings, has its limits. The pages may be gone. */
	ret = fresh_pages(at, last - first, err);
	return ret == 0 ? read_part(l, x->off + x->bytes - first, first, err) : ret;
}

/*
 * Who maps and then writes a page of the working volume has a copy of that page, and no other. But the block moves as a
 * whole: where it is larger, its other pages would be those of freed space.
 */
static bool may_map(const struct load *l)
{
	struct driver_limits limits;

	node_limits(l->node, &limits);
	return !l->node->writable || limits.block_bytes <= l->page_bytes;
}

static int load_all(struct load *l, uint64_t bytes, struct img_error *err)
{
	int ret = fresh_pages(l->addr, bytes, err);

	l->read_bytes = 0;
	if (ret == 0)
		ret = each_extent(l->node, l->snapshot, bytes, l->off, load_extent, l, err);
	return ret == 0 && !l->too_many && l->read_bytes > 0 ? read_pending(l, err) : ret;
}

static int load(struct load *l, uint64_t bytes, unsigned flags, struct img_error *err)
{
	const struct node *owner = l->node->view_of ? l->node->view_of : l->node;
	struct host_stat host = { 0 };
	int ret = 0;

	if ((flags & IMG_VMSTATE_MAP) && owner->file && may_map(l))
		ret = node_stat(owner->file, &host, err);
	if (ret != 0)
		return ret;
	l->file_bytes = host.file_bytes;
	l->maps_left = MAP_MAX_RUNS;
	ret = load_all(l, bytes, err);
	if (ret != 0 || !l->too_many)
		return ret;
	/* Once more, with the best of them. */
	ret = each_extent(l->node, l->snapshot, bytes, l->off, count_run, l, err);
	plan_runs(l);
	return ret == 0 ? load_all(l, bytes, err) : ret;
}

int img_vmstate_load(struct img *img, const char *snapshot, void *addr, uint64_t bytes, uint64_t off, unsigned flags,
		     struct img_error *err)
{
	struct load l = { .snapshot = snapshot, .addr = addr, .off = off };
	int ret = begin(img, snapshot, err);

	l.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	if (ret == 0)
		ret = image_check_flags(flags, IMG_VMSTATE_MAP, err);
	if (ret == 0 &&
	    (((uintptr_t)addr | bytes | off) % l.page_bytes != 0 || (!addr && bytes > 0) || bytes > PTRDIFF_MAX))
		ret = image_invalid(err, "machine state is loaded into whole pages, from offsets of whole pages");
	if (ret != 0)
		return ret;
	l.node = img->top;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = check_range(img->top, snapshot, bytes, off, err);
	if (ret == 0 && bytes > 0)
		ret = load(&l, bytes, flags, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

/* ---- verifying --------------------------------------------------------------------------------------------------- */

struct verify {
	struct node *node;
	const char *snapshot;
	uint8_t *buf; /* VERIFY_BYTES */
};

static int verify_extent(void *ctx, const struct status_extent *x, struct img_error *err)
{
	const struct verify *v = ctx;
	uint64_t off = x->off, end = x->off + x->bytes;
	int ret = 0;

	if (x->kind != STATUS_DATA && x->kind != STATUS_COMPRESSED)
		return 0;
	while (ret == 0 && off < end) {
		uint64_t stop = min_u64(end, round_down(off, VERIFY_BYTES) + VERIFY_BYTES);

		ret = node_vmstate_read(v->node, v->snapshot, v->buf, stop - off, off, err);
		off = stop;
	}
	return ret;
}

int img_vmstate_verify(struct img *img, const char *snapshot, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct verify v = { .snapshot = snapshot };
	int ret = begin(img, snapshot, err);

	if (ret != 0)
		return ret;
	v.buf = malloc(VERIFY_BYTES);
	if (!v.buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	v.node = img->top;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = check_range(img->top, snapshot, bytes, off, err);
	if (ret == 0)
		ret = each_extent(img->top, snapshot, bytes, off, verify_extent, &v, err);
	pthread_rwlock_unlock(&img->content_lock);
	free(v.buf);
	return ret;
}
