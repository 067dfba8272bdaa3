/* SPDX-License-Identifier: MIT */
/* imgtool compare: do two images read the same? What one is longer by must be zeros. */
#include <inttypes.h>

#include "confined.h"
#include "open.h"
#include "output.h"
#include "progress.h"
#include "verbs.h"

struct compare_args {
	struct common_args common;
	const char *second_format;
	bool all;
};

static const struct cli_option options[] = {
	{ "second-format", 'F', OPTION_TEXT, "FMT", "format of B, as -f is that of A",
	  offsetof(struct compare_args, second_format) },
	{ "all", 0, OPTION_FLAG, NULL, "list every range that differs, in sectors of 512 bytes",
	  offsetof(struct compare_args, all) },
};

/* --all: ranges are printed as they come. */
struct printer {
	struct progress progress;
	bool json, quiet;
	uint64_t nr, bytes;
};

static int print_range(void *ctx, uint64_t off, uint64_t bytes)
{
	struct printer *p = ctx;

	if (p->json)
		printf("%s\n    {\"start\": %" PRIu64 ", \"length\": %" PRIu64 "}", p->nr ? "," : "", off, bytes);
	else if (!p->quiet)
		printf("%#14" PRIx64 "  %#14" PRIx64 "\n", off, bytes);
	p->nr++;
	p->bytes += bytes;
	return ferror(stdout);
}

static void print_json_end(const struct printer *p, const struct compare_args *args, const struct img_compare_result *r)
{
	if (args->all)
		printf("%s],\n  \"differing_bytes\": %" PRIu64 ",\n", p->nr ? "\n  " : "", p->bytes);
	printf("  \"same\": %s,\n  \"size_differs\": %s,\n", r->same ? "true" : "false",
	       r->size_differs ? "true" : "false");
	if (r->same)
		printf("  \"first_difference\": null\n}\n");
	else
		printf("  \"first_difference\": %" PRIu64 "\n}\n", r->first_diff);
}

static void print_verdict(const struct printer *p, const struct compare_args *args, const struct img_compare_result *r)
{
	char size[SIZE_TEXT_BYTES];

	if (r->same)
		printf("same%s\n", r->size_differs ? " (one is longer, by zeros)" : "");
	else if (args->all)
		printf("different: %" PRIu64 " range%s, %s\n", p->nr, p->nr == 1 ? "" : "s",
		       output_size(p->bytes, size));
	else
		printf("different: first at offset 0x%" PRIx64 " (%" PRIu64 ")\n", r->first_diff, r->first_diff);
}

static int compare(const struct cli_verb *verb, const struct compare_args *args, struct img *a, struct img *b,
		   const struct target *target)
{
	struct printer p = { .json = args->common.json, .quiet = args->common.quiet };
	struct img_compare_result result;
	struct img_error err = { .code = IMG_OK };
	struct img_progress progress = progress_begin(&p.progress, verb, &args->common);

	if (p.json)
		printf(args->all ? "{\n  \"ranges\": [" : "{\n");
	if (img_compare(a, b, args->all ? print_range : NULL, &p, &progress, &result, &err) != 0) {
		progress_end(&p.progress, false);
		return cli_fail(cli_blamed(&err, target->path, b), &err);
	}
	progress_end(&p.progress, true);
	if (p.json)
		print_json_end(&p, args, &result);
	else if (!p.quiet)
		print_verdict(&p, args, &result);
	return result.same ? EXIT_DONE : EXIT_DIFFERENT;
}

static int confine(const struct compare_args *args, const struct target *a, const struct target *b)
{
	const struct img_grant names[] = { { a->path, IMG_GRANT_READ }, { b->path, IMG_GRANT_READ } };

	return confined_begin(&args->common, names, ARRAY_LEN(names), 0);
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct compare_args *args = verb_args;
	struct target target_a = { NULL, NULL }, target_b = { NULL, NULL };
	struct img *a = NULL, *b = NULL;
	int status;

	(void)nr_operands;
	status = target_parse(&target_a, verb, operands[0], NULL, NULL);
	if (status == EXIT_DONE)
		status = target_parse(&target_b, verb, operands[1], NULL, NULL);
	if (status == EXIT_DONE)
		status = confine(args, &target_a, &target_b);
	if (status == EXIT_DONE)
		status = open_image(&target_a, &args->common, 0, &a);
	if (status == EXIT_DONE)
		status = open_image_as(&target_b, args->second_format, &args->common, 0, &b);
	if (status == EXIT_DONE)
		status = compare(verb, args, a, b, &target_a);
	status = close_image(b, &target_b, status);
	status = close_image(a, &target_a, status);
	target_free(&target_a);
	target_free(&target_b);
	return status;
}

const struct cli_verb verb_compare = {
	.name = "compare",
	.operands = "A[@SNAP] B[@SNAP]",
	.summary = "Finds out whether two images, in whatever formats, read the same",
	.details = "Prints the first difference, or all of them with --all. A longer image is the same if its surplus "
		   "reads as zeros. The exit status is 0 for same and 1 for different.",
	.example = PROGRAM " compare debian.raw debian.limg@before",
	.min_operands = 2,
	.max_operands = 2,
	.common = WITH_JSON | WITH_PROGRESS,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct compare_args),
	.run = run,
};
