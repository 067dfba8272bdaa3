/* SPDX-License-Identifier: MIT */
/*
 * model-threads: many threads on one handle. The disk is cut into cells, each with one writer. A cell's content says
 * which version it is, so whoever reads it, at any time, in the head or in a snapshot, can tell whether that version
 * was possible: not older than the last write that had returned before the read (or the snapshot) began, not newer than
 * the last that had begun when it ended.
 *
 *   cells of a block       each writer has a run of them; written whole, many at once, compressed or as zeros. Nobody
 *                          promises that a reader sees a write whole that is under way: a block is what a format writes
 *                          at once, with --block no more than a cluster
 *   cells of 512 bytes     writers take turns within one block, so that they meet in its read-modify-write
 *
 * Beside the writers: readers; one thread that flushes, checkpoints and writes machine state; one that creates, reads,
 * compares and deletes snapshots; one that asks for all that an image tells of itself, and checks it. At the end
 * everything holds the last version, also after closing and opening. Made for the thread sanitizer.
 *
 * With --wild the last thread also reverts and resizes, under the feet of the others. Then any version will do, but a
 * cell still holds one of its own, whole, and snapshots stay as they are.
 *
 *   model-threads [--seconds N] [--seed N] [--writers N] [--wild] [--format F] [--options O] [--block N]
 */
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "checked.h"
#include "driver.h"
#include "memfs.h"
#include "model.h"

#define LOAD_BYTES  (64u << 10) /* of machine state; whole pages on every host */
#define BLOCK	    4096u	/* most that a cell has */
#define UNIT_CELLS  32u
#define BIG_CELLS   1024u /* of BLOCK */
#define SMALL_CELLS 512u  /* of 512 bytes, behind the big ones */
#define NR_CELLS    (BIG_CELLS + SMALL_CELLS)
#define DISK_BYTES  ((uint64_t)BIG_CELLS * t.block + SMALL_CELLS * 512)
#define MAX_WRITERS 16
#define RUN_CELLS   64u /* most that one call writes */
#define NR_SNAPS    4

static struct {
	struct memfs fs;
	struct img *img;
	_Atomic uint32_t started[NR_CELLS], done[NR_CELLS]; /* versions */
	_Atomic bool stop;
	_Atomic uint64_t writes, reads, snaps, flushes;
	unsigned nr_writers;
	uint32_t block;			  /* bytes of a big cell */
	bool wild, discard_zeroes, plain; /* plain: no snapshots, no machine state */
	uint64_t seed;
} t;

struct bounds {
	uint32_t lo[NR_CELLS], hi[NR_CELLS];
};

static void die(const char *what, const struct img_error *err)
{
	fprintf(stderr, "model-threads: %s: %s\n", what, err ? err->msg : "");
	fflush(NULL);
	_Exit(1);
}

static void must(int ret, const char *what, const struct img_error *err)
{
	if (ret != 0)
		die(what, err);
}

/* The disk may just have become shorter. */
static void must_io(int ret, const char *what, const struct img_error *err)
{
	if (!t.wild || ret != IMG_E_INVALID)
		must(ret, what, err);
}

static uint32_t cell_bytes(uint32_t cell)
{
	return cell < BIG_CELLS ? t.block : 512;
}

static uint64_t cell_off(uint32_t cell)
{
	return cell < BIG_CELLS ? (uint64_t)cell * t.block :
				  (uint64_t)BIG_CELLS * t.block + (uint64_t)(cell - BIG_CELLS) * 512;
}

/* Every eighth version of a cell is zeros; half of the others compress. */
static bool version_is_zero(uint32_t cell, uint32_t version)
{
	return version == 0 || (cell * 7 + version) % 8 == 0;
}

static void cell_fill(uint8_t *buf, uint32_t cell, uint32_t version)
{
	uint64_t state = (uint64_t)cell << 32 | version, v = state;
	uint32_t bytes = cell_bytes(cell);

	memset(buf, 0, bytes);
	if (version_is_zero(cell, version))
		return;
	for (uint32_t i = 0; i < bytes; i += 8) {
		memcpy(buf + i, &v, 8);
		if (version % 2)
			v = rng_next(&state);
	}
}

