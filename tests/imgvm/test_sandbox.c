/* SPDX-License-Identifier: MIT */
/*
 * What a confined process can still do, and what ends it. Each attempt is made by a child under the sandbox; a second
 * list is tried by a thread that was there before the filter. What the machine needs must go on working.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox.h"

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define REFUSED	     40 /* exit status of a child whose attempt failed with EACCES or EPERM */
#define SUCCEEDED    41
#define OTHERWISE    42 /* it failed for another reason */

static char folder[64];
static int folder_fd, file_fd;

/* ---- attempts: each returns as a system call does ---------------------------------------------------------------- */

static long open_file(void)
{
	return open("/etc/passwd", O_RDONLY);
}

static long open_relative(void)
{
	return openat(folder_fd, "../../etc/passwd", O_RDONLY);
}

static long make_file(void)
{
	return openat(folder_fd, "new", O_CREAT | O_WRONLY, 0600);
}

static long open_kvm(void)
{
	return open("/dev/kvm", O_RDWR);
}

static long remove_elsewhere(void)
{
	return unlink("/tmp/imgvm-sandbox-victim");
}

static long make_socket(void)
{
	return socket(AF_INET, SOCK_STREAM, 0);
}

static long make_unix_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0);
}

static long execute(void)
{
	char *argv[] = { "true", NULL };

	return execve("/bin/true", argv, NULL);
}

static long fork_one(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid;
}

static long fork_raw(void)
{
	long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	return pid;
}

static long signal_parent(void)
{
	return kill(getppid(), 0);
}

