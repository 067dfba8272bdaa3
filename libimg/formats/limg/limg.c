/* SPDX-License-Identifier: MIT */
/*
 * The limg driver: opening and closing the engine, and the table that the core sees. States of a handle: read-only (replays in
 * memory, writes nothing), writable (recovered and checkpointed before it is handed out), poisoned (reads only), closed.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "checked.h"
#include "engine.h"
#include "options.h"

#define CACHE_BYTES (UINT64_C(40) << 20) /* with the overlay's bound and the bitmaps: under 128 MiB for random writes */
#define OPEN_TRIES 8			 /* a reader beside a writer starts over when the catalog moved */
#define CLOSE_LEAVES 16384u
#define CLOSE_ROUNDS 64u

static struct limg_state *state_of(const struct node *n)
{
	return n->state;
}

/* ---- engine life ---- */

static void engine_free(struct engine *e)
{
	if (!e)
		return;
	overlay_destroy(e);
	catalog_destroy(e);
	space_destroy(e);
	cache_destroy(&e->cache);
	units_destroy(&e->units);
	runs_free(&e->await.runs);
	pthread_cond_destroy(&e->cond);
	pthread_mutex_destroy(&e->lock);
	pthread_mutex_destroy(&e->cat_lock);
	free(e);
}

static struct engine *engine_new(struct node *node, struct node *file, uint64_t cache_bytes, struct img_error *err)
{
	struct engine *e = aligned_alloc(64, round_up(sizeof *e, 64));

	if (e) {
		memset(e, 0, sizeof *e);
		e->node = node;
		e->file = file;
		atomic_init(&e->refs, 1);
		pthread_mutex_init(&e->lock, NULL);
		pthread_mutex_init(&e->cat_lock, NULL);
		pthread_cond_init(&e->cond, NULL);
		overlay_init(e);
		space_locks_init(e);
		units_init(&e->units);
		if (!cache_init(&e->cache, cache_bytes ? cache_bytes : CACHE_BYTES))
			return e;
		engine_free(e);
	}
	error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	return NULL;
}

/* What follows from the superblock. */
static void engine_adopt(struct engine *e)
{
	const struct super *sb = &e->sb;

	e->block_shift = sb->block_shift;
	e->block_bytes = 1u << sb->block_shift;
	e->block_aus = e->block_bytes / AU_BYTES;
	e->unit_bytes = 1u << sb->unit_shift;
	e->unit_blocks = e->unit_bytes / e->block_bytes;
	atomic_store(&e->disk_bytes, sb->disk.size_bytes);
	atomic_store(&e->vm_bytes, sb->vm.size_bytes);
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct shard *s = &e->shard[i];

		s->root[VOL_DISK] = sb->disk.root;
		s->levels[VOL_DISK] = sb->disk.levels;
		s->root[VOL_VM] = sb->vm.root;
		s->levels[VOL_VM] = sb->vm.levels;
		s->epoch = sb->epoch;
	}
}

/* Does an earlier entry of the leaf name the same unit? Newer blocks may have cut it into parts. */
static bool unit_claimed(const struct engine *e, const struct dleaf *d, unsigned k)
{
	for (unsigned i = k; i-- > 0 && d->e[i].slot / e->unit_blocks == d->e[k].slot / e->unit_blocks;)
		if (d->e[i].word == d->e[k].word)
			return true;
	return false;
}

/* Recovered blocks are in no bitmap yet. */
static int claim_replayed(struct engine *e, struct img_error *err)
{
	int rc = 0;

	for (unsigned i = 0; !rc && i < NR_SHARDS; i++) {
		struct dmap *m = &e->shard[i].active;

		for (size_t b = 0; b < m->nr_buckets; b++)
			for (struct dleaf *d = m->bucket[b]; d; d = d->next)
				for (unsigned k = 0; !rc && k < d->nr; k++) {
					unsigned st = word_state(d->e[k].word);

					if (st == ST_RAW)
						rc = space_claim(e, word_addr(d->e[k].word), e->block_aus, err);
					else if (state_compressed(st) && !unit_claimed(e, d, k))
						rc = space_claim(e, word_addr(d->e[k].word), d->e[k].csum & 0xff, err);
				}
	}
	return rc;
}

