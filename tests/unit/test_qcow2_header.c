/* SPDX-License-Identifier: MIT */
/*
 * The header of qcow2: what is stored is what is loaded; a change of names takes effect with the first sector, whatever
 * a crash leaves of the rest; what other programs wrote is kept. Hostile headers are in tests/images/gen.
 */
#include "image_fixture.h"

#include "mem.h"
#include "qcow2_engine.h"
#include "qcow2_header.h"

#define SECTOR 512u

static struct qcow2_header small_header(unsigned version, unsigned cluster_bits)
{
	return (struct qcow2_header){
		.version = version,
		.size = 1u << 20,
		.cluster_bits = cluster_bits,
		.refcount_order = 4,
		.l1_entries = 1u << 20 >> (2 * cluster_bits - 3 > 20 ? 20 : 2 * cluster_bits - 3),
		.l1_off = UINT64_C(3) << cluster_bits,
		.reftable_off = UINT64_C(1) << cluster_bits,
		.reftable_clusters = 1,
		.header_bytes = version < 3 ? QCOW2_HEADER_V2_BYTES : 112,
	};
}

static void set_name(struct qcow2_header *h, size_t bytes, char letter)
{
	memset(h->backing, 0, sizeof(h->backing));
	memset(h->backing, letter, bytes);
	strcpy(h->backing_format, bytes ? "qcow2" : "");
	h->has_pin = bytes > 0;
	memset(&h->pin, 0, sizeof(h->pin));
	if (bytes == 0)
		return;
	h->pin.kind = PIN_WEAK;
	h->pin.size_bytes = bytes;
	h->pin.mtime_ns = -5;
	memset(h->pin.hash, letter, sizeof(h->pin.hash));
}

static struct node *file_of(const uint8_t *cluster, uint64_t cluster_bytes)
{
	struct node *file;

	assert_ok(mem_node_new("header", &file, ERR));
	assert_ok(node_pwrite(file, cluster, cluster_bytes, 0, 0, ERR));
	assert_ok(node_resize(file, 8 * cluster_bytes, ERR));
	return file;
}

static void load(const uint8_t *cluster, uint64_t cluster_bytes, struct qcow2_header *out)
{
	struct node *file = file_of(cluster, cluster_bytes);

	assert_ok(qcow2_header_load(file, false, out, ERR));
	assert_ok(node_close(file, ERR));
}

static void assert_same_record(const struct qcow2_header *a, const struct qcow2_header *b)
{
	assert_string_equal(a->backing, b->backing);
	assert_string_equal(a->backing_format, b->backing_format);
	assert_string_equal(a->backing_snapshot, b->backing_snapshot);
	assert_int_equal(a->has_pin, b->has_pin);
	assert_int_equal(a->committing, b->committing);
	assert_memory_equal(&a->pin, &b->pin, sizeof(a->pin));
}

/* ---- round trips ------------------------------------------------------------------------------------------------- */

static void round_trip(const struct qcow2_header *h)
{
	uint64_t cluster_bytes = UINT64_C(1) << h->cluster_bits;
	uint8_t *buf = malloc(cluster_bytes);
	struct qcow2_header back;

	assert_non_null(buf);
	memset(buf, 0xee, cluster_bytes); /* all of it is written */
	assert_ok(qcow2_header_store(h, buf, ERR));
	load(buf, cluster_bytes, &back);
	assert_same_record(h, &back);
	assert_int_equal(back.version, h->version);
	assert_int_equal(back.size, h->size);
	assert_int_equal(back.l1_entries, h->l1_entries);
	assert_int_equal(back.l1_off, h->l1_off);
	assert_int_equal(back.reftable_off, h->reftable_off);
	assert_int_equal(back.incompatible, h->incompatible);
	assert_int_equal(back.compatible, h->compatible);
	assert_int_equal(back.autoclear, h->autoclear);
	assert_int_equal(back.refcount_order, h->refcount_order);
	assert_int_equal(back.compression_type, h->compression_type);
	assert_string_equal(back.data_file, h->data_file);
	assert_int_equal(back.nr_bitmaps, h->nr_bitmaps);
	assert_int_equal(back.bitmap_dir_off, h->bitmap_dir_off);
	assert_int_equal(back.bitmap_dir_bytes, h->bitmap_dir_bytes);
	assert_int_equal(back.unknown_bytes, h->unknown_bytes);
	if (h->unknown_bytes)
		assert_memory_equal(back.unknown, h->unknown, h->unknown_bytes);
	for (size_t i = 0; i < h->nr_ext; i++) {
		bool found = false;

		for (size_t j = 0; j < back.nr_ext; j++)
			found = found || (back.ext[j].type == h->ext[i].type && back.ext[j].bytes == h->ext[i].bytes &&
					  memcmp(back.ext[j].data, h->ext[i].data, h->ext[i].bytes) == 0);
		assert_true(found);
	}
	qcow2_header_free(&back);
	free(buf);
}

