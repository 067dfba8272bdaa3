/* SPDX-License-Identifier: MIT */
/*
 * Which AUs are free. Two bitmaps for each group: `persist` is what the next superblock will say (changed only inside a
 * checkpoint), `alloc` what this process must not hand out (persist, blocks in flight, blocks freed but not yet
 * reusable). A crash therefore never leaks: what was only in `alloc` is free again. The pages on disk are in
 * space_map.c.
 *
 * Data comes from streams (a run of about 1 MiB for each, picked by thread), nodes from a pool that is reserved, host
 * space included, when the overlay takes an entry: a full disk fails the write, not the checkpoint after it. A few AUs
 * in group 0 stay free for the checkpoint of a snapshot delete when not even the pool could be filled.
 *
 * What is freed keeps its host space for the next who takes it, until the image is closed; when the host's disk is full
 * it is punched, and what failed is tried once more: space may be freed at one place and wanted at another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "space.h"

#define RUN_AUS		64u /* what a stream or the pool takes at a time: 256 KiB, so that little is left over at close */
#define GROW_MIN_AUS	256u /* steps in which the file grows */
#define GROW_MAX_AUS	16384u
#define SLACK_AUS	256u /* free space below the tail that is not worth looking for: P13 allows 1 MiB */
#define EMERGENCY_FIRST 128u /* AUs 128 to 191 */
#define EMERGENCY_AUS	64u

/* ---- bits ---- */

static bool bit_get(const uint8_t *map, uint64_t i)
{
	return map[i >> 3] >> (i & 7) & 1;
}

static void bits_set(uint8_t *map, uint64_t first, uint64_t nr)
{
	for (uint64_t i = first; i < first + nr; i++)
		map[i >> 3] |= (uint8_t)(1u << (i & 7));
}

static void bits_clear(uint8_t *map, uint64_t first, uint64_t nr)
{
	for (uint64_t i = first; i < first + nr; i++)
		map[i >> 3] &= (uint8_t) ~(1u << (i & 7));
}

/* First position in [from, to) whose bit has the value, or to. */
static uint64_t bits_next(const uint8_t *map, uint64_t from, uint64_t to, bool value)
{
	const uint8_t skip = value ? 0x00 : 0xff;

	while (from < to) {
		if ((from & 63) == 0 && to - from >= 64) {
			uint64_t w, all = value ? 0 : UINT64_MAX;

			memcpy(&w, map + (from >> 3), 8);
			if (w == all) {
				from += 64;
				continue;
			}
		}
		if ((from & 7) == 0 && map[from >> 3] == skip) {
			from += 8;
			continue;
		}
		if (bit_get(map, from) == value)
			return from;
		from++;
	}
	return to;
}

/* ---- fixed AUs ---- */

/* AUs at the start of a group, from 2 on, that hold versions of map pages. */
static unsigned fixed_pages(uint64_t group)
{
	unsigned n = 2;

	for (uint64_t span = SPACE_FANOUT; n < 2 * SPACE_LEVELS && group % span == 0; span *= SPACE_FANOUT)
		n += 2;
	return n;
}

bool space_fixed(uint64_t au)
{
	uint64_t group = au / GROUP_AUS, i = au % GROUP_AUS;

	if (group == 0 && (i < 2 || i == SUPER_PLACE_B || i == SUPER_PLACE_B + 1))
		return true;
	return i >= SPACE_FIXED_AU && i < SPACE_FIXED_AU + fixed_pages(group);
}

uint64_t space_fixed_end(uint64_t group)
{
	return group == 0 ? MIN_FILE_AUS : SPACE_FIXED_AU + fixed_pages(group);
}

uint32_t space_fixed_in(uint64_t group)
{
	return fixed_pages(group) + (group == 0 ? 4 : 0);
}

uint64_t space_fixed_count(uint64_t nr_groups)
{
	uint64_t n = 0;

	for (uint64_t g = 0; g < nr_groups; g++)
		n += space_fixed_in(g);
	return n;
}

void space_fixed_bits(uint64_t group, uint8_t *map)
{
	memset(map, 0, AU_BYTES);
	bits_set(map, SPACE_FIXED_AU, fixed_pages(group));
	if (group == 0) {
		bits_set(map, SUPER_PLACE_A, 2);
		bits_set(map, SUPER_PLACE_B, 2);
	}
}

