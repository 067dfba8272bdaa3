/* SPDX-License-Identifier: MIT */
/*
 * limg's checkpoints: trees of several levels with every kind of entry, the reclaiming of deleted snapshots in steps,
 * and what fails on the way: the host, memory, or a free-space map that says something else than the trees.
 */
#include "limg_inside.h"

#define LEAVES(n)  ((uint64_t)(n)*LEAF_BYTES)
#define DISK	   (LEAVES(130) + UNIT) /* three levels; the last leaf has 16 blocks */
#define SMALL_DISK (4 * MIB)

static uint8_t unit_data[UNIT];

static void write_unit(struct img *img, uint64_t off, uint8_t seed)
{
	for (size_t i = 0; i < sizeof(unit_data); i++)
		unit_data[i] = (uint8_t)(seed + i / 512);
	assert_ok(img_pwrite(img, unit_data, sizeof(unit_data), off, IMG_IO_COMPRESS, ERR));
}

static int set_range(struct img *img, uint64_t first, uint64_t nr, enum entry_state state)
{
	struct ckpt_req req = { .action = CKPT_RANGE, .vol = VOL_DISK, .first = first, .nr = nr, .state = state };

	return engine_checkpoint(engine_of(img), &req, ERR);
}

/* Of the leaves that the tests write to or drop: their first two units, and their last blocks. */
static uint64_t content_hash(const char *name)
{
	static const uint16_t leaf[] = { 0, 1, 2, 3, 5, 64, 65, 66, 70, 73, 129, 130, 4500 };
	static uint8_t buf[2 * UNIT + 4 * BLOCK];
	struct img *img = inside_open(name, 0);
	uint64_t size = img_size(img), hash = size;

	for (size_t i = 0; i < ARRAY_LEN(leaf); i++) {
		uint64_t off = LEAVES(leaf[i]), tail = off + LEAF_BYTES - 4 * BLOCK;

		memset(buf, 0, sizeof(buf));
		if (off < size)
			assert_ok(img_pread(img, buf, min_u64(2 * UNIT, size - off), off, 0, ERR));
		if (tail + 4 * BLOCK <= size)
			assert_ok(img_pread(img, buf + 2 * UNIT, 4 * BLOCK, tail, 0, ERR));
		hash = hash * 31 + block_csum(buf, sizeof(buf));
	}
	inside_close(img);
	return hash;
}

/* Every kind of node and entry, held by a snapshot and by the head. Left open. */
static struct img *rich(void)
{
	struct img *img = limg_new(DISK);

	inside_fill(img, 0, 3 * BLOCK, 1);
	inside_fill(img, LEAVES(1) - BLOCK, 2 * BLOCK, 2);
	write_unit(img, LEAVES(2), 3);
	write_unit(img, LEAVES(2) + UNIT, 4);
	inside_fill(img, LEAVES(70), BLOCK, 5);
	inside_fill(img, LEAVES(130) - BLOCK, 3 * BLOCK, 6);
	assert_ok(set_range(img, 64, 3, ST_ZERO)); /* some children of a node */
	assert_ok(set_range(img, 5, 1, ST_ZERO));
	assert_ok(img_vmstate_write(img, unit_data, UNIT, 0, ERR));
	assert_ok(img_snapshot_create(img, "S", IMG_SNAPSHOT_VMSTATE, ERR));
	inside_fill(img, BLOCK, BLOCK, 11);
	inside_fill(img, LEAVES(2) + 2 * BLOCK, BLOCK, 12); /* a part of a unit */
	write_unit(img, LEAVES(2) + UNIT, 13);
	inside_fill(img, LEAVES(5) + BLOCK, BLOCK, 14); /* into a hole of zeros */
	inside_fill(img, LEAVES(70), BLOCK, 15);
	return img;
}

/* ---- recovery and its checkpoint, with each failure -------------------------------------------------------------- */

static struct img *opened;
static uint64_t expected;

static void fresh(void *ctx)
{
	(void)ctx;
	inside_copy("base", "a");
}

static int open_writing(void *ctx)
{
	(void)ctx;
	return inside_try("a", IMG_OPEN_WRITE, &opened);
}

static void whole_after(void *ctx, int ret)
{
	(void)ctx;
	(void)ret;
	if (opened)
		(void)img_close(opened, NULL);
	inside_expect_clean("a");
	assert_int_equal(content_hash("a"), expected);
}

