/* SPDX-License-Identifier: MIT */
/*
 * Opening, recovering, creating and closing. States of a handle: read-only (replays in memory, writes nothing),
 * writable (recovered and checkpointed before it is handed out), poisoned (reads only), closed.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "budget.h"
#include "checked.h"
#include "engine.h"
#include "limg.h"
#include "options.h"

#define CACHE_BYTES  (UINT64_C(32) << 20) /* with the overlay's bound and the bitmaps: under 128 MiB for random writes */
#define OPEN_TRIES   8			  /* a reader beside a writer starts over when the catalog moved */
#define CLOSE_ROUNDS 64u

static struct limg_state *state_of(const struct node *n)
{
	return n->state;
}

/* ---- engine life ---- */

static void engine_free(struct engine *e)
{
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
	struct engine *e = aligned_alloc(64, (size_t)round_up(sizeof *e, 64));

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
	memcpy(e->uuid, sb->uuid, 16);
	e->codec = sb->codec;
	e->level = sb->level;
	atomic_store(&e->has_backing, sb->has_backing);
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

int recovery_claim(struct engine *e, struct img_error *err)
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
	struct ckpt_req req = { .action = CKPT_RECOVER };
	uint64_t claims;
	bool lost;
	int rc;

	if (e->sb.rocompat)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 24, LAYER,
				 "features 0x%llx are not known to this build: open it read-only",
				 (unsigned long long)e->sb.rocompat);
	if (space_load(e, &e->space_cause)) {
		if (e->space_cause.code != IMG_E_CORRUPT) {
			if (err)
				*err = e->space_cause;
			return e->space_cause.code;
		}
		e->space_bad = true; /* reading and repair go on */
	}
	rc = super_mend(e->file, &e->sb, &e->mended, err);
	if (rc)
		return rc;
	lost = super_other_slot_lost(e->file, &e->sb, &claims);
	e->mended |= lost;
	if (!e->sb.ring_aus) /* a checkpoint of what there is fills the lost slot */
		return lost && !e->space_bad ? engine_checkpoint(e, &req, err) : 0;
	rc = journal_recover(e, err);
	if (rc)
		return rc;
	if (e->journal_damaged)
		return error_set(
			err, IMG_E_CORRUPT, 0, au_off(e->sb.ring_addr), LAYER,
			"the journal lost records that were durable: read what is there, do not write (LIMG-15)");
	if (e->space_bad)
		return 0;
	rc = recovery_claim(e, err);
	return rc ? rc : engine_checkpoint(e, &req, err);
}

/* By the uuid of a pin where there is one: a snapshot may have been renamed, and another may have taken its name. */
static struct snap *wanted(struct engine *e, const struct driver_open *args)
{
	return args->snapshot_uuid ? catalog_by_uuid(e, args->snapshot_uuid) : catalog_find(e, args->snapshot);
}

static void snapshot_unlock(struct engine *e, struct limg_state *st)
{
	if (st->locked_id)
		snapshot_lock(e, st->locked_id, BYTE_UNLOCK, NULL);
	st->locked_id = 0;
}

/* What is held in memory whatever is asked for: the catalog, the groups' books, and the journal where it is replayed. */
static int judge_cost(const struct engine *e, const struct driver_open *args, struct img_error *err)
{
	const struct super *sb = &e->sb;
	uint64_t bytes = sb->nr_slots * (sizeof(struct snap) + sizeof(struct disk_snapshot)) +
			 sb->nr_groups * sizeof(struct group) + (args->snapshot ? 0 : au_off(sb->ring_aus));

	if (args->budget) /* the next try begins anew */
		budget_layer(args->budget);
	return budget_metadata(args->budget, e->node->path, bytes, err);
}

static int judge_content(const struct engine *e, const struct driver_open *args, struct img_error *err)
{
	const struct super *sb = &e->sb;
	uint64_t nr = 0, mapped = min_u64(sb->disk.root.count, sb->disk.size_bytes >> e->block_shift);
	int rc;

	for (size_t i = 0; i < e->nr_slots; i++)
		nr += e->snap[i] && e->snap[i]->state == SNAP_LIVE;
	rc = budget_snapshots(args->budget, e->node->path, nr, err);
	if (rc || args->snapshot || args->for_check)
		return rc;
	return budget_expansion(args->budget, e->node->path, mapped << e->block_shift, node_size(e->file), err);
}

