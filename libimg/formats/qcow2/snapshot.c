/* SPDX-License-Identifier: MIT */
/*
 * Internal snapshots: an L1 table of their own, sharing L2 tables and data with the disk and with each other by
 * refcounts. Each change is one transaction: the new refcounts, L1 tables and list of snapshots stand in clusters that
 * were free before it, and one write of the header puts them in force.
 *
 * A snapshot holds the L1 entries of the disk, and those of the machine state behind them only if it was asked to.
 * COPIED flags are true in the active tree alone; the L1 of a snapshot has none.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "qcow2_snapshot.h"

#define EXTRA_BYTES 24u /* machine state, disk, instruction counter */
#define SECOND_NS   UINT64_C(1000000000)

static struct qcow2_state *state_of(struct node *n)
{
	return n->state;
}

/* ---- the frame of a change ---------------------------------------------------------------------------------------- */

static int begin(struct node *n, struct qcow2_engine **e, struct img_error *err)
{
	int r = qcow2_head(n, e, err);

	if (r == 0 && (*e)->external)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "an image with an external data file has no internal snapshots");
	if (r == 0)
		r = qcow2_touch(*e, err);
	if (r == 0)
		r = qcow2_txn_begin(*e, err);
	if (r < 0)
		return r;
	r = qcow2_snapshots_writable(*e, err);
	if (r < 0)
		qcow2_txn_abort(*e);
	return r;
}

static int end(struct qcow2_engine *e, int r, struct img_error *err)
{
	if (r == 0)
		return qcow2_txn_commit(e, err);
	qcow2_txn_abort(e);
	return r;
}

static int find(struct qcow2_engine *e, const char *name, uint32_t *at, struct img_error *err)
{
	const struct qcow2_snapshot *s = qcow2_snapshot_find(e, name, err);

	if (!s)
		return IMG_E_NOENT;
	*at = (uint32_t)(s - e->snapshots);
	return 0;
}

static bool name_taken(const struct qcow2_engine *e, const char *name)
{
	for (uint32_t i = 0; i < e->h.nr_snapshots; i++)
		if (strcmp(e->snapshots[i].name, name) == 0)
			return true;
	return false;
}

/* ---- create ------------------------------------------------------------------------------------------------------- */

/* 0: not a number */
static uint64_t number_of(const char *id)
{
	char *rest;
	unsigned long long v;

	if (id[0] < '1' || id[0] > '9')
		return 0;
	errno = 0;
	v = strtoull(id, &rest, 10);
	return *rest || errno ? 0 : v;
}

/* One above the largest, so that a deleted snapshot's id is not used again while younger ones exist. */
static int new_id(const struct qcow2_engine *e, char **out, struct img_error *err)
{
	uint64_t id = 0;
	char text[24];

	for (uint32_t i = 0; i < e->h.nr_snapshots; i++)
		id = max_u64(id, number_of(e->snapshots[i].id));
	if (id == UINT64_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "no more snapshot ids: the last is taken");
	snprintf(text, sizeof(text), "%llu", (unsigned long long)id + 1);
	*out = strdup(text);
	return *out ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for a snapshot");
}

