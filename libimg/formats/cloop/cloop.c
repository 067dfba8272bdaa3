/* SPDX-License-Identifier: MIT */
/*
 * Format "cloop", version 2: the compressed loop device of live discs. A shell script of 128 bytes, the size of a block
 * and their number, the offset of each block in the file and of the end of the last one, then the blocks, each a zlib
 * stream. Read only. format-spec/cloop.md has the rules that are named here.
 */
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "chunks.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LAYER	     "cloop"
#define SCRIPT_BYTES 128u
#define SECTOR_BYTES 512u
#define BATCH	     1024u /* offsets that are read at once */

struct disk_cloop_header {
	uint8_t script[SCRIPT_BYTES];
	struct be32 block_bytes;
	struct be32 nr_blocks;
} __attribute__((packed));

static const char begins_with[] = "#!/bin/sh\n#V2.0 Format\nmodp";

static int probe(const struct probe_data *d)
{
	size_t bytes = sizeof(begins_with) - 1;

	return d->head_bytes >= bytes && memcmp(d->head, begins_with, bytes) == 0 ? 100 : 0;
}

static int corrupt(const struct chunks_source *src, uint64_t at, const char *what, uint64_t value,
		   struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "%s: %s at 0x%" PRIx64 " is 0x%" PRIx64, src->path, what, at,
			 value);
}

static int read_header(const struct chunks_source *src, uint32_t *block_bytes, uint32_t *nr_blocks,
		       struct img_error *err)
{
	struct disk_cloop_header h;
	int ret;

	if (node_size(src->file) < sizeof(h))
		return corrupt(src, 0, "the file's size", node_size(src->file), err);
	ret = node_pread(src->file, &h, sizeof(h), 0, 0, err);
	if (ret != 0)
		return ret;
	*block_bytes = be32_get(h.block_bytes);
	*nr_blocks = be32_get(h.nr_blocks);
	if (memcmp(h.script, begins_with, sizeof(begins_with) - 1) != 0)
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: no cloop image of version 2", src->path);
	if (*block_bytes == 0 || *block_bytes % SECTOR_BYTES != 0)
		return corrupt(src, SCRIPT_BYTES, "the size of a block", *block_bytes, err);
	return 0;
}

/* Offsets first to first + nr of the table. */
static int add_blocks(const struct chunks_source *src, struct chunks *c, const struct be64 *offsets, uint32_t nr,
		      uint32_t block_bytes, uint64_t table, struct img_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < nr && ret == 0; i++) {
		uint64_t off = be64_get(offsets[i]), end = be64_get(offsets[i + 1]);
		struct chunk chunk = {
			.off = chunks_size(c),
			.bytes = block_bytes,
			.host_off = off,
			.host_bytes = end - off,
			.kind = CHUNK_PACKED,
			.codec = CODEC_ZLIB,
		};

		if (end < off)
			return corrupt(src, table + (i + 1) * sizeof(*offsets), "a block's end, before its beginning,",
				       end, err);
		ret = chunks_add(c, &chunk, node_size(src->file), table + i * sizeof(*offsets), err);
	}
	return ret;
}

static int read_table(const struct chunks_source *src, struct chunks *c, uint32_t block_bytes, uint32_t nr_blocks,
		      struct img_error *err)
{
	struct be64 offsets[BATCH + 1];
	uint64_t table = sizeof(struct disk_cloop_header);
	int ret = 0;

	if (!range_inside(table, ((uint64_t)nr_blocks + 1) * sizeof(offsets[0]), node_size(src->file)))
		return corrupt(src, SCRIPT_BYTES + 4, "the number of blocks", nr_blocks, err);
	while (nr_blocks > 0 && ret == 0) {
		uint32_t nr = (uint32_t)min_u64(nr_blocks, BATCH);

		ret = node_pread(src->file, offsets, (nr + 1) * sizeof(offsets[0]), table, 0, err);
		if (ret == 0)
			ret = add_blocks(src, c, offsets, nr, block_bytes, table, err);
		table += nr * sizeof(offsets[0]);
		nr_blocks -= nr;
	}
	return ret;
}

static int load(const struct chunks_source *src, struct chunks_state *state, struct img_error *err)
{
	uint32_t nr_blocks = 0;
	int ret = read_header(src, &state->block_bytes, &nr_blocks, err);

	state->packed = "zlib";
	state->rule = "CLOOP-4";
	state->metadata_bytes = sizeof(struct disk_cloop_header) + ((uint64_t)nr_blocks + 1) * sizeof(struct be64);
	return ret ? ret : read_table(src, state->chunks, state->block_bytes, nr_blocks, err);
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

const struct img_driver cloop_driver = {
	.name = "cloop",
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
