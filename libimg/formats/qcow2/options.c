/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". The names and the combinations that are refused are those of qemu-img. */
#include <string.h>

#include "option_list.h"
#include "qcow2_header.h"
#include "qcow2_options.h"

static int invalid(struct img_error *err, const char *what)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s", what);
}

static int set_bool(bool *out, const char *key, const char *v, struct img_error *err)
{
	return option_bool(v, out) ? 0 : option_wrong(LAYER, key, "on or off", v, err);
}

static int set_version(struct qcow2_options *o, const char *v, struct img_error *err)
{
	if (!strcmp(v, "0.10") || !strcmp(v, "v2"))
		o->version = 2;
	else if (!strcmp(v, "1.1") || !strcmp(v, "v3"))
		o->version = 3;
	else
		return option_wrong(LAYER, "compat", "0.10 (v2) or 1.1 (v3)", v, err);
	return 0;
}

static int set_cluster_size(struct qcow2_options *o, const char *v, struct img_error *err)
{
	uint64_t n = option_power(v, UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN, UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX);

	if (n == 0)
		return option_wrong(LAYER, "cluster_size", "512 to 2M, a power of two", v, err);
	o->cluster_bits = (unsigned)__builtin_ctzll(n);
	return 0;
}

static int set_refcount_bits(struct qcow2_options *o, const char *v, struct img_error *err)
{
	uint64_t n = option_power(v, 1, 64);

	if (n == 0)
		return option_wrong(LAYER, "refcount_bits", "1, 2, 4, 8, 16, 32 or 64", v, err);
	o->refcount_order = (unsigned)__builtin_ctzll(n);
	return 0;
}

static int set_compression_type(struct qcow2_options *o, const char *v, struct img_error *err)
{
	if (!strcmp(v, "zlib"))
		o->compression = QCOW2_DEFLATE;
	else if (!strcmp(v, "zstd"))
		o->compression = QCOW2_ZSTD;
	else
		return option_wrong(LAYER, "compression_type", "zlib or zstd", v, err);
	return 0;
}

/* As limg has it. A level is nothing that the format records. */
static int set_compression(struct qcow2_options *o, const char *v, struct img_error *err)
{
	enum codec_id id;
	int level;

	if (codec_parse(v, &id, &level) != 0)
		return option_wrong(LAYER, "compression", "none, zlib or zstd", v, err);
	if (level != 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "qcow2 records no level of compression: write %s without it", codec_name(id));
	if (id != CODEC_NONE)
		o->compression = id == CODEC_ZSTD ? QCOW2_ZSTD : QCOW2_DEFLATE;
	return 0;
}

static int set_preallocation(struct qcow2_options *o, const char *v, struct img_error *err)
{
	static const char *const names[] = { "off", "metadata", "falloc", "full" };

	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		if (!strcmp(v, names[i])) {
			o->preallocation = (enum qcow2_preallocation)i;
			return 0;
		}
	}
	return option_wrong(LAYER, "preallocation", "off, metadata, falloc or full", v, err);
}

static int set_data_file(struct qcow2_options *o, const char *v, struct img_error *err)
{
	if (v[0] == '\0' || strlen(v) >= sizeof(o->data_file))
		return invalid(err, "data_file is a name of 1 to 1023 bytes");
	strcpy(o->data_file, v);
	return 0;
}

int qcow2_option_set(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct qcow2_options *o = ctx;

	if (!strcmp(key, "compat"))
		return set_version(o, v, err);
	if (!strcmp(key, "cluster_size"))
		return set_cluster_size(o, v, err);
	if (!strcmp(key, "refcount_bits"))
		return set_refcount_bits(o, v, err);
	if (!strcmp(key, "lazy_refcounts"))
		return set_bool(&o->lazy_refcounts, key, v, err);
	if (!strcmp(key, "extended_l2"))
		return set_bool(&o->extended_l2, key, v, err);
	if (!strcmp(key, "compression_type"))
		return set_compression_type(o, v, err);
	if (!strcmp(key, "compression"))
		return set_compression(o, v, err);
	if (!strcmp(key, "preallocation"))
		return set_preallocation(o, v, err);
	if (!strcmp(key, "data_file"))
		return set_data_file(o, v, err);
	if (!strcmp(key, "data_file_raw"))
		return set_bool(&o->data_file_raw, key, v, err);
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "qcow2 has no option '%.32s'", key);
}

