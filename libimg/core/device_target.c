/* SPDX-License-Identifier: MIT */
/*
 * See device_target.h. The filter here keeps the anchors in memory and passes on the rest. While the driver makes its
 * image it is an empty file that grows, which a device is not: what lies below its end, and was not written, is made
 * zeros. From then on it is a device.
 *
 * Until the driver writes something beside the anchors the device is as it was: what it refuses before, options or a
 * size, costs nothing. What was there is erased right before that first write.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "device_target.h"
#include "env_host.h"
#include "error.h"

#define LAYER	   "device"
#define TAIL_BYTES (64u << 10) /* where formats that are told by their end have it, and partition tables their copy */

struct anchor {
	uint64_t off;
	uint32_t bytes; /* 0: there are no more */
	uint8_t *data;
	uint64_t written; /* number of the last write to it, 0: none */
};

struct anchors {
	pthread_mutex_t lock; /* of data and written */
	struct anchor at[DRIVER_ANCHORS];
	uint64_t nr_writes;
};

struct filter_state {
	struct anchors *anchors;
	bool is_fresh;	   /* an empty file that grows; one thread */
	bool is_untouched; /* with is_fresh: the device is as it was, the file zeros beside the anchors */
	uint64_t end;	   /* of that file */
};

static struct filter_state *state_of(const struct node *node)
{
	return node->state;
}

/* ---- anchors ----------------------------------------------------------------------------------------------------- */

static void anchors_free(struct anchors *a)
{
	for (size_t i = 0; i < DRIVER_ANCHORS; i++)
		free(a->at[i].data);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

static struct anchors *anchors_new(const struct img_driver *drv)
{
	struct anchors *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	pthread_mutex_init(&a->lock, NULL);
	for (size_t i = 0; i < DRIVER_ANCHORS && drv->anchors[i].bytes > 0; i++) {
		a->at[i] = (struct anchor){ .off = drv->anchors[i].off, .bytes = drv->anchors[i].bytes };
		a->at[i].data = calloc(1, a->at[i].bytes);
		if (!a->at[i].data) {
			anchors_free(a);
			return NULL;
		}
	}
	return a;
}

/* How many of the bytes are the anchor's that is given, or nobody's (NULL). */
static uint64_t next_piece(struct anchors *a, uint64_t bytes, uint64_t off, struct anchor **out)
{
	*out = NULL;
	for (size_t i = 0; i < DRIVER_ANCHORS && a->at[i].bytes > 0; i++) {
		struct anchor *anchor = &a->at[i];

		if (off >= anchor->off && off - anchor->off < anchor->bytes) {
			*out = anchor;
			return min_u64(bytes, anchor->off + anchor->bytes - off);
		}
		if (anchor->off > off)
			bytes = min_u64(bytes, anchor->off - off);
	}
	return bytes;
}

/* data NULL: zeros. */
static void put_anchor(struct anchors *a, struct anchor *anchor, const uint8_t *data, uint64_t bytes, uint64_t off)
{
	uint8_t *to = anchor->data + (off - anchor->off);

	pthread_mutex_lock(&a->lock);
	if (data)
		memcpy(to, data, (size_t)bytes);
	else
		memset(to, 0, (size_t)bytes);
	anchor->written = ++a->nr_writes;
	pthread_mutex_unlock(&a->lock);
}

/* ---- the filter -------------------------------------------------------------------------------------------------- */

static int filter_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	(void)err;
	node->writable = args->writable;
	return 0;
}

static int filter_close(struct node *node, struct img_error *err)
{
	(void)node;
	(void)err;
	return 0;
}

static uint64_t filter_size(const struct node *node)
{
	return state_of(node)->is_fresh ? state_of(node)->end : node_size(node->file);
}

static void filter_limits(const struct node *node, struct driver_limits *out)
{
	node_limits(node->file, out);
	if (state_of(node)->is_fresh)
		out->max_size_bytes = node_size(node->file);
}

static int wipe_anchors(const struct img_driver *drv, struct node *device, struct img_error *err)
{
	int ret = 0;

	for (size_t i = 0; i < DRIVER_ANCHORS && ret == 0; i++) {
		if (range_inside(drv->anchors[i].off, drv->anchors[i].bytes, node_size(device)))
			ret = node_zero(device, drv->anchors[i].bytes, drv->anchors[i].off, 0, err);
	}
	return ret;
}

/* Nothing on the device says any more that there is an image, of whatever format. */
static int wipe(struct node *device, struct img_error *err)
{
	uint64_t size = node_size(device), tail = min_u64(TAIL_BYTES, size);
	const struct img_driver *drv;
	int ret = 0;

	for (size_t i = 0; ret == 0 && (drv = registry_at(i)); i++)
		ret = wipe_anchors(drv, device, err);
	if (ret == 0)
		ret = node_zero(device, tail, size - tail, 0, err);
	return ret == 0 ? node_flush(device, 0, err) : ret;
}

