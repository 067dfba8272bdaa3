/* SPDX-License-Identifier: MIT */
/*
 * img_convert(): a new image with the content of another. The file is made under a temporary name, opened so that
 * nothing is durable before it is closed, filled, closed, which makes it durable, and only then given its name. On
 * every way out but the last the temporary file is removed.
 *
 * What is written from front to back (sequence.h) is not opened; there an image may also go where nothing can be made
 * durable and nothing renamed: img_convert_fd().
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "copy.h"
#include "data_file.h"
#include "device_target.h"
#include "error.h"
#include "image_int.h"
#include "sequence.h"

#define DEFAULT_FORMAT "limg"
#define SECTOR_BYTES   512

struct conversion {
	struct img *src;
	const char *path;
	struct img_create_options create;
	struct img_copy_options copy;
	const struct image_env *env;
	const struct img_driver *drv;
	uint64_t size_bytes;
	bool in_order;	     /* the image can only be written from front to back */
	bool to_pipe;	     /* so can what it is written to */
	bool with_snapshots; /* asked for, and the source has some */
	bool with_bitmaps;   /* the same */
	bool has_ref;
	struct backing_ref ref; /* of the new image, with has_ref */
	char *temp_path;
	char *options; /* of the new image, where they are more than what create says */
	struct data_creation data;
	struct device_target device; /* the environment, with IMG_CREATE_DEVICE */
};

static int choose_size(struct conversion *c, struct img_error *err)
{
	uint64_t src_bytes = img_size(c->src);

	if (src_bytes > INT64_MAX - SECTOR_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, "core", "%s: too large", img_path(c->src));
	c->size_bytes = round_up(src_bytes, SECTOR_BYTES);
	if (c->create.size_bytes == 0 && !c->create.size_given)
		return 0;
	if (c->create.size_bytes % SECTOR_BYTES != 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "core", "%s: the size is no multiple of 512",
				 c->path);
	if (c->create.size_bytes < src_bytes)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "core",
				 "%s: 0x%llx bytes cannot hold the 0x%llx of the source", c->path,
				 (unsigned long long)c->create.size_bytes, (unsigned long long)src_bytes);
	c->size_bytes = c->create.size_bytes;
	return 0;
}

static int choose_snapshots(struct conversion *c, struct img_error *err)
{
	struct img_snapshot first;
	size_t nr = 0;
	int r;

	if (!(c->copy.flags & IMG_COPY_SNAPSHOTS) || c->src->snapshot)
		return 0;
	r = img_snapshot_list(c->src, &first, 1, &nr, err);
	if (r < 0)
		return r;
	c->with_snapshots = nr > 0;
	if (c->with_snapshots && !(c->drv->caps & IMG_CAP_SNAPSHOTS))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core", "%s: format %s has no snapshots",
				 c->path, c->drv->name);
	return 0;
}

static int choose_bitmaps(struct conversion *c, struct img_error *err)
{
	size_t nr = 0;
	int r;

	if (!(c->copy.flags & IMG_COPY_BITMAPS) || c->src->snapshot)
		return 0;
	r = img_bitmap_list(c->src, NULL, 0, &nr, err);
	if (r < 0)
		return r;
	c->with_bitmaps = nr > 0;
	if (c->with_bitmaps && !(c->drv->caps & IMG_CAP_BITMAPS))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core", "%s: format %s has no dirty bitmaps",
				 c->path, c->drv->name);
	return 0;
}

static void take_sector_size(void *ctx, const struct img_detail *detail)
{
	if (detail->kind == IMG_DETAIL_NUMBER && strcmp(detail->key, "logical_sector_size") == 0)
		*(uint64_t *)ctx = detail->number;
}

/* A disk whose sectors are larger means something else with smaller ones: a target that can say so does, unless told
 * otherwise. */
