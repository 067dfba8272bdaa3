/* SPDX-License-Identifier: MIT */
/* Extents through chains of layers: what is on top wins, shorter backings end, neighbours merge, small answers go on. */
#include "mock.h"

#define SECTORS	   (MOCK_BYTES / MOCK_SECTOR)
#define MAX_LAYERS 4

static struct img *stack(struct node **nodes, unsigned nr)
{
	struct img *img = NULL;

	for (unsigned i = nr; i-- > 0;) {
		struct img *child = mock_image(nodes[i]);

		if (img)
			image_attach_backing(child, img);
		img = child;
	}
	return img;
}

static struct node *layer(uint64_t size)
{
	return mock_node(&mock_format, size, true);
}

static void test_layers_on_each_other(void **state)
{
	struct node *nodes[2] = { layer(8 * 512), layer(6 * 512) };
	struct img *img = stack(nodes, 2);
	struct img_extent e[16];
	size_t nr;

	(void)state;
	mock_of(nodes[0])->kind[1] = STATUS_DATA;
	mock_of(nodes[0])->kind[2] = STATUS_ZERO;
	mock_of(nodes[0])->kind[3] = STATUS_COMPRESSED;
	mock_of(nodes[1])->kind[0] = STATUS_DATA;
	mock_of(nodes[1])->kind[1] = STATUS_DATA;
	mock_of(nodes[1])->kind[4] = STATUS_ZERO;
	assert_int_equal(img_extents(img, 8 * 512, 0, 0, e, 16, &nr, NULL), 0);
	assert_int_equal(nr, 6);
	assert_int_equal(e[0].flags, IMG_EXT_DATA | IMG_EXT_OFFSET | IMG_EXT_ALLOCATED);
	assert_int_equal(e[0].depth, 1);
	assert_int_equal(e[0].host_off, 0x100000);
	assert_int_equal(e[1].flags, IMG_EXT_DATA | IMG_EXT_OFFSET | IMG_EXT_ALLOCATED);
	assert_int_equal(e[1].depth, 0);
	assert_int_equal(e[1].host_off, 0x100200);
	assert_int_equal(e[2].flags, IMG_EXT_ZERO | IMG_EXT_ALLOCATED);
	assert_int_equal(e[2].depth, 0);
	assert_int_equal(e[3].flags, IMG_EXT_DATA | IMG_EXT_COMPRESSED | IMG_EXT_ALLOCATED);
	assert_int_equal(e[4].flags, IMG_EXT_ZERO | IMG_EXT_ALLOCATED);
	assert_int_equal(e[4].depth, 1);
	/* Unallocated in both, then beyond the end of the backing: one extent that no layer says anything about. */
	assert_int_equal(e[5].flags, IMG_EXT_ZERO);
	assert_int_equal(e[5].off, 5 * 512);
	assert_int_equal(e[5].bytes, 3 * 512);
	img_close(img, NULL);
}

static void test_own_layer_only(void **state)
{
	struct node *nodes[2] = { layer(4 * 512), layer(4 * 512) };
	struct img *img = stack(nodes, 2);
	struct img_extent e[4];
	size_t nr;

	(void)state;
	memset(mock_of(nodes[1])->kind, STATUS_DATA, 4);
	mock_of(nodes[0])->kind[2] = STATUS_ZERO;
	nodes[0]->backing_missing = true;
	assert_int_equal(img_extents(img, 4 * 512, 0, IMG_EXTENTS_OWN, e, 4, &nr, NULL), 0);
	assert_int_equal(nr, 3);
	assert_int_equal(e[0].flags, 0);
	assert_int_equal(e[0].bytes, 1024);
	assert_int_equal(e[1].flags, IMG_EXT_ZERO | IMG_EXT_ALLOCATED);
	assert_int_equal(e[2].flags, 0);
	/* Without the backing the whole answer cannot be given. */
	assert_int_equal(img_extents(img, 4 * 512, 0, 0, e, 4, &nr, NULL), IMG_E_REFUSED);
	assert_int_equal(nr, 0);
	img_close(img, NULL);
}

