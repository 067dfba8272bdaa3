/* SPDX-License-Identifier: MIT */
/* Filters for memfs.wrap, on every file that is opened: one that fails on order, and one that keeps a log. */
#ifndef TESTS_UNIT_MEMFS_WRAPS_H
#define TESTS_UNIT_MEMFS_WRAPS_H

#include "crash.h"
#include "fault.h"
#include "memfs.h"

/* ctx: a struct fault_plan. */
static inline int wrap_faulty(void *ctx, struct node *child, const char *name, const struct host_open *args,
			      struct node **out, struct img_error *err)
{
	(void)name;
	(void)args;
	return fault_node_new(child, ctx, out, err);
}

/* ctx: a struct crash_log. */
static inline int wrap_logged(void *ctx, struct node *child, const char *name, const struct host_open *args,
			      struct node **out, struct img_error *err)
{
	(void)name;
	(void)args;
	return crash_node_new(child, ctx, 0, out, err);
}

#endif
