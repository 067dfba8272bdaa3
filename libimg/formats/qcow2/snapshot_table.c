/* SPDX-License-Identifier: MIT */
/*
 * The snapshot table: entries of variable length, one behind the other, each padded to 8 bytes. It is read once, when
 * the image is opened, and written as a whole into new clusters by each change of it.
 *
 * Reading is lenient, so that a damaged table does not keep anyone from the disk: what cannot be read leaves blank
 * entries at the end and snapshots_damaged set, which forbids every change of the table until a repair has made a new
 * one. What entries say is not believed here either: L1 tables are checked when they are used.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_snapshot.h"

#define WINDOW_BYTES (UINT64_C(256) << 10) /* more than the longest entry */

/* Reads the table front to back in growing steps: most are far smaller than the longest entry. */
struct window {
	struct node *file;
	uint64_t file_bytes;
	uint64_t off, bytes; /* what buf holds */
	uint64_t next_bytes;
	uint8_t *buf;
};

/* *at: the bytes of [off, off + bytes); NULL beyond the end of the file. */
static int look(struct window *w, uint64_t off, uint64_t bytes, const uint8_t **at, struct img_error *err)
{
	*at = bytes ? NULL : w->buf;
	if (bytes == 0 || bytes > WINDOW_BYTES || !range_inside(off, bytes, w->file_bytes))
		return 0;
	if (off < w->off || !range_inside(off - w->off, bytes, w->bytes)) {
		uint64_t want = min_u64(max_u64(bytes, w->next_bytes), w->file_bytes - off);
		int r = node_pread(w->file, w->buf, want, off, 0, err);

		w->bytes = 0;
		if (r < 0) {
			error_prefix(err, "the snapshot table");
			return r;
		}
		w->off = off;
		w->bytes = want;
		w->next_bytes = min_u64(w->next_bytes * 4, WINDOW_BYTES);
	}
	*at = w->buf + (off - w->off);
	return 0;
}

static char *text_of(const uint8_t *bytes, size_t len)
{
	char *text = malloc(len + 1);

	if (text) {
		memcpy(text, bytes, len);
		text[len] = '\0';
	}
	return text;
}

/* Extra data is only as long as the writer knew fields. */
static void take_extra(struct qcow2_snapshot *s, uint32_t vm_state_bytes, uint64_t head_bytes)
{
	struct be64 field;

	s->vm_state_bytes = vm_state_bytes;
	s->disk_bytes = head_bytes;
	if (s->extra_bytes >= 8) {
		memcpy(&field, s->extra, 8);
		s->vm_state_bytes = be64_get(field);
	}
	if (s->extra_bytes >= 16) {
		memcpy(&field, s->extra + 8, 8);
		s->disk_bytes = be64_get(field);
	}
}

/* One entry at *off, which is moved behind it. *whole: it could be read and nothing was left out. */
static int load_entry(struct window *w, uint64_t *off, uint64_t head_bytes, struct qcow2_snapshot *s, bool *whole,
		      struct img_error *err)
{
	struct disk_qcow2_snapshot d;
	const uint8_t *at;
	uint64_t extra, kept, id, name;
	int r = look(w, *off, sizeof(d), &at, err);

