/* SPDX-License-Identifier: MIT */
/*
 * Reading. A request is mapped piece by piece, and each piece read from where its mapping says; gate keeps the mapped
 * clusters from being reused meanwhile. Guest offsets past the disk hold machine state: what is unallocated there is
 * zeros, never the backing file's.
 */
#include "qcow2_io.h"

struct qcow2_view qcow2_head_view(struct qcow2_engine *e)
{
	return (struct qcow2_view){ .e = e };
}

static uint64_t disk_bytes(const struct qcow2_view *v)
{
	return v->is_snapshot ? v->size_bytes : atomic_load_explicit(&v->e->disk_bytes, memory_order_relaxed);
}

bool qcow2_backed(const struct qcow2_engine *e)
{
	return e->node->backing || e->node->backing_missing;
}

static int read_data(struct qcow2_engine *e, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t size = node_size(e->data), there = off < size ? min_u64(bytes, size - off) : 0;

	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there ? node_pread(e->data, buf, there, off, 0, err) : 0;
}

static int read_unallocated(struct qcow2_view *v, uint8_t *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t disk = disk_bytes(v), there = off < disk ? min_u64(bytes, disk - off) : 0;

	memset(buf + there, 0, (size_t)(bytes - there));
	return there ? node_read_backing(v->e->node, buf, there, off, err) : 0;
}

int qcow2_view_read_held(struct qcow2_view *v, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct qcow2_engine *e = v->e;
	uint8_t *dst = buf;

	while (bytes) {
		struct qcow2_mapping m;
		int rc = qcow2_map(v, off, bytes, &m, err);

		if (rc)
			return rc;
		switch (m.kind) {
		case MAP_DATA: rc = read_data(e, dst, m.bytes, m.host_off, err); break;
		case MAP_COMPRESSED: rc = qcow2_expand_part(e, &m, dst, off % e->cluster_bytes, m.bytes, err); break;
		case MAP_UNALLOCATED: rc = read_unallocated(v, dst, m.bytes, off, err); break;
		case MAP_ZERO: memset(dst, 0, (size_t)m.bytes); break;
		}
		if (rc)
			return rc;
		dst += m.bytes;
		off += m.bytes;
		bytes -= m.bytes;
	}
	return 0;
}

int qcow2_view_read(struct qcow2_view *v, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int rc = qcow2_may_read(v->e, err);

	if (rc)
		return rc;
	pthread_rwlock_rdlock(&v->e->gate);
	rc = qcow2_view_read_held(v, buf, bytes, off, err);
	pthread_rwlock_unlock(&v->e->gate);
	return rc;
}

/* Is what the layer below says about an unallocated [off, off + bytes) surely zeros? */
static bool unallocated_is_zero(const struct qcow2_view *v, uint64_t off, uint64_t bytes)
{
	const struct node *n = v->e->node;
	uint64_t end = min_u64(off + bytes, disk_bytes(v));

	if (off >= end)
		return true;
	if (n->backing_changes)
		return false;
	if (!qcow2_backed(v->e))
		return true;
	return !n->backing_missing && off >= node_size(n->backing);
}

bool qcow2_reads_zero(struct qcow2_view *v, uint64_t off, uint64_t bytes)
{
	while (bytes) {
		struct qcow2_mapping m;

		if (qcow2_map(v, off, bytes, &m, NULL))
			return false;
		if (m.kind == MAP_DATA || m.kind == MAP_COMPRESSED)
			return false;
		if (m.kind == MAP_UNALLOCATED && !unallocated_is_zero(v, off, m.bytes))
			return false;
		off += m.bytes;
		bytes -= m.bytes;
	}
	return true;
}

int qcow2_view_status(struct qcow2_view *v, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		      size_t *nr, struct img_error *err)
{
	static const enum status_kind kinds[] = { [MAP_UNALLOCATED] = STATUS_UNALLOCATED,
						  [MAP_ZERO] = STATUS_ZERO,
						  [MAP_DATA] = STATUS_DATA,
						  [MAP_COMPRESSED] = STATUS_COMPRESSED };
	bool one_file = v->e->data == v->e->file;
	int rc = qcow2_may_read(v->e, err);

	*nr = 0;
	while (rc == 0 && *nr < cap && bytes > 0) {
		struct qcow2_mapping m;

		rc = qcow2_map(v, off, bytes, &m, err);
		if (rc)
			break;
		out[(*nr)++] = (struct status_extent){
			.off = off,
			.bytes = m.bytes,
			.kind = kinds[m.kind],
			.host_off = m.kind == MAP_DATA && one_file ? m.host_off : STATUS_NO_HOST,
		};
		off += m.bytes;
		bytes -= m.bytes;
	}
	return rc;
}
