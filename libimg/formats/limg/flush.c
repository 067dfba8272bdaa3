/* SPDX-License-Identifier: MIT */
/*
 * The flush: what no record names yet goes into one record, then one sync serves everybody who asked meanwhile. Also
 * who may change the image at all (poison). The picture of flush and checkpoint together is in checkpoint.c.
 */
#include <string.h>

#include "checked.h"
#include "checkpoint.h"

/* ---- poison ---- */

void engine_poison(struct engine *e, const struct img_error *cause)
{
	pthread_mutex_lock(&e->lock);
	if (!atomic_load(&e->poisoned)) {
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
				 "the free-space map is damaged: run imgtool check --repair (%s)", e->space_cause.msg);
	if (atomic_load(&e->poisoned))
		return error_set(err, IMG_E_POISONED, 0, NO_OFFSET, LAYER,
				 "an earlier failure forbids changes until the image is opened again: %s",
				 e->poison.msg);
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
void collect_shard(const struct engine *e, struct shard *s, struct record_buf *r, struct runs *superseded)
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

void journal_begin(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	while (e->journal_busy)
		pthread_cond_wait(&e->cond, &e->lock);
	e->journal_busy = true;
	pthread_mutex_unlock(&e->lock);
}

void journal_end(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	e->journal_busy = false;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

/* ---- flush ---- */

/* The leader's work. *gap: deltas were collected that no record names: only a checkpoint can make them durable. */
static int flush_lead(struct engine *e, bool *gap, struct img_error *err)
{
	struct journal *j = &e->journal;
	uint64_t count = atomic_load(&e->write_count);
	struct runs superseded = { 0 };
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
	/* After a failure the superseded space stays unavailable: this handle is done for. With a gap the checkpoint
	 * has it. */
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
	struct ckpt_req req = { .action = CKPT_PLAIN, .want_ring = true };

	return engine_checkpoint(e, &req, err);
}

bool engine_unmerged(struct engine *e)
{
	bool grew;

	pthread_mutex_lock(&e->lock);
	grew = atomic_load(&e->vm_bytes) != e->sb.vm.size_bytes;
	pthread_mutex_unlock(&e->lock);
	return grew || !overlay_empty(e);
}

int engine_flush(struct engine *e, struct img_error *err)
{
	struct img_error mine = { 0 };
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
