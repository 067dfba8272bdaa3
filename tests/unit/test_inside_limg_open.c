/* SPDX-License-Identifier: MIT */
/* limg's opening, creating and closing: what a handle refuses, and each failure on the way. */
#include "limg_inside.h"

#include "limg.h"

#define DISK (2 * MIB)

static void newest_super(struct super *sb)
{
	struct super found;
	uint8_t page[AU_BYTES];

	memset(sb, 0, sizeof(*sb));
	for (unsigned i = 0; i < 2; i++) {
		inside_read("a", page, AU_BYTES, au_off(i));
		if (super_decode(page, &found, NULL) == 0 && found.generation > sb->generation)
			*sb = found;
	}
}

static void put_super(const struct super *sb)
{
	uint8_t page[AU_BYTES];

	super_encode(sb, page);
	inside_write("a", page, AU_BYTES, au_off(super_slot_au(0, sb->generation)));
	inside_write("a", page, AU_BYTES, au_off(super_slot_au(1, sb->generation)));
}

static void flip(uint64_t off)
{
	uint8_t byte;

	inside_read("a", &byte, 1, off);
	byte ^= 0x40;
	inside_write("a", &byte, 1, off);
}

static void make(void)
{
	struct img *img = limg_new(DISK);

	inside_fill(img, 0, 3 * BLOCK, 1);
	assert_ok(img_snapshot_create(img, "S", 0, ERR));
	inside_fill(img, BLOCK, BLOCK, 2);
	assert_ok(img_snapshot_create(img, "T", 0, ERR));
	inside_close(img);
}

/* ---- what is refused --------------------------------------------------------------------------------------------- */

static void test_features_for_reading(void **state)
{
	struct super sb;
	struct img *img;

	(void)state;
	make();
	newest_super(&sb);
	sb.rocompat = 4;
	put_super(&sb);
	inside_close(inside_open("a", 0));
	assert_fails(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_UNSUPPORTED, "read-only");
}

static void test_sizes(void **state)
{
	struct driver_create args = { .size_bytes = 100 };
	struct node *file;

	(void)state;
	assert_ok(mem_node_new("f", &file, ERR));
	assert_fails(limg_create(file, &args, ERR), IMG_E_INVALID, "512");
	args.size_bytes = MAX_VOLUME_BYTES + 512;
	assert_fails(limg_create(file, &args, ERR), IMG_E_INVALID, "32 TiB");
	node_close(file, NULL);
}

/* A revert would make it the head's, which no reader takes: such an image is not written. */
static void test_snapshot_of_odd_size(void **state)
{
	struct img_snapshot list[2];
	struct img *img;
	struct snap *s;
	size_t nr;

	(void)state;
	make();
	img = inside_open("a", IMG_OPEN_WRITE);
	s = catalog_find(engine_of(img), "S");
	s->disk.size_bytes--;
	catalog_touch(engine_of(img), s);
	assert_ok(plain_checkpoint(engine_of(img)));
	inside_close(img);
	assert_fails(inside_try("a", IMG_OPEN_WRITE, &img), IMG_E_CORRUPT, "LIMG-13");
	img = inside_open("a", 0);
	assert_fails(img_snapshot_list(img, list, 2, &nr, ERR), IMG_E_CORRUPT, "LIMG-13");
	inside_close(img);
}

/* The map is damaged: read, repair, but do not write; with a journal that waits, too, and without the newest
 * superblock. */
