/* SPDX-License-Identifier: MIT */
/*
 * What a checkpoint does besides merging: snapshots, revert, resize, ranges, the backing record, the ring. Each is
 * checked before the freeze, when nothing has changed yet, and then only edits c->next, the catalog and the trees being
 * built.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "checked.h"
#include "checkpoint.h"

/* ---- checkpoint: what is asked, checked before anything changes ---- */

/* Room for one more epoch, and for the record of the one that ends. */
static int epoch_room(struct engine *e, struct img_error *err)
{
	if (e->sb.epoch >= MAX_EPOCH - 1)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "the image has used up its %u epochs: convert it to a new one", MAX_EPOCH);
	if (catalog_is_full(e))
		return error_set(
			err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			"an image holds at most %u snapshots, those included that are deleted and not reclaimed "
			"yet: delete one",
			MAX_SNAPSHOTS);
	return 0;
}

int action_prepare(struct engine *e, const struct ckpt_req *req, struct img_error *err)
{
	struct snap *s = req->name ? catalog_find(e, req->name) : NULL;

	switch (req->action) {
	case CKPT_SNAP_CREATE:
		if (s)
			return error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER,
					 "there is a snapshot of this name already");
		return epoch_room(e, err);
	case CKPT_BACKING: return req->empty ? epoch_room(e, err) : 0;
	case CKPT_SNAP_RENAME:
		if (s && !strcmp(req->name, req->new_name))
			return 0;
		if (s && catalog_find(e, req->new_name))
			return error_set(err, IMG_E_EXISTS, 0, NO_OFFSET, LAYER,
					 "there is a snapshot of the new name already");
		break;
	case CKPT_SNAP_DELETE:
		if (s && s->nr_views)
			return error_set(err, IMG_E_BUSY, 0, NO_OFFSET, LAYER, "the snapshot is being read");
		if (s)
			s->going = true;
		break;
	case CKPT_SNAP_REVERT:
		if (s)
			return epoch_room(e, err);
		break;
	default: return 0;
	}
	return s ? 0 : error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "no snapshot of this name");
}

bool action_beyond_deltas(const struct ckpt_req *req)
{
	return req->action == CKPT_SNAP_REVERT || req->action == CKPT_RESIZE || req->action == CKPT_BACKING;
}

bool action_new_epoch(const struct ckpt_req *req)
{
	return req->action == CKPT_SNAP_CREATE || req->action == CKPT_SNAP_REVERT ||
	       (req->action == CKPT_BACKING && req->empty);
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
	if (req->created_ns)
		s.created_ns = *req->created_ns;
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
	if (s->has_vmstate)
		c->next.vm = s->vm;
	else /* a lineage never loses levels: reclaim compares trees by them */
		c->next.vm = (struct volume){ .levels = s->vm.levels };
	c->next.head_parent = s->id;
	c->next.epoch++;
	return 0;
}

/*
 * After a change of size from old to now: what lies beyond now in the leaf of the new end goes, and where `fill` is
 * set, blocks between old and now in the leaf of the old end become zeros.
 */
static int edge_leaf(struct ckpt *c, unsigned vol, struct volume *v, uint64_t first_block, uint64_t end_block,
		     enum entry_state st, struct img_error *err)
{
	struct dentry en[LEAF_ENTRIES];
	struct dleaf d = { .index = first_block >> LEAF_SHIFT, .vol = (uint8_t)vol, .e = en };
	struct merge_leaf m = { vol, d.index, &d };

	end_block = min_u64(end_block, (d.index + 1) << LEAF_SHIFT);
	for (uint64_t b = first_block; b < end_block; b++)
		en[d.nr++] = (struct dentry){ st == ST_ZERO ? word_make(0, c->next.epoch, ST_ZERO) : 0, 0,
					      (uint8_t)(b & (LEAF_ENTRIES - 1)), true };
	return d.nr ? merge_leaves(c, vol, v, &m, 1, err) : 0;
}

