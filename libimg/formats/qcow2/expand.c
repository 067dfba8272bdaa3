/* SPDX-License-Identifier: MIT */
/*
 * Reading compressed clusters. Contexts of the codecs are kept in a small pool. Readers in small steps would expand a
 * cluster again for each step: the last few that were read in part are kept, by where they are stored. A cluster's
 * place is only reused for other compressed data through compress.c, which forgets what was kept of it; no reader can
 * still be at it then (gate).
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_io.h"

#define KEPT_MAX   8u
#define KEPT_BYTES (8u << 20)

struct kept {
	uint64_t host_off; /* 0: empty: the header lies there */
	uint64_t host_bytes, age;
	uint8_t *data; /* cluster_bytes, owned */
};

struct qcow2_expanded { /* codec_lock */
	uint64_t clock;
	struct kept kept[KEPT_MAX];
};

struct codec_ctx *qcow2_codec_get(struct qcow2_engine *e, struct img_error *err)
{
	struct codec_ctx *ctx = NULL;

	pthread_mutex_lock(&e->codec_lock);
	for (size_t i = 0; i < ARRAY_LEN(e->idle_codecs) && !ctx; i++) {
		ctx = e->idle_codecs[i];
		e->idle_codecs[i] = NULL;
	}
	pthread_mutex_unlock(&e->codec_lock);
	if (!ctx)
		ctx = codec_ctx_new();
	if (!ctx)
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	return ctx;
}

void qcow2_codec_put(struct qcow2_engine *e, struct codec_ctx *ctx)
{
	pthread_mutex_lock(&e->codec_lock);
	for (size_t i = 0; i < ARRAY_LEN(e->idle_codecs) && ctx; i++) {
		if (!e->idle_codecs[i]) {
			e->idle_codecs[i] = ctx;
			ctx = NULL;
		}
	}
	pthread_mutex_unlock(&e->codec_lock);
	codec_ctx_free(ctx);
}

void qcow2_codecs_free(struct qcow2_engine *e)
{
	for (size_t i = 0; i < ARRAY_LEN(e->idle_codecs); i++) {
		codec_ctx_free(e->idle_codecs[i]);
		e->idle_codecs[i] = NULL;
	}
	for (size_t i = 0; e->expanded && i < KEPT_MAX; i++)
		free(e->expanded->kept[i].data);
	free(e->expanded);
	e->expanded = NULL;
}

/* The stored bytes may end before the last sector does; what the file lacks there was never written. */
static int read_stored(struct qcow2_engine *e, uint64_t off, uint64_t bytes, uint8_t *buf, size_t *there,
		       struct img_error *err)
{
	uint64_t size = node_size(e->file);

	if (off >= size)
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
				 "a compressed cluster lies beyond the end of the file: run imgtool check");
	*there = (size_t)min_u64(bytes, size - off);
	return node_pread(e->file, buf, *there, off, 0, err);
}

int qcow2_expand(struct qcow2_engine *e, uint64_t host_off, uint64_t host_bytes, void *cluster, struct img_error *err)
{
	struct codec_ctx *ctx = qcow2_codec_get(e, err);
	uint8_t *stored = malloc((size_t)host_bytes);
	size_t there = 0;
	int rc;

	if (!ctx || !stored) {
		rc = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		goto out;
	}
	rc = read_stored(e, host_off, host_bytes, stored, &there, err);
	if (rc)
		goto out;
	rc = codec_expand_prefix(ctx, e->codec, stored, there, cluster, (size_t)e->cluster_bytes);
	if (rc)
		error_set(err, rc, 0, host_off, LAYER,
			  rc == IMG_E_CORRUPT ? "the compressed cluster at 0x%" PRIx64
						" does not expand: it is damaged" :
						"cannot expand the compressed cluster at 0x%" PRIx64,
			  host_off);
out:
	free(stored);
	if (ctx)
		qcow2_codec_put(e, ctx);
	return rc;
}

/* ---- the last few ---- */

static bool copy_kept(struct qcow2_engine *e, const struct qcow2_mapping *m, void *buf, uint64_t in, uint64_t bytes)
{
	bool found = false;

	pthread_mutex_lock(&e->codec_lock);
	for (size_t i = 0; e->expanded && i < KEPT_MAX && !found; i++) {
		struct kept *k = &e->expanded->kept[i];

		found = k->data && k->host_off == m->host_off && k->host_bytes == m->host_bytes;
		if (found) {
			k->age = ++e->expanded->clock;
			memcpy(buf, k->data + in, (size_t)bytes);
		}
	}
	pthread_mutex_unlock(&e->codec_lock);
	return found;
}

/* Takes over data. */
static void keep(struct qcow2_engine *e, const struct qcow2_mapping *m, uint8_t *data)
{
	size_t nr = (size_t)min_u64(KEPT_MAX, KEPT_BYTES / e->cluster_bytes);
	struct kept *oldest;

	pthread_mutex_lock(&e->codec_lock);
	if (!e->expanded)
		e->expanded = calloc(1, sizeof(*e->expanded));
	if (!e->expanded) {
		pthread_mutex_unlock(&e->codec_lock);
		free(data);
		return;
	}
	oldest = &e->expanded->kept[0];
	for (size_t i = 1; i < nr; i++)
		if (e->expanded->kept[i].age < oldest->age)
			oldest = &e->expanded->kept[i];
	free(oldest->data);
	*oldest = (struct kept){ m->host_off, m->host_bytes, ++e->expanded->clock, data };
	pthread_mutex_unlock(&e->codec_lock);
}

int qcow2_expand_part(struct qcow2_engine *e, const struct qcow2_mapping *m, void *buf, uint64_t in, uint64_t bytes,
		      struct img_error *err)
{
	uint8_t *cluster;
	int rc;

	if (bytes == e->cluster_bytes)
		return qcow2_expand(e, m->host_off, m->host_bytes, buf, err);
	if (copy_kept(e, m, buf, in, bytes))
		return 0;
	cluster = malloc((size_t)e->cluster_bytes);
	if (!cluster)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = qcow2_expand(e, m->host_off, m->host_bytes, cluster, err);
	if (rc) {
		free(cluster);
		return rc;
	}
	memcpy(buf, cluster + in, (size_t)bytes);
	keep(e, m, cluster);
	return 0;
}

void qcow2_expanded_drop(struct qcow2_engine *e, uint64_t host_off, uint64_t bytes)
{
	pthread_mutex_lock(&e->codec_lock);
	for (size_t i = 0; e->expanded && i < KEPT_MAX; i++) {
		struct kept *k = &e->expanded->kept[i];

		/* The last sector of one may be shared with its neighbour: then dropping it costs one expansion. */
		if (k->data && k->host_off < host_off + bytes && host_off < k->host_off + k->host_bytes) {
			free(k->data);
			*k = (struct kept){ 0 };
		}
	}
	pthread_mutex_unlock(&e->codec_lock);
}
