/* SPDX-License-Identifier: MIT */
/*
 * imgtool bench: requests per second and their latency, of the library on this image. Each of DEPTH threads takes the
 * next request from a common counter, so that the places touched do not depend on the number of threads.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "open.h"
#include "output.h"
#include "signals.h"
#include "verbs.h"

#define MAX_DEPTH 256
#define MAX_COUNT (UINT64_C(1) << 28) /* one latency of 4 bytes is kept for each */

struct bench_args {
	struct common_args common;
	bool read, write, random;
	struct size_arg size, count, depth, seed, step, flush_interval, offset;
};

static const struct cli_option options[] = {
	{ "read", 'r', OPTION_FLAG, NULL, "read (default)", offsetof(struct bench_args, read) },
	{ "write", 'w', OPTION_FLAG, NULL, "write: overwrites the content of the image",
	  offsetof(struct bench_args, write) },
	{ "size", 's', OPTION_SIZE, "SIZE", "bytes of a request; default: 4K", offsetof(struct bench_args, size) },
	{ "count", 'c', OPTION_NUMBER, "N", "number of requests; default: 75000", offsetof(struct bench_args, count) },
	{ "depth", 'd', OPTION_NUMBER, "N", "requests at a time, each in a thread; default: 1",
	  offsetof(struct bench_args, depth) },
	{ "random", 0, OPTION_FLAG, NULL, "at random multiples of SIZE instead of one after the other",
	  offsetof(struct bench_args, random) },
	{ "seed", 0, OPTION_NUMBER, "N", "of --random; default: 1", offsetof(struct bench_args, seed) },
	{ "offset", 0, OPTION_SIZE, "N", "of the first request; default: 0", offsetof(struct bench_args, offset) },
	{ "step", 'S', OPTION_SIZE, "N", "from one request to the next; default: SIZE",
	  offsetof(struct bench_args, step) },
	{ "flush-interval", 0, OPTION_NUMBER, "N", "with -w: flush after every N requests",
	  offsetof(struct bench_args, flush_interval) },
};

