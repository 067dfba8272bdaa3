/* SPDX-License-Identifier: MIT */
/* See scenario.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "error.h"
#include "scenario.h"

static const struct scenario scenarios[] = {
	{ "raw", 'r', false, "block,sub,flush,zero,grow,fua,shrink,look,reopen,block" },
	{ "open", 's', false, "look,reopen,look,list" },
	{ "write", 's', false, "block,sub,unit,leaf,inunit,zero,discard,flush" },
	{ "journal", 'j', false, "block,flush,sub,unit,fua,inunit,flush,zero,checkpoint" },
	{ "snapshots", 's', false, "block,createC,sub,createV,deleteA,leaf,deleteB,flush,deleteC" },
	{ "revert", 'j', false, "block,revertA,sub,flush,deleteB,revertA" },
	{ "resize", 'j', false, "grow,leaf,flush,shrink,checkpoint,grow" },
	{ "machine-state", 's', false, "vmstate,createV,renameA,vmzero,vmstate,vmzero,checkpoint" },
	{ "check", 's', false, "block,check,diff,list,flush,check" },
	{ "repair", 's', false, "block,repair,flush,check" },
	{ "convert", 's', false, "block,convert" },
	{ "commit", 'o', false, "block,commit,look" },
	{ "rebase", 'o', false, "block,rebase,look" },
	{ "flatten", 'u', false, "block,flatten,look,rebase,look" },
	{ "inspect", 's', false, "block,flush,inspect" },
	{ "inspect-overlay", 'u', true, "inspect,look" },
	{ "overlay", 'u', false, "sub,flush,createC,zero,reopen,look" },
	{ "recovery", 'j', true, "look,block,flush,deleteA" },
	{ "recovery-overlay", 'u', true, "look,check,block,flush" },
	{ "create", 's', false, "make" },
	{ "vdi-open", 'd', false, "look,reopen,look" },
	{ "vdi-write", 'd', false, "block,sub,leaf,zero,discard,flush" },
	{ "vdi-resize", 'd', false, "grow,leaf,flush,shrink,grow" },
	{ "vdi-check", 'd', false, "block,check,flush,repair,check" },
	{ "vdi-convert", 'd', false, "block,convert" },
	{ "vdi-create", 'd', false, "make" },
	{ "vdi-overlay", 'e', false, "sub,flush,zero,reopen,look,grow" },
	{ "vdi-commit", 'e', false, "block,commit,look" },
	{ "vdi-rebase", 'e', false, "block,rebase,look,flatten" },
	{ "vhd-open", 'g', false, "look,reopen,look" },
	{ "vhd-write", 'g', false, "block,sub,leaf,zero,discard,flush" },
	{ "vhd-resize", 'g', false, "grow,leaf,flush,shrink,grow" },
	{ "vhd-check", 'g', false, "block,check,flush,repair,check" },
	{ "vhd-convert", 'g', false, "block,convert" },
	{ "vhd-create", 'g', false, "make" },
	{ "vhd-fixed", 'f', false, "block,grow,flush,shrink,check,convert" },
	{ "vhd-overlay", 'h', false, "sub,flush,zero,reopen,look,grow" },
	{ "vhd-commit", 'h', false, "block,commit,look" },
	{ "vhd-rebase", 'h', false, "block,rebase,look,flatten" },
	{ "vmdk-open", 'y', false, "look,reopen,look" },
	{ "vmdk-write", 'y', false, "block,sub,leaf,zero,discard,flush" },
	{ "vmdk-resize", 'y', false, "grow,leaf,flush,shrink,grow" },
	{ "vmdk-check", 'y', false, "block,check,flush,repair,check" },
	{ "vmdk-convert", 'y', false, "block,convert" },
	{ "vmdk-create", 'y', false, "make" },
	{ "vmdk-extents", 'm', false, "block,sub,leaf,zero,discard,flush" },
	{ "vmdk-raw-extents", 't', false, "block,sub,leaf,zero,discard,flush" },
	{ "vmdk-extents-convert", 'm', false, "block,convert" },
	{ "vmdk-raw-extents-convert", 't', false, "block,convert" },
	{ "vmdk-extents-create", 'm', false, "make" },
	{ "vmdk-overlay", 'z', false, "sub,flush,zero,reopen,look,grow" },
	{ "vmdk-commit", 'z', false, "block,commit,look" },
	{ "vmdk-rebase", 'z', false, "block,rebase,look,flatten" },
	{ "vhdx-open", 'Y', false, "look,reopen,look" },
	{ "vhdx-write", 'Y', false, "block,sub,leaf,zero,discard,flush" },
	{ "vhdx-resize", 'Y', false, "grow,leaf,flush,shrink,grow" },
	{ "vhdx-check", 'Y', false, "block,check,flush,repair,check" },
	{ "vhdx-convert", 'Y', false, "block,convert" },
	{ "vhdx-create", 'Y', false, "make" },
	{ "vhdx-fixed", 'X', false, "block,grow,flush,shrink,check,convert" },
	{ "vhdx-overlay", 'Z', false, "sub,flush,zero,reopen,look,grow" },
	{ "vhdx-commit", 'Z', false, "block,commit,look" },
	{ "vhdx-rebase", 'Z', false, "block,rebase,look,flatten" },
	{ "parallels-open", 'i', false, "look,reopen,look" },
	{ "parallels-write", 'n', false, "block,sub,leaf,zero,discard,flush" },
	{ "parallels-resize", 'i', false, "grow,leaf,flush,shrink,grow" },
	{ "parallels-check", 'i', false, "block,check,flush,repair,check" },
	{ "parallels-convert", 'i', false, "block,convert" },
	{ "parallels-create", 'i', false, "make" },
	{ "bundle-open", 'b', false, "look,reopen,look" },
	{ "bundle-write", 'b', false, "block,sub,leaf,zero,discard,flush" },
	{ "bundle-check", 'b', false, "block,check,flush,repair,check" },
	{ "bundle-create", 'b', false, "make" },
	{ "bundle-convert", 'b', false, "block,convert" },
	{ "vmdk-stream", 'S', false, "block,zero,sub,convert" },
	{ "vmdk-stream-create", 'S', false, "make" },
	{ "qcow2-open", 'q', false, "look,reopen,look,list" },
	{ "qcow2-write", 'q', false, "block,sub,unit,leaf,inunit,zero,discard,flush" },
	{ "qcow2-tables", 'k', false, "block,unit,flush,inunit,zero,fua" },
	{ "qcow2-subclusters", 'x', false, "block,sub,unit,leaf,inunit,zero,discard,flush" },
	{ "qcow2-v2", 'v', false, "sub,inunit,zero,discard,flush,createC" },
	{ "qcow2-snapshots", 'q', false, "block,createC,sub,createV,deleteA,leaf,deleteB,flush,deleteC" },
	{ "qcow2-snapshots-small", 'k', false, "sub,createC,sub,deleteA,flush" },
	{ "qcow2-revert", 'q', false, "block,revertA,sub,flush,deleteB,revertA" },
	{ "qcow2-revert-small", 'k', false, "sub,revertB" },
	{ "qcow2-resize", 'k', false, "grow,leaf,flush,shrink,checkpoint,grow" },
	{ "qcow2-machine-state", 'q', false, "vmstate,createV,renameA,vmzero,vmstate,vmzero,checkpoint" },
	{ "qcow2-check", 'q', false, "block,check,diff,list,flush,check" },
	{ "qcow2-repair", 'l', false, "look,repair,block,flush,check" },
	{ "qcow2-convert", 'q', false, "block,convert" },
	{ "qcow2-commit", 'p', false, "block,commit,look" },
	{ "qcow2-rebase", 'p', false, "block,rebase,look" },
	{ "qcow2-flatten", 'p', false, "block,flatten,look,rebase,look" },
	{ "qcow2-amend", 'p', false, "zero,amendV2V3,block,amendLazy,sub,flush,amendEager" },
	{ "qcow2-amend-snapshots", 'v', false, "sub,amendV3,block,createC,amendV2" },
	{ "qcow2-bitmaps", 'q', false,
	  "bitmapAdd,block,bitmapAddTwo,sub,bitmapMerge,bitmapClear,flush,bitmapRemove,reopen,block" },
	{ "qcow2-bitmaps-small", 'k', false,
	  "bitmapAdd,block,reopen,block,createC,bitmapDisable,bitmapEnable,revertA,zero" },
	{ "qcow2-inspect", 'q', false, "block,flush,inspect" },
	{ "qcow2-inspect-overlay", 'p', false, "inspect" },
	{ "qcow2-overlay", 'p', false, "sub,flush,createC,zero,reopen,look" },
	{ "qcow2-create", 'q', false, "make" },
};

const struct scenario *scenario_at(unsigned i)
{
	return i < ARRAY_LEN(scenarios) ? &scenarios[i] : NULL;
}

/* ---- steps that change nothing ----------------------------------------------------------------------------------- */

