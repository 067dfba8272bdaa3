/* SPDX-License-Identifier: MIT */
/*
 * Protocol "file": a regular file or a block device of the host.
 *
 * Every request is one system call where the host plays along; short transfers and EINTR are continued. A read past the
 * end of the file is an error, never zeros: formats know where their file ends. Writes past the end grow a regular
 * file.
 *
 * States: good -> flush_failed (by the first failed fdatasync; stays for the life of the node). After it every flush
 * fails with IMG_E_POISONED; reads and writes still work, their durability is unknown.
 *
 * O_DIRECT: what is aligned in offset, length and memory goes to the direct descriptor, everything else through a
 * second, buffered description of the same file, so that callers need not care and nothing is read to be modified. The
 * kernel keeps the two coherent page by page (a direct write drops the cached pages it covers, after writing them
 * back).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "file_int.h"

#define DIRECT_ALIGN 4096u
#define MAX_TRANSFER (1u << 30) /* the kernel stops at 2 GiB - 4 KiB; a round number keeps direct requests aligned */

void file_grew(struct file_state *st, uint64_t end)
{
	uint64_t seen = atomic_load(&st->size);

	while (seen < end && !atomic_compare_exchange_weak(&st->size, &seen, end))
		;
}

static int descriptor_for(const struct file_state *st, const void *buf, uint64_t bytes, uint64_t off)
{
	if (st->direct_align != 0 && (off | bytes | (uintptr_t)buf) % st->direct_align == 0)
		return st->fd;
	return st->buffered_fd;
}

static int file_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct file_state *st = node->state;
	uint8_t *p = buf;

	(void)flags;
	while (bytes > 0) {
		int fd = descriptor_for(st, p, bytes, off);
		ssize_t got = pread(fd, p, (size_t)min_u64(bytes, MAX_TRANSFER), (off_t)off);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_errno(err, errno, off, FILE_LAYER, "%s: cannot read at 0x%llx", node->path,
					   (unsigned long long)off);
		if (got == 0)
			return error_set(err, IMG_E_IO, 0, off, FILE_LAYER,
					 "%s: file ends at or before 0x%llx, 0x%llx bytes more are expected",
					 node->path, (unsigned long long)off, (unsigned long long)bytes);
		p += got;
		off += (uint64_t)got;
		bytes -= (uint64_t)got;
	}
	return 0;
}

/* Through the buffered description: the pages are the page cache's. */
static int file_map(struct node *node, void *addr, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct file_state *st = node->state;
	int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;

	atomic_store(&st->mapped, true);
	if (mmap(addr, (size_t)bytes, PROT_READ | PROT_WRITE, flags, st->buffered_fd, (off_t)off) != MAP_FAILED)
		return 0;
	return error_errno(err, errno, off, FILE_LAYER, "%s: cannot map at 0x%llx", node->path,
			   (unsigned long long)off);
}

static int write_loop(struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct file_state *st = node->state;
	const uint8_t *p = buf;

	while (bytes > 0) {
		int fd = descriptor_for(st, p, bytes, off);
		ssize_t done = pwrite(fd, p, (size_t)min_u64(bytes, MAX_TRANSFER), (off_t)off);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return error_errno(err, done < 0 ? errno : EIO, off, FILE_LAYER, "%s: cannot write at 0x%llx",
					   node->path, (unsigned long long)off);
		p += done;
		off += (uint64_t)done;
		bytes -= (uint64_t)done;
		file_grew(st, off);
	}
	return 0;
}

int file_write_all(struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct file_state *st = node->state;
	bool grows = off + bytes > atomic_load(&st->size);
	int ret;

	if (!range_inside(off, bytes, INT64_MAX) || (st->is_block_device && grows))
		return error_set(err, IMG_E_NOSPC, ENOSPC, off, FILE_LAYER,
				 "%s: 0x%llx lies beyond the end of the device", node->path,
				 (unsigned long long)(off + bytes));
	if (grows)
		pthread_rwlock_rdlock(&st->grow_lock);
	ret = write_loop(node, buf, bytes, off, err);
	atomic_store(&st->dirty, true);
	if (grows)
		pthread_rwlock_unlock(&st->grow_lock);
	return ret;
}

static int file_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	int ret = file_write_all(node, buf, bytes, off, err);

	if (ret == 0 && (flags & IMG_IO_FUA))
		ret = file_flush(node, 0, err);
	return ret;
}

int file_flush(struct node *node, unsigned flags, struct img_error *err)
{
	struct file_state *st = node->state;

	(void)flags;
	if (node->is_volatile)
		return 0;
	if (!atomic_load(&st->flush_failed)) {
		atomic_store(&st->dirty, false);
		if (fdatasync(st->fd) == 0) {
			/* Another thread's failure may have used up the kernel's one error report for this description.
			 */
			if (!atomic_load(&st->flush_failed))
				return 0;
		} else {
			int e = errno;

			atomic_store(&st->flush_failed, true);
			return error_errno(err, e, NO_OFFSET, FILE_LAYER, "%s: cannot make data durable", node->path);
		}
	}
	return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, FILE_LAYER,
			 "%s: an earlier flush failed, what was written since the last good one may be lost",
			 node->path);
}

/* While a file is only peeked at, nobody keeps a writer from growing it. */
static uint64_t file_size(const struct node *node)
{
	const struct file_state *st = node->state;
	struct stat sb;

	if (!node->writable && !(st->forbid & PERM_RESIZE) && !st->is_block_device && fstat(st->fd, &sb) == 0)
		return (uint64_t)sb.st_size;
	return atomic_load(&st->size);
}

