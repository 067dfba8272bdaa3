/* SPDX-License-Identifier: MIT */
/*
 * Policies of inspect: one JSON object with any of
 *
 *   "formats": [FORMAT...]       no other format is allowed
 *   "allow":   [RULE...]         unsafe findings of these rules are let pass
 *   "deny":    [RULE...]         notes of these rules are unsafe
 *   "limits":  {NAME: VALUE...}  as --limit; numbers, or text with units
 *
 * A word that is not known is an error: a policy with a slip in it would let pass what it was meant to stop. What
 * cannot be parsed cannot be allowed.
 */
#include "policy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int bad(const char *path, const char *what, const char *which)
{
	cli_message(path, "%s '%s'", what, which);
	return EXIT_USAGE;
}

static const struct img_inspect_rule *find_rule(const char *id)
{
	const struct img_inspect_rule *rule;

	for (size_t i = 0; (rule = img_inspect_rule(i)) != NULL; i++)
		if (strcmp(rule->id, id) == 0)
			return rule;
	return NULL;
}

static bool lists(const struct policy *policy, const char *key, const char *id)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(policy->json, key), i, item) {
		if (strcmp(json_string_value(item), id) == 0)
			return true;
	}
	return false;
}

bool policy_allows(const struct policy *policy, const char *id)
{
	return lists(policy, "allow", id);
}

bool policy_denies(const struct policy *policy, const char *id)
{
	return lists(policy, "deny", id);
}

static int check_texts(const json_t *value, const char *path, const char *key)
{
	json_t *item;
	size_t i;

	if (!json_is_array(value))
		return bad(path, "a list is needed for", key);
	json_array_foreach(value, i, item) {
		if (!json_is_string(item))
			return bad(path, "texts are needed in", key);
	}
	return EXIT_DONE;
}

static int take_rules(const json_t *value, const char *path, const char *key)
{
	int status = check_texts(value, path, key);
	json_t *item;
	size_t i;

	if (status != EXIT_DONE)
		return status;
	json_array_foreach(value, i, item) {
		const struct img_inspect_rule *rule = find_rule(json_string_value(item));

		if (!rule)
			return bad(path, "there is no rule", json_string_value(item));
		if (strcmp(key, "allow") == 0 && rule->severity == IMG_SEVERITY_UNPARSEABLE)
			return bad(path, "what cannot be parsed cannot be allowed:", rule->id);
	}
	return EXIT_DONE;
}

/* Formats without a driver are known, too, so that no list of names can be checked here. */
static int take_formats(struct policy *policy, const json_t *value, const char *path)
{
	int status = check_texts(value, path, "formats");
	json_t *item;
	size_t i;

	if (status != EXIT_DONE)
		return status;
	if (json_array_size(value) > POLICY_FORMATS_MAX)
		return bad(path, "too many entries in", "formats");
	json_array_foreach(value, i, item) {
		policy->formats[i] = json_string_value(item);
	}
	policy->has_formats = true;
	return EXIT_DONE;
}

static int take_limits(struct policy *policy, json_t *value, const char *path)
{
	const char *name;
	json_t *limit;

	if (!json_is_object(value))
		return bad(path, "an object is needed for", "limits");
	json_object_foreach(value, name, limit) {
		char number[32];
		const char *text = json_string_value(limit);

		if (json_is_integer(limit)) {
			(void)snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(limit));
			text = number;
		}
		if (!text || !limits_set(&policy->limits, name, strlen(name), text))
			return bad(path, "there is no such limit, or its value is not above 0:", name);
	}
	return EXIT_DONE;
}

static int take(struct policy *policy, const char *key, json_t *value, const char *path)
{
	if (strcmp(key, "formats") == 0)
		return take_formats(policy, value, path);
	if (strcmp(key, "allow") == 0 || strcmp(key, "deny") == 0)
		return take_rules(value, path, key);
	if (strcmp(key, "limits") == 0)
		return take_limits(policy, value, path);
	return bad(path, "there is no key", key);
}

int policy_load(struct policy *policy, const char *path)
{
	int status = EXIT_DONE;
	json_error_t error;
	const char *key;
	json_t *value;
	FILE *f;

	*policy = (struct policy){ .limits = limits_default() };
	if (!path)
		return EXIT_DONE;
	f = fopen(path, "rb");
	if (!f)
		return cli_fail_errno(path, "cannot open policy");
	policy->json = json_loadf(f, JSON_REJECT_DUPLICATES, &error);
	fclose(f);
	if (!json_is_object(policy->json)) {
		cli_message(path, "line %d: %s", policy->json ? 1 : error.line,
			    policy->json ? "a policy is a JSON object" : error.text);
		return EXIT_USAGE;
	}
	json_object_foreach(policy->json, key, value) {
		status = take(policy, key, value, path);
		if (status != EXIT_DONE)
			break;
	}
	return status;
}

void policy_free(struct policy *policy)
{
	json_decref(policy->json);
	policy->json = NULL;
}
