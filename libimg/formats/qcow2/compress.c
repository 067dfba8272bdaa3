/* SPDX-License-Identifier: MIT */
/*
 * Writing compressed clusters. A batch is compressed with no lock held, then stored like any data: space, bytes,
 * entries. Stored clusters are packed one behind the other, also into one host cluster, so a batch mostly goes out in
 * one write. What does not shrink is written as it is, zeros become zero clusters.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "is_zero.h"
#include "qcow2_io.h"

#define BATCH_MAX   64u	       /* clusters */
#define BATCH_BYTES (4u << 20) /* of guest data, one cluster at least */

enum form { PACKED, PLAIN, ZEROS };

struct batch {
	const uint8_t *src;
	uint64_t g, nr;
	uint64_t tail; /* bytes of the last cluster; 0: all */
	uint8_t *out;  /* the packed ones, one behind the other */
	struct {
		enum form form;
		size_t bytes;	   /* PACKED */
		uint64_t host_off; /* PACKED: when it has a place */
	} cluster[BATCH_MAX];
};

static uint64_t bytes_of(const struct qcow2_engine *e, const struct batch *b, uint64_t i)
{
	return i == b->nr - 1 && b->tail ? b->tail : e->cluster_bytes;
}

static uint64_t guest_off(const struct qcow2_engine *e, const struct batch *b, uint64_t i)
{
	return (b->g + i) << e->cluster_bits;
}

/* ---- compressing ---- */

static int pack_one(struct qcow2_engine *e, struct codec_ctx *ctx, struct batch *b, uint64_t i, size_t *used,
		    struct img_error *err)
{
	const uint8_t *src = b->src + (i << e->cluster_bits);
	enum codec_id id = e->codec == CODEC_DEFLATE ? CODEC_DEFLATE_4K : e->codec;
	uint64_t bytes = bytes_of(e, b, i);
	uint8_t *padded = NULL;
	int rc;

	if (is_zero(src, (size_t)bytes)) {
		b->cluster[i].form = ZEROS;
		return 0;
	}
	if (bytes < e->cluster_bytes) {
		padded = calloc(1, (size_t)e->cluster_bytes);
		if (!padded)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		memcpy(padded, src, (size_t)bytes);
		src = padded;
	}
	rc = codec_compress(ctx, id, 0, src, (size_t)e->cluster_bytes, b->out + *used, (size_t)e->cluster_bytes - 1,
			    &b->cluster[i].bytes);
	free(padded);
	if (rc < 0)
		return error_set(err, rc, 0, guest_off(e, b, i), LAYER, "cannot compress: %s", img_strerror(rc));
	b->cluster[i].form = rc ? PLAIN : PACKED;
	if (!rc)
		*used += b->cluster[i].bytes;
	return 0;
}

static int pack_batch(struct qcow2_engine *e, struct batch *b, struct img_error *err)
{
	struct codec_ctx *ctx = qcow2_codec_get(e, err);
	size_t used = 0;
	int rc = ctx ? 0 : IMG_E_NOMEM;

	for (uint64_t i = 0; !rc && i < b->nr; i++)
		rc = pack_one(e, ctx, b, i, &used, err);
	if (ctx)
		qcow2_codec_put(e, ctx);
	return rc;
}

/* ---- storing ---- */

static uint64_t packed_desc(const struct qcow2_engine *e, uint64_t host_off, uint64_t bytes)
{
	unsigned shift = 62 - (e->cluster_bits - 8);
	uint64_t more = (host_off + bytes - 1) / 512 - host_off / 512;

	return QCOW2_COMPRESSED | more << shift | host_off;
}

static void give_back(struct qcow2_engine *e, const struct batch *b, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		if (b->cluster[i].form == PACKED)
			qcow2_free_entry(e, packed_desc(e, b->cluster[i].host_off, b->cluster[i].bytes), NULL);
}

static int one_place(struct qcow2_engine *e, uint64_t bytes, uint64_t *host_off, struct img_error *err)
{
	uint64_t limit = UINT64_C(1) << (62 - (e->cluster_bits - 8));
	int rc = qcow2_alloc_packed(e, bytes, host_off, err);

	if (rc)
		return rc;
	rc = qcow2_guard(e, *host_off, bytes, err);
	if (!rc && !range_inside(*host_off, bytes, limit)) {
		rc = error_set(err, IMG_E_LIMIT, 0, *host_off, LAYER,
			       "the image file is too large for compressed clusters of this size");
		qcow2_free(e, round_down(*host_off, e->cluster_bytes),
			   (*host_off % e->cluster_bytes + bytes + e->cluster_bytes - 1) >> e->cluster_bits, NULL);
	}
	return rc;
}