/* *moved: the state that was being read is not the current one any more. */
static int load(struct engine *e, const struct driver_open *args, struct limg_state *st, bool *moved,
		struct img_error *err)
{
	unsigned damaged;
	struct snap *s = NULL;
	uint64_t generation;
	int rc = super_read(e->file, &e->sb, &damaged, err);

	if (!rc)
		rc = judge_cost(e, args, err);
	if (rc)
		return rc;
	engine_adopt(e);
	rc = catalog_load(e, &e->catalog_cause);
	if (rc) {
		e->catalog_bad = rc == IMG_E_CORRUPT || rc == IMG_E_IO;
		if (err)
			*err = e->catalog_cause;
		return rc;
	}
	rc = judge_content(e, args, err);
	if (rc || !args->snapshot)
		return rc;
	s = wanted(e, args);
	if (!s)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot %.64s", args->snapshot);
	/* Hold it, then make sure that it had not gone before we did. */
	generation = e->sb.generation;
	if (st->locked_id != s->id) {
		/* The one that had the name before is gone. */
		snapshot_unlock(e, st);
		rc = snapshot_lock(e, s->id, BYTE_SHARED, err);
		if (rc)
			return rc;
		st->locked_id = s->id;
		rc = super_read(e->file, &e->sb, &damaged, err);
		if (rc)
			return rc;
		*moved = e->sb.generation != generation;
		if (*moved)
			return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, LAYER,
					 "the image changes faster than it can be opened: try again");
	}
	s->nr_views++;
	st->view = (struct view){ .e = e, .snap = s, .disk = s->disk, .vm = s->vm };
	return 0;
}

/* The head does not need the catalog to be read. To be written it does: a state whose snapshots are not known would
 * take their space for free. */
static bool head_is_enough(const struct engine *e, const struct driver_open *args, struct img_error *err)
{
	if (!e->catalog_bad || args->snapshot)
		return false;
	if (e->writable)
		error_prefix(err, "it can be read, but not written");
	return !e->writable;
}

/*
 * Beside a writer what the superblock names may move while it is read, and the file may end before it: that looks like
 * damage or a failing disk once, and is over on the next try. Without a writer the same superblock means the same
 * failure. A superblock that cannot be read may be one that is just being replaced.
 */
static int load_retrying(struct node *n, const struct driver_open *args, struct engine **out, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	bool moved = true;
	int rc = 0;

	for (int i = 0; i < OPEN_TRIES && moved; i++) {
		struct engine *e = engine_new(n, n->file, args->cache_bytes, err);
		uint64_t generation;
		unsigned damaged;

		if (!e)
			return IMG_E_NOMEM;
		e->writable = args->writable && !args->snapshot;
		e->bulk = args->bulk;
		e->force_share = args->force_share;
		error_clear(err);
		moved = false;
		rc = load(e, args, st, &moved, err);
		if (!rc) {
			*out = e;
			return 0;
		}
		generation = e->sb.generation;
		if (!moved && (rc == IMG_E_CORRUPT || rc == IMG_E_IO))
			moved = super_read(n->file, &e->sb, &damaged, NULL) || e->sb.generation != generation;
		if (!moved && head_is_enough(e, args, err)) {
			catalog_destroy(e);
			error_clear(err);
			*out = e;
			return 0;
		}
		if (!moved || i + 1 == OPEN_TRIES)
			snapshot_unlock(e, st);
		engine_free(e);
	}
	return rc;
}

int limg_open(struct node *n, const struct driver_open *args, struct img_error *err)
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
		st->view = (struct view){ .e = e };
	st->e = e;
	st->owns = true;
	return 0;
}

/* ---- close ---- */