/* From 1970 to 2106, which is all that the format can say. */
static void set_date(struct qcow2_snapshot *s, const int64_t *created_ns)
{
	struct timespec now;
	uint64_t ns = created_ns && *created_ns > 0 ? (uint64_t)*created_ns : 0;

	if (!created_ns) {
		clock_gettime(CLOCK_REALTIME, &now);
		ns = (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
	}
	s->date_sec = (uint32_t)min_u64(ns / SECOND_NS, UINT32_MAX);
	s->date_nsec = (uint32_t)(ns % SECOND_NS);
}

static int describe(struct qcow2_engine *e, const char *name, const int64_t *created_ns, struct qcow2_snapshot *s,
		    struct img_error *err)
{
	set_date(s, created_ns);
	s->disk_bytes = e->h.size;
	s->name = strdup(name);
	s->extra = calloc(1, EXTRA_BYTES);
	if (!s->name || !s->extra)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for a snapshot");
	s->extra_bytes = EXTRA_BYTES;
	memset(s->extra + 16, 0xff, 8); /* instructions were not counted */
	return new_id(e, &s->id, err);
}

/* Its own L1 table. */
static int write_l1(struct qcow2_engine *e, struct qcow2_snapshot *s, const uint64_t *l1, struct img_error *err)
{
	uint64_t table_bytes = round_up(UINT64_C(8) * s->l1_entries, e->cluster_bytes);
	struct be64 *table;
	int r = qcow2_txn_new_table(e, table_bytes, &s->l1_off, err);

	if (r < 0)
		return r;
	table = calloc(1, (size_t)table_bytes);
	if (!table)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for an L1 table");
	for (uint32_t i = 0; i < s->l1_entries; i++)
		table[i] = be64_of(l1[i]);
	r = node_pwrite(e->file, table, table_bytes, s->l1_off, 0, err);
	free(table);
	return r;
}

/* The active tree becomes another array, whose flags are made true. Takes l1 over. */
static int put_active(struct qcow2_engine *e, uint64_t *l1, uint32_t n, struct img_error *err)
{
	int r = qcow2_txn_fix_copied(e, l1, n, err);

	if (r == 0)
		qcow2_txn_set_l1(e, l1, n);
	else
		free(l1);
	return r;
}

static int refresh_active(struct qcow2_engine *e, struct img_error *err)
{
	uint64_t *l1;
	int r = qcow2_l1_copy(e->l1, e->h.l1_entries, e->h.l1_entries, &l1, err);

	return r < 0 ? r : put_active(e, l1, e->h.l1_entries, err);
}

/*
 * Counts everything once more and gives the snapshot an L1. Tables whose COPIED flags are no longer true are made anew,
 * once, for both.
 */
static int share_tree(struct qcow2_engine *e, struct qcow2_snapshot *s, struct img_error *err)
{
	uint32_t n = e->h.l1_entries, shared = (uint32_t)min_u64(s->l1_entries, n);
	uint64_t *theirs, *ours = NULL;
	int r = qcow2_l1_copy(e->l1, shared, max_u64(n, s->l1_entries), &theirs, err);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < shared; i++)
		theirs[i] &= ~QCOW2_COPIED;
	r = qcow2_l1_copy(e->l1, n, n, &ours, err);
	if (r == 0)
		r = qcow2_txn_walk(e, theirs, shared, 1, err);
	if (r == 0)
		r = qcow2_txn_fix_copied_shared(e, ours, theirs, n, err);
	if (r == 0)
		r = write_l1(e, s, theirs, err);
	free(theirs);
	if (r == 0)
		qcow2_txn_set_l1(e, ours, n);
	else
		free(ours);
	return r;
}

static int add_snapshot(struct qcow2_engine *e, const char *name, unsigned flags, const int64_t *created_ns,
			struct qcow2_snapshot *s, struct img_error *err)
{
	uint64_t entries = qcow2_l1_entries_for(e, e->h.size);
	int r = describe(e, name, created_ns, s, err);

	if (flags & IMG_SNAPSHOT_VMSTATE) {
		s->vm_state_bytes = atomic_load(&e->vm_bytes);
		entries += qcow2_l1_entries_vm(e, s->vm_state_bytes);
	}
	/* One at least: others expect a table to be somewhere. */
	s->l1_entries = (uint32_t)max_u64(min_u64(entries, e->h.l1_entries), 1);
	return r == 0 ? share_tree(e, s, err) : r;
}

int qcow2_snap_create(struct node *n, const char *name, unsigned flags, const int64_t *created_ns,
		      struct img_error *err)
{
	struct qcow2_snapshot *list = NULL;
	struct qcow2_engine *e;
	uint32_t nr;
	int r = begin(n, &e, err);

