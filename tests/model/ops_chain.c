/* SPDX-License-Identifier: MIT */
/* Operations on the stack of files and on whole images. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "driver.h"
#include "model.h"

static struct mfile *top(struct model *m)
{
	return &m->files[m->top];
}

static int open_in(struct model *m, struct memfs *fs, const char *name, const char *format, unsigned flags,
		   struct img **out)
{
	struct img_open_options opts = {
		.struct_size = sizeof(opts), .format = format, .flags = flags, .refs = IMG_REFS_ANY
	};
	struct img_error err = { 0 };

	return expect(m, image_open_env(name, &opts, &fs->env, out, &err), 0, &err, name);
}

static int open_other(struct model *m, const char *name, const char *format, unsigned flags, struct img **out)
{
	return open_in(m, &m->fs, name, format, flags, out);
}

static int close_other(struct model *m, struct img *img, int ret)
{
	struct img_error err = { 0 };

	return expect(m, img_close(img, &err), 0, &err, "close") || ret ? -1 : 0;
}

/* Opened in that folder the file holds what f says. */
static int check_file(struct model *m, struct memfs *fs, const struct mfile *f, unsigned flags, const char *what)
{
	struct img *img = NULL;

	if (open_in(m, fs, f->name, f->format->raw ? "raw" : NULL, flags, &img) != 0)
		return -1;
	return close_other(m, img, check_everything(m, img, f, what));
}

/* A new top on the head or on a snapshot of the present one. */
int op_overlay(struct model *m, const uint32_t *r)
{
	struct msnap *s = r[0] & 1 ? pick_snap(m, r[1]) : NULL;
	uint64_t size = s ? s->disk.size_bytes : top(m)->head.size_bytes;
	char snap[24];

	if (m->top + 1 >= MODEL_MAX_FILES)
		return 0;
	snprintf(snap, sizeof(snap), "%s", s ? s->name : "");
	if (r[2] % 4 == 0)
		size = (size / 2 + r[3] % (size + 512)) / 512 * 512;
	size = min_u64(size, m->geometry.max_bytes);
	if (top(m)->format->plain && size == 0)
		size = 512;
	if (close_top(m) != 0 || make_file(m, m->top, snap, size) != 0 || open_top(m) != 0)
		return -1;
	return check_image(m, m->img, &top(m)->head, "new overlay");
}

/* Drops the top, and what cannot be opened below it. */
int op_pop(struct model *m, const uint32_t *r)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .flags = IMG_OPEN_WRITE, .refs = IMG_REFS_ANY };
	struct img_error err = { 0 };
	struct img *img = NULL;

	(void)r;
	if (m->top == 0 || m->files[m->top - 1].format != top(m)->format)
		return 0;
	if (close_top(m) != 0)
		return -1;
	drop_file(m, m->top--);
	while (top(m)->stale) {
		if (expect(m, image_open_env(top(m)->name, &opts, &m->fs.env, &img, &err), IMG_E_CHANGED, &err,
			   "open on a changed parent") != 0)
			return -1;
		drop_file(m, m->top--);
	}
	return open_top(m) != 0 ? -1 : check_everything(m, m->img, top(m), "after pop");
}

/* Files other than the top that a write to the head of files[index] cuts off. */
static bool has_other_child(const struct model *m, int index)
{
	for (int i = 0; i < m->top; i++) {
		if (m->files[i].parent == index &&
		    (m->files[i].parent_snap[0] == '\0' || !m->files[index].format->strong_pins))
			return true;
	}
	return false;
}

/* The head of f is now what `now` says in its range; children on the old head, save the top, can no longer be opened. */
static void committed(struct model *m, int index, const struct flat *now)
{
	struct mfile *f = &m->files[index];
	uint64_t was = f->head.size_bytes, size = max_u64(was, now->size_bytes);
	struct flat next;

	flat_copy(&next, &f->head);
	flat_resize(&next, size);
	for (uint64_t off = 0; off < now->size_bytes;) {
		uint64_t n = min_u64(IO_BYTES, now->size_bytes - off);

		flat_read(now, m->buf, n, off);
		flat_write(&next, m->buf, n, off);
		off += n;
	}
	flat_free(&f->head);
	f->head = next;
	bitmaps_resized(m, index, was);
	for (int i = 0; i < m->top; i++) {
		if (m->files[i].parent == index && m->files[i].parent_snap[0] == '\0')
			m->files[i].stale = true;
	}
}

