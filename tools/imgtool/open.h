/* SPDX-License-Identifier: MIT */
/* From operands to open images. */
#ifndef IMGTOOL_OPEN_H
#define IMGTOOL_OPEN_H

#include "args.h"
#include "target.h"

/* The policy that --allow-refs names. */
enum img_refs open_refs(const struct common_args *common);

/* What is said of an image that is read with --force-share. */
void open_tell_stale(const struct target *target);

/*
 * Opens, says what there is to say about it (stale reads, foreign files opened) and reports failures. flags: enum
 * img_open_flags beside what common asks for. Returns an exit status; *out is NULL unless it is EXIT_DONE.
 */
int open_image(const struct target *target, const struct common_args *common, unsigned flags, struct img **out);
/* As open_image(), with a format of its own (NULL: probe). */
int open_image_as(const struct target *target, const char *format, const struct common_args *common, unsigned flags,
		  struct img **out);
/* Closes; a failure is reported and takes the place of EXIT_DONE in status. img may be NULL. */
int close_image(struct img *img, const struct target *target, int status);

#endif