	*whole = false;
	if (r < 0 || !at)
		return r;
	memcpy(&d, at, sizeof(d));
	*s = (struct qcow2_snapshot){
		.l1_off = be64_get(d.l1_off),
		.l1_entries = be32_get(d.l1_entries),
		.date_sec = be32_get(d.date_sec),
		.date_nsec = be32_get(d.date_nsec),
		.vm_clock_nsec = be64_get(d.vm_clock_nsec),
	};
	extra = be32_get(d.extra_bytes);
	kept = min_u64(extra, QCOW2_SNAPSHOT_EXTRA_MAX);
	id = be16_get(d.id_bytes);
	name = be16_get(d.name_bytes);
	r = look(w, *off + sizeof(d), kept, &at, err);
	if (r < 0 || !at)
		return r;
	s->extra = malloc((size_t)(kept ? kept : 1));
	if (!s->extra)
		return error_set(err, IMG_E_NOMEM, 0, *off, LAYER, "no memory for the snapshot table");
	memcpy(s->extra, at, (size_t)kept);
	s->extra_bytes = (uint32_t)kept;
	take_extra(s, be32_get(d.vm_state_bytes), head_bytes);
	r = look(w, *off + sizeof(d) + extra, id + name, &at, err);
	if (r < 0 || !at)
		return r;
	s->id = text_of(at, (size_t)id);
	s->name = text_of(at + id, (size_t)name);
	if (!s->id || !s->name)
		return error_set(err, IMG_E_NOMEM, 0, *off, LAYER, "no memory for the snapshot table");
	*off = round_up(*off + sizeof(d) + extra + id + name, 8);
	*whole = kept == extra;
	return 0;
}

static void free_entry(struct qcow2_snapshot *s)
{
	free(s->extra);
	free(s->id);
	free(s->name);
	*s = (struct qcow2_snapshot){ 0 };
}

/* So that nobody needs to ask whether there is a name. */
static int blank_entry(struct qcow2_snapshot *s, struct img_error *err)
{
	free_entry(s);
	s->extra = malloc(1);
	s->id = calloc(1, 1);
	s->name = calloc(1, 1);
	if (s->extra && s->id && s->name)
		return 0;
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for the snapshot table");
}

/* Zeros are what a lost table reads as; no program makes such a snapshot. */
static bool is_blank(const struct qcow2_snapshot *s)
{
	return s->l1_off == 0 && s->l1_entries == 0 && s->id[0] == '\0' && s->name[0] == '\0';
}

static int load_entries(struct qcow2_engine *e, struct window *w, struct qcow2_snapshot *list, struct img_error *err)
{
	uint64_t off = e->h.snapshots_off;
	bool readable = true;
	int r = 0;

	for (uint32_t i = 0; i < e->h.nr_snapshots && r == 0; i++) {
		bool whole = false;

		if (readable)
			r = load_entry(w, &off, e->h.size, &list[i], &whole, err);
		if (!whole || (r == 0 && is_blank(&list[i])))
			e->snapshots_damaged = true;
		readable = readable && off - e->h.snapshots_off <= QCOW2_SNAPSHOT_TABLE_MAX_BYTES;
		if (r == 0 && !list[i].name) {
			readable = false;
			r = blank_entry(&list[i], err);
		}
	}
	e->snapshots_bytes = off - e->h.snapshots_off;
	return r;
}

int qcow2_snapshots_load(struct qcow2_engine *e, struct img_error *err)
{
	struct window w = { .file = e->file, .file_bytes = node_size(e->file), .next_bytes = 4096 };
	uint32_t n = e->h.nr_snapshots;
	struct qcow2_snapshot *list;
	int r;

	e->snapshots_damaged = false;
	e->snapshots_bytes = 0;
	if (n == 0) {
		e->snapshots = NULL;
		return 0;
	}
	if (n > QCOW2_SNAPSHOTS_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "%u snapshots: at most %u are supported", n,
				 QCOW2_SNAPSHOTS_MAX);
	list = calloc(n, sizeof(*list));
	w.buf = malloc(WINDOW_BYTES);
	if (list && w.buf)
		r = load_entries(e, &w, list, err);
	else
		r = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for the snapshot table");
	free(w.buf);
	if (r == 0)
		e->snapshots = list;
	else
		qcow2_snapshots_free(list, n);
	return r;
}

void qcow2_snapshots_free(struct qcow2_snapshot *list, uint32_t n)
{
	for (uint32_t i = 0; list && i < n; i++)
		free_entry(&list[i]);
	free(list);
}

