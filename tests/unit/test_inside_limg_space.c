/* SPDX-License-Identifier: MIT */
/*
 * limg's free space: allocation at the edges of groups and of the file, a disk without room, and pages of the map that
 * are wrong under a right checksum.
 */
#include "limg_inside.h"

#include <xxhash.h>

#define DISK (4 * MIB)

/* ---- a space without an image around it -------------------------------------------------------------------------- */

static struct engine *bare(void)
{
	struct engine *e = calloc(1, sizeof(*e));
	struct node *file;

	assert_non_null(e);
	assert_ok(mem_node_new("f", &file, ERR));
	assert_ok(fault_node_new(file, &inside_plan, &e->file, ERR));
	e->writable = true;
	e->block_bytes = BLOCK;
	e->block_shift = 12;
	e->block_aus = 1;
	space_locks_init(e);
	assert_ok(space_init_new(e, ERR));
	return e;
}

static void bare_free(struct engine *e)
{
	space_destroy(e);
	node_close(e->file, NULL);
	free(e);
}

static uint64_t take(struct engine *e, uint64_t want, uint64_t min, uint64_t expect)
{
	uint64_t addr = 0, got = 0;

	assert_ok(space_alloc(e, want, min, &addr, &got, ERR));
	assert_int_equal(got, expect);
	for (uint64_t i = 0; i < got; i++)
		assert_false(space_fixed(addr + i));
	return addr;
}

/* The last reserve and the second superblock are never inside what is handed out. */
static void test_new_file(void **state)
{
	struct engine *e = bare();

	(void)state;
	assert_int_equal(take(e, 60, 60, 60), 10);
	assert_int_equal(take(e, 64, 1, 58), 70); /* up to the reserve */
	assert_int_equal(take(e, 10, 10, 10), MIN_FILE_AUS);
	bare_free(e);
	e = bare();
	assert_int_equal(take(e, 200, 200, 200), MIN_FILE_AUS);
	bare_free(e);
}

static void test_groups(void **state)
{
	struct engine *e = bare();
	uint64_t addr, g1;

	(void)state;
	take(e, 30000, 30000, 30000);
	/* What does not fit into the rest of a group goes into the next; the rest is searched when enough is free. */
	g1 = take(e, 30000, 30000, 30000);
	assert_int_equal(g1 / GROUP_AUS, 1);
	addr = take(e, 2000, 2000, 2000);
	assert_int_equal(addr, MIN_FILE_AUS + 30000);
	/* Whole groups that are too full are not looked at; from the second on there is no last reserve. */
	space_free(e, g1, 28000);
	assert_int_equal(take(e, 27000, 27000, 27000) / GROUP_AUS, 1);
	space_free(e, MIN_FILE_AUS, 30000);
	assert_int_equal(take(e, 25000, 25000, 25000) / GROUP_AUS, 0);
	for (unsigned i = 0; i < 40; i++) {
		uint64_t got;

		assert_ok(space_alloc(e, 1500, 700, &addr, &got, ERR));
	}
	bare_free(e);
}

/* A search that starts before the reserve stops there. */
static void test_search_before_the_reserve(void **state)
{
	struct engine *e = bare();
	uint64_t addr;

	(void)state;
	take(e, 118, 118, 118);
	take(e, 2000, 2000, 2000);
	space_free(e, 10, 118);
	space_free(e, MIN_FILE_AUS, 2000);
	e->space.cursor = 20;
	addr = take(e, 200, 50, 108);
	assert_int_equal(addr, 20);
	e->space.cursor = 5;
	assert_int_equal(take(e, 200, 50, 200), MIN_FILE_AUS); /* what is free before the reserve is too short */
	bare_free(e);
}

/* A group below the end whose bitmap cannot be read. */
static void test_search_fails(void **state)
{
	struct engine *e = bare();
	struct group *g = &e->space.group[0];
	uint64_t addr, got;

	(void)state;
	take(e, 118, 118, 118);
	take(e, 2000, 2000, 2000);
	space_free(e, MIN_FILE_AUS, 2000);
	free(g->persist);
	free(g->alloc);
	g->persist = g->alloc = NULL;
	g->loaded = false;
	g->present = true;
	assert_fails(space_alloc(e, 10, 10, &addr, &got, ERR), IMG_E_CORRUPT, "checksum");
	bare_free(e);
}

