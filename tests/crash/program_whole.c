/* SPDX-License-Identifier: MIT */
/*
 * Operations on images as a whole: see program.h. Conversion makes a second file; commit, rebase, flatten, amend and
 * repair change how the disk is stored and nothing of what it holds, so that every world stays as it is; they end with
 * a flush.
 */
#include <string.h>

#include "checked.h"
#include "error.h"
#include "program.h"

#define MADE_SECTORS 512u

/* What is told is tested elsewhere; here the telling may fail. */
static void hear(void *ctx, const struct img_left *left)
{
	(void)ctx;
	(void)left;
}

static const char *new_format(const struct setup *s)
{
	return s->new_format ? s->new_format : s->format;
}

static const char *new_options(const struct setup *s)
{
	return s->new_format ? s->new_options : s->options;
}

/* Data files of the one that was made before. */
static bool is_in_the_way(struct machine *m)
{
	return m->setup->new_in_parts && worlds_latest(&m->ws)->has_new;
}

static int run_convert(struct machine *m, struct img_error *err)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .format = new_format(m->setup),
					     .flags = IMG_CREATE_OVERWRITE,
					     .options = new_options(m->setup) };
	struct img_copy_options copy = {
		.struct_size = sizeof(copy), .threads = 1, .flags = IMG_COPY_COMPRESS, .left_behind = hear
	};
	struct content made = worlds_latest(&m->ws)->latest;
	bool refused = is_in_the_way(m);
	unsigned nr = refused ? 0 : m->ws.nr;

	made.vm_sectors = 0;
	m->in_flight = m->ws;
	for (unsigned i = 0; i < nr; i++) {
		m->ws.w[i].has_new = true;
		m->ws.w[i].made = made;
		worlds_append(&m->in_flight, &m->ws.w[i]);
	}
	return operation_expect(image_convert_env(m->img, NEW_FILE, &create, &copy, &m->host->env, err),
				refused ? IMG_E_EXISTS : 0, err);
}

/* An empty image beside the first; it is there whole or not at all. */
static int run_make(struct machine *m, struct img_error *err)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .format = new_format(m->setup),
					     .size_bytes = MADE_SECTORS * SECTOR,
					     .flags = IMG_CREATE_OVERWRITE,
					     .options = new_options(m->setup) };
	bool refused = is_in_the_way(m);
	unsigned nr = refused ? 0 : m->ws.nr;

	m->in_flight = m->ws;
	for (unsigned i = 0; i < nr; i++) {
		m->ws.w[i].has_new = true;
		memset(&m->ws.w[i].made, 0, sizeof(m->ws.w[i].made));
		m->ws.w[i].made.sectors = MADE_SECTORS;
		worlds_append(&m->in_flight, &m->ws.w[i]);
	}
	return operation_expect(image_create_env(NEW_FILE, &create, &m->host->env, err), refused ? IMG_E_EXISTS : 0,
				err);
}

static int run_commit(struct machine *m, struct img_error *err)
{
	struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 1 };
	bool refused = worlds_latest(&m->ws)->nr_snaps > 0 || img_backing(m->img) == NULL;

	m->in_flight = m->ws;
	if (!refused)
		worlds_settle(&m->ws);
	return operation_expect(img_commit(m->img, &copy, err), refused ? IMG_E_REFUSED : 0, err);
}

/* The content stays; REFUSED where there are snapshots. */
static int run_rebase(struct machine *m, struct img_error *err)
{
	struct img_rebase_options o = { .struct_size = sizeof(o),
					.backing = OTHER_FILE,
					.backing_format = m->setup->format,
					.refs = IMG_REFS_ANY };
	bool refused = worlds_latest(&m->ws)->nr_snaps > 0;

	m->in_flight = m->ws;
	if (!refused)
		worlds_settle(&m->ws);
	return operation_expect(img_rebase(m->img, &o, err), refused ? IMG_E_REFUSED : 0, err);
}

static int run_flatten(struct machine *m, struct img_error *err)
{
	bool flat = img_backing(m->img) == NULL; /* then there is nothing to do, and no flush */
	bool refused = !flat && worlds_latest(&m->ws)->nr_snaps > 0;

	m->in_flight = m->ws;
	if (!refused && !flat)
		worlds_settle(&m->ws);
	return operation_expect(img_flatten(m->img, NULL, err), refused ? IMG_E_REFUSED : 0, err);
}

static int amend(struct machine *m, const char *options, struct img_error *err)
{
	m->in_flight = m->ws;
	worlds_settle_disk(&m->ws);
	return operation_expect(img_amend(m->img, options, err), 0, err);
}

static int run_amend_lazy(struct machine *m, struct img_error *err)
{
	return amend(m, "compat=1.1,lazy_refcounts=on", err);
}

static int run_amend_eager(struct machine *m, struct img_error *err)
{
	return amend(m, "lazy_refcounts=off", err);
}

static int run_amend_v3(struct machine *m, struct img_error *err)
{
	return amend(m, "compat=1.1", err);
}

/* Zero clusters, which version 2 cannot say, are written out; it cannot be done to those of a snapshot. */
static int run_amend_v2(struct machine *m, struct img_error *err)
{
	int ret;

	m->in_flight = m->ws;
	ret = img_amend(m->img, "compat=0.10", err);
	if (ret == IMG_E_UNSUPPORTED && worlds_latest(&m->ws)->nr_snaps > 0)
		return operation_expect(ret, IMG_E_UNSUPPORTED, err);
	worlds_settle_disk(&m->ws);
	return operation_expect(ret, 0, err);
}

/* In version 2 an image with snapshots cannot be resized: other operations find version 3 again. */
static int run_amend_v2_v3(struct machine *m, struct img_error *err)
{
	static struct worlds before; /* not allocated: allocation may be what is made to fail */
	int ret;

	before = m->ws;
	ret = run_amend_v2(m, err);
	if (ret == 0)
		ret = run_amend_v3(m, err);
	m->in_flight = before;
	return ret;
}

static int run_repair(struct machine *m, struct img_error *err)
{
	struct img_check_result result;

	m->in_flight = m->ws;
	return operation_expect(img_check(m->img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, err), 0, err);
}

static const struct operation whole_operations[] = {
	{ "convert", "sjwouqkxvlpdfginbymtXYS", run_convert },
	{ "makeNew", "soqpSbmt", run_make },
	{ "commit", "oupehzZ", run_commit },
	{ "rebase", "oupehzZ", run_rebase },
	{ "flatten", "oupehzZ", run_flatten },
	{ "amendLazy", "qvp", run_amend_lazy },
	{ "amendEager", "qp", run_amend_eager },
	{ "amendV3", "v", run_amend_v3 },
	{ "amendV2", "v", run_amend_v2 },
	{ "amendV2V3", "p", run_amend_v2_v3 },
	{ "repair", "sjldfginbymtXY", run_repair },
};

const struct operation *whole_operation_at(unsigned i)
{
	return i < ARRAY_LEN(whole_operations) ? &whole_operations[i] : NULL;
}
