/* SPDX-License-Identifier: MIT */
/* The thread that makes checkpoints in the background, started when the overlay or the journal first grows. */
#include "checkpoint.h"

#define SOFT_ENTRIES 49152u /* overlay entries that wake the worker: about 6 MiB when scattered */
#define HARD_ENTRIES 98304u /* ... that make writers wait */

/* ---- the worker ---- */

static void *worker_main(void *arg)
{
	struct engine *e = arg;

	pthread_mutex_lock(&e->lock);
	for (;;) {
		struct ckpt_req req = { .action = CKPT_PLAIN };

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

void worker_wake(struct engine *e)
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
	struct ckpt_req req = { .action = CKPT_PLAIN };
	uint64_t pending = atomic_load_explicit(&e->nr_pending, memory_order_relaxed);

	if (pending < SOFT_ENTRIES)
		return 0;
	if (pending >= HARD_ENTRIES)
		return engine_checkpoint(e, &req, err);
	worker_wake(e);
	return 0;
}
