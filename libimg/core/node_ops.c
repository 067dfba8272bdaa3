/* SPDX-License-Identifier: MIT */
/*
 * The chokepoint, everything but the data path: life of a node, host questions and locks, formats' backing records,
 * snapshots, check. See node.c for what it checks, node_vmstate.c for machine state.
 *
 * Host questions (stat, allocate, lock_byte, share) that a layer does not answer go to its file; a layer without file
 * answers "fine": memory has no locks and nothing to reserve.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "node_int.h"

#define LAYER "node"

/* ---- life -------------------------------------------------------------------------------------------------------- */

struct node *node_new(const struct img_driver *drv, const char *path, struct img_error *err)
{
	struct node *node = calloc(1, sizeof(*node));

	if (!node)
		goto no_memory;
	node->drv = drv;
	node->path = strdup(path ? path : "");
	node->state = calloc(1, drv->state_bytes ? drv->state_bytes : 1);
	if (!node->path || !node->state)
		goto no_memory;
	pthread_rwlock_init(&node->rmw_lock, NULL);
	return node;

no_memory:
	if (node) {
		free(node->path);
		free(node->state);
		free(node);
	}
	error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", path ? path : "");
	return NULL;
}

int node_unsupported(const struct node *node, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, node->drv->name, "%s: format %s has no %s", node->path,
			 node->drv->name, what);
}

int node_open_fd(struct node *node, int fd, const struct host_open *args, struct img_error *err)
{
	int ret;

	node->writable = args->writable;
	ret = node_judge(node, node->drv->open_fd(node, fd, args, err), "open", err);
	node->opened = ret == 0;
	return ret;
}

int node_create(const struct img_driver *drv, struct node *file, const struct driver_create *args,
		struct img_error *err)
{
	int ret = node_check_change(file, "create an image", err);

	if (ret != 0)
		return ret;
	if (!drv->create)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: images of format %s cannot be created", file->path, drv->name);
	return node_judge(file, drv->create(file, args, err), "create", err);
}

int node_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	int ret;

	node->writable = args->writable;
	if (!node->drv->open)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: %s cannot be opened", node->path,
				 node->drv->name);
	if (args->writable && !node->drv->pwrite)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, node->drv->name,
				 "%s: format %s is only read; convert the image to change it", node->path,
				 node->drv->name);
	ret = node_judge(node, node->drv->open(node, args, err), "open", err);
	node->opened = ret == 0;
	return ret;
}

/* Ends one node; what it owned is handed out. */
static int close_one(struct node *node, struct img_error *err)
{
	int ret = 0;

	if (node->opened && node->drv->close)
		ret = node_judge(node, node->drv->close(node, err), "close", err);
	pthread_rwlock_destroy(&node->rmw_lock);
	free(node->state);
	free(node->path);
	free(node);
	return ret;
}

/* A protocol node and the filters on it, from the top. */
static int close_files(struct node *file, struct img_error *err)
{
	int first = 0;

	while (file) {
		struct node *below = file->file;
		int ret = close_one(file, first == 0 ? err : NULL);

		if (first == 0)
			first = ret;
		file = below;
	}
	return first;
}

/* What the driver of a node stood on, the node being gone. */
static int close_below(struct node *file, struct node **parts, size_t nr_parts, struct img_error *err)
{
	int first = 0, ret;

	for (size_t i = 0; i < nr_parts; i++) {
		ret = close_files(parts[i], first == 0 ? err : NULL);
		if (first == 0)
			first = ret;
	}
	free(parts);
	ret = close_files(file, first == 0 ? err : NULL);
	return first == 0 ? ret : first;
}

int node_close(struct node *node, struct img_error *err)
{
	int first = 0;

	while (node) {
		struct node *file = node->file, **parts = node->parts;
		struct node *next = node->view_of ? NULL : node->backing;
		size_t nr_parts = node->nr_parts;
		int ret = close_one(node, first == 0 ? err : NULL);

		if (first == 0)
			first = ret;
		ret = close_below(file, parts, nr_parts, first == 0 ? err : NULL);
		if (first == 0)
			first = ret;
		node = next;
	}
	return first;
}

