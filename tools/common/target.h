/* SPDX-License-Identifier: MIT */
/* Operands that name images and snapshots. */
#ifndef TOOLS_TARGET_H
#define TOOLS_TARGET_H

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

#endif
