/* SPDX-License-Identifier: MIT */
/* VHD's structures: which footer counts, whose size, what headers are refused, a parent's paths, options. */
#include "mem.h"
#include "mock.h"
#include "vhd.h"

#define DISK_BYTES  (1u << 20)
#define BLOCK_BYTES 4096u

static struct node *file;

static void fresh(const char *options)
{
	const struct driver_create args = { .size_bytes = DISK_BYTES, .options = options };

	if (file)
		node_close(file, NULL);
	assert_int_equal(mem_node_new("f", &file, NULL), 0);
	assert_int_equal(vhd_create(file, &args, NULL), 0);
}

static int end(void **state)
{
	(void)state;
	if (file)
		node_close(file, NULL);
	file = NULL;
	return 0;
}

static void get(uint64_t off, void *buf, size_t bytes)
{
	assert_int_equal(node_pread(file, buf, bytes, off, 0, NULL), 0);
}

static void put(uint64_t off, const void *buf, size_t bytes)
{
	assert_int_equal(node_pwrite(file, buf, bytes, off, 0, NULL), 0);
}

static uint64_t tail_off(void)
{
	return node_size(file) - VHD_SECTOR_BYTES;
}

/* ---- size -------------------------------------------------------------------------------------------------------- */

static struct disk_vhd_footer footer_of(const char *creator, uint64_t bytes, uint16_t c, uint8_t h, uint8_t s)
{
	struct disk_vhd_footer f;

	vhd_footer_init(&f, bytes);
	memcpy(f.creator, creator, sizeof(f.creator));
	f.cylinders = be16_of(c);
	f.heads = h;
	f.sectors = s;
	return f;
}

