/* SPDX-License-Identifier: MIT */
/*
 * VHDX's log at its own interface: entries that are written and found again while the host, memory or random numbers
 * fail, a file that changes while its log is read, logs that are too large, and places that entries may lie in.
 */
#include "inside.h"

#include <sys/random.h>

#include "budget.h"
#include "crc32c.h"
#include "disk_int.h"
#include "vhdx.h"

#define SECTOR	VHDX_SECTOR_BYTES
#define PLACE	(8 * MIB) /* of the file, that nobody has: what entries of these tests change */
#define PLACES	(MIB)
#define NR_WIDE (VHDX_ENTRY_DATA + 5)

extern const struct img_driver vhdx_driver;

/* The call to getrandom() that fails, from 1. */
static unsigned random_fails;

ssize_t __real_getrandom(void *buf, size_t bytes, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t bytes, unsigned flags);
ssize_t __wrap_getrandom(void *buf, size_t bytes, unsigned flags)
{
	return random_fails > 0 && --random_fails == 0 ? -1 : __real_getrandom(buf, bytes, flags);
}

/* ---- a file whose content changes while it is read --------------------------------------------------------------- */

static struct img_driver hooked;
static unsigned change_at; /* the read before which it changes, from 1; 0: none */
static uint64_t change_off;
static struct node *bytes_of_file;

static int hooked_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	if (change_at > 0 && --change_at == 0)
		assert_ok(node_pwrite(bytes_of_file, "changed", 7, change_off, 0, ERR));
	return fault_driver.pread(n, buf, bytes, off, flags, err);
}

/* ---- an image without the library around it ---------------------------------------------------------------------- */

static struct node *image;

static void make_file(const char *options)
{
	const struct driver_create create = { .size_bytes = 6 * MIB, .options = options };
	struct node *file;

	assert_ok(mem_node_new("f", &bytes_of_file, ERR));
	assert_ok(fault_node_new(bytes_of_file, &inside_plan, &file, ERR));
	hooked = fault_driver;
	hooked.pread = hooked_pread;
	file->drv = &hooked;
	change_at = 0;
	random_fails = 0;
	assert_ok(vhdx_create(file, &create, ERR));
	if (node_size(file) < PLACE + PLACES)
		assert_ok(node_resize(file, PLACE + PLACES, ERR));
	image = node_new(&vhdx_driver, "f", ERR);
	assert_non_null(image);
	image->file = file;
	image->writable = true;
}

static struct vhdx_state *start(void)
{
	const struct driver_open args = { .writable = true };

	make_file("block_size=1M");
	assert_ok(node_open(image, &args, ERR));
	return vhdx_state_of(image);
}

/* As if the program ended: the file stays, its log too. */
static struct node *leave(void)
{
	struct vhdx_state *s = vhdx_state_of(image);
	struct node *file = image->file;

	blockmap_free(s->bm);
	pthread_mutex_destroy(&s->header_lock);
	image->file = NULL;
	image->opened = false;
	node_close(image, NULL);
	image = NULL;
	return file;
}

static void file_end(struct node *file)
{
	file->drv = &fault_driver;
	node_close(file, NULL);
}

static void stop(void)
{
	file_end(leave());
}

/* What a reader sees at PLACE; 0: no log counts. */
static uint8_t seen(struct node *file)
{
	struct vhdx_header h;
	struct node *over;
	uint8_t is;

	assert_ok(vhdx_header_load(file, &h, ERR));
	assert_ok(vhdx_log_open(file, &h, NULL, &over, ERR));
	assert_ok(node_pread(over, &is, 1, PLACE, 0, ERR));
	if (over != file) {
		over->file = NULL;
		node_close(over, NULL);
	}
	return is;
}

static uint8_t data[NR_WIDE * SECTOR];

static int write_one(struct vhdx_state *s, uint8_t with, uint64_t off)
{
	struct vhdx_change c[2] = { { off, SECTOR, data }, { off + SECTOR, SECTOR, NULL } };

	memset(data, with, SECTOR);
	return vhdx_journal_write(s, c, 2, ERR);
}

