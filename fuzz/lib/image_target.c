/* SPDX-License-Identifier: MIT */
/*
 * An image from a stranger: looked at, twice, then changed as somebody would who trusts it.
 *
 * Beyond crashes: two looks see the same, and leave its bytes alone (look.c); what a session wrote is there when the
 * image is opened again; a session that ended well leaves an image that opens; and if a check found nothing wrong
 * before, it finds nothing wrong afterwards, the session ends well, and what it did not write is as it was.
 */
#include "image_target.h"

#include <string.h>

#include "fixed.h"
#include "shadow.h"

#define WRITE_BYTES (12u << 10)
#define NR_CHANGES  6u

/* What the options of an input mean. */
enum {
	OPTION_FORCE_FORMAT = 1u << 0,
	OPTION_LOOK_SHIFT = 1, /* enum fuzz_look_flags, four bits */
	OPTION_NAME_SHIFT = 5, /* which snapshot is opened */
	OPTION_SNAPSHOT = 1u << 8,
	OPTION_VMSTATE = 1u << 9,
	OPTION_RESIZE = 1u << 10,
	OPTION_DELETE = 1u << 11,
	OPTION_BULK = 1u << 12,
	OPTION_BITMAP = 1u << 13,
	OPTION_SEED_SHIFT = 14,
};

struct session {
	struct fuzz_host *host;
	struct img *img;
	struct shadow *shadow;
	uint64_t random;
	bool trusted; /* a check found nothing */
	/*
	 * Checksums were made right after changes. In limg a tree may then lack what its child's births say is shared
	 * with it, which a check does not look for: what the child gives up is not freed. Space is lost, nothing else.
	 */
	bool made_fit;
	bool failed; /* something was refused: what else is promised is in the parts */
};

static uint64_t below(struct session *s, uint64_t limit)
{
	s->random = s->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return limit ? (s->random >> 20) % limit : 0;
}

/* ---- changes ---- */

/* Of a trusted image the format may lack something, or be full; it is not damaged, and nothing poisons it. */
static bool done(struct session *s, int ret, const struct img_error *err)
{
	fuzz_expect(ret, err);
	if (s->trusted)
		FUZZ_CHECK(ret != IMG_E_POISONED && ret != IMG_E_IO && ret != IMG_E_READONLY);
	s->failed |= ret != 0;
	return ret == 0;
}

static void change(struct session *s, unsigned i)
{
	static uint8_t buf[WRITE_BYTES];
	uint64_t room = img_size(s->img) < SHADOW_BYTES ? img_size(s->img) : SHADOW_BYTES;
	uint64_t off = below(s, room), bytes = 1 + below(s, WRITE_BYTES);
	unsigned kind = (unsigned)below(s, 6);
	struct img_error err;
	int ret;

	if (room == 0)
		return;
	if (kind == 5 && room >= WRITE_BYTES) {
		/* a whole unit of a small kind */
		off = off & ~UINT64_C(4095);
		bytes = 8192;
	}
	bytes = bytes < room - off ? bytes : room - off;
	make_pattern(buf, bytes, off, 100 + i);
	if (kind < 3 || kind == 5) {
		ret = img_pwrite(s->img, buf, bytes, off, kind == 5 ? IMG_IO_COMPRESS : 0, &err);
		shadow_write(s->shadow, done(s, ret, &err) ? buf : NULL, bytes, off);
	} else if (kind == 3) {
		memset(buf, 0, bytes);
		ret = img_zero(s->img, bytes, off, 0, &err);
		shadow_write(s->shadow, done(s, ret, &err) ? buf : NULL, bytes, off);
	} else {
		(void)done(s, img_discard(s->img, bytes, off, 0, &err), &err);
		shadow_write(s->shadow, NULL, bytes, off);
	}
}

