/* SPDX-License-Identifier: MIT */
/*
 * Check: walks every tree of the file past the caches, verifies each structure and each block once, notes who uses
 * which AU, and compares that with the free-space map. Repair rebuilds the map and the superblock copies; it never
 * touches content, and rebuilds nothing while a tree is damaged (what hangs below a lost node would be taken for free).
 */
#include <stdlib.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "limg.h"

#define READ_BLOCKS 64u /* raw blocks verified in one read */

struct check {
	struct engine *e;
	unsigned flags;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
	uint64_t nr_aus;
	uint8_t *used;	   /* bit for each AU of nr_groups groups */
	uint32_t *owner;   /* fingerprint of what uses an AU; 0: none */
	const char *where; /* snapshot being walked, "" for the head */
	uint64_t cursor;   /* of a deleted record, in blocks of cursor_vol */
	unsigned cursor_vol;
	uint8_t *buf;
	uint64_t next_report;
	bool cancelled;
	uint64_t map_errors;
};

static void finding(struct check *k, enum img_finding_kind kind, const char *rule, uint64_t file_off,
		    uint64_t guest_off, const char *fmt, ...) __attribute__((format(printf, 6, 7)));

static void finding(struct check *k, enum img_finding_kind kind, const char *rule, uint64_t file_off,
		    uint64_t guest_off, const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = file_off, .guest_off = guest_off };
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f.msg, sizeof f.msg, fmt, ap);
	va_end(ap);
	snprintf(f.where, sizeof f.where, "%s", k->where);
	snprintf(f.rule, sizeof f.rule, "%s", rule);
	if (kind == IMG_FINDING_DAMAGE)
		k->out->damage++;
	else if (kind == IMG_FINDING_LEAK)
		k->out->leaks++;
	else if (kind == IMG_FINDING_REDUNDANCY)
		k->out->redundancy++;
	if (k->fn)
		k->fn(k->ctx, &f);
}

/* A failed load becomes a finding; only what has nothing to do with the image ends the check. */
static int note_error(struct check *k, int rc, const struct img_error *e, uint64_t guest_off)
{
	const char *rule = strstr(e->msg, " (LIMG-");
	int len = rule ? (int)(rule - e->msg) : (int)strlen(e->msg);
	char name[16] = "";

	if (rc != IMG_E_CORRUPT && rc != IMG_E_IO)
		return rc;
	if (rule)
		snprintf(name, sizeof name, "%.*s", (int)strcspn(rule + 2, ")"), rule + 2);
	finding(k, IMG_FINDING_DAMAGE, name, e->offset, guest_off, "%.*s", len, e->msg);
	return 0;
}

static bool bit(const uint8_t *map, uint64_t i)
{
	return map[i >> 3] >> (i & 7) & 1;
}

/* What is used at one place of one volume has one fingerprint, whoever shares it. Never 0. */
static uint32_t fingerprint(unsigned vol, unsigned level, uint64_t index, const struct entry *en)
{
	uint64_t h = (index * 8 + level) * 4 + vol;

	h = (h ^ en->word) * UINT64_C(0x9e3779b97f4a7c15);
	h = (h ^ (h >> 29)) * UINT64_C(0xbf58476d1ce4e5b9);
	h ^= h >> 32;
	return (uint32_t)h | 1;
}

enum claim { CLAIM_NEW, CLAIM_SHARED, CLAIM_BAD };

/* Marks AUs as used by the owner of a fingerprint. */
static enum claim claim(struct check *k, uint64_t addr, uint64_t aus, uint32_t print, uint64_t guest_off)
{
	if (!range_inside(addr, aus, k->nr_aus)) {
		finding(k, IMG_FINDING_DAMAGE, "LIMG-3", au_off(addr), guest_off,
			"an address lies beyond the end of the file");
		return CLAIM_BAD;
	}
	if (k->owner[addr] == print)
		return CLAIM_SHARED;
	for (uint64_t a = addr; a < addr + aus; a++) {
		if (space_fixed(a)) {
			finding(k, IMG_FINDING_DAMAGE, "LIMG-16", au_off(a), guest_off,
				"space of the format's own structures is mapped");
			return CLAIM_BAD;
		}
		if (k->owner[a]) {
			finding(k, IMG_FINDING_DAMAGE, "LIMG-9", au_off(a), guest_off, "space is used twice");
			return CLAIM_BAD;
		}
	}
	for (uint64_t a = addr; a < addr + aus; a++) {
		k->owner[a] = print;
		k->used[a >> 3] |= (uint8_t)(1u << (a & 7));
	}
	return CLAIM_NEW;
}

