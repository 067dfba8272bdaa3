/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps. They belong to a file and follow its head: what differs from the content that the head had when
 * recording began must be dirty, and so must what the disk grew by since. One may say more, never less.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "model.h"

#define SECTOR 512u

static const char *name_of(size_t i)
{
	static const char *const names[MODEL_BITMAPS] = { "one", "two", "a longer name, so that entries differ" };

	return names[i];
}

static struct mfile *top(struct model *m)
{
	return &m->files[m->top];
}

static uint64_t max_sectors(const struct model *m)
{
	return (max_u64(m->geometry.max_bytes, MODEL_MAX_BYTES) + SECTOR - 1) / SECTOR;
}

static void mark(struct model *m, struct mbitmap *b, uint64_t off, uint64_t bytes)
{
	for (uint64_t s = off / SECTOR; s < max_sectors(m) && s * SECTOR < off + bytes; s++)
		b->dirty[s] = 1;
}

/* What differs now from what was, becomes certain; also behind the end, where it comes back as zeros. */
static void settle(struct model *m, struct mbitmap *b, const struct flat *head)
{
	uint64_t end = max_u64(b->since.size_bytes, head->size_bytes), off = 0;

	while (b->enabled && off < end) {
		uint64_t at = flat_diff(&b->since, head, end - off, off);

		if (at == UINT64_MAX)
			break;
		mark(m, b, at, 1);
		off = round_down(at, SECTOR) + SECTOR;
	}
}

static void begin(struct mbitmap *b, const struct flat *head)
{
	flat_free(&b->since);
	flat_copy(&b->since, head);
	b->enabled = true;
}

static void forget(struct mbitmap *b)
{
	flat_free(&b->since);
	free(b->dirty);
	*b = (struct mbitmap){ 0 };
}

static int make(struct model *m, struct mbitmap *b, uint64_t granule_bytes)
{
	forget(b);
	b->dirty = calloc((size_t)max_sectors(m), 1);
	if (!b->dirty)
		return fail(m, "no memory for a bitmap");
	b->exists = true;
	b->granule_bytes = granule_bytes;
	return 0;
}

static struct mbitmap *pick(struct model *m, uint32_t r)
{
	return &m->bitmaps[m->top].b[r % MODEL_BITMAPS];
}

/* ---- what others do to them -------------------------------------------------------------------------------------- */

void bitmaps_resized(struct model *m, int index, uint64_t was)
{
	const struct flat *head = &m->files[index].head;

	for (size_t i = 0; i < MODEL_BITMAPS; i++) {
		struct mbitmap *b = &m->bitmaps[index].b[i];

		if (b->exists && b->enabled && head->size_bytes > was)
			mark(m, b, was, head->size_bytes - was);
		/* What was cut off, nobody records. */
		for (uint64_t s = (head->size_bytes + SECTOR - 1) / SECTOR; b->exists && !b->enabled; s++) {
			if (s >= max_sectors(m))
				break;
			b->dirty[s] = 0;
		}
	}
}

void bitmaps_drop(struct model *m, int index)
{
	for (size_t i = 0; i < MODEL_BITMAPS; i++)
		forget(&m->bitmaps[index].b[i]);
}

