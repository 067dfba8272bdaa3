/* SPDX-License-Identifier: MIT */
/*
 * The terminal: which keys are commands, and that its mode is given back on every way out. What needs a terminal runs
 * in a child whose controlling terminal is one that we made; its mode is read from our end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "terminal.h"

/* ---- keys -------------------------------------------------------------------------------------------------------- */

static void keys(struct terminal *t, const char *typed, enum terminal_command command, const char *for_guest)
{
	char buf[64];
	size_t bytes = strlen(typed);

	memcpy(buf, typed, bytes);
	assert_int_equal(terminal_filter(t, buf, &bytes), command);
	assert_int_equal(bytes, strlen(for_guest));
	assert_memory_equal(buf, for_guest, bytes);
}

static void test_keys(void **state)
{
	struct terminal t = { .fd = 0 };

	(void)state;
	keys(&t, "abc", TERMINAL_NONE, "abc");
	keys(&t, "\003\032\034", TERMINAL_NONE, "\003\032\034"); /* Ctrl-c and the like are the guest's */
	keys(&t, "a\001\001b", TERMINAL_NONE, "a\001b");
	keys(&t, "ab\001xcd", TERMINAL_QUIT, "ab");
	keys(&t, "\001h", TERMINAL_HELP, "");
	keys(&t, "x", TERMINAL_NONE, "x");
}

/* Keys come one by one. */
static void test_keys_apart(void **state)
{
	struct terminal t = { .fd = 0 };

	(void)state;
	keys(&t, "\001", TERMINAL_NONE, "");
	keys(&t, "", TERMINAL_NONE, "");
	keys(&t, "\001", TERMINAL_NONE, "\001");
	keys(&t, "x", TERMINAL_NONE, "x");
	keys(&t, "\001", TERMINAL_NONE, "");
	keys(&t, "x", TERMINAL_QUIT, "");
}

static void test_no_terminal(void **state)
{
	struct terminal t;
	int ends[2];
	char buf[16];
	size_t got;

	(void)state;
	assert_int_equal(pipe(ends), 0);
	terminal_init(&t, ends[0]);
	assert_false(t.is_tty);
	terminal_enter(&t);
	assert_false(t.raw);
	assert_true(terminal_readable(&t));
	assert_int_equal(write(ends[1], "a\001xb", 4), 4);
	assert_int_equal(terminal_read(&t, buf, sizeof(buf), &got), TERMINAL_NONE);
	assert_int_equal(got, 4);
	assert_memory_equal(buf, "a\001xb", 4); /* nobody typed that: it is data */
	close(ends[1]);
	assert_int_equal(terminal_read(&t, buf, sizeof(buf), &got), TERMINAL_NONE);
	assert_int_equal(got, 0);
	assert_int_equal(t.fd, -1);
	assert_false(terminal_readable(&t));
	terminal_leave(&t);
	close(ends[0]);
}

/* ---- a terminal of our own --------------------------------------------------------------------------------------- */

struct desk {
	int master;
	struct termios before;
	pid_t child;
	int to_child, from_child; /* a byte each way: "go on", "I am there" */
};

/* In the child: tells that it got somewhere, and waits to be told to go on. */
static void meet(const struct desk *desk)
{
	char byte = '.';

	if (write(desk->from_child, &byte, 1) != 1 || read(desk->to_child, &byte, 1) != 1)
		_exit(99);
}

static void wait_child(const struct desk *desk)
{
	char byte;

	assert_int_equal(read(desk->from_child, &byte, 1), 1);
}

static void let_child_go(const struct desk *desk)
{
	assert_int_equal(write(desk->to_child, ".", 1), 1);
}

/* Runs body in a child that has a new terminal as its stdin and its own session. */
static void sit_down(struct desk *desk, void (*body)(struct desk *desk))
{
	int there[2], back[2], slave;

	desk->master = posix_openpt(O_RDWR | O_NOCTTY);
	assert_true(desk->master >= 0);
	assert_int_equal(grantpt(desk->master), 0);
	assert_int_equal(unlockpt(desk->master), 0);
	slave = open(ptsname(desk->master), O_RDWR | O_NOCTTY);
	assert_true(slave >= 0);
	assert_int_equal(tcgetattr(desk->master, &desk->before), 0);
	assert_int_equal(pipe(there), 0);
	assert_int_equal(pipe(back), 0);
	desk->child = fork();
	if (desk->child == 0) {
		setsid();
		if (ioctl(slave, TIOCSCTTY, 0) != 0)
			_exit(98);
		dup2(slave, STDIN_FILENO);
		desk->to_child = there[0];
		desk->from_child = back[1];
		body(desk);
		_exit(0);
	}
	/* the slave stays open here: without it there would be no mode to look at when the child is gone */
	close(there[0]);
	close(back[1]);
	desk->to_child = there[1];
	desk->from_child = back[0];
}

