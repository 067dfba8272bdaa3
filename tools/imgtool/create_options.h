/* SPDX-License-Identifier: MIT */
/* What verbs that make images have in common (create, convert, measure). */
#ifndef IMGTOOL_CREATE_OPTIONS_H
#define IMGTOOL_CREATE_OPTIONS_H

#include "args.h"

/* The format that a new file gets: as asked for, or by its name (.vdi, .img ...), else limg. path may be NULL. */
const char *create_format(const char *asked, const char *path);

/* Is one of the -o options "help"? */
bool create_is_help(const char *options);
/* Prints the options of a format. Returns an exit status. */
int create_print_help(const struct cli_verb *verb, const char *format);

/* cli_fail() for a call that makes a file: says how to replace one that exists. */
int create_fail(const char *path, const struct img_error *err);

#endif
