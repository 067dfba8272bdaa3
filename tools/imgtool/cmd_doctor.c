/* SPDX-License-Identifier: MIT */
/* imgtool doctor: what this build and this machine offer, what is missing, and how to get it. It changes nothing. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <linux/fs.h>
#include <zlib.h>
#include <zstd.h>

#include "args.h"
#include "cell.h"
#include "output.h"
#include "verbs.h"

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#endif
enum verdict {
	VERDICT_OK,
	VERDICT_MISSING,
	VERDICT_BROKEN
}; /* missing: something else works less well; broken: images cannot be used */

struct finding {
	const char *name;
	enum verdict verdict;
	char detail[128];
	const char *hint; /* NULL: nothing to do */
};

struct findings {
	struct finding at[32];
	unsigned nr;
};

__attribute__((format(printf, 5, 6))) static void add(struct findings *f, const char *name, enum verdict verdict,
						      const char *hint, const char *fmt, ...)
{
	struct finding *finding = &f->at[f->nr++];
	va_list ap;

	finding->name = name;
	finding->verdict = verdict;
	finding->hint = verdict == VERDICT_OK ? NULL : hint;
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	vsnprintf(finding->detail, sizeof(finding->detail), fmt, ap);
	va_end(ap);
}

/* ---- this build -------------------------------------------------------------------------------------------------- */

static void look_at_build(struct findings *f)
{
	char formats[96] = "";
	size_t used = 0;
	struct utsname un;

	add(f, "libimg", VERDICT_OK, NULL, "%s", img_version());
	for (size_t i = 0; img_format_name(i) && used < sizeof(formats) - 20; i++)
		used += (size_t)snprintf(formats + used, sizeof(formats) - used, "%s%s", i ? ", " : "",
					 img_format_name(i));
	add(f, "formats", VERDICT_OK, NULL, "%s", formats);
	add(f, "zlib", VERDICT_OK, NULL, "%s", zlibVersion());
	add(f, "zstd", VERDICT_OK, NULL, "%s", ZSTD_versionString());
	add(f, "jansson", VERDICT_OK, NULL, "%s", jansson_version_str());
	if (uname(&un) == 0)
		add(f, "kernel", VERDICT_OK, NULL, "%.40s %.40s", un.release, un.machine);
}

/* ---- this machine ------------------------------------------------------------------------------------------------ */

static void look_at_device(struct findings *f, const char *name, const char *path, const char *hint)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd >= 0) {
		close(fd);
		add(f, name, VERDICT_OK, NULL, "%s can be opened", path);
		return;
	}
	add(f, name, VERDICT_MISSING, errno == EACCES ? "join the group that owns it (see ls -l)" : hint, "%s: %s",
	    path, strerror(errno));
}

static void look_for_file(struct findings *f, const char *name, const char *path, const char *hint)
{
	if (access(path, R_OK) == 0)
		add(f, name, VERDICT_OK, NULL, "%s", path);
	else
		add(f, name, VERDICT_MISSING, hint, "%s: %s", path, strerror(errno));
}

/* What confines imgtool's parsing confines imgvm's guests. */
static void look_at_sandbox(struct findings *f)
{
	static const char hint[] =
		"images are looked at, and guests run, with what is left of the sandbox: see landlock and seccomp; Debian package "
		"libseccomp-dev when it is built";
	long version = confine_landlock_version();
	int error = errno;

	if (cell_lacks())
		add(f, "sandbox", VERDICT_MISSING, hint, "%s", cell_lacks());
	else
		add(f, "sandbox", VERDICT_OK, NULL, "imgtool's parsing and imgvm's guests: landlock, seccomp");
	if (version > 0)
		add(f, "landlock", VERDICT_OK, NULL, "version %ld", version);
	else
		add(f, "landlock", VERDICT_MISSING, "a kernel from 5.13 on with landlock in its lsm= list", "%s",
		    strerror(error));
	if (confine_has_seccomp())
		add(f, "seccomp", VERDICT_OK, NULL, "filters can be set");
	else
		add(f, "seccomp", VERDICT_MISSING, "a kernel with CONFIG_SECCOMP_FILTER", "%s", strerror(errno));
}

static void look_at_kernel(struct findings *f)
{
	/* without a buffer the call fails by EFAULT where io_uring exists and may be used */
	syscall(__NR_io_uring_setup, 1, NULL);
	if (errno == EFAULT)
		add(f, "io_uring", VERDICT_OK, NULL, "available");
	else
		add(f, "io_uring", VERDICT_MISSING,
		    "a kernel with io_uring; sysctl kernel.io_uring_disabled=0; not filtered by seccomp", "%s",
		    strerror(errno));
}

/* ---- the file system of the working directory -------------------------------------------------------------------- */

static int open_scratch(void)
{
	char name[] = "./.imgtool-doctor-XXXXXX";
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd >= 0)
		return fd;
	fd = mkstemp(name);
	if (fd >= 0)
		unlink(name);
	return fd;
}

static void look_at_locks(struct findings *f, int fd)
{
	struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 1 };

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		add(f, "locks here", VERDICT_OK, NULL, "locks of open file descriptions work in this folder");
	else
		add(f, "locks here", VERDICT_BROKEN,
		    "keep images on a file system with OFD locks (ext4, xfs, btrfs, tmpfs, NFS 4)", "%s",
		    strerror(errno));
}

