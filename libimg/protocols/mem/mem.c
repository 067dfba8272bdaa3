/* SPDX-License-Identifier: MIT */
/*
 * Protocol "mem": the driver over struct mem_content. It keeps the rules of the file protocol as far as a test can
 * tell: reads past the end fail, writes past it grow, byte locks and permissions conflict between nodes on one content.
 * Flush has nothing to do.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "mem_int.h"

struct byte_held {
	uint64_t byte;
	enum byte_lock mode;
	struct byte_held *next;
};

/* One per open node. All fields belong to content->openers_lock. */
struct mem_opener {
	unsigned use, forbid;
	struct byte_held *bytes;
	struct mem_opener *next;
};

struct mem_state {
	struct mem_content *content; /* a reference */
	struct mem_opener opener;
};

static struct mem_content *content_of(const struct node *node)
{
	return ((struct mem_state *)node->state)->content;
}

static int mem_failed(const struct node *node, int code, uint64_t off, struct img_error *err)
{
	if (code == 0)
		return 0;
	return error_set(err, code, code == IMG_E_NOMEM ? ENOMEM : 0, off, MEM_LAYER, "%s: %s", node->path,
			 code == IMG_E_NOMEM ? "no memory" : "a file in memory is limited to 2^48 bytes");
}

static int mem_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct mem_content *content = content_of(node);

	(void)flags;
	if (!range_inside(off, bytes, mem_content_size(content)))
		return error_set(err, IMG_E_IO, 0, off, MEM_LAYER, "%s: read past the end, at 0x%llx", node->path,
				 (unsigned long long)off);
	mem_content_read(content, buf, bytes, off);
	return 0;
}

static int mem_pwrite(struct node *node, const void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		      struct img_error *err)
{
	(void)flags;
	return mem_failed(node, mem_content_write(content_of(node), buf, bytes, off), off, err);
}

static int mem_zero(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return mem_failed(node, mem_content_zero(content_of(node), bytes, off), off, err);
}

/* Like a hole punched in a host file: whole and partial pages read as zeros, the size stays. */
static int mem_discard(struct node *node, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct mem_content *content = content_of(node);
	uint64_t size = mem_content_size(content);

	(void)flags;
	if (off >= size)
		return 0;
	return mem_failed(node, mem_content_zero(content, min_u64(bytes, size - off), off), off, err);
}

static int mem_flush(struct node *node, unsigned flags, struct img_error *err)
{
	(void)node;
	(void)flags;
	(void)err;
	return 0;
}

static int mem_resize(struct node *node, uint64_t size_bytes, struct img_error *err)
{
	return mem_failed(node, mem_content_resize(content_of(node), size_bytes), NO_OFFSET, err);
}

static int mem_allocate(struct node *node, uint64_t bytes, uint64_t off, struct img_error *err)
{
	return mem_failed(node, mem_content_allocate(content_of(node), bytes, off), off, err);
}

static uint64_t mem_size(const struct node *node)
{
	return mem_content_size(content_of(node));
}

static void mem_limits(const struct node *node, struct driver_limits *out)
{
	(void)node;
	*out = (struct driver_limits){
		.request_align = 1, .block_bytes = 1, .optimal_bytes = MEM_PAGE_BYTES, .max_size_bytes = MEM_MAX_BYTES
	};
}

static int mem_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		      size_t *nr, struct img_error *err)
{
	struct mem_content *content = content_of(node);
	uint64_t end = off + bytes;
	uint64_t end_page = round_up(end, MEM_PAGE_BYTES) / MEM_PAGE_BYTES;

	(void)err;
	*nr = 0;
	pthread_rwlock_rdlock(&content->lock);
	while (off < end && *nr < cap) {
		uint64_t page = off / MEM_PAGE_BYTES;
		uint64_t stop = mem_next_present(content, page, end_page);
		bool data = stop == page;

		if (data)
			stop = mem_next_absent(content, page, end_page);
		stop = min_u64(stop * MEM_PAGE_BYTES, end);
		out[(*nr)++] = (struct status_extent){
			.off = off,
			.bytes = stop - off,
			.kind = data ? STATUS_DATA : STATUS_ZERO,
			.host_off = data ? off : STATUS_NO_HOST,
		};
		off = stop;
	}
	pthread_rwlock_unlock(&content->lock);
	return 0;
}

static int mem_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	struct mem_content *content = content_of(node);

	(void)err;
	pthread_rwlock_rdlock(&content->lock);
	*out = (struct host_stat){
		.dev = UINT64_MAX, /* no host device; the address tells contents apart */
		.ino = (uint64_t)(uintptr_t)content,
		.mtime_ns = (int64_t)content->changes,
		.file_bytes = content->size,
		.allocated_bytes = content->nr_pages * MEM_PAGE_BYTES,
	};
	pthread_rwlock_unlock(&content->lock);
	return 0;
}

/* ---- locks ------------------------------------------------------------------------------------------------------- */

static bool held_by_others(const struct mem_content *content, const struct mem_opener *self, uint64_t byte,
			   enum byte_lock wanted)
{
	for (const struct mem_opener *o = content->openers; o != NULL; o = o->next) {
		for (const struct byte_held *h = o == self ? NULL : o->bytes; h != NULL; h = h->next) {
			if (h->byte == byte && (h->mode == BYTE_EXCLUSIVE || wanted == BYTE_EXCLUSIVE))
				return true;
		}
	}
	return false;
}

