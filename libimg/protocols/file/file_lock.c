/* SPDX-License-Identifier: MIT */
/*
 * File protocol: locks. Two kinds, both on single bytes by open-file-description locks (F_OFD_*), which belong to the
 * description and not to the process: two opens in one process conflict as two processes do, a fork shares them, and
 * they die with the last descriptor.
 *
 * share() speaks QEMU's protocol, so that QEMU, libvirt and this library never write one file at once. For permission i
 * (0 consistent read, 1 write, 2 write unchanged, 3 resize) byte 100 + i says "I use it", byte 200 + i "I forbid it to
 * others". All hold shared locks only, so that holding never conflicts; a conflict is found by asking whether an
 * exclusive lock could be had (F_OFD_GETLK, which ignores the description's own locks) on 200 + i for each permission
 * used and on 100 + i for each forbidden. Own bytes are taken before others' are probed: of two that come at once, at
 * least one sees the other.
 *
 * lock_byte() is plain: shared or exclusive, for the formats' own use, on bytes far above.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "file_int.h"
#include "holders.h"

#define NR_PERMS LOCK_NR_PERMS

static int set_lock(int fd, uint64_t byte, short type)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1 };

	while (fcntl(fd, F_OFD_SETLK, &fl) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return 0;
}

void file_unlock_all(struct file_state *st)
{
	struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0 };

	while (fcntl(st->fd, F_OFD_SETLK, &fl) < 0 && errno == EINTR)
		;
}

/* 0: nobody else holds any lock there; EAGAIN: somebody does; else errno. */
static int probe_lock(int fd, uint64_t byte)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1 };

	while (fcntl(fd, F_OFD_GETLK, &fl) < 0) {
		if (errno != EINTR)
			return errno;
	}
	return fl.l_type == F_UNLCK ? 0 : EAGAIN;
}

static const char *perm_name(unsigned perm)
{
	static const char *const names[NR_PERMS] = { "read", "write", "write unchanged", "resize" };

	return names[perm];
}

/* "pid 12 (qemu-img)", or what can be said without. */
static void describe_holder(const struct node *node, uint64_t byte, char *out, size_t out_bytes)
{
	const struct file_state *st = node->state;
	bool found;
	struct holder h;

	if (st->help)
		found = st->help->holder && st->help->holder(st->help->ctx, node->path, st->fd, byte, &h);
	else
		found = holder_of_byte(st->fd, byte, &h);
	if (!found || h.pid <= 0) {
		snprintf(out, out_bytes, "another process");
		return;
	}
	if (h.pid == getpid())
		snprintf(out, out_bytes, "this process, pid %lld", (long long)h.pid);
	else
		snprintf(out, out_bytes, "pid %lld (%s)", (long long)h.pid, h.command);
}

static int lock_failed(const struct node *node, int e, uint64_t byte, struct img_error *err)
{
	if (e == ENOLCK || e == EINVAL || e == EOPNOTSUPP || e == ENOSYS)
		return error_set(err, IMG_E_UNSUPPORTED, e, NO_OFFSET, FILE_LAYER,
				 "%s: the host file system cannot lock files, so that two writers could destroy it",
				 node->path);
	return error_errno(err, e, NO_OFFSET, FILE_LAYER, "%s: cannot lock byte %llu", node->path,
			   (unsigned long long)byte);
}

int file_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	static const short types[] = { [BYTE_UNLOCK] = F_UNLCK, [BYTE_SHARED] = F_RDLCK, [BYTE_EXCLUSIVE] = F_WRLCK };
	struct file_state *st = node->state;
	char holder[64];
	int ret, e;

	if (byte > INT64_MAX - 1)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, FILE_LAYER,
				 "lock byte 0x%llx is past the host's limit", (unsigned long long)byte);
	e = set_lock(st->fd, byte, types[mode]);
	if (e == 0)
		return 0;
	if (e == EAGAIN || e == EACCES) {
		describe_holder(node, byte, holder, sizeof(holder));
		return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, FILE_LAYER, "%s: in use by %s", node->path, holder);
	}
	ret = lock_failed(node, e, byte, err);
	if (ret == IMG_E_UNSUPPORTED && st->no_lock) {
		error_clear(err);
		return 0;
	}
	return ret;
}

