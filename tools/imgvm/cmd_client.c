/* SPDX-License-Identifier: MIT */
/* The verbs that ask something of a machine that runs: each sends one request and prints the answer. */
#include <inttypes.h>
#include <unistd.h>

#include "control.h"
#include "live.h"
#include "output.h"
#include "target.h"
#include "verbs.h"

/* Prints an answer (borrowed). */
typedef void (*print_fn)(const json_t *answer);

/* Sends the request (owned) to the machine of target, which is freed, and prints the answer. */
static int ask(struct target *target, const struct common_args *args, json_t *request, print_fn print)
{
	struct img_error err = { .code = IMG_OK };
	json_t *answer = NULL;
	int fd = -1, status = EXIT_DONE;

	if (!request)
		status = cli_usage_error(&verb_status, "a name is not UTF-8");
	else if (control_connect_any(target->path, (pid_t)args->pid.value, &fd, &err) != 0 ||
		 control_call(fd, request, &answer, &err) != 0)
		status = cli_fail(target->path, &err);
	else if (args->json)
		status = output_json(json_incref(answer));
	else if (print)
		print(answer);
	if (fd >= 0)
		close(fd);
	json_decref(answer);
	json_decref(request);
	target_free(target);
	return status;
}

/* A verb of IMAGE without further words. */
static int ask_plainly(const struct cli_verb *verb, const struct common_args *args, const char *operand, print_fn print)
{
	struct target target;
	int status = target_parse_image(&target, verb, operand);

	return status == EXIT_DONE ? ask(&target, args, json_pack("{s:s}", "command", verb->name), print) : status;
}

/* A verb of IMAGE@NAME. key, value: one more member (owned), or NULL. */
static int ask_named(const struct cli_verb *verb, const struct common_args *args, const char *operand, const char *key,
		     json_t *value, print_fn print)
{
	struct target target;
	json_t *request;
	int status = target_parse_snapshot(&target, verb, operand);

	if (status != EXIT_DONE) {
		json_decref(value);
		return status;
	}
	request = json_pack("{s:s, s:s}", "command", verb->name, "name", target.snapshot);
	if (key && json_object_set_new(request, key, value) != 0) {
		json_decref(request);
		request = NULL;
	}
	return ask(&target, args, request, print);
}

static int run_plain(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return ask_plainly(verb, args, operands[0], NULL);
}

/* ---- status ------------------------------------------------------------------------------------------------------ */

static uint64_t number(const json_t *object, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(object, key));

	return value < 0 ? 0 : (uint64_t)value;
}

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "-";
}

static void print_field(const char *name, const char *value)
{
	printf("%-12s ", name);
	output_escaped(stdout, value);
	putchar('\n');
}

static void print_disk(const json_t *disk)
{
	char size[SIZE_TEXT_BYTES], in[SIZE_TEXT_BYTES], out[SIZE_TEXT_BYTES];

	print_field("disk:", text(disk, "path"));
	printf("  %s, %s%s%s; read %" PRIu64 " times %s, written %" PRIu64 " times %s, flushed %" PRIu64
	       " times, %" PRIu64 " errors\n",
	       text(disk, "format"), output_size(number(disk, "virtual_size"), size),
	       json_is_true(json_object_get(disk, "read_only")) ? ", read-only" : "",
	       json_is_true(json_object_get(disk, "transient")) ? ", transient" : "", number(disk, "reads"),
	       output_size(number(disk, "read_bytes"), in), number(disk, "writes"),
	       output_size(number(disk, "write_bytes"), out), number(disk, "flushes"), number(disk, "errors"));
}

static void print_status(const json_t *answer)
{
	const json_t *sandbox = json_object_get(answer, "sandbox"), *disks = json_object_get(answer, "disks");
	bool seccomp = json_is_true(json_object_get(sandbox, "seccomp"));
	bool landlock = json_is_true(json_object_get(sandbox, "landlock"));
	char memory[SIZE_TEXT_BYTES];

	print_field("state:", text(answer, "state"));
	printf("%-12s %" PRIu64 "\n", "pid:", number(answer, "pid"));
	print_field("memory:", output_size(number(answer, "memory"), memory));
	printf("%-12s %" PRIu64 "\n", "processors:", number(answer, "vcpus"));
	printf("%-12s %.1f s\n", "up for:", json_real_value(json_object_get(answer, "uptime_ms")) / 1000);
	print_field("snapshot:", text(answer, "base_snapshot"));
	print_field("sandbox:", seccomp && landlock ? "seccomp, landlock" :
				seccomp		    ? "seccomp" :
				landlock	    ? "landlock" :
						      "none");
	for (size_t i = 0; i < json_array_size(disks); i++)
		print_disk(json_array_get(disks, i));
}

static int run_status(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return ask_plainly(verb, args, operands[0], print_status);
}

