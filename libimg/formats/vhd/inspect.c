/* SPDX-License-Identifier: MIT */
/*
 * What a stranger's VHD holds that its reader should know: who it says its parent is, in every place that can say so,
 * footers that differ, fields that contradict each other, and whether the table stays within the file. See
 * core/inspect.h; format-spec/inspect.md says what is looked at.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "inspect.h"
#include "is_zero.h"
#include "vhd.h"

#define TABLE_PIECE_BYTES (64u << 10)

static void look_at_text(struct inspector *in, enum inspect_id id, const uint8_t *text, size_t bytes, bool big_endian,
			 uint64_t off, const char *what)
{
	char name[NAME_PATH_MAX];

	if (!name_from_utf16(text, bytes, big_endian, name, sizeof(name))) {
		inspect_found(in, INSPECT_CONTROL_CHARACTERS, off, "%s: no UTF-16", what);
		return;
	}
	inspect_reference(in, id, (const uint8_t *)name, strlen(name), off, what);
}

static int look_at_parent(struct inspector *in, struct node *file, const struct disk_vhd_header *h, uint64_t off,
			  bool differencing, struct img_error *err)
{
	enum inspect_id id = differencing ? INSPECT_PARENT : INSPECT_HIDDEN_REFERENCE;

	if (!is_zero(h->parent_name, 2))
		look_at_text(in, id, h->parent_name, sizeof(h->parent_name), true,
			     off + offsetof(struct disk_vhd_header, parent_name), "a parent");
	else if (differencing)
		inspect_found(in, id, off, "a difference to a parent");
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		const struct disk_vhd_locator *l = &h->locator[i];
		uint64_t at = off + offsetof(struct disk_vhd_header, locator) + i * sizeof(*l);
		uint8_t text[2 * NAME_PATH_MAX];
		size_t nr;
		int ret;

		if (is_zero((const uint8_t *)l, sizeof(*l)))
			continue;
		ret = vhd_locator_text(file, h, i, text, sizeof(text), &nr, err);
		if (ret != 0)
			return ret;
		if (be32_get(l->length) == 0 || nr == 0)
			inspect_found(in, INSPECT_TABLE_BOUNDS, at, "the text of locator %u lies outside the file", i);
		else if (memcmp(l->code, "W2ru", 4) == 0 || memcmp(l->code, "W2ku", 4) == 0)
			look_at_text(in, id, text, nr, false, be64_get(l->off), "a parent, by a locator");
		else
			inspect_reference(in, id, text, (size_t)min_u64(nr, NAME_PATH_MAX), be64_get(l->off),
					  "a parent, by a locator");
	}
	return 0;
}

/* Entries: inside the file, and how many blocks are mapped. */
static int look_at_table(struct inspector *in, struct node *file, const struct vhd_header *h, uint64_t disk_bytes,
			 struct img_error *err)
{
	uint64_t nr = disk_bytes / h->block_bytes + (disk_bytes % h->block_bytes != 0), mapped = 0, outside = 0;
	uint64_t size = node_size(file), bytes = nr * 4, place = vhd_bitmap_bytes(h->block_bytes);
	uint8_t *buf = malloc(TABLE_PIECE_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	for (uint64_t done = 0; done < bytes && ret == 0 && !inspect_over(in); done += TABLE_PIECE_BYTES) {
		uint64_t n = min_u64(TABLE_PIECE_BYTES, bytes - done);

		ret = inspect_read(file, buf, n, h->table_off + done, err);
		for (uint64_t i = 0; i < n && ret == 0; i += 4) {
			struct be32 d;
			uint64_t at;

			memcpy(&d, buf + i, sizeof(d));
			at = (uint64_t)be32_get(d) * VHD_SECTOR_BYTES;
			if (be32_get(d) == VHD_FREE)
				continue;
			mapped += h->block_bytes;
			outside += at == 0 || !range_inside(at, place, size);
		}
	}
	free(buf);
	if (ret != 0)
		return ret;
	if (outside > 0)
		inspect_found(in, INSPECT_ENTRY_BOUNDS, h->table_off, "%" PRIu64 " entries lead outside the file",
			      outside);
	if (mapped > size)
		inspect_found(in, INSPECT_ALIASED, h->table_off,
			      "blocks of 0x%" PRIx64 " bytes in a file of 0x%" PRIx64 ": they share their places",
			      mapped, size);
	inspect_expansion(in, mapped, size, h->table_off, "the disk");
	return 0;
}

static int look_at_header(struct inspector *in, struct node *file, const struct vhd_footers *foot,
			  struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct vhd_header h;
	int ret = vhd_header_load(file, foot, &h, &why);

	if (ret == IMG_E_CORRUPT || ret == IMG_E_UNSUPPORTED) {
		inspect_found(in, INSPECT_BAD_HEADER, why.offset, "%s", why.msg);
		/* What it names is said all the same. */
		if (h.off == 0 || memcmp(h.disk.cookie, VHD_HEADER_COOKIE, sizeof(h.disk.cookie)) != 0)
			return 0;
		return look_at_parent(in, file, &h.disk, h.off, vhd_footer_type(&foot->f) == VHD_DIFFERENCING, err);
	}
	if (ret != 0) {
		if (err)
			*err = why;
		return ret;
	}
	ret = look_at_parent(in, file, &h.disk, h.off, vhd_footer_type(&foot->f) == VHD_DIFFERENCING, err);
	return ret == 0 ? look_at_table(in, file, &h, vhd_footer_size(&foot->f), err) : ret;
}

static void look_at_footers(struct inspector *in, const struct vhd_footers *foot)
{
	const struct disk_vhd_footer *f = &foot->f;
	bool fixed = vhd_footer_type(f) == VHD_FIXED;

	if (foot->tail == VHD_ABSENT)
		inspect_found(in, INSPECT_HEAD_TAIL, foot->tail_off, "the footer at the end is missing");
	else if (fixed && foot->head != VHD_ABSENT)
		inspect_found(in, INSPECT_HEAD_TAIL, 0, "the disk of a fixed image begins with another footer");
	else if (!fixed && foot->head == VHD_ABSENT)
		inspect_found(in, INSPECT_HEAD_TAIL, 0, "the copy of the footer at the beginning is missing");
	else if (!fixed && (foot->differ || foot->head != foot->tail))
		inspect_found(in, INSPECT_HEAD_TAIL, 0,
			      "the copy of the footer at the beginning says something else than the footer");
	if (f->saved != 0)
		inspect_found(in, INSPECT_MACHINE_STATE, foot->tail_off, "marked as in saved state");
	if (fixed && vhd_footer_size(f) < foot->tail_off)
		inspect_found(in, INSPECT_TRAILING, vhd_footer_size(f),
			      "0x%" PRIx64 " bytes between the disk and its footer",
			      foot->tail_off - vhd_footer_size(f));
}

int vhd_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct vhd_footers foot;
	int ret = vhd_footers_load(file, &foot, &why);

	if (ret == IMG_E_REFUSED) {
		inspect_found(in, INSPECT_HEAD_TAIL, 0, "the footer at the end belongs to another disk than its copy");
		return 0;
	}
	if (ret == IMG_E_FORMAT || ret == IMG_E_CORRUPT || ret == IMG_E_UNSUPPORTED || ret == IMG_E_LIMIT) {
		inspect_found(in, INSPECT_BAD_HEADER, why.offset, "%s", why.msg);
		return 0;
	}
	if (ret != 0) {
		if (err)
			*err = why;
		return ret;
	}
	look_at_footers(in, &foot);
	in->out->virtual_bytes = vhd_footer_size(&foot.f);
	inspect_limit(in, BUDGET_VIRTUAL, in->out->virtual_bytes, foot.tail_off);
	return vhd_footer_type(&foot.f) == VHD_FIXED ? 0 : look_at_header(in, file, &foot, err);
}
