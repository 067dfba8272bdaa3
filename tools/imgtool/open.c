/* SPDX-License-Identifier: MIT */
/* See open.h. */
#include "open.h"

#include <string.h>

#include "confined.h"
#include "limit_args.h"

enum img_refs open_refs(const struct common_args *common)
{
	if (cli_is(common->allow_refs, "none"))
		return IMG_REFS_NONE;
	if (cli_is(common->allow_refs, "dir"))
		return IMG_REFS_DIR;
	if (cli_is(common->allow_refs, "any"))
		return IMG_REFS_ANY;
	return IMG_REFS_DEFAULT;
}

void open_tell_stale(const struct target *target)
{
	cli_message(target->path, "read while another process may write it: what is read may be stale");
}

static void notice_data(void *ctx, const struct img_detail *detail)
{
	const struct img *img = ctx;

	if (strcmp(detail->key, "data_file") == 0)
		cli_message(img_path(img), "opened '%s', which it names", detail->text);
}

/* Who only looks at metadata reads no data file; who writes needs it. */
static bool opens_nothing(unsigned flags)
{
	return (flags & (IMG_OPEN_NO_BACKING | IMG_OPEN_DATA_FILES | IMG_OPEN_WRITE)) == IMG_OPEN_NO_BACKING;
}

/* A foreign format names files without saying that they are its own: who did not ask is told what was opened. */
static void notice(struct img *img, const struct target *target, const struct common_args *common, unsigned flags)
{
	if (common->quiet)
		return;
	if (common->force_share)
		open_tell_stale(target);
	if (common->allow_refs)
		return;
	for (struct img *layer = img; layer && !opens_nothing(flags); layer = img_backing(layer))
		(void)img_info_details(layer, notice_data, layer, NULL);
	for (struct img *backing = img_backing(img); backing; img = backing, backing = img_backing(img)) {
		if (strcmp(img_format(img), "limg") != 0)
			cli_message(img_path(img), "opened '%s', which it names", img_path(backing));
	}
}

int open_image_as(const struct target *target, const char *format, const struct common_args *common, unsigned flags,
		  struct img **out)
{
	struct limits limits = limits_of(common);
	struct img_open_options options = {
		.struct_size = sizeof(options),
		.format = format,
		.snapshot = target->snapshot,
		.flags = flags | (common->force_share ? IMG_OPEN_FORCE_SHARE : 0u),
		.refs = open_refs(common),
	};
	/* who opens more than this image has begun already, with all names */
	const struct img_grant name = { target->path, flags & IMG_OPEN_WRITE ? IMG_GRANT_WRITE : IMG_GRANT_READ };
	struct img_error err = { .code = IMG_OK };
	int status = confined_begin(common, &name, 1, opens_nothing(flags) ? CONFINED_NO_REFS : 0);

	*out = NULL;
	if (status != EXIT_DONE)
		return status;
	options.host = confined_host();
	limits_apply(&limits, &options);
	if (img_open(target->path, &options, out, &err) != 0)
		return cli_fail(target->path, &err);
	notice(*out, target, common, flags);
	return EXIT_DONE;
}

int open_image(const struct target *target, const struct common_args *common, unsigned flags, struct img **out)
{
	return open_image_as(target, common->format, common, flags, out);
}

int close_image(struct img *img, const struct target *target, int status)
{
	struct img_error err = { .code = IMG_OK };

	if (!img || img_close(img, &err) == 0)
		return status;
	if (status == EXIT_DONE)
		return cli_fail(target->path, &err);
	return status;
}

int opened_begin(struct opened *o, const struct cli_verb *verb, const struct common_args *common, const char *operand,
		 unsigned flags)
{
	int status = verb->common & WITH_SNAPSHOT && !(flags & IMG_OPEN_WRITE) ?
			     target_parse(&o->target, verb, operand, common->snapshot, NULL) :
			     target_parse_image(&o->target, verb, operand);

	if (status != EXIT_DONE)
		return status;
	if (verb->common & WRITES_PARENT) {
		const struct img_grant name = { o->target.path, IMG_GRANT_WRITE };

		status = confined_begin(common, &name, 1, CONFINED_WRITE_PARENTS);
	}
	if (status == EXIT_DONE)
		status = open_image(&o->target, common, flags, &o->img);
	if (status != EXIT_DONE)
		target_free(&o->target);
	return status;
}

int opened_end(struct opened *o, int status)
{
	status = close_image(o->img, &o->target, status);
	target_free(&o->target);
	return status;
}

int opened_done(struct opened *o, int code, const struct img_error *err)
{
	return opened_end(o, code == 0 ? EXIT_DONE : cli_fail(o->target.path, err));
}
