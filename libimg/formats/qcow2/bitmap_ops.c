/* SPDX-License-Identifier: MIT */
/*
 * What users do with bitmaps. Each operation is on disk when it returns, but what it does to the content of a bitmap
 * that is followed: that one is marked in use, and stored when the image is closed.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_bitmap.h"

#define MERGE_RANGES 256

static struct qcow2_engine *engine_of(const struct node *n)
{
	return ((const struct qcow2_state *)n->state)->view.e;
}

static struct qcow2_bitmap *find(struct qcow2_engine *e, const char *name)
{
	size_t bytes = strlen(name);

	for (uint32_t i = 0; i < e->bitmaps->nr; i++) {
		struct qcow2_bitmap *b = e->bitmaps->list[i];

		if (b->name_bytes == bytes && memcmp(b->name, name, bytes) == 0)
			return b;
	}
	return NULL;
}

static int get(struct qcow2_engine *e, const char *name, struct qcow2_bitmap **out, struct img_error *err)
{
	if (e->bitmaps->damaged) {
		if (err)
			*err = e->bitmaps->why;
		return IMG_E_CORRUPT;
	}
	*out = find(e, name);
	return *out ? 0 : error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "there is no bitmap '%s'", name);
}

static int get_usable(struct qcow2_engine *e, const char *name, struct qcow2_bitmap **out, struct img_error *err)
{
	int ret = get(e, name, out, err);

	if (ret != 0 || qcow2_bitmap_usable(e, *out))
		return ret;
	if (!qcow2_bitmap_known(*out))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "bitmap '%s' is of a kind that is not known: it can only be removed", name);
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
			 "bitmap '%s' is inconsistent: it may have missed changes and can only be removed", name);
}

/* For a change: the head, ops taken unless it fails. */
static int lock_head(struct node *n, struct qcow2_engine **e, struct img_error *err)
{
	int ret = qcow2_head(n, e, err);

	if (ret == 0)
		pthread_mutex_lock(&(*e)->bitmaps->ops);
	return ret;
}

/* ---- questions --------------------------------------------------------------------------------------------------- */

struct sum {
	const struct qcow2_bitmap *b;
	uint64_t disk_bytes, dirty_bytes;
};

/* Bits as bytes of the disk; the last bit may stand for less. */
static struct img_range run_bytes(const struct qcow2_bitmap *b, uint64_t disk_bytes, uint64_t first, uint64_t nr)
{
	uint64_t off = first << b->granularity_bits, room = disk_bytes - off;
	bool clipped = nr > room >> b->granularity_bits;

	return (struct img_range){ off, clipped ? room : nr << b->granularity_bits };
}

static bool add_up(void *ctx, uint64_t first, uint64_t nr)
{
	struct sum *s = ctx;

	s->dirty_bytes += run_bytes(s->b, s->disk_bytes, first, nr).bytes;
	return true;
}

static int describe(struct qcow2_engine *e, const struct qcow2_bitmap *b, struct img_bitmap *out, struct img_error *err)
{
	struct sum s = { .b = b, .disk_bytes = atomic_load(&e->disk_bytes) };
	struct img_error why = { .code = IMG_OK };
	int ret = 0;

	memset(out, 0, sizeof(*out));
	memcpy(out->name, b->name, (size_t)min_u64(b->name_bytes, IMG_BITMAP_NAME_MAX));
	out->granularity_bytes = b->granularity_bits < 63 ? UINT64_C(1) << b->granularity_bits : 0;
	out->flags = b->flags & QCOW2_BITMAP_AUTO ? IMG_BITMAP_ENABLED : 0;
	if (!qcow2_bitmap_known(b))
		out->flags |= IMG_BITMAP_UNSUPPORTED;
	else if (qcow2_bitmap_usable(e, b))
		ret = qcow2_bitmap_scan(e, b, 0, add_up, &s, &why);
	else
		out->flags |= IMG_BITMAP_INCONSISTENT;
	if (ret == IMG_E_CORRUPT)
		out->flags |= IMG_BITMAP_INCONSISTENT;
	else if (ret != 0)
		return error_set(err, ret, why.sys_errno, why.offset, LAYER, "%s", why.msg);
	else
		out->dirty_bytes = s.dirty_bytes;
	return 0;
}

