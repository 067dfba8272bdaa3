/* SPDX-License-Identifier: MIT */
/* limg's nodes: entries and pointers that are wrong under a right checksum. */
#include "limg_inside.h"

#include <xxhash.h>

#define DISK (2 * MIB) /* two leaves below one node */

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static uint64_t word(uint64_t addr, uint64_t birth, unsigned st)
{
	return addr | birth << ADDR_BITS | (uint64_t)st << 60;
}

static void test_entries(void **state)
{
	const struct {
		bool sound;
		unsigned vol;
		struct entry en;
	} list[] = {
		{ true, VOL_DISK, { 0, 0 } },
		{ false, VOL_DISK, { word(1, 0, ST_NONE), 0 } },
		{ false, VOL_DISK, { 0, 1 } },
		{ true, VOL_DISK, { word(0, 1, ST_ZERO), 0 } },
		{ false, VOL_DISK, { word(1, 1, ST_ZERO), 0 } },
		{ false, VOL_DISK, { word(0, 1, ST_ZERO), 1 } },
		{ false, VOL_DISK, { word(0, 0, ST_ZERO), 0 } },
		{ true, VOL_CATALOG, { word(9, 1, ST_RAW), 5 } },
		{ false, VOL_DISK, { word(0, 1, ST_RAW), 5 } },
		{ false, VOL_DISK, { word(9, 0, ST_RAW), 5 } },
		{ true, VOL_VM, { word(9, 1, ST_ZSTD), 5 } },
		{ true, VOL_DISK, { word(9, 1, ST_DEFLATE), 15 } },
		{ false, VOL_CATALOG, { word(9, 1, ST_ZSTD), 5 } },
		{ false, VOL_DISK, { word(0, 1, ST_ZSTD), 5 } },
		{ false, VOL_DISK, { word(9, 0, ST_ZSTD), 5 } },
		{ false, VOL_DISK, { word(9, 1, ST_ZSTD), 0x100 } },
		{ false, VOL_DISK, { word(9, 1, ST_ZSTD), 16 } }, /* as much as it saves nothing */
		{ false, VOL_DISK, { word(9, 1, 5), 5 } },
	};
	struct engine *e = calloc(1, sizeof(*e));

	(void)state;
	assert_non_null(e);
	e->unit_bytes = UNIT;
	for (size_t i = 0; i < ARRAY_LEN(list); i++)
		assert_int_equal(entry_sound(e, list[i].vol, &list[i].en), list[i].sound);
	free(e);
}

/* ---- nodes ------------------------------------------------------------------------------------------------------- */

struct node_at {
	struct engine *e;
	unsigned level;
	struct ptr p;
	uint8_t good[AU_BYTES];
};

static void find_node(struct node_at *n, struct engine *e, unsigned level)
{
	struct page *pg;

	n->e = e;
	n->level = level;
	n->p = e->sb.disk.root;
	assert_int_equal(e->sb.disk.levels, 1);
	if (level == 0) {
		assert_ok(tree_page(e, VOL_DISK, 1, 0, &n->p, &pg, ERR));
		node_child(pg, 0, &n->p);
		cache_put(pg);
	}
	assert_ok(tree_read(e, VOL_DISK, level, 0, &n->p, n->good, ERR));
}

/* What reading says of the node with a few bytes of it changed, and its checksum right again. */
static int with_bytes(const struct node_at *n, size_t at, unsigned bytes, uint64_t value)
{
	uint8_t page[AU_BYTES], out[AU_BYTES];
	struct ptr p = n->p;

	memcpy(page, n->good, AU_BYTES);
	for (unsigned i = 0; i < bytes; i++)
		page[at + i] = (uint8_t)(value >> (8 * i));
	inside_write("a", page, AU_BYTES, au_off(word_addr(p.word)));
	p.csum = XXH3_64bits_withSeed(page, AU_BYTES, page_identity(n->e, VOL_DISK, n->level, 0));
	error_clear(ERR);
	return tree_read(n->e, VOL_DISK, n->level, 0, &p, out, ERR);
}

static struct img *with_tree(void)
{
	struct img *img = limg_new(DISK);

	inside_fill(img, 0, 3 * BLOCK, 1);
	inside_close(img);
	return inside_open("a", 0);
}

static void test_leaves(void **state)
{
	struct img *img = with_tree();
	struct node_at n;

	(void)state;
	find_node(&n, engine_of(img), 0);
	assert_int_equal(with_bytes(&n, 0, 0, 0), 0);
	assert_fails(with_bytes(&n, 0, 8, word(9, 0, ST_RAW)), IMG_E_CORRUPT, "LIMG-5");
	assert_fails(with_bytes(&n, 0, 8, word(9, 2 + word_birth(n.p.word), ST_RAW)), IMG_E_CORRUPT, "LIMG-5");
	inside_close(img);
}

static void test_nodes(void **state)
{
	struct img *img = with_tree();
	struct node_at n;
	struct ptr far;
	uint8_t out[AU_BYTES];

	(void)state;
	find_node(&n, engine_of(img), 1);
	assert_int_equal(with_bytes(&n, 0, 0, 0), 0);
	assert_fails(with_bytes(&n, offsetof(struct disk_node, magic), 1, 0), IMG_E_CORRUPT, "another place");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, level), 1, 2), IMG_E_CORRUPT, "another place");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, kind), 1, 2), IMG_E_CORRUPT, "another place");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, index), 1, 2), IMG_E_CORRUPT, "another place");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, zero), 1, 2), IMG_E_CORRUPT, "LIMG-2");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, zero2), 1, 2), IMG_E_CORRUPT, "LIMG-2");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, zero3), 1, 2), IMG_E_CORRUPT, "LIMG-2");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, child), 8, word(9, 0, ST_NODE)), IMG_E_CORRUPT,
		     "LIMG-5");
	assert_fails(with_bytes(&n, offsetof(struct disk_node, child), 8, word(9, 2 + word_birth(n.p.word), ST_NODE)),
		     IMG_E_CORRUPT, "LIMG-7");
	far = n.p;
	far.word = word(UINT64_C(1) << 30, word_birth(n.p.word), ST_NODE);
	assert_fails(tree_read(engine_of(img), VOL_DISK, 1, 0, &far, out, ERR), IMG_E_CORRUPT, "LIMG-3");
	inside_close(img);
}

static int open_and_read(void *ctx)
{
	uint8_t buf[16 * KIB];
	struct img **img = ctx;
	int ret = inside_try("a", 0, img);

	return ret ? ret : img_pread(*img, buf, sizeof(buf), 0, 0, ERR);
}

static void close_it(void *ctx, int ret)
{
	struct img **img = ctx;

	(void)ret;
	if (*img)
		inside_close(*img);
	*img = NULL;
}

static void test_reading_fails(void **state)
{
	struct img *img = with_tree();
	struct inside_failures f = { NULL, open_and_read, close_it, &img, FAULT_ALL, false };

	(void)state;
	inside_close(img);
	assert_true(inside_fail_each(&f) > 5);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 5);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_entries),
		T(test_leaves),
		T(test_nodes),
		T(test_reading_fails),
	};

	return cmocka_run_group_tests_name("inside-limg-tree", tests, NULL, NULL);
}
