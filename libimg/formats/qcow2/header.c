/* SPDX-License-Identifier: MIT */
/*
 * The header cluster, read: fixed fields here, extensions in header_ext.c, writing in header_store.c.
 *
 * Everything comes from a stranger. A field is compared with its limit before it is used to find the next one; names
 * and extensions must lie inside the first cluster. The limits are those of QEMU, so that what one program opens the
 * other opens, too. Which table is needed for what decides the caller: lenient skips what check reports by itself.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_engine.h"
#include "qcow2_header.h"

#define OFF(field) offsetof(struct disk_qcow2_header, field)

static int corrupt(struct img_error *err, uint64_t off, const char *field, uint64_t value, const char *what)
{
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "header field %s at %" PRIu64 " is 0x%" PRIx64 ": %s",
			 field, off, value, what);
}

static int above_limit(struct img_error *err, uint64_t off, const char *field, uint64_t value, uint64_t limit)
{
	return error_set(err, IMG_E_LIMIT, 0, off, LAYER,
			 "header field %s at %" PRIu64 " is 0x%" PRIx64 ", more than the limit of 0x%" PRIx64, field,
			 off, value, limit);
}

static int read_clipped(struct node *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size = node_size(file), there = off < size ? min_u64(bytes, size - off) : 0;

	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there > 0 ? node_pread(file, buf, there, off, 0, err) : 0;
}

static void take_fields(const struct disk_qcow2_header *d, struct qcow2_header *h)
{
	h->version = be32_get(d->version);
	h->size = be64_get(d->size);
	h->cluster_bits = be32_get(d->cluster_bits);
	h->crypt_method = be32_get(d->crypt_method);
	h->l1_entries = be32_get(d->l1_entries);
	h->l1_off = be64_get(d->l1_off);
	h->reftable_off = be64_get(d->reftable_off);
	h->reftable_clusters = be32_get(d->reftable_clusters);
	h->nr_snapshots = be32_get(d->nr_snapshots);
	h->snapshots_off = be64_get(d->snapshots_off);
	h->backing_off = be64_get(d->backing_off);
	h->backing_bytes = be32_get(d->backing_bytes);
	h->refcount_order = 4;
	h->header_bytes = QCOW2_HEADER_V2_BYTES;
	if (h->version < 3)
		return;
	h->incompatible = be64_get(d->incompatible);
	h->compatible = be64_get(d->compatible);
	h->autoclear = be64_get(d->autoclear);
	h->refcount_order = be32_get(d->refcount_order);
	h->header_bytes = be32_get(d->header_bytes);
	if (h->header_bytes > QCOW2_HEADER_MIN_BYTES)
		h->compression_type = d->compression_type;
}

/* What has to hold before the cluster can be read at all. */
static int check_shape(const struct qcow2_header *h, uint64_t file_bytes, struct img_error *err)
{
	if (h->version != 2 && h->version != 3)
		return error_set(err, IMG_E_UNSUPPORTED, 0, OFF(version), LAYER,
				 "qcow version %u at %zu: only 2 and 3 are known", h->version, OFF(version));
	if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return corrupt(err, OFF(cluster_bits), "cluster_bits", h->cluster_bits, "9 to 21 are possible");
	if (h->version == 3 && (h->header_bytes < QCOW2_HEADER_MIN_BYTES || h->header_bytes % 8 != 0))
		return corrupt(err, OFF(header_bytes), "header_length", h->header_bytes,
			       "at least 104 and a multiple of 8 is possible");
	if (h->header_bytes > UINT64_C(1) << h->cluster_bits)
		return corrupt(err, OFF(header_bytes), "header_length", h->header_bytes,
			       "it exceeds the first cluster");
	if (file_bytes < h->header_bytes)
		return error_set(err, IMG_E_CORRUPT, 0, file_bytes, LAYER,
				 "the file ends at 0x%" PRIx64 ", inside the header", file_bytes);
	return 0;
}

