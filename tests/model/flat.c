/* SPDX-License-Identifier: MIT */
/* See flat.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flat.h"

struct flat_page {
	unsigned refs;
	uint8_t bytes[FLAT_PAGE];
};

static const uint8_t zeros[FLAT_PAGE];

static size_t nr_pages(uint64_t size_bytes)
{
	return (size_t)((size_bytes + FLAT_PAGE - 1) / FLAT_PAGE);
}

static void *must(void *p)
{
	if (!p) {
		fputs("flat: out of memory\n", stderr);
		abort();
	}
	return p;
}

static void page_unref(struct flat_page *page)
{
	if (page && --page->refs == 0)
		free(page);
}

void flat_init(struct flat *f, uint64_t size_bytes)
{
	f->size_bytes = size_bytes;
	f->pages = must(calloc(nr_pages(size_bytes) + 1, sizeof(*f->pages)));
}

void flat_free(struct flat *f)
{
	if (!f->pages)
		return;
	for (size_t i = 0; i < nr_pages(f->size_bytes); i++)
		page_unref(f->pages[i]);
	free(f->pages);
	*f = (struct flat){ 0 };
}

void flat_copy(struct flat *to, const struct flat *from)
{
	flat_init(to, from->size_bytes);
	for (size_t i = 0; i < nr_pages(from->size_bytes); i++) {
		to->pages[i] = from->pages[i];
		if (to->pages[i])
			to->pages[i]->refs++;
	}
}

/* The page, owned alone; NULL becomes a page of zeros. */
static uint8_t *page_own(struct flat *f, size_t i)
{
	struct flat_page *page = f->pages[i];

	if (!page || page->refs > 1) {
		struct flat_page *own = must(malloc(sizeof(*own)));

		memcpy(own->bytes, page ? page->bytes : zeros, FLAT_PAGE);
		own->refs = 1;
		page_unref(page);
		f->pages[i] = own;
	}
	return f->pages[i]->bytes;
}

void flat_resize(struct flat *f, uint64_t size_bytes)
{
	size_t old = nr_pages(f->size_bytes), now = nr_pages(size_bytes);

	if (size_bytes < f->size_bytes)
		flat_zero(f, f->size_bytes - size_bytes, size_bytes);
	for (size_t i = now; i < old; i++)
		page_unref(f->pages[i]);
	f->pages = must(realloc(f->pages, (now + 1) * sizeof(*f->pages)));
	for (size_t i = old; i < now; i++)
		f->pages[i] = NULL;
	f->size_bytes = size_bytes;
}

static const uint8_t *page_at(const struct flat *f, uint64_t off)
{
	size_t i = (size_t)(off / FLAT_PAGE);

	return i < nr_pages(f->size_bytes) && f->pages[i] ? f->pages[i]->bytes : zeros;
}

static size_t piece(uint64_t off, uint64_t bytes)
{
	uint64_t room = FLAT_PAGE - off % FLAT_PAGE;

	return (size_t)(bytes < room ? bytes : room);
}

void flat_read(const struct flat *f, void *buf, uint64_t bytes, uint64_t off)
{
	uint8_t *to = buf;

	while (bytes > 0) {
		size_t n = piece(off, bytes);

		memcpy(to, page_at(f, off) + off % FLAT_PAGE, n);
		to += n;
		off += n;
		bytes -= n;
	}
}

uint64_t flat_compare(const struct flat *f, const void *buf, uint64_t bytes, uint64_t off)
{
	const uint8_t *got = buf;

	for (uint64_t at = 0; at < bytes;) {
		size_t n = piece(off + at, bytes - at), i = 0;
		const uint8_t *want = page_at(f, off + at) + (off + at) % FLAT_PAGE;

		if (memcmp(got + at, want, n) != 0) {
			while (got[at + i] == want[i])
				i++;
			return at + i;
		}
		at += n;
	}
	return UINT64_MAX;
}

void flat_write(struct flat *f, const void *buf, uint64_t bytes, uint64_t off)
{
	const uint8_t *from = buf;

	while (bytes > 0) {
		size_t n = piece(off, bytes);

		memcpy(page_own(f, (size_t)(off / FLAT_PAGE)) + off % FLAT_PAGE, from, n);
		from += n;
		off += n;
		bytes -= n;
	}
}

void flat_zero(struct flat *f, uint64_t bytes, uint64_t off)
{
	while (bytes > 0) {
		size_t n = piece(off, bytes), i = (size_t)(off / FLAT_PAGE);

		if (n == FLAT_PAGE) {
			page_unref(f->pages[i]);
			f->pages[i] = NULL;
		} else if (f->pages[i]) {
			memset(page_own(f, i) + off % FLAT_PAGE, 0, n);
		}
		off += n;
		bytes -= n;
	}
}

uint64_t flat_diff(const struct flat *a, const struct flat *b, uint64_t bytes, uint64_t off)
{
	while (bytes > 0) {
		size_t n = piece(off, bytes), i = 0;
		const uint8_t *pa = page_at(a, off), *pb = page_at(b, off);

		if (pa != pb && memcmp(pa + off % FLAT_PAGE, pb + off % FLAT_PAGE, n) != 0) {
			while (pa[off % FLAT_PAGE + i] == pb[off % FLAT_PAGE + i])
				i++;
			return off + i;
		}
		off += n;
		bytes -= n;
	}
	return UINT64_MAX;
}

bool flat_holds(const struct flat *f, uint64_t bytes, uint64_t off)
{
	for (size_t i = (size_t)(off / FLAT_PAGE); i < nr_pages(off + bytes) && i < nr_pages(f->size_bytes); i++) {
		if (f->pages[i])
			return true;
	}
	return false;
}

bool flat_is_zero(const struct flat *f, uint64_t bytes, uint64_t off)
{
	const struct flat none = { 0 };

	return flat_diff(f, &none, bytes, off) == UINT64_MAX;
}
