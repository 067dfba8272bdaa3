/* SPDX-License-Identifier: MIT */
/* What clients of the control socket may ask of the machine (tools/control/control.h). The answers' keys are stable. */
#include <string.h>
#include <unistd.h>

#include "fail.h"
#include "output.h"
#include "platform.h"
#include "run.h"

static double ms(uint64_t ns)
{
	uint64_t us = ns / 1000;

	return (double)us / 1000;
}

static json_t *done(void)
{
	return json_pack("{s:b}", "ok", 1);
}

/* A string of the request that may name a snapshot. NULL, with err filled, if it is not there. */
static const char *name_of(const json_t *request, const char *key, struct img_error *err)
{
	const json_t *value = json_object_get(request, key);
	const char *name = json_string_value(value);

	if (name && name[0] && json_string_length(value) == strlen(name) && strlen(name) <= IMG_SNAPSHOT_NAME_MAX)
		return name;
	fail(err, IMG_E_INVALID, "the request has no %s of 1 to %d bytes", key, IMG_SNAPSHOT_NAME_MAX);
	return NULL;
}

/* ---- status ------------------------------------------------------------------------------------------------------ */

static json_t *disk_status(struct run *run, unsigned i)
{
	struct disk *d = &run->machine.disk[i];
	struct virtio_blk_stats stats = { 0 };

	virtio_blk_stats(run->machine.blk[i], &stats);
	return json_pack("{s:o, s:s, s:o, s:b, s:b, s:o, s:I, s:I, s:I, s:o, s:o, s:I}", "path",
			 output_json_text(d->path), "format", img_format(d->base ? d->base : d->img), "virtual_size",
			 output_json_size(img_size(d->img)), "read_only", d->read_only, "transient", d->transient,
			 "snapshot", output_json_text(d->snapshot[0] ? d->snapshot : NULL), "reads",
			 (json_int_t)stats.reads, "writes", (json_int_t)stats.writes, "flushes",
			 (json_int_t)stats.flushes, "read_bytes", output_json_size(stats.read_bytes), "write_bytes",
			 output_json_size(stats.write_bytes), "errors", (json_int_t)stats.errors);
}

