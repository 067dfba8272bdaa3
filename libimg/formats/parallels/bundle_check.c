/* SPDX-License-Identifier: MIT */
/* Check of a bundle: what its descriptor says beyond what opening it wants, then each image by itself. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "prl_bundle.h"

struct check {
	const struct prl_bundle *b;
	img_finding_fn fn;
	void *ctx;
	struct img_check_result *out;
	const char *where; /* GUID of a snapshot, "" */
	const char *file;  /* name of the image */
};

static void found(struct check *k, enum img_finding_kind kind, const char *rule, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static void found(struct check *k, enum img_finding_kind kind, const char *rule, const char *fmt, ...)
{
	struct img_finding f = { .kind = kind, .file_off = NO_OFFSET, .guest_off = NO_OFFSET };
	va_list ap;

	k->out->damage += kind == IMG_FINDING_DAMAGE;
	k->out->leaks += kind == IMG_FINDING_LEAK;
	if (!k->fn)
		return;
	(void)snprintf(f.rule, sizeof(f.rule), "%s", rule);
	(void)snprintf(f.where, sizeof(f.where), "%s", k->where ? k->where : "");
	va_start(ap, fmt);
	/* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): it is, one line above */
	(void)vsnprintf(f.msg, sizeof(f.msg), fmt, ap);
	va_end(ap);
	k->fn(k->ctx, &f);
}

/* A finding of one image: in which one. Its offset is in that file. */
static void pass_on(void *ctx, const struct img_finding *finding)
{
	struct check *k = ctx;
	struct img_finding f = *finding;

	if (!k->fn)
		return;
	(void)snprintf(f.where, sizeof(f.where), "%s", k->where);
	(void)snprintf(f.msg, sizeof(f.msg), "%.80s: %.120s", k->file, finding->msg);
	k->fn(k->ctx, &f);
}

static void check_descriptor(struct check *k)
{
	const struct prl_descriptor *d = &k->b->d;
	uint64_t chs;

	if (mul_overflows(d->cylinders, d->heads, &chs) || mul_overflows(chs, d->sectors, &chs) ||
	    chs != d->disk_bytes / PRL_SECTOR_BYTES)
		found(k, IMG_FINDING_NOTE, "PRL-11",
		      "the geometry, %" PRIu64 "/%" PRIu64 "/%" PRIu64 ", is that of another size", d->cylinders,
		      d->heads, d->sectors);
	for (size_t i = 0; i < d->nr_storages; i++)
		for (size_t n = 0; n < d->storage[i].nr_parts; n++) {
			char guid[PRL_GUID_TEXT_BYTES];

			prl_guid_text(d->storage[i].part[n].guid, guid);
			if (prl_shot_named(d, guid) == PRL_NO_SHOT)
				found(k, IMG_FINDING_NOTE, "PRL-13", "%.100s: belongs to no snapshot",
				      d->storage[i].part[n].file);
		}
}

static void check_cluster(struct check *k, const struct node *layer, uint64_t cluster_bytes, bool plain)
{
	struct driver_limits limits;

	node_limits(layer, &limits);
	if (!plain && limits.block_bytes != cluster_bytes)
		found(k, IMG_FINDING_NOTE, "PRL-14",
		      "%.100s: has clusters of %" PRIu32 " bytes, its storage says %" PRIu64, k->file,
		      limits.block_bytes, cluster_bytes);
}

static void add(struct img_check_result *sum, const struct img_check_result *one)
{
	sum->damage += one->damage;
	sum->leaks += one->leaks;
	sum->redundancy += one->redundancy;
	sum->repaired += one->repaired;
	sum->data_bytes += one->data_bytes;
	sum->metadata_bytes += one->metadata_bytes;
	sum->leaked_bytes += one->leaked_bytes;
}

static int check_layer(struct check *k, size_t storage, size_t i, unsigned flags, const struct img_progress *progress,
		       struct img_error *err)
{
	const struct prl_stack *s = &k->b->stack[storage];
	const struct prl_shot *shot = &k->b->d.shot[s->shot[i]];
	char guid[PRL_GUID_TEXT_BYTES] = "";
	struct img_check_result one;
	int ret;

	if (s->shot[i] != k->b->d.head) {
		prl_guid_text(shot->guid, guid);
		memmove(guid, guid + 1, 36);
		guid[36] = '\0';
	}
	k->where = guid;
	k->file = s->part[i] ? s->part[i]->file : "";
	if (!s->layer[i].node && !k->b->check_only) {
		k->where = NULL;
		return 0;
	}
	if (!s->layer[i].node) {
		found(k, IMG_FINDING_DAMAGE, "PRL-11", "%s", s->why[i].msg);
		k->where = NULL;
		return 0;
	}
	check_cluster(k, s->layer[i].node, k->b->d.storage[storage].cluster_bytes, s->part[i] && s->part[i]->plain);
	ret = node_check(s->layer[i].node, flags, pass_on, k, progress, &one, err);
	k->where = NULL;
	if (ret == 0)
		add(k->out, &one);
	return ret;
}

int prl_bundle_check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx,
		     const struct img_progress *progress, struct img_check_result *out, struct img_error *err)
{
	const struct prl_bundle *b = prl_state_of(node)->bundle;
	struct check k = { .b = b, .fn = fn, .ctx = ctx, .out = out };
	int ret = 0;

	memset(out, 0, sizeof(*out));
	if ((flags & IMG_CHECK_REPAIR) && !b->writable)
		return error_set(err, IMG_E_READONLY, 0, NO_OFFSET, LAYER,
				 "repair needs an image that is open for writing");
	check_descriptor(&k);
	out->metadata_bytes += node_size(node->file);
	/* Who looks without opening anything else gets no further. */
	for (size_t i = 0; !b->absent && i < b->d.nr_storages && ret == 0; i++)
		for (size_t n = 0; n < b->stack[i].nr && ret == 0; n++) {
			/* What lies below the head is open to be read. */
			bool may_repair = b->check_only || n == b->stack[i].top;

			ret = check_layer(&k, i, n, may_repair ? flags : flags & ~(unsigned)IMG_CHECK_REPAIR, progress,
					  err);
		}
	return ret;
}