static int step_look(struct machine *m, struct img_error *err)
{
	uint8_t buf[64 * SECTOR];
	uint64_t size = img_size(m->img);
	int ret = 0;

	for (uint64_t off = 0; off < size && ret == 0; off += sizeof(buf))
		ret = img_pread(m->img, buf, min_u64(sizeof(buf), size - off), off, 0, err);
	return ret;
}

static int step_list(struct machine *m, struct img_error *err)
{
	struct img_snapshot list[MAX_SNAPS];
	struct img_info info;
	struct img *view;
	size_t nr;
	int ret = img_snapshot_list(m->img, list, MAX_SNAPS, &nr, err);

	if (ret == 0)
		ret = img_info(m->img, &info, err);
	for (size_t i = 0; i < nr && ret == 0; i++) {
		ret = img_snapshot_open(m->img, list[i].name, &view, err);
		if (ret == 0)
			ret = img_close(view, err);
	}
	return ret;
}

static int diff_nothing(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	(void)ctx;
	(void)off;
	(void)bytes;
	(void)kind;
	return 0;
}

static int step_diff(struct machine *m, struct img_error *err)
{
	int ret = img_snapshot_diff(m->img, "A", "B", diff_nothing, NULL, err);

	return ret == 0 ? img_snapshot_diff(m->img, "B", NULL, diff_nothing, NULL, err) : ret;
}

