/* SPDX-License-Identifier: MIT */
/*
 * Changes of what an image is: its size and its parent. The region of metadata is read, changed in memory, and the
 * sectors that differ are one entry of the log. Items that are not known stay; the parent locator, which has any
 * length, goes behind all others.
 *
 * The region tables are not the log's to change ([MS-VHDX] 2.3: headers are outside of it). They change only where the
 * table of blocks moves: to a copy of itself, so that either of the two is right until both copies say the new place.
 */
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

#define IMAGE_BYTES VHDX_MIB /* of the region: what lies behind is not changed */
#define SECTORS	    (IMAGE_BYTES / VHDX_SECTOR_BYTES)
#define COPY_BYTES  (64u << 10)

/* ---- the region of metadata -------------------------------------------------------------------------------------- */

struct region {
	uint8_t *now, *was;
	uint64_t bytes;
	uint32_t nr; /* items */
};

static uint8_t *item_at(const struct region *r, uint32_t i)
{
	return r->now + sizeof(struct disk_vhdx_items) + i * sizeof(struct disk_vhdx_item);
}

static int load_region(struct vhdx_state *s, struct region *r, struct img_error *err)
{
	int ret;

	r->bytes = min_u64(s->m.metadata.bytes, IMAGE_BYTES);
	r->now = malloc(2 * IMAGE_BYTES);
	if (!r->now)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	r->was = r->now + IMAGE_BYTES;
	ret = node_pread(s->node->file, r->was, r->bytes, s->m.metadata.off, 0, err);
	if (ret != 0)
		return ret;
	memcpy(r->now, r->was, (size_t)r->bytes);
	r->nr = le16_at(r->now, offsetof(struct disk_vhdx_items, nr));
	/* It was so when the image was opened. */
	if (memcmp(r->now, "metadata", 8) != 0 || r->nr > VHDX_ENTRIES_MAX)
		return error_set(err, IMG_E_CORRUPT, 0, s->m.metadata.off, LAYER, "there is no table of metadata");
	return 0;
}

/* The value of an item that has at least `bytes`. */
static int value_of(const struct vhdx_state *s, const struct region *r, const uint8_t guid[16], uint32_t bytes,
		    uint8_t **out, struct img_error *err)
{
	for (uint32_t i = 0; i < r->nr; i++) {
		struct disk_vhdx_item d;

		memcpy(&d, item_at(r, i), sizeof(d));
		if (memcmp(d.guid, guid, 16) != 0 || le32_get(d.off) < VHDX_TABLE_BYTES ||
		    !range_inside(le32_get(d.off), bytes, r->bytes))
			continue;
		*out = r->now + le32_get(d.off);
		return 0;
	}
	return error_set(err, IMG_E_UNSUPPORTED, 0, s->m.metadata.off, LAYER,
			 "an item of metadata lies where it cannot be changed: convert the image");
}

static int put_size(const struct vhdx_state *s, struct region *r, uint64_t disk_bytes, struct img_error *err)
{
	struct le64 d = le64_of(disk_bytes);
	uint8_t *v;
	int ret = value_of(s, r, vhdx_guid_size, sizeof(d), &v, err);

	if (ret == 0)
		memcpy(v, &d, sizeof(d));
	return ret;
}

static int put_flag(const struct vhdx_state *s, struct region *r, bool has_parent, struct img_error *err)
{
	struct disk_vhdx_parameters d;
	uint32_t flags;
	uint8_t *v;
	int ret = value_of(s, r, vhdx_guid_parameters, sizeof(d), &v, err);

	if (ret != 0)
		return ret;
	memcpy(&d, v, sizeof(d));
	flags = le32_get(d.flags) & ~(VHDX_HAS_PARENT | VHDX_LEAVE_BLOCKS);
	if (has_parent)
		flags |= VHDX_HAS_PARENT;
	else if (s->m.leave_blocks)
		flags |= VHDX_LEAVE_BLOCKS;
	d.flags = le32_of(flags);
	memcpy(v, &d, sizeof(d));
	return 0;
}

static void drop_locator(struct region *r)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < r->nr; i++) {
		if (memcmp(item_at(r, i), vhdx_guid_locator, 16) == 0)
			continue;
		memmove(item_at(r, kept++), item_at(r, i), sizeof(struct disk_vhdx_item));
	}
	memset(item_at(r, kept), 0, (r->nr - kept) * sizeof(struct disk_vhdx_item));
	r->nr = kept;
}

