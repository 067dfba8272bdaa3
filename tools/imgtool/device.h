/* SPDX-License-Identifier: MIT */
/* Block devices that imgtool writes an image or a plain disk on: nothing is renamed. */
#ifndef IMGTOOL_DEVICE_H
#define IMGTOOL_DEVICE_H

#include <stdbool.h>

#include "libimg.h"

bool is_block_device(const char *path);

/* Takes the device for ourselves, as long as *fd (the caller's, -1: none) is open; forced: --force. Returns an exit
 * status. */
int claim_device(const char *path, bool forced, int *fd);

/*
 * Writes the content of src to the start of the device, which is claimed; what the device has beyond it stays. After a
 * failure or an interruption the device holds a part. copy: threads and progress. Returns an exit status; *err is
 * filled where the library failed, and then nothing has been reported yet.
 */
int convert_into_device(struct img *src, const char *path, const struct img_copy_options *copy, struct img_error *err);

#endif