struct bench {
	struct img *img;
	bool write, random;
	uint64_t size, count, seed, step, flush_interval, offset;
	_Atomic uint64_t next;
	_Atomic bool stop;
	uint32_t *latency_ns; /* of each request, saturated at 4.29 s; each is written by the thread that took it */
	uint64_t elapsed_ns, final_flush_ns;
	pthread_mutex_t lock;
	struct img_error err; /* of the first failure; lock */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* SplitMix64: a good 64-bit mix of (seed, i), so that request i is the same whichever thread takes it. */
static uint64_t random_at(uint64_t seed, uint64_t i)
{
	uint64_t z = seed * UINT64_C(0xd1342543de82ef95) + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

/*
 * Where request i goes. Steps wrap at the end of the image as those of qemu-img bench do, so that both visit the same
 * places; a request that would reach over the end is moved back.
 */
static uint64_t request_offset(const struct bench *b, uint64_t i)
{
	uint64_t last = img_size(b->img) - b->size, off;

	if (b->random)
		return b->offset + random_at(b->seed, i) % ((last - b->offset) / b->size + 1) * b->size;
	off = (b->offset + i * (b->step % img_size(b->img))) % img_size(b->img);
	return off < last ? off : last;
}

static void fail(struct bench *b, const struct img_error *err)
{
	pthread_mutex_lock(&b->lock);
	if (b->err.code == IMG_OK)
		b->err = *err;
	pthread_mutex_unlock(&b->lock);
	b->stop = true;
}

static int request(struct bench *b, uint64_t *buf, uint64_t i, struct img_error *err)
{
	uint64_t off = request_offset(b, i);
	int code;

	if (!b->write)
		return img_pread(b->img, buf, b->size, off, 0, err);
	if (b->size >= sizeof(i))
		*buf = i; /* no two requests write the same */
	code = img_pwrite(b->img, buf, b->size, off, 0, err);
	if (code == 0 && b->flush_interval && (i + 1) % b->flush_interval == 0)
		code = img_flush(b->img, 0, err);
	return code;
}

static void *worker(void *arg)
{
	struct bench *b = arg;
	struct img_error err = { .code = IMG_OK };
	uint64_t *buf = NULL, i;

	if (posix_memalign((void **)&buf, 4096, (size_t)b->size + sizeof(*buf)) != 0) {
		err = (struct img_error){ .code = IMG_E_NOMEM, .offset = UINT64_MAX };
		fail(b, &err);
		return NULL;
	}
	for (i = 0; i < b->size / sizeof(*buf) + 1; i++)
		buf[i] = random_at(b->seed, i);
	while (!b->stop && !signals_interrupted() && (i = atomic_fetch_add(&b->next, 1)) < b->count) {
		uint64_t start = now_ns(), ns;

		if (request(b, buf, i, &err) != 0) {
			fail(b, &err);
			break;
		}
		ns = now_ns() - start;
		b->latency_ns[i] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
	}
	free(buf);
	return NULL;
}

/* Runs all requests, then what flush is left. Returns an exit status. */
static int run_threads(struct bench *b, unsigned depth, const struct target *target)
{
	pthread_t threads[MAX_DEPTH];
	unsigned nr = 0;
	uint64_t start = now_ns();

	for (; nr < depth; nr++) {
		if (pthread_create(&threads[nr], NULL, worker, b) != 0) {
			b->stop = true;
			break;
		}
	}
	for (unsigned i = 0; i < nr; i++)
		pthread_join(threads[i], NULL);
	b->elapsed_ns = now_ns() - start;
	if (nr < depth) {
		cli_message(target->path, "cannot start %u threads", depth);
		return EXIT_SYSTEM;
	}
	if (signals_interrupted())
		b->err.code = IMG_E_CANCELLED;
	if (b->err.code != IMG_OK)
		return cli_fail(target->path, &b->err);
	start = now_ns();
	if (b->write && img_flush(b->img, 0, &b->err) != 0)
		return cli_fail(target->path, &b->err);
	b->final_flush_ns = now_ns() - start;
	return EXIT_DONE;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double percentile_us(const struct bench *b, unsigned percent)
{
	uint64_t rank = (b->count - 1) * percent / 100;

	return (double)b->latency_ns[rank] / 1000;
}

static int report(const struct bench *b, const struct bench_args *args, unsigned depth)
{
	double seconds = (double)b->elapsed_ns / 1e9, iops = (double)b->count / seconds;
	double mib = iops * (double)b->size / (1 << 20), flush = (double)b->final_flush_ns / 1e9;

	qsort(b->latency_ns, (size_t)b->count, sizeof(*b->latency_ns), by_value);
	if (args->common.json)
		return output_json(json_pack("{s:s, s:I, s:I, s:i, s:b, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
					     "operation", b->write ? "write" : "read", "request_bytes",
					     (json_int_t)b->size, "count", (json_int_t)b->count, "depth", (int)depth,
					     "random", b->random, "flush_interval", (json_int_t)b->flush_interval,
					     "seconds", seconds, "iops", iops, "mib_per_second", mib, "p50_us",
					     percentile_us(b, 50), "p99_us", percentile_us(b, 99), "max_us",
					     percentile_us(b, 100), "final_flush_seconds", flush));
	printf("%s %" PRIu64 " x %" PRIu64 " bytes, depth %u, %s\n", b->write ? "write" : "read", b->count, b->size,
	       depth, b->random ? "random" : "sequential");
	printf("%.3f s, %.0f requests/s, %.1f MiB/s\n", seconds, iops, mib);
	printf("latency: p50 %.1f us, p99 %.1f us, max %.1f us\n", percentile_us(b, 50), percentile_us(b, 99),
	       percentile_us(b, 100));
	if (b->write)
		printf("final flush: %.3f s\n", flush);
	return EXIT_DONE;
}

static int check_args(const struct cli_verb *verb, const struct bench_args *args)
{
	if (args->read && args->write)
		return cli_usage_error(verb, "-r or -w, one of them");
	if (args->write && args->common.force_share)
		return cli_usage_error(verb, "-w writes, and -U only reads");
	if (args->flush_interval.given && !args->write)
		return cli_usage_error(verb, "--flush-interval needs -w");
	if (args->size.given && (args->size.value == 0 || args->size.value > (1 << 30)))
		return cli_usage_error(verb, "-s: 1 byte to 1 GiB");
	if (args->step.given && args->step.value == 0)
		return cli_usage_error(verb, "--step: at least 1");
	if (args->count.given && (args->count.value == 0 || args->count.value > MAX_COUNT))
		return cli_usage_error(verb, "-c: 1 to %" PRIu64, MAX_COUNT);
	if (args->depth.given && (args->depth.value == 0 || args->depth.value > MAX_DEPTH))
		return cli_usage_error(verb, "-d: 1 to %d", MAX_DEPTH);
	return EXIT_DONE;
}

static uint64_t or_default(const struct size_arg *arg, uint64_t value)
{
	return arg->given ? arg->value : value;
}

static int bench(const struct cli_verb *verb, const struct bench_args *args, const struct opened *o)
{
	unsigned depth = (unsigned)or_default(&args->depth, 1);
	struct bench b = {
		.write = args->write,
		.random = args->random,
		.size = or_default(&args->size, 4096),
		.count = or_default(&args->count, 75000),
		.seed = or_default(&args->seed, 1),
		.flush_interval = args->flush_interval.value,
		.offset = args->offset.value,
		.img = o->img,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	int status;

	b.step = or_default(&args->step, b.size);
	if (b.size > img_size(b.img) || b.offset > img_size(b.img) - b.size)
		return cli_usage_error(verb, "the image has %" PRIu64 " bytes: too few for one request",
				       img_size(b.img));
	b.latency_ns = calloc((size_t)b.count, sizeof(*b.latency_ns));
	status = b.latency_ns ? run_threads(&b, depth, &o->target) : cli_fail_errno(o->target.path, "latencies");
	if (status == EXIT_DONE)
		status = report(&b, args, depth);
	free(b.latency_ns);
	return status;
}

static int run(const struct cli_verb *verb, void *verb_args, char **operands, unsigned nr_operands)
{
	const struct bench_args *args = verb_args;
	struct opened o;
	int status = check_args(verb, args);

	(void)nr_operands;
	if (status == EXIT_DONE)
		status = opened_begin(&o, verb, &args->common, operands[0], args->write ? IMG_OPEN_WRITE : 0);
	if (status != EXIT_DONE)
		return status;
	return opened_end(&o, bench(verb, args, &o));
}

const struct cli_verb verb_bench = {
	.name = "bench",
	.operands = "FILE[@SNAP]",
	.summary = "Measures requests per second and their latency on an image",
	.details = "-w overwrites the content of the image. Requests wrap at its end. Figures of different runs "
		   "compare badly: measure what is to be compared in turn, several times.",
	.example = PROGRAM " bench -w -s 4K -c 100000 --random scratch.limg",
	.min_operands = 1,
	.max_operands = 1,
	.common = WITH_SNAPSHOT | WITH_JSON,
	.options = options,
	.nr_options = ARRAY_LEN(options),
	.args_bytes = sizeof(struct bench_args),
	.run = run,
};