static int step_check(struct machine *m, struct img_error *err)
{
	struct img_check_result result;

	return img_check(m->img, 0, NULL, NULL, NULL, &result, err);
}

static int step_repair(struct machine *m, struct img_error *err)
{
	struct img_check_result result;

	return img_check(m->img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, err);
}

/*
 * What is found without failures: snapshots and machine state, or the parent. A host that fails may make the verdict
 * worse, not better.
 */
static int step_inspect(struct machine *m, struct img_error *err)
{
	static const struct {
		char setup;
		uint64_t findings;
	} least[] = { { 's', 3 }, { 'q', 3 }, { 'u', 2 }, { 'p', 1 } };
	struct img_inspect_options o = { .struct_size = sizeof(o), .flags = IMG_OPEN_FORCE_SHARE };
	struct img_inspect_result result;
	int ret = image_inspect_env(m->setup->file, &o, NULL, NULL, &result, &m->host->env, err);

	for (size_t i = 0; i < ARRAY_LEN(least) && ret == 0; i++) {
		if (least[i].setup == m->setup->letter &&
		    result.notes + result.unsafe + result.unparseable < least[i].findings) {
			fputs("findings are missing\n", stderr);
			abort(); /* a failure of the step could be that of the host */
		}
	}
	return ret;
}

/* Dirty bitmaps of granules of 512 bytes and of 64 KiB: what they say across failures is the business of crash_bitmaps.
 */
static int step_bitmap_add(struct machine *m, struct img_error *err)
{
	return img_bitmap_add(m->img, "one", 512, 0, err);
}

static int step_bitmap_add_two(struct machine *m, struct img_error *err)
{
	return img_bitmap_add(m->img, "two", 65536, IMG_BITMAP_ADD_DISABLED, err);
}

static int step_bitmap_merge(struct machine *m, struct img_error *err)
{
	return img_bitmap_merge(m->img, "two", NULL, "one", err);
}

static int step_bitmap_clear(struct machine *m, struct img_error *err)
{
	return img_bitmap_clear(m->img, "one", err);
}

static int step_bitmap_disable(struct machine *m, struct img_error *err)
{
	return img_bitmap_disable(m->img, "one", err);
}

static int step_bitmap_enable(struct machine *m, struct img_error *err)
{
	return img_bitmap_enable(m->img, "one", err);
}

static int step_bitmap_remove(struct machine *m, struct img_error *err)
{
	return img_bitmap_remove(m->img, "two", err);
}

/* A second image beside the first; there whole or not at all. */
static int step_make(struct machine *m, struct img_error *err)
{
	const struct setup *s = m->setup;
	bool alone = s->may_leak || s->new_format;
	struct img_create_options o = {
		.struct_size = sizeof(o),
		.format = s->new_format ? s->new_format : s->format,
		.options = s->new_options,
		.size_bytes = 1 << 20,
		.backing = alone ? NULL : s->file, /* there: its head is being written */
		.backing_snapshot = alone ? NULL : "A",
		.backing_format = alone ? NULL : s->format,
		.refs = IMG_REFS_ANY,
	};

	return image_create_env("made.img", &o, &m->host->env, err);
}

int scenario_step(struct machine *m, const char *name, struct img_error *err)
{
	static const struct {
		const char *name;
		int (*run)(struct machine *m, struct img_error *err);
	} own[] = { { "look", step_look },
		    { "list", step_list },
		    { "diff", step_diff },
		    { "check", step_check },
		    { "repair", step_repair },
		    { "make", step_make },
		    { "inspect", step_inspect },
		    { "bitmapAdd", step_bitmap_add },
		    { "bitmapAddTwo", step_bitmap_add_two },
		    { "bitmapMerge", step_bitmap_merge },
		    { "bitmapClear", step_bitmap_clear },
		    { "bitmapDisable", step_bitmap_disable },
		    { "bitmapEnable", step_bitmap_enable },
		    { "bitmapRemove", step_bitmap_remove } };
	const struct operation *op = operation_find(m->setup, name);

	error_clear(err);
	if (op != NULL)
		return op->run(m, err);
	m->in_flight = m->ws;
	for (size_t i = 0; i < ARRAY_LEN(own); i++) {
		if (strcmp(own[i].name, name) == 0)
			return own[i].run(m, err) == 0 ? 0 : -1;
	}
	return error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "test", "no step %s", name);
}
