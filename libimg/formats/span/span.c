/* SPDX-License-Identifier: MIT */
/* Requests, cut at the ends of segments. See span.h. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "span.h"

#define LAYER "span"

struct segment {
	uint64_t off; /* of the disk */
	struct span_segment s;
	_Atomic bool dirty;
};

struct span {
	_Atomic uint64_t bytes; /* the last segment ends here */
	size_t nr;
	struct segment at[];
};

int span_new(const struct span_segment *segments, size_t nr, struct span **out, struct img_error *err)
{
	struct span *span = calloc(1, sizeof(*span) + nr * sizeof(span->at[0]));
	uint64_t off = 0;

	*out = NULL;
	if (!span)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < nr; i++) {
		struct segment *seg = &span->at[span->nr];

		if (segments[i].bytes == 0)
			continue;
		seg->off = off;
		seg->s = segments[i];
		span->nr++;
		if (add_overflows(off, segments[i].bytes, &off) || off > INT64_MAX) {
			free(span);
			return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "the disk has too many bytes");
		}
	}
	atomic_store(&span->bytes, off);
	*out = span;
	return 0;
}

void span_free(struct span *span)
{
	free(span);
}

uint64_t span_size(const struct span *span)
{
	return atomic_load_explicit(&span->bytes, memory_order_relaxed);
}

void span_set_size(struct span *span, uint64_t bytes)
{
	atomic_store(&span->bytes, bytes);
}

/* ---- the piece of a request in one segment ------------------------------------------------------------------------ */

static uint64_t end_of(const struct span *span, const struct segment *seg)
{
	return seg + 1 < span->at + span->nr ? seg[1].off : span_size(span);
}

/* The segment of off, which is inside the span. */
static struct segment *find(struct span *span, uint64_t off)
{
	size_t low = 0, high = span->nr;

	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (span->at[mid].off <= off)
			low = mid;
		else
			high = mid;
	}
	return &span->at[low];
}

struct piece {
	struct segment *seg;
	uint64_t bytes, off; /* off: for the segment's ops */
};

static struct piece piece_at(struct span *span, uint64_t bytes, uint64_t off)
{
	struct segment *seg = find(span, off);

	return (struct piece){
		.seg = seg,
		.bytes = min_u64(bytes, end_of(span, seg) - off),
		.off = off - seg->off + seg->s.inner_off,
	};
}

/* A range that begins, or ends, where there is nothing (any more): nobody may ask for it. */
static int judge_range(struct span *span, uint64_t bytes, uint64_t off, struct img_error *err)
{
	if (range_inside(off, bytes, span_size(span)))
		return 0;
	return error_set(err, IMG_E_INVALID, 0, off, LAYER, "0x%" PRIx64 " bytes reach over the end of the disk",
			 bytes);
}