/* The first sector behind all items. */
static uint64_t items_end(const struct region *r)
{
	uint64_t end = VHDX_TABLE_BYTES;

	for (uint32_t i = 0; i < r->nr; i++) {
		struct disk_vhdx_item d;

		memcpy(&d, item_at(r, i), sizeof(d));
		end = max_u64(end, (uint64_t)le32_get(d.off) + le32_get(d.bytes));
	}
	return round_up(end, VHDX_SECTOR_BYTES);
}

/* *at: of the region. */
static int put_locator(struct region *r, const struct vhdx_parent *p, struct vhdx_range *at, struct img_error *err)
{
	struct disk_vhdx_item d = { .flags = le32_of(VHDX_ITEM_REQUIRED) };
	uint64_t off = items_end(r);
	uint8_t *text;
	uint32_t bytes;
	int ret;

	if (r->nr == VHDX_ENTRIES_MAX || !range_inside(off, VHDX_LOCATOR_OURS, r->bytes))
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "there is no room for a parent locator: convert the image");
	text = malloc(VHDX_LOCATOR_OURS);
	if (!text)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = vhdx_locator_make(p, text, &bytes, err);
	if (ret == 0) {
		memcpy(r->now + off, text, VHDX_LOCATOR_OURS);
		memcpy(d.guid, vhdx_guid_locator, sizeof(d.guid));
		d.off = le32_of((uint32_t)off);
		d.bytes = le32_of(bytes);
		memcpy(item_at(r, r->nr++), &d, sizeof(d));
		*at = (struct vhdx_range){ off, bytes };
	}
	free(text);
	return ret;
}

static int set_parent(const struct vhdx_state *s, struct region *r, const struct vhdx_parent *p, struct vhdx_range *at,
		      struct img_error *err)
{
	struct le16 nr;
	int ret = put_flag(s, r, p != NULL, err);

	*at = (struct vhdx_range){ 0 };
	if (ret != 0)
		return ret;
	drop_locator(r);
	if (p)
		ret = put_locator(r, p, at, err);
	nr = le16_of((uint16_t)r->nr);
	memcpy(r->now + offsetof(struct disk_vhdx_items, nr), &nr, sizeof(nr));
	return ret;
}

static int send(struct vhdx_state *s, const struct region *r, bool empty, struct img_error *err)
{
	struct vhdx_change *list = calloc(SECTORS + 1, sizeof(*list));
	size_t nr = 0;
	int ret = 0;

	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (uint64_t at = 0; at < r->bytes; at += VHDX_SECTOR_BYTES)
		if (memcmp(r->now + at, r->was + at, VHDX_SECTOR_BYTES) != 0)
			list[nr++] = (struct vhdx_change){ s->m.metadata.off + at, VHDX_SECTOR_BYTES, r->now + at };
	if (nr > VHDX_ENTRY_DATA)
		ret = error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				"too much of the metadata would change: convert the image");
	if (empty)
		list[nr++] = (struct vhdx_change){ s->m.bat.off, round_up(s->m.nr_slots * 8, VHDX_SECTOR_BYTES), NULL };
	if (ret == 0 && nr > 0)
		ret = vhdx_journal_write(s, list, nr, err);
	free(list);
	return ret;
}

/* What the change makes of memory. */
static void learn(struct vhdx_state *s, const struct vhdx_meta_change *c, const struct vhdx_range *locator)
{
	if (c->disk_bytes != 0)
		s->m.disk_bytes = c->disk_bytes;
	if (c->set_parent) {
		s->m.has_parent = c->parent != NULL;
		s->m.leave_blocks = s->m.leave_blocks && !c->parent;
		s->m.locator = *locator;
		s->m.locator.off += locator->bytes > 0 ? s->m.metadata.off : 0;
		if (c->parent)
			s->parent = *c->parent;
		else
			memset(&s->parent, 0, sizeof(s->parent));
	}
	vhdx_count_slots(&s->m);
}

int vhdx_meta_store(struct vhdx_state *s, const struct vhdx_meta_change *c, struct img_error *err)
{
	struct vhdx_range locator = { 0 };
	struct region r = { 0 };
	int ret = load_region(s, &r, err);

	if (ret == 0 && c->disk_bytes != 0)
		ret = put_size(s, &r, c->disk_bytes, err);
	if (ret == 0 && c->set_parent)
		ret = set_parent(s, &r, c->parent, &locator, err);
	if (ret == 0) {
		ret = send(s, &r, c->empty, err);
		/* Nobody knows which of the two counts. */
		if (ret != 0)
			blockmap_break(s->bm);
	}
	free(r.now);
	if (ret == 0)
		learn(s, c, &locator);
	return ret;
}

/* ---- the region tables ------------------------------------------------------------------------------------------- */

