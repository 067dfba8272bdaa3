/* SPDX-License-Identifier: MIT */
/* fuzz_look(): all questions that can be asked of an image without changing it. See session.h. */
#include <string.h>
#include <xxhash.h>

#include "session.h"

#define READ_TOTAL    (256u << 10) /* of a disk: bytes of data that are read */
#define PIECE_BYTES   (16u << 10)
#define EXTENT_CALLS  64u
#define FAILURES_MAX  8u
#define SKIP_BYTES    (64u << 10) /* over what cannot be described */
#define SNAPSHOTS_MAX 4u
#define BITMAPS_MAX   4u
#define CAP	      7u

struct looker {
	struct fuzz_look *out;
	uint64_t left; /* bytes that may be read */
	unsigned failures;
};

static void saw(struct looker *l, const void *data, size_t bytes)
{
	l->out->digest = XXH3_64bits_withSeed(data, bytes, l->out->digest);
}

/* What failed, and how. */
static int saw_ret(struct looker *l, int ret, const struct img_error *err)
{
	saw(l, &ret, sizeof(ret));
	if (fuzz_expect(ret, err) != 0) {
		saw(l, err->msg, strlen(err->msg));
		l->failures++;
	}
	return ret;
}

/* ---- the disk ---- */

static void read_piece(struct looker *l, struct img *img, uint64_t bytes, uint64_t off, bool zero)
{
	static uint8_t first[PIECE_BYTES], second[PIECE_BYTES];
	struct img_error err;

	if (bytes > l->left)
		bytes = l->left;
	l->left -= bytes;
	if (saw_ret(l, img_pread(img, first, bytes, off, 0, &err), &err) != 0)
		return;
	saw(l, first, bytes);
	if (fuzz_expect(img_pread(img, second, bytes, off, 0, &err), &err) == 0)
		FUZZ_CHECK(memcmp(first, second, bytes) == 0);
	for (uint64_t i = 0; zero && i < bytes; i++)
		FUZZ_CHECK(first[i] == 0);
}

static void read_extent(struct looker *l, struct img *img, const struct img_extent *e)
{
	bool zero = e->flags & IMG_EXT_ZERO;
	uint64_t bytes = e->bytes, off = e->off;

	/* of zeros, both ends */
	if (zero && bytes > 2 * 512) {
		read_piece(l, img, 512, off, true);
		read_piece(l, img, 512, off + bytes - 512, true);
		return;
	}
	while (bytes > 0 && l->left > 0 && l->failures < FAILURES_MAX) {
		uint64_t part = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;

		read_piece(l, img, part, off, zero);
		off += part;
		bytes -= part;
	}
}

static void check_extent(struct img *img, const struct img_extent *e, uint64_t off, unsigned flags)
{
	unsigned kinds = (e->flags & IMG_EXT_DATA ? 1 : 0) + (e->flags & IMG_EXT_ZERO ? 1 : 0);

	FUZZ_CHECK(e->off == off && e->bytes > 0 && e->bytes <= img_size(img) - off);
	FUZZ_CHECK(kinds == 1 || (flags & IMG_EXTENTS_OWN && kinds == 0));
	FUZZ_CHECK(e->depth < 64);
	if (e->flags & IMG_EXT_OFFSET)
		FUZZ_CHECK(e->flags & IMG_EXT_DATA && !(e->flags & IMG_EXT_COMPRESSED));
	if (e->flags & IMG_EXT_COMPRESSED)
		FUZZ_CHECK(e->flags & IMG_EXT_DATA);
}

static void look_at_disk(struct looker *l, struct img *img, unsigned flags, bool read)
{
	uint64_t size = img_size(img), off = 0;
	struct img_extent e[CAP];
	struct img_error err;
	size_t nr;

	l->failures = 0;
	for (unsigned calls = 0; off < size && calls < EXTENT_CALLS && l->failures < FAILURES_MAX; calls++) {
		if (saw_ret(l, img_extents(img, size - off, off, flags, e, CAP, &nr, &err), &err) != 0) {
			off += size - off < SKIP_BYTES ? size - off : SKIP_BYTES;
			continue;
		}
		FUZZ_CHECK(nr >= 1 && nr <= CAP);
		for (size_t i = 0; i < nr; i++) {
			check_extent(img, &e[i], off, flags);
			saw(l, &e[i].bytes, sizeof(e[i].bytes));
			saw(l, &e[i].flags, sizeof(e[i].flags));
			if (read)
				read_extent(l, img, &e[i]);
			off += e[i].bytes;
		}
	}
}

