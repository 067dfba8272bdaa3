/* SPDX-License-Identifier: MIT */
/*
 * Data files (core/data_file.c): whom they may be, how new ones get their names, and what is left where the host or
 * memory fails on the way. All of them or none, under names that were free.
 */
#include "inside.h"

#include "budget.h"
#include "data_file.h"

#define NR_FILES 3u

/* ---- a host that tells what the test wants ----------------------------------------------------------------------- */

static struct img_driver hooked;
static struct host_stat told[NR_FILES + 1]; /* of the image, and of its files by the digit in their names */
static int fail_stat[NR_FILES + 1];
static unsigned publish_fails; /* the call, from 1 */
static unsigned last_use, last_forbid;

static unsigned number_of(const char *path)
{
	const char *at = strchr(path, '#');

	return at ? (unsigned)(at[1] - '0') : 0;
}

static int hooked_stat(struct node *n, struct host_stat *out, struct img_error *err)
{
	unsigned nr = number_of(n->path);

	*out = told[nr];
	return fail_stat[nr] ? error_set(err, fail_stat[nr], 0, NO_OFFSET, "test", "stat fails") : 0;
}

static int hooked_share(struct node *n, unsigned use, unsigned forbid, struct img_error *err)
{
	last_use = use;
	last_forbid = forbid;
	return fault_driver.share(n, use, forbid, err);
}

static struct image_env env;

static int env_open(void *ctx, const char *child_path, const char *name, enum img_refs refs,
		    const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	int ret = inside_host.env.open_file(ctx, child_path, name, refs, args, out, resolved, err);

	if (ret == 0)
		(*out)->drv = &hooked;
	return ret;
}

static int env_publish(void *ctx, const char *temp_path, const char *path, unsigned flags, struct img_error *err)
{
	if (publish_fails > 0 && --publish_fails == 0)
		return error_set(err, IMG_E_IO, 0, NO_OFFSET, "test", "publish fails");
	return inside_host.env.publish(ctx, temp_path, path, flags, err);
}

static int setup(void **state)
{
	inside_setup(state);
	env = inside_host.env;
	env.open_file = env_open;
	env.publish = env_publish;
	hooked = fault_driver;
	hooked.stat = hooked_stat;
	hooked.share = hooked_share;
	memset(fail_stat, 0, sizeof(fail_stat));
	memset(told, 0, sizeof(told));
	publish_fails = 0;
	for (unsigned i = 0; i <= NR_FILES; i++)
		told[i] = (struct host_stat){ .ino = 100 + i, .dev = 5 };
	return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static void make(const char *name)
{
	struct node *file;
	char *temp;

	assert_ok(inside_host.env.create_file(inside_host.env.ctx, name, &file, &temp, ERR));
	node_close(file, NULL);
	assert_ok(inside_host.env.publish(inside_host.env.ctx, temp, name, 0, ERR));
	free(temp);
}

struct opening {
	struct img_open_options o;
	struct data_opening d;
};

static void opening_start(struct opening *o, unsigned flags)
{
	struct host_open args = { .writable = false };
	char *path;

	memset(o, 0, sizeof(*o));
	o->o = (struct img_open_options){ .struct_size = sizeof(o->o), .flags = flags, .refs = IMG_REFS_ANY };
	o->d = (struct data_opening){ .path = "a", .o = &o->o, .env = &env };
	assert_ok(env.open_file(env.ctx, NULL, "a", IMG_REFS_ANY, &args, &o->d.file, &path, ERR));
	free(path);
}

static void opening_end(struct opening *o)
{
	data_file_opened(&o->d);
	assert_null(o->d.seen);
	node_close(o->d.file, NULL);
}

static void make_all(void)
{
	make("a");
	make("#1");
	make("#2");
}

static void test_open(void **state)
{
	static const struct {
		unsigned flags, use;
	} kinds[] = { { 0, SHARE_DATA_READER_USE },
		      { IMG_OPEN_WRITE, SHARE_DATA_WRITER_USE },
		      { IMG_OPEN_FORCE_SHARE, 77 } };

	(void)state;
	make_all();
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		struct opening o;
		struct node *one, *two, *same;

		last_use = 77;
		opening_start(&o, kinds[i].flags);
		assert_ok(data_file_open(&o.d, "#1", &one, ERR));
		assert_int_equal(last_use, kinds[i].use);
		assert_ok(data_file_open(&o.d, "#2", &two, ERR));
		assert_fails(data_file_open(&o.d, "#1", &same, ERR), IMG_E_CORRUPT, "two data files of a at once");
		assert_null(same);
		node_close(one, NULL);
		node_close(two, NULL);
		opening_end(&o);
	}
}

