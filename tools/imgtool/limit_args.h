/* SPDX-License-Identifier: MIT */
/* --limit among imgtool's common options: see image_limits.h. */
#ifndef IMGTOOL_LIMIT_ARGS_H
#define IMGTOOL_LIMIT_ARGS_H

#include "args.h"
#include "image_limits.h"

/* What the command line says. Returns an exit status. */
int limits_parse(const struct cli_verb *verb, const struct common_args *common, struct limits *out);
/* The same once more, for a command line that was judged before the verb ran. */
struct limits limits_of(const struct common_args *common);
/* And over those that limits has already. */
void limits_add(struct limits *limits, const struct common_args *common);

#endif
