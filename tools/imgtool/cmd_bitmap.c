/* SPDX-License-Identifier: MIT */
/*
 * imgtool bitmap add, remove, enable, disable, clear, merge, list: the persistent dirty bitmaps of an image. They say
 * what changed and not what is there, so that no parent is opened.
 */
#include <stdlib.h>

#include "bitmaps.h"
#include "confined.h"
#include "open.h"
#include "output.h"
#include "verbs.h"

/* Who changes bitmaps writes the image alone. */
#define CHANGE_FLAGS (IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING)

/* ---- add --------------------------------------------------------------------------------------------------------- */

struct add_args {
	struct common_args common;
	struct size_arg granularity;
	bool disabled;
};

static const struct cli_option add_options[] = {
	{ "granularity", 'g', OPTION_SIZE, "SIZE",
	  "what one bit stands for: a power of two, 512 to 2G; default: the cluster size, but 4K to 64K",
	  offsetof(struct add_args, granularity) },
	{ "disabled", 0, OPTION_FLAG, NULL, "record nothing before bitmap enable",
	  offsetof(struct add_args, disabled) },
};

static int run_add(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct add_args *args = verb_args;
	struct img_error err = { .code = IMG_OK };
	struct opened o;
	int status;

	(void)nr_operands;
	if (args->granularity.given && args->granularity.value == 0)
		return cli_usage_error(verb, "-g: a bit stands for at least 512 bytes");
	status = opened_begin(&o, verb, &args->common, operands[0], CHANGE_FLAGS);
	if (status != EXIT_DONE)
		return status;
	return opened_done(&o,
			   img_bitmap_add(o.img, operands[1], args->granularity.value,
					  args->disabled ? IMG_BITMAP_ADD_DISABLED : 0, &err),
			   &err);
}

const struct cli_verb verb_bitmap_add = {
	.name = "bitmap add",
	.operands = "FILE NAME",
	.summary = "Makes a bitmap that records what is changed from now on",
	.details =
		"It is kept in the image, and by every program that knows it. What a disk grows by counts as changed. While "
		"an image is written its bitmaps are marked as in use; a crash leaves them so, and they can then only be "
		"removed.",
	.example = PROGRAM " bitmap add debian.qcow2 since-monday",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.options = add_options,
	.nr_options = ARRAY_LEN(add_options),
	.args_bytes = sizeof(struct add_args),
	.run = run_add,
};

/* ---- remove, enable, disable, clear ------------------------------------------------------------------------------ */

static int change(const struct cli_verb *verb, const struct common_args *common, char **operands,
		  int (*call)(struct img *img, const char *name, struct img_error *err))
{
	struct img_error err = { .code = IMG_OK };
	struct opened o;
	int status = opened_begin(&o, verb, common, operands[0], CHANGE_FLAGS);

	return status == EXIT_DONE ? opened_done(&o, call(o.img, operands[1], &err), &err) : status;
}

/* A verb of FILE NAME that is one call of the library. */
#define CHANGE_VERB(word, what, more)                                                                         \
	static int run_##word(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands) \
	{                                                                                                     \
		(void)nr_operands;                                                                            \
		return change(verb, args, operands, img_bitmap_##word);                                       \
	}                                                                                                     \
	const struct cli_verb verb_bitmap_##word = {                                                          \
		.name = "bitmap " #word,                                                                      \
		.operands = "FILE NAME",                                                                      \
		.summary = (what),                                                                            \
		.details = (more),                                                                            \
		.example = PROGRAM " bitmap " #word " debian.qcow2 since-monday",                             \
		.min_operands = 2,                                                                            \
		.max_operands = 2,                                                                            \
		.common = NO_FORCE_SHARE,                                                                     \
		.args_bytes = sizeof(struct common_args),                                                     \
		.run = run_##word,                                                                            \
	}