static void test_outside(void **state)
{
	struct engine *e = bare();

	(void)state;
	assert_fails(space_persist_use(e, GROUP_AUS - 1, 2, ERR), IMG_E_CORRUPT, "LIMG-3");
	assert_fails(space_persist_free(e, 9 * GROUP_AUS, 1, ERR), IMG_E_CORRUPT, "LIMG-3");
	assert_ok(space_persist_use(e, 300, 2, ERR));
	assert_fails(space_persist_use(e, 301, 1, ERR), IMG_E_CORRUPT, "handed out again");
	assert_fails(space_persist_free(e, 301, 2, ERR), IMG_E_CORRUPT, "freed again");
	assert_ok(space_persist_free(e, 300, 2, ERR));
	bare_free(e);
}

/* What recovered records name: perhaps behind the end that the superblock knows. */
static void test_claim(void **state)
{
	struct engine *e = bare();
	uint64_t tail = e->space.tail;

	(void)state;
	assert_ok(space_claim(e, tail + 5, 3, ERR));
	assert_int_equal(e->space.tail, tail + 8);
	assert_ok(space_claim(e, tail + 2, 1, ERR));
	assert_fails(space_claim(e, tail + 6, 3, ERR), IMG_E_CORRUPT, "LIMG-9");
	assert_fails(space_claim(e, GROUP_AUS - 1, 2, ERR), IMG_E_CORRUPT, "LIMG-3");
	alloc_fault_arm(1, false);
	assert_int_equal(space_claim(e, 100 * GROUP_AUS, 1, ERR), IMG_E_NOMEM);
	alloc_fault_disarm();
	bare_free(e);
}

/* More single blocks than a stream keeps for reuse. */
static void test_recycle(void **state)
{
	struct engine *e = bare();
	uint64_t addr[300], got;

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(addr); i++)
		assert_ok(space_alloc_data(e, 1, true, &addr[i], &got, ERR));
	for (unsigned i = 0; i < ARRAY_LEN(addr); i++)
		space_free_data(e, addr[i], 1);
	assert_ok(space_alloc_data(e, 1, true, &addr[0], &got, ERR));
	assert_int_equal(addr[0], addr[255]);
	space_streams_release(e);
	bare_free(e);
}

/* A file that could not grow gave nobody anything: the stream that asked begins anew. */
static void test_stream_after_a_failed_growth(void **state)
{
	struct engine *e = bare();
	uint64_t addr, got, next;

	(void)state;
	while (e->space.tail < e->space.file_aus)
		assert_ok(space_alloc(e, e->space.file_aus - e->space.tail, 1, &addr, &got, ERR));
	fault_plan_arm(&inside_plan, 1u << FAULT_RESIZE, 1, EIO, false);
	assert_int_equal(space_alloc_data(e, 1, true, &addr, &got, ERR), IMG_E_IO);
	fault_plan_disarm(&inside_plan);
	assert_ok(space_alloc_data(e, 1, true, &addr, &got, ERR));
	assert_true(addr + got <= e->space.tail);
	next = take(e, 64, 64, 64);
	assert_true(next >= addr + got || next + 64 <= addr);
	space_streams_release(e);
	bare_free(e);
}

/* Blocks of several AUs: what is left at the end of a group is no whole block. */
static void test_rests_of_blocks(void **state)
{
	struct engine *e = bare();
	uint64_t addr, got, free_below;

	(void)state;
	e->block_bytes = 4 * AU_BYTES;
	e->block_aus = 4;
	take(e, 118, 118, 118);
	take(e, GROUP_AUS, 1, GROUP_AUS - MIN_FILE_AUS);
	take(e, GROUP_AUS - 4 - 6, GROUP_AUS - 4 - 6, GROUP_AUS - 4 - 6);
	free_below = e->space.free_below;
	assert_ok(space_alloc_data(e, 64, false, &addr, &got, ERR));
	assert_int_equal(got, 4);
	assert_int_equal(e->space.free_below, free_below + 2);
	take(e, GROUP_AUS - 4 - 6, GROUP_AUS - 4 - 6, GROUP_AUS - 4 - 6);
	assert_ok(space_alloc_data(e, 4, true, &addr, &got, ERR)); /* a stream of six */
	assert_ok(space_alloc_data(e, 4, true, &addr, &got, ERR));
	assert_int_equal(addr / GROUP_AUS, 3);
	space_streams_release(e);
	bare_free(e);
}

