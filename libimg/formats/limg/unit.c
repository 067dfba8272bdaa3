/* SPDX-License-Identifier: MIT */
/*
 * Compressed units: an aligned stretch of blocks stored as one frame. format-spec/limg.md section 6. A small cache of
 * expanded units serves reads of single blocks; whole-unit reads expand into the caller's buffer. What leaves here is
 * always verified against the checksums of the entries, so a stale cache slot (its space was reused) is only ever a
 * miss.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine.h"

int units_init(struct unit_cache *u)
{
	pthread_mutex_init(&u->lock, NULL);
	return 0;
}

void units_destroy(struct unit_cache *u)
{
	for (unsigned i = 0; i < NR_UNIT_SLOTS; i++)
		free(u->slot[i].data);
	while (u->nr_ctx)
		codec_ctx_free(u->ctx[--u->nr_ctx]);
	while (u->nr_buf)
		free(u->buf[--u->nr_buf]);
	pthread_mutex_destroy(&u->lock);
}

struct codec_ctx *units_ctx_get(struct engine *e)
{
	struct codec_ctx *ctx = NULL;

	pthread_mutex_lock(&e->units.lock);
	if (e->units.nr_ctx)
		ctx = e->units.ctx[--e->units.nr_ctx];
	pthread_mutex_unlock(&e->units.lock);
	return ctx ? ctx : codec_ctx_new();
}

void units_ctx_put(struct engine *e, struct codec_ctx *ctx)
{
	if (!ctx)
		return;
	pthread_mutex_lock(&e->units.lock);
	if (e->units.nr_ctx < 16) {
		e->units.ctx[e->units.nr_ctx++] = ctx;
		ctx = NULL;
	}
	pthread_mutex_unlock(&e->units.lock);
	if (ctx)
		codec_ctx_free(ctx);
}

/* Room for two units. */
uint8_t *units_buf_get(struct engine *e)
{
	uint8_t *buf = NULL;

	pthread_mutex_lock(&e->units.lock);
	if (e->units.nr_buf)
		buf = e->units.buf[--e->units.nr_buf];
	pthread_mutex_unlock(&e->units.lock);
	return buf ? buf : malloc((size_t)e->unit_bytes * 2);
}

void units_buf_put(struct engine *e, uint8_t *buf)
{
	if (!buf)
		return;
	pthread_mutex_lock(&e->units.lock);
	if (e->units.nr_buf < 16) {
		e->units.buf[e->units.nr_buf++] = buf;
		buf = NULL;
	}
	pthread_mutex_unlock(&e->units.lock);
	free(buf);
}

/* ---- storing ---- */

/* Compresses plain into buf (header included). Returns the stored length in AUs, 0 where nothing would be saved. */
static unsigned unit_pack(struct engine *e, enum codec_id codec, int level, const uint8_t *plain, uint8_t *buf, int *rc)
{
	struct codec_ctx *ctx = units_ctx_get(e);
	struct disk_unit *h = (struct disk_unit *)buf;
	size_t cap = e->unit_bytes - AU_BYTES - sizeof *h, bytes = 0;
	unsigned aus;
	int fit;

	if (!ctx) {
		*rc = IMG_E_NOMEM;
		return 0;
	}
	fit = codec_compress(ctx, codec, level, plain, e->unit_bytes, buf + sizeof *h, cap, &bytes);
	units_ctx_put(e, ctx);
	*rc = fit < 0 ? fit : 0;
	if (fit)
		return 0;
	h->payload_bytes = le32_of((uint32_t)bytes);
	h->zero = le32_of(0);
	h->csum = le64_of(XXH3_64bits(buf + sizeof *h, bytes));
	aus = (unsigned)((sizeof *h + bytes + AU_BYTES - 1) / AU_BYTES);
	memset(buf + sizeof *h + bytes, 0, (size_t)aus * AU_BYTES - sizeof *h - bytes);
	return aus;
}

int unit_store(struct engine *e, unsigned vol, uint64_t first_block, const uint8_t *plain, struct entry *en,
	       bool *stored, struct img_error *err)
{
	enum codec_id codec = e->codec == CODEC_NONE ? CODEC_ZSTD : e->codec;
	uint8_t *buf = units_buf_get(e);
	uint64_t addr, got;
	unsigned aus;
	int rc = 0;

	(void)vol;
	(void)first_block;
	*stored = false;
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	aus = unit_pack(e, codec, e->level, plain, buf, &rc);
	if (rc)
		rc = error_set(err, rc, 0, NO_OFFSET, LAYER, "the %s codec failed", codec_name(codec));
	if (!rc && aus) {
		rc = space_alloc_data(e, aus, true, &addr, &got, err);
		if (!rc) {
			rc = space_write_data(e, buf, (uint64_t)aus * AU_BYTES, addr, err);
			if (rc)
				space_free(e, addr, aus);
		}
		if (!rc) {
			for (unsigned i = 0; i < e->unit_blocks; i++) {
				uint64_t c = block_csum(plain + (size_t)i * e->block_bytes, e->block_bytes);

				en[i].word = word_make(addr, 0, codec == CODEC_ZSTD ? ST_ZSTD : ST_DEFLATE);
				en[i].csum = (c & ~UINT64_C(0xff)) | aus;
			}
			*stored = true;
		}
	}
	units_buf_put(e, buf);
	return rc;
}

