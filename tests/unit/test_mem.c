/* SPDX-License-Identifier: MIT */
/* The mem protocol: sparse bytes against a flat array, clones, sharing, locks, and sizes that no memory holds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "mem.h"

static struct node *new_node(void)
{
	struct node *node = NULL;

	assert_int_equal(mem_node_new("m", &node, NULL), 0);
	return node;
}

static uint32_t rng;

static uint32_t next_random(uint32_t below)
{
	rng = rng * 1664525 + 1013904223;
	return (uint32_t)(((uint64_t)rng * below) >> 32);
}

#define MODEL_BYTES 40000u

static void check_model(struct node *node, const uint8_t *model, uint64_t size)
{
	static uint8_t in[MODEL_BYTES];

	assert_int_equal(node_size(node), size);
	if (size > 0)
		assert_int_equal(node_pread(node, in, size, 0, 0, NULL), 0);
	assert_memory_equal(in, model, (size_t)size);
}

static void test_against_flat_array(void **state)
{
	static uint8_t model[MODEL_BYTES], buf[MODEL_BYTES];
	struct node *node = new_node();
	uint64_t size = 0;

	(void)state;
	rng = 42;
	for (int i = 0; i < 4000; i++) {
		uint32_t off = next_random(MODEL_BYTES), n = next_random(MODEL_BYTES - off) + 1;
		uint64_t end = off + n;

		switch (next_random(5)) {
		case 0:
		case 1:
			memset(buf, i | 1, n);
			memcpy(model + off, buf, n);
			assert_int_equal(node_pwrite(node, buf, n, off, 0, NULL), 0);
			size = end > size ? end : size;
			break;
		case 2:
			memset(model + off, 0, n);
			assert_int_equal(node_zero(node, n, off, 0, NULL), 0);
			size = end > size ? end : size;
			break;
		case 3:
			memset(model + off, 0, off < size ? (end < size ? n : (size_t)(size - off)) : 0);
			assert_int_equal(node_discard(node, n, off, 0, NULL), 0);
			break;
		default:
			if (off < size)
				memset(model + off, 0, (size_t)(size - off));
			assert_int_equal(node_resize(node, off, NULL), 0);
			size = off;
		}
		check_model(node, model, size);
	}
	node_close(node, NULL);
}

static void test_clone_is_apart(void **state)
{
	struct node *node = new_node();
	struct mem_content *clone;
	uint64_t h1[2], h2[2], h3[2];
	struct mem_content *own;
	char buf[16];

	(void)state;
	assert_int_equal(node_pwrite(node, "before", 6, 5000, 0, NULL), 0);
	own = mem_share_content(node);
	clone = mem_snapshot(node);
	mem_content_hash(own, h1);
	assert_int_equal(node_pwrite(node, "after!", 6, 5000, 0, NULL), 0);
	mem_content_read(clone, buf, 6, 5000);
	assert_memory_equal(buf, "before", 6);
	mem_content_hash(own, h2);
	mem_content_hash(clone, h3);
	assert_memory_equal(h1, h3, sizeof(h1));
	assert_memory_not_equal(h1, h2, sizeof(h1));
	assert_int_equal(mem_restore(node, clone), 0);
	mem_content_hash(own, h2);
	assert_memory_equal(h1, h2, sizeof(h1));
	/* A page of zeros hashes like a hole; another length does not. */
	assert_int_equal(node_pwrite(node, "\0\0", 2, 0, 0, NULL), 0);
	mem_content_hash(own, h2);
	assert_memory_equal(h1, h2, sizeof(h1));
	assert_int_equal(node_resize(node, 5007, NULL), 0);
	mem_content_hash(own, h2);
	assert_memory_not_equal(h1, h2, sizeof(h1));
	mem_content_unref(clone);
	mem_content_unref(own);
	node_close(node, NULL);
}

static void test_content_outlives_its_nodes(void **state)
{
	struct host_open args = { .writable = false };
	struct node *a = new_node(), *b;
	struct mem_content *content = mem_share_content(a);
	char buf[4];

	(void)state;
	assert_int_equal(node_pwrite(a, "abc", 4, 0, 0, NULL), 0);
	node_close(a, NULL);
	assert_int_equal(mem_node_on(content, "again", &args, &b, NULL), 0);
	assert_int_equal(node_pread(b, buf, 4, 0, 0, NULL), 0);
	assert_string_equal(buf, "abc");
	assert_int_equal(node_pwrite(b, "x", 1, 0, 0, NULL), IMG_E_READONLY);
	node_close(b, NULL);
	mem_content_unref(content);
}

