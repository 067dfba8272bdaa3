/* SPDX-License-Identifier: MIT */
/*
 * imgtool convert: a new image with the content of another one. The library copies into a temporary file and renames it
 * at the end, so that neither a failure nor an interruption leaves a destination.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "confined.h"
#include "device.h"
#include "convert_pipe.h"
#include "create_options.h"
#include "left_behind.h"
#include "limit_args.h"
#include "open.h"
#include "output.h"
#include "progress.h"
#include "signals.h"
#include "verbs.h"

struct convert_args {
	struct common_args common;
	const char *format;
	char *options;
	const char *compress;
	const char *backing;
	const char *backing_format;
	struct size_arg threads;
	bool snapshots;
	bool bitmaps;
	const char *strict;
	bool force;
};

static const struct cli_option options[] = {
	{ "output-format", 'O', OPTION_TEXT, "FMT",
	  "format of DST; default: by its name, qcow2 for .qcow2 and so on, raw for .raw and .img, else limg",
	  offsetof(struct convert_args, format) },
	{ "option", 'o', OPTION_LIST, "KEY=VALUE,...",
	  "options of DST's format; -o help lists them; a comma in a value is written twice",
	  offsetof(struct convert_args, options) },
	{ "compress", 'c', OPTION_TEXT, "CODEC[:LEVEL]",
	  "compress with zstd or zlib, or none; DST keeps it as its default", offsetof(struct convert_args, compress) },
	{ "backing", 'b', OPTION_TEXT, "PARENT[@SNAP]",
	  "make DST an overlay on this: only what differs is stored. A relative name starts at DST's folder",
	  offsetof(struct convert_args, backing) },
	{ "backing-format", 'F', OPTION_TEXT, "FMT", "format of PARENT; needed for raw, which is never guessed",
	  offsetof(struct convert_args, backing_format) },
	{ "threads", 'j', OPTION_NUMBER, "N", "workers; default: one per processor, at most 8",
	  offsetof(struct convert_args, threads) },
	{ "snapshots", 0, OPTION_FLAG, NULL, "copy the internal snapshots too",
	  offsetof(struct convert_args, snapshots) },
	{ "bitmaps", 0, OPTION_FLAG, NULL, "copy the dirty bitmaps too", offsetof(struct convert_args, bitmaps) },
	{ "strict", 0, OPTION_WORD, "data|all",
	  "refuse where the copy would lack some of what the source holds beside its disk: data (the default), what somebody made or a "
	  "guest sees; all, everything of which there would be a note",
	  offsetof(struct convert_args, strict) },
	{ "force", 0, OPTION_FLAG, NULL, "replace DST if it exists and nobody uses it, when the new image is complete",
	  offsetof(struct convert_args, force) },
};

/* -c is the format's own option "compression"; it is given before those of -o. Freed by the caller. NULL: no memory. */
static char *driver_options(const struct convert_args *args)
{
	const char *given = args->options ? args->options : "", *codec = args->compress ? args->compress : "";
	size_t bytes = strlen(given) + strlen(codec) + sizeof("compression=,");
	char *joined = malloc(bytes);

	if (joined)
		snprintf(joined, bytes, "%s%s%s%s", args->compress ? "compression=" : "", codec,
			 args->compress && args->options ? "," : "", given);
	return joined;
}

/* What -o says of key, with its length; NULL: nothing. */
static const char *option_given(const char *list, const char *key, size_t *bytes)
{
	size_t len = strlen(key);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += strspn(at, ",");
		if (strncmp(at, key, len) == 0 && at[len] == '=') {
			*bytes = strcspn(at + len + 1, ",");
			return at + len + 1;
		}
	}
	return NULL;
}

/* -c and -o agree, if both speak of compression: qcow2 has its codec and whether it is used in two options. */
static bool codecs_agree(const struct convert_args *args)
{
	size_t bytes, name = args->compress ? strcspn(args->compress, ":") : 0;
	const char *type, *whole;

	if (!args->compress)
		return true;
	whole = option_given(args->options, "compression", &bytes);
	if (whole && (bytes != strlen(args->compress) || strncmp(whole, args->compress, bytes) != 0))
		return false;
	type = option_given(args->options, "compression_type", &bytes);
	return !type || strncmp(args->compress, "none", name) == 0 ||
	       (bytes == name && strncmp(type, args->compress, name) == 0);
}