/* The host is full, and what can be given back to it makes no room. */
static void test_punching_does_not_help(void **state)
{
	struct engine *e = bare();
	uint64_t addr = take(e, 118, 118, 118);

	(void)state;
	take(e, 100, 100, 100);
	space_free(e, addr + 20, 50);
	inside_plan.disk_full_mode = true;
	inside_plan.free_bytes = 0;
	assert_ok(space_pool_take(e, &addr, ERR));
	assert_true(addr >= 128 && addr < 192);
	/* ... or cannot be given back. */
	fault_plan_arm(&inside_plan, 1u << FAULT_DISCARD, 1, EIO, true);
	assert_ok(space_pool_take(e, &addr, ERR));
	assert_true(addr >= 128 && addr < 192);
	fault_plan_disarm(&inside_plan);
	/* Group 0 cannot be looked at then. */
	free(e->space.group[0].persist);
	free(e->space.group[0].alloc);
	free(e->space.group[0].touched);
	e->space.group[0].touched = NULL;
	e->space.group[0].persist = e->space.group[0].alloc = NULL;
	e->space.group[0].loaded = false;
	e->space.group[0].present = true;
	e->space.tail = GROUP_AUS + 100;
	assert_ok(space_groups_room(e, 2, ERR));
	assert_ok(space_group_load(e, 1, ERR));
	e->space.free_below = 0;
	assert_fails(space_pool_take(e, &addr, ERR), IMG_E_CORRUPT, "checksum");
	inside_plan.disk_full_mode = false;
	fault_plan_arm(&inside_plan, 1u << FAULT_RESIZE | 1u << FAULT_ALLOCATE, 1, EIO, true);
	assert_int_equal(space_pool_take(e, &addr, NULL), IMG_E_IO);
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 1, EIO, true);
	assert_int_equal(space_write_data(e, &addr, 8, 300, NULL), IMG_E_IO);
	fault_plan_disarm(&inside_plan);
	bare_free(e);
}

/* ---- failures ---------------------------------------------------------------------------------------------------- */

struct attempt {
	struct engine *e;
	int (*what)(struct engine *e);
};

static void attempt_begin(void *ctx)
{
	struct attempt *a = ctx;

	a->e = bare();
	take(a->e, 32000, 32000, 32000);
}

static int attempt_act(void *ctx)
{
	struct attempt *a = ctx;

	return a->what(a->e);
}

static void attempt_end(void *ctx, int ret)
{
	struct attempt *a = ctx;
	uint64_t addr, got;

	(void)ret;
	/* It works on. */
	assert_ok(space_alloc(a->e, 1000, 1000, &addr, &got, ERR));
	assert_ok(space_alloc_data(a->e, 3, false, &addr, &got, ERR));
	space_streams_release(a->e);
	bare_free(a->e);
}

static int next_group(struct engine *e)
{
	uint64_t addr, got;

	return space_alloc(e, 2000, 2000, &addr, &got, ERR);
}

static int some_data(struct engine *e)
{
	uint64_t addr, got;
	int rc = space_alloc_data(e, 1, true, &addr, &got, ERR);

	if (!rc)
		rc = space_alloc_data(e, 700, false, &addr, &got, ERR);
	return rc ? rc : space_alloc_data(e, 70, true, &addr, &got, ERR);
}

static int some_pool(struct engine *e)
{
	uint64_t addr, gap, got;
	int rc = space_reserve(e, 30, ERR);

	/* Two that are neighbours, and more that are not than the list has room for at first. */
	if (!rc)
		rc = space_reserve(e, 100, ERR);
	for (unsigned i = 2; !rc && i < 16; i++) {
		rc = space_alloc(e, 3, 3, &gap, &got, ERR);
		if (!rc)
			rc = space_reserve(e, 100 * i, ERR);
	}
	for (unsigned i = 0; !rc && i < 2000; i++)
		rc = space_pool_take(e, &addr, ERR);
	space_pool_release(e);
	return rc;
}

