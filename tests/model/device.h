/* SPDX-License-Identifier: MIT */
/*
 * Block devices in memory, as an image meets a logical volume: they keep their size, cannot say what of them holds
 * data, and hold what was there before, also where the image ends and where it discarded.
 */
#ifndef TESTS_DEVICE_H
#define TESTS_DEVICE_H

#include "memfs.h"

#define DEVICE_BYTES (48u << 20)

/* Puts a device under the name, in place of what is there. False: no memory. */
bool device_make(struct memfs *fs, const char *name);
/* For memfs.wrap: what has the size of a device is one. */
int device_wrap(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		struct img_error *err);

#endif
