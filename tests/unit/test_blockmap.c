/* SPDX-License-Identifier: MIT */
/*
 * The block engine under formats that do not exist: what VDI and VHD use of it their own tests see, this one also sees
 * what others will need. A flat table; one in pages that are found through a directory and come into being one by one,
 * with other things between the entries; bitmaps over a backing. Random requests against a flat array, opened again and
 * again, with a cache of a few pages.
 */
#include "blockmap.h"
#include "disk_int.h"
#include "mem.h"
#include "mock.h"

#define BLOCK	  4096u
#define NR_BLOCKS 200u
#define DISK	  (NR_BLOCKS * BLOCK - 512u)
#define PAGE	  64u /* bytes: 8 entries */
#define NR_SLOTS  (NR_BLOCKS + NR_BLOCKS / 7 + 1)
#define TABLE_OFF 4096u
#define DATA_OFF  65536u
#define SECTORS	  (BLOCK / 512)

enum kind { FLAT, PAGED, BITMAPS, FULL_BITMAPS, NR_KINDS };

struct toy {
	enum kind kind;
	struct blockmap_shape shape;
	uint64_t directory[NR_SLOTS / (PAGE / 8) + 1]; /* PAGED: where pages are */
	unsigned nr_begin, nr_settle, nr_store;
	uint64_t settled;
};

static uint64_t toy_random;
static uint64_t below(uint64_t limit)
{
	toy_random = toy_random * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (toy_random >> 33) % limit;
}

/* An entry is state + offset; 0 is free. */
static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	struct le64 d;
	uint64_t v;

	(void)bm;
	(void)block;
	memcpy(&d, raw, sizeof(d));
	v = le64_get(d);
	if ((v & 511) > BLOCKMAP_PARTIAL)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, "toy", "bits 0x%x", (unsigned)(v & 511));
	*out = (struct blockmap_entry){ .state = (enum blockmap_state)(v & 511), .off = v & ~UINT64_C(511) };
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *e)
{
	bool placed = e->state == BLOCKMAP_DATA || e->state == BLOCKMAP_PARTIAL;
	struct le64 d = le64_of(placed ? e->off | e->state : (uint64_t)e->state);

	(void)bm;
	(void)block;
	memcpy(raw, &d, sizeof(d));
}

/* After every seventh entry comes one of something else. */
static uint64_t slot(const struct blockmap *bm, uint64_t block)
{
	(void)bm;
	return block + block / 7;
}

static int locate(struct blockmap *bm, uint64_t page, bool make, uint64_t *off, struct img_error *err)
{
	struct toy *t = blockmap_format(bm);
	uint8_t empty[PAGE] = { 0 };
	int ret = 0;

	if (make && t->directory[page] == 0) {
		t->directory[page] = (blockmap_end(bm) + 511) / 512 * 512;
		blockmap_set_end(bm, t->directory[page] + 512);
		ret = node_pwrite(blockmap_node(bm)->file, empty, PAGE, t->directory[page], 0, err);
	}
	*off = t->directory[page];
	return ret;
}

static int begin(struct blockmap *bm, struct img_error *err)
{
	(void)err;
	((struct toy *)blockmap_format(bm))->nr_begin++;
	return 0;
}

static int settle(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	struct toy *t = blockmap_format(bm);

	(void)err;
	t->nr_settle++;
	t->settled = end;
	return 0;
}

static int store(struct blockmap *bm, const struct blockmap_write *writes, size_t nr, struct img_error *err)
{
	struct toy *t = blockmap_format(bm);
	int ret = 0;

	t->nr_store++;
	for (size_t i = 0; i < nr && ret == 0; i++)
		ret = node_pwrite(blockmap_node(bm)->file, writes[i].buf, writes[i].bytes, writes[i].off, 0, err);
	return ret;
}

static const struct blockmap_ops flat_ops = { .decode = decode, .encode = encode, .begin = begin, .settle = settle };
static const struct blockmap_ops paged_ops = { .decode = decode,
					       .encode = encode,
					       .slot = slot,
					       .locate = locate,
					       .begin = begin,
					       .settle = settle,
					       .store = store };

static const struct img_driver toy_driver = { .name = "toy", .kind = DRIVER_FORMAT };

