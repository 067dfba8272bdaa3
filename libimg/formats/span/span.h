/* SPDX-License-Identifier: MIT */
/*
 * A disk that is made of segments, one behind the other: each is a range of a file, the blocks of an engine
 * (blockmap.h), zeros, or what must not be touched. No driver: formats whose images have several extents (VMDK,
 * Parallels) include this header, describe the segments, and get reading, writing, zeroing, discarding, status and
 * flush that go to the right ones.
 *
 * What it promises: a request reaches each segment that it touches once, in ascending order, with offsets inside the
 * segment. A change that touches a segment which cannot be changed is refused before anything of it is written. A
 * failure in the middle may leave the segments before it changed, as a failure of one file does. Flush reaches every
 * segment that was changed since the last one, and tries all of them even if one fails; a segment whose flush failed
 * counts as changed.
 *
 * The span owns nothing but its own memory: files are the node's parts, engines are the format's, both are closed by
 * it, after the last request. Threads: everything but span_new() and span_free() may be called at once.
 */
#ifndef SPAN_H
#define SPAN_H

#include "node.h"

struct blockmap;

/* What a segment does. off is inside it. Members that are NULL: no change is possible (pwrite), the plain thing else. */
struct span_ops {
	int (*pread)(void *ctx, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
	int (*pwrite)(void *ctx, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
	int (*zero)(void *ctx, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
	int (*discard)(void *ctx, uint64_t bytes, uint64_t off, struct img_error *err); /* NULL: nothing is done */
	/* As the driver's; NULL: all data, nobody knows where. */
	int (*status)(void *ctx, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		      struct img_error *err);
	int (*flush)(void *ctx, struct img_error *err); /* NULL: nothing to do */
};

extern const struct span_ops span_file;	    /* ctx: a struct node, from inner_off on; it is as long as is needed */
extern const struct span_ops span_blocks;   /* ctx: a struct blockmap */
extern const struct span_ops span_zeros;    /* no ctx; reads as zeros, can be zeroed, cannot be written */
extern const struct span_ops span_noaccess; /* no ctx; everything is refused */

struct span_segment {
	uint64_t bytes;
	const struct span_ops *ops;
	void *ctx;
	uint64_t inner_off; /* added to each offset: where the segment begins in what ctx is */
	bool readonly;	    /* every change is refused (IMG_E_READONLY) */
	bool own_file;	    /* host offsets of its status are offsets in node->file; others are not told */
};

struct span;

/* Segments in the order of the disk; those of no bytes are left out. IMG_E_NOMEM; IMG_E_LIMIT: more than 2^63 bytes. */
int span_new(const struct span_segment *segments, size_t nr, struct span **out, struct img_error *err);
/* NULL is fine. */
void span_free(struct span *span);

uint64_t span_size(const struct span *span);
/* The last segment becomes longer or shorter by itself, and now the span does. No request is beyond the new end. */
void span_set_size(struct span *span, uint64_t bytes);

/* As the driver's members of these names. */
int span_pread(struct span *span, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* What span_pwrite(), or (zero) span_zero() would refuse; they ask it themselves. */
int span_may_change(struct span *span, uint64_t bytes, uint64_t off, bool zero, struct img_error *err);
int span_pwrite(struct span *span, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int span_zero(struct span *span, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
/* Segments that cannot be changed are left alone. */
int span_discard(struct span *span, uint64_t bytes, uint64_t off, struct img_error *err);
int span_status(struct span *span, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		struct img_error *err);
int span_flush(struct span *span, struct img_error *err);

#endif
