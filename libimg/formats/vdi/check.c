/* SPDX-License-Identifier: MIT */
/*
 * Check and repair. The engine judges the map; here are the header's own statements: UUIDs, and the count of places,
 * which must be above every entry (or VirtualBox and QEMU write new blocks over old ones, VDI-8) and should be no more.
 *
 * Repair: entries that lead nowhere become free, a file that ends inside a block gets zeros up to the block's end, the
 * count is corrected, gaps are closed and the file is cut off behind the last block. Blocks that share a place are left
 * alone: nobody knows whose it is; a conversion gives each its own.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "vdi.h"

struct check {
	struct vdi_state *v;
	bool repair;
	img_finding_fn fn;
	void *ctx;
	struct img_check_result *out;
	struct blockmap_census census;
	bool header_changed; /* by a repair */
	struct vdi_header h;
};

static void found(struct check *k, enum img_finding_kind kind, const char *rule, uint64_t off, bool repaired,
		  const char *fmt, ...) __attribute__((format(printf, 6, 7)));
static void found(struct check *k, enum img_finding_kind kind, const char *rule, uint64_t off, bool repaired,
		  const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = off, .guest_off = NO_OFFSET, .repaired = repaired };
	va_list ap;

	k->out->damage += kind == IMG_FINDING_DAMAGE;
	k->out->leaks += kind == IMG_FINDING_LEAK;
	k->out->repaired += repaired;
	if (!k->fn)
		return;
	(void)snprintf(f.rule, sizeof(f.rule), "%s", rule);
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	k->fn(k->ctx, &f);
}

static void check_header(struct check *k, struct img_error *err)
{
	struct vdi_header *h = &k->h;

	if (vdi_uuid_is_null(h->uuid) || vdi_uuid_is_null(h->modification)) {
		bool fix = k->repair;

		if (fix && vdi_uuid_is_null(h->uuid))
			fix = vdi_uuid_new(h->uuid, err) == 0;
		if (fix && vdi_uuid_is_null(h->modification))
			fix = vdi_uuid_new(h->modification, err) == 0;
		k->header_changed |= fix;
		found(k, IMG_FINDING_DAMAGE, "VDI-9", VDI_AT(uuid), fix,
		      "it has no UUID, or none of its last change: VirtualBox does not open it");
	}
	if (h->type != VDI_DIFFERENCING && !vdi_uuid_is_null(h->parent))
		found(k, IMG_FINDING_NOTE, "VDI-10", VDI_AT(parent), false,
		      "names a parent, although its type says that it has none");
	if (h->disk_bytes % VDI_SECTOR_BYTES != 0)
		found(k, IMG_FINDING_NOTE, "VDI-4", VDI_AT(disk_bytes), false,
		      "the disk of 0x%" PRIx64 " bytes ends inside a sector, which is left out", h->disk_bytes);
	if (h->nr_blocks > (h->disk_bytes - 1) / h->block_bytes + 1)
		found(k, IMG_FINDING_NOTE, "VDI-4", VDI_AT(nr_blocks), false,
		      "%" PRIu32 " blocks are more than the disk needs", h->nr_blocks);
}

/* VDI-8. What is counted above the last entry is a leak; the engine told of gaps and of what the file holds. */
static void check_count(struct check *k)
{
	const struct vdi_header *h = &k->h;
	uint64_t places = (k->census.end_off - h->data_off) / vdi_place_bytes(h);

	if (h->nr_allocated < places) {
		found(k, IMG_FINDING_DAMAGE, "VDI-8", VDI_AT(nr_allocated), k->repair,
		      "%" PRIu32 " places are counted, but %" PRIu64 " are in use: who goes by the count writes over "
		      "blocks",
		      h->nr_allocated, places);
	} else if (h->nr_allocated > places) {
		found(k, IMG_FINDING_LEAK, "VDI-8", VDI_AT(nr_allocated), k->repair,
		      "%" PRIu32 " places are counted, but no block is in a place above %" PRIu64, h->nr_allocated,
		      places);
	}
}

/* All that the findings promised. */
static int repair(struct check *k, bool whole, struct img_error *err)
{
	struct vdi_state *v = k->v;
	struct blockmap_shape shape;
	uint64_t places = (k->census.end_off - k->h.data_off) / vdi_place_bytes(&k->h);
	int ret = 0;

	k->header_changed |= k->h.nr_allocated != places;
	if (k->header_changed) {
		k->h.nr_allocated = (uint32_t)places;
		memcpy(k->h.modification, v->h.modification, vdi_uuid_is_null(v->h.modification) ? 0 : 16);
		ret = vdi_replace_header(v, &k->h, err);
	}
	if (ret != 0)
		return ret;
	shape = vdi_shape(&v->h);
	shape.end_off = k->census.end_off;
	ret = blockmap_reshape(v->bm, &shape, err);
	return ret == 0 && whole ? vdi_compact(v, err) : ret;
}

static int check_stopped(struct check *k, const struct img_progress *progress, struct img_error *err)
{
	static const struct blockmap_rules rules = {
		.entry = "VDI-6", .overlap = "VDI-7", .leak = "VDI-8", .closes_gaps = true
	};
	int ret;

	k->h = k->v->h;
	check_header(k, err);
	ret = blockmap_check(k->v->bm, &rules, k->h.data_off, k->repair, k->fn, k->ctx, progress, k->out, &k->census,
			     err);
	if (ret != 0)
		return ret;
	check_count(k);
	k->out->metadata_bytes += VDI_SECTOR_BYTES;
	if (!k->repair || k->out->damage + k->out->leaks == 0)
		return 0;
	return repair(k, blockmap_may_move(&k->census), err);
}

int vdi_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	      struct img_check_result *out, struct img_error *err)
{
	struct vdi_state *v = vdi_state_of(node);
	struct check k = { .v = v, .repair = flags & IMG_CHECK_REPAIR, .fn = fn, .ctx = ctx, .out = out };
	int ret;

	memset(out, 0, sizeof(*out));
	if (k.repair && !v->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing");
	ret = blockmap_stop(v->bm, err);
	if (ret != 0)
		return ret;
	ret = check_stopped(&k, progress, err);
	blockmap_start(v->bm);
	return ret;
}
