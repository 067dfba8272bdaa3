/* SPDX-License-Identifier: MIT */
/* See confined.h. */
#include "confined.h"

#include <jansson.h>
#include <sys/random.h>

#include "cell.h"
#include "limit_args.h"
#include "open.h"

/*
 * What an honest image takes is far below: the tables of a layer as the budget has them, some copies and caches, and
 * the stacks of threads. It is the limit of last resort; the budgets refuse with a message before it.
 */
#define MEMORY_BYTES	       (UINT64_C(32) << 30)
#define MEMORY_PER_BUDGET      4u
#define METADATA_BYTES_DEFAULT (UINT64_C(1) << 30) /* struct img_budget */
#define REQUESTS_PER_FILE      16u /* of the broker: a file is opened, looked at, opened again, asked for its holders... */
#define REQUESTS_MORE	       1024u
#define FILES_DEFAULT	       192u /* references and depth: struct img_budget, struct img_open_options */

static struct {
	bool begun;
	struct cell cell;
} state;

static uint64_t or_default(uint64_t value, uint64_t otherwise)
{
	return value ? value : otherwise;
}

/* Limits that a user raises are raised here, too; what does not fit in 64 bits is none. */
static void set_limits(struct cell_rules *rules, const struct common_args *common)
{
	struct limits limits = limits_of(common);
	uint64_t files = or_default(limits.budget.references, FILES_DEFAULT) + limits.max_depth, bytes;

	if (__builtin_mul_overflow(or_default(limits.budget.metadata_bytes, METADATA_BYTES_DEFAULT), MEMORY_PER_BUDGET,
				   &bytes) ||
	    __builtin_add_overflow(bytes, MEMORY_BYTES, &rules->memory_bytes))
		rules->memory_bytes = 0;
	if (__builtin_mul_overflow(files, REQUESTS_PER_FILE, &rules->host.max_requests) ||
	    __builtin_add_overflow(rules->host.max_requests, REQUESTS_MORE, &rules->host.max_requests))
		rules->host.max_requests = UINT64_MAX;
}

/* Left to itself it would open a file for that, later, when none can be opened. */
static void seed_json(void)
{
	size_t seed = 0;

	if (getrandom(&seed, sizeof(seed), 0) == (ssize_t)sizeof(seed) && seed != 0)
		json_object_seed(seed);
}

static int begin(const struct common_args *common, const struct img_grant *names, size_t nr_names, unsigned flags,
		 int keep)
{
	struct cell_rules rules = {
		.mode = confine_mode(common->sandbox),
		.host = {
			.struct_size = sizeof(rules.host),
			.grants = names,
			.nr_grants = nr_names,
			.refs = flags & CONFINED_NO_REFS ? IMG_REFS_NONE : open_refs(common),
			.flags = flags & CONFINED_WRITE_PARENTS ? IMG_HOST_WRITE_PARENTS : 0,
		},
		.keep = keep,
		.name = PROGRAM,
		.status = EXIT_REFUSED,
	};
	struct img_error err = { .code = IMG_OK };

	if (state.begun)
		return EXIT_DONE;
	state.begun = true;
	set_limits(&rules, common);
	seed_json();
	return cell_enter(&rules, &state.cell, &err) == 0 ? EXIT_DONE : cli_fail(NULL, &err);
}

int confined_begin(const struct common_args *common, const struct img_grant *names, size_t nr_names, unsigned flags)
{
	return begin(common, names, nr_names, flags, -1);
}

int confined_begin_with(const struct common_args *common, const struct img_grant *names, size_t nr_names, int keep)
{
	return begin(common, names, nr_names, 0, keep);
}

struct img_host *confined_host(void)
{
	return state.cell.host;
}

void confined_end(void)
{
	if (state.cell.host)
		cell_leave(&state.cell);
}
