/* SPDX-License-Identifier: MIT */
/*
 * The virtqueue against rings that a guest built by hand: each rule of virtqueue.h is broken here, alone, and a queue
 * that was fine up to then must say which rule it was and take nothing more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "virtqueue.h"

#define RAM_BYTES (UINT64_C(64) << 20)
#define SIZE	  16u
#define DESC	  UINT64_C(0x10000)
#define AVAIL	  UINT64_C(0x11000)
#define USED	  UINT64_C(0x12000)
#define TABLE	  UINT64_C(0x13000) /* an indirect one */
#define BUFFER	  UINT64_C(0x20000)

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct fixture {
	struct memory mem;
	struct virtqueue vq;
	struct virtqueue_chain chain;
	struct img_error err;
};

static void put(struct fixture *f, uint64_t gpa, const void *data, size_t bytes)
{
	memcpy(memory_at(&f->mem, gpa, bytes), data, bytes);
}

static void put16(struct fixture *f, uint64_t gpa, unsigned v)
{
	uint16_t le = (uint16_t)v;

	put(f, gpa, &le, sizeof(le));
}

static unsigned get16(struct fixture *f, uint64_t gpa)
{
	uint16_t v;

	memcpy(&v, memory_at(&f->mem, gpa, sizeof(v)), sizeof(v));
	return v;
}

static uint32_t get32(struct fixture *f, uint64_t gpa)
{
	uint32_t v;

	memcpy(&v, memory_at(&f->mem, gpa, sizeof(v)), sizeof(v));
	return v;
}

static void put_desc(struct fixture *f, uint64_t table, unsigned i, uint64_t gpa, uint32_t bytes, unsigned flags,
		     unsigned next)
{
	uint64_t at = table + i * 16u;

	put(f, at, &gpa, 8);
	put(f, at + 8, &bytes, 4);
	put16(f, at + 12, flags);
	put16(f, at + 14, next);
}

/* Offers the chain that begins at head. */
static void offer(struct fixture *f, unsigned head)
{
	unsigned idx = get16(f, AVAIL + 2);

	put16(f, AVAIL + 4 + 2 * (idx % SIZE), head);
	put16(f, AVAIL + 2, idx + 1);
}

static int setup(void **state)
{
	static struct fixture f;

	memset(&f, 0, sizeof(f));
	assert_int_equal(memory_init(&f.mem, RAM_BYTES, NULL), 0);
	virtqueue_init(&f.vq, &f.mem, 256);
	f.vq.size = SIZE;
	f.vq.desc_gpa = DESC;
	f.vq.avail_gpa = AVAIL;
	f.vq.used_gpa = USED;
	f.vq.indirect = true;
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	memory_free(&f->mem);
	return 0;
}

static void enable(struct fixture *f)
{
	assert_int_equal(virtqueue_enable(&f->vq, &f->err), 0);
	assert_true(f->vq.enabled);
}

static int pop(struct fixture *f)
{
	memset(&f->err, 0, sizeof(f->err));
	memset(&f->chain, 0xee, sizeof(f->chain));
	return virtqueue_pop(&f->vq, &f->chain, &f->err);
}

static void assert_broken(struct fixture *f, const char *rule)
{
	assert_int_equal(pop(f), IMG_E_INVALID);
	if (strncmp(f->err.msg, rule, strlen(rule)) != 0)
		fail_msg("expected %s, got: %s", rule, f->err.msg);
	assert_true(f->vq.broken);
	assert_int_equal(pop(f), 0);
	assert_false(virtqueue_enable_kick(&f->vq, true));
}

static void assert_not_enabled(struct fixture *f, const char *rule)
{
	memset(&f->err, 0, sizeof(f->err));
	assert_int_equal(virtqueue_enable(&f->vq, &f->err), IMG_E_INVALID);
	if (strncmp(f->err.msg, rule, strlen(rule)) != 0)
		fail_msg("expected %s, got: %s", rule, f->err.msg);
	assert_false(f->vq.enabled);
	assert_int_equal(pop(f), 0);
}

/* ---- enabling ---- */

static void vq_1_size(void **state)
{
	static const uint16_t bad[] = { 0, 3, 15, 512, 0x8000, 0xffff };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		f->vq.size = bad[i];
		assert_not_enabled(f, "VQ-1");
	}
	f->vq.size = 256;
	enable(f);
}

