/* SPDX-License-Identifier: MIT */
/*
 * model: random programs against flat arrays. Every program runs in a process of its own, so that a crash is a failure
 * like any other, and so that a failing program can be made small by running ever shorter ones.
 *
 *   model [--seed N] [--ops N] [--length N] [--format F] [--shrink] [--verbose] [--jobs N] [--dump FOLDER] [--without
 * OP,OP...]
 *
 * --ops is the number of operations in all, --length that of one program. --dump writes the files that each program
 * ends with to FOLDER/SEED-NAME with a list of digests, for another judge.
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"
#include "dump.h"
#include "model.h"

/* A program hangs that gets nowhere for so long, or that keeps a processor busy for so long. */
#define PROGRAM_SECONDS 600

struct options {
	uint64_t seed, ops;
	size_t length;
	const char *format, *dump, *without;
	bool shrink, verbose;
	unsigned jobs;
};

/* What a child tells its parent. */
struct outcome {
	int state; /* 0: has not ended, 1: well, 2: failed */
	size_t failed_at;
	uint64_t full_checks;
	char failure[512];
};

static void run_here(const struct program *p, const struct options *o, struct outcome *out)
{
	static struct model m;

	m.verbose = o->verbose;
	if (program_run(p, &m, &out->failed_at) == 0 && o->dump)
		dump_files(&m, o->dump, p->seed);
	snprintf(out->failure, sizeof(out->failure), "%s", m.failure);
	out->full_checks = m.full_checks;
	out->state = m.failure[0] ? 2 : 1;
	model_free(&m);
}

/* On a host with much to do, and under an emulator, many minutes may pass: what has used a second of a processor since
 * the last alarm goes on. */
