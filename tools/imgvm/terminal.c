/* SPDX-License-Identifier: MIT */
/*
 * See terminal.h. The mode to go back to stands in variables of the file, because it is a signal handler that may need
 * it: a terminal is one, as the process is.
 */
#include "terminal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved_mode;
static volatile sig_atomic_t saved_fd = -1; /* -1: nothing to give back */

void terminal_init(struct terminal *t, int fd)
{
	*t = (struct terminal){ .fd = fd, .is_tty = fd >= 0 && isatty(fd) };
}

static bool in_foreground(const struct terminal *t)
{
	return tcgetpgrp(t->fd) == getpgrp();
}

void terminal_enter(struct terminal *t)
{
	struct termios mode;

	if (!t->is_tty || !in_foreground(t) || tcgetattr(t->fd, &mode) != 0)
		return;
	if (!t->raw)
		saved_mode = mode;
	saved_fd = t->fd;
	cfmakeraw(&mode);
	mode.c_oflag |= OPOST; /* our own messages end their lines as usual; the guest's \r\n survives it */
	t->raw = tcsetattr(t->fd, TCSANOW, &mode) == 0;
}

void terminal_leave(struct terminal *t)
{
	if (t->raw && in_foreground(t))
		tcsetattr(t->fd, TCSANOW, &saved_mode);
	saved_fd = -1;
	t->raw = false;
}

bool terminal_readable(struct terminal *t)
{
	if (t->fd < 0)
		return false;
	if (!t->is_tty)
		return true;
	if (!in_foreground(t))
		return false;
	if (!t->raw)
		terminal_enter(t);
	return true;
}

enum terminal_command terminal_filter(struct terminal *t, char *buf, size_t *bytes)
{
	enum terminal_command command = TERMINAL_NONE;
	size_t kept = 0;

	for (size_t i = 0; i < *bytes && command == TERMINAL_NONE; i++) {
		char c = buf[i];

		if (!t->escaped && c == TERMINAL_ESCAPE) {
			t->escaped = true;
			continue;
		}
		if (!t->escaped || c == TERMINAL_ESCAPE)
			buf[kept++] = c;
		else if (c == 'x')
			command = TERMINAL_QUIT;
		else
			command = TERMINAL_HELP;
		t->escaped = false;
	}
	*bytes = kept;
	return command;
}

enum terminal_command terminal_read(struct terminal *t, char *buf, size_t cap, size_t *got)
{
	ssize_t n = read(t->fd, buf, cap);

	*got = 0;
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return TERMINAL_NONE;
	if (n <= 0) {
		terminal_leave(t);
		t->fd = -1;
		return TERMINAL_NONE;
	}
	*got = (size_t)n;
	return t->is_tty ? terminal_filter(t, buf, got) : TERMINAL_NONE;
}

void terminal_rescue(void)
{
	if (saved_fd >= 0)
		tcsetattr(saved_fd, TCSANOW, &saved_mode);
}

static void handle_crash(int signal_nr)
{
	terminal_rescue();
	/* SA_RESETHAND: the same signal now has its usual effect */
	raise(signal_nr);
}

void terminal_guard(void)
{
	static const int numbers[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };
	struct sigaction action = { .sa_handler = handle_crash };

	action.sa_flags = (int)(SA_RESETHAND | SA_NODEFER);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaction(numbers[i], &action, NULL);
}
