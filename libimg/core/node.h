/* SPDX-License-Identifier: MIT */
/*
 * Nodes: opened layers, and the one chokepoint through which every driver member is called. See driver.h for the contract; this
 * side checks it. An image is a format node whose file child is a protocol node, perhaps with filters between, and whose
 * backing child is the format node of its parent.
 */
#ifndef CORE_NODE_H
#define CORE_NODE_H

#include <stdatomic.h>

#include "driver.h"

struct node_counters {
	_Atomic uint64_t reads, writes, zeroes, discards, flushes, bytes_read, bytes_written;
};

struct node {
	const struct img_driver *drv;
	void *state;	      /* drv->state_bytes, owned */
	struct node *file;    /* owned; NULL for protocols and for snapshot views */
	struct node *backing; /* owned; NULL if none or not opened */
	bool writable;
	char *path; /* owned; "" if unknown; for messages */
	struct node_counters counters;
};

/* Allocates a node with zeroed state. path is copied. NULL: no memory (err filled). */
struct node *node_new(const struct img_driver *drv, const char *path, struct img_error *err);
/* drv->open on node; node->file and node->backing were attached by the caller. On failure node is still the caller's. */
int node_open(struct node *node, const struct driver_open *args, struct img_error *err);
/* drv->close (if it was opened) and frees node with file and backing, children last. First failure is returned. */
int node_close(struct node *node, struct img_error *err);

uint64_t node_size(const struct node *node);
void node_limits(const struct node *node, struct driver_limits *out);

int node_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int node_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int node_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int node_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err);
int node_flush(struct node *node, unsigned flags, struct img_error *err);
int node_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		struct img_error *err);
int node_resize(struct node *node, uint64_t size_bytes, struct img_error *err);
int node_stat(struct node *node, struct host_stat *out, struct img_error *err);
int node_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err); /* without support: success */
int node_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err); /* without: success */
int node_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err);	  /* without: success */

/* Reads [off, off + bytes) of node->backing; what lies beyond its end, or has no backing, is zeros. For drivers' pread. */
int node_read_backing(struct node *node, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);

/* A pwrite, zero, discard or resize on a format's file grows it where needed: protocol nodes accept writes past their end. */

#endif