/* ---- groups (lock held) ---- */

int space_groups_room(struct engine *e, uint64_t nr, struct img_error *err)
{
	struct space *sp = &e->space;

	if (nr > sp->cap_groups) {
		uint64_t cap = max_u64(nr, sp->cap_groups * 2);
		struct group *g = realloc(sp->group, (size_t)cap * sizeof(*g));

		if (!g)
			return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
		sp->group = g;
		sp->cap_groups = cap;
	}
	for (; sp->nr_groups < nr; sp->nr_groups++) {
		struct group *g = &sp->group[sp->nr_groups];

		memset(g, 0, sizeof *g);
		g->version = 1;
		g->persist_free = GROUP_AUS - space_fixed_in(sp->nr_groups);
		g->alloc_free = g->persist_free;
	}
	return 0;
}

/* A page from disk must agree with the table above it and must not offer fixed AUs for allocation. */
static int bitmap_check(const uint8_t *map, uint64_t index, uint32_t nr_free, struct img_error *err)
{
	uint8_t fixed[AU_BYTES];
	uint32_t used = 0, missing = 0;

	space_fixed_bits(index, fixed);
	for (unsigned i = 0; i < AU_BYTES; i++) {
		used += (uint32_t)__builtin_popcount(map[i]);
		missing |= fixed[i] & ~(uint32_t)map[i];
	}
	if (missing || used != GROUP_AUS - nr_free)
		return error_set(
			err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
			"the free-space bitmap of group %llu does not agree with its table: run imgtool check --repair (LIMG-10)",
			(unsigned long long)index);
	return 0;
}

static int group_load(struct engine *e, uint64_t index, struct img_error *err)
{
	struct group *g = &e->space.group[index];
	int rc = 0;

	if (g->loaded)
		return 0;
	g->persist = malloc(AU_BYTES);
	g->alloc = malloc(AU_BYTES);
	if (!g->persist || !g->alloc)
		rc = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	else if (g->present)
		rc = space_page_read(e, 0, index, g->version, g->csum, g->persist, err);
	else
		space_fixed_bits(index, g->persist);
	if (!rc)
		rc = bitmap_check(g->persist, index, g->persist_free, err);
	if (rc) {
		free(g->persist);
		free(g->alloc);
		g->persist = g->alloc = NULL;
		return rc;
	}
	memcpy(g->alloc, g->persist, AU_BYTES);
	g->loaded = true;
	return 0;
}

int space_group_load(struct engine *e, uint64_t index, struct img_error *err)
{
	return group_load(e, index, err);
}

static int with_group(struct engine *e, uint64_t addr, uint64_t aus, struct group **g, struct img_error *err)
{
	uint64_t index = addr / GROUP_AUS;
	int rc;

	if (addr % GROUP_AUS + aus > GROUP_AUS || index >= e->space.nr_groups)
		return error_set(err, IMG_E_CORRUPT, 0, au_off(addr), LAYER,
				 "a run of %llu units lies outside the file's groups (LIMG-3)",
				 (unsigned long long)aus);
	rc = group_load(e, index, err);
	*g = &e->space.group[index];
	return rc;
}

/* ---- allocation (lock held) ---- */

static bool in_emergency(uint64_t addr)
{
	return addr >= EMERGENCY_FIRST && addr < EMERGENCY_FIRST + EMERGENCY_AUS;
}

static void take(struct space *sp, struct group *g, uint64_t addr, uint64_t aus)
{
	bits_set(g->alloc, addr % GROUP_AUS, aus);
	g->alloc_free -= (uint32_t)aus;
	sp->free_below -= aus;
}

/* A free run of at least min in [from, to) of one group. */
static bool search_group(struct space *sp, uint64_t index, uint64_t from, uint64_t to, uint64_t want, uint64_t min,
			 uint64_t *addr, uint64_t *got)
{
	struct group *g = &sp->group[index];

	while (from < to) {
		uint64_t start = bits_next(g->alloc, from, to, false), end;

		if (index == 0 && in_emergency(start)) {
			from = EMERGENCY_FIRST + EMERGENCY_AUS;
			continue;
		}
		if (start >= to)
			return false;
		end = bits_next(g->alloc, start, min_u64(to, start + want), true);
		if (index == 0 && start < EMERGENCY_FIRST && end > EMERGENCY_FIRST)
			end = EMERGENCY_FIRST;
		if (end - start >= min) {
			*addr = index * GROUP_AUS + start;
			*got = end - start;
			take(sp, g, *addr, *got);
			return true;
		}
		from = end;
	}
	return false;
}

