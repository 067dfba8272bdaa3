/* SPDX-License-Identifier: MIT */
/*
 * VHDX's own structures: headers that change in turn, the log as it is written and found again after any of its
 * entries, bitmaps and tables that do not fit into one entry, the locator, options.
 */
#include "mem.h"
#include "mock.h"
#include "vhdx.h"

extern const struct img_driver vhdx_driver;

static struct node *image;

static struct node *fresh(uint64_t size_bytes, const char *options)
{
	const struct driver_create args = { .size_bytes = size_bytes, .options = options };
	struct node *file;

	assert_int_equal(mem_node_new("f", &file, NULL), 0);
	assert_int_equal(vhdx_create(file, &args, NULL), 0);
	return file;
}

static struct vhdx_state *open_image(struct node *file)
{
	const struct driver_open args = { .writable = true };

	image = node_new(&vhdx_driver, "f", NULL);
	assert_non_null(image);
	image->file = file;
	image->writable = true;
	assert_int_equal(node_open(image, &args, NULL), 0);
	return vhdx_state_of(image);
}

static int end(void **state)
{
	(void)state;
	if (image)
		node_close(image, NULL);
	image = NULL;
	return 0;
}

static void test_headers_in_turn(void **state)
{
	struct node *file = fresh(1 << 20, NULL);
	struct vhdx_header a, b;

	(void)state;
	assert_int_equal(vhdx_header_load(file, &a, NULL), 0);
	assert_false(a.bad_copy);
	for (unsigned i = 0; i < 5; i++) {
		b = a;
		assert_int_equal(vhdx_guid_new(b.file_write, NULL), 0);
		assert_int_equal(vhdx_header_store(file, &b, true, NULL), 0);
		assert_int_equal(b.which, !a.which);
		assert_int_equal(vhdx_header_load(file, &a, NULL), 0);
		assert_memory_equal(&a, &b, sizeof(a));
	}
	/* The other copy is the one before. */
	assert_int_equal(node_pwrite(file, "x", 1, a.which ? VHDX_HEADER_B : VHDX_HEADER_A, 0, NULL), 0);
	assert_int_equal(vhdx_header_load(file, &b, NULL), 0);
	assert_int_equal(b.sequence, a.sequence - 1);
	assert_true(b.bad_copy);
	a.sequence = UINT64_MAX;
	assert_int_equal(vhdx_header_store(file, &a, true, NULL), IMG_E_LIMIT);
	node_close(file, NULL);
}

/* Who could begin to write, and not end, does not begin. */
static void test_last_headers(void **state)
{
	static const uint64_t numbers[] = { UINT64_MAX - VHDX_SESSION_HEADERS - 1, UINT64_MAX - VHDX_SESSION_HEADERS,
					    UINT64_MAX };
	struct driver_open args = { .writable = true };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(numbers); i++) {
		struct node *file = fresh(1 << 20, NULL);
		struct vhdx_header h;

		assert_int_equal(vhdx_header_load(file, &h, NULL), 0);
		h.sequence = numbers[i] - 1;
		assert_int_equal(vhdx_header_store(file, &h, true, NULL), 0);
		for (unsigned writable = 0; writable < 2; writable++) {
			struct img_error err = { .code = IMG_OK };

			args.writable = writable != 0;
			image = node_new(&vhdx_driver, "f", NULL);
			assert_non_null(image);
			image->file = file;
			image->writable = args.writable;
			assert_int_equal(node_open(image, &args, &err), writable && i == 2 ? IMG_E_LIMIT : 0);
			image->file = NULL;
			end(NULL);
		}
		node_close(file, NULL);
	}
}

/* What a reader sees of [off, off + bytes), and how many entries count. */
static void through_the_log(struct node *file, void *buf, uint64_t bytes, uint64_t off)
{
	struct vhdx_header h;
	struct node *over;

	assert_int_equal(vhdx_header_load(file, &h, NULL), 0);
	assert_true(h.needs_replay);
	assert_int_equal(vhdx_log_open(file, &h, NULL, &over, NULL), 0);
	assert_ptr_not_equal(over, file);
	assert_int_equal(node_pread(over, buf, bytes, off, 0, NULL), 0);
	over->file = NULL;
	node_close(over, NULL);
}

/* Entries of all lengths, several times around the ring: each is what counts, whether its change reached its place or
 * not. */