static void on_alarm(int sig)
{
	static time_t before;
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	if (used.tv_sec > before && used.tv_sec < PROGRAM_SECONDS) {
		before = used.tv_sec;
		alarm(PROGRAM_SECONDS);
		return;
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

static pid_t start(const struct program *p, const struct options *o, struct outcome *out)
{
	pid_t pid;

	*out = (struct outcome){ 0 };
	fflush(stdout);
	pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(3);
	}
	if (pid == 0) {
		signal(SIGALRM, on_alarm);
		alarm(PROGRAM_SECONDS);
		run_here(p, o, out);
		exit(out->state == 2);
	}
	return pid;
}

/* Also a program that was well but whose process was not (a leak, a sanitizer's word) has failed. */
static bool failed(struct outcome *out, int status)
{
	if (out->state == 1 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
		snprintf(out->failure, sizeof(out->failure), "the process ended with status 0x%x after the program",
			 (unsigned)status);
	else if (out->state == 0)
		snprintf(out->failure, sizeof(out->failure), "the process ended with status 0x%x%s", (unsigned)status,
			 WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? " (hangs)" : "");
	return out->state != 1 || status != 0;
}

static bool fails(const struct program *p, const struct options *o, struct outcome *out)
{
	struct options quiet = *o;
	int status;
	pid_t pid;

	quiet.verbose = false;
	quiet.dump = NULL;
	pid = start(p, &quiet, out);
	while (waitpid(pid, &status, 0) < 0)
		;
	return failed(out, status);
}

/* Delta debugging: leaves out ever smaller pieces while the program goes on to fail, in whatever way. */
static void shrink(struct program *p, const struct options *o, struct outcome *out)
{
	struct op *kept = malloc((p->nr + 1) * sizeof(*kept));
	unsigned runs = 0;

	if (!kept)
		abort();
	if (out->state == 2 && out->failed_at < p->nr)
		p->nr = out->failed_at + 1;
	for (size_t piece = p->nr / 2 ? p->nr / 2 : 1;;) {
		bool any = false;

		for (size_t at = 0; at < p->nr;) {
			size_t n = piece < p->nr - at ? piece : p->nr - at, all = p->nr;

			memcpy(kept, p->ops, all * sizeof(*kept));
			memmove(p->ops + at, p->ops + at + n, (all - at - n) * sizeof(*kept));
			p->nr -= n;
			runs++;
			if (fails(p, o, out)) {
				any = true;
				continue;
			}
			memcpy(p->ops, kept, all * sizeof(*kept));
			p->nr = all;
			at += n;
		}
		if (piece == 1 && !any)
			break;
		piece = piece > 1 ? piece / 2 : 1;
	}
	free(kept);
	fails(p, o, out);
	printf("made small in %u runs:\n", runs);
}

static void report(struct program *p, struct options *o, struct outcome *out)
{
	printf("FAILED: seed %" PRIu64 ", length %zu, operation %zu (%s): %s\n", p->seed, p->nr, out->failed_at,
	       out->failed_at < p->nr ? op_name(p->ops[out->failed_at].kind) : "end", out->failure);
	printf("again: model --format %s --seed %" PRIu64 " --length %zu --ops %zu --shrink\n", o->format, p->seed,
	       p->nr, p->nr);
	if (!o->shrink)
		return;
	shrink(p, o, out);
	program_print(p);
	printf("%s\n", out->failure);
	o->verbose = true;
	o->dump = NULL;
	waitpid(start(p, o, out), NULL, 0);
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option names[] = {
		{ "seed", 1, NULL, 's' },   { "ops", 1, NULL, 'o' },	{ "length", 1, NULL, 'l' },
		{ "format", 1, NULL, 'f' }, { "shrink", 0, NULL, 'k' }, { "verbose", 0, NULL, 'v' },
		{ "jobs", 1, NULL, 'j' },   { "dump", 1, NULL, 'd' },	{ "without", 1, NULL, 'w' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (c) {
		case 's': o->seed = strtoull(optarg, NULL, 0); break;
		case 'o': o->ops = strtoull(optarg, NULL, 0); break;
		case 'l': o->length = strtoul(optarg, NULL, 0); break;
		case 'f': o->format = optarg; break;
		case 'w': o->without = optarg; break;
		case 'k': o->shrink = true; break;
		case 'v': o->verbose = true; break;
		case 'j': o->jobs = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'd': o->dump = optarg; break;
		default: return -1;
		}
	}
	return optind == argc && o->length > 0 && o->jobs > 0 && o->jobs <= 64 ? 0 : -1;
}

struct slot {
	pid_t pid; /* 0: free */
	struct program program;
};

int main(int argc, char **argv)
{
	struct options o = { .seed = 1, .ops = 1000000, .length = 200, .format = "limg", .jobs = 1 };
	struct slot slots[64] = { 0 };
	struct outcome *outs;
	uint64_t started = 0, done = 0, programs, checks = 0;
	int bad = 0;

	if (parse(argc, argv, &o) != 0 || !traits_of(o.format)) {
		fputs("usage: model [--seed N] [--ops N] [--length N] [--format F] [--shrink] [--verbose] [--jobs N] [--dump DIR] [--without OP,...]\n",
		      stderr);
		return 2;
	}
	if (!registry_find(traits_of(o.format)->name)) {
		printf("SKIPPED: this build has no format %s\n", o.format);
		return 77;
	}
	outs = mmap(NULL, 64 * sizeof(*outs), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (outs == MAP_FAILED)
		return 3;
	programs = (o.ops + o.length - 1) / o.length;
	printf("model: %" PRIu64 " programs of %zu operations, format %s, seeds from %" PRIu64 "\n", programs, o.length,
	       o.format, o.seed);
	while (done < programs && bad == 0) {
		unsigned i;
		int status;
		pid_t pid;

		for (i = 0; i < o.jobs && started < programs; i++) {
			if (slots[i].pid)
				continue;
			program_make(&slots[i].program, o.seed + started++, o.length, o.format, o.without);
			slots[i].pid = start(&slots[i].program, &o, &outs[i]);
		}
		pid = wait(&status);
		for (i = 0; i < o.jobs && slots[i].pid != pid;)
			i++;
		if (i == o.jobs)
			continue;
		slots[i].pid = 0;
		done++;
		checks += outs[i].full_checks;
		if (failed(&outs[i], status)) {
			report(&slots[i].program, &o, &outs[i]);
			bad = 1;
		}
		free(slots[i].program.ops);
	}
	for (unsigned i = 0; i < o.jobs; i++) {
		if (slots[i].pid)
			kill(slots[i].pid, SIGKILL);
	}
	while (wait(NULL) > 0)
		;
	printf("model: %" PRIu64 " operations in %" PRIu64 " programs, %" PRIu64 " full comparisons: %s\n",
	       done * o.length, done, checks, bad ? "FAILED" : "all equal");
	return bad;
}
