/* SPDX-License-Identifier: MIT */
/*
 * The command line: one table per verb, from which parsing, usage, manual page and shell completion are made.
 *
 * A verb owns a struct of its arguments that begins with struct common_args; its options name their place in it by
 * offset. The parser fills the zeroed struct and collects the operands; options and operands may be mixed, "--" ends
 * the options, and an argument of '-' and a digit is an operand (resize FILE -1G).
 */
#ifndef IMGTOOL_CLI_H
#define IMGTOOL_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "libimg.h"

#define PROGRAM	     "imgtool"
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* What scripts rely on; see the manual page. */
enum exit_status {
	EXIT_DONE = 0,
	EXIT_DIFFERENT = 1,
	EXIT_USAGE = 2,
	EXIT_SYSTEM = 3,
	EXIT_DAMAGED = 4,
	EXIT_IN_USE = 5,
	EXIT_REFUSED = 6,
	EXIT_KEY = 7,
};

/* How the value of an option is read, and what stands at its offset. */
enum option_kind {
	OPTION_FLAG,   /* bool; no value */
	OPTION_TEXT,   /* const char * */
	OPTION_LIST,   /* char *, malloc()ed: values of repeated options joined by ',' */
	OPTION_SIZE,   /* struct size_arg: bytes, with K, M, G, T */
	OPTION_NUMBER, /* struct size_arg: plain number */
	OPTION_CHOICE, /* const char *: one of metavar's words, separated by '|' */
	OPTION_WORD,   /* as CHOICE, but the value only comes after '=' and may be left out: then the first word */
};

struct size_arg {
	uint64_t value;
	bool given;
};

struct cli_option {
	const char *name; /* long name without "--" */
	char letter;	  /* 0: none */
	enum option_kind kind;
	const char *metavar; /* NULL for flags. FILE, PARENT and FMT are completed by the shell */
	const char *help;
	size_t offset;
};

/* Heads every verb's arguments. Not every verb offers all of them (enum common_options). */
struct common_args {
	const char *format;
	const char *snapshot;
	bool force_share;
	const char *allow_refs;
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
};

struct cli_verb {
	const char *name;     /* "convert", "snapshot create" */
	const char *operands; /* "SRC[@SNAP] DST"; its first words are completed as files */
	const char *summary;  /* one line, no full stop */
	const char *details;  /* paragraphs separated by blank lines */
	const char *example;  /* command lines, without prompt */
	unsigned min_operands, max_operands;
	unsigned common; /* enum common_options */
	const struct cli_option *options;
	size_t nr_options;
	size_t args_bytes; /* at least sizeof(struct common_args) */
	/* Returns an enum exit_status. args is the verb's struct. */
	int (*run)(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands);
};

extern const struct cli_verb *const cli_verbs[]; /* NULL-terminated, in the order of the manual; main.c */

/* The i-th option that a verb knows, its own first, then the common ones; NULL past the end. */
const struct cli_option *cli_option_at(const struct cli_verb *verb, size_t i);
/* Is it in the verb's documentation? -U is known to verbs that write only to say that it makes no sense there. */
bool cli_is_offered(const struct cli_verb *verb, const struct cli_option *option);

/* Parses argv (without program and verb) and runs the verb. */
int cli_run(const struct cli_verb *verb, int argc, char **argv);

void cli_usage(const struct cli_verb *verb, FILE *out);
int generate_man(void);	       /* manual page on stdout */
int generate_completion(void); /* bash completion on stdout */

/* Sizes: decimal digits with an optional fraction and K, M, G, T, P, or 0x and hex digits. False: not a size. */
bool cli_parse_size(const char *text, uint64_t *out);

/* "imgtool: VERB: message: see imgtool VERB -h" on stderr. Returns EXIT_USAGE. */
int cli_usage_error(const struct cli_verb *verb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "imgtool: FILE: message" on stderr; file may be NULL. Control characters are escaped. */
void cli_message(const char *file, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Reports a failed library call and returns the status that belongs to its code. */
int cli_fail(const char *file, const struct img_error *err);
int cli_status(int code);
/* Of a verb's two files the one that the message is about: second where it or its backing is named, else first. */
const char *cli_blamed(const struct img_error *err, const char *first, const struct img *second);

/* Is the value of an OPTION_CHOICE or OPTION_WORD this word? choice may be NULL (option not given). */
bool cli_is(const char *choice, const char *word);

/* Reports errno after "what" failed. Returns EXIT_SYSTEM. */
int cli_fail_errno(const char *file, const char *what);

#endif
