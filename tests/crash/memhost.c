/* SPDX-License-Identifier: MIT */
/* See memhost.h. Publishing does what a careful program does on a real host: rename, then sync the folder. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "error.h"
#include "memhost.h"

#define LAYER "memhost"

static void out_of_memory(void)
{
	fputs("memhost: out of memory\n", stderr);
	abort();
}

static unsigned file_number(const struct memhost *host, const struct memhost_file *file)
{
	return (unsigned)(file - host->file);
}

struct memhost_file *memhost_find(struct memhost *host, const char *name)
{
	for (unsigned i = 0; i < MEMHOST_FILES; i++) {
		if (host->file[i].content != NULL && strcmp(host->file[i].name, name) == 0)
			return &host->file[i];
	}
	return NULL;
}

bool memhost_is_temp(const struct memhost_file *file)
{
	return strstr(file->name, ".tmp") != NULL;
}

static unsigned name_number(struct memhost *host, const char *name)
{
	for (unsigned i = 0; i < host->nr_names; i++) {
		if (strcmp(host->names[i], name) == 0)
			return i;
	}
	if (host->nr_names == sizeof(host->names) / sizeof(host->names[0]) || strlen(name) >= MEMHOST_NAME) {
		fprintf(stderr, "memhost: no room for the name %s\n", name);
		abort();
	}
	strcpy(host->names[host->nr_names], name);
	return host->nr_names++;
}

static int log_name(struct memhost *host, enum crash_kind kind, unsigned file, const char *name, struct img_error *err)
{
	struct crash_entry entry = { .kind = kind, .file = file };

	if (host->log == NULL)
		return 0;
	if (name != NULL)
		entry.name = name_number(host, name);
	if (crash_log_add(host->log, &entry) == 0)
		return 0;
	return error_set(err, IMG_E_NOMEM, ENOMEM, NO_OFFSET, LAYER, "no memory for the log");
}

/* ---- the environment --------------------------------------------------------------------------------------------- */

static int open_slot(struct memhost *host, struct memhost_file *file, const struct host_open *args, struct node **out,
		     struct img_error *err)
{
	struct node *node;
	int ret = mem_node_on(file->content, file->name, args, &node, err);

	if (ret == 0 && host->log != NULL && args->writable)
		ret = crash_node_new(node, host->log, file_number(host, file), &node, err);
	if (ret == 0 && host->plan != NULL)
		ret = fault_node_new(node, host->plan, &node, err);
	*out = ret == 0 ? node : NULL;
	return ret;
}

static int env_open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			 const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	struct memhost *host = ctx;
	struct memhost_file *file = memhost_find(host, name);
	int ret;

	(void)child_path;
	(void)refs;
	*out = NULL;
	*resolved = NULL;
	if (file == NULL)
		return error_errno(err, ENOENT, NO_OFFSET, LAYER, "%s: cannot open", name);
	*resolved = strdup(name);
	if (*resolved == NULL)
		return error_errno(err, ENOMEM, NO_OFFSET, LAYER, "%s: cannot open", name);
	ret = open_slot(host, file, args, out, err);
	if (ret != 0) {
		free(*resolved);
		*resolved = NULL;
	}
	return ret;
}

static int env_create_file(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	struct host_open args = { .writable = true, .use = SHARE_WRITER_USE, .forbid = SHARE_WRITER_FORBID };
	struct memhost *host = ctx;
	struct memhost_file *file = NULL;
	int ret;

	*out = NULL;
	*temp_path = NULL;
	for (unsigned i = 0; i < MEMHOST_FILES && file == NULL; i++) {
		if (host->file[i].content == NULL)
			file = &host->file[i];
	}
	if (file == NULL)
		return error_errno(err, ENOSPC, NO_OFFSET, LAYER, "%s: no room for a file", path);
	if (asprintf(temp_path, "%s.tmp%u", path, host->nr_temps++) < 0)
		*temp_path = NULL;
	file->content = mem_content_new();
	if (*temp_path == NULL || file->content == NULL) {
		ret = error_errno(err, ENOMEM, NO_OFFSET, LAYER, "%s: cannot create", path);
	} else {
		snprintf(file->name, sizeof(file->name), "%s", *temp_path);
		ret = log_name(host, CRASH_CREATE, file_number(host, file), file->name, err);
		if (ret == 0)
			ret = open_slot(host, file, &args, out, err);
	}
	if (ret != 0) {
		mem_content_unref(file->content);
		file->content = NULL;
		free(*temp_path);
		*temp_path = NULL;
	}
	return ret;
}

