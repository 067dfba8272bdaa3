/* SPDX-License-Identifier: MIT */
/*
 * The default environment: image files are files of the host, reached under the broker's policy. New files are made
 * under a temporary name in the folder of the final one, and renamed into place when they are complete and durable, so
 * that no crash leaves half an image under a name that anybody uses.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker.h"
#include "env_host.h"
#include "error.h"

#define LAYER	  "file"
#define NAME_ROOM 200 /* of NAME_MAX, for what a temporary name takes from the final one */

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

int env_host_node(int fd, const char *path, const struct host_open *args, struct node **out, struct img_error *err)
{
	struct node *node = node_new(registry_host_file(), path, err);
	int ret;

	*out = NULL;
	if (!node) {
		close(fd);
		return IMG_E_NOMEM;
	}
	ret = node_open_fd(node, fd, args, err);
	if (ret != 0) {
		node_close(node, NULL);
		return ret;
	}
	*out = node;
	return 0;
}

static int host_open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			  const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	int fd, ret;

	(void)ctx;
	*out = NULL;
	*resolved = NULL;
	if (child_path) {
		ret = args->writable ? broker_open_writable(child_path, name, refs, &fd, resolved, err) :
				       broker_open(child_path, name, refs, &fd, resolved, err);
	} else {
		*resolved = broker_meant(name);
		ret = *resolved ? broker_open_named(*resolved, args->writable, &fd, err) : no_memory(err);
	}
	if (ret == 0)
		ret = env_host_node(fd, *resolved, args, out, err);
	if (ret != 0) {
		free(*resolved);
		*resolved = NULL;
	}
	return ret;
}

/* A symbolic link to the target is followed: the file behind it is what is created or replaced. malloc()ed. */
static char *final_path(const char *path, struct img_error *err)
{
	char *real = realpath(path, NULL);

	if (!real && errno != ENOMEM)
		real = strdup(path);
	if (!real)
		no_memory(err);
	return real;
}

/*
 * What is replaced is held as a writer would hold it: who has it open, QEMU included, would go on with a file that has
 * no name any more, and what they write would be gone. *held is NULL where this may not open it, and nobody can be
 * asked.
 */
static int hold(const char *path, struct node **held, struct img_error *err)
{
	const struct host_open how = { .use = SHARE_WRITER_USE, .forbid = SHARE_WRITER_FORBID, .no_lock = true };
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	*held = NULL;
	if (fd >= 0)
		return env_host_node(fd, path, &how, held, err);
	if (errno == EACCES || errno == EPERM || errno == ENOENT)
		return 0;
	return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot open, to see who uses it", path);
}

/* *held: of a file that is there and may be replaced; to be closed. */
static int judge_target(const char *path, bool overwrite, struct node **held, struct img_error *err)
{
	struct stat sb;

	*held = NULL;
	if (lstat(path, &sb) < 0) {
		if (errno == ENOENT)
			return 0;
		return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot look at it", path);
	}
	if (!overwrite)
		return error_set(err, IMG_E_EXISTS, EEXIST, NO_OFFSET, LAYER, "%s: exists already", path);
	if (S_ISLNK(sb.st_mode) && stat(path, &sb) < 0)
		return error_errno(err, errno, NO_OFFSET, LAYER, "%s: symbolic link that leads nowhere", path);
	if (!S_ISREG(sb.st_mode))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "%s: exists and is not a regular file: it cannot be replaced", path);
	return hold(path, held, err);
}

static int host_check_target(void *ctx, const char *path, bool overwrite, struct img_error *err)
{
	struct node *held;
	int ret = judge_target(path, overwrite, &held, err);

	(void)ctx;
	node_close(held, NULL);
	return ret;
}

static char *temp_name(const char *path, struct img_error *err)
{
	static const char digits[] = "abcdefghijklmnopqrstuvwxyz234567";
	char *folder = broker_folder(path, err);
	const char *slash = strrchr(path, '/');
	const char *base = slash ? slash + 1 : path;
	char random[13] = "";
	uint8_t bytes[12];
	char *out = NULL;

	if (!folder)
		return NULL;
	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
		error_errno(err, errno, NO_OFFSET, LAYER, "no random numbers");
		goto out;
	}
	for (size_t i = 0; i < sizeof(bytes); i++)
		random[i] = digits[bytes[i] % 32];
	if (asprintf(&out, "%s/.%.*s.%s.tmp", folder, NAME_ROOM, base, random) < 0) {
		out = NULL;
		no_memory(err);
	}
out:
	free(folder);
	return out;
}

/*
 * What is replaced keeps its owner, group and rights, whatever the umask, as far as this process may set them. Where
 * the group is another, its rights are nobody's: they were not meant for those who have them now.
 */
static void take_after(int fd, const struct stat *old)
{
	mode_t mode = old->st_mode & 0777;
	struct stat sb;

	/* One at a time: who may give the file to a group of his own need not be able to give it away. */
	if (fchown(fd, (uid_t)-1, old->st_gid) < 0 && (fstat(fd, &sb) < 0 || sb.st_gid != old->st_gid))
		mode &= ~(mode_t)070;
	if (fchmod(fd, mode) < 0 || fchown(fd, old->st_uid, (gid_t)-1) < 0)
		return; /* stays private, or his who makes it */
}

