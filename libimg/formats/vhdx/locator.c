/* SPDX-License-Identifier: MIT */
/*
 * The parent locator: keys and values in UTF-16. The identity is under parent_linkage or parent_linkage2 (VHDX-7: the
 * parent's data write GUID is one of them); paths are tried as Windows does, relative_path first, then volume_path and
 * absolute_win32_path, of which this host can use the last part. [MS-VHDX] 2.6.2.6.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "foreign_name.h"
#include "vhdx.h"

#define NR_MAX	64u /* Windows writes five */
#define KEY_MAX 64u
/* Ours: a commit into the parent began and has not ended. Others find that the parent is not the one on record. */
#define KEY_COMMITTING "libimg_committing"
#define LEAST	       sizeof(struct disk_vhdx_locator)
#define ENTRY	       sizeof(struct disk_vhdx_locator_entry)

static const uint8_t guid_vhdx_parent[16] = { 0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a,
					      0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13 };

struct found {
	char relative[NAME_PATH_MAX], volume[NAME_PATH_MAX], absolute[NAME_PATH_MAX];
	char linkage[NAME_PATH_MAX], linkage2[NAME_PATH_MAX];
	char committing[NAME_PATH_MAX];
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
	     strcmp(name, "volume_path") == 0	      ? out->volume :
	     strcmp(name, "absolute_win32_path") == 0 ? out->absolute :
	     strcmp(name, "parent_linkage") == 0      ? out->linkage :
	     strcmp(name, "parent_linkage2") == 0     ? out->linkage2 :
	     strcmp(name, KEY_COMMITTING) == 0	      ? out->committing :
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

static void add_path(struct vhdx_parent *out, const char *windows, bool relative)
{
	char path[NAME_PATH_MAX];
	size_t i = 0;

	name_from_windows(windows, relative, path);
	while (i < ARRAY_LEN(out->name) && out->name[i][0] != '\0' && strcmp(out->name[i], path) != 0)
		i++;
	if (i < ARRAY_LEN(out->name))
		memcpy(out->name[i], path, sizeof(path));
}

/* In the order of 2.6.2.6.3. */
static void take_paths(const struct found *f, struct vhdx_parent *out)
{
	memset(out->name, 0, sizeof(out->name));
	if (f->relative[0] != '\0')
		add_path(out, f->relative, true);
	if (f->volume[0] != '\0')
		add_path(out, f->volume, false);
	if (f->absolute[0] != '\0')
		add_path(out, f->absolute, false);
}

int vhdx_locator_load(struct node *file, const struct vhdx_range *at, struct vhdx_parent *out, struct img_error *err)
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
		if (ret == 0 && !parse_guid(f->linkage, out->linkage))
			ret = IMG_E_CORRUPT;
		if (ret == 0 && !parse_guid(f->linkage2, out->linkage2))
			memset(out->linkage2, 0, sizeof(out->linkage2));
		out->committing = f->committing[0] != '\0';
		if (ret != 0)
			error_set(err, ret, 0, at->off, LAYER, "the parent locator does not say which parent it is");
	}
	if (ret == 0)
		take_paths(f, out);
	free(item);
	free(f);
	return ret;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int cannot_be_named(const char *name, const char *why, struct img_error *err)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a VHDX cannot record the parent's name '%.128s': %s",
			 name, why);
}

struct writer {
	uint8_t *out;
	uint32_t nr, end; /* entries, bytes of text */
};

static bool put_text(struct writer *w, const char *text, uint16_t *bytes)
{
	size_t n;

	if (!name_to_utf16(text, false, w->out + w->end, VHDX_LOCATOR_OURS - w->end, &n))
		return false;
	w->end += (uint32_t)n;
	*bytes = (uint16_t)n;
	return true;
}

static bool put_entry(struct writer *w, const char *key, const char *value)
{
	struct disk_vhdx_locator_entry e = { .key = le32_of(w->end) };
	uint16_t key_bytes, value_bytes;

	if (!put_text(w, key, &key_bytes))
		return false;
	e.value = le32_of(w->end);
	if (!put_text(w, value, &value_bytes))
		return false;
	e.key_bytes = le16_of(key_bytes);
	e.value_bytes = le16_of(value_bytes);
	memcpy(w->out + LEAST + ENTRY * w->nr++, &e, sizeof(e));
	return true;
}

int vhdx_locator_make(const struct vhdx_parent *p, uint8_t out[VHDX_LOCATOR_OURS], uint32_t *bytes,
		      struct img_error *err)
{
	struct disk_vhdx_locator l = { .nr = le16_of(p->committing ? 3 : 2) };
	struct writer w = { .out = out, .end = LEAST + ENTRY * 3 };
	char guid[40], path[NAME_PATH_MAX + 2];
	const char *name = p->name[0];
	bool relative = name[0] != '/';

	memset(out, 0, VHDX_LOCATOR_OURS);
	if (strchr(name, '\\'))
		return cannot_be_named(name, "it has a backslash", err);
	memcpy(l.type, guid_vhdx_parent, sizeof(l.type));
	memcpy(out, &l, sizeof(l));
	vhdx_guid_text(p->linkage, guid);
	name_to_windows(name, path);
	if (!put_entry(&w, "parent_linkage", guid) ||
	    !put_entry(&w, relative ? "relative_path" : "absolute_win32_path", path) ||
	    (p->committing && !put_entry(&w, KEY_COMMITTING, "1")))
		return cannot_be_named(name, "it is no UTF-8, or too long", err);
	*bytes = w.end;
	return 0;
}

int vhdx_parent_of(const struct backing_ref *ref, uint32_t sector_bytes, struct vhdx_parent *out, struct img_error *err)
{
	/* Who sets another state of the same reference brings its pin, who sets a new one the parent's id. */
	const struct pin *id = ref->id.kind == PIN_ID ? &ref->id : &ref->pin;

	memset(out, 0, sizeof(*out));
	if (strcmp(ref->format, "vhdx") != 0 || id->kind != PIN_ID)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a VHDX can only stand on a VHDX, not on a %s image", ref->format);
	if (ref->snapshot[0] != '\0')
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "a VHDX cannot stand on a snapshot");
	if (id->sector_bytes != 0 && id->sector_bytes != sector_bytes)
		return error_set(
			err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
			"the parent has logical sectors of %u bytes, and this image of %u: they must be the same",
			id->sector_bytes, sector_bytes);
	memcpy(out->name[0], ref->name, sizeof(out->name[0]));
	memcpy(out->linkage, id->uuid, sizeof(out->linkage));
	memcpy(out->linkage2, id->snapshot_uuid, sizeof(out->linkage2));
	out->committing = ref->committing;
	return 0;
}
_Static_assert(sizeof(((struct backing_ref *)0)->name) == VHDX_PATH_MAX, "a parent's path fits");
