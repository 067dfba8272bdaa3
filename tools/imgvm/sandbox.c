/* SPDX-License-Identifier: MIT */
/*
 * See sandbox.h. What a guest that has taken over this process could still do: use the descriptors that are open (the
 * images, KVM, the outputs, the control socket), burn processor time and memory, remove names in the folder of control
 * sockets.
 *
 * seccomp's program is made by libseccomp, and a system call that it does not allow ends the process with a line that
 * names it. Landlock: confine.c.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "cli.h"
#include "confine.h"
#include "fail.h"

static int lacks(const struct sandbox *s, const char *what, struct img_error *err)
{
	if (s->mode != CONFINE_REQUIRE)
		return 0;
	return fail(err, IMG_E_UNSUPPORTED, "--sandbox=require: %s", what);
}

#ifdef IMG_SANDBOX_UNFIT
int sandbox_close_files(struct sandbox *s, int folder, struct img_error *err)
{
	(void)folder;
	return lacks(s, confine_unfit(), err);
}

int sandbox_close_calls(struct sandbox *s, void (*rescue)(void), struct img_error *err)
{
	(void)rescue;
	return lacks(s, confine_unfit(), err);
}
#else
int sandbox_close_files(struct sandbox *s, int folder, struct img_error *err)
{
	if (s->mode == CONFINE_OFF)
		return 0;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return lacks(s, "this kernel cannot forbid new privileges", err);
	s->landlock = confine_files(&(struct confine_files){ .folder = folder, .pagemap = true }) == 0;
	return s->landlock ? 0 : lacks(s, "this kernel has no Landlock", err);
}
#endif

/* ---- seccomp ----------------------------------------------------------------------------------------------------- */

#if !defined(IMG_SANDBOX_UNFIT) && !defined(IMG_HAVE_SECCOMP)
int sandbox_close_calls(struct sandbox *s, void (*rescue)(void), struct img_error *err)
{
	(void)rescue;
	return s->mode == CONFINE_OFF ? 0 : lacks(s, "this build has no seccomp (libseccomp was missing)", err);
}
#elif !defined(IMG_SANDBOX_UNFIT)
#include <linux/fs.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <termios.h>

