/* SPDX-License-Identifier: MIT */
/* imgtool amend: changes what an image was created with, in place. */
#include <string.h>

#include "create_options.h"
#include "open.h"
#include "verbs.h"

struct amend_args {
	struct common_args common;
	char *options;
};

static const struct cli_option options[] = {
	{ "option", 'o', OPTION_LIST, "KEY=VALUE,...",
	  "what is to be otherwise: as in create, of which not all can be changed (help lists it), and for qcow2 size, "
	  "backing_file, backing_fmt",
	  offsetof(struct amend_args, options) },
};

/* What it could have been created with; not all of that can be changed. */
static int print_help(const struct cli_verb *verb, const struct amend_args *args, const char *operand)
{
	struct opened o;
	int status = opened_begin(&o, verb, &args->common, operand, IMG_OPEN_NO_BACKING);

	return status == EXIT_DONE ? opened_end(&o, create_print_help(verb, img_format(o.img))) : status;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct amend_args *args = verb_args;
	struct img_error err = { .code = IMG_OK };
	struct opened o;
	int status;

	(void)nr_operands;
	if (!args->options)
		return cli_usage_error(verb, "nothing to change: -o is missing");
	if (create_is_help(args->options))
		return print_help(verb, args, operands[0]);
	/* A parent is looked at only for a new size: it may be longer than the disk was. */
	status = opened_begin(&o, verb, &args->common, operands[0],
			      IMG_OPEN_WRITE | (strstr(args->options, "size=") ? 0u : (unsigned)IMG_OPEN_NO_BACKING));
	if (status != EXIT_DONE)
		return status;
	return opened_done(&o, img_amend(o.img, args->options, &err), &err);
}

const struct cli_verb verb_amend = {
	.name = "amend",
	.operands = "FILE",
	.summary = "Changes what an image was created with, in place",
	.details = "Formats differ in what they can change: qcow2 its version (compat), lazy_refcounts, size, the "
		   "backing file's name and format on record (backing_file, backing_fmt: nothing is looked at or "
		   "copied; imgtool rebase does that), and data_file_raw=off. All is judged before anything is "
		   "changed.",
	.example = PROGRAM " amend -o compat=1.1,lazy_refcounts=on old.qcow2",
	.min_operands = 1,
	.max_operands = 1,
	.common = NO_FORCE_SHARE,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct amend_args),
	.run = run,
};
