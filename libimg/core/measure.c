/* SPDX-License-Identifier: MIT */
/* img_measure(): asks the target's driver, which asks back for the extents of the source that hold data. */
#include "checked.h"
#include "cursor.h"
#include "error.h"
#include "image_int.h"

#define DEFAULT_FORMAT "limg"
#define SECTOR_BYTES   512

static int each_data(void *ctx, int (*fn)(void *arg, uint64_t off, uint64_t bytes), void *arg, struct img_error *err)
{
	struct img *src = ctx;
	struct cursor cursor;
	struct img_extent ext;
	int r = 0;

	cursor_init(&cursor, src, 0);
	for (uint64_t off = 0, end = img_size(src); off < end && r == 0; off += ext.bytes) {
		r = cursor_at(&cursor, off, &ext, err);
		if (r == 0 && ext.flags & IMG_EXT_DATA)
			r = fn(arg, off, ext.bytes);
	}
	return r;
}

int img_measure(struct img *src, uint64_t size_bytes, const char *format, const char *options, struct img_measure *out,
		struct img_error *err)
{
	struct img_measure_args args = {
		.size_bytes = src ? img_size(src) : size_bytes,
		.options = options,
		.each_data = src ? each_data : NULL,
		.ctx = src,
	};
	const struct img_driver *drv = registry_find(format ? format : DEFAULT_FORMAT);

	error_clear(err);
	if (!out)
		return image_invalid(err, "no place for the answer");
	if (!drv)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core",
				 "this build does not have the format '%s'", format ? format : DEFAULT_FORMAT);
	if (args.size_bytes > INT64_MAX - SECTOR_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, "core", "0x%llx bytes are more than an image can have",
				 (unsigned long long)args.size_bytes);
	args.size_bytes = round_up(args.size_bytes, SECTOR_BYTES);
	return node_measure(drv, &args, out, err);
}
