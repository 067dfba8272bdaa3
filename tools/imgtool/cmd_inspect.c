/* SPDX-License-Identifier: MIT */
/*
 * imgtool inspect: the verdict on a file from a stranger. The library finds, the policy says what of it may pass, and
 * the exit status is the verdict.
 */
#include <inttypes.h>
#include <string.h>

#include "confined.h"
#include "limit_args.h"
#include "output.h"
#include "policy.h"
#include "target.h"
#include "verbs.h"

struct inspect_args {
	struct common_args common;
	const char *policy;
	bool rules;
};

static const struct cli_option options[] = {
	{ "policy", 0, OPTION_TEXT, "FILE",
	  "JSON: which formats (formats) and findings (allow) pass, which notes do not (deny), and limits",
	  offsetof(struct inspect_args, policy) },
	{ "rules", 0, OPTION_FLAG, NULL, "print what is looked for, and exit", offsetof(struct inspect_args, rules) },
};

enum verdict { VERDICT_SAFE, VERDICT_UNSAFE, VERDICT_UNPARSEABLE };
static const char *const verdict_name[] = { "safe", "unsafe", "unparseable" };

struct report {
	const struct target *target;
	const struct policy *policy;
	bool quiet;
	json_t *findings; /* NULL: text */
	uint64_t notes, unsafe, unparseable, allowed;
};

/* ---- findings ---------------------------------------------------------------------------------------------------- */

static const char *severity_name(enum img_severity severity)
{
	switch (severity) {
	case IMG_SEVERITY_NOTE: return "note";
	case IMG_SEVERITY_UNSAFE: return "unsafe";
	case IMG_SEVERITY_UNPARSEABLE: return "unparseable";
	}
	return "unknown";
}

/* "unsafe: a.qcow2: offset 0x48: names a backing file: '/etc/passwd' [backing-file]" */
static void print_finding(const struct report *report, const struct img_inspect_finding *f, const char *severity)
{
	printf("%s: ", severity);
	output_escaped(stdout, report->target->path);
	if (f->file_off != UINT64_MAX)
		printf(": offset 0x%" PRIx64, f->file_off);
	fputs(": ", stdout);
	output_escaped(stdout, f->msg);
	printf(" [%s]\n", f->id);
}

static void take_finding(void *ctx, const struct img_inspect_finding *f)
{
	struct report *report = ctx;
	enum img_severity severity = f->severity;
	bool allowed = false;

	if (severity == IMG_SEVERITY_NOTE && policy_denies(report->policy, f->id))
		severity = IMG_SEVERITY_UNSAFE;
	else if (severity == IMG_SEVERITY_UNSAFE)
		allowed = policy_allows(report->policy, f->id);
	if (allowed)
		report->allowed++;
	else if (severity == IMG_SEVERITY_NOTE)
		report->notes++;
	else if (severity == IMG_SEVERITY_UNSAFE)
		report->unsafe++;
	else
		report->unparseable++;
	if (report->findings)
		json_array_append_new(report->findings,
				      json_pack("{s:s, s:s, s:b, s:o, s:o}", "id", f->id, "severity",
						severity_name(severity), "allowed", allowed, "offset",
						f->file_off == UINT64_MAX ? json_null() : output_json_size(f->file_off),
						"message", output_json_text(f->msg)));
	else if (!report->quiet)
		print_finding(report, f, allowed ? "allowed" : severity_name(severity));
}

/* ---- the verdict ------------------------------------------------------------------------------------------------- */

/* What is unsafe is so whatever else cannot be judged. */
static enum verdict verdict_of(const struct report *report)
{
	if (report->unsafe)
		return VERDICT_UNSAFE;
	return report->unparseable ? VERDICT_UNPARSEABLE : VERDICT_SAFE;
}

static int status_of(enum verdict verdict)
{
	return verdict == VERDICT_SAFE ? EXIT_DONE : verdict == VERDICT_UNSAFE ? EXIT_REFUSED : EXIT_DAMAGED;
}