static void test_round_trips(void **state)
{
	static const size_t names[] = { 0, 1, 30, 200, 1023 };

	(void)state;
	for (unsigned version = 2; version <= 3; version++) {
		for (unsigned bits = 11; bits <= 21; bits += 5) {
			for (size_t i = 0; i < ARRAY_LEN(names); i++) {
				struct qcow2_header h = small_header(version, bits);

				set_name(&h, names[i], 'b');
				round_trip(&h);
				h.committing = names[i] > 0;
				round_trip(&h);
				if (names[i])
					memset(h.backing_snapshot, 's', IMG_SNAPSHOT_NAME_MAX);
				round_trip(&h);
			}
		}
	}
}

static void test_everything_at_once(void **state)
{
	uint8_t unknown[24], foreign[77];
	struct qcow2_ext ext[2] = { { 0x1234567, sizeof(foreign), foreign }, { 0x7654321, 0, foreign } };
	struct qcow2_header h = small_header(3, 16);

	(void)state;
	memset(unknown, 0x55, sizeof(unknown));
	memset(foreign, 0x66, sizeof(foreign));
	set_name(&h, 300, 'n');
	strcpy(h.data_file, "data");
	h.incompatible = QCOW2_DATA_FILE | QCOW2_COMPRESSION | QCOW2_EXTENDED_L2;
	h.compatible = QCOW2_LAZY_REFCOUNTS | UINT64_C(1) << 40;
	h.autoclear = QCOW2_BITMAPS | UINT64_C(1) << 41;
	h.compression_type = QCOW2_ZSTD;
	h.nr_bitmaps = 2;
	h.bitmap_dir_off = UINT64_C(5) << 16;
	h.bitmap_dir_bytes = 100;
	h.unknown = unknown;
	h.unknown_bytes = sizeof(unknown);
	h.ext = ext;
	h.nr_ext = 2;
	round_trip(&h);
}

static void test_what_does_not_fit(void **state)
{
	struct qcow2_header h = small_header(3, 9);
	uint8_t buf[512];

	(void)state;
	h.l1_entries = 32;
	set_name(&h, 1023, 'x');
	assert_int_equal(qcow2_header_store(&h, buf, ERR), IMG_E_LIMIT);
	set_name(&h, 200, 'x');
	assert_ok(qcow2_header_store(&h, buf, ERR));
}

/* ---- the pin is void where it is about something else ------------------------------------------------------------- */

