/* SPDX-License-Identifier: MIT */
/*
 * VHDX without a driver: region tables (two copies that must agree), the metadata table, the parent locator, the log.
 * Source: [MS-VHDX] sections 2.2 (layout, headers, region table) and 2.6 (metadata).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"
#include "is_zero.h"

#define LAYER	    "inspect"
#define KIB	    UINT64_C(1024)
#define HEADER_A    (64 * KIB)
#define HEADER_B    (128 * KIB)
#define REGIONS_A   (192 * KIB)
#define REGIONS_B   (256 * KIB)
#define TABLE_BYTES (64 * KIB)
#define ENTRIES_MAX 2047u
#define DISK_MAX    (UINT64_C(64) << 40)
#define LOCATOR_MAX (64 * KIB)
#define HAS_PARENT  2u
#define IS_REQUIRED 4u /* of a metadata item */

struct disk_region {
	uint8_t guid[16];
	struct le64 off;
	struct le32 bytes, required;
};
_Static_assert(sizeof(struct disk_region) == 32, "region table entry");

struct disk_item {
	uint8_t guid[16];
	struct le32 off, bytes, flags, reserved;
};
_Static_assert(sizeof(struct disk_item) == 32, "metadata table entry");

static const uint8_t guid_bat[16] = { 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
				      0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 };
static const uint8_t guid_metadata[16] = { 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
					   0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e };
static const uint8_t guid_parameters[16] = { 0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d,
					     0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b };
static const uint8_t guid_size[16] = { 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48,
				       0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 };
static const uint8_t guid_logical[16] = { 0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47,
					  0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f };
static const uint8_t guid_physical[16] = { 0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44,
					   0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56 };
static const uint8_t guid_page83[16] = { 0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45,
					 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46 };
static const uint8_t guid_locator[16] = { 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45,
					  0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c };

static bool is_guid(const uint8_t *a, const uint8_t *b)
{
	return memcmp(a, b, 16) == 0;
}

static int headers(struct inspector *in, struct node *file, struct img_error *err)
{
	static const uint64_t place[2] = { HEADER_A, HEADER_B };
	uint8_t h[80];
	unsigned good = 0;
	int ret = 0;

	for (unsigned i = 0; i < 2 && ret == 0; i++) {
		ret = inspect_read(file, h, sizeof(h), place[i], err);
		if (ret != 0 || memcmp(h, "head", 4) != 0)
			continue;
		good++;
		if (!is_zero(h + 48, 16)) /* LogGuid */
			inspect_found(in, INSPECT_REPLAY, place[i] + 48, "a log waits to be replayed");
	}
	if (ret == 0 && good == 0)
		inspect_found(in, INSPECT_BAD_HEADER, HEADER_A, "neither copy of the header is there");
	return ret;
}

/* Keys and values of UTF-16LE; the ASCII part is shown. */
static void text_of(const uint8_t *p, size_t bytes, char *out, size_t out_bytes)
{
	size_t n = 0;

	for (size_t i = 0; i + 1 < bytes && n + 1 < out_bytes; i += 2)
		out[n++] = p[i + 1] == 0 && p[i] >= ' ' && p[i] < 0x7f ? (char)p[i] : '?';
	out[n] = '\0';
}

static int locator(struct inspector *in, struct node *file, uint64_t off, uint64_t bytes, bool has_parent,
		   struct img_error *err)
{
	enum inspect_id id = has_parent ? INSPECT_PARENT : INSPECT_HIDDEN_REFERENCE;
	uint8_t *p = calloc(1, LOCATOR_MAX);
	int ret = p ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	bytes = min_u64(bytes, LOCATOR_MAX);
	if (ret == 0)
		ret = inspect_read(file, p, bytes, off, err);
	for (uint32_t i = 0, nr = ret == 0 ? le16_at(p, 18) : 0; i < nr && 20 + 12 * (i + 1) <= bytes; i++) {
		const uint8_t *e = p + 20 + 12 * i;
		uint32_t key = le32_at(e, 0), value = le32_at(e, 4), key_bytes = le16_at(e, 8),
			 value_bytes = le16_at(e, 10);
		char name[64], text[256];

		if (!range_inside(key, key_bytes, bytes) || !range_inside(value, value_bytes, bytes)) {
			inspect_found(in, INSPECT_TABLE_BOUNDS, off + 20 + 12 * i, "an entry of the parent locator");
			continue;
		}
		text_of(p + key, key_bytes, name, sizeof(name));
		text_of(p + value, value_bytes, text, sizeof(text));
		if (strcmp(name, "relative_path") == 0)
			inspect_reference(in, id, (uint8_t *)text, strlen(text), off + value, "a parent");
		else
			inspect_found(in, id, off + value, "parent locator: %s = '%s'", name, text);
	}
	free(p);
	return ret;
}

struct items {
	bool has_parent;
	uint64_t locator_off, locator_bytes;
};

