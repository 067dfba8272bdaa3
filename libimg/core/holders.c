/* SPDX-License-Identifier: MIT */
/*
 * Who holds an image file. Locks of open file descriptions have no process in /proc/locks (its pid column says -1),
 * because several processes may share one description. So this walks the other way: every process's descriptors that
 * lead to the file, and what /proc/PID/fdinfo/FD says of locks through that very description. Only what that cannot
 * explain (processes of other users) is then looked up in /proc/locks, by device and inode, and reported without a pid.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "checked.h"
#include "error.h"
#include "holders.h"

struct lock_line {
	int64_t pid; /* -1 for locks of descriptions */
	unsigned major, minor;
	uint64_t ino, first, last;
};

/* A function that looks at one lock; true ends the search. */
typedef bool (*lock_fn)(void *ctx, int64_t pid, const struct lock_line *lock);

struct file_id {
	dev_t dev;
	ino_t ino;
	int64_t skip_pid; /* whose descriptor skip_fd does not count */
	int skip_fd;
};

/* "1: OFDLCK ADVISORY  READ -1 08:01:1234 100 100", as in /proc/locks; waiters ("1: -> ...") are not holders. */
static bool parse_lock(const char *text, struct lock_line *out)
{
	char last[24];
	long long pid;
	unsigned long long ino, first;
	unsigned major, minor;

	if (sscanf(text, "%*[0-9]: %*[A-Z] %*s %*[A-Z] %lld %x:%x:%llu %llu %23s", &pid, &major, &minor, &ino, &first,
		   last) != 6)
		return false;
	*out = (struct lock_line){ .pid = pid, .major = major, .minor = minor, .ino = ino, .first = first };
	out->last = strcmp(last, "EOF") == 0 ? UINT64_MAX : strtoull(last, NULL, 10);
	return true;
}

static bool all_digits(const char *s)
{
	if (*s == '\0')
		return false;
	while (*s != '\0') {
		if (!isdigit((unsigned char)*s++))
			return false;
	}
	return true;
}

/* Calls fn for every lock that the description behind this descriptor holds. */
static bool locks_of_descriptor(int proc_fd, int64_t pid, const char *fd_name, lock_fn fn, void *ctx)
{
	struct lock_line lock;
	char path[64], line[256];
	bool stop = false;
	FILE *f;
	int fd;

	snprintf(path, sizeof(path), "fdinfo/%.20s", fd_name);
	fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	f = fdopen(fd, "r");
	if (f == NULL) {
		close(fd);
		return false;
	}
	while (!stop && fgets(line, sizeof(line), f) != NULL) {
		if (strncmp(line, "lock:", 5) != 0 || !parse_lock(line + 5 + strspn(line + 5, " \t"), &lock))
			continue;
		/* A POSIX lock belongs to a process, whichever descriptor it came by. */
		stop = fn(ctx, lock.pid > 0 ? lock.pid : pid, &lock);
	}
	fclose(f);
	return stop;
}

static bool locks_of_process(int proc_fd, int64_t pid, const struct file_id *id, lock_fn fn, void *ctx)
{
	struct dirent *entry;
	bool stop = false;
	DIR *dir;
	int fds = openat(proc_fd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fds < 0)
		return false;
	dir = fdopendir(fds);
	if (dir == NULL) {
		close(fds);
		return false;
	}
	while (!stop && (entry = readdir(dir)) != NULL) {
		struct stat sb;

		if (!all_digits(entry->d_name) || (pid == id->skip_pid && atoi(entry->d_name) == id->skip_fd))
			continue;
		if (fstatat(fds, entry->d_name, &sb, 0) == 0 && sb.st_dev == id->dev && sb.st_ino == id->ino)
			stop = locks_of_descriptor(proc_fd, pid, entry->d_name, fn, ctx);
	}
	closedir(dir);
	return stop;
}

