/* SPDX-License-Identifier: MIT */
/*
 * Disks made of segments: what span.h promises, first of segments that only keep records, then of those that formats
 * use, against a flat array.
 */
#include "blockmap.h"
#include "disk_int.h"
#include "mem.h"
#include "mock.h"
#include "span.h"

#define LIMIT UINT64_C(0x7fffffffffffffff) /* the largest disk */

/* ---- segments that keep records ---------------------------------------------------------------------------------- */

struct record {
	unsigned nr_read, nr_write, nr_zero, nr_discard, nr_flush;
	unsigned turn; /* of all segments: when it was asked last */
	uint64_t off, bytes;
	unsigned flags;
	int fail, fail_flush;
	bool early; /* one extent of status at a time */
};

static unsigned turns;

static int note(struct record *r, uint64_t bytes, uint64_t off, struct img_error *err)
{
	r->turn = ++turns;
	r->off = off;
	r->bytes = bytes;
	return r->fail ? error_set(err, r->fail, 0, NO_OFFSET, "test", "fails") : 0;
}

static int record_pread(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	((struct record *)ctx)->nr_read++;
	memset(buf, (int)(off & 0xff), bytes);
	return note(ctx, bytes, off, err);
}

static int record_pwrite(void *ctx, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	(void)buf;
	((struct record *)ctx)->nr_write++;
	return note(ctx, bytes, off, err);
}

static int record_zero(void *ctx, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	((struct record *)ctx)->nr_zero++;
	((struct record *)ctx)->flags = flags;
	return note(ctx, bytes, off, err);
}

static int record_discard(void *ctx, uint64_t bytes, uint64_t off, struct img_error *err)
{
	((struct record *)ctx)->nr_discard++;
	return note(ctx, bytes, off, err);
}

/* Two extents where there is room: half data, half zeros. */
static int record_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			 struct img_error *err)
{
	int ret = note(ctx, bytes, off, err);
	uint64_t half = bytes / 2;

	*nr = 0;
	if (ret != 0)
		return ret;
	out[(*nr)++] = (struct status_extent){ .off = off, .bytes = half, .kind = STATUS_DATA, .host_off = off + 7 };
	if (cap > 1 && !((const struct record *)ctx)->early)
		out[(*nr)++] = (struct status_extent){
			.off = off + half, .bytes = bytes - half, .kind = STATUS_ZERO, .host_off = STATUS_NO_HOST
		};
	return 0;
}

/* One that answers nothing, which is no failure. */
static int silent_status(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
			 struct img_error *err)
{
	(void)out;
	(void)cap;
	*nr = 0;
	return note(ctx, bytes, off, err);
}

static int record_flush(void *ctx, struct img_error *err)
{
	struct record *r = ctx;

	r->nr_flush++;
	r->turn = ++turns;
	return r->fail_flush ? error_set(err, r->fail_flush, 0, NO_OFFSET, "test", "flush fails") : 0;
}

static const struct span_ops full = {
	.pread = record_pread,
	.pwrite = record_pwrite,
	.zero = record_zero,
	.discard = record_discard,
	.status = record_status,
	.flush = record_flush,
};
static const struct span_ops bare = { .pread = record_pread };
static const struct span_ops silent = { .pread = record_pread, .status = silent_status };

enum { A, NONE, B, C, NR };

struct rig {
	struct record r[NR];
	struct span_segment s[NR];
	struct span *span;
};

/* 1000 bytes, nothing, 2000 of a segment that begins at 5000 of what it is in, 3000. */
static void start(struct rig *g)
{
	memset(g, 0, sizeof(*g));
	turns = 0;
	g->s[A] = (struct span_segment){ .bytes = 1000, .ops = &full, .ctx = &g->r[A], .own_file = true };
	g->s[NONE] = (struct span_segment){ .bytes = 0, .ops = &full, .ctx = &g->r[NONE] };
	g->s[B] = (struct span_segment){ .bytes = 2000, .ops = &full, .ctx = &g->r[B], .inner_off = 5000 };
	g->s[C] = (struct span_segment){ .bytes = 3000, .ops = &full, .ctx = &g->r[C] };
}

