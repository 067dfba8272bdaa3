/* SPDX-License-Identifier: MIT */
/*
 * Header extensions. Those that this program understands become fields of struct qcow2_header; all others are kept as
 * bytes, in their order, and written back when the header is.
 *
 * One extension is our own: the identity (pin) of the backing file, as an overlay of limg has it. Other programs keep
 * it as unknown. They may however record another backing file beside it; therefore it carries the name and the format
 * that it is about, and is void when the header says something else. An overlay on a *snapshot* of another image is
 * something that qcow2 cannot express: others would open that image's head, which is other content. Its header names a
 * format that nobody has, so that others refuse; the true format stands in our extension.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "qcow2_engine.h"
#include "qcow2_header.h"

#define PIN_VERSION 1

/* ---- the pin ----------------------------------------------------------------------------------------------------- */

static uint64_t name_hash(const char *name)
{
	return XXH3_64bits(name, strlen(name));
}

uint32_t qcow2_pin_store(const struct qcow2_header *h, uint8_t *out)
{
	size_t snapshot_bytes = strlen(h->backing_snapshot);
	struct disk_qcow2_pin d = {
		.version = PIN_VERSION,
		.kind = h->has_pin ? (uint8_t)h->pin.kind : PIN_NONE,
		.flags = h->committing ? QCOW2_PIN_COMMITTING : 0,
		.snapshot_bytes = (uint8_t)snapshot_bytes,
	};

	if (h->backing[0] == '\0' || (!h->has_pin && !h->committing && snapshot_bytes == 0))
		return 0;
	d.backing_hash = be64_of(name_hash(h->backing));
	if (h->has_pin) {
		memcpy(d.uuid, h->pin.uuid, sizeof(d.uuid));
		memcpy(d.snapshot_uuid, h->pin.snapshot_uuid, sizeof(d.snapshot_uuid));
		memcpy(d.hash, h->pin.hash, sizeof(d.hash));
		d.size_bytes = be64_of(h->pin.size_bytes);
		d.mtime_ns = be64_of((uint64_t)h->pin.mtime_ns);
	}
	memcpy(d.format, h->backing_format, sizeof(d.format));
	memcpy(out, &d, sizeof(d));
	memcpy(out + sizeof(d), h->backing_snapshot, snapshot_bytes);
	return (uint32_t)(sizeof(d) + snapshot_bytes);
}

/* Does the pin speak of what the header names? */
static bool pin_applies(const struct qcow2_header *h, const struct disk_qcow2_pin *d)
{
	bool hidden = strcmp(h->backing_format, QCOW2_PINNED_FORMAT) == 0;

	if (h->backing[0] == '\0' || be64_get(d->backing_hash) != name_hash(h->backing))
		return false;
	if (hidden != (d->snapshot_bytes > 0))
		return false;
	return hidden || strncmp(h->backing_format, d->format, sizeof(d->format)) == 0;
}

/* True: taken, or void; false: of a version that is not known, to be kept as it is. */
static bool take_pin(struct qcow2_header *h, const uint8_t *data, uint32_t bytes)
{
	struct disk_qcow2_pin d;

	if (bytes < sizeof(d))
		return true;
	memcpy(&d, data, sizeof(d));
	if (d.version != PIN_VERSION)
		return false;
	if (bytes < sizeof(d) + d.snapshot_bytes || d.kind > PIN_WEAK || d.format[sizeof(d.format) - 1] != '\0' ||
	    memchr(data + sizeof(d), 0, d.snapshot_bytes) || !pin_applies(h, &d))
		return true;
	h->has_pin = d.kind != PIN_NONE;
	h->committing = d.flags & QCOW2_PIN_COMMITTING;
	h->pin.kind = (enum pin_kind)d.kind;
	memcpy(h->pin.uuid, d.uuid, sizeof(d.uuid));
	memcpy(h->pin.snapshot_uuid, d.snapshot_uuid, sizeof(d.snapshot_uuid));
	memcpy(h->pin.hash, d.hash, sizeof(d.hash));
	h->pin.size_bytes = be64_get(d.size_bytes);
	h->pin.mtime_ns = (int64_t)be64_get(d.mtime_ns);
	memcpy(h->backing_format, d.format, sizeof(d.format));
	memcpy(h->backing_snapshot, data + sizeof(d), d.snapshot_bytes);
	h->backing_snapshot[d.snapshot_bytes] = '\0';
	return true;
}

