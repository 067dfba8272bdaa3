/* SPDX-License-Identifier: MIT */
/* Content of bitmaps: pages in memory, tables and clusters on disk, and the change from one content to another. See
 * qcow2_bitmap.h. */
#include <inttypes.h>
#include <stdlib.h>

#include "qcow2_bitmap.h"
#include "qcow2_cache.h"

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory for bitmaps");
}

/* ---- pages ------------------------------------------------------------------------------------------------------- */

int qcow2_bitmap_pages_init(struct bitmap_pages *p, uint64_t nr, struct img_error *err)
{
	p->at = calloc((size_t)(nr ? nr : 1), sizeof(*p->at));
	p->nr = nr;
	atomic_store(&p->lost, false);
	return p->at ? 0 : no_memory(err);
}

void qcow2_bitmap_pages_free(struct qcow2_engine *e, struct bitmap_pages *p)
{
	for (uint64_t i = 0; p->at && i < p->nr; i++) {
		uint8_t *page = atomic_load(&p->at[i]);

		if (page)
			atomic_fetch_sub(&e->bitmaps->page_bytes, e->cluster_bytes);
		free(page);
	}
	free(p->at);
	p->at = NULL;
	p->nr = 0;
}

/* The page, made if need be; two may try at once. NULL: there is no room for it. */
static uint8_t *page_get(struct qcow2_engine *e, struct bitmap_pages *p, uint64_t i)
{
	uint8_t *page = atomic_load_explicit(&p->at[i], memory_order_acquire), *there = NULL;

	if (page)
		return page;
	if (atomic_fetch_add(&e->bitmaps->page_bytes, e->cluster_bytes) + e->cluster_bytes <= BITMAP_PAGES_MAX_BYTES)
		page = calloc(1, (size_t)e->cluster_bytes);
	if (page && atomic_compare_exchange_strong(&p->at[i], &there, page))
		return page;
	atomic_fetch_sub(&e->bitmaps->page_bytes, e->cluster_bytes);
	free(page);
	if (!there)
		atomic_store(&p->lost, true);
	return there;
}

static void or_byte(uint8_t *page, uint64_t at, uint8_t bits)
{
	if ((__atomic_load_n(&page[at], __ATOMIC_RELAXED) & bits) != bits)
		__atomic_fetch_or(&page[at], bits, __ATOMIC_RELAXED);
}

static void set_bits(uint8_t *page, uint64_t first, uint64_t last)
{
	uint8_t head = (uint8_t)(0xff << (first & 7)), tail = (uint8_t)(0xff >> (7 - (last & 7)));
	uint64_t a = first >> 3, z = last >> 3;

	if (a == z) {
		or_byte(page, a, head & tail);
		return;
	}
	or_byte(page, a, head);
	for (uint64_t i = a + 1; i < z; i++)
		or_byte(page, i, 0xff);
	or_byte(page, z, tail);
}

void qcow2_bitmap_pages_set(struct qcow2_engine *e, struct bitmap_pages *p, uint64_t first, uint64_t last)
{
	uint64_t per_page = e->cluster_bytes * 8;

	while (first <= last && first / per_page < p->nr) {
		uint64_t i = first / per_page, end = min_u64(last, (i + 1) * per_page - 1);
		uint8_t *page = page_get(e, p, i);

		if (!page)
			return;
		set_bits(page, first % per_page, end % per_page);
		first = end + 1;
	}
}

/* Clears the bits of a page from bit on. */
static void clip_page(const struct qcow2_engine *e, uint8_t *page, uint64_t bit)
{
	uint64_t at = bit >> 3;

	if (at >= e->cluster_bytes)
		return;
	page[at] &= (uint8_t)((1u << (bit & 7)) - 1);
	memset(page + at + 1, 0, (size_t)(e->cluster_bytes - at - 1));
}

void qcow2_bitmap_pages_resize(struct qcow2_engine *e, struct bitmap_pages *p, uint64_t bits)
{
	uint64_t per_page = e->cluster_bytes * 8, nr = qcow2_bitmap_clusters(e, bits);
	_Atomic(uint8_t *) *at;

	for (uint64_t i = nr; i < p->nr; i++) {
		uint8_t *page = atomic_exchange(&p->at[i], NULL);

		if (page)
			atomic_fetch_sub(&e->bitmaps->page_bytes, e->cluster_bytes);
		free(page);
	}
	if (nr > p->nr) {
		at = calloc((size_t)nr, sizeof(*at));
		if (!at) {
			atomic_store(&p->lost, true);
			return;
		}
		for (uint64_t i = 0; i < p->nr; i++)
			atomic_init(&at[i], atomic_load(&p->at[i]));
		free(p->at);
		p->at = at;
	}
	p->nr = nr;
	if (bits % per_page != 0 && atomic_load(&p->at[nr - 1]))
		clip_page(e, atomic_load(&p->at[nr - 1]), bits % per_page);
}

