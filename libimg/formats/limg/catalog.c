/* SPDX-License-Identifier: MIT */
/*
 * The catalog: snapshot records in volume 0, held in memory by slot. It changes only inside a checkpoint, which writes
 * the pages that changed. format-spec/limg.md section 7.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"

/* ---- names ---- */

int snapshot_name_check(const char *name, struct img_error *err)
{
	size_t n = name ? strlen(name) : 0;

	if (n == 0 || n > IMG_SNAPSHOT_NAME_MAX)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a snapshot name has 1 to %d bytes",
				 IMG_SNAPSHOT_NAME_MAX);
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f || name[i] == '@' || name[i] == '/')
			return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
					 "a snapshot name holds no control characters and no '@' or '/'");
	return 0;
}

/* ---- looking up ---- */

struct snap *catalog_find(struct engine *e, const char *name)
{
	for (size_t i = 0; i < e->nr_slots; i++)
		if (e->snap[i] && e->snap[i]->state == SNAP_LIVE && !strcmp(e->snap[i]->name, name))
			return e->snap[i];
	return NULL;
}

struct snap *catalog_by_uuid(struct engine *e, const uint8_t *uuid)
{
	for (size_t i = 0; i < e->nr_slots; i++)
		if (e->snap[i] && e->snap[i]->state == SNAP_LIVE &&
		    !memcmp(e->snap[i]->uuid, uuid, sizeof(e->snap[i]->uuid)))
			return e->snap[i];
	return NULL;
}

struct snap *catalog_by_id(struct engine *e, uint64_t id)
{
	for (size_t i = 0; id && i < e->nr_slots; i++)
		if (e->snap[i] && e->snap[i]->id == id)
			return e->snap[i];
	return NULL;
}

unsigned catalog_children(struct engine *e, uint64_t id, uint64_t head_parent)
{
	unsigned n = head_parent == id;

	for (size_t i = 0; i < e->nr_slots; i++)
		n += e->snap[i] && e->snap[i]->parent == id;
	return n;
}

struct snap *catalog_view(struct engine *e, const char *name)
{
	struct snap *s = catalog_find(e, name);

	if (!s || s->going)
		return NULL;
	s->nr_views++;
	return s;
}

bool catalog_is_full(struct engine *e)
{
	size_t used = 0;

	while (used < e->nr_slots && e->snap[used])
		used++;
	return used > MAX_SNAPSHOTS;
}

/* ---- changing (cat_lock held by the caller's checkpoint) ---- */

static int slots_room(struct engine *e, size_t nr, struct img_error *err)
{
	size_t cap = e->cap_slots ? e->cap_slots : 64;
	struct snap **s;
	uint8_t *d;

	if (nr > MAX_SNAPSHOTS + 1)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "an image holds at most %u snapshots",
				 MAX_SNAPSHOTS);
	if (nr <= e->cap_slots)
		return 0;
	while (cap < nr)
		cap *= 2;
	s = realloc(e->snap, cap * sizeof(*s));
	if (s)
		e->snap = s;
	d = realloc(e->page_dirty, cap / SNAPS_PER_PAGE + 1);
	if (d)
		e->page_dirty = d;
	if (!s || !d)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memset(e->snap + e->cap_slots, 0, (cap - e->cap_slots) * sizeof(*s));
	if (!e->cap_slots)
		memset(e->page_dirty, 0, cap / SNAPS_PER_PAGE + 1);
	else
		memset(e->page_dirty + e->cap_slots / SNAPS_PER_PAGE + 1, 0, (cap - e->cap_slots) / SNAPS_PER_PAGE);
	e->cap_slots = cap;
	return 0;
}

