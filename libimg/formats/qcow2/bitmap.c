/* SPDX-License-Identifier: MIT */
/*
 * Persistent dirty bitmaps while an image is written, and across changes of its size; and who holds which clusters, for
 * those who count. See qcow2_bitmap.h. The operations that a user asks for are in bitmap_ops.c.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_bitmap.h"

/* ops; lock wr is taken here. */
static void count_recording(struct qcow2_bitmaps *bs)
{
	unsigned nr = 0;

	for (uint32_t i = 0; i < bs->nr; i++)
		nr += bs->list[i]->followed && (bs->list[i]->flags & QCOW2_BITMAP_AUTO);
	atomic_store(&bs->nr_recording, nr);
}

int qcow2_bitmap_follow(struct qcow2_engine *e, struct qcow2_bitmap *b, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	struct bitmap_pages pages = { 0 };
	bool usable = qcow2_bitmap_usable(e, b);
	int ret = 0;

	if (b->followed)
		return 0;
	/* What we do not understand we cannot follow either: it is in use from now on, for good. */
	if (usable)
		ret = qcow2_bitmap_pages_init(&pages, qcow2_bitmap_clusters(e, b->bits), err);
	if (ret == 0 && !(b->flags & QCOW2_BITMAP_IN_USE))
		ret = qcow2_bitmap_write_flags(e, b, b->flags | QCOW2_BITMAP_IN_USE, err);
	if (ret != 0 || !usable) {
		qcow2_bitmap_pages_free(e, &pages);
		return ret;
	}
	pthread_rwlock_wrlock(&bs->lock);
	b->pages.at = pages.at;
	b->pages.nr = pages.nr;
	atomic_store(&b->pages.lost, false);
	b->followed = true;
	count_recording(bs);
	pthread_rwlock_unlock(&bs->lock);
	return 0;
}

void qcow2_bitmap_unfollow(struct qcow2_engine *e, struct qcow2_bitmap *b)
{
	pthread_rwlock_wrlock(&e->bitmaps->lock);
	b->followed = false;
	qcow2_bitmap_pages_free(e, &b->pages);
	count_recording(e->bitmaps);
	pthread_rwlock_unlock(&e->bitmaps->lock);
}

void qcow2_bitmap_set_flags(struct qcow2_engine *e, struct qcow2_bitmap *b, uint32_t flags)
{
	pthread_rwlock_wrlock(&e->bitmaps->lock);
	b->flags = flags;
	count_recording(e->bitmaps);
	pthread_rwlock_unlock(&e->bitmaps->lock);
}

/* ops */
static int begin(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	bool marked = false;
	int ret;

	if (bs->active)
		return 0;
	ret = qcow2_bitmap_drop_stale(e, err);
	for (uint32_t i = 0; ret == 0 && i < bs->nr; i++) {
		struct qcow2_bitmap *b = bs->list[i];

		if (!(b->flags & QCOW2_BITMAP_AUTO) || (b->flags & QCOW2_BITMAP_IN_USE))
			continue;
		ret = qcow2_bitmap_follow(e, b, err);
		marked = true;
	}
	if (ret == 0 && marked)
		ret = qcow2_bitmap_sync(e, err);
	bs->active = ret == 0;
	return ret;
}