/* Drops the locks that are held by (use, forbid) but not by the ones to keep. Unlocking one's own byte cannot conflict.
 */
static void drop_locks(struct file_state *st, unsigned use, unsigned forbid, unsigned keep_use, unsigned keep_forbid)
{
	for (unsigned i = 0; i < NR_PERMS; i++) {
		unsigned bit = 1u << i;

		if ((use & bit) && !(keep_use & bit))
			set_lock(st->fd, LOCK_USE_BYTE + i, F_UNLCK);
		if ((forbid & bit) && !(keep_forbid & bit))
			set_lock(st->fd, LOCK_FORBID_BYTE + i, F_UNLCK);
	}
}

static int take_locks(struct file_state *st, unsigned use, unsigned forbid, uint64_t *byte)
{
	for (unsigned i = 0; i < NR_PERMS; i++) {
		unsigned bit = 1u << i;
		int e = 0;

		*byte = LOCK_USE_BYTE + i;
		if ((use & bit) && !(st->use & bit))
			e = set_lock(st->fd, *byte, F_RDLCK);
		if (e != 0)
			return e;
		*byte = LOCK_FORBID_BYTE + i;
		if ((forbid & bit) && !(st->forbid & bit))
			e = set_lock(st->fd, *byte, F_RDLCK);
		if (e != 0)
			return e;
	}
	return 0;
}

static int probe_others(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	struct file_state *st = node->state;
	char holder[64];

	for (unsigned i = 0; i < NR_PERMS; i++) {
		unsigned bit = 1u << i;
		uint64_t byte = LOCK_FORBID_BYTE + i;
		int e = use & bit ? probe_lock(st->fd, byte) : 0;

		if (e == EAGAIN) {
			describe_holder(node, byte, holder, sizeof(holder));
			return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, FILE_LAYER, "%s: %s forbids others to %s it",
					 node->path, holder, perm_name(i));
		}
		if (e == 0 && (forbid & bit)) {
			byte = LOCK_USE_BYTE + i;
			e = probe_lock(st->fd, byte);
		}
		if (e == EAGAIN) {
			describe_holder(node, byte, holder, sizeof(holder));
			return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, FILE_LAYER, "%s: %s has it open to %s",
					 node->path, holder, perm_name(i));
		}
		if (e != 0)
			return lock_failed(node, e, byte, err);
	}
	return 0;
}

static void learn_size_again(struct file_state *st)
{
	struct stat sb;

	if (!st->is_block_device && fstat(st->fd, &sb) == 0 && S_ISREG(sb.st_mode))
		atomic_store(&st->size, (uint64_t)sb.st_size);
}

int file_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	struct file_state *st = node->state;
	uint64_t byte = 0;
	int ret = 0, e;

	pthread_mutex_lock(&st->share_lock);
	e = take_locks(st, use, forbid, &byte);
	if (e == EAGAIN || e == EACCES) {
		/* Somebody holds an exclusive lock, which the protocol does not know: not ours to overrule. */
		char holder[64];

		describe_holder(node, byte, holder, sizeof(holder));
		ret = error_set(err, IMG_E_BUSY, 0, NO_OFFSET, FILE_LAYER, "%s: locked by %s", node->path, holder);
	} else if (e != 0) {
		ret = lock_failed(node, e, byte, err);
	} else {
		ret = probe_others(node, use, forbid, err);
	}
	if (ret == IMG_E_UNSUPPORTED && st->no_lock) {
		error_clear(err);
		ret = 0;
	}
	if (ret != 0) {
		drop_locks(st, use, forbid, st->use, st->forbid);
	} else {
		drop_locks(st, st->use, st->forbid, use, forbid);
		/* What was learned before others were kept out may be old. */
		if ((forbid & PERM_RESIZE) && !(st->forbid & PERM_RESIZE))
			learn_size_again(st);
		st->use = use;
		st->forbid = forbid;
	}
	pthread_mutex_unlock(&st->share_lock);
	return ret;
}
