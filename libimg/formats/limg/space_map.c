/* SPDX-License-Identifier: MIT */
/*
 * The free-space map on disk: a tree of fixed shape whose pages have two fixed places each and are written to the one
 * that the current checkpoint does not use. format-spec/limg.md section 8. No allocation is needed to write it.
 */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "checked.h"
#include "engine.h"
#include "space.h"

uint64_t space_page_au(unsigned level, uint64_t index, unsigned version)
{
	uint64_t group = index;

	for (unsigned l = 0; l < level; l++)
		group *= SPACE_FANOUT;
	return group * GROUP_AUS + SPACE_FIXED_AU + 2 * level + version;
}

int space_page_read(struct engine *e, unsigned level, uint64_t index, unsigned version, uint64_t csum, uint8_t *page,
		    struct img_error *err)
{
	uint64_t au = space_page_au(level, index, version);
	int rc;

	if (au_off(au + 1) > node_size(e->file))
		return error_set(err, IMG_E_CORRUPT, 0, au_off(au), LAYER,
				 "a page of the free-space map lies beyond the end of the file (LIMG-3)");
	rc = node_pread(e->file, page, AU_BYTES, au_off(au), 0, err);
	if (rc)
		return rc;
	if (XXH3_64bits_withSeed(page, AU_BYTES, page_identity(e, KIND_SPACE, level, index)) != csum)
		return error_set(
			err, IMG_E_CORRUPT, 0, au_off(au), LAYER,
			"the checksum of a page of the free-space map (level %u, index %llu) does not hold: run imgtool check --repair (LIMG-10)",
			level, (unsigned long long)index);
	return 0;
}

static int page_write(struct engine *e, unsigned level, uint64_t index, uint8_t *version, uint64_t *csum,
		      const uint8_t *page, struct img_error *err)
{
	*version ^= 1;
	*csum = XXH3_64bits_withSeed(page, AU_BYTES, page_identity(e, KIND_SPACE, level, index));
	return node_pwrite(e->file, page, AU_BYTES, au_off(space_page_au(level, index, *version)), 0, err);
}

/* ---- loading ---- */

static int entry_load(const struct disk_space_entry *d, struct space_table *t, uint32_t *nr_free, struct img_error *err)
{
	static const struct disk_space_entry none;

	memset(t, 0, sizeof *t);
	t->version = 1;
	if (!memcmp(d, &none, sizeof none))
		return 0;
	if (d->flags != SPACE_PRESENT || d->version > 1 || d->zero[0] || d->zero[1] || le32_get(d->free) > GROUP_AUS ||
	    (!nr_free && le32_get(d->free)))
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "an entry of the free-space map is not sound: run imgtool check --repair (LIMG-10)");
	t->csum = le64_get(d->csum);
	t->version = d->version;
	t->present = true;
	if (nr_free)
		*nr_free = le32_get(d->free);
	return 0;
}

static int tables_room(struct space *sp, uint64_t nr_groups, struct img_error *err)
{
	uint64_t nr = nr_groups;

	for (unsigned l = 1; l <= 2; l++) {
		nr = (nr + SPACE_FANOUT - 1) / SPACE_FANOUT;
		if (nr > sp->cap_table[l]) {
			struct space_table *t = realloc(sp->table[l], (size_t)nr * sizeof(*t));

			if (!t)
				return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
			sp->table[l] = t;
			sp->cap_table[l] = nr;
		}
		for (; sp->nr_table[l] < nr; sp->nr_table[l]++)
			sp->table[l][sp->nr_table[l]] = (struct space_table){ .version = 1 };
	}
	return 0;
}

/* One table page of level 3 or 2 into the tables below it. */
static int table_load(struct engine *e, unsigned level, uint64_t index, const struct space_table *self, uint8_t *page,
		      struct img_error *err)
{
	struct space *sp = &e->space;
	const struct disk_space_entry *d = (const struct disk_space_entry *)page;
	int rc = space_page_read(e, level, index, self->version, self->csum, page, err);

