/* SPDX-License-Identifier: MIT */
/* Ways out of a cell, for test_cell.c. They stand here and nowhere in the program that is shipped. */
#include "attempts.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static long open_file(const struct place *place)
{
	(void)place;
	return open("/etc/passwd", O_RDONLY);
}

static long open_image(const struct place *place) /* also the one that it was granted */
{
	return open(place->image, O_RDONLY);
}

static long open_raw(const struct place *place)
{
	return syscall(SYS_openat, AT_FDCWD, place->image, O_RDWR);
}

static long make_file(const struct place *place)
{
	return open(place->made, O_CREAT | O_WRONLY, 0600);
}

static long make_unnamed(const struct place *place)
{
	return open(place->folder, O_TMPFILE | O_RDWR, 0600);
}

static long list_folder(const struct place *place)
{
	return opendir(place->folder) ? 0 : -1;
}

static long look_at_itself(const struct place *place)
{
	(void)place;
	return open("/proc/self/mem", O_RDWR);
}

static long open_by_handle(const struct place *place)
{
	return syscall(SYS_open_by_handle_at, AT_FDCWD, place->image, 0);
}

static long remove_file(const struct place *place)
{
	return unlink(place->image);
}

static long rename_file(const struct place *place)
{
	return rename(place->image, place->made);
}

static long link_file(const struct place *place)
{
	return symlink(place->image, place->made);
}

static long cut_file(const struct place *place)
{
	return truncate(place->image, 0);
}

static long change_folder(const struct place *place)
{
	(void)place;
	return chdir("/");
}

static long make_memory_file(const struct place *place)
{
	(void)place;
	return syscall(SYS_memfd_create, "x", 0);
}

static long make_socket(const struct place *place)
{
	(void)place;
	return socket(AF_INET, SOCK_STREAM, 0);
}

static long make_unix_socket(const struct place *place)
{
	(void)place;
	return socket(AF_UNIX, SOCK_STREAM, 0);
}

static long make_pair(const struct place *place)
{
	int ends[2];

	(void)place;
	return socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends);
}

/* With a socket that is there already. */
static long connect_again(const struct place *place)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/run/nobody" };

	return connect(place->socket, (struct sockaddr *)&to, sizeof(to));
}

static long send_elsewhere(const struct place *place)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/run/nobody" };

	return sendto(place->socket, "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof(to));
}

static long send_descriptor(const struct place *place)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .bytes = { 0 } };
	struct iovec iov = { "x", 1 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	return sendmsg(place->socket, &m, MSG_NOSIGNAL);
}

static long listen_on(const struct place *place)
{
	return listen(place->socket, 1);
}

static long execute(const struct place *place)
{
	char *argv[] = { "true", NULL };

	(void)place;
	return execve("/bin/true", argv, NULL);
}

static long fork_one(const struct place *place)
{
	pid_t pid = fork();

	(void)place;
	if (pid == 0)
		_exit(0);
	return pid;
}

static long fork_raw(const struct place *place)
{
	long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	(void)place;
	if (pid == 0)
		_exit(0);
	return pid;
}

static long signal_parent(const struct place *place)
{
	(void)place;
	return kill(getppid(), 0);
}

static long signal_broker(const struct place *place)
{
	return kill(place->broker, SIGKILL);
}

static long signal_thread_of_parent(const struct place *place)
{
	(void)place;
	return syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static long signal_through_file(const struct place *place)
{
	(void)place;
	return fcntl(0, F_SETOWN, getppid());
}

static long trace_parent(const struct place *place)
{
	(void)place;
	return ptrace(PTRACE_ATTACH, getppid(), 0, 0);
}

static long read_broker(const struct place *place)
{
	char buf[8];
	struct iovec here = { buf, sizeof(buf) }, there = { buf, sizeof(buf) };

	return syscall(SYS_process_vm_readv, place->broker, &here, 1, &there, 1, 0);
}

static long hold_process(const struct place *place)
{
	(void)place;
	return syscall(SYS_pidfd_open, getppid(), 0);
}

static long make_code(const struct place *place)
{
	(void)place;
	return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ?
		       -1 :
		       0;
}

static long turn_into_code(const struct place *place)
{
	static _Alignas(4096) char page[4096];

	(void)place;
	return mprotect(page, sizeof(page), PROT_READ | PROT_EXEC);
}

static long use_ring(const struct place *place)
{
	char params[120] = { 0 };

	(void)place;
	return syscall(SYS_io_uring_setup, 8, params);
}

static long type_on_terminal(const struct place *place)
{
	(void)place;
	return ioctl(0, TIOCSTI, "x");
}

static long raise_limit(const struct place *place)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	(void)place;
	return setrlimit(RLIMIT_AS, &limit);
}

static long become_traceable(const struct place *place)
{
	(void)place;
	return prctl(PR_SET_PTRACER, -1L, 0, 0, 0);
}

static long leave_namespace(const struct place *place)
{
	(void)place;
	return syscall(SYS_unshare, 0x10000000); /* CLONE_NEWUSER */
}

static long mount_something(const struct place *place)
{
	return syscall(SYS_mount, "none", place->folder, "tmpfs", 0, NULL);
}

static long set_user(const struct place *place)
{
	(void)place;
	return setuid(0);
}

const struct attempt attempts[] = {
	{ "open", open_file },
	{ "open the image by name", open_image },
	{ "openat without the C library", open_raw },
	{ "make a file", make_file },
	{ "make a file without name", make_unnamed },
	{ "list a folder", list_folder },
	{ "open its own memory", look_at_itself },
	{ "open by handle", open_by_handle },
	{ "unlink", remove_file },
	{ "rename", rename_file },
	{ "symlink", link_file },
	{ "truncate by name", cut_file },
	{ "chdir", change_folder },
	{ "memfd_create", make_memory_file },
	{ "socket", make_socket },
	{ "unix socket", make_unix_socket },
	{ "socketpair", make_pair },
	{ "connect", connect_again },
	{ "listen", listen_on },
	{ "send to another address", send_elsewhere },
	{ "send a descriptor", send_descriptor },
	{ "execve", execute },
	{ "fork", fork_one },
	{ "clone", fork_raw },
	{ "kill the parent", signal_parent },
	{ "kill the broker", signal_broker },
	{ "tgkill the parent", signal_thread_of_parent },
	{ "F_SETOWN", signal_through_file },
	{ "ptrace the parent", trace_parent },
	{ "read the broker", read_broker },
	{ "pidfd_open", hold_process },
	{ "executable memory", make_code },
	{ "mprotect", turn_into_code },
	{ "io_uring", use_ring },
	{ "TIOCSTI", type_on_terminal },
	{ "setrlimit", raise_limit },
	{ "prctl", become_traceable },
	{ "unshare", leave_namespace },
	{ "mount", mount_something },
	{ "setuid", set_user },
	{ NULL, NULL },
};