/* Every lock on the file that can be traced to a process. */
static void each_process_lock(const struct file_id *id, lock_fn fn, void *ctx)
{
	struct dirent *entry;
	bool stop = false;
	DIR *proc = opendir("/proc");

	if (proc == NULL)
		return;
	while (!stop && (entry = readdir(proc)) != NULL) {
		int fd;

		if (!all_digits(entry->d_name))
			continue;
		fd = openat(dirfd(proc), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			continue;
		stop = locks_of_process(fd, strtoll(entry->d_name, NULL, 10), id, fn, ctx);
		close(fd);
	}
	closedir(proc);
}

static void each_kernel_lock(const struct file_id *id, lock_fn fn, void *ctx)
{
	struct lock_line lock;
	char line[256];
	FILE *f = fopen("/proc/locks", "re");

	if (f == NULL)
		return;
	while (fgets(line, sizeof(line), f) != NULL) {
		if (parse_lock(line, &lock) && lock.ino == id->ino && lock.major == major(id->dev) &&
		    lock.minor == minor(id->dev) && fn(ctx, lock.pid, &lock))
			break;
	}
	fclose(f);
}

static void read_command(int64_t pid, char *out, size_t out_bytes)
{
	char path[64];
	ssize_t n;
	int fd;

	out[0] = '\0';
	snprintf(path, sizeof(path), "/proc/%lld/comm", (long long)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, out, out_bytes - 1);
	close(fd);
	if (n < 0)
		n = 0;
	out[n] = '\0';
	out[strcspn(out, "\n")] = '\0';
	for (char *p = out; *p != '\0'; p++) {
		if (iscntrl((unsigned char)*p))
			*p = '?';
	}
}

struct byte_search {
	uint64_t byte;
	struct holder *out;
};

static bool holds_byte(void *ctx, int64_t pid, const struct lock_line *lock)
{
	struct byte_search *search = ctx;

	if (search->byte < lock->first || search->byte > lock->last || pid <= 0)
		return false;
	search->out->pid = pid;
	return true;
}

bool holder_of_byte(int fd, uint64_t byte, struct holder *out)
{
	struct stat sb;

	*out = (struct holder){ .pid = 0 };
	return fstat(fd, &sb) == 0 && holder_of_file(sb.st_dev, sb.st_ino, byte, getpid(), fd, out);
}

bool holder_of_file(uint64_t dev, uint64_t ino, uint64_t byte, int64_t pid, int fd, struct holder *out)
{
	struct byte_search search = { .byte = byte, .out = out };
	struct file_id id = { .dev = (dev_t)dev, .ino = (ino_t)ino, .skip_pid = pid, .skip_fd = fd };

	*out = (struct holder){ .pid = 0 };
	each_process_lock(&id, holds_byte, &search);
	if (out->pid == 0)
		each_kernel_lock(&id, holds_byte, &search);
	if (out->pid == 0)
		return false;
	read_command(out->pid, out->command, sizeof(out->command));
	return true;
}

struct holder_list {
	struct img_holder *out;
	size_t cap, nr;
};

static bool is_image_lock(const struct lock_line *lock)
{
	return (lock->first <= LOCK_USE_BYTE + LOCK_NR_PERMS - 1 && lock->last >= LOCK_USE_BYTE) ||
	       (lock->first <= LOCK_FORBID_BYTE + LOCK_NR_PERMS - 1 && lock->last >= LOCK_FORBID_BYTE);
}

static bool add_holder(void *ctx, int64_t pid, const struct lock_line *lock)
{
	struct holder_list *list = ctx;
	bool writes = lock->first <= LOCK_USE_BYTE + LOCK_WRITE_PERM && lock->last >= LOCK_USE_BYTE + LOCK_WRITE_PERM;
	struct img_holder *h = NULL;

	if (!is_image_lock(lock))
		return false;
	if (pid < 0)
		pid = 0;
	for (size_t i = 0; i < min_u64(list->nr, list->cap) && h == NULL; i++) {
		if (list->out[i].pid == pid)
			h = &list->out[i];
	}
	if (h == NULL && list->nr < list->cap) {
		h = &list->out[list->nr++];
		*h = (struct img_holder){ .pid = pid };
		if (pid > 0)
			read_command(pid, h->command, sizeof(h->command));
	}
	if (h != NULL)
		h->writes |= writes;
	return false;
}

int img_holders(const char *path, struct img_holder *out, size_t cap, size_t *nr, struct img_error *err)
{
	/* The caller's room may be smaller than what there is; the count must still be right and without doubles. */
	struct holder_list list = { .cap = 256 };
	struct file_id id;
	struct stat sb;

	if (path == NULL || nr == NULL || (out == NULL && cap > 0))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "holders",
				 "a path and room for the answer are needed");
	if (stat(path, &sb) < 0)
		return error_errno(err, errno, NO_OFFSET, "holders", "%s: cannot stat", path);
	list.out = calloc(list.cap, sizeof(*list.out));
	if (list.out == NULL)
		return error_set(err, IMG_E_NOMEM, ENOMEM, NO_OFFSET, "holders", "%s: no memory", path);
	id = (struct file_id){ .dev = sb.st_dev, .ino = sb.st_ino };
	each_process_lock(&id, add_holder, &list);
	if (list.nr == 0)
		each_kernel_lock(&id, add_holder, &list);
	*nr = list.nr;
	if (cap > 0)
		memcpy(out, list.out, (size_t)min_u64(cap, list.nr) * sizeof(*out));
	free(list.out);
	return 0;
}
