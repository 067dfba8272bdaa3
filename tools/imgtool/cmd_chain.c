/* SPDX-License-Identifier: MIT */
/*
 * imgtool commit, rebase and flatten: what an overlay does with its parent. Each may be killed at any moment and run
 * again: the library moves content first and changes the reference last.
 */
#include <string.h>

#include "open.h"
#include "progress.h"
#include "verbs.h"

static int finish(struct progress *progress, struct opened *o, int code, const struct img_error *err)
{
	progress_end(progress, code == 0);
	return opened_done(o, code, err);
}

/* ---- commit ------------------------------------------------------------------------------------------------------ */

static int run_commit(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	struct img_copy_options copy = { .struct_size = sizeof(copy) };
	struct img_error err = { .code = IMG_OK };
	struct progress progress;
	struct opened o;
	/* the library opens the parent as commit needs it: after an interrupted one it matches no pin */
	int status = opened_begin(&o, verb, args, operands[0], IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	copy.progress = progress_begin(&progress, verb, args);
	return finish(&progress, &o, img_commit(o.img, &copy, &err), &err);
}

const struct cli_verb verb_commit = {
	.name = "commit",
	.operands = "OVERLAY",
	.summary = "Writes an overlay's changes into its parent and empties the overlay",
	.details =
		"The overlay then stands on the parent's new state. Other overlays on the parent's old state will "
		"refuse to open; those on its snapshots are not affected. So will overlays on OVERLAY, which read as before: " PROGRAM
		" rebase --unsafe tells them that the change was meant. An overlay on a named snapshot is "
		"committed only while the parent's present state still equals that snapshot. After a kill, a crash "
		"or a full disk, run it again: until then the overlay reads as before, and is not changed. Where the "
		"parent is lost, rebase --unsafe puts a limg, qcow2 or VHDX overlay on a copy of it, of before the "
		"commit or of now.",
	.example = PROGRAM " commit web1.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE | WITH_PROGRESS | WRITES_PARENT,
	.args_bytes = sizeof(struct common_args),
	.run = run_commit,
};

/* ---- rebase ------------------------------------------------------------------------------------------------------ */

struct rebase_args {
	struct common_args common;
	const char *backing;
	const char *backing_format;
	bool unsafe;
};

static const struct cli_option rebase_options[] = {
	{ "backing", 'b', OPTION_TEXT, "PARENT[@SNAP]",
	  "the new parent; without it the image gets none. A relative name starts at FILE's folder",
	  offsetof(struct rebase_args, backing) },
	{ "backing-format", 'F', OPTION_TEXT, "FMT", "format of PARENT; needed for raw, which is never guessed",
	  offsetof(struct rebase_args, backing_format) },
	{ "unsafe", 'u', OPTION_FLAG, NULL,
	  "only record the new parent, whose content must be that of the old one: for a parent that was moved, or "
	  "changed on purpose, or lost while a commit into it was under way",
	  offsetof(struct rebase_args, unsafe) },
};

static int rebase(const struct cli_verb *verb, const struct rebase_args *args, const struct target *target,
		  const struct target *backing)
{
	struct img_rebase_options rebase = {
		.struct_size = sizeof(rebase),
		.backing = backing->path,
		.backing_snapshot = backing->snapshot,
		.backing_format = args->backing_format,
		.flags = args->unsafe ? IMG_REBASE_UNSAFE : 0,
		.refs = open_refs(&args->common),
	};
	struct img_error err = { .code = IMG_OK };
	struct progress progress;
	struct img *img;
	/* the old parent may be gone, or no longer what it was: --unsafe does not look at it */
	unsigned flags = IMG_OPEN_WRITE | (args->unsafe ? IMG_OPEN_NO_BACKING : 0u);
	int code, status = open_image(target, &args->common, flags, &img);

	if (status != EXIT_DONE)
		return status;
	rebase.progress = progress_begin(&progress, verb, &args->common);
	code = img_rebase(img, &rebase, &err);
	progress_end(&progress, code == 0);
	return close_image(img, target, code == 0 ? EXIT_DONE : cli_fail(target->path, &err));
}

static int run_rebase(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct rebase_args *args = verb_args;
	struct target target, backing = { NULL, NULL };
	int status;

	(void)nr_operands;
	if (args->backing_format && !args->backing)
		return cli_usage_error(verb, "--backing-format without -b");
	status = target_parse_image(&target, verb, operands[0]);
	if (status != EXIT_DONE)
		return status;
	if (args->backing && args->backing[0] != '\0') /* -b "": none */
		status = target_parse(&backing, verb, args->backing, NULL, target.path);
	if (status == EXIT_DONE)
		status = rebase(verb, args, &target, &backing);
	target_free(&backing);
	target_free(&target);
	return status;
}

const struct cli_verb verb_rebase = {
	.name = "rebase",
	.operands = "FILE",
	.summary = "Puts an overlay on another parent, with the same content",
	.details = "What differs between the old and the new parent is stored in FILE, so that it reads as before. "
		   "With --unsafe nothing is read and nothing is copied. After a kill or a crash, run it again.",
	.example = PROGRAM " rebase -b golden.limg@v2 web1.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE | WITH_PROGRESS,
	.options = rebase_options,
	.nr_options = ARRAY_LEN(rebase_options),
	.args_bytes = sizeof(struct rebase_args),
	.run = run_rebase,
};

/* ---- flatten ----------------------------------------------------------------------------------------------------- */

static int run_flatten(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	struct img_error err = { .code = IMG_OK };
	struct img_progress callback;
	struct progress progress;
	struct opened o;
	int status = opened_begin(&o, verb, args, operands[0], IMG_OPEN_WRITE);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	callback = progress_begin(&progress, verb, args);
	return finish(&progress, &o, img_flatten(o.img, &callback, &err), &err);
}

const struct cli_verb verb_flatten = {
	.name = "flatten",
	.operands = "FILE",
	.summary = "Copies what an overlay reads from its parents into it, so that it stands alone",
	.details =
		"It reads as before, but it is written to: overlays that stand on its present state will refuse to open "
		"until " PROGRAM
		" rebase --unsafe tells them that this was meant. After a kill or a crash, run it again.",
	.example = PROGRAM " flatten web1.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE | WITH_PROGRESS,
	.args_bytes = sizeof(struct common_args),
	.run = run_flatten,
};
