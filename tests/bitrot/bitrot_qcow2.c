/* SPDX-License-Identifier: MIT */
/*
 * bitrot_qcow2: changes one bit of a qcow2 image file, and asks everything that can be asked of it. The format has no
 * checksums, so much cannot be found; what is promised, and judged here for every place:
 *
 *   - nothing dies, hangs, or costs more than the budget of an opening
 *   - what is metadata that leads to data (refcounts, L1 and L2 offsets, tables) is refused, found by the check, or
 * harmless
 *   - only what is listed in silent_ok() may change what is read without being found
 *
 * What happened is one of
 *   harmless   all is read as before, the check is clean
 *   found      the check reports damage or leaks, or a read fails
 *   refused    the image, or one of its snapshots, cannot be opened
 *   silent     something else is read, or said of snapshots, and the check is clean
 * and is counted by the structure that holds the bit.
 *
 *   bitrot_qcow2 [--stride N] [--seed N] [--verbose] plain|subclusters|v2
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "disk_int.h"
#include "memfs.h"
#include "model.h"

#define DISK_BYTES    (256u << 10)
#define READ_BYTES    4096u
#define MAX_CLUSTERS  1024u
#define NR_STATES     3u
#define SECONDS_MAX   20u			   /* for one change */
#define OFFSET_MASK   UINT64_C(0x00fffffffffffe00) /* qcow2.md: offsets in L1 and L2 entries */
#define L2_COMPRESSED (UINT64_C(1) << 62)
#define L2_ZERO	      UINT64_C(1)

enum place {
	UNUSED,
	HEADER,
	REFCOUNT_TABLE,
	REFCOUNT_BLOCK,
	L1,
	L2,
	SNAPSHOTS,
	BITMAPS,
	PLAIN_DATA,
	COMPRESSED_DATA,
	NR_PLACES
};
static const char *const place_names[NR_PLACES] = {
	"unused",   "header",	      "refcount table", "refcount block", "L1 table",
	"L2 table", "snapshot table", "bitmaps",	"data",		  "compressed data",
};

enum verdict { HARMLESS, FOUND, REFUSED, SILENT, NR_VERDICTS };
static const char *const verdict_names[NR_VERDICTS] = { "harmless", "found", "refused", "silent" };

struct state {
	const char *snap; /* NULL: the head */
	uint8_t *truth, *vm;
	uint64_t vm_bytes;
};

static struct {
	struct memfs fs;
	struct mem_content *file;
	struct state states[NR_STATES];
	struct img_snapshot snaps[NR_STATES];
	enum place place[MAX_CLUSTERS];
	uint64_t file_bytes, cluster_bytes;
	unsigned entry_bytes; /* of L2: 8, or 16 with subclusters */
	uint8_t *buf;
	uint64_t counts[NR_PLACES][NR_VERDICTS];
	bool verbose, v2;
} t;

static void die(uint64_t off, const char *what, const char *more)
{
	fprintf(stderr, "bitrot_qcow2: byte 0x%" PRIx64 ": %s%s%s\n", off, what, *more ? ": " : "", more);
	exit(1);
}

static void must(int ret, const char *what, const struct img_error *err)
{
	if (ret != 0)
		die(UINT64_MAX, what, err->msg);
}

/* ---- making the image -------------------------------------------------------------------------------------------- */

static int open_image(unsigned flags, struct img **out, struct img_error *err)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = "qcow2", .flags = flags };

	return image_open_env("a", &opts, &t.fs.env, out, err);
}

static void put(struct img *img, uint64_t bytes, uint64_t off, uint64_t seed, bool random, unsigned flags)
{
	struct img_error err = { 0 };

	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t w = random ? rng_next(&seed) : seed + (i / 8 & 15);

		memcpy(t.buf + i, &w, 8);
	}
	must(img_pwrite(img, t.buf, bytes, off, flags, &err), "write", &err);
}

static void populate(struct img *img)
{
	struct img_error err = { 0 };

	put(img, 40960, 0, 1, true, 0);
	put(img, 65536, 131072, 2, false, IMG_IO_COMPRESS);
	put(img, 8192, 0, 3, true, 0); /* t.buf is the machine's state, too */
	must(img_vmstate_write(img, t.buf, 6000, 0, &err), "vmstate", &err);
	must(img_snapshot_create(img, "one", t.v2 ? 0 : IMG_SNAPSHOT_VMSTATE, &err), "snapshot", &err);
	put(img, 4096, 4096, 4, true, 0);
	if (!t.v2) {
		must(img_zero(img, 8192, 16384, 0, &err), "zero", &err);
		must(img_bitmap_add(img, "bits", 4096, 0, &err), "bitmap", &err);
	}
	must(img_snapshot_create(img, "two", 0, &err), "snapshot", &err);
	put(img, 8192, 65536, 5, true, 0);
	put(img, 4096, 131072 + 4096, 6, true, 0);
}

