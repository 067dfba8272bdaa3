/* SPDX-License-Identifier: MIT */
/*
 * img_commit(): an overlay's content goes into its parent's head, and the overlay is emptied. A kill at any point loses
 * nothing, because the overlay keeps all that it holds until the parent is durable:
 *
 *   1  the parent is what the overlay was made on (pin), and its head is what the overlay stands on
 *   2  the overlay records `committing`, durably: from here on the parent no longer matches its pin, and the overlay is
 *      changed by commit only. It reads as before (chain.c)
 *   3  what the overlay holds is written into the parent, which is flushed and closed
 *   4  in one atomic step the overlay is emptied and records the parent's new pin, without `committing`
 *
 * Run again from anywhere between 2 and 4 it goes from 3 on: writing the same once more changes nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cursor.h"
#include "error.h"
#include "image_int.h"
#include "parent_file.h"
#include "restack.h"
#include "transfer.h"

struct commit {
	struct restack rs;
	struct img_copy_options opts;
	struct host_stat seen; /* the parent's file, as it was reached under the policy for references */
	struct img *parent;    /* open for writing, or NULL */
	struct cursor own;     /* what the overlay itself holds */
};

/* ---- step 1 ------------------------------------------------------------------------------------------------------ */

/* Weak pins know samples of the content only: all of it is compared. */
static int same_content(struct img *a, struct img *b, bool *same, struct img_error *err)
{
	struct img_compare_result result;
	struct pin pa, pb;
	int r = image_pin(a, &pa, err);

	if (r == 0)
		r = image_pin(b, &pb, err);
	if (r != 0)
		return r;
	*same = pa.size_bytes == pb.size_bytes && memcmp(pa.hash, pb.hash, sizeof(pa.hash)) == 0;
	if (!*same || pa.kind == PIN_STRONG) /* of both: they are the same file */
		return 0;
	r = img_compare(a, b, NULL, NULL, NULL, &result, err);
	*same = r == 0 && result.same;
	return r;
}

/* The overlay stands on a snapshot: commit writes into the head, which must still be the same. */
static int check_head(struct commit *c, struct img *snapshot, struct img_error *err)
{
	struct backing_ref ref = c->rs.ref;
	struct img *head;
	bool same;
	int r;

	ref.snapshot[0] = '\0';
	ref.pin = (struct pin){ .kind = PIN_NONE };
	r = restack_open_parent(&c->rs, &ref, 0, c->rs.img->refs, &head, err);
	if (r < 0)
		return r;
	r = same_content(snapshot, head, &same, err);
	if (r == 0 && !same)
		r = error_set(
			err, IMG_E_REFUSED, 0, NO_OFFSET, "core",
			"%s: the head of %s is no longer what snapshot '%s' is: rebase the overlay onto the head first, or "
			"convert it to an image of its own",
			c->rs.img->path, img_path(head), c->rs.ref.snapshot);
	(void)img_close(head, NULL);
	return r;
}

static int check_parent(struct commit *c, struct img_error *err)
{
	bool resumed = c->rs.ref.committing; /* then it holds a part of the overlay already, and matches nothing */
	struct img *parent;
	int r = restack_open_parent(&c->rs, &c->rs.ref, resumed ? IMG_OPEN_UNSAFE_BACKING : 0, c->rs.img->refs, &parent,
				    err);

	if (r < 0)
		return r;
	if (c->rs.ref.snapshot[0] != '\0' && !resumed)
		r = check_head(c, parent, err);
	if (r == 0)
		r = node_stat(parent->top, &c->seen, err);
	(void)img_close(parent, NULL);
	return r;
}

/* ---- steps 2 and 3 ----------------------------------------------------------------------------------------------- */

static int open_for_writing(struct commit *c, struct img_error *err)
{
	struct img *img = c->rs.img;
	struct img_open_options opts = {
		.struct_size = sizeof(opts),
		.format = c->rs.ref.format[0] ? c->rs.ref.format : NULL,
		.flags = IMG_OPEN_WRITE,
		.refs = img->refs,
		.budget = &img->budget,
	};
	struct host_stat now;
	char *path;
	int r = parent_file_path(img->path, &c->rs.ref, img->refs, img->env, &path, err);

	if (r < 0)
		return r;
	r = image_open_env(path, &opts, img->env, &c->parent, err);
	if (r == 0)
		r = node_stat(c->parent->top, &now, err);
	if (r == 0 && (now.dev != c->seen.dev || now.ino != c->seen.ino))
		r = error_set(err, IMG_E_CHANGED, 0, NO_OFFSET, "core", "%s: was replaced by another file just now",
			      path);
	free(path);
	return r;
}

