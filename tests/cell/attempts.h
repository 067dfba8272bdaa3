/* SPDX-License-Identifier: MIT */
/* What a parser might try that was taken over. */
#ifndef TESTS_CELL_ATTEMPTS_H
#define TESTS_CELL_ATTEMPTS_H

#include <sys/types.h>

/* Where the cell stands. */
struct place {
	char folder[64], image[96],
		made[96]; /* image: there, and granted; made: not there, and may be made through the broker */
	int socket;	  /* connected, and kept open */
	pid_t broker;
};

struct attempt {
	const char *name;
	long (*call)(const struct place *place); /* returns as a system call does, with errno */
};

/* Ends with a NULL name. */
extern const struct attempt attempts[];

#endif
