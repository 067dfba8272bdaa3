/* SPDX-License-Identifier: MIT */
/* See convert_pipe.h. */
#include "convert_pipe.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

bool is_stdout(const char *operand)
{
	return strcmp(operand, "-") == 0;
}

int claim_stdout(const struct cli_verb *verb, int *fd)
{
	if (isatty(STDOUT_FILENO))
		return cli_usage_error(verb, "an image is nothing for a terminal: lead stdout into a pipe or a file");
	*fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	return *fd >= 0 ? EXIT_DONE : cli_fail_errno(STDOUT_NAME, "cannot be duplicated");
}