static int stand_up(struct desk *desk)
{
	int status;

	assert_int_equal(waitpid(desk->child, &status, 0), desk->child);
	close(desk->to_child);
	close(desk->from_child);
	return status;
}

static void check_raw(const struct desk *desk)
{
	struct termios mode;

	assert_int_equal(tcgetattr(desk->master, &mode), 0);
	assert_int_equal(mode.c_lflag & (ICANON | ECHO | ISIG), 0);
	assert_int_equal(mode.c_iflag & (ICRNL | IXON), 0);
}

static void check_restored(const struct desk *desk)
{
	struct termios mode;

	assert_int_equal(tcgetattr(desk->master, &mode), 0);
	assert_int_equal(mode.c_lflag, desk->before.c_lflag);
	assert_int_equal(mode.c_iflag, desk->before.c_iflag);
	assert_int_equal(mode.c_oflag, desk->before.c_oflag);
}

static void enter_and_leave(struct desk *desk)
{
	struct terminal t;

	terminal_init(&t, STDIN_FILENO);
	terminal_enter(&t);
	meet(desk);
	terminal_leave(&t);
	meet(desk);
	terminal_enter(&t);
	meet(desk);
	/* as after SIGCONT: once more must not take our own mode for the one before */
	terminal_enter(&t);
	terminal_leave(&t);
}

static void test_leave(void **state)
{
	struct desk desk;

	(void)state;
	sit_down(&desk, enter_and_leave);
	wait_child(&desk);
	check_raw(&desk);
	let_child_go(&desk);
	wait_child(&desk);
	check_restored(&desk);
	let_child_go(&desk);
	wait_child(&desk);
	check_raw(&desk);
	let_child_go(&desk);
	assert_int_equal(stand_up(&desk), 0);
	check_restored(&desk);
	close(desk.master);
}

static volatile sig_atomic_t how_to_die;

static void enter_and_die(struct desk *desk)
{
	struct terminal t;

	terminal_init(&t, STDIN_FILENO);
	terminal_guard();
	terminal_enter(&t);
	meet(desk);
	if (how_to_die == SIGABRT)
		abort();
	kill(getpid(), how_to_die);
	_exit(97);
}

static void test_crash(void **state)
{
	static const int numbers[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };
	struct desk desk;

	(void)state;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		int status;

		how_to_die = numbers[i];
		sit_down(&desk, enter_and_die);
		wait_child(&desk);
		check_raw(&desk);
		let_child_go(&desk);
		status = stand_up(&desk);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), numbers[i]);
		check_restored(&desk);
		close(desk.master);
	}
}

/* A job in the background leaves the terminal alone, and takes it when it comes to the foreground. */
static void in_background(struct desk *desk)
{
	struct terminal t;
	pid_t job = fork();

	signal(SIGTTOU, SIG_IGN);
	if (job == 0) {
		setpgid(0, 0);
		terminal_init(&t, STDIN_FILENO);
		terminal_enter(&t);
		if (t.raw || terminal_readable(&t))
			_exit(1);
		meet(desk);
		tcsetpgrp(STDIN_FILENO, getpgrp());
		if (!terminal_readable(&t) || !t.raw)
			_exit(2);
		meet(desk);
		terminal_leave(&t);
		_exit(0);
	}
	{
		int status = 0;

		waitpid(job, &status, 0);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 96);
	}
}

static void test_background(void **state)
{
	struct desk desk;

	(void)state;
	sit_down(&desk, in_background);
	wait_child(&desk);
	check_restored(&desk);
	let_child_go(&desk);
	wait_child(&desk);
	check_raw(&desk);
	let_child_go(&desk);
	assert_int_equal(stand_up(&desk), 0);
	check_restored(&desk);
	close(desk.master);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keys),  cmocka_unit_test(test_keys_apart), cmocka_unit_test(test_no_terminal),
		cmocka_unit_test(test_leave), cmocka_unit_test(test_crash),	 cmocka_unit_test(test_background),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
