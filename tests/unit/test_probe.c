/* SPDX-License-Identifier: MIT */
/* Probing: one magic is a format, two are refused, none is raw for reading only, a foreign one is not raw. */
#include "image_fixture.h"

static void put(const char *name, uint64_t size, uint64_t off, const void *bytes, size_t nr)
{
	FILE *f = fopen(in_dir(name), "wb");

	assert_non_null(f);
	assert_int_equal(ftruncate(fileno(f), (off_t)size), 0);
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	assert_int_equal(fwrite(bytes, 1, nr, f), nr);
	assert_int_equal(fclose(f), 0);
}

static void add(const char *name, uint64_t off, const void *bytes, size_t nr)
{
	FILE *f = fopen(in_dir(name), "r+b");

	assert_non_null(f);
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	assert_int_equal(fwrite(bytes, 1, nr, f), nr);
	assert_int_equal(fclose(f), 0);
}

static int try_open(const char *name, const char *format, unsigned flags)
{
	struct img_open_options open = { .struct_size = sizeof(open), .format = format, .flags = flags };
	struct img *img;
	int ret = img_open(in_dir(name), &open, &img, ERR);

	if (ret == 0)
		close_image(img);
	else
		assert_null(img);
	return ret;
}

static void test_nothing_is_raw(void **state)
{
	static const uint64_t sizes[] = { 0, 1, 511, 512, 4095, 4096, 65535, 65536, 65537, 1 << 20 };
	struct img_probe_result seen;

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		put("a", sizes[i], 0, "", 0);
		assert_ok(img_probe(in_dir("a"), &seen, ERR));
		assert_string_equal(seen.format, "raw");
		assert_int_equal(seen.nr_magics, 0);
		assert_string_equal(seen.other, "");
		assert_ok(try_open("a", NULL, 0));
	}
}

static void test_raw_is_not_guessed_for_writing(void **state)
{
	(void)state;
	put("a", 4096, 0, "", 0);
	assert_int_equal(try_open("a", NULL, IMG_OPEN_WRITE), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "-f raw"));
	assert_ok(try_open("a", "raw", IMG_OPEN_WRITE));
}

static bool has_driver(const char *format)
{
	const char *name;

	for (size_t i = 0; (name = img_format_name(i)) != NULL; i++) {
		if (strcmp(name, format) == 0)
			return true;
	}
	return false;
}

/* A magic is never taken for raw: without a driver it is refused, with one the rest of the image is missed. */
static void test_foreign_formats(void **state)
{
	static const struct {
		const char *format;
		int64_t off; /* from the end where negative */
		const char *magic;
		size_t bytes;
	} table[] = {
		{ "qcow", 0, "QFI\xfb\0\0\0\1", 8 },
		{ "vmdk", 0, "KDMV", 4 },
		{ "vmdk", 0, "# Disk DescriptorFile\n", 22 },
		{ "vhdx", 0, "vhdxfile", 8 },
		{ "vhd", 0, "conectix", 8 },
		{ "vhd", -512, "conectix", 8 },
		{ "vhd", -511, "conectix", 8 },
		{ "luks", 0, "LUKS\xba\xbe\0\2", 8 },
		{ "parallels", 0, "WithoutFreeSpace", 16 },
		{ "dmg", -512, "koly", 4 },
		{ "qed", 0, "QED\0", 4 },
	};
	struct img_probe_result seen;

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		put("f", 10000, (uint64_t)(table[i].off < 0 ? 10000 + table[i].off : table[i].off), table[i].magic,
		    table[i].bytes);
		assert_ok(img_probe(in_dir("f"), &seen, ERR));
		assert_string_equal(seen.format, table[i].format);
		assert_int_equal(seen.nr_magics, 1);
		if (has_driver(table[i].format)) {
			assert_int_not_equal(try_open("f", NULL, 0), 0);
			assert_int_not_equal(try_open("f", NULL, IMG_OPEN_WRITE), 0);
		} else {
			assert_int_equal(try_open("f", NULL, 0), IMG_E_UNSUPPORTED);
			assert_non_null(strstr(ERR->msg, table[i].format));
			assert_int_equal(try_open("f", NULL, IMG_OPEN_WRITE), IMG_E_UNSUPPORTED);
		}
		/* Who says that it is raw gets it. */
		assert_ok(try_open("f", "raw", 0));
		assert_ok(try_open("f", "raw", IMG_OPEN_WRITE));
	}
}

