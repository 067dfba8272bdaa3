/* SPDX-License-Identifier: MIT */
/*
 * The block engine where requests meet: in one block, in one page of the table, before the first change. What one of
 * them does while another one waits is told by hooks in the host, not by chance.
 */
#include <semaphore.h>

#include "blockmap_inside.h"

/* A page that is on its way to the disk stays in memory, whoever wants its room. */
static struct rig *hook_rig;

static void read_much(void)
{
	struct blockmap_entry e;

	for (uint64_t i = 0; i < 400; i += 8)
		assert_ok(blockmap_get(hook_rig->bm, i, &e, ERR));
}

static void test_while_writing(void **state)
{
	struct rig *r = rig_new(WITH_ZERO | BACKED);

	(void)state;
	r->shape.nr_blocks = 400; /* 50 pages, of which the cache takes 7 */
	assert_ok(rig_open(r));
	assert_ok(put(r, 1, 8 * BLOCK, 0));
	assert_ok(put(r, 2, 8 * BLOCK, 24 * BLOCK));
	hook_rig = r;
	at_write = read_much;
	assert_ok(blockmap_flush(r->bm, ERR));
	assert_null(at_write);
	rig_reopen(r);
	holds(r, 1, 8 * BLOCK, 0);
	holds(r, 2, 8 * BLOCK, 24 * BLOCK);
	rig_end(r);
}

/* ---- requests that meet ------------------------------------------------------------------------------------------ */

/* tid sleeps: it waits for what the caller holds. */
static void wait_asleep(const _Atomic int *tid)
{
	char name[64], line[512] = "";
	unsigned nr_asleep = 0;

	for (unsigned i = 0; i < 10000 && nr_asleep < 3; i++) {
		const char *at = NULL;
		FILE *f = NULL;

		usleep(500);
		snprintf(name, sizeof(name), "/proc/self/task/%d/stat", *tid);
		if (*tid != 0)
			f = fopen(name, "r");
		if (f && fgets(line, sizeof(line), f))
			at = strrchr(line, ')');
		nr_asleep = at && strncmp(at, ") S", 3) == 0 ? nr_asleep + 1 : 0;
		if (f)
			fclose(f);
	}
}

struct other {
	struct rig *r;
	_Atomic int tid;
	uint64_t bytes, off;
	bool zero;
	sem_t begun, go; /* go: it may read from the backing */
	pthread_t thread;
	int ret;
} other;

static void wait_for_go(void)
{
	sem_post(&other.begun);
	sem_wait(&other.go);
}

static void *other_main(void *arg)
{
	static uint8_t data[8 * BLOCK];

	(void)arg;
	other.tid = gettid();
	memset(data, 0x22, sizeof(data));
	if (other.zero)
		other.ret = blockmap_zero(other.r->bm, other.bytes, other.off, 0, NULL);
	else
		other.ret = blockmap_pwrite(other.r->bm, data, other.bytes, other.off, NULL);
	return NULL;
}

/* The first one has its claim, and reads what it leaves out. The other one runs until it waits, or claimed as well. */
static void start_other(void)
{
	if (other.off != 0)
		at_read = wait_for_go;
	pthread_create(&other.thread, NULL, other_main, NULL);
	if (other.off == 0)
		wait_asleep(&other.tid); /* the same block: it waits for us */
	else
		sem_wait(&other.begun);
}

static void other_init(struct rig *r, uint64_t bytes, uint64_t off, bool zero)
{
	memset(&other, 0, sizeof(other));
	other.r = r;
	other.bytes = bytes;
	other.off = off;
	other.zero = zero;
	sem_init(&other.begun, 0, 0);
	sem_init(&other.go, 0, 0);
	at_read = NULL;
}

static void other_end(void)
{
	at_read = NULL;
	sem_post(&other.go);
	pthread_join(other.thread, NULL);
	sem_destroy(&other.begun);
	sem_destroy(&other.go);
}

static void load_pages(struct rig *r)
{
	assert_ok(blockmap_pread(r->bm, r->seen, 3 * BLOCK, 0, ERR));
}