static void fail_each(int (*what)(struct engine *e), unsigned least)
{
	struct attempt a = { .what = what };
	struct inside_failures f = { attempt_begin, attempt_act, attempt_end, &a, FAULT_ALL, false };

	unsigned nr = inside_fail_each(&f);

	f.memory = true;
	assert_true(nr + inside_fail_each(&f) >= least);
}

static void test_failures(void **state)
{
	(void)state;
	fail_each(next_group, 4);
	fail_each(some_data, 1);
	fail_each(some_pool, 3);
}

/* Out of room: what is reserved, then the last reserve, then nothing. */
static void test_full_disk(void **state)
{
	struct engine *e = bare();
	uint64_t addr, nr = 0;
	int rc;

	(void)state;
	take(e, 118, 118, 118);
	inside_plan.disk_full_mode = true;
	inside_plan.free_bytes = 10 * AU_BYTES;
	while ((rc = space_pool_take(e, &addr, ERR)) == 0)
		nr++;
	assert_int_equal(rc, IMG_E_NOSPC);
	assert_true(nr >= 64 && nr < 64 + 12);
	assert_int_equal(space_pool_take(e, &addr, NULL), IMG_E_NOSPC);
	inside_plan.disk_full_mode = false;
	bare_free(e);
}

/* ---- pages of the map -------------------------------------------------------------------------------------------- */

struct map {
	struct super sb;
	uint8_t page[SPACE_LEVELS][AU_BYTES]; /* of group 0 */
	uint64_t at[SPACE_LEVELS];
};

static struct disk_space_entry *entry_of(struct map *m, unsigned level, unsigned i)
{
	return &((struct disk_space_entry *)(void *)m->page[level])[i];
}

static void map_read(struct map *m)
{
	const struct disk_space_entry *d = &m->sb.space;
	struct super sb;
	uint8_t page[AU_BYTES];

	memset(m, 0, sizeof(*m));
	for (unsigned i = 0; i < 2; i++) {
		inside_read("a", page, AU_BYTES, au_off(i));
		if (super_decode(page, &sb, NULL) == 0 && sb.generation > m->sb.generation)
			m->sb = sb;
	}
	for (unsigned l = SPACE_LEVELS; l-- > 0;) {
		m->at[l] = au_off(space_page_au(l, 0, d->version));
		inside_read("a", m->page[l], AU_BYTES, m->at[l]);
		d = entry_of(m, l, 0);
	}
}

/* Writes the pages with right checksums from this level up. */
static void map_write(struct map *m, unsigned level)
{
	struct engine *e = calloc(1, sizeof(*e));
	uint8_t page[AU_BYTES];

	assert_non_null(e);
	memcpy(e->uuid, m->sb.uuid, 16);
	for (unsigned l = level; l < SPACE_LEVELS; l++) {
		struct disk_space_entry *above = l + 1 < SPACE_LEVELS ? entry_of(m, l + 1, 0) : &m->sb.space;

		inside_write("a", m->page[l], AU_BYTES, m->at[l]);
		above->csum = le64_of(XXH3_64bits_withSeed(m->page[l], AU_BYTES, page_identity(e, KIND_SPACE, l, 0)));
	}
	super_encode(&m->sb, page);
	inside_write("a", page, AU_BYTES, au_off(super_slot_au(0, m->sb.generation)));
	inside_write("a", page, AU_BYTES, au_off(super_slot_au(1, m->sb.generation)));
	free(e);
}

static void make_map(struct map *m)
{
	struct img *img = limg_new(DISK);

	inside_fill(img, 0, 40 * BLOCK, 1);
	inside_close(img);
	map_read(m);
	assert_int_equal(entry_of(m, 1, 0)->flags, SPACE_PRESENT);
}

/* Opened for writing it reads, and refuses changes; a repair makes it right. */
static void expect_bad(const char *words)
{
	struct img_check_result result;
	struct img *img = inside_open("a", IMG_OPEN_WRITE);
	uint8_t buf[BLOCK];

	assert_true(engine_of(img)->space_bad);
	if (!strstr(engine_of(img)->space_cause.msg, words))
		fail_msg("%s: not %s", engine_of(img)->space_cause.msg, words);
	assert_ok(img_pread(img, buf, BLOCK, 0, 0, ERR));
	assert_fails(img_pwrite(img, buf, BLOCK, 0, 0, ERR), IMG_E_CORRUPT, "imgtool check --repair");
	assert_ok(img_check(img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, ERR));
	inside_close(img);
	inside_expect_clean("a");
	inside_teardown(NULL);
	inside_setup(NULL);
}

