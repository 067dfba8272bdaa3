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
#define NAME_MAX_BYTES	  1023u

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

struct qed_state {
	struct lookup lookup;
	uint64_t features;
	char backing[NAME_MAX_BYTES + 1]; /* "" for none */
};

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
static const char *take_geometry(const struct disk_qed_header *h, uint64_t file_bytes, struct qed_state *s)
{
	uint64_t cluster = le32_get(h->cluster_bytes), table = le32_get(h->table_clusters), most;

	if (!is_power_of_two(cluster) || cluster < MIN_CLUSTER_BYTES || cluster > MAX_CLUSTER_BYTES)
		return "the size of a cluster";
	if (!is_power_of_two(table) || table > MAX_TABLE)
		return "the size of a table";
	s->lookup.cluster_bytes = cluster;
	s->lookup.table_entries = table * cluster / 8;
	s->lookup.disk_bytes = le64_get(h->disk_bytes);
	s->lookup.first_off = le64_get(h->first_off);
	s->lookup.file_bytes = file_bytes;
	s->features = le64_get(h->features);
	if (mul_overflows(s->lookup.table_entries * s->lookup.table_entries, cluster, &most) || most > INT64_MAX)
		most = INT64_MAX;
	if (s->lookup.disk_bytes > most || s->lookup.disk_bytes % 512 != 0)
		return "the size of the disk";
	if (s->lookup.first_off % cluster != 0 || !range_inside(s->lookup.first_off, table * cluster, file_bytes))
		return "the place of the first table";
	return NULL;
}

static int read_backing(struct node *node, const struct disk_qed_header *h, struct qed_state *s, struct img_error *err)
{
	uint64_t off = le32_get(h->backing_off), bytes = le32_get(h->backing_bytes);
	int ret;

	if (!(s->features & HAS_BACKING))
		return 0;
	if (bytes == 0 || bytes > NAME_MAX_BYTES || !range_inside(off, bytes, node_size(node->file)))
		return error_set(err, IMG_E_CORRUPT, 0, 56, LAYER,
				 "%s: the name of the backing file has %" PRIu64 " bytes at 0x%" PRIx64, node->path,
				 bytes, off);
	ret = node_pread(node->file, s->backing, bytes, off, 0, err);
	if (ret == 0 && strlen(s->backing) != bytes)
		ret = error_set(err, IMG_E_CORRUPT, 0, off, LAYER, "%s: the name of the backing file has a NUL in it",
				node->path);
	return ret;
}

static int read_header(struct node *node, struct disk_qed_header *h, struct img_error *err)
{
	struct qed_state *s = node->state;
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
	bad = take_geometry(h, node_size(node->file), s);
	if (bad)
		return error_set(err, IMG_E_CORRUPT, 0, 4, LAYER, "%s: %s does not fit the rest of the header",
				 node->path, bad);
	return 0;
}

static int open_member(struct node *node, const struct driver_open *args, struct img_error *err)
{
	struct qed_state *s = node->state;
	struct disk_qed_header h;
	int ret = read_header(node, &h, err);

	if (ret == 0)
		ret = read_backing(node, &h, s, err);
	if (ret != 0)
		return ret;
	s->lookup.ops = &ops;
	s->lookup.node = node;
	ret = lookup_open(&s->lookup, err);
	if (ret != 0)
		return ret;
	ret = lookup_judge(&s->lookup, args->budget, err);
	if (ret != 0)
		lookup_close(&s->lookup);
	return ret;
}

static int close_member(struct node *node, struct img_error *err)
{
	(void)err;
	lookup_close(&((struct qed_state *)node->state)->lookup);
	return 0;
}

static uint64_t size(const struct node *node)
{
	return ((const struct qed_state *)node->state)->lookup.disk_bytes;
}

static void limits(const struct node *node, struct driver_limits *out)
{
	const struct qed_state *s = node->state;

	*out = (struct driver_limits){
		.request_align = 1,
		.block_bytes = (uint32_t)s->lookup.cluster_bytes,
		.optimal_bytes = 1u << 20,
		.max_size_bytes = INT64_MAX,
	};
}

static int pread_member(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	(void)flags;
	return lookup_pread(&((struct qed_state *)node->state)->lookup, buf, bytes, off, err);
}

