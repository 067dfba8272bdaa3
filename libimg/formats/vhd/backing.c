/* SPDX-License-Identifier: MIT */
/*
 * The parent on record. What names it, the second half of the header and texts elsewhere, is more than one sector, and
 * a commit ends with an empty table besides. So the new structures are written beside the old ones, behind everything,
 * and the footer's copy at the head, one sector, goes over to them (VHD-2). Then, if the old room is the one that new
 * images have, they are written there too and the footer goes back, so that an image does not grow by its rebases.
 *
 * A commit in progress is nowhere recorded: until it ends the child holds all that it held, reads as before, and can be
 * committed again.
 */
#include <stdlib.h>
#include <string.h>

#include "vhd.h"

#define FILL_BYTES (64u << 10)
#define SCAN_MAX   (UINT64_C(1) << 22) /* entries that are looked at to find room */
#define NO_ROOM	   0u

bool vhd_get_backing(struct node *n, struct backing_ref *out)
{
	const struct vhd_state *s = vhd_state(n);
	int64_t timestamp = be32_get(s->head.disk.parent_timestamp);

	if (!s->names_parent)
		return false;
	memset(out, 0, sizeof(*out));
	memcpy(out->name, s->parent.at[0], sizeof(out->name));
	memcpy(out->other, s->parent.at[1], sizeof(out->other));
	memcpy(out->format, "vhd", sizeof("vhd"));
	out->pin.kind = PIN_ID;
	memcpy(out->pin.uuid, s->head.disk.parent_uuid, sizeof(out->pin.uuid));
	if (timestamp != 0)
		out->pin.mtime_ns = (timestamp + VHD_EPOCH) * VHD_NS_PER_SECOND;
	out->id = out->pin;
	return true;
}
_Static_assert(sizeof(((struct backing_ref *)0)->name) == NAME_PATH_MAX, "a parent's path fits");

void vhd_id(struct node *n, struct pin *out)
{
	out->kind = PIN_ID;
	memcpy(out->uuid, vhd_state(n)->foot.f.uuid, sizeof(out->uuid));
}

/* ---- where things may go ----------------------------------------------------------------------------------------- */

struct change {
	struct node *n;
	struct vhd_state *s;
	const struct backing_ref *ref; /* NULL: none */
	bool empty;
	struct vhd_header old, h;
	uint8_t *texts;
	uint64_t end; /* of the file's content, the footer excluded */
	uint64_t table_off,
		texts_off; /* in the end; texts_off: room of VHD_LOCATORS_BYTES, as new images have it, or NO_ROOM */
};

static uint64_t table_bytes(const struct vhd_header *h)
{
	return vhd_table_bytes(h->max_entries);
}

/* No place begins below `end`. */
static int nothing_below(struct change *c, uint64_t end, bool *is, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(c->s->bm);
	struct blockmap_entry e;

	*is = shape->nr_blocks <= SCAN_MAX;
	for (uint64_t b = 0; b < shape->nr_blocks && *is; b++) {
		int ret = blockmap_get(c->s->bm, b, &e, err);

		if (ret != 0)
			return ret;
		*is = e.state == BLOCKMAP_FREE || e.off >= end;
	}
	return 0;
}

/*
 * Where the table and the texts will stand in the end: an empty disk begins anew, else the table stays, and the texts
 * go behind it if no block is there. The present texts, which may stand there, are not in use by then.
 */