int op_commit(struct model *m, const uint32_t *r)
{
	struct img_copy_options opts = { .struct_size = sizeof(opts), .threads = m->one_thread ? 1 : 1 + r[0] % 2 };
	struct img_error err = { 0 };
	struct mfile *f = top(m), *parent = f->parent < 0 ? NULL : &m->files[f->parent];
	const struct flat *below = parent_content(m, f);
	int ret;

	/* A child that stays behind may or may not be equal to its pin afterwards; the model does not follow that. */
	if (m->held || (parent && has_other_child(m, f->parent)))
		return 0;
	/* The parent cannot grow: commit says so half way, and the overlay then waits for snapshots to be deleted. */
	if (parent && ((parent->nr_snaps && parent->is_v2) || parent->format->several) &&
	    parent->head.size_bytes < f->head.size_bytes)
		return 0;
	opts.flags = r[1] & 1 ? IMG_COPY_COMPRESS : 0;
	ret = img_commit(m->img, &opts, &err);
	if (!parent || f->nr_snaps)
		return expect(m, ret, IMG_E_REFUSED, &err, "commit without parent, or with snapshots");
	if (f->parent_snap[0] && ret == IMG_E_REFUSED)
		return 0; /* also where the contents are equal but stored in other ways */
	if (f->parent_snap[0] && (parent->head.size_bytes != below->size_bytes ||
				  flat_diff(&parent->head, below, below->size_bytes, 0) != UINT64_MAX))
		return expect(m, ret, IMG_E_REFUSED, &err, "commit into a head that moved on");
	if (expect(m, ret, 0, &err, "commit") != 0)
		return -1;
	committed(m, f->parent, &f->head);
	f->parent_snap[0] = '\0';
	if (!f->format->keeps_vm) /* it lies in what is emptied */
		flat_resize(&f->vm, 0);
	if (check_everything(m, m->img, f, "after commit") != 0)
		return -1;
	return check_image(m, img_backing(m->img), &parent->head, "parent after commit");
}

int op_rebase(struct model *m, const uint32_t *r)
{
	struct img_rebase_options opts = { .struct_size = sizeof(opts), .refs = IMG_REFS_ANY };
	struct img_error err = { 0 };
	struct mfile *f = top(m), *to = m->top ? &m->files[r[0] % (unsigned)m->top] : NULL;
	struct msnap *s;
	int ret;

	if (!to || to->stale || m->held)
		return 0;
	s = r[1] & 1 && to->nr_snaps ? &to->snaps[r[2] % to->nr_snaps] : NULL;
	opts.backing = to->name;
	opts.backing_format = to->format->name;
	opts.backing_snapshot = s ? s->name : NULL;
	if (m->verbose)
		printf("      onto %s %s\n", to->name, s ? s->name : "");
	ret = img_rebase(m->img, &opts, &err);
	if (expect(m, ret, f->nr_snaps ? IMG_E_REFUSED : 0, &err, "rebase") != 0)
		return -1;
	if (ret == 0) {
		f->parent = (int)(to - m->files);
		snprintf(f->parent_snap, sizeof(f->parent_snap), "%s", s ? s->name : "");
	}
	return check_everything(m, m->img, f, "after rebase");
}

int op_flatten(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct mfile *f = top(m);
	int ret;

	(void)r;
	if (m->held)
		return 0;
	ret = img_flatten(m->img, NULL, &err);
	/* what stands on nothing is flat already */
	if (expect(m, ret, f->nr_snaps && f->parent >= 0 ? IMG_E_REFUSED : 0, &err, "flatten") != 0)
		return -1;
	if (ret == 0) {
		f->parent = -1;
		f->parent_snap[0] = '\0';
	}
	return check_everything(m, m->img, f, "after flatten");
}

int op_reopen(struct model *m, const uint32_t *r)
{
	if (close_top(m) != 0)
		return -1;
	if (r[0] % 4 == 0 && check_file(m, &m->fs, top(m), 0, "opened read-only") != 0)
		return -1;
	return open_top(m);
}

