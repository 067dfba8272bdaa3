/* SPDX-License-Identifier: MIT */
/* See bitmaps.h. */
#include "bitmaps.h"

#include <stdlib.h>

#include "output.h"

int bitmaps_load(struct bitmap_list *list, struct img *img)
{
	struct img_error err = { .code = IMG_OK };
	size_t nr = 0;

	if (img_bitmap_list(img, NULL, 0, &nr, &err) != 0)
		return cli_fail(img_path(img), &err);
	list->at = calloc(nr ? nr : 1, sizeof(*list->at));
	if (!list->at)
		return cli_fail_errno(img_path(img), "bitmaps");
	list->nr = nr;
	if (img_bitmap_list(img, list->at, list->nr, &nr, &err) != 0)
		return cli_fail(img_path(img), &err);
	if (nr < list->nr)
		list->nr = nr;
	return EXIT_DONE;
}

void bitmaps_free(struct bitmap_list *list)
{
	free(list->at);
	list->at = NULL;
	list->nr = 0;
}

static const char *state_of(const struct img_bitmap *b)
{
	if (b->flags & IMG_BITMAP_UNSUPPORTED)
		return "unsupported";
	if (b->flags & IMG_BITMAP_INCONSISTENT)
		return "inconsistent";
	return b->flags & IMG_BITMAP_ENABLED ? "enabled" : "disabled";
}

static bool is_readable(const struct img_bitmap *b)
{
	return !(b->flags & (IMG_BITMAP_INCONSISTENT | IMG_BITMAP_UNSUPPORTED));
}

void bitmaps_print(const struct bitmap_list *list)
{
	char granularity[SIZE_TEXT_BYTES], dirty[SIZE_TEXT_BYTES];

	printf("%-12s  %11s  %10s  %s\n", "state", "granularity", "dirty", "name");
	for (size_t i = 0; i < list->nr; i++) {
		const struct img_bitmap *b = &list->at[i];

		printf("%-12s  %11s  %10s  ", state_of(b), output_size(b->granularity_bytes, granularity),
		       is_readable(b) ? output_size(b->dirty_bytes, dirty) : "-");
		output_escaped(stdout, b->name);
		putchar('\n');
	}
}

json_t *bitmaps_json(const struct bitmap_list *list)
{
	json_t *array = json_array();

	for (size_t i = 0; i < list->nr; i++) {
		const struct img_bitmap *b = &list->at[i];

		json_array_append_new(array,
				      json_pack("{s:o, s:s, s:b, s:o, s:o}", "name", output_json_text(b->name), "state",
						state_of(b), "enabled", (b->flags & IMG_BITMAP_ENABLED) != 0,
						"granularity", output_json_size(b->granularity_bytes), "dirty_bytes",
						is_readable(b) ? output_json_size(b->dirty_bytes) : json_null()));
	}
	return array;
}
