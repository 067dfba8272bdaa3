/* SPDX-License-Identifier: MIT */
/*
 * img_compare(): walks the extents of both images side by side, passes over what is a hole in both, and reads the rest.
 * The shorter image counts as followed by zeros. One thread: results come in order, and may stop the work at any point.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cursor.h"
#include "error.h"
#include "image_int.h"
#include "team.h"

#define PIECE_BYTES  (UINT64_C(1) << 20)
#define SECTOR_BYTES 512
#define BUFFER_ALIGN 4096

struct side {
	struct img *img;
	uint64_t size_bytes;
	struct cursor cursor;
	uint8_t *buf;
	bool zero; /* the piece lies in a hole, buf is not filled */
};

struct compare {
	struct side a, b;
	uint64_t size_bytes; /* of the longer one */
	img_compare_fn fn;   /* NULL: the first difference is enough */
	void *ctx;
	uint64_t run_off, run_bytes; /* differing sectors not reported yet */
	bool stop;
	struct img_compare_result *out;
};

static int finish_run(struct compare *cmp)
{
	uint64_t bytes = cmp->run_bytes;

	cmp->run_bytes = 0;
	if (bytes > 0 && !cmp->stop && cmp->fn && cmp->fn(cmp->ctx, cmp->run_off, bytes))
		cmp->stop = true;
	return cmp->stop;
}

/* The byte at off is the first that differs within its sector. */
static void add_difference(struct compare *cmp, uint64_t off)
{
	uint64_t sector = round_down(off, SECTOR_BYTES);

	if (cmp->out->same) {
		cmp->out->same = false;
		cmp->out->first_diff = off;
	}
	if (!cmp->fn) {
		cmp->stop = true;
		return;
	}
	if (cmp->run_bytes > 0 && cmp->run_off + cmp->run_bytes == sector) {
		cmp->run_bytes += SECTOR_BYTES;
		return;
	}
	if (finish_run(cmp))
		return;
	cmp->run_off = sector;
	cmp->run_bytes = SECTOR_BYTES;
}

static int read_side(struct side *side, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint64_t inside = off >= side->size_bytes ? 0 : min_u64(bytes, side->size_bytes - off);

	if (side->zero) {
		memset(side->buf, 0, (size_t)bytes);
		return 0;
	}
	memset(side->buf + inside, 0, (size_t)(bytes - inside));
	return inside > 0 ? img_pread(side->img, side->buf, inside, off, 0, err) : 0;
}

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t bytes)
{
	size_t i = 0;

	while (i < bytes && a[i] == b[i])
		i++;
	return i;
}

static int compare_piece(struct compare *cmp, uint64_t off, uint64_t bytes, struct img_error *err)
{
	const uint8_t *a = cmp->a.buf, *b = cmp->b.buf;
	uint64_t step;
	int r = read_side(&cmp->a, off, bytes, err);

	if (r == 0)
		r = read_side(&cmp->b, off, bytes, err);
	if (r < 0 || memcmp(a, b, (size_t)bytes) == 0)
		return r;
	for (uint64_t at = 0; at < bytes && !cmp->stop; at += step) {
		step = min_u64(bytes - at, SECTOR_BYTES - (off + at) % SECTOR_BYTES);
		if (memcmp(a + at, b + at, (size_t)step) != 0)
			add_difference(cmp, off + at + first_difference(a + at, b + at, (size_t)step));
	}
	return 0;
}

/* Sets how much from off on is alike in kind on both sides, at most a piece if any of them has to be read. */
static int next_piece(struct compare *cmp, uint64_t off, uint64_t *bytes, struct img_error *err)
{
	struct img_extent a = { 0 }, b = { 0 };
	int r = cursor_at(&cmp->a.cursor, off, &a, err);

	if (r == 0)
		r = cursor_at(&cmp->b.cursor, off, &b, err);
	if (r < 0)
		return r;
	cmp->a.zero = !(a.flags & IMG_EXT_DATA);
	cmp->b.zero = !(b.flags & IMG_EXT_DATA);
	*bytes = min_u64(min_u64(a.bytes, b.bytes), cmp->size_bytes - off);
	if (cmp->a.zero && cmp->b.zero)
		return 0;
	if (*bytes > PIECE_BYTES - off % PIECE_BYTES)
		*bytes = PIECE_BYTES - off % PIECE_BYTES;
	return 0;
}

static int member(struct team *team, void *ctx, struct img_error *err)
{
	struct compare *cmp = ctx;
	uint64_t bytes;
	int r = 0;

	for (uint64_t off = 0; off < cmp->size_bytes && !cmp->stop && r == 0; off += bytes) {
		r = next_piece(cmp, off, &bytes, err);
		if (r == 0 && !(cmp->a.zero && cmp->b.zero))
			r = compare_piece(cmp, off, bytes, err);
		if (r < 0)
			return r;
		r = team_advance(team, bytes, err);
	}
	if (r == 0)
		finish_run(cmp);
	return r;
}

static bool side_init(struct side *side, struct img *img)
{
	side->img = img;
	side->size_bytes = img_size(img);
	cursor_init(&side->cursor, img, 0);
	side->buf = aligned_alloc(BUFFER_ALIGN, PIECE_BYTES);
	return side->buf != NULL;
}

int img_compare(struct img *a, struct img *b, img_compare_fn fn, void *ctx, const struct img_progress *progress,
		struct img_compare_result *out, struct img_error *err)
{
	struct compare cmp = { .fn = fn, .ctx = ctx, .out = out };
	bool ready_a, ready_b;
	int r;

	error_clear(err);
	if (!a || !b || !out)
		return image_invalid(err, "no images to compare, or no place for the result");
	ready_a = side_init(&cmp.a, a);
	ready_b = side_init(&cmp.b, b);
	cmp.size_bytes = max_u64(cmp.a.size_bytes, cmp.b.size_bytes);
	*out = (struct img_compare_result){
		.same = true,
		.size_differs = cmp.a.size_bytes != cmp.b.size_bytes,
	};
	if (ready_a && ready_b)
		r = team_run(1, progress, cmp.size_bytes, member, &cmp, err);
	else
		r = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a comparison");
	free(cmp.a.buf);
	free(cmp.b.buf);
	return r;
}
