/* SPDX-License-Identifier: MIT */
/* See open.h. */
#include "open.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *last_component(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* Does path, which starts at the folder of folder_of if relative, exist? A name too long for memory does not. */
static bool exists(const char *path, size_t path_bytes, const char *folder_of)
{
	size_t folder_bytes = folder_of && path[0] != '/' ? (size_t)(last_component(folder_of) - folder_of) : 0;
	char *full = malloc(folder_bytes + path_bytes + 1);
	bool found;

	if (!full)
		return false;
	memcpy(full, folder_of ? folder_of : "", folder_bytes);
	memcpy(full + folder_bytes, path, path_bytes);
	full[folder_bytes + path_bytes] = '\0';
	found = access(full, F_OK) == 0;
	free(full);
	return found;
}

static int fill(struct target *target, const char *path, size_t path_bytes, const char *snapshot)
{
	target->path = strndup(path, path_bytes);
	target->snapshot = snapshot ? strdup(snapshot) : NULL;
	if (target->path && (!snapshot || target->snapshot))
		return EXIT_DONE;
	target_free(target);
	return cli_fail_errno(NULL, "file name");
}

int target_parse(struct target *target, const struct cli_verb *verb, const char *operand, const char *snapshot,
		 const char *folder_of)
{
	const char *at = strrchr(last_component(operand), '@');
	size_t path_bytes = at ? (size_t)(at - operand) : strlen(operand);

	memset(target, 0, sizeof(*target));
	if (operand[0] == '\0')
		return cli_usage_error(verb, "a file name is empty");
	if (snapshot)
		return fill(target, operand, strlen(operand), snapshot);
	if (!at || at[1] == '\0')
		return fill(target, operand, path_bytes, NULL);
	if (!exists(operand, strlen(operand), folder_of))
		return fill(target, operand, path_bytes, at + 1);
	if (exists(operand, path_bytes, folder_of))
		return cli_usage_error(verb,
				       "'%s' may be that file or a snapshot of '%.*s': write %s@ for the file, or %s",
				       operand, (int)path_bytes, operand, operand,
				       "--snapshot NAME FILE for the snapshot");
	return fill(target, operand, strlen(operand), NULL);
}

int target_parse_image(struct target *target, const struct cli_verb *verb, const char *operand)
{
	int status = target_parse(target, verb, operand, NULL, NULL);

	if (status == EXIT_DONE && target->snapshot) {
		status = cli_usage_error(verb, "'%s' names a snapshot, which never changes: name the image", operand);
		target_free(target);
	}
	return status;
}

int target_parse_snapshot(struct target *target, const struct cli_verb *verb, const char *operand)
{
	const char *at = strrchr(last_component(operand), '@');

	memset(target, 0, sizeof(*target));
	if (!at || at == last_component(operand) || at[1] == '\0')
		return cli_usage_error(verb, "'%s' names no snapshot: write FILE@NAME", operand);
	return fill(target, operand, (size_t)(at - operand), at + 1);
}

int target_parse_new(struct target *target, const struct cli_verb *verb, const char *operand)
{
	const char *at = strrchr(last_component(operand), '@');

	memset(target, 0, sizeof(*target));
	if (operand[0] == '\0')
		return cli_usage_error(verb, "a file name is empty");
	if (at && at[1] != '\0')
		return cli_usage_error(verb, "'%s' is a snapshot's name: write %s@ for a file of that name", operand,
				       operand);
	return fill(target, operand, at ? (size_t)(at - operand) : strlen(operand), NULL);
}

void target_free(struct target *target)
{
	free(target->path);
	free(target->snapshot);
	memset(target, 0, sizeof(*target));
}

enum img_refs open_refs(const struct common_args *common)
{
	if (cli_is(common->allow_refs, "none"))
		return IMG_REFS_NONE;
	if (cli_is(common->allow_refs, "dir"))
		return IMG_REFS_DIR;
	if (cli_is(common->allow_refs, "any"))
		return IMG_REFS_ANY;
	return IMG_REFS_DEFAULT;
}

void open_tell_stale(const struct target *target)
{
	cli_message(target->path, "read while another process may write it: what is read may be stale");
}

static void notice_data(void *ctx, const struct img_detail *detail)
{
	const struct img *img = ctx;

	if (strcmp(detail->key, "data_file") == 0)
		cli_message(img_path(img), "opened '%s', which it names", detail->text);
}

/* A foreign format names files without saying that they are its own: who did not ask is told what was opened. */
static void notice(struct img *img, const struct target *target, const struct common_args *common, unsigned flags)
{
	if (common->quiet)
		return;
	if (common->force_share)
		open_tell_stale(target);
	if (common->allow_refs)
		return;
	/* Who only looks at metadata reads no data file; who writes needs it. */
	for (struct img *layer = img; layer && (!(flags & IMG_OPEN_NO_BACKING) || (flags & IMG_OPEN_WRITE));
	     layer = img_backing(layer))
		(void)img_info_details(layer, notice_data, layer, NULL);
	for (struct img *backing = img_backing(img); backing; img = backing, backing = img_backing(img)) {
		if (strcmp(img_format(img), "limg") != 0)
			cli_message(img_path(img), "opened '%s', which it names", img_path(backing));
	}
}

int open_image_as(const struct target *target, const char *format, const struct common_args *common, unsigned flags,
		  struct img **out)
{
	struct img_open_options options = {
		.struct_size = sizeof(options),
		.format = format,
		.snapshot = target->snapshot,
		.flags = flags | (common->force_share ? IMG_OPEN_FORCE_SHARE : 0u),
		.refs = open_refs(common),
	};
	struct img_error err = { .code = IMG_OK };

	*out = NULL;
	if (img_open(target->path, &options, out, &err) != 0)
		return cli_fail(target->path, &err);
	notice(*out, target, common, flags);
	return EXIT_DONE;
}

int open_image(const struct target *target, const struct common_args *common, unsigned flags, struct img **out)
{
	return open_image_as(target, common->format, common, flags, out);
}

int close_image(struct img *img, const struct target *target, int status)
{
	struct img_error err = { .code = IMG_OK };

	if (!img || img_close(img, &err) == 0)
		return status;
	if (status == EXIT_DONE)
		return cli_fail(target->path, &err);
	return status;
}
