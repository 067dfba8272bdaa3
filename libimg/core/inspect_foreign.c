/* SPDX-License-Identifier: MIT */
/*
 * Formats that this build recognises and does not open: what they name, whether copies of their headers agree, and how
 * large they say they are. That is less than a verdict, so each is a finding by itself (unverified-format), which a
 * policy can allow. When a format gets a driver, its look moves there.
 *
 * Source: docs/interop/parallels.rst.
 * format-spec/inspect.md says what is looked at.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"

#define LAYER "inspect"

static void virtual_size(struct inspector *in, uint64_t bytes, uint64_t off)
{
	in->out->virtual_bytes = bytes;
	inspect_limit(in, BUDGET_VIRTUAL, bytes, off);
}

/* ---- the small ones ---------------------------------------------------------------------------------------------- */

#define PARALLELS_IN_USE 0x746f6e59u

static int parallels(struct inspector *in, struct node *file, struct img_error *err)
{
	uint8_t h[64];
	int ret = inspect_read(file, h, sizeof(h), 0, err);

	if (ret != 0)
		return ret;
	if (le64_at(h, 36) > INT64_MAX / 512)
		inspect_found(in, INSPECT_BAD_HEADER, 36, "a disk of %" PRIu64 " sectors", le64_at(h, 36));
	else
		virtual_size(in, le64_at(h, 36) * 512, 36);
	if (64 + (uint64_t)le32_at(h, 32) * 4 > node_size(file))
		inspect_found(in, INSPECT_TABLE_BOUNDS, 32, "a block table of %" PRIu32 " entries", le32_at(h, 32));
	if (le32_at(h, 44) == PARALLELS_IN_USE)
		inspect_found(in, INSPECT_DIRTY, 44, "the last writer did not close it");
	return 0;
}

static int luks(struct inspector *in, struct node *file, struct img_error *err)
{
	return inspect_luks(in, file, 0, node_size(file), err);
}

static const struct foreign {
	const char *format;
	int (*inspect)(struct inspector *in, struct node *file, struct img_error *err);
} table[] = {
	{ "luks", luks },
	{ "parallels", parallels },
	{ "vmdk", inspect_vmdk },
};

int inspect_foreign(struct inspector *in, const char *format, struct node *file, struct img_error *err)
{
	inspect_found(in, INSPECT_UNVERIFIED, NO_OFFSET, "%s: no more than headers and references are judged", format);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].format, format) == 0)
			return table[i].inspect(in, file, err);
	return 0;
}