static void vq_2_alignment(void **state)
{
	struct fixture *f = *state;

	f->vq.desc_gpa = DESC + 8;
	assert_not_enabled(f, "VQ-2");
	f->vq.desc_gpa = DESC;
	f->vq.avail_gpa = AVAIL + 1;
	assert_not_enabled(f, "VQ-2");
	f->vq.avail_gpa = AVAIL + 2;
	f->vq.used_gpa = USED + 2;
	assert_not_enabled(f, "VQ-2");
	f->vq.used_gpa = USED + 4;
	enable(f);
}

static void vq_2_in_ram(void **state)
{
	/* the last that fits below the hole of the VGA, in bytes of each area */
	const uint64_t desc_bytes = SIZE * 16, avail_bytes = 6 + SIZE * 2, used_bytes = 6 + SIZE * 8;
	const uint64_t bad[] = { MEMORY_VGA_START, RAM_BYTES, UINT64_MAX & ~UINT64_C(0xf), UINT64_C(1) << 63 };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		f->vq.desc_gpa = bad[i];
		assert_not_enabled(f, "VQ-2");
		f->vq.desc_gpa = DESC;
		f->vq.avail_gpa = bad[i];
		assert_not_enabled(f, "VQ-2");
		f->vq.avail_gpa = AVAIL;
		f->vq.used_gpa = bad[i];
		assert_not_enabled(f, "VQ-2");
		f->vq.used_gpa = USED;
	}
	f->vq.desc_gpa = MEMORY_VGA_START - desc_bytes + 16;
	assert_not_enabled(f, "VQ-2");
	f->vq.desc_gpa -= 16;
	f->vq.avail_gpa = RAM_BYTES - avail_bytes + 2;
	assert_not_enabled(f, "VQ-2");
	f->vq.avail_gpa -= 2;
	f->vq.used_gpa = ((MEMORY_VGA_START - desc_bytes - used_bytes) & ~UINT64_C(3)) + desc_bytes + 4;
	assert_not_enabled(f, "VQ-2");
	f->vq.used_gpa -= 4;
	enable(f);
}

static void vq_3_frozen(void **state)
{
	struct fixture *f = *state;

	enable(f);
	f->vq.desc_gpa = f->vq.avail_gpa = f->vq.used_gpa = UINT64_MAX;
	put_desc(f, DESC, 0, BUFFER, 8, 0, 0);
	offer(f, 0);
	assert_int_equal(virtqueue_enable(&f->vq, NULL), 0);
	assert_int_equal(pop(f), 1);
	assert_ptr_equal(f->chain.iov[0].iov_base, memory_at(&f->mem, BUFFER, 8));
}

/* ---- taking ---- */

static void vq_4_avail_index(void **state)
{
	struct fixture *f = *state;

	enable(f);
	assert_int_equal(pop(f), 0);
	put_desc(f, DESC, 0, BUFFER, 8, 0, 0);
	put16(f, AVAIL + 2, SIZE);
	assert_int_equal(pop(f), 1);
	/* one was taken, so that one more is allowed, but not two */
	put16(f, AVAIL + 2, SIZE + 1);
	assert_int_equal(pop(f), 1);
	put16(f, AVAIL + 2, SIZE + 3);
	assert_broken(f, "VQ-4");
}

static void vq_4_goes_back(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 0, BUFFER, 8, 0, 0);
	offer(f, 0);
	assert_int_equal(pop(f), 1);
	put16(f, AVAIL + 2, 0);
	assert_broken(f, "VQ-4");
}

static void index_wraps(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 3, BUFFER, 8, 0, 0);
	for (unsigned i = 0; i < 70000; i++) {
		offer(f, 3);
		assert_int_equal(pop(f), 1);
		assert_int_equal(f->chain.head, 3);
		virtqueue_push(&f->vq, &f->chain, 0);
	}
	assert_int_equal(get16(f, USED + 2), 70000 % 65536);
	assert_int_equal(pop(f), 0);
}

static void vq_5_indices(void **state)
{
	struct fixture *f = *state;

	enable(f);
	offer(f, SIZE);
	assert_broken(f, "VQ-5");
	f->vq.broken = false;
	put16(f, AVAIL + 4, 0xffff);
	assert_broken(f, "VQ-5");
	f->vq.broken = false;
	put16(f, AVAIL + 4, 0);
	put_desc(f, DESC, 0, BUFFER, 8, NEXT, SIZE);
	assert_broken(f, "VQ-5");
}

