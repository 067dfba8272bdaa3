/* SPDX-License-Identifier: MIT */
/*
 * The transfer engine. A piece is an aligned window of the target, 1 MiB or a compression unit, whichever is larger,
 * with the ranges that the plan names in it. Members of the team claim pieces in ascending order under one lock, which
 * also covers the plan, and then read and write without it. Long runs without data are passed over, or zeroed in one
 * request, without being cut into pieces.
 *
 * What a member writes is a sequence of runs: neighbouring bytes with one fate, data or zeros, gathered across the
 * ranges of the piece so that the target sees few and large requests. Memory: one or two buffers of a piece for each
 * member.
 */
#include "transfer.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "is_zero.h"
#include "team.h"

#define MIN_PIECE_BYTES (UINT64_C(1) << 20)
#define MAX_PIECE_BYTES (UINT64_C(16) << 20) /* bounds memory whatever unit an image claims */
#define BLOCK_PIECE_BYTES \
	(UINT64_C(2) << 20) /* larger blocks of a target are filled by several members: VHDX has 256 MiB */
#define MAX_ZERO_BYTES	  (UINT64_C(1) << 30) /* in one request, so that cancelling does not wait long */
#define GRANULE_BYTES	  4096		      /* zeros and differences are looked for in steps of this */
#define MAX_GRANULE_BYTES 65536
#define PIECE_SEGS	  320 /* a piece of 4 KiB blocks in turns, and some */
#define BUFFER_ALIGN	  4096

struct seg {
	uint64_t off, bytes;
	enum transfer_action action;
};

struct piece {
	uint64_t off, bytes;
	uint64_t passed_bytes; /* skipped on the way to it */
	size_t nr;
	struct seg seg[PIECE_SEGS];
};

struct job {
	const struct transfer *t;
	uint64_t piece_bytes;
	uint64_t unit_bytes;	/* 0: nothing is to be compressed */
	uint64_t granule_bytes; /* of differences */
	uint64_t src_bytes, base_bytes, dst_bytes;

	pthread_mutex_t lock;
	uint64_t next_off;  /* lock: where the next piece begins */
	struct seg planned; /* lock: the plan's last answer */
};

struct member {
	struct job *job;
	struct piece piece;
	uint8_t *buf;  /* content of the piece */
	uint8_t *base; /* content of the base there; NULL if there is none */
	/* The run that is being gathered. */
	uint64_t run_off, run_bytes;
	bool run_zero;
};

/* Makes job->planned cover job->next_off. */
static int plan_next(struct job *job, struct img_error *err)
{
	struct seg *s = &job->planned;
	int r;

	if (job->next_off - s->off < s->bytes)
		return 0;
	s->off = job->next_off;
	s->bytes = 0;
	r = job->t->plan(job->t->ctx, s->off, &s->bytes, &s->action, err);
	if (r < 0)
		return r;
	s->bytes = min_u64(s->bytes, job->t->bytes - s->off);
	return 0;
}

static void add_seg(struct piece *p, uint64_t off, uint64_t bytes, enum transfer_action action)
{
	struct seg *last = p->nr > 0 ? &p->seg[p->nr - 1] : NULL;

	if (last && last->action == action) {
		last->bytes += bytes;
		return;
	}
	p->seg[p->nr++] = (struct seg){ .off = off, .bytes = bytes, .action = action };
}

/* Passes over, or takes whole, a range without data that reaches beyond the piece. Returns whether it did. */
static bool take_long_range(struct job *job, struct piece *p)
{
	const struct seg *s = &job->planned;
	uint64_t end = s->off + s->bytes, limit = round_down(job->next_off, job->piece_bytes) + job->piece_bytes;

	if (end <= limit || (s->action != TRANSFER_SKIP && s->action != TRANSFER_ZERO))
		return false;
	if (end < job->t->bytes)
		end = round_down(end, job->piece_bytes); /* the rest shares a piece with what follows */
	if (s->action == TRANSFER_SKIP) {
		p->passed_bytes += end - job->next_off;
	} else {
		end = min_u64(end, job->next_off + MAX_ZERO_BYTES);
		add_seg(p, job->next_off, end - job->next_off, TRANSFER_ZERO);
	}
	job->next_off = end;
	return true;
}

