/* SPDX-License-Identifier: MIT */
/*
 * Inspection of snapshots and mapping. Whether entries make sense is the check's to say; here it is whether places of
 * one disk share their data, which an honest writer never does, and whether a disk (the head, or a snapshot) has more
 * data than the file could hold. Refcounts may be right in both cases, so that nothing is damaged.
 *
 * Each L2 table is read once, whoever refers to it, and leaves its number of mapped bytes; a disk then costs a look at
 * its L1 table. Shared data is looked for inside each table, and across the tables of the head, for which one bit per
 * cluster of the file is kept.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_check.h"
#include "qcow2_inspect.h"
#include "qcow2_io.h"

#define TABLES_MAX   (UINT64_C(1) << 20)   /* L2 tables that are remembered */
#define CLUSTERS_MAX (UINT64_C(512) << 20) /* bits for clusters of the file: 64 MiB */

struct walk {
	struct inspector *in;
	struct qcow2_engine *e; /* header, geometry and file are all there is */
	struct map64 tables;	/* offset of an L2 table -> mapped bytes + 1 */
	uint8_t *seen;		/* clusters of the head's data; NULL: not kept */
	uint64_t nr_clusters;
	uint8_t *buf;	   /* a table */
	uint64_t *entries; /* of a table, to be sorted */
	uint64_t l1_bytes; /* so far */
	bool head, full;
	const char *what; /* the disk */
};

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static void alias(const struct walk *w, uint64_t off, uint64_t entry)
{
	inspect_found(w->in, INSPECT_ALIASED, off, "places of %s share the data at 0x%" PRIx64, w->what,
		      entry & QCOW2_OFFSET_MASK);
}

static void beyond(const struct walk *w, uint64_t off, uint64_t entry)
{
	inspect_found(w->in, INSPECT_ENTRY_BOUNDS, off,
		      "an entry of %s leads to 0x%" PRIx64 ", behind the end of the file", w->what,
		      entry & QCOW2_OFFSET_MASK);
}

/* True: met before in the head. */
static bool met(struct walk *w, uint64_t entry)
{
	uint64_t cluster = (entry & QCOW2_OFFSET_MASK) >> w->e->cluster_bits;
	bool before;

	if (!w->head || !w->seen || cluster >= w->nr_clusters)
		return false;
	before = w->seen[cluster / 8] >> (cluster % 8) & 1;
	w->seen[cluster / 8] = (uint8_t)(w->seen[cluster / 8] | 1u << (cluster % 8));
	return before;
}

static int table_walk(struct walk *w, uint64_t off, uint64_t *mapped, struct img_error *err)
{
	const struct qcow2_engine *e = w->e;
	uint64_t nr = 0;
	int ret = inspect_read(e->file, w->buf, e->cluster_bytes, off, err);

	*mapped = 0;
	for (uint64_t at = 0; ret == 0 && at < e->cluster_bytes; at += e->entry_bytes) {
		const struct qcow2_entry en = qcow2_entry_load(e, w->buf + at);
		uint64_t bytes = qcow2_entry_mapped(e, &en);

		*mapped += bytes;
		if (bytes == 0)
			continue;
		if (!(en.desc & QCOW2_COMPRESSED) && (en.desc & QCOW2_OFFSET_MASK) >= node_size(e->file))
			beyond(w, off + at, en.desc);
		if (!(en.desc & QCOW2_COMPRESSED) && met(w, en.desc))
			alias(w, off + at, en.desc);
		else
			w->entries[nr++] = en.desc & ~QCOW2_COPIED;
	}
	qsort(w->entries, (size_t)nr, sizeof(*w->entries), by_value);
	for (uint64_t i = 1; i < nr; i++)
		if (w->entries[i] == w->entries[i - 1])
			alias(w, off, w->entries[i]);
	return ret;
}

static int table_mapped(struct walk *w, uint64_t off, uint64_t *mapped, struct img_error *err)
{
	uint64_t *known;
	int ret;

	*mapped = 0;
	if (w->tables.nr >= TABLES_MAX && !map64_find(&w->tables, off)) {
		if (!w->full)
			inspect_found(w->in, INSPECT_NOT_INSPECTED, NO_OFFSET, "more than %" PRIu64 " L2 tables",
				      TABLES_MAX);
		w->full = true;
		return 0;
	}
	known = map64_put(&w->tables, off);
	if (!known)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (*known == 0) {
		ret = table_walk(w, off, mapped, err);
		if (ret != 0)
			return ret;
		*known = *mapped + 1;
	}
	*mapped = *known - 1;
	return 0;
}

