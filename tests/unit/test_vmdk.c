/* SPDX-License-Identifier: MIT */
/* VMDK's header and descriptor: what is taken, what is refused and how, what is written, and that an edit stays in its
 * sector. */
#include <stdio.h>

#include "mock.h"
#include "vmdk.h"

/* ---- header ------------------------------------------------------------------------------------------------------ */

static struct vmdk_header plain(void)
{
	return (struct vmdk_header){
		.version = 1,
		.flags = VMDK_NEWLINES_VALID | VMDK_RGD_VALID,
		.capacity_bytes = 10 << 20,
		.grain_bytes = 65536,
		.descriptor_off = 512,
		.descriptor_bytes = 20 * 512,
		.nr_gtes = 512,
		.rgd_off = 21 * 512,
		.gd_off = 26 * 512,
		.overhead_bytes = 65536,
	};
}

static int decode(const struct vmdk_header *h, struct vmdk_header *out)
{
	struct disk_vmdk_header d;

	vmdk_header_encode(h, &d);
	return vmdk_header_decode(&d, 0, "f", out, NULL);
}

static void test_header(void **state)
{
	struct vmdk_header h = plain(), out;

	(void)state;
	assert_int_equal(decode(&h, &out), 0);
	assert_int_equal(out.capacity_bytes, 10 << 20);
	assert_int_equal(out.nr_grains, 160);
	assert_int_equal(out.nr_tables, 1);
	assert_int_equal(out.gd_off, 26 * 512);
	assert_int_equal(vmdk_header_judge(&out, 1 << 20, "f", NULL), 0);
	assert_int_equal(vmdk_header_judge(&out, 26 * 512, "f", NULL), IMG_E_CORRUPT);
	h.gd_off = VMDK_AT_END;
	assert_int_equal(decode(&h, &out), 0);
	assert_true(out.gd_off == VMDK_AT_END);
	h.flags &= ~(unsigned)VMDK_RGD_VALID;
	assert_int_equal(decode(&h, &out), 0);
	assert_int_equal(out.rgd_off, 0);
}

static void test_header_refused(void **state)
{
	struct disk_vmdk_header d;
	struct vmdk_header h, out;

	(void)state;
	h = plain();
	h.version = 4;
	assert_int_equal(decode(&h, &out), IMG_E_UNSUPPORTED);
	h = plain();
	h.flags |= 1u << 20;
	assert_int_equal(decode(&h, &out), IMG_E_UNSUPPORTED);
	h = plain();
	h.flags |= VMDK_COMPRESSED;
	h.compression = 2;
	assert_int_equal(decode(&h, &out), IMG_E_UNSUPPORTED);
	h = plain();
	h.grain_bytes = 3 * 512;
	assert_int_equal(decode(&h, &out), IMG_E_CORRUPT);
	h.grain_bytes = 0;
	assert_int_equal(decode(&h, &out), IMG_E_CORRUPT);
	h = plain();
	h.nr_gtes = 0;
	assert_int_equal(decode(&h, &out), IMG_E_CORRUPT);
	h = plain();
	vmdk_header_encode(&h, &d);
	d.capacity = le64_of(UINT64_MAX / 512);
	assert_int_equal(vmdk_header_decode(&d, 0, "f", &out, NULL), IMG_E_CORRUPT);
	vmdk_header_encode(&h, &d);
	d.newlines[2] = '\n';
	assert_int_equal(vmdk_header_decode(&d, 0, "f", &out, NULL), IMG_E_CORRUPT);
	d.magic[0] = 'C';
	assert_int_equal(vmdk_header_decode(&d, 0, "f", &out, NULL), IMG_E_CORRUPT);
}

/* ---- descriptor -------------------------------------------------------------------------------------------------- */

#define HEAD "# Disk DescriptorFile\nversion=1\nCID=123\nparentCID=ffffffff\ncreateType=\"custom\"\n"

static int parse(const char *text, struct vmdk_descriptor *out)
{
	return vmdk_descriptor_parse(text, strlen(text), 0, "f", out, NULL);
}

static int verdict(const char *text)
{
	struct vmdk_descriptor d;
	int ret = parse(text, &d);

	if (ret == 0)
		vmdk_descriptor_free(&d);
	else
		assert_null(d.text);
	return ret;
}