/* One round over the groups below the tail, from the cursor. 1: found; 0: none; negative: error. */
static int search_below(struct engine *e, uint64_t want, uint64_t min, uint64_t *addr, uint64_t *got,
			struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t nr = (sp->tail + GROUP_AUS - 1) / GROUP_AUS, first = sp->cursor / GROUP_AUS;

	for (uint64_t k = 0; k <= nr; k++) {
		uint64_t index = (first + k) % nr, from = k == 0 ? sp->cursor % GROUP_AUS : 0;
		uint64_t to = min_u64(GROUP_AUS, sp->tail - index * GROUP_AUS);
		int rc;

		if (sp->group[index].alloc_free < min)
			continue;
		rc = group_load(e, index, err);
		if (rc)
			return rc;
		if (search_group(sp, index, from, to, want, min, addr, got)) {
			sp->cursor = *addr + *got;
			if (sp->cursor >= sp->tail)
				sp->cursor = 0;
			return 1;
		}
	}
	return 0;
}

static int file_grow(struct engine *e, uint64_t aus, struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t step = min_u64(max_u64(aus / 8, GROW_MIN_AUS), GROW_MAX_AUS);
	int rc;

	if (aus <= sp->file_aus)
		return 0;
	if (aus > WORD_ADDR_MASK - GROUP_AUS) /* GCOV_EXCL_BR_LINE: the bitmaps of 1 PiB are 34 GB of memory */
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "the file would grow beyond 1 PiB");
	rc = node_resize(e->file, au_off(aus + step), err);
	if (!rc)
		sp->file_aus = aus + step;
	return rc;
}

/* Moves the tail to `to`; what is passed over is free below it. */
static void tail_set(struct space *sp, uint64_t to)
{
	sp->free_below += to - sp->tail;
	sp->tail = to;
}

/* The tail enters a group: its map pages get their host space now, so that a full disk cannot stop a checkpoint. */
static int enter_group(struct engine *e, uint64_t index, struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t base = index * GROUP_AUS, end = space_fixed_end(index);
	int rc = space_groups_room(e, index + 1, err);

	if (!rc)
		rc = group_load(e, index, err);
	if (!rc)
		rc = file_grow(e, base + end, err);
	if (!rc)
		rc = node_allocate(e->file, au_off(fixed_pages(index)), au_off(base + SPACE_FIXED_AU), err);
	if (rc)
		return rc;
	tail_set(sp, base + end);
	sp->free_below -= fixed_pages(index);
	return 0;
}

static int extend_tail(struct engine *e, uint64_t want, uint64_t min, uint64_t *addr, uint64_t *got,
		       struct img_error *err)
{
	struct space *sp = &e->space;

	for (;;) {
		uint64_t index = sp->tail / GROUP_AUS, in = sp->tail % GROUP_AUS, room = GROUP_AUS - in;
		struct group *g;
		int rc;

		if (in == 0) {
			rc = enter_group(e, index, err);
			if (rc)
				return rc;
			continue;
		}
		if (index == 0 && sp->tail < MIN_FILE_AUS && sp->tail + min > EMERGENCY_FIRST) {
			tail_set(sp, MIN_FILE_AUS);
			sp->free_below -= 2;
			continue;
		}
		if (room < min) {
			tail_set(sp, (index + 1) * GROUP_AUS);
			continue;
		}
		*addr = sp->tail;
		*got = min_u64(want, room);
		if (index == 0 && sp->tail < EMERGENCY_FIRST)
			*got = min_u64(*got, EMERGENCY_FIRST - sp->tail);
		rc = with_group(e, *addr, *got, &g, err);
		if (!rc)
			rc = file_grow(e, *addr + *got, err);
		if (rc)
			return rc;
		tail_set(sp, *addr + *got);
		take(sp, g, *addr, *got);
		return 0;
	}
}

static int alloc_locked(struct engine *e, uint64_t want, uint64_t min, uint64_t *addr, uint64_t *got,
			struct img_error *err)
{
	struct space *sp = &e->space;

