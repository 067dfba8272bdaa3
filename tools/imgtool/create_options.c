/* SPDX-License-Identifier: MIT */
/* See create_options.h. */
#include "create_options.h"

#include <string.h>
#include <strings.h>

const char *create_format(const char *asked, const char *path)
{
	static const char *const others[][2] = { { "img", "raw" }, { "hdd", "parallels" }, { "vpc", "vhd" } };
	const char *end = path ? strrchr(path, '.') : NULL, *format;

	if (asked)
		return asked;
	if (!end || end == path || strchr(end, '/'))
		return "limg";
	for (size_t i = 0; (format = img_format_name(i)); i++) {
		if (strcasecmp(end + 1, format) == 0)
			return format;
	}
	for (size_t i = 0; i < ARRAY_LEN(others); i++) {
		if (strcasecmp(end + 1, others[i][0]) == 0 && img_format_options(others[i][1]))
			return others[i][1];
	}
	return "limg";
}

bool create_is_help(const char *options)
{
	for (const char *at = options; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
		size_t bytes = strcspn(at, ",");

		if ((bytes == 4 && strncmp(at, "help", 4) == 0) || (bytes == 1 && *at == '?'))
			return true;
	}
	return false;
}

int create_print_help(const struct cli_verb *verb, const char *format)
{
	const char *help = img_format_options(format);

	if (!help)
		return cli_usage_error(verb, "there is no format '%s'", format);
	if (help[0] == '\0') {
		printf("The format %s has no options.\n", format);
		return EXIT_DONE;
	}
	printf("Options of the format %s:\n", format);
	while (*help) {
		int key = (int)strcspn(help, "=\n"), line = (int)strcspn(help, "\n");

		if (key < line)
			printf("  %-16.*s %.*s\n", key, help, line - key - 1, help + key + 1);
		else
			printf("  %.*s\n", line, help);
		help += line + (help[line] == '\n');
	}
	return EXIT_DONE;
}

int create_fail(const char *path, const struct img_error *err)
{
	if (err->code != IMG_E_EXISTS || strstr(err->msg, "--force"))
		return cli_fail(path, err);
	cli_message(path, "the file exists: remove it, or replace it with --force");
	return cli_status(err->code);
}
