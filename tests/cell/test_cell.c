/* SPDX-License-Identifier: MIT */
/*
 * A parser that was taken over, in its cell: each attempt to get out is made by a process of its own, by the main
 * thread and by one that was started inside, and must be refused or end the process (attempts.c). What honest work
 * needs must go on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attempts.h"
#include "cell.h"

#define NR(a)	  (sizeof(a) / sizeof((a)[0]))
#define REFUSED	  40 /* exit status of a process whose attempt failed with EACCES, EPERM or ENOSYS */
#define SUCCEEDED 41
#define OTHERWISE 42 /* it failed for another reason */
#define NO_CELL	  43
#define ENDED	  60 /* by its cell */

static struct place place;
static struct cell cell; /* of the process that tries */

static const char *skip_reason(void)
{
	return cell_lacks();
}

/* ---- the process that tries -------------------------------------------------------------------------------------- */

static int enter_as(enum confine_mode mode, const struct img_grant *grants, size_t nr, int keep)
{
	struct cell_rules rules = {
		.mode = mode,
		.host = { .struct_size = sizeof(rules.host), .grants = grants, .nr_grants = nr },
		.memory_bytes = UINT64_C(2) << 30,
		.keep = keep,
		.name = "test_cell",
		.status = ENDED,
	};
	struct img_error err = { .code = 0 };
	int ret = cell_enter(&rules, &cell, &err);

	if (ret != 0)
		fprintf(stderr, "cell_enter: %s\n", err.msg);
	return ret;
}

static int enter(int keep)
{
	const struct img_grant grants[] = { { place.image, IMG_GRANT_READ }, { place.made, IMG_GRANT_CREATE } };

	return enter_as(CONFINE_REQUIRE, grants, NR(grants), keep);
}

static __attribute__((noreturn)) void try_out(const struct attempt *a)
{
	if (a->call(&place) >= 0)
		_exit(SUCCEEDED);
	_exit(errno == EACCES || errno == EPERM || errno == ENOSYS ? REFUSED : OTHERWISE);
}

static void *try_in_thread(void *arg)
{
	try_out(arg);
}

/* Exit status of the process that runs the attempt; below 0: ended by that signal. What it says is thrown away. */
static int attempt(const struct attempt *a, bool in_thread)
{
	pthread_t thread;
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, STDERR_FILENO);
		if (enter(place.socket) != 0)
			_exit(NO_CELL);
		place.broker = cell.broker;
		if (!in_thread)
			try_out(a);
		if (pthread_create(&thread, NULL, try_in_thread, (void *)(uintptr_t)a) == 0)
			pthread_join(thread, NULL);
		_exit(OTHERWISE);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void try_all(bool in_thread)
{
	struct stat sb;
	unsigned nr_refused = 0, nr_ended = 0;

	for (const struct attempt *a = attempts; a->name; a++) {
		int got = attempt(a, in_thread);

		if (got != REFUSED && got != ENDED)
			fail_msg("%s: status %d", a->name, got);
		nr_refused += got == REFUSED;
		nr_ended += got == ENDED;
	}
	print_message("%u attempts refused, %u ended the process\n", nr_refused, nr_ended);
	assert_int_equal(stat(place.image, &sb), 0);
	assert_true(sb.st_size > 0);
	assert_int_not_equal(stat(place.made, &sb), 0);
}

static void test_attempts(void **state)
{
	(void)state;
	if (skip_reason())
		skip();
	try_all(false);
}

static void test_attempts_in_thread(void **state)
{
	(void)state;
	if (skip_reason())
		skip();
	try_all(true);
}

/* The line that tells which call it was. */
static void test_last_words(void **state)
{
	char line[200] = "", want[64];
	int ends[2], status;
	pid_t pid;

	(void)state;
	if (skip_reason())
		skip();
	assert_int_equal(pipe(ends), 0);
	pid = fork();
	if (pid == 0) {
		dup2(ends[1], STDERR_FILENO);
		if (enter(-1) == 0)
			(void)syscall(SYS_memfd_create, "x", 0);
		_exit(OTHERWISE);
	}
	close(ends[1]);
	while (read(ends[0], line + strlen(line), sizeof(line) - 1 - strlen(line)) > 0)
		;
	close(ends[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), ENDED);
	snprintf(want, sizeof(want), "test_cell: ended by its sandbox: system call 0x%03x", SYS_memfd_create);
	if (!strstr(line, want))
		fail_msg("it says: %s", line);
}

/* ---- what goes on ------------------------------------------------------------------------------------------------ */

