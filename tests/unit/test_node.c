/* SPDX-License-Identifier: MIT */
/* The chokepoint: what it lets in, what it makes of a driver's answers, and what it does for drivers that cannot do it.
 */
#include "mock.h"

#define NR_OPS 4000

static struct node *open_aligned(uint64_t size, uint32_t align)
{
	struct node *node = mock_node(&mock_protocol, size, true);

	mock_of(node)->align = align;
	memset(mock_of(node)->kind, STATUS_DATA, sizeof(mock_of(node)->kind));
	return node;
}

/* ---- in ---------------------------------------------------------------------------------------------------------- */

static void test_format_refuses_beyond_its_end(void **state)
{
	struct node *node = mock_node(&mock_format, 4096, true);
	struct img_error err = { 0 };
	uint8_t buf[8192] = { 0 };

	(void)state;
	assert_int_equal(node_pread(node, buf, 1, 4096, 0, &err), IMG_E_INVALID);
	assert_int_equal(node_pwrite(node, buf, 2, 4095, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_zero(node, 4096, 512, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_discard(node, UINT64_MAX, 1, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_pread(node, buf, 0, 4096, 0, NULL), 0);
	assert_int_equal(node_pread(node, buf, 0, 4097, 0, NULL), IMG_E_INVALID);
	assert_int_equal(mock_of(node)->nr_pread + mock_of(node)->nr_pwrite + mock_of(node)->nr_zero, 0);
	node_close(node, NULL);
}

static void test_protocol_grows_by_writing_only(void **state)
{
	struct node *node = mock_node(&mock_protocol, 1000, true);
	struct img_error err = { 0 };
	uint8_t buf[100];

	(void)state;
	memset(buf, 7, sizeof(buf));
	assert_int_equal(node_pread(node, buf, 10, 995, 0, &err), IMG_E_IO);
	assert_non_null(strstr(err.msg, "the file ends at 0x3e8"));
	assert_int_equal(node_pwrite(node, buf, sizeof(buf), 2000, 0, NULL), 0);
	assert_int_equal(node_size(node), 2100);
	assert_int_equal(node_zero(node, 1024, 4096, 0, NULL), 0);
	assert_int_equal(node_size(node), 4096 + 1024);
	assert_int_equal(node_pwrite(node, buf, 2, INT64_MAX - 1, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_pwrite(node, buf, 2, UINT64_MAX, 0, NULL), IMG_E_INVALID);
	node_close(node, NULL);
}

static void test_read_only(void **state)
{
	struct node *node = mock_node(&mock_protocol, 4096, false);
	uint8_t buf[512] = { 0 };

	(void)state;
	assert_int_equal(node_pread(node, buf, 512, 0, 0, NULL), 0);
	assert_int_equal(node_pwrite(node, buf, 512, 0, 0, NULL), IMG_E_READONLY);
	assert_int_equal(node_zero(node, 512, 0, 0, NULL), IMG_E_READONLY);
	assert_int_equal(node_discard(node, 512, 0, 0, NULL), IMG_E_READONLY);
	assert_int_equal(node_resize(node, 512, NULL), IMG_E_READONLY);
	assert_int_equal(node_set_backing(node, NULL, BACKING_SET, NULL), IMG_E_READONLY);
	/* There is nothing to make durable. */
	assert_int_equal(node_flush(node, 0, NULL), 0);
	assert_int_equal(mock_of(node)->nr_flush, 0);
	node_close(node, NULL);
}

static void test_not_open(void **state)
{
	struct img_error err = { 0 };
	struct node *node = node_new(&mock_protocol, "new", &err);
	uint8_t byte;

	(void)state;
	assert_non_null(node);
	assert_int_equal(node_size(node), 0);
	assert_int_equal(node_pread(node, &byte, 1, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_pwrite(node, &byte, 1, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_close(node, NULL), 0);
}

static void test_missing_buffer(void **state)
{
	struct node *node = mock_node(&mock_protocol, 4096, true);

	(void)state;
	assert_int_equal(node_pread(node, NULL, 1, 0, 0, NULL), IMG_E_INVALID);
	assert_int_equal(node_pwrite(node, NULL, 1, 0, 0, NULL), IMG_E_INVALID);
	node_close(node, NULL);
}

/* ---- out --------------------------------------------------------------------------------------------------------- */

static void test_silent_failure_is_filled(void **state)
{
	struct node *node = mock_node(&mock_protocol, 4096, true);
	struct img_error err = { 0 };
	uint8_t byte = 1;

	(void)state;
	mock_of(node)->silent = true;
	mock_of(node)->fail_write = IMG_E_NOSPC;
	assert_int_equal(node_pwrite(node, &byte, 1, 0, 0, &err), IMG_E_NOSPC);
	assert_int_equal(err.code, IMG_E_NOSPC);
	assert_string_equal(err.layer, "mock-protocol");
	/* Something above zero is no answer at all. */
	error_clear(&err);
	mock_of(node)->fail_write = 3;
	assert_int_equal(node_pwrite(node, &byte, 1, 0, 0, &err), IMG_E_IO);
	assert_non_null(strstr(err.msg, "broke its contract"));
	node_close(node, NULL);
}

static void test_driver_error_is_kept(void **state)
{
	struct node *node = mock_node(&mock_protocol, 4096, true);
	struct img_error err = { 0 };
	uint8_t byte = 1;

	(void)state;
	mock_of(node)->fail_write = IMG_E_CORRUPT;
	assert_int_equal(node_pwrite(node, &byte, 1, 0, 0, &err), IMG_E_CORRUPT);
	assert_string_equal(err.msg, "mock fails");
	assert_string_equal(err.layer, "mock");
	node_close(node, NULL);
}

static void test_bad_status_is_refused(void **state)
{
	static const int refused[] = { 1, 2, 3, 4, 6, 7 };
	struct node *node = mock_node(&mock_protocol, 8192, true);
	struct status_extent e[4];
	size_t nr;

	(void)state;
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		struct img_error err = { 0 };

		mock_of(node)->bad_status = refused[i];
		assert_int_equal(node_status(node, 4096, 512, e, 4, &nr, &err), IMG_E_IO);
		assert_non_null(strstr(err.msg, "broke its contract"));
	}
	node_close(node, NULL);
}

static void test_status_is_clipped(void **state)
{
	struct node *node = mock_node(&mock_protocol, 8192, true);
	struct img_error err = { 0 };
	struct status_extent e[4];
	size_t nr;

	(void)state;
	mock_of(node)->kind[2] = STATUS_DATA;
	mock_of(node)->bad_status = 5;
	assert_int_equal(node_status(node, 4096, 512, e, 4, &nr, &err), 0);
	assert_int_equal(nr, 3);
	assert_int_equal(e[1].off, 1024);
	assert_int_equal(e[1].bytes, 512);
	assert_true(e[0].host_off == STATUS_NO_HOST);
	assert_int_equal(e[2].off + e[2].bytes, 4608);
	node_close(node, NULL);
}

static void test_status_without_driver_is_data(void **state)
{
	struct node *node = mock_node(&mock_plain, 8192, true);
	struct status_extent e;
	size_t nr;

	(void)state;
	assert_int_equal(node_status(node, 100, 50, &e, 1, &nr, NULL), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(e.kind, STATUS_DATA);
	assert_int_equal(e.bytes, 100);
	assert_int_equal(node_status(node, 100, 8192, &e, 1, &nr, NULL), IMG_E_IO);
	node_close(node, NULL);
}

/* ---- emulation --------------------------------------------------------------------------------------------------- */

static void test_zero_by_writing(void **state)
{
	struct node *node = mock_node(&mock_plain, MOCK_BYTES, true);
	uint8_t *data = mock_of(node)->data;

	(void)state;
	memset(data, 0xee, MOCK_BYTES);
	assert_int_equal(node_zero(node, 200000, 777, 0, NULL), 0);
	assert_int_equal(data[776], 0xee);
	assert_int_equal(data[200777], 0xee);
	for (size_t i = 777; i < 200777; i++)
		assert_int_equal(data[i], 0);
	node_close(node, NULL);
}

static void test_discard_without_driver_does_nothing(void **state)
{
	struct node *node = mock_node(&mock_plain, 4096, true);

	(void)state;
	assert_int_equal(node_discard(node, 4096, 0, 0, NULL), 0);
	assert_int_equal(mock_of(node)->nr_pwrite, 0);
	node_close(node, NULL);
}

static void test_discard_shrinks_to_alignment_and_end(void **state)
{
	struct node *node = open_aligned(8192, 512);
	struct mock *m = mock_of(node);

	(void)state;
	assert_int_equal(node_discard(node, 1000, 100, 0, NULL), 0);
	assert_int_equal(m->last_off, 512);
	assert_int_equal(m->last_bytes, 512);
	assert_int_equal(node_discard(node, 100, 100, 0, NULL), 0);
	assert_int_equal(m->nr_discard, 1);
	assert_int_equal(node_discard(node, 1 << 20, 7680, 0, NULL), 0);
	assert_int_equal(m->last_off, 7680);
	assert_int_equal(m->last_bytes, 512);
	assert_int_equal(node_discard(node, 512, 1 << 20, 0, NULL), 0);
	assert_int_equal(m->nr_discard, 2);
	node_close(node, NULL);
}

static void test_fua_is_a_flush(void **state)
{
	struct node *node = mock_node(&mock_protocol, 8192, true);
	struct mock *m = mock_of(node);
	uint8_t buf[512] = { 1 };

	(void)state;
	assert_int_equal(node_pwrite(node, buf, 512, 0, IMG_IO_FUA, NULL), 0);
	assert_int_equal(m->write_flags & IMG_IO_FUA, 0);
	assert_int_equal(m->nr_flush, 1);
	assert_int_equal(node_zero(node, 512, 0, IMG_IO_FUA, NULL), 0);
	assert_int_equal(node_discard(node, 512, 0, IMG_IO_FUA, NULL), 0);
	assert_int_equal(m->nr_flush, 3);
	node_close(node, NULL);
}

static void test_detect_zeroes(void **state)
{
	struct node *node = mock_node(&mock_format, 64 << 10, true);
	struct mock *m = mock_of(node);
	uint8_t *buf = calloc(1, 32 << 10);

	(void)state;
	assert_non_null(buf);
	memset(m->kind, STATUS_DATA, sizeof(m->kind));
	memset(m->data, 0xee, MOCK_BYTES);
	/* 4 KiB of zeros, 8 of data, 20 of zeros. */
	memset(buf + 4096, 5, 8192);
	assert_int_equal(node_pwrite(node, buf, 32 << 10, 4096, IMG_IO_DETECT_ZEROES, NULL), 0);
	assert_int_equal(m->nr_zero, 2);
	assert_int_equal(m->nr_pwrite, 1);
	assert_int_equal(m->kind[8], STATUS_ZERO);
	assert_int_equal(m->kind[16], STATUS_DATA);
	assert_memory_equal(m->data + 4096, buf, 32 << 10);
	assert_int_equal(m->data[4095], 0xee);
	assert_int_equal(m->data[36 << 10], 0xee);
	/* A compression unit that is not all zeros is written whole. */
	m->unit = 16 << 10;
	assert_int_equal(node_pwrite(node, buf, 32 << 10, 0, IMG_IO_DETECT_ZEROES | IMG_IO_COMPRESS, NULL), 0);
	assert_int_equal(m->nr_zero, 3);
	assert_int_equal(m->nr_pwrite, 2);
	assert_int_equal(m->write_flags, IMG_IO_COMPRESS);
	free(buf);
	node_close(node, NULL);
}

/* Random unaligned requests on a driver that takes aligned ones only, against an array. */
static void run_unaligned(uint32_t align, uint64_t size)
{
	struct node *node = open_aligned(size, align);
	uint8_t *flat = calloc(1, MOCK_BYTES), *buf = malloc(MOCK_BYTES);
	uint64_t flat_size = size;

	assert_non_null(flat);
	assert_non_null(buf);
	srand(align);
	for (int i = 0; i < NR_OPS; i++) {
		uint64_t off = (uint64_t)rand() % (MOCK_BYTES - 40000),
			 bytes = 1 + (uint64_t)rand() % (i % 7 ? 3000 : 30000);
		int skew = rand() % 16;

		if (i % 5 == 0)
			off -= off % align;
		switch (rand() % 3) {
		case 0:
			memset(buf + skew, rand() & 255, bytes);
			memcpy(flat + off, buf + skew, bytes);
			assert_int_equal(node_pwrite(node, buf + skew, bytes, off, 0, NULL), 0);
			flat_size = off + bytes > flat_size ? off + bytes : flat_size;
			break;
		case 1:
			memset(flat + off, 0, bytes);
			assert_int_equal(node_zero(node, bytes, off, 0, NULL), 0);
			flat_size = off + bytes > flat_size ? off + bytes : flat_size;
			break;
		default:
			if (off + bytes > flat_size)
				break;
			assert_int_equal(node_pread(node, buf + skew, bytes, off, 0, NULL), 0);
			assert_memory_equal(buf + skew, flat + off, bytes);
		}
		/* The end is where the last byte is, not where its block ends. */
		assert_int_equal(node_size(node), flat_size);
	}
	free(flat);
	free(buf);
	node_close(node, NULL);
}

static void test_unaligned_requests(void **state)
{
	(void)state;
	run_unaligned(512, 1000);
	run_unaligned(4096, 100000);
}

/* ---- poison ------------------------------------------------------------------------------------------------------ */

static void test_failed_flush_poisons(void **state)
{
	struct node *node = mock_node(&mock_protocol, 4096, true);
	struct img_error err = { 0 };
	uint8_t buf[512] = { 1 };

	(void)state;
	mock_of(node)->fail_flush = IMG_E_NOSPC;
	assert_int_equal(node_flush(node, 0, NULL), IMG_E_NOSPC);
	mock_of(node)->fail_flush = 0;
	assert_int_equal(node_flush(node, 0, &err), IMG_E_POISONED);
	assert_int_equal(err.code, IMG_E_POISONED);
	assert_int_equal(node_pwrite(node, buf, 512, 0, 0, NULL), IMG_E_POISONED);
	assert_int_equal(node_zero(node, 512, 0, 0, NULL), IMG_E_POISONED);
	assert_int_equal(node_discard(node, 512, 0, 0, NULL), IMG_E_POISONED);
	assert_int_equal(node_resize(node, 0, NULL), IMG_E_POISONED);
	assert_int_equal(node_pread(node, buf, 512, 0, 0, NULL), 0);
	assert_int_equal(mock_of(node)->nr_flush, 1);
	node_close(node, NULL);
}

static void test_format_may_run_out_of_space(void **state)
{
	struct node *node = mock_node(&mock_format, 4096, true);
	uint8_t buf[512] = { 1 };

	(void)state;
	mock_of(node)->fail_flush = IMG_E_NOSPC;
	assert_int_equal(node_flush(node, 0, NULL), IMG_E_NOSPC);
	assert_int_equal(node_pwrite(node, buf, 512, 0, 0, NULL), 0);
	mock_of(node)->fail_flush = IMG_E_IO;
	assert_int_equal(node_flush(node, 0, NULL), IMG_E_IO);
	assert_int_equal(node_pwrite(node, buf, 512, 0, 0, NULL), IMG_E_POISONED);
	node_close(node, NULL);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static void test_read_backing(void **state)
{
	struct node *top = mock_node(&mock_format, 8192, true), *below = mock_node(&mock_format, 1000, false);
	struct img_error err = { 0 };
	uint8_t buf[2000];

	(void)state;
	memset(mock_of(below)->kind, STATUS_DATA, 4);
	memset(mock_of(below)->data, 9, 1000);
	memset(buf, 1, sizeof(buf));
	assert_int_equal(node_read_backing(top, buf, 10, 0, NULL), 0);
	assert_int_equal(buf[0], 0);
	top->backing = below;
	assert_int_equal(node_pread(top, buf, 2000, 500, 0, NULL), 0);
	assert_int_equal(buf[0], 9);
	assert_int_equal(buf[499], 9);
	assert_int_equal(buf[500], 0);
	assert_int_equal(buf[1999], 0);
	assert_int_equal(node_pread(top, buf, 10, 5000, 0, NULL), 0);
	assert_int_equal(buf[0], 0);
	top->backing_missing = true;
	assert_int_equal(node_read_backing(top, buf, 10, 0, &err), IMG_E_REFUSED);
	node_close(top, NULL);
}

static void test_what_a_driver_lacks(void **state)
{
	struct node *node = mock_node(&mock_format, 8192, true);
	struct backing_ref ref;
	struct host_stat host;
	struct img_check_result check;
	struct pin pin;
	uint64_t bytes;
	size_t nr = 1;

	(void)state;
	assert_int_equal(node_snap_create(node, "a", 0, NULL, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_snap_delete(node, "a", NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_snap_revert(node, "a", NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_snap_rename(node, "a", "b", NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_snap_diff(node, "a", "b", NULL, NULL, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_snap_list(node, NULL, 0, &nr, NULL), 0);
	assert_int_equal(nr, 0);
	assert_int_equal(node_vmstate_size(node, NULL, &bytes, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_vmstate_zero(node, 512, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_vmstate_status(node, NULL, 512, 0, NULL, 0, &nr, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_vmstate_map(node, NULL, 4096, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_map(node, NULL, 4096, 0, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_check(node, 0, NULL, NULL, NULL, &check, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_pin(node, &pin, NULL), IMG_E_UNSUPPORTED);
	assert_int_equal(node_set_backing(node, NULL, BACKING_SET, NULL), IMG_E_UNSUPPORTED);
	assert_false(node_get_backing(node, &ref));
	assert_int_equal(node_allocate(node, 100, 0, NULL), 0);
	assert_int_equal(node_lock_byte(node, 5, BYTE_EXCLUSIVE, NULL), 0);
	assert_int_equal(node_share(node, PERM_READ, 0, NULL), 0);
	assert_int_equal(node_stat(node, &host, NULL), 0);
	assert_int_equal(host.file_bytes, 8192);
	node_close(node, NULL);
}

static void test_counters(void **state)
{
	struct node *node = mock_node(&mock_protocol, 8192, true);
	uint8_t buf[1024] = { 0 };

	(void)state;
	node_pread(node, buf, 1024, 0, 0, NULL);
	node_pread(node, buf, 512, 0, 0, NULL);
	node_pwrite(node, buf, 1024, 0, 0, NULL);
	node_zero(node, 512, 0, 0, NULL);
	node_discard(node, 512, 0, 0, NULL);
	node_flush(node, 0, NULL);
	assert_int_equal(node->counters.reads, 2);
	assert_int_equal(node->counters.bytes_read, 1536);
	assert_int_equal(node->counters.writes, 1);
	assert_int_equal(node->counters.bytes_written, 1024);
	assert_int_equal(node->counters.zeroes, 1);
	assert_int_equal(node->counters.discards, 1);
	assert_int_equal(node->counters.flushes, 1);
	node_close(node, NULL);
}

/* Children last: the order in which the mocks see their close. */
static unsigned close_order, closed_at[3];

static int ordered_close(struct node *node, struct img_error *err)
{
	closed_at[node->path[0] - '0'] = ++close_order;
	mock_close(node, NULL);
	return error_set(err, node->path[0] == '1' ? IMG_E_IO : IMG_E_CORRUPT, 0, NO_OFFSET, "mock", "%s: lost",
			 node->path);
}

static void test_close_order_and_first_failure(void **state)
{
	struct img_driver drv = mock_format;
	struct node *nodes[3];
	struct img_error err = { 0 };

	(void)state;
	drv.close = ordered_close;
	for (int i = 0; i < 3; i++) {
		struct driver_open args = { .writable = true };
		char name[2] = { (char)('0' + i), 0 };

		nodes[i] = node_new(&drv, name, NULL);
		assert_non_null(nodes[i]);
		assert_int_equal(node_open(nodes[i], &args, NULL), 0);
	}
	nodes[1]->file = nodes[0];
	nodes[1]->backing = nodes[2];
	close_order = 0;
	assert_int_equal(node_close(nodes[1], &err), IMG_E_IO);
	assert_string_equal(err.msg, "1: lost");
	assert_int_equal(closed_at[1], 1);
	assert_int_equal(closed_at[0], 2);
	assert_int_equal(closed_at[2], 3);
}

static int failing_read(struct node *node, void *buf, uint64_t bytes, uint64_t off, unsigned flags,
			struct img_error *err)
{
	(void)flags;
	if (node->backing)
		return node_read_backing(node, buf, bytes, off, err);
	return error_set(err, IMG_E_CORRUPT, 0, off, "mock", "damaged");
}

/* What a format says of its file is said with the file's name, once, whoever reads through it. */
static void test_a_failure_names_the_file(void **state)
{
	static const char *const names[] = { "top", "middle", "base" };
	struct driver_open args = { .writable = true };
	struct img_driver drv = mock_format;
	struct img_error err = { 0 };
	struct node *nodes[3];
	uint8_t byte;

	(void)state;
	drv.pread = failing_read;
	for (int i = 0; i < 3; i++) {
		nodes[i] = node_new(&drv, names[i], NULL);
		assert_non_null(nodes[i]);
		assert_int_equal(node_open(nodes[i], &args, NULL), 0);
		mock_of(nodes[i])->size = 4096;
		if (i > 0)
			nodes[i - 1]->backing = nodes[i];
	}
	assert_int_equal(node_pread(nodes[0], &byte, 1, 0, 0, &err), IMG_E_CORRUPT);
	assert_string_equal(err.msg, "base: damaged");
	assert_int_equal(node_close(nodes[0], NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_format_refuses_beyond_its_end),
		cmocka_unit_test(test_protocol_grows_by_writing_only),
		cmocka_unit_test(test_read_only),
		cmocka_unit_test(test_not_open),
		cmocka_unit_test(test_missing_buffer),
		cmocka_unit_test(test_silent_failure_is_filled),
		cmocka_unit_test(test_driver_error_is_kept),
		cmocka_unit_test(test_bad_status_is_refused),
		cmocka_unit_test(test_status_is_clipped),
		cmocka_unit_test(test_status_without_driver_is_data),
		cmocka_unit_test(test_zero_by_writing),
		cmocka_unit_test(test_discard_without_driver_does_nothing),
		cmocka_unit_test(test_discard_shrinks_to_alignment_and_end),
		cmocka_unit_test(test_fua_is_a_flush),
		cmocka_unit_test(test_detect_zeroes),
		cmocka_unit_test(test_unaligned_requests),
		cmocka_unit_test(test_failed_flush_poisons),
		cmocka_unit_test(test_format_may_run_out_of_space),
		cmocka_unit_test(test_read_backing),
		cmocka_unit_test(test_what_a_driver_lacks),
		cmocka_unit_test(test_counters),
		cmocka_unit_test(test_close_order_and_first_failure),
		cmocka_unit_test(test_a_failure_names_the_file),
	};

	return cmocka_run_group_tests_name("node", tests, NULL, NULL);
}