	if (r < 0)
		return r;
	nr = e->h.nr_snapshots;
	if (name_taken(e, name))
		r = error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER, "there is a snapshot of this name already");
	else if (nr >= QCOW2_SNAPSHOTS_MAX)
		r = error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "an image has at most %u snapshots",
			      QCOW2_SNAPSHOTS_MAX);
	else
		r = qcow2_snapshots_copy(e->snapshots, nr, 1, &list, err);
	if (r == 0)
		r = add_snapshot(e, name, flags, created_ns, &list[nr], err);
	if (r == 0)
		qcow2_txn_set_snapshots(e, list, nr + 1);
	else
		qcow2_snapshots_free(list, list ? nr + 1 : 0);
	return end(e, r, err);
}

/* ---- delete, revert, rename --------------------------------------------------------------------------------------- */

/* Drops the references of the snapshot, and its L1 table. */
static int drop_tree(struct qcow2_engine *e, const struct qcow2_snapshot *s, struct img_error *err)
{
	uint64_t clusters = round_up(UINT64_C(8) * s->l1_entries, e->cluster_bytes) >> e->h.cluster_bits;
	uint64_t *l1;
	int r = qcow2_l1_load(e, s->l1_off, s->l1_entries, &l1, err);

	if (r < 0)
		return r;
	r = qcow2_txn_walk(e, l1, s->l1_entries, -1, err);
	free(l1);
	if (r == 0 && clusters)
		r = qcow2_free(e, s->l1_off, clusters, err);
	return r;
}

int qcow2_snap_delete(struct node *n, const char *name, struct img_error *err)
{
	struct qcow2_snapshot *list = NULL;
	struct qcow2_engine *e;
	uint32_t nr, at;
	int r = begin(n, &e, err);

	if (r < 0)
		return r;
	nr = e->h.nr_snapshots;
	r = find(e, name, &at, err);
	if (r == 0 && e->snapshots[at].nr_views > 0)
		r = error_set(err, IMG_E_BUSY, 0, NO_OFFSET, LAYER, "snapshot %.64s is open", name);
	if (r == 0)
		r = qcow2_snapshots_copy(e->snapshots, nr, 0, &list, err);
	if (r == 0)
		r = drop_tree(e, &e->snapshots[at], err);
	if (r == 0)
		r = refresh_active(e, err);
	if (r == 0) {
		qcow2_snapshots_remove(list, nr, at);
		qcow2_txn_set_snapshots(e, list, nr - 1);
	} else {
		qcow2_snapshots_free(list, list ? nr : 0);
	}
	return end(e, r, err);
}

/* The size that the disk will have; bitmaps are made ready for another one. */
static int prepare_size(struct node *n, const char *name, uint64_t *disk_bytes, struct img_error *err)
{
	const struct qcow2_snapshot *s;
	struct qcow2_engine *e;
	uint64_t before = 0;
	int r = qcow2_head(n, &e, err);

	if (r < 0)
		return r;
	pthread_rwlock_rdlock(&e->map);
	s = qcow2_snapshot_find(e, name, err);
	if (s) {
		*disk_bytes = s->disk_bytes;
		before = e->h.size;
	}
	pthread_rwlock_unlock(&e->map);
	if (!s)
		return IMG_E_NOENT;
	if (*disk_bytes == before || *disk_bytes > INT64_MAX - e->cluster_bytes)
		return 0;
	r = qcow2_touch(e, err);
	return r == 0 ? qcow2_bitmaps_resize_prepare(e, *disk_bytes, err) : r;
}

