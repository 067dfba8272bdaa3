/* SPDX-License-Identifier: MIT */
/* Parallels images: what of a header is taken and what refused, places, sizes, options, MD5, the Format Extension. */
#include "mem.h"
#include "mock.h"
#include "prl_bundle.h"

static struct node *file;

static void fresh(const char *options)
{
	const struct driver_create args = { .size_bytes = 1 << 20, .options = options };

	if (file)
		node_close(file, NULL);
	assert_int_equal(mem_node_new("f", &file, NULL), 0);
	assert_int_equal(prl_create(file, &args, NULL), 0);
}

static int end(void **state)
{
	(void)state;
	if (file)
		node_close(file, NULL);
	file = NULL;
	return 0;
}

static void put32(uint64_t off, uint32_t value)
{
	struct le32 d = le32_of(value);

	assert_int_equal(node_pwrite(file, &d, 4, off, 0, NULL), 0);
}

static void put64(uint64_t off, uint64_t value)
{
	struct le64 d = le64_of(value);

	assert_int_equal(node_pwrite(file, &d, 8, off, 0, NULL), 0);
}

static void test_created(void **state)
{
	struct prl_header h;

	(void)state;
	fresh("cluster_size=4096");
	assert_int_equal(prl_header_load(file, &h, NULL), 0);
	assert_true(h.v2);
	assert_int_equal(h.nr_entries, 256);
	assert_int_equal(h.data_off, 4096);
	assert_int_equal(h.nr_sectors, 2048);
	assert_int_equal(h.in_use, PRL_CLOSED);
	assert_int_equal(h.cylinders, 4);
	assert_int_equal(h.ext_off, 0);
	assert_int_equal(prl_unit_bytes(&h), 4096);
	fresh("cluster_size=32256,version=1");
	assert_int_equal(prl_header_load(file, &h, NULL), 0);
	assert_false(h.v2);
	assert_int_equal(h.data_off, 32256);
	assert_int_equal(prl_unit_bytes(&h), 512);
}

/* One field after the other. */
static void test_refused(void **state)
{
	static const struct {
		uint64_t off;
		uint32_t value;
		int v1, v2;
	} table[] = {
		{ 12, 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(version), 1, IMG_E_UNSUPPORTED, IMG_E_UNSUPPORTED },
		{ PRL_AT(version), 3, IMG_E_UNSUPPORTED, IMG_E_UNSUPPORTED },
		{ PRL_AT(heads), 0, 0, 0 },
		{ PRL_AT(cluster_sectors), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(cluster_sectors), 9, 0, 0 },
		{ PRL_AT(cluster_sectors), 7, IMG_E_CORRUPT, IMG_E_CORRUPT }, /* less than the disk */
		{ PRL_AT(cluster_sectors), 1u << 21, 0, 0 },
		{ PRL_AT(cluster_sectors), (1u << 21) + 1, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(nr_entries), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(nr_entries), 255, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(nr_entries), 257, 0, 0 },
		{ PRL_AT(nr_entries), 1009, IMG_E_CORRUPT, IMG_E_CORRUPT }, /* behind the end of the file */
		{ PRL_AT(nr_entries), 0xffffffff, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(nr_sectors), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(nr_sectors), 2049, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(nr_sectors), 2047, 0, 0 },
		{ PRL_AT(nr_sectors) + 4, 1, 0, IMG_E_CORRUPT },
		{ PRL_AT(nr_sectors) + 4, 0x80000000, 0, IMG_E_CORRUPT },
		{ PRL_AT(in_use), PRL_IN_USE, 0, 0 },
		{ PRL_AT(in_use), 0, 0, 0 },
		{ PRL_AT(in_use), 0x37316470, 0, 0 },
		{ PRL_AT(data_off), 0, 0, 0 },
		{ PRL_AT(data_off), 2, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(data_off), 3, 0, 0 },
		{ PRL_AT(data_off), 0xffffffff, 0, 0 },
		{ PRL_AT(flags), 1, 0, 0 },
		{ PRL_AT(ext_off) + 4, 0x80000000, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ PRL_AT(ext_off), 0xffffffff, 0, 0 },
	};
	struct prl_header h;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct img_error err = { 0 };

		fresh("cluster_size=4096,version=1");
		put32(table[i].off, table[i].value);
		if (prl_header_load(file, &h, &err) != table[i].v1)
			fail_msg("version 1, case %zu: %d %s", i, err.code, err.msg);
		err.code = 0;
		fresh("cluster_size=4096");
		put32(table[i].off, table[i].value);
		if (prl_header_load(file, &h, &err) != table[i].v2)
			fail_msg("version 2, case %zu: %d %s", i, err.code, err.msg);
		assert_true(table[i].v2 == 0 || err.msg[0] != '\0');
	}
}

static void test_cut_off(void **state)
{
	struct prl_header h;

	(void)state;
	for (uint64_t bytes = 0; bytes < 1200; bytes += 8) {
		fresh("cluster_size=4096");
		assert_int_equal(node_resize(file, bytes, NULL), 0);
		assert_int_equal(prl_header_load(file, &h, NULL), bytes < 64 + 1024 ? IMG_E_CORRUPT : 0);
	}
}

