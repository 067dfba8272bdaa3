/* SPDX-License-Identifier: MIT */
/*
 * qcow2's allocation and refcounts on an engine without a driver: tables that outgrow themselves, files that are full,
 * packed clusters, counters of every width, and each failure.
 */
#include "qcow2_inside.h"

/* ---- allocation -------------------------------------------------------------------------------------------------- */

/* The grown table itself needs a block that it has no entry for. */
static void near_the_end_of_a_table(struct qcow2_engine *e)
{
	e->alloc_hint = 640 * 256 - 2;
}

static int one_cluster(struct qcow2_engine *e)
{
	uint64_t off, got;
	int ret = qcow2_alloc(e, 1, &off, &got, ERR);

	return ret == 0 ? qcow2_settle(e, ERR) : ret;
}

static void test_table_outgrows_itself(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	near_the_end_of_a_table(e);
	assert_ok(one_cluster(e));
	assert_true(e->reftable_entries > 640);
	assert_int_equal(e->h.reftable_clusters, e->reftable_entries * 8 / CLUSTER);
	engine_free(e);
	each_failure(near_the_end_of_a_table, one_cluster);
}

/* A free stretch in which the missing block takes the last cluster. */
static void test_block_does_not_fit(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t first, off, got, free_clusters;

	(void)state;
	e->alloc_hint = 2 * 256; /* block 1 does not exist, block 2 does */
	assert_int_equal(alloc(e, 1), 2 * 256);
	e->alloc_hint = 3;
	first = 3;
	free_clusters = 2 * 256 - first;
	assert_ok(qcow2_alloc(e, free_clusters, &off, &got, ERR));
	assert_int_equal(off / CLUSTER, first);
	assert_int_equal(got, free_clusters - 1);
	engine_free(e);
	e = engine_new();
	e->alloc_hint = 2 * 256;
	assert_int_equal(alloc(e, 1), 2 * 256);
	e->alloc_hint = 3;
	assert_true(alloc(e, free_clusters) > 2 * 256);
	engine_free(e);
}

static void test_file_is_full(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t off, got;

	(void)state;
	e->alloc_hint = (QCOW2_OFFSET_MASK >> 9) - 1;
	assert_fails(qcow2_alloc(e, 3, &off, &got, ERR), IMG_E_LIMIT, "no more space");
	assert_fails(qcow2_reftable_grow(e, QCOW2_REFTABLE_MAX_BYTES / 8 + 1, ERR), IMG_E_LIMIT, "refcount table");
	assert_ok(qcow2_reftable_grow(e, 1, ERR));
	assert_int_equal(e->reftable_entries, 64);
	engine_free(e);
}

static void test_free_cluster_holds_metadata(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t off;

	(void)state;
	assert_ok(qcow2_meta_add(e, 3 * CLUSTER, CLUSTER, ERR));
	assert_fails(qcow2_alloc_exact(e, 2, &off, ERR), IMG_E_CORRUPT, "holds metadata");
	engine_free(e);
	/* one for a copy of a block, in a transaction */
	e = engine_new();
	assert_ok(qcow2_meta_add(e, 3 * CLUSTER, CLUSTER, ERR));
	assert_fails(qcow2_alloc_uncounted(e, &off, ERR), IMG_E_CORRUPT, "holds metadata");
	assert_true(e->broken);
	engine_free(e);
	e = engine_new();
	assert_fails(qcow2_free_entry(e, CLUSTER, ERR), IMG_E_CORRUPT, "refers to metadata");
	assert_ok(qcow2_free_entry(e, 0, ERR));
	assert_ok(qcow2_free(e, 9 * CLUSTER, 0, ERR));
	e->external = true;
	assert_ok(qcow2_free_entry(e, CLUSTER, ERR));
	engine_free(e);
}

static void some_packed(struct qcow2_engine *e)
{
	uint64_t off;

	assert_ok(qcow2_alloc_packed(e, 200, &off, ERR));
	assert_ok(qcow2_flush_all(e, ERR));
	qcow2_cache_drop(e, 0, UINT32_MAX);
}

