/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

#define LOG_MAX (UINT64_C(1) << 30)

/* "64K", "1M", "4096"; 0: no number within the bounds. */
static uint64_t size_of(const char *v, uint64_t min, uint64_t max)
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
	return n >= min ? n : 0;
}

static bool is_power(uint64_t n)
{
	return n != 0 && (n & (n - 1)) == 0;
}

static int wrong(struct img_error *err, const char *key, const char *range, const char *v)
{
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s is %s, not '%.40s'", key, range, v);
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* 32 hexadecimal digits, with dashes where people put them; in the order of bytes on disk. */
static bool parse_uuid(const char *v, uint8_t out[16])
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	unsigned n = 0;

	memset(out, 0, 16);
	for (; *v; v++) {
		int value = hex_value(*v);

		if (*v == '-' && (n == 8 || n == 12 || n == 16 || n == 20))
			continue;
		if (value < 0 || n >= 32)
			return false;
		out[order[n / 2]] = (uint8_t)(out[order[n / 2]] << 4 | value);
		n++;
	}
	return n == 32;
}

static int set_sector(uint32_t *to, const char *key, const char *v, struct img_error *err)
{
	uint64_t n = size_of(v, 512, 4096);

	if (n != 512 && n != 4096)
		return wrong(err, key, "512 or 4096", v);
	*to = (uint32_t)n;
	return 0;
}

static int set_one(struct vhdx_options *o, const char *key, const char *v, struct img_error *err)
{
	if (!strcmp(key, "subformat")) {
		o->fixed = !strcmp(v, "fixed");
		return o->fixed || !strcmp(v, "dynamic") ? 0 : wrong(err, key, "dynamic or fixed", v);
	}
	if (!strcmp(key, "block_size")) {
		o->block_bytes = size_of(v, VHDX_BLOCK_MIN, VHDX_BLOCK_MAX);
		return is_power(o->block_bytes) ? 0 : wrong(err, key, "1M to 256M, a power of two", v);
	}
	if (!strcmp(key, "logical_sector_size"))
		return set_sector(&o->sector_bytes, key, v, err);
	if (!strcmp(key, "physical_sector_size"))
		return set_sector(&o->physical_bytes, key, v, err);
	if (!strcmp(key, "log_size")) {
		o->log_bytes = size_of(v, VHDX_MIB, LOG_MAX);
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
	char *copy = strdup(text ? text : ""), *save = NULL;
	int ret = 0;

	*out = (struct vhdx_options){ .log_bytes = VHDX_MIB, .physical_bytes = 4096 };
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
	return ret;
}
