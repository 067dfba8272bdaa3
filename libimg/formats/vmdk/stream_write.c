/* SPDX-License-Identifier: MIT */
/*
 * Writing streamOptimized, as ESXi takes it. The file, each part from the sector on where the last one ended:
 *
 *   header            version 3; gdOffset says that the directory is at the end; no second directory
 *   descriptor        and zeros up to the first grain
 *   grain marker      its sector of the disk, the length of its data; the data follows in the same sector
 *   ...               ascending; grains of zeros are left out
 *   marker, table     behind the last grain of each table; tables without grains are left out
 *   marker, directory
 *   marker, footer    the header again, with the place of the directory
 *   end marker        a sector of zeros
 *
 * Markers are packed with their grains by many threads; tables are kept by the one that puts (core/sequence.h).
 * Memory: one table and the directory. Rules: VMDK-40 to VMDK-46.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "blockmap.h"
#include "codec.h"
#include "stream.h"

#define VERSION		   3u
#define FLAGS		   (VMDK_NEWLINES_VALID | VMDK_COMPRESSED | VMDK_MARKERS)
#define OVERHEAD_BYTES	   65536u /* before the first grain, as VMware's tools write it; more for a longer descriptor */
#define DESCRIPTOR_SECTORS 20u	  /* at least, as above */
#define TABLE_BYTES	   (VMDK_GTES * VMDK_GTE_BYTES)
#define EXTENT_NAME	   "generated-stream.vmdk" /* of a file whose name is not known, in a pipe */
#define DISK_MAX	   (UINT64_C(64) << 40)	   /* what products take; the directory has 8 MiB then */

struct writer {
	struct node *file;
	struct vmdk_header h;
	int level;
	uint64_t off; /* written so far */

	struct le32 *gd; /* of h.nr_tables */
	uint64_t table;	 /* the one that is being filled */
	bool has_grains; /* it has some */
	struct le32 gt[VMDK_GTES];
};

/* Room that a packed grain may take with its marker. Deflate's worst is some bytes for each block that it stores. */
static size_t packed_max(uint64_t grain_bytes)
{
	return (size_t)round_up(VMDK_GRAIN_MARKER_BYTES + grain_bytes + grain_bytes / 512 + 64, VMDK_SECTOR_BYTES);
}

/* Tables say in 32 bits in which sector something is. */
static int append(struct writer *w, const void *buf, uint64_t bytes, struct img_error *err)
{
	int ret;

	if (w->off / VMDK_SECTOR_BYTES + bytes / VMDK_SECTOR_BYTES > UINT32_MAX)
		return error_set(err, IMG_E_LIMIT, 0, w->off, LAYER,
				 "%s: a streamOptimized VMDK ends at 2 TiB of compressed data", w->file->path);
	ret = node_pwrite(w->file, buf, bytes, w->off, 0, err);
	if (ret == 0)
		w->off += bytes;
	return ret;
}

static struct disk_vmdk_marker marker(enum vmdk_marker type, uint64_t bytes)
{
	return (struct disk_vmdk_marker){ .val = le64_of(bytes / VMDK_SECTOR_BYTES), .type = le32_of(type) };
}

/* ---- the head ---------------------------------------------------------------------------------------------------- */

/* The extent is the file itself. Most readers know that; libvmdk looks for a file of this name. */
static const char *extent_name(const char *path)
{
	const char *slash = path ? strrchr(path, '/') : NULL, *name = slash ? slash + 1 : path;

	return name && name[0] && !strpbrk(name, "\"\\\r\n") ? name : EXTENT_NAME;
}

static int make_descriptor(const struct driver_create *args, const struct vmdk_options *o, char **text, size_t *bytes,
			   struct img_error *err)
{
	struct vmdk_extent extent = {
		.access = VMDK_RW,
		.kind = VMDK_SPARSE,
		.bytes = args->size_bytes,
		.name = (char *)(uintptr_t)extent_name(args->path), /* not written to */
	};
	struct vmdk_descriptor_new d = {
		.parent_cid = VMDK_NO_PARENT_CID,
		.create_type = "streamOptimized",
		.extents = &extent,
		.nr_extents = 1,
	};
	int ret = vmdk_options_ddb(o, args->size_bytes, &d.ddb, &d.cid, err);

	return ret == 0 ? vmdk_descriptor_write(&d, text, bytes, err) : ret;
}

