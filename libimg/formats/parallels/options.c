/* SPDX-License-Identifier: MIT */
/* Creation options: "key=value,key=value". */
#include <string.h>

#include "option_list.h"
#include "prl.h"

/* 0 for what is no multiple of a sector. */
static uint64_t size_of(const char *v, uint64_t max)
{
	uint64_t n = option_bytes(v, max);

	return n % PRL_SECTOR_BYTES == 0 ? n : 0;
}

static int wrong(struct img_error *err, const char *key, const char *range, const char *v)
{
	return option_wrong(LAYER, key, range, v, err);
}

static int set_subformat(struct prl_options *o, const char *v, struct img_error *err)
{
	if (!strcmp(v, "expandable"))
		o->subformat = PRL_EXPANDABLE;
	else if (!strcmp(v, "bundle"))
		o->subformat = PRL_BUNDLE;
	else if (!strcmp(v, "plain"))
		o->subformat = PRL_PLAIN;
	else
		return wrong(err, "subformat", "expandable, bundle or plain", v);
	return 0;
}

static int set_one(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct prl_options *o = ctx;

	if (!strcmp(key, "cluster_size")) {
		o->cluster_bytes = (uint32_t)size_of(v, PRL_CLUSTER_MAX);
		return o->cluster_bytes ? 0 : wrong(err, key, "512 to 1G, a multiple of 512", v);
	}
	if (!strcmp(key, "version")) {
		o->v1 = !strcmp(v, "1");
		return o->v1 || !strcmp(v, "2") ? 0 : wrong(err, key, "1 or 2", v);
	}
	if (!strcmp(key, "subformat"))
		return set_subformat(o, v, err);
	if (!strcmp(key, "split_size")) {
		o->split_bytes = size_of(v, INT64_MAX);
		return o->split_bytes >= PRL_SPLIT_MIN ? 0 : wrong(err, key, "64K or more, a multiple of 512", v);
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "parallels has no option '%.32s'", key);
}

int prl_options_parse(const char *text, struct prl_options *out, struct img_error *err)
{
	int ret;

	*out = (struct prl_options){ .cluster_bytes = PRL_CLUSTER_DEFAULT };
	ret = option_each(text, LAYER, set_one, out, err);
	if (ret == 0 && out->split_bytes && out->subformat == PRL_EXPANDABLE)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "split_size needs subformat=bundle or plain");
	/* Each storage is whole clusters, but the last one. */
	if (ret == 0 && out->split_bytes)
		out->split_bytes = round_up(out->split_bytes, out->cluster_bytes);
	return ret;
}
