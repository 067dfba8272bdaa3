/* SPDX-License-Identifier: MIT */
/*
 * Everything fails once: for each scenario, the k-th call to the host (or the k-th allocation of memory) fails, once or
 * from then on, for k = 1, 2, ... until the scenario passes untouched. After each failure:
 *   - what failed says so, with a message, and leaves the image as it was or as it would have become;
 *   - the handle goes on reading; it takes further changes, or refuses all of them as poisoned; it is poisoned if a
 * flush failed;
 *   - nothing is left under a temporary name, and no data file of an image that was not made;
 *   - the image opens, holds all that had been flushed, and check finds nothing.
 * Leaks are the business of the sanitizer that this is run under.
 *
 *   fault_all [--scenario NAME] [--mode NAME] [--nth K] [--stride N]
 *
 * With --stride every Nth k is taken, beginning elsewhere in each scenario and mode: for sanitizers, which are slow.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "checked.h"
#include "error.h"
#include "fixed_host.h"
#include "scenario.h"
#include "verify.h"

#define NTH_MAX	       100000u
#define FAILURES_SHOWN 3u /* of each scenario and mode */
#define DEATHS_MAX     8u /* after them the rest of a scenario and mode is left */

static uint64_t stride = 1;

struct mode {
	const char *name;
	bool memory;
	unsigned ops; /* of the fault plan */
	int sys_errno;
	bool for_good;
	uint64_t short_bytes;
};

static const struct mode modes[] = {
	{ "io-once", false, FAULT_ALL, EIO, false, 0 },
	{ "io-for-good", false, FAULT_ALL, EIO, true, 0 },
	{ "short-write", false, 1u << FAULT_WRITE, EIO, false, 1024 },
	{ "flush-once", false, 1u << FAULT_FLUSH, EIO, false, 0 },
	{ "full-once", false, 1u << FAULT_WRITE | 1u << FAULT_ALLOCATE | 1u << FAULT_ZERO | 1u << FAULT_RESIZE, ENOSPC,
	  false, 512 },
	{ "full-for-good", false, 1u << FAULT_WRITE | 1u << FAULT_ALLOCATE | 1u << FAULT_ZERO | 1u << FAULT_RESIZE,
	  ENOSPC, true, 0 },
	{ "memory-once", true, 0, 0, false, 0 },
	{ "memory-for-good", true, 0, 0, true, 0 },
};

struct attempt {
	const struct scenario *scenario;
	const struct mode *mode;
	const struct setup *setup;
	uint64_t nth;
	struct memhost *start;
	struct worlds *start_worlds;

	struct memhost host;
	struct fault_plan plan;
	struct machine m;
	int result;	      /* of the step that failed, or 0 */
	char step[32];	      /* its name */
	struct img_error err; /* its message */
	struct observed seen;
	char why[WHY_BYTES];
};

/* In shared memory: a child does the attempts, so that one that dies is a failure and not the end. */
static struct tally {
	uint64_t nth, failures, attempts, survived, shown;
} * tally;

/* ---- one attempt ------------------------------------------------------------------------------------------------- */

static void arm(struct attempt *a)
{
	a->plan.short_bytes = a->mode->short_bytes;
	if (a->mode->memory)
		alloc_fault_arm(a->nth, a->mode->for_good);
	else
		fault_plan_arm(&a->plan, a->mode->ops, a->nth, a->mode->sys_errno, a->mode->for_good);
}

/* How many failures were injected. */
static uint64_t disarm(struct attempt *a)
{
	uint64_t failed = a->mode->memory ? alloc_fault_failed() : a->plan.failed;

	alloc_fault_disarm();
	fault_plan_disarm(&a->plan);
	return failed;
}

