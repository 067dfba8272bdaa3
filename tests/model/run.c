/* SPDX-License-Identifier: MIT */
/* Runs one program. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define FULL_CHECK_EVERY 64

static const op_fn functions[NR_OPS] = {
	[OP_WRITE] = op_write,
	[OP_WRITE_BLOCKS] = op_write_blocks,
	[OP_WRITE_UNITS] = op_write_units,
	[OP_ZERO] = op_zero,
	[OP_DISCARD] = op_discard,
	[OP_READ] = op_read,
	[OP_FLUSH] = op_flush,
	[OP_CHECKPOINT] = op_checkpoint,
	[OP_SNAP_CREATE] = op_snap_create,
	[OP_SNAP_DELETE] = op_snap_delete,
	[OP_SNAP_REVERT] = op_snap_revert,
	[OP_SNAP_RENAME] = op_snap_rename,
	[OP_SNAP_READ] = op_snap_read,
	[OP_SNAP_HOLD] = op_snap_hold,
	[OP_DIFF] = op_diff,
	[OP_EXTENTS] = op_extents,
	[OP_VM_WRITE] = op_vm_write,
	[OP_VM_ZERO] = op_vm_zero,
	[OP_VM_READ] = op_vm_read,
	[OP_VM_LOAD] = op_vm_load,
	[OP_VM_RESIZE] = op_vm_resize,
	[OP_RESIZE] = op_resize,
	[OP_OVERLAY] = op_overlay,
	[OP_POP] = op_pop,
	[OP_COMMIT] = op_commit,
	[OP_REBASE] = op_rebase,
	[OP_FLATTEN] = op_flatten,
	[OP_REOPEN] = op_reopen,
	[OP_REPLAY] = op_replay,
	[OP_CHECK] = op_check,
	[OP_COMPARE] = op_compare,
	[OP_CONVERT] = op_convert,
	[OP_TOUCH_PARENT] = op_touch_parent,
	[OP_AMEND] = op_amend,
	[OP_BITMAP_ADD] = op_bitmap_add,
	[OP_BITMAP_REMOVE] = op_bitmap_remove,
	[OP_BITMAP_SWITCH] = op_bitmap_switch,
	[OP_BITMAP_CLEAR] = op_bitmap_clear,
	[OP_BITMAP_MERGE] = op_bitmap_merge,
};

/* Something to stand on. */
static int fill_base(struct model *m)
{
	struct mfile *f = &m->files[0];
	struct img_open_options opts = { .struct_size = sizeof(opts),
					 .format = f->format->name,
					 .flags = IMG_OPEN_WRITE };
	struct img_error err = { 0 };
	struct img *img = NULL;
	uint64_t bytes = f->head.size_bytes < 100000 ? f->head.size_bytes : 100000;

	memset(m->buf, 'r', (size_t)bytes);
	flat_write(&f->head, m->buf, bytes, 0);
	if (expect(m, image_open_env(f->name, &opts, &m->fs.env, &img, &err), 0, &err, "open of a base") != 0 ||
	    expect(m, img_pwrite(img, m->buf, bytes, 0, 0, &err), 0, &err, "write to a base") != 0)
		return -1;
	return expect(m, img_close(img, &err), 0, &err, "close of a base");
}

int model_init(struct model *m, const struct geometry *geometry)
{
	m->geometry = *geometry;
	m->block_bytes = geometry->block_bytes;
	m->unit_bytes = geometry->unit_bytes;
	m->top = -1;
	memfs_init(&m->fs);
	if (geometry->format->device)
		m->fs.wrap = device_wrap;
	m->buf = m->buf ? m->buf : malloc(IO_BYTES);
	m->buf2 = m->buf2 ? m->buf2 : malloc(IO_BYTES);
	return m->buf && m->buf2 ? 0 : fail(m, "out of memory");
}

int model_begin(struct model *m)
{
	const struct geometry *g = &m->geometry;

	if (make_file(m, -1, "", g->size_bytes) != 0)
		return -1;
	if (g->base && (fill_base(m) != 0 || make_file(m, 0, "", g->size_bytes) != 0))
		return -1;
	return open_top(m);
}

int model_step(struct model *m, const struct op *op)
{
	return functions[op->kind](m, op->r);
}

/* Closed and opened again, every file that can be opened still holds what it should. */
int model_end(struct model *m)
{
	if (close_top(m) != 0)
		return -1;
	for (int i = m->top; i >= 0; i--) {
		struct mfile *f = &m->files[i];
		struct img_open_options opts = { .struct_size = sizeof(opts),
						 .refs = IMG_REFS_ANY,
						 .format = f->format->raw ? "raw" : NULL };
		struct img_error err = { 0 };
		struct img *img = NULL;
		int ret = image_open_env(f->name, &opts, &m->fs.env, &img, &err);

		if (expect(m, ret, f->stale ? IMG_E_CHANGED : 0, &err, "open at the end") != 0)
			return -1;
		if (ret != 0)
			continue;
		ret = check_everything(m, img, f, "at the end");
		if (expect(m, img_close(img, &err), 0, &err, "close") != 0 || ret != 0)
			return -1;
	}
	return 0;
}

int program_run(const struct program *p, struct model *m, size_t *failed_at)
{
	bool verbose = m->verbose;

	memset(m, 0, sizeof(*m));
	m->verbose = verbose;
	*failed_at = 0;
	if (model_init(m, &p->geometry) != 0 || model_begin(m) != 0)
		return -1;
	for (size_t i = 0; i < p->nr; i++) {
		const struct op *op = &p->ops[i];

		*failed_at = i;
		if (verbose)
			printf("%5zu %s\n", i, op_name(op->kind)), fflush(stdout);
		if (model_step(m, op) != 0)
			return -1;
		if (i % FULL_CHECK_EVERY == FULL_CHECK_EVERY - 1 &&
		    check_everything(m, m->img, &m->files[m->top], "now and then") != 0)
			return -1;
	}
	*failed_at = p->nr;
	return model_end(m);
}

void model_free(struct model *m)
{
	if (m->held)
		img_close(m->held, NULL);
	if (m->img)
		img_close(m->img, NULL);
	for (int i = 0; i <= MODEL_MAX_FILES; i++) {
		if (m->files[i].name[0])
			drop_file(m, i);
	}
	memfs_destroy(&m->fs);
	free(m->buf);
	free(m->buf2);
	m->held = m->img = NULL;
}