static void look_at_holes(struct findings *f, int fd)
{
	char block[4096];
	off_t hole;

	memset(block, 1, sizeof(block));
	if (pwrite(fd, block, sizeof(block), 0) != sizeof(block) ||
	    pwrite(fd, block, sizeof(block), 1 << 20) != sizeof(block)) {
		add(f, "holes here", VERDICT_BROKEN, "make room in this folder", "write: %s", strerror(errno));
		return;
	}
	hole = lseek(fd, 0, SEEK_HOLE);
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, sizeof(block)) == 0 && hole > 0 &&
	    hole < 1 << 20)
		add(f, "holes here", VERDICT_OK, NULL, "sparse files and hole punching work in this folder");
	else
		add(f, "holes here", VERDICT_MISSING,
		    "images work, but freed space does not return to this file system", "no %s",
		    hole > 0 && hole < 1 << 20 ? "hole punching" : "sparse files");
}

static void look_at_reflink(struct findings *f, int fd)
{
	int copy = open_scratch();

	if (copy >= 0 && ioctl(copy, FICLONE, fd) == 0)
		add(f, "reflink here", VERDICT_OK, NULL, "copies share space in this folder");
	else
		add(f, "reflink here", VERDICT_MISSING, "only matters for copies of raw files: xfs and btrfs have it",
		    "%s", strerror(errno));
	if (copy >= 0)
		close(copy);
}

static void look_at_folder(struct findings *f)
{
	int fd = open_scratch();

	if (fd < 0) {
		add(f, "this folder", VERDICT_MISSING, "run it in the folder where the images are",
		    "cannot be written: %s", strerror(errno));
		return;
	}
	look_at_locks(f, fd);
	look_at_holes(f, fd);
	look_at_reflink(f, fd);
	close(fd);
}

static void look_for_program(struct findings *f, const char *name, const char *program, const char *hint)
{
	const char *path = getenv("PATH");
	char file[4096];

	for (const char *at = path; at && *at; at += strcspn(at, ":"), at += *at == ':') {
		snprintf(file, sizeof(file), "%.*s/%s", (int)strcspn(at, ":"), at, program);
		if (access(file, X_OK) == 0) {
			add(f, name, VERDICT_OK, NULL, "%.100s", file);
			return;
		}
	}
	add(f, name, VERDICT_MISSING, hint, "not found");
}

/* ---- the verb ---------------------------------------------------------------------------------------------------- */

static const char *verdict_name(enum verdict verdict)
{
	switch (verdict) {
	case VERDICT_OK: return "ok";
	case VERDICT_MISSING: return "missing";
	case VERDICT_BROKEN: break;
	}
	return "broken";
}

static int print_json(const struct findings *f)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < f->nr; i++)
		json_array_append_new(array, json_pack("{s:s, s:s, s:o, s:o}", "name", f->at[i].name, "verdict",
						       verdict_name(f->at[i].verdict), "detail",
						       output_json_text(f->at[i].detail), "hint",
						       output_json_text(f->at[i].hint)));
	return output_json(json_pack("{s:o, s:s}", "findings", array, "version", img_version()));
}

static void print_text(const struct findings *f)
{
	for (unsigned i = 0; i < f->nr; i++) {
		printf("%-8s %-14s ", verdict_name(f->at[i].verdict), f->at[i].name);
		output_escaped(stdout, f->at[i].detail);
		if (f->at[i].hint)
			printf(": %s", f->at[i].hint);
		putchar('\n');
	}
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct common_args *args = verb_args;
	struct findings f = { .nr = 0 };
	int status = EXIT_DONE;

	(void)verb;
	(void)operands;
	(void)nr_operands;
	look_at_build(&f);
	look_at_sandbox(&f);
	look_at_kernel(&f);
	look_at_device(
		&f, "kvm", "/dev/kvm",
		"only needed to run machines: modprobe kvm_intel or kvm_amd; in a machine, nested virtualisation");
	look_for_file(&f, "firmware", "/usr/share/seabios/bios.bin",
		      "only needed to run machines that boot from their disk: Debian package seabios");
	look_at_device(&f, "fuse", "/dev/fuse", "only needed to mount images: Debian package fuse3");
	look_at_folder(&f);
	look_for_program(&f, "qemu-img", "qemu-img", "only needed by the tests: Debian package qemu-utils");
	look_for_program(&f, "e2fsck", "e2fsck", "only needed by the demonstration: Debian package e2fsprogs");
	if (args->json)
		status = print_json(&f);
	else
		print_text(&f);
	for (unsigned i = 0; i < f.nr && status == EXIT_DONE; i++) {
		if (f.at[i].verdict == VERDICT_BROKEN)
			status = EXIT_SYSTEM;
	}
	return status;
}

const struct cli_verb verb_doctor = {
	.name = "doctor",
	.operands = "",
	.summary = "Says what this build and this machine offer, and how to get what is missing",
	.details = "What concerns files is tried out in the working directory, with a file that has no name. The exit "
		   "status is 3 if images could not be used there.",
	.example = "cd /srv/images && " PROGRAM " doctor",
	.common = WITH_JSON,
	.args_bytes = sizeof(struct common_args),
	.run = run,
};
