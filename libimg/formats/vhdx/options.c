/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". */
#include <string.h>

#include "option_list.h"
#include "vhdx.h"

#define LOG_MAX (UINT64_C(1) << 30)

static int wrong(struct img_error *err, const char *key, const char *range, const char *v)
{
	return option_wrong(LAYER, key, range, v, err);
}

/* In the order of bytes on disk: the first three fields are little-endian. */
static bool parse_uuid(const char *v, uint8_t out[16])
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	uint8_t text[16];

	if (!option_uuid(v, text))
		return false;
	for (unsigned i = 0; i < 16; i++)
		out[order[i]] = text[i];
	return true;
}

static int set_sector(uint32_t *to, const char *key, const char *v, struct img_error *err)
{
	uint64_t n = option_bytes(v, 4096);

	if (n != 512 && n != 4096)
		return wrong(err, key, "512 or 4096", v);
	*to = (uint32_t)n;
	return 0;
}

static int set_one(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct vhdx_options *o = ctx;

	if (!strcmp(key, "subformat")) {
		o->fixed = !strcmp(v, "fixed");
		return o->fixed || !strcmp(v, "dynamic") ? 0 : wrong(err, key, "dynamic or fixed", v);
	}
	if (!strcmp(key, "block_size")) {
		o->block_bytes = option_power(v, VHDX_BLOCK_MIN, VHDX_BLOCK_MAX);
		return o->block_bytes ? 0 : wrong(err, key, "1M to 256M, a power of two", v);
	}
	if (!strcmp(key, "logical_sector_size"))
		return set_sector(&o->sector_bytes, key, v, err);
	if (!strcmp(key, "physical_sector_size"))
		return set_sector(&o->physical_bytes, key, v, err);
	if (!strcmp(key, "log_size")) {
		o->log_bytes = option_bytes(v, LOG_MAX);
		return o->log_bytes != 0 && o->log_bytes % VHDX_MIB == 0 ? 0 :
									   wrong(err, key, "1M to 1G, whole MiB", v);
	}
	if (!strcmp(key, "sparse")) {
		o->solid = !strcmp(v, "off");
		return o->solid || !strcmp(v, "on") ? 0 : wrong(err, key, "on or off", v);
	}
	if (!strcmp(key, "uuid")) {
		o->has_uuid = parse_uuid(v, o->uuid);
		return o->has_uuid ? 0 : wrong(err, key, "like 01234567-89ab-cdef-0123-456789abcdef", v);
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "vhdx has no option '%.32s'", key);
}

int vhdx_options_parse(const char *text, struct vhdx_options *out, struct img_error *err)
{
	*out = (struct vhdx_options){ .log_bytes = VHDX_MIB, .physical_bytes = 4096 };
	return option_each(text, LAYER, set_one, out, err);
}
