/* SPDX-License-Identifier: MIT */
/*
 * Opening a bundle, its snapshots, and what is told of it.
 *
 * The head is written in the images of the shot that the descriptor calls so; those below are the snapshots, which
 * never change. To open a snapshot is to build the stacks from its shot down.
 */
#include "prl_bundle.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_BYTES	(UINT64_C(16) << 20) /* of all layers */
#define CACHE_MIN_BYTES (UINT64_C(64) << 10) /* of one */

struct prl_state *prl_state_of(const struct node *node)
{
	return node->state;
}

static void free_stack(struct prl_stack *s)
{
	free(s->layer);
	free(s->part);
	free(s->shot);
	free(s->why);
	*s = (struct prl_stack){ .nr = 0 };
}

/* Closes all layers; first failure. */
static int close_stack(struct prl_stack *s, struct img_error *err)
{
	int first = 0;

	for (size_t i = 0; i < s->nr; i++) {
		int ret;

		if (!s->layer[i].node)
			continue;
		s->layer[i].node->backing = NULL;
		ret = node_close(s->layer[i].node, first == 0 ? err : NULL);
		if (first == 0)
			first = ret;
	}
	free_stack(s);
	return first;
}

static int free_bundle(struct prl_bundle *b, struct img_error *err)
{
	int first = 0;

	for (size_t i = 0; b->stack && i < b->d.nr_storages; i++) {
		int ret = close_stack(&b->stack[i], first == 0 ? err : NULL);

		if (first == 0)
			first = ret;
	}
	free(b->stack);
	prl_descriptor_free(&b->d);
	free(b);
	return first;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Is shot the opened one, or does that stand on it? No cycles: the descriptor was judged. */
static bool is_needed(const struct prl_bundle *b, size_t shot)
{
	size_t at = b->shot;

	while (at != PRL_NO_SHOT && at != shot)
		at = b->d.shot[at].parent;
	return at == shot;
}

static int list_shots(const struct prl_bundle *b, struct prl_stack *s, struct img_error *err)
{
	bool all = b->check_only || (!b->writable && b->shot == b->d.head);
	size_t max = b->d.nr_shots;

	s->layer = calloc(max, sizeof(*s->layer));
	s->part = calloc(max, sizeof(struct prl_part *));
	s->shot = calloc(max, sizeof(*s->shot));
	s->why = calloc(max, sizeof(*s->why));
	if (!s->layer || !s->part || !s->shot || !s->why)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = max; i-- > 0;) {
		size_t shot = b->d.by_id[i];

		if (!all && !is_needed(b, shot))
			continue;
		if (shot == b->shot)
			s->top = s->nr;
		s->shot[s->nr++] = shot;
	}
	return 0;
}

/* Which layer shows a shot; s->nr: none. */
static size_t layer_of(const struct prl_stack *s, size_t shot)
{
	size_t i = 0;

	while (i < s->nr && s->shot[i] != shot)
		i++;
	return i;
}

static int open_file(struct node *node, const struct prl_part *part, const struct driver_open *args, struct node **out,
		     struct img_error *err)
{
	int ret;

	*out = NULL;
	ret = args->open_data(args->open_data_ctx, part->file, out, err);
	return ret == 0 ? node_add_part(node, *out, err) : ret;
}

static int missing(const struct prl_bundle *b, size_t shot, struct img_error *err)
{
	char guid[PRL_GUID_TEXT_BYTES];

	prl_guid_text(b->d.shot[shot].guid, guid);
	return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER, "a storage has no image of %s", guid);
}

/* Layer i of a stack, on the one below it. */
static int open_one(struct node *node, struct prl_bundle *b, size_t storage, size_t i, const struct driver_open *args,
		    struct img_error *err)
{
	const struct prl_storage *st = &b->d.storage[storage];
	struct prl_stack *s = &b->stack[storage];
	size_t parent = b->d.shot[s->shot[i]].parent, under;
	bool stands = parent != PRL_NO_SHOT && !b->check_only;
	struct driver_open own = *args;
	struct node *file;
	int ret;

