/* SPDX-License-Identifier: MIT */
/*
 * Images that are written from front to back: pieces are packed in any order and put in the disk's, whatever the number
 * of threads and however long each takes; after a failure nothing follows; img_convert_fd() into pipes and files.
 */
#include "image_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "codec.h"
#include "error.h"
#include "mem.h"
#include "sequence.h"

#define SIZE (9 * MIB + 512)
#define UNIT (64 * KIB)

/* ---- a format of the test: a unit is packed as its offset and its bytes ------------------------------------------ */

static struct {
	_Atomic long packs, puts; /* calls so far */
	long fail_pack, fail_put; /* which of them fails; -1: none */
	bool slow;
	bool failed;	   /* a put did */
	uint64_t expected; /* no unit before this may come */
	bool ended;
} mock;

static int mock_begin(struct node *file, const struct driver_create *args, struct sequence_shape *shape, void **state,
		      struct img_error *err)
{
	(void)args;
	(void)err;
	*shape = (struct sequence_shape){ .unit_bytes = UNIT, .packed_max = UNIT + 8 };
	*state = file;
	return 0;
}

static int mock_pack(const void *state, struct codec_ctx *codec, const uint8_t *unit, uint64_t off, uint8_t *out,
		     size_t *bytes, struct img_error *err)
{
	long nr = atomic_fetch_add(&mock.packs, 1);
	struct timespec wait = { .tv_nsec = (long)(mix(off) % 2000000) };

	(void)state;
	assert_non_null(codec);
	if (nr == mock.fail_pack)
		return error_set(err, IMG_E_NOMEM, 0, NO_OFFSET, "mock", "pack");
	if (mock.slow)
		nanosleep(&wait, NULL);
	memcpy(out, &off, 8);
	memcpy(out + 8, unit, UNIT);
	*bytes = UNIT + 8;
	return 0;
}

static int mock_put(void *state, const uint8_t *data, const struct sequence_unit *units, size_t nr,
		    struct img_error *err)
{
	struct node *file = state;
	int ret = 0;

	assert_false(mock.failed);
	assert_true(nr > 0);
	assert_int_equal(units[0].off / MIB, units[nr - 1].off / MIB);
	for (size_t i = 0; i < nr && ret == 0; i++, data += UNIT + 8) {
		assert_true(units[i].off >= mock.expected);
		assert_memory_equal(data, &units[i].off, 8);
		mock.expected = units[i].off + UNIT;
		if (mock.puts++ == mock.fail_put)
			ret = error_set(err, IMG_E_NOSPC, ENOSPC, NO_OFFSET, "mock", "put");
		else
			ret = node_pwrite(file, data + 8, UNIT, units[i].off, 0, err);
	}
	mock.failed = ret != 0;
	return ret;
}

static int mock_end(void *state, struct img_error *err)
{
	(void)state;
	(void)err;
	mock.ended = true;
	return 0;
}

static void mock_free(void *state)
{
	(void)state;
}

static const struct driver_sequence mock_sequence = {
	.begin = mock_begin,
	.pack = mock_pack,
	.put = mock_put,
	.end = mock_end,
	.free = mock_free,
};
static const struct img_driver mock_driver = { .name = "mock", .kind = DRIVER_FORMAT, .sequence = &mock_sequence };

static int write_mock(struct img *src, struct node *file, unsigned threads, struct img_error *err)
{
	struct driver_create args = { .size_bytes = img_size(src) };
	struct img_copy_options opts = { .struct_size = sizeof(opts), .threads = threads };

	mock.packs = mock.puts = 0;
	mock.failed = mock.ended = false;
	mock.expected = 0;
	return sequence_write(&mock_driver, file, &args, src, &opts, err);
}

static struct img *make_source(void)
{
	struct img *src;

	make_image("src", "limg", SIZE, NULL, NULL);
	src = open_image("src", "limg", IMG_OPEN_WRITE);
	write_pattern(src, 100 * KIB, 3 * MIB, 1);
	write_pattern(src, 5 * MIB, 2 * MIB, 2);
	write_pattern(src, SIZE - 512, 512, 3);
	assert_ok(img_zero(src, MIB, MIB, 0, ERR));
	return src;
}

