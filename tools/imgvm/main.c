/* SPDX-License-Identifier: MIT */
/*
 * imgvm: the table of verbs, the options that they share, and what the manual says of the whole. Everything about a
 * verb stands in its own file; see tools/common/cli.h.
 */
#include "args.h"
#include "verbs.h"

static const struct cli_verb *const verbs[] = {
	&verb_run,    &verb_status, &verb_pause,     &verb_resume, &verb_snapshot, &verb_revert,
	&verb_delete, &verb_rename, &verb_powerdown, &verb_reset,  &verb_quit,	   NULL,
};

static const struct cli_common_option common_options[] = {
	{ WITH_JSON,
	  0,
	  { "json", 0, OPTION_FLAG, NULL, "print the answer as one JSON object with stable keys",
	    offsetof(struct common_args, json) } },
	{ WITH_PID,
	  0,
	  { "pid", 'p', OPTION_NUMBER, "PID", "the machine of this process, where several run from the image",
	    offsetof(struct common_args, pid) } },
};

static int check_common(const struct cli_verb *verb, const void *args)
{
	const struct common_args *common = args;

	if ((verb->common & WITH_PID) && common->pid.given && (common->pid.value < 1 || common->pid.value > INT32_MAX))
		return cli_usage_error(verb, "--pid: that is no process id");
	return EXIT_DONE;
}

static const char man_head[] =
	".SH NAME\n" PROGRAM " \\- run machines from disk images, with snapshots of the whole machine\n"
	".SH SYNOPSIS\n.B " PROGRAM " run\n[\\fIoptions\\fR] \\fIIMAGE\\fR[\\fB@\\fISNAPSHOT\\fR]\n.br\n.B " PROGRAM
	"\n.I VERB\n[\\fIoptions\\fR] \\fIIMAGE\\fR...\n"
	".SH DESCRIPTION\n"
	"Runs x86\\-64 guests with KVM (it needs \\fI/dev/kvm\\fR). Disks are virtio block devices on images of any "
	"format that imgtool(1) knows; beside them a machine has a serial port, a virtio console and a source of random "
	"numbers. It boots by SeaBIOS, or a Linux kernel directly.\n"
	".PP\nA snapshot of a running machine holds processors, memory, devices and disk in one commit of its limg "
	"image. In other formats a snapshot holds the disk.\n"
	".PP\nA running machine is confined: it can open no file and no connection, and makes only the system calls that "
	"it needs (seccomp, Landlock).\n"
	".SH VERBS\n";

static const char man_options[] = "Of the verbs that talk to a running machine (see \\fB" PROGRAM
				  "\\fR \\fIVERB\\fR \\fB\\-h\\fR).\n";

#define EVENT(name, what) ".TP\n.B " name "\n" what "\n"

static const char man_tail[] =
	".SH EVENTS\n"
	"With \\fB\\-\\-json\\fR, \\fBrun\\fR prints one object a line: its \\fBevent\\fR, \\fBms\\fR since the program began, and "
	"more by the event. \\fBlost\\fR, where it is there, counts events that were not read in time.\n" EVENT(
		"started", "the guest runs: \\fBpid\\fR, \\fBresumed\\fR (from a snapshot), \\fBmemory\\fR in bytes, "
			   "\\fBvcpus\\fR, \\fBlandlock\\fR, \\fBseccomp\\fR (what confines it)")
		EVENT("first_output", "the guest printed its first byte") EVENT(
			"snapshot",
			"one was made: \\fBname\\fR, \\fBdisk_only\\fR, \\fBpause_ms\\fR (the guest stood still), "
			"\\fBtotal_ms\\fR, \\fBram_bytes\\fR (written), \\fBpaused_bytes\\fR (of it, while the guest stood "
			"still), \\fBstate_bytes\\fR") EVENT("reverted",
							     "the machine went back: \\fBname\\fR, \\fBtotal_ms\\fR")
			EVENT("verified", "all memory that was resumed has been compared with its checksums") EVENT(
				"reset",
				"the guest, or a user, reset the machine") EVENT("poweroff",
										 "the guest switched its machine off")
				EVENT("error", "\\fBcode\\fR, \\fBerror\\fR (a line of text)") EVENT(
					"exit",
					"the last one: \\fBstatus\\fR") ".SH EXIT STATUS\n"
									".TP\n.B 0\ndone; \\fBrun\\fR: the guest switched its machine off\n"
									".TP\n.B 2\nusage\n"
									".TP\n.B 3\nI/O or system error (disk full, permission, no such file), no machine runs from the image, or "
									"interrupted\n"
									".TP\n.B 4\nan image, or the machine in it, is damaged or is not what it claims to be\n"
									".TP\n.B 5\nin use: another process holds the image\n"
									".TP\n"
									".B 6\nrefused: the disk changed since the snapshot, another machine runs from the snapshot, this host has no KVM or lacks what "
									"the machine needs, existing name\n"
									".TP\n.B 7\nkey missing or wrong\n"
									".TP\n.B 8\n\\fBrun\\fR: ended by the user: Ctrl\\-a x, \\fBquit\\fR, SIGINT, SIGTERM, SIGHUP\n"
									".TP\n.B 9\n\\fBrun\\fR: ended by \\fB\\-\\-timeout\\fR\n"
									".TP\n.B 10\n\\fBrun\\fR: the guest reset its machine, with \\fB\\-\\-no\\-reboot\\fR\n"
									".TP\n.B 11\n\\fBrun\\fR: the guest cannot go on: a processor met what KVM cannot do\n"
									".PP\nIf the image cannot be closed in order, the status is that of this failure.\n"
									".SH FILES\n"
									".TP\n.I $XDG_RUNTIME_DIR/imgvm\ncontrol sockets, named by device and inode of the image; for root without "
									"that variable \\fI/run/imgvm\\fR, else \\fI/tmp/imgvm\\-UID/imgvm\\fR\n"
									".SH SEE ALSO\n.BR imgtool (1)\n";

static const struct cli_program program = {
	.name = PROGRAM,
	.verbs = verbs,
	.common = common_options,
	.nr_common = ARRAY_LEN(common_options),
	.all_common = WITH_JSON | WITH_PID,
	.check = check_common,
	.intro = "Runs machines from disk images. IMAGE@SNAPSHOT resumes the machine that a snapshot holds.",
	.statuses =
		"Exit status: 0 done or powered off, 2 usage, 3 system error, 4 damaged, 5 in use, 6 refused, 7 key, "
		"8 quit, 9 timeout, 10 reset, 11 stuck.",
	.man_head = man_head,
	.man_options = man_options,
	.man_tail = man_tail,
};

int main(int argc, char **argv)
{
	return cli_main(&program, argc, argv);
}