	s->part[i] = prl_part_of(st, b->d.shot[s->shot[i]].guid);
	if (!s->part[i])
		return missing(b, s->shot[i], err);
	under = stands ? layer_of(s, parent) : s->nr;
	if (stands && !s->layer[under].node) {
		if (err)
			*err = s->why[under];
		return s->why[under].code;
	}

	if (s->part[i]->plain && parent != PRL_NO_SHOT)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "%.100s: is a plain image that stands on another one", s->part[i]->file);
	ret = open_file(node, s->part[i], args, &file, err);
	if (ret != 0)
		return ret;
	own.writable = args->writable && (b->check_only || i == s->top);
	own.snapshot = NULL;
	own.snapshot_uuid = NULL;
	own.open_data = NULL;
	own.cache_bytes = max_u64((args->cache_bytes ? args->cache_bytes : CACHE_BYTES) / b->d.nr_storages / s->nr,
				  CACHE_MIN_BYTES);
	s->layer[i].bundle = b;
	s->layer[i].file = file;
	return prl_layer_open(file, s->part[i]->plain, st->end - st->start, stands ? s->layer[under].node : NULL, &own,
			      &s->layer[i].node, err);
}

static size_t depth_of(const struct prl_bundle *b)
{
	size_t nr = 0;

	for (size_t at = b->shot; at != PRL_NO_SHOT; at = b->d.shot[at].parent)
		nr++;
	return nr;
}

static int open_stack(struct node *node, struct prl_bundle *b, size_t storage, const struct driver_open *args,
		      struct img_error *err)
{
	struct prl_stack *s = &b->stack[storage];
	int ret = b->check_only ? 0 : budget_judge(args->budget, BUDGET_DEPTH, depth_of(b), node->path, err);

	if (ret == 0)
		ret = list_shots(b, s, err);
	for (size_t i = s->nr; i-- > 0 && ret == 0;) {
		struct img_error why = { .code = IMG_OK };

		ret = open_one(node, b, storage, i, args, &why);
		if (ret == 0)
			continue;
		/*
		 * What is damaged in one image of many is a finding; what the host fails, or forbids, is not. To a
		 * reader what is not needed now does not matter before it is asked for.
		 */
		if (b->check_only ? ret == IMG_E_CORRUPT || ret == IMG_E_NOENT :
				    ret != IMG_E_NOMEM && !is_needed(b, s->shot[i])) {
			s->why[i] = why;
			ret = 0;
		} else if (err) {
			*err = why;
		}
	}
	return ret;
}

/* Not even that: who looks without opening anything. */
static void open_nothing(const struct prl_bundle *b, struct span_segment *segment)
{
	for (size_t i = 0; i < b->d.nr_storages; i++)
		segment[i] = (struct span_segment){ .bytes = b->d.storage[i].end - b->d.storage[i].start,
						    .ops = &span_noaccess };
}

/* Nothing is opened: readers are told so. */
static int open_absent(struct node *node, struct prl_bundle *b, const struct driver_open *args,
		       struct span_segment *segment, struct img_error *err)
{
	for (size_t i = 0; i < b->d.nr_storages; i++) {
		const struct prl_storage *st = &b->d.storage[i];
		const struct prl_part *part = prl_part_of(st, b->d.shot[b->shot].guid);
		struct node *file;
		int ret = part ? open_file(node, part, args, &file, err) : missing(b, b->shot, err);

		if (ret != 0)
			return ret;
		segment[i] = (struct span_segment){ .bytes = st->end - st->start, .ops = &span_file, .ctx = file };
	}
	return 0;
}

static int open_stacks(struct node *node, struct prl_bundle *b, const struct driver_open *args,
		       struct span_segment *segment, struct img_error *err)
{
	b->stack = calloc(b->d.nr_storages, sizeof(*b->stack));
	if (!b->stack)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < b->d.nr_storages; i++) {
		const struct prl_storage *st = &b->d.storage[i];
		int ret = open_stack(node, b, i, args, err);

		if (ret != 0)
			return ret;
		/* Who checks reads nothing. */
		segment[i] = (struct span_segment){ .bytes = st->end - st->start,
						    .ops = b->check_only ? &span_noaccess : &prl_layer_ops,
						    .ctx = &b->stack[i].layer[b->stack[i].top],
						    .readonly = !b->writable };
	}
	return 0;
}