/* prepared: the size that prepare_size() saw, before anybody else could have come in between. */
static int check_revert(struct qcow2_engine *e, const struct qcow2_snapshot *s, uint64_t prepared,
			struct img_error *err)
{
	if (s->disk_bytes > INT64_MAX - e->cluster_bytes ||
	    qcow2_l1_entries_for(e, s->disk_bytes) > QCOW2_L1_MAX_BYTES / 8)
		return error_set(err, IMG_E_CORRUPT, 0, e->h.snapshots_off, LAYER,
				 "snapshot %.64s has a disk of 0x%llx bytes, more than this image can hold", s->name,
				 (unsigned long long)s->disk_bytes);
	if (s->disk_bytes != prepared)
		return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, LAYER, "snapshots were changed meanwhile: try again");
	return 0;
}

static int switch_tree(struct qcow2_engine *e, const struct qcow2_snapshot *s, struct img_error *err)
{
	uint64_t n = max_u64(qcow2_l1_entries_for(e, s->disk_bytes), s->l1_entries), *theirs, *l1 = NULL;
	int r = qcow2_l1_load(e, s->l1_off, s->l1_entries, &theirs, err);

	if (r < 0)
		return r;
	r = qcow2_l1_copy(theirs, s->l1_entries, n, &l1, err);
	free(theirs);
	/* Ours first, so that a cluster shared by both does not pass the largest refcount on the way. */
	if (r == 0)
		r = qcow2_txn_walk(e, e->l1, e->h.l1_entries, -1, err);
	if (r == 0)
		r = qcow2_txn_walk(e, l1, (uint32_t)n, 1, err);
	if (r < 0) {
		free(l1);
		return r;
	}
	e->h.size = s->disk_bytes;
	atomic_store(&e->disk_bytes, s->disk_bytes);
	return put_active(e, l1, (uint32_t)n, err);
}

int qcow2_snap_revert(struct node *n, const char *name, struct img_error *err)
{
	struct qcow2_engine *e;
	uint64_t vm_bytes = 0, disk_bytes = 0;
	uint32_t at;
	int r = prepare_size(n, name, &disk_bytes, err);

	if (r == 0)
		r = begin(n, &e, err);
	if (r != 0)
		return r;
	r = find(e, name, &at, err);
	if (r == 0)
		r = check_revert(e, &e->snapshots[at], disk_bytes, err);
	if (r == 0) {
		vm_bytes = e->snapshots[at].vm_state_bytes;
		qcow2_bitmaps_note(e, 0, e->h.size);
		disk_bytes = e->h.size;
		r = switch_tree(e, &e->snapshots[at], err);
	}
	r = end(e, r, err);
	if (r == 0) {
		if (e->h.size != disk_bytes) {
			qcow2_bitmaps_resized(e, e->h.size);
			qcow2_bitmaps_note(e, 0, e->h.size);
		}
		atomic_store(&e->vm_reach, vm_bytes);
		atomic_store(&e->vm_bytes, vm_bytes);
	}
	return r;
}

int qcow2_snap_rename(struct node *n, const char *name, const char *new_name, struct img_error *err)
{
	struct qcow2_snapshot *list = NULL;
	struct qcow2_engine *e;
	uint32_t nr, at;
	char *text;
	int r = begin(n, &e, err);

	if (r < 0)
		return r;
	nr = e->h.nr_snapshots;
	r = find(e, name, &at, err);
	if (r == 0 && name_taken(e, new_name) && strcmp(e->snapshots[at].name, new_name) != 0)
		r = error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER, "there is a snapshot of the new name already");
	if (r == 0)
		r = qcow2_snapshots_copy(e->snapshots, nr, 0, &list, err);
	if (r < 0)
		return end(e, r, err);
	text = strdup(new_name);
	if (text) {
		free(list[at].name);
		list[at].name = text;
		qcow2_txn_set_snapshots(e, list, nr);
	} else {
		qcow2_snapshots_free(list, nr);
		r = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for a name");
	}
	return end(e, r, err);
}

/* ---- list --------------------------------------------------------------------------------------------------------- */

