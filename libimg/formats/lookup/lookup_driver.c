/* SPDX-License-Identifier: MIT */
/* What drivers of such formats have in common. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "inspect.h"
#include "lookup_int.h"

static struct lookup *of(const struct node *node)
{
	return node->state;
}

static int judge_expansion(struct lookup *l, const struct budget *budget, struct img_error *err)
{
	uint64_t bytes, bad;
	int ret;

	if (budget_expansion_fits(budget, l->disk_bytes, l->file_bytes))
		return 0;
	ret = lookup_mapped(l, INT64_MAX, &bytes, &bad, err);
	return ret ? ret : budget_expansion(budget, l->node->path, bytes, l->file_bytes, err);
}

int lookup_open(struct lookup *l, struct node *node, struct node *file, const struct budget *budget,
		struct img_error *err)
{
	int ret;

	l->node = node;
	l->file = file;
	ret = judge_expansion(l, budget, err);
	if (ret == 0)
		pthread_mutex_init(&l->lock, NULL);
	return ret;
}

int lookup_node_open(struct node *node, const struct budget *budget, struct img_error *err)
{
	return lookup_open(of(node), node, node->file, budget, err);
}

void lookup_close(struct lookup *l)
{
	for (size_t i = 0; i < LOOKUP_CODECS; i++)
		codec_ctx_free(l->codec[i]);
	free(l->kept);
	pthread_mutex_destroy(&l->lock);
}

int lookup_node_close(struct node *node, struct img_error *err)
{
	(void)err;
	lookup_close(of(node));
	return 0;
}

uint64_t lookup_node_size(const struct node *node)
{
	return of(node)->disk_bytes;
}

void lookup_limits(const struct lookup *l, struct driver_limits *out)
{
	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = (uint32_t)l->cluster_bytes,
		.optimal_bytes = 1u << 20,
		.unit_bytes = l->packed ? (uint32_t)l->cluster_bytes : 0,
		.max_size_bytes = INT64_MAX,
	};
}

void lookup_node_limits(const struct node *node, struct driver_limits *out)
{
	lookup_limits(of(node), out);
}

int lookup_node_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return lookup_pread(of(node), buf, bytes, off, err);
}

int lookup_node_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err)
{
	return lookup_status(of(node), bytes, off, out, cap, nr, err);
}

bool lookup_node_get_backing(struct node *node, struct backing_ref *out)
{
	const struct lookup *l = of(node);

	_Static_assert(sizeof(out->name) > LOOKUP_NAME_MAX, "a name fits");
	memset(out, 0, sizeof(*out));
	strcpy(out->name, l->backing);
	if (l->backing_format)
		strcpy(out->format, l->backing_format);
	return l->backing[0] != '\0';
}

int lookup_info(const struct lookup *l, struct img_info *out)
{
	out->block_bytes = (uint32_t)l->cluster_bytes;
	out->unit_bytes = l->packed ? (uint32_t)l->cluster_bytes : 0;
	out->dirty = l->dirty;
	strcpy(out->compression, l->packed ? l->packed : "none");
	return 0;
}

int lookup_node_info(struct node *node, struct img_info *out, struct img_error *err)
{
	(void)err;
	return lookup_info(of(node), out);
}

int lookup_node_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	return lookup_check(of(node), flags, fn, ctx, progress, out, err);
}

int lookup_read_backing(struct lookup *l, struct node *node, uint64_t off, uint64_t bytes, uint64_t at,
			struct img_error *err)
{
	int ret;

	if (bytes == 0 || bytes > LOOKUP_NAME_MAX || !range_inside(off, bytes, node_size(node->file)))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "%s: the name of the backing file has %" PRIu64 " bytes at 0x%" PRIx64, node->path,
				 bytes, off);
	ret = node_pread(node->file, l->backing, bytes, off, 0, err);
	if (ret == 0 && strlen(l->backing) != bytes)
		ret = error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the name of the backing file has a NUL in it",
				node->path);
	return ret;
}

/* ---- inspection -------------------------------------------------------------------------------------------------- */

int lookup_inspect_backing(struct inspector *in, struct node *file, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint8_t name[LOOKUP_NAME_MAX];
	size_t there = (size_t)min_u64(bytes, sizeof(name));
	int ret = inspect_read(file, name, there, off, err);

	if (ret != 0)
		return ret;
	if (bytes > sizeof(name) || !range_inside(off, bytes, node_size(file)))
		inspect_found(in, INSPECT_TABLE_BOUNDS, off, "the name of the backing file has %" PRIu64 " bytes",
			      bytes);
	inspect_reference(in, INSPECT_BACKING, name, there, off, "a backing file");
	return 0;
}

int lookup_inspect(struct lookup *l, struct node *file, struct inspector *in, struct img_error *err)
{
	struct node shell = { .path = (char *)(uintptr_t)in->path }; /* for the messages; not written to */
	uint64_t bytes, bad;
	int ret;

	l->node = &shell;
	l->file = file;
	ret = lookup_mapped(l, INT64_MAX, &bytes, &bad, err);
	l->node = NULL;
	if (ret != 0)
		return ret;
	if (bad > 0)
		inspect_found(in, INSPECT_ENTRY_BOUNDS, l->first_off, "%" PRIu64 " entries of its tables lead nowhere",
			      bad);
	inspect_expansion(in, bytes, l->file_bytes, l->first_off, "the disk");
	return 0;
}
