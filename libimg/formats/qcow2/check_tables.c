/* SPDX-License-Identifier: MIT */
/*
 * Everything but the trees that refers to clusters: header, snapshot table, bitmaps, encryption header, refcount table
 * and its blocks. Refcount blocks are the only ones that can be replaced as a whole, so what is wrong with their table
 * asks for that.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_bitmap.h"
#include "qcow2_check.h"

#define SNAPSHOT_EXTRA_MIN 16u /* what version 3 demands */

/* ---- snapshots ---- */

static int tree_add(struct check *k, const struct check_tree *t, struct img_error *err)
{
	uint64_t *at = map64_put(&k->tree_by_off, t->l1_off);

	if (!at)
		goto no_memory;
	if (*at && k->tree[*at - 1].l1_entries == t->l1_entries) {
		k->tree[*at - 1].times++;
		return 0;
	}
	if ((k->nr_trees & (k->nr_trees - 1)) == 0) {
		struct check_tree *more = realloc(k->tree, (k->nr_trees ? 2 * (size_t)k->nr_trees : 1) * sizeof(*more));

		if (!more)
			goto no_memory;
		k->tree = more;
	}
	k->tree[k->nr_trees++] = *t;
	*at = k->nr_trees;
	return 0;

no_memory:
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

/* How long the table is says only the table. */
static int table_bytes(struct check *k, struct img_error *err)
{
	uint64_t off = k->e->h.snapshots_off;

	for (uint32_t i = 0; i < k->e->h.nr_snapshots && off < k->file_bytes; i++) {
		struct disk_qcow2_snapshot d;
		int rc = check_read(k, &d, sizeof(d), off, err);

		if (rc < 0)
			return rc;
		off = round_up(
			off + sizeof(d) + be32_get(d.extra_bytes) + be16_get(d.id_bytes) + be16_get(d.name_bytes), 8);
	}
	k->old_snapshots_bytes = off - k->e->h.snapshots_off;
	return check_refer(k, k->e->h.snapshots_off, k->old_snapshots_bytes, 1, USE_ALONE, NO_OFFSET, err);
}

/* An entry of the list that stands for what could not be read. */
static bool is_lost(const struct qcow2_snapshot *s)
{
	return s->l1_off == 0 && s->id[0] == '\0' && s->name[0] == '\0';
}

/* What was left out may be extra data only, beyond any that a program knows; then a new table can go without it. */
static void table_damaged(struct check *k)
{
	struct check_at at = { IMG_FINDING_DAMAGE, 15, k->e->h.snapshots_off, NO_OFFSET, 1, k->repair };

	for (uint32_t i = 0; i < k->e->h.nr_snapshots; i++)
		if (is_lost(&k->snapshots[i])) {
			check_damage(k, 15, k->e->h.snapshots_off, NO_OFFSET, 1,
				     "the snapshot table cannot be read whole: what follows the damage is lost");
			k->incomplete = true;
			return;
		}
	check_found(k, &at, "an entry of the snapshot table has more than %u bytes of extra data",
		    QCOW2_SNAPSHOT_EXTRA_MAX);
}

static uint64_t text_hash(const char *s)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	while (*s)
		h = (h ^ (uint8_t)*s++) * UINT64_C(0x100000001b3);
	return h;
}