/* A longer name is cut where a character begins; the snapshot is then found by its id. */
static void copy_name(char *out, const char *name)
{
	size_t len = strlen(name);

	if (len > IMG_SNAPSHOT_NAME_MAX) {
		len = IMG_SNAPSHOT_NAME_MAX;
		while (len > 0 && ((unsigned char)name[len] & 0xc0) == 0x80)
			len--;
	}
	memcpy(out, name, len);
	out[len] = '\0';
}

static int by_id(const void *a, const void *b)
{
	const struct img_snapshot *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

/* data_bytes stays 0: the format does not record it, and counting reads every table of every snapshot. */
int qcow2_snap_list(struct node *n, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err)
{
	struct qcow2_engine *e = state_of(n)->view.e;
	struct img_snapshot *all;
	size_t count;

	pthread_rwlock_rdlock(&e->map);
	count = e->h.nr_snapshots;
	all = calloc(count + 1, sizeof(*all));
	for (size_t i = 0; all && i < count; i++) {
		const struct qcow2_snapshot *s = &e->snapshots[i];
		uint64_t id = number_of(s->id);

		copy_name(all[i].name, s->name);
		all[i].id = id ? id : i + 1;
		all[i].created_ns = (int64_t)(s->date_sec * SECOND_NS + s->date_nsec);
		all[i].size_bytes = s->disk_bytes;
		all[i].vmstate_bytes = s->vm_state_bytes;
	}
	pthread_rwlock_unlock(&e->map);
	if (!all)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for a list of snapshots");
	qsort(all, count, sizeof(*all), by_id);
	if (cap > 0)
		memcpy(out, all, (size_t)min_u64(count, cap) * sizeof(*all));
	*nr = count;
	free(all);
	return 0;
}

/* ---- views -------------------------------------------------------------------------------------------------------- */

int qcow2_snapshot_view(struct qcow2_engine *e, const char *name, struct qcow2_view *out, struct img_error *err)
{
	struct qcow2_snapshot *s = NULL;
	uint32_t at;
	int r;

	*out = (struct qcow2_view){ .e = e, .is_snapshot = true };
	pthread_rwlock_wrlock(&e->map);
	r = find(e, name, &at, err);
	if (r == 0) {
		s = &e->snapshots[at];
		r = qcow2_l1_load(e, s->l1_off, s->l1_entries, &out->l1, err);
	}
	if (r == 0 && s->disk_bytes > INT64_MAX - e->cluster_bytes)
		r = error_set(err, IMG_E_CORRUPT, 0, e->h.snapshots_off, LAYER,
			      "snapshot %.64s has a disk of 0x%llx bytes", s->name, (unsigned long long)s->disk_bytes);
	if (r == 0) {
		out->size_bytes = s->disk_bytes;
		out->l1_entries = s->l1_entries;
		out->l1_off = s->l1_off;
		copy_name(out->snapshot, s->name);
		s->nr_views++;
		atomic_fetch_add(&e->open_views, 1);
	} else {
		free(out->l1);
		out->l1 = NULL;
	}
	pthread_rwlock_unlock(&e->map);
	return r;
}

void qcow2_view_release(struct qcow2_view *v)
{
	struct qcow2_engine *e = v->e;

	if (!v->is_snapshot)
		return;
	pthread_rwlock_wrlock(&e->map);
	for (uint32_t i = 0; i < e->h.nr_snapshots; i++)
		if (e->snapshots[i].l1_off == v->l1_off && e->snapshots[i].nr_views > 0) {
			e->snapshots[i].nr_views--;
			break;
		}
	pthread_rwlock_unlock(&e->map);
	atomic_fetch_sub(&e->open_views, 1);
	free(v->l1);
	v->l1 = NULL;
}

int qcow2_snap_open(struct node *n, const char *name, struct node *view, struct img_error *err)
{
	return qcow2_snapshot_view(state_of(n)->view.e, name, &state_of(view)->view, err);
}
