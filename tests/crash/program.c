/* SPDX-License-Identifier: MIT */
/* See program.h. Sizes: blocks of 4 KiB, units of 64 KiB, a leaf of 1 MiB; the disk reaches 64 KiB into its second
 * leaf. */
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "program.h"

#define KIB_SECTORS    2u
#define BLOCK	       8u /* sectors of a block */
#define UNIT	       128u
#define LEAF	       2048u
#define DISK_SECTORS   (LEAF + UNIT)
#define GROWN_SECTORS  (LEAF + 3 * UNIT)
#define SHRUNK_SECTORS (LEAF - UNIT)
#define LIMG_OPTIONS   "block_size=4K,unit_size=64K,compression=zstd"

static int write_sectors(struct img *img, uint32_t first, uint32_t nr, uint8_t id, unsigned flags,
			 struct img_error *err)
{
	static uint8_t buf[UNIT * SECTOR]; /* not allocated: allocation may be what is made to fail */
	uint64_t bytes = (uint64_t)nr * SECTOR;

	pattern_fill(buf, bytes, first, id);
	return img_pwrite(img, buf, bytes, (uint64_t)first * SECTOR, flags, err);
}

static int write_vm(struct img *img, uint32_t first, uint32_t nr, uint8_t id, struct img_error *err)
{
	uint8_t buf[MAX_VM * SECTOR];

	pattern_fill(buf, (uint64_t)nr * SECTOR, VM_SEED + first, id);
	return img_vmstate_write(img, buf, (uint64_t)nr * SECTOR, (uint64_t)first * SECTOR, err);
}

int open_image(struct memhost *host, const struct setup *s, unsigned flags, struct img **out, struct img_error *err)
{
	struct img_open_options o = {
		.struct_size = sizeof(o),
		.format = s->format,
		.flags = flags,
		.refs = IMG_REFS_ANY,
		.cache_bytes = 1 << 20,
	};

	error_clear(err);
	return image_open_env(s->file, &o, &host->env, out, err);
}

int machine_open(struct machine *m, struct img_error *err)
{
	return open_image(m->host, m->setup, IMG_OPEN_WRITE, &m->img, err);
}

