/* SPDX-License-Identifier: MIT */
/*
 * The directory of bitmaps: load, checks, store, changes in place. See qcow2_bitmap.h.
 *
 * A directory that cannot be read does not keep the disk from being read; and a writer that cannot follow what it
 * cannot read says so by clearing the autoclear bit.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_bitmap.h"

bool qcow2_bitmap_stale(const struct qcow2_engine *e)
{
	return e->h.nr_bitmaps > 0 && !(e->h.autoclear & QCOW2_BITMAPS);
}

uint64_t qcow2_bitmap_bits(uint64_t disk_bytes, unsigned granularity_bits)
{
	uint64_t mask = (UINT64_C(1) << granularity_bits) - 1;

	return (disk_bytes >> granularity_bits) + ((disk_bytes & mask) != 0);
}

uint64_t qcow2_bitmap_clusters(const struct qcow2_engine *e, uint64_t bits)
{
	uint64_t per_cluster = e->cluster_bytes * 8;

	return bits / per_cluster + (bits % per_cluster != 0);
}

bool qcow2_bitmap_known(const struct qcow2_bitmap *b)
{
	return b->type == BITMAP_TYPE_DIRTY && !(b->flags & ~(uint32_t)BITMAP_FLAGS_KNOWN) &&
	       (b->extra_bytes == 0 || (b->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE));
}

int qcow2_bitmap_check(const struct qcow2_engine *e, const struct qcow2_bitmap *b, struct img_error *err)
{
	uint64_t table_bytes = (uint64_t)b->table_entries * 8, bits, clusters;

	if (b->name_bytes == 0 || b->name_bytes > QCOW2_BITMAP_NAME_MAX)
		return error_set(err, IMG_E_CORRUPT, 0, b->entry_off, LAYER,
				 "bitmap at 0x%" PRIx64 ": the name has %" PRIu32 " bytes, not 1 to %u: remove it",
				 b->entry_off, b->name_bytes, QCOW2_BITMAP_NAME_MAX);
	if (memchr(b->name, '\0', b->name_bytes))
		return error_set(err, IMG_E_CORRUPT, 0, b->entry_off, LAYER,
				 "bitmap at 0x%" PRIx64 ": there is a NUL in the name: remove it", b->entry_off);
	if (b->granularity_bits < BITMAP_GRANULARITY_MIN || b->granularity_bits > BITMAP_GRANULARITY_MAX)
		return error_set(err, IMG_E_CORRUPT, 0, b->entry_off, LAYER,
				 "bitmap at 0x%" PRIx64 ": granularity 2^%u, not 2^%u to 2^%u: remove it", b->entry_off,
				 b->granularity_bits, BITMAP_GRANULARITY_MIN, BITMAP_GRANULARITY_MAX);
	if (b->table_off % e->cluster_bytes != 0 || (b->table_off == 0 && b->table_entries > 0) ||
	    !range_inside(b->table_off, table_bytes, node_size(e->file)) ||
	    (uint64_t)b->table_entries << e->h.cluster_bits > BITMAP_MAX_BYTES)
		return error_set(err, IMG_E_CORRUPT, 0, b->entry_off, LAYER,
				 "bitmap at 0x%" PRIx64 ": a table of %" PRIu32 " entries at 0x%" PRIx64 ": remove it",
				 b->entry_off, b->table_entries, b->table_off);
	if (b->flags & QCOW2_BITMAP_IN_USE)
		return 0;
	bits = qcow2_bitmap_bits(e->h.size, b->granularity_bits);
	clusters = qcow2_bitmap_clusters(e, bits);
	if (b->table_entries != clusters)
		return error_set(err, IMG_E_CORRUPT, 0, b->entry_off, LAYER,
				 "bitmap at 0x%" PRIx64 ": the table has %" PRIu32 " entries, the disk needs %" PRIu64
				 ": remove it",
				 b->entry_off, b->table_entries, clusters);
	return 0;
}

bool qcow2_bitmap_usable(const struct qcow2_engine *e, const struct qcow2_bitmap *b)
{
	if (b->followed)
		return !b->pages.lost;
	return !(b->flags & QCOW2_BITMAP_IN_USE) && !qcow2_bitmap_stale(e) && qcow2_bitmap_known(b) &&
	       qcow2_bitmap_check(e, b, NULL) == 0;
}

void qcow2_bitmap_free(struct qcow2_bitmap *b)
{
	if (!b)
		return;
	free(b->name);
	free(b->extra);
	free(b);
}

/* ---- load -------------------------------------------------------------------------------------------------------- */