int node_add_part(struct node *node, struct node *part, struct img_error *err)
{
	struct node **grown = realloc(node->parts, (node->nr_parts + 1) * sizeof(*grown));

	if (!grown) {
		node_close(part, NULL);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", node->path);
	}
	node->parts = grown;
	node->parts[node->nr_parts++] = part;
	return 0;
}

/* ---- the host ---------------------------------------------------------------------------------------------------- */

static int stat_one(struct node *node, struct host_stat *out, struct img_error *err)
{
	memset(out, 0, sizeof(*out));
	while (!node->drv->stat && node->file)
		node = node->file;
	if (!node->drv->stat) {
		out->file_bytes = node_size(node);
		return 0;
	}
	return node_judge(node, node->drv->stat(node, out, err), "stat", err);
}

/* The space of data files and their last changes are the image's, too. */
int node_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	struct host_stat part;
	int ret = stat_one(node, out, err);

	for (size_t i = 0; i < node->nr_parts && ret == 0; i++) {
		ret = stat_one(node->parts[i], &part, err);
		out->allocated_bytes += part.allocated_bytes;
		if (part.mtime_ns > out->mtime_ns)
			out->mtime_ns = part.mtime_ns;
	}
	return ret;
}

static int sync_time_of_one(struct node *node, struct img_error *err)
{
	while (!node->drv->sync_time && node->file)
		node = node->file;
	return node->drv->sync_time ? node_judge(node, node->drv->sync_time(node, err), "sync_time", err) : 0;
}

int node_sync_time(struct node *node, struct img_error *err)
{
	int ret = sync_time_of_one(node, err);

	for (size_t i = 0; i < node->nr_parts && ret == 0; i++)
		ret = sync_time_of_one(node->parts[i], err);
	return ret;
}

int node_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret;

	while (!node->drv->allocate && node->file && node->drv->kind == DRIVER_FILTER)
		node = node->file;
	if (bytes == 0 || !node->drv->allocate)
		return 0;
	ret = node_check_change(node, "reserve space", err);
	if (ret == 0 && !range_inside(off, bytes, INT64_MAX))
		ret = error_set(err, IMG_E_INVALID, 0, off, LAYER,
				"%s: cannot reserve 0x%llx bytes at 0x%llx: no file is that long", node->path,
				(unsigned long long)bytes, (unsigned long long)off);
	if (ret != 0)
		return ret;
	return node_judge(node, node->drv->allocate(node, bytes, off, err), "allocate", err);
}

int node_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	while (!node->drv->lock_byte && node->file)
		node = node->file;
	return node->drv->lock_byte ? node_judge(node, node->drv->lock_byte(node, byte, mode, err), "lock", err) : 0;
}

int node_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	while (!node->drv->share && node->file)
		node = node->file;
	return node->drv->share ? node_judge(node, node->drv->share(node, use, forbid, err), "share", err) : 0;
}

/* ---- backing record and identity --------------------------------------------------------------------------------- */

bool node_get_backing(struct node *node, struct backing_ref *out)
{
	memset(out, 0, sizeof(*out));
	if (!node->opened || !node->drv->get_backing || !node->drv->get_backing(node, out))
		return false;
	/* Whatever the driver filled in, these are strings from here on. */
	out->name[sizeof(out->name) - 1] = '\0';
	for (unsigned i = 0; i < BACKING_OTHERS; i++)
		out->other[i][sizeof(out->other[i]) - 1] = '\0';
	out->format[sizeof(out->format) - 1] = '\0';
	out->snapshot[sizeof(out->snapshot) - 1] = '\0';
	return true;
}

int node_set_backing(struct node *node, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	int ret = node_check_change(node, "change the backing", err);

	if (ret != 0)
		return ret;
	if (!node->drv->set_backing)
		return node_unsupported(node, "backing images", err);
	return node_judge(node, node->drv->set_backing(node, ref, how, err), "set_backing", err);
}

bool node_has_pin(const struct node *node)
{
	return node->drv->pin != NULL;
}

