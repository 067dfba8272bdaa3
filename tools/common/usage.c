/* SPDX-License-Identifier: MIT */
/* What -h prints, from the same tables that parse the command line. */
#include <string.h>

#include "cli.h"

#define USAGE_COLUMN 28
#define USAGE_WIDTH  100

/* Prints text wrapped at USAGE_WIDTH; the cursor stands at column `at`, further lines begin at `indent`. */
static void print_wrapped(FILE *out, const char *text, int at, int indent)
{
	int column = at, spaces = 0;

	while (*text) {
		int word = (int)strcspn(text, " \n");

		if (word > 0 && column > indent && column + spaces + word > USAGE_WIDTH) {
			fprintf(out, "\n%*s", indent, "");
			column = indent;
			spaces = 0;
		}
		if (word > 0)
			fprintf(out, "%*s%.*s", spaces, "", word, text);
		column += spaces + word;
		text += word;
		spaces = *text == ' ';
		if (*text == '\n') {
			fprintf(out, "\n%*s", text[1] == '\0' || text[1] == '\n' ? 0 : indent, "");
			column = indent;
		}
		text += *text != '\0';
	}
	fputc('\n', out);
}

static void print_option(FILE *out, const struct cli_option *option)
{
	int column = option->letter ? fprintf(out, "  -%c, --%s", option->letter, option->name) :
				      fprintf(out, "      --%s", option->name);

	if (option->kind == OPTION_WORD)
		column += fprintf(out, "[=%s]", option->metavar);
	else if (option->metavar)
		column += fprintf(out, " %s", option->metavar);
	if (column >= USAGE_COLUMN) {
		fputc('\n', out);
		column = 0;
	}
	fprintf(out, "%*s", USAGE_COLUMN - column, "");
	print_wrapped(out, option->help, USAGE_COLUMN, USAGE_COLUMN);
}

void cli_usage(const struct cli_verb *verb, FILE *out)
{
	const struct cli_option *option;

	fprintf(out, "Usage: %s %s [options]%s%s\n\n", cli_program->name, verb->name, verb->operands[0] ? " " : "",
		verb->operands);
	print_wrapped(out, verb->summary, 0, 0);
	if (verb->details) {
		fputc('\n', out);
		print_wrapped(out, verb->details, 0, 0);
	}
	fputs("\nOptions:\n", out);
	for (size_t i = 0; (option = cli_option_at(verb, i)) != NULL; i++) {
		if (cli_is_offered(verb, option))
			print_option(out, option);
	}
	fputs("\nExample:\n", out);
	for (const char *line = verb->example; *line;) {
		int bytes = (int)strcspn(line, "\n");

		fprintf(out, "  %.*s\n", bytes, line);
		line += bytes + (line[bytes] == '\n');
	}
}
