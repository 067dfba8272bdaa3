/* SPDX-License-Identifier: MIT */
/* Images through the public API: opening, creating, properties, vectors, freezing; concurrency on one handle. */
#include <fcntl.h>
#include <pthread.h>

#include "image.h"
#include "image_fixture.h"

static struct img_open_options writable = { .struct_size = sizeof(writable), .format = "raw", .flags = IMG_OPEN_WRITE };

/* ---- creating ---------------------------------------------------------------------------------------------------- */

static void test_create_does_not_clobber(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_bytes = MIB };
	struct stat sb;

	(void)state;
	assert_ok(img_create(in_dir("a"), &create, ERR));
	create.size_bytes = 2 * MIB;
	assert_int_equal(img_create(in_dir("a"), &create, ERR), IMG_E_EXISTS);
	assert_int_equal(stat(in_dir("a"), &sb), 0);
	assert_int_equal(sb.st_size, MIB);
	create.flags = IMG_CREATE_OVERWRITE;
	assert_int_equal(chmod(in_dir("a"), 0600), 0);
	assert_ok(img_create(in_dir("a"), &create, ERR));
	assert_int_equal(stat(in_dir("a"), &sb), 0);
	assert_int_equal(sb.st_size, 2 * MIB);
	assert_int_equal(sb.st_mode & 0777, 0600);
	assert_int_equal(fixture_files(true), 1);
}

static void test_overwrite_follows_links_and_spares_the_rest(void **state)
{
	struct img_create_options create = {
		.struct_size = sizeof(create),
		.format = "raw",
		.size_bytes = MIB,
		.flags = IMG_CREATE_OVERWRITE,
	};
	struct stat sb;

	(void)state;
	assert_ok(img_create(in_dir("a"), &create, ERR));
	assert_int_equal(symlink("a", in_dir("link")), 0);
	create.size_bytes = 2 * MIB;
	assert_ok(img_create(in_dir("link"), &create, ERR));
	assert_int_equal(lstat(in_dir("link"), &sb), 0);
	assert_true(S_ISLNK(sb.st_mode));
	assert_int_equal(stat(in_dir("a"), &sb), 0);
	assert_int_equal(sb.st_size, 2 * MIB);
	assert_int_equal(symlink("nowhere", in_dir("dangling")), 0);
	assert_int_not_equal(img_create(in_dir("dangling"), &create, NULL), 0);
	assert_int_equal(img_create(fixture_dir, &create, NULL), IMG_E_INVALID);
	assert_int_equal(img_create("/dev/null", &create, NULL), IMG_E_INVALID);
	assert_int_equal(fixture_files(true), 3);
}

static void test_create_leaves_nothing_after_failure(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create),
					     .format = "raw",
					     .size_bytes = UINT64_C(1) << 62 };

	(void)state;
	/* More than any file system of ours holds in one file. */
	assert_int_not_equal(img_create(in_dir("huge"), &create, ERR), 0);
	assert_int_equal(fixture_files(true), 0);
	assert_int_equal(img_create(in_dir("none/a"), &create, ERR), IMG_E_NOENT);
}

static void test_create_long_names(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_bytes = 512 };
	char name[256];

	(void)state;
	memset(name, 'n', 255);
	name[255] = '\0';
	assert_ok(img_create(in_dir(name), &create, ERR));
	assert_int_equal(fixture_files(true), 1);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static void test_read_only_at_the_descriptor(void **state)
{
	struct img *img;
	char link[64], target[512];
	bool found = false;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	img = open_image("a", NULL, 0);
	for (int fd = 0; fd < 64; fd++) {
		ssize_t len;

		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		len = readlink(link, target, sizeof(target) - 1);
		if (len < 0)
			continue;
		target[len] = '\0';
		if (strstr(target, fixture_dir) == NULL)
			continue;
		found = true;
		assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
		assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	}
	assert_true(found);
	assert_int_equal(img_caps(img) & IMG_CAP_WRITE, 0);
	assert_int_equal(img_pwrite(img, "x", 1, 0, 0, NULL), IMG_E_READONLY);
	close_image(img);
	fixture_files(true);
}