static int choose_shot(struct prl_bundle *b, const struct driver_open *args, struct img_error *err)
{
	char guid[PRL_GUID_TEXT_BYTES];

	b->shot = b->d.head;
	if (!args->snapshot)
		return 0;
	if (args->snapshot_uuid)
		prl_guid_text(args->snapshot_uuid, guid);
	b->shot = prl_shot_named(&b->d, args->snapshot_uuid ? guid : args->snapshot);
	if (b->shot == PRL_NO_SHOT || b->shot == b->d.head)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "there is no snapshot '%.60s'", args->snapshot);
	return 0;
}

/* data_absent: the descriptor is told whatever it holds. */
static int load(struct node *node, struct prl_bundle *b, const struct driver_open *args, struct img_error *err)
{
	int ret = prl_descriptor_load(node->file, node->path, args->budget, &b->d, err);
	struct span_segment *segment = NULL;

	if (ret == 0)
		ret = choose_shot(b, args, err);
	if (ret == 0) {
		segment = calloc(b->d.nr_storages, sizeof(*segment));
		ret = segment ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	}
	if (ret == 0 && !args->open_data)
		open_nothing(b, segment);
	else if (ret == 0)
		ret = b->absent ? open_absent(node, b, args, segment, err) : open_stacks(node, b, args, segment, err);
	if (ret == 0)
		ret = span_new(segment, b->d.nr_storages, &prl_state_of(node)->span, err);
	free(segment);
	return ret;
}

int prl_bundle_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct prl_state *s = prl_state_of(node);
	struct prl_bundle *b = calloc(1, sizeof(*b));
	int ret;

	if (!b)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	b->writable = args->writable;
	b->check_only = args->for_check;
	b->absent = args->data_absent || !args->open_data;
	ret = load(node, b, args, err);
	if (ret != 0) {
		(void)free_bundle(b, NULL);
		return ret;
	}
	s->bundle = b;
	return 0;
}

int prl_bundle_close(struct node *node, struct img_error *err)
{
	struct prl_state *s = prl_state_of(node);
	int ret = 0;

	span_free(s->span);
	s->span = NULL;
	if (!node->view_of)
		ret = free_bundle(s->bundle, err);
	s->bundle = NULL;
	return ret;
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

static int by_id(const void *a, const void *b)
{
	const struct img_snapshot *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

static void tell_shot(const struct prl_descriptor *d, size_t i, struct img_snapshot *out)
{
	const struct prl_shot *s = &d->shot[i];
	char guid[PRL_GUID_TEXT_BYTES];

	*out = (struct img_snapshot){ .id = s->id, .size_bytes = d->disk_bytes };
	prl_guid_text(s->guid, guid);
	memcpy(out->name, guid + 1, 36); /* without braces, which shells take for something else */
	memcpy(out->uuid, s->guid, 16);
	out->parent = s->parent == PRL_NO_SHOT ? 0 : d->shot[s->parent].id;
}

int prl_bundle_snap_list(struct node *node, struct img_snapshot *out, size_t cap, size_t *nr, struct img_error *err)
{
	const struct prl_bundle *b = prl_state_of(node)->bundle;
	struct img_snapshot *all;
	size_t n = 0;

	*nr = b ? b->d.nr_shots - 1 : 0;
	if (*nr == 0 || cap == 0)
		return 0;
	all = calloc(*nr, sizeof(*all));
	if (!all)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < b->d.nr_shots; i++)
		if (i != b->d.head)
			tell_shot(&b->d, i, &all[n++]);
	qsort(all, n, sizeof(*all), by_id);
	memcpy(out, all, (cap < n ? cap : n) * sizeof(*all));
	free(all);
	return 0;
}

/* Are all layers of a shot there? */
static int find_layers(const struct prl_bundle *b, size_t shot, const char *name, struct img_error *err)
{
	if (b->absent || b->check_only)
		return error_set(err, IMG_E_REFUSED, 0, NO_OFFSET, LAYER, "the files of the bundle were not opened");
	for (size_t i = 0; i < b->d.nr_storages; i++) {
		const struct prl_stack *s = &b->stack[i];
		size_t at = layer_of(s, shot);

		if (at == s->nr)
			return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
					 "snapshot '%.60s' is on another branch than what is open: open it by itself, "
					 "as IMAGE@SNAPSHOT",
					 name);
		if (!s->layer[at].node) {
			if (err)
				*err = s->why[at];
			return s->why[at].code;
		}
	}
	return 0;
}

