/* SPDX-License-Identifier: MIT */
/*
 * Nodes: opened layers, and the one chokepoint (node.c, node_ops.c) through which every driver member is called. See driver.h for
 * the contract; this side checks it. An image is a format node whose file child is a protocol node, perhaps with filters between, and whose
 * backing child is the format node of its parent.
 */
#ifndef CORE_NODE_H
#define CORE_NODE_H

#include <pthread.h>
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
	struct node **parts;  /* owned; further files, which hold the guest's data: node_add_part(), by drv->open */
	size_t nr_parts;      /* 0 for most */
	bool writable;
	char *path; /* owned; "" if unknown; for messages */
	struct node_counters counters;

	/* node.c's own */
	bool opened;		   /* drv->open, open_fd or snap_open succeeded: close is due */
	bool backing_missing;	   /* the image names a backing that was not opened on purpose: it cannot be read */
	bool is_volatile;	   /* protocols: what is written need not survive a crash of the host */
	bool backing_changes;	   /* another one will lie below: zeros are to be held by this layer also where it reads so */
	struct node *view_of;	   /* snapshot views: the node whose engine and backing they share; not owned */
	_Atomic bool poisoned;	   /* a flush failed: no more changes through this node */
	pthread_rwlock_t rmw_lock; /* nodes with request_align > 1: read-modify-write exclusive, aligned writes shared */
};

/* Allocates a node with zeroed state. path is copied. NULL: no memory (err filled). */
struct node *node_new(const struct img_driver *drv, const char *path, struct img_error *err);
/* drv->open_fd: takes over fd, also on failure. On failure node is still the caller's. */
int node_open_fd(struct node *node, int fd, const struct host_open *args, struct img_error *err);
/* drv->create in the empty, writable node file. */
int node_create(const struct img_driver *drv, struct node *file, const struct driver_create *args, struct img_error *err);
/* drv->open on node; node->file and node->backing were attached by the caller. On failure node is still the caller's. */
int node_open(struct node *node, const struct driver_open *args, struct img_error *err);
/* drv->close (if it was opened) and frees node with file and backing, children last. First failure is returned. */
int node_close(struct node *node, struct img_error *err);

/*
 * part, from driver_open.open_data, becomes one of node's; it is closed behind node. Takes part over: on failure it is
 * closed. In drv->open only.
 */
int node_add_part(struct node *node, struct node *part, struct img_error *err);

/* A flush failed: no more changes go through node. For drivers with several files, of which one is like that. */
static inline bool node_is_poisoned(const struct node *node)
{
	return atomic_load_explicit(&node->poisoned, memory_order_relaxed);
}

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
int node_sync_time(struct node *node, struct img_error *err); /* without support: success */
int node_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err); /* without support: success */
int node_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err); /* without: success */
int node_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err);	  /* without: success */

/* For filters that pass it on; UNSUPPORTED without. */
int node_map(struct node *node, void *addr, uint64_t bytes, uint64_t off, struct img_error *err);

/* Reads [off, off + bytes) of node->backing; what lies beyond its end, or has no backing, is zeros. For drivers' pread. */
int node_read_backing(struct node *node, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);

/* Formats; see driver.h. A member that the driver lacks is IMG_E_UNSUPPORTED unless said otherwise. */
bool node_get_backing(struct node *node, struct backing_ref *out); /* without: false */
int node_set_backing(struct node *node, const struct backing_ref *ref, enum backing_change how, struct img_error *err);
/* True when the driver has a strong identity (drv->pin). */
bool node_has_pin(const struct node *node);
int node_pin(struct node *node, struct pin *out, struct img_error *err);
void node_id(struct node *node, struct pin *out); /* without: PIN_NONE */
int node_snap_create(struct node *node, const char *name, unsigned flags, const int64_t *created_ns,
		     struct img_error *err);
int node_snap_delete(struct node *node, const char *name, struct img_error *err);
int node_snap_revert(struct node *node, const char *name, struct img_error *err);
int node_snap_rename(struct node *node, const char *name, const char *new_name, struct img_error *err);
int node_snap_list(struct node *node, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err);
/* *view is the caller's, to be ended by node_close() before node is. */
int node_snap_open(struct node *node, const char *name, struct node **view, struct img_error *err);
int node_snap_diff(struct node *node, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err);
int node_vmstate_write(struct node *node, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int node_vmstate_read(struct node *node, const char *snap, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int node_vmstate_zero(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err);
/* Without the driver's answer: all data, nobody knows where. */
int node_vmstate_status(struct node *node, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			size_t cap, size_t *nr, struct img_error *err);
/* Of a format node: maps its file at host_off as drv->map does. Any failure leaves the pages at addr lost. */
int node_vmstate_map(struct node *node, void *addr, uint64_t bytes, uint64_t host_off, struct img_error *err);
int node_vmstate_resize(struct node *node, uint64_t bytes, struct img_error *err);
int node_vmstate_size(struct node *node, const char *snap, uint64_t *bytes, struct img_error *err);
int node_bitmap_list(struct node *node, struct img_bitmap *out, size_t cap, size_t *nr,
		     struct img_error *err); /* without: empty */
int node_bitmap_add(struct node *node, const char *name, uint64_t granularity_bytes, unsigned flags, struct img_error *err);
int node_bitmap_remove(struct node *node, const char *name, struct img_error *err);
int node_bitmap_enable(struct node *node, const char *name, bool enable, struct img_error *err);
int node_bitmap_clear(struct node *node, const char *name, struct img_error *err);
int node_bitmap_merge(struct node *node, const char *name, const struct bitmap_source *src, struct img_error *err);
int node_bitmap_ranges(struct node *node, const char *name, uint64_t off, struct img_range *out, size_t cap, size_t *nr,
		       struct img_error *err);
int node_info(struct node *node, struct img_info *out, struct img_error *err); /* without: success */
int node_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err); /* without: success */
int node_amend(struct node *node, const char *options, struct img_error *err);
int node_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err);
/* No node yet: drv->inspect (without: success), drv->probe (0 without) and drv->measure. */
int node_inspect(const struct img_driver *drv, struct node *file, struct inspector *in, struct img_error *err);
int node_probe(const struct img_driver *drv, const struct probe_data *data);
int node_measure(const struct img_driver *drv, const struct img_measure_args *args, struct img_measure *out,
		 struct img_error *err);
/* drv->sequence, which is there (core/sequence.c). ask: 1, 0 or a failure. end: only where ret is 0, which is else passed on; frees state. */
int node_sequence_ask(const struct img_driver *drv, const char *options, struct img_error *err);
int node_sequence_begin(const struct img_driver *drv, struct node *file, const struct driver_create *args,
			struct sequence_shape *shape, void **state, struct img_error *err);
int node_sequence_pack(const struct img_driver *drv, struct node *file, const void *state, struct codec_ctx *codec,
		       const uint8_t *unit, uint64_t off, uint8_t *out, size_t *bytes, struct img_error *err);
int node_sequence_put(const struct img_driver *drv, struct node *file, void *state, const uint8_t *data,
		      const struct sequence_unit *units, size_t nr, struct img_error *err);
int node_sequence_end(const struct img_driver *drv, struct node *file, void *state, int ret, struct img_error *err);

/* A pwrite, zero, discard or resize on a format's file grows it where needed: protocol nodes accept writes past their end. */

#endif
