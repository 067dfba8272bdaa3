/* SPDX-License-Identifier: MIT */
/* What an image is, told. */
#include <string.h>

#include "is_zero.h"
#include "vhdx.h"

int vhdx_info(struct node *n, struct img_info *out, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);

	(void)err;
	out->block_bytes = (uint32_t)s->m.block_bytes;
	pthread_mutex_lock(&s->header_lock);
	out->dirty = s->h.needs_replay; /* of a reader */
	pthread_mutex_unlock(&s->header_lock);
	memcpy(out->compression, "none", sizeof("none"));
	out->has_uuid = true;
	vhdx_uuid_of_guid(s->m.page83, out->uuid);
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

static void tell_guid(const struct told *t, const char *key, const uint8_t guid[16])
{
	char text[40];

	vhdx_guid_text(guid, text);
	tell_text(t, key, text);
}

static void tell_parent(const struct told *t, const struct vhdx_parent *p)
{
	static const char *const keys[BACKING_OTHERS] = { "parent_path_2", "parent_path_3", "parent_path_4" };

	tell_guid(t, "parent_linkage", p->linkage);
	if (!is_zero(p->linkage2, sizeof(p->linkage2)))
		tell_guid(t, "parent_linkage2", p->linkage2);
	for (unsigned i = 0; i < BACKING_OTHERS && p->name[1 + i][0] != '\0'; i++)
		tell_text(t, keys[i], p->name[1 + i]);
}

int vhdx_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err)
{
	struct vhdx_state *s = vhdx_state_of(n);
	struct img_detail replay = { .key = "log_waits", .kind = IMG_DETAIL_BOOL };
	const struct told t = { fn, ctx };
	struct vhdx_header h;

	(void)err;
	pthread_mutex_lock(&s->header_lock);
	h = s->h;
	pthread_mutex_unlock(&s->header_lock);
	replay.number = h.needs_replay;
	tell_text(&t, "subformat", s->m.has_parent ? "differencing" : s->m.leave_blocks ? "fixed" : "dynamic");
	tell_number(&t, "logical_sector_size", s->m.sector_bytes);
	tell_number(&t, "physical_sector_size", s->m.physical_bytes);
	tell_guid(&t, "data_write_guid", h.data_write);
	tell_guid(&t, "virtual_disk_id", s->m.page83);
	if (s->m.has_parent)
		tell_parent(&t, &s->parent);
	tell_number(&t, "log_size", h.log.bytes);
	fn(ctx, &replay);
	return 0;
}
