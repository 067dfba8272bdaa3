/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps across crashes. Sessions of random operations on a small qcow2 image in memory: each opens the image,
 * changes its content and its bitmaps, and closes it. Every state in which a power failure during a session could have
 * left the disk is opened and judged:
 *
 *  - the check finds nothing but leaks;
 *  - the bitmaps are those before or after the operation that was running;
 *  - one that is not inconsistent has every granule that was changed while it was enabled: it may say too much, never
 * too little.
 *
 * After a session that ended well they are just what the model says.
 *
 *   crash_bitmaps [--rounds N] [--seed N]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "states.h"

#define FILE_NAME    "b.qcow2"
#define SECTOR	     512u
#define MAX_SECTORS  512u
#define NR_BITMAPS   3u
#define OPS	     4u
#define SESSIONS     5u
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* Per sector, which is also the smallest granule. */
struct bitmap {
	bool exists, enabled;
	unsigned granule;	    /* in sectors */
	bool dirty[MAX_SECTORS];    /* just so after a clean end */
	uint8_t since[MAX_SECTORS]; /* enabled: content when the present time of recording began */
	bool before[MAX_SECTORS];   /* dirty when it began */
};

struct model {
	unsigned sectors;
	uint8_t content[MAX_SECTORS]; /* what each sector is filled with */
	bool has_snapshot;
	unsigned snapshot_sectors;
	uint8_t snapshot[MAX_SECTORS];
	struct bitmap b[NR_BITMAPS];
};

struct session {
	uint64_t seed;
	uint64_t random;
	struct model before, after; /* the operation that runs */
	char log[1024];
	uint64_t states;
	bool failed;
};

static uint32_t pick(struct session *s, uint32_t below)
{
	s->random = s->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(s->random >> 33) % below;
}

static const char *name_of(unsigned i)
{
	static const char *const names[NR_BITMAPS] = { "one", "two", "a longer name, so that entries differ" };

	return names[i];
}

static void say(struct session *s, const char *text, unsigned a, unsigned b)
{
	size_t at = strlen(s->log);

	snprintf(s->log + at, sizeof(s->log) - at, " %s(%u,%u)", text, a, b);
}

