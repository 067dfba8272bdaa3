/* SPDX-License-Identifier: MIT */
/*
 * Refcounts, allocation and transactions, without a driver around them: an engine on a file in memory that holds just a refcount
 * structure. The model is an array of counts; the judge of what reached the file is a second engine that loads it.
 */
#include "mem.h"
#include "mock.h"
#include "qcow2_refcount.h"
#include "qcow2_txn.h"

#define CLUSTER	    512u /* a block counts 256 clusters, a cluster of the table holds 64 blocks: growth is met early */
#define NR_CLUSTERS 40000u

struct fixture {
	struct qcow2_engine e;
	uint16_t model[NR_CLUSTERS]; /* of what the test holds; the structure's own clusters are counted when compared */
	uint16_t given_up[NR_CLUSTERS]; /* freed, and not written back yet */
	uint64_t seed;
};

static void test_counters_of_every_width(void **state)
{
	(void)state;
	for (unsigned order = 0; order <= 6; order++) {
		uint8_t data[64] = { 0 };
		uint64_t max = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
		uint64_t nr = sizeof(data) * 8 >> order;

		for (uint64_t i = 0; i < nr; i++)
			qcow2_refcount_store(data, i, order, i % 3 == 0 ? max : i & max);
		for (uint64_t i = 0; i < nr; i++)
			assert_int_equal(qcow2_refcount_load(data, i, order), i % 3 == 0 ? max : i & max);
	}
}

static void test_layout_on_disk(void **state)
{
	uint8_t data[16] = { 0 };

	(void)state;
	qcow2_refcount_store(data, 1, 0, 1); /* the low bits come first */
	assert_int_equal(data[0], 0x02);
	qcow2_refcount_store(data, 3, 1, 3);
	assert_int_equal(data[0], 0xc2);
	qcow2_refcount_store(data, 1, 2, 0xa);
	assert_int_equal(data[0], 0xa2);
	qcow2_refcount_store(data, 2, 4, 0x1234); /* big-endian */
	assert_int_equal(data[4], 0x12);
	assert_int_equal(data[5], 0x34);
}

/* ---- an engine on a file in memory ---- */

static void locks_init(struct qcow2_engine *e)
{
	pthread_rwlock_init(&e->gate, NULL);
	pthread_rwlock_init(&e->map, NULL);
	pthread_mutex_init(&e->flushing, NULL);
}

static void geometry(struct qcow2_engine *e)
{
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
}

static void setup_engine(struct fixture *f, uint64_t seed)
{
	struct qcow2_engine *e = &f->e;
	struct be64 block = be64_of(2 * CLUSTER);
	struct be16 counts[3] = { be16_of(1), be16_of(1), be16_of(1) };

	memset(f, 0, sizeof(*f));
	f->seed = seed * 2654435761u + 1;
	locks_init(e);
	geometry(e);
	assert_int_equal(mem_node_new("m", &e->file, NULL), 0);
	e->data = e->file;
	assert_int_equal(node_pwrite(e->file, &block, 8, CLUSTER, 0, NULL), 0);
	assert_int_equal(node_pwrite(e->file, counts, sizeof(counts), 2 * CLUSTER, 0, NULL), 0);
	e->h.reftable_off = CLUSTER;
	e->h.reftable_clusters = 1;
	e->file_end = 3 * CLUSTER;
	assert_int_equal(qcow2_header_write_fields(e, NULL), 0);
	assert_int_equal(qcow2_cache_init(e, 1, NULL), 0);
	assert_int_equal(qcow2_reftable_load(e, NULL), 0);
	e->l1_dirty = calloc(1, 1);
	assert_int_equal(qcow2_meta_build(e, NULL), 0);
}

static void drop_engine(struct qcow2_engine *e)
{
	qcow2_cache_free(e);
	qcow2_meta_free(e);
	free(e->reftable);
	free(e->reftable_dirty);
	free(e->l1_dirty);
	free(e->pending);
	free(e->freed);
}

