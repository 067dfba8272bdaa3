/* SPDX-License-Identifier: MIT */
/*
 * Crash safety, exhaustively: all programs of up to N operations on small images in memory, each followed by every
 * state in which a power failure during or after its last operation could have left the disk (what could be left during
 * an earlier one is judged in the shorter program that ends there), and a second failure during the recovery from a
 * sample of these.
 *
 * Options: see usage(). One program, and one state of it, can be run alone. The self-test has a host that lies about
 * flushes, and must fail.
 *
 * Deterministic. Prints counts of states; exits 1 where one of them cannot be explained.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "error.h"
#include "fixed_host.h"
#include "foreign.h"
#include "states.h"
#include "verify.h"

#define NESTED_STRIDE  61u /* every so many-th distinct state is recovered from under a second crash */
#define FAILURES_SHOWN 5u

struct options {
	unsigned depth, jobs;
	uint64_t sample;  /* 0: none */
	uint64_t foreign; /* every so many-th distinct state is also judged by QEMU's tools; 0: none */
	uint64_t random;  /* programs of random length above depth */
	uint64_t seed;
	uint64_t part, parts; /* of the exhaustive programs, every parts-th from part on: a long run in pieces */
	const char *setups, *program, *state;
	bool self_test;
};

struct totals {
	uint64_t programs, failures;
	struct verify_counts counts;
};

struct run {
	const struct options *opt;
	const struct setup *setup;
	const struct memhost *start;
	const struct worlds *start_worlds;
	struct totals *totals;

	const struct operation *program[PROGRAM_MAX];
	unsigned nr_ops;

	/* while the states of a program are judged */
	struct walker *walker;
	const struct worlds *ws;
	struct hash_set seen;
	unsigned point;
	char why[WHY_BYTES];

	unsigned job;
	char (*doing)[256]; /* shared memory: what each worker runs, should it die */
};

static void program_text(const struct run *r, char *out, size_t out_bytes)
{
	size_t at = (size_t)snprintf(out, out_bytes, "%c:", r->setup->letter);

	for (unsigned i = 0; i < r->nr_ops && at < out_bytes; i++)
		at += (size_t)snprintf(out + at, out_bytes - at, "%s%s", i > 0 ? "," : "", r->program[i]->name);
}

static void report(struct run *r, uint64_t number, bool with_state)
{
	char text[256], state[32] = "", *what;

	r->totals->failures++;
	if (r->totals->failures > FAILURES_SHOWN)
		return;
	program_text(r, text, sizeof(text));
	if (with_state)
		snprintf(state, sizeof(state), " --state %u.%llu", r->point, (unsigned long long)number);
	printf("FAILED --program %s%s\n  %s\n", text, state, r->why);
	if (with_state && (what = malloc(65536)) != NULL) {
		walker_describe(r->walker, STATES_THOROUGH, r->setup->garbage, number, what, 65536);
		fputs(what, stdout);
		free(what);
	}
	fflush(stdout);
}

static bool state_wanted(const struct run *r, uint64_t number)
{
	char id[32];

	if (r->opt->state == NULL)
		return true;
	snprintf(id, sizeof(id), "%u.%llu", r->point, (unsigned long long)number);
	return strcmp(id, r->opt->state) == 0;
}

/* Formats that QEMU does not know are left to us. */
static uint64_t opt_foreign(const struct run *r)
{
	return strcmp(r->setup->format, "qcow2") == 0 ? r->opt->foreign : 0;
}

static int judge(void *ctx, uint64_t number, struct memhost *disk)
{
	struct run *r = ctx;
	struct verify_counts *counts = &r->totals->counts;
	const struct operation *last = r->nr_ops > 0 ? r->program[r->nr_ops - 1] : NULL;
	struct memhost copy;
	struct observed seen;
	uint64_t hash[2];
	uint64_t stride = opt_foreign(r);
	bool nested, foreign;
	int ret;

	if (!state_wanted(r, number))
		return 0;
	counts->states++;
	memhost_hash(disk, hash);
	if (!hash_set_add(&r->seen, hash))
		return 0;
	counts->distinct++;
	nested = counts->distinct % NESTED_STRIDE == 0 || r->opt->state != NULL;
	foreign = stride != 0 && (counts->distinct % stride == 0 || r->opt->state != NULL);
	if (nested || foreign)
		memhost_clone(&copy, disk);
	fixed_host_reset(hash[0]);
	ret = verify_disk(disk, r->setup, r->ws,
			  last != NULL && strcmp(last->name, "commit") == 0 && r->ws->w[0].nr_snaps == 0, &seen,
			  r->why);
	if (ret == 0 && foreign && !seen.absent && !seen.committing) {
		counts->foreign++;
		ret = foreign_judge(&copy, r->setup, &seen, r->why);
	}
	if (ret == 0 && nested && !seen.absent && !seen.committing) {
		fixed_host_reset(hash[1]);
		ret = verify_recovery(&copy, r->setup, &seen, counts, r->why);
	}
	if (nested || foreign)
		memhost_destroy(&copy);
	if (ret != 0)
		report(r, number, true);
	else if (r->opt->state != NULL)
		printf("ok --state %s\n", r->opt->state);
	return 0;
}