static int more_packed(struct qcow2_engine *e)
{
	uint64_t off;
	int ret = qcow2_alloc_packed(e, 200, &off, ERR);

	return ret == 0 ? qcow2_alloc_packed(e, 400, &off, ERR) : ret;
}

/* The next cluster needs a block, which lies elsewhere. */
static void packed_before_a_gap(struct qcow2_engine *e)
{
	some_packed(e);
	e->alloc_hint = 5 * 256;
}

/* The cluster that is packed ends a block, whose counters make room in the cache for those of the next. */
static void packed_at_the_end(struct qcow2_engine *e)
{
	e->alloc_hint = 2 * 256;
	assert_int_equal(alloc(e, 3), 2 * 256);
	e->alloc_hint = 3;
	assert_int_equal(alloc(e, 252), 3);
	assert_int_equal(alloc(e, 1), 255);
	e->alloc_hint = 256;
	assert_int_equal(alloc(e, 1), 256); /* makes block 1 */
	assert_ok(qcow2_refcount_add(e, 256, 1, -1, ERR));
	assert_ok(qcow2_settle(e, ERR));
	e->packed_off = 255 * CLUSTER + 300;
	e->packed_end = 256 * CLUSTER;
	e->alloc_hint = 256;
	qcow2_cache_drop(e, 0, UINT32_MAX);
	e->cache->budget = 0;
}

static int over_the_end(struct qcow2_engine *e)
{
	uint64_t off;

	return qcow2_alloc_packed(e, 400, &off, ERR);
}

static void test_packed(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t first, next;

	(void)state;
	each_failure(some_packed, more_packed);
	each_failure(packed_before_a_gap, over_the_end);
	each_failure(packed_at_the_end, over_the_end);
	/* A cluster that counts no more, and one that is not counted at all, take no more. */
	assert_ok(qcow2_alloc_packed(e, 100, &first, ERR));
	assert_ok(qcow2_refcount_add(e, first / CLUSTER, 1, 1, ERR));
	e->refcount_max = 2;
	assert_ok(qcow2_alloc_packed(e, 100, &next, ERR));
	assert_int_not_equal(next / CLUSTER, first / CLUSTER);
	assert_ok(qcow2_refcount_add(e, next / CLUSTER, 1, -1, ERR));
	e->packed_off = next + 100;
	e->packed_end = next + CLUSTER;
	assert_ok(qcow2_alloc_packed(e, 100, &first, ERR));
	engine_free(e);
}

static void test_noting_free_space(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t size;

	(void)state;
	/* No more than so many stretches are noted: the space of the others stays. */
	for (uint64_t i = 0; i <= (1u << 18); i++)
		qcow2_note_freed(e, 100 + 2 * i);
	assert_int_equal(e->nr_freed, 1u << 18);
	e->nr_freed = 0;
	/* What is in use again is not given away; a device cannot be cut off. */
	assert_int_equal(alloc(e, 4), 3);
	qcow2_note_freed(e, 4);
	assert_ok(node_resize(e->file, 7 * CLUSTER, ERR));
	qcow2_punch_freed(e);
	assert_int_equal(node_size(e->file), 7 * CLUSTER);
	assert_ok(qcow2_refcount_add(e, 6, 1, -1, ERR));
	e->file_end = UINT64_MAX;
	qcow2_punch_freed(e);
	assert_int_equal(node_size(e->file), 7 * CLUSTER);
	e->file_end = 7 * CLUSTER;
	qcow2_note_freed(e, 6);
	qcow2_punch_freed(e);
	assert_int_equal(node_size(e->file), 6 * CLUSTER);
	size = node_size(e->file);
	qcow2_note_freed(e, 6); /* beyond the end already */
	qcow2_punch_freed(e);
	assert_int_equal(node_size(e->file), size);
	/* What cannot be looked up stays. */
	assert_ok(qcow2_flush_all(e, ERR));
	qcow2_cache_drop(e, 0, UINT32_MAX);
	qcow2_note_freed(e, 6);
	fault_plan_arm(&inside_plan, 1u << FAULT_READ, 1, EIO, true);
	qcow2_punch_freed(e);
	fault_plan_disarm(&inside_plan);
	assert_int_equal(e->nr_freed, 0);
	engine_free(e);
}

