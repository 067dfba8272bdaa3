/* SPDX-License-Identifier: MIT */
/* What a conversion leaves behind, told to people and in JSON. */
#ifndef IMGTOOL_LEFT_BEHIND_H
#define IMGTOOL_LEFT_BEHIND_H

#include <jansson.h>

#include "cli.h"

struct left_behind {
	const char *path; /* of the source */
	bool quiet;
	json_t *list; /* owned; NULL: not asked for */
};

/* The options will tell of it: a note each on stderr unless quiet, and a list if with_json. lb outlives the conversion.
 */
void left_behind_begin(struct left_behind *lb, struct img_copy_options *copy, const char *path, bool quiet,
		       bool with_json);
void left_behind_end(struct left_behind *lb);

/* The value of --strict: NULL, "data" or "all", as flags of the options. */
unsigned left_behind_flags(const char *strict);

#endif
