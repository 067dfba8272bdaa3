/* SPDX-License-Identifier: MIT */
/* What the verbs of imgvm have in common: the program's name, exit statuses of its own, and the options of verbs that
 * talk to a machine. */
#ifndef IMGVM_ARGS_H
#define IMGVM_ARGS_H

#include "cli.h"

#define PROGRAM "imgvm"

/* How a machine ended, beside enum exit_status; 0 is a power-off by the guest. */
enum run_status {
	RUN_QUIT = 8,	 /* the user wanted it: Ctrl-a x, imgvm quit, a signal */
	RUN_TIMEOUT = 9, /* --timeout */
	RUN_RESET = 10,	 /* the guest reset itself, with --no-reboot */
	RUN_STUCK = 11,	 /* a processor cannot go on */
	RUN_MAX = RUN_STUCK,
};

struct common_args {
	bool json;
	struct size_arg pid;
};

enum common_options {
	WITH_JSON = 1u << 0, /* --json */
	WITH_PID = 1u << 1,  /* --pid */
};

#endif
