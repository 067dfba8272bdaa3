/* SPDX-License-Identifier: MIT */
/*
 * qcow2's transactions and walks of trees on an engine without a driver: tables that move, targets that are replaced,
 * counts that spill over, and each failure.
 */
#include "qcow2_inside.h"

/* ---- transactions ------------------------------------------------------------------------------------------------ */

static struct qcow2_snapshot *blank_snapshots(uint32_t n)
{
	struct qcow2_snapshot *list = calloc(n, sizeof(*list));

	assert_non_null(list);
	for (uint32_t i = 0; i < n; i++) {
		list[i].id = calloc(1, 2);
		list[i].name = calloc(1, 2);
		assert_true(list[i].id && list[i].name);
		list[i].id[0] = (char)('1' + i);
		list[i].name[0] = 'n';
	}
	return list;
}

static int growing_transaction(struct qcow2_engine *e)
{
	uint64_t off;
	int ret = qcow2_txn_begin(e, ERR);

	if (ret != 0)
		return ret;
	e->alloc_hint = 640 * 256 - 2;
	ret = qcow2_alloc_exact(e, 1, &off, ERR);
	if (ret == 0)
		ret = qcow2_alloc_exact(e, 700, &off, ERR);
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	return qcow2_txn_commit(e, ERR);
}

/* The first clusters of many blocks, and what lies between is not there. */
static void many_blocks(struct qcow2_engine *e)
{
	for (uint64_t k = 1; k < 10; k++) {
		e->alloc_hint = k * 256 + 9;
		assert_int_equal(alloc(e, 1), k * 256 + 9);
	}
	assert_ok(qcow2_settle(e, ERR));
	qcow2_cache_drop(e, 0, UINT32_MAX);
}

/* A block's copy goes where the table has no entry yet. */
static int copy_beyond_the_table(struct qcow2_engine *e)
{
	int ret = qcow2_txn_begin(e, ERR);

	if (ret != 0)
		return ret;
	e->alloc_hint = 64 * 256;
	ret = qcow2_refcount_add(e, 1, 1, 1, ERR);
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	return qcow2_txn_commit(e, ERR);
}

static void test_odd_requests(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t cluster;
	int delta;

	(void)state;
	assert_ok(qcow2_txn_begin(e, ERR));
	assert_fails(qcow2_refcount_add(e, 1u << 20, 1, 1, ERR), IMG_E_CORRUPT, "refcount 0");
	for (unsigned i = 0; i < 40; i++)
		assert_ok(qcow2_txn_defer(e, i, 1, ERR));
	for (unsigned i = 40; i-- > 0;) {
		assert_true(qcow2_txn_deferred(e, &cluster, &delta));
		assert_int_equal(cluster, i);
	}
	assert_false(qcow2_txn_deferred(e, &cluster, &delta));
	/* An image that had no L1 gets one. */
	qcow2_txn_set_l1(e, calloc(70, 8), 70);
	assert_ok(qcow2_txn_commit(e, ERR));
	assert_int_not_equal(e->h.l1_off, 0);
	engine_free(e);
}

static void test_transactions(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	many_blocks(e);
	assert_ok(transaction(e));
	assert_int_equal(refs_of(e, 256 + 9), 2);
	assert_int_equal(refs_of(e, 15 * 256 + 9), 1);
	assert_ok(growing_transaction(e));
	assert_true(e->reftable_entries >= 640);
	engine_free(e);
	each_failure(many_blocks, transaction);
	each_failure(NULL, growing_transaction);
	each_failure(NULL, copy_beyond_the_table);
}

/* Placing the table makes it longer: it goes to another place. */
static int outgrow_the_place(struct qcow2_engine *e)
{
	int ret = qcow2_txn_begin(e, ERR);

	if (ret != 0)
		return ret;
	ret = qcow2_refcount_add(e, 1, 1, 1, ERR); /* the block is a copy now */
	if (ret == 0)
		ret = qcow2_refcount_add(e, 1, 1, -1, ERR);
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	e->alloc_hint = 64 * 256 - 1;
	return qcow2_txn_commit(e, ERR);
}

static void test_table_outgrows_its_place(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	assert_ok(outgrow_the_place(e));
	assert_true(e->reftable_entries > 64);
	assert_int_equal(e->h.reftable_clusters, e->reftable_entries * 8 / CLUSTER);
	engine_free(e);
	each_failure(NULL, outgrow_the_place);
}

static void test_targets_replaced(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	/* The last that was said counts; giving up forgets it all. */
	assert_ok(qcow2_txn_begin(e, ERR));
	qcow2_txn_set_snapshots(e, blank_snapshots(1), 1);
	qcow2_txn_set_snapshots(e, blank_snapshots(2), 2);
	qcow2_txn_set_l1(e, calloc(3, 8), 3);
	qcow2_txn_set_l1(e, calloc(4, 8), 4);
	assert_false(qcow2_txn_block_is_new(e, 1000));
	qcow2_txn_abort(e);
	assert_int_equal(e->h.nr_snapshots, 0);
	engine_free(e);
}