static void forget_list(struct qcow2_engine *e)
{
	struct qcow2_bitmaps *bs = e->bitmaps;

	for (uint32_t i = 0; i < bs->nr; i++) {
		qcow2_bitmap_pages_free(e, &bs->list[i]->pages);
		qcow2_bitmap_free(bs->list[i]);
	}
	free(bs->list);
	bs->list = NULL;
	bs->nr = 0;
}

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
}

/* One entry of buf, which has bytes; *entry_bytes is its length. */
static int parse_entry(struct qcow2_engine *e, const uint8_t *buf, uint64_t bytes, uint64_t off,
		       struct qcow2_bitmap **out, uint64_t *entry_bytes, struct img_error *err)
{
	struct disk_qcow2_bitmap d;
	struct qcow2_bitmap *b;
	uint64_t whole;

	if (bytes < sizeof(d))
		goto truncated;
	memcpy(&d, buf, sizeof(d));
	whole = round_up(sizeof(d) + (uint64_t)be32_get(d.extra_bytes) + be16_get(d.name_bytes), 8);
	if (whole > bytes)
		goto truncated;
	b = calloc(1, sizeof(*b));
	if (!b)
		return no_memory(err);
	b->entry_off = off;
	b->table_off = be64_get(d.table_off);
	b->table_entries = be32_get(d.table_entries);
	b->flags = be32_get(d.flags);
	b->type = d.type;
	b->granularity_bits = d.granularity_bits;
	b->name_bytes = be16_get(d.name_bytes);
	b->extra_bytes = be32_get(d.extra_bytes);
	b->name = calloc(1, (size_t)b->name_bytes + 1);
	b->extra = malloc(b->extra_bytes ? b->extra_bytes : 1);
	if (!b->name || !b->extra) {
		qcow2_bitmap_free(b);
		return no_memory(err);
	}
	memcpy(b->extra, buf + sizeof(d), b->extra_bytes);
	memcpy(b->name, buf + sizeof(d) + b->extra_bytes, b->name_bytes);
	if (b->granularity_bits <= BITMAP_GRANULARITY_MAX)
		b->bits = b->disk_bits = qcow2_bitmap_bits(e->h.size, b->granularity_bits);
	*out = b;
	*entry_bytes = whole;
	return 0;

truncated:
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
			 "bitmap directory: the entry at 0x%" PRIx64 " does not end inside the directory", off);
}

static int parse_directory(struct qcow2_engine *e, const uint8_t *buf, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	uint64_t at = 0, entry_bytes = 0;

	bs->list = calloc(e->h.nr_bitmaps, sizeof(struct qcow2_bitmap *));
	if (!bs->list)
		return no_memory(err);
	for (bs->nr = 0; bs->nr < e->h.nr_bitmaps; bs->nr++) {
		int ret = parse_entry(e, buf + at, e->h.bitmap_dir_bytes - at, e->h.bitmap_dir_off + at,
				      &bs->list[bs->nr], &entry_bytes, err);

		if (ret != 0)
			return ret;
		at += entry_bytes;
	}
	if (at == e->h.bitmap_dir_bytes)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, e->h.bitmap_dir_off + at, LAYER,
			 "bitmap directory: %" PRIu32 " entries take 0x%" PRIx64 " bytes, the header says 0x%" PRIx64,
			 e->h.nr_bitmaps, at, e->h.bitmap_dir_bytes);
}

