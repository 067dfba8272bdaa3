/* SPDX-License-Identifier: MIT */
/* What node.c, node_ops.c and node_vmstate.c, the parts of the chokepoint, share. */
#ifndef CORE_NODE_INT_H
#define CORE_NODE_INT_H

#include "node.h"

/* Passes on ret; makes sure that a failure filled err, and that an answer above 0 (no driver may give one) is a
 * failure. */
int node_judge(struct node *node, int ret, const char *what, struct img_error *err);
/* The node is open, writable and not poisoned. */
int node_check_change(struct node *node, const char *what, struct img_error *err);

/* IMG_E_UNSUPPORTED: the node's format has none of these. */
int node_unsupported(const struct node *node, const char *what, struct img_error *err);
/* An answer of drv->status for [off, off + bytes): ascending from off, contiguous, not empty; clips it, or fails. */
int node_police_status(const struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err);

#endif
