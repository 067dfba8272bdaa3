/* SPDX-License-Identifier: MIT */
/*
 * The reference broker: the one place where a name that stands in an image becomes an open file. Images come from
 * strangers; a name in one must not make us read /etc/shadow, block on a FIFO, or talk to the network.
 *
 *  - Names are paths. Anything with a scheme ("nbd:", "json:{", "https://") is refused: a path that really looks so can
 * be written with "./" before it.
 *  - none: refused. dir: the image's own folder and below, which the kernel enforces against symbolic links and ".." by
 *    openat2(RESOLVE_BENEATH); where that call does not exist, we walk the path ourselves and take no symbolic link at
 * all. any: any path.
 *  - Read-only; regular files, and with "any" block devices; opened so that nothing can block, and judged by fstat() of
 *    the descriptor, not by name. For writing (the data file of an image that is written): regular files alone.
 *
 * Depth and cycles are the chain's business (chain.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker.h"
#include "error.h"

#define LAYER	   "broker"
#define OPEN_FLAGS (O_CLOEXEC | O_NONBLOCK | O_NOCTTY)

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static bool has_scheme(const char *name)
{
	size_t len = strcspn(name, ":/");

	return name[len] == ':';
}

char *broker_folder(const char *path, struct img_error *err)
{
	const char *slash = strrchr(path, '/');
	char *folder;

	if (!slash)
		folder = strdup(".");
	else if (slash == path)
		folder = strdup("/");
	else
		folder = strndup(path, (size_t)(slash - path));
	if (!folder)
		no_memory(err);
	return folder;
}

static char *join(const char *folder, const char *name, struct img_error *err)
{
	char *out = NULL;
	int ret;

	if (name[0] == '/')
		ret = asprintf(&out, "%s", name);
	else if (strcmp(folder, ".") == 0)
		ret = asprintf(&out, "%s", name);
	else
		ret = asprintf(&out, "%s%s%s", folder, folder[strlen(folder) - 1] == '/' ? "" : "/", name);
	if (ret < 0) {
		no_memory(err);
		return NULL;
	}
	return out;
}

static int is_folder(const char *path, struct img_error *err)
{
	return error_set(err, IMG_E_INVALID, EISDIR, NO_OFFSET, LAYER, "%s: is a folder", path);
}

/* Is fd what it must be? O_NONBLOCK served only to open it. */
static int judge(int fd, const char *path, bool devices, struct img_error *err)
{
	struct stat sb;
	int flags;

	if (fstat(fd, &sb) < 0)
		return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot stat", path);
	if (S_ISDIR(sb.st_mode))
		return is_folder(path, err);
	if (S_ISBLK(sb.st_mode) && !devices)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: is a block device, which an image may only name under --allow-refs any", path);
	if (!S_ISREG(sb.st_mode) && !S_ISBLK(sb.st_mode))
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: neither a regular file nor a block device", path);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot set up the descriptor", path);
	return 0;
}

/* Is it a link that made an openat() fail with e? */
static bool is_link(int dir, const char *name, int e)
{
	struct stat sb;
	bool is = (e == ELOOP || e == ENOTDIR) && fstatat(dir, name, &sb, AT_SYMLINK_NOFOLLOW) == 0 &&
		  S_ISLNK(sb.st_mode);

	errno = e;
	return is;
}

/* For kernels and sandboxes without openat2(): no symbolic links, no "..". Returns a descriptor or -1 with errno. */
static int walk_beneath(int dir, const char *name, int mode)
{
	char *copy = strdup(name), *save = NULL, *part, *next;
	int last = OPEN_FLAGS | mode | O_NOFOLLOW, at = dir, fd = -1, e = ENOENT;

	if (!copy) {
		errno = ENOMEM;
		return -1;
	}
	if (*name && name[strlen(name) - 1] == '/')
		last |= O_DIRECTORY; /* a name that ends so is no file's */
	for (part = strtok_r(copy, "/", &save); part; part = next) {
		next = strtok_r(NULL, "/", &save);
		if (strcmp(part, "..") == 0) {
			fd = -1;
			e = EXDEV;
		} else {
			fd = openat(at, part, next ? O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC : last);
			e = fd < 0 && is_link(at, part, errno) ? ELOOP : errno;
		}
		if (at != dir)
			close(at);
		at = fd;
		if (fd < 0)
			break;
	}
	free(copy);
	errno = e;
	return fd;
}

/* *walked: by ourselves. */
static int open_beneath(int dir, const char *name, int mode, bool *walked)
{
	struct open_how how = {
		.flags = (unsigned)(OPEN_FLAGS | mode),
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
	};
	long fd = syscall(SYS_openat2, dir, name, &how, sizeof(how));

	*walked = fd < 0 && (errno == ENOSYS || errno == EPERM || errno == EINVAL);
	if (*walked)
		return walk_beneath(dir, name, mode);
	return (int)fd;
}

/* Absolute names may only point into the folder; what is returned is relative to it and points into name. NULL:
 * outside. */
static const char *strip_folder(const char *folder, const char *name)
{
	char *real;
	size_t len;

	if (name[0] != '/')
		return name;
	real = realpath(folder, NULL);
	if (!real)
		return NULL;
	len = strlen(real) == 1 ? 0 : strlen(real);
	if (strncmp(name, real, len) != 0 || name[len] != '/')
		name = NULL;
	free(real);
	return name ? name + len + strspn(name + len, "/") : NULL;
}

