/* SPDX-License-Identifier: MIT */
/*
 * See confine.h. Landlock speaks to the kernel by its own system calls (Documentation/userspace-api/landlock.rst),
 * which have no wrappers; what a kernel does not know yet is left out, by the version that it tells.
 */
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "cli.h"

enum confine_mode confine_mode(const char *choice)
{
	if (cli_is(choice, "require"))
		return CONFINE_REQUIRE;
	return cli_is(choice, "off") ? CONFINE_OFF : CONFINE_AUTO;
}

const char *confine_unfit(void)
{
#ifdef IMG_SANDBOX_UNFIT
	/* A sanitizer, or the recorder of coverage, does what a sandbox forbids. */
	return "this build is instrumented and cannot be confined";
#else
	return NULL;
#endif
}

/* ---- Landlock ---------------------------------------------------------------------------------------------------- */

#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule	     445
#define __NR_landlock_restrict_self  446
#endif

#define LANDLOCK_VERSION      1u /* LANDLOCK_CREATE_RULESET_VERSION */
#define LANDLOCK_BENEATH      1	 /* LANDLOCK_RULE_PATH_BENEATH */
#define LANDLOCK_READ_FILE    (UINT64_C(1) << 2)
#define LANDLOCK_REMOVE_FILE  (UINT64_C(1) << 5)
#define LANDLOCK_FS_1	      ((UINT64_C(1) << 13) - 1) /* every right of version 1 */
#define LANDLOCK_FS_REFER     (UINT64_C(1) << 13)	/* version 2 */
#define LANDLOCK_FS_TRUNCATE  (UINT64_C(1) << 14)	/* version 3 */
#define LANDLOCK_FS_IOCTL_DEV (UINT64_C(1) << 15)	/* version 5 */
#define LANDLOCK_NET_TCP      UINT64_C(3)		/* version 4: bind and connect */
#define LANDLOCK_SCOPE_ALL    UINT64_C(3)		/* version 6: abstract sockets, signals */

struct landlock_rules {
	uint64_t fs, net, scoped;
};
struct landlock_beneath {
	uint64_t allowed;
	int32_t fd;
} __attribute__((packed));

static struct landlock_rules all_rules(long version)
{
	struct landlock_rules rules = { .fs = LANDLOCK_FS_1 };

	if (version >= 2)
		rules.fs |= LANDLOCK_FS_REFER;
	if (version >= 3)
		rules.fs |= LANDLOCK_FS_TRUNCATE;
	if (version >= 4)
		rules.net = LANDLOCK_NET_TCP;
	if (version >= 5)
		rules.fs |= LANDLOCK_FS_IOCTL_DEV;
	if (version >= 6)
		rules.scoped = LANDLOCK_SCOPE_ALL;
	return rules;
}

/* What the structure had when the version was new: a kernel refuses what it does not know. */
static size_t rules_bytes(long version)
{
	if (version >= 6)
		return sizeof(struct landlock_rules);
	return version >= 4 ? offsetof(struct landlock_rules, scoped) : offsetof(struct landlock_rules, net);
}

static bool allow_beneath(int rules, int fd, uint64_t what)
{
	struct landlock_beneath beneath = { .allowed = what, .fd = fd };

	return syscall(__NR_landlock_add_rule, rules, LANDLOCK_BENEATH, &beneath, 0) == 0;
}

long confine_landlock_version(void)
{
	return syscall(__NR_landlock_create_ruleset, NULL, 0, LANDLOCK_VERSION);
}

int confine_files(const struct confine_files *left)
{
	long version = confine_landlock_version();
	struct landlock_rules wanted = all_rules(version);
	int rules, pagemap = -1, ret = -1, error;

	if (version < 1)
		return -1;
	rules = (int)syscall(__NR_landlock_create_ruleset, &wanted, rules_bytes(version), 0);
	if (rules < 0)
		return -1;
	if (left->pagemap)
		pagemap = open("/proc/self/pagemap", O_PATH | O_CLOEXEC);
	if ((left->folder < 0 || allow_beneath(rules, left->folder, LANDLOCK_REMOVE_FILE)) &&
	    (pagemap < 0 || allow_beneath(rules, pagemap, LANDLOCK_READ_FILE)))
		ret = (int)syscall(__NR_landlock_restrict_self, rules, 0);
	error = errno;
	if (pagemap >= 0)
		close(pagemap);
	close(rules);
	errno = error;
	return ret;
}

/* ---- seccomp ----------------------------------------------------------------------------------------------------- */

bool confine_has_seccomp(void)
{
	uint32_t action = SECCOMP_RET_TRAP;

	return syscall(__NR_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

static struct {
	const char *name;
	void (*rescue)(void);
	int status;
} caught;

/* Over the zeros that end at digit; only what a signal handler may call: no printf. */
static void put_number(char *digit, unsigned long n)
{
	do {
		*digit-- = "0123456789abcdef"[n % 16];
		n /= 16;
	} while (n);
}

/* Of an ioctl, the request. */
static uint32_t second_argument(const void *context)
{
#ifdef __x86_64__
	return (uint32_t)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RSI];
#else
	(void)context;
	return 0;
#endif
}

static void handle_forbidden(int signal_nr, siginfo_t *info, void *context)
{
	static const char begin[] = ": ended by its sandbox: system call 0x";
	char line[] = ": ended by its sandbox: system call 0x000 (0x00000000)\r\n";

	if (caught.rescue)
		caught.rescue();
	put_number(line + sizeof(begin) + 1, (unsigned)info->si_syscall);
	put_number(line + sizeof(line) - 5, second_argument(context));
	/* nobody hears it: nothing to be done */
	if (write(STDERR_FILENO, "\r\n", caught.status < 0 ? 2 : 0) < 0 ||
	    write(STDERR_FILENO, caught.name, strlen(caught.name)) < 0 ||
	    write(STDERR_FILENO, line, sizeof(line) - 1) < 0)
		*line = '\0';
	if (caught.status >= 0)
		_exit(caught.status);
	raise(signal_nr); /* SA_RESETHAND: this time it ends the process */
}

void confine_catch(const char *name, void (*rescue)(void), int status)
{
	struct sigaction action = { .sa_sigaction = handle_forbidden };

	caught.name = name;
	caught.rescue = rescue;
	caught.status = status;
	action.sa_flags = (int)(SA_SIGINFO | SA_RESETHAND | SA_NODEFER);
	sigaction(SIGSYS, &action, NULL);
}