/* ---- tables and clusters ----------------------------------------------------------------------------------------- */

static int check_table_entry(const struct qcow2_engine *e, const struct qcow2_bitmap *b, uint32_t i, uint64_t entry,
			     uint64_t file_bytes, struct img_error *err)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK;

	if (off == 0 && entry <= BITMAP_ALL_ONES)
		return 0;
	if (entry == off && off % e->cluster_bytes == 0 && off < file_bytes)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, b->table_off + (uint64_t)i * 8, LAYER,
			 "bitmap table entry at 0x%" PRIx64 ": 0x%" PRIx64 " is no cluster of the file: remove the "
			 "bitmap",
			 b->table_off + (uint64_t)i * 8, entry);
}

int qcow2_bitmap_table_load(struct qcow2_engine *e, const struct qcow2_bitmap *b, uint64_t **out, struct img_error *err)
{
	uint64_t bytes = (uint64_t)b->table_entries * 8, file_bytes = node_size(e->file), data_bytes = 0, *table;
	int ret = qcow2_bitmap_check(e, b, err);

	*out = NULL;
	if (ret != 0)
		return ret;
	table = malloc((size_t)(bytes ? bytes : 8));
	if (!table)
		return no_memory(err);
	ret = bytes ? node_pread(e->file, table, bytes, b->table_off, 0, err) : 0;
	for (uint32_t i = 0; ret == 0 && i < b->table_entries; i++) {
		struct be64 d;

		memcpy(&d, &table[i], sizeof(d));
		table[i] = be64_get(d);
		ret = check_table_entry(e, b, i, table[i], file_bytes, err);
		data_bytes += table[i] > BITMAP_ALL_ONES ? e->cluster_bytes : 0;
	}
	if (ret == 0 && data_bytes > round_up(file_bytes, e->cluster_bytes))
		ret = error_set(err, IMG_E_CORRUPT, 0, b->table_off, LAYER,
				"bitmap table at 0x%" PRIx64
				": its clusters are more than the file has: remove the bitmap",
				b->table_off);
	if (ret != 0) {
		free(table);
		return ret;
	}
	*out = table;
	return 0;
}

/* What counts of the i-th cluster on disk. */
static int read_cluster(struct qcow2_engine *e, const struct qcow2_bitmap *b, const uint64_t *table, uint64_t i,
			uint8_t *buf, struct img_error *err)
{
	uint64_t entry = i < b->table_entries ? table[i] : 0, per_page = e->cluster_bytes * 8;
	int ret = 0;

	if (i * per_page >= b->disk_bits)
		entry = 0;
	if (entry > BITMAP_ALL_ONES)
		ret = qcow2_read_clipped(e, buf, e->cluster_bytes, entry, err);
	else
		memset(buf, entry ? 0xff : 0, (size_t)e->cluster_bytes);
	if (ret == 0 && entry && b->disk_bits - i * per_page < per_page)
		clip_page(e, buf, b->disk_bits - i * per_page);
	return ret;
}

/* Others may be setting bits. */
static void or_page(const struct qcow2_engine *e, uint8_t *buf, const uint8_t *page)
{
	for (uint64_t i = 0; i < e->cluster_bytes; i++)
		buf[i] |= __atomic_load_n(&page[i], __ATOMIC_RELAXED);
}

