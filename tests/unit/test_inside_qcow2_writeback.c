/* SPDX-License-Identifier: MIT */
/*
 * qcow2's cache, set of metadata and write-back on an engine without a driver: what another request does while a
 * write-back is under way, what cannot be taken back, and each failure.
 */
#include "qcow2_inside.h"

/* ---- the cache --------------------------------------------------------------------------------------------------- */

static void test_cache(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct qcow2_cache *small = e->cache, *large;
	struct qcow2_slice *s;
	uint64_t i;

	(void)state;
	/* All clean ones are being written: there is none to give up, and it grows. */
	for (i = 0; i < small->budget; i++) {
		assert_ok(qcow2_cache_get(e, (100 + i) * CLUSTER, SLICE_L2, &s, ERR));
		s->writing = true;
	}
	assert_ok(qcow2_cache_get(e, (100 + i) * CLUSTER, SLICE_L2, &s, ERR));
	assert_true(small->nr > small->budget);
	qcow2_cache_clean(e, s); /* is clean */
	for (i = 0; i < small->budget; i++)
		qcow2_cache_peek(e, (100 + i) * CLUSTER)->writing = false;
	qcow2_cache_dirty(e, s);
	for (i = 0; i < 10; i++)
		assert_ok(qcow2_cache_get(e, (900 + i) * CLUSTER, SLICE_L2, &s, ERR));
	/* Nearly all is dirty: it does not look for the rest. */
	for (i = 0; i < 2 * small->budget; i++)
		assert_ok(qcow2_cache_new(e, (2000 + i) * CLUSTER, SLICE_L2, &s, ERR));
	alloc_fault_arm(1, false);
	assert_int_equal(qcow2_cache_get(e, 5000 * CLUSTER, SLICE_L2, &s, ERR), IMG_E_NOMEM);
	alloc_fault_arm(1, false);
	assert_int_equal(qcow2_cache_new(e, 5000 * CLUSTER, SLICE_L2, &s, ERR), IMG_E_NOMEM);
	alloc_fault_disarm();
	/* Few of many, and many of few. */
	qcow2_cache_drop(e, 100 * CLUSTER, 5 * CLUSTER);
	qcow2_cache_drop(e, 2000 * CLUSTER, 100000 * CLUSTER);
	qcow2_cache_free(e);
	/* As many slices as there are: the hash table stays within bounds. */
	assert_ok(qcow2_cache_init(e, UINT64_C(1) << 34, ERR));
	large = e->cache;
	assert_int_equal(large->hash_bits, 24);
	engine_free(e);
}

/* ---- the set of metadata ----------------------------------------------------------------------------------------- */

static void test_set_without_writer(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t where;

	(void)state;
	assert_true(qcow2_meta_overlaps(e, 0, 1, &where));
	assert_false(qcow2_meta_overlaps(e, 0, 0, &where));
	assert_ok(qcow2_meta_add(e, 1000 * CLUSTER, 0, ERR));
	alloc_fault_arm(1, false);
	assert_int_equal(qcow2_meta_add(e, 1000 * CLUSTER, 200 * CLUSTER, NULL), IMG_E_NOMEM); /* it has to grow */
	alloc_fault_disarm();
	qcow2_meta_remove(e, 1000 * CLUSTER, 200 * CLUSTER);
	qcow2_meta_remove(e, 0, 0);
	qcow2_meta_remove(e, 0, 3 * CLUSTER);
	qcow2_meta_remove(e, 0, 3 * CLUSTER); /* nothing is left */
	assert_false(qcow2_meta_overlaps(e, 0, 3 * CLUSTER, &where));
	qcow2_meta_free(e);
	assert_ok(qcow2_meta_add(e, 0, CLUSTER, ERR));
	qcow2_meta_remove(e, 0, CLUSTER);
	assert_false(qcow2_meta_overlaps(e, 0, CLUSTER, &where));
	engine_free(e);
}

static int build_set(struct qcow2_engine *e)
{
	return qcow2_meta_build(e, ERR);
}