/* Each table stands for itself. Thousands of bitmaps in one table would take a reader hours. */
static int check_tables_apart(const struct qcow2_engine *e, struct img_error *err)
{
	uint64_t sum = 0, file_bytes = round_up(node_size(e->file), e->cluster_bytes);

	/* one that is damaged by itself is not read */
	for (uint32_t i = 0; i < e->bitmaps->nr && sum <= file_bytes; i++) {
		if (qcow2_bitmap_check(e, e->bitmaps->list[i], NULL) == 0)
			sum += round_up((uint64_t)e->bitmaps->list[i]->table_entries * 8, e->cluster_bytes);
	}
	if (sum <= file_bytes)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, e->h.bitmap_dir_off, LAYER,
			 "the tables of bitmaps are longer than the file, so that they overlap");
}

static int load_directory(struct qcow2_engine *e, struct img_error *err)
{
	uint8_t *buf;
	int ret;

	if (e->h.bitmap_dir_off % e->cluster_bytes != 0 || e->h.bitmap_dir_off == 0 ||
	    e->h.bitmap_dir_bytes > QCOW2_BITMAP_DIR_MAX_BYTES || e->h.nr_bitmaps > QCOW2_BITMAPS_MAX ||
	    !range_inside(e->h.bitmap_dir_off, e->h.bitmap_dir_bytes, node_size(e->file)))
		return error_set(err, IMG_E_CORRUPT, 0, e->h.bitmap_dir_off, LAYER,
				 "bitmap directory: 0x%" PRIx64 " bytes at 0x%" PRIx64 " cannot be one",
				 e->h.bitmap_dir_bytes, e->h.bitmap_dir_off);
	buf = malloc((size_t)(e->h.bitmap_dir_bytes ? e->h.bitmap_dir_bytes : 1));
	if (!buf)
		return no_memory(err);
	ret = node_pread(e->file, buf, e->h.bitmap_dir_bytes, e->h.bitmap_dir_off, 0, err);
	if (ret == 0)
		ret = parse_directory(e, buf, err);
	if (ret == 0)
		ret = check_tables_apart(e, err);
	free(buf);
	return ret;
}

int qcow2_bitmaps_load(struct qcow2_engine *e, struct img_error *err)
{
	struct qcow2_bitmaps *bs = calloc(1, sizeof(*bs));
	int ret;

	if (!bs)
		return no_memory(err);
	pthread_mutex_init(&bs->ops, NULL);
	pthread_rwlock_init(&bs->lock, NULL);
	bs->disk_bytes = e->h.size;
	e->bitmaps = bs;
	if (e->h.nr_bitmaps == 0)
		return 0;
	ret = load_directory(e, &bs->why);
	if (ret == 0)
		return 0;
	forget_list(e);
	if (ret != IMG_E_CORRUPT) {
		if (err)
			*err = bs->why;
		qcow2_bitmaps_free(e);
		return ret;
	}
	bs->damaged = true;
	return 0;
}

void qcow2_bitmaps_free(struct qcow2_engine *e)
{
	if (!e->bitmaps)
		return;
	forget_list(e);
	pthread_rwlock_destroy(&e->bitmaps->lock);
	pthread_mutex_destroy(&e->bitmaps->ops);
	free(e->bitmaps);
	e->bitmaps = NULL;
}

/* ---- store ------------------------------------------------------------------------------------------------------- */

int qcow2_bitmap_sync(struct qcow2_engine *e, struct img_error *err)
{
	return e->bulk ? 0 : node_flush(e->file, 0, err);
}

static uint64_t entry_bytes_of(const struct qcow2_bitmap *b)
{
	return round_up(sizeof(struct disk_qcow2_bitmap) + (uint64_t)b->extra_bytes + b->name_bytes, 8);
}

