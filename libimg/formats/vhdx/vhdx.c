/* SPDX-License-Identifier: MIT */
/*
 * The VHDX driver: images are read, their log is replayed in memory, and differences are overlays. What writes is not
 * there yet: every change of metadata has to go through the log.
 */
#include <stdlib.h>
#include <string.h>

#include "vhdx.h"

static struct vhdx_state *state_of(const struct node *n)
{
	return n->state;
}

static int probe(const struct probe_data *d)
{
	return d->head_bytes >= 8 && memcmp(d->head, "vhdxfile", 8) == 0 ? 100 : 0;
}

static int judge_expansion(const struct vhdx_state *s, const struct budget *budget, struct img_error *err)
{
	struct node *file = s->node->file;
	uint64_t mapped, bad;
	int ret;

	if (budget_expansion_fits(budget, s->m.disk_bytes, node_size(file)))
		return 0;
	ret = vhdx_bat_sum(file, &s->m, &mapped, &bad, err);
	return ret ? ret : budget_expansion(budget, s->node->path, mapped, node_size(file), err);
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct vhdx_state *s = state_of(node);
	struct blockmap_shape shape;
	int ret = vhdx_header_load(node->file, &s->h, err);

	s->node = node;
	/* The layer is part of the file from here on, and closed with it. */
	if (ret == 0)
		ret = vhdx_log_open(node->file, &s->h, args->budget, &node->file, err);
	if (ret == 0)
		ret = vhdx_meta_load(node->file, &s->m, err);
	if (ret == 0 && s->m.has_parent)
		ret = vhdx_locator_load(node->file, &s->m.locator, s->parent, s->linkage, err);
	if (ret == 0 && s->m.has_parent && s->parent[0] == '\0')
		ret = error_set(err, IMG_E_CORRUPT, 0, s->m.locator.off, LAYER, "the parent locator names no file");
	if (ret == 0 && !args->for_check)
		ret = judge_expansion(s, args->budget, err);
	if (ret != 0)
		return ret;
	shape = vhdx_bat_shape(&s->m);
	return blockmap_open(node, &shape, &vhdx_bat_ops, s, args, &s->bm, err);
}

static int close_member(struct node *node, struct img_error *err)
{
	(void)err;
	blockmap_free(state_of(node)->bm);
	return 0;
}

static uint64_t size(const struct node *n)
{
	return state_of(n)->m.disk_bytes;
}

static void limits(const struct node *n, struct driver_limits *out)
{
	const struct vhdx_meta *m = &state_of(n)->m;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = (uint32_t)m->block_bytes,
		.optimal_bytes = 1u << 20,
		.max_size_bytes = VHDX_DISK_MAX,
	};
}

static int pread_member(struct node *n, void *buf, uint64_t bytes, uint64_t off, unsigned flags, struct img_error *err)
{
	(void)flags;
	return blockmap_pread(state_of(n)->bm, buf, bytes, off, err);
}

static int status(struct node *n, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return blockmap_status(state_of(n)->bm, bytes, off, out, cap, nr, err);
}

static bool get_backing(struct node *n, struct backing_ref *out)
{
	const struct vhdx_state *s = state_of(n);

	if (!s->m.has_parent)
		return false;
	memset(out, 0, sizeof(*out));
	memcpy(out->name, s->parent, sizeof(out->name));
	memcpy(out->format, "vhdx", sizeof("vhdx"));
	out->pin.kind = PIN_ID;
	memcpy(out->pin.uuid, s->linkage, sizeof(out->pin.uuid));
	out->id = out->pin;
	return true;
}
_Static_assert(sizeof(((struct backing_ref *)0)->name) == VHDX_PATH_MAX, "a parent's path fits");

static void id(struct node *n, struct pin *out)
{
	out->kind = PIN_ID;
	memcpy(out->uuid, state_of(n)->h.data_write, sizeof(out->uuid));
}

/* ---- information ------------------------------------------------------------------------------------------------- */

static int info(struct node *n, struct img_info *out, struct img_error *err)
{
	const struct vhdx_state *s = state_of(n);

	(void)err;
	out->block_bytes = (uint32_t)s->m.block_bytes;
	out->dirty = s->h.needs_replay;
	memcpy(out->compression, "none", sizeof("none"));
	return 0;
}

struct told {
	img_detail_fn fn;
	void *ctx;
};

static void tell_text(const struct told *t, const char *key, const char *text)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_TEXT, .text = text };

	t->fn(t->ctx, &d);
}

static void tell_number(const struct told *t, const char *key, uint64_t number)
{
	const struct img_detail d = { .key = key, .kind = IMG_DETAIL_NUMBER, .number = number };

	t->fn(t->ctx, &d);
}

static void tell_guid(const struct told *t, const char *key, const uint8_t guid[16])
{
	char text[40];

	vhdx_guid_text(guid, text);
	tell_text(t, key, text);
}

static int info_details(struct node *n, img_detail_fn fn, void *ctx, struct img_error *err)
{
	const struct vhdx_state *s = state_of(n);
	const struct img_detail replay = { .key = "log_waits", .kind = IMG_DETAIL_BOOL, .number = s->h.needs_replay };
	const struct told t = { fn, ctx };

	(void)err;
	tell_text(&t, "subformat", s->m.has_parent ? "differencing" : s->m.leave_blocks ? "fixed" : "dynamic");
	tell_number(&t, "logical_sector_size", s->m.sector_bytes);
	tell_number(&t, "physical_sector_size", s->m.physical_bytes);
	tell_guid(&t, "data_write_guid", s->h.data_write);
	tell_guid(&t, "virtual_disk_id", s->m.page83);
	if (s->m.has_parent)
		tell_guid(&t, "parent_linkage", s->linkage);
	fn(ctx, &replay);
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct img_range *x = a, *y = b;

	return x->off < y->off ? -1 : x->off > y->off;
}

/* What lies among the blocks. Two that overlap are seen as one. */
static size_t structures(const struct vhdx_state *s, struct img_range out[3])
{
	const struct vhdx_range all[] = { s->m.bat, s->m.metadata, s->h.log };
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		if (all[i].bytes > 0 && range_inside(all[i].off, all[i].bytes, node_size(s->node->file)))
			out[nr++] = (struct img_range){ all[i].off, all[i].bytes };
	}
	qsort(out, nr, sizeof(*out), by_offset);
	for (size_t i = 1; i < nr; i++) {
		if (out[i].off < out[i - 1].off + out[i - 1].bytes)
			return i; /* a damaged header: what comes first is enough */
	}
	return nr;
}

/* VHDX-8: entries, and what they lead to. The structures before them were judged when it was opened. */
static int check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err)
{
	struct blockmap_rules rules = { .entry = "VHDX-8",
					.overlap = "VHDX-9" }; /* room that is nobody's is no fault */
	struct vhdx_state *s = state_of(n);
	struct img_range taken[3];
	struct blockmap_census census;

	(void)flags;
	rules.taken = taken;
	rules.nr_taken = structures(s, taken);
	out->metadata_bytes += VHDX_MIB + s->m.bat.bytes + s->m.metadata.bytes;
	return blockmap_check(s->bm, &rules, VHDX_MIB, false, fn, ctx, progress, out, &census, err);
}

const struct img_driver vhdx_driver = {
	.name = "vhdx",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct vhdx_state),
	.caps = IMG_CAP_CHECK | IMG_CAP_BACKING,
	.probe = probe,
	.open = open_member,
	.close = close_member,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.status = status,
	.get_backing = get_backing,
	.id = id,
	.info = info,
	.info_details = info_details,
	.check = check,
	.inspect = vhdx_inspect,
};
