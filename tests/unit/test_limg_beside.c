/* SPDX-License-Identifier: MIT */
/*
 * A snapshot is opened for reading at the very moment at which a writer changes the image. The reader's file is behind
 * a filter that lets the writer do its work just before a chosen read; every read of an opening has its turn. Whatever
 * moved under it, the reader finds the snapshot.
 */
#include "image_fixture.h"

#include "image.h"

#define SIZE (96 * MIB)
#define KEPT (300 * KIB)

static uint64_t reads_until, nr_reads;
static void (*writer_acts)(void);

struct watch_state {
	char none;
};

static int watch_open(struct node *node, const struct driver_open *args, struct img_error *err)
{
	(void)err;
	node->writable = args->writable;
	return 0;
}

static int watch_close(struct node *node, struct img_error *err)
{
	(void)node;
	(void)err;
	return 0;
}

static uint64_t watch_size(const struct node *node)
{
	return node_size(node->file);
}

static int watch_pread(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
		       struct img_error *err)
{
	if (nr_reads++ == reads_until)
		writer_acts();
	return node_pread(node->file, buf, bytes, off, flags, err);
}

static int watch_stat(struct node *node, struct host_stat *out, struct img_error *err)
{
	return node_stat(node->file, out, err);
}

static int watch_lock_byte(struct node *node, uint64_t byte, enum byte_lock mode, struct img_error *err)
{
	return node_lock_byte(node->file, byte, mode, err);
}

static int watch_share(struct node *node, unsigned use, unsigned forbid, struct img_error *err)
{
	return node_share(node->file, use, forbid, err);
}

static const struct img_driver watch_driver = {
	.name = "watch",
	.kind = DRIVER_FILTER,
	.state_bytes = sizeof(struct watch_state),
	.open = watch_open,
	.close = watch_close,
	.size = watch_size,
	.pread = watch_pread,
	.stat = watch_stat,
	.lock_byte = watch_lock_byte,
	.share = watch_share,
};

static int watch_open_file(void *ctx, const char *child_path, const char *name, enum img_refs refs,
			   const struct host_open *args, struct node **out, char **resolved, struct img_error *err)
{
	struct driver_open open = { .writable = args->writable };
	struct node *file, *node;

	if (image_env_host.open_file(ctx, child_path, name, refs, args, &file, resolved, err) != 0)
		return err->code;
	node = node_new(&watch_driver, file->path, err);
	assert_non_null(node);
	node->file = file;
	assert_ok(node_open(node, &open, err));
	*out = node;
	return 0;
}

/* ---- what the writer does ---------------------------------------------------------------------------------------- */

static struct img *writer;

/* What the file grew by goes, and the catalog, which was behind it, moves to its front. */
static void shrinks(void)
{
	assert_ok(img_snapshot_delete(writer, "big", ERR));
	assert_ok(img_discard(writer, SIZE, 0, 0, ERR));
	assert_ok(img_snapshot_create(writer, "big", 0, ERR));
	for (unsigned i = 0; i < 3; i++) {
		close_image(writer);
		writer = open_image("d", NULL, IMG_OPEN_WRITE);
		assert_ok(img_snapshot_rename(writer, i % 2 ? "other" : "big", i % 2 ? "big" : "other", ERR));
	}
	assert_ok(img_snapshot_delete(writer, "other", ERR));
	close_image(writer);
	writer = NULL;
}

static void renames_others(void)
{
	assert_ok(img_snapshot_rename(writer, "big", "large", ERR));
}

/* Checkpoints go to other places each; the first ones are free again by then. */
static void goes_on(void)
{
	for (unsigned i = 0; i < 6; i++) {
		write_pattern(writer, i * MIB, 64 * KIB, 7 + i);
		assert_ok(img_snapshot_create(writer, i % 2 ? "a" : "b", 0, ERR));
		if (i % 2) {
			assert_ok(img_snapshot_delete(writer, "a", ERR));
			assert_ok(img_snapshot_delete(writer, "b", ERR));
		}
	}
}

/* ---- each read of an opening ------------------------------------------------------------------------------------- */

static void make_and_hold(void)
{
	make_image("d", "limg", SIZE, NULL, NULL);
	writer = open_image("d", NULL, IMG_OPEN_WRITE);
	write_pattern(writer, 0, KEPT, 1);
	assert_ok(img_snapshot_create(writer, "keep", 0, ERR));
	write_pattern(writer, MIB, 3 * MIB, 2);
	/* Many leaves, so that the catalog, which is written after them, comes to lie behind the data. */
	for (uint64_t off = 0; off < SIZE; off += MIB)
		write_pattern(writer, off, 4 * KIB, 3);
	assert_ok(img_snapshot_create(writer, "big", 0, ERR));
	write_pattern(writer, 0, KIB, 4);
}

/* False when the opening was over before its time came. */
static bool open_while(void (*acts)(void), uint64_t nth, const uint8_t *kept)
{
	struct image_env env = image_env_host;
	struct img_open_options opts = { .struct_size = sizeof(opts), .snapshot = "keep" };
	struct img *img = NULL;
	uint8_t *found = malloc(KEPT);
	bool acted;
	int ret;

	assert_non_null(found);
	env.open_file = watch_open_file;
	make_and_hold();
	writer_acts = acts;
	nr_reads = 0;
	reads_until = nth;
	ret = image_open_env(in_dir("d"), &opts, &env, &img, ERR);
	if (ret != 0)
		fail_msg("changed before read %u: %d: %s", (unsigned)nth, ret, ERR->msg);
	acted = nr_reads > nth;
	reads_until = UINT64_MAX;
	assert_ok(img_pread(img, found, KEPT, 0, 0, ERR));
	assert_memory_equal(found, kept, KEPT);
	free(found);
	close_image(img);
	if (writer)
		close_image(writer);
	writer = NULL;
	fixture_files(true);
	return acted;
}

static void each_read(void (*acts)(void))
{
	uint8_t *kept = malloc(KEPT);
	uint64_t nth = 0;

	assert_non_null(kept);
	pattern(kept, KEPT, 1);
	while (open_while(acts, nth, kept))
		nth++;
	/* Superblocks, catalog, superblocks again. */
	assert_true(nth > 9);
	free(kept);
}

static void the_file_shrinks(void **state)
{
	(void)state;
	each_read(shrinks);
}

static void another_snapshot_is_renamed(void **state)
{
	(void)state;
	each_read(renames_others);
}

static void many_checkpoints(void **state)
{
	(void)state;
	each_read(goes_on);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(the_file_shrinks),
		TEST(another_snapshot_is_renamed),
		TEST(many_checkpoints),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