static void vq_5_endless(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 0, BUFFER, 8, NEXT, 1);
	put_desc(f, DESC, 1, BUFFER, 8, NEXT, 0);
	offer(f, 0);
	assert_broken(f, "VQ-5");
	/* pieces without a byte do not hide the loop */
	f->vq.broken = false;
	put_desc(f, DESC, 0, BUFFER, 0, NEXT, 0);
	assert_broken(f, "VQ-5");
}

static void vq_5_longest(void **state)
{
	struct fixture *f = *state;

	f->vq.size = 256;
	enable(f);
	for (unsigned i = 0; i < VIRTQUEUE_MAX_CHAIN; i++)
		put_desc(f, DESC, i, BUFFER + i, 1, i + 1 < VIRTQUEUE_MAX_CHAIN ? NEXT : 0, i + 1);
	offer(f, 0);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->chain.nr_out, VIRTQUEUE_MAX_CHAIN);
	put_desc(f, DESC, VIRTQUEUE_MAX_CHAIN - 1, BUFFER, 1, NEXT, VIRTQUEUE_MAX_CHAIN);
	put_desc(f, DESC, VIRTQUEUE_MAX_CHAIN, BUFFER, 1, 0, 0);
	offer(f, 0);
	assert_broken(f, "VQ-5");
}

static void indirect(void **state)
{
	struct fixture *f = *state;

	enable(f);
	/* a direct piece before it, the WRITE flag, and an odd address: all allowed */
	put_desc(f, DESC, 0, BUFFER, 4, NEXT, 1);
	put_desc(f, DESC, 1, TABLE + 1, 48, INDIRECT | WRITE, 0);
	put_desc(f, TABLE + 1, 0, BUFFER + 16, 5, NEXT, 2);
	put_desc(f, TABLE + 1, 2, BUFFER + 32, 6, NEXT | WRITE, 1);
	put_desc(f, TABLE + 1, 1, BUFFER + 48, 7, WRITE, 0);
	offer(f, 0);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->chain.nr_out, 2);
	assert_int_equal(f->chain.nr_in, 2);
	assert_int_equal(f->chain.out_bytes, 9);
	assert_int_equal(f->chain.in_bytes, 13);
	assert_ptr_equal(f->chain.iov[1].iov_base, memory_at(&f->mem, BUFFER + 16, 5));
	assert_int_equal(f->chain.iov[3].iov_len, 7);
}

static void vq_6_indirect(void **state)
{
	static const struct {
		uint64_t gpa;
		uint32_t bytes;
		unsigned flags;
		bool refused_feature;
	} bad[] = {
		{ TABLE, 16, INDIRECT, true },
		{ TABLE, 16, INDIRECT | NEXT, false },
		{ TABLE, 0, INDIRECT, false },
		{ TABLE, 17, INDIRECT, false },
		{ TABLE, 8, INDIRECT, false },
		{ TABLE, 16 * (VIRTQUEUE_MAX_CHAIN + 1), INDIRECT, false },
		{ TABLE, 0xfffffff0u, INDIRECT, false },
		{ MEMORY_VGA_START - 16, 32, INDIRECT, false },
		{ UINT64_MAX - 15, 32, INDIRECT, false },
		{ RAM_BYTES, 16, INDIRECT, false },
	};
	struct fixture *f = *state;

	enable(f);
	put_desc(f, TABLE, 0, BUFFER, 8, 0, 0);
	offer(f, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		put_desc(f, DESC, 0, bad[i].gpa, bad[i].bytes, bad[i].flags, 1);
		f->vq.indirect = !bad[i].refused_feature;
		f->vq.broken = false;
		assert_broken(f, "VQ-6");
	}
	/* nested, at the first place and at the second */
	put_desc(f, DESC, 0, TABLE, 32, INDIRECT, 0);
	put_desc(f, TABLE, 0, TABLE, 16, INDIRECT, 0);
	f->vq.broken = false;
	assert_broken(f, "VQ-6");
	put_desc(f, TABLE, 0, BUFFER, 8, NEXT, 1);
	put_desc(f, TABLE, 1, TABLE, 16, INDIRECT, 0);
	f->vq.broken = false;
	assert_broken(f, "VQ-6");
}

