/* SPDX-License-Identifier: MIT */
/*
 * bitrot: changes one byte of an image file, and asks everything that can be asked of it. Allowed is:
 *
 *   harmless   every state reads right and check finds nothing: nothing depends on the byte (free space)
 *   spare      every state reads right and check reports redundancy: one copy of the superblock is gone, or no reader
 * needs the byte (free-space map) reported   the reads that meet it fail as CORRUPT, naming a place in the AU (or the
 * compressed unit) that was changed, check reports damage there, and every other read is right refused    the image
 * cannot be opened, and says so with the place dropped    only where a journal is to be replayed: its last record is as
 * if it had not been written
 *
 * Wrong data is never allowed, nor is damage that reaches beyond the block or unit whose data it is.
 *
 *   bitrot [--stride N] [--flips N] [--seed N] [--verbose] small|journal|large
 *
 * small and journal change every byte (every Nth with --stride) of AUs that hold anything; large changes random ones.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "memfs.h"
#include "model.h"

#define AU	   4096u
#define MAX_STATES 8

struct state {
	char snap[16]; /* "": the head */
	uint64_t bytes;
	uint8_t *truth, *before; /* before: without the last record of the journal, NULL where there is none */
	uint8_t *vm;
	uint64_t vm_bytes;
};

static struct {
	struct memfs fs;
	struct mem_content *file;
	struct state states[MAX_STATES];
	unsigned nr_states;
	uint64_t file_bytes, unit_bytes;
	uint8_t *buf;
	uint64_t counts[5];
	bool verbose;
} t;
enum verdict { HARMLESS, SPARE, REPORTED, REFUSED, DROPPED };
static const char *const verdict_names[] = { "harmless", "spare", "reported", "refused", "dropped" };

static void die(uint64_t off, const char *what, const char *more)
{
	fprintf(stderr, "bitrot: byte 0x%" PRIx64 ": %s%s%s\n", off, what, *more ? ": " : "", more);
	exit(1);
}

static void must(int ret, const char *what, const struct img_error *err)
{
	if (ret != 0)
		die(UINT64_MAX, what, err->msg);
}

/* ---- making images ----------------------------------------------------------------------------------------------- */

static struct img *open_image(unsigned flags, int *ret, struct img_error *err)
{
	struct img_open_options opts = { .struct_size = sizeof(opts), .format = "limg", .flags = flags };
	struct img *img = NULL;

	*ret = image_open_env("a", &opts, &t.fs.env, &img, err);
	return img;
}

static void fill(uint8_t *buf, uint64_t bytes, uint64_t seed, bool random)
{
	uint64_t v = rng_next(&seed);

	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t w = random ? rng_next(&seed) : v + i / 4096; /* long matches: expanded fast, thousands of times */

		memcpy(buf + i, &w, (size_t)min_u64(8, bytes - i));
	}
}

static void put(struct img *img, uint64_t bytes, uint64_t off, uint64_t seed, bool random, unsigned flags)
{
	struct img_error err = { 0 };

	fill(t.buf, bytes, seed, random);
	must(img_pwrite(img, t.buf, bytes, off, flags, &err), "write", &err);
}

static void keep_state(struct img *img, const char *snap)
{
	struct state *s = &t.states[t.nr_states++];
	struct img_error err = { 0 };
	struct img *view = img;

	snprintf(s->snap, sizeof(s->snap), "%s", snap);
	if (*snap)
		must(img_snapshot_open(img, snap, &view, &err), "snapshot", &err);
	s->bytes = img_size(view);
	s->truth = malloc((size_t)s->bytes + 1);
	must(img_pread(view, s->truth, s->bytes, 0, 0, &err), "read", &err);
	must(img_vmstate_size(img, *snap ? snap : NULL, &s->vm_bytes, &err), "vmstate", &err);
	s->vm = malloc((size_t)s->vm_bytes + 1);
	if (s->vm_bytes)
		must(img_vmstate_read(img, *snap ? snap : NULL, s->vm, s->vm_bytes, 0, &err), "vmstate", &err);
	if (*snap)
		must(img_close(view, &err), "close", &err);
}

