/* SPDX-License-Identifier: MIT */
/*
 * The backing file on record. Emptying a layer together with a change of its backing (the end of a commit) is one
 * transaction: the new L1 is empty, and the header that names it carries the new record in the same sector.
 */
#include <stdlib.h>
#include <string.h>

#include "qcow2_engine.h"
#include "qcow2_header.h"

/* What QEMU, whose names stand in the file, calls otherwise. */
static const struct {
	const char *theirs, *ours;
} names[] = { { "vpc", "vhd" }, { "file", "raw" }, { "host_device", "raw" } };

static const char *name_for_file(const char *ours)
{
	return strcmp(ours, "vhd") == 0 ? "vpc" : ours;
}

static const char *name_from_file(const char *theirs)
{
	for (size_t i = 0; i < ARRAY_LEN(names); i++)
		if (strcmp(names[i].theirs, theirs) == 0)
			return names[i].ours;
	return theirs;
}

int qcow2_header_set_backing(struct qcow2_header *h, const struct backing_ref *ref, struct img_error *err)
{
	if (ref && (strlen(ref->name) > QCOW2_NAME_MAX || ref->name[0] == '\0'))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "the name of a backing file has 1 to %u bytes in qcow2", QCOW2_NAME_MAX);
	if (ref && (h->autoclear & QCOW2_DATA_FILE_RAW))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "a raw data file holds the whole disk: there can be no backing file");
	memset(h->backing, 0, sizeof(h->backing));
	memset(h->backing_format, 0, sizeof(h->backing_format));
	memset(h->backing_snapshot, 0, sizeof(h->backing_snapshot));
	memset(&h->pin, 0, sizeof(h->pin));
	h->has_pin = h->committing = false;
	if (!ref)
		return 0;
	strcpy(h->backing, ref->name);
	strcpy(h->backing_format, name_for_file(ref->format));
	strcpy(h->backing_snapshot, ref->snapshot);
	h->pin = ref->pin;
	h->has_pin = ref->pin.kind != PIN_NONE;
	h->committing = ref->committing;
	return 0;
}

bool qcow2_get_backing(struct node *n, struct backing_ref *out)
{
	struct qcow2_engine *e = ((struct qcow2_state *)n->state)->view.e;
	const struct qcow2_header *h = &e->h;
	bool has;

	pthread_rwlock_rdlock(&e->map);
	has = h->backing[0] != '\0';
	if (has) {
		memset(out, 0, sizeof(*out));
		strcpy(out->name, h->backing);
		strcpy(out->format, name_from_file(h->backing_format));
		strcpy(out->snapshot, h->backing_snapshot);
		if (h->has_pin)
			out->pin = h->pin;
		out->committing = h->committing;
	}
	pthread_rwlock_unlock(&e->map);
	return has;
}

/* What set_backing changes of the header, for going back. */
struct record {
	char backing[QCOW2_NAME_MAX + 1], format[16], snapshot[IMG_SNAPSHOT_NAME_MAX + 1];
	struct pin pin;
	bool has_pin, committing;
};

static void save_record(const struct qcow2_header *h, struct record *r)
{
	memcpy(r->backing, h->backing, sizeof(r->backing));
	memcpy(r->format, h->backing_format, sizeof(r->format));
	memcpy(r->snapshot, h->backing_snapshot, sizeof(r->snapshot));
	r->pin = h->pin;
	r->has_pin = h->has_pin;
	r->committing = h->committing;
}

static void restore_record(struct qcow2_header *h, const struct record *r)
{
	memcpy(h->backing, r->backing, sizeof(r->backing));
	memcpy(h->backing_format, r->format, sizeof(r->format));
	memcpy(h->backing_snapshot, r->snapshot, sizeof(r->snapshot));
	h->pin = r->pin;
	h->has_pin = r->has_pin;
	h->committing = r->committing;
}

/* A change of the record alone: the header, after everything that was written before. */
static int set_record(struct qcow2_engine *e, const struct backing_ref *ref, struct img_error *err)
{
	struct record *before = malloc(sizeof(*before));
	int ret;

	if (!before)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	pthread_rwlock_wrlock(&e->map);
	save_record(&e->h, before);
	ret = qcow2_header_set_backing(&e->h, ref, err);
	if (ret == 0) {
		ret = qcow2_header_write(e, err);
		if (ret != 0)
			restore_record(&e->h, before);
		if (ret != 0 && ret != IMG_E_LIMIT && ret != IMG_E_NOMEM)
			atomic_store(&e->broken, true); /* the disk may hold either */
	}
	pthread_rwlock_unlock(&e->map);
	free(before);
	return ret;
}

/* Does the header still fit into its cluster? A transaction must know before it ends. */
int qcow2_header_fits(struct qcow2_engine *e, struct img_error *err)
{
	uint8_t *buf = malloc((size_t)e->cluster_bytes);
	int ret = buf ? qcow2_header_store(&e->h, buf, err) :
			error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	free(buf);
	return ret;
}

static int set_record_empty(struct qcow2_engine *e, const struct backing_ref *ref, struct img_error *err)
{
	uint64_t *l1;
	int ret = qcow2_txn_begin(e, err);

	if (ret != 0)
		return ret;
	l1 = calloc(e->h.l1_entries ? e->h.l1_entries : 1, sizeof(*l1));
	if (!l1)
		ret = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	if (ret == 0)
		ret = qcow2_txn_walk(e, e->l1, e->h.l1_entries, -1, err);
	if (ret == 0)
		ret = qcow2_header_set_backing(&e->h, ref, err);
	if (ret == 0)
		ret = qcow2_header_fits(e, err);
	if (ret != 0) {
		free(l1);
		qcow2_txn_abort(e);
		return ret;
	}
	qcow2_txn_set_l1(e, l1, e->h.l1_entries);
	qcow2_txn_whole_header(e);
	ret = qcow2_txn_commit(e, err);
	if (ret == 0)
		atomic_store(&e->vm_bytes, 0);
	return ret;
}

int qcow2_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	struct qcow2_engine *e;
	int ret = qcow2_head(n, &e, err);

	if (ret == 0)
		ret = qcow2_touch(e, err);
	if (ret != 0)
		return ret;
	if (how == BACKING_SET_EMPTY)
		return set_record_empty(e, ref, err);
	ret = qcow2_flush_all(e, err);
	return ret == 0 ? set_record(e, ref, err) : ret;
}