/* Whom a file is told to be decides; who cannot be told apart is taken for another one. */
static void test_same(void **state)
{
	struct opening o;
	struct node *one, *two;

	(void)state;
	make_all();
	make("#3");
	opening_start(&o, 0);
	told[1] = told[0];
	assert_fails(data_file_open(&o.d, "#1", &one, ERR), IMG_E_CORRUPT, "names itself");
	told[1].dev++; /* the same number on another file system */
	assert_ok(data_file_open(&o.d, "#1", &one, ERR));
	told[2] = told[1];
	assert_fails(data_file_open(&o.d, "#2", &two, ERR), IMG_E_CORRUPT, "at once");
	told[2].ino = 0;
	assert_ok(data_file_open(&o.d, "#2", &two, ERR));
	node_close(one, NULL);
	node_close(two, NULL);
	told[0].ino = 0;
	assert_ok(data_file_open(&o.d, "#3", &one, ERR));
	node_close(one, NULL);
	told[2] = (struct host_stat){ .is_block_device = true, .ino = 8 };
	assert_fails(data_file_open(&o.d, "#2", &two, ERR), IMG_E_REFUSED, "block device");
	fail_stat[2] = IMG_E_IO;
	assert_fails(data_file_open(&o.d, "#2", &two, ERR), IMG_E_IO, "stat fails");
	fail_stat[0] = IMG_E_IO;
	assert_fails(data_file_open(&o.d, "#1", &one, ERR), IMG_E_IO, "stat fails");
	assert_true(data_file_open(&o.d, "none", &one, ERR) != 0); /* is not there */
	assert_null(one);
	opening_end(&o);
}

static void test_references_end(void **state)
{
	struct opening o;
	struct budget budget;
	struct node *one, *two;

	(void)state;
	make_all();
	opening_start(&o, 0);
	assert_ok(budget_init(&budget, &o.o, ERR));
	budget.limit[BUDGET_REFERENCES] = 1;
	o.d.budget = &budget;
	assert_ok(data_file_open(&o.d, "#1", &one, ERR));
	assert_fails(data_file_open(&o.d, "#2", &two, ERR), IMG_E_LIMIT, "");
	node_close(one, NULL);
	opening_end(&o);
}

/* Not opened on purpose: what lies there is refused. */
static void test_absent(void **state)
{
	struct opening o;
	struct node *one;
	uint8_t byte;

	(void)state;
	make("a");
	opening_start(&o, 0);
	o.d.absent = true;
	assert_ok(data_file_open(&o.d, "#1", &one, ERR));
	assert_fails(node_pread(one, &byte, 1, 4096, 0, ERR), IMG_E_REFUSED, "not opened on purpose");
	node_close(one, NULL);
	alloc_fault_arm(1, false);
	assert_int_equal(data_file_open(&o.d, "#1", &one, ERR), IMG_E_NOMEM);
	alloc_fault_disarm();
	assert_null(one);
	opening_end(&o);
}

/* ---- each failure of an opening ---------------------------------------------------------------------------------- */

static struct opening each;

static void open_before(void *ctx)
{
	(void)ctx;
	setup(NULL);
	make_all();
	opening_start(&each, IMG_OPEN_WRITE);
}

