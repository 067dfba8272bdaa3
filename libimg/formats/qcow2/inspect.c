/* SPDX-License-Identifier: MIT */
/*
 * Inspection of the header cluster, byte by byte: the loader (header.c) takes what it needs and forgives what does not
 * matter to it, while here everything counts that some other reader might follow. What stands in the header is told
 * even if the loader refuses the image.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "is_zero.h"
#include "qcow2_header.h"
#include "qcow2_inspect.h"

#define OFF(field)	  offsetof(struct disk_qcow2_header, field)
#define EXTENSIONS_MAX	  64u
#define FEATURE_BYTES	  48u
#define FEATURE_NAME_OFF  2u
#define BITMAPS_EXT_BYTES 24u
#define LUKS_EXT_BYTES	  16u
#define CRYPT_AES	  1u
#define CRYPT_LUKS	  2u

struct look {
	struct inspector *in;
	struct node *file;
	struct disk_qcow2_header d;
	uint8_t *cluster; /* the first one, zeros past the end of the file */
	uint64_t cluster_bytes;
	uint32_t version, header_bytes;
	uint64_t incompatible;
	uint64_t backing_off;
	uint32_t backing_bytes;
	bool has_format;
	const uint8_t *data_file; /* NULL: no such extension */
	uint32_t data_file_bytes;
	uint32_t seen[EXTENSIONS_MAX];
	unsigned nr_seen;
};

/* ---- fields ------------------------------------------------------------------------------------------------------ */

/* False: nothing more can be said. */
static bool take_shape(struct look *k)
{
	uint32_t bits = be32_get(k->d.cluster_bits);

	k->version = be32_get(k->d.version);
	if (k->version != 2 && k->version != 3) {
		inspect_found(k->in, INSPECT_BAD_HEADER, OFF(version), "version %" PRIu32, k->version);
		return false;
	}
	if (bits < QCOW2_CLUSTER_BITS_MIN || bits > QCOW2_CLUSTER_BITS_MAX) {
		inspect_found(k->in, INSPECT_BAD_HEADER, OFF(cluster_bits), "clusters of 2^%" PRIu32 " bytes", bits);
		bits = QCOW2_CLUSTER_BITS_MIN; /* what the header names is worth knowing all the same */
	}
	k->cluster_bytes = UINT64_C(1) << bits;
	k->header_bytes = k->version == 2 ? QCOW2_HEADER_V2_BYTES : be32_get(k->d.header_bytes);
	k->incompatible = k->version == 2 ? 0 : be64_get(k->d.incompatible);
	k->backing_off = be64_get(k->d.backing_off);
	k->backing_bytes = be32_get(k->d.backing_bytes);
	return true;
}

static void judge_features(const struct look *k)
{
	uint64_t compatible = be64_get(k->d.compatible) & ~(uint64_t)QCOW2_COMPATIBLE_KNOWN;
	uint64_t autoclear = be64_get(k->d.autoclear) & ~(uint64_t)QCOW2_AUTOCLEAR_KNOWN;

	if (k->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN)
		inspect_found(k->in, INSPECT_UNKNOWN_FEATURE, OFF(incompatible), "incompatible features 0x%" PRIx64,
			      k->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN);
	if (k->version >= 3 && compatible)
		inspect_found(k->in, INSPECT_OPTIONAL_FEATURE, OFF(compatible), "compatible features 0x%" PRIx64,
			      compatible);
	if (k->version >= 3 && autoclear)
		inspect_found(k->in, INSPECT_OPTIONAL_FEATURE, OFF(autoclear), "autoclear features 0x%" PRIx64,
			      autoclear);
	if (k->incompatible & QCOW2_DIRTY)
		inspect_found(k->in, INSPECT_DIRTY, OFF(incompatible), "the last writer did not write all refcounts");
	if (k->incompatible & QCOW2_CORRUPT)
		inspect_found(k->in, INSPECT_CORRUPT, OFF(incompatible), "marked as corrupt");
}

