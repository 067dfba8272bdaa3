/* SPDX-License-Identifier: MIT */
/* The parent's paths that a VHD records: in which order they are read, what of foreign ones is left, what is written. */
#include "mem.h"
#include "mock.h"
#include "vhd.h"

#define TEXT_OFF  4096u
#define TEXT_ROOM 4096u

struct text {
	const char *code, *text; /* UTF-8; NULL: none */
};

static struct node *file;

static int start(void **state)
{
	(void)state;
	assert_int_equal(mem_node_new("f", &file, NULL), 0);
	assert_int_equal(node_resize(file, TEXT_OFF + VHD_LOCATORS * TEXT_ROOM, NULL), 0);
	return 0;
}

static int end(void **state)
{
	(void)state;
	node_close(file, NULL);
	return 0;
}

static void put_text(struct disk_vhd_header *h, unsigned i, const struct text *t)
{
	uint8_t buf[TEXT_ROOM];
	size_t bytes = strlen(t->text);
	uint64_t off = TEXT_OFF + i * TEXT_ROOM;

	if (strcmp(t->code, "MacX") == 0)
		memcpy(buf, t->text, bytes);
	else
		assert_true(name_to_utf16(t->text, false, buf, sizeof(buf), &bytes));
	memcpy(h->locator[i].code, t->code, 4);
	h->locator[i].length = be32_of((uint32_t)bytes);
	h->locator[i].off = be64_of(off);
	assert_int_equal(node_pwrite(file, buf, bytes, off, 0, NULL), 0);
}

static void test_order(void **state)
{
	static const struct {
		struct text text[VHD_LOCATORS];
		const char *name;
		const char *want[VHD_PATHS_MAX];
	} table[] = {
		/* As Windows writes it: absolute first. */
		{ { { "W2ku", "C:\\disks\\base.vhd" }, { "W2ru", ".\\base.vhd" } },
		  "C:\\disks\\base.vhd",
		  { "base.vhd" } },
		{ { { "W2ku", "C:\\disks\\old.vhd" }, { "W2ru", "..\\up\\base.vhd" } },
		  "name.vhd",
		  { "../up/base.vhd", "old.vhd", "name.vhd" } },
		{ { { "MacX", "file:///Users/me/my%20base.vhd" } }, "", { "/Users/me/my base.vhd" } },
		{ { { "MacX", "http://host/base.vhd" } }, "b.vhd", { "b.vhd" } },
		{ { { "W2ku", "\\\\server\\share\\base.vhd" } }, "", { "base.vhd" } },
		{ { { "W2ku", "/srv/base.vhd" } }, "", { "/srv/base.vhd" } },
		{ { { "Wi2r", "old.vhd" }, { "Wi2k", "C:\\old.vhd" } }, "c.vhd", { "c.vhd" } }, /* not looked at */
		{ { { "W2ru", "\xc3\xa9t\xc3\xa9.vhd" } },
		  "\xf0\x9f\x92\xbe.vhd",
		  { "\xc3\xa9t\xc3\xa9.vhd", "\xf0\x9f\x92\xbe.vhd" } },
		{ { { "W2ru", "d.vhd" },
		    { "W2ku", "C:\\c.vhd" },
		    { "W2ru", "b.vhd" },
		    { "W2ru", "a.vhd" },
		    { "W2ru", "d.vhd" } },
		  "last.vhd",
		  { "d.vhd", "b.vhd", "a.vhd", "c.vhd" } },
		{ { { "W2ru", "" }, { "W2ku", "C:" } }, "", { NULL } },
	};
	struct vhd_paths paths;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct disk_vhd_header h;
		size_t bytes;

		memset(&h, 0, sizeof(h));
		for (unsigned j = 0; j < VHD_LOCATORS && table[i].text[j].code; j++)
			put_text(&h, j, &table[i].text[j]);
		assert_true(name_to_utf16(table[i].name, true, h.parent_name, sizeof(h.parent_name), &bytes));
		assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
		for (unsigned j = 0; j < VHD_PATHS_MAX; j++)
			if (strcmp(paths.at[j], table[i].want[j] ? table[i].want[j] : "") != 0)
				fail_msg("case %zu, path %u: %s", i, j, paths.at[j]);
	}
}

