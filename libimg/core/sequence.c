/* SPDX-License-Identifier: MIT */
/*
 * See sequence.h. A piece is an aligned window of the disk, 1 MiB or a unit. Where the format packs, those without data
 * are passed over; where it does not, their zeros are written like any data. Pieces are numbered as they are claimed,
 * and number n lives in slot n % nr_slots until it is put:
 *
 *   free -> claimed (a member reads and packs it, without the lock) -> ready -> put, free
 *
 * Whoever makes a piece ready puts it, and those behind it that are ready as well, if it is next and nobody is putting;
 * else it goes on with another piece. A member without a free slot waits: then some piece is claimed, whose member is
 * at work, or is being put.
 */
#include "sequence.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "codec.h"
#include "cursor.h"
#include "error.h"
#include "is_zero.h"
#include "team.h"

#define LAYER		"core"
#define PIECE_BYTES	(UINT64_C(1) << 20)
#define MAX_UNIT_BYTES	(UINT64_C(4) << 20)
#define SLOTS_OF_MEMBER 2u /* one is filled while the other waits for its turn */
#define BUFFER_ALIGN	4096

struct slot {
	bool ready;
	bool zero; /* holds no data: only where zeros are written too */
	uint64_t off, bytes;
	uint64_t passed_bytes; /* zeros before it */
	size_t nr, used;       /* units, and bytes of out */
	uint8_t *in;	       /* what the source holds there; made when first used */
	uint8_t *out;	       /* packed; NULL where the format does not pack */
	struct sequence_unit *unit;
};

struct job {
	const struct img_driver *drv;
	const struct driver_sequence *seq;
	struct sequence_shape shape;
	void *state; /* the format's */
	struct node *file;
	struct img *src;
	uint64_t src_bytes, total_bytes, piece_bytes;
	size_t nr_units; /* of a piece */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct cursor cursor; /* lock */
	uint64_t next_off;    /* lock: behind the last piece that was claimed */
	uint64_t nr_claimed;  /* lock */
	uint64_t nr_put;      /* lock */
	bool putting;	      /* lock: a member is */
	bool failed;	      /* lock: everybody ends */
	struct slot *slots;
	size_t nr_slots;
};

/* ---- claiming ---------------------------------------------------------------------------------------------------- */

/* Where the next data begins, or the end of the disk. */
static int find_data(struct job *job, uint64_t *off, struct img_error *err)
{
	struct img_extent ext = { .flags = 0 };
	int r = 0;

	while (*off < job->src_bytes && r == 0) {
		r = cursor_at(&job->cursor, *off, &ext, err);
		if (r == 0 && ext.flags & IMG_EXT_DATA)
			return 0;
		*off += r == 0 ? ext.bytes : 0;
	}
	*off = job->total_bytes;
	return r;
}

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for a copy buffer");
}

static int make_buffers(const struct job *job, struct slot *s, struct img_error *err)
{
	if (!s->in)
		s->in = aligned_alloc(BUFFER_ALIGN, (size_t)job->piece_bytes);
	if (!s->unit)
		s->unit = calloc(job->nr_units, sizeof(*s->unit));
	if (!s->out && job->seq->pack)
		s->out = malloc(job->nr_units * job->shape.packed_max);
	return s->in && s->unit && (s->out || !job->seq->pack) ? 0 : no_memory(err);
}

/* *out: the next piece; NULL: there is none. Waits for a slot. */
static int claim_locked(struct job *job, struct slot **out, struct img_error *err)
{
	uint64_t off, data;
	struct slot *s;
	int r;

	*out = NULL;
	while (!job->failed && job->nr_claimed - job->nr_put == job->nr_slots)
		pthread_cond_wait(&job->changed, &job->lock);
	data = job->next_off;
	r = job->failed ? 0 : find_data(job, &data, err);
	off = job->seq->pack ? data : job->next_off;
	if (r < 0 || job->failed || off >= job->total_bytes)
		return r;
	s = &job->slots[job->nr_claimed % job->nr_slots];
	r = make_buffers(job, s, err);
	if (r < 0)
		return r;
	s->off = max_u64(round_down(off, job->piece_bytes), job->next_off);
	s->bytes = min_u64(round_down(off, job->piece_bytes) + job->piece_bytes, job->total_bytes) - s->off;
	s->passed_bytes = s->off - job->next_off;
	s->zero = data >= s->off + s->bytes;
	job->next_off = s->off + s->bytes;
	job->nr_claimed++;
	*out = s;
	return 0;
}

/* ---- filling ----------------------------------------------------------------------------------------------------- */

static int read_piece(const struct job *job, const struct slot *s, struct img_error *err)
{
	uint64_t inside = s->zero ? 0 : min_u64(s->bytes, job->src_bytes - s->off);

	memset(s->in + inside, 0, (size_t)(job->piece_bytes - inside)); /* the last unit is whole, for packing */
	return inside > 0 ? img_pread(job->src, s->in, inside, s->off, 0, err) : 0;
}

static int pack_piece(const struct job *job, struct slot *s, struct codec_ctx *codec, struct img_error *err)
{
	uint64_t unit = job->shape.unit_bytes;

	for (uint64_t at = 0; at < s->bytes; at += unit) {
		size_t bytes = 0;
		int r;

		if (is_zero(s->in + at, (size_t)unit))
			continue;
		r = node_sequence_pack(job->drv, job->file, job->state, codec, s->in + at, s->off + at,
				       s->out + s->used, &bytes, err);
		if (r < 0)
			return r;
		s->unit[s->nr++] = (struct sequence_unit){ .off = s->off + at, .bytes = bytes };
		s->used += bytes;
	}
	return 0;
}