static void test_every_entry_counts(void **state)
{
	static uint8_t now[VHDX_ENTRY_DATA * 4096], seen[sizeof(now)], junk[sizeof(now)];
	struct vhdx_state *s = open_image(fresh(1 << 20, NULL));
	struct node *file = image->file;
	uint64_t at = s->m.bat.off + 65536;

	(void)state;
	memset(junk, 0xee, sizeof(junk));
	for (unsigned i = 0; i < 300; i++) {
		uint64_t sectors = 1 + i * 7 % VHDX_ENTRY_DATA, bytes = sectors * 4096;
		struct vhdx_change c[2] = { { at, bytes, now }, { at + bytes, 8192, NULL } };

		memset(now, (int)(i & 0x7f) + 1, (size_t)bytes);
		assert_int_equal(vhdx_journal_write(s, c, 2, NULL), 0);
		assert_int_equal(node_pread(file, seen, bytes, at, 0, NULL), 0);
		assert_memory_equal(seen, now, (size_t)bytes);
		/* As if nothing of it had been written. */
		assert_int_equal(node_pwrite(file, junk, bytes, at, 0, NULL), 0);
		assert_int_equal(node_pwrite(file, junk, 8192, at + bytes, 0, NULL), 0);
		through_the_log(file, seen, bytes, at);
		assert_memory_equal(seen, now, (size_t)bytes);
		through_the_log(file, seen, 8192, at + bytes);
		memset(junk + 16384, 0, 8192);
		assert_memory_equal(seen, junk + 16384, 8192);
		memset(junk, 0xee, sizeof(junk));
		assert_int_equal(node_pwrite(file, now, bytes, at, 0, NULL), 0);
		assert_int_equal(node_zero(file, 8192, at + bytes, 0, NULL), 0);
	}
	/* Closed, it counts no more; the table is as it was. */
	assert_int_equal(node_zero(file, sizeof(now) + 8192, at, 0, NULL), 0);
	assert_int_equal(vhdx_journal_end(s, NULL), 0);
	assert_false(s->log.active);
}

/* A torn entry leaves the one before it. */
static void test_torn_entry(void **state)
{
	static uint8_t now[8192], seen[8192];
	struct vhdx_state *s = open_image(fresh(1 << 20, NULL));
	struct node *file = image->file;
	uint64_t at = s->m.bat.off + 65536;

	(void)state;
	for (unsigned i = 1; i < 200; i++) {
		struct vhdx_change c = { at, sizeof(now), now };
		uint64_t place;

		memset(now, (int)(i & 0x7f) + 1, sizeof(now));
		assert_int_equal(vhdx_journal_write(s, &c, 1, NULL), 0);
		place = s->log.at;
		if (i % 9 != 0)
			continue;
		/* The next one, as far as its first sector. */
		memset(now, 0xaa, sizeof(now));
		assert_int_equal(vhdx_journal_write(s, &c, 1, NULL), 0);
		if (s->log.at < place)
			place = 0;
		assert_int_equal(node_zero(file, 4096, s->log.ring.off + place + 4096, 0, NULL), 0);
		memset(now, (int)(i & 0x7f) + 1, sizeof(now));
		through_the_log(file, seen, sizeof(seen), at);
		assert_memory_equal(seen, now, sizeof(now));
		/* Its number is not given again, its room is. */
		s->log.at = place;
	}
	assert_int_equal(node_zero(file, sizeof(now), at, 0, NULL), 0);
}

/* More pages than one entry holds: the table of 64 TiB, and bits of blocks in one sector. */
static void test_large_flush(void **state)
{
	static const uint8_t x[512] = { 1 };
	struct vhdx_state *s = open_image(fresh(UINT64_C(64) << 40, "block_size=1M"));
	struct node *file = image->file;
	struct driver_open args = { 0 };
	struct node *reader;
	uint8_t byte;

	(void)state;
	for (uint64_t i = 0; i < 200; i++)
		assert_int_equal(node_pwrite(image, x, sizeof(x), i << 35, 0, NULL), 0);
	assert_int_equal(node_flush(image, 0, NULL), 0);
	assert_true(s->log.sequence > 3);
	/* A reader, while the log counts. */
	reader = node_new(&vhdx_driver, "f", NULL);
	reader->file = file;
	assert_int_equal(node_open(reader, &args, NULL), 0);
	for (uint64_t i = 0; i < 200; i++) {
		assert_int_equal(node_pread(reader, &byte, 1, i << 35, 0, NULL), 0);
		assert_int_equal(byte, 1);
	}
	assert_ptr_not_equal(reader->file, file);
	reader->file->file = NULL;
	node_close(reader, NULL);
}