static uint64_t draw(struct fixture *f, uint64_t below)
{
	f->seed = f->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (f->seed >> 33) % below;
}

/* What a program that opens the file now would see: every count that of the model, and of the structure itself. */
static void compare_with_disk(struct fixture *f)
{
	struct qcow2_engine d = { .file = f->e.file, .data = f->e.file };
	struct disk_qcow2_header h;
	static uint32_t want[NR_CLUSTERS];

	locks_init(&d);
	geometry(&d);
	assert_int_equal(node_pread(d.file, &h, sizeof(h), 0, 0, NULL), 0);
	d.h.reftable_off = be64_get(h.reftable_off);
	d.h.reftable_clusters = be32_get(h.reftable_clusters);
	assert_int_equal(qcow2_cache_init(&d, 1, NULL), 0);
	assert_int_equal(qcow2_reftable_load(&d, NULL), 0);
	for (uint64_t c = 0; c < NR_CLUSTERS; c++)
		want[c] = f->model[c];
	want[0]++;
	for (uint64_t i = 0; i < d.h.reftable_clusters; i++)
		want[d.h.reftable_off / CLUSTER + i]++;
	for (uint64_t i = 0; i < d.reftable_entries; i++)
		want[d.reftable[i] / CLUSTER] += d.reftable[i] != 0;
	for (uint64_t c = 0; c < NR_CLUSTERS; c++) {
		uint64_t got;

		assert_int_equal(qcow2_refcount_get(&d, c, &got, NULL), 0);
		if (got != want[c])
			fail_msg("cluster %llu: %llu references on disk, %u in truth", (unsigned long long)c,
				 (unsigned long long)got, want[c]);
	}
	drop_engine(&d);
}

/* ---- random programs ---- */

static void take(struct fixture *f)
{
	uint64_t off, got, want = 1 + draw(f, draw(f, 10) ? 8 : 300);

	if (draw(f, 2)) {
		assert_int_equal(qcow2_alloc_exact(&f->e, want, &off, NULL), 0);
		got = want;
	} else {
		assert_int_equal(qcow2_alloc(&f->e, want, &off, &got, NULL), 0);
	}
	assert_true(got >= 1 && got <= want && off / CLUSTER + got <= NR_CLUSTERS);
	for (uint64_t c = off / CLUSTER; c < off / CLUSTER + got; c++) {
		assert_int_equal(f->model[c], 0);
		assert_int_equal(f->given_up[c], 0);
		f->model[c] = 1;
	}
}

static uint64_t some_cluster_in_use(struct fixture *f)
{
	uint64_t at = draw(f, NR_CLUSTERS);

	for (uint64_t i = 0; i < NR_CLUSTERS; i++) {
		uint64_t c = (at + i) % NR_CLUSTERS;

		if (f->model[c] > 0)
			return c;
	}
	return 0;
}

static void give_back(struct fixture *f, bool at_once)
{
	uint64_t c = some_cluster_in_use(f), nr = 1;

	if (c == 0)
		return;
	while (nr < 40 && c + nr < NR_CLUSTERS && f->model[c + nr] > 0)
		nr++;
	assert_int_equal(qcow2_free(&f->e, c * CLUSTER, nr, NULL), 0);
	for (uint64_t i = 0; i < nr; i++) {
		f->model[c + i]--;
		f->given_up[c + i] += !at_once;
	}
}

static void settle(struct fixture *f)
{
	assert_int_equal(qcow2_settle(&f->e, NULL), 0);
	memset(f->given_up, 0, sizeof(f->given_up));
	compare_with_disk(f);
}

