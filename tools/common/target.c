/* SPDX-License-Identifier: MIT */
/* See target.h. */
#include "target.h"

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

/* Is there nothing between the folder and the '@'? */
static bool names_no_file(const char *operand, const char *at)
{
	return at && at == last_component(operand);
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
	if (names_no_file(operand, at) && (at[1] == '\0' || !exists(operand, strlen(operand), folder_of)))
		return cli_usage_error(verb, "'%s' names no file before the '@'", operand);
	if (!at || at[1] == '\0')
		return fill(target, operand, path_bytes, NULL);
	if (!exists(operand, strlen(operand), folder_of))
		return fill(target, operand, path_bytes, at + 1);
	if (!names_no_file(operand, at) && exists(operand, path_bytes, folder_of))
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
	if (!at || names_no_file(operand, at) || at[1] == '\0')
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
	if (names_no_file(operand, at))
		return cli_usage_error(verb, "'%s' names no file before the '@'", operand);
	return fill(target, operand, at ? (size_t)(at - operand) : strlen(operand), NULL);
}

void target_free(struct target *target)
{
	free(target->path);
	free(target->snapshot);
	memset(target, 0, sizeof(*target));
}
