/* SPDX-License-Identifier: MIT */
/*
 * Format "qcow", version 1, which QEMU wrote before qcow2. Read only; not encrypted. format-spec/qcow.md has the rules
 * that are named here. The backing file's format is not on record: it is recognised when it is opened.
 */
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"
#include "lookup.h"

#define LAYER		 "qcow"
#define MIN_CLUSTER_BITS 9u
#define MAX_CLUSTER_BITS 16u
#define MIN_TABLE_BITS	 6u
#define MAX_TABLE_BITS	 13u
#define NAME_MAX_BYTES	 1023u
#define PACKED		 (UINT64_C(1) << 63)

struct disk_qcow_header {
	uint8_t magic[4]; /* "QFI" 0xfb */
	struct be32 version;
	struct be64 backing_off;
	struct be32 backing_bytes;
	struct be32 mtime;
	struct be64 disk_bytes;
	uint8_t cluster_bits, table_bits;
	struct be16 padding;
	struct be32 crypt_method;
	struct be64 first_off;
} __attribute__((packed));

struct qcow_state {
	struct lookup lookup;
	unsigned cluster_bits;
	char backing[NAME_MAX_BYTES + 1]; /* "" for none */
};

static int probe(const struct probe_data *d)
{
	return d->head_bytes >= sizeof(struct disk_qcow_header) && memcmp(d->head, "QFI\xfb\0\0\0\1", 8) == 0 ? 100 : 0;
}

/* A compressed entry: the flag, the stream's bytes in cluster_bits, its place. */
static int decode(const struct lookup *l, uint64_t raw, struct lookup_entry *out, struct img_error *err)
{
	const struct qcow_state *s = (const struct qcow_state *)l; /* its first member */

	(void)err;
	if (raw & PACKED) {
		out->kind = LOOKUP_PACKED;
		out->bytes = raw >> (63 - s->cluster_bits) & (l->cluster_bytes - 1);
		out->off = raw & ((UINT64_C(1) << (63 - s->cluster_bits)) - 1);
	} else if (raw != 0) {
		out->kind = LOOKUP_DATA;
		out->off = raw;
	}
	return 0;
}

static const struct lookup_ops ops = {
	.decode = decode,
	.big_endian = true,
	.codec = CODEC_DEFLATE,
	.rule = "QCOW-4",
	.data_rule = "QCOW-5",
};

/* What cannot be so, NULL: all can. */
static const char *take_geometry(const struct disk_qcow_header *h, uint64_t file_bytes, struct qcow_state *s)
{
	uint64_t covers, tables;

	if (h->cluster_bits < MIN_CLUSTER_BITS || h->cluster_bits > MAX_CLUSTER_BITS)
		return "the size of a cluster";
	if (h->table_bits < MIN_TABLE_BITS || h->table_bits > MAX_TABLE_BITS)
		return "the size of a table";
	s->cluster_bits = h->cluster_bits;
	s->lookup.disk_bytes = be64_get(h->disk_bytes);
	if (s->lookup.disk_bytes > INT64_MAX)
		return "the size of the disk";
	s->lookup.cluster_bytes = UINT64_C(1) << h->cluster_bits;
	s->lookup.table_entries = UINT64_C(1) << h->table_bits;
	s->lookup.first_off = be64_get(h->first_off);
	s->lookup.file_bytes = file_bytes;
	covers = s->lookup.cluster_bytes * s->lookup.table_entries;
	tables = s->lookup.disk_bytes / covers + (s->lookup.disk_bytes % covers != 0);
	if (!range_inside(s->lookup.first_off, tables * 8, file_bytes))
		return "the place of the first table";
	return NULL;
}

static int read_backing(struct node *node, const struct disk_qcow_header *h, struct qcow_state *s,
			struct img_error *err)
{
	uint64_t off = be64_get(h->backing_off), bytes = be32_get(h->backing_bytes);
	int ret;

	if (off == 0)
		return 0;
	if (bytes == 0 || bytes > NAME_MAX_BYTES || !range_inside(off, bytes, node_size(node->file)))
		return error_set(err, IMG_E_CORRUPT, 0, 8, LAYER,
				 "%s: the name of the backing file has %" PRIu64 " bytes at 0x%" PRIx64, node->path,
				 bytes, off);
	ret = node_pread(node->file, s->backing, bytes, off, 0, err);
	if (ret == 0 && strlen(s->backing) != bytes)
		ret = error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the name of the backing file has a NUL in it",
				node->path);
	return ret;
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct qcow_state *s = node->state;
	struct disk_qcow_header h;
	const char *bad;
	int ret;

	if (node_size(node->file) < sizeof(h))
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: too short for a qcow image", node->path);
	ret = node_pread(node->file, &h, sizeof(h), 0, 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(h.magic, "QFI\xfb", 4) != 0 || be32_get(h.version) != 1)
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: no qcow image of version 1", node->path);
	if (be32_get(h.crypt_method) != 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 36, LAYER, "%s: encrypted qcow images are not read",
				 node->path);
	bad = take_geometry(&h, node_size(node->file), s);
	if (bad)
		return error_set(err, IMG_E_CORRUPT, 0, 24, LAYER, "%s: %s does not fit the rest of the header",
				 node->path, bad);
	ret = read_backing(node, &h, s, err);
	if (ret != 0)
		return ret;
	s->lookup.ops = &ops;
	s->lookup.node = node;
	ret = lookup_open(&s->lookup, err);
	if (ret != 0)
		return ret;
	ret = lookup_judge(&s->lookup, args->budget, err);
	if (ret != 0)
		lookup_close(&s->lookup);
	return ret;
}

