/* SPDX-License-Identifier: MIT */
/* Dirty bitmaps of an image: checks of names and arguments, then the format's own doing. */
#include <string.h>

#include "error.h"
#include "image_int.h"

static int begin(struct img *img, const char *name, struct img_error *err)
{
	size_t bytes = name ? strlen(name) : 0;

	error_clear(err);
	if (!img)
		return image_invalid(err, "no image");
	if (bytes == 0 || bytes > IMG_BITMAP_NAME_MAX)
		return image_invalid(err, "the name of a bitmap has 1 to 1023 bytes");
	return 0;
}

int img_bitmap_list(struct img *img, struct img_bitmap *out, size_t cap, size_t *nr, struct img_error *err)
{
	int ret;

	error_clear(err);
	if (!img || !nr || (!out && cap > 0))
		return image_invalid(err, "no image, or no place for the list");
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_bitmap_list(img->top, out, cap, nr, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_bitmap_add(struct img *img, const char *name, uint64_t granularity_bytes, unsigned flags, struct img_error *err)
{
	int ret = begin(img, name, err);

	if (ret == 0)
		ret = image_check_flags(flags, IMG_BITMAP_ADD_DISABLED, err);
	if (ret == 0 && granularity_bytes != 0 &&
	    ((granularity_bytes & (granularity_bytes - 1)) != 0 || granularity_bytes < 512 ||
	     granularity_bytes > UINT64_C(2) << 30))
		ret = image_invalid(err, "the granularity of a bitmap is a power of two, 512 bytes to 2 GiB");
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_bitmap_add(img->top, name, granularity_bytes, flags, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_bitmap_remove(struct img *img, const char *name, struct img_error *err)
{
	int ret = begin(img, name, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_bitmap_remove(img->top, name, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

static int set_enabled(struct img *img, const char *name, bool enable, struct img_error *err)
{
	int ret = begin(img, name, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_bitmap_enable(img->top, name, enable, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_bitmap_enable(struct img *img, const char *name, struct img_error *err)
{
	return set_enabled(img, name, true, err);
}

int img_bitmap_disable(struct img *img, const char *name, struct img_error *err)
{
	return set_enabled(img, name, false, err);
}

int img_bitmap_clear(struct img *img, const char *name, struct img_error *err)
{
	int ret = begin(img, name, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_bitmap_clear(img->top, name, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_bitmap_ranges(struct img *img, const char *name, uint64_t off, struct img_range *out, size_t cap, size_t *nr,
		      struct img_error *err)
{
	int ret = begin(img, name, err);

	if (ret == 0 && (!out || cap == 0 || !nr))
		ret = image_invalid(err, "no place for the ranges");
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_bitmap_ranges(img->top, name, off, out, cap, nr, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

struct reader {
	struct img *src;
	const char *name;
	uint64_t off;
};

static int read_next(void *ctx, struct img_range *out, size_t cap, size_t *nr, struct img_error *err)
{
	struct reader *r = ctx;
	int ret = img_bitmap_ranges(r->src, r->name, r->off, out, cap, nr, err);

	if (ret == 0 && *nr > 0)
		r->off = out[*nr - 1].off + out[*nr - 1].bytes;
	return ret;
}

/* Without content_lock: the source may be the same image. The format orders a merge against its own changes. */
int img_bitmap_merge(struct img *img, const char *name, struct img *src, const char *src_name, struct img_error *err)
{
	struct reader reader = { src ? src : img, src_name, 0 };
	struct bitmap_source source = { read_next, &reader };
	int ret = begin(img, name, err);

	if (ret == 0)
		ret = begin(reader.src, src_name, err);
	return ret == 0 ? node_bitmap_merge(img->top, name, &source, err) : ret;
}
