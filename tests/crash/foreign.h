/* SPDX-License-Identifier: MIT */
/* A second opinion on a disk as a crash left it: QEMU's tools, on the files as they are. */
#ifndef TESTS_FOREIGN_H
#define TESTS_FOREIGN_H

#include "verify.h"

/* Is qemu-img there? */
bool foreign_available(void);
/*
 * qemu-img check finds nothing but leaks, and what qemu-img reads of the head and of each snapshot is what we saw
 * there. 0, or -1 with why filled. Not for images that are absent or wait for their commit.
 */
int foreign_judge(struct memhost *disk, const struct setup *s, const struct observed *seen, char *why);

#endif
