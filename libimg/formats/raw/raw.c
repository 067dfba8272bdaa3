/* SPDX-License-Identifier: MIT */
/*
 * Format "raw": the file is the content, byte for byte. Holes of the host file read as zeros and are reported as such.
 * There is no magic, so raw is never recognised: it is what is left over for reading, and must be named for writing (a
 * guest that writes another format's magic into its disk must not change how the next open takes the file).
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "node.h"
#include "option_list.h"

#define LAYER	    "raw"
#define CHUNK_BYTES (1u << 20)

struct raw_state {
	_Atomic bool dirty; /* something changed that no flush has covered */
};

enum preallocation {
	PREALLOC_OFF,	 /* a hole */
	PREALLOC_FALLOC, /* space reserved, not written */
	PREALLOC_FULL,	 /* zeros written */
};

static int option_set(void *ctx, const char *key, const char *v, struct img_error *err)
{
	static const char *const names[] = { "off", "falloc", "full" };
	enum preallocation *how = ctx;

	if (strcmp(key, "preallocation") != 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "raw has no option '%.32s'", key);
	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		if (!strcmp(v, names[i])) {
			*how = (enum preallocation)i;
			return 0;
		}
	}
	return option_wrong(LAYER, key, "off, falloc or full", v, err);
}

/* Real zeros: zeroing would punch holes. */
static int fill(struct node *file, uint64_t size_bytes, struct img_error *err)
{
	uint8_t *zeros = calloc(1, CHUNK_BYTES);
	int ret = 0;

	if (!zeros)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", file->path);
	for (uint64_t off = 0; off < size_bytes && ret == 0; off += CHUNK_BYTES)
		ret = node_pwrite(file, zeros, min_u64(CHUNK_BYTES, size_bytes - off), off, 0, err);
	free(zeros);
	return ret;
}

static int raw_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	enum preallocation how = PREALLOC_OFF;
	int ret = option_each(args->options, LAYER, option_set, &how, err);

	if (ret != 0)
		return ret;
	if (args->backing)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: raw images cannot have a backing file", file->path);
	ret = node_resize(file, args->size_bytes, err);
	if (ret == 0 && how != PREALLOC_OFF)
		ret = node_allocate(file, args->size_bytes, 0, err);
	if (ret == 0 && how == PREALLOC_FULL)
		ret = fill(file, args->size_bytes, err);
	return ret;
}

static int raw_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	if (args->snapshot)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: raw images have no snapshots, so there is no '%s'", node->path, args->snapshot);
	return 0;
}

static int raw_flush(struct node *node, unsigned flags, struct img_error *err)
{
	struct raw_state *st = node->state;
	int ret;

	(void)flags;
	atomic_store(&st->dirty, false);
	ret = node_flush(node->file, 0, err);
	if (ret != 0)
		atomic_store(&st->dirty, true);
	return ret;
}

static int raw_close(struct node *node, struct img_error *err)
{
	struct raw_state *st = node->state;

	return node->writable && atomic_load(&st->dirty) ? raw_flush(node, 0, err) : 0;
}

static uint64_t raw_size(const struct node *node)
{
	return node_size(node->file);
}

static void raw_limits(const struct node *node, struct driver_limits *out)
{
	(void)node;
	*out = (struct driver_limits){ .block_bytes = 1, .optimal_bytes = 64u << 10, .max_size_bytes = INT64_MAX };
}

static int raw_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return node_pread(node->file, buf, bytes, off, 0, err);
}

/* After the change, whatever became of it: a flush that began before it ended does not cover it. */
static int touched(struct node *node, int ret)
{
	struct raw_state *st = node->state;

	atomic_store(&st->dirty, true);
	return ret;
}

static int raw_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err)
{
	return touched(node, node_pwrite(node->file, buf, bytes, off, flags & IMG_IO_FUA, err));
}

static int raw_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	return touched(node, node_zero(node->file, bytes, off, flags & (IMG_IO_FUA | IMG_IO_NO_UNMAP), err));
}

static int raw_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return touched(node, node_discard(node->file, bytes, off, 0, err));
}

static int raw_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		      size_t *nr, struct img_error *err)
{
	int ret = node_status(node->file, bytes, off, out, cap, nr, err);

	for (size_t i = 0; ret == 0 && i < *nr; i++) {
		/* Nothing lies below raw: what its file does not hold is zeros. */
		if (out[i].kind == STATUS_UNALLOCATED)
			out[i].kind = STATUS_ZERO;
		if (out[i].kind == STATUS_DATA)
			out[i].host_off = out[i].off;
	}
	return ret;
}

static int raw_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	return touched(node, node_resize(node->file, size_bytes, err));
}

static int raw_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	enum preallocation how = PREALLOC_OFF;
	int ret = option_each(args->options, LAYER, option_set, &how, err);

	out->required_bytes = args->size_bytes;
	out->fully_allocated_bytes = args->size_bytes;
	return ret;
}

/* ---- from front to back ------------------------------------------------------------------------------------------ */

/* Zeros come as data: there are no holes in a pipe. */
struct raw_sequence {
	struct node *file;
	uint64_t off; /* written so far */
};

static int sequence_ask(const char *options, struct img_error *err)
{
	enum preallocation how = PREALLOC_OFF;
	int ret = option_each(options, LAYER, option_set, &how, err);

	if (ret == 0 && how != PREALLOC_OFF)
		ret = error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				"what is written from front to back cannot be preallocated");
	return ret;
}

static int sequence_begin(struct node *file, const struct driver_create *args, struct sequence_shape *shape,
			  void **state, struct img_error *err)
{
	struct raw_sequence *s = calloc(1, sizeof(*s));

	(void)args;
	(void)shape;
	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", file->path);
	s->file = file;
	*state = s;
	return 0;
}

static int sequence_put(void *state, const uint8_t *data, const struct sequence_unit *units, size_t nr,
			struct img_error *err)
{
	struct raw_sequence *s = state;
	int ret = 0;

	for (size_t i = 0; i < nr && ret == 0; i++) {
		ret = node_pwrite(s->file, data, units[i].bytes, s->off, 0, err);
		s->off += units[i].bytes;
		data += units[i].bytes;
	}
	return ret;
}

static int sequence_end(void *state, struct img_error *err)
{
	(void)state;
	(void)err;
	return 0;
}

static const struct driver_sequence raw_sequence = {
	.ask = sequence_ask,
	.begin = sequence_begin,
	.put = sequence_put,
	.end = sequence_end,
	.free = free,
};

const struct img_driver raw_driver = {
	.name = "raw",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct raw_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.native_io = IMG_IO_FUA,
	.never_guess_for_writing = true,
	.create_help = "preallocation=off (a hole), falloc (space reserved) or full (zeros written)\n",
	.create = raw_create,
	.open = raw_open,
	.close = raw_close,
	.size = raw_size,
	.limits = raw_limits,
	.pread = raw_pread,
	.pwrite = raw_pwrite,
	.zero = raw_zero,
	.discard = raw_discard,
	.flush = raw_flush,
	.status = raw_status,
	.resize = raw_resize,
	.measure = raw_measure,
	.sequence = &raw_sequence,
};
