/* SPDX-License-Identifier: MIT */
/*
 * What a stranger's VHDX holds: region tables (two copies that must agree), the metadata table, the parent locator, the
 * log; then, if the image could be opened, its table of blocks as the log leaves it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "inspect.h"
#include "is_zero.h"
#include "vhdx.h"

static bool is_guid(const uint8_t *a, const uint8_t *b)
{
	return memcmp(a, b, 16) == 0;
}

static int headers(struct inspector *in, struct node *file, struct img_error *err)
{
	static const uint64_t place[2] = { VHDX_HEADER_A, VHDX_HEADER_B };
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
		inspect_found(in, INSPECT_BAD_HEADER, VHDX_HEADER_A, "neither copy of the header is there");
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
	uint8_t *p = calloc(1, VHDX_LOCATOR_MAX);
	int ret = p ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	bytes = min_u64(bytes, VHDX_LOCATOR_MAX);
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

static int item(struct inspector *in, struct node *file, uint64_t base, const struct disk_vhdx_item *d, struct items *s,
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
	if (is_guid(d->guid, vhdx_guid_parameters)) {
		s->has_parent = le32_at(v, 4) & VHDX_HAS_PARENT;
	} else if (is_guid(d->guid, vhdx_guid_size)) {
		memcpy(&size, v, sizeof(size));
		in->out->virtual_bytes = le64_get(size);
		if (le64_get(size) > VHDX_DISK_MAX)
			inspect_found(in, INSPECT_BAD_HEADER, off, "a disk of %" PRIu64 " bytes", le64_get(size));
		inspect_limit(in, BUDGET_VIRTUAL, le64_get(size), off);
	} else if (is_guid(d->guid, vhdx_guid_locator)) {
		s->locator_off = off;
		s->locator_bytes = bytes;
	} else if (!is_guid(d->guid, vhdx_guid_logical) && !is_guid(d->guid, vhdx_guid_physical) &&
		   !is_guid(d->guid, vhdx_guid_page83)) {
		inspect_found(in,
			      le32_get(d->flags) & VHDX_ITEM_REQUIRED ? INSPECT_UNKNOWN_FEATURE :
									INSPECT_OPTIONAL_FEATURE,
			      off, "a metadata item that is not known");
	}
	return 0;
}

static int metadata(struct inspector *in, struct node *file, uint64_t base, const uint8_t *buf, struct img_error *err)
{
	uint32_t nr = le16_at(buf, 10);
	struct items s = { 0 };
	int ret = 0;

	if (memcmp(buf, "metadata", 8) != 0 || nr > VHDX_ENTRIES_MAX) {
		inspect_found(in, INSPECT_BAD_HEADER, base, "there is no metadata table at 0x%" PRIx64, base);
		return 0;
	}
	for (uint32_t i = 0; i < nr && ret == 0; i++) {
		struct disk_vhdx_item d;

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
	if (memcmp(a, "regi", 4) != 0 || nr > VHDX_ENTRIES_MAX) {
		inspect_found(in, INSPECT_BAD_HEADER, VHDX_REGIONS_A, "there is no region table");
		return;
	}
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t at = VHDX_REGIONS_A + 16 + 32 * i;
		struct disk_vhdx_region d;

		memcpy(&d, a + 16 + 32 * i, sizeof(d));
		if (!range_inside(le64_get(d.off), le32_get(d.bytes), node_size(file)) || le64_get(d.off) < VHDX_MIB)
			inspect_found(in, INSPECT_TABLE_BOUNDS, at, "a region at 0x%" PRIx64, le64_get(d.off));
		else if (is_guid(d.guid, vhdx_guid_metadata))
			*base = le64_get(d.off);
		else if (!is_guid(d.guid, vhdx_guid_bat))
			inspect_found(in, le32_get(d.required) & 1 ? INSPECT_UNKNOWN_FEATURE : INSPECT_OPTIONAL_FEATURE,
				      at, "a region that is not known");
	}
	if (*base == 0)
		inspect_found(in, INSPECT_BAD_HEADER, VHDX_REGIONS_A, "there is no metadata region");
}

/* What opening would say; the file is as its log will leave it. */
static int deep(struct inspector *in, struct node *file, struct img_error *err)
{
	struct img_error why = { 0 };
	struct vhdx_header h;
	struct vhdx_meta m;
	struct node *over = file;
	struct vhdx_census census = { 0 };
	int ret = vhdx_header_load(file, &h, &why);

	if (ret == 0)
		ret = vhdx_log_open(file, &h, &in->budget, &over, &why);
	if (ret == 0)
		ret = vhdx_meta_load(over, &m, &why);
	if (ret == 0)
		ret = vhdx_bat_census(over, &m, &census, &why);
	if (over != file) {
		over->file = NULL; /* it is the caller's */
		node_close(over, NULL);
	}
	if (ret == IMG_E_NOMEM || ret == IMG_E_IO) {
		if (err)
			*err = why;
		return ret;
	}
	if (ret != 0) {
		inspect_found(in, ret == IMG_E_LIMIT ? INSPECT_LIMIT : INSPECT_BAD_HEADER, why.offset, "%s", why.msg);
		return 0;
	}
	if (census.bad > 0)
		inspect_found(in, INSPECT_ENTRY_BOUNDS, m.bat.off,
			      "%" PRIu64 " entries of the table of blocks lead nowhere", census.bad);
	inspect_expansion(in, census.mapped, node_size(file), m.bat.off, "the disk");
	return 0;
}

int vhdx_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	uint8_t *a = malloc(VHDX_TABLE_BYTES), *b = malloc(VHDX_TABLE_BYTES);
	uint64_t base = 0;
	int ret = a && b ? headers(in, file, err) : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (ret == 0)
		ret = inspect_read(file, a, VHDX_TABLE_BYTES, VHDX_REGIONS_A, err);
	if (ret == 0)
		ret = inspect_read(file, b, VHDX_TABLE_BYTES, VHDX_REGIONS_B, err);
	if (ret == 0) {
		if (memcmp(a, b, VHDX_TABLE_BYTES) != 0)
			inspect_found(in, INSPECT_HEAD_TAIL, VHDX_REGIONS_B, "the two region tables differ");
		regions(in, file, a, &base);
	}
	if (ret == 0 && base)
		ret = inspect_read(file, a, VHDX_TABLE_BYTES, base, err);
	if (ret == 0 && base)
		ret = metadata(in, file, base, a, err);
	free(a);
	free(b);
	return ret ? ret : deep(in, file, err);
}
