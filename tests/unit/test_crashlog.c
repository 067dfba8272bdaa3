/* SPDX-License-Identifier: MIT */
/* The crash filter: what is logged, what counts as durable, and what each fate leaves on the disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "crash.h"
#include "mem.h"

static struct node *logged(struct crash_log *log, unsigned file)
{
	struct node *child, *node;

	assert_int_equal(mem_node_new("m", &child, NULL), 0);
	assert_int_equal(crash_node_new(child, log, file, &node, NULL), 0);
	return node;
}

static void test_log_and_durability(void **state)
{
	struct crash_log *log = crash_log_new();
	struct node *a = logged(log, 1), *b = logged(log, 2);
	struct crash_entry name = { .kind = CRASH_RENAME, .file = 2, .name = 9 };
	struct crash_entry sync = { .kind = CRASH_SYNC_DIR };

	(void)state;
	assert_int_equal(node_pwrite(a, "one", 3, 0, 0, NULL), 0);	  /* 0 */
	assert_int_equal(node_pwrite(b, "two", 3, 0, 0, NULL), 0);	  /* 1 */
	assert_int_equal(node_flush(a, 0, NULL), 0);			  /* 2 */
	assert_int_equal(node_zero(a, 4096, 4096, 0, NULL), 0);		  /* 3 */
	assert_int_equal(node_discard(a, 4096, 0, 0, NULL), 0);		  /* 4 */
	assert_int_equal(node_resize(b, 100, NULL), 0);			  /* 5 */
	assert_int_equal(node_allocate(b, 4096, 0, NULL), 0);		  /* 6 */
	assert_int_equal(crash_log_add(log, &name), 0);			  /* 7 */
	assert_int_equal(node_flush(b, 0, NULL), 0);			  /* 8 */
	assert_int_equal(crash_log_add(log, &sync), 0);			  /* 9 */
	assert_int_equal(node_pwrite(b, "x", 1, 0, IMG_IO_FUA, NULL), 0); /* 10, 11 */
	assert_int_equal(crash_log_nr(log), 12);
	assert_int_equal(crash_log_at(log, 0)->kind, CRASH_WRITE);
	assert_memory_equal(crash_log_at(log, 0)->data, "one", 3);
	assert_int_equal(crash_log_at(log, 3)->kind, CRASH_ZERO);
	assert_int_equal(crash_log_at(log, 5)->bytes, 100);
	assert_int_equal(crash_log_at(log, 11)->kind, CRASH_FLUSH);
	assert_true(crash_is_durable(log, 0, 3));
	assert_false(crash_is_durable(log, 0, 2)); /* the flush had not returned */
	assert_false(crash_is_durable(log, 1, 8)); /* another file's flush */
	assert_true(crash_is_durable(log, 1, 9));
	assert_false(crash_is_durable(log, 3, 12));
	assert_false(crash_is_durable(log, 7, 9));
	assert_true(crash_is_durable(log, 7, 10));
	assert_true(crash_is_volatile(crash_log_at(log, 7)));
	assert_false(crash_is_volatile(crash_log_at(log, 8)));
	node_close(a, NULL);
	node_close(b, NULL);
	crash_log_free(log);
}

/* Four sectors of 'o' on disk, four of 'n' written from the second on: what is there after this fate? One letter per
 * sector. */
static void expect(struct crash_fate fate, const char *wanted, uint64_t wanted_size)
{
	struct crash_log *log = crash_log_new();
	struct node *target, *node = logged(log, 0);
	uint8_t buf[2048];
	char got[16] = "";

	memset(buf, 'n', sizeof(buf));
	assert_int_equal(node_pwrite(node, buf, sizeof(buf), 512, 0, NULL), 0);
	assert_int_equal(mem_node_new("t", &target, NULL), 0);
	memset(buf, 'o', sizeof(buf));
	assert_int_equal(node_pwrite(target, buf, sizeof(buf), 0, 0, NULL), 0);
	assert_int_equal(crash_apply(target, crash_log_at(log, 0), &fate), 0);
	assert_int_equal(node_size(target), wanted_size);
	for (uint64_t off = 0; off < wanted_size; off += 512) {
		char c;

		assert_int_equal(node_pread(target, buf, 512, off, 0, NULL), 0);
		c = buf[0] == 0 ? '0' : (char)buf[0];
		for (int i = 1; i < 512; i++) {
			if (buf[i] != buf[0])
				c = '?';
		}
		got[off / 512] = c;
	}
	assert_string_equal(got, wanted);
	node_close(target, NULL);
	node_close(node, NULL);
	crash_log_free(log);
}

static void test_fates(void **state)
{
	(void)state;
	expect((struct crash_fate){ .kind = FATE_DROPPED }, "oooo", 2048);
	expect((struct crash_fate){ .kind = FATE_APPLIED }, "onnnn", 2560);
	expect((struct crash_fate){ .kind = FATE_PREFIX, .tear_bytes = 512, .sectors = 1 }, "onoo", 2048);
	expect((struct crash_fate){ .kind = FATE_SUFFIX, .tear_bytes = 512, .sectors = 1 }, "oonnn", 2560);
	expect((struct crash_fate){ .kind = FATE_PREFIX, .tear_bytes = 4096, .sectors = 1 }, "onnnn", 2560);
	expect((struct crash_fate){ .kind = FATE_GARBAGE, .seed = 1 }, "o????", 2560);
	expect((struct crash_fate){ .kind = FATE_LENGTH }, "oooo0", 2560);
}

static void test_torn_depends_on_the_seed_alone(void **state)
{
	struct crash_log *log = crash_log_new();
	struct node *node = logged(log, 0);
	static uint8_t buf[32768];
	uint64_t h[3][2];

	(void)state;
	memset(buf, 'n', sizeof(buf));
	assert_int_equal(node_pwrite(node, buf, sizeof(buf), 0, 0, NULL), 0);
	for (int i = 0; i < 3; i++) {
		struct crash_fate fate = { .kind = FATE_TORN, .tear_bytes = 512, .seed = i == 2 ? 8 : 7 };
		struct mem_content *content;
		struct node *target;

		assert_int_equal(mem_node_new("t", &target, NULL), 0);
		assert_int_equal(crash_apply(target, crash_log_at(log, 0), &fate), 0);
		content = mem_share_content(target);
		mem_content_hash(content, h[i]);
		mem_content_unref(content);
		node_close(target, NULL);
	}
	assert_memory_equal(h[0], h[1], sizeof(h[0]));
	assert_memory_not_equal(h[0], h[2], sizeof(h[0]));
	node_close(node, NULL);
	crash_log_free(log);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_log_and_durability),
		cmocka_unit_test(test_fates),
		cmocka_unit_test(test_torn_depends_on_the_seed_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
