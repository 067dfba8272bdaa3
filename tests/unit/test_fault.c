/* SPDX-License-Identifier: MIT */
/* The fault filter: the call that was ordered fails and no other, and a full disk is full exactly when its space is
 * used up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "error.h"
#include "fault.h"
#include "mem.h"

static struct node *faulty(struct fault_plan *plan)
{
	struct node *child, *node;

	assert_int_equal(mem_node_new("m", &child, NULL), 0);
	assert_int_equal(fault_node_new(child, plan, &node, NULL), 0);
	return node;
}

static void test_nth_once_and_for_good(void **state)
{
	struct fault_plan plan;
	struct img_error err = { 0 };
	struct node *node;
	char buf[8] = "1234567";

	(void)state;
	fault_plan_init(&plan);
	node = faulty(&plan);
	fault_plan_arm(&plan, 1u << FAULT_WRITE, 2, EIO, false);
	assert_int_equal(node_pwrite(node, buf, 8, 0, 0, NULL), 0);
	assert_int_equal(node_pread(node, buf, 8, 0, 0, NULL), 0); /* not counted */
	assert_int_equal(node_pwrite(node, buf, 8, 0, 0, &err), IMG_E_IO);
	assert_int_equal(err.sys_errno, EIO);
	assert_int_equal(node_pwrite(node, buf, 8, 0, 0, NULL), 0);
	assert_int_equal(plan.failed, 1);
	fault_plan_arm(&plan, FAULT_ALL, 2, ENOSPC, true);
	assert_int_equal(node_pread(node, buf, 8, 0, 0, NULL), 0);
	assert_int_equal(node_pwrite(node, buf, 8, 0, 0, NULL), IMG_E_NOSPC);
	assert_int_not_equal(node_pread(node, buf, 8, 0, 0, NULL), 0);
	assert_int_equal((uint8_t)buf[0], 0xee); /* rubbish in the buffer of a failed read */
	fault_plan_disarm(&plan);
	assert_int_equal(node_pread(node, buf, 8, 0, 0, NULL), 0);
	assert_int_equal(plan.calls[FAULT_READ], 4);
	node_close(node, NULL);
	fault_plan_destroy(&plan);
}

static void test_every_kind_can_fail(void **state)
{
	struct fault_plan plan;
	struct status_extent e;
	struct host_stat sb;
	struct node *node;
	size_t nr;
	char b = 1;

	(void)state;
	fault_plan_init(&plan);
	node = faulty(&plan);
	assert_int_equal(node_pwrite(node, &b, 1, 0, 0, NULL), 0);
	fault_plan_arm(&plan, FAULT_ALL, 1, EIO, true);
	assert_int_equal(node_pread(node, &b, 1, 0, 0, NULL), IMG_E_IO);
	assert_int_equal(node_pwrite(node, &b, 1, 0, 0, NULL), IMG_E_IO);
	assert_int_equal(node_zero(node, 1, 0, 0, NULL), IMG_E_IO);
	assert_int_equal(node_discard(node, 1, 0, 0, NULL), IMG_E_IO);
	assert_int_equal(node_status(node, 1, 0, &e, 1, &nr, NULL), IMG_E_IO);
	assert_int_equal(node_resize(node, 10, NULL), IMG_E_IO);
	assert_int_equal(node_allocate(node, 10, 0, NULL), IMG_E_IO);
	assert_int_equal(node_stat(node, &sb, NULL), IMG_E_IO);
	assert_int_equal(node_lock_byte(node, 1, BYTE_SHARED, NULL), IMG_E_IO);
	assert_int_equal(node_share(node, 0, 0, NULL), IMG_E_IO);
	assert_int_equal(node_flush(node, 0, NULL), IMG_E_IO); /* last: it poisons the node */
	for (int op = 0; op < FAULT_NR_OPS; op++)
		assert_true(plan.calls[op] >= 1);
	node_close(node, NULL);
	fault_plan_destroy(&plan);
}

