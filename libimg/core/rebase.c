/* SPDX-License-Identifier: MIT */
/*
 * img_rebase() and img_flatten(): the same content on another parent, or on none. Where the image itself holds nothing,
 * and the old chain reads other than the new one would, the old content is written into the image; when that is durable
 * the new reference is recorded. Until then the image reads the same through the old chain, so both can be run again
 * after a kill.
 *
 * A commit that was interrupted goes before. Where its parent is lost IMG_REBASE_UNSAFE puts the image on another one:
 * until the one step that empties it, it still holds all that it held. Where emptying takes several steps nobody can
 * tell how much of it is in the parent alone, so that there is no such way.
 */
#include <stdlib.h>

#include "checked.h"
#include "cursor.h"
#include "error.h"
#include "image_int.h"
#include "restack.h"
#include "transfer.h"

struct rebase {
	struct restack rs;
	struct img_rebase_options opts;
	enum img_refs refs;	    /* for the new parent */
	struct backing_ref new_ref; /* with opts.backing */
	struct img *new_parent;	    /* open, until the image stands on it; NULL if there will be none */
	struct cursor own, before, after;
};

/* Cuts *bytes to the extent at off. A parent that is not there is zeros. */
static int extent_kind(struct cursor *cursor, uint64_t off, uint64_t *bytes, bool *data, struct img_error *err)
{
	struct img_extent ext;
	int r = cursor_at(cursor, off, &ext, err);

	*data = r == 0 && ext.flags & IMG_EXT_DATA;
	if (r == 0)
		*bytes = min_u64(*bytes, ext.bytes);
	return r;
}

/*
 *   image holds it                       | skip
 *   old chain zero, new chain zero       | skip
 *   old chain data, there is no new one  | data
 *   one of the chains data               | diff
 */
static int plan_rebase(void *ctx, uint64_t off, uint64_t *bytes, enum transfer_action *action, struct img_error *err)
{
	struct rebase *rb = ctx;
	bool old_data = false, new_data = false;
	struct img_extent own;
	int r = cursor_at(&rb->own, off, &own, err);

	if (r < 0)
		return r;
	*action = TRANSFER_SKIP;
	*bytes = own.bytes;
	if (own.flags & (IMG_EXT_DATA | IMG_EXT_ZERO))
		return 0;
	r = extent_kind(&rb->before, off, bytes, &old_data, err);
	if (r == 0)
		r = extent_kind(&rb->after, off, bytes, &new_data, err);
	if (r < 0)
		return r;
	if (rb->new_parent && (old_data || new_data))
		*action = TRANSFER_DIFF;
	else if (old_data)
		*action = TRANSFER_DATA;
	return 0;
}

/* Writes into the image what the new chain would read otherwise. */
static int keep_content(struct rebase *rb, struct img_error *err)
{
	struct img *old_parent = rb->rs.img->backing;
	struct transfer transfer = {
		.src = old_parent,
		.base = rb->new_parent,
		.dst = rb->rs.alias,
		.bytes = img_size(rb->rs.alias),
		.flags = rb->new_parent ? 0 : IMG_COPY_TARGET_ZERO, /* what is not written will be zeros */
		.plan = plan_rebase,
		.ctx = rb,
	};
	int r;

	if (!old_parent && rb->rs.has_ref)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "core",
				 "%s: was opened without its backing image, whose content is needed", rb->rs.img->path);
	cursor_init(&rb->own, rb->rs.alias, IMG_EXTENTS_OWN);
	cursor_init(&rb->before, old_parent, 0);
	cursor_init(&rb->after, rb->new_parent, 0);
	rb->rs.img->top->backing_changes = rb->new_parent != NULL;
	r = transfer_run(&transfer, 0, &rb->opts.progress, err);
	rb->rs.img->top->backing_changes = false;
	return r == 0 ? img_flush(rb->rs.alias, 0, err) : r;
}

/* Names and opens the new parent. */
static int open_new_parent(struct rebase *rb, struct img_error *err)
{
	const struct img_rebase_options *o = &rb->opts;
	struct img *img = rb->rs.img;
	int r;

	if (!o->backing)
		return 0;
	if (!(img->top->drv->caps & IMG_CAP_BACKING))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core", "%s: format %s has no backing images",
				 img->path, img->top->drv->name);
	r = chain_make_ref(img->path, o->backing, o->backing_snapshot, o->backing_format, rb->refs, &img->budget,
			   img->env, &rb->new_ref, err);
	return r == 0 ? restack_open_parent(&rb->rs, &rb->new_ref, 0, rb->refs, &rb->new_parent, err) : r;
}

static int rebase_frozen(struct rebase *rb, struct img_error *err)
{
	struct img *img = rb->rs.img;
	int r;

	if (!rb->rs.has_ref && !rb->opts.backing)
		return 0; /* it stands on nothing already */
	r = restack_forbid_snapshots(&rb->rs, rb->opts.backing ? "rebase" : "flatten", err);
	if (r < 0)
		return r;
	if (rb->rs.has_ref && rb->rs.ref.committing &&
	    (!(rb->opts.flags & IMG_REBASE_UNSAFE) || img->top->drv->empties_in_steps))
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, "core",
				 "%s: a commit was interrupted: run imgtool commit again first", img->path);
	r = open_new_parent(rb, err);
	if (r == 0 && !(rb->opts.flags & IMG_REBASE_UNSAFE))
		r = keep_content(rb, err);
	if (r == 0)
		r = node_set_backing(img->top, rb->opts.backing ? &rb->new_ref : NULL, BACKING_SET, err);
	if (r == 0)
		r = node_flush(img->top, 0, err);
	if (r == 0) {
		restack_put_on(&rb->rs, rb->new_parent);
		return 0;
	}
	if (rb->new_parent)
		(void)img_close(rb->new_parent, NULL);
	return r;
}

int img_rebase(struct img *img, const struct img_rebase_options *opts, struct img_error *err)
{
	struct rebase *rb = calloc(1, sizeof(*rb));
	int r;

	error_clear(err);
	if (!img) {
		free(rb);
		return image_invalid(err, "no image");
	}
	if (!rb)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a rebase");
	r = image_copy_options(&rb->opts, sizeof(rb->opts), opts, err);
	if (r == 0)
		r = restack_begin(&rb->rs, img, err);
	if (r == 0) {
		rb->refs = rb->opts.refs ? rb->opts.refs : img->refs;
		r = rebase_frozen(rb, err);
		restack_end(&rb->rs);
	}
	free(rb);
	return r;
}

int img_flatten(struct img *img, const struct img_progress *progress, struct img_error *err)
{
	struct img_rebase_options opts = { .struct_size = sizeof(opts) };

	if (progress)
		opts.progress = *progress;
	return img_rebase(img, &opts, err);
}