int qcow2_bitmap_list(struct node *n, struct img_bitmap *out, size_t cap, size_t *nr, struct img_error *err)
{
	const struct qcow2_state *state = n->state;
	struct qcow2_engine *e = state->view.e;
	int ret = 0;

	*nr = 0;
	if (state->view.is_snapshot || !e->bitmaps)
		return 0;
	pthread_mutex_lock(&e->bitmaps->ops);
	if (e->bitmaps->damaged) {
		if (err)
			*err = e->bitmaps->why;
		ret = e->bitmaps->why.code;
	}
	*nr = e->bitmaps->nr;
	for (size_t i = 0; ret == 0 && i < cap && i < *nr; i++)
		ret = describe(e, e->bitmaps->list[i], &out[i], err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

struct collect {
	const struct qcow2_bitmap *b;
	uint64_t disk_bytes;
	struct img_range *out;
	size_t cap, nr;
};

static bool collect_run(void *ctx, uint64_t first, uint64_t nr)
{
	struct collect *c = ctx;

	if (c->nr < c->cap)
		c->out[c->nr++] = run_bytes(c->b, c->disk_bytes, first, nr);
	return c->nr < c->cap;
}

int qcow2_bitmap_ranges(struct node *n, const char *name, uint64_t off, struct img_range *out, size_t cap, size_t *nr,
			struct img_error *err)
{
	struct qcow2_engine *e = engine_of(n);
	struct collect c = { .disk_bytes = atomic_load(&e->disk_bytes), .out = out, .cap = cap };
	struct qcow2_bitmap *b;
	int ret;

	*nr = 0;
	if (((const struct qcow2_state *)n->state)->view.is_snapshot)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "a snapshot has no bitmaps");
	pthread_mutex_lock(&e->bitmaps->ops);
	ret = get_usable(e, name, &b, err);
	if (ret == 0) {
		uint64_t mask = (UINT64_C(1) << b->granularity_bits) - 1;

		/* The last one may end inside a bit, at the end of the disk. */
		c.b = b;
		if (off <= UINT64_MAX - mask)
			ret = qcow2_bitmap_scan(e, b, (off + mask) >> b->granularity_bits, collect_run, &c, err);
	}
	pthread_mutex_unlock(&e->bitmaps->ops);
	*nr = c.nr;
	return ret;
}

/* ---- add and remove ---------------------------------------------------------------------------------------------- */

static int check_new(struct qcow2_engine *e, const char *name, unsigned granularity_bits, struct img_error *err)
{
	uint64_t bits = qcow2_bitmap_bits(e->h.size, granularity_bits);

	if (e->h.version < 3)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a qcow2 image of version 2 has no bitmaps: use imgtool amend -o compat=1.1 first");
	if (find(e, name))
		return error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER, "there is a bitmap '%s' already", name);
	if (bits == 0)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a disk of no size has no bitmaps");
	if (qcow2_bitmap_clusters(e, bits) > BITMAP_MAX_BYTES >> e->h.cluster_bits)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "bitmap '%s' would take more than 512 MiB: choose a larger granularity", name);
	return 0;
}

static unsigned granularity_bits_of(const struct qcow2_engine *e, uint64_t granularity)
{
	if (granularity == 0) /* a bit per cluster, but 4 KiB to 64 KiB, as QEMU has it */
		return e->h.cluster_bits < 12 ? 12 : e->h.cluster_bits > 16 ? 16 : e->h.cluster_bits;
	return (unsigned)__builtin_ctzll(granularity);
}

