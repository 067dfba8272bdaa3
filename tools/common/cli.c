/* SPDX-License-Identifier: MIT */
/* Parsing by the verb tables, and the one form in which errors are printed. See cli.h. */
#define TOOLS_CLI_C
#include "cli.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

#define TEXT_BYTES (2u * PATH_MAX + 1024u) /* of a message, with two names */

static const struct cli_program nobody = { .name = "?" };
const struct cli_program *cli_program = &nobody;

static const struct cli_option help_option = { "help", 'h', OPTION_FLAG, NULL, "print this and exit", SIZE_MAX };

static const struct cli_option *common_option(const struct cli_verb *verb, size_t i)
{
	for (size_t k = 0; k < cli_program->nr_common; k++) {
		unsigned need = cli_program->common[k].need;

		if (need != 0 && (verb->common & need) == 0)
			continue;
		if (i-- == 0)
			return &cli_program->common[k].option;
	}
	return i == 0 ? &help_option : NULL;
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

int cli_status(int code)
{
	switch ((enum img_code)code) {
	case IMG_OK: return EXIT_DONE;
	case IMG_E_INVALID: return EXIT_USAGE;
	case IMG_E_CORRUPT:
	case IMG_E_FORMAT: return EXIT_DAMAGED;
	case IMG_E_BUSY: return EXIT_IN_USE;
	case IMG_E_REFUSED:
	case IMG_E_CHANGED:
	case IMG_E_UNSUPPORTED:
	case IMG_E_LIMIT:
	case IMG_E_EXISTS: return EXIT_REFUSED;
	case IMG_E_KEY: return EXIT_KEY;
	case IMG_E_IO:
	case IMG_E_NOSPC:
	case IMG_E_NOENT:
	case IMG_E_NOMEM:
	case IMG_E_POISONED:
	case IMG_E_READONLY:
	case IMG_E_CANCELLED: break;
	}
	return EXIT_SYSTEM;
}

static void print_line(const char *file, const char *text)
{
	fprintf(stderr, "%s: ", cli_program->name);
	if (file) {
		output_escaped(stderr, file);
		fputs(": ", stderr);
	}
	output_escaped(stderr, text);
	fputc('\n', stderr);
}

void cli_message(const char *file, const char *fmt, ...)
{
	char text[TEXT_BYTES];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	print_line(file, text);
}

int cli_usage_error(const struct cli_verb *verb, const char *fmt, ...)
{
	char text[TEXT_BYTES - 256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	cli_message(verb->name, "%s: see %s %s -h", text, cli_program->name, verb->name);
	return EXIT_USAGE;
}

/* The library's messages begin with the file they are about: ours is not named twice, an inner file is named after
 * ours. */
int cli_fail(const char *file, const struct img_error *err)
{
	const char *msg = file ? img_error_reason(err, file) : NULL;

	if (!msg)
		msg = err->msg[0] != '\0' ? err->msg : img_strerror(err->code);

	if (err->code == IMG_E_CANCELLED)
		msg = "interrupted";
	if (err->offset != UINT64_MAX && !strstr(msg, "0x"))
		cli_message(file, "%s (offset 0x%" PRIx64 ")", msg, err->offset);
	else
		cli_message(file, "%s", msg);
	return cli_status(err->code);
}

const char *cli_blamed(const struct img_error *err, const char *first, const struct img *second)
{
	for (const struct img *layer = second; layer; layer = img_backing(layer))
		if (img_error_reason(err, img_path(layer)))
			return img_path(second);
	return first;
}

int cli_fail_errno(const char *file, const char *what)
{
	cli_message(file, "%s: %s", what, strerror(errno));
	return EXIT_SYSTEM;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static bool size_unit(const char *suffix, uint64_t *unit)
{
	static const char units[] = "KMGTP";
	const char *at;

	*unit = 1;
	if (suffix[0] == '\0' || strcmp(suffix, "B") == 0)
		return true;
	at = strchr(units, suffix[0] & ~0x20);
	if (!at || *at == '\0') /* a space without its bit is the end of units */
		return false;
	*unit = UINT64_C(1) << (10 * (at - units + 1));
	return suffix[1] == '\0' || strcmp(suffix + 1, "iB") == 0;
}

bool cli_parse_size(const char *text, uint64_t *out)
{
	uint64_t value, unit, fraction = 0, scale = 1;
	const char *digits = text;
	char *end;

	if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
		errno = 0;
		*out = strtoull(text + 2, &end, 16);
		return text[2] != '\0' && strspn(text + 2, "0123456789abcdefABCDEF") == strlen(text + 2) && errno == 0;
	}
	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	value = strtoull(digits, &end, 10);
	if (errno != 0)
		return false;
	if (*end == '.') {
		for (end++; *end >= '0' && *end <= '9'; end++) {
			if (scale >= 1000)
				return false; /* three digits are plenty, and fit beside any unit */
			fraction = fraction * 10 + (uint64_t)(*end - '0');
			scale *= 10;
		}
		if (scale == 1)
			return false;
	}
	if (!size_unit(end, &unit) || (unit == 1 && scale > 1))
		return false;
	return !__builtin_mul_overflow(value, unit, &value) &&
	       !__builtin_add_overflow(value, unit * fraction / scale, out);
}

/* Is value one of the words of "a|b|c"? */
static const char *choose(const char *words, const char *value, size_t value_bytes)
{
	for (const char *word = words; word; word = strchr(word, '|') ? strchr(word, '|') + 1 : NULL) {
		if (strcspn(word, "|") == value_bytes && strncmp(word, value, value_bytes) == 0)
			return word;
	}
	return NULL;
}

bool cli_is(const char *choice, const char *word)
{
	return choice && strcspn(choice, "|") == strlen(word) && strncmp(choice, word, strlen(word)) == 0;
}

static int append_list(char **list, const char *value)
{
	size_t old = *list ? strlen(*list) + 1 : 0;
	char *joined = realloc(*list, old + strlen(value) + 1);

	if (!joined)
		return cli_fail_errno(NULL, "options");
	if (old)
		joined[old - 1] = ',';
	memcpy(joined + old, value, strlen(value) + 1);
	*list = joined;
	return EXIT_DONE;
}

static int append_each(const struct cli_verb *verb, const struct cli_option *option, const char *value,
		       struct each_arg *each)
{
	if (each->nr == EACH_MAX)
		return cli_usage_error(verb, "--%s was given more than %d times", option->name, EACH_MAX);
	each->value[each->nr++] = value;
	return EXIT_DONE;
}

static int set_number(const struct cli_verb *verb, const struct cli_option *option, const char *value,
		      struct size_arg *out)
{
	if (option->kind == OPTION_NUMBER && strspn(value, "0123456789") != strlen(value))
		return cli_usage_error(verb, "--%s: '%s' is not a number", option->name, value);
	if (!cli_parse_size(value, &out->value))
		return cli_usage_error(verb, "--%s: '%s' is not a size (such as 4096, 64K, 1.5G)", option->name, value);
	out->given = true;
	return EXIT_DONE;
}

static int set_choice(const struct cli_verb *verb, const struct cli_option *option, const char *value, const char **out)
{
	*out = choose(option->metavar, value, strlen(value));
	if (!*out)
		return cli_usage_error(verb, "--%s: '%s' is not one of %s", option->name, value, option->metavar);
	return EXIT_DONE;
}

static int set_text(const struct cli_verb *verb, const struct cli_option *option, const char *value, const char **out)
{
	if (strcmp(option->metavar, CLI_FORMAT) == 0 && !img_format_options(value))
		return cli_usage_error(verb, "--%s: there is no format '%s'", option->name, value);
	*out = value;
	return EXIT_DONE;
}

static bool takes_value(const struct cli_option *option)
{
	return option->kind != OPTION_FLAG && option->kind != OPTION_WORD;
}

/* An option that takes_value(). */
static int set_option(const struct cli_verb *verb, const struct cli_option *option, const char *value, void *args)
{
	void *at = (char *)args + option->offset;

	switch (option->kind) {
	case OPTION_LIST: return append_list(at, value);
	case OPTION_EACH: return append_each(verb, option, value, at);
	case OPTION_SIZE:
	case OPTION_NUMBER: return set_number(verb, option, value, at);
	case OPTION_CHOICE: return set_choice(verb, option, value, at);
	case OPTION_TEXT:
	default: return set_text(verb, option, value, at);
	}
}

/* One that does not; a word may have one behind a '=' all the same (value, or NULL). */
static int set_bare(const struct cli_verb *verb, const struct cli_option *option, const char *value, void *args)
{
	void *at = (char *)args + option->offset;

	if (option->kind == OPTION_FLAG)
		*(bool *)at = true;
	else if (value)
		return set_choice(verb, option, value, at);
	else
		*(const char **)at = option->metavar;
	return EXIT_DONE;
}

/* ---- the command line -------------------------------------------------------------------------------------------- */

const struct cli_option *cli_option_at(const struct cli_verb *verb, size_t i)
{
	return i < verb->nr_options ? &verb->options[i] : common_option(verb, i - verb->nr_options);
}

bool cli_is_offered(const struct cli_verb *verb, const struct cli_option *option)
{
	for (size_t k = 0; k < cli_program->nr_common; k++) {
		if (&cli_program->common[k].option == option)
			return (verb->common & cli_program->common[k].deny) == 0;
	}
	return true;
}

static const struct cli_option *find_long(const struct cli_verb *verb, const char *name, size_t name_bytes)
{
	const struct cli_option *option;

	for (size_t i = 0; (option = cli_option_at(verb, i)) != NULL; i++) {
		if (strlen(option->name) == name_bytes && strncmp(option->name, name, name_bytes) == 0)
			return option;
	}
	return NULL;
}

static const struct cli_option *find_letter(const struct cli_verb *verb, char letter)
{
	const struct cli_option *option;

	for (size_t i = 0; (option = cli_option_at(verb, i)) != NULL; i++) {
		if (option->letter == letter)
			return option;
	}
	return NULL;
}

struct parser {
	const struct cli_verb *verb;
	void *args;
	char **argv;
	int argc, at;
	bool help;
};

static int apply(struct parser *p, const struct cli_option *option, const char *value)
{
	if (option->offset == SIZE_MAX) {
		p->help = true;
		return EXIT_DONE;
	}
	if (!takes_value(option))
		return set_bare(p->verb, option, value, p->args);
	if (!value && p->at + 1 < p->argc)
		value = p->argv[++p->at];
	if (!value)
		return cli_usage_error(p->verb, "--%s needs a value (%s)", option->name, option->metavar);
	return set_option(p->verb, option, value, p->args);
}

static int parse_long(struct parser *p, const char *arg)
{
	size_t name_bytes = strcspn(arg, "=");
	const struct cli_option *option = find_long(p->verb, arg, name_bytes);
	const char *value = arg[name_bytes] == '=' ? arg + name_bytes + 1 : NULL;

	if (!option)
		return cli_usage_error(p->verb, "there is no option --%.*s", (int)name_bytes, arg);
	if (value && option->kind == OPTION_FLAG)
		return cli_usage_error(p->verb, "--%s takes no value", option->name);
	return apply(p, option, value);
}

static int parse_letters(struct parser *p, const char *arg)
{
	for (; *arg; arg++) {
		const struct cli_option *option = find_letter(p->verb, *arg);
		int status;

		if (!option)
			return cli_usage_error(p->verb, "there is no option -%c", *arg);
		status = apply(p, option, takes_value(option) && arg[1] != '\0' ? arg + 1 : NULL);
		if (status != EXIT_DONE)
			return status;
		if (takes_value(option))
			break;
	}
	return EXIT_DONE;
}

/* Moves the operands to the front of argv. */
static int parse(struct parser *p, unsigned *nr_operands)
{
	bool options_end = false;

	*nr_operands = 0;
	for (p->at = 0; p->at < p->argc; p->at++) {
		char *arg = p->argv[p->at];
		int status;

		if (options_end || arg[0] != '-' || arg[1] == '\0' || (arg[1] >= '0' && arg[1] <= '9')) {
			p->argv[(*nr_operands)++] = arg;
			continue;
		}
		if (strcmp(arg, "--") == 0) {
			options_end = true;
			continue;
		}
		status = arg[1] == '-' ? parse_long(p, arg + 2) : parse_letters(p, arg + 1);
		if (status != EXIT_DONE)
			return status;
	}
	return EXIT_DONE;
}

static void free_lists(const struct cli_verb *verb, void *args)
{
	for (size_t i = 0; i < verb->nr_options; i++) {
		if (verb->options[i].kind == OPTION_LIST)
			free(*(char **)(void *)((char *)args + verb->options[i].offset));
	}
}

int cli_run(const struct cli_verb *verb, int argc, char **argv)
{
	struct parser p = { .verb = verb, .argv = argv, .argc = argc };
	unsigned nr_operands;
	int status;

	p.args = calloc(1, verb->args_bytes);
	if (!p.args)
		return cli_fail_errno(NULL, "arguments");
	status = parse(&p, &nr_operands);
	if (p.help) {
		cli_usage(verb, stdout);
		status = EXIT_DONE;
	} else if (status == EXIT_DONE && nr_operands < verb->min_operands) {
		status = cli_usage_error(verb, "expected %s", verb->operands);
	} else if (status == EXIT_DONE && nr_operands > verb->max_operands) {
		status = cli_usage_error(verb, "'%s' is one operand too many", argv[verb->max_operands]);
	} else if (status == EXIT_DONE) {
		status = cli_program->check ? cli_program->check(verb, p.args) : EXIT_DONE;
		if (status == EXIT_DONE)
			status = verb->run(verb, p.args, argv, nr_operands);
	}
	free_lists(verb, p.args);
	free(p.args);
	return status;
}