static void test_locks(void **state)
{
	struct img_open_options peek = { .struct_size = sizeof(peek), .format = "raw", .flags = IMG_OPEN_FORCE_SHARE };
	struct img *a, *b, *c;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	a = open_image("a", "raw", IMG_OPEN_WRITE);
	assert_int_equal(img_open(in_dir("a"), &writable, &b, ERR), IMG_E_BUSY);
	assert_int_equal(img_open(in_dir("a"), NULL, &b, ERR), IMG_E_BUSY);
	assert_ok(img_open(in_dir("a"), &peek, &b, ERR));
	close_image(b);
	close_image(a);
	/* Readers share. */
	a = open_image("a", NULL, 0);
	b = open_image("a", NULL, 0);
	assert_int_equal(img_open(in_dir("a"), &writable, &c, ERR), IMG_E_BUSY);
	close_image(a);
	close_image(b);
	/* A peek keeps nobody out. */
	assert_ok(img_open(in_dir("a"), &peek, &b, ERR));
	a = open_image("a", "raw", IMG_OPEN_WRITE);
	close_image(a);
	close_image(b);
	fixture_files(true);
}

/* What a peek learned of a file is not believed once it is locked, nor while it is not. */
static void test_size_after_a_peek(void **state)
{
	struct img_open_options peek = { .struct_size = sizeof(peek), .format = "raw", .flags = IMG_OPEN_FORCE_SHARE };
	struct img *img;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	assert_ok(img_open(in_dir("a"), &peek, &img, ERR));
	assert_int_equal(truncate(in_dir("a"), 2 * MIB), 0);
	assert_int_equal(img_size(img), 2 * MIB);
	assert_int_equal(truncate(in_dir("a"), 3 * MIB), 0);
	assert_ok(node_share(img->top, SHARE_READER_USE, SHARE_READER_FORBID, ERR));
	assert_int_equal(img_size(img), 3 * MIB);
	/* From here on nobody who keeps to the rules changes it, and nobody asks the host for each request. */
	assert_int_equal(truncate(in_dir("a"), 4 * MIB), 0);
	assert_int_equal(img_size(img), 3 * MIB);
	close_image(img);
	fixture_files(true);
}