static void test_size_rule(void **state)
{
	static const struct {
		char creator[5];
		uint64_t bytes;
		uint16_t c;
		uint8_t h, s;
		uint64_t want;
	} table[] = {
		{ "win ", 136365211648, 65535, 16, 255, 136365211648 },
		{ "win ", 1000448, 4, 4, 17, 1000448 },
		{ "qem2", 1000448, 4, 4, 17, 1000448 },
		{ "limg", 1000448, 4, 4, 17, 1000448 },
		{ "wa", 1000448, 4, 4, 17, 1000448 },
		{ "qemu", 1000448, 4, 4, 17, 4 * 4 * 17 * 512 },
		{ "vpc ", 1000448, 4, 4, 17, 4 * 4 * 17 * 512 },
		{ "vpc ", 136365211648, 65278, 16, 255, UINT64_C(65278) * 16 * 255 * 512 },
		{ "qemu", 1000448, 65535, 16, 255, 1000448 }, /* the largest: whoever writes it has no better one */
		{ "vpc ", 1000448, 0, 16, 255, 1000448 },     /* none at all */
		{ "vpc ", 1000448, 65535, 16, 254, UINT64_C(65535) * 16 * 254 * 512 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct disk_vhd_footer f =
			footer_of(table[i].creator, table[i].bytes, table[i].c, table[i].h, table[i].s);

		if (vhd_footer_size(&f) != table[i].want)
			fail_msg("case %zu: %llu bytes", i, (unsigned long long)vhd_footer_size(&f));
		assert_int_equal(vhd_size_from_geometry(&f), table[i].want != table[i].bytes);
	}
	/* What is written says one size to all. */
	struct disk_vhd_footer f = footer_of("qemu", 512, 1, 1, 1);

	vhd_footer_set_size(&f, 123456 * 512);
	assert_int_equal(vhd_footer_size(&f), 123456 * 512);
	assert_int_equal(be64_get(f.original_bytes), 123456 * 512);
}

static void test_time(void **state)
{
	(void)state;
	assert_int_equal(vhd_timestamp(VHD_EPOCH), 0);
	assert_int_equal(vhd_timestamp(VHD_EPOCH + 1), 1);
	assert_int_equal(vhd_timestamp(VHD_EPOCH - 1), 0);
	assert_int_equal(vhd_timestamp(0), 0);
	assert_int_equal(vhd_timestamp(VHD_EPOCH + (int64_t)UINT32_MAX), UINT32_MAX);
	assert_int_equal(vhd_timestamp(VHD_EPOCH + (int64_t)UINT32_MAX + 1), 0);
}

/* ---- footers ----------------------------------------------------------------------------------------------------- */

enum harm { NONE, STALE, ABSENT, OTHER_ID, OTHER_TIME, FIXED };

/* The footer at off, harmed; sealed again where its checksum is not what is harmed. */
static void harm(uint64_t off, enum harm how)
{
	struct disk_vhd_footer f;

	get(off, &f, sizeof(f));
	switch (how) {
	case NONE: return;
	case STALE: f.timestamp.b[3] ^= 1; break;
	case ABSENT: f.cookie[0] = 'X'; break;
	case OTHER_ID: f.uuid[0] ^= 1; break;
	case OTHER_TIME: f.timestamp.b[3] ^= 1; break;
	case FIXED:
		f.type = be32_of(VHD_FIXED);
		f.current_bytes = be64_of(off);
		break;
	}
	if (how != STALE)
		vhd_footer_seal(&f);
	put(off, &f, sizeof(f));
}

static void test_which_footer(void **state)
{
	static const struct {
		enum harm head, tail;
		int want;
		bool differ, stale;
	} table[] = {
		{ NONE, NONE, 0, false, false },
		{ NONE, ABSENT, 0, false, false },
		{ NONE, STALE, 0, false, false },
		{ ABSENT, NONE, 0, false, false },
		{ STALE, NONE, 0, false, false },
		{ OTHER_TIME, NONE, 0, true, false },
		{ NONE, OTHER_TIME, 0, true, false },
		{ STALE, STALE, 0, false, true }, /* both in the same way */
		{ STALE, ABSENT, IMG_E_CORRUPT, false, false },
		{ ABSENT, STALE, IMG_E_CORRUPT, false, false },
		{ ABSENT, ABSENT, IMG_E_FORMAT, false, false },
		{ OTHER_ID, NONE, IMG_E_REFUSED, false, false },
		{ NONE, OTHER_ID, IMG_E_REFUSED, false, false },
		{ NONE, FIXED, IMG_E_REFUSED, false, false },
		{ ABSENT, FIXED, 0, false, false },
	};
	struct vhd_footers foot;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct img_error err = { 0 };
		int ret;

		fresh("block_size=4096");
		harm(0, table[i].head);
		harm(tail_off(), table[i].tail);
		ret = vhd_footers_load(file, &foot, &err);
		if (ret != table[i].want ||
		    (ret == 0 && (foot.differ != table[i].differ || foot.stale != table[i].stale)))
			fail_msg("case %zu: %d %s", i, ret, err.msg);
	}
}

static void test_old_footer(void **state)
{
	struct disk_vhd_footer f;
	struct vhd_footers foot;

	(void)state;
	for (unsigned bytes = 511; bytes >= 510; bytes--) {
		fresh("subformat=fixed");
		get(tail_off(), &f, sizeof(f));
		assert_int_equal(node_resize(file, DISK_BYTES + bytes, NULL), 0);
		if (bytes == 511) {
			assert_int_equal(vhd_footers_load(file, &foot, NULL), 0);
			assert_int_equal(foot.tail_off, DISK_BYTES);
			assert_int_equal(foot.tail_bytes, 511);
			assert_memory_equal(&foot.f, &f, 511);
		} else {
			assert_int_equal(vhd_footers_load(file, &foot, NULL), IMG_E_FORMAT);
		}
	}
}