static void test_recovery(void **state)
{
	struct inside_failures f = { fresh, open_writing, whole_after, NULL, FAULT_ALL & ~(1u << FAULT_LOCK), false };
	struct img *img = rich();

	(void)state;
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 2 * BLOCK, BLOCK, 21);
	write_unit(img, LEAVES(2), 22);
	inside_fill(img, LEAVES(2) + BLOCK, BLOCK, 24); /* cuts the unit in two */
	inside_fill(img, LEAVES(3), BLOCK, 23);
	inside_fill(img, LEAVES(66), BLOCK, 25);
	assert_ok(img_flush(img, 0, ERR));
	inside_copy("a", "base");
	inside_close(img);
	expected = content_hash("a");
	assert_true(inside_fail_each(&f) > 20);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 20);
}

/* More nodes than go out in one write. */
static void test_many_leaves(void **state)
{
	struct inside_failures f = { fresh, open_writing, whole_after, NULL, 1u << FAULT_WRITE, false };
	struct img *img = limg_new(DISK);

	(void)state;
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 0, BLOCK, 1);
	assert_ok(img_flush(img, 0, ERR));
	for (unsigned i = 0; i < 80; i++)
		inside_fill(img, LEAVES(i), BLOCK, (uint8_t)i);
	assert_ok(img_flush(img, 0, ERR));
	inside_copy("a", "base");
	inside_close(img);
	expected = content_hash("a");
	assert_true(inside_fail_each(&f) > 5);
}

/* ---- ranges, sizes, snapshots with each failure ------------------------------------------------------------------ */

struct change {
	int (*act)(struct img *img);
	uint64_t before, after; /* content */
};

static void fresh_open(void *ctx)
{
	(void)ctx;
	inside_copy("base", "a");
	opened = inside_open("a", IMG_OPEN_WRITE);
}

static int change_act(void *ctx)
{
	struct change *c = ctx;
	int ret;

	error_clear(ERR);
	ret = c->act(opened);
	return ret;
}

static void before_or_after(void *ctx, int ret)
{
	struct change *c = ctx;
	uint64_t now;

	(void)img_close(opened, NULL);
	inside_expect_clean("a");
	now = content_hash("a");
	assert_true(now == c->after || (ret != 0 && now == c->before));
}

static void change_with_failures(int (*act)(struct img *img))
{
	struct change c = { .act = act };
	struct inside_failures f = {
		fresh_open, change_act, before_or_after, &c, FAULT_ALL & ~(1u << FAULT_LOCK), false
	};

	fresh_open(NULL);
	assert_ok(act(opened));
	inside_close(opened);
	c.before = content_hash("base");
	c.after = content_hash("a");
	assert_true(inside_fail_each(&f) > 3);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 3);
}

static int drop_units(struct img *img)
{
	return set_range(img, 2, 1, ST_NONE);
}

static int drop_part(struct img *img)
{
	return set_range(img, 64, 10, ST_NONE);
}

static int drop_all(struct img *img)
{
	return set_range(img, 0, 131, ST_NONE);
}

static int grow(struct img *img)
{
	return img_resize(img, LEAVES(5000), 0, ERR);
}

static int shrink(struct img *img)
{
	return img_resize(img, LEAVES(1) + 3 * BLOCK + 512, IMG_RESIZE_SHRINK, ERR);
}

static int grow_state(struct img *img)
{
	int ret = img_vmstate_write(img, unit_data, BLOCK, LEAVES(70), ERR);

	return ret == 0 ? plain_checkpoint(engine_of(img)) : ret;
}

static int delete_s(struct img *img)
{
	return img_snapshot_delete(img, "S", ERR);
}

static void make_base(void)
{
	struct img *img = rich();

	inside_close(img);
	inside_copy("a", "base");
}

static void test_changes(void **state)
{
	(void)state;
	make_base();
	change_with_failures(drop_units);
	change_with_failures(drop_part);
	change_with_failures(drop_all);
	change_with_failures(grow);
	change_with_failures(shrink);
	change_with_failures(grow_state);
	change_with_failures(delete_s);
}

/* The child of what is deleted has a taller tree, whose lower part is a hole. */
static int grow_and_delete(struct img *img)
{
	int ret = img_snapshot_create(img, "T", 0, ERR);

	if (ret == 0)
		ret = img_resize(img, LEAVES(5000), 0, ERR);
	if (ret == 0)
		ret = set_range(img, 0, 4096, ST_NONE);
	if (ret == 0)
		ret = img_pwrite(img, unit_data, BLOCK, LEAVES(4500), 0, ERR);
	return ret == 0 ? img_snapshot_delete(img, "T", ERR) : ret;
}

