/* SPDX-License-Identifier: MIT */
/*
 * limg's journal: records that are wrong under a right checksum, the ring's end, recovery on a host and with memory
 * that fail, and the ways that a flush takes beside its common one.
 */
#include "limg_inside.h"

#define DISK (2 * MIB)

/* An image with a ring, in which one record names block 5. */
static struct img *with_record(void)
{
	struct img *img = limg_new(DISK);

	inside_fill(img, 0, BLOCK, 1);
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 5 * BLOCK, BLOCK, 2);
	assert_ok(img_flush(img, 0, ERR));
	assert_true(engine_of(img)->journal.seq > 1);
	return img;
}

static int reopen_copy(unsigned flags)
{
	struct img *img;
	int ret;

	inside_copy("a", "b");
	ret = inside_try("b", flags, &img);
	if (img)
		assert_int_equal(img_close(img, NULL), 0);
	return ret;
}

/* A record of whole AUs that names only that some block reads as zeros. */
static void append_zeros(struct engine *e, unsigned aus)
{
	struct record_buf r;
	uint64_t word = word_make(0, e->sb.epoch, ST_ZERO);

	record_begin(&r);
	do
		record_delta(&r, VOL_DISK, 9, word, 1, NULL);
	while (record_bytes(&r) < au_off(aus));
	assert_int_equal(record_bytes(&r), au_off(aus));
	journal_begin(e);
	assert_ok(journal_append(e, &r, ERR));
	journal_end(e);
	record_free(&r);
}

/* ---- one wrong delta --------------------------------------------------------------------------------------------- */

struct bad_delta {
	uint64_t block;
	unsigned vol, nr;
	unsigned state;
	uint64_t addr;
	unsigned say_nr;     /* what the record says instead of nr */
	unsigned more;	     /* deltas that it counts and does not have */
	unsigned dirty_byte; /* of the reserved ones, from 1 */
};

static void append_bad(struct engine *e, const struct bad_delta *b)
{
	uint64_t csum[LEAF_ENTRIES] = { 0 };
	struct record_buf r;
	struct disk_delta *d;

	record_begin(&r);
	record_delta(&r, b->vol, b->block, word_make(b->addr, b->state ? 1 : 0, (enum entry_state)b->state), b->nr,
		     csum);
	d = (struct disk_delta *)(void *)(r.data + sizeof(struct disk_record));
	if (b->say_nr)
		d->nr = le32_of(b->say_nr);
	if (b->dirty_byte)
		d->zero[b->dirty_byte - 1] = 1;
	r.nr_deltas += b->more;
	journal_begin(e);
	assert_ok(journal_append(e, &r, ERR));
	journal_end(e);
	record_free(&r);
}

static void test_bad_deltas(void **state)
{
	static const struct bad_delta list[] = {
		{ .vol = VOL_VM, .nr = 1, .state = ST_ZERO },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_ZERO, .dirty_byte = 1 },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_ZERO, .dirty_byte = 2 },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_ZERO, .dirty_byte = 3 },
		{ .vol = VOL_DISK, .nr = 0, .state = ST_ZERO },
		{ .vol = VOL_DISK, .block = 255, .nr = 2, .state = ST_ZERO },
		{ .vol = VOL_DISK, .block = DISK / BLOCK, .nr = 1, .state = ST_ZERO },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_ZERO, .more = 1 },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_RAW, .addr = 200, .say_nr = 2 },
		{ .vol = VOL_DISK, .nr = 1, .state = 5 },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_RAW },
		{ .vol = VOL_DISK, .nr = 1, .state = ST_ZSTD, .addr = 200 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(list); i++) {
		struct img *img = with_record();

		append_bad(engine_of(img), &list[i]);
		assert_fails(reopen_copy(0), IMG_E_CORRUPT, "not sound (LIMG-15)");
		inside_close(img);
		inside_teardown(NULL);
		inside_setup(NULL);
	}
}

/* Sound, and yet not there: what it names lies beyond the end, or holds something else. */
static void torn_or_damaged(const struct bad_delta *b, const char *words)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	append_bad(e, b);
	assert_ok(reopen_copy(0)); /* nobody was told that it is durable */
	inside_copy("a", "b");
	inside_expect_clean("b");
	e->journal.stable = e->journal.seq - 1;
	append_zeros(e, 1);
	if (words)
		assert_fails(reopen_copy(0), IMG_E_CORRUPT, words);
	else
		assert_ok(reopen_copy(0)); /* data of durable records is not looked at */
	inside_close(img);
	inside_teardown(NULL);
	inside_setup(NULL);
}