int catalog_add(struct engine *e, const struct snap *s, struct snap **out, struct img_error *err)
{
	size_t slot = 0;
	struct snap *copy;
	int rc;

	while (slot < e->nr_slots && e->snap[slot])
		slot++;
	rc = slots_room(e, slot + 1, err);
	if (rc)
		return rc;
	copy = malloc(sizeof *copy);
	if (!copy)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	*copy = *s;
	e->snap[slot] = copy;
	if (slot == e->nr_slots)
		e->nr_slots++;
	e->page_dirty[slot / SNAPS_PER_PAGE] = 1;
	if (out)
		*out = copy;
	return 0;
}

static size_t slot_of(struct engine *e, const struct snap *s)
{
	size_t slot = 0;

	while (e->snap[slot] != s)
		slot++;
	return slot;
}

void catalog_touch(struct engine *e, const struct snap *s)
{
	e->page_dirty[slot_of(e, s) / SNAPS_PER_PAGE] = 1;
}

void catalog_remove(struct engine *e, struct snap *s)
{
	size_t slot = slot_of(e, s);

	e->page_dirty[slot / SNAPS_PER_PAGE] = 1;
	e->snap[slot] = NULL;
	free(s);
}

/* ---- storing ---- */

static void record_store(struct disk_snapshot *d, const struct snap *s)
{
	memset(d, 0, sizeof *d);
	if (!s)
		return;
	d->id = le64_of(s->id);
	d->state = le32_of((uint32_t)s->state);
	d->name_bytes = le32_of((uint32_t)strlen(s->name));
	memcpy(d->uuid, s->uuid, 16);
	d->parent = le64_of(s->parent);
	d->epoch = le64_of(s->epoch);
	d->created = le64_of((uint64_t)s->created_ns);
	d->cursor = le64_of(s->cursor);
	d->cursor_vol = le32_of(s->cursor_vol);
	d->flags = le32_of(s->has_vmstate ? SNAP_HAS_VMSTATE : 0);
	volume_store(&d->disk, &s->disk);
	volume_store(&d->vm, &s->vm);
	memcpy(d->name, s->name, strlen(s->name));
}

/* Writes one page; its entry goes to *en. A page without records becomes a hole. */
static int page_store(struct ckpt *c, size_t page_index, struct dentry *en, struct img_error *err)
{
	struct engine *e = c->e;
	uint8_t page[AU_BYTES];
	struct disk_snapshot *d = (struct disk_snapshot *)page;
	uint64_t addr;
	int rc;

	for (unsigned i = 0; i < SNAPS_PER_PAGE; i++) {
		size_t slot = page_index * SNAPS_PER_PAGE + i;

		record_store(&d[i], slot < e->nr_slots ? e->snap[slot] : NULL);
	}
	en->slot = (uint8_t)(page_index % LEAF_ENTRIES);
	en->word = en->csum = 0;
	if (is_zero(page, AU_BYTES))
		return 0;
	rc = ckpt_alloc_page(c, &addr, err);
	if (rc)
		return rc;
	/* merge_leaves() marks what it maps as used. */
	rc = space_persist_unuse(e, addr, err);
	if (rc)
		return rc;
	en->word = word_make(addr, c->next.epoch, ST_RAW);
	en->csum = block_csum(page, AU_BYTES);
	return batch_add(c, addr, page, err);
}

int catalog_store(struct ckpt *c, struct img_error *err)
{
	struct engine *e = c->e;
	size_t pages = (e->nr_slots + SNAPS_PER_PAGE - 1) / SNAPS_PER_PAGE;
	int rc;

	c->next.nr_slots = e->nr_slots;
	c->next.catalog.size_bytes = max_u64(c->next.catalog.size_bytes, (uint64_t)pages * AU_BYTES);
	rc = merge_grow(c, VOL_CATALOG, &c->next.catalog, volume_levels_for(c->next.catalog.size_bytes, AU_SHIFT), err);
	for (size_t first = 0; !rc && first < pages; first += LEAF_ENTRIES) {
		struct dentry en[LEAF_ENTRIES];
		struct dleaf leaf = { .index = first / LEAF_ENTRIES, .vol = VOL_CATALOG, .e = en };
		struct merge_leaf m = { VOL_CATALOG, leaf.index, &leaf };

		for (size_t p = first; !rc && p < pages && p < first + LEAF_ENTRIES; p++) {
			if (!e->page_dirty[p])
				continue;
			rc = page_store(c, p, &en[leaf.nr], err);
			e->page_dirty[p] = 0;
			leaf.nr++;
		}
		if (!rc && leaf.nr)
			rc = merge_leaves(c, VOL_CATALOG, &c->next.catalog, &m, 1, err);
	}
	return rc;
}

