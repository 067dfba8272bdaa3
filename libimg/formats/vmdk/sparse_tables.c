/* SPDX-License-Identifier: MIT */
/*
 * Directories in memory, and where all the tables lie: so that a grain can be told from a table before it is read or
 * written as one (VMDK-6), and a table's copy can be found when the table is written (VMDK-8).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

#define CHUNK_ENTRIES 16384u

void vmdk_tables_free(struct vmdk_tables *t)
{
	free(t->place);
	free(t->copy_place);
	free(t->order);
	free(t->fresh);
	free(t->taken);
	memset(t, 0, sizeof(*t));
}

static int no_memory(struct img_error *err)
{
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

void *vmdk_new_array(uint64_t nr, size_t each_bytes)
{
	uint64_t bytes;

	if (mul_overflows(nr ? nr : 1, each_bytes, &bytes) || (size_t)bytes != bytes)
		return NULL;
	return calloc(1, (size_t)bytes);
}

static int load_directory(struct node *file, uint64_t off, uint64_t nr, uint32_t **out, struct img_error *err)
{
	struct le32 *buf = malloc(CHUNK_ENTRIES * sizeof(*buf));
	int ret = 0;

	*out = vmdk_new_array(nr, sizeof(**out));
	if (!buf || !*out)
		ret = no_memory(err);
	for (uint64_t at = 0; ret == 0 && at < nr;) {
		uint64_t n = min_u64(nr - at, CHUNK_ENTRIES);

		ret = node_pread(file, buf, n * sizeof(*buf), off + at * sizeof(*buf), 0, err);
		for (uint64_t i = 0; ret == 0 && i < n; i++)
			(*out)[at + i] = le32_get(buf[i]);
		at += n;
	}
	free(buf);
	return ret;
}

/* ---- what is taken ----------------------------------------------------------------------------------------------- */

static int by_off(const void *a, const void *b)
{
	const struct img_range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static void take(struct vmdk_tables *t, uint64_t off, uint64_t bytes)
{
	if (bytes > 0)
		t->taken[t->nr_taken++] = (struct img_range){ off, bytes };
}

static void join_taken(struct vmdk_tables *t)
{
	size_t kept = 1;

	qsort(t->taken, t->nr_taken, sizeof(*t->taken), by_off);
	for (size_t i = 1; i < t->nr_taken; i++) {
		struct img_range *last = &t->taken[kept - 1], *r = &t->taken[i];

		if (r->off > last->off + last->bytes) {
			t->taken[kept++] = *r;
			continue;
		}
		t->overlap |= r->off < last->off + last->bytes;
		last->bytes = max_u64(last->off + last->bytes, r->off + r->bytes) - last->off;
	}
	t->nr_taken = kept;
}

static uint64_t count_tables(const struct vmdk_tables *t)
{
	uint64_t nr = 0;

	for (uint64_t i = 0; i < t->nr; i++)
		nr += (t->place[i] != 0 ? 1u : 0u) + (t->copy_place && t->copy_place[i] != 0 ? 1u : 0u);
	return nr;
}

static int learn_taken(const struct vmdk_header *h, bool writable, struct vmdk_tables *t, struct img_error *err)
{
	uint64_t directory = t->nr * VMDK_GDE_BYTES;
	uint64_t nr = writable ? 2 * t->nr : count_tables(t);

	t->taken = vmdk_new_array(nr + 4, sizeof(*t->taken));
	if (!t->taken)
		return no_memory(err);
	take(t, 0, VMDK_SECTOR_BYTES);
	take(t, h->descriptor_off, h->descriptor_bytes);
	take(t, h->gd_off, directory);
	if (t->copy_place)
		take(t, h->rgd_off, directory);
	for (uint64_t i = 0; i < t->nr; i++) {
		if (t->place[i])
			take(t, (uint64_t)t->place[i] * VMDK_SECTOR_BYTES, t->table_bytes);
		if (t->copy_place && t->copy_place[i])
			take(t, (uint64_t)t->copy_place[i] * VMDK_SECTOR_BYTES, t->table_bytes);
	}
	join_taken(t);
	return 0;
}

bool vmdk_tables_take(const struct vmdk_tables *t, uint64_t off, uint64_t bytes)
{
	size_t low = 0, high = t->nr_taken;

	/* The last range that begins before the end of ours. */
	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (t->taken[mid].off < off + bytes)
			low = mid + 1;
		else
			high = mid;
	}
	return low > 0 && t->taken[low - 1].off + t->taken[low - 1].bytes > off;
}

/* Where it is written, there is room for as many ranges as there can be tables. */
void vmdk_tables_add(struct vmdk_tables *t, uint64_t off, uint64_t bytes)
{
	struct img_range *last = &t->taken[t->nr_taken - 1];

	if (last->off + last->bytes == off)
		last->bytes += bytes;
	else
		t->taken[t->nr_taken++] = (struct img_range){ off, bytes };
}

/* ---- tables by place --------------------------------------------------------------------------------------------- */

struct numbered {
	uint32_t place;
	uint64_t number;
};