static int judge_backing(const struct look *k, struct img_error *err)
{
	uint8_t name[QCOW2_NAME_MAX];
	uint64_t bytes = min_u64(k->backing_bytes, sizeof(name));
	int ret;

	if (k->backing_off == 0 && k->backing_bytes == 0)
		return 0;
	if (k->backing_bytes > sizeof(name) || !range_inside(k->backing_off, k->backing_bytes, k->cluster_bytes) ||
	    k->backing_off < k->header_bytes)
		inspect_found(k->in, INSPECT_TABLE_BOUNDS, OFF(backing_off),
			      "the backing file's name, %" PRIu32 " bytes at 0x%" PRIx64
			      ", is not inside the header cluster",
			      k->backing_bytes, k->backing_off);
	ret = inspect_read(k->file, name, bytes, k->backing_off, err);
	if (ret == 0)
		inspect_reference(k->in, INSPECT_BACKING, name, (size_t)bytes, k->backing_off, "a backing file");
	return ret;
}

static void judge_data_file(const struct look *k)
{
	bool external = k->incompatible & QCOW2_DATA_FILE;

	if (k->data_file)
		inspect_reference(k->in, external ? INSPECT_DATA_FILE : INSPECT_HIDDEN_REFERENCE, k->data_file,
				  k->data_file_bytes, (uint64_t)(k->data_file - k->cluster),
				  external ? "a data file" : "a data file, although its data is here");
	else if (external)
		inspect_found(k->in, INSPECT_DATA_FILE, OFF(incompatible),
			      "its data is in a file that it does not name");
}

/* ---- extensions -------------------------------------------------------------------------------------------------- */

static void bad_extension(const struct look *k, uint64_t off, const char *what)
{
	inspect_found(k->in, INSPECT_BAD_EXTENSION, off, "%s", what);
}

static void judge_names(const struct look *k, const uint8_t *data, uint32_t bytes, uint64_t off)
{
	if (bytes % FEATURE_BYTES)
		bad_extension(k, off, "the table of feature names has no whole entries");
	for (uint32_t at = 0; at + FEATURE_BYTES <= bytes; at += FEATURE_BYTES) {
		const uint8_t *name = data + at + FEATURE_NAME_OFF;

		inspect_text(k->in, name, strnlen((const char *)name, FEATURE_BYTES - FEATURE_NAME_OFF), off + at,
			     "a feature's name");
	}
}

static int judge_luks(const struct look *k, const uint8_t *data, uint32_t bytes, uint64_t off, struct img_error *err)
{
	struct be64 place[2];

	if (bytes != LUKS_EXT_BYTES || be32_get(k->d.crypt_method) != CRYPT_LUKS) {
		bad_extension(k, off,
			      "an encryption header that does not belong to the image, or has the wrong length");
		return 0;
	}
	memcpy(place, data, sizeof(place));
	if (!range_inside(be64_get(place[0]), be64_get(place[1]), node_size(k->file))) {
		inspect_found(k->in, INSPECT_TABLE_BOUNDS, off, "the encryption header lies outside the file");
		return 0;
	}
	return inspect_luks(k->in, k->file, be64_get(place[0]), be64_get(place[1]), err);
}

static void judge_pin(const struct look *k, const uint8_t *data, uint32_t bytes, uint64_t off)
{
	struct disk_qcow2_pin d;

	if (bytes < sizeof(d) || bytes != sizeof(d) + data[offsetof(struct disk_qcow2_pin, snapshot_bytes)]) {
		bad_extension(k, off, "the identity of the backing file has the wrong length");
		return;
	}
	memcpy(&d, data, sizeof(d));
	if (k->backing_off == 0)
		bad_extension(k, off, "the identity of a backing file, and there is none");
	if (d.flags & QCOW2_PIN_COMMITTING)
		inspect_found(k->in, INSPECT_COMMITTING, off, "a commit into the backing file began and has not ended");
	inspect_text(k->in, (const uint8_t *)d.format, strnlen(d.format, sizeof(d.format)), off,
		     "the backing file's format");
	inspect_text(k->in, data + sizeof(d), d.snapshot_bytes, off, "the name of the backing file's snapshot");
}

