/* SPDX-License-Identifier: MIT */
/*
 * The walk over the trees: L1 tables of the head and of every snapshot, L2 tables, and what these refer to.
 *
 * A thousand snapshots of one disk share most of their L2 tables, and each of them counts in the refcount of every
 * cluster below. So all L1 tables come first: they give the set of L2 tables, and how often each is referred to. Then
 * each L2 table is read once, in the order of the file, and what is in it counts that often. A hostile image in which
 * millions of entries lead to one table costs no more than an honest one.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_check.h"

static uint64_t guest_of(const struct check *k, const struct check_l2 *t, uint64_t i)
{
	return (((uint64_t)t->index << k->e->l2_shift) + i) << k->e->h.cluster_bits;
}

static uint64_t be64_entry(const uint8_t *buf, uint64_t i)
{
	return be64_get(((const struct be64 *)(const void *)buf)[i]);
}

/* ---- L1 tables ---- */

static int l2_note(struct check *k, uint32_t tree, uint32_t index, uint64_t off, struct img_error *err)
{
	const struct check_tree *t = &k->tree[tree];
	uint64_t *at = map64_put(&k->l2_by_off, off);
	struct check_l2 *l2;

	if (!at)
		goto no_memory;
	if (*at == 0) {
		if (k->nr_l2 == k->cap_l2) {
			uint64_t cap = k->cap_l2 ? k->cap_l2 * 2 : 64;

			l2 = cap < SIZE_MAX / sizeof(*l2) ? realloc(k->l2, (size_t)cap * sizeof(*l2)) : NULL;
			if (!l2)
				goto no_memory;
			k->l2 = l2;
			k->cap_l2 = cap;
		}
		k->l2[k->nr_l2] = (struct check_l2){ .off = off, .tree = tree, .index = index, .active = t->active };
		*at = ++k->nr_l2;
	}
	k->l2[*at - 1].times += t->times;
	return 0;

no_memory:
	return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
}

static int l1_entry(struct check *k, uint32_t tree, uint32_t index, uint64_t v, struct img_error *err)
{
	const struct check_tree *t = &k->tree[tree];
	uint64_t at = t->l1_off + UINT64_C(8) * index, off = v & QCOW2_OFFSET_MASK;
	const struct check_l2 place = { .index = index };
	uint64_t guest = guest_of(k, &place, 0);

	if (v == 0)
		return 0;
	if (v & QCOW2_L1_RESERVED)
		check_damage(k, 5, at, guest, t->times, "an L1 entry, 0x%" PRIx64 ", has reserved bits set", v);
	if (off % k->e->cluster_bytes != 0 || off == 0) {
		check_damage(k, 5, at, guest, t->times,
			     "an L1 entry, 0x%" PRIx64 ", points to no place where an L2 table can be", v);
		k->incomplete = true;
		return 0;
	}
	if (!check_beyond(k, off, k->e->cluster_bytes)) {
		int rc = l2_note(k, tree, index, off, err);

		if (rc < 0)
			return rc;
	}
	return check_refer(k, off, k->e->cluster_bytes, t->times, USE_L2, guest, err);
}

static int l1_walk(struct check *k, uint32_t tree, struct img_error *err)
{
	const struct check_tree *t = &k->tree[tree];
	uint64_t bytes = UINT64_C(8) * t->l1_entries;
	int rc = check_refer(k, t->l1_off, bytes, t->times, USE_ALONE, NO_OFFSET, err);

	if (check_beyond(k, t->l1_off, bytes))
		k->incomplete = true;
	for (uint64_t done = 0; rc == 0 && done < bytes; done += CHECK_BUF_BYTES) {
		uint64_t n = min_u64(bytes - done, CHECK_BUF_BYTES);
		struct img_error why = { 0 };

		rc = check_read(k, k->buf, n, t->l1_off + done, &why);
		if (rc < 0) {
			rc = check_unreadable(k, rc, &why, err);
			continue;
		}
		for (uint64_t i = 0; rc == 0 && i < n / 8; i++)
			rc = l1_entry(k, tree, (uint32_t)(done / 8 + i), be64_entry(k->buf, i), err);
		if (rc == 0)
			rc = check_progress(k, n, err);
	}
	return rc;
}

/* ---- L2 tables ---- */

static int packed_entry(struct check *k, const struct check_l2 *t, uint64_t i, const struct qcow2_entry *en,
			struct img_error *err)
{
	uint64_t at = t->off + i * k->e->entry_bytes, guest = guest_of(k, t, i), off, bytes;

	if (en->desc & QCOW2_COPIED)
		k->packed_copied = true; /* check_copied() speaks of it */
	if (k->e->external) {
		check_damage(k, 7, at, guest, t->times, "a compressed cluster in an image with an external data file");
		return 0;
	}
	if (en->bitmap)
		check_damage(k, 7, at, guest, t->times, "a compressed cluster has subclusters (0x%" PRIx64 ")",
			     en->bitmap);
	qcow2_compressed_range(k->e, en->desc, &off, &bytes);
	if (off >> 56) {
		check_damage(k, 7, at, guest, t->times, "a compressed cluster at 0x%" PRIx64 " is out of reach", off);
		return 0;
	}
	return check_refer(k, off, bytes, t->times, USE_PACKED, guest, err);
}

