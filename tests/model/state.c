/* SPDX-License-Identifier: MIT */
/* The stack of files: making, opening, closing and dropping them, and what the truth knows of their snapshots. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model.h"

int fail(struct model *m, const char *fmt, ...)
{
	va_list ap;

	if (m->failure[0])
		return -1;
	va_start(ap, fmt);
	vsnprintf(m->failure, sizeof(m->failure), fmt, ap);
	va_end(ap);
	return -1;
}

int expect(struct model *m, int got, int want, const struct img_error *err, const char *what)
{
	if (got == want)
		return 0;
	if (got < 0 && err->msg[0] == '\0')
		return fail(m, "%s returned %d without a message", what, got);
	if (got < 0 && !m->failure[0])
		m->refused = got;
	return fail(m, "%s returned %d (%s), not %d", what, got, got != 0 ? err->msg : "", want);
}

static struct img_open_options open_options(const struct mfile *f)
{
	return (struct img_open_options){
		.struct_size = sizeof(struct img_open_options),
		.format = f->format->raw ? "raw" : NULL,
		.flags = IMG_OPEN_WRITE,
		.refs = IMG_REFS_ANY,
	};
}

int open_top(struct model *m)
{
	struct img_open_options opts = open_options(&m->files[m->top]);
	struct img_error err = { 0 };

	return expect(m, image_open_env(m->files[m->top].name, &opts, &m->fs.env, &m->img, &err), 0, &err, "open");
}

int release_held(struct model *m)
{
	struct img_error err = { 0 };
	struct img *held = m->held;

	m->held = NULL;
	return held ? expect(m, img_close(held, &err), 0, &err, "close of a snapshot") : 0;
}

int close_top(struct model *m)
{
	struct img_error err = { 0 };
	struct img *img = m->img;

	if (release_held(m) != 0)
		return -1;
	m->img = NULL;
	if (!m->files[m->top].format->keeps_vm)
		flat_resize(&m->files[m->top].vm, 0);
	return img ? expect(m, img_close(img, &err), 0, &err, "close") : 0;
}

/* Creates the next file of the stack on a state of files[parent] (-1: on nothing); the top is closed. */
int make_file(struct model *m, int parent, const char *parent_snap, uint64_t size_bytes)
{
	const struct geometry *g = &m->geometry;
	struct mfile *f = &m->files[m->top + 1];
	const struct traits *t = parent < 0 && g->base ? g->base : g->format;
	struct img_create_options opts = {
		.struct_size = sizeof(opts),
		.format = t->name,
		.options = t != g->format		    ? NULL :
			   parent < 0 && g->base_options[0] ? g->base_options :
							      g->options,
		.size_bytes = size_bytes,
		.size_given = true,
		.backing = parent < 0 ? NULL : m->files[parent].name,
		.backing_snapshot = *parent_snap ? parent_snap : NULL,
		.backing_format = parent < 0 ? NULL : m->files[parent].format->name,
		.refs = IMG_REFS_ANY,
	};
	struct img_error err = { 0 };

	memset(f, 0, sizeof(*f));
	snprintf(f->name, sizeof(f->name), "f%d", m->top + 1);
	snprintf(f->parent_snap, sizeof(f->parent_snap), "%s", parent_snap);
	f->parent = parent;
	f->format = t;
	f->is_v2 = t == g->format && g->is_v2;
	f->next_id = 1;
	if (t->device && !device_make(&m->fs, f->name))
		return fail(m, "no memory for a device");
	opts.flags = t->device ? IMG_CREATE_DEVICE : 0;
	if (expect(m, image_create_env(f->name, &opts, &m->fs.env, &err), 0, &err, "create") != 0)
		return -1;
	if (parent >= 0)
		flat_copy(&f->head, parent_content(m, f));
	else
		flat_init(&f->head, size_bytes);
	flat_resize(&f->head, size_bytes);
	flat_init(&f->vm, 0);
	m->top++;
	return 0;
}

void free_snap(struct msnap *s)
{
	flat_free(&s->disk);
	flat_free(&s->vm);
}

void drop_file(struct model *m, int index)
{
	struct mfile *f = &m->files[index];

	for (size_t i = 0; i < f->nr_snaps; i++)
		free_snap(&f->snaps[i]);
	flat_free(&f->head);
	flat_free(&f->vm);
	bitmaps_drop(m, index);
	memfs_remove_image(&m->fs, f->name);
	memset(f, 0, sizeof(*f));
}

struct msnap *pick_snap(struct model *m, uint32_t r)
{
	struct mfile *f = &m->files[m->top];

	return f->nr_snaps ? &f->snaps[r % f->nr_snaps] : NULL;
}

struct msnap *find_snap(struct mfile *f, const char *name)
{
	for (size_t i = 0; i < f->nr_snaps; i++) {
		if (strcmp(f->snaps[i].name, name) == 0)
			return &f->snaps[i];
	}
	return NULL;
}

const struct flat *parent_content(struct model *m, const struct mfile *f)
{
	struct mfile *parent = f->parent < 0 ? NULL : &m->files[f->parent];

	if (!parent)
		return NULL;
	return f->parent_snap[0] ? &find_snap(parent, f->parent_snap)->disk : &parent->head;
}
