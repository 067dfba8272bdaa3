/* SPDX-License-Identifier: MIT */
/* See chunks.h. The list is an array that is searched by halving; the cache a few slots that the oldest use leaves. */
#include "chunks.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"

#define LAYER	    "chunks"
#define CACHE_BYTES (UINT64_C(16) << 20) /* or one piece, where it is larger */
#define NR_SLOTS    16u
#define FIRST_ROOM  256u

struct slot {
	size_t chunk;
	uint8_t *data; /* NULL: empty */
	uint64_t bytes;
	uint64_t used; /* when, by the cache's clock */
};

struct chunks {
	struct chunk *list;
	size_t nr, room;
	uint64_t host_bytes;
	struct budget *budget;
	const char *path;
	pthread_mutex_t lock; /* what is below */
	struct slot slot[NR_SLOTS];
	uint64_t cached_bytes, clock;
	struct codec_ctx *spare[NR_SLOTS]; /* expanders that nobody uses at the moment */
};

static int no_memory(const struct chunks *c, struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", c->path);
}

struct chunks *chunks_new(struct budget *budget, const char *path, struct img_error *err)
{
	struct chunks *c = calloc(1, sizeof(*c));

	if (!c) {
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", path);
		return NULL;
	}
	c->budget = budget;
	c->path = path;
	pthread_mutex_init(&c->lock, NULL);
	return c;
}

void chunks_free(struct chunks *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < NR_SLOTS; i++) {
		free(c->slot[i].data);
		codec_ctx_free(c->spare[i]);
	}
	pthread_mutex_destroy(&c->lock);
	free(c->list);
	free(c);
}

static int grow(struct chunks *c, struct img_error *err)
{
	size_t room = c->room ? 2 * c->room : FIRST_ROOM;
	struct chunk *list;
	int ret = budget_metadata(c->budget, c->path, (room - c->room) * sizeof(*list), err);

	if (ret != 0)
		return ret;
	list = reallocarray(c->list, room, sizeof(*list));
	if (!list)
		return no_memory(c, err);
	c->list = list;
	c->room = room;
	return 0;
}

/* Neighbours that are one piece in all but name: long runs of zeros come in many. */
static bool continues(const struct chunk *last, const struct chunk *next)
{
	if (last->kind != next->kind)
		return false;
	return next->kind == CHUNK_ZERO ||
	       (next->kind == CHUNK_PLAIN && last->host_off + last->host_bytes == next->host_off);
}

static bool has_place(const struct chunk *chunk)
{
	return chunk->kind == CHUNK_PLAIN || chunk->kind == CHUNK_PACKED;
}

int chunk_judge(const struct chunk *chunk, uint64_t file_bytes, const char *path, uint64_t at, struct img_error *err)
{
	if (chunk->bytes > INT64_MAX || chunk->off > INT64_MAX - chunk->bytes)
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: a piece of 0x%" PRIx64 " bytes for disk offset 0x%" PRIx64, path, chunk->bytes,
				 chunk->off);
	if (has_place(chunk) && !range_inside(chunk->host_off, chunk->host_bytes, file_bytes))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: the piece at 0x%" PRIx64 " with 0x%" PRIx64 " bytes reaches beyond the file",
				 path, chunk->host_off, chunk->host_bytes);
	if (chunk->kind == CHUNK_PLAIN && chunk->host_bytes != chunk->bytes)
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: a plain piece has 0x%" PRIx64 " bytes for 0x%" PRIx64, path, chunk->host_bytes,
				 chunk->bytes);
	if (chunk->kind == CHUNK_PACKED && (chunk->bytes > CHUNK_MAX_BYTES || chunk->host_bytes > 2 * CHUNK_MAX_BYTES))
		return error_set(err, IMG_E_LIMIT, 0, at, LAYER,
				 "%s: a piece has 0x%" PRIx64 " bytes, of 0x%" PRIx64
				 " packed; more than 16 MiB, or 32 MiB, are not expanded at once",
				 path, chunk->bytes, chunk->host_bytes);
	return 0;
}