static long signal_parent_thread(void)
{
	return syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static long trace(void)
{
	return ptrace(PTRACE_TRACEME, 0, 0, 0);
}

static long map_code(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}

static long make_code(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mprotect(page, 4096, PROT_READ | PROT_EXEC);
}

static long inject_input(void)
{
	return ioctl(0, TIOCSTI, "x");
}

static long create_vm(void)
{
	return ioctl(file_fd, KVM_CREATE_VM, 0);
}

static long change_root(void)
{
	return chroot("/");
}

static long rename_file(void)
{
	return rename("/tmp/imgvm-sandbox-victim", "/tmp/imgvm-sandbox-gone");
}

static long change_mode(void)
{
	return fchmod(file_fd, 0777);
}

static long load_bpf(void)
{
	return syscall(SYS_bpf, 0, NULL, 0);
}

static long use_io_uring(void)
{
	return syscall(SYS_io_uring_setup, 1, NULL);
}

static long (*const attempts[])(void) = {
	open_file,    open_relative, make_file, open_kvm,      remove_elsewhere,     make_socket, make_unix_socket,
	execute,      fork_one,	     fork_raw,	signal_parent, signal_parent_thread, trace,	  map_code,
	make_code,    inject_input,  create_vm, change_root,   rename_file,	     change_mode, load_bpf,
	use_io_uring,
};
static const char *const names[] = {
	"open_file",
	"open_relative",
	"make_file",
	"open_kvm",
	"remove_elsewhere",
	"make_socket",
	"make_unix_socket",
	"execute",
	"fork_one",
	"fork_raw",
	"signal_parent",
	"signal_parent_thread",
	"trace",
	"map_code",
	"make_code",
	"inject_input",
	"create_vm",
	"change_root",
	"rename_file",
	"change_mode",
	"load_bpf",
	"use_io_uring",
};

/* ---- children ---------------------------------------------------------------------------------------------------- */

static int judge(long ret)
{
	if (ret >= 0)
		return SUCCEEDED;
	return errno == EACCES || errno == EPERM || errno == ENOSYS ? REFUSED : OTHERWISE;
}

static void confine(void)
{
	struct sandbox s = { .mode = CONFINE_REQUIRE };
	struct img_error err = { .code = IMG_OK };

	if (sandbox_close_files(&s, folder_fd, &err) != 0 || sandbox_close_calls(&s, NULL, &err) != 0 || !s.landlock ||
	    !s.seccomp) {
		fprintf(stderr, "%s\n", err.msg);
		_exit(99);
	}
}

struct other_thread {
	sem_t go;
	long (*attempt)(void);
};

static void *other_thread(void *arg)
{
	struct other_thread *other = arg;

	while (sem_wait(&other->go) != 0)
		continue;
	_exit(judge(other->attempt()));
}

/* The thread is there before the calls are closed and after the files are, as the machine's are. */
static void attempt_in_thread(long (*attempt)(void))
{
	struct other_thread other = { .attempt = attempt };
	struct sandbox s = { .mode = CONFINE_REQUIRE };
	pthread_t thread;

	sem_init(&other.go, 0, 0);
	if (sandbox_close_files(&s, folder_fd, NULL) != 0 || pthread_create(&thread, NULL, other_thread, &other) != 0 ||
	    sandbox_close_calls(&s, NULL, NULL) != 0)
		_exit(99);
	sem_post(&other.go);
	pthread_join(thread, NULL);
	_exit(98);
}

static int run_child(long (*attempt)(void), bool in_thread)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		if (!freopen("/dev/null", "w", stderr))
			_exit(97);
		if (in_thread)
			attempt_in_thread(attempt);
		confine();
		_exit(judge(attempt()));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void check_attempts(bool in_thread)
{
	bool all = true;

	for (size_t i = 0; i < ARRAY_LEN(attempts); i++) {
		int status = run_child(attempts[i], in_thread);

		if ((WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) ||
		    (WIFEXITED(status) && WEXITSTATUS(status) == REFUSED))
			continue;
		print_error("%s: status 0x%x\n", names[i], (unsigned)status);
		all = false;
	}
	assert_true(all);
}

static void test_attempts(void **state)
{
	(void)state;
	check_attempts(false);
}

static void test_attempts_in_thread(void **state)
{
	(void)state;
	check_attempts(true);
}

/* The attempts are such that they would succeed, or fail otherwise: the test can fail. */
static void test_attempts_without(void **state)
{
	(void)state;
	assert_int_equal(judge(open_file()), SUCCEEDED);
	assert_int_equal(judge(open_relative()), SUCCEEDED);
	assert_int_equal(judge(make_file()), SUCCEEDED);
	assert_int_equal(unlinkat(folder_fd, "new", 0), 0);
	assert_int_equal(judge(make_unix_socket()), SUCCEEDED);
	assert_int_equal(judge(fork_one()), SUCCEEDED);
	assert_int_equal(judge(fork_raw()), SUCCEEDED);
	assert_int_equal(judge(signal_parent()), SUCCEEDED);
	assert_int_equal(judge(signal_parent_thread()), SUCCEEDED);
	assert_int_equal(judge(map_code()), SUCCEEDED);
	assert_int_equal(judge(make_code()), SUCCEEDED);
	assert_int_equal(judge(change_mode()), SUCCEEDED);
	while (wait(NULL) > 0)
		continue;
}

/* ---- what must go on --------------------------------------------------------------------------------------------- */

static void *new_thread(void *arg)
{
	*(int *)arg = 1;
	return NULL;
}

#define NEED(what)                                                                           \
	do {                                                                                 \
		if (!(what)) {                                                               \
			fprintf(stderr, "in the sandbox: %s: %s\n", #what, strerror(errno)); \
			_exit(1);                                                            \
		}                                                                            \
	} while (0)

static void work(void)
{
	char buf[64] = "x";
	struct stat st;
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
	pthread_t thread;
	int done = 0, pagemap, event = eventfd(0, EFD_CLOEXEC);
	void *page;

	confine();
	NEED((pagemap = event) >= 0);
	NEED(pwrite(file_fd, buf, sizeof(buf), 0) == sizeof(buf));
	NEED(pread(file_fd, buf, sizeof(buf), 0) == sizeof(buf));
	NEED(fdatasync(file_fd) == 0);
	NEED(ftruncate(file_fd, 1 << 20) == 0);
	NEED(fallocate(file_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0 || errno == EOPNOTSUPP);
	NEED(fstat(file_fd, &st) == 0);
	NEED(lseek(file_fd, 0, SEEK_DATA) >= 0 || errno == ENXIO);
	NEED(fcntl(file_fd, F_OFD_SETLK, &lock) == 0);
	NEED((page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_fd, 0)) != MAP_FAILED);
	NEED(madvise(page, 4096, MADV_DONTNEED) == 0);
	NEED(munmap(page, 4096) == 0);
	NEED(getrandom(buf, sizeof(buf), 0) == sizeof(buf));
	NEED(pthread_create(&thread, NULL, new_thread, &done) == 0);
	NEED(pthread_join(thread, NULL) == 0 && done == 1);
	NEED(pthread_kill(pthread_self(), 0) == 0);
	NEED(unlinkat(folder_fd, "socket", 0) == 0);
	free(malloc(10 << 20));
	NEED(write(event, "\1\0\0\0\0\0\0\0", 8) == 8);
	_exit(0);
}

static void test_work(void **state)
{
	pid_t pid;
	int status;

	(void)state;
	close(openat(folder_fd, "socket", O_CREAT | O_WRONLY, 0600));
	pid = fork();
	if (pid == 0)
		work();
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* Files alone: what is confined by Landlock where there is no seccomp. */
static void test_files_only(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	if (pid == 0) {
		struct sandbox s = { .mode = CONFINE_REQUIRE };
		int pagemap;

		NEED(sandbox_close_files(&s, folder_fd, NULL) == 0);
		NEED(judge(open_file()) == REFUSED);
		NEED(judge(open_relative()) == REFUSED);
		NEED(judge(make_file()) == REFUSED);
		NEED(judge(remove_elsewhere()) == REFUSED);
		NEED(judge(execute()) == REFUSED);
		NEED((pagemap = open("/proc/self/pagemap", O_RDONLY)) >= 0);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static volatile sig_atomic_t *rescued;

static void rescue(void)
{
	*rescued = 1;
}

/* The end is told: on stderr, and to who has to give back a terminal. */
static void test_last_words(void **state)
{
	int ends[2], status;
	char text[256];
	ssize_t n;
	pid_t pid;

	(void)state;
	rescued = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(pipe(ends), 0);
	pid = fork();
	if (pid == 0) {
		struct sandbox s = { .mode = CONFINE_REQUIRE };

		dup2(ends[1], STDERR_FILENO);
		NEED(sandbox_close_calls(&s, rescue, NULL) == 0);
		syscall(SYS_ioctl, file_fd, 0x12345678, 0);
		_exit(0);
	}
	close(ends[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	n = read(ends[0], text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = '\0';
	assert_non_null(strstr(text, "0x010 (0x12345678)"));
	assert_int_equal(*rescued, 1);
	close(ends[0]);
}

static void test_off(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	if (pid == 0) {
		struct sandbox s = { .mode = CONFINE_OFF };

		NEED(sandbox_close_files(&s, -1, NULL) == 0 && sandbox_close_calls(&s, NULL, NULL) == 0);
		NEED(!s.landlock && !s.seccomp && judge(open_file()) == SUCCEEDED);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static int make_folder(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/imgvm-sandbox-XXXXXX");
	assert_non_null(mkdtemp(folder));
	folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	file_fd = openat(folder_fd, "file", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	close(open("/tmp/imgvm-sandbox-victim", O_CREAT | O_WRONLY, 0600));
	return folder_fd >= 0 && file_fd >= 0 ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	unlinkat(folder_fd, "file", 0);
	unlink("/tmp/imgvm-sandbox-victim");
	return rmdir(folder);
}

/* Without them there is nothing to test. */
static void look_for_both(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		struct sandbox s = { .mode = CONFINE_REQUIRE };
		struct img_error err = { .code = IMG_OK };

		if (sandbox_close_files(&s, -1, &err) != 0 || sandbox_close_calls(&s, NULL, &err) != 0) {
			printf("SKIPPED: %s\n", err.msg);
			fflush(stdout);
			_exit(77);
		}
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0)
		exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_attempts_without),
		cmocka_unit_test(test_attempts),
		cmocka_unit_test(test_attempts_in_thread),
		cmocka_unit_test(test_work),
		cmocka_unit_test(test_files_only),
		cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_off),
	};

	look_for_both();
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