static void subclusters_check(struct check *k, const struct check_l2 *t, uint64_t i, const struct qcow2_entry *en,
			      bool has_host)
{
	uint64_t at = t->off + i * k->e->entry_bytes, guest = guest_of(k, t, i);
	uint32_t allocated = (uint32_t)en->bitmap, zero = (uint32_t)(en->bitmap >> 32);

	if (allocated & zero)
		check_damage(k, 8, at + 8, guest, t->times,
			     "subclusters are both allocated and zero (0x%" PRIx32 " and 0x%" PRIx32 ")", allocated,
			     zero);
	else if (allocated && !has_host)
		check_damage(k, 8, at + 8, guest, t->times,
			     "subclusters (0x%" PRIx32 ") are allocated where there is no cluster", allocated);
}

static int plain_entry(struct check *k, const struct check_l2 *t, uint64_t i, const struct qcow2_entry *en,
		       struct img_error *err)
{
	uint64_t at = t->off + i * k->e->entry_bytes, guest = guest_of(k, t, i), v = en->desc;
	uint64_t off = v & QCOW2_OFFSET_MASK, reserved = QCOW2_L2_RESERVED;
	bool has_host = off != 0 || (k->e->external && v & QCOW2_COPIED);

	if (k->e->subclusters > 1 || k->e->h.version < 3)
		reserved |= QCOW2_ZERO;
	if (v & reserved)
		check_damage(k, 6, at, guest, t->times, "an L2 entry, 0x%" PRIx64 ", has reserved bits set", v);
	if (k->e->subclusters > 1)
		subclusters_check(k, t, i, en, has_host);
	if (!has_host)
		return 0;
	if (off % k->e->cluster_bytes != 0) {
		check_damage(k, 6, at, guest, t->times, "data at 0x%" PRIx64 ", which is not the start of a cluster",
			     off);
		k->incomplete = true;
		return 0;
	}
	if (!k->e->external)
		return check_refer(k, off, k->e->cluster_bytes, t->times, USE_DATA, guest, err);
	if (off != guest && t->active)
		check_damage(k, 16, at, guest, t->times, "data at 0x%" PRIx64 " of the data file, not at its own place",
			     off);
	return 0;
}

static void entry_load(const struct check *k, uint64_t i, struct qcow2_entry *en)
{
	const uint8_t *p = k->buf + i * k->e->entry_bytes;

	en->desc = be64_entry(p, 0);
	en->bitmap = k->e->entry_bytes > 8 ? be64_entry(p, 1) : 0;
}

static int l2_walk(struct check *k, const struct check_l2 *t, struct img_error *err)
{
	uint64_t nr = UINT64_C(1) << k->e->l2_shift;
	struct img_error why = { 0 };
	int rc;

	k->where = k->tree[t->tree].name;
	rc = check_read(k, k->buf, k->e->cluster_bytes, t->off, &why);
	if (rc < 0)
		return check_unreadable(k, rc, &why, err);
	for (uint64_t i = 0; rc == 0 && i < nr; i++) {
		struct qcow2_entry en;

		entry_load(k, i, &en);
		if ((en.desc | en.bitmap) == 0)
			continue;
		if (en.desc & QCOW2_COMPRESSED)
			rc = packed_entry(k, t, i, &en, err);
		else
			rc = plain_entry(k, t, i, &en, err);
	}
	return rc ? rc : check_progress(k, k->e->cluster_bytes, err);
}

