/* SPDX-License-Identifier: MIT */
/*
 * Formats that this build recognises and does not open: what they name, whether copies of their headers agree, and how
 * large they say they are. That is less than a verdict, so each is a finding by itself (unverified-format), which a
 * policy can allow. When a format gets a driver, its look moves there.
 *
 * Sources: Virtual Hard Disk Image Format Specification (2006); docs/interop/parallels.rst.
 * format-spec/inspect.md says what is looked at.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"
#include "is_zero.h"

#define LAYER "inspect"

static void virtual_size(struct inspector *in, uint64_t bytes, uint64_t off)
{
	in->out->virtual_bytes = bytes;
	inspect_limit(in, BUDGET_VIRTUAL, bytes, off);
}

/* ---- VHD --------------------------------------------------------------------------------------------------------- */

#define VHD_FOOTER_BYTES 512u
#define VHD_FIXED	 2u
#define VHD_DYNAMIC	 3u
#define VHD_DIFFERENCING 4u
#define VHD_LOCATORS	 8u

static uint32_t vhd_sum(const uint8_t *p, size_t bytes, size_t field)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < bytes; i++)
		if (i < field || i >= field + 4)
			sum += p[i];
	return ~sum;
}

static int vhd_sparse_header(struct inspector *in, struct node *file, uint64_t off, bool differencing,
			     struct img_error *err)
{
	uint8_t h[1024];
	char name[257];
	size_t n = 0;
	int ret = inspect_read(file, h, sizeof(h), off, err);

	if (ret != 0)
		return ret;
	if (memcmp(h, "cxsparse", 8) != 0 || vhd_sum(h, sizeof(h), 36) != be32_at(h, 36))
		inspect_found(in, INSPECT_BAD_HEADER, off, "there is no whole dynamic disk header at 0x%" PRIx64, off);
	else if (!range_inside(be64_at(h, 16), (uint64_t)be32_at(h, 28) * 4, node_size(file)))
		inspect_found(in, INSPECT_TABLE_BOUNDS, off + 16, "the block table is at 0x%" PRIx64, be64_at(h, 16));
	/* UTF-16, of which the ASCII part is shown */
	for (size_t i = 64; i < 576 && (h[i] || h[i + 1]); i += 2)
		name[n++] = h[i] == 0 && h[i + 1] >= ' ' && h[i + 1] < 0x7f ? (char)h[i + 1] : '?';
	if (n > 0 || differencing)
		inspect_reference(in, differencing ? INSPECT_PARENT : INSPECT_HIDDEN_REFERENCE, (uint8_t *)name, n,
				  off + 64, "a parent");
	for (unsigned i = 0; i < VHD_LOCATORS; i++)
		if (!is_zero(h + 576 + 24 * i, 24))
			inspect_found(in, differencing ? INSPECT_PARENT : INSPECT_HIDDEN_REFERENCE, off + 576 + 24 * i,
				      "names a parent in locator %u", i);
	return 0;
}

/* The footer may be 511 bytes long; 0: there is none. */
static uint64_t vhd_footer(const uint8_t *tail)
{
	if (memcmp(tail, "conectix", 8) == 0)
		return VHD_FOOTER_BYTES;
	return memcmp(tail + 1, "conectix", 8) == 0 ? VHD_FOOTER_BYTES - 1 : 0;
}

static int vhd(struct inspector *in, struct node *file, struct img_error *err)
{
	uint64_t size = node_size(file), at = size >= VHD_FOOTER_BYTES ? size - VHD_FOOTER_BYTES : 0, length;
	uint8_t head[VHD_FOOTER_BYTES], tail[VHD_FOOTER_BYTES], *f;
	int ret = inspect_read(file, head, sizeof(head), 0, err);
	uint32_t type;
	bool copy;

	if (ret == 0)
		ret = inspect_read(file, tail, sizeof(tail), at, err);
	if (ret != 0)
		return ret;
	length = vhd_footer(tail);
	copy = memcmp(head, "conectix", 8) == 0;
	if (length == VHD_FOOTER_BYTES - 1) {
		memmove(tail, tail + 1, VHD_FOOTER_BYTES - 1);
		tail[VHD_FOOTER_BYTES - 1] = 0;
		at++;
	}
	f = length ? tail : head;
	type = be32_at(f, 60);
	if (!length)
		inspect_found(in, INSPECT_HEAD_TAIL, size, "the footer at the end is missing");
	else if (type != VHD_FIXED && (!copy || memcmp(head, tail, VHD_FOOTER_BYTES - 1) != 0))
		inspect_found(in, INSPECT_HEAD_TAIL, 0, "the copy of the footer at the beginning %s",
			      copy ? "says something else than the footer" : "is missing");
	else if (type == VHD_FIXED && copy)
		inspect_found(in, INSPECT_HEAD_TAIL, 0, "the disk of a fixed image begins with another footer");
	if (vhd_sum(f, VHD_FOOTER_BYTES, 64) != be32_at(f, 64))
		inspect_found(in, INSPECT_INCONSISTENT, at + 64, "the footer's checksum does not hold");
	virtual_size(in, be64_at(f, 48), at + 48);
	if (f[84] != 0)
		inspect_found(in, INSPECT_MACHINE_STATE, at + 84, "marked as in saved state");
	if (type == VHD_FIXED)
		return 0;
	if (type != VHD_DYNAMIC && type != VHD_DIFFERENCING) {
		inspect_found(in, INSPECT_BAD_HEADER, at + 60, "disk type %" PRIu32, type);
		return 0;
	}
	return vhd_sparse_header(in, file, be64_at(f, 16), type == VHD_DIFFERENCING, err);
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
	{ "vhd", vhd },
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