struct rig {
	struct toy toy;
	struct node *node;
	struct blockmap *bm;
	uint8_t *flat, *buf;
};

static void reopen(struct rig *r)
{
	struct driver_open args = { .writable = true, .cache_bytes = 1 };

	if (r->bm) {
		assert_int_equal(blockmap_flush(r->bm, NULL), 0);
		r->toy.shape.end_off = blockmap_end(r->bm);
		blockmap_free(r->bm);
	}
	assert_int_equal(blockmap_open(r->node, &r->toy.shape, r->toy.kind == PAGED ? &paged_ops : &flat_ops, &r->toy,
				       &args, &r->bm, NULL),
			 0);
}

static void start(struct rig *r, enum kind kind)
{
	static uint8_t below_disk[DISK / 2];

	memset(r, 0, sizeof(*r));
	r->toy.kind = kind;
	r->toy.shape = (struct blockmap_shape){ .disk_bytes = DISK,
						.block_bytes = BLOCK,
						.nr_blocks = NR_BLOCKS,
						.entry_bytes = 8,
						.table_off = TABLE_OFF,
						.end_off = DATA_OFF,
						.has_zero = kind == FLAT || kind == PAGED };
	if (kind == PAGED) {
		r->toy.shape.nr_slots = NR_SLOTS;
		r->toy.shape.page_bytes = PAGE;
	}
	if (kind >= BITMAPS) {
		r->toy.shape.prefix_bytes = 512;
		r->toy.shape.place_stride = BLOCK + 1024;
		r->toy.shape.bitmap_bytes = SECTORS / 8;
		r->toy.shape.sector_bytes = 512;
		r->toy.shape.bitmap_msb_first = true;
		r->toy.shape.bitmap_always = kind == FULL_BITMAPS;
	}
	r->node = node_new(&toy_driver, "toy", NULL);
	assert_non_null(r->node);
	assert_int_equal(mem_node_new("f", &r->node->file, NULL), 0);
	assert_int_equal(node_resize(r->node->file, DATA_OFF, NULL), 0);
	r->flat = calloc(1, DISK);
	r->buf = malloc(DISK);
	assert_non_null(r->flat);
	assert_non_null(r->buf);
	if (kind != FULL_BITMAPS) {
		for (size_t i = 0; i < sizeof(below_disk); i++)
			below_disk[i] = (uint8_t)(i / 512 + 1);
		assert_int_equal(mem_node_new("b", &r->node->backing, NULL), 0);
		assert_int_equal(node_pwrite(r->node->backing, below_disk, sizeof(below_disk), 0, 0, NULL), 0);
		memcpy(r->flat, below_disk, sizeof(below_disk));
	}
	reopen(r);
}

static void finish(struct rig *r)
{
	blockmap_free(r->bm);
	free(r->flat);
	free(r->buf);
	r->node->opened = false;
	node_close(r->node, NULL);
}

static void compare(struct rig *r)
{
	assert_int_equal(blockmap_pread(r->bm, r->buf, DISK, 0, NULL), 0);
	for (size_t i = 0; i < DISK; i++)
		if (r->buf[i] != r->flat[i])
			fail_msg("byte 0x%zx is 0x%02x, not 0x%02x", i, r->buf[i], r->flat[i]);
}

/* What status says is true: zeros are zeros, data lies where it says. */
static void check_status(struct rig *r)
{
	struct status_extent e[7];
	uint64_t off = 0;
	size_t nr;

	while (off < DISK) {
		assert_int_equal(blockmap_status(r->bm, DISK - off, off, e, 7, &nr, NULL), 0);
		assert_true(nr > 0);
		for (size_t i = 0; i < nr; i++) {
			assert_int_equal(e[i].off, off);
			for (uint64_t at = 0; at < e[i].bytes && e[i].kind == STATUS_ZERO; at++)
				assert_int_equal(r->flat[off + at], 0);
			if (e[i].kind == STATUS_DATA) {
				assert_int_equal(node_pread(r->node->file, r->buf, e[i].bytes, e[i].host_off, 0, NULL),
						 0);
				assert_memory_equal(r->buf, r->flat + off, e[i].bytes);
			}
			off += e[i].bytes;
		}
	}
}

