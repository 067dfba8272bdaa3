/* SPDX-License-Identifier: MIT */
/*
 * The header cluster, written. What a crash may tear is anything larger than a sector, so a change of names and
 * extensions is made to take effect with the first sector alone:
 *
 *  - The extensions stand in the first sector, all of them if they fit, which they do unless somebody's own are large.
 *    The table of feature names, which is for people and takes 344 bytes, goes in only where there is room.
 *  - The backing file's name stands behind them where it fits; else at one of three places of the cluster, where the
 *    present name is not.
 *
 * qcow2_header_write() writes what lies beyond the first sector, syncs, and then writes the first sector. Where neither
 * holds (clusters below 4 KiB with a long name, large foreign extensions) that order is kept, but the old names may be
 * damaged in between.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2_engine.h"
#include "qcow2_header.h"

#define NAME_SLOT_BYTES	 1024u
#define NAME_SLOTS_FROM	 4096u /* cluster size */
#define FEATURE_TYPE_INC 0
#define FEATURE_TYPE_COM 1
#define FEATURE_TYPE_AUT 2

struct feature {
	uint8_t type, bit;
	char name[46];
};
_Static_assert(sizeof(struct feature) == 48, "an entry of the table of feature names has 48 bytes");

static const struct feature features[] = {
	{ FEATURE_TYPE_INC, 0, "dirty bit" },
	{ FEATURE_TYPE_INC, 1, "corrupt bit" },
	{ FEATURE_TYPE_INC, 2, "external data file" },
	{ FEATURE_TYPE_INC, 3, "compression type" },
	{ FEATURE_TYPE_INC, 4, "extended L2 entries" },
	{ FEATURE_TYPE_COM, 0, "lazy refcounts" },
	{ FEATURE_TYPE_AUT, 0, "bitmaps" },
	{ FEATURE_TYPE_AUT, 1, "raw external data" },
};

struct writer {
	uint8_t *buf;
	uint64_t at, end;
	bool full;
};

static void put_extension(struct writer *w, uint32_t type, const void *data, uint32_t bytes)
{
	struct disk_qcow2_extension d = { be32_of(type), be32_of(bytes) };
	uint64_t whole = sizeof(d) + round_up(bytes, 8);

	if (w->full || !range_inside(w->at, whole, w->end)) {
		w->full = true;
		return;
	}
	memset(w->buf + w->at, 0, (size_t)whole);
	memcpy(w->buf + w->at, &d, sizeof(d));
	if (bytes > 0)
		memcpy(w->buf + w->at + sizeof(d), data, bytes);
	w->at += whole;
}

static void put_text(struct writer *w, uint32_t type, const char *text)
{
	if (text[0] != '\0')
		put_extension(w, type, text, (uint32_t)strlen(text));
}

static void put_extensions(struct writer *w, const struct qcow2_header *h, bool names)
{
	uint8_t pin[QCOW2_PIN_MAX_BYTES];
	uint32_t pin_bytes = qcow2_pin_store(h, pin);

	if (h->backing[0] != '\0')
		put_text(w, QCOW2_EXT_BACKING_FORMAT, h->backing_snapshot[0] ? QCOW2_PINNED_FORMAT : h->backing_format);
	put_text(w, QCOW2_EXT_DATA_FILE, h->data_file);
	if (h->nr_bitmaps > 0) {
		struct disk_qcow2_bitmaps_ext d = {
			.nr_bitmaps = be32_of(h->nr_bitmaps),
			.directory_bytes = be64_of(h->bitmap_dir_bytes),
			.directory_off = be64_of(h->bitmap_dir_off),
		};

		put_extension(w, QCOW2_EXT_BITMAPS, &d, sizeof(d));
	}
	if (pin_bytes > 0)
		put_extension(w, QCOW2_EXT_PIN, pin, pin_bytes);
	if (names)
		put_extension(w, QCOW2_EXT_FEATURE_NAMES, features, sizeof(features));
	for (size_t i = 0; i < h->nr_ext; i++) {
		if (h->ext[i].type != QCOW2_EXT_FEATURE_NAMES)
			put_extension(w, h->ext[i].type, h->ext[i].data, h->ext[i].bytes);
	}
	put_extension(w, QCOW2_EXT_END, NULL, 0);
}

/* Tries extensions and name in the bytes up to end. */
static bool lay_out(const struct qcow2_header *h, uint8_t *buf, uint32_t header_bytes, uint64_t end,
		    uint64_t name_bytes, bool names, uint64_t *name_off)
{
	struct writer w = { .buf = buf, .at = header_bytes, .end = end };

	put_extensions(&w, h, names);
	*name_off = w.at;
	return !w.full && range_inside(w.at, name_bytes, end);
}

/* Two of the three are always free of the present name, which is shorter than a slot. */
static uint64_t free_slot(const struct qcow2_header *h)
{
	uint64_t slot = NAME_SLOT_BYTES, old_end = h->backing_off + h->backing_bytes;

	while (h->backing_off < slot + NAME_SLOT_BYTES && old_end > slot)
		slot += NAME_SLOT_BYTES;
	return slot;
}

/* What of the cluster is used behind the first sector. */
struct tail {
	uint64_t off, bytes;
};

/* See above. Fills extensions and name; *name_off is 0 without a name. */
static bool place(const struct qcow2_header *h, uint8_t *buf, uint32_t header_bytes, uint64_t *name_off,
		  struct tail *tail)
{
	uint64_t cluster = UINT64_C(1) << h->cluster_bits, name_bytes = strlen(h->backing);
	bool v3 = h->version >= 3, placed;

