/* SPDX-License-Identifier: MIT */
/* Locks: QEMU's protocol between two opens of one process and against live qemu-io and qemu-img, byte locks, and their
 * holders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "node.h"

extern const struct img_driver file_driver;

static char path[64];

static int setup(void **state)
{
	int fd;

	(void)state;
	strcpy(path, "test-lock-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	close(fd);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	return 0;
}

/* NULL and err filled where it is refused. */
static struct node *try_open(bool writable, unsigned use, unsigned forbid, struct img_error *err)
{
	struct host_open args = { .writable = writable, .use = use, .forbid = forbid };
	struct node *node = node_new(&file_driver, path, err);
	int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);

	assert_non_null(node);
	assert_true(fd >= 0);
	*err = (struct img_error){ 0 };
	if (node_open_fd(node, fd, &args, err) == 0)
		return node;
	node_close(node, NULL);
	return NULL;
}

static struct node *open_writer(struct img_error *err)
{
	return try_open(true, SHARE_WRITER_USE, SHARE_WRITER_FORBID, err);
}

static struct node *open_reader(struct img_error *err)
{
	return try_open(false, SHARE_READER_USE, SHARE_READER_FORBID, err);
}

static struct node *open_peek(struct img_error *err)
{
	return try_open(false, SHARE_PEEK_USE, 0, err);
}

static void test_writers_and_readers_exclude_each_other(void **state)
{
	struct img_error err;
	struct node *a, *b;

	(void)state;
	a = open_writer(&err);
	assert_non_null(a);
	assert_null(open_writer(&err));
	assert_int_equal(err.code, IMG_E_BUSY);
	assert_null(open_reader(&err));
	assert_int_equal(err.code, IMG_E_BUSY);
	b = open_peek(&err);
	assert_non_null(b);
	node_close(b, NULL);
	node_close(a, NULL);

	a = open_reader(&err);
	assert_non_null(a);
	b = open_reader(&err);
	assert_non_null(b);
	assert_null(open_writer(&err));
	assert_int_equal(err.code, IMG_E_BUSY);
	node_close(a, NULL);
	node_close(b, NULL);
	a = open_writer(&err);
	assert_non_null(a);
	node_close(a, NULL);
}

static void test_message_names_the_holder(void **state)
{
	struct img_error err;
	char pid[32];
	struct node *a = open_writer(&err);

	(void)state;
	assert_null(open_reader(&err));
	snprintf(pid, sizeof(pid), "pid %d", (int)getpid());
	assert_non_null(strstr(err.msg, pid));
	assert_non_null(strstr(err.msg, path));
	node_close(a, NULL);
}

static void test_refused_share_leaves_the_old_one(void **state)
{
	struct img_error err;
	struct node *a = open_reader(&err), *b = open_reader(&err), *c;

	(void)state;
	assert_int_equal(node_share(a, SHARE_WRITER_USE, SHARE_WRITER_FORBID, &err), IMG_E_BUSY);
	/* a forbids writing still, and uses reading only: a third reader comes in, a writer does not. */
	node_close(b, NULL);
	c = open_reader(&err);
	assert_non_null(c);
	node_close(c, NULL);
	assert_null(open_writer(&err));
	/* Alone it may go up and down again. */
	err = (struct img_error){ 0 };
	assert_int_equal(node_share(a, SHARE_WRITER_USE, SHARE_WRITER_FORBID, &err), 0);
	assert_null(open_reader(&err));
	err = (struct img_error){ 0 };
	assert_int_equal(node_share(a, SHARE_READER_USE, SHARE_READER_FORBID, &err), 0);
	b = open_reader(&err);
	assert_non_null(b);
	node_close(b, NULL);
	node_close(a, NULL);
}

static void test_byte_locks(void **state)
{
	const uint64_t byte = (UINT64_C(1) << 62) + 5;
	struct img_error err = { 0 };
	struct node *a, *b;

	(void)state;
	a = try_open(true, 0, 0, &err);
	b = try_open(true, 0, 0, &err);
	assert_int_equal(node_lock_byte(a, byte, BYTE_SHARED, &err), 0);
	assert_int_equal(node_lock_byte(b, byte, BYTE_SHARED, &err), 0);
	assert_int_equal(node_lock_byte(a, byte, BYTE_EXCLUSIVE, &err), IMG_E_BUSY);
	assert_non_null(strstr(err.msg, "pid"));
	error_clear(&err);
	assert_int_equal(node_lock_byte(a, byte + 1, BYTE_EXCLUSIVE, &err), 0);
	assert_int_equal(node_lock_byte(b, byte, BYTE_UNLOCK, &err), 0);
	assert_int_equal(node_lock_byte(a, byte, BYTE_EXCLUSIVE, &err), 0);
	assert_int_equal(node_lock_byte(b, byte, BYTE_SHARED, &err), IMG_E_BUSY);
	node_close(a, NULL);
	error_clear(&err);
	assert_int_equal(node_lock_byte(b, byte, BYTE_SHARED, &err), 0);
	node_close(b, NULL);
}

