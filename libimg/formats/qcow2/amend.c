/* SPDX-License-Identifier: MIT */
/*
 * Changing what an image was created with. The options are those of create, size, backing_file and backing_fmt; all are
 * judged before anything is changed. What is only said in the header changes by one write of it. The steps:
 *
 *   1  to version 3 (one header write; a transaction where snapshots must learn to record their size)
 *   2  the size (resize.c)
 *   3  to version 2: first no cluster is said to be zero any more, which that version cannot say; then the header
 *
 * A crash between them leaves an image as one of the steps left it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "option_list.h"
#include "qcow2_header.h"
#include "qcow2_options.h"
#include "qcow2_snapshot.h"

struct amendment {
	struct qcow2_engine *e;
	struct qcow2_options is, want;
	bool has_size, has_backing, has_format, has_data_file;
	uint64_t size_bytes;
	char backing[QCOW2_NAME_MAX + 1], format[16];
};

/* ---- what is asked ----------------------------------------------------------------------------------------------- */

static int unsupported(struct img_error *err, const char *what)
{
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s", what);
}

static void options_of(const struct qcow2_header *h, struct qcow2_options *o)
{
	*o = (struct qcow2_options){
		.version = h->version,
		.cluster_bits = h->cluster_bits,
		.refcount_order = h->refcount_order,
		.lazy_refcounts = h->compatible & QCOW2_LAZY_REFCOUNTS,
		.extended_l2 = h->incompatible & QCOW2_EXTENDED_L2,
		.compression = (enum qcow2_compression)h->compression_type,
		.data_file_raw = h->autoclear & QCOW2_DATA_FILE_RAW,
	};
	strcpy(o->data_file, h->data_file);
}

static int parse_size(const char *v, uint64_t *out, struct img_error *err)
{
	static const char units[] = "KMGTPE";
	char *end;
	unsigned long long n = *v >= '0' && *v <= '9' ? strtoull(v, &end, 10) : 0;
	unsigned shift = 0;

	if (*v >= '0' && *v <= '9' && *end) {
		const char *unit = strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end);

		shift = unit && end[1] == '\0' ? 10 * (unsigned)(unit - units + 1) : 64;
	}
	if (*v < '0' || *v > '9' || shift == 64 || (shift && n >> (64 - shift)))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "size is bytes, or such as 20G, not '%.32s'",
				 v);
	*out = (uint64_t)n << shift;
	return 0;
}

static int take_name(char *out, size_t out_bytes, const char *key, const char *v, struct img_error *err)
{
	if (strlen(v) >= out_bytes)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "%s has at most %zu bytes", key,
				 out_bytes - 1);
	strcpy(out, v);
	return 0;
}

static int take_option(void *ctx, const char *key, const char *v, struct img_error *err)
{
	struct amendment *a = ctx;

	if (!strcmp(key, "size")) {
		a->has_size = true;
		return parse_size(v, &a->size_bytes, err);
	}
	if (!strcmp(key, "backing_file")) {
		a->has_backing = true;
		return take_name(a->backing, sizeof(a->backing), key, v, err);
	}
	if (!strcmp(key, "backing_fmt")) {
		a->has_format = true;
		return take_name(a->format, sizeof(a->format), key, v, err);
	}
	return qcow2_option_set(&a->want, key, v, err);
}

static int judge_downgrade(const struct amendment *a, struct img_error *err)
{
	const struct qcow2_header *h = &a->e->h;

	if (a->want.version == 3 || h->version == 2)
		return 0;
	if (h->refcount_order != 4)
		return unsupported(err, "version 2 has refcounts of 16 bits, this image has others");
	if (h->incompatible & ~(uint64_t)(QCOW2_DIRTY | QCOW2_CORRUPT))
		return unsupported(err, "version 2 has neither data file, zstd nor subclusters: convert the image");
	if (h->nr_bitmaps > 0)
		return unsupported(err, "version 2 has no bitmaps: remove them first");
	return 0;
}

