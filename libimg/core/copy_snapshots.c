/* SPDX-License-Identifier: MIT */
/*
 * Carrying internal snapshots over into a new image: parents before children, each as the difference from the state
 * that the target is in, so that the target shares between snapshots what the source shares. Where the next one grew
 * from another state, the target is reverted to that first. The head comes last, from whichever snapshot it differs
 * least from.
 *
 * Snapshots without a parent, of which there may be several, are roots in the copy as well. They mostly have a deleted
 * ancestor in common, which cannot be read; the content of the first root stands in for it under a name of its own (the
 * stem), and is deleted like it in the end. So they share in the copy what they share in the source. Formats that do
 * not say who was made on whom get a line: each one from the one before.
 *
 * Machine state is compared with what the target's working volume holds from the snapshot before, block by block:
 * states share what they have in common, and zeros take no space, whatever the source made of either.
 *
 * Differences say where the source's own layer changed; the content is then read through the snapshot, backing chain
 * included, so the result is right whatever either image stands on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "copy.h"
#include "error.h"
#include "image_int.h"
#include "is_zero.h"
#include "transfer.h"

#define CHANGES_AT_ONCE	    65536u /* bounds memory: a longer difference is walked again for its next part */
#define VMSTATE_PIECE_BYTES (UINT64_C(1) << 20)
#define VMSTATE_LEAST_BYTES UINT64_C(4096) /* what is compared at once: a page of the machine */
#define NOWHERE		    SIZE_MAX

struct change {
	uint64_t off, bytes;
	bool zero;
};

/* A part of the difference between two states, in ascending order. */
struct changes {
	struct change *list;
	size_t nr, at;	   /* at: where the plan is */
	uint64_t from_off; /* what lies before was applied already */
	bool unmapped_is_zero;
	bool more; /* there was no room for the rest */
};

/* Progress over several transfers: the total grows as they begin. */
struct relay {
	const struct img_progress *outer;
	uint64_t before_bytes;
};

struct carry {
	struct img *src, *base, *dst;
	struct img_copy_options opts;
	struct relay relay;
	struct img_progress progress; /* that goes through relay */
	struct img_snapshot *snaps;
	size_t nr_snaps;
	size_t state;  /* index of the snapshot whose content the target's head has; NOWHERE: it is new */
	char stem[32]; /* name of a snapshot of the target that has the content of the first root; "": not needed */
	struct changes changes;
};

static int relay_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes)
{
	const struct relay *relay = ctx;

	return relay->outer->fn(relay->outer->ctx, relay->before_bytes + done_bytes, relay->before_bytes + total_bytes);
}

/* ---- differences ------------------------------------------------------------------------------------------------- */

static int note_change(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	struct changes *ch = ctx;

	if (off + bytes <= ch->from_off)
		return 0;
	if (ch->nr == CHANGES_AT_ONCE) {
		ch->more = true;
		return 1;
	}
	if (off < ch->from_off) {
		bytes -= ch->from_off - off;
		off = ch->from_off;
	}
	ch->list[ch->nr++] = (struct change){
		.off = off,
		.bytes = bytes,
		.zero = kind == IMG_DIFF_ZERO || (kind == IMG_DIFF_UNMAPPED && ch->unmapped_is_zero),
	};
	return 0;
}

static int plan_changes(void *ctx, uint64_t off, uint64_t *bytes, enum transfer_action *action, struct img_error *err)
{
	struct changes *ch = ctx;
	const struct change *c;

	(void)err;
	while (ch->at < ch->nr && off >= ch->list[ch->at].off + ch->list[ch->at].bytes)
		ch->at++;
	*action = TRANSFER_SKIP;
	*bytes = UINT64_MAX - off;
	if (ch->at == ch->nr)
		return 0;
	c = &ch->list[ch->at];
	if (off < c->off) {
		*bytes = c->off - off;
		return 0;
	}
	*action = c->zero ? TRANSFER_ZERO : TRANSFER_DATA;
	*bytes = c->bytes - (off - c->off);
	return 0;
}

/* Reads the next part of the difference from snapshot a to b (NULL: the head). */
static int read_changes(struct carry *c, const char *a, const char *b, struct img_error *err)
{
	struct changes *ch = &c->changes;
	int r;

	ch->nr = 0;
	ch->at = 0;
	ch->more = false;
	r = img_snapshot_diff(c->src, a, b, note_change, ch, err);
	if (r == IMG_E_CANCELLED && ch->more) {
		error_clear(err);
		return 0;
	}
	return r;
}

