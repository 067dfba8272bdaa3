/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". static is qemu-img's word for a fixed image. */
#include <string.h>

#include "option_list.h"
#include "vdi.h"

static int wrong(struct img_error *err, const char *key, const char *range, const char *v)
{
	return option_wrong(LAYER, key, range, v, err);
}

static int set_subformat(struct vdi_options *o, const char *v, struct img_error *err)
{
	o->fixed = strcmp(v, "fixed") == 0 || strcmp(v, "static") == 0;
	return o->fixed || strcmp(v, "dynamic") == 0 ? 0 : wrong(err, "subformat", "dynamic or fixed", v);
}

static int set_static(struct vdi_options *o, const char *v, struct img_error *err)
{
	return option_bool(v, &o->fixed) ? 0 : wrong(err, "static", "on or off", v);
}

static int set_preallocation(struct vdi_options *o, const char *v, struct img_error *err)
{
	if (!strcmp(v, "off"))
		o->preallocation = VDI_PREALLOC_OFF;
	else if (!strcmp(v, "falloc"))
		o->preallocation = VDI_PREALLOC_FALLOC;
	else if (!strcmp(v, "full"))
		o->preallocation = VDI_PREALLOC_FULL;
	else
		return wrong(err, "preallocation", "off, falloc or full", v);
	return 0;
}

static int set_one(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct vdi_options *o = ctx;

	if (!strcmp(key, "subformat"))
		return set_subformat(o, v, err);
	if (!strcmp(key, "static"))
		return set_static(o, v, err);
	if (!strcmp(key, "preallocation"))
		return set_preallocation(o, v, err);
	if (!strcmp(key, "block_size")) {
		o->block_bytes = (uint32_t)option_power(v, VDI_BLOCK_MIN, UINT64_C(1) << 30);
		return o->block_bytes ? 0 : wrong(err, key, "512 to 1G, a power of two", v);
	}
	if (!strcmp(key, "align")) {
		o->align_bytes = (uint32_t)option_power(v, VDI_SECTOR_BYTES, VDI_ALIGN_DEFAULT);
		return o->align_bytes ? 0 : wrong(err, key, "512 to 1M, a power of two", v);
	}
	if (!strcmp(key, "uuid")) {
		o->has_uuid = vdi_uuid_parse(v, o->uuid) && !vdi_uuid_is_null(o->uuid);
		return o->has_uuid ? 0 : wrong(err, key, "like 01234567-89ab-cdef-0123-456789abcdef", v);
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "vdi has no option '%.32s'", key);
}

int vdi_options_parse(const char *text, struct vdi_options *out, struct img_error *err)
{
	int ret;

	*out = (struct vdi_options){ .block_bytes = VDI_BLOCK_DEFAULT, .align_bytes = VDI_ALIGN_DEFAULT };
	ret = option_each(text, LAYER, set_one, out, err);
	if (ret == 0 && out->preallocation != VDI_PREALLOC_OFF && !out->fixed)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "preallocation needs subformat=fixed");
	return ret;
}