static void test_torn_deltas(void **state)
{
	(void)state;
	torn_or_damaged(&(struct bad_delta){ .vol = VOL_DISK, .nr = 3, .state = ST_RAW, .addr = 1u << 20 },
			"beyond the end");
	torn_or_damaged(&(struct bad_delta){ .vol = VOL_DISK, .nr = 2, .state = ST_RAW, .addr = 150 }, NULL);
}

/* A durable record names space that something else has: it can be read, but nothing can be built on it. */
static void test_space_in_use(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	(void)state;
	append_bad(e, &(struct bad_delta){ .vol = VOL_DISK, .nr = 1, .state = ST_RAW, .addr = 2 });
	e->journal.stable = e->journal.seq - 1;
	append_zeros(e, 1);
	assert_ok(reopen_copy(0));
	assert_fails(reopen_copy(IMG_OPEN_WRITE), IMG_E_CORRUPT, "LIMG-9");
	inside_close(img);
}

/* Flushed beside a snapshot that did not come about: born in an epoch that there is not. */
static void test_record_of_the_next_epoch(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	struct record_buf r;

	(void)state;
	record_begin(&r);
	record_delta(&r, VOL_DISK, 5, word_make(0, e->sb.epoch + 1, ST_ZERO), 1, NULL);
	journal_begin(e);
	assert_ok(journal_append(e, &r, ERR));
	journal_end(e);
	record_free(&r);
	assert_ok(reopen_copy(0));
	assert_ok(reopen_copy(IMG_OPEN_WRITE));
	inside_expect_clean("b");
	inside_close(img);
}

/* ---- one wrong field of a record --------------------------------------------------------------------------------- */

/* Offset in the file of the last record that the engine wrote, of one AU. */
static uint64_t last_record(const struct engine *e)
{
	return au_off(e->journal.addr) + e->journal.head - AU_BYTES;
}

static void poke(uint64_t record, size_t at, unsigned bytes, uint64_t value)
{
	uint8_t page[AU_BYTES];

	inside_read("b", page, AU_BYTES, record);
	for (unsigned i = 0; i < bytes; i++)
		page[at + i] = (uint8_t)(value >> (8 * i));
	xxh128_store(page, AU_BYTES - 16, page + AU_BYTES - 16);
	inside_write("b", page, AU_BYTES, record);
}

#define F(field) offsetof(struct disk_record, field), sizeof(((struct disk_record *)0)->field)

static bool block_5_is_there(void)
{
	uint8_t buf[BLOCK];
	struct img *img = inside_open("b", 0);

	assert_ok(img_pread(img, buf, BLOCK, 5 * BLOCK, 0, ERR));
	inside_close(img);
	return !is_zero(buf, BLOCK);
}

static void test_fields(void **state)
{
	/* Each of these makes it no record of this ring: the chain ends before it. */
	static const struct {
		size_t at;
		unsigned bytes;
		uint64_t value;
	} ends[] = {
		{ F(magic), 1 },
		{ F(bytes), 512 },
		{ F(bytes), 5000 },
		{ F(bytes), 1u << 24 },
		{ F(salt), 1 },
		{ F(seq), UINT32_MAX },
		{ F(stable), 1u << 20 },
		{ offsetof(struct disk_record, uuid), 1, 0 },
		{ offsetof(struct disk_record, prev), 1, 0x55 },
	};
	struct img *img = with_record();
	uint64_t at = last_record(engine_of(img));
	struct img *copy;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
		inside_copy("a", "b");
		poke(at, ends[i].at, ends[i].bytes, ends[i].value);
		/* A stable number that is not below its own is not believed; the record is. */
		assert_int_equal(block_5_is_there(), ends[i].at == offsetof(struct disk_record, stable));
	}
	inside_copy("a", "b");
	poke(at, F(kind), 7);
	assert_fails(inside_try("b", 0, &copy), IMG_E_CORRUPT, "unknown kind 7");
	inside_copy("a", "b");
	poke(at, F(delta_bytes), AU_BYTES);
	assert_fails(inside_try("b", 0, &copy), IMG_E_CORRUPT, "not sound");
	inside_close(img);
}