/* An image that compresses by default is compressed by the conversion as well. */
static bool wants_compression(const struct convert_args *args)
{
	size_t bytes;
	const char *codec = args->compress ? args->compress : option_given(args->options, "compression", &bytes);

	return codec && strncmp(codec, "none", 4) != 0;
}

static int answer(const struct convert_args *args, const char *source, const char *target, const char *format,
		  struct left_behind *lb)
{
	if (!args->common.json)
		return EXIT_DONE;
	return output_json(json_pack("{s:o, s:o, s:s, s:O}", "source", output_json_text(source), "target",
				     output_json_text(target), "format", format, "left_behind", lb->list));
}

/* device: dst is one, and the image is made on it. */
static int convert(const struct cli_verb *verb, const struct convert_args *args, const struct target *src,
		   const struct target *dst, const struct target *backing, bool device)
{
	struct progress progress;
	struct left_behind lb;
	struct limits limits = limits_of(&args->common);
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = args->format,
		.flags = (args->force ? IMG_CREATE_OVERWRITE : 0u) | (device ? IMG_CREATE_DEVICE : 0u),
		.backing = backing->path,
		.backing_snapshot = backing->snapshot,
		.backing_format = args->backing_format,
		.refs = open_refs(&args->common),
		.budget = &limits.budget,
	};
	struct img_copy_options copy = {
		.struct_size = sizeof(copy),
		.threads = (unsigned)args->threads.value,
		.flags = (wants_compression(args) ? IMG_COPY_COMPRESS : 0u) |
			 (args->snapshots ? IMG_COPY_SNAPSHOTS : 0u) | (args->bitmaps ? IMG_COPY_BITMAPS : 0u) |
			 left_behind_flags(args->strict),
	};
	struct img_error err = { .code = IMG_OK };
	const struct img_grant names[] = {
		{ src->path, IMG_GRANT_READ },
		{ dst->path, device	 ? IMG_GRANT_WRITE :
			     args->force ? IMG_GRANT_CREATE | IMG_GRANT_OVERWRITE :
					   IMG_GRANT_CREATE },
	};
	char *joined = driver_options(args);
	struct img *img;
	int claim = -1, status = joined ? EXIT_DONE : cli_fail_errno(NULL, "options");

	if (status == EXIT_DONE && device)
		status = claim_device(dst->path, args->force, &claim);
	if (status == EXIT_DONE)
		status = confined_begin_with(&args->common, names, ARRAY_LEN(names), claim);
	if (status == EXIT_DONE)
		status = open_image(src, &args->common, 0, &img);
	if (status == EXIT_DONE) {
		create.host = confined_host();
		left_behind_begin(&lb, &copy, src->path, args->common.quiet, args->common.json);
		create.options = joined[0] ? joined : NULL;
		copy.progress = progress_begin(&progress, verb, &args->common);
		if (img_convert(img, dst->path, &create, &copy, &err) != 0) {
			progress_end(&progress, false);
			status = create_fail(cli_blamed(&err, dst->path, img), &err);
		} else {
			progress_end(&progress, true);
		}
		status = close_image(img, src, status);
		if (status == EXIT_DONE)
			status = answer(args, src->path, dst->path, args->format, &lb);
		left_behind_end(&lb);
	}
	if (claim >= 0)
		close(claim);
	free(joined);
	return status;
}