static void change_snapshots(struct session *s, unsigned options)
{
	struct img_snapshot list[2];
	struct img_error err;
	size_t nr = 0;

	if (options & OPTION_VMSTATE)
		(void)done(s, img_vmstate_write(s->img, "some state", 10, 5000, &err), &err);
	if (options & OPTION_SNAPSHOT)
		(void)done(s,
			   img_snapshot_create(s->img, "fuzz", options & OPTION_VMSTATE ? IMG_SNAPSHOT_VMSTATE : 0u,
					       &err),
			   &err);
	if (options & OPTION_DELETE && done(s, img_snapshot_list(s->img, list, 2, &nr, &err), &err) && nr > 0)
		(void)done(s, img_snapshot_delete(s->img, list[nr > 1].name, &err), &err);
	if (options & OPTION_BITMAP)
		(void)done(s, img_bitmap_add(s->img, "fuzz", 0, 0, &err), &err);
}

static void resize(struct session *s, uint64_t size, unsigned flags)
{
	struct img_error err;

	if (size > INT64_MAX / 2 || !done(s, img_resize(s->img, size, flags, &err), &err))
		return;
	FUZZ_CHECK(img_size(s->img) == size);
	if (size < s->shadow->bytes)
		s->shadow->bytes = size;
}

static void revert(struct session *s)
{
	struct img_snapshot list[1];
	struct img_error err;
	size_t nr = 0;

	if (!done(s, img_snapshot_list(s->img, list, 1, &nr, &err), &err) || nr == 0)
		return;
	(void)done(s, img_snapshot_rename(s->img, list[0].name, "renamed", &err), &err);
	if (done(s, img_snapshot_list(s->img, list, 1, &nr, &err), &err))
		(void)done(s, img_snapshot_revert(s->img, list[0].name, &err), &err);
	shadow_read(s->shadow, s->img);
}

/* Most are refused by most images. */
static const char *const amendments[] = {
	"compat=1.1,lazy_refcounts=on",
	"compat=0.10",
	"lazy_refcounts=off",
	"size=1M",
	"cluster_size=64K",
	"refcount_bits=64",
	"compression_type=zstd",
	"data_file_raw=off",
	"extended_l2=on",
	"preallocation=full",
};
#define NR_AMENDMENTS (sizeof(amendments) / sizeof(amendments[0]))

static void change_beside(struct session *s)
{
	struct img_error err;

	(void)done(s, img_bitmap_add(s->img, "other", 65536, IMG_BITMAP_ADD_DISABLED, &err), &err);
	(void)done(s, img_bitmap_merge(s->img, "other", NULL, "fuzz", &err), &err);
	(void)done(s, img_bitmap_enable(s->img, "other", &err), &err);
	(void)done(s, img_bitmap_clear(s->img, "fuzz", &err), &err);
	(void)done(s, img_bitmap_remove(s->img, "other", &err), &err);
	(void)done(s, img_vmstate_write(s->img, "more state", 10, 100000, &err), &err);
	(void)done(s, img_vmstate_zero(s->img, 8192, 3000, &err), &err);
	(void)done(s, img_vmstate_resize(s->img, 70000, &err), &err);
	for (unsigned i = 0; strcmp(img_format(s->img), "qcow2") == 0 && i < 2; i++)
		(void)done(s, img_amend(s->img, amendments[below(s, NR_AMENDMENTS)], &err), &err);
}

/* What the seed of an input adds. */
static void change_more(struct session *s, unsigned seed)
{
	struct img_error err;

	if (seed == 1)
		revert(s);
	else if (seed == 2)
		change_beside(s);
	else if (seed == 3 && done(s, img_flatten(s->img, NULL, &err), &err))
		resize(s, img_size(s->img) / 1024 * 512, IMG_RESIZE_SHRINK);
}

static void change_all(struct session *s, unsigned options)
{
	struct img_error err;

	for (unsigned i = 0; i < NR_CHANGES / 2; i++)
		change(s, i);
	(void)done(s, img_flush(s->img, 0, &err), &err);
	change_snapshots(s, options);
	if (options & OPTION_RESIZE)
		resize(s, img_size(s->img) / 512 * 512 + 65536, 0);
	change_more(s, options >> OPTION_SEED_SHIFT);
	for (unsigned i = NR_CHANGES / 2; i < NR_CHANGES; i++)
		change(s, i);
	if (s->trusted)
		shadow_compare(s->shadow, s->img);
	(void)done(s, img_flush(s->img, options & OPTION_BULK ? IMG_FLUSH_CHECKPOINT : 0, &err), &err);
}