static int build_view(const struct prl_bundle *b, size_t shot, struct node *view, struct img_error *err)
{
	struct span_segment *segment = calloc(b->d.nr_storages, sizeof(*segment));
	int ret;

	if (!segment)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	for (size_t i = 0; i < b->d.nr_storages; i++)
		segment[i] = (struct span_segment){ .bytes = b->d.storage[i].end - b->d.storage[i].start,
						    .ops = &prl_layer_ops,
						    .ctx = &b->stack[i].layer[layer_of(&b->stack[i], shot)],
						    .readonly = true };
	ret = span_new(segment, b->d.nr_storages, &prl_state_of(view)->span, err);
	free(segment);
	return ret;
}

int prl_bundle_snap_open(struct node *node, const char *name, struct node *view, struct img_error *err)
{
	struct prl_bundle *b = prl_state_of(node)->bundle;
	size_t shot = b ? prl_shot_named(&b->d, name) : PRL_NO_SHOT;
	int ret;

	if (shot == PRL_NO_SHOT || shot == b->d.head)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "there is no snapshot '%.60s'", name);
	ret = find_layers(b, shot, name, err);
	if (ret == 0)
		ret = build_view(b, shot, view, err);
	if (ret == 0)
		prl_state_of(view)->bundle = b;
	return ret;
}

/* Who is told of differences: of neighbours of one kind at once. */
struct diff_told {
	img_diff_fn fn;
	void *ctx;
	uint64_t off, bytes;
	enum img_diff_kind kind; /* of what is not told yet; 0: nothing */
};

static int tell_diff(struct diff_told *t, uint64_t off, uint64_t bytes, enum img_diff_kind kind, struct img_error *err)
{
	if (kind == t->kind) {
		t->bytes += bytes;
		return 0;
	}
	if (t->kind != 0 && t->fn(t->ctx, t->off, t->bytes, t->kind) != 0)
		return error_set(err, IMG_E_CANCELLED, 0, NO_OFFSET, LAYER, "stopped");
	t->off = off;
	t->bytes = bytes;
	t->kind = kind;
	return 0;
}

/* How a range of b differs from a, both shots of one storage: what lies between their layers, or all of b's. */
static int diff_storage(const struct prl_stack *s, uint64_t start, uint64_t bytes, size_t from, size_t to,
			struct diff_told *told, struct img_error *err)
{
	struct node *top = s->layer[to].node, *stop = from < s->nr ? s->layer[from].node : NULL, *n = top;
	uint64_t off = 0;

	while (n && n != stop)
		n = n->backing;
	while (off < bytes) {
		struct status_extent e = { .bytes = 0 };
		enum img_diff_kind kind = IMG_DIFF_DATA;
		int ret = prl_extent_at(top, n, bytes - off, off, &e, err);

		if (ret != 0)
			return ret;
		/* Nothing of a lies below b: where b has nothing it reads as zeros, and a may not. */
		if (e.kind == STATUS_ZERO || (e.kind == STATUS_UNALLOCATED && !n && from < s->nr))
			kind = IMG_DIFF_ZERO;
		else if (e.kind == STATUS_UNALLOCATED)
			kind = 0;
		ret = tell_diff(told, start + off, e.bytes, kind, err);
		if (ret != 0)
			return ret;
		off += e.bytes;
	}
	return 0;
}

