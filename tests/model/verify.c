/* SPDX-License-Identifier: MIT */
/* Comparing an image with the truth. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"
#include "model.h"

/* So that a read that leaves a sector of the buffer as it was does not pass. */
static void spoil(uint8_t *buf, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i += 512)
		memset(buf + i, 0xa5, (size_t)min_u64(16, bytes - i));
}

int check_range(struct model *m, struct img *img, const struct flat *truth, uint64_t bytes, uint64_t off,
		const char *what)
{
	struct img_error err = { 0 };

	while (bytes > 0) {
		uint64_t n = min_u64(bytes, IO_BYTES), differs;

		spoil(m->buf, n);
		if (expect(m, img_pread(img, m->buf, n, off, 0, &err), 0, &err, what) != 0)
			return -1;
		differs = flat_compare(truth, m->buf, n, off);
		if (differs != UINT64_MAX) {
			flat_read(truth, m->buf2, n, off);
			return fail(m,
				    "%s: byte 0x%" PRIx64 " is 0x%02x, not 0x%02x (read of 0x%" PRIx64 " at 0x%" PRIx64
				    ")",
				    what, off + differs, m->buf[differs], m->buf2[differs], n, off);
		}
		off += n;
		bytes -= n;
	}
	return 0;
}

int check_image(struct model *m, struct img *img, const struct flat *truth, const char *what)
{
	if (img_size(img) != truth->size_bytes)
		return fail(m, "%s: size %" PRIu64 ", not %" PRIu64, what, img_size(img), truth->size_bytes);
	/* Of what should be zeros all along, a part. */
	for (uint64_t off = 0; off < truth->size_bytes; off += IO_BYTES) {
		uint64_t n = min_u64(IO_BYTES, truth->size_bytes - off);

		if (truth->size_bytes > MODEL_MAX_BYTES && !flat_holds(truth, n, off) &&
		    (m->full_checks * 7 + off / IO_BYTES) % 16 != 0)
			n = min_u64(n, 4096);
		if (check_range(m, img, truth, n, off, what) != 0)
			return -1;
	}
	return 0;
}

static void keep_first(void *ctx, const struct img_finding *finding)
{
	struct img_finding *first = ctx;

	if (first->kind == 0 && finding->kind != IMG_FINDING_NOTE)
		*first = *finding;
}

int check_clean(struct model *m, struct img *img, const char *what)
{
	struct img_finding first = { 0 };
	struct img_check_result result = { 0 };
	struct img_error err = { 0 };

	if (!(img_caps(img) & IMG_CAP_CHECK))
		return 0;
	if (expect(m, img_check(img, 0, keep_first, &first, NULL, &result, &err), 0, &err, "check") != 0)
		return -1;
	if (m->leaks_ok && first.kind == IMG_FINDING_LEAK && result.damage == 0 && result.redundancy == 0)
		return 0;
	if (m->host_fails && first.kind != 0)
		m->refused = IMG_E_IO;
	if (first.kind != 0 || result.damage || result.leaks || result.redundancy)
		return fail(m,
			    "%s: check found %" PRIu64 " damage, %" PRIu64 " leaks, %" PRIu64
			    " redundancy; first: %s %s %s at 0x%" PRIx64,
			    what, result.damage, result.leaks, result.redundancy, first.rule, first.where, first.msg,
			    first.file_off);
	return 0;
}

int check_own(struct model *m, struct img *img, const struct mfile *f, const char *what)
{
	bool before = m->leaks_ok;
	int ret;

	m->leaks_ok |= f->leaks;
	ret = check_clean(m, img, what);
	m->leaks_ok = before;
	return ret;
}

