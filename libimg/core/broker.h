/* SPDX-License-Identifier: MIT */
/* Opening files that images name, under a policy: see broker.c. */
#ifndef CORE_BROKER_H
#define CORE_BROKER_H

#include "node.h"

/*
 * Opens what the image at child_path names. *fd is open read-only on a regular file (or a block device, with
 * IMG_REFS_ANY); *resolved is a malloc()ed path for messages and for references of that file.
 */
int broker_open(const char *child_path, const char *name, enum img_refs refs, int *fd, char **resolved,
		struct img_error *err);
/* The same for writing: regular files only. */
int broker_open_writable(const char *child_path, const char *name, enum img_refs refs, int *fd, char **resolved,
			 struct img_error *err);
/* Where a new file that the image at child_path will name is to be made; malloc()ed. */
int broker_new_path(const char *child_path, const char *name, enum img_refs refs, char **out, struct img_error *err);
/* Opens what the user names: any path, a regular file or a block device. */
/* The file that a user means by path: path, or the descriptor in it if it is a folder that holds one. malloc()ed; NULL: no memory. */
char *broker_meant(const char *path);
int broker_open_named(const char *path, bool writable, int *fd, struct img_error *err);
/* The folder of path, "." where it has none; malloc()ed. */
char *broker_folder(const char *path, struct img_error *err);

#endif