/* What is asked, completed by what follows from it, is possible, or nothing is changed. */
static int judge(struct amendment *a, struct img_error *err)
{
	const struct qcow2_options *is = &a->is;
	struct qcow2_options *want = &a->want;

	if (want->version == 2 && is->version == 3 && want->lazy_refcounts && is->lazy_refcounts)
		want->lazy_refcounts = false; /* goes with the version, as it was not asked for */
	if (want->cluster_bits != is->cluster_bits || want->extended_l2 != is->extended_l2 ||
	    want->compression != is->compression || want->preallocation != PREALLOC_OFF)
		return unsupported(
			err, "cluster_size, extended_l2, compression_type and preallocation cannot be changed in an "
			     "existing image: convert it");
	if (want->refcount_order != is->refcount_order)
		return unsupported(err, "refcount_bits cannot be changed in an existing image: convert it");
	if (want->data_file_raw && !is->data_file_raw)
		return unsupported(err, "data_file_raw cannot be set in an existing image: convert it");
	if (want->data_file[0] && !is->data_file[0])
		return unsupported(err, "an existing image cannot be given a data file: convert it");
	if (want->version == 2 && want->lazy_refcounts)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "lazy_refcounts needs compat=1.1");
	if (a->has_backing && a->backing[0] && want->data_file_raw)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "a raw data file holds the whole disk: there can be no backing file");
	if (a->has_format && !(a->has_backing ? a->backing[0] : a->e->h.backing[0]))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "backing_fmt without a backing file");
	if (a->has_size && a->size_bytes < a->e->h.size)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
				 "%" PRIu64 " bytes are less than the %" PRIu64
				 " that it has: imgtool resize --shrink cuts it",
				 a->size_bytes, a->e->h.size);
	return judge_downgrade(a, err);
}

/* ---- the header -------------------------------------------------------------------------------------------------- */

static int apply_to_header(const struct amendment *a, unsigned version, struct qcow2_header *h, struct img_error *err)
{
	struct backing_ref ref = { .name = "" };
	int ret = 0;

	h->version = version;
	if (version < 3) {
		h->incompatible = h->compatible = h->autoclear = 0;
	} else {
		h->compatible &= ~(uint64_t)QCOW2_LAZY_REFCOUNTS;
		h->compatible |= a->want.lazy_refcounts ? QCOW2_LAZY_REFCOUNTS : 0u;
		if (!a->want.data_file_raw)
			h->autoclear &= ~(uint64_t)QCOW2_DATA_FILE_RAW;
	}
	strcpy(h->data_file, a->want.data_file);
	if (a->has_backing || a->has_format) {
		strcpy(ref.name, a->has_backing ? a->backing : h->backing);
		strcpy(ref.format, a->has_format ? a->format : a->has_backing ? "" : h->backing_format);
		ret = qcow2_header_set_backing(h, ref.name[0] ? &ref : NULL, err);
	}
	return ret;
}

/* With the snapshots' table, which says more in version 3. */
static int raise_in_transaction(struct amendment *a, struct img_error *err)
{
	struct qcow2_engine *e = a->e;
	struct qcow2_snapshot *list = NULL;
	int ret = qcow2_txn_begin(e, err);

	if (ret != 0)
		return ret;
	ret = qcow2_snapshots_writable(e, err);
	if (ret == 0)
		ret = apply_to_header(a, 3, &e->h, err);
	if (ret == 0)
		ret = qcow2_header_fits(e, err);
	if (ret == 0)
		ret = qcow2_snapshots_copy(e->snapshots, e->h.nr_snapshots, 0, &list, err);
	if (ret != 0) {
		qcow2_txn_abort(e);
		return ret;
	}
	qcow2_txn_set_snapshots(e, list, e->h.nr_snapshots);
	qcow2_txn_whole_header(e);
	return qcow2_txn_commit(e, err);
}

static int write_header(struct amendment *a, unsigned version, struct img_error *err)
{
	struct qcow2_engine *e = a->e;
	struct qcow2_header *before = malloc(sizeof(*before));
	int ret;

	if (!before)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	pthread_rwlock_wrlock(&e->map);
	*before = e->h; /* owns nothing: the lists stay where they are */
	ret = apply_to_header(a, version, &e->h, err);
	if (ret == 0)
		ret = qcow2_header_fits(e, err);
	if (ret == 0) {
		ret = qcow2_header_write(e, err);
		if (ret != 0)
			atomic_store(&e->broken, true); /* the disk may hold either */
	}
	if (ret != 0)
		e->h = *before;
	pthread_rwlock_unlock(&e->map);
	free(before);
	return ret;
}

/* ---- no zero clusters -------------------------------------------------------------------------------------------- */

static int view_has_zeros(struct qcow2_view *v, uint64_t end, bool *found, struct img_error *err)
{
	struct qcow2_mapping m;
	int ret = 0;

	*found = false;
	for (uint64_t off = 0; off < end && ret == 0 && !*found; off += m.bytes) {
		ret = qcow2_map(v, off, end - off, &m, err);
		*found = ret == 0 && m.kind == MAP_ZERO;
	}
	return ret;
}

