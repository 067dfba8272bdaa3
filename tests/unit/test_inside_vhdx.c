/* SPDX-License-Identifier: MIT */
/*
 * VHDX's log, found and written: entries that are wrong in each of their parts under a right checksum, rings that go on
 * at their beginning, and every failure of the host and of memory while an image is opened, replayed, written, resized
 * and closed. After each failure the image opens and holds, block by block, what it held before or after.
 */
#include "inside.h"

#include "crc32c.h"
#include "disk_int.h"
#include "vhdx.h"

#define BLOCK	MIB
#define SECTOR	VHDX_SECTOR_BYTES
#define LOG_OFF MIB /* where vhdx_create() puts it */
#define SECTORS (MIB / SECTOR)

/* ---- logs that are made here ------------------------------------------------------------------------------------- */

static const uint8_t log_guid[16] = { 1, 2, 3 };

/* An entry of one "desc" and one "zero" descriptor, and what is changed in it before its checksum is made. */
struct made {
	uint64_t at; /* sector of the ring */
	uint64_t sequence, tail;
	uint64_t data_off, zero_off, zero_bytes; /* of the file */
	uint64_t flushed, last;
	unsigned extra_sectors; /* behind its own */
	/* bytes that are changed: `bytes` of `value` at `off`; bytes 0: none */
	struct {
		unsigned off, bytes;
		uint64_t value;
	} patch;
	bool bad_sum;
};

static uint8_t entry[64 * SECTOR];

static void ring_write(const uint8_t *data, uint64_t bytes, uint64_t at)
{
	uint64_t first = min_u64(bytes, MIB - at);

	inside_write("a", data, first, LOG_OFF + at);
	if (first < bytes)
		inside_write("a", data + first, bytes - first, LOG_OFF);
}

static void make_entry(const struct made *m)
{
	uint64_t bytes = (2 + m->extra_sectors) * SECTOR;
	struct disk_vhdx_log_entry e = { .bytes = le32_of((uint32_t)bytes),
					 .tail = le32_of((uint32_t)(m->tail * SECTOR)),
					 .sequence = le64_of(m->sequence),
					 .nr_descriptors = le32_of(2),
					 .flushed_file_bytes = le64_of(m->flushed),
					 .last_file_bytes = le64_of(m->last) };
	struct disk_vhdx_descriptor d[2] = {
		{ .signature = "desc", .off = le64_of(m->data_off), .sequence = le64_of(m->sequence) },
		{ .signature = "zero",
		  .leading = le64_of(m->zero_bytes),
		  .off = le64_of(m->zero_off),
		  .sequence = le64_of(m->sequence) },
	};
	struct disk_vhdx_log_data s = { .signature = "data",
					.sequence_high = le32_of((uint32_t)(m->sequence >> 32)),
					.sequence_low = le32_of((uint32_t)m->sequence) };
	struct le64 value = le64_of(m->patch.value);

	memset(entry, 0, sizeof(entry));
	memset(s.data, 0x5a, sizeof(s.data));
	d[0].leading = le64_of(UINT64_C(0x5a5a5a5a5a5a5a5a));
	d[0].trailing = le32_of(0x5a5a5a5a);
	memcpy(e.signature, "loge", 4);
	memcpy(e.log, log_guid, 16);
	memcpy(entry, &e, sizeof(e));
	memcpy(entry + sizeof(e), d, sizeof(d));
	memcpy(entry + SECTOR, &s, sizeof(s));
	memcpy(entry + m->patch.off, &value, m->patch.bytes);
	e.checksum = le32_of(crc32c(0, entry, (size_t)bytes) + m->bad_sum);
	memcpy(entry + offsetof(struct disk_vhdx_log_entry, checksum), &e.checksum, 4);
	ring_write(entry, bytes, m->at * SECTOR);
}

