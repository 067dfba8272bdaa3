/* SPDX-License-Identifier: MIT */
/*
 * qcow2's mapping without a driver around it: what entries mean, which ones are refused, how neighbours merge,
 * compressed descriptors, and the set of metadata clusters. An engine on a file in memory with an L1 of two entries and
 * one L2 table.
 */
#include "mem.h"
#include "mock.h"
#include "qcow2_io.h"

#define TABLE_OFF (UINT64_C(1) << 20)

static void engine(struct qcow2_engine *e, unsigned cluster_bits, bool subclusters)
{
	memset(e, 0, sizeof(*e));
	e->h.version = 3;
	e->h.cluster_bits = e->cluster_bits = cluster_bits;
	e->cluster_bytes = UINT64_C(1) << cluster_bits;
	e->slice_bytes = min_u64(e->cluster_bytes, 4096);
	e->subclusters = subclusters ? 32 : 1;
	e->entry_bytes = subclusters ? 16 : 8;
	e->l2_shift = cluster_bits - (subclusters ? 4 : 3);
	e->sub_bytes = e->cluster_bytes / e->subclusters;
	e->h.l1_entries = 2;
	e->l1 = calloc(2, sizeof(*e->l1));
	assert_non_null(e->l1);
	e->l1[0] = TABLE_OFF | QCOW2_COPIED;
	pthread_rwlock_init(&e->map, NULL);
	assert_int_equal(mem_node_new("m", &e->file, NULL), 0);
	e->data = e->file;
	assert_int_equal(qcow2_cache_init(e, 1, NULL), 0);
}

static void end(struct qcow2_engine *e)
{
	qcow2_cache_free(e);
	qcow2_meta_free(e);
	free(e->l1);
	node_close(e->file, NULL);
}

static void put(struct qcow2_engine *e, uint64_t g, uint64_t desc, uint64_t bitmap)
{
	struct be64 raw[2] = { be64_of(desc), be64_of(bitmap) };

	assert_int_equal(node_pwrite(e->file, raw, e->entry_bytes, TABLE_OFF + g * e->entry_bytes, 0, NULL), 0);
	qcow2_cache_drop(e, TABLE_OFF, e->cluster_bytes);
}

static struct qcow2_mapping map(struct qcow2_engine *e, uint64_t off, uint64_t bytes)
{
	struct qcow2_view v = qcow2_head_view(e);
	struct qcow2_mapping m;

	assert_int_equal(qcow2_map(&v, off, bytes, &m, NULL), 0);
	return m;
}

#define assert_maps(m, k, n)                  \
	do {                                  \
		assert_int_equal((m).kind, k);  \
		assert_int_equal((m).bytes, n); \
	} while (0)

static void test_compressed_descriptors(void **state)
{
	struct qcow2_engine e;
	uint64_t off, bytes;

	(void)state;
	/* cluster_bits 16: 54 bits of offset, 8 bits of further sectors */
	engine(&e, 16, false);
	qcow2_compressed_range(&e, QCOW2_COMPRESSED | UINT64_C(3) << 54 | 0x12345, &off, &bytes);
	assert_int_equal(off, 0x12345);
	assert_int_equal(bytes, 4 * 512 - 0x145);
	qcow2_compressed_range(&e, QCOW2_COMPRESSED | 0x200, &off, &bytes);
	assert_int_equal(off, 0x200);
	assert_int_equal(bytes, 512);
	qcow2_compressed_range(&e, QCOW2_COPIED | QCOW2_COMPRESSED | UINT64_C(0xff) << 54, &off, &bytes);
	assert_int_equal(off, 0);
	assert_int_equal(bytes, 256 * 512);
	end(&e);
	engine(&e, 9, false);
	qcow2_compressed_range(&e, QCOW2_COMPRESSED | UINT64_C(1) << 61 | 511, &off, &bytes);
	assert_int_equal(off, 511);
	assert_int_equal(bytes, 513);
	end(&e);
	engine(&e, 21, false);
	qcow2_compressed_range(&e, QCOW2_COMPRESSED | UINT64_C(0x1fff) << 49 | 1, &off, &bytes);
	assert_int_equal(off, 1);
	assert_int_equal(bytes, 0x2000 * 512 - 1);
	end(&e);
}

static int check(struct qcow2_engine *e, uint64_t desc, uint64_t bitmap)
{
	struct qcow2_entry en = { desc, bitmap };

	return qcow2_entry_check(e, &en, 0x10000, NULL);
}

