/* SPDX-License-Identifier: MIT */
/* See lookup.h. lookup_check.c has the walk over everything, lookup_driver.c what drivers have in common. */
#include "lookup.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "lookup_int.h"

static uint64_t entry_of(const struct lookup *l, const uint8_t *raw)
{
	struct be64 be;

	if (lookup_entry_bytes(l) == 4)
		return le32_at(raw, 0);
	memcpy(be.b, raw, sizeof(be.b));
	return l->ops->big_endian ? be64_get(be) : le64_at(raw, 0);
}

int lookup_table_of(struct lookup *l, const uint8_t *raw, uint64_t at, uint64_t *off, struct img_error *err)
{
	*off = entry_of(l, raw);
	if (mul_overflows(*off, l->ops->scale ? l->ops->scale : 1, off) ||
	    (*off != 0 &&
	     (*off % 512 != 0 || !range_inside(*off, l->table_entries * lookup_entry_bytes(l), l->file_bytes))))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: a table of clusters is at 0x%" PRIx64 ", not inside the file", l->node->path,
				 *off);
	return 0;
}

int lookup_table(struct lookup *l, uint64_t index, uint64_t *off, struct img_error *err)
{
	uint64_t at = l->first_off + index * lookup_entry_bytes(l);
	uint8_t raw[8];
	int ret = node_pread(l->file, raw, lookup_entry_bytes(l), at, 0, err);

	return ret == 0 ? lookup_table_of(l, raw, at, off, err) : ret;
}

int lookup_decode(struct lookup *l, const uint8_t *raw, uint64_t at, struct lookup_entry *out, struct img_error *err)
{
	int ret;

	*out = (struct lookup_entry){ .kind = LOOKUP_BELOW, .bytes = l->cluster_bytes };
	ret = l->ops->decode(l, entry_of(l, raw), out, err);
	if (ret == 0 && (out->kind == LOOKUP_DATA || out->kind == LOOKUP_PACKED) &&
	    !range_inside(out->off, out->kind == LOOKUP_DATA ? out->bytes : 1, l->file_bytes))
		ret = error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				"%s: the cluster at 0x%" PRIx64 " is not inside the file", l->node->path, out->off);
	return ret;
}

/* ---- runs: clusters of one kind, in a row in the file too -------------------------------------------------------- */

struct run {
	struct lookup_entry first;
	uint64_t bytes; /* of the disk, from where it was asked for */
};