static int by_off(const void *a, const void *b)
{
	const struct check_l2 *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

int check_trees(struct check *k, struct img_error *err)
{
	int rc = 0;

	/* Honest tables do not overlap, so that all of them together are no longer than the file. */
	k->l1_bytes = 0;
	for (uint32_t i = 0; rc == 0 && i < k->nr_trees; i++) {
		k->where = k->tree[i].name;
		k->l1_bytes += UINT64_C(8) * k->tree[i].l1_entries;
		if (i > 0 && k->l1_bytes > k->file_bytes + k->e->cluster_bytes) {
			check_damage(
				k, 14, k->tree[i].l1_off, NO_OFFSET, 1,
				"L1 tables are longer than the file, so that they overlap: this one and those that "
				"follow are left out");
			k->incomplete = true;
			break;
		}
		rc = l1_walk(k, i, err);
	}
	map64_free(&k->l2_by_off);
	if (k->nr_l2)
		qsort(k->l2, (size_t)k->nr_l2, sizeof(*k->l2), by_off);
	k->total_bytes += k->nr_l2 * k->e->cluster_bytes;
	for (uint64_t i = 0; rc == 0 && i < k->nr_l2; i++)
		rc = l2_walk(k, &k->l2[i], err);
	k->where = "";
	return rc;
}

/* ---- COPIED: true exactly where the refcount is one, in the head; never on compressed clusters ---- */

/* Where the refcount is not known, nothing can be said. */
static bool copied_wrong(struct check *k, uint64_t off, uint64_t v)
{
	uint64_t cluster = off >> k->e->h.cluster_bits, block = cluster >> k->e->rb_shift;
	unsigned uses;

	if (off % k->e->cluster_bytes || check_beyond(k, off, k->e->cluster_bytes))
		return false;
	if (!k->repair && block < k->nr_blocks && k->block[block] == BLOCK_BAD)
		return false;
	counts_get(&k->counts, cluster, &uses);
	return (uses & USE_REF_ONE) / USE_REF_ONE != v >> 63;
}

/* A table that is something else, too, is not written to: nobody knows what it is. */
static bool may_write(struct check *k, uint64_t off, unsigned use)
{
	unsigned uses;
	uint64_t count = counts_get(&k->counts, off >> k->e->h.cluster_bits, &uses);

	return k->repair && (uses & ~(unsigned)USE_REF_ONE) == use && (use == USE_L2 || count == 1);
}

struct flag {
	const char *what;
	uint64_t at, guest, times;
	uint64_t v;
	bool write;
};

static int copied_fix(struct check *k, const struct flag *f, struct img_error *err)
{
	struct be64 d = be64_of(f->v ^ QCOW2_COPIED);

	check_found(k,
		    &(struct check_at){ .kind = IMG_FINDING_DAMAGE,
					.rule = f->v & QCOW2_COMPRESSED ? 7 : 13,
					.file_off = f->at,
					.guest_off = f->guest,
					.weight = f->times,
					.repaired = f->write },
		    f->v & QCOW2_COMPRESSED ? "%s is marked as COPIED" :
		    f->v & QCOW2_COPIED	    ? "%s is marked as COPIED, but its refcount is not one" :
					      "%s is not marked as COPIED, but its refcount is one",
		    f->what);
	return f->write ? node_pwrite(k->e->file, &d, sizeof(d), f->at, 0, err) : 0;
}

static int copied_l1(struct check *k, const struct check_tree *t, struct img_error *err)
{
	uint64_t bytes = UINT64_C(8) * t->l1_entries;
	int rc = 0;

	for (uint64_t done = 0; rc == 0 && done < bytes; done += CHECK_BUF_BYTES) {
		uint64_t n = min_u64(bytes - done, CHECK_BUF_BYTES);

		rc = check_read(k, k->buf, n, t->l1_off + done, err);
		for (uint64_t i = 0; rc == 0 && i < n / 8; i++) {
			const struct check_l2 place = { .index = (uint32_t)(done / 8 + i) };
			struct flag f = { .what = "an L2 table", .times = 1, .v = be64_entry(k->buf, i) };
			uint64_t off = f.v & QCOW2_OFFSET_MASK;

			f.at = t->l1_off + done + i * 8;
			if (off == 0 || !copied_wrong(k, off, f.v))
				continue;
			f.guest = guest_of(k, &place, 0);
			f.write = may_write(k, f.at, USE_ALONE);
			rc = copied_fix(k, &f, err);
		}
	}
	return rc;
}

static int copied_l2(struct check *k, const struct check_l2 *t, struct img_error *err)
{
	uint64_t nr = UINT64_C(1) << k->e->l2_shift;
	int rc = check_read(k, k->buf, k->e->cluster_bytes, t->off, err);
	bool write = may_write(k, t->off, USE_L2);

	k->where = k->tree[t->tree].name;
	for (uint64_t i = 0; rc == 0 && i < nr; i++) {
		struct flag f = { .what = "a cluster", .times = 1, .write = write };
		struct qcow2_entry en;
		uint64_t off;
		bool wrong;

		entry_load(k, i, &en);
		f.v = en.desc;
		off = f.v & QCOW2_OFFSET_MASK;
		if (f.v & QCOW2_COMPRESSED) {
			wrong = f.v & QCOW2_COPIED;
			f.what = "a compressed cluster";
			f.times = t->times;
		} else {
			wrong = t->active && off != 0 &&
				(k->e->external ? !(f.v & QCOW2_COPIED) : copied_wrong(k, off, f.v));
		}
		if (!wrong)
			continue;
		f.at = t->off + i * k->e->entry_bytes;
		f.guest = guest_of(k, t, i);
		rc = copied_fix(k, &f, err);
	}
	k->where = "";
	return rc ? rc : check_progress(k, k->e->cluster_bytes, err);
}

int check_copied(struct check *k, struct img_error *err)
{
	int rc = 0;

	for (uint32_t i = 0; rc == 0 && i < k->nr_trees; i++)
		if (k->tree[i].active)
			rc = copied_l1(k, &k->tree[i], err);
	for (uint64_t i = 0; rc == 0 && i < k->nr_l2; i++)
		if (k->l2[i].active || k->packed_copied)
			rc = copied_l2(k, &k->l2[i], err);
	return rc;
}