static int choose_sector_size(struct conversion *c, struct img_error *err)
{
	const char *given = c->create.options ? c->create.options : "";
	uint64_t sector_bytes = SECTOR_BYTES;
	size_t bytes = strlen(given) + sizeof(",logical_sector_size=") + 20;
	int r;

	if (!c->drv->create_help || !strstr(c->drv->create_help, "logical_sector_size=") ||
	    strstr(given, "logical_sector_size="))
		return 0;
	r = img_info_details(c->src, take_sector_size, &sector_bytes, err);
	if (r < 0 || sector_bytes == SECTOR_BYTES)
		return r;
	c->options = malloc(bytes);
	if (!c->options)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for options");
	(void)snprintf(c->options, bytes, "%s%slogical_sector_size=%llu", given, given[0] ? "," : "",
		       (unsigned long long)sector_bytes);
	c->create.options = c->options;
	return 0;
}

/* 0, or why the image cannot be written from front to back, where it has to be. */
static int choose_order(struct conversion *c, struct img_error *err)
{
	/* No is no failure, but where it has to be. */
	int r = c->drv->sequence ? node_sequence_ask(c->drv, c->create.options, c->to_pipe ? err : NULL) : 0;

	c->in_order = r > 0 || c->to_pipe;
	if (!c->drv->sequence && c->to_pipe)
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core",
			"%s: images of format %s are not written from front to back: raw is, and vmdk with subformat=streamOptimized",
			c->path, c->drv->name);
	if (c->in_order && c->create.backing)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core",
				 "%s: what is written from front to back cannot have a backing file", c->path);
	return r < 0 && c->to_pipe ? r : 0; /* else the driver's create says what is wrong with the options */
}

static int choose_device(struct conversion *c, struct img_error *err)
{
	int r;

	if (c->to_pipe)
		return image_invalid(err, "a pipe is no device");
	r = device_target_begin(&c->device, c->drv, c->env, err);
	if (r == 0)
		c->env = &c->device.env;
	return r;
}

/* What is replaced is not what is read meanwhile. That it is in use would be said anyway, but not by whom. */
static int check_not_source(const struct conversion *c, struct img_error *err)
{
	struct host_stat target, read;
	int r = 0;

	if (c->to_pipe || !c->env->identify || !c->env->identify(c->env->ctx, c->path, &target))
		return 0;
	for (struct img *img = c->src; img && r == 0; img = img_backing(img)) {
		if (!img->top->file)
			continue;
		r = node_stat(img->top->file, &read, err);
		if (r == 0 && read.dev == target.dev && read.ino == target.ino)
			r = error_set(err, IMG_E_BUSY, 0, NO_OFFSET, "core",
				      "%s: is %swhat is converted, and cannot be replaced: convert to another name",
				      c->path, img == c->src ? "" : "a parent of ");
	}
	return r;
}

/* Everything that can be refused before there is a file. */
static int prepare(struct conversion *c, struct img_error *err)
{
	const char *format = c->create.format ? c->create.format : DEFAULT_FORMAT;
	int r;

	c->drv = registry_find(format);
	if (!c->drv)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core",
				 "this build does not have the format '%s'", format);
	r = image_check_creatable(c->drv, err);
	if (r < 0)
		return r;
	if (!c->create.backing && (c->create.backing_snapshot || c->create.backing_format))
		return image_invalid(err, "the snapshot or format of a backing file is given without the file");
	if (c->create.backing && !(c->drv->caps & IMG_CAP_BACKING))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, "core", "%s: format %s has no backing images",
				 c->path, c->drv->name);
	r = image_check_flags(c->create.flags, IMG_CREATE_OVERWRITE | IMG_CREATE_DEVICE, err);
	if (r == 0 && (c->create.flags & IMG_CREATE_DEVICE))
		r = choose_device(c, err);
	if (r == 0)
		r = choose_sector_size(c, err);
	if (r == 0)
		r = choose_order(c, err);
	if (r == 0 && c->create.flags & (IMG_CREATE_OVERWRITE | IMG_CREATE_DEVICE))
		r = check_not_source(c, err);
	if (r == 0 && !c->to_pipe)
		r = image_check_target(c->path, c->create.flags, c->env, err);
	if (r == 0)
		r = choose_size(c, err);
	if (r == 0)
		r = choose_snapshots(c, err);
	if (r == 0)
		r = choose_bitmaps(c, err);
	if (r == 0 && c->create.backing) {
		r = chain_make_ref(c->path, c->create.backing, c->create.backing_snapshot, c->create.backing_format,
				   c->create.refs ? c->create.refs : IMG_REFS_DIR, c->create.budget, c->env, &c->ref,
				   err);
		c->has_ref = r == 0;
	}
	return r;
}