static uint8_t *page_of(const struct bitmap_pages *p, uint64_t i)
{
	return p && p->at && i < p->nr ? atomic_load_explicit(&p->at[i], memory_order_acquire) : NULL;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

struct runs {
	qcow2_bitmap_run_fn fn;
	void *ctx;
	uint64_t first, nr; /* not told yet */
};

static bool add_run(struct runs *r, uint64_t first, uint64_t nr)
{
	bool go_on = true;

	if (r->nr > 0 && r->first + r->nr == first) {
		r->nr += nr;
		return true;
	}
	if (r->nr > 0)
		go_on = r->fn(r->ctx, r->first, r->nr);
	r->first = first;
	r->nr = go_on ? nr : 0;
	return go_on;
}

/* Bits [first, end) of a page whose first bit is base. */
static bool scan_page(const uint8_t *page, uint64_t base, uint64_t first, uint64_t end, struct runs *r)
{
	while (first < end) {
		uint8_t byte = page[first >> 3];

		if ((first & 7) == 0 && (byte == 0 || (byte == 0xff && end - first >= 8))) {
			if (byte && !add_run(r, base + first, 8))
				return false;
			first += 8;
			continue;
		}
		if ((byte >> (first & 7) & 1) && !add_run(r, base + first, 1))
			return false;
		first++;
	}
	return true;
}

int qcow2_bitmap_scan(struct qcow2_engine *e, const struct qcow2_bitmap *b, uint64_t bit, qcow2_bitmap_run_fn fn,
		      void *ctx, struct img_error *err)
{
	uint64_t per_page = e->cluster_bytes * 8, *table;
	struct runs r = { .fn = fn, .ctx = ctx };
	uint8_t *buf = malloc((size_t)e->cluster_bytes);
	int ret = buf ? qcow2_bitmap_table_load(e, b, &table, err) : no_memory(err);
	bool go_on = true;

	if (ret != 0) {
		free(buf);
		return ret;
	}
	while (ret == 0 && go_on && bit < b->bits) {
		uint64_t i = bit / per_page, end = min_u64(per_page, b->bits - i * per_page);
		const uint8_t *page = page_of(&b->pages, i);

		if (page || (i < b->table_entries && table[i])) {
			ret = read_cluster(e, b, table, i, buf, err);
			if (page)
				or_page(e, buf, page);
			if (ret == 0)
				go_on = scan_page(buf, i * per_page, bit % per_page, end, &r);
		}
		bit = (i + 1) * per_page;
	}
	if (ret == 0 && r.nr > 0)
		fn(ctx, r.first, r.nr);
	free(table);
	free(buf);
	return ret;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

int qcow2_bitmap_take(struct qcow2_engine *e, uint64_t clusters, uint64_t *off, struct img_error *err)
{
	int ret = qcow2_alloc_exact(e, clusters, off, err);

	if (ret != 0)
		return ret;
	ret = qcow2_meta_add(e, *off, clusters << e->h.cluster_bits, err);
	if (ret != 0) {
		(void)qcow2_bitmap_give(e, *off, clusters, NULL); /* some of them may be known already */
		*off = 0;
	}
	return ret;
}

int qcow2_bitmap_give(struct qcow2_engine *e, uint64_t off, uint64_t clusters, struct img_error *err)
{
	if (clusters == 0)
		return 0;
	qcow2_meta_remove(e, off, clusters << e->h.cluster_bits);
	return qcow2_free(e, off, clusters, err);
}

static uint64_t table_clusters(const struct qcow2_engine *e, uint32_t entries)
{
	return round_up((uint64_t)entries * 8, e->cluster_bytes) >> e->h.cluster_bits;
}

int qcow2_bitmap_give_all(struct qcow2_engine *e, const struct qcow2_bitmap *b, struct img_error *err)
{
	uint64_t *table;
	int ret = qcow2_bitmap_table_load(e, b, &table, NULL);

	if (ret == IMG_E_CORRUPT)
		return 0;
	if (ret != 0)
		return error_set(err, ret, 0, b->table_off, LAYER, "bitmap table at 0x%" PRIx64 ": cannot be read",
				 b->table_off);
	for (uint32_t i = 0; ret == 0 && i < b->table_entries; i++) {
		if (table[i] > BITMAP_ALL_ONES)
			ret = qcow2_bitmap_give(e, table[i], 1, err);
	}
	if (ret == 0)
		ret = qcow2_bitmap_give(e, b->table_off, table_clusters(e, b->table_entries), err);
	free(table);
	return ret;
}

static bool is_all(const struct qcow2_engine *e, const uint8_t *buf, uint8_t byte)
{
	return buf[0] == byte && memcmp(buf, buf + 1, (size_t)(e->cluster_bytes - 1)) == 0;
}

/* The new entry for the i-th cluster. map wr. */
static int change_cluster(struct qcow2_engine *e, struct bitmap_change *c, uint64_t i, const uint8_t *page,
			  uint8_t *buf, struct img_error *err)
{
	uint64_t per_page = e->cluster_bytes * 8, old = i < c->nr_old ? c->old[i] : 0, off;
	bool partly = c->b->has_tail || c->b->disk_bits < c->b->bits;
	bool cut = old && partly && c->b->disk_bits < (i + 1) * per_page;
	int ret;

	if (!page && !cut) {
		c->new[i] = old;
		return 0;
	}
	ret = read_cluster(e, c->b, c->old, i, buf, err);
	if (ret != 0)
		return ret;
	if (page)
		or_page(e, buf, page);
	if (is_all(e, buf, 0) || is_all(e, buf, 0xff)) {
		c->new[i] = buf[0] ? BITMAP_ALL_ONES : 0;
		return 0;
	}
	ret = qcow2_bitmap_take(e, 1, &off, err);
	if (ret != 0)
		return ret;
	c->new[i] = off;
	return node_pwrite(e->file, buf, e->cluster_bytes, off, 0, err);
}

static int write_table(struct qcow2_engine *e, struct bitmap_change *c, struct img_error *err)
{
	uint64_t clusters = table_clusters(e, c->nr_new), bytes = clusters << e->h.cluster_bits;
	uint8_t *buf;
	int ret = 0;

	if (clusters == 0)
		return 0;
	buf = calloc(1, (size_t)bytes);
	if (!buf)
		return no_memory(err);
	for (uint32_t i = 0; i < c->nr_new; i++) {
		struct be64 d = be64_of(c->new[i]);

		memcpy(buf + (uint64_t)i * 8, &d, sizeof(d));
	}
	ret = qcow2_bitmap_take(e, clusters, &c->new_off, err);
	if (ret == 0)
		ret = node_pwrite(e->file, buf, bytes, c->new_off, 0, err);
	free(buf);
	return ret;
}

int qcow2_bitmap_change_prepare(struct qcow2_engine *e, struct qcow2_bitmap *b, const struct bitmap_pages *pages,
				bool clear, struct bitmap_change *c, struct img_error *err)
{
	uint8_t *buf = malloc((size_t)e->cluster_bytes);
	int ret = buf ? qcow2_bitmap_table_load(e, b, &c->old, err) : no_memory(err);

	c->b = b;
	c->nr_old = b->table_entries;
	c->nr_new = (uint32_t)qcow2_bitmap_clusters(e, b->bits);
	if (ret == 0) {
		c->new = calloc(c->nr_new ? c->nr_new : 1, sizeof(*c->new));
		ret = c->new ? 0 : no_memory(err);
	}
	pthread_rwlock_wrlock(&e->map);
	for (uint32_t i = 0; ret == 0 && !clear && i < c->nr_new; i++)
		ret = change_cluster(e, c, i, page_of(pages, i), buf, err);
	if (ret == 0)
		ret = write_table(e, c, err);
	pthread_rwlock_unlock(&e->map);
	free(buf);
	if (ret != 0)
		qcow2_bitmap_change_abort(e, c);
	return ret;
}

/* Gives back what one of two tables has and the other has not. */
static int give_difference(struct qcow2_engine *e, const uint64_t *has, uint32_t nr, const uint64_t *keeps,
			   uint32_t nr_keeps, struct img_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; ret == 0 && i < nr; i++) {
		if (has[i] > BITMAP_ALL_ONES && (i >= nr_keeps || keeps[i] != has[i]))
			ret = qcow2_bitmap_give(e, has[i], 1, err);
	}
	return ret;
}

static void end_change(struct bitmap_change *c)
{
	free(c->old);
	free(c->new);
	*c = (struct bitmap_change){ 0 };
}

void qcow2_bitmap_change_abort(struct qcow2_engine *e, struct bitmap_change *c)
{
	pthread_rwlock_wrlock(&e->map);
	if (c->old && c->new) {
		(void)give_difference(e, c->new, c->nr_new, c->old, c->nr_old, NULL);
		if (c->new_off)
			(void)qcow2_bitmap_give(e, c->new_off, table_clusters(e, c->nr_new), NULL);
	}
	pthread_rwlock_unlock(&e->map);
	end_change(c);
}

static int give_old(struct qcow2_engine *e, struct bitmap_change *c, struct img_error *err)
{
	struct qcow2_bitmap *b = c->b;
	uint64_t old_off = b->table_off;
	int ret;

	pthread_rwlock_wrlock(&e->map);
	b->table_off = c->new_off;
	b->table_entries = c->nr_new;
	b->disk_bits = b->bits;
	b->has_tail = false;
	ret = give_difference(e, c->old, c->nr_old, c->new, c->nr_new, err);
	if (ret == 0)
		ret = qcow2_bitmap_give(e, old_off, table_clusters(e, c->nr_old), err);
	pthread_rwlock_unlock(&e->map);
	return ret;
}

int qcow2_bitmap_change_commit(struct qcow2_engine *e, struct bitmap_change *c, size_t nr, struct img_error *err)
{
	int ret = qcow2_flush_all(e, err);

	if (ret == 0)
		ret = qcow2_bitmap_sync(e, err);
	if (ret != 0) {
		for (size_t i = 0; i < nr; i++)
			qcow2_bitmap_change_abort(e, &c[i]);
		return ret;
	}
	for (size_t i = 0; ret == 0 && i < nr; i++)
		ret = qcow2_bitmap_write_table_place(e, c[i].b, c[i].new_off, c[i].nr_new, err);
	if (ret == 0)
		ret = qcow2_bitmap_sync(e, err);
	/* After a failure either table may be the one on disk: both keep their clusters. */
	if (ret != 0)
		atomic_store(&e->broken, true);
	for (size_t i = 0; i < nr; i++) {
		if (ret == 0)
			ret = give_old(e, &c[i], err);
		end_change(&c[i]);
	}
	return ret;
}
