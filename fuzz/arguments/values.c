/* SPDX-License-Identifier: MIT */
/* Sizes, limits, operands, and the -o options of formats. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "arguments.h"
#include "limit_args.h"
#include "target.h"

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

/* What a size is, said in another way: the whole part, at most three digits of a fraction, then a unit. */
static bool size_by_the_book(const char *text, uint64_t *out)
{
	static const char units[] = "KMGTP";
	uint64_t value = 0, fraction = 0, scale = 1, unit = 1, base;
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	const char *p = hex ? text + 2 : text;
	const char *digits = hex ? "0123456789abcdefABCDEF" : "0123456789";
	size_t n = strspn(p, digits);

	base = hex ? 16 : 10;
	if (n == 0)
		return false;
	for (size_t i = 0; i < n; i++) {
		unsigned d = p[i] <= '9' ? (unsigned)(p[i] - '0') : (unsigned)((p[i] | 0x20) - 'a' + 10);

		if (value > (UINT64_MAX - d) / base)
			return false;
		value = value * base + d;
	}
	p += n;
	if (!hex && *p == '.') {
		n = strspn(p + 1, digits);
		if (n == 0 || n > 3)
			return false;
		for (size_t i = 1; i <= n; i++)
			fraction = fraction * 10 + (unsigned)(p[i] - '0'), scale *= 10;
		p += 1 + n;
	}
	if (!hex && *p && strcmp(p, "B") != 0) {
		const char *at = strchr(units, *p & ~0x20);

		if (!at || !*at || (p[1] && strcmp(p + 1, "iB") != 0))
			return false;
		unit = UINT64_C(1) << (10 * (at - units + 1));
	} else if (*p && (hex || strcmp(p, "B") != 0)) {
		return false;
	}
	if (unit == 1 && scale > 1)
		return false;
	if (value > UINT64_MAX / unit || unit * fraction / scale > UINT64_MAX - value * unit)
		return false;
	*out = value * unit + unit * fraction / scale;
	return true;
}

static void check_round(uint64_t bytes)
{
	uint64_t back;
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, bytes);
	FUZZ_CHECK(cli_parse_size(text, &back) && back == bytes);
	snprintf(text, sizeof(text), "0x%" PRIx64, bytes);
	FUZZ_CHECK(cli_parse_size(text, &back) && back == bytes);
	if (bytes % 1024 == 0) {
		snprintf(text, sizeof(text), "%" PRIu64 "KiB", bytes / 1024);
		FUZZ_CHECK(cli_parse_size(text, &back) && back == bytes);
	}
	FUZZ_CHECK(output_size(bytes, text) == text && strlen(text) < SIZE_TEXT_BYTES);
}

void parse_size(const char *text, struct answer *a)
{
	uint64_t got = 0, want = 0;
	bool ok = cli_parse_size(text, &got), right = size_by_the_book(text, &want);

	FUZZ_CHECK(ok == right);
	FUZZ_CHECK(!ok || got == want);
	if (ok)
		check_round(got);
	answer_add(a, "%d %" PRIu64, ok, ok ? got : 0);
}

/* ---- limits ------------------------------------------------------------------------------------------------------ */

void parse_limits(const char *text, struct answer *a)
{
	static const struct cli_verb verb = { .name = "fuzz" };
	struct common_args common = { 0 };
	struct img_open_options options = { .struct_size = sizeof(options) };
	struct limits limits;
	struct lines l;

	lines_take(&l, text);
	while (common.limits.nr < EACH_MAX && (int)common.limits.nr < l.nr) {
		common.limits.value[common.limits.nr] = l.arg[common.limits.nr];
		common.limits.nr++;
	}
	a->status = limits_parse(&verb, &common, &limits);
	FUZZ_CHECK(a->status == EXIT_DONE || a->status == EXIT_USAGE);
	if (a->status == EXIT_DONE) {
		limits_apply(&limits, &options);
		FUZZ_CHECK(options.max_depth == limits.max_depth || options.max_depth < limits.max_depth);
		FUZZ_CHECK(options.max_depth > 0 || limits.max_depth == 0);
		answer_add(a, "%u %" PRIu64 " %" PRIu64 " %" PRIu64, options.max_depth, options.max_virtual_bytes,
			   limits.budget.metadata_bytes, limits.budget.check_seconds);
	}
	lines_free(&l);
}