CHANGE_VERB(remove, "Forgets a bitmap", NULL);
CHANGE_VERB(enable, "Makes a bitmap record changes again", "What was changed while it was disabled is not in it.");
CHANGE_VERB(disable, "Makes a bitmap stay as it is", NULL);
CHANGE_VERB(clear, "Makes a bitmap say that nothing was changed", NULL);

/* ---- merge ------------------------------------------------------------------------------------------------------- */

struct merge_args {
	struct common_args common;
	const char *from;
};

static const struct cli_option merge_options[] = {
	{ "from", 0, OPTION_TEXT, "FILE", "the image that holds SOURCE; default: the same",
	  offsetof(struct merge_args, from) },
};

static int confine(const struct merge_args *args, const struct target *target, const struct target *from)
{
	const struct img_grant names[] = { { target->path, IMG_GRANT_WRITE }, { from->path, IMG_GRANT_READ } };

	return confined_begin(&args->common, names, from->path ? 2 : 1, 0);
}

static int run_merge(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct merge_args *args = verb_args;
	const struct common_args other = { .allow_refs = args->common.allow_refs, .quiet = args->common.quiet };
	struct img_error err = { .code = IMG_OK };
	struct opened o = { .img = NULL };
	struct target from = { NULL, NULL };
	struct img *src = NULL;
	int status = target_parse_image(&o.target, verb, operands[0]);

	(void)nr_operands;
	if (args->from && status == EXIT_DONE)
		status = target_parse_image(&from, verb, args->from);
	if (status == EXIT_DONE)
		status = confine(args, &o.target, &from);
	if (status == EXIT_DONE)
		status = open_image(&o.target, &args->common, CHANGE_FLAGS, &o.img);
	if (args->from && status == EXIT_DONE)
		status = open_image(&from, &other, IMG_OPEN_NO_BACKING, &src);
	if (status == EXIT_DONE && img_bitmap_merge(o.img, operands[1], src, operands[2], &err) != 0)
		status = cli_fail(o.target.path, &err);
	status = close_image(src, &from, status);
	target_free(&from);
	return opened_end(&o, status);
}

const struct cli_verb verb_bitmap_merge = {
	.name = "bitmap merge",
	.operands = "FILE NAME SOURCE",
	.summary = "Adds to a bitmap what another one says",
	.details = "The other one, which may belong to another image, stays as it is. Their granularities may differ: "
		   "what is dirty in part is dirty as a whole.",
	.example = PROGRAM " bitmap merge debian.qcow2 since-monday since-friday",
	.min_operands = 3,
	.max_operands = 3,
	.common = NO_FORCE_SHARE,
	.options = merge_options,
	.nr_options = ARRAY_LEN(merge_options),
	.args_bytes = sizeof(struct merge_args),
	.run = run_merge,
};

/* ---- list -------------------------------------------------------------------------------------------------------- */

static int run_list(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct common_args *args = verb_args;
	struct bitmap_list list = { NULL, 0 };
	struct opened o;
	int status = opened_begin(&o, verb, args, operands[0], IMG_OPEN_NO_BACKING);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	status = bitmaps_load(&list, o.img);
	if (status == EXIT_DONE && args->json)
		status = output_json(json_pack("{s:o}", "bitmaps", bitmaps_json(&list)));
	else if (status == EXIT_DONE && list.nr)
		bitmaps_print(&list);
	bitmaps_free(&list);
	return opened_end(&o, status);
}

const struct cli_verb verb_bitmap_list = {
	.name = "bitmap list",
	.operands = "FILE",
	.summary = "Lists the bitmaps of an image",
	.details =
		"enabled: records changes; disabled: stays as it is; inconsistent: may have missed changes, or is in use "
		"by a process that writes the image; unsupported: of a kind that is not known.",
	.example = PROGRAM " bitmap list --json debian.qcow2",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON,
	.args_bytes = sizeof(struct common_args),
	.run = run_list,
};
