/* SPDX-License-Identifier: MIT */
/*
 * Writing. What is mapped to clusters of the image's own is overwritten in place, with no lock but gate. Anything else
 * goes run by run: the guest clusters are reserved (range), their entries read and the host clusters chosen (map), the
 * data written together with the old content around it (no lock), and only then the entries changed (map). So an entry
 * never refers to clusters whose data was not handed to the host before, and the first sync of a write-back covers it.
 *
 * A run is of clusters that all need new space, or that all have space of their own, contiguous, which does not hold
 * data yet everywhere: zero clusters with a reserved place, subclusters, external data files.
 *
 * Around a request smaller than its clusters the old content is filled in. Where that is zeros, and the new cluster
 * lies in a part of the file that was never written, nothing needs to be done: small random writes to an empty image
 * are one small write each.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_io.h"

#define RUN_MAX	    128u	 /* clusters */
#define COMPOSE_MAX (256u << 10) /* so much is put together in memory and written in one go */
#define STEP_MAX    (16u << 20)	 /* of a request, under one hold of gate */

struct run {
	uint64_t g, nr;	   /* guest clusters */
	uint64_t host;	   /* of the first */
	bool allocated;	   /* host is new: it goes back when something fails */
	bool fresh;	   /* and reads as zeros */
	uint64_t off, end; /* of the request, in guest bytes */
	uint64_t lo, hi;   /* what is to hold data afterwards */
	struct qcow2_entry old[RUN_MAX];
};

/* ---- ranges ---- */

void qcow2_range_begin(struct qcow2_engine *e, struct qcow2_inflight *r, uint64_t first, uint64_t last)
{
	struct qcow2_inflight *other;

	pthread_mutex_lock(&e->range_lock);
	do {
		other = e->inflight;
		while (other && (other->last < first || other->first > last))
			other = other->next;
		if (other)
			pthread_cond_wait(&e->range_cond, &e->range_lock);
	} while (other);
	*r = (struct qcow2_inflight){ first, last, e->inflight };
	e->inflight = r;
	pthread_mutex_unlock(&e->range_lock);
}

void qcow2_range_end(struct qcow2_engine *e, struct qcow2_inflight *r)
{
	struct qcow2_inflight **at = &e->inflight;

	pthread_mutex_lock(&e->range_lock);
	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	pthread_cond_broadcast(&e->range_cond);
	pthread_mutex_unlock(&e->range_lock);
}

/* ---- in place ---- */

int qcow2_guard(struct qcow2_engine *e, uint64_t host_off, uint64_t bytes, struct img_error *err)
{
	uint64_t where;

	if (!qcow2_meta_overlaps(e, host_off, bytes, &where))
		return 0;
	return qcow2_mark_corrupt(e, where, err, "data would be written over metadata at 0x%" PRIx64, where);
}

static int write_in_place(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t host_off,
			  struct img_error *err)
{
	uint64_t where;
	bool bad = false;
	int rc;

	if (!e->external) {
		pthread_rwlock_rdlock(&e->map);
		bad = qcow2_meta_overlaps(e, host_off, bytes, &where);
		pthread_rwlock_unlock(&e->map);
	}
	if (bad) {
		pthread_rwlock_wrlock(&e->map);
		rc = qcow2_guard(e, host_off, bytes, err);
		pthread_rwlock_unlock(&e->map);
		if (rc)
			return rc;
	}
	return node_pwrite(e->data, buf, bytes, host_off, 0, err);
}

/* ---- planning ---- */

/*
 * Which part of cluster i of the run has to be written so that the request's part [in, in_end) of it can be called
 * data; both are offsets in the cluster.
 */
