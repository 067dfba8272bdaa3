/* SPDX-License-Identifier: MIT */
/*
 * fault_read FILE...: images that are only read, on a host that fails: the k-th read and the k-th allocation, for every
 * k until nothing fails any more, once and for good. Each image is opened, read whole and in parts, mapped, checked and
 * inspected. What succeeds gives what it gave without a fault; what fails says so and names the file, and nothing is
 * leaked (the sanitizers see to that). Last, four threads read one handle.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "alloc_fault.h"
#include "fault.h"
#include "image.h"

#define CHUNK_BYTES (1u << 20)
#define READ_BYTES  (UINT64_C(4) << 20) /* of the disk; and its end */
#define PART_BYTES  3001u
#define THREADS	    4
#define MAX_CALLS   100000u

#define REQUIRE(condition)                                                                        \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s: %s:%d: %s\n", path, __FILE__, __LINE__, #condition); \
			exit(1);                                                                  \
		}                                                                                 \
	} while (0)

static struct fault_plan plan;
static struct image_env env;
static const char *path;

static int open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
		     const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	int ret = image_env_host.open_file(ctx, child_path, name, refs, args, out, resolved, err);

	if (ret != 0)
		return ret;
	ret = fault_node_new(*out, &plan, out, err);
	if (ret != 0) {
		free(*resolved);
		*resolved = NULL;
	}
	return ret;
}

/* What one pass over an image came to. */
struct seen {
	int opened, read, mapped, checked, inspected; /* 0 or the error */
	uint64_t content, map, findings;	      /* digests, of what succeeded */
};

static int read_range(struct img *img, uint64_t from, uint64_t to, uint64_t step, uint64_t *digest)
{
	static _Thread_local uint8_t buf[CHUNK_BYTES];
	struct img_error err = { 0 };

	for (uint64_t off = from; off < to; off += step) {
		uint64_t n = to - off < step ? to - off : step;
		int ret = img_pread(img, buf, n, off, 0, &err);

		if (ret != 0) {
			REQUIRE(err.code == ret && err.msg[0] != '\0');
			return ret;
		}
		*digest = XXH3_64bits_withSeed(buf, n, *digest);
	}
	return 0;
}

static int read_all(struct img *img, uint64_t *digest)
{
	uint64_t size = img_size(img), some = size < READ_BYTES ? size : READ_BYTES;
	int ret = read_range(img, 0, some, CHUNK_BYTES, digest);

	if (ret == 0)
		ret = read_range(img, size - some / 8, size, CHUNK_BYTES, digest);
	return ret ? ret : read_range(img, 1000, some < 99000 ? some : 99000, PART_BYTES, digest);
}

static int map_all(struct img *img, uint64_t *digest)
{
	struct img_extent list[16];
	size_t nr;

	for (uint64_t off = 0; off < img_size(img);) {
		int ret = img_extents(img, img_size(img) - off, off, 0, list, 16, &nr, NULL);

		if (ret != 0)
			return ret;
		REQUIRE(nr > 0);
		for (size_t i = 0; i < nr; i++) {
			REQUIRE(list[i].off == off && list[i].bytes > 0);
			off += list[i].bytes;
			*digest = XXH3_64bits_withSeed(&list[i].off, 2 * sizeof(uint64_t), *digest + list[i].flags);
		}
	}
	return 0;
}

static void add_finding(void *ctx, const struct img_inspect_finding *f)
{
	uint64_t *digest = ctx;

	*digest = XXH3_64bits_withSeed(f->id, strlen(f->id), *digest + f->file_off);
}