/* Snapshots whose tables are nonsense are passed over, here; those beyond the budget are known by their L1 only. */
static void odd_snapshots(struct qcow2_engine *e)
{
	static struct qcow2_snapshot list[8];
	struct be64 table[128];

	for (unsigned i = 0; i < ARRAY_LEN(table); i++)
		table[i] = be64_of((90000 + i) * CLUSTER);
	memset(list, 0, sizeof(list));
	for (unsigned i = 0; i < ARRAY_LEN(list); i++)
		list[i].l1_off = (400 + 200000 * (i % 4)) * CLUSTER + (uint64_t)(i / 5) * 100000 * CLUSTER;
	list[1] = (struct qcow2_snapshot){ .l1_off = 400 * CLUSTER + 8, .l1_entries = 1 };
	list[2].l1_entries = QCOW2_L1_MAX_BYTES / 8 + 1;
	list[3] = (struct qcow2_snapshot){ .l1_off = UINT64_MAX - CLUSTER + 1, .l1_entries = 1 };
	list[4].l1_entries = QCOW2_L1_MAX_BYTES / 8;
	list[5].l1_entries = QCOW2_L1_MAX_BYTES / 8;
	list[6].l1_entries = 64;
	list[7].l1_entries = 64;
	assert_ok(node_pwrite(e->file, table, sizeof(table), 400 * CLUSTER, 0, ERR));
	e->snapshots = list;
	e->h.nr_snapshots = ARRAY_LEN(list);
	e->h.snapshots_off = 300 * CLUSTER;
}

/* What two structures share is not written; L2 tables may belong to several L1 tables. */
static void test_shared_structures(void **state)
{
	static struct qcow2_snapshot list[2];
	struct qcow2_engine *e = engine_new();
	struct be64 l2 = be64_of(500 * CLUSTER);

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(list); i++) {
		list[i] = (struct qcow2_snapshot){ .l1_off = (400 + i) * CLUSTER, .l1_entries = 1 };
		assert_ok(node_pwrite(e->file, &l2, sizeof(l2), list[i].l1_off, 0, ERR));
	}
	e->snapshots = list;
	e->h.nr_snapshots = ARRAY_LEN(list);
	e->h.snapshots_off = 300 * CLUSTER;
	assert_ok(build_set(e));
	/* the L2 table of one is the other's L1 */
	l2 = be64_of(list[0].l1_off);
	assert_ok(node_pwrite(e->file, &l2, sizeof(l2), list[1].l1_off, 0, ERR));
	assert_fails(build_set(e), IMG_E_CORRUPT, "share the cluster at 0x32000");
	/* two L1 tables in one place */
	list[1].l1_off = list[0].l1_off;
	assert_fails(build_set(e), IMG_E_CORRUPT, "share the cluster at 0x32000");
	/* a block of counters where an L2 table is */
	list[1].l1_entries = 0;
	e->reftable[5] = 500 * CLUSTER;
	assert_fails(build_set(e), IMG_E_CORRUPT, "share the cluster at 0x3e800");
	e->reftable[5] = 0;
	assert_ok(build_set(e));
	engine_free(e);
}

static void few_snapshots(struct qcow2_engine *e)
{
	odd_snapshots(e);
	e->h.nr_snapshots = 4;
	e->snapshots[0].l1_entries = 128;
	e->snapshots[1] =
		(struct qcow2_snapshot){ .l1_off = 2000 * CLUSTER, .l1_entries = 64 * 200 }; /* the set grows */
}

static void test_building_the_set(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t where;

	(void)state;
	odd_snapshots(e);
	assert_ok(build_set(e));
	assert_true(qcow2_meta_overlaps(e, 400 * CLUSTER, 1, &where));
	assert_true(qcow2_meta_overlaps(e, 90000 * CLUSTER, 1, &where)); /* its L2 tables, within the budget */
	engine_free(e);
	each_failure(few_snapshots, build_set);
}

/* ---- the write-back ---------------------------------------------------------------------------------------------- */

static void move_table(struct qcow2_engine *e)
{
	uint64_t off;

	pthread_rwlock_wrlock(&e->map);
	e->alloc_hint = (e->reftable_entries + 100) << 8;
	(void)qcow2_alloc_exact(e, 1, &off, NULL);
	pthread_rwlock_unlock(&e->map);
}

/* While a table is being written at its new place it moves on. */
static void test_table_moves_on(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t off;

	(void)state;
	e->alloc_hint = 100 * 256;
	assert_ok(qcow2_alloc_exact(e, 1, &off, ERR));
	at_flush = move_table;
	assert_ok(qcow2_flush_all(e, ERR));
	assert_int_not_equal(e->reftable_moved_to, 0);
	assert_ok(qcow2_settle(e, ERR));
	assert_int_equal(e->reftable_moved_to, 0);
	assert_true(qcow2_all_written(e));
	engine_free(e);
}

static void drop_everything(struct qcow2_engine *e)
{
	uint64_t off;

	pthread_rwlock_wrlock(&e->map);
	qcow2_cache_drop(e, 0, UINT32_MAX);
	(void)qcow2_alloc_exact(e, 1, &off, NULL);
	(void)qcow2_free(e, off, 1, NULL); /* waits for the next write-back */
	pthread_rwlock_unlock(&e->map);
}

