/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value", in the words of qemu-img where it has them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "codec.h"
#include "option_list.h"
#include "vmdk.h"

#define HW_VERSION_MAX 99u

static int wrong(struct img_error *err, const char *key, const char *range, const char *v)
{
	return option_wrong(LAYER, key, range, v, err);
}

static int set_bool(bool *out, const char *key, const char *v, struct img_error *err)
{
	return option_bool(v, out) ? 0 : wrong(err, key, "on or off", v);
}

static int set_subformat(struct vmdk_options *o, const char *v, struct img_error *err)
{
	static const char *const names[] = {
		[VMDK_MONOLITHIC_SPARSE] = "monolithicSparse",
		[VMDK_MONOLITHIC_FLAT] = "monolithicFlat",
		[VMDK_SPLIT_SPARSE] = "twoGbMaxExtentSparse",
		[VMDK_SPLIT_FLAT] = "twoGbMaxExtentFlat",
		[VMDK_STREAM] = "streamOptimized",
		[VMDK_TYPE_VMFS] = "vmfs",
	};

	for (unsigned i = 0; i < ARRAY_LEN(names); i++)
		if (strcasecmp(v, names[i]) == 0) {
			o->subformat = (enum vmdk_subformat)i;
			return 0;
		}
	return wrong(
		err, "subformat",
		"monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, vmfs or streamOptimized",
		v);
}

static int set_adapter(struct vmdk_options *o, const char *v, struct img_error *err)
{
	static const char *const names[] = { "ide", "buslogic", "lsilogic", "legacyESX" };

	for (unsigned i = 0; i < ARRAY_LEN(names); i++)
		if (strcasecmp(v, names[i]) == 0) {
			o->adapter = names[i];
			return 0;
		}
	return wrong(err, "adapter_type", "ide, buslogic, lsilogic or legacyESX", v);
}

static int set_number(char *out, size_t cap, const char *key, const char *v, unsigned long max, struct img_error *err)
{
	char *end;
	unsigned long n = strtoul(v, &end, 10);

	if (*v < '0' || *v > '9' || *end || n > max)
		return wrong(err, key, "a number", v);
	(void)snprintf(out, cap, "%lu", n);
	return 0;
}

static int set_grain(struct vmdk_options *o, const char *v, struct img_error *err)
{
	uint64_t n = option_power(v, VMDK_GRAIN_OPTION_MIN, VMDK_GRAIN_OPTION_MAX);

	if (n == 0)
		return wrong(err, "grain_size", "4K to 2M, a power of two", v);
	o->grain_bytes = n;
	return 0;
}

static int set_extent(struct vmdk_options *o, const char *v, struct img_error *err)
{
	uint64_t n = option_bytes(v, VMDK_EXTENT_MAX);

	if (n < VMDK_EXTENT_MIN || n % VMDK_EXTENT_MIN != 0)
		return wrong(err, "extent_size", "64K to 2G, a multiple of 64K", v);
	o->extent_bytes = n;
	return 0;
}

static int set_compression(struct vmdk_options *o, const char *v, struct img_error *err)
{
	enum codec_id id;

	if (codec_parse(v, &id, &o->level) != 0 || (id != CODEC_DEFLATE && id != CODEC_NONE))
		return wrong(err, "compression", "zlib, with :LEVEL from 1 to 9 or without", v);
	o->has_compression = id != CODEC_NONE;
	o->no_compression = id == CODEC_NONE;
	return 0;
}

static int set_uuid(struct vmdk_options *o, const char *v, struct img_error *err)
{
	unsigned nr = 0;

	for (; nr < 2 * VMDK_UUID_BYTES && *v; v++) {
		unsigned digit = *v >= '0' && *v <= '9' ? (unsigned)(*v - '0') :
				 *v >= 'a' && *v <= 'f' ? (unsigned)(*v - 'a') + 10 :
				 *v >= 'A' && *v <= 'F' ? (unsigned)(*v - 'A') + 10 :
							  16;

		if (*v == '-' || *v == ' ')
			continue;
		if (digit == 16)
			break;
		o->uuid[nr / 2] = (uint8_t)((unsigned)o->uuid[nr / 2] << 4 | digit);
		nr++;
	}
	if (*v || nr != 2 * VMDK_UUID_BYTES)
		return wrong(err, "uuid", "like 6000c29a-1d7b-4944-dc53-e6d3e5897b0d", v);
	o->has_uuid = true;
	return 0;
}

