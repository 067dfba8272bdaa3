/* SPDX-License-Identifier: MIT */
/* What a confined process and its broker may speak of (host_serve.c): names that were granted, reached, or are being
 * made. */
#ifndef CORE_HOST_LIST_H
#define CORE_HOST_LIST_H

#include "libimg.h"

struct host_entry {
	char *path;	 /* as the other end calls it */
	unsigned rights; /* enum img_grant_rights */
	/* NULL but for what an image names: which one, how (NULL: it is being made, with the image), under which policy
	 */
	char *child, *name;
	enum img_refs refs;
	bool is_data;	   /* the data file of another one: has none itself */
	uint64_t dev, ino; /* of the file when it was opened last; ino 0: not yet */
	char *temp;	   /* made for it, not published yet */
	bool made;   /* a data file that was published before its image: is taken back if that does not come about */
	char **data; /* names of the data files that may be written, or made, on this one's behalf */
	size_t nr_data;
};

/* Zeroed: empty. Entries move when one is added. */
struct host_list {
	struct host_entry *at;
	size_t nr;
};

/* NULL: no memory (err filled). path is copied. */
struct host_entry *host_list_add(struct host_list *list, const char *path, unsigned rights, struct img_error *err);
/* Takes the last one back. */
void host_list_drop_last(struct host_list *list);
/* The image at path has its name: its data files stay. */
void host_list_settle(struct host_list *list, const char *path);
/* Removes what is left of images that did not come about, and frees all. */
void host_list_end(struct host_list *list);

/* Each gives the first that fits, or NULL. With any of these rights; 0: whatever it has. */
struct host_entry *host_list_find(struct host_list *list, const char *path, unsigned rights);
/* That an image names: as its data file, or otherwise. */
struct host_entry *host_list_reference(struct host_list *list, const char *path, bool is_data);
/* With any of these rights, and may have a data file. */
struct host_entry *host_list_written(struct host_list *list, const char *path, unsigned rights);
/* That was opened. */
struct host_entry *host_list_opened(struct host_list *list, const char *path);
struct host_entry *host_list_temp(struct host_list *list, const char *temp);

/* fd is open on it. */
void host_entry_opened(struct host_entry *e, int fd);
/* Is name a data file of it, or may it become one? REFUSED: it has max others. */
int host_entry_claim(struct host_entry *e, const char *name, size_t max, struct img_error *err);
void host_entry_drop_temp(struct host_entry *e);
/* Removes the data file that was made, if it is still that. */
void host_entry_take_back(struct host_entry *e);

#endif