static void vq_6_indices(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 0, TABLE, 32, INDIRECT, 0);
	put_desc(f, TABLE, 0, BUFFER, 8, NEXT, 2);
	offer(f, 0);
	assert_broken(f, "VQ-5");
	put_desc(f, TABLE, 0, BUFFER, 8, NEXT, 1);
	put_desc(f, TABLE, 1, BUFFER, 8, NEXT, 0);
	f->vq.broken = false;
	assert_broken(f, "VQ-5");
}

static void vq_7_order(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 0, BUFFER, 8, WRITE | NEXT, 1);
	put_desc(f, DESC, 1, BUFFER, 8, 0, 0);
	offer(f, 0);
	assert_broken(f, "VQ-7");
	/* across the border of a table, too */
	put_desc(f, DESC, 1, TABLE, 16, INDIRECT, 0);
	put_desc(f, TABLE, 0, BUFFER, 8, 0, 0);
	f->vq.broken = false;
	assert_broken(f, "VQ-7");
}

static void vq_8_buffers(void **state)
{
	static const struct {
		uint64_t gpa;
		uint32_t bytes;
	} bad[] = {
		{ MEMORY_VGA_START - 1, 2 },
		{ MEMORY_VGA_START, 1 },
		{ MEMORY_VGA_END - 1, 2 },
		{ RAM_BYTES - 1, 2 },
		{ RAM_BYTES, 1 },
		{ UINT64_MAX, 1 },
		{ UINT64_MAX - 7, 16 },
		{ 0, UINT32_MAX },
		{ BUFFER, UINT32_MAX },
		{ MEMORY_HIGH, 1 },
		{ UINT64_C(1) << 63, 0x1000 },
	};
	struct fixture *f = *state;

	enable(f);
	offer(f, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		put_desc(f, DESC, 0, bad[i].gpa, bad[i].bytes, i % 2 ? WRITE : 0, 0);
		f->vq.broken = false;
		assert_broken(f, "VQ-8");
	}
	put_desc(f, DESC, 0, RAM_BYTES - 1, 1, 0, 0);
	f->vq.broken = false;
	assert_int_equal(pop(f), 1);
}

static void vq_8_sum(void **state)
{
	const uint32_t piece = 48u << 20;
	struct fixture *f = *state;
	unsigned nr = 90; /* of 48 MiB: 4320 MiB */

	f->vq.size = 256;
	enable(f);
	for (unsigned i = 0; i < nr; i++)
		put_desc(f, DESC, i, UINT64_C(1) << 20, piece, i + 1 < nr ? NEXT | WRITE : WRITE, i + 1);
	offer(f, 0);
	assert_broken(f, "VQ-8");
	put_desc(f, DESC, 84, UINT64_C(1) << 20, piece, WRITE, 0);
	f->vq.broken = false;
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->chain.in_bytes, UINT64_C(85) * piece);
}

static void empty_pieces(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 0, UINT64_MAX, 0, NEXT, 1);
	put_desc(f, DESC, 1, BUFFER, 4, NEXT, 2);
	put_desc(f, DESC, 2, 0, 0, WRITE, 0);
	offer(f, 0);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->chain.nr_out, 1);
	assert_int_equal(f->chain.nr_in, 0);
}

static void taken_again(void **state)
{
	struct fixture *f = *state;

	enable(f);
	put_desc(f, DESC, 5, BUFFER, 4, 0, 0);
	offer(f, 5);
	assert_int_equal(pop(f), 1);
	assert_int_equal(pop(f), 0);
	virtqueue_unpop(&f->vq);
	assert_int_equal(pop(f), 1);
	assert_int_equal(f->chain.head, 5);
}

/* ---- a ring that changes under the reader ---- */

struct flipper {
	uint64_t *desc; /* two words a descriptor */
	uint16_t *idx;
	atomic_bool stop;
};

