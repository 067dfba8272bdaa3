/* SPDX-License-Identifier: MIT */
/*
 * Pins: the identity of a parent as its overlay records it. A strong one comes from the format (limg: uuid and root of
 * the tree of checksums); for parents without, size, modification time and a fingerprint of samples of the content are
 * taken, which catch an exchanged or rewritten base, not every single changed byte. format-spec/limg.md, section 12.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "image.h"
#include "is_zero.h"

#define LAYER	      "pin"
#define SAMPLE_BYTES  4096u
#define NS_PER_SECOND INT64_C(1000000000)
#define NR_SAMPLES    64u
#define WHOLE_BELOW   (256u << 10)

static uint64_t sample_off(uint64_t size, unsigned i)
{
	uint64_t last = size - SAMPLE_BYTES, parts = NR_SAMPLES - 1;

	/* i * last / parts without the product's overflow. */
	return round_down(i * (last / parts) + i * (last % parts) / parts, 512);
}

static int hash_range(struct node *top, XXH3_state_t *state, uint64_t bytes, uint64_t off, struct img_error *err)
{
	uint8_t buf[SAMPLE_BYTES];

	while (bytes > 0) {
		uint64_t n = min_u64(bytes, sizeof(buf));
		int ret = node_pread(top, buf, n, off, 0, err);

		if (ret != 0)
			return ret;
		XXH3_128bits_update(state, buf, (size_t)n);
		off += n;
		bytes -= n;
	}
	return 0;
}

static int fingerprint(struct node *top, uint64_t size, uint8_t *out, struct img_error *err)
{
	XXH3_state_t *state = XXH3_createState();
	struct le64 disk = le64_of(size);
	XXH128_hash_t hash;
	int ret = 0;

	if (!state)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	XXH3_128bits_reset(state);
	XXH3_128bits_update(state, disk.b, sizeof(disk.b));
	if (size < WHOLE_BELOW)
		ret = hash_range(top, state, size, 0, err);
	else
		for (unsigned i = 0; i < NR_SAMPLES && ret == 0; i++)
			ret = hash_range(top, state, SAMPLE_BYTES, sample_off(size, i), err);
	hash = XXH3_128bits_digest(state);
	disk = le64_of(hash.low64);
	memcpy(out, disk.b, 8);
	disk = le64_of(hash.high64);
	memcpy(out + 8, disk.b, 8);
	XXH3_freeState(state);
	return ret;
}

int image_pin(struct img *img, struct pin *out, struct img_error *err)
{
	struct host_stat host;
	int ret;

	memset(out, 0, sizeof(*out));
	if (node_has_pin(img->top))
		return node_pin(img->top, out, err);
	ret = node_stat(img->top, &host, err);
	if (ret != 0)
		return ret;
	out->kind = PIN_WEAK;
	out->size_bytes = node_size(img->top);
	out->mtime_ns = host.mtime_ns;
	return fingerprint(img->top, out->size_bytes, out->hash, err);
}

int image_identify(struct img *img, struct backing_ref *ref, struct img_error *err)
{
	/*
	 * A flush leaves the parent's time in memory (fdatasync(); for a day where a file system is mounted with
	 * lazytime). Lost in a crash after the overlay has it on record, it would make the parent look changed.
	 */
	int ret = node_has_pin(img->top) ? 0 : node_sync_time(img->top, err);

	node_id(img->top, &ref->id);
	return ret == 0 ? image_pin(img, &ref->pin, err) : ret;
}

static const char advice[] = "put the right one back, or use imgtool rebase --unsafe if the change is meant";

/* To the second, or to the nanosecond. */
static void time_text(int64_t ns, bool fraction, char *out, size_t out_bytes)
{
	time_t seconds = (time_t)(ns / NS_PER_SECOND);
	struct tm tm;
	size_t len = gmtime_r(&seconds, &tm) ? strftime(out, out_bytes, "%Y-%m-%d %H:%M:%S", &tm) : 0;

	if (len == 0 || (fraction && ns < 0))
		(void)snprintf(out, out_bytes, "%" PRId64 " ns", ns);
	else if (fraction)
		(void)snprintf(out + len, out_bytes - len, ".%09" PRId64, ns % NS_PER_SECOND);
}

