/* SPDX-License-Identifier: MIT */
/*
 * The command line: one table per verb, from which parsing, usage, manual page and shell completion are made. What
 * belongs to a program (its name, its verbs, the options that they share) stands in a struct cli_program.
 *
 * A verb owns a struct of its arguments that begins with the struct of the program's common arguments; its options name
 * their place in it by offset. The parser fills the zeroed struct and collects the operands; options and operands may
 * be mixed, "--" ends the options, and an argument of '-' and a digit is an operand (resize FILE -1G).
 */
#ifndef TOOLS_CLI_H
#define TOOLS_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "libimg.h"

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* What scripts rely on; see the manual pages. A program may have more of them. */
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

#define CLI_FORMAT "FMT" /* metavar of options whose value is the name of a format */

/* How the value of an option is read, and what stands at its offset. */
enum option_kind {
	OPTION_FLAG,   /* bool; no value */
	OPTION_TEXT,   /* const char *; with CLI_FORMAT the name of a format */
	OPTION_LIST,   /* char *, malloc()ed: values of repeated options joined by ',' */
	OPTION_EACH,   /* struct each_arg: values of repeated options, one by one */
	OPTION_SIZE,   /* struct size_arg: bytes, with K, M, G, T */
	OPTION_NUMBER, /* struct size_arg: plain number */
	OPTION_CHOICE, /* const char *: one of metavar's words, separated by '|' */
	OPTION_WORD,   /* as CHOICE, but the value only comes after '=' and may be left out: then the first word */
};

struct size_arg {
	uint64_t value;
	bool given;
};

#define EACH_MAX 16
struct each_arg {
	const char *value[EACH_MAX];
	unsigned nr;
};

struct cli_option {
	const char *name; /* long name without "--" */
	char letter;	  /* 0: none */
	enum option_kind kind;
	const char *metavar; /* NULL for flags. FILE, PARENT, IMAGE and FMT are completed by the shell */
	const char *help;
	size_t offset;
};

/* An option of many verbs. */
struct cli_common_option {
	unsigned need; /* bit of cli_verb.common by which a verb has it, 0: every verb */
	unsigned deny; /* bit of cli_verb.common: known there only to say that it makes no sense, and not documented */
	struct cli_option option;
};

struct cli_verb {
	const char *name;     /* "convert", "snapshot create" */
	const char *operands; /* "SRC[@SNAP] DST"; its first words are completed as files */
	const char *summary;  /* one line, no full stop */
	const char *details;  /* paragraphs separated by blank lines */
	const char *example;  /* command lines, without prompt */
	unsigned min_operands, max_operands;
	unsigned common; /* bits of the program's common options */
	const struct cli_option *options;
	size_t nr_options;
	size_t args_bytes; /* at least the program's common arguments */
	/* Returns an enum exit_status. args is the verb's struct. */
	int (*run)(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands);
};

struct cli_program {
	const char *name;
	const struct cli_verb *const *verbs; /* NULL-terminated, in the order of the manual */
	const struct cli_common_option *common;
	size_t nr_common;
	unsigned all_common; /* every bit of cli_verb.common that brings an option */
	/* Judges the common arguments of a verb before it runs; returns an enum exit_status. May be NULL. */
	int (*check)(const struct cli_verb *verb, const void *args);
	const char *intro;	 /* of the overview, one paragraph before the last sentence */
	const char *statuses;	 /* last line of the overview */
	const char *man_head;	 /* roff: from NAME to the head of VERBS */
	const char *man_options; /* roff: what is said before the common options are listed */
	const char *man_tail;	 /* roff: from EXIT STATUS to the end */
};

/* The program that runs: set by cli_main(), or by tests. Never NULL. */
extern const struct cli_program *cli_program;

/* Finds the verb and runs it; "help", -h, --version, --generate-man and --generate-completion are handled as well. */
int cli_main(const struct cli_program *program, int argc, char **argv);

/* The i-th option that a verb knows, its own first, then the common ones; NULL past the end. */
const struct cli_option *cli_option_at(const struct cli_verb *verb, size_t i);
/* Is it in the verb's documentation? See cli_common_option.deny. */
bool cli_is_offered(const struct cli_verb *verb, const struct cli_option *option);

/* Parses argv (without program and verb) and runs the verb. */
int cli_run(const struct cli_verb *verb, int argc, char **argv);

void cli_usage(const struct cli_verb *verb, FILE *out);
int generate_man(void);	       /* manual page on stdout */
int generate_completion(void); /* bash completion on stdout */

/* Sizes: decimal digits with an optional fraction and K, M, G, T, P, or 0x and hex digits. False: not a size. */
bool cli_parse_size(const char *text, uint64_t *out);

/* "PROGRAM: VERB: message: see PROGRAM VERB -h" on stderr. Returns EXIT_USAGE. */
int cli_usage_error(const struct cli_verb *verb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "PROGRAM: FILE: message" on stderr; file may be NULL. Control characters are escaped. */
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

/* Static analysis looks at one file at a time: here it learns that these never return success. */
#if (defined(__clang_analyzer__) || defined(IMG_ANALYZER)) && !defined(TOOLS_CLI_C)
#define cli_usage_error(...) ((void)cli_usage_error(__VA_ARGS__), EXIT_USAGE)
#define cli_fail(...)	     ((void)cli_fail(__VA_ARGS__), EXIT_SYSTEM)
#define cli_fail_errno(...)  ((void)cli_fail_errno(__VA_ARGS__), EXIT_SYSTEM)
#endif

#endif
