/* SPDX-License-Identifier: MIT */
/* File protocol: where the data of a sparse file lies, and what the host knows about the file. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "file_int.h"

/* lseek() with the descriptor's position left to nobody: no call here uses it. */
static int next_change(int fd, uint64_t off, uint64_t end, enum status_kind *kind, uint64_t *stop)
{
	off_t data = lseek(fd, (off_t)off, SEEK_DATA);
	off_t hole;

	if (data < 0 && errno == ENXIO) {
		*kind = STATUS_ZERO;
		*stop = end;
		return 0;
	}
	if (data < 0)
		return -1;
	if ((uint64_t)data > off) {
		*kind = STATUS_ZERO;
		*stop = min_u64((uint64_t)data, end);
		return 0;
	}
	hole = lseek(fd, (off_t)off, SEEK_HOLE);
	if (hole < 0)
		return -1;
	/* A file that changes beneath us may answer with a hole right here; some progress must be made. */
	*kind = STATUS_DATA;
	*stop = (uint64_t)hole > off ? min_u64((uint64_t)hole, end) : end;
	return 0;
}

int file_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		struct img_error *err)
{
	struct file_state *st = node->state;
	uint64_t end = off + bytes;

	(void)err;
	*nr = 0;
	while (off < end && *nr < cap) {
		enum status_kind kind;
		uint64_t stop;

		/* Devices and hosts that cannot tell: all of it is data. */
		if (st->is_block_device || next_change(st->buffered_fd, off, end, &kind, &stop) != 0) {
			kind = STATUS_DATA;
			stop = end;
		}
		out[(*nr)++] = (struct status_extent){
			.off = off,
			.bytes = stop - off,
			.kind = kind,
			.host_off = kind == STATUS_DATA ? off : STATUS_NO_HOST,
		};
		off = stop;
	}
	return 0;
}

int file_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	struct file_state *st = node->state;
	struct stat sb;

	if (fstat(st->fd, &sb) < 0)
		return error_errno(err, errno, NO_OFFSET, FILE_LAYER, "%s: cannot stat", node->path);
	*out = (struct host_stat){
		.dev = (uint64_t)sb.st_dev,
		.ino = (uint64_t)sb.st_ino,
		.mtime_ns = (int64_t)sb.st_mtim.tv_sec * 1000000000 + sb.st_mtim.tv_nsec,
		.file_bytes = (uint64_t)sb.st_size,
		.allocated_bytes = (uint64_t)sb.st_blocks * 512,
		.is_block_device = st->is_block_device,
	};
	if (st->is_block_device) {
		/* One device has many names; its number says which it is. No file has inode 0. */
		out->dev = (uint64_t)sb.st_rdev;
		out->ino = 0;
		out->mtime_ns = 0;
		out->file_bytes = atomic_load(&st->size);
		out->allocated_bytes = out->file_bytes;
	}
	return 0;
}

/* fsync() is fdatasync() and the times. What cannot be synced has none that could be lost. */
int file_sync_time(struct node *node, struct img_error *err)
{
	struct file_state *st = node->state;

	if (!st->is_block_device && !node->is_volatile && fsync(st->fd) < 0 && errno != EINVAL && errno != EROFS)
		return error_errno(err, errno, NO_OFFSET, FILE_LAYER,
				   "%s: cannot make the time of its last change durable", node->path);
	return 0;
}
