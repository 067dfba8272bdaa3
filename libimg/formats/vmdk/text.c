/* SPDX-License-Identifier: MIT */
/*
 * Changes of the descriptor on disk. Only the bytes that differ are written, in one write; in descriptors that this
 * library made they lie in one sector (VMDK-17).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

/* The old and the new text, both padded with NULs to `bytes`: what differs, *from to *to. */
static void difference(const char *a, const char *b, size_t bytes, size_t *from, size_t *to)
{
	*from = 0;
	*to = bytes;
	while (*from < bytes && a[*from] == b[*from])
		++*from;
	while (*to > *from && a[*to - 1] == b[*to - 1])
		--*to;
}

/* Would something that stands behind the text go on where a text of this length ends? It ends at its first NUL. */
static bool needs_end(const struct vmdk_state *v, size_t bytes)
{
	if (bytes <= v->d.text_bytes)
		return false;
	return v->d.room != 0 ? bytes < v->d.room : node_size(v->node->file) > v->d.off + bytes;
}

static int write_text(struct vmdk_state *v, const char *text, size_t bytes, struct img_error *err)
{
	size_t old = v->d.text_bytes, longer = bytes > old ? bytes : old, from, to;
	char *a = calloc(2, longer + 1), *b = a ? a + longer + 1 : NULL;
	struct node *file = v->node->file;
	int ret;

	if (!a)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(a, v->d.text, old);
	memcpy(b, text, bytes);
	difference(a, b, longer, &from, &to);
	/* A file of its own ends where its text does. */
	if (v->d.room == 0 && to > bytes)
		to = bytes > from ? bytes : from;
	if (needs_end(v, bytes))
		to = bytes + 1;
	ret = to > from ? node_pwrite(file, b + from, to - from, v->d.off + from, 0, err) : 0;
	if (ret == 0 && v->d.room == 0 && bytes < old)
		ret = node_resize(file, v->d.off + bytes, err);
	if (ret == 0 && !v->bulk)
		ret = node_flush(file, 0, err);
	if (ret != 0)
		atomic_store(&v->broken, true); /* nobody knows what the file says now */
	free(a);
	return ret;
}

int vmdk_text_store(struct vmdk_state *v, char *text, size_t bytes, struct img_error *err)
{
	struct vmdk_descriptor d;
	int ret = 0;

	if (v->d.room != 0 && bytes > v->d.room)
		ret = error_set(err, IMG_E_NOSPC, 0, v->d.off, LAYER,
				"the descriptor has no room for that: it holds 0x%" PRIx64 " bytes", v->d.room);
	if (ret == 0)
		ret = vmdk_descriptor_parse(text, bytes, v->d.off, v->node->path, &d, err);
	if (ret == 0 && d.nr_extents != v->nr_parts) {
		vmdk_descriptor_free(&d);
		ret = error_set(err, IMG_E_CORRUPT, 0, v->d.off, LAYER,
				"the descriptor cannot be edited: one of its lines would become another extent");
	}
	if (ret == 0) {
		ret = write_text(v, text, bytes, err);
		d.room = v->d.room;
		if (ret == 0) {
			struct vmdk_descriptor old = v->d;

			v->d = d;
			d = old;
		}
		vmdk_descriptor_free(&d);
	}
	free(text);
	return ret;
}

int vmdk_text_set(struct vmdk_state *v, const char *key, const char *value, bool quoted, struct img_error *err)
{
	size_t bytes;
	char *text;
	int ret = vmdk_descriptor_edit(v->d.text, v->d.text_bytes, key, value, quoted, &text, &bytes, err);

	return ret == 0 ? vmdk_text_store(v, text, bytes, err) : ret;
}

int vmdk_touch(struct vmdk_state *v, struct img_error *err)
{
	char value[16];
	uint32_t cid;
	int ret = 0;

	/* A new image that is being filled has no children yet. */
	if (v->bulk || atomic_load_explicit(&v->touched, memory_order_acquire))
		return 0;
	pthread_mutex_lock(&v->lock);
	if (!atomic_load(&v->touched)) {
		ret = vmdk_new_cid(v->d.cid, &cid, err);
		(void)snprintf(value, sizeof(value), "%08" PRIx32, cid);
		if (ret == 0)
			ret = vmdk_text_set(v, "CID", value, false, err);
		if (ret == 0)
			atomic_store_explicit(&v->touched, true, memory_order_release);
	}
	pthread_mutex_unlock(&v->lock);
	return ret;
}
