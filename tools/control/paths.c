/* SPDX-License-Identifier: MIT */
/* Where the sockets of machines lie, and which of them belongs to an image. See control.h. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"
#include "fail.h"

#define SUFFIX	    ".sock"
#define RUNTIME_OWN 2  /* the place that we make ourselves */
#define NAME_BYTES  64 /* two hex numbers, a decimal one, the suffix */

/* The i-th place where RUNTIME may be, in the order of preference. False: there are no more. */
static bool runtime_at(unsigned i, char *out, size_t cap)
{
	const char *env = getenv("XDG_RUNTIME_DIR");
	int length = -1;

	switch (i) {
	case 0: length = env && env[0] == '/' ? snprintf(out, cap, "%s", env) : 0; break;
	case 1: length = geteuid() == 0 ? snprintf(out, cap, "/run") : 0; break;
	case RUNTIME_OWN: length = snprintf(out, cap, "/tmp/imgvm-%lu", (unsigned long)geteuid()); break;
	default: return false;
	}
	if (length <= 0 || (size_t)length >= cap)
		out[0] = '\0';
	return true;
}

/* Nobody but us (and root) can put a socket into this folder. */
static int check_folder(const char *folder, struct img_error *err)
{
	struct stat st;

	if (lstat(folder, &st) != 0)
		return errno == ENOENT ? fail(err, IMG_E_NOENT, "%s: there is no such folder", folder) :
					 fail_errno(err, "%s", folder);
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
		return fail(err, IMG_E_REFUSED, "%s: not a folder that is ours and that only we may write", folder);
	return 0;
}

static int make_folder(const char *folder, struct img_error *err)
{
	if (mkdir(folder, S_IRWXU) != 0 && errno != EEXIST)
		return fail_errno(err, "%s: cannot make the folder of control sockets", folder);
	return check_folder(folder, err);
}

static int file_name(const char *image, char out[NAME_BYTES], struct img_error *err)
{
	struct stat st;

	if (stat(image, &st) != 0)
		return errno == ENOENT ? fail(err, IMG_E_NOENT, "%s: no such file", image) :
					 fail_errno(err, "%s", image);
	snprintf(out, NAME_BYTES, "%" PRIx64 "-%" PRIx64, (uint64_t)st.st_dev, (uint64_t)st.st_ino);
	return 0;
}

static int join(char out[CONTROL_PATH_BYTES], struct img_error *err, const char *folder, const char *name)
{
	if (snprintf(out, CONTROL_PATH_BYTES, "%s/%s", folder, name) >= CONTROL_PATH_BYTES)
		return fail(err, IMG_E_LIMIT, "%s: the name is too long for a control socket", folder);
	return 0;
}

int control_file(const char *name, char out[CONTROL_PATH_BYTES], struct img_error *err)
{
	char runtime[CONTROL_PATH_BYTES], folder[CONTROL_PATH_BYTES + sizeof("/imgvm")];
	int code;

	for (unsigned i = 0; runtime_at(i, runtime, sizeof(runtime)); i++) {
		bool own = i == RUNTIME_OWN;

		if (runtime[0] == '\0' || (!own && access(runtime, W_OK) != 0))
			continue;
		if (own && (code = make_folder(runtime, err)) != 0)
			return code;
		snprintf(folder, sizeof(folder), "%s/imgvm", runtime);
		code = make_folder(folder, err);
		return code == 0 ? join(out, err, folder, name) : code;
	}
	return fail(err, IMG_E_IO, "no folder for control sockets can be written: set XDG_RUNTIME_DIR");
}

int control_path(const char *image, pid_t pid, char out[CONTROL_PATH_BYTES], struct img_error *err)
{
	char base[NAME_BYTES], name[NAME_BYTES + 32];
	int code = file_name(image, base, err);

	if (code != 0)
		return code;
	if (pid)
		snprintf(name, sizeof(name), "%s-%ld" SUFFIX, base, (long)pid);
	else
		snprintf(name, sizeof(name), "%s" SUFFIX, base);
	return control_file(name, out, err);
}

