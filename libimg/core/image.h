/* SPDX-License-Identifier: MIT */
/*
 * struct img: the public face of a chain of nodes. This header is the library's inside: tests use it to open images on nodes of
 * their own (memory, fault and crash filters) through an environment that replaces the host.
 */
#ifndef CORE_IMAGE_H
#define CORE_IMAGE_H

#include "node.h"

/* How image files are reached. The default environment is the host's file system under the broker's policy. */
struct image_env {
	/*
	 * Opens the file that an image names (or the image itself, child_path NULL) as a protocol node, perhaps under filters.
	 * child_path: path of the image that holds the reference; relative names start at its folder. *resolved receives a
	 * malloc()ed path for messages and for further references.
	 */
	int (*open_file)(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			 const struct host_open *args, struct node **out, char **resolved, struct img_error *err);
	/* Creates an empty file that will be published as path: temporary name beside it. */
	int (*create_file)(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err);
	/* Syncs folder and renames temp_path to path (without replacing unless overwrite); the node is closed already. */
	int (*publish)(void *ctx, const char *temp_path, const char *path, bool overwrite, struct img_error *err);
	/* Removes an unpublished file. */
	void (*discard_temp)(void *ctx, const char *temp_path);
	void *ctx;
};
extern const struct image_env image_env_host;

struct img {
	struct node *top;	/* owned */
	struct img *backing;	/* owned wrapper of top->backing, which top owns; NULL if none */
	unsigned depth;
	unsigned open_flags;	/* enum img_open_flags */
	enum img_refs refs;
	char *path;		/* owned, "" if unknown */
	char *snapshot;		/* owned, NULL for the head */
	const struct image_env *env;
	bool borrowed;		/* wrapper of a node that another image owns */
};

/* As img_open()/img_create()/img_convert() in another environment. env must outlive the image. */
int image_open_env(const char *path, const struct img_open_options *opts, const struct image_env *env, struct img **out,
		   struct img_error *err);
int image_create_env(const char *path, const struct img_create_options *opts, const struct image_env *env,
		     struct img_error *err);
int image_convert_env(struct img *src, const char *path, const struct img_create_options *create,
		      const struct img_copy_options *opts, const struct image_env *env, struct img_error *err);
/* Takes file over, also on failure. path is for messages and references. */
int image_open_on(struct node *file, const char *path, const struct img_open_options *opts, const struct image_env *env,
		  struct img **out, struct img_error *err);

/*
 * Opens the parent that ref names as a chain of nodes ready to be node->backing, read-only (or as img for commit's writable
 * reopen: chain.c). Computes and compares pins unless IMG_OPEN_UNSAFE_BACKING.
 */
int chain_open_parent(const char *child_path, const struct backing_ref *ref, unsigned open_flags, enum img_refs refs,
		      unsigned depth_left, const struct image_env *env, struct img **out, struct img_error *err);
/* Identity of an opened image: the driver's strong pin, else the weak one of format-spec/limg.md section 12. */
int image_pin(struct img *img, struct pin *out, struct img_error *err);
/* 0, or IMG_E_CHANGED with a message that says what differs and what to do. */
int pin_compare(const struct pin *recorded, const struct pin *found, const char *child, const char *parent,
		struct img_error *err);
/* Resolves what a user gave as -b (path, snapshot, format) into a reference with pin and the parent's size. */
int chain_make_ref(const char *child_path, const char *backing, const char *snapshot, const char *format,
		   enum img_refs refs, const struct image_env *env, struct backing_ref *out, struct img_error *err);

#endif