static void pass(struct seen *out)
{
	struct img_open_options o = { .struct_size = sizeof(o) };
	struct img_check_result check;
	struct img_error err = { 0 };
	struct img *img;

	memset(out, 0, sizeof(*out));
	out->opened = image_open_env(path, &o, &env, &img, &err);
	if (out->opened == 0) {
		out->read = read_all(img, &out->content);
		out->mapped = map_all(img, &out->map);
		memset(&err, 0, sizeof(err));
		out->checked = img_check(img, 0, NULL, NULL, NULL, &check, &err);
		REQUIRE(out->checked == err.code);
		out->findings = check.damage;
		REQUIRE(img_close(img, NULL) == 0);
	} else {
		REQUIRE(err.code == out->opened && err.msg[0] != '\0');
	}
	out->inspected = image_inspect_env(path, NULL, add_finding, &out->findings, NULL, &env, NULL);
}

static bool may_be(int ret, bool memory)
{
	return ret == 0 || ret == (memory ? IMG_E_NOMEM : IMG_E_IO);
}

static void compare(const struct seen *got, const struct seen *want, bool memory)
{
	REQUIRE(may_be(got->opened, memory) && may_be(got->read, memory) && may_be(got->mapped, memory));
	REQUIRE(may_be(got->checked, memory) && may_be(got->inspected, memory));
	if (got->opened == 0 && got->read == 0)
		REQUIRE(got->content == want->content);
	if (got->opened == 0 && got->mapped == 0)
		REQUIRE(got->map == want->map);
}

static bool same(const struct seen *a, const struct seen *b)
{
	return a->opened == b->opened && a->read == b->read && a->mapped == b->mapped && a->checked == b->checked &&
	       a->inspected == b->inspected && a->content == b->content && a->map == b->map &&
	       a->findings == b->findings;
}

/* A check takes what cannot be read for damage: its findings are compared only where nothing failed. */
static unsigned with_failures(const struct seen *want, bool memory, bool for_good)
{
	struct seen got;
	uint64_t failed = 1;
	unsigned nr = 0;

	for (uint64_t nth = 1; failed > 0; nth += 1 + nth / 30, nr++) {
		REQUIRE(nth < MAX_CALLS);
		if (memory)
			alloc_fault_arm(nth, for_good);
		else
			fault_plan_arm(&plan, 1u << FAULT_READ, nth, EIO, for_good);
		pass(&got);
		failed = memory ? alloc_fault_failed() : plan.failed;
		alloc_fault_disarm();
		fault_plan_disarm(&plan);
		compare(&got, want, memory);
		if (failed == 0)
			REQUIRE(same(&got, want));
	}
	return nr;
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

struct reader {
	struct img *img;
	uint64_t digest;
	int ret;
};

static void *read_beside(void *arg)
{
	struct reader *r = arg;

	r->ret = read_all(r->img, &r->digest);
	return NULL;
}

static void with_threads(const struct seen *want)
{
	struct reader r[THREADS];
	pthread_t thread[THREADS];
	struct img *img;

	REQUIRE(img_open(path, NULL, &img, NULL) == 0);
	for (int i = 0; i < THREADS; i++) {
		r[i] = (struct reader){ .img = img };
		REQUIRE(pthread_create(&thread[i], NULL, read_beside, &r[i]) == 0);
	}
	for (int i = 0; i < THREADS; i++) {
		REQUIRE(pthread_join(thread[i], NULL) == 0);
		REQUIRE(r[i].ret == 0 && r[i].digest == want->content);
	}
	REQUIRE(img_close(img, NULL) == 0);
}

int main(int argc, char **argv)
{
	fault_plan_init(&plan);
	env = image_env_host;
	env.open_file = open_file;
	for (int i = 1; i < argc; i++) {
		struct seen want;
		unsigned nr = 0;

		path = argv[i];
		pass(&want);
		REQUIRE(want.opened == 0 && want.read == 0 && want.mapped == 0 && want.checked == 0 &&
			want.inspected == 0);
		for (unsigned kind = 0; kind < 4; kind++)
			nr += with_failures(&want, kind & 1, kind & 2);
		with_threads(&want);
		printf("%s: %u passes with a failure\n", path, nr);
	}
	fault_plan_destroy(&plan);
	return argc > 1 ? 0 : 2;
}
