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
 * Opens, confines the process before that (confined.h), says what there is to say about it (stale reads, foreign files
 * opened) and reports failures. flags: enum img_open_flags beside what common asks for. Returns an exit status; *out is
 * NULL unless it is EXIT_DONE.
 */
int open_image(const struct target *target, const struct common_args *common, unsigned flags, struct img **out);
/* As open_image(), with a format of its own (NULL: probe). */
int open_image_as(const struct target *target, const char *format, const struct common_args *common, unsigned flags,
		  struct img **out);
/* Closes; a failure is reported and takes the place of EXIT_DONE in status. img may be NULL. */
int close_image(struct img *img, const struct target *target, int status);

/* What most verbs work on: the image that an operand names. */
struct opened {
	struct target target;
	struct img *img;
};
/*
 * Takes the operand apart and opens. It may name a snapshot if the verb offers that (WITH_SNAPSHOT) and flags do not
 * ask for writing. Returns an exit status; opened_end() follows on EXIT_DONE, and only then.
 */
int opened_begin(struct opened *o, const struct cli_verb *verb, const struct common_args *common, const char *operand,
		 unsigned flags);
/* As close_image(). */
int opened_end(struct opened *o, int status);
/* opened_end() after a call of the library: code and err are what it left. */
int opened_done(struct opened *o, int code, const struct img_error *err);

#endif
