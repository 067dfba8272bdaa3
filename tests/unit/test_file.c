/* SPDX-License-Identifier: MIT */
/* The file protocol on a real file: transfers, growth, space, extents, flush, and the descriptors that it refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "node.h"

extern const struct img_driver file_driver;

struct fixture {
	char path[64];
	struct node *node;
};

static struct node *open_node(const char *path, int flags, bool writable, bool direct)
{
	struct host_open args = { .writable = writable, .direct = direct };
	struct img_error err = { 0 };
	struct node *node = node_new(&file_driver, path, &err);
	int fd = open(path, flags | O_CLOEXEC, 0600);

	assert_non_null(node);
	assert_true(fd >= 0);
	if (node_open_fd(node, fd, &args, &err) != 0)
		fail_msg("%s", err.msg);
	return node;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int fd;

	assert_non_null(f);
	strcpy(f->path, "test-file-XXXXXX");
	fd = mkstemp(f->path);
	assert_true(fd >= 0);
	close(fd);
	f->node = open_node(f->path, O_RDWR, true, false);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int ret = f->node != NULL ? node_close(f->node, NULL) : 0;

	unlink(f->path);
	free(f);
	return ret;
}

/* The host's calls, so that a test can act in the middle of a write and count syncs. */
static struct node *flush_before_write;
static _Atomic unsigned nr_syncs;

ssize_t pwrite(int fd, const void *buf, size_t nbytes, off_t offset)
{
	ssize_t (*next)(int, const void *, size_t, off_t);
	struct node *node = flush_before_write;
	void *symbol = dlsym(RTLD_NEXT, "pwrite64");

	memcpy(&next, &symbol, sizeof(next));
	flush_before_write = NULL;
	if (node)
		assert_int_equal(node_flush(node, 0, NULL), 0);
	return next(fd, buf, nbytes, offset);
}

int fdatasync(int fildes)
{
	nr_syncs++;
	return fsync(fildes);
}

static void fill(uint8_t *buf, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		buf[i] = (uint8_t)((i * 31 + seed) ^ (i >> 8));
}

