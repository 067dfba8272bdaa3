/* SPDX-License-Identifier: MIT */
/*
 * A folder of files in memory, as an environment for images: names map to the contents of the mem protocol. Names are
 * flat; references between images are taken as they stand, whatever the policy.
 */
#ifndef TESTS_MEMFS_H
#define TESTS_MEMFS_H

#include "image.h"
#include "mem.h"

#define MEMFS_MAX_FILES 48

struct memfs {
	struct memfs_file {
		char name[64]; /* "" where free */
		struct mem_content *content;
	} files[MEMFS_MAX_FILES];
	unsigned temp_seq;
	/*
	 * Puts a filter on a file that is opened or created; child is taken over, also on failure. NULL: none. name is
	 * that of the file to be, also while it has a temporary one.
	 */
	int (*wrap)(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
		    struct img_error *err);
	void *wrap_ctx;
	pthread_mutex_t lock;
	struct image_env env;
};

void memfs_init(struct memfs *fs);
void memfs_destroy(struct memfs *fs);
/* The content of a file, borrowed; NULL if there is none. */
struct mem_content *memfs_find(struct memfs *fs, const char *name);
/* Puts content (one reference is taken over) under a name, in place of what was there. Ends the program where it has no
 * room. */
void memfs_put(struct memfs *fs, const char *name, struct mem_content *content);
void memfs_remove(struct memfs *fs, const char *name);
/*
 * Of an image and its data files, whose names begin with its own and '.' or '-': removes all; puts clones of all into
 * another folder, in place of what is there (image NULL: of every file). False: no memory.
 */
void memfs_remove_image(struct memfs *fs, const char *image);
bool memfs_clone_image(struct memfs *from, const char *image, struct memfs *to);

#endif