	if (sp->free_below >= SLACK_AUS + sp->tail / 256) {
		int rc = search_below(e, want, min, addr, got, err);

		if (rc)
			return rc < 0 ? rc : 0;
	}
	return extend_tail(e, want, min, addr, got, err);
}

int space_alloc(struct engine *e, uint64_t want, uint64_t min, uint64_t *addr, uint64_t *got, struct img_error *err)
{
	int rc;

	pthread_mutex_lock(&e->space.lock);
	rc = alloc_locked(e, want, min, addr, got, err);
	pthread_mutex_unlock(&e->space.lock);
	return rc;
}

uint64_t space_waste_bound(uint64_t blocks, uint64_t data_aus, uint64_t nodes)
{
	uint64_t held = data_aus + nodes;
	/* What streams and the pool have in hand at the end; nodes that were superseded on the way. */
	uint64_t rests = min_u64(NR_STREAMS, blocks) * (RUN_AUS - 1) + 2 * RUN_AUS + nodes / 8;

	if (held == 0)
		return 0;
	/* Free space that was not worth looking for. */
	return rests + min_u64(SLACK_AUS + held / 256, held);
}

/* ---- freeing ---- */

static void free_locked(struct engine *e, uint64_t addr, uint64_t aus)
{
	struct space *sp = &e->space;

	while (aus) {
		struct group *g = &sp->group[addr / GROUP_AUS];
		uint64_t in = addr % GROUP_AUS, n = min_u64(aus, GROUP_AUS - in);

		bits_clear(g->alloc, in, n);
		g->alloc_free += (uint32_t)n;
		sp->free_below += n;
		if (!g->touched)
			g->touched = calloc(1, AU_BYTES);
		if (g->touched)
			bits_set(g->touched, in, n);
		addr += n;
		aus -= n;
	}
}

void space_free(struct engine *e, uint64_t addr, uint64_t aus)
{
	pthread_mutex_lock(&e->space.lock);
	free_locked(e, addr, aus);
	pthread_mutex_unlock(&e->space.lock);
}

void space_free_runs(struct engine *e, struct runs *r)
{
	pthread_mutex_lock(&e->space.lock);
	for (size_t i = 0; i < r->nr; i++)
		free_locked(e, r->v[i].addr, r->v[i].aus);
	pthread_mutex_unlock(&e->space.lock);
	r->nr = 0;
}

/* ---- streams ---- */

static struct stream *my_stream(struct engine *e)
{
	uint64_t t = (uint64_t)(uintptr_t)pthread_self();

	return &e->space.stream[(t * UINT64_C(0x9e3779b97f4a7c15)) >> 61];
}

/* Large requests and compressed units need no stream: one run, one write, nothing left over. */
static int alloc_direct(struct engine *e, uint64_t want, bool exact, uint64_t *addr, uint64_t *got,
			struct img_error *err)
{
	uint64_t run;
	int rc = space_alloc(e, want, exact ? want : e->block_aus, addr, &run, err);

	if (rc)
		return rc;
	*got = exact ? run : round_down(run, e->block_aus);
	if (run > *got)
		space_free(e, *addr + *got, run - *got);
	return 0;
}

int space_alloc_data(struct engine *e, uint64_t want, bool exact, uint64_t *addr, uint64_t *got, struct img_error *err)
{
	struct stream *s = my_stream(e);
	uint64_t min = exact ? want : e->block_aus, drop = 0, drop_at = 0;
	int rc = 0;

	if (want >= RUN_AUS || (exact && want != e->block_aus))
		return alloc_direct(e, want, exact, addr, got, err);
	pthread_mutex_lock(&s->lock);
	if (want == e->block_aus && s->nr_recycle) {
		*addr = s->recycle[--s->nr_recycle];
		*got = want;
		pthread_mutex_unlock(&s->lock);
		return 0;
	}
	if (s->end - s->cur < min) {
		uint64_t at, run;

		drop_at = s->cur;
		drop = s->end - s->cur;
		s->cur = s->end = 0;
		/* Not into the stream itself: a failure may leave a place there that nobody was given. */
		rc = space_alloc(e, max_u64(RUN_AUS, want), min, &at, &run, err);
		if (!rc) {
			s->cur = at;
			s->end = at + run;
		}
	}
	if (!rc) {
		*addr = s->cur;
		*got = exact ? want : round_down(min_u64(want, s->end - s->cur), e->block_aus);
		s->cur += *got;
	}
	pthread_mutex_unlock(&s->lock);
	if (drop)
		space_free(e, drop_at, drop);
	return rc;
}