static void test_void_pins(void **state)
{
	uint8_t *buf = malloc(65536);
	struct qcow2_header h = small_header(3, 16), back;
	uint8_t *format = NULL;

	(void)state;
	assert_non_null(buf);
	set_name(&h, 40, 'p');
	assert_ok(qcow2_header_store(&h, buf, ERR));
	load(buf, 65536, &back);
	assert_true(back.has_pin);
	qcow2_header_free(&back);
	/* Another name of the same length, in place. */
	for (unsigned i = 112; i < SECTOR; i++)
		if (memcmp(buf + i, "pppppppp", 8) == 0 && buf[i + 39] == 'p' && buf[i - 1] == 0)
			buf[i + 3] = 'q';
	load(buf, 65536, &back);
	assert_int_equal(back.backing[3], 'q');
	assert_false(back.has_pin);
	qcow2_header_free(&back);
	/* Another format. */
	assert_ok(qcow2_header_store(&h, buf, ERR));
	for (unsigned i = 112; i + 5 < SECTOR && !format; i++)
		if (memcmp(buf + i, "qcow2", 5) == 0)
			format = buf + i;
	assert_non_null(format);
	memcpy(format, "qcow3", 5);
	load(buf, 65536, &back);
	assert_false(back.has_pin);
	assert_string_equal(back.backing_format, "qcow3");
	qcow2_header_free(&back);
	/* A snapshot is hidden, and out of hiding void. */
	strcpy(h.backing_snapshot, "gold");
	assert_ok(qcow2_header_store(&h, buf, ERR));
	load(buf, 65536, &back);
	assert_same_record(&h, &back);
	qcow2_header_free(&back);
	for (unsigned i = 112; i + 8 < SECTOR; i++)
		if (memcmp(buf + i, QCOW2_PINNED_FORMAT, 8) == 0)
			memcpy(buf + i, "qcow2\0\0\0", 8);
	load(buf, 65536, &back);
	assert_false(back.has_pin);
	assert_string_equal(back.backing_snapshot, "");
	qcow2_header_free(&back);
	free(buf);
}

/* ---- crashes ----------------------------------------------------------------------------------------------------- */

/* Before the last sync the sectors behind the first are old or new, as chance has it: the first one decides. */
static void check_torn(const uint8_t *old, const uint8_t *new, uint64_t bytes, const struct qcow2_header *was)
{
	uint8_t *disk = malloc(bytes);
	struct qcow2_header back;

	assert_non_null(disk);
	for (unsigned round = 0; round < 8; round++) {
		memcpy(disk, old, bytes);
		for (uint64_t at = SECTOR; at < bytes; at += SECTOR)
			if (round == 0 || random_below(2))
				memcpy(disk + at, new + at, SECTOR);
		load(disk, bytes, &back);
		assert_same_record(was, &back);
		qcow2_header_free(&back);
	}
	free(disk);
}

static void test_change_is_atomic(void **state)
{
	static const size_t names[] = { 1020, 10, 1023, 1000, 500, 3, 900, 0, 400, 401, 1023, 0, 1022 };
	struct qcow2_engine *e = calloc(1, sizeof(*e));

	(void)state;
	assert_non_null(e);
	for (unsigned version = 2; version <= 3; version++) {
		uint8_t old[4096], new[4096];
		struct qcow2_header was, back;

		e->h = small_header(version, 12);
		e->h.l1_entries = 1;
		e->cluster_bytes = sizeof(old);
		assert_ok(qcow2_header_store(&e->h, old, ERR));
		/* As another program may have put it: across the places that we use. */
		memset(old + 1500, 'z', 900);
		memcpy(old + 8, (uint8_t[]){ 0, 0, 0, 0, 0, 0, 1500 / 256, 1500 % 256, 0, 0, 900 / 256, 900 % 256 },
		       12);
		load(old, sizeof(old), &e->h);
		qcow2_header_free(&e->h);
		e->file = file_of(old, sizeof(old));
		for (size_t i = 0; i < ARRAY_LEN(names); i++) {
			was = e->h;
			set_name(&e->h, names[i], (char)('a' + i));
			e->h.committing = names[i] && i % 2;
			assert_ok(qcow2_header_write(e, ERR));
			assert_ok(node_pread(e->file, new, sizeof(new), 0, 0, ERR));
			check_torn(old, new, sizeof(new), &was);
			load(new, sizeof(new), &back);
			assert_same_record(&e->h, &back);
			assert_int_equal(back.backing_off, e->h.backing_off);
			qcow2_header_free(&back);
			memcpy(old, new, sizeof(old));
		}
		assert_ok(node_close(e->file, ERR));
	}
	free(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trips),	  cmocka_unit_test(test_everything_at_once),
		cmocka_unit_test(test_what_does_not_fit), cmocka_unit_test(test_void_pins),
		cmocka_unit_test(test_change_is_atomic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
