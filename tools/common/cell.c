/* SPDX-License-Identifier: MIT */
/*
 * See cell.h. It is the process that was started which locks itself in, and the broker is its child, not the other way
 * round: signals, exit status, the pid that others see on its locks and what a tracer follows stay what they are
 * without a cell, and to kill it ends the parsing at once.
 *
 * The broker ends when its socket has no other end. It keeps stdin, so that names such as /dev/stdin mean the same to
 * it, and neither stdout nor stderr: who reads them does not wait for it. Interruptions are not its own: it ignores
 * them.
 *
 * What somebody who has taken over the process can still do: use its descriptors (stdin, stdout, stderr, the images),
 * ask the broker for what its rules allow, burn processor time, use memory up to the limit, learn whether a file exists
 * (fstatat by a name). No limit is set on processor time, since copying may take hours; nor on the size of files, since
 * stdout may be one: what is only read is open for reading only. The process stays dumpable, so that others of the same
 * user find its pid when they ask who holds an image.
 */
#include "cell.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fail.h"

#ifndef __NR_close_range
#define __NR_close_range 436
#endif

#define MAX_FILES 4096u /* descriptors: no chain is longer, with its data files */

#ifdef IMG_CELL_FILTER
static const struct sock_filter filter[] = {
#include "cell_filter.inc"
};
#endif

const char *cell_lacks(void)
{
	if (confine_unfit())
		return confine_unfit();
#ifndef IMG_CELL_FILTER
	return "this build has no seccomp (libseccomp was missing)";
#else
	if (confine_landlock_version() < 1)
		return "this kernel has no Landlock";
	if (!confine_has_seccomp())
		return "this kernel has no seccomp filters";
	return NULL;
#endif
}

/* Is there anything to confine a process with? */
static bool can_confine(void)
{
	if (confine_unfit())
		return false;
#ifdef IMG_CELL_FILTER
	if (confine_has_seccomp())
		return true;
#endif
	return confine_landlock_version() >= 1;
}

/* ---- the broker -------------------------------------------------------------------------------------------------- */

static void be_silent(void)
{
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE };
	int nowhere[2];

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
	/* the reading end of a pipe: the numbers stay taken, and what is written to them fails */
	if (pipe2(nowhere, O_CLOEXEC) == 0) {
		dup2(nowhere[0], STDOUT_FILENO);
		dup2(nowhere[0], STDERR_FILENO);
		close(nowhere[0]);
		close(nowhere[1]);
	}
}

static __attribute__((noreturn)) void run_broker(const struct cell_rules *rules, const int ends[2], pid_t parent)
{
	struct img_host_rules host = rules->host;

	close(ends[0]);
	be_silent();
	prctl(PR_SET_NAME, "img-broker", 0, 0, 0);
	host.peer_pid = parent;
	_exit(img_host_serve(ends[1], &host, NULL) == 0 ? 0 : 1);
}

static int start_broker(const struct cell_rules *rules, struct cell *cell, int *socket, struct img_error *err)
{
	pid_t self = getpid();
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
		return fail_errno(err, "sandbox: socketpair");
	cell->broker = fork();
	if (cell->broker == 0)
		run_broker(rules, ends, self);
	close(ends[1]);
	if (cell->broker < 0) {
		close(ends[0]);
		return fail_errno(err, "sandbox: fork");
	}
	*socket = ends[0];
	return img_host_connect(*socket, &cell->host, err);
}

/* ---- locking in -------------------------------------------------------------------------------------------------- */

/* An old kernel, or valgrind, has no such call: then what was inherited stays open. */
static void close_between(unsigned first, unsigned last)
{
	if (first <= last)
		(void)syscall(__NR_close_range, first, last, 0);
}

static void close_others(int a, int b)
{
	int first = a < b ? a : b, second = a < b ? b : a;

	if (first > STDERR_FILENO) {
		close_between(STDERR_FILENO + 1, (unsigned)first - 1);
		close_between((unsigned)first + 1, (unsigned)second - 1);
	} else {
		close_between(STDERR_FILENO + 1, (unsigned)second - 1);
	}
	close_between((unsigned)second + 1, ~0u);
}

static void set_limit(int what, uint64_t value)
{
	struct rlimit limit;

	if (getrlimit((__rlimit_resource_t)what, &limit) != 0)
		return;
	if (limit.rlim_cur > value)
		limit.rlim_cur = (rlim_t)value;
	limit.rlim_max = limit.rlim_cur;
	(void)setrlimit((__rlimit_resource_t)what, &limit);
}

static int lacks(const struct cell_rules *rules, const char *what, struct img_error *err)
{
	if (rules->mode != CONFINE_REQUIRE)
		return 0;
	return fail(err, IMG_E_UNSUPPORTED, "--sandbox=require: %s", what);
}

#ifdef IMG_CELL_FILTER
/*
 * Who was interrupted ends by that signal (signals_pass_on()), so it may send one to itself. Who that is the list
 * cannot know, which is made while the tools are built: this goes before it, and the stricter of the two counts.
 */
static int close_signals(void)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	const uint32_t low_half = 4;
#else
	const uint32_t low_half = 0;
#endif
	struct sock_filter rows[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_tgkill, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, args) + low_half),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)getpid(), 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = { .len = sizeof(rows) / sizeof(rows[0]), .filter = rows };

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}
#endif

static int close_calls(const struct cell_rules *rules, struct cell *cell, struct img_error *err)
{
#ifdef IMG_CELL_FILTER
	static const struct sock_fprog program = { .len = sizeof(filter) / sizeof(filter[0]),
						   .filter = (struct sock_filter *)(uintptr_t)filter };

	confine_catch(rules->name, NULL, rules->status);
	cell->seccomp = close_signals() == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
	return cell->seccomp ? 0 : lacks(rules, "this kernel has no seccomp filters", err);
#else
	(void)cell;
	return lacks(rules, cell_lacks(), err);
#endif
}

static int lock_in(const struct cell_rules *rules, struct cell *cell, int socket, struct img_error *err)
{
	const struct confine_files none = { .folder = -1 };

	close_others(rules->keep, socket);
	set_limit(RLIMIT_CORE, 0);
	set_limit(RLIMIT_NOFILE, MAX_FILES);
	if (rules->memory_bytes)
		set_limit(RLIMIT_AS, rules->memory_bytes);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return lacks(rules, "this kernel cannot forbid new privileges", err);
	cell->landlock = confine_files(&none) == 0;
	if (!cell->landlock && lacks(rules, "this kernel has no Landlock", err) != 0)
		return IMG_E_UNSUPPORTED;
	return close_calls(rules, cell, err);
}

int cell_enter(const struct cell_rules *rules, struct cell *cell, struct img_error *err)
{
	int socket = -1, ret;

	*cell = (struct cell){ .broker = -1 };
	if (rules->mode == CONFINE_OFF)
		return 0;
	if (rules->mode == CONFINE_REQUIRE && cell_lacks())
		return lacks(rules, cell_lacks(), err);
	if (!can_confine())
		return 0;
	ret = start_broker(rules, cell, &socket, err);
	if (ret == 0)
		ret = lock_in(rules, cell, socket, err);
	if (ret != 0)
		cell_leave(cell);
	return ret;
}

void cell_leave(struct cell *cell)
{
	img_host_disconnect(cell->host);
	cell->host = NULL;
	if (cell->broker > 0) {
		while (waitpid(cell->broker, NULL, 0) < 0 && errno == EINTR)
			;
	}
	cell->broker = -1;
}
