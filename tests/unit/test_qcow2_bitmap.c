/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps of qcow2 through the library: arguments, many bitmaps, several threads, a host that fails, damage. What
 * QEMU thinks of them is asked in tests/interop/qcow2_bitmaps.py, what a crash leaves of them in
 * tests/crash/crash_bitmaps.c.
 */
#include "fault_env.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "disk_int.h"

#define SIZE	   (4 * MIB)
#define NR_THREADS 4

static struct img *make(const char *options, uint64_t size)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "qcow2",
		.size_bytes = size,
		.options = options,
		.flags = IMG_CREATE_OVERWRITE,
	};

	assert_ok(img_create(in_dir("a"), &create, ERR));
	return open_image("a", "qcow2", IMG_OPEN_WRITE);
}

static struct img *again(struct img *img)
{
	close_image(img);
	return open_image("a", "qcow2", IMG_OPEN_WRITE);
}

static void assert_sound(struct img *img, bool leaks_too)
{
	struct img_check_result result;

	assert_ok(img_check(img, 0, NULL, NULL, NULL, &result, ERR));
	assert_int_equal(result.damage, 0);
	if (leaks_too)
		assert_int_equal(result.leaks, 0);
}

/* The only bitmap, or the one of a name. */
static struct img_bitmap get(struct img *img, const char *name)
{
	struct img_bitmap list[8], found = { .granularity_bytes = 0 };
	size_t nr = 0;

	assert_ok(img_bitmap_list(img, list, 8, &nr, ERR));
	for (size_t i = 0; i < nr && i < 8; i++) {
		if (strcmp(list[i].name, name) == 0)
			found = list[i];
	}
	return found;
}

static void assert_dirty(struct img *img, const char *name, uint64_t bytes)
{
	struct img_bitmap b = get(img, name);

	assert_int_equal(b.flags & (IMG_BITMAP_INCONSISTENT | IMG_BITMAP_UNSUPPORTED), 0);
	assert_int_equal(b.dirty_bytes, bytes);
}

