/* SPDX-License-Identifier: MIT */
/*
 * The control socket from both ends: where it is, what a request looks like, and that clients which are slow, silent,
 * many or malicious do no harm. The server runs in this thread, as in the runner's loop; clients that wait for it are
 * threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#undef fail /* ours is meant */

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control.h"
#include "fail.h"
#include "server.h"

struct fixture {
	char folder[64], image[96], socket[CONTROL_PATH_BYTES];
	struct server *server;
	unsigned nr_requests;
	size_t answer_bytes; /* of the padding in an answer to "big" */
};

/* Says what it was asked; "fail" is refused, "big" has a long answer. */
static json_t *answer(void *ctx, json_t *request)
{
	struct fixture *f = ctx;
	const char *command = json_string_value(json_object_get(request, "command"));
	struct img_error err = { .code = IMG_OK };

	f->nr_requests++;
	if (command && strcmp(command, "fail") == 0) {
		fail(&err, IMG_E_EXISTS, "no \"%s\"", "way");
		return server_refusal(&err);
	}
	if (command && strcmp(command, "big") == 0) {
		char *text = malloc(f->answer_bytes + 1);
		json_t *big;

		memset(text, 'x', f->answer_bytes);
		text[f->answer_bytes] = '\0';
		big = json_pack("{s:b, s:s}", "ok", 1, "text", text);
		free(text);
		return big;
	}
	return json_pack("{s:b, s:s, s:i}", "ok", 1, "command", command ? command : "?", "nr", (int)f->nr_requests);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct img_error err = { .code = IMG_OK };
	int fd;

	strcpy(f->folder, "/tmp/imgvm-control-XXXXXX");
	assert_non_null(mkdtemp(f->folder));
	setenv("XDG_RUNTIME_DIR", f->folder, 1);
	snprintf(f->image, sizeof(f->image), "%s/image", f->folder);
	fd = open(f->image, O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	close(fd);
	f->answer_bytes = 1000;
	assert_int_equal(server_open(f->image, false, answer, f, &f->server, &err), 0);
	assert_int_equal(control_path(f->image, 0, f->socket, &err), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char path[160];

	server_close(f->server);
	snprintf(path, sizeof(path), "rm -rf %s", f->folder);
	assert_int_equal(system(path), 0);
	free(f);
	return 0;
}

/* One turn of the loop. */
static void turn(struct fixture *f, int timeout_ms)
{
	struct pollfd fds[SERVER_MAX_FDS];
	unsigned nr = server_poll_fds(f->server, fds);

	assert_true(nr <= SERVER_MAX_FDS);
	if (poll(fds, nr, timeout_ms) > 0)
		server_handle(f->server, fds, nr);
}

static void turns(struct fixture *f)
{
	for (unsigned i = 0; i < 40; i++)
		turn(f, 1);
}

static int dial(struct fixture *f)
{
	struct img_error err = { .code = IMG_OK };
	int fd;

	assert_int_equal(control_dial(f->socket, &fd, &err), 0);
	return fd;
}

/* What has come, as a string; "" if nothing. */
static const char *receive(int fd, char *buf, size_t cap)
{
	ssize_t n = recv(fd, buf, cap - 1, MSG_DONTWAIT);

	buf[n > 0 ? n : 0] = '\0';
	return buf;
}

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* ---- a client that waits ----------------------------------------------------------------------------------------- */

struct call {
	pthread_t thread;
	const char *image, *command;
	pid_t pid;
	int code;
	struct img_error err;
	json_t *answer;
	_Atomic bool done;
};

static void *call_thread(void *arg)
{
	struct call *c = arg;
	json_t *request = json_pack("{s:s}", "command", c->command);
	int fd;

	c->code = control_connect_any(c->image, c->pid, &fd, &c->err);
	if (c->code == 0) {
		c->code = control_call(fd, request, &c->answer, &c->err);
		close(fd);
	}
	json_decref(request);
	c->done = true;
	return NULL;
}

static void call(struct fixture *f, struct call *c)
{
	c->image = c->image ? c->image : f->image;
	c->done = false;
	assert_int_equal(pthread_create(&c->thread, NULL, call_thread, c), 0);
	for (unsigned i = 0; !c->done && i < 5000; i++)
		turn(f, 1);
	pthread_join(c->thread, NULL);
}

static void test_call(void **state)
{
	struct fixture *f = *state;
	struct call c = { .command = "status" };

	call(f, &c);
	assert_int_equal(c.code, 0);
	assert_string_equal(json_string_value(json_object_get(c.answer, "command")), "status");
	json_decref(c.answer);
	assert_int_equal(f->nr_requests, 1);
}

static void test_refusal(void **state)
{
	struct fixture *f = *state;
	struct call c = { .command = "fail" };

	call(f, &c);
	assert_int_equal(c.code, IMG_E_EXISTS);
	assert_string_equal(c.err.msg, "no \"way\"");
	assert_null(c.answer);
}

/* ---- where it is ------------------------------------------------------------------------------------------------- */

static void test_found_by_file(void **state)
{
	struct fixture *f = *state;
	char other[96], link_name[112];
	struct call c = { .command = "status" };
	struct img_error err = { .code = IMG_OK };
	int fd;

	snprintf(link_name, sizeof(link_name), "%s/link", f->folder);
	assert_int_equal(symlink(f->image, link_name), 0);
	c.image = link_name;
	call(f, &c);
	assert_int_equal(c.code, 0);
	json_decref(c.answer);
	snprintf(other, sizeof(other), "%s/other", f->folder);
	close(open(other, O_CREAT | O_WRONLY, 0600));
	assert_int_equal(control_connect(other, &fd, &err), IMG_E_NOENT);
	err.code = IMG_OK;
	assert_int_equal(control_connect("/nonexistent/file", &fd, &err), IMG_E_NOENT);
}

static void test_second_machine(void **state)
{
	struct fixture *f = *state;
	struct server *second;
	struct img_error err = { .code = IMG_OK };

	assert_int_equal(server_open(f->image, false, answer, f, &second, &err), IMG_E_BUSY);
	assert_null(second);
	/* and the first one's socket is still there */
	close(dial(f));
}

static void test_left_behind(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct img_error err = { .code = IMG_OK };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	server_close(f->server);
	f->server = NULL;
	assert_int_equal(access(f->socket, F_OK), -1);
	/* as after kill -9 */
	strcpy(addr.sun_path, f->socket);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_int_equal(control_connect(f->image, &fd, &err), IMG_E_NOENT);
	assert_int_equal(server_open(f->image, false, answer, f, &f->server, &err), 0);
	close(dial(f));
}

static void test_shared(void **state)
{
	struct fixture *f = *state;
	struct server *owner = f->server;
	struct call c = { .command = "status", .pid = getpid() };
	struct img_error err = { .code = IMG_OK };

	assert_int_equal(server_open(f->image, true, answer, f, &f->server, &err), 0);
	call(f, &c);
	assert_int_equal(c.code, 0);
	json_decref(c.answer);
	c = (struct call){ .command = "status", .pid = 1 };
	call(f, &c);
	assert_int_equal(c.code, IMG_E_NOENT);
	/* without the owner it is found without its pid */
	server_close(owner);
	c = (struct call){ .command = "status" };
	call(f, &c);
	assert_int_equal(c.code, 0);
	json_decref(c.answer);
}

static void test_two_shared(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct img_error err = { .code = IMG_OK };
	int fd, other = socket(AF_UNIX, SOCK_STREAM, 0);

	server_close(f->server);
	assert_int_equal(server_open(f->image, true, answer, f, &f->server, &err), 0);
	assert_int_equal(control_path(f->image, 12345678, f->socket, &err), 0);
	strcpy(addr.sun_path, f->socket);
	assert_int_equal(bind(other, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(other, 1), 0);
	assert_int_equal(control_connect_any(f->image, 0, &fd, &err), IMG_E_LIMIT);
	assert_non_null(strstr(err.msg, "12345678"));
	close(other);
}

static void test_folder_of_others(void **state)
{
	struct fixture *f = *state;
	struct img_error err = { .code = IMG_OK };
	char path[CONTROL_PATH_BYTES], folder[96];
	int fd;

	snprintf(folder, sizeof(folder), "%s/imgvm", f->folder);
	assert_int_equal(chmod(folder, 0777), 0);
	assert_int_equal(control_path(f->image, 0, path, &err), IMG_E_REFUSED);
	assert_int_equal(control_connect(f->image, &fd, NULL), IMG_E_NOENT);
	assert_int_equal(chmod(folder, 0700), 0);
	close(dial(f));
}

static void test_long_folder(void **state)
{
	struct fixture *f = *state;
	struct img_error err = { .code = IMG_OK };
	char path[CONTROL_PATH_BYTES], deep[300];

	snprintf(deep, sizeof(deep), "%s/%080d", f->folder, 0);
	assert_int_equal(mkdir(deep, 0700), 0);
	setenv("XDG_RUNTIME_DIR", deep, 1);
	assert_int_equal(control_path(f->image, 0, path, &err), IMG_E_LIMIT);
	setenv("XDG_RUNTIME_DIR", f->folder, 1);
}

/* ---- clients that mean no good ----------------------------------------------------------------------------------- */

static void test_no_json(void **state)
{
	static const char *const bad[] = { "\n",
					   "status\n",
					   "[1]\n",
					   "{\"command\": }\n",
					   "\"x\"\n",
					   "{}{}\n",
					   "{\"a\":1,\"a\":2}\n",
					   "{\"command\":\"\xff\"}\n" };
	struct fixture *f = *state;
	char buf[4096];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = dial(f);

		say(fd, bad[i]);
		turns(f);
		assert_non_null(strstr(receive(fd, buf, sizeof(buf)), "\"ok\":false"));
		/* and it may go on */
		say(fd, "{\"command\":\"status\"}\n");
		turns(f);
		assert_non_null(strstr(receive(fd, buf, sizeof(buf)), "\"ok\":true"));
		close(fd);
	}
}

static void test_in_pieces(void **state)
{
	static const char request[] = "{\"command\":\"status\"}\n";
	struct fixture *f = *state;
	char buf[4096];
	int fd = dial(f);

	for (size_t i = 0; request[i]; i++) {
		assert_string_equal(receive(fd, buf, sizeof(buf)), "");
		assert_int_equal(send(fd, request + i, 1, 0), 1);
		turn(f, 10);
		turn(f, 10);
	}
	assert_non_null(strstr(receive(fd, buf, sizeof(buf)), "\"ok\":true"));
	/* two at once, and the end right behind them */
	say(fd, "{\"command\":\"a\"}\n{\"command\":\"b\"}\n{\"comm");
	shutdown(fd, SHUT_WR);
	turns(f);
	receive(fd, buf, sizeof(buf));
	assert_non_null(strstr(buf, "\"a\""));
	assert_non_null(strstr(buf, "\"b\""));
	assert_int_equal(recv(fd, buf, 1, MSG_DONTWAIT), 0);
	close(fd);
}

static void test_endless_line(void **state)
{
	struct fixture *f = *state;
	char piece[4096], buf[4096];
	int fd = dial(f);
	size_t sent = 0;

	memset(piece, 'x', sizeof(piece));
	for (unsigned i = 0; i < 100; i++) {
		ssize_t n = send(fd, piece, sizeof(piece), MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			break;
		sent += (size_t)n;
		turn(f, 1);
	}
	turns(f);
	assert_true(sent >= CONTROL_MAX_LINE);
	assert_non_null(strstr(receive(fd, buf, sizeof(buf)), "too long"));
	assert_true(recv(fd, buf, 1, MSG_DONTWAIT) <= 0);
	close(fd);
	close(dial(f));
	assert_int_equal(f->nr_requests, 0);
}

/* It asks and asks and takes no answer: it is not listened to any more, and others are. */
static void test_takes_no_answer(void **state)
{
	struct fixture *f = *state;
	struct call c = { .command = "status" };
	int fd = dial(f);
	unsigned asked = 0, before;

	f->answer_bytes = 60000;
	for (unsigned i = 0; i < 1000; i++) {
		if (send(fd, "{\"command\":\"big\"}\n", 18, MSG_NOSIGNAL | MSG_DONTWAIT) == 18)
			asked++;
		turn(f, 0);
	}
	before = f->nr_requests;
	assert_true(before < asked);
	turns(f);
	assert_int_equal(f->nr_requests, before);
	call(f, &c);
	assert_int_equal(c.code, 0);
	json_decref(c.answer);
	close(fd);
	turns(f);
}

static void test_answer_too_long(void **state)
{
	struct fixture *f = *state;
	struct call c = { .command = "big" };

	f->answer_bytes = CONTROL_MAX_LINE;
	call(f, &c);
	assert_int_equal(c.code, IMG_E_IO);
}

/* All places are taken by clients that say nothing: the next one gets the place of the most silent. */
static void test_silent(void **state)
{
	struct fixture *f = *state;
	int fds[3 * SERVER_MAX_CLIENTS];
	struct call c = { .command = "status" };
	char buf[64];

	for (unsigned i = 0; i < 3 * SERVER_MAX_CLIENTS; i++) {
		fds[i] = dial(f);
		turn(f, 10);
	}
	call(f, &c);
	assert_int_equal(c.code, 0);
	json_decref(c.answer);
	assert_int_equal(recv(fds[0], buf, sizeof(buf), MSG_DONTWAIT), 0); /* dropped */
	for (unsigned i = 0; i < 3 * SERVER_MAX_CLIENTS; i++)
		close(fds[i]);
	turns(f);
}

static void test_goes_away(void **state)
{
	struct fixture *f = *state;
	struct call c = { .command = "status" };

	f->answer_bytes = 60000;
	for (unsigned i = 0; i < 50; i++) {
		struct linger reset = { .l_onoff = 1 };
		int fd = dial(f);

		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		say(fd, "{\"command\":\"big\"}\n{\"command\":\"big\"}\n{\"command\":\"big\"}\n{\"command\":\"big\"}\n");
		if (i % 2)
			turn(f, 1);
		close(fd);
		turn(f, 1);
		turn(f, 1);
	}
	call(f, &c);
	assert_int_equal(c.code, 0);
	json_decref(c.answer);
}

/* A machine that ends without an answer, as by kill -9. */
static void test_machine_goes_away(void **state)
{
	struct fixture *f = *state;
	json_t *request = json_pack("{s:s}", "command", "status"), *got;
	struct img_error err = { .code = IMG_OK };
	int fd = dial(f);

	turn(f, 10);
	server_close(f->server);
	f->server = NULL;
	assert_int_equal(control_call(fd, request, &got, &err), IMG_E_IO);
	assert_null(got);
	json_decref(request);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		TEST(test_call),
		TEST(test_refusal),
		TEST(test_found_by_file),
		TEST(test_second_machine),
		TEST(test_left_behind),
		TEST(test_shared),
		TEST(test_two_shared),
		TEST(test_folder_of_others),
		TEST(test_long_folder),
		TEST(test_no_json),
		TEST(test_in_pieces),
		TEST(test_endless_line),
		TEST(test_takes_no_answer),
		TEST(test_answer_too_long),
		TEST(test_silent),
		TEST(test_goes_away),
		TEST(test_machine_goes_away),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
