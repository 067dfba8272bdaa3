/* SPDX-License-Identifier: MIT */
/* A second file of an image, which holds its data: see data_file.c. */
#ifndef CORE_DATA_FILE_H
#define CORE_DATA_FILE_H

#include "budget.h"
#include "image.h"

/* For driver_open.open_data. All of it is borrowed for the time of the open. */
struct data_opening {
	const char *path;  /* of the image */
	struct node *file; /* the image's own, which its data file cannot be */
	const struct img_open_options *o;
	const struct image_env *env;
	struct budget *budget;
};
int data_file_open(void *ctx, const char *name, struct node **out, struct img_error *err);

/* For driver_create.create_data. path, refs and env are set by who creates the image, the rest is zeroed. */
struct data_creation {
	const char *path;
	enum img_refs refs;
	const struct image_env *env;

	struct node *node; /* until it is published */
	char *final_path, *temp_path;
	bool published;
};
int data_file_create(void *ctx, const char *name, struct node **out, struct img_error *err);
/* What was made is durable under its name when this returns 0. Nothing was made: success. */
int data_file_publish(struct data_creation *c, struct img_error *err);
/* Ends c. Without keep the file is removed, published or not. */
void data_file_end(struct data_creation *c, bool keep);

#endif
