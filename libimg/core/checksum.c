/* SPDX-License-Identifier: MIT */
/*
 * img_checksum(): digests of what the guest sees.
 *
 * Members of a team claim spans of the content in ascending order, prepare them side by side (SHA-256: read; XXH128:
 * read, and hash each piece), and then take turns, in the order of the spans, to put the result into the digest. So the
 * members read ahead of the one that hashes, however many there are, and one alone works as well. A span of zeros is
 * not read: it costs SHA-256 the hashing, and XXH128 a constant for each piece.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "cursor.h"
#include "disk_int.h"
#include "error.h"
#include "image_int.h"
#include "sha256.h"
#include "team.h"

#define PIECE_BYTES	    (UINT64_C(1) << 20) /* of the XXH128 tree: part of what the digest means */
#define SPAN_PIECES	    4			/* claimed at once, so that members rarely wait for their turn */
#define MAX_ZERO_SPAN_BYTES (UINT64_C(1) << 30)
#define BUFFER_ALIGN	    4096

struct span {
	uint64_t off, bytes; /* off is a multiple of PIECE_BYTES */
	bool zero;
};

struct digest_job;

struct digest_ops {
	uint64_t span_bytes; /* of data */
	/* Reads the span; any member at any time. buf has room for span_bytes. */
	int (*prepare)(struct digest_job *job, const struct span *span, uint8_t *buf, struct img_error *err);
	/* Adds it to the digest; one member at a time, in order. */
	int (*add)(struct digest_job *job, const struct span *span, const uint8_t *buf);
};

struct digest_job {
	struct img *img;
	const struct digest_ops *ops;
	uint64_t size_bytes;
	struct sha256 *sha; /* owned by who has the turn, as xxh */
	XXH3_state_t *xxh;
	uint8_t *zeroes;	      /* PIECE_BYTES of them */
	XXH128_canonical_t zero_hash; /* of a whole piece of zeros */

	pthread_mutex_t claim_lock;
	struct cursor cursor; /* claim_lock */
	uint64_t next_off;    /* claim_lock */

	pthread_mutex_t turn_lock;
	pthread_cond_t turned;
	uint64_t turn_off; /* turn_lock: the digest holds everything before */
	bool failed;	   /* turn_lock: the turn will not come */
};

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a checksum");
}

/* ---- the team ---------------------------------------------------------------------------------------------------- */

/* A long hole is one span; what is not a hole from piece to piece is data. span->bytes is 0 at the end. */
static int claim_locked(struct digest_job *job, struct span *span, struct img_error *err)
{
	uint64_t left = job->size_bytes - job->next_off;
	struct img_extent ext;
	int r;

	*span = (struct span){ .off = job->next_off };
	if (left == 0)
		return 0;
	r = cursor_at(&job->cursor, span->off, &ext, err);
	if (r < 0)
		return r;
	span->bytes = min_u64(job->ops->span_bytes, left);
	if (!(ext.flags & IMG_EXT_DATA) && ext.bytes >= min_u64(PIECE_BYTES, left)) {
		span->zero = true;
		span->bytes = ext.bytes >= left ? left : round_down(ext.bytes, PIECE_BYTES);
		span->bytes = min_u64(span->bytes, MAX_ZERO_SPAN_BYTES);
	}
	job->next_off += span->bytes;
	return 0;
}

static int claim(struct digest_job *job, struct span *span, struct img_error *err)
{
	int r;

	pthread_mutex_lock(&job->claim_lock);
	r = claim_locked(job, span, err);
	pthread_mutex_unlock(&job->claim_lock);
	return r;
}

/* False: a member has failed, and everything that was to come before this span never will. */
static bool wait_for_turn(struct digest_job *job, uint64_t off)
{
	bool mine;

	pthread_mutex_lock(&job->turn_lock);
	while (!job->failed && job->turn_off != off)
		pthread_cond_wait(&job->turned, &job->turn_lock);
	mine = !job->failed;
	pthread_mutex_unlock(&job->turn_lock);
	return mine;
}

static void pass_turn(struct digest_job *job, uint64_t off, bool failed)
{
	pthread_mutex_lock(&job->turn_lock);
	job->turn_off = off;
	job->failed |= failed;
	pthread_cond_broadcast(&job->turned);
	pthread_mutex_unlock(&job->turn_lock);
}

static int do_spans(struct team *team, struct digest_job *job, uint8_t *buf, struct img_error *err)
{
	struct span span;
	int r = 0;

	while (r == 0 && !team_stopping(team)) {
		r = claim(job, &span, err);
		if (r < 0 || span.bytes == 0)
			return r;
		if (!span.zero)
			r = job->ops->prepare(job, &span, buf, err);
		if (r < 0)
			return r;
		if (!wait_for_turn(job, span.off))
			return 0;
		if (job->ops->add(job, &span, buf) < 0)
			return no_memory(err);
		pass_turn(job, span.off + span.bytes, false);
		r = team_advance(team, span.bytes, err);
	}
	return r;
}

static int member(struct team *team, void *ctx, struct img_error *err)
{
	struct digest_job *job = ctx;
	uint8_t *buf = aligned_alloc(BUFFER_ALIGN, (size_t)job->ops->span_bytes);
	int r = buf ? do_spans(team, job, buf, err) : no_memory(err);

	free(buf);
	if (r < 0)
		pass_turn(job, 0, true);
	return r;
}

/* ---- SHA-256 ----------------------------------------------------------------------------------------------------- */

