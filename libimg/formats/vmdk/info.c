/* SPDX-License-Identifier: MIT */
/* What an image is: the descriptor, told. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "stream.h"

#define EXTENTS_TOLD 64u /* one by one */

struct told {
	img_detail_fn fn;
	void *ctx;
};

static void tell_text(const struct told *t, const char *key, const char *text)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_TEXT, .text = text };

	t->fn(t->ctx, &d);
}

static void tell_number(const struct told *t, const char *key, uint64_t number)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_NUMBER, .number = number };

	t->fn(t->ctx, &d);
}

/* "60 00 C2 9a 1d 7b 49 44-dc 53 e6 d3 e5 89 7b 0d" */
static bool parse_uuid(const char *text, uint8_t *out)
{
	unsigned nr = 0;

	for (; *text && nr < 2 * VMDK_UUID_BYTES; text++) {
		unsigned digit = *text >= '0' && *text <= '9' ? (unsigned)(*text - '0') :
				 *text >= 'a' && *text <= 'f' ? (unsigned)(*text - 'a') + 10 :
				 *text >= 'A' && *text <= 'F' ? (unsigned)(*text - 'A') + 10 :
								16;

		if (*text == ' ' || *text == '-')
			continue;
		if (digit == 16)
			return false;
		out[nr / 2] = (uint8_t)((unsigned)out[nr / 2] << 4 | digit);
		nr++;
	}
	return nr == 2 * VMDK_UUID_BYTES;
}

int vmdk_info(struct node *n, struct img_info *out, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	char uuid[64];
	int ret = 0;

	out->block_bytes = v->grain_bytes;
	pthread_mutex_lock(&v->lock);
	/* VirtualBox has it under another name. */
	if (vmdk_descriptor_value(&v->d, "ddb.uuid", uuid, sizeof(uuid)) ||
	    vmdk_descriptor_value(&v->d, "ddb.uuid.image", uuid, sizeof(uuid)))
		out->has_uuid = parse_uuid(uuid, out->uuid);
	for (size_t i = 0; i < v->nr_parts && ret == 0; i++) {
		const struct vmdk_part *p = &v->parts[i];

		out->dirty |= p->sparse && p->sparse->h.unclean && !v->writable;
		if (p->stream)
			ret = vmdk_stream_info(p->stream, out, err);
	}
	pthread_mutex_unlock(&v->lock);
	return ret;
}

static void tell_geometry(const struct told *t, const struct vmdk_descriptor *d)
{
	char c[24], h[24], s[24], all[80];

	if (!vmdk_descriptor_value(d, "ddb.geometry.cylinders", c, sizeof(c)) ||
	    !vmdk_descriptor_value(d, "ddb.geometry.heads", h, sizeof(h)) ||
	    !vmdk_descriptor_value(d, "ddb.geometry.sectors", s, sizeof(s)))
		return;
	(void)snprintf(all, sizeof(all), "%s/%s/%s", c, h, s);
	tell_text(t, "geometry", all);
}

static void tell_value(const struct told *t, const struct vmdk_descriptor *d, const char *name, const char *key)
{
	char value[128];

	if (vmdk_descriptor_value(d, name, value, sizeof(value)) && value[0])
		tell_text(t, key, value);
}

/* Other files that are opened with it, in one line. */
static int tell_files(const struct told *t, const struct vmdk_state *v, struct img_error *err)
{
	const struct vmdk_descriptor *d = &v->d;
	size_t nr = v->node->nr_parts;
	const char *first = "";
	char *text;

	for (size_t i = 0; i < d->nr_extents && nr > 0 && !*first; i++)
		if (v->parts[i].file)
			first = d->extents[i].name;
	if (nr < 2) {
		if (nr == 1)
			tell_text(t, "data_file", first);
		return 0;
	}
	if (asprintf(&text, "%s and %zu more", first, nr - 1) < 0)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	tell_text(t, "data_file", text);
	free(text);
	return 0;
}

/* "RW 1048576 FLAT name-flat.vmdk 0", sizes in bytes. */
static int tell_extents(const struct told *t, const struct vmdk_descriptor *d, struct img_error *err)
{
	char key[24], *text;

	tell_number(t, "extents", d->nr_extents);
	for (size_t i = 0; i < d->nr_extents && i < EXTENTS_TOLD; i++) {
		const struct vmdk_extent *e = &d->extents[i];

		if (asprintf(&text, "%s %" PRIu64 " %s %s", vmdk_access_words[e->access], e->bytes,
			     vmdk_extent_words[e->kind], e->name) < 0)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		(void)snprintf(key, sizeof(key), "extent_%zu", i);
		tell_text(t, key, text);
		free(text);
	}
	return 0;
}

int vmdk_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	const struct told t = { fn, ctx };
	char cid[16];
	int ret;

	pthread_mutex_lock(&v->lock);
	tell_text(&t, "subformat", v->d.create_type);
	(void)snprintf(cid, sizeof(cid), "%08" PRIx32, v->d.cid);
	tell_text(&t, "cid", cid);
	if (v->d.parent_cid != VMDK_NO_PARENT_CID) {
		(void)snprintf(cid, sizeof(cid), "%08" PRIx32, v->d.parent_cid);
		tell_text(&t, "parent_cid", cid);
	}
	tell_value(&t, &v->d, "ddb.adapterType", "adapter_type");
	tell_value(&t, &v->d, "ddb.virtualHWVersion", "hwversion");
	tell_geometry(&t, &v->d);
	tell_value(&t, &v->d, "ddb.comment", "comment");
	ret = tell_extents(&t, &v->d, err);
	if (ret == 0)
		ret = tell_files(&t, v, err);
	pthread_mutex_unlock(&v->lock);
	for (size_t i = 0; i < v->nr_parts && ret == 0; i++)
		if (v->parts[i].stream)
			ret = vmdk_stream_details(v->parts[i].stream, fn, ctx, err);
	return ret;
}
