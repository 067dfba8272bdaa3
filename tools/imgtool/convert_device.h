/* SPDX-License-Identifier: MIT */
/* imgtool convert into a block device that is there: nothing is created, and nothing renamed. */
#ifndef IMGTOOL_CONVERT_DEVICE_H
#define IMGTOOL_CONVERT_DEVICE_H

#include <stdbool.h>

#include "libimg.h"

bool is_block_device(const char *path);

/* Takes the device for ourselves, as long as *fd (the caller's) is open. Returns an exit status. */
int claim_device(const char *path, int *fd);

/*
 * Writes the content of src to the start of the device, which is claimed; what the device has beyond it stays. After a
 * failure or an interruption the device holds a part. copy: threads and progress. Returns an exit status; *err is
 * filled where the library failed, and then nothing has been reported yet.
 */
int convert_into_device(struct img *src, const char *path, const struct img_copy_options *copy, struct img_error *err);

#endif
