/* SPDX-License-Identifier: MIT */
/* What an image is: the header, told. */
#include <stdio.h>
#include <string.h>

#include "qcow2_engine.h"

int qcow2_info(struct node *n, struct img_info *out, struct img_error *err)
{
	const struct qcow2_view *v = &((struct qcow2_state *)n->state)->view;
	struct qcow2_engine *e = v->e;

	(void)err;
	pthread_rwlock_rdlock(&e->map);
	out->block_bytes = (uint32_t)e->cluster_bytes;
	out->unit_bytes = e->external ? 0 : (uint32_t)e->cluster_bytes;
	out->dirty = e->h.incompatible & QCOW2_DIRTY;
	out->encrypted = e->h.crypt_method != 0;
	out->corrupt = e->h.incompatible & QCOW2_CORRUPT;
	out->nr_snapshots = e->h.nr_snapshots;
	if (!v->is_snapshot)
		out->vmstate_bytes = atomic_load(&e->vm_bytes);
	for (uint32_t i = 0; v->is_snapshot && i < e->h.nr_snapshots; i++) {
		if (e->snapshots[i].l1_off == v->l1_off)
			out->vmstate_bytes = e->snapshots[i].vm_state_bytes;
	}
	pthread_rwlock_unlock(&e->map);
	return 0;
}

struct told {
	img_detail_fn fn;
	void *ctx;
};

static void tell_text(const struct told *t, const char *key, const char *text)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_TEXT, .text = text };

	t->fn(t->ctx, &d);
}

static void tell_number(const struct told *t, const char *key, uint64_t number)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_NUMBER, .number = number };

	t->fn(t->ctx, &d);
}

static void tell_bool(const struct told *t, const char *key, bool is)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_BOOL, .number = is };

	t->fn(t->ctx, &d);
}

/* Of other programs, kept in this file and known to no other format. */
static void tell_extensions(const struct told *t, const struct qcow2_header *h)
{
	char text[96];
	size_t nr = 0;

	for (size_t i = 0; i < h->nr_ext; i++) {
		if (h->ext[i].type == QCOW2_EXT_FEATURE_NAMES || h->ext[i].type == QCOW2_EXT_LUKS)
			continue;
		if (nr++ == 0)
			(void)snprintf(text, sizeof(text), "header extension 0x%08x, %u bytes", h->ext[i].type,
				       h->ext[i].bytes);
	}
	if (nr > 1)
		(void)snprintf(text, sizeof(text), "%zu header extensions that are not known", nr);
	if (nr > 0)
		tell_text(t, "extended_data", text);
}

int qcow2_info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err)
{
	struct qcow2_engine *e = ((struct qcow2_state *)n->state)->view.e;
	const struct qcow2_header *h = &e->h;
	const struct told t = { fn, ctx };

	(void)err;
	pthread_rwlock_rdlock(&e->map);
	tell_text(&t, "compat", h->version < 3 ? "0.10" : "1.1");
	tell_text(&t, "compression_type", h->compression_type == QCOW2_ZSTD ? "zstd" : "zlib");
	tell_number(&t, "refcount_bits", UINT64_C(1) << h->refcount_order);
	tell_bool(&t, "lazy_refcounts", h->compatible & QCOW2_LAZY_REFCOUNTS);
	tell_bool(&t, "extended_l2", h->incompatible & QCOW2_EXTENDED_L2);
	if (h->crypt_method != 0)
		tell_text(&t, "encryption", h->crypt_method == 1 ? "aes" : "luks");
	if (e->external) {
		tell_text(&t, "data_file", h->data_file);
		tell_bool(&t, "data_file_raw", h->autoclear & QCOW2_DATA_FILE_RAW);
	}
	tell_extensions(&t, h);
	pthread_rwlock_unlock(&e->map);
	return 0;
}