/* A record that was durable is gone, and a later one says so. */
static void test_lost_record(void **state)
{
	struct img *img = with_record(), *copy;
	struct engine *e = engine_of(img);
	uint64_t at = last_record(e);
	uint8_t byte;

	(void)state;
	append_zeros(e, 1);
	inside_copy("a", "b");
	inside_read("b", &byte, 1, at + 200);
	byte ^= 1;
	inside_write("b", &byte, 1, at + 200);
	assert_ok(inside_try("b", 0, &copy));
	assert_true(engine_of(copy)->journal_damaged);
	inside_close(copy);
	assert_fails(inside_try("b", IMG_OPEN_WRITE, &copy), IMG_E_CORRUPT, "LIMG-15");
	inside_close(img);
}

/* ---- the ring's end ---------------------------------------------------------------------------------------------- */

static void fill_to(struct engine *e, uint64_t aus, unsigned each)
{
	while (e->journal.head + au_off(each) <= au_off(aus)) {
		append_zeros(e, each);
		if (e->journal.head == 0)
			return; /* round */
	}
}

static void expect_recovers(struct img *img, unsigned records)
{
	struct engine *e = engine_of(img);
	struct img *copy;

	assert_int_equal(e->journal.seq - e->sb.ring_seq, records);
	inside_copy("a", "b");
	copy = inside_open("b", 0);
	assert_false(engine_of(copy)->journal_damaged);
	inside_close(copy);
	copy = inside_open("b", IMG_OPEN_WRITE);
	inside_close(copy);
	inside_expect_clean("b");
}

static void test_wrap(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	uint64_t aus = e->journal.aus;

	(void)state;
	fill_to(e, aus - 3, 1);
	assert_ok(plain_checkpoint(e));
	append_zeros(e, 5); /* three AUs are left: a wrap record, and two that are passed over */
	assert_int_equal(e->journal.head, au_off(5));
	expect_recovers(img, 2);
	/* The tail lies before the end, the head behind the beginning. */
	assert_ok(plain_checkpoint(e));
	fill_to(e, aus, 1);
	assert_int_equal(e->journal.head, 0); /* to the very end */
	append_zeros(e, 2);
	expect_recovers(img, (unsigned)(aus - 5) + 1);
	inside_fill(img, 6 * BLOCK, BLOCK, 3);
	assert_ok(plain_checkpoint(e));
	inside_close(img);
}

/* Records all around the ring: recovery stops when it is round. */
static void test_full_ring(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	struct journal none = { 0 };

	(void)state;
	fill_to(e, e->journal.aus, 1);
	while (journal_has_room(&e->journal, AU_BYTES))
		append_zeros(e, 1);
	expect_recovers(img, (unsigned)e->journal.aus);
	assert_false(journal_has_room(&none, AU_BYTES));
	assert_false(journal_has_room(&e->journal, au_off(e->journal.aus + 1)));
	inside_close(img);
}

/* A record whose end does not fit into the memory that its deltas have taken. */
static void two_aus(struct record_buf *r)
{
	uint64_t csum = 0;

	record_begin(r);
	for (unsigned i = 0; i < 165; i++)
		record_delta(r, VOL_DISK, 9, word_make(0, 1, ST_ZERO), 1, &csum);
	record_delta(r, VOL_DISK, 9, word_make(200, 1, ST_RAW), 1, &csum);
	assert_int_equal(r->cap, AU_BYTES);
	assert_int_equal(record_bytes(r), 2 * AU_BYTES);
}

static void test_append_fails(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	struct record_buf r;

	(void)state;
	fill_to(e, e->journal.aus - 1, 1);
	assert_ok(plain_checkpoint(e));
	two_aus(&r);
	journal_begin(e);
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 1, EIO, false);
	assert_int_equal(journal_append(e, &r, ERR), IMG_E_IO); /* the wrap record */
	fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 2, EIO, false);
	assert_int_equal(journal_append(e, &r, ERR), IMG_E_IO);
	fault_plan_disarm(&inside_plan);
	record_free(&r);
	two_aus(&r);
	alloc_fault_arm(1, false);
	assert_int_equal(journal_append(e, &r, ERR), IMG_E_NOMEM);
	alloc_fault_disarm();
	assert_true(r.failed);
	record_delta(&r, VOL_DISK, 9, word_make(0, 1, ST_ZERO), 1, NULL); /* is not noticed twice */
	assert_true(r.failed);
	journal_end(e);
	record_free(&r);
	inside_close(img);
}