static void random_request(struct rig *r)
{
	uint64_t off = below(DISK), bytes = 1 + below(below(3) ? 3000 : 60000), what = below(10);

	if (below(3) == 0) {
		off = off / BLOCK * BLOCK;
		bytes = (bytes + BLOCK - 1) / BLOCK * BLOCK;
	}
	bytes = bytes < DISK - off ? bytes : DISK - off;
	if (what < 5) {
		for (uint64_t i = 0; i < bytes; i++)
			r->buf[i] = (uint8_t)below(256);
		assert_int_equal(blockmap_pwrite(r->bm, r->buf, bytes, off, NULL), 0);
		memcpy(r->flat + off, r->buf, bytes);
	} else if (what < 7) {
		assert_int_equal(blockmap_zero(r->bm, bytes, off, 0, NULL), 0);
		memset(r->flat + off, 0, bytes);
	} else if (what < 9) {
		assert_int_equal(blockmap_pread(r->bm, r->buf, bytes, off, NULL), 0);
		assert_memory_equal(r->buf, r->flat + off, bytes);
	} else {
		assert_int_equal(blockmap_flush(r->bm, NULL), 0);
	}
}

static void check_census(struct rig *r)
{
	static const struct blockmap_rules rules = { .entry = "T-1", .overlap = "T-2", .leak = "T-3" };
	struct img_check_result result = { 0 };
	struct blockmap_census census;

	assert_int_equal(blockmap_stop(r->bm, NULL), 0);
	assert_int_equal(blockmap_check(r->bm, &rules, DATA_OFF, false, NULL, NULL, NULL, &result, &census, NULL), 0);
	blockmap_start(r->bm);
	assert_int_equal(result.damage, 0);
	assert_int_equal(census.nr_overlaps, 0);
	assert_int_equal(census.nr_free + census.nr_zero + census.nr_data + census.nr_partial, NR_BLOCKS);
}

static void run_kind(enum kind kind)
{
	struct rig r;

	toy_random = kind + 1;
	for (unsigned round = 0; round < 6; round++) {
		start(&r, kind);
		compare(&r);
		for (unsigned i = 0; i < 400; i++) {
			random_request(&r);
			if (i % 100 == 99) {
				reopen(&r);
				compare(&r);
				check_status(&r);
			}
		}
		check_census(&r);
		assert_true(r.toy.nr_begin > 0 && r.toy.nr_begin <= 5);
		assert_true(r.toy.nr_settle > 0 && r.toy.settled <= blockmap_end(r.bm));
		assert_true(kind != PAGED || r.toy.nr_store > 0);
		finish(&r);
	}
}

static void test_flat(void **state)
{
	(void)state;
	run_kind(FLAT);
}

static void test_paged(void **state)
{
	(void)state;
	run_kind(PAGED);
}

static void test_bitmaps(void **state)
{
	(void)state;
	run_kind(BITMAPS);
}

static void test_full_bitmaps(void **state)
{
	(void)state;
	run_kind(FULL_BITMAPS);
}

/* What was in the file behind the last place never shows. */
static void test_dirty_room(void **state)
{
	struct rig r;

	(void)state;
	for (enum kind kind = FLAT; kind < NR_KINDS; kind++) {
		toy_random = 99;
		start(&r, kind);
		memset(r.buf, 0xee, DISK);
		assert_int_equal(node_pwrite(r.node->file, r.buf, DISK, DATA_OFF, 0, NULL), 0);
		reopen(&r);
		for (unsigned i = 0; i < 100; i++)
			random_request(&r);
		reopen(&r);
		compare(&r);
		finish(&r);
	}
}