static void keep_state(struct img *img, unsigned i, const char *snap)
{
	struct state *s = &t.states[i];
	struct img_error err = { 0 };
	struct img *view = img;

	s->snap = snap;
	if (snap)
		must(img_snapshot_open(img, snap, &view, &err), "snapshot", &err);
	s->truth = malloc(DISK_BYTES);
	must(img_pread(view, s->truth, DISK_BYTES, 0, 0, &err), "read", &err);
	must(img_vmstate_size(img, snap, &s->vm_bytes, &err), "vmstate", &err);
	s->vm = malloc((size_t)s->vm_bytes + 1);
	if (s->vm_bytes)
		must(img_vmstate_read(img, snap, s->vm, s->vm_bytes, 0, &err), "vmstate", &err);
	if (snap)
		must(img_close(view, &err), "close", &err);
}

static void make(const char *options)
{
	struct img_create_options create = {
		.struct_size = sizeof(create), .format = "qcow2", .size_bytes = DISK_BYTES, .options = options
	};
	struct img_error err = { 0 };
	struct img *img;
	size_t nr;

	memfs_init(&t.fs);
	must(image_create_env("a", &create, &t.fs.env, &err), "create", &err);
	must(open_image(IMG_OPEN_WRITE, &img, &err), "open", &err);
	populate(img);
	must(img_close(img, &err), "close", &err);
	must(open_image(0, &img, &err), "open", &err);
	keep_state(img, 0, NULL);
	keep_state(img, 1, "one");
	keep_state(img, 2, "two");
	must(img_snapshot_list(img, t.snaps, NR_STATES, &nr, &err), "list", &err);
	must(img_close(img, &err), "close", &err);
	t.file = memfs_find(&t.fs, "a");
	t.file_bytes = mem_content_size(t.file);
	if (t.file_bytes > MAX_CLUSTERS * t.cluster_bytes)
		die(0, "the image is larger than expected", "");
}

/* ---- what lies where (ours, from the format's description) ------------------------------------------------------- */

static uint64_t get64(uint64_t off)
{
	struct be64 v;

	mem_content_read(t.file, &v, sizeof(v), off);
	return be64_get(v);
}

static uint32_t get32(uint64_t off)
{
	struct be32 v;

	mem_content_read(t.file, &v, sizeof(v), off);
	return be32_get(v);
}

static void mark(uint64_t off, uint64_t bytes, enum place place)
{
	for (uint64_t c = off / t.cluster_bytes; c * t.cluster_bytes < off + bytes && c < MAX_CLUSTERS; c++)
		t.place[c] = place;
}

static void mark_l2(uint64_t off)
{
	unsigned shift = 62 - (get32(20) -
			       8); /* of the number of sectors, less 1, of compressed data; get32(20): cluster_bits */

	mark(off, t.cluster_bytes, L2);
	for (uint64_t i = 0; i < t.cluster_bytes; i += t.entry_bytes) {
		uint64_t entry = get64(off + i);

		if (entry & L2_COMPRESSED)
			mark(entry & ((UINT64_C(1) << shift) - 1),
			     ((entry >> shift & ((1u << (62 - shift)) - 1)) + 1) * 512, COMPRESSED_DATA);
		else if (entry & OFFSET_MASK)
			mark(entry & OFFSET_MASK, t.cluster_bytes, PLAIN_DATA);
	}
}

static void mark_l1(uint64_t off, uint32_t entries)
{
	mark(off, entries * 8ull, L1);
	for (uint32_t i = 0; i < entries; i++)
		if (get64(off + i * 8ull) & OFFSET_MASK)
			mark_l2(get64(off + i * 8ull) & OFFSET_MASK);
}

