/* SPDX-License-Identifier: MIT */
/* See restack.h. */
#include "restack.h"

#include "error.h"
#include "parent_file.h"

int restack_forbid_snapshots(const struct restack *rs, const char *what, struct img_error *err)
{
	struct img_snapshot first;
	size_t nr = 0;
	int r = node_snap_list(rs->img->top, &first, 1, &nr, err);

	if (r < 0)
		return r;
	if (nr > 0)
		return error_set(
			err, IMG_E_REFUSED, 0, NO_OFFSET, "core",
			"%s: cannot %s an image that has snapshots, which stand on its backing too: delete them, or "
			"convert the image to a new one",
			rs->img->path, what);
	return 0;
}

int restack_begin(struct restack *rs, struct img *img, struct img_error *err)
{
	int r;

	rs->img = img;
	r = image_freeze(img, &rs->alias, err);
	if (r < 0)
		return r;
	if (img->snapshot || !img->top->writable) {
		image_thaw(img, rs->alias);
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, "core", "%s: is open for reading only", img->path);
	}
	rs->has_ref = node_get_backing(img->top, &rs->ref);
	if (rs->has_ref)
		parent_file_settle(img->path, &rs->ref, img->refs, img->env);
	return 0;
}

void restack_end(struct restack *rs)
{
	image_thaw(rs->img, rs->alias);
}

int restack_open_parent(const struct restack *rs, const struct backing_ref *ref, unsigned open_flags,
			enum img_refs refs, struct img **out, struct img_error *err)
{
	struct backing_ref plain = *ref;

	plain.committing = false; /* who comes here knows */
	return chain_open_parent(rs->img->path, &plain, open_flags, refs, CHAIN_DEPTH_DEFAULT - 1, &rs->img->budget,
				 rs->img->env, out, err);
}

void restack_put_on(struct restack *rs, struct img *parent)
{
	struct img *old = image_detach_backing(rs->img);
	struct backing_ref ref;

	if (old)
		(void)img_close(old, NULL); /* it is read-only: there is nothing to lose */
	if (parent)
		image_attach_backing(rs->img, parent);
	else /* what the parent holds must not be read as zeros while it is away */
		rs->img->top->backing_missing = node_get_backing(rs->img->top, &ref);
	image_refreeze(rs->img, rs->alias);
}