/* ---- recovery that fails ----------------------------------------------------------------------------------------- */

static struct img *recovered;

static void drop_recovered(void *ctx, int ret)
{
	(void)ctx;
	(void)ret;
	if (recovered)
		img_close(recovered, NULL);
}

static int recover_reading(void *ctx)
{
	(void)ctx;
	return inside_try("b", 0, &recovered);
}

static int recover_writing(void *ctx)
{
	(void)ctx;
	return inside_try("c", IMG_OPEN_WRITE, &recovered);
}

static void fresh_copy(void *ctx)
{
	(void)ctx;
	inside_copy("b", "c");
}

/* A ring with a record of more than one read, and one of compressed data. */
static void test_recovery_fails(void **state)
{
	struct inside_failures f = { NULL, recover_reading, drop_recovered, NULL, FAULT_ALL, false };
	struct img *img = with_record();
	uint8_t *zeros = calloc(1, UNIT);

	(void)state;
	append_zeros(engine_of(img), 20);
	assert_non_null(zeros);
	memset(zeros, 'z', UNIT);
	assert_ok(img_pwrite(img, zeros, UNIT, UNIT, IMG_IO_COMPRESS, ERR));
	assert_ok(img_flush(img, 0, ERR));
	inside_copy("a", "b");
	inside_close(img);
	assert_true(inside_fail_each(&f) > 10);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 10);
	f.before = fresh_copy;
	f.act = recover_writing;
	assert_true(inside_fail_each(&f) > 10);
	f.memory = false;
	assert_true(inside_fail_each(&f) > 10);
	free(zeros);
}

/* A compressed unit that is not what the record says ends the log before it. */
static void test_torn_unit(void **state)
{
	struct img *img = with_record(), *copy;
	struct engine *e = engine_of(img);
	uint8_t *buf = calloc(1, UNIT), byte = 0xee;
	uint64_t unit;

	(void)state;
	assert_non_null(buf);
	memset(buf, 'z', UNIT);
	assert_ok(img_pwrite(img, buf, UNIT, UNIT, IMG_IO_COMPRESS, ERR));
	assert_ok(img_flush(img, 0, ERR));
	inside_copy("a", "b");
	{
		struct shard *s = overlay_shard(e, VOL_DISK, 0);
		struct entry en[1];
		struct ptr root;
		unsigned levels;
		bool have;

		overlay_get(e, VOL_DISK, 0, UNIT / BLOCK, 1, en, &have, &root, &levels);
		assert_true(have && state_compressed(word_state(en[0].word)));
		unit = au_off(word_addr(en[0].word));
		assert_non_null(s);
	}
	inside_write("b", &byte, 1, unit + 20);
	copy = inside_open("b", 0);
	assert_ok(img_pread(copy, buf, UNIT, UNIT, 0, ERR));
	assert_true(is_zero(buf, UNIT));
	inside_close(copy);
	inside_close(img);
	free(buf);
}

/* ---- flushes ----------------------------------------------------------------------------------------------------- */

/* No room for a record: the checkpoint makes it durable. */
static void test_no_room(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	uint64_t generation;

	(void)state;
	e->worker_stop = true; /* or it would make room */
	while (journal_has_room(&e->journal, AU_BYTES))
		append_zeros(e, 1);
	inside_fill(img, 7 * BLOCK, BLOCK, 4);
	generation = e->sb.generation;
	assert_ok(img_flush(img, 0, ERR));
	assert_true(e->sb.generation > generation);
	/* The same met by the checkpoint itself. */
	while (journal_has_room(&e->journal, AU_BYTES))
		append_zeros(e, 1);
	inside_fill(img, 7 * BLOCK, BLOCK, 5);
	assert_ok(plain_checkpoint(e));
	inside_close(img);
	inside_expect_clean("a");
}

/* A ring that is half full wakes the worker. */
static void test_half_full(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	(void)state;
	fill_to(e, e->journal.aus / 2 + 1, 1);
	inside_fill(img, 7 * BLOCK, BLOCK, 4);
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 7 * BLOCK, BLOCK, 5);
	assert_ok(img_flush(img, 0, ERR));
	inside_close(img);
	inside_expect_clean("a");
}

