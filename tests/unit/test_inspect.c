/* SPDX-License-Identifier: MIT */
/* Inspection through the API: arguments, limits, time, and what the command line cannot show. Verdicts:
 * tests/hostile/inspect.py. */
#include "image_fixture.h"
#include "inspect.h"

struct seen {
	unsigned nr;
	char ids[64][32];
	uint64_t off[64];
};

static void collect(void *ctx, const struct img_inspect_finding *f)
{
	struct seen *s = ctx;

	assert_true(s->nr < 64);
	assert_true(strlen(f->msg) > 0);
	snprintf(s->ids[s->nr], sizeof(s->ids[0]), "%s", f->id);
	s->off[s->nr++] = f->file_off;
}

static bool has(const struct seen *s, const char *id)
{
	for (unsigned i = 0; i < s->nr; i++)
		if (strcmp(s->ids[i], id) == 0)
			return true;
	return false;
}

static struct img_inspect_result inspect(const char *name, const struct img_inspect_options *opts, struct seen *seen)
{
	struct img_inspect_options o = opts ? *opts : (struct img_inspect_options){ 0 };
	struct img_inspect_result r;

	o.struct_size = sizeof(o);
	memset(seen, 0, sizeof(*seen));
	assert_ok(img_inspect(in_dir(name), &o, collect, seen, &r, ERR));
	return r;
}

static void put(const char *name, uint64_t size, uint64_t off, const void *bytes, size_t nr)
{
	FILE *f = fopen(in_dir(name), size ? "wb" : "r+b");

	assert_non_null(f);
	if (size)
		assert_int_equal(ftruncate(fileno(f), (off_t)size), 0);
	assert_int_equal(fseek(f, (long)off, SEEK_SET), 0);
	assert_int_equal(fwrite(bytes, 1, nr, f), nr);
	assert_int_equal(fclose(f), 0);
}

static void test_rules(void **state)
{
	const struct img_inspect_rule *a, *b;
	size_t nr;

	(void)state;
	for (nr = 0; (a = img_inspect_rule(nr)) != NULL; nr++) {
		assert_true(a->id && a->what && a->id[0] && a->what[0]);
		assert_in_range(a->severity, IMG_SEVERITY_NOTE, IMG_SEVERITY_UNPARSEABLE);
		for (size_t i = 0; i < nr; i++) {
			b = img_inspect_rule(i);
			assert_string_not_equal(a->id, b->id);
		}
	}
	assert_int_equal(nr, INSPECT_IDS);
}

static void test_arguments(void **state)
{
	struct img_inspect_options bad = { .struct_size = sizeof(bad), .flags = IMG_OPEN_WRITE };
	struct img_inspect_options none = { .struct_size = sizeof(none), .format = "nonsense" };

	(void)state;
	make_image("a", "qcow2", MIB, NULL, NULL);
	assert_int_equal(img_inspect(NULL, NULL, NULL, NULL, NULL, ERR), IMG_E_INVALID);
	assert_ok(img_inspect(in_dir("a"), NULL, NULL, NULL, NULL, ERR));
	assert_int_equal(img_inspect(in_dir("a"), NULL, NULL, NULL, NULL, NULL), 0);
	assert_int_equal(img_inspect(in_dir("a"), &bad, NULL, NULL, NULL, ERR), IMG_E_INVALID);
	bad.struct_size = 0;
	assert_int_equal(img_inspect(in_dir("a"), &bad, NULL, NULL, NULL, ERR), IMG_E_INVALID);
	assert_int_equal(img_inspect(in_dir("a"), &none, NULL, NULL, NULL, ERR), IMG_E_UNSUPPORTED);
	assert_int_equal(img_inspect(in_dir("none"), NULL, NULL, NULL, NULL, ERR), IMG_E_NOENT);
}