static void test_open_descriptor(void **state)
{
	struct img_open_options open_opts = { .struct_size = sizeof(open_opts),
					      .format = "raw",
					      .flags = IMG_OPEN_WRITE };
	struct img *img;
	char buf[4];
	int fd;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	fd = open(in_dir("a"), O_RDWR | O_CLOEXEC);
	assert_ok(img_open_fd(fd, &open_opts, &img, ERR));
	assert_string_equal(img_path(img), "");
	assert_ok(img_pwrite(img, "abc", 4, 100, 0, ERR));
	assert_ok(img_pread(img, buf, 4, 100, 0, ERR));
	assert_string_equal(buf, "abc");
	close_image(img);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	/* The descriptor is taken over after failure, too. */
	fd = open(in_dir("a"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(img_open_fd(fd, &open_opts, &img, ERR), IMG_E_INVALID);
	assert_null(img);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	open_opts.flags = 1u << 30;
	fd = open(in_dir("a"), O_RDONLY | O_CLOEXEC);
	assert_int_equal(img_open_fd(fd, &open_opts, &img, ERR), IMG_E_INVALID);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	fixture_files(true);
}

static void test_virtual_size_limit(void **state)
{
	struct img_open_options limit = { .struct_size = sizeof(limit), .max_virtual_bytes = MIB - 1 };
	struct img *img;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	assert_int_equal(img_open(in_dir("a"), &limit, &img, ERR), IMG_E_LIMIT);
	limit.max_virtual_bytes = MIB;
	assert_ok(img_open(in_dir("a"), &limit, &img, ERR));
	close_image(img);
	fixture_files(true);
}

static void test_options_of_other_versions(void **state)
{
	struct {
		struct img_open_options o;
		uint64_t future;
	} newer = { .o = { .struct_size = sizeof(newer), .format = "raw" } };
	struct img *img;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	assert_ok(img_open(in_dir("a"), &newer.o, &img, ERR));
	close_image(img);
	newer.future = 1;
	assert_int_equal(img_open(in_dir("a"), &newer.o, &img, ERR), IMG_E_UNSUPPORTED);
	/* An older caller knew only the format. */
	newer.o.struct_size = offsetof(struct img_open_options, snapshot);
	newer.o.snapshot = "not looked at";
	assert_ok(img_open(in_dir("a"), &newer.o, &img, ERR));
	close_image(img);
	fixture_files(true);
}

static void test_properties(void **state)
{
	struct img_limits limits;
	struct img *img;

	(void)state;
	make_image("a", "raw", MIB, NULL, NULL);
	img = open_image("a", "raw", IMG_OPEN_WRITE);
	assert_int_equal(img_size(img), MIB);
	assert_string_equal(img_format(img), "raw");
	assert_string_equal(img_path(img), in_dir("a"));
	assert_int_equal(img_chain_depth(img), 1);
	assert_null(img_backing(img));
	assert_true(img_caps(img) & IMG_CAP_WRITE);
	assert_true(img_caps(img) & IMG_CAP_RESIZE);
	assert_false(img_caps(img) & IMG_CAP_SNAPSHOTS);
	img_limits(img, &limits);
	assert_int_equal(limits.block_bytes, 1);
	assert_true(limits.optimal_bytes >= 512);
	close_image(img);
	fixture_files(true);
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

static void test_vectors(void **state)
{
	enum { SIZE = 3 << 20, PIECES = 50 };
	uint8_t *flat = calloc(1, SIZE), *buf = malloc(SIZE);
	struct img *img;

	(void)state;
	assert_non_null(flat);
	assert_non_null(buf);
	make_image("v", "raw", SIZE, NULL, NULL);
	img = open_image("v", "raw", IMG_OPEN_WRITE);
	for (int run = 0; run < 100; run++) {
		struct iovec iov[PIECES];
		uint64_t off = random_below(SIZE / 2), total = 0;
		int nr = (int)random_below(PIECES) + 1;

		for (int i = 0; i < nr; i++) {
			iov[i].iov_base = buf + total;
			/* Empty pieces are legal. */
			iov[i].iov_len = random_below(8) ? (size_t)random_below(30000) : 0;
			total += iov[i].iov_len;
		}
		if (off + total > SIZE)
			continue;
		if (run % 2) {
			pattern(buf, total, (uint64_t)run);
			memcpy(flat + off, buf, total);
			assert_ok(img_pwritev(img, iov, nr, total, off, run % 3 ? 0 : IMG_IO_FUA, ERR));
		} else {
			memset(buf, 0x5a, total);
			assert_ok(img_preadv(img, iov, nr, total, off, 0, ERR));
			assert_memory_equal(buf, flat + off, total);
		}
	}
	assert_content(img, flat, SIZE);
	/* Beyond the end: refused as a whole. */
	memset(buf, 1, SIZE);
	assert_int_equal(img_pwritev(img, (struct iovec[]){ { buf, 512 }, { buf, 512 } }, 2, 1024, SIZE - 512, 0, NULL),
			 IMG_E_INVALID);
	assert_content(img, flat, SIZE);
	/* Pieces are gathered and cut at whole MiB, so that blocks and compression units stay whole. */
	{
		uint64_t before = img->top->counters.writes;

		assert_ok(img_pwritev(img, (struct iovec[]){ { buf, 1000 }, { buf + 1000, 2 * MIB - 1000 } }, 2,
				      2 * MIB, MIB / 2, 0, ERR));
		assert_int_equal(img->top->counters.writes - before, 3);
	}
	assert_ok(img_pwritev(img, NULL, 0, 0, 0, 0, ERR));
	assert_ok(img_preadv(img, NULL, 0, 0, SIZE, 0, ERR));
	close_image(img);
	free(flat);
	free(buf);
	fixture_files(true);
}

/* ---- freezing ---------------------------------------------------------------------------------------------------- */

struct frozen {
	struct img *img;
	_Atomic bool written;
};

static void *write_when_possible(void *arg)
{
	struct frozen *f = arg;

	assert_int_equal(img_pwrite(f->img, "late", 4, 0, 0, NULL), 0);
	atomic_store(&f->written, true);
	return NULL;
}

static void test_freeze_keeps_io_out(void **state)
{
	struct frozen f = { 0 };
	struct img *alias;
	pthread_t thread;
	char buf[4];

	(void)state;
	make_image("f", "raw", MIB, NULL, NULL);
	f.img = open_image("f", "raw", IMG_OPEN_WRITE);
	assert_ok(image_freeze(f.img, &alias, ERR));
	assert_int_equal(pthread_create(&thread, NULL, write_when_possible, &f), 0);
	assert_ok(img_pwrite(alias, "hers", 4, 0, 0, ERR));
	usleep(50000);
	assert_false(atomic_load(&f.written));
	assert_ok(img_pread(alias, buf, 4, 0, 0, ERR));
	assert_memory_equal(buf, "hers", 4);
	image_thaw(f.img, alias);
	pthread_join(thread, NULL);
	assert_ok(img_pread(f.img, buf, 4, 0, 0, ERR));
	assert_memory_equal(buf, "late", 4);
	close_image(f.img);
	fixture_files(true);
}

/* ---- several threads --------------------------------------------------------------------------------------------- */

enum { NR_THREADS = 4, OWN_BYTES = 256 << 10 };

struct worker {
	struct img *img;
	unsigned number;
	const char *failure;
};

/* Each thread has its own part of the disk; resizing and flushing happen beside. */
static void *work(void *arg)
{
	struct worker *w = arg;
	uint8_t buf[4096], back[4096];
	uint64_t base = (uint64_t)w->number * OWN_BYTES;

	for (unsigned i = 0; i < 300 && !w->failure; i++) {
		uint64_t off = base + (i * 7919u) % (OWN_BYTES - sizeof(buf));
		struct img_extent e[4];
		size_t nr;

		memset(buf, (int)(i + w->number), sizeof(buf));
		if (img_pwrite(w->img, buf, sizeof(buf), off, 0, NULL) != 0 ||
		    img_pread(w->img, back, sizeof(back), off, 0, NULL) != 0 || memcmp(buf, back, sizeof(buf)) != 0)
			w->failure = "what was written is not read";
		if (img_extents(w->img, sizeof(buf), off, 0, e, 4, &nr, NULL) != 0 || nr < 1)
			w->failure = "extents";
		if (w->number == 0 && i % 10 == 0 &&
		    img_resize(w->img, (uint64_t)NR_THREADS * OWN_BYTES + i % 20 * 512, IMG_RESIZE_SHRINK, NULL) != 0)
			w->failure = "resize";
		if (i % 50 == 0 && img_flush(w->img, 0, NULL) != 0)
			w->failure = "flush";
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct worker workers[NR_THREADS];
	pthread_t threads[NR_THREADS];
	struct img *img;

	(void)state;
	make_image("t", "raw", (uint64_t)NR_THREADS * OWN_BYTES, NULL, NULL);
	img = open_image("t", "raw", IMG_OPEN_WRITE);
	for (unsigned i = 0; i < NR_THREADS; i++) {
		workers[i] = (struct worker){ .img = img, .number = i };
		assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
	}
	for (unsigned i = 0; i < NR_THREADS; i++) {
		pthread_join(threads[i], NULL);
		if (workers[i].failure)
			fail_msg("thread %u: %s", i, workers[i].failure);
	}
	close_image(img);
	fixture_files(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_create_does_not_clobber),
		cmocka_unit_test(test_overwrite_follows_links_and_spares_the_rest),
		cmocka_unit_test(test_create_leaves_nothing_after_failure),
		cmocka_unit_test(test_create_long_names),
		cmocka_unit_test(test_read_only_at_the_descriptor),
		cmocka_unit_test(test_locks),
		cmocka_unit_test(test_size_after_a_peek),
		cmocka_unit_test(test_open_descriptor),
		cmocka_unit_test(test_virtual_size_limit),
		cmocka_unit_test(test_options_of_other_versions),
		cmocka_unit_test(test_properties),
		cmocka_unit_test(test_vectors),
		cmocka_unit_test(test_freeze_keeps_io_out),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests_name("image", tests, fixture_setup, fixture_teardown);
}
