/* SPDX-License-Identifier: MIT */
/* imgtool map: the extents of an image, layer by layer. */
#include <inttypes.h>

#include "open.h"
#include "output.h"
#include "signals.h"
#include "verbs.h"

#define EXTENTS_PER_CALL 1024

struct map_args {
	struct common_args common;
	const char *bitmap;
};

static const struct cli_option options[] = {
	{ "bitmap", 0, OPTION_TEXT, "NAME", "list what is dirty by this bitmap instead",
	  offsetof(struct map_args, bitmap) },
};

static void print_json_head(const struct common_args *common, const struct img *img)
{
	printf("{\n  \"virtual_size\": %" PRIu64 ",\n  \"may_be_stale\": %s,\n  \"extents\": [", img_size(img),
	       common->force_share ? "true" : "false");
}

static void print_json(const struct img_extent *e, bool first)
{
	printf("%s\n    {\"start\": %" PRIu64 ", \"length\": %" PRIu64
	       ", \"depth\": %u, \"allocated\": %s, \"data\": %s, \"zero\": %s, \"compressed\": %s, \"offset\": ",
	       first ? "" : ",", e->off, e->bytes, e->depth, e->flags & IMG_EXT_ALLOCATED ? "true" : "false",
	       e->flags & IMG_EXT_DATA ? "true" : "false", e->flags & IMG_EXT_ZERO ? "true" : "false",
	       e->flags & IMG_EXT_COMPRESSED ? "true" : "false");
	if (e->flags & IMG_EXT_OFFSET)
		printf("%" PRIu64 "}", e->host_off);
	else
		fputs("null}", stdout);
}

static const char *kind_name(uint32_t flags)
{
	if (flags & IMG_EXT_DATA)
		return flags & IMG_EXT_COMPRESSED ? "compressed" : "data";
	return flags & IMG_EXT_ALLOCATED ? "zero" : "hole";
}

static void print_text(const struct img_extent *e)
{
	printf("%#14" PRIx64 "  %#14" PRIx64 "  %5u  ", e->off, e->bytes, e->depth);
	if (e->flags & IMG_EXT_OFFSET)
		printf("%-10s  %#14" PRIx64 "\n", kind_name(e->flags), e->host_off);
	else
		puts(kind_name(e->flags));
}

static int print_extents(const struct common_args *common, const struct target *target, struct img *img)
{
	static struct img_extent extents[EXTENTS_PER_CALL];
	struct img_error err = { .code = IMG_OK };
	uint64_t size = img_size(img), off = 0;
	bool first = true;

	while (off < size) {
		size_t nr;

		if (ferror(stdout))
			return EXIT_SYSTEM;
		if (img_extents(img, size - off, off, 0, extents, EXTENTS_PER_CALL, &nr, &err) != 0)
			return cli_fail(target->path, &err);
		for (size_t i = 0; i < nr; i++, first = false) {
			if (common->json)
				print_json(&extents[i], first);
			else
				print_text(&extents[i]);
		}
		off = extents[nr - 1].off + extents[nr - 1].bytes;
	}
	return EXIT_DONE;
}

static int map(const struct common_args *common, const struct target *target, struct img *img)
{
	int status;

	if (common->json)
		print_json_head(common, img);
	else
		printf("%14s  %14s  %5s  %-10s  %14s\n", "start", "length", "depth", "kind", "host offset");
	status = print_extents(common, target, img);
	if (common->json && status == EXIT_DONE)
		fputs(img_size(img) ? "\n  ]\n}\n" : "]\n}\n", stdout);
	return status;
}

/* ---- a bitmap ---------------------------------------------------------------------------------------------------- */

static void print_dirty(const struct img_range *r, bool json, bool first)
{
	if (json)
		printf("%s\n    {\"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"dirty\": true}", first ? "" : ",",
		       r->off, r->bytes);
	else
		printf("%#14" PRIx64 "  %#14" PRIx64 "\n", r->off, r->bytes);
}

static int map_bitmap(const struct map_args *args, const struct target *target, struct img *img)
{
	static struct img_range ranges[EXTENTS_PER_CALL];
	struct img_error err = { .code = IMG_OK };
	uint64_t off = 0, total = 0;
	size_t nr = 0;

	do {
		if (img_bitmap_ranges(img, args->bitmap, off, ranges, EXTENTS_PER_CALL, &nr, &err) != 0)
			return cli_fail(target->path, &err);
		if (total == 0 && args->common.json)
			print_json_head(&args->common, img);
		else if (total == 0)
			printf("%14s  %14s\n", "start", "length");
		for (size_t i = 0; i < nr; i++, total++) {
			print_dirty(&ranges[i], args->common.json, total == 0);
			off = ranges[i].off + ranges[i].bytes;
		}
	} while (nr == EXTENTS_PER_CALL && !ferror(stdout));
	if (args->common.json)
		fputs(total ? "\n  ]\n}\n" : "]\n}\n", stdout);
	return EXIT_DONE;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct map_args *args = verb_args;
	struct opened o;
	int status;

	(void)nr_operands;
	signals_end_it();
	status = opened_begin(&o, verb, &args->common, operands[0], args->bitmap ? IMG_OPEN_NO_BACKING : 0);
	if (status != EXIT_DONE)
		return status;
	return opened_end(&o, args->bitmap ? map_bitmap(args, &o.target, o.img) : map(&args->common, &o.target, o.img));
}

const struct cli_verb verb_map = {
	.name = "map",
	.operands = "FILE[@SNAP]",
	.summary = "Lists the extents of an image: where each comes from and what it is",
	.details = "depth 0 is FILE itself, 1 its parent, and so on. data and compressed hold data; zero is known to "
		   "read as zeros; hole is held by no layer. The host offset is that in the file of the layer, where "
		   "the bytes stand there as they are.\n\n"
		   "With --bitmap: what was changed, by a bitmap that bitmap list names.",
	.example = PROGRAM " map --json web1.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_SNAPSHOT | WITH_JSON,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct map_args),
	.run = run,
};