static void put_entry(const struct qcow2_bitmap *b, uint8_t *at)
{
	struct disk_qcow2_bitmap d = {
		.table_off = be64_of(b->table_off),
		.table_entries = be32_of(b->table_entries),
		.flags = be32_of(b->flags),
		.type = b->type,
		.granularity_bits = b->granularity_bits,
		.name_bytes = be16_of((uint16_t)b->name_bytes),
		.extra_bytes = be32_of(b->extra_bytes),
	};

	memcpy(at, &d, sizeof(d));
	if (b->extra_bytes)
		memcpy(at + sizeof(d), b->extra, b->extra_bytes);
	memcpy(at + sizeof(d) + b->extra_bytes, b->name, b->name_bytes);
}

/* A directory in new clusters, durable, which nothing refers to yet. */
static int write_directory(struct qcow2_engine *e, struct qcow2_bitmap *const *list, uint32_t nr, uint64_t *off,
			   uint64_t *bytes, struct img_error *err)
{
	uint64_t at = 0, whole;
	uint8_t *buf;
	int ret;

	*bytes = 0;
	for (uint32_t i = 0; i < nr; i++)
		*bytes += entry_bytes_of(list[i]);
	if (nr > QCOW2_BITMAPS_MAX || *bytes > QCOW2_BITMAP_DIR_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "%" PRIu32 " bitmaps: an image holds at most %u, with at most 64 MiB of names", nr,
				 QCOW2_BITMAPS_MAX);
	whole = round_up(*bytes, e->cluster_bytes);
	buf = calloc(1, (size_t)whole);
	if (!buf)
		return no_memory(err);
	for (uint32_t i = 0; i < nr; i++) {
		put_entry(list[i], buf + at);
		at += entry_bytes_of(list[i]);
	}
	pthread_rwlock_wrlock(&e->map);
	ret = qcow2_bitmap_take(e, whole >> e->h.cluster_bits, off, err);
	if (ret == 0) {
		ret = node_pwrite(e->file, buf, whole, *off, 0, err);
		if (ret != 0)
			qcow2_bitmap_give(e, *off, whole >> e->h.cluster_bits, NULL);
	}
	pthread_rwlock_unlock(&e->map);
	free(buf);
	if (ret == 0)
		ret = qcow2_flush_all(e, err);
	return ret == 0 ? qcow2_bitmap_sync(e, err) : ret;
}

/* Does the header's write switch in one sector? Extensions begin with format and data file's name; see header_store.c. */
static bool is_one_write(const struct qcow2_engine *e)
{
	return e->h.unknown_bytes + strlen(e->h.data_file) < 256;
}

/* map wr. The header points to the new directory (nr 0: to none). */
static int switch_directory(struct qcow2_engine *e, uint32_t nr, uint64_t off, uint64_t bytes, struct img_error *err)
{
	struct qcow2_header before = e->h;
	int ret = 0;

	e->h.autoclear &= QCOW2_AUTOCLEAR_KNOWN;
	if (!is_one_write(e) && e->h.nr_bitmaps > 0 && (e->h.autoclear & QCOW2_BITMAPS)) {
		e->h.autoclear &= ~(uint64_t)QCOW2_BITMAPS;
		ret = qcow2_header_write_fields(e, err);
		if (ret == 0)
			ret = qcow2_bitmap_sync(e, err);
	}
	e->h.nr_bitmaps = nr;
	e->h.bitmap_dir_off = off;
	e->h.bitmap_dir_bytes = bytes;
	e->h.autoclear &= ~(uint64_t)QCOW2_BITMAPS;
	e->h.autoclear |= nr > 0 ? (uint64_t)QCOW2_BITMAPS : 0;
	if (ret == 0)
		ret = qcow2_header_write(e, err);
	if (ret != 0) {
		e->h.nr_bitmaps = before.nr_bitmaps;
		e->h.bitmap_dir_off = before.bitmap_dir_off;
		e->h.bitmap_dir_bytes = before.bitmap_dir_bytes;
		e->h.autoclear = before.autoclear;
		if (ret != IMG_E_LIMIT) /* it may have happened */
			atomic_store(&e->broken, true);
	}
	return ret;
}

