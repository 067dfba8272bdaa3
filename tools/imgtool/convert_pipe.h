/* SPDX-License-Identifier: MIT */
/* imgtool convert to stdout: into a pipe or wherever it leads, from front to back. */
#ifndef IMGTOOL_CONVERT_PIPE_H
#define IMGTOOL_CONVERT_PIPE_H

#include <stdbool.h>

#include "cli.h"

#define STDOUT_NAME "stdout" /* in messages */

bool is_stdout(const char *operand);

/* *fd: a duplicate of stdout, the caller's. A terminal is refused. Returns an exit status. */
int claim_stdout(const struct cli_verb *verb, int *fd);

#endif
