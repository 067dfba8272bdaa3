/* SPDX-License-Identifier: MIT */
/* The disk as a driver sees it: requests, ranges, what must be refused, and that the image holds what was written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "throttle.h"
#include "virtio_driver.h"

#define DISK_BYTES (UINT64_C(1) << 20)
#define SECTORS	   (DISK_BYTES / 512)
#define WAIT_MS	   60000 /* 29 MiB take more than 10 s under the thread sanitizer; only a failure waits that long */

#define F_RO	       (UINT64_C(1) << 5)
#define F_FLUSH	       (UINT64_C(1) << 9)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2, NOT_WRITTEN = 0xaa };

/* In guest memory: header, status, data. */
#define HEADER DRIVER_DATA
#define STATUS (DRIVER_DATA + 0x100)
#define DATA   (DRIVER_DATA + 0x1000)

struct fixture {
	struct board b;
	struct virtio *v;
	struct driver d;
	struct img *img;
	struct throttle throttle;
	char path[64];
};

static struct device *dev_of(struct fixture *f)
{
	return f->b.bus.device[f->b.bus.nr_devices - 1];
}

static void open_image(struct fixture *f, const char *format, unsigned flags)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .format = format,
					     .size_bytes = DISK_BYTES };
	struct img_open_options open = { .struct_size = sizeof(open), .format = format, .flags = flags };
	struct img_error err = { 0 };

	if (access(f->path, F_OK) != 0)
		assert_int_equal(img_create(f->path, &create, &err), 0);
	assert_int_equal(img_open(f->path, &open, &f->img, &err), 0);
}

static void start(struct fixture *f, const char *format, bool read_only, uint64_t features)
{
	struct virtio_blk_options opts = { .serial = "a-serial-number-too-long", .read_only = read_only };

	snprintf(f->path, sizeof(f->path), "test_virtio_blk.%ld.img", (long)getpid());
	unlink(f->path);
	open_image(f, format, IMG_OPEN_WRITE);
	opts.img = f->img;
	if (f->throttle.iops)
		opts.throttle = &f->throttle;
	board_init(&f->b);
	f->v = virtio_blk_create(&opts, &f->b.bus, f->b.pci, &f->b.host, &f->b.mem, NULL);
	assert_non_null(f->v);
	dev_of(f)->ops->resume(dev_of(f));
	driver_attach(&f->d, &f->b, 1);
	assert_true(driver_start(&f->d, features));
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	board_free(&f->b);
	img_close(f->img, NULL);
	unlink(f->path);
	return 0;
}

static int setup(void **state)
{
	static struct fixture f;

	memset(&f, 0, sizeof(f));
	*state = &f;
	return 0;
}

static void put_header(struct fixture *f, uint32_t type, uint64_t sector)
{
	uint32_t words[4] = { type, 0, (uint32_t)sector, (uint32_t)(sector >> 32) };

	memcpy(driver_ptr(&f->d, HEADER), words, sizeof(words));
	*(uint8_t *)driver_ptr(&f->d, STATUS) = NOT_WRITTEN;
}

/* Sends what was put together at descriptor 0; returns the status. */
static unsigned finish(struct fixture *f, uint32_t *len)
{
	uint32_t head;

	driver_offer(&f->d, 0, 0);
	driver_kick(&f->d, 0);
	assert_true(driver_wait(&f->d, 0, WAIT_MS, &head, len));
	assert_int_equal(head, 0);
	return *(uint8_t *)driver_ptr(&f->d, STATUS);
}

/* One buffer of data of `bytes` (0: none) at DATA. */
static unsigned request(struct fixture *f, uint32_t type, uint64_t sector, uint32_t bytes, uint32_t *len)
{
	bool in = type == T_IN || type == T_GET_ID || type > 100;

	put_header(f, type, sector);
	driver_desc(&f->d, 0, 0, HEADER, 16, D_NEXT, bytes ? 1 : 2);
	driver_desc(&f->d, 0, 1, DATA, bytes, in ? D_NEXT | D_WRITE : D_NEXT, 2);
	driver_desc(&f->d, 0, 2, STATUS, 1, D_WRITE, 0);
	return finish(f, len);
}

static uint8_t *data(struct fixture *f)
{
	return driver_ptr(&f->d, DATA);
}

static void fill(struct fixture *f, uint32_t bytes, unsigned seed)
{
	for (uint32_t i = 0; i < bytes; i++)
		data(f)[i] = (uint8_t)(i * 31 + i / 512 + seed);
}