int env_host_create_fd(const char *path, int *fd, char **temp_path, struct img_error *err)
{
	char *target = final_path(path, err);
	bool replaces;
	struct stat old;
	int ret;

	*fd = -1;
	*temp_path = NULL;
	if (!target)
		return IMG_E_NOMEM;
	replaces = stat(target, &old) == 0 && S_ISREG(old.st_mode);
	*temp_path = temp_name(target, err);
	free(target);
	if (!*temp_path)
		return IMG_E_NOMEM;
	*fd = open(*temp_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, replaces ? 0600 : 0666);
	if (*fd >= 0 && replaces)
		take_after(*fd, &old);
	if (*fd >= 0)
		return 0;
	ret = error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot create", path);
	free(*temp_path);
	*temp_path = NULL;
	return ret;
}

static int host_create_file(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	struct host_open args = ENV_HOST_NEW_FILE;
	int fd, ret = env_host_create_fd(path, &fd, temp_path, err);

	(void)ctx;
	*out = NULL;
	if (ret == 0)
		ret = env_host_node(fd, *temp_path, &args, out, err);
	if (ret != 0 && *temp_path) {
		unlink(*temp_path);
		free(*temp_path);
		*temp_path = NULL;
	}
	return ret;
}

/* Before anything has a new name: where the folder may not be read, no name in it can be made durable. */
static int open_folder(const char *path, int *fd, struct img_error *err)
{
	char *folder = broker_folder(path, err);
	int ret = 0;

	if (!folder)
		return IMG_E_NOMEM;
	*fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (*fd < 0)
		ret = error_errno(err, errno, NO_OFFSET, LAYER,
				  "%s: cannot open its folder, to make the name durable there", path);
	free(folder);
	return ret;
}

/* Of a name that is there already. */
static int sync_folder(int fd, const char *path, struct img_error *err)
{
	/* EINVAL: a file system that has no such thing. */
	if (fsync(fd) == 0 || errno == EINVAL)
		return 0;
	error_set(err, IMG_E_IO, errno, NO_OFFSET, LAYER,
		  "%s: is complete and in its place, but that may not outlast a crash: cannot sync its folder: %s",
		  path, strerror(errno));
	return PUBLISHED_NOT_DURABLE;
}

/* Without RENAME_NOREPLACE (old or foreign file systems) a second link does the same: link() does not replace. */
static int rename_new(const char *from, const char *to)
{
	if (syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
	if (link(from, to) < 0)
		return -1;
	unlink(from);
	return 0;
}

/* path: `to` as the caller called it. */
static int rename_into_place(const char *from, const char *to, const char *path, bool overwrite, struct img_error *err)
{
	if ((overwrite ? rename(from, to) : rename_new(from, to)) == 0)
		return 0;
	if (errno == EEXIST)
		return error_set(err, IMG_E_EXISTS, errno, NO_OFFSET, LAYER, "%s: exists already", path);
	return error_errno(err, errno, NO_OFFSET, LAYER, "%s: cannot be renamed into place", path);
}

static int host_publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	bool overwrite = flags & IMG_CREATE_OVERWRITE;
	char *target = overwrite ? final_path(path, err) : strdup(path);
	struct node *held = NULL; /* until the new file has its name */
	int folder = -1, ret = 0;

	(void)ctx;
	if (!target)
		return no_memory(err);
	if (overwrite)
		ret = judge_target(target, true, &held, err);
	if (ret == 0 && !(flags & IMG_CREATE_VOLATILE))
		ret = open_folder(target, &folder, err);
	if (ret == 0)
		ret = rename_into_place(temp_path, target, path, overwrite, err);
	if (ret == 0 && folder >= 0)
		ret = sync_folder(folder, path, err);
	if (folder >= 0)
		close(folder);
	node_close(held, NULL);
	free(target);
	return ret;
}

static void host_discard_temp(void *ctx, const char *temp_path)
{
	(void)ctx;
	unlink(temp_path);
}

static int host_new_path(void *ctx, const char *child_path, const char *name, enum img_refs refs, char **out,
			 struct img_error *err)
{
	(void)ctx;
	return broker_new_path(child_path, name, refs, out, err);
}

static bool host_identify(void *ctx, const char *path, struct host_stat *out)
{
	struct stat sb;

	(void)ctx;
	if (stat(path, &sb) < 0)
		return false;
	*out = (struct host_stat){ .dev = sb.st_dev, .ino = sb.st_ino };
	if (S_ISBLK(sb.st_mode)) /* as stat of its node says */
		*out = (struct host_stat){ .dev = sb.st_rdev, .ino = 0 };
	return true;
}

const struct image_env image_env_host = {
	.open_file = host_open_file,
	.create_file = host_create_file,
	.publish = host_publish,
	.discard_temp = host_discard_temp,
	.check_target = host_check_target,
	.new_path = host_new_path,
	.identify = host_identify,
};
