/* SPDX-License-Identifier: MIT */
/*
 * New images. Where everything goes is known from the options, so the tables are written once, complete, in this order:
 *
 *   header | refcount table | refcount blocks | L1 | L2 tables | data
 *
 * L2 tables and data only with preallocation. Every cluster up to the end has refcount one. The core makes the file
 * durable and gives it its name.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_header.h"
#include "qcow2_options.h"

#define ZERO_BYTES (1u << 20)

struct layout {
	struct node *file, *data; /* data: NULL without a data file */
	struct qcow2_options o;
	struct qcow2_header h;
	bool preallocated, has_backing;
	uint64_t cluster_bytes, entries; /* of L2 tables: clusters of the disk */
	uint64_t l1_clusters, l2_tables, data_clusters, blocks, clusters;
	uint64_t blocks_off, l2_off, data_off;
	uint8_t *buf; /* a cluster */
};

static int plan(struct layout *l, uint64_t size_bytes, struct img_error *err)
{
	unsigned bits = l->o.cluster_bits;
	uint64_t needed, table;

	qcow2_options_header(&l->o, size_bytes, &l->h);
	l->cluster_bytes = UINT64_C(1) << bits;
	needed = qcow2_header_l1_entries(&l->h, size_bytes);
	if (needed > QCOW2_L1_MAX_BYTES / 8)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes needs a larger cluster_size than 0x%" PRIx64,
				 size_bytes, l->cluster_bytes);
	l->preallocated = l->o.preallocation != PREALLOC_OFF;
	l->entries = (size_bytes >> bits) + ((size_bytes & (l->cluster_bytes - 1)) != 0);
	l->h.l1_entries = (uint32_t)max_u64(needed, 1);
	l->l1_clusters = round_up((uint64_t)l->h.l1_entries * 8, l->cluster_bytes) >> bits;
	l->l2_tables = l->preallocated ? needed : 0;
	l->data_clusters = l->preallocated && !l->o.data_file[0] ? l->entries : 0;
	l->clusters = 1 + l->l1_clusters + l->l2_tables + l->data_clusters;
	qcow2_refcount_clusters(l->clusters, bits, l->o.refcount_order, &l->blocks, &table);
	if (table << bits > QCOW2_REFTABLE_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "preallocation of 0x%" PRIx64
				 " bytes needs a larger cluster_size or smaller refcount_bits",
				 size_bytes);
	l->clusters += l->blocks + table;
	l->h.reftable_clusters = (uint32_t)table;
	l->h.reftable_off = l->cluster_bytes;
	l->blocks_off = (1 + table) << bits;
	l->h.l1_off = l->blocks_off + (l->blocks << bits);
	l->l2_off = l->h.l1_off + (l->l1_clusters << bits);
	l->data_off = l->l2_off + (l->l2_tables << bits);
	return 0;
}

/* Before anything is written: on a device that would be for nothing, and cost what is there. */
static int check_room(const struct layout *l, struct img_error *err)
{
	uint64_t end = l->clusters << l->o.cluster_bits;
	struct driver_limits limits;

	node_limits(l->file, &limits);
	if (end <= limits.max_size_bytes)
		return 0;
	return error_set(err, IMG_E_NOSPC, ENOSPC, NO_OFFSET, LAYER,
			 "%s: too small: the image takes 0x%" PRIx64
			 " bytes to begin with, there is room for 0x%" PRIx64,
			 l->file->path, end, limits.max_size_bytes);
}

/* A table of offsets of consecutive clusters, over whole clusters. */
static int write_offsets(struct layout *l, uint64_t at, uint64_t clusters, uint64_t nr, uint64_t first_off,
			 uint64_t flags, struct img_error *err)
{
	uint64_t per_cluster = l->cluster_bytes / 8, i = 0;
	int ret = 0;

	for (uint64_t c = 0; c < clusters && ret == 0; c++) {
		memset(l->buf, 0, (size_t)l->cluster_bytes);
		for (uint64_t j = 0; j < per_cluster && i < nr; j++, i++) {
			struct be64 d = be64_of((first_off + (i << l->o.cluster_bits)) | flags);

			memcpy(l->buf + 8 * j, &d, sizeof(d));
		}
		ret = node_pwrite(l->file, l->buf, l->cluster_bytes, at + (c << l->o.cluster_bits), 0, err);
	}
	return ret;
}

