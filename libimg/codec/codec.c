/* SPDX-License-Identifier: MIT */
/* The table of codecs, contexts, and the names that users give. */
#include "codec.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec_ops.h"
#include "libimg.h"

static const struct codec_ops *const codecs[] = {
	&codec_zstd,  &codec_deflate, &codec_deflate_4k, &codec_zlib, &codec_adc, &codec_lzfse,
#ifdef IMG_HAVE_BZIP2
	&codec_bzip2,
#endif
#ifdef IMG_HAVE_LZMA
	&codec_xz,
#endif
};

#define NR_CODECS (sizeof(codecs) / sizeof(codecs[0]))

struct codec_ctx {
	void *state[NR_CODECS]; /* by place in codecs[]; NULL until first used */
};

struct codec_ctx *codec_ctx_new(void)
{
	return calloc(1, sizeof(struct codec_ctx));
}

void codec_ctx_free(struct codec_ctx *ctx)
{
	if (!ctx)
		return;
	for (size_t i = 0; i < NR_CODECS; i++)
		if (ctx->state[i])
			codecs[i]->free_state(ctx->state[i]);
	free(ctx);
}

/* Finds the codec and makes sure that ctx has a state for it. */
static int prepare(struct codec_ctx *ctx, enum codec_id id, const struct codec_ops **ops, void **state)
{
	for (size_t i = 0; i < NR_CODECS; i++) {
		if (codecs[i]->id != id)
			continue;
		if (!ctx->state[i])
			ctx->state[i] = codecs[i]->new_state();
		if (!ctx->state[i])
			return IMG_E_NOMEM;
		*ops = codecs[i];
		*state = ctx->state[i];
		return 0;
	}
	return IMG_E_INVALID;
}

int codec_compress(struct codec_ctx *ctx, enum codec_id id, int level, const void *src, size_t src_bytes, void *dst,
		   size_t dst_cap, size_t *out)
{
	const struct codec_ops *ops;
	void *state;
	int r = prepare(ctx, id, &ops, &state);

	if (r < 0)
		return r;
	if (!ops->compress || level < 0 || level > ops->max_level)
		return IMG_E_INVALID;
	return ops->compress(state, level, src, src_bytes, dst, dst_cap, out);
}

int codec_expand(struct codec_ctx *ctx, enum codec_id id, const void *src, size_t src_bytes, void *dst,
		 size_t dst_bytes)
{
	const struct codec_ops *ops;
	void *state;
	int r = prepare(ctx, id, &ops, &state);

	if (r < 0)
		return r;
	return ops->expand(state, src, src_bytes, dst, dst_bytes);
}

int codec_expand_prefix(struct codec_ctx *ctx, enum codec_id id, const void *src, size_t src_bytes, void *dst,
			size_t dst_bytes)
{
	const struct codec_ops *ops;
	void *state;
	int r = prepare(ctx, id, &ops, &state);

	if (r < 0)
		return r;
	if (!ops->expand_prefix)
		return IMG_E_INVALID;
	return ops->expand_prefix(state, src, src_bytes, dst, dst_bytes);
}

bool codec_has(enum codec_id id)
{
	for (size_t i = 0; i < NR_CODECS; i++) {
		if (codecs[i]->id == id)
			return true;
	}
	return id == CODEC_NONE;
}

const char *codec_name(enum codec_id id)
{
	if (id == CODEC_NONE)
		return "none";
	for (size_t i = 0; i < NR_CODECS; i++)
		if (codecs[i]->id == id)
			return codecs[i]->name;
	return "unknown";
}

static int parse_level(const char *text, int max_level, int *level)
{
	char *end;
	long value;

	if (*text < '0' || *text > '9') /* strtol() would also take blanks and signs */
		return -1;
	errno = 0;
	value = strtol(text, &end, 10);
	if (errno || *end || value < 1 || value > max_level)
		return -1;
	*level = (int)value;
	return 0;
}

int codec_parse(const char *text, enum codec_id *id, int *level)
{
	int found_level = 0;

	if (strcmp(text, "none") == 0) {
		*id = CODEC_NONE;
		*level = 0;
		return 0;
	}
	for (size_t i = 0; i < NR_CODECS; i++) {
		size_t len = strlen(codecs[i]->name);

		if (!codecs[i]->chosen_by_name || strncmp(text, codecs[i]->name, len) != 0)
			continue;
		if (text[len] != '\0' &&
		    (text[len] != ':' || parse_level(text + len + 1, codecs[i]->max_level, &found_level) < 0))
			return -1;
		*id = codecs[i]->id;
		*level = found_level;
		return 0;
	}
	return -1;
}