/* Fills p with the next piece; p->nr is 0 when there is none. Needs job->lock. */
static int claim_locked(struct job *job, struct piece *p, struct img_error *err)
{
	uint64_t total = job->t->bytes;

	p->nr = 0;
	p->passed_bytes = 0;
	while (p->nr == 0 && job->next_off < total) {
		uint64_t limit = min_u64(total, round_down(job->next_off, job->piece_bytes) + job->piece_bytes);

		p->off = job->next_off;
		while (job->next_off < limit && p->nr < PIECE_SEGS) {
			uint64_t bytes;
			int r = plan_next(job, err);

			if (r < 0)
				return r;
			if (p->nr == 0 && take_long_range(job, p))
				break;
			bytes = min_u64(limit, job->planned.off + job->planned.bytes) - job->next_off;
			add_seg(p, job->next_off, bytes, job->planned.action);
			job->next_off += bytes;
		}
		p->bytes = job->next_off - p->off;
		if (p->nr == 1 && p->seg[0].action == TRANSFER_SKIP) {
			p->passed_bytes += p->bytes;
			p->nr = 0;
		}
	}
	return 0;
}

static int claim(struct job *job, struct piece *p, struct img_error *err)
{
	int r;

	pthread_mutex_lock(&job->lock);
	r = claim_locked(job, p, err);
	pthread_mutex_unlock(&job->lock);
	return r;
}

/* Reads [off, off + bytes), with zeros beyond the image's end. */
static int read_padded(struct img *img, uint64_t img_bytes, uint8_t *buf, uint64_t bytes, uint64_t off,
		       struct img_error *err)
{
	uint64_t inside = off >= img_bytes ? 0 : min_u64(bytes, img_bytes - off);

	memset(buf + inside, 0, (size_t)(bytes - inside));
	return inside > 0 ? img_pread(img, buf, inside, off, 0, err) : 0;
}

static int read_piece(struct member *m, struct img_error *err)
{
	const struct job *job = m->job;
	const struct piece *p = &m->piece;
	int r = 0;

	for (size_t i = 0; i < p->nr && r == 0; i++) {
		const struct seg *s = &p->seg[i];

		if (s->action != TRANSFER_DATA && s->action != TRANSFER_DIFF)
			continue;
		r = read_padded(job->t->src, job->src_bytes, m->buf + (s->off - p->off), s->bytes, s->off, err);
		if (r == 0 && s->action == TRANSFER_DIFF && m->base) /* which it is only where there is one */
			r = read_padded(job->t->base, job->base_bytes, m->base + (s->off - p->off), s->bytes, s->off,
					err);
	}
	return r;
}

static int finish_run(struct member *m, struct img_error *err)
{
	const struct transfer *t = m->job->t;
	uint64_t bytes = m->run_bytes;

	m->run_bytes = 0;
	if (bytes == 0)
		return 0;
	if (m->run_zero)
		return img_zero(t->dst, bytes, m->run_off, 0, err);
	return img_pwrite(t->dst, m->buf + (m->run_off - m->piece.off), bytes, m->run_off,
			  m->job->unit_bytes ? IMG_IO_COMPRESS : 0, err);
}

/* Adds bytes to the run, or ends it and begins another. */
static int add_run(struct member *m, uint64_t off, uint64_t bytes, bool zero, struct img_error *err)
{
	int r;

	if (m->run_bytes > 0 && m->run_zero == zero && m->run_off + m->run_bytes == off) {
		m->run_bytes += bytes;
		return 0;
	}
	r = finish_run(m, err);
	m->run_off = off;
	m->run_bytes = bytes;
	m->run_zero = zero;
	return r;
}