/* The header says that the log counts. */
static void log_counts(void)
{
	struct vhdx_header h;
	struct node *file;

	assert_ok(mem_node_on(inside_content("a"), "a", &(struct host_open){ .writable = true }, &file, ERR));
	assert_ok(vhdx_header_load(file, &h, ERR));
	assert_int_equal(h.log.off, LOG_OFF);
	assert_int_equal(h.log.bytes, MIB);
	memcpy(h.log_guid, log_guid, 16);
	assert_ok(vhdx_header_store(file, &h, true, ERR));
	node_close(file, NULL);
}

/* The first block of the image has a place in the file: here. */
static uint64_t new_image(void)
{
	struct img *img;
	uint64_t place;

	inside_teardown(NULL);
	inside_setup(NULL);
	inside_create("a", "vhdx", 8 * BLOCK, "block_size=1M");
	img = inside_open("a", IMG_OPEN_WRITE);
	inside_fill(img, 0, 16 * KIB, 1);
	inside_close(img);
	place = mem_content_size(inside_content("a")) - BLOCK;
	log_counts();
	return place;
}

static struct made sound_entry(uint64_t place)
{
	return (struct made){ .sequence = 7,
			      .data_off = place,
			      .zero_off = place + SECTOR,
			      .zero_bytes = SECTOR,
			      .flushed = place,
			      .last = place + BLOCK };
}

/* Is what the entry says seen by who reads, and by who writes? */
static bool is_seen(unsigned flags)
{
	uint8_t is[2 * SECTOR], before[16];
	struct img *img;
	bool seen;

	inside_copy("a", "b");
	img = inside_open("b", flags);
	assert_ok(img_pread(img, is, sizeof(is), 0, 0, ERR));
	inside_close(img);
	memset(before, 0x5a, sizeof(before));
	seen = memcmp(is, before, 16) == 0;
	assert_int_equal(seen, is[SECTOR] == 0 && is[SECTOR + 1] == 0 && is[2 * SECTOR - 1] == 0);
	return seen;
}

#define E(field) offsetof(struct disk_vhdx_log_entry, field)
#define D(nr, field)                                                                       \
	(sizeof(struct disk_vhdx_log_entry) + (nr) * sizeof(struct disk_vhdx_descriptor) + \
	 offsetof(struct disk_vhdx_descriptor, field))

/* What makes an entry none: as if it was not there. */
static void test_no_entry(void **state)
{
	static const struct {
		unsigned off, bytes;
		uint64_t value;
	} wrong[] = {
		{ E(signature), 1, 'x' },
		{ E(log), 1, 9 },
		{ E(bytes), 4, 0 },
		{ E(bytes), 4, SECTOR + 1 },
		{ E(bytes), 4, 2 * MIB },
		{ E(tail), 4, 1 },
		{ E(tail), 4, MIB },
		{ E(sequence), 8, 0 },
		{ E(nr_descriptors), 4, 0 },	  /* and a sector of data */
		{ E(nr_descriptors), 4, 127 },	  /* the second sector is one of descriptors */
		{ E(nr_descriptors), 4, 100000 }, /* which do not fit in it */
		{ D(0, sequence), 8, 8 },
		{ D(0, off), 8, 1 },
		{ D(0, off), 8, UINT64_C(1) << 63 },
		{ D(0, signature), 1, 'x' },
		{ D(1, leading), 8, 1 },
		{ D(1, leading), 8, (uint64_t)INT64_MAX - 4095 },
		{ SECTOR, 1, 'x' },
		{ SECTOR + 4, 4, 1 },
		{ SECTOR + 4092, 4, 1 },
	};
	struct made m;

	(void)state;
	m = sound_entry(new_image());
	make_entry(&m);
	assert_true(is_seen(0) && is_seen(IMG_OPEN_WRITE));
	m.bad_sum = true;
	make_entry(&m);
	assert_false(is_seen(0) || is_seen(IMG_OPEN_WRITE));
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		m = sound_entry(new_image());
		m.patch.off = wrong[i].off;
		m.patch.bytes = wrong[i].bytes;
		m.patch.value = wrong[i].value;
		make_entry(&m);
		if (is_seen(0) || is_seen(IMG_OPEN_WRITE))
			fail_msg("entry %zu counts", i);
	}
}

