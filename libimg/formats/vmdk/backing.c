/* SPDX-License-Identifier: MIT */
/*
 * Parents. The descriptor names one by a path (parentFileNameHint) and by its content id (parentCID), which is 32 bits
 * and changes when the parent is written: it is all that there is of identity. A path of another host is tried as it
 * stands, then its last part in the child's folder.
 *
 * All of that is in the header of the descriptor, and changes in one write.
 *
 * Emptying a layer at the end of a commit: the parent holds all of its content, durably, and the descriptor says that a
 * commit is under way. So entries can be cleared one after the other; the descriptor, which then names the parent's new
 * state, is the last step.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

static const char mark[12] = "VMDK CID"; /* before the id, so that one of zeros is one, too */

static void pin_of(uint32_t cid, struct pin *out)
{
	struct be32 d = be32_of(cid);

	/* No identity but that of its present content. */
	memset(out, 0, sizeof(*out));
	out->kind = PIN_ID;
	memcpy(out->uuid, mark, sizeof(mark));
	memcpy(out->change, mark, sizeof(mark));
	memcpy(out->change + sizeof(mark), &d, sizeof(d));
}

int vmdk_parent_cid(const struct backing_ref *ref, uint32_t *cid, struct img_error *err)
{
	/* Who sets another state of the same reference brings its pin, who sets a new one the parent's id. */
	const struct pin *pin = ref->id.kind == PIN_ID ? &ref->id : &ref->pin;

	if (strcmp(ref->format, "vmdk") != 0 || ref->snapshot[0] != '\0' || pin->kind != PIN_ID ||
	    memcmp(pin->uuid, mark, sizeof(mark)) != 0)
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"a VMDK knows its parent by a content id that only another VMDK has: convert the parent "
			"first, or make an overlay of another format");
	*cid = be32_at(pin->change, sizeof(mark));
	return 0;
}

bool vmdk_get_backing(struct node *n, struct backing_ref *out)
{
	struct vmdk_state *v = vmdk_of(n);
	const char *hint, *base;
	bool has;

	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(&v->lock);
	has = v->d.parent_cid != VMDK_NO_PARENT_CID;
	if (has) {
		hint = v->d.parent_hint ? v->d.parent_hint : "";
		(void)snprintf(out->name, sizeof(out->name), "%s", hint);
		base = hint;
		for (const char *c = hint; *c; c++)
			if (*c == '/' || *c == '\\')
				base = c + 1;
		if (base != hint)
			(void)snprintf(out->other[0], sizeof(out->other[0]), "%s", base);
		strcpy(out->format, "vmdk");
		pin_of(v->d.parent_cid, &out->pin);
		out->committing = v->committing;
	}
	pthread_mutex_unlock(&v->lock);
	return has;
}

void vmdk_id(struct node *n, struct pin *out)
{
	struct vmdk_state *v = vmdk_of(n);

	pthread_mutex_lock(&v->lock);
	pin_of(v->d.cid, out);
	pthread_mutex_unlock(&v->lock);
}

/* ---- another one ------------------------------------------------------------------------------------------------- */

struct edit {
	char *text;
	size_t bytes;
};

static int edit(struct edit *e, const char *key, const char *value, bool quoted, struct img_error *err)
{
	size_t bytes;
	char *next;
	int ret = vmdk_descriptor_edit(e->text, e->bytes, key, value, quoted, &next, &bytes, err);

	if (ret != 0)
		return ret;
	free(e->text);
	e->text = next;
	e->bytes = bytes;
	return 0;
}

/* The text with ref instead of what it names. */
static int name_parent(const struct vmdk_state *v, const struct backing_ref *ref, struct edit *e, struct img_error *err)
{
	uint32_t cid = VMDK_NO_PARENT_CID;
	char value[16];
	int ret = ref ? vmdk_parent_cid(ref, &cid, err) : 0;

	*e = (struct edit){ .bytes = v->d.text_bytes };
	if (ret != 0)
		return ret;
	e->text = strdup(v->d.text);
	if (!e->text)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	(void)snprintf(value, sizeof(value), "%08" PRIx32, cid);
	/* What becomes shorter first: its room may be needed. */
	ret = ref && ref->committing ? 0 : edit(e, VMDK_COMMITTING_KEY, NULL, true, err);
	if (ret == 0)
		ret = edit(e, "parentFileNameHint", ref ? ref->name : NULL, true, err);
	if (ret == 0)
		ret = edit(e, "parentCID", value, false, err);
	if (ret == 0 && ref && ref->committing)
		ret = edit(e, VMDK_COMMITTING_KEY, "1", true, err);
	if (ret != 0) {
		free(e->text);
		e->text = NULL;
	}
	return ret;
}

static int judge_extents(struct vmdk_state *v, const struct backing_ref *ref, struct img_error *err)
{
	bool whole = false;

	pthread_mutex_lock(&v->lock);
	for (size_t i = 0; i < v->nr_parts; i++)
		whole |= v->d.extents[i].kind != VMDK_SPARSE && v->d.extents[i].kind != VMDK_ZERO;
	pthread_mutex_unlock(&v->lock);
	if (!ref || !whole)
		return 0;
	return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			 "the extents of this image hold the whole disk: it cannot have a parent");
}

static void start(struct vmdk_state *v, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (v->parts[i].sparse)
			blockmap_start(v->parts[i].sparse->bm);
}

/* All extents, or none. */
static int stop(struct vmdk_state *v, struct img_error *err)
{
	for (size_t i = 0; i < v->nr_parts; i++) {
		int ret = 0;

		if (v->parts[i].sparse)
			ret = blockmap_touch(v->parts[i].sparse->bm, err);
		if (ret == 0 && v->parts[i].sparse)
			ret = blockmap_stop(v->parts[i].sparse->bm, err);
		if (ret != 0) {
			start(v, i);
			return ret;
		}
	}
	return 0;
}

static int drop_content(struct vmdk_state *v, struct img_error *err)
{
	int ret = 0;

	for (size_t i = 0; i < v->nr_parts && ret == 0; i++)
		if (v->parts[i].sparse)
			ret = vmdk_sparse_empty(v->parts[i].sparse, err);
	return ret;
}

int vmdk_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	struct edit e = { NULL, 0 };
	int ret = vmdk_may_change(v, err);

	if (ret == 0)
		ret = judge_extents(v, ref, err);
	if (ret == 0)
		ret = stop(v, err);
	if (ret != 0)
		return ret;
	pthread_mutex_lock(&v->lock);
	ret = name_parent(v, ref, &e, err);
	if (ret == 0 && v->d.room != 0 && e.bytes > v->d.room)
		ret = error_set(err, IMG_E_NOSPC, 0, NO_OFFSET, LAYER, "the descriptor has no room for that name");
	if (ret == 0 && how == BACKING_SET_EMPTY)
		ret = drop_content(v, err);
	if (ret == 0) {
		ret = vmdk_text_store(v, e.text, e.bytes, err);
		e.text = NULL;
	}
	if (ret == 0)
		v->committing = ref && ref->committing;
	pthread_mutex_unlock(&v->lock);
	free(e.text);
	start(v, v->nr_parts);
	return ret;
}
