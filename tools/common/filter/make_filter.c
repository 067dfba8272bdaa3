/* SPDX-License-Identifier: MIT */
/*
 * Prints the seccomp program of the cell (cell.c) as rows of a C array. Built and run while the tools are built,
 * because making the program takes libseccomp longer than imgtool takes for most of what it does.
 *
 * The list holds what parsing, copying, writing and printing need of the kernel when every file comes as a descriptor.
 * A call that is not on it ends the process (SIGSYS, confine.c). Calls are judged by their numbers and plain arguments
 * alone; where what matters lies in memory (clone3, names of files), the call is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* In the order of how often they are called, as far as that matters. */
static const int calls[] = {
	/* waiting and waking */
	SCMP_SYS(futex),
	SCMP_SYS(futex_time64),
	SCMP_SYS(read),
	SCMP_SYS(write),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(ppoll_time64),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(clock_gettime64),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(clock_nanosleep_time64),
	SCMP_SYS(nanosleep),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(sched_yield),
	/* images and outputs */
	SCMP_SYS(pread64),
	SCMP_SYS(pwrite64),
	SCMP_SYS(preadv),
	SCMP_SYS(pwritev),
	SCMP_SYS(preadv2),
	SCMP_SYS(pwritev2),
	SCMP_SYS(readv),
	SCMP_SYS(writev),
	SCMP_SYS(lseek),
	SCMP_SYS(_llseek),
	SCMP_SYS(fsync),
	SCMP_SYS(fdatasync),
	SCMP_SYS(sync_file_range),
	SCMP_SYS(fallocate),
	SCMP_SYS(ftruncate),
	SCMP_SYS(ftruncate64),
	SCMP_SYS(fstat),
	SCMP_SYS(fstat64),
	SCMP_SYS(fstatfs),
	SCMP_SYS(fstatfs64),
	SCMP_SYS(fadvise64),
	SCMP_SYS(fadvise64_64),
	SCMP_SYS(copy_file_range),
	SCMP_SYS(close),
	/* memory; mappings that can be executed are refused below */
	SCMP_SYS(munmap),
	SCMP_SYS(mremap),
	SCMP_SYS(madvise),
	SCMP_SYS(brk),
	SCMP_SYS(sysinfo), /* qsort() of much asks how much memory there is */
	SCMP_SYS(mincore),
	/* the broker: a socket that is there already, and the end of that process */
	SCMP_SYS(recvmsg),
	SCMP_SYS(wait4),
	/* ourselves, and our end */
	SCMP_SYS(getpid),
	SCMP_SYS(gettid),
	SCMP_SYS(getppid),
	SCMP_SYS(getpgrp),
	SCMP_SYS(getuid),
	SCMP_SYS(geteuid),
	SCMP_SYS(getgid),
	SCMP_SYS(getegid),
	SCMP_SYS(getuid32),
	SCMP_SYS(geteuid32),
	SCMP_SYS(getgid32),
	SCMP_SYS(getegid32),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(sigreturn),
	SCMP_SYS(rt_sigaction),
	SCMP_SYS(tgkill), /* of the process itself: cell.c sees to that */
	SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(sigaltstack),
	SCMP_SYS(set_robust_list),
	SCMP_SYS(rseq),
	SCMP_SYS(membarrier),
	SCMP_SYS(sched_getaffinity),
	SCMP_SYS(getrandom),
	SCMP_SYS(exit),
	SCMP_SYS(exit_group),
};

/* Of block devices that are images, and of the terminal that shows progress. */
static const unsigned long requests[] = {
	BLKGETSIZE64, BLKSSZGET, BLKDISCARD, BLKZEROOUT, BLKDISCARDZEROES, TCGETS, TIOCGWINSZ, TIOCGPGRP, FIONREAD,
};

/* Locks and flags; not F_SETOWN, which has signals sent. */
static const int commands[] = { F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW };

/* Where sockets go through one call (32-bit x86, IBM Z), its first argument says what is meant: send() has no address,
 * recvmsg(). */
static const unsigned long socket_calls[] = { 9 /* SYS_SEND */, 17 /* SYS_RECVMSG */ }; /* linux/net.h */

/* What C libraries try and can do without: an error, not the end. */
static const int refused[] = { SCMP_SYS(open),	    SCMP_SYS(openat),	  SCMP_SYS(openat2),  SCMP_SYS(stat),
			       SCMP_SYS(stat64),    SCMP_SYS(lstat),	  SCMP_SYS(lstat64),  SCMP_SYS(access),
			       SCMP_SYS(faccessat), SCMP_SYS(faccessat2), SCMP_SYS(readlink), SCMP_SYS(readlinkat),
			       SCMP_SYS(prctl),	    SCMP_SYS(prlimit64) };

