/* SPDX-License-Identifier: MIT */
/*
 * The image of a limg writer that died, of which more was lost than it promised to survive: torn, swapped, cut and
 * overwritten pieces, of the journal or anything else. No checksum is made right again.
 *
 * Beyond crashes: what can be read is a state that the disk was in, as a whole; a writer finds what a reader found, and
 * leaves it to the next; recovery does the same every time.
 */
#include "history.h"
#include "mutate.h"
#include "shadow.h"

#include <string.h>

#include "fixed.h"

#define FORMAT "limg-journal"

static bool fits(const struct shadow *sh, uint64_t bytes, const struct history_state *s)
{
	if (bytes != s->bytes)
		return false;
	for (uint64_t off = 0; off < sh->bytes; off += SHADOW_PIECE) {
		uint64_t part = sh->bytes - off < SHADOW_PIECE ? sh->bytes - off : SHADOW_PIECE;

		if (sh->known[off / SHADOW_PIECE] && memcmp(sh->data + off, s->data + off, part) != 0)
			return false;
	}
	return true;
}

static void check_prefix(const struct shadow *sh, uint64_t bytes, const struct history *h)
{
	bool found = false;

	for (unsigned i = 0; i < h->nr && !found; i++)
		found = fits(sh, bytes, &h->state[i]);
	FUZZ_CHECK(found);
}

/* As a reader finds it. */
static bool look(struct fuzz_host *host, struct shadow *sh, uint64_t *bytes, struct img_check_result *found)
{
	struct img_error err;
	struct img *img;

	fixed_reset();
	if (fuzz_open(host, "limg", NULL, 0, IMG_REFS_NONE, &img) != 0)
		return false;
	*bytes = img_size(img);
	shadow_read(sh, img);
	if (fuzz_expect(img_check(img, 0, NULL, NULL, NULL, found, &err), &err) != 0)
		found->damage = 1;
	FUZZ_CHECK(fuzz_expect(img_close(img, &err), &err) == 0);
	return true;
}

/* Opens it as a writer, who changes nothing. The hash of what that leaves. */
static bool recover(struct fuzz_host *host, uint64_t hash[2])
{
	struct img_error err;
	struct img *img;
	bool ok;

	fixed_reset();
	ok = fuzz_open(host, "limg", NULL, IMG_OPEN_WRITE, IMG_REFS_NONE, &img) == 0;
	if (ok)
		ok = fuzz_expect(img_close(img, &err), &err) == 0;
	mem_content_hash(memfs_find(&host->fs, FUZZ_IMAGE), hash);
	return ok;
}

static void run(const struct fuzz_case *c, const struct fuzz_template *t)
{
	static struct shadow shadow, after;
	struct img_check_result before = { 0 }, left = { 0 };
	uint64_t bytes, now, first[2], second[2];
	struct fuzz_host host, twin;
	bool ok;

	fuzz_host_init(&host);
	fuzz_host_init(&twin);
	fuzz_case_put(c, t, &host.fs);
	fuzz_case_put(c, t, &twin.fs);
	if (look(&host, &shadow, &bytes, &before)) {
		check_prefix(&shadow, bytes, history_get(c->number));
		ok = recover(&host, first);
		FUZZ_CHECK(recover(&twin, second) == ok);
		FUZZ_CHECK(memcmp(first, second, sizeof(first)) == 0);
		if (ok) {
			FUZZ_CHECK(look(&host, &after, &now, &left) && now == bytes);
			for (unsigned i = 0; i < sizeof(after.known); i++)
				FUZZ_CHECK(!shadow.known[i] || after.known[i] || i * SHADOW_PIECE >= after.bytes);
			check_prefix(&after, now, history_get(c->number));
			FUZZ_CHECK(before.damage != 0 || left.damage == 0);
		}
	}
	fuzz_host_destroy(&host);
	fuzz_host_destroy(&twin);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct fuzz_case c;

	fuzz_case_parse(&c, data, bytes);
	c.fix = 0;
	if (!c.whole)
		run(&c, fuzz_template_get(FORMAT, c.number));
	return 0;
}

FUZZ_IMAGE_MUTATOR(FORMAT)
