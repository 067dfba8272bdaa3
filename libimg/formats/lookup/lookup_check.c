/* SPDX-License-Identifier: MIT */
/* The walk over all tables of an image: for its check, and for what its mapping amounts to. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "checked.h"
#include "error.h"
#include "is_zero.h"
#include "lookup_int.h"

#define SECTOR_BYTES 512u

/*
 * Called with each entry that was read; why: what is wrong with it, NULL: nothing. e NULL: nr entries of the first
 * level without a table. Not 0 ends the walk.
 */
typedef int (*entry_fn)(void *ctx, uint64_t cluster, uint64_t nr, uint64_t at, const struct lookup_entry *e,
			const struct img_error *why, struct img_error *err);

static int walk_table(struct lookup *l, uint64_t table, uint64_t first, uint64_t nr, entry_fn fn, void *ctx,
		      struct img_error *err)
{
	uint32_t size = lookup_entry_bytes(l);
	uint8_t raw[8 * BATCH];
	int ret = 0;

	for (uint64_t i = 0; i < nr && ret == 0; i++) {
		uint64_t at = table + size * i;
		struct img_error why = { 0 };
		struct lookup_entry e;
		int bad;

		if (i % BATCH == 0)
			ret = node_pread(l->file, raw, min_u64(BATCH, nr - i) * size, at, 0, err);
		if (ret != 0)
			return ret;
		bad = lookup_decode(l, raw + size * (i % BATCH), at, &e, &why);
		ret = fn(ctx, first + i, 1, at, &e, bad ? &why : NULL, err);
	}
	return ret;
}

/* Entries of the first level, read in batches: there may be millions, of which most lead nowhere. */
struct directory {
	uint64_t nr;
	bool held; /* the batch that the walk is in is in raw */
	uint8_t raw[8 * BATCH];
};

/* Before the first entry of a batch. How many entries from here on have no table, if it is the whole batch; or 0. */
static uint64_t directory_load(struct lookup *l, struct directory *d, uint64_t index)
{
	uint64_t nr = min_u64(BATCH, d->nr - index);
	size_t bytes = (size_t)nr * lookup_entry_bytes(l);

	d->held = node_pread(l->file, d->raw, bytes, l->first_off + index * lookup_entry_bytes(l), 0, NULL) == 0;
	return d->held && is_zero(d->raw, bytes) ? nr : 0;
}

static int directory_get(struct lookup *l, const struct directory *d, uint64_t index, uint64_t *table,
			 struct img_error *err)
{
	uint32_t size = lookup_entry_bytes(l);
	uint64_t at = l->first_off + index * size;

	/* Where some of a batch cannot be read each entry says for itself whether it can. */
	if (!d->held)
		return lookup_table(l, index, table, err);
	return lookup_table_of(l, d->raw + size * (index % BATCH), at, table, err);
}

#define WALK_NO_ROOM 2 /* tables are used more than once: the rest was not walked */

static int walk(struct lookup *l, entry_fn fn, void *ctx, struct img_error *err)
{
	uint64_t nr = l->disk_bytes / l->cluster_bytes + (l->disk_bytes % l->cluster_bytes != 0), table, step;
	uint64_t room =
		l->file_bytes /
		(l->table_entries * lookup_entry_bytes(l)); /* for tables: those of an honest image do not overlap */
	struct directory d = { .nr = nr / l->table_entries + (nr % l->table_entries != 0) };
	struct img_error why = { 0 }; /* of one entry: is filled where its code says that it is empty */
	int ret = 0;

	for (uint64_t index = 0; index < d.nr && ret == 0; index += step, why.code = IMG_OK) {
		uint64_t first = index * l->table_entries,
			 absent = index % BATCH == 0 ? directory_load(l, &d, index) : 0;
		int bad = absent ? 0 : directory_get(l, &d, index, &table, &why);

		step = max_u64(absent, 1);
		if (absent > 0) {
			ret = fn(ctx, first, absent, NO_OFFSET, NULL, NULL, err);
		} else if (bad == IMG_E_CORRUPT) {
			ret = fn(ctx, first, 1, why.offset, NULL, &why, err);
		} else if (bad != 0) {
			if (err)
				*err = why;
			ret = bad;
		} else if (table != 0 && room == 0) {
			error_set(&why, IMG_E_CORRUPT, 0, table, LAYER,
				  "%s: more tables of clusters than there is room for", l->node->path);
			ret = fn(ctx, first, 1, table, NULL, &why, err);
			return ret == 0 ? WALK_NO_ROOM : ret;
		} else if (table != 0) {
			room--;
			ret = walk_table(l, table, first, min_u64(l->table_entries, nr - first), fn, ctx, err);
		} else {
			ret = fn(ctx, first, 1, NO_OFFSET, NULL, NULL, err);
		}
	}
	return ret;
}

/* ---- check ------------------------------------------------------------------------------------------------------- */

struct check {
	struct lookup *l;
	struct codec_ctx *codec;
	unsigned flags;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
	uint8_t *used; /* a bit for each sector of the file */
	uint8_t *buf;  /* room for a cluster */
};

