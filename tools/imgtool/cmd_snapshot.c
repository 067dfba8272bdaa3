/* SPDX-License-Identifier: MIT */
/*
 * imgtool snapshot create, list, delete, rename, and imgtool revert: they change what an image remembers and never look
 * at its parent, so that it is not opened. snapshot diff has its own file.
 *
 * What imgvm runs is changed by the machine, on our demand: its memory and processors belong to its snapshots.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "live.h"
#include "machine.h"
#include "open.h"
#include "output.h"
#include "snapshots.h"
#include "verbs.h"

/* What a verb does to a snapshot: here, or as a demand on the machine that runs from the image. */
struct change {
	/* name: the snapshot; more: the verb's other word, or NULL */
	int (*here)(struct img *img, const char *name, const char *more, struct img_error *err);
	const char *command, *key; /* key: of the other word in the demand */
	void (*print)(const json_t *answer);
};

/* FILE@NAME is opened for the change, unless a machine runs from it. */
static int change(const struct cli_verb *verb, const struct common_args *common, const char *operand, const char *more,
		  const struct change *what)
{
	struct img_error err = { .code = IMG_OK };
	struct target target, head;
	struct img *img = NULL;
	int machine, status = target_parse_snapshot(&target, verb, operand);

	if (status != EXIT_DONE)
		return status;
	head = (struct target){ .path = target.path };
	machine = machine_connect(target.path);
	if (machine >= 0) {
		status = machine_ask(machine, target.path, common, what->print, what->command, target.snapshot,
				     what->key, more);
	} else {
		status = open_image(&head, common, IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING, &img);
		if (status == EXIT_DONE && what->here(img, target.snapshot, more, &err) != 0)
			status = cli_fail(target.path, &err);
		status = close_image(img, &target, status);
	}
	target_free(&target);
	return status;
}

/* ---- create ------------------------------------------------------------------------------------------------------ */

static int create(struct img *img, const char *name, const char *more, struct img_error *err)
{
	(void)more;
	return img_snapshot_create(img, name, 0, err);
}

static int run_create(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	static const struct change what = { create, "snapshot", NULL, live_print_snapshot };

	(void)nr_operands;
	return change(verb, args, operands[0], NULL, &what);
}

const struct cli_verb verb_snapshot_create = {
	.name = "snapshot create",
	.operands = "FILE@NAME",
	.summary = "Keeps the present state of an image as a snapshot",
	.details =
		"In limg this takes the same time and writes the same few bytes whatever the size of the image; in qcow2 "
		"both grow with it. Names are unique in the image.\n\n"
		"If imgvm runs a machine from the image, the machine is asked: the snapshot then holds processors and "
		"memory as well, and the guest stands still for a moment.",
	.example = PROGRAM " snapshot create debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_create,
};

/* ---- list -------------------------------------------------------------------------------------------------------- */

/* A machine that runs from the image holds it; what it keeps in its snapshots may be listed beside it all the same. */
static struct common_args beside_machine(const struct common_args *args, const char *path)
{
	struct common_args how = *args;
	int machine = args->force_share ? -1 : machine_connect(path);

	if (machine < 0)
		return how;
	close(machine);
	how.force_share = how.quiet = true;
	return how;
}

static int run_list(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct common_args *args = verb_args;
	struct common_args how;
	struct snapshot_list list = { NULL, 0 };
	struct target target;
	struct img *img;
	int status = target_parse_image(&target, verb, operands[0]);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	how = beside_machine(args, target.path);
	status = open_image(&target, &how, IMG_OPEN_NO_BACKING, &img);
	if (status == EXIT_DONE) {
		status = snapshots_load(&list, img);
		if (status == EXIT_DONE && args->json)
			status = output_json(json_pack("{s:o}", "snapshots", snapshots_json(&list)));
		else if (status == EXIT_DONE && list.nr)
			snapshots_print(&list);
		snapshots_free(&list);
		status = close_image(img, &target, status);
	}
	target_free(&target);
	return status;
}

const struct cli_verb verb_snapshot_list = {
	.name = "snapshot list",
	.operands = "FILE",
	.summary = "Lists the snapshots of an image",
	.details =
		"vm state is the size of the machine that a snapshot holds, if it holds one: its memory, and a little "
		"more. An image that imgvm runs a machine from can be listed as well.",
	.example = PROGRAM " snapshot list --json debian.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON,
	.args_bytes = sizeof(struct common_args),
	.run = run_list,
};

/* ---- delete, rename ---------------------------------------------------------------------------------------------- */

static int delete (struct img *img, const char *name, const char *more, struct img_error *err)
{
	(void)more;
	return img_snapshot_delete(img, name, err);
}

static int run_delete(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	static const struct change what = { delete, "delete", NULL, NULL };

	(void)nr_operands;
	return change(verb, args, operands[0], NULL, &what);
}

const struct cli_verb verb_snapshot_delete = {
	.name = "snapshot delete",
	.operands = "FILE@NAME",
	.summary = "Forgets a snapshot and frees what only it held",
	.details = "Neither the disk nor any other snapshot changes. Refused while somebody reads the snapshot. An "
		   "overlay that stands on it can no longer be opened afterwards.",
	.example = PROGRAM " snapshot delete debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_delete,
};

static int run_rename(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	static const struct change what = { img_snapshot_rename, "rename", "new_name", NULL };

	(void)nr_operands;
	return change(verb, args, operands[0], operands[1], &what);
}

const struct cli_verb verb_snapshot_rename = {
	.name = "snapshot rename",
	.operands = "FILE@OLD NEW",
	.summary = "Gives a snapshot another name",
	.details = "Overlays that stand on the snapshot are not affected: they know it by its uuid.",
	.example = PROGRAM " snapshot rename debian.limg@before v1",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.args_bytes = sizeof(struct common_args),
	.run = run_rename,
};

/* ---- revert ------------------------------------------------------------------------------------------------------ */

struct revert_args {
	struct common_args common;
	const char *save;
};

static const struct cli_option revert_options[] = {
	{ "save", 0, OPTION_TEXT, "NAME", "keep the present state as the snapshot NAME first",
	  offsetof(struct revert_args, save) },
};

/* By whatever it can be called. */
static bool has_snapshot(struct img *img, const char *name)
{
	uint64_t bytes;

	return img_vmstate_size(img, name, &bytes, NULL) == 0;
}

/* more: the name to save the present state under */
static int revert(struct img *img, const char *name, const char *more, struct img_error *err)
{
	int code = 0;

	/* a misspelt name must not leave a snapshot behind */
	if (more && has_snapshot(img, name))
		code = img_snapshot_create(img, more, 0, err);
	return code ? code : img_snapshot_revert(img, name, err);
}

static int run_revert(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	static const struct change what = { revert, "revert", "save", live_print_revert };
	const struct revert_args *args = verb_args;

	(void)nr_operands;
	return change(verb, &args->common, operands[0], args->save, &what);
}

const struct cli_verb verb_revert = {
	.name = "revert",
	.operands = "FILE@NAME",
	.summary = "Makes the disk again what it was at a snapshot",
	.details = "Takes the same time whatever the size of the image. The present state is lost, unless --save "
		   "keeps it; the snapshot stays, and so do those made after it.\n\n"
		   "If imgvm runs a machine from the image, the machine is asked to go back: it runs on from the "
		   "snapshot. A machine in a snapshot of an image that nobody runs is resumed by imgvm run FILE@NAME.",
	.example = PROGRAM " revert --save broken debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE,
	.options = revert_options,
	.nr_options = ARRAY_LEN(revert_options),
	.args_bytes = sizeof(struct revert_args),
	.run = run_revert,
};
