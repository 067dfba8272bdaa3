/* SPDX-License-Identifier: MIT */
/*
 * img_copy(): the plan that follows the extents of the source, and of the base where the target has one.
 *
 *   source | no base                  | base zero | base data
 *   zero   | zero, or skip if target  | skip      | diff
 *   data   | data      reads as zeros | diff      | diff
 */
#include "copy.h"

#include "checked.h"
#include "cursor.h"
#include "error.h"
#include "image_int.h"
#include "transfer.h"

struct copy_plan {
	struct cursor src, base;
	bool has_base;
	bool target_zero;
};

static int plan_copy(void *ctx, uint64_t off, uint64_t *bytes, enum transfer_action *action, struct img_error *err)
{
	struct copy_plan *plan = ctx;
	struct img_extent src, base;
	int r = cursor_at(&plan->src, off, &src, err);

	if (r < 0)
		return r;
	*bytes = src.bytes;
	if (!plan->has_base) {
		*action = src.flags & IMG_EXT_DATA ? TRANSFER_DATA : plan->target_zero ? TRANSFER_SKIP : TRANSFER_ZERO;
		return 0;
	}
	r = cursor_at(&plan->base, off, &base, err);
	if (r < 0)
		return r;
	*bytes = min_u64(src.bytes, base.bytes);
	*action = (src.flags | base.flags) & IMG_EXT_DATA ? TRANSFER_DIFF : TRANSFER_SKIP;
	return 0;
}

int copy_content(struct img *src, struct img *base, struct img *dst, const struct img_copy_options *opts,
		 struct img_error *err)
{
	struct copy_plan plan = { .has_base = base != NULL };
	struct transfer transfer = {
		.src = src,
		.base = base,
		.dst = dst,
		.bytes = img_size(opts->flags & IMG_COPY_KEEP_REST ? src : dst),
		.flags = base ? opts->flags & ~(unsigned)IMG_COPY_TARGET_ZERO : opts->flags,
		.plan = plan_copy,
		.ctx = &plan,
	};

	plan.target_zero = transfer.flags & IMG_COPY_TARGET_ZERO;
	cursor_init(&plan.src, src, 0);
	if (base)
		cursor_init(&plan.base, base, 0);
	return transfer_run(&transfer, opts->threads, &opts->progress, err);
}

int img_copy(struct img *src, struct img *dst, const struct img_copy_options *opts, struct img_error *err)
{
	struct leaving leaving = { .src = src, .dst = dst, .keeps_rest = true };
	struct img_copy_options options;
	int r;

	error_clear(err);
	if (!src || !dst)
		return image_invalid(err, "no source or no target");
	r = image_copy_options(&options, sizeof(options), opts, err);
	if (r == 0)
		r = image_check_flags(options.flags,
				      IMG_COPY_COMPRESS | IMG_COPY_TARGET_ZERO | IMG_COPY_NO_DETECT |
					      IMG_COPY_KEEP_REST | IMG_COPY_STRICT | IMG_COPY_STRICT_ALL,
				      err);
	if (r < 0)
		return r;
	if (src == dst)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "core", "source and target are one image");
	if (!(img_caps(dst) & IMG_CAP_WRITE))
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, "core", "%s: is open for reading only",
				 img_path(dst));
	if (img_size(dst) < img_size(src))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "core",
				 "%s: the target has %llu bytes, the source %llu", img_path(dst),
				 (unsigned long long)img_size(dst), (unsigned long long)img_size(src));
	leaving.drv = dst->top->drv;
	leaving.opts = &options;
	leaving.compresses = options.flags & IMG_COPY_COMPRESS && leaving.drv->caps & IMG_CAP_COMPRESS;
	leaving.has_backing = img_backing(dst) != NULL;
	r = left_behind(&leaving, err);
	if (r == 0)
		r = copy_content(src, NULL, dst, &options, err);
	return r < 0 ? r : img_flush(dst, 0, err);
}