static void drop_and_fail(struct qcow2_engine *e)
{
	drop_everything(e);
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE | 1u << FAULT_FLUSH, 1, EIO, true);
}

/* A slice that is being written is forgotten: its cluster became free. The write-back may fail then, too. */
static void test_slices_go(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct qcow2_slice *s;
	uint64_t off;

	(void)state;
	for (unsigned round = 0; round < 2; round++) {
		e->alloc_hint = (100 + round) * 256 * 3;
		assert_ok(qcow2_alloc_exact(e, 1, &off, ERR));
		assert_ok(qcow2_cache_new(e, off, SLICE_L2, &s, ERR));
		at_flush = round ? drop_and_fail : drop_everything;
		assert_int_equal(qcow2_flush_all(e, ERR), round ? IMG_E_IO : 0);
		fault_plan_disarm(&inside_plan);
	}
	assert_true(e->broken);
	assert_int_equal(qcow2_flush_all(e, ERR), IMG_E_POISONED);
	engine_free(e);
}

/* A write fails: all of it is to be written again, with what was given up meanwhile. */
static int moved_and_freed(struct qcow2_engine *e)
{
	struct qcow2_slice *s;
	uint64_t off;
	int ret;

	e->alloc_hint = 100 * 256;
	ret = qcow2_alloc_exact(e, 3, &off, ERR);
	if (ret == 0)
		ret = qcow2_cache_new(e, off, SLICE_L2, &s, ERR);
	if (ret == 0)
		ret = qcow2_free(e, off + CLUSTER, 1, ERR);
	if (ret != 0)
		return ret;
	e->any_l1_dirty = true;
	return qcow2_settle(e, ERR);
}

static void with_l1(struct qcow2_engine *e)
{
	e->h.l1_off = 0;
	e->h.l1_entries = 3;
	e->l1 = calloc(3, sizeof(*e->l1));
	e->h.l1_off = alloc(e, 1) * CLUSTER;
	memset(e->l1_dirty, 1, 1);
	assert_ok(qcow2_settle(e, ERR));
	memset(e->l1_dirty, 1, 1);
}

/* Tables of counters and an L1, but no L2. */
static int l1_and_blocks(struct qcow2_engine *e)
{
	uint64_t off;
	int ret;

	e->alloc_hint = 9 * 256;
	ret = qcow2_alloc_exact(e, 1, &off, ERR);
	e->any_l1_dirty = true;
	return ret == 0 ? qcow2_flush_all(e, ERR) : ret;
}

/* A write fails, and then there is no memory to note what is to be written again: no more changes. */
static void test_nothing_to_take_back_with(void **state)
{
	bool met = false;

	(void)state;
	for (unsigned k = 1; k < 40 && !met; k++) {
		struct qcow2_engine *e = engine_new();

		with_l1(e);
		assert_ok(qcow2_free(e, alloc(e, 1) * CLUSTER, 1, ERR));
		fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 1, EIO, true);
		alloc_fault_arm(k, false);
		assert_int_not_equal(qcow2_flush_all(e, ERR), 0);
		alloc_fault_disarm();
		fault_plan_disarm(&inside_plan);
		met = e->broken;
		engine_free(e);
	}
	assert_true(met);
}

static void test_bulk(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	e->bulk = true;
	alloc(e, 1);
	fault_plan_arm(&inside_plan, 1u << FAULT_FLUSH, 1, EIO, true);
	assert_ok(qcow2_flush_all(e, ERR));
	fault_plan_disarm(&inside_plan);
	engine_free(e);
}

static void test_write_back(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct qcow2_slice *s;

	(void)state;
	each_failure(with_l1, moved_and_freed);
	each_failure(with_l1, l1_and_blocks);
	/* More neighbours than go out in one write. */
	for (uint64_t i = 0; i < 2300; i++)
		assert_ok(qcow2_cache_new(e, (1000 + i) * CLUSTER, SLICE_L2, &s, ERR));
	assert_ok(qcow2_make_room(e, ERR));
	assert_true(qcow2_all_written(e));
	assert_ok(qcow2_make_room(e, ERR)); /* nothing to do */
	/* Only a table entry. */
	e->any_reftable_dirty = true;
	e->reftable_dirty[0] = 1;
	assert_false(qcow2_all_written(e));
	assert_ok(qcow2_flush_all(e, ERR));
	e->any_l1_dirty = true;
	assert_false(qcow2_all_written(e));
	e->any_l1_dirty = false;
	engine_free(e);
}

