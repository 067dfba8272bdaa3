/* SPDX-License-Identifier: MIT */
/*
 * img_commit() with each allocation and each call of the host failing, over parents of each kind: what is read through
 * the overlay is always the same, and a commit that stopped can be run again.
 */
#include "inside.h"

#define SIZE (128 * KIB)

struct setup {
	const char *over, *base, *snapshot;
	uint64_t over_bytes;
};

static void make(const struct setup *s)
{
	struct img_create_options o = { .struct_size = sizeof(o),
					.format = s->over,
					.size_bytes = s->over_bytes,
					.backing = "base",
					.backing_snapshot = s->snapshot,
					.backing_format = s->base,
					.refs = IMG_REFS_ANY };
	struct img_open_options known = { .struct_size = sizeof(known), .format = s->base, .flags = IMG_OPEN_WRITE };
	struct img *img;

	inside_create("base", s->base, SIZE, NULL);
	assert_ok(image_open_env("base", &known, &inside_host.env, &img, ERR));
	inside_fill(img, 0, 100 * KIB, 1);
	if (s->snapshot)
		assert_ok(img_snapshot_create(img, s->snapshot, 0, ERR));
	inside_close(img);
	assert_ok(image_create_env("over", &o, &inside_host.env, ERR));
	img = inside_open("over", IMG_OPEN_WRITE);
	inside_fill(img, 8 * KIB, 40 * KIB, 2);
	assert_ok(img_zero(img, 16 * KIB, 64 * KIB, 0, ERR));
	inside_fill(img, s->over_bytes - 4 * KIB, 4 * KIB, 3);
	inside_close(img);
	inside_copy("base", "base0");
	inside_copy("over", "over0");
}

static void content_of(struct img *img, uint8_t *buf)
{
	memset(buf, 0, 2 * SIZE);
	assert_ok(img_pread(img, buf, img_size(img), 0, 0, ERR));
}

static uint8_t expected[2 * SIZE], seen[2 * SIZE];
static struct img *over;

static void fresh(void *ctx)
{
	(void)ctx;
	inside_copy("base0", "base");
	inside_copy("over0", "over");
	over = inside_open("over", IMG_OPEN_WRITE);
}

static int commit(void *ctx)
{
	struct img_copy_options o = { .struct_size = sizeof(o), .threads = 1 };

	(void)ctx;
	error_clear(ERR);
	return img_commit(over, &o, ERR);
}

static void judge(void *ctx, int ret)
{
	struct img *img;

	(void)ctx;
	(void)img_close(over, NULL);
	img = inside_open("over", 0);
	content_of(img, seen);
	inside_close(img);
	assert_memory_equal(seen, expected, sizeof(seen));
	if (inside_try("over", IMG_OPEN_WRITE, &img) == IMG_E_REFUSED) {
		assert_int_not_equal(ret, 0);
		img = inside_open("over", IMG_OPEN_WRITE | IMG_OPEN_NO_BACKING | IMG_OPEN_UNSAFE_BACKING);
		assert_ok(img_commit(img, NULL, ERR));
	}
	if (img)
		inside_close(img);
	img = inside_open("over", 0);
	content_of(img, seen);
	inside_close(img);
	assert_memory_equal(seen, expected, sizeof(seen));
}

static void test_each_failure(void **state)
{
	static const struct setup list[] = {
		{ "limg", "limg", NULL, SIZE + 32 * KIB },
		{ "limg", "limg", "A", SIZE },
		{ "qcow2", "qcow2", "A", SIZE + 32 * KIB },
		{ "qcow2", "raw", NULL, SIZE + 32 * KIB },
	};
	struct inside_failures f = { fresh, commit, judge, NULL, FAULT_ALL & ~(1u << FAULT_LOCK), false };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(list); i++) {
		make(&list[i]);
		over = inside_open("over", 0);
		content_of(over, expected);
		inside_close(over);
		f.memory = false;
		assert_true(inside_fail_each(&f) > 10);
		f.memory = true;
		assert_true(inside_fail_each(&f) > 10);
		inside_teardown(NULL);
		inside_setup(NULL);
	}
}