/* zero: to zeros, which some cannot be written with anything else. */
int span_may_change(struct span *span, uint64_t bytes, uint64_t off, bool zero, struct img_error *err)
{
	int ret = judge_range(span, bytes, off, err);

	for (uint64_t at = off; ret == 0 && at < off + bytes;) {
		struct piece p = piece_at(span, off + bytes - at, at);
		const struct span_segment *s = &p.seg->s;

		if (s->readonly)
			return error_set(err, IMG_E_READONLY, 0, at, LAYER,
					 "0x%" PRIx64 " of the disk lies in an extent that is only read", at);
		if (zero ? !s->ops->zero : !s->ops->pwrite)
			return error_set(err, IMG_E_READONLY, 0, at, LAYER,
					 "0x%" PRIx64 " of the disk lies in an extent that cannot be written", at);
		at += p.bytes;
	}
	return ret;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

int span_pread(struct span *span, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t *to = buf;
	int ret = judge_range(span, bytes, off, err);

	while (ret == 0 && bytes > 0) {
		struct piece p = piece_at(span, bytes, off);

		ret = p.seg->s.ops->pread(p.seg->s.ctx, to, p.bytes, p.off, err);
		to += p.bytes;
		off += p.bytes;
		bytes -= p.bytes;
	}
	return ret;
}

int span_pwrite(struct span *span, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	const uint8_t *from = buf;
	int ret = span_may_change(span, bytes, off, false, err);

	while (ret == 0 && bytes > 0) {
		struct piece p = piece_at(span, bytes, off);

		ret = p.seg->s.ops->pwrite(p.seg->s.ctx, from, p.bytes, p.off, err);
		atomic_store(&p.seg->dirty, true);
		from += p.bytes;
		off += p.bytes;
		bytes -= p.bytes;
	}
	return ret;
}

int span_zero(struct span *span, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	int ret = span_may_change(span, bytes, off, true, err);

	while (ret == 0 && bytes > 0) {
		struct piece p = piece_at(span, bytes, off);

		ret = p.seg->s.ops->zero(p.seg->s.ctx, p.bytes, p.off, flags, err);
		atomic_store(&p.seg->dirty, true);
		off += p.bytes;
		bytes -= p.bytes;
	}
	return ret;
}

int span_discard(struct span *span, uint64_t bytes, uint64_t off, struct img_error *err)
{
	int ret = judge_range(span, bytes, off, err);

	while (ret == 0 && bytes > 0) {
		struct piece p = piece_at(span, bytes, off);

		if (!p.seg->s.readonly && p.seg->s.ops->discard) {
			ret = p.seg->s.ops->discard(p.seg->s.ctx, p.bytes, p.off, err);
			atomic_store(&p.seg->dirty, true);
		}
		off += p.bytes;
		bytes -= p.bytes;
	}
	return ret;
}

/* Of one segment, in terms of the disk. */
static int status_of(const struct piece *p, uint64_t disk_off, struct status_extent *out, size_t cap, size_t *nr,
		     struct img_error *err)
{
	int ret = 0;

	if (p->seg->s.ops->status) {
		ret = p->seg->s.ops->status(p->seg->s.ctx, p->bytes, p->off, out, cap, nr, err);
	} else {
		out[0] = (struct status_extent){ .off = p->off, .bytes = p->bytes, .kind = STATUS_DATA };
		out[0].host_off = STATUS_NO_HOST;
		*nr = 1;
	}
	for (size_t i = 0; ret == 0 && i < *nr; i++) {
		out[i].off = out[i].off - p->off + disk_off;
		if (!p->seg->s.own_file)
			out[i].host_off = STATUS_NO_HOST;
	}
	return ret;
}

int span_status(struct span *span, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		struct img_error *err)
{
	int ret = judge_range(span, bytes, off, err);

	*nr = 0;
	while (ret == 0 && bytes > 0 && *nr < cap) {
		struct piece p = piece_at(span, bytes, off);
		uint64_t end;
		size_t got = 0;

		ret = status_of(&p, off, out + *nr, cap - *nr, &got, err);
		if (ret != 0 || got == 0)
			break;
		*nr += got;
		end = out[*nr - 1].off + out[*nr - 1].bytes;
		/* Less than was asked for: there was no room for more. */
		if (end < off + p.bytes)
			break;
		off += p.bytes;
		bytes -= p.bytes;
	}
	return ret;
}

/* A flush that began before a change ended does not cover it: the mark is set when the change is over. */
int span_flush(struct span *span, struct img_error *err)
{
	int first = 0;

	for (size_t i = 0; i < span->nr; i++) {
		struct segment *seg = &span->at[i];
		int ret = 0;

		if (seg->s.ops->flush && atomic_exchange(&seg->dirty, false))
			ret = seg->s.ops->flush(seg->s.ctx, first == 0 ? err : NULL);
		if (ret != 0)
			atomic_store(&seg->dirty, true);
		if (first == 0)
			first = ret;
	}
	return first;
}
