/* SPDX-License-Identifier: MIT */
/* What an inspection lets pass: a JSON file. See policy.c for its keys. */
#ifndef IMGTOOL_POLICY_H
#define IMGTOOL_POLICY_H

#include <jansson.h>

#include "limit_args.h"

#define POLICY_FORMATS_MAX 32u

struct policy {
	json_t *json;				     /* owned; NULL without a file */
	const char *formats[POLICY_FORMATS_MAX + 1]; /* NULL-terminated, point into json */
	bool has_formats;
	struct limits limits;
};

/* path NULL: a policy that says nothing. Returns an exit status; policy_free() is due in any case. */
int policy_load(struct policy *policy, const char *path);
void policy_free(struct policy *policy);

bool policy_allows(const struct policy *policy, const char *id);
bool policy_denies(const struct policy *policy, const char *id);

#endif