/* What deleted snapshots hold is given back, as long as that takes no time to speak of. */
static int close_reclaims(struct engine *e, struct img_error *err)
{
	int rc = 0;

	/* What was written does not depend on what becomes of deleted snapshots. */
	if (reclaim_possible(e, e->sb.head_parent))
		rc = engine_flush(e, err);
	for (unsigned i = 0; !rc && reclaim_possible(e, e->sb.head_parent); i++) {
		struct ckpt_req step = { .action = CKPT_PLAIN, .reclaim_leaves = RECLAIM_LEAVES };

		if (i == CLOSE_ROUNDS) /* GCOV_EXCL_BR_LINE: a million leaves, 1 TiB of data */
			break;
		rc = engine_checkpoint(e, &step, err);
	}
	return rc;
}

/* A device stays as long as it is: what is behind the image is nobody's. */
static int cut_file(struct engine *e, struct img_error *err)
{
	struct host_stat host;

	if (node_size(e->file) <= e->sb.file_bytes || (node_stat(e->file, &host, NULL) == 0 && host.is_block_device))
		return 0;
	return node_resize(e->file, e->sb.file_bytes, err);
}

static int close_writable(struct engine *e, struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_CLOSE };
	int rc = 0;

	engine_stop_worker(e);
	if (atomic_load(&e->poisoned))
		return engine_writable(e, err);
	if (atomic_load(&e->write_count) && !e->bulk)
		rc = close_reclaims(e, err);
	if (!rc && !e->space_bad && (engine_unmerged(e) || e->sb.ring_aus || e->bulk))
		rc = engine_checkpoint(e, &req, err);
	if (rc || !e->dirty_session || e->space_bad)
		return rc;
	space_streams_release(e);
	space_pool_release(e);
	space_punch_touched(e);
	return cut_file(e, err);
}

int limg_close(struct node *n, struct img_error *err)
{
	struct limg_state *st = state_of(n);
	struct engine *e = st->e;
	int rc = 0;

	if (st->view.snap) {
		pthread_mutex_lock(&e->cat_lock);
		st->view.snap->nr_views--;
		pthread_mutex_unlock(&e->cat_lock);
	}
	if (!st->owns)
		return 0;
	if (e->writable)
		rc = close_writable(e, err);
	snapshot_unlock(e, st);
	engine_free(e);
	st->e = NULL;
	return rc;
}

/* ---- create ---- */

int limg_create(struct node *file, const struct driver_create *args, struct img_error *err)
{
	struct ckpt_req req = { .action = CKPT_CLOSE };
	struct limg_options o;
	struct engine *e;
	struct timespec now;
	uint8_t uuid[16];
	int rc = options_parse(args->options, args->size_bytes, &o, err);

	if (rc)
		return rc;
	if (args->size_bytes % 512 || args->size_bytes > MAX_VOLUME_BYTES)
		return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, LAYER,
				 "a limg disk is a multiple of 512 bytes, at most 32 TiB");
	if (getrandom(uuid, 16, 0) != 16) /* GCOV_EXCL_BR_LINE: once it is seeded, the kernel has 16 bytes */
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers from the kernel");
	e = engine_new(NULL, file, 0, err);
	if (!e)
		return IMG_E_NOMEM;
	clock_gettime(CLOCK_REALTIME, &now);
	e->writable = e->bulk = true;
	e->sb = (struct super){ .block_shift = o.block_shift,
				.unit_shift = o.unit_shift,
				.codec = o.codec,
				.level = o.level,
				.epoch = 1,
				.next_id = 1,
				.created_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec };
	e->sb.disk.size_bytes = args->size_bytes;
	e->sb.disk.levels = volume_levels_for(args->size_bytes, o.block_shift);
	if (args->backing) {
		e->sb.has_backing = true;
		e->sb.backing = *args->backing;
	}
	memcpy(e->sb.uuid, uuid, sizeof uuid);
	e->sb.uuid[6] = (uint8_t)((e->sb.uuid[6] & 0x0f) | 0x40); /* RFC 4122, version 4 */
	e->sb.uuid[8] = (uint8_t)((e->sb.uuid[8] & 0x3f) | 0x80);
	engine_adopt(e);
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