static int progress(struct check *k)
{
	uint64_t done = k->out->data_bytes + k->out->metadata_bytes;

	if (!k->progress || !k->progress->fn || done < k->next_report)
		return 0;
	k->next_report = done + (UINT64_C(16) << 20);
	if (k->progress->fn(k->progress->ctx, done, max_u64(done, au_off(k->e->sb.used_aus))))
		k->cancelled = true;
	return k->cancelled ? IMG_E_CANCELLED : 0;
}

/* ---- data ---- */

static int raw_verify(struct check *k, unsigned vol, uint64_t block, const struct entry *en, unsigned nr)
{
	struct engine *e = k->e;
	unsigned shift = vol_shift(e, vol);
	struct img_error err = { 0 };
	uint64_t at = au_off(word_addr(en->word));
	int rc;

	k->out->data_bytes += (uint64_t)nr << shift;
	if (k->flags & IMG_CHECK_METADATA && vol != VOL_CATALOG)
		return 0;
	rc = node_pread(e->file, k->buf, (uint64_t)nr << shift, at, 0, &err);
	if (rc)
		return note_error(k, rc, &err, block << shift);
	for (unsigned i = 0; i < nr; i++)
		if (block_csum(k->buf + ((size_t)i << shift), (size_t)1 << shift) != en[i].csum)
			finding(k, IMG_FINDING_DAMAGE, "LIMG-11", at + ((uint64_t)i << shift), (block + i) << shift,
				"the checksum of a %s does not hold: restore it from a backup",
				vol == VOL_DISK ? "data block" :
				vol == VOL_VM	? "block of machine state" :
						  "catalog page");
	return progress(k);
}

/* nr entries of one unit from `block` on that share a word. */
static int unit_verify(struct check *k, uint64_t block, const struct entry *en, unsigned nr)
{
	struct engine *e = k->e;
	struct img_error err = { 0 };
	int rc;

	k->out->data_bytes += (uint64_t)nr << e->block_shift;
	if (k->flags & IMG_CHECK_METADATA)
		return 0;
	rc = unit_expand(e, en, k->buf, &err);
	if (rc)
		return note_error(k, rc, &err, block << e->block_shift);
	for (unsigned i = 0; i < nr; i++) {
		const uint8_t *plain = k->buf + (size_t)((block + i) % e->unit_blocks) * e->block_bytes;

		if (!csum_matches(&en[i], block_csum(plain, e->block_bytes)))
			finding(k, IMG_FINDING_DAMAGE, "LIMG-11", au_off(word_addr(en->word)),
				(block + i) << e->block_shift,
				"the checksum of a compressed block does not hold: restore it from a backup");
	}
	return progress(k);
}

static int leaf_data(struct check *k, unsigned vol, uint64_t index, const struct entry *en, uint64_t nr_blocks)
{
	struct engine *e = k->e;
	unsigned shift = vol_shift(e, vol), step = vol_aus(e, vol);
	uint64_t first = index << LEAF_SHIFT;
	int rc = 0;

	for (unsigned i = 0; !rc && i < LEAF_ENTRIES;) {
		unsigned st = word_state(en[i].word), n = 1;
		uint64_t unit = (first + i) / e->unit_blocks;

		if (st != ST_NONE && first + i >= nr_blocks)
			finding(k, IMG_FINDING_DAMAGE, "LIMG-6", NO_OFFSET, (first + i) << shift,
				"a block beyond the end of the volume is mapped");
		if (st < ST_RAW) {
			i++;
			continue;
		}
		if (st == ST_RAW) {
			enum claim c = claim(k, word_addr(en[i].word), step, fingerprint(vol, 7, first + i, &en[i]),
					     (first + i) << shift);

			while (c == CLAIM_NEW && i + n < LEAF_ENTRIES && n < READ_BLOCKS * AU_BYTES >> shift &&
			       word_state(en[i + n].word) == ST_RAW &&
			       word_addr(en[i + n].word) == word_addr(en[i].word) + (uint64_t)n * step &&
			       !k->owner[min_u64(word_addr(en[i + n].word), k->nr_aus - 1)] &&
			       claim(k, word_addr(en[i + n].word), step, fingerprint(vol, 7, first + i + n, &en[i + n]),
				     (first + i + n) << shift) == CLAIM_NEW)
				n++;
			if (c == CLAIM_NEW)
				rc = raw_verify(k, vol, first + i, &en[i], n);
		} else {
			while (i + n < LEAF_ENTRIES && (first + i + n) / e->unit_blocks == unit &&
			       en[i + n].word == en[i].word)
				n++;
			/* A unit cut in two by newer blocks is met again: each part has blocks of its own to verify. */
			if (claim(k, word_addr(en[i].word), entry_unit_aus(&en[i]), fingerprint(vol, 6, unit, &en[i]),
				  (first + i) << shift) != CLAIM_BAD)
				rc = unit_verify(k, first + i, &en[i], n);
		}
		i += n;
	}
	return rc;
}

