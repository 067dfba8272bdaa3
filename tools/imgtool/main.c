/* SPDX-License-Identifier: MIT */
/*
 * imgtool: the table of verbs, and how a command line finds its verb. Everything about a verb (options, description,
 * example) stands in its own file; see cli.h.
 */
#include <string.h>

#include "cli.h"
#include "output.h"
#include "signals.h"
#include "verbs.h"

const struct cli_verb *const cli_verbs[] = {
	&verb_create,
	&verb_info,
	&verb_convert,
	&verb_snapshot_create,
	&verb_snapshot_list,
	&verb_snapshot_delete,
	&verb_snapshot_rename,
	&verb_snapshot_diff,
	&verb_revert,
	&verb_bitmap_add,
	&verb_bitmap_list,
	&verb_bitmap_remove,
	&verb_bitmap_enable,
	&verb_bitmap_disable,
	&verb_bitmap_clear,
	&verb_bitmap_merge,
	&verb_commit,
	&verb_rebase,
	&verb_flatten,
	&verb_resize,
	&verb_amend,
	&verb_check,
	&verb_compare,
	&verb_checksum,
	&verb_map,
	&verb_measure,
	&verb_read,
	&verb_write,
	&verb_bench,
	&verb_lock,
	&verb_doctor,
	NULL,
};

/* How many words of argv name the verb: 1, 2, or 0 if they name none. */
static unsigned match(const struct cli_verb *verb, int argc, char **argv)
{
	size_t bytes = strcspn(verb->name, " ");

	if (argc < 1 || strlen(argv[0]) != bytes || strncmp(argv[0], verb->name, bytes) != 0)
		return 0;
	if (verb->name[bytes] == '\0')
		return 1;
	return argc > 1 && strcmp(argv[1], verb->name + bytes + 1) == 0 ? 2 : 0;
}

static const struct cli_verb *find(int argc, char **argv, unsigned *nr_words)
{
	for (size_t i = 0; cli_verbs[i]; i++) {
		*nr_words = match(cli_verbs[i], argc, argv);
		if (*nr_words)
			return cli_verbs[i];
	}
	return NULL;
}

/* Lists the verbs whose first word is `family`, or all. Returns how many. */
static unsigned list_verbs(FILE *out, const char *family)
{
	unsigned nr = 0;

	for (size_t i = 0; cli_verbs[i]; i++) {
		const char *name = cli_verbs[i]->name;

		if (family && (strncmp(name, family, strlen(family)) != 0 || name[strlen(family)] != ' '))
			continue;
		nr++;
		if (out)
			fprintf(out, "  %-16s %s\n", name, cli_verbs[i]->summary);
	}
	return nr;
}

static void print_overview(FILE *out)
{
	fputs("Usage: " PROGRAM " VERB [options] IMAGE...\n\n"
	      "IMAGE@SNAPSHOT names a snapshot wherever an image is read. " PROGRAM
	      " VERB -h tells about a verb.\n\nVerbs:\n",
	      out);
	list_verbs(out, NULL);
	fputs("\nExit status: 0 done or same, 1 different, 2 usage, 3 system error, 4 damaged, 5 in use, 6 refused, 7 "
	      "key.\n",
	      out);
}

static int help(int argc, char **argv)
{
	unsigned nr_words;
	const struct cli_verb *verb;

	if (argc == 0) {
		print_overview(stdout);
		return EXIT_DONE;
	}
	verb = find(argc, argv, &nr_words);
	if (verb) {
		cli_usage(verb, stdout);
		return EXIT_DONE;
	}
	if (list_verbs(NULL, argv[0]) > 0) {
		list_verbs(stdout, argv[0]);
		return EXIT_DONE;
	}
	cli_message(NULL, "there is no verb '%s': see " PROGRAM " help", argv[0]);
	return EXIT_USAGE;
}

static int print_version(void)
{
	printf(PROGRAM " %d.%d.%d (libimg %s)\n", IMG_VERSION_MAJOR, IMG_VERSION_MINOR, IMG_VERSION_PATCH,
	       img_version());
	return EXIT_DONE;
}

static int dispatch(int argc, char **argv)
{
	unsigned nr_words;
	const struct cli_verb *verb;

	if (argc == 0) {
		print_overview(stderr);
		return EXIT_USAGE;
	}
	verb = find(argc, argv, &nr_words);
	if (verb)
		return cli_run(verb, argc - (int)nr_words, argv + nr_words);
	if (strcmp(argv[0], "help") == 0 || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0)
		return help(argc - 1, argv + 1);
	if (strcmp(argv[0], "--version") == 0 || strcmp(argv[0], "-V") == 0)
		return print_version();
	if (strcmp(argv[0], "--generate-man") == 0)
		return generate_man();
	if (strcmp(argv[0], "--generate-completion") == 0)
		return generate_completion();
	if (list_verbs(NULL, argv[0]) > 0) {
		if (argc > 1 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0))
			return help(1, argv);
		cli_message(NULL, "%s needs a second word: see " PROGRAM " help %s", argv[0], argv[0]);
		return EXIT_USAGE;
	}
	cli_message(NULL, "there is no verb '%s': see " PROGRAM " help", argv[0]);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	signals_install();
	return output_finish(dispatch(argc - 1, argv + 1));
}