static void test_entries_are_not_believed(void **state)
{
	struct qcow2_engine e;

	(void)state;
	engine(&e, 16, false);
	assert_int_equal(check(&e, 0, 0), 0);
	assert_int_equal(check(&e, 0x50000 | QCOW2_COPIED, 0), 0);
	assert_int_equal(check(&e, 0x50000 | QCOW2_ZERO, 0), 0);
	assert_int_equal(check(&e, 0x50200, 0), IMG_E_CORRUPT);
	for (unsigned bit = 1; bit < 62; bit++)
		if ((bit > 0 && bit < 9) || bit >= 56)
			assert_int_equal(check(&e, 0x50000 | UINT64_C(1) << bit, 0), IMG_E_CORRUPT);
	assert_int_equal(check(&e, QCOW2_COMPRESSED | 0x12345, 0), 0);
	e.h.version = 2;
	assert_int_equal(check(&e, QCOW2_ZERO, 0), IMG_E_CORRUPT);
	e.h.version = 3;
	e.external = true;
	assert_int_equal(check(&e, QCOW2_COMPRESSED | 0x12345, 0), IMG_E_CORRUPT);
	assert_int_equal(check(&e, 0x10000 | QCOW2_COPIED, 0), 0);
	assert_int_equal(check(&e, 0x20000 | QCOW2_COPIED, 0), IMG_E_CORRUPT);
	end(&e);
	engine(&e, 16, true);
	assert_int_equal(check(&e, 0x50000, qcow2_bitmap_of(0xf0, 0x0f)), 0);
	assert_int_equal(check(&e, 0x50000, qcow2_bitmap_of(0xf0, 0x1f)), IMG_E_CORRUPT);
	assert_int_equal(check(&e, 0, qcow2_bitmap_of(1, 0)), IMG_E_CORRUPT);
	assert_int_equal(check(&e, 0, qcow2_bitmap_of(0, 1)), 0);
	assert_int_equal(check(&e, QCOW2_ZERO, 0), IMG_E_CORRUPT);
	end(&e);
}

static void test_neighbours_merge(void **state)
{
	struct qcow2_engine e;
	struct qcow2_mapping m;

	(void)state;
	engine(&e, 16, false);
	put(&e, 2, 0x30000 | QCOW2_COPIED, 0);
	put(&e, 3, 0x40000 | QCOW2_COPIED, 0);
	put(&e, 4, 0x50000, 0); /* shared */
	put(&e, 5, 0x70000, 0); /* elsewhere */
	put(&e, 6, QCOW2_ZERO, 0);
	put(&e, 7, 0x80000 | QCOW2_COPIED | QCOW2_ZERO, 0); /* with a place */
	put(&e, 8, QCOW2_COMPRESSED | 0x12345, 0);
	put(&e, 9, QCOW2_COMPRESSED | 0x12345, 0);
	m = map(&e, 0, 0x200000);
	assert_maps(m, MAP_UNALLOCATED, 0x20000);
	m = map(&e, 0x20100, 0x200000);
	assert_maps(m, MAP_DATA, 0x1ff00);
	assert_int_equal(m.host_off, 0x30100);
	assert_true(m.in_place);
	m = map(&e, 0x20100, 0x100);
	assert_maps(m, MAP_DATA, 0x100);
	m = map(&e, 0x40000, 0x200000);
	assert_maps(m, MAP_DATA, 0x10000);
	assert_false(m.in_place);
	m = map(&e, 0x50000, 0x200000);
	assert_maps(m, MAP_DATA, 0x10000);
	assert_int_equal(m.host_off, 0x70000);
	m = map(&e, 0x60000, 0x200000);
	assert_maps(m, MAP_ZERO, 0x10000);
	assert_false(m.has_host);
	m = map(&e, 0x70000, 0x200000);
	assert_maps(m, MAP_ZERO, 0x10000);
	assert_true(m.has_host);
	m = map(&e, 0x80010, 0x200000);
	assert_maps(m, MAP_COMPRESSED, 0xfff0);
	assert_int_equal(m.host_off, 0x12345);
	/* to the end of the slice, over the end of the table and of the L1 */
	m = map(&e, UINT64_C(0x10000) * 8000, UINT64_C(1) << 40);
	assert_maps(m, MAP_UNALLOCATED, UINT64_C(1) << 40);
	/* a table that is not ours alone */
	e.l1[0] &= ~QCOW2_COPIED;
	assert_false(map(&e, 0x20100, 0x100).in_place);
	end(&e);
}

static void test_subclusters(void **state)
{
	struct qcow2_engine e;
	struct qcow2_mapping m;

	(void)state;
	engine(&e, 16, true); /* 2 KiB each */
	put(&e, 0, 0x30000 | QCOW2_COPIED, qcow2_bitmap_of(0x0000000f, 0x000000f0));
	put(&e, 1, 0x40000 | QCOW2_COPIED, qcow2_bitmap_of(0x80000001, 0));
	m = map(&e, 0x100, 0x20000);
	assert_maps(m, MAP_DATA, 4 * 0x800 - 0x100);
	assert_int_equal(m.host_off, 0x30100);
	assert_true(m.in_place);
	m = map(&e, 4 * 0x800, 0x20000);
	assert_maps(m, MAP_ZERO, 4 * 0x800);
	assert_true(m.has_host);
	m = map(&e, 8 * 0x800, 0x20000);
	assert_maps(m, MAP_UNALLOCATED, 24 * 0x800);
	m = map(&e, 0x10000 + 31 * 0x800, 0x20000);
	assert_maps(m, MAP_DATA, 0x800);
	assert_int_equal(m.host_off, 0x40000 + 31 * 0x800);
	end(&e);
}

