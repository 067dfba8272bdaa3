/* SPDX-License-Identifier: MIT */
/*
 * Compares what refers to each cluster with its refcount. Too high is a leak, too low is damage: the cluster will be
 * given away while it is in use. Neighbours with the same trouble are one finding.
 *
 * A repair writes the numbers right where they stand, unless the refcount structure itself is at fault. Raising one is
 * always safe; lowering one is safe only where every reference is known, so nothing is lowered once a table could not
 * be followed.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "is_zero.h"
#include "qcow2_check.h"

#define WRITE_ALIGN 512u

/* Clusters in a row that have one refcount and one number of references. */
struct run {
	uint64_t first, nr, disk, want;
	bool repaired;
};

static void run_flush(struct check *k, struct run *r)
{
	struct check_at at = { .kind = r->disk > r->want ? IMG_FINDING_LEAK : IMG_FINDING_DAMAGE,
			       .rule = r->disk > r->want ? 12 : 11,
			       .file_off = r->first << k->e->h.cluster_bits,
			       .guest_off = NO_OFFSET,
			       .weight = r->nr,
			       .repaired = r->repaired };

	if (r->nr == 0)
		return;
	if (at.kind == IMG_FINDING_LEAK)
		k->out->leaked_bytes += r->nr << k->e->h.cluster_bits;
	check_found(k, &at, "%" PRIu64 " cluster%s: refcount %" PRIu64 ", but %" PRIu64 " reference%s%s", r->nr,
		    r->nr == 1 ? "" : "s", r->disk, r->want, r->want == 1 ? "" : "s",
		    r->repaired || k->repair ? "" : ": run imgtool check --repair");
	r->nr = 0;
}

static void run_add(struct check *k, struct run *r, uint64_t cluster, uint64_t disk, uint64_t want, bool repaired)
{
	if (r->nr && r->first + r->nr == cluster && r->disk == disk && r->want == want && r->repaired == repaired) {
		r->nr++;
		return;
	}
	run_flush(k, r);
	*r = (struct run){ cluster, 1, disk, want, repaired };
}

/* What the refcount structure shares with others is over when a new one takes its place. */
static bool is_replaced(const struct check *k, unsigned uses)
{
	return uses & USE_REFS && k->repair && k->rebuild;
}

/* True, and a finding, where metadata is not alone. */
static bool overlap(struct check *k, uint64_t cluster, uint64_t want, unsigned uses)
{
	if (!(want > 1 && uses & (USE_ALONE | USE_REFS)) && !(uses & USE_L2 && uses & (USE_DATA | USE_PACKED)))
		return false;
	check_damage(k, 14, cluster << k->e->h.cluster_bits, NO_OFFSET, 1,
		     "metadata and something else share a cluster, which has %" PRIu64
		     " references: copy the image by imgtool convert",
		     want);
	return true;
}

/* One cluster. *target: what its refcount is to be. */
static int judge(struct check *k, struct run *r, uint64_t cluster, uint64_t disk, uint64_t *target,
		 struct img_error *err)
{
	unsigned uses;
	uint64_t want = counts_get(&k->counts, cluster, &uses);
	bool keep = disk > want && (k->part || k->incomplete), fits = want <= k->e->refcount_max;

	/* What is referenced too often for any refcount is in use all the same. */
	*target = keep ? disk : min_u64(want, k->e->refcount_max);
	/* Of what is replaced check_replaced() speaks. */
	if (!is_replaced(k, uses) && (k->part || !overlap(k, cluster, want, uses)) &&
	    (disk < want || (disk > want && !k->part)))
		run_add(k, r, cluster, disk, want, k->repair && !keep && fits);
	if (want)
		counts_mark_one(&k->counts, cluster, (k->repair ? *target : disk) == 1);
	/* A rebuild takes its numbers from here. What is too many for now may not be, less what the old structure had. */
	if (k->repair && *target != want && (fits || !(uses & USE_REFS)))
		return counts_set(&k->counts, cluster, *target, err);
	return 0;
}

