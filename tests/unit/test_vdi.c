/* SPDX-License-Identifier: MIT */
/* VDI's header: what is taken, what is refused and how, UUIDs as text, options, the parent's name in the comment. */
#include "mem.h"
#include "mock.h"
#include "vdi.h"

static struct node *file;

static void fresh(void)
{
	const struct driver_create args = { .size_bytes = 1 << 20, .options = "align=512,block_size=4096" };

	if (file)
		node_close(file, NULL);
	assert_int_equal(mem_node_new("f", &file, NULL), 0);
	assert_int_equal(vdi_create(file, &args, NULL), 0);
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

static void test_created(void **state)
{
	struct vdi_header h;

	(void)state;
	fresh();
	assert_int_equal(vdi_header_load(file, true, &h, NULL), 0);
	assert_int_equal(h.nr_blocks, 256);
	assert_int_equal(h.map_off, 512);
	assert_int_equal(h.data_off, 512 + 1024);
	assert_int_equal(h.type, VDI_DYNAMIC);
	assert_false(vdi_uuid_is_null(h.uuid));
	assert_memory_not_equal(h.uuid, h.modification, 16);
	assert_int_equal(h.uuid[7] >> 4, 4); /* version 4 */
}

/* One field after the other. */
static void test_refused(void **state)
{
	static const struct {
		uint64_t off;
		uint32_t value;
		int reading, writing;
	} table[] = {
		{ 64, 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ 68, 0x10002, IMG_E_UNSUPPORTED, IMG_E_UNSUPPORTED },
		{ 68, 0x20001, IMG_E_UNSUPPORTED, IMG_E_UNSUPPORTED },
		{ VDI_AT(header_bytes), 383, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(header_bytes), 384, 0, 0 },
		{ VDI_AT(header_bytes), 4000, 0, IMG_E_UNSUPPORTED }, /* the map would lie in it */
		{ VDI_AT(type), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(type), VDI_UNDO, IMG_E_UNSUPPORTED, IMG_E_UNSUPPORTED },
		{ VDI_AT(type), VDI_DIFFERENCING, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(type), 5, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(flags), 1, 0, 0 },
		{ VDI_AT(flags), 2, IMG_E_UNSUPPORTED, IMG_E_UNSUPPORTED },
		{ VDI_AT(map_off), 455, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(map_off), 474, 0, IMG_E_UNSUPPORTED }, /* entries across sectors */
		{ VDI_AT(map_off), 0xfffffffc, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(data_off), 1000, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(disk_bytes), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(disk_bytes) + 4, 1, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(disk_bytes) + 4, 0x80000000, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(block_bytes), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(block_bytes), 256, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(block_bytes), 12288, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(block_bytes), 0x80000000, 0, 0 },
		{ VDI_AT(extra_bytes), 512, 0, 0 },
		{ VDI_AT(extra_bytes), 513, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(extra_bytes), 0x80000000, 0, 0 },
		{ VDI_AT(nr_blocks), 0, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(nr_blocks), 255, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(nr_blocks), 257, IMG_E_CORRUPT, IMG_E_CORRUPT }, /* the map reaches into the data */
		{ VDI_AT(nr_blocks), 0xffffffff, IMG_E_CORRUPT, IMG_E_CORRUPT },
		{ VDI_AT(nr_allocated), 0xffffffff, 0, 0 },
	};
	struct vdi_header h;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(table); i++) {
		struct img_error err = { 0 };

		fresh();
		put32(table[i].off, table[i].value);
		if (vdi_header_load(file, false, &h, &err) != table[i].reading)
			fail_msg("reading, case %zu: %d %s", i, err.code, err.msg);
		err.code = 0;
		if (vdi_header_load(file, true, &h, &err) != table[i].writing)
			fail_msg("writing, case %zu: %d %s", i, err.code, err.msg);
		assert_true(table[i].writing == 0 || err.msg[0] != '\0');
	}
}

static void test_cut_off(void **state)
{
	struct vdi_header h;

	(void)state;
	for (uint64_t bytes = 0; bytes < 1600; bytes += 100) {
		fresh();
		assert_int_equal(node_resize(file, bytes, NULL), 0);
		assert_int_equal(vdi_header_load(file, false, &h, NULL), bytes < 1536 ? IMG_E_CORRUPT : 0);
	}
}

static void test_uuid(void **state)
{
	static const char text[] = "01234567-89ab-cdef-0123-456789abcdef";
	static const uint8_t disk[16] = { 0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd,
					  0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef };
	static const char *const wrong[] = { "",
					     "0123",
					     "01234567-89ab-cdef-0123-456789abcde",
					     "01234567-89ab-cdef-0123-456789abcdef0",
					     "0123456789ab-cdef-0123-456789abcdef--",
					     "01234567-89ab-cdef-0123-456789abcdeg",
					     "{1234567-89ab-cdef-0123-456789abcdef" };
	char out[VDI_UUID_TEXT_BYTES];
	uint8_t uuid[16];

	(void)state;
	assert_true(vdi_uuid_parse(text, uuid));
	assert_memory_equal(uuid, disk, 16);
	vdi_uuid_text(uuid, out);
	assert_string_equal(out, text);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		assert_false(vdi_uuid_parse(wrong[i], uuid));
}