static void bad_entry(unsigned level, unsigned i, const struct disk_space_entry *d, const char *words)
{
	struct map m;

	make_map(&m);
	*entry_of(&m, level, i) = *d;
	map_write(&m, level);
	expect_bad(words);
}

static void test_bad_entries(void **state)
{
	const struct disk_space_entry list[] = {
		{ .csum = le64_of(1), .flags = 3 },
		{ .csum = le64_of(1), .flags = 0 },
		{ .flags = SPACE_PRESENT, .version = 2 },
		{ .flags = SPACE_PRESENT, .zero = { 1, 0 } },
		{ .flags = SPACE_PRESENT, .zero = { 0, 1 } },
		{ .flags = SPACE_PRESENT, .free = le32_of(GROUP_AUS + 1) },
	};
	const struct disk_space_entry present = { .flags = SPACE_PRESENT },
				      counts = { .flags = SPACE_PRESENT, .free = le32_of(1) };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(list); i++)
		bad_entry(1, 0, &list[i], "not sound");
	bad_entry(2, 0, &counts, "not sound");
	bad_entry(3, 0, &counts, "not sound");
	for (unsigned l = 1; l < SPACE_LEVELS; l++)
		bad_entry(l, 5, &present, "beyond the file");
}

static void test_bad_root(void **state)
{
	struct map m;

	(void)state;
	make_map(&m);
	m.sb.space.zero[0] = 1;
	map_write(&m, SPACE_LEVELS);
	expect_bad("not sound");
}

static void test_wrong_sum(void **state)
{
	struct map m;

	(void)state;
	make_map(&m);
	m.sb.used_aus++;
	map_write(&m, SPACE_LEVELS);
	expect_bad("units in use");
}

/* Beyond what the superblock calls the end: space that would be handed out unseen. */
static void test_used_beyond_the_end(void **state)
{
	struct map m;

	(void)state;
	make_map(&m);
	m.page[0][4000] |= 1;
	entry_of(&m, 1, 0)->free = le32_of(le32_get(entry_of(&m, 1, 0)->free) - 1);
	m.sb.used_aus++;
	map_write(&m, 0);
	expect_bad("beyond");
}

/* The bitmap itself is looked at when it is needed first: that fails, and nothing else. */
static void expect_bad_later(void)
{
	struct img_check_result result;
	struct img *img = inside_open("a", IMG_OPEN_WRITE);
	uint8_t buf[BLOCK] = { 1 };
	int ret = img_pwrite(img, buf, BLOCK, 0, 0, ERR);

	if (ret == 0)
		ret = img_flush(img, 0, ERR);
	assert_int_equal(ret, IMG_E_CORRUPT);
	(void)img_close(img, NULL);
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_ok(img_check(img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, ERR));
	inside_close(img);
	inside_expect_clean("a");
	inside_teardown(NULL);
	inside_setup(NULL);
}

static void test_bad_bitmap(void **state)
{
	struct map m;

	(void)state;
	make_map(&m); /* a fixed AU is free, another one is not */
	m.page[0][0] &= (uint8_t)~4u;
	m.page[0][4000] |= 1;
	map_write(&m, 0);
	expect_bad_later();
	make_map(&m); /* one more in use than the table says */
	m.page[0][4000] |= 1;
	map_write(&m, 0);
	expect_bad_later();
	make_map(&m); /* a table that says that there is no room at all */
	m.sb.used_aus = GROUP_AUS;
	entry_of(&m, 1, 0)->free = le32_of(0);
	map_write(&m, 1);
	expect_bad_later();
}

static void test_page_beyond_the_end(void **state)
{
	struct img *img = limg_new(DISK);
	uint8_t page[AU_BYTES];

	(void)state;
	assert_fails(space_page_read(engine_of(img), 0, 9, 0, 0, page, ERR), IMG_E_CORRUPT, "LIMG-3");
	inside_close(img);
}

/* ---- large files ------------------------------------------------------------------------------------------------- */