int qcow2_bitmaps_begin(struct qcow2_engine *e, struct img_error *err)
{
	int ret;

	if (!e->bitmaps)
		return 0;
	pthread_mutex_lock(&e->bitmaps->ops);
	ret = begin(e, err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

void qcow2_bitmaps_note(struct qcow2_engine *e, uint64_t off, uint64_t bytes)
{
	struct qcow2_bitmaps *bs = e->bitmaps;

	if (!bs || bytes == 0 || atomic_load_explicit(&bs->nr_recording, memory_order_acquire) == 0)
		return;
	pthread_rwlock_rdlock(&bs->lock);
	for (uint32_t i = 0; i < bs->nr && off < bs->disk_bytes; i++) {
		struct qcow2_bitmap *b = bs->list[i];
		uint64_t first;

		/* one that is not followed may claim any granularity */
		if (!b->followed || !(b->flags & QCOW2_BITMAP_AUTO))
			continue;
		first = off >> b->granularity_bits;
		if (first < b->bits)
			qcow2_bitmap_pages_set(e, &b->pages, first,
					       min_u64((off + bytes - 1) >> b->granularity_bits, b->bits - 1));
	}
	pthread_rwlock_unlock(&bs->lock);
}

static bool is_changed(const struct qcow2_engine *e, const struct qcow2_bitmap *b)
{
	if (b->has_tail || b->disk_bits != b->bits || b->table_entries != qcow2_bitmap_clusters(e, b->bits))
		return true;
	for (uint64_t i = 0; i < b->pages.nr; i++) {
		if (atomic_load(&b->pages.at[i]))
			return true;
	}
	return false;
}

/*
 * What was followed goes to disk, all together; *stored says of which. Those that could not be kept, or whose table
 * turns out to be damaged, stay in use.
 */
static int store_followed(struct qcow2_engine *e, bool *stored, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	struct bitmap_change *changes = calloc(bs->nr ? bs->nr : 1, sizeof(*changes));
	struct img_error why = { .code = IMG_OK };
	size_t nr = 0;
	int ret = 0;

	if (!changes)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
	for (uint32_t i = 0; ret == 0 && i < bs->nr; i++) {
		struct qcow2_bitmap *b = bs->list[i];

		if (!b->followed || atomic_load(&b->pages.lost))
			continue;
		stored[i] = true;
		if (!is_changed(e, b))
			continue;
		ret = qcow2_bitmap_change_prepare(e, b, &b->pages, false, &changes[nr], &why);
		nr += ret == 0;
		if (ret == IMG_E_CORRUPT) {
			stored[i] = false;
			error_clear(&why);
			ret = 0;
		}
	}
	if (ret == 0 && nr > 0)
		ret = qcow2_bitmap_change_commit(e, changes, nr, err);
	else if (ret != 0)
		for (size_t i = 0; i < nr; i++)
			qcow2_bitmap_change_abort(e, &changes[i]);
	if (why.code != IMG_OK && err)
		*err = why;
	free(changes);
	return ret;
}

/* ops */
static int end(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	bool *stored = calloc(bs->nr ? bs->nr : 1, sizeof(*stored)), any = false;
	int ret;

	if (!stored)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
	ret = store_followed(e, stored, err);
	/* What was written before a bitmap was made or enabled is not in it, and so must not be lost once it is valid. */
	if (ret == 0 && bs->nr > 0)
		ret = qcow2_flush_all(e, err);
	if (ret == 0 && bs->nr > 0)
		ret = qcow2_bitmap_sync(e, err);
	for (uint32_t i = 0; ret == 0 && i < bs->nr; i++) {
		struct qcow2_bitmap *b = bs->list[i];

		if (!stored[i])
			continue;
		ret = qcow2_bitmap_write_flags(e, b, b->flags & ~(uint32_t)QCOW2_BITMAP_IN_USE, err);
		any = true;
	}
	if (ret == 0 && any)
		ret = qcow2_bitmap_sync(e, err);
	for (uint32_t i = 0; i < bs->nr; i++) {
		if (bs->list[i]->followed)
			qcow2_bitmap_unfollow(e, bs->list[i]);
	}
	bs->active = false;
	free(stored);
	if (ret == 0 && any)
		ret = qcow2_flush_all(e, err);
	return ret;
}

int qcow2_bitmaps_end(struct qcow2_engine *e, struct img_error *err)
{
	int ret = 0;

	if (!e->bitmaps)
		return 0;
	pthread_mutex_lock(&e->bitmaps->ops);
	if (e->bitmaps->active && !atomic_load(&e->broken))
		ret = end(e, err);
	pthread_mutex_unlock(&e->bitmaps->ops);
	return ret;
}

/* ---- another size ------------------------------------------------------------------------------------------------ */

static int check_new_size(const struct qcow2_engine *e, const struct qcow2_bitmap *b, uint64_t size_bytes,
			  struct img_error *err)
{
	uint64_t clusters = qcow2_bitmap_clusters(e, qcow2_bitmap_bits(size_bytes, b->granularity_bits));

	if (size_bytes == 0)
		return error_set(err, IMG_E_REFUSED, 0, b->entry_off, LAYER,
				 "a disk of no size has no bitmaps: remove bitmap '%s' first", b->name);
	if (clusters > BITMAP_MAX_BYTES >> e->h.cluster_bits)
		return error_set(err, IMG_E_LIMIT, 0, b->entry_off, LAYER,
				 "bitmap '%s' would take more than 512 MiB with granularity 2^%u: remove it first",
				 b->name, b->granularity_bits);
	return 0;
}

int qcow2_bitmaps_resize_prepare(struct qcow2_engine *e, uint64_t size_bytes, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	int ret;

	if (!bs)
		return 0;
	pthread_mutex_lock(&bs->ops);
	ret = begin(e, err);
	for (uint32_t i = 0; ret == 0 && i < bs->nr; i++) {
		if (qcow2_bitmap_usable(e, bs->list[i]))
			ret = check_new_size(e, bs->list[i], size_bytes, err);
	}
	for (uint32_t i = 0; ret == 0 && i < bs->nr; i++)
		ret = qcow2_bitmap_follow(e, bs->list[i], err);
	if (ret == 0 && bs->nr > 0)
		ret = qcow2_bitmap_sync(e, err);
	pthread_mutex_unlock(&bs->ops);
	return ret;
}

void qcow2_bitmaps_resized(struct qcow2_engine *e, uint64_t size_bytes)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	uint64_t old;

	if (!bs)
		return;
	pthread_mutex_lock(&bs->ops);
	pthread_rwlock_wrlock(&bs->lock);
	old = bs->disk_bytes;
	bs->disk_bytes = size_bytes;
	for (uint32_t i = 0; i < bs->nr; i++) {
		struct qcow2_bitmap *b = bs->list[i];
		uint64_t bits;

		if (!b->followed)
			continue;
		bits = qcow2_bitmap_bits(size_bytes, b->granularity_bits);
		qcow2_bitmap_pages_resize(e, &b->pages, bits);
		b->has_tail = b->has_tail || bits < b->bits;
		b->bits = bits;
		b->disk_bits = min_u64(b->disk_bits, bits);
	}
	pthread_rwlock_unlock(&bs->lock);
	pthread_mutex_unlock(&bs->ops);
	/* Where a disk grows there was something else once, perhaps, which a backup holds: it was shorter since. */
	if (size_bytes > old)
		qcow2_bitmaps_note(e, old, size_bytes - old);
}

/* ---- whose clusters ---------------------------------------------------------------------------------------------- */

static int tell_damage(const struct qcow2_bitmap_visitor *v, const char *name, const struct img_error *why,
		       struct img_error *err)
{
	if (v->damage)
		return v->damage(v->ctx, name, why);
	if (err)
		*err = *why;
	return why->code;
}

static int walk_bitmap(struct qcow2_engine *e, const struct qcow2_bitmap *b, const struct qcow2_bitmap_visitor *v,
		       struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	uint64_t *table;
	int ret = qcow2_bitmap_table_load(e, b, &table, &why);

	if (ret == IMG_E_CORRUPT)
		return tell_damage(v, b->name, &why, err);
	if (ret != 0)
		return error_set(err, ret, why.sys_errno, why.offset, LAYER, "%s", why.msg);
	if (b->table_entries > 0)
		ret = v->extent(v->ctx, b->table_off, round_up((uint64_t)b->table_entries * 8, e->cluster_bytes),
				b->name, err);
	for (uint32_t i = 0; ret == 0 && i < b->table_entries; i++) {
		if (table[i] > BITMAP_ALL_ONES)
			ret = v->extent(v->ctx, table[i], e->cluster_bytes, b->name, err);
	}
	free(table);
	return ret;
}

int qcow2_bitmaps_walk(struct qcow2_engine *e, const struct qcow2_bitmap_visitor *v, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	int ret;

	if (!bs || e->h.nr_bitmaps == 0 || qcow2_bitmap_stale(e))
		return 0;
	if (bs->damaged)
		return tell_damage(v, "", &bs->why, err);
	ret = v->extent(v->ctx, e->h.bitmap_dir_off, round_up(e->h.bitmap_dir_bytes, e->cluster_bytes), "", err);
	for (uint32_t i = 0; ret == 0 && i < bs->nr; i++)
		ret = walk_bitmap(e, bs->list[i], v, err);
	return ret;
}
