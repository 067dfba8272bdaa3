/* SPDX-License-Identifier: MIT */
/*
 * What remains to a process that runs a hostile guest: no file can be opened, nothing executed, no socket made, and of
 * the other system calls only those that a running machine needs. In two steps: Landlock when every file is open and
 * before there are threads (they inherit it), seccomp, for all threads at once, before the guest runs.
 */
#ifndef IMGVM_SANDBOX_H
#define IMGVM_SANDBOX_H

#include <stdbool.h>

#include "confine.h"
#include "libimg.h"

struct sandbox {
	enum confine_mode mode;
	bool landlock, seccomp; /* are in force */
};

/* No new privileges, and no files: but that names in `folder` (a descriptor; -1: none) may be removed, and the
 * process's own page map read. */
int sandbox_close_files(struct sandbox *s, int folder, struct img_error *err);
/* No system calls but those on the list. rescue (may be NULL) is called in the signal handler that ends the process
 * when there is another one. */
int sandbox_close_calls(struct sandbox *s, void (*rescue)(void), struct img_error *err);

#endif