/* ---- counters ---------------------------------------------------------------------------------------------------- */

static void test_counters(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct qcow2_reftable t = { e->reftable, e->reftable_entries };
	uint64_t value, nr;

	(void)state;
	assert_fails(qcow2_refcount_add(e, 9, 1, -1, ERR), IMG_E_CORRUPT, "refcount 0");
	assert_fails(qcow2_refcount_add(e, 300, 1, 1, ERR), IMG_E_CORRUPT, "refcount 0"); /* no block */
	assert_fails(qcow2_refcount_add(e, 1u << 20, 1, -1, ERR), IMG_E_CORRUPT, "refcount 0");
	e->refcount_max = 1;
	assert_fails(qcow2_refcount_add(e, 1, 1, 1, ERR), IMG_E_LIMIT, "refcount_bits");
	/* A run that ends where no block is, and one that goes on there. */
	e->refcount_max = UINT16_MAX;
	assert_int_equal(alloc(e, 253), 3);
	assert_ok(qcow2_reftable_run(e, &t, 5, 1000, &value, &nr, ERR));
	assert_int_equal(value, 1);
	assert_int_equal(nr, 251);
	assert_ok(qcow2_reftable_run(e, &t, 300, UINT64_MAX, &value, &nr, ERR));
	assert_int_equal(value, 0);
	assert_ok(qcow2_reftable_next_free(e, &t, 3, &value, ERR));
	assert_int_equal(value, 256);
	assert_ok(qcow2_reftable_next_free(e, &t, 64 * 256 + 3, &value, ERR));
	assert_int_equal(value, 64 * 256 + 3);
	engine_free(e);
}

/* Counters of 64 bits: a block that is full to its end. */
static void test_wide_counters(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct be64 counts[64];
	struct qcow2_reftable t = { e->reftable, e->reftable_entries };
	uint64_t at;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(counts); i++)
		counts[i] = be64_of(1);
	assert_ok(node_pwrite(e->file, counts, sizeof(counts), 2 * CLUSTER, 0, ERR));
	qcow2_cache_drop(e, 0, UINT32_MAX);
	e->h.refcount_order = 6;
	e->rb_shift = 6;
	e->refcount_max = UINT64_MAX;
	assert_ok(qcow2_reftable_next_free(e, &t, 3, &at, ERR));
	assert_int_equal(at, 64);
	engine_free(e);
}

static int load_table(struct qcow2_engine *e)
{
	free(e->reftable);
	free(e->reftable_dirty);
	e->reftable = NULL;
	e->reftable_dirty = NULL;
	return qcow2_reftable_load(e, ERR);
}

static int grow_table(struct qcow2_engine *e)
{
	return qcow2_reftable_grow(e, 1000, ERR);
}

/* A block in several slices. */
static void larger_clusters(struct qcow2_engine *e)
{
	qcow2_cache_free(e);
	e->slice_bytes = CLUSTER / 4;
	assert_ok(qcow2_cache_init(e, 1, ERR));
}

static int new_block(struct qcow2_engine *e)
{
	return qcow2_refblock_new(e, 5, 5 * 256, ERR);
}

static void test_tables(void **state)
{
	struct attempt a = { .act = grow_table };
	struct inside_failures f = { attempt_before, attempt_act, attempt_after, &a, FAULT_ALL, true };

	(void)state;
	each_failure(NULL, load_table);
	assert_int_equal(inside_fail_each(&f), 2);
	a.prepare = larger_clusters;
	a.act = new_block;
	assert_true(inside_fail_each(&f) >= 4);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_table_outgrows_itself),
		T(test_block_does_not_fit),
		T(test_file_is_full),
		T(test_free_cluster_holds_metadata),
		T(test_packed),
		T(test_noting_free_space),
		T(test_counters),
		T(test_tables),
		T(test_wide_counters),
	};

	return cmocka_run_group_tests_name("inside-qcow2-alloc", tests, NULL, NULL);
}
