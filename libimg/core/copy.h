/* SPDX-License-Identifier: MIT */
/* Copies of whole images: what img_copy() and img_convert() share. */
#ifndef CORE_COPY_H
#define CORE_COPY_H

#include "libimg.h"

struct img_driver;

/*
 * Brings the content of src to dst, which is as large or larger, without flushing. base (may be NULL) is what dst reads
 * as now; then only what differs is written, and IMG_COPY_TARGET_ZERO does not apply.
 */
int copy_content(struct img *src, struct img *base, struct img *dst, const struct img_copy_options *opts,
		 struct img_error *err);

/*
 * Brings src with its internal snapshots to dst, which is new, supports snapshots, and reads as base (NULL: as zeros).
 * Names, content, machine states and ancestry are carried over; identifiers and times are new. dst ends with the size
 * size_bytes.
 */
int copy_snapshots(struct img *src, struct img *base, struct img *dst, uint64_t size_bytes,
		   const struct img_copy_options *opts, struct img_error *err);

/* Brings the bitmaps of src that are consistent to dst, whose content is complete. */
int copy_bitmaps(struct img *src, struct img *dst, struct img_error *err);

/* A copy that is about to begin. */
struct leaving {
	struct img *src;
	const struct img_driver *drv; /* of the copy */
	struct img *dst; /* the copy, empty; NULL: not to be looked at, then all its properties are the usual ones */
	uint64_t size_bytes; /* of the copy, without dst */
	const struct img_copy_options *opts;
	bool with_snapshots, with_bitmaps; /* are copied */
	bool has_backing;		   /* dst stands on a parent, as asked */
	bool compresses;
	bool keeps_rest; /* dst was there before, and may be larger */
};
/*
 * Tells opts->left_behind what src has and the copy will not have. IMG_E_REFUSED where opts is strict about any of it,
 * when all has been told. Costs nothing where nobody wants to know.
 */
int left_behind(const struct leaving *l, struct img_error *err);

#endif