static int outside(const char *child_path, const char *name, struct img_error *err)
{
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			 "'%s', named by %s, lies outside that image's folder; --allow-refs any would allow it", name,
			 child_path);
}

static int open_in_folder(const char *child_path, const char *folder, const char *name, int mode, int *fd,
			  struct img_error *err)
{
	const char *relative = strip_folder(folder, name);
	bool walked;
	int dir, e;

	if (!relative)
		return outside(child_path, name, err);
	dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot open folder", folder);
	*fd = open_beneath(dir, relative, mode, &walked);
	e = errno;
	close(dir);
	if (*fd < 0 && walked && (e == EXDEV || e == ELOOP))
		return error_set(
			err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			"'%s', named by %s, leads through %s, and the kernel or sandbox has no openat2() to follow it "
			"safely; --allow-refs any would allow it",
			name, child_path, e == ELOOP ? "a symbolic link" : "'..'");
	if (*fd < 0 && (e == EXDEV || e == ELOOP))
		return outside(child_path, name, err);
	if (*fd < 0)
		return error_errno(err, e, NO_OFFSET, LAYER, "cannot open '%s', named by %s", name, child_path);
	return 0;
}

/* What is refused before anything is looked at. */
static int judge_name(const char *child_path, const char *name, enum img_refs refs, struct img_error *err)
{
	if (name[0] == '\0')
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER, "%s names a file without a name", child_path);
	if (has_scheme(name))
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "'%s', named by %s, is not a path; write ./NAME if a file is really called so", name,
				 child_path);
	if (refs == IMG_REFS_NONE)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s names '%s', and no references are allowed; --allow-refs dir or any would allow it",
				 child_path, name);
	return 0;
}

/* mode: O_RDONLY or O_RDWR */
static int open_reference(const char *child_path, const char *name, enum img_refs refs, int mode, int *fd,
			  char **resolved, struct img_error *err)
{
	char *folder, *path = NULL;
	int ret = judge_name(child_path, name, refs, err);

	*fd = -1;
	*resolved = NULL;
	if (ret != 0)
		return ret;
	folder = broker_folder(child_path, err);
	if (!folder)
		return IMG_E_NOMEM;
	path = join(folder, name, err);
	ret = path ? 0 : IMG_E_NOMEM;
	if (ret == 0 && refs != IMG_REFS_ANY)
		ret = open_in_folder(child_path, folder, name, mode, fd, err);
	if (ret == 0 && refs == IMG_REFS_ANY) {
		*fd = open(path, OPEN_FLAGS | mode);
		if (*fd < 0)
			ret = error_errno(err, errno, NO_OFFSET, LAYER, "cannot open '%s', named by %s", name,
					  child_path);
	}
	if (ret == 0)
		ret = judge(*fd, path, refs == IMG_REFS_ANY && mode == O_RDONLY, err);
	free(folder);
	if (ret != 0) {
		if (*fd >= 0)
			close(*fd);
		*fd = -1;
		free(path);
		return ret;
	}
	*resolved = path;
	return 0;
}

int broker_open(const char *child_path, const char *name, enum img_refs refs, int *fd, char **resolved,
		struct img_error *err)
{
	return open_reference(child_path, name, refs, O_RDONLY, fd, resolved, err);
}

int broker_open_writable(const char *child_path, const char *name, enum img_refs refs, int *fd, char **resolved,
			 struct img_error *err)
{
	return open_reference(child_path, name, refs, O_RDWR, fd, resolved, err);
}

static bool leads_up(const char *name)
{
	for (const char *part = name; *part; part += strcspn(part, "/"), part += strspn(part, "/")) {
		if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0'))
			return true;
	}
	return false;
}

int broker_new_path(const char *child_path, const char *name, enum img_refs refs, char **out, struct img_error *err)
{
	const char *relative = name;
	char *folder;
	int ret = judge_name(child_path, name, refs, err);

	*out = NULL;
	if (ret != 0)
		return ret;
	folder = broker_folder(child_path, err);
	if (!folder)
		return IMG_E_NOMEM;
	if (refs != IMG_REFS_ANY)
		relative = strip_folder(folder, name);
	if (!relative || (refs != IMG_REFS_ANY && leads_up(relative)))
		ret = outside(child_path, name, err);
	else
		*out = join(folder, name, err);
	free(folder);
	return ret == 0 && !*out ? IMG_E_NOMEM : ret;
}

char *broker_meant(const char *path)
{
	static const char descriptor[] = "/DiskDescriptor.xml"; /* of a Parallels disk */
	size_t bytes = strlen(path);
	struct stat sb;
	char *inside;

	if (stat(path, &sb) < 0 || !S_ISDIR(sb.st_mode))
		return strdup(path);
	inside = malloc(bytes + sizeof(descriptor));
	if (!inside)
		return NULL;
	while (bytes > 1 && path[bytes - 1] == '/')
		bytes--;
	memcpy(inside, path, bytes);
	memcpy(inside + bytes, descriptor, sizeof(descriptor));
	if (stat(inside, &sb) < 0 || !S_ISREG(sb.st_mode))
		strcpy(inside, path);
	return inside;
}

int broker_open_named(const char *path, bool writable, int *fd, struct img_error *err)
{
	int ret;

	*fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (*fd < 0 && errno == EISDIR)
		return is_folder(path, err);
	if (*fd < 0)
		return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot open%s", path,
				   writable ? " for writing" : "");
	ret = judge(*fd, path, true, err);
	if (ret != 0) {
		close(*fd);
		*fd = -1;
	}
	return ret;
}