/* Creates the image in file and opens it. Takes file over. */
static int open_target(struct conversion *c, struct node *file, struct img **out, struct img_error *err)
{
	struct driver_create create = {
		.size_bytes = c->size_bytes,
		.options = c->create.options,
		.backing = c->has_ref ? &c->ref : NULL,
		.create_data = c->create.flags & IMG_CREATE_DEVICE ? NULL : data_file_create,
		.create_data_ctx = &c->data,
		.path = c->path,
	};
	struct img_open_options open = {
		.struct_size = sizeof(open),
		.format = c->drv->name,
		/* Snapshots are durable when they are made: not what a bulk load does. */
		.flags = IMG_OPEN_WRITE | (c->with_snapshots ? 0 : IMG_OPEN_BULK),
		.refs = c->create.refs,
		.budget = c->create.budget,
	};
	int r;

	c->data = (struct data_creation){ .path = c->path, .refs = c->create.refs, .env = c->env };
	r = device_target_create(c->drv, file, &create, err);
	if (r < 0) {
		node_close(file, NULL);
		return r;
	}
	return image_open_on(file, c->path, &open, c->env, &c->data, out, err);
}

static int tell_left_behind(const struct conversion *c, struct img *dst, struct img_error *err)
{
	const struct leaving leaving = {
		.src = c->src,
		.drv = c->drv,
		.dst = dst,
		.size_bytes = c->size_bytes,
		.opts = &c->copy,
		.with_snapshots = c->with_snapshots,
		.with_bitmaps = c->with_bitmaps,
		.has_backing = c->has_ref,
		.compresses = c->in_order ? c->drv->sequence->pack != NULL :
					    c->copy.flags & IMG_COPY_COMPRESS && c->drv->caps & IMG_CAP_COMPRESS,
	};

	return left_behind(&leaving, err);
}

static int fill_target(struct conversion *c, struct img *dst, struct img_error *err)
{
	struct img *base = img_backing(dst);
	int r = c->create.flags & IMG_CREATE_DEVICE ? 0 : tell_left_behind(c, dst, err);

	if (r < 0)
		return r;
	if (!base)
		c->copy.flags |= IMG_COPY_TARGET_ZERO; /* it is new */
	if (c->with_snapshots)
		return copy_snapshots(c->src, base, dst, c->size_bytes, &c->copy, err);
	return copy_content(c->src, base, dst, &c->copy, err);
}

/* Takes file over. */
static int write_in_order(struct conversion *c, struct node *file, struct img_error *err)
{
	struct driver_create create = {
		.size_bytes = c->size_bytes,
		.options = c->create.options,
		.path = c->to_pipe ? NULL : c->path,
	};
	int r = tell_left_behind(c, NULL, err), closed;

	if (r == 0)
		r = sequence_write(c->drv, file, &create, c->src, &c->copy, err);
	if (r == 0 && !c->to_pipe)
		r = node_flush(file, 0, err);
	closed = node_close(file, r < 0 ? NULL : err);
	return r < 0 ? r : closed;
}

static int make_image(struct conversion *c, struct node *file, struct img_error *err)
{
	struct img *dst = NULL;
	int r = open_target(c, file, &dst, err), closed;

	if (r < 0)
		return r;
	r = fill_target(c, dst, err);
	if (r == 0 && c->with_bitmaps)
		r = copy_bitmaps(c->src, dst, err);
	closed = img_close(dst, r < 0 ? NULL : err);
	return r < 0 ? r : closed;
}

