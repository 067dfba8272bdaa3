/* SPDX-License-Identifier: MIT */
/* Check: the descriptor against what the extents are, then each extent by itself. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "image.h"
#include "stream.h"

struct check {
	struct vmdk_state *v;
	unsigned flags;
	img_finding_fn fn;
	void *ctx;
	const struct img_progress *progress;
	struct img_check_result *out;
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

/* True where the extent is longer than *bytes, what the descriptor says, and that is to be put right. */
static bool compare_size(struct check *k, size_t i, uint64_t *bytes)
{
	const struct vmdk_extent *e = &k->v->d.extents[i];
	const struct vmdk_part *p = &k->v->parts[i];
	bool repair = k->flags & IMG_CHECK_REPAIR && p->sparse && p->sparse->writable && !p->sparse->t.overlap;

	*bytes = e->bytes;
	if (p->sparse && p->sparse->h.capacity_bytes != e->bytes) {
		found(k, IMG_FINDING_LEAK, "VMDK-12", e->line_off, repair,
		      "the extent holds 0x%" PRIx64 " bytes, of which the descriptor uses 0x%" PRIx64,
		      p->sparse->h.capacity_bytes, e->bytes);
		return repair;
	}
	if ((e->kind == VMDK_FLAT || e->kind == VMDK_VMFS) && p->file &&
	    !range_inside(e->file_off, e->bytes, node_size(p->file)))
		found(k, IMG_FINDING_DAMAGE, "VMDK-12", e->line_off, false,
		      "the file '%.80s' ends at 0x%" PRIx64 ", but its extent at 0x%" PRIx64, e->name,
		      node_size(p->file), e->file_off + e->bytes);
	return false;
}

/* What a resize that was interrupted left: the descriptor counts, and others may go by the extent. */
static int check_size(struct check *k, size_t i, struct img_error *err)
{
	struct vmdk_state *v = k->v;
	uint64_t bytes;
	bool repair;
	int ret;

	pthread_mutex_lock(&v->size_lock);
	pthread_mutex_lock(&v->lock);
	repair = compare_size(k, i, &bytes);
	pthread_mutex_unlock(&v->lock);
	ret = repair ? vmdk_sparse_resize(v->parts[i].sparse, bytes, err) : 0;
	pthread_mutex_unlock(&v->size_lock);
	return ret;
}

/* The engine's own word on one part, added up. */
static void add(struct img_check_result *sum, const struct img_check_result *part)
{
	sum->damage += part->damage;
	sum->leaks += part->leaks;
	sum->repaired += part->repaired;
	sum->metadata_bytes += part->metadata_bytes;
	sum->data_bytes += part->data_bytes;
}

static int check_blocks(struct check *k, struct blockmap *bm, struct img_error *err)
{
	static const struct blockmap_rules rules = { .entry = "VMDK-20", .overlap = "VMDK-20" };
	struct blockmap_census census;

	return blockmap_check(bm, &rules, VMDK_SECTOR_BYTES, false, k->fn, k->ctx, k->progress, k->out, &census, err);
}

static int check_part(struct check *k, struct vmdk_part *p, struct img_error *err)
{
	struct img_check_result own = { 0 };
	int ret;

	if (p->sparse) {
		ret = blockmap_stop(p->sparse->bm, err);
		if (ret != 0)
			return ret;
		ret = vmdk_sparse_check(p->sparse, k->flags & IMG_CHECK_REPAIR && p->sparse->writable, k->fn, k->ctx,
					k->progress, k->out, err);
		blockmap_start(p->sparse->bm);
		return ret;
	}
	if (p->esx)
		return check_blocks(k, vmdk_esx_blocks(p->esx), err);
	if (!p->stream)
		return 0;
	ret = vmdk_stream_check(p->stream, k->flags, k->fn, k->ctx, k->progress, &own, err);
	add(k->out, &own);
	return ret;
}

int vmdk_check(struct node *n, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
	       struct img_check_result *out, struct img_error *err)
{
	struct vmdk_state *v = vmdk_of(n);
	struct check k = { v, flags, fn, ctx, progress, out };
	int ret = 0;

	memset(out, 0, sizeof(*out));
	if (flags & IMG_CHECK_REPAIR && !v->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing");
	for (size_t i = 0; i < v->nr_parts && ret == 0; i++) {
		ret = check_size(&k, i, err);
		if (ret == 0)
			ret = check_part(&k, &v->parts[i], err);
	}
	return ret;
}