/* Steps until one fails. The handle may be gone then (m.img NULL). */
static void run_steps(struct attempt *a)
{
	char steps[128], *save = NULL;

	snprintf(a->step, sizeof(a->step), "open");
	a->result = machine_open(&a->m, &a->err);
	snprintf(steps, sizeof(steps), "%s", a->scenario->steps);
	for (char *name = strtok_r(steps, ",", &save); name != NULL && a->result == 0;
	     name = strtok_r(NULL, ",", &save)) {
		snprintf(a->step, sizeof(a->step), "%s", name);
		a->result = scenario_step(&a->m, name, &a->err);
		a->m.position++;
	}
}

/* Of an image that did not come about no data file is there either. */
static int nothing_is_left(struct attempt *a)
{
	bool is_made = memhost_find(&a->host, NEW_FILE) != NULL;

	for (unsigned i = 0; i < MEMHOST_FILES; i++) {
		const struct memhost_file *f = &a->host.file[i];

		if (f->content != NULL && f->name[0] != '\0' &&
		    (memhost_is_temp(f) || (!is_made && strncmp(f->name, NEW_FILE, strlen(NEW_FILE)) == 0))) {
			snprintf(a->why, sizeof(a->why), "%s is left", f->name);
			return -1;
		}
	}
	return 0;
}

/* A change through the handle that saw the failure. 1: it took it, and it is durable; 0: poisoned; -1: neither. */
static int try_change(struct attempt *a, bool *durable)
{
	uint8_t buf[2 * SECTOR];
	struct img_error err;
	int ret;

	*durable = false;
	pattern_fill(buf, sizeof(buf), 2, FRESH_WRITE_ID);
	ret = img_pwrite(a->m.img, buf, sizeof(buf), 2 * SECTOR, 0, &err);
	if (ret == IMG_E_POISONED)
		return 0;
	if (ret == 0)
		ret = img_flush(a->m.img, 0, &err);
	if (ret == 0) {
		*durable = true;
		return 1;
	}
	snprintf(a->why, sizeof(a->why), "after the failure the handle neither works nor is poisoned: %s", err.msg);
	return -1;
}

/* The handle after a failure: it reads, and takes changes or is poisoned. ws: what the disk may hold once it is closed.
 */
static int judge_handle(struct attempt *a, struct worlds *ws)
{
	/* Of the new parent of a rebase nothing is changed, and its flush comes before the image is. */
	bool of_parent = strncmp(a->err.msg, OTHER_FILE ":", strlen(OTHER_FILE ":")) == 0;
	bool durable, flush_failed = a->mode->ops == 1u << FAULT_FLUSH && !of_parent &&
				     strcmp(a->step, "convert") != 0 && strcmp(a->step, "make") != 0 &&
				     strcmp(a->step, "commit") != 0;
	char byte;
	int ret;

	/* commit lets go of the parent before it writes there. Where it cannot get it back, only the overlay's own is
	 * left to read. */
	if (strcmp(a->step, "commit") == 0 && img_pread(a->m.img, &byte, 1, 0, 0, NULL) == IMG_E_REFUSED)
		return 0;
	if (observe(a->m.img, a->setup->vm, &a->seen, a->why, sizeof(a->why)) != 0)
		return -1;
	a->seen.has_new = memhost_find(&a->host, NEW_FILE) != NULL;
	if (a->seen.has_new)
		a->seen.made = worlds_latest(ws)->made;
	if (!worlds_allow(ws, &a->seen, a->why, sizeof(a->why))) {
		snprintf(a->why + strlen(a->why), sizeof(a->why) - strlen(a->why), " (seen through the handle)");
		return -1;
	}
	ret = try_change(a, &durable);
	if (ret < 0)
		return -1;
	if (ret == 0)
		return 0;
	if (flush_failed && a->result != 0) {
		snprintf(a->why, sizeof(a->why), "a flush failed, and yet the handle takes changes");
		return -1;
	}
	/* From here on it is what was seen, with the change. Machine state has its own rules: both it and what was
	 * before. */
	if (durable) {
		worlds_of_observed(&a->seen, ws);
		worlds_write(ws, 2, 2, FRESH_WRITE_ID);
		worlds_settle(ws);
	}
	return 1;
}