static int make_file(struct conversion *c, struct img_error *err)
{
	struct node *file;
	int r = 0;

	/* On a device nothing is lost in vain: what can stand there (device_target.h) has nothing but the disk. */
	if (c->create.flags & IMG_CREATE_DEVICE)
		r = tell_left_behind(c, NULL, err);
	if (r == 0)
		r = c->env->create_file(c->env->ctx, c->path, &file, &c->temp_path, err);
	if (r != 0)
		return r;
	r = c->in_order ? write_in_order(c, file, err) : make_image(c, file, err);
	if (r == 0)
		r = data_file_publish(&c->data, err);
	if (r == 0)
		r = c->env->publish(c->env->ctx, c->temp_path, c->path, c->create.flags, err);
	if (r < 0)
		c->env->discard_temp(c->env->ctx, c->temp_path);
	data_file_end(&c->data, r >= 0);
	free(c->temp_path);
	return r == PUBLISHED_NOT_DURABLE ? IMG_E_IO : r;
}

/* file: what is written to instead of a new one, taken over; NULL: none. */
static int convert(struct img *src, const char *path, struct node *file, const struct img_create_options *create,
		   const struct img_copy_options *opts, const struct image_env *env, struct img_error *err)
{
	struct conversion *c = calloc(1, sizeof(*c));
	int r;

	if (!c) {
		node_close(file, NULL);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a conversion");
	}
	c->src = src;
	c->path = path;
	c->env = env;
	c->to_pipe = file != NULL;
	r = image_copy_options(&c->copy, sizeof(c->copy), opts, err);
	if (r == 0)
		r = image_copy_options(&c->create, sizeof(c->create), create, err);
	if (r == 0)
		r = image_check_flags(c->copy.flags,
				      IMG_COPY_COMPRESS | IMG_COPY_TARGET_ZERO | IMG_COPY_NO_DETECT |
					      IMG_COPY_SNAPSHOTS | IMG_COPY_BITMAPS | IMG_COPY_STRICT |
					      IMG_COPY_STRICT_ALL,
				      err);
	if (r == 0)
		r = prepare(c, err);
	if (r == 0 && file) {
		r = write_in_order(c, file, err);
		file = NULL;
	} else if (r == 0) {
		r = make_file(c, err);
	}
	node_close(file, NULL);
	device_target_end(&c->device);
	free(c->options);
	free(c);
	return r;
}

int image_convert_env(struct img *src, const char *path, const struct img_create_options *create,
		      const struct img_copy_options *opts, const struct image_env *env, struct img_error *err)
{
	error_clear(err);
	if (!src || !path || path[0] == '\0')
		return image_invalid(err, "no image to convert, or no path");
	return convert(src, path, NULL, create, opts, env, err);
}

int image_convert_into(struct img *src, struct node *file, const struct img_create_options *create,
		       const struct img_copy_options *opts, struct img_error *err)
{
	return convert(src, file->path, file, create, opts, &image_env_host, err);
}

int img_convert_fd(struct img *src, int fd, const char *name, const struct img_create_options *create,
		   const struct img_copy_options *opts, struct img_error *err)
{
	struct host_open host = { .writable = true };
	struct node *file = NULL;
	int ret = 0;

	error_clear(err);
	if (!src || fd < 0 || !name)
		ret = image_invalid(err, "no image to convert, no descriptor, or no name for it");
	if (ret == 0)
		file = node_new(registry_host_pipe(), name, err);
	if (!file) {
		if (fd >= 0)
			close(fd);
		return ret < 0 ? ret : IMG_E_NOMEM;
	}
	ret = node_open_fd(file, fd, &host, err);
	if (ret == 0)
		return image_convert_into(src, file, create, opts, err);
	node_close(file, NULL);
	return ret;
}

int img_convert(struct img *src, const char *path, const struct img_create_options *create,
		const struct img_copy_options *opts, struct img_error *err)
{
	struct img_create_options o;
	int ret;

	error_clear(err);
	ret = image_copy_options(&o, sizeof(o), create, err);
	return ret == 0 ? image_convert_env(src, path, &o, opts, image_env_of(o.host), err) : ret;
}