static void test_places(void **state)
{
	struct prl_header v1 = { .cluster_bytes = 1536, .data_off = 1024 };
	struct prl_header v2 = { .v2 = true, .cluster_bytes = 1536, .data_off = 3072 };

	(void)state;
	assert_int_equal(prl_place_at(&v1, 0), 1024);
	assert_int_equal(prl_place_at(&v1, 1024), 1024);
	assert_int_equal(prl_place_at(&v1, 1025), 2560);
	assert_int_equal(prl_place_at(&v1, 2560), 2560);
	assert_int_equal(prl_place_at(&v2, 0), 3072);
	assert_int_equal(prl_place_at(&v2, 3073), 4608);
}

static void test_sizes(void **state)
{
	struct prl_header v1 = { .cluster_bytes = 1 << 20 }, v2 = { .v2 = true, .cluster_bytes = 512 };
	uint64_t two_tib = UINT64_C(2) << 40;

	(void)state;
	assert_int_equal(prl_header_set_size(&v1, two_tib - 512, NULL), 0);
	assert_int_equal(v1.nr_entries, 2u << 20);
	assert_int_equal(prl_header_set_size(&v1, two_tib, NULL), IMG_E_LIMIT);
	assert_int_equal(prl_header_set_size(&v2, UINT64_C(512) << 30, NULL), 0);
	assert_int_equal(v2.nr_entries, 1u << 30);
	assert_int_equal(prl_header_set_size(&v2, (UINT64_C(512) << 30) + 512, NULL), IMG_E_LIMIT);
}

static void test_options(void **state)
{
	static const char *const wrong[] = {
		"cluster_size=500",
		"cluster_size=0",
		"cluster_size=2G",
		"cluster_size=",
		"cluster_size=99999999999999999999",
		"version=3",
		"version",
		"nonsense=1",
		"cluster_size=1T",
	};
	struct prl_options o;

	(void)state;
	assert_int_equal(prl_options_parse(NULL, &o, NULL), 0);
	assert_int_equal(o.cluster_bytes, 1 << 20);
	assert_false(o.v1);
	assert_int_equal(prl_options_parse("cluster_size=63K,version=1", &o, NULL), 0);
	assert_true(o.v1);
	assert_int_equal(o.cluster_bytes, 63 << 10);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		if (prl_options_parse(wrong[i], &o, NULL) != IMG_E_INVALID)
			fail_msg("%s", wrong[i]);
}

static void md5(const char *text, size_t step, uint8_t out[16])
{
	struct prl_md5 m;

	prl_md5_start(&m);
	for (size_t at = 0, left = strlen(text); left > 0;) {
		size_t n = left < step ? left : step;

		prl_md5_add(&m, text + at, n);
		at += n;
		left -= n;
	}
	prl_md5_end(&m, out);
}

/* RFC 1321, appendix A.5. */
static void test_md5(void **state)
{
	static const struct {
		const char *text;
		uint8_t first[4], last[4];
	} table[] = {
		{ "", { 0xd4, 0x1d, 0x8c, 0xd9 }, { 0xec, 0xf8, 0x42, 0x7e } },
		{ "abc", { 0x90, 0x01, 0x50, 0x98 }, { 0x28, 0xe1, 0x7f, 0x72 } },
		{ "abcdefghijklmnopqrstuvwxyz", { 0xc3, 0xfc, 0xd3, 0xd7 }, { 0xca, 0x67, 0xe1, 0x3b } },
		{ "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
		  { 0x57, 0xed, 0xf4, 0xa2 },
		  { 0x21, 0x07, 0xb6, 0x7a } },
	};
	uint8_t sum[16];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		for (size_t step = 1; step < 90; step += 7) {
			md5(table[i].text, step, sum);
			assert_memory_equal(sum, table[i].first, 4);
			assert_memory_equal(sum + 12, table[i].last, 4);
		}
}

/* An extension at place 0 with one bitmap, whose bits are at place 1. */
static void make_ext(void)
{
	static const uint8_t zeros[8192];
	struct prl_md5 m;
	uint8_t body[4096 - 24], sum[16];

	fresh("cluster_size=4096");
	assert_int_equal(node_pwrite(file, zeros, sizeof(zeros), 4096, 0, NULL), 0);
	put64(PRL_AT(ext_off), 8);
	put64(4096, PRL_EXT_MAGIC);
	put64(4096 + 24, PRL_EXT_BITMAP);
	put32(4096 + 40, 40);
	put64(4096 + 48, 2048);
	put32(4096 + 48 + 24, 64);
	put32(4096 + 48 + 28, 1);
	put64(4096 + 48 + 32, 16);
	assert_int_equal(node_pread(file, body, sizeof(body), 4096 + 24, 0, NULL), 0);
	prl_md5_start(&m);
	prl_md5_add(&m, body, sizeof(body));
	prl_md5_end(&m, sum);
	assert_int_equal(node_pwrite(file, sum, 16, 4096 + 8, 0, NULL), 0);
}

