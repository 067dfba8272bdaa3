/* SPDX-License-Identifier: MIT */
/* Formats by their magics: what this build opens judges itself (driver.h, probe), the rest is one table. */
#ifndef CORE_MAGIC_H
#define CORE_MAGIC_H

#include "driver.h"

enum magic_kind {
	MAGIC_IMAGE,   /* an image format: a file that has it is no raw disk */
	MAGIC_CONTENT, /* what a disk holds: no contradiction to raw, nor to formats whose file begins with the disk */
	MAGIC_ARCHIVE, /* a package or archive: a file that has it holds no disk as it stands, but nobody opens it as an image */
};

/*
 * Calls back with the format of each magic in the table that fits, perhaps with one format several times (head and tail); at: file
 * offset of the magic. Formats that this build has a driver for are left out.
 */
typedef void (*magic_fn)(void *ctx, const char *format, enum magic_kind kind, uint64_t at);
void magic_scan(const struct probe_data *data, magic_fn fn, void *ctx);

/* Is there a magic of this format in the table? */
bool magic_knows(const char *format);

/* What a probe looks at: buf has room for both. The file may end elsewhere meanwhile. */
#define MAGIC_HEAD_BYTES (64u << 10)
#define MAGIC_TAIL_BYTES 4096u

#endif
