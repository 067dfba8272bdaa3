/* SPDX-License-Identifier: MIT */
/* See left_behind.h. */
#include "left_behind.h"

#include "output.h"

/* What to ask for, to keep it. */
static const char *remedy(const struct img_left *left)
{
	if (!left->can_be_kept)
		return "";
	switch (left->kind) {
	case IMG_LEFT_SNAPSHOTS:
	case IMG_LEFT_MACHINE_STATE: return ": --snapshots keeps them";
	case IMG_LEFT_BITMAPS: return ": --bitmaps keeps them";
	case IMG_LEFT_BACKING: return ": -b keeps one";
	case IMG_LEFT_UUID: return ": -o uuid= gives the copy the same";
	case IMG_LEFT_COMPRESSION: return ": -c compresses it";
	case IMG_LEFT_SECTOR_SIZE: return ": -o logical_sector_size= keeps them";
	case IMG_LEFT_GEOMETRY: return ": -o geometry= keeps it";
	case IMG_LEFT_ADAPTER: return ": -o adapter_type= keeps it";
	case IMG_LEFT_COMMENT: return ": -o comment= keeps it";
	case IMG_LEFT_VIRTUAL_SIZE:
	case IMG_LEFT_EXTENDED: break;
	}
	return "";
}

static void tell(void *ctx, const struct img_left *left)
{
	const struct left_behind *lb = ctx;

	/* nobody expects a raw file to be compressed */
	if (!lb->quiet && (left->kind != IMG_LEFT_COMPRESSION || left->can_be_kept))
		cli_message(lb->path, "note: %s%s", left->msg, remedy(left));
	if (lb->list)
		json_array_append_new(lb->list, json_pack("{s:s, s:b, s:b, s:o, s:o}", "kind", left->name, "content",
							  left->is_content, "can_be_kept", left->can_be_kept, "number",
							  left->nr ? output_json_size(left->nr) : json_null(),
							  "message", output_json_text(left->msg)));
}

void left_behind_begin(struct left_behind *lb, struct img_copy_options *copy, const char *path, bool quiet,
		       bool with_json)
{
	*lb = (struct left_behind){ .path = path, .quiet = quiet, .list = with_json ? json_array() : NULL };
	copy->left_behind = tell;
	copy->left_behind_ctx = lb;
}

void left_behind_end(struct left_behind *lb)
{
	json_decref(lb->list);
	lb->list = NULL;
}

unsigned left_behind_flags(const char *strict)
{
	if (!strict)
		return 0;
	return cli_is(strict, "all") ? IMG_COPY_STRICT_ALL : IMG_COPY_STRICT;
}
