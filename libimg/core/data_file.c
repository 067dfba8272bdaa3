/* SPDX-License-Identifier: MIT */
/*
 * Data files: an image may keep the guest's data in further files that it names: one (qcow2), or many (VMDK,
 * Parallels). The names come from the image like that of a backing file, and go the same way: through the broker, under
 * the policy for references. They are opened for writing if the image is, and must be regular files, none of them the
 * image, no two of them the same.
 *
 * Locks: who writes allows other writers of the content no more than QEMU does (it forbids a change of the size, which
 * each writer uses), so that two images on one data file exclude each other.
 *
 * New ones are made under temporary names, under which a conversion also fills them: the image is opened on the nodes
 * that made them, as it is on its own. They get their names, all of them durable by then, right before the image does,
 * and are removed together if it does not come about. They replace nothing.
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

static bool same_file(const struct host_stat *a, const struct host_stat *b)
{
	return a->ino != 0 && a->ino == b->ino && a->dev == b->dev;
}

static int remember(struct data_opening *d, const struct host_stat *host, struct img_error *err)
{
	struct host_stat *grown = realloc(d->seen, (d->nr_seen + 1) * sizeof(*grown));

	if (!grown)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	d->seen = grown;
	d->seen[d->nr_seen++] = *host;
	return 0;
}

static int judge(struct data_opening *d, struct node *node, struct img_error *err)
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
	if (same_file(&own, &other))
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "%s names itself as its data file", d->path);
	for (size_t i = 0; i < d->nr_seen; i++)
		if (same_file(&d->seen[i], &other))
			return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "%s: is two data files of %s at once",
					 node->path, d->path);
	return remember(d, &other, err);
}

static int take_permissions(const struct data_opening *d, struct node *node, struct img_error *err)
{
	if (d->o->flags & IMG_OPEN_FORCE_SHARE)
		return 0;
	if (d->o->flags & IMG_OPEN_WRITE)
		return node_share(node, SHARE_DATA_WRITER_USE, SHARE_DATA_FORBID, err);
	return node_share(node, SHARE_DATA_READER_USE, SHARE_DATA_FORBID, err);
}

/* Made a moment ago, and without its name yet: the node goes from hand to hand. NULL: no such. */
static struct node *take_made(struct data_creation *c, const char *name)
{
	for (size_t i = 0; c && i < c->nr_made; i++) {
		struct node *node = c->made[i].node;

		if (node && strcmp(c->made[i].name, name) == 0) {
			c->made[i].node = NULL;
			return node;
		}
	}
	return NULL;
}

static int open_by_name(struct data_opening *d, const char *name, struct node **out, struct img_error *err)
{
	struct host_open host = chain_peek(d->o);
	char *path;
	int ret = d->env->open_file(d->env->ctx, d->path, name, d->o->refs, &host, out, &path, err);

	if (ret == 0)
		free(path);
	return ret;
}

int data_file_open(void *ctx, const char *name, struct node **out, struct img_error *err)
{
	struct data_opening *d = ctx;
	int ret;

	*out = NULL;
	if (d->absent)
		return absent_new(name, out, err);
	ret = budget_reference(d->budget, d->path, err);
	if (ret != 0)
		return ret;
	*out = take_made(d->made, name);
	if (!*out)
		ret = open_by_name(d, name, out, err);
	if (ret != 0)
		return ret;
	ret = judge(d, *out, err);
	if (ret == 0)
		ret = take_permissions(d, *out, err);
	if (ret != 0) {
		node_close(*out, NULL);
		*out = NULL;
	}
	return ret;
}

void data_file_opened(struct data_opening *d)
{
	free(d->seen);
	d->seen = NULL;
	d->nr_seen = 0;
}

/* ---- creating ---------------------------------------------------------------------------------------------------- */

static int find_path(struct data_creation *c, const char *name, char **out, struct img_error *err)
{
	enum img_refs refs = c->refs == IMG_REFS_DEFAULT ? IMG_REFS_DIR : c->refs;

	if (c->env->new_path)
		return c->env->new_path(c->env->ctx, c->path, name, refs, out, err);
	return broker_new_path(c->path, name, refs, out, err);
}

static int judge_path(struct data_creation *c, const char *path, struct img_error *err)
{
	if (strcmp(path, c->path) == 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s cannot be its own data file", c->path);
	for (size_t i = 0; i < c->nr_made; i++)
		if (strcmp(path, c->made[i].final_path) == 0)
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "%s would be two data files of %s at once", path, c->path);
	if (image_check_target(path, 0, c->env, NULL) == IMG_E_EXISTS)
		return error_set(
			err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER,
			"%s: exists already, and a data file is never replaced, not by --force either: remove it",
			path);
	return 0;
}

static struct data_made *new_one(struct data_creation *c, struct img_error *err)
{
	struct data_made *grown = realloc(c->made, (c->nr_made + 1) * sizeof(*grown));

	if (!grown) {
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		return NULL;
	}
	c->made = grown;
	grown[c->nr_made] = (struct data_made){ .node = NULL };
	return &grown[c->nr_made];
}

int data_file_create(void *ctx, const char *name, struct node **out, struct img_error *err)
{
	struct data_creation *c = ctx;
	struct data_made *m = new_one(c, err);
	int ret = m ? find_path(c, name, &m->final_path, err) : IMG_E_NOMEM;

	*out = NULL;
	if (ret == 0) {
		m->name = strdup(name);
		if (!m->name)
			ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	if (ret == 0)
		ret = judge_path(c, m->final_path, err);
	if (ret == 0)
		ret = c->env->create_file(c->env->ctx, m->final_path, &m->node, &m->temp_path, err);
	if (ret == 0) {
		*out = m->node;
		c->nr_made++;
	} else if (m) {
		free(m->name);
		free(m->final_path);
	}
	return ret;
}

static int publish_one(struct data_creation *c, struct data_made *m, struct img_error *err)
{
	int ret = c->env->publish(c->env->ctx, m->temp_path, m->final_path, 0, err);

	m->published = ret >= 0;
	return ret == PUBLISHED_NOT_DURABLE ? IMG_E_IO : ret;
}

/* All of them are whole before the first one has a name. */
int data_file_publish(struct data_creation *c, struct img_error *err)
{
	int ret = 0, closed;

	for (size_t i = 0; i < c->nr_made; i++) {
		struct data_made *m = &c->made[i];

		if (ret == 0 && m->node)
			ret = node_flush(m->node, 0, err);
		closed = node_close(m->node, ret == 0 ? err : NULL);
		m->node = NULL;
		ret = ret != 0 ? ret : closed;
	}
	for (size_t i = 0; i < c->nr_made && ret == 0; i++)
		if (!c->made[i].published)
			ret = publish_one(c, &c->made[i], err);
	return ret;
}

static void end_one(struct data_creation *c, struct data_made *m, bool keep)
{
	if (m->node)
		node_close(m->node, NULL);
	if (!m->published)
		c->env->discard_temp(c->env->ctx, m->temp_path);
	else if (!keep)
		c->env->discard_temp(c->env->ctx, m->final_path);
	free(m->name);
	free(m->temp_path);
	free(m->final_path);
}

void data_file_end(struct data_creation *c, bool keep)
{
	for (size_t i = 0; i < c->nr_made; i++)
		end_one(c, &c->made[i], keep);
	free(c->made);
	c->made = NULL;
	c->nr_made = 0;
}