/* ---- open ---- */

static int open_writable(struct engine *e, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_RECOVER};
	int rc;

	if (e->sb.rocompat)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 24, LAYER, "features 0x%llx are not known to this build: open it read-only",
				 (unsigned long long)e->sb.rocompat);
	if (space_load(e, &e->space_cause)) {
		if (e->space_cause.code != IMG_E_CORRUPT) {
			if (err)
				*err = e->space_cause;
			return e->space_cause.code;
		}
		e->space_bad = true; /* reading and repair go on */
	}
	rc = super_mend(e->file, &e->sb, err);
	if (rc || !e->sb.ring_aus)
		return rc;
	rc = journal_recover(e, err);
	if (rc)
		return rc;
	if (e->journal_damaged)
		return error_set(err, IMG_E_CORRUPT, 0, au_off(e->sb.ring_addr), LAYER,
				 "the journal lost records that were durable: read what is there, do not write (LIMG-15)");
	if (e->space_bad)
		return 0;
	rc = claim_replayed(e, err);
	return rc ? rc : engine_checkpoint(e, &req, err);
}

/* By the uuid of a pin where there is one: a snapshot may have been renamed, and another may have taken its name. */
static struct snap *wanted(struct engine *e, const struct driver_open *args)
{
	return args->snapshot_uuid ? catalog_by_uuid(e, args->snapshot_uuid) : catalog_find(e, args->snapshot);
}

static int load(struct engine *e, const struct driver_open *args, struct limg_state *st, struct img_error *err)
{
	unsigned damaged;
	struct snap *s = NULL;
	uint64_t generation;
	int rc = super_read(e->file, &e->sb, &damaged, err);

	if (rc)
		return rc;
	engine_adopt(e);
	rc = catalog_load(e, err);
	if (rc || !args->snapshot)
		return rc;
	s = wanted(e, args);
	if (!s)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot %.64s", args->snapshot);
	/* Hold it, then make sure that it had not gone before we did. */
	generation = e->sb.generation;
	if (st->locked_id != s->id) {
		/* The one that had the name before is gone. */
		if (st->locked_id)
			snapshot_lock(e, st->locked_id, BYTE_UNLOCK, NULL);
		st->locked_id = 0;
		rc = snapshot_lock(e, s->id, BYTE_SHARED, err);
		if (rc)
			return rc;
		st->locked_id = s->id;
		rc = super_read(e->file, &e->sb, &damaged, err);
		if (rc)
			return rc;
		if (e->sb.generation != generation)
			return IMG_E_CORRUPT; /* load it all again, under the lock */
	}
	s->nr_views++;
	st->view = (struct view){.e = e, .snap = s, .disk = s->disk, .vm = s->vm};
	return 0;
}

/* Beside a writer a catalog may move under us: that looks like damage once, and is over on the next try. */
static int load_retrying(struct node *n, const struct driver_open *args, struct engine **out, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	int rc = IMG_E_CORRUPT;

	for (int i = 0; i < OPEN_TRIES && rc == IMG_E_CORRUPT; i++) {
		struct engine *e = engine_new(n, n->file, args->cache_bytes, err);
		uint64_t generation;
		unsigned damaged;

		if (!e)
			return IMG_E_NOMEM;
		e->writable = args->writable && !args->snapshot;
		e->bulk = args->bulk;
		e->force_share = args->force_share;
		error_clear(err);
		rc = load(e, args, st, err);
		if (!rc) {
			*out = e;
			return 0;
		}
		generation = e->sb.generation;
		/* Without a writer the same superblock means the same damage. */
		if (rc == IMG_E_CORRUPT && (super_read(n->file, &e->sb, &damaged, NULL) || e->sb.generation == generation) &&
		    (!st->locked_id || i > 1))
			i = OPEN_TRIES;
		if (st->locked_id && rc != IMG_E_CORRUPT) {
			snapshot_lock(e, st->locked_id, BYTE_UNLOCK, NULL);
			st->locked_id = 0;
		}
		engine_free(e);
	}
	return rc;
}