/* From here on the device is what the file is. */
static int touch(struct node *node, struct img_error *err)
{
	struct filter_state *s = state_of(node);
	int ret;

	if (!s->is_untouched)
		return 0;
	ret = wipe(node->file, err);
	s->is_untouched = false;
	for (uint64_t off = 0, n; ret == 0 && off < s->end; off += n) {
		struct anchor *anchor;

		n = next_piece(s->anchors, s->end - off, off, &anchor);
		if (!anchor)
			ret = node_zero(node->file, n, off, 0, err);
	}
	return ret;
}

static int write_device(struct node *node, const uint8_t *data, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	int ret;

	if (!data)
		return state_of(node)->is_untouched ? 0 : node_zero(node->file, bytes, off, flags, err);
	ret = touch(node, err);
	return ret == 0 ? node_pwrite(node->file, data, bytes, off, flags, err) : ret;
}

static int write_pieces(struct node *node, const uint8_t *data, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	struct anchors *a = state_of(node)->anchors;
	int ret = 0;

	while (bytes > 0 && ret == 0) {
		struct anchor *anchor;
		uint64_t n = next_piece(a, bytes, off, &anchor);

		if (anchor)
			put_anchor(a, anchor, data, n, off);
		else
			ret = write_device(node, data, n, off, flags, err);
		data = data ? data + n : NULL;
		off += n;
		bytes -= n;
	}
	return ret;
}

/* A fresh file reaches to `end` from now on. */
static int grow(struct node *node, uint64_t end, struct img_error *err)
{
	struct filter_state *s = state_of(node);
	int ret = 0;

	if (!s->is_fresh || end <= s->end)
		return 0;
	if (end > node_size(node->file))
		return error_set(err, IMG_E_NOSPC, ENOSPC, end, LAYER,
				 "%s: the device is too small: the image takes 0x%llx bytes to begin with", node->path,
				 (unsigned long long)end);
	ret = write_pieces(node, NULL, end - s->end, s->end, 0, err);
	if (ret == 0)
		s->end = end;
	return ret;
}

static int filter_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	struct anchors *a = state_of(node)->anchors;
	uint8_t *to = buf;
	int ret = 0;

	while (bytes > 0 && ret == 0) {
		struct anchor *anchor;
		uint64_t n = next_piece(a, bytes, off, &anchor);

		if (anchor) {
			pthread_mutex_lock(&a->lock);
			memcpy(to, anchor->data + (off - anchor->off), (size_t)n);
			pthread_mutex_unlock(&a->lock);
		} else if (state_of(node)->is_untouched) {
			memset(to, 0, (size_t)n);
		} else {
			ret = node_pread(node->file, to, n, off, flags, err);
		}
		to += n;
		off += n;
		bytes -= n;
	}
	return ret;
}

static int filter_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			 struct img_error *err)
{
	int ret = grow(node, off + bytes, err);

	return ret ? ret : write_pieces(node, buf, bytes, off, flags, err);
}

static int filter_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = grow(node, off + bytes, err);

	return ret ? ret : write_pieces(node, NULL, bytes, off, flags, err);
}

static int filter_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct anchors *a = state_of(node)->anchors;
	int ret = 0;

	if (state_of(node)->is_fresh)
		return write_pieces(node, NULL, bytes, off, 0, err);
	while (bytes > 0 && ret == 0) {
		struct anchor *anchor;
		uint64_t n = next_piece(a, bytes, off, &anchor);

		if (!anchor)
			ret = node_discard(node->file, n, off, flags, err);
		off += n;
		bytes -= n;
	}
	return ret;
}

static int filter_flush(struct node *node, unsigned flags, struct img_error *err)
{
	return node_flush(node->file, flags, err);
}

static int filter_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
			 size_t *nr, struct img_error *err)
{
	return node_status(node->file, bytes, off, out, cap, nr, err);
}

static int filter_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	struct filter_state *s = state_of(node);

	if (!s->is_fresh)
		return node_resize(node->file, size_bytes, err);
	s->end = min_u64(s->end, size_bytes);
	return grow(node, size_bytes, err);
}

static int filter_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	return node_stat(node->file, out, err);
}

static int filter_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return state_of(node)->is_fresh ? grow(node, off + bytes, err) : node_allocate(node->file, bytes, off, err);
}

static int filter_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	return node_lock_byte(node->file, byte, mode, err);
}

static int filter_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	return node_share(node->file, use, forbid, err);
}