static int apply_difference(struct carry *c, const char *a, const char *b, struct img *content, struct img_error *err)
{
	struct transfer transfer = {
		.src = content,
		.dst = c->dst,
		.bytes = img_size(c->dst),
		.flags = c->opts.flags & ~(unsigned)IMG_COPY_TARGET_ZERO, /* older states hold data */
		.plan = plan_changes,
		.ctx = &c->changes,
	};
	int r;

	c->changes.from_off = 0;
	do {
		r = read_changes(c, a, b, err);
		if (r == 0)
			r = transfer_run(&transfer, c->opts.threads, &c->progress, err);
		if (r < 0)
			return r;
		c->relay.before_bytes += transfer.bytes;
		if (c->changes.nr > 0) {
			const struct change *last = &c->changes.list[c->changes.nr - 1];

			c->changes.from_off = last->off + last->bytes;
		}
	} while (c->changes.more);
	return 0;
}

/* ---- states ------------------------------------------------------------------------------------------------------ */

/* Gives the target's head the content of b (NULL: the head), which `content` reads. */
static int bring_content(struct carry *c, const char *b, struct img *content, uint64_t size_bytes,
			 struct img_error *err)
{
	struct img_copy_options opts = c->opts;
	int r = 0;

	if (img_size(c->dst) != size_bytes)
		r = img_resize(c->dst, size_bytes, IMG_RESIZE_SHRINK, err);
	if (r < 0)
		return r;
	if (c->state != NOWHERE)
		return apply_difference(c, c->snaps[c->state].name, b, content, err);
	opts.progress = c->progress;
	/* After a resize the target no longer reads as its backing everywhere: the difference is taken from itself. */
	r = copy_content(content, c->base ? c->dst : NULL, c->dst, &opts, err);
	c->relay.before_bytes += size_bytes;
	return r;
}

/* Machine state on its way into the target's working volume. */
struct state_copy {
	struct img *src, *dst;
	const char *name;		   /* of the source's snapshot; NULL: its working volume */
	uint64_t block_bytes, piece_bytes; /* of the target; powers of two, a piece is whole blocks */
	uint8_t *buf, *have;		   /* a piece each: of the source, of the target */
};

enum state_change { STATE_SAME, STATE_ZERO, STATE_DATA };

static enum state_change change_of(const struct state_copy *sc, uint64_t at, uint64_t bytes)
{
	if (memcmp(sc->buf + at, sc->have + at, (size_t)bytes) == 0)
		return STATE_SAME;
	return is_zero(sc->buf + at, (size_t)bytes) ? STATE_ZERO : STATE_DATA;
}

static int bring_run(const struct state_copy *sc, enum state_change change, uint64_t at, uint64_t bytes, uint64_t off,
		     struct img_error *err)
{
	if (change == STATE_DATA)
		return img_vmstate_write(sc->dst, sc->buf + at, bytes, off + at, err);
	return change == STATE_ZERO ? img_vmstate_zero(sc->dst, bytes, off + at, err) : 0;
}

/* Reads both, and changes the blocks that differ: what the target holds from the snapshot before stays shared with it. */
static int bring_piece(const struct state_copy *sc, uint64_t bytes, uint64_t off, struct img_error *err)
{
	enum state_change last = STATE_SAME;
	uint64_t from = 0, step;
	int r = img_vmstate_read(sc->src, sc->name, sc->buf, bytes, off, err);

	if (r == 0)
		r = img_vmstate_read(sc->dst, NULL, sc->have, bytes, off, err);
	for (uint64_t at = 0; at < bytes && r == 0; at += step) {
		enum state_change change;

		step = min_u64(sc->block_bytes - (off + at) % sc->block_bytes, bytes - at);
		change = change_of(sc, at, step);
		if (change == last)
			continue;
		r = bring_run(sc, last, from, at - from, off, err);
		last = change;
		from = at;
	}
	return r == 0 ? bring_run(sc, last, from, bytes - from, off, err) : r;
}

/* What begins at off where the source has a hole: *step bytes. */
static int bring_hole(const struct state_copy *sc, uint64_t off, uint64_t *step, struct img_error *err)
{
	uint64_t bytes = *step;
	bool hole;
	int r = image_vmstate_hole(sc->dst, NULL, bytes, off, &hole, step, err);

	return r == 0 && !hole ? img_vmstate_zero(sc->dst, *step, off, err) : r;
}