static int shot_for_diff(const struct prl_bundle *b, const char *name, size_t *shot, struct img_error *err)
{
	*shot = name ? prl_shot_named(&b->d, name) : b->d.head;
	if (*shot == PRL_NO_SHOT)
		return error_set(err, IMG_E_NOENT, 0, NO_OFFSET, LAYER, "there is no snapshot '%.60s'", name);
	return find_layers(b, *shot, name ? name : "", err);
}

int prl_bundle_snap_diff(struct node *node, const char *a, const char *b, img_diff_fn fn, void *ctx,
			 struct img_error *err)
{
	const struct prl_bundle *bundle = prl_state_of(node)->bundle;
	struct diff_told told = { .fn = fn, .ctx = ctx };
	size_t from = PRL_NO_SHOT, to;
	int ret;

	if (!bundle)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER,
				 "a single Parallels image holds no snapshots");
	ret = shot_for_diff(bundle, b, &to, err);
	if (ret == 0 && a)
		ret = shot_for_diff(bundle, a, &from, err);
	for (size_t i = 0; i < bundle->d.nr_storages && ret == 0; i++) {
		const struct prl_storage *st = &bundle->d.storage[i];
		const struct prl_stack *s = &bundle->stack[i];

		ret = diff_storage(s, st->start, st->end - st->start, layer_of(s, from), layer_of(s, to), &told, err);
	}
	return ret == 0 ? tell_diff(&told, 0, 0, 0, err) : ret;
}

/* ---- information ------------------------------------------------------------------------------------------------- */

void prl_bundle_limits(const struct node *node, struct driver_limits *out)
{
	const struct prl_bundle *b = prl_state_of(node)->bundle;
	uint64_t cluster = b->d.storage[0].cluster_bytes;

	cluster = cluster == 0 || cluster > PRL_CLUSTER_MAX ? PRL_CLUSTER_DEFAULT : cluster;
	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = (uint32_t)cluster,
		.optimal_bytes = (uint32_t)min_u64(max_u64(cluster, 1u << 20), 16u << 20),
		.max_size_bytes = b->d.disk_bytes,
	};
}

int prl_bundle_info(struct node *node, struct img_info *out, struct img_error *err)
{
	const struct prl_bundle *b = prl_state_of(node)->bundle;
	int ret = 0;

	out->block_bytes = (uint32_t)min_u64(b->d.storage[0].cluster_bytes, PRL_CLUSTER_MAX);
	out->has_uuid = b->d.has_uid;
	memcpy(out->uuid, b->d.uid, 16);
	out->nr_snapshots = b->d.nr_shots - 1;
	for (size_t i = 0; b->stack && i < b->d.nr_storages && ret == 0; i++) {
		struct img_info layer = { .dirty = false };

		const struct prl_stack *st = &b->stack[i];

		if (st->layer[st->top].node)
			ret = node_info(st->layer[st->top].node, &layer, err);
		out->dirty = out->dirty || layer.dirty;
	}
	return ret;
}

static void tell_number(img_detail_fn fn, void *ctx, const char *key, uint64_t number)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_NUMBER, .number = number };

	fn(ctx, &d);
}

static void tell_text(img_detail_fn fn, void *ctx, const char *key, const char *text)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_TEXT, .text = text };

	fn(ctx, &d);
}

int prl_bundle_info_details(struct node *node, img_detail_fn fn, void *ctx, struct img_error *err)
{
	const struct prl_descriptor *d = &prl_state_of(node)->bundle->d;
	uint64_t sectors = d->disk_bytes / PRL_SECTOR_BYTES;
	const struct prl_part *part = prl_part_of(&d->storage[0], d->shot[d->head].guid);
	char text[80];

	(void)err;
	tell_text(fn, ctx, "subformat", part && part->plain ? "plain" : "bundle");
	tell_number(fn, ctx, "storages", d->nr_storages);
	if (d->heads != PRL_HEADS || d->sectors != PRL_SECTORS_PER_TRACK ||
	    d->cylinders != sectors / PRL_SECTORS_PER_CYLINDER) {
		(void)snprintf(text, sizeof(text), "%" PRIu64 "/%" PRIu64 "/%" PRIu64, d->cylinders, d->heads,
			       d->sectors);
		tell_text(fn, ctx, "geometry", text);
	}
	return 0;
}
