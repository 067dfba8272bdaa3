/* SPDX-License-Identifier: MIT */
/*
 * Where a DMG's tables are: in a property list (XML), as base64 under the key Data of each member of the array blkx;
 * or, in images from before 2003, in a resource fork, as entries that begin with their length. Both are read whole,
 * under a limit. Of the property list nothing else is looked at.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "dmg.h"
#include "error.h"
#include "xml.h"

#define LAYER "dmg"
#define LIST_MAX_BYTES \
	(UINT64_C(64) << 20) /* a disk of 64 TiB in pieces of 1 MiB has 3.4 GiB: such a one was never made */
#define KEY_BYTES	32u
#define RESOURCE_HEADER 16u

static int corrupt(const char *path, uint64_t at, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, at, LAYER, "%s: %s", path, what);
}

int dmg_read_trailer(struct node *file, const char *path, struct disk_dmg_trailer *out, struct img_error *err)
{
	uint64_t size = node_size(file), at;
	uint8_t head[8] = { 0 };
	int ret = size < sizeof(head) ? 0 : node_pread(file, head, sizeof(head), 0, 0, err);

	if (ret != 0)
		return ret;
	if (memcmp(head, "encrcdsa", 8) == 0)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 0, LAYER, "%s: encrypted DMG images are not read", path);
	if (size < sizeof(*out))
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: too short for a DMG image", path);
	at = size - sizeof(*out);
	ret = node_pread(file, out, sizeof(*out), at, 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(out->magic, "koly", 4) != 0)
		return error_set(err, IMG_E_FORMAT, 0, at, LAYER, "%s: there is no DMG trailer at the end", path);
	if (be32_get(out->version) != 4 || be32_get(out->header_bytes) != sizeof(*out))
		return error_set(err, IMG_E_UNSUPPORTED, 0, at + 4, LAYER,
				 "%s: a DMG trailer of version %" PRIu32 " with %" PRIu32
				 " bytes; version 4 with 512 is known",
				 path, be32_get(out->version), be32_get(out->header_bytes));
	if (be32_get(out->nr_segments) > 1)
		return error_set(err, IMG_E_UNSUPPORTED, 0, at + 60, LAYER,
				 "%s: part %" PRIu32 " of %" PRIu32 "; a DMG image in parts is not read", path,
				 be32_get(out->segment), be32_get(out->nr_segments));
	return 0;
}

/* Reads [off, off + bytes) of the file; *out is the caller's. */
static int read_list(struct node *file, const char *path, uint64_t off, uint64_t bytes, struct budget *budget,
		     char **out, struct img_error *err)
{
	int ret;

	*out = NULL;
	if (bytes == 0 || !range_inside(off, bytes, node_size(file)))
		return corrupt(path, off, "the list of tables lies outside the file", err);
	if (bytes > LIST_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, off, LAYER,
				 "%s: the list of tables has %" PRIu64 " bytes, more than 64 MiB", path, bytes);
	ret = budget_metadata(budget, path, bytes, err);
	if (ret != 0)
		return ret;
	*out = malloc((size_t)bytes);
	if (!*out)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", path);
	ret = node_pread(file, *out, bytes, off, 0, err);
	if (ret != 0) {
		free(*out);
		*out = NULL;
	}
	return ret;
}

/* at: of the file, for the message. */
static int judge_table(const char *path, const void *data, size_t bytes, uint64_t at, struct dmg_table *out,
		       struct img_error *err)
{
	const struct disk_dmg_table *head = data;

	if (bytes < sizeof(*head) || memcmp(head->magic, "mish", 4) != 0)
		return corrupt(path, at, "there is no table of pieces where one should be", err);
	*out = (struct dmg_table){
		.head = head,
		.runs = (const struct disk_dmg_run *)(head + 1),
		.nr_runs = be32_get(head->nr_runs),
	};
	if (out->nr_runs > (bytes - sizeof(*head)) / sizeof(*out->runs))
		return corrupt(path, at, "a table of pieces is shorter than it says", err);
	return 0;
}

/* ---- the property list ------------------------------------------------------------------------------------------- */

struct walk {
	const char *path;
	const char *text;
	uint64_t at; /* of text in the file */
	dmg_table_fn fn;
	void *ctx;
	struct xml x;
	char key[KEY_BYTES]; /* the last one; "" if it was longer */
	unsigned array;	     /* depth of the array under the key blkx; 0: outside */
	uint8_t *data;	     /* decoded; has room for the longest text */
	size_t data_bytes;
	uint32_t bits; /* of base64 that are not a byte yet */
	unsigned nr_bits;
	bool padded;
};

