/* SPDX-License-Identifier: MIT */
/*
 * A new refcount structure, for where the old one cannot be mended: a table and blocks with the counts of the check,
 * behind everything that the image has, in one piece; with it, where it lacks something, a new snapshot table. They are
 * written and synced, then one write of the header's first sector switches over. Before it the file is as it was, after
 * it the old structure's clusters are free.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_check.h"

struct plan {
	uint64_t first;			   /* cluster: snapshot table, refcount table, blocks */
	uint64_t snapshots, table, blocks; /* clusters of each */
	uint64_t *block;		   /* indexes of the blocks that are needed, ascending */
};

static uint64_t plan_end(const struct plan *p)
{
	return p->first + p->snapshots + p->table + p->blocks;
}

/* Blocks of the clusters that have counts. */
static int blocks_needed(struct check *k, struct plan *p, uint64_t *last, struct img_error *err)
{
	uint64_t nr, cap = 0;
	uint64_t *page = counts_pages(&k->counts, &nr);

	*last = 0;
	if (!page)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t i = 0; i < nr; i++)
		for (uint64_t c = page[i] << COUNTS_PAGE_SHIFT; c < (page[i] + 1) << COUNTS_PAGE_SHIFT; c++) {
			uint64_t block = c >> k->e->rb_shift;

			if (counts_get(&k->counts, c, NULL) == 0)
				continue;
			*last = c;
			if (p->blocks && p->block[p->blocks - 1] == block)
				continue;
			if (p->blocks == cap) {
				uint64_t *more;

				cap = cap ? cap * 2 : 64;
				more = realloc(p->block, (size_t)cap * sizeof(*more));
				if (!more) {
					free(page);
					return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
				}
				p->block = more;
			}
			p->block[p->blocks++] = block;
		}
	free(page);
	return 0;
}

/* Adds the blocks that the new structure needs for itself, which are the last ones. */
static int plan_close(struct check *k, struct plan *p, struct img_error *err)
{
	for (;;) {
		uint64_t have = p->blocks ? p->block[p->blocks - 1] + 1 : 0;
		uint64_t want = ((plan_end(p) - 1) >> k->e->rb_shift) + 1, from, add;
		uint64_t *more;

		from = max_u64(have, p->first >> k->e->rb_shift);
		add = want > from ? want - from : 0;
		p->table = (max_u64(want, have) * 8 + k->e->cluster_bytes - 1) >> k->e->h.cluster_bits;
		if (p->table << k->e->h.cluster_bits > QCOW2_REFTABLE_MAX_BYTES)
			return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
					 "a new refcount table would exceed %llu bytes",
					 (unsigned long long)QCOW2_REFTABLE_MAX_BYTES);
		if (add == 0 && ((plan_end(p) - 1) >> k->e->rb_shift) + 1 <= max_u64(want, have))
			return 0;
		more = realloc(p->block, (size_t)(p->blocks + add + 1) * sizeof(*more));
		if (!more)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		p->block = more;
		for (uint64_t b = from; b < want; b++)
			p->block[p->blocks++] = b;
	}
}

static int write_snapshots(struct check *k, const struct plan *p, struct img_error *err)
{
	uint64_t off = p->first << k->e->h.cluster_bits;

	return p->snapshots ? node_pwrite(k->e->file, k->new_snapshots, k->new_snapshots_bytes, off, 0, err) : 0;
}

static int write_table(struct check *k, const struct plan *p, struct img_error *err)
{
	uint64_t at = p->first + p->snapshots, bytes = p->table << k->e->h.cluster_bits;
	struct be64 *table = calloc(1, (size_t)bytes);
	int rc;

	if (!table)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t i = 0; i < p->blocks; i++)
		table[p->block[i]] = be64_of((at + p->table + i) << k->e->h.cluster_bits);
	rc = node_pwrite(k->e->file, table, bytes, at << k->e->h.cluster_bits, 0, err);
	free(table);
	return rc;
}