int qcow2_snapshots_writable(const struct qcow2_engine *e, struct img_error *err)
{
	if (!e->snapshots_damaged)
		return 0;
	return error_set(err, IMG_E_CORRUPT, 0, e->h.snapshots_off, LAYER,
			 "the snapshot table at 0x%llx is damaged: run imgtool check --repair first",
			 (unsigned long long)e->h.snapshots_off);
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

/* Version 3 demands the size of the disk, and with it the field before it. */
static uint64_t stored_extra(const struct qcow2_snapshot *s, unsigned version)
{
	return version >= 3 ? max_u64(s->extra_bytes, 16) : s->extra_bytes;
}

static uint64_t stored_bytes(const struct qcow2_snapshot *s, unsigned version)
{
	return round_up(sizeof(struct disk_qcow2_snapshot) + stored_extra(s, version) + strlen(s->id) + strlen(s->name),
			8);
}

static void store_entry(const struct qcow2_snapshot *s, unsigned version, uint8_t *at)
{
	uint64_t extra = stored_extra(s, version);
	size_t id = strlen(s->id), name = strlen(s->name);
	struct disk_qcow2_snapshot d = {
		.l1_off = be64_of(s->l1_off),
		.l1_entries = be32_of(s->l1_entries),
		.id_bytes = be16_of((uint16_t)id),
		.name_bytes = be16_of((uint16_t)name),
		.date_sec = be32_of(s->date_sec),
		.date_nsec = be32_of(s->date_nsec),
		.vm_clock_nsec = be64_of(s->vm_clock_nsec),
		/* Who knows only this field must not take the beginning of a larger state for all of it. */
		.vm_state_bytes = be32_of(s->vm_state_bytes > UINT32_MAX ? 0 : (uint32_t)s->vm_state_bytes),
		.extra_bytes = be32_of((uint32_t)extra),
	};
	struct be64 vm = be64_of(s->vm_state_bytes), disk = be64_of(s->disk_bytes);

	memcpy(at, &d, sizeof(d));
	at += sizeof(d);
	memcpy(at, s->extra, s->extra_bytes);
	if (extra >= 8)
		memcpy(at, &vm, 8);
	if (extra >= 16)
		memcpy(at + 8, &disk, 8);
	memcpy(at + extra, s->id, id);
	memcpy(at + extra + id, s->name, name);
}

int qcow2_snapshots_store(const struct qcow2_snapshot *list, uint32_t n, unsigned version, uint8_t **out,
			  uint64_t *bytes, struct img_error *err)
{
	uint64_t at = 0;

	*out = NULL;
	*bytes = 0;
	if (n > QCOW2_SNAPSHOTS_MAX)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "an image has at most %u snapshots",
				 QCOW2_SNAPSHOTS_MAX);
	for (uint32_t i = 0; i < n; i++)
		*bytes += stored_bytes(&list[i], version);
	if (*bytes > QCOW2_SNAPSHOT_TABLE_MAX_BYTES)
		return error_set(
			err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			"the table of snapshots would exceed 64 MiB: delete snapshots, or shorten their names");
	*out = calloc(1, (size_t)(*bytes ? *bytes : 1));
	if (!*out)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for the snapshot table");
	for (uint32_t i = 0; i < n; i++) {
		store_entry(&list[i], version, *out + at);
		at += stored_bytes(&list[i], version);
	}
	return 0;
}

/* ---- lists -------------------------------------------------------------------------------------------------------- */

static bool copy_entry(const struct qcow2_snapshot *s, struct qcow2_snapshot *out)
{
	*out = *s;
	out->extra = malloc(s->extra_bytes ? s->extra_bytes : 1);
	out->id = strdup(s->id);
	out->name = strdup(s->name);
	if (out->extra)
		memcpy(out->extra, s->extra, s->extra_bytes);
	return out->extra && out->id && out->name;
}

int qcow2_snapshots_copy(const struct qcow2_snapshot *list, uint32_t n, uint32_t more, struct qcow2_snapshot **out,
			 struct img_error *err)
{
	bool ok;