/* The block in which `kept` lies holds zeros from there on, also where it was the backing's. */
static int cut_block(struct ckpt *c, unsigned vol, struct volume *v, uint64_t kept, bool copy_up, struct img_error *err)
{
	struct engine *e = c->e;
	uint64_t block = kept >> e->block_shift, in = kept & (e->block_bytes - 1), addr, got;
	struct snap here = { .disk = *v, .vm = *v };
	struct view view = { .e = e, .snap = &here, .disk = *v, .vm = *v };
	struct dentry en = { .slot = (uint8_t)(block & (LEAF_ENTRIES - 1)) };
	struct dleaf d = { .index = block >> LEAF_SHIFT, .vol = (uint8_t)vol, .nr = 1, .e = &en };
	struct merge_leaf m = { vol, d.index, &d };
	struct status_extent x;
	uint8_t *buf;
	size_t nr;
	int rc = batch_flush(c, err);

	if (rc || !in)
		return rc;
	if (vol == VOL_DISK) {
		rc = view_status(&view, VOL_DISK, 512, kept - 512, &x, 1, &nr, err);
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
		rc = space_write_data(e, buf, e->block_bytes, addr, err);
	if (!rc) {
		en.word = word_make(addr, c->next.epoch, ST_RAW);
		en.csum = block_csum(buf, e->block_bytes);
		rc = merge_leaves(c, vol, v, &m, 1, err);
	}
	free(buf);
	return rc;
}

static int volume_resize(struct ckpt *c, unsigned vol, struct volume *v, uint64_t now, bool zero_new,
			 struct img_error *err)
{
	unsigned shift = c->e->block_shift;
	uint64_t old = v->size_bytes, mask = c->e->block_bytes - 1;
	uint64_t old_blocks = (old + mask) >> shift, now_blocks = (now + mask) >> shift;
	int rc;

	if (now < old) {
		rc = cut_block(c, vol, v, now, false, err);
		if (!rc)
			rc = merge_range(c, vol, v, (now_blocks + LEAF_ENTRIES - 1) >> LEAF_SHIFT,
					 level_leaves(MAX_LEVELS), ST_NONE, err);
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
	uint64_t aus = journal_ring_aus(e), addr, got;
	int rc = space_alloc(e, aus, aus, &addr, &got, err);

	if (!rc) {
		rc = node_allocate(e->file, au_off(got), au_off(addr), err);
		if (rc)
			space_free(e, addr, got);
	}
	if (rc == IMG_E_NOSPC) { /* then each flush is a checkpoint: slower, and as safe */
		error_clear(err);
		return 0;
	}
	if (!rc)
		rc = space_persist_use(e, addr, got, err);
	if (!rc)
		rc = random_fill(&c->next.salt, sizeof c->next.salt, err);
	c->next.ring_addr = addr;
	c->next.ring_aus = got;
	c->next.ring_tail = 0;
	c->next.ring_seq = 1;
	memset(c->next.ring_prev, 0, 16);
	return rc;
}

int action_run(struct ckpt *c, const struct ckpt_req *req, struct img_error *err)
{
	struct engine *e = c->e;
	struct snap *s;
	int rc = 0;

	switch (req->action) {
	case CKPT_PLAIN:
		if (req->want_ring && !c->next.ring_aus)
			rc = ring_make(c, err);
		break;
	case CKPT_SNAP_CREATE: rc = act_create(c, req, err); break;
	case CKPT_SNAP_DELETE:
		s = catalog_find(e, req->name);
		s->state = SNAP_DELETED;
		memset(s->name, 0, sizeof s->name);
		catalog_touch(e, s);
		break;
	case CKPT_SNAP_REVERT: rc = act_revert(c, req, err); break;
	case CKPT_SNAP_RENAME:
		s = catalog_find(e, req->name);
		memset(s->name, 0, sizeof s->name);
		strcpy(s->name, req->new_name); /* checked to fit */
		catalog_touch(e, s);
		break;
	case CKPT_RANGE:
		rc = merge_range(c, req->vol, req->vol == VOL_DISK ? &c->next.disk : &c->next.vm, req->first, req->nr,
				 req->state, err);
		break;
	case CKPT_RESIZE:
		rc = volume_resize(c, VOL_DISK, &c->next.disk, req->size_bytes, c->next.has_backing, err);
		break;
	case CKPT_VM_RESIZE: rc = volume_resize(c, VOL_VM, &c->next.vm, req->size_bytes, false, err); break;
	case CKPT_BACKING: rc = act_backing(c, req, err); break;
	case CKPT_CLOSE:
	case CKPT_RECOVER: rc = ring_drop(c, err); break;
	}
	return rc;
}