/* Other tools take a duplicate for the first one of that name: no damage, but not what anyone wants. */
static int names_check(struct check *k, struct img_error *err)
{
	struct map64 names = { 0 }, ids = { 0 };
	uint64_t *a = NULL, *b = NULL;
	bool ok = true;

	for (uint32_t i = 0; ok && i < k->e->h.nr_snapshots; i++) {
		const struct qcow2_snapshot *s = &k->snapshots[i];

		if (is_lost(s))
			continue;
		a = map64_put(&names, text_hash(s->name) >> 1);
		b = a ? map64_put(&ids, text_hash(s->id) >> 1) : NULL;
		ok = b != NULL;
		k->where = s->name;
		if (ok && *a && strcmp(k->snapshots[*a - 1].name, s->name) == 0)
			check_found(k, &(struct check_at){ IMG_FINDING_NOTE, 17, NO_OFFSET, NO_OFFSET, 0, false },
				    "another snapshot has the same name");
		if (ok && *b && strcmp(k->snapshots[*b - 1].id, s->id) == 0)
			check_found(k, &(struct check_at){ IMG_FINDING_NOTE, 17, NO_OFFSET, NO_OFFSET, 0, false },
				    "another snapshot has the same id, %.32s", s->id);
		if (ok)
			*a = *b = i + 1;
	}
	k->where = "";
	map64_free(&names);
	map64_free(&ids);
	return ok ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static int snapshot_check(struct check *k, const struct qcow2_snapshot *s, bool *mend, struct img_error *err)
{
	const struct check_tree t = { .l1_off = s->l1_off, .l1_entries = s->l1_entries, .times = 1, .name = s->name };

	if (k->e->h.version >= 3 && s->extra_bytes < SNAPSHOT_EXTRA_MIN) {
		check_found(
			k, &(struct check_at){ IMG_FINDING_DAMAGE, 15, k->e->h.snapshots_off, NO_OFFSET, 1, k->repair },
			"the snapshot's entry lacks the size of its disk");
		*mend = true;
	}
	if (s->l1_off % k->e->cluster_bytes || (s->l1_off == 0 && s->l1_entries)) {
		check_damage(k, 15, k->e->h.snapshots_off, NO_OFFSET, 1,
			     "the snapshot's L1 table is said to be at 0x%" PRIx64, s->l1_off);
		k->incomplete = true;
		return 0;
	}
	if (s->l1_entries > QCOW2_L1_MAX_BYTES / 8) {
		check_damage(k, 15, k->e->h.snapshots_off, NO_OFFSET, 1,
			     "the snapshot's L1 table has %" PRIu32 " entries", s->l1_entries);
		k->incomplete = true;
		return 0;
	}
	return tree_add(k, &t, err);
}

static int snapshots_list(struct check *k, struct img_error *err)
{
	bool mend = false;
	int rc = names_check(k, err);

	for (uint32_t i = 0; rc == 0 && i < k->e->h.nr_snapshots; i++) {
		if (is_lost(&k->snapshots[i]))
			continue;
		k->where = k->snapshots[i].name;
		rc = snapshot_check(k, &k->snapshots[i], &mend, err);
	}
	k->where = "";
	if (rc == 0 && (mend || k->e->snapshots_damaged) && k->repair && !k->incomplete)
		rc = qcow2_snapshots_store(k->snapshots, k->e->h.nr_snapshots, k->e->h.version, &k->new_snapshots,
					   &k->new_snapshots_bytes, err);
	if (k->new_snapshots)
		k->rebuild = true;
	return rc;
}

static int one_snapshot(struct check *k, struct img_error *err)
{
	const struct qcow2_snapshot *s = qcow2_snapshot_find(k->e, k->part, err);
	bool mend = false;

	if (!s)
		return IMG_E_NOENT;
	k->where = s->name;
	return snapshot_check(k, s, &mend, err);
}

int check_snapshots(struct check *k, struct img_error *err)
{
	const struct check_tree head = { k->e->h.l1_off, k->e->h.l1_entries, 1, true, "" };
	struct img_error why = { 0 };
	int rc = k->part ? 0 : tree_add(k, &head, err);

	if (rc < 0 || (k->e->h.nr_snapshots == 0 && !k->part))
		return rc;
	if (k->e->check_only) {
		rc = qcow2_snapshots_load(k->e, &why);
		if (rc < 0)
			return check_unreadable(k, rc, &why, err);
		k->own_snapshots = true;
	}
	k->snapshots = k->e->snapshots;
	if (k->e->snapshots_damaged)
		table_damaged(k);
	if (k->part)
		return one_snapshot(k, err);
	rc = table_bytes(k, err);
	return rc ? rc : snapshots_list(k, err);
}

/* ---- bitmaps, encryption header ---- */

/* Honest ones do not overlap; thousands that share one table would take for ever. */
static int bitmap_extent(void *ctx, uint64_t off, uint64_t bytes, const char *bitmap, struct img_error *err)
{
	struct check *k = ctx;

	k->bitmap_bytes = bytes > k->file_bytes ? UINT64_MAX / 2 : k->bitmap_bytes + bytes;
	if (k->bitmap_bytes <= k->file_bytes + k->e->cluster_bytes)
		return check_refer(k, off, bytes, 1, USE_ALONE, NO_OFFSET, err);
	check_damage(
		k, 14, off, NO_OFFSET, 1,
		"bitmaps are longer than the file, so that they overlap: '%.64s' and those that follow are left out",
		bitmap);
	k->incomplete = k->bitmaps_cut = true;
	return IMG_E_CORRUPT;
}

static int bitmap_damage(void *ctx, const char *bitmap, const struct img_error *why)
{
	struct check *k = ctx;

	if (why->code != IMG_E_CORRUPT && (why->code != IMG_E_IO || k->repair))
		return why->code;
	check_damage(k, 18, why->offset, NO_OFFSET, 1, "%s%.64s%s%.110s", bitmap[0] ? "bitmap '" : "", bitmap,
		     bitmap[0] ? "': " : "", why->msg);
	k->incomplete = true;
	return 0;
}

int check_bitmaps(struct check *k, struct img_error *err)
{
	const struct qcow2_bitmap_visitor v = { bitmap_extent, bitmap_damage, k };
	struct img_error why = { .code = IMG_OK };
	int rc = 0;

	for (size_t i = 0; i < k->e->h.nr_ext && rc == 0; i++) {
		const struct qcow2_ext *x = &k->e->h.ext[i];
		struct be64 d[2];

		if (x->type != QCOW2_EXT_LUKS || x->bytes < sizeof(d) || k->e->h.crypt_method != 2)
			continue;
		memcpy(d, x->data, sizeof(d));
		rc = check_refer(k, be64_get(d[0]), be64_get(d[1]), 1, USE_ALONE, NO_OFFSET, err);
	}
	if (k->e->h.nr_bitmaps == 0 || k->part || rc)
		return rc;
	if (!(k->e->h.autoclear & QCOW2_BITMAPS)) {
		check_found(k, &(struct check_at){ IMG_FINDING_NOTE, 18, NO_OFFSET, NO_OFFSET, 0, false },
			    "the bitmaps are stale: something wrote to the image without keeping them");
		return 0;
	}
	if (k->e->check_only)
		rc = qcow2_bitmaps_load(k->e, err);
	for (uint32_t i = 0; rc == 0 && i < k->e->bitmaps->nr; i++)
		if (!qcow2_bitmap_known(k->e->bitmaps->list[i]))
			check_found(
				k, &(struct check_at){ IMG_FINDING_NOTE, 18, NO_OFFSET, NO_OFFSET, 0, false },
				"bitmap '%.64s' is of a kind that is not known, and for which others refuse the image",
				k->e->bitmaps->list[i]->name);
	if (rc == 0)
		rc = qcow2_bitmaps_walk(k->e, &v, &why);
	if (rc < 0 && !k->bitmaps_cut)
		*err = why;
	return k->bitmaps_cut ? 0 : rc;
}

/* ---- the refcount structure ---- */

static void table_damage(struct check *k, uint64_t i, const char *what)
{
	k->block[i] = BLOCK_BAD;
	k->rebuild = true;
	check_found(k,
		    &(struct check_at){ .kind = IMG_FINDING_DAMAGE,
					.rule = 10,
					.file_off = k->e->h.reftable_off + i * 8,
					.guest_off = NO_OFFSET,
					.weight = 1,
					.repaired = k->repair },
		    "an entry of the refcount table, 0x%" PRIx64 ", %s", k->table[i], what);
}

static int block_refer(struct check *k, uint64_t i, struct img_error *err)
{
	uint64_t v = k->table[i], first = v >> k->e->h.cluster_bits;
	unsigned uses;
	int rc;

	if (v == 0)
		return 0;
	k->block[i] = BLOCK_GOOD;
	if (v & QCOW2_RT_RESERVED || v % k->e->cluster_bytes) {
		table_damage(k, i, v & QCOW2_RT_RESERVED ? "has reserved bits set" : "is not the start of a cluster");
		return 0;
	}
	if (v > INT64_MAX || check_beyond(k, v, k->e->cluster_bytes)) {
		table_damage(k, i, "points past the end of the file");
		return 0;
	}
	rc = counts_add(&k->counts, first, 1, 1, USE_REFS, err);
	if (rc == 0 && counts_get(&k->counts, first, &uses) != 1)
		table_damage(k, i, "points to a cluster that is in use otherwise");
	return rc;
}

static int table_load(struct check *k, struct img_error *err)
{
	uint64_t bytes = (uint64_t)k->e->h.reftable_clusters << k->e->h.cluster_bits;
	struct img_error why = { 0 };
	int rc;

	k->nr_blocks = bytes / 8;
	k->table = calloc((size_t)k->nr_blocks + 1, sizeof(*k->table));
	k->block = calloc((size_t)k->nr_blocks + 1, 1);
	if (!k->table || !k->block)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = check_read(k, k->table, bytes, k->e->h.reftable_off, &why);
	if (rc < 0) {
		memset(k->table, 0, (size_t)bytes);
		k->rebuild = true;
		rc = check_unreadable(k, rc, &why, err);
	}
	for (uint64_t i = 0; i < k->nr_blocks; i++) {
		struct be64 d;

		memcpy(&d, &k->table[i], sizeof(d));
		k->table[i] = be64_get(d);
	}
	return rc;
}

/* Who only looks finds that by the count of references. */
static void table_shared(struct check *k, uint64_t off)
{
	k->rebuild = true;
	if (k->repair)
		check_found(k, &(struct check_at){ IMG_FINDING_DAMAGE, 14, off, NO_OFFSET, 1, true },
			    "the refcount table shares a cluster with something else");
}

int check_refcount_table(struct check *k, struct img_error *err)
{
	uint64_t bytes = (uint64_t)k->e->h.reftable_clusters << k->e->h.cluster_bits;
	int rc = 0;

	if (bytes == 0 || check_beyond(k, k->e->h.reftable_off, bytes)) {
		check_found(k,
			    &(struct check_at){ IMG_FINDING_DAMAGE, 10, k->e->h.reftable_off, NO_OFFSET, 1, k->repair },
			    "there is no whole refcount table");
		k->rebuild = true;
		return 0;
	}
	rc = check_refer(k, k->e->h.reftable_off, bytes, 1, USE_REFS, NO_OFFSET, err);
	if (rc == 0)
		rc = table_load(k, err);
	for (uint64_t c = 0; rc == 0 && c < k->e->h.reftable_clusters; c++)
		if (counts_get(&k->counts, (k->e->h.reftable_off >> k->e->h.cluster_bits) + c, NULL) != 1)
			table_shared(k, k->e->h.reftable_off + (c << k->e->h.cluster_bits));
	for (uint64_t i = 0; rc == 0 && i < k->nr_blocks; i++)
		rc = block_refer(k, i, err);
	for (uint64_t i = 0; rc == 0 && i < k->nr_blocks; i++)
		if (k->block[i] == BLOCK_GOOD)
			k->total_bytes += k->e->cluster_bytes;
	return rc;
}

static bool block_is_there(const struct check *k, uint64_t v)
{
	return v && v % k->e->cluster_bytes == 0 && v <= INT64_MAX && !check_beyond(k, v, k->e->cluster_bytes);
}

static int forget(struct check *k, uint64_t cluster, struct img_error *err)
{
	uint64_t count = counts_get(&k->counts, cluster, NULL);

	int rc = count ? counts_set(&k->counts, cluster, count - 1, err) : 0;

	counts_mark_one(&k->counts, cluster, count == 2);
	return rc;
}

int check_forget_refcounts(struct check *k, struct img_error *err)
{
	uint64_t first = k->e->h.reftable_off >> k->e->h.cluster_bits;
	int rc = 0;

	/* Without a table nothing was counted. */
	for (uint64_t c = 0; k->table && rc == 0 && c < k->e->h.reftable_clusters; c++)
		rc = forget(k, first + c, err);
	for (uint64_t i = 0; k->table && rc == 0 && i < k->nr_blocks; i++) {
		uint64_t v = k->table[i];

		if (block_is_there(k, v))
			rc = forget(k, v >> k->e->h.cluster_bits, err);
	}
	for (uint64_t c = 0; k->table && rc == 0 && c < k->e->h.reftable_clusters; c++)
		check_replaced(k, first + c);
	for (uint64_t i = 0; k->table && rc == 0 && i < k->nr_blocks; i++)
		if (block_is_there(k, k->table[i]))
			check_replaced(k, k->table[i] >> k->e->h.cluster_bits);
	return rc;
}
