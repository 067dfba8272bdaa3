/* SPDX-License-Identifier: MIT */
/* What an image is, and how large a conversion to limg will be. */
#include <string.h>

#include "checked.h"
#include "engine.h"
#include "limg.h"
#include "options.h"

int limg_info(struct node *n, struct img_info *out, struct img_error *err)
{
	struct limg_state *st = (struct limg_state *)n->state;
	struct engine *e = st->e;

	(void)err;
	out->block_bytes = e->block_bytes;
	out->unit_bytes = e->unit_bytes;
	strcpy(out->compression, codec_name(e->codec));
	pthread_mutex_lock(&e->lock);
	out->dirty = e->sb.ring_aus != 0 && !e->writable;
	out->corrupt = e->journal_damaged || e->space_bad || e->catalog_bad;
	out->has_uuid = true;
	memcpy(out->uuid, e->uuid, 16);
	if (st->view.snap)
		volume_logical_root(&st->view.disk, out->hash);
	else if (overlay_empty(e))
		volume_logical_root(&e->sb.disk, out->hash);
	out->generation = e->sb.generation;
	out->used_bytes = au_off(e->sb.used_aus);
	pthread_mutex_unlock(&e->lock);
	out->vmstate_bytes = vm_size(&st->view);
	pthread_mutex_lock(&e->cat_lock);
	if (st->view.snap)
		strcpy(out->snapshot, st->view.snap->name); /* fits: a name has at most so many bytes */
	for (size_t i = 0; i < e->nr_slots; i++) {
		const struct snap *s = e->snap[i];

		out->nr_snapshots += s && s->state == SNAP_LIVE;
		if (s && s->state == SNAP_DELETED)
			out->pending_free_bytes_hint += (s->disk.root.count + s->vm.root.count) << e->block_shift;
	}
	pthread_mutex_unlock(&e->cat_lock);
	return 0;
}

struct counting {
	unsigned shift;
	uint64_t blocks, leaves, next_block, next_leaf;
};

static int count_data(void *arg, uint64_t off, uint64_t bytes)
{
	struct counting *c = arg;
	uint64_t first = max_u64(off >> c->shift, c->next_block),
		 end = (off + bytes + (UINT64_C(1) << c->shift) - 1) >> c->shift;
	uint64_t leaf, leaf_end;

	if (first >= end)
		return 0;
	c->blocks += end - first;
	c->next_block = end;
	leaf = max_u64(first >> LEAF_SHIFT, c->next_leaf);
	leaf_end = (end + LEAF_ENTRIES - 1) >> LEAF_SHIFT;
	if (leaf < leaf_end) {
		c->leaves += leaf_end - leaf;
		c->next_leaf = leaf_end;
	}
	return 0;
}

/* An upper bound: how much is left over between what several writers took at a time is not known before. */
static uint64_t file_bytes_for(const struct counting *c, uint64_t leaves_in_volume)
{
	uint64_t data_aus = c->blocks << (c->shift - AU_SHIFT), nodes = c->leaves, at_level = nodes, aus;

	while (leaves_in_volume > 1 && at_level) {
		leaves_in_volume = (leaves_in_volume + FANOUT - 1) >> FANOUT_SHIFT;
		at_level = min_u64(at_level, leaves_in_volume);
		nodes += at_level;
	}
	aus = MIN_FILE_AUS + data_aus + nodes + space_waste_bound(c->blocks, data_aus, nodes);
	return au_off(aus + aus / GROUP_AUS * 2); /* map pages of further groups */
}

int limg_measure(const struct img_measure_args *args, struct img_measure *out, struct img_error *err)
{
	struct limg_options o;
	struct counting c = { 0 }, full = { 0 };
	uint64_t leaves;
	int rc = options_parse(args->options, args->size_bytes, &o, err);

	if (rc)
		return rc;
	c.shift = full.shift = o.block_shift;
	if (args->each_data)
		rc = args->each_data(args->ctx, count_data, &c, err);
	if (args->size_bytes)
		count_data(&full, 0, args->size_bytes);
	leaves = full.leaves;
	out->required_bytes = file_bytes_for(&c, leaves);
	out->fully_allocated_bytes = file_bytes_for(&full, leaves);
	return rc;
}