/* In the order of how often they are called, as far as that matters. */
static const int calls[] = {
	/* waiting and waking */
	SCMP_SYS(futex),
	SCMP_SYS(read),
	SCMP_SYS(write),
	SCMP_SYS(poll),
	SCMP_SYS(ppoll),
	SCMP_SYS(epoll_wait),
	SCMP_SYS(clock_nanosleep),
	SCMP_SYS(nanosleep),
	SCMP_SYS(clock_gettime),
	SCMP_SYS(gettimeofday),
	SCMP_SYS(restart_syscall),
	SCMP_SYS(sched_yield),
	SCMP_SYS(timerfd_settime),
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
	SCMP_SYS(fsync),
	SCMP_SYS(fdatasync),
	SCMP_SYS(sync_file_range),
	SCMP_SYS(fallocate),
	SCMP_SYS(ftruncate),
	SCMP_SYS(fcntl),
	SCMP_SYS(flock),
	SCMP_SYS(fstat),
	SCMP_SYS(fstatfs),
	SCMP_SYS(fadvise64),
	SCMP_SYS(copy_file_range),
	SCMP_SYS(close),
	/* memory; new mappings that can be executed are refused below */
	SCMP_SYS(munmap),
	SCMP_SYS(mremap),
	SCMP_SYS(madvise),
	SCMP_SYS(brk),
	SCMP_SYS(sysinfo), /* qsort() of much asks how much memory there is */
	SCMP_SYS(mincore),
	/* clients of the control socket */
	SCMP_SYS(accept4),
	SCMP_SYS(recvfrom),
	SCMP_SYS(sendto),
	SCMP_SYS(recvmsg),
	SCMP_SYS(sendmsg),
	SCMP_SYS(getsockopt),
	SCMP_SYS(shutdown),
	SCMP_SYS(geteuid),
	SCMP_SYS(unlinkat),
	/* ourselves, and our end */
	SCMP_SYS(getpid),
	SCMP_SYS(gettid),
	SCMP_SYS(getpgrp),
	SCMP_SYS(rt_sigreturn),
	SCMP_SYS(rt_sigaction),
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

/* What is asked of KVM once the machine stands, of terminals, and of block devices that are images. */
static const unsigned long requests[] = {
	KVM_RUN,
	KVM_SIGNAL_MSI,
	KVM_IRQ_LINE,
	KVM_IRQ_LINE_STATUS,
	KVM_IOEVENTFD,
	KVM_GET_DIRTY_LOG,
	KVM_CLEAR_DIRTY_LOG,
	KVM_SET_USER_MEMORY_REGION,
	KVM_SET_SIGNAL_MASK,
	KVM_CHECK_EXTENSION,
	KVM_GET_REGS,
	KVM_SET_REGS,
	KVM_GET_SREGS,
	KVM_SET_SREGS,
	KVM_GET_SREGS2,
	KVM_SET_SREGS2,
	KVM_GET_MP_STATE,
	KVM_SET_MP_STATE,
	KVM_GET_XSAVE,
	KVM_SET_XSAVE,
	KVM_GET_XSAVE2,
	KVM_GET_XCRS,
	KVM_SET_XCRS,
	KVM_GET_FPU,
	KVM_SET_FPU,
	KVM_GET_DEBUGREGS,
	KVM_SET_DEBUGREGS,
	KVM_GET_LAPIC,
	KVM_SET_LAPIC,
	KVM_GET_MSRS,
	KVM_SET_MSRS,
	KVM_GET_MSR_INDEX_LIST,
	KVM_GET_VCPU_EVENTS,
	KVM_SET_VCPU_EVENTS,
	KVM_GET_SUPPORTED_CPUID,
	KVM_GET_CPUID2,
	KVM_SET_CPUID2,
	KVM_GET_TSC_KHZ,
	KVM_SET_TSC_KHZ,
	KVM_KVMCLOCK_CTRL,
	KVM_GET_CLOCK,
	KVM_SET_CLOCK,
	KVM_GET_PIT2,
	KVM_SET_PIT2,
	KVM_GET_IRQCHIP,
	KVM_SET_IRQCHIP,
	KVM_SET_GSI_ROUTING,
	KVM_GET_DEVICE_ATTR,
	KVM_SET_DEVICE_ATTR,
	KVM_HAS_DEVICE_ATTR,
	KVM_TRANSLATE,
	TCGETS,
	TCSETS,
	TCSETSW,
	TCSETSF,
	TIOCGPGRP,
	TIOCGWINSZ,
	FIONREAD,
	BLKDISCARD,
	BLKZEROOUT,
	BLKGETSIZE64,
	BLKSSZGET,
	BLKDISCARDZEROES,
};

/* What C libraries try and can do without: an error, not the end. */
static const int refused[] = { SCMP_SYS(open),	   SCMP_SYS(openat),	 SCMP_SYS(openat2),
			       SCMP_SYS(stat),	   SCMP_SYS(lstat),	 SCMP_SYS(access),
			       SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(prctl) };

static int allow_calls(scmp_filter_ctx ctx)
{
	int ret = 0;

	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(requests); i++)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
				       SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, requests[i]));
	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(calls); i++)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, calls[i], 0);
	for (size_t i = 0; ret == 0 && i < ARRAY_LEN(refused); i++)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EACCES), refused[i], 0);
	return ret;
}

/* Allowed in part only. */
static int allow_parts(scmp_filter_ctx ctx)
{
	int ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));

	if (ret == 0)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
				       SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	/* raise(), and what wakes a processor; nobody else is signalled */
	if (ret == 0)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
				       SCMP_A0(SCMP_CMP_MASKED_EQ, UINT32_MAX, (scmp_datum_t)getpid()));
	/* fstat() by other names: the file is given by a descriptor */
	if (ret == 0)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(newfstatat), 1,
				       SCMP_A3(SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, AT_EMPTY_PATH));
	if (ret == 0)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(statx), 1,
				       SCMP_A2(SCMP_CMP_MASKED_EQ, AT_EMPTY_PATH, AT_EMPTY_PATH));
	/* libimg makes a thread when it first has work for one. A process it never makes; clone3's flags lie in memory,
	 * where no filter sees them, and the C library goes on with clone. */
	if (ret == 0)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
				       SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
	if (ret == 0)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	return ret;
}

/* All threads at once; with a tree in place of a list, since every exit of the guest passes it. */
static int load_filter(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_TRAP);
	int ret;

	if (!ctx)
		return -ENOMEM;
	ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	if (ret == 0)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (ret == 0)
		ret = allow_calls(ctx);
	if (ret == 0)
		ret = allow_parts(ctx);
	if (ret == 0)
		ret = seccomp_load(ctx);
	seccomp_release(ctx);
	return ret;
}

int sandbox_close_calls(struct sandbox *s, void (*rescue)(void), struct img_error *err)
{
	if (s->mode == CONFINE_OFF)
		return 0;
	confine_catch("imgvm", rescue, -1);
	s->seccomp = load_filter() == 0;
	return s->seccomp ? 0 : lacks(s, "this kernel has no seccomp filters", err);
}
#endif