static int sextet(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == '+')
		return 62;
	return c == '/' ? 63 : -1;
}

/* Base64, RFC 4648, with blanks between; there may be several parts. */
static bool add_base64(struct walk *w, const char *text, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		int value = sextet(text[i]);

		if (text[i] == ' ' || text[i] == '\t' || text[i] == '\r' || text[i] == '\n')
			continue;
		if (text[i] == '=') {
			w->padded = true;
			continue;
		}
		if (value < 0 || w->padded)
			return false;
		w->bits = w->bits << 6 | (uint32_t)value;
		w->nr_bits += 6;
		if (w->nr_bits >= 8) {
			w->nr_bits -= 8;
			w->data[w->data_bytes++] = (uint8_t)(w->bits >> w->nr_bits);
		}
	}
	return true;
}

static uint64_t place(const struct walk *w)
{
	return w->at + (uint64_t)(w->x.at - w->text);
}

static int bad_list(const struct walk *w, struct img_error *err)
{
	return error_set(err, IMG_E_CORRUPT, 0, place(w), LAYER, "%s: the property list is damaged at 0x%" PRIx64,
			 w->path, place(w));
}

/* Everything up to the end of <data>. */
static int take_table(struct walk *w, struct img_error *err)
{
	struct dmg_table table;
	enum xml_event event;
	int ret;

	w->data_bytes = 0;
	w->nr_bits = 0;
	w->padded = false;
	while ((event = xml_next(&w->x)) == XML_TEXT) {
		if (!add_base64(w, w->x.text.text, w->x.text.bytes))
			return bad_list(w, err);
	}
	if (event != XML_CLOSE)
		return bad_list(w, err);
	ret = judge_table(w->path, w->data, w->data_bytes, place(w), &table, err);
	return ret ? ret : w->fn(w->ctx, &table, err);
}

/* <key> was opened. */
static int take_key(struct walk *w, struct img_error *err)
{
	enum xml_event event = xml_next(&w->x);

	w->key[0] = '\0';
	if (event == XML_TEXT) {
		if (xml_decode(&w->x, w->key, sizeof(w->key)) < 0)
			w->key[0] = '\0';
		event = xml_next(&w->x);
	}
	return event == XML_CLOSE ? 0 : bad_list(w, err);
}

static int take_element(struct walk *w, struct img_error *err)
{
	if (xml_is(w->x.name, "key"))
		return take_key(w, err);
	if (w->array == 0 && xml_is(w->x.name, "array") && strcmp(w->key, "blkx") == 0)
		w->array = w->x.depth;
	if (w->array != 0 && xml_is(w->x.name, "data") && strcmp(w->key, "Data") == 0)
		return take_table(w, err);
	return 0;
}

static int walk_list(struct walk *w, uint64_t bytes, struct img_error *err)
{
	enum xml_event event;
	int ret = 0;

	xml_start(&w->x, w->text, (size_t)bytes);
	while (ret == 0 && (event = xml_next(&w->x)) != XML_DONE) {
		if (event == XML_BAD)
			return bad_list(w, err);
		if (event == XML_OPEN)
			ret = take_element(w, err);
		if (event == XML_CLOSE && w->array > w->x.depth)
			w->array = 0;
	}
	return ret;
}

static int each_in_list(struct node *file, const char *path, const struct disk_dmg_trailer *t, struct budget *budget,
			dmg_table_fn fn, void *ctx, struct img_error *err)
{
	uint64_t off = be64_get(t->list_off), bytes = be64_get(t->list_bytes);
	struct walk *w = calloc(1, sizeof(*w));
	char *text = NULL;
	int ret = w ? read_list(file, path, off, bytes, budget, &text, err) : IMG_E_NOMEM;

	if (ret == 0) {
		*w = (struct walk){ .path = path, .text = text, .at = off, .fn = fn, .ctx = ctx };
		w->data = malloc((size_t)bytes);
		ret = w->data ? walk_list(w, bytes, err) : IMG_E_NOMEM;
	}
	if (ret == IMG_E_NOMEM)
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "%s: out of memory", path);
	free(text);
	if (w)
		free(w->data);
	free(w);
	return ret;
}

/* ---- the resource fork ------------------------------------------------------------------------------------------- */

/* Header: where the resources and their map are. The resources alone are read: tables say themselves what they are. */
static int walk_fork(const char *path, const uint8_t *fork, uint64_t bytes, uint64_t at, dmg_table_fn fn, void *ctx,
		     struct img_error *err)
{
	uint64_t off = be32_at(fork, 0), end;
	int ret = 0;

