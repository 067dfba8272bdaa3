/* SPDX-License-Identifier: MIT */
/* imgtool measure: how large a converted image will be. */
#include <inttypes.h>

#include "create_options.h"
#include "open.h"
#include "output.h"
#include "verbs.h"

struct measure_args {
	struct common_args common;
	const char *format;
	char *options;
	struct size_arg size;
};

static const struct cli_option options[] = {
	{ "output-format", 'O', OPTION_TEXT, "FMT", "format of the image to be made; default: limg",
	  offsetof(struct measure_args, format) },
	{ "option", 'o', OPTION_LIST, "KEY=VALUE,...", "options of that format; -o help lists them",
	  offsetof(struct measure_args, options) },
	{ "size", 0, OPTION_SIZE, "N", "an empty image of this size instead of FILE",
	  offsetof(struct measure_args, size) },
};

static int measure(const struct measure_args *args, struct img *img, const char *file)
{
	struct img_error err = { .code = IMG_OK };
	char required[SIZE_TEXT_BYTES], full[SIZE_TEXT_BYTES];
	struct img_measure m;

	if (img_measure(img, args->size.value, create_format(args->format, NULL), args->options, &m, &err) != 0)
		return cli_fail(file, &err);
	if (args->common.json)
		return output_json(json_pack("{s:o, s:o}", "required_bytes", output_json_size(m.required_bytes),
					     "fully_allocated_bytes", output_json_size(m.fully_allocated_bytes)));
	printf("required:         %s (%" PRIu64 " bytes)\n", output_size(m.required_bytes, required), m.required_bytes);
	printf("fully allocated:  %s (%" PRIu64 " bytes)\n", output_size(m.fully_allocated_bytes, full),
	       m.fully_allocated_bytes);
	return EXIT_DONE;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct measure_args *args = verb_args;
	struct opened o;
	int status;

	if (create_is_help(args->options))
		return create_print_help(verb, create_format(args->format, NULL));
	if ((nr_operands == 1) == args->size.given)
		return cli_usage_error(verb, "expected FILE or --size N, one of them");
	if (args->size.given)
		return measure(args, NULL, NULL);
	status = opened_begin(&o, verb, &args->common, operands[0], 0);
	return status == EXIT_DONE ? opened_end(&o, measure(args, o.img, o.target.path)) : status;
}

const struct cli_verb verb_measure = {
	.name = "measure",
	.operands = "[FILE[@SNAP]]",
	.summary = "Says how many bytes a conversion will need",
	.details = "Without compression, which can only make it smaller.",
	.example = PROGRAM " measure -O limg debian.raw\n" PROGRAM " measure --size 100G",
	.max_operands = 1,
	.common = WITH_SNAPSHOT | WITH_JSON,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct measure_args),
	.run = run,
};