static int limg_open(struct node *n, const struct driver_open *args, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	struct engine *e = NULL;
	int rc = load_retrying(n, args, &e, err);

	if (rc)
		return rc;
	if (e->writable)
		rc = open_writable(e, err);
	else if (!args->snapshot)
		rc = journal_recover(e, err);
	if (rc) {
		engine_stop_worker(e);
		engine_free(e);
		return rc;
	}
	if (!args->snapshot)
		st->view = (struct view){.e = e};
	st->e = e;
	st->owns = true;
	return 0;
}

/* ---- close ---- */

static int close_writable(struct engine *e, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_CLOSE};
	int rc = 0;

	engine_stop_worker(e);
	if (atomic_load(&e->poisoned))
		return engine_writable(e, err);
	for (unsigned i = 0; !rc && i < CLOSE_ROUNDS && atomic_load(&e->write_count) && !e->bulk &&
			     reclaim_possible(e, e->sb.head_parent); i++) {
		struct ckpt_req step = {.action = CKPT_PLAIN, .reclaim_leaves = CLOSE_LEAVES};

		rc = engine_checkpoint(e, &step, err);
	}
	if (!rc && !e->space_bad && (!overlay_empty(e) || e->sb.ring_aus || e->bulk))
		rc = engine_checkpoint(e, &req, err);
	if (rc || !e->dirty_session)
		return rc;
	space_streams_release(e);
	space_pool_release(e);
	space_punch_touched(e);
	if (node_size(e->file) > e->sb.file_bytes)
		rc = node_resize(e->file, e->sb.file_bytes, err);
	return rc;
}

static int limg_close(struct node *n, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	struct engine *e = st->e;
	int rc = 0;

	if (!e)
		return 0;
	if (st->view.snap) {
		pthread_mutex_lock(&e->cat_lock);
		st->view.snap->nr_views--;
		pthread_mutex_unlock(&e->cat_lock);
	}
	if (!st->owns)
		return 0;
	if (e->writable)
		rc = close_writable(e, err);
	if (st->locked_id)
		snapshot_lock(e, st->locked_id, BYTE_UNLOCK, NULL);
	engine_free(e);
	st->e = NULL;
	return rc;
}

/* ---- create ---- */

static int limg_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_CLOSE};
	struct limg_options o;
	struct engine *e;
	struct timespec now;
	int rc = options_parse(args->options, args->size_bytes, &o, err);

	if (rc)
		return rc;
	if (args->size_bytes % 512 || args->size_bytes > MAX_VOLUME_BYTES)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a limg disk is a multiple of 512 bytes, at most 32 TiB");
	e = engine_new(NULL, file, 0, err);
	if (!e)
		return IMG_E_NOMEM;
	clock_gettime(CLOCK_REALTIME, &now);
	e->writable = e->bulk = true;
	e->sb = (struct super){.block_shift = o.block_shift, .unit_shift = o.unit_shift, .codec = o.codec, .level = o.level,
			       .epoch = 1, .next_id = 1,
			       .created_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec};
	e->sb.disk.size_bytes = args->size_bytes;
	e->sb.disk.levels = volume_levels_for(args->size_bytes, o.block_shift);
	if (args->backing) {
		e->sb.has_backing = true;
		e->sb.backing = *args->backing;
	}
	if (getrandom(e->sb.uuid, 16, 0) != 16)
		rc = error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers from the kernel");
	e->sb.uuid[6] = (uint8_t)((e->sb.uuid[6] & 0x0f) | 0x40); /* RFC 4122, version 4 */
	e->sb.uuid[8] = (uint8_t)((e->sb.uuid[8] & 0x3f) | 0x80);
	engine_adopt(e);
	if (!rc)
		rc = space_init_new(e, err);
	if (!rc)
		rc = engine_checkpoint(e, &req, err);
	if (!rc) {
		space_streams_release(e);
		space_pool_release(e);
		rc = node_resize(file, e->sb.file_bytes, err);
	}
	engine_free(e);
	return rc;
}

/* ---- small members ---- */

static int limg_probe(const struct probe_data *d)
{
	static const uint8_t magic[8] = {'L', 'I', 'M', 'G', 0x0d, 0x0a, 0x1a, 0x00};

	/* The first two copies; with both gone the magic of the second place does not reach the probe's head. */
	if (d->head_bytes >= 8 && !memcmp(d->head, magic, 8))
		return 100;
	return d->head_bytes >= AU_BYTES + 8 && !memcmp(d->head + AU_BYTES, magic, 8) ? 100 : 0;
}

