/* SPDX-License-Identifier: MIT */
/* See create_options.h. */
#include "create_options.h"

#include <string.h>
#include <strings.h>

static bool ends_in(const char *path, const char *suffix)
{
	size_t bytes = strlen(path), suffix_bytes = strlen(suffix);

	return bytes > suffix_bytes && strcasecmp(path + bytes - suffix_bytes, suffix) == 0;
}

const char *create_format(const char *asked, const char *path)
{
	if (asked)
		return asked;
	if (path && ends_in(path, ".qcow2"))
		return "qcow2";
	return path && (ends_in(path, ".raw") || ends_in(path, ".img")) ? "raw" : "limg";
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
