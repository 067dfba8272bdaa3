/* SPDX-License-Identifier: MIT */
/* --sandbox: from the first image on a verb runs in a cell (tools/common/cell.h). */
#ifndef IMGTOOL_CONFINED_H
#define IMGTOOL_CONFINED_H

#include "args.h"

enum confined_flags {
	CONFINED_NO_REFS = 1u << 0,	  /* nothing that an image names is opened */
	CONFINED_WRITE_PARENTS = 1u << 1, /* commit */
};

/*
 * Called when the command line is understood and before the first image is opened, with every name that is to be
 * opened, made or replaced; what images name comes under the policy of --allow-refs. From then on nothing else can be
 * opened. Done once: later calls change nothing. Returns an exit status.
 */
int confined_begin(const struct common_args *common, const struct img_grant *names, size_t nr_names, unsigned flags);
/* The same, and the descriptor keep stays open. */
int confined_begin_with(const struct common_args *common, const struct img_grant *names, size_t nr_names, int keep);
/* For the options of what opens or makes images; NULL: not confined. */
struct img_host *confined_host(void);
/* At the end of the program. */
void confined_end(void);

#endif
