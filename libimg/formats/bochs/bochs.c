/* SPDX-License-Identifier: MIT */
/*
 * Format "bochs": growing disks of the Bochs emulator, versions 1 and 2. A header, a catalog with a number for each
 * extent of the disk, then the extents, each a bitmap of its sectors that hold data and the sectors. Read only.
 * Redo logs of the kinds "Undoable" and "Volatile" stand on another image that they do not name: they are refused.
 * format-spec/bochs.md has the rules that are named here, and the source.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "chunks.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LAYER		 "bochs"
#define SECTOR_BYTES	 512u
#define UNALLOCATED	 UINT32_MAX
#define VERSION_1	 0x00010000u
#define VERSION_2	 0x00020000u
#define CATALOG_MAX	 (1u << 20) /* entries: 4 MiB */
#define EXTENT_MAX_BYTES (8u << 20)
#define BATCH		 1024u /* entries that are read at once */

struct disk_bochs_header {
	uint8_t magic[32]; /* "Bochs Virtual HD Image" */
	uint8_t type[16];  /* "Redolog" */
	uint8_t subtype[16];
	struct le32 version;
	struct le32 header_bytes;
	struct le32 catalog_entries;
	struct le32 bitmap_bytes, extent_bytes;
	struct le32 timestamp; /* version 1: the lower half of the size is here */
	struct le64 disk_bytes;
} __attribute__((packed));

/* What the header says, as numbers. */
struct geometry {
	uint64_t header_bytes, disk_bytes;
	uint32_t entries, bitmap_bytes, extent_bytes;
	uint32_t bitmap_room, extent_room; /* in the file: whole sectors */
	uint64_t data_off;
};

static int probe(const struct probe_data *d)
{
	static const char magic[] = "Bochs Virtual HD Image";

	return d->head_bytes >= sizeof(struct disk_bochs_header) && memcmp(d->head, magic, sizeof(magic)) == 0 ? 100 :
														 0;
}

static bool is_text(const uint8_t field[16], const char *text)
{
	return strncmp((const char *)field, text, 16) == 0;
}

static void take_geometry(const struct disk_bochs_header *h, struct geometry *g)
{
	const uint8_t *size = le32_get(h->version) == VERSION_1 ? h->timestamp.b : h->disk_bytes.b;
	struct le64 disk_bytes;

	memcpy(disk_bytes.b, size, sizeof(disk_bytes.b));
	*g = (struct geometry){
		.header_bytes = le32_get(h->header_bytes),
		.disk_bytes = le64_get(disk_bytes),
		.entries = le32_get(h->catalog_entries),
		.bitmap_bytes = le32_get(h->bitmap_bytes),
		.extent_bytes = le32_get(h->extent_bytes),
	};
	g->bitmap_room = (uint32_t)round_up(g->bitmap_bytes, SECTOR_BYTES);
	g->extent_room = (uint32_t)round_up(g->extent_bytes, SECTOR_BYTES);
	g->data_off = g->header_bytes + (uint64_t)g->entries * sizeof(struct le32);
}

/* The field that cannot be so, NULL: all can. */
static const char *bad_field(const struct geometry *g, uint64_t file_bytes)
{
	if (g->header_bytes < sizeof(struct disk_bochs_header))
		return "the size of the header";
	if (g->extent_bytes < SECTOR_BYTES || g->extent_bytes > EXTENT_MAX_BYTES || g->extent_bytes % SECTOR_BYTES != 0)
		return "the size of an extent";
	if (g->bitmap_bytes < g->extent_bytes / SECTOR_BYTES / 8 || g->bitmap_bytes == 0 ||
	    g->bitmap_bytes > EXTENT_MAX_BYTES)
		return "the size of a bitmap";
	if (g->entries > CATALOG_MAX || g->data_off > file_bytes)
		return "the size of the catalog";
	if (g->disk_bytes % SECTOR_BYTES != 0 || g->disk_bytes > (uint64_t)g->entries * g->extent_bytes)
		return "the size of the disk";
	return NULL;
}

static int read_header(const struct chunks_source *src, struct geometry *g, struct img_error *err)
{
	struct disk_bochs_header h;
	const char *bad;
	int ret;

	if (node_size(src->file) < sizeof(h))
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: too short for a Bochs image", src->path);
	ret = node_pread(src->file, &h, sizeof(h), 0, 0, err);
	if (ret != 0)
		return ret;
	if (le32_get(h.version) != VERSION_1 && le32_get(h.version) != VERSION_2)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 64, LAYER,
				 "%s: Bochs image of version 0x%" PRIx32 "; 1 and 2 are known", src->path,
				 le32_get(h.version));
	if (!is_text(h.type, "Redolog") || !is_text(h.subtype, "Growing"))
		return error_set(err, IMG_E_UNSUPPORTED, 0, 32, LAYER,
				 "%s: a Bochs image of kind '%.16s', '%.16s'; only growing disks can be read",
				 src->path, (const char *)h.type, (const char *)h.subtype);
	take_geometry(&h, g);
	bad = bad_field(g, node_size(src->file));
	if (bad)
		return error_set(err, IMG_E_CORRUPT, 0, 64, LAYER, "%s: %s does not fit the rest of the header",
				 src->path, bad);
	return 0;
}