static void test_huge_and_sparse(void **state)
{
	const uint64_t tib = UINT64_C(1) << 40;
	struct node *node = new_node();
	struct status_extent e[4];
	struct host_stat sb;
	size_t nr;

	(void)state;
	assert_int_equal(node_resize(node, 16 * tib, NULL), 0);
	assert_int_equal(node_pwrite(node, "x", 1, 9 * tib + 4096, 0, NULL), 0);
	assert_int_equal(node_stat(node, &sb, NULL), 0);
	assert_int_equal(sb.allocated_bytes, 4096);
	assert_int_equal(node_status(node, 16 * tib, 0, e, 4, &nr, NULL), 0);
	assert_int_equal(nr, 3);
	assert_int_equal(e[0].bytes, 9 * tib + 4096);
	assert_int_equal(e[0].kind, STATUS_ZERO);
	assert_int_equal(e[1].bytes, 4096);
	assert_int_equal(e[1].kind, STATUS_DATA);
	assert_int_equal(e[2].kind, STATUS_ZERO);
	assert_int_equal(node_zero(node, 16 * tib, 0, 0, NULL), 0);
	assert_int_equal(node_stat(node, &sb, NULL), 0);
	assert_int_equal(sb.allocated_bytes, 0);
	assert_int_equal(node_resize(node, MEM_MAX_BYTES + 1, NULL), IMG_E_LIMIT);
	/* Reserved space counts like on a host, and reads as zeros. */
	assert_int_equal(node_allocate(node, 8192, tib, NULL), 0);
	assert_int_equal(node_stat(node, &sb, NULL), 0);
	assert_int_equal(sb.allocated_bytes, 8192);
	node_close(node, NULL);
}

static void test_locks_between_nodes(void **state)
{
	struct mem_content *content = mem_content_new();
	struct host_open writer = { .writable = true, .use = SHARE_WRITER_USE, .forbid = SHARE_WRITER_FORBID };
	struct host_open reader = { .use = SHARE_READER_USE, .forbid = SHARE_READER_FORBID };
	struct node *a, *b;

	(void)state;
	assert_int_equal(mem_node_on(content, "a", &writer, &a, NULL), 0);
	assert_int_equal(mem_node_on(content, "b", &reader, &b, NULL), IMG_E_BUSY);
	assert_null(b);
	node_close(a, NULL);
	assert_int_equal(mem_node_on(content, "a", &reader, &a, NULL), 0);
	assert_int_equal(mem_node_on(content, "b", &reader, &b, NULL), 0);
	assert_int_equal(node_lock_byte(a, 7, BYTE_SHARED, NULL), 0);
	assert_int_equal(node_lock_byte(b, 7, BYTE_EXCLUSIVE, NULL), IMG_E_BUSY);
	assert_int_equal(node_lock_byte(a, 7, BYTE_UNLOCK, NULL), 0);
	assert_int_equal(node_lock_byte(b, 7, BYTE_EXCLUSIVE, NULL), 0);
	assert_int_equal(node_lock_byte(a, 7, BYTE_SHARED, NULL), IMG_E_BUSY);
	node_close(b, NULL);
	assert_int_equal(node_lock_byte(a, 7, BYTE_SHARED, NULL), 0);
	node_close(a, NULL);
	mem_content_unref(content);
}

static void *write_pages(void *arg)
{
	struct node *node = arg;
	uint8_t buf[4096];

	for (unsigned i = 0; i < 2000; i++) {
		uint64_t off = (uint64_t)(i * 7919u % 1000u) * 4096;

		memset(buf, (int)(i % 200 + 1), sizeof(buf));
		assert_int_equal(node_pwrite(node, buf, sizeof(buf), off, 0, NULL), 0);
		assert_int_equal(node_pread(node, buf, sizeof(buf), off, 0, NULL), 0);
		/* Pages are whole whoever wrote them. */
		for (size_t j = 1; j < sizeof(buf); j++)
			assert_int_equal(buf[j], buf[0]);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct node *node = new_node();
	pthread_t t[3];

	(void)state;
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&t[i], NULL, write_pages, node), 0);
	for (int i = 0; i < 20; i++)
		mem_content_unref(mem_snapshot(node));
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	node_close(node, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_flat_array),	   cmocka_unit_test(test_clone_is_apart),
		cmocka_unit_test(test_content_outlives_its_nodes), cmocka_unit_test(test_huge_and_sparse),
		cmocka_unit_test(test_locks_between_nodes),	   cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
