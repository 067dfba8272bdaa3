/* SPDX-License-Identifier: MIT */
/*
 * A damaged image that is checked, repaired, and checked again, as imgtool check --repair does.
 *
 * Beyond crashes: a check alone changes nothing; a repair that claims to have mended everything leaves nothing for the
 * next check to find, and nothing to do for a second repair, which changes no byte; what could be read before reads the
 * same afterwards, whatever it claims. (Where it claims less the file may have grown, and what had led beyond its end
 * leads to something that can be judged: more may be found.)
 */
#include "repair_target.h"

#include <string.h>

#include "fixed.h"
#include "shadow.h"

enum {
	OPTION_METADATA = 1u << 0, /* the checks look at no data */
	OPTION_IN_USE = 1u << 1,   /* repair what is open for use, not only for the check */
	OPTION_WRITE = 1u << 2,	   /* something is written before, and not flushed */
};

struct findings {
	uint64_t damage, leaks, redundancy, repaired;
	bool ended;
	bool shared; /* something has two uses, so that data may be metadata, and change with it */
};

static uint64_t total(const struct findings *f)
{
	return f->damage + f->leaks + f->redundancy;
}

static void take_finding(void *ctx, const struct img_finding *f)
{
	struct findings *out = ctx;

	out->shared |= strcmp(f->rule, "QCOW2-14") == 0 || strcmp(f->rule, "LIMG-9") == 0;
	FUZZ_CHECK(f->kind >= IMG_FINDING_DAMAGE && f->kind <= IMG_FINDING_NOTE);
	FUZZ_CHECK(f->msg[0] != '\0' && !strpbrk(f->msg, "\r\n"));
}

static void check(struct img *img, unsigned flags, struct findings *out)
{
	struct img_check_result r;
	struct img_error err;

	out->shared = false;
	out->ended = fuzz_expect(img_check(img, flags, take_finding, out, NULL, &r, &err), &err) == 0;
	out->damage = r.damage;
	out->leaks = r.leaks;
	out->redundancy = r.redundancy;
	out->repaired = r.repaired;
	FUZZ_CHECK(flags & IMG_CHECK_REPAIR || r.repaired == 0);
	if (out->ended)
		FUZZ_CHECK(r.repaired <= total(out));
}

static struct mem_content *file(struct fuzz_host *host)
{
	return memfs_find(&host->fs, FUZZ_IMAGE);
}

/* False where it cannot even be opened for that. */
static bool only_check(struct fuzz_host *host, const char *format, unsigned flags, struct findings *out)
{
	uint64_t before[2], after[2];
	struct img_error err;
	struct img *img;

	mem_content_hash(file(host), before);
	fixed_reset();
	if (fuzz_open_for_check(host, format, 0, &img) != 0)
		return false;
	check(img, flags, out);
	FUZZ_CHECK(fuzz_expect(img_close(img, &err), &err) == 0);
	mem_content_hash(file(host), after);
	FUZZ_CHECK(memcmp(before, after, sizeof(before)) == 0);
	return true;
}

static bool repair(struct fuzz_host *host, const char *format, unsigned options, struct shadow *sh,
		   struct findings *out)
{
	unsigned flags = IMG_CHECK_REPAIR | (options & OPTION_METADATA ? IMG_CHECK_METADATA : 0u);
	struct img_error err;
	struct img *img;
	int ret;

	fixed_reset();
	if (options & OPTION_IN_USE)
		ret = fuzz_open(host, format, NULL, IMG_OPEN_WRITE, IMG_REFS_ANY, &img);
	else
		ret = fuzz_open_for_check(host, format, IMG_OPEN_WRITE, &img);
	if (ret != 0)
		return false;
	if (sh && options & OPTION_IN_USE && options & OPTION_WRITE && img_size(img) >= 3000) {
		static const uint8_t data[2000] = { 1, 2, 3 };

		ret = fuzz_expect(img_pwrite(img, data, sizeof(data), 1000, 0, &err), &err);
		shadow_write(sh, ret == 0 ? data : NULL, sizeof(data), 1000);
	}
	check(img, flags, out);
	ret = fuzz_expect(img_close(img, &err), &err);
	return ret == 0 && out->ended;
}

/* False: it does not open, or not all of it is trusted to be what it was. */
static bool read_shadow(struct fuzz_host *host, const char *format, struct shadow *sh)
{
	struct img_error err;
	struct img *img;

	fixed_reset();
	if (fuzz_open(host, format, NULL, 0, IMG_REFS_ANY, &img) != 0)
		return false;
	shadow_read(sh, img);
	FUZZ_CHECK(fuzz_expect(img_close(img, &err), &err) == 0);
	return true;
}

static void compare_shadow(struct fuzz_host *host, const char *format, const struct shadow *sh)
{
	struct img_error err;
	struct img *img;

	fixed_reset();
	FUZZ_CHECK(fuzz_open(host, format, NULL, 0, IMG_REFS_ANY, &img) == 0);
	shadow_compare(sh, img);
	FUZZ_CHECK(fuzz_expect(img_close(img, &err), &err) == 0);
}

static void repair_again(struct fuzz_host *host, const char *format, unsigned options)
{
	uint64_t before[2], after[2];
	struct findings again;

	mem_content_hash(file(host), before);
	FUZZ_CHECK(repair(host, format, options & ~(unsigned)(OPTION_WRITE | OPTION_IN_USE), NULL, &again));
	FUZZ_CHECK(again.repaired == 0);
	mem_content_hash(file(host), after);
	FUZZ_CHECK(memcmp(before, after, sizeof(before)) == 0);
}

void fuzz_repair(const char *format, const uint8_t *data, size_t bytes)
{
	static struct shadow shadow;
	struct findings first, mended, left;
	struct fuzz_host host;
	struct fuzz_case c;
	unsigned flags;
	bool opens;

	fuzz_case_parse(&c, data, bytes);
	flags = c.options & OPTION_METADATA ? IMG_CHECK_METADATA : 0;
	fuzz_host_init(&host);
	fuzz_case_put(&c, fuzz_template_get(format, c.number), &host.fs);
	if (!only_check(&host, format, flags, &first))
		goto out;
	opens = read_shadow(&host, format, &shadow) && first.ended && !first.shared;
	/* who writes to a damaged image before it is repaired may write over anything */
	if (first.damage > 0)
		c.options &= (uint16_t)~OPTION_WRITE;
	if (!repair(&host, format, c.options, opens ? &shadow : NULL, &mended)) {
		/* it may have come half way; what could be read can be */
		if (opens && !(c.options & OPTION_WRITE))
			compare_shadow(&host, format, &shadow);
		goto out;
	}
	if (opens)
		compare_shadow(&host, format, &shadow);
	FUZZ_CHECK(only_check(&host, format, flags, &left));
	if (left.ended && mended.repaired == total(&mended)) {
		FUZZ_CHECK(total(&left) == 0);
		repair_again(&host, format, c.options);
	}
out:
	fuzz_host_destroy(&host);
}