static int write_blocks(struct check *k, const struct plan *p, struct img_error *err)
{
	uint64_t nr = UINT64_C(1) << k->e->rb_shift, at = p->first + p->snapshots + p->table;
	int rc = 0;

	for (uint64_t i = 0; rc == 0 && i < p->blocks; i++) {
		uint64_t first = p->block[i] << k->e->rb_shift;

		memset(k->buf, 0, (size_t)k->e->cluster_bytes);
		for (uint64_t j = 0; j < nr; j++) {
			bool own = first + j >= p->first && first + j < plan_end(p);
			uint64_t count = own ? 1 : counts_get(&k->counts, first + j, NULL);

			if (count)
				qcow2_refcount_store(k->buf, j, k->e->h.refcount_order,
						     min_u64(count, k->e->refcount_max));
		}
		rc = node_pwrite(k->e->file, k->buf, k->e->cluster_bytes, (at + i) << k->e->h.cluster_bits, 0, err);
		if (rc == 0)
			rc = check_progress(k, 0, err);
	}
	return rc;
}

static int switch_over(struct check *k, const struct plan *p, struct img_error *err)
{
	struct qcow2_header *h = &k->e->h;
	const uint64_t reftable_off = h->reftable_off, snapshots_off = h->snapshots_off;
	const uint32_t reftable_clusters = h->reftable_clusters;
	int rc = node_flush(k->e->file, 0, err);

	if (rc < 0)
		return rc;
	if (p->snapshots)
		h->snapshots_off = p->first << h->cluster_bits;
	h->reftable_off = (p->first + p->snapshots) << h->cluster_bits;
	h->reftable_clusters = (uint32_t)p->table;
	rc = qcow2_header_write_fields(k->e, err);
	if (rc == 0)
		return node_flush(k->e->file, 0, err);
	h->snapshots_off = snapshots_off;
	h->reftable_off = reftable_off;
	h->reftable_clusters = reftable_clusters;
	return rc;
}

static int forget_snapshot_table(struct check *k, struct img_error *err)
{
	uint64_t first = k->e->h.snapshots_off >> k->e->h.cluster_bits;
	uint64_t nr = (k->old_snapshots_bytes + k->e->cluster_bytes - 1) >> k->e->h.cluster_bits;
	int rc = 0;

	for (uint64_t c = first; rc == 0 && c < first + nr; c++) {
		uint64_t count = counts_get(&k->counts, c, NULL);

		if (count)
			rc = counts_set(&k->counts, c, count - 1, err);
	}
	return rc;
}

/*
 * The last cluster of the old structure, of which nothing is written over before the switch, and of what a cut file
 * lacks: tables that lead there must not lead into the new structure.
 */
static uint64_t old_last(const struct check *k)
{
	const struct qcow2_header *h = &k->e->h;
	uint64_t last = (h->reftable_off >> h->cluster_bits) + h->reftable_clusters;

	if (check_beyond(k, h->reftable_off, (uint64_t)h->reftable_clusters << h->cluster_bits))
		last = 0;
	for (uint64_t i = 0; i < k->nr_blocks; i++)
		if (!check_beyond(k, k->table[i], k->e->cluster_bytes))
			last = max_u64(last, (k->table[i] >> h->cluster_bits) + 1);
	if (!check_beyond(k, h->snapshots_off, k->old_snapshots_bytes))
		last = max_u64(last,
			       (h->snapshots_off + k->old_snapshots_bytes + k->e->cluster_bytes - 1) >> h->cluster_bits);
	return max_u64(last, k->dangling_end >> h->cluster_bits);
}

int repair_rebuild(struct check *k, struct img_error *err)
{
	struct plan p = { 0 };
	uint64_t last;
	int rc = check_forget_refcounts(k, err);

	if (rc == 0 && k->new_snapshots) {
		rc = forget_snapshot_table(k, err);
		p.snapshots = (k->new_snapshots_bytes + k->e->cluster_bytes - 1) >> k->e->h.cluster_bits;
	}
	if (rc == 0)
		rc = blocks_needed(k, &p, &last, err);
	if (rc == 0) {
		p.first = max_u64(last, old_last(k)) + 1;
		rc = plan_close(k, &p, err);
	}
	if (rc == 0)
		rc = write_snapshots(k, &p, err);
	if (rc == 0)
		rc = write_table(k, &p, err);
	if (rc == 0)
		rc = write_blocks(k, &p, err);
	if (rc == 0)
		rc = switch_over(k, &p, err);
	free(p.block);
	return rc;
}
