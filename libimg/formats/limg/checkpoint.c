/* SPDX-License-Identifier: MIT */
/*
 * Flush and checkpoint: the only code that syncs.
 *
 *   flush:      [journal] collect what no record names -> append one record -> sync once -> release what it superseded
 *   checkpoint: [ckpt] freeze (under [journal]) -> merge -> act -> free-space map -> sync -> superblock -> sync -> publish
 *
 * Both roles are held by flag over their I/O; callers that arrive meanwhile wait on one condition, and a flush that began after they
 * asked serves them too. After the freeze, flushes and writes go on; what they change stays in the active maps and in records
 * after the new tail. A failure once the freeze began poisons the handle: what the last superblock and the journal say is whole.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "checked.h"
#include "engine.h"

#define SOFT_ENTRIES 98304u  /* overlay entries that wake the worker: about 15 MiB when scattered */
#define HARD_ENTRIES 196608u /* ... that make writers wait */
#define PUNCH_AUS 16u	     /* runs returned to the host at once; shorter ones at close */

/* ---- poison ---- */

void engine_poison(struct engine *e, const struct img_error *cause)
{
	pthread_mutex_lock(&e->lock);
	if (!atomic_load(&e->poisoned)) {
		if (cause)
			e->poison = *cause;
		atomic_store(&e->poisoned, true);
	}
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

int engine_writable(struct engine *e, struct img_error *err)
{
	if (!e->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER, "the image is open read-only");
	if (e->space_bad)
		return error_set(err, IMG_E_CORRUPT, 0, e->space_cause.offset, LAYER,
				 "the free-space map is damaged: run imgtool check --repair (%.100s)", e->space_cause.msg);
	if (atomic_load(&e->poisoned))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again: %.120s", e->poison.msg);
	return 0;
}

/* ---- collecting deltas ---- */

static bool joins(const struct engine *e, const struct dentry *a, const struct dentry *b)
{
	if (b->slot != a->slot + 1 || b->journaled)
		return false;
	return b->word == (word_state(a->word) == ST_RAW ? a->word + e->block_aus : a->word);
}

static void collect_leaf(const struct engine *e, struct dleaf *d, struct record_buf *r)
{
	uint64_t csum[LEAF_ENTRIES];

	for (unsigned i = 0; i < d->nr;) {
		unsigned n = 1;

		if (d->e[i].journaled) {
			i++;
			continue;
		}
		csum[0] = d->e[i].csum;
		d->e[i].journaled = true;
		while (i + n < d->nr && joins(e, &d->e[i + n - 1], &d->e[i + n])) {
			csum[n] = d->e[i + n].csum;
			d->e[i + n].journaled = true;
			n++;
		}
		record_delta(r, d->vol, (d->index << LEAF_SHIFT) + d->e[i].slot, d->e[i].word, n, csum);
		i += n;
	}
}

/* shard lock held */
static void collect_shard(const struct engine *e, struct shard *s, struct record_buf *r, struct runs *superseded)
{
	while (s->dirty) {
		struct dleaf *d = s->dirty;

		s->dirty = d->next_dirty;
		d->on_dirty = false;
		collect_leaf(e, d, r);
	}
	runs_move(superseded, &s->deferred);
}

/* ---- roles ---- */

static void journal_begin(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	while (e->journal_busy)
		pthread_cond_wait(&e->cond, &e->lock);
	e->journal_busy = true;
	pthread_mutex_unlock(&e->lock);
}

static void journal_end(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	e->journal_busy = false;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

static void worker_wake(struct engine *e);

/* ---- flush ---- */

/* The leader's work. *gap: deltas were collected that no record names: only a checkpoint can make them durable. */
static int flush_lead(struct engine *e, bool *gap, struct img_error *err)
{
	struct journal *j = &e->journal;
	uint64_t count = atomic_load(&e->write_count);
	struct runs superseded = {0};
	struct record_buf r;
	int rc = 0;

	bool clean;

	*gap = false;
	pthread_mutex_lock(&e->lock);
	clean = count == e->synced_count && !e->journal_unsynced;
	e->journal_unsynced = false; /* set again by a freeze that appends after this sync began */
	pthread_mutex_unlock(&e->lock);
	if (clean)
		return 0;
	record_begin(&r);
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		pthread_mutex_lock(&e->shard[i].lock);
		collect_shard(e, &e->shard[i], &r, &superseded);
		pthread_mutex_unlock(&e->shard[i].lock);
	}
	if (r.nr_deltas || r.failed) {
		if (r.failed || !journal_has_room(j, record_bytes(&r)))
			*gap = true;
		else
			rc = journal_append(e, &r, err);
	}
	if (!rc && !*gap) {
		rc = node_flush(e->file, 0, err);
		if (!rc) {
			j->stable = j->seq - 1;
			pthread_mutex_lock(&e->lock);
			e->synced_count = max_u64(e->synced_count, count);
			pthread_mutex_unlock(&e->lock);
			space_free_runs(e, &superseded);
		}
	}
	/* After a failure the superseded space stays unavailable: this handle is done for. With a gap the checkpoint has it. */
	if (*gap)
		runs_move(&e->await.runs, &superseded);
	runs_free(&superseded);
	record_free(&r);
	if (!rc && j->used > au_off(j->aus) / 2)
		worker_wake(e);
	return rc;
}

static int flush_by_checkpoint(struct engine *e, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_PLAIN, .want_ring = true};

	return engine_checkpoint(e, &req, err);
}

