/* SPDX-License-Identifier: MIT */
/*
 * Where the header says which parent it is: up to eight locators, each a text somewhere in the file, and a name in the
 * header itself. The relative path (W2ru) is tried before the absolute one (W2ku), the Macintosh's URL (MacX) and the
 * name, because children and parents move together. Of a locator its place and length are taken; what it says of its
 * room is wrong in what Windows writes (VHD-10).
 */
#include <inttypes.h>
#include <string.h>

#include "vhd.h"

int vhd_locator_text(struct node *file, const struct disk_vhd_header *h, unsigned i, uint8_t *out, size_t room,
		     size_t *nr, struct img_error *err)
{
	uint64_t off = be64_get(h->locator[i].off), bytes = be32_get(h->locator[i].length);

	*nr = 0;
	if (bytes == 0 || !range_inside(off, bytes, node_size(file)))
		return 0;
	*nr = (size_t)min_u64(bytes, room);
	return node_pread(file, out, *nr, off, 0, err);
}

static bool take(const uint8_t *text, size_t nr, const char *code, char out[NAME_PATH_MAX])
{
	char name[NAME_PATH_MAX];

	if (strcmp(code, "MacX") == 0) {
		if (nr >= sizeof(name))
			return false;
		memcpy(name, text, nr);
		name[nr] = '\0';
		return name_from_url(name, out) && out[0] != '\0';
	}
	if (!name_from_utf16(text, nr, false, name, sizeof(name)))
		return false;
	name_from_windows(name, strcmp(code, "W2ru") == 0, out);
	return out[0] != '\0';
}

/* False: there is no room for more. */
static bool add_path(struct vhd_paths *paths, const char *path)
{
	for (unsigned i = 0; i < VHD_PATHS_MAX; i++) {
		if (paths->at[i][0] == '\0')
			memcpy(paths->at[i], path, strlen(path) + 1);
		if (strcmp(paths->at[i], path) == 0)
			return true;
	}
	return false;
}

int vhd_parent_paths(struct node *file, const struct disk_vhd_header *h, struct vhd_paths *out, struct img_error *err)
{
	static const char *const codes[] = { "W2ru", "W2ku", "MacX" };
	char name[NAME_PATH_MAX], path[NAME_PATH_MAX];

	memset(out, 0, sizeof(*out));
	for (size_t c = 0; c < ARRAY_LEN(codes); c++) {
		for (unsigned i = 0; i < VHD_LOCATORS; i++) {
			uint8_t text[2 * NAME_PATH_MAX];
			size_t nr;
			int ret;

			if (memcmp(h->locator[i].code, codes[c], 4) != 0)
				continue;
			ret = vhd_locator_text(file, h, i, text, sizeof(text), &nr, err);
			if (ret != 0)
				return ret;
			if (nr > 0 && take(text, nr, codes[c], path) && !add_path(out, path))
				return 0;
		}
	}
	if (!name_from_utf16(h->parent_name, sizeof(h->parent_name), true, name, sizeof(name)))
		return 0;
	name_from_windows(name, false, path);
	if (path[0] != '\0')
		(void)add_path(out, path);
	return 0;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int cannot_be_named(const char *name, const char *why, struct img_error *err)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a VHD cannot record the parent's name '%.128s': %s",
			 name, why);
}

static int put_locator(struct disk_vhd_locator *l, const char *code, const char *text, uint8_t *room, uint64_t off,
		       const char *name, struct img_error *err)
{
	size_t bytes;

	if (!name_to_utf16(text, false, room, VHD_LOCATOR_ROOM_BYTES, &bytes))
		return cannot_be_named(name, "it is no UTF-8, or too long", err);
	memcpy(l->code, code, sizeof(l->code));
	l->space = be32_of(VHD_LOCATOR_ROOM_BYTES);
	l->length = be32_of((uint32_t)bytes);
	l->off = be64_of(off);
	return 0;
}

/* The name alone, or what fits of its end; the locators have all of it. */
static void put_name(struct disk_vhd_header *h, const char *name)
{
	const char *slash = strrchr(name, '/');
	size_t bytes;

	if (!name_to_utf16(slash ? slash + 1 : name, true, h->parent_name, sizeof(h->parent_name) - 2, &bytes))
		memset(h->parent_name, 0, sizeof(h->parent_name));
}

int vhd_set_parent(struct disk_vhd_header *h, const struct backing_ref *ref, uint8_t *room, uint64_t off,
		   struct img_error *err)
{
	const struct pin *id;
	char path[NAME_PATH_MAX + 2];
	int ret = 0;

	memset(h->parent_uuid, 0, sizeof(h->parent_uuid));
	h->parent_timestamp = be32_of(0);
	memset(h->parent_name, 0, sizeof(h->parent_name));
	memset(h->locator, 0, sizeof(h->locator));
	memset(room, 0, VHD_LOCATORS_BYTES);
	if (!ref)
		return 0;
	id = ref->id.kind == PIN_ID ? &ref->id : &ref->pin;
	if (strcmp(ref->format, "vhd") != 0 || id->kind != PIN_ID)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a VHD can only stand on a VHD, not on a %s image", ref->format);
	if (ref->snapshot[0] != '\0')
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "a VHD cannot stand on a snapshot");
	if (strchr(ref->name, '\\'))
		return cannot_be_named(ref->name, "it has a backslash", err);
	memcpy(h->parent_uuid, id->uuid, sizeof(h->parent_uuid));
	h->parent_timestamp = be32_of(vhd_timestamp(ref->pin.mtime_ns / VHD_NS_PER_SECOND));
	put_name(h, ref->name);
	name_to_windows(ref->name, path);
	if (ref->name[0] != '/')
		ret = put_locator(&h->locator[1], "W2ru", path, room + VHD_LOCATOR_ROOM_BYTES,
				  off + VHD_LOCATOR_ROOM_BYTES, ref->name, err);
	if (ret == 0)
		ret = put_locator(&h->locator[0], "W2ku", strncmp(path, ".\\", 2) == 0 ? path + 2 : path, room, off,
				  ref->name, err);
	return ret;
}
