/* SPDX-License-Identifier: MIT */
/*
 * Opening and closing, and the state of an open image.
 *
 * Reading needs header, L1, and the snapshots' table; the rest is loaded for who writes, and must be whole then. Who
 * checks (args->for_check) gets the header alone, so that the check can say what is wrong with the rest.
 *
 * The first change (qcow2_touch) clears what other programs may not rely on any more: autoclear bits that are not known
 * here, bitmaps that are not followed.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "qcow2_engine.h"
#include "qcow2_header.h"

#define CACHE_DEFAULT_BYTES (UINT64_C(32) << 20)

static struct qcow2_view *view_of(const struct node *n)
{
	return &((struct qcow2_state *)n->state)->view;
}

/* ---- the engine's memory ----------------------------------------------------------------------------------------- */

static void init_locks(struct qcow2_engine *e)
{
	pthread_rwlockattr_t attr;

	/* A change of the whole structure must not wait for a guest to stop reading. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&e->gate, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_rwlock_init(&e->map, NULL);
	pthread_mutex_init(&e->touching, NULL);
	pthread_mutex_init(&e->flushing, NULL);
	pthread_mutex_init(&e->range_lock, NULL);
	pthread_cond_init(&e->range_cond, NULL);
	pthread_mutex_init(&e->codec_lock, NULL);
}

static struct qcow2_engine *engine_new(struct node *n, const struct driver_open *args, struct img_error *err)
{
	struct qcow2_engine *e = calloc(1, sizeof(*e));

	if (!e) {
		error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		return NULL;
	}
	e->node = n;
	e->file = e->data = n->file;
	e->writable = args->writable && !args->snapshot;
	e->bulk = args->bulk;
	init_locks(e);
	return e;
}

static void engine_free(struct qcow2_engine *e)
{
	qcow2_bitmaps_free(e);
	qcow2_snapshots_free(e->snapshots, e->h.nr_snapshots);
	qcow2_cache_free(e);
	qcow2_meta_free(e);
	qcow2_codecs_free(e);
	free(e->l1);
	free(e->l1_dirty);
	free(e->reftable);
	free(e->reftable_dirty);
	free(e->pending);
	free(e->freed);
	qcow2_header_free(&e->h);
	pthread_mutex_destroy(&e->codec_lock);
	pthread_cond_destroy(&e->range_cond);
	pthread_mutex_destroy(&e->range_lock);
	pthread_mutex_destroy(&e->flushing);
	pthread_mutex_destroy(&e->touching);
	pthread_rwlock_destroy(&e->map);
	pthread_rwlock_destroy(&e->gate);
	free(e);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

void qcow2_set_geometry(struct qcow2_engine *e)
{
	const struct qcow2_header *h = &e->h;
	bool extended = h->incompatible & QCOW2_EXTENDED_L2;

	e->cluster_bytes = UINT64_C(1) << h->cluster_bits;
	e->cluster_bits = h->cluster_bits;
	e->entry_bytes = extended ? 16 : 8;
	e->l2_shift = h->cluster_bits - (extended ? 4 : 3);
	e->subclusters = extended ? QCOW2_SUBCLUSTERS : 1;
	e->sub_bytes = e->cluster_bytes / e->subclusters;
	e->rb_shift = h->cluster_bits + 3 - h->refcount_order;
	e->refcount_max = h->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << h->refcount_order)) - 1;
	e->slice_bytes = min_u64(e->cluster_bytes, 4096);
	e->codec = h->compression_type == QCOW2_ZSTD ? CODEC_ZSTD : CODEC_DEFLATE;
	e->external = h->incompatible & QCOW2_DATA_FILE;
	atomic_store(&e->disk_bytes, h->size);
}

int qcow2_may_read(const struct qcow2_engine *e, struct img_error *err)
{
	if (e->h.crypt_method == 0)
		return 0;
	return error_set(err, IMG_E_UNSUPPORTED, 0, offsetof(struct disk_qcow2_header, crypt_method), LAYER,
			 "the image is encrypted (%s), which this version cannot read",
			 e->h.crypt_method == 1 ? "AES" : "LUKS");
}

/* Encryption is that of the content: who looks at metadata alone needs no key. */
static int may_open(const struct qcow2_engine *e, const struct driver_open *args, struct img_error *err)
{
	int ret = args->data_absent ? 0 : qcow2_may_read(e, err);

	if (ret != 0)
		return ret;
	if (e->writable && (e->h.incompatible & QCOW2_CORRUPT))
		return error_set(err, IMG_E_CORRUPT, 0, offsetof(struct disk_qcow2_header, incompatible), LAYER,
				 "the image is marked as corrupt and can only be read: run imgtool check --repair");
	return 0;
}

static int open_data(struct qcow2_engine *e, const struct driver_open *args, struct img_error *err)
{
	int ret;

	if (!e->external)
		return 0;
	if (e->h.data_file[0] == '\0')
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "the data stands in another file, whose name is not recorded");
	if (!args->open_data)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "the data stands in another file, and none may be opened");
	ret = args->open_data(args->open_data_ctx, e->h.data_file, &e->data, err);
	return ret == 0 ? node_add_part(e->node, e->data, err) : ret;
}

