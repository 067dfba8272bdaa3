/* SPDX-License-Identifier: MIT */
/*
 * The command line of imgtool, by its own tables: main.c is built with other names for main() and cli_main(), so that
 * the program it describes comes here, and each verb's run is replaced by one that writes down what it was given.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arguments.h"
#include "policy.h"

#define MAX_VERBS 64

int imgtool_main(int argc, char **argv);
int arguments_take_program(const struct cli_program *from, int argc, char **argv);
void arguments_no_signals(void);

static struct cli_program program;
static struct cli_verb verbs[MAX_VERBS];
static const struct cli_verb *table[MAX_VERBS + 1];
static struct answer *recorded;

static int record(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	FUZZ_CHECK(nr_operands >= verb->min_operands && nr_operands <= verb->max_operands);
	answer_add(recorded, "%s", verb->name);
	check_options(verb, args, recorded);
	for (unsigned i = 0; i < nr_operands; i++)
		answer_add(recorded, " [%s]", operands[i]);
	return EXIT_DONE;
}

void arguments_no_signals(void)
{
}

int arguments_take_program(const struct cli_program *from, int argc, char **argv)
{
	size_t nr = 0;

	(void)argc;
	(void)argv;
	program = *from;
	for (; from->verbs[nr]; nr++) {
		FUZZ_CHECK(nr < MAX_VERBS);
		verbs[nr] = *from->verbs[nr];
		verbs[nr].run = record;
		table[nr] = &verbs[nr];
	}
	program.verbs = table;
	return 0;
}

static void make_program(void)
{
	static char name[] = "imgtool";
	char *argv[] = { name, NULL };

	if (!program.verbs)
		imgtool_main(1, argv);
	FUZZ_CHECK(program.verbs != NULL);
	cli_program = &program;
}

void parse_imgtool(const char *text, struct answer *a)
{
	struct lines l;
	char *argv[MAX_ARGS + 2] = { NULL };
	static char name[] = "imgtool";

	make_program();
	lines_take(&l, text);
	argv[0] = name;
	memcpy(argv + 1, l.arg, (size_t)l.nr * sizeof(char *));
	recorded = a;
	a->status = cli_main(&program, l.nr + 1, argv);
	FUZZ_CHECK(a->status >= EXIT_DONE && a->status <= EXIT_KEY);
	lines_free(&l);
}

void parse_policy(const char *text, struct answer *a)
{
	const struct img_inspect_rule *rule;
	int fd = memfd_create("policy", 0);
	struct policy policy;
	char path[32];

	make_program();
	FUZZ_CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	a->status = policy_load(&policy, path);
	FUZZ_CHECK(a->status == EXIT_DONE || a->status == EXIT_USAGE);
	for (size_t i = 0; a->status == EXIT_DONE && (rule = img_inspect_rule(i)) != NULL; i++) {
		FUZZ_CHECK(!policy_allows(&policy, rule->id) || rule->severity != IMG_SEVERITY_UNPARSEABLE);
		answer_add(a, "%d%d", policy_allows(&policy, rule->id), policy_denies(&policy, rule->id));
	}
	for (unsigned i = 0; a->status == EXIT_DONE && policy.formats[i]; i++) {
		FUZZ_CHECK(i < POLICY_FORMATS_MAX && policy.has_formats);
		answer_add(a, " %s", policy.formats[i]);
	}
	policy_free(&policy);
	close(fd);
}