static int bring_state(const struct state_copy *sc, uint64_t bytes, struct img_error *err)
{
	int r = 0;

	for (uint64_t off = 0, step; off < bytes && r == 0; off += step) {
		bool hole;

		r = image_vmstate_hole(sc->src, sc->name, bytes - off, off, &hole, &step, err);
		if (r == 0 && hole) {
			r = bring_hole(sc, off, &step, err);
			continue;
		}
		step = min_u64(sc->piece_bytes - off % sc->piece_bytes, bytes - off);
		if (r == 0)
			r = bring_piece(sc, step, off, err);
	}
	return r;
}

/* The target's working volume gets the machine state of a snapshot (NULL: the working one). */
static int bring_vmstate(struct carry *c, const char *name, uint64_t bytes, struct img_error *err)
{
	struct state_copy sc = { .src = c->src, .dst = c->dst, .name = name };
	struct driver_limits limits;
	int r = img_vmstate_resize(c->dst, bytes, err);

	if (r < 0 || bytes == 0)
		return r;
	node_limits(c->dst->top, &limits);
	sc.block_bytes = max_u64(limits.block_bytes, VMSTATE_LEAST_BYTES);
	sc.piece_bytes = max_u64(sc.block_bytes, VMSTATE_PIECE_BYTES);
	sc.buf = malloc((size_t)sc.piece_bytes);
	sc.have = malloc((size_t)sc.piece_bytes);
	r = sc.buf && sc.have ? bring_state(&sc, bytes, err) :
				error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a copy buffer");
	free(sc.buf);
	free(sc.have);
	return r;
}

static size_t find_snapshot(const struct carry *c, uint64_t id)
{
	for (size_t i = 0; i < c->nr_snaps; i++)
		if (c->snaps[i].id == id)
			return i;
	return NOWHERE;
}

static bool name_taken(const struct carry *c, const char *name)
{
	for (size_t i = 0; i < c->nr_snaps; i++)
		if (strcmp(c->snaps[i].name, name) == 0)
			return true;
	return false;
}

/* The first of the list is a root: parents are older than their children. */
static void choose_stem(struct carry *c)
{
	size_t roots = 0;

	if (!c->src->top->drv->snapshots_have_parents || !c->dst->top->drv->snapshots_have_parents)
		return;
	for (size_t i = 0; i < c->nr_snaps && roots < 2; i++)
		roots += find_snapshot(c, c->snaps[i].parent) == NOWHERE;
	if (roots < 2)
		return;
	for (unsigned n = 0; n == 0 || name_taken(c, c->stem); n++)
		snprintf(c->stem, sizeof(c->stem), "stem-%u", n);
}

/* Takes the target to the state that a snapshot grew from. */
static int go_back(struct carry *c, size_t parent, struct img_error *err)
{
	int r = 0;

	if (parent != NOWHERE && parent != c->state) {
		r = img_snapshot_revert(c->dst, c->snaps[parent].name, err);
		c->state = parent;
	} else if (parent == NOWHERE && c->stem[0] && c->state != NOWHERE) {
		r = img_snapshot_revert(c->dst, c->stem, err);
		c->state = 0;
	}
	return r;
}

static int bring_snapshot(struct carry *c, size_t i, struct img_error *err)
{
	const struct img_snapshot *s = &c->snaps[i];
	struct img *view;
	int r = go_back(c, find_snapshot(c, s->parent), err);

	if (r == 0)
		r = img_snapshot_open(c->src, s->name, &view, err);
	if (r != 0)
		return r;
	r = bring_content(c, s->name, view, img_size(view), err);
	(void)img_close(view, NULL); /* it is read-only: there is nothing to lose */
	if (r == 0 && i == 0 && c->stem[0])
		r = img_snapshot_create(c->dst, c->stem, 0, err);
	if (r == 0 && s->vmstate_bytes > 0)
		r = bring_vmstate(c, s->name, s->vmstate_bytes, err);
	if (r == 0)
		r = image_snapshot_create_at(c->dst, s->name, s->vmstate_bytes > 0 ? IMG_SNAPSHOT_VMSTATE : 0,
					     &s->created_ns, err);
	c->state = i;
	return r;
}

/* ---- the head ---------------------------------------------------------------------------------------------------- */

struct tally {
	uint64_t bytes, stop_at;
};

static int tally_change(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	struct tally *t = ctx;

	(void)off;
	(void)kind;
	t->bytes += bytes;
	return t->bytes >= t->stop_at;
}

/* The snapshot from which the head differs least, the youngest of equals: no difference is walked further than the best
 * one so far. */
