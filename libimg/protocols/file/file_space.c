/* SPDX-License-Identifier: MIT */
/*
 * File protocol: changing what is allocated. Each operation first asks the host for the cheap way (fallocate() in its
 * modes, the discard ioctl of devices) and remembers where the host does not have it. Zeroing falls back to writing
 * zeros; discarding and allocating are promises about space, not about content, so that a host without them has nothing
 * to do.
 *
 * Growing needs the exclusive grow_lock: ftruncate() to a new end would cut off what a concurrent write appended beyond
 * it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "checked.h"
#include "file_int.h"

#define ZEROS_BYTES (256u << 10)

static bool host_lacks_it(int e)
{
	return e == EOPNOTSUPP || e == ENOSYS || e == ENODEV || e == ENOTTY;
}

static int fallocate_retry(int fd, int mode, uint64_t off, uint64_t bytes)
{
	while (fallocate(fd, mode, (off_t)off, (off_t)bytes) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return 0;
}

/* Makes the file at least end bytes long; the new bytes are a hole. */
static int grow_to(struct node *node, uint64_t end, struct img_error *err)
{
	struct file_state *st = node->state;
	int ret = 0;

	if (end <= atomic_load(&st->size))
		return 0;
	if (st->is_block_device || end > INT64_MAX)
		return error_set(err, IMG_E_NOSPC, ENOSPC, end, FILE_LAYER, "%s: cannot grow to 0x%llx bytes%s",
				 node->path, (unsigned long long)end,
				 st->is_block_device ? ": a block device keeps its size" : "");
	pthread_rwlock_wrlock(&st->grow_lock);
	if (end > atomic_load(&st->size)) {
		if (ftruncate(st->fd, (off_t)end) < 0)
			ret = error_errno(err, errno, end, FILE_LAYER, "%s: cannot grow to 0x%llx bytes", node->path,
					  (unsigned long long)end);
		else
			file_grew(st, end);
		atomic_store(&st->dirty, true);
	}
	pthread_rwlock_unlock(&st->grow_lock);
	return ret;
}

static int write_zeros(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	static const _Alignas(4096) uint8_t zeros[ZEROS_BYTES];

	while (bytes > 0) {
		uint64_t n = min_u64(bytes, sizeof(zeros));
		int ret = file_write_all(node, zeros, n, off, err);

		if (ret != 0)
			return ret;
		off += n;
		bytes -= n;
	}
	return 0;
}

/* 0, an errno that means "write zeros instead", or *fatal set. Never changes the size. */
static int zero_by_host(struct file_state *st, uint64_t bytes, uint64_t off, bool keep_space, bool *fatal)
{
	int e = EOPNOTSUPP;

	*fatal = false;
	if (!keep_space && !atomic_load(&st->no_punch)) {
		e = fallocate_retry(st->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, bytes);
		if (host_lacks_it(e))
			atomic_store(&st->no_punch, true);
	}
	if (e != 0 && !atomic_load(&st->no_zero_range)) {
		e = fallocate_retry(st->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, bytes);
		if (host_lacks_it(e))
			atomic_store(&st->no_zero_range, true);
	}
	*fatal = e == EIO || e == ENOSPC || e == EDQUOT || e == EFBIG || e == EBADF;
	return e;
}

int file_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct file_state *st = node->state;
	bool aligned = (off | bytes) % st->sector_bytes == 0;
	bool fatal;
	int ret, e;

	ret = grow_to(node, off + bytes, err);
	if (ret != 0)
		return ret;
	e = EOPNOTSUPP;
	if (aligned) {
		e = zero_by_host(st, bytes, off, (flags & IMG_IO_NO_UNMAP) != 0, &fatal);
		atomic_store(&st->dirty, true);
		if (e != 0 && fatal)
			return error_errno(err, e, off, FILE_LAYER, "%s: cannot zero 0x%llx bytes at 0x%llx",
					   node->path, (unsigned long long)bytes, (unsigned long long)off);
	}
	if (e != 0)
		ret = write_zeros(node, bytes, off, err);
	if (ret == 0 && (flags & IMG_IO_FUA))
		ret = file_flush(node, 0, err);
	return ret;
}

static int discard_device(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct file_state *st = node->state;
	uint64_t first = round_up(off, st->sector_bytes);
	uint64_t last = round_down(off + bytes, st->sector_bytes);
	uint64_t range[2] = { first, last - first };

	int e = 0;

	if (first < last && ioctl(st->fd, BLKDISCARD, range) < 0)
		e = errno;
	atomic_store(&st->dirty, true);
	if (e == 0 || host_lacks_it(e) || e == EINVAL)
		return 0;
	return error_errno(err, e, off, FILE_LAYER, "%s: cannot discard 0x%llx bytes at 0x%llx", node->path,
			   (unsigned long long)bytes, (unsigned long long)off);
}

int file_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct file_state *st = node->state;
	int e;

	(void)flags;
	if (st->is_block_device)
		return discard_device(node, bytes, off, err);
	if (atomic_load(&st->no_punch))
		return 0;
	e = fallocate_retry(st->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, bytes);
	atomic_store(&st->dirty, true);
	if (e == 0)
		return 0;
	if (host_lacks_it(e)) {
		atomic_store(&st->no_punch, true);
		return 0;
	}
	return error_errno(err, e, off, FILE_LAYER, "%s: cannot discard 0x%llx bytes at 0x%llx", node->path,
			   (unsigned long long)bytes, (unsigned long long)off);
}

int file_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct file_state *st = node->state;
	uint64_t end = off + bytes;
	int e;

	if (st->is_block_device || atomic_load(&st->no_allocate))
		return grow_to(node, end, err);
	pthread_rwlock_rdlock(&st->grow_lock);
	e = fallocate_retry(st->fd, 0, off, bytes);
	if (e == 0)
		file_grew(st, end);
	atomic_store(&st->dirty, true);
	pthread_rwlock_unlock(&st->grow_lock);
	if (e == 0)
		return 0;
	if (host_lacks_it(e)) {
		atomic_store(&st->no_allocate, true);
		return grow_to(node, end, err);
	}
	return error_errno(err, e, off, FILE_LAYER, "%s: cannot reserve 0x%llx bytes at 0x%llx", node->path,
			   (unsigned long long)bytes, (unsigned long long)off);
}

int file_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	struct file_state *st = node->state;
	int ret = 0;

	if (st->is_block_device) {
		if (size_bytes == atomic_load(&st->size))
			return 0;
		if (size_bytes > atomic_load(&st->size))
			return grow_to(node, size_bytes, err); /* as any full disk does */
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, FILE_LAYER, "%s: a block device keeps its size",
				 node->path);
	}
	if (size_bytes > INT64_MAX)
		return error_set(err, IMG_E_LIMIT, EFBIG, NO_OFFSET, FILE_LAYER,
				 "%s: size 0x%llx is past the host's limit", node->path,
				 (unsigned long long)size_bytes);
	pthread_rwlock_wrlock(&st->grow_lock);
	if (ftruncate(st->fd, (off_t)size_bytes) < 0)
		ret = error_errno(err, errno, NO_OFFSET, FILE_LAYER, "%s: cannot set the size to 0x%llx", node->path,
				  (unsigned long long)size_bytes);
	else
		atomic_store(&st->size, size_bytes);
	atomic_store(&st->dirty, true);
	pthread_rwlock_unlock(&st->grow_lock);
	return ret;
}