/* Closes the handle, looks at the disk. */
static int judge_failure(struct attempt *a)
{
	struct worlds *ws = malloc(sizeof(*ws));
	struct img_error err = { 0 };
	int works = 0, ret = 0, closed;
	bool commit = strcmp(a->step, "commit") == 0;

	if (ws == NULL)
		abort();
	*ws = a->result != 0 ? a->m.in_flight : a->m.ws;
	if (a->result != 0 && a->err.msg[0] == '\0') {
		snprintf(a->why, sizeof(a->why), "%s fails without a message", a->step);
		ret = -1;
	}
	if (a->m.img != NULL) {
		works = ret == 0 ? judge_handle(a, ws) : -1;
		closed = img_close(a->m.img, &err);
		a->m.img = NULL;
		if (works < 0)
			ret = -1;
		if (ret == 0 && works == 1 && closed != 0) {
			snprintf(a->why, sizeof(a->why), "works after the failure, and cannot be closed: %s", err.msg);
			ret = -1;
		}
	}
	a->host.plan = NULL;
	if (ret == 0)
		ret = nothing_is_left(a);
	if (ret == 0)
		ret = verify_disk(&a->host, a->setup, ws, commit && a->result != 0, &a->seen, a->why);
	free(ws);
	return ret;
}

static void report(struct attempt *a)
{
	tally->failures++;
	if (tally->shown++ < FAILURES_SHOWN)
		printf("FAILED --scenario %s --mode %s --nth %llu (in %s: %s)\n  %s\n", a->scenario->name,
		       a->mode->name, (unsigned long long)a->nth, a->step, a->err.msg, a->why);
	fflush(stdout);
}

/* false: nothing was injected any more. */
static bool attempt(struct attempt *a)
{
	uint64_t injected;
	int closed = 0;

	fixed_host_reset(a->nth);
	memhost_clone(&a->host, a->start);
	fault_plan_init(&a->plan);
	a->host.plan = &a->plan;
	memset(&a->m, 0, sizeof(a->m));
	a->m.setup = a->setup;
	a->m.host = &a->host;
	a->m.ws = a->m.in_flight = *a->start_worlds;
	a->err = (struct img_error){ 0 };
	a->why[0] = '\0';
	arm(a);
	run_steps(a);
	if (a->result == 0) {
		snprintf(a->step, sizeof(a->step), "close");
		a->m.in_flight = a->m.ws;
		closed = img_close(a->m.img, &a->err);
		a->m.img = NULL;
		a->result = closed;
		if (closed == 0)
			worlds_settle(&a->m.ws);
	}
	injected = disarm(a);
	tally->attempts++;
	if (injected == 0 && a->result != 0) {
		snprintf(a->why, sizeof(a->why), "fails without a failure of the host");
		report(a);
	} else if (judge_failure(a) != 0) {
		report(a);
	} else if (injected > 0 && a->result == 0) {
		tally->survived++;
	}
	if (a->m.img != NULL)
		img_close(a->m.img, NULL);
	memhost_destroy(&a->host);
	fault_plan_destroy(&a->plan);
	return injected > 0;
}

/* ---- all of them ------------------------------------------------------------------------------------------------- */

/* An image as a killed program leaves it: the bytes as they are while it is open. */
static int make_unclean(const struct setup *s, struct memhost *start, struct worlds *ws, struct img_error *err)
{
	struct memhost host;
	struct machine *m = calloc(1, sizeof(*m));
	int ret;

	if (m == NULL)
		abort();
	memhost_clone(&host, start);
	m->setup = s;
	m->host = &host;
	m->ws = *ws;
	ret = machine_open(m, err);
	if (ret == 0)
		ret = machine_warm(m, err);
	memhost_destroy(start);
	memhost_clone(start, &host);
	*ws = m->ws;
	if (m->img != NULL)
		img_close(m->img, NULL);
	memhost_destroy(&host);
	free(m);
	return ret;
}

