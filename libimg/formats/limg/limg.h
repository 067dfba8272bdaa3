/* SPDX-License-Identifier: MIT */
/* Driver members by file: open.c, snapshot.c, diff.c, vmstate.c, info.c, check.c; the rest is in limg.c. */
#ifndef LIMG_H
#define LIMG_H

#include "engine.h"

int limg_create(struct node *file, const struct driver_create *args, struct img_error *err);
int limg_open(struct node *n, const struct driver_open *args, struct img_error *err);
int limg_close(struct node *n, struct img_error *err);

int limg_snap_create(struct node *n, const char *name, unsigned flags, const int64_t *created_ns,
		     struct img_error *err);
int limg_snap_delete(struct node *n, const char *name, struct img_error *err);
int limg_snap_revert(struct node *n, const char *name, struct img_error *err);
int limg_snap_rename(struct node *n, const char *name, const char *new_name, struct img_error *err);
int limg_snap_list(struct node *n, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err);
int limg_snap_diff(struct node *n, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err);
int limg_vmstate_write(struct node *n, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int limg_vmstate_read(struct node *n, const char *snap, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
int limg_vmstate_zero(struct node *n, uint64_t bytes, uint64_t off, struct img_error *err);
int limg_vmstate_status(struct node *n, const char *snap, uint64_t bytes, uint64_t off, struct status_extent *out,
			size_t cap, size_t *nr, struct img_error *err);
int limg_vmstate_resize(struct node *n, uint64_t bytes, struct img_error *err);
int limg_vmstate_size(struct node *n, const char *snap, uint64_t *bytes, struct img_error *err);
int limg_info(struct node *n, struct img_info *out, struct img_error *err);
int limg_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);
int limg_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err);
int limg_inspect(struct node *file, struct inspector *in, struct img_error *err);

/* The engine for a change through this node: READONLY for a view of a snapshot, else engine_writable(). */
int limg_head(struct node *n, struct engine **e, struct img_error *err);
/* A view of a live snapshot (NULL: the head), which cannot be deleted until it is released. */
int view_named(struct engine *e, const char *name, struct view *v, struct img_error *err);
void view_release(struct view *v);
uint64_t vm_size(const struct view *v);

#endif