/* Moves the end of what is in use to another group, and holds what lies between. */
static void skip_to_group(struct engine *e, uint64_t group)
{
	uint64_t addr, got;

	space_streams_release(e);
	space_pool_release(e);
	while (e->space.free_below >= 200 + e->space.tail / 256) /* so little is not searched */
		assert_ok(space_alloc(e, 1, 1, &addr, &got, ERR));
	while (e->space.tail / GROUP_AUS < group)
		assert_ok(space_alloc(e, GROUP_AUS, 1, &addr, &got, ERR));
}

static void test_last_group_goes(void **state)
{
	struct img *img = limg_new(DISK);
	struct engine *e = engine_of(img);

	(void)state;
	inside_fill(img, 0, BLOCK, 1);
	skip_to_group(e, 3);
	inside_fill(img, BLOCK, BLOCK, 2);
	assert_ok(plain_checkpoint(e));
	assert_true(e->sb.nr_groups >= 3);
	assert_ok(img_zero(img, BLOCK, BLOCK, 0, ERR));
	inside_close(img);
	inside_expect_clean("a");
}

static struct img *shrinking;

static void open_three_groups(void *ctx)
{
	(void)ctx;
	inside_copy("three", "a");
	shrinking = inside_open("a", IMG_OPEN_WRITE);
}

static int drop_last_group(void *ctx)
{
	int ret = img_zero(shrinking, BLOCK, 2 * MIB, 0, ERR);

	(void)ctx;
	return ret ? ret : plain_checkpoint(engine_of(shrinking));
}

static void still_clean(void *ctx, int ret)
{
	(void)ctx;
	(void)ret;
	(void)img_close(shrinking, NULL);
	inside_expect_clean("a");
}

/* What was the last but one group is looked at then: perhaps it cannot be read. */
static void test_last_group_goes_not(void **state)
{
	struct inside_failures f = { open_three_groups, drop_last_group, still_clean, NULL, 1u << FAULT_READ, false };
	struct img *img = limg_new(DISK);

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		inside_fill(img, i * MIB, BLOCK, (uint8_t)i);
		assert_ok(plain_checkpoint(engine_of(img)));
		skip_to_group(engine_of(img), i + 1);
	}
	inside_close(img);
	inside_copy("a", "three");
	assert_true(inside_fail_each(&f) > 0);
}

/* Tables of the map that come, and go again. */
static void test_many_groups(void **state)
{
	struct img *img = limg_new(DISK);
	struct engine *e = engine_of(img);

	(void)state;
	inside_fill(img, 0, BLOCK, 1);
	skip_to_group(e, 2 * SPACE_FANOUT + 2);
	inside_fill(img, BLOCK, BLOCK, 2);
	assert_ok(plain_checkpoint(e));
	assert_true(e->sb.nr_groups > 2 * SPACE_FANOUT);
	inside_copy("a", "b");
	assert_ok(img_zero(img, BLOCK, BLOCK, 0, ERR));
	inside_close(img);
	inside_expect_clean("a");
	inside_expect_clean("b");
	img = inside_open("b", IMG_OPEN_WRITE);
	inside_fill(img, BLOCK, BLOCK, 3);
	assert_ok(img_zero(img, BLOCK, BLOCK, 0, ERR));
	inside_close(img);
	inside_expect_clean("b");
}

/* ---- rebuilding -------------------------------------------------------------------------------------------------- */

static struct img *repaired;

static void damage(void *ctx)
{
	inside_copy("bad", "a");
	repaired = inside_open("a", IMG_OPEN_WRITE);
	assert_true(engine_of(repaired)->space_bad);
	(void)ctx;
}

static int repair(void *ctx)
{
	struct img_check_result *result = ctx;

	return img_check(repaired, IMG_CHECK_REPAIR, NULL, NULL, NULL, result, ERR);
}

/* What cannot be read is damage, and then nothing is repaired. */
static void after_repair(void *ctx, int ret)
{
	struct img_check_result *result = ctx;

	(void)img_close(repaired, NULL);
	if (ret == 0 && result->damage == 0)
		inside_expect_clean("a");
}

/* A map that loads, and counts too much: when its repair fails half way, the handle must not go on with what there is
 * of it. */
static void leaky(void *ctx)
{
	(void)ctx;
	inside_copy("bad", "a");
	repaired = inside_open("a", IMG_OPEN_WRITE);
	assert_false(engine_of(repaired)->space_bad);
	inside_fill(repaired, 3 * MIB, BLOCK, 9);
	assert_ok(img_flush(repaired, 0, ERR));
}