static void transaction(struct fixture *f)
{
	static uint16_t before[NR_CLUSTERS];
	unsigned nr = (unsigned)draw(f, 20);

	assert_int_equal(qcow2_txn_begin(&f->e, NULL), 0);
	memset(f->given_up, 0, sizeof(f->given_up));
	memcpy(before, f->model, sizeof(before));
	for (unsigned i = 0; i < nr; i++) {
		uint64_t c;

		switch (draw(f, 3)) {
		case 0:
			take(f);
			break;
		case 1:
			give_back(f, true);
			break;
		default:
			c = some_cluster_in_use(f);
			if (c && f->model[c] < 5) {
				assert_int_equal(qcow2_refcount_add(&f->e, c, 1, 1, NULL), 0);
				f->model[c]++;
			}
		}
	}
	if (draw(f, 3) == 0) {
		qcow2_txn_abort(&f->e);
		memcpy(f->model, before, sizeof(before));
	} else {
		assert_int_equal(qcow2_txn_commit(&f->e, NULL), 0);
	}
	compare_with_disk(f);
}

static void test_random_programs(void **state)
{
	static struct fixture f;

	(void)state;
	for (uint64_t seed = 1; seed <= 12; seed++) {
		setup_engine(&f, seed);
		for (unsigned i = 0; i < 120; i++) {
			switch (draw(&f, 8)) {
			case 0:
				settle(&f);
				break;
			case 1:
				transaction(&f);
				break;
			case 2:
			case 3:
				give_back(&f, false);
				break;
			default:
				take(&f);
			}
		}
		settle(&f);
		drop_engine(&f.e);
		node_close(f.e.file, NULL);
	}
}

/* 64 blocks of 256 clusters each fill the first cluster of the table. */
static void test_table_grows(void **state)
{
	static struct fixture f;

	(void)state;
	for (unsigned in_txn = 0; in_txn < 2; in_txn++) {
		setup_engine(&f, 3);
		for (unsigned i = 0; i < 35; i++) {
			uint64_t off;

			if (in_txn)
				assert_int_equal(qcow2_txn_begin(&f.e, NULL), 0);
			assert_int_equal(qcow2_alloc_exact(&f.e, 1000, &off, NULL), 0);
			for (unsigned c = 0; c < 1000; c++)
				f.model[off / CLUSTER + c]++;
			if (in_txn)
				assert_int_equal(qcow2_txn_commit(&f.e, NULL), 0);
			else if (i % 3 == 0)
				settle(&f);
		}
		settle(&f);
		assert_true(f.e.h.reftable_clusters > 1);
		drop_engine(&f.e);
		node_close(f.e.file, NULL);
	}
}

/* What a transaction frees is not written to before it has ended. */
static void test_transaction_spares_the_old(void **state)
{
	static struct fixture f;
	static uint8_t old[64 * CLUSTER], now[sizeof(old)];
	uint64_t off, end;

	(void)state;
	setup_engine(&f, 1);
	assert_int_equal(qcow2_alloc_exact(&f.e, 60, &off, NULL), 0);
	assert_int_equal(qcow2_settle(&f.e, NULL), 0);
	memset(old, 0x5a, sizeof(old));
	assert_int_equal(node_pwrite(f.e.file, old, 60 * CLUSTER, off, 0, NULL), 0);
	end = off + 60 * CLUSTER;
	assert_int_equal(node_pread(f.e.file, old, end, 0, 0, NULL), 0);
	assert_int_equal(qcow2_txn_begin(&f.e, NULL), 0);
	assert_int_equal(qcow2_free(&f.e, off, 60, NULL), 0);
	for (unsigned i = 0; i < 300; i++) {
		uint64_t fresh;

		assert_int_equal(qcow2_alloc_exact(&f.e, 1, &fresh, NULL), 0);
		assert_true(fresh >= end);
	}
	qcow2_txn_abort(&f.e);
	assert_int_equal(node_pread(f.e.file, now, end, 0, 0, NULL), 0);
	assert_memory_equal(old, now, end);
	drop_engine(&f.e);
	node_close(f.e.file, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_counters_of_every_width),
		cmocka_unit_test(test_layout_on_disk),
		cmocka_unit_test(test_random_programs),
		cmocka_unit_test(test_table_grows),
		cmocka_unit_test(test_transaction_spares_the_old),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
