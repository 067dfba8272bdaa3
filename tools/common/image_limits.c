/* SPDX-License-Identifier: MIT */
/* See image_limits.h. The names are those that the library's messages use. */
#include "image_limits.h"

#include <limits.h>
#include <stddef.h>
#include <string.h>

static const struct name {
	const char *name;
	size_t offset;
} names[] = {
	{ "check-time", offsetof(struct limits, budget.check_seconds) },
	{ "depth", offsetof(struct limits, max_depth) },
	{ "expansion", offsetof(struct limits, budget.expansion) },
	{ "metadata", offsetof(struct limits, budget.metadata_bytes) },
	{ "references", offsetof(struct limits, budget.references) },
	{ "snapshots", offsetof(struct limits, budget.snapshots) },
	{ "virtual-size", offsetof(struct limits, max_virtual_bytes) },
};

const char *limits_names(void)
{
	return "check-time (seconds), depth, expansion, metadata, references, snapshots, virtual-size";
}

struct limits limits_default(void)
{
	return (struct limits){ .budget = { .struct_size = sizeof(struct img_budget) } };
}

bool limits_set(struct limits *limits, const char *name, size_t name_bytes, const char *value)
{
	uint64_t number;

	if (!cli_parse_size(value, &number) || number == 0)
		return false;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strlen(names[i].name) != name_bytes || strncmp(names[i].name, name, name_bytes) != 0)
			continue;
		*(uint64_t *)(void *)((char *)limits + names[i].offset) = number;
		return true;
	}
	return false;
}

static bool set(struct limits *limits, const char *text)
{
	size_t name_bytes = strcspn(text, "=");

	return text[name_bytes] == '=' && limits_set(limits, text, name_bytes, text + name_bytes + 1);
}

int limits_take(struct limits *limits, const struct cli_verb *verb, const struct each_arg *args)
{
	for (unsigned i = 0; i < args->nr; i++)
		if (!set(limits, args->value[i]))
			return cli_usage_error(verb,
					       "--limit: '%s' is not NAME=VALUE with a value above 0 and one of %s",
					       args->value[i], limits_names());
	return EXIT_DONE;
}

void limits_apply(const struct limits *limits, struct img_open_options *options)
{
	options->max_depth = limits->max_depth < UINT_MAX ? (unsigned)limits->max_depth : UINT_MAX;
	options->max_virtual_bytes = limits->max_virtual_bytes;
	options->budget = &limits->budget;
}
