/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps beside the disk: what differs from the content that the head had when recording began must be dirty.
 * One may say too much, never too little.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

#define NR_BITMAPS 3u

struct bitmaps {
	struct bitmap {
		bool exists, enabled, broken;
		uint64_t granule_bytes;
		struct flat since;	    /* enabled: the head when this time of recording began */
		uint8_t dirty[OPS_SECTORS]; /* what was dirty for certain when it began, or when it was switched off */
	} b[NR_BITMAPS];
};

static const char *name_of(size_t i)
{
	static const char *const names[NR_BITMAPS] = { "one", "two", "a longer name, so that entries differ" };

	return names[i];
}

static struct flat *head(struct ops *o)
{
	return &o->m.files[o->m.top].head;
}

/* What differs now from what was, becomes certain. */
static void settle(struct ops *o, struct bitmap *b)
{
	for (uint64_t s = 0; s < OPS_SECTORS && b->enabled; s++) {
		if (!b->dirty[s] && flat_diff(&b->since, head(o), OPS_SECTOR, s * OPS_SECTOR) != UINT64_MAX)
			b->dirty[s] = 1;
	}
}

static void begin(struct ops *o, struct bitmap *b)
{
	flat_free(&b->since);
	flat_copy(&b->since, head(o));
	b->enabled = true;
}

static int add(struct ops *o, struct bitmap *b, const char *name, const uint32_t *r)
{
	uint64_t granule = UINT64_C(512) << r[1] % 10;
	struct img_error err = { 0 };
	bool off = r[2] & 1;
	int ret = img_bitmap_add(o->m.img, name, granule, off ? IMG_BITMAP_ADD_DISABLED : 0, &err);

	if (ret == IMG_E_UNSUPPORTED || (ret == IMG_E_INVALID && head(o)->size_bytes == 0)) /* version 2; no disk */
		return 0;
	if (expect(&o->m, ret, b->exists ? IMG_E_EXISTS : 0, &err, "bitmap add") != 0)
		return -1;
	if (ret != 0)
		return 0;
	flat_free(&b->since);
	*b = (struct bitmap){ .exists = true, .granule_bytes = granule };
	if (!off)
		begin(o, b);
	return 0;
}

static int merge(struct ops *o, struct bitmap *to, const char *name, const uint32_t *r)
{
	size_t from_nr = r[1] % NR_BITMAPS;
	struct bitmap *from = &o->bitmaps->b[from_nr];
	struct img_error err = { 0 };

	if (!from->exists || from->broken)
		return 0;
	if (expect(&o->m, img_bitmap_merge(o->m.img, name, NULL, name_of(from_nr), &err), 0, &err, "bitmap merge") != 0)
		return -1;
	settle(o, from);
	for (size_t s = 0; s < OPS_SECTORS && to != from; s++)
		to->dirty[s] |= from->dirty[s] && s * OPS_SECTOR < head(o)->size_bytes;
	return 0;
}

static int change(struct ops *o, enum ops_kind kind, struct bitmap *b, const char *name, const uint32_t *r)
{
	struct img *img = o->m.img;
	struct img_error err = { 0 };
	int ret;

	switch (kind) {
	case OPS_BITMAP_SWITCH:
		ret = b->enabled ? img_bitmap_disable(img, name, &err) : img_bitmap_enable(img, name, &err);
		if (expect(&o->m, ret, 0, &err, "bitmap switch") != 0)
			return -1;
		settle(o, b);
		if (b->enabled)
			b->enabled = false;
		else
			begin(o, b);
		return 0;
	case OPS_BITMAP_CLEAR:
		if (expect(&o->m, img_bitmap_clear(img, name, &err), 0, &err, "bitmap clear") != 0)
			return -1;
		memset(b->dirty, 0, sizeof(b->dirty));
		if (b->enabled)
			begin(o, b);
		return 0;
	default: return merge(o, b, name, r);
	}
}

int bitmaps_step(struct ops *o, enum ops_kind kind, const uint32_t *r)
{
	size_t nr = r[0] % NR_BITMAPS;
	struct img_error err = { 0 };
	struct bitmap *b;

	if (!o->bitmaps)
		o->bitmaps = calloc(1, sizeof(*o->bitmaps));
	FUZZ_CHECK(o->bitmaps != NULL);
	o->m.has_bitmaps = true;
	b = &o->bitmaps->b[nr];
	if (kind == OPS_BITMAP_ADD)
		return add(o, b, name_of(nr), r);
	if (!b->exists)
		return 0;
	if (kind == OPS_BITMAP_REMOVE) {
		if (expect(&o->m, img_bitmap_remove(o->m.img, name_of(nr), &err), 0, &err, "bitmap remove") != 0)
			return -1;
		flat_free(&b->since);
		*b = (struct bitmap){ 0 };
		return 0;
	}
	return b->broken ? 0 : change(o, kind, b, name_of(nr), r);
}