static void test_arguments(void **state)
{
	char name[IMG_BITMAP_NAME_MAX + 2];
	struct img *img = make(NULL, SIZE);
	struct img_range r;
	size_t nr;

	(void)state;
	memset(name, 'n', sizeof(name));
	name[IMG_BITMAP_NAME_MAX + 1] = '\0';
	assert_int_equal(img_bitmap_add(img, name, 0, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(img, "", 0, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(img, NULL, 0, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(NULL, "b", 0, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(img, "b", 256, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(img, "b", 768, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(img, "b", UINT64_C(4) << 30, 0, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_add(img, "b", 0, 2, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_list(img, NULL, 1, &nr, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_ranges(img, "b", 0, &r, 0, &nr, ERR), IMG_E_INVALID);
	assert_int_equal(img_bitmap_ranges(img, "b", 0, &r, 1, &nr, ERR), IMG_E_NOENT);
	assert_int_equal(img_bitmap_clear(img, "b", ERR), IMG_E_NOENT);
	assert_int_equal(img_bitmap_remove(img, "b", ERR), IMG_E_NOENT);
	name[IMG_BITMAP_NAME_MAX] = '\0';
	assert_ok(img_bitmap_add(img, name, UINT64_C(2) << 30, 0, ERR));
	assert_int_equal(img_bitmap_add(img, name, 0, 0, ERR), IMG_E_EXISTS);
	write_pattern(img, 5, 1, 1);
	assert_dirty(img, name, SIZE);
	assert_ok(img_bitmap_ranges(img, name, 0, &r, 1, &nr, ERR));
	assert_int_equal(nr, 1);
	assert_int_equal(r.bytes, SIZE);
	assert_ok(img_bitmap_ranges(img, name, SIZE, &r, 1, &nr, ERR));
	assert_int_equal(nr, 0);
	assert_ok(img_bitmap_ranges(img, name, UINT64_MAX, &r, 1, &nr, ERR));
	assert_int_equal(nr, 0);
	close_image(img);
	img = open_image("a", "qcow2", 0);
	assert_dirty(img, name, SIZE);
	assert_int_equal(img_bitmap_clear(img, name, ERR), IMG_E_READONLY);
	close_image(img);
	img = make("cluster_size=512", 0);
	assert_int_equal(img_bitmap_add(img, "b", 0, 0, ERR), IMG_E_INVALID);
	assert_ok(img_resize(img, UINT64_C(1) << 32, 0, ERR));
	assert_ok(img_bitmap_add(img, "b", 512, 0, ERR));
	assert_int_equal(img_resize(img, 0, IMG_RESIZE_SHRINK, ERR), IMG_E_REFUSED);
	close_image(img);
}

/* What a disk grows by may be in the last backup, of a time when it was longer. */
static void test_growth(void **state)
{
	struct img *img = make("cluster_size=4096", SIZE);
	struct img_range r[2];
	size_t nr = 0;

	(void)state;
	assert_ok(img_bitmap_add(img, "on", 64 * KIB, 0, ERR));
	assert_ok(img_bitmap_add(img, "off", 64 * KIB, IMG_BITMAP_ADD_DISABLED, ERR));
	write_pattern(img, SIZE - 100, 100, 1);
	img = again(img);
	assert_ok(img_bitmap_clear(img, "on", ERR));
	assert_ok(img_resize(img, SIZE - 100 * KIB, IMG_RESIZE_SHRINK, ERR));
	assert_dirty(img, "on", 0);
	img = again(img);
	assert_ok(img_resize(img, SIZE, 0, ERR));
	assert_dirty(img, "on", 128 * KIB);
	assert_dirty(img, "off", 0);
	img = again(img);
	assert_dirty(img, "on", 128 * KIB);
	assert_dirty(img, "off", 0);
	assert_ok(img_bitmap_ranges(img, "on", 0, r, 2, &nr, ERR));
	assert_int_equal(nr, 1);
	assert_int_equal(r[0].off, SIZE - 128 * KIB);
	close_image(img);
}

/* The directory takes several clusters, and is written anew each time. */
static void test_many(void **state)
{
	struct img *img = make("cluster_size=512", SIZE);
	char name[64];
	size_t nr = 0;

	(void)state;
	for (unsigned i = 0; i < 100; i++) {
		snprintf(name, sizeof(name), "bitmap number %u of a hundred", i);
		assert_ok(img_bitmap_add(img, name, 0, i % 2 ? IMG_BITMAP_ADD_DISABLED : 0, ERR));
		if (i % 40 == 0)
			write_pattern(img, i * 4096, 100, i);
	}
	assert_sound(img, true);
	img = again(img);
	assert_ok(img_bitmap_list(img, NULL, 0, &nr, ERR));
	assert_int_equal(nr, 100);
	for (unsigned i = 0; i < 100; i++) {
		snprintf(name, sizeof(name), "bitmap number %u of a hundred", i);
		assert_ok(img_bitmap_remove(img, name, ERR));
	}
	assert_ok(img_bitmap_list(img, NULL, 0, &nr, ERR));
	assert_int_equal(nr, 0);
	assert_sound(img, true);
	close_image(img);
}

/* Ranges by ones, across the pieces of a bitmap; a merge into another size and granularity. */
static void test_ranges(void **state)
{
	struct img *img = make("cluster_size=512", 64 * MIB), *other;
	struct img_range r;
	uint64_t off = 0, count = 0;
	size_t nr = 1;

	(void)state;
	assert_ok(img_bitmap_add(img, "fine", 512, 0, ERR));
	for (uint64_t at = 0; at < 64 * MIB; at += 300 * KIB)
		assert_ok(img_zero(img, 512, at, 0, ERR));
	/* across the border of two clusters of the bitmap, 2 MiB of the disk each */
	assert_ok(img_zero(img, 4096, 2 * MIB - 2048, 0, ERR));
	for (unsigned turn = 0; turn < 2; turn++) {
		off = count = 0;
		for (nr = 1; nr == 1; count += nr) {
			assert_ok(img_bitmap_ranges(img, "fine", off, &r, 1, &nr, ERR));
			if (nr && r.off == 2 * MIB - 2048)
				assert_int_equal(r.bytes, 4096);
			off = r.off + r.bytes;
		}
		assert_int_equal(count, 219 + 1);
		img = again(img);
	}
	close_image(img);
	assert_int_equal(rename(in_dir("a"), in_dir("b")), 0);
	other = open_image("b", "qcow2", 0);
	img = make(NULL, 1 * MIB);
	assert_ok(img_bitmap_add(img, "coarse", 64 * KIB, 0, ERR));
	assert_ok(img_bitmap_merge(img, "coarse", other, "fine", ERR));
	assert_dirty(img, "coarse", 4 * 64 * KIB);
	write_pattern(img, 1000, 1, 1); /* from here on it is followed */
	assert_ok(img_bitmap_clear(img, "coarse", ERR));
	assert_dirty(img, "coarse", 0);
	assert_ok(img_bitmap_merge(img, "coarse", other, "fine", ERR));
	img = again(img);
	assert_dirty(img, "coarse", 4 * 64 * KIB);
	assert_int_equal(img_bitmap_merge(img, "coarse", img, "nothing", ERR), IMG_E_NOENT);
	assert_ok(img_bitmap_merge(img, "coarse", img, "coarse", ERR));
	assert_dirty(img, "coarse", 4 * 64 * KIB);
	assert_sound(img, true);
	close_image(img);
	close_image(other);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

struct worker {
	pthread_t thread;
	struct img *img;
	unsigned number;
};

static _Atomic bool stop;

static void *write_much(void *arg)
{
	struct worker *w = arg;
	uint8_t buf[512];

	memset(buf, (int)w->number + 1, sizeof(buf));
	for (uint64_t at = w->number * 512; at < SIZE; at += NR_THREADS * 512 * 3) {
		if (img_pwrite(w->img, buf, sizeof(buf), at, 0, NULL) != 0)
			return w;
	}
	return NULL;
}

static void *change_bitmaps(void *arg)
{
	struct worker *w = arg;
	struct img_bitmap list[8];
	size_t nr;

	while (!atomic_load(&stop)) {
		if (img_bitmap_add(w->img, "other", 4096, 0, NULL) != 0 ||
		    img_bitmap_merge(w->img, "other", NULL, "kept", NULL) != 0 ||
		    img_bitmap_list(w->img, list, 8, &nr, NULL) != 0 ||
		    img_bitmap_disable(w->img, "other", NULL) != 0 || img_bitmap_clear(w->img, "other", NULL) != 0 ||
		    img_flush(w->img, 0, NULL) != 0 || img_bitmap_remove(w->img, "other", NULL) != 0)
			return w;
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct img *img = make("cluster_size=512", SIZE);
	struct worker w[NR_THREADS + 1];
	uint64_t written = 0;
	void *failed;

	(void)state;
	assert_ok(img_bitmap_add(img, "kept", 512, 0, ERR));
	atomic_store(&stop, false);
	for (unsigned i = 0; i <= NR_THREADS; i++) {
		w[i] = (struct worker){ .img = img, .number = i };
		assert_int_equal(
			pthread_create(&w[i].thread, NULL, i < NR_THREADS ? write_much : change_bitmaps, &w[i]), 0);
	}
	for (unsigned i = 0; i <= NR_THREADS; i++) {
		if (i == NR_THREADS)
			atomic_store(&stop, true);
		pthread_join(w[i].thread, &failed);
		assert_null(failed);
	}
	for (unsigned i = 0; i < NR_THREADS; i++) {
		for (uint64_t at = i * 512; at < SIZE; at += NR_THREADS * 512 * 3)
			written += 512;
	}
	img = again(img);
	assert_dirty(img, "kept", written);
	assert_sound(img, true);
	close_image(img);
}

/* ---- a host that fails ------------------------------------------------------------------------------------------- */

static int do_add(struct img *img)
{
	return img_bitmap_add(img, "new", 512, 0, NULL);
}

static int do_remove(struct img *img)
{
	return img_bitmap_remove(img, "b", NULL);
}

static int do_clear(struct img *img)
{
	return img_bitmap_clear(img, "b", NULL);
}

static int do_merge(struct img *img)
{
	return img_bitmap_merge(img, "b", NULL, "c", NULL);
}

static int do_disable(struct img *img)
{
	return img_bitmap_disable(img, "b", NULL);
}

static int do_write(struct img *img)
{
	static const uint8_t buf[1000] = { 1 };

	return img_pwrite(img, buf, sizeof(buf), 3 * MIB, 0, NULL);
}

static int do_resize(struct img *img)
{
	return img_resize(img, SIZE + MIB, 0, NULL);
}

static int (*const changes[])(struct img *) = { do_add, do_remove, do_clear, do_merge, do_disable, do_write, do_resize };

/* What a failure left is sound, and a bitmap that counts as consistent is one of the two that it may be. */
static void judge_failure(int (*change)(struct img *))
{
	struct img *img = open_image("a", "qcow2", 0);
	struct img_bitmap b = get(img, "b"), c = get(img, "c");

	assert_sound(img, false);
	assert_int_not_equal(c.granularity_bytes, 0);
	if (change != do_remove)
		assert_int_not_equal(b.granularity_bytes, 0);
	if (b.granularity_bytes && !(b.flags & IMG_BITMAP_INCONSISTENT) && change != do_clear)
		assert_in_range(b.dirty_bytes, 64 * KIB, (change == do_resize ? MIB : 0) + 192 * KIB);
	if (!(c.flags & IMG_BITMAP_INCONSISTENT))
		assert_int_equal(c.dirty_bytes, 512);
	close_image(img);
}

static void test_failures(void **state)
{
	uint64_t tried = 0;

	(void)state;
	for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		bool failed = true;

		for (uint64_t n = 1; failed; n++) {
			struct img *img = make("cluster_size=4096", SIZE);
			int ret;

			assert_ok(img_bitmap_add(img, "b", 64 * KIB, 0, ERR));
			assert_ok(img_bitmap_add(img, "c", 512, IMG_BITMAP_ADD_DISABLED, ERR));
			write_pattern(img, 0, 100, 1);
			img = again(img);
			assert_ok(img_bitmap_enable(img, "c", ERR));
			assert_ok(img_bitmap_disable(img, "b", ERR));
			write_pattern(img, MIB, 100, 1);
			img = again(img);
			assert_ok(img_bitmap_disable(img, "c", ERR));
			assert_ok(img_bitmap_enable(img, "b", ERR));
			close_image(img);

			img = open_faulty("a", "qcow2", IMG_OPEN_WRITE);
			fault_plan_arm(&fault_env_plan, 1u << FAULT_READ | 1u << FAULT_WRITE | 1u << FAULT_FLUSH, n,
				       EIO, n % 2);
			ret = changes[i](img);
			if (img_close(img, NULL) != 0)
				ret = -1;
			failed = fault_env_plan.failed > 0;
			fault_plan_disarm(&fault_env_plan);
			if (!failed)
				assert_int_equal(ret, 0);
			judge_failure(changes[i]);
			tried++;
		}
	}
	print_message("%llu failures\n", (unsigned long long)tried);
}

/* ---- damage ------------------------------------------------------------------------------------------------------ */

static void poke(uint64_t off, const void *data, size_t bytes)
{
	int fd = open(in_dir("a"), O_RDWR);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, data, bytes, (off_t)off), bytes);
	close(fd);
}

/* Offset of the directory's first entry; the extension lies in the first sector. */
static uint64_t directory_off(void)
{
	uint8_t sector[512];
	int fd = open(in_dir("a"), O_RDONLY);
	struct be64 off;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, sector, sizeof(sector), 0), sizeof(sector));
	close(fd);
	for (size_t i = 104; i + 32 <= sizeof(sector); i += 8) {
		if (memcmp(sector + i, "\x23\x85\x28\x75\0\0\0\x18", 8) == 0) {
			memcpy(&off, sector + i + 24, sizeof(off));
			return be64_get(off);
		}
	}
	fail_msg("no bitmaps extension");
	return 0;
}

/* A field of the entry gets a value: the disk is as before, and the bitmap may be removed, by which nothing is lost. */
static void hurt(unsigned field, const void *data, size_t bytes, unsigned flags)
{
	struct img *img = make("cluster_size=4096", SIZE);
	struct img_bitmap list[4];
	struct img_error err;
	size_t nr = 0;

	assert_ok(img_bitmap_add(img, "bad one", 512, 0, ERR));
	write_pattern(img, MIB, 5000, 7);
	close_image(img);
	poke(directory_off() + field, data, bytes);
	img = open_image("a", "qcow2", IMG_OPEN_WRITE);
	write_pattern(img, 2 * MIB, 5000, 8);
	assert_ok(img_bitmap_list(img, list, 4, &nr, ERR));
	assert_int_equal(nr, 1);
	if (!(list[0].flags & flags))
		fail_msg("field %u: flags 0x%x", field, list[0].flags);
	assert_int_not_equal(img_bitmap_clear(img, list[0].name, &err), 0);
	assert_ok(img_bitmap_remove(img, list[0].name, ERR));
	img = again(img);
	assert_ok(img_bitmap_add(img, "good one", 0, 0, ERR));
	assert_sound(img, false);
	close_image(img);
}

static void test_damage(void **state)
{
	(void)state;
	hurt(0, "\0\0\0\0\0\0\x12\x34", 8, IMG_BITMAP_INCONSISTENT); /* table: no cluster */
	hurt(0, "\0\x7f\0\0\0\0\0\0", 8, IMG_BITMAP_INCONSISTENT);   /* beyond the end */
	hurt(0, "\0\0\0\0\0\0\0\0", 8, IMG_BITMAP_INCONSISTENT);
	hurt(8, "\0\0\0\2", 4, IMG_BITMAP_INCONSISTENT); /* too many entries */
	hurt(8, "\xff\xff\xff\xff", 4, IMG_BITMAP_INCONSISTENT);
	hurt(8, "\0\0\0\0", 4, IMG_BITMAP_INCONSISTENT);
	hurt(12, "\0\0\0\x12", 4, IMG_BITMAP_UNSUPPORTED); /* unknown flag */
	hurt(16, "\2", 1, IMG_BITMAP_UNSUPPORTED);	   /* another type */
	hurt(17, "\5", 1, IMG_BITMAP_INCONSISTENT);	   /* granularity */
	hurt(17, "\x3f", 1, IMG_BITMAP_INCONSISTENT);
	hurt(17, "\xff", 1, IMG_BITMAP_INCONSISTENT);
}

/* An entry of the table leads nowhere: only that bitmap is given up. */
static void test_damaged_table(void **state)
{
	struct img *img = make("cluster_size=4096", SIZE);
	uint8_t entry[8];
	struct be64 table;
	int fd;

	(void)state;
	assert_ok(img_bitmap_add(img, "bad one", 512, 0, ERR));
	assert_ok(img_bitmap_add(img, "good one", 512, 0, ERR));
	close_image(img);
	fd = open(in_dir("a"), O_RDONLY);
	assert_int_equal(pread(fd, entry, 8, (off_t)directory_off()), 8);
	close(fd);
	memcpy(&table, entry, sizeof(table));
	poke(be64_get(table), "\0\0\0\0\0\0\x12\x34", 8);
	img = open_image("a", "qcow2", IMG_OPEN_WRITE);
	write_pattern(img, MIB, 512, 8);
	img = again(img);
	assert_int_not_equal(get(img, "bad one").flags & IMG_BITMAP_INCONSISTENT, 0);
	assert_dirty(img, "good one", 512);
	assert_int_not_equal(img_bitmap_merge(img, "good one", NULL, "bad one", ERR), 0);
	assert_ok(img_bitmap_remove(img, "bad one", ERR));
	assert_sound(img, false);
	close_image(img);
}

/* The directory itself cannot be read: so says the list, and who writes goes on without bitmaps. */
static void test_damaged_directory(void **state)
{
	struct img *img = make("cluster_size=4096", SIZE);
	size_t nr = 0;

	(void)state;
	assert_ok(img_bitmap_add(img, "b", 512, 0, ERR));
	close_image(img);
	poke(directory_off() + 20, "\xff\xff\xff\0", 4); /* extra data */
	img = open_image("a", "qcow2", IMG_OPEN_WRITE);
	assert_int_equal(img_bitmap_list(img, NULL, 0, &nr, ERR), IMG_E_CORRUPT);
	write_pattern(img, MIB, 5000, 7);
	assert_ok(img_bitmap_list(img, NULL, 0, &nr, ERR));
	assert_int_equal(nr, 0);
	img = again(img);
	assert_sound(img, false);
	close_image(img);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_arguments, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_growth, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_many, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_ranges, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_threads, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_failures, fault_env_setup, fault_env_teardown),
		cmocka_unit_test_setup_teardown(test_damage, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_damaged_table, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_damaged_directory, fixture_setup, fixture_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