int engine_flush(struct engine *e, struct img_error *err)
{
	struct img_error mine = {0};
	uint64_t ticket, covers;
	bool gap;
	int rc;

	if (!e->writable || e->bulk)
		return 0;
	pthread_mutex_lock(&e->lock);
	ticket = ++e->flush_asked;
	for (;;) {
		if (atomic_load(&e->poisoned)) {
			pthread_mutex_unlock(&e->lock);
			return engine_writable(e, err);
		}
		if (e->flush_done >= ticket) {
			pthread_mutex_unlock(&e->lock);
			return 0;
		}
		if (!e->has_ring || e->journal_gap || e->flush_waits) {
			bool clean = !e->journal_busy && !e->ckpt_busy && !e->journal_unsynced && !e->journal_gap &&
				     e->synced_count == atomic_load(&e->write_count);

			pthread_mutex_unlock(&e->lock);
			return clean ? 0 : flush_by_checkpoint(e, err);
		}
		if (!e->journal_busy)
			break;
		pthread_cond_wait(&e->cond, &e->lock);
	}
	e->journal_busy = true;
	covers = e->flush_asked;
	pthread_mutex_unlock(&e->lock);

	rc = flush_lead(e, &gap, &mine);
	if (rc)
		engine_poison(e, &mine);
	pthread_mutex_lock(&e->lock);
	if (!rc && !gap)
		e->flush_done = covers;
	if (gap)
		e->journal_gap = true;
	e->journal_busy = false;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
	if (rc && err)
		*err = mine;
	return gap ? flush_by_checkpoint(e, err) : rc;
}

/* ---- checkpoint: what is asked, checked before anything changes ---- */

static int prepare_snapshot(struct engine *e, const struct ckpt_req *req, struct img_error *err)
{
	struct snap *s = catalog_find(e, req->name);

	switch (req->action) {
	case CKPT_SNAP_CREATE:
		if (s)
			return error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER, "there is a snapshot of this name already");
		if (e->sb.epoch >= MAX_EPOCH - 1)
			return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "the image has used up its %u epochs: convert it to a new one", MAX_EPOCH);
		return 0;
	case CKPT_SNAP_RENAME:
		if (s && !strcmp(req->name, req->new_name))
			return 0;
		if (s && catalog_find(e, req->new_name))
			return error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER, "there is a snapshot of the new name already");
		break;
	case CKPT_SNAP_DELETE:
		if (s && s->nr_views)
			return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, LAYER, "the snapshot is being read");
		break;
	case CKPT_SNAP_REVERT:
		if (e->sb.epoch >= MAX_EPOCH - 1)
			return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER, "the image has used up its %u epochs: convert it to a new one", MAX_EPOCH);
		break;
	default:
		return 0;
	}
	return s ? 0 : error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot of this name");
}

static bool action_new_epoch(const struct ckpt_req *req)
{
	return req->action == CKPT_SNAP_CREATE || req->action == CKPT_SNAP_REVERT || (req->action == CKPT_BACKING && req->empty);
}

