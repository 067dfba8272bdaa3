/* SPDX-License-Identifier: MIT */
/*
 * Format "dmg", Apple's Universal Disk Image Format: pieces that are plain, zero or packed, found by tables in a
 * property list that a trailer at the end of the file points to. Read only; neither encrypted nor in several files.
 * format-spec/dmg.md has the rules that are named here, and the sources.
 *
 * The tables are read and sorted when the image is opened. What no table covers reads as zeros.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "checked.h"
#include "dmg.h"
#include "error.h"
#include "inspect.h"

#define LAYER	   "dmg"
#define FIRST_ROOM 256u

struct dmg_state {
	struct chunks_state shared; /* first */
	struct disk_dmg_trailer trailer;
};

static int probe(const struct probe_data *d)
{
	if (d->head_bytes >= 8 && memcmp(d->head, "encrcdsa", 8) == 0)
		return 100;
	return d->tail_bytes >= sizeof(struct disk_dmg_trailer) &&
			       memcmp(d->tail + d->tail_bytes - sizeof(struct disk_dmg_trailer), "koly", 4) == 0 ?
		       100 :
		       0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

struct gather {
	const char *path;
	const struct disk_dmg_trailer *trailer;
	struct budget *budget;
	struct chunk *list; /* as the tables have them */
	size_t nr, room;
};

static int gather_one(struct gather *g, const struct chunk *chunk, struct img_error *err)
{
	size_t room = g->room ? 2 * g->room : FIRST_ROOM;
	struct chunk *list;
	int ret;

	if (g->nr == g->room) {
		ret = budget_metadata(g->budget, g->path, (room - g->room) * sizeof(*list), err);
		if (ret != 0)
			return ret;
		list = reallocarray(g->list, room, sizeof(*list));
		if (!list)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", g->path);
		g->list = list;
		g->room = room;
	}
	g->list[g->nr++] = *chunk;
	return 0;
}

static int gather_table(void *ctx, const struct dmg_table *table, struct img_error *err)
{
	struct gather *g = ctx;
	struct chunk chunk;
	int ret = 0;

	for (uint32_t i = 0; i < table->nr_runs && ret >= 0; i++) {
		ret = dmg_chunk_of(g->path, g->trailer, table, i, &chunk, err);
		if (ret > 0 && chunk.bytes > 0)
			ret = gather_one(g, &chunk, err);
	}
	return ret < 0 ? ret : 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct chunk *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static int add_zeros(struct chunks *c, uint64_t until, struct img_error *err)
{
	struct chunk gap = { .off = chunks_size(c), .bytes = until - chunks_size(c), .kind = CHUNK_ZERO };

	return until > gap.off ? chunks_add(c, &gap, 0, NO_OFFSET, err) : 0;
}

static int build(const struct chunks_source *src, struct gather *g, struct chunks *c, struct img_error *err)
{
	uint64_t bytes;
	int ret = 0;

	if (g->nr > 0)
		qsort(g->list, g->nr, sizeof(*g->list), by_offset);
	for (size_t i = 0; i < g->nr && ret == 0; i++) {
		ret = add_zeros(c, g->list[i].off, err);
		if (ret == 0)
			ret = chunks_add(c, &g->list[i], node_size(src->file), NO_OFFSET, err);
	}
	if (ret != 0)
		return ret;
	if (mul_overflows(be64_get(g->trailer->nr_sectors), DMG_SECTOR_BYTES, &bytes) || bytes > INT64_MAX)
		return error_set(err, IMG_E_CORRUPT, 0, node_size(src->file) - 20, LAYER,
				 "%s: a disk of %" PRIu64 " sectors", src->path, be64_get(g->trailer->nr_sectors));
	return add_zeros(c, bytes, err);
}

/* By what most of the packed bytes of the disk are packed; NULL: none are. */
static const char *main_codec(const struct chunks *c)
{
	static const enum codec_id ids[] = { CODEC_ZLIB, CODEC_BZIP2, CODEC_XZ, CODEC_ADC, CODEC_LZFSE };
	uint64_t sum[ARRAY_LEN(ids)] = { 0 }, most = 0;
	const char *name = NULL;
	const struct chunk *chunk;

	for (size_t i = 0; (chunk = chunks_at(c, i)) != NULL; i++) {
		for (size_t k = 0; k < ARRAY_LEN(ids) && chunk->what; k++) {
			if (chunk->codec == ids[k])
				sum[k] += chunk->bytes;
			if (chunk->codec == ids[k] && sum[k] > most) {
				most = sum[k];
				name = chunk->what;
			}
		}
	}
	return name;
}

static int load(const struct chunks_source *src, struct chunks_state *state, struct img_error *err)
{
	struct dmg_state *s = (struct dmg_state *)state;
	struct gather g = { .path = src->path, .trailer = &s->trailer, .budget = src->budget };
	int ret = dmg_read_trailer(src->file, src->path, &s->trailer, err);

	if (ret == 0)
		ret = dmg_each_table(src->file, src->path, &s->trailer, src->budget, gather_table, &g, err);
	if (ret == 0)
		ret = build(src, &g, s->shared.chunks, err);
	free(g.list);
	if (ret == 0)
		state->packed = main_codec(s->shared.chunks);
	return ret;
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	return chunks_node_open(node, args, load, err);
}

/* ---- check ------------------------------------------------------------------------------------------------------- */

struct verify {
	struct node *node;
	const struct disk_dmg_trailer *trailer;
	const struct chunks_check *k;
	uint8_t *buf;
	uLong crc;	  /* of the table that is read */
	bool whole;	  /* all of it could be */
	uLong tables_crc; /* of the tables' own on record, one behind the other */
	bool all_crc;	  /* each table has one */
};

static void add_part(void *ctx, const uint8_t *data, uint64_t bytes)
{
	static const uint8_t zeros[4096];
	struct verify *v = ctx;

	if (data) {
		v->crc = crc32_z(v->crc, data, (size_t)bytes);
		return;
	}
	for (uint64_t n; bytes > 0; bytes -= n) {
		n = min_u64(bytes, sizeof(zeros));
		v->crc = crc32_z(v->crc, zeros, (size_t)n);
	}
}

static int verify_runs(struct verify *v, const struct dmg_table *table, struct img_error *err)
{
	uint64_t damage = v->k->out->damage;
	struct chunk chunk;
	int ret = 0;

	v->crc = crc32(0, NULL, 0);
	v->whole = true;
	for (uint32_t i = 0; i < table->nr_runs && ret >= 0; i++) {
		bool ignored = be32_get(table->runs[i].type) == DMG_IGNORE;

		ret = dmg_chunk_of(v->node->path, v->trailer, table, i, &chunk, err);
		if (ret <= 0 || ignored)
			continue;
		v->whole = v->whole && chunk.kind != CHUNK_UNREADABLE;
		ret = chunks_check_one(v->node, v->k, &chunk, v->buf, add_part, v, err);
	}
	v->whole = v->whole && v->k->out->damage == damage;
	return ret < 0 ? ret : 0;
}

static int verify_table(void *ctx, const struct dmg_table *table, struct img_error *err)
{
	const struct disk_dmg_checksum *sum = &table->head->checksum;
	struct verify *v = ctx;
	int ret = verify_runs(v, table, err);
	char msg[160];
	struct be32 want;

	if (ret != 0)
		return ret;
	memcpy(&want, sum->value, sizeof(want));
	v->tables_crc = crc32_z(v->tables_crc, want.b, sizeof(want.b));
	if (be32_get(sum->type) != DMG_CHECKSUM_CRC32) {
		v->all_crc = false;
		return 0;
	}
	if (v->whole && (uint32_t)v->crc != be32_get(want)) {
		struct chunk at = { .off = be64_get(table->head->first_sector) * DMG_SECTOR_BYTES };

		(void)snprintf(msg, sizeof(msg), "the content of a table has CRC 0x%08lx, 0x%08" PRIx32 " is on record",
			       v->crc, be32_get(want));
		chunks_found(v->k, "DMG-6", &at, msg);
	}
	return 0;
}

static void verify_all(const struct verify *v)
{
	struct be32 want;
	char msg[160];

	memcpy(&want, v->trailer->checksum.value, sizeof(want));
	if (!v->all_crc || be32_get(v->trailer->checksum.type) != DMG_CHECKSUM_CRC32 ||
	    be32_get(want) == (uint32_t)v->tables_crc)
		return;
	(void)snprintf(msg, sizeof(msg), "the tables' CRCs have the CRC 0x%08lx, 0x%08" PRIx32 " is on record",
		       v->tables_crc, be32_get(want));
	chunks_found(v->k, "DMG-7", NULL, msg);
}

static int check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err)
{
	const struct dmg_state *s = node->state;
	const struct chunks_check k = { .rule = "DMG-5", .fn = fn, .ctx = ctx, .progress = progress, .out = out };
	struct verify v = { .node = node, .trailer = &s->trailer, .k = &k, .all_crc = true };
	int ret;

	out->metadata_bytes = sizeof(s->trailer) + be64_get(s->trailer.list_bytes);
	if (flags & IMG_CHECK_METADATA)
		return 0;
	v.buf = malloc(CHUNK_MAX_BYTES);
	if (!v.buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", node->path);
	v.tables_crc = crc32(0, NULL, 0);
	ret = dmg_each_table(node->file, node->path, &s->trailer, NULL, verify_table, &v, err);
	if (ret == 0)
		verify_all(&v);
	free(v.buf);
	return ret;
}

/* ---- inspection -------------------------------------------------------------------------------------------------- */

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	uint64_t size = node_size(file), at = size >= DMG_SECTOR_BYTES ? size - DMG_SECTOR_BYTES : 0;
	struct dmg_state s = { 0 };
	struct disk_dmg_trailer t;
	uint8_t head[8];
	int ret = inspect_read(file, &t, sizeof(t), at, err);

	if (ret == 0)
		ret = inspect_read(file, head, sizeof(head), 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(head, "encrcdsa", 8) == 0) {
		inspect_found(in, INSPECT_ENCRYPTED, 0, "an encrypted disk image");
		return 0;
	}
	if (be32_get(t.nr_segments) > 1)
		inspect_found(in, INSPECT_EXTENT_FILE, at + 60, "one of %" PRIu32 " parts", be32_get(t.nr_segments));
	if (!range_inside(be64_get(t.data_off), be64_get(t.data_bytes), size))
		inspect_found(in, INSPECT_TABLE_BOUNDS, at + 24, "its data lie outside the file");
	return chunks_inspect(file, in, load, &s.shared, err);
}

const struct img_driver dmg_driver = {
	.name = "dmg",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct dmg_state),
	.caps = IMG_CAP_CHECK,
	.probe = probe,
	.open = open_member,
	.close = chunks_node_close,
	.size = chunks_node_size,
	.limits = chunks_node_limits,
	.pread = chunks_node_pread,
	.status = chunks_node_status,
	.info = chunks_node_info,
	.check = check,
	.inspect = inspect,
};
