/* SPDX-License-Identifier: MIT */
/* Who holds locks on a file, as far as /proc tells. Best effort: the pids of other users' processes may stay hidden. */
#ifndef CORE_HOLDERS_H
#define CORE_HOLDERS_H

#include "libimg.h"

/* QEMU's lock protocol (see protocols/file/file_lock.c): byte + number of the permission, four of each. */
#define LOCK_USE_BYTE	 100u
#define LOCK_FORBID_BYTE 200u
#define LOCK_NR_PERMS	 4u
#define LOCK_WRITE_PERM	 1u

struct holder {
	int64_t pid;
	char command[32]; /* /proc/PID/comm, control characters replaced; "" if unknown */
};

/* Some process that holds a lock on this byte of the file behind fd by another descriptor. false: none was found. */
bool holder_of_byte(int fd, uint64_t byte, struct holder *out);

/* The same for who may not look: dev and ino of the file; the descriptor fd of process pid does not count. */
bool holder_of_file(uint64_t dev, uint64_t ino, uint64_t byte, int64_t pid, int fd, struct holder *out);

#endif
