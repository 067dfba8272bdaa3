/* SPDX-License-Identifier: MIT */
/* imgtool create: a new image or overlay. The library makes it under a temporary name and renames it into place. */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "confined.h"
#include "device.h"
#include "create_options.h"
#include "limit_args.h"
#include "open.h"
#include "verbs.h"

struct create_args {
	struct common_args common;
	char *options;
	const char *backing;
	const char *backing_format;
	bool force;
};

static const struct cli_option options[] = {
	{ "option", 'o', OPTION_LIST, "KEY=VALUE,...",
	  "options of the format; -o help lists them; a comma in a value is written twice",
	  offsetof(struct create_args, options) },
	{ "backing", 'b', OPTION_TEXT, "PARENT[@SNAP]",
	  "stand on this image or snapshot: only what differs from it is stored. A relative name starts at FILE's "
	  "folder",
	  offsetof(struct create_args, backing) },
	{ "backing-format", 'F', OPTION_TEXT, "FMT", "format of PARENT; needed for raw, which is never guessed",
	  offsetof(struct create_args, backing_format) },
	{ "force", 0, OPTION_FLAG, NULL, "replace FILE if it exists and nobody uses it, when the new image is complete",
	  offsetof(struct create_args, force) },
};

/* Options may ask for another size than the one given, or than the parent's (VHD's align=): what guests see is said. */
static void tell_size(const struct create_args *args, const struct img_create_options *create, const char *path)
{
	struct limits limits = limits_of(&args->common);
	struct img_open_options open = { .struct_size = sizeof(open),
					 .format = create->format,
					 .flags = create->size_given ? IMG_OPEN_NO_BACKING : 0,
					 .refs = create->refs,
					 .host = create->host };
	struct img *img;
	uint64_t asked;

	limits_apply(&limits, &open);
	if (img_open(path, &open, &img, NULL) != 0)
		return;
	asked = create->size_given ? create->size_bytes : img_size(img_backing(img));
	asked += -asked % 512; /* a raw parent may end within a sector */
	if (img_size(img) != asked)
		cli_message(path, "note: the disk has %" PRIu64 " bytes instead of %" PRIu64, img_size(img), asked);
	(void)img_close(img, NULL);
}

static int create(const struct create_args *args, const struct target *file, const struct target *backing,
		  const struct size_arg *size)
{
	struct limits limits = limits_of(&args->common);
	bool device = is_block_device(file->path);
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = create_format(args->common.format, file->path),
		.size_bytes = size->value,
		.size_given = size->given,
		.flags = (args->force ? IMG_CREATE_OVERWRITE : 0u) | (device ? IMG_CREATE_DEVICE : 0u),
		.backing = backing->path,
		.backing_snapshot = backing->snapshot,
		.backing_format = args->backing_format,
		.options = args->options,
		.refs = open_refs(&args->common),
		.budget = &limits.budget,
	};
	const struct img_grant name = { file->path, device ? IMG_GRANT_WRITE :
						    args->force ?
							     IMG_GRANT_READ | IMG_GRANT_CREATE | IMG_GRANT_OVERWRITE :
							     IMG_GRANT_READ | IMG_GRANT_CREATE };
	struct img_error err = { .code = IMG_OK };
	int claim = -1, status = device ? claim_device(file->path, args->force, &claim) : EXIT_DONE;

	if (status == EXIT_DONE && backing->path) /* else no image is looked at */
		status = confined_begin_with(&args->common, &name, 1, claim);
	if (status == EXIT_DONE) {
		create.host = confined_host();
		if (img_create(file->path, &create, &err) != 0)
			status = create_fail(file->path, &err);
		else if (args->options && !args->common.quiet)
			tell_size(args, &create, file->path);
	}
	if (claim >= 0)
		close(claim);
	return status;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct create_args *args = verb_args;
	struct target file, backing = { NULL, NULL };
	struct size_arg size = { .given = nr_operands > 1 };
	int status;

	if (create_is_help(args->options))
		return create_print_help(verb, create_format(args->common.format, operands[0]));
	if (nr_operands == 0)
		return cli_usage_error(verb, "expected %s", verb->operands);
	if (size.given && !cli_parse_size(operands[1], &size.value))
		return cli_usage_error(verb, "'%s' is not a size (such as 10G)", operands[1]);
	if (!size.given && !args->backing)
		return cli_usage_error(verb, "a size is needed where there is no -b");
	if (args->backing_format && !args->backing)
		return cli_usage_error(verb, "--backing-format without -b");
	status = target_parse_new(&file, verb, operands[0]);
	if (status != EXIT_DONE)
		return status;
	if (args->backing)
		status = target_parse(&backing, verb, args->backing, NULL, file.path);
	if (status == EXIT_DONE)
		status = create(args, &file, &backing, &size);
	target_free(&backing);
	target_free(&file);
	return status;
}

const struct cli_verb verb_create = {
	.name = "create",
	.operands = "FILE [SIZE]",
	.summary = "Makes a new image, or an overlay on another one",
	.details =
		"-f is the format of the new image; without it FILE's name says: qcow2 for .qcow2, raw for .raw and .img, else limg. With "
		"-b the size is the parent's unless given. An overlay remembers which content its parent had: a "
		"parent that changed afterwards is refused. Standing on a named snapshot, it does not mind what "
		"becomes of the parent's head.\n\n"
		"An existing file is not touched without --force; what replaces it has its owner, group and rights, as far as they may be set. After a failure or a crash nothing stays under "
		"FILE's name. FILE may be a block device that is not mounted, for limg and qcow2, with --force: the image may then grow as far "
		"as it reaches.",
	.example = PROGRAM " create golden.limg 20G\n" PROGRAM " create -b golden.limg@v1 web1.limg",
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct create_args),
	.run = run,
};