static int sha_prepare(struct digest_job *job, const struct span *span, uint8_t *buf, struct img_error *err)
{
	return img_pread(job->img, buf, span->bytes, span->off, 0, err);
}

static int sha_add(struct digest_job *job, const struct span *span, const uint8_t *buf)
{
	uint64_t step;

	if (!span->zero)
		return sha256_add(job->sha, buf, (size_t)span->bytes);
	for (uint64_t left = span->bytes; left > 0; left -= step) {
		step = min_u64(left, PIECE_BYTES);
		if (sha256_add(job->sha, job->zeroes, (size_t)step) != 0)
			return -1;
	}
	return 0;
}

static const struct digest_ops sha_ops = {
	.span_bytes = PIECE_BYTES,
	.prepare = sha_prepare,
	.add = sha_add,
};

/* ---- XXH128 ------------------------------------------------------------------------------------------------------ */

static XXH128_canonical_t hash_piece(const uint8_t *buf, uint64_t bytes)
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, XXH3_128bits(buf, (size_t)bytes));
	return canonical;
}

/* Leaves the hashes of the pieces, one after the other, at the start of buf: no piece is shorter than where its hash
 * goes, but the last. */
static int xxh_prepare(struct digest_job *job, const struct span *span, uint8_t *buf, struct img_error *err)
{
	XXH128_canonical_t hashes[SPAN_PIECES];
	size_t nr = 0;
	int r = img_pread(job->img, buf, span->bytes, span->off, 0, err);

	if (r < 0)
		return r;
	for (uint64_t at = 0; at < span->bytes; at += PIECE_BYTES)
		hashes[nr++] = hash_piece(buf + at, min_u64(PIECE_BYTES, span->bytes - at));
	memcpy(buf, hashes, nr * sizeof(hashes[0]));
	return 0;
}

static int xxh_add(struct digest_job *job, const struct span *span, const uint8_t *buf)
{
	uint64_t nr_whole = span->bytes / PIECE_BYTES, rest = span->bytes % PIECE_BYTES;
	XXH128_canonical_t last;

	if (!span->zero)
		return XXH3_128bits_update(job->xxh, buf, (size_t)(nr_whole + (rest > 0)) * sizeof(last)) == XXH_OK ?
			       0 :
			       -1;
	for (uint64_t i = 0; i < nr_whole; i++)
		if (XXH3_128bits_update(job->xxh, &job->zero_hash, sizeof(job->zero_hash)) != XXH_OK)
			return -1;
	if (rest == 0)
		return 0;
	last = hash_piece(job->zeroes, rest);
	return XXH3_128bits_update(job->xxh, &last, sizeof(last)) == XXH_OK ? 0 : -1;
}

static const struct digest_ops xxh_ops = {
	.span_bytes = SPAN_PIECES * PIECE_BYTES,
	.prepare = xxh_prepare,
	.add = xxh_add,
};

/* ---- both -------------------------------------------------------------------------------------------------------- */

static int finish(struct digest_job *job, uint8_t *out, size_t *out_bytes)
{
	XXH128_canonical_t canonical;
	struct le64 size = le64_of(job->size_bytes);

	if (job->ops == &sha_ops) {
		*out_bytes = SHA256_BYTES;
		return sha256_finish(job->sha, out);
	}
	if (XXH3_128bits_update(job->xxh, size.b, sizeof(size.b)) != XXH_OK)
		return -1;
	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(job->xxh));
	memcpy(out, &canonical, sizeof(canonical));
	*out_bytes = sizeof(canonical);
	return 0;
}

static int prepare_job(struct digest_job *job, struct img_error *err)
{
	int r = job->ops == &sha_ops ? sha256_new(&job->sha) : 0;

	if (r == IMG_E_UNSUPPORTED)
		return error_set(
			err, r, 0, NO_OFFSET, "core",
			"SHA-256 is done by %s, which is not installed (Debian: libssl3); xxh128 needs nothing",
			sha256_library());
	job->xxh = XXH3_createState();
	job->zeroes = calloc(1, PIECE_BYTES);
	if (r != 0 || !job->xxh || !job->zeroes)
		return no_memory(err);
	XXH3_128bits_reset(job->xxh);
	job->zero_hash = hash_piece(job->zeroes, PIECE_BYTES);
	cursor_init(&job->cursor, job->img, 0);
	return 0;
}

int img_checksum(struct img *img, enum img_digest algo, const struct img_progress *progress, uint8_t *out,
		 size_t *out_bytes, struct img_error *err)
{
	struct digest_job job = {
		.img = img,
		.ops = algo == IMG_DIGEST_SHA256 ? &sha_ops : &xxh_ops,
		.claim_lock = PTHREAD_MUTEX_INITIALIZER,
		.turn_lock = PTHREAD_MUTEX_INITIALIZER,
		.turned = PTHREAD_COND_INITIALIZER,
	};
	int r;

	error_clear(err);
	if (!img || !out || !out_bytes)
		return image_invalid(err, "no image, or no place for the digest");
	if (algo != IMG_DIGEST_SHA256 && algo != IMG_DIGEST_XXH128)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "core", "no digest has the number %d", (int)algo);
	job.size_bytes = img_size(img);
	r = prepare_job(&job, err);
	if (r == 0)
		r = team_run(0, progress, job.size_bytes, member, &job, err);
	if (r == 0 && finish(&job, out, out_bytes) < 0)
		r = no_memory(err);
	sha256_free(job.sha);
	XXH3_freeState(job.xxh);
	free(job.zeroes);
	return r;
}
