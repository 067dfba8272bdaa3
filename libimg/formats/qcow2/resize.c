/* SPDX-License-Identifier: MIT */
/*
 * A new virtual size. A crash leaves the old size or the new one, and new bytes read as zeros in either case:
 *
 * Growing   1  (where more L1 entries are needed) a transaction: a longer L1, the working machine state moved along
 *           2  everything that would show behind the old end is zeroed: the rest of the last cluster, what another
 *              program left mapped there, and where a backing file is longer than the disk was, its content
 *           3  write-back; the header's size, in one sector
 * Shrinking 1  a transaction: the size, and an L1 without the tables that lie behind the end
 *           2  what the last table still maps behind the end is given back
 *
 * Snapshots keep their own size, which only version 3 records.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_engine.h"

#define DISK_MAX ((uint64_t)INT64_MAX - (UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX))

static int may_resize(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	bool sizes_known = true;

	if (size_bytes % 512 != 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "sizes are multiples of 512 bytes");
	if (size_bytes > DISK_MAX || qcow2_l1_entries_for(e, size_bytes) > QCOW2_L1_MAX_BYTES / 8)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes is too large for clusters of 0x%" PRIx64 " bytes",
				 size_bytes, e->cluster_bytes);
	for (uint32_t i = 0; i < e->h.nr_snapshots; i++)
		sizes_known = sizes_known && e->snapshots[i].extra_bytes >= 16;
	if (e->h.nr_snapshots > 0 && (e->h.version < 3 || !sizes_known))
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"the image has snapshots that do not record their size: delete them, or for version 2 use "
			"imgtool amend -o compat=1.1 first");
	return 0;
}

/* ---- growing ----------------------------------------------------------------------------------------------------- */

/* An L1 long enough, in which nothing stands between the old end and the new. */
static int stretch_l1(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	uint64_t *l1;
	uint32_t n;
	int ret;

	if (qcow2_l1_entries_for(e, size_bytes) == qcow2_l1_entries_for(e, e->h.size))
		return 0;
	ret = qcow2_txn_begin(e, err);
	if (ret != 0)
		return ret;
	ret = qcow2_vmstate_move(e, size_bytes, &l1, &n, err);
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	qcow2_txn_set_l1(e, l1, n);
	return qcow2_txn_commit(e, err);
}

static uint64_t backing_end(const struct qcow2_engine *e)
{
	if (e->node->backing_missing)
		return UINT64_MAX;
	return e->node->backing ? node_size(e->node->backing) : 0;
}

/* Of [off, end), that reads as zeros which does not; the rest is left alone, so that an empty disk stays empty. */
static int zero_remains(struct qcow2_engine *e, uint64_t off, uint64_t end, struct img_error *err)
{
	uint64_t below = backing_end(e);
	int ret = 0;

	while (off < end && ret == 0) {
		struct qcow2_view v = qcow2_head_view(e);
		struct qcow2_mapping m;

		ret = qcow2_map(&v, off, end - off, &m, err);
		if (ret != 0)
			return ret;
		if (m.kind == MAP_UNALLOCATED && off < below)
			m.bytes = min_u64(m.bytes, below - off);
		if ((m.kind == MAP_UNALLOCATED && off < below) || m.kind == MAP_DATA || m.kind == MAP_COMPRESSED)
			ret = qcow2_zero(e, m.bytes, off, true, false, err);
		off += m.bytes;
	}
	return ret;
}

static int store_size(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	uint64_t old = e->h.size;
	int ret;

	pthread_rwlock_wrlock(&e->map);
	e->h.size = size_bytes;
	ret = qcow2_header_write_fields(e, err);
	if (ret == 0 && !e->bulk)
		ret = node_flush(e->file, 0, err);
	if (ret != 0) {
		e->h.size = old;
		atomic_store(&e->broken, true);
	}
	pthread_rwlock_unlock(&e->map);
	return ret;
}

static int grow(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	uint64_t old = e->h.size;
	int ret = stretch_l1(e, size_bytes, err);

	if (ret != 0)
		return ret;
	if (e->external && node_size(e->data) < size_bytes)
		ret = node_resize(e->data, size_bytes, err);
	if (ret == 0) {
		/* From here on the new range can be written; on disk it is not yet part of the disk. */
		atomic_store(&e->disk_bytes, size_bytes);
		ret = zero_remains(e, old, size_bytes, err);
	}
	if (ret == 0)
		ret = qcow2_flush_all(e, err);
	if (ret == 0)
		ret = store_size(e, size_bytes, err);
	if (ret != 0) {
		atomic_store(&e->disk_bytes, old);
		/* Machine state has moved behind the new end, where nobody looks for it: no snapshot may take what is
		 * where it was. */
		if (atomic_load(&e->vm_bytes))
			atomic_store(&e->broken, true);
	}
	return ret;
}

/* ---- shrinking --------------------------------------------------------------------------------------------------- */

static int cut_l1(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	uint64_t first, end;
	uint64_t *l1;
	uint32_t n;
	int ret = qcow2_txn_begin(e, err);

	if (ret != 0)
		return ret;
	first = qcow2_l1_entries_for(e, size_bytes);
	end = min_u64(qcow2_l1_entries_for(e, e->h.size), e->h.l1_entries);
	ret = qcow2_vmstate_move(e, size_bytes, &l1, &n, err);
	if (ret == 0) {
		qcow2_txn_set_l1(e, l1, n);
		if (first < end)
			ret = qcow2_txn_walk(e, e->l1 + first, (uint32_t)(end - first), -1, err);
	}
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	e->h.size = size_bytes;
	ret = qcow2_txn_commit(e, err);
	if (ret == 0)
		atomic_store(&e->disk_bytes, size_bytes);
	return ret;
}

static int shrink(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	uint64_t old = e->h.size, reach = e->cluster_bytes << e->l2_shift;
	uint64_t first = round_up(size_bytes, e->cluster_bytes), end;
	int ret = cut_l1(e, size_bytes, err);

	if (ret != 0)
		return ret;
	/* The size is changed, and durable. What cannot be given back is behind the end, where growing zeroes it. */
	end = min_u64(round_up(old, e->cluster_bytes), round_up(size_bytes, reach));
	if (first < end && qcow2_zero(e, end - first, first, true, true, NULL) == 0)
		(void)qcow2_flush_all(e, NULL); /* what it cannot write waits for the next flush, which will say so */
	if (e->external && node_size(e->data) > size_bytes)
		(void)node_resize(e->data, size_bytes, NULL);
	return 0;
}

int qcow2_resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	struct qcow2_engine *e;
	int ret = qcow2_head(n, &e, err);

	if (ret == 0)
		ret = may_resize(e, size_bytes, err);
	if (ret != 0 || size_bytes == e->h.size)
		return ret;
	ret = qcow2_touch(e, err);
	if (ret == 0)
		ret = qcow2_bitmaps_resize_prepare(e, size_bytes, err);
	if (ret == 0)
		ret = size_bytes > e->h.size ? grow(e, size_bytes, err) : shrink(e, size_bytes, err);
	if (ret == 0)
		qcow2_bitmaps_resized(e, size_bytes);
	return ret;
}
