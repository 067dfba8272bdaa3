/* SPDX-License-Identifier: MIT */
/* imgtool resize. */
#include <inttypes.h>

#include "open.h"
#include "verbs.h"

struct resize_args {
	struct common_args common;
	bool shrink;
};

static const struct cli_option options[] = {
	{ "shrink", 0, OPTION_FLAG, NULL, "allow a smaller size: what lies beyond it is lost",
	  offsetof(struct resize_args, shrink) },
};

/* SIZE, +SIZE or -SIZE applied to the present size. */
static int new_size(const struct cli_verb *verb, const struct target *target, const char *text, uint64_t old_bytes,
		    uint64_t *out)
{
	bool relative = text[0] == '+' || text[0] == '-';
	uint64_t bytes;

	if (!cli_parse_size(text + relative, &bytes))
		return cli_usage_error(verb, "'%s' is not a size (such as 20G, +1G)", text);
	*out = bytes;
	if ((text[0] != '+' || !__builtin_add_overflow(old_bytes, bytes, out)) &&
	    (text[0] != '-' || !__builtin_sub_overflow(old_bytes, bytes, out)))
		return EXIT_DONE;
	cli_message(target->path, "the image has %" PRIu64 " bytes: there is no size %s of that", old_bytes, text);
	return EXIT_USAGE;
}

static int resize(const struct cli_verb *verb, const struct resize_args *args, const struct opened *o, const char *size)
{
	struct img_error err = { .code = IMG_OK };
	uint64_t bytes = 0;
	int status = new_size(verb, &o->target, size, img_size(o->img), &bytes);

	if (status == EXIT_DONE && bytes < img_size(o->img) && !args->shrink) {
		cli_message(o->target.path,
			    "%s would cut the image from %" PRIu64 " to %" PRIu64 " bytes: allow it with --shrink",
			    size, img_size(o->img), bytes);
		status = EXIT_REFUSED;
	}
	if (status == EXIT_DONE && img_resize(o->img, bytes, args->shrink ? IMG_RESIZE_SHRINK : 0, &err) != 0)
		status = cli_fail(o->target.path, &err);
	return status;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct resize_args *args = verb_args;
	struct opened o;
	int status = opened_begin(&o, verb, &args->common, operands[0], IMG_OPEN_WRITE);

	(void)nr_operands;
	return status == EXIT_DONE ? opened_end(&o, resize(verb, args, &o, operands[1])) : status;
}

const struct cli_verb verb_resize = {
	.name = "resize",
	.operands = "FILE [+|-]SIZE",
	.summary = "Changes the virtual size of an image",
	.details = "New bytes read as zeros. Snapshots keep their own size. A raw file needs -f raw.",
	.example = PROGRAM " resize debian.limg +2G",
	.min_operands = 2,
	.max_operands = 2,
	.common = NO_FORCE_SHARE,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct resize_args),
	.run = run,
};
