/* SPDX-License-Identifier: MIT */
/*
 * What a conversion leaves behind. Source and target are asked what they have beside the bytes of the disk; what the
 * source has and the target has not, or has otherwise, is told, and refused if the caller is strict. It is asked when
 * the target is there and still empty: by then everything is known, also sizes that a format rounds, and nothing has
 * been copied in vain.
 *
 * What formats have beside the disk they tell by img_info() and img_info_details(), under keys that mean the same in
 * all of them (driver.h); one list of facts for people and for this.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "copy.h"
#include "cursor.h"
#include "error.h"
#include "image_int.h"

#define SECTOR_BYTES_DEFAULT 512u

struct facts {
	struct img_info info;
	bool has_id; /* info.uuid is what hosts know the disk by */
	uint64_t sector_bytes, other_size;
	char geometry[64], adapter[64], extended[160], comment[1024];
};

struct report {
	const struct leaving *l;
	struct facts src, dst;
	size_t nr, nr_content;
	char names[160]; /* of kinds that count */
};

/* ---- telling ----------------------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	bool is_content;
} kinds[] = {
	[IMG_LEFT_SNAPSHOTS] = { "snapshots", true },
	[IMG_LEFT_BITMAPS] = { "bitmaps", true },
	[IMG_LEFT_MACHINE_STATE] = { "machine_state", true },
	[IMG_LEFT_VIRTUAL_SIZE] = { "virtual_size", true },
	[IMG_LEFT_SECTOR_SIZE] = { "sector_size", true },
	[IMG_LEFT_COMMENT] = { "comment", true },
	[IMG_LEFT_EXTENDED] = { "extended", true },
	[IMG_LEFT_BACKING] = { "backing", false },
	[IMG_LEFT_UUID] = { "uuid", false },
	[IMG_LEFT_GEOMETRY] = { "geometry", false },
	[IMG_LEFT_ADAPTER] = { "adapter", false },
	[IMG_LEFT_COMPRESSION] = { "compression", false },
};

static bool counts(const struct report *r, enum img_left_kind kind)
{
	return r->l->opts->flags & IMG_COPY_STRICT_ALL ||
	       (r->l->opts->flags & IMG_COPY_STRICT && kinds[kind].is_content);
}

static void tell(struct report *r, enum img_left_kind kind, bool can_be_kept, uint64_t nr, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));

static void tell(struct report *r, enum img_left_kind kind, bool can_be_kept, uint64_t nr, const char *fmt, ...)
{
	struct img_left left = {
		.kind = kind,
		.name = kinds[kind].name,
		.is_content = kinds[kind].is_content,
		.can_be_kept = can_be_kept,
		.nr = nr,
	};
	size_t have = strlen(r->names);
	va_list args;

	va_start(args, fmt);
	(void)vsnprintf(left.msg, sizeof(left.msg), fmt, args);
	va_end(args);
	r->nr++;
	if (counts(r, kind)) {
		r->nr_content++;
		(void)snprintf(r->names + have, sizeof(r->names) - have, "%s%s", have ? ", " : "", left.name);
	}
	if (r->l->opts->left_behind)
		r->l->opts->left_behind(r->l->opts->left_behind_ctx, &left);
}

static const char *s_of(uint64_t nr)
{
	return nr == 1 ? "" : "s";
}

/* ---- facts ------------------------------------------------------------------------------------------------------- */

static void take_text(const struct img_detail *d, const char *key, char *out, size_t out_bytes)
{
	if (d->kind == IMG_DETAIL_TEXT && d->text && strcmp(d->key, key) == 0)
		(void)snprintf(out, out_bytes, "%s", d->text);
}

static void take_number(const struct img_detail *d, const char *key, uint64_t *out)
{
	if (d->kind == IMG_DETAIL_NUMBER && strcmp(d->key, key) == 0)
		*out = d->number;
}

static void take_detail(void *ctx, const struct img_detail *d)
{
	struct facts *f = ctx;

	take_text(d, "geometry", f->geometry, sizeof(f->geometry));
	if (f->geometry[0] == '0' && f->geometry[1] == '/') /* of less than a cylinder: none */
		f->geometry[0] = '\0';
	take_text(d, "adapter_type", f->adapter, sizeof(f->adapter));
	take_text(d, "comment", f->comment, sizeof(f->comment));
	take_text(d, "extended_data", f->extended, sizeof(f->extended));
	take_number(d, "logical_sector_size", &f->sector_bytes);
	take_number(d, "footer_size", &f->other_size);
}

static int gather(struct img *img, struct facts *f, struct img_error *err)
{
	int ret = img_info(img, &f->info, err);

	if (ret == 0)
		ret = img_info_details(img, take_detail, f, err);
	/* Where children record content and not an id, the uuid is the format's own affair: two files never have the
	 * same one. */
	f->has_id = f->info.has_uuid && !node_has_pin(img->top);
	if (f->sector_bytes == 0)
		f->sector_bytes = SECTOR_BYTES_DEFAULT;
	return ret;
}

