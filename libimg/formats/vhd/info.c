/* SPDX-License-Identifier: MIT */
/* What an image is, told; and the one thing that amend can settle: which of two sizes a disk has. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vhd.h"

int vhd_info(struct node *n, struct img_info *out, struct img_error *err)
{
	const struct vhd_state *s = vhd_state(n);

	(void)err;
	out->block_bytes = s->bm ? s->head.block_bytes : 0;
	out->has_uuid = true;
	memcpy(out->uuid, s->foot.f.uuid, sizeof(out->uuid));
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

static void tell_uuid(const struct told *t, const char *key, const uint8_t u[16])
{
	char text[40];

	(void)snprintf(text, sizeof(text), "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0],
		       u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
	tell_text(t, key, text);
}

static void tell_letters(const struct told *t, const char *key, const uint8_t letters[4])
{
	char text[5];

	for (unsigned i = 0; i < 4; i++)
		text[i] = letters[i] >= ' ' && letters[i] < 0x7f ? (char)letters[i] : '?';
	text[4] = '\0';
	tell_text(t, key, text);
}

/* The largest one stands for none (VHD-4). */
static void tell_geometry(const struct told *t, const struct disk_vhd_footer *f)
{
	unsigned cylinders = be16_get(f->cylinders);
	char text[32];

	if (vhd_geometry_bytes(f) == 0 ||
	    (cylinders == VHD_CYLINDERS_MAX && f->heads == VHD_HEADS_MAX && f->sectors == VHD_SECTORS_MAX))
		return;
	(void)snprintf(text, sizeof(text), "%u/%u/%u", cylinders, f->heads, f->sectors);
	tell_text(t, "geometry", text);
}

int vhd_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err)
{
	static const char *const types[] = {
		[VHD_FIXED] = "fixed", [VHD_DYNAMIC] = "dynamic", [VHD_DIFFERENCING] = "differencing"
	};
	static const char *const keys[BACKING_OTHERS] = { "parent_path_2", "parent_path_3", "parent_path_4" };
	struct vhd_state *s = vhd_state(n);
	const struct told t = { fn, ctx };
	const struct disk_vhd_footer *f;
	struct vhd_footers foot;

	(void)err;
	pthread_mutex_lock(&s->still); /* a repair may write them anew */
	foot = s->foot;
	pthread_mutex_unlock(&s->still);
	f = &foot.f;
	tell_text(&t, "subformat", types[vhd_footer_type(f)]);
	tell_letters(&t, "creator", f->creator);
	tell_number(&t, "footer_size", be64_get(f->current_bytes));
	tell_number(&t, "geometry_size", vhd_geometry_bytes(f));
	tell_geometry(&t, f);
	tell_text(&t, "size_from", vhd_size_from_geometry(f) ? "geometry" : "footer");
	tell_text(&t, "footer",
		  foot.stale			 ? "stale checksum" :
		  foot.tail != VHD_GOOD		 ? "from its copy at the beginning" :
		  s->bm && foot.head != VHD_GOOD ? "without copy" :
		  foot.differ			 ? "differs from its copy" :
						   "good");
	if (!s->names_parent)
		return 0;
	tell_uuid(&t, "parent_uuid", s->head.disk.parent_uuid);
	/* The first one is told by the core. */
	for (unsigned i = 1; i < VHD_PATHS_MAX && s->parent.at[i][0] != '\0'; i++)
		tell_text(&t, keys[i - 1], s->parent.at[i]);
	return 0;
}

/* ---- amend ------------------------------------------------------------------------------------------------------- */

/* In place: what lies between the two sizes is neither added as zeros nor given up. */
static int take_size(struct node *n, uint64_t size, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	struct blockmap_shape shape;
	int ret;

	if (size == 0 || size % VHD_SECTOR_BYTES != 0 || (!s->bm && size > s->foot.tail_off) ||
	    (s->bm && ((uint64_t)s->head.max_entries * s->head.block_bytes < size || size > VHD_DYNAMIC_MAX_BYTES)))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "%s: there is no disk of 0x%" PRIx64 " bytes in this file", n->path, size);
	ret = vhd_stop(s, err);
	if (ret != 0)
		return ret;
	vhd_footer_set_size(&s->foot.f, size);
	vhd_footer_seal(&s->foot.f);
	ret = vhd_write_footers(s, n->file, s->bm ? blockmap_end(s->bm) : s->foot.tail_off, err);
	if (ret == 0 && s->bm) {
		vhd_shape(s, &shape);
		ret = blockmap_reshape(s->bm, &shape, err);
	}
	if (ret == 0)
		atomic_store(&s->disk_bytes, size);
	else
		vhd_break(s);
	vhd_start(s);
	return ret;
}

int vhd_amend(struct node *n, const char *options, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	bool geometry = strcmp(options, "size_from=geometry") == 0;
	int ret = vhd_may_change(n, err);

	if (ret != 0)
		return ret;
	if (!geometry && strcmp(options, "size_from=footer") != 0)
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"all that can be amended of a VHD is size_from=footer or size_from=geometry, not '%.64s'",
			options);
	if (s->bm)
		ret = blockmap_touch(s->bm, err);
	if (ret != 0)
		return ret;
	return take_size(n, geometry ? vhd_geometry_bytes(&s->foot.f) : be64_get(s->foot.f.current_bytes), err);
}