const struct cli_verb verb_status = {
	.name = "status",
	.operands = "IMAGE",
	.summary = "Tells what a running machine is and does",
	.details = "state is running, paused, or stuck: a revert failed half way. snapshot is the one that the machine "
		   "was resumed from, went back to, or that was made last.",
	.example = PROGRAM " status --json debian.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON | WITH_PID,
	.args_bytes = sizeof(struct common_args),
	.run = run_status,
};

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

struct snapshot_args {
	struct common_args common;
	bool disk_only;
};

static const struct cli_option snapshot_options[] = {
	{ "disk-only", 0, OPTION_FLAG, NULL, "the disk alone, as after a power cut at this moment",
	  offsetof(struct snapshot_args, disk_only) },
};

static int run_snapshot(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct snapshot_args *args = verb_args;

	(void)nr_operands;
	return ask_named(verb, &args->common, operands[0], "disk_only", json_boolean(args->disk_only),
			 live_print_snapshot);
}

const struct cli_verb verb_snapshot = {
	.name = "snapshot",
	.operands = "IMAGE@NAME",
	.summary = "Keeps a running machine, processors, memory and disks, as a snapshot",
	.details =
		"Most of the memory is written while the guest runs; then it stands still for the rest. Memory that "
		"has not changed since the last snapshot is not written again. imgtool snapshot create does the same. "
		"All writable disks of the machine take part, under the same name.",
	.example = PROGRAM " snapshot debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON | WITH_PID,
	.options = snapshot_options,
	.nr_options = ARRAY_LEN(snapshot_options),
	.args_bytes = sizeof(struct snapshot_args),
	.run = run_snapshot,
};

static int run_revert(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return ask_named(verb, args, operands[0], NULL, NULL, live_print_revert);
}

const struct cli_verb verb_revert = {
	.name = "revert",
	.operands = "IMAGE@NAME",
	.summary = "Makes a running machine again what it was at a snapshot",
	.details =
		"Its present state is lost; the snapshot stays. A snapshot without a machine: the disks go back, and "
		"the machine is reset.",
	.example = PROGRAM " revert debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON | WITH_PID,
	.args_bytes = sizeof(struct common_args),
	.run = run_revert,
};

static int run_delete(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return ask_named(verb, args, operands[0], NULL, NULL, NULL);
}

const struct cli_verb verb_delete = {
	.name = "delete",
	.operands = "IMAGE@NAME",
	.summary = "Forgets a snapshot of a running machine",
	.details = "The machine does not notice, even if it was resumed from it.",
	.example = PROGRAM " delete debian.limg@before",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_JSON | WITH_PID,
	.args_bytes = sizeof(struct common_args),
	.run = run_delete,
};

static int run_rename(const struct cli_verb *verb, void *args, char **operands, unsigned nr_operands)
{
	(void)nr_operands;
	return ask_named(verb, args, operands[0], "new_name", json_string(operands[1]), NULL);
}

const struct cli_verb verb_rename = {
	.name = "rename",
	.operands = "IMAGE@OLD NEW",
	.summary = "Gives a snapshot of a running machine another name",
	.example = PROGRAM " rename debian.limg@before v1",
	.min_operands = 2,
	.max_operands = 2,
	.common = WITH_JSON | WITH_PID,
	.args_bytes = sizeof(struct common_args),
	.run = run_rename,
};

/* ---- without further words --------------------------------------------------------------------------------------- */

#define PLAIN_VERB(word, what, more, sample)              \
	const struct cli_verb verb_##word = {             \
		.name = #word,                            \
		.operands = "IMAGE",                      \
		.summary = (what),                        \
		.details = (more),                        \
		.example = (sample),                      \
		.min_operands = 1,                        \
		.max_operands = 1,                        \
		.common = WITH_JSON | WITH_PID,           \
		.args_bytes = sizeof(struct common_args), \
		.run = run_plain,                         \
	}

PLAIN_VERB(pause, "Stops a running machine where it is",
	   "When the command returns nothing of the machine runs and no request to its disks is under way.",
	   PROGRAM " pause debian.limg");
PLAIN_VERB(resume, "Lets a paused machine go on", NULL, PROGRAM " resume debian.limg");
PLAIN_VERB(powerdown, "Presses the power button of a running machine",
	   "The guest decides what it does about it; a machine that it powers off ends with exit status 0. Refused if "
	   "the guest does not listen to the button.",
	   PROGRAM " powerdown debian.limg");
PLAIN_VERB(reset, "Presses the reset button of a running machine",
	   "The guest is not asked, and loses what it had in memory.", PROGRAM " reset debian.limg");
PLAIN_VERB(quit, "Ends a running machine at once",
	   "As pulling its plug: what the guest has flushed is on its disks. The machine ends with exit status 8.",
	   PROGRAM " quit debian.limg");