/* Raw and compressed blocks, zeros, snapshots one of which was deleted, machine state. */
static void populate(struct img *img, uint64_t bytes)
{
	uint64_t unit = t.unit_bytes, middle = bytes / 2 / unit * unit;
	struct img_error err = { 0 };
	uint8_t vm[6000];

	put(img, bytes / 8, 0, 1, true, 0);
	put(img, unit, middle, 2, false, IMG_IO_COMPRESS);
	fill(vm, sizeof(vm), 3, true);
	must(img_vmstate_write(img, vm, sizeof(vm), 0, &err), "vmstate", &err);
	must(img_snapshot_create(img, "one", IMG_SNAPSHOT_VMSTATE, &err), "snapshot", &err);
	put(img, 4096, 4096, 4, true, 0);
	put(img, 4096, middle + 8192, 5, true, 0);
	must(img_snapshot_create(img, "gone", 0, &err), "snapshot", &err);
	must(img_zero(img, 8192, 8192, 0, &err), "zero", &err);
	put(img, 5000, bytes - 5000, 6, true, 0);
	must(img_snapshot_create(img, "two", 0, &err), "snapshot", &err);
	must(img_snapshot_delete(img, "gone", &err), "delete", &err);
	put(img, 4096, 0, 7, true, 0);
	must(img_discard(img, 4096, 4096, 0, &err), "discard", &err);
}

static void make(uint64_t bytes, bool journal)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .format = "limg",
					     .size_bytes = bytes,
					     .options = "block_size=4096,unit_size=65536" };
	struct img_error err = { 0 };
	struct mem_content *clone = NULL;
	struct img *img;
	int ret;

	t.unit_bytes = 65536;
	memfs_init(&t.fs);
	must(image_create_env("a", &create, &t.fs.env, &err), "create", &err);
	img = open_image(IMG_OPEN_WRITE, &ret, &err);
	must(ret, "open", &err);
	populate(img, bytes);
	if (journal) {
		uint8_t *before = malloc((size_t)bytes);

		must(img_flush(img, IMG_FLUSH_CHECKPOINT, &err), "checkpoint", &err);
		put(img, 8192, 16384, 8, true, 0);
		must(img_flush(img, 0, &err), "flush", &err);
		must(img_pread(img, before, bytes, 0, 0, &err), "read", &err);
		put(img, 4096, 20480, 9, true, 0);
		must(img_flush(img, 0, &err), "flush", &err);
		keep_state(img, "");
		t.states[0].before = before;
		clone = mem_content_clone(memfs_find(&t.fs, "a"));
	} else {
		keep_state(img, "");
	}
	keep_state(img, "one");
	keep_state(img, "two");
	must(img_close(img, &err), "close", &err);
	if (clone)
		memfs_put(&t.fs, "a", clone);
	t.file = memfs_find(&t.fs, "a");
	t.file_bytes = mem_content_size(t.file);
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* Does a place that was named have to do with the byte? A unit is named by its first AU. */
static bool same_place(uint64_t named, uint64_t off)
{
	return named / AU == off / AU || (named <= off && off < named + t.unit_bytes);
}

struct asked {
	uint64_t off;
	uint64_t failed_reads, first_failed, last_failed; /* guest offsets, of one state */
	bool dropped;
};

