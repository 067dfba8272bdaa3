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
	struct lookup lookup; /* first */
	unsigned cluster_bits;
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
	if (be64_get(h.backing_off) != 0)
		ret = lookup_read_backing(&s->lookup, node, be64_get(h.backing_off), be32_get(h.backing_bytes), 8, err);
	if (ret != 0)
		return ret;
	s->lookup.ops = &ops;
	s->lookup.packed = "zlib";
	return lookup_node_open(node, args->budget, err);
}

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct qcow_state s = { 0 };
	struct disk_qcow_header h;
	const char *bad;
	int ret = inspect_read(file, &h, sizeof(h), 0, err);

	if (ret == 0 && (be64_get(h.backing_off) != 0 || be32_get(h.backing_bytes) != 0)) {
		inspect_found(in, INSPECT_BACKING_FORMAT, 8,
			      "the format of the backing file cannot be recorded in qcow");
		ret = lookup_inspect_backing(in, file, be64_get(h.backing_off), be32_get(h.backing_bytes), err);
	}
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
	return lookup_inspect(&s.lookup, file, in, err);
}

const struct img_driver qcow_driver = {
	.name = "qcow",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct qcow_state),
	.caps = IMG_CAP_CHECK | IMG_CAP_BACKING,
	.probe = probe,
	.open = open_member,
	.close = lookup_node_close,
	.size = lookup_node_size,
	.limits = lookup_node_limits,
	.pread = lookup_node_pread,
	.status = lookup_node_status,
	.get_backing = lookup_node_get_backing,
	.info = lookup_node_info,
	.check = lookup_node_check,
	.inspect = inspect,
};