/* Beyond the end of a regular file there are zeros; a device is as long as it is. */
static int learn_file_end(struct qcow2_engine *e, struct img_error *err)
{
	struct host_stat host;
	int ret = node_stat(e->file, &host, err);

	if (ret == 0)
		e->file_end = host.is_block_device ? UINT64_MAX : round_up(node_size(e->file), e->cluster_bytes);
	return ret;
}

static int load_l1(struct qcow2_engine *e, struct img_error *err)
{
	int ret = qcow2_l1_load(e, e->h.l1_off, e->h.l1_entries, &e->l1, err);

	if (ret != 0)
		return ret;
	e->l1_dirty = calloc(e->h.l1_entries / 64 + 1, 1);
	return e->l1_dirty ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

/* The refcounts: who only reads does not need them. */
static int load_refcounts(struct qcow2_engine *e, struct img_error *err)
{
	struct img_error unused = { .code = IMG_OK };
	int ret = qcow2_reftable_load(e, e->writable ? err : &unused);

	if (ret == 0 || e->writable)
		return ret;
	if (ret == IMG_E_CORRUPT)
		return 0;
	if (err)
		*err = unused;
	return ret;
}

/* The header says how much there is to load. The snapshot table is longer than its entries, but within the format's
 * limit. */
static int judge_cost(const struct qcow2_engine *e, const struct driver_open *args, struct img_error *err)
{
	const struct qcow2_header *h = &e->h;
	uint64_t bytes = (uint64_t)h->l1_entries * 8 + ((uint64_t)h->reftable_clusters << h->cluster_bits) +
			 h->nr_snapshots * sizeof(struct disk_qcow2_snapshot) + h->bitmap_dir_bytes;
	int ret = budget_snapshots(args->budget, e->node->path, h->nr_snapshots, err);

	return ret == 0 ? budget_metadata(args->budget, e->node->path, bytes, err) : ret;
}

static int load(struct qcow2_engine *e, const struct driver_open *args, struct img_error *err)
{
	int ret = qcow2_header_load(e->file, !e->writable || args->for_check, &e->h, err);

	if (ret == 0)
		ret = judge_cost(e, args, err);
	if (ret != 0)
		return ret;
	qcow2_set_geometry(e);
	e->check_only = args->for_check;
	if (e->check_only)
		return 0;
	ret = may_open(e, args, err);
	if (ret == 0 && e->writable && (e->h.incompatible & QCOW2_DIRTY))
		ret = qcow2_rebuild_refcounts(e, err);
	if (ret == 0)
		ret = learn_file_end(e, err);
	if (ret == 0)
		ret = qcow2_cache_init(e, args->cache_bytes ? args->cache_bytes : CACHE_DEFAULT_BYTES, err);
	if (ret == 0)
		ret = load_refcounts(e, err);
	if (ret == 0)
		ret = qcow2_snapshots_load(e, err);
	if (ret == 0)
		ret = load_l1(e, err);
	if (ret == 0 && !args->snapshot)
		ret = qcow2_judge_expansion(e, e->l1, e->h.l1_entries, args->budget, err);
	if (ret == 0)
		ret = qcow2_bitmaps_load(e, err);
	if (ret == 0)
		ret = open_data(e, args, err);
	return ret;
}

int qcow2_open(struct node *n, const struct driver_open *args, struct img_error *err)
{
	struct qcow2_engine *e = engine_new(n, args, err);
	struct qcow2_view *v = view_of(n);
	int ret;

	if (!e)
		return IMG_E_NOMEM;
	ret = load(e, args, err);
	if (ret == 0 && e->writable && !e->check_only)
		ret = qcow2_meta_build(e, err);
	*v = (struct qcow2_view){ .e = e };
	if (ret == 0 && args->snapshot && e->check_only) {
		v->is_snapshot = true;
		(void)snprintf(v->snapshot, sizeof(v->snapshot), "%s", args->snapshot);
	} else if (ret == 0 && args->snapshot) {
		ret = qcow2_snapshot_view(e, args->snapshot, v, err);
		if (ret == 0) {
			ret = qcow2_judge_expansion(e, v->l1, v->l1_entries, args->budget, err);
			if (ret != 0)
				qcow2_view_release(v);
		}
	}
	if (ret != 0) {
		engine_free(e);
		memset(v, 0, sizeof(*v));
	}
	return ret;
}

/* ---- closing ----------------------------------------------------------------------------------------------------- */

/* A compressed cluster may end between sectors; others read whole ones. */
static int pad_file(struct qcow2_engine *e, struct img_error *err)
{
	uint64_t size = node_size(e->file);

	return size % QCOW2_SECTOR_BYTES ? node_resize(e->file, round_up(size, QCOW2_SECTOR_BYTES), err) : 0;
}

static int close_writable(struct qcow2_engine *e, struct img_error *err)
{
	int ret;

	if (atomic_load(&e->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure kept the last changes from being written");
	ret = qcow2_vmstate_end(e, err);
	if (ret == 0)
		ret = qcow2_bitmaps_end(e, err);
	if (ret == 0)
		ret = qcow2_settle(e, err);
	if (ret == 0)
		ret = pad_file(e, err);
	e->bulk = false;
	if (ret == 0 && e->data != e->file)
		ret = node_flush(e->data, 0, err);
	if (ret == 0)
		ret = node_flush(e->file, 0, err);
	return ret;
}

int qcow2_close(struct node *n, struct img_error *err)
{
	struct qcow2_view *v = view_of(n);
	struct qcow2_engine *e = v->e;
	int ret = 0;

	if (!e)
		return 0;
	if (v->is_snapshot && !e->check_only)
		qcow2_view_release(v);
	if (!n->view_of) {
		if (e->writable && !e->check_only)
			ret = close_writable(e, err);
		engine_free(e);
	}
	memset(v, 0, sizeof(*v));
	return ret;
}

/* ---- changes ----------------------------------------------------------------------------------------------------- */

int qcow2_head(struct node *n, struct qcow2_engine **e, struct img_error *err)
{
	struct qcow2_view *v = view_of(n);

	*e = v->e;
	if (v->is_snapshot)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "a snapshot cannot be changed");
	if (!v->e->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "the image is open read-only");
	if (atomic_load(&v->e->broken))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again");
	return 0;
}

static int clear_unknown_autoclear(struct qcow2_engine *e, struct img_error *err)
{
	int ret = 0;

	pthread_rwlock_wrlock(&e->map);
	if (e->h.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_KNOWN) {
		e->h.autoclear &= QCOW2_AUTOCLEAR_KNOWN;
		ret = qcow2_header_write_fields(e, err);
		if (ret == 0)
			ret = node_flush(e->file, 0, err);
		if (ret != 0)
			atomic_store(&e->broken, true);
	}
	pthread_rwlock_unlock(&e->map);
	return ret;
}

int qcow2_touch(struct qcow2_engine *e, struct img_error *err)
{
	int ret = 0;

	if (atomic_load(&e->touched))
		return 0;
	pthread_mutex_lock(&e->touching);
	if (!atomic_load(&e->touched)) {
		ret = clear_unknown_autoclear(e, err);
		if (ret == 0)
			ret = qcow2_bitmaps_begin(e, err);
		if (ret == 0)
			atomic_store(&e->touched, true);
	}
	pthread_mutex_unlock(&e->touching);
	return ret;
}

int qcow2_mark_corrupt(struct qcow2_engine *e, uint64_t off, struct img_error *err, const char *fmt, ...)
{
	char text[sizeof(err->msg)];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/*
	 * Best effort: version 2 has no place for it, and the file may be what fails. Only these bits: in a transaction
	 * the other fields are not the disk's.
	 */
	if (e->writable && e->h.version >= 3 && !(e->h.incompatible & QCOW2_CORRUPT)) {
		struct be64 bits = be64_of(e->h.incompatible | QCOW2_CORRUPT);

		e->h.incompatible |= QCOW2_CORRUPT;
		if (node_pwrite(e->file, &bits, sizeof(bits), offsetof(struct disk_qcow2_header, incompatible), 0,
				NULL) == 0)
			(void)node_flush(e->file, 0, NULL);
	}
	atomic_store(&e->broken, true);
	return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: run imgtool check --repair", text);
}
