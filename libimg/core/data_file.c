/* SPDX-License-Identifier: MIT */
/*
 * Data files: an image may keep the guest's data in a second file that it names. The name comes from the image like
 * that of a backing file, and goes the same way: through the broker, under the policy for references. It is opened for
 * writing if the image is, and must be a regular file other than the image.
 *
 * Locks: who writes allows other writers of the content no more than QEMU does (it forbids a change of the size, which
 * each writer uses), so that two images on one data file exclude each other.
 *
 * A new one is made under a temporary name, and gets its own before the image does. It replaces nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "broker.h"
#include "chain.h"
#include "data_file.h"
#include "error.h"

#define LAYER "data file"

/* ---- the file that is not there on purpose ------------------------------------------------------------------------- */

static uint64_t absent_size(const struct node *node)
{
	(void)node;
	return INT64_MAX;
}

static int absent_read(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	(void)buf;
	(void)bytes;
	(void)flags;
	return error_set(err, IMG_E_REFUSED, 0, off, LAYER, "%s: the data file was not opened on purpose", node->path);
}

static const struct img_driver absent_driver = {
	.name = "absent",
	.kind = DRIVER_PROTOCOL,
	.size = absent_size,
	.pread = absent_read,
};

static int absent_new(const char *name, struct node **out, struct img_error *err)
{
	*out = node_new(&absent_driver, name, err);
	if (!*out)
		return IMG_E_NOMEM;
	(*out)->opened = true;
	return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int judge(const struct data_opening *d, struct node *node, struct img_error *err)
{
	struct host_stat own, other;
	int ret = node_stat(d->file, &own, err);

	if (ret == 0)
		ret = node_stat(node, &other, err);
	if (ret != 0)
		return ret;
	if (other.is_block_device)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: is a block device, which no image may have its data on", node->path);
	if (own.ino != 0 && own.ino == other.ino && own.dev == other.dev)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "%s names itself as its data file", d->path);
	return 0;
}

static int take_permissions(const struct data_opening *d, struct node *node, struct img_error *err)
{
	if (d->o->flags & IMG_OPEN_FORCE_SHARE)
		return 0;
	if (d->o->flags & IMG_OPEN_WRITE)
		return node_share(node, SHARE_DATA_WRITER_USE, SHARE_DATA_FORBID, err);
	return node_share(node, SHARE_DATA_READER_USE, SHARE_DATA_FORBID, err);
}

int data_file_open(void *ctx, const char *name, struct node **out, struct img_error *err)
{
	const struct data_opening *d = ctx;
	struct host_open host = chain_peek(d->o);
	char *path;
	int ret;

	*out = NULL;
	if ((d->o->flags & IMG_OPEN_NO_BACKING) && !host.writable)
		return absent_new(name, out, err);
	ret = budget_reference(d->budget, d->path, err);
	if (ret != 0)
		return ret;
	ret = d->env->open_file(d->env->ctx, d->path, name, d->o->refs, &host, out, &path, err);
	if (ret != 0)
		return ret;
	free(path);
	ret = judge(d, *out, err);
	if (ret == 0)
		ret = take_permissions(d, *out, err);
	if (ret != 0) {
		node_close(*out, NULL);
		*out = NULL;
	}
	return ret;
}

/* ---- creating ---------------------------------------------------------------------------------------------------- */

static int find_path(struct data_creation *c, const char *name, struct img_error *err)
{
	enum img_refs refs = c->refs == IMG_REFS_DEFAULT ? IMG_REFS_DIR : c->refs;

	if (c->env->new_path)
		return c->env->new_path(c->env->ctx, c->path, name, refs, &c->final_path, err);
	return broker_new_path(c->path, name, refs, &c->final_path, err);
}

int data_file_create(void *ctx, const char *name, struct node **out, struct img_error *err)
{
	struct data_creation *c = ctx;
	int ret;

	*out = NULL;
	if (c->node)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "an image has one data file");
	ret = find_path(c, name, err);
	if (ret == 0 && strcmp(c->final_path, c->path) == 0)
		ret = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s cannot be its own data file", c->path);
	if (ret == 0 && image_check_target(c->final_path, 0, c->env, NULL) == IMG_E_EXISTS)
		ret = error_set(
			err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER,
			"%s: exists already, and a data file is never replaced, not by --force either: remove it",
			c->final_path);
	if (ret == 0)
		ret = c->env->create_file(c->env->ctx, c->final_path, &c->node, &c->temp_path, err);
	if (ret == 0)
		*out = c->node;
	return ret;
}

int data_file_publish(struct data_creation *c, struct img_error *err)
{
	int ret, closed;

	if (!c->node)
		return 0;
	ret = node_flush(c->node, 0, err);
	closed = node_close(c->node, ret == 0 ? err : NULL);
	c->node = NULL;
	ret = ret != 0 ? ret : closed;
	if (ret == 0)
		ret = c->env->publish(c->env->ctx, c->temp_path, c->final_path, 0, err);
	c->published = ret == 0;
	return ret;
}

void data_file_end(struct data_creation *c, bool keep)
{
	if (c->node)
		node_close(c->node, NULL);
	if (c->temp_path && !c->published)
		c->env->discard_temp(c->env->ctx, c->temp_path);
	else if (c->published && !keep)
		c->env->discard_temp(c->env->ctx, c->final_path);
	free(c->temp_path);
	free(c->final_path);
	c->temp_path = c->final_path = NULL;
	c->node = NULL;
}
