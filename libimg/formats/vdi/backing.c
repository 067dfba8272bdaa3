/* SPDX-License-Identifier: MIT */
/*
 * Parents. The format names them by UUID: the parent's own, and that of its last change, which is compared by the core
 * (PIN_ID). It has no field for a file's name: VirtualBox looks the UUID up in its registry. So the name stands in the
 * comment, as its last line:
 *
 *     libimg parent=NAME                     a differencing image on NAME
 *     libimg committing parent=NAME          a commit into NAME began and has not ended
 *
 * What VirtualBox wrote has no such line; there the name is the one that VirtualBox gives to differencing images:
 * {UUID}.vdi, in the same folder.
 *
 * Emptying a layer at the end of a commit: the parent holds all of its content, durably, and the comment says that a
 * commit is under way. So entries can be cleared one after the other; the header, which then names the parent's new
 * state, is the last step.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vdi.h"

#define RECORD	   "libimg parent="
#define COMMITTING "libimg committing parent="

/* Where the last line begins. */
static size_t last_line(const char *comment)
{
	const char *nl = strrchr(comment, '\n');

	return nl ? (size_t)(nl - comment) + 1 : 0;
}

bool vdi_recorded_name(const char *comment, char *out, size_t cap, bool *committing, size_t *off)
{
	size_t at = last_line(comment);
	const char *name;

	*committing = strncmp(comment + at, COMMITTING, strlen(COMMITTING)) == 0;
	if (*committing)
		name = comment + at + strlen(COMMITTING);
	else if (strncmp(comment + at, RECORD, strlen(RECORD)) == 0)
		name = comment + at + strlen(RECORD);
	else
		return false;
	*off = (size_t)(name - comment);
	(void)snprintf(out, cap, "%s", name);
	return name[0] != '\0';
}

void vdi_comment_of_people(char *comment)
{
	char name[VDI_COMMENT_BYTES + 1];
	size_t at = last_line(comment), off;
	bool committing;

	if (!vdi_recorded_name(comment, name, sizeof(name), &committing, &off))
		return;
	memset(comment + (at > 0 ? at - 1 : 0), 0, VDI_COMMENT_BYTES + 1 - (at > 0 ? at - 1 : 0));
}

static int put_record(char *comment, const struct backing_ref *ref, struct img_error *err)
{
	const char *what = ref->committing ? COMMITTING : RECORD;
	size_t have = strlen(comment), joint = have > 0;

	/* Room for the longer word is kept, so that a commit cannot fail for want of it. */
	if (have + joint + strlen(COMMITTING) + strlen(ref->name) >= VDI_COMMENT_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "the comment of a VDI, where a parent's name has to go, has no room for one of %zu "
				 "bytes: take a shorter or a relative one",
				 strlen(ref->name));
	if (strchr(ref->name, '\n'))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "the name of a parent in a VDI has no line breaks");
	(void)snprintf(comment + have, VDI_COMMENT_BYTES - have, "%s%s%s", joint ? "\n" : "", what, ref->name);
	return 0;
}

int vdi_header_set_backing(struct vdi_header *h, const struct backing_ref *ref, struct img_error *err)
{
	int ret;

	if (ref && (strcmp(ref->format, "vdi") != 0 || ref->snapshot[0] != '\0'))
		return error_set(
			err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
			"a VDI knows its parent by a UUID that only another VDI has: convert the parent first, "
			"or make an overlay of another format");
	vdi_comment_of_people(h->comment);
	if (!ref) {
		if (h->type == VDI_DIFFERENCING)
			h->type = VDI_DYNAMIC;
		memset(h->parent, 0, 16);
		memset(h->parent_modification, 0, 16);
		return 0;
	}
	ret = put_record(h->comment, ref, err);
	if (ret != 0)
		return ret;
	h->type = VDI_DIFFERENCING;
	/* Who sets another state of the same reference brings its pin, who sets a new one the parent's id. */
	memcpy(h->parent, ref->id.kind == PIN_ID ? ref->id.uuid : ref->pin.uuid, 16);
	memcpy(h->parent_modification, ref->id.kind == PIN_ID ? ref->id.change : ref->pin.change, 16);
	if (vdi_uuid_is_null(h->parent))
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "the parent has no UUID");
	return 0;
}

void vdi_header_get_backing(const struct vdi_header *h, struct backing_ref *out)
{
	char uuid[VDI_UUID_TEXT_BYTES];
	size_t off;

	memset(out, 0, sizeof(*out));
	if (!vdi_recorded_name(h->comment, out->name, sizeof(out->name), &out->committing, &off)) {
		vdi_uuid_text(h->parent, uuid);
		(void)snprintf(out->name, sizeof(out->name), "{%s}.vdi", uuid);
	}
	strcpy(out->format, "vdi");
	out->pin.kind = PIN_ID;
	memcpy(out->pin.uuid, h->parent, 16);
	memcpy(out->pin.change, h->parent_modification, 16);
}

bool vdi_get_backing(struct node *node, struct backing_ref *out)
{
	struct vdi_header h = vdi_header_now(vdi_state_of(node));

	if (h.type != VDI_DIFFERENCING)
		return false;
	vdi_header_get_backing(&h, out);
	return true;
}

void vdi_id(struct node *node, struct pin *out)
{
	struct vdi_state *v = vdi_state_of(node);

	out->kind = PIN_ID;
	pthread_mutex_lock(&v->header_lock);
	memcpy(out->uuid, v->h.uuid, 16);
	memcpy(out->change, v->h.modification, 16);
	pthread_mutex_unlock(&v->header_lock);
}

/* Between the two halves of a commit's end; see above. */
static int drop_content(struct vdi_state *v, struct vdi_header *h, struct img_error *err)
{
	int ret = blockmap_clear(v->bm, 0, h->nr_blocks, err);

	if (ret == 0)
		ret = blockmap_flush_stopped(v->bm, err);
	h->nr_allocated = 0;
	return ret;
}

/* The room of the blocks goes back. That it does not is no failure: it is nobody's, and the next writer's. */
static int cut_off(struct vdi_state *v, struct img_error *err)
{
	struct blockmap_shape shape = vdi_shape(&v->h);

	(void)node_resize(v->node->file, v->h.data_off, NULL);
	return blockmap_reshape(v->bm, &shape, err);
}

int vdi_set_backing(struct node *node, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	struct vdi_header h = vdi_header_now(v);
	int ret = blockmap_may_change(v->bm, err);

	if (ret == 0)
		ret = vdi_header_set_backing(&h, ref, err);
	if (ret == 0)
		ret = blockmap_touch(v->bm, err);
	if (ret == 0)
		ret = blockmap_stop(v->bm, err);
	if (ret != 0)
		return ret;
	/* The modification UUID and the count are what the steps so far made of them. */
	memcpy(h.modification, v->h.modification, 16);
	h.nr_allocated = v->h.nr_allocated;
	if (how == BACKING_SET_EMPTY)
		ret = drop_content(v, &h, err);
	if (ret == 0)
		ret = vdi_replace_header(v, &h, err);
	if (ret == 0 && how == BACKING_SET_EMPTY)
		ret = cut_off(v, err);
	blockmap_start(v->bm);
	return ret;
}
