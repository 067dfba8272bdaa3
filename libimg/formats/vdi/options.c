/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". static is qemu-img's word for a fixed image. */
#include <stdlib.h>
#include <string.h>

#include "vdi.h"

/* "64K", "1M", "4096"; 0 for what is no power of two within the bounds. */
static uint32_t size_of(const char *v, uint64_t min, uint64_t max)
{
	unsigned long long n;
	unsigned shift = 0;
	char *end;

	if (*v < '0' || *v > '9')
		return 0;
	n = strtoull(v, &end, 10);
	if (*end == 'K' || *end == 'k')
		shift = 10;
	else if (*end == 'M' || *end == 'm')
		shift = 20;
	else if (*end == 'G' || *end == 'g')
		shift = 30;
	if (shift)
		end++;
	if (*end || n > max >> shift)
		return 0;
	n <<= shift;
	return n >= min && (n & (n - 1)) == 0 ? (uint32_t)n : 0;
}

static int wrong(struct img_error *err, const char *key, const char *range, const char *v)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s is %s, not '%.40s'", key, range, v);
}

static int set_subformat(struct vdi_options *o, const char *v, struct img_error *err)
{
	o->fixed = strcmp(v, "fixed") == 0 || strcmp(v, "static") == 0;
	return o->fixed || strcmp(v, "dynamic") == 0 ? 0 : wrong(err, "subformat", "dynamic or fixed", v);
}

static int set_static(struct vdi_options *o, const char *v, struct img_error *err)
{
	o->fixed = !strcmp(v, "on") || !strcmp(v, "true") || !strcmp(v, "yes");
	if (o->fixed || !strcmp(v, "off") || !strcmp(v, "false") || !strcmp(v, "no"))
		return 0;
	return wrong(err, "static", "on or off", v);
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

static int set_one(struct vdi_options *o, const char *key, const char *v, struct img_error *err)
{
	if (!strcmp(key, "subformat"))
		return set_subformat(o, v, err);
	if (!strcmp(key, "static"))
		return set_static(o, v, err);
	if (!strcmp(key, "preallocation"))
		return set_preallocation(o, v, err);
	if (!strcmp(key, "block_size")) {
		o->block_bytes = size_of(v, VDI_BLOCK_MIN, UINT64_C(1) << 30);
		return o->block_bytes ? 0 : wrong(err, key, "512 to 1G, a power of two", v);
	}
	if (!strcmp(key, "align")) {
		o->align_bytes = size_of(v, VDI_SECTOR_BYTES, VDI_ALIGN_DEFAULT);
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
	char *copy, *save = NULL;
	int ret = 0;

	*out = (struct vdi_options){ .block_bytes = VDI_BLOCK_DEFAULT, .align_bytes = VDI_ALIGN_DEFAULT };
	copy = strdup(text ? text : "");
	if (!copy)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (char *kv = strtok_r(copy, ",", &save); ret == 0 && kv; kv = strtok_r(NULL, ",", &save)) {
		char *eq = strchr(kv, '=');

		if (eq) {
			*eq = '\0';
			ret = set_one(out, kv, eq + 1, err);
		} else {
			ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "option '%.32s' has no value", kv);
		}
	}
	free(copy);
	if (ret == 0 && out->preallocation != VDI_PREALLOC_OFF && !out->fixed)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "preallocation needs subformat=fixed");
	return ret;
}
