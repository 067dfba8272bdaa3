/* SPDX-License-Identifier: MIT */
/*
 * struct img: the public face of a chain of nodes. This header is the library's inside: tests use it to open images on nodes of
 * their own (memory, fault and crash filters) through an environment that replaces the host.
 */
#ifndef CORE_IMAGE_H
#define CORE_IMAGE_H

#include "node.h"

struct data_creation;

#define PUBLISHED_NOT_DURABLE 1

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
	/*
	 * Renames temp_path to path and syncs the folder, as flags (enum img_create_flags) say; the node is closed already.
	 * PUBLISHED_NOT_DURABLE, with an error: it has its name, and what it replaces is gone.
	 */
	int (*publish)(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err);
	/* Removes an unpublished file. */
	void (*discard_temp)(void *ctx, const char *temp_path);
	/* IMG_E_EXISTS (or why a file there cannot be replaced, such as BUSY); may be NULL: publish alone says so. */
	int (*check_target)(void *ctx, const char *path, bool overwrite, struct img_error *err);
	/* Where a new file that the image at child_path will name is to be made; malloc()ed. NULL: broker_new_path(). */
	int (*new_path)(void *ctx, const char *child_path, const char *name, enum img_refs refs, char **out,
			struct img_error *err);
	/* Which file has that name now: dev and ino. False: none, or it cannot be said. NULL: never. */
	bool (*identify)(void *ctx, const char *path, struct host_stat *out);
	void *ctx;
};
extern const struct image_env image_env_host;
/* What the options of a public function name; host may be NULL. */
const struct image_env *image_env_of(struct img_host *host);

struct img {
	struct node *top;	/* owned */
	struct img *backing;	/* owned wrapper of top->backing, which top owns; NULL if none */
	unsigned depth;
	unsigned open_flags;	/* enum img_open_flags */
	enum img_refs refs;
	char *path;		/* owned, "" if unknown */
	char *snapshot;		/* owned, NULL for the head */
	const struct image_env *env;
	struct img_budget budget; /* complete: what it was opened under; for what is opened on its behalf later */
	bool borrowed;		/* wrapper of a node that another image owns */
	/*
	 * I/O and questions hold it shared; what replaces the content as a whole or swaps the backing (resize, revert, commit,
	 * rebase, flatten) holds it exclusive. Never held while a caller's callback runs, except by an image_freeze() holder.
	 */
	pthread_rwlock_t content_lock;
};

/*
 * Takes img->content_lock exclusive and gives an alias: another struct img over the same nodes with a lock of its own, through
 * which the holder (commit, rebase, flatten) goes on using the public functions. Changes of the backing are made on img itself;
 * alias follows by image_refreeze(). image_thaw() ends both; alias is gone.
 */
int image_freeze(struct img *img, struct img **alias, struct img_error *err);
void image_refreeze(struct img *img, struct img *alias);
void image_thaw(struct img *img, struct img *alias);

/*
 * img->backing and img->top->backing in one step. The caller holds the image frozen, or is its only user. attach takes parent
 * over (img must have none); detach gives it back, to be ended by img_close(); NULL if there is none.
 */
void image_attach_backing(struct img *img, struct img *parent);
struct img *image_detach_backing(struct img *img);

/*
 * Copies a caller's option struct (which begins with its struct_size; NULL: all defaults) into one of this library's version.
 * What a newer caller sets and we do not know is IMG_E_UNSUPPORTED.
 */
int image_copy_options(void *out, size_t out_bytes, const void *options, struct img_error *err);

/* IMG_E_EXISTS early, before work is spent on a new file that could not be published. flags: enum img_create_flags. */
int image_check_target(const char *path, unsigned flags, const struct image_env *env, struct img_error *err);

/* As img_open()/img_create()/img_convert()/img_inspect() in another environment. env must outlive the image. */
int image_open_env(const char *path, const struct img_open_options *opts, const struct image_env *env, struct img **out,
		   struct img_error *err);
int image_create_env(const char *path, const struct img_create_options *opts, const struct image_env *env,
		     struct img_error *err);
int image_convert_env(struct img *src, const char *path, const struct img_create_options *create,
		      const struct img_copy_options *opts, const struct image_env *env, struct img_error *err);
/* As img_convert_fd(), into a protocol node, which is taken over, also on failure. */
int image_convert_into(struct img *src, struct node *file, const struct img_create_options *create,
		       const struct img_copy_options *opts, struct img_error *err);
int image_inspect_env(const char *path, const struct img_inspect_options *opts, img_inspect_fn fn, void *ctx,
		      struct img_inspect_result *out, const struct image_env *env, struct img_error *err);
/* Without the backing, and for nothing but node_check() and img_close(). */
int image_open_for_check(const char *path, const struct img_open_options *opts, const struct image_env *env,
			 struct img **out, struct img_error *err);
/*
 * Takes file over, also on failure. path is for messages and references. made: data files that were made for it and have no names yet
 * (data_file.h), on which it is opened; NULL: none.
 */
int image_open_on(struct node *file, const char *path, const struct img_open_options *opts, const struct image_env *env,
		  struct data_creation *made, struct img **out, struct img_error *err);

/* The machine state at off, inside its volume: [off, off + *run) is a hole, which reads as zeros, or data. */
int image_vmstate_hole(struct img *img, const char *snapshot, uint64_t bytes, uint64_t off, bool *hole, uint64_t *run,
		       struct img_error *err);

/* Longest backing chain: the default, and what a caller may ask for. */
#define CHAIN_DEPTH_DEFAULT 64
#define CHAIN_DEPTH_MAX 1024

/*
 * Opens the parent that ref names as a chain of nodes ready to be node->backing, read-only (or as img for commit's writable
 * reopen: chain.c). Computes and compares pins unless IMG_OPEN_UNSAFE_BACKING. budget NULL: all defaults.
 */
int chain_open_parent(const char *child_path, const struct backing_ref *ref, unsigned open_flags, enum img_refs refs,
		      unsigned max_depth, const struct img_budget *given, const struct image_env *env, struct img **out,
		      struct img_error *err);
/* Identity of an opened image: the driver's strong pin, else the weak one of format-spec/limg.md section 12. */
int image_pin(struct img *img, struct pin *out, struct img_error *err);
/* ref->pin and ref->id, as an overlay is to record them of img; the time in a weak pin is durable then. */
int image_identify(struct img *img, struct backing_ref *ref, struct img_error *err);
/* 0, or IMG_E_CHANGED with a message that says what differs and what to do. */
int pin_compare(const struct pin *recorded, const struct pin *found, const char *child, const char *parent,
		struct img_error *err);
/* The same for a parent into which a commit began and has not ended: what that changes of it is not compared. */
int pin_compare_committing(const struct pin *recorded, const struct pin *found, const char *child, const char *parent,
			   struct img_error *err);
/* Resolves what a user gave as -b (path, snapshot, format) into a reference with pin and the parent's size. */
int chain_make_ref(const char *child_path, const char *backing, const char *snapshot, const char *format,
		   enum img_refs refs, const struct img_budget *given, const struct image_env *env,
		   struct backing_ref *out, struct img_error *err);

#endif