static void test_two_magics_are_refused(void **state)
{
	struct img_probe_result seen;

	(void)state;
	put("two", 8192, 0, "QFI\xfb\0\0\0\3", 8);
	add("two", 8192 - 512, "conectix", 8);
	assert_ok(img_probe(in_dir("two"), &seen, ERR));
	assert_int_equal(seen.nr_magics, 2);
	assert_string_not_equal(seen.format, seen.other);
	assert_int_equal(try_open("two", NULL, 0), IMG_E_REFUSED);
	assert_non_null(strstr(ERR->msg, "qcow2"));
	assert_non_null(strstr(ERR->msg, "vhd"));
	assert_int_equal(try_open("two", NULL, IMG_OPEN_WRITE), IMG_E_REFUSED);
	assert_ok(try_open("two", "raw", 0));
}

/* Head and tail of one format are no contradiction. */
static void test_both_ends_of_one_format(void **state)
{
	struct img_probe_result seen;

	(void)state;
	put("vhd", 8192, 0, "conectix", 8);
	add("vhd", 8192 - 512, "conectix", 8);
	assert_ok(img_probe(in_dir("vhd"), &seen, ERR));
	assert_int_equal(seen.nr_magics, 1);
}

static void test_short_files(void **state)
{
	struct img_probe_result seen;

	(void)state;
	for (uint64_t size = 0; size < 20; size++) {
		put("s", size, 0, "conectixconectixconectix", (size_t)size);
		assert_ok(img_probe(in_dir("s"), &seen, ERR));
		assert_string_equal(seen.format, size >= 8 ? "vhd" : "raw");
	}
}

static void test_unknown_format_name(void **state)
{
	(void)state;
	put("a", 4096, 0, "", 0);
	assert_int_equal(try_open("a", "qcow9", 0), IMG_E_UNSUPPORTED);
	assert_non_null(strstr(ERR->msg, "qcow9"));
	/* Protocols and filters are no formats. */
	assert_int_equal(try_open("a", "file", 0), IMG_E_UNSUPPORTED);
}

static void test_no_such_file(void **state)
{
	struct img_probe_result seen;

	(void)state;
	assert_int_equal(img_probe(in_dir("none"), &seen, ERR), IMG_E_NOENT);
	assert_int_equal(try_open("none", NULL, 0), IMG_E_NOENT);
	assert_int_equal(img_probe(fixture_dir, &seen, ERR), IMG_E_INVALID);
	assert_int_equal(try_open("", NULL, IMG_OPEN_WRITE), IMG_E_INVALID);
	/* A FIFO must not block us. */
	assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
	assert_int_equal(img_probe(in_dir("fifo"), &seen, ERR), IMG_E_REFUSED);
	assert_int_equal(try_open("fifo", "raw", 0), IMG_E_REFUSED);
	assert_int_equal(img_probe("/dev/null", &seen, ERR), IMG_E_REFUSED);
}

static void test_limg_and_a_tail(void **state)
{
	struct img_probe_result seen;
	struct stat sb;

	(void)state;
	make_image("d.limg", "limg", MIB, NULL, NULL);
	assert_ok(img_probe(in_dir("d.limg"), &seen, ERR));
	assert_string_equal(seen.format, "limg");
	assert_int_equal(seen.nr_magics, 1);
	assert_ok(try_open("d.limg", NULL, IMG_OPEN_WRITE));
	assert_int_equal(stat(in_dir("d.limg"), &sb), 0);
	add("d.limg", (uint64_t)sb.st_size, "conectix", 8);
	assert_int_equal(truncate(in_dir("d.limg"), sb.st_size + 512), 0);
	assert_int_equal(try_open("d.limg", NULL, 0), IMG_E_REFUSED);
	assert_ok(try_open("d.limg", "limg", 0));
}

/* A guest that writes a format's magic into its raw disk does not change how the file is taken when the format is
 * named. */
static void test_limg_magic_inside_raw(void **state)
{
	static const char magic[] = "LIMG\r\n\x1a";
	struct img *img;

	(void)state;
	make_image("guest.raw", "raw", MIB, NULL, NULL);
	img = open_image("guest.raw", "raw", IMG_OPEN_WRITE);
	assert_ok(img_pwrite(img, magic, sizeof(magic), 0, 0, ERR));
	close_image(img);
	assert_ok(try_open("guest.raw", "raw", IMG_OPEN_WRITE));
	assert_int_not_equal(try_open("guest.raw", NULL, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_is_raw),		cmocka_unit_test(test_raw_is_not_guessed_for_writing),
		cmocka_unit_test(test_foreign_formats),		cmocka_unit_test(test_two_magics_are_refused),
		cmocka_unit_test(test_both_ends_of_one_format), cmocka_unit_test(test_short_files),
		cmocka_unit_test(test_unknown_format_name),	cmocka_unit_test(test_no_such_file),
		cmocka_unit_test(test_limg_and_a_tail),		cmocka_unit_test(test_limg_magic_inside_raw),
	};

	return cmocka_run_group_tests_name("probe", tests, fixture_setup, fixture_teardown);
}