static void window(const struct qcow2_engine *e, const struct run *r, const struct qcow2_entry *en, uint64_t in,
		   uint64_t in_end, uint64_t *lo, uint64_t *hi)
{
	bool packed = (en->desc & QCOW2_COMPRESSED) != 0;
	unsigned first, last;
	uint32_t data;

	*lo = 0;
	*hi = e->cluster_bytes;
	if (e->subclusters == 1) {
		if (!r->allocated && qcow2_entry_has_host(e, en->desc) && !(en->desc & QCOW2_ZERO)) {
			*lo = in;
			*hi = in_end;
		}
		return;
	}
	first = (unsigned)(in / e->sub_bytes);
	last = (unsigned)((in_end - 1) / e->sub_bytes);
	data = packed ? QCOW2_ALL_SUBCLUSTERS : qcow2_sub_allocated(en);
	if (!r->allocated) {
		*lo = data >> first & 1 ? in : first * e->sub_bytes;
		*hi = data >> last & 1 ? in_end : (last + 1) * e->sub_bytes;
		return;
	}
	data |= qcow2_sub_mask(first, last);
	*lo = (unsigned)__builtin_ctz(data) * e->sub_bytes;
	*hi = (32 - (unsigned)__builtin_clz(data)) * e->sub_bytes;
}

static uint64_t cluster_start(const struct qcow2_engine *e, uint64_t g)
{
	return g << e->cluster_bits;
}

static void plan_window(const struct qcow2_engine *e, struct run *r)
{
	uint64_t start = cluster_start(e, r->g), last = cluster_start(e, r->g + r->nr - 1), lo, hi;

	window(e, r, &r->old[0], r->off - start, min_u64(r->end - start, e->cluster_bytes), &lo, &hi);
	r->lo = start + lo;
	if (r->nr > 1)
		window(e, r, &r->old[r->nr - 1], 0, r->end - last, &lo, &hi);
	r->hi = last + hi;
}

/* Where entry en of guest cluster g may be written as it stands. */
static bool own_place(const struct qcow2_engine *e, uint64_t g, const struct qcow2_entry *en, uint64_t *host)
{
	*host = e->external ? cluster_start(e, g) : en->desc & QCOW2_OFFSET_MASK;
	return e->external || qcow2_entry_owned(e, g, en->desc);
}

/* Entries from r->g on, as long as they are of one class; their places in r->host where they have them. map wr. */
static int plan_entries(struct qcow2_engine *e, struct run *r, uint64_t max, bool *own, struct img_error *err)
{
	r->nr = 0;
	for (uint64_t i = 0; i < max; i++) {
		struct qcow2_entry *en = &r->old[i];
		uint64_t host;
		bool mine;
		int rc = qcow2_entry_get(e, r->g + i, en, err);

		if (!rc)
			rc = qcow2_entry_check(e, en, cluster_start(e, r->g + i), err);
		if (rc)
			return rc;
		mine = own_place(e, r->g + i, en, &host);
		if (i == 0) {
			*own = mine;
			r->host = host;
		} else if (mine != *own || (mine && host != r->host + cluster_start(e, i))) {
			break;
		}
		r->nr = i + 1;
	}
	return 0;
}

static int plan_run(struct qcow2_engine *e, struct run *r, uint64_t bytes, struct img_error *err)
{
	uint64_t last = (r->off + bytes - 1) >> e->cluster_bits, old_end = e->file_end, got;
	bool own = false;
	int rc;

	r->g = r->off >> e->cluster_bits;
	rc = plan_entries(e, r, min_u64(last - r->g + 1, RUN_MAX), &own, err);
	if (rc)
		return rc;
	r->allocated = !own;
	r->fresh = false;
	if (!own) {
		rc = qcow2_alloc(e, r->nr, &r->host, &got, err);
		if (rc)
			return rc;
		r->nr = got;
		r->fresh = r->host >= old_end;
	}
	r->end = min_u64(r->off + bytes, cluster_start(e, r->g + r->nr));
	plan_window(e, r);
	return e->external ? 0 : qcow2_guard(e, r->host, cluster_start(e, r->nr), err);
}

/* ---- data ---- */

/* Copies old content of [from, to) to its new place. */
static int fill(struct qcow2_engine *e, struct qcow2_view *v, const struct run *r, uint64_t from, uint64_t to,
		struct img_error *err)
{
	uint64_t step = min_u64(to - from, COMPOSE_MAX);
	uint8_t *buf;
	int rc = 0;