void space_free_data(struct engine *e, uint64_t addr, uint64_t aus)
{
	struct stream *s = my_stream(e);
	bool kept = false;

	if (aus == e->block_aus) {
		pthread_mutex_lock(&s->lock);
		if (s->nr_recycle < ARRAY_LEN(s->recycle)) {
			s->recycle[s->nr_recycle++] = addr;
			kept = true;
		}
		pthread_mutex_unlock(&s->lock);
	}
	if (!kept)
		space_free(e, addr, aus);
}

void space_streams_release(struct engine *e)
{
	for (unsigned i = 0; i < NR_STREAMS; i++) {
		struct stream *s = &e->space.stream[i];

		pthread_mutex_lock(&s->lock);
		if (s->end > s->cur)
			space_free(e, s->cur, s->end - s->cur);
		s->cur = s->end = 0;
		while (s->nr_recycle)
			space_free(e, s->recycle[--s->nr_recycle], e->block_aus);
		pthread_mutex_unlock(&s->lock);
	}
}

/* ---- the reserve for nodes ---- */

/* Nodes that a checkpoint of so many dirty leaves can need: each leaf, and what is above them. */
static uint64_t nodes_for(const struct engine *e, uint64_t leaves)
{
	uint64_t blocks = max_u64(atomic_load(&e->disk_bytes), atomic_load(&e->vm_bytes)) >> e->block_shift;
	uint64_t at_level = (blocks >> LEAF_SHIFT) + 1, n = leaves + 16; /* catalog and root growth */

	for (unsigned l = 1; l <= MAX_LEVELS; l++) {
		at_level = (at_level >> FANOUT_SHIFT) + 1;
		n += min_u64(leaves, at_level);
	}
	return n;
}

static bool punch_touched(struct engine *e);

/* As much as the host has room for, down to one AU. */
static int pool_add(struct engine *e, struct img_error *err)
{
	struct space *sp = &e->space;
	bool punched = false;

	for (uint64_t want = RUN_AUS;; want /= 2) {
		uint64_t addr = 0, got = 0;
		int rc = alloc_locked(e, want, 1, &addr, &got, err);

		if (rc)
			return rc;
		error_clear(err);
		if (!e->bulk)
			rc = node_allocate(e->file, au_off(got), au_off(addr), err);
		if (!rc) {
			size_t before = sp->pool.nr;

			runs_add(&sp->pool, addr, got);
			if (sp->pool.nr == before &&
			    (!before || sp->pool.v[before - 1].addr + sp->pool.v[before - 1].aus != addr + got))
				rc = error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
			else
				sp->pool_aus += got;
		}
		if (rc)
			free_locked(e, addr, got);
		if (rc != IMG_E_NOSPC)
			return rc;
		if (want == 1 && (punched || !punch_touched(e)))
			return rc;
		if (want == 1) { /* once more */
			punched = true;
			want = 2;
		}
	}
}

int space_reserve(struct engine *e, uint64_t leaves, struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t need = nodes_for(e, atomic_load(&e->nr_dirty_leaves) + leaves);
	int rc = 0;

	if (need <= atomic_load_explicit(&sp->reserved, memory_order_relaxed))
		return 0;
	pthread_mutex_lock(&sp->lock);
	while (!rc && sp->pool_aus < need)
		rc = pool_add(e, err);
	atomic_store(&sp->reserved, sp->pool_aus);
	pthread_mutex_unlock(&sp->lock);
	return rc;
}

/* The last reserve, for when the host has no room. Group 0 need not have been looked at before. */
static int emergency_take(struct engine *e, uint64_t *addr, struct img_error *err)
{
	struct space *sp = &e->space;
	uint64_t at;
	int rc = group_load(e, 0, err);

	if (rc)
		return rc;
	at = bits_next(sp->group[0].alloc, EMERGENCY_FIRST, EMERGENCY_FIRST + EMERGENCY_AUS, false);
	if (at == EMERGENCY_FIRST + EMERGENCY_AUS)
		return error_set(err, IMG_E_NOSPC, ENOSPC, NO_OFFSET, LAYER,
				 "no space for metadata: make room on the host and open the image again");
	take(sp, &sp->group[0], at, 1);
	*addr = at;
	return 0;
}