/* An empty bitmap with a table of its own on disk. */
static int make_bitmap(struct qcow2_engine *e, const char *name, unsigned granularity_bits, struct qcow2_bitmap **out,
		       struct img_error *err)
{
	struct qcow2_bitmap *b = calloc(1, sizeof(*b));
	uint64_t table_bytes;
	uint8_t *zeros;
	int ret;

	*out = b;
	if (!b)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
	b->name = strdup(name);
	b->extra = calloc(1, 1);
	b->name_bytes = (uint32_t)strlen(name);
	b->type = BITMAP_TYPE_DIRTY;
	b->granularity_bits = (uint8_t)granularity_bits;
	b->bits = b->disk_bits = qcow2_bitmap_bits(e->h.size, granularity_bits);
	b->table_entries = (uint32_t)qcow2_bitmap_clusters(e, b->bits);
	table_bytes = round_up((uint64_t)b->table_entries * 8, e->cluster_bytes);
	zeros = calloc(1, (size_t)table_bytes);
	if (!b->name || !b->extra || !zeros) {
		free(zeros);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
	}
	pthread_rwlock_wrlock(&e->map);
	ret = qcow2_bitmap_take(e, table_bytes >> e->h.cluster_bits, &b->table_off, err);
	if (ret == 0) {
		ret = node_pwrite(e->file, zeros, table_bytes, b->table_off, 0, err);
		if (ret != 0) {
			/* Not as a bitmap is given back: what lies there may be a table of old, with others' clusters. */
			(void)qcow2_bitmap_give(e, b->table_off, table_bytes >> e->h.cluster_bits, NULL);
			b->table_off = 0;
		}
	}
	pthread_rwlock_unlock(&e->map);
	free(zeros);
	return ret;
}

/* A copy of the list with one more (add) or one less (skip); NULL: no memory. */
static struct qcow2_bitmap **edit_list(const struct qcow2_bitmaps *bs, struct qcow2_bitmap *add,
				       const struct qcow2_bitmap *skip)
{
	struct qcow2_bitmap **list = calloc((size_t)bs->nr + 1, sizeof(struct qcow2_bitmap *));
	uint32_t nr = 0;

	for (uint32_t i = 0; list && i < bs->nr; i++) {
		if (bs->list[i] != skip)
			list[nr++] = bs->list[i];
	}
	if (list && add)
		list[nr] = add;
	return list;
}

/* ops. The handle's own following goes on: a bitmap that is enabled while the image is written is in use from its first
 * day. */
static int add(struct qcow2_engine *e, const char *name, unsigned granularity_bits, unsigned flags,
	       struct img_error *err)
{
	struct qcow2_bitmap *b = NULL, **list = NULL;
	int ret = qcow2_bitmap_drop_stale(e, err);

	if (ret == 0)
		ret = check_new(e, name, granularity_bits, err);
	if (ret == 0)
		ret = make_bitmap(e, name, granularity_bits, &b, err);
	if (ret != 0)
		goto fail;
	list = edit_list(e->bitmaps, b, NULL);
	if (!list) {
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
		goto fail;
	}
	b->flags = flags & IMG_BITMAP_ADD_DISABLED ? 0 : QCOW2_BITMAP_AUTO;
	ret = qcow2_bitmap_dir_write(e, list, e->bitmaps->nr + 1, err);
	if (ret != 0 && e->bitmaps->list != list)
		goto fail;
	if (ret == 0 && e->bitmaps->active && (b->flags & QCOW2_BITMAP_AUTO)) {
		ret = qcow2_bitmap_follow(e, b, err);
		if (ret == 0)
			ret = qcow2_bitmap_sync(e, err);
	}
	return ret;

fail:
	if (b && b->table_off && !atomic_load(&e->broken)) {
		pthread_rwlock_wrlock(&e->map);
		(void)qcow2_bitmap_give_all(e, b, NULL);
		pthread_rwlock_unlock(&e->map);
	}
	qcow2_bitmap_free(b);
	free(list);
	return ret;
}

