/* SPDX-License-Identifier: MIT */
/*
 * Format "asif": sparse images of macOS 26. A header, two directories of which the one with the higher version counts,
 * and tables that say for each chunk of the disk where in the file it is. Read only, and nothing is guessed: there is
 * no public specification, so a version, a flag or a state of a chunk that was never seen with a known content is
 * refused. format-spec/asif.md says what is relied on, and from where it is known.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "chunks.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LAYER		"asif"
#define SECTOR_BYTES	512u
#define MIN_CHUNK_BYTES (64u << 10)
#define MAX_CHUNK_BYTES (16u << 20)
#define BATCH		1024u /* entries that are read at once */
#define STATE_SHIFT	62
#define STATE_FREE	0u
#define STATE_FULL	1u
#define NUMBER_MASK	((UINT64_C(1) << 55) - 1)
#define BITMAP_BITS	2u /* for each sector, in the chunks that follow each group of the table */

struct disk_asif_header {
	uint8_t magic[4]; /* "shdw" */
	struct be32 version, header_bytes, flags;
	struct be64 directory_off[2];
	uint8_t uuid[16];
	struct be64 nr_sectors, max_sectors;
	struct be32 chunk_bytes;
	struct be16 sector_bytes, nr_segments;
	struct be64 metadata_chunk;
} __attribute__((packed));

struct geometry {
	uint64_t disk_bytes, max_bytes;
	uint32_t chunk_bytes;
	uint32_t group;		/* entries of a table for data before one for their bitmap */
	uint32_t groups;	/* of a table */
	uint64_t table_covers;	/* bytes of the disk */
	uint64_t nr_tables;	/* as many as a directory has at least */
	uint64_t directory_off; /* of the one that counts */
};

static int probe(const struct probe_data *d)
{
	return d->head_bytes >= sizeof(struct disk_asif_header) && memcmp(d->head, "shdw", 4) == 0 ? 100 : 0;
}

/* What it is that is not as it should be, NULL: all is. */
static const char *take_geometry(const struct disk_asif_header *h, struct geometry *g)
{
	uint64_t chunk = be32_get(h->chunk_bytes);

	*g = (struct geometry){ .chunk_bytes = (uint32_t)chunk };
	if (chunk < MIN_CHUNK_BYTES || chunk > MAX_CHUNK_BYTES || (chunk & (chunk - 1)) != 0)
		return "the size of a chunk";
	if (mul_overflows(be64_get(h->nr_sectors), SECTOR_BYTES, &g->disk_bytes) || g->disk_bytes > INT64_MAX)
		return "the size of the disk";
	if (mul_overflows(be64_get(h->max_sectors), SECTOR_BYTES, &g->max_bytes) || g->max_bytes > INT64_MAX ||
	    g->max_bytes < g->disk_bytes)
		return "the largest size of the disk";
	/* A chunk of bitmap describes as many chunks of data as fit: of 1 MiB, 2048. */
	g->group = (uint32_t)(chunk * 8 / BITMAP_BITS / (chunk / SECTOR_BYTES));
	g->groups = (uint32_t)(chunk / sizeof(struct be64) / (g->group + 1));
	g->table_covers = (uint64_t)g->groups * g->group * chunk;
	if (g->table_covers == 0)
		return "the size of a chunk";
	g->nr_tables = g->max_bytes / g->table_covers + (g->max_bytes % g->table_covers != 0);
	return NULL;
}

static int unknown(const struct chunks_source *src, uint64_t at, const char *what, uint64_t value,
		   struct img_error *err)
{
	return error_set(err, IMG_E_UNSUPPORTED, 0, at, LAYER,
			 "%s: %s is 0x%" PRIx64 ", which no known ASIF image has; nothing is guessed", src->path, what,
			 value);
}

static int damaged(const struct chunks_source *src, uint64_t at, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "%s: %s at 0x%" PRIx64 " does not fit the file", src->path,
			 what, at);
}

static int choose_directory(const struct chunks_source *src, const struct disk_asif_header *h, struct geometry *g,
			    struct img_error *err)
{
	uint64_t bytes = (g->nr_tables + 1) * sizeof(struct be64), best = 0;
	int ret;

	for (unsigned i = 0; i < 2; i++) {
		uint64_t off = be64_get(h->directory_off[i]);
		struct be64 version;

		if (!range_inside(off, bytes, node_size(src->file)))
			return damaged(src, 16 + 8 * i, "the place of a directory", err);
		ret = node_pread(src->file, &version, sizeof(version), off, 0, err);
		if (ret != 0)
			return ret;
		if (be64_get(version) > best) {
			best = be64_get(version);
			g->directory_off = off;
		}
	}
	return best > 0 ? 0 : damaged(src, 16, "each directory", err);
}