static void test_result(void **state)
{
	static const char *const only_raw[] = { "raw", NULL };
	struct img_inspect_result r;
	struct seen seen;

	(void)state;
	make_image("q", "qcow2", 3 * MIB, NULL, NULL);
	make_image("l", "limg", 2 * MIB, NULL, NULL);
	r = inspect("q", NULL, &seen);
	assert_string_equal(r.format, "qcow2");
	assert_int_equal(r.virtual_bytes, 3 * MIB);
	assert_true(r.file_bytes > 0);
	assert_int_equal(seen.nr, 0);
	r = inspect("l", NULL, &seen);
	assert_string_equal(r.format, "limg");
	assert_int_equal(r.virtual_bytes, 2 * MIB);
	assert_int_equal(seen.nr, 0);
	r = inspect("l", &(struct img_inspect_options){ .formats = only_raw }, &seen);
	assert_int_equal(r.unsafe, 1);
	assert_true(has(&seen, "format-not-allowed"));
	put("r", MIB, 0, "x", 1);
	r = inspect("r", &(struct img_inspect_options){ .formats = only_raw }, &seen);
	assert_string_equal(r.format, "raw");
	assert_int_equal(r.virtual_bytes, MIB);
	assert_int_equal(seen.nr, 0);
}

/* One limit each, told once, and no other. */
static void test_limits(void **state)
{
	struct img_budget b = { .struct_size = sizeof(b), .metadata_bytes = 16 };
	struct img_inspect_result r;
	struct seen seen;
	struct img *img;

	(void)state;
	make_image("lim", "qcow2", MIB, NULL, NULL);
	img = open_image("lim", "qcow2", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "a", 0, ERR));
	assert_ok(img_snapshot_create(img, "b", 0, ERR));
	close_image(img);
	r = inspect("lim", &(struct img_inspect_options){ .budget = &b }, &seen);
	assert_int_equal(r.unsafe, 1);
	assert_true(has(&seen, "limit"));
	b = (struct img_budget){ .struct_size = sizeof(b), .snapshots = 1 };
	r = inspect("lim", &(struct img_inspect_options){ .budget = &b }, &seen);
	assert_true(r.unsafe > 0 && has(&seen, "limit"));
	r = inspect("lim", &(struct img_inspect_options){ .max_virtual_bytes = MIB - 512 }, &seen);
	assert_true(r.unsafe > 0 && has(&seen, "limit"));
	r = inspect("lim", &(struct img_inspect_options){ .max_virtual_bytes = MIB }, &seen);
	assert_int_equal(r.unsafe, 0);
}

/* A time that is over stops the next step and is told once; the verdict is not safe then. */
static void test_time(void **state)
{
	struct img_inspect_result r = { 0 };
	struct seen seen = { 0 };
	struct inspector in = { .path = "f", .fn = collect, .ctx = &seen, .out = &r, .where = "", .end_ms = 1 };

	(void)state;
	assert_true(inspect_over(&in));
	assert_true(inspect_over(&in));
	assert_int_equal(seen.nr, 1);
	assert_true(has(&seen, "not-inspected"));
	assert_int_equal(r.unsafe, 1);
	in = (struct inspector){ .fn = collect, .ctx = &seen, .out = &r, .where = "", .end_ms = UINT64_MAX };
	assert_false(inspect_over(&in));
}

/* The first ones are told, the rest is a number. */
static void test_many_of_a_kind(void **state)
{
	struct img_inspect_result r = { 0 };
	struct seen seen = { 0 };
	struct inspector in = { .fn = collect, .ctx = &seen, .out = &r, .where = "" };

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		inspect_found(&in, INSPECT_ALIASED, i, "number %u", i);
	assert_int_equal(seen.nr, 4);
	inspect_end(&in);
	assert_int_equal(seen.nr, 5);
	assert_int_equal(r.unsafe, 4);
	assert_int_equal(r.notes, 1);
}

static void test_text(void **state)
{
	static const struct {
		const char *text;
		bool bad;
	} table[] = {
		{ "plain name-1.0", false },
		{ "\xc3\xa4\xe4\xb8\xad", false },
		{ "a\x1b[2J", true },
		{ "a\x7f", true },
		{ "\xc2\x9b", true },
		{ "a\xe2\x80\xae"
		  "b",
		  true },
		{ "\xef\xbb\xbf", true },
		{ "", false },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct img_inspect_result r = { 0 };
		struct seen seen = { 0 };
		struct inspector in = { .fn = collect, .ctx = &seen, .out = &r, .where = "" };

		inspect_text(&in, (const uint8_t *)table[i].text, strlen(table[i].text), 100, "a name");
		assert_int_equal(has(&seen, "control-characters"), table[i].bad);
	}
}

