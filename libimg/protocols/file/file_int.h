/* SPDX-License-Identifier: MIT */
/* The inside of the file protocol: one host file or block device behind one open file description. */
#ifndef PROTOCOLS_FILE_INT_H
#define PROTOCOLS_FILE_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "error.h"
#include "node.h"

#define FILE_LAYER "file"

struct file_state {
	int fd;		       /* carries the locks; has O_DIRECT set where direct_align is not 0 */
	int buffered_fd;       /* equals fd, or a second description without O_DIRECT for what is not aligned */
	uint32_t direct_align; /* 0: not direct; else for offset, length and memory */
	uint32_t sector_bytes; /* logical sector of a block device, 1 for a file */
	bool is_block_device;
	bool no_lock;
	const struct host_help *help; /* may be NULL */
	_Atomic bool mapped; /* pages of fd were given out: they keep its description alive, with the locks */

	_Atomic uint64_t size; /* as far as this node knows; a device's never changes */
	/* Changed since the last flush began. Set when a change has arrived, not before it: a flush between the two
	 * would not cover it. */
	_Atomic bool dirty;
	_Atomic bool flush_failed; /* sticky: the kernel has marked the lost pages clean, a retry would lie */
	_Atomic bool no_punch, no_zero_range, no_allocate; /* the host said EOPNOTSUPP: do not ask again */

	/* Shared: writes that grow the file. Exclusive: ftruncate, which must not cut off what such a write appends. */
	pthread_rwlock_t grow_lock;

	pthread_mutex_t share_lock;
	unsigned use, forbid; /* share_lock; QEMU permissions held */
};

/* file_extents.c */
int file_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		struct img_error *err);
int file_stat(struct node *node, struct host_stat *out, struct img_error *err);
int file_sync_time(struct node *node, struct img_error *err);

/* file_lock.c */
int file_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err);
int file_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err);
void file_unlock_all(struct file_state *st);

/* file_space.c */
int file_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int file_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int file_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err);
int file_resize(struct node *node, uint64_t size_bytes, struct img_error *err);

/* file.c, for the others */
int file_write_all(struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int file_flush(struct node *node, unsigned flags, struct img_error *err);
void file_grew(struct file_state *st, uint64_t end);

#endif