/* ---- loading ---- */

static bool name_load(const struct disk_snapshot *d, struct snap *s)
{
	uint32_t n = le32_get(d->name_bytes);

	if (n > IMG_SNAPSHOT_NAME_MAX || (s->state == SNAP_LIVE) != (n != 0) ||
	    !is_zero(d->name + n, sizeof d->name - n))
		return false;
	memcpy(s->name, d->name, n);
	s->name[n] = 0;
	return n == 0 || (strlen(s->name) == n && snapshot_name_check(s->name, NULL) == 0);
}

/* *out NULL: a free record. */
static int record_load(struct engine *e, const struct disk_snapshot *d, struct snap **out, struct img_error *err)
{
	struct snap *s;
	int rc;

	*out = NULL;
	if (le64_get(d->id) == 0) {
		if (is_zero(d, sizeof *d))
			return 0;
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "a free catalog record is not empty (LIMG-2)");
	}
	s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	s->id = le64_get(d->id);
	s->state = (enum snap_state)le32_get(d->state);
	memcpy(s->uuid, d->uuid, 16);
	s->parent = le64_get(d->parent);
	s->epoch = le64_get(d->epoch);
	s->created_ns = (int64_t)le64_get(d->created);
	s->cursor = le64_get(d->cursor);
	s->cursor_vol = le32_get(d->cursor_vol);
	s->has_vmstate = le32_get(d->flags) & SNAP_HAS_VMSTATE;
	rc = volume_load(&d->disk, &s->disk, e->block_shift, err);
	if (!rc)
		rc = volume_load(&d->vm, &s->vm, e->block_shift, err);
	if (!rc && ((s->state != SNAP_LIVE && s->state != SNAP_DELETED) || !name_load(d, s) || s->id >= e->sb.next_id ||
		    s->parent >= s->id || s->epoch == 0 || s->epoch >= e->sb.epoch || s->cursor_vol > VOL_VM ||
		    s->disk.size_bytes % 512 || le32_get(d->flags) & ~SNAP_HAS_VMSTATE ||
		    !is_zero(d->zero2, sizeof d->zero2) || (s->state == SNAP_LIVE && (s->cursor || s->cursor_vol))))
		rc = error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			       "the record of snapshot %llu is not sound (LIMG-13)", (unsigned long long)s->id);
	if (!rc && (word_birth(s->disk.root.word) > s->epoch || word_birth(s->vm.root.word) > s->epoch))
		rc = error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			       "the tree of snapshot %llu is younger than it (LIMG-7)", (unsigned long long)s->id);
	if (rc) {
		free(s);
		return rc;
	}
	*out = s;
	return 0;
}

static int by_id(const void *a, const void *b)
{
	const struct snap *x = *(struct snap *const *)a, *y = *(struct snap *const *)b;

	return (x->id > y->id) - (x->id < y->id);
}

static int by_name(const void *a, const void *b)
{
	const struct snap *x = *(struct snap *const *)a, *y = *(struct snap *const *)b;

	return strcmp(x->name, y->name);
}