static void make(struct rig *g)
{
	assert_int_equal(span_new(g->s, NR, &g->span, NULL), 0);
}

static void asked(const struct record *r, uint64_t bytes, uint64_t off)
{
	assert_int_equal(r->bytes, bytes);
	assert_int_equal(r->off, off);
}

static void test_cut(void **state)
{
	static uint8_t buf[6000];
	struct rig g;

	(void)state;
	start(&g);
	make(&g);
	assert_int_equal(span_size(g.span), 6000);
	assert_int_equal(span_pwrite(g.span, buf, 4000, 500, NULL), 0);
	asked(&g.r[A], 500, 500);
	asked(&g.r[B], 2000, 5000);
	asked(&g.r[C], 1500, 0);
	assert_int_equal(g.r[NONE].turn, 0);
	assert_true(g.r[A].turn == 1 && g.r[B].turn == 2 && g.r[C].turn == 3);
	/* From the first byte of one to the last of the same: no other is asked. */
	assert_int_equal(span_zero(g.span, 2000, 1000, IMG_IO_NO_UNMAP, NULL), 0);
	asked(&g.r[B], 2000, 5000);
	assert_int_equal(g.r[B].flags, IMG_IO_NO_UNMAP);
	assert_int_equal(g.r[A].nr_zero + g.r[C].nr_zero, 0);
	assert_int_equal(span_discard(g.span, 2, 999, NULL), 0);
	asked(&g.r[A], 1, 999);
	asked(&g.r[B], 1, 5000);
	assert_int_equal(g.r[C].nr_discard, 0);
	assert_int_equal(span_pread(g.span, buf, 6000, 0, NULL), 0);
	assert_true(buf[999] == 0 && buf[1000] == (5000 & 0xff) && buf[3000] == 0);
	assert_int_equal(span_pread(g.span, buf, 0, 6000, NULL), 0); /* nothing, at the end */
	assert_int_equal(g.r[C].nr_read, 1);
	span_free(g.span);
	span_free(NULL);
}

/* Nothing reaches a segment of what begins or ends behind the disk; a last segment that grows takes the end along. */
static void test_range(void **state)
{
	struct status_extent e;
	uint8_t buf[16];
	struct rig g;
	size_t nr;

	(void)state;
	start(&g);
	make(&g);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t off = i == 0 ? 5990 : i == 1 ? 6000 : UINT64_MAX - 3;

		assert_int_equal(span_pread(g.span, buf, 16, off, NULL), IMG_E_INVALID);
		assert_int_equal(span_pwrite(g.span, buf, 16, off, NULL), IMG_E_INVALID);
		assert_int_equal(span_zero(g.span, 16, off, 0, NULL), IMG_E_INVALID);
		assert_int_equal(span_discard(g.span, 16, off, NULL), IMG_E_INVALID);
		assert_int_equal(span_status(g.span, 16, off, &e, 1, &nr, NULL), IMG_E_INVALID);
		assert_int_equal(nr, 0);
	}
	assert_int_equal(turns, 0);
	span_set_size(g.span, 6010);
	assert_int_equal(span_pread(g.span, buf, 16, 5990, NULL), 0);
	asked(&g.r[C], 16, 2990);
	span_set_size(g.span, 5000);
	assert_int_equal(span_size(g.span), 5000);
	assert_int_equal(span_pread(g.span, buf, 16, 5990, NULL), IMG_E_INVALID);
	span_free(g.span);
}