static int set_geometry(struct vmdk_options *o, const char *v, struct img_error *err)
{
	unsigned long long c;
	unsigned h, s;
	char end;

	if (sscanf(v, "%12llu/%4u/%4u%c", &c, &h, &s, &end) != 3 || c == 0 || h == 0 || h > 255 || s == 0 || s > 255)
		return wrong(err, "geometry", "CYLINDERS/HEADS/SECTORS", v);
	o->cylinders = c;
	o->heads = h;
	o->sectors = s;
	return 0;
}

static int set_one(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct vmdk_options *o = ctx;

	bool compat6;
	int ret;

	if (!strcmp(key, "subformat"))
		return set_subformat(o, v, err);
	if (!strcmp(key, "adapter_type"))
		return set_adapter(o, v, err);
	if (!strcmp(key, "hwversion"))
		return set_number(o->hw_version, sizeof(o->hw_version), key, v, HW_VERSION_MAX, err);
	if (!strcmp(key, "toolsversion"))
		return set_number(o->tools_version, sizeof(o->tools_version), key, v, UINT32_MAX, err);
	if (!strcmp(key, "compat6")) {
		ret = set_bool(&compat6, key, v, err);
		if (ret == 0 && compat6)
			strcpy(o->hw_version, "6");
		return ret;
	}
	if (!strcmp(key, "grain_size") || !strcmp(key, "cluster_size"))
		return set_grain(o, v, err);
	if (!strcmp(key, "compression"))
		return set_compression(o, v, err);
	if (!strcmp(key, "extent_size"))
		return set_extent(o, v, err);
	if (!strcmp(key, "zeroed_grain"))
		return set_bool(&o->zeroed_grain, key, v, err);
	if (!strcmp(key, "uuid"))
		return set_uuid(o, v, err);
	if (!strcmp(key, "geometry"))
		return set_geometry(o, v, err);
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "vmdk has no option '%.32s'", key);
}

static int judge(const struct vmdk_options *o, struct img_error *err)
{
	bool flat = o->subformat == VMDK_MONOLITHIC_FLAT || o->subformat == VMDK_SPLIT_FLAT ||
		    o->subformat == VMDK_TYPE_VMFS;

	if (o->zeroed_grain && (flat || o->subformat == VMDK_STREAM))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "zeroed_grain is for monolithicSparse and twoGbMaxExtentSparse");
	if (o->no_compression && o->subformat == VMDK_STREAM)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "streamOptimized is compressed");
	if (o->has_compression && o->subformat != VMDK_STREAM)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "compression is for subformat=streamOptimized");
	return 0;
}

int vmdk_options_parse(const char *text, struct vmdk_options *out, struct img_error *err)
{
	int ret;

	*out = (struct vmdk_options){
		.adapter = "lsilogic",
		.hw_version = VMDK_HW_VERSION,
		.tools_version = VMDK_TOOLS_VERSION,
		.grain_bytes = VMDK_GRAIN_DEFAULT,
		.extent_bytes = VMDK_EXTENT_DEFAULT,
	};
	ret = option_each(text, LAYER, set_one, out, err);
	return ret == 0 ? judge(out, err) : ret;
}

int vmdk_options_ddb(const struct vmdk_options *o, uint64_t disk_bytes, struct vmdk_ddb *ddb, uint32_t *cid,
		     struct img_error *err)
{
	int ret;

	*ddb = (struct vmdk_ddb){
		.adapter = o->adapter,
		.hw_version = o->hw_version,
		.tools_version = o->tools_version,
	};
	ret = vmdk_ddb_identify(ddb, cid, err);
	if (ret != 0)
		return ret;
	if (o->has_uuid)
		memcpy(ddb->uuid, o->uuid, sizeof(ddb->uuid));
	vmdk_ddb_geometry(ddb, disk_bytes);
	if (o->cylinders) {
		ddb->cylinders = o->cylinders;
		ddb->heads = o->heads;
		ddb->sectors = o->sectors;
	}
	return 0;
}
