/* SPDX-License-Identifier: MIT */
/* What imgvm run is told: from the command line to what run.c and machine.c want to know. */
#ifndef IMGVM_OPTIONS_H
#define IMGVM_OPTIONS_H

#include "args.h"
#include "machine.h"
#include "sandbox.h"
#include "target.h"

struct run_args {
	struct common_args common; /* unused: run has no common options */
	struct size_arg memory, cpus;
	const char *kernel, *initrd, *append, *bios;
	struct each_arg disks, limits;
	const char *format, *allow_refs, *scratch;
	bool transient, read_only, revert, allow_clone, no_reboot, json;
	struct size_arg iops, bps, timeout;
	const char *serial, *console, *debug_port, *sandbox;
};

struct run_options {
	struct machine_options machine;		   /* but what run.c sets: console, debug_fd, opened */
	struct target target[DISKS_MAX];	   /* the strings of machine.disk */
	const char *serial, *console, *debug_port; /* as in sink_open(); NULL: nowhere */
	bool input_to_console; /* what is typed goes to the virtio console, not to the serial port */
	bool no_reboot, json;
	unsigned timeout_s; /* 0: none */
	enum confine_mode sandbox;
};

#define RUN_OPTIONS 24
extern const struct cli_option run_option_table[RUN_OPTIONS];

/* Judges args. Returns an exit status; after EXIT_DONE the caller calls options_free(). The strings of args must live
 * as long as out. */
int options_parse(const struct cli_verb *verb, const struct run_args *args, const char *image, struct run_options *out);
void options_free(struct run_options *opts);

#endif