static void test_holders(void **state)
{
	struct img_holder h[4];
	struct img_error err;
	struct node *a, *b;
	size_t nr = 99;

	(void)state;
	assert_int_equal(img_holders(path, h, 4, &nr, &err), 0);
	assert_int_equal(nr, 0);
	a = open_reader(&err);
	assert_int_equal(img_holders(path, h, 4, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(h[0].pid, getpid());
	assert_false(h[0].writes);
	assert_string_not_equal(h[0].command, "");
	node_close(a, NULL);
	a = open_writer(&err);
	b = open_peek(&err);
	assert_int_equal(img_holders(path, h, 4, &nr, NULL), 0);
	assert_int_equal(nr, 1); /* one process, two descriptors */
	assert_true(h[0].writes);
	/* A byte lock of a format is not an image lock. */
	assert_int_equal(node_share(b, 0, 0, NULL), 0);
	assert_int_equal(node_share(a, 0, 0, NULL), 0);
	assert_int_equal(node_lock_byte(b, UINT64_C(1) << 62, BYTE_SHARED, NULL), 0);
	assert_int_equal(img_holders(path, h, 4, &nr, NULL), 0);
	assert_int_equal(nr, 0);
	/* The count is right without room. */
	assert_int_equal(node_share(a, SHARE_READER_USE, SHARE_READER_FORBID, NULL), 0);
	assert_int_equal(img_holders(path, NULL, 0, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	node_close(b, NULL);
	node_close(a, NULL);
	assert_int_equal(img_holders("no-such-file", h, 4, &nr, &err), IMG_E_NOENT);
}

/* ---- against QEMU ------------------------------------------------------------------------------------------------ */

static bool have(const char *program)
{
	char command[128];

	snprintf(command, sizeof(command), "command -v %s >/dev/null 2>&1", program);
	return system(command) == 0;
}

static int run(const char *fmt)
{
	char command[256];

	snprintf(command, sizeof(command), fmt, path);
	return system(command);
}

/* QEMU's readers forbid writing for formats; for raw files they leave it to the guest. */
static void make_qcow2(void)
{
	if (!have("qemu-io") || !have("qemu-img")) {
		print_message("SKIPPED: qemu-io and qemu-img are not installed (package qemu-utils)\n");
		skip();
	}
	assert_int_equal(run("qemu-img create -q -f qcow2 %s 1M"), 0);
}

struct qemu {
	pid_t pid;
	int in;
};

/* A qemu-io that has the file open until stop_qemu(). */
static struct qemu start_qemu_io(bool writable)
{
	int to[2], from[2];
	char out[512] = "";
	size_t n = 0;
	struct qemu q;

	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	q.pid = fork();
	if (q.pid == 0) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		dup2(from[1], 2);
		execlp("qemu-io", "qemu-io", "-f", "qcow2", writable ? path : "-r", writable ? NULL : path, NULL);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	q.in = to[1];
	/* It answers once the file is open. */
	assert_true(write(q.in, "read 0 512\n", 11) == 11);
	while (n < sizeof(out) - 1 && strstr(out, "read 512/512") == NULL) {
		ssize_t got = read(from[0], out + n, sizeof(out) - 1 - n);

		if (got <= 0)
			fail_msg("qemu-io does not run: %s", out);
		n += (size_t)got;
		out[n] = '\0';
	}
	close(from[0]);
	return q;
}

static void stop_qemu(struct qemu *q)
{
	int status;

	assert_true(write(q->in, "quit\n", 5) == 5);
	close(q->in);
	waitpid(q->pid, &status, 0);
}

static void test_qemu_holds_we_are_refused(void **state)
{
	struct img_error err;
	struct img_holder h[4];
	struct qemu q;
	char pid[48];
	struct node *node;
	size_t nr;

	(void)state;
	make_qcow2();
	q = start_qemu_io(true);
	assert_null(open_writer(&err));
	assert_int_equal(err.code, IMG_E_BUSY);
	snprintf(pid, sizeof(pid), "pid %d (qemu-io)", (int)q.pid);
	assert_non_null(strstr(err.msg, pid));
	assert_null(open_reader(&err));
	assert_int_equal(err.code, IMG_E_BUSY);
	node = open_peek(&err);
	assert_non_null(node);
	node_close(node, NULL);
	assert_int_equal(img_holders(path, h, 4, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(h[0].pid, q.pid);
	assert_true(h[0].writes);
	assert_string_equal(h[0].command, "qemu-io");
	stop_qemu(&q);

	q = start_qemu_io(false);
	node = open_reader(&err);
	assert_non_null(node);
	node_close(node, NULL);
	assert_null(open_writer(&err));
	stop_qemu(&q);
	node = open_writer(&err);
	assert_non_null(node);
	node_close(node, NULL);
}

static void test_we_hold_qemu_is_refused(void **state)
{
	struct img_error err;
	struct node *node;

	(void)state;
	make_qcow2();
	node = open_writer(&err);
	assert_int_not_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s >/dev/null 2>&1"), 0);
	assert_int_not_equal(run("qemu-img info -f qcow2 %s >/dev/null 2>&1"), 0);
	assert_int_equal(run("qemu-img info -U -f qcow2 %s >/dev/null 2>&1"), 0);
	node_close(node, NULL);
	node = open_reader(&err);
	assert_int_not_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s >/dev/null 2>&1"), 0);
	assert_int_equal(run("qemu-img info -f qcow2 %s >/dev/null 2>&1"), 0);
	node_close(node, NULL);
	node = open_peek(&err);
	assert_int_equal(run("qemu-io -f qcow2 -c 'write 0 512' %s >/dev/null 2>&1"), 0);
	node_close(node, NULL);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_writers_and_readers_exclude_each_other),
		TEST(test_message_names_the_holder),
		TEST(test_refused_share_leaves_the_old_one),
		TEST(test_byte_locks),
		TEST(test_holders),
		TEST(test_qemu_holds_we_are_refused),
		TEST(test_we_hold_qemu_is_refused),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