static void mark(uint8_t *dirty, const struct img_range *range)
{
	for (uint64_t s = range->off / OPS_SECTOR; s < OPS_SECTORS && s * OPS_SECTOR < range->off + range->bytes; s++)
		dirty[s] = 1;
}

static int check_one(struct ops *o, struct bitmap *b, const char *name)
{
	static uint8_t dirty[OPS_SECTORS];
	struct img_range range[8];
	struct img_error err = { 0 };
	uint64_t off = 0;
	size_t nr = 0;

	memset(dirty, 0, sizeof(dirty));
	do {
		if (expect(&o->m, img_bitmap_ranges(o->m.img, name, off, range, 8, &nr, &err), 0, &err,
			   "bitmap ranges") != 0)
			return -1;
		for (size_t i = 0; i < nr; i++) {
			if (range[i].off < off || range[i].bytes == 0)
				return fail(&o->m, "ranges of bitmap %s are not ascending", name);
			mark(dirty, &range[i]);
			off = range[i].off + range[i].bytes;
		}
	} while (nr > 0);
	settle(o, b);
	for (uint64_t s = 0; s * OPS_SECTOR < head(o)->size_bytes; s++) {
		if (b->dirty[s] && !dirty[s])
			return fail(&o->m, "bitmap %s does not know of the sector at 0x%" PRIx64, name, s * OPS_SECTOR);
	}
	/* Beyond the end there is nothing that could be told. */
	for (uint64_t s = (head(o)->size_bytes + OPS_SECTOR - 1) / OPS_SECTOR; s < OPS_SECTORS; s++)
		b->dirty[s] = 0;
	return 0;
}

int bitmaps_check(struct ops *o)
{
	struct img_bitmap list[NR_BITMAPS + 1];
	struct img_error err = { 0 };
	size_t nr = 0, want = 0;

	if (!o->bitmaps)
		return 0;
	for (size_t i = 0; i < NR_BITMAPS; i++)
		want += o->bitmaps->b[i].exists;
	if (expect(&o->m, img_bitmap_list(o->m.img, list, NR_BITMAPS + 1, &nr, &err), 0, &err, "bitmap list") != 0)
		return -1;
	if (nr != want)
		return fail(&o->m, "%zu bitmaps are listed, not %zu", nr, want);
	for (size_t i = 0; i < NR_BITMAPS; i++) {
		struct bitmap *b = &o->bitmaps->b[i];

		if (b->exists && !b->broken && check_one(o, b, name_of(i)) != 0)
			return -1;
	}
	return 0;
}

/*
 * The handle did not close as it should. What the image now says of its bitmaps is taken over: which exist, and which
 * of them missed something.
 */
void bitmaps_forget(struct ops *o)
{
	struct img_bitmap list[NR_BITMAPS + 1];
	struct img_error err = { 0 };
	size_t nr = 0;

	if (!o->bitmaps || img_bitmap_list(o->m.img, list, NR_BITMAPS + 1, &nr, &err) != 0)
		return;
	for (size_t i = 0; i < NR_BITMAPS; i++) {
		struct bitmap *b = &o->bitmaps->b[i];
		size_t at = 0;

		while (at < nr && strcmp(list[at].name, name_of(i)) != 0)
			at++;
		if (at == nr) {
			flat_free(&b->since);
			*b = (struct bitmap){ 0 };
			continue;
		}
		/* What is not marked as broken is whole: it says at least what it said when it was switched off. */
		b->broken = list[at].flags & IMG_BITMAP_INCONSISTENT;
		b->exists = true;
		b->granule_bytes = list[at].granularity_bytes;
		if (!b->broken && (list[at].flags & IMG_BITMAP_ENABLED) && !b->enabled)
			begin(o, b);
		if (!(list[at].flags & IMG_BITMAP_ENABLED))
			b->enabled = false;
	}
}

void bitmaps_reload(struct ops *o)
{
	for (size_t i = 0; i < NR_BITMAPS && o->bitmaps; i++) {
		flat_free(&o->bitmaps->b[i].since);
		o->bitmaps->b[i] = (struct bitmap){ 0 };
	}
	bitmaps_forget(o);
}

void bitmaps_free(struct ops *o)
{
	for (size_t i = 0; i < NR_BITMAPS && o->bitmaps; i++)
		flat_free(&o->bitmaps->b[i].since);
	free(o->bitmaps);
	o->bitmaps = NULL;
}
