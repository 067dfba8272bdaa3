/* SPDX-License-Identifier: MIT */
/* Checks of arguments that the public functions share. */
#ifndef CORE_IMAGE_INT_H
#define CORE_IMAGE_INT_H

#include "image.h"

/* IMG_E_INVALID with this message. */
int image_invalid(struct img_error *err, const char *what);
/* IMG_E_INVALID if flags has bits outside known. */
int image_check_flags(unsigned flags, unsigned known, struct img_error *err);
/* IMG_E_INVALID unless a new snapshot may be called so (snapshot.c). */
int image_check_snapshot_name(const char *name, struct img_error *err);
/* The same for one that is looked up: what is no name at all. */
int image_check_given_snapshot(const char *name, struct img_error *err);
/* img_snapshot_create() of one that was made elsewhere, and then; created_ns NULL: now (snapshot.c). */
int image_snapshot_create_at(struct img *img, const char *name, unsigned flags, const int64_t *created_ns,
			     struct img_error *err);
/* IMG_E_UNSUPPORTED for what is only read (create.c). */
int image_check_creatable(const struct img_driver *drv, struct img_error *err);

#endif