static void order_is_kept(void **state)
{
	static const unsigned threads[] = { 1, 2, 3, 16 };
	struct img *src = make_source();
	uint8_t *content = read_all(src), *got = malloc(SIZE + UNIT);

	(void)state;
	assert_non_null(got);
	for (size_t i = 0; i < 4; i++) {
		struct node *file;

		assert_ok(mem_node_new("out", &file, ERR));
		mock.fail_pack = mock.fail_put = -1;
		mock.slow = true;
		assert_ok(write_mock(src, file, threads[i], ERR));
		assert_true(mock.ended);
		assert_int_equal(mock.packs, mock.puts);
		assert_true(mock.packs <= 32 + 2 + 33); /* what is zeros was not even packed */
		assert_int_equal(node_size(file), (SIZE + UNIT - 1) / UNIT * UNIT);
		assert_ok(node_pread(file, got, node_size(file), 0, 0, ERR));
		assert_memory_equal(got, content, SIZE);
		assert_ok(node_close(file, ERR));
	}
	free(got);
	free(content);
	close_image(src);
	fixture_files(true);
}

static void nothing_follows_a_failure(void **state)
{
	struct img *src = make_source();

	(void)state;
	mock.slow = false;
	for (long k = 0; k < 60; k++) {
		struct node *file;
		int ret;

		assert_ok(mem_node_new("out", &file, ERR));
		mock.fail_pack = k % 2 ? k / 2 : -1;
		mock.fail_put = k % 2 ? -1 : k / 2;
		ret = write_mock(src, file, 1 + (unsigned)k % 4, ERR);
		assert_int_equal(ret, k % 2 ? IMG_E_NOMEM : IMG_E_NOSPC);
		assert_false(mock.ended);
		assert_ok(node_close(file, ERR));
	}
	close_image(src);
	fixture_files(true);
}

static int cancel(void *ctx, uint64_t done, uint64_t total)
{
	(void)ctx;
	(void)done;
	(void)total;
	return 1;
}

static void can_be_cancelled(void **state)
{
	struct img *src = make_source();
	struct driver_create args = { .size_bytes = SIZE };
	struct img_copy_options opts = { .struct_size = sizeof(opts), .threads = 3, .progress = { .fn = cancel } };
	struct node *file;

	(void)state;
	mock.fail_pack = mock.fail_put = -1;
	mock.failed = false;
	mock.expected = 0;
	assert_ok(mem_node_new("out", &file, ERR));
	assert_int_equal(sequence_write(&mock_driver, file, &args, src, &opts, ERR), IMG_E_CANCELLED);
	assert_ok(node_close(file, ERR));
	close_image(src);
	fixture_files(true);
}

/* ---- descriptors ------------------------------------------------------------------------------------------------- */

struct reader {
	int fd;
	size_t stop; /* bytes after which it goes away */
	uint8_t *buf;
	size_t got;
};

static void *read_some(void *opaque)
{
	struct reader *r = opaque;
	ssize_t n = 1;

	while (n > 0 && r->got < r->stop) {
		n = read(r->fd, r->buf + r->got, r->stop - r->got);
		r->got += n > 0 ? (size_t)n : 0;
	}
	close(r->fd);
	return NULL;
}

/* Converts to a pipe whose reader stops after so many bytes; what it got is *out. */
static int through_a_pipe(struct img *src, const char *format, const char *options, size_t stop, bool no_wait,
			  struct reader *r)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = format, .options = options };
	struct img_copy_options copy = { .struct_size = sizeof(copy), .threads = 3 };
	pthread_t thread;
	int fds[2], ret;

	assert_int_equal(pipe(fds), 0);
	if (no_wait)
		assert_int_equal(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
	*r = (struct reader){ .fd = fds[0], .stop = stop, .buf = malloc(stop + 1) };
	assert_non_null(r->buf);
	assert_int_equal(pthread_create(&thread, NULL, read_some, r), 0);
	ret = img_convert_fd(src, fds[1], "the pipe", &create, &copy, ERR);
	pthread_join(thread, NULL);
	assert_int_equal(fcntl(fds[1], F_GETFD), -1); /* the library's, and closed */
	return ret;
}