/* The version that buf is, or UINT32_MAX. Zeros may be several: the newest within the bounds is taken. */
static uint32_t cell_version(const uint8_t *buf, uint32_t cell, uint32_t lo, uint32_t hi)
{
	uint8_t want[BLOCK];
	uint64_t head;

	memcpy(&head, buf, 8);
	if (head == 0) {
		for (uint32_t v = hi;; v--) {
			if (version_is_zero(cell, v)) {
				cell_fill(want, cell, v);
				return memcmp(buf, want, cell_bytes(cell)) == 0 ? v : UINT32_MAX;
			}
			if (v == lo)
				return UINT32_MAX;
		}
	}
	cell_fill(want, cell, (uint32_t)head);
	return head >> 32 == cell && memcmp(buf, want, cell_bytes(cell)) == 0 ? (uint32_t)head : UINT32_MAX;
}

static void check_cell(const uint8_t *buf, uint32_t cell, uint32_t lo, uint32_t hi, const char *what)
{
	uint64_t head;
	uint32_t version;

	if (t.wild) { /* a version of zeros is always possible, and any other */
		lo = 0;
		hi = UINT32_MAX - 8 - (cell * 7 + UINT32_MAX) % 8; /* UINT32_MAX says that there is none */
	}
	version = cell_version(buf, cell, lo, hi);
	if (version != UINT32_MAX && version >= lo && version <= hi)
		return;
	memcpy(&head, buf, 8);
	fprintf(stderr, "model-threads: %s: cell %u is not of a version from %u to %u (head 0x%" PRIx64 ", %s)\n", what,
		cell, lo, hi, head, version == UINT32_MAX ? "torn or foreign" : "whole");
	for (uint32_t i = 8; i < cell_bytes(cell); i += 8) {
		uint64_t word, before;

		memcpy(&word, buf + i, 8);
		memcpy(&before, buf + i - 8, 8);
		if (i < 32 || (word == 0) != (before == 0))
			fprintf(stderr, "  at %u: 0x%" PRIx64 "\n", i, word);
	}
	fflush(NULL);
	_Exit(1);
}

/* ---- writers ----------------------------------------------------------------------------------------------------- */

/* Zeros afterwards. */
static void discard(uint64_t bytes, uint64_t off)
{
	struct img_error err = { 0 };

	must_io(img_discard(t.img, bytes, off, 0, &err), "discard", &err);
	if (!t.discard_zeroes)
		must_io(img_zero(t.img, bytes, off, 0, &err), "zero", &err);
}

/* Cells first to first + nr become their next version, by one call. */
static void write_run(uint32_t first, uint32_t nr, unsigned how, uint8_t *buf)
{
	struct img_error err = { 0 };
	uint64_t at = 0;
	bool zero = how % 8 == 0;

	for (uint32_t c = first; c < first + nr; c++) {
		uint32_t version = atomic_load(&t.started[c]) + 1;

		while (zero && !version_is_zero(c, version))
			version++;
		atomic_store(&t.started[c], version);
		cell_fill(buf + at, c, version);
		at += cell_bytes(c);
	}
	if (zero && how & 8)
		must_io(img_zero(t.img, at, cell_off(first), 0, &err), "zero", &err);
	else if (zero && first < BIG_CELLS)
		discard(at, cell_off(first));
	else
		must_io(img_pwrite(t.img, buf, at, cell_off(first),
				   (how & 16 ? IMG_IO_COMPRESS : 0u) | (how & 32 ? IMG_IO_DETECT_ZEROES : 0u) |
					   ((how & 0xf00) == 0 ? IMG_IO_FUA : 0u),
				   &err),
			"write", &err);
	for (uint32_t c = first; c < first + nr; c++)
		atomic_store(&t.done[c], atomic_load(&t.started[c]));
	atomic_fetch_add(&t.writes, 1);
}

static void *writer(void *arg)
{
	uint32_t id = (uint32_t)(uintptr_t)arg, share = BIG_CELLS / t.nr_writers, base = id * share;
	uint64_t rng = t.seed * 64 + id;
	uint8_t *buf = malloc(RUN_CELLS * BLOCK);

	if (!buf)
		die("out of memory", NULL);
	while (!atomic_load(&t.stop)) {
		uint64_t r = rng_next(&rng);
		uint32_t first = base + (uint32_t)(r % share),
			 nr = 1 + (uint32_t)(r >> 20) % (r >> 30 & 3 ? 4 : RUN_CELLS);

		if ((r >> 32 & 3) == 0) {
			uint32_t slot = (uint32_t)(r >> 40) % (SMALL_CELLS / t.nr_writers);

			write_run(BIG_CELLS + slot * t.nr_writers + id, 1, (unsigned)(r >> 48), buf);
			continue;
		}
		if ((r >> 34 & 7) == 0) { /* whole units */
			first = first / UNIT_CELLS * UNIT_CELLS;
			nr = UNIT_CELLS;
		}
		if (first < base)
			first = base;
		if (nr > base + share - first)
			nr = base + share - first;
		write_run(first, nr, (unsigned)(r >> 48), buf);
	}
	free(buf);
	return NULL;
}