static int env_check_target(void *ctx, const char *path, bool overwrite, struct img_error *err)
{
	if (!overwrite && memhost_find(ctx, path) != NULL)
		return error_errno(err, EEXIST, NO_OFFSET, LAYER, "%s: cannot create", path);
	return 0;
}

static void take_name(struct memhost *host, struct memhost_file *file, const char *name)
{
	struct memhost_file *old = memhost_find(host, name);

	if (old != NULL && old != file)
		old->name[0] = '\0';
	snprintf(file->name, sizeof(file->name), "%s", name);
}

static int env_publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	struct memhost *host = ctx;
	struct memhost_file *file = memhost_find(host, temp_path);
	int ret = env_check_target(ctx, path, (flags & IMG_CREATE_OVERWRITE), err);

	if (ret == 0)
		ret = log_name(host, CRASH_RENAME, file_number(host, file), path, err);
	if (ret == 0) {
		take_name(host, file, path);
		ret = log_name(host, CRASH_SYNC_DIR, 0, NULL, err);
	}
	return ret;
}

static void env_discard_temp(void *ctx, const char *temp_path)
{
	struct memhost *host = ctx;
	struct memhost_file *file = memhost_find(host, temp_path);

	if (file == NULL)
		return;
	(void)log_name(host, CRASH_UNLINK, file_number(host, file), temp_path, NULL);
	file->name[0] = '\0';
	/* Without a log nobody will ask for it again. */
	if (host->log == NULL) {
		mem_content_unref(file->content);
		file->content = NULL;
	}
}

/* ---- the host ---------------------------------------------------------------------------------------------------- */

void memhost_init(struct memhost *host)
{
	memset(host, 0, sizeof(*host));
	host->env = (struct image_env){
		.open_file = env_open_file,
		.create_file = env_create_file,
		.publish = env_publish,
		.discard_temp = env_discard_temp,
		.check_target = env_check_target,
		.ctx = host,
	};
}

void memhost_destroy(struct memhost *host)
{
	for (unsigned i = 0; i < MEMHOST_FILES; i++)
		mem_content_unref(host->file[i].content);
	memset(host, 0, sizeof(*host));
}

void memhost_clone(struct memhost *host, const struct memhost *from)
{
	memhost_init(host);
	memcpy(host->names, from->names, sizeof(host->names));
	host->nr_names = from->nr_names;
	host->nr_temps = from->nr_temps;
	for (unsigned i = 0; i < MEMHOST_FILES; i++) {
		if (from->file[i].content == NULL)
			continue;
		host->file[i] = from->file[i];
		host->file[i].content = mem_content_clone(from->file[i].content);
		if (host->file[i].content == NULL)
			out_of_memory();
	}
}

void memhost_hash(struct memhost *host, uint64_t out[2])
{
	out[0] = out[1] = 0;
	for (unsigned i = 0; i < MEMHOST_FILES; i++) {
		struct memhost_file *file = &host->file[i];
		uint64_t h[2];

		if (file->content == NULL || file->name[0] == '\0')
			continue;
		mem_content_hash(file->content, h);
		out[0] += XXH3_64bits_withSeed(h, sizeof(h), XXH3_64bits(file->name, strlen(file->name)));
		out[1] += XXH3_64bits_withSeed(h, sizeof(h), ~XXH3_64bits(file->name, strlen(file->name)));
	}
}

void memhost_apply_name(struct memhost *host, const struct crash_entry *entry, const struct memhost *names)
{
	struct memhost_file *file = &host->file[entry->file];

	switch (entry->kind) {
	case CRASH_CREATE:
	case CRASH_RENAME:
		if (file->content == NULL)
			file->content = mem_content_new();
		if (file->content == NULL)
			out_of_memory();
		take_name(host, file, names->names[entry->name]);
		break;
	case CRASH_UNLINK: file->name[0] = '\0'; break;
	default: break;
	}
}