	for (unsigned i = 0; !rc && i < SPACE_FANOUT; i++) {
		uint64_t k = index * SPACE_FANOUT + i;
		struct space_table t;
		uint32_t nr_free = 0;

		rc = entry_load(&d[i], &t, level == 1 ? &nr_free : NULL, err);
		if (rc || !t.present)
			continue;
		if (k >= (level == 1 ? sp->nr_groups : sp->nr_table[level - 1]))
			return error_set(
				err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				"the free-space map describes a group beyond the file: run imgtool check --repair (LIMG-10)");
		if (level > 1) {
			sp->table[level - 1][k] = t;
			continue;
		}
		sp->group[k].csum = t.csum;
		sp->group[k].version = t.version;
		sp->group[k].present = true;
		sp->group[k].persist_free = sp->group[k].alloc_free = nr_free;
	}
	return rc;
}

/* Highest AU in use that is not a fixed one; 0 if none. */
static int last_used(struct engine *e, uint64_t *out, struct img_error *err)
{
	struct space *sp = &e->space;

	*out = 0;
	for (uint64_t k = sp->nr_groups; k-- > 0;) {
		uint8_t fixed[AU_BYTES];
		struct group *g = &sp->group[k];
		int rc;

		if (g->persist_free == GROUP_AUS - space_fixed_in(k))
			continue;
		rc = space_group_load(e, k, err);
		if (rc)
			return rc;
		space_fixed_bits(k, fixed);
		/* It ends at a bit: group_load() has compared their number with persist_free. */
		for (unsigned i = AU_BYTES; i-- > 0;) { /* GCOV_EXCL_BR_LINE: it never gets to 0 */
			uint8_t bits = (uint8_t)(g->persist[i] & ~fixed[i]);

			if (bits) {
				*out = k * GROUP_AUS + i * 8u + (31u - (unsigned)__builtin_clz(bits));
				return 0;
			}
		}
	}
	return 0;
}

int space_load(struct engine *e, struct img_error *err)
{
	struct space *sp = &e->space;
	struct space_table root;
	uint8_t *page = malloc(AU_BYTES);
	uint64_t sum = 0, last;
	int rc = page ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	if (!rc)
		rc = space_groups_room(e, e->sb.nr_groups, err);
	if (!rc)
		rc = tables_room(sp, e->sb.nr_groups, err);
	if (!rc)
		rc = entry_load(&e->sb.space, &root, NULL, err);
	if (!rc && root.present)
		rc = table_load(e, 3, 0, &root, page, err);
	for (unsigned l = 2; l >= 1; l--)
		for (uint64_t i = 0; !rc && i < sp->nr_table[l]; i++)
			if (sp->table[l][i].present)
				rc = table_load(e, l, i, &sp->table[l][i], page, err);
	free(page);
	if (rc)
		return rc;
	sp->tail = e->sb.file_bytes >> AU_SHIFT;
	sp->file_aus = node_size(e->file) >> AU_SHIFT;
	sp->used = e->sb.used_aus - space_fixed_count(e->sb.nr_groups);
	for (uint64_t i = 0; i < sp->nr_groups; i++)
		sum += GROUP_AUS - sp->group[i].persist_free;
	if (sum != e->sb.used_aus)
		return error_set(
			err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			"the free-space map counts %llu units in use, the superblock %llu: run imgtool check --repair (LIMG-10)",
			(unsigned long long)sum, (unsigned long long)e->sb.used_aus);
	sp->free_below = sp->tail > sum ? sp->tail - sum : 0;
	sp->cursor = min_u64(e->sb.hint * GROUP_AUS, sp->tail - 1);
	rc = last_used(e, &last, err);
	if (!rc && last >= sp->tail) /* what lies above is handed out without a look at its bits */
		rc = error_set(
			err, IMG_E_CORRUPT, 0, au_off(last), LAYER,
			"space in use lies beyond the length that the superblock states: run imgtool check --repair (LIMG-3)");
	return rc;
}

