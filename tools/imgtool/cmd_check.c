/* SPDX-License-Identifier: MIT */
/*
 * imgtool check: verifies every structure and checksum. A damaged image is a result, not a failure: also one that is so
 * damaged that it cannot be opened is reported as a finding.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "confined.h"
#include "limit_args.h"
#include "open.h"
#include "output.h"
#include "progress.h"
#include "verbs.h"

struct check_args {
	struct common_args common;
	bool repair;
	bool metadata;
};

static const struct cli_option options[] = {
	{ "repair", 'r', OPTION_FLAG, NULL, "repair what can be repaired without losing content",
	  offsetof(struct check_args, repair) },
	{ "metadata", 0, OPTION_FLAG, NULL, "structures only: do not read the data",
	  offsetof(struct check_args, metadata) },
};

struct report {
	const struct target *target;
	struct progress progress;
	bool quiet, may_be_stale;
	/* Somebody writes the image, so that what does not fit may be what is just being written. */
	bool written;
	json_t *findings; /* NULL: text */
	/* Of text, while it is written: those that are of no account are not printed. Owned. */
	struct img_finding *held;
	size_t nr_held;
};

#define MAX_HELD    1024
#define MAX_HOLDERS 64

static const char *kind_name(enum img_finding_kind kind)
{
	switch (kind) {
	case IMG_FINDING_DAMAGE: return "damage";
	case IMG_FINDING_LEAK: return "leak";
	case IMG_FINDING_REDUNDANCY: return "redundancy";
	case IMG_FINDING_NOTE: return "note";
	}
	return "unknown";
}

static json_t *json_offset(uint64_t off)
{
	return off == UINT64_MAX ? json_null() : output_json_size(off);
}

static json_t *json_finding(const struct img_finding *f)
{
	return json_pack("{s:s, s:o, s:o, s:o, s:o, s:b, s:o}", "kind", kind_name(f->kind), "file_offset",
			 json_offset(f->file_off), "guest_offset", json_offset(f->guest_off), "snapshot",
			 output_json_text(f->where[0] ? f->where : NULL), "rule",
			 output_json_text(f->rule[0] ? f->rule : NULL), "repaired", f->repaired, "message",
			 output_json_text(f->msg));
}

/* "damage: d.limg: file offset 0x3000, snapshot 'x', guest offset 0x1000: block checksum does not hold [LIMG-11]" */
static void print_finding(const struct report *report, const struct img_finding *f)
{
	printf("%s: ", kind_name(f->kind));
	output_escaped(stdout, report->target->path);
	fputs(": ", stdout);
	if (f->file_off != UINT64_MAX)
		printf("file offset 0x%" PRIx64 "%s", f->file_off,
		       f->where[0] || f->guest_off != UINT64_MAX ? ", " : ": ");
	if (f->where[0]) {
		fputs("snapshot '", stdout);
		output_escaped(stdout, f->where);
		fputs(f->guest_off != UINT64_MAX ? "', " : "': ", stdout);
	}
	if (f->guest_off != UINT64_MAX)
		printf("guest offset 0x%" PRIx64 ": ", f->guest_off);
	output_escaped(stdout, f->msg);
	if (f->rule[0]) {
		fputs(" [", stdout);
		output_escaped(stdout, f->rule);
		putchar(']');
	}
	puts(f->repaired ? " (repaired)" : "");
}

static void add_finding(void *ctx, const struct img_finding *finding)
{
	struct report *report = ctx;

	if (report->findings)
		json_array_append_new(report->findings, json_finding(finding));
	else if (report->held && report->nr_held < MAX_HELD)
		report->held[report->nr_held++] = *finding;
	else if (!report->held && !report->quiet)
		print_finding(report, finding);
}

static uint64_t unrepaired(const struct img_check_result *r)
{
	uint64_t found = r->damage + r->leaks + r->redundancy;

	return found > r->repaired ? found - r->repaired : 0;
}

static void print_summary(const struct report *report, const struct img_check_result *r)
{
	char data[SIZE_TEXT_BYTES], metadata[SIZE_TEXT_BYTES], leaked[SIZE_TEXT_BYTES];

	output_escaped(stdout, report->target->path);
	if (report->target->snapshot) {
		putchar('@');
		output_escaped(stdout, report->target->snapshot);
	}
	if (r->damage + r->leaks + r->redundancy == 0)
		printf(": clean; %s of data and %s of metadata verified\n", output_size(r->data_bytes, data),
		       output_size(r->metadata_bytes, metadata));
	else
		printf(": %" PRIu64 " damaged, %" PRIu64 " spare copies damaged, %" PRIu64 " leaks (%s); %" PRIu64
		       " repaired\n",
		       r->damage, r->redundancy, r->leaks, output_size(r->leaked_bytes, leaked), r->repaired);
}

/* Is the verdict about the image, and not about a moment of it? */
static bool is_conclusive(const struct report *report, const struct img_check_result *r)
{
	return !report->written || unrepaired(r) == 0;
}

