/* SPDX-License-Identifier: MIT */
/*
 * Extents whose grains are compressed: streamOptimized. They are written once, from front to back, and only read
 * afterwards. What the functions here are called with is judged already as far as vmdk_header_decode() does.
 */
#ifndef VMDK_STREAM_H
#define VMDK_STREAM_H

#include "inspect.h"
#include "vmdk.h"

/* ---- stream_write.c ---------------------------------------------------------------------------------------------- */

/* For convert, and for pipes; subformat=streamOptimized. */
extern const struct driver_sequence vmdk_sequence;

/* A complete image without data in the empty file. */
int vmdk_stream_create(struct node *file, const struct driver_create *args, const struct vmdk_options *o,
		       struct img_error *err);
/* As driver.h's measure. */
int vmdk_stream_measure(const struct img_measure_args *args, const struct vmdk_options *o, struct img_measure *out,
			struct img_error *err);

/* ---- stream_read.c, stream_check.c ------------------------------------------------------------------------------- */

struct vmdk_stream;

/*
 * Opens the extent in file, whose header is h. node: whose the disk is, for messages. Nothing of file is kept but the
 * pointer. IMG_E_CORRUPT: cut off, or damaged; IMG_E_LIMIT.
 */
int vmdk_stream_open(struct node *node, struct node *file, const struct vmdk_header *h, struct budget *budget,
		     struct vmdk_stream **out, struct img_error *err);
/* NULL is fine. */
void vmdk_stream_free(struct vmdk_stream *s);
uint64_t vmdk_stream_size(const struct vmdk_stream *s);

/* As the driver's members of these names. Threads: all at once. */
void vmdk_stream_limits(const struct vmdk_stream *s, struct driver_limits *out);
int vmdk_stream_pread(struct vmdk_stream *s, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int vmdk_stream_status(struct vmdk_stream *s, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err);
int vmdk_stream_info(struct vmdk_stream *s, struct img_info *out, struct img_error *err);
int vmdk_stream_details(struct vmdk_stream *s, img_detail_fn fn, void *ctx, struct img_error *err);
/* Repairs nothing: a file of this kind is transferred again. */
int vmdk_stream_check(struct vmdk_stream *s, unsigned flags, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err);

/* No node yet: findings on footer, markers and mapping of the extent in file. Its descriptor is not looked at. */
int vmdk_stream_inspect(struct node *file, struct inspector *in, const struct vmdk_header *h, struct img_error *err);

#endif