/* Later marks win: what is a table is no data. */
static void find_places(void)
{
	uint64_t table = get64(48), snap = get64(64), at = snap, ext = t.v2 ? 72 : get32(100);

	for (uint32_t i = 0; i < get32(60); i++) {
		mark_l1(get64(at), get32(at + 8));
		/* fixed part of 40 bytes, extra data, ID and name; padded to 8 */
		at += round_up(40u + get32(at + 36) + (get32(at + 12) >> 16) + (get32(at + 12) & 0xffff), 8);
	}
	mark_l1(get64(40), get32(36));
	mark(table, (uint64_t)get32(56) * t.cluster_bytes, REFCOUNT_TABLE);
	for (uint64_t i = 0; i < get32(56) * t.cluster_bytes; i += 8)
		if (get64(table + i))
			mark(get64(table + i), t.cluster_bytes, REFCOUNT_BLOCK);
	mark(snap, at - snap, SNAPSHOTS);
	for (uint32_t type; ext + 8 < t.cluster_bytes && (type = get32(ext)) != 0;
	     ext += 8 + round_up(get32(ext + 4), 8)) {
		uint64_t dir = ext + 8, entry;

		if (type != 0x23852875) /* the bitmaps' extension: number, reserved, size and offset of the directory */
			continue;
		entry = get64(dir + 16);
		mark(entry, get64(dir + 8), BITMAPS);
		mark(get64(entry), get32(entry + 8) * 8ull, BITMAPS);
		for (uint32_t i = 0; i < get32(entry + 8); i++)
			if (get64(get64(entry) + i * 8ull) & OFFSET_MASK)
				mark(get64(get64(entry) + i * 8ull) & OFFSET_MASK, t.cluster_bytes, BITMAPS);
	}
	mark(0, t.cluster_bytes, HEADER);
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

struct asked {
	uint64_t off;
	bool failed, differs, refused;
};

static void read_state(struct asked *a, struct img *img, struct img *view, const struct state *s)
{
	struct img_error err = { 0 };
	uint64_t size = img_size(view), vm_bytes = 0;
	int ret = 0;

	a->differs |= size != DISK_BYTES;
	size = min_u64(size, DISK_BYTES);
	for (uint64_t at = 0; at < size; at += READ_BYTES) {
		ret = img_pread(view, t.buf, min_u64(READ_BYTES, size - at), at, 0, &err);
		a->failed |= ret != 0;
		a->differs |= ret == 0 && memcmp(t.buf, s->truth + at, min_u64(READ_BYTES, size - at)) != 0;
		if (ret != 0 && ret != IMG_E_CORRUPT && ret != IMG_E_UNSUPPORTED)
			die(a->off, "a read fails otherwise than as damaged", err.msg);
	}
	ret = img_vmstate_size(img, s->snap, &vm_bytes, &err);
	a->differs |= ret == 0 && vm_bytes != s->vm_bytes;
	a->failed |= ret != 0;
	if (ret != 0 || vm_bytes != s->vm_bytes || vm_bytes == 0)
		return;
	ret = img_vmstate_read(img, s->snap, t.buf, vm_bytes, 0, &err);
	a->failed |= ret != 0;
	a->differs |= ret == 0 && memcmp(t.buf, s->vm, vm_bytes) != 0;
}

static void read_all(struct asked *a, struct img *img)
{
	struct img_snapshot snaps[NR_STATES];
	struct img_error err = { 0 };
	size_t nr = 0;

	if (img_snapshot_list(img, snaps, NR_STATES, &nr, &err) != 0)
		a->failed = true;
	else if (nr != NR_STATES - 1 || memcmp(snaps, t.snaps, nr * sizeof(snaps[0])) != 0)
		a->differs = true;
	for (unsigned i = 0; i < NR_STATES; i++) {
		struct img *view = img;

		if (t.states[i].snap && img_snapshot_open(img, t.states[i].snap, &view, &err) != 0) {
			a->refused = true;
			continue;
		}
		read_state(a, img, view, &t.states[i]);
		if (view != img)
			must(img_close(view, &err), "close", &err);
	}
}

static enum verdict ask(uint64_t off)
{
	struct asked a = { .off = off };
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = "qcow2" };
	struct img_check_result result = { 0 };
	struct img_error err = { 0 };
	struct img *img;

	alarm(SECONDS_MAX); /* a hang ends the test */
	if (open_image(0, &img, &err) != 0) {
		if (err.code == IMG_E_NOMEM || err.code == IMG_E_IO || err.msg[0] == '\0')
			die(off, "open fails otherwise than for what is in the image", err.msg);
		return REFUSED;
	}
	memset(&result, 0, sizeof(result));
	if (img_check(img, 0, NULL, NULL, NULL, &result, &err) != 0)
		a.failed = true;
	read_all(&a, img);
	must(img_close(img, &err), "close", &err);
	if (a.refused)
		return REFUSED;
	if (a.failed || result.damage || result.leaks)
		return FOUND;
	return a.differs ? SILENT : HARMLESS;
}

/*
 * Where nothing but the bit itself says what it should be:
 *   - data, and compressed data that still decodes
 *   - the header's size of the disk, and what a feature bit or an extension means
 *   - snapshots' names, times and sizes
 *   - an L2 entry's flag for zeros, the bits of subclusters, and where compressed data ends or begins among its own
 * sectors
 *   - what a bitmap says
 */