/* A change that one segment cannot take is refused before another one sees anything of it. */
static void test_refused(void **state)
{
	uint8_t buf[3000] = { 0 };
	struct rig g;

	(void)state;
	start(&g);
	g.s[C].readonly = true;
	make(&g);
	assert_int_equal(span_pwrite(g.span, buf, 3000, 500, NULL), IMG_E_READONLY);
	assert_int_equal(span_zero(g.span, 3000, 500, 0, NULL), IMG_E_READONLY);
	assert_int_equal(span_may_change(g.span, 3000, 500, false, NULL), IMG_E_READONLY);
	assert_int_equal(turns, 0);
	assert_int_equal(span_pwrite(g.span, buf, 2500, 500, NULL), 0);
	assert_int_equal(span_discard(g.span, 6000, 0, NULL), 0); /* which it may leave undone */
	assert_true(g.r[A].nr_discard == 1 && g.r[B].nr_discard == 1 && g.r[C].nr_discard == 0);
	span_free(g.span);

	start(&g);
	g.s[B].ops = &bare;
	make(&g);
	assert_int_equal(span_pwrite(g.span, buf, 1000, 500, NULL), IMG_E_READONLY);
	assert_int_equal(span_zero(g.span, 1000, 500, 0, NULL), IMG_E_READONLY);
	assert_int_equal(turns, 0);
	assert_int_equal(span_discard(g.span, 6000, 0, NULL), 0);
	assert_int_equal(g.r[C].nr_discard, 1);
	span_free(g.span);

	/* Zeros can be zeroed, and take no data. */
	start(&g);
	g.s[B].ops = &span_zeros;
	make(&g);
	assert_int_equal(span_may_change(g.span, 1000, 500, true, NULL), 0);
	assert_int_equal(span_may_change(g.span, 1000, 500, false, NULL), IMG_E_READONLY);
	assert_int_equal(span_zero(g.span, 1000, 500, 0, NULL), 0);
	span_free(g.span);

	start(&g);
	g.s[B].ops = &span_noaccess;
	make(&g);
	assert_int_equal(span_pread(g.span, buf, 1000, 500, NULL), IMG_E_REFUSED);
	assert_int_equal(span_pread(g.span, buf, 1000, 0, NULL), 0);
	assert_int_equal(span_zero(g.span, 1000, 500, 0, NULL), IMG_E_READONLY);
	span_free(g.span);
}

/* Who fails ends the request; those behind it are not asked. */
static void test_failures(void **state)
{
	struct status_extent e[8];
	uint8_t buf[6000] = { 0 };
	struct rig g;
	size_t nr;

	(void)state;
	start(&g);
	make(&g);
	g.r[B].fail = IMG_E_IO;
	assert_int_equal(span_pread(g.span, buf, 6000, 0, NULL), IMG_E_IO);
	assert_int_equal(span_pwrite(g.span, buf, 6000, 0, NULL), IMG_E_IO);
	assert_int_equal(span_zero(g.span, 6000, 0, 0, NULL), IMG_E_IO);
	assert_int_equal(span_discard(g.span, 6000, 0, NULL), IMG_E_IO);
	assert_int_equal(span_status(g.span, 6000, 0, e, 8, &nr, NULL), IMG_E_IO);
	assert_true(g.r[A].turn > 0 && g.r[B].turn > 0);
	assert_int_equal(g.r[C].turn, 0);
	/* What failed may have changed something. */
	g.r[B].fail = 0;
	assert_int_equal(span_flush(g.span, NULL), 0);
	assert_true(g.r[A].nr_flush == 1 && g.r[B].nr_flush == 1 && g.r[C].nr_flush == 0);
	span_free(g.span);
}