static void assert_filled(const uint8_t *p, uint32_t bytes, unsigned seed)
{
	for (uint32_t i = 0; i < bytes; i++) {
		if (p[i] != (uint8_t)(i * 31 + i / 512 + seed))
			fail_msg("byte %u differs", i);
	}
}

static uint64_t config_at(struct fixture *f, unsigned off, unsigned bytes)
{
	return mmio_read(&f->b, f->d.bar + f->d.device + off, bytes);
}

/* ---- */

static void configuration(void **state)
{
	struct fixture *f = *state;

	start(f, "limg", false, F_FLUSH);
	assert_int_equal(config_read(&f->b, 1, 0, 4), 0x10421af4);
	assert_int_equal(config_at(f, 0, 4), SECTORS);
	assert_int_equal(config_at(f, 4, 4), 0);
	assert_int_equal(config_at(f, 0x14, 4), 512);
	assert_int_equal(config_at(f, 0x0c, 4), VIRTQUEUE_MAX_CHAIN - 2);
	assert_int_equal(driver_offered(&f->d) & (F_RO | F_FLUSH | F_DISCARD | F_WRITE_ZEROES),
			 F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
}

static void write_and_read(void **state)
{
	struct fixture *f = *state;
	struct virtio_blk_stats stats;
	uint8_t buf[4096];
	uint32_t len;

	start(f, "limg", false, F_FLUSH);
	fill(f, 4096, 7);
	assert_int_equal(request(f, T_OUT, 9, 4096, &len), OK);
	assert_int_equal(len, 1);
	assert_int_equal(img_pread(f->img, buf, sizeof(buf), 9 * 512, 0, NULL), 0);
	assert_filled(buf, sizeof(buf), 7);
	memset(data(f), 0, 4096);
	assert_int_equal(request(f, T_IN, 9, 4096, &len), OK);
	assert_int_equal(len, 4097);
	assert_filled(data(f), 4096, 7);
	assert_int_equal(request(f, T_FLUSH, 0, 0, &len), OK);
	assert_int_equal(len, 1);
	virtio_blk_stats(f->v, &stats);
	assert_int_equal(stats.reads, 1);
	assert_int_equal(stats.writes, 1);
	assert_int_equal(stats.flushes, 1);
	assert_int_equal(stats.read_bytes, 4096);
	assert_int_equal(stats.errors, 0);
}

/* Larger than the bounce buffer, and cut into pieces that fit nothing. */
static void large(void **state)
{
	const uint32_t bytes = 600 << 10;
	struct fixture *f = *state;
	uint32_t len;

	start(f, "raw", false, F_FLUSH);
	fill(f, bytes, 3);
	put_header(f, T_OUT, 1);
	driver_desc(&f->d, 0, 0, HEADER, 7, D_NEXT, 1);
	driver_desc(&f->d, 0, 1, HEADER + 7, 9, D_NEXT, 2);
	driver_desc(&f->d, 0, 2, DATA, 1000, D_NEXT, 3);
	driver_desc(&f->d, 0, 3, DATA + 1000, 300001, D_NEXT, 4);
	driver_desc(&f->d, 0, 4, DATA + 301001, bytes - 301001, D_NEXT, 5);
	driver_desc(&f->d, 0, 5, STATUS, 1, D_WRITE, 0);
	assert_int_equal(finish(f, &len), OK);
	memset(data(f), 0xff, bytes + 8);
	put_header(f, T_IN, 1);
	driver_desc(&f->d, 0, 2, DATA, 1000, D_NEXT | D_WRITE, 3);
	driver_desc(&f->d, 0, 3, DATA + 1000, 300001, D_NEXT | D_WRITE, 4);
	/* data and status in one piece */
	driver_desc(&f->d, 0, 4, DATA + 301001, bytes - 301001 + 1, D_WRITE, 0);
	assert_int_equal(finish(f, &len), NOT_WRITTEN);
	assert_int_equal(len, bytes + 1);
	assert_filled(data(f), bytes, 3);
	assert_int_equal(data(f)[bytes], OK);
	assert_int_equal(data(f)[bytes + 1], 0xff);
}

static void ranges_of_io(void **state)
{
	static const struct {
		uint64_t sector;
		uint32_t bytes;
		unsigned status;
	} cases[] = {
		{ SECTORS - 1, 512, OK },
		{ SECTORS - 1, 1024, IOERR },
		{ SECTORS, 512, IOERR },
		{ SECTORS, 0, OK },
		{ SECTORS + 1, 0, IOERR },
		{ UINT64_MAX, 512, IOERR },
		{ UINT64_MAX - 1, 1024, IOERR },
		{ UINT64_C(1) << 55, 512, IOERR },
		{ UINT64_MAX / 512 + 1, 512, IOERR },
		{ 0, 511, IOERR },
		{ 0, 513, IOERR },
	};
	struct fixture *f = *state;
	uint32_t len;

	start(f, "limg", false, F_FLUSH);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(data(f), 0x5a, 2048);
		assert_int_equal(request(f, T_IN, cases[i].sector, cases[i].bytes, &len), cases[i].status);
		/* on failure: the status, where it is the first byte */
		assert_int_equal(len, cases[i].status == OK || !cases[i].bytes ? cases[i].bytes + 1 : 0);
		if (cases[i].status != OK)
			assert_int_equal(data(f)[0], 0x5a);
		assert_int_equal(request(f, T_OUT, cases[i].sector, cases[i].bytes, &len), cases[i].status);
	}
}