	*tail = (struct tail){ 0, 0 };
	placed = v3 && lay_out(h, buf, header_bytes, QCOW2_SECTOR_BYTES, name_bytes, true, name_off);
	if (!placed)
		placed = lay_out(h, buf, header_bytes, QCOW2_SECTOR_BYTES, name_bytes, false, name_off);
	if (!placed && cluster >= NAME_SLOTS_FROM && name_bytes > 0 &&
	    lay_out(h, buf, header_bytes, QCOW2_SECTOR_BYTES, 0, false, name_off)) {
		*name_off = free_slot(h);
		*tail = (struct tail){ *name_off, name_bytes };
		placed = true;
	}
	if (!placed) {
		placed = v3 && lay_out(h, buf, header_bytes, cluster, name_bytes, true, name_off);
		if (!placed)
			placed = lay_out(h, buf, header_bytes, cluster, name_bytes, false, name_off);
		*tail = (struct tail){ QCOW2_SECTOR_BYTES, *name_off + name_bytes - QCOW2_SECTOR_BYTES };
	}
	if (name_bytes == 0)
		*name_off = 0;
	else if (placed)
		memcpy(buf + *name_off, h->backing, (size_t)name_bytes);
	return placed;
}

/* The fields as they stand on disk; those that a header of header_bytes does not have are left out. Returns how many
 * bytes. */
static uint32_t put_fields(const struct qcow2_header *h, uint32_t header_bytes, uint64_t backing_off, uint8_t *buf)
{
	struct disk_qcow2_header d = {
		.magic = be32_of(QCOW2_MAGIC),
		.version = be32_of(h->version),
		.backing_off = be64_of(backing_off),
		.backing_bytes = be32_of(backing_off ? (uint32_t)strlen(h->backing) : 0),
		.cluster_bits = be32_of(h->cluster_bits),
		.size = be64_of(h->size),
		.crypt_method = be32_of(h->crypt_method),
		.l1_entries = be32_of(h->l1_entries),
		.l1_off = be64_of(h->l1_off),
		.reftable_off = be64_of(h->reftable_off),
		.reftable_clusters = be32_of(h->reftable_clusters),
		.nr_snapshots = be32_of(h->nr_snapshots),
		.snapshots_off = be64_of(h->snapshots_off),
		.incompatible = be64_of(h->incompatible),
		.compatible = be64_of(h->compatible),
		.autoclear = be64_of(h->autoclear),
		.refcount_order = be32_of(h->refcount_order),
		.header_bytes = be32_of(header_bytes),
		.compression_type = h->compression_type,
	};
	uint32_t bytes = (uint32_t)min_u64(header_bytes, sizeof(d));

	memcpy(buf, &d, bytes);
	return bytes;
}

static uint32_t new_header_bytes(const struct qcow2_header *h)
{
	if (h->version < 3)
		return QCOW2_HEADER_V2_BYTES;
	return (uint32_t)sizeof(struct disk_qcow2_header) + h->unknown_bytes;
}

static int store(const struct qcow2_header *h, uint8_t *buf, struct tail *tail, struct img_error *err)
{
	uint32_t header_bytes = new_header_bytes(h);
	uint64_t name_off;

	memset(buf, 0, (size_t)1 << h->cluster_bits);
	if (header_bytes > UINT64_C(1) << h->cluster_bits || !place(h, buf, header_bytes, &name_off, tail))
		return error_set(
			err, IMG_E_LIMIT, 0, NO_OFFSET, LAYER,
			"the names of backing and data file and the header extensions do not fit into the first "
			"cluster, %" PRIu64 " bytes",
			UINT64_C(1) << h->cluster_bits);
	if (h->version >= 3 && h->unknown_bytes > 0)
		memcpy(buf + sizeof(struct disk_qcow2_header), h->unknown, h->unknown_bytes);
	put_fields(h, header_bytes, name_off, buf);
	return 0;
}

int qcow2_header_store(const struct qcow2_header *h, uint8_t *buf, struct img_error *err)
{
	struct tail tail;

	return store(h, buf, &tail, err);
}

/* ---- in place ---------------------------------------------------------------------------------------------------- */

static int sync_file(struct qcow2_engine *e, struct img_error *err)
{
	return e->bulk ? 0 : node_flush(e->file, 0, err);
}

int qcow2_header_write(struct qcow2_engine *e, struct img_error *err)
{
	uint8_t *buf = malloc((size_t)e->cluster_bytes);
	struct disk_qcow2_header d;
	struct tail tail;
	int ret;

	if (!buf)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = store(&e->h, buf, &tail, err);
	if (ret == 0 && tail.bytes > 0) {
		ret = node_pwrite(e->file, buf + tail.off, tail.bytes, tail.off, 0, err);
		if (ret == 0)
			ret = sync_file(e, err);
	}
	if (ret == 0)
		ret = node_pwrite(e->file, buf, QCOW2_SECTOR_BYTES, 0, 0, err);
	if (ret == 0)
		ret = sync_file(e, err);
	if (ret == 0) {
		memcpy(&d, buf, sizeof(d));
		e->h.backing_off = be64_get(d.backing_off);
		e->h.backing_bytes = be32_get(d.backing_bytes);
		e->h.header_bytes = new_header_bytes(&e->h);
	}
	free(buf);
	return ret;
}

int qcow2_header_write_fields(struct qcow2_engine *e, struct img_error *err)
{
	uint8_t buf[sizeof(struct disk_qcow2_header)];
	uint32_t bytes = put_fields(&e->h, e->h.header_bytes, e->h.backing_off, buf);

	return node_pwrite(e->file, buf, bytes, 0, 0, err);
}
