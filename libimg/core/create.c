/* SPDX-License-Identifier: MIT */
/*
 * The entries to images that reach the host by themselves: open by descriptor, create, probe. A new image is made
 * complete and durable under a temporary name before it gets its own.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker.h"
#include "chain.h"
#include "checked.h"
#include "data_file.h"
#include "device_target.h"
#include "error.h"
#include "image_int.h"
#include "probe.h"

#define LAYER	     "image"
#define SECTOR_BYTES 512u

/* ---- opening a descriptor, probing ------------------------------------------------------------------------------- */

static int node_of_fd(int fd, const char *path, const struct host_open *host, struct node **out, struct img_error *err)
{
	int ret;

	*out = node_new(registry_host_file(), path, err);
	if (!*out) {
		close(fd);
		return IMG_E_NOMEM;
	}
	ret = node_open_fd(*out, fd, host, err);
	if (ret != 0) {
		node_close(*out, NULL);
		*out = NULL;
	}
	return ret;
}

int img_open_fd(int fd, const struct img_open_options *opts, struct img **out, struct img_error *err)
{
	struct img_open_options o;
	struct host_open host;
	struct node *file;
	int ret;

	error_clear(err);
	if (out)
		*out = NULL;
	if (fd < 0 || !out) {
		if (fd >= 0)
			close(fd);
		return image_invalid(err, "no descriptor, or no place for the image");
	}
	ret = image_copy_options(&o, sizeof(o), opts, err);
	if (ret != 0) {
		close(fd);
		return ret;
	}
	/* There is no folder that a reference could be relative to. */
	o.refs = IMG_REFS_NONE;
	host = chain_peek(&o);
	ret = node_of_fd(fd, "", &host, &file, err);
	return ret != 0 ? ret : image_open_on(file, "", &o, &image_env_host, NULL, out, err);
}

int img_probe(const char *path, struct img_probe_result *out, struct img_error *err)
{
	struct host_open host = { .use = SHARE_PEEK_USE, .no_lock = true };
	struct probe_verdict verdict;
	struct node *file;
	char *meant;
	int fd, ret;

	error_clear(err);
	if (!path || !out)
		return image_invalid(err, "no path, or no place for the answer");
	memset(out, 0, sizeof(*out));
	meant = broker_meant(path);
	if (!meant)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = broker_open_named(meant, false, &fd, err);
	if (ret == 0)
		ret = node_of_fd(fd, meant, &host, &file, err);
	free(meant);
	if (ret != 0)
		return ret;
	ret = probe_node(file, &verdict, err);
	node_close(file, NULL);
	if (ret == 0)
		*out = verdict.seen;
	return ret;
}

/* ---- creating ---------------------------------------------------------------------------------------------------- */

int image_check_target(const char *path, unsigned flags, const struct image_env *env, struct img_error *err)
{
	if (!env->check_target)
		return 0;
	return env->check_target(env->ctx, path, (flags & IMG_CREATE_OVERWRITE) != 0, err);
}

int image_check_creatable(const struct img_driver *drv, struct img_error *err)
{
	return drv->create ? 0 :
			     error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				       "format %s is only read: no image of it can be made", drv->name);
}

static int check_create(const struct img_create_options *o, const struct img_driver **drv, struct img_error *err)
{
	int ret = image_check_flags(o->flags, IMG_CREATE_OVERWRITE | IMG_CREATE_VOLATILE | IMG_CREATE_DEVICE, err);

	if (ret != 0)
		return ret;
	*drv = registry_find(o->format ? o->format : "limg");
	if (!*drv)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "this build does not have the format '%s'", o->format ? o->format : "limg");
	ret = image_check_creatable(*drv, err);
	if (ret != 0)
		return ret;
	if (o->size_bytes % SECTOR_BYTES != 0)
		return image_invalid(err, "sizes are multiples of 512 bytes");
	if (o->size_bytes > INT64_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "an image has at most 2^63 - 512 bytes");
	if (!o->backing && (o->backing_snapshot || o->backing_format))
		return image_invalid(err, "the snapshot or format of a backing file is given without the file");
	if (o->backing && !((*drv)->caps & IMG_CAP_BACKING))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "images of format %s cannot have a backing file", (*drv)->name);
	if ((unsigned)o->refs > IMG_REFS_ANY)
		return image_invalid(err, "unknown policy for references");
	return 0;
}