static int judge_snapshots(struct qcow2_engine *e, struct img_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < e->h.nr_snapshots && ret == 0; i++) {
		struct qcow2_view v;
		bool found;

		ret = qcow2_snapshot_view(e, e->snapshots[i].id, &v, err);
		if (ret != 0)
			return ret;
		ret = view_has_zeros(&v, (uint64_t)v.l1_entries * (e->cluster_bytes << e->l2_shift), &found, err);
		qcow2_view_release(&v);
		if (ret == 0 && found)
			ret = error_set(
				err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				"a snapshot (id %.32s) has zero clusters, which version 2 cannot say: delete it first",
				e->snapshots[i].id);
	}
	return ret;
}

/* Without a backing file what is not mapped reads as zeros, too. */
static int unmap_zeros(struct qcow2_engine *e, uint64_t first, uint64_t nr, struct img_error *err)
{
	int ret = 0;

	pthread_rwlock_wrlock(&e->gate);
	pthread_rwlock_wrlock(&e->map);
	for (uint64_t g = first; g < first + nr && ret == 0; g++) {
		const struct qcow2_entry none = { 0 };
		struct qcow2_entry old;

		ret = qcow2_entry_get(e, g, &old, err);
		if (ret == 0)
			ret = qcow2_entry_set(e, g, &none, err);
		if (ret == 0 && (old.desc & QCOW2_OFFSET_MASK))
			ret = qcow2_free_entry(e, old.desc, err);
	}
	pthread_rwlock_unlock(&e->map);
	pthread_rwlock_unlock(&e->gate);
	return ret;
}

static int write_zeros(struct qcow2_engine *e, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint64_t step = max_u64(e->cluster_bytes, 1u << 20);
	uint8_t *zeros = calloc(1, (size_t)step);
	int ret = zeros ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t done = 0; done < bytes && ret == 0; done += step)
		ret = qcow2_write(e, zeros, min_u64(step, bytes - done), off + done, 0, err);
	free(zeros);
	return ret;
}

/* The active tree, up to the end of its L1. Whole clusters: the disk may end inside one. */
static int expand_zeros(struct qcow2_engine *e, struct img_error *err)
{
	uint64_t end = (uint64_t)e->h.l1_entries * (e->cluster_bytes << e->l2_shift);
	bool over_backing = e->h.backing[0] != '\0';
	struct qcow2_mapping m;
	int ret = 0;

	for (uint64_t off = 0; off < end && ret == 0; off += m.bytes) {
		struct qcow2_view v = qcow2_head_view(e);

		ret = qcow2_map(&v, off, end - off, &m, err);
		if (ret != 0 || m.kind != MAP_ZERO)
			continue;
		m.bytes = min_u64(m.bytes, 1024 * e->cluster_bytes);
		ret = qcow2_make_room(e, err);
		if (ret == 0 && over_backing)
			ret = write_zeros(e, off, m.bytes, err);
		else if (ret == 0)
			ret = unmap_zeros(e, off >> e->h.cluster_bits, m.bytes >> e->h.cluster_bits, err);
	}
	return ret == 0 ? qcow2_flush_all(e, err) : ret;
}

/* ---- the member -------------------------------------------------------------------------------------------------- */

static int amend(struct amendment *a, struct img_error *err)
{
	struct qcow2_engine *e = a->e;
	bool lower = a->want.version == 2 && a->is.version == 3;
	int ret = 0;

	if (lower)
		ret = judge_snapshots(e, err);
	if (ret == 0)
		ret = qcow2_touch(e, err);
	if (ret == 0)
		ret = qcow2_flush_all(e, err);
	if (ret == 0 && a->want.version == 3 && a->is.version == 2 && e->h.nr_snapshots > 0)
		ret = raise_in_transaction(a, err);
	else if (ret == 0 && !lower)
		ret = write_header(a, a->want.version, err);
	if (ret == 0 && a->has_size)
		ret = qcow2_resize(e->node, a->size_bytes, err);
	if (ret == 0 && lower)
		ret = expand_zeros(e, err);
	return ret == 0 && lower ? write_header(a, 2, err) : ret;
}

int qcow2_amend(struct node *n, const char *options, struct img_error *err)
{
	struct amendment *a = calloc(1, sizeof(*a));
	int ret;

	if (!a)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = qcow2_head(n, &a->e, err);
	if (ret == 0) {
		options_of(&a->e->h, &a->is);
		a->want = a->is;
		ret = option_each(options, LAYER, take_option, a, err);
	}
	if (ret == 0)
		ret = judge(a, err);
	if (ret == 0)
		ret = amend(a, err);
	free(a);
	return ret;
}