/* ---- freeze ---- */

/* Cuts the overlay: what completed before is in frozen, and in a record if there is a ring. */
static int freeze(struct ckpt *c, const struct ckpt_req *req, uint64_t *count, struct img_error *err)
{
	struct engine *e = c->e;
	struct journal *j = &e->journal;
	struct record_buf r;
	int rc = 0;

	record_begin(&r);
	journal_begin(e);
	*count = atomic_load(&e->write_count);
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct shard *s = &e->shard[i];

		pthread_mutex_lock(&s->lock);
		if (j->aus)
			collect_shard(e, s, &r, &e->await.runs);
		s->dirty = NULL;
		s->frozen = s->active;
		memset(&s->active, 0, sizeof s->active);
		if (action_new_epoch(req))
			s->epoch++;
		pthread_mutex_unlock(&s->lock);
	}
	pthread_mutex_lock(&e->lock);
	e->flush_waits = !j->aus || e->journal_gap || r.failed || (r.nr_deltas && !journal_has_room(j, record_bytes(&r)));
	e->journal_gap = false;
	pthread_mutex_unlock(&e->lock);
	if (j->aus && r.nr_deltas && !e->flush_waits) {
		rc = journal_append(e, &r, err);
		pthread_mutex_lock(&e->lock);
		e->journal_unsynced = true;
		pthread_mutex_unlock(&e->lock);
	}
	runs_move(&c->freed, &e->await.runs);
	c->next.ring_tail = j->head;
	c->next.ring_seq = j->seq;
	memcpy(c->next.ring_prev, j->prev, 16);
	journal_end(e);
	record_free(&r);
	return rc;
}

/* ---- merge of the frozen maps ---- */