static int close_member(struct node *node, struct img_error *err)
{
	(void)err;
	lookup_close(&((struct qcow_state *)node->state)->lookup);
	return 0;
}

static uint64_t size(const struct node *node)
{
	return ((const struct qcow_state *)node->state)->lookup.disk_bytes;
}

static void limits(const struct node *node, struct driver_limits *out)
{
	const struct qcow_state *s = node->state;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = (uint32_t)s->lookup.cluster_bytes,
		.optimal_bytes = 1u << 20,
		.unit_bytes = (uint32_t)s->lookup.cluster_bytes,
		.max_size_bytes = INT64_MAX,
	};
}

static int pread_member(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	(void)flags;
	return lookup_pread(&((struct qcow_state *)node->state)->lookup, buf, bytes, off, err);
}

static int status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return lookup_status(&((struct qcow_state *)node->state)->lookup, bytes, off, out, cap, nr, err);
}

static bool get_backing(struct node *node, struct backing_ref *out)
{
	const struct qcow_state *s = node->state;

	memset(out, 0, sizeof(*out));
	strcpy(out->name, s->backing);
	return s->backing[0] != '\0';
}

static int info(struct node *node, struct img_info *out, struct img_error *err)
{
	const struct qcow_state *s = node->state;

	(void)err;
	out->block_bytes = out->unit_bytes = (uint32_t)s->lookup.cluster_bytes;
	memcpy(out->compression, "zlib", sizeof("zlib"));
	return 0;
}

static int check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err)
{
	return lookup_check(&((struct qcow_state *)node->state)->lookup, flags, fn, ctx, progress, out, err);
}

static int inspect_name(struct inspector *in, struct node *file, const struct disk_qcow_header *h,
			struct img_error *err)
{
	uint64_t off = be64_get(h->backing_off), bytes = be32_get(h->backing_bytes);
	uint8_t name[NAME_MAX_BYTES];
	int ret;

	if (off == 0 && bytes == 0)
		return 0;
	ret = inspect_read(file, name, min_u64(bytes, sizeof(name)), off, err);
	if (ret == 0 && (bytes > sizeof(name) || !range_inside(off, bytes, node_size(file))))
		inspect_found(in, INSPECT_TABLE_BOUNDS, off, "the name of the backing file has %" PRIu64 " bytes",
			      bytes);
	if (ret == 0) {
		inspect_reference(in, INSPECT_BACKING, name, (size_t)min_u64(bytes, sizeof(name)), off,
				  "a backing file");
		inspect_found(in, INSPECT_BACKING_FORMAT, 8,
			      "the format of the backing file cannot be recorded in qcow");
	}
	return ret;
}

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct node shell = { .file = file, .path = (char *)(uintptr_t)in->path };
	struct qcow_state s = { 0 };
	struct disk_qcow_header h;
	const char *bad;
	int ret = inspect_read(file, &h, sizeof(h), 0, err);

	if (ret == 0)
		ret = inspect_name(in, file, &h, err);
	if (ret != 0)
		return ret;
	in->out->virtual_bytes = be64_get(h.disk_bytes);
	inspect_limit(in, BUDGET_VIRTUAL, be64_get(h.disk_bytes), 24);
	if (be32_get(h.crypt_method) != 0)
		inspect_found(in, INSPECT_ENCRYPTED, 36, "encryption method %" PRIu32, be32_get(h.crypt_method));
	bad = take_geometry(&h, node_size(file), &s);
	if (bad) {
		inspect_found(in, INSPECT_BAD_HEADER, 24, "%s does not fit the rest of the header", bad);
		return 0;
	}
	s.lookup.ops = &ops;
	s.lookup.node = &shell;
	return lookup_inspect(&s.lookup, in, err);
}

const struct img_driver qcow_driver = {
	.name = "qcow",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct qcow_state),
	.caps = IMG_CAP_CHECK | IMG_CAP_BACKING,
	.probe = probe,
	.open = open_member,
	.close = close_member,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.status = status,
	.get_backing = get_backing,
	.info = info,
	.check = check,
	.inspect = inspect,
};
