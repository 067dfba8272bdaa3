/* SPDX-License-Identifier: MIT */
/* See sink.h. */
#include "sink.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"

#define POLITE_BYTES 512u /* POSIX: poll() promises room for so much in a pipe */

void sink_none(struct sink *s)
{
	s->fd = -1;
	s->used = 0;
}

/*
 * O_NONBLOCK belongs to an open file, which stdout shares with our shell: that would find its terminal not blocking.
 * Opened once more it is ours. A socket cannot be.
 */
static int own_stdout(struct sink *s, struct img_error *err)
{
	s->fd = s->steady ? -1 : open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (s->fd >= 0)
		return 0;
	s->polite = !s->steady;
	s->fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);
	return s->fd < 0 ? fail_errno(err, "stdout") : 0;
}

int sink_open(struct sink *s, const char *path, struct img_error *err)
{
	struct stat st;

	*s = (struct sink){ .fd = -1 };
	if (strcmp(path, "-") == 0) {
		s->steady = fstat(STDOUT_FILENO, &st) == 0 && S_ISREG(st.st_mode);
		return own_stdout(s, err);
	}
	/* waits for the reader of a FIFO, while there is nobody else to wait for us */
	s->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOCTTY | O_CLOEXEC, 0666);
	if (s->fd < 0 || fstat(s->fd, &st) != 0)
		return fail_errno(err, "%.180s", path);
	s->steady = S_ISREG(st.st_mode);
	if (!s->steady && fcntl(s->fd, F_SETFL, O_NONBLOCK) != 0)
		return fail_errno(err, "%.180s", path);
	return 0;
}

size_t sink_room(const struct sink *s)
{
	return s->fd < 0 ? SINK_BYTES : SINK_BYTES - s->used;
}

bool sink_put(struct sink *s, const void *data, size_t bytes)
{
	if (s->fd < 0)
		return true;
	if (bytes > sink_room(s))
		return false;
	memcpy(s->buf + s->used, data, bytes);
	s->used += bytes;
	sink_flush(s);
	return true;
}

static bool can_write(const struct sink *s, int timeout_ms)
{
	struct pollfd fd = { .fd = s->fd, .events = POLLOUT };

	return poll(&fd, 1, timeout_ms) > 0 && (fd.revents & POLLOUT);
}

void sink_flush(struct sink *s)
{
	size_t done = 0;

	while (s->fd >= 0 && done < s->used) {
		size_t piece = s->polite && s->used - done > POLITE_BYTES ? POLITE_BYTES : s->used - done;
		ssize_t n;

		if (s->polite && !can_write(s, 0))
			break;
		n = write(s->fd, s->buf + done, piece);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			close(s->fd);
			sink_none(s);
			return;
		}
		done += (size_t)n;
	}
	s->used -= done;
	memmove(s->buf, s->buf + done, s->used);
}

void sink_close(struct sink *s, int timeout_ms)
{
	if (s->fd < 0)
		return;
	sink_flush(s);
	while (s->fd >= 0 && s->used > 0 && can_write(s, timeout_ms))
		sink_flush(s);
	if (s->fd >= 0)
		close(s->fd);
	sink_none(s);
}