static void test_descriptor(void **state)
{
	struct vmdk_descriptor d;
	char value[16];

	(void)state;
	assert_int_equal(parse("RW 2048 FLAT \"a b-flat.vmdk\" 16\r\n"
			       "  ddb.adapterType = \"ide\"\r"
			       "createtype = custom\n"
			       "rdonly 8 SPARSE \"x\"\n"
			       "NOACCESS 1 ZERO\n"
			       "parentFileNameHint=\"/p/q = r.vmdk\"\n"
			       "parentCID=AbCd\n"
			       "CID=fffffffe\n"
			       "version=1",
			       &d),
			 0);
	assert_int_equal(d.nr_extents, 3);
	assert_string_equal(d.extents[0].name, "a b-flat.vmdk");
	assert_int_equal(d.extents[0].file_off, 8192);
	assert_int_equal(d.extents[1].access, VMDK_RDONLY);
	assert_int_equal(d.extents[1].kind, VMDK_SPARSE);
	assert_int_equal(d.extents[2].access, VMDK_NOACCESS);
	assert_string_equal(d.extents[2].name, "");
	assert_int_equal(d.disk_bytes, 2057 * 512);
	assert_int_equal(d.parent_cid, 0xabcd);
	assert_int_equal(d.cid, 0xfffffffe);
	assert_string_equal(d.parent_hint, "/p/q = r.vmdk");
	assert_true(vmdk_descriptor_value(&d, "DDB.adaptertype", value, sizeof(value)));
	assert_string_equal(value, "ide");
	assert_false(vmdk_descriptor_value(&d, "ddb.uuid", value, sizeof(value)));
	vmdk_descriptor_free(&d);
}

static void test_descriptor_refused(void **state)
{
	(void)state;
	assert_int_equal(verdict(HEAD "RW 1 ZERO\n"), 0);
	assert_int_equal(verdict(HEAD), IMG_E_CORRUPT);
	assert_int_equal(verdict("RW 1 ZERO\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\nRWX 1 FLAT \"x\"\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 NEW \"x\"\n"), IMG_E_UNSUPPORTED);
	assert_int_equal(verdict(HEAD "RW 1 FLAT\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 FLAT \"x\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 FLAT \"x\" y\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 FLAT \"x\" 0 more\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 36028797018963968 ZERO\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 10000000000000000 ZERO\nRW 10000000000000000 ZERO\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW -1 ZERO\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\nCID=124\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\nCID=123\n"), 0);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\nparentCID=5\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\ncreateType=\"vmfs\"\n"), IMG_E_CORRUPT);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\nversion=5\n"), IMG_E_UNSUPPORTED);
	assert_int_equal(verdict(HEAD "RW 1 ZERO\nparentFileNameHint=\"a\"\nparentFileNameHint=\"b\"\n"),
			 IMG_E_CORRUPT);
}

static void test_descriptor_ends_with_nul(void **state)
{
	static const char text[] = HEAD "RW 1 ZERO\n\0RW 1 ZERO\n";
	struct vmdk_descriptor d;

	(void)state;
	assert_int_equal(vmdk_descriptor_parse(text, sizeof(text), 0, "f", &d, NULL), 0);
	assert_int_equal(d.nr_extents, 1);
	vmdk_descriptor_free(&d);
}

