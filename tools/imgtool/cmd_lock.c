/* SPDX-License-Identifier: MIT */
/* imgtool lock: which processes hold an image. */
#include <inttypes.h>
#include <stdlib.h>

#include "open.h"
#include "output.h"
#include "verbs.h"

#define MAX_HOLDERS 1024

static int print_json(const struct img_holder *holders, size_t nr)
{
	json_t *array = json_array();

	for (size_t i = 0; i < nr; i++)
		json_array_append_new(array,
				      json_pack("{s:o, s:o, s:b}", "pid",
						holders[i].pid ? json_integer(holders[i].pid) : json_null(), "command",
						output_json_text(holders[i].command), "writes", holders[i].writes));
	return output_json(json_pack("{s:b, s:o}", "locked", nr > 0, "holders", array));
}

static void print_text(const struct target *target, const struct img_holder *holders, size_t nr)
{
	if (nr == 0) {
		output_escaped(stdout, target->path);
		puts(": nobody holds it");
	}
	for (size_t i = 0; i < nr; i++) {
		if (holders[i].pid)
			printf("%8" PRId64 "  %-7s  ", holders[i].pid, holders[i].writes ? "writes" : "reads");
		else
			printf("%8s  %-7s  ", "?", holders[i].writes ? "writes" : "reads");
		output_escaped(stdout,
			       holders[i].pid ? holders[i].command : "(a process that is not visible from here)");
		putchar('\n');
	}
}

static int list(const struct common_args *common, const struct target *target, struct img_holder *holders)
{
	struct img_error err = { .code = IMG_OK };
	size_t nr;

	if (img_holders(target->path, holders, MAX_HOLDERS, &nr, &err) != 0)
		return cli_fail(target->path, &err);
	if (nr > MAX_HOLDERS)
		nr = MAX_HOLDERS;
	if (common->json)
		return print_json(holders, nr);
	print_text(target, holders, nr);
	return EXIT_DONE;
}

static int run(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	struct img_holder *holders;
	struct target target;
	int status = target_parse_image(&target, verb, operands[0]);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	holders = calloc(MAX_HOLDERS, sizeof(*holders));
	status = holders ? list(args, &target, holders) : cli_fail_errno(target.path, "holders");
	free(holders);
	target_free(&target);
	return status;
}

const struct cli_verb verb_lock = {
	.name = "lock",
	.operands = "FILE",
	.summary = "Says which processes hold an image, QEMU's included",
	.details = "Takes no lock itself. Processes of other users are listed without their pid, unless you are root.",
	.example = PROGRAM " lock debian.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON,
	.args_bytes = sizeof(struct common_args),
	.run = run,
};