/* ---- each failure of an entry ------------------------------------------------------------------------------------ */

static void entry_before(void *ctx)
{
	(void)ctx;
	assert_ok(write_one(start(), 1, PLACE));
	assert_ok(vhdx_journal_end(vhdx_state_of(image), ERR));
	vhdx_state_of(image)->touched = false;
}

/* The second one waits for the first one to be durable in its place. */
static int entry_act(void *ctx)
{
	struct vhdx_state *s = vhdx_state_of(image);
	int ret = write_one(s, 2, PLACE);

	(void)ctx;
	if (ret == 0)
		ret = write_one(s, 3, PLACE);
	return ret == 0 ? vhdx_journal_end(s, ERR) : ret;
}

static void entry_after(void *ctx, int ret)
{
	struct node *file = leave();
	uint8_t is = seen(file);

	(void)ctx;
	assert_true(ret == 0 ? is == 3 : is >= 1 && is <= 3);
	file_end(file);
}

static void test_entries(void **state)
{
	struct inside_failures f = { entry_before, entry_act, entry_after, NULL, FAULT_ALL, false };

	(void)state;
	assert_true(inside_fail_each(&f) > 5);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 1);
	for (unsigned k = 1; k <= 2; k++) { /* the file's GUID, the log's */
		entry_before(NULL);
		random_fails = k;
		assert_fails(write_one(vhdx_state_of(image), 2, PLACE), IMG_E_IO, "random numbers");
		assert_int_equal(random_fails, 0);
		entry_after(NULL, IMG_E_IO);
	}
}

/* ---- each failure of what the engine stores ---------------------------------------------------------------------- */

static struct blockmap_write wide[NR_WIDE];

/* More sectors than an entry holds, two writes to one of them, one before the table and one behind it. */
static size_t wide_writes(const struct vhdx_state *s)
{
	size_t nr = 0;

	memset(data, 9, sizeof(data));
	wide[nr++] = (struct blockmap_write){ data, 512, s->m.metadata.off + s->m.metadata.bytes - 512 };
	wide[nr++] = (struct blockmap_write){ data, 8, s->m.bat.off + SECTOR * 2 + 8 };
	wide[nr++] = (struct blockmap_write){ data, 8, s->m.bat.off + SECTOR * 2 + 64 };
	wide[nr++] = (struct blockmap_write){ data, 3 * SECTOR, PLACE + 100 };
	while (nr < NR_WIDE)
		wide[nr] = (struct blockmap_write){ data, 512, PLACE + (2 * nr) * SECTOR }, nr++;
	return nr;
}

static void store_before(void *ctx)
{
	struct vhdx_state *s = start();

	s->bulk = *(const bool *)ctx;
}

static int store_act(void *ctx)
{
	struct vhdx_state *s = vhdx_state_of(image);

	(void)ctx;
	return vhdx_journal_store(s->bm, wide, wide_writes(s), ERR);
}

static void store_after(void *ctx, int ret)
{
	struct vhdx_state *s = vhdx_state_of(image);
	uint8_t is[SECTOR];

	(void)ctx;
	if (ret == 0) {
		size_t nr = wide_writes(s);

		for (size_t i = 0; i < nr; i++) {
			assert_ok(node_pread(image->file, is, 8, wide[i].off, 0, ERR));
			assert_memory_equal(is, data, 8);
		}
		assert_int_equal(s->log.active, !s->bulk);
	}
	stop();
}

static void test_store(void **state)
{
	bool bulk = false;
	struct inside_failures f = { store_before, store_act, store_after, &bulk, FAULT_ALL, false };

	(void)state;
	assert_true(inside_fail_each(&f) > 10);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 3);
	f.memory = false;
	bulk = true;
	assert_int_equal(inside_fail_each(&f), NR_WIDE); /* plain writes */
	/* A log that counts already goes on. */
	store_before(&bulk);
	vhdx_state_of(image)->bulk = false;
	assert_ok(write_one(vhdx_state_of(image), 1, PLACE));
	vhdx_state_of(image)->bulk = true;
	assert_ok(store_act(NULL));
	assert_true(vhdx_state_of(image)->log.active);
	stop();
}

