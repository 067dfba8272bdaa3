/* SPDX-License-Identifier: MIT */
/*
 * What a command line may say. The first byte of an input chooses a parser, the rest is its text; where that is several
 * arguments they are lines. Nothing is opened: verbs are parsed, not run.
 *
 *   s  a size                    t  operands that name images and snapshots
 *   c  a command line of imgtool o  format, size, -o options
 *   p  a policy of inspect       v  a command line of imgvm run
 *   l  limits
 */
#ifndef FUZZ_ARGUMENTS_H
#define FUZZ_ARGUMENTS_H

#include "fuzz.h"
#include "output.h"

#include "cli.h"

#define MAX_ARGS 40

struct lines {
	char *arg[MAX_ARGS + 1]; /* NULL-terminated */
	int nr;
	char *text; /* owned */
};
void lines_take(struct lines *l, const char *text);
void lines_free(struct lines *l);

/* What a parser made of its text, to be compared with what it makes of it again. */
struct answer {
	int status;
	char text[2048];
};
void answer_add(struct answer *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* From here to the end what is printed is kept: messages must be whole lines without control characters. */
void quiet_begin(void);
void quiet_end(void);

/* What the option table filled in is among what it may fill in. */
void check_options(const struct cli_verb *verb, const void *args, struct answer *a);

void parse_size(const char *text, struct answer *a);
void parse_imgtool(const char *text, struct answer *a);
void parse_policy(const char *text, struct answer *a);
void parse_limits(const char *text, struct answer *a);
void parse_targets(const char *text, struct answer *a);
void parse_format_options(const char *text, struct answer *a);
void parse_imgvm(const char *text, struct answer *a); /* nothing where imgvm is not built */

#endif