static void test_many_extents(void **state)
{
	enum { NR = 5000 };
	char *text = malloc(sizeof(HEAD) + NR * 40), *at = text;
	struct vmdk_descriptor d;

	(void)state;
	assert_non_null(text);
	at += sprintf(at, HEAD);
	for (unsigned i = 0; i < NR; i++)
		at += sprintf(at, "RW %u FLAT \"f%04u\" 0\n", i, i);
	assert_int_equal(parse(text, &d), 0);
	assert_int_equal(d.nr_extents, NR);
	assert_string_equal(d.extents[NR - 1].name, "f4999");
	vmdk_descriptor_free(&d);
	free(text);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static char *written(enum vmdk_extent_kind kind, const char *hint, size_t *bytes)
{
	static char name[] = "x.vmdk";
	const struct vmdk_extent extent = { .kind = kind, .bytes = 10 << 20, .name = name };
	struct vmdk_descriptor_new n = {
		.parent_cid = hint ? 0x77 : VMDK_NO_PARENT_CID,
		.parent_hint = hint,
		.create_type = "monolithicSparse",
		.extents = &extent,
		.nr_extents = 1,
		.ddb = { .adapter = "lsilogic", .hw_version = "7", .tools_version = "2147483647" },
	};
	char *text;

	vmdk_ddb_geometry(&n.ddb, extent.bytes);
	assert_int_equal(vmdk_ddb_identify(&n.ddb, &n.cid, NULL), 0);
	assert_int_equal(vmdk_descriptor_write(&n, &text, bytes, NULL), 0);
	return text;
}

static void test_written(void **state)
{
	struct vmdk_descriptor d;
	char uuid[64], id[64];
	size_t bytes;
	char *text = written(VMDK_SPARSE, "../p.vmdk", &bytes);

	(void)state;
	assert_int_equal(bytes, strlen(text));
	assert_int_equal(parse(text, &d), 0);
	assert_int_equal(d.parent_cid, 0x77);
	assert_string_equal(d.parent_hint, "../p.vmdk");
	assert_string_equal(d.extents[0].name, "x.vmdk");
	assert_true(vmdk_descriptor_value(&d, "ddb.uuid", uuid, sizeof(uuid)));
	assert_int_equal(strlen(uuid), 47);
	assert_memory_equal(uuid, "60 00 C2 9", 10);
	assert_true(vmdk_descriptor_value(&d, "ddb.longContentID", id, sizeof(id)));
	assert_int_equal(strtoul(id + 24, NULL, 16), d.cid);
	assert_memory_equal(text + 511, "\n# Extent", 9);
	vmdk_descriptor_free(&d);
	free(text);
}

static void test_edit_stays_in_its_sector(void **state)
{
	static const char *const hints[] = { "a.vmdk", "a much longer name of a file.vmdk", NULL, "b", "" };
	struct vmdk_descriptor d;
	char *text, *next;
	size_t bytes, next_bytes, before;

	(void)state;
	text = written(VMDK_SPARSE, NULL, &bytes);
	before = bytes;
	for (size_t i = 0; i < ARRAY_LEN(hints); i++) {
		assert_int_equal(vmdk_descriptor_edit(text, bytes, "parentFileNameHint", hints[i], true, &next,
						      &next_bytes, NULL),
				 0);
		assert_int_equal(next_bytes, before);
		assert_memory_equal(next + 512, text + 512, before - 512);
		assert_int_equal(parse(next, &d), 0);
		assert_true((d.parent_hint != NULL) == (hints[i] != NULL));
		if (hints[i])
			assert_string_equal(d.parent_hint, hints[i]);
		vmdk_descriptor_free(&d);
		free(text);
		text = next;
		bytes = next_bytes;
	}
	assert_int_equal(vmdk_descriptor_edit(text, bytes, "CID", "0badcafe", false, &next, &next_bytes, NULL), 0);
	assert_int_equal(next_bytes, before);
	assert_int_equal(parse(next, &d), 0);
	assert_int_equal(d.cid, 0x0badcafe);
	vmdk_descriptor_free(&d);
	free(next);
	free(text);
}

static void test_edit_without_room(void **state)
{
	struct vmdk_descriptor d;
	size_t bytes;
	char *next;

	(void)state;
	assert_int_equal(vmdk_descriptor_edit(HEAD "RW 1 ZERO\n", strlen(HEAD "RW 1 ZERO\n"), "parentFileNameHint",
					      "p.vmdk", true, &next, &bytes, NULL),
			 0);
	assert_int_equal(parse(next, &d), 0);
	assert_string_equal(d.parent_hint, "p.vmdk");
	assert_int_equal(d.nr_extents, 1);
	vmdk_descriptor_free(&d);
	free(next);
	assert_int_equal(vmdk_descriptor_edit(HEAD, strlen(HEAD), "parentFileNameHint", "a\"b", true, &next, &bytes,
					      NULL),
			 IMG_E_INVALID);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header),
		cmocka_unit_test(test_header_refused),
		cmocka_unit_test(test_descriptor),
		cmocka_unit_test(test_descriptor_refused),
		cmocka_unit_test(test_descriptor_ends_with_nul),
		cmocka_unit_test(test_many_extents),
		cmocka_unit_test(test_written),
		cmocka_unit_test(test_edit_stays_in_its_sector),
		cmocka_unit_test(test_edit_without_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