static void attempts_from(struct attempt *a, uint64_t nth, bool one)
{
	for (a->nth = nth; a->nth < NTH_MAX; a->nth += stride) {
		tally->nth = a->nth;
		if (!attempt(a) || one)
			break;
	}
}

static void run_mode(struct attempt *a, uint64_t only_nth)
{
	uint64_t before = tally->attempts, survived = tally->survived, first = 1 + before % stride;
	unsigned deaths = 0;
	int status = 0;

	tally->shown = 0;
	for (tally->nth = only_nth != 0 ? only_nth : first; tally->nth < NTH_MAX; tally->nth += stride) {
		pid_t pid;

		fflush(stdout);
		pid = fork();
		if (pid < 0)
			abort();
		if (pid == 0) {
			attempts_from(a, tally->nth, only_nth != 0);
			exit(0);
		}
		if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0)
			break;
		tally->failures++;
		printf("FAILED --scenario %s --mode %s --nth %llu\n  the process ended with status 0x%x\n",
		       a->scenario->name, a->mode->name, (unsigned long long)tally->nth, (unsigned)status);
		if (only_nth != 0 || ++deaths == DEATHS_MAX)
			break;
	}
	printf("fault %s, %s: %llu attempts, %llu failures without effect\n", a->scenario->name, a->mode->name,
	       (unsigned long long)(tally->attempts - before), (unsigned long long)(tally->survived - survived));
}

static int run_scenario(const struct scenario *sc, const char *only_mode, uint64_t only_nth)
{
	const struct setup *s = setup_find(sc->setup);
	struct attempt *a = calloc(1, sizeof(*a));
	struct worlds *ws = malloc(sizeof(*ws));
	struct img_error err = { 0 };
	struct memhost start;
	int ret;

	if (a == NULL || ws == NULL)
		abort();
	fixed_host_reset(1);
	memhost_init(&start);
	ret = s->make(s, &start, ws, &err);
	if (ret == 0 && sc->unclean)
		ret = make_unclean(s, &start, ws, &err);
	if (ret != 0) {
		printf("FAILED: setup %c cannot be made: %s\n", s->letter, err.msg);
		tally->failures++;
	}
	a->scenario = sc;
	a->setup = s;
	a->start = &start;
	a->start_worlds = ws;
	for (unsigned i = 0; i < ARRAY_LEN(modes) && ret == 0; i++) {
		if (only_mode == NULL || strcmp(only_mode, modes[i].name) == 0) {
			a->mode = &modes[i];
			run_mode(a, only_nth);
		}
	}
	memhost_destroy(&start);
	free(ws);
	free(a);
	return ret;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "scenario", required_argument, NULL, 's' },
		{ "mode", required_argument, NULL, 'm' },
		{ "nth", required_argument, NULL, 'n' },
		{ "stride", required_argument, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	const char *scenario = NULL, *mode = NULL;
	uint64_t nth = 0;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 's')
			scenario = optarg;
		else if (c == 'm')
			mode = optarg;
		else if (c == 'n')
			nth = strtoull(optarg, NULL, 10);
		else if (c == 't')
			stride = strtoull(optarg, NULL, 10);
		else
			return 2;
	}
	if (stride == 0)
		return 2;
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tally == MAP_FAILED)
		return 2;
	for (unsigned i = 0; scenario_at(i) != NULL; i++) {
		const struct scenario *sc = scenario_at(i);

		if (scenario != NULL && strcmp(scenario, sc->name) != 0)
			continue;
		if (registry_find(setup_find(sc->setup)->format) == NULL) {
			printf("SKIPPED: fault %s: this build lacks its format\n", sc->name);
			continue;
		}
		run_scenario(sc, mode, nth);
	}
	printf("fault: %llu attempts, %llu failures\n", (unsigned long long)tally->attempts,
	       (unsigned long long)tally->failures);
	return tally->failures > 0 ? 1 : 0;
}
