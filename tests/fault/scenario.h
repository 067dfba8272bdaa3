/* SPDX-License-Identifier: MIT */
/* What the fault tests do to an image, step by step, on the setups of the crash tests. */
#ifndef TESTS_SCENARIO_H
#define TESTS_SCENARIO_H

#include "program.h"

struct scenario {
	const char *name;
	char setup;
	bool unclean;	   /* starts from an image that was not closed */
	const char *steps; /* operations of program.h, and those of scenario.c */
};

const struct scenario *scenario_at(unsigned i); /* NULL past the end */
/* Runs one step. As an operation's run(); steps that read set *code to what they returned. */
int scenario_step(struct machine *m, const char *name, struct img_error *err);

#endif