/* Two writers of one block: the second finds it written. The third finds a claim behind its first block. */
static void test_same_block(void **state)
{
	struct rig *r = rig_start(BACKED);

	(void)state;
	load_pages(r);
	other_init(r, 512, 0, false);
	at_read = start_other;
	assert_ok(put(r, 0x11, 512, 1024)); /* block 0, which is what the other one writes to */
	other_end();
	assert_int_equal(other.ret, 0);
	holds(r, 0x22, 512, 0);
	holds(r, 0xb0, 512, 512);
	holds(r, 0x11, 512, 1024);
	rig_end(r);

	/* Both have new blocks, of which the second one's come first. */
	for (unsigned zero = 0; zero < 2; zero++) {
		r = rig_start(BACKED | (zero ? WITH_ZERO : 0));
		load_pages(r);
		other_init(r, 3 * BLOCK, 0, zero);
		at_read = start_other;
		assert_ok(put(r, 0x11, 512, BLOCK + 1024));
		other_end();
		assert_int_equal(other.ret, 0);
		holds(r, zero ? 0 : 0x22, 3 * BLOCK, 0);
		sound(r);
		rig_end(r);
	}
}

/* Who waited looks again, and finds what it cannot read. */
static void start_other_blind(void)
{
	start_other();
	other.r->fail_decode = IMG_E_CORRUPT;
}

static void test_blind(void **state)
{
	(void)state;
	for (unsigned zero = 0; zero < 2; zero++) {
		struct rig *r = rig_start(BACKED | WITH_ZERO);

		load_pages(r);
		other_init(r, zero ? BLOCK : 512, 0, zero);
		at_read = start_other_blind;
		assert_ok(put(r, 0x11, 512, 1024));
		other_end();
		assert_int_equal(other.ret, IMG_E_CORRUPT);
		r->fail_decode = 0;
		holds(r, 0xb0, 1024, 0);
		holds(r, 0x11, 512, 1024);
		rig_end(r);
	}
}

/* The first of two ends first, whether it fails or not: the other one's places lie behind its own. */
static void test_other_block(void **state)
{
	(void)state;
	for (unsigned fails = 0; fails < 2; fails++) {
		struct rig *r = rig_start(BACKED);

		load_pages(r);
		other_init(r, 512, 2 * BLOCK + 512, false);
		at_read = start_other;
		if (fails)
			fault_plan_arm(&inside_plan, 1u << FAULT_WRITE, 1, EIO, false);
		assert_int_equal(put(r, 0x11, 512, 1024), fails ? IMG_E_IO : 0);
		fault_plan_disarm(&inside_plan);
		other_end();
		assert_int_equal(other.ret, 0);
		assert_int_equal(blockmap_lost_places(r->bm), fails);
		holds(r, fails ? 0xb0 : 0x11, 512, 1024);
		holds(r, 0x22, 512, 2 * BLOCK + 512);
		sound(r);
		rig_end(r);
	}
}

/* Whoever comes while the first change is announced waits for that, and does not announce it again. */
static unsigned nr_begun;

static void *touch_main(void *arg)
{
	other.tid = gettid();
	return blockmap_touch(arg, NULL) == 0 ? arg : NULL;
}

static int begin_slowly(struct blockmap *bm, struct img_error *err)
{
	(void)err;
	if (nr_begun++ == 0) {
		other.tid = 0;
		pthread_create(&other.thread, NULL, touch_main, bm);
		wait_asleep(&other.tid);
	}
	return 0;
}

static void test_touch(void **state)
{
	struct rig *r = rig_start(OPS);
	void *done;

	(void)state;
	nr_begun = 0;
	r->ops.begin = begin_slowly;
	assert_ok(put(r, 1, 512, 0));
	pthread_join(other.thread, &done);
	assert_non_null(done);
	assert_int_equal(nr_begun, 1);
	rig_end(r);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_while_writing), TEST(test_same_block), TEST(test_blind),
		TEST(test_other_block),	  TEST(test_touch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