/* ---- a head that is not what the snapshot is --------------------------------------------------------------------- */

static void change_base(int what)
{
	struct img *img;
	uint8_t byte = 0x77;

	inside_copy("base0", "base");
	inside_copy("over0", "over");
	img = inside_open("base", IMG_OPEN_WRITE);
	if (what == 0)
		assert_ok(img_pwrite(img, &byte, 1, 110 * KIB, 0, ERR));
	else
		assert_ok(img_resize(img, SIZE + 4 * KIB, 0, ERR));
	inside_close(img);
}

static void test_other_head(void **state)
{
	static const char *const formats[] = { "limg", "qcow2" };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
		make(&(struct setup){ "limg", formats[i], "A", SIZE });
		for (int what = 0; what < 2; what++) {
			change_base(what);
			over = inside_open("over", IMG_OPEN_WRITE | (i ? IMG_OPEN_UNSAFE_BACKING : 0));
			assert_int_not_equal(commit(NULL), 0);
			(void)img_close(over, NULL);
		}
		inside_teardown(NULL);
		inside_setup(NULL);
	}
}

/* A weak pin knows samples: what changed between them is found by comparing all. */
static void test_between_the_samples(void **state)
{
	struct img_create_options o = { .struct_size = sizeof(o),
					.format = "limg",
					.size_bytes = 32 * MIB,
					.backing = "base",
					.backing_snapshot = "A",
					.backing_format = "qcow2",
					.refs = IMG_REFS_ANY };
	struct img *img;

	(void)state;
	inside_create("base", "qcow2", 32 * MIB, NULL);
	img = inside_open("base", IMG_OPEN_WRITE);
	assert_ok(img_snapshot_create(img, "A", 0, ERR));
	inside_fill(img, 300 * KIB, 1, 7);
	inside_close(img);
	assert_ok(image_create_env("over", &o, &inside_host.env, ERR));
	over = inside_open("over", IMG_OPEN_WRITE);
	assert_fails(commit(NULL), IMG_E_REFUSED, "no longer what snapshot");
	inside_close(over);
}

/* ---- a parent that is replaced ----------------------------------------------------------------------------------- */

static int (*real_open)(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			const struct host_open *args, struct node **out, char **resolved, struct img_error *err);
static struct img_driver other_file;
static const struct img_driver *real_driver;
static uint64_t dev_change, ino_change;

static int stat_of_another(struct node *node, struct host_stat *out, struct img_error *err)
{
	int ret;

	node->drv = real_driver;
	ret = node_stat(node, out, err);
	node->drv = &other_file;
	out->dev += dev_change;
	out->ino += ino_change;
	return ret;
}

/* Whoever opens the parent for writing gets another file than those who opened it to read. */
static int open_replaced(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			 const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	int ret = real_open(ctx, child_path, name, refs, args, out, resolved, err);
	if (ret == 0 && args->writable && strcmp(name, "base") == 0) {
		real_driver = (*out)->drv;
		other_file = *real_driver;
		other_file.stat = stat_of_another;
		(*out)->drv = &other_file;
	}
	return ret;
}

static void test_replaced_parent(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		dev_change = i == 0;
		ino_change = i == 1;
		make(&(struct setup){ "limg", "limg", NULL, SIZE });
		over = inside_open("over", IMG_OPEN_WRITE);
		real_open = inside_host.env.open_file;
		inside_host.env.open_file = open_replaced;
		assert_fails(commit(NULL), IMG_E_CHANGED, "replaced");
		inside_close(over);
		inside_teardown(NULL);
		inside_setup(NULL);
	}
}

/* ---- the time of a parent's last change -------------------------------------------------------------------------- */

static unsigned nr_synced;
static int sync_failure;

static int sync_time(struct node *node, struct img_error *err)
{
	nr_synced++;
	return sync_failure == 0 ?
		       0 :
		       error_set(err, sync_failure, EIO, NO_OFFSET, "test", "%s: lost its time", node->path);
}

