/* SPDX-License-Identifier: MIT */
/* See patch.h. */
#include "patch.h"

#include <string.h>

#define PLACE_FIELD 0x08u

/* ---- the encoding ---- */

static void parse_patch(struct fuzz_patch *p, struct fuzz_input *in)
{
	unsigned head = (unsigned)fuzz_take(in, 1);

	*p = (struct fuzz_patch){ .kind = head & 7, .at_field = head & PLACE_FIELD, .width = head >> 4 & 3 };
	p->at = (uint32_t)fuzz_take(in, p->at_field ? 2 : 4);
	switch (p->kind) {
	case FUZZ_BYTES:
		p->length = (uint16_t)(fuzz_take(in, 1) % (FUZZ_PATCH_DATA_MAX + 1));
		for (unsigned i = 0; i < p->length; i++)
			p->data[i] = (uint8_t)fuzz_take(in, 1);
		break;
	case FUZZ_FILL:
		p->length = (uint16_t)fuzz_take(in, 2);
		p->value = (uint8_t)fuzz_take(in, 1);
		break;
	case FUZZ_COPY:
		p->from = (uint32_t)fuzz_take(in, 4);
		p->length = (uint16_t)fuzz_take(in, 2);
		break;
	case FUZZ_ADD: p->delta = (int16_t)fuzz_take(in, 2); break;
	case FUZZ_SET: p->value = (uint8_t)fuzz_take(in, 1); break;
	case FUZZ_TAKE: p->from = (uint32_t)fuzz_take(in, 2); break;
	default: break;
	}
}

void fuzz_case_parse(struct fuzz_case *c, const uint8_t *data, size_t bytes)
{
	struct fuzz_input in = { .at = data, .end = data + bytes };
	unsigned head = (unsigned)fuzz_take(&in, 1);

	memset(c, 0, sizeof(*c));
	c->fix = head & 7;
	c->number = (unsigned)fuzz_take(&in, 1);
	c->options = (uint16_t)fuzz_take(&in, 2);
	if (head & FUZZ_CASE_WHOLE) {
		c->whole = in.at;
		c->whole_bytes = (size_t)(in.end - in.at);
		return;
	}
	while (in.at < in.end && c->nr < FUZZ_PATCHES_MAX)
		parse_patch(&c->patch[c->nr++], &in);
}

struct writer {
	uint8_t *at;
	size_t left;
};

static bool put(struct writer *w, uint64_t value, unsigned bytes)
{
	if (w->left < bytes)
		return false;
	for (unsigned i = 0; i < bytes; i++)
		w->at[i] = (uint8_t)(value >> (8 * i));
	w->at += bytes;
	w->left -= bytes;
	return true;
}

static bool store_patch(const struct fuzz_patch *p, struct writer *w)
{
	bool ok = put(w, (unsigned)p->kind | (p->at_field ? PLACE_FIELD : 0) | (unsigned)p->width << 4, 1) &&
		  put(w, p->at, p->at_field ? 2 : 4);

	switch (p->kind) {
	case FUZZ_BYTES:
		ok = ok && put(w, p->length, 1) && w->left >= p->length;
		for (unsigned i = 0; ok && i < p->length; i++)
			ok = put(w, p->data[i], 1);
		return ok;
	case FUZZ_FILL: return ok && put(w, p->length, 2) && put(w, p->value, 1);
	case FUZZ_COPY: return ok && put(w, p->from, 4) && put(w, p->length, 2);
	case FUZZ_ADD: return ok && put(w, (uint16_t)p->delta, 2);
	case FUZZ_SET: return ok && put(w, p->value, 1);
	case FUZZ_TAKE: return ok && put(w, p->from, 2);
	default: return ok;
	}
}

size_t fuzz_case_store(const struct fuzz_case *c, uint8_t *out, size_t max)
{
	struct writer w = { .at = out, .left = max };

	if (max < FUZZ_CASE_HEAD_BYTES)
		return 0;
	put(&w, c->fix | (c->whole ? FUZZ_CASE_WHOLE : 0), 1);
	put(&w, c->number, 1);
	put(&w, c->options, 2);
	if (c->whole) {
		size_t bytes = c->whole_bytes < w.left ? c->whole_bytes : w.left;

		memmove(w.at, c->whole, bytes);
		return FUZZ_CASE_HEAD_BYTES + bytes;
	}
	for (unsigned i = 0; i < c->nr; i++) {
		struct writer before = w;

		if (!store_patch(&c->patch[i], &w)) {
			w = before;
			break;
		}
	}
	return max - w.left;
}

/* ---- what they do ---- */

uint64_t fuzz_value(uint8_t code, uint64_t old, uint64_t file_bytes)
{
	static const uint64_t common[] = { 0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 21, 22, 31, 63, 255, 511, 512, 4095, 4096 };

	if (code >= 192)
		return old ^ UINT64_C(1) << (code - 192);
	if (code >= 128)
		return (UINT64_C(1) << (code - 128)) - 1;
	if (code >= 64)
		return UINT64_C(1) << (code - 64);
	if (code < sizeof(common) / sizeof(common[0]))
		return common[code];
	switch (code) {
	case 32: return UINT64_MAX;
	case 33: return file_bytes;
	case 34: return file_bytes - 1;
	case 35: return file_bytes / 4096;
	case 36: return file_bytes / 512;
	case 37: return file_bytes & ~UINT64_C(511);
	case 38: return file_bytes - 4096;
	case 39: return ~old;
	case 40: return old * 2;
	case 41: return old / 2;
	case 42: return old + 4096;
	case 43: return old - 4096;
	case 44: return old + 512;
	case 45: return old - 512;
	case 46: return old << 32;
	default: return old + code;
	}
}