static int item(struct inspector *in, struct node *file, uint64_t base, const struct disk_item *d, struct items *s,
		struct img_error *err)
{
	uint64_t off = base + le32_get(d->off), bytes = le32_get(d->bytes);
	uint8_t v[8];
	struct le64 size;
	int ret = inspect_read(file, v, sizeof(v), off, err);

	if (ret != 0)
		return ret;
	if (!range_inside(off, bytes, node_size(file)))
		inspect_found(in, INSPECT_TABLE_BOUNDS, off, "a metadata item lies outside the file");
	if (is_guid(d->guid, guid_parameters)) {
		s->has_parent = le32_at(v, 4) & HAS_PARENT;
	} else if (is_guid(d->guid, guid_size)) {
		memcpy(&size, v, sizeof(size));
		in->out->virtual_bytes = le64_get(size);
		if (le64_get(size) > DISK_MAX)
			inspect_found(in, INSPECT_BAD_HEADER, off, "a disk of %" PRIu64 " bytes", le64_get(size));
		inspect_limit(in, BUDGET_VIRTUAL, le64_get(size), off);
	} else if (is_guid(d->guid, guid_locator)) {
		s->locator_off = off;
		s->locator_bytes = bytes;
	} else if (!is_guid(d->guid, guid_logical) && !is_guid(d->guid, guid_physical) &&
		   !is_guid(d->guid, guid_page83)) {
		inspect_found(in, le32_get(d->flags) & IS_REQUIRED ? INSPECT_UNKNOWN_FEATURE : INSPECT_OPTIONAL_FEATURE,
			      off, "a metadata item that is not known");
	}
	return 0;
}

static int metadata(struct inspector *in, struct node *file, uint64_t base, const uint8_t *buf, struct img_error *err)
{
	uint32_t nr = le16_at(buf, 10);
	struct items s = { 0 };
	int ret = 0;

	if (memcmp(buf, "metadata", 8) != 0 || nr > ENTRIES_MAX) {
		inspect_found(in, INSPECT_BAD_HEADER, base, "there is no metadata table at 0x%" PRIx64, base);
		return 0;
	}
	for (uint32_t i = 0; i < nr && ret == 0; i++) {
		struct disk_item d;

		memcpy(&d, buf + 32 + 32 * i, sizeof(d));
		ret = item(in, file, base, &d, &s, err);
	}
	if (ret == 0 && s.locator_bytes)
		ret = locator(in, file, s.locator_off, s.locator_bytes, s.has_parent, err);
	else if (ret == 0 && s.has_parent)
		inspect_found(in, INSPECT_PARENT, base, "a difference to a parent that is not named");
	return ret;
}

/* *base: of the metadata region, 0: none. */
static void regions(struct inspector *in, struct node *file, const uint8_t *a, uint64_t *base)
{
	uint32_t nr = le32_at(a, 8);

	*base = 0;
	if (memcmp(a, "regi", 4) != 0 || nr > ENTRIES_MAX) {
		inspect_found(in, INSPECT_BAD_HEADER, REGIONS_A, "there is no region table");
		return;
	}
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t at = REGIONS_A + 16 + 32 * i;
		struct disk_region d;

		memcpy(&d, a + 16 + 32 * i, sizeof(d));
		if (!range_inside(le64_get(d.off), le32_get(d.bytes), node_size(file)) || le64_get(d.off) < 1024 * KIB)
			inspect_found(in, INSPECT_TABLE_BOUNDS, at, "a region at 0x%" PRIx64, le64_get(d.off));
		else if (is_guid(d.guid, guid_metadata))
			*base = le64_get(d.off);
		else if (!is_guid(d.guid, guid_bat))
			inspect_found(in, le32_get(d.required) & 1 ? INSPECT_UNKNOWN_FEATURE : INSPECT_OPTIONAL_FEATURE,
				      at, "a region that is not known");
	}
	if (*base == 0)
		inspect_found(in, INSPECT_BAD_HEADER, REGIONS_A, "there is no metadata region");
}

int inspect_vhdx(struct inspector *in, struct node *file, struct img_error *err)
{
	uint8_t *a = malloc(TABLE_BYTES), *b = malloc(TABLE_BYTES);
	uint64_t base = 0;
	int ret = a && b ? headers(in, file, err) : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (ret == 0)
		ret = inspect_read(file, a, TABLE_BYTES, REGIONS_A, err);
	if (ret == 0)
		ret = inspect_read(file, b, TABLE_BYTES, REGIONS_B, err);
	if (ret == 0) {
		if (memcmp(a, b, TABLE_BYTES) != 0)
			inspect_found(in, INSPECT_HEAD_TAIL, REGIONS_B, "the two region tables differ");
		regions(in, file, a, &base);
	}
	if (ret == 0 && base)
		ret = inspect_read(file, a, TABLE_BYTES, base, err);
	if (ret == 0 && base)
		ret = metadata(in, file, base, a, err);
	free(a);
	free(b);
	return ret;
}