static const struct img_driver filter_driver = {
	.name = "device-target",
	.kind = DRIVER_FILTER,
	.state_bytes = sizeof(struct filter_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.open = filter_open,
	.close = filter_close,
	.size = filter_size,
	.limits = filter_limits,
	.pread = filter_pread,
	.pwrite = filter_pwrite,
	.zero = filter_zero,
	.discard = filter_discard,
	.flush = filter_flush,
	.status = filter_status,
	.resize = filter_resize,
	.stat = filter_stat,
	.allocate = filter_allocate,
	.lock_byte = filter_lock_byte,
	.share = filter_share,
};

static int put_filter(struct node *device, struct anchors *anchors, struct node **out, struct img_error *err)
{
	struct driver_open open = { .writable = true };
	struct node *node = node_new(&filter_driver, device->path, err);
	int ret;

	if (!node) {
		node_close(device, NULL);
		return IMG_E_NOMEM;
	}
	*state_of(node) = (struct filter_state){ .anchors = anchors, .is_fresh = true, .is_untouched = true };
	node->file = device;
	ret = node_open(node, &open, err);
	if (ret != 0)
		node_close(node, NULL);
	else
		*out = node;
	return ret;
}

int device_target_create(const struct img_driver *drv, struct node *file, const struct driver_create *args,
			 struct img_error *err)
{
	int ret = node_create(drv, file, args, err);

	if (file->drv != &filter_driver)
		return ret;
	if (ret == 0)
		ret = touch(file, err);
	state_of(file)->is_fresh = false;
	return ret;
}

/* ---- the environment --------------------------------------------------------------------------------------------- */

static int open_device(struct device_target *t, const char *path, struct node **out, struct img_error *err)
{
	struct host_open how = ENV_HOST_NEW_FILE;
	char *resolved;
	int ret = t->host->open_file(t->host->ctx, NULL, path, IMG_REFS_NONE, &how, out, &resolved, err);

	if (ret == 0)
		free(resolved);
	return ret;
}

static int check_room(const struct anchors *a, const struct node *device, struct img_error *err)
{
	for (size_t i = 0; i < DRIVER_ANCHORS; i++)
		if (!range_inside(a->at[i].off, a->at[i].bytes, node_size(device)))
			return error_set(err, IMG_E_NOSPC, ENOSPC, NO_OFFSET, LAYER, "%s: the device is too small",
					 device->path);
	return 0;
}

static int target_create_file(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	struct device_target *t = ctx;
	struct host_stat stat;
	struct node *device;
	int ret = open_device(t, path, &device, err);

	*out = NULL;
	*temp_path = NULL;
	if (ret != 0)
		return ret;
	ret = node_stat(device, &stat, err);
	if (ret == 0 && !stat.is_block_device)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s: no block device", path);
	if (ret == 0)
		ret = check_room(t->anchors, device, err);
	if (ret != 0) {
		node_close(device, NULL);
		return ret;
	}
	*temp_path = strdup(path);
	if (!*temp_path) {
		node_close(device, NULL);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	ret = put_filter(device, t->anchors, out, err);
	if (ret != 0) {
		free(*temp_path);
		*temp_path = NULL;
	}
	return ret;
}

/* The one that was written last, and not put yet. */
static struct anchor *last_written(struct anchors *a)
{
	struct anchor *last = NULL;

	for (size_t i = 0; i < DRIVER_ANCHORS; i++) {
		if (a->at[i].written > 0 && (!last || a->at[i].written > last->written))
			last = &a->at[i];
	}
	return last;
}

/* The last state first: a crash does not leave an older one of the image, in which something is missing. */
static int target_publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	struct device_target *t = ctx;
	struct node *device;
	struct anchor *anchor;
	int ret = open_device(t, path, &device, err), closed;

	(void)temp_path;
	(void)flags;
	if (ret != 0)
		return ret;
	while (ret == 0 && (anchor = last_written(t->anchors))) {
		ret = node_pwrite(device, anchor->data, anchor->bytes, anchor->off, 0, err);
		if (ret == 0)
			ret = node_flush(device, 0, err);
		anchor->written = 0;
	}
	closed = node_close(device, ret == 0 ? err : NULL);
	return ret != 0 ? ret : closed;
}

static void target_discard(void *ctx, const char *temp_path)
{
	(void)ctx;
	(void)temp_path;
}

static int target_open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			    const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	const struct image_env *host = ((struct device_target *)ctx)->host;

	return host->open_file(host->ctx, child_path, name, refs, args, out, resolved, err);
}

static bool target_identify(void *ctx, const char *path, struct host_stat *out)
{
	const struct image_env *host = ((struct device_target *)ctx)->host;

	return host->identify && host->identify(host->ctx, path, out);
}

int device_target_begin(struct device_target *t, const struct img_driver *drv, const struct image_env *host,
			struct img_error *err)
{
	*t = (struct device_target){ .host = host };
	if (drv == registry_find("raw"))
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"a raw image on a block device is the device itself: it need not be made, only written");
	if (drv->anchors[0].bytes == 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "images of format %s cannot stand on a block device: those of limg and qcow2 can",
				 drv->name);
	t->anchors = anchors_new(drv);
	if (!t->anchors)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	t->env = (struct image_env){
		.open_file = target_open_file,
		.create_file = target_create_file,
		.publish = target_publish,
		.discard_temp = target_discard,
		.identify = target_identify,
		.ctx = t,
	};
	return 0;
}

void device_target_end(struct device_target *t)
{
	if (t->anchors)
		anchors_free(t->anchors);
	t->anchors = NULL;
}
