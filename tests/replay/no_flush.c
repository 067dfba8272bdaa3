/* SPDX-License-Identifier: MIT */
/*
 * A C library whose flushes do nothing, to be preloaded: what replay.py must find, or it finds nothing. NO_FLUSH says
 * which: "data" fdatasync(), which is what images use; "folder" fsync(), which is what makes a name durable; "order"
 * every second fdatasync(), so that what had to come before something comes with it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int off(const char *what)
{
	const char *said = getenv("NO_FLUSH");

	return said && strcmp(said, what) == 0;
}

int fdatasync(int fildes)
{
	static unsigned count;

	if (off("data") || (off("order") && count++ % 2 == 0))
		return 0;
	return (int)syscall(SYS_fdatasync, fildes);
}

int fsync(int fd)
{
	return off("folder") ? 0 : (int)syscall(SYS_fsync, fd);
}