/* What an architecture does not have has a negative number. */
static int add(scmp_filter_ctx ctx, uint32_t action, int call)
{
	return call < 0 ? 0 : seccomp_rule_add(ctx, action, call, 0);
}

static int add_if(scmp_filter_ctx ctx, int call, struct scmp_arg_cmp cmp)
{
	return call < 0 ? 0 : seccomp_rule_add(ctx, SCMP_ACT_ALLOW, call, 1, cmp);
}

static int allow_calls(scmp_filter_ctx ctx)
{
	int ret = 0;

	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(calls); i++)
		ret = add(ctx, SCMP_ACT_ALLOW, calls[i]);
	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(requests); i++)
		ret = add_if(ctx, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, requests[i]));
	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(commands); i++) {
		struct scmp_arg_cmp is = SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, (scmp_datum_t)commands[i]);

		ret = add_if(ctx, SCMP_SYS(fcntl), is);
		if (ret == 0)
			ret = add_if(ctx, SCMP_SYS(fcntl64), is);
	}
	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(socket_calls); i++)
		ret = add_if(ctx, SCMP_SYS(socketcall), SCMP_A0(SCMP_CMP_MASKED_EQ, UINT32_MAX, socket_calls[i]));
	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(refused); i++)
		ret = add(ctx, SCMP_ACT_ERRNO(EACCES), refused[i]);
	return ret;
}

/* Allowed in part only. */
static int allow_parts(scmp_filter_ctx ctx)
{
	struct scmp_arg_cmp not_executable = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
	/* fstat() by other names: the file is given by a descriptor. That a name follows all the same cannot be seen
	 * here: what it would tell is that a file exists, and its size. */
	struct scmp_arg_cmp by_descriptor = SCMP_A3(SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, AT_EMPTY_PATH);
	struct scmp_arg_cmp statx_by_descriptor = SCMP_A2(SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, AT_EMPTY_PATH);
	/* libimg makes threads when it first has work for one. A process it never makes; clone3's flags lie in memory,
	 * and the C library goes on with clone. */
#ifdef __s390x__
	struct scmp_arg_cmp thread = SCMP_A1(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD);
	int ret = add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap)); /* its arguments lie in memory */
#else
	struct scmp_arg_cmp thread = SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD);
	int ret = SCMP_SYS(mmap2) < 0 ? add_if(ctx, SCMP_SYS(mmap), not_executable) : 0;
#endif

	if (ret == 0)
		ret = add_if(ctx, SCMP_SYS(mmap2), not_executable);
	if (ret == 0)
		ret = add_if(ctx, SCMP_SYS(mprotect), not_executable);
	if (ret == 0)
		ret = add_if(ctx, SCMP_SYS(newfstatat), by_descriptor);
	if (ret == 0)
		ret = add_if(ctx, SCMP_SYS(fstatat64), by_descriptor);
	if (ret == 0)
		ret = add_if(ctx, SCMP_SYS(statx), statx_by_descriptor);
	/* To who is connected already, and without descriptors: sendmsg() is not on the list. Where it goes through
	 * socketcall, libseccomp would look for the address where it is not. */
	if (ret == 0 && SCMP_SYS(socketcall) < 0)
		ret = add_if(ctx, SCMP_SYS(sendto), SCMP_A4(SCMP_CMP_EQ, 0, 0));
	if (ret == 0)
		ret = add_if(ctx, SCMP_SYS(clone), thread);
	if (ret == 0)
		ret = add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3));
	return ret;
}

static int print(scmp_filter_ctx ctx)
{
	struct sock_filter row;
	FILE *f = tmpfile();
	int ret = f ? seccomp_export_bpf(ctx, fileno(f)) : -errno;

	if (ret != 0)
		return ret;
	rewind(f);
	while (fread(&row, sizeof(row), 1, f) == 1)
		printf("{ 0x%x, %u, %u, 0x%x },\n", row.code, row.jt, row.jf, row.k);
	fclose(f);
	return 0;
}

int main(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);
	int ret = ctx ? 0 : -ENOMEM;

	/* another architecture's calls (32-bit ones) come from nobody who means well */
	if (ret == 0)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* a tree in place of a list */
	if (ret == 0)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (ret == 0)
		ret = allow_calls(ctx);
	if (ret == 0)
		ret = allow_parts(ctx);
	if (ret == 0)
		ret = print(ctx);
	if (ret != 0)
		fprintf(stderr, "make_filter: %s\n", strerror(-ret));
	seccomp_release(ctx);
	return ret == 0 ? 0 : 1;
}