static int judge_extension(struct look *k, uint32_t type, const uint8_t *data, uint32_t bytes, uint64_t off,
			   struct img_error *err)
{
	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		k->has_format = bytes > 0;
		inspect_text(k->in, data, bytes, off, "the backing file's format");
		return 0;
	case QCOW2_EXT_DATA_FILE:
		k->data_file = data;
		k->data_file_bytes = bytes;
		return 0;
	case QCOW2_EXT_FEATURE_NAMES: judge_names(k, data, bytes, off); return 0;
	case QCOW2_EXT_BITMAPS:
		if (bytes != BITMAPS_EXT_BYTES)
			bad_extension(k, off, "the bitmaps extension has the wrong length");
		return 0;
	case QCOW2_EXT_LUKS: return judge_luks(k, data, bytes, off, err);
	case QCOW2_EXT_PIN: judge_pin(k, data, bytes, off); return 0;
	default:
		inspect_found(k->in, INSPECT_UNKNOWN_EXTENSION, off,
			      "header extension 0x%08" PRIx32 " of %" PRIu32 " bytes", type, bytes);
		return 0;
	}
}

static void judge_repetition(struct look *k, uint32_t type, uint64_t off)
{
	for (unsigned i = 0; i < k->nr_seen; i++)
		if (k->seen[i] == type) {
			inspect_found(k->in, INSPECT_DUPLICATE_EXTENSION, off, "header extension 0x%08" PRIx32 " again",
				      type);
			return;
		}
	if (k->nr_seen < EXTENSIONS_MAX)
		k->seen[k->nr_seen++] = type;
}

/* What follows the extensions, but for the backing file's name. */
static void judge_slack(const struct look *k, uint64_t at)
{
	uint64_t name = min_u64(max_u64(k->backing_off, at), k->cluster_bytes);
	uint64_t behind = k->backing_off ? name + min_u64(k->backing_bytes, k->cluster_bytes - name) : name;

	if (!is_zero(k->cluster + at, (size_t)(name - at)) ||
	    !is_zero(k->cluster + behind, (size_t)(k->cluster_bytes - behind)))
		inspect_found(k->in, INSPECT_SLACK, at, "bytes in the header cluster that belong to nothing");
}