static void go_on(void *ctx, int ret)
{
	static uint8_t before[40 * BLOCK], now[40 * BLOCK];
	const struct img_check_result *repair_said = ctx;
	struct img_check_result result;
	struct img *img;

	assert_ok(img_pread(repaired, before, sizeof(before), 0, 0, ERR));
	memset(now, 0xa5, sizeof(now));
	if (img_pwrite(repaired, now, sizeof(now), MIB, 0, ERR) == 0)
		(void)img_flush(repaired, 0, ERR);
	else
		assert_true(ret != 0 || repair_said->damage > 0);
	(void)img_close(repaired, NULL);
	img = inside_open("a", 0);
	assert_ok(img_pread(img, now, sizeof(now), 0, 0, ERR));
	assert_memory_equal(now, before, sizeof(now));
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage, 0);
	inside_close(img);
}

static void test_repair_of_a_leak_fails(void **state)
{
	struct img_check_result result;
	struct inside_failures f = { leaky, repair, go_on, &result, FAULT_ALL, false };
	struct img *img = limg_new(DISK);
	struct map m;

	(void)state;
	inside_fill(img, 0, 40 * BLOCK, 1);
	assert_ok(plain_checkpoint(engine_of(img)));
	skip_to_group(engine_of(img), 2);
	inside_fill(img, 2 * MIB, BLOCK, 2);
	inside_close(img);
	map_read(&m);
	assert_true(m.sb.nr_groups >= 2);
	assert_int_equal(m.page[0][16] & 4, 0);
	m.page[0][16] |= 4; /* of the last reserve */
	entry_of(&m, 1, 0)->free = le32_of(le32_get(entry_of(&m, 1, 0)->free) - 1);
	m.sb.used_aus++;
	map_write(&m, 0);
	inside_copy("a", "bad");
	assert_true(inside_fail_each(&f) > 5);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 5);
}

/* Groups that this session added, and a map that says that everything is in use. */
static void test_rebuild(void **state)
{
	struct img *img = limg_new(DISK);
	struct engine *e = engine_of(img);
	uint8_t used[AU_BYTES];

	(void)state;
	inside_fill(img, 0, BLOCK, 1);
	assert_ok(plain_checkpoint(e));
	skip_to_group(e, 2);
	assert_int_equal(e->sb.nr_groups, 1);
	memcpy(used, e->space.group[0].persist, AU_BYTES);
	assert_ok(space_rebuild(e, used, ERR));
	assert_ok(plain_checkpoint(e));
	inside_close(img);
	inside_expect_clean("a");
	img = inside_open("a", IMG_OPEN_WRITE);
	e = engine_of(img);
	memset(used, 0xff, AU_BYTES);
	assert_ok(space_rebuild(e, used, ERR));
	assert_int_equal(e->space.free_below, 0);
	engine_poison(e, ERR);
	assert_int_equal(img_close(img, NULL), IMG_E_POISONED);
}

static void test_repair_fails(void **state)
{
	struct img_check_result result;
	struct inside_failures f = { damage, repair, after_repair, &result, FAULT_ALL, false };
	struct map m;

	(void)state;
	make_map(&m);
	m.sb.used_aus++;
	map_write(&m, SPACE_LEVELS);
	inside_copy("a", "bad");
	assert_true(inside_fail_each(&f) > 5);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 5);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_new_file),
		T(test_groups),
		T(test_search_before_the_reserve),
		T(test_search_fails),
		T(test_outside),
		T(test_claim),
		T(test_recycle),
		T(test_stream_after_a_failed_growth),
		T(test_failures),
		T(test_full_disk),
		T(test_bad_entries),
		T(test_bad_root),
		T(test_wrong_sum),
		T(test_used_beyond_the_end),
		T(test_bad_bitmap),
		T(test_page_beyond_the_end),
		T(test_last_group_goes),
		T(test_last_group_goes_not),
		T(test_many_groups),
		T(test_repair_fails),
		T(test_rests_of_blocks),
		T(test_punching_does_not_help),
		T(test_rebuild),
		T(test_repair_of_a_leak_fails),
	};

	return cmocka_run_group_tests_name("inside-limg-space", tests, NULL, NULL);
}
