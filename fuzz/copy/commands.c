/* SPDX-License-Identifier: MIT */
/*
 * The commands of a scene. One may meet a host that fails at some call, or be cancelled at some report of progress;
 * then it says so, the source is as before, and of the target what libimg.h says: a part of the copy, or no file.
 */
#include <errno.h>
#include <string.h>

#include "copy.h"

struct command {
	unsigned kind, flags, number, threads;
	uint64_t fail_at;   /* call of the host; 0: none */
	unsigned cancel_at; /* report of progress; 0: none */
	unsigned reports;
	bool cancelled;
};

static int progress(void *ctx, uint64_t done, uint64_t total)
{
	struct command *c = ctx;

	FUZZ_CHECK(done <= total);
	c->cancelled = ++c->reports == c->cancel_at || c->cancelled;
	return c->cancelled;
}

static uint64_t max_u64_of(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* What came back, when something was to go wrong. True: it failed, and was allowed to. */
static bool failed(struct scene *s, const struct command *c, int ret, const struct img_error *err)
{
	bool host = s->plan.failed > 0;

	fault_plan_disarm(&s->plan);
	if (s->verbose)
		printf("  gives %d (%s), host failed: %d, cancelled: %d\n", ret, ret ? err->msg : "", host,
		       c->cancelled);
	if (ret == 0)
		return false;
	FUZZ_CHECK(err->code == ret && err->msg[0] && !strchr(err->msg, '\n'));
	FUZZ_CHECK(host || c->cancelled);
	FUZZ_CHECK(host || ret == IMG_E_CANCELLED);
	return true;
}

static void arm(struct scene *s, const struct command *c)
{
	fault_plan_arm(&s->plan, FAULT_ALL, c->fail_at, c->number & 0x80 ? ENOSPC : EIO, c->number & 0x40);
}

static struct img_copy_options copy_options(struct command *c, unsigned flags)
{
	return (struct img_copy_options){ .struct_size = sizeof(struct img_copy_options),
					  .threads = 1,
					  .flags = flags,
					  .progress = { progress, c } };
}

/* ---- copy -------------------------------------------------------------------------------------------------------- */

/* The handle may be poisoned: opened anew, it is whole, and what it holds counts from now on. */
static void reopen(struct scene *s, struct side *side)
{
	struct img_check_result result = { 0 };

	(void)img_close(side->img, NULL);
	side->img = scene_open(s, side->name, side->format, IMG_OPEN_WRITE);
	flat_free(&side->truth);
	scene_read(s, side->img, &side->truth);
	if (!(img_caps(side->img) & IMG_CAP_CHECK))
		return;
	FUZZ_CHECK(img_check(side->img, 0, NULL, NULL, NULL, &result, NULL) == 0 && result.damage == 0);
	FUZZ_CHECK(result.leaks == 0 || strcmp(side->format, "qcow2") == 0);
	if (result.leaks)
		FUZZ_CHECK(img_check(side->img, IMG_CHECK_REPAIR, NULL, NULL, NULL, &result, NULL) == 0);
}

/*
 * The source is open for writing: what it had not flushed goes to the host while it is copied from, and a failure of
 * that poisons it. It is read as before then, also by who goes on with it; only a new handle can be checked, and may
 * lack what was never flushed.
 */
static void settle_src(struct scene *s)
{
	struct flat seen;

	scene_read(s, s->src.img, &seen);
	FUZZ_CHECK(seen.size_bytes == s->src.truth.size_bytes &&
		   flat_diff(&seen, &s->src.truth, seen.size_bytes, 0) == UINT64_MAX);
	flat_free(&seen);
	if (img_flush(s->src.img, 0, NULL) != 0)
		reopen(s, &s->src);
}

/* Each byte is as before, or as it was to become. */
static void check_part(struct scene *s, const struct flat *old, const struct flat *new)
{
	struct flat seen;

	scene_read(s, s->dst.img, &seen);
	FUZZ_CHECK(seen.size_bytes == old->size_bytes);
	for (uint64_t off = 0; off < seen.size_bytes; off++)
		FUZZ_CHECK(flat_diff(&seen, old, 1, off) == UINT64_MAX || flat_diff(&seen, new, 1, off) == UINT64_MAX);
	flat_free(&seen);
}

static void run_copy(struct scene *s, struct command *c)
{
	unsigned flags = c->flags & (IMG_COPY_COMPRESS | IMG_COPY_NO_DETECT | IMG_COPY_KEEP_REST);
	struct img_copy_options opts;
	struct img_error err = { 0 };
	struct flat old = s->dst.truth, new;
	uint64_t n = s->src.truth.size_bytes;
	int ret;

	if (flat_is_zero(&old, old.size_bytes, 0))
		flags |= c->flags & IMG_COPY_TARGET_ZERO;
	opts = copy_options(c, flags);
	if (n > old.size_bytes) {
		FUZZ_CHECK(img_copy(s->src.img, s->dst.img, &opts, &err) == IMG_E_INVALID && err.msg[0]);
		return;
	}
	flat_copy(&new, &s->src.truth);
	flat_resize(&new, old.size_bytes);
	if (flags & IMG_COPY_KEEP_REST) {
		flat_read(&old, s->buf, old.size_bytes - n, n);
		flat_write(&new, s->buf, old.size_bytes - n, n);
	}
	arm(s, c);
	ret = img_copy(s->src.img, s->dst.img, &opts, &err);
	if (failed(s, c, ret, &err)) {
		/* Cancelled it has written what it had begun; where a write failed its range may hold anything. */
		if (ret == IMG_E_CANCELLED)
			check_part(s, &old, &new);
		reopen(s, &s->dst);
		flat_free(&new);
		return;
	}
	s->dst.truth = new;
	flat_free(&old);
	if (c->fail_at) /* what failed may have been a reservation: the handle need not be as good as new */
		reopen(s, &s->dst);
}

/* ---- convert ----------------------------------------------------------------------------------------------------- */

static void no_file_is_left(struct scene *s)
{
	for (unsigned i = 0; i < MEMFS_MAX_FILES; i++) {
		const char *name = s->fs.files[i].name;

		FUZZ_CHECK(!*name || strcmp(name, "backing") == 0 || strcmp(name, "src") == 0 ||
			   strcmp(name, "dst") == 0);
	}
}

static void check_snapshots(struct scene *s, struct img *made)
{
	struct img_snapshot list[MAX_SNAPS + 1];
	size_t nr = 0;

	FUZZ_CHECK(img_snapshot_list(made, list, MAX_SNAPS + 1, &nr, NULL) == 0 && nr == s->src.nr_snaps);
	for (size_t i = 0; i < nr; i++) {
		struct img *view = NULL;

		FUZZ_CHECK(strcmp(list[i].name, s->src.snap[i].name) == 0);
		FUZZ_CHECK(img_snapshot_open(made, list[i].name, &view, NULL) == 0);
		scene_check(s, view, &s->src.snap[i].truth);
		FUZZ_CHECK(img_close(view, NULL) == 0);
	}
}

static void check_made(struct scene *s, const char *format, unsigned flags, const struct img_measure *measure)
{
	struct img *made = scene_open(s, "made", format, 0);
	struct img_info info = { 0 };

	scene_check(s, made, &s->src.truth);
	if (flags & IMG_COPY_SNAPSHOTS)
		check_snapshots(s, made);
	FUZZ_CHECK(img_info(made, &info, NULL) == 0);
	if (measure)
		FUZZ_CHECK(info.file_bytes <= measure->required_bytes);
	FUZZ_CHECK(img_close(made, NULL) == 0);
}

struct told {
	struct scene *s;
	unsigned kinds; /* bits */
	unsigned flags; /* of the conversion */
};

static void hear(void *ctx, const struct img_left *left)
{
	struct told *t = ctx;

	FUZZ_CHECK(left->msg[0] && left->name[0]);
	FUZZ_CHECK(left->kind >= IMG_LEFT_SNAPSHOTS && left->kind <= IMG_LEFT_COMPRESSION);
	FUZZ_CHECK(!(t->kinds & 1u << left->kind));
	t->kinds |= 1u << left->kind;
	if (left->kind == IMG_LEFT_SNAPSHOTS)
		FUZZ_CHECK((left->nr == t->s->src.nr_snaps || left->nr == 0) && !(t->flags & IMG_COPY_SNAPSHOTS));
}

static void run_convert(struct scene *s, struct command *c)
{
	char options[96];
	const char *format = scene_format(c->number, options, sizeof(options));
	bool raw = strcmp(format, "raw") == 0;
	unsigned flags = c->flags & (IMG_COPY_COMPRESS | IMG_COPY_NO_DETECT |
				     (raw || side_is_raw(&s->src) ? 0 : IMG_COPY_SNAPSHOTS));
	struct img_create_options create = { .struct_size = sizeof(create), .format = format, .refs = IMG_REFS_ANY };
	struct img_copy_options opts = copy_options(c, flags);
	struct told told = { .s = s, .flags = flags };
	struct img_measure measure = { 0 };
	struct img_error err = { 0 };
	bool plain = !(flags & (IMG_COPY_SNAPSHOTS | IMG_COPY_COMPRESS)), backed = !raw && c->flags & 0x80;
	int ret;

	create.options = raw ? NULL : options;
	if (backed) {
		create.backing = s->backing.name;
		create.backing_format = s->backing.format;
	}
	FUZZ_CHECK(img_measure(s->src.img, 0, format, create.options, &measure, NULL) == 0);
	opts.left_behind = hear;
	opts.left_behind_ctx = &told;
	arm(s, c);
	ret = image_convert_env(s->src.img, "made", &create, &opts, &s->fs.env, &err);
	if (ret == IMG_E_UNSUPPORTED && flags & IMG_COPY_SNAPSHOTS && s->src.nr_snaps) {
		/* Sizes that differ, in a version that has one for all. */
		fault_plan_disarm(&s->plan);
		FUZZ_CHECK(err.msg[0]);
		no_file_is_left(s);
		return;
	}
	if (failed(s, c, ret, &err)) {
		no_file_is_left(s);
		return;
	}
	if (s->src.nr_snaps && !(flags & IMG_COPY_SNAPSHOTS)) /* or they could not be read */
		FUZZ_CHECK(told.kinds & 1u << IMG_LEFT_SNAPSHOTS);
	check_made(s, format, flags, plain && !backed ? &measure : NULL);
	memfs_remove(&s->fs, "made");
}

/* ---- compare, checksum ------------------------------------------------------------------------------------------- */

struct differences {
	struct flat marks; /* a byte of 1 in each sector that was named */
	uint64_t at;
	unsigned calls, stop_at;
};

static int take_difference(void *ctx, uint64_t off, uint64_t bytes)
{
	struct differences *d = ctx;
	uint8_t one = 1;

	FUZZ_CHECK(off % SECTOR == 0 && bytes > 0 && off >= d->at);
	FUZZ_CHECK(off > d->at || d->calls == 0); /* merged */
	for (uint64_t at = off; at < off + bytes; at += SECTOR)
		flat_write(&d->marks, &one, 1, at / SECTOR);
	d->at = off + bytes;
	return ++d->calls == d->stop_at;
}

static void check_differences(const struct scene *s, const struct differences *d, uint64_t longest)
{
	if (d->stop_at && d->calls >= d->stop_at)
		return;
	for (uint64_t off = 0; off < longest; off += SECTOR) {
		bool differs = flat_diff(&s->src.truth, &s->dst.truth, SECTOR, off) != UINT64_MAX;
		uint8_t named = 0;

		flat_read(&d->marks, &named, 1, off / SECTOR);
		FUZZ_CHECK(named == differs);
	}
}

static void run_compare(struct scene *s, struct command *c)
{
	uint64_t a = s->src.truth.size_bytes, b = s->dst.truth.size_bytes, longest = max_u64_of(a, b);
	uint64_t first = flat_diff(&s->src.truth, &s->dst.truth, longest, 0);
	struct img_progress report = { progress, c };
	struct img_compare_result result = { 0 };
	struct differences d = { .stop_at = c->number % 4 };
	struct img_error err = { 0 };
	bool all = c->flags & 1;
	int ret;

	flat_init(&d.marks, longest / SECTOR + 1);
	arm(s, c);
	ret = img_compare(s->src.img, s->dst.img, all ? take_difference : NULL, &d, &report, &result, &err);
	if (!failed(s, c, ret, &err)) {
		FUZZ_CHECK(result.same == (first == UINT64_MAX) && result.size_differs == (a != b));
		FUZZ_CHECK(result.same || result.first_diff == first);
		if (all)
			check_differences(s, &d, longest);
	}
	flat_free(&d.marks);
}

static void run_checksum(struct scene *s, struct command *c)
{
	enum img_digest algo = c->number & 1 ? IMG_DIGEST_SHA256 : IMG_DIGEST_XXH128;
	struct img_progress report = { progress, c };
	uint8_t got[32] = { 0 }, want[32] = { 0 };
	size_t nr_got = 0, nr_want = 0;
	struct img_error err = { 0 };
	int ret;

	arm(s, c);
	ret = img_checksum(s->src.img, algo, &report, got, &nr_got, &err);
	if (failed(s, c, ret, &err))
		return;
	digest_of(&s->src.truth, algo, want, &nr_want);
	FUZZ_CHECK(nr_got == nr_want && memcmp(got, want, nr_got) == 0);
}

/* A snapshot of the source takes its place, or it does again. */
static void run_view(struct scene *s, struct command *c)
{
	struct snap *snap = s->src.nr_snaps ? &s->src.snap[c->number % s->src.nr_snaps] : NULL;
	struct img *view = NULL;
	struct side src = s->src;

	if (!snap)
		return;
	FUZZ_CHECK(img_snapshot_open(s->src.img, snap->name, &view, NULL) == 0);
	s->src.img = view;
	s->src.truth = snap->truth;
	s->src.nr_snaps = 0;
	c->kind = c->flags % 3;
	switch (c->kind) {
	case 0: run_copy(s, c); break;
	case 1: run_compare(s, c); break;
	default: run_checksum(s, c); break;
	}
	s->src = src;
	FUZZ_CHECK(img_close(view, NULL) == 0);
}

void scene_command(struct scene *s, struct fuzz_input *in)
{
	static void (*const run[])(struct scene * s, struct command * c) = { run_copy, run_convert, run_compare,
									     run_checksum, run_view };
	static const char *const names[] = { "copy", "convert", "compare", "checksum", "view" };
	struct command c = { .kind = (unsigned)fuzz_take(in, 1), .flags = (unsigned)fuzz_take(in, 1) };
	unsigned trouble;

	c.number = (unsigned)fuzz_take(in, 1);
	trouble = (unsigned)fuzz_take(in, 1);
	if (trouble & 1)
		c.fail_at = 1 + trouble / 2 + (c.kind & 0x80 ? 128 : 0);
	else if (trouble & 2)
		c.cancel_at = 1 + trouble / 4;
	c.kind = c.kind % 128 % (sizeof(run) / sizeof(run[0]));
	if (s->verbose)
		printf("%s flags 0x%x number %u fail %llu cancel %u\n", names[c.kind], c.flags, c.number,
		       (unsigned long long)c.fail_at, c.cancel_at);
	run[c.kind](s, &c);
	if (c.fail_at)
		settle_src(s);
}
