/* SPDX-License-Identifier: MIT */
/*
 * Formats that this build recognises and does not open: what they name, whether copies of their headers agree, and how
 * large they say they are. That is less than a verdict, so each is a finding by itself (unverified-format), which a
 * policy can allow. When a format gets a driver, its look moves there.
 *
 * Sources: docs/interop/qed_spec.txt and the header of qcow version 1 in QEMU's documentation; Virtual Hard Disk Image
 * Format Specification (2006); VDICore.h of VirtualBox; docs/interop/parallels.rst; bochs' hdimage; the koly block of
 * UDIF. format-spec/inspect.md says what is looked at.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"
#include "is_zero.h"

#define LAYER	       "inspect"
#define NAME_MAX_BYTES 1023u

static void virtual_size(struct inspector *in, uint64_t bytes, uint64_t off)
{
	in->out->virtual_bytes = bytes;
	inspect_limit(in, BUDGET_VIRTUAL, bytes, off);
}

/* A name of bytes at off, as header fields say it. */
static int backing_name(struct inspector *in, struct node *file, uint64_t off, uint64_t bytes, struct img_error *err)
{
	uint8_t name[NAME_MAX_BYTES];
	uint64_t there = min_u64(bytes, sizeof(name));
	int ret = inspect_read(file, name, there, off, err);

	if (ret == 0 && (bytes > sizeof(name) || !range_inside(off, bytes, node_size(file))))
		inspect_found(in, INSPECT_TABLE_BOUNDS, off, "the name of the backing file has %" PRIu64 " bytes",
			      bytes);
	if (ret == 0)
		inspect_reference(in, INSPECT_BACKING, name, (size_t)there, off, "a backing file");
	return ret;
}

/* ---- qcow, version 1 --------------------------------------------------------------------------------------------- */

static int qcow(struct inspector *in, struct node *file, struct img_error *err)
{
	uint8_t h[48];
	int ret = inspect_read(file, h, sizeof(h), 0, err);

	if (ret != 0)
		return ret;
	virtual_size(in, be64_at(h, 24), 24);
	if (be32_at(h, 36) != 0)
		inspect_found(in, INSPECT_ENCRYPTED, 36, "encryption method %" PRIu32, be32_at(h, 36));
	if (h[32] < 9 || h[32] > 16 || h[33] < 6 || h[33] > 13)
		inspect_found(in, INSPECT_BAD_HEADER, 32, "clusters of 2^%u bytes, tables of 2^%u entries", h[32],
			      h[33]);
	if (be64_at(h, 40) >= node_size(file))
		inspect_found(in, INSPECT_TABLE_BOUNDS, 40, "the L1 table is at 0x%" PRIx64, be64_at(h, 40));
	if (be64_at(h, 8) != 0 || be32_at(h, 16) != 0)
		ret = backing_name(in, file, be64_at(h, 8), be32_at(h, 16), err);
	return ret;
}

/* ---- QED --------------------------------------------------------------------------------------------------------- */

#define QED_BACKING	1u
#define QED_NEED_CHECK	2u
#define QED_BACKING_RAW 4u

static int qed(struct inspector *in, struct node *file, struct img_error *err)
{
	uint8_t h[64];
	uint64_t features;
	int ret = inspect_read(file, h, sizeof(h), 0, err);

	if (ret != 0)
		return ret;
	features = le64_at(h, 16);
	virtual_size(in, le64_at(h, 48), 48);
	if (features & ~(uint64_t)(QED_BACKING | QED_NEED_CHECK | QED_BACKING_RAW))
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, 16, "features 0x%" PRIx64, features);
	if (features & QED_NEED_CHECK)
		inspect_found(in, INSPECT_DIRTY, 16, "the image has to be checked before it is used");
	if (le64_at(h, 40) >= node_size(file))
		inspect_found(in, INSPECT_TABLE_BOUNDS, 40, "the L1 table is at 0x%" PRIx64, le64_at(h, 40));
	if ((features & QED_BACKING) || le32_at(h, 56) != 0 || le32_at(h, 60) != 0)
		ret = backing_name(in, file, le32_at(h, 56), le32_at(h, 60), err);
	return ret;
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

/* ---- VDI --------------------------------------------------------------------------------------------------------- */

#define VDI_LINE_BYTES 64u
#define VDI_NORMAL     1u
#define VDI_FIXED      2u
#define VDI_DIFFERENCE 4u