/* The run that begins at off, of at most bytes. PACKED: one cluster. */
static int next_run(struct lookup *l, uint64_t off, uint64_t bytes, struct run *out, struct img_error *err)
{
	uint64_t cluster = off / l->cluster_bytes, within = off % l->cluster_bytes, index = cluster % l->table_entries;
	uint64_t wanted = (within + bytes - 1) / l->cluster_bytes + 1, table, at, nr;
	uint32_t size = lookup_entry_bytes(l);
	uint8_t raw[8 * BATCH];
	int ret = lookup_table(l, cluster / l->table_entries, &table, err);

	if (ret != 0)
		return ret;
	nr = min_u64(wanted, l->table_entries - index);
	if (table == 0) {
		*out = (struct run){ { .kind = LOOKUP_BELOW }, min_u64(bytes, nr * l->cluster_bytes - within) };
		return 0;
	}
	nr = min_u64(nr, BATCH);
	at = table + index * size;
	ret = node_pread(l->file, raw, nr * size, at, 0, err);
	if (ret == 0)
		ret = lookup_decode(l, raw, at, &out->first, err);
	if (ret != 0)
		return ret;
	out->bytes = l->cluster_bytes;
	for (uint64_t i = 1; i < nr && out->first.kind != LOOKUP_PACKED; i++, out->bytes += l->cluster_bytes) {
		struct lookup_entry e;

		/* What is wrong with the next one is told when it is reached. */
		if (lookup_decode(l, raw + size * i, at + size * i, &e, NULL) != 0 || e.kind != out->first.kind ||
		    (e.kind == LOOKUP_DATA && e.off != out->first.off + out->bytes))
			break;
	}
	out->bytes = min_u64(bytes, out->bytes - within);
	if (out->first.kind == LOOKUP_DATA)
		out->first.off += within;
	return 0;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static int expand_prefix(struct lookup *l, struct codec_ctx *codec, const struct lookup_entry *e, uint8_t *out,
			 struct img_error *err)
{
	uint64_t bytes = min_u64(e->bytes, l->file_bytes - e->off);
	uint8_t *packed = malloc((size_t)bytes);
	int ret = packed ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", l->node->path);

	if (ret == 0)
		ret = node_pread(l->file, packed, bytes, e->off, 0, err);
	if (ret == 0) {
		ret = codec_expand_prefix(codec, l->ops->codec, packed, (size_t)bytes, out, (size_t)l->cluster_bytes);
		if (ret != 0)
			error_set(err, ret, 0, e->off, LAYER, "%s: the compressed cluster at 0x%" PRIx64 " %s",
				  l->node->path, e->off, ret == IMG_E_NOMEM ? "needs memory" : "is damaged");
	}
	free(packed);
	return ret;
}

int lookup_expand(struct lookup *l, struct codec_ctx *codec, const struct lookup_entry *e, uint64_t disk_off,
		  uint8_t *out, const char **rule, struct img_error *err)
{
	*rule = l->ops->data_rule;
	return l->ops->expand ? l->ops->expand(l, codec, e, disk_off, out, rule, err) :
				expand_prefix(l, codec, e, out, err);
}

/* An expander that is kept, or another one. NULL: no memory. */
static struct codec_ctx *borrow(struct lookup *l)
{
	struct codec_ctx *codec = NULL;

	pthread_mutex_lock(&l->lock);
	for (size_t i = 0; i < LOOKUP_CODECS && !codec; i++) {
		codec = l->codec[i];
		l->codec[i] = NULL;
	}
	pthread_mutex_unlock(&l->lock);
	return codec ? codec : codec_ctx_new();
}

static void give_back(struct lookup *l, struct codec_ctx *codec)
{
	pthread_mutex_lock(&l->lock);
	for (size_t i = 0; i < LOOKUP_CODECS && codec; i++)
		if (!l->codec[i]) {
			l->codec[i] = codec;
			codec = NULL;
		}
	pthread_mutex_unlock(&l->lock);
	codec_ctx_free(codec);
}

static int expand(struct lookup *l, const struct lookup_entry *e, uint64_t disk_off, uint8_t *out,
		  struct img_error *err)
{
	struct codec_ctx *codec = borrow(l);
	const char *rule;
	int ret;

	if (!codec)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", l->node->path);
	ret = lookup_expand(l, codec, e, disk_off, out, &rule, err);
	give_back(l, codec);
	return ret;
}

static bool take_kept(struct lookup *l, const struct lookup_entry *e, uint64_t within, void *buf, uint64_t bytes)
{
	bool is;

	pthread_mutex_lock(&l->lock);
	is = l->kept_off == e->off && l->kept_bytes == e->bytes && l->kept_bytes > 0;
	if (is)
		memcpy(buf, l->kept + within, (size_t)bytes);
	pthread_mutex_unlock(&l->lock);
	return is;
}

static int read_packed(struct lookup *l, const struct lookup_entry *e, uint64_t off, void *buf, uint64_t bytes,
		       struct img_error *err)
{
	uint64_t within = off % l->cluster_bytes;
	uint8_t *whole, *old;
	int ret;

	if (bytes == l->cluster_bytes)
		return expand(l, e, off, buf, err);
	if (take_kept(l, e, within, buf, bytes))
		return 0;
	whole = malloc((size_t)l->cluster_bytes);
	if (!whole)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", l->node->path);
	ret = expand(l, e, off - within, whole, err);
	if (ret != 0) {
		free(whole);
		return ret;
	}
	memcpy(buf, whole + within, (size_t)bytes);
	pthread_mutex_lock(&l->lock);
	old = l->kept;
	l->kept = whole;
	l->kept_off = e->off;
	l->kept_bytes = e->bytes;
	pthread_mutex_unlock(&l->lock);
	free(old);
	return 0;
}

static int read_run(struct lookup *l, const struct run *run, void *buf, uint64_t off, struct img_error *err)
{
	switch (run->first.kind) {
	case LOOKUP_BELOW: return node_read_backing(l->node, buf, run->bytes, off, err);
	case LOOKUP_ZERO: memset(buf, 0, (size_t)run->bytes); break;
	case LOOKUP_DATA: return node_pread(l->file, buf, run->bytes, run->first.off, 0, err);
	case LOOKUP_PACKED: return read_packed(l, &run->first, off, buf, run->bytes, err);
	}
	return 0;
}

int lookup_pread(struct lookup *l, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t *out = buf;
	int ret = 0;

	while (bytes > 0 && ret == 0) {
		struct run run;

		ret = next_run(l, off, bytes, &run, err);
		if (ret == 0)
			ret = read_run(l, &run, out, off, err);
		if (ret != 0)
			return ret;
		out += run.bytes;
		off += run.bytes;
		bytes -= run.bytes;
	}
	return 0;
}

int lookup_entry_of(struct lookup *l, uint64_t cluster, struct lookup_entry *out, struct img_error *err)
{
	struct run run;
	int ret = next_run(l, cluster * l->cluster_bytes, 1, &run, err);

	if (ret == 0)
		*out = run.first;
	return ret;
}

int lookup_status(struct lookup *l, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	static const enum status_kind kinds[] = {
		[LOOKUP_BELOW] = STATUS_UNALLOCATED,
		[LOOKUP_ZERO] = STATUS_ZERO,
		[LOOKUP_DATA] = STATUS_DATA,
		[LOOKUP_PACKED] = STATUS_COMPRESSED,
	};

	*nr = 0;
	while (bytes > 0 && *nr < cap) {
		struct run run;
		int ret = next_run(l, off, bytes, &run, err);

		if (ret != 0)
			return ret;
		out[(*nr)++] = (struct status_extent){
			.off = off,
			.bytes = run.bytes,
			.kind = kinds[run.first.kind],
			.host_off = run.first.kind == LOOKUP_DATA ? run.first.off : STATUS_NO_HOST,
		};
		off += run.bytes;
		bytes -= run.bytes;
	}
	return 0;
}