static bool is_sync(const struct run *r, const struct crash_entry *e)
{
	/* The lying host: flushes return and do nothing. */
	return (e->kind == CRASH_FLUSH && !r->opt->self_test) || e->kind == CRASH_SYNC_DIR;
}

/* Entries of the log from first on belong to the last operation. */
static void judge_states(struct run *r, struct machine *m, size_t first)
{
	struct walker w;
	size_t nr = crash_log_nr(m->host->log);

	walker_init(&w, r->start, m->host->log, m->host);
	/* cppcheck-suppress autoVariables ; taken back at the end */
	r->walker = &w;
	r->point = 0;
	r->ws = &m->in_flight;
	hash_set_clear(&r->seen);
	if (!r->opt->self_test)
		walker_advance(&w, first);
	for (size_t i = first; i < nr && !r->opt->self_test; i++) {
		walker_advance(&w, i);
		if (!is_sync(r, crash_log_at(m->host->log, i)))
			continue;
		walker_states(&w, STATES_THOROUGH, r->setup->garbage, judge, r);
		r->point++;
	}
	if (r->opt->self_test) {
		/* Forget all flushes by walking over the changes only. */
		for (size_t i = 0; i < nr; i++) {
			if (crash_log_at(m->host->log, i)->kind == CRASH_FLUSH)
				w.pos = i + 1;
			else
				walker_advance(&w, i + 1);
		}
	}
	walker_advance(&w, nr);
	r->ws = &m->ws;
	hash_set_clear(&r->seen);
	walker_states(&w, STATES_THOROUGH, r->setup->garbage, judge, r);
	walker_destroy(&w);
	r->walker = NULL;
}

/* Runs the program from the start state; judges what its last operation may leave. */
static void run_program(struct run *r)
{
	struct machine *m = malloc(sizeof(*m));
	struct img_error err = { 0 };
	struct memhost host;
	size_t first = 0;
	int ret;

	if (m == NULL)
		abort();
	r->totals->programs++;
	if (r->doing != NULL)
		program_text(r, r->doing[r->job], sizeof(r->doing[0]));
	fixed_host_reset(12345);
	memhost_clone(&host, r->start);
	host.log = crash_log_new();
	*m = (struct machine){ .setup = r->setup, .host = &host, .ws = *r->start_worlds, .in_flight = *r->start_worlds };
	ret = machine_open(m, &err);
	if (ret == 0)
		ret = machine_warm(m, &err);
	first = crash_log_nr(host.log);
	for (unsigned i = 0; i < r->nr_ops && ret == 0; i++) {
		m->position = i;
		first = crash_log_nr(host.log);
		error_clear(&err);
		ret = r->program[i]->run(m, &err);
	}
	if (ret != 0) {
		snprintf(r->why, sizeof(r->why), "the program itself fails: %s: %s", err.layer, err.msg);
		report(r, 0, false);
	}
	judge_states(r, m, first);
	if (m->img != NULL && img_close(m->img, &err) != 0 && ret == 0) {
		snprintf(r->why, sizeof(r->why), "the image does not close: %s", err.msg);
		report(r, 0, false);
	}
	crash_log_free(host.log);
	host.log = NULL;
	memhost_destroy(&host);
	free(m);
}

/* ---- all programs ------------------------------------------------------------------------------------------------ */

static unsigned nr_operations(const struct setup *s)
{
	unsigned n = 0;

	while (operation_at(s, n) != NULL)
		n++;
	return n;
}

/* Number of programs of exactly this length. */
static uint64_t nr_programs(const struct setup *s, unsigned length)
{
	uint64_t nr = 1;

	for (unsigned i = 0; i < length; i++)
		nr *= nr_operations(s);
	return nr;
}

static void nth_program(struct run *r, unsigned length, uint64_t index)
{
	unsigned nr = nr_operations(r->setup);

	r->nr_ops = length;
	for (unsigned i = length; i-- > 0; index /= nr)
		r->program[i] = operation_at(r->setup, (unsigned)(index % nr));
}

