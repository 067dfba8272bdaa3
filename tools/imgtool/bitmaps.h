/* SPDX-License-Identifier: MIT */
/* Lists of dirty bitmaps, as info and bitmap list show them. */
#ifndef IMGTOOL_BITMAPS_H
#define IMGTOOL_BITMAPS_H

#include <jansson.h>

#include "args.h"

struct bitmap_list {
	struct img_bitmap *at; /* malloc()ed; NULL if none */
	size_t nr;
};

/* All bitmaps of img; *list must be zeroed. Returns an exit status; failures are reported. */
int bitmaps_load(struct bitmap_list *list, struct img *img);
void bitmaps_free(struct bitmap_list *list);
void bitmaps_print(const struct bitmap_list *list);
json_t *bitmaps_json(const struct bitmap_list *list);

#endif
