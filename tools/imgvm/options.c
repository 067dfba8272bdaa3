/* SPDX-License-Identifier: MIT */
/* See options.h. */
#include "options.h"

#include <string.h>

#define MAX_TIMEOUT_S 1000000000u /* 30 years: beyond it, what is added to the clock would overflow on some hosts */

const struct cli_option run_option_table[RUN_OPTIONS] = {
	{ "memory", 'm', OPTION_SIZE, "SIZE", "RAM of the guest; default: 256M, or what a resumed machine has",
	  offsetof(struct run_args, memory) },
	{ "cpus", 'c', OPTION_NUMBER, "N", "processors, 1 to 8; default: 1, or what a resumed machine has",
	  offsetof(struct run_args, cpus) },
	{ "disk", 'd', OPTION_EACH, "IMAGE", "one more disk, as [FMT:]IMAGE[@SNAP]; may be repeated",
	  offsetof(struct run_args, disks) },
	{ "format", 'f', OPTION_TEXT, "FMT", "the format of IMAGE is that: do not look at the content to find out",
	  offsetof(struct run_args, format) },
	{ "allow-refs", 0, OPTION_CHOICE, "none|dir|any",
	  "which files may be opened because an image names them: none, those in the image's own folder and below, any",
	  offsetof(struct run_args, allow_refs) },
	{ "limit", 0, OPTION_EACH, LIMIT_METAVAR, LIMIT_HELP, offsetof(struct run_args, limits) },
	{ "kernel", 'k', OPTION_TEXT, "FILE", "start this Linux kernel (bzImage) instead of what the disk boots",
	  offsetof(struct run_args, kernel) },
	{ "initrd", 'i', OPTION_TEXT, "FILE", "initial RAM disk for the kernel", offsetof(struct run_args, initrd) },
	{ "append", 'a', OPTION_TEXT, "TEXT", "command line for the kernel", offsetof(struct run_args, append) },
	{ "bios", 0, OPTION_TEXT, "FILE", "firmware; default: SeaBIOS, where Debian's package puts it",
	  offsetof(struct run_args, bios) },
	{ "transient", 't', OPTION_FLAG, NULL, "what the guest writes goes to a file that is gone afterwards",
	  offsetof(struct run_args, transient) },
	{ "scratch", 0, OPTION_TEXT, "FOLDER", "where that file is made; default: TMPDIR, or /var/tmp",
	  offsetof(struct run_args, scratch) },
	{ "read-only", 'r', OPTION_FLAG, NULL, "the guest cannot write its disks",
	  offsetof(struct run_args, read_only) },
	{ "revert", 0, OPTION_FLAG, NULL, "go back to SNAP although the disk has changed since: these changes are lost",
	  offsetof(struct run_args, revert) },
	{ "allow-clone", 0, OPTION_FLAG, NULL,
	  "resume SNAP although another machine runs from it: the two share keys and random numbers",
	  offsetof(struct run_args, allow_clone) },
	{ "iops", 0, OPTION_NUMBER, "N", "at most so many disk requests a second", offsetof(struct run_args, iops) },
	{ "bps", 0, OPTION_SIZE, "SIZE", "at most so many bytes a second from and to the disks",
	  offsetof(struct run_args, bps) },
	{ "serial", 0, OPTION_TEXT, "FILE", "the serial port prints there: a file, - for stdout (the default), or none",
	  offsetof(struct run_args, serial) },
	{ "console", 0, OPTION_TEXT, "FILE",
	  "the virtio console prints there: a file, -, or none (the default); with - it takes the place of the serial "
	  "port on the terminal",
	  offsetof(struct run_args, console) },
	{ "debug-port", 0, OPTION_TEXT, "FILE", "what firmware prints to port 0x402 goes there",
	  offsetof(struct run_args, debug_port) },
	{ "timeout", 0, OPTION_NUMBER, "SECONDS", "end the machine after that time, with exit status 9",
	  offsetof(struct run_args, timeout) },
	{ "no-reboot", 0, OPTION_FLAG, NULL, "end when the guest resets itself, with exit status 10",
	  offsetof(struct run_args, no_reboot) },
	{ "json", 0, OPTION_FLAG, NULL,
	  "events on stdout, a JSON object on each line; the serial port then prints to --serial FILE or nowhere",
	  offsetof(struct run_args, json) },
	{ "sandbox", 0, OPTION_CHOICE, "auto|require|off",
	  "confine the running machine by seccomp and Landlock: as far as possible (the default), wholly or not at all, "
	  "not",
	  offsetof(struct run_args, sandbox) },
};

/* ---- disks ------------------------------------------------------------------------------------------------------- */

static enum img_refs refs_of(const char *choice)
{
	if (cli_is(choice, "none"))
		return IMG_REFS_NONE;
	if (cli_is(choice, "dir"))
		return IMG_REFS_DIR;
	return cli_is(choice, "any") ? IMG_REFS_ANY : IMG_REFS_DEFAULT;
}

/* FMT: at the head of a disk's name. Returns the format, and moves *name behind it; NULL where there is none. */
static const char *take_format(const char **name)
{
	const char *format;

	for (size_t i = 0; (format = img_format_name(i)) != NULL; i++) {
		size_t bytes = strlen(format);

		if (strncmp(*name, format, bytes) == 0 && (*name)[bytes] == ':') {
			*name += bytes + 1;
			return format;
		}
	}
	return NULL;
}

