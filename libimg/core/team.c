/* SPDX-License-Identifier: MIT */
/*
 * Teams of threads. The progress callback is called by whichever member finds that 50 ms have passed and that no other
 * is calling it; the right to call is an atomic flag rather than a lock, so that nobody waits for a slow callback.
 */
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "checked.h"
#include "error.h"

#define MAX_DEFAULT_THREADS 8u
#define MAX_THREADS	    64u
#define REPORT_INTERVAL_NS  50000000

struct team {
	team_fn fn;
	void *ctx;
	const struct img_progress *progress; /* NULL if nobody listens */
	uint64_t total_bytes;
	_Atomic uint64_t done_bytes;
	atomic_bool stopping;
	atomic_bool reporting; /* a member is in the callback, or decides whether to be */
	_Atomic int64_t next_report_ns;

	pthread_mutex_t lock;
	int code;	      /* lock: first failure */
	struct img_error err; /* lock: its error */
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

unsigned team_default_threads(void)
{
	cpu_set_t set;
	int n;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 2;
	n = CPU_COUNT(&set);
	return n < 1 ? 1 : (unsigned)min_u64((uint64_t)n, MAX_DEFAULT_THREADS);
}

bool team_stopping(struct team *team)
{
	return atomic_load_explicit(&team->stopping, memory_order_relaxed);
}

int team_advance(struct team *team, uint64_t bytes, struct img_error *err)
{
	int cancel = 0;
	int64_t now;

	atomic_fetch_add_explicit(&team->done_bytes, bytes, memory_order_relaxed);
	if (!team->progress)
		return 0;
	now = now_ns();
	if (now < atomic_load_explicit(&team->next_report_ns, memory_order_relaxed))
		return 0;
	if (atomic_exchange_explicit(&team->reporting, true, memory_order_acquire))
		return 0;
	/* Another member may have reported since, and more. */
	if (now >= atomic_load_explicit(&team->next_report_ns, memory_order_relaxed)) {
		uint64_t done = atomic_load_explicit(&team->done_bytes, memory_order_relaxed);

		cancel = team->progress->fn(team->progress->ctx, min_u64(done, team->total_bytes), team->total_bytes);
		atomic_store_explicit(&team->next_report_ns, now_ns() + REPORT_INTERVAL_NS, memory_order_relaxed);
	}
	atomic_store_explicit(&team->reporting, false, memory_order_release);
	return cancel ? error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, "core", "cancelled") : 0;
}

static void member(struct team *team)
{
	struct img_error err;
	int r;

	error_clear(&err);
	r = team->fn(team, team->ctx, &err);
	if (r == 0)
		return;
	pthread_mutex_lock(&team->lock);
	if (team->code == 0) {
		team->code = r;
		team->err = err;
	}
	pthread_mutex_unlock(&team->lock);
	atomic_store_explicit(&team->stopping, true, memory_order_relaxed);
}

static void *member_thread(void *opaque)
{
	member(opaque);
	return NULL;
}

/* Starts what the host gives; signals stay with the caller's threads, whose handlers they are meant for. */
static unsigned start_members(struct team *team, pthread_t *threads, unsigned nr)
{
	sigset_t all, old;
	unsigned i;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (i = 0; i < nr; i++)
		if (pthread_create(&threads[i], NULL, member_thread, team) != 0)
			break;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return i;
}

int team_run(unsigned threads, const struct img_progress *progress, uint64_t total_bytes, team_fn fn, void *ctx,
	     struct img_error *err)
{
	struct team team = {
		.fn = fn,
		.ctx = ctx,
		.progress = progress && progress->fn ? progress : NULL,
		.total_bytes = total_bytes,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	pthread_t others[MAX_THREADS - 1];
	unsigned nr;

	if (threads == 0)
		threads = team_default_threads();
	if (threads > MAX_THREADS)
		threads = MAX_THREADS;
	nr = start_members(&team, others, threads - 1);
	member(&team);
	for (unsigned i = 0; i < nr; i++)
		pthread_join(others[i], NULL);
	pthread_mutex_destroy(&team.lock);
	if (team.code == 0 && team.progress && team.progress->fn(team.progress->ctx, total_bytes, total_bytes))
		return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, "core", "cancelled");
	if (team.code != 0 && err)
		*err = team.err;
	return team.code;
}