static bool target_takes(const struct report *r, const char *option)
{
	return r->l->drv->create_help && strstr(r->l->drv->create_help, option);
}

/* ---- one by one -------------------------------------------------------------------------------------------------- */

static int tell_snapshots(struct report *r, struct img_error *err)
{
	bool can = r->l->drv->caps & IMG_CAP_SNAPSHOTS;
	struct img_snapshot first;
	size_t nr = 0;

	(void)err;
	if (r->l->src->snapshot || !r->l->src->top->drv->snap_list)
		return 0;
	if (img_snapshot_list(r->l->src, &first, 1, &nr, NULL) != 0)
		tell(r, IMG_LEFT_SNAPSHOTS, false, 0, "its snapshots cannot be read and are left out of the copy");
	else if (nr > 0 && !r->l->with_snapshots)
		tell(r, IMG_LEFT_SNAPSHOTS, can, nr, "%zu snapshot%s left out of the copy%s%s%s", nr,
		     nr == 1 ? " is" : "s are", can ? "" : ": format ", can ? "" : r->l->drv->name,
		     can ? "" : " has none");
	return 0;
}

static int tell_bitmaps(struct report *r, struct img_error *err)
{
	bool can = r->l->drv->caps & IMG_CAP_BITMAPS;
	struct img_bitmap *list;
	size_t nr = 0, have, broken = 0;

	if (r->l->src->snapshot || !(r->l->src->top->drv->caps & IMG_CAP_BITMAPS))
		return 0;
	if (img_bitmap_list(r->l->src, NULL, 0, &nr, NULL) != 0) {
		tell(r, IMG_LEFT_BITMAPS, false, 0, "its bitmaps cannot be read and are left out of the copy");
		return 0;
	}
	if (nr > 0 && !r->l->with_bitmaps)
		tell(r, IMG_LEFT_BITMAPS, can, nr, "%zu bitmap%s left out of the copy%s%s%s", nr,
		     nr == 1 ? " is" : "s are", can ? "" : ": format ", can ? "" : r->l->drv->name,
		     can ? "" : " has none");
	if (nr == 0 || !r->l->with_bitmaps)
		return 0;
	list = calloc(nr, sizeof(*list));
	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a list of bitmaps");
	have = nr;
	if (img_bitmap_list(r->l->src, list, have, &nr, NULL) != 0)
		have = 0;
	for (size_t i = 0; i < have && i < nr; i++)
		broken += (list[i].flags & (IMG_BITMAP_INCONSISTENT | IMG_BITMAP_UNSUPPORTED)) != 0;
	free(list);
	if (broken > 0)
		tell(r, IMG_LEFT_BITMAPS, false, broken, "%zu bitmap%s inconsistent and left out of the copy", broken,
		     broken == 1 ? " is" : "s are");
	return 0;
}

/* With the snapshots goes what they hold of machines, and what waits for the next one. */
static int tell_machine_state(struct report *r, struct img_error *err)
{
	bool can = r->l->drv->caps & IMG_CAP_SNAPSHOTS && r->l->drv->caps & IMG_CAP_VMSTATE;

	(void)err;
	if (r->src.info.vmstate_bytes > 0 && !(r->l->with_snapshots && can))
		tell(r, IMG_LEFT_MACHINE_STATE, can && !r->l->src->snapshot, r->src.info.vmstate_bytes,
		     "a machine state of %" PRIu64 " bytes is left out of the copy", r->src.info.vmstate_bytes);
	return 0;
}

static int tell_size(struct report *r, struct img_error *err)
{
	uint64_t src = img_size(r->l->src), dst = r->l->dst ? img_size(r->l->dst) : r->l->size_bytes;

	(void)err;
	if (dst > src && !r->l->keeps_rest)
		tell(r, IMG_LEFT_VIRTUAL_SIZE, false, dst - src,
		     "the disk of the copy is larger: %" PRIu64 " bytes instead of %" PRIu64 ", by zeros", dst, src);
	if (r->src.other_size != 0 && r->src.other_size != src)
		tell(r, IMG_LEFT_VIRTUAL_SIZE, false,
		     r->src.other_size > src ? r->src.other_size - src : src - r->src.other_size,
		     "it tells two sizes: the copy has the %" PRIu64 " bytes of its geometry, not the %" PRIu64
		     " of its footer",
		     src, r->src.other_size);
	return 0;
}