static int grow_and_delete_shared(struct img *img)
{
	int ret = img_resize(img, LEAVES(5000), 0, ERR);

	if (ret == 0)
		ret = img_pwrite(img, unit_data, BLOCK, LEAVES(1), 0, ERR);
	if (ret == 0)
		ret = img_snapshot_create(img, "T", 0, ERR);
	return ret == 0 ? img_snapshot_delete(img, "S", ERR) : ret;
}

static void test_taller_children(void **state)
{
	struct img *img;

	(void)state;
	make_base();
	img = inside_open("base", IMG_OPEN_WRITE);
	assert_ok(grow_and_delete(img));
	inside_close(img);
	inside_expect_clean("base");
	inside_teardown(NULL);
	inside_setup(NULL);
	make_base();
	img = inside_open("base", IMG_OPEN_WRITE);
	assert_ok(grow_and_delete_shared(img));
	inside_close(img);
	inside_expect_clean("base");
}

/* The hole lies two levels above the root of what is deleted. */
static void test_much_taller_child(void **state)
{
	struct img *img = limg_new(SMALL_DISK);

	(void)state;
	inside_fill(img, 0, BLOCK, 1);
	assert_ok(img_snapshot_create(img, "S", 0, ERR));
	assert_ok(img_resize(img, LEAVES(5000), 0, ERR));
	assert_ok(set_range(img, 0, 4096, ST_NONE));
	inside_fill(img, LEAVES(4500), BLOCK, 2);
	assert_ok(img_snapshot_delete(img, "S", ERR));
	inside_close(img);
	inside_expect_clean("a");
}

static void test_taller_child_fails(void **state)
{
	struct img *img;

	(void)state;
	make_base();
	img = inside_open("base", IMG_OPEN_WRITE);
	assert_ok(img_resize(img, LEAVES(5000), 0, ERR));
	assert_ok(img_pwrite(img, unit_data, BLOCK, LEAVES(1), 0, ERR));
	inside_close(img);
	change_with_failures(delete_s);
}

/* Ranges that are already as they are to be; a leaf of nothing but some zeros; a hole of zeros in a hole of zeros. */
static void test_holes(void **state)
{
	struct img *img = limg_new(DISK);
	struct engine *e = engine_of(img);
	bool stale;

	(void)state;
	assert_ok(set_range(img, 0, 131, ST_ZERO));
	assert_ok(set_range(img, 64, 64, ST_ZERO));
	inside_fill(img, LEAVES(66), BLOCK, 1);
	inside_fill(img, LEAVES(130), BLOCK, 2); /* the node at the end has children beyond it */
	assert_ok(plain_checkpoint(e));
	assert_ok(set_range(img, 0, 64, ST_NONE));
	assert_ok(overlay_put(e, VOL_DISK, 7, 1, word_make(0, 0, ST_ZERO), NULL, NULL, &stale, ERR));
	assert_ok(plain_checkpoint(e));
	assert_ok(set_range(img, 66, 1, ST_ZERO));
	assert_ok(set_range(img, 128, 3, ST_ZERO));
	inside_close(img);
	inside_expect_clean("a");
}

/* Writes that a shrink overtook: what they took is given back. */
static void test_beyond_the_end(void **state)
{
	struct img *img = limg_new(DISK);
	struct engine *e = engine_of(img);
	uint64_t addr, got, csum = 0, blocks = DISK / BLOCK;
	bool stale;

	(void)state;
	assert_ok(space_alloc_data(e, 1, true, &addr, &got, ERR));
	assert_ok(overlay_put(e, VOL_DISK, blocks, 1, word_make(addr, 0, ST_RAW), &csum, NULL, &stale, ERR));
	assert_ok(overlay_put(e, VOL_DISK, blocks + 1, 1, word_make(0, 0, ST_ZERO), NULL, NULL, &stale, ERR));
	assert_ok(overlay_put(e, VOL_DISK, level_leaves(2) << LEAF_SHIFT, 1, word_make(0, 0, ST_ZERO), NULL, NULL,
			      &stale, ERR));
	assert_ok(plain_checkpoint(e));
	inside_close(img);
	inside_expect_clean("a");
}

/* ---- a map that disagrees with the trees ------------------------------------------------------------------------- */

static struct ptr node_of(struct engine *e, unsigned level, uint64_t index)
{
	struct ptr p = e->sb.disk.root;

