/* SPDX-License-Identifier: MIT */
/*
 * Changing entries of the active tree, in memory: the slice becomes dirty, flush.c writes it. A table that a snapshot
 * still uses, or that does not exist, is first made anew: its content is written at once, to clusters that nothing on
 * disk refers to, and the L1 entry changes in memory, to be written last.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_io.h"

static uint64_t slot_bytes(const struct qcow2_engine *e, uint64_t g)
{
	return (g & ((UINT64_C(1) << e->l2_shift) - 1)) * e->entry_bytes;
}

int qcow2_entry_get(struct qcow2_engine *e, uint64_t g, struct qcow2_entry *out, struct img_error *err)
{
	uint64_t i = g >> e->l2_shift, table;
	struct qcow2_slice *s;
	int rc;

	*out = (struct qcow2_entry){ 0 };
	if (i >= e->h.l1_entries)
		return 0;
	rc = qcow2_table_off(e, e->l1[i], i, &table, err);
	if (rc || !table)
		return rc;
	table += slot_bytes(e, g);
	rc = qcow2_cache_get(e, table, SLICE_L2, &s, err);
	if (!rc)
		*out = qcow2_entry_load(e, s->data + (table - s->off));
	return rc;
}

/* The whole table as it is now, changes that were not yet written included. */
static int load_table(struct qcow2_engine *e, uint64_t off, uint8_t *buf, struct img_error *err)
{
	for (uint64_t at = 0; at < e->cluster_bytes; at += e->slice_bytes) {
		struct qcow2_slice *s;
		int rc = qcow2_cache_get(e, off + at, SLICE_L2, &s, err);

		if (rc)
			return rc;
		memcpy(buf + at, s->data, (size_t)e->slice_bytes);
	}
	return 0;
}

static void set_l1(struct qcow2_engine *e, uint64_t i, uint64_t entry)
{
	e->l1[i] = entry;
	e->l1_dirty[i * 8 / 512] = 1;
	e->any_l1_dirty = true;
}

/* A table of its own for L1 entry i, with the content of the old one (0: zeros). */
static int new_table(struct qcow2_engine *e, uint64_t i, uint64_t old, uint64_t *off, struct img_error *err)
{
	uint8_t *buf = calloc(1, (size_t)e->cluster_bytes);
	int rc;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = old ? load_table(e, old, buf, err) : 0;
	if (!rc)
		rc = qcow2_alloc_exact(e, 1, off, err);
	if (rc) {
		free(buf);
		return rc;
	}
	rc = qcow2_guard(e, *off, e->cluster_bytes, err);
	if (!rc)
		rc = node_pwrite(e->file, buf, e->cluster_bytes, *off, 0, err);
	free(buf);
	if (!rc)
		rc = qcow2_meta_add(e, *off, e->cluster_bytes, err);
	if (rc) {
		qcow2_free(e, *off, 1, NULL);
		return rc;
	}
	qcow2_cache_drop(e, *off, e->cluster_bytes);
	set_l1(e, i, *off | QCOW2_COPIED);
	return old ? qcow2_free(e, old, 1, err) : 0;
}

/* An L1 entry from disk may point anywhere: what is written to a table must not land on something else. */
static int check_table(struct qcow2_engine *e, uint64_t table, struct img_error *err)
{
	const struct {
		uint64_t off, bytes;
	} fixed[] = {
		{ 0, e->cluster_bytes },
		{ e->h.l1_off, (uint64_t)e->h.l1_entries * 8 },
		{ e->h.reftable_off, (uint64_t)e->h.reftable_clusters << e->h.cluster_bits },
	};

	for (size_t i = 0; i < ARRAY_LEN(fixed); i++)
		if (table < fixed[i].off + fixed[i].bytes && fixed[i].off < table + e->cluster_bytes)
			return qcow2_mark_corrupt(e, table, err, "an L2 table lies on other metadata");
	return 0;
}

int qcow2_entry_set(struct qcow2_engine *e, uint64_t g, const struct qcow2_entry *en, struct img_error *err)
{
	uint64_t i = g >> e->l2_shift, table;
	struct qcow2_slice *s;
	struct be64 raw;
	uint8_t *p;
	int rc;

	if (i >= e->h.l1_entries)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "guest cluster %" PRIu64 " lies beyond the L1 table of %" PRIu32 " entries", g,
				 e->h.l1_entries);
	rc = qcow2_table_off(e, e->l1[i], i, &table, err);
	if (!rc && (!table || !(e->l1[i] & QCOW2_COPIED)))
		rc = new_table(e, i, table, &table, err);
	if (!rc)
		rc = check_table(e, table, err);
	if (rc)
		return rc;
	table += slot_bytes(e, g);
	rc = qcow2_cache_get(e, table, SLICE_L2, &s, err);
	if (rc)
		return rc;
	if (s->kind != SLICE_L2)
		return qcow2_mark_corrupt(e, table, err, "an L2 table lies on a refcount block");
	p = s->data + (table - s->off);
	raw = be64_of(en->desc);
	memcpy(p, &raw, sizeof(raw));
	if (e->entry_bytes == 16) {
		raw = be64_of(en->bitmap);
		memcpy(p + sizeof(raw), &raw, sizeof(raw));
	}
	qcow2_cache_dirty(e, s);
	return 0;
}