/* ---- trees ---- */

static bool already_reclaimed(const struct check *k, unsigned vol, uint64_t end)
{
	return k->cursor_vol && (vol < k->cursor_vol || (vol == k->cursor_vol && end <= k->cursor));
}

static int tree_check(struct check *k, unsigned vol, unsigned level, uint64_t index, const struct ptr *p,
		      uint64_t nr_blocks);

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int content_check(struct check *k, unsigned vol, unsigned level, uint64_t index, const struct ptr *p,
			 const uint8_t *data, uint64_t nr_blocks)
{
	uint64_t at = au_off(word_addr(p->word)), count;
	uint8_t logical[16];
	int rc = 0;

	if (level == 0) {
		const struct disk_leaf *l = (const struct disk_leaf *)data;
		struct entry en[LEAF_ENTRIES];

		for (unsigned i = 0; i < LEAF_ENTRIES; i++)
			en[i] = (struct entry){ le64_get(l->e[i].word), le64_get(l->e[i].csum) };
		leaf_logical(en, logical, &count);
		rc = leaf_data(k, vol, index, en, nr_blocks);
	} else {
		const struct disk_node *n = (const struct disk_node *)data;
		struct ptr child[FANOUT];

		for (unsigned i = 0; i < FANOUT; i++)
			ptr_load(&n->child[i], &child[i], NULL); /* verified when the node was read */
		node_logical(child, logical, &count);
		for (unsigned i = 0; !rc && i < FANOUT; i++)
			rc = tree_check(k, vol, level - 1, (index << FANOUT_SHIFT) + i, &child[i], nr_blocks);
	}
	if (!rc && (count != p->count || memcmp(logical, p->logical, 16)))
		finding(k, IMG_FINDING_DAMAGE, "LIMG-8", at, NO_OFFSET,
			"a node's count or logical hash is not what its pointer says");
	return rc;
}

/* NOLINTNEXTLINE(misc-no-recursion): a level less each time */
static int tree_check(struct check *k, unsigned vol, unsigned level, uint64_t index, const struct ptr *p,
		      uint64_t nr_blocks)
{
	uint64_t start = index << (LEAF_SHIFT + FANOUT_SHIFT * level), end = (index + 1)
									     << (LEAF_SHIFT + FANOUT_SHIFT * level);
	unsigned shift = vol_shift(k->e, vol);
	struct entry self = { p->word, p->csum };
	struct img_error err = { 0 };
	uint8_t *data;
	enum claim c;
	int rc;

	if (word_state(p->word) == ST_ZERO && start >= nr_blocks)
		finding(k, IMG_FINDING_DAMAGE, "LIMG-6", NO_OFFSET, start << shift,
			"blocks beyond the end of the volume are mapped");
	if (word_state(p->word) != ST_NODE || already_reclaimed(k, vol, end))
		return 0;
	c = claim(k, word_addr(p->word), 1, fingerprint(vol, level, index, &self), start << shift);
	if (c != CLAIM_NEW)
		return 0;
	k->out->metadata_bytes += AU_BYTES;
	data = malloc(AU_BYTES);
	if (!data)
		return IMG_E_NOMEM;
	rc = tree_read(k->e, vol, level, index, p, data, &err);
	rc = rc ? note_error(k, rc, &err, start << shift) : content_check(k, vol, level, index, p, data, nr_blocks);
	free(data);
	return rc;
}

static int volume_check(struct check *k, unsigned vol, const struct volume *v)
{
	unsigned shift = vol_shift(k->e, vol);

	return tree_check(k, vol, v->levels, 0, &v->root, (v->size_bytes + (UINT64_C(1) << shift) - 1) >> shift);
}