static void pool_pop(struct space *sp, uint64_t *addr)
{
	struct run *r = &sp->pool.v[0];

	*addr = r->addr++;
	sp->pool_aus--;
	if (--r->aus == 0) {
		sp->pool.nr--;
		memmove(r, r + 1, sp->pool.nr * sizeof(*r));
	}
}

int space_pool_take(struct engine *e, uint64_t *addr, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct space *sp = &e->space;
	int rc;

	pthread_mutex_lock(&sp->lock);
	rc = sp->pool_aus ? 0 : pool_add(e, &why);
	if (rc == 0)
		pool_pop(sp, addr);
	else if (rc == IMG_E_NOSPC)
		rc = emergency_take(e, addr, err);
	else if (err)
		*err = why;
	atomic_store(&sp->reserved, sp->pool_aus);
	pthread_mutex_unlock(&sp->lock);
	return rc;
}

void space_pool_release(struct engine *e)
{
	struct space *sp = &e->space;

	pthread_mutex_lock(&sp->lock);
	for (size_t i = 0; i < sp->pool.nr; i++)
		free_locked(e, sp->pool.v[i].addr, sp->pool.v[i].aus);
	sp->pool.nr = 0;
	sp->pool_aus = 0;
	atomic_store(&sp->reserved, 0);
	pthread_mutex_unlock(&sp->lock);
}

/* ---- the persistent side, inside a checkpoint ---- */

int space_persist_use(struct engine *e, uint64_t addr, uint64_t aus, struct img_error *err)
{
	struct space *sp = &e->space;
	struct group *g;
	int rc;

	pthread_mutex_lock(&sp->lock);
	rc = with_group(e, addr, aus, &g, err);
	if (!rc && bits_next(g->persist, addr % GROUP_AUS, addr % GROUP_AUS + aus, true) != addr % GROUP_AUS + aus)
		rc = error_set(err, IMG_E_CORRUPT, 0, au_off(addr), LAYER,
			       "space that is in use was handed out again (LIMG-9): run imgtool check");
	if (!rc) {
		bits_set(g->persist, addr % GROUP_AUS, aus);
		g->persist_free -= (uint32_t)aus;
		sp->used += aus;
		g->dirty = true;
	}
	pthread_mutex_unlock(&sp->lock);
	return rc;
}

int space_persist_free(struct engine *e, uint64_t addr, uint64_t aus, struct img_error *err)
{
	struct space *sp = &e->space;
	struct group *g;
	int rc;

	pthread_mutex_lock(&sp->lock);
	rc = with_group(e, addr, aus, &g, err);
	if (!rc && bits_next(g->persist, addr % GROUP_AUS, addr % GROUP_AUS + aus, false) != addr % GROUP_AUS + aus)
		rc = error_set(err, IMG_E_CORRUPT, 0, au_off(addr), LAYER,
			       "space that is free was to be freed again (LIMG-9): run imgtool check");
	if (!rc) {
		bits_clear(g->persist, addr % GROUP_AUS, aus);
		g->persist_free += (uint32_t)aus;
		sp->used -= aus;
		g->dirty = true;
	}
	pthread_mutex_unlock(&sp->lock);
	return rc;
}

int space_persist_unuse(struct engine *e, uint64_t addr, struct img_error *err)
{
	return space_persist_free(e, addr, 1, err);
}

int space_claim(struct engine *e, uint64_t addr, uint64_t aus, struct img_error *err)
{
	struct space *sp = &e->space;
	struct group *g;
	int rc;

	pthread_mutex_lock(&sp->lock);
	rc = space_groups_room(e, (addr + aus + GROUP_AUS - 1) / GROUP_AUS, err);
	if (!rc)
		rc = with_group(e, addr, aus, &g, err);
	if (!rc && bits_next(g->alloc, addr % GROUP_AUS, addr % GROUP_AUS + aus, true) != addr % GROUP_AUS + aus)
		rc = error_set(err, IMG_E_CORRUPT, 0, au_off(addr), LAYER,
			       "the journal names space that is in use (LIMG-9)");
	if (!rc) {
		if (addr + aus > sp->tail)
			tail_set(sp, addr + aus); /* fixed AUs passed over count as free below: harmless, only a hint */
		take(sp, g, addr, aus);
	}
	pthread_mutex_unlock(&sp->lock);
	return rc;
}