int bitmaps_adopt(struct model *m)
{
	struct img_bitmap list[MODEL_BITMAPS + 1];
	struct img_error err = { 0 };
	size_t nr = 0;

	if (!m->has_bitmaps)
		return 0;
	if (expect(m, img_bitmap_list(m->img, list, MODEL_BITMAPS + 1, &nr, &err), 0, &err, "bitmap list") != 0)
		return -1;
	for (size_t i = 0; i < MODEL_BITMAPS; i++) {
		struct mbitmap *b = pick(m, (uint32_t)i);
		size_t at = 0;

		while (at < nr && strcmp(list[at].name, name_of(i)) != 0)
			at++;
		if (at == nr) {
			forget(b);
			continue;
		}
		/* What is not marked as broken is whole: it says at least what it said when it was switched off. */
		if (!b->exists && make(m, b, 0) != 0)
			return -1;
		b->broken = list[at].flags & IMG_BITMAP_INCONSISTENT;
		b->granule_bytes = list[at].granularity_bytes;
		if (!b->broken && (list[at].flags & IMG_BITMAP_ENABLED) && !b->enabled)
			begin(b, &top(m)->head);
		if (!(list[at].flags & IMG_BITMAP_ENABLED))
			b->enabled = false;
	}
	bitmaps_resized(m, m->top, top(m)->head.size_bytes);
	return 0;
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

int op_bitmap_add(struct model *m, const uint32_t *r)
{
	struct mbitmap *b = pick(m, r[0]);
	uint64_t granule = UINT64_C(512) << r[1] % 10;
	struct img_error err = { 0 };
	bool off = r[2] & 1;
	int want = top(m)->is_v2		? IMG_E_UNSUPPORTED :
		   b->exists			? IMG_E_EXISTS :
		   top(m)->head.size_bytes == 0 ? IMG_E_INVALID :
						  0;
	int ret =
		img_bitmap_add(m->img, name_of(r[0] % MODEL_BITMAPS), granule, off ? IMG_BITMAP_ADD_DISABLED : 0, &err);

	if (expect(m, ret, want, &err, "bitmap add") != 0)
		return -1;
	if (ret != 0)
		return 0;
	m->has_bitmaps = true;
	if (make(m, b, granule) != 0)
		return -1;
	if (!off)
		begin(b, &top(m)->head);
	return bitmaps_check(m, m->img, m->top, "bitmap add");
}

int op_bitmap_remove(struct model *m, const uint32_t *r)
{
	struct mbitmap *b = pick(m, r[0]);
	struct img_error err = { 0 };

	if (expect(m, img_bitmap_remove(m->img, name_of(r[0] % MODEL_BITMAPS), &err), b->exists ? 0 : IMG_E_NOENT, &err,
		   "bitmap remove") != 0)
		return -1;
	forget(b);
	return 0;
}

int op_bitmap_switch(struct model *m, const uint32_t *r)
{
	struct mbitmap *b = pick(m, r[0]);
	const char *name = name_of(r[0] % MODEL_BITMAPS);
	struct img_error err = { 0 };
	int ret;

	if (!b->exists || b->broken)
		return 0;
	ret = b->enabled ? img_bitmap_disable(m->img, name, &err) : img_bitmap_enable(m->img, name, &err);
	if (expect(m, ret, 0, &err, "bitmap switch") != 0)
		return -1;
	settle(m, b, &top(m)->head);
	if (!b->enabled) {
		begin(b, &top(m)->head);
		return 0;
	}
	b->enabled = false;
	bitmaps_resized(m, m->top, top(m)->head.size_bytes);
	return 0;
}

int op_bitmap_clear(struct model *m, const uint32_t *r)
{
	struct mbitmap *b = pick(m, r[0]);
	struct img_error err = { 0 };
	struct img_range range;
	size_t nr = 1;

	if (!b->exists || b->broken)
		return 0;
	if (expect(m, img_bitmap_clear(m->img, name_of(r[0] % MODEL_BITMAPS), &err), 0, &err, "bitmap clear") != 0)
		return -1;
	memset(b->dirty, 0, (size_t)max_sectors(m));
	if (b->enabled)
		begin(b, &top(m)->head);
	if (expect(m, img_bitmap_ranges(m->img, name_of(r[0] % MODEL_BITMAPS), 0, &range, 1, &nr, &err), 0, &err,
		   "bitmap ranges") != 0)
		return -1;
	return nr == 0 ? 0 : fail(m, "a bitmap that was cleared is dirty at 0x%" PRIx64, range.off);
}

int op_bitmap_merge(struct model *m, const uint32_t *r)
{
	struct mbitmap *to = pick(m, r[0]), *from = pick(m, r[1]);
	struct img_error err = { 0 };

	if (!to->exists || to->broken || !from->exists || from->broken)
		return 0;
	if (expect(m,
		   img_bitmap_merge(m->img, name_of(r[0] % MODEL_BITMAPS), NULL, name_of(r[1] % MODEL_BITMAPS), &err),
		   0, &err, "bitmap merge") != 0)
		return -1;
	settle(m, from, &top(m)->head);
	for (uint64_t s = 0; s * SECTOR < top(m)->head.size_bytes; s++)
		to->dirty[s] |= from->dirty[s];
	return 0;
}

/* ---- judge ------------------------------------------------------------------------------------------------------- */

static int check_one(struct model *m, struct img *img, struct mbitmap *b, const struct img_bitmap *said,
		     const struct flat *head)
{
	struct img_range range[8];
	struct img_error err = { 0 };
	uint64_t sum = 0, off = 0, s = 0;
	size_t nr = 0;

	settle(m, b, head);
	do {
		if (expect(m, img_bitmap_ranges(img, said->name, off, range, 8, &nr, &err), 0, &err, "bitmap ranges") !=
		    0)
			return -1;
		for (size_t i = 0; i < nr; i++) {
			uint64_t end = range[i].off + range[i].bytes;

			if (range[i].bytes == 0 || (sum > 0 ? range[i].off <= off : range[i].off < off) ||
			    end > head->size_bytes || range[i].off % b->granule_bytes != 0 ||
			    (end % b->granule_bytes != 0 && end != head->size_bytes))
				return fail(m, "bitmap %s has a range of 0x%" PRIx64 " at 0x%" PRIx64, said->name,
					    range[i].bytes, range[i].off);
			for (; s * SECTOR < range[i].off; s++) {
				if (b->dirty[s])
					return fail(m, "bitmap %s does not know of 0x%" PRIx64, said->name, s * SECTOR);
			}
			s = (end + SECTOR - 1) / SECTOR;
			off = end;
			sum += range[i].bytes;
		}
	} while (nr > 0);
	for (; s * SECTOR < head->size_bytes; s++) {
		if (b->dirty[s])
			return fail(m, "bitmap %s does not know of 0x%" PRIx64, said->name, s * SECTOR);
	}
	if (sum != said->dirty_bytes)
		return fail(m, "bitmap %s is told to have 0x%" PRIx64 " dirty bytes, not 0x%" PRIx64, said->name,
			    said->dirty_bytes, sum);
	return 0;
}

int bitmaps_check(struct model *m, struct img *img, int index, const char *what)
{
	struct img_bitmap list[MODEL_BITMAPS + 1];
	struct img_error err = { 0 };
	size_t nr = 0, want = 0;

	if (!m->has_bitmaps)
		return 0;
	for (size_t i = 0; i < MODEL_BITMAPS; i++)
		want += m->bitmaps[index].b[i].exists;
	if (expect(m, img_bitmap_list(img, list, MODEL_BITMAPS + 1, &nr, &err), 0, &err, "bitmap list") != 0)
		return -1;
	if (nr != want)
		return fail(m, "%s: %zu bitmaps are listed, not %zu", what, nr, want);
	for (size_t i = 0; i < MODEL_BITMAPS; i++) {
		struct mbitmap *b = &m->bitmaps[index].b[i];
		size_t at = 0;

		if (!b->exists || b->broken)
			continue;
		while (at < nr && strcmp(list[at].name, name_of(i)) != 0)
			at++;
		if (at == nr)
			return fail(m, "%s: bitmap %s is gone", what, name_of(i));
		if (list[at].flags & IMG_BITMAP_INCONSISTENT && m->bitmaps_may_break)
			continue;
		if (list[at].flags != (b->enabled ? (unsigned)IMG_BITMAP_ENABLED : 0) ||
		    list[at].granularity_bytes != b->granule_bytes)
			return fail(m, "%s: bitmap %s has flags 0x%x, granules of 0x%" PRIx64, what, name_of(i),
				    list[at].flags, list[at].granularity_bytes);
		if (check_one(m, img, b, &list[at], &m->files[index].head) != 0)
			return -1;
	}
	return 0;
}