static int check_features(const struct qcow2_header *h, struct img_error *err)
{
	bool zlib = h->compression_type == QCOW2_DEFLATE;
	uint64_t unknown = h->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN;
	char names[128];

	if (unknown) {
		qcow2_feature_names(h, unknown, names, sizeof(names));
		return error_set(err, IMG_E_UNSUPPORTED, 0, OFF(incompatible), LAYER,
				 "incompatible features at %zu that this program does not know: %s", OFF(incompatible),
				 names);
	}
	if (h->compression_type > QCOW2_ZSTD)
		return error_set(err, IMG_E_UNSUPPORTED, 0, OFF(compression_type), LAYER,
				 "compression type %u at %zu is not known: only zlib and zstd are", h->compression_type,
				 OFF(compression_type));
	if (zlib != !(h->incompatible & QCOW2_COMPRESSION))
		return corrupt(err, OFF(compression_type), "compression_type", h->compression_type,
			       zlib ? "the incompatible feature bit says that it is not zlib" :
				      "the incompatible feature bit for it is not set");
	if ((h->incompatible & QCOW2_EXTENDED_L2) && h->cluster_bits < QCOW2_EXTENDED_BITS_MIN)
		return corrupt(err, OFF(cluster_bits), "cluster_bits", h->cluster_bits,
			       "subclusters need clusters of at least 16 KiB");
	if (h->refcount_order > 6)
		return corrupt(err, OFF(refcount_order), "refcount_order", h->refcount_order, "0 to 6 are possible");
	if (h->crypt_method > 2)
		return error_set(err, IMG_E_UNSUPPORTED, 0, OFF(crypt_method), LAYER,
				 "encryption method %u at %zu is not known", h->crypt_method, OFF(crypt_method));
	return 0;
}

struct table {
	const char *name;
	uint64_t off, bytes;
	uint64_t field_off; /* of its offset, in the header */
};

static int check_table(const struct qcow2_header *h, const struct table *t, uint64_t file_bytes, bool lenient,
		       struct img_error *err)
{
	uint64_t cluster = UINT64_C(1) << h->cluster_bits;

	if (t->bytes == 0)
		return 0;
	if (t->off == 0 || t->off % cluster != 0)
		return corrupt(err, t->field_off, t->name, t->off, "not the start of a cluster behind the header");
	if (!range_inside(t->off, t->bytes, INT64_MAX))
		return corrupt(err, t->field_off, t->name, t->off, "no file is that long");
	if (!lenient && !range_inside(t->off, t->bytes, round_up(file_bytes, cluster)))
		return error_set(err, IMG_E_CORRUPT, 0, t->field_off, LAYER,
				 "header field %s at %" PRIu64 " is 0x%" PRIx64
				 ", beyond the end of the file, 0x%" PRIx64,
				 t->name, t->field_off, t->off, file_bytes);
	return 0;
}

static int check_size(const struct qcow2_header *h, struct img_error *err)
{
	uint64_t needed = qcow2_header_l1_entries(h, h->size);

	if (h->size > INT64_MAX)
		return above_limit(err, OFF(size), "size", h->size, INT64_MAX);
	if (h->l1_entries > QCOW2_L1_MAX_BYTES / 8)
		return above_limit(err, OFF(l1_entries), "l1_size", h->l1_entries, QCOW2_L1_MAX_BYTES / 8);
	if (h->l1_entries < needed)
		return error_set(err, IMG_E_CORRUPT, 0, OFF(l1_entries), LAYER,
				 "header field l1_size at %zu is %" PRIu32 ", but a disk of 0x%" PRIx64
				 " bytes needs %" PRIu64,
				 OFF(l1_entries), h->l1_entries, h->size, needed);
	return 0;
}

static int check_tables(const struct qcow2_header *h, uint64_t file_bytes, bool lenient, struct img_error *err)
{
	const struct table l1 = { "l1_table_offset", h->l1_off, (uint64_t)h->l1_entries * 8, OFF(l1_off) };
	const struct table reftable = { "refcount_table_offset", h->reftable_off,
					(uint64_t)h->reftable_clusters << h->cluster_bits, OFF(reftable_off) };
	/* Its true length is known only from its content. */
	const struct table snapshots = { "snapshots_offset", h->snapshots_off,
					 h->nr_snapshots * sizeof(struct disk_qcow2_snapshot), OFF(snapshots_off) };
	const struct table bitmaps = { "bitmap_directory_offset", h->bitmap_dir_off, h->bitmap_dir_bytes,
				       h->header_bytes };
	int ret = check_size(h, err);

	if (ret != 0)
		return ret;
	if (h->reftable_clusters == 0 && !lenient)
		return corrupt(err, OFF(reftable_clusters), "refcount_table_clusters", 0,
			       "there is no refcount table; imgtool check --repair makes one");
	if (reftable.bytes > QCOW2_REFTABLE_MAX_BYTES)
		return above_limit(err, OFF(reftable_clusters), "refcount_table_clusters", h->reftable_clusters,
				   QCOW2_REFTABLE_MAX_BYTES >> h->cluster_bits);
	if (h->nr_snapshots > QCOW2_SNAPSHOTS_MAX)
		return above_limit(err, OFF(nr_snapshots), "nb_snapshots", h->nr_snapshots, QCOW2_SNAPSHOTS_MAX);
	ret = check_table(h, &l1, file_bytes, false, err); /* zeros instead of a lost table would be a lie */
	if (ret == 0)
		ret = check_table(h, &reftable, file_bytes, lenient, err);
	if (ret == 0)
		ret = check_table(h, &snapshots, file_bytes, lenient, err);
	if (ret == 0 && h->nr_bitmaps > 0 && (h->autoclear & QCOW2_BITMAPS))
		ret = check_table(h, &bitmaps, file_bytes, lenient, err);
	return ret;
}