/* A bad entry is met when it is asked for, not before. */
static void test_damage_ends_a_run(void **state)
{
	struct qcow2_engine e;
	struct qcow2_view v;
	struct qcow2_mapping m;
	struct img_error err = { .code = IMG_OK };

	(void)state;
	engine(&e, 16, false);
	put(&e, 0, 0x30000 | QCOW2_COPIED, 0);
	put(&e, 1, 0x40200 | QCOW2_COPIED, 0);
	v = qcow2_head_view(&e);
	assert_int_equal(qcow2_map(&v, 0, 0x20000, &m, &err), 0);
	assert_maps(m, MAP_DATA, 0x10000);
	assert_int_equal(err.code, IMG_OK);
	assert_int_equal(qcow2_map(&v, 0x10000, 0x10000, &m, &err), IMG_E_CORRUPT);
	assert_non_null(strstr(err.msg, "0x10000"));
	e.l1[1] = 0x123400;
	memset(&err, 0, sizeof(err));
	assert_int_equal(qcow2_map(&v, e.cluster_bytes << e.l2_shift, 0x10000, &m, &err), IMG_E_CORRUPT);
	assert_non_null(strstr(err.msg, "L1"));
	end(&e);
}

static void test_no_entry_lands_on_other_metadata(void **state)
{
	static const uint64_t places[] = { 0x50000, 0x70000, 0x90000 };
	const struct qcow2_entry en = { 0x30000 | QCOW2_COPIED, 0 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		struct img_error err = { .code = IMG_OK };
		struct qcow2_slice *s;
		struct qcow2_engine e;

		engine(&e, 16, false);
		e.l1_dirty = calloc(1, 1);
		e.h.l1_off = 0x50000;
		e.h.reftable_off = 0x70000;
		e.h.reftable_clusters = 1;
		assert_int_equal(qcow2_cache_get(&e, 0x90000, SLICE_REFBLOCK, &s, NULL), 0);
		assert_int_equal(qcow2_entry_set(&e, 3, &en, &err), 0);
		assert_false(atomic_load(&e.broken));
		e.l1[0] = places[i] | QCOW2_COPIED;
		assert_int_equal(qcow2_entry_set(&e, 3, &en, &err), IMG_E_CORRUPT);
		assert_true(atomic_load(&e.broken));
		assert_int_equal(err.offset, places[i] + (i == 2 ? 24 : 0));
		free(e.l1_dirty);
		end(&e);
	}
}

static void test_set_of_metadata(void **state)
{
	static uint8_t model[4096];
	struct qcow2_engine e;
	uint64_t seed = 7, where;

	(void)state;
	engine(&e, 16, false);
	e.l1[0] = 0;
	e.h.l1_off = 0x10000;
	assert_int_equal(qcow2_meta_build(&e, NULL), 0);
	model[0] = model[1] = 1; /* header, L1 */
	for (unsigned i = 0; i < 60000; i++) {
		uint64_t c, n;

		seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
		c = 1 + (seed >> 33) % 4000;
		n = 1 + (seed >> 20) % 4;
		switch (seed >> 60) {
		case 0:
		case 1:
		case 2:
		case 3:
		case 4:
			assert_int_equal(qcow2_meta_add(&e, c << 16, n << 16, NULL), 0);
			memset(model + c, 1, n);
			break;
		case 5:
		case 6:
		case 7:
		case 8:
		case 9:
			qcow2_meta_remove(&e, c << 16, n << 16);
			memset(model + c, 0, n);
			break;
		default: {
			uint64_t first = c, bytes = n == 1 ? 1 : (n - 2) * 65536 + 2;

			while (first < c + n && !model[first])
				first++;
			/* a byte at each end is enough */
			assert_int_equal(qcow2_meta_overlaps(&e, (c << 16) + 65535, bytes, &where), first < c + n);
			if (first < c + n)
				assert_int_equal(where, first << 16);
		}
		}
	}
	end(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_compressed_descriptors),
		cmocka_unit_test(test_entries_are_not_believed),
		cmocka_unit_test(test_neighbours_merge),
		cmocka_unit_test(test_subclusters),
		cmocka_unit_test(test_damage_ends_a_run),
		cmocka_unit_test(test_set_of_metadata),
		cmocka_unit_test(test_no_entry_lands_on_other_metadata),
	};

	return cmocka_run_group_tests_name("qcow2_map", tests, NULL, NULL);
}
