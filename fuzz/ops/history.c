/* SPDX-License-Identifier: MIT */
/*
 * What the host did since the content of the top was last durable, and what a crash may leave of it. Only the file that
 * is written by operations is followed: those that go through other files (an overlay is made, a parent is written)
 * end with a flush, and history begins anew after them.
 */
#include <stdlib.h>
#include <string.h>

#include "ops.h"

static void *must(void *p)
{
	FUZZ_CHECK(p != NULL);
	return p;
}

void mfile_copy(struct mfile *to, const struct mfile *from)
{
	*to = *from;
	flat_copy(&to->head, &from->head);
	flat_copy(&to->vm, &from->vm);
	for (size_t i = 0; i < from->nr_snaps; i++) {
		flat_copy(&to->snaps[i].disk, &from->snaps[i].disk);
		flat_copy(&to->snaps[i].vm, &from->snaps[i].vm);
	}
}

void mfile_free(struct mfile *f)
{
	for (size_t i = 0; i < f->nr_snaps; i++)
		free_snap(&f->snaps[i]);
	flat_free(&f->head);
	flat_free(&f->vm);
}

int ops_wrap(void *ctx, struct node *child, const char *name, const struct host_open *args, struct node **out,
	     struct img_error *err)
{
	struct ops *o = ctx;
	struct model *m = &o->m;
	int ret = 0;

	if (m->top >= 0 && args->writable && strcmp(name, m->files[m->top].name) == 0)
		ret = crash_node_new(child, o->log, 0, &child, err);
	return ret == 0 ? fault_node_new(child, &o->plan, out, err) : ret;
}

static void forget_versions(struct ops *o)
{
	for (size_t i = 0; i < o->nr_versions; i++) {
		mfile_free(&o->version[i]->truth);
		free(o->version[i]);
	}
	o->nr_versions = 0;
}

void history_add(struct ops *o, bool durable)
{
	struct version *v = must(calloc(1, sizeof(*v)));

	FUZZ_CHECK(o->nr_versions < sizeof(o->version) / sizeof(o->version[0]));
	mfile_copy(&v->truth, &o->m.files[o->m.top]);
	v->log_end = crash_log_nr(o->log);
	v->durable = durable;
	if (durable)
		memset(o->wild, 0, sizeof(o->wild));
	o->version[o->nr_versions++] = v;
}

int history_restart(struct ops *o)
{
	struct model *m = &o->m;
	struct img_error err = { 0 };

	if (expect(m, img_flush(m->img, 0, &err), 0, &err, "flush") != 0)
		return -1;
	mem_content_unref(o->base);
	o->base = must(mem_content_clone(memfs_find(&m->fs, m->files[m->top].name)));
	o->base_at = crash_log_nr(o->log);
	forget_versions(o);
	history_add(o, true);
	return 0;
}

void history_free(struct ops *o)
{
	forget_versions(o);
	mem_content_unref(o->base);
	crash_log_free(o->log);
}

/* How much of a write that is not durable is there. Rubbish only where a format never overwrites what counts. */
static struct crash_fate fate_of(const struct ops *o, size_t i, const uint32_t *r)
{
	uint64_t state = ((uint64_t)r[1] << 32 | r[3]) + i * UINT64_C(0x10001), x = rng_next(&state);
	struct crash_fate fate = { .kind = FATE_APPLIED, .tear_bytes = x >> 40 & 1 ? 512 : 4096, .seed = x };
	bool garbage = o->m.files[o->m.top].format->strong_pins;

	switch (r[2] % 4) {
	case 0: fate.kind = FATE_DROPPED; return fate;
	case 1: /* one is lost, or there in part */
		if (i % 16 != r[3] % 16)
			return fate;
		fate.kind = r[3] >> 4 & 1 ? FATE_TORN : FATE_DROPPED;
		return fate;
	case 2: /* one is there */
		if (i % 16 != r[3] % 16)
			fate.kind = FATE_DROPPED;
		return fate;
	default: break;
	}
	if (x % 100 < 40)
		fate.kind = FATE_DROPPED;
	else if (x % 100 < 55)
		fate.kind = FATE_TORN;
	else if (x % 100 < 62)
		fate.kind = garbage ? FATE_GARBAGE : FATE_TORN;
	else if (x % 100 < 68)
		fate.kind = FATE_LENGTH;
	return fate;
}

struct mem_content *history_crash(struct ops *o, size_t at, const uint32_t *r)
{
	static const struct crash_fate whole = { .kind = FATE_APPLIED };
	struct mem_content *content = must(mem_content_clone(o->base));
	struct host_open args = { .writable = true };
	struct node *node = NULL;
	size_t covered = 0;

	FUZZ_CHECK(mem_node_on(content, "crashed", &args, &node, NULL) == 0);
	for (size_t i = o->base_at; i < at; i++) {
		const struct crash_entry *e = crash_log_at(o->log, i);

		if (e->kind == CRASH_FLUSH && e->covers > covered)
			covered = e->covers;
	}
	for (size_t i = o->base_at; i < at; i++) {
		const struct crash_entry *e = crash_log_at(o->log, i);
		struct crash_fate fate = i < covered ? whole : fate_of(o, i, r);

		if (crash_is_volatile(e))
			FUZZ_CHECK(crash_apply(node, e, &fate) == 0);
	}
	FUZZ_CHECK(node_close(node, NULL) == 0);
	return content;
}