/* Worker `job` of several takes every so many-th program. A sample takes scattered ones. */
static void run_share(struct run *r, unsigned job)
{
	const struct options *opt = r->opt;
	uint64_t turn = 0;

	for (unsigned length = 0; length <= opt->depth + (opt->sample != 0 ? 1 : 0); length++) {
		uint64_t nr = nr_programs(r->setup, length);
		uint64_t step = length > opt->depth ? opt->sample : 1;

		for (uint64_t i = length > opt->depth ? opt->sample / 2 : 0; i < nr; i += step) {
			if (i % opt->parts != opt->part || turn++ % opt->jobs != job)
				continue;
			nth_program(r, length, i);
			run_program(r);
		}
	}
}

/* Programs of 4 to PROGRAM_MAX operations: what takes longer to build up. */
static void run_random(struct run *r, unsigned job)
{
	unsigned nr = nr_operations(r->setup);

	for (uint64_t i = 0; i < r->opt->random && nr > 0; i++) {
		uint64_t x = (r->opt->seed + i + 1) * UINT64_C(0x9e3779b97f4a7c15);

		if (i % r->opt->jobs != job)
			continue;
		r->nr_ops = 4 + (unsigned)(x >> 32) % (PROGRAM_MAX - 3);
		for (unsigned k = 0; k < r->nr_ops; k++) {
			x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
			r->program[k] = operation_at(r->setup, (unsigned)(x >> 33) % nr);
		}
		run_program(r);
	}
}

static int parse_program(struct run *r, const char *text)
{
	char copy[256], *save = NULL;

	snprintf(copy, sizeof(copy), "%s", strlen(text) > 1 ? text + 2 : "");
	for (char *name = strtok_r(copy, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save)) {
		if (r->nr_ops == PROGRAM_MAX || (r->program[r->nr_ops] = operation_find(r->setup, name)) == NULL) {
			fprintf(stderr, "no operation %s in setup %c\n", name, r->setup->letter);
			return -1;
		}
		r->nr_ops++;
	}
	return 0;
}

static void add(struct totals *to, const struct totals *from)
{
	to->programs += from->programs;
	to->failures += from->failures;
	to->counts.states += from->counts.states;
	to->counts.distinct += from->counts.distinct;
	to->counts.foreign += from->counts.foreign;
	to->counts.nested += from->counts.nested;
	to->counts.nested_distinct += from->counts.nested_distinct;
}

