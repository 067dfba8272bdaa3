/* SPDX-License-Identifier: MIT */
/*
 * The checkpoint; with flush.c the only code that syncs.
 *
 *   flush:      [journal] collect what no record names -> append one record -> sync once -> release what it superseded
 *   checkpoint: [ckpt] freeze (under [journal]) -> merge -> act -> free-space map -> sync -> superblock -> sync ->
 * publish
 *
 * Both roles are held by flag over their I/O; callers that arrive meanwhile wait on one condition, and a flush that
 * began after they asked serves them too. After the freeze, flushes and writes go on; what they change stays in the
 * active maps and in records after the new tail. A failure once the freeze began poisons the handle: what the last
 * superblock and the journal say is whole.
 */
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "checkpoint.h"

#define PUNCH_AUS 16u /* runs returned to the host at once; shorter ones at close */

/* ---- freeze ---- */

/* Cuts the overlay: what completed before is in frozen, and in a record if there is a ring. */
static int freeze(struct ckpt *c, const struct ckpt_req *req, uint64_t *count, struct img_error *err)
{
	struct engine *e = c->e;
	struct journal *j = &e->journal;
	struct record_buf r;
	bool gap;
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
	gap = !j->aus || e->journal_gap || r.failed || (r.nr_deltas && !journal_has_room(j, record_bytes(&r)));
	e->flush_waits = gap || action_beyond_deltas(req);
	e->journal_gap = false;
	pthread_mutex_unlock(&e->lock);
	if (r.nr_deltas && !gap) {
		rc = journal_append(e, &r, err);
		pthread_mutex_lock(&e->lock);
		e->journal_unsynced = true;
		pthread_mutex_unlock(&e->lock);
	}
	if (j->aus && e->flush_waits)
		journal_cut(e);
	runs_move(&c->freed, &e->await.runs);
	c->next.ring_tail = j->head;
	c->next.ring_seq = j->seq;
	memcpy(c->next.ring_prev, j->prev, 16);
	/* Before others may flush: what they would call durable stands on what was not written here. */
	if (rc)
		engine_poison(e, err);
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
				list[nr++] = (struct merge_leaf){ d->vol, d->index, d };
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
	if (j->addr != e->sb.ring_addr) { /* made or dropped: a ring never moves or changes its length */
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

	pthread_mutex_lock(&e->lock);
	e->sb = c->next;
	pthread_mutex_unlock(&e->lock);
	atomic_store(&e->has_backing, c->next.has_backing);
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
		rc = action_run(c, req, err);
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

void checkpoint_begin(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	while (e->ckpt_busy)
		pthread_cond_wait(&e->cond, &e->lock);
	e->ckpt_busy = true;
	pthread_mutex_unlock(&e->lock);
}

void checkpoint_end(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	e->ckpt_busy = false;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

int engine_checkpoint(struct engine *e, struct ckpt_req *req, struct img_error *err)
{
	struct img_error mine = { 0 };
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
	checkpoint_begin(e);
	c->e = e;
	c->next = e->sb;
	rc = engine_writable(e, &mine);
	pthread_mutex_lock(&e->cat_lock);
	if (!rc)
		rc = action_prepare(e, req, &mine);
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
	if (rc && req->action == CKPT_SNAP_DELETE) {
		struct snap *s;

		pthread_mutex_lock(&e->cat_lock);
		s = catalog_find(e, req->name);
		if (s)
			s->going = false;
		pthread_mutex_unlock(&e->cat_lock);
	}
	checkpoint_end(e);
	runs_free(&c->freed);
	free(c->batch);
	free(c);
	if (rc && err)
		*err = mine;
	return rc;
}
