/* SPDX-License-Identifier: MIT */
/* See memfs.h. The lock guards the table only; contents have their own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "memfs.h"

static struct memfs_file *lookup(struct memfs *fs, const char *name)
{
	for (size_t i = 0; i < MEMFS_MAX_FILES; i++) {
		if (strcmp(fs->files[i].name, name) == 0)
			return &fs->files[i];
	}
	return NULL;
}

struct mem_content *memfs_find(struct memfs *fs, const char *name)
{
	struct memfs_file *file;
	struct mem_content *content;

	pthread_mutex_lock(&fs->lock);
	file = lookup(fs, name);
	content = file ? file->content : NULL;
	pthread_mutex_unlock(&fs->lock);
	return content;
}

static void clear(struct memfs_file *file)
{
	mem_content_unref(file->content);
	*file = (struct memfs_file){ 0 };
}

static void put_locked(struct memfs *fs, const char *name, struct mem_content *content)
{
	struct memfs_file *file = lookup(fs, name);

	if (!file)
		file = lookup(fs, "");
	if (!file || strlen(name) >= sizeof(file->name)) {
		fprintf(stderr, "memfs: no room for %s\n", name);
		abort();
	}
	clear(file);
	strcpy(file->name, name);
	file->content = content;
}

void memfs_put(struct memfs *fs, const char *name, struct mem_content *content)
{
	pthread_mutex_lock(&fs->lock);
	put_locked(fs, name, content);
	pthread_mutex_unlock(&fs->lock);
}

void memfs_remove(struct memfs *fs, const char *name)
{
	struct memfs_file *file;

	pthread_mutex_lock(&fs->lock);
	file = lookup(fs, name);
	if (file && *name)
		clear(file);
	pthread_mutex_unlock(&fs->lock);
}

static bool belongs_to(const struct memfs_file *file, const char *image)
{
	size_t n = image ? strlen(image) : 0;

	return file->content &&
	       (!image || (strncmp(file->name, image, n) == 0 && strchr(".-", file->name[n]))); /* or its end */
}

void memfs_remove_image(struct memfs *fs, const char *image)
{
	pthread_mutex_lock(&fs->lock);
	for (size_t i = 0; i < MEMFS_MAX_FILES; i++)
		if (belongs_to(&fs->files[i], image))
			clear(&fs->files[i]);
	pthread_mutex_unlock(&fs->lock);
}

bool memfs_clone_image(struct memfs *from, const char *image, struct memfs *to)
{
	bool done = true;

	pthread_mutex_lock(&from->lock);
	for (size_t i = 0; i < MEMFS_MAX_FILES && done; i++) {
		struct mem_content *clone;

		if (!belongs_to(&from->files[i], image))
			continue;
		clone = mem_content_clone(from->files[i].content);
		done = clone != NULL;
		if (clone)
			memfs_put(to, from->files[i].name, clone);
	}
	pthread_mutex_unlock(&from->lock);
	return done;
}

/* A node on content, under the filter where there is one. */
static int open_node(struct memfs *fs, struct mem_content *content, const char *name, const struct host_open *args,
		     struct node **out, struct img_error *err)
{
	struct node *node;
	int ret = mem_node_on(content, name, args, &node, err);

	*out = NULL;
	if (ret != 0)
		return ret;
	if (fs->wrap)
		return fs->wrap(fs->wrap_ctx, node, name, args, out, err);
	*out = node;
	return 0;
}

static int open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
		     const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	struct mem_content *content = memfs_find(ctx, name);
	int ret;

	(void)child_path;
	(void)refs;
	*out = NULL;
	*resolved = NULL;
	if (!content)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, "memfs", "%s: no such file", name);
	*resolved = strdup(name);
	if (!*resolved)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "memfs", "out of memory");
	ret = open_node(ctx, content, name, args, out, err);
	if (ret != 0) {
		free(*resolved);
		*resolved = NULL;
	}
	return ret;
}

static int create_file(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	struct host_open args = { .writable = true, .use = SHARE_WRITER_USE, .forbid = SHARE_WRITER_FORBID };
	struct memfs *fs = ctx;
	struct mem_content *content = mem_content_new();
	int ret = IMG_E_NOMEM;

	*out = NULL;
	if (!content || asprintf(temp_path, ".%s.%u.tmp", path, fs->temp_seq++) < 0)
		goto fail;
	ret = open_node(fs, content, path, &args, out, err);
	if (ret != 0) {
		free(*temp_path);
		goto fail;
	}
	memfs_put(fs, *temp_path, content);
	return 0;
fail:
	*temp_path = NULL;
	mem_content_unref(content);
	return ret == IMG_E_NOMEM ? error_set(err, ret, 0, NO_OFFSET, "memfs", "out of memory") : ret;
}

static int publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	struct memfs *fs = ctx;
	struct mem_content *content = memfs_find(fs, temp_path);

	if (!content)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, "memfs", "%s: no such file", temp_path);
	if (!(flags & IMG_CREATE_OVERWRITE) && memfs_find(fs, path))
		return error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, "memfs", "%s: exists", path);
	memfs_put(fs, path, mem_content_ref(content));
	memfs_remove(fs, temp_path);
	return 0;
}

static void discard_temp(void *ctx, const char *temp_path)
{
	memfs_remove(ctx, temp_path);
}

void memfs_init(struct memfs *fs)
{
	memset(fs, 0, sizeof(*fs));
	pthread_mutex_init(&fs->lock, NULL);
	fs->env = (struct image_env){
		.open_file = open_file,
		.create_file = create_file,
		.publish = publish,
		.discard_temp = discard_temp,
		.ctx = fs,
	};
}

void memfs_destroy(struct memfs *fs)
{
	for (size_t i = 0; i < MEMFS_MAX_FILES; i++)
		clear(&fs->files[i]);
	pthread_mutex_destroy(&fs->lock);
}