static int tell_sector_size(struct report *r, struct img_error *err)
{
	bool can = target_takes(r, "logical_sector_size=");

	(void)err;
	if (r->src.sector_bytes != r->dst.sector_bytes && r->src.sector_bytes != SECTOR_BYTES_DEFAULT)
		tell(r, IMG_LEFT_SECTOR_SIZE, can, r->src.sector_bytes,
		     "its logical sectors have %" PRIu64 " bytes, those of the copy %" PRIu64
		     ": partition tables count in them",
		     r->src.sector_bytes, r->dst.sector_bytes);
	return 0;
}

static int tell_texts(struct report *r, struct img_error *err)
{
	const struct facts *src = &r->src, *dst = &r->dst;

	(void)err;
	if (src->comment[0] && strcmp(src->comment, dst->comment) != 0)
		tell(r, IMG_LEFT_COMMENT, target_takes(r, "comment="), 0,
		     "its comment is left out of the copy: '%.100s'", src->comment);
	if (src->extended[0] && strcmp(src->extended, dst->extended) != 0)
		tell(r, IMG_LEFT_EXTENDED, false, 0, "left out of the copy: %s", src->extended);
	if (src->geometry[0] && strcmp(src->geometry, dst->geometry) != 0)
		tell(r, IMG_LEFT_GEOMETRY, target_takes(r, "geometry="), 0,
		     "its geometry is left out of the copy: %s (cylinders/heads/sectors)", src->geometry);
	if (src->adapter[0] && strcmp(src->adapter, dst->adapter) != 0)
		tell(r, IMG_LEFT_ADAPTER, target_takes(r, "adapter_type="), 0,
		     "its adapter type is left out of the copy: %s", src->adapter);
	return 0;
}

static int tell_parents(struct report *r, struct img_error *err)
{
	uint64_t nr = img_chain_depth(r->l->src) - 1;

	(void)err;
	if (nr > 0 && !r->l->has_backing)
		tell(r, IMG_LEFT_BACKING, r->l->drv->caps & IMG_CAP_BACKING, nr,
		     "the copy stands alone: the content of %" PRIu64 " parent%s is part of it", nr, s_of(nr));
	return 0;
}

static int tell_uuid(struct report *r, struct img_error *err)
{
	const uint8_t *u = r->src.info.uuid;

	(void)err;
	if (!r->src.has_id || (r->dst.has_id && memcmp(u, r->dst.info.uuid, sizeof(r->src.info.uuid)) == 0))
		return 0;
	tell(r, IMG_LEFT_UUID, target_takes(r, "uuid="), 0,
	     "its uuid is left out of the copy%s: %02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
	     r->dst.has_id ? ", which has its own" : "", u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9],
	     u[10], u[11], u[12], u[13], u[14], u[15]);
	return 0;
}

/* Looks for the first compressed byte, among formats that know such. */
static int tell_compression(struct report *r, struct img_error *err)
{
	struct img_limits limits;
	struct img_extent ext = { .flags = 0 };
	struct cursor *cursor;
	int ret = 0;

	img_limits(r->l->src, &limits);
	if (limits.unit_bytes == 0 || r->l->compresses)
		return 0;
	cursor = malloc(sizeof(*cursor));
	if (!cursor)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a list of extents");
	cursor_init(cursor, r->l->src, 0);
	for (uint64_t off = 0, end = img_size(r->l->src); off < end && ret == 0 && !(ext.flags & IMG_EXT_COMPRESSED);
	     off += ext.bytes)
		ret = cursor_at(cursor, off, &ext, err);
	free(cursor);
	if (ret == 0 && ext.flags & IMG_EXT_COMPRESSED)
		tell(r, IMG_LEFT_COMPRESSION, target_takes(r, "compression="), 0,
		     "its data is compressed, that of the copy is not");
	return ret;
}

int left_behind(const struct leaving *l, struct img_error *err)
{
	static int (*const all[])(struct report * r, struct img_error * err) = {
		tell_snapshots, tell_bitmaps, tell_machine_state, tell_size,	    tell_sector_size,
		tell_texts,	tell_parents, tell_uuid,	  tell_compression,
	};
	struct report *r;
	int ret = 0;

	if (!l->opts->left_behind && !(l->opts->flags & (IMG_COPY_STRICT | IMG_COPY_STRICT_ALL)))
		return 0;
	r = calloc(1, sizeof(*r));
	if (!r)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a report");
	r->l = l;
	ret = gather(l->src, &r->src, err);
	if (ret == 0 && l->dst)
		ret = gather(l->dst, &r->dst, err);
	if (r->dst.sector_bytes == 0)
		r->dst.sector_bytes = SECTOR_BYTES_DEFAULT;
	for (size_t i = 0; i < ARRAY_LEN(all) && ret == 0; i++)
		ret = all[i](r, err);
	if (ret == 0 && r->nr_content > 0)
		ret = error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, "core",
				"%s: the copy would not have all of it: %s: nothing was copied", img_path(l->src),
				r->names);
	free(r);
	return ret;
}