static int open_act(void *ctx)
{
	struct node *one = NULL, *two = NULL;
	int ret = data_file_open(&each.d, "#1", &one, ERR);

	(void)ctx;
	assert_true((ret == 0) == (one != NULL));
	if (ret == 0) {
		ret = data_file_open(&each.d, "#2", &two, ERR);
		node_close(one, NULL);
	}
	if (ret == 0)
		node_close(two, NULL);
	return ret;
}

static void open_after(void *ctx, int ret)
{
	(void)ctx;
	(void)ret;
	opening_end(&each);
	inside_teardown(NULL);
}

/* ---- creating ---------------------------------------------------------------------------------------------------- */

static bool is_there(const char *name)
{
	return memhost_find(&inside_host, name) != NULL;
}

static unsigned nr_temps(void)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < MEMHOST_FILES; i++)
		nr += inside_host.file[i].content && inside_host.file[i].name[0] &&
		      memhost_is_temp(&inside_host.file[i]);
	return nr;
}

static struct data_creation creation(void)
{
	return (struct data_creation){ .path = "a", .refs = IMG_REFS_ANY, .env = &env };
}

static void test_create(void **state)
{
	struct data_creation c = creation();
	struct node *one, *two;

	(void)state;
	make("#3");
	assert_ok(data_file_create(&c, "#1", &one, ERR));
	assert_ok(node_pwrite(one, "one", 3, 0, 0, ERR));
	assert_fails(data_file_create(&c, "#1", &two, ERR), IMG_E_INVALID, "two data files");
	assert_fails(data_file_create(&c, "a", &two, ERR), IMG_E_INVALID, "its own data file");
	assert_fails(data_file_create(&c, "#3", &two, ERR), IMG_E_EXISTS, "never replaced");
	assert_null(two);
	assert_ok(data_file_create(&c, "#2", &two, ERR));
	assert_false(is_there("#1"));
	publish_fails = 2;
	assert_fails(data_file_publish(&c, ERR), IMG_E_IO, "publish fails");
	assert_true(is_there("#1") && !is_there("#2"));
	assert_ok(data_file_publish(&c, ERR)); /* what is left */
	assert_true(is_there("#1") && is_there("#2"));
	assert_ok(data_file_publish(&c, ERR)); /* nothing */
	data_file_end(&c, true);
	assert_true(is_there("#1") && is_there("#2"));
	assert_int_equal(nr_temps(), 0);

	/* Without what it stands for: published, or not even that. */
	for (unsigned i = 0; i < 3; i++) {
		inside_teardown(state);
		setup(state);
		c = creation();
		assert_ok(data_file_create(&c, "#1", &one, ERR));
		assert_ok(data_file_create(&c, "#2", &two, ERR));
		publish_fails = i == 1 ? 2 : 0;
		if (i > 0)
			assert_int_equal(data_file_publish(&c, ERR), i == 1 ? IMG_E_IO : 0);
		data_file_end(&c, false);
		assert_false(is_there("#1") || is_there("#2"));
		assert_int_equal(nr_temps(), 0);
	}
}

/* The image that is being made opens what was made for it: the node itself, once; others are opened by their names. */
static void test_made(void **state)
{
	struct data_creation c = creation();
	struct node *one, *two, *opened, *again;
	struct opening o;

	(void)state;
	make("a");
	assert_ok(data_file_create(&c, "#1", &one, ERR));
	assert_ok(data_file_create(&c, "#2", &two, ERR));
	opening_start(&o, IMG_OPEN_WRITE);
	o.d.made = &c;
	two->drv = &hooked;
	assert_ok(data_file_open(&o.d, "#2", &opened, ERR));
	assert_ptr_equal(opened, two);
	assert_true(data_file_open(&o.d, "#2", &again, ERR) != 0); /* it has no name yet */
	node_close(opened, NULL);
	opening_end(&o);
	assert_ok(data_file_publish(&c, ERR));
	data_file_end(&c, true);
	assert_true(is_there("#1") && is_there("#2"));
}

