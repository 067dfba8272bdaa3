/* SPDX-License-Identifier: MIT */
/* --limit NAME=VALUE: what an image may cost. */
#ifndef TOOLS_IMAGE_LIMITS_H
#define TOOLS_IMAGE_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli.h"
#include "libimg.h"

/* The numbers of struct img_open_options and struct img_budget; 0: the library's default. */
struct limits {
	struct img_budget budget;
	uint64_t max_depth, max_virtual_bytes;
};

/* Metavar and help of the option. */
#define LIMIT_METAVAR "NAME=VALUE"
#define LIMIT_HELP                                                                                                       \
	"what an image may cost that is opened: virtual-size, metadata (bytes of tables of a layer), expansion (bytes "  \
	"of data per byte of file), references (files that it names), snapshots, depth (layers), check-time (seconds); " \
	"what exceeds one is refused"

struct limits limits_default(void);
/* "metadata=64M"; false: there is no such limit, or the value is none (not 0 either). */
bool limits_set(struct limits *limits, const char *name, size_t name_bytes, const char *value);
/* "depth, expansion, ..." */
const char *limits_names(void);
/* What the command line says, over what limits has already. Returns an exit status; the usage error is told. */
int limits_take(struct limits *limits, const struct cli_verb *verb, const struct each_arg *args);
/* options->budget points into limits. */
void limits_apply(const struct limits *limits, struct img_open_options *options);

#endif