/* A catalog whose pages are whole may still not be sound: then the place is not a page, but what it says. */
static int catalog_check(struct check *k)
{
	struct engine *e = k->e;
	uint64_t before = k->out->damage;
	int rc = volume_check(k, VOL_CATALOG, &e->sb.catalog);

	if (rc || !e->catalog_bad)
		return rc;
	if (k->out->damage == before)
		rc = note_error(k, e->catalog_cause.code, &e->catalog_cause, NO_OFFSET);
	finding(k, IMG_FINDING_NOTE, "", NO_OFFSET, NO_OFFSET,
		"the snapshots are not known, and were not verified; copy what the head holds to a new image");
	return rc;
}

static int snapshots_check(struct check *k)
{
	struct engine *e = k->e;
	int rc = 0;

	for (size_t i = 0; !rc && i < e->nr_slots; i++) {
		const struct snap *s = e->snap[i];

		if (!s)
			continue;
		k->where = s->state == SNAP_LIVE ? s->name : "(deleted)";
		k->cursor = s->cursor;
		k->cursor_vol = s->cursor_vol;
		rc = volume_check(k, VOL_DISK, &s->disk);
		if (!rc)
			rc = volume_check(k, VOL_VM, &s->vm);
	}
	k->where = "";
	k->cursor = k->cursor_vol = 0;
	return rc;
}

/* What an image that was not closed holds in its journal. */
static int pending_check(struct check *k)
{
	struct engine *e = k->e;
	int rc = 0;

	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct dmap *m = &e->shard[i].active;

		for (size_t b = 0; b < m->nr_buckets; b++)
			for (struct dleaf *d = m->bucket[b]; d; d = d->next) {
				struct entry en[LEAF_ENTRIES] = { { 0, 0 } };

				for (unsigned n = 0; n < d->nr; n++)
					en[d->e[n].slot] = (struct entry){ d->e[n].word, d->e[n].csum };
				if (!rc)
					rc = leaf_data(k, d->vol, d->index, en, UINT64_MAX);
			}
	}
	return rc;
}

/* ---- superblocks, ring, map ---- */

static void supers_check(struct check *k)
{
	struct engine *e = k->e;
	uint64_t claims;

	for (unsigned p = 0; p < 2; p++) {
		uint64_t at = au_off(super_slot_au(p, e->sb.generation));
		enum super_copy state = super_copy_state(e->file, p, &e->sb, NULL);

		if (state == SUPER_COPY_DAMAGED)
			finding(k, IMG_FINDING_REDUNDANCY, "LIMG-1", at, NO_OFFSET,
				"copy %u of the superblock is damaged; the other one holds: run imgtool check --repair",
				p + 1);
		else if (state == SUPER_COPY_OLD)
			finding(k, IMG_FINDING_NOTE, "LIMG-1", at, NO_OFFSET,
				"copy %u of the superblock is that of an earlier checkpoint: the last writer was interrupted",
				p + 1);
	}
	if (super_other_slot_lost(e->file, &e->sb, &claims))
		finding(k, IMG_FINDING_REDUNDANCY, "LIMG-1", au_off(super_slot_au(0, e->sb.generation + 1)), NO_OFFSET,
			claims ?
				"both copies of superblock %llu, the newest, are damaged: this is the state before it, unless its writer was cut off just then" :
				"both copies of the superblock beside generation %llu are damaged: if they were the newer ones, this is an older state",
			(unsigned long long)(claims ? claims : e->sb.generation));
}

static void ring_check(struct check *k)
{
	struct engine *e = k->e;
	struct entry ring = { word_make(e->sb.ring_addr, 0, ST_RAW), 0 };

	if (!e->sb.ring_aus)
		return;
	claim(k, e->sb.ring_addr, e->sb.ring_aus, fingerprint(3, 0, 0, &ring), NO_OFFSET);
	if (e->journal_damaged)
		finding(k, IMG_FINDING_DAMAGE, "LIMG-15", au_off(e->sb.ring_addr), NO_OFFSET,
			"the journal lost records that were durable: changes of the last session are missing");
	else if (!e->writable)
		finding(k, IMG_FINDING_NOTE, "", au_off(e->sb.ring_addr), NO_OFFSET,
			"the image was not closed; its journal was replayed in memory");
}