/* ---- machine state, snapshots ---- */

static void look_at_vmstate(struct looker *l, struct img *img, const char *snapshot)
{
	static uint8_t buf[PIECE_BYTES];
	struct img_error err;
	uint64_t bytes = 0;

	if (saw_ret(l, img_vmstate_size(img, snapshot, &bytes, &err), &err) != 0 || bytes == 0)
		return;
	saw(l, &bytes, sizeof(bytes));
	for (uint64_t off = 0; off < bytes && off < 4 * sizeof(buf); off += sizeof(buf)) {
		uint64_t part = bytes - off < sizeof(buf) ? bytes - off : sizeof(buf);

		if (saw_ret(l, img_vmstate_read(img, snapshot, buf, part, off, &err), &err) == 0)
			saw(l, buf, part);
	}
	(void)saw_ret(l, img_vmstate_verify(img, snapshot, bytes < 65536 ? bytes : 65536, 0, &err), &err);
}

static int take_diff(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	uint64_t *state = ctx; /* where the last one ended, how many */

	FUZZ_CHECK(off >= state[0] && bytes > 0 && bytes <= UINT64_MAX - off);
	FUZZ_CHECK(kind >= IMG_DIFF_DATA && kind <= IMG_DIFF_UNMAPPED);
	state[0] = off + bytes;
	return ++state[1] > 200;
}

static void look_at_diff(struct looker *l, struct img *img, const char *a, const char *b)
{
	struct img_error err;
	uint64_t state[2] = { 0, 0 };

	(void)saw_ret(l, img_snapshot_diff(img, a, b, take_diff, state, &err), &err);
	saw(l, state, sizeof(state));
}

static void look_at_snapshot(struct looker *l, struct img *img, const struct img_snapshot *s)
{
	struct img_error err;
	struct img *view;

	FUZZ_CHECK(memchr(s->name, '\0', sizeof(s->name)));
	saw(l, s, sizeof(*s));
	if (saw_ret(l, img_snapshot_open(img, s->name, &view, &err), &err) == 0) {
		FUZZ_CHECK(!(img_caps(view) & IMG_CAP_WRITE));
		l->left = READ_TOTAL / 8;
		look_at_disk(l, view, 0, true);
		FUZZ_CHECK(fuzz_expect(img_close(view, &err), &err) == 0);
	}
	look_at_vmstate(l, img, s->name);
}

static void look_at_snapshots(struct looker *l, struct img *img)
{
	struct img_snapshot list[SNAPSHOTS_MAX];
	struct img_error err;
	size_t nr = 0;

	memset(list, 0, sizeof(list));
	if (saw_ret(l, img_snapshot_list(img, list, SNAPSHOTS_MAX, &nr, &err), &err) != 0)
		return;
	saw(l, &nr, sizeof(nr));
	for (size_t i = 0; i < nr && i < SNAPSHOTS_MAX; i++) {
		FUZZ_CHECK(i == 0 || list[i].id >= list[i - 1].id);
		look_at_snapshot(l, img, &list[i]);
		look_at_diff(l, img, i ? list[i - 1].name : NULL, list[i].name);
	}
	if (nr > 0)
		look_at_diff(l, img, list[0].name, NULL);
}

/* ---- bitmaps, information, check ---- */

static void look_at_bitmaps(struct looker *l, struct img *img)
{
	static struct img_bitmap list[BITMAPS_MAX];
	struct img_range r[CAP];
	struct img_error err;
	size_t nr = 0, found;

	if (saw_ret(l, img_bitmap_list(img, list, BITMAPS_MAX, &nr, &err), &err) != 0)
		return;
	for (size_t i = 0; i < nr && i < BITMAPS_MAX; i++) {
		uint64_t off = 0;

		FUZZ_CHECK(memchr(list[i].name, '\0', sizeof(list[i].name)));
		FUZZ_CHECK(list[i].name[0] != '\0' ||
			   list[i].flags & (IMG_BITMAP_INCONSISTENT | IMG_BITMAP_UNSUPPORTED));
		saw(l, list[i].name, strlen(list[i].name));
		for (unsigned calls = 0; calls < 8; calls++) {
			if (saw_ret(l, img_bitmap_ranges(img, list[i].name, off, r, CAP, &found, &err), &err) != 0 ||
			    found == 0)
				break;
			for (size_t k = 0; k < found; k++) {
				FUZZ_CHECK(r[k].off >= off && r[k].bytes > 0 && r[k].off < img_size(img));
				FUZZ_CHECK(r[k].bytes <= img_size(img) - r[k].off);
				off = r[k].off + r[k].bytes;
			}
			saw(l, r, found * sizeof(r[0]));
		}
	}
}