struct image {
	struct mem_content *content;
	const struct fuzz_template *t;
};

static uint64_t read_number(const struct image *im, uint32_t off, unsigned bytes)
{
	uint8_t b[8] = { 0 };
	uint64_t v = 0;

	mem_content_read(im->content, b, bytes, off);
	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)b[i] << 8 * (im->t->format->big_endian ? bytes - 1 - i : i);
	return v;
}

static void write_number(const struct image *im, uint32_t off, unsigned bytes, uint64_t v)
{
	uint8_t b[8];

	for (unsigned i = 0; i < bytes; i++)
		b[i] = (uint8_t)(v >> 8 * (im->t->format->big_endian ? bytes - 1 - i : i));
	FUZZ_CHECK(mem_content_write(im->content, b, bytes, off) == 0);
}

static void apply_number(const struct image *im, const struct fuzz_patch *p, uint32_t at, unsigned bytes)
{
	uint64_t old = read_number(im, at, bytes), v;
	const struct fuzz_field *from;

	if (p->kind == FUZZ_ADD) {
		v = old + (uint64_t)(int64_t)p->delta;
	} else if (p->kind == FUZZ_SET) {
		v = fuzz_value(p->value, old, mem_content_size(im->content));
	} else {
		if (im->t->nr_fields == 0)
			return;
		from = &im->t->field[p->from % im->t->nr_fields];
		v = read_number(im, from->off, from->bytes);
	}
	write_number(im, at, bytes, v);
}

static void apply_bytes(const struct image *im, const struct fuzz_patch *p, uint32_t at)
{
	uint8_t *buf = malloc(p->length + 1u);

	FUZZ_CHECK(buf);
	if (p->kind == FUZZ_BYTES)
		memcpy(buf, p->data, p->length);
	else if (p->kind == FUZZ_FILL)
		memset(buf, p->value, p->length);
	else
		mem_content_read(im->content, buf, p->length, p->from);
	if (p->length > 0)
		FUZZ_CHECK(mem_content_write(im->content, buf, p->length, at) == 0);
	free(buf);
}

static void apply(const struct image *im, const struct fuzz_patch *p)
{
	unsigned bytes = 1u << p->width;
	uint32_t at = p->at;

	if (p->at_field) {
		const struct fuzz_field *f;

		if (im->t->nr_fields == 0)
			return;
		f = &im->t->field[p->at % im->t->nr_fields];
		at = f->off;
		bytes = f->bytes;
	}
	if (at >= FUZZ_IMAGE_MAX_BYTES)
		return;
	switch (p->kind) {
	case FUZZ_ADD:
	case FUZZ_SET:
	case FUZZ_TAKE: apply_number(im, p, at, bytes); break;
	case FUZZ_RESIZE: FUZZ_CHECK(mem_content_resize(im->content, at) == 0); break;
	case FUZZ_BYTES:
	case FUZZ_FILL:
	case FUZZ_COPY: apply_bytes(im, p, at); break;
	default: break;
	}
}

#define EXTENT_BYTES (UINT64_C(256) << 10)

/* What lies from off on becomes a file of its own. Patches may have made it endless: of what lies far behind its
 * beginning only the length stays. */
static void put_extent(struct mem_content *image, uint64_t off, struct memfs *fs)
{
	static uint8_t piece[EXTENT_BYTES];
	struct mem_content *extent = mem_content_new();
	uint64_t end = mem_content_size(image), bytes = end > off ? end - off : 0;
	size_t n = bytes < EXTENT_BYTES ? (size_t)bytes : EXTENT_BYTES;

	FUZZ_CHECK(extent);
	mem_content_read(image, piece, n, off);
	FUZZ_CHECK(n == 0 || mem_content_write(extent, piece, n, 0) == 0);
	FUZZ_CHECK(mem_content_resize(extent, bytes) == 0);
	FUZZ_CHECK(bytes == 0 || mem_content_resize(image, off) == 0);
	memfs_put(fs, FUZZ_EXTENT, extent);
}

void fuzz_case_put(const struct fuzz_case *c, const struct fuzz_template *t, struct memfs *fs)
{
	struct image im = { .t = t };

	fuzz_template_put(t, fs);
	if (c->whole) {
		im.content = mem_content_new();
		FUZZ_CHECK(im.content);
		if (c->whole_bytes > 0)
			FUZZ_CHECK(mem_content_write(im.content, c->whole, c->whole_bytes, 0) == 0);
		memfs_put(fs, FUZZ_IMAGE, im.content);
	}
	im.content = memfs_find(fs, FUZZ_IMAGE);
	for (unsigned i = 0; i < c->nr; i++)
		apply(&im, &c->patch[i]);
	if (c->fix && t->format->walk)
		t->format->walk(im.content, c->fix, NULL, NULL);
	if (t->extent_at > 0 && !c->whole)
		put_extent(im.content, t->extent_at, fs);
}