	for (unsigned l = e->sb.disk.levels; l > level; l--) {
		struct page *pg;

		assert_ok(tree_page(e, VOL_DISK, l, index >> (FANOUT_SHIFT * (l - level)), &p, &pg, ERR));
		node_child(pg, (unsigned)(index >> (FANOUT_SHIFT * (l - level - 1))) & (FANOUT - 1), &p);
		cache_put(pg);
	}
	return p;
}

static uint64_t place_of(struct engine *e, uint64_t block)
{
	struct leaf_ref leaf;
	struct entry en;

	assert_ok(tree_leaf(e, VOL_DISK, &e->sb.disk.root, e->sb.disk.levels, block >> LEAF_SHIFT, &leaf, ERR));
	assert_non_null(leaf.page);
	leaf_entry(leaf.page, (unsigned)(block & (LEAF_ENTRIES - 1)), &en);
	leaf_put(&leaf);
	return word_addr(en.word);
}

static struct img *plain_image(void)
{
	struct img *img = limg_new(DISK);

	inside_fill(img, 0, 2 * BLOCK, 1);
	inside_fill(img, 9 * BLOCK, BLOCK, 1);
	inside_fill(img, LEAVES(1), BLOCK, 2);
	inside_fill(img, LEAVES(66), BLOCK, 3);
	assert_ok(plain_checkpoint(engine_of(img)));
	return img;
}

/* A checkpoint that meets the lie fails, poisons the handle, and leaves the image as it was. */
static void expect_lie(struct img *img, int ret)
{
	assert_int_equal(ret, IMG_E_CORRUPT);
	assert_non_null(strstr(inside_error.msg, "LIMG-9"));
	assert_int_equal(img_close(img, NULL), IMG_E_POISONED);
	inside_expect_clean("a");
	inside_teardown(NULL);
	inside_setup(NULL);
}

static void test_freed_already(void **state)
{
	struct img *img = plain_image();

	(void)state;
	assert_ok(space_persist_free(engine_of(img), place_of(engine_of(img), 0), 1, ERR));
	inside_fill(img, 0, BLOCK, 9);
	expect_lie(img, plain_checkpoint(engine_of(img)));
	for (unsigned level = 0; level < 3; level++) {
		img = plain_image();
		assert_ok(
			space_persist_free(engine_of(img), word_addr(node_of(engine_of(img), level, 0).word), 1, ERR));
		inside_fill(img, 0, BLOCK, 9);
		expect_lie(img, plain_checkpoint(engine_of(img)));
		img = plain_image();
		assert_ok(
			space_persist_free(engine_of(img), word_addr(node_of(engine_of(img), level, 0).word), 1, ERR));
		expect_lie(img, set_range(img, 0, 1, ST_NONE));
	}
	img = plain_image();
	assert_ok(space_persist_free(engine_of(img), place_of(engine_of(img), 0), 1, ERR));
	expect_lie(img, set_range(img, 0, 64, ST_NONE));
}

static void test_used_already(void **state)
{
	struct img *img = plain_image();
	struct engine *e = engine_of(img);
	uint64_t addr, got, csum = 0;
	bool stale;

	(void)state;
	/* A node's place. */
	inside_fill(img, 0, BLOCK, 9);
	assert_ok(space_persist_use(e, e->space.pool.v[0].addr, 1, ERR));
	expect_lie(img, plain_checkpoint(e));
	/* Data's: at the end of the leaf, and before other data of it. */
	for (unsigned more = 0; more < 2; more++) {
		img = plain_image();
		e = engine_of(img);
		assert_ok(space_alloc_data(e, 1, true, &addr, &got, ERR));
		assert_ok(space_persist_use(e, addr, 1, ERR));
		assert_ok(overlay_put(e, VOL_DISK, 20, 1, word_make(addr, 0, ST_RAW), &csum, NULL, &stale, ERR));
		assert_ok(space_alloc_data(e, 1, true, &addr, &got, ERR)); /* so that the next is no neighbour */
		if (more)
			inside_fill(img, 30 * BLOCK, BLOCK, 9);
		expect_lie(img, plain_checkpoint(e));
	}
}

/* Growing makes a node above the root. */
static void test_used_by_growth(void **state)
{
	struct img *img = plain_image();
	struct engine *e = engine_of(img);

	(void)state;
	assert_ok(space_reserve(e, 0, ERR));
	assert_ok(space_persist_use(e, e->space.pool.v[0].addr, 1, ERR));
	expect_lie(img, img_resize(img, LEAVES(5000), 0, ERR));
}