/* Blocks go elsewhere, entries are cleared, the disk's tail is wiped. */
static void test_steps(void **state)
{
	struct blockmap_shape shape;
	struct blockmap_entry e;
	struct rig r;

	(void)state;
	toy_random = 5;
	start(&r, BITMAPS);
	for (unsigned i = 0; i < 200; i++)
		random_request(&r);
	assert_int_equal(blockmap_stop(r.bm, NULL), 0);
	for (uint64_t b = 0; b < NR_BLOCKS; b += 3)
		assert_int_equal(blockmap_move(r.bm, b, 0, NULL), 0);
	assert_int_equal(blockmap_flush_stopped(r.bm, NULL), 0);
	shape = *blockmap_shape(r.bm);
	shape.end_off = blockmap_end(r.bm);
	assert_int_equal(blockmap_reshape(r.bm, &shape, NULL), 0);
	blockmap_start(r.bm);
	compare(&r);
	assert_int_equal(blockmap_stop(r.bm, NULL), 0);
	assert_int_equal(blockmap_zero_tail(r.bm, 10 * BLOCK + 100, NULL), 0);
	assert_int_equal(blockmap_zero_tail(r.bm, 20 * BLOCK, NULL), 0); /* nothing */
	assert_int_equal(blockmap_clear(r.bm, 50, 10, NULL), 0);
	assert_int_equal(blockmap_flush_stopped(r.bm, NULL), 0);
	assert_int_equal(blockmap_get(r.bm, 55, &e, NULL), 0);
	assert_int_equal(e.state, BLOCKMAP_FREE);
	blockmap_start(r.bm);
	memset(r.flat + 10 * BLOCK + 100, 0, BLOCK - 100);
	assert_int_equal(node_pread(r.node->backing, r.flat + 50 * BLOCK, 10 * BLOCK, 50 * BLOCK, 0, NULL), 0);
	compare(&r);
	finish(&r);
}

/* Where walks go on, on a table that is mostly empty: in a row, and with other things between the entries. */
static void test_next_used(void **state)
{
	static const enum kind kinds[] = { FLAT, PAGED };
	const struct blockmap_entry used = { .state = BLOCKMAP_ZERO }, none = { .state = BLOCKMAP_FREE };
	struct rig r;

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		start(&r, kinds[i]);
		assert_int_equal(blockmap_stop(r.bm, NULL), 0);
		assert_int_equal(blockmap_next_used(r.bm, 0, NR_BLOCKS), NR_BLOCKS);
		assert_int_equal(blockmap_next_used(r.bm, 9, 9), 9);
		for (uint64_t b = 0; b < NR_BLOCKS; b++) {
			assert_int_equal(blockmap_set(r.bm, b, &used, NULL), 0);
			for (uint64_t from = 0; from <= b; from++)
				assert_int_equal(blockmap_next_used(r.bm, from, NR_BLOCKS), b);
			assert_int_equal(blockmap_next_used(r.bm, b + 1, NR_BLOCKS), NR_BLOCKS);
			assert_int_equal(blockmap_next_used(r.bm, 0, b), b);
			assert_int_equal(blockmap_set(r.bm, b, &none, NULL), 0);
		}
		blockmap_start(r.bm);
		finish(&r);
	}
}

static unsigned nr_findings;
static char last_rule[16];
static void take(void *ctx, const struct img_finding *f)
{
	(void)ctx;
	nr_findings++;
	memcpy(last_rule, f->rule, sizeof(last_rule));
}

/* A page that lies outside of the file: so many entries are bad at once, and a check tells of them as of one thing. */
static void test_unreadable_page(void **state)
{
	static const struct blockmap_rules rules = { .entry = "T-1" };
	struct img_check_result result = { 0 };
	struct blockmap_census census;
	struct blockmap_entry e;
	uint64_t first = 7 * 8, nr = 0;
	struct rig r;

	(void)state;
	start(&r, PAGED);
	r.toy.directory[8] = UINT64_C(1) << 40;
	while (slot(r.bm, first) / 8 < 8)
		first++;
	while (slot(r.bm, first + nr) / 8 == 8)
		nr++;
	assert_int_equal(blockmap_stop(r.bm, NULL), 0);
	assert_int_equal(blockmap_get(r.bm, first, &e, NULL), IMG_E_CORRUPT);
	assert_int_equal(blockmap_unreadable(r.bm, first - 1, NR_BLOCKS), 0);
	assert_int_equal(blockmap_unreadable(r.bm, first, NR_BLOCKS), nr);
	assert_int_equal(blockmap_unreadable(r.bm, first + nr - 1, NR_BLOCKS), 1);
	assert_int_equal(blockmap_unreadable(r.bm, first, first + 2), 2);
	assert_int_equal(blockmap_next_used(r.bm, 0, NR_BLOCKS), first);
	nr_findings = 0;
	assert_int_equal(blockmap_check(r.bm, &rules, DATA_OFF, false, take, NULL, NULL, &result, &census, NULL), 0);
	blockmap_start(r.bm);
	assert_int_equal(result.damage, nr);
	assert_int_equal(nr_findings, 1);
	assert_int_equal(census.nr_bad, nr);
	assert_int_equal(census.nr_free, NR_BLOCKS - nr);
	finish(&r);
}