/* ---- a writer's session, and what it leaves ---- */

static void judge(struct session *s, const char *format, const struct img_check_result *before)
{
	struct img_check_result after;
	struct img_error err;

	FUZZ_CHECK(fuzz_open(s->host, format, NULL, 0, IMG_REFS_ANY, &s->img) == 0);
	if (s->trusted) {
		shadow_compare(s->shadow, s->img);
		if (img_caps(s->img) & IMG_CAP_CHECK && img_check(s->img, 0, NULL, NULL, NULL, &after, &err) == 0) {
			FUZZ_CHECK(after.damage == 0 && after.redundancy == 0);
			FUZZ_CHECK(s->made_fit || after.leaks <= before->leaks);
		}
	}
	FUZZ_CHECK(fuzz_expect(img_close(s->img, &err), &err) == 0);
}

static void write_session(struct fuzz_host *host, const char *format, const struct fuzz_case *c,
			  const struct fuzz_look *look)
{
	static struct shadow shadow;
	const struct img_check_result *check = &look->check;
	struct session s = { .host = host, .shadow = &shadow, .made_fit = c->fix != 0 };
	unsigned options = c->options;
	struct img_error err;
	int ret;

	if (fuzz_open(host, format, NULL, 0, IMG_REFS_ANY, &s.img) != 0)
		return;
	s.random = 1 + (options >> OPTION_SEED_SHIFT);
	shadow_read(&shadow, s.img);
	FUZZ_CHECK(fuzz_expect(img_close(s.img, &err), &err) == 0);
	/* Only a check of all data, through the same format, is trusted. */
	/* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): only fuzz_open() takes no format for an answer */
	s.trusted = (look->checked && check->damage == 0 && check->redundancy == 0) || strcmp(format, "raw") == 0;
	if (fuzz_open(host, format, NULL, IMG_OPEN_WRITE | (options & OPTION_BULK ? IMG_OPEN_BULK : 0u), IMG_REFS_ANY,
		      &s.img) != 0)
		return;
	change_all(&s, options);
	ret = fuzz_expect(img_close(s.img, &err), &err);
	if (s.trusted)
		FUZZ_CHECK(ret == 0);
	if (ret == 0)
		judge(&s, format, check);
}

void fuzz_image(const char *format, const uint8_t *data, size_t bytes)
{
	static const char *const names[] = { NULL, NULL, NULL, NULL, "first", "second", "s", "fuzz" };
	struct fuzz_look first, second;
	struct fuzz_host host;
	struct fuzz_case c;
	const char *forced;
	unsigned flags;

	fuzz_case_parse(&c, data, bytes);
	fuzz_host_init(&host);
	fuzz_case_put(&c, fuzz_template_get(format, c.number), &host.fs);
	if (fuzz_format_find(format)->driver)
		format = fuzz_format_find(format)->driver;
	forced = c.options & OPTION_FORCE_FORMAT ? format : NULL;
	flags = c.options >> OPTION_LOOK_SHIFT & 15;
	fixed_reset();
	fuzz_look(&host, forced, names[c.options >> OPTION_NAME_SHIFT & 7], flags, &first);
	fixed_reset();
	fuzz_look(&host, forced, names[c.options >> OPTION_NAME_SHIFT & 7], flags | FUZZ_LOOK_NO_CHECK, &second);
	FUZZ_CHECK(first.digest == second.digest && first.opened == second.opened);
	if (flags || c.options >> OPTION_NAME_SHIFT & 7 || !forced)
		fuzz_look(&host, format, NULL, 0, &first);
	if (first.opened)
		write_session(&host, format, &c, &first);
	fuzz_host_destroy(&host);
}
