/* SPDX-License-Identifier: MIT */
/*
 * Images on a host in memory, with what a driver holds inside in reach: for tests of states that no sequence of public
 * calls brings about by itself (a damaged page with a right checksum, memory that runs out here and not there). Tests
 * named test_inside_* are linked with tests/crash/memhost.c and tests/fault/alloc_fault.c.
 */
#ifndef TESTS_UNIT_INSIDE_H
#define TESTS_UNIT_INSIDE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "checked.h"
#include "error.h"
#include "image.h"
#include "memhost.h"

#define KIB UINT64_C(1024)
#define MIB (UINT64_C(1024) * 1024)

/* Not every test uses every helper. */
#pragma GCC diagnostic ignored "-Wunused-function"

static struct memhost inside_host;
static struct fault_plan inside_plan;
static struct img_error inside_error;
#define ERR (&inside_error)

#define assert_ok(call)                                                                                        \
	do {                                                                                                   \
		int inside_ret_ = (call);                                                                      \
		if (inside_ret_ != 0)                                                                          \
			fail_msg("%s = %d: %s: %s", #call, inside_ret_, inside_error.layer, inside_error.msg); \
	} while (0)

/* The code, and words of the message. */
#define assert_fails(call, code_, words)                                                                         \
	do {                                                                                                     \
		int inside_ret_;                                                                                 \
		error_clear(ERR);                                                                                \
		inside_ret_ = (call);                                                                            \
		if (inside_ret_ != (code_) || strstr(inside_error.msg, (words)) == NULL)                         \
			fail_msg("%s = %d: %s, not %d: ...%s...", #call, inside_ret_, inside_error.msg, (code_), \
				 (words));                                                                       \
	} while (0)

static int inside_setup(void **state)
{
	(void)state;
	memhost_init(&inside_host);
	fault_plan_init(&inside_plan);
	inside_host.plan = &inside_plan;
	return 0;
}

static int inside_teardown(void **state)
{
	(void)state;
	alloc_fault_disarm();
	memhost_destroy(&inside_host);
	fault_plan_destroy(&inside_plan);
	return 0;
}

static void inside_create(const char *name, const char *format, uint64_t size_bytes, const char *options)
{
	struct img_create_options o = {
		.struct_size = sizeof(o), .format = format, .size_bytes = size_bytes, .options = options, .flags = 0
	};

	assert_ok(image_create_env(name, &o, &inside_host.env, ERR));
}

static int inside_try(const char *name, unsigned flags, struct img **out)
{
	struct img_open_options o = { .struct_size = sizeof(o), .flags = flags, .refs = IMG_REFS_ANY };

	*out = NULL;
	error_clear(ERR);
	return image_open_env(name, &o, &inside_host.env, out, ERR);
}

static struct img *inside_open(const char *name, unsigned flags)
{
	struct img *img;

	assert_ok(inside_try(name, flags, &img));
	return img;
}

static void inside_close(struct img *img)
{
	assert_ok(img_close(img, ERR));
}

static struct mem_content *inside_content(const char *name)
{
	struct memhost_file *file = memhost_find(&inside_host, name);

	assert_non_null(file);
	return file->content;
}

static void inside_read(const char *name, void *buf, uint64_t bytes, uint64_t off)
{
	mem_content_read(inside_content(name), buf, bytes, off);
}

static void inside_write(const char *name, const void *buf, uint64_t bytes, uint64_t off)
{
	assert_int_equal(mem_content_write(inside_content(name), buf, bytes, off), 0);
}

/* The bytes of the file as they are now, under another name: what a killed program leaves. */
static void inside_copy(const char *name, const char *to)
{
	struct mem_content *copy = mem_content_clone(inside_content(name));
	struct memhost_file *file = memhost_find(&inside_host, to);

	assert_non_null(copy);
	for (unsigned i = 0; file == NULL && i < MEMHOST_FILES; i++)
		if (inside_host.file[i].content == NULL)
			file = &inside_host.file[i];
	assert_non_null(file);
	mem_content_unref(file->content);
	file->content = copy;
	snprintf(file->name, sizeof(file->name), "%s", to);
}

static void inside_fill(struct img *img, uint64_t off, uint64_t bytes, uint8_t seed)
{
	uint8_t *buf = malloc((size_t)bytes);

	assert_non_null(buf);
	for (uint64_t i = 0; i < bytes; i++)
		buf[i] = (uint8_t)(seed + (i >> 9) * 7 + i * (i >> 3));
	assert_ok(img_pwrite(img, buf, bytes, off, 0, ERR));
	free(buf);
}

static void inside_expect_undamaged(const char *name)
{
	struct img *img = inside_open(name, 0);
	struct img_check_result result;

	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage, 0);
	inside_close(img);
}

static void inside_expect_clean(const char *name)
{
	struct img *img = inside_open(name, 0);
	struct img_check_result result;

	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage + result.leaks, 0);
	inside_close(img);
}

/*
 * Calls act() with the k-th allocation failing, and then with the k-th call of the host in ops, for each k until none
 * fails any more. before() and after() run with everything working; after() is told what act() returned. Returns how
 * often something failed.
 */
struct inside_failures {
	void (*before)(void *ctx);
	int (*act)(void *ctx);
	void (*after)(void *ctx, int ret);
	void *ctx;
	unsigned ops;
	bool memory;
};

static unsigned inside_fail_each(const struct inside_failures *f)
{
	for (unsigned k = 1;; k++) {
		uint64_t failed;
		int ret;

		if (f->before)
			f->before(f->ctx);
		if (f->memory)
			alloc_fault_arm(k, false);
		else
			fault_plan_arm(&inside_plan, f->ops, k, EIO, false);
		ret = f->act(f->ctx);
		failed = f->memory ? alloc_fault_failed() : inside_plan.failed;
		alloc_fault_disarm();
		fault_plan_disarm(&inside_plan);
		if (failed == 0)
			assert_int_equal(ret, 0);
		if (f->after)
			f->after(f->ctx, ret);
		if (failed == 0)
			return k - 1;
	}
}

#endif
