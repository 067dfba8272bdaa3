/* SPDX-License-Identifier: MIT */
/*
 * Check and repair, the whole of it. The rules QCOW2-nn are those of format-spec/qcow2.md.
 *
 * One pass counts what refers to each cluster: everything is read past the engine, from the file, once. Then the
 * refcounts are compared with the counts, and the head's COPIED flags with the refcounts. What a repair changes it
 * changes on the way, and each single step leaves an image that is no worse than before: refcounts and flags where they
 * stand, or, where that cannot be, a new refcount structure beside the old one. It never guesses at content: what
 * cannot be followed stays as it is, and then nothing is freed either.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_check.h"
#include "qcow2_refcount.h"

/* References up to twice as far as the file, and this much, are thought to be of the part that was cut off. */
#define DANGLING_BYTES (UINT64_C(64) << 20)
#define REPORT_BYTES (UINT64_C(1) << 20)

/* ---- what the parts share ---- */

void check_found(struct check *k, const struct check_at *at, const char *fmt, ...)
{
	struct img_finding f = {
		.kind = at->kind, .file_off = at->file_off, .guest_off = at->guest_off, .repaired = at->repaired
	};
	va_list ap;

	if (at->kind == IMG_FINDING_DAMAGE)
		k->out->damage += at->weight;
	else if (at->kind == IMG_FINDING_LEAK)
		k->out->leaks += at->weight;
	if (at->repaired)
		k->out->repaired += at->weight;
	if (!k->fn)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	memcpy(f.where, k->where, strnlen(k->where, sizeof(f.where) - 1)); /* a foreign name may be longer */
	if (at->rule)
		(void)snprintf(f.rule, sizeof(f.rule), "QCOW2-%u", at->rule % 100);
	k->fn(k->ctx, &f);
}

int check_unreadable(struct check *k, int rc, const struct img_error *why, struct img_error *err)
{
	/* What the host cannot read just now may be whole: a repair does not go by what is missing then. */
	if (rc != IMG_E_CORRUPT && (rc != IMG_E_IO || k->repair)) {
		*err = *why;
		return rc;
	}
	check_damage(k, 0, why->offset, NO_OFFSET, 1, "%s", why->msg);
	k->incomplete = true;
	return 0;
}

int check_read(struct check *k, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint64_t there = off < k->file_bytes ? min_u64(bytes, k->file_bytes - off) : 0;

	memset((uint8_t *)buf + there, 0, (size_t)(bytes - there));
	return there ? node_pread(k->e->file, buf, there, off, 0, err) : 0;
}

int check_progress(struct check *k, uint64_t bytes, struct img_error *err)
{
	k->done_bytes += bytes;
	k->out->metadata_bytes += bytes;
	if (!k->progress || !k->progress->fn || k->done_bytes < k->next_report)
		return 0;
	k->next_report = k->done_bytes + REPORT_BYTES;
	if (k->progress->fn(k->progress->ctx, k->done_bytes, max_u64(k->done_bytes, k->total_bytes)) == 0)
		return 0;
	return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped");
}

bool check_beyond(const struct check *k, uint64_t off, uint64_t bytes)
{
	uint64_t end;

	return add_overflows(off, bytes, &end) || (end > k->file_bytes && end - k->file_bytes >= k->e->cluster_bytes);
}

/* A cut file: what stood there may come back, and must not be taken for something else meanwhile. */
static void note_dangling(struct check *k, uint64_t off, uint64_t bytes)
{
	uint64_t end;

	if (!add_overflows(off, bytes, &end) && end / 2 <= k->file_bytes + DANGLING_BYTES)
		k->dangling_end = max_u64(k->dangling_end, end);
}

int check_refer(struct check *k, uint64_t off, uint64_t bytes, uint64_t times, unsigned uses, uint64_t guest_off,
		struct img_error *err)
{
	unsigned shift = k->e->h.cluster_bits;