static void put_entry(struct rig *r, uint64_t block, uint64_t value)
{
	struct le64 d = le64_of(value);

	assert_int_equal(node_pwrite(r->node->file, &d, 8, TABLE_OFF + block * 8, 0, NULL), 0);
}

static void check_finds(struct rig *r, const struct blockmap_rules *rules, bool repair, uint64_t damage, uint64_t leaks,
			unsigned findings)
{
	struct img_check_result result = { 0 };
	struct blockmap_census census;

	nr_findings = 0;
	assert_int_equal(blockmap_stop(r->bm, NULL), 0);
	assert_int_equal(blockmap_check(r->bm, rules, DATA_OFF, repair, take, NULL, NULL, &result, &census, NULL), 0);
	blockmap_start(r->bm);
	assert_int_equal(result.damage, damage);
	assert_int_equal(result.leaks, leaks);
	assert_int_equal(nr_findings, findings);
}

static void test_check(void **state)
{
	static const struct blockmap_rules rules = { .entry = "T-1", .overlap = "T-2", .leak = "T-3" };
	uint64_t at = DATA_OFF, end = DATA_OFF + 20 * BLOCK;
	struct rig r;

	(void)state;
	start(&r, FLAT);
	assert_int_equal(node_resize(r.node->file, end, NULL), 0);
	for (uint64_t b = 0; b < 20; b++, at += BLOCK)
		put_entry(&r, b, at | BLOCKMAP_DATA);
	check_finds(&r, &rules, false, 0, 0, 0);
	reopen(&r);
	put_entry(&r, 3, 7);				 /* nonsense */
	put_entry(&r, 4, (end + BLOCK) | BLOCKMAP_DATA); /* outside */
	put_entry(&r, 5, 512 | BLOCKMAP_DATA);		 /* over the header: one run of three */
	put_entry(&r, 9, (DATA_OFF + 8 * BLOCK + 512) | BLOCKMAP_DATA);
	reopen(&r);
	check_finds(&r, &rules, false, 4, 3, 3);
	assert_string_equal(last_rule, "T-3");
	check_finds(&r, &rules, true, 4, 3, 3);
	reopen(&r);
	check_finds(&r, &rules, false, 1, 3, 2); /* what shares a place stays */
	finish(&r);
}

static int cannot_extend(struct blockmap *bm, uint64_t end, struct img_error *err)
{
	(void)bm;
	(void)end;
	return error_set(err, IMG_E_NOSPC, 0, NO_OFFSET, "toy", "no room");
}

static uint64_t repair_cut(struct rig *r, const struct blockmap_rules *rules, uint64_t *nr_cut)
{
	struct img_check_result result = { 0 };
	struct blockmap_census census;

	reopen(r);
	assert_int_equal(blockmap_stop(r->bm, NULL), 0);
	assert_int_equal(blockmap_check(r->bm, rules, DATA_OFF, true, take, NULL, NULL, &result, &census, NULL), 0);
	blockmap_start(r->bm);
	*nr_cut = census.nr_cut;
	assert_int_equal(blockmap_may_move(&census), census.nr_cut + census.nr_overlaps == 0);
	return result.repaired;
}