int qcow2_bitmap_add(struct node *n, const char *name, uint64_t granularity, unsigned flags, struct img_error *err)
{
	struct qcow2_engine *e;
	int ret = lock_head(n, &e, err);

	if (ret != 0)
		return ret;
	ret = add(e, name, granularity_bits_of(e, granularity), flags, err);
	if (ret == 0)
		ret = qcow2_flush_all(e, err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

static int remove_bitmap(struct qcow2_engine *e, struct qcow2_bitmap *b, struct img_error *err)
{
	struct qcow2_bitmap **list = edit_list(e->bitmaps, NULL, b);
	int ret;

	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
	ret = qcow2_bitmap_dir_write(e, list, e->bitmaps->nr - 1, err);
	if (e->bitmaps->list != list) {
		free(list);
		return ret;
	}
	if (b->followed)
		qcow2_bitmap_unfollow(e, b);
	if (ret == 0) {
		pthread_rwlock_wrlock(&e->map);
		ret = qcow2_bitmap_give_all(e, b, err);
		pthread_rwlock_unlock(&e->map);
	}
	qcow2_bitmap_free(b);
	return ret;
}

int qcow2_bitmap_remove(struct node *n, const char *name, struct img_error *err)
{
	struct qcow2_engine *e;
	struct qcow2_bitmap *b;
	int ret = lock_head(n, &e, err);

	if (ret != 0)
		return ret;
	ret = get(e, name, &b, err);
	if (ret == 0 && qcow2_bitmap_stale(e))
		ret = qcow2_bitmap_drop_stale(e, err); /* none of them could be kept */
	else if (ret == 0)
		ret = remove_bitmap(e, b, err);
	if (ret == 0)
		ret = qcow2_flush_all(e, err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

/* ---- enable, disable, clear, merge ------------------------------------------------------------------------------- */

static int set_enabled(struct qcow2_engine *e, struct qcow2_bitmap *b, bool enable, struct img_error *err)
{
	uint32_t flags = (b->flags & ~(uint32_t)QCOW2_BITMAP_AUTO) | (enable ? QCOW2_BITMAP_AUTO : 0u);
	int ret = 0;

	if (flags == b->flags)
		return 0;
	if (enable && e->bitmaps->active)
		ret = qcow2_bitmap_follow(e, b, err);
	if (ret == 0)
		ret = qcow2_bitmap_write_flags(e, b, b->followed ? flags | QCOW2_BITMAP_IN_USE : flags, err);
	if (ret != 0)
		return ret;
	qcow2_bitmap_set_flags(e, b, b->flags);
	return qcow2_bitmap_sync(e, err);
}

int qcow2_bitmap_enable(struct node *n, const char *name, bool enable, struct img_error *err)
{
	struct qcow2_engine *e;
	struct qcow2_bitmap *b;
	int ret = lock_head(n, &e, err);

	if (ret != 0)
		return ret;
	ret = get_usable(e, name, &b, err);
	if (ret == 0)
		ret = set_enabled(e, b, enable, err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

/* New content for a bitmap that is not followed. */
static int replace(struct qcow2_engine *e, struct qcow2_bitmap *b, const struct bitmap_pages *pages, bool clear,
		   struct img_error *err)
{
	struct bitmap_change c = { 0 };
	int ret = qcow2_bitmap_change_prepare(e, b, pages, clear, &c, err);

	if (ret == 0)
		ret = qcow2_bitmap_change_commit(e, &c, 1, err);
	return ret == 0 ? qcow2_flush_all(e, err) : ret;
}

static int clear_followed(struct qcow2_engine *e, struct qcow2_bitmap *b, struct img_error *err)
{
	struct bitmap_pages fresh;
	int ret = qcow2_bitmap_pages_init(&fresh, qcow2_bitmap_clusters(e, b->bits), err);

	if (ret != 0)
		return ret;
	pthread_rwlock_wrlock(&e->bitmaps->lock);
	qcow2_bitmap_pages_free(e, &b->pages);
	b->pages.at = fresh.at;
	b->pages.nr = fresh.nr;
	b->disk_bits = 0;
	pthread_rwlock_unlock(&e->bitmaps->lock);
	return 0;
}

int qcow2_bitmap_clear(struct node *n, const char *name, struct img_error *err)
{
	struct qcow2_engine *e;
	struct qcow2_bitmap *b;
	int ret = lock_head(n, &e, err);

	if (ret != 0)
		return ret;
	ret = get_usable(e, name, &b, err);
	if (ret == 0)
		ret = b->followed ? clear_followed(e, b, err) : replace(e, b, NULL, true, err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

/* Without locks: the source may be another bitmap of this engine. */
static int pull(struct qcow2_engine *e, const struct bitmap_source *src, unsigned granularity_bits, uint64_t bits,
		struct bitmap_pages *pages, struct img_error *err)
{
	struct img_range *ranges = calloc(MERGE_RANGES, sizeof(*ranges));
	size_t nr = 1;
	int ret = ranges ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");

	while (ret == 0 && nr > 0) {
		ret = src->next(src->ctx, ranges, MERGE_RANGES, &nr, err);
		for (size_t i = 0; ret == 0 && i < nr; i++) {
			uint64_t first = ranges[i].off >> granularity_bits;
			uint64_t last = (ranges[i].off + ranges[i].bytes - 1) >> granularity_bits;

			if (ranges[i].bytes > 0 && first < bits)
				qcow2_bitmap_pages_set(e, pages, first, min_u64(last, bits - 1));
		}
	}
	free(ranges);
	if (ret == 0 && atomic_load(&pages->lost))
		ret = error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				"the merge needs more memory than bitmaps may take");
	return ret;
}

/* Runs of a set of pages, into those of a bitmap that is followed. */
static void add_pages(struct qcow2_engine *e, struct qcow2_bitmap *b, const struct bitmap_pages *from)
{
	uint64_t per_page = e->cluster_bytes * 8;

	pthread_rwlock_rdlock(&e->bitmaps->lock);
	for (uint64_t i = 0; i < from->nr; i++) {
		const uint8_t *page = atomic_load(&from->at[i]);

		for (uint64_t at = 0; page && at < e->cluster_bytes; at++) {
			for (unsigned bit = 0; page[at] && bit < 8; bit++) {
				uint64_t n = i * per_page + at * 8 + bit;

				if (page[at] >> bit & 1)
					qcow2_bitmap_pages_set(e, &b->pages, n, n);
			}
		}
	}
	pthread_rwlock_unlock(&e->bitmaps->lock);
}

int qcow2_bitmap_merge(struct node *n, const char *name, const struct bitmap_source *src, struct img_error *err)
{
	struct bitmap_pages pages = { 0 };
	struct qcow2_engine *e;
	struct qcow2_bitmap *b;
	unsigned granularity_bits = 0;
	uint64_t bits = 0;
	int ret = lock_head(n, &e, err);

	if (ret != 0)
		return ret;
	ret = get_usable(e, name, &b, err);
	if (ret == 0) {
		granularity_bits = b->granularity_bits;
		bits = b->bits;
		ret = qcow2_bitmap_pages_init(&pages, qcow2_bitmap_clusters(e, bits), err);
	}
	pthread_mutex_unlock(&e->bitmaps->ops);
	if (ret == 0)
		ret = pull(e, src, granularity_bits, bits, &pages, err);
	pthread_mutex_lock(&e->bitmaps->ops);
	if (ret == 0)
		ret = get_usable(e, name, &b, err);
	if (ret == 0 && (b->granularity_bits != granularity_bits || b->bits != bits))
		ret = error_set(err, IMG_E_BUSY, 0, NO_OFFSET, LAYER, "bitmap '%s' was changed meanwhile", name);
	if (ret == 0 && b->followed)
		add_pages(e, b, &pages);
	else if (ret == 0)
		ret = replace(e, b, &pages, false, err);
	qcow2_bitmap_pages_free(e, &pages);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}