static void take_detail(void *ctx, const struct img_detail *d)
{
	struct looker *l = ctx;

	FUZZ_CHECK(d->key && d->key[0]);
	if (d->kind == IMG_DETAIL_TEXT)
		saw(l, d->text, strlen(d->text));
	else
		saw(l, &d->number, sizeof(d->number));
}

static void look_at_info(struct looker *l, struct img *img)
{
	struct img_measure measure;
	struct img_limits limits;
	struct img_error err;
	struct img_info info;

	memset(&info, 0, sizeof(info));
	img_limits(img, &limits);
	FUZZ_CHECK(limits.block_bytes >= 1 && img_size(img) <= INT64_MAX);
	if (saw_ret(l, img_info(img, &info, &err), &err) == 0) {
		FUZZ_CHECK(info.virtual_bytes == img_size(img) && strcmp(info.format, img_format(img)) == 0);
		FUZZ_CHECK(memchr(info.backing, '\0', sizeof(info.backing)));
		saw(l, info.backing, strlen(info.backing));
		saw(l, &info.generation, sizeof(info) - offsetof(struct img_info, generation));
	}
	(void)saw_ret(l, img_info_details(img, take_detail, l, &err), &err);
	if (img_size(img) <= (64u << 20) &&
	    saw_ret(l, img_measure(img, 0, img_format(img), NULL, &measure, &err), &err) == 0)
		FUZZ_CHECK(measure.required_bytes <= measure.fully_allocated_bytes);
}

static void take_finding(void *ctx, const struct img_finding *f)
{
	(void)ctx;
	FUZZ_CHECK(f->kind >= IMG_FINDING_DAMAGE && f->kind <= IMG_FINDING_NOTE);
	FUZZ_CHECK(memchr(f->msg, '\0', sizeof(f->msg)) && f->msg[0] != '\0' && !strpbrk(f->msg, "\r\n"));
	FUZZ_CHECK(!f->repaired);
}

static void look_by_check(struct looker *l, struct img *img, unsigned flags)
{
	struct img_error err;

	if (fuzz_expect(img_check(img, flags, take_finding, NULL, NULL, &l->out->check, &err), &err) == 0)
		l->out->checked = true;
}

/* ---- all of it ---- */

static void look_at(struct looker *l, struct img *img, unsigned flags)
{
	FUZZ_CHECK(img_chain_depth(img) >= 1 && !(img_caps(img) & IMG_CAP_WRITE));
	look_at_info(l, img);
	l->left = READ_TOTAL;
	look_at_disk(l, img, 0, true);
	look_at_disk(l, img, IMG_EXTENTS_OWN, false);
	look_at_vmstate(l, img, NULL);
	look_at_snapshots(l, img);
	look_at_bitmaps(l, img);
	if (!(flags & FUZZ_LOOK_NO_CHECK))
		look_by_check(l, img, flags & FUZZ_LOOK_METADATA ? IMG_CHECK_METADATA : 0);
}

void fuzz_look(struct fuzz_host *host, const char *format, const char *snapshot, unsigned flags, struct fuzz_look *out)
{
	unsigned open_flags = (flags & FUZZ_LOOK_NO_BACKING ? IMG_OPEN_NO_BACKING : 0u) |
			      (flags & FUZZ_LOOK_FORCE_SHARE ? IMG_OPEN_FORCE_SHARE : 0u);
	struct looker l = { .out = out };
	uint64_t before[2], after[2];
	struct img_error err;
	struct img *img;
	int ret;

	memset(out, 0, sizeof(*out));
	mem_content_hash(memfs_find(&host->fs, FUZZ_IMAGE), before);
	host->references = 0;
	ret = fuzz_open(host, format, snapshot, open_flags, flags & FUZZ_LOOK_NO_REFS ? IMG_REFS_NONE : IMG_REFS_ANY,
			&img);
	saw(&l, &ret, sizeof(ret));
	if (ret == 0) {
		out->opened = true;
		look_at(&l, img, flags);
		FUZZ_CHECK(fuzz_expect(img_close(img, &err), &err) == 0);
	}
	mem_content_hash(memfs_find(&host->fs, FUZZ_IMAGE), after);
	FUZZ_CHECK(memcmp(before, after, sizeof(before)) == 0);
}
