/* SPDX-License-Identifier: MIT */
/*
 * imgtool: the table of verbs, the options that they share, and what the manual says of the whole. Everything about a
 * verb (options, description, example) stands in its own file; see cli.h.
 */
#include "args.h"
#include "cell.h"
#include "confined.h"
#include "limit_args.h"
#include "signals.h"
#include "verbs.h"

static const struct cli_verb *const verbs[] = {
	&verb_create,
	&verb_info,
	&verb_convert,
	&verb_snapshot_create,
	&verb_snapshot_list,
	&verb_snapshot_delete,
	&verb_snapshot_rename,
	&verb_snapshot_diff,
	&verb_revert,
	&verb_bitmap_add,
	&verb_bitmap_list,
	&verb_bitmap_remove,
	&verb_bitmap_enable,
	&verb_bitmap_disable,
	&verb_bitmap_clear,
	&verb_bitmap_merge,
	&verb_commit,
	&verb_rebase,
	&verb_flatten,
	&verb_resize,
	&verb_amend,
	&verb_check,
	&verb_inspect,
	&verb_compare,
	&verb_checksum,
	&verb_map,
	&verb_measure,
	&verb_read,
	&verb_write,
	&verb_bench,
	&verb_lock,
	&verb_doctor,
	NULL,
};

static const struct cli_common_option common_options[] = {
	{ 0,
	  0,
	  { "format", 'f', OPTION_TEXT, "FMT", "the format is that: do not look at the content to find out",
	    offsetof(struct common_args, format) } },
	{ WITH_SNAPSHOT,
	  0,
	  { "snapshot", 0, OPTION_TEXT, "NAME",
	    "read this internal snapshot; the operand is then a file name as it stands, with every '@' in it",
	    offsetof(struct common_args, snapshot) } },
	{ 0,
	  NO_FORCE_SHARE,
	  { "force-share", 'U', OPTION_FLAG, NULL, "read an image that is in use; what is read may be stale",
	    offsetof(struct common_args, force_share) } },
	{ 0,
	  0,
	  { "allow-refs", 0, OPTION_CHOICE, "none|dir|any",
	    "which files may be opened because an image names them: none, those in the image's own folder and below, "
	    "any",
	    offsetof(struct common_args, allow_refs) } },
	{ 0, 0, { "limit", 0, OPTION_EACH, LIMIT_METAVAR, LIMIT_HELP, offsetof(struct common_args, limits) } },
	{ WITH_JSON,
	  0,
	  { "json", 0, OPTION_FLAG, NULL, "print one JSON object with stable keys",
	    offsetof(struct common_args, json) } },
	{ WITH_PROGRESS,
	  0,
	  { "progress", 'p', OPTION_WORD, "bar|json|none|auto",
	    "progress on stderr: a bar, JSON lines, nothing; auto, the default, is a bar on a terminal",
	    offsetof(struct common_args, progress) } },
	{ 0,
	  0,
	  { "quiet", 'q', OPTION_FLAG, NULL, "no progress, no notices, no verdicts: errors and the exit status only",
	    offsetof(struct common_args, quiet) } },
	{ 0,
	  0,
	  { "sandbox", 0, OPTION_CHOICE, "auto|require|off",
	    "look at images in a process that can open no files, make no connections and run no programs; auto, the default: as far "
	    "as this machine has the means; require: refuse where one lacks",
	    offsetof(struct common_args, sandbox) } },
};

static int check_common(const struct cli_verb *verb, const void *args)
{
	const struct common_args *common = args;
	struct limits limits;

	if (common->force_share && (verb->common & NO_FORCE_SHARE))
		return cli_usage_error(verb, "-U only reads, and this verb writes");
	/* also of verbs that open no image: the answer does not depend on what is asked of it */
	if (confine_mode(common->sandbox) == CONFINE_REQUIRE && cell_lacks()) {
		cli_message(NULL, "--sandbox=require: %s: use --sandbox=auto to go on without", cell_lacks());
		return EXIT_REFUSED;
	}
	return limits_parse(verb, common, &limits);
}