static void *flip(void *arg)
{
	struct flipper *fl = arg;
	const uint64_t words[][2] = {
		{ BUFFER, 16 | (uint64_t)NEXT << 32 | (uint64_t)1 << 48 },
		{ UINT64_MAX, 0xffffffff | (uint64_t)NEXT << 32 | (uint64_t)1 << 48 },
		{ RAM_BYTES - 4, 4 | (uint64_t)(NEXT | WRITE) << 32 | (uint64_t)0xffff << 48 },
		{ TABLE, 32 | (uint64_t)INDIRECT << 32 },
		{ MEMORY_VGA_START - 8, 16 },
		{ BUFFER, 4096 },
	};
	unsigned i = 0;

	while (!atomic_load(&fl->stop)) {
		for (unsigned d = 0; d < 2; d++) {
			const uint64_t *w = words[(i * 7 + d * 5 + i / 11) % 6];

			__atomic_store_n(&fl->desc[2 * d], w[0], __ATOMIC_RELAXED);
			__atomic_store_n(&fl->desc[2 * d + 1], w[1], __ATOMIC_RELAXED);
		}
		__atomic_store_n(fl->idx, (uint16_t)(i % 64 == 0 ? 0x5555 : 1), __ATOMIC_RELAXED);
		i++;
	}
	return NULL;
}

static bool in_ram(struct fixture *f, const struct iovec *iov)
{
	const uint8_t *p = iov->iov_base;
	uint64_t at = (uint64_t)(p - f->mem.base);

	return p >= f->mem.base && at < RAM_BYTES && iov->iov_len <= RAM_BYTES - at;
}

static void vq_9_changes(void **state)
{
	struct fixture *f = *state;
	struct flipper fl = { .desc = memory_at(&f->mem, DESC, 32), .idx = memory_at(&f->mem, AVAIL + 2, 2) };
	unsigned popped = 0, broken = 0;
	pthread_t thread;

	put_desc(f, TABLE, 0, BUFFER, 8, NEXT, 1);
	put_desc(f, TABLE, 1, BUFFER + 8, 8, WRITE, 0);
	enable(f);
	assert_int_equal(pthread_create(&thread, NULL, flip, &fl), 0);
	for (unsigned i = 0; i < 20000000 && (i < 200000 || !popped || !broken); i++) {
		int got = pop(f);
		uint64_t bytes = 0;

		if (got == 1) {
			for (unsigned p = 0; p < f->chain.nr_out + f->chain.nr_in; p++) {
				assert_true(in_ram(f, &f->chain.iov[p]));
				bytes += f->chain.iov[p].iov_len;
			}
			assert_int_equal(bytes, f->chain.out_bytes + f->chain.in_bytes);
			popped++;
		}
		broken += got < 0;
		f->vq.broken = false;
		f->vq.taken = 0;
	}
	atomic_store(&fl.stop, true);
	pthread_join(thread, NULL);
	assert_true(popped > 0 && broken > 0);
}

/* ---- giving back ---- */

static void vq_10_used(void **state)
{
	uint64_t dirty[RAM_BYTES / MEMORY_PAGE / 64] = { 0 };
	struct fixture *f = *state;

	assert_int_equal(memory_track(&f->mem, NULL), 0);
	enable(f);
	put_desc(f, DESC, 7, BUFFER, 8, NEXT, 8);
	put_desc(f, DESC, 8, BUFFER + 0x1ffc, 8, WRITE | NEXT, 9);
	put_desc(f, DESC, 9, BUFFER + 0x8000, 8, WRITE, 0);
	offer(f, 7);
	assert_int_equal(pop(f), 1);
	virtqueue_push(&f->vq, &f->chain, 7);
	assert_int_equal(get16(f, USED + 2), 1);
	assert_int_equal(get32(f, USED + 4), 7);
	assert_int_equal(get32(f, USED + 8), 7);
	memory_take_dirty(&f->mem, 0, dirty, sizeof(dirty) / sizeof(dirty[0]));
	/* the pages that 7 bytes of the first writable piece lie in, and that of the used ring: nothing else */
	for (uint64_t page = 0; page < RAM_BYTES / MEMORY_PAGE; page++) {
		bool wrote = page == (BUFFER + 0x1ffc) / MEMORY_PAGE || page == (BUFFER + 0x2000) / MEMORY_PAGE ||
			     page == USED / MEMORY_PAGE;

		assert_int_equal(dirty[page / 64] >> (page % 64) & 1, wrote);
	}
	/* what the guest makes of the used index does not matter */
	put16(f, USED + 2, 0x7777);
	offer(f, 7);
	assert_int_equal(pop(f), 1);
	virtqueue_push(&f->vq, &f->chain, 0);
	assert_int_equal(get16(f, USED + 2), 2);
}