/* The file ends inside places, of which two lie over each other; a third one is not in it at all. */
static void test_cut_off(void **state)
{
	static const struct blockmap_rules rules = { .entry = "T-1", .overlap = "T-2" };
	static const struct blockmap_rules stuck = { .entry = "T-1", .overlap = "T-2", .extend = cannot_extend };
	uint64_t at = DATA_OFF + BLOCK, end = at + 1000, nr_cut;
	uint8_t want[512], got[512];
	struct rig r;

	(void)state;
	start(&r, FLAT);
	memset(want, 7, sizeof(want));
	assert_int_equal(node_resize(r.node->file, end, NULL), 0);
	assert_int_equal(node_pwrite(r.node->file, want, sizeof(want), at, 0, NULL), 0);
	put_entry(&r, 0, DATA_OFF | BLOCKMAP_DATA);
	put_entry(&r, 3, at | BLOCKMAP_DATA);
	put_entry(&r, 4, (at + 512) | BLOCKMAP_DATA);
	put_entry(&r, 5, (end + 511) / 512 * 512 | BLOCKMAP_DATA);
	reopen(&r);
	check_finds(&r, &rules, false, 4, 0, 3); /* two in a row, the one outside, two over each other */
	assert_int_equal(repair_cut(&r, &stuck, &nr_cut), 1);
	assert_int_equal(nr_cut, 2);
	assert_int_equal(node_size(r.node->file), end);
	assert_int_equal(repair_cut(&r, &rules, &nr_cut), 2);
	assert_int_equal(nr_cut, 0);
	assert_true(node_size(r.node->file) >= at + 512 + BLOCK);
	reopen(&r);
	check_finds(&r, &rules, false, 1, 0, 1);
	assert_int_equal(blockmap_pread(r.bm, got, sizeof(got), 3 * BLOCK, NULL), 0);
	assert_memory_equal(got, want, sizeof(got));
	finish(&r);
}

/* The block in which the disk ends, of which the file has what the disk needs. */
static void test_last_place(void **state)
{
	static const struct blockmap_rules rules = { .entry = "T-1" }, whole = { .entry = "T-1", .whole = true };
	uint64_t nr_cut;
	struct rig r;

	(void)state;
	start(&r, FLAT);
	assert_int_equal(node_resize(r.node->file, DATA_OFF + BLOCK - 512, NULL), 0);
	put_entry(&r, NR_BLOCKS - 1, DATA_OFF | BLOCKMAP_DATA);
	reopen(&r);
	check_finds(&r, &rules, false, 0, 0, 0);
	check_finds(&r, &whole, false, 1, 0, 1);
	assert_int_equal(repair_cut(&r, &whole, &nr_cut), 1);
	assert_int_equal(node_size(r.node->file), DATA_OFF + BLOCK);
	reopen(&r);
	check_finds(&r, &whole, false, 0, 0, 0);
	finish(&r);
}

/* Numbers that would not fit are refused, whatever the format let through. */
static void test_shapes(void **state)
{
	const struct blockmap_shape good = {
		.disk_bytes = 1 << 20, .block_bytes = 4096, .nr_blocks = 256, .entry_bytes = 4
	};
	struct driver_open args = { .writable = false };
	struct blockmap_shape bad[9];
	struct blockmap *bm;
	struct rig r;

	(void)state;
	start(&r, FLAT);
	for (size_t i = 0; i < 9; i++)
		bad[i] = good;
	bad[0].block_bytes = 0;
	bad[1].block_bytes = 100;
	bad[2].nr_blocks = 255;
	bad[3].nr_blocks = UINT64_MAX / 4096 + 1;
	bad[4].entry_bytes = 3;
	bad[5].table_off = UINT64_MAX - 100;
	bad[6].end_off = UINT64_MAX;
	bad[7].nr_slots = 10;
	bad[8].bitmap_bytes = 1;
	assert_int_equal(blockmap_open(r.node, &good, &flat_ops, &r.toy, &args, &bm, NULL), 0);
	blockmap_free(bm);
	for (size_t i = 0; i < 9; i++)
		assert_int_equal(blockmap_open(r.node, &bad[i], &flat_ops, &r.toy, &args, &bm, NULL), IMG_E_CORRUPT);
	finish(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flat),
		cmocka_unit_test(test_paged),
		cmocka_unit_test(test_bitmaps),
		cmocka_unit_test(test_full_bitmaps),
		cmocka_unit_test(test_dirty_room),
		cmocka_unit_test(test_steps),
		cmocka_unit_test(test_check),
		cmocka_unit_test(test_cut_off),
		cmocka_unit_test(test_last_place),
		cmocka_unit_test(test_next_used),
		cmocka_unit_test(test_unreadable_page),
		cmocka_unit_test(test_shapes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