static uint64_t limg_size(const struct node *n)
{
	const struct limg_state *st = state_of(n);

	return st->view.snap ? st->view.disk.size_bytes : atomic_load(&st->e->disk_bytes);
}

static void limg_limits(const struct node *n, struct driver_limits *out)
{
	const struct engine *e = state_of(n)->e;

	*out = (struct driver_limits){.request_align = 1, .block_bytes = e->block_bytes, .optimal_bytes = 1u << 20,
				      .unit_bytes = e->unit_bytes, .max_size_bytes = MAX_VOLUME_BYTES};
}

static int head_of(struct node *n, struct engine **e, struct img_error *err)
{
	struct limg_state *st = state_of(n);

	*e = st->e;
	if (st->view.snap)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "a snapshot cannot be changed");
	return engine_writable(st->e, err);
}

static int limg_pread(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return view_read(&state_of(n)->view, VOL_DISK, buf, bytes, off, err);
}

static int limg_pwrite(struct node *n, const void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct engine *e;
	int rc = head_of(n, &e, err);

	return rc ? rc : head_write(e, VOL_DISK, buf, bytes, off, flags, err);
}

static int limg_zero(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct engine *e;
	int rc = head_of(n, &e, err);

	(void)flags;
	return rc ? rc : head_zero(e, VOL_DISK, bytes, off, false, err);
}

static int limg_discard(struct node *n, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	struct engine *e;
	int rc = head_of(n, &e, err);

	(void)flags;
	return rc ? rc : head_zero(e, VOL_DISK, bytes, off, true, err);
}

static int limg_flush(struct node *n, unsigned flags, struct img_error *err)
{
	struct engine *e = state_of(n)->e;
	struct ckpt_req req = {.action = CKPT_PLAIN};

	if (state_of(n)->view.snap || !e->writable)
		return 0;
	if (flags & IMG_FLUSH_CHECKPOINT && !overlay_empty(e))
		return engine_checkpoint(e, &req, err);
	return engine_flush(e, err);
}

static int limg_status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		       struct img_error *err)
{
	return view_status(&state_of(n)->view, bytes, off, out, cap, nr, err);
}

static int limg_resize(struct node *n, uint64_t size_bytes, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_RESIZE, .size_bytes = size_bytes};
	struct engine *e;
	int rc = head_of(n, &e, err);

	if (!rc && (size_bytes % 512 || size_bytes > MAX_VOLUME_BYTES))
		rc = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "a limg disk is a multiple of 512 bytes, at most 32 TiB");
	return rc ? rc : engine_checkpoint(e, &req, err);
}

static bool limg_get_backing(struct node *n, struct backing_ref *out)
{
	struct engine *e = state_of(n)->e;

	if (e->sb.has_backing)
		*out = e->sb.backing;
	return e->sb.has_backing;
}

static int limg_set_backing(struct node *n, const struct backing_ref *ref, enum backing_change how, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_BACKING, .ref = ref, .empty = how == BACKING_SET_EMPTY,
			       .reclaim_leaves = CLOSE_LEAVES};
	struct engine *e;
	int rc = head_of(n, &e, err);

	return rc ? rc : engine_checkpoint(e, &req, err);
}

static int limg_pin(struct node *n, struct pin *out, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	struct engine *e = st->e;

	memset(out, 0, sizeof *out);
	out->kind = PIN_STRONG;
	memcpy(out->uuid, e->sb.uuid, 16);
	if (st->view.snap) {
		memcpy(out->snapshot_uuid, st->view.snap->uuid, 16);
		out->size_bytes = st->view.disk.size_bytes;
		volume_logical_root(&st->view.disk, out->hash);
		return 0;
	}
	if (!overlay_empty(e)) {
		struct ckpt_req req = {.action = CKPT_PLAIN};
		int rc;

		if (!e->writable)
			return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER,
					 "it was not closed cleanly, so its content has no identity yet: run imgtool check --repair on it");
		rc = engine_checkpoint(e, &req, err);
		if (rc)
			return rc;
	}
	out->size_bytes = e->sb.disk.size_bytes;
	volume_logical_root(&e->sb.disk, out->hash);
	return 0;
}

