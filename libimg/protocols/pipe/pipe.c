/* SPDX-License-Identifier: MIT */
/*
 * Protocol "pipe": a descriptor that is written from front to back and never asked where it stands, how long it is or
 * to go elsewhere: a pipe, a socket, standard output wherever it leads. Its size is what was written so far.
 *
 * Nothing can be made durable here: what the other end does with it is not known. Where a descriptor is of a file, an
 * error that the host had kept back is told by close().
 */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "checked.h"
#include "error.h"
#include "node.h"

#define LAYER	     "pipe"
#define MAX_TRANSFER (1u << 30)

struct pipe_state {
	int fd;
	_Atomic uint64_t size; /* written; read by others than the one thread that writes */
};

static int pipe_open_fd(struct node *node, int fd, const struct host_open *args, struct img_error *err)
{
	struct pipe_state *st = node->state;

	(void)err;
	st->fd = fd;
	node->writable = args->writable;
	return 0;
}

static int pipe_close(struct node *node, struct img_error *err)
{
	struct pipe_state *st = node->state;

	if (close(st->fd) == 0 || errno == EINTR)
		return 0;
	return error_errno(err, errno, NO_OFFSET, LAYER, "%s: closing it failed", node->path);
}

static uint64_t pipe_size(const struct node *node)
{
	const struct pipe_state *st = node->state;

	return atomic_load(&st->size);
}

static int failed(const struct node *node, uint64_t off, struct img_error *err)
{
	if (errno == EPIPE)
		return error_set(err, IMG_E_IO, EPIPE, off, LAYER, "%s: the reader has gone after 0x%llx bytes",
				 node->path, (unsigned long long)off);
	return error_errno(err, errno, off, LAYER, "%s: cannot write at 0x%llx", node->path, (unsigned long long)off);
}

/* Whoever gave us the descriptor may have made it one that does not wait. */
static void wait_for_room(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	(void)poll(&p, 1, -1);
}

static int pipe_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	struct pipe_state *st = node->state;
	const uint8_t *p = buf;

	(void)flags;
	if (off != atomic_load(&st->size))
		return error_set(err, IMG_E_UNSUPPORTED, 0, off, LAYER, "%s: it can only be written from front to back",
				 node->path);
	while (bytes > 0) {
		ssize_t n = write(st->fd, p, (size_t)min_u64(bytes, MAX_TRANSFER));

		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			wait_for_room(st->fd);
		else if (n < 0 && errno != EINTR)
			return failed(node, off, err);
		if (n <= 0)
			continue;
		p += n;
		off += (uint64_t)n;
		bytes -= (uint64_t)n;
		atomic_store(&st->size, off);
	}
	return 0;
}

static void pipe_limits(const struct node *node, struct driver_limits *out)
{
	(void)node;
	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = 1,
		.optimal_bytes = 64u << 10,
		.max_size_bytes = INT64_MAX,
	};
}

const struct img_driver pipe_driver = {
	.name = "pipe",
	.kind = DRIVER_PROTOCOL,
	.state_bytes = sizeof(struct pipe_state),
	.caps = IMG_CAP_WRITE,
	.open_fd = pipe_open_fd,
	.close = pipe_close,
	.size = pipe_size,
	.limits = pipe_limits,
	.pwrite = pipe_pwrite,
};
