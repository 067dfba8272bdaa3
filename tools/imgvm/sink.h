/* SPDX-License-Identifier: MIT */
/*
 * Where output goes: a file, a pipe, a terminal. Nothing here waits for a reader: what it does not take at once is
 * kept, up to a limit, and sent when poll() says that it can be.
 */
#ifndef IMGVM_SINK_H
#define IMGVM_SINK_H

#include <stdbool.h>
#include <stddef.h>

#include "libimg.h"

#define SINK_BYTES 16384u

struct sink {
	int fd;	     /* -1: output goes nowhere */
	bool steady; /* a regular file: always takes everything */
	bool polite; /* not ours alone, so that it may block: little pieces, after a poll() */
	size_t used; /* bytes that wait in buf */
	char buf[SINK_BYTES];
};

/* A sink that swallows everything. */
void sink_none(struct sink *s);
/* path: "-" is stdout; else a file that is made or emptied, a FIFO, a terminal. */
int sink_open(struct sink *s, const char *path, struct img_error *err);
/* How much sink_put() takes. */
size_t sink_room(const struct sink *s);
/* Takes all of it or nothing: false where there is no room. */
bool sink_put(struct sink *s, const void *data, size_t bytes);
/* Sends what can be sent now. A reader that went away makes it a sink that swallows everything. */
void sink_flush(struct sink *s);
/* At the end: sends the rest, but gives a reader at most this long. */
void sink_close(struct sink *s, int timeout_ms);

#endif