static bool silent_ok(uint64_t off, unsigned bit)
{
	uint64_t in = off % t.cluster_bytes, entry = off - off % t.entry_bytes;

	switch (t.place[off / t.cluster_bytes]) {
	case PLAIN_DATA:
	case COMPRESSED_DATA:
	case BITMAPS:
	case SNAPSHOTS: return true;
	case HEADER: return in >= 24 && in < 32;
	case L2:
		return off - entry >= 8 || (get64(entry) & L2_COMPRESSED) != 0 ||
		       UINT64_C(1) << (8 * (7 - (off - entry)) + bit) == L2_ZERO;
	default: return false;
	}
}

static void flip(uint64_t off, unsigned bit)
{
	enum place place = t.place[off / t.cluster_bytes];
	enum verdict verdict;
	uint8_t byte, changed;

	mem_content_read(t.file, &byte, 1, off);
	changed = byte ^ (uint8_t)(1u << bit);
	mem_content_write(t.file, &changed, 1, off);
	verdict = ask(off);
	mem_content_write(t.file, &byte, 1, off);
	t.counts[place][verdict]++;
	if (t.verbose)
		printf("0x%" PRIx64 " bit %u of 0x%02x, %s: %s\n", off, bit, byte, place_names[place],
		       verdict_names[verdict]);
	if (verdict == SILENT && !silent_ok(off, bit))
		die(off, "something else is read, and nobody says so; the byte belongs to", place_names[place]);
}

static uint64_t flip_all(uint64_t stride, uint64_t seed)
{
	uint64_t flips = 0, r = seed;

	for (uint64_t off = seed % stride; off < t.file_bytes; off += stride) {
		enum place place = t.place[off / t.cluster_bytes];

		/* All data is alike: some of it will do. */
		if ((place == UNUSED || place == PLAIN_DATA || place == COMPRESSED_DATA) && rng_next(&r) % 16 != 0)
			continue;
		flip(off, (unsigned)(rng_next(&r) % 8));
		flips++;
	}
	return flips;
}

static void print(const char *kind, uint64_t flips)
{
	for (unsigned p = 0; p < NR_PLACES; p++) {
		const uint64_t *c = t.counts[p];

		if (c[HARMLESS] + c[FOUND] + c[REFUSED] + c[SILENT] != 0)
			printf("  %-16s %6" PRIu64 " harmless, %6" PRIu64 " found, %6" PRIu64 " refused, %6" PRIu64
			       " silent\n",
			       place_names[p], c[HARMLESS], c[FOUND], c[REFUSED], c[SILENT]);
	}
	printf("bitrot: qcow2 %s image of %" PRIu64 " bytes, %" PRIu64 " changes: all as promised\n", kind,
	       t.file_bytes, flips);
}

int main(int argc, char **argv)
{
	static const struct option names[] = {
		{ "stride", 1, NULL, 't' }, { "seed", 1, NULL, 's' }, { "verbose", 0, NULL, 'v' }, { NULL, 0, NULL, 0 }
	};
	uint64_t stride = 1, seed = 1, flips;
	bool subclusters;
	int c;

	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (c == '?')
			return 2;
		t.verbose |= c == 'v';
		if (c != 'v')
			*(c == 't' ? &stride : &seed) = strtoull(optarg, NULL, 0);
	}
	if (optind + 1 != argc || stride == 0)
		return 2;
	if (registry_find("qcow2") == NULL) {
		printf("SKIPPED: bitrot: this build has no format qcow2\n");
		return 77;
	}
	subclusters = strcmp(argv[optind], "subclusters") == 0;
	t.v2 = strcmp(argv[optind], "v2") == 0;
	t.entry_bytes = subclusters ? 16 : 8;
	t.cluster_bytes = subclusters ? 16384 : 4096;
	t.buf = malloc(1u << 20);
	if (!t.buf)
		return 3;
	make(subclusters ? "cluster_size=16384,extended_l2=on" :
	     t.v2	 ? "cluster_size=4096,compat=0.10" :
			   "cluster_size=4096");
	find_places();
	if (ask(UINT64_MAX) != HARMLESS)
		die(UINT64_MAX, "the image is not whole to begin with", "");
	flips = flip_all(stride, seed);
	if (ask(UINT64_MAX) != HARMLESS)
		die(UINT64_MAX, "the image is not whole at the end", "");
	print(argv[optind], flips);
	for (unsigned i = 0; i < NR_STATES; i++) {
		free(t.states[i].truth);
		free(t.states[i].vm);
	}
	memfs_destroy(&t.fs);
	free(t.buf);
	return 0;
}