/* ---- finding it -------------------------------------------------------------------------------------------------- */

/* Three entries, each of which is its own tail. */
static struct node *three_entries(void)
{
	struct vhdx_state *s = start();

	for (uint8_t i = 1; i <= 3; i++)
		assert_ok(write_one(s, i, PLACE));
	return leave();
}

static int open_log(struct node *file, struct budget *budget, struct node **over)
{
	struct vhdx_header h;
	int ret = vhdx_header_load(file, &h, ERR);

	return ret == 0 ? vhdx_log_open(file, &h, budget, over, ERR) : ret;
}

static void drop_log(struct node *file, struct node *over)
{
	if (over == file)
		return;
	over->file = NULL;
	node_close(over, NULL);
}

/* All entries of one sequence, by hand: they name the second one as the tail. */
static struct node *one_sequence(uint64_t *log_off)
{
	struct node *file = three_entries();
	struct vhdx_header h;

	assert_ok(vhdx_header_load(file, &h, ERR));
	*log_off = h.log.off;
	for (unsigned i = 0; i < 3; i++) {
		uint8_t entry[2 * SECTOR] = { 0 };
		struct disk_vhdx_log_entry e;
		uint64_t at = h.log.off + i * sizeof(entry);

		assert_ok(node_pread(file, entry, sizeof(entry), at, 0, ERR));
		memcpy(&e, entry, sizeof(e));
		e.tail = le32_of(2 * SECTOR);
		e.checksum = le32_of(0);
		memcpy(entry, &e, sizeof(e));
		e.checksum = le32_of(crc32c(0, entry, sizeof(entry)));
		memcpy(entry, &e, sizeof(e));
		assert_ok(node_pwrite(file, entry, sizeof(entry), at, 0, ERR));
	}
	return file;
}

/* Each read fails; before each read one of the entries is destroyed: it is seen as a whole, refused, or not there. */
static void test_changing(void **state)
{
	uint64_t log_off;
	struct node *file, *over;
	unsigned k = 0;
	int ret;

	(void)state;
	file = one_sequence(&log_off);
	assert_int_equal(seen(file), 3);
	do {
		fault_plan_arm(&inside_plan, 1u << FAULT_READ, ++k, EIO, false);
		ret = open_log(file, NULL, &over);
		fault_plan_disarm(&inside_plan);
		assert_true(ret == 0 || ret == IMG_E_IO);
		if (ret == 0)
			drop_log(file, over);
	} while (ret != 0);
	assert_true(k > 20);
	file_end(file);
	for (unsigned entry = 0; entry < 3; entry++) {
		unsigned refused = 0;

		for (unsigned at = 1; at < k; at += at < 20 ? 1 : at > k - 20 ? 1 : 40) {
			file = one_sequence(&log_off);
			change_off = log_off + entry * 2 * SECTOR;
			change_at = at;
			ret = open_log(file, NULL, &over);
			change_at = 0;
			assert_true(ret == 0 || ret == IMG_E_CORRUPT);
			refused += ret != 0;
			if (ret == 0)
				drop_log(file, over);
			file_end(file);
		}
		assert_true(entry == 0 || refused > 0); /* the first one stands before the tail */
	}
}

