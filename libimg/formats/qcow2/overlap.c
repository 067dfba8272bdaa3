/* SPDX-License-Identifier: MIT */
/*
 * Which clusters hold metadata. Every data write and every new allocation is looked up here first: refcounts that are
 * wrong must not let data land on a table, which is how one damaged entry becomes a lost image.
 *
 * The set is an open-addressing hash table of cluster indexes. A cluster leaves it when its last reference goes. It
 * holds the header, the active L1 and its L2 tables, refcount table and blocks, snapshot table, the snapshots' L1
 * tables and, as far as reading them stays cheap, their L2 tables, and the bitmaps with their directory.
 *
 * Only L2 tables are named more than once. Where anything else is (QCOW2-14), to write one structure would destroy the
 * other, and the image is not opened for that.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_refcount.h"

#define CAP_MIN		   256u
#define SNAPSHOT_L1_BUDGET (UINT64_C(64) << 20) /* bytes of snapshots' L1 tables that opening for writing reads */

#define L2_TABLE (UINT64_C(1) << 63) /* in a slot: that is what it is */

struct qcow2_meta {
	uint64_t *slots; /* cluster index + 1, perhaps with L2_TABLE; 0: empty */
	size_t cap, nr;	 /* cap: a power of two */
};

static size_t slot_of(const struct qcow2_meta *m, uint64_t key)
{
	return (size_t)(((key & ~L2_TABLE) * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (m->cap - 1);
}

/* Where key is, or would be put. */
static size_t find_slot(const struct qcow2_meta *m, uint64_t key)
{
	size_t i = slot_of(m, key);

	while (m->slots[i] && ((m->slots[i] ^ key) & ~L2_TABLE) != 0)
		i = (i + 1) & (m->cap - 1);
	return i;
}

static int grow(struct qcow2_meta *m, struct img_error *err)
{
	struct qcow2_meta next = { .cap = m->cap ? 2 * m->cap : CAP_MIN, .nr = m->nr };

	next.slots = calloc(next.cap, sizeof(*next.slots));
	if (!next.slots)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < m->cap; i++)
		if (m->slots[i])
			next.slots[find_slot(&next, m->slots[i])] = m->slots[i];
	free(m->slots);
	*m = next;
	return 0;
}

/* The slot of a cluster, perhaps empty; room is made for it. */
static int room_for(struct qcow2_meta *m, uint64_t cluster, size_t *i, struct img_error *err)
{
	int rc = m->nr >= m->cap / 2 ? grow(m, err) : 0;

	if (rc == 0)
		*i = find_slot(m, cluster + 1);
	return rc;
}

int qcow2_meta_add(struct qcow2_engine *e, uint64_t off, uint64_t bytes, struct img_error *err)
{
	struct qcow2_meta *m = e->meta;

	/* Only those who write need it; the set is made when the image is opened for that. */
	if (!m)
		return 0;
	for (uint64_t c = off >> e->h.cluster_bits; bytes && c <= (off + bytes - 1) >> e->h.cluster_bits; c++) {
		size_t i;
		int rc = room_for(m, c, &i, err);

		if (rc)
			return rc;
		m->nr += m->slots[i] == 0;
		m->slots[i] = c + 1;
	}
	return 0;
}

/* Empties slot i, and moves up those behind it that would else not be found any more. */
static void remove_slot(struct qcow2_meta *m, size_t i)
{
	size_t mask = m->cap - 1;

	m->slots[i] = 0;
	m->nr--;
	for (size_t j = (i + 1) & mask; m->slots[j]; j = (j + 1) & mask) {
		uint64_t key = m->slots[j];
		size_t home = slot_of(m, key);

		/* It may move if its home does not lie behind the hole. */
		if (((j - home) & mask) >= ((j - i) & mask)) {
			m->slots[j] = 0;
			m->slots[i] = key;
			i = j;
		}
	}
}

void qcow2_meta_remove(struct qcow2_engine *e, uint64_t off, uint64_t bytes)
{
	struct qcow2_meta *m = e->meta;

	if (!m || m->nr == 0)
		return;
	for (uint64_t c = off >> e->h.cluster_bits; bytes && c <= (off + bytes - 1) >> e->h.cluster_bits; c++) {
		size_t i = find_slot(m, c + 1);

		if (m->slots[i])
			remove_slot(m, i);
	}
}

bool qcow2_meta_overlaps(struct qcow2_engine *e, uint64_t off, uint64_t bytes, uint64_t *where)
{
	const struct qcow2_meta *m = e->meta;

	if (!m || m->nr == 0)
		return false;
	for (uint64_t c = off >> e->h.cluster_bits; bytes && c <= (off + bytes - 1) >> e->h.cluster_bits; c++) {
		if (m->slots[find_slot(m, c + 1)]) {
			*where = c << e->h.cluster_bits;
			return true;
		}
	}
	return false;
}

/* ---- filling it ---- */

/* What nobody else has; kind L2_TABLE: or other L1 tables. */
static int claim(struct qcow2_engine *e, uint64_t off, uint64_t bytes, uint64_t kind, struct img_error *err)
{
	struct qcow2_meta *m = e->meta;

	for (uint64_t c = off >> e->h.cluster_bits; bytes && c <= (off + bytes - 1) >> e->h.cluster_bits; c++) {
		size_t i;
		int rc = room_for(m, c, &i, err);

		if (rc)
			return rc;
		if (m->slots[i] && (m->slots[i] & kind) == 0)
			return error_set(err, IMG_E_CORRUPT, 0, c << e->h.cluster_bits, LAYER,
					 "two structures of the image share the cluster at 0x%" PRIx64
					 ", so that it can only be read: run imgtool check --repair, or convert it",
					 c << e->h.cluster_bits);
		m->nr += m->slots[i] == 0;
		m->slots[i] = (c + 1) | kind;
	}
	return 0;
}

/* One cluster at a table's offset, unless the offset is nonsense: check reports that, and whoever uses it refuses. */
static int claim_table(struct qcow2_engine *e, uint64_t off, uint64_t kind, struct img_error *err)
{
	return off && off % e->cluster_bytes == 0 ? claim(e, off, e->cluster_bytes, kind, err) : 0;
}

static int add_snapshot_tables(struct qcow2_engine *e, const struct qcow2_snapshot *s, uint64_t *budget,
			       struct img_error *err)
{
	uint64_t bytes = (uint64_t)s->l1_entries * 8;
	struct be64 *l1;
	int rc;

	if (bytes == 0 || s->l1_off % e->cluster_bytes || bytes > QCOW2_L1_MAX_BYTES ||
	    !range_inside(s->l1_off, bytes, INT64_MAX))
		return 0;
	rc = claim(e, s->l1_off, bytes, 0, err);
	if (rc || bytes > *budget)
		return rc;
	*budget -= bytes;
	l1 = malloc((size_t)bytes);
	if (!l1)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = qcow2_read_clipped(e, l1, bytes, s->l1_off, err);
	for (uint32_t i = 0; !rc && i < s->l1_entries; i++)
		rc = claim_table(e, be64_get(l1[i]) & QCOW2_OFFSET_MASK, L2_TABLE, err);
	free(l1);
	return rc;
}

static int add_snapshots(struct qcow2_engine *e, struct img_error *err)
{
	uint64_t bytes = 0, budget = SNAPSHOT_L1_BUDGET;
	int rc = 0;

	for (uint32_t i = 0; !rc && e->snapshots && i < e->h.nr_snapshots; i++) {
		const struct qcow2_snapshot *s = &e->snapshots[i];

		bytes = round_up(bytes, 8) + sizeof(struct disk_qcow2_snapshot) + s->extra_bytes +
			(s->id ? strlen(s->id) : 0) + (s->name ? strlen(s->name) : 0);
		rc = add_snapshot_tables(e, s, &budget, err);
	}
	return rc ? rc : claim(e, e->h.snapshots_off, bytes, 0, err);
}

static int add_extent(void *ctx, uint64_t off, uint64_t bytes, const char *bitmap, struct img_error *err)
{
	(void)bitmap;
	return claim(ctx, off, bytes, 0, err);
}

/* A bitmap whose table is damaged: the check tells. */
static int pass_over(void *ctx, const char *bitmap, const struct img_error *why)
{
	(void)ctx;
	(void)bitmap;
	(void)why;
	return 0;
}

int qcow2_meta_build(struct qcow2_engine *e, struct img_error *err)
{
	int rc = 0;

	qcow2_meta_free(e);
	e->meta = calloc(1, sizeof(*e->meta));
	if (!e->meta)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = grow(e->meta, err);
	if (!rc)
		rc = claim(e, 0, e->cluster_bytes, 0, err);
	if (!rc)
		rc = claim(e, e->h.l1_off, (uint64_t)e->h.l1_entries * 8, 0, err);
	if (!rc)
		rc = claim(e, e->h.reftable_off, (uint64_t)e->h.reftable_clusters << e->h.cluster_bits, 0, err);
	for (uint64_t i = 0; !rc && i < e->reftable_entries; i++)
		rc = claim_table(e, e->reftable[i], 0, err);
	for (uint32_t i = 0; !rc && i < e->h.l1_entries; i++)
		rc = claim_table(e, e->l1[i] & QCOW2_OFFSET_MASK, L2_TABLE, err);
	if (!rc)
		rc = add_snapshots(e, err);
	if (!rc)
		rc = qcow2_bitmaps_walk(e, &(struct qcow2_bitmap_visitor){ add_extent, pass_over, e }, err);
	if (rc)
		qcow2_meta_free(e);
	return rc;
}

void qcow2_meta_free(struct qcow2_engine *e)
{
	if (!e->meta)
		return;
	free(e->meta->slots);
	free(e->meta);
	e->meta = NULL;
}