/* ---- names of features ------------------------------------------------------------------------------------------- */

#define FEATURE_BYTES	   48u
#define FEATURE_NAME_BYTES 46u

static const uint8_t *feature_name(const struct qcow2_header *h, unsigned bit)
{
	for (size_t i = 0; i < h->nr_ext; i++) {
		const struct qcow2_ext *x = &h->ext[i];

		if (x->type != QCOW2_EXT_FEATURE_NAMES)
			continue;
		for (uint32_t at = 0; at + FEATURE_BYTES <= x->bytes; at += FEATURE_BYTES) {
			if (x->data[at] == 0 && x->data[at + 1] == bit && x->data[at + 2] != 0)
				return x->data + at + 2;
		}
	}
	return NULL;
}

void qcow2_feature_names(const struct qcow2_header *h, uint64_t bits, char *out, size_t out_bytes)
{
	size_t at = 0;

	out[0] = '\0';
	for (unsigned bit = 0; bit < 64 && at + 2 < out_bytes; bit++) {
		const uint8_t *name = bits >> bit & 1 ? feature_name(h, bit) : NULL;
		char text[FEATURE_NAME_BYTES + 1] = "";
		int n;

		if (!(bits >> bit & 1))
			continue;
		/* A stranger's text on our terminal: printable characters only. */
		for (unsigned i = 0; name && i < FEATURE_NAME_BYTES && name[i]; i++)
			text[i] = name[i] >= ' ' && name[i] < 0x7f ? (char)name[i] : '?';
		n = snprintf(out + at, out_bytes - at, "%sbit %u%s%s%s", at ? ", " : "", bit, name ? " (" : "", text,
			     name ? ")" : "");
		at += n > 0 ? (size_t)n : 0;
	}
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static int keep(struct qcow2_header *h, uint32_t type, const uint8_t *data, uint32_t bytes, struct img_error *err)
{
	struct qcow2_ext *more = realloc(h->ext, (h->nr_ext + 1) * sizeof(*more));

	if (more) {
		h->ext = more;
		more[h->nr_ext] = (struct qcow2_ext){ type, bytes, malloc(bytes ? bytes : 1) };
	}
	if (!more || !more[h->nr_ext].data)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	memcpy(more[h->nr_ext++].data, data, bytes);
	return 0;
}

static int take_text(char *out, size_t out_bytes, const uint8_t *data, uint32_t bytes, uint64_t off, const char *what,
		     struct img_error *err)
{
	if (bytes >= out_bytes)
		return error_set(err, IMG_E_LIMIT, 0, off, LAYER,
				 "header extension at 0x%" PRIx64 ": the %s has %" PRIu32 " bytes, more than %zu", off,
				 what, bytes, out_bytes - 1);
	memcpy(out, data, bytes);
	out[bytes] = '\0';
	return 0;
}

static int take_bitmaps(struct qcow2_header *h, const uint8_t *data, uint32_t bytes, uint64_t off,
			struct img_error *err)
{
	struct disk_qcow2_bitmaps_ext d;

	if (bytes != sizeof(d))
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
				 "bitmaps extension at 0x%" PRIx64 " has %" PRIu32 " bytes, not %zu", off, bytes,
				 sizeof(d));
	memcpy(&d, data, sizeof(d));
	h->nr_bitmaps = be32_get(d.nr_bitmaps);
	h->bitmap_dir_bytes = be64_get(d.directory_bytes);
	h->bitmap_dir_off = be64_get(d.directory_off);
	if (be32_get(d.reserved) != 0)
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
				 "bitmaps extension at 0x%" PRIx64 ": its reserved field is not zero", off);
	if (h->nr_bitmaps == 0)
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "bitmaps extension at 0x%" PRIx64 " has no bitmap",
				 off);
	if (h->nr_bitmaps > QCOW2_BITMAPS_MAX || h->bitmap_dir_bytes > QCOW2_BITMAP_DIR_MAX_BYTES)
		return error_set(err, IMG_E_LIMIT, 0, off, LAYER,
				 "bitmaps extension at 0x%" PRIx64 ": %" PRIu32 " bitmaps in 0x%" PRIx64
				 " bytes are above the limits of %u and 0x%" PRIx64,
				 off, h->nr_bitmaps, h->bitmap_dir_bytes, QCOW2_BITMAPS_MAX,
				 QCOW2_BITMAP_DIR_MAX_BYTES);
	if (h->bitmap_dir_bytes < (uint64_t)h->nr_bitmaps * sizeof(struct disk_qcow2_bitmap))
		return error_set(err, IMG_E_CORRUPT, 0, off, LAYER,
				 "bitmaps extension at 0x%" PRIx64 ": %" PRIu32 " bitmaps do not fit into 0x%" PRIx64
				 " bytes",
				 off, h->nr_bitmaps, h->bitmap_dir_bytes);
	return 0;
}