static int write_head(struct writer *w, const char *text, size_t bytes, struct img_error *err)
{
	struct disk_vmdk_header header;
	uint8_t *head;
	int ret;

	w->h.descriptor_off = VMDK_SECTOR_BYTES;
	w->h.descriptor_bytes = max_u64(round_up(bytes, VMDK_SECTOR_BYTES), DESCRIPTOR_SECTORS * VMDK_SECTOR_BYTES);
	w->h.overhead_bytes = round_up(w->h.descriptor_off + w->h.descriptor_bytes, OVERHEAD_BYTES);
	vmdk_header_encode(&w->h, &header);
	head = calloc(1, (size_t)w->h.overhead_bytes);
	if (!head)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(head, &header, sizeof(header));
	memcpy(head + w->h.descriptor_off, text, bytes);
	ret = append(w, head, w->h.overhead_bytes, err);
	free(head);
	return ret;
}

static int new_writer(struct node *file, const struct driver_create *args, const struct vmdk_options *o,
		      struct writer **out, struct img_error *err)
{
	struct writer *w;
	int ret;

	if (args->size_bytes == 0 || args->size_bytes > DISK_MAX)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "%s: a streamOptimized VMDK has at least one sector, and at most 64 TiB", file->path);
	w = calloc(1, sizeof(*w));
	if (!w)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	w->file = file;
	w->level = o->level;
	w->h = (struct vmdk_header){
		.version = VERSION,
		.flags = FLAGS,
		.capacity_bytes = args->size_bytes,
		.grain_bytes = o->grain_bytes,
		.nr_gtes = VMDK_GTES,
		.gd_off = VMDK_AT_END,
		.compression = VMDK_DEFLATE,
	};
	ret = vmdk_header_count(&w->h, file->path, err);
	if (ret == 0) {
		w->gd = calloc((size_t)w->h.nr_tables, sizeof(*w->gd));
		ret = w->gd ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	if (ret != 0) {
		free(w);
		return ret;
	}
	*out = w;
	return 0;
}

static void writer_free(void *state)
{
	struct writer *w = state;

	free(w->gd);
	free(w);
}

static int begin(struct node *file, const struct driver_create *args, const struct vmdk_options *o, struct writer **out,
		 struct img_error *err)
{
	char *text = NULL;
	size_t bytes = 0;
	int ret;

	if (args->backing)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: a streamOptimized VMDK has no backing file", file->path);
	ret = new_writer(file, args, o, out, err);
	if (ret != 0)
		return ret;
	ret = make_descriptor(args, o, &text, &bytes, err);
	if (ret == 0)
		ret = write_head(*out, text, bytes, err);
	free(text);
	if (ret != 0)
		writer_free(*out);
	return ret;
}

/* ---- tables and the end ------------------------------------------------------------------------------------------ */

/* The table that is being filled, if it leads to anything. */
static int put_table(struct writer *w, struct img_error *err)
{
	uint8_t out[VMDK_SECTOR_BYTES + TABLE_BYTES];
	struct disk_vmdk_marker m = marker(VMDK_MARKER_GT, TABLE_BYTES);
	int ret;

	if (!w->has_grains)
		return 0;
	memcpy(out, &m, sizeof(m));
	memcpy(out + sizeof(m), w->gt, TABLE_BYTES);
	ret = append(w, out, sizeof(out), err);
	if (ret != 0)
		return ret;
	w->gd[w->table] = le32_of((uint32_t)((w->off - TABLE_BYTES) / VMDK_SECTOR_BYTES));
	memset(w->gt, 0, sizeof(w->gt));
	w->has_grains = false;
	return 0;
}

static int put_directory(struct writer *w, struct img_error *err)
{
	uint64_t bytes = w->h.nr_tables * VMDK_GDE_BYTES, padded = round_up(bytes, VMDK_SECTOR_BYTES);
	struct disk_vmdk_marker m = marker(VMDK_MARKER_GD, padded);
	uint8_t *out = calloc(1, sizeof(m) + (size_t)padded);
	int ret;

	if (!out)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(out, &m, sizeof(m));
	memcpy(out + sizeof(m), w->gd, (size_t)bytes);
	ret = append(w, out, sizeof(m) + padded, err);
	w->h.gd_off = w->off - padded;
	free(out);
	return ret;
}

static int put_end(struct writer *w, struct img_error *err)
{
	uint8_t out[3 * VMDK_SECTOR_BYTES] = { 0 }; /* the third stays so: it marks the end */
	struct disk_vmdk_marker m = marker(VMDK_MARKER_FOOTER, VMDK_SECTOR_BYTES);
	struct disk_vmdk_header footer;

	vmdk_header_encode(&w->h, &footer);
	memcpy(out, &m, sizeof(m));
	memcpy(out + sizeof(m), &footer, sizeof(footer));
	return append(w, out, sizeof(out), err);
}

static int end(struct writer *w, struct img_error *err)
{
	int ret = put_table(w, err);

	if (ret == 0)
		ret = put_directory(w, err);
	return ret == 0 ? put_end(w, err) : ret;
}

/* ---- from front to back ------------------------------------------------------------------------------------------ */