/* ---- snapshots as images, machine state ---- */

static int view_named(struct engine *e, const char *name, struct view *v, struct img_error *err)
{
	struct snap *s;

	*v = (struct view){.e = e};
	if (!name)
		return 0;
	pthread_mutex_lock(&e->cat_lock);
	s = catalog_find(e, name);
	if (s) {
		s->nr_views++;
		*v = (struct view){.e = e, .snap = s, .disk = s->disk, .vm = s->vm};
	}
	pthread_mutex_unlock(&e->cat_lock);
	return s ? 0 : error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot %.64s", name);
}

static void view_release(struct view *v)
{
	if (!v->snap)
		return;
	pthread_mutex_lock(&v->e->cat_lock);
	v->snap->nr_views--;
	pthread_mutex_unlock(&v->e->cat_lock);
}

static int limg_snap_open(struct node *n, const char *name, struct node *view, struct img_error *err)
{
	struct limg_state *st = view->state;
	int rc = view_named(state_of(n)->e, name, &st->view, err);

	if (!rc)
		st->e = state_of(n)->e;
	return rc;
}

static int limg_vmstate_write(struct node *n, const void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct engine *e;
	uint64_t end, have;
	int rc = head_of(n, &e, err);

	if (rc)
		return rc;
	if (add_overflows(off, bytes, &end) || end > MAX_VOLUME_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "machine state is limited to 32 TiB");
	rc = bytes ? head_write(e, VOL_VM, buf, bytes, off, 0, err) : 0;
	have = atomic_load(&e->vm_bytes);
	while (!rc && have < end && !atomic_compare_exchange_weak(&e->vm_bytes, &have, end))
		;
	return rc;
}

static uint64_t vm_size(const struct view *v)
{
	if (v->snap)
		return v->snap->has_vmstate ? v->vm.size_bytes : 0;
	return atomic_load(&v->e->vm_bytes);
}

static int limg_vmstate_read(struct node *n, const char *snap, void *buf, uint64_t bytes, uint64_t off, struct img_error *err)
{
	struct view v;
	int rc = view_named(state_of(n)->e, snap, &v, err);

	if (rc)
		return rc;
	if (!range_inside(off, bytes, vm_size(&v)))
		rc = error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER, "the machine state ends at 0x%llx",
			       (unsigned long long)vm_size(&v));
	else if (bytes)
		rc = view_read(&v, VOL_VM, buf, bytes, off, err);
	view_release(&v);
	return rc;
}

static int limg_vmstate_resize(struct node *n, uint64_t bytes, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_VM_RESIZE, .size_bytes = bytes};
	struct engine *e;
	int rc = head_of(n, &e, err);

	if (!rc && bytes > MAX_VOLUME_BYTES)
		rc = error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "machine state is limited to 32 TiB");
	return rc ? rc : engine_checkpoint(e, &req, err);
}

static int limg_vmstate_size(struct node *n, const char *snap, uint64_t *bytes, struct img_error *err)
{
	struct view v;
	int rc = view_named(state_of(n)->e, snap, &v, err);

	if (rc)
		return rc;
	*bytes = vm_size(&v);
	view_release(&v);
	return 0;
}

/* ---- info, measure ---- */

static int limg_info(struct node *n, struct img_info *out, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	struct engine *e = st->e;

	(void)err;
	out->block_bytes = e->block_bytes;
	out->unit_bytes = e->unit_bytes;
	strcpy(out->compression, codec_name(e->sb.codec));
	out->dirty = e->sb.ring_aus != 0 && !e->writable;
	out->corrupt = e->journal_damaged || e->space_bad;
	out->has_uuid = true;
	memcpy(out->uuid, e->sb.uuid, 16);
	if (st->view.snap)
		volume_logical_root(&st->view.disk, out->hash);
	else if (overlay_empty(e))
		volume_logical_root(&e->sb.disk, out->hash);
	out->vmstate_bytes = vm_size(&st->view);
	out->generation = e->sb.generation;
	out->used_bytes = au_off(e->sb.used_aus);
	pthread_mutex_lock(&e->cat_lock);
	for (size_t i = 0; i < e->nr_slots; i++) {
		const struct snap *s = e->snap[i];

		out->nr_snapshots += s && s->state == SNAP_LIVE;
		if (s && s->state == SNAP_DELETED)
			out->pending_free_bytes_hint += (s->disk.root.count + s->vm.root.count) << e->block_shift;
	}
	pthread_mutex_unlock(&e->cat_lock);
	return 0;
}