	if (bytes == 0)
		return 0;
	if (check_beyond(k, off, bytes)) {
		check_damage(k, 9, off, guest_off, times,
			     "0x%" PRIx64 " bytes at 0x%" PRIx64 " are in use, but the file ends at 0x%" PRIx64, bytes,
			     off, k->file_bytes);
		note_dangling(k, off, bytes);
		return 0;
	}
	return counts_add(&k->counts, off >> shift, ((off + bytes - 1) >> shift) - (off >> shift) + 1, times, uses,
			  err);
}

/* ---- header ---- */

static void note(struct check *k, unsigned rule, uint64_t off, const char *text)
{
	check_found(k, &(struct check_at){ IMG_FINDING_NOTE, rule, off, NO_OFFSET, 0, false }, "%s", text);
}

static void header_check(struct check *k)
{
	const struct qcow2_header *h = &k->e->h;
	const uint64_t incompatible = offsetof(struct disk_qcow2_header, incompatible);
	const uint64_t autoclear = offsetof(struct disk_qcow2_header, autoclear);

	if (h->incompatible & QCOW2_DIRTY)
		note(k, 2, incompatible, "the last writer was interrupted before it wrote all refcounts");
	if (h->incompatible & QCOW2_CORRUPT)
		note(k, 3, incompatible, "the image is marked as corrupt");
	if (h->autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_KNOWN)
		note(k, 4, autoclear, "features are in use that this version does not keep when it writes");
	if (h->autoclear & QCOW2_DATA_FILE_RAW && !(h->incompatible & QCOW2_DATA_FILE))
		check_found(k, &(struct check_at){ IMG_FINDING_DAMAGE, 4, autoclear, NO_OFFSET, 1, k->repair },
			    "the data file is said to be raw, but there is none");
	if (h->autoclear & QCOW2_BITMAPS && h->nr_bitmaps == 0)
		note(k, 4, autoclear, "bitmaps are said to be there, but there are none");
}

/* Marks that are not true any more go. */
static int clear_marks(struct check *k, struct img_error *err)
{
	struct qcow2_header *h = &k->e->h;
	const uint64_t incompatible = h->incompatible, autoclear = h->autoclear;
	int rc = node_flush(k->e->file, 0, err);

	if (rc < 0)
		return rc;
	if (k->out->damage + k->out->leaks <= k->out->repaired)
		h->incompatible &= ~(uint64_t)(QCOW2_DIRTY | QCOW2_CORRUPT);
	if (!(h->incompatible & QCOW2_DATA_FILE))
		h->autoclear &= ~(uint64_t)QCOW2_DATA_FILE_RAW;
	if (h->incompatible == incompatible && h->autoclear == autoclear)
		return 0;
	rc = qcow2_header_write_fields(k->e, err);
	if (rc == 0)
		rc = node_flush(k->e->file, 0, err);
	if (rc < 0) {
		h->incompatible = incompatible;
		h->autoclear = autoclear;
	}
	return rc;
}

/* ---- the whole ---- */

static int run(struct check *k, struct img_error *err)
{
	int rc;

	header_check(k);
	rc = check_refer(k, 0, k->e->cluster_bytes, 1, USE_ALONE, NO_OFFSET, err);
	if (rc == 0)
		rc = check_snapshots(k, err);
	if (rc == 0)
		rc = check_bitmaps(k, err);
	if (rc == 0)
		rc = check_trees(k, err);
	if (rc == 0)
		rc = check_refcount_table(k, err);
	if (rc == 0)
		rc = check_refs(k, err);
	if (rc == 0 && k->repair && k->rebuild)
		rc = repair_rebuild(k, err);
	if (rc == 0 && !k->part)
		rc = check_copied(k, err);
	if (rc < 0 || !k->repair)
		return rc;
	if (k->incomplete)
		note(k, 0, NO_OFFSET, "nothing was freed: tables are damaged, so that not everything in use is known");
	return clear_marks(k, err);
}

static void check_end(struct check *k)
{
	if (k->own_snapshots) {
		qcow2_snapshots_free(k->e->snapshots, k->e->h.nr_snapshots);
		k->e->snapshots = NULL;
	}
	if (k->e->check_only)
		qcow2_bitmaps_free(k->e);
	counts_free(&k->counts);
	map64_free(&k->tree_by_off);
	map64_free(&k->l2_by_off);
	free(k->tree);
	free(k->l2);
	free(k->table);
	free(k->block);
	free(k->new_snapshots);
	free(k->buf);
}