/* More than any request may carry, made of one buffer again and again. */
static void too_long(void **state)
{
	struct fixture *f = *state;
	uint64_t table = DRIVER_DATA + 0x2000;
	uint32_t len, nr = 34;
	uint64_t *at;

	start(f, "raw", false, F_FLUSH | UINT64_C(1) << 28);
	assert_int_equal(img_resize(f->img, UINT64_C(1) << 30, 0, NULL), 0);
	at = driver_ptr(&f->d, table);
	put_header(f, T_OUT, 0);
	for (uint32_t i = 0; i < nr; i++) {
		at[2 * i] = i ? 0x200000 : HEADER;
		at[2 * i + 1] = (i ? 1u << 20 : 16) | (uint64_t)D_NEXT << 32 | (uint64_t)(i + 1) << 48;
	}
	at[2 * nr] = STATUS;
	at[2 * nr + 1] = 1 | (uint64_t)D_WRITE << 32;
	driver_desc(&f->d, 0, 0, table, 16 * (nr + 1), D_INDIRECT, 0);
	assert_int_equal(finish(f, &len), IOERR);
	at[2 * 30 + 1] = (1u << 20) | (uint64_t)D_NEXT << 32 | (uint64_t)nr << 48;
	put_header(f, T_OUT, 0);
	assert_int_equal(finish(f, &len), OK);
}

/* Saves the paused device, resets it, loads it. */
static void reload(struct fixture *f)
{
	static uint8_t buf[8192];
	struct state_writer w;
	struct state_reader r;
	struct state st;
	size_t bytes;

	state_start(&w, buf, sizeof(buf));
	dev_of(f)->ops->save(dev_of(f), &w);
	assert_int_equal(state_finish(&w, &bytes, NULL), 0);
	dev_of(f)->ops->reset(dev_of(f));
	assert_int_equal(state_parse(&st, buf, bytes, NULL), 0);
	assert_int_equal(state_open(&st, STATE_TAG('V', 'B', 'L', 'K'), 0, 1, &r, NULL), 0);
	assert_int_equal(dev_of(f)->ops->load(dev_of(f), &r, NULL), 0);
}

static void without_header_or_status(void **state)
{
	struct fixture *f = *state;
	struct img_error why;

	start(f, "raw", false, F_FLUSH);
	for (unsigned i = 0; i < 2; i++) {
		put_header(f, T_IN, 0);
		driver_desc(&f->d, 0, 0, HEADER, i ? 15 : 16, i ? D_NEXT : 0, 1);
		driver_desc(&f->d, 0, 1, STATUS, 1, D_WRITE, 0);
		driver_offer(&f->d, 0, 0);
		driver_kick(&f->d, 0);
		assert_true(DRIVER_UNTIL(virtio_is_broken(f->v, &why), WAIT_MS));
		/* what was refused is not in flight: the machine can still be saved */
		dev_of(f)->ops->pause(dev_of(f));
		reload(f);
		dev_of(f)->ops->resume(dev_of(f));
		assert_true(driver_start(&f->d, F_FLUSH));
	}
}

