/* SPDX-License-Identifier: MIT */
/*
 * What commit, rebase and flatten share: they work on a frozen image (image_freeze()), through its alias, and put it on
 * another parent or on another state of its parent.
 */
#ifndef CORE_RESTACK_H
#define CORE_RESTACK_H

#include "image.h"

struct restack {
	struct img *img;   /* frozen: no other thread is in it */
	struct img *alias; /* of img, for the public functions */
	bool has_ref;
	struct backing_ref
		ref; /* as recorded at the beginning, with has_ref; of several names the one at which something is */
};

/*
 * Freezes img and reads its reference. Fails READONLY where img is a snapshot or not writable. After success
 * restack_end() is due.
 */
int restack_begin(struct restack *rs, struct img *img, struct img_error *err);
void restack_end(struct restack *rs);

/* REFUSED where the image has snapshots: they read through the backing as it is. `what` names the operation. */
int restack_forbid_snapshots(const struct restack *rs, const char *what, struct img_error *err);

/* Opens what ref names, for reading. open_flags: IMG_OPEN_UNSAFE_BACKING not to compare pins. */
int restack_open_parent(const struct restack *rs, const struct backing_ref *ref, unsigned open_flags,
			enum img_refs refs, struct img **out, struct img_error *err);

/* Ends the backing that img has opened, if any, and puts it on parent, which it takes over (NULL: none). */
void restack_put_on(struct restack *rs, struct img *parent);

#endif