/* Zeros that come from the source; a target that reads as zeros needs none. */
static int add_zeroes(struct member *m, uint64_t off, uint64_t bytes, struct img_error *err)
{
	return m->job->t->flags & IMG_COPY_TARGET_ZERO ? 0 : add_run(m, off, bytes, true, err);
}

static int add_data(struct member *m, uint64_t off, uint64_t bytes, struct img_error *err)
{
	const uint8_t *buf = m->buf + (off - m->piece.off);
	uint64_t step;
	int r = 0;

	if (m->job->t->flags & IMG_COPY_NO_DETECT)
		return add_run(m, off, bytes, false, err);
	for (; bytes > 0 && r == 0; off += step, buf += step, bytes -= step) {
		step = min_u64(bytes, GRANULE_BYTES - off % GRANULE_BYTES);
		r = is_zero(buf, (size_t)step) ? add_zeroes(m, off, step, err) : add_run(m, off, step, false, err);
	}
	return r;
}

static int add_difference(struct member *m, uint64_t off, uint64_t bytes, struct img_error *err)
{
	const uint8_t *buf = m->buf + (off - m->piece.off), *base = m->base + (off - m->piece.off);
	uint64_t step;
	int r = 0;

	for (; bytes > 0 && r == 0; off += step, buf += step, base += step, bytes -= step) {
		step = min_u64(bytes, m->job->granule_bytes - off % m->job->granule_bytes);
		if (memcmp(buf, base, (size_t)step) != 0)
			r = add_run(m, off, step, is_zero(buf, (size_t)step), err);
	}
	return r;
}

/* Writes [off, off + bytes) of the piece range by range. */
static int write_segs(struct member *m, uint64_t off, uint64_t bytes, struct img_error *err)
{
	const struct piece *p = &m->piece;
	int r = 0;

	for (size_t i = 0; i < p->nr && r == 0; i++) {
		const struct seg *s = &p->seg[i];
		uint64_t from = max_u64(s->off, off), to = min_u64(s->off + s->bytes, off + bytes);

		if (from >= to)
			continue;
		if (s->action == TRANSFER_ZERO)
			r = add_run(m, from, to - from, true, err);
		else if (s->action == TRANSFER_DATA)
			r = add_data(m, from, to - from, err);
		else if (s->action == TRANSFER_DIFF)
			r = add_difference(m, from, to - from, err);
	}
	return r;
}

/*
 * Can [off, off + bytes) be written as one compressed unit? Yes if it is a whole one that holds some data, and if all
 * else in it is known to be zeros, which are then put into the buffer.
 */
static bool complete_unit(struct member *m, uint64_t off, uint64_t bytes)
{
	const struct job *job = m->job;
	const struct piece *p = &m->piece;
	bool has_data = false;

	if (off % job->unit_bytes != 0 || (bytes != job->unit_bytes && off + bytes != job->dst_bytes))
		return false;
	for (size_t i = 0; i < p->nr; i++) {
		const struct seg *s = &p->seg[i];
		uint64_t from = max_u64(s->off, off), to = min_u64(s->off + s->bytes, off + bytes);

		if (from >= to)
			continue;
		if (s->action == TRANSFER_DIFF ||
		    (s->action == TRANSFER_SKIP && !(job->t->flags & IMG_COPY_TARGET_ZERO)))
			return false;
		if (s->action == TRANSFER_DATA)
			has_data = true;
		else
			memset(m->buf + (from - p->off), 0, (size_t)(to - from));
	}
	return has_data;
}

static int write_units(struct member *m, struct img_error *err)
{
	const struct piece *p = &m->piece;
	uint64_t unit = m->job->unit_bytes, off = p->off, end = p->off + p->bytes, bytes;
	int r = 0;

	for (; off < end && r == 0; off += bytes) {
		bytes = min_u64(end - off, unit - off % unit);
		if (!complete_unit(m, off, bytes))
			r = write_segs(m, off, bytes, err);
		else if (is_zero(m->buf + (off - p->off), (size_t)bytes))
			r = add_zeroes(m, off, bytes, err);
		else
			r = add_run(m, off, bytes, false, err);
	}
	return r;
}