int qcow2_bitmap_dir_write(struct qcow2_engine *e, struct qcow2_bitmap **list, uint32_t nr, struct img_error *err)
{
	struct qcow2_bitmaps *bs = e->bitmaps;
	uint64_t old_off = e->h.nr_bitmaps ? e->h.bitmap_dir_off : 0, off = 0, bytes = 0;
	uint64_t old_clusters = round_up(e->h.bitmap_dir_bytes, e->cluster_bytes) >> e->h.cluster_bits;
	int ret = nr > 0 ? write_directory(e, list, nr, &off, &bytes, err) : qcow2_flush_all(e, err);

	if (ret != 0)
		return ret;
	pthread_rwlock_wrlock(&e->map);
	ret = switch_directory(e, nr, off, bytes, err);
	if (ret == 0) {
		pthread_rwlock_wrlock(&bs->lock);
		free(bs->list);
		bs->list = list;
		bs->nr = nr;
		for (uint32_t i = 0; i < nr; i++) {
			list[i]->entry_off = off;
			off += entry_bytes_of(list[i]);
		}
		pthread_rwlock_unlock(&bs->lock);
		if (old_off)
			ret = qcow2_bitmap_give(e, old_off, old_clusters, err);
	} else if (off && !atomic_load(&e->broken)) {
		qcow2_bitmap_give(e, off, round_up(bytes, e->cluster_bytes) >> e->h.cluster_bits, NULL);
	}
	pthread_rwlock_unlock(&e->map);
	return ret;
}

/* Their clusters are not given back: whoever made them stale may have done so already, and a repair finds what is lost.
 */
static int drop_all(struct qcow2_engine *e, struct img_error *err)
{
	int ret;

	pthread_rwlock_wrlock(&e->map);
	ret = switch_directory(e, 0, 0, 0, err);
	if (ret == 0) {
		pthread_rwlock_wrlock(&e->bitmaps->lock);
		forget_list(e);
		e->bitmaps->damaged = false;
		atomic_store(&e->bitmaps->nr_recording, 0);
		pthread_rwlock_unlock(&e->bitmaps->lock);
	}
	pthread_rwlock_unlock(&e->map);
	return ret;
}

int qcow2_bitmap_drop_stale(struct qcow2_engine *e, struct img_error *err)
{
	int ret;

	if (!qcow2_bitmap_stale(e) && !e->bitmaps->damaged)
		return 0;
	ret = qcow2_flush_all(e, err);
	return ret == 0 ? drop_all(e, err) : ret;
}

/* ---- in place ---------------------------------------------------------------------------------------------------- */

int qcow2_bitmap_write_flags(struct qcow2_engine *e, struct qcow2_bitmap *b, uint32_t flags, struct img_error *err)
{
	struct be32 d = be32_of(flags);
	int ret = node_pwrite(e->file, &d, sizeof(d), b->entry_off + BITMAP_ENTRY_FLAGS_OFF, 0, err);

	if (ret == 0)
		b->flags = flags;
	return ret;
}

int qcow2_bitmap_write_table_place(struct qcow2_engine *e, struct qcow2_bitmap *b, uint64_t off, uint32_t nr,
				   struct img_error *err)
{
	struct {
		struct be64 off;
		struct be32 nr;
	} d = { be64_of(off), be32_of(nr) };

	_Static_assert(sizeof(d) == BITMAP_ENTRY_FLAGS_OFF, "the table's place stands before the flags");
	return node_pwrite(e->file, &d, sizeof(d), b->entry_off, 0, err);
}