static int finish(const struct report *report, const struct img_check_result *r)
{
	bool conclusive = is_conclusive(report, r);
	int status = !conclusive ? EXIT_IN_USE : unrepaired(r) ? EXIT_DAMAGED : EXIT_DONE, printed;

	if (!conclusive)
		cli_message(report->target->path,
			    "it is being written: what does not fit (%" PRIu64
			    ") may be what changed meanwhile: check it when nobody writes it",
			    unrepaired(r));
	if (!report->findings && !conclusive)
		return status;
	for (size_t i = 0; i < report->nr_held && !report->quiet; i++)
		print_finding(report, &report->held[i]);
	if (!report->findings) {
		if (!report->quiet)
			print_summary(report, r);
		return status;
	}
	printed = output_json(json_pack(
		"{s:o, s:o, s:b, s:b, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:O}", "filename",
		output_json_text(report->target->path), "snapshot", output_json_text(report->target->snapshot), "clean",
		status == EXIT_DONE, "may_be_stale", report->may_be_stale, "conclusive", conclusive, "damage",
		output_json_size(r->damage), "leaks", output_json_size(r->leaks), "redundancy",
		output_json_size(r->redundancy), "repaired", output_json_size(r->repaired), "leaked_bytes",
		output_json_size(r->leaked_bytes), "data_bytes", output_json_size(r->data_bytes), "metadata_bytes",
		output_json_size(r->metadata_bytes), "findings", report->findings));
	return printed != EXIT_DONE ? printed : status;
}

/* What kept the image from being opened, as a finding. */
static int report_unopened(struct report *report, const struct img_error *err)
{
	struct img_finding finding = { .kind = IMG_FINDING_DAMAGE, .file_off = err->offset, .guest_off = UINT64_MAX };
	struct img_check_result result = { .damage = 1 };

	if (err->code != IMG_E_CORRUPT || (!report->findings && !report->written))
		return cli_fail(report->target->path, err);
	snprintf(finding.msg, sizeof(finding.msg), "%s", err->msg);
	add_finding(report, &finding);
	return finish(report, &result);
}

static int check(const struct cli_verb *verb, const struct check_args *args, struct report *report)
{
	struct limits limits = limits_of(&args->common);
	/* the parent is not part of this file: it has a check of its own */
	struct img_open_options open = {
		.struct_size = sizeof(open),
		.format = args->common.format,
		.snapshot = report->target->snapshot,
		.flags = IMG_OPEN_NO_BACKING | (args->repair ? IMG_OPEN_WRITE : 0u) |
			 (args->common.force_share ? IMG_OPEN_FORCE_SHARE : 0u),
		.refs = open_refs(&args->common),
	};
	unsigned flags = (args->repair ? IMG_CHECK_REPAIR : 0u) | (args->metadata ? IMG_CHECK_METADATA : 0u);
	const struct img_grant name = { report->target->path, args->repair ? IMG_GRANT_WRITE : IMG_GRANT_READ };
	struct img_check_result result = { 0 };
	struct img_error err = { .code = IMG_OK };
	/* what it names as its own data may hold tables */
	int ret = confined_begin(&args->common, &name, 1, 0);
	struct img_progress progress;

	if (ret != EXIT_DONE)
		return ret;
	open.host = confined_host();
	limits_apply(&limits, &open);
	progress = progress_begin(&report->progress, verb, &args->common);
	ret = img_check_file(report->target->path, &open, flags, add_finding, report, &progress, &result, &err);

	progress_end(&report->progress, ret == 0);
	if (args->common.force_share && !args->common.quiet && ret == 0)
		open_tell_stale(report->target);
	return ret == 0 ? finish(report, &result) : report_unopened(report, &err);
}

/* Asked before the process can open nothing any more. */
static bool is_written(const struct target *target)
{
	struct img_holder holders[MAX_HOLDERS];
	bool written = false;
	size_t nr;

	if (img_holders(target->path, holders, MAX_HOLDERS, &nr, NULL) != 0)
		return false;
	for (size_t i = 0; i < nr && i < MAX_HOLDERS; i++)
		written |= holders[i].writes;
	return written;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct check_args *args = verb_args;
	struct report report = { .quiet = args->common.quiet, .may_be_stale = args->common.force_share };
	struct target target;
	int status = target_parse(&target, verb, operands[0], args->common.snapshot, NULL);

	(void)nr_operands;
	if (status != EXIT_DONE)
		return status;
	if (args->repair && (args->common.force_share || target.snapshot)) {
		status = cli_usage_error(verb, "%s",
					 target.snapshot ? "a snapshot never changes: --repair is for the image" :
							   "--repair writes, and -U only reads");
		target_free(&target);
		return status;
	}
	report.target = &target;
	report.findings = args->common.json ? json_array() : NULL;
	report.written = args->common.force_share && is_written(&target);
	if (report.written && !report.findings)
		report.held = calloc(MAX_HELD, sizeof(*report.held)); /* without: they are printed at once */
	status = check(verb, args, &report);
	json_decref(report.findings);
	free(report.held);
	target_free(&target);
	return status;
}

const struct cli_verb verb_check = {
	.name = "check",
	.operands = "FILE[@SNAP]",
	.summary = "Verifies every structure and every checksum of an image and its snapshots",
	.details = "Each finding is one line with its place: damage (content or structure is lost or wrong), "
		   "redundancy (a spare copy is damaged, content is whole), leak (space is lost, content is whole). "
		   "The exit status is 4 if anything was found and not repaired; with -U, of an image that somebody "
		   "writes meanwhile, it is 5, as nobody can tell then. FILE alone is verified, not its "
		   "parents; with @SNAP only what that snapshot needs.",
	.example = PROGRAM " check debian.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_SNAPSHOT | WITH_JSON | WITH_PROGRESS,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct check_args),
	.run = run,
};