void vhdx_regions_seal(uint8_t *table)
{
	struct le32 sum = le32_of(vhdx_sum(table, VHDX_TABLE_BYTES));

	memcpy(table + offsetof(struct disk_vhdx_regions, checksum), &sum, sizeof(sum));
}

static int write_tables(struct node *file, const uint8_t *table, struct img_error *err)
{
	static const uint64_t place[2] = { VHDX_REGIONS_A, VHDX_REGIONS_B };
	int ret = 0;

	for (unsigned i = 0; i < 2 && ret == 0; i++) {
		ret = node_pwrite(file, table, VHDX_TABLE_BYTES, place[i], 0, err);
		if (ret == 0)
			ret = node_flush(file, 0, err);
	}
	return ret;
}

int vhdx_regions_repair(struct node *file, bool write, bool *done, struct img_error *err)
{
	static const uint64_t place[2] = { VHDX_REGIONS_A, VHDX_REGIONS_B };
	uint8_t *table = malloc(2 * VHDX_TABLE_BYTES);
	bool good[2] = { false, false };
	int ret = table ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	*done = false;
	if (ret == 0)
		ret = vhdx_regions_read(file, table, good, err);
	for (unsigned i = 0; i < 2 && ret == 0; i++) {
		ret = node_pread(file, table + VHDX_TABLE_BYTES, VHDX_TABLE_BYTES, place[i], 0, err);
		if (ret != 0 || memcmp(table, table + VHDX_TABLE_BYTES, VHDX_TABLE_BYTES) == 0)
			continue;
		*done = true;
		if (!write)
			continue;
		ret = node_pwrite(file, table, VHDX_TABLE_BYTES, place[i], 0, err);
		if (ret == 0)
			ret = node_flush(file, 0, err);
	}
	free(table);
	return ret;
}

static int switch_tables(struct vhdx_state *s, const struct vhdx_range *bat, struct img_error *err)
{
	uint8_t *table = malloc(VHDX_TABLE_BYTES);
	int ret = table ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (ret == 0)
		ret = vhdx_regions_read(s->node->file, table, NULL, err);
	for (uint32_t i = 0; ret == 0 && i < le32_at(table, offsetof(struct disk_vhdx_regions, nr)); i++) {
		uint8_t *at = table + sizeof(struct disk_vhdx_regions) + i * sizeof(struct disk_vhdx_region);
		struct disk_vhdx_region d;

		memcpy(&d, at, sizeof(d));
		if (memcmp(d.guid, vhdx_guid_bat, sizeof(d.guid)) != 0)
			continue;
		d.off = le64_of(bat->off);
		d.bytes = le32_of((uint32_t)bat->bytes);
		memcpy(at, &d, sizeof(d));
	}
	if (ret == 0) {
		vhdx_regions_seal(table);
		ret = write_tables(s->node->file, table, err);
		if (ret != 0)
			blockmap_break(s->bm);
	}
	free(table);
	return ret;
}

static int copy_range(struct node *file, uint64_t from, uint64_t to, uint64_t bytes, struct img_error *err)
{
	uint8_t *buf = malloc(COPY_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t done = 0; done < bytes && ret == 0; done += COPY_BYTES) {
		uint64_t n = min_u64(COPY_BYTES, bytes - done);

		ret = node_pread(file, buf, n, from + done, 0, err);
		if (ret == 0)
			ret = node_pwrite(file, buf, n, to + done, IMG_IO_DETECT_ZEROES, err);
	}
	free(buf);
	return ret;
}

int vhdx_move_bat(struct vhdx_state *s, uint64_t nr_slots, struct img_error *err)
{
	struct vhdx_range bat = { .bytes = round_up(nr_slots * 8, VHDX_MIB) };
	uint64_t have = s->m.nr_slots * 8;
	/* Entries of the log lead to where the table is now. */
	int ret = vhdx_journal_end(s, err);

	if (ret == 0 && bat.bytes > UINT32_MAX)
		ret = error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "the table of blocks would be too long");
	if (ret == 0)
		ret = blockmap_take_room(s->bm, bat.bytes, &bat.off, err);
	if (ret == 0)
		ret = copy_range(s->node->file, s->m.bat.off, bat.off, have, err);
	if (ret == 0)
		ret = node_flush(s->node->file, 0, err);
	if (ret == 0)
		ret = switch_tables(s, &bat, err);
	if (ret != 0)
		return ret;
	s->m.bat = bat;
	s->log.end = max_u64(s->log.end, bat.off + bat.bytes);
	return vhdx_reshape(s, blockmap_end(s->bm), err);
}