/* ---- reading ---- */

int unit_expand(struct engine *e, const struct entry *en, uint8_t *plain, struct img_error *err)
{
	uint64_t at = au_off(word_addr(en->word)), bytes = (uint64_t)entry_unit_aus(en) * AU_BYTES;
	uint8_t *buf;
	const struct disk_unit *h;
	struct codec_ctx *ctx;
	uint32_t payload;
	int rc;

	if (at + bytes > node_size(e->file))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "a compressed unit lies beyond the end of the file (LIMG-3)");
	buf = units_buf_get(e);
	ctx = units_ctx_get(e);
	if (!buf || !ctx) {
		rc = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		goto out;
	}
	rc = node_pread(e->file, buf, bytes, at, 0, err);
	if (rc)
		goto out;
	h = (const struct disk_unit *)buf;
	payload = le32_get(h->payload_bytes);
	if (payload == 0 || payload > bytes - sizeof *h || le32_get(h->zero) ||
	    XXH3_64bits(buf + sizeof *h, payload) != le64_get(h->csum)) {
		rc = error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "a compressed unit is damaged (LIMG-12)");
		goto out;
	}
	rc = codec_expand(ctx, word_state(en->word) == ST_ZSTD ? CODEC_ZSTD : CODEC_DEFLATE, buf + sizeof *h, payload,
			  plain, e->unit_bytes);
	if (rc)
		rc = error_set(err, rc == IMG_E_NOMEM ? rc : IMG_E_CORRUPT, 0, at, LAYER,
			       "a compressed unit does not expand (LIMG-12)");
out:
	units_ctx_put(e, ctx);
	units_buf_put(e, buf);
	return rc;
}

static bool blocks_match(const struct engine *e, const struct entry *en, unsigned nr, const uint8_t *data,
			 unsigned *bad)
{
	for (unsigned i = 0; i < nr; i++)
		if (!csum_matches(&en[i], block_csum(data + (size_t)i * e->block_bytes, e->block_bytes))) {
			*bad = i;
			return false;
		}
	return true;
}

static bool cached_read(struct engine *e, const struct entry *en, unsigned skip, unsigned nr, uint8_t *buf)
{
	struct unit_cache *u = &e->units;
	bool found = false;
	unsigned bad;

	pthread_mutex_lock(&u->lock);
	for (unsigned i = 0; i < NR_UNIT_SLOTS; i++)
		if (u->slot[i].data && u->slot[i].addr == word_addr(en->word)) {
			memcpy(buf, u->slot[i].data + (size_t)skip * e->block_bytes, (size_t)nr * e->block_bytes);
			u->slot[i].stamp = ++u->clock;
			found = true;
			break;
		}
	pthread_mutex_unlock(&u->lock);
	return found && blocks_match(e, en, nr, buf, &bad);
}

/* Takes over plain. */
static void cache_plain(struct engine *e, uint64_t addr, uint8_t *plain)
{
	struct unit_cache *u = &e->units;
	struct unit_slot *slot = &u->slot[0];

	pthread_mutex_lock(&u->lock);
	for (unsigned i = 0; i < NR_UNIT_SLOTS; i++) {
		if (u->slot[i].data && u->slot[i].addr == addr) {
			slot = &u->slot[i];
			break;
		}
		if (u->slot[i].stamp < slot->stamp)
			slot = &u->slot[i];
	}
	free(slot->data);
	*slot = (struct unit_slot){ addr, ++u->clock, plain };
	pthread_mutex_unlock(&u->lock);
}

int unit_read(struct engine *e, const struct entry *en, unsigned skip, unsigned nr, uint8_t *buf, struct img_error *err)
{
	bool whole = nr == e->unit_blocks;
	uint8_t *plain = buf;
	unsigned bad;
	int rc;

	if (!whole) {
		if (cached_read(e, en, skip, nr, buf))
			return 0;
		plain = malloc(e->unit_bytes);
		if (!plain)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	rc = unit_expand(e, en, plain, err);
	if (!whole && !rc)
		memcpy(buf, plain + (size_t)skip * e->block_bytes, (size_t)nr * e->block_bytes);
	if (!rc && !blocks_match(e, en, nr, buf, &bad))
		rc = error_set(err, IMG_E_CORRUPT, 0, au_off(word_addr(en->word)), LAYER,
			       "the checksum of block %u of a compressed unit does not hold (LIMG-11)", skip + bad);
	if (!whole && !rc)
		cache_plain(e, word_addr(en->word), plain);
	else if (!whole)
		free(plain);
	return rc;
}
