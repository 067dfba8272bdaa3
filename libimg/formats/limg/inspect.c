/* SPDX-License-Identifier: MIT */
/*
 * Inspection of the superblock: what it names and claims. Trees, catalog and free space are the check's to judge,
 * shared data included: checksums tie each node to its one place, and a block with two uses is damage (LIMG-9).
 */
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "inspect.h"
#include "limg.h"

#define BACKING_OFF offsetof(struct disk_super, backing)
#define NAME_OFF    (BACKING_OFF + offsetof(struct disk_backing, name))

static void judge_backing(struct inspector *in, const struct backing_ref *r)
{
	inspect_reference(in, INSPECT_BACKING, (const uint8_t *)r->name, strlen(r->name), NAME_OFF, "a backing file");
	inspect_text(in, (const uint8_t *)r->format, strlen(r->format), BACKING_OFF, "the backing file's format");
	inspect_text(in, (const uint8_t *)r->snapshot, strlen(r->snapshot), BACKING_OFF,
		     "the name of the backing file's snapshot");
	if (r->committing)
		inspect_found(in, INSPECT_COMMITTING, BACKING_OFF,
			      "a commit into the backing file began and has not ended");
}

static void judge_super(struct inspector *in, const struct super *sb, uint64_t file_bytes)
{
	uint64_t mapped = min_u64(sb->disk.root.count, sb->disk.size_bytes >> sb->block_shift) << sb->block_shift;

	in->out->virtual_bytes = sb->disk.size_bytes;
	inspect_limit(in, BUDGET_VIRTUAL, sb->disk.size_bytes, offsetof(struct disk_super, disk));
	inspect_expansion(in, mapped, file_bytes, offsetof(struct disk_super, disk), "the disk");
	if (sb->has_backing)
		judge_backing(in, &sb->backing);
	if (sb->rocompat)
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, offsetof(struct disk_super, rocompat),
			      "features 0x%" PRIx64 " that writers must know", sb->rocompat);
	if (sb->compat)
		inspect_found(in, INSPECT_OPTIONAL_FEATURE, offsetof(struct disk_super, compat), "features 0x%" PRIx64,
			      sb->compat);
	if (sb->ring_aus)
		inspect_found(in, INSPECT_REPLAY, au_off(sb->ring_addr), "the last writer did not close it");
	else if (file_bytes > sb->file_bytes)
		inspect_found(in, INSPECT_TRAILING, sb->file_bytes, "%" PRIu64 " bytes behind the end of the image",
			      file_bytes - sb->file_bytes);
}

int limg_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	unsigned damaged;
	struct super sb;
	int rc = super_read(file, &sb, &damaged, &why);

	if (!rc) {
		judge_super(in, &sb, node_size(file));
		return 0;
	}
	if (rc == IMG_E_IO || rc == IMG_E_NOMEM) {
		if (err)
			*err = why;
		return rc;
	}
	if (rc == IMG_E_UNSUPPORTED)
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, why.offset, "%s", why.msg);
	inspect_found(in, why.offset >= node_size(file) ? INSPECT_TRUNCATED : INSPECT_BAD_HEADER, why.offset, "%s",
		      why.msg);
	return 0;
}