static int do_piece(struct member *m, struct img_error *err)
{
	const struct piece *p = &m->piece;
	int r;

	if (p->nr == 1 && p->seg[0].action == TRANSFER_ZERO) /* may be longer than the buffer */
		return img_zero(m->job->t->dst, p->seg[0].bytes, p->seg[0].off, 0, err);
	r = read_piece(m, err);
	m->run_bytes = 0;
	if (r == 0)
		r = m->job->unit_bytes ? write_units(m, err) : write_segs(m, p->off, p->bytes, err);
	return r == 0 ? finish_run(m, err) : r;
}

static int do_pieces(struct team *team, struct member *m, struct img_error *err)
{
	while (!team_stopping(team)) {
		struct piece *p = &m->piece;
		int r = claim(m->job, p, err);

		if (r == 0 && p->nr > 0)
			r = do_piece(m, err);
		if (r == 0)
			r = team_advance(team, p->passed_bytes + (p->nr > 0 ? p->bytes : 0), err);
		if (r < 0 || p->nr == 0)
			return r;
	}
	return 0;
}

static int work(struct team *team, void *ctx, struct img_error *err)
{
	struct job *job = ctx;
	struct member *m = calloc(1, sizeof(*m));
	int r = IMG_E_NOMEM;

	if (m) {
		m->job = job;
		m->buf = aligned_alloc(BUFFER_ALIGN, (size_t)job->piece_bytes);
		m->base = job->t->base ? aligned_alloc(BUFFER_ALIGN, (size_t)job->piece_bytes) : NULL;
		if (m->buf && (m->base || !job->t->base))
			r = do_pieces(team, m, err);
		free(m->buf);
		free(m->base);
		free(m);
	}
	return r == IMG_E_NOMEM ? error_set(err, r, 0, NO_OFFSET, "core", "no memory for a copy buffer") : r;
}

/* Pieces hold whole units of both sides; sizes that are no power of two come from damaged or foreign images and do not
 * count. */
static uint64_t choose_piece_bytes(const struct img_limits *src, const struct img_limits *dst)
{
	uint64_t bytes = MIN_PIECE_BYTES;
	uint64_t units[] = { src->unit_bytes, dst->unit_bytes, min_u64(dst->block_bytes, BLOCK_PIECE_BYTES) };

	for (size_t i = 0; i < ARRAY_LEN(units); i++)
		if ((units[i] & (units[i] - 1)) == 0)
			bytes = max_u64(bytes, units[i]);
	return min_u64(bytes, MAX_PIECE_BYTES);
}

int transfer_run(const struct transfer *t, unsigned threads, const struct img_progress *progress, struct img_error *err)
{
	struct job job = { .t = t, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct img_limits src = { .unit_bytes = 0 }, dst;
	int r;

	if (t->src)
		img_limits(t->src, &src);
	img_limits(t->dst, &dst);
	job.src_bytes = t->src ? img_size(t->src) : 0;
	job.base_bytes = t->base ? img_size(t->base) : 0;
	job.dst_bytes = img_size(t->dst);
	job.piece_bytes = choose_piece_bytes(&src, &dst);
	job.granule_bytes = min_u64(max_u64(dst.block_bytes, GRANULE_BYTES), MAX_GRANULE_BYTES);
	if (t->flags & IMG_COPY_COMPRESS && dst.unit_bytes > 0 && job.piece_bytes % dst.unit_bytes == 0)
		job.unit_bytes = dst.unit_bytes;
	r = team_run(threads, progress, t->bytes, work, &job, err);
	pthread_mutex_destroy(&job.lock);
	return r;
}