/* The file as a kill after a flush leaves it: read in memory first, then recovered. */
int op_replay(struct model *m, const uint32_t *r)
{
	struct img_error err = { 0 };
	struct memfs killed;
	bool broken_before = m->bitmaps_may_break;
	int ret;

	if (expect(m, img_flush(m->img, 0, &err), 0, &err, "flush") != 0)
		return -1;
	memfs_init(&killed);
	if (!memfs_clone_image(&m->fs, NULL, &killed))
		return fail(m, "no memory for a clone");
	m->no_vm = true;
	m->leaks_ok = top(m)->format->may_leak;
	m->bitmaps_may_break = true;
	ret = check_file(m, &killed, top(m), 0, "replayed in memory");
	if (ret == 0)
		ret = check_file(m, &killed, top(m), IMG_OPEN_WRITE, "recovered");
	if (ret == 0 && r[0] & 1)
		ret = check_file(m, &killed, top(m), 0, "after recovery");
	m->no_vm = m->leaks_ok = false;
	m->bitmaps_may_break = broken_before;
	memfs_destroy(&killed);
	return ret;
}

int op_check(struct model *m, const uint32_t *r)
{
	return r[0] % 4 ? check_own(m, m->img, top(m), "check") : check_everything(m, m->img, top(m), "check");
}

/* The head against a snapshot, or against what it stands on. */
int op_compare(struct model *m, const uint32_t *r)
{
	struct img_compare_result result = { 0 };
	struct img_error err = { 0 };
	struct msnap *s = r[1] % 4 ? pick_snap(m, r[0]) : NULL;
	const struct flat *head = &top(m)->head, *other = s ? &s->disk : parent_content(m, top(m));
	const char *name = s ? s->name : "the parent";
	struct img *view = NULL;
	uint64_t differs;
	int ret;

	if (!other)
		return 0;
	differs = flat_diff(head, other, max_u64(head->size_bytes, other->size_bytes), 0);
	if (s && expect(m, img_snapshot_open(m->img, s->name, &view, &err), 0, &err, "snapshot open") != 0)
		return -1;
	ret = expect(m, img_compare(m->img, s ? view : img_backing(m->img), NULL, NULL, NULL, &result, &err), 0, &err,
		     "compare");
	if (ret == 0 && (result.same != (differs == UINT64_MAX) || (!result.same && result.first_diff != differs)))
		ret = fail(m, "compare with %s: same %d, first difference 0x%" PRIx64 ", not 0x%" PRIx64, name,
			   result.same, result.first_diff, differs);
	return s ? close_other(m, view, ret) : ret;
}

/* Digests of two images that hold the same. */
static int compare_digests(struct model *m, struct img *a, struct img *b, unsigned algo)
{
	enum img_digest kind = algo & 1 ? IMG_DIGEST_SHA256 : IMG_DIGEST_XXH128;
	struct img_error err = { 0 };
	uint8_t da[32] = { 0 }, db[32] = { 0 };
	size_t na = 0, nb = 0;

	if (expect(m, img_checksum(a, kind, NULL, da, &na, &err), 0, &err, "checksum") != 0 ||
	    expect(m, img_checksum(b, kind, NULL, db, &nb, &err), 0, &err, "checksum") != 0)
		return -1;
	return na == nb && memcmp(da, db, na) == 0 ? 0 : fail(m, "digests of equal images differ");
}

/* Where a conversion goes to: raw, or one of the formats with snapshots that this build has. */
static const struct traits *pick_target(const struct model *m, const uint32_t *r)
{
	const struct traits *own = m->files[m->top].format,
			    *other = traits_of(strcmp(own->name, "limg") ? "limg" : "qcow2");

	if (own->raw || r[0] % 4 == 0)
		return traits_of("raw");
	return r[0] % 4 == 1 && registry_find(other->name) ? other : own;
}