static void read_state(struct asked *a, struct img *view, const struct state *s)
{
	struct img_error err = { 0 };

	if (img_size(view) != s->bytes)
		die(a->off, "wrong size of", s->snap);
	for (uint64_t at = 0; at < s->bytes; at += AU) {
		uint64_t n = min_u64(AU, s->bytes - at);
		int ret;

		memset(t.buf, 0xee, (size_t)n);
		ret = img_pread(view, t.buf, n, at, 0, &err);
		if (ret == 0 && memcmp(t.buf, s->truth + at, (size_t)n) == 0)
			continue;
		if (ret == 0 && s->before && memcmp(t.buf, s->before + at, (size_t)n) == 0) {
			a->dropped = true;
			continue;
		}
		if (ret == 0)
			die(a->off, "WRONG DATA was returned of", s->snap);
		if (ret != IMG_E_CORRUPT)
			die(a->off, "a read failed otherwise than as CORRUPT", err.msg);
		if (!same_place(err.offset, a->off))
			die(a->off, "a read names another place", err.msg);
		if (a->failed_reads++ == 0)
			a->first_failed = at;
		a->last_failed = at;
	}
}

static void read_vm(struct asked *a, struct img *img, const struct state *s)
{
	const char *snap = s->snap[0] ? s->snap : NULL;
	struct img_error err = { 0 };
	uint64_t bytes = 0;
	int ret;

	if (s->vm_bytes == 0)
		return;
	ret = img_vmstate_size(img, snap, &bytes, &err);
	if (ret == 0 && bytes != s->vm_bytes)
		die(a->off, "wrong size of the machine state of", s->snap);
	if (ret == 0)
		ret = img_vmstate_read(img, snap, t.buf, bytes, 0, &err);
	if (ret == 0 && memcmp(t.buf, s->vm, (size_t)bytes) != 0)
		die(a->off, "WRONG DATA was returned of the machine state of", s->snap);
	if (ret != 0 && (ret != IMG_E_CORRUPT || !same_place(err.offset, a->off)))
		die(a->off, "a read of machine state names something else", err.msg);
	a->failed_reads += ret != 0;
}

struct found {
	uint64_t off;
	bool here, data;
	char elsewhere[512];
};

static void keep_finding(void *ctx, const struct img_finding *f)
{
	struct found *found = ctx;

	if (f->kind == IMG_FINDING_NOTE)
		return;
	if (strcmp(f->rule, "LIMG-11") == 0 || strcmp(f->rule, "LIMG-12") == 0)
		found->data = true;
	if (f->file_off != UINT64_MAX && same_place(f->file_off, found->off))
		found->here = true;
	else
		snprintf(found->elsewhere, sizeof(found->elsewhere), "%s %s", f->rule, f->msg);
}

static enum verdict ask(uint64_t off)
{
	struct asked a = { .off = off };
	struct found found = { .off = off };
	struct img_check_result result = { 0 };
	struct img_error err = { 0 };
	uint64_t spread = 0;
	struct img *img, *view;
	int ret;

	img = open_image(0, &ret, &err);
	if (ret != 0) {
		if (ret != IMG_E_CORRUPT || !same_place(err.offset, off))
			die(off, "open failed otherwise than as CORRUPT with the place", err.msg);
		return REFUSED;
	}
	for (unsigned i = 0; i < t.nr_states; i++) {
		uint64_t failed = a.failed_reads;

		ret = 0;
		view = img;
		if (t.states[i].snap[0])
			ret = img_snapshot_open(img, t.states[i].snap, &view, &err);
		if (ret != 0) {
			if (ret != IMG_E_CORRUPT || !same_place(err.offset, off))
				die(off, "a snapshot cannot be opened, otherwise than as CORRUPT with the place",
				    err.msg);
			a.failed_reads++;
			continue;
		}
		read_state(&a, view, &t.states[i]);
		if (a.failed_reads > failed)
			spread = max_u64(spread, a.last_failed - a.first_failed + AU);
		if (view != img)
			must(img_close(view, &err), "close", &err);
		read_vm(&a, img, &t.states[i]);
	}
	must(img_check(img, 0, keep_finding, &found, NULL, &result, &err), "check", &err);
	must(img_close(img, &err), "close", &err);
	if (a.failed_reads && result.damage == 0)
		die(off, "reads fail, but check finds no damage", "");
	if (result.damage && !found.here)
		die(off, "check names other places only", found.elsewhere);
	if (found.data && spread > t.unit_bytes)
		die(off, "damage of data reaches beyond its block or unit", "");
	if (a.failed_reads)
		return REPORTED;
	if (a.dropped)
		return DROPPED;
	if (result.damage)
		return REPORTED;
	return result.redundancy || result.leaks ? SPARE : HARMLESS;
}

