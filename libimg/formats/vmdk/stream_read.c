/* SPDX-License-Identifier: MIT */
/*
 * Reading extents of compressed grains. There are two dialects. VMware's converters and qemu-img put directory and
 * tables at the head, and the header says where. Streams, as they are exported and uploaded, begin with a header that
 * only says that the directory is at the end, and end with a footer that says where: where there is a footer it counts,
 * and where there has to be one and is none, the file was cut off and is not opened. Rules: VMDK-40 to VMDK-47.
 *
 * Tables and grains are the engine's (lookup.h). A grain is found by its table's entry alone; what its marker says of
 * the sector that it is for has to agree with that, so no grain can be read in two places.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "is_zero.h"
#include "stream_int.h"

#define FIRST_READ 4096u /* of a grain: its marker, and often all of it */

static struct vmdk_stream *of(const struct lookup *l)
{
	return (struct vmdk_stream *)(uintptr_t)l; /* its first member */
}

_Static_assert(offsetof(struct vmdk_stream, lookup) == 0, "see of()");

/* ---- grains ------------------------------------------------------------------------------------------------------ */

static int decode(const struct lookup *l, uint64_t raw, struct lookup_entry *out, struct img_error *err)
{
	(void)err;
	if (raw == 0)
		return 0;
	if (raw == VMDK_GTE_ZERO && of(l)->h.flags & VMDK_ZERO_GRAINS) {
		out->kind = LOOKUP_ZERO;
		return 0;
	}
	out->kind = LOOKUP_PACKED; /* how long it is stands in its marker */
	out->off = raw * VMDK_SECTOR_BYTES;
	return 0;
}

static int damaged(const struct lookup *l, uint64_t off, const char *what, uint64_t value, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the grain at 0x%" PRIx64 " %s (0x%" PRIx64 ")",
			 l->node->path, off, what, value);
}

/* What the marker says: where its data begins, and of how many bytes. Without markers that is found by expanding. */
static int judge_marker(struct lookup *l, const uint8_t *raw, uint64_t there, const struct lookup_entry *e,
			uint64_t disk_off, uint64_t *bytes, const char **rule, struct img_error *err)
{
	uint64_t sector = le64_at(raw, 0);

	*bytes = le32_at(raw, 8);
	if (there < VMDK_GRAIN_MARKER_BYTES)
		return damaged(l, e->off, "is cut off by the file's end", l->file_bytes, err);
	if (sector != disk_off / VMDK_SECTOR_BYTES) {
		*rule = VMDK_RULE_GRAIN_OF;
		return damaged(l, e->off, "is for another sector than its table's entry", sector, err);
	}
	if (*bytes == 0 || *bytes > l->file_bytes - e->off - VMDK_GRAIN_MARKER_BYTES ||
	    *bytes > 2 * l->cluster_bytes + VMDK_SECTOR_BYTES)
		return damaged(l, e->off, "has data of no possible length", *bytes, err);
	return 0;
}

/* All of the grain's data, in *data (to be freed), from *from on. */
static int read_grain(struct lookup *l, const struct lookup_entry *e, uint64_t disk_off, uint8_t **data, uint64_t *from,
		      uint64_t *bytes, const char **rule, struct img_error *err)
{
	uint64_t there = l->file_bytes - e->off, head = min_u64(FIRST_READ, there);
	bool markers = of(l)->h.flags & VMDK_MARKERS;
	uint8_t first[FIRST_READ] = { 0 };
	int ret = node_pread(l->file, first, head, e->off, 0, err);

	*from = markers ? VMDK_GRAIN_MARKER_BYTES : 0;
	*bytes = min_u64(2 * l->cluster_bytes, there);
	if (ret == 0 && markers)
		ret = judge_marker(l, first, there, e, disk_off, bytes, rule, err);
	if (ret != 0)
		return ret;
	*data = malloc((size_t)(*from + *bytes));
	if (!*data)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", l->node->path);
	head = min_u64(head, *from + *bytes);
	memcpy(*data, first, (size_t)head);
	if (*from + *bytes > head)
		ret = node_pread(l->file, *data + head, *from + *bytes - head, e->off + head, 0, err);
	return ret;
}

/* The last grain of a disk may be cut where the disk ends. */
static int expand(struct lookup *l, struct codec_ctx *codec, const struct lookup_entry *e, uint64_t disk_off,
		  uint8_t *out, const char **rule, struct img_error *err)
{
	uint64_t from = 0, bytes = 0, inside = min_u64(l->cluster_bytes, l->disk_bytes - disk_off);
	uint8_t *data = NULL;
	int ret = read_grain(l, e, disk_off, &data, &from, &bytes, rule, err);

	if (ret == 0) {
		if (of(l)->h.flags & VMDK_MARKERS)
			ret = codec_expand(codec, CODEC_ZLIB, data + from, (size_t)bytes, out,
					   (size_t)l->cluster_bytes);
		else
			ret = codec_expand_prefix(codec, CODEC_ZLIB, data, (size_t)bytes, out,
						  (size_t)l->cluster_bytes);
		if (ret == IMG_E_CORRUPT && inside < l->cluster_bytes) {
			memset(out + inside, 0, (size_t)(l->cluster_bytes - inside));
			ret = codec_expand_prefix(codec, CODEC_ZLIB, data + from, (size_t)bytes, out, (size_t)inside);
		}
		if (ret == IMG_E_CORRUPT)
			ret = damaged(l, e->off, "does not expand to what a grain holds", l->cluster_bytes, err);
		else if (ret != 0)
			ret = error_set(err, ret, 0, NO_OFFSET, LAYER, "%s: out of memory", l->node->path);
	}
	free(data);
	return ret;
}

