/* SPDX-License-Identifier: MIT */
/*
 * The footer. It stands behind the disk; a dynamic disk has a copy at its head, and that copy is what counts where both
 * are good: nothing a guest writes comes to lie there, while the last sector of a file that grew and was cut off by a
 * crash can be one of the guest's (VHD-2). A fixed disk is the other way round: sector 0 is the guest's own. So a file
 * whose head is a dynamic disk and whose tail is a fixed one, or another disk, is a file in a file, and it is not for
 * us to choose which.
 *
 * A footer whose checksum does not hold is taken for reading if nothing speaks against it (VHD-3).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "is_zero.h"
#include "vhd.h"

/* How far back from a hole at the end, or from the end, a footer is looked for that does not stand there. */
#define LOST_BYTES_MAX	(UINT64_C(4) << 20)
#define LOST_STEP_BYTES (UINT64_C(64) << 10)

uint32_t vhd_checksum(const void *p, size_t bytes, size_t field_off)
{
	const uint8_t *b = p;
	uint32_t sum = 0;

	for (size_t i = 0; i < bytes; i++)
		if (i < field_off || i >= field_off + 4)
			sum += b[i];
	return ~sum;
}

static uint32_t footer_checksum(const struct disk_vhd_footer *f)
{
	return vhd_checksum(f, sizeof(*f), offsetof(struct disk_vhd_footer, checksum));
}

void vhd_footer_seal(struct disk_vhd_footer *f)
{
	f->checksum = be32_of(footer_checksum(f));
}

enum vhd_type vhd_footer_type(const struct disk_vhd_footer *f)
{
	return (enum vhd_type)be32_get(f->type);
}

/* ---- the disk's size --------------------------------------------------------------------------------------------- */

uint64_t vhd_geometry_bytes(const struct disk_vhd_footer *f)
{
	return (uint64_t)be16_get(f->cylinders) * f->heads * f->sectors * VHD_SECTOR_BYTES;
}

static bool geometry_is_max(const struct disk_vhd_footer *f)
{
	return be16_get(f->cylinders) == VHD_CYLINDERS_MAX && f->heads == VHD_HEADS_MAX &&
	       f->sectors == VHD_SECTORS_MAX;
}

/* Virtual PC and QEMU show what the geometry says; everyone else the footer's size (VHD-4). */
bool vhd_size_from_geometry(const struct disk_vhd_footer *f)
{
	if (memcmp(f->creator, "vpc ", 4) != 0 && memcmp(f->creator, "qemu", 4) != 0)
		return false;
	return !geometry_is_max(f) && vhd_geometry_bytes(f) != 0;
}

uint64_t vhd_footer_size(const struct disk_vhd_footer *f)
{
	return vhd_size_from_geometry(f) ? vhd_geometry_bytes(f) : be64_get(f->current_bytes);
}

void vhd_footer_set_size(struct disk_vhd_footer *f, uint64_t size_bytes)
{
	f->current_bytes = be64_of(size_bytes);
	f->original_bytes = be64_of(size_bytes); /* libvhdi takes this one */
	/* With any other geometry some programs would show the disk as large as that one is. */
	f->cylinders = be16_of(VHD_CYLINDERS_MAX);
	f->heads = VHD_HEADS_MAX;
	f->sectors = VHD_SECTORS_MAX;
}

/* ---- making one -------------------------------------------------------------------------------------------------- */

uint32_t vhd_timestamp(int64_t unix_seconds)
{
	return unix_seconds < VHD_EPOCH || unix_seconds - VHD_EPOCH > UINT32_MAX ? 0 :
										   (uint32_t)(unix_seconds - VHD_EPOCH);
}

void vhd_footer_init(struct disk_vhd_footer *f, uint64_t size_bytes)
{
	struct timespec now = { 0 };

	clock_gettime(CLOCK_REALTIME, &now);
	memset(f, 0, sizeof(*f));
	memcpy(f->cookie, VHD_COOKIE, sizeof(f->cookie));
	f->features = be32_of(VHD_FEATURES);
	f->version = be32_of(VHD_VERSION);
	f->data_off = be64_of(VHD_NO_DATA_OFF);
	f->timestamp = be32_of(vhd_timestamp(now.tv_sec));
	memcpy(f->creator, "limg", sizeof(f->creator));
	f->creator_version = be32_of(IMG_VERSION_MAJOR << 16 | IMG_VERSION_MINOR);
	memcpy(f->creator_os, "Wi2k", sizeof(f->creator_os)); /* one of the two there are */
	vhd_footer_set_size(f, size_bytes);
}