/* Sectors of one extent, in runs with and without data. */
static int add_runs(const struct chunks_source *src, struct chunks *c, const struct geometry *g, const uint8_t *bitmap,
		    uint64_t data, uint64_t at, struct img_error *err)
{
	uint64_t left = min_u64(g->extent_bytes, g->disk_bytes - chunks_size(c));
	uint32_t nr = (uint32_t)(left / SECTOR_BYTES);
	int ret = 0;

	for (uint32_t i = 0, first; i < nr && ret == 0;) {
		bool held = bitmap[i / 8] >> (i % 8) & 1;
		struct chunk chunk = { .off = chunks_size(c), .kind = held ? CHUNK_PLAIN : CHUNK_ZERO };

		first = i;
		while (i < nr && (bitmap[i / 8] >> (i % 8) & 1) == held)
			i++;
		chunk.bytes = (uint64_t)(i - first) * SECTOR_BYTES;
		if (held) {
			chunk.host_off = data + (uint64_t)first * SECTOR_BYTES;
			chunk.host_bytes = chunk.bytes;
		}
		ret = chunks_add(c, &chunk, node_size(src->file), at, err);
	}
	return ret;
}

static int add_extent(const struct chunks_source *src, struct chunks *c, const struct geometry *g, uint32_t entry,
		      uint8_t *bitmap, uint64_t at, struct img_error *err)
{
	struct chunk gap = { .off = chunks_size(c), .kind = CHUNK_ZERO };
	uint64_t place;
	int ret;

	if (entry == UNALLOCATED) {
		gap.bytes = min_u64(g->extent_bytes, g->disk_bytes - gap.off);
		return chunks_add(c, &gap, 0, at, err);
	}
	place = g->data_off + (uint64_t)entry * ((uint64_t)g->bitmap_room + g->extent_room);
	if (!range_inside(place, g->bitmap_room, node_size(src->file)))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: the catalog leads to an extent at 0x%" PRIx64 ", beyond the file", src->path,
				 place);
	ret = node_pread(src->file, bitmap, g->bitmap_bytes, place, 0, err);
	return ret ? ret : add_runs(src, c, g, bitmap, place + g->bitmap_room, at, err);
}

static int read_catalog(const struct chunks_source *src, struct chunks *c, const struct geometry *g,
			struct img_error *err)
{
	uint8_t *bitmap = malloc(g->bitmap_bytes);
	struct le32 entries[BATCH];
	uint64_t at = g->header_bytes;
	int ret = bitmap ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", src->path);

	while (ret == 0 && chunks_size(c) < g->disk_bytes) {
		uint32_t nr = (uint32_t)min_u64(BATCH, (g->data_off - at) / sizeof(entries[0]));

		ret = node_pread(src->file, entries, nr * sizeof(entries[0]), at, 0, err);
		for (uint32_t i = 0; i < nr && ret == 0 && chunks_size(c) < g->disk_bytes;
		     i++, at += sizeof(entries[0]))
			ret = add_extent(src, c, g, le32_get(entries[i]), bitmap, at, err);
	}
	free(bitmap);
	return ret;
}

static int load(const struct chunks_source *src, struct chunks_state *state, struct img_error *err)
{
	struct geometry g;
	int ret = read_header(src, &g, err);

	if (ret != 0)
		return ret;
	state->block_bytes = g.extent_bytes;
	state->rule = "BOCHS-4";
	state->metadata_bytes = g.data_off;
	return read_catalog(src, state->chunks, &g, err);
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	return chunks_node_open(node, args, load, err);
}

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct chunks_state s = { 0 };
	struct disk_bochs_header h;
	int ret = inspect_read(file, &h, sizeof(h), 0, err);

	if (ret != 0)
		return ret;
	if (is_text(h.type, "Redolog") && !is_text(h.subtype, "Growing"))
		inspect_found(in, INSPECT_PARENT, 48, "a redo log over another image");

	return chunks_inspect(file, in, load, &s, err);
}

const struct img_driver bochs_driver = {
	.name = "bochs",
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