#define MEASURE_SLACK_AUS 256u

struct counting {
	unsigned shift;
	uint64_t blocks, leaves, next_block, next_leaf;
};

static int count_data(void *arg, uint64_t off, uint64_t bytes)
{
	struct counting *c = arg;
	uint64_t first = max_u64(off >> c->shift, c->next_block), end = (off + bytes + (UINT64_C(1) << c->shift) - 1) >> c->shift;
	uint64_t leaf, leaf_end;

	if (first >= end)
		return 0;
	c->blocks += end - first;
	c->next_block = end;
	leaf = max_u64(first >> LEAF_SHIFT, c->next_leaf);
	leaf_end = (end + LEAF_ENTRIES - 1) >> LEAF_SHIFT;
	if (leaf < leaf_end) {
		c->leaves += leaf_end - leaf;
		c->next_leaf = leaf_end;
	}
	return 0;
}

static uint64_t file_bytes_for(const struct counting *c, uint64_t leaves_in_volume)
{
	uint64_t aus = MIN_FILE_AUS + (c->blocks << (c->shift - AU_SHIFT)) + c->leaves, nodes = c->leaves;

	while (leaves_in_volume > 1 && nodes) {
		leaves_in_volume = (leaves_in_volume + FANOUT - 1) >> FANOUT_SHIFT;
		nodes = min_u64(nodes, leaves_in_volume);
		aus += nodes;
	}
	/* Map pages of further groups; rests of the runs that writers and nodes took. */
	return au_off(aus + aus / GROUP_AUS * 2 + min_u64(MEASURE_SLACK_AUS, 16 + (c->blocks << (c->shift - AU_SHIFT)) / 2));
}

static int limg_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct limg_options o;
	struct counting c = {0}, full = {0};
	uint64_t leaves;
	int rc = options_parse(args->options, args->size_bytes, &o, err);

	if (rc)
		return rc;
	c.shift = full.shift = o.block_shift;
	if (args->each_data)
		rc = args->each_data(args->ctx, count_data, &c, err);
	if (args->size_bytes)
		count_data(&full, 0, args->size_bytes);
	leaves = full.leaves;
	out->required_bytes = file_bytes_for(&c, leaves);
	out->fully_allocated_bytes = file_bytes_for(&full, leaves);
	return rc;
}

const struct img_driver limg_driver = {
	.name = "limg",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct limg_state),
	.caps = IMG_CAP_WRITE | IMG_CAP_SNAPSHOTS | IMG_CAP_BACKING | IMG_CAP_RESIZE | IMG_CAP_DISCARD | IMG_CAP_COMPRESS |
		IMG_CAP_CHECK | IMG_CAP_VMSTATE | IMG_CAP_CHECKSUMS,
	.snapshots_beside_writer = true,
	.create_help = LIMG_OPTIONS_HELP,
	.probe = limg_probe,
	.create = limg_create,
	.open = limg_open,
	.close = limg_close,
	.size = limg_size,
	.limits = limg_limits,
	.pread = limg_pread,
	.pwrite = limg_pwrite,
	.zero = limg_zero,
	.discard = limg_discard,
	.flush = limg_flush,
	.status = limg_status,
	.resize = limg_resize,
	.get_backing = limg_get_backing,
	.set_backing = limg_set_backing,
	.pin = limg_pin,
	.snap_create = limg_snap_create,
	.snap_delete = limg_snap_delete,
	.snap_revert = limg_snap_revert,
	.snap_rename = limg_snap_rename,
	.snap_list = limg_snap_list,
	.snap_open = limg_snap_open,
	.snap_diff = limg_snap_diff,
	.vmstate_write = limg_vmstate_write,
	.vmstate_read = limg_vmstate_read,
	.vmstate_resize = limg_vmstate_resize,
	.vmstate_size = limg_vmstate_size,
	.info = limg_info,
	.measure = limg_measure,
	.check = limg_check,
};