static int check_begin_and_run(struct check *k, struct img_error *err)
{
	struct img_error own = { 0 };
	int rc;

	k->where = "";
	k->file_bytes = node_size(k->e->file);
	k->buf = malloc((size_t)max_u64(k->e->cluster_bytes, CHECK_BUF_BYTES));
	rc = k->buf ? run(k, &own) : error_set(&own, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	check_end(k);
	if (rc < 0 && err)
		*err = own;
	return rc;
}

/* What memory holds of tables that were mended on disk. Gate and map are held for writing. */
static int reload(struct qcow2_engine *e, struct img_error *err)
{
	uint64_t *l1 = NULL;
	int rc = qcow2_l1_load(e, e->h.l1_off, e->h.l1_entries, &l1, err);

	if (rc < 0)
		return rc;
	free(e->l1);
	e->l1 = l1;
	qcow2_cache_drop(e, 0, UINT64_MAX / 2);
	free(e->reftable);
	free(e->reftable_dirty);
	e->reftable = NULL;
	e->reftable_dirty = NULL;
	e->reftable_entries = 0;
	rc = qcow2_reftable_load(e, err);
	qcow2_meta_free(e);
	if (rc == 0)
		rc = qcow2_meta_build(e, err);
	e->alloc_hint = 0;
	e->packed_off = e->packed_end = 0;
	if (e->file_end != UINT64_MAX)
		e->file_end = max_u64(e->file_end, round_up(node_size(e->file), e->cluster_bytes));
	return rc;
}

/* An engine in use stands still meanwhile, with everything on disk. */
static int stop_engine(struct qcow2_engine *e, struct img_error *err)
{
	int rc = qcow2_flush_all(e, err); /* most of it, while requests go on */

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&e->flushing);
	pthread_rwlock_wrlock(&e->gate);
	rc = qcow2_settle_gated(e, err);
	if (rc == 0)
		pthread_rwlock_wrlock(&e->map);
	else
		pthread_rwlock_unlock(&e->gate);
	pthread_mutex_unlock(&e->flushing);
	return rc;
}

static void start_engine(struct qcow2_engine *e)
{
	pthread_rwlock_unlock(&e->map);
	pthread_rwlock_unlock(&e->gate);
}

int qcow2_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		struct img_check_result *out, struct img_error *err)
{
	const struct qcow2_view *v = &((struct qcow2_state *)n->state)->view;
	struct qcow2_engine *e = v->e;
	bool in_use = e->writable && !e->check_only;
	struct check k = { .e = e, .fn = fn, .ctx = ctx, .progress = progress, .out = out };
	int rc = 0;

	memset(out, 0, sizeof(*out));
	k.repair = flags & IMG_CHECK_REPAIR;
	k.part = v->is_snapshot ? v->snapshot : NULL;
	if (k.repair && (!e->writable || k.part))
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing, not a snapshot");
	if (in_use)
		rc = stop_engine(e, err);
	if (rc < 0)
		return rc;
	rc = check_begin_and_run(&k, err);
	if (in_use && k.repair) {
		int again = reload(e, rc ? NULL : err);

		if (again < 0)
			atomic_store(&e->broken, true);
		rc = rc ? rc : again;
	}
	if (in_use)
		start_engine(e);
	return rc;
}

int qcow2_rebuild_refcounts(struct qcow2_engine *e, struct img_error *err)
{
	struct img_check_result out = { 0 };
	struct check k = { .e = e, .out = &out, .repair = true };
	const bool check_only = e->check_only;
	int rc;

	e->check_only = true;
	rc = check_begin_and_run(&k, err);
	e->check_only = check_only;
	if (rc == 0 && out.damage + out.leaks > out.repaired)
		rc = error_set(
			err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			"the last writer was interrupted, and more than refcounts is damaged: run imgtool check");
	if (rc < 0)
		error_prefix(err, "refcounts cannot be rebuilt");
	return rc;
}