static enum verdict flip(uint64_t off, uint8_t bits)
{
	enum verdict verdict;
	uint8_t byte, changed;

	mem_content_read(t.file, &byte, 1, off);
	changed = byte ^ bits;
	mem_content_write(t.file, &changed, 1, off);
	verdict = ask(off);
	mem_content_write(t.file, &byte, 1, off);
	t.counts[verdict]++;
	if (t.verbose)
		printf("0x%" PRIx64 " %s\n", off, verdict_names[verdict]);
	return verdict;
}

/* Every byte of AUs that hold anything, some of the others. */
static uint64_t flip_all(uint64_t stride, uint64_t seed)
{
	static const uint8_t zeros[AU];
	uint8_t page[AU];
	uint64_t flips = 0;

	for (uint64_t au = 0; au < t.file_bytes / AU; au++) {
		bool empty;

		mem_content_read(t.file, page, AU, au * AU);
		empty = memcmp(page, zeros, AU) == 0;
		for (uint64_t i = empty ? seed % AU : (seed + au) % stride; i < AU; i += empty ? AU : stride) {
			uint64_t r = (au * AU + i) * 2654435761u + seed;

			if (flip(au * AU + i, (uint8_t)(1u << (r >> 20) % 8)) != HARMLESS && empty)
				printf("bitrot: byte 0x%" PRIx64 " of an empty AU matters\n", au * AU + i);
			flips++;
		}
	}
	return flips;
}

int main(int argc, char **argv)
{
	static const struct option names[] = { { "stride", 1, NULL, 't' },
					       { "flips", 1, NULL, 'f' },
					       { "seed", 1, NULL, 's' },
					       { "verbose", 0, NULL, 'v' },
					       { NULL, 0, NULL, 0 } };
	uint64_t stride = 1, flips = 300, seed = 1, rng;
	bool large;
	int c;

	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (c == '?')
			return 2;
		t.verbose |= c == 'v';
		if (c != 'v')
			*(c == 't' ? &stride : c == 'f' ? &flips : &seed) = strtoull(optarg, NULL, 0);
	}
	if (optind + 1 != argc || stride == 0)
		return 2;
	large = strcmp(argv[optind], "large") == 0;
	t.buf = malloc(16u << 20);
	if (!t.buf)
		return 3;
	make(large ? 32u << 20 : 200u << 10, strcmp(argv[optind], "journal") == 0);
	if (ask(UINT64_MAX / 2) != HARMLESS)
		die(UINT64_MAX, "the image is not whole to begin with", "");
	rng = seed;
	if (!large)
		flips = flip_all(stride, seed);
	else
		for (uint64_t i = 0; i < flips; i++)
			flip(rng_next(&rng) % t.file_bytes, (uint8_t)(1u << rng_next(&rng) % 8));
	if (ask(UINT64_MAX / 2) != HARMLESS)
		die(UINT64_MAX, "the image is not whole at the end", "");
	printf("bitrot: %s image of %" PRIu64 " bytes, %" PRIu64 " changes:", argv[optind], t.file_bytes, flips);
	for (unsigned i = 0; i < 5; i++)
		printf(" %" PRIu64 " %s%s", t.counts[i], verdict_names[i], i < 4 ? "," : "\n");
	for (unsigned i = 0; i < t.nr_states; i++) {
		free(t.states[i].truth);
		free(t.states[i].before);
		free(t.states[i].vm);
	}
	memfs_destroy(&t.fs);
	free(t.buf);
	return 0;
}