static void test_arguments(void **state)
{
	struct node *nodes[1] = { layer(4096) };
	struct img *img = stack(nodes, 1);
	struct img_extent e;
	size_t nr = 5;

	(void)state;
	assert_int_equal(img_extents(img, 0, 4096, 0, &e, 1, &nr, NULL), 0);
	assert_int_equal(nr, 0);
	assert_int_equal(img_extents(img, 1, 4096, 0, &e, 1, &nr, NULL), IMG_E_INVALID);
	assert_int_equal(img_extents(img, UINT64_MAX, 1, 0, &e, 1, &nr, NULL), IMG_E_INVALID);
	assert_int_equal(img_extents(img, 512, 0, 0x80, &e, 1, &nr, NULL), IMG_E_INVALID);
	assert_int_equal(img_extents(img, 512, 0, 0, &e, 0, &nr, NULL), IMG_E_INVALID);
	img_close(img, NULL);
}

/* Plain data that is contiguous for the guest but not in the file stays apart. */
static void test_offsets_keep_extents_apart(void **state)
{
	struct node *nodes[1] = { layer(4096) };
	struct img *img = stack(nodes, 1);
	struct img_extent e[8];
	size_t nr;

	(void)state;
	memset(mock_of(nodes[0])->kind, STATUS_DATA, 8);
	mock_of(nodes[0])->status_cap = 1;
	assert_int_equal(img_extents(img, 4096, 0, 0, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(img_extents(img, 1000, 300, 0, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(e[0].off, 300);
	assert_int_equal(e[0].bytes, 1000);
	assert_int_equal(e[0].host_off, 0x100000 + 300);
	img_close(img, NULL);
}

/* What a 512-byte sector is, worked out the slow way. */
static void oracle(struct node **nodes, unsigned nr, uint64_t sector, uint32_t *flags, uint32_t *depth)
{
	static const uint32_t of_kind[] = { 0, IMG_EXT_ZERO, IMG_EXT_DATA | IMG_EXT_OFFSET,
					    IMG_EXT_DATA | IMG_EXT_COMPRESSED };

	for (*depth = 0; *depth < nr; (*depth)++) {
		struct mock *m = mock_of(nodes[*depth]);

		if (sector * 512 >= m->size)
			break;
		if (m->kind[sector] != STATUS_UNALLOCATED) {
			*flags = of_kind[m->kind[sector]] | IMG_EXT_ALLOCATED;
			return;
		}
	}
	*flags = IMG_EXT_ZERO;
	*depth = 0;
}

static void run_random(unsigned seed)
{
	struct node *nodes[MAX_LAYERS];
	unsigned nr_layers = 1 + seed % MAX_LAYERS;
	struct img_extent e[40];
	struct img *img;
	size_t nr, cap = 1 + seed % 39;
	uint64_t off = 0, size;

	srand(seed);
	for (unsigned i = 0; i < nr_layers; i++) {
		uint64_t sectors = 1 + (uint64_t)rand() % SECTORS;

		nodes[i] = layer(sectors * 512);
		mock_of(nodes[i])->status_cap = (size_t)(rand() % 5);
		for (uint64_t s = 0; s < sectors;) {
			int kind = rand() % 3 ? STATUS_UNALLOCATED : rand() % 4;

			for (uint64_t stop = s + 1 + (uint64_t)(rand() % 9); s < stop && s < sectors; s++)
				mock_of(nodes[i])->kind[s] = (uint8_t)kind;
		}
	}
	img = stack(nodes, nr_layers);
	size = img_size(img);
	while (off < size) {
		uint64_t end;

		assert_int_equal(img_extents(img, size - off, off, 0, e, cap, &nr, NULL), 0);
		assert_in_range(nr, 1, cap);
		for (size_t i = 0; i < nr; i++) {
			assert_int_equal(e[i].off, off);
			assert_true(e[i].bytes > 0);
			if (i > 0)
				assert_true(e[i].flags != e[i - 1].flags || e[i].depth != e[i - 1].depth);
			for (end = off + e[i].bytes; off < end; off += 512) {
				uint32_t flags, depth;

				oracle(nodes, nr_layers, off / 512, &flags, &depth);
				assert_int_equal(e[i].flags, flags);
				assert_int_equal(e[i].depth, depth);
				if (flags & IMG_EXT_OFFSET)
					assert_int_equal(e[i].host_off + off - e[i].off, off + 0x100000);
			}
		}
	}
	assert_int_equal(off, size);
	img_close(img, NULL);
}

static void test_random_stacks(void **state)
{
	(void)state;
	for (unsigned seed = 1; seed <= 300; seed++)
		run_random(seed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layers_on_each_other),
		cmocka_unit_test(test_own_layer_only),
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_offsets_keep_extents_apart),
		cmocka_unit_test(test_random_stacks),
	};

	return cmocka_run_group_tests_name("extents", tests, NULL, NULL);
}