/* Ids and names are unique, parents exist and are older. Epochs that grow from parent to child exclude cycles. */
static int forest_check(struct engine *e, struct img_error *err)
{
	struct snap **sorted = malloc((e->nr_slots + 1) * sizeof(*sorted));
	size_t n = 0;
	const char *what = NULL;

	if (!sorted)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < e->nr_slots; i++)
		if (e->snap[i])
			sorted[n++] = e->snap[i];
	if (n)
		qsort(sorted, n, sizeof(*sorted), by_name);
	for (size_t i = 1; i < n; i++)
		if (sorted[i]->name[0] && !strcmp(sorted[i]->name, sorted[i - 1]->name))
			what = "two snapshots have one name";
	if (n)
		qsort(sorted, n, sizeof(*sorted), by_id);
	for (size_t i = 0; i < n; i++) {
		struct snap key = { .id = sorted[i]->parent }, *k = &key, **parent;

		if (i && sorted[i]->id == sorted[i - 1]->id)
			what = "two snapshots have one id";
		if (!key.id)
			continue;
		parent = bsearch(&k, sorted, n, sizeof(*sorted), by_id);
		if (!parent || (*parent)->epoch >= sorted[i]->epoch)
			what = "a snapshot's parent is missing or younger";
	}
	if (e->sb.head_parent) {
		struct snap key = { .id = e->sb.head_parent }, *k = &key;

		if (!n || !bsearch(&k, sorted, n, sizeof(*sorted), by_id))
			what = "the snapshot that the head was made on is missing";
	}
	free(sorted);
	if (what)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "the catalog is not sound: %s (LIMG-13)",
				 what);
	return 0;
}

static int page_load(struct engine *e, const struct entry *en, size_t first_slot, struct img_error *err)
{
	uint8_t page[AU_BYTES];
	const struct disk_snapshot *d = (const struct disk_snapshot *)page;
	uint64_t at = au_off(word_addr(en->word));
	int rc;

	if (at + AU_BYTES > node_size(e->file))
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "a catalog page lies beyond the end of the file (LIMG-3)");
	rc = node_pread(e->file, page, AU_BYTES, at, 0, err);
	if (rc)
		return rc;
	if (block_csum(page, AU_BYTES) != en->csum)
		return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
				 "the checksum of a catalog page does not hold (LIMG-11)");
	for (unsigned i = 0; !rc && i < SNAPS_PER_PAGE && first_slot + i < e->nr_slots; i++)
		rc = record_load(e, &d[i], &e->snap[first_slot + i], err);
	return rc;
}

int catalog_load(struct engine *e, struct img_error *err)
{
	size_t pages = ((size_t)e->sb.nr_slots + SNAPS_PER_PAGE - 1) / SNAPS_PER_PAGE;
	int rc = slots_room(e, (size_t)e->sb.nr_slots, err);

	e->nr_slots = rc ? 0 : (size_t)e->sb.nr_slots;
	for (size_t p = 0; !rc && p < pages; p++) {
		struct leaf_ref ref;
		struct entry en;

		rc = tree_leaf(e, VOL_CATALOG, &e->sb.catalog.root, e->sb.catalog.levels, p >> LEAF_SHIFT, &ref, err);
		if (rc)
			break;
		if (!ref.page) {
			leaf_put(&ref);
			continue;
		}
		leaf_entry(ref.page, (unsigned)(p & (LEAF_ENTRIES - 1)), &en);
		leaf_put(&ref);
		if (word_state(en.word) == ST_RAW)
			rc = page_load(e, &en, p * SNAPS_PER_PAGE, err);
	}
	return rc ? rc : forest_check(e, err);
}

int catalog_usable(const struct engine *e, struct img_error *err)
{
	if (!e->catalog_bad)
		return 0;
	if (err && err->code == IMG_OK)
		*err = e->catalog_cause;
	return e->catalog_cause.code;
}

void catalog_destroy(struct engine *e)
{
	for (size_t i = 0; i < e->nr_slots; i++)
		free(e->snap[i]);
	free(e->snap);
	free(e->page_dirty);
	e->snap = NULL;
	e->page_dirty = NULL;
	e->nr_slots = e->cap_slots = 0;
}