static void test_write_grows_and_reads_back(void **state)
{
	struct fixture *f = *state;
	uint8_t out[10000], in[10000];

	fill(out, sizeof(out), 1);
	assert_int_equal(node_size(f->node), 0);
	assert_int_equal(node_pwrite(f->node, out, sizeof(out), 777, 0, NULL), 0);
	assert_int_equal(node_size(f->node), 777 + sizeof(out));
	assert_int_equal(node_pread(f->node, in, sizeof(in), 777, 0, NULL), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_int_equal(node_pread(f->node, in, 777, 0, 0, NULL), 0);
	for (int i = 0; i < 777; i++)
		assert_int_equal(in[i], 0);
}

static void test_read_past_the_end_fails(void **state)
{
	struct fixture *f = *state;
	struct img_error err = { 0 };
	uint8_t buf[512];

	assert_int_equal(node_resize(f->node, 1000, NULL), 0);
	assert_int_equal(node_pread(f->node, buf, 512, 600, 0, &err), IMG_E_IO);
	/* Cut by somebody else: the node learns it from the short read. */
	assert_int_equal(truncate(f->path, 100), 0);
	error_clear(&err);
	assert_int_equal(node_pread(f->node, buf, 512, 0, 0, &err), IMG_E_IO);
	assert_non_null(strstr(err.msg, f->path));
}

static uint64_t allocated(struct node *node)
{
	struct host_stat sb;

	assert_int_equal(node_stat(node, &sb, NULL), 0);
	return sb.allocated_bytes;
}

static void test_zero_unmaps_or_keeps(void **state)
{
	struct fixture *f = *state;
	static uint8_t buf[1 << 20], zeros[1 << 20];
	uint64_t full;

	fill(buf, sizeof(buf), 2);
	assert_int_equal(node_pwrite(f->node, buf, sizeof(buf), 0, 0, NULL), 0);
	assert_int_equal(node_flush(f->node, 0, NULL), 0);
	full = allocated(f->node);
	assert_int_equal(node_zero(f->node, 256 << 10, 0, IMG_IO_NO_UNMAP, NULL), 0);
	assert_int_equal(node_flush(f->node, 0, NULL), 0);
	assert_int_equal(allocated(f->node), full);
	assert_int_equal(node_zero(f->node, 256 << 10, 256 << 10, 0, NULL), 0);
	assert_true(allocated(f->node) <= full - (256 << 10));
	/* Odd bytes at both ends. */
	assert_int_equal(node_zero(f->node, 1001, (512 << 10) + 13, 0, NULL), 0);
	memset(buf, 0, 512 << 10);
	memset(buf + (512 << 10) + 13, 0, 1001);
	assert_int_equal(node_pread(f->node, zeros, sizeof(zeros), 0, 0, NULL), 0);
	assert_memory_equal(zeros, buf, sizeof(buf));
}

static void test_zero_beyond_the_end_grows(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[4096];

	memset(buf, 7, sizeof(buf));
	assert_int_equal(node_pwrite(f->node, buf, sizeof(buf), 0, 0, NULL), 0);
	assert_int_equal(node_zero(f->node, 1 << 20, 2048, 0, NULL), 0);
	assert_int_equal(node_size(f->node), 2048 + (1 << 20));
	assert_int_equal(node_pread(f->node, buf, sizeof(buf), 0, 0, NULL), 0);
	assert_int_equal(buf[2047], 7);
	assert_int_equal(buf[2048], 0);
}

static void test_discard_gives_space_back(void **state)
{
	struct fixture *f = *state;
	static uint8_t buf[1 << 20];
	uint64_t full;

	fill(buf, sizeof(buf), 3);
	assert_int_equal(node_pwrite(f->node, buf, sizeof(buf), 0, 0, NULL), 0);
	assert_int_equal(node_flush(f->node, 0, NULL), 0);
	full = allocated(f->node);
	assert_int_equal(node_discard(f->node, 512 << 10, 0, 0, NULL), 0);
	assert_true(allocated(f->node) <= full - (512 << 10));
	assert_int_equal(node_size(f->node), sizeof(buf));
}

static void test_allocate_keeps_content_and_grows(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[4096], in[4096];

	fill(buf, sizeof(buf), 4);
	assert_int_equal(node_pwrite(f->node, buf, sizeof(buf), 0, 0, NULL), 0);
	assert_int_equal(node_allocate(f->node, 1 << 20, 0, NULL), 0);
	assert_int_equal(node_size(f->node), 1 << 20);
	assert_int_equal(node_pread(f->node, in, sizeof(in), 0, 0, NULL), 0);
	assert_memory_equal(in, buf, sizeof(buf));
	assert_true(allocated(f->node) >= 1 << 20);
	assert_int_equal(node_pread(f->node, in, sizeof(in), 512 << 10, 0, NULL), 0);
	for (size_t i = 0; i < sizeof(in); i++)
		assert_int_equal(in[i], 0);
}

static void test_status_of_sparse_file(void **state)
{
	struct fixture *f = *state;
	struct status_extent e[8];
	uint8_t buf[65536];
	size_t nr;

	memset(buf, 1, sizeof(buf));
	assert_int_equal(node_resize(f->node, 4 << 20, NULL), 0);
	assert_int_equal(node_pwrite(f->node, buf, sizeof(buf), 1 << 20, 0, NULL), 0);
	assert_int_equal(node_flush(f->node, 0, NULL), 0);
	assert_int_equal(node_status(f->node, 4 << 20, 0, e, 8, &nr, NULL), 0);
	assert_int_equal(nr, 3);
	assert_int_equal(e[0].kind, STATUS_ZERO);
	assert_int_equal(e[0].bytes, 1 << 20);
	assert_int_equal(e[1].kind, STATUS_DATA);
	assert_int_equal(e[1].bytes, sizeof(buf));
	assert_int_equal(e[1].host_off, 1 << 20);
	assert_int_equal(e[2].kind, STATUS_ZERO);
	/* Clipped, and room for one only. */
	assert_int_equal(node_status(f->node, 1 << 20, (1 << 20) + 5, e, 1, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(e[0].off, (1 << 20) + 5);
	assert_int_equal(e[0].bytes, sizeof(buf) - 5);
}

static void test_resize(void **state)
{
	struct fixture *f = *state;
	struct stat sb;

	assert_int_equal(node_resize(f->node, 12345, NULL), 0);
	assert_int_equal(stat(f->path, &sb), 0);
	assert_int_equal(sb.st_size, 12345);
	assert_int_equal(node_resize(f->node, 99, NULL), 0);
	assert_int_equal(node_size(f->node), 99);
}

static void test_read_only_descriptor(void **state)
{
	struct fixture *f = *state;
	struct img_error err = { 0 };
	struct node *node = open_node(f->path, O_RDONLY, false, false);
	uint8_t b = 1;

	assert_int_equal(node_pwrite(node, &b, 1, 0, 0, &err), IMG_E_READONLY);
	node_close(node, NULL);
}

static void refuse(const char *path, int flags, bool writable, int code)
{
	struct host_open args = { .writable = writable };
	struct img_error err = { 0 };
	struct node *node = node_new(&file_driver, path, &err);
	int fd = open(path, flags | O_CLOEXEC);
	int ret;

	assert_true(fd >= 0);
	ret = node_open_fd(node, fd, &args, &err);
	assert_int_equal(ret, code);
	assert_int_equal(err.code, code);
	assert_string_not_equal(err.msg, "");
	/* Taken over also on failure. */
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	node_close(node, NULL);
}

static void test_refused_descriptors(void **state)
{
	struct fixture *f = *state;

	refuse(f->path, O_RDONLY, true, IMG_E_INVALID);
	refuse(f->path, O_WRONLY, false, IMG_E_INVALID);
	refuse(f->path, O_RDWR | O_APPEND, true, IMG_E_INVALID);
	refuse("/dev/null", O_RDWR, true, IMG_E_REFUSED);
	refuse(".", O_RDONLY, false, IMG_E_REFUSED);
}

static void test_direct_takes_any_alignment(void **state)
{
	struct fixture *f = *state;
	struct node *node = open_node(f->path, O_RDWR, true, true);
	static uint8_t model[256 << 10], in[256 << 10];
	uint8_t *buf = aligned_alloc(4096, 64 << 10);
	uint32_t rng = 12345;

	assert_non_null(buf);
	assert_int_equal(node_pwrite(node, model, sizeof(model), 0, 0, NULL), 0);
	for (int i = 0; i < 300; i++) {
		uint32_t off, n;

		rng = rng * 1664525 + 1013904223;
		off = (rng >> 8) % sizeof(model);
		rng = rng * 1664525 + 1013904223;
		n = (rng >> 8) % (32 << 10) + 1;
		if (i % 3 == 0) {
			off &= ~4095u;
			n = (n + 4095) & ~4095u;
		}
		if (off + n > sizeof(model))
			continue;
		fill(buf, n, (unsigned)i);
		memcpy(model + off, buf, n);
		assert_int_equal(node_pwrite(node, buf, n, off, 0, NULL), 0);
	}
	assert_int_equal(node_pread(node, in, sizeof(in), 0, 0, NULL), 0);
	assert_memory_equal(in, model, sizeof(in));
	assert_int_equal(node_pread(node, in, 1001, 77, 0, NULL), 0);
	assert_memory_equal(in, model + 77, 1001);
	/* What the other, buffered node sees. */
	assert_int_equal(node_close(node, NULL), 0);
	assert_int_equal(node_close(f->node, NULL), 0);
	f->node = open_node(f->path, O_RDWR, true, false);
	assert_int_equal(node_pread(f->node, in, sizeof(in), 0, 0, NULL), 0);
	assert_memory_equal(in, model, sizeof(in));
	free(buf);
}

struct appender {
	struct node *node;
	uint64_t first;
};

static void *append_and_zero(void *arg)
{
	struct appender *a = arg;
	uint8_t buf[4096];

	/* Even blocks are written, odd ones zeroed: growth by write and by zero race with each other. */
	memset(buf, 0x5a, sizeof(buf));
	for (uint64_t i = a->first; i < 400; i += 2) {
		if (i % 2 == 0)
			assert_int_equal(node_pwrite(a->node, buf, sizeof(buf), i * 4096, 0, NULL), 0);
		else
			assert_int_equal(node_zero(a->node, 4096, i * 4096, 0, NULL), 0);
	}
	return NULL;
}

static void test_concurrent_growth_loses_nothing(void **state)
{
	struct fixture *f = *state;
	struct appender a[2] = { { f->node, 0 }, { f->node, 1 } };
	pthread_t t[2];
	uint8_t buf[4096];

	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&t[i], NULL, append_and_zero, &a[i]), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	for (uint64_t i = 0; i < 400; i++) {
		assert_int_equal(node_pread(f->node, buf, sizeof(buf), i * 4096, 0, NULL), 0);
		assert_int_equal(buf[0], i % 2 == 0 ? 0x5a : 0);
		assert_int_equal(buf[4095], i % 2 == 0 ? 0x5a : 0);
	}
}

/* A flush that ran between the start of a write and its arrival did not cover it: there is something left to sync. */
static void test_a_write_that_a_flush_overtook_is_synced(void **state)
{
	struct fixture *f = *state;
	struct node *node;
	unsigned before;

	assert_int_equal(node_pwrite(f->node, "a", 1, 0, 0, NULL), 0);
	flush_before_write = f->node;
	assert_int_equal(node_pwrite(f->node, "b", 1, 0, 0, NULL), 0);
	assert_null(flush_before_write);
	before = nr_syncs;
	node = f->node;
	f->node = NULL;
	assert_int_equal(node_close(node, NULL), 0);
	assert_int_equal(nr_syncs, before + 1);
	/* With nothing written there is nothing to do. */
	assert_int_equal(node_close(open_node(f->path, O_RDWR, true, false), NULL), 0);
	assert_int_equal(nr_syncs, before + 1);
}

static void test_stat_names_the_file(void **state)
{
	struct fixture *f = *state;
	struct host_stat hs;
	struct stat sb;

	assert_int_equal(node_resize(f->node, 8192, NULL), 0);
	assert_int_equal(node_stat(f->node, &hs, NULL), 0);
	assert_int_equal(stat(f->path, &sb), 0);
	assert_int_equal(hs.dev, sb.st_dev);
	assert_int_equal(hs.ino, sb.st_ino);
	assert_int_equal(hs.file_bytes, 8192);
	assert_false(hs.is_block_device);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_write_grows_and_reads_back), TEST(test_read_past_the_end_fails),
		TEST(test_zero_unmaps_or_keeps),       TEST(test_zero_beyond_the_end_grows),
		TEST(test_discard_gives_space_back),   TEST(test_allocate_keeps_content_and_grows),
		TEST(test_status_of_sparse_file),      TEST(test_resize),
		TEST(test_read_only_descriptor),       TEST(test_refused_descriptors),
		TEST(test_direct_takes_any_alignment), TEST(test_concurrent_growth_loses_nothing),
		TEST(test_stat_names_the_file),	       TEST(test_a_write_that_a_flush_overtook_is_synced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
