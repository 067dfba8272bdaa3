/* SPDX-License-Identifier: MIT */
/* What drivers of such formats have in common: members for their tables, and the check of the pieces. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "chunks.h"
#include "error.h"
#include "inspect.h"

#define LAYER "chunks"

static struct chunks *of(const struct node *node)
{
	return ((const struct chunks_state *)node->state)->chunks;
}

int chunks_node_open(struct node *node, const struct driver_open *args, chunks_load_fn load, struct img_error *err)
{
	const struct chunks_source src = { .file = node->file, .path = node->path, .budget = args->budget };
	struct chunks_state *state = node->state;
	int ret;

	state->chunks = chunks_new(args->budget, node->path, err);
	if (!state->chunks)
		return IMG_E_NOMEM;
	ret = load(&src, state, err);
	if (ret == 0)
		ret = budget_expansion(args->budget, node->path, chunks_mapped_bytes(state->chunks),
				       node_size(node->file), err);
	if (ret != 0)
		chunks_free(state->chunks);
	return ret;
}

/* What load refused, as a finding; what else failed is an error. */
static int tell(struct inspector *in, int ret, const struct img_error *why, struct img_error *err)
{
	size_t path = strlen(in->path);
	/* The finding names the file itself. */
	const char *msg = strncmp(why->msg, in->path, path) == 0 && strncmp(why->msg + path, ": ", 2) == 0 ?
				  why->msg + path + 2 :
				  why->msg;

	switch (ret) {
	case IMG_E_FORMAT: inspect_found(in, INSPECT_BAD_HEADER, why->offset, "%s", msg); return 0;
	case IMG_E_CORRUPT: inspect_found(in, INSPECT_ENTRY_BOUNDS, why->offset, "%s", msg); return 0;
	case IMG_E_UNSUPPORTED: inspect_found(in, INSPECT_UNKNOWN_FEATURE, why->offset, "%s", msg); return 0;
	case IMG_E_LIMIT: inspect_found(in, INSPECT_LIMIT, why->offset, "%s", msg); return 0;
	default:
		if (err)
			*err = *why;
		return ret;
	}
}

int chunks_inspect(struct node *file, struct inspector *in, chunks_load_fn load, struct chunks_state *state,
		   struct img_error *err)
{
	const struct chunks_source src = { .file = file, .path = in->path, .budget = &in->budget };
	struct img_error why = { 0 };
	int ret;

	state->chunks = chunks_new(&in->budget, in->path, err);
	if (!state->chunks)
		return IMG_E_NOMEM;
	ret = load(&src, state, &why);
	if (ret == 0) {
		in->out->virtual_bytes = chunks_size(state->chunks);
		inspect_limit(in, BUDGET_VIRTUAL, chunks_size(state->chunks), 0);
		inspect_expansion(in, chunks_mapped_bytes(state->chunks), node_size(file), 0, "the disk");
	} else {
		ret = tell(in, ret, &why, err);
	}
	chunks_free(state->chunks);
	return ret;
}

uint64_t chunks_node_size(const struct node *node)
{
	return chunks_size(of(node));
}

int chunks_node_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return chunks_read(of(node), node->file, buf, bytes, off, err);
}

int chunks_node_status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap,
		       size_t *nr, struct img_error *err)
{
	(void)err;
	return chunks_status(of(node), bytes, off, out, cap, nr);
}

int chunks_node_close(struct node *node, struct img_error *err)
{
	(void)err;
	chunks_free(of(node));
	return 0;
}

void chunks_node_limits(const struct node *node, struct driver_limits *out)
{
	const struct chunks_state *s = node->state;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = s->block_bytes ? s->block_bytes : 1,
		.optimal_bytes = (uint32_t)max_u64(s->block_bytes, 1u << 20),
		.unit_bytes = s->packed ? s->block_bytes : 0,
		.max_size_bytes = INT64_MAX,
	};
}

int chunks_node_info(struct node *node, struct img_info *out, struct img_error *err)
{
	const struct chunks_state *s = node->state;

	(void)err;
	out->block_bytes = s->block_bytes;
	out->unit_bytes = s->packed ? s->block_bytes : 0;
	(void)snprintf(out->compression, sizeof(out->compression), "%s", s->packed ? s->packed : "none");
	out->has_uuid = s->has_uuid;
	memcpy(out->uuid, s->uuid, sizeof(out->uuid));
	out->used_bytes = chunks_host_bytes(s->chunks);
	return 0;
}