int chunks_add(struct chunks *c, const struct chunk *chunk, uint64_t file_bytes, uint64_t at, struct img_error *err)
{
	struct chunk *last = c->nr > 0 ? &c->list[c->nr - 1] : NULL;
	int ret = chunk_judge(chunk, file_bytes, c->path, at, err);

	if (ret != 0)
		return ret;
	if (chunk->off != chunks_size(c))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: the piece for disk offset 0x%" PRIx64 " stands where 0x%" PRIx64 " should",
				 c->path, chunk->off, chunks_size(c));
	if (chunk->bytes == 0)
		return 0;
	if (has_place(chunk))
		c->host_bytes +=
			chunk->host_bytes; /* fewer than 2^63 pieces of less than 2^63: bounded by the budget */
	if (last && continues(last, chunk)) {
		last->bytes += chunk->bytes;
		last->host_bytes += chunk->host_bytes;
		return 0;
	}
	if (c->nr == c->room) {
		ret = grow(c, err);
		if (ret != 0)
			return ret;
	}
	c->list[c->nr++] = *chunk;
	return 0;
}

uint64_t chunks_size(const struct chunks *c)
{
	return c->nr > 0 ? c->list[c->nr - 1].off + c->list[c->nr - 1].bytes : 0;
}

uint64_t chunks_host_bytes(const struct chunks *c)
{
	return c->host_bytes;
}

uint64_t chunks_mapped_bytes(const struct chunks *c)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < c->nr; i++)
		bytes += c->list[i].kind == CHUNK_ZERO ? 0 : c->list[i].bytes;
	return bytes;
}

const struct chunk *chunks_at(const struct chunks *c, size_t i)
{
	return i < c->nr ? &c->list[i] : NULL;
}

/* The piece that holds off, which is inside the size. */
static size_t find(const struct chunks *c, uint64_t off)
{
	size_t low = 0, high = c->nr;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (c->list[middle].off <= off)
			low = middle;
		else
			high = middle;
	}
	return low;
}

/* ---- the cache --------------------------------------------------------------------------------------------------- */

/* Copies from the kept piece; false: it is not there. */
static bool take_kept(struct chunks *c, size_t chunk, void *buf, uint64_t bytes, uint64_t within)
{
	bool found = false;

	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < NR_SLOTS && !found; i++) {
		struct slot *s = &c->slot[i];

		found = s->data && s->chunk == chunk;
		if (found) {
			memcpy(buf, s->data + within, (size_t)bytes);
			s->used = ++c->clock;
		}
	}
	pthread_mutex_unlock(&c->lock);
	return found;
}

static struct slot *oldest(struct chunks *c, bool filled)
{
	struct slot *out = NULL;

	for (unsigned i = 0; i < NR_SLOTS; i++) {
		struct slot *s = &c->slot[i];

		if (filled && !s->data)
			continue;
		if (!out || !s->data || (out->data && s->used < out->used))
			out = s;
	}
	return out;
}

static void drop(struct chunks *c, struct slot *s)
{
	c->cached_bytes -= s->bytes;
	free(s->data);
	*s = (struct slot){ 0 };
}

/* Takes data over. Two threads may have expanded the same one: it is then kept twice until it gets old. */
static void keep(struct chunks *c, size_t chunk, uint8_t *data, uint64_t bytes)
{
	struct slot *s;

	pthread_mutex_lock(&c->lock);
	while (c->cached_bytes > 0 && c->cached_bytes + bytes > CACHE_BYTES)
		drop(c, oldest(c, true));
	s = oldest(c, false);
	drop(c, s);
	*s = (struct slot){ .chunk = chunk, .data = data, .bytes = bytes, .used = ++c->clock };
	c->cached_bytes += bytes;
	pthread_mutex_unlock(&c->lock);
}

static struct codec_ctx *borrow(struct chunks *c)
{
	struct codec_ctx *ctx = NULL;

	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < NR_SLOTS && !ctx; i++) {
		ctx = c->spare[i];
		c->spare[i] = NULL;
	}
	pthread_mutex_unlock(&c->lock);
	return ctx ? ctx : codec_ctx_new();
}

