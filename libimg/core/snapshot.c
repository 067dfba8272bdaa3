/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of an image: checks of names and arguments, then the format's own doing. Formats without snapshots have an
 * empty list and refuse the rest. Machine state is in vmstate.c.
 */
#include <string.h>

#include "chain.h"
#include "error.h"
#include "image_int.h"

#define LAYER "snapshot"

static int begin(struct img *img, struct img_error *err)
{
	error_clear(err);
	return img ? 0 : image_invalid(err, "no image");
}

/* UTF-8 without overlong forms and surrogates. */
static bool is_utf8(const char *text)
{
	const uint8_t *p = (const uint8_t *)text;

	while (*p) {
		unsigned more = *p < 0x80 ? 0 : *p >> 5 == 6 ? 1 : *p >> 4 == 14 ? 2 : *p >> 3 == 30 ? 3 : 4;
		static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };
		uint32_t c = more ? *p & (0x3fu >> more) : *p;

		if (more > 3)
			return false;
		p++;
		for (unsigned i = 0; i < more; i++, p++) {
			if (*p >> 6 != 2)
				return false;
			c = c << 6 | (*p & 0x3fu);
		}
		if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
			return false;
	}
	return true;
}

int image_check_snapshot_name(const char *name, struct img_error *err)
{
	size_t len = name ? strlen(name) : 0;

	if (len == 0 || len > IMG_SNAPSHOT_NAME_MAX)
		return image_invalid(err, "the name of a snapshot has 1 to 255 bytes");
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)name[i];

		if (c < 0x20 || c == 0x7f || c == '@' || c == '/')
			return image_invalid(err,
					     "the name of a snapshot holds no '@', no '/' and no control characters");
	}
	if (!is_utf8(name))
		return image_invalid(err, "the name of a snapshot is UTF-8");
	return 0;
}

/* For lookup: a name that none can have is one that does not exist, but a missing one is the caller's mistake. */
int image_check_given_snapshot(const char *name, struct img_error *err)
{
	return name && name[0] && strlen(name) <= IMG_SNAPSHOT_NAME_MAX ?
		       0 :
		       image_invalid(err, "the name of a snapshot has 1 to 255 bytes");
}

/* It would stand in the way of the commit, which is all that may be done with such an image. */
static int check_committing(struct img *img, struct img_error *err)
{
	struct backing_ref ref;

	if (!node_get_backing(img->top, &ref) || !ref.committing)
		return 0;
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			 "%s: a commit into its backing file was interrupted: run imgtool commit again", img->path);
}

int image_snapshot_create_at(struct img *img, const char *name, unsigned flags, const int64_t *created_ns,
			     struct img_error *err)
{
	int ret = begin(img, err);

	if (ret == 0)
		ret = image_check_flags(flags, IMG_SNAPSHOT_VMSTATE, err);
	if (ret == 0)
		ret = image_check_snapshot_name(name, err);
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = check_committing(img, err);
	if (ret == 0)
		ret = node_snap_create(img->top, name, flags, created_ns, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_snapshot_create(struct img *img, const char *name, unsigned flags, struct img_error *err)
{
	return image_snapshot_create_at(img, name, flags, NULL, err);
}

int img_snapshot_delete(struct img *img, const char *name, struct img_error *err)
{
	int ret = begin(img, err);

	if (ret == 0)
		ret = image_check_given_snapshot(name, err);
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_snap_delete(img->top, name, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_snapshot_revert(struct img *img, const char *name, struct img_error *err)
{
	int ret = begin(img, err);

	if (ret == 0)
		ret = image_check_given_snapshot(name, err);
	if (ret != 0)
		return ret;
	pthread_rwlock_wrlock(&img->content_lock);
	ret = node_snap_revert(img->top, name, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_snapshot_rename(struct img *img, const char *name, const char *new_name, struct img_error *err)
{
	int ret = begin(img, err);

	if (ret == 0)
		ret = image_check_given_snapshot(name, err);
	if (ret == 0)
		ret = image_check_snapshot_name(new_name, err);
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_snap_rename(img->top, name, new_name, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_snapshot_list(struct img *img, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err)
{
	int ret = begin(img, err);

	if (ret == 0 && (!nr || (!out && cap > 0)))
		ret = image_invalid(err, "no place for the list");
	if (ret != 0)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_snap_list(img->top, out, cap, nr, err);
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

int img_snapshot_open(struct img *img, const char *name, struct img **out, struct img_error *err)
{
	struct node *view = NULL;
	int ret = begin(img, err);

	if (out)
		*out = NULL;
	if (ret == 0 && !out)
		ret = image_invalid(err, "no place for the image");
	if (ret == 0)
		ret = image_check_given_snapshot(name, err);
	if (ret != 0 || !out)
		return ret;
	pthread_rwlock_rdlock(&img->content_lock);
	ret = node_snap_open(img->top, name, &view, err);
	if (ret == 0) {
		*out = image_new(view, img->path, name,
				 img->open_flags & ~(unsigned)(IMG_OPEN_WRITE | IMG_OPEN_BULK | IMG_OPEN_VOLATILE),
				 img->refs, img->env, err);
		if (*out) {
			(*out)->backing = img->backing;
			(*out)->depth = img->depth;
			(*out)->budget = img->budget;
		} else {
			node_close(view, NULL);
			ret = IMG_E_NOMEM;
		}
	}
	pthread_rwlock_unlock(&img->content_lock);
	return ret;
}

/* Without content_lock: fn may use img. The format orders it against its own changes. */
int img_snapshot_diff(struct img *img, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err)
{
	int ret = begin(img, err);

	if (ret == 0 && !fn)
		ret = image_invalid(err, "nobody to tell the difference to");
	if (ret == 0 && a)
		ret = image_check_given_snapshot(a, err);
	if (ret == 0 && b)
		ret = image_check_given_snapshot(b, err);
	return ret == 0 ? node_snap_diff(img->top, a, b, fn, ctx, err) : ret;
}