static int nearest_to_head(struct carry *c, size_t *out, struct img_error *err)
{
	uint64_t best = UINT64_MAX;

	*out = c->nr_snaps - 1;
	for (size_t i = c->nr_snaps; i-- > 0 && best > 0;) {
		struct tally tally = { .stop_at = best };
		int r = img_snapshot_diff(c->src, c->snaps[i].name, NULL, tally_change, &tally, err);

		if (r == IMG_E_CANCELLED && tally.bytes >= best) {
			error_clear(err);
			continue;
		}
		if (r < 0)
			return r;
		if (tally.bytes < best) {
			best = tally.bytes;
			*out = i;
		}
	}
	return 0;
}

static int bring_head(struct carry *c, uint64_t size_bytes, struct img_error *err)
{
	uint64_t vmstate_bytes = 0;
	size_t from;
	int r = nearest_to_head(c, &from, err);

	if (r == 0 && from != c->state) {
		r = img_snapshot_revert(c->dst, c->snaps[from].name, err);
		c->state = from;
	}
	if (r == 0)
		r = bring_content(c, NULL, c->src, size_bytes, err);
	if (r == 0 && c->src->top->drv->caps & IMG_CAP_VMSTATE)
		r = img_vmstate_size(c->src, NULL, &vmstate_bytes, err);
	if (r == 0 && c->dst->top->drv->caps & IMG_CAP_VMSTATE)
		r = bring_vmstate(c, NULL, vmstate_bytes, err);
	return r;
}

/* Names from elsewhere may be longer, hold anything, and stand there twice: then they say neither which snapshot is
 * meant nor what to call the copy. */
static int check_name(struct carry *c, size_t i, struct img_error *err)
{
	const struct img_snapshot *s = &c->snaps[i];
	struct img *view = NULL;
	const char *why = image_check_snapshot_name(s->name, NULL) < 0 ? "has a name that the copy cannot have" : NULL;

	for (size_t k = 0; k < i && !why; k++)
		if (strcmp(c->snaps[k].name, s->name) == 0)
			why = "has the name of another";
	/* One that was too long for the list is not found by what the list says. */
	if (!why && strlen(s->name) + 4 > IMG_SNAPSHOT_NAME_MAX) {
		if (img_snapshot_open(c->src, s->name, &view, NULL) == IMG_E_NOENT)
			why = "has a name that the copy cannot have";
		(void)img_close(view, NULL);
	}
	if (!why)
		return 0;
	return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, "core",
			 "snapshot %llu of the source %s: rename it by its id, or leave the snapshots out",
			 (unsigned long long)s->id, why);
}

static int read_list(struct carry *c, struct img_error *err)
{
	struct img_snapshot first;
	size_t nr = 0;
	int r = img_snapshot_list(c->src, &first, 1, &nr, err);

	if (r < 0)
		return r;
	c->snaps = calloc(nr ? nr : 1, sizeof(*c->snaps));
	c->changes.list = calloc(CHANGES_AT_ONCE, sizeof(*c->changes.list));
	if (!c->snaps || !c->changes.list)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "core", "no memory for a list of snapshots");
	r = img_snapshot_list(c->src, c->snaps, nr, &c->nr_snaps, err);
	c->nr_snaps = (size_t)min_u64(c->nr_snaps, nr);
	for (size_t i = 0; i < c->nr_snaps && r == 0; i++)
		r = check_name(c, i, err);
	return r;
}

int copy_snapshots(struct img *src, struct img *base, struct img *dst, uint64_t size_bytes,
		   const struct img_copy_options *opts, struct img_error *err)
{
	struct carry c = { .src = src, .base = base, .dst = dst, .opts = *opts, .state = NOWHERE };
	int r;

	if (opts->progress.fn) {
		c.relay.outer = &opts->progress;
		c.progress = (struct img_progress){ .fn = relay_progress, .ctx = &c.relay };
	}
	c.changes.unmapped_is_zero = img_backing(src) == NULL;
	r = read_list(&c, err);
	if (r == 0)
		choose_stem(&c);
	for (size_t i = 0; i < c.nr_snaps && r == 0; i++)
		r = bring_snapshot(&c, i, err);
	if (r == 0 && c.stem[0])
		r = img_snapshot_delete(dst, c.stem, err);
	if (r == 0 && c.nr_snaps > 0)
		r = bring_head(&c, size_bytes, err);
	free(c.snaps);
	free(c.changes.list);
	return r;
}