/* The plain content on a device. */
static int convert_device(const struct cli_verb *verb, const struct convert_args *args, const struct target *src,
			  const char *path)
{
	struct img_copy_options copy = {
		.struct_size = sizeof(copy),
		.threads = (unsigned)args->threads.value,
		.flags = left_behind_flags(args->strict),
	};
	const struct img_grant names[] = { { src->path, IMG_GRANT_READ }, { path, IMG_GRANT_WRITE } };
	struct img_error err = { .code = IMG_OK };
	struct progress progress;
	struct left_behind lb;
	struct img *img;
	int claim = -1, status = EXIT_DONE;

	if (args->backing || args->options || args->snapshots || args->bitmaps)
		status = cli_usage_error(verb, "-o, -b, --snapshots and --bitmaps make no sense for raw on a device");
	if (status == EXIT_DONE)
		status = claim_device(path, args->force, &claim);
	if (status == EXIT_DONE)
		status = confined_begin_with(&args->common, names, ARRAY_LEN(names), claim);
	if (status == EXIT_DONE)
		status = open_image(src, &args->common, 0, &img);
	if (status == EXIT_DONE) {
		left_behind_begin(&lb, &copy, src->path, args->common.quiet, args->common.json);
		copy.progress = progress_begin(&progress, verb, &args->common);
		status = convert_into_device(img, path, &copy, &err);
		progress_end(&progress, status == EXIT_DONE);
		if (err.code != IMG_OK)
			status = cli_fail(cli_blamed(&err, path, img), &err);
		status = close_image(img, src, status);
		if (status == EXIT_DONE)
			status = answer(args, src->path, path, "raw", &lb);
		left_behind_end(&lb);
	}
	if (claim >= 0)
		close(claim);
	return status;
}

/* What makes no sense where nothing has a name and nothing can be looked at again. */
static int check_pipe(const struct cli_verb *verb, const struct convert_args *args)
{
	if (!args->format)
		return cli_usage_error(verb,
				       "'-' is stdout, whose format is said with -O (a file of that name is ./-)");
	if (args->backing || args->snapshots || args->bitmaps || args->force || args->common.json)
		return cli_usage_error(verb, "-b, --snapshots, --bitmaps, --force and --json make no sense for stdout");
	return EXIT_DONE;
}

/* src: what is written to stdout. fd: its duplicate, which goes to the library. */
static int convert_pipe(const struct cli_verb *verb, const struct convert_args *args, const struct target *src)
{
	struct img_copy_options copy = {
		.struct_size = sizeof(copy),
		.threads = (unsigned)args->threads.value,
		.flags = left_behind_flags(args->strict),
	};
	struct img_create_options create = { .struct_size = sizeof(create), .format = args->format };
	const struct img_grant name = { src->path, IMG_GRANT_READ };
	struct img_error err = { .code = IMG_OK };
	char *joined = driver_options(args);
	struct progress progress;
	struct left_behind lb;
	struct img *img = NULL;
	int fd = -1, status = joined ? claim_stdout(verb, &fd) : cli_fail_errno(NULL, "options");

	signals_end_it();
	if (status == EXIT_DONE)
		status = confined_begin_with(&args->common, &name, 1, fd);
	if (status == EXIT_DONE)
		status = open_image(src, &args->common, 0, &img);
	if (status == EXIT_DONE) {
		left_behind_begin(&lb, &copy, src->path, args->common.quiet, false);
		create.options = joined[0] ? joined : NULL;
		copy.progress = progress_begin(&progress, verb, &args->common);
		if (img_convert_fd(img, fd, STDOUT_NAME, &create, &copy, &err) != 0) {
			progress_end(&progress, false);
			status = cli_fail(cli_blamed(&err, STDOUT_NAME, img), &err);
		} else {
			progress_end(&progress, true);
		}
		status = close_image(img, src, status);
	} else if (fd >= 0) {
		close(fd);
	}
	free(joined);
	return status;
}

static bool good_codec(const char *codec)
{
	static const char *const names[] = { "zstd", "zlib", "none" };

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		size_t bytes = strlen(names[i]);

		if (strncmp(codec, names[i], bytes) == 0 && (codec[bytes] == '\0' || codec[bytes] == ':'))
			return strchr(codec, ',') == NULL;
	}
	return false;
}

static bool compresses(const char *format)
{
	const char *known = img_format_options(format);

	return known && strstr(known, "compression=");
}