static const char man_head[] =
	".SH NAME\n" PROGRAM " \\- create, convert, snapshot and verify disk images\n"
	".SH SYNOPSIS\n.B " PROGRAM "\n.I VERB\n[\\fIoptions\\fR] \\fIIMAGE\\fR...\n"
	".SH DESCRIPTION\n"
	"\\fIIMAGE\\fB@\\fISNAPSHOT\\fR names an internal snapshot wherever an image is read. A file whose name "
	"contains '@' is written with another one at its end (\\fB./a@b@\\fR), or given with \\fB\\-\\-snapshot\\fR.\n"
	".PP\nSizes take K, M, G, T, P (powers of 1024), fractions (1.5G), or are hexadecimal with 0x.\n"
	".PP\nA file without a known magic is read as raw, but is written only with \\fB\\-f raw\\fR.\n"
	".PP\nResults go to stdout, everything else to stderr. Names that come from images are escaped for terminals.\n"
	".PP\n"
	"SIGINT, SIGTERM and SIGHUP end a verb cleanly: no half\\-written destination stays under its final name, and "
	"the source is untouched. Then " PROGRAM
	" dies by the signal, for which a shell has the status 128 and its number: 130 "
	"after Ctrl\\-C.\n"
	".SH SANDBOX\n"
	"Before it looks at the first image a verb locks itself in: Landlock and seccomp leave it what is open, memory, time and threads. "
	"Files are opened for it by a second process, \\fBimg\\-broker\\fR, which was made before and knows the names of the command "
	"line, what may be done with each, and the policy for references; whatever an image has made of the verb, it gets no other file. "
	"\\fB\\-\\-sandbox=require\\fR refuses where the kernel has not both, \\fBdoctor\\fR says what there is.\n"
	".SH VERBS\n";

static const char man_tail[] =
	".SH EXIT STATUS\n"
	".TP\n.B 0\ndone; \\fBcompare\\fR: same; \\fBcheck\\fR: clean; \\fBinspect\\fR: safe\n"
	".TP\n.B 1\n\\fBcompare\\fR: different\n"
	".TP\n.B 2\nusage\n"
	".TP\n.B 3\nI/O or system error (disk full, permission, no such file)\n"
	".TP\n.B 4\nthe image is damaged or is not what it claims to be\n"
	".TP\n.B 5\nin use: another process holds it (its pid is named where it can be found)\n"
	".TP\n"
	".B 6\n"
	"refused for safety: external reference, unknown feature, changed base, existing file, "
	"limit exceeded; \\fBinspect\\fR: unsafe; or the program did what its sandbox forbids, which is told on stderr\n"
	".TP\n.B 7\nkey missing or wrong\n"
	".SH SEE ALSO\n.BR qemu\\-img (1)\n";

static const struct cli_program program = {
	.name = PROGRAM,
	.verbs = verbs,
	.common = common_options,
	.nr_common = ARRAY_LEN(common_options),
	.all_common = WITH_SNAPSHOT | WITH_PROGRESS | WITH_JSON,
	.check = check_common,
	.intro = "IMAGE@SNAPSHOT names a snapshot wherever an image is read.",
	.statuses =
		"Exit status: 0 done or same, 1 different, 2 usage, 3 system error, 4 damaged, 5 in use, 6 refused, "
		"7 key.",
	.man_head = man_head,
	.man_options = "\\fB\\-f\\fR, \\fB\\-U\\fR, \\fB\\-\\-allow\\-refs\\fR, \\fB\\-\\-limit\\fR, \\fB\\-q\\fR, "
		       "\\fB\\-\\-sandbox\\fR and \\fB\\-h\\fR are options of every verb, the others of those where "
		       "they make sense (see \\fB" PROGRAM "\\fR \\fIVERB\\fR \\fB\\-h\\fR).\n",
	.man_tail = man_tail,
};

int main(int argc, char **argv)
{
	int status;

	signals_install();
	status = cli_main(&program, argc, argv);
	confined_end();
	signals_pass_on();
	return status;
}