int control_connect(const char *image, int *fd, struct img_error *err)
{
	char runtime[CONTROL_PATH_BYTES], folder[CONTROL_PATH_BYTES + sizeof("/imgvm")], base[NAME_BYTES];
	char name[NAME_BYTES + sizeof(SUFFIX)], path[CONTROL_PATH_BYTES];
	int code = file_name(image, base, err);

	if (code != 0)
		return code;
	snprintf(name, sizeof(name), "%s" SUFFIX, base);
	for (unsigned i = 0; runtime_at(i, runtime, sizeof(runtime)); i++) {
		struct img_error why = { .code = IMG_OK };

		snprintf(folder, sizeof(folder), "%s/imgvm", runtime);
		if (runtime[0] == '\0' || check_folder(folder, &why) != 0 || join(path, &why, folder, name) != 0)
			continue;
		code = control_dial(path, fd, &why);
		if (code == 0)
			return 0;
		if (code != IMG_E_NOENT)
			return fail(err, code, "%s", why.msg);
	}
	return fail(err, IMG_E_NOENT, "no machine runs from %s", image);
}

/* ---- machines that share an image -------------------------------------------------------------------------------- */

struct search {
	const char *base; /* DEV-INO */
	pid_t pid;	  /* wanted; 0: any */
	int fd;		  /* of the first one found; -1 */
	unsigned nr;
	char list[128]; /* their process ids */
};

/* The process id in DEV-INO-PID.sock; 0: another name. */
static pid_t sharer(const char *name, const char *base)
{
	size_t base_bytes = strlen(base);
	char *end;
	long pid;

	if (strncmp(name, base, base_bytes) != 0 || name[base_bytes] != '-' || name[base_bytes + 1] < '1' ||
	    name[base_bytes + 1] > '9')
		return 0;
	errno = 0;
	pid = strtol(name + base_bytes + 1, &end, 10);
	return errno == 0 && pid <= INT32_MAX && strcmp(end, SUFFIX) == 0 ? (pid_t)pid : 0;
}

static void look_into(struct search *s, const char *folder)
{
	char path[CONTROL_PATH_BYTES];
	struct dirent *entry;
	DIR *dir;
	int fd;

	if (check_folder(folder, NULL) != 0 || !(dir = opendir(folder)))
		return;
	while ((entry = readdir(dir)) != NULL) {
		pid_t pid = sharer(entry->d_name, s->base);
		size_t used = strlen(s->list);

		if (pid == 0 || (s->pid && s->pid != pid) || join(path, NULL, folder, entry->d_name) != 0 ||
		    control_dial(path, &fd, NULL) != 0)
			continue;
		snprintf(s->list + used, sizeof(s->list) - used, "%s%ld", s->nr ? ", " : "", (long)pid);
		if (s->nr++ == 0)
			s->fd = fd;
		else
			close(fd);
	}
	closedir(dir);
}

int control_connect_any(const char *image, pid_t pid, int *fd, struct img_error *err)
{
	char runtime[CONTROL_PATH_BYTES], folder[CONTROL_PATH_BYTES + sizeof("/imgvm")], base[NAME_BYTES];
	struct search s = { .base = base, .pid = pid, .fd = -1 };
	struct img_error why = { .code = IMG_OK };
	int code = pid ? IMG_E_NOENT : control_connect(image, fd, &why);

	if (code != IMG_E_NOENT)
		return code == 0 ? 0 : fail(err, code, "%s", why.msg);
	code = file_name(image, base, err);
	if (code != 0)
		return code;
	for (unsigned i = 0; runtime_at(i, runtime, sizeof(runtime)); i++) {
		snprintf(folder, sizeof(folder), "%s/imgvm", runtime);
		if (runtime[0])
			look_into(&s, folder);
	}
	if (s.nr == 0 && pid)
		return fail(err, IMG_E_NOENT, "no machine with process id %ld runs from %s", (long)pid, image);
	if (s.nr == 0)
		return fail(err, IMG_E_NOENT, "no machine runs from %s", image);
	if (s.nr > 1) {
		close(s.fd);
		return fail(err, IMG_E_LIMIT, "%u machines run from %s: choose one by --pid: %s", s.nr, image, s.list);
	}
	*fd = s.fd;
	return 0;
}