int node_pin(struct node *node, struct pin *out, struct img_error *err)
{
	memset(out, 0, sizeof(*out));
	if (!node->drv->pin)
		return node_unsupported(node, "identity of its own", err);
	return node_judge(node, node->drv->pin(node, out, err), "pin", err);
}

void node_id(struct node *node, struct pin *out)
{
	memset(out, 0, sizeof(*out));
	if (node->drv->id)
		node->drv->id(node, out);
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

static const char no_snapshots[] = "snapshots";

int node_snap_create(struct node *node, const char *name, unsigned flags, const int64_t *created_ns,
		     struct img_error *err)
{
	int ret;

	if (!node->drv->snap_create)
		return node_unsupported(node, no_snapshots, err);
	ret = node_check_change(node, "create a snapshot", err);
	if (ret != 0)
		return ret;
	return node_judge(node, node->drv->snap_create(node, name, flags, created_ns, err), "snapshot create", err);
}

int node_snap_delete(struct node *node, const char *name, struct img_error *err)
{
	int ret;

	if (!node->drv->snap_delete)
		return node_unsupported(node, no_snapshots, err);
	ret = node_check_change(node, "delete a snapshot", err);
	return ret != 0 ? ret : node_judge(node, node->drv->snap_delete(node, name, err), "snapshot delete", err);
}

int node_snap_revert(struct node *node, const char *name, struct img_error *err)
{
	int ret;

	if (!node->drv->snap_revert)
		return node_unsupported(node, no_snapshots, err);
	ret = node_check_change(node, "revert", err);
	return ret != 0 ? ret : node_judge(node, node->drv->snap_revert(node, name, err), "revert", err);
}

int node_snap_rename(struct node *node, const char *name, const char *new_name, struct img_error *err)
{
	int ret;

	if (!node->drv->snap_rename)
		return node_unsupported(node, no_snapshots, err);
	ret = node_check_change(node, "rename a snapshot", err);
	return ret != 0 ? ret :
			  node_judge(node, node->drv->snap_rename(node, name, new_name, err), "snapshot rename", err);
}

int node_snap_list(struct node *node, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err)
{
	*nr = 0;
	if (!node->drv->snap_list)
		return 0;
	return node_judge(node, node->drv->snap_list(node, out, cap, nr, err), "snapshot list", err);
}

int node_snap_open(struct node *node, const char *name, struct node **view, struct img_error *err)
{
	struct node *v;
	int ret;

	*view = NULL;
	if (!node->drv->snap_open)
		return node_unsupported(node, no_snapshots, err);
	v = node_new(node->drv, node->path, err);
	if (!v)
		return IMG_E_NOMEM;
	v->view_of = node;
	v->backing = node->backing;
	v->backing_missing = node->backing_missing;
	ret = node_judge(node, node->drv->snap_open(node, name, v, err), "snapshot open", err);
	v->opened = ret == 0;
	v->writable = false;
	if (ret != 0) {
		node_close(v, NULL);
		return ret;
	}
	*view = v;
	return 0;
}

int node_snap_diff(struct node *node, const char *a, const char *b, img_diff_fn fn, void *ctx, struct img_error *err)
{
	if (!node->drv->snap_diff)
		return node_unsupported(node, no_snapshots, err);
	return node_judge(node, node->drv->snap_diff(node, a, b, fn, ctx, err), "snapshot diff", err);
}

/* ---- dirty bitmaps ----------------------------------------------------------------------------------------------- */

static const char no_bitmaps[] = "dirty bitmaps";

int node_bitmap_list(struct node *node, struct img_bitmap *out, size_t cap, size_t *nr, struct img_error *err)
{
	*nr = 0;
	if (!node->drv->bitmap_list)
		return 0;
	return node_judge(node, node->drv->bitmap_list(node, out, cap, nr, err), "bitmap list", err);
}

int node_bitmap_add(struct node *node, const char *name, uint64_t granularity_bytes, unsigned flags,
		    struct img_error *err)
{
	int ret;

	if (!node->drv->bitmap_add)
		return node_unsupported(node, no_bitmaps, err);
	ret = node_check_change(node, "add a bitmap", err);
	if (ret != 0)
		return ret;
	return node_judge(node, node->drv->bitmap_add(node, name, granularity_bytes, flags, err), "bitmap add", err);
}

int node_bitmap_remove(struct node *node, const char *name, struct img_error *err)
{
	int ret;

	if (!node->drv->bitmap_remove)
		return node_unsupported(node, no_bitmaps, err);
	ret = node_check_change(node, "remove a bitmap", err);
	return ret != 0 ? ret : node_judge(node, node->drv->bitmap_remove(node, name, err), "bitmap remove", err);
}

int node_bitmap_enable(struct node *node, const char *name, bool enable, struct img_error *err)
{
	int ret;

	if (!node->drv->bitmap_enable)
		return node_unsupported(node, no_bitmaps, err);
	ret = node_check_change(node, "change a bitmap", err);
	return ret != 0 ? ret :
			  node_judge(node, node->drv->bitmap_enable(node, name, enable, err), "bitmap enable", err);
}

int node_bitmap_clear(struct node *node, const char *name, struct img_error *err)
{
	int ret;

	if (!node->drv->bitmap_clear)
		return node_unsupported(node, no_bitmaps, err);
	ret = node_check_change(node, "clear a bitmap", err);
	return ret != 0 ? ret : node_judge(node, node->drv->bitmap_clear(node, name, err), "bitmap clear", err);
}

int node_bitmap_merge(struct node *node, const char *name, const struct bitmap_source *src, struct img_error *err)
{
	int ret;

	if (!node->drv->bitmap_merge)
		return node_unsupported(node, no_bitmaps, err);
	ret = node_check_change(node, "merge bitmaps", err);
	return ret != 0 ? ret : node_judge(node, node->drv->bitmap_merge(node, name, src, err), "bitmap merge", err);
}

int node_bitmap_ranges(struct node *node, const char *name, uint64_t off, struct img_range *out, size_t cap, size_t *nr,
		       struct img_error *err)
{
	*nr = 0;
	if (!node->drv->bitmap_ranges)
		return node_unsupported(node, no_bitmaps, err);
	return node_judge(node, node->drv->bitmap_ranges(node, name, off, out, cap, nr, err), "bitmap read", err);
}

/* ---- questions --------------------------------------------------------------------------------------------------- */

int node_info(struct node *node, struct img_info *out, struct img_error *err)
{
	return node->drv->info ? node_judge(node, node->drv->info(node, out, err), "info", err) : 0;
}

int node_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err)
{
	if (!node->drv->info_details)
		return 0;
	return node_judge(node, node->drv->info_details(node, fn, ctx, err), "info", err);
}