static int by_place(const void *a, const void *b)
{
	const struct merge_leaf *x = a, *y = b;

	if (x->vol != y->vol)
		return x->vol < y->vol ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static int merge_frozen(struct ckpt *c, struct img_error *err)
{
	struct engine *e = c->e;
	struct merge_leaf *list;
	size_t nr = 0, disk = 0;
	int rc = 0;

	/* Only this thread changes frozen maps until they are published. */
	for (unsigned i = 0; i < NR_SHARDS; i++)
		nr += e->shard[i].frozen.nr_leaves;
	list = malloc((nr + 1) * sizeof(*list));
	if (!list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	nr = 0;
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct dmap *m = &e->shard[i].frozen;

		for (size_t b = 0; b < m->nr_buckets; b++)
			for (struct dleaf *d = m->bucket[b]; d; d = d->next)
				list[nr++] = (struct merge_leaf){d->vol, d->index, d};
	}
	if (nr)
		qsort(list, nr, sizeof(*list), by_place);
	while (disk < nr && list[disk].vol == VOL_DISK)
		disk++;
	c->next.vm.size_bytes = max_u64(c->next.vm.size_bytes, atomic_load(&e->vm_bytes));
	rc = merge_grow(c, VOL_VM, &c->next.vm, volume_levels_for(c->next.vm.size_bytes, e->block_shift), err);
	if (!rc)
		rc = merge_leaves(c, VOL_DISK, &c->next.disk, list, disk, err);
	if (!rc)
		rc = merge_leaves(c, VOL_VM, &c->next.vm, list + disk, nr - disk, err);
	free(list);
	return rc;
}

/* ---- actions ---- */

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int random_fill(void *out, size_t n, struct img_error *err)
{
	if (getrandom(out, n, 0) != (ssize_t)n)
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers from the kernel");
	return 0;
}

/* A record of the state that c->next describes. */
static int record_state(struct ckpt *c, struct snap *s, enum snap_state state, struct img_error *err)
{
	memset(s, 0, sizeof *s);
	s->state = state;
	s->id = c->next.next_id++;
	s->parent = c->next.head_parent;
	s->epoch = c->next.epoch;
	s->created_ns = now_ns();
	s->disk = c->next.disk;
	s->vm = c->next.vm;
	return random_fill(s->uuid, sizeof s->uuid, err);
}

static int act_create(struct ckpt *c, const struct ckpt_req *req, struct img_error *err)
{
	struct snap s;
	int rc = record_state(c, &s, SNAP_LIVE, err);

	if (rc)
		return rc;
	strcpy(s.name, req->name); /* checked to fit */
	s.has_vmstate = req->flags & IMG_SNAPSHOT_VMSTATE;
	rc = catalog_add(c->e, &s, NULL, err);
	c->next.head_parent = s.id;
	c->next.epoch++;
	return rc;
}

/* The head's content becomes a deleted record, to be reclaimed in time. */
static int head_to_record(struct ckpt *c, bool keep_vm, struct img_error *err)
{
	struct engine *e = c->e;
	struct snap *parent = catalog_by_id(e, c->next.head_parent), s;
	bool disk_same = word_state(c->next.disk.root.word) != ST_NODE ||
			 (parent && parent->disk.root.word == c->next.disk.root.word);
	bool vm_same = keep_vm || word_state(c->next.vm.root.word) != ST_NODE ||
		       (parent && parent->vm.root.word == c->next.vm.root.word);
	int rc;

	if (disk_same && vm_same)
		return 0; /* all of it is the parent's */
	rc = record_state(c, &s, SNAP_DELETED, err);
	if (keep_vm)
		memset(&s.vm, 0, sizeof s.vm);
	return rc ? rc : catalog_add(e, &s, NULL, err);
}

static int act_revert(struct ckpt *c, const struct ckpt_req *req, struct img_error *err)
{
	struct snap *s = catalog_find(c->e, req->name);
	int rc = head_to_record(c, false, err);

	if (rc)
		return rc;
	c->next.disk = s->disk;
	c->next.vm = s->vm;
	c->next.head_parent = s->id;
	c->next.epoch++;
	return 0;
}

/*
 * After a change of size from old to now: what lies beyond now in the leaf of the new end goes, and where `fill` is set, blocks
 * between old and now in the leaf of the old end become zeros.
 */
static int edge_leaf(struct ckpt *c, unsigned vol, struct volume *v, uint64_t first_block, uint64_t end_block,
		     enum entry_state st, struct img_error *err)
{
	struct dentry en[LEAF_ENTRIES];
	struct dleaf d = {.index = first_block >> LEAF_SHIFT, .vol = (uint8_t)vol, .e = en};
	struct merge_leaf m = {vol, d.index, &d};

	end_block = min_u64(end_block, (d.index + 1) << LEAF_SHIFT);
	for (uint64_t b = first_block; b < end_block; b++)
		en[d.nr++] = (struct dentry){st == ST_ZERO ? word_make(0, c->next.epoch, ST_ZERO) : 0, 0,
					     (uint8_t)(b & (LEAF_ENTRIES - 1)), true};
	return d.nr ? merge_leaves(c, vol, v, &m, 1, err) : 0;
}

/* The block in which `kept` lies holds zeros from there on, also where it was the backing's. */
static int cut_block(struct ckpt *c, unsigned vol, struct volume *v, uint64_t kept, bool copy_up, struct img_error *err)
{
	struct engine *e = c->e;
	uint64_t block = kept >> e->block_shift, in = kept & (e->block_bytes - 1), addr, got;
	struct snap here = {.disk = *v, .vm = *v};
	struct view view = {.e = e, .snap = &here, .disk = *v, .vm = *v};
	struct dentry en = {.slot = (uint8_t)(block & (LEAF_ENTRIES - 1))};
	struct dleaf d = {.index = block >> LEAF_SHIFT, .vol = (uint8_t)vol, .nr = 1, .e = &en};
	struct merge_leaf m = {vol, d.index, &d};
	struct status_extent x;
	uint8_t *buf;
	size_t nr;
	int rc = batch_flush(c, err);

	if (rc || !in)
		return rc;
	if (vol == VOL_DISK) {
		rc = view_status(&view, 512, kept - 512, &x, 1, &nr, err);
		if (rc || x.kind == STATUS_ZERO || (x.kind == STATUS_UNALLOCATED && !copy_up))
			return rc;
	}
	buf = calloc(1, e->block_bytes);
	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	rc = view_read(&view, vol, buf, in, block << e->block_shift, err);
	if (!rc)
		rc = space_alloc_data(e, e->block_aus, true, &addr, &got, err);
	if (!rc)
		rc = node_pwrite(e->file, buf, e->block_bytes, au_off(addr), 0, err);
	if (!rc) {
		en.word = word_make(addr, c->next.epoch, ST_RAW);
		en.csum = block_csum(buf, e->block_bytes);
		rc = merge_leaves(c, vol, v, &m, 1, err);
	}
	free(buf);
	return rc;
}

static int volume_resize(struct ckpt *c, unsigned vol, struct volume *v, uint64_t now, bool zero_new, struct img_error *err)
{
	unsigned shift = c->e->block_shift;
	uint64_t old = v->size_bytes, mask = c->e->block_bytes - 1;
	uint64_t old_blocks = (old + mask) >> shift, now_blocks = (now + mask) >> shift;
	int rc;

	if (now < old) {
		rc = cut_block(c, vol, v, now, false, err);
		if (!rc)
			rc = merge_range(c, vol, v, (now_blocks + LEAF_ENTRIES - 1) >> LEAF_SHIFT, level_leaves(MAX_LEVELS), ST_NONE, err);
		if (!rc && now_blocks % LEAF_ENTRIES)
			rc = edge_leaf(c, vol, v, now_blocks, old_blocks, ST_NONE, err);
		v->size_bytes = now;
		return rc;
	}
	rc = cut_block(c, vol, v, old, zero_new, err);
	if (!rc)
		rc = merge_grow(c, vol, v, volume_levels_for(now, shift), err);
	v->size_bytes = now;
	if (!rc && zero_new) {
		uint64_t first = (old_blocks + LEAF_ENTRIES - 1) >> LEAF_SHIFT;

		if (old_blocks % LEAF_ENTRIES)
			rc = edge_leaf(c, vol, v, old_blocks, now_blocks, ST_ZERO, err);
		if (!rc)
			rc = merge_range(c, vol, v, first, level_leaves(MAX_LEVELS), ST_ZERO, err);
	}
	return rc;
}

static int act_backing(struct ckpt *c, const struct ckpt_req *req, struct img_error *err)
{
	c->next.has_backing = req->ref != NULL;
	memset(&c->next.backing, 0, sizeof c->next.backing);
	if (req->ref)
		c->next.backing = *req->ref;
	if (req->empty) {
		int rc = head_to_record(c, true, err);

		if (rc)
			return rc;
		memset(&c->next.disk.root, 0, sizeof c->next.disk.root);
		c->next.epoch++;
	}
	return 0;
}

static int ring_drop(struct ckpt *c, struct img_error *err)
{
	int rc = 0;

	if (c->next.ring_aus)
		rc = ckpt_free(c, c->next.ring_addr, c->next.ring_aus, err);
	c->next.ring_addr = c->next.ring_aus = c->next.ring_tail = c->next.ring_seq = 0;
	memset(c->next.ring_prev, 0, 16);
	return rc;
}

static int ring_make(struct ckpt *c, struct img_error *err)
{
	struct engine *e = c->e;
	uint64_t aus = journal_ring_aus(e), got;
	int rc = space_alloc(e, aus, aus, &c->next.ring_addr, &got, err);

	if (!rc)
		rc = node_allocate(e->file, au_off(got), au_off(c->next.ring_addr), err);
	if (!rc)
		rc = space_persist_use(e, c->next.ring_addr, got, err);
	if (!rc)
		rc = random_fill(&c->next.salt, sizeof c->next.salt, err);
	c->next.ring_aus = got;
	c->next.ring_tail = 0;
	c->next.ring_seq = 1;
	memset(c->next.ring_prev, 0, 16);
	return rc;
}

static int act(struct ckpt *c, const struct ckpt_req *req, struct img_error *err)
{
	struct engine *e = c->e;
	struct snap *s;
	int rc = 0;

	switch (req->action) {
	case CKPT_PLAIN:
		if (req->want_ring && !c->next.ring_aus)
			rc = ring_make(c, err);
		break;
	case CKPT_SNAP_CREATE:
		rc = act_create(c, req, err);
		break;
	case CKPT_SNAP_DELETE:
		s = catalog_find(e, req->name);
		s->state = SNAP_DELETED;
		memset(s->name, 0, sizeof s->name);
		catalog_touch(e, s);
		break;
	case CKPT_SNAP_REVERT:
		rc = act_revert(c, req, err);
		break;
	case CKPT_SNAP_RENAME:
		s = catalog_find(e, req->name);
		memset(s->name, 0, sizeof s->name);
		strcpy(s->name, req->new_name); /* checked to fit */
		catalog_touch(e, s);
		break;
	case CKPT_RANGE:
		rc = merge_range(c, req->vol, req->vol == VOL_DISK ? &c->next.disk : &c->next.vm, req->first, req->nr, req->state, err);
		break;
	case CKPT_RESIZE:
		rc = volume_resize(c, VOL_DISK, &c->next.disk, req->size_bytes, c->next.has_backing, err);
		break;
	case CKPT_VM_RESIZE:
		rc = volume_resize(c, VOL_VM, &c->next.vm, req->size_bytes, false, err);
		break;
	case CKPT_BACKING:
		rc = act_backing(c, req, err);
		break;
	case CKPT_CLOSE:
	case CKPT_RECOVER:
		rc = ring_drop(c, err);
		break;
	}
	return rc;
}

/* ---- publish ---- */

static void boundary_set(struct ckpt *c)
{
	struct engine *e = c->e;
	struct snap *s = catalog_by_id(e, c->next.head_parent), *p = s ? catalog_by_id(e, s->parent) : NULL;

	c->boundary = s ? s->epoch : 0;
	if (s && s->state == SNAP_DELETED && s->cursor_vol) {
		c->boundary_before = p ? p->epoch : 0;
		c->cursor_vol = s->cursor_vol;
		c->cursor = s->cursor;
	}
}

static int make_durable(struct ckpt *c, const struct ckpt_req *req, struct img_error *err)
{
	struct engine *e = c->e;
	bool sync = !e->bulk || req->action == CKPT_CLOSE;
	int rc = batch_flush(c, err);

	if (!rc)
		rc = space_write(e, &c->next, err);
	c->next.generation++;
	if (!rc && sync)
		rc = node_flush(e->file, 0, err);
	if (!rc)
		rc = super_write(e->file, &c->next, err);
	if (!rc && sync)
		rc = node_flush(e->file, 0, err);
	return rc;
}

static void journal_follow(struct engine *e)
{
	struct journal *j = &e->journal;

	journal_begin(e);
	if (j->addr != e->sb.ring_addr || j->aus != e->sb.ring_aus) {
		memset(j, 0, sizeof *j);
		j->addr = e->sb.ring_addr;
		j->aus = e->sb.ring_aus;
		j->salt = e->sb.salt;
		j->seq = 1;
	} else {
		j->tail = e->sb.ring_tail;
		if (j->seq == e->sb.ring_seq)
			j->used = 0;
		else
			j->used = j->head > j->tail ? j->head - j->tail : au_off(j->aus) - j->tail + j->head;
	}
	journal_end(e);
}

static void publish(struct ckpt *c, uint64_t count)
{
	struct engine *e = c->e;

	e->sb = c->next;
	atomic_store(&e->disk_bytes, c->next.disk.size_bytes);
	for (unsigned i = 0; i < NR_SHARDS; i++) {
		struct shard *s = &e->shard[i];
		struct dmap done;

		pthread_mutex_lock(&s->lock);
		s->root[VOL_DISK] = c->next.disk.root;
		s->levels[VOL_DISK] = c->next.disk.levels;
		s->root[VOL_VM] = c->next.vm.root;
		s->levels[VOL_VM] = c->next.vm.levels;
		s->root_gen++;
		done = s->frozen;
		memset(&s->frozen, 0, sizeof s->frozen);
		pthread_mutex_unlock(&s->lock);
		dmap_free(e, &done);
	}
	/* Punched while still held: nobody can write there meanwhile. */
	runs_sort_merge(&c->freed);
	if (!e->bulk)
		space_punch(e, &c->freed, PUNCH_AUS);
	space_free_runs(e, &c->freed);
	journal_follow(e);
	pthread_mutex_lock(&e->lock);
	e->synced_count = max_u64(e->synced_count, count);
	e->flush_waits = false;
	e->has_ring = e->sb.ring_aus != 0;
	pthread_mutex_unlock(&e->lock);
}

static int run(struct ckpt *c, struct ckpt_req *req, struct img_error *err)
{
	struct engine *e = c->e;
	uint64_t count;
	int rc = freeze(c, req, &count, err);

	if (!rc)
		rc = merge_frozen(c, err);
	pthread_mutex_lock(&e->cat_lock);
	if (!rc)
		rc = act(c, req, err);
	pthread_mutex_unlock(&e->cat_lock);
	if (!rc && (req->reclaim_leaves || req->action == CKPT_SNAP_DELETE))
		rc = reclaim_step(c, req->reclaim_leaves, req->reclaim_small, &req->more, err);
	pthread_mutex_lock(&e->cat_lock);
	if (!rc)
		rc = catalog_store(c, err);
	pthread_mutex_unlock(&e->cat_lock);
	if (!rc)
		rc = make_durable(c, req, err);
	if (!rc && (req->action == CKPT_SNAP_REVERT || req->action == CKPT_VM_RESIZE))
		atomic_store(&e->vm_bytes, c->next.vm.size_bytes);
	if (!rc)
		publish(c, count);
	return rc;
}

int engine_checkpoint(struct engine *e, struct ckpt_req *req, struct img_error *err)
{
	struct img_error mine = {0};
	struct ckpt *c;
	int rc = engine_writable(e, err);

	if (rc)
		return rc;
	c = calloc(1, sizeof *c);
	if (c)
		c->batch = malloc(BATCH_PAGES * AU_BYTES);
	if (!c || !c->batch) {
		free(c);
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	pthread_mutex_lock(&e->lock);
	while (e->ckpt_busy)
		pthread_cond_wait(&e->cond, &e->lock);
	e->ckpt_busy = true;
	pthread_mutex_unlock(&e->lock);

	c->e = e;
	c->next = e->sb;
	rc = engine_writable(e, &mine);
	pthread_mutex_lock(&e->cat_lock);
	if (!rc && req->name)
		rc = prepare_snapshot(e, req, &mine);
	boundary_set(c);
	pthread_mutex_unlock(&e->cat_lock);
	if (!rc)
		rc = space_reserve(e, 0, &mine) == IMG_E_NOMEM ? IMG_E_NOMEM : 0;
	if (!rc) {
		e->dirty_session = true;
		rc = run(c, req, &mine);
		if (rc)
			engine_poison(e, &mine);
	}
	pthread_mutex_lock(&e->lock);
	e->ckpt_busy = false;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
	runs_free(&c->freed);
	free(c->batch);
	free(c);
	if (rc && err)
		*err = mine;
	return rc;
}

/* ---- the worker ---- */

static void *worker_main(void *arg)
{
	struct engine *e = arg;

	pthread_mutex_lock(&e->lock);
	for (;;) {
		struct ckpt_req req = {.action = CKPT_PLAIN};

		while (!e->worker_wanted && !e->worker_stop)
			pthread_cond_wait(&e->cond, &e->lock);
		if (e->worker_stop)
			break;
		e->worker_wanted = false;
		pthread_mutex_unlock(&e->lock);
		engine_checkpoint(e, &req, NULL); /* a failure poisons: the next caller hears of it */
		pthread_mutex_lock(&e->lock);
	}
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

static void worker_wake(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	if (!e->worker_started && !e->worker_stop)
		e->worker_started = pthread_create(&e->worker, NULL, worker_main, e) == 0;
	if (!e->worker_wanted && !e->ckpt_busy) {
		e->worker_wanted = true;
		pthread_cond_broadcast(&e->cond);
	}
	pthread_mutex_unlock(&e->lock);
}

void engine_stop_worker(struct engine *e)
{
	bool started;

	pthread_mutex_lock(&e->lock);
	e->worker_stop = true;
	started = e->worker_started;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
	if (started)
		pthread_join(e->worker, NULL);
}

int engine_throttle(struct engine *e, struct img_error *err)
{
	struct ckpt_req req = {.action = CKPT_PLAIN};
	uint64_t pending = atomic_load_explicit(&e->nr_pending, memory_order_relaxed);

	if (pending < SOFT_ENTRIES)
		return 0;
	if (pending >= HARD_ENTRIES)
		return engine_checkpoint(e, &req, err);
	worker_wake(e);
	return 0;
}