/* What an entry must not say: the image is not opened, for anything. */
static void test_refused(void **state)
{
	struct made m;
	struct img *img;
	uint64_t place;

	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		place = new_image();
		m = sound_entry(place);
		switch (i) {
		case 0: m.data_off = 0; break;	     /* the headers */
		case 1: m.data_off = LOG_OFF; break; /* the log */
		case 2: m.zero_off = LOG_OFF - SECTOR, m.zero_bytes = 2 * SECTOR; break;
		case 3: m.data_off = place + BLOCK; break; /* behind the end */
		case 4: m.zero_off = place + BLOCK; break;
		case 5: m.flushed = place + 2 * BLOCK; break; /* the file is cut off */
		case 6: m.last = UINT64_C(1) << 63; break;
		default: m.zero_off = LOG_OFF + MIB - SECTOR; break; /* its last sector */
		}
		make_entry(&m);
		assert_int_equal(inside_try("a", 0, &img), IMG_E_CORRUPT);
		assert_int_equal(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_CORRUPT);
	}
	/* Nothing at all may be said of any place. */
	m = sound_entry(new_image());
	m.zero_off = 0;
	m.zero_bytes = 0;
	make_entry(&m);
	assert_int_equal(inside_try("a", 0, &img), 0);
	inside_close(img);
	assert_int_equal(inside_try("a", IMG_OPEN_WRITE, &img), 0);
	inside_close(img);
}

/* ---- rings ------------------------------------------------------------------------------------------------------- */

/* Entries from sector `at` on, whose numbers go up from `first`. The last one names the tail. */
static void chain(uint64_t place, uint64_t at, uint64_t first, unsigned nr, uint64_t tail)
{
	for (unsigned i = 0; i < nr; i++) {
		struct made m = sound_entry(place);

		m.at = (at + 2 * i) % SECTORS;
		m.sequence = first + i;
		m.tail = tail;
		make_entry(&m);
	}
}

static void test_rings(void **state)
{
	uint64_t place;
	struct made m;

	(void)state;
	place = new_image(); /* over the end, also in the middle of an entry */
	chain(place, SECTORS - 3, 5, 3, SECTORS - 3);
	assert_true(is_seen(0) && is_seen(IMG_OPEN_WRITE));
	place = new_image(); /* from its own end to its own beginning: all of it */
	chain(place, 10, 5, SECTORS / 2, 10);
	assert_true(is_seen(0) && is_seen(IMG_OPEN_WRITE));
	place = new_image(); /* the tail is none of it */
	chain(place, 10, 5, 3, 100);
	assert_false(is_seen(0));
	place = new_image(); /* the newer one of two, whichever stands first */
	chain(place, 10, 50, 2, 10);
	chain(place, 40, 5, 2, 400 % SECTORS);
	assert_true(is_seen(0));
	place = new_image();
	chain(place, 10, 5, 2, 200);
	chain(place, 40, 50, 2, 42); /* the tail is its second one */
	assert_true(is_seen(0));
	place = new_image(); /* a number is missing: the second one stands for itself */
	chain(place, 10, 5, 1, 10);
	chain(place, 12, 7, 1, 12);
	assert_true(is_seen(0));
	/* An entry that is longer than what the ring has left: over what it began with. */
	place = new_image();
	chain(place, 10, 5, SECTORS / 2 - 1, 10);
	m = sound_entry(place);
	m.at = 8;
	m.sequence = 5 + SECTORS / 2 - 1;
	m.tail = 10;
	m.extra_sectors = 0;
	make_entry(&m);
	assert_true(is_seen(0));
}