/* Only machine state changed: no record, and no sync that would be for nothing twice. */
static void test_machine_state_only(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	uint64_t seq = e->journal.seq;

	(void)state;
	assert_ok(img_vmstate_write(img, "state", 5, 0, ERR));
	assert_ok(img_flush(img, 0, ERR));
	assert_int_equal(e->journal.seq, seq);
	assert_ok(img_flush(img, 0, ERR));
	inside_close(img);
}

/* States that another thread's checkpoint or flush leaves for a moment. */
static void test_states_in_passing(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	(void)state;
	e->journal_gap = true;
	assert_ok(engine_flush(e, ERR));
	assert_false(e->journal_gap);
	e->flush_waits = true;
	assert_ok(engine_flush(e, ERR)); /* nothing changed */
	inside_fill(img, 7 * BLOCK, BLOCK, 4);
	assert_ok(engine_flush(e, ERR));
	assert_false(e->flush_waits);
	e->journal_unsynced = true;
	assert_ok(engine_flush(e, ERR));
	assert_false(e->journal_unsynced);
	/* Without a ring: */
	e->has_ring = false;
	e->journal_unsynced = true;
	assert_ok(engine_flush(e, ERR));
	e->has_ring = false;
	e->journal_gap = true;
	assert_ok(engine_flush(e, ERR));
	inside_close(img);
	inside_expect_clean("a");
}

/* Records that flushes append while a checkpoint writes stay: the ring holds them, also around its end. */
static void append_two(struct engine *e)
{
	append_zeros(e, 1);
	append_zeros(e, 2);
}

static void test_flush_during_checkpoint(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	(void)state;
	inside_fill(img, 6 * BLOCK, BLOCK, 3);
	limg_hook(e, append_two);
	assert_ok(plain_checkpoint(e));
	assert_int_equal(e->journal.used, au_off(3));
	fill_to(e, e->journal.aus - 2, 1);
	inside_fill(img, 6 * BLOCK, BLOCK, 4);
	limg_hook(e, append_two);
	assert_ok(plain_checkpoint(e)); /* one AU before the end for its own record and the first */
	assert_true(e->journal.head < e->journal.tail);
	assert_true(e->journal.used >= au_off(3) && e->journal.used < au_off(6));
	expect_recovers(img, (unsigned)(e->journal.seq - e->sb.ring_seq));
	inside_close(img);
}

/* A file that is being filled is not synced before it is closed. */
static void test_bulk(void **state)
{
	struct img *img = limg_new(DISK);

	(void)state;
	inside_close(img);
	img = inside_open("a", IMG_OPEN_WRITE | IMG_OPEN_BULK);
	inside_fill(img, 0, BLOCK, 1);
	fault_plan_arm(&inside_plan, 1u << FAULT_FLUSH, 1, EIO, true);
	assert_ok(plain_checkpoint(engine_of(img)));
	assert_ok(engine_flush(engine_of(img), ERR));
	fault_plan_disarm(&inside_plan);
	inside_close(img);
	inside_expect_clean("a");
}

static void *flush_in_thread(void *arg)
{
	return engine_flush(arg, NULL) ? arg : NULL;
}

/* Several that asked while the journal was busy: one leads, and its sync serves them all. */
static void test_group_commit(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	pthread_t other[4];
	void *bad;

	(void)state;
	inside_fill(img, 6 * BLOCK, BLOCK, 3);
	journal_begin(e);
	for (unsigned i = 0; i < ARRAY_LEN(other); i++)
		assert_int_equal(pthread_create(&other[i], NULL, flush_in_thread, e), 0);
	for (unsigned i = 0; i < 2000; i++) {
		uint64_t asked;

		pthread_mutex_lock(&e->lock);
		asked = e->flush_asked - e->flush_done;
		pthread_mutex_unlock(&e->lock);
		if (asked == ARRAY_LEN(other))
			break;
		usleep(1000);
	}
	journal_end(e);
	for (unsigned i = 0; i < ARRAY_LEN(other); i++) {
		pthread_join(other[i], &bad);
		assert_null(bad);
	}
	inside_close(img);
}

static void *end_checkpoint(void *arg)
{
	usleep(20000);
	checkpoint_end(arg);
	return NULL;
}

