/* SPDX-License-Identifier: MIT */
/* What an image is: the header, told. */
#include <string.h>

#include "vdi.h"

int vdi_info(struct node *node, struct img_info *out, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	struct vdi_header h = vdi_header_now(v);

	(void)err;
	out->block_bytes = h.block_bytes;
	out->has_uuid = true;
	vdi_uuid_swap(h.uuid, out->uuid);
	return 0;
}

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

static void tell_uuid(const struct told *t, const char *key, const uint8_t *uuid)
{
	char text[VDI_UUID_TEXT_BYTES];

	if (vdi_uuid_is_null(uuid))
		return;
	vdi_uuid_text(uuid, text);
	tell_text(t, key, text);
}

int vdi_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err)
{
	static const char *const types[] = { "", "dynamic", "fixed", "undo", "differencing" };
	struct vdi_state *v = vdi_state_of(node);
	const struct told t = { fn, ctx };
	struct vdi_header h = vdi_header_now(v);

	(void)err;
	tell_text(&t, "subformat", types[h.type]);
	tell_text(&t, "version", h.version == VDI_VERSION_1 ? "1.1" : "0.2");
	tell_uuid(&t, "modification_uuid", h.modification);
	tell_uuid(&t, "parent_uuid", h.parent);
	tell_uuid(&t, "parent_modification_uuid", h.parent_modification);
	tell_number(&t, "blocks", h.nr_blocks);
	tell_number(&t, "allocated_blocks", h.nr_allocated);
	if (h.extra_bytes)
		tell_number(&t, "block_extra_bytes", h.extra_bytes);
	vdi_comment_of_people(h.comment);
	if (h.comment[0])
		tell_text(&t, "comment", h.comment);
	return 0;
}