int qcow2_options_check(const struct qcow2_options *o, bool has_backing, struct img_error *err)
{
	bool v2 = o->version < 3;

	if (v2 && o->refcount_order != 4)
		return invalid(err, "refcount_bits other than 16 need compat=1.1");
	if (v2 && o->lazy_refcounts)
		return invalid(err, "lazy_refcounts needs compat=1.1");
	if (v2 && o->extended_l2)
		return invalid(err, "extended_l2 needs compat=1.1");
	if (v2 && o->compression != QCOW2_DEFLATE)
		return invalid(err, "compression_type=zstd needs compat=1.1");
	if (v2 && o->data_file[0])
		return invalid(err, "data_file needs compat=1.1");
	if (o->extended_l2 && o->cluster_bits < QCOW2_EXTENDED_BITS_MIN)
		return invalid(err, "extended_l2 needs clusters of at least 16K");
	if (o->data_file_raw && !o->data_file[0])
		return invalid(err, "data_file_raw needs data_file");
	if (o->data_file_raw && has_backing)
		return invalid(err, "a raw data file holds the whole disk: there can be no backing file");
	if (has_backing && o->preallocation != PREALLOC_OFF && !o->extended_l2)
		return invalid(err, "preallocation over a backing file needs extended_l2");
	return 0;
}

int qcow2_options_parse(const char *text, bool has_backing, struct qcow2_options *out, struct img_error *err)
{
	int ret;

	*out = (struct qcow2_options){ .version = 3, .cluster_bits = 16, .refcount_order = 4 };
	ret = option_each(text, LAYER, qcow2_option_set, out, err);
	if (ret == 0)
		ret = qcow2_options_check(out, has_backing, err);
	/* A raw data file's mapping must be complete, or it would not be the disk. */
	if (ret == 0 && out->data_file_raw && out->preallocation == PREALLOC_OFF)
		out->preallocation = PREALLOC_METADATA;
	return ret;
}

void qcow2_options_header(const struct qcow2_options *o, uint64_t size_bytes, struct qcow2_header *h)
{
	memset(h, 0, sizeof(*h));
	h->version = o->version;
	h->size = size_bytes;
	h->cluster_bits = o->cluster_bits;
	h->refcount_order = o->refcount_order;
	h->compression_type = (uint8_t)o->compression;
	h->incompatible = (o->data_file[0] ? QCOW2_DATA_FILE : 0u) |
			  (o->compression != QCOW2_DEFLATE ? QCOW2_COMPRESSION : 0u) |
			  (o->extended_l2 ? QCOW2_EXTENDED_L2 : 0u);
	h->compatible = o->lazy_refcounts ? QCOW2_LAZY_REFCOUNTS : 0;
	h->autoclear = o->data_file_raw ? QCOW2_DATA_FILE_RAW : 0;
	strcpy(h->data_file, o->data_file);
	h->header_bytes = o->version < 3 ? QCOW2_HEADER_V2_BYTES : (uint32_t)sizeof(struct disk_qcow2_header);
}

void qcow2_refcount_clusters(uint64_t clusters, unsigned cluster_bits, unsigned refcount_order, uint64_t *blocks,
			     uint64_t *table)
{
	unsigned block_shift = cluster_bits + 3 - refcount_order, table_shift = cluster_bits - 3;
	uint64_t need_blocks = 1, need_table = 1;

	do {
		*blocks = need_blocks;
		*table = need_table;
		need_blocks = (clusters + *blocks + *table + (UINT64_C(1) << block_shift) - 1) >> block_shift;
		need_table = (need_blocks + (UINT64_C(1) << table_shift) - 1) >> table_shift;
	} while (need_blocks != *blocks || need_table != *table);
}