/* map wr. */
static int take_places(struct qcow2_engine *e, struct batch *b, struct img_error *err)
{
	for (uint64_t i = 0; i < b->nr; i++) {
		int rc;

		if (b->cluster[i].form != PACKED)
			continue;
		rc = one_place(e, b->cluster[i].bytes, &b->cluster[i].host_off, err);
		if (rc) {
			give_back(e, b, 0, i);
			return rc;
		}
		qcow2_expanded_drop(e, b->cluster[i].host_off, b->cluster[i].bytes);
	}
	return 0;
}

/* Neighbours in the file are neighbours in b->out, too. */
static int write_packed(struct qcow2_engine *e, const struct batch *b, struct img_error *err)
{
	const uint8_t *src = b->out;
	uint64_t off = 0, bytes = 0;
	int rc = 0;

	for (uint64_t i = 0; !rc && i < b->nr; i++) {
		if (b->cluster[i].form != PACKED)
			continue;
		if (bytes && off + bytes != b->cluster[i].host_off) {
			rc = node_pwrite(e->file, src, bytes, off, 0, err);
			src += bytes;
			bytes = 0;
		}
		if (!bytes)
			off = b->cluster[i].host_off;
		bytes += b->cluster[i].bytes;
	}
	return rc || !bytes ? rc : node_pwrite(e->file, src, bytes, off, 0, err);
}

/* map wr. *nr clusters of the batch are done with, also on failure. */
static int set_packed(struct qcow2_engine *e, const struct batch *b, uint64_t *nr, struct img_error *err)
{
	for (*nr = 0; *nr < b->nr; ++*nr) {
		struct qcow2_entry old, en = { 0 };
		int rc;

		if (b->cluster[*nr].form != PACKED)
			continue;
		en.desc = packed_desc(e, b->cluster[*nr].host_off, b->cluster[*nr].bytes);
		rc = qcow2_entry_get(e, b->g + *nr, &old, err);
		if (!rc)
			rc = qcow2_entry_check(e, &old, guest_off(e, b, *nr), err);
		if (!rc)
			rc = qcow2_entry_set(e, b->g + *nr, &en, err);
		if (rc)
			return rc;
		rc = qcow2_free_entry(e, old.desc, err);
		if (rc) {
			++*nr;
			return rc;
		}
	}
	return 0;
}

static int store_packed(struct qcow2_engine *e, struct batch *b, struct img_error *err)
{
	struct qcow2_inflight range;
	uint64_t done = 0;
	int rc;

	qcow2_range_begin(e, &range, b->g, b->g + b->nr - 1);
	pthread_rwlock_wrlock(&e->map);
	rc = take_places(e, b, err);
	pthread_rwlock_unlock(&e->map);
	if (!rc) {
		rc = write_packed(e, b, err);
		pthread_rwlock_wrlock(&e->map);
		if (!rc)
			rc = set_packed(e, b, &done, err);
		if (rc)
			give_back(e, b, done, b->nr);
		pthread_rwlock_unlock(&e->map);
	}
	qcow2_range_end(e, &range);
	return rc;
}

/* Runs of clusters that are not packed. */
static int store_others(struct qcow2_engine *e, const struct batch *b, struct img_error *err)
{
	static const struct qcow2_zeroing how = { .unmap = true };
	int rc = 0;

	for (uint64_t i = 0, n; !rc && i < b->nr; i += n) {
		enum form form = b->cluster[i].form;
		uint64_t bytes = 0;
		bool done = false;

		for (n = 0; i + n < b->nr && b->cluster[i + n].form == form; n++)
			bytes += bytes_of(e, b, i + n);
		if (form == ZEROS)
			rc = qcow2_zero_clusters(e, b->g + i, n, how, &done, err);
		if (!rc && form != PACKED && !done)
			rc = qcow2_write_held(e, b->src + (i << e->cluster_bits), bytes, guest_off(e, b, i), err);
	}
	return rc;
}

int qcow2_write_packed(struct qcow2_engine *e, const uint8_t *buf, uint64_t g, uint64_t nr, uint64_t tail,
		       struct img_error *err)
{
	uint64_t max = min_u64(BATCH_MAX, max_u64(BATCH_BYTES >> e->cluster_bits, 1));
	struct batch b = { .src = buf, .g = g };
	int rc = 0;

	b.out = malloc((size_t)(min_u64(max, nr) << e->cluster_bits));
	if (!b.out)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	while (!rc && nr) {
		b.nr = min_u64(nr, max);
		b.tail = b.nr == nr ? tail : 0;
		rc = qcow2_make_room(e, err);
		if (!rc)
			rc = pack_batch(e, &b, err);
		if (rc)
			break;
		pthread_rwlock_rdlock(&e->gate);
		rc = store_packed(e, &b, err);
		if (!rc)
			rc = store_others(e, &b, err);
		pthread_rwlock_unlock(&e->gate);
		b.src += b.nr << e->cluster_bits;
		b.g += b.nr;
		nr -= b.nr;
	}
	free(b.out);
	return rc;
}
