/* SPDX-License-Identifier: MIT */
/*
 * The user's keyboard as the guest's. On a terminal every key goes to the guest (raw mode) but Ctrl-a, which begins a
 * command: x quits, Ctrl-a sends itself. The terminal's mode is given back whatever ends the process, but for what
 * nobody can catch. What is no terminal is handed on as it stands, to its end.
 */
#ifndef IMGVM_TERMINAL_H
#define IMGVM_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>

#define TERMINAL_ESCAPE 0x01 /* Ctrl-a */

enum terminal_command {
	TERMINAL_NONE,
	TERMINAL_QUIT,
	TERMINAL_HELP,
};

struct terminal {
	int fd;	      /* -1: no input, or its end has come */
	bool is_tty;  /* and ours: else it is only read */
	bool raw;     /* its mode is ours now */
	bool escaped; /* Ctrl-a was the last key */
};

/* fd is borrowed. */
void terminal_init(struct terminal *t, int fd);
/* Raw mode, where it is a terminal and we are in its foreground. Again after SIGCONT. */
void terminal_enter(struct terminal *t);
/* As it was before. */
void terminal_leave(struct terminal *t);
/* May it be read? A job in the background would be stopped by that. */
bool terminal_readable(struct terminal *t);
/* Reads keys for the guest into buf, at most cap; *got is how many. Returns a command that was among them: what came
 * after it is lost. At the end of input fd is -1. */
enum terminal_command terminal_read(struct terminal *t, char *buf, size_t cap, size_t *got);
/* Takes the commands out of what was typed, in place. */
enum terminal_command terminal_filter(struct terminal *t, char *buf, size_t *bytes);

/* A signal that ends the process (SIGSEGV, SIGABRT...) gives the mode back first. Once. */
void terminal_guard(void);
/* Gives the mode back, from a signal handler. */
void terminal_rescue(void);

#endif
