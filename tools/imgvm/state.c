/* SPDX-License-Identifier: MIT */
/*
 * Saved machine state (format-spec/machine-state.md, which numbers the rules MS-n): a header, then sections without
 * gaps. This file knows where sections lie and how integers are spelled, nothing of what they mean.
 *
 * Writing goes to the caller's buffer and never past it; what did not fit is noted and reported once, by
 * state_finish(). Reading checks the whole table first; after that a section is a range of bytes that cannot be left.
 */
#include "state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "fail.h"

/* "IMGVM", then what a transfer as text would change. */
static const uint8_t magic[8] = { 'I', 'M', 'G', 'V', 'M', 0x1a, '\r', '\n' };

enum {
	/* header */
	H_MAGIC = 0,
	H_VERSION = 8,
	H_NR_SECTIONS = 12,
	H_BYTES = 16,
	H_RESERVED = 24,
	HEADER_BYTES = STATE_HEADER_BYTES,
	/* header of a section */
	S_TAG = 0,
	S_INSTANCE = 4,
	S_VERSION = 8,
	S_RESERVED = 12,
	S_BYTES = 16,
	SECTION_BYTES = 24,
};

static void put_le(uint8_t *p, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_le(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

/* A tag as its four letters. */
static const char *tag_text(uint32_t tag, char text[5])
{
	for (unsigned i = 0; i < 4; i++) {
		uint8_t c = (uint8_t)(tag >> (8 * i));

		text[i] = c >= ' ' && c < 0x7f ? (char)c : '?';
	}
	text[4] = 0;
	return text;
}

/* ---- writing ---- */

/* Room for so many bytes; NULL when they do not fit. */
static uint8_t *take(struct state_writer *w, size_t bytes)
{
	uint8_t *p = w->buf + w->used;

	if (w->overflow || bytes > w->cap - w->used) {
		w->overflow = true;
		return NULL;
	}
	w->used += bytes;
	return p;
}

void state_start(struct state_writer *w, void *buf, size_t cap)
{
	uint8_t *p;

	*w = (struct state_writer){ .buf = buf, .cap = cap };
	p = take(w, HEADER_BYTES);
	if (p)
		memset(p, 0, HEADER_BYTES);
}

void state_begin(struct state_writer *w, uint32_t tag, uint32_t instance, uint32_t version)
{
	size_t at = w->used;
	uint8_t *p;

	assert(!w->section && version);
	w->section = at;
	if (++w->nr_sections > STATE_MAX_SECTIONS)
		w->overflow = true;
	p = take(w, SECTION_BYTES);
	if (!p)
		return;
	put_le(p + S_TAG, tag, 4);
	put_le(p + S_INSTANCE, instance, 4);
	put_le(p + S_VERSION, version, 4);
	put_le(p + S_RESERVED, 0, 4);
	put_le(p + S_BYTES, 0, 8);
}

void state_put(struct state_writer *w, const void *data, size_t bytes)
{
	uint8_t *p = take(w, bytes);

	if (p && bytes)
		memcpy(p, data, bytes);
}

static void put_int(struct state_writer *w, uint64_t v, unsigned bytes)
{
	uint8_t *p = take(w, bytes);

	if (p)
		put_le(p, v, bytes);
}

void state_put8(struct state_writer *w, uint8_t v)
{
	put_int(w, v, 1);
}

void state_put16(struct state_writer *w, uint16_t v)
{
	put_int(w, v, 2);
}

void state_put32(struct state_writer *w, uint32_t v)
{
	put_int(w, v, 4);
}

void state_put64(struct state_writer *w, uint64_t v)
{
	put_int(w, v, 8);
}

void state_end(struct state_writer *w)
{
	/* the place of the first section is behind the header, so that 0 can mean "none" unless nothing fits at all */
	assert(w->section || w->overflow);
	if (!w->overflow)
		put_le(w->buf + w->section + S_BYTES, w->used - w->section - SECTION_BYTES, 8);
	w->section = 0;
}

int state_finish(struct state_writer *w, size_t *bytes, struct img_error *err)
{
	assert(!w->section);
	if (w->overflow)
		return fail(err, IMG_E_LIMIT, "the machine's state does not fit into %zu bytes and %u sections", w->cap,
			    STATE_MAX_SECTIONS);
	memcpy(w->buf + H_MAGIC, magic, sizeof(magic));
	put_le(w->buf + H_VERSION, STATE_VERSION, 4);
	put_le(w->buf + H_NR_SECTIONS, w->nr_sections, 4);
	put_le(w->buf + H_BYTES, w->used, 8);
	*bytes = w->used;
	return 0;
}

/* ---- reading ---- */

int state_length(const void *header, size_t *out, struct img_error *err)
{
	const uint8_t *h = header;
	uint64_t bytes = get_le(h + H_BYTES, 8);

	if (memcmp(h + H_MAGIC, magic, sizeof(magic)))
		return fail(err, IMG_E_FORMAT, "this is not the state of a machine");
	if (get_le(h + H_VERSION, 4) > STATE_VERSION)
		return fail(err, IMG_E_UNSUPPORTED, "machine state of version %u, this program knows %u",
			    (unsigned)get_le(h + H_VERSION, 4), STATE_VERSION);
	if (get_le(h + H_VERSION, 4) != STATE_VERSION || get_le(h + H_RESERVED, 8))
		return fail(err, IMG_E_CORRUPT, "machine state: its header is damaged");
	if (bytes < HEADER_BYTES || bytes > STATE_AREA_BYTES)
		return fail(err, IMG_E_CORRUPT, "machine state: %llu bytes long", (unsigned long long)bytes);
	*out = (size_t)bytes;
	return 0;
}

/* The header: MS-1 to MS-4. */
static int parse_header(struct state *st, struct img_error *err)
{
	const uint8_t *h = st->buf;
	size_t bytes;
	int ret;

	if (st->bytes < sizeof(magic) || memcmp(h + H_MAGIC, magic, sizeof(magic)))
		return fail(err, IMG_E_FORMAT, "this is not the state of a machine");
	if (st->bytes < HEADER_BYTES)
		return fail(err, IMG_E_CORRUPT, "machine state: cut off in its header");
	ret = state_length(h, &bytes, err);
	if (ret)
		return ret;
	if (bytes > st->bytes)
		return fail(err, IMG_E_CORRUPT, "machine state: %llu bytes long, but %zu are there",
			    (unsigned long long)bytes, st->bytes);
	for (size_t i = bytes; i < st->bytes; i++)
		if (h[i])
			return fail(err, IMG_E_CORRUPT, "machine state: something follows its end");
	st->bytes = bytes;
	if (get_le(h + H_NR_SECTIONS, 4) > STATE_MAX_SECTIONS)
		return fail(err, IMG_E_CORRUPT, "machine state: %u sections", (unsigned)get_le(h + H_NR_SECTIONS, 4));
	st->nr_sections = (unsigned)get_le(h + H_NR_SECTIONS, 4);
	return 0;
}

/* Section i, whose header is at *off: MS-5 to MS-7. Moves *off behind it. */
static int parse_section(struct state *st, unsigned i, size_t *off, struct img_error *err)
{
	struct state_section *s = &st->section[i];
	const uint8_t *h = st->buf + *off;
	uint64_t bytes;
	char text[5];

	if (st->bytes - *off < SECTION_BYTES)
		return fail(err, IMG_E_CORRUPT, "machine state: section %u of %u is missing", i + 1, st->nr_sections);
	*s = (struct state_section){ .tag = (uint32_t)get_le(h + S_TAG, 4),
				     .instance = (uint32_t)get_le(h + S_INSTANCE, 4),
				     .version = (uint32_t)get_le(h + S_VERSION, 4),
				     .off = *off + SECTION_BYTES };
	bytes = get_le(h + S_BYTES, 8);
	if (!s->version || get_le(h + S_RESERVED, 4) || bytes > st->bytes - s->off)
		return fail(err, IMG_E_CORRUPT, "machine state: section '%s' %u is damaged", tag_text(s->tag, text),
			    s->instance);
	for (unsigned j = 0; j < i; j++)
		if (st->section[j].tag == s->tag && st->section[j].instance == s->instance)
			return fail(err, IMG_E_CORRUPT, "machine state: section '%s' %u is there twice",
				    tag_text(s->tag, text), s->instance);
	s->bytes = (size_t)bytes;
	*off = s->off + s->bytes;
	return 0;
}

int state_parse(struct state *out, const void *buf, size_t bytes, struct img_error *err)
{
	size_t off = HEADER_BYTES;
	int rc;

	*out = (struct state){ .buf = buf, .bytes = bytes };
	rc = parse_header(out, err);
	for (unsigned i = 0; !rc && i < out->nr_sections; i++)
		rc = parse_section(out, i, &off, err);
	if (!rc && off != out->bytes)
		rc = fail(err, IMG_E_CORRUPT, "machine state: %zu bytes belong to no section", out->bytes - off);
	if (rc)
		out->nr_sections = 0;
	return rc;
}

int state_open(struct state *st, uint32_t tag, uint32_t instance, uint32_t max_version, struct state_reader *out,
	       struct img_error *err)
{
	char text[5];

	*out = (struct state_reader){ .bad = true };
	for (unsigned i = 0; i < st->nr_sections; i++) {
		struct state_section *s = &st->section[i];

		if (s->tag != tag || s->instance != instance)
			continue;
		if (s->version > max_version)
			return fail(err, IMG_E_UNSUPPORTED,
				    "machine state: section '%s' %u has version %u, this program knows %u",
				    tag_text(tag, text), instance, s->version, max_version);
		s->taken = true;
		*out = (struct state_reader){ .at = st->buf + s->off,
					      .end = st->buf + s->off + s->bytes,
					      .version = s->version };
		return 0;
	}
	return fail(err, IMG_E_CORRUPT, "machine state: section '%s' %u is missing", tag_text(tag, text), instance);
}

void state_get(struct state_reader *r, void *data, size_t bytes)
{
	if (r->bad || bytes > state_left(r)) {
		r->bad = true;
		memset(data, 0, bytes);
		return;
	}
	if (bytes)
		memcpy(data, r->at, bytes);
	r->at += bytes;
}

static uint64_t get_int(struct state_reader *r, unsigned bytes)
{
	uint8_t raw[8];

	state_get(r, raw, bytes);
	return get_le(raw, bytes);
}

uint8_t state_get8(struct state_reader *r)
{
	return (uint8_t)get_int(r, 1);
}

uint16_t state_get16(struct state_reader *r)
{
	return (uint16_t)get_int(r, 2);
}

uint32_t state_get32(struct state_reader *r)
{
	return (uint32_t)get_int(r, 4);
}

uint64_t state_get64(struct state_reader *r)
{
	return get_int(r, 8);
}

size_t state_left(const struct state_reader *r)
{
	return r->bad ? 0 : (size_t)(r->end - r->at);
}

int state_done(const struct state_reader *r, const char *what, struct img_error *err)
{
	if (r->bad)
		return fail(err, IMG_E_CORRUPT, "machine state: %s is too short", what);
	if (state_left(r))
		return fail(err, IMG_E_CORRUPT, "machine state: %s is %zu bytes too long", what, state_left(r));
	return 0;
}

int state_all_taken(const struct state *st, struct img_error *err)
{
	char text[5];

	for (unsigned i = 0; i < st->nr_sections; i++)
		if (!st->section[i].taken)
			return fail(err, IMG_E_UNSUPPORTED,
				    "machine state: section '%s' %u belongs to a part that this machine does not have",
				    tag_text(st->section[i].tag, text), st->section[i].instance);
	return 0;
}