/* The name stands in the first cluster, behind the extensions. */
static int take_backing(struct qcow2_header *h, const uint8_t *cluster, struct img_error *err)
{
	uint32_t name_bytes = h->backing_bytes;
	uint64_t cluster_bytes = UINT64_C(1) << h->cluster_bits;

	if (h->backing_off == 0)
		return 0;
	if (name_bytes > QCOW2_NAME_MAX)
		return above_limit(err, OFF(backing_bytes), "backing_file_size", name_bytes, QCOW2_NAME_MAX);
	if (h->backing_off < h->header_bytes || !range_inside(h->backing_off, name_bytes, cluster_bytes))
		return corrupt(err, OFF(backing_off), "backing_file_offset", h->backing_off,
			       "the name must lie in the first cluster, behind the header");
	memcpy(h->backing, cluster + h->backing_off, name_bytes);
	return 0;
}

static int take_unknown(struct qcow2_header *h, const uint8_t *cluster, struct img_error *err)
{
	if (h->header_bytes <= sizeof(struct disk_qcow2_header))
		return 0;
	h->unknown_bytes = h->header_bytes - (uint32_t)sizeof(struct disk_qcow2_header);
	h->unknown = malloc(h->unknown_bytes);
	if (!h->unknown)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(h->unknown, cluster + sizeof(struct disk_qcow2_header), h->unknown_bytes);
	return 0;
}

static int load_cluster(struct node *file, struct qcow2_header *h, struct img_error *err)
{
	uint64_t cluster_bytes = UINT64_C(1) << h->cluster_bits;
	uint8_t *cluster = malloc((size_t)cluster_bytes);
	int ret = cluster ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (ret == 0)
		ret = read_clipped(file, cluster, cluster_bytes, 0, err);
	if (ret == 0)
		ret = take_unknown(h, cluster, err);
	if (ret == 0)
		ret = take_backing(h, cluster, err);
	if (ret == 0)
		ret = qcow2_extensions_load(h, cluster, err);
	free(cluster);
	return ret;
}

int qcow2_header_load(struct node *file, bool lenient, struct qcow2_header *out, struct img_error *err)
{
	struct disk_qcow2_header d;
	uint64_t file_bytes = node_size(file);
	int ret;

	memset(out, 0, sizeof(*out));
	ret = read_clipped(file, &d, sizeof(d), 0, err);
	if (ret != 0)
		return ret;
	if (be32_get(d.magic) != QCOW2_MAGIC)
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "this is no qcow2 image: the magic is missing");
	if (file_bytes < QCOW2_HEADER_V2_BYTES)
		return error_set(err, IMG_E_CORRUPT, 0, file_bytes, LAYER,
				 "the file ends at 0x%" PRIx64 ", inside the header", file_bytes);
	take_fields(&d, out);
	ret = check_shape(out, file_bytes, err);
	if (ret == 0)
		ret = load_cluster(file, out, err);
	if (ret == 0)
		ret = check_features(out, err);
	if (ret == 0)
		ret = check_tables(out, file_bytes, lenient, err);
	if (ret != 0)
		qcow2_header_free(out);
	return ret;
}

void qcow2_header_free(struct qcow2_header *h)
{
	for (size_t i = 0; i < h->nr_ext; i++)
		free(h->ext[i].data);
	free(h->ext);
	free(h->unknown);
	h->ext = NULL;
	h->nr_ext = 0;
	h->unknown = NULL;
	h->unknown_bytes = 0;
}
