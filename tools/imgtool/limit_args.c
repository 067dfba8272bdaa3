/* SPDX-License-Identifier: MIT */
/* See limit_args.h. */
#include "limit_args.h"

int limits_parse(const struct cli_verb *verb, const struct common_args *common, struct limits *out)
{
	*out = limits_default();
	return limits_take(out, verb, &common->limits);
}

void limits_add(struct limits *limits, const struct common_args *common)
{
	(void)limits_take(limits, NULL, &common->limits); /* judged already: there is no error to tell */
}

struct limits limits_of(const struct common_args *common)
{
	struct limits limits = limits_default();

	limits_add(&limits, common);
	return limits;
}