/* Those that changed since the last time, all of them, and again those that failed. */
static void test_flush(void **state)
{
	struct img_error err = { .code = IMG_OK };
	uint8_t buf[6000] = { 0 };
	struct rig g;

	(void)state;
	start(&g);
	make(&g);
	assert_int_equal(span_flush(g.span, NULL), 0);
	assert_int_equal(span_pread(g.span, buf, 6000, 0, NULL), 0);
	assert_int_equal(span_flush(g.span, NULL), 0);
	assert_int_equal(g.r[A].nr_flush + g.r[B].nr_flush + g.r[C].nr_flush, 0);
	assert_int_equal(span_pwrite(g.span, buf, 1, 0, NULL), 0);
	assert_int_equal(span_zero(g.span, 1, 1000, 0, NULL), 0);
	assert_int_equal(span_discard(g.span, 1, 3000, NULL), 0);
	g.r[A].fail_flush = IMG_E_NOSPC;
	g.r[B].fail_flush = IMG_E_IO;
	assert_int_equal(span_flush(g.span, &err), IMG_E_NOSPC); /* the first one wins */
	assert_int_equal(err.code, IMG_E_NOSPC);
	assert_true(g.r[A].nr_flush == 1 && g.r[B].nr_flush == 1 && g.r[C].nr_flush == 1);
	g.r[A].fail_flush = g.r[B].fail_flush = 0;
	assert_int_equal(span_flush(g.span, NULL), 0);
	assert_true(g.r[A].nr_flush == 2 && g.r[B].nr_flush == 2 && g.r[C].nr_flush == 1);
	assert_int_equal(span_flush(g.span, NULL), 0);
	assert_true(g.r[A].nr_flush == 2 && g.r[B].nr_flush == 2 && g.r[C].nr_flush == 1);
	span_free(g.span);

	start(&g);
	g.s[A].ops = &span_zeros; /* nothing to flush */
	make(&g);
	assert_int_equal(span_zero(g.span, 1, 0, 0, NULL), 0);
	assert_int_equal(span_flush(g.span, NULL), 0);
	span_free(g.span);
}

static void is_extent(const struct status_extent *e, uint64_t off, uint64_t bytes, int kind, uint64_t host_off)
{
	assert_int_equal(e->off, off);
	assert_int_equal(e->bytes, bytes);
	assert_int_equal(e->kind, kind);
	assert_int_equal(e->host_off, host_off);
}

