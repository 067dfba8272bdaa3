/* SPDX-License-Identifier: MIT */
/*
 * A team of threads that does one whole-image operation: the threads, the first error, cancellation and progress. The
 * caller's thread is a member, so a team of one makes no threads.
 */
#ifndef CORE_TEAM_H
#define CORE_TEAM_H

#include "libimg.h"

struct team;

/* What each member does until there is no work left or team_stopping(). Runs in several threads with one ctx. */
typedef int (*team_fn)(struct team *team, void *ctx, struct img_error *err);

/* Members where the caller did not say: one per processor that this process may use, at most 8. */
unsigned team_default_threads(void);

/*
 * Runs fn in `threads` members (0: the default; fewer where the host gives no more threads). Returns when all have
 * ended: 0, or the first failure among them, with its err. progress may be NULL; it hears of total_bytes at the end of
 * a success.
 */
int team_run(unsigned threads, const struct img_progress *progress, uint64_t total_bytes, team_fn fn, void *ctx,
	     struct img_error *err);

/* Has a member failed? Members that see it return 0. */
bool team_stopping(struct team *team);

/* Counts bytes as done and reports them now and then. IMG_E_CANCELLED when the callback says so: the member returns
 * that. */
int team_advance(struct team *team, uint64_t bytes, struct img_error *err);

#endif