/* What a deleted snapshot held alone is free already. */
static void test_reclaimed_already(void **state)
{
	struct img *img = plain_image();
	struct engine *e = engine_of(img);
	uint64_t addr = place_of(e, 0);
	int ret;

	(void)state;
	assert_ok(img_snapshot_create(img, "S", 0, ERR));
	inside_fill(img, 0, 2 * BLOCK, 9);
	assert_ok(plain_checkpoint(e));
	assert_ok(space_persist_free(e, addr, 1, ERR));
	ret = img_snapshot_delete(img, "S", ERR);
	expect_lie(img, ret);
}

/* Not even the last reserve has a place for a node. */
static void test_no_place_for_a_node(void **state)
{
	struct img *img = plain_image();
	struct engine *e = engine_of(img);
	uint64_t addr;

	(void)state;
	inside_fill(img, 0, BLOCK, 9);
	inside_plan.free_bytes = 0;
	inside_plan.disk_full_mode = true;
	while (space_pool_take(e, &addr, ERR) == 0)
		;
	assert_int_equal(plain_checkpoint(e), IMG_E_NOSPC);
	inside_plan.disk_full_mode = false;
	assert_int_equal(img_close(img, NULL), IMG_E_POISONED);
	inside_expect_clean("a");
}

/* Neighbours that lie in two groups are two runs. */
static void test_run_across_groups(void **state)
{
	struct img *img = limg_new(SMALL_DISK);
	struct engine *e = engine_of(img);
	uint64_t csum[2] = { 0, 0 }, addr, got;
	uint8_t zeros[2 * BLOCK] = { 0 };
	bool stale;

	(void)state;
	do
		assert_ok(space_alloc(e, GROUP_AUS, 1, &addr, &got, ERR));
	while (e->space.tail <= GROUP_AUS);
	space_free(e, GROUP_AUS - 1, 1);
	assert_ok(space_claim(e, GROUP_AUS - 1, 1, ERR));
	assert_ok(space_claim(e, GROUP_AUS, 1, ERR));
	csum[0] = csum[1] = block_csum(zeros, BLOCK);
	assert_ok(node_pwrite(e->file, zeros, sizeof(zeros), au_off(GROUP_AUS - 1), 0, ERR));
	assert_ok(overlay_put(e, VOL_DISK, 3, 2, word_make(GROUP_AUS - 1, 0, ST_RAW), csum, NULL, &stale, ERR));
	assert_ok(plain_checkpoint(e));
	inside_close(img);
	inside_expect_clean("a");
}

/* ---- reclaiming in steps ----------------------------------------------------------------------------------------- */

static bool step(struct img *img, enum ckpt_action action, uint64_t leaves, bool small)
{
	struct ckpt_req req = { .action = action, .name = "S", .reclaim_leaves = leaves, .reclaim_small = small };

	if (action != CKPT_SNAP_DELETE)
		req.name = NULL;
	assert_ok(engine_checkpoint(engine_of(img), &req, ERR));
	return req.more;
}

/* While the cursor goes through the deleted tree the head changes before and behind it. */
static void reclaim_slowly(bool with_parent, bool through_snapshot)
{
	struct img *img = rich();
	unsigned steps = 0;

	if (with_parent) {
		assert_ok(img_snapshot_rename(img, "S", "P", ERR));
		assert_ok(img_snapshot_create(img, "S", 0, ERR));
		inside_fill(img, LEAVES(0), BLOCK, 27);
		inside_fill(img, LEAVES(2), BLOCK, 28);
	}
	if (through_snapshot)
		assert_ok(img_snapshot_create(img, "T", 0, ERR));
	inside_fill(img, LEAVES(1), BLOCK, 29);
	inside_fill(img, LEAVES(130), BLOCK, 30);
	assert_true(step(img, CKPT_SNAP_DELETE, 0, false));
	while (step(img, CKPT_PLAIN, 1, false)) {
		steps++;
		inside_fill(img, (steps % 3) * BLOCK, BLOCK, (uint8_t)steps);
		write_unit(img, LEAVES(2) + (steps % 2) * UNIT, (uint8_t)steps);
		inside_fill(img, LEAVES(70), BLOCK, (uint8_t)(steps + 50));
		assert_ok(img_vmstate_write(img, unit_data, BLOCK, (steps % 4) * BLOCK, ERR));
		inside_copy("a", "b");
		inside_expect_clean("b");
	}
	assert_true(steps >= 1);
	inside_close(img);
	inside_expect_clean("a");
	inside_teardown(NULL);
	inside_setup(NULL);
}