static void test_short_write(void **state)
{
	static const struct {
		uint64_t off, bytes, short_bytes, end; /* end: of what was written */
	} cases[] = {
		{ 0, 1536, 512, 512 }, { 0, 1536, 1100, 1024 }, { 0, 512, 512, 0 },	 { 100, 8, 3, 100 },
		{ 508, 8, 4, 512 },    { 100, 1536, 512, 512 }, { 0, 1536, 9999, 1024 }, { 1000, 1000, 1 << 20, 1536 },
	};
	static uint8_t old[2048], new[2048], buf[2048];
	struct fault_plan plan;
	struct node *node;

	(void)state;
	memset(old, 'a', sizeof(old));
	memset(new, 'b', sizeof(new));
	fault_plan_init(&plan);
	node = faulty(&plan);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fault_plan_disarm(&plan);
		assert_int_equal(node_pwrite(node, old, sizeof(old), 0, 0, NULL), 0);
		plan.short_bytes = cases[i].short_bytes;
		fault_plan_arm(&plan, FAULT_ALL, 1, EIO, false);
		assert_int_equal(node_pwrite(node, new, cases[i].bytes, cases[i].off, 0, NULL), IMG_E_IO);
		assert_int_equal(node_pread(node, buf, sizeof(buf), 0, 0, NULL), 0);
		for (uint64_t at = 0; at < sizeof(buf); at++)
			assert_int_equal(buf[at], at >= cases[i].off && at < cases[i].end ? 'b' : 'a');
	}
	node_close(node, NULL);
	fault_plan_destroy(&plan);
}

static void test_full_disk(void **state)
{
	static const char block[4096] = "x";
	struct fault_plan plan;
	struct node *child, *node;

	(void)state;
	fault_plan_init(&plan);
	assert_int_equal(mem_node_new("m", &child, NULL), 0);
	assert_int_equal(node_pwrite(child, block, 4096, 0, 0, NULL), 0);
	plan.disk_full_mode = true;
	plan.free_bytes = 2 * 4096;
	assert_int_equal(fault_node_new(child, &plan, &node, NULL), 0);
	assert_int_equal(node_pwrite(node, block, 4096, 0, 0, NULL), 0); /* had its space before */
	assert_int_equal(node_resize(node, 1 << 20, NULL), 0);		 /* length costs nothing */
	assert_int_equal(node_pwrite(node, block, 100, 4096, 0, NULL), 0);
	assert_int_equal(plan.free_bytes, 4096);
	assert_int_equal(node_allocate(node, 8192, 8192, NULL), IMG_E_NOSPC);
	assert_int_equal(plan.free_bytes, 4096);
	assert_int_equal(node_allocate(node, 4096, 8192, NULL), 0);
	assert_int_equal(node_pwrite(node, block, 4096, 8192, 0, NULL), 0); /* reserved */
	assert_int_equal(node_pwrite(node, block, 1, 12288, 0, NULL), IMG_E_NOSPC);
	assert_int_equal(node_zero(node, 4096, 12288, IMG_IO_NO_UNMAP, NULL), IMG_E_NOSPC);
	assert_int_equal(node_discard(node, 4096, 0, 0, NULL), 0);
	assert_int_equal(plan.free_bytes, 4096);
	assert_int_equal(node_pwrite(node, block, 1, 12288, 0, NULL), 0);
	assert_int_equal(node_resize(node, 12288, NULL), 0);
	assert_int_equal(plan.free_bytes, 4096);
	node_close(node, NULL);
	fault_plan_destroy(&plan);
}

static void test_reserved_space_stays(void **state)
{
	struct host_open args = { .writable = true };
	struct mem_content *content = mem_content_new();
	struct fault_plan plan;
	struct node *child, *node;
	char b = 1;

	(void)state;
	fault_plan_init(&plan);
	plan.disk_full_mode = true;
	plan.free_bytes = 4096;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(mem_node_on(content, "m", &args, &child, NULL), 0);
		assert_int_equal(fault_node_new(child, &plan, &node, NULL), 0);
		/* The first time it is paid for; the second time it is there. */
		assert_int_equal(node_allocate(node, 4096, 65536, NULL), 0);
		assert_int_equal(plan.free_bytes, 0);
		assert_int_equal(node_pwrite(node, &b, 1, 0, 0, NULL), IMG_E_NOSPC);
		assert_int_equal(node_close(node, NULL), 0);
	}
	mem_content_unref(content);
	fault_plan_destroy(&plan);
}

/* What was written and not flushed is flushed by closing, and that can fail. */
static void test_close_flushes(void **state)
{
	struct fault_plan plan;
	struct node *node;
	char b = 1;

	(void)state;
	fault_plan_init(&plan);
	node = faulty(&plan);
	assert_int_equal(node_pwrite(node, &b, 1, 0, 0, NULL), 0);
	fault_plan_arm(&plan, 1u << FAULT_FLUSH, 1, EIO, true);
	assert_int_equal(node_close(node, NULL), IMG_E_IO);
	fault_plan_destroy(&plan);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nth_once_and_for_good), cmocka_unit_test(test_every_kind_can_fail),
		cmocka_unit_test(test_short_write),	      cmocka_unit_test(test_full_disk),
		cmocka_unit_test(test_reserved_space_stays),  cmocka_unit_test(test_close_flushes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