static void copies(void **state)
{
	uint64_t dirty[RAM_BYTES / MEMORY_PAGE / 64] = { 0 };
	struct fixture *f = *state;
	char buf[32] = { 0 };

	assert_int_equal(memory_track(&f->mem, NULL), 0);
	enable(f);
	put(f, BUFFER, "abcdef", 6);
	put_desc(f, DESC, 0, BUFFER, 2, NEXT, 1);
	put_desc(f, DESC, 1, BUFFER + 2, 3, NEXT, 2);
	put_desc(f, DESC, 2, BUFFER + 0x1000, 3, WRITE | NEXT, 3);
	put_desc(f, DESC, 3, BUFFER + 0x2000, 2, WRITE, 0);
	offer(f, 0);
	assert_int_equal(pop(f), 1);
	assert_int_equal(virtqueue_copy_out(&f->chain, 0, buf, sizeof(buf)), 5);
	assert_string_equal(buf, "abcde");
	memset(buf, 0, sizeof(buf));
	assert_int_equal(virtqueue_copy_out(&f->chain, 1, buf, 3), 3);
	assert_string_equal(buf, "bcd");
	assert_int_equal(virtqueue_copy_out(&f->chain, 5, buf, 3), 0);
	assert_int_equal(virtqueue_copy_out(&f->chain, UINT64_MAX, buf, 3), 0);
	assert_int_equal(virtqueue_copy_in(&f->chain, 2, "wxyz", 4), 3);
	assert_memory_equal(memory_at(&f->mem, BUFFER + 0x1000, 4), "\0\0w", 4);
	assert_memory_equal(memory_at(&f->mem, BUFFER + 0x2000, 3), "xy", 3);
	memory_take_dirty(&f->mem, 0, dirty, sizeof(dirty) / sizeof(dirty[0]));
	assert_int_equal(dirty[(BUFFER >> 12) / 64] >> ((BUFFER >> 12) % 64), 6);
}

static void complete_one(struct fixture *f)
{
	put_desc(f, DESC, 0, BUFFER, 8, 0, 0);
	offer(f, 0);
	assert_int_equal(pop(f), 1);
	virtqueue_push(&f->vq, &f->chain, 0);
}

static void interrupts_by_flag(void **state)
{
	struct fixture *f = *state;

	assert_false(virtqueue_wants_irq(&f->vq));
	enable(f);
	assert_false(virtqueue_wants_irq(&f->vq));
	complete_one(f);
	assert_true(virtqueue_wants_irq(&f->vq));
	assert_false(virtqueue_wants_irq(&f->vq));
	put16(f, AVAIL, 1);
	complete_one(f);
	assert_false(virtqueue_wants_irq(&f->vq));
	put16(f, AVAIL, 0);
	complete_one(f);
	assert_true(virtqueue_wants_irq(&f->vq));
}

static void interrupts_by_event(void **state)
{
	struct fixture *f = *state;
	const uint64_t used_event = AVAIL + 4 + 2 * SIZE;

	f->vq.event_idx = true;
	enable(f);
	/* flags mean nothing here (2.7.7.1) */
	put16(f, AVAIL, 1);
	complete_one(f);
	assert_true(virtqueue_wants_irq(&f->vq));
	/* after the element of index 2, the third */
	put16(f, used_event, 2);
	complete_one(f);
	assert_false(virtqueue_wants_irq(&f->vq));
	complete_one(f);
	assert_true(virtqueue_wants_irq(&f->vq));
	complete_one(f);
	assert_false(virtqueue_wants_irq(&f->vq));
	/* several at once that pass it, over the end of the counter */
	while (f->vq.used_idx != 0xfffe) {
		complete_one(f);
		virtqueue_wants_irq(&f->vq);
	}
	put16(f, used_event, 0xffff);
	complete_one(f);
	assert_false(virtqueue_wants_irq(&f->vq));
	complete_one(f);
	complete_one(f);
	assert_true(virtqueue_wants_irq(&f->vq));
}

static void kicks(void **state)
{
	struct fixture *f = *state;

	assert_false(virtqueue_enable_kick(&f->vq, true));
	enable(f);
	assert_false(virtqueue_enable_kick(&f->vq, false));
	assert_int_equal(get16(f, USED), 1);
	put_desc(f, DESC, 0, BUFFER, 8, 0, 0);
	offer(f, 0);
	/* what came while kicks were off is not lost */
	assert_true(virtqueue_enable_kick(&f->vq, true));
	assert_int_equal(get16(f, USED), 0);
	virtqueue_reset(&f->vq);
	assert_false(f->vq.enabled);
	assert_int_equal(f->vq.size, 256);
}