/* Before there is a ring a flush that finds nothing to do still waits for a checkpoint that is under way. */
static void test_flush_waits_for_checkpoint(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	pthread_t other;

	(void)state;
	e->has_ring = false;
	checkpoint_begin(e);
	assert_int_equal(pthread_create(&other, NULL, end_checkpoint, e), 0);
	assert_ok(engine_flush(e, ERR));
	pthread_join(other, NULL);
	inside_close(img);
}

static void *hold_journal(void *arg)
{
	struct engine *e = arg;

	usleep(20000);
	journal_end(e);
	return NULL;
}

static void test_flush_meets_another(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	pthread_t other;

	(void)state;
	e->has_ring = false; /* as before the first flush */
	journal_begin(e);
	assert_int_equal(pthread_create(&other, NULL, hold_journal, e), 0);
	assert_ok(engine_flush(e, ERR));
	pthread_join(other, NULL);
	inside_close(img);
}

static void *checkpoint_in_thread(void *arg)
{
	static int ret;

	ret = plain_checkpoint(arg);
	return &ret;
}

static void test_poison(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);
	struct img_error why = { .code = IMG_E_IO, .msg = "the first cause" }, later = { .msg = "another" };
	pthread_t other;
	void *ret;

	(void)state;
	/* One that was allowed when it asked, and not any more when it is its turn. */
	checkpoint_begin(e);
	assert_int_equal(pthread_create(&other, NULL, checkpoint_in_thread, e), 0);
	usleep(100000);
	engine_poison(e, &why);
	engine_poison(e, &later);
	checkpoint_end(e);
	pthread_join(other, &ret);
	assert_int_equal(*(int *)ret, IMG_E_POISONED);
	assert_fails(engine_flush(e, ERR), IMG_E_POISONED, "the first cause");
	assert_fails(plain_checkpoint(e), IMG_E_POISONED, "the first cause");
	assert_int_equal(img_close(img, ERR), IMG_E_POISONED);
}

static void test_flush_without_error(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	(void)state;
	inside_fill(img, 7 * BLOCK, BLOCK, 4);
	fault_plan_arm(&inside_plan, 1u << FAULT_FLUSH, 1, EIO, false);
	assert_int_equal(engine_flush(e, NULL), IMG_E_IO);
	fault_plan_disarm(&inside_plan);
	assert_int_equal(engine_writable(e, NULL), IMG_E_POISONED);
	assert_int_equal(img_close(img, NULL), IMG_E_POISONED);
}

static void test_read_only(void **state)
{
	struct img *img = with_record(), *copy;

	(void)state;
	inside_copy("a", "b");
	copy = inside_open("b", 0);
	assert_int_equal(engine_writable(engine_of(copy), ERR), IMG_E_READONLY);
	assert_ok(engine_flush(engine_of(copy), ERR));
	inside_close(copy);
	inside_close(img);
}

/* No memory for the record: as if there were no room for it. */
static void test_no_memory_for_a_record(void **state)
{
	struct img *img = with_record();
	struct engine *e = engine_of(img);

	(void)state;
	inside_fill(img, 7 * BLOCK, BLOCK, 4);
	alloc_fault_arm(1, false);
	assert_ok(img_flush(img, 0, ERR));
	assert_int_equal(alloc_fault_failed(), 1);
	alloc_fault_disarm();
	inside_fill(img, 8 * BLOCK, BLOCK, 4);
	alloc_fault_arm(3, false); /* of a checkpoint: itself, its batch, the record */
	assert_ok(plain_checkpoint(e));
	assert_int_equal(alloc_fault_failed(), 1);
	alloc_fault_disarm();
	inside_close(img);
	inside_expect_clean("a");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_bad_deltas),
		T(test_torn_deltas),
		T(test_space_in_use),
		T(test_record_of_the_next_epoch),
		T(test_fields),
		T(test_lost_record),
		T(test_wrap),
		T(test_full_ring),
		T(test_append_fails),
		T(test_recovery_fails),
		T(test_torn_unit),
		T(test_no_room),
		T(test_half_full),
		T(test_machine_state_only),
		T(test_states_in_passing),
		T(test_flush_meets_another),
		T(test_poison),
		T(test_flush_during_checkpoint),
		T(test_bulk),
		T(test_group_commit),
		T(test_flush_waits_for_checkpoint),
		T(test_flush_without_error),
		T(test_read_only),
		T(test_no_memory_for_a_record),
	};

	return cmocka_run_group_tests_name("inside-limg-journal", tests, NULL, NULL);
}
