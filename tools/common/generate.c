/* SPDX-License-Identifier: MIT */
/* The manual page and the shell completion, made from the verb tables; the build runs them (PROGRAM --generate-man). */
#include <ctype.h>
#include <string.h>

#include "cli.h"

/* The i-th option that the verb offers; NULL past the end. */
static const struct cli_option *option_at(const struct cli_verb *verb, size_t i)
{
	const struct cli_option *option;

	for (size_t k = 0; (option = cli_option_at(verb, k)) != NULL; k++) {
		if (cli_is_offered(verb, option) && i-- == 0)
			return option;
	}
	return NULL;
}

/* ---- manual page ------------------------------------------------------------------------------------------------- */

/* roff: a leading dot or quote is a request, a backslash an escape, a bare '-' a hyphen. */
static void man_text(const char *text)
{
	bool line_start = true;

	for (; *text; text++) {
		if (line_start && (*text == '.' || *text == '\''))
			fputs("\\&", stdout);
		if (*text == '\n' && text[1] == '\n') {
			fputs("\n.PP\n", stdout);
			text++;
			line_start = true;
			continue;
		}
		if (*text == '\\')
			fputs("\\e", stdout);
		else if (*text == '-')
			fputs("\\-", stdout);
		else
			putchar(*text);
		line_start = *text == '\n';
	}
}

static void man_option(const struct cli_option *option)
{
	fputs(".TP\n", stdout);
	if (option->letter)
		printf("\\fB\\-%c\\fR, ", option->letter);
	fputs("\\fB\\-\\-", stdout);
	man_text(option->name);
	fputs("\\fR", stdout);
	if (option->kind == OPTION_WORD)
		printf("[=\\fI%s\\fR]", option->metavar);
	else if (option->metavar)
		printf(" \\fI%s\\fR", option->metavar);
	putchar('\n');
	man_text(option->help);
	putchar('\n');
}

/* Options that every verb has are described once. */
static bool is_common(const struct cli_verb *verb, const struct cli_option *option)
{
	return verb->nr_options == 0 || option < verb->options || option >= verb->options + verb->nr_options;
}

static void man_verb(const struct cli_verb *verb)
{
	const struct cli_option *option;

	fputs(".SS ", stdout);
	man_text(verb->name);
	printf("\n\\fB%s %s\\fR [\\fIoptions\\fR] \\fI", cli_program->name, verb->name);
	man_text(verb->operands);
	fputs("\\fR\n.PP\n", stdout);
	man_text(verb->summary);
	fputs(".\n", stdout);
	if (verb->details) {
		fputs(".PP\n", stdout);
		man_text(verb->details);
		putchar('\n');
	}
	for (size_t i = 0; (option = option_at(verb, i)) != NULL; i++) {
		if (!is_common(verb, option))
			man_option(option);
	}
	fputs(".PP\nExample:\n.PP\n.nf\n.RS\n", stdout);
	man_text(verb->example);
	fputs("\n.RE\n.fi\n", stdout);
}

static void man_title(void)
{
	printf(".\\\" SPDX-License-Identifier: MIT\n.\\\" Made from the verb tables of %s: do not edit.\n.TH ",
	       cli_program->name);
	for (const char *c = cli_program->name; *c; c++)
		putchar(toupper((unsigned char)*c));
	printf(" 1 \"\" \"libimg %s\" \"User Commands\"\n", img_version());
}

int generate_man(void)
{
	const struct cli_option *option;
	const struct cli_verb all = { .common = cli_program->all_common };

	man_title();
	fputs(cli_program->man_head, stdout);
	for (size_t i = 0; cli_program->verbs[i]; i++)
		man_verb(cli_program->verbs[i]);
	fputs(".SH COMMON OPTIONS\n", stdout);
	fputs(cli_program->man_options, stdout);
	for (size_t i = 0; (option = option_at(&all, i)) != NULL; i++)
		man_option(option);
	fputs(cli_program->man_tail, stdout);
	return EXIT_DONE;
}

/* ---- bash completion --------------------------------------------------------------------------------------------- */

/* First words of the verbs, each once (those of one family stand together). */
static void print_first_words(void)
{
	const char *last = "";

	for (size_t i = 0; cli_program->verbs[i]; i++) {
		size_t bytes = strcspn(cli_program->verbs[i]->name, " ");

		if (strncmp(last, cli_program->verbs[i]->name, bytes) != 0 ||
		    (last[bytes] != ' ' && last[bytes] != '\0'))
			printf(" %.*s", (int)bytes, cli_program->verbs[i]->name);
		last = cli_program->verbs[i]->name;
	}
}