	if (from >= to)
		return 0;
	buf = malloc((size_t)step);
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (; !rc && from < to; from += step) {
		step = min_u64(step, to - from);
		rc = qcow2_view_read_held(v, buf, step, from, err);
		if (!rc)
			rc = node_pwrite(e->data, buf, step, r->host + (from - cluster_start(e, r->g)), 0, err);
	}
	free(buf);
	return rc;
}

/* Old content before and behind the request, and the request, in one write. */
static int write_composed(struct qcow2_engine *e, struct qcow2_view *v, const struct run *r, const uint8_t *src,
			  uint64_t lo, uint64_t hi, struct img_error *err)
{
	uint8_t *buf = malloc((size_t)(hi - lo));
	int rc = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (lo < r->off)
		rc = qcow2_view_read_held(v, buf, r->off - lo, lo, err);
	memcpy(buf + (r->off - lo), src, (size_t)(r->end - r->off));
	if (!rc && r->end < hi)
		rc = qcow2_view_read_held(v, buf + (r->end - lo), hi - r->end, r->end, err);
	if (!rc)
		rc = node_pwrite(e->data, buf, hi - lo, r->host + (lo - cluster_start(e, r->g)), 0, err);
	free(buf);
	return rc;
}

static int write_data(struct qcow2_engine *e, const struct run *r, const uint8_t *src, struct img_error *err)
{
	struct qcow2_view v = qcow2_head_view(e);
	uint64_t lo = r->lo, hi = r->hi;
	int rc;

	if (r->fresh && lo < r->off && qcow2_reads_zero(&v, lo, r->off - lo))
		lo = r->off;
	if (r->fresh && r->end < hi && qcow2_reads_zero(&v, r->end, hi - r->end))
		hi = r->end;
	if ((lo < r->off || r->end < hi) && hi - lo <= COMPOSE_MAX)
		return write_composed(e, &v, r, src, lo, hi, err);
	rc = fill(e, &v, r, lo, r->off, err);
	if (!rc)
		rc = node_pwrite(e->data, src, r->end - r->off, r->host + (r->off - cluster_start(e, r->g)), 0, err);
	return rc ? rc : fill(e, &v, r, r->end, hi, err);
}

/* ---- entries ---- */

static struct qcow2_entry new_entry(const struct qcow2_engine *e, const struct run *r, uint64_t i)
{
	uint64_t start = cluster_start(e, r->g + i), lo, hi;
	struct qcow2_entry en = { .desc = (r->host + cluster_start(e, i)) | QCOW2_COPIED };
	uint32_t data, zero;

	if (e->subclusters == 1)
		return en;
	lo = max_u64(r->lo, start) - start;
	hi = min_u64(r->hi, start + e->cluster_bytes) - start;
	data = qcow2_sub_mask((unsigned)(lo / e->sub_bytes), (unsigned)((hi - 1) / e->sub_bytes));
	if (!r->allocated)
		data |= qcow2_sub_allocated(&r->old[i]);
	zero = r->old[i].desc & QCOW2_COMPRESSED ? 0 : qcow2_sub_zero(&r->old[i]) & ~data;
	en.bitmap = qcow2_bitmap_of(data, zero);
	return en;
}

/* map wr. nr of the new clusters are in use afterwards, also on failure. */
static int set_entries(struct qcow2_engine *e, const struct run *r, uint64_t *nr, struct img_error *err)
{
	int rc = 0;

	for (*nr = 0; !rc && *nr < r->nr; ++*nr) {
		const struct qcow2_entry *old = &r->old[*nr];
		struct qcow2_entry en = new_entry(e, r, *nr);

		if (en.desc == old->desc && en.bitmap == old->bitmap)
			continue;
		rc = qcow2_entry_set(e, r->g + *nr, &en, err);
		if (rc)
			return rc;
		if (r->allocated)
			rc = qcow2_free_entry(e, old->desc, err);
	}
	return rc;
}

