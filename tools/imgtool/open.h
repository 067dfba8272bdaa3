/* SPDX-License-Identifier: MIT */
/* From operands to open images. */
#ifndef IMGTOOL_OPEN_H
#define IMGTOOL_OPEN_H

#include "cli.h"

/* IMAGE@SNAPSHOT taken apart. Both are malloc()ed; snapshot is NULL for the head. */
struct target {
	char *path;
	char *snapshot;
};

/*
 * Takes an operand apart at the last '@' of its last path component. "a@b@" is the file a@b. An operand that names an
 * existing file as it stands is that file, unless the part before the '@' exists as well: then it is refused as
 * ambiguous. snapshot: from --snapshot; then the operand is a file name as it stands. folder_of: relative names start
 * at the folder of that file (NULL: the working directory). Returns an exit status.
 */
int target_parse(struct target *target, const struct cli_verb *verb, const char *operand, const char *snapshot,
		 const char *folder_of);
/* As target_parse() for verbs that take a whole image. */
int target_parse_image(struct target *target, const struct cli_verb *verb, const char *operand);
/* As target_parse() for verbs that need a snapshot's name. */
int target_parse_snapshot(struct target *target, const struct cli_verb *verb, const char *operand);
/* The name of a file that is to be made: it may have an '@' only as "a@b@". */
int target_parse_new(struct target *target, const struct cli_verb *verb, const char *operand);
void target_free(struct target *target);

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
