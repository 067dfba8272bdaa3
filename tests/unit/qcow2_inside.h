/* SPDX-License-Identifier: MIT */
/* For tests of qcow2's inside: an engine without a driver around it, and each failure of what it does. */
#ifndef TESTS_UNIT_QCOW2_INSIDE_H
#define TESTS_UNIT_QCOW2_INSIDE_H

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

#endif