static int new_path_here(void *ctx, const char *child_path, const char *name, enum img_refs refs, char **out,
			 struct img_error *err)
{
	(void)ctx;
	(void)child_path;
	(void)err;
	assert_int_equal(refs, IMG_REFS_ANY);
	return asprintf(out, "%s", name) > 0 ? 0 : IMG_E_NOMEM;
}

static void test_new_path(void **state)
{
	struct data_creation c = creation();
	struct node *one;

	(void)state;
	env.new_path = new_path_here;
	assert_ok(data_file_create(&c, "#1", &one, ERR));
	assert_ok(data_file_publish(&c, ERR));
	data_file_end(&c, true);
	assert_true(is_there("#1"));
}

/* Who asks no environment for a path asks the broker, which keeps names in the image's folder unless it is told not to.
 */
static void test_paths(void **state)
{
	struct data_creation c = creation();
	struct node *one;

	(void)state;
	env.new_path = NULL;
	c.refs = IMG_REFS_DEFAULT;
	assert_true(data_file_create(&c, "../x", &one, ERR) != 0);
	assert_int_equal(c.nr_made, 0);
	data_file_end(&c, false);
}

static struct data_creation each_c;

static void create_before(void *ctx)
{
	(void)ctx;
	setup(NULL);
	each_c = creation();
}

static int create_act(void *ctx)
{
	struct node *file;
	int ret = data_file_create(&each_c, "#1", &file, ERR);

	(void)ctx;
	if (ret == 0)
		ret = node_pwrite(file, "one", 3, 0, 0, ERR);
	if (ret == 0)
		ret = data_file_create(&each_c, "#2", &file, ERR);
	return ret == 0 ? data_file_publish(&each_c, ERR) : ret;
}

static void create_after(void *ctx, int ret)
{
	(void)ctx;
	data_file_end(&each_c, ret == 0);
	assert_int_equal(is_there("#1"), ret == 0);
	assert_int_equal(is_there("#2"), ret == 0);
	assert_int_equal(nr_temps(), 0);
	inside_teardown(NULL);
}

static void test_failures(void **state)
{
	struct inside_failures o = { open_before, open_act, open_after, NULL, FAULT_ALL, false };
	struct inside_failures c = { create_before, create_act, create_after, NULL, FAULT_ALL, false };

	inside_teardown(state);
	assert_true(inside_fail_each(&o) > 0);
	assert_true(inside_fail_each(&c) > 2);
	o.memory = c.memory = true;
	assert_true(inside_fail_each(&o) > 2);
	assert_true(inside_fail_each(&c) > 4);
	inside_setup(state);
}

/* The first that cannot be closed, or flushed, tells why; the others are closed all the same. */
static int close_fails;

static int hooked_close(struct node *n, struct img_error *err)
{
	int ret = fault_driver.close(n, NULL);

	return close_fails ? error_set(err, close_fails, 0, NO_OFFSET, "test", "close fails") : ret;
}

static void test_close_fails(void **state)
{
	struct data_creation c = creation();
	struct node *one, *two;

	(void)state;
	hooked.close = hooked_close;
	for (unsigned flush = 0; flush < 2; flush++) {
		c = creation();
		assert_ok(data_file_create(&c, "#1", &one, ERR));
		assert_ok(data_file_create(&c, "#2", &two, ERR));
		one->drv = two->drv = &hooked;
		close_fails = IMG_E_IO;
		if (flush)
			fault_plan_arm(&inside_plan, 1u << FAULT_FLUSH, 1, ENOSPC, false);
		assert_int_equal(data_file_publish(&c, ERR), flush ? IMG_E_NOSPC : IMG_E_IO);
		fault_plan_disarm(&inside_plan);
		close_fails = 0;
		data_file_end(&c, false);
		assert_int_equal(nr_temps(), 0);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, inside_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_open),     TEST(test_same),	     TEST(test_references_end), TEST(test_absent),
		TEST(test_create),   TEST(test_paths),	     TEST(test_made),		TEST(test_new_path),
		TEST(test_failures), TEST(test_close_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