static int open_synced(void *ctx, const char *child_path, const char *name, enum img_refs refs,
		       const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	int ret = real_open(ctx, child_path, name, refs, args, out, resolved, err);
	if (ret == 0 && strcmp(name, "base") == 0) {
		other_file = *(*out)->drv;
		other_file.sync_time = sync_time;
		(*out)->drv = &other_file;
	}
	return ret;
}

/* It is durable before an overlay has it on record, or it is not put there; a parent with an identity has no need of
 * it. */
static void test_time_of_the_parent(void **state)
{
	struct img_create_options o = { .struct_size = sizeof(o),
					.format = "limg",
					.backing = "base",
					.backing_format = "qcow2",
					.size_bytes = SIZE,
					.refs = IMG_REFS_ANY };

	(void)state;
	real_open = inside_host.env.open_file;
	inside_host.env.open_file = open_synced;
	nr_synced = 0;
	make(&(struct setup){ "qcow2", "qcow2", NULL, SIZE });
	assert_int_equal(nr_synced, 1);
	over = inside_open("over", IMG_OPEN_WRITE);
	assert_ok(commit(NULL));
	assert_int_equal(nr_synced, 2);
	inside_fill(over, 0, 4 * KIB, 7);
	content_of(over, expected);
	sync_failure = IMG_E_IO;
	assert_fails(commit(NULL), IMG_E_IO, "lost its time");
	assert_fails(image_create_env("other", &o, &inside_host.env, ERR), IMG_E_IO, "lost its time");
	sync_failure = 0;
	content_of(over, seen);
	assert_memory_equal(seen, expected, sizeof(seen));
	assert_ok(commit(NULL));
	inside_close(over);
	assert_ok(image_create_env("other", &o, &inside_host.env, ERR)); /* nothing was left under the name */

	inside_teardown(NULL);
	inside_setup(NULL);
	inside_host.env.open_file = open_synced;
	nr_synced = 0;
	make(&(struct setup){ "qcow2", "limg", NULL, SIZE });
	assert_int_equal(nr_synced, 0);
}

/* ---- others ------------------------------------------------------------------------------------------------------ */

/* An overlay that does not say what its backing is. */
static void test_no_format_on_record(void **state)
{
	static const uint8_t backing_format[] = { 0xe2, 0x79, 0x2a, 0xca };
	uint8_t head[1024], *at = NULL;

	(void)state;
	make(&(struct setup){ "qcow2", "qcow2", NULL, SIZE });
	inside_read("over", head, sizeof(head), 0);
	for (size_t i = 0; i + 4 <= sizeof(head) && !at; i++)
		if (memcmp(head + i, backing_format, 4) == 0)
			at = head + i;
	assert_non_null(at);
	at[0] = 0x12;
	inside_write("over", head, sizeof(head), 0);
	over = inside_open("over", IMG_OPEN_WRITE | IMG_OPEN_UNSAFE_BACKING);
	content_of(over, expected);
	assert_ok(commit(NULL));
	content_of(over, seen);
	assert_memory_equal(seen, expected, sizeof(seen));
	inside_close(over);
}

static void test_options(void **state)
{
	struct {
		struct img_copy_options o;
		uint64_t later;
	} newer = { .o = { .struct_size = sizeof(newer) }, .later = 1 };

	(void)state;
	make(&(struct setup){ "limg", "limg", NULL, SIZE });
	over = inside_open("over", IMG_OPEN_WRITE);
	assert_int_equal(img_commit(over, &newer.o, ERR), IMG_E_UNSUPPORTED);
	inside_close(over);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_each_failure),	     T(test_other_head),	  T(test_replaced_parent),
		T(test_no_format_on_record), T(test_between_the_samples), T(test_options),
		T(test_time_of_the_parent),
	};

	return cmocka_run_group_tests_name("inside-commit", tests, NULL, NULL);
}