/* ---- disks ------------------------------------------------------------------------------------------------------- */

/* l1 is sorted here, so that repetitions stand side by side. */
static int judge_disk(struct walk *w, uint64_t *l1, uint32_t nr, uint64_t l1_off, struct img_error *err)
{
	uint64_t file_bytes = node_size(w->e->file), mapped = 0, of_table;
	int ret = 0;

	for (uint32_t i = 0; i < nr; i++)
		l1[i] &= QCOW2_OFFSET_MASK;
	qsort(l1, nr, sizeof(*l1), by_value);
	for (uint32_t i = 0; i < nr && ret == 0 && !inspect_over(w->in); i++) {
		if (l1[i] >= file_bytes)
			beyond(w, l1_off, l1[i]);
		if (l1[i] == 0 || l1[i] % w->e->cluster_bytes || l1[i] >= file_bytes)
			continue;
		if (i > 0 && l1[i] == l1[i - 1])
			inspect_found(w->in, INSPECT_ALIASED, l1_off, "places of %s share the L2 table at 0x%" PRIx64,
				      w->what, l1[i]);
		ret = table_mapped(w, l1[i], &of_table, err);
		mapped += of_table;
	}
	if (ret == 0)
		inspect_expansion(w->in, mapped, file_bytes, l1_off, w->what);
	return ret;
}

#define WALK_ENDS 1 /* no error, and no reason to go on */

static int walk_disk(struct walk *w, uint64_t l1_off, uint32_t entries, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	uint64_t *l1, there;
	int ret;

	w->l1_bytes += UINT64_C(8) * entries;
	if (!w->head && w->l1_bytes > node_size(w->e->file) + w->e->cluster_bytes) {
		inspect_found(w->in, INSPECT_TABLE_OVERLAP, l1_off, "L1 tables are longer than the file");
		return WALK_ENDS;
	}
	/* What lies behind the end of the file is zeros: no reason to sort it. */
	there = l1_off < node_size(w->e->file) ? (node_size(w->e->file) - l1_off + 7) / 8 : 0;
	ret = qcow2_l1_load(w->e, l1_off, (uint32_t)min_u64(entries, there), &l1, &why);
	if (ret == IMG_E_CORRUPT || ret == IMG_E_LIMIT) {
		inspect_found(w->in, INSPECT_TABLE_BOUNDS, why.offset, "%s", why.msg);
		return 0;
	}
	if (ret == 0)
		ret = judge_disk(w, l1, (uint32_t)min_u64(entries, there), l1_off, err);
	else if (err)
		*err = why;
	free(l1);
	return ret;
}

static int walk_disks(struct walk *w, struct img_error *err)
{
	const struct qcow2_header *h = &w->e->h;
	char what[64];
	int ret;

	w->head = true;
	w->what = "the disk";
	ret = walk_disk(w, h->l1_off, h->l1_entries, err);
	w->head = false;
	for (uint32_t i = 0; i < h->nr_snapshots && ret == 0 && !inspect_over(w->in); i++) {
		const struct qcow2_snapshot *s = &w->e->snapshots[i];

		if (s->l1_off == 0 || s->l1_off > INT64_MAX - QCOW2_L1_MAX_BYTES)
			continue;
		(void)snprintf(what, sizeof(what), "snapshot '%.40s'", s->name);
		w->what = what;
		ret = walk_disk(w, s->l1_off, s->l1_entries, err);
	}
	w->what = NULL;
	return ret == WALK_ENDS ? 0 : ret;
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int judge_names(struct walk *w, struct img_error *err)
{
	uint32_t nr = w->e->h.nr_snapshots;
	const char **name = calloc((size_t)nr + 1, sizeof(*name));

	if (!name)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint32_t i = 0; i < nr; i++) {
		const struct qcow2_snapshot *s = &w->e->snapshots[i];

		name[i] = s->name;
		inspect_text(w->in, (const uint8_t *)s->name, strlen(s->name), w->e->h.snapshots_off,
			     "a snapshot's name");
		inspect_text(w->in, (const uint8_t *)s->id, strlen(s->id), w->e->h.snapshots_off, "a snapshot's id");
		inspect_limit(w->in, BUDGET_VIRTUAL, s->disk_bytes, w->e->h.snapshots_off);
		if (s->vm_state_bytes)
			inspect_found(w->in, INSPECT_MACHINE_STATE, w->e->h.snapshots_off,
				      "snapshot '%.60s' has %" PRIu64 " bytes of machine state", s->name,
				      s->vm_state_bytes);
	}
	qsort(name, nr, sizeof(*name), by_name);
	for (uint32_t i = 1; i < nr; i++)
		if (name[i][0] && strcmp(name[i], name[i - 1]) == 0)
			inspect_found(w->in, INSPECT_DUPLICATE_NAME, w->e->h.snapshots_off,
				      "two snapshots have the name '%.60s'", name[i]);
	free(name);
	return 0;
}