/* What a footer says must make sense for its file. */
static void test_refused_footers(void **state)
{
#define F(field) offsetof(struct disk_vhd_footer, field)
	static const struct {
		const char *options;
		size_t at;
		uint64_t value;
		unsigned bytes;
		int want;
	} table[] = {
		{ "", F(version), 0x00020000, 4, IMG_E_UNSUPPORTED },
		{ "", F(version), 0x00010005, 4, 0 },
		{ "", F(type), 0, 4, IMG_E_UNSUPPORTED },
		{ "", F(type), 5, 4, IMG_E_UNSUPPORTED },
		{ "", F(current_bytes), 1000, 8, IMG_E_CORRUPT },
		{ "", F(current_bytes), VHD_DYNAMIC_MAX_BYTES, 8, 0 },
		{ "", F(current_bytes), VHD_DYNAMIC_MAX_BYTES + 512, 8, IMG_E_LIMIT },
		{ "", F(current_bytes), UINT64_C(1) << 63, 8, IMG_E_LIMIT },
		{ "subformat=fixed", F(current_bytes), DISK_BYTES + 512, 8, IMG_E_CORRUPT },
		{ "subformat=fixed", F(current_bytes), DISK_BYTES - 512, 8, 0 },
		{ "subformat=fixed", F(current_bytes), 0, 8, 0 },
	};
	struct vhd_footers foot;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct be64 v = be64_of(table[i].value);
		struct disk_vhd_footer f;
		int ret;

		fresh(table[i].options);
		get(tail_off(), &f, sizeof(f));
		memcpy((uint8_t *)&f + table[i].at, v.b + 8 - table[i].bytes, table[i].bytes);
		vhd_footer_seal(&f);
		put(tail_off(), &f, sizeof(f));
		if (table[i].options[0] == '\0')
			put(0, &f, sizeof(f));
		ret = vhd_footers_load(file, &foot, NULL);
		if (ret != table[i].want)
			fail_msg("case %zu: %d", i, ret);
	}
#undef F
}

/* A fixed disk that was growing when the host went down: its footer stands before zeros. */
static void test_lost_footer(void **state)
{
	struct vhd_footers foot;

	(void)state;
	fresh("subformat=fixed");
	assert_int_equal(node_resize(file, DISK_BYTES + 512 + 100000, NULL), 0);
	assert_int_equal(vhd_footers_load(file, &foot, NULL), 0);
	assert_int_equal(vhd_footer_size(&foot.f), DISK_BYTES);
	assert_int_equal(foot.tail, VHD_ABSENT);
	put(DISK_BYTES + 512 + 5000, "x", 1);
	assert_int_equal(vhd_footers_load(file, &foot, NULL), IMG_E_FORMAT);
}

/* ---- header ------------------------------------------------------------------------------------------------------ */

static void test_refused_headers(void **state)
{
#define H(field) offsetof(struct disk_vhd_header, field)
	static const struct {
		size_t at;
		uint64_t value;
		unsigned bytes;
		int want;
	} table[] = {
		{ H(cookie), 'X', 1, IMG_E_CORRUPT },
		{ H(version), 0x20000, 4, IMG_E_UNSUPPORTED },
		{ H(block_bytes), 0, 4, IMG_E_CORRUPT },
		{ H(block_bytes), 2048, 4, IMG_E_CORRUPT },
		{ H(block_bytes), 12288, 4, IMG_E_CORRUPT },
		{ H(block_bytes), 8192, 4, 0 },
		{ H(block_bytes), 512u << 20, 4, IMG_E_CORRUPT },
		{ H(max_entries), 255, 4, IMG_E_CORRUPT },
		{ H(max_entries), 257, 4, 0 },
		{ H(max_entries), UINT32_MAX, 4, IMG_E_CORRUPT },
		{ H(table_off), 0, 8, IMG_E_CORRUPT },
		{ H(table_off), 511, 8, IMG_E_CORRUPT },
		{ H(table_off), 1024, 8, IMG_E_CORRUPT }, /* over the header */
		{ H(table_off), 1535, 8, IMG_E_CORRUPT },
		{ H(table_off), 1537, 8, 0 },
		{ H(table_off), UINT64_MAX, 8, IMG_E_CORRUPT },
		{ H(table_off), UINT64_MAX - 1023, 8, IMG_E_CORRUPT },
	};
	struct vhd_footers foot;
	struct vhd_header h;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct be64 v = be64_of(table[i].value);
		struct disk_vhd_header d;
		int ret;

		fresh("block_size=4096");
		assert_int_equal(vhd_footers_load(file, &foot, NULL), 0);
		get(VHD_HEADER_OFF, &d, sizeof(d));
		memcpy((uint8_t *)&d + table[i].at, v.b + 8 - table[i].bytes, table[i].bytes);
		put(VHD_HEADER_OFF, &d, sizeof(d));
		assert_int_not_equal(vhd_header_load(file, &foot, &h, NULL), 0); /* its checksum */
		d.checksum = be32_of(vhd_checksum(&d, sizeof(d), H(checksum)));
		put(VHD_HEADER_OFF, &d, sizeof(d));
		ret = vhd_header_load(file, &foot, &h, NULL);
		if (ret != table[i].want)
			fail_msg("case %zu: %d", i, ret);
	}