int machine_warm(struct machine *m, struct img_error *err)
{
	const struct setup *s = m->setup;
	/* One round more of one block each would be the block that programs write; many go where they do not. */
	uint32_t first = s->warm_blocks == 1 ? 5 * BLOCK : 200 * BLOCK, nr = s->warm_blocks * BLOCK;
	int ret = 0;

	/*
	 * The first flush may have to make room for the journal; the others use it. The same blocks again and again:
	 * the space of the older versions, which records still name, is free for what the program writes.
	 */
	for (unsigned i = 0; i < s->warm_rounds && ret == 0; i++) {
		uint8_t id = (uint8_t)(50 + i % 8);

		worlds_write(&m->ws, first, nr, id);
		ret = write_sectors(m->img, first, nr, id, 0, err);
		if (ret == 0)
			ret = img_flush(m->img, 0, err);
		worlds_settle(&m->ws);
	}
	m->in_flight = m->ws;
	return ret;
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

/* What the documents say comes back, or the failure of the test. */
int operation_expect(int ret, int wanted, struct img_error *err)
{
	if (ret == wanted) {
		error_clear(err);
		return 0;
	}
	if (ret == 0)
		error_set(err, IMG_E_INVALID, 0, NO_OFFSET, "test", "succeeded instead of failing with %s",
			  img_strerror(wanted));
	return -1;
}

static int run_write(struct machine *m, uint32_t first, uint32_t nr, unsigned flags, struct img_error *err)
{
	uint8_t id = (uint8_t)(10 + m->position);
	bool inside = first + nr <= worlds_latest(&m->ws)->latest.sectors;
	int ret;

	if (inside)
		worlds_write(&m->ws, first, nr, id);
	m->in_flight = m->ws;
	ret = write_sectors(m->img, first, nr, id, flags, err);
	if (ret == 0 && (flags & IMG_IO_FUA))
		worlds_settle_disk(&m->ws);
	return operation_expect(ret, inside ? 0 : IMG_E_INVALID, err);
}

static int run_block(struct machine *m, struct img_error *err)
{
	return run_write(m, 5 * BLOCK, BLOCK, 0, err);
}

static int run_sub(struct machine *m, struct img_error *err)
{
	return run_write(m, 6 * BLOCK + 6, 4, 0, err); /* the end of one block, the beginning of the next */
}

static int run_unit(struct machine *m, struct img_error *err)
{
	return run_write(m, UNIT, UNIT, IMG_IO_COMPRESS, err);
}

static int run_in_unit(struct machine *m, struct img_error *err)
{
	return run_write(m, UNIT + 2 * BLOCK, BLOCK, 0, err);
}

static int run_leaf(struct machine *m, struct img_error *err)
{
	return run_write(m, LEAF - BLOCK, 2 * BLOCK, 0, err);
}

static int run_fua(struct machine *m, struct img_error *err)
{
	return run_write(m, 5 * BLOCK + 2, 2, IMG_IO_FUA, err);
}

static int run_zero(struct machine *m, struct img_error *err)
{
	worlds_write(&m->ws, 4 * BLOCK, 3 * BLOCK, 0);
	m->in_flight = m->ws;
	return operation_expect(img_zero(m->img, 3 * BLOCK * SECTOR, 4 * BLOCK * SECTOR, 0, err), 0, err);
}

/* Each sector is zeros now or as before; which, is what the next flush makes durable. */
static int take_discarded(struct machine *m, uint32_t first, uint32_t nr, struct img_error *err)
{
	static const uint8_t zeros[SECTOR];
	uint8_t buf[SECTOR];

	for (uint32_t s = first; s < first + nr; s++) {
		if (img_pread(m->img, buf, SECTOR, (uint64_t)s * SECTOR, 0, err) != 0)
			return -1;
		if (memcmp(buf, zeros, SECTOR) == 0)
			worlds_write(&m->ws, s, 1, 0);
	}
	return 0;
}

static int run_discard(struct machine *m, struct img_error *err)
{
	struct worlds before = m->ws;

	worlds_write(&m->ws, 5 * BLOCK, 3 * BLOCK, 0);
	m->in_flight = m->ws;
	if (operation_expect(img_discard(m->img, 3 * BLOCK * SECTOR, 5 * BLOCK * SECTOR, 0, err), 0, err) != 0)
		return -1;
	if (!m->setup->may_keep_discarded)
		return 0;
	m->ws = before;
	return take_discarded(m, 5 * BLOCK, 3 * BLOCK, err);
}

static int run_flush(struct machine *m, struct img_error *err)
{
	m->in_flight = m->ws;
	worlds_settle_disk(&m->ws);
	return operation_expect(img_flush(m->img, 0, err), 0, err);
}

static int run_checkpoint(struct machine *m, struct img_error *err)
{
	m->in_flight = m->ws;
	worlds_settle(&m->ws);
	return operation_expect(img_flush(m->img, IMG_FLUSH_CHECKPOINT, err), 0, err);
}

static void drop_vm(struct world *w)
{
	w->latest.vm_sectors = 0;
	memset(w->latest.vm, 0, sizeof(w->latest.vm));
}

static int run_reopen(struct machine *m, struct img_error *err)
{
	struct img *img = m->img;

	m->in_flight = m->ws;
	worlds_settle(&m->ws);
	m->img = NULL;
	if (m->setup->vm == VM_IN_SNAPSHOTS)
		drop_vm(worlds_latest(&m->ws));
	if (img_close(img, err) != 0)
		return -1;
	return machine_open(m, err) == 0 ? 0 : -1;
}

static int run_create(struct machine *m, const char *name, unsigned flags, struct img_error *err)
{
	struct world after = *worlds_latest(&m->ws);
	struct snap_content *snap = &after.snap[after.nr_snaps];
	bool exists = world_snap(&after, name) != NULL;

	m->in_flight = m->ws;
	if (!exists) {
		world_settle(&after);
		after.nr_snaps++;
		snprintf(snap->name, sizeof(snap->name), "%s", name);
		snap->content = after.latest;
		if (!(flags & IMG_SNAPSHOT_VMSTATE)) {
			snap->content.vm_sectors = 0;
			memset(snap->content.vm, 0, sizeof(snap->content.vm));
		}
		worlds_append(&m->in_flight, &after);
		m->ws.nr = 0;
		worlds_append(&m->ws, &after);
	}
	return operation_expect(img_snapshot_create(m->img, name, flags, err), exists ? IMG_E_EXISTS : 0, err);
}

static int run_create_c(struct machine *m, struct img_error *err)
{
	return run_create(m, "C", 0, err);
}

static int run_create_vm(struct machine *m, struct img_error *err)
{
	return run_create(m, "V", IMG_SNAPSHOT_VMSTATE, err);
}

/* A change that makes of every world that may be durable another one, in one step. */
static void add_after(struct machine *m, void (*change)(struct world *w, const char *a, const char *b), const char *a,
		      const char *b)
{
	m->in_flight = m->ws;
	for (unsigned i = 0; i < m->ws.nr; i++) {
		change(&m->ws.w[i], a, b);
		worlds_append(&m->in_flight, &m->ws.w[i]);
	}
}

static void change_drop(struct world *w, const char *name, const char *unused)
{
	(void)unused;
	world_drop_snap(w, name);
}

static void change_rename(struct world *w, const char *name, const char *new_name)
{
	struct snap_content *snap = world_snap(w, name);

	if (snap != NULL)
		snprintf(snap->name, sizeof(snap->name), "%s", new_name);
}

static int run_delete(struct machine *m, const char *name, struct img_error *err)
{
	bool exists = world_snap(worlds_latest(&m->ws), name) != NULL;

	m->in_flight = m->ws;
	if (exists)
		add_after(m, change_drop, name, NULL);
	return operation_expect(img_snapshot_delete(m->img, name, err), exists ? 0 : IMG_E_NOENT, err);
}

static int run_delete_a(struct machine *m, struct img_error *err)
{
	return run_delete(m, "A", err);
}

static int run_delete_b(struct machine *m, struct img_error *err)
{
	return run_delete(m, "B", err);
}

static int run_delete_c(struct machine *m, struct img_error *err)
{
	return run_delete(m, "C", err);
}

static int run_rename(struct machine *m, struct img_error *err)
{
	bool exists = world_snap(worlds_latest(&m->ws), "A") != NULL;

	m->in_flight = m->ws;
	if (exists)
		add_after(m, change_rename, "A", "R");
	return operation_expect(img_snapshot_rename(m->img, "A", "R", err), exists ? 0 : IMG_E_NOENT, err);
}

static int run_revert(struct machine *m, const char *name, struct img_error *err)
{
	struct world after = *worlds_latest(&m->ws);
	const struct snap_content *snap = world_snap(&after, name);

	m->in_flight = m->ws;
	if (snap != NULL) {
		struct content c = snap->content;

		world_set_head(&after, &c);
		worlds_append(&m->in_flight, &after);
		m->ws.nr = 0;
		worlds_append(&m->ws, &after);
	}
	return operation_expect(img_snapshot_revert(m->img, name, err), snap != NULL ? 0 : IMG_E_NOENT, err);
}

static int run_revert_a(struct machine *m, struct img_error *err)
{
	return run_revert(m, "A", err);
}

static int run_revert_b(struct machine *m, struct img_error *err)
{
	return run_revert(m, "B", err);
}

static int run_revert_c(struct machine *m, struct img_error *err)
{
	return run_revert(m, "C", err);
}

static int run_resize(struct machine *m, uint32_t sectors, struct img_error *err)
{
	struct world after = *worlds_latest(&m->ws);

	/* It is durable with the next flush; until then a crash may find either size. */
	world_set_size(&after, sectors);
	worlds_append(&m->ws, &after);
	m->in_flight = m->ws;
	return operation_expect(img_resize(m->img, (uint64_t)sectors * SECTOR, IMG_RESIZE_SHRINK, err), 0, err);
}

static int run_grow(struct machine *m, struct img_error *err)
{
	return run_resize(m, GROWN_SECTORS, err);
}

static int run_shrink(struct machine *m, struct img_error *err)
{
	return run_resize(m, SHRUNK_SECTORS, err);
}

static int run_vm(struct machine *m, struct img_error *err)
{
	uint8_t id = (uint8_t)(10 + m->position);
	uint32_t first = 12, nr = 24;
	struct world after = *worlds_latest(&m->ws);

	if (after.latest.vm_sectors < first + nr) {
		after.latest.vm_sectors = first + nr;
		worlds_append(&m->ws, &after);
	}
	worlds_write_vm(&m->ws, first, nr, id);
	m->in_flight = m->ws;
	return operation_expect(write_vm(m->img, first, nr, id, err), 0, err);
}

/* Inside what there is, across its end, and where there is nothing. */
static int run_vm_zero(struct machine *m, struct img_error *err)
{
	uint32_t first = 20, nr = 20;
	struct world after = *worlds_latest(&m->ws);

	if (after.latest.vm_sectors < first + nr) {
		after.latest.vm_sectors = first + nr;
		worlds_append(&m->ws, &after);
	}
	worlds_write_vm(&m->ws, first, nr, 0);
	m->in_flight = m->ws;
	return operation_expect(img_vmstate_zero(m->img, (uint64_t)nr * SECTOR, (uint64_t)first * SECTOR, err), 0, err);
}

static const struct operation operations[] = {
	{ "block", "sjwourqkxvlpdefghinbXYZyzmtS", run_block },
	{ "sub", "sjwourqkxvlpdefghinbXYZyzmtS", run_sub },
	{ "unit", "sjwouqkxvlp", run_unit },
	{ "inunit", "sjwqkxvl", run_in_unit },
	{ "leaf", "sjwqkxvldginbYymt", run_leaf },
	{ "fua", "sjwrqkxvldfginbYymt", run_fua },
	{ "zero", "sjwourqkxvlpdefghinbXYZyzmtS", run_zero },
	{ "discard", "sjwouqkxvlpdefghinbXYZyzmt", run_discard },
	{ "flush", "sjwourqkxvlpdefghinbXYZyzmtS", run_flush },
	{ "checkpoint", "sjwouqkxvlpdefghinbXYZyzmt", run_checkpoint },
	{ "reopen", "sjwourqkxvlpdefghinbXYZyzmt", run_reopen },
	{ "createC", "sjwouqkxvlp", run_create_c },
	{ "createV", "sjwqkxvl", run_create_vm },
	{ "deleteA", "sjwqkxvl", run_delete_a },
	{ "deleteB", "sjwqkxvl", run_delete_b },
	{ "deleteC", "sjwouqkxvlp", run_delete_c },
	{ "renameA", "sjwqkxvl", run_rename },
	{ "revertA", "sjwqkxvl", run_revert_a },
	{ "revertB", "sjwqkxvl", run_revert_b },
	{ "revertC", "oup", run_revert_c },
	{ "grow", "sjwourqkxlpdefghinXYZyz", run_grow },
	{ "shrink", "sjwourqkxlpdefghinXYZyz", run_shrink },
	{ "vmstate", "sjwqkxvl", run_vm },
	{ "vmzero", "sq", run_vm_zero },
};

/* ---- setups ------------------------------------------------------------------------------------------------------ */

static int create(struct memhost *host, const struct setup *s, const char *file, const char *backing,
		  struct img_error *err)
{
	struct img_create_options o = {
		.struct_size = sizeof(o),
		.format = s->format,
		.size_bytes = (uint64_t)DISK_SECTORS * SECTOR,
		.backing = backing,
		.backing_format = backing != NULL ? s->format : NULL,
		.options = s->options,
		.refs = IMG_REFS_ANY,
	};

	return image_create_env(file, &o, &host->env, err);
}

static int write_both(struct img *img, struct worlds *ws, uint32_t first, uint32_t nr, uint8_t id, unsigned flags,
		      struct img_error *err)
{
	worlds_write(ws, first, nr, id);
	return write_sectors(img, first, nr, id, flags, err);
}

static void empty_world(struct worlds *ws)
{
	memset(ws, 0, sizeof(*ws));
	ws->nr = 1;
	ws->w[0].latest.sectors = DISK_SECTORS;
	world_settle(&ws->w[0]);
}

static void snap_both(struct worlds *ws, const char *name, bool vm)
{
	struct world *w = worlds_latest(ws);
	struct snap_content *snap = &w->snap[w->nr_snaps++];

	snprintf(snap->name, sizeof(snap->name), "%s", name);
	snap->content = w->latest;
	if (!vm)
		snap->content.vm_sectors = 0;
}

static int make_snapshots(const struct setup *s, struct memhost *host, struct worlds *ws, struct img_error *err)
{
	struct img *img;
	int ret = create(host, s, s->file, NULL, err);

	empty_world(ws);
	if (ret != 0 || open_image(host, s, IMG_OPEN_WRITE, &img, err) != 0)
		return -1;
	ret = write_both(img, ws, 0, 8 * BLOCK, 1, 0, err);
	ret = ret ? ret : write_both(img, ws, UNIT, UNIT, 2, IMG_IO_COMPRESS, err);
	ret = ret ? ret : write_both(img, ws, LEAF - BLOCK, 2 * BLOCK, 3, 0, err);
	ret = ret ? ret : img_snapshot_create(img, "A", 0, err);
	snap_both(ws, "A", false);
	ret = ret ? ret : write_both(img, ws, 5 * BLOCK, BLOCK, 4, 0, err);
	worlds_write(ws, 3 * BLOCK, BLOCK, 0);
	ret = ret ? ret : img_zero(img, BLOCK * SECTOR, 3 * BLOCK * SECTOR, 0, err);
	ws->w[0].latest.vm_sectors = 16;
	worlds_write_vm(ws, 0, 16, 5);
	ret = ret ? ret : write_vm(img, 0, 16, 5, err);
	ret = ret ? ret : img_snapshot_create(img, "B", IMG_SNAPSHOT_VMSTATE, err);
	snap_both(ws, "B", true);
	ret = ret ? ret : write_both(img, ws, 6 * BLOCK, BLOCK, 6, 0, err);
	if (ret != 0) {
		img_close(img, NULL);
		return -1;
	}
	if (s->vm == VM_IN_SNAPSHOTS)
		drop_vm(worlds_latest(ws));
	worlds_settle(ws);
	return img_close(img, err);
}

/* What an overlay may be rebased onto: other content, in part the same. */
static int make_other(const struct setup *s, struct memhost *host, struct img_error *err)
{
	struct setup other = { .format = s->format, .file = OTHER_FILE };
	struct img *img;
	int ret = create(host, s, other.file, NULL, err);

	if (ret != 0 || open_image(host, &other, IMG_OPEN_WRITE, &img, err) != 0)
		return -1;
	ret = write_sectors(img, 2 * BLOCK, 2 * BLOCK, 1, 0, err);
	ret = ret ? ret : write_sectors(img, 7 * BLOCK, 3 * BLOCK, 9, 0, err);
	return img_close(img, ret == 0 ? err : NULL) != 0 || ret != 0 ? -1 : 0;
}

static int make_overlay(const struct setup *s, struct memhost *host, struct worlds *ws, struct img_error *err)
{
	struct setup base = { .format = s->format, .file = "base.img" };
	struct img *img;
	int ret = create(host, s, base.file, NULL, err);

	empty_world(ws);
	if (ret != 0 || open_image(host, &base, IMG_OPEN_WRITE, &img, err) != 0)
		return -1;
	ret = write_both(img, ws, 0, 8 * BLOCK, 1, 0, err);
	ret = ret ? ret : write_both(img, ws, LEAF - BLOCK, 2 * BLOCK, 2, 0, err);
	if (img_close(img, ret == 0 ? err : NULL) != 0 || ret != 0 || make_other(s, host, err) != 0)
		return -1;
	ret = create(host, s, s->file, base.file, err);
	if (ret != 0 || open_image(host, s, IMG_OPEN_WRITE, &img, err) != 0)
		return -1;
	ret = write_both(img, ws, 5 * BLOCK, BLOCK, 3, 0, err);
	worlds_write(ws, 2 * BLOCK, BLOCK, 0);
	ret = ret ? ret : img_zero(img, BLOCK * SECTOR, 2 * BLOCK * SECTOR, 0, err);
	worlds_settle(ws);
	return img_close(img, ret == 0 ? err : NULL) != 0 || ret != 0 ? -1 : 0;
}

static int make_raw(const struct setup *s, struct memhost *host, struct worlds *ws, struct img_error *err)
{
	struct img *img;
	int ret = create(host, s, s->file, NULL, err);

	empty_world(ws);
	if (ret != 0 || open_image(host, s, IMG_OPEN_WRITE, &img, err) != 0)
		return -1;
	ret = write_both(img, ws, 0, 8 * BLOCK, 1, 0, err);
	worlds_settle(ws);
	return img_close(img, ret == 0 ? err : NULL) != 0 || ret != 0 ? -1 : 0;
}

#define LIMG .format = "limg", .file = "top.img", .options = LIMG_OPTIONS, .garbage = true, .vm = VM_EVERYWHERE
#define VDI                                                                               \
	.format = "vdi", .file = "top.img", .may_leak = true, .may_keep_discarded = true, \
	.options = "block_size=4096,align=512"
#define VHD	  .format = "vhd", .file = "top.img", .may_leak = true, .may_keep_discarded = true
#define VHDX	  .format = "vhdx", .file = "top.img", .may_leak = true, .may_keep_discarded = true
#define PARALLELS .format = "parallels", .file = "top.img", .may_leak = true, .may_keep_discarded = true
#define VMDK	  .format = "vmdk", .file = "top.img", .may_leak = true, .may_keep_discarded = true
#define QCOW2	  .format = "qcow2", .file = "top.img", .may_leak = true, .may_keep_discarded = true, .vm = VM_IN_SNAPSHOTS

/* The same image with a cluster that is counted and that nobody refers to. */
static int make_leaky(const struct setup *s, struct memhost *host, struct worlds *ws, struct img_error *err)
{
	struct memhost_file *file;
	struct be64 table, block;
	struct be16 one = be16_of(1);

	if (make_snapshots(s, host, ws, err) != 0)
		return -1;
	file = memhost_find(host, s->file);
	mem_content_read(file->content, &table, sizeof(table), 48);
	mem_content_read(file->content, &block, sizeof(block), be64_get(table));
	return mem_content_write(file->content, &one, sizeof(one), be64_get(block) + 2 * 1500);
}

static const struct setup setups[] = {
	{ 'r', "a raw file", make_raw, .format = "raw", .file = "top.raw" },
	{ 's', "two snapshots, machine state, a compressed unit", make_snapshots, LIMG },
	{ 'j', "the same, journal in use", make_snapshots, LIMG, .warm_rounds = 4, .warm_blocks = 1 },
	{ 'w', "the same, space reused while the journal names it", make_snapshots, LIMG, .warm_rounds = 40,
	  .warm_blocks = 16 },
	{ 'o', "an overlay", make_overlay, LIMG },
	{ 'u', "an overlay, journal in use", make_overlay, LIMG, .warm_rounds = 4, .warm_blocks = 1 },
	{ 'd', "VDI, whose map has no room to grow", make_raw, VDI },
	{ 'e', "a differencing VDI", make_overlay, VDI },
	{ 'f', "a fixed VHD", make_raw, VHD, .options = "subformat=fixed" },
	{ 'g', "VHD, whose table has no room to grow", make_raw, VHD, .options = "block_size=4096" },
	{ 'h', "a differencing VHD", make_overlay, VHD, .options = "block_size=4096" },
	{ 'i', "Parallels, whose table has no room to grow", make_raw, PARALLELS, .options = "cluster_size=512" },
	{ 'n', "Parallels, version 1", make_raw, PARALLELS, .options = "cluster_size=4608,version=1" },
	{ 'b', "a Parallels bundle of three storages", make_raw, PARALLELS, .new_in_parts = true,
	  .options = "subformat=bundle,split_size=384K,cluster_size=4096" },
	{ 'X', "a fixed VHDX", make_raw, VHDX, .options = "subformat=fixed,block_size=1M" },
	{ 'Y', "a dynamic VHDX", make_raw, VHDX, .options = "block_size=1M" },
	{ 'Z', "a differencing VHDX", make_overlay, VHDX, .options = "block_size=1M" },
	{ 'y', "VMDK, one sparse extent", make_raw, VMDK, .options = "grain_size=4096" },
	{ 'm', "VMDK in several sparse extents", make_raw, VMDK, .new_in_parts = true,
	  .options = "subformat=twoGbMaxExtentSparse,extent_size=384K,grain_size=4096" },
	{ 't', "VMDK in several raw extents", make_raw, VMDK, .new_in_parts = true,
	  .options = "subformat=twoGbMaxExtentFlat,extent_size=384K" },
	{ 'z', "a VMDK over another", make_overlay, VMDK, .options = "grain_size=4096,zeroed_grain=on" },
	{ 'S', "a raw file that becomes streamOptimized VMDK", make_raw, .format = "raw", .file = "top.raw",
	  .new_format = "vmdk", .new_options = "subformat=streamOptimized" },
	{ 'q', "qcow2, two snapshots, machine state, compressed clusters", make_snapshots, QCOW2,
	  .options = "cluster_size=4096" },
	{ 'k', "the same with tables that grow", make_snapshots, QCOW2,
	  .options = "cluster_size=512,refcount_bits=64" },
	{ 'x', "the same with subclusters", make_snapshots, QCOW2,
	  .options = "cluster_size=16384,extended_l2=on,compression_type=zstd" },
	{ 'v', "the same, version 2", make_snapshots, QCOW2, .options = "compat=0.10,cluster_size=4096" },
	{ 'l', "qcow2 with a leak", make_leaky, QCOW2, .options = "cluster_size=4096" },
	{ 'p', "a qcow2 overlay", make_overlay, QCOW2, .options = "cluster_size=512" },
};

const struct setup *setup_at(unsigned i)
{
	return i < ARRAY_LEN(setups) ? &setups[i] : NULL;
}

const struct setup *setup_find(char letter)
{
	for (unsigned i = 0; i < ARRAY_LEN(setups); i++) {
		if (setups[i].letter == letter)
			return &setups[i];
	}
	return NULL;
}

/* Of both tables; NULL past the end. */
static const struct operation *operation_nth(unsigned i)
{
	return i < ARRAY_LEN(operations) ? &operations[i] : whole_operation_at(i - (unsigned)ARRAY_LEN(operations));
}

const struct operation *operation_at(const struct setup *s, unsigned i)
{
	const struct operation *op;

	for (unsigned j = 0; (op = operation_nth(j)) != NULL; j++) {
		if (strchr(op->setups, s->letter) != NULL && i-- == 0)
			return op;
	}
	return NULL;
}

const struct operation *operation_find(const struct setup *s, const char *name)
{
	const struct operation *op;

	for (unsigned j = 0; (op = operation_nth(j)) != NULL; j++) {
		if (strchr(op->setups, s->letter) != NULL && strcmp(op->name, name) == 0)
			return op;
	}
	return NULL;
}