static int record(struct commit *c, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	int r = node_set_backing(c->rs.img->top, ref, how, err);

	return r == 0 ? node_flush(c->rs.img->top, 0, err) : r;
}

static int mark(struct commit *c, struct img_error *err)
{
	struct backing_ref ref = c->rs.ref;

	if (ref.committing)
		return 0;
	ref.committing = true;
	return record(c, &ref, BACKING_SET, err);
}

static int plan_commit(void *ctx, uint64_t off, uint64_t *bytes, enum transfer_action *action, struct img_error *err)
{
	struct commit *c = ctx;
	struct img_extent ext;
	int r = cursor_at(&c->own, off, &ext, err);

	if (r < 0)
		return r;
	*bytes = ext.bytes;
	*action = ext.flags & IMG_EXT_DATA ? TRANSFER_DATA : ext.flags & IMG_EXT_ZERO ? TRANSFER_ZERO : TRANSFER_SKIP;
	return 0;
}

static int write_parent(struct commit *c, struct img_error *err)
{
	struct transfer transfer = {
		.src = c->rs.alias,
		.dst = c->parent,
		.bytes = img_size(c->rs.alias),
		.flags = c->opts.flags & (IMG_COPY_COMPRESS | IMG_COPY_NO_DETECT),
		.plan = plan_commit,
		.ctx = c,
	};
	int r = 0;

	if (img_size(c->parent) < transfer.bytes)
		r = img_resize(c->parent, transfer.bytes, 0, err);
	if (r < 0)
		return r;
	cursor_init(&c->own, c->rs.alias, IMG_EXTENTS_OWN);
	r = transfer_run(&transfer, c->opts.threads, &c->opts.progress, err);
	return r == 0 ? img_flush(c->parent, 0, err) : r;
}

/* ---- step 4 ------------------------------------------------------------------------------------------------------ */

static int finish(struct commit *c, struct img_error *err)
{
	struct backing_ref ref = c->rs.ref;
	struct img *parent;
	int r;

	ref.snapshot[0] = '\0'; /* it is the head that holds the content now */
	ref.pin = (struct pin){ .kind = PIN_NONE };
	ref.committing = false;
	r = restack_open_parent(&c->rs, &ref, 0, c->rs.img->refs, &parent, err);
	if (r < 0)
		return r;
	r = image_identify(parent, &ref, err);
	if (r == 0)
		r = record(c, &ref, BACKING_SET_EMPTY, err);
	if (r < 0) {
		(void)img_close(parent, NULL);
		return r;
	}
	restack_put_on(&c->rs, parent);
	return 0;
}

/*
 * After a failure the overlay goes on to read right on its parent, whatever was written there already: all of it is in
 * the overlay too, and hides the parent. Where the parent cannot be opened, what the overlay does not hold cannot be
 * read.
 */
static void put_back(struct commit *c)
{
	struct img *parent;

	if (restack_open_parent(&c->rs, &c->rs.ref, IMG_OPEN_UNSAFE_BACKING, c->rs.img->refs, &parent, NULL) == 0)
		restack_put_on(&c->rs, parent);
}

static int commit_frozen(struct commit *c, struct img_error *err)
{
	int r, closed;

	if (!c->rs.has_ref)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, "core", "%s: has no backing image to commit into",
				 c->rs.img->path);
	r = restack_forbid_snapshots(&c->rs, "commit", err);
	if (r == 0)
		r = check_parent(c, err);
	if (r < 0)
		return r;
	restack_put_on(&c->rs, NULL); /* who reads the parent keeps writers out */
	r = open_for_writing(c, err);
	if (r == 0)
		r = mark(c, err);
	if (r == 0)
		r = write_parent(c, err);
	if (c->parent) {
		closed = img_close(c->parent, r < 0 ? NULL : err);
		r = r < 0 ? r : closed;
	}
	if (r == 0)
		r = finish(c, err);
	if (r < 0)
		put_back(c);
	return r;
}

int img_commit(struct img *img, const struct img_copy_options *opts, struct img_error *err)
{
	struct commit *c = calloc(1, sizeof(*c));
	int r;

	error_clear(err);
	if (!img) {
		free(c);
		return image_invalid(err, "no image");
	}
	if (!c)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a commit");
	r = image_copy_options(&c->opts, sizeof(c->opts), opts, err);
	if (r == 0)
		r = restack_begin(&c->rs, img, err);
	if (r == 0) {
		r = commit_frozen(c, err);
		restack_end(&c->rs);
	}
	free(c);
	return r;
}
