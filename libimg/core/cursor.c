/* SPDX-License-Identifier: MIT */
/* See cursor.h. */
#include "cursor.h"

#include "checked.h"
#include "error.h"

#define FIRST_WINDOW_BYTES (UINT64_C(64) << 20)
#define MAX_WINDOW_BYTES   (UINT64_C(1) << 42)

void cursor_init(struct cursor *c, struct img *img, unsigned flags)
{
	c->img = img;
	c->flags = flags;
	c->window_bytes = FIRST_WINDOW_BYTES;
	c->nr = 0;
	c->at = 0;
}

static int read_ahead(struct cursor *c, uint64_t off, uint64_t end, struct img_error *err)
{
	uint64_t bytes = min_u64(c->window_bytes, end - off);
	int r;

	c->nr = 0;
	c->at = 0;
	r = img_extents(c->img, bytes, off, c->flags, c->ahead, CURSOR_EXTENTS, &c->nr, err);
	if (r < 0)
		return r;
	if (c->nr != 1 || c->ahead[0].flags & IMG_EXT_DATA)
		c->window_bytes = FIRST_WINDOW_BYTES;
	else if (c->window_bytes < MAX_WINDOW_BYTES)
		c->window_bytes *= 2;
	return 0;
}

int cursor_at(struct cursor *c, uint64_t off, struct img_extent *out, struct img_error *err)
{
	uint64_t end = c->img ? img_size(c->img) : 0, into;
	const struct img_extent *ext;
	int r;

	if (off >= end) {
		*out = (struct img_extent){ .off = off, .bytes = UINT64_MAX - off, .flags = IMG_EXT_ZERO };
		return 0;
	}
	while (c->at < c->nr && off - c->ahead[c->at].off >= c->ahead[c->at].bytes)
		c->at++;
	if (c->at == c->nr) {
		r = read_ahead(c, off, end, err);
		if (r < 0)
			return r;
	}
	ext = &c->ahead[c->at];
	into = off - ext->off;
	*out = *ext;
	out->off = off;
	out->bytes = ext->bytes - into;
	if (out->flags & IMG_EXT_OFFSET)
		out->host_off += into;
	return 0;
}
