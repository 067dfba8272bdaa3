/* SPDX-License-Identifier: MIT */
/*
 * An open VMDK: its descriptor, and one part per extent. Every member of the driver goes through the span, or over the
 * parts.
 *
 *   vmdk.c        what the core sees
 *   open.c        opening and closing: descriptor, extents, parts
 *   text.c        the descriptor on disk: changes of it, content ids
 *   create.c      new images of all types; measure
 *   backing.c     parents
 *   resize.c, check.c, info.c, inspect.c
 *
 * The content id changes before the first change of the content after it was opened: children know their parent's
 * state by it.
 */
#ifndef VMDK_IMAGE_H
#define VMDK_IMAGE_H

#include <pthread.h>

#include "span.h"
#include "sparse.h"

struct vmdk_stream;

/* One extent. */
struct vmdk_part {
	struct node *file; /* node->file or one of node->parts; NULL: zeros, no access */
	bool absent;	   /* the file is not open on purpose */
	struct vmdk_sparse *sparse;
	struct vmdk_esx *esx;
	struct vmdk_stream *stream;
};

struct vmdk_state {
	struct node *node;
	struct span *span;
	struct vmdk_part *parts; /* one for each extent of d */
	size_t nr_parts;	 /* never changes, so that no lock is needed to go over the parts */
	size_t *openers;	 /* while it is opened: of each file the extent that brought it */
	size_t nr_openers;
	bool single; /* one file: the descriptor is inside of the extent */
	bool writable, bulk, check_only, absent;

	pthread_mutex_t size_lock; /* taken before all others: what the extents hold against what d says */
	pthread_mutex_t lock;	   /* all of d, once the image is open: the first change makes another one of it */
	struct vmdk_descriptor d;
	_Atomic bool touched; /* the content id is that of this session */
	_Atomic bool broken;
	bool committing;      /* d says so */
	uint32_t grain_bytes; /* of the first extent that has any; 0: none */
};

static inline struct vmdk_state *vmdk_of(const struct node *node)
{
	return node->state;
}

/* What a descriptor says while a commit is under way. */
#define VMDK_COMMITTING_KEY "ddb.libimg.committing"

/* ---- open.c ---- */
int vmdk_open(struct node *node, const struct driver_open *args, struct img_error *err);
int vmdk_close(struct node *node, struct img_error *err);
/* IMG_E_READONLY, IMG_E_POISONED. */
int vmdk_may_change(struct vmdk_state *v, struct img_error *err);
/* Of a KDMV extent in file: where its descriptor is, or IMG_E_UNSUPPORTED: it has none. */
int vmdk_embedded(struct node *file, struct budget *budget, struct vmdk_header *h, struct vmdk_descriptor *d,
		  struct img_error *err);
/* Is it a type of disk that can be opened? IMG_E_UNSUPPORTED, IMG_E_REFUSED: names a device. */
int vmdk_judge_type(const char *type, const char *path, struct img_error *err);

/* ---- text.c ---- */
/*
 * The descriptor becomes text (taken over, also on failure), in the file and, parsed, in memory. Durable unless bulk.
 * lock is held. IMG_E_NOSPC: there is no room for it. A failure while it is written breaks the image.
 */
int vmdk_text_store(struct vmdk_state *v, char *text, size_t bytes, struct img_error *err);
/* One key; value NULL: none. lock is held. */
int vmdk_text_set(struct vmdk_state *v, const char *key, const char *value, bool quoted, struct img_error *err);
/* Before a change of the content: the content id, once. */
int vmdk_touch(struct vmdk_state *v, struct img_error *err);

/* ---- create.c ---- */
int vmdk_create(struct node *file, const struct driver_create *args, struct img_error *err);
int vmdk_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err);

/* ---- backing.c ---- */
bool vmdk_get_backing(struct node *node, struct backing_ref *out);
int vmdk_set_backing(struct node *node, const struct backing_ref *ref, enum backing_change how, struct img_error *err);
void vmdk_id(struct node *node, struct pin *out);
/* The content id that ref records of a parent; IMG_E_UNSUPPORTED: the parent is no VMDK. */
int vmdk_parent_cid(const struct backing_ref *ref, uint32_t *cid, struct img_error *err);

/* ---- resize.c, check.c, info.c, inspect.c ---- */
int vmdk_resize(struct node *node, uint64_t size_bytes, struct img_error *err);
int vmdk_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err);
int vmdk_info(struct node *node, struct img_info *out, struct img_error *err);
int vmdk_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err);
int vmdk_inspect(struct node *file, struct inspector *in, struct img_error *err);

#endif