int space_read_bitmap(struct engine *e, uint64_t group, uint8_t *page, struct img_error *err)
{
	struct group *g = &e->space.group[group];

	if (g->present)
		return space_page_read(e, 0, group, g->version, g->csum, page, err);
	space_fixed_bits(group, page);
	return 0;
}

/* ---- writing ---- */

int space_last_used(struct engine *e, uint64_t *aus, struct img_error *err)
{
	uint64_t last;
	int rc;

	pthread_mutex_lock(&e->space.lock);
	rc = last_used(e, &last, err);
	pthread_mutex_unlock(&e->space.lock);
	if (rc)
		return rc;
	*aus = max_u64(last + 1, last / GROUP_AUS * GROUP_AUS + space_fixed_end(last / GROUP_AUS));
	return 0;
}

static int bitmaps_write(struct engine *e, uint64_t nr_groups, struct img_error *err)
{
	struct space *sp = &e->space;
	uint8_t page[AU_BYTES];

	for (uint64_t k = 0;; k++) {
		struct group g;
		int rc;

		pthread_mutex_lock(&sp->lock);
		while (k < sp->nr_groups && !sp->group[k].dirty)
			k++;
		if (k >= sp->nr_groups) {
			pthread_mutex_unlock(&sp->lock);
			return 0;
		}
		g = sp->group[k];
		memcpy(page, g.persist, AU_BYTES);
		sp->group[k].dirty = false;
		pthread_mutex_unlock(&sp->lock);

		if (k >= nr_groups) { /* everything in it was freed: the map no longer speaks of it */
			pthread_mutex_lock(&sp->lock);
			sp->group[k].present = false;
			pthread_mutex_unlock(&sp->lock);
			sp->table[1][k / SPACE_FANOUT].dirty = true;
			continue;
		}
		rc = page_write(e, 0, k, &g.version, &g.csum, page, err);
		if (rc)
			return rc;
		pthread_mutex_lock(&sp->lock);
		sp->group[k].version = g.version;
		sp->group[k].csum = g.csum;
		sp->group[k].present = true;
		pthread_mutex_unlock(&sp->lock);
		sp->table[1][k / SPACE_FANOUT].dirty = true;
	}
}

static void entry_store(struct disk_space_entry *d, uint64_t csum, uint32_t nr_free, uint8_t version)
{
	*d = (struct disk_space_entry){
		.csum = le64_of(csum), .free = le32_of(nr_free), .version = version, .flags = SPACE_PRESENT
	};
}

/* Rewrites the dirty table pages of a level, and says so one level up. */
static int tables_write(struct engine *e, unsigned level, uint64_t nr_groups, struct space_table *root,
			struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t nr = level == 3 ? 1 : sp->nr_table[level];

	for (uint64_t t = 0; t < nr; t++) {
		struct space_table *self = level == 3 ? root : &sp->table[level][t];
		uint8_t page[AU_BYTES] = { 0 };
		struct disk_space_entry *d = (struct disk_space_entry *)page;
		int rc;

		if (!self->dirty)
			continue;
		pthread_mutex_lock(&sp->lock);
		for (unsigned i = 0; i < SPACE_FANOUT; i++) {
			uint64_t k = t * SPACE_FANOUT + i;

			if (level == 1 && k < nr_groups && sp->group[k].present)
				entry_store(&d[i], sp->group[k].csum, sp->group[k].persist_free, sp->group[k].version);
			if (level > 1 && k < sp->nr_table[level - 1] && sp->table[level - 1][k].present)
				entry_store(&d[i], sp->table[level - 1][k].csum, 0, sp->table[level - 1][k].version);
		}
		pthread_mutex_unlock(&sp->lock);
		self->dirty = false;
		if (is_zero(page, AU_BYTES)) { /* not at level 3: there is always a group 0 */
			self->present = false;
		} else {
			rc = page_write(e, level, t, &self->version, &self->csum, page, err);
			if (rc)
				return rc;
			self->present = true;
		}
		if (level == 2)
			root->dirty = true;
		else if (level == 1)
			sp->table[2][t / SPACE_FANOUT].dirty = true;
	}
	return 0;
}