static void file_limits(const struct node *node, struct driver_limits *out)
{
	const struct file_state *st = node->state;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = st->sector_bytes,
		.optimal_bytes = DIRECT_ALIGN,
		.max_size_bytes = INT64_MAX,
	};
}

static int open_again(const struct node *node, bool writable)
{
	const struct file_state *st = node->state;
	struct stat first, second;
	char self[32];
	int fd;

	if (!st->help) {
		snprintf(self, sizeof(self), "/proc/self/fd/%d", st->fd);
		return open(self, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	}
	fd = st->help->open_again ? st->help->open_again(st->help->ctx, node->path, writable) : -1;
	if (fd >= 0 && (fstat(st->fd, &first) < 0 || fstat(fd, &second) < 0 || first.st_dev != second.st_dev ||
			first.st_ino != second.st_ino)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Direct I/O where the host can do it; otherwise the file stays as it is. */
static void try_direct(const struct node *node, bool writable)
{
	struct file_state *st = node->state;
	int fl = fcntl(st->fd, F_GETFL);
	int second;

	if (fl < 0)
		return;
	second = open_again(node, writable);
	if (second < 0)
		return;
	if (fcntl(st->fd, F_SETFL, fl | O_DIRECT) < 0) {
		close(second);
		return;
	}
	st->buffered_fd = second;
	st->direct_align = (uint32_t)max_u64(DIRECT_ALIGN, st->sector_bytes);
}

static int learn_geometry(struct node *node, struct img_error *err)
{
	struct file_state *st = node->state;
	struct stat sb;

	if (fstat(st->fd, &sb) < 0)
		return error_errno(err, errno, NO_OFFSET, FILE_LAYER, "%s: cannot stat", node->path);
	st->sector_bytes = 1;
	if (S_ISREG(sb.st_mode)) {
		atomic_init(&st->size, (uint64_t)sb.st_size);
		return 0;
	}
	if (S_ISBLK(sb.st_mode)) {
		uint64_t bytes = 0;
		int sector = 512;

		if (ioctl(st->fd, BLKGETSIZE64, &bytes) < 0 || ioctl(st->fd, BLKSSZGET, &sector) < 0)
			return error_errno(err, errno, NO_OFFSET, FILE_LAYER, "%s: cannot ask the device for its size",
					   node->path);
		st->is_block_device = true;
		st->sector_bytes = (uint32_t)sector;
		atomic_init(&st->size, bytes);
		return 0;
	}
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, FILE_LAYER, "%s: neither a regular file nor a block device",
			 node->path);
}

static int check_mode(struct node *node, bool writable, struct img_error *err)
{
	struct file_state *st = node->state;
	int fl = fcntl(st->fd, F_GETFL);

	if (fl < 0)
		return error_errno(err, errno, NO_OFFSET, FILE_LAYER, "%s: bad file descriptor", node->path);
	if (fl & O_PATH || (fl & O_ACCMODE) == O_WRONLY || (writable && (fl & O_ACCMODE) != O_RDWR))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, FILE_LAYER, "%s: the descriptor is not open for %s",
				 node->path, writable ? "reading and writing" : "reading");
	/* pwrite() on an O_APPEND descriptor ignores its offset. */
	if (writable && (fl & O_APPEND))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, FILE_LAYER,
				 "%s: the descriptor is open with O_APPEND", node->path);
	return 0;
}

static void release(struct file_state *st)
{
	pthread_rwlock_destroy(&st->grow_lock);
	pthread_mutex_destroy(&st->share_lock);
	if (st->buffered_fd != st->fd)
		close(st->buffered_fd);
	/* The locks die with the last descriptor of the description, unless a mapping keeps it. */
	if (atomic_load(&st->mapped))
		file_unlock_all(st);
	close(st->fd);
}

static int file_open_fd(struct node *node, int fd, const struct host_open *args, struct img_error *err)
{
	struct file_state *st = node->state;
	int ret;

	st->fd = fd;
	st->buffered_fd = fd;
	st->no_lock = args->no_lock;
	st->help = args->help;
	pthread_rwlock_init(&st->grow_lock, NULL);
	pthread_mutex_init(&st->share_lock, NULL);
	ret = check_mode(node, args->writable, err);
	if (ret == 0)
		ret = file_share(node, args->use, args->forbid, err);
	/* The size counts only once nobody else may change it. */
	if (ret == 0)
		ret = learn_geometry(node, err);
	if (ret != 0) {
		release(st);
		return ret;
	}
	if (args->direct)
		try_direct(node, args->writable);
	node->writable = args->writable;
	return 0;
}

static int file_close(struct node *node, struct img_error *err)
{
	struct file_state *st = node->state;
	int ret = 0;

	if (node->writable && (atomic_load(&st->dirty) || atomic_load(&st->flush_failed)))
		ret = file_flush(node, 0, err);
	release(st);
	return ret;
}

const struct img_driver file_driver = {
	.name = "file",
	.kind = DRIVER_PROTOCOL,
	.state_bytes = sizeof(struct file_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.open_fd = file_open_fd,
	.close = file_close,
	.size = file_size,
	.limits = file_limits,
	.pread = file_pread,
	.pwrite = file_pwrite,
	.zero = file_zero,
	.discard = file_discard,
	.flush = file_flush,
	.status = file_status,
	.resize = file_resize,
	.stat = file_stat,
	.sync_time = file_sync_time,
	.allocate = file_allocate,
	.lock_byte = file_lock_byte,
	.share = file_share,
	.map = file_map,
};