static void found(struct check *k, const char *rule, uint64_t at, uint64_t cluster, const char *msg)
{
	struct img_finding f = { .kind = IMG_FINDING_DAMAGE,
				 .file_off = at,
				 .guest_off = cluster * k->l->cluster_bytes };

	k->out->damage++;
	if (!k->fn)
		return;
	(void)snprintf(f.rule, sizeof(f.rule), "%s", rule);
	(void)snprintf(f.msg, sizeof(f.msg), "%s", msg);
	k->fn(k->ctx, &f);
}

/* Plain clusters only: packed ones may share a sector. */
static bool claim(struct check *k, const struct lookup_entry *e)
{
	bool free = true;

	for (uint64_t i = e->off / SECTOR_BYTES; i < (e->off + e->bytes + SECTOR_BYTES - 1) / SECTOR_BYTES; i++) {
		free = free && !(k->used[i / 8] >> (i % 8) & 1);
		k->used[i / 8] |= (uint8_t)(1u << i % 8);
	}
	return free;
}

static int read_cluster(struct check *k, uint64_t cluster, uint64_t at, const struct lookup_entry *e,
			struct img_error *err)
{
	const char *rule = k->l->ops->data_rule;
	struct img_error why = { 0 };
	int ret;

	if (e->kind == LOOKUP_PACKED)
		ret = lookup_expand(k->l, k->codec, e, cluster * k->l->cluster_bytes, k->buf, &rule, &why);
	else
		ret = node_pread(k->l->file, k->buf, e->bytes, e->off, 0, &why);
	if (ret == IMG_E_CORRUPT || ret == IMG_E_IO) {
		found(k, rule, at, cluster, why.msg);
		return 0;
	}
	if (ret != 0 && err)
		*err = why;
	k->out->data_bytes += ret ? 0 : k->l->cluster_bytes;
	return ret;
}

static int check_entry(void *ctx, uint64_t cluster, uint64_t nr, uint64_t at, const struct lookup_entry *e,
		       const struct img_error *why, struct img_error *err)
{
	struct check *k = ctx;
	char msg[160];
	int ret = 0;

	k->out->metadata_bytes += nr * lookup_entry_bytes(k->l);
	if (why) {
		found(k, k->l->ops->rule, at, cluster, why->msg);
		return 0;
	}
	if (e && e->kind == LOOKUP_DATA && !claim(k, e)) {
		(void)snprintf(msg, sizeof(msg), "the cluster at 0x%" PRIx64 " belongs to another one as well", e->off);
		found(k, k->l->ops->rule, at, cluster, msg);
	}
	if (e && (e->kind == LOOKUP_DATA || e->kind == LOOKUP_PACKED) && !(k->flags & IMG_CHECK_METADATA))
		ret = read_cluster(k, cluster, at, e, err);
	if (ret == 0 && k->progress && k->progress->fn && cluster % BATCH == 0 &&
	    k->progress->fn(k->progress->ctx, cluster * k->l->cluster_bytes, k->l->disk_bytes) != 0)
		ret = error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "%s: cancelled", k->l->node->path);
	return ret;
}

int lookup_check(struct lookup *l, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err)
{
	struct check k = { .l = l, .flags = flags, .fn = fn, .ctx = ctx, .progress = progress, .out = out };
	uint64_t used_bytes = l->file_bytes / SECTOR_BYTES / 8 + 1;
	int ret;

	k.codec = codec_ctx_new();
	k.used = used_bytes <= SIZE_MAX ? calloc((size_t)used_bytes, 1) : NULL;
	k.buf = malloc((size_t)l->cluster_bytes);
	if (k.codec && k.used && k.buf)
		ret = walk(l, check_entry, &k, err);
	else
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", l->node->path);
	codec_ctx_free(k.codec);
	free(k.used);
	free(k.buf);
	return ret > 0 ? 0 : ret; /* what was not walked was told */
}

/* ---- how much ---------------------------------------------------------------------------------------------------- */

struct sum {
	struct lookup *l;
	uint64_t limit, bytes, bad;
};

static int add_entry(void *ctx, uint64_t cluster, uint64_t nr, uint64_t at, const struct lookup_entry *e,
		     const struct img_error *why, struct img_error *err)
{
	struct sum *s = ctx;

	(void)cluster;
	(void)nr;
	(void)at;
	(void)err;
	s->bad += why != NULL;
	if (e && !why && (e->kind == LOOKUP_DATA || e->kind == LOOKUP_PACKED))
		s->bytes += s->l->cluster_bytes;
	return s->bytes > s->limit;
}

int lookup_mapped(struct lookup *l, uint64_t limit, uint64_t *bytes, uint64_t *bad, struct img_error *err)
{
	struct sum s = { .l = l, .limit = limit };
	int ret = walk(l, add_entry, &s, err);

	/* Where tables are shared nothing bounds what they lead to, but the disk. */
	*bytes = ret == WALK_NO_ROOM ? max_u64(s.bytes, l->disk_bytes) : s.bytes;
	*bad = s.bad;
	return ret > 0 ? 0 : ret;
}
