/* SPDX-License-Identifier: MIT */
/* img_info() and img_check(): what the format says, completed by what the core knows. */
#include <stdio.h>
#include <string.h>

#include "budget.h"
#include "error.h"
#include "image_int.h"

#define NS_PER_SECOND 1000000000

static const char *pin_name(enum pin_kind kind)
{
	static const char *const names[] = { "none", "strong", "weak", "id" };

	return names[kind];
}

/* Formats that know their parent by an id alone, and its file's time: whole seconds. */
static bool was_modified(const struct backing_ref *ref, const struct img *backing)
{
	struct host_stat host;

	return backing && ref->pin.kind == PIN_ID && ref->pin.mtime_ns != 0 &&
	       node_stat(backing->top, &host, NULL) == 0 && host.mtime_ns != 0 &&
	       ref->pin.mtime_ns / NS_PER_SECOND != host.mtime_ns / NS_PER_SECOND;
}

static void fill_backing(struct img *img, struct img_info *out)
{
	struct backing_ref ref;

	out->has_backing = node_get_backing(img->top, &ref);
	if (!out->has_backing)
		return;
	(void)snprintf(out->backing, sizeof(out->backing), "%s", ref.name);
	(void)snprintf(out->backing_format, sizeof(out->backing_format), "%s", ref.format);
	(void)snprintf(out->backing_snapshot, sizeof(out->backing_snapshot), "%s", ref.snapshot);
	(void)snprintf(out->backing_pin, sizeof(out->backing_pin), "%s", pin_name(ref.pin.kind));
	out->backing_committing = ref.committing;
	out->backing_modified = was_modified(&ref, img->backing);
}

int img_info(struct img *img, struct img_info *out, struct img_error *err)
{
	struct host_stat host;
	struct node *file_of;
	int ret;

	error_clear(err);
	if (!img || !out)
		return image_invalid(err, "no image, or no place for the answer");
	memset(out, 0, sizeof(*out));
	pthread_rwlock_rdlock(&img->content_lock);
	file_of = img->top->view_of ? img->top->view_of : img->top;
	ret = node_info(img->top, out, err);
	if (ret == 0)
		ret = node_stat(file_of, &host, err);
	if (ret == 0) {
		out->format = img->top->drv->name;
		out->virtual_bytes = node_size(img->top);
		out->file_bytes = host.file_bytes;
		out->allocated_bytes = host.allocated_bytes;
		if (out->compression[0] == '\0')
			memcpy(out->compression, "none", sizeof("none"));
		if (img->snapshot && out->snapshot[0] == '\0') /* no uuid decided which one it is: a name did */
			(void)snprintf(out->snapshot, sizeof(out->snapshot), "%s", img->snapshot);
		fill_backing(img, out);
	}
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_info_details(struct img *img, img_detail_fn fn, void *ctx, struct img_error *err)
{
	int ret;

	error_clear(err);
	if (!img || !fn)
		return image_invalid(err, "no image, or nobody to tell");
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_info_details(img->top, fn, ctx, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_amend(struct img *img, const char *options, struct img_error *err)
{
	int ret;

	error_clear(err);
	if (!img || !options)
		return image_invalid(err, "no image, or no options");
	pthread_rwlock_wrlock(&img->content_lock);
	ret = node_amend(img->top, options, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

static int check_args(unsigned flags, struct img_check_result *out, struct img_error *err)
{
	int ret = image_check_flags(flags, IMG_CHECK_REPAIR | IMG_CHECK_METADATA, err);

	memset(out, 0, sizeof(*out));
	return ret;
}

static int check_in_time(struct img *img, unsigned flags, img_finding_fn fn, void *ctx,
			 const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	struct budget_timer timer;
	int ret;

	budget_timer_start(&timer, img->budget.check_seconds, progress);
	ret = node_check(img->top, flags, fn, ctx, &timer.progress, out, err);
	return budget_timer_end(&timer, ret, img->budget.check_seconds, img->path, err);
}

/* Without content_lock: the format orders a check against its own changes. fn stays away from img, whose locks it may
 * hold. */
int img_check(struct img *img, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	      struct img_check_result *out, struct img_error *err)
{
	struct img_check_result unused;
	int ret;

	error_clear(err);
	if (!img)
		return image_invalid(err, "no image");
	if (!out)
		out = &unused;
	ret = check_args(flags, out, err);
	return ret == 0 ? check_in_time(img, flags, fn, ctx, progress, out, err) : ret;
}

int img_check_file(const char *path, const struct img_open_options *opts, unsigned flags, img_finding_fn fn, void *ctx,
		   const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	struct img_check_result unused;
	struct img_open_options o;
	struct img *img;
	int ret, closed;

	error_clear(err);
	if (!path)
		return image_invalid(err, "no path");
	if (!out)
		out = &unused;
	ret = check_args(flags, out, err);
	if (ret == 0)
		ret = image_copy_options(&o, sizeof(o), opts, err);
	if (ret == 0)
		ret = image_open_for_check(path, &o, image_env_of(o.host), &img, err);
	if (ret != 0)
		return ret;
	ret = check_in_time(img, flags, fn, ctx, progress, out, err);
	closed = img_close(img, ret == 0 ? err : NULL);
	return ret != 0 ? ret : closed;
}