/* ---- check ------------------------------------------------------------------------------------------------------- */

void chunks_found(const struct chunks_check *k, const char *rule, const struct chunk *chunk, const char *msg)
{
	struct img_finding f = {
		.kind = IMG_FINDING_DAMAGE,
		.file_off = chunk && chunk->kind != CHUNK_ZERO ? chunk->host_off : NO_OFFSET,
		.guest_off = chunk ? chunk->off : NO_OFFSET,
	};

	k->out->damage++;
	if (!k->fn)
		return;
	(void)snprintf(f.rule, sizeof(f.rule), "%s", rule);
	(void)snprintf(f.msg, sizeof(f.msg), "%s", msg);
	k->fn(k->ctx, &f);
}

static int report(struct node *node, const struct chunks_check *k, uint64_t done, struct img_error *err)
{
	if (!k->progress || !k->progress->fn || k->progress->fn(k->progress->ctx, done, chunks_size(of(node))) == 0)
		return 0;
	return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "%s: cancelled", node->path);
}

/* What is damaged is told and is no error. *data: buf, or NULL. */
static int read_part(struct node *node, const struct chunks_check *k, const struct chunk *part, uint8_t *buf,
		     const uint8_t **data, struct img_error *err)
{
	struct img_error why = { 0 };
	int ret;

	*data = NULL;
	if (part->kind != CHUNK_PLAIN && part->kind != CHUNK_PACKED)
		return 0;
	ret = chunks_expand(of(node), node->file, part, buf, &why);
	if (ret == IMG_E_CORRUPT || ret == IMG_E_IO) {
		chunks_found(k, k->rule, part, why.msg);
		return 0;
	}
	if (ret != 0) {
		if (err)
			*err = why;
		return ret;
	}
	k->out->data_bytes += part->bytes;
	*data = buf;
	return 0;
}

int chunks_check_one(struct node *node, const struct chunks_check *k, const struct chunk *chunk, uint8_t *buf,
		     chunks_part_fn fn, void *ctx, struct img_error *err)
{
	uint64_t most = chunk->kind == CHUNK_PACKED ? chunk->bytes : CHUNKS_PART_BYTES;
	struct chunk part = *chunk;
	struct img_error why = { 0 };
	const uint8_t *data;
	int ret = 0;

	/* It may come from tables that were read once more, of a file that somebody changed. */
	if (chunk_judge(chunk, node_size(node->file), node->path, NO_OFFSET, &why) != 0) {
		chunks_found(k, k->rule, chunk, why.msg);
		return 0;
	}
	for (uint64_t done = 0; done < chunk->bytes && ret == 0; done += part.bytes) {
		part.off = chunk->off + done;
		part.bytes = min_u64(chunk->bytes - done, most);
		if (chunk->kind == CHUNK_PLAIN) {
			part.host_off = chunk->host_off + done;
			part.host_bytes = part.bytes;
		}
		ret = read_part(node, k, &part, buf, &data, err);
		if (ret == 0 && fn)
			fn(ctx, data, part.bytes);
		if (ret == 0)
			ret = report(node, k, part.off + part.bytes, err);
	}
	return ret;
}

int chunks_node_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		      const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	const struct chunks_state *s = node->state;
	const struct chunks_check k = { .rule = s->rule, .fn = fn, .ctx = ctx, .progress = progress, .out = out };
	const struct chunk *chunk;
	uint8_t *buf;
	int ret = 0;

	out->metadata_bytes = s->metadata_bytes;
	if (flags & IMG_CHECK_METADATA)
		return 0;
	buf = malloc(CHUNK_MAX_BYTES); /* touched as far as a piece reaches */
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", node->path);
	for (size_t i = 0; ret == 0 && (chunk = chunks_at(s->chunks, i)) != NULL; i++) {
		if (chunk->kind != CHUNK_ZERO)
			ret = chunks_check_one(node, &k, chunk, buf, NULL, NULL, err);
	}
	free(buf);
	return ret;
}