/* ---- tables that the header and the snapshots name ----------------------------------------------------------------- */

struct range {
	uint64_t off, end;
	const char *what;
};

static int by_place(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

static void add_range(struct range *list, size_t *nr, uint64_t off, uint64_t bytes, const char *what)
{
	if (bytes > 0 && off <= INT64_MAX && bytes <= INT64_MAX)
		list[(*nr)++] = (struct range){ off, off + bytes, what };
}

#define HEADER_TABLES 5u

static int judge_overlaps(struct walk *w, struct img_error *err)
{
	const struct qcow2_engine *e = w->e;
	const struct qcow2_header *h = &e->h;
	struct range *list = calloc((size_t)h->nr_snapshots + HEADER_TABLES, sizeof(*list));
	const struct range *last = list;
	size_t nr = 0;

	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	add_range(list, &nr, 0, e->cluster_bytes, "the header");
	add_range(list, &nr, h->l1_off, UINT64_C(8) * h->l1_entries, "the L1 table");
	add_range(list, &nr, h->reftable_off, (uint64_t)h->reftable_clusters << h->cluster_bits, "the refcount table");
	add_range(list, &nr, h->snapshots_off, e->snapshots_bytes, "the snapshot table");
	add_range(list, &nr, h->bitmap_dir_off, h->nr_bitmaps ? h->bitmap_dir_bytes : 0, "the bitmap directory");
	for (uint32_t i = 0; i < h->nr_snapshots; i++)
		add_range(list, &nr, e->snapshots[i].l1_off, UINT64_C(8) * e->snapshots[i].l1_entries,
			  "a snapshot's L1 table");
	qsort(list, nr, sizeof(*list), by_place);
	for (size_t i = 1; i < nr; i++) {
		if (list[i].off < last->end)
			inspect_found(w->in, INSPECT_TABLE_OVERLAP, list[i].off, "%s lies on %s", list[i].what,
				      last->what);
		if (list[i].end > last->end)
			last = &list[i];
	}
	free(list);
	return 0;
}

static int walk_init(struct walk *w, struct node *file, const struct qcow2_header *h, struct img_error *err)
{
	w->e = calloc(1, sizeof(*w->e));
	if (!w->e)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	w->e->file = file;
	w->e->h = *h;
	qcow2_set_geometry(w->e);
	w->nr_clusters = node_size(file) / w->e->cluster_bytes + 1;
	w->buf = malloc((size_t)w->e->cluster_bytes);
	w->entries = calloc((size_t)(w->e->cluster_bytes / w->e->entry_bytes), sizeof(*w->entries));
	if (w->nr_clusters <= CLUSTERS_MAX)
		w->seen = calloc(1, (size_t)(w->nr_clusters / 8 + 1));
	else
		inspect_note(w->in, INSPECT_NOT_INSPECTED, NO_OFFSET,
			     "%" PRIu64 " clusters: shared data is looked for inside of tables only", w->nr_clusters);
	if (!w->buf || !w->entries || (w->nr_clusters <= CLUSTERS_MAX && !w->seen))
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	return 0;
}

static void walk_free(struct walk *w)
{
	if (w->e)
		qcow2_snapshots_free(w->e->snapshots, w->e->h.nr_snapshots);
	map64_free(&w->tables);
	free(w->seen);
	free(w->entries);
	free(w->buf);
	free(w->e);
}

int qcow2_inspect_map(struct node *file, struct inspector *in, const struct qcow2_header *h, struct img_error *err)
{
	struct walk w = { .in = in };
	int ret = walk_init(&w, file, h, err);

	if (ret == 0)
		ret = qcow2_snapshots_load(w.e, err);
	if (ret == 0)
		ret = judge_names(&w, err);
	if (ret == 0)
		ret = judge_overlaps(&w, err);
	if (ret == 0 && !w.e->external)
		ret = walk_disks(&w, err);
	walk_free(&w);
	return ret;
}