static int find_room(struct change *c, struct img_error *err)
{
	uint64_t room;
	bool is_free = true;
	int ret = 0;

	c->texts_off = NO_ROOM;
	c->table_off = c->old.table_off;
	if (c->empty && VHD_TABLE_OFF + table_bytes(&c->old) + VHD_LOCATORS_BYTES <= c->end)
		c->table_off = VHD_TABLE_OFF;
	room = round_up(c->table_off + table_bytes(&c->old), VHD_SECTOR_BYTES);
	if (c->old.off != VHD_HEADER_OFF || c->table_off < VHD_TABLE_OFF || room + VHD_LOCATORS_BYTES > c->end)
		return 0;
	if (!c->empty)
		ret = nothing_below(c, room + VHD_LOCATORS_BYTES, &is_free, err);
	if (ret == 0 && is_free)
		c->texts_off = room;
	return ret;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int write_free(struct node *file, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint8_t *buf = malloc(FILL_BYTES);
	int ret = 0;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memset(buf, 0xff, FILL_BYTES); /* VHD_FREE */
	for (uint64_t done = 0; done < bytes && ret == 0; done += FILL_BYTES)
		ret = node_pwrite(file, buf, min_u64(FILL_BYTES, bytes - done), off + done, 0, err);
	free(buf);
	return ret;
}

/* Header at h.off, texts at texts_off, the table if it is to be empty; durable, and then the footers lead there. */
static int write_and_switch(struct change *c, uint64_t texts_off, uint64_t end, struct img_error *err)
{
	struct node *file = c->n->file;
	struct vhd_state *s = c->s;
	int ret = vhd_set_parent(&c->h.disk, c->ref, c->texts, texts_off, err);

	if (ret != 0)
		return ret;
	vhd_header_seal(&c->h);
	if (c->ref)
		ret = node_pwrite(file, c->texts, VHD_LOCATORS_BYTES, texts_off, 0, err);
	if (ret == 0 && c->empty)
		ret = write_free(file, c->h.table_off, table_bytes(&c->h), err);
	if (ret == 0)
		ret = node_pwrite(file, &c->h.disk, sizeof(c->h.disk), c->h.off, 0, err);
	if (ret == 0)
		ret = node_flush(file, 0, err);
	if (ret != 0)
		return ret;
	s->foot.f.type = be32_of(c->ref ? VHD_DIFFERENCING : VHD_DYNAMIC);
	s->foot.f.data_off = be64_of(c->h.off);
	vhd_footer_seal(&s->foot.f);
	ret = vhd_write_head(s, file, err);
	if (ret != 0) {
		vhd_break(s); /* the disk may hold either */
		return ret;
	}
	s->head = c->h;
	/* It is done. The other copy is put right by whoever opens the image next. */
	if (vhd_write_tail(s, file, end, NULL) != 0)
		vhd_break(s);
	return 0;
}

/* Behind everything. */
static int go_beside(struct change *c, struct img_error *err)
{
	uint64_t texts;

	c->h = c->old;
	c->h.off = round_up(c->end + VHD_SECTOR_BYTES, VHD_SECTOR_BYTES); /* the present footer stays for now */
	texts = c->h.off + sizeof(c->h.disk);
	if (c->empty)
		c->h.table_off = texts + VHD_LOCATORS_BYTES;
	c->end = texts + VHD_LOCATORS_BYTES + (c->empty ? table_bytes(&c->h) : 0);
	return write_and_switch(c, texts, c->end, err);
}

/* To the places of new images, as far as they are free. */
static int go_back(struct change *c, uint64_t end_before, struct img_error *err)
{
	bool all_back = !c->ref || c->texts_off != NO_ROOM;
	uint64_t texts = c->texts_off != NO_ROOM ? c->texts_off : c->h.off + sizeof(c->h.disk);

	if (c->old.off != VHD_HEADER_OFF)
		return 0;
	c->h.off = VHD_HEADER_OFF;
	c->h.table_off = c->table_off;
	c->end = !all_back ? texts + VHD_LOCATORS_BYTES :
		 c->ref	   ? max_u64(end_before, texts + VHD_LOCATORS_BYTES) :
			     end_before;
	if (all_back && c->empty && c->table_off == VHD_TABLE_OFF)
		c->end = VHD_TABLE_OFF + table_bytes(&c->h) + (c->ref ? VHD_LOCATORS_BYTES : 0);
	return write_and_switch(c, texts, c->end, err);
}

/* The engine stands still. */
static int restructure(struct change *c, struct img_error *err)
{
	struct blockmap_shape shape;
	uint64_t end;
	int ret;

	c->old = c->s->head;
	c->end = blockmap_end(c->s->bm);
	/* Places that failed writes were given are nobody's. Where entries are damaged, who knows. */
	if (vhd_content_end(c->s, &end, NULL) != 0)
		end = c->end;
	ret = find_room(c, err);
	if (ret == 0)
		ret = go_beside(c, err);
	if (ret != 0)
		return ret;
	/* Without it the file is somewhat longer. */
	if (!atomic_load(&c->s->broken))
		(void)go_back(c, end, NULL);
	c->s->names_parent = c->ref != NULL;
	memset(&c->s->parent, 0, sizeof(c->s->parent));
	if (c->ref)
		memcpy(c->s->parent.at[0], c->ref->name, sizeof(c->s->parent.at[0]));
	c->s->texts_limit = node_size(c->n->file);
	vhd_learn_structures(c->s);
	vhd_shape(c->s, &shape);
	shape.end_off = max_u64(shape.end_off, c->end);
	ret = blockmap_reshape(c->s->bm, &shape, err);
	if (ret != 0)
		vhd_break(c->s);
	return ret;
}

/* ---- the driver's member ----------------------------------------------------------------------------------------- */

/* What is below will not be there any more: of blocks that have a place nothing may be left to it, beyond the disk's end
 * in its last block neither (VHD-8). Readers differ in what clear bits of a disk without parent mean. */
static int fill_clear_bits(struct vhd_state *s, struct img_error *err)
{
	const struct blockmap_shape *shape = blockmap_shape(s->bm);
	uint64_t off = 0, end = shape->nr_blocks * shape->block_bytes;

	while (off < end) {
		struct status_extent x;
		struct blockmap_entry e;
		uint64_t block_end = round_down(off, shape->block_bytes) + shape->block_bytes;
		size_t nr;
		int ret = blockmap_get(s->bm, off / shape->block_bytes, &e, err);

		if (ret != 0)
			return ret;
		if (e.state == BLOCKMAP_FREE) {
			off = block_end;
			continue;
		}
		ret = blockmap_status(s->bm, block_end - off, off, &x, 1, &nr, err);
		if (ret == 0 && x.kind == STATUS_UNALLOCATED)
			ret = blockmap_zero(s->bm, x.bytes, x.off, 0, err);
		if (ret != 0)
			return ret;
		off += x.bytes;
	}
	return 0;
}

static bool is_on_record(const struct vhd_state *s, const struct backing_ref *ref)
{
	const struct pin *id = ref->id.kind == PIN_ID ? &ref->id : &ref->pin;

	return s->names_parent && strcmp(s->parent.at[0], ref->name) == 0 && id->kind == PIN_ID &&
	       memcmp(id->uuid, s->head.disk.parent_uuid, sizeof(id->uuid)) == 0 &&
	       vhd_timestamp(ref->pin.mtime_ns / VHD_NS_PER_SECOND) == be32_get(s->head.disk.parent_timestamp);
}

int vhd_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	struct vhd_state *s = vhd_state(n);
	struct change c = { .n = n, .s = s, .ref = ref, .empty = how == BACKING_SET_EMPTY };
	int ret = vhd_may_change(n, err);

	if (ret != 0)
		return ret;
	if (!s->bm)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a fixed VHD holds the whole disk: there can be no backing file");
	if (!c.empty && ref && is_on_record(s, ref))
		return blockmap_flush(s->bm, err); /* `committing` changed, if anything */
	ret = blockmap_touch(s->bm, err);
	if (ret == 0 && !c.empty && !ref && s->names_parent)
		ret = fill_clear_bits(s, err);
	if (ret != 0)
		return ret;
	c.texts = malloc(VHD_LOCATORS_BYTES);
	if (!c.texts)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = blockmap_stop(s->bm, err);
	if (ret == 0) {
		ret = restructure(&c, err);
		blockmap_start(s->bm);
	}
	free(c.texts);
	return ret;
}