static void give_back(struct chunks *c, struct codec_ctx *ctx)
{
	pthread_mutex_lock(&c->lock);
	for (unsigned i = 0; i < NR_SLOTS && ctx; i++) {
		if (!c->spare[i]) {
			c->spare[i] = ctx;
			ctx = NULL;
		}
	}
	pthread_mutex_unlock(&c->lock);
	codec_ctx_free(ctx);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static int unpack(struct chunks *c, struct node *file, const struct chunk *chunk, void *buf, struct img_error *err)
{
	struct codec_ctx *ctx = borrow(c);
	uint8_t *packed = malloc((size_t)(chunk->host_bytes ? chunk->host_bytes : 1));
	int ret = ctx && packed ? 0 : no_memory(c, err);

	if (ret == 0 && chunk->host_bytes > 0)
		ret = node_pread(file, packed, chunk->host_bytes, chunk->host_off, 0, err);
	if (ret == 0) {
		ret = codec_expand(ctx, chunk->codec, packed, (size_t)chunk->host_bytes, buf, (size_t)chunk->bytes);
		if (ret == IMG_E_NOMEM)
			no_memory(c, err);
		else if (ret != 0)
			error_set(err, ret, 0, chunk->host_off, LAYER,
				  "%s: the %s piece at 0x%" PRIx64 " does not expand to 0x%" PRIx64 " bytes", c->path,
				  codec_name(chunk->codec), chunk->host_off, chunk->bytes);
	}
	free(packed);
	if (ctx)
		give_back(c, ctx);
	return ret;
}

int chunks_expand(struct chunks *c, struct node *file, const struct chunk *chunk, void *buf, struct img_error *err)
{
	switch (chunk->kind) {
	case CHUNK_ZERO: memset(buf, 0, (size_t)chunk->bytes); return 0;
	case CHUNK_PLAIN: return node_pread(file, buf, chunk->bytes, chunk->host_off, 0, err);
	case CHUNK_PACKED: return unpack(c, file, chunk, buf, err);
	case CHUNK_UNREADABLE: break;
	}
	return error_set(err, IMG_E_UNSUPPORTED, 0, chunk->host_off, LAYER,
			 "%s: the disk from 0x%" PRIx64 " on is packed as %s, which this build cannot expand", c->path,
			 chunk->off, chunk->what);
}

static int read_part(struct chunks *c, struct node *file, size_t i, void *buf, uint64_t bytes, uint64_t within,
		     struct img_error *err)
{
	const struct chunk *chunk = &c->list[i];
	uint8_t *whole;
	int ret;

	if (chunk->kind == CHUNK_ZERO) {
		memset(buf, 0, (size_t)bytes);
		return 0;
	}
	if (chunk->kind == CHUNK_PLAIN)
		return node_pread(file, buf, bytes, chunk->host_off + within, 0, err);
	if (bytes == chunk->bytes || chunk->kind == CHUNK_UNREADABLE)
		return chunks_expand(c, file, chunk, buf, err);
	if (take_kept(c, i, buf, bytes, within))
		return 0;
	whole = malloc((size_t)chunk->bytes);
	if (!whole)
		return no_memory(c, err);
	ret = unpack(c, file, chunk, whole, err);
	if (ret != 0) {
		free(whole);
		return ret;
	}
	memcpy(buf, whole + within, (size_t)bytes);
	keep(c, i, whole, chunk->bytes);
	return 0;
}

int chunks_read(struct chunks *c, struct node *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t *out = buf;

	for (size_t i = find(c, off); bytes > 0; i++) {
		uint64_t within = off - c->list[i].off, n = min_u64(bytes, c->list[i].bytes - within);
		int ret = read_part(c, file, i, out, n, within, err);

		if (ret != 0)
			return ret;
		out += n;
		off += n;
		bytes -= n;
	}
	return 0;
}

int chunks_status(const struct chunks *c, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		  size_t *nr)
{
	*nr = 0;
	for (size_t i = find(c, off); bytes > 0 && *nr < cap; i++) {
		const struct chunk *chunk = &c->list[i];
		uint64_t within = off - chunk->off, n = min_u64(bytes, chunk->bytes - within);
		struct status_extent *e = &out[(*nr)++];

		*e = (struct status_extent){
			.off = off, .bytes = n, .kind = STATUS_COMPRESSED, .host_off = STATUS_NO_HOST
		};
		if (chunk->kind == CHUNK_ZERO)
			e->kind = STATUS_ZERO;
		if (chunk->kind == CHUNK_PLAIN) {
			e->kind = STATUS_DATA;
			e->host_off = chunk->host_off + within;
		}
		off += n;
		bytes -= n;
	}
	return 0;
}