static void forget_byte(struct mem_opener *self, uint64_t byte)
{
	for (struct byte_held **p = &self->bytes; *p != NULL; p = &(*p)->next) {
		if ((*p)->byte == byte) {
			struct byte_held *h = *p;

			*p = h->next;
			free(h);
			return;
		}
	}
}

static int mem_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	struct mem_state *st = node->state;
	struct byte_held *held = NULL;
	int ret = 0;

	if (mode != BYTE_UNLOCK) {
		held = malloc(sizeof(*held));
		if (held == NULL)
			return mem_failed(node, IMG_E_NOMEM, NO_OFFSET, err);
		*held = (struct byte_held){ .byte = byte, .mode = mode };
	}
	pthread_mutex_lock(&st->content->openers_lock);
	if (held != NULL && held_by_others(st->content, &st->opener, byte, mode)) {
		ret = error_set(err, IMG_E_BUSY, 0, NO_OFFSET, MEM_LAYER, "%s: in use by another node", node->path);
		free(held);
	} else {
		forget_byte(&st->opener, byte);
		if (held != NULL) {
			held->next = st->opener.bytes;
			st->opener.bytes = held;
		}
	}
	pthread_mutex_unlock(&st->content->openers_lock);
	return ret;
}

static int mem_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	struct mem_state *st = node->state;
	int ret = 0;

	pthread_mutex_lock(&st->content->openers_lock);
	for (const struct mem_opener *o = st->content->openers; o != NULL; o = o->next) {
		if (o != &st->opener && ((o->forbid & use) || (o->use & forbid)))
			ret = IMG_E_BUSY;
	}
	if (ret == 0) {
		st->opener.use = use;
		st->opener.forbid = forbid;
	}
	pthread_mutex_unlock(&st->content->openers_lock);
	if (ret != 0)
		return error_set(err, ret, 0, NO_OFFSET, MEM_LAYER, "%s: another node has it open", node->path);
	return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int mem_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct mem_state *st = node->state;

	(void)err;
	node->writable = args->writable;
	pthread_mutex_lock(&st->content->openers_lock);
	st->opener.next = st->content->openers;
	st->content->openers = &st->opener;
	pthread_mutex_unlock(&st->content->openers_lock);
	return 0;
}

static int mem_close(struct node *node, struct img_error *err)
{
	struct mem_state *st = node->state;

	(void)err;
	pthread_mutex_lock(&st->content->openers_lock);
	while (st->opener.bytes != NULL)
		forget_byte(&st->opener, st->opener.bytes->byte);
	for (struct mem_opener **p = &st->content->openers; *p != NULL; p = &(*p)->next) {
		if (*p == &st->opener) {
			*p = st->opener.next;
			break;
		}
	}
	pthread_mutex_unlock(&st->content->openers_lock);
	mem_content_unref(st->content);
	return 0;
}

int mem_node_on(struct mem_content *content, const char *name, const struct host_open *args, struct node **out,
		struct img_error *err)
{
	struct driver_open open = { .writable = args->writable };
	struct node *node;
	struct mem_state *st;
	int ret;

	*out = NULL;
	node = node_new(&mem_driver, name, err);
	if (node == NULL)
		return IMG_E_NOMEM;
	st = node->state;
	st->content = mem_content_ref(content);
	ret = node_open(node, &open, err);
	if (ret != 0) {
		mem_content_unref(content);
		node_close(node, NULL);
		return ret;
	}
	ret = mem_share(node, args->use, args->forbid, err);
	if (ret != 0) {
		node_close(node, NULL);
		return ret;
	}
	*out = node;
	return 0;
}

int mem_node_new(const char *name, struct node **out, struct img_error *err)
{
	struct host_open args = { .writable = true };
	struct mem_content *content = mem_content_new();
	int ret;

	*out = NULL;
	if (content == NULL)
		return error_set(err, IMG_E_NOMEM, ENOMEM, NO_OFFSET, MEM_LAYER, "%s: no memory", name);
	ret = mem_node_on(content, name, &args, out, err);
	mem_content_unref(content);
	return ret;
}

struct mem_content *mem_share_content(struct node *node)
{
	return mem_content_ref(content_of(node));
}

struct mem_content *mem_snapshot(struct node *node)
{
	return mem_content_clone(content_of(node));
}

int mem_restore(struct node *node, struct mem_content *from)
{
	struct mem_content *content = content_of(node);
	struct mem_content *copy = mem_content_clone(from);
	struct mem_table *root;

	if (copy == NULL)
		return IMG_E_NOMEM;
	/* Trade trees with the copy, which then takes the old one along. */
	pthread_rwlock_wrlock(&content->lock);
	root = content->root;
	content->root = copy->root;
	content->size = copy->size;
	content->nr_pages = copy->nr_pages;
	content->changes++;
	pthread_rwlock_unlock(&content->lock);
	copy->root = root;
	mem_content_unref(copy);
	return 0;
}

const struct img_driver mem_driver = {
	.name = "mem",
	.kind = DRIVER_PROTOCOL,
	.state_bytes = sizeof(struct mem_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_RESIZE | IMG_CAP_DISCARD,
	.open = mem_open,
	.close = mem_close,
	.size = mem_size,
	.limits = mem_limits,
	.pread = mem_pread,
	.pwrite = mem_pwrite,
	.zero = mem_zero,
	.discard = mem_discard,
	.flush = mem_flush,
	.status = mem_status,
	.resize = mem_resize,
	.stat = mem_stat,
	.allocate = mem_allocate,
	.lock_byte = mem_lock_byte,
	.share = mem_share,
};