	*out = calloc((size_t)n + more + 1, sizeof(**out));
	ok = *out;
	for (uint32_t i = 0; i < n && ok; i++)
		ok = copy_entry(&list[i], &(*out)[i]);
	if (ok)
		return 0;
	qcow2_snapshots_free(*out, *out ? n : 0);
	*out = NULL;
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for the snapshot table");
}

void qcow2_snapshots_remove(struct qcow2_snapshot *list, uint32_t n, uint32_t at)
{
	free_entry(&list[at]);
	memmove(&list[at], &list[at + 1], (n - at - 1) * sizeof(*list));
	list[n - 1] = (struct qcow2_snapshot){ 0 };
}

const struct qcow2_snapshot *qcow2_snapshot_find(struct qcow2_engine *e, const char *name, struct img_error *err)
{
	for (uint32_t i = 0; i < e->h.nr_snapshots; i++)
		if (strcmp(e->snapshots[i].name, name) == 0)
			return &e->snapshots[i];
	for (uint32_t i = 0; i < e->h.nr_snapshots; i++)
		if (strcmp(e->snapshots[i].id, name) == 0)
			return &e->snapshots[i];
	error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot %.64s", name);
	return NULL;
}

/* ---- L1 tables ---------------------------------------------------------------------------------------------------- */

static int check_l1(const struct qcow2_engine *e, uint64_t off, const uint64_t *l1, uint32_t n, struct img_error *err)
{
	for (uint32_t i = 0; i < n; i++)
		if ((l1[i] & QCOW2_OFFSET_MASK) % e->cluster_bytes != 0)
			return error_set(err, IMG_E_CORRUPT, 0, off + UINT64_C(8) * i, LAYER,
					 "entry %u of the L1 table at 0x%llx points to 0x%llx, which is not aligned", i,
					 (unsigned long long)off, (unsigned long long)(l1[i] & QCOW2_OFFSET_MASK));
	return 0;
}

int qcow2_l1_load(struct qcow2_engine *e, uint64_t off, uint32_t n, uint64_t **out, struct img_error *err)
{
	uint64_t bytes = UINT64_C(8) * n, file_bytes = node_size(e->file), have;
	uint64_t *l1;
	int r = 0;

	*out = NULL;
	if (bytes > QCOW2_L1_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, off, LAYER,
				 "an L1 table has %u entries: at most %llu are supported", n,
				 (unsigned long long)(QCOW2_L1_MAX_BYTES / 8));
	if (off % e->cluster_bytes != 0 || off > INT64_MAX - QCOW2_L1_MAX_BYTES)
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
				 "an L1 table stands at 0x%llx, which is not aligned", (unsigned long long)off);
	l1 = calloc(1, (size_t)(bytes ? bytes : 1));
	if (!l1)
		return error_set(err, IMG_E_NOMEM, 0, off, LAYER, "no memory for an L1 table of %u entries", n);
	have = off < file_bytes ? min_u64(bytes, file_bytes - off) : 0;
	if (have)
		r = node_pread(e->file, l1, have, off, 0, err);
	for (uint32_t i = 0; i < n; i++) {
		struct be64 d;

		memcpy(&d, &l1[i], 8);
		l1[i] = be64_get(d);
	}
	if (r == 0)
		r = check_l1(e, off, l1, n, err);
	if (r == 0)
		*out = l1;
	else
		free(l1);
	return r;
}

int qcow2_l1_copy(const uint64_t *l1, uint64_t have, uint64_t n, uint64_t **out, struct img_error *err)
{
	*out = NULL;
	if (n > QCOW2_L1_MAX_BYTES / 8)
		return error_set(
			err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			"the L1 table would exceed 32 MiB: disk and machine state are too large for clusters of this size");
	*out = calloc((size_t)(n ? n : 1), 8);
	if (!*out)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "no memory for an L1 table of %llu entries",
				 (unsigned long long)n);
	if (have)
		memcpy(*out, l1, (size_t)min_u64(have, n) * 8);
	return 0;
}