static void fix_sum(void)
{
	struct prl_md5 m;
	uint8_t body[4096 - 24], sum[16];

	assert_int_equal(node_pread(file, body, sizeof(body), 4096 + 24, 0, NULL), 0);
	prl_md5_start(&m);
	prl_md5_add(&m, body, sizeof(body));
	prl_md5_end(&m, sum);
	assert_int_equal(node_pwrite(file, sum, 16, 4096 + 8, 0, NULL), 0);
}

static void load_ext(struct prl_ext *x)
{
	struct prl_header h;

	assert_int_equal(prl_header_load(file, &h, NULL), 0);
	assert_int_equal(prl_ext_load(file, &h, "f", NULL, x, NULL), 0);
}

static void test_extension(void **state)
{
	static const struct {
		uint64_t off, value;
	} wrong[] = {
		{ 4096, 0 },	   /* magic */
		{ 4096 + 8, 0 },   /* checksum */
		{ 4096 + 40, 31 }, /* bytes of the section */
		{ 4096 + 40, UINT32_MAX },
		{ 4096 + 48, 2047 },			   /* sectors */
		{ 4096 + 48 + 24, 0 | UINT64_C(1) << 32 }, /* granularity */
		{ 4096 + 48 + 24, 3 | UINT64_C(1) << 32 },
		{ 4096 + 48 + 24, 64 }, /* no table */
		{ 4096 + 48 + 24, 64 | UINT64_C(2) << 32 },
		{ 4096 + 48 + 32, 8 }, /* the extension itself */
		{ 4096 + 48 + 32, 7 },
		{ 4096 + 48 + 32, UINT64_MAX },
	};
	struct prl_ext x;

	(void)state;
	make_ext();
	load_ext(&x);
	assert_true(x.whole);
	assert_int_equal(x.nr_bitmaps, 1);
	assert_int_equal(x.nr_taken, 2);
	assert_int_equal(x.taken[1].off, 8192);
	assert_string_equal(x.damage, "");
	assert_false(x.must_stay);
	free(x.taken);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		make_ext();
		put64(wrong[i].off, wrong[i].value);
		if (wrong[i].off >= 4096 + 24)
			fix_sum();
		load_ext(&x);
		if (x.damage[0] == '\0')
			fail_msg("case %zu", i);
		free(x.taken);
	}
}

static void test_unknown_section(void **state)
{
	struct prl_ext x;

	(void)state;
	for (uint64_t flags = 0; flags < 4; flags++) {
		make_ext();
		put64(4096 + 24, 77);
		put64(4096 + 32, flags);
		fix_sum();
		load_ext(&x);
		assert_int_equal(x.nr_other, 1);
		assert_int_equal(x.must_stay, flags != 0);
		free(x.taken);
	}
}

static void test_guid(void **state)
{
	static const char *const right[] = { "{5fbaabe3-6958-40ff-92a7-860e329aab41}",
					     "5FBAABE3-6958-40ff-92a7-860e329aab41" };
	static const char *const wrong[] = { "",
					     "{}",
					     "{5fbaabe3-6958-40ff-92a7-860e329aab41",
					     "5fbaabe3-6958-40ff-92a7-860e329aab41}",
					     "{5fbaabe3-6958-40ff-92a7-860e329aab4}",
					     "{5fbaabe3-6958-40ff-92a7-860e329aab411}",
					     "{5fbaabe369-58-40ff-92a7-860e329aab41}",
					     "{5fbaabe3-6958-40ff-92a7-860e329aabg1}" };
	char text[PRL_GUID_TEXT_BYTES];
	uint8_t guid[16];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(right); i++) {
		assert_true(prl_guid_parse(right[i], guid));
		assert_memory_equal(guid, prl_guid_head, 16);
	}
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		if (prl_guid_parse(wrong[i], guid))
			fail_msg("%s", wrong[i]);
	prl_guid_text(prl_guid_head, text);
	assert_string_equal(text, right[0]);
}

static void test_recognised(void **state)
{
	static const char *const yes[] = { "<Parallels_disk_image>",
					   " \r\n<?xml version='1.0'?><Parallels_disk_image Version='1.0'>",
					   "\xef\xbb\xbf<!-- x --><Parallels_disk_image",
					   "<!DOCTYPE x [ <!ENTITY a 'b'> ]><Parallels_disk_image>" };
	static const char *const no[] = { "", "<", "x<Parallels_disk_image>", "<Parallels>",
					  "<?xml version='1.0'?><plist>" };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(yes); i++)
		assert_true(prl_descriptor_is(yes[i], strlen(yes[i])));
	for (size_t i = 0; i < ARRAY_LEN(no); i++)
		assert_false(prl_descriptor_is(no[i], strlen(no[i])));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_created),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_cut_off),
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_md5),
		cmocka_unit_test(test_extension),
		cmocka_unit_test(test_unknown_section),
		cmocka_unit_test(test_guid),
		cmocka_unit_test(test_recognised),
	};

	return cmocka_run_group_tests(tests, NULL, end);
}
