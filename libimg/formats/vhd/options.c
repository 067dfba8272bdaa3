/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". */
#include <inttypes.h>
#include <string.h>

#include "option_list.h"
#include "vhd.h"

static int invalid(struct img_error *err, const char *what)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s", what);
}

static int option_set(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct vhd_options *o = ctx;

	if (!strcmp(key, "subformat")) {
		o->fixed = !strcmp(v, "fixed");
		if (!o->fixed && strcmp(v, "dynamic") != 0)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "subformat is dynamic or fixed, not '%.32s'", v);
		return 0;
	}
	if (!strcmp(key, "block_size")) {
		uint64_t n = option_power(v, VHD_BLOCK_MIN_BYTES, VHD_BLOCK_MAX_BYTES);

		if (n == 0)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "block_size is 4K to 256M, a power of two, not '%.32s'", v);
		o->block_bytes = (uint32_t)n;
		return 0;
	}
	if (!strcmp(key, "align")) {
		o->align_bytes = option_power(v, VHD_SECTOR_BYTES, UINT64_C(1) << 30);
		if (o->align_bytes == 0)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "align is 512 to 1G, a power of two, not '%.32s'", v);
		return 0;
	}
	if (!strcmp(key, "uuid")) {
		o->has_uuid = option_uuid(v, o->uuid);
		return o->has_uuid ? 0 : invalid(err, "uuid has 32 hexadecimal digits");
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "vhd has no option '%.32s'", key);
}

int vhd_options_parse(const char *text, bool has_backing, struct vhd_options *out, struct img_error *err)
{
	int ret;

	*out = (struct vhd_options){ .block_bytes = VHD_BLOCK_DEFAULT_BYTES, .align_bytes = VHD_SECTOR_BYTES };
	ret = option_each(text, LAYER, option_set, out, err);
	if (ret == 0 && out->fixed && has_backing)
		ret = invalid(err, "a fixed VHD holds the whole disk: there can be no backing file");
	return ret;
}

int vhd_options_size(const struct vhd_options *o, uint64_t size_bytes, uint64_t *out, struct img_error *err)
{
	uint64_t limit = o->fixed ? VHD_FIXED_MAX_BYTES : VHD_DYNAMIC_MAX_BYTES;

	*out = size_bytes <= limit ? round_up(size_bytes, o->align_bytes) : size_bytes;
	if (*out > limit)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "a disk of 0x%" PRIx64 " bytes is larger than a %s VHD can be (%s)", size_bytes,
				 o->fixed ? "fixed" : "dynamic", o->fixed ? "2^62" : "2040 GiB");
	return 0;
}