/* What is referenced, but has no place for a refcount. */
static int uncounted(struct check *k, uint64_t first, struct run *r, struct img_error *err)
{
	int rc = 0;

	for (uint64_t c = first; rc == 0 && c < first + (UINT64_C(1) << COUNTS_PAGE_SHIFT); c++) {
		uint64_t block = c >> k->e->rb_shift, target;
		unsigned uses;
		enum block_state state = block < k->nr_blocks ? k->block[block] : BLOCK_NONE;

		uint64_t want = counts_get(&k->counts, c, &uses);

		if (state == BLOCK_GOOD || want == 0)
			continue;
		if (state == BLOCK_NONE) {
			k->rebuild = true;
			rc = judge(k, r, c, 0, &target, err);
		} else {
			if (!is_replaced(k, uses) && !k->part)
				overlap(k, c, want, uses);
			/* what the new block will say, which is too little */
			if (k->repair && want > k->e->refcount_max)
				run_add(k, r, c, k->e->refcount_max, want, false);
			if (k->repair)
				counts_mark_one(&k->counts, c, want == 1);
		}
	}
	return rc;
}

static int all_uncounted(struct check *k, struct img_error *err)
{
	struct run r = { 0 };
	uint64_t nr;
	uint64_t *page = counts_pages(&k->counts, &nr);
	int rc = page ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t i = 0; rc == 0 && i < nr; i++)
		rc = uncounted(k, page[i] << COUNTS_PAGE_SHIFT, &r, err);
	run_flush(k, &r);
	free(page);
	return rc;
}

static int block_compare(struct check *k, uint64_t block, struct run *r, struct img_error *err)
{
	uint64_t nr = UINT64_C(1) << k->e->rb_shift, first = block << k->e->rb_shift;
	uint64_t at = k->table[block], low = UINT64_MAX, high = 0;
	unsigned order = k->e->h.refcount_order;
	struct img_error why = { 0 };
	int rc = check_read(k, k->buf, k->e->cluster_bytes, at, &why);

	if (rc < 0) {
		k->rebuild = true;
		return check_unreadable(k, rc, &why, err);
	}
	if (!counts_any(&k->counts, first, nr) && is_zero(k->buf, (size_t)k->e->cluster_bytes))
		return check_progress(k, k->e->cluster_bytes, err);
	for (uint64_t i = 0; rc == 0 && i < nr; i++) {
		uint64_t disk = qcow2_refcount_load(k->buf, i, order), target;

		rc = judge(k, r, first + i, disk, &target, err);
		if (target == disk)
			continue;
		qcow2_refcount_store(k->buf, i, order, target);
		low = min_u64(low, (i << order) / 8);
		high = (i << order) / 8 + max_u64(1, (UINT64_C(1) << order) / 8);
	}
	if (rc == 0 && k->repair && !k->rebuild && low < high) {
		low = round_down(low, WRITE_ALIGN);
		high = round_up(high, WRITE_ALIGN);
		rc = node_pwrite(k->e->file, k->buf + low, high - low, at + low, 0, err);
	}
	return rc ? rc : check_progress(k, k->e->cluster_bytes, err);
}

int check_refs(struct check *k, struct img_error *err)
{
	struct run r = { 0 };
	int rc = all_uncounted(k, err);

	for (uint64_t i = 0; rc == 0 && i < k->nr_blocks; i++)
		if (k->block[i] == BLOCK_GOOD)
			rc = block_compare(k, i, &r, err);
	run_flush(k, &r);
	return rc;
}

void check_replaced(struct check *k, uint64_t cluster)
{
	unsigned uses;
	uint64_t want;

	if (!counts_take_use(&k->counts, cluster, USE_REFS))
		return;
	want = counts_get(&k->counts, cluster, &uses);
	overlap(k, cluster, want, uses);
}
