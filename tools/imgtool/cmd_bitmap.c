/* SPDX-License-Identifier: MIT */
/*
 * imgtool bitmap add, remove, enable, disable, clear, merge, list: the persistent dirty bitmaps of an image. They say
 * what changed and not what is there, so that no parent is opened.
 */
#include <stdlib.h>

#include "bitmaps.h"
#include "open.h"
#include "output.h"
#include "verbs.h"

/* Opens FILE for a change. Returns an exit status; on EXIT_DONE finish() follows. */
static int begin(const struct cli_verb *verb, const struct common_args *common, const char *operand,
		 struct target *target, struct img **img)
{
	int status = target_parse_image(target, verb, operand);

	if (status != EXIT_DONE)
		return status;
	status = open_image(target, common, IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING, img);
	if (status != EXIT_DONE)
		target_free(target);
	return status;
}

static int finish(struct target *target, struct img *img, int code, const struct img_error *err)
{
	int status = code == 0 ? EXIT_DONE : cli_fail(target->path, err);

	status = close_image(img, target, status);
	target_free(target);
	return status;
}

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
	struct target target;
	struct img *img;
	int status;

	(void)nr_operands;
	if (args->granularity.given && args->granularity.value == 0)
		return cli_usage_error(verb, "-g: a bit stands for at least 512 bytes");
	status = begin(verb, &args->common, operands[0], &target, &img);
	if (status != EXIT_DONE)
		return status;
	return finish(&target, img,
		      img_bitmap_add(img, operands[1], args->granularity.value,
				     args->disabled ? IMG_BITMAP_ADD_DISABLED : 0, &err),
		      &err);
}

const struct cli_verb verb_bitmap_add = {
	.name = "bitmap add",
	.operands = "FILE NAME",
	.summary = "Makes a bitmap that records what is changed from now on",
	.details = "It is kept in the image, and by every program that knows it. While an image is written its "
		   "bitmaps are marked as in use; a crash leaves them so, and they can then only be removed.",
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
	struct target target;
	struct img *img;
	int status = begin(verb, common, operands[0], &target, &img);

	if (status != EXIT_DONE)
		return status;
	return finish(&target, img, call(img, operands[1], &err), &err);
}

static int run_remove(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return change(verb, args, operands, img_bitmap_remove);
}

static int run_enable(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return change(verb, args, operands, img_bitmap_enable);
}

static int run_disable(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return change(verb, args, operands, img_bitmap_disable);
}

static int run_clear(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return change(verb, args, operands, img_bitmap_clear);
}

const struct cli_verb verb_bitmap_remove = {
	.name = "bitmap remove",
	.operands = "FILE NAME",
	.summary = "Forgets a bitmap",
	.example = PROGRAM " bitmap remove debian.qcow2 since-monday",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_remove,
};

const struct cli_verb verb_bitmap_enable = {
	.name = "bitmap enable",
	.operands = "FILE NAME",
	.summary = "Makes a bitmap record changes again",
	.details = "What was changed while it was disabled is not in it.",
	.example = PROGRAM " bitmap enable debian.qcow2 since-monday",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_enable,
};

const struct cli_verb verb_bitmap_disable = {
	.name = "bitmap disable",
	.operands = "FILE NAME",
	.summary = "Makes a bitmap stay as it is",
	.example = PROGRAM " bitmap disable debian.qcow2 since-monday",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_disable,
};

const struct cli_verb verb_bitmap_clear = {
	.name = "bitmap clear",
	.operands = "FILE NAME",
	.summary = "Makes a bitmap say that nothing was changed",
	.example = PROGRAM " bitmap clear debian.qcow2 since-monday",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_clear,
};

/* ---- merge ------------------------------------------------------------------------------------------------------- */

struct merge_args {
	struct common_args common;
	const char *from;
};

static const struct cli_option merge_options[] = {
	{ "from", 0, OPTION_TEXT, "FILE", "the image that holds SOURCE; default: the same",
	  offsetof(struct merge_args, from) },
};

static int run_merge(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct merge_args *args = verb_args;
	const struct common_args other = { .allow_refs = args->common.allow_refs, .quiet = args->common.quiet };
	struct img_error err = { .code = IMG_OK };
	struct target target, from = { NULL, NULL };
	struct img *img, *src = NULL;
	int code, status = begin(verb, &args->common, operands[0], &target, &img);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	if (args->from)
		status = target_parse_image(&from, verb, args->from);
	if (args->from && status == EXIT_DONE)
		status = open_image(&from, &other, IMG_OPEN_NO_BACKING, &src);
	if (status == EXIT_DONE) {
		code = img_bitmap_merge(img, operands[1], src, operands[2], &err);
		if (code != 0)
			status = cli_fail(target.path, &err);
	}
	status = close_image(src, &from, status);
	status = close_image(img, &target, status);
	target_free(&from);
	target_free(&target);
	return status;
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
	struct target target;
	struct img *img;
	int status = target_parse_image(&target, verb, operands[0]);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	status = open_image(&target, args, IMG_OPEN_NO_BACKING, &img);
	if (status == EXIT_DONE) {
		status = bitmaps_load(&list, img);
		if (status == EXIT_DONE && args->json)
			status = output_json(json_pack("{s:o}", "bitmaps", bitmaps_json(&list)));
		else if (status == EXIT_DONE && list.nr)
			bitmaps_print(&list);
		bitmaps_free(&list);
		status = close_image(img, &target, status);
	}
	target_free(&target);
	return status;
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