/* Texts that are none, or lie elsewhere, name nothing. */
static void test_damaged_texts(void **state)
{
	static const struct text good = { "W2ru", "base.vhd" };
	struct disk_vhd_header h;
	struct vhd_paths paths;
	uint8_t long_text[2 * NAME_PATH_MAX + 2];

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		static const uint64_t off[6] = { TEXT_OFF + VHD_LOCATORS * TEXT_ROOM - 15,
						 UINT64_MAX,
						 UINT64_MAX - 15,
						 TEXT_OFF,
						 TEXT_OFF,
						 TEXT_OFF };
		static const uint32_t length[6] = { 16, 16, 16, 0, UINT32_MAX, 1 };

		memset(&h, 0, sizeof(h));
		put_text(&h, 0, &good);
		h.locator[0].off = be64_of(off[i]);
		h.locator[0].length = be32_of(length[i]);
		assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
		assert_string_equal(paths.at[0], "");
	}
	memset(&h, 0, sizeof(h));
	put_text(&h, 0, &good);
	assert_int_equal(node_pwrite(file, "\0\xd8.", 4, TEXT_OFF, 0, NULL), 0); /* half a pair of surrogates */
	assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
	assert_string_equal(paths.at[0], "");
	memset(long_text, 'a', sizeof(long_text));
	for (size_t i = 1; i < sizeof(long_text); i += 2)
		long_text[i] = 0;
	assert_int_equal(node_pwrite(file, long_text, sizeof(long_text), TEXT_OFF, 0, NULL), 0);
	h.locator[0].length = be32_of(2 * NAME_PATH_MAX - 2);
	assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
	assert_int_equal(strlen(paths.at[0]), NAME_PATH_MAX - 1);
	h.locator[0].length = be32_of(sizeof(long_text));
	assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
	assert_string_equal(paths.at[0], "");
}

static struct backing_ref ref_to(const char *name)
{
	struct backing_ref ref = { .format = "vhd", .id = { .kind = PIN_ID } };

	for (size_t i = 0; i < sizeof(ref.id.uuid); i++)
		ref.id.uuid[i] = (uint8_t)(i + 1);
	strncpy(ref.name, name, sizeof(ref.name) - 1);
	return ref;
}

/* What is written is read back, and stands where the file has room for it. */
static void test_written(void **state)
{
	static const char *const names[] = { "base.vhd",      "./base.vhd",	  "../a/b c.vhd",
					     "/srv/base.vhd", "\xe2\x82\xac.vhd", "./C:x.vhd" };
	static const char *const first[] = { "base.vhd",      "base.vhd",	  "../a/b c.vhd",
					     "/srv/base.vhd", "\xe2\x82\xac.vhd", "./C:x.vhd" };
	uint8_t room[VHD_LOCATORS_BYTES];
	struct disk_vhd_header h;
	struct vhd_paths paths;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct backing_ref ref = ref_to(names[i]);

		ref.pin = (struct pin){ .kind = PIN_WEAK, .mtime_ns = (VHD_EPOCH + 77) * VHD_NS_PER_SECOND + 5 };
		memset(&h, 0, sizeof(h));
		assert_int_equal(vhd_set_parent(&h, &ref, room, TEXT_OFF, NULL), 0);
		assert_int_equal(node_pwrite(file, room, sizeof(room), TEXT_OFF, 0, NULL), 0);
		assert_memory_equal(h.parent_uuid, ref.id.uuid, sizeof(h.parent_uuid));
		assert_int_equal(be32_get(h.parent_timestamp), 77);
		assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
		assert_string_equal(paths.at[0], first[i]);
	}
	/* No parent: nothing is left of one. */
	assert_int_equal(vhd_set_parent(&h, NULL, room, TEXT_OFF, NULL), 0);
	assert_int_equal(vhd_parent_paths(file, &h, &paths, NULL), 0);
	assert_string_equal(paths.at[0], "");
	assert_int_equal(be32_get(h.parent_timestamp), 0);
}

static void test_cannot_be_named(void **state)
{
	struct backing_ref ref = ref_to("back\\slash.vhd");
	uint8_t room[VHD_LOCATORS_BYTES];
	struct disk_vhd_header h;

	(void)state;
	memset(&h, 0, sizeof(h));
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), IMG_E_INVALID);
	ref = ref_to("\xff.vhd");
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), IMG_E_INVALID);
	ref = ref_to("base.vhd");
	strcpy(ref.format, "raw");
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), IMG_E_UNSUPPORTED);
	ref = ref_to("base.vhd");
	ref.id.kind = PIN_NONE;
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), IMG_E_UNSUPPORTED);
	ref = ref_to("base.vhd");
	strcpy(ref.snapshot, "one");
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), IMG_E_UNSUPPORTED);
	/* The longest that there is fits. */
	ref = ref_to("");
	memset(ref.name, 'n', sizeof(ref.name) - 1);
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), IMG_E_INVALID); /* with ".\" it does not */
	ref.name[0] = '/';
	assert_int_equal(vhd_set_parent(&h, &ref, room, 0, NULL), 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, start, end)
	const struct CMUnitTest tests[] = {
		T(test_order),
		T(test_damaged_texts),
		T(test_written),
		T(test_cannot_be_named),
	};

	return cmocka_run_group_tests_name("vhd-parent", tests, NULL, NULL);
}