int op_convert(struct model *m, const uint32_t *r)
{
	const struct traits *to = pick_target(m, r);
	bool snaps = !to->raw && !to->plain && !m->files[m->top].format->plain && r[0] >> 8 & 1;
	/* Broken ones are left behind, which the model does not follow. */
	bool bitmaps = to->bitmaps && !m->bitmaps_may_break && r[3] & 4;
	struct img_create_options create = { .struct_size = sizeof(create), .format = to->name };
	struct img_copy_options opts = { .struct_size = sizeof(opts), .threads = m->one_thread ? 1 : 1 + r[1] % 3 };
	struct img_error err = { 0 };
	struct mfile *f = top(m);
	const struct traits *own = f->format;
	struct img *img = NULL;
	char options[96];
	int ret;

	snprintf(options, sizeof(options), "%s=%u,compression%s=%s", to->has_parents ? "block_size" : "cluster_size",
		 r[2] & 1 ? 4096u : 16384u, to->has_parents ? "" : "_type", r[2] & 2 ? "zstd" : "zlib");
	create.options = to->raw ? NULL : to->plain ? m->geometry.options : options;
	opts.flags = (r[3] & 1 ? IMG_COPY_COMPRESS : 0u) | (r[3] & 2 ? IMG_COPY_NO_DETECT : 0u) |
		     (snaps ? IMG_COPY_SNAPSHOTS : 0u) | (bitmaps ? IMG_COPY_BITMAPS : 0u);
	if (m->verbose)
		printf("      to %s %s%s%s\n", to->name, create.options ? create.options : "",
		       snaps ? " with snapshots" : "", bitmaps ? " with bitmaps" : "");
	if (own->device && !to->raw && r[3] & 8) {
		create.flags = IMG_CREATE_DEVICE;
		if (!device_make(&m->fs, "conv"))
			return fail(m, "no memory for a device");
	}
	if (expect(m, image_convert_env(m->img, "conv", &create, &opts, &m->fs.env, &err), 0, &err, "convert") != 0 ||
	    open_other(m, "conv", to->raw ? "raw" : NULL, 0, &img) != 0)
		return -1;
	m->no_vm = true;
	m->no_parents = !own->has_parents || !to->has_parents;
	m->no_bitmaps = !bitmaps;
	ret = snaps ? check_everything(m, img, f, "converted") : check_image(m, img, &f->head, "converted");
	m->no_vm = m->no_parents = m->no_bitmaps = false;
	if (ret == 0 && bitmaps)
		ret = bitmaps_check(m, img, m->top, "converted");
	if (ret == 0)
		ret = check_clean(m, img, "converted");
	if (ret == 0)
		ret = compare_digests(m, m->img, img, r[1] >> 8);
	ret = close_other(m, img, ret);
	memfs_remove_image(&m->fs, "conv");
	return ret;
}

/* Writes into the parent. An overlay on its head must then be refused; one on a snapshot goes on as before, where that
 * has an identity of its own. */
int op_touch_parent(struct model *m, const uint32_t *r)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .flags = IMG_OPEN_WRITE, .refs = IMG_REFS_ANY };
	struct img_error err = { 0 };
	struct mfile *f = top(m), *parent = f->parent < 0 ? NULL : &m->files[f->parent];
	struct memfs before;
	struct img *img = NULL;
	uint64_t value = UINT64_C(0x0102030405060708) * (r[1] | 1), old = 0, off;
	int ret;

	if (!parent || parent->format->raw || parent->stale || parent->head.size_bytes < 8)
		return 0;
	off = r[0] % (parent->head.size_bytes - 7);
	flat_read(&parent->head, &old, 8, off);
	value += value == old;
	if (close_top(m) != 0)
		return -1;
	memfs_init(&before);
	if (!memfs_clone_image(&m->fs, parent->name, &before))
		return fail(m, "no memory for a clone");
	ret = open_other(m, parent->name, NULL, IMG_OPEN_WRITE, &img);
	if (ret == 0)
		ret = expect(m, img_pwrite(img, &value, 8, off, 0, &err), 0, &err, "write to the parent");
	if (img)
		ret = close_other(m, img, ret);
	img = NULL;
	if (ret == 0)
		ret = expect(m, image_open_env(f->name, &opts, &m->fs.env, &img, &err),
			     (f->parent_snap[0] && parent->format->strong_pins) || f->format->ids ? 0 : IMG_E_CHANGED,
			     &err, "open after a change of the parent");
	if (img && f->format->ids)
		ret = close_other(m, img, ret);
	else if (img)
		ret = close_other(m, img, check_image(m, img, &f->head, "overlay on a snapshot whose head moved"));
	if (!memfs_clone_image(&before, parent->name, &m->fs))
		ret = fail(m, "no memory for a clone");
	memfs_destroy(&before);
	return ret == 0 ? open_top(m) : -1;
}