/* What differs and what to do come first: long paths may be cut off. */
static int changed(const char *child, const char *parent, const char *what, struct img_error *err)
{
	return error_set(err, IMG_E_CHANGED, 0, NO_OFFSET, LAYER,
			 "the backing file is not as recorded: %s; %s: %s, named by %s", what, advice, parent, child);
}

static const char *other_image(const struct pin *recorded, const struct pin *found)
{
	if (recorded->kind != found->kind)
		return "it has another format";
	if (recorded->kind == PIN_WEAK)
		return NULL;
	if (memcmp(recorded->uuid, found->uuid, sizeof(found->uuid)) != 0 &&
	    !(recorded->kind == PIN_ID && !is_zero(found->uuid, sizeof(found->uuid)) &&
	      memcmp(recorded->snapshot_uuid, found->uuid, sizeof(found->uuid)) == 0))
		return recorded->kind == PIN_ID && recorded->sector_bytes != 0 ?
			       "it is another image, or was changed since (data write GUID)" :
			       "it is another image (uuid)";
	if (recorded->kind == PIN_ID && recorded->sector_bytes != found->sector_bytes)
		return "it has logical sectors of another size";
	if (recorded->kind == PIN_ID)
		return !is_zero(recorded->change, sizeof(recorded->change)) &&
				       memcmp(recorded->change, found->change, sizeof(found->change)) != 0 ?
			       "it was changed since (modification uuid)" :
			       NULL;
	if (memcmp(recorded->snapshot_uuid, found->snapshot_uuid, sizeof(found->snapshot_uuid)) != 0)
		return "it is another snapshot (uuid)";
	return NULL;
}

int pin_compare(const struct pin *recorded, const struct pin *found, const char *child, const char *parent,
		struct img_error *err)
{
	const char *other;
	char what[128], then[48], now[48];
	bool same_second;

	if (recorded->kind == PIN_NONE)
		return 0;
	other = other_image(recorded, found);
	if (other)
		return changed(child, parent, other, err);
	if (recorded->kind == PIN_ID)
		return 0;
	if (recorded->size_bytes != found->size_bytes) {
		(void)snprintf(what, sizeof(what), "its size was %" PRIu64 " and is %" PRIu64 " bytes",
			       recorded->size_bytes, found->size_bytes);
		return changed(child, parent, what, err);
	}
	if (memcmp(recorded->hash, found->hash, sizeof(found->hash)) != 0)
		return changed(child, parent, "its content changed", err);
	if (recorded->kind == PIN_STRONG || found->mtime_ns == 0 || recorded->mtime_ns == found->mtime_ns)
		return 0;
	same_second = recorded->mtime_ns / NS_PER_SECOND == found->mtime_ns / NS_PER_SECOND;
	time_text(recorded->mtime_ns, same_second, then, sizeof(then));
	time_text(found->mtime_ns, same_second, now, sizeof(now));
	(void)snprintf(what, sizeof(what), "written at %s UTC, was %s", now, then);
	return changed(child, parent, what, err);
}

int pin_compare_committing(const struct pin *recorded, const struct pin *found, const char *child, const char *parent,
			   struct img_error *err)
{
	struct pin was = *recorded;

	/* Where an id has no other beside it that tells of changes, it is what each change makes anew. */
	if (was.kind == PIN_ID && is_zero(was.change, sizeof(was.change)))
		memcpy(was.uuid, found->uuid, sizeof(was.uuid));
	memcpy(was.change, found->change, sizeof(was.change));
	memcpy(was.hash, found->hash, sizeof(was.hash));
	was.mtime_ns = found->mtime_ns;
	if (found->size_bytes > was.size_bytes) /* it grows to hold what it takes */
		was.size_bytes = found->size_bytes;
	return pin_compare(&was, found, child, parent, err);
}