static void test_options(void **state)
{
	static const char *const wrong[] = {
		"block_size=3000",
		"block_size=256",
		"block_size=2G",
		"block_size=",
		"align=2M",
		"align=0",
		"subformat=sparse",
		"static=maybe",
		"uuid=x",
		"fixed",
		"preallocation=full",
		"subformat=fixed,preallocation=on",
		"nonsense=1",
		"block_size=99999999999999999999",
	};
	struct vdi_options o;

	(void)state;
	assert_int_equal(vdi_options_parse(NULL, &o, NULL), 0);
	assert_int_equal(o.block_bytes, 1 << 20);
	assert_false(o.fixed);
	assert_int_equal(vdi_options_parse("static=on,preallocation=full,block_size=1G,align=4K", &o, NULL), 0);
	assert_true(o.fixed);
	assert_int_equal(o.block_bytes, 1u << 30);
	assert_int_equal(o.align_bytes, 4096);
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		if (vdi_options_parse(wrong[i], &o, NULL) != IMG_E_INVALID)
			fail_msg("%s", wrong[i]);
}

static struct backing_ref ref_to(const char *name)
{
	struct backing_ref ref = { .format = "vdi", .id = { .kind = PIN_ID } };

	strcpy(ref.name, name);
	memset(ref.id.uuid, 'u', 16);
	memset(ref.id.change, 'c', 16);
	return ref;
}

static void test_parent(void **state)
{
	struct vdi_header h = { .version = VDI_VERSION_1, .type = VDI_DYNAMIC };
	struct backing_ref ref = ref_to("base.vdi"), got;
	char longest[300];

	(void)state;
	strcpy(h.comment, "two\nlines");
	assert_int_equal(vdi_header_set_backing(&h, &ref, NULL), 0);
	assert_int_equal(h.type, VDI_DIFFERENCING);
	assert_string_equal(h.comment, "two\nlines\nlibimg parent=base.vdi");
	vdi_header_get_backing(&h, &got);
	assert_string_equal(got.name, "base.vdi");
	assert_int_equal(got.pin.kind, PIN_ID);
	assert_memory_equal(got.pin.uuid, ref.id.uuid, 16);
	assert_memory_equal(got.pin.change, ref.id.change, 16);
	assert_false(got.committing);
	/* Set again by what was got, as a commit does. */
	got.committing = true;
	assert_int_equal(vdi_header_set_backing(&h, &got, NULL), 0);
	assert_string_equal(h.comment, "two\nlines\nlibimg committing parent=base.vdi");
	vdi_header_get_backing(&h, &got);
	assert_true(got.committing);
	assert_memory_equal(got.pin.uuid, ref.id.uuid, 16);
	assert_int_equal(vdi_header_set_backing(&h, NULL, NULL), 0);
	assert_string_equal(h.comment, "two\nlines");
	assert_int_equal(h.type, VDI_DYNAMIC);
	assert_true(vdi_uuid_is_null(h.parent));
	/* As long as it may be, with room for a commit's word, and one byte more. */
	memset(h.comment, 0, sizeof(h.comment));
	memset(longest, 'n', sizeof(longest));
	longest[VDI_COMMENT_BYTES - 1 - strlen("libimg committing parent=")] = '\0';
	ref = ref_to(longest);
	assert_int_equal(vdi_header_set_backing(&h, &ref, NULL), 0);
	ref.committing = true;
	assert_int_equal(vdi_header_set_backing(&h, &ref, NULL), 0);
	assert_int_equal(strlen(h.comment), VDI_COMMENT_BYTES - 1);
	strcat(ref.name, "n");
	assert_int_equal(vdi_header_set_backing(&h, &ref, NULL), IMG_E_LIMIT);
	ref = ref_to("a\nb");
	assert_int_equal(vdi_header_set_backing(&h, &ref, NULL), IMG_E_INVALID);
	ref = ref_to("a");
	strcpy(ref.format, "raw");
	assert_int_equal(vdi_header_set_backing(&h, &ref, NULL), IMG_E_UNSUPPORTED);
	/* Without a record: VirtualBox' own name. */
	memset(&h, 0, sizeof(h));
	h.type = VDI_DIFFERENCING;
	assert_true(vdi_uuid_parse("01234567-89ab-cdef-0123-456789abcdef", h.parent));
	vdi_header_get_backing(&h, &got);
	assert_string_equal(got.name, "{01234567-89ab-cdef-0123-456789abcdef}.vdi");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_created), cmocka_unit_test(test_refused), cmocka_unit_test(test_cut_off),
		cmocka_unit_test(test_uuid),	cmocka_unit_test(test_options), cmocka_unit_test(test_parent),
	};

	return cmocka_run_group_tests(tests, NULL, end);
}