static const struct lookup_ops ops = {
	.decode = decode,
	.expand = expand,
	.entry_bytes = VMDK_GTE_BYTES,
	.scale = VMDK_SECTOR_BYTES,
	.rule = VMDK_RULE_ENTRY,
	.data_rule = VMDK_RULE_GRAIN,
};

void vmdk_stream_tables(struct lookup *l, const struct vmdk_header *h, uint64_t file_bytes)
{
	l->ops = &ops;
	l->disk_bytes = h->capacity_bytes;
	l->cluster_bytes = h->grain_bytes;
	l->first_off = h->gd_off;
	l->table_entries = h->nr_gtes;
	l->file_bytes = file_bytes;
	l->packed = "zlib";
}

/* ---- the footer -------------------------------------------------------------------------------------------------- */

static int bad_footer(struct node *file, uint64_t at, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "%s: the footer at the end of the file %s", file->path,
			 what);
}

static bool same_disk(const struct vmdk_header *a, const struct vmdk_header *b)
{
	return a->capacity_bytes == b->capacity_bytes && a->grain_bytes == b->grain_bytes && a->nr_gtes == b->nr_gtes &&
	       a->compression == b->compression &&
	       ((a->flags ^ b->flags) & (VMDK_COMPRESSED | VMDK_MARKERS | VMDK_ZERO_GRAINS)) == 0;
}

int vmdk_stream_footer(struct node *file, const struct vmdk_header *head, struct vmdk_header *out, bool *found,
		       struct img_error *err)
{
	uint64_t size = node_size(file), at = size >= VMDK_FOOTER_BYTES ? size - VMDK_FOOTER_BYTES : 0;
	uint8_t raw[VMDK_FOOTER_BYTES] = { 0 };
	struct disk_vmdk_header d;
	int ret = 0;

	*found = false;
	if (at > VMDK_SECTOR_BYTES)
		ret = node_pread(file, raw, sizeof(raw), at, 0, err);
	if (ret != 0)
		return ret;
	memcpy(&d, raw + VMDK_SECTOR_BYTES, sizeof(d));
	*found = memcmp(d.magic, VMDK_MAGIC, sizeof(d.magic)) == 0 && le32_at(raw, 8) == 0 &&
		 le32_at(raw, 12) == VMDK_MARKER_FOOTER;
	if (!*found && head->gd_off == VMDK_AT_END)
		return error_set(
			err, IMG_E_CORRUPT, 0, size, LAYER,
			"%s: the file ends without the footer that leads to its tables: it was cut off at 0x%" PRIx64
			" bytes; transfer it again",
			file->path, size);
	if (!*found)
		return 0;
	ret = vmdk_header_decode(&d, at + VMDK_SECTOR_BYTES, file->path, out, err);
	if (ret != 0)
		return ret;
	if (out->gd_off == VMDK_AT_END)
		return bad_footer(file, at, "does not say where the directory is", err);
	if (!same_disk(head, out))
		return bad_footer(file, at, "is of another disk than the header", err);
	return vmdk_header_judge(out, size, file->path, err);
}

/* ---- the driver's members ---------------------------------------------------------------------------------------- */

int vmdk_stream_open(struct node *node, struct node *file, const struct vmdk_header *h, struct budget *budget,
		     struct vmdk_stream **out, struct img_error *err)
{
	struct vmdk_stream *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", node->path);
	s->head = *h;
	s->h = *h;
	ret = vmdk_stream_footer(file, h, &s->h, &s->has_footer, err);
	if (ret == 0 && !s->has_footer)
		s->h = *h;
	if (ret == 0)
		ret = vmdk_header_judge(&s->h, node_size(file), node->path, err);
	if (ret == 0) {
		vmdk_stream_tables(&s->lookup, &s->h, node_size(file));
		ret = lookup_open(&s->lookup, node, file, budget, err);
	}
	if (ret != 0) {
		free(s);
		return ret;
	}
	*out = s;
	return 0;
}

void vmdk_stream_free(struct vmdk_stream *s)
{
	if (!s)
		return;
	lookup_close(&s->lookup);
	free(s);
}

uint64_t vmdk_stream_size(const struct vmdk_stream *s)
{
	return s->h.capacity_bytes;
}

void vmdk_stream_limits(const struct vmdk_stream *s, struct driver_limits *out)
{
	lookup_limits(&s->lookup, out);
}

int vmdk_stream_pread(struct vmdk_stream *s, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return lookup_pread(&s->lookup, buf, bytes, off, err);
}

int vmdk_stream_status(struct vmdk_stream *s, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err)
{
	return lookup_status(&s->lookup, bytes, off, out, cap, nr, err);
}

int vmdk_stream_info(struct vmdk_stream *s, struct img_info *out, struct img_error *err)
{
	(void)err;
	return lookup_info(&s->lookup, out);
}
