/* SPDX-License-Identifier: MIT */
/* See history.h. After each operation the disk's content is kept; the file is what it was when the writer stopped. */
#include "history.h"
#include "refix.h"

#define KIB	     1024u
#define NR_HISTORIES 4u

static struct history *histories[NR_HISTORIES];

const struct history *history_get(unsigned n)
{
	FUZZ_CHECK(histories[n % NR_HISTORIES]);
	return histories[n % NR_HISTORIES];
}

static struct history *begin(unsigned n)
{
	FUZZ_CHECK(!histories[n]);
	histories[n] = calloc(1, sizeof(*histories[n]));
	FUZZ_CHECK(histories[n]);
	return histories[n];
}

static void keep(struct history *h, struct img *img)
{
	struct history_state *s = &h->state[h->nr++];

	FUZZ_CHECK(h->nr <= HISTORY_STATES && img_size(img) <= HISTORY_BYTES);
	s->bytes = img_size(img);
	MAKE_OK(img_pread(img, s->data, s->bytes, 0, 0, NULL));
}

static void put(struct history *h, struct img *img, uint64_t off, uint64_t bytes, uint64_t seed, unsigned flags)
{
	make_write(img, off, bytes, seed, flags);
	keep(h, img);
}

static struct img *start(struct memfs *fs, struct history *h, const char *options)
{
	struct img *img;

	make_image(fs, FUZZ_IMAGE, "limg", 128 * KIB, options);
	img = make_open(fs, FUZZ_IMAGE, "limg");
	keep(h, img);
	return img;
}

static void die(struct memfs *fs, struct img *img)
{
	struct mem_content *now = mem_content_clone(memfs_find(fs, FUZZ_IMAGE));

	FUZZ_CHECK(now);
	make_close(img);
	memfs_put(fs, FUZZ_IMAGE, now);
}

static void flush(struct img *img)
{
	MAKE_OK(img_flush(img, 0, NULL));
}

/* Records alone, each over blocks of the one before. */
static void make_records(struct memfs *fs)
{
	struct history *h = begin(0);
	struct img *img = start(fs, h, NULL);

	for (unsigned i = 0; i < 8; i++) {
		put(h, img, i * 4 * KIB, 8 * KIB, i + 1, 0);
		flush(img);
	}
	put(h, img, 100 * KIB, 4 * KIB, 20, 0);
	die(fs, img);
}

/* Zeros, units, several changes in one record, a checkpoint between. */
static void make_kinds(struct memfs *fs)
{
	struct history *h = begin(1);
	struct img *img = start(fs, h, "unit_size=64K");

	put(h, img, 0, 64 * KIB, 1, IMG_IO_COMPRESS);
	put(h, img, 64 * KIB, 20 * KIB, 2, 0);
	MAKE_OK(img_flush(img, IMG_FLUSH_CHECKPOINT, NULL));
	MAKE_OK(img_zero(img, 8 * KIB, 4 * KIB, 0, NULL));
	keep(h, img);
	flush(img);
	put(h, img, 64 * KIB, 64 * KIB, 3, IMG_IO_COMPRESS);
	put(h, img, 70000, 100, 4, 0);
	flush(img);
	MAKE_OK(img_discard(img, 16 * KIB, 0, 0, NULL));
	keep(h, img);
	put(h, img, 0, 4 * KIB, 5, 0);
	flush(img);
	die(fs, img);
}

static void make_snapshots(struct memfs *fs)
{
	struct history *h = begin(2);
	struct img *img = start(fs, h, "block_size=16K,unit_size=64K");

	put(h, img, 0, 40 * KIB, 1, 0);
	MAKE_OK(img_snapshot_create(img, "one", 0, NULL));
	put(h, img, 10 * KIB, 20 * KIB, 2, 0);
	flush(img);
	MAKE_OK(img_resize(img, 144 * KIB, 0, NULL));
	keep(h, img);
	put(h, img, 130 * KIB, 8 * KIB, 3, 0);
	flush(img);
	MAKE_OK(img_snapshot_revert(img, "one", NULL));
	keep(h, img);
	put(h, img, 60 * KIB, 8 * KIB, 4, 0);
	flush(img);
	put(h, img, 0, 16 * KIB, 5, 0);
	flush(img);
	die(fs, img);
}

/* Two sessions: the first is closed, the second dies; much is written again where it was freed. */
static void make_sessions(struct memfs *fs)
{
	struct history *h = begin(3);
	struct img *img = start(fs, h, NULL);

	for (unsigned i = 0; i < 4; i++)
		put(h, img, i * 8 * KIB, 16 * KIB, i, 0);
	make_close(img);
	img = make_open(fs, FUZZ_IMAGE, "limg");
	for (unsigned i = 0; i < 6; i++) {
		put(h, img, 4 * KIB, 12 * KIB, 30 + i, 0);
		flush(img);
		if (i == 3)
			MAKE_OK(img_flush(img, IMG_FLUSH_CHECKPOINT, NULL));
	}
	die(fs, img);
}

static const struct fuzz_recipe recipes[NR_HISTORIES] = {
	{ "records", make_records },
	{ "kinds", make_kinds },
	{ "snapshots", make_snapshots },
	{ "sessions", make_sessions },
};

const struct fuzz_format fuzz_format_limg_journal = {
	.name = "limg-journal", .recipes = recipes, .nr_recipes = NR_HISTORIES, .walk = refix_limg
};
