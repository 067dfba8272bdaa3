/* SPDX-License-Identifier: MIT */
/* How a command line finds its verb in the program's table. See cli.h. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "output.h"

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
	for (size_t i = 0; cli_program->verbs[i]; i++) {
		*nr_words = match(cli_program->verbs[i], argc, argv);
		if (*nr_words)
			return cli_program->verbs[i];
	}
	return NULL;
}

/* Lists the verbs whose first word is `family`, or all. Returns how many. */
static unsigned list_verbs(FILE *out, const char *family)
{
	unsigned nr = 0;

	for (size_t i = 0; cli_program->verbs[i]; i++) {
		const char *name = cli_program->verbs[i]->name;

		if (family && (strncmp(name, family, strlen(family)) != 0 || name[strlen(family)] != ' '))
			continue;
		nr++;
		if (out)
			fprintf(out, "  %-16s %s\n", name, cli_program->verbs[i]->summary);
	}
	return nr;
}

static void print_overview(FILE *out)
{
	const char *name = cli_program->name;

	fprintf(out, "Usage: %s VERB [options] IMAGE...\n\n%s %s VERB -h tells about a verb.\n\nVerbs:\n", name,
		cli_program->intro, name);
	list_verbs(out, NULL);
	fprintf(out, "\n%s\n", cli_program->statuses);
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
	cli_message(NULL, "there is no verb '%s': see %s help", argv[0], cli_program->name);
	return EXIT_USAGE;
}

static int print_version(void)
{
	printf("%s %d.%d.%d (libimg %s)\n", cli_program->name, IMG_VERSION_MAJOR, IMG_VERSION_MINOR, IMG_VERSION_PATCH,
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
		cli_message(NULL, "%s needs a second word: see %s help %s", argv[0], cli_program->name, argv[0]);
		return EXIT_USAGE;
	}
	cli_message(NULL, "there is no verb '%s': see %s help", argv[0], cli_program->name);
	return EXIT_USAGE;
}

/*
 * Who is started without one of the standard descriptors would get the next file under its number, perhaps an image, and
 * print into it. What takes the place fails as nothing would: it cannot be used in the direction that is asked of it.
 */
static int reserve_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
			return EXIT_SYSTEM;
	}
	return EXIT_DONE;
}

int cli_main(const struct cli_program *program, int argc, char **argv)
{
	cli_program = program;
	if (reserve_descriptors() != EXIT_DONE)
		return EXIT_SYSTEM;
	return output_finish(dispatch(argc - 1, argv + 1));
}