/* ---- operands ---------------------------------------------------------------------------------------------------- */

enum expected { ANY, HEAD, SNAPSHOT };

/* The parts are those of the operand. Frees them. */
static void check_target(const char *operand, struct target *t, enum expected expected, struct answer *a)
{
	size_t path = strlen(t->path), snap = t->snapshot ? strlen(t->snapshot) : 0;

	FUZZ_CHECK(strncmp(operand, t->path, path) == 0);
	FUZZ_CHECK(!t->snapshot || (snap > 0 && strlen(operand) == path + 1 + snap && operand[path] == '@' &&
				    strcmp(operand + path + 1, t->snapshot) == 0));
	FUZZ_CHECK(t->snapshot || !operand[path] || strcmp(operand + path, "@") == 0);
	FUZZ_CHECK(!t->snapshot || !strchr(t->snapshot, '/'));
	FUZZ_CHECK(expected == ANY || (expected == SNAPSHOT) == (t->snapshot != NULL));
	answer_add(a, " %s@%s", t->path, t->snapshot ? t->snapshot : "");
	target_free(t);
}

void parse_targets(const char *text, struct answer *a)
{
	static const struct cli_verb verb = { .name = "fuzz" };
	struct target t;
	struct lines l;

	lines_take(&l, text);
	for (int i = 0; i < l.nr && i < 4; i++) {
		int status[4];

		/* In a folder that does not exist, so that no name is that of a file. */
		status[0] = target_parse(&t, &verb, l.arg[i], NULL, "/nonexistent/image");
		if (status[0] == EXIT_DONE)
			check_target(l.arg[i], &t, ANY, a);
		status[1] = target_parse_image(&t, &verb, l.arg[i]);
		if (status[1] == EXIT_DONE)
			check_target(l.arg[i], &t, HEAD, a);
		status[2] = target_parse_snapshot(&t, &verb, l.arg[i]);
		if (status[2] == EXIT_DONE)
			check_target(l.arg[i], &t, SNAPSHOT, a);
		status[3] = target_parse_new(&t, &verb, l.arg[i]);
		if (status[3] == EXIT_DONE)
			check_target(l.arg[i], &t, HEAD, a);
		for (int k = 0; k < 4; k++) {
			FUZZ_CHECK(status[k] == EXIT_DONE || status[k] == EXIT_USAGE);
			answer_add(a, " %d", status[k]);
		}
	}
	lines_free(&l);
}

/* ---- options of formats ------------------------------------------------------------------------------------------ */

void parse_format_options(const char *text, struct answer *a)
{
	struct img_measure m = { 0 };
	struct img_error err = { 0 };
	uint64_t size = 0;
	struct lines l;
	int ret;

	lines_take(&l, text);
	if (l.nr == 3 && cli_parse_size(l.arg[1], &size)) {
		ret = img_measure(NULL, size, *l.arg[0] ? l.arg[0] : NULL, l.arg[2], &m, &err);
		FUZZ_CHECK(ret == 0 || (err.code == ret && err.msg[0] && !strchr(err.msg, '\n')));
		FUZZ_CHECK(ret != 0 ||
			   (m.required_bytes <= m.fully_allocated_bytes && m.fully_allocated_bytes >= size));
		a->status = ret;
		answer_add(a, "%s %" PRIu64 " %" PRIu64, ret ? err.msg : "", m.required_bytes, m.fully_allocated_bytes);
	}
	lines_free(&l);
}
