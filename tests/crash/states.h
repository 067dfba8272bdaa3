/* SPDX-License-Identifier: MIT */
/*
 * All the states in which a power failure could leave the disk at one moment of a log. A walker follows the log and
 * keeps the durable state of the host and the list of entries that are volatile; walker_states() calls back with disks
 * on which some of these are there, some are not, and some are there in part.
 */
#ifndef TESTS_STATES_H
#define TESTS_STATES_H

#include "memhost.h"

struct walker {
	struct memhost durable;
	const struct crash_log *log;
	const struct memhost *live; /* knows the names of the log */
	size_t pos;		    /* entries before it are done */
	size_t *loose;		    /* volatile ones among them, ascending */
	size_t nr_loose, cap_loose;
};

enum states_effort {
	STATES_FEW,	 /* prefixes, single losses, some tears: for recoveries of recoveries */
	STATES_THOROUGH, /* the full list of states.c */
};

/* disk belongs to the callback's caller. Nonzero ends the enumeration. */
typedef int (*state_fn)(void *ctx, uint64_t number, struct memhost *disk);

/* start: the disk before the first entry of the log. */
void walker_init(struct walker *w, const struct memhost *start, const struct crash_log *log,
		 const struct memhost *live);
void walker_destroy(struct walker *w);
/* Entries before pos are done. */
void walker_advance(struct walker *w, size_t pos);
/*
 * Numbers are the same in every run. garbage: writes may also leave rubbish in their place (not for formats that
 * overwrite in place). Returns what fn returned last.
 */
int walker_states(struct walker *w, enum states_effort effort, bool garbage, state_fn fn, void *ctx);
/* The fates behind a number, for a report. */
void walker_describe(struct walker *w, enum states_effort effort, bool garbage, uint64_t number, char *out,
		     size_t out_bytes);

#endif