/* Reports runs of one kind of disagreement in a group. */
static void group_compare(struct check *k, uint64_t group, const uint8_t *page)
{
	const uint8_t *used = k->used + group * AU_BYTES;

	for (uint64_t i = 0; i < GROUP_AUS;) {
		uint64_t n = 0;
		bool map = bit(page, i), real = bit(used, i);

		if ((i & 7) == 0 && page[i >> 3] == used[i >> 3]) {
			i += 8;
			continue;
		}
		if (map == real) {
			i++;
			continue;
		}
		while (i + n < GROUP_AUS && bit(page, i + n) == map && bit(used, i + n) == real)
			n++;
		if (map && k->e->catalog_bad) { /* snapshots use it, for all we know */
			i += n;
			continue;
		}
		k->map_errors++;
		if (map)
			k->out->leaked_bytes += au_off(n);
		finding(k, map ? IMG_FINDING_LEAK : IMG_FINDING_DAMAGE, "LIMG-10", au_off(group * GROUP_AUS + i),
			NO_OFFSET,
			map ? "%llu bytes are marked as used, but nothing uses them: run imgtool check --repair" :
			      "%llu bytes are in use, but marked as free: run imgtool check --repair",
			(unsigned long long)au_off(n));
		i += n;
	}
}

/* What a read-only image replayed is in no bitmap, and need not be. */
static void pending_unmark(struct check *k)
{
	struct engine *e = k->e;

	for (unsigned i = 0; i < NR_SHARDS; i++)
		for (size_t b = 0; b < e->shard[i].active.nr_buckets; b++)
			for (struct dleaf *d = e->shard[i].active.bucket[b]; d; d = d->next)
				for (unsigned n = 0; n < d->nr; n++) {
					unsigned st = word_state(d->e[n].word);
					uint64_t aus = st == ST_RAW	    ? e->block_aus :
						       state_compressed(st) ? d->e[n].csum & 0xff :
									      0;

					for (uint64_t a = word_addr(d->e[n].word); aus-- && a < k->nr_aus; a++)
						k->used[a >> 3] &= (uint8_t) ~(1u << (a & 7));
				}
}

static int map_check(struct check *k)
{
	struct engine *e = k->e;
	struct img_error err = { 0 };
	uint8_t *page = malloc(AU_BYTES);
	int rc = page ? 0 : IMG_E_NOMEM;

	for (uint64_t a = 0; a < e->sb.nr_groups * GROUP_AUS; a++)
		if (a % GROUP_AUS < MIN_FILE_AUS && space_fixed(a))
			k->used[a >> 3] |= (uint8_t)(1u << (a & 7));
	if (!e->writable && !rc && !e->space.nr_groups && space_load(e, &e->space_cause)) {
		e->space_bad = true;
		rc = e->space_cause.code == IMG_E_CORRUPT ? 0 : e->space_cause.code;
	}
	if (e->space_bad) {
		note_error(k, IMG_E_CORRUPT, &e->space_cause, NO_OFFSET);
		k->map_errors++;
		free(page);
		return rc;
	}
	for (uint64_t g = 0; !rc && g < e->sb.nr_groups; g++) {
		k->out->metadata_bytes += AU_BYTES;
		rc = space_read_bitmap(e, g, page, &err);
		if (rc) {
			rc = note_error(k, rc, &err, NO_OFFSET);
			k->map_errors++;
			error_clear(&err);
			continue;
		}
		group_compare(k, g, page);
	}
	free(page);
	return rc;
}

/* ---- repair ---- */

static void repaired_again(void *ctx, const struct img_finding *f)
{
	struct check *k = ctx;
	struct img_finding copy = *f;

	copy.repaired = true;
	if (k->fn)
		k->fn(k->ctx, &copy);
}