int space_write(struct engine *e, struct super *sb, struct img_error *err)
{
	struct space *sp = &e->space;
	struct space_table root = { .csum = le64_get(sb->space.csum),
				    .version = sb->space.version & 1, /* after a repair it may be anything */
				    .present = sb->space.flags & SPACE_PRESENT };
	uint64_t aus;
	int rc = space_last_used(e, &aus, err);

	if (rc)
		return rc;
	sb->file_bytes = au_off(aus);
	sb->nr_groups = (aus + GROUP_AUS - 1) / GROUP_AUS;
	pthread_mutex_lock(&sp->lock);
	rc = tables_room(sp, sp->nr_groups, err);
	pthread_mutex_unlock(&sp->lock);
	if (!rc)
		rc = bitmaps_write(e, sb->nr_groups, err);
	for (unsigned l = 1; !rc && l <= 3; l++)
		rc = tables_write(e, l, sb->nr_groups, &root, err);
	if (rc)
		return rc;
	if (root.present)
		entry_store(&sb->space, root.csum, 0, root.version);
	pthread_mutex_lock(&sp->lock);
	sb->used_aus = sp->used + space_fixed_count(sb->nr_groups);
	sb->hint = min_u64(sp->cursor / GROUP_AUS, sb->nr_groups - 1);
	pthread_mutex_unlock(&sp->lock);
	return 0;
}

static int group_rebuild(struct engine *e, uint64_t index, const uint8_t *page, struct img_error *err)
{
	struct space *sp = &e->space;
	struct group *g = &sp->group[index];
	uint32_t used = 0;

	for (unsigned i = 0; i < AU_BYTES; i++)
		used += (uint32_t)__builtin_popcount(page[i]);
	if (!g->loaded) {
		g->persist = malloc(AU_BYTES);
		g->alloc = malloc(AU_BYTES);
		if (!g->persist || !g->alloc) {
			free(g->persist);
			free(g->alloc);
			g->persist = g->alloc = NULL;
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		}
		g->loaded = true;
	}
	memcpy(g->persist, page, AU_BYTES);
	memcpy(g->alloc, page, AU_BYTES);
	g->persist_free = g->alloc_free = GROUP_AUS - used;
	g->dirty = true;
	sp->table[1][index / SPACE_FANOUT].dirty = true;
	sp->used += used - space_fixed_in(index);
	return 0;
}

int space_rebuild(struct engine *e, const uint8_t *used, struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t nr = e->sb.nr_groups, sum = 0, last;
	int rc;

	/* What streams and pool hold is free in `used`: forget it with the old maps. */
	space_streams_release(e);
	space_pool_release(e);
	pthread_mutex_lock(&sp->lock);
	rc = tables_room(sp, sp->nr_groups, err); /* groups there are: space_load() begins with them */
	sp->used = 0;
	for (uint64_t k = 0; !rc && k < nr; k++) {
		rc = group_rebuild(e, k, used + k * AU_BYTES, err);
		sum += GROUP_AUS - sp->group[k].persist_free;
	}
	for (uint64_t k = nr; k < sp->nr_groups; k++)
		sp->group[k].present = false;
	if (!rc)
		rc = last_used(e, &last, err);
	sp->tail = rc ? 0 : max_u64(e->sb.file_bytes >> AU_SHIFT, last + 1);
	sp->file_aus = node_size(e->file) >> AU_SHIFT;
	sp->free_below = sp->tail > sum ? sp->tail - sum : 0;
	sp->cursor = 0;
	pthread_mutex_unlock(&sp->lock);
	return rc;
}