/* Nothing on disk refers to what is dirty: it is written when there is too much of it. */
static void test_spill(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct qcow2_slice *s;

	(void)state;
	assert_ok(qcow2_txn_begin(e, ERR));
	for (uint64_t i = 0; i < 700; i++) /* neighbours: more than go out at once */
		assert_ok(qcow2_cache_new(e, (1000 + i) * CLUSTER, SLICE_L2, &s, ERR));
	assert_true(qcow2_cache_crowded(e));
	alloc_fault_arm(1, false);
	assert_int_equal(qcow2_refcount_add(e, 1, 1, 1, ERR), IMG_E_NOMEM);
	alloc_fault_arm(2, false);
	assert_int_equal(qcow2_refcount_add(e, 1, 1, 1, ERR), IMG_E_NOMEM);
	alloc_fault_disarm();
	assert_ok(qcow2_refcount_add(e, 1, 1, 1, ERR));
	assert_false(qcow2_cache_crowded(e));
	qcow2_txn_abort(e);
	engine_free(e);
}

/* ---- trees ---- */

static uint64_t walked[2];

/* An L2 table with plain and compressed data. */
static void with_tree(struct qcow2_engine *e)
{
	struct be64 l2[64] = { { { 0 } } };
	uint64_t table = alloc(e, 1), data = alloc(e, 4), packed;

	assert_ok(qcow2_alloc_packed(e, 100, &packed, ERR));
	for (unsigned i = 0; i < 4; i++)
		l2[i] = be64_of((data + i) * CLUSTER | (i % 2 ? QCOW2_COPIED : 0));
	l2[9] = be64_of(packed | QCOW2_COMPRESSED | QCOW2_COPIED);
	l2[11] = be64_of(QCOW2_COPIED);
	assert_ok(node_pwrite(e->file, l2, sizeof(l2), table * CLUSTER, 0, ERR));
	walked[0] = table * CLUSTER | QCOW2_COPIED;
	walked[1] = 0;
	assert_ok(qcow2_settle(e, ERR));
	assert_ok(qcow2_meta_build(e, ERR));
	qcow2_cache_drop(e, 0, UINT32_MAX);
}

static int walk_tree(struct qcow2_engine *e)
{
	uint64_t l1[2];
	int ret = qcow2_txn_begin(e, ERR);

	if (ret != 0)
		return ret;
	memcpy(l1, walked, sizeof(l1));
	qcow2_cache_drop(e, 0, UINT32_MAX);
	ret = qcow2_txn_walk(e, l1, 2, 1, ERR);
	if (ret == 0)
		ret = qcow2_txn_fix_copied(e, l1, 2, ERR);
	if (ret == 0)
		ret = qcow2_txn_walk(e, l1, 2, -1, ERR);
	qcow2_txn_abort(e);
	return ret;
}

/* Nothing was counted yet, and so nothing is in the cache. */
static int fix_tree(struct qcow2_engine *e)
{
	uint64_t l1[2];
	int ret = qcow2_txn_begin(e, ERR);

	if (ret != 0)
		return ret;
	memcpy(l1, walked, sizeof(l1));
	qcow2_cache_drop(e, 0, UINT32_MAX);
	ret = qcow2_txn_fix_copied(e, l1, 2, ERR);
	qcow2_txn_abort(e);
	return ret;
}

/* Data in a file of its own has no counters, and its flags say nothing. */
static int fix_external(struct qcow2_engine *e)
{
	int ret;

	e->external = true;
	ret = walk_tree(e);
	return ret == 0 ? fix_tree(e) : ret;
}

static void test_trees(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	with_tree(e);
	assert_ok(walk_tree(e));
	assert_ok(fix_tree(e));
	/* Counters that cannot count one more. */
	e->refcount_max = 1;
	assert_int_equal(walk_tree(e), IMG_E_LIMIT);
	engine_free(e);
	each_failure(with_tree, walk_tree);
	each_failure(with_tree, fix_tree);
	each_failure(with_tree, fix_external);
}

/* A table without data needs none of its clusters counted but its own; one whose data has no counters is damaged. */
static void test_trees_without_counters(void **state)
{
	struct be64 l2[64] = { { { 0 } } };
	struct qcow2_engine *e = engine_new();
	uint64_t l1[2] = { 0, 0 };

	(void)state;
	l1[0] = alloc(e, 1) * CLUSTER;
	l2[5] = be64_of(3000 * CLUSTER);
	assert_ok(node_pwrite(e->file, l2, sizeof(l2), l1[0], 0, ERR));
	assert_ok(qcow2_txn_begin(e, ERR));
	assert_int_equal(qcow2_txn_walk(e, l1, 1, -1, ERR), IMG_E_CORRUPT);
	qcow2_txn_abort(e);
	l2[5] = be64_of((3000 * CLUSTER) | QCOW2_COMPRESSED);
	assert_ok(node_pwrite(e->file, l2, sizeof(l2), l1[0], 0, ERR));
	assert_ok(qcow2_txn_begin(e, ERR));
	assert_int_equal(qcow2_txn_walk(e, l1, 1, -1, ERR), IMG_E_CORRUPT);
	qcow2_txn_abort(e);
	engine_free(e);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_transactions),		T(test_table_outgrows_its_place),
		T(test_targets_replaced),	T(test_spill),
		T(test_odd_requests),		T(test_trees),
		T(test_trees_without_counters),
	};

	return cmocka_run_group_tests_name("inside-qcow2-txn", tests, NULL, NULL);
}
