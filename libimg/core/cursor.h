/* SPDX-License-Identifier: MIT */
/*
 * Walks the extents of an image from front to back, for operations that visit the whole of it. Asks for a window at a
 * time, which grows while there are only holes: a full image is never mapped in one go, an empty one not megabyte by
 * megabyte.
 */
#ifndef CORE_CURSOR_H
#define CORE_CURSOR_H

#include "libimg.h"

#define CURSOR_EXTENTS 64

struct cursor {
	struct img *img; /* NULL: nothing but zeros */
	unsigned flags;	 /* enum img_extents_flags */
	uint64_t window_bytes;
	size_t nr, at; /* extents read ahead, and the next to be used */
	struct img_extent ahead[CURSOR_EXTENTS];
};

void cursor_init(struct cursor *c, struct img *img, unsigned flags);

/*
 * *out is the extent at off, beginning there; off never goes back from call to call. From the end of the image on there
 * is one endless extent of zeros that no layer holds (IMG_EXT_ZERO alone, without IMG_EXT_ALLOCATED).
 */
int cursor_at(struct cursor *c, uint64_t off, struct img_extent *out, struct img_error *err);

#endif
