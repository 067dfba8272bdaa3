/* SPDX-License-Identifier: MIT */
/* What a file looks like, by its content: see probe.c. */
#ifndef CORE_PROBE_H
#define CORE_PROBE_H

#include "node.h"

struct probe_verdict {
	const struct img_driver *drv; /* NULL: raw, or a format that this build does not have */
	struct img_probe_result seen;
};

/* Reads head and tail of an open protocol node. */
int probe_node(struct node *file, struct probe_verdict *out, struct img_error *err);
/* The driver to open the file with, or the reason why none may be guessed. */
int probe_choose(struct node *file, bool writable, const struct img_driver **out, struct img_error *err);

#endif