/* Fills the temporary file; it is complete, durable unless volatile, and closed when this returns 0. Ends file in any
 * case. */
static int fill_file(const struct img_driver *drv, struct node *file, const struct driver_create *args, bool durable,
		     struct img_error *err)
{
	int ret, closed;

	file->is_volatile = !durable;
	ret = device_target_create(drv, file, args, err);
	if (ret == 0)
		ret = node_flush(file, 0, err);
	closed = node_close(file, ret == 0 ? err : NULL);
	return ret != 0 ? ret : closed;
}

/* In an environment that makes image files or, of a device, images. */
static int create_in(const char *path, const struct img_create_options *o, const struct img_driver *drv,
		     const struct image_env *env, struct img_error *err)
{
	struct data_creation data = { .path = path, .env = env, .refs = o->refs };
	struct driver_create args = { .size_bytes = o->size_bytes, .options = o->options, .path = path };
	struct backing_ref ref;
	struct node *file;
	char *temp;
	int ret;

	if (!(o->flags & IMG_CREATE_DEVICE)) {
		args.create_data = data_file_create;
		args.create_data_ctx = &data;
	}
	if (o->backing) {
		ret = chain_make_ref(path, o->backing, o->backing_snapshot, o->backing_format,
				     o->refs == IMG_REFS_DEFAULT ? IMG_REFS_DIR : o->refs, o->budget, env, &ref, err);
		if (ret != 0)
			return ret;
		args.backing = &ref;
		if (o->size_bytes == 0 && !o->size_given)
			args.size_bytes = round_up(ref.pin.size_bytes, SECTOR_BYTES);
	}
	ret = env->create_file(env->ctx, path, &file, &temp, err);
	if (ret != 0)
		return ret;
	ret = fill_file(drv, file, &args, !(o->flags & IMG_CREATE_VOLATILE), err);
	if (ret == 0)
		ret = data_file_publish(&data, err);
	if (ret == 0)
		ret = env->publish(env->ctx, temp, path, o->flags, err);
	if (ret < 0) {
		error_prefix(err, "cannot create %s", path);
		env->discard_temp(env->ctx, temp);
	}
	data_file_end(&data, ret >= 0);
	free(temp);
	return ret == PUBLISHED_NOT_DURABLE ? IMG_E_IO : ret;
}

int image_create_env(const char *path, const struct img_create_options *opts, const struct image_env *env,
		     struct img_error *err)
{
	struct device_target device;
	struct img_create_options o;
	const struct img_driver *drv = NULL;
	int ret = image_copy_options(&o, sizeof(o), opts, err);

	if (ret == 0)
		ret = check_create(&o, &drv, err);
	if (ret == 0 && (o.flags & IMG_CREATE_DEVICE)) {
		ret = device_target_begin(&device, drv, env, err);
		if (ret == 0) {
			ret = create_in(path, &o, drv, &device.env, err);
			device_target_end(&device);
		}
		return ret;
	}
	if (ret == 0)
		ret = image_check_target(path, o.flags, env, err);
	return ret == 0 ? create_in(path, &o, drv, env, err) : ret;
}

int img_create(const char *path, const struct img_create_options *opts, struct img_error *err)
{
	struct img_create_options o;
	int ret;

	error_clear(err);
	if (!path || path[0] == '\0')
		return image_invalid(err, "no path");
	ret = image_copy_options(&o, sizeof(o), opts, err);
	return ret == 0 ? image_create_env(path, &o, image_env_of(o.host), err) : ret;
}