static int read_header(const struct chunks_source *src, struct geometry *g, uint8_t uuid[16], struct img_error *err)
{
	struct disk_asif_header h;
	const char *bad;
	int ret;

	if (node_size(src->file) < sizeof(h))
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: too short for an ASIF image", src->path);
	ret = node_pread(src->file, &h, sizeof(h), 0, 0, err);
	if (ret != 0)
		return ret;
	memcpy(uuid, h.uuid, sizeof(h.uuid));
	if (be32_get(h.version) != 1)
		return unknown(src, 4, "the version", be32_get(h.version), err);
	if (be32_get(h.header_bytes) != 512)
		return unknown(src, 8, "the size of the header", be32_get(h.header_bytes), err);
	if (be32_get(h.flags) != 0)
		return unknown(src, 12, "the set of flags", be32_get(h.flags), err);
	if (be16_get(h.sector_bytes) != SECTOR_BYTES)
		return unknown(src, 68, "the size of a sector", be16_get(h.sector_bytes), err);
	bad = take_geometry(&h, g);
	if (bad)
		return error_set(err, IMG_E_CORRUPT, 0, 48, LAYER, "%s: %s does not fit the rest of the header",
				 src->path, bad);
	return choose_directory(src, &h, g, err);
}

static int add_gap(struct chunks *c, uint64_t bytes, struct img_error *err)
{
	struct chunk gap = { .off = chunks_size(c), .bytes = bytes, .kind = CHUNK_ZERO };

	return chunks_add(c, &gap, 0, NO_OFFSET, err);
}

static int add_chunk(const struct chunks_source *src, struct chunks *c, const struct geometry *g, uint64_t entry,
		     uint64_t at, struct img_error *err)
{
	uint64_t state = entry >> STATE_SHIFT, number = entry & NUMBER_MASK;
	struct chunk chunk = {
		.off = chunks_size(c),
		.bytes = min_u64(g->chunk_bytes, g->disk_bytes - chunks_size(c)),
		.kind = CHUNK_PLAIN,
	};

	if (entry == 0)
		return add_gap(c, chunk.bytes, err);
	/* Other states mean that the bitmap says which sectors count: how, no image showed yet. */
	if (state != STATE_FULL || entry >> STATE_SHIFT << STATE_SHIFT != (entry & ~NUMBER_MASK))
		return unknown(src, at, "the state of a chunk", entry & ~NUMBER_MASK, err);
	if (mul_overflows(number, g->chunk_bytes, &chunk.host_off))
		return damaged(src, at, "the place of a chunk", err);
	chunk.host_bytes = chunk.bytes;
	return chunks_add(c, &chunk, node_size(src->file), at, err);
}

/* One table, from its beginning; the disk may end in it. */
static int read_table(const struct chunks_source *src, struct chunks *c, const struct geometry *g, uint64_t table,
		      struct img_error *err)
{
	struct be64 entries[BATCH];
	uint64_t nr_entries = (uint64_t)g->groups * (g->group + 1);
	int ret = 0;

	if (!range_inside(table, g->chunk_bytes, node_size(src->file)))
		return damaged(src, table, "a table", err);
	for (uint64_t i = 0; i < nr_entries && ret == 0 && chunks_size(c) < g->disk_bytes; i++) {
		uint64_t at = table + i * sizeof(entries[0]);

		if (i % BATCH == 0)
			ret = node_pread(src->file, entries, min_u64(BATCH, nr_entries - i) * sizeof(entries[0]), at, 0,
					 err);
		if (ret == 0 && i % (g->group + 1) != g->group)
			ret = add_chunk(src, c, g, be64_get(entries[i % BATCH]), at, err);
	}
	return ret;
}

static int read_directory(const struct chunks_source *src, struct chunks *c, const struct geometry *g,
			  struct img_error *err)
{
	uint64_t at = g->directory_off + sizeof(struct be64);
	int ret = 0;

	for (; ret == 0 && chunks_size(c) < g->disk_bytes; at += sizeof(struct be64)) {
		struct be64 entry;
		uint64_t table;

		ret = node_pread(src->file, &entry, sizeof(entry), at, 0, err);
		if (ret != 0)
			return ret;
		if (be64_get(entry) == 0) {
			ret = add_gap(c, min_u64(g->table_covers, g->disk_bytes - chunks_size(c)), err);
			continue;
		}
		if (be64_get(entry) & ~NUMBER_MASK)
			return unknown(src, at, "the entry of a directory", be64_get(entry), err);
		/* Each counts, also where several entries lead to one: it takes as long. */
		ret = budget_metadata(src->budget, src->path, g->chunk_bytes, err);
		if (ret == 0 && mul_overflows(be64_get(entry), g->chunk_bytes, &table))
			ret = damaged(src, at, "the place of a table", err);
		if (ret == 0)
			ret = read_table(src, c, g, table, err);
	}
	return ret;
}

static int load(const struct chunks_source *src, struct chunks_state *state, struct img_error *err)
{
	struct geometry g;
	int ret = read_header(src, &g, state->uuid, err);

	if (ret != 0)
		return ret;
	state->block_bytes = g.chunk_bytes;
	state->has_uuid = true;
	state->rule = "ASIF-6";
	state->metadata_bytes = sizeof(struct disk_asif_header) + (g.nr_tables + 1) * sizeof(struct be64);
	return read_directory(src, state->chunks, &g, err);
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	return chunks_node_open(node, args, load, err);
}

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct chunks_state s = { 0 };

	return chunks_inspect(file, in, load, &s, err);
}

const struct img_driver asif_driver = {
	.name = "asif",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct chunks_state),
	.caps = IMG_CAP_CHECK,
	.probe = probe,
	.open = open_member,
	.close = chunks_node_close,
	.size = chunks_node_size,
	.limits = chunks_node_limits,
	.pread = chunks_node_pread,
	.status = chunks_node_status,
	.info = chunks_node_info,
	.check = chunks_node_check,
	.inspect = inspect,
};