int node_amend(struct node *node, const char *options, struct img_error *err)
{
	int ret = node_check_change(node, "amend", err);

	if (ret != 0)
		return ret;
	if (!node->drv->amend)
		return node_unsupported(node, "options that can be changed", err);
	return node_judge(node, node->drv->amend(node, options, err), "amend", err);
}

int node_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err)
{
	int ret;

	if (!node->drv->check)
		return node_unsupported(node, "structures to check", err);
	if (flags & IMG_CHECK_REPAIR) {
		ret = node_check_change(node, "repair", err);
		if (ret != 0)
			return ret;
	}
	return node_judge(node, node->drv->check(node, flags, fn, ctx, progress, out, err), "check", err);
}

int node_inspect(const struct img_driver *drv, struct node *file, struct inspector *in, struct img_error *err)
{
	return drv->inspect ? node_judge(file, drv->inspect(file, in, err), "inspect", err) : 0;
}

int node_probe(const struct img_driver *drv, const struct probe_data *data)
{
	int bid = drv->probe ? drv->probe(data) : 0;

	return bid < 0 ? 0 : bid > 100 ? 100 : bid;
}

int node_measure(const struct img_driver *drv, const struct img_measure_args *args, struct img_measure *out,
		 struct img_error *err)
{
	int ret;

	memset(out, 0, sizeof(*out));
	if (!drv->measure)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, drv->name,
				 "the size of images of format %s cannot be foretold", drv->name);
	ret = drv->measure(args, out, err);
	if (ret != 0)
		error_set(err, ret, 0, NO_OFFSET, drv->name, "measure failed: %s", img_strerror(ret));
	return ret;
}
