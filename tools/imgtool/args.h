/* SPDX-License-Identifier: MIT */
/* What the verbs of imgtool have in common: the program's name, and the options that many of them take. */
#ifndef IMGTOOL_ARGS_H
#define IMGTOOL_ARGS_H

#include "cli.h"

#define PROGRAM "imgtool"

/* Heads every verb's arguments. Not every verb offers all of them (enum common_options). */
struct common_args {
	const char *format;
	const char *snapshot;
	bool force_share;
	const char *allow_refs;
	struct each_arg limits;
	bool quiet;
	const char *sandbox;
	const char *progress;
	bool json;
};

/* Options beyond those that every verb has. */
enum common_options {
	WITH_SNAPSHOT = 1u << 0,  /* --snapshot */
	WITH_PROGRESS = 1u << 1,  /* -p, --progress */
	WITH_JSON = 1u << 2,	  /* --json */
	NO_FORCE_SHARE = 1u << 3, /* the verb writes: -U is a usage error */
	WRITES_PARENT = 1u << 4,  /* no option: the verb writes what its image names as its parent (opened_begin()) */
};

#endif
