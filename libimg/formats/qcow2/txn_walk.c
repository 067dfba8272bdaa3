/* SPDX-License-Identifier: MIT */
/*
 * What transactions do to whole trees: counting everything that an L1 reaches once more or once less, and making the
 * COPIED flags of the tree that is to be active tell the truth. Tables are read from the file, one at a time: when a
 * transaction runs, all is written back. Neighbouring clusters are counted together, since files are mostly written
 * front to back.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_txn.h"

/* One L2 table as host integers; bitmaps only with subclusters, behind every entry. */
struct table {
	uint64_t off;
	uint64_t *word;
	size_t words, stride; /* stride: words of an entry */
	struct be64 *disk;
};

static int table_init(struct qcow2_engine *e, struct table *t, struct img_error *err)
{
	t->words = (size_t)(e->cluster_bytes / 8);
	t->stride = e->entry_bytes / 8;
	t->word = malloc((size_t)e->cluster_bytes);
	t->disk = malloc((size_t)e->cluster_bytes);
	if (t->word && t->disk)
		return 0;
	free(t->word);
	free(t->disk);
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static void table_free(struct table *t)
{
	free(t->word);
	free(t->disk);
}

/* The entry is that of an L1 that qcow2_l1_load() has looked at: the offset of a cluster. */
static int table_read(struct qcow2_engine *e, struct table *t, uint64_t l1_entry, struct img_error *err)
{
	int ret;

	t->off = l1_entry & QCOW2_OFFSET_MASK;
	ret = qcow2_read_clipped(e, t->disk, e->cluster_bytes, t->off, err);
	for (size_t i = 0; ret == 0 && i < t->words; i++)
		t->word[i] = be64_get(t->disk[i]);
	return ret;
}

/* The cluster of plain data that an entry refers to; false for none. */
static bool data_cluster(const struct qcow2_engine *e, uint64_t desc, uint64_t *cluster)
{
	if (e->external || (desc & QCOW2_COMPRESSED) || (desc & QCOW2_OFFSET_MASK) == 0)
		return false;
	*cluster = (desc & QCOW2_OFFSET_MASK) >> e->h.cluster_bits;
	return true;
}

/* Entries from i on that refer to neighbouring clusters of plain data. */
static size_t data_run(const struct qcow2_engine *e, const struct table *t, size_t i, uint64_t *first)
{
	uint64_t next;
	size_t n = 1;

	if (!data_cluster(e, t->word[i], first))
		return 0;
	while (i + n * t->stride < t->words && data_cluster(e, t->word[i + n * t->stride], &next) && next == *first + n)
		n++;
	return n;
}

/* ---- counting ---- */

static int count_table(struct qcow2_engine *e, const struct table *t, int delta, struct img_error *err)
{
	size_t i = 0;

	while (i < t->words) {
		uint64_t desc = t->word[i], first, bytes;
		size_t run = data_run(e, t, i, &first);
		int ret = 0;

		if (run > 0) {
			ret = qcow2_refcount_add(e, first, run, delta, err);
		} else if (!e->external && (desc & QCOW2_COMPRESSED)) {
			qcow2_compressed_range(e, desc, &first, &bytes);
			bytes += first % e->cluster_bytes;
			ret = qcow2_refcount_add(e, first >> e->h.cluster_bits, qcow2_clusters(e, bytes), delta, err);
		}
		if (ret != 0)
			return ret;
		i += (run ? run : 1) * t->stride;
	}
	return 0;
}

int qcow2_txn_walk(struct qcow2_engine *e, const uint64_t *l1, uint32_t n, int delta, struct img_error *err)
{
	struct table t;
	int ret = table_init(e, &t, err);

	if (ret != 0)
		return ret;
	for (uint32_t i = 0; ret == 0 && i < n; i++) {
		if ((l1[i] & QCOW2_OFFSET_MASK) == 0)
			continue;
		ret = table_read(e, &t, l1[i], err);
		if (ret == 0)
			ret = qcow2_refcount_add(e, t.off >> e->h.cluster_bits, 1, delta, err);
		if (ret == 0)
			ret = count_table(e, &t, delta, err);
	}
	table_free(&t);
	return ret;
}

/* ---- COPIED ---- */

/* Sets the flags of n entries from i on, which refer to the clusters from first on. */
static int fix_run(struct qcow2_engine *e, struct table *t, size_t i, size_t n, uint64_t first, bool *changed,
		   struct img_error *err)
{
	while (n > 0) {
		uint64_t refs, same;
		int ret = qcow2_refcount_run(e, first, n, &refs, &same, err);

		if (ret != 0)
			return ret;
		for (uint64_t j = 0; j < same; j++, i += t->stride) {
			uint64_t want = (t->word[i] & ~QCOW2_COPIED) | (refs == 1 ? QCOW2_COPIED : 0);

			*changed = *changed || want != t->word[i];
			t->word[i] = want;
		}
		first += same;
		n -= (size_t)same;
	}
	return 0;
}

static int fix_table(struct qcow2_engine *e, struct table *t, bool *changed, struct img_error *err)
{
	size_t i = 0;

	*changed = false;
	while (i < t->words) {
		uint64_t first;
		size_t run = data_run(e, t, i, &first);

		if (run > 0) {
			int ret = fix_run(e, t, i, run, first, changed, err);

			if (ret != 0)
				return ret;
		} else if ((t->word[i] & QCOW2_COPIED) && !e->external) {
			/* Compressed data, or nothing, is never written in place. */
			t->word[i] &= ~QCOW2_COPIED;
			*changed = true;
		}
		i += (run ? run : 1) * t->stride;
	}
	return 0;
}

/* Writes the table to a cluster of its own, to which sharers L1 entries refer from here on, instead of to the old one. */
static int replace_table(struct qcow2_engine *e, struct table *t, unsigned sharers, struct img_error *err)
{
	uint64_t off;
	int ret = qcow2_alloc_exact(e, 1, &off, err);

	for (size_t i = 0; i < t->words; i++)
		t->disk[i] = be64_of(t->word[i]);
	if (ret == 0)
		ret = node_pwrite(e->file, t->disk, e->cluster_bytes, off, 0, err);
	for (unsigned i = 1; ret == 0 && i < sharers; i++)
		ret = qcow2_refcount_add(e, off >> e->h.cluster_bits, 1, 1, err);
	for (unsigned i = 0; ret == 0 && i < sharers; i++)
		ret = qcow2_refcount_add(e, t->off >> e->h.cluster_bits, 1, -1, err);
	t->off = off;
	return ret;
}

int qcow2_txn_fix_copied_shared(struct qcow2_engine *e, uint64_t *l1, uint64_t *mirror, uint32_t n,
				struct img_error *err)
{
	struct table t;
	int ret = table_init(e, &t, err);

	if (ret != 0)
		return ret;
	for (uint32_t i = 0; ret == 0 && i < n; i++) {
		bool changed, shared;
		uint64_t refs = 0;

		if ((l1[i] & QCOW2_OFFSET_MASK) == 0)
			continue;
		ret = table_read(e, &t, l1[i], err);
		if (ret == 0)
			ret = fix_table(e, &t, &changed, err);
		if (ret != 0)
			break;
		shared = mirror && (mirror[i] & QCOW2_OFFSET_MASK) == t.off;
		if (changed)
			ret = replace_table(e, &t, shared ? 2 : 1, err);
		if (ret == 0)
			ret = qcow2_refcount_get(e, t.off >> e->h.cluster_bits, &refs, err);
		l1[i] = t.off | (refs == 1 ? QCOW2_COPIED : 0);
		if (shared)
			mirror[i] = t.off;
	}
	table_free(&t);
	return ret;
}

int qcow2_txn_fix_copied(struct qcow2_engine *e, uint64_t *l1, uint32_t n, struct img_error *err)
{
	return qcow2_txn_fix_copied_shared(e, l1, NULL, n, err);
}