/* Offsets of the disk; places in the host only of the node's own file. */
static void test_status(void **state)
{
	struct status_extent e[8];
	struct rig g;
	size_t nr;

	(void)state;
	start(&g);
	g.s[B].ops = &bare;
	make(&g);
	assert_int_equal(span_status(g.span, 5000, 100, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 5);
	is_extent(&e[0], 100, 450, STATUS_DATA, 107);
	is_extent(&e[1], 550, 450, STATUS_ZERO, STATUS_NO_HOST);
	is_extent(&e[2], 1000, 2000, STATUS_DATA, STATUS_NO_HOST);
	is_extent(&e[3], 3000, 1050, STATUS_DATA, STATUS_NO_HOST);
	is_extent(&e[4], 4050, 1050, STATUS_ZERO, STATUS_NO_HOST);
	assert_int_equal(span_status(g.span, 5000, 100, e, 3, &nr, NULL), 0);
	assert_int_equal(nr, 3);
	assert_int_equal(span_status(g.span, 5000, 100, e, 1, &nr, NULL), 0); /* half of the first */
	assert_int_equal(nr, 1);
	is_extent(&e[0], 100, 450, STATUS_DATA, 107);
	g.r[A].early = true; /* what it did not say stays unsaid */
	assert_int_equal(span_status(g.span, 5000, 100, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(span_status(g.span, 0, 100, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 0);
	span_free(g.span);

	start(&g);
	g.s[B].ops = &silent;
	make(&g);
	assert_int_equal(span_status(g.span, 5000, 100, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 2);
	assert_int_equal(g.r[C].turn, 0);
	span_free(g.span);
}

static void test_sizes(void **state)
{
	struct span_segment s[2] = { { .bytes = LIMIT, .ops = &bare }, { .bytes = 1, .ops = &bare } };
	struct span *span;

	(void)state;
	assert_int_equal(span_new(s, 1, &span, NULL), 0);
	assert_int_equal(span_size(span), LIMIT);
	span_free(span);
	assert_int_equal(span_new(s, 2, &span, NULL), IMG_E_LIMIT); /* one byte too much */
	assert_null(span);
	s[1].bytes = UINT64_MAX;
	assert_int_equal(span_new(s, 2, &span, NULL), IMG_E_LIMIT); /* more than a number holds */
	assert_null(span);
	assert_int_equal(span_new(s, 0, &span, NULL), 0);
	assert_int_equal(span_size(span), 0);
	assert_int_equal(span_flush(span, NULL), 0);
	span_free(span);
}

/* ---- what formats are made of ------------------------------------------------------------------------------------ */

#define SECTOR	  512u
#define FILE_OFF  (3 * SECTOR) /* of the first segment in its file */
#define PART	  (40 * SECTOR)
#define BLOCK	  4096u
#define NR_BLOCKS 12u
#define DATA_OFF  8192u
#define DISK	  (3 * PART + NR_BLOCKS * BLOCK)
#define ZEROS_AT  (PART + NR_BLOCKS * BLOCK) /* of the disk: PART of a file, the blocks, zeros, PART of another file */

/* An entry is the block's place, which is a multiple of 512, and its state. */
static int decode(const struct blockmap *bm, uint64_t block, const uint8_t *raw, struct blockmap_entry *out,
		  struct img_error *err)
{
	uint64_t v = le64_get(*(const struct le64 *)raw);

	(void)bm;
	(void)block;
	(void)err;
	*out = (struct blockmap_entry){ .state = (enum blockmap_state)(v % SECTOR), .off = v / SECTOR * SECTOR };
	return 0;
}

static void encode(const struct blockmap *bm, uint64_t block, uint8_t *raw, const struct blockmap_entry *e)
{
	struct le64 d = le64_of(e->state == BLOCKMAP_DATA ? e->off | e->state : (uint64_t)e->state);

	(void)bm;
	(void)block;
	memcpy(raw, &d, sizeof(d));
}

static const struct blockmap_ops block_ops = { .decode = decode, .encode = encode };
static const struct img_driver toy_driver = { .name = "toy", .kind = DRIVER_FORMAT };

struct disk {
	struct node *node, *first, *last;
	struct blockmap *bm;
	struct span *span;
	uint8_t flat[DISK], buf[DISK];
};

static void disk_start(struct disk *d)
{
	const struct blockmap_shape shape = { .disk_bytes = NR_BLOCKS * BLOCK,
					      .block_bytes = BLOCK,
					      .nr_blocks = NR_BLOCKS,
					      .entry_bytes = 8,
					      .table_off = 4096,
					      .end_off = DATA_OFF };
	const struct driver_open args = { .writable = true };
	struct span_segment s[4] = { 0 };

	memset(d, 0, sizeof(*d));
	d->node = node_new(&toy_driver, "toy", NULL);
	assert_non_null(d->node);
	assert_int_equal(mem_node_new("blocks", &d->node->file, NULL), 0);
	assert_int_equal(mem_node_new("first", &d->first, NULL), 0);
	assert_int_equal(mem_node_new("last", &d->last, NULL), 0);
	assert_int_equal(node_resize(d->node->file, DATA_OFF, NULL), 0);
	assert_int_equal(node_resize(d->first, FILE_OFF + PART, NULL), 0);
	assert_int_equal(node_resize(d->last, PART, NULL), 0);
	assert_int_equal(blockmap_open(d->node, &shape, &block_ops, NULL, &args, &d->bm, NULL), 0);
	s[0] = (struct span_segment){ .bytes = PART, .ops = &span_file, .ctx = d->first, .inner_off = FILE_OFF };
	s[1] = (struct span_segment){ .bytes = NR_BLOCKS * BLOCK, .ops = &span_blocks, .ctx = d->bm, .own_file = true };
	s[2] = (struct span_segment){ .bytes = PART, .ops = &span_zeros };
	s[3] = (struct span_segment){ .bytes = PART, .ops = &span_file, .ctx = d->last };
	assert_int_equal(span_new(s, 4, &d->span, NULL), 0);
	assert_int_equal(span_size(d->span), DISK);
}

static void disk_end(struct disk *d)
{
	span_free(d->span);
	blockmap_free(d->bm);
	node_close(d->first, NULL);
	node_close(d->last, NULL);
	node_close(d->node, NULL);
}

static bool over_zeros(uint64_t bytes, uint64_t off)
{
	return off < ZEROS_AT + PART && off + bytes > ZEROS_AT;
}

/* One answer may end early; what it says is true. */
static void check_status(struct disk *d)
{
	struct status_extent e[5];
	uint64_t off = 0;
	size_t nr;

	while (off < DISK) {
		assert_int_equal(span_status(d->span, DISK - off, off, e, 5, &nr, NULL), 0);
		assert_true(nr > 0);
		for (size_t i = 0; i < nr; off += e[i++].bytes) {
			assert_int_equal(e[i].off, off);
			assert_true(e[i].bytes > 0 && e[i].bytes <= DISK - off);
			for (uint64_t at = 0; at < e[i].bytes && e[i].kind != STATUS_DATA; at++)
				assert_int_equal(d->flat[off + at], 0);
			if (e[i].host_off == STATUS_NO_HOST)
				continue;
			assert_true(off >= PART && off + e[i].bytes <= ZEROS_AT); /* in the own file */
			assert_int_equal(node_pread(d->node->file, d->buf, e[i].bytes, e[i].host_off, 0, NULL), 0);
			assert_memory_equal(d->buf, d->flat + off, e[i].bytes);
		}
	}
	assert_int_equal(off, DISK);
}

static uint64_t seed = 4711;
static uint64_t below(uint64_t limit)
{
	seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (seed >> 33) % limit;
}

static void random_request(struct disk *d)
{
	uint64_t off = below(DISK), bytes = 1 + below(below(4) ? 2000 : DISK), what = below(8);
	int want;

	if (bytes > DISK - off)
		bytes = DISK - off;
	want = what < 3 && over_zeros(bytes, off) ? IMG_E_READONLY : 0;
	if (what < 3) {
		for (uint64_t i = 0; i < bytes; i++)
			d->buf[i] = (uint8_t)below(256);
		assert_int_equal(span_pwrite(d->span, d->buf, bytes, off, NULL), want);
		if (want == 0)
			memcpy(d->flat + off, d->buf, bytes);
	} else if (what < 5) {
		assert_int_equal(span_zero(d->span, bytes, off, 0, NULL), 0);
		memset(d->flat + off, 0, bytes);
	} else if (what == 5) {
		assert_int_equal(span_discard(d->span, bytes, off, NULL), 0);
		assert_int_equal(span_pread(d->span, d->flat + off, bytes, off, NULL), 0); /* old, or zeros */
	} else if (what == 6) {
		assert_int_equal(span_flush(d->span, NULL), 0);
	} else {
		assert_int_equal(span_pread(d->span, d->buf, bytes, off, NULL), 0);
		assert_memory_equal(d->buf, d->flat + off, bytes);
	}
}

static void test_real(void **state)
{
	static struct disk d;
	uint8_t before[FILE_OFF];

	(void)state;
	disk_start(&d);
	memset(before, 0xa5, FILE_OFF); /* of the file before the segment, which is nobody's */
	assert_int_equal(node_pwrite(d.first, before, FILE_OFF, 0, 0, NULL), 0);
	for (unsigned i = 0; i < 2000; i++) {
		random_request(&d);
		if (i % 100 == 99)
			check_status(&d);
	}
	assert_int_equal(span_pread(d.span, d.buf, DISK, 0, NULL), 0);
	assert_memory_equal(d.buf, d.flat, DISK);
	assert_int_equal(node_pread(d.first, d.buf, FILE_OFF, 0, 0, NULL), 0);
	assert_memory_equal(d.buf, before, FILE_OFF);
	assert_int_equal(node_size(d.first), FILE_OFF + PART);
	assert_int_equal(node_size(d.last), PART);
	disk_end(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut),	 cmocka_unit_test(test_range), cmocka_unit_test(test_refused),
		cmocka_unit_test(test_failures), cmocka_unit_test(test_flush), cmocka_unit_test(test_status),
		cmocka_unit_test(test_sizes),	 cmocka_unit_test(test_real),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