static int add_disk(const struct cli_verb *verb, const struct run_args *args, const char *name, const char *format,
		    struct run_options *out)
{
	struct machine_options *m = &out->machine;
	struct target *target = &out->target[m->nr_disks];
	int status;

	if (m->nr_disks == DISKS_MAX)
		return cli_usage_error(verb, "a machine has at most %d disks", DISKS_MAX);
	status = target_parse(target, verb, name, NULL, NULL);
	if (status != EXIT_DONE)
		return status;
	m->disk[m->nr_disks++] = (struct disk_options){
		.path = target->path,
		.snapshot = target->snapshot,
		.format = format,
		.read_only = args->read_only,
		.transient = args->transient,
		.revert = args->revert && target->snapshot,
		.refs = refs_of(args->allow_refs),
		.scratch = args->scratch,
	};
	return EXIT_DONE;
}

static int add_disks(const struct cli_verb *verb, const struct run_args *args, const char *image,
		     struct run_options *out)
{
	struct limits limits = limits_default();
	int status = limits_take(&limits, verb, &args->limits);

	if (status == EXIT_DONE)
		status = add_disk(verb, args, image, args->format, out);

	for (unsigned i = 0; status == EXIT_DONE && i < args->disks.nr; i++) {
		const char *name = args->disks.value[i];
		const char *format = take_format(&name);

		status = add_disk(verb, args, name, format, out);
	}
	for (unsigned i = 0; i < out->machine.nr_disks; i++)
		out->machine.disk[i].limits = limits;
	if (status == EXIT_DONE && args->revert && !out->target[0].snapshot)
		status = cli_usage_error(verb, "--revert needs to know to what: write IMAGE@SNAP");
	return status;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static int check(const struct cli_verb *verb, const struct run_args *args)
{
	if ((args->initrd || args->append) && !args->kernel)
		return cli_usage_error(verb, "--initrd and --append are for --kernel");
	if (args->kernel && args->bios)
		return cli_usage_error(verb, "--kernel starts without firmware: --bios makes no sense with it");
	if (args->transient && (args->read_only || args->revert))
		return cli_usage_error(verb, "--transient leaves the image alone: neither --read-only nor --revert");
	if (args->scratch && !args->transient)
		return cli_usage_error(verb, "--scratch is for --transient");
	if (args->read_only && args->revert)
		return cli_usage_error(verb, "--revert changes the image, --read-only does not");
	if (args->cpus.given && (args->cpus.value < 1 || args->cpus.value > VM_MAX_VCPUS))
		return cli_usage_error(verb, "--cpus: 1 to %d", VM_MAX_VCPUS);
	if (args->memory.given && (args->memory.value < MEMORY_MIN_BYTES || args->memory.value > MEMORY_MAX_BYTES ||
				   args->memory.value % MEMORY_PAGE != 0))
		return cli_usage_error(verb, "--memory: 2M to 1T, in whole pages of 4K");
	if (args->timeout.given && (args->timeout.value < 1 || args->timeout.value > MAX_TIMEOUT_S))
		return cli_usage_error(verb, "--timeout: 1 to %u seconds", MAX_TIMEOUT_S);
	if ((args->iops.given && args->iops.value == 0) || (args->bps.given && args->bps.value == 0))
		return cli_usage_error(verb, "--iops and --bps: at least 1; leave them out for no limit");
	return EXIT_DONE;
}

static bool is_stdout(const char *path)
{
	return path && strcmp(path, "-") == 0;
}

/* One of them has the terminal; events take stdout for themselves. */
static int choose_outputs(const struct cli_verb *verb, const struct run_args *args, struct run_options *out)
{
	bool console_has_it = is_stdout(args->console);

	out->console = args->console && strcmp(args->console, "none") != 0 ? args->console : NULL;
	out->serial = args->serial ? args->serial : args->json || console_has_it ? "none" : "-";
	if (strcmp(out->serial, "none") == 0)
		out->serial = NULL;
	out->debug_port = args->debug_port;
	out->input_to_console = console_has_it || (!out->serial && out->console);
	if ((is_stdout(out->serial) + is_stdout(out->console) + is_stdout(out->debug_port) + args->json) > 1)
		return cli_usage_error(verb,
				       "only one of --serial, --console, --debug-port and --json can have stdout");
	return EXIT_DONE;
}

int options_parse(const struct cli_verb *verb, const struct run_args *args, const char *image, struct run_options *out)
{
	int status = check(verb, args);

	memset(out, 0, sizeof(*out));
	if (status == EXIT_DONE)
		status = choose_outputs(verb, args, out);
	if (status == EXIT_DONE)
		status = add_disks(verb, args, image, out);
	if (status != EXIT_DONE) {
		options_free(out);
		return status;
	}
	out->machine.ram_bytes = args->memory.value;
	out->machine.nr_vcpus = (unsigned)args->cpus.value;
	out->machine.boot = (struct boot_options){
		.bios = args->bios, .kernel = args->kernel, .initrd = args->initrd, .append = args->append
	};
	out->machine.iops = args->iops.value;
	out->machine.bps = args->bps.value;
	out->machine.allow_clone = args->allow_clone;
	out->machine.debug_fd = -1;
	out->no_reboot = args->no_reboot;
	out->json = args->json;
	out->timeout_s = (unsigned)args->timeout.value;
	out->sandbox = confine_mode(args->sandbox);
	return EXIT_DONE;
}

void options_free(struct run_options *opts)
{
	for (unsigned i = 0; i < DISKS_MAX; i++)
		target_free(&opts->target[i]);
}