static int judge_extensions(struct look *k, struct img_error *err)
{
	uint64_t end = k->backing_off && k->backing_off < k->cluster_bytes ? k->backing_off : k->cluster_bytes;
	uint64_t at = k->header_bytes;
	int ret = 0;

	while (ret == 0 && at + sizeof(struct disk_qcow2_extension) <= end) {
		struct disk_qcow2_extension d;
		uint64_t data = at + sizeof(d);
		uint32_t type, bytes;

		memcpy(&d, k->cluster + at, sizeof(d));
		type = be32_get(d.type);
		bytes = be32_get(d.bytes);
		if (type == QCOW2_EXT_END) {
			at = data;
			break;
		}
		if (bytes > end - data) {
			inspect_found(k->in, INSPECT_BAD_HEADER, at,
				      "header extension 0x%08" PRIx32 ": its 0x%" PRIx32
				      " bytes reach beyond the header",
				      type, bytes);
			return 0;
		}
		judge_repetition(k, type, at);
		ret = judge_extension(k, type, k->cluster + data, bytes, at, err);
		at = data + round_up(bytes, 8);
	}
	if (ret == 0 && at <= k->cluster_bytes)
		judge_slack(k, at);
	return ret;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static void judge_limits(const struct look *k)
{
	uint64_t metadata =
		(uint64_t)be32_get(k->d.l1_entries) * 8 + (uint64_t)be32_get(k->d.reftable_clusters) * k->cluster_bytes;

	k->in->out->virtual_bytes = be64_get(k->d.size);
	inspect_limit(k->in, BUDGET_VIRTUAL, be64_get(k->d.size), OFF(size));
	inspect_limit(k->in, BUDGET_METADATA, metadata, OFF(l1_entries));
	inspect_limit(k->in, BUDGET_SNAPSHOTS, be32_get(k->d.nr_snapshots), OFF(nr_snapshots));
	if (be32_get(k->d.crypt_method) == CRYPT_AES)
		inspect_found(k->in, INSPECT_ENCRYPTED, OFF(crypt_method),
			      "encrypted by the old AES method, which is weak");
	else if (be32_get(k->d.crypt_method) > CRYPT_LUKS)
		inspect_found(k->in, INSPECT_UNKNOWN_FEATURE, OFF(crypt_method), "encryption method %" PRIu32,
			      be32_get(k->d.crypt_method));
}

/* What the loader says: once without the places of tables, and once with them. *sound: it can be opened. */
static int judge_as_loader(const struct look *k, struct qcow2_header *h, bool *sound, struct img_error *err)
{
	struct img_error why = { .code = IMG_OK };
	struct qcow2_header strict;
	int ret = qcow2_header_load(k->file, true, h, &why);

	*sound = ret == 0;
	if (ret == IMG_E_IO || ret == IMG_E_NOMEM) {
		if (err)
			*err = why;
		return ret;
	}
	if (ret == IMG_E_CORRUPT && why.offset == node_size(k->file)) {
		inspect_found(k->in, INSPECT_TRUNCATED, why.offset, "%s", why.msg);
		return 0;
	}
	if (ret == IMG_E_UNSUPPORTED && k->in->nr[INSPECT_UNKNOWN_FEATURE] > 0)
		return 0;
	if (ret == IMG_E_LIMIT)
		inspect_found(k->in, INSPECT_LIMIT, why.offset, "%s", why.msg);
	else if (ret != 0)
		inspect_found(k->in, INSPECT_BAD_HEADER, why.offset, "%s", why.msg);
	if (ret != 0)
		return 0;
	if (qcow2_header_load(k->file, false, &strict, &why) != 0)
		inspect_found(k->in, INSPECT_TABLE_BOUNDS, why.offset, "%s", why.msg);
	else
		qcow2_header_free(&strict);
	return 0;
}

static int inspect_header(struct look *k, struct img_error *err)
{
	int ret = inspect_read(k->file, k->cluster, k->cluster_bytes, 0, err);

	if (ret == 0)
		ret = judge_backing(k, err);
	judge_features(k);
	judge_limits(k);
	if (ret == 0 && k->header_bytes >= (k->version == 2 ? QCOW2_HEADER_V2_BYTES : QCOW2_HEADER_MIN_BYTES) &&
	    k->header_bytes <= min_u64(k->cluster_bytes, node_size(k->file)))
		ret = judge_extensions(k, err);
	judge_data_file(k);
	if ((k->backing_off || k->backing_bytes) && !k->has_format)
		inspect_found(k->in, INSPECT_BACKING_FORMAT, NO_OFFSET, "the backing file's format is not recorded");
	return ret;
}

int qcow2_inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct look k = { .in = in, .file = file };
	struct qcow2_header h;
	bool sound = false;
	int ret = inspect_read(file, &k.d, sizeof(k.d), 0, err);

	if (ret != 0 || !take_shape(&k))
		return ret;
	k.cluster = malloc((size_t)k.cluster_bytes);
	if (!k.cluster)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, LAYER, "out of memory");
	ret = inspect_header(&k, err);
	if (ret == 0)
		ret = judge_as_loader(&k, &h, &sound, err);
	if (sound) {
		if (ret == 0)
			ret = qcow2_inspect_map(file, in, &h, err);
		qcow2_header_free(&h);
	}
	free(k.cluster);
	return ret;
}