int check_vm(struct model *m, struct img *img, const char *snap, const struct flat *truth)
{
	struct img_error err = { 0 };
	uint64_t bytes = 0;

	if (expect(m, img_vmstate_size(img, snap, &bytes, &err), 0, &err, "vmstate size") != 0)
		return -1;
	if (bytes != truth->size_bytes)
		return fail(m, "vmstate of %s has %" PRIu64 " bytes, not %" PRIu64, snap ? snap : "head", bytes,
			    truth->size_bytes);
	for (uint64_t off = 0; off < bytes; off += IO_BYTES) {
		uint64_t n = min_u64(bytes - off, IO_BYTES);

		if (expect(m, img_vmstate_read(img, snap, m->buf, n, off, &err), 0, &err, "vmstate read") != 0)
			return -1;
		if (flat_compare(truth, m->buf, n, off) != UINT64_MAX)
			return fail(m, "vmstate of %s is wrong within 0x%" PRIx64 " at 0x%" PRIx64,
				    snap ? snap : "head", n, off);
	}
	return 0;
}

/* Our id of the nearest ancestor that still exists, 0 if none. */
static unsigned living_parent(const struct mfile *f, unsigned id)
{
	for (;;) {
		size_t i = 0;

		while (i < f->nr_gone && f->gone[i].id != id)
			i++;
		if (i == f->nr_gone)
			return id;
		id = f->gone[i].parent;
	}
}

static int check_list(struct model *m, struct img *img, const struct mfile *f)
{
	struct img_snapshot list[MODEL_MAX_SNAPS + 1];
	struct img_error err = { 0 };
	size_t nr = 0;

	if (expect(m, img_snapshot_list(img, list, MODEL_MAX_SNAPS + 1, &nr, &err), 0, &err, "snapshot list") != 0)
		return -1;
	if (nr != f->nr_snaps)
		return fail(m, "%zu snapshots are listed, not %zu", nr, f->nr_snaps);
	for (size_t i = 0; i < nr; i++) {
		const struct msnap *s = &f->snaps[i];
		unsigned parent = m->no_parents || !f->format->has_parents ? MODEL_ANY_PARENT :
									     living_parent(f, s->parent);
		size_t at = 0;

		if (strcmp(list[i].name, s->name) != 0 || list[i].size_bytes != s->disk.size_bytes ||
		    list[i].vmstate_bytes != (s->has_vm ? s->vm.size_bytes : 0))
			return fail(m,
				    "snapshot %zu is listed as %s of %" PRIu64 " bytes, vmstate %" PRIu64
				    ", and should be %s of %" PRIu64 ", %" PRIu64,
				    i, list[i].name, list[i].size_bytes, list[i].vmstate_bytes, s->name,
				    s->disk.size_bytes, s->vm.size_bytes);
		if (i > 0 && list[i].id <= list[i - 1].id)
			return fail(m, "snapshot ids are not ascending");
		if (parent == MODEL_ANY_PARENT)
			continue;
		while (parent && f->snaps[at].id != parent)
			at++;
		if (list[i].parent != (parent ? list[at].id : 0))
			return fail(m, "snapshot %s has the parent %" PRIu64 ", not %" PRIu64, s->name, list[i].parent,
				    parent ? list[at].id : 0);
	}
	return 0;
}

int check_everything(struct model *m, struct img *img, const struct mfile *f, const char *what)
{
	const struct flat none = { 0 };
	struct img_error err = { 0 };
	char text[64];

	m->full_checks++;
	if (check_image(m, img, &f->head, what) != 0)
		return -1;
	if (!f->format->raw && !f->format->plain) {
		if (check_list(m, img, f) != 0)
			return -1;
		for (size_t i = 0; i < f->nr_snaps; i++) {
			const struct msnap *s = &f->snaps[i];
			struct img *view = NULL;
			int ret;

			snprintf(text, sizeof(text), "%s, snapshot %s", what, s->name);
			if (expect(m, img_snapshot_open(img, s->name, &view, &err), 0, &err, text) != 0)
				return -1;
			ret = check_image(m, view, &s->disk, text);
			if (expect(m, img_close(view, &err), 0, &err, "close of a snapshot") != 0 || ret != 0 ||
			    check_vm(m, img, s->name, s->has_vm ? &s->vm : &none) != 0)
				return -1;
		}
		if (!m->no_vm && check_vm(m, img, NULL, &f->vm) != 0)
			return -1;
	}
	if (f->format->bitmaps && !m->no_bitmaps && bitmaps_check(m, img, (int)(f - m->files), what) != 0)
		return -1;
	return check_own(m, img, f, what);
}
