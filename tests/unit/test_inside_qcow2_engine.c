/* SPDX-License-Identifier: MIT */
/*
 * qcow2's refcounts, allocation, cache, overlap set and write-back on an engine without a driver around it: states that
 * images reach seldom or only with luck, what another request does while a write-back is under way, and each failure.
 */
#include "inside.h"

#include "qcow2_txn.h"

#define CLUSTER 512u /* a block counts 256 clusters, a cluster of the table holds 64 blocks */

/* ---- a host that lets something happen during a sync ------------------------------------------------------------- */

static void (*at_flush)(struct qcow2_engine *e);
static struct qcow2_engine *flushed;

static int hooked_flush(struct node *node, unsigned flags, struct img_error *err)
{
	void (*now)(struct qcow2_engine * e) = at_flush;

	at_flush = NULL;
	if (now)
		now(flushed);
	return fault_driver.flush(node, flags, err);
}

static struct qcow2_engine *engine_new(void)
{
	static struct img_driver hooked;
	struct qcow2_engine *e = calloc(1, sizeof(*e));
	struct be64 block = be64_of(2 * CLUSTER);
	struct be16 counts[3] = { be16_of(1), be16_of(1), be16_of(1) };
	struct node *file;

	assert_non_null(e);
	hooked = fault_driver;
	hooked.flush = hooked_flush;
	at_flush = NULL;
	flushed = e;
	pthread_rwlock_init(&e->gate, NULL);
	pthread_rwlock_init(&e->map, NULL);
	pthread_mutex_init(&e->flushing, NULL);
	e->cluster_bytes = e->slice_bytes = CLUSTER;
	e->h.cluster_bits = 9;
	e->h.refcount_order = 4;
	e->h.version = 3;
	e->h.header_bytes = 112;
	e->l2_shift = 6;
	e->entry_bytes = 8;
	e->subclusters = 1;
	e->rb_shift = 8;
	e->refcount_max = UINT16_MAX;
	e->writable = true;
	assert_ok(mem_node_new("m", &file, ERR));
	assert_ok(fault_node_new(file, &inside_plan, &e->file, ERR));
	e->file->drv = &hooked;
	e->data = e->file;
	assert_ok(node_pwrite(e->file, &block, 8, CLUSTER, 0, ERR));
	assert_ok(node_pwrite(e->file, counts, sizeof(counts), 2 * CLUSTER, 0, ERR));
	e->h.reftable_off = CLUSTER;
	e->h.reftable_clusters = 1;
	e->file_end = 3 * CLUSTER;
	assert_ok(qcow2_header_write_fields(e, ERR));
	assert_ok(qcow2_cache_init(e, 1, ERR));
	assert_ok(qcow2_reftable_load(e, ERR));
	e->l1_dirty = calloc(1, 1);
	assert_ok(qcow2_meta_build(e, ERR));
	return e;
}

static void engine_free(struct qcow2_engine *e)
{
	qcow2_cache_free(e);
	qcow2_cache_free(e); /* twice does no harm */
	qcow2_meta_free(e);
	qcow2_meta_free(e);
	free(e->reftable);
	free(e->reftable_dirty);
	free(e->l1_dirty);
	free(e->l1);
	free(e->pending);
	free(e->freed);
	e->file->drv = &fault_driver;
	node_close(e->file, NULL);
	pthread_rwlock_destroy(&e->gate);
	pthread_rwlock_destroy(&e->map);
	pthread_mutex_destroy(&e->flushing);
	free(e);
}

static uint64_t alloc(struct qcow2_engine *e, uint64_t nr)
{
	uint64_t off;

	assert_ok(qcow2_alloc_exact(e, nr, &off, ERR));
	return off / CLUSTER;
}

static uint64_t refs_of(struct qcow2_engine *e, uint64_t cluster)
{
	uint64_t refs;

	assert_ok(qcow2_refcount_get(e, cluster, &refs, ERR));
	return refs;
}

/* ---- each failure ------------------------------------------------------------------------------------------------ */

struct attempt {
	struct qcow2_engine *e;
	void (*prepare)(struct qcow2_engine *e);
	int (*act)(struct qcow2_engine *e);
};

static void attempt_before(void *ctx)
{
	struct attempt *a = ctx;

	a->e = engine_new();
	if (a->prepare)
		a->prepare(a->e);
}

static int attempt_act(void *ctx)
{
	struct attempt *a = ctx;

	return a->act(a->e);
}

static void attempt_after(void *ctx, int ret)
{
	struct attempt *a = ctx;

	(void)ret;
	if (a->e->txn)
		qcow2_txn_abort(a->e);
	engine_free(a->e);
}

static void each_failure(void (*prepare)(struct qcow2_engine *e), int (*what)(struct qcow2_engine *e))
{
	struct attempt a = { .prepare = prepare, .act = what };
	struct inside_failures f = { attempt_before, attempt_act, attempt_after, &a, FAULT_ALL, false };

	assert_true(inside_fail_each(&f) > 0);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 0);
}

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

static int transaction(struct qcow2_engine *e)
{
	uint64_t off;
	int ret = qcow2_txn_begin(e, ERR);

	if (ret != 0)
		return ret;
	/* Clusters of many blocks: each is copied, and new ones come. */
	for (uint64_t k = 19; ret == 0 && k > 0; k--)
		ret = qcow2_refcount_add(e, k * 256 + 9, 1, 1, ERR);
	if (ret == 0)
		ret = qcow2_alloc_exact(e, 3, &off, ERR);
	if (ret == 0)
		ret = qcow2_refcount_add(e, off / CLUSTER, 1, 1, ERR);
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	return qcow2_txn_commit(e, ERR);
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
		table[i] = be64_of((500 + i) * CLUSTER);
	memset(list, 0, sizeof(list));
	for (unsigned i = 0; i < ARRAY_LEN(list); i++)
		list[i].l1_off = 400 * CLUSTER;
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
	assert_true(qcow2_meta_overlaps(e, 500 * CLUSTER, 1, &where)); /* its L2 tables, within the budget */
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
		T(test_table_outgrows_itself),
		T(test_block_does_not_fit),
		T(test_file_is_full),
		T(test_free_cluster_holds_metadata),
		T(test_packed),
		T(test_noting_free_space),
		T(test_counters),
		T(test_tables),
		T(test_transactions),
		T(test_table_outgrows_its_place),
		T(test_targets_replaced),
		T(test_spill),
		T(test_cache),
		T(test_set_without_writer),
		T(test_building_the_set),
		T(test_table_moves_on),
		T(test_slices_go),
		T(test_write_back),
		T(test_many_pending),
		T(test_pending_that_cannot_be),
		T(test_begin_settles),
		T(test_data_file),
		T(test_wide_counters),
		T(test_odd_requests),
		T(test_trees),
		T(test_trees_without_counters),
		T(test_nothing_to_take_back_with),
		T(test_bulk),
	};

	return cmocka_run_group_tests_name("inside-qcow2-engine", tests, NULL, NULL);
}