/* A log may lie anywhere, and change what lies before it; what it makes longer reads as zeros. */
static void test_places(void **state)
{
	struct vhdx_state *s = start();
	struct node *file, *over;
	struct vhdx_header h;
	uint8_t is[2] = { 1, 1 };
	uint64_t size;

	(void)state;
	s->log.ring.off = PLACE;
	s->h.log.off = PLACE;
	s->log.end = PLACE + 4 * MIB;
	assert_ok(write_one(s, 5, PLACE - 2 * SECTOR));
	assert_ok(node_pwrite(image->file, "x", 1, PLACE - 2 * SECTOR, 0, ERR)); /* not there yet */
	file = leave();
	size = node_size(file);
	assert_ok(vhdx_header_load(file, &h, ERR));
	assert_int_equal(h.log.off, PLACE);
	assert_ok(vhdx_log_open(file, &h, NULL, &over, ERR));
	assert_ok(node_pread(over, is, 1, PLACE - 2 * SECTOR, 0, ERR));
	assert_int_equal(is[0], 5);
	assert_int_equal(node_size(over), PLACE + 4 * MIB);
	assert_ok(node_pread(over, is, 2, size - 1, 0, ERR));
	assert_ok(node_pread(over, is + 1, 1, size + MIB, 0, ERR));
	assert_int_equal(is[0] | is[1], 0);
	/* Nothing changes as long as there are no random numbers for the header. */
	random_fails = 1;
	assert_fails(vhdx_log_replay(&over, &h, ERR), IMG_E_IO, "random numbers");
	assert_true(h.needs_replay);
	assert_ok(vhdx_log_replay(&over, &h, ERR));
	assert_ptr_equal(over, file);
	assert_false(h.needs_replay);
	assert_int_equal(node_size(file), PLACE + 4 * MIB);
	file_end(file);
}

static void test_limits(void **state)
{
	const uint64_t nr = (UINT64_C(1) << 20) + 1, sectors = 1 + (nr - 126 + 127) / 128;
	struct budget budget;
	struct node *file = three_entries(), *over;
	struct vhdx_header h;
	uint8_t *entry, *d;

	(void)state;
	/* An entry, its change, the list of them: each of them asks. */
	for (unsigned i = 0; i < 4; i++) {
		memset(&budget, 0xff, sizeof(budget));
		budget.metadata_bytes = budget.references = 0;
		budget.limit[BUDGET_METADATA] = i == 0 ? 100 : i == 1 ? SECTOR + 100 : (i + 1) * SECTOR + 100;
		if (i < 3)
			assert_fails(open_log(file, &budget, &over), IMG_E_LIMIT, "");
	}
	file_end(file);
	/* More changes than anybody makes. */
	make_file("block_size=1M,log_size=64M");
	file = image->file;
	image->file = NULL;
	node_close(image, NULL);
	assert_ok(vhdx_header_load(file, &h, ERR));
	memset(h.log_guid, 7, sizeof(h.log_guid));
	assert_ok(vhdx_header_store(file, &h, true, ERR));
	entry = calloc(sectors, SECTOR);
	assert_non_null(entry);
	d = entry + sizeof(struct disk_vhdx_log_entry);
	for (uint64_t i = 0; i < nr; i++, d += sizeof(struct disk_vhdx_descriptor)) {
		struct disk_vhdx_descriptor zero = { .signature = "zero", .sequence = le64_of(1) };

		memcpy(d, &zero, sizeof(zero));
	}
	struct disk_vhdx_log_entry e = { .signature = "loge",
					 .bytes = le32_of((uint32_t)(sectors * SECTOR)),
					 .sequence = le64_of(1),
					 .nr_descriptors = le32_of((uint32_t)nr) };
	memset(e.log, 7, sizeof(e.log));
	memcpy(entry, &e, sizeof(e));
	e.checksum = le32_of(crc32c(0, entry, sectors * SECTOR));
	memcpy(entry, &e, sizeof(e));
	assert_ok(node_pwrite(file, entry, sectors * SECTOR, h.log.off, 0, ERR));
	assert_fails(open_log(file, NULL, &over), IMG_E_LIMIT, "more than 1048576 changes");
	free(entry);
	file_end(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_entries, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_store, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_changing, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_places, inside_setup, inside_teardown),
		cmocka_unit_test_setup_teardown(test_limits, inside_setup, inside_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
