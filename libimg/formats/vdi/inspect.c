/* SPDX-License-Identifier: MIT */
/*
 * What a stranger's header says beyond what check looks for: references, however well they hide, and values that other
 * readers take at their word.
 */
#include <inttypes.h>
#include <string.h>

#include "inspect.h"
#include "vdi.h"

/* The comment: text, and perhaps a parent's name. */
static void look_at_comment(struct inspector *in, const struct vdi_header *h)
{
	char name[VDI_COMMENT_BYTES + 1];
	uint64_t at = VDI_AT(comment);
	bool committing, named;
	size_t off = 0, words;

	named = vdi_recorded_name(h->comment, name, sizeof(name), &committing, &off);
	/* The line break before our own line is ours. */
	words = named ? (size_t)(strrchr(h->comment, '\n') ? strrchr(h->comment, '\n') - h->comment : 0) :
			strlen(h->comment);
	if (words > 0)
		inspect_text(in, (const uint8_t *)h->comment, words, at, "the VDI's comment");
	if (named)
		inspect_reference(in, h->type == VDI_DIFFERENCING ? INSPECT_PARENT : INSPECT_HIDDEN_REFERENCE,
				  (const uint8_t *)name, strlen(name), at + off, "a parent");
	else if (h->type == VDI_DIFFERENCING)
		inspect_found(in, INSPECT_PARENT, VDI_AT(parent),
			      "a difference to a parent, which it names by UUID only");
	if (named && committing)
		inspect_found(in, INSPECT_COMMITTING, at, "a commit into the parent was interrupted");
}

static void look_at_header(struct inspector *in, const struct vdi_header *h, uint64_t file_bytes)
{
	in->out->virtual_bytes = vdi_disk_bytes(h);
	inspect_limit(in, BUDGET_VIRTUAL, in->out->virtual_bytes, VDI_AT(disk_bytes));
	if (h->version != VDI_VERSION_1)
		inspect_found(in, INSPECT_SUBFORMAT, VDI_HEADER_OFF, "VDI version 0x%" PRIx32, h->version);
	if (h->type != VDI_DIFFERENCING && !vdi_uuid_is_null(h->parent))
		inspect_found(in, INSPECT_HIDDEN_REFERENCE, VDI_AT(parent), "names a parent by its UUID");
	if (h->disk_bytes % VDI_SECTOR_BYTES != 0)
		inspect_found(in, INSPECT_INCONSISTENT, VDI_AT(disk_bytes),
			      "a disk of 0x%" PRIx64 " bytes: some readers round it up, some down", h->disk_bytes);
	if (h->nr_allocated > h->nr_blocks)
		inspect_found(in, INSPECT_INCONSISTENT, VDI_AT(nr_allocated),
			      "%" PRIu32 " of %" PRIu32 " blocks are said to be there", h->nr_allocated, h->nr_blocks);
	inspect_expansion(in, (uint64_t)h->nr_allocated * h->block_bytes, file_bytes, VDI_AT(nr_allocated),
			  "the block map");
}

/* What the loader does not take: told as far as it goes. */
static void look_at_broken(struct inspector *in, const struct img_error *why)
{
	enum inspect_id id = INSPECT_BAD_HEADER;

	if (why->offset == VDI_AT(map_off) || why->offset == VDI_AT(data_off))
		id = INSPECT_TABLE_BOUNDS;
	else if (why->offset == VDI_AT(flags))
		id = INSPECT_UNKNOWN_FEATURE;
	else if (why->offset == VDI_AT(type) && why->code == IMG_E_UNSUPPORTED)
		id = INSPECT_SUBFORMAT;
	inspect_found(in, id, why->offset, "%s", why->msg);
}

int vdi_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct vdi_header h;
	uint8_t line[64];
	size_t n;
	int ret = inspect_read(file, line, sizeof(line), 0, err);

	if (ret != 0)
		return ret;
	ret = vdi_header_load(file, false, &h, &why);
	if (ret != 0 && ret != IMG_E_CORRUPT && ret != IMG_E_UNSUPPORTED) {
		if (err)
			*err = why;
		return ret;
	}
	n = strnlen((char *)line, sizeof(line));
	if (n > 0 && line[n - 1] == '\n')
		n--;
	inspect_text(in, line, n, 0, "the VDI's first line");
	look_at_comment(in, &h);
	if (ret != 0)
		look_at_broken(in, &why);
	else
		look_at_header(in, &h, node_size(file));
	return 0;
}
