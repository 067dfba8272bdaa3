/* SPDX-License-Identifier: MIT */
/* Further files of an image, which hold its data: see data_file.c. */
#ifndef CORE_DATA_FILE_H
#define CORE_DATA_FILE_H

#include "budget.h"
#include "image.h"

/* For driver_open.open_data. What it points to is borrowed for the time of the open. */
struct data_opening {
	const char *path;  /* of the image */
	struct node *file; /* the image's own, which its data file cannot be */
	const struct img_open_options *o;
	const struct image_env *env;
	struct budget *budget;
	bool absent; /* none is opened: who reads one is refused */
	struct data_creation
		*made; /* what was made for this image, and still lies under temporary names; NULL: nothing */

	struct host_stat *seen; /* of those that were opened */
	size_t nr_seen;
};
int data_file_open(void *ctx, const char *name, struct node **out, struct img_error *err);
/* Frees what d collected. */
void data_file_opened(struct data_opening *d);

struct data_made {
	struct node *node; /* until it is published, or the image that was opened on it has it */
	char *name;	   /* as the image calls it */
	char *final_path, *temp_path;
	bool published;
};

/* For driver_create.create_data. path, refs and env are set by who creates the image, the rest is zeroed. */
struct data_creation {
	const char *path;
	enum img_refs refs;
	const struct image_env *env;

	struct data_made *made;
	size_t nr_made;
};
int data_file_create(void *ctx, const char *name, struct node **out, struct img_error *err);
/*
 * What was made is durable under its names when this returns 0. Nothing was made: success. Who opened the image on it
 * has closed it, which made it durable.
 */
int data_file_publish(struct data_creation *c, struct img_error *err);
/* Ends c. Without keep the files are removed, published or not. */
void data_file_end(struct data_creation *c, bool keep);

#endif