static void *count(void *arg)
{
	for (unsigned i = 0; i < 1000; i++)
		__atomic_fetch_add((unsigned *)arg, 1, __ATOMIC_SEQ_CST);
	free(malloc(1 << 20));
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

#define NEED(what)   \
	if (!(what)) \
	return __LINE__ % 200 + 50

/* Returns 0, or a number that tells the line. */
static int work(void)
{
	struct img_open_options open_options = { .struct_size = sizeof(open_options), .host = cell.host };
	struct img_create_options create = { .struct_size = sizeof(create), .format = "qcow2", .host = cell.host };
	struct timespec brief = { .tv_nsec = 1000 };
	volatile size_t too_much = (size_t)5 << 29; /* the limit is 2 GiB */
	pthread_t threads[8];
	unsigned sum = 0;
	struct img *img;
	char buf[512];
	int *numbers;

	NEED(cell.host);
	NEED(img_open(place.image, &open_options, &img, NULL) == 0);
	NEED(img_pread(img, buf, sizeof(buf), 0, 0, NULL) == 0);
	NEED(img_convert(img, place.made, &create, NULL, NULL) == 0);
	NEED(img_close(img, NULL) == 0);
	for (size_t i = 0; i < NR(threads); i++)
		NEED(pthread_create(&threads[i], NULL, count, &sum) == 0);
	for (size_t i = 0; i < NR(threads); i++)
		pthread_join(threads[i], NULL);
	NEED(sum == 1000 * NR(threads));
	numbers = calloc(1 << 20, sizeof(*numbers));
	NEED(numbers);
	for (int i = 0; i < 1 << 20; i++)
		numbers[i] = i ^ 0xabcde;
	qsort(numbers, 1 << 20, sizeof(*numbers), by_value);
	NEED(numbers[5] == 5);
	free(numbers);
	NEED(nanosleep(&brief, NULL) == 0);
	NEED(getrandom(buf, sizeof(buf), 0) == sizeof(buf));
	NEED(isatty(0) || errno == ENOTTY || errno == EINVAL);
	/* cppcheck-suppress leakReturnValNotUsed ; there is nothing to free */
	NEED(!malloc(too_much));
	NEED(write(STDOUT_FILENO, "", 0) == 0);
	return 0;
}

static void test_work(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (skip_reason())
		skip();
	pid = fork();
	if (pid == 0) {
		int ret = enter(-1) == 0 ? work() : NO_CELL;

		cell_leave(&cell);
		_exit(ret);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(unlink(place.made), 0);
}

/* Descriptors that somebody forgot to close stay outside; the one that is kept does not. */
static void test_descriptors(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (skip_reason())
		skip();
	pid = fork();
	if (pid == 0) {
		int low = dup2(0, 20), kept = dup2(0, 30), high = dup2(0, 900);

		if (low != 20 || kept != 30 || high != 900 || enter(kept) != 0)
			_exit(NO_CELL);
		_exit(fcntl(low, F_GETFD) < 0 && fcntl(kept, F_GETFD) >= 0 && fcntl(high, F_GETFD) < 0 ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 0);
}

static unsigned nr_temps(void)
{
	struct dirent *entry;
	unsigned nr = 0;
	DIR *dir = opendir(place.folder);

	while ((entry = readdir(dir)))
		nr += strstr(entry->d_name, ".tmp") != NULL;
	closedir(dir);
	return nr;
}

static int cancel_slowly(void *ctx, uint64_t done, uint64_t total)
{
	(void)done;
	(void)total;
	(void)!write(*(int *)ctx, "x", 1);
	for (unsigned i = 0; i < 60; i++)
		sleep(1);
	return 1;
}

/* Killed in the middle of a conversion: nothing has the final name, and the broker takes away what was begun, and ends.
 */
static void test_killed(void **state)
{
	int ends[2], status;
	char c;
	pid_t pid;

	(void)state;
	if (skip_reason())
		skip();
	assert_int_equal(pipe(ends), 0);
	pid = fork();
	if (pid == 0) {
		struct img_open_options open_options = { .struct_size = sizeof(open_options) };
		struct img_create_options create = { .struct_size = sizeof(create), .format = "limg" };
		struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 1 };
		struct img *img;

		close(ends[0]);
		if (enter(ends[1]) != 0)
			_exit(NO_CELL);
		copy.progress = (struct img_progress){ .fn = cancel_slowly, .ctx = &ends[1] };
		open_options.host = create.host = cell.host;
		if (img_open(place.image, &open_options, &img, NULL) == 0)
			img_convert(img, place.made, &create, &copy, NULL);
		_exit(1);
	}
	close(ends[1]);
	assert_int_equal(read(ends[0], &c, 1), 1);
	assert_int_equal(nr_temps(), 1);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	/* the broker holds the pipe as well: its end is the pipe's */
	assert_int_equal(read(ends[0], &c, 1), 0);
	close(ends[0]);
	assert_int_equal(nr_temps(), 0);
	assert_int_not_equal(access(place.made, F_OK), 0);
}

static void test_off(void **state)
{
	int status;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		int ret = enter_as(CONFINE_OFF, NULL, 0, -1);

		_exit(ret == 0 && !cell.host && open("/etc/passwd", O_RDONLY) >= 0 ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* Where something lacks, require refuses and auto goes on. */
static void test_require(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	pid = fork();
	if (pid == 0)
		_exit(enter(-1) == 0 ? 0 : 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), cell_lacks() ? 1 : 0);
	pid = fork();
	if (pid == 0)
		_exit(enter_as(CONFINE_AUTO, NULL, 0, -1) == 0 ? 0 : 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- frame ------------------------------------------------------------------------------------------------------- */

static int setup(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "qcow2", .size_bytes = 1 << 20 };
	int ends[2];

	(void)state;
	strcpy(place.folder, "/tmp/test-cell-XXXXXX");
	if (!mkdtemp(place.folder) || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
		return -1;
	place.socket = ends[0];
	snprintf(place.image, sizeof(place.image), "%s/image", place.folder);
	snprintf(place.made, sizeof(place.made), "%s/made", place.folder);
	return img_create(place.image, &create, NULL);
}

static int teardown(void **state)
{
	(void)state;
	unlink(place.image);
	unlink(place.made);
	return rmdir(place.folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_attempts),    cmocka_unit_test(test_attempts_in_thread),
		cmocka_unit_test(test_last_words),  cmocka_unit_test(test_work),
		cmocka_unit_test(test_descriptors), cmocka_unit_test(test_killed),
		cmocka_unit_test(test_off),	    cmocka_unit_test(test_require),
	};
	int ret;

	if (skip_reason())
		print_message("SKIP: no cell here: %s\n", skip_reason());
	ret = cmocka_run_group_tests(tests, setup, teardown);
	return ret == 0 && skip_reason() ? 77 : ret;
}
