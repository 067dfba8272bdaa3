/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

static int invalid(struct img_error *err, const char *what)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s", what);
}

/* "64K", "1M", "65536"; 0 for what is no power of two. */
static uint64_t parse_power(const char *v)
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
	return *end || n > UINT32_MAX || (n & (n - 1)) ? 0 : (uint64_t)n << shift;
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* 32 hexadecimal digits, with dashes where people put them. */
static bool parse_uuid(const char *v, uint8_t out[16])
{
	unsigned n = 0;

	for (; *v; v++) {
		int value = hex_value(*v);

		if (*v == '-' && (n == 8 || n == 12 || n == 16 || n == 20))
			continue;
		if (value < 0 || n >= 32)
			return false;
		out[n / 2] = (uint8_t)(n % 2 ? out[n / 2] | value : value << 4);
		n++;
	}
	return n == 32;
}

static int option_set(struct vhd_options *o, const char *key, const char *v, struct img_error *err)
{
	if (!strcmp(key, "subformat")) {
		o->fixed = !strcmp(v, "fixed");
		if (!o->fixed && strcmp(v, "dynamic") != 0)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "subformat is dynamic or fixed, not '%.32s'", v);
		return 0;
	}
	if (!strcmp(key, "block_size")) {
		uint64_t n = parse_power(v);

		if (n < VHD_BLOCK_MIN_BYTES || n > VHD_BLOCK_MAX_BYTES)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "block_size is 4K to 256M, a power of two, not '%.32s'", v);
		o->block_bytes = (uint32_t)n;
		return 0;
	}
	if (!strcmp(key, "align")) {
		o->align_bytes = parse_power(v);
		if (o->align_bytes < VHD_SECTOR_BYTES || o->align_bytes > UINT64_C(1) << 30)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "align is 512 to 1G, a power of two, not '%.32s'", v);
		return 0;
	}
	if (!strcmp(key, "uuid")) {
		o->has_uuid = parse_uuid(v, o->uuid);
		return o->has_uuid ? 0 : invalid(err, "uuid has 32 hexadecimal digits");
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "vhd has no option '%.32s'", key);
}

int vhd_options_parse(const char *text, bool has_backing, struct vhd_options *out, struct img_error *err)
{
	char *copy, *save = NULL;
	int ret = 0;

	*out = (struct vhd_options){ .block_bytes = VHD_BLOCK_DEFAULT_BYTES, .align_bytes = VHD_SECTOR_BYTES };
	copy = strdup(text ? text : "");
	if (!copy)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (char *kv = strtok_r(copy, ",", &save); ret == 0 && kv; kv = strtok_r(NULL, ",", &save)) {
		char *eq = strchr(kv, '=');

		if (eq) {
			*eq = '\0';
			ret = option_set(out, kv, eq + 1, err);
		} else {
			ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "option '%.32s' has no value", kv);
		}
	}
	free(copy);
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
