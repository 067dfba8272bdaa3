/* SPDX-License-Identifier: MIT */
/* The command line of imgvm run: what it accepts is a machine that could be made. */
#include "arguments.h"

#ifdef FUZZ_HAS_IMGVM
#include <string.h>

#include "options.h"

static struct answer *recorded;

static int judge(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	const struct machine_options *m;
	struct run_options out;
	int status = options_parse(verb, args, operands[0], &out);

	(void)nr_operands;
	check_options(verb, args, recorded);
	FUZZ_CHECK(status == EXIT_DONE || status == EXIT_USAGE);
	if (status != EXIT_DONE)
		return status;
	m = &out.machine;
	FUZZ_CHECK(m->nr_disks >= 1 && m->nr_disks <= DISKS_MAX);
	FUZZ_CHECK(m->nr_vcpus <= VM_MAX_VCPUS);
	FUZZ_CHECK(m->ram_bytes == 0 || (m->ram_bytes >= MEMORY_MIN_BYTES && m->ram_bytes <= MEMORY_MAX_BYTES));
	FUZZ_CHECK(m->ram_bytes % MEMORY_PAGE == 0);
	for (unsigned i = 0; i < m->nr_disks; i++) {
		FUZZ_CHECK(m->disk[i].path && m->disk[i].path[0]);
		FUZZ_CHECK(!(m->disk[i].transient && m->disk[i].read_only));
		answer_add(recorded, " %s@%s:%s", m->disk[i].path, m->disk[i].snapshot ? m->disk[i].snapshot : "",
			   m->disk[i].format ? m->disk[i].format : "");
	}
	options_free(&out);
	return EXIT_DONE;
}

void parse_imgvm(const char *text, struct answer *a)
{
	static const struct cli_verb verb = {
		.name = "run",
		.operands = "IMAGE",
		.summary = "",
		.details = "",
		.example = "",
		.min_operands = 1,
		.max_operands = 1,
		.options = run_option_table,
		.nr_options = RUN_OPTIONS,
		.args_bytes = sizeof(struct run_args),
		.run = judge,
	};
	static const struct cli_verb *const verbs[] = { &verb, NULL };
	static const struct cli_program program = { .name = "imgvm", .verbs = verbs };
	struct lines l;

	cli_program = &program;
	lines_take(&l, text);
	recorded = a;
	a->status = cli_run(&verb, l.nr, l.arg);
	FUZZ_CHECK(a->status == EXIT_DONE || a->status == EXIT_USAGE);
	lines_free(&l);
}
#else
void parse_imgvm(const char *text, struct answer *a)
{
	(void)text;
	a->status = 0;
}
#endif
