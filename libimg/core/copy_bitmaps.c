/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps of one image in another with the same content. They are added when the content is there, so that they
 * do not record the copying.
 */
#include <stdlib.h>

#include "copy.h"
#include "error.h"

static int copy_bitmap(struct img *src, struct img *dst, const struct img_bitmap *b, struct img_error *err)
{
	int r = img_bitmap_add(dst, b->name, b->granularity_bytes, IMG_BITMAP_ADD_DISABLED, err);

	if (r == 0)
		r = img_bitmap_merge(dst, b->name, src, b->name, err);
	if (r == 0 && (b->flags & IMG_BITMAP_ENABLED))
		r = img_bitmap_enable(dst, b->name, err);
	return r;
}

int copy_bitmaps(struct img *src, struct img *dst, struct img_error *err)
{
	struct img_bitmap *list = NULL;
	size_t cap = 0, nr = 0;
	int r = img_bitmap_list(src, NULL, 0, &nr, err);

	if (r < 0 || nr == 0)
		return r;
	cap = nr;
	list = calloc(cap, sizeof(*list));
	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "copy", "out of memory for bitmaps");
	r = img_bitmap_list(src, list, cap, &nr, err);
	for (size_t i = 0; r == 0 && i < cap && i < nr; i++) {
		if (!(list[i].flags & (IMG_BITMAP_INCONSISTENT | IMG_BITMAP_UNSUPPORTED)))
			r = copy_bitmap(src, dst, &list[i], err);
	}
	free(list);
	return r;
}