/* ---- readers ----------------------------------------------------------------------------------------------------- */

static void *reader(void *arg)
{
	uint64_t rng = t.seed * 64 + 32 + (uintptr_t)arg;
	uint8_t *buf = malloc(RUN_CELLS * BLOCK);
	struct img_error err = { 0 };
	uint32_t lo[RUN_CELLS];
	int ret;

	if (!buf)
		die("out of memory", NULL);
	while (!atomic_load(&t.stop)) {
		uint64_t r = rng_next(&rng), at = 0, bytes;
		uint32_t first = (uint32_t)(r % NR_CELLS), nr = 1 + (uint32_t)(r >> 20) % RUN_CELLS;

		if (nr > NR_CELLS - first)
			nr = NR_CELLS - first;
		for (uint32_t i = 0; i < nr; i++)
			lo[i] = atomic_load(&t.done[first + i]);
		bytes = cell_off(first + nr - 1) + cell_bytes(first + nr - 1) - cell_off(first);
		ret = img_pread(t.img, buf, bytes, cell_off(first), 0, &err);
		must_io(ret, "read", &err);
		for (uint32_t i = 0; ret == 0 && i < nr; i++) {
			check_cell(buf + at, first + i, lo[i], atomic_load(&t.started[first + i]), "read");
			at += cell_bytes(first + i);
		}
		atomic_fetch_add(&t.reads, 1);
	}
	free(buf);
	return NULL;
}

/* ---- flushes, machine state -------------------------------------------------------------------------------------- */