static int vdi(struct inspector *in, struct node *file, struct img_error *err)
{
	uint64_t size = node_size(file), map;
	uint8_t h[0x1c8];
	uint32_t type;
	size_t first;
	bool linked;
	int ret = inspect_read(file, h, sizeof(h), 0, err);

	if (ret != 0)
		return ret;
	if (le32_at(h, 0x44) != 0x10001) {
		inspect_found(in, INSPECT_BAD_HEADER, 0x44, "VDI version 0x%" PRIx32, le32_at(h, 0x44));
		return 0;
	}
	type = le32_at(h, 0x4c);
	virtual_size(in, le64_at(h, 0x170), 0x170);
	map = (uint64_t)le32_at(h, 0x180) * 4;
	if (!range_inside(le32_at(h, 0x154), map, size) || le32_at(h, 0x158) > size)
		inspect_found(in, INSPECT_TABLE_BOUNDS, 0x154, "the block map or the data lie outside the file");
	if ((uint64_t)le32_at(h, 0x180) * le32_at(h, 0x178) < le64_at(h, 0x170))
		inspect_found(in, INSPECT_INCONSISTENT, 0x180, "the block map is shorter than the disk");
	linked = !is_zero(h + 0x1a8, 16);
	if (type == VDI_DIFFERENCE)
		inspect_found(in, INSPECT_PARENT, 0x4c, "a difference to a parent");
	else if (type != VDI_NORMAL && type != VDI_FIXED)
		inspect_found(in, INSPECT_SUBFORMAT, 0x4c, "VDI type %" PRIu32, type);
	else if (linked)
		inspect_found(in, INSPECT_HIDDEN_REFERENCE, 0x1a8, "names a parent by its UUID");
	first = strnlen((char *)h, VDI_LINE_BYTES);
	if (first > 0 && h[first - 1] == '\n')
		first--;
	inspect_text(in, h, first, 0, "the VDI's first line");
	return 0;
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

static int bochs(struct inspector *in, struct node *file, struct img_error *err)
{
	uint8_t h[96];
	int ret = inspect_read(file, h, sizeof(h), 0, err);

	if (ret == 0 && memcmp(h + 32, "Redolog", 8) == 0 && memcmp(h + 48, "Growing", 8) != 0)
		inspect_found(in, INSPECT_PARENT, 48, "a redo log over another image");
	return ret;
}

#define KOLY_BYTES 512u

static int dmg(struct inspector *in, struct node *file, struct img_error *err)
{
	uint64_t size = node_size(file), at = size >= KOLY_BYTES ? size - KOLY_BYTES : 0;
	uint8_t k[KOLY_BYTES], head[8];
	int ret = inspect_read(file, k, sizeof(k), at, err);

	if (ret == 0)
		ret = inspect_read(file, head, sizeof(head), 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(head, "encrcdsa", 8) == 0)
		inspect_found(in, INSPECT_ENCRYPTED, 0, "an encrypted disk image");
	if (memcmp(k, "koly", 4) != 0)
		return 0;
	if (be32_at(k, 60) > 1)
		inspect_found(in, INSPECT_EXTENT_FILE, at + 60, "one of %" PRIu32 " parts", be32_at(k, 60));
	if (!range_inside(be64_at(k, 216), be64_at(k, 224), size) ||
	    !range_inside(be64_at(k, 24), be64_at(k, 32), size))
		inspect_found(in, INSPECT_TABLE_BOUNDS, at + 216, "its property list or its data lie outside the file");
	if (be64_at(k, 492) <= INT64_MAX / 512)
		virtual_size(in, be64_at(k, 492) * 512, at + 492);
	else
		inspect_found(in, INSPECT_BAD_HEADER, at + 492, "a disk of %" PRIu64 " sectors", be64_at(k, 492));
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
	{ "bochs", bochs }, { "dmg", dmg }, { "luks", luks }, { "parallels", parallels }, { "qcow", qcow },
	{ "qed", qed },	    { "vdi", vdi }, { "vhd", vhd },   { "vhdx", inspect_vhdx },	  { "vmdk", inspect_vmdk },
};

int inspect_foreign(struct inspector *in, const char *format, struct node *file, struct img_error *err)
{
	inspect_found(in, INSPECT_UNVERIFIED, NO_OFFSET, "%s: no more than headers and references are judged", format);
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].format, format) == 0)
			return table[i].inspect(in, file, err);
	return 0;
}