/* More descriptors than the first sector of an entry holds; a file that becomes longer; more changes than at first. */
static void test_many(void **state)
{
	const unsigned nr = 200;
	struct disk_vhdx_log_entry e = { .bytes = le32_of(2 * SECTOR), .nr_descriptors = le32_of(nr) };
	uint8_t *to = entry + sizeof(e), is[SECTOR];
	uint64_t place = new_image();
	struct img *img;

	(void)state;
	memset(entry, 0, sizeof(entry));
	memcpy(e.signature, "loge", 4);
	memcpy(e.log, log_guid, 16);
	e.sequence = le64_of(3);
	e.flushed_file_bytes = le64_of(place);
	e.last_file_bytes = le64_of(place + 3 * BLOCK);
	memcpy(entry, &e, sizeof(e));
	for (unsigned i = 0; i < nr; i++, to += sizeof(struct disk_vhdx_descriptor)) {
		struct disk_vhdx_descriptor d = { .signature = "zero",
						  .leading = le64_of(SECTOR),
						  .off = le64_of(place + 2 * BLOCK - (i + 1) * SECTOR),
						  .sequence = le64_of(3) };

		memcpy(to, &d, sizeof(d));
	}
	e.checksum = le32_of(crc32c(0, entry, 2 * SECTOR));
	memcpy(entry, &e, sizeof(e));
	ring_write(entry, 2 * SECTOR, 0);
	img = inside_open("a", 0);
	assert_ok(img_pread(img, is, SECTOR, 0, 0, ERR));
	inside_close(img);
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_int_equal(mem_content_size(inside_content("a")), place + 3 * BLOCK);
	inside_close(img);
}

/* ---- each failure ------------------------------------------------------------------------------------------------ */

/* What is compared of the disk: where blocks begin and end, and what the tests write between. */
#define WINDOW	   (64 * KIB)
#define NR_WINDOWS 6u

struct content {
	uint8_t at[NR_WINDOWS][2 * WINDOW];
};

static struct run {
	int (*act)(void);
	struct content before, after, is;
} run;

/* Of "a", around the beginning of each block. */
static void take_content(struct content *out)
{
	struct img *img = inside_open("a", 0);

	memset(out, 0, sizeof(*out));
	for (uint64_t i = 0; i < NR_WINDOWS; i++)
		assert_ok(img_pread(img, out->at[i], i ? 2 * WINDOW : WINDOW, i ? i * BLOCK - WINDOW : 0, 0, ERR));
	inside_close(img);
}

/* "t" is the image that each attempt begins with. */
static void each_before(void *ctx)
{
	(void)ctx;
	inside_copy("t", "a");
}

static int each_act(void *ctx)
{
	(void)ctx;
	return run.act();
}

/* Each sector is as before or as after. Room that nobody has is all that is left behind. */
static void each_after(void *ctx, int ret)
{
	const uint8_t *is = run.is.at[0], *before = run.before.at[0], *after = run.after.at[0];
	struct img_check_result result;
	struct img *img;

	(void)ctx;
	take_content(&run.is);
	for (size_t at = 0; at < sizeof(struct content); at += 512)
		if (memcmp(is + at, after + at, 512) != 0 && (ret == 0 || memcmp(is + at, before + at, 512) != 0))
			fail_msg("ret %d: window %zu, 0x%zx: neither as before nor as after", ret, at / (2 * WINDOW),
				 at % (2 * WINDOW));
	img = inside_open("a", 0);
	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage, 0);
	inside_close(img);
}

static void each_failure(void (*prepare)(void), int (*act)(void))
{
	struct inside_failures f = { each_before, each_act, each_after, NULL, FAULT_ALL, false };

	inside_teardown(NULL);
	inside_setup(NULL);
	prepare();
	inside_copy("a", "t");
	run.act = act;
	take_content(&run.before);
	assert_int_equal(act(), 0);
	take_content(&run.after);
	assert_true(inside_fail_each(&f) > 0);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 0);
}

static int try_close(struct img *img, int ret)
{
	int closed = img ? img_close(img, NULL) : 0;

	return ret == 0 ? closed : ret;
}

static void prepare_alone(void)
{
	struct img *img;

	inside_create("a", "vhdx", 6 * BLOCK, "block_size=1M");
	img = inside_open("a", IMG_OPEN_WRITE);
	inside_fill(img, BLOCK - 8 * KIB, 16 * KIB, 3);
	inside_fill(img, 5 * BLOCK, 8 * KIB, 4);
	inside_close(img);
}