static int sequence_ask(const char *options, struct img_error *err)
{
	struct vmdk_options o;
	int ret = vmdk_options_parse(options, &o, err);

	if (ret != 0)
		return ret;
	if (o.subformat == VMDK_STREAM)
		return 1;
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			 "of VMDK only subformat=streamOptimized is written from front to back");
}

static int sequence_begin(struct node *file, const struct driver_create *args, struct sequence_shape *shape,
			  void **state, struct img_error *err)
{
	struct vmdk_options o;
	struct writer *w;
	int ret = vmdk_options_parse(args->options, &o, err);

	if (ret == 0)
		ret = begin(file, args, &o, &w, err);
	if (ret != 0)
		return ret;
	shape->unit_bytes = (uint32_t)o.grain_bytes;
	shape->packed_max = packed_max(o.grain_bytes);
	*state = w;
	return 0;
}

static int sequence_pack(const void *state, struct codec_ctx *codec, const uint8_t *unit, uint64_t off, uint8_t *out,
			 size_t *bytes, struct img_error *err)
{
	const struct writer *w = state;
	size_t room = packed_max(w->h.grain_bytes) - VMDK_GRAIN_MARKER_BYTES, size = 0, used;
	struct disk_vmdk_marker m = { .val = le64_of(off / VMDK_SECTOR_BYTES) };
	int ret = codec_compress(codec, CODEC_ZLIB, w->level, unit, (size_t)w->h.grain_bytes,
				 out + VMDK_GRAIN_MARKER_BYTES, room, &size);

	if (ret != 0)
		return error_set(err, ret == IMG_E_NOMEM ? ret : IMG_E_IO, 0, off, LAYER,
				 "cannot compress the grain at 0x%" PRIx64, off);
	m.size = le32_of((uint32_t)size);
	memcpy(out, &m, VMDK_GRAIN_MARKER_BYTES);
	used = VMDK_GRAIN_MARKER_BYTES + size;
	*bytes = (size_t)round_up(used, VMDK_SECTOR_BYTES);
	memset(out + used, 0, *bytes - used);
	return 0;
}

static int sequence_put(void *state, const uint8_t *data, const struct sequence_unit *units, size_t nr,
			struct img_error *err)
{
	struct writer *w = state;
	uint64_t first = units[0].off / w->h.grain_bytes, table = first / VMDK_GTES, total = 0;
	int ret = 0;

	/* The units lie in one MiB, or are one: no table ends among them, as VMDK_GRAIN_OPTION_MIN * VMDK_GTES is more.
	 */
	if (table != w->table)
		ret = put_table(w, err);
	w->table = table;
	for (size_t i = 0; i < nr; i++) {
		uint64_t at = (w->off + total) / VMDK_SECTOR_BYTES;

		w->gt[units[i].off / w->h.grain_bytes % VMDK_GTES] = le32_of((uint32_t)at);
		total += units[i].bytes;
	}
	w->has_grains = true;
	return ret == 0 ? append(w, data, total, err) : ret;
}

static int sequence_end(void *state, struct img_error *err)
{
	return end(state, err);
}

_Static_assert(VMDK_GRAIN_OPTION_MIN *VMDK_GTES % (1u << 20) == 0, "what is put at once lies in one table");

const struct driver_sequence vmdk_sequence = {
	.ask = sequence_ask,
	.begin = sequence_begin,
	.pack = sequence_pack,
	.put = sequence_put,
	.end = sequence_end,
	.free = writer_free,
};

/* ---- create, measure --------------------------------------------------------------------------------------------- */

int vmdk_stream_create(struct node *file, const struct driver_create *args, const struct vmdk_options *o,
		       struct img_error *err)
{
	struct writer *w;
	int ret = begin(file, args, o, &w, err);

	if (ret != 0)
		return ret;
	ret = end(w, err);
	writer_free(w);
	return ret;
}

int vmdk_stream_measure(const struct img_measure_args *args, const struct vmdk_options *o, struct img_measure *out,
			struct img_error *err)
{
	struct vmdk_header h = {
		.capacity_bytes = args->size_bytes,
		.grain_bytes = o->grain_bytes,
		.nr_gtes = VMDK_GTES,
	};
	uint64_t data = 0, full = 0, fixed;
	int ret = vmdk_header_count(&h, "measure", err);

	if (ret == 0)
		ret = blockmap_measure(args, o->grain_bytes, packed_max(o->grain_bytes) - o->grain_bytes, &data, &full,
				       err);
	if (ret != 0)
		return ret;
	fixed = OVERHEAD_BYTES + h.nr_tables * (VMDK_SECTOR_BYTES + TABLE_BYTES) +
		round_up(h.nr_tables * VMDK_GDE_BYTES, VMDK_SECTOR_BYTES) + 4 * VMDK_SECTOR_BYTES;
	out->required_bytes = fixed + data;
	out->fully_allocated_bytes = fixed + full;
	return 0;
}
