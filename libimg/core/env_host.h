/* SPDX-License-Identifier: MIT */
/* Parts of the default environment (env_host.c) that the one of confined processes is made of as well (host_remote.c). */
#ifndef CORE_ENV_HOST_H
#define CORE_ENV_HOST_H

#include "image.h"

/* How a file is opened that was just made. */
#define ENV_HOST_NEW_FILE \
	((struct host_open){ .writable = true, .use = SHARE_WRITER_USE, .forbid = SHARE_WRITER_FORBID })

/* A node of the host's file protocol. Takes fd over, also on failure. */
int env_host_node(int fd, const char *path, const struct host_open *args, struct node **out, struct img_error *err);
/* image_env.create_file without a node: *fd is open for writing, *temp_path malloc()ed. Both are nothing on failure. */
int env_host_create_fd(const char *path, int *fd, char **temp_path, struct img_error *err);

#endif