static void raw_goes_through_a_pipe(void **state)
{
	struct img *src = make_source();
	uint8_t *content = read_all(src);
	struct reader r;

	(void)state;
	for (int no_wait = 0; no_wait < 2; no_wait++) {
		assert_ok(through_a_pipe(src, "raw", NULL, 2 * SIZE, no_wait, &r));
		assert_int_equal(r.got, SIZE);
		assert_memory_equal(r.buf, content, SIZE);
		free(r.buf);
	}
	assert_int_equal(through_a_pipe(src, "raw", NULL, 300000, false, &r), IMG_E_IO);
	assert_int_equal(fixture_error.sys_errno, EPIPE);
	assert_memory_equal(r.buf, content, 300000);
	free(r.buf);
	assert_int_equal(through_a_pipe(src, "raw", "preallocation=full", 512, false, &r), IMG_E_UNSUPPORTED);
	assert_int_equal(r.got, 0);
	free(r.buf);
	assert_int_equal(through_a_pipe(src, "limg", NULL, 512, false, &r), IMG_E_UNSUPPORTED);
	assert_int_equal(r.got, 0);
	free(r.buf);
	free(content);
	close_image(src);
	fixture_files(true);
}

/* A file that is being written by others too, as in (header; image) > file: from where it stands, and no further. */
static void a_file_is_written_from_where_it_stands(void **state)
{
	struct img_create_options create = { .struct_size = sizeof(create), .format = "raw", .size_bytes = SIZE + MIB };
	struct img *src = make_source();
	uint8_t *content = read_all(src), *got = calloc(1, SIZE + MIB + 7);
	int fd = open(in_dir("out"), O_RDWR | O_CREAT, 0600), again;

	(void)state;
	assert_true(fd >= 0 && got);
	assert_int_equal(write(fd, "header\n", 7), 7);
	again = dup(fd);
	assert_ok(img_convert_fd(src, fd, "out", &create, NULL, ERR));
	assert_int_equal(lseek(again, 0, SEEK_CUR), SIZE + MIB + 7);
	assert_int_equal(pread(again, got, SIZE + MIB + 7, 0), SIZE + MIB + 7);
	assert_memory_equal(got, "header\n", 7);
	assert_memory_equal(got + 7, content, SIZE);
	for (size_t i = 0; i < MIB; i++)
		assert_int_equal(got[7 + SIZE + i], 0);
	close(again);
	create.size_bytes = 512;
	fd = open(in_dir("out"), O_RDWR);
	assert_int_equal(img_convert_fd(src, fd, "out", &create, NULL, ERR), IMG_E_INVALID);
	create = (struct img_create_options){ .struct_size = sizeof(create), .format = "raw", .backing = "src" };
	fd = open(in_dir("out"), O_RDWR);
	assert_int_equal(img_convert_fd(src, fd, "out", &create, NULL, ERR), IMG_E_UNSUPPORTED);
	assert_int_equal(img_convert_fd(src, -1, "out", &create, NULL, ERR), IMG_E_INVALID);
	assert_int_equal(img_convert_fd(NULL, open(in_dir("out"), O_RDWR), "out", &create, NULL, ERR), IMG_E_INVALID);
	free(got);
	free(content);
	close_image(src);
	fixture_files(true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(order_is_kept),
		cmocka_unit_test(nothing_follows_a_failure),
		cmocka_unit_test(can_be_cancelled),
		cmocka_unit_test(raw_goes_through_a_pipe),
		cmocka_unit_test(a_file_is_written_from_where_it_stands),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, fixture_setup, fixture_teardown);
}