	if (!range_inside(off, be32_at(fork, 8), bytes))
		return corrupt(path, at, "the resources lie outside their fork", err);
	end = off + be32_at(fork, 8);
	while (ret == 0 && end - off >= 4) {
		uint64_t length = be32_at(fork, (size_t)off);
		const uint8_t *data = fork + off + 4;
		struct dmg_table table;

		if (length > end - off - 4)
			return corrupt(path, at + off, "a resource reaches beyond its fork", err);
		if (length >= 4 && memcmp(data, "mish", 4) == 0) {
			ret = judge_table(path, data, (size_t)length, at + off, &table, err);
			if (ret == 0)
				ret = fn(ctx, &table, err);
		}
		off += 4 + length;
	}
	return ret;
}

static int each_in_fork(struct node *file, const char *path, const struct disk_dmg_trailer *t, struct budget *budget,
			dmg_table_fn fn, void *ctx, struct img_error *err)
{
	uint64_t off = be64_get(t->resource_off), bytes = be64_get(t->resource_bytes);
	char *fork;
	int ret = read_list(file, path, off, bytes, budget, &fork, err);

	if (ret != 0)
		return ret;
	if (bytes < RESOURCE_HEADER)
		ret = corrupt(path, off, "the resource fork is too short", err);
	else
		ret = walk_fork(path, (const uint8_t *)fork, bytes, off, fn, ctx, err);
	free(fork);
	return ret;
}

int dmg_each_table(struct node *file, const char *path, const struct disk_dmg_trailer *t, struct budget *budget,
		   dmg_table_fn fn, void *ctx, struct img_error *err)
{
	if (be64_get(t->list_bytes) > 0)
		return each_in_list(file, path, t, budget, fn, ctx, err);
	return each_in_fork(file, path, t, budget, fn, ctx, err);
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

/* How a run is packed. false: unknown. */
static bool set_kind(uint32_t type, struct chunk *out)
{
	switch (type) {
	case DMG_ZERO:
	case DMG_IGNORE: out->kind = CHUNK_ZERO; return true;
	case DMG_PLAIN: out->kind = CHUNK_PLAIN; return true;
	case DMG_ADC:
		out->codec = CODEC_ADC;
		out->what = "ADC";
		break;
	case DMG_ZLIB:
		out->codec = CODEC_ZLIB;
		out->what = "zlib";
		break;
	case DMG_BZIP2:
		out->codec = CODEC_BZIP2;
		out->what = "bzip2";
		break;
	case DMG_LZFSE:
		out->codec = CODEC_LZFSE;
		out->what = "LZFSE";
		break;
	case DMG_XZ:
		out->codec = CODEC_XZ;
		out->what = "xz";
		break;
	default: return false;
	}
	out->kind = codec_has(out->codec) ? CHUNK_PACKED : CHUNK_UNREADABLE;
	return true;
}

/* Sum of offsets that a table, a run and the trailer give, each unbounded. */
static bool sum_overflows(uint64_t a, uint64_t b, uint64_t c, uint64_t *out)
{
	return add_overflows(a, b, out) || add_overflows(*out, c, out);
}

int dmg_chunk_of(const char *path, const struct disk_dmg_trailer *t, const struct dmg_table *table, uint32_t run,
		 struct chunk *out, struct img_error *err)
{
	const struct disk_dmg_run *r = &table->runs[run];
	uint32_t type = be32_get(r->type);
	uint64_t sector;

	memset(out, 0, sizeof(*out));
	if (type == DMG_COMMENT || type == DMG_END)
		return 0;
	if (!set_kind(type, out))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "%s: a piece of the unknown type 0x%08" PRIx32, path, type);
	if (add_overflows(be64_get(table->head->first_sector), be64_get(r->first_sector), &sector) ||
	    mul_overflows(sector, DMG_SECTOR_BYTES, &out->off) ||
	    mul_overflows(be64_get(r->nr_sectors), DMG_SECTOR_BYTES, &out->bytes))
		return corrupt(path, NO_OFFSET, "a piece of the disk lies beyond everything", err);
	if (out->kind == CHUNK_ZERO)
		return 1;
	out->host_bytes = be64_get(r->bytes);
	if (sum_overflows(be64_get(t->data_off), be64_get(table->head->data_off), be64_get(r->off), &out->host_off))
		return corrupt(path, NO_OFFSET, "a piece lies beyond the file", err);
	return 1;
}