static void test_reclaim_slowly(void **state)
{
	(void)state;
	reclaim_slowly(false, false);
	reclaim_slowly(false, true);
	reclaim_slowly(true, false);
}

/* One with two children waits; closing goes on with what is left. */
static void test_two_children(void **state)
{
	struct img *img = rich();
	unsigned nr = 0;

	(void)state;
	assert_ok(img_snapshot_create(img, "T", 0, ERR));
	inside_fill(img, LEAVES(2), BLOCK, 40);
	assert_ok(img_snapshot_revert(img, "S", ERR));
	inside_fill(img, LEAVES(3), BLOCK, 41);
	assert_false(step(img, CKPT_SNAP_DELETE, 1000, false));
	for (size_t i = 0; i < engine_of(img)->nr_slots; i++)
		nr += engine_of(img)->snap[i] && engine_of(img)->snap[i]->state == SNAP_DELETED;
	assert_true(nr >= 1);
	inside_close(img);
	inside_expect_clean("a");
	img = inside_open("a", IMG_OPEN_WRITE);
	inside_fill(img, LEAVES(3), BLOCK, 42);
	assert_ok(img_snapshot_delete(img, "T", ERR));
	inside_close(img);
	inside_expect_clean("a");
}

static void test_closing_reclaims(void **state)
{
	struct img *img = rich();

	(void)state;
	inside_fill(img, LEAVES(3), BLOCK, 41);
	assert_ok(img_snapshot_create(img, "T", 0, ERR));
	assert_true(step(img, CKPT_SNAP_DELETE, 0, false));
	inside_copy("a", "b");
	inside_close(img);
	inside_expect_clean("a");
	img = inside_open("a", 0);
	for (size_t i = 0; i < engine_of(img)->nr_slots; i++)
		assert_true(!engine_of(img)->snap[i] || engine_of(img)->snap[i]->state == SNAP_LIVE);
	inside_close(img);
	/* ... unless it fails. */
	img = inside_open("b", IMG_OPEN_WRITE);
	inside_fill(img, LEAVES(3), BLOCK, 41);
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 1, EIO, false);
	assert_int_equal(img_close(img, NULL), IMG_E_IO);
	fault_plan_disarm(&inside_plan);
	inside_expect_clean("b");
}

/* A small step stops when it has touched many pages of the map. */
static void test_small_steps(void **state)
{
	struct img *img = limg_new(DISK);
	struct engine *e = engine_of(img);
	unsigned steps = 1;

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		uint64_t addr, got;

		inside_fill(img, LEAVES(i), BLOCK, (uint8_t)i);
		assert_ok(plain_checkpoint(e));
		space_streams_release(e);
		space_pool_release(e);
		while (e->space.tail / GROUP_AUS <= i)
			assert_ok(space_alloc(e, GROUP_AUS, 1, &addr, &got, ERR));
	}
	assert_ok(img_snapshot_create(img, "S", 0, ERR));
	assert_ok(set_range(img, 0, 130, ST_NONE));
	if (step(img, CKPT_SNAP_DELETE, 1000, true)) {
		steps++;
		while (step(img, CKPT_PLAIN, 1000, true))
			steps++;
	}
	assert_true(steps > 1);
	inside_close(img);
	inside_expect_clean("a");
}

/* A child whose tree is lower than that of its ancestor is damage. */
static void test_lower_child(void **state)
{
	struct img *img = rich();
	struct engine *e = engine_of(img);

	(void)state;
	assert_ok(img_snapshot_create(img, "T", 0, ERR));
	catalog_find(e, "T")->disk.levels = 0;
	assert_fails(img_snapshot_delete(img, "S", ERR), IMG_E_CORRUPT, "LIMG-13");
	assert_int_equal(img_close(img, NULL), IMG_E_POISONED);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_recovery),
		T(test_many_leaves),
		T(test_changes),
		T(test_taller_children),
		T(test_taller_child_fails),
		T(test_holes),
		T(test_beyond_the_end),
		T(test_freed_already),
		T(test_used_already),
		T(test_run_across_groups),
		T(test_reclaim_slowly),
		T(test_two_children),
		T(test_closing_reclaims),
		T(test_small_steps),
		T(test_lower_child),
		T(test_much_taller_child),
		T(test_used_by_growth),
		T(test_reclaimed_already),
		T(test_no_place_for_a_node),
	};

	return cmocka_run_group_tests_name("inside-limg-merge", tests, NULL, NULL);
}
