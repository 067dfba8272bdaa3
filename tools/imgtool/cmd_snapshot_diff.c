/* SPDX-License-Identifier: MIT */
/* imgtool snapshot diff: what changed between two states of one image, at a cost in proportion to the difference. */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "open.h"
#include "output.h"
#include "signals.h"
#include "verbs.h"

/* The differences are printed as they come: they may be many. */
struct printer {
	bool json;
	uint64_t nr, changed_bytes;
};

static const char *kind_name(enum img_diff_kind kind)
{
	switch (kind) {
	case IMG_DIFF_DATA: return "data";
	case IMG_DIFF_ZERO: return "zero";
	case IMG_DIFF_UNMAPPED: return "unmapped";
	}
	return "unknown";
}

/* What goes before the first range; nothing is printed before the snapshots are known to be there. */
static void print_head(const struct printer *p)
{
	if (p->json)
		printf("{\n  \"extents\": [");
	else
		printf("%14s  %14s  %s\n", "start", "length", "kind");
}

static int print_range(void *ctx, uint64_t off, uint64_t bytes, enum img_diff_kind kind)
{
	struct printer *p = ctx;

	if (p->nr == 0)
		print_head(p);
	if (p->json)
		printf("%s\n    {\"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"kind\": \"%s\"}", p->nr ? "," : "",
		       off, bytes, kind_name(kind));
	else
		printf("%#14" PRIx64 "  %#14" PRIx64 "  %s\n", off, bytes, kind_name(kind));
	p->nr++;
	p->changed_bytes += bytes;
	return signals_interrupted() || ferror(stdout);
}

static int diff(const struct common_args *args, struct img *img, const struct target *a, const char *b)
{
	struct printer p = { .json = args->json };
	struct img_error err = { .code = IMG_OK };

	if (img_snapshot_diff(img, a->snapshot, b, print_range, &p, &err) != 0)
		return cli_fail(a->path, &err);
	if (p.nr == 0)
		print_head(&p);
	if (p.json)
		printf("%s],\n  \"changed_bytes\": %" PRIu64 "\n}\n", p.nr ? "\n  " : "", p.changed_bytes);
	return EXIT_DONE;
}

static bool same_file(const char *a, const char *b)
{
	struct stat stat_a, stat_b;

	return strcmp(a, b) == 0 || (stat(a, &stat_a) == 0 && stat(b, &stat_b) == 0 && stat_a.st_dev == stat_b.st_dev &&
				     stat_a.st_ino == stat_b.st_ino);
}

static int parse(const struct cli_verb *verb, char **operands, unsigned nr_operands, struct target *a, struct target *b)
{
	int status = target_parse_snapshot(a, verb, operands[0]);

	if (status == EXIT_DONE && nr_operands > 1)
		status = target_parse(b, verb, operands[1], NULL, NULL);
	if (status == EXIT_DONE && b->path && !same_file(a->path, b->path))
		status = cli_usage_error(verb, "'%s' and '%s' are not one image: see " PROGRAM " compare", a->path,
					 b->path);
	return status;
}

/* The tables of some formats lie in data files; a parent has no part in it. */
#define OPEN_FLAGS (IMG_OPEN_NO_BACKING | IMG_OPEN_DATA_FILES)

/*
 * An image that knows both states. Where snapshots can be read beside a writer, so can what differs between two: that
 * image is the later one's, and the earlier one is held besides, lest the writer delete it.
 */
static int open_states(const struct common_args *args, const struct target *a, const struct target *b,
		       struct img **held, struct img **img)
{
	const struct target head = { .path = a->path }, later = { .path = a->path, .snapshot = b->snapshot };
	struct common_args quietly = *args;
	int status;

	*held = NULL;
	if (!b->snapshot)
		return open_image(&head, args, OPEN_FLAGS, img);
	quietly.quiet = true; /* what there is to be told is told of the other one */
	status = open_image(a, &quietly, OPEN_FLAGS, held);
	if (status != EXIT_DONE)
		return status;
	if (img_caps(*held) & IMG_CAP_SNAPSHOTS_BESIDE)
		return open_image(&later, args, OPEN_FLAGS, img);
	status = close_image(*held, a, EXIT_DONE);
	*held = NULL;
	return status == EXIT_DONE ? open_image(&head, args, OPEN_FLAGS, img) : status;
}

static int open_and_diff(const struct common_args *args, const struct target *a, const struct target *b)
{
	struct img *held, *img;
	int status = open_states(args, a, b, &held, &img);

	if (status == EXIT_DONE) {
		status = diff(args, img, a, b->snapshot);
		status = close_image(img, a, status);
	}
	return close_image(held, a, status);
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct common_args *args = verb_args;
	struct target a = { NULL, NULL }, b = { NULL, NULL };
	int status = parse(verb, operands, nr_operands, &a, &b);

	if (status == EXIT_DONE)
		status = open_and_diff(args, &a, &b);
	target_free(&a);
	target_free(&b);
	return status;
}

const struct cli_verb verb_snapshot_diff = {
	.name = "snapshot diff",
	.operands = "FILE@A [FILE[@B]]",
	.summary = "Lists the ranges that changed from one snapshot to another, or to the present state",
	.details =
		"data: the later state holds data there that may differ; zero: it reads as zeros; unmapped: it "
		"holds nothing of its own there any more. What both states share is not looked at. Two snapshots of a "
		"limg image are compared beside a writer, too.",
	.example = PROGRAM " snapshot diff debian.limg@v1 debian.limg@v2",
	.min_operands = 1,
	.max_operands = 2,
	.common = WITH_JSON,
	.args_bytes = sizeof(struct common_args),
	.run = run,
};