/* So many references given up that a write-back is due. */
static void test_many_pending(void **state)
{
	struct qcow2_engine *e = engine_new();
	uint64_t first = alloc(e, 200);

	(void)state;
	for (unsigned i = 0; i < 65537; i++) {
		uint64_t c = first + 2 * (i % 90);

		assert_ok(qcow2_refcount_add(e, c, 1, 1, ERR));
		assert_ok(qcow2_free(e, c * CLUSTER, 1, ERR));
	}
	assert_ok(qcow2_make_room(e, ERR));
	assert_int_equal(e->nr_pending, 0);
	engine_free(e);
}

/* What is given up has no reference: the image is not as it says. */
static void test_pending_that_cannot_be(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	assert_ok(qcow2_free(e, 50 * CLUSTER, 1, ERR));
	assert_int_equal(qcow2_flush_all(e, ERR), IMG_E_CORRUPT);
	assert_true(e->broken);
	engine_free(e);
	/* The same under the gate, where nothing else runs. */
	e = engine_new();
	assert_ok(qcow2_free(e, alloc(e, 1) * CLUSTER, 1, ERR));
	pthread_mutex_lock(&e->flushing);
	pthread_rwlock_wrlock(&e->gate);
	assert_ok(qcow2_settle_gated(e, ERR));
	assert_ok(qcow2_free(e, 50 * CLUSTER, 1, ERR));
	assert_int_equal(qcow2_settle_gated(e, ERR), IMG_E_CORRUPT);
	pthread_rwlock_unlock(&e->gate);
	pthread_mutex_unlock(&e->flushing);
	/* ... and a transaction does not begin. */
	assert_int_equal(qcow2_txn_begin(e, ERR), IMG_E_POISONED);
	engine_free(e);
}

static void give_up_more(struct qcow2_engine *e)
{
	uint64_t off;

	pthread_rwlock_wrlock(&e->map);
	(void)qcow2_alloc_exact(e, 1, &off, NULL);
	(void)qcow2_free(e, off, 1, NULL);
	pthread_rwlock_unlock(&e->map);
}

static void fail_from_here(struct qcow2_engine *e)
{
	(void)e;
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE | 1u << FAULT_FLUSH, 1, EIO, true);
}

static void give_up_then_fail(struct qcow2_engine *e)
{
	give_up_more(e);
	at_flush = fail_from_here;
}

/* What is given up while a transaction begins is settled first, or it does not begin. */
static void test_begin_settles(void **state)
{
	struct qcow2_engine *e = engine_new();

	(void)state;
	alloc(e, 1);
	at_flush = give_up_more;
	assert_ok(qcow2_txn_begin(e, ERR));
	assert_int_equal(e->nr_pending, 0);
	qcow2_txn_abort(e);
	/* ... where the first write-back works, and what it leaves fails. */
	alloc(e, 1);
	at_flush = give_up_then_fail;
	assert_int_not_equal(qcow2_txn_begin(e, ERR), 0);
	assert_null(e->txn);
	fault_plan_disarm(&inside_plan);
	engine_free(e);
}

/* A second file for the data: it is synced first, and that may fail. */
static void test_data_file(void **state)
{
	struct qcow2_engine *e = engine_new();
	struct fault_plan plan;
	struct node *data;

	(void)state;
	fault_plan_init(&plan);
	assert_ok(mem_node_new("d", &data, ERR));
	assert_ok(fault_node_new(data, &plan, &e->data, ERR));
	alloc(e, 1);
	assert_ok(qcow2_flush_all(e, ERR));
	assert_ok(transaction(e));
	fault_plan_arm(&plan, 1u << FAULT_FLUSH, 2, EIO, true);
	alloc(e, 1);
	assert_int_not_equal(transaction(e), 0);
	fault_plan_arm(&plan, 1u << FAULT_FLUSH, 1, EIO, true);
	assert_int_not_equal(qcow2_flush_all(e, ERR), 0);
	fault_plan_disarm(&plan);
	node_close(e->data, NULL);
	e->data = e->file;
	engine_free(e);
	fault_plan_destroy(&plan);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_cache),
		T(test_set_without_writer),
		T(test_building_the_set),
		T(test_shared_structures),
		T(test_table_moves_on),
		T(test_slices_go),
		T(test_write_back),
		T(test_many_pending),
		T(test_pending_that_cannot_be),
		T(test_begin_settles),
		T(test_data_file),
		T(test_nothing_to_take_back_with),
		T(test_bulk),
	};

	return cmocka_run_group_tests_name("inside-qcow2-writeback", tests, NULL, NULL);
}