int vhd_random_uuid(uint8_t uuid[16], struct img_error *err)
{
	if (getrandom(uuid, 16, 0) != 16)
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, LAYER, "no random numbers for a uuid");
	uuid[6] = (uint8_t)(0x40 | (uuid[6] & 0x0f)); /* RFC 4122, version 4 */
	uuid[8] = (uint8_t)(0x80 | (uuid[8] & 0x3f));
	return 0;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static enum vhd_copy judge(const struct disk_vhd_footer *f)
{
	if (memcmp(f->cookie, VHD_COOKIE, sizeof(f->cookie)) != 0)
		return VHD_ABSENT;
	return be32_get(f->checksum) == footer_checksum(f) ? VHD_GOOD : VHD_STALE;
}

/* The last sector of the file, or the last 511 bytes. */
static int load_tail(struct node *file, uint64_t size, struct vhd_footers *out, struct disk_vhd_footer *f,
		     struct img_error *err)
{
	int ret;

	out->tail_off = size;
	if (size < VHD_SECTOR_BYTES)
		return 0;
	ret = node_pread(file, f, sizeof(*f), size - sizeof(*f), 0, err);
	if (ret != 0)
		return ret;
	out->tail = judge(f);
	out->tail_bytes = sizeof(*f);
	if (out->tail == VHD_ABSENT) {
		memmove(f, (uint8_t *)f + 1, VHD_OLD_FOOTER_BYTES);
		((uint8_t *)f)[VHD_OLD_FOOTER_BYTES] = 0;
		out->tail = judge(f);
		out->tail_bytes = VHD_OLD_FOOTER_BYTES;
	}
	if (out->tail == VHD_ABSENT)
		out->tail_bytes = 0;
	out->tail_off = size - out->tail_bytes;
	return 0;
}

/* ---- a fixed disk that was growing ------------------------------------------------------------------------------- */

/* The first byte of zeros that reach to the end of the file, as far as the host knows of holes. */
static int find_hole(struct node *file, uint64_t size, uint64_t *out, struct img_error *err)
{
	uint64_t low = 0, high = size; /* high: from there on it is a hole; low: not so from before it */

	while (high - low >= VHD_SECTOR_BYTES) {
		uint64_t mid = low + (high - low) / 2;
		struct status_extent x;
		size_t nr;
		int ret = node_status(file, size - mid, mid, &x, 1, &nr, err);

		if (ret != 0)
			return ret;
		if (x.kind != STATUS_DATA && x.bytes == size - mid)
			high = mid;
		else
			low = x.kind == STATUS_DATA ? min_u64(mid + x.bytes, high) : mid;
		if (low == mid)
			low++;
	}
	*out = high;
	return 0;
}

/* The last sector before *end that is not zeros, in f; *end becomes its end, or 0 where none is near. */
static int last_sector(struct node *file, uint64_t *end, struct disk_vhd_footer *f, struct img_error *err)
{
	uint64_t stop = *end > LOST_BYTES_MAX ? *end - LOST_BYTES_MAX : 0;
	uint8_t *buf = malloc(LOST_STEP_BYTES);
	int ret = buf ? 0 : error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");

	while (ret == 0 && *end > stop) {
		uint64_t n = min_u64(*end - stop, LOST_STEP_BYTES), start = *end - n;

		ret = node_pread(file, buf, n, start, 0, err);
		while (ret == 0 && *end > start && is_zero(buf + (*end - start) - sizeof(*f), sizeof(*f)))
			*end -= sizeof(*f);
		if (ret == 0 && *end > start) {
			memcpy(f, buf + (*end - start) - sizeof(*f), sizeof(*f));
			free(buf);
			return 0;
		}
	}
	free(buf);
	*end = 0;
	return ret;
}

/*
 * A file can be longer after a crash, and what was to stand in its new part be lost: then the footer that was stands
 * before nothing but zeros. It is looked for there if the last sector is zeros; *found: f is one, and says that the
 * disk ends where it begins.
 */
int vhd_find_lost_footer(struct node *file, struct disk_vhd_footer *f, bool *found, struct img_error *err)
{
	uint64_t size = node_size(file), end;
	int ret;

	*found = false;
	if (size < 2 * sizeof(*f))
		return 0;
	ret = find_hole(file, size, &end, err);
	if (ret != 0)
		return ret;
	end = min_u64(round_up(end, sizeof(*f)), round_down(size, sizeof(*f)));
	ret = last_sector(file, &end, f, err);
	*found = ret == 0 && end > 0 && judge(f) == VHD_GOOD && be32_get(f->type) == VHD_FIXED &&
		 be64_get(f->current_bytes) == end - sizeof(*f);
	return ret;
}

static bool is_dynamic(const struct disk_vhd_footer *f)
{
	return be32_get(f->type) == VHD_DYNAMIC || be32_get(f->type) == VHD_DIFFERENCING;
}