static void test_damaged_map(void **state)
{
	struct img *img, *copy;
	struct super sb;

	(void)state;
	make();
	newest_super(&sb);
	flip(au_off(space_page_au(3, 0, sb.space.version)));
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_true(engine_of(img)->space_bad);
	inside_close(img);
	/* ... and both copies of the other slot are gone */
	flip(au_off(super_slot_au(0, sb.generation + 1)) + 2000);
	flip(au_off(super_slot_au(1, sb.generation + 1)) + 2000);
	img = inside_open("a", IMG_OPEN_WRITE);
	assert_true(engine_of(img)->space_bad);
	assert_true(engine_of(img)->mended);
	inside_close(img);

	inside_teardown(NULL);
	inside_setup(NULL);
	img = limg_new(DISK);
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 0, BLOCK, 1);
	assert_ok(img_flush(img, 0, ERR));
	inside_fill(img, 0, BLOCK, 2);
	assert_ok(img_flush(img, 0, ERR));
	inside_copy("a", "b");
	inside_close(img);
	inside_copy("b", "a");
	newest_super(&sb);
	assert_true(sb.ring_aus > 0);
	flip(au_off(space_page_au(3, 0, sb.space.version)));
	copy = inside_open("a", IMG_OPEN_WRITE);
	assert_true(engine_of(copy)->space_bad);
	assert_fails(img_pwrite(copy, &sb, 512, 0, 0, ERR), IMG_E_CORRUPT, "repair");
	inside_close(copy);
}

/* ---- without the core around it ---------------------------------------------------------------------------------- */

static void test_without_budget(void **state)
{
	struct host_open host = { .writable = true };
	struct driver_open args = { .writable = true, .snapshot = "S" };
	struct node *n;
	uint8_t buf[512];

	(void)state;
	make();
	n = node_new(registry_find("limg"), "a", ERR);
	assert_non_null(n);
	assert_ok(mem_node_on(inside_content("a"), "a", &host, &n->file, ERR));
	assert_ok(node_open(n, &args, ERR));
	assert_false(((struct limg_state *)n->state)->e->writable); /* a snapshot never is */
	assert_ok(node_pread(n, buf, sizeof(buf), 0, 0, ERR));
	assert_ok(node_close(n, ERR));
}

/* ---- each failure ------------------------------------------------------------------------------------------------ */

static struct img *opened;
static bool with_error;
static const char *snapshot;
static unsigned open_flags;

static int open_it(void *ctx)
{
	struct img_open_options o = {
		.struct_size = sizeof(o), .flags = open_flags, .snapshot = snapshot, .refs = IMG_REFS_ANY
	};

	(void)ctx;
	opened = NULL;
	return image_open_env("a", &o, &inside_host.env, &opened, with_error ? ERR : NULL);
}

static void close_it(void *ctx, int ret)
{
	(void)ctx;
	if (ret == 0)
		(void)img_close(opened, NULL);
}

static void open_with_failures(void)
{
	struct inside_failures f = { NULL, open_it, close_it, NULL, FAULT_ALL, false };

	assert_true(inside_fail_each(&f) > 5);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 5);
}

static void test_opening_fails(void **state)
{
	(void)state;
	make();
	for (unsigned i = 0; i < 2; i++) {
		with_error = i;
		snapshot = NULL;
		open_flags = IMG_OPEN_WRITE;
		open_with_failures();
		open_flags = 0;
		snapshot = "S";
		open_with_failures();
	}
	snapshot = "nobody";
	open_flags = 0;
	with_error = true;
	assert_int_equal(open_it(NULL), IMG_E_NOENT);
	snapshot = NULL;
}

static int create_it(void *ctx)
{
	struct img_create_options o = { .struct_size = sizeof(o), .format = "limg", .size_bytes = DISK };

	(void)ctx;
	o.flags = IMG_CREATE_OVERWRITE;
	return image_create_env("new", &o, &inside_host.env, ERR);
}

static void test_creating_fails(void **state)
{
	struct inside_failures f = { NULL, create_it, NULL, NULL, FAULT_ALL, false };

	(void)state;
	assert_true(inside_fail_each(&f) > 3);
	f.memory = true;
	assert_true(inside_fail_each(&f) > 3);
	inside_expect_clean("new");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, inside_setup, inside_teardown)
	const struct CMUnitTest tests[] = {
		T(test_features_for_reading), T(test_sizes),	      T(test_damaged_map),
		T(test_snapshot_of_odd_size), T(test_without_budget), T(test_opening_fails),
		T(test_creating_fails),
	};

	return cmocka_run_group_tests_name("inside-limg-open", tests, NULL, NULL);
}