static int status(struct node *node, uint64_t bytes, uint64_t off, struct status_extent *out, size_t cap, size_t *nr,
		  struct img_error *err)
{
	return lookup_status(&((struct qed_state *)node->state)->lookup, bytes, off, out, cap, nr, err);
}

static bool get_backing(struct node *node, struct backing_ref *out)
{
	const struct qed_state *s = node->state;

	memset(out, 0, sizeof(*out));
	strcpy(out->name, s->backing);
	if (s->features & BACKING_IS_RAW)
		strcpy(out->format, "raw");
	return s->backing[0] != '\0';
}

static int info(struct node *node, struct img_info *out, struct img_error *err)
{
	const struct qed_state *s = node->state;

	(void)err;
	out->block_bytes = (uint32_t)s->lookup.cluster_bytes;
	out->dirty = (s->features & NEEDS_CHECK) != 0;
	memcpy(out->compression, "none", sizeof("none"));
	return 0;
}

static int check(struct node *node, unsigned flags, img_finding_fn fn, void *ctx, const struct img_progress *progress,
		 struct img_check_result *out, struct img_error *err)
{
	return lookup_check(&((struct qed_state *)node->state)->lookup, flags, fn, ctx, progress, out, err);
}

static int inspect_name(struct inspector *in, struct node *file, const struct disk_qed_header *h, struct img_error *err)
{
	uint64_t off = le32_get(h->backing_off), bytes = le32_get(h->backing_bytes);
	uint8_t name[NAME_MAX_BYTES];
	int ret;

	if (!(le64_get(h->features) & HAS_BACKING) && off == 0 && bytes == 0)
		return 0;
	ret = inspect_read(file, name, min_u64(bytes, sizeof(name)), off, err);
	if (ret == 0 && (bytes > sizeof(name) || !range_inside(off, bytes, node_size(file))))
		inspect_found(in, INSPECT_TABLE_BOUNDS, off, "the name of the backing file has %" PRIu64 " bytes",
			      bytes);
	if (ret == 0)
		inspect_reference(in, INSPECT_BACKING, name, (size_t)min_u64(bytes, sizeof(name)), off,
				  "a backing file");
	if (ret == 0 && !(le64_get(h->features) & BACKING_IS_RAW))
		inspect_found(in, INSPECT_BACKING_FORMAT, 16, "the format of the backing file is not recorded");
	return ret;
}

static int inspect(struct node *file, struct inspector *in, struct img_error *err)
{
	struct node shell = { .file = file, .path = (char *)(uintptr_t)in->path };
	struct qed_state s = { 0 };
	struct disk_qed_header h;
	const char *bad;
	int ret = inspect_read(file, &h, sizeof(h), 0, err);

	if (ret == 0)
		ret = inspect_name(in, file, &h, err);
	if (ret != 0)
		return ret;
	in->out->virtual_bytes = le64_get(h.disk_bytes);
	inspect_limit(in, BUDGET_VIRTUAL, le64_get(h.disk_bytes), 48);
	if (le64_get(h.features) & ~KNOWN_FEATURES)
		inspect_found(in, INSPECT_UNKNOWN_FEATURE, 16, "features 0x%" PRIx64, le64_get(h.features));
	if (le64_get(h.features) & NEEDS_CHECK)
		inspect_found(in, INSPECT_DIRTY, 16, "the image has to be checked before it is used");
	bad = take_geometry(&h, node_size(file), &s);
	if (bad) {
		inspect_found(in, INSPECT_BAD_HEADER, 4, "%s does not fit the rest of the header", bad);
		return 0;
	}
	s.lookup.ops = &ops;
	s.lookup.node = &shell;
	return lookup_inspect(&s.lookup, in, err);
}

const struct img_driver qed_driver = {
	.name = "qed",
	.kind = DRIVER_FORMAT,
	.state_bytes = sizeof(struct qed_state),
	.caps = IMG_CAP_CHECK | IMG_CAP_BACKING,
	.probe = probe,
	.open = open_member,
	.close = close_member,
	.size = size,
	.limits = limits,
	.pread = pread_member,
	.status = status,
	.get_backing = get_backing,
	.info = info,
	.check = check,
	.inspect = inspect,
};