/* In processes of their own, so that one that dies is a failure and not the end. */
static int run_all(struct run *r)
{
	int pipes[64];
	pid_t pids[64];
	int bad = 0;

	r->doing = mmap(NULL, 64 * sizeof(*r->doing), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (r->doing == MAP_FAILED)
		return -1;
	fflush(stdout);
	for (unsigned job = 0; job < r->opt->jobs; job++) {
		int fds[2];

		if (pipe(fds) != 0 || (pids[job] = fork()) < 0) {
			perror("crash_programs");
			return -1;
		}
		if (pids[job] == 0) {
			close(fds[0]);
			r->job = job;
			run_share(r, job);
			run_random(r, job);
			hash_set_free(&r->seen);
			exit(write(fds[1], r->totals, sizeof(*r->totals)) == (ssize_t)sizeof(*r->totals) ? 0 : 1);
		}
		close(fds[1]);
		pipes[job] = fds[0];
	}
	for (unsigned job = 0; job < r->opt->jobs; job++) {
		struct totals part;
		int status;

		if (read(pipes[job], &part, sizeof(part)) == (ssize_t)sizeof(part))
			add(r->totals, &part);
		else
			bad = -1;
		close(pipes[job]);
		if (waitpid(pids[job], &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			printf("FAILED --program %s\n  the worker ended with status 0x%x\n", r->doing[job],
			       (unsigned)status);
			bad = -1;
		}
	}
	munmap(r->doing, 64 * sizeof(*r->doing));
	return bad;
}

static int run_setup(const struct options *opt, const struct setup *s, struct totals *all)
{
	struct worlds *ws = malloc(sizeof(*ws));
	struct totals totals = { 0 };
	struct run r = { .opt = opt, .setup = s, .totals = &totals, .start_worlds = ws };
	struct img_error err = { 0 };
	struct timespec begin, end;
	struct memhost start;
	int ret;

	if (ws == NULL)
		abort();
	clock_gettime(CLOCK_MONOTONIC, &begin);
	fixed_host_reset(1);
	memhost_init(&start);
	r.start = &start;
	ret = s->make(s, &start, ws, &err);
	if (ret != 0) {
		printf("FAILED: setup %c cannot be made: %s\n", s->letter, err.msg);
	} else if (opt->program != NULL) {
		ret = parse_program(&r, opt->program);
		if (ret == 0)
			run_program(&r);
	} else {
		ret = run_all(&r);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("crash %c (%s): %llu programs, %llu states (%llu distinct), %llu after a second crash (%llu distinct), "
	       "%llu judged by qemu-img, %llu unexplained, %.1f s\n",
	       s->letter, s->what, (unsigned long long)totals.programs, (unsigned long long)totals.counts.states,
	       (unsigned long long)totals.counts.distinct, (unsigned long long)totals.counts.nested,
	       (unsigned long long)totals.counts.nested_distinct, (unsigned long long)totals.counts.foreign,
	       (unsigned long long)totals.failures,
	       (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
	add(all, &totals);
	hash_set_free(&r.seen);
	memhost_destroy(&start);
	free(ws);
	if (opt->self_test) {
		printf("self-test: a host that loses flushed data is %s\n",
		       totals.failures > 0 ? "caught" : "NOT CAUGHT");
		return totals.failures > 0 ? 0 : -1;
	}
	return ret != 0 || totals.failures > 0 ? -1 : 0;
}

static int parse_options(int argc, char **argv, struct options *opt)
{
	static const struct option longs[] = {
		{ "depth", required_argument, NULL, 'd' },
		{ "sample", required_argument, NULL, 'k' },
		{ "setup", required_argument, NULL, 's' },
		{ "jobs", required_argument, NULL, 'j' },
		{ "program", required_argument, NULL, 'p' },
		{ "state", required_argument, NULL, 't' },
		{ "random", required_argument, NULL, 'r' },
		{ "seed", required_argument, NULL, 'S' },
		{ "foreign", required_argument, NULL, 'F' },
		{ "part", required_argument, NULL, 'P' },
		{ "self-test", no_argument, NULL, 'T' },
		{ "full", no_argument, NULL, 'f' },
		{ NULL, 0, NULL, 0 },
	};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int c;

	*opt = (struct options){ .parts = 1, .depth = 2, .jobs = cpus > 0 && cpus < 64 ? (unsigned)cpus : 2 };
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'd': opt->depth = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'k': opt->sample = strtoull(optarg, NULL, 10); break;
		case 'r': opt->random = strtoull(optarg, NULL, 10); break;
		case 'S': opt->seed = strtoull(optarg, NULL, 10); break;
		case 's': opt->setups = optarg; break;
		case 'j': opt->jobs = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'p': opt->program = optarg; break;
		case 't': opt->state = optarg; break;
		case 'P':
			if (sscanf(optarg, "%" SCNu64 "/%" SCNu64, &opt->part, &opt->parts) != 2 ||
			    opt->part >= opt->parts)
				return -1;
			break;
		case 'F': opt->foreign = strtoull(optarg, NULL, 10); break;
		case 'T': opt->self_test = true; break;
		case 'f': opt->depth = 3; break;
		default: return -1;
		}
	}
	return optind == argc && opt->depth < PROGRAM_MAX && opt->jobs > 0 && opt->jobs <= 64 ? 0 : -1;
}

static void usage(void)
{
	fputs("usage: crash_programs [--depth N | --full] [--sample K] [--random M] [--seed S] [--setup LETTERS]\n"
	      "                      [--part I/N] [--jobs N] [--foreign K]\n"
	      "         all programs to length N (--full: 3), every K-th of length N + 1, M random ones of 4 to 16 operations;\n"
	      "         every K-th distinct state of a qcow2 image is judged by qemu-img too\n"
	      "       crash_programs --program S:OP,OP... [--state P.N]\n"
	      "       crash_programs --self-test [--setup LETTERS]\n",
	      stderr);
}

int main(int argc, char **argv)
{
	struct options opt;
	struct totals all = { 0 };
	unsigned done = 0;
	int ret = 0;

	if (parse_options(argc, argv, &opt) != 0) {
		usage();
		return 2;
	}
	if (opt.foreign != 0 && !foreign_available()) {
		printf("SKIPPED: the judgement of qemu-img, which is not installed\n");
		opt.foreign = 0;
	}
	for (unsigned i = 0; setup_at(i) != NULL; i++) {
		const struct setup *s = setup_at(i);

		if (opt.program != NULL ? opt.program[0] != s->letter :
					  opt.setups != NULL && !strchr(opt.setups, s->letter))
			continue;
		if (registry_find(s->format) == NULL) {
			printf("SKIPPED: crash %c: this build has no format %s\n", s->letter, s->format);
			continue;
		}
		done++;
		if (run_setup(&opt, s, &all) != 0)
			ret = 1;
	}
	printf("crash: %llu states of %llu programs, %llu after a second crash: %llu unexplained\n",
	       (unsigned long long)all.counts.states, (unsigned long long)all.programs,
	       (unsigned long long)all.counts.nested, (unsigned long long)all.failures);
	return done == 0 ? 77 : ret;
}
