/* SPDX-License-Identifier: MIT */
/* See host_list.h. A list and no table: it has the names of one command line and what their chains reach. */
#include "host_list.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "image.h"

#define LAYER "broker"

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

struct host_entry *host_list_add(struct host_list *list, const char *path, unsigned rights, struct img_error *err)
{
	struct host_entry *more = realloc(list->at, (list->nr + 1) * sizeof(*more)), *e;

	if (!more) {
		no_memory(err);
		return NULL;
	}
	list->at = more;
	e = &more[list->nr];
	*e = (struct host_entry){ .path = strdup(path), .rights = rights };
	if (!e->path) {
		no_memory(err);
		return NULL;
	}
	list->nr++;
	return e;
}

static void free_entry(struct host_entry *e)
{
	free(e->path);
	free(e->child);
	free(e->name);
	free(e->temp);
	for (size_t i = 0; i < e->nr_data; i++)
		free(e->data[i]);
	free(e->data);
}

void host_list_drop_last(struct host_list *list)
{
	free_entry(&list->at[--list->nr]);
}

void host_list_settle(struct host_list *list, const char *path)
{
	for (size_t i = 0; i < list->nr; i++) {
		struct host_entry *e = &list->at[i];

		if (e->made && e->child && strcmp(e->child, path) == 0)
			e->made = false;
	}
}

void host_list_end(struct host_list *list)
{
	for (size_t i = 0; i < list->nr; i++) {
		host_entry_drop_temp(&list->at[i]);
		host_entry_take_back(&list->at[i]);
		free_entry(&list->at[i]);
	}
	free(list->at);
	*list = (struct host_list){ .nr = 0 };
}

struct host_entry *host_list_find(struct host_list *list, const char *path, unsigned rights)
{
	for (size_t i = 0; i < list->nr; i++) {
		if ((rights == 0 || (list->at[i].rights & rights)) && strcmp(list->at[i].path, path) == 0)
			return &list->at[i];
	}
	return NULL;
}

struct host_entry *host_list_reference(struct host_list *list, const char *path, bool is_data)
{
	for (size_t i = 0; i < list->nr; i++) {
		if (list->at[i].name && list->at[i].is_data == is_data && strcmp(list->at[i].path, path) == 0)
			return &list->at[i];
	}
	return NULL;
}

struct host_entry *host_list_written(struct host_list *list, const char *path, unsigned rights)
{
	for (size_t i = 0; i < list->nr; i++) {
		if ((list->at[i].rights & rights) && !list->at[i].is_data && strcmp(list->at[i].path, path) == 0)
			return &list->at[i];
	}
	return NULL;
}

struct host_entry *host_list_opened(struct host_list *list, const char *path)
{
	for (size_t i = 0; i < list->nr; i++) {
		if (list->at[i].ino != 0 && strcmp(list->at[i].path, path) == 0)
			return &list->at[i];
	}
	return NULL;
}

struct host_entry *host_list_temp(struct host_list *list, const char *temp)
{
	for (size_t i = 0; i < list->nr; i++) {
		if (list->at[i].temp && strcmp(list->at[i].temp, temp) == 0)
			return &list->at[i];
	}
	return NULL;
}

void host_entry_opened(struct host_entry *e, int fd)
{
	struct stat sb;

	if (fstat(fd, &sb) == 0) {
		e->dev = (uint64_t)sb.st_dev;
		e->ino = (uint64_t)sb.st_ino;
	}
}

int host_entry_claim(struct host_entry *e, const char *name, size_t max, struct img_error *err)
{
	char **grown;

	for (size_t i = 0; i < e->nr_data; i++)
		if (strcmp(e->data[i], name) == 0)
			return 0;
	if (e->nr_data >= max)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%s: an image has no more than %zu data files here", name, max);
	grown = realloc(e->data, (e->nr_data + 1) * sizeof(*grown));
	if (!grown)
		return no_memory(err);
	e->data = grown;
	grown[e->nr_data] = strdup(name);
	if (!grown[e->nr_data])
		return no_memory(err);
	e->nr_data++;
	return 0;
}

void host_entry_drop_temp(struct host_entry *e)
{
	if (e->temp)
		image_env_host.discard_temp(image_env_host.ctx, e->temp);
	free(e->temp);
	e->temp = NULL;
}

void host_entry_take_back(struct host_entry *e)
{
	struct host_stat now;

	if (e->made && image_env_host.identify(image_env_host.ctx, e->path, &now) && now.dev == e->dev &&
	    now.ino == e->ino)
		image_env_host.discard_temp(image_env_host.ctx, e->path);
	e->made = false;
}