#undef H
	for (size_t i = 0; i < 4; i++) {
		static const uint64_t off[4] = { 0, 511, 1000, UINT64_MAX - 511 };

		fresh("block_size=4096");
		assert_int_equal(vhd_footers_load(file, &foot, NULL), 0);
		foot.f.data_off = be64_of(off[i]);
		assert_int_equal(vhd_header_load(file, &foot, &h, NULL), IMG_E_CORRUPT);
	}
}

static void test_bitmaps(void **state)
{
	(void)state;
	assert_int_equal(vhd_bitmap_bytes(4096), 512);
	assert_int_equal(vhd_bitmap_bytes(2u << 20), 512);
	assert_int_equal(vhd_bitmap_bytes(4u << 20), 1024);
	assert_int_equal(vhd_bitmap_bytes(256u << 20), 65536);
	assert_int_equal(vhd_table_bytes(1), 512);
	assert_int_equal(vhd_table_bytes(129), 1024);
}

static void test_options(void **state)
{
	static const char *const bad[] = { "subformat=thick", "block_size=2K", "block_size=12K", "block_size=512M",
					   "align=0",	      "align=100",     "align=2G",	 "uuid=1",
					   "nothing=1",	      "align",	       "block_size=",	 "block_size=-4K",
					   "block_size=4Kx" };
	struct vhd_options o;
	uint64_t size;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		if (vhd_options_parse(bad[i], false, &o, NULL) != IMG_E_INVALID)
			fail_msg("%s", bad[i]);
	assert_int_equal(vhd_options_parse("subformat=fixed", true, &o, NULL), IMG_E_INVALID);
	assert_int_equal(vhd_options_parse("align=1M,block_size=64k", false, &o, NULL), 0);
	assert_int_equal(o.block_bytes, 65536);
	assert_int_equal(vhd_options_size(&o, 512, &size, NULL), 0);
	assert_int_equal(size, 1 << 20);
	assert_int_equal(vhd_options_size(&o, VHD_DYNAMIC_MAX_BYTES, &size, NULL), 0);
	assert_int_equal(vhd_options_size(&o, VHD_DYNAMIC_MAX_BYTES + 512, &size, NULL), IMG_E_LIMIT);
	o.fixed = true;
	assert_int_equal(vhd_options_size(&o, VHD_FIXED_MAX_BYTES, &size, NULL),
			 IMG_E_LIMIT); /* once it is rounded up */
	assert_int_equal(vhd_options_size(&o, UINT64_MAX, &size, NULL), IMG_E_LIMIT);
	o.align_bytes = 512;
	assert_int_equal(vhd_options_size(&o, VHD_FIXED_MAX_BYTES, &size, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_size_rule),
		cmocka_unit_test(test_time),
		cmocka_unit_test_teardown(test_which_footer, end),
		cmocka_unit_test_teardown(test_old_footer, end),
		cmocka_unit_test_teardown(test_refused_footers, end),
		cmocka_unit_test_teardown(test_lost_footer, end),
		cmocka_unit_test_teardown(test_refused_headers, end),
		cmocka_unit_test(test_bitmaps),
		cmocka_unit_test(test_options),
	};

	return cmocka_run_group_tests_name("vhd", tests, NULL, NULL);
}
