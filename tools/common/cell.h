/* SPDX-License-Identifier: MIT */
/*
 * The cell: where a program looks at images from strangers. It locks itself in (Landlock, seccomp, limits) and keeps a
 * socket to a process that it made before, the broker, which opens files for it by rules that were fixed then
 * (img_host_serve()).
 */
#ifndef TOOLS_CELL_H
#define TOOLS_CELL_H

#include <sys/types.h>

#include "confine.h"
#include "libimg.h"

struct cell_rules {
	enum confine_mode mode;
	struct img_host_rules host; /* the broker's; peer_pid is filled in */
	uint64_t memory_bytes;	    /* of address space; 0: no limit */
	int keep;		    /* a descriptor that stays open beside 0 to 2, or -1; all others are closed */
	const char *name;	    /* of the program, for the line that tells of a forbidden call; static */
	int status;		    /* the exit status then */
};

struct cell {
	struct img_host *host; /* for the options of what opens images; NULL: not confined, they open files themselves */
	pid_t broker;
	bool landlock, seccomp; /* are in force */
};

/*
 * Nothing is confined in mode off, and in mode auto where neither Landlock nor seccomp can be had. Call it with one
 * thread, with nothing unwritten in stdio's buffers. Errors: UNSUPPORTED (mode require: what lacks), IO, NOMEM. After a
 * failure the process may be half confined: end it.
 */
int cell_enter(const struct cell_rules *rules, struct cell *cell, struct img_error *err);
/* After the last image is closed: ends the broker. The process stays confined. */
void cell_leave(struct cell *cell);

/* Why mode require would refuse; NULL: it would not. */
const char *cell_lacks(void);

#endif
