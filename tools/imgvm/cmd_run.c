/* SPDX-License-Identifier: MIT */
/* imgvm run: a machine from an image, until it ends. */
#include <stdlib.h>

#include "run.h"
#include "verbs.h"

static int run(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	uint64_t start_ns = events_now_ns();
	struct run_options *opts = malloc(sizeof(*opts));
	int status;

	(void)nr_operands;
	if (!opts)
		return cli_fail_errno(NULL, "options");
	status = options_parse(verb, args, operands[0], opts);
	if (status == EXIT_DONE) {
		status = run_machine(opts, start_ns);
		options_free(opts);
	}
	free(opts);
	return status;
}

const struct cli_verb verb_run = {
	.name = "run",
	.operands = "IMAGE[@SNAP]",
	.summary = "Runs a machine whose disk is an image",
	.details =
		"Without @SNAP the machine starts as after power-on, by what its disk boots or by --kernel. With @SNAP it goes "
		"on where the snapshot was made, if the snapshot holds a machine, and else starts with the disk as it was; "
		"the disk must still be as in the snapshot (imgtool revert), or --revert or --transient must be given. It can be "
		"resumed by one machine at a time, unless --allow-clone.\n\n"
		"The serial port is the terminal: every key goes to the guest, but Ctrl-a x ends the machine, and Ctrl-a "
		"Ctrl-a sends Ctrl-a. A stdin that is no terminal goes to the guest to its end.\n\n"
		"While the machine runs, other verbs of imgvm, and imgtool snapshot and revert, reach it by the name of its "
		"first image. Machines that do not own it (--transient, --read-only) are told apart by --pid.",
	.example = PROGRAM " run debian.limg\n" PROGRAM " run --memory 512M --transient golden.limg@v1",
	.min_operands = 1,
	.max_operands = 1,
	.options = run_option_table,
	.nr_options = RUN_OPTIONS,
	.args_bytes = sizeof(struct run_args),
	.run = run,
};