size_t space_dirty_groups(struct engine *e)
{
	size_t n = 0;

	pthread_mutex_lock(&e->space.lock);
	for (uint64_t i = 0; i < e->space.nr_groups; i++)
		n += e->space.group[i].dirty;
	pthread_mutex_unlock(&e->space.lock);
	return n;
}

/* ---- returning space to the host ---- */

void space_punch(struct engine *e, const struct runs *r, uint64_t min_aus)
{
	for (size_t i = 0; i < r->nr; i++)
		if (r->v[i].aus >= min_aus)
			node_discard(e->file, au_off(r->v[i].aus), au_off(r->v[i].addr), 0, NULL);
}

/* lock held. What was freed since the last time and is nobody's now; true where there was anything. */
static bool punch_touched(struct engine *e)
{
	struct space *sp = &e->space;
	bool any = false;

	for (uint64_t k = 0; k < sp->nr_groups; k++) {
		struct group *g = &sp->group[k];
		uint64_t at = 0;

		if (!g->touched)
			continue;
		for (unsigned i = 0; i < AU_BYTES; i++)
			g->touched[i] &= (uint8_t)~g->alloc[i];
		if (k == 0)
			bits_clear(g->touched, EMERGENCY_FIRST, EMERGENCY_AUS);
		while ((at = bits_next(g->touched, at, GROUP_AUS, true)) < GROUP_AUS) {
			uint64_t end = bits_next(g->touched, at, GROUP_AUS, false);

			any |= node_discard(e->file, au_off(end - at), au_off(k * GROUP_AUS + at), 0, NULL) == 0;
			at = end;
		}
		memset(g->touched, 0, AU_BYTES);
	}
	return any;
}

void space_punch_touched(struct engine *e)
{
	pthread_mutex_lock(&e->space.lock);
	(void)punch_touched(e);
	pthread_mutex_unlock(&e->space.lock);
}

int space_write_data(struct engine *e, const void *buf, uint64_t bytes, uint64_t addr, struct img_error *err)
{
	struct img_error first = { 0 };
	bool room;
	int rc = node_pwrite(e->file, buf, bytes, au_off(addr), 0, &first);

	if (rc == IMG_E_NOSPC) {
		pthread_mutex_lock(&e->space.lock);
		room = punch_touched(e);
		pthread_mutex_unlock(&e->space.lock);
		if (room) {
			error_clear(&first);
			rc = node_pwrite(e->file, buf, bytes, au_off(addr), 0, &first);
		}
	}
	if (rc && err)
		*err = first;
	return rc;
}

/* ---- life ---- */

void space_locks_init(struct engine *e)
{
	pthread_mutex_init(&e->space.lock, NULL);
	for (unsigned i = 0; i < NR_STREAMS; i++)
		pthread_mutex_init(&e->space.stream[i].lock, NULL);
}

int space_init_new(struct engine *e, struct img_error *err)
{
	struct space *sp = &e->space;
	int rc = space_groups_room(e, 1, err);

	if (!rc)
		rc = group_load(e, 0, err);
	if (!rc)
		rc = file_grow(e, MIN_FILE_AUS, err);
	/* Host space for everything fixed and for the last reserve. */
	if (!rc)
		rc = node_allocate(e->file, au_off(2 + fixed_pages(0)), 0, err);
	if (!rc)
		rc = node_allocate(e->file, au_off(EMERGENCY_AUS + 2), au_off(EMERGENCY_FIRST), err);
	sp->tail = SPACE_FIXED_AU + fixed_pages(0);
	return rc;
}

void space_destroy(struct engine *e)
{
	struct space *sp = &e->space;

	for (uint64_t i = 0; i < sp->nr_groups; i++) {
		free(sp->group[i].persist);
		free(sp->group[i].alloc);
		free(sp->group[i].touched);
	}
	free(sp->group);
	free(sp->table[1]);
	free(sp->table[2]);
	runs_free(&sp->pool);
	for (unsigned i = 0; i < NR_STREAMS; i++)
		pthread_mutex_destroy(&sp->stream[i].lock);
	pthread_mutex_destroy(&sp->lock);
}