static void test_references(void **state)
{
	static const struct {
		const char *name, *also; /* NULL: nothing but the reference */
	} table[] = {
		{ "base.img", NULL },
		{ "sub/base.img", NULL },
		{ "./a:b", NULL },
		{ "a..b/..c/d..", NULL },
		{ "/base", "reference-outside" },
		{ "..", "reference-outside" },
		{ "a/../b", "reference-outside" },
		{ "a\\..\\b", "reference-outside" },
		{ "nbd://x", "reference-syntax" },
		{ "json:{}", "reference-syntax" },
		{ "C:\\x", "reference-syntax" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct img_inspect_result r = { 0 };
		struct seen seen = { 0 };
		struct inspector in = { .fn = collect, .ctx = &seen, .out = &r, .where = "" };

		inspect_reference(&in, INSPECT_BACKING, (const uint8_t *)table[i].name, strlen(table[i].name), 7,
				  "a file");
		assert_true(has(&seen, "backing-file"));
		assert_int_equal(seen.nr, table[i].also ? 2 : 1);
		assert_true(!table[i].also || has(&seen, table[i].also));
		assert_int_equal(seen.off[0], 7);
	}
}

/* Content of images: found through compression, not in what a backing file would hold, and in limg as in qcow2. */
static void nested_in(const char *format)
{
	struct img_inspect_result r;
	struct seen seen;
	struct img *img;

	make_image("outer", format, MIB, NULL, NULL);
	img = open_image("outer", format, IMG_OPEN_WRITE);
	assert_ok(img_pwrite(img, "QFI\xfb\0\0\0\3", 8, 0, 0, ERR));
	close_image(img);
	r = inspect("outer", NULL, &seen);
	assert_true(r.unsafe == 1 && has(&seen, "nested-image"));
	img = open_image("outer", format, IMG_OPEN_WRITE);
	assert_ok(img_zero(img, 512, 0, 0, ERR));
	assert_ok(img_pwrite(img, "conectix", 8, MIB - 512, 0, ERR));
	close_image(img);
	r = inspect("outer", NULL, &seen);
	assert_true(r.unsafe >= 1 && has(&seen, "nested-image"));
	unlink(in_dir("outer"));
}

static void test_nested(void **state)
{
	(void)state;
	nested_in("limg");
	nested_in("qcow2");
}

/* Somebody writes it: BUSY, unless force-share says that stale is good enough. */
static void test_in_use(void **state)
{
	struct img_inspect_options share = { .struct_size = sizeof(share), .flags = IMG_OPEN_FORCE_SHARE };
	struct img *img;

	(void)state;
	make_image("used", "qcow2", MIB, NULL, NULL);
	img = open_image("used", "qcow2", IMG_OPEN_WRITE);
	assert_int_equal(img_inspect(in_dir("used"), NULL, NULL, NULL, NULL, ERR), IMG_E_BUSY);
	assert_ok(img_inspect(in_dir("used"), &share, NULL, NULL, NULL, ERR));
	close_image(img);
	assert_ok(img_inspect(in_dir("used"), NULL, NULL, NULL, NULL, ERR));
}

/* Files of every length up to where the magics are, and none at all. */
static void test_short_files(void **state)
{
	static const char magic[][9] = {
		"QFI\xfb\0\0\0\3", "LIMG\x0d\x0a\x1a", "KDMV\1", "conectix", "vhdxfile", "QED", "LUKS"
	};
	struct seen seen;
	FILE *f;

	(void)state;
	f = fopen(in_dir("none"), "wb");
	fclose(f);
	assert_int_equal(inspect("none", NULL, &seen).unsafe, 0);
	for (size_t m = 0; m < sizeof(magic) / sizeof(magic[0]); m++)
		for (uint64_t size = 8; size < 1100; size += size < 16 ? 1 : 61) {
			put("s", size, 0, magic[m], 8);
			inspect("s", NULL, &seen);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rules),	    cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_result),	    cmocka_unit_test(test_limits),
		cmocka_unit_test(test_time),	    cmocka_unit_test(test_many_of_a_kind),
		cmocka_unit_test(test_text),	    cmocka_unit_test(test_references),
		cmocka_unit_test(test_nested),	    cmocka_unit_test(test_in_use),
		cmocka_unit_test(test_short_files),
	};

	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
