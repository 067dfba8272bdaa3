/* SPDX-License-Identifier: MIT */
/*
 * What can be changed in place: the image's UUID, and the name under which its parent is looked for. The parent's UUIDs
 * stay as they are, so that a name can only help to find the right one.
 */
#include <string.h>

#include "option_list.h"
#include "vdi.h"

static int set_name(struct vdi_header *h, const char *name, struct img_error *err)
{
	struct backing_ref ref;

	if (h->type != VDI_DIFFERENCING)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "the image stands on nothing: imgtool rebase gives it a parent");
	if (name[0] == '\0' || strlen(name) >= sizeof(ref.name))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "backing_file is a name");
	vdi_header_get_backing(h, &ref);
	strcpy(ref.name, name);
	return vdi_header_set_backing(h, &ref, err);
}

static int set_one(void *ctx, const char *key, const char *value, struct img_error *err)
{
	struct vdi_header *h = ctx;
	uint8_t uuid[16];

	if (strcmp(key, "backing_file") == 0)
		return set_name(h, value, err);
	if (strcmp(key, "uuid") != 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "of a VDI uuid and backing_file can be changed; for all else convert it");
	if (!vdi_uuid_parse(value, uuid) || vdi_uuid_is_null(uuid))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "uuid is like 01234567-89ab-cdef-0123-456789abcdef, not '%.40s'", value);
	memcpy(h->uuid, uuid, 16);
	return 0;
}

int vdi_amend(struct node *node, const char *options, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	struct vdi_header h = vdi_header_now(v);
	int ret = blockmap_may_change(v->bm, err);

	if (ret == 0)
		ret = option_each(options, LAYER, set_one, &h, err);
	if (ret == 0)
		ret = blockmap_stop(v->bm, err);
	if (ret != 0)
		return ret;
	memcpy(h.modification, v->h.modification, 16);
	h.nr_allocated = v->h.nr_allocated;
	ret = vdi_replace_header(v, &h, err);
	blockmap_start(v->bm);
	return ret;
}