static int write_refcounts(struct layout *l, struct img_error *err)
{
	unsigned shift = l->o.cluster_bits + 3 - l->o.refcount_order;
	int ret = write_offsets(l, l->h.reftable_off, l->h.reftable_clusters, l->blocks, l->blocks_off, 0, err);

	for (uint64_t b = 0; b < l->blocks && ret == 0; b++) {
		uint64_t nr = min_u64(l->clusters - (b << shift), UINT64_C(1) << shift);

		memset(l->buf, 0, (size_t)l->cluster_bytes);
		for (uint64_t i = 0; i < nr; i++)
			qcow2_refcount_store(l->buf, i, l->o.refcount_order, 1);
		ret = node_pwrite(l->file, l->buf, l->cluster_bytes, l->blocks_off + (b << l->o.cluster_bits), 0, err);
	}
	return ret;
}

/* Preallocated entries. Subclusters over a backing file stay unallocated, so that it shows through. */
static int write_l2(struct layout *l, struct img_error *err)
{
	uint64_t entry_bytes = l->o.extended_l2 ? 16 : 8, per_table = l->cluster_bytes / entry_bytes, i = 0;
	struct be64 all = be64_of(l->has_backing ? 0 : UINT32_MAX);
	int ret = 0;

	for (uint64_t t = 0; t < l->l2_tables && ret == 0; t++) {
		memset(l->buf, 0, (size_t)l->cluster_bytes);
		for (uint64_t j = 0; j < per_table && i < l->entries; j++, i++) {
			uint64_t off = (i << l->o.cluster_bits) + (l->data ? 0 : l->data_off);
			struct be64 d = be64_of(off | QCOW2_COPIED);

			memcpy(l->buf + entry_bytes * j, &d, sizeof(d));
			if (l->o.extended_l2)
				memcpy(l->buf + entry_bytes * j + 8, &all, sizeof(all));
		}
		ret = node_pwrite(l->file, l->buf, l->cluster_bytes, l->l2_off + (t << l->o.cluster_bits), 0, err);
	}
	return ret;
}

static int write_zeros(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t *zeros = calloc(1, ZERO_BYTES);
	int ret = zeros ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t done = 0; done < bytes && ret == 0; done += ZERO_BYTES)
		ret = node_pwrite(node, zeros, min_u64(ZERO_BYTES, bytes - done), off + done, 0, err);
	free(zeros);
	return ret;
}

static int make_data(struct layout *l, struct img_error *err)
{
	struct node *node = l->data ? l->data : l->file;
	uint64_t off = l->data ? 0 : l->data_off;
	uint64_t bytes = l->data ? l->h.size : l->data_clusters << l->o.cluster_bits;
	int ret = 0;

	if (l->o.preallocation == PREALLOC_FULL)
		ret = write_zeros(node, bytes, off, err);
	else if (l->o.preallocation == PREALLOC_FALLOC)
		ret = node_allocate(node, bytes, off, err);
	/* The end of the file is the end of the last cluster. */
	return ret == 0 && node_size(node) < off + bytes ? node_resize(node, off + bytes, err) : ret;
}

static int write_header(struct layout *l, struct img_error *err)
{
	int ret = qcow2_header_store(&l->h, l->buf, err);

	return ret == 0 ? node_pwrite(l->file, l->buf, l->cluster_bytes, 0, 0, err) : ret;
}

static int write_all(struct layout *l, struct img_error *err)
{
	int ret = write_header(l, err); /* first: it may not fit */

	if (ret == 0)
		ret = write_refcounts(l, err);
	if (ret == 0)
		ret = write_offsets(l, l->h.l1_off, l->l1_clusters, l->l2_tables, l->l2_off, QCOW2_COPIED, err);
	if (ret == 0)
		ret = write_l2(l, err);
	return ret == 0 ? make_data(l, err) : ret;
}

int qcow2_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct layout l = { .file = file, .has_backing = args->backing != NULL };
	int ret = qcow2_options_parse(args->options, l.has_backing, &l.o, err);

	if (ret == 0 && args->size_bytes > INT64_MAX - (UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX))
		ret = error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				"0x%" PRIx64 " bytes are more than qcow2 can hold", args->size_bytes);
	if (ret == 0)
		ret = plan(&l, args->size_bytes, err);
	if (ret == 0)
		ret = check_room(&l, err);
	if (ret == 0 && args->backing)
		ret = qcow2_header_set_backing(&l.h, args->backing, err);
	if (ret == 0 && l.o.data_file[0] && !args->create_data)
		ret = error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER, "no data file may be made here");
	if (ret == 0 && l.o.data_file[0])
		ret = args->create_data(args->create_data_ctx, l.o.data_file, &l.data, err);
	if (ret != 0)
		return ret;
	l.buf = malloc((size_t)l.cluster_bytes);
	ret = l.buf ? write_all(&l, err) : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	free(l.buf);
	return ret;
}
