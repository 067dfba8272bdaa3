/* SPDX-License-Identifier: MIT */
/*
 * Format "qed", QEMU Enhanced Disk. Read only. format-spec/qed.md has the rules that are named here.
 *
 * An image that was not closed (its mark "needs a check" is set) may have entries that lead beyond the file, to
 * clusters that were never written; a repair would free them. A read of one is an error, and a check names it: that is
 * all the scan that reading needs. Clusters are never used twice in one writing, so the rest is as it should be.
 */
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "disk_int.h"
#include "error.h"
#include "inspect.h"
#include "lookup.h"

#define LAYER		  "qed"
#define MIN_CLUSTER_BYTES (UINT64_C(4) << 10)
#define MAX_CLUSTER_BYTES (UINT64_C(64) << 20)
#define MAX_TABLE	  16u /* clusters */

#define HAS_BACKING    (UINT64_C(1) << 0)
#define NEEDS_CHECK    (UINT64_C(1) << 1)
#define BACKING_IS_RAW (UINT64_C(1) << 2)
#define KNOWN_FEATURES (HAS_BACKING | NEEDS_CHECK | BACKING_IS_RAW)

struct disk_qed_header {
	uint8_t magic[4]; /* "QED" 0 */
	struct le32 cluster_bytes;
	struct le32 table_clusters, header_clusters;
	struct le64 features, compatible, autoclear;
	struct le64 first_off, disk_bytes;
	struct le32 backing_off, backing_bytes;
} __attribute__((packed));

static int probe(const struct probe_data *d)
{
	return d->head_bytes >= sizeof(struct disk_qed_header) && memcmp(d->head, "QED\0", 4) == 0 ? 100 : 0;
}

static int decode(const struct lookup *l, uint64_t raw, struct lookup_entry *out, struct img_error *err)
{
	if (raw == 0)
		return 0;
	if (raw == 1) {
		out->kind = LOOKUP_ZERO;
		return 0;
	}
	if (raw % l->cluster_bytes != 0)
		return error_set(err, IMG_E_CORRUPT, 0, NO_OFFSET, LAYER,
				 "%s: a cluster at 0x%" PRIx64 ", which is no cluster's place", l->node->path, raw);
	out->kind = LOOKUP_DATA;
	out->off = raw;
	return 0;
}

static const struct lookup_ops ops = { .decode = decode, .rule = "QED-5", .data_rule = "QED-6" };

static bool is_power_of_two(uint64_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

/* What cannot be so, NULL: all can. */
static const char *take_geometry(const struct disk_qed_header *h, uint64_t file_bytes, struct lookup *l)
{
	uint64_t cluster = le32_get(h->cluster_bytes), table = le32_get(h->table_clusters), most;

	if (!is_power_of_two(cluster) || cluster < MIN_CLUSTER_BYTES || cluster > MAX_CLUSTER_BYTES)
		return "the size of a cluster";
	if (!is_power_of_two(table) || table > MAX_TABLE)
		return "the size of a table";
	l->cluster_bytes = cluster;
	l->table_entries = table * cluster / 8;
	l->disk_bytes = le64_get(h->disk_bytes);
	l->first_off = le64_get(h->first_off);
	l->file_bytes = file_bytes;
	if (mul_overflows(l->table_entries * l->table_entries, cluster, &most) || most > INT64_MAX)
		most = INT64_MAX;
	if (l->disk_bytes > most || l->disk_bytes % 512 != 0)
		return "the size of the disk";
	if (l->first_off % cluster != 0 || !range_inside(l->first_off, table * cluster, file_bytes))
		return "the place of the first table";
	return NULL;
}

static int read_header(struct node *node, struct disk_qed_header *h, struct img_error *err)
{
	const char *bad;
	int ret;

	if (node_size(node->file) < sizeof(*h))
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: too short for a QED image", node->path);
	ret = node_pread(node->file, h, sizeof(*h), 0, 0, err);
	if (ret != 0)
		return ret;
	if (memcmp(h->magic, "QED\0", 4) != 0)
		return error_set(err, IMG_E_FORMAT, 0, 0, LAYER, "%s: no QED image", node->path);
	if (le64_get(h->features) & ~KNOWN_FEATURES)
		return error_set(err, IMG_E_UNSUPPORTED, 0, 16, LAYER, "%s: unknown features 0x%" PRIx64, node->path,
				 le64_get(h->features) & ~KNOWN_FEATURES);
	bad = take_geometry(h, node_size(node->file), node->state);
	if (bad)
		return error_set(err, IMG_E_CORRUPT, 0, 4, LAYER, "%s: %s does not fit the rest of the header",
				 node->path, bad);
	return 0;
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct lookup *l = node->state;
	struct disk_qed_header h;
	uint64_t features;
	int ret = read_header(node, &h, err);

	if (ret != 0)
		return ret;
	features = le64_get(h.features);
	if (features & HAS_BACKING)
		ret = lookup_read_backing(l, node, le32_get(h.backing_off), le32_get(h.backing_bytes), 56, err);
	if (ret != 0)
		return ret;
	l->ops = &ops;
	l->backing_format = features & BACKING_IS_RAW ? "raw" : NULL;
	l->dirty = (features & NEEDS_CHECK) != 0;
	return lookup_node_open(node, args->budget, err);
}

static int inspect_references(struct inspector *in, struct node *file, const struct disk_qed_header *h,
			      struct img_error *err)
{
	uint64_t features = le64_get(h->features);

	if (!(features & HAS_BACKING) && le32_get(h->backing_off) == 0 && le32_get(h->backing_bytes) == 0)
		return 0;
	if (!(features & BACKING_IS_RAW))
		inspect_found(in, INSPECT_BACKING_FORMAT, 16, "the format of the backing file is not recorded");
	return lookup_inspect_backing(in, file, le32_get(h->backing_off), le32_get(h->backing_bytes), err);
}

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct lookup l = { .ops = &ops };
	struct disk_qed_header h;
	const char *bad;
	int ret = inspect_read(file, &h, sizeof(h), 0, err);

	if (ret == 0)
		ret = inspect_references(in, file, &h, err);
	if (ret != 0)
		return ret;
	in->out->virtual_bytes = le64_get(h.disk_bytes);
	inspect_limit(in, BUDGET_VIRTUAL, le64_get(h.disk_bytes), 48);
	if (le64_get(h.features) & ~KNOWN_FEATURES)
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, 16, "features 0x%" PRIx64, le64_get(h.features));
	if (le64_get(h.features) & NEEDS_CHECK)
		inspect_found(in, INSPECT_DIRTY, 16, "the image has to be checked before it is used");
	bad = take_geometry(&h, node_size(file), &l);
	if (bad) {
		inspect_found(in, INSPECT_BAD_HEADER, 4, "%s does not fit the rest of the header", bad);
		return 0;
	}
	return lookup_inspect(&l, file, in, err);
}

const struct img_driver qed_driver = {
	.name = "qed",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct lookup),
	.caps = IMG_CAP_CHECK | IMG_CAP_BACKING,
	.probe = probe,
	.open = open_member,
	.close = lookup_node_close,
	.size = lookup_node_size,
	.limits = lookup_node_limits,
	.pread = lookup_node_pread,
	.status = lookup_node_status,
	.get_backing = lookup_node_get_backing,
	.info = lookup_node_info,
	.check = lookup_node_check,
	.inspect = inspect,
};
