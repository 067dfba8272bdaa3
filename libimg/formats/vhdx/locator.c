/* SPDX-License-Identifier: MIT */
/*
 * The parent locator: keys and values in UTF-16. The identity is under parent_linkage (VHDX-7: the parent's data write
 * GUID); paths are tried as Windows does, relative_path first, then absolute_win32_path, of which this host can use the
 * last part. volume_path names a volume by a GUID that means nothing here. [MS-VHDX] 2.6.2.6.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "foreign_name.h"
#include "vhdx.h"

#define NR_MAX	64u /* Windows writes five */
#define KEY_MAX 64u
#define LEAST	sizeof(struct disk_vhdx_locator)
#define ENTRY	sizeof(struct disk_vhdx_locator_entry)

static const uint8_t guid_vhdx_parent[16] = { 0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a,
					      0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13 };

struct found {
	char relative[NAME_PATH_MAX], absolute[NAME_PATH_MAX], linkage[NAME_PATH_MAX];
};

static bool is_hex(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static uint8_t hex(char c)
{
	return (uint8_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
}

/* "{01234567-89AB-CDEF-0123-456789ABCDEF}", the first three groups as little-endian numbers. */
static bool parse_guid(const char *text, uint8_t out[16])
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	size_t n = 0;

	if (strlen(text) != 38 || text[0] != '{' || text[37] != '}')
		return false;
	for (const char *p = text + 1; n < 16; p += 2) {
		if (*p == '-' && (p == text + 9 || p == text + 14 || p == text + 19 || p == text + 24))
			p++;
		if (!is_hex(p[0]) || !is_hex(p[1]))
			return false;
		out[order[n++]] = (uint8_t)(hex(p[0]) << 4 | hex(p[1]));
	}
	return true;
}

static int take_entry(const uint8_t *item, uint64_t bytes, unsigned i, struct found *out)
{
	struct disk_vhdx_locator_entry e;
	uint32_t key, value, key_bytes, value_bytes;
	char name[KEY_MAX], *to;

	memcpy(&e, item + LEAST + ENTRY * i, sizeof(e));
	key = le32_get(e.key);
	value = le32_get(e.value);
	key_bytes = le16_get(e.key_bytes);
	value_bytes = le16_get(e.value_bytes);
	if (!range_inside(key, key_bytes, bytes) || !range_inside(value, value_bytes, bytes))
		return IMG_E_CORRUPT;
	if (!name_from_utf16(item + key, key_bytes, false, name, sizeof(name)))
		return 0; /* none of ours */
	to = strcmp(name, "relative_path") == 0	      ? out->relative :
	     strcmp(name, "absolute_win32_path") == 0 ? out->absolute :
	     strcmp(name, "parent_linkage") == 0      ? out->linkage :
							NULL;
	if (to && !name_from_utf16(item + value, value_bytes, false, to, NAME_PATH_MAX))
		return IMG_E_CORRUPT;
	return 0;
}

static int parse(const uint8_t *item, uint64_t bytes, struct found *out)
{
	unsigned nr;
	int ret = 0;

	if (bytes < LEAST || memcmp(item, guid_vhdx_parent, 16) != 0)
		return IMG_E_CORRUPT;
	nr = le16_at(item, offsetof(struct disk_vhdx_locator, nr));
	if (nr > NR_MAX || LEAST + ENTRY * nr > bytes)
		return IMG_E_CORRUPT;
	for (unsigned i = 0; i < nr && ret == 0; i++)
		ret = take_entry(item, bytes, i, out);
	return ret;
}

int vhdx_locator_load(struct node *file, const struct vhdx_range *at, char name[VHDX_PATH_MAX], uint8_t linkage[16],
		      struct img_error *err)
{
	struct found *f = calloc(1, sizeof(*f));
	uint8_t *item = malloc(VHDX_LOCATOR_MAX);
	int ret = f && item ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	_Static_assert(VHDX_PATH_MAX == NAME_PATH_MAX, "a parent's path fits");
	if (ret == 0 && at->bytes > VHDX_LOCATOR_MAX)
		ret = error_set(err, IMG_E_LIMIT, 0, at->off, LAYER, "the parent locator has more than 64 KiB");
	if (ret == 0)
		ret = node_pread(file, item, at->bytes, at->off, 0, err);
	if (ret == 0) {
		ret = parse(item, at->bytes, f);
		if (ret == 0 && !parse_guid(f->linkage, linkage))
			ret = IMG_E_CORRUPT;
		if (ret != 0)
			error_set(err, ret, 0, at->off, LAYER, "the parent locator does not say which parent it is");
	}
	if (ret == 0 && f->relative[0] != '\0')
		name_from_windows(f->relative, true, name);
	else if (ret == 0)
		name_from_windows(f->absolute, false, name);
	free(item);
	free(f);
	return ret;
}
