/* SPDX-License-Identifier: MIT */
/* Opening layers and chains of them: what image.c and chain.c share. */
#ifndef CORE_CHAIN_H
#define CORE_CHAIN_H

#include "image.h"

/* Beside enum img_open_flags: for nothing but node_check(). */
#define OPEN_FOR_CHECK (1u << 31)

/*
 * Opens the image in file and all that it names. Takes file over, also on failure. o is complete (image_copy_options);
 * path is for messages and references. made: data files that were made for the image and have no names yet
 * (data_file.h), or NULL.
 */
int chain_open(struct node *file, const char *path, const struct img_open_options *o, const struct image_env *env,
	       struct data_creation *made, struct img **out, struct img_error *err);

/* A struct img around an open node, which it takes over only on success. */
struct img *image_new(struct node *top, const char *path, const char *snapshot, unsigned open_flags, enum img_refs refs,
		      const struct image_env *env, struct img_error *err);
/* Frees the struct img, not its nodes. */
void image_free(struct img *img);

/* The permissions to ask of the host before it is known what the file is. */
struct host_open chain_peek(const struct img_open_options *o);

#endif