static void *flusher(void *arg)
{
	uint64_t rng = t.seed * 64 + 40;
	struct img_error err = { 0 };
	struct img_extent ext[16];
	uint8_t vm[3000] = { 1 };
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	void *memory = mmap(NULL, LOAD_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
	uint64_t size;
	size_t nr;

	(void)arg;
	if (memory == MAP_FAILED)
		abort();
	while (!atomic_load(&t.stop)) {
		uint64_t r = rng_next(&rng);
		struct timespec pause = { 0, (long)(r >> 8) % 3000000 };

		must(img_flush(t.img, r % 4 == 0 ? IMG_FLUSH_CHECKPOINT : 0, &err), "flush", &err);
		if (r % 8 == 1 && !t.plain)
			must(img_vmstate_write(t.img, vm, sizeof(vm), (r >> 32) % 100000, &err), "vmstate write", &err);
		if (r % 8 == 3 && !t.plain)
			must(img_vmstate_zero(t.img, (r >> 16) % 50000, (r >> 32) % 100000, &err), "vmstate zero",
			     &err);
		if (r % 8 == 4 && !t.plain && img_vmstate_size(t.img, NULL, &size, &err) == 0 && size >= LOAD_BYTES)
			must_io(img_vmstate_load(t.img, NULL, memory, LOAD_BYTES, 0, IMG_VMSTATE_MAP, &err),
				"vmstate load", &err);
		if (r % 8 == 2)
			must_io(img_extents(t.img, DISK_BYTES, 0, 0, ext, 16, &nr, &err), "extents", &err);
		atomic_fetch_add(&t.flushes, 1);
		nanosleep(&pause, NULL);
	}
	munmap(memory, LOAD_BYTES);
	return NULL;
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

struct snap {
	char name[16];
	uint8_t *content; /* as it was read first; DISK_BYTES */
};

static void load(const _Atomic uint32_t *from, uint32_t *to)
{
	for (uint32_t c = 0; c < NR_CELLS; c++)
		to[c] = atomic_load(&from[c]);
}

static void read_snap(const char *name, uint8_t *buf)
{
	struct img_error err = { 0 };
	struct img *view;

	must(img_snapshot_open(t.img, name, &view, &err), "snapshot open", &err);
	must(img_pread(view, buf, DISK_BYTES, 0, 0, &err), "snapshot read", &err);
	must(img_close(view, &err), "snapshot close", &err);
}

static void create_snap(struct snap *s, struct bounds *b, unsigned flags)
{
	struct img_error err = { 0 };

	s->content = malloc(DISK_BYTES);
	if (!s->content)
		die("out of memory", NULL);
	snprintf(s->name, sizeof(s->name), "s%" PRIu64, atomic_fetch_add(&t.snaps, 1));
	load(t.done, b->lo);
	must(img_snapshot_create(t.img, s->name, flags, &err), "snapshot create", &err);
	load(t.started, b->hi);
	read_snap(s->name, s->content);
	for (uint32_t c = 0; c < NR_CELLS; c++)
		check_cell(s->content + cell_off(c), c, b->lo[c], b->hi[c], s->name);
}

static void check_snap(struct snap *s, uint8_t *buf)
{
	read_snap(s->name, buf);
	if (memcmp(buf, s->content, DISK_BYTES) != 0)
		die("a snapshot has changed", NULL);
}

static int count_range(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	uint8_t *said = ctx;

	(void)kind;
	memset(said + off / 512, 1, (size_t)((bytes + 511) / 512));
	return 0;
}

/* What the diff of two snapshots does not name is the same in both. */
static void check_diff(const struct snap *a, const struct snap *b)
{
	uint8_t *said = calloc(1, DISK_BYTES / 512 + 8);
	struct img_error err = { 0 };

	if (!said)
		die("out of memory", NULL);
	must(img_snapshot_diff(t.img, a->name, b->name, count_range, said, &err), "diff", &err);
	for (uint64_t i = 0; i < DISK_BYTES / 512; i++) {
		if (!said[i] && memcmp(a->content + i * 512, b->content + i * 512, 512) != 0)
			die("diff does not name a difference", NULL);
	}
	free(said);
}

/* Back to a snapshot, or shorter for a moment. */
static void go_wild(uint64_t r, const struct snap *s)
{
	struct img_error err = { 0 };

	if (s->content && r & 1) {
		must(img_snapshot_revert(t.img, s->name, &err), "revert", &err);
		return;
	}
	must(img_resize(t.img, (r >> 8) % DISK_BYTES / t.block * t.block + (t.plain ? t.block : 0), IMG_RESIZE_SHRINK,
			&err),
	     "resize", &err);
	must(img_resize(t.img, DISK_BYTES, 0, &err), "resize", &err);
}

static void *snapshotter(void *arg)
{
	struct snap snaps[NR_SNAPS] = { 0 };
	struct bounds *b = malloc(sizeof(*b));
	uint8_t *buf = malloc(DISK_BYTES);
	struct timespec pause = { .tv_nsec = 2000000 };
	struct img_check_result result;
	struct img_error err = { 0 };
	uint64_t rng = t.seed * 64 + 50;

	(void)arg;
	if (!b || !buf)
		die("out of memory", NULL);
	while (!atomic_load(&t.stop)) {
		uint64_t r = rng_next(&rng);
		struct snap *s = &snaps[r % NR_SNAPS], *other = &snaps[(r >> 8) % NR_SNAPS];

		if (t.wild && r >> 40 & 1)
			go_wild(r >> 41, s);
		if (t.plain) {
			must(img_check(t.img, 0, NULL, NULL, NULL, &result, &err), "check", &err);
			if (result.damage)
				die("check finds damage", NULL);
			nanosleep(&pause, NULL);
			continue;
		}
		if (!s->content) {
			create_snap(s, b, r >> 16 & 1 ? IMG_SNAPSHOT_VMSTATE : 0);
			continue;
		}
		check_snap(s, buf);
		if (other->content && other != s)
			check_diff(s, other);
		must(img_snapshot_delete(t.img, s->name, &err), "snapshot delete", &err);
		free(s->content);
		s->content = NULL;
	}
	for (unsigned i = 0; i < NR_SNAPS; i++) {
		if (snaps[i].content)
			check_snap(&snaps[i], buf);
		free(snaps[i].content);
	}
	free(buf);
	free(b);
	return NULL;
}

static void ignore_detail(void *ctx, const struct img_detail *d)
{
	(void)ctx;
	(void)d;
}

static void *watcher(void *arg)
{
	struct timespec pause = { .tv_nsec = 1000000 };
	struct img_check_result result;
	struct img_limits limits;
	struct img_error err = { 0 };
	struct img_info info;

	(void)arg;
	while (!atomic_load(&t.stop)) {
		must(img_info(t.img, &info, &err), "info", &err);
		must(img_info_details(t.img, ignore_detail, NULL, &err), "details", &err);
		img_limits(t.img, &limits);
		if (!t.wild && img_size(t.img) != DISK_BYTES)
			die("another size", NULL);
		must(img_check(t.img, IMG_CHECK_METADATA, NULL, NULL, NULL, &result, &err), "check", &err);
		if (result.damage)
			die("check finds damage", NULL);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static void open_image(unsigned flags)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .flags = flags };
	struct img_error err = { 0 };

	must(image_open_env("a", &opts, &t.fs.env, &t.img, &err), "open", &err);
}

static void print_finding(void *ctx, const struct img_finding *f)
{
	(void)ctx;
	if (f->kind != IMG_FINDING_NOTE)
		fprintf(stderr, "model-threads: %s %s %s at 0x%" PRIx64 "\n", f->rule, f->where, f->msg, f->file_off);
}

static void check_last(const char *what)
{
	struct img_check_result result = { 0 };
	struct img_error err = { 0 };
	uint8_t *buf = malloc(DISK_BYTES);

	if (!buf)
		die("out of memory", NULL);
	must(img_pread(t.img, buf, DISK_BYTES, 0, 0, &err), "read", &err);
	for (uint32_t c = 0; c < NR_CELLS; c++)
		check_cell(buf + cell_off(c), c, t.done[c], t.done[c], what);
	must(img_check(t.img, 0, print_finding, NULL, NULL, &result, &err), "check", &err);
	if (result.damage || result.leaks || result.redundancy)
		die("check is not clean", NULL);
	free(buf);
}

static void run(unsigned seconds)
{
	pthread_t threads[MAX_WRITERS + 5];
	unsigned nr = 0;
	struct timespec pause = { .tv_sec = (time_t)seconds };

	for (unsigned i = 0; i < t.nr_writers; i++)
		pthread_create(&threads[nr++], NULL, writer, (void *)(uintptr_t)i);
	pthread_create(&threads[nr++], NULL, reader, (void *)0);
	pthread_create(&threads[nr++], NULL, reader, (void *)1);
	pthread_create(&threads[nr++], NULL, flusher, NULL);
	pthread_create(&threads[nr++], NULL, snapshotter, NULL);
	pthread_create(&threads[nr++], NULL, watcher, NULL);
	nanosleep(&pause, NULL);
	atomic_store(&t.stop, true);
	while (nr > 0)
		pthread_join(threads[--nr], NULL);
}

int main(int argc, char **argv)
{
	static const struct option names[] = { { "seconds", 1, NULL, 't' }, { "seed", 1, NULL, 's' },
					       { "writers", 1, NULL, 'w' }, { "wild", 0, NULL, 'x' },
					       { "format", 1, NULL, 'f' },  { "options", 1, NULL, 'o' },
					       { "block", 1, NULL, 'b' },   { NULL, 0, NULL, 0 } };
	struct img_create_options create = { .struct_size = sizeof(create), .format = "limg" };
	struct img_error err = { 0 };
	unsigned seconds = 10;
	int c;

	t.nr_writers = 4;
	t.block = BLOCK;
	t.seed = 1;
	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (c == 't')
			seconds = (unsigned)strtoul(optarg, NULL, 0);
		else if (c == 'w')
			t.nr_writers = (unsigned)strtoul(optarg, NULL, 0);
		else if (c == 's')
			t.seed = strtoull(optarg, NULL, 0);
		else if (c == 'x')
			t.wild = true;
		else if (c == 'f')
			create.format = optarg;
		else if (c == 'o')
			create.options = optarg;
		else if (c == 'b')
			t.block = (uint32_t)strtoul(optarg, NULL, 0);
		else
			return 2;
	}
	if (t.nr_writers < 1 || t.nr_writers > MAX_WRITERS || t.block < 512 || t.block > BLOCK || t.block % 512 != 0 ||
	    !traits_of(create.format))
		return 2;
	create.size_bytes = DISK_BYTES;
	t.discard_zeroes = traits_of(create.format)->discard_zeroes;
	t.plain = traits_of(create.format)->plain;
	if (!registry_find(create.format)) {
		printf("SKIPPED: this build has no format %s\n", create.format);
		return 77;
	}
	/* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): there are traits only of a format with a name */
	if (!create.options && strcmp(create.format, "limg") == 0)
		create.options = "block_size=4096,unit_size=131072";
	memfs_init(&t.fs);
	must(image_create_env("a", &create, &t.fs.env, &err), "create", &err);
	open_image(IMG_OPEN_WRITE);
	run(seconds);
	check_last("at the end");
	must(img_close(t.img, &err), "close", &err);
	open_image(0);
	check_last("opened again");
	must(img_close(t.img, &err), "close", &err);
	memfs_destroy(&t.fs);
	printf("model-threads: %s, seed %" PRIu64 ": %" PRIu64 " writes, %" PRIu64 " reads, %" PRIu64
	       " snapshots, %" PRIu64 " flushes: all right\n",
	       create.format, t.seed, atomic_load(&t.writes), atomic_load(&t.reads), atomic_load(&t.snaps),
	       atomic_load(&t.flushes));
	return 0;
}