static void prepare_child(void)
{
	struct img_create_options o = { .struct_size = sizeof(o),
					.format = "vhdx",
					.options = "block_size=1M",
					.backing = "p",
					.backing_format = "vhdx" };
	struct img *img;

	inside_create("p", "vhdx", 6 * BLOCK, "block_size=1M");
	img = inside_open("p", IMG_OPEN_WRITE);
	inside_fill(img, BLOCK - 8 * KIB, 16 * KIB, 3);
	inside_close(img);
	assert_ok(image_create_env("a", &o, &inside_host.env, ERR));
}

static uint8_t some[3 * SECTOR];

/* Writes, flushes, resizes, closes. */
static int act_write(void)
{
	struct img *img;
	int ret = inside_try("a", IMG_OPEN_WRITE, &img);

	memset(some, 0x77, sizeof(some));
	if (ret == 0)
		ret = img_pwrite(img, some, sizeof(some), 4 * BLOCK - SECTOR, 0, ERR);
	if (ret == 0)
		ret = img_flush(img, 0, ERR);
	if (ret == 0)
		ret = img_zero(img, BLOCK, BLOCK, 0, ERR);
	if (ret == 0)
		ret = img_pwrite(img, some, 512, 5 * BLOCK + 512, 0, ERR);
	if (ret == 0)
		ret = img_flush(img, 0, ERR);
	return try_close(img, ret);
}

/* A log that was left, by a program that was killed. */
static void prepare_log(void)
{
	struct made m = sound_entry(new_image());

	make_entry(&m);
}

static int act_open(void)
{
	struct img *img;
	uint8_t byte;
	int ret = inside_try("a", 0, &img);

	if (ret == 0)
		ret = img_pread(img, &byte, 1, 5, 0, ERR);
	return try_close(img, ret);
}

static int act_replay(void)
{
	struct img *img;
	int ret = inside_try("a", IMG_OPEN_WRITE, &img);

	return try_close(img, ret);
}

static int act_repair(void)
{
	struct img_open_options o = { .struct_size = sizeof(o), .flags = IMG_OPEN_WRITE };
	struct img_check_result result;
	struct img *img = NULL;
	int ret = image_open_for_check("a", &o, &inside_host.env, &img, ERR);

	if (ret == 0)
		ret = img_check(img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, ERR);
	return try_close(img, ret);
}

static void test_failures(void **state)
{
	(void)state;
	each_failure(prepare_alone, act_write);
	each_failure(prepare_child, act_write);
	each_failure(prepare_log, act_open);
	each_failure(prepare_log, act_replay);
	each_failure(prepare_log, act_repair);
}

/* A file that could not grow for once, after which all goes well: places were lost, perhaps behind others and perhaps
 * before them, and a session that ends without an error leaves no log that counts. */
static void test_full_once(void **state)
{
	bool failed = true;

	(void)state;
	for (uint64_t n = 1; failed; n++) {
		struct vhdx_header h;
		struct node *file;
		struct img *img;

		inside_teardown(NULL);
		inside_setup(NULL);
		prepare_child();
		memset(some, 0x77, sizeof(some));
		img = inside_open("a", IMG_OPEN_WRITE);
		fault_plan_arm(&inside_plan, 1u << FAULT_RESIZE, n, ENOSPC, false);
		assert_int_equal(img_pwrite(img, some, SECTOR, BLOCK, 0, NULL), n < 3 ? IMG_E_NOSPC : 0);
		failed = inside_plan.failed > 0;
		fault_plan_disarm(&inside_plan);
		assert_ok(img_pwrite(img, some, SECTOR, BLOCK, 0, ERR));
		assert_ok(img_flush(img, 0, ERR));
		inside_close(img);
		assert_ok(mem_node_on(inside_content("a"), "a", &(struct host_open){ 0 }, &file, ERR));
		assert_ok(vhdx_header_load(file, &h, ERR));
		assert_ok(node_close(file, ERR));
		assert_false(h.needs_replay);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_no_entry, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_refused, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_rings, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_many, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_failures, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_full_once, inside_setup, inside_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
