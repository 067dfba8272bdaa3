/* SPDX-License-Identifier: MIT */
/*
 * A bundle: a descriptor, and of each storage a stack of images, the one of the shot that was opened on top of those
 * that it stands on. Each image is a node of its own (layer.c), whose file is one of the bundle's parts; the span sends
 * requests to the storages' top layers, and a layer reads what it does not have from the one below.
 *
 * Snapshots are the shots but the head. They are read; they are not made, deleted or reverted to: that changes the
 * descriptor and files that the library cannot make while an image is open.
 */
#ifndef PRL_BUNDLE_H
#define PRL_BUNDLE_H

#include "prl_descriptor.h"
#include "prl.h"
#include "span.h"

struct prl_bundle;

/* What a segment of a span leads to. */
struct prl_layer {
	struct prl_bundle *bundle;
	struct node *node, *file;
};

/* The images of one storage. */
struct prl_stack {
	/*
	 * Of shots, children before parents: that which was opened and what it stands on; a reader of the head has the
	 * other snapshots too, as far as they are there, and a check has each shot by itself.
	 */
	struct prl_layer *layer;
	const struct prl_part **part; /* what each layer is */
	size_t *shot;
	struct img_error *why; /* of layers that are not there (node NULL) */
	size_t nr;
	size_t top; /* the one that was opened */
};

struct prl_bundle {
	struct prl_descriptor d;
	size_t shot; /* that was opened */
	bool writable, check_only;
	_Atomic bool broken;	 /* a flush of one file failed: none of them is changed any more */
	bool absent;		 /* no file was opened: nothing is known but what the descriptor says */
	struct prl_stack *stack; /* one for each storage; NULL where absent */
};

/* State of a node of the driver. */
struct prl_state {
	struct prl_image image;	   /* without span */
	struct prl_bundle *bundle; /* with span; owned, but by views of snapshots */
	struct span *span;	   /* NULL: one image */
};
struct prl_state *prl_state_of(const struct node *node);

/* ---- layer.c ---- */

/*
 * An image of a bundle as a node on backing (NULL: none), which it takes over on success. file is a part of the bundle,
 * which outlives it. storage_bytes: how large it must be. On failure both stay the caller's.
 */
int prl_layer_open(struct node *file, bool plain, uint64_t storage_bytes, struct node *backing,
		   const struct driver_open *args, struct node **out, struct img_error *err);
/* ctx: a struct prl_layer; what it does not have is looked for below. */
extern const struct span_ops prl_layer_ops;
/* One extent at off: of the highest of the layers from top down to stop, which is none of them, that has something. */
int prl_extent_at(struct node *top, const struct node *stop, uint64_t bytes, uint64_t off, struct status_extent *out,
		  struct img_error *err);

/* ---- bundle.c ---- */
int prl_bundle_open(struct node *node, const struct driver_open *args, struct img_error *err);
int prl_bundle_close(struct node *node, struct img_error *err);
void prl_bundle_limits(const struct node *node, struct driver_limits *out);
int prl_bundle_info(struct node *node, struct img_info *out, struct img_error *err);
int prl_bundle_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err);
/* Of one image, too: it has none. */
int prl_bundle_snap_list(struct node *node, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err);
int prl_bundle_snap_open(struct node *node, const char *name, struct node *view, struct img_error *err);

int prl_bundle_snap_diff(struct node *node, const char *a, const char *b, img_diff_fn fn, void *ctx,
			 struct img_error *err);

/* ---- bundle_make.c ---- */
int prl_bundle_make(struct node *file, const struct prl_options *o, const struct driver_create *args,
		    struct img_error *err);

/* ---- bundle_check.c ---- */
int prl_bundle_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		     const struct img_progress *progress, struct img_check_result *out, struct img_error *err);

#endif