static int finish(const struct report *report, const struct img_inspect_result *r)
{
	enum verdict verdict = verdict_of(report);
	int printed;

	if (!report->findings) {
		if (report->quiet)
			return status_of(verdict);
		output_escaped(stdout, report->target->path);
		printf(": %s (%s): %" PRIu64 " unsafe, %" PRIu64 " unparseable, %" PRIu64 " allowed, %" PRIu64
		       " notes\n",
		       verdict_name[verdict], r->format, report->unsafe, report->unparseable, report->allowed,
		       report->notes);
		return status_of(verdict);
	}
	printed = output_json(
		json_pack("{s:o, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:O}", "filename",
			  output_json_text(report->target->path), "verdict", verdict_name[verdict], "format", r->format,
			  "virtual_size", output_json_size(r->virtual_bytes), "file_size",
			  output_json_size(r->file_bytes), "unsafe", output_json_size(report->unsafe), "unparseable",
			  output_json_size(report->unparseable), "allowed", output_json_size(report->allowed), "notes",
			  output_json_size(report->notes), "findings", report->findings));
	return printed != EXIT_DONE ? printed : status_of(verdict);
}

static int inspect(const struct inspect_args *args, struct report *report)
{
	struct limits limits = report->policy->limits;
	struct img_inspect_options how = {
		.struct_size = sizeof(how),
		.format = args->common.format,
		.flags = args->common.force_share ? IMG_OPEN_FORCE_SHARE : 0u,
		.formats = report->policy->has_formats ? report->policy->formats : NULL,
		.budget = &limits.budget,
	};
	const struct img_grant name = { report->target->path, IMG_GRANT_READ };
	struct img_inspect_result result;
	struct img_error err = { .code = IMG_OK };
	int status = confined_begin(&args->common, &name, 1, CONFINED_NO_REFS);

	if (status != EXIT_DONE)
		return status;
	how.host = confined_host();
	limits_add(&limits, &args->common);
	how.max_virtual_bytes = limits.max_virtual_bytes;
	if (img_inspect(report->target->path, &how, take_finding, report, &result, &err) != 0)
		return cli_fail(report->target->path, &err);
	return finish(report, &result);
}

static int print_rules(bool as_json)
{
	const struct img_inspect_rule *rule;
	json_t *list = as_json ? json_array() : NULL;

	for (size_t i = 0; (rule = img_inspect_rule(i)) != NULL; i++) {
		if (list)
			json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "id", rule->id, "severity",
							      severity_name(rule->severity), "what", rule->what));
		else
			printf("%-22s %-12s %s\n", rule->id, severity_name(rule->severity), rule->what);
	}
	return list ? output_json(json_pack("{s:o}", "rules", list)) : EXIT_DONE;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct inspect_args *args = verb_args;
	struct report report = { .quiet = args->common.quiet };
	struct policy policy;
	struct target target;
	int status;

	if (args->rules)
		return nr_operands == 0 ? print_rules(args->common.json) :
					  cli_usage_error(verb, "--rules takes no file");
	if (nr_operands == 0)
		return cli_usage_error(verb, "FILE is missing");
	status = target_parse_image(&target, verb, operands[0]);
	if (status != EXIT_DONE)
		return status;
	status = policy_load(&policy, args->policy);
	report.target = &target;
	report.policy = &policy;
	report.findings = args->common.json ? json_array() : NULL;
	if (status == EXIT_DONE)
		status = inspect(args, &report);
	json_decref(report.findings);
	policy_free(&policy);
	target_free(&target);
	return status;
}

const struct cli_verb verb_inspect = {
	.name = "inspect",
	.operands = "FILE",
	.summary = "Judges an untrusted image without opening anything else",
	.details =
		"Looks at head and tail for every known format, at all that the image names wherever it hides, at "
		"features, extensions, tables, shared data, expansion, snapshots, state, encryption and names, and at "
		"the beginning and end of the disk. It costs bounded time and memory whatever the file holds.\n\n"
		"The exit status is the verdict: 0 safe, 6 unsafe, 4 it cannot be parsed (and nothing unsafe was "
		"found). Notes do not change it. Each finding has the name of a rule, which --rules explains.\n\n"
		"A policy is a JSON object: {\"formats\": [\"qcow2\", \"raw\"], \"allow\": [\"backing-file\"], \"deny\": "
		"[\"snapshots\"], \"limits\": {\"virtual-size\": \"1T\", \"expansion\": 100}}. Each key may be left out; "
		"a rule or limit that does not exist is an error. check-time is for the whole inspection, 60 seconds "
		"unless told otherwise.",
	.example = PROGRAM " inspect --policy upload.json upload.qcow2",
	.min_operands = 0,
	.max_operands = 1,
	.common = WITH_JSON,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct inspect_args),
	.run = run,
};