static int repair(struct check *k, uint64_t content_damage, struct img_error *err)
{
	struct engine *e = k->e;
	/* with a bad map, opening left the changes of a session that died in memory: now they can go to the trees */
	struct ckpt_req recover = { .action = e->space_bad ? CKPT_RECOVER : CKPT_PLAIN };
	struct ckpt_req req = { .action = CKPT_PLAIN };
	struct img_finding f = { .kind = IMG_FINDING_NOTE, .file_off = NO_OFFSET, .guest_off = NO_OFFSET };
	int rc = 0;

	k->out->redundancy += e->mended;
	e->mended = false;
	if (!k->map_errors && !k->out->redundancy)
		return 0;
	if (k->map_errors && content_damage) {
		finding(k, IMG_FINDING_NOTE, "", NO_OFFSET, NO_OFFSET,
			"not repaired: trees are damaged, so the free-space map cannot be rebuilt from them");
		/* nothing more is written by a map that is known to be wrong, and no tail is cut that it calls free */
		if (!e->space_bad)
			error_set(&e->space_cause, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				  "the free-space map does not agree with the trees (LIMG-10)");
		e->space_bad = true;
		return 0;
	}
	if (k->map_errors) {
		struct img_error why = { .code = IMG_OK };

		rc = space_rebuild(e, k->used, &why);
		if (!rc)
			rc = recovery_claim(e, &why);
		if (rc) { /* what there is of the map now must not be allocated from */
			e->space_cause = why;
			e->space_bad = true;
			if (err)
				*err = why;
			return rc;
		}
		e->space_bad = false;
	}
	/* Two generations: both slots, at both places, are new. */
	rc = engine_checkpoint(e, &recover, err);
	if (!rc)
		rc = engine_checkpoint(e, &req, err);
	if (rc)
		return rc;
	k->out->repaired = k->map_errors + k->out->redundancy;
	snprintf(f.msg, sizeof f.msg, "%s written anew",
		 k->map_errors ? "free-space map and superblocks" : "superblocks");
	repaired_again(k, &f);
	return 0;
}

/* ---- the verb ---- */

static int walk_all(struct check *k, uint64_t *content_damage)
{
	struct engine *e = k->e;
	/* what a reader replayed, and a writer who could not go on for want of a map */
	bool pending = !e->writable || e->space_bad;
	int rc;

	supers_check(k);
	ring_check(k);
	rc = catalog_check(k);
	if (!rc)
		rc = volume_check(k, VOL_DISK, &e->sb.disk);
	if (!rc)
		rc = volume_check(k, VOL_VM, &e->sb.vm);
	if (!rc)
		rc = snapshots_check(k);
	if (!rc && pending)
		rc = pending_check(k);
	*content_damage = k->out->damage;
	if (!rc && pending)
		pending_unmark(k);
	return rc ? rc : map_check(k);
}

/* One snapshot's tree, so that nothing is said about space that others use. */
static int walk_snapshot(struct check *k, const struct view *v)
{
	int rc;

	k->where = v->snap->name;
	rc = volume_check(k, VOL_DISK, &v->disk);
	if (!rc)
		rc = volume_check(k, VOL_VM, &v->vm);
	k->where = "";
	return rc;
}

int limg_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress_cb,
	       struct img_check_result *out, struct img_error *err)
{
	const struct view *v = &((struct limg_state *)n->state)->view;
	struct engine *e = ((struct limg_state *)n->state)->e;
	struct check k = {
		.e = e, .flags = flags, .fn = fn, .ctx = ctx, .progress = progress_cb, .out = out, .where = ""
	};
	struct ckpt_req req = { .action = CKPT_PLAIN };
	uint64_t content_damage = 0;
	int rc = 0;

	memset(out, 0, sizeof *out);
	if (flags & IMG_CHECK_REPAIR && (!e->writable || v->snap))
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing, not a snapshot");
	if (e->writable && !e->space_bad && !overlay_empty(e))
		rc = engine_checkpoint(e, &req, err);
	if (rc)
		return rc;
	checkpoint_begin(e);
	k.nr_aus = min_u64(node_size(e->file) >> AU_SHIFT, e->sb.nr_groups * GROUP_AUS);
	k.used = calloc((size_t)e->sb.nr_groups, AU_BYTES);
	k.owner = calloc((size_t)k.nr_aus + 1, sizeof(*k.owner));
	k.buf = malloc((size_t)max_u64(e->unit_bytes, READ_BLOCKS * AU_BYTES));
	if (k.used && k.owner && k.buf)
		rc = v->snap ? walk_snapshot(&k, v) : walk_all(&k, &content_damage);
	else
		rc = IMG_E_NOMEM;
	checkpoint_end(e);
	if (rc == IMG_E_NOMEM)
		error_set(err, rc, 0, NO_OFFSET, LAYER, "out of memory");
	else if (rc == IMG_E_CANCELLED)
		error_set(err, rc, 0, NO_OFFSET, LAYER, "stopped");
	else if (rc)
		error_set(err, rc, 0, NO_OFFSET, LAYER, "the check could not go on");
	if (!rc && flags & IMG_CHECK_REPAIR)
		rc = repair(&k, content_damage, err);
	free(k.used);
	free(k.owner);
	free(k.buf);
	return rc;
}