static int by_place(const void *a, const void *b)
{
	const struct numbered *x = a, *y = b;

	return x->place < y->place ? -1 : x->place > y->place;
}

static int sort_tables(struct vmdk_tables *t, struct img_error *err)
{
	struct numbered *all = vmdk_new_array(t->nr, sizeof(*all));

	t->order = vmdk_new_array(t->nr, sizeof(*t->order));
	t->fresh = vmdk_new_array(t->nr, sizeof(*t->fresh));
	if (!all || !t->order || !t->fresh) {
		free(all);
		return no_memory(err);
	}
	for (uint64_t i = 0; i < t->nr; i++)
		if (t->place[i])
			all[t->nr_order++] = (struct numbered){ t->place[i], i };
	qsort(all, (size_t)t->nr_order, sizeof(*all), by_place);
	for (uint64_t i = 0; i < t->nr_order; i++)
		t->order[i] = all[i].number;
	free(all);
	return 0;
}

uint64_t vmdk_tables_find(const struct vmdk_tables *t, uint64_t off)
{
	uint64_t low = 0, high = t->nr_order;

	while (low < high) {
		uint64_t mid = low + (high - low) / 2;
		uint64_t at = (uint64_t)t->place[t->order[mid]] * VMDK_SECTOR_BYTES;

		if (at == off)
			return t->order[mid];
		if (at < off)
			low = mid + 1;
		else
			high = mid;
	}
	return t->nr;
}

uint64_t vmdk_tables_cost(const struct vmdk_header *h)
{
	return h->nr_tables * (2 * sizeof(uint32_t) + 2 * sizeof(struct img_range) + 3 * sizeof(uint64_t) + 1);
}

int vmdk_tables_load(struct node *file, const struct vmdk_header *h, bool writable, struct budget *budget,
		     struct vmdk_tables *t, struct img_error *err)
{
	int ret = budget_metadata(budget, file->path, vmdk_tables_cost(h), err);

	memset(t, 0, sizeof(*t));
	t->nr = h->nr_tables;
	t->table_bytes = (uint64_t)h->nr_gtes * VMDK_GTE_BYTES;
	if (ret == 0)
		ret = load_directory(file, h->gd_off, t->nr, &t->place, err);
	if (ret == 0 && h->rgd_off != 0)
		ret = load_directory(file, h->rgd_off, t->nr, &t->copy_place, err);
	if (ret == 0)
		ret = learn_taken(h, writable, t, err);
	if (ret == 0 && writable)
		ret = sort_tables(t, err);
	if (ret != 0)
		vmdk_tables_free(t);
	return ret;
}

/* ---- copies ------------------------------------------------------------------------------------------------------ */

static bool inside(const struct vmdk_tables *t, uint32_t place, uint64_t file_bytes)
{
	return place != 0 && range_inside((uint64_t)place * VMDK_SECTOR_BYTES, t->table_bytes, file_bytes);
}

void vmdk_tables_judge(const struct vmdk_tables *t, uint64_t file_bytes, uint64_t *outside, uint64_t *alone)
{
	*outside = *alone = 0;
	for (uint64_t i = 0; i < t->nr; i++) {
		uint32_t place = t->place[i], copy = t->copy_place ? t->copy_place[i] : place;

		if ((place && !inside(t, place, file_bytes)) || (copy && !inside(t, copy, file_bytes)))
			++*outside;
		else if ((place == 0) != (copy == 0))
			++*alone;
	}
}

static int compare_one(struct node *file, const struct vmdk_tables *t, uint64_t i, uint8_t *buf, bool repair,
		       uint64_t *differ, struct img_error *err)
{
	uint64_t off = (uint64_t)t->place[i] * VMDK_SECTOR_BYTES, copy = (uint64_t)t->copy_place[i] * VMDK_SECTOR_BYTES;
	int ret;

	ret = node_pread(file, buf, t->table_bytes, off, 0, err);
	if (ret == 0)
		ret = node_pread(file, buf + t->table_bytes, t->table_bytes, copy, 0, err);
	if (ret != 0 || memcmp(buf, buf + t->table_bytes, (size_t)t->table_bytes) == 0)
		return ret;
	++*differ;
	return repair ? node_pwrite(file, buf, t->table_bytes, copy, 0, err) : 0;
}

int vmdk_tables_compare(struct node *file, const struct vmdk_tables *t, bool repair, uint64_t *differ,
			struct img_error *err)
{
	uint64_t end = node_size(file);
	uint8_t *buf;
	int ret = 0;

	*differ = 0;
	if (!t->copy_place)
		return 0;
	buf = malloc(2 * (size_t)t->table_bytes);
	if (!buf)
		return no_memory(err);
	for (uint64_t i = 0; i < t->nr && ret == 0; i++)
		if (inside(t, t->place[i], end) && inside(t, t->copy_place[i], end))
			ret = compare_one(file, t, i, buf, repair, differ, err);
	if (ret == 0 && repair && *differ > 0)
		ret = node_flush(file, 0, err);
	free(buf);
	return ret;
}