/* The start of [off, off + bytes) that makes one run; the range is the caller's. */
static int write_run(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off, uint64_t *done,
		     struct img_error *err)
{
	struct run r;
	uint64_t used = 0;
	int rc;

	r.off = off;
	pthread_rwlock_wrlock(&e->map);
	rc = plan_run(e, &r, bytes, err);
	pthread_rwlock_unlock(&e->map);
	if (rc)
		return rc;
	rc = write_data(e, &r, buf, err);
	pthread_rwlock_wrlock(&e->map);
	if (!rc)
		rc = set_entries(e, &r, &used, err);
	if (rc && r.allocated && used < r.nr)
		qcow2_free(e, r.host + cluster_start(e, used), r.nr - used, NULL);
	pthread_rwlock_unlock(&e->map);
	*done = r.end - off;
	return rc;
}

static int write_ranged(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct qcow2_inflight range;
	int rc = 0;

	qcow2_range_begin(e, &range, off >> e->cluster_bits, (off + bytes - 1) >> e->cluster_bits);
	while (!rc && bytes) {
		uint64_t done = 0;

		rc = write_run(e, buf, bytes, off, &done, err);
		buf += done;
		off += done;
		bytes -= done;
	}
	qcow2_range_end(e, &range);
	return rc;
}

int qcow2_write_held(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct qcow2_view v = qcow2_head_view(e);

	while (bytes) {
		struct qcow2_mapping m;
		int rc = qcow2_map(&v, off, bytes, &m, err);

		if (!rc && m.kind == MAP_DATA && m.in_place) {
			rc = write_in_place(e, buf, m.bytes, m.host_off, err);
		} else if (!rc) {
			/* What follows may be in place again; the runs find that out. */
			m.bytes = bytes;
			rc = write_ranged(e, buf, bytes, off, err);
		}
		if (rc)
			return rc;
		buf += m.bytes;
		off += m.bytes;
		bytes -= m.bytes;
	}
	return 0;
}

/* ---- requests ---- */

static int write_plain(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int rc = 0;

	while (!rc && bytes) {
		uint64_t n = min_u64(bytes, STEP_MAX);

		rc = qcow2_make_room(e, err);
		if (rc)
			return rc;
		pthread_rwlock_rdlock(&e->gate);
		rc = qcow2_write_held(e, buf, n, off, err);
		pthread_rwlock_unlock(&e->gate);
		buf += n;
		off += n;
		bytes -= n;
	}
	return rc;
}

/* Whole clusters go to compress.c; the last one of the disk counts as whole where the request reaches its end. */
static int write_compressing(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off,
			     struct img_error *err)
{
	uint64_t end = off + bytes, disk = atomic_load(&e->disk_bytes), tail = end == disk ? end % e->cluster_bytes : 0;
	uint64_t first = round_up(off, e->cluster_bytes), last = round_down(end, e->cluster_bytes), stop;
	int rc = 0;

	if (tail && last >= first)
		last += e->cluster_bytes;
	else
		tail = 0;
	if (first >= last)
		return write_plain(e, buf, bytes, off, err);
	stop = min_u64(last, end);
	if (off < first)
		rc = write_plain(e, buf, first - off, off, err);
	if (!rc)
		rc = qcow2_write_packed(e, buf + (first - off), first >> e->cluster_bits,
					(last - first) >> e->cluster_bits, tail, err);
	if (!rc && stop < end)
		rc = write_plain(e, buf + (stop - off), end - stop, stop, err);
	return rc;
}

int qcow2_write(struct qcow2_engine *e, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		struct img_error *err)
{
	uint64_t disk = atomic_load(&e->disk_bytes);
	int rc = qcow2_touch(e, err);

	if (rc)
		return rc;
	if (off < disk)
		qcow2_bitmaps_note(e, off, min_u64(bytes, disk - off));
	if ((flags & IMG_IO_COMPRESS) && !e->external && off < disk)
		return write_compressing(e, buf, bytes, off, err);
	return write_plain(e, buf, bytes, off, err);
}