static void kicks_by_event(void **state)
{
	const uint64_t avail_event = USED + 4 + 8 * SIZE;
	struct fixture *f = *state;

	f->vq.event_idx = true;
	enable(f);
	virtqueue_enable_kick(&f->vq, false);
	assert_int_equal(get16(f, USED), 0);
	complete_one(f);
	complete_one(f);
	assert_int_equal(get16(f, avail_event), 0);
	assert_false(virtqueue_enable_kick(&f->vq, true));
	assert_int_equal(get16(f, avail_event), 2);
}

/* ---- saved state ---- */

static struct state_reader saved(struct fixture *f, uint8_t buf[VIRTQUEUE_STATE_BYTES])
{
	struct state_writer w;
	uint8_t all[256];

	state_start(&w, all, sizeof(all));
	state_begin(&w, STATE_TAG('T', 'E', 'S', 'T'), 0, 1);
	size_t from = w.used;
	virtqueue_save(&f->vq, &w);
	assert_int_equal(w.used - from, VIRTQUEUE_STATE_BYTES);
	memcpy(buf, all + from, VIRTQUEUE_STATE_BYTES);
	return (struct state_reader){ .at = buf, .end = buf + VIRTQUEUE_STATE_BYTES };
}

static void save_and_load(void **state)
{
	uint8_t buf[VIRTQUEUE_STATE_BYTES];
	struct fixture *f = *state;
	struct state_reader r;
	struct virtqueue vq;

	enable(f);
	complete_one(f);
	complete_one(f);
	virtqueue_wants_irq(&f->vq);
	r = saved(f, buf);
	virtqueue_init(&vq, &f->mem, 256);
	vq.indirect = true;
	assert_int_equal(virtqueue_load(&vq, &r, NULL), 0);
	assert_int_equal(state_left(&r), 0);
	assert_memory_equal(&vq, &f->vq, sizeof(vq));
	offer(f, 0);
	assert_int_equal(virtqueue_pop(&vq, &f->chain, NULL), 1);
}

static void load_refuses(void **state)
{
	/* byte of the saved queue, and what is put there */
	static const uint8_t bad[][2] = {
		{ 0, 15 }, { 1, 0x80 }, { 2, 5 },  { 3, 2 },  { 4, 8 },	 { 11, 0x80 },
		{ 12, 1 }, { 20, 2 },	{ 28, 9 }, { 34, 1 }, { 39, 1 },
	};
	uint8_t buf[VIRTQUEUE_STATE_BYTES];
	struct fixture *f = *state;
	struct state_reader r;
	struct virtqueue vq, before;

	enable(f);
	complete_one(f);
	virtqueue_init(&vq, &f->mem, 256);
	before = vq;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		r = saved(f, buf);
		buf[bad[i][0]] = bad[i][1];
		assert_int_equal(virtqueue_load(&vq, &r, NULL), IMG_E_CORRUPT);
		assert_memory_equal(&vq, &before, sizeof(vq));
	}
	for (size_t cut = 0; cut < VIRTQUEUE_STATE_BYTES; cut++) {
		r = saved(f, buf);
		r.end = buf + cut;
		assert_int_equal(virtqueue_load(&vq, &r, NULL), IMG_E_CORRUPT);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	static const struct CMUnitTest tests[] = {
		TEST(vq_1_size),
		TEST(vq_2_alignment),
		TEST(vq_2_in_ram),
		TEST(vq_3_frozen),
		TEST(vq_4_avail_index),
		TEST(vq_4_goes_back),
		TEST(index_wraps),
		TEST(vq_5_indices),
		TEST(vq_5_endless),
		TEST(vq_5_longest),
		TEST(indirect),
		TEST(vq_6_indirect),
		TEST(vq_6_indices),
		TEST(vq_7_order),
		TEST(vq_8_buffers),
		TEST(vq_8_sum),
		TEST(empty_pieces),
		TEST(taken_again),
		TEST(vq_9_changes),
		TEST(vq_10_used),
		TEST(copies),
		TEST(interrupts_by_flag),
		TEST(interrupts_by_event),
		TEST(kicks),
		TEST(kicks_by_event),
		TEST(save_and_load),
		TEST(load_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