/* An old footer lacks the last byte. */
static bool same(const struct disk_vhd_footer *a, const struct disk_vhd_footer *b)
{
	return memcmp(a, b, VHD_OLD_FOOTER_BYTES) == 0;
}

static bool fixed_of_this_length(const struct disk_vhd_footer *f, uint64_t tail_off)
{
	return be32_get(f->type) == VHD_FIXED && be64_get(f->current_bytes) == tail_off;
}

static int two_images(struct node *file, struct img_error *err)
{
	return error_set(
		err, IMG_E_REFUSED, 0, 0, LAYER,
		"%s: the footer at the end belongs to another disk than the copy at the beginning: one image may "
		"lie inside the other; to have the bytes as they are, name the format (-f raw)",
		file->path);
}

static int choose(struct node *file, const struct disk_vhd_footer *head, const struct disk_vhd_footer *tail,
		  struct vhd_footers *out, struct img_error *err)
{
	bool head_dynamic = out->head == VHD_GOOD && is_dynamic(head);
	bool tail_fixed = (out->tail == VHD_GOOD && !is_dynamic(tail)) ||
			  (out->tail == VHD_STALE && fixed_of_this_length(tail, out->tail_off));

	if (head_dynamic && tail_fixed)
		return two_images(file, err);
	if (head_dynamic && out->tail == VHD_GOOD && memcmp(head->uuid, tail->uuid, sizeof(head->uuid)) != 0)
		return two_images(file, err);
	if (head_dynamic) {
		out->f = *head;
		out->differ = out->tail == VHD_GOOD && !same(head, tail);
		return 0;
	}
	if (out->tail == VHD_GOOD || tail_fixed) {
		out->f = *tail;
		out->stale = out->tail == VHD_STALE;
		return 0;
	}
	if (out->head == VHD_STALE && out->tail == VHD_STALE && same(head, tail)) {
		out->f = *head;
		out->stale = true;
		return 0;
	}
	if (out->head == VHD_ABSENT && out->tail == VHD_ABSENT)
		return error_set(err, IMG_E_FORMAT, 0, NO_OFFSET, LAYER, "%s: no VHD: there is no footer", file->path);
	return error_set(err, IMG_E_CORRUPT, 0, out->tail == VHD_ABSENT ? 0 : out->tail_off, LAYER,
			 "%s: the footer is damaged, and there is no good copy of it", file->path);
}

/* What f says must make sense for this file. */
static int check_footer(struct node *file, const struct vhd_footers *foot, struct img_error *err)
{
	const struct disk_vhd_footer *f = &foot->f;
	uint64_t size = vhd_footer_size(f);
	uint32_t type = be32_get(f->type);

	if (be32_get(f->version) >> 16 != VHD_VERSION >> 16)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: VHD version 0x%" PRIx32, file->path,
				 be32_get(f->version));
	if (type != VHD_FIXED && type != VHD_DYNAMIC && type != VHD_DIFFERENCING)
		return error_set(err, IMG_E_UNSUPPORTED, 0, NO_OFFSET, LAYER, "%s: VHD disk type %" PRIu32, file->path,
				 type);
	if (size % VHD_SECTOR_BYTES != 0)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "%s: a disk of 0x%" PRIx64 " bytes, which are no whole sectors", file->path, size);
	if (type == VHD_FIXED && size > foot->tail_off)
		return error_set(err, IMG_E_CORRUPT, 0, foot->tail_off, LAYER,
				 "%s: cut off: a disk of 0x%" PRIx64 " bytes, of which 0x%" PRIx64 " are there",
				 file->path, size, foot->tail_off);
	if (type != VHD_FIXED && size > VHD_DYNAMIC_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
				 "%s: a disk of 0x%" PRIx64 " bytes; the format's limit is 2040 GiB", file->path, size);
	return 0;
}

int vhd_footers_load(struct node *file, struct vhd_footers *out, struct img_error *err)
{
	struct disk_vhd_footer head = { 0 }, tail = { 0 };
	uint64_t size = node_size(file);
	bool lost = false;
	int ret;

	memset(out, 0, sizeof(*out));
	ret = load_tail(file, size, out, &tail, err);
	/* A disk of no bytes has its footer at the beginning. */
	if (ret == 0 && size >= sizeof(head) && out->tail_off > 0) {
		ret = node_pread(file, &head, sizeof(head), 0, 0, err);
		out->head = judge(&head);
	}
	if (ret == 0 && out->head == VHD_ABSENT && out->tail == VHD_ABSENT)
		ret = vhd_find_lost_footer(file, &out->f, &lost, err);
	if (ret == 0 && !lost)
		ret = choose(file, &head, &tail, out, err);
	return ret == 0 ? check_footer(file, out, err) : ret;
}