static int check_args(const struct cli_verb *verb, const struct convert_args *args, const char *format)
{
	if (args->compress && !good_codec(args->compress))
		return cli_usage_error(verb, "-c: '%s' is not zstd, zlib or none, with :LEVEL", args->compress);
	if (args->compress && strcmp(args->compress, "none") != 0 && img_format_options(format) && !compresses(format))
		return cli_usage_error(verb, "-c: the format %s does not compress", format);
	if (!codecs_agree(args))
		return cli_usage_error(verb, "-c %s and -o say different things of compression", args->compress);
	if (args->threads.value > 256)
		return cli_usage_error(verb, "-j: at most 256");
	if (args->backing_format && !args->backing)
		return cli_usage_error(verb, "--backing-format without -b");
	return EXIT_DONE;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	struct convert_args *args = verb_args;
	struct target src = { NULL, NULL }, dst = { NULL, NULL }, backing = { NULL, NULL };
	bool device, plain, pipe = nr_operands > 1 && is_stdout(operands[1]);
	int status;

	device = nr_operands > 1 && is_block_device(operands[1]);
	status = pipe ? check_pipe(verb, args) : EXIT_DONE;
	if (status != EXIT_DONE)
		return status;
	if (device && !args->format)
		return cli_usage_error(
			verb,
			"%s is a block device: say with -O what it is to hold: raw (the content alone), limg or qcow2",
			operands[1]);
	if (!device)
		args->format = create_format(args->format, nr_operands > 1 ? operands[1] : NULL);
	plain = device && strcmp(args->format, "raw") == 0;
	if (create_is_help(args->options))
		return create_print_help(verb, args->format);
	if (nr_operands < 2)
		return cli_usage_error(verb, "expected %s", verb->operands);
	status = check_args(verb, args, args->format);
	if (args->compress && !compresses(args->format))
		args->compress = NULL; /* none, of a format that never does */
	if (status == EXIT_DONE)
		status = target_parse(&src, verb, operands[0], args->common.snapshot, NULL);
	if (status == EXIT_DONE && !pipe)
		status = target_parse_new(&dst, verb, operands[1]);
	if (status == EXIT_DONE && args->backing)
		status = target_parse(&backing, verb, args->backing, NULL, dst.path);
	if (status == EXIT_DONE)
		status = plain ? convert_device(verb, args, &src, operands[1]) :
			 pipe  ? convert_pipe(verb, args, &src) :
				 convert(verb, args, &src, &dst, &backing, device);
	target_free(&src);
	target_free(&dst);
	target_free(&backing);
	return status;
}

const struct cli_verb verb_convert = {
	.name = "convert",
	.operands = "SRC[@SNAP] DST",
	.summary = "Copies an image, or one of its snapshots, into a new one",
	.details =
		"The copy is sparse and parallel, and holds what the guest sees: a chain of overlays becomes one "
		"image, unless -b names a parent for DST. -f is the format of SRC. Snapshots and dirty bitmaps "
		"are left out unless --snapshots and --bitmaps are given. Whatever SRC has beside its disk and DST will not have is "
		"told, a note each: snapshots, bitmaps, machine state, another size of the disk or of its sectors, comments, a chain "
		"of parents, uuid, geometry, compression. --json lists the same as \"left_behind\"; --strict refuses.\n\n"
		"An existing DST is not touched without --force; what replaces it has its owner, group and rights, as far as they may be set. After a failure, an interruption or a crash "
		"nothing stays under DST's name.\n\n"
		"DST may be a block device that is not mounted, with -O and --force. raw: the content is written to its start, and what lies "
		"beyond stays; a failure leaves a part. limg and qcow2: the image is made on it and may grow as far as it reaches; a "
		"failure or a crash leaves no image, but what is refused at once leaves what was there.\n\n"
		"DST may be '-', for stdout, with -O and a format that is written from front to back: raw, or vmdk with subformat=streamOptimized. "
		"It is written into a pipe, a socket or a file, not on a terminal; what measure says of a raw image is "
		"exactly what comes. A failure leaves a part there, and the exit status tells; a signal ends it as it ends any filter.",
	.example = PROGRAM " convert -c zstd debian.raw debian.limg\n" PROGRAM
			   " convert debian.limg@nightly backup.raw\n" PROGRAM
			   " convert -O raw debian.limg - | ssh host 'cat > /dev/vg/debian'",
	.max_operands = 2,
	.common = WITH_SNAPSHOT | WITH_PROGRESS | WITH_JSON,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct convert_args),
	.run = run,
};