static void read_only(void **state)
{
	struct fixture *f = *state;
	uint64_t range[2] = { 0, 1 };
	uint32_t len;
	uint8_t byte;

	/* the image could be written, and the driver did not negotiate RO: we refuse all the same */
	start(f, "limg", true, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
	assert_true(driver_offered(&f->d) & F_RO);
	fill(f, 512, 1);
	assert_int_equal(request(f, T_OUT, 0, 512, &len), IOERR);
	memcpy(data(f), range, sizeof(range));
	assert_int_equal(request(f, T_DISCARD, 0, 16, &len), IOERR);
	assert_int_equal(request(f, T_WRITE_ZEROES, 0, 16, &len), IOERR);
	assert_int_equal(request(f, T_FLUSH, 0, 0, &len), OK);
	assert_int_equal(request(f, T_IN, 0, 512, &len), OK);
	assert_int_equal(img_pread(f->img, &byte, 1, 0, 0, NULL), 0);
	assert_int_equal(byte, 0);
}

static void other_types(void **state)
{
	struct fixture *f = *state;
	uint32_t len;

	start(f, "raw", false, F_FLUSH);
	memset(data(f), 0x77, 64);
	assert_int_equal(request(f, 0x12345678, 0, 64, &len), UNSUPP);
	assert_int_equal(len, 0);
	assert_int_equal(data(f)[0], 0x77);
	assert_int_equal(request(f, T_GET_ID, 0, 20, &len), OK);
	assert_int_equal(len, 21);
	assert_memory_equal(data(f), "a-serial-number-too-", 20);
	memset(data(f), 0x77, 64);
	assert_int_equal(request(f, T_GET_ID, 0, 3, &len), OK);
	assert_int_equal(len, 4);
	assert_memory_equal(data(f), "a-s\x77", 4);
	assert_int_equal(request(f, T_GET_ID, 0, 64, &len), OK);
	assert_int_equal(len, 20);
}

struct range {
	uint64_t sector;
	uint32_t nr_sectors, flags;
};

static unsigned ranges_request(struct fixture *f, uint32_t type, const struct range *ranges, uint32_t bytes)
{
	uint32_t len;

	memcpy(data(f), ranges, bytes);
	return request(f, type, 0, bytes, &len);
}

static void discard_and_zero(void **state)
{
	struct fixture *f = *state;
	struct range r[17] = { { 8, 16, 0 }, { 64, 8, 1 } };
	uint8_t buf[16384];

	start(f, "limg", false, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
	memset(buf, 0xee, sizeof(buf));
	for (uint64_t at = 0; at < DISK_BYTES; at += sizeof(buf))
		assert_int_equal(img_pwrite(f->img, buf, sizeof(buf), at, 0, NULL), 0);
	assert_int_equal(ranges_request(f, T_WRITE_ZEROES, r, 32), OK);
	assert_int_equal(img_pread(f->img, buf, 8192, 4096, 0, NULL), 0);
	for (unsigned i = 0; i < 8192; i++)
		assert_int_equal(buf[i], 0);
	assert_int_equal(img_pread(f->img, buf, 1, 4095, 0, NULL), 0);
	assert_int_equal(buf[0], 0xee);
	assert_int_equal(img_pread(f->img, buf, 1, 64 * 512, 0, NULL), 0);
	assert_int_equal(buf[0], 0);
	r[0] = (struct range){ 512, 128, 0 };
	assert_int_equal(ranges_request(f, T_DISCARD, r, 16), OK);
	assert_int_equal(img_pread(f->img, buf, 1, 512 * 512, 0, NULL), 0);
	assert_int_equal(buf[0], 0); /* what limg does with a discard */
	/* bits that do not exist, or not for this */
	assert_int_equal(ranges_request(f, T_DISCARD, r, 32), UNSUPP);
	r[0].flags = 2;
	assert_int_equal(ranges_request(f, T_WRITE_ZEROES, r, 16), UNSUPP);
	/* lengths: none, not whole, too many */
	r[0].flags = 0;
	assert_int_equal(ranges_request(f, T_DISCARD, r, 0), IOERR);
	assert_int_equal(ranges_request(f, T_DISCARD, r, 24), IOERR);
	r[1].flags = 0;
	assert_int_equal(ranges_request(f, T_DISCARD, r, 16 * 17), IOERR);
	/* one that ends behind the disk spoils all of them, before anything changes */
	r[0] = (struct range){ 1024, 8, 0 };
	r[1] = (struct range){ SECTORS - 1, 2, 0 };
	assert_int_equal(ranges_request(f, T_WRITE_ZEROES, r, 32), IOERR);
	assert_int_equal(img_pread(f->img, buf, 1, 1024 * 512, 0, NULL), 0);
	assert_int_equal(buf[0], 0xee);
	r[0] = (struct range){ UINT64_MAX - 3, 8, 0 };
	assert_int_equal(ranges_request(f, T_DISCARD, r, 16), IOERR);
	r[0] = (struct range){ 0, UINT32_MAX, 0 };
	assert_int_equal(ranges_request(f, T_DISCARD, r, 16), IOERR);
}

/* What was written without FLUSH being negotiated is there after a crash: another handle on the file sees it. */
static void write_through(void **state)
{
	struct fixture *f = *state;
	struct img_open_options open = { .struct_size = sizeof(open), .format = "limg", .flags = IMG_OPEN_FORCE_SHARE };
	struct img_error err = { 0 };
	struct img *other;
	uint8_t buf[512];
	uint32_t len;

	start(f, "limg", false, 0);
	fill(f, 512, 9);
	assert_int_equal(request(f, T_OUT, 100, 512, &len), OK);
	assert_int_equal(img_open(f->path, &open, &other, &err), 0);
	assert_int_equal(img_pread(other, buf, 512, 51200, 0, NULL), 0);
	assert_filled(buf, 512, 9);
	img_close(other, NULL);
}

static void another_size(void **state)
{
	struct fixture *f = *state;
	uint32_t len;

	start(f, "limg", false, F_FLUSH);
	assert_int_equal(request(f, T_IN, SECTORS, 512, &len), IOERR);
	dev_of(f)->ops->pause(dev_of(f));
	assert_int_equal(img_resize(f->img, DISK_BYTES + 4096, 0, NULL), 0);
	virtio_blk_changed(f->v);
	dev_of(f)->ops->resume(dev_of(f));
	assert_true(DRIVER_UNTIL(board_line(&f->b, PCI_GSI(1)), WAIT_MS));
	assert_int_equal(mmio_read(&f->b, f->d.bar + f->d.isr, 1) & 2, 2);
	assert_int_equal(config_at(f, 0, 4), SECTORS + 8);
	assert_int_equal(request(f, T_IN, SECTORS, 512, &len), OK);
	assert_int_equal(img_resize(f->img, DISK_BYTES, IMG_RESIZE_SHRINK, NULL), 0);
	assert_int_equal(request(f, T_IN, SECTORS, 512, &len), IOERR);
}

static void throttled(void **state)
{
	struct fixture *f = *state;
	uint64_t begin, ns;
	uint32_t len;

	throttle_init(&f->throttle, 50, 0);
	start(f, "raw", false, F_FLUSH);
	begin = driver_now_ns();
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(request(f, T_IN, i, 512, &len), OK);
	ns = driver_now_ns() - begin;
	/* a burst of five, and 15 of 20 ms each */
	assert_in_range(ns, 250000000, 5000000000);
}

/* The guest changes its buffer while it is written: what the image holds is something that was there, whole. */
static void *scribble(void *arg)
{
	volatile uint8_t *p = arg;

	for (unsigned i = 0; i < 200000; i++)
		__atomic_store_n(&p[(i * 131) % 4096], (uint8_t)i, __ATOMIC_RELAXED);
	return NULL;
}

static void buffer_changes(void **state)
{
	struct fixture *f = *state;
	struct img_check_result result;
	pthread_t thread;
	uint8_t buf[4096];
	uint32_t len;

	start(f, "limg", false, F_FLUSH);
	assert_int_equal(pthread_create(&thread, NULL, scribble, data(f)), 0);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(request(f, T_OUT, i * 8, 4096, &len), OK);
	pthread_join(thread, NULL);
	assert_int_equal(request(f, T_FLUSH, 0, 0, &len), OK);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(img_pread(f->img, buf, sizeof(buf), i * 4096, 0, NULL), 0);
	assert_int_equal(img_check(f->img, 0, NULL, NULL, NULL, &result, NULL), 0);
	assert_int_equal(result.damage, 0);
}

static void save_and_load(void **state)
{
	struct fixture *f = *state;
	uint32_t head, len;

	start(f, "limg", false, F_FLUSH);
	dev_of(f)->ops->pause(dev_of(f));
	put_header(f, T_IN, 0);
	driver_desc(&f->d, 0, 0, HEADER, 16, D_NEXT, 1);
	driver_desc(&f->d, 0, 1, DATA, 512, D_NEXT | D_WRITE, 2);
	driver_desc(&f->d, 0, 2, STATUS, 1, D_WRITE, 0);
	driver_offer(&f->d, 0, 0);
	reload(f);
	dev_of(f)->ops->resume(dev_of(f));
	assert_true(driver_wait(&f->d, 0, WAIT_MS, &head, &len));
	assert_int_equal(len, 513);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	static const struct CMUnitTest tests[] = {
		TEST(configuration),  TEST(write_and_read), TEST(large),
		TEST(ranges_of_io),   TEST(too_long),	    TEST(without_header_or_status),
		TEST(read_only),      TEST(other_types),    TEST(discard_and_zero),
		TEST(write_through),  TEST(another_size),   TEST(throttled),
		TEST(buffer_changes), TEST(save_and_load),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
