/* SPDX-License-Identifier: MIT */
/* Between flush.c, checkpoint.c, actions.c and worker.c. */
#ifndef LIMG_CHECKPOINT_H
#define LIMG_CHECKPOINT_H

#include "engine.h"

/* Holds the journal's role: nobody else appends or syncs a record. */
void journal_begin(struct engine *e);
void journal_end(struct engine *e);
/* Deltas that no record names, into r; blocks that they supersede, into superseded. The shard's lock is held. */
void collect_shard(const struct engine *e, struct shard *s, struct record_buf *r, struct runs *superseded);
/* Errors that leave everything unchanged. */
int action_prepare(struct engine *e, const struct ckpt_req *req, struct img_error *err);
/* Do entries written from the freeze on belong to a new epoch? */
bool action_new_epoch(const struct ckpt_req *req);
/* Is the disk another one after it than the journal's deltas make of the last superblock? Nobody flushes meanwhile. */
bool action_beyond_deltas(const struct ckpt_req *req);
int action_run(struct ckpt *c, const struct ckpt_req *req, struct img_error *err);
void worker_wake(struct engine *e);

#endif