static void test_refused_changes(void **state)
{
	static const uint64_t where[] = { 0, 65536, VHDX_MIB, 2 * VHDX_MIB - 4096, UINT64_C(1) << 50 };
	static uint8_t sector[4096];
	struct vhdx_header h;
	struct node *over;

	(void)state;
	/* The log is made to say what it must not: by the writer itself, which trusts its callers. */
	for (unsigned i = 0; i < ARRAY_LEN(where); i++) {
		struct vhdx_state *s = open_image(fresh(1 << 20, NULL));
		struct vhdx_change c = { where[i], 4096, sector };
		struct node *file = image->file;
		uint8_t was[4096];

		if (where[i] < VHDX_MIB * 8)
			assert_int_equal(node_pread(file, was, 4096, where[i], 0, NULL), 0);
		c.off = s->m.bat.off + 65536;
		assert_int_equal(vhdx_journal_write(s, &c, 1, NULL), 0);
		c.off = where[i];
		if (where[i] >= VHDX_MIB * 8)
			c.data = NULL;
		if (where[i] == VHDX_MIB || c.data == NULL) {
			/* It would write over itself, or make the file endless. */
			end(NULL);
			continue;
		}
		assert_int_equal(vhdx_journal_write(s, &c, 1, NULL), 0);
		assert_int_equal(node_pwrite(file, was, 4096, where[i], 0, NULL), 0);
		if (vhdx_header_load(file, &h, NULL) == 0 && h.needs_replay)
			assert_int_equal(vhdx_log_open(file, &h, NULL, &over, NULL), IMG_E_CORRUPT);
		end(NULL);
	}
}

static void test_options(void **state)
{
	static const char *const bad[] = { "block_size=0",    "block_size=3M",
					   "block_size=512M", "block_size=1Mx",
					   "log_size=0",      "log_size=1500K",
					   "log_size=2G",     "logical_sector_size=513",
					   "sparse=1",	      "subformat=thin",
					   "uuid=12",	      "physical_sector_size=8192",
					   "nonsense",	      "a=b" };
	struct vhdx_options o;
	uint8_t uuid[16];

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(vhdx_options_parse(bad[i], &o, NULL), IMG_E_INVALID);
	assert_int_equal(vhdx_options_parse("subformat=fixed,block_size=256M,logical_sector_size=4096,"
					    "uuid=00112233-4455-6677-8899-aabbccddeeff,log_size=3M,sparse=off",
					    &o, NULL),
			 0);
	assert_true(o.fixed && o.solid && o.has_uuid);
	assert_int_equal(o.block_bytes, 256 << 20);
	assert_int_equal(o.log_bytes, 3 << 20);
	assert_int_equal(o.uuid[0], 0x33);
	vhdx_uuid_of_guid(o.uuid, uuid);
	assert_int_equal(uuid[0], 0x00);
	assert_int_equal(uuid[15], 0xff);
}

/* Names there and back, through the item on disk. */
static void test_locator(void **state)
{
	static const char *const names[] = { "base.vhdx", "../a b/größe.vhdx", "/an/absolute.vhdx" };
	static uint8_t text[VHDX_LOCATOR_OURS];
	struct vhdx_parent p = { .committing = true }, seen;
	struct node *file;
	uint32_t bytes;

	(void)state;
	assert_int_equal(mem_node_new("f", &file, NULL), 0);
	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		struct vhdx_range at = { 4096, 0 };

		strcpy(p.name[0], names[i]);
		assert_int_equal(vhdx_guid_new(p.linkage, NULL), 0);
		p.committing = !p.committing;
		assert_int_equal(vhdx_locator_make(&p, text, &bytes, NULL), 0);
		assert_int_equal(node_pwrite(file, text, bytes, 4096, 0, NULL), 0);
		at.bytes = bytes;
		memset(&seen, 0, sizeof(seen));
		assert_int_equal(vhdx_locator_load(file, &at, &seen, NULL), 0);
		assert_string_equal(seen.name[0], names[i]);
		assert_memory_equal(seen.linkage, p.linkage, 16);
		assert_int_equal(seen.committing, p.committing);
	}
	strcpy(p.name[0], "back\\slash");
	assert_int_equal(vhdx_locator_make(&p, text, &bytes, NULL), IMG_E_INVALID);
	strcpy(p.name[0], "no utf-8: \xff");
	assert_int_equal(vhdx_locator_make(&p, text, &bytes, NULL), IMG_E_INVALID);
	node_close(file, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_headers_in_turn),
		cmocka_unit_test(test_last_headers),
		cmocka_unit_test_teardown(test_every_entry_counts, end),
		cmocka_unit_test_teardown(test_torn_entry, end),
		cmocka_unit_test_teardown(test_large_flush, end),
		cmocka_unit_test_teardown(test_refused_changes, end),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_locator),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
