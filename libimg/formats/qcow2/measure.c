/* SPDX-License-Identifier: MIT */
/*
 * How large an image will be, by the same books as qemu-img measure: all tables that the full disk would need, and the
 * clusters in which the source holds data.
 */
#include <inttypes.h>

#include "qcow2_header.h"
#include "qcow2_options.h"

struct counting {
	uint64_t cluster_bytes;
	uint64_t next; /* data before it is counted */
	uint64_t bytes;
};

static int count_data(void *arg, uint64_t off, uint64_t bytes)
{
	struct counting *c = arg;
	uint64_t first = max_u64(round_down(off, c->cluster_bytes), c->next);
	uint64_t end = round_up(off + bytes, c->cluster_bytes);

	if (first < end) {
		c->bytes += end - first;
		c->next = end;
	}
	return 0;
}

int qcow2_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct qcow2_options o;
	struct qcow2_header h;
	struct counting c = { 0 };
	uint64_t data, l2_clusters, l1_clusters, blocks, table, all;
	int ret = qcow2_options_parse(args->options, false, &o, err);

	if (ret != 0)
		return ret;
	c.cluster_bytes = UINT64_C(1) << o.cluster_bits;
	if (args->size_bytes > INT64_MAX - c.cluster_bytes)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes are more than qcow2 can hold", args->size_bytes);
	data = round_up(args->size_bytes, c.cluster_bytes);
	qcow2_options_header(&o, data, &h);
	l2_clusters = qcow2_header_l1_entries(&h, data);
	if (l2_clusters > QCOW2_L1_MAX_BYTES / 8)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes need a larger cluster_size than 0x%" PRIx64, args->size_bytes,
				 c.cluster_bytes);
	/* An L1 table has an entry even where there is no disk. */
	l1_clusters = round_up(max_u64(l2_clusters, 1) * 8, c.cluster_bytes) >> o.cluster_bits;
	all = 1 + l1_clusters + l2_clusters + (data >> o.cluster_bits);
	qcow2_refcount_clusters(all, o.cluster_bits, o.refcount_order, &blocks, &table);
	if (mul_overflows(all + blocks + table, c.cluster_bytes, &out->fully_allocated_bytes))
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "0x%" PRIx64 " bytes are more than qcow2 can hold", args->size_bytes);
	if (o.preallocation == PREALLOC_FALLOC || o.preallocation == PREALLOC_FULL)
		c.bytes = data;
	else if (args->each_data)
		ret = args->each_data(args->ctx, count_data, &c, err);
	out->required_bytes = out->fully_allocated_bytes - data + c.bytes;
	return ret;
}
