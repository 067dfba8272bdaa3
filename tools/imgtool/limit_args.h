/* SPDX-License-Identifier: MIT */
/* --limit NAME=VALUE: what an image may cost. */
#ifndef IMGTOOL_LIMIT_ARGS_H
#define IMGTOOL_LIMIT_ARGS_H

#include "args.h"

/* The numbers of struct img_open_options and struct img_budget; 0: the library's default. */
struct limits {
	struct img_budget budget;
	uint64_t max_depth, max_virtual_bytes;
};

struct limits limits_default(void);
/* "metadata=64M"; false: there is no such limit, or the value is none (not 0 either). */
bool limits_set(struct limits *limits, const char *name, size_t name_bytes, const char *value);
/* "depth, expansion, ..." */
const char *limits_names(void);

/* What the command line says. Returns an exit status. */
int limits_parse(const struct cli_verb *verb, const struct common_args *common, struct limits *out);
/* The same once more, for a command line that was judged before the verb ran. */
struct limits limits_of(const struct common_args *common);
/* And over those that limits has already. */
void limits_add(struct limits *limits, const struct common_args *common);
/* options->budget points into limits. */
void limits_apply(const struct limits *limits, struct img_open_options *options);

#endif
