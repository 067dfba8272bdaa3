/* SPDX-License-Identifier: MIT */
/* The host with a fault filter on each file that is opened or created through it. */
#ifndef TESTS_UNIT_FAULT_ENV_H
#define TESTS_UNIT_FAULT_ENV_H

#include "image_fixture.h"

#include <errno.h>

#include "fault.h"
#include "image.h"

static struct fault_plan fault_env_plan;

static int fault_env_wrap(int ret, struct node **out, struct img_error *err)
{
	struct node *inner = *out;

	return ret == 0 ? fault_node_new(inner, &fault_env_plan, out, err) : ret;
}

static int fault_env_open(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			  const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	return fault_env_wrap(image_env_host.open_file(ctx, child_path, name, refs, args, out, resolved, err), out,
			      err);
}

static int fault_env_create(void *ctx, const char *path, struct node **out, char **temp_path, struct img_error *err)
{
	return fault_env_wrap(image_env_host.create_file(ctx, path, out, temp_path, err), out, err);
}

static struct image_env fault_env;

static int fault_env_setup(void **state)
{
	fault_plan_init(&fault_env_plan);
	fault_env = image_env_host;
	fault_env.open_file = fault_env_open;
	fault_env.create_file = fault_env_create;
	return fixture_setup(state);
}

static int fault_env_teardown(void **state)
{
	fault_plan_destroy(&fault_env_plan);
	return fixture_teardown(state);
}

/* Every one of the first calls, then fewer and fewer: what comes late is a long run of the same kind, and a short end. */
static uint64_t next_call(uint64_t n)
{
	return n + 1 + n / 20;
}

static struct img *open_faulty(const char *name, const char *format, unsigned flags)
{
	struct img_open_options open = { .struct_size = sizeof(open), .format = format, .flags = flags };
	struct img *img = NULL;

	assert_ok(image_open_env(in_dir(name), &open, &fault_env, &img, ERR));
	return img;
}

#endif