static void complain(struct session *s, const char *what, unsigned bitmap, unsigned sector)
{
	printf("seed %" PRIu64 ":%s\n  %s (bitmap '%s', sector %u)\n", s->seed, s->log, what, name_of(bitmap), sector);
	s->failed = true;
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

static void mark(struct bitmap *b, const struct model *m, unsigned first, unsigned nr)
{
	for (unsigned i = first / b->granule * b->granule; i < first + nr || i % b->granule != 0; i++) {
		if (i >= m->sectors)
			break;
		b->dirty[i] = true;
	}
}

static void begin_recording(struct bitmap *b, const struct model *m)
{
	memcpy(b->since, m->content, sizeof(b->since));
	memcpy(b->before, b->dirty, sizeof(b->before));
}

static void change(struct model *m, unsigned first, unsigned nr, const uint8_t *fill, uint8_t byte)
{
	for (unsigned i = first; i < first + nr; i++)
		m->content[i] = fill ? fill[i] : byte;
	for (unsigned k = 0; k < NR_BITMAPS; k++) {
		if (m->b[k].exists && m->b[k].enabled)
			mark(&m->b[k], m, first, nr);
	}
}

/* What a disk grows by is zeros, whatever the last backup holds there of a time when it was longer. */
static void set_size(struct model *m, unsigned sectors)
{
	unsigned was = m->sectors;

	m->sectors = sectors;
	for (unsigned i = sectors; i < MAX_SECTORS; i++) {
		m->content[i] = 0;
		for (unsigned k = 0; k < NR_BITMAPS; k++)
			m->b[k].dirty[i] = false;
	}
	for (unsigned k = 0; k < NR_BITMAPS; k++) {
		struct bitmap *b = &m->b[k];

		/* the last granule may have been cut: it is dirty as a whole or not at all */
		for (unsigned i = was; b->exists && i < sectors && i % b->granule != 0; i++)
			b->dirty[i] = b->dirty[i - 1];
		if (b->exists && b->enabled && was < sectors)
			mark(b, m, was, sectors - was);
	}
}

/* ---- operations: on the image and on s->after -------------------------------------------------------------------- */

static int op_write(struct session *s, struct img *img, struct img_error *err)
{
	static uint8_t buf[16 * SECTOR];
	struct model *m = &s->after;
	unsigned nr = 1 + pick(s, 16), first = pick(s, m->sectors), zero = pick(s, 4) == 0;
	uint8_t byte = zero ? 0 : (uint8_t)(1 + pick(s, 255));

	if (first + nr > m->sectors)
		nr = m->sectors - first;
	say(s, zero ? "zero" : "write", first, nr);
	change(m, first, nr, NULL, byte);
	memset(buf, byte, sizeof(buf));
	if (zero)
		return img_zero(img, nr * SECTOR, first * SECTOR, 0, err);
	return img_pwrite(img, buf, nr * SECTOR, first * SECTOR, 0, err);
}

static int op_flush(struct session *s, struct img *img, struct img_error *err)
{
	say(s, "flush", 0, 0);
	return img_flush(img, 0, err);
}

static int op_bitmap(struct session *s, struct img *img, struct img_error *err)
{
	struct model *m = &s->after;
	unsigned k = pick(s, NR_BITMAPS), what = pick(s, 5), other = pick(s, NR_BITMAPS);
	struct bitmap *b = &m->b[k];

	if (!b->exists) {
		*b = (struct bitmap){ .exists = true, .enabled = pick(s, 3) > 0, .granule = 1u << pick(s, 4) };
		begin_recording(b, m);
		say(s, b->enabled ? "add" : "add-disabled", k, b->granule);
		return img_bitmap_add(img, name_of(k), b->granule * SECTOR, b->enabled ? 0 : IMG_BITMAP_ADD_DISABLED,
				      err);
	}
	switch (what) {
	case 0:
		say(s, "remove", k, 0);
		*b = (struct bitmap){ .exists = false };
		return img_bitmap_remove(img, name_of(k), err);
	case 1:
		say(s, "enable", k, 0);
		if (!b->enabled)
			begin_recording(b, m);
		b->enabled = true;
		return img_bitmap_enable(img, name_of(k), err);
	case 2:
		say(s, "disable", k, 0);
		b->enabled = false;
		return img_bitmap_disable(img, name_of(k), err);
	case 3:
		say(s, "clear", k, 0);
		memset(b->dirty, 0, sizeof(b->dirty));
		begin_recording(b, m);
		return img_bitmap_clear(img, name_of(k), err);
	default:
		if (!m->b[other].exists)
			return 0;
		say(s, "merge", k, other);
		for (unsigned i = 0; i < m->sectors; i++) {
			if (m->b[other].dirty[i])
				mark(b, m, i, 1);
		}
		return img_bitmap_merge(img, name_of(k), NULL, name_of(other), err);
	}
}

static int op_resize(struct session *s, struct img *img, struct img_error *err)
{
	unsigned sectors = 1 + pick(s, MAX_SECTORS);

	say(s, "resize", sectors, 0);
	set_size(&s->after, sectors);
	return img_resize(img, sectors * SECTOR, IMG_RESIZE_SHRINK, err);
}

static int op_snapshot(struct session *s, struct img *img, struct img_error *err)
{
	struct model *m = &s->after;

	if (!m->has_snapshot) {
		say(s, "snapshot", 0, 0);
		m->has_snapshot = true;
		m->snapshot_sectors = m->sectors;
		memcpy(m->snapshot, m->content, sizeof(m->snapshot));
		return img_snapshot_create(img, "s", 0, err);
	}
	if (pick(s, 3) == 0) {
		say(s, "delete", 0, 0);
		m->has_snapshot = false;
		return img_snapshot_delete(img, "s", err);
	}
	say(s, "revert", 0, 0);
	if (m->snapshot_sectors != m->sectors)
		set_size(m, m->snapshot_sectors);
	change(m, 0, m->sectors, m->snapshot, 0);
	return img_snapshot_revert(img, "s", err);
}

/* ---- judges ------------------------------------------------------------------------------------------------------ */

/* By sector what a bitmap of the image says; false: it cannot be used. */
static bool dirty_of(struct img *img, unsigned k, bool *dirty)
{
	struct img_range ranges[16];
	uint64_t off = 0;
	size_t nr = ARRAY_LEN(ranges);

	memset(dirty, 0, MAX_SECTORS * sizeof(*dirty));
	while (nr == ARRAY_LEN(ranges)) {
		if (img_bitmap_ranges(img, name_of(k), off, ranges, ARRAY_LEN(ranges), &nr, NULL) != 0)
			return false;
		for (size_t i = 0; i < nr; i++) {
			off = ranges[i].off + ranges[i].bytes;
			for (uint64_t at = ranges[i].off; at < off; at += SECTOR)
				dirty[at / SECTOR] = true;
		}
	}
	return true;
}

static bool is_listed(struct img *img, unsigned k)
{
	static struct img_bitmap list[NR_BITMAPS + 1];
	size_t nr = 0;

	if (img_bitmap_list(img, list, ARRAY_LEN(list), &nr, NULL) != 0 || nr > NR_BITMAPS)
		return false;
	for (size_t i = 0; i < nr; i++) {
		if (strcmp(list[i].name, name_of(k)) == 0)
			return true;
	}
	return false;
}

/* Does a consistent bitmap say enough, by this version of the truth? Returns the first sector that is missing. */
static unsigned first_missing(const struct bitmap *b, const bool *dirty, const uint8_t *content, unsigned sectors)
{
	for (unsigned i = 0; i < sectors; i++) {
		bool must = b->enabled ? b->before[i] || content[i] != b->since[i] : b->dirty[i];

		if (must && !dirty[i])
			return i;
	}
	return UINT32_MAX;
}

static void judge_bitmap(struct session *s, struct img *img, unsigned k, const uint8_t *content, unsigned sectors)
{
	const struct bitmap *old = &s->before.b[k], *new = &s->after.b[k];
	bool listed = is_listed(img, k), dirty[MAX_SECTORS];
	unsigned missing = UINT32_MAX;

	if (listed ? !old->exists && !new->exists : old->exists &&new->exists) {
		complain(s, listed ? "it should not be there" : "it is gone", k, 0);
		return;
	}
	if (!listed || !dirty_of(img, k, dirty))
		return;
	if (old->exists)
		missing = first_missing(old, dirty, content, sectors);
	if (new->exists && (!old->exists || missing != UINT32_MAX))
		missing = first_missing(new, dirty, content, sectors);
	if (missing != UINT32_MAX)
		complain(s, "it says too little", k, missing);
}

static int judge(void *ctx, uint64_t number, struct memhost *disk)
{
	struct session *s = ctx;
	struct img_open_options o = { .struct_size = sizeof(o), .format = "qcow2" };
	struct img_error err = { .code = IMG_OK };
	struct img_check_result check;
	static uint8_t data[MAX_SECTORS * SECTOR], content[MAX_SECTORS];
	struct img *img;
	unsigned sectors;

	(void)number;
	s->states++;
	if (image_open_env(FILE_NAME, &o, &disk->env, &img, &err) != 0) {
		complain(s, err.msg, 0, 0);
		return 1;
	}
	sectors = (unsigned)(img_size(img) / SECTOR);
	if (img_check(img, 0, NULL, NULL, NULL, &check, &err) != 0 || check.damage > 0)
		complain(s, "the check finds damage", 0, 0);
	if (img_pread(img, data, sectors * SECTOR, 0, 0, &err) != 0)
		complain(s, err.msg, 0, 0);
	for (unsigned i = 0; i < sectors; i++)
		content[i] = data[i * SECTOR];
	if (sectors > s->before.sectors)
		sectors = s->before.sectors;
	if (sectors > s->after.sectors)
		sectors = s->after.sectors;
	for (unsigned k = 0; k < NR_BITMAPS && !s->failed; k++)
		judge_bitmap(s, img, k, content, sectors);
	img_close(img, NULL);
	return s->failed;
}

/* After a clean end. */
static void judge_end(struct session *s, struct memhost *host)
{
	struct img_open_options o = { .struct_size = sizeof(o), .format = "qcow2" };
	struct img_error err = { .code = IMG_OK };
	struct img_check_result check = { 0 };
	struct img *img;

	if (image_open_env(FILE_NAME, &o, &host->env, &img, &err) != 0) {
		complain(s, err.msg, 0, 0);
		return;
	}
	if (img_check(img, 0, NULL, NULL, NULL, &check, &err) != 0 || check.damage + check.leaks > 0)
		complain(s, "the check finds damage or leaks after a clean end", 0, 0);
	for (unsigned k = 0; k < NR_BITMAPS && !s->failed; k++) {
		const struct bitmap *b = &s->after.b[k];
		bool dirty[MAX_SECTORS];

		if (!b->exists)
			continue;
		if (!dirty_of(img, k, dirty)) {
			complain(s, "it cannot be used after a clean end", k, 0);
			break;
		}
		for (unsigned i = 0; i < s->after.sectors && !s->failed; i++) {
			if (dirty[i] != b->dirty[i])
				complain(s, dirty[i] ? "it says too much" : "it says too little at the end", k, i);
		}
	}
	img_close(img, NULL);
}

/* Every state of the log from first on, the last operation's. */
static void judge_states(struct session *s, struct walker *w, size_t first)
{
	size_t nr = crash_log_nr(w->log);

	for (size_t i = first; i < nr && !s->failed; i++) {
		if (crash_log_at(w->log, i)->kind != CRASH_FLUSH)
			continue;
		walker_advance(w, i);
		walker_states(w, STATES_FEW, false, judge, s);
	}
	if (s->failed)
		return;
	walker_advance(w, nr);
	walker_states(w, STATES_FEW, false, judge, s);
}

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

static int run_ops(struct session *s, struct memhost *host, struct walker *w, struct img_error *err)
{
	static int (*const ops[])(struct session *, struct img *, struct img_error *) = {
		op_write, op_write, op_write, op_flush, op_bitmap, op_bitmap, op_bitmap, op_resize, op_snapshot,
	};
	struct img_open_options o = { .struct_size = sizeof(o), .format = "qcow2", .flags = IMG_OPEN_WRITE };
	size_t first = 0;
	struct img *img;
	int ret = image_open_env(FILE_NAME, &o, &host->env, &img, err);

	say(s, "open", 0, 0);
	for (unsigned i = 0; ret == 0 && !s->failed && i < OPS; i++) {
		s->before = s->after;
		ret = ops[pick(s, ARRAY_LEN(ops))](s, img, err);
		if (ret == 0)
			judge_states(s, w, first);
		first = crash_log_nr(host->log);
	}
	if (ret != 0 || s->failed) {
		img_close(img, NULL);
		return ret;
	}
	s->before = s->after;
	say(s, "close", 0, 0);
	ret = img_close(img, err);
	if (ret == 0)
		judge_states(s, w, first);
	return ret;
}

static void run_session(struct session *s, struct memhost *host)
{
	struct img_error err = { .code = IMG_OK };
	struct memhost start;
	struct walker w;

	memhost_clone(&start, host);
	host->log = crash_log_new();
	if (!host->log)
		abort();
	walker_init(&w, &start, host->log, host);
	if (run_ops(s, host, &w, &err) != 0)
		complain(s, err.msg, 0, 0);
	walker_destroy(&w);
	crash_log_free(host->log);
	host->log = NULL;
	memhost_destroy(&start);
	if (!s->failed)
		judge_end(s, host);
}

static bool run_round(uint64_t seed, uint64_t *states)
{
	struct session *s = calloc(1, sizeof(*s));
	struct img_create_options create = { .struct_size = sizeof(create), .format = "qcow2" };
	struct img_error err = { .code = IMG_OK };
	struct memhost host;
	bool failed;

	if (!s)
		abort();
	s->seed = seed;
	s->random = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
	create.options = pick(s, 2) ? "cluster_size=512" : "cluster_size=4096";
	s->after.sectors = 1 + pick(s, MAX_SECTORS);
	create.size_bytes = s->after.sectors * SECTOR;
	memhost_init(&host);
	if (image_create_env(FILE_NAME, &create, &host.env, &err) != 0) {
		complain(s, err.msg, 0, 0);
	} else {
		for (unsigned i = 0; i < SESSIONS && !s->failed; i++)
			run_session(s, &host);
	}
	memhost_destroy(&host);
	*states += s->states;
	failed = s->failed;
	free(s);
	return !failed;
}

int main(int argc, char **argv)
{
	uint64_t rounds = 100, seed = 1, states = 0, bad = 0;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--rounds") == 0)
			rounds = strtoull(argv[i + 1], NULL, 0);
		else if (strcmp(argv[i], "--seed") == 0)
			seed = strtoull(argv[i + 1], NULL, 0);
	}
	for (uint64_t i = 0; i < rounds; i++)
		bad += !run_round(seed + i, &states);
	printf("crash_bitmaps: %" PRIu64 " rounds from seed %" PRIu64 ", %" PRIu64 " states: %" PRIu64 " failures\n",
	       rounds, seed, states, bad);
	return bad ? 1 : 0;
}
