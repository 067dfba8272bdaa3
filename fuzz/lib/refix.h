/* SPDX-License-Identifier: MIT */
/* The walkers of formats (template.h), and what they share: pieces of an image that are read, perhaps changed, and
 * written back if so. */
#ifndef FUZZ_REFIX_H
#define FUZZ_REFIX_H

#include <string.h>

#include "disk_int.h"
#include "template.h"

void refix_limg(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx);
void refix_qcow2(struct mem_content *image, unsigned fix, fuzz_field_fn field, void *ctx);

struct walk {
	struct mem_content *image;
	uint64_t file_bytes;
	unsigned fix;
	fuzz_field_fn field; /* may be NULL */
	void *ctx;
	unsigned pages_left; /* bounds the work */
};

static inline void walk_field(const struct walk *w, uint64_t off, unsigned bytes)
{
	if (w->field)
		w->field(w->ctx, off, bytes);
}

/* Writes only what changed: pages of a template that nobody changes stay shared. */
static inline void walk_store(const struct walk *w, const void *now, size_t bytes, uint64_t off)
{
	uint8_t before[4096];

	for (size_t done = 0; done < bytes;) {
		size_t part = bytes - done < sizeof(before) ? bytes - done : sizeof(before);

		mem_content_read(w->image, before, part, off + done);
		if (memcmp(before, (const uint8_t *)now + done, part) != 0)
			FUZZ_CHECK(mem_content_write(w->image, (const uint8_t *)now + done, part, off + done) == 0);
		done += part;
	}
}

/* False where it does not lie in the file, or enough was looked at. */
static inline bool walk_load(struct walk *w, void *buf, size_t bytes, uint64_t off)
{
	if (off >= w->file_bytes || bytes > w->file_bytes - off || w->pages_left == 0)
		return false;
	w->pages_left--;
	mem_content_read(w->image, buf, bytes, off);
	return true;
}

#endif