/* Stale, when somebody wrote the disk without following the bitmaps: then what the extension says is no reason to
 * refuse. */
static int judge_bitmaps(struct qcow2_header *h, const uint8_t *data, uint32_t bytes, uint64_t off,
			 struct img_error *err)
{
	if (h->version >= 3 && (h->autoclear & QCOW2_BITMAPS))
		return take_bitmaps(h, data, bytes, off, err);
	if (h->version < 3 || take_bitmaps(h, data, bytes, off, NULL) != 0)
		h->nr_bitmaps = 0;
	return 0;
}

struct found_pin {
	const uint8_t *data;
	uint32_t bytes;
};

static int take(struct qcow2_header *h, uint32_t type, const uint8_t *data, uint32_t bytes, uint64_t off,
		struct found_pin *pin, struct img_error *err)
{
	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		return take_text(h->backing_format, sizeof(h->backing_format), data, bytes, off,
				 "format of the backing file", err);
	case QCOW2_EXT_DATA_FILE:
		return take_text(h->data_file, sizeof(h->data_file), data, bytes, off, "name of the data file", err);
	case QCOW2_EXT_BITMAPS: return judge_bitmaps(h, data, bytes, off, err);
	case QCOW2_EXT_PIN: *pin = (struct found_pin){ data, bytes }; return 0;
	default: return keep(h, type, data, bytes, err);
	}
}

int qcow2_extensions_load(struct qcow2_header *h, const uint8_t *cluster, struct img_error *err)
{
	uint64_t end = h->backing_off ? h->backing_off : UINT64_C(1) << h->cluster_bits;
	struct found_pin pin = { NULL, 0 };
	uint64_t at = h->header_bytes;
	int ret = 0;

	while (ret == 0 && at + sizeof(struct disk_qcow2_extension) <= end) {
		struct disk_qcow2_extension d;
		uint64_t data = at + sizeof(d);
		uint32_t type, bytes;

		memcpy(&d, cluster + at, sizeof(d));
		type = be32_get(d.type);
		bytes = be32_get(d.bytes);
		if (type == QCOW2_EXT_END)
			break;
		if (bytes > end - data)
			return error_set(err, IMG_E_CORRUPT, 0, at, LAYER,
					 "header extension 0x%08" PRIx32 " at 0x%" PRIx64 ": its 0x%" PRIx32
					 " bytes reach beyond 0x%" PRIx64,
					 type, at, bytes, end);
		ret = take(h, type, cluster + data, bytes, at, &pin, err);
		at = data + round_up(bytes, 8);
	}
	/* At the end: it needs the name and the format. */
	if (ret == 0 && pin.data && !take_pin(h, pin.data, pin.bytes))
		ret = keep(h, QCOW2_EXT_PIN, pin.data, pin.bytes, err);
	return ret;
}