/* Cases "first)" -> second words, for families of verbs. */
static void print_families(void)
{
	for (size_t i = 0; cli_program->verbs[i]; i++) {
		const char *name = cli_program->verbs[i]->name;
		size_t bytes = strcspn(name, " ");

		if (name[bytes] == '\0' || (i > 0 && strncmp(cli_program->verbs[i - 1]->name, name, bytes + 1) == 0))
			continue;
		printf("\t%.*s) sub=\"", (int)bytes, name);
		for (size_t k = i; cli_program->verbs[k] && strncmp(cli_program->verbs[k]->name, name, bytes + 1) == 0;
		     k++)
			printf("%s%s", k > i ? " " : "", cli_program->verbs[k]->name + bytes + 1);
		fputs("\" ;;\n", stdout);
	}
}

static void print_words(const char *words)
{
	for (; *words; words++)
		putchar(*words == '|' ? ' ' : *words);
}

/* The words that the value of an option may be; nothing: the shell completes files. */
static void print_values(const struct cli_option *option)
{
	if (option->kind == OPTION_CHOICE || option->kind == OPTION_WORD) {
		print_words(option->metavar);
	} else if (strcmp(option->metavar, CLI_FORMAT) == 0) {
		/* what is put out has to be made */
		bool new = strncmp(option->name, "output", 6) == 0;
		const char *before = "";

		for (size_t i = 0; img_format_name(i); i++) {
			if (new && !img_format_can_create(img_format_name(i)))
				continue;
			printf("%s%s", before, img_format_name(i));
			before = " ";
		}
	}
}

static void print_verb_case(const struct cli_verb *verb)
{
	const struct cli_option *option;

	printf("\t\"%s\")\n\t\topts=\"", verb->name);
	for (size_t i = 0; (option = option_at(verb, i)) != NULL; i++) {
		if (option->letter)
			printf("-%c ", option->letter);
		printf("--%s ", option->name);
	}
	fputs("\"\n\t\tcase $prev in\n", stdout);
	for (size_t i = 0; (option = option_at(verb, i)) != NULL; i++) {
		if (!option->metavar || option->kind == OPTION_WORD)
			continue;
		fputs("\t\t", stdout);
		if (option->letter)
			printf("-%c | ", option->letter);
		printf("--%s) ", option->name);
		if (strcmp(option->metavar, "FILE") == 0 || strcmp(option->metavar, "FOLDER") == 0 ||
		    strncmp(option->metavar, "IMAGE", 5) == 0 || strncmp(option->metavar, "PARENT", 6) == 0) {
			fputs("kind=files ;;\n", stdout);
			continue;
		}
		fputs("kind=words words=\"", stdout);
		print_values(option);
		fputs("\" ;;\n", stdout);
	}
	fputs("\t\tesac ;;\n", stdout);
}

static const char completion_tail[] = "\tesac\n"
				      "\tif [[ $kind == words ]]; then\n"
				      "\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
				      "\telif [[ $kind != files && $cur == -* ]]; then\n"
				      "\t\tCOMPREPLY=($(compgen -W \"$opts\" -- \"$cur\"))\n"
				      "\telse\n"
				      "\t\tcompopt -o filenames 2>/dev/null\n"
				      "\t\tmapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
				      "\tfi\n"
				      "}\n";

int generate_completion(void)
{
	const char *name = cli_program->name;

	printf("# SPDX-License-Identifier: MIT\n# bash completion, made from the verb tables of %s: do not edit.\n"
	       "_%s()\n{\n",
	       name, name);
	fputs("\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
	      "\tlocal verb=${COMP_WORDS[1]} sub=\"\" opts=\"\" kind=\"\" words=\"\" at=$COMP_CWORD help=0\n"
	      "\tCOMPREPLY=()\n"
	      "\tif [[ $verb == help ]] && ((at > 1)); then\n\t\thelp=1 at=$((at - 1)) verb=${COMP_WORDS[2]}\n\tfi\n"
	      "\tif ((at == 1)); then\n\t\tCOMPREPLY=($(compgen -W \"",
	      stdout);
	fputs("help --version", stdout);
	print_first_words();
	fputs("\" -- \"$cur\"))\n\t\treturn\n\tfi\n\tcase $verb in\n", stdout);
	print_families();
	fputs("\tesac\n"
	      "\tif [[ -n $sub ]] && ((at == 2)); then\n"
	      "\t\tCOMPREPLY=($(compgen -W \"$sub\" -- \"$cur\"))\n"
	      "\t\treturn\n"
	      "\tfi\n"
	      "\t((help)) && return\n"
	      "\tif [[ -n $sub ]]; then\n"
	      "\t\tverb=\"$verb ${COMP_WORDS[2]}\"\n\tfi\n"
	      "\tcase $verb in\n",
	      stdout);
	for (size_t i = 0; cli_program->verbs[i]; i++)
		print_verb_case(cli_program->verbs[i]);
	fputs(completion_tail, stdout);
	printf("complete -F _%s %s\n", name, name);
	return EXIT_DONE;
}
