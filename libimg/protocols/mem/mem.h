/* SPDX-License-Identifier: MIT */
/*
 * Protocol "mem": files that live in memory, for tests and for whoever wants an image without a host. A file's bytes
 * are a struct mem_content, apart from the nodes that open it: several nodes may share one (reopen, two openers), and a
 * clone is a copy on write, cheap whatever the size. All functions here may be called from several threads at once.
 */
#ifndef PROTOCOLS_MEM_H
#define PROTOCOLS_MEM_H

#include "node.h"

#define MEM_PAGE_BYTES 4096u
#define MEM_MAX_BYTES  (UINT64_C(1) << 48)

extern const struct img_driver mem_driver;

struct mem_content;

/* Empty. NULL: no memory. The caller owns one reference. */
struct mem_content *mem_content_new(void);
struct mem_content *mem_content_ref(struct mem_content *content);
void mem_content_unref(struct mem_content *content); /* NULL is allowed */
/* Same bytes in a content of its own, without its locks. NULL: no memory. */
struct mem_content *mem_content_clone(struct mem_content *content);

uint64_t mem_content_size(struct mem_content *content);
/* What lies beyond the end reads as zeros. */
void mem_content_read(struct mem_content *content, void *buf, uint64_t bytes, uint64_t off);
/* These grow the content where needed. 0 or IMG_E_NOMEM, IMG_E_LIMIT. */
int mem_content_write(struct mem_content *content, const void *buf, uint64_t bytes, uint64_t off);
int mem_content_zero(struct mem_content *content, uint64_t bytes, uint64_t off);
int mem_content_allocate(struct mem_content *content, uint64_t bytes,
			 uint64_t off); /* pages for the range; content stays */
int mem_content_resize(struct mem_content *content, uint64_t bytes);
/* Equal for equal size and bytes; cheap when asked again after few changes. */
void mem_content_hash(struct mem_content *content, uint64_t out[2]);
uint64_t mem_content_allocated(struct mem_content *content);

/* An opened node on an empty content of its own, writable. */
int mem_node_new(const char *name, struct node **out, struct img_error *err);
/* An opened node on content, which it references; takes the permissions in args as a host file does. */
int mem_node_on(struct mem_content *content, const char *name, const struct host_open *args, struct node **out,
		struct img_error *err);

/* A new reference to the content of a mem node. */
struct mem_content *mem_share_content(struct node *node);
/* A copy of what the node holds now. NULL: no memory. */
struct mem_content *mem_snapshot(struct node *node);
/* The node (and whoever shares its content) holds the same as from again. 0 or IMG_E_NOMEM. */
int mem_restore(struct node *node, struct mem_content *from);

#endif
