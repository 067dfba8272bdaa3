/* SPDX-License-Identifier: MIT */
/*
 * Making an image on a block device. There is no other name under which it could be made, so what says that an image is there (the driver's
 * anchors) is erased first and written last: until then, and after a failure or a crash, the device holds no image of that format. What the
 * driver refuses before it writes anything leaves the device as it was.
 */
#ifndef CORE_DEVICE_TARGET_H
#define CORE_DEVICE_TARGET_H

#include "image.h"

struct anchors;

struct device_target {
	struct image_env env; /* takes the place of the caller's: create_file opens the device, publish writes the anchors */
	const struct image_env *host;
	struct anchors *anchors;
};

/* host outlives t. UNSUPPORTED: no image of the format can stand on a device. Ended with device_target_end() where this gave 0. */
int device_target_begin(struct device_target *t, const struct img_driver *drv, const struct image_env *host,
			struct img_error *err);
void device_target_end(struct device_target *t);

/* node_create() in what create_file gave, of this or of any other environment. */
int device_target_create(const struct img_driver *drv, struct node *file, const struct driver_create *args,
			 struct img_error *err);

#endif