static json_t *status(struct run *run, const json_t *request, struct img_error *err)
{
	struct machine *m = &run->machine;
	json_t *disks = json_array();
	uint64_t now = events_now_ns();

	(void)request;
	(void)err;
	for (unsigned i = 0; i < m->nr_disks; i++)
		json_array_append_new(disks, disk_status(run, i));
	return json_pack("{s:b, s:s, s:i, s:o, s:i, s:f, s:o, s:o, s:o, s:{s:b, s:b}, s:{s:I, s:o}, s:b}", "ok", 1,
			 "state",
			 run->stuck ? "stuck" :
			 m->running ? "running" :
				      "paused",
			 "pid", (int)getpid(), "memory", output_json_size(m->mem.ram_bytes), "vcpus", (int)m->nr_vcpus,
			 "uptime_ms", ms(now - run->events.start_ns), "first_output_ms",
			 run->first_output_ns ? json_real(events_ms(&run->events, run->first_output_ns)) : json_null(),
			 "base_snapshot", output_json_text(m->base[0] ? m->base : NULL), "disks", disks, "sandbox",
			 "seccomp", run->sandbox.seccomp, "landlock", run->sandbox.landlock, "throttle", "iops",
			 (json_int_t)m->throttle.iops, "bps", output_json_size(m->throttle.bps), "verified",
			 run->verify_ns == UINT64_MAX);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static json_t *pause_machine(struct run *run, const json_t *request, struct img_error *err)
{
	(void)request;
	(void)err;
	machine_pause(&run->machine);
	return done();
}

static json_t *resume(struct run *run, const json_t *request, struct img_error *err)
{
	(void)request;
	if (run->stuck) {
		fail(err, IMG_E_REFUSED,
		     "going back failed half way: only another revert, or a reset, can go on from here");
		return NULL;
	}
	if (!run->machine.running)
		vm_drop_ticks(run->machine.vm);
	machine_resume(&run->machine);
	return done();
}

static json_t *powerdown(struct run *run, const json_t *request, struct img_error *err)
{
	(void)request;
	if (pm_power_button(run->machine.pm, &run->machine.bus))
		return done();
	fail(err, IMG_E_REFUSED, "the guest does not listen to its power button");
	return NULL;
}

static json_t *reset(struct run *run, const json_t *request, struct img_error *err)
{
	(void)request;
	if (machine_reset(&run->machine, err) != 0)
		return NULL;
	run->stuck = false;
	if (run->events.on)
		events_emit(&run->events, "reset", NULL);
	return done();
}

static json_t *quit(struct run *run, const json_t *request, struct img_error *err)
{
	(void)request;
	(void)err;
	run_end(run, RUN_QUIT);
	return done();
}

/* ---- snapshots --------------------------------------------------------------------------------------------------- */

/* Makes it, and says so as an event. Returns the answer. */
static json_t *keep(struct run *run, const char *name, bool disk_only, struct img_error *err)
{
	struct snapshot_result r = { 0 };
	json_t *answer;

	if (machine_snapshot(&run->machine, name, disk_only, &r, err) != 0)
		return NULL;
	answer = json_pack("{s:b, s:o, s:b, s:f, s:f, s:o, s:o, s:o}", "ok", 1, "name", output_json_text(name),
			   "disk_only", r.disk_only, "pause_ms", ms(r.pause_ns), "total_ms", ms(r.total_ns),
			   "ram_bytes", output_json_size(r.ram_bytes), "paused_bytes", output_json_size(r.paused_bytes),
			   "state_bytes", output_json_size(r.state_bytes));
	if (run->events.on)
		events_emit(&run->events, "snapshot", json_copy(answer));
	return answer;
}

static json_t *snapshot(struct run *run, const json_t *request, struct img_error *err)
{
	const char *name = name_of(request, "name", err);
	const json_t *wish = json_object_get(request, "disk_only");

	if (name && run->stuck) {
		fail(err, IMG_E_REFUSED, "going back failed half way: there is no machine to keep");
		return NULL;
	}
	return name ? keep(run, name, wish ? json_is_true(wish) : !run->machine.disk[0].holds_machine, err) : NULL;
}

/* The present state, before it is lost. A misspelt name of what to go back to leaves nothing behind. */
static bool save_first(struct run *run, const char *name, const json_t *request, struct img_error *err)
{
	const char *save = name_of(request, "save", err);
	struct img_snapshot snap;
	json_t *answer = NULL;

	if (save && disk_find_snapshot(&run->machine.disk[0], name, &snap, err) == 0)
		answer = keep(run, save, !run->machine.disk[0].holds_machine, err);
	json_decref(answer);
	return answer != NULL;
}

static json_t *revert(struct run *run, const json_t *request, struct img_error *err)
{
	const char *name = name_of(request, "name", err);
	uint64_t begun = events_now_ns();
	bool was_running = run->machine.running;
	json_t *answer;

	if (!name || (json_object_get(request, "save") && !save_first(run, name, request, err)))
		return NULL;
	if (machine_revert(&run->machine, name, err) != 0) {
		/* it would have gone on if nothing had been changed yet */
		if (was_running && !run->machine.running) {
			run->stuck = true;
			(void)run_fail(run, err);
		}
		return NULL;
	}
	if (run->stuck)
		machine_resume(&run->machine);
	run->stuck = false;
	run_verify_later(run);
	answer = json_pack("{s:b, s:o, s:f}", "ok", 1, "name", output_json_text(name), "total_ms",
			   ms(events_now_ns() - begun));
	if (run->events.on)
		events_emit(&run->events, "reverted", json_copy(answer));
	return answer;
}

static json_t *delete (struct run *run, const json_t *request, struct img_error *err)
{
	const char *name = name_of(request, "name", err);

	return name && machine_snapshot_delete(&run->machine, name, err) == 0 ? done() : NULL;
}

static json_t *rename_snapshot(struct run *run, const json_t *request, struct img_error *err)
{
	const char *name = name_of(request, "name", err), *new_name = name ? name_of(request, "new_name", err) : NULL;

	return new_name && machine_snapshot_rename(&run->machine, name, new_name, err) == 0 ? done() : NULL;
}

static const struct {
	const char *name;
	json_t *(*run)(struct run *run, const json_t *request, struct img_error *err); /* NULL: err is filled */
} commands[] = {
	{ "status", status }, { "pause", pause_machine }, { "resume", resume },		 { "snapshot", snapshot },
	{ "revert", revert }, { "delete", delete },	  { "rename", rename_snapshot }, { "powerdown", powerdown },
	{ "reset", reset },   { "quit", quit },
};

json_t *requests_handle(void *ctx, json_t *request)
{
	struct run *run = ctx;
	struct img_error err = { .code = IMG_OK };
	const char *command = json_string_value(json_object_get(request, "command"));

	for (size_t i = 0; command && i < ARRAY_LEN(commands); i++) {
		json_t *answer;

		if (strcmp(commands[i].name, command) != 0)
			continue;
		answer = commands[i].run(run, request, &err);
		if (!answer && err.code == IMG_OK)
			fail(&err, IMG_E_NOMEM, "out of memory");
		return answer ? answer : server_refusal(&err);
	}
	fail(&err, IMG_E_INVALID, "there is no such command");
	return server_refusal(&err);
}
