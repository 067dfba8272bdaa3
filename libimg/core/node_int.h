/* SPDX-License-Identifier: MIT */
/* What node.c and node_ops.c, the two halves of the chokepoint, share. */
#ifndef CORE_NODE_INT_H
#define CORE_NODE_INT_H

#include "node.h"

/* Passes on ret; makes sure that a failure filled err, and that an answer above 0 (no driver may give one) is a
 * failure. */
int node_judge(struct node *node, int ret, const char *what, struct img_error *err);
/* The node is open, writable and not poisoned. */
int node_check_change(struct node *node, const char *what, struct img_error *err);

#endif