static int fill(const struct job *job, struct slot *s, struct codec_ctx *codec, struct img_error *err)
{
	int r = read_piece(job, s, err);

	s->nr = 0;
	s->used = 0;
	if (r < 0)
		return r;
	if (job->seq->pack)
		return pack_piece(job, s, codec, err);
	s->unit[s->nr++] = (struct sequence_unit){ .off = s->off, .bytes = (size_t)s->bytes };
	return 0;
}

/* ---- putting ----------------------------------------------------------------------------------------------------- */

static int put(struct job *job, struct team *team, const struct slot *s, struct img_error *err)
{
	int r = 0;

	if (s->nr > 0)
		r = node_sequence_put(job->drv, job->file, job->state, s->out ? s->out : s->in, s->unit, s->nr, err);
	return r < 0 ? r : team_advance(team, s->passed_bytes + s->bytes, err);
}

/* s is ready. Puts what is next and ready, until there is no such piece or another member does that. */
static int put_ready(struct job *job, struct team *team, struct slot *s, struct img_error *err)
{
	int r = 0;

	pthread_mutex_lock(&job->lock);
	s->ready = true;
	if (job->putting || job->failed) {
		pthread_mutex_unlock(&job->lock);
		return 0;
	}
	job->putting = true;
	while (r == 0 && job->nr_put < job->nr_claimed && job->slots[job->nr_put % job->nr_slots].ready) {
		s = &job->slots[job->nr_put % job->nr_slots];
		pthread_mutex_unlock(&job->lock);
		r = put(job, team, s, err);
		pthread_mutex_lock(&job->lock);
		s->ready = false;
		job->nr_put++;
		job->failed = job->failed || r < 0; /* nothing may follow */
		pthread_cond_broadcast(&job->changed);
	}
	job->putting = false;
	pthread_mutex_unlock(&job->lock);
	return r;
}

/* ---- members ----------------------------------------------------------------------------------------------------- */

static void give_up(struct job *job)
{
	pthread_mutex_lock(&job->lock);
	job->failed = true;
	pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
}

static int work(struct team *team, void *ctx, struct img_error *err)
{
	struct codec_ctx *codec = codec_ctx_new();
	struct job *job = ctx;
	struct slot *s = NULL;
	int r = codec ? 0 : no_memory(err);

	while (r == 0) {
		pthread_mutex_lock(&job->lock);
		r = claim_locked(job, &s, err);
		pthread_mutex_unlock(&job->lock);
		if (r == 0 && !s)
			break;
		if (r == 0)
			r = fill(job, s, codec, err);
		if (r == 0)
			r = put_ready(job, team, s, err);
	}
	if (r < 0)
		give_up(job);
	codec_ctx_free(codec);
	return r;
}

static void free_slots(struct job *job)
{
	for (size_t i = 0; job->slots && i < job->nr_slots; i++) {
		free(job->slots[i].in);
		free(job->slots[i].out);
		free(job->slots[i].unit);
	}
	free(job->slots);
}

static int run(struct job *job, const struct img_copy_options *opts, struct img_error *err)
{
	unsigned threads = opts->threads ? opts->threads : team_default_threads();
	uint64_t slot_bytes;
	int r;

	job->piece_bytes = max_u64(PIECE_BYTES, job->shape.unit_bytes);
	job->nr_units = job->seq->pack ? (size_t)(job->piece_bytes / job->shape.unit_bytes) : 1;
	slot_bytes = job->piece_bytes + job->nr_units * job->shape.packed_max;
	job->nr_slots = (size_t)max_u64(
		min_u64((uint64_t)threads * SLOTS_OF_MEMBER + 1, SEQUENCE_MEMORY_BYTES / slot_bytes), 1);
	job->slots = calloc(job->nr_slots, sizeof(*job->slots));
	if (!job->slots)
		return no_memory(err);
	cursor_init(&job->cursor, job->src, 0);
	pthread_mutex_init(&job->lock, NULL);
	pthread_cond_init(&job->changed, NULL);
	r = team_run((unsigned)min_u64(threads, job->nr_slots), &opts->progress, job->total_bytes, work, job, err);
	pthread_cond_destroy(&job->changed);
	pthread_mutex_destroy(&job->lock);
	free_slots(job);
	return r;
}

/* What a mistake in a driver would make an overrun. */
static int judge_shape(const struct job *job, struct img_error *err)
{
	uint64_t unit = job->shape.unit_bytes;

	if (!job->seq->pack || (unit > 0 && (unit & (unit - 1)) == 0 && unit <= MAX_UNIT_BYTES &&
				job->shape.packed_max > 0 && job->shape.packed_max <= 2 * MAX_UNIT_BYTES))
		return 0;
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: units of 0x%llx bytes", job->drv->name,
			 (unsigned long long)unit);
}

int sequence_write(const struct img_driver *drv, struct node *file, const struct driver_create *args, struct img *src,
		   const struct img_copy_options *opts, struct img_error *err)
{
	struct job job = {
		.drv = drv,
		.seq = drv->sequence,
		.file = file,
		.src = src,
		.src_bytes = src ? img_size(src) : 0,
		.total_bytes = args->size_bytes,
	};
	int r = node_sequence_begin(drv, file, args, &job.shape, &job.state, err);

	if (r < 0)
		return r;
	r = judge_shape(&job, err);
	if (r == 0)
		r = run(&job, opts, err);
	r = node_sequence_end(drv, file, job.state, r, err);
	return r;
}
