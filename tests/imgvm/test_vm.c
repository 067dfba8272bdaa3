/* SPDX-License-Identifier: MIT */
/* Processors on the host's /dev/kvm: accesses, pause, reset, errors, the dirty log. */
#include <sys/eventfd.h>

#include "vm_rig.h"

static void assert_access(const struct access *a, unsigned region, bool write, uint64_t off, unsigned bytes,
			  uint64_t value)
{
	assert_int_equal(a->region, region);
	assert_int_equal(a->write, write);
	assert_int_equal(a->off, off);
	assert_int_equal(a->bytes, bytes);
	assert_int_equal(a->value, value);
}

static void test_accesses(void **unused)
{
	static const uint8_t code[] = {
		PREPARE, 0xba, 0x02, 0x05,				 /* mov dx,0x502 */
		0xb8,	 0x34, 0x12, 0xef,				 /* mov ax,0x1234; out dx,ax */
		0xed,	 0xa3, 0x00, 0x20,				 /* in ax,dx; mov [0x2000],ax */
		0xfc,	 0xbe, 0x00, 0x30, 0xb9, 0x04, 0x00,		 /* cld; mov si,0x3000; mov cx,4 */
		0xf3,	 0x6e,						 /* rep outsb */
		0xbf,	 0x00, 0x40, 0xb9, 0x03, 0x00,			 /* mov di,0x4000; mov cx,3 */
		0xf3,	 0x6d,						 /* rep insw */
		0xb8,	 0x00, 0xb8, 0x8e, 0xd8,			 /* mov ax,0xb800; mov ds,ax */
		0xc7,	 0x06, 0x00, 0x00, 0xef, 0xbe,			 /* mov word [0],0xbeef */
		0xa1,	 0x06, 0x00,					 /* mov ax,[6] */
		0x26,	 0xa3, 0x04, 0x20,				 /* mov es:[0x2004],ax */
		0x66,	 0xc7, 0x06, 0xff, 0x0f, 0x44, 0x33, 0x22, 0x11, /* mov dword [0xfff],0x11223344 */
		0xe4,	 0x77,						 /* in al,0x77: nobody's */
		DONE,
	};
	const uint64_t vga = 0xb8000 - MMIO_START;
	struct rig *rig = rig_open(code, sizeof(code), 1);
	const struct access *a;

	(void)unused;
	memcpy(rig->mem.base + 0x3000, "abcd", 4);
	atomic_store(&rig->probe->last, 0xcafe);
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->nr_done));
	vm_pause(rig->vm); /* it is halted in the kernel */
	assert_int_equal(atomic_load(&rig->probe->done_value), 0xff);
	assert_int_equal(peek(rig, 0x2000) & 0xffff, 0xcafe);
	assert_int_equal(peek(rig, 0x2004) & 0xffff, (0x5a00 + vga + 6) & 0xffff);
	assert_int_equal(peek(rig, 0x4000), 0xcafecafe);
	assert_int_equal(peek(rig, 0x4004), 0xcafe);
	a = rig->probe->log;
	assert_access(a++, REGION_PORTS, true, 2, 2, 0x1234);
	assert_access(a++, REGION_PORTS, false, 2, 2, 0xcafe);
	for (unsigned i = 0; i < 4; i++)
		assert_access(a++, REGION_PORTS, true, 2, 1, 'a' + i);
	for (unsigned i = 0; i < 3; i++)
		assert_access(a++, REGION_PORTS, false, 2, 2, 0xcafe);
	assert_access(a++, REGION_MMIO, true, vga, 2, 0xbeef);
	assert_access(a++, REGION_MMIO, false, vga + 6, 2, 0x5a00 + vga + 6);
	/* across a page: a byte, and three that no device takes at once */
	for (unsigned i = 0; i < 4; i++)
		assert_access(a++, REGION_MMIO, true, vga + 0xfff + i, 1, 0x44 - 0x11 * i);
	assert_access(a++, REGION_PORTS, true, 15, 1, 0xff);
	assert_int_equal(rig->probe->nr_log, (unsigned)(a - rig->probe->log));
	rig_close(rig);
}

static void test_pause_a_thousand_times(void **unused)
{
	struct rig *rig = rig_open(count_code, sizeof(count_code), 1);
	uint32_t start;
	unsigned moved = 0;

	(void)unused;
	vm_pause(rig->vm); /* before it ever ran */
	for (unsigned i = 0; i < 1000; i++) {
		uint32_t before, counted;

		start = atomic_load(&rig->probe->last);
		vm_resume(rig->vm);
		if (i % 16 == 0)
			usleep(i);
		vm_pause(rig->vm);
		before = atomic_load(&rig->probe->last);
		counted = peek(rig, COUNTER);
		moved += before != start;
		if (i % 100 == 0) {
			usleep(1000);
			assert_int_equal(atomic_load(&rig->probe->last), before);
			assert_int_equal(peek(rig, COUNTER), counted);
		}
	}
	check_count(rig);
	assert_true(moved > 10);
	start = atomic_load(&rig->probe->last);
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->last) > start + 100);
	rig_close(rig); /* while it runs */
}

static void test_reset(void **unused)
{
	struct rig *rig = rig_open(count_code, sizeof(count_code), 1);
	struct boot_regs regs = { 0 };
	struct img_error err = { 0 };

	(void)unused;
	for (unsigned i = 0; i < 5; i++) {
		vm_resume(rig->vm);
		wait_for(rig, atomic_load(&rig->probe->last) > 20);
		vm_pause(rig->vm);
		check_count(rig);
		/* the code counts from what it finds in memory */
		memset(rig->mem.base + COUNTER, 0, 4);
		atomic_store(&rig->probe->last, 0);
		assert_int_equal(vm_reset(rig->vm, &regs, &err), 0);
	}
	rig_close(rig);
}

/* The bits of `words`, without those of `expect`; all of `expect` must be there. */
static unsigned extra_bits(const uint64_t *words, const uint64_t *expect, size_t nr)
{
	unsigned extra = 0;

	for (size_t i = 0; i < nr; i++) {
		assert_true((words[i] & expect[i]) == expect[i]);
		extra += (unsigned)__builtin_popcountll(words[i] & ~expect[i]);
	}
	return extra;
}

static void test_dirty_log(void **unused)
{
	/* the port gives a segment: a byte there, and one above the hole; then another segment */
	static const uint8_t code[] = {
		PREPARE, 0xba, 0x00, 0x05,	 /* 1: mov dx,COUNT_PORT */
		0xed,				 /* in ax,dx */
		0x89,	 0xc3,			 /* mov bx,ax */
		0x8e,	 0xd8,			 /* mov ds,ax */
		0xfe,	 0x06, 0x00, 0x00,	 /* inc byte [0] */
		0xb8,	 0x00, 0xd1, 0x8e, 0xd8, /* mov ax,0xd100; mov ds,ax */
		0xfe,	 0x06, 0x00, 0x00,	 /* inc byte [0] */
		0xba,	 0x0f, 0x05, 0xee,	 /* mov dx,DONE_PORT; out dx,al */
		0xba,	 0x00, 0x05,		 /* mov dx,COUNT_PORT */
		0xed,	 0x39, 0xd8, 0x74, 0xfb, /* 2: in ax,dx; cmp ax,bx; je 2b */
		0xeb,	 0xdd,			 /* jmp 1b */
	};
	enum { WORDS = RAM_BYTES / MEMORY_PAGE / 64 };
	struct rig *rig = rig_open(code, sizeof(code), 1);
	uint64_t words[WORDS] = { 0 };
	static const uint64_t none[WORDS];
	struct img_error err = { 0 };

	(void)unused;
	assert_int_equal(vm_take_dirty(rig->vm, words, NULL), IMG_E_INVALID);
	assert_int_equal(vm_track(rig->vm, true, &err), 0);
	assert_int_equal(vm_take_dirty(rig->vm, words, &err), 0);
	assert_memory_equal(words, none, sizeof(words));
	for (unsigned page = 1; page < 0x90; page += 0x11) {
		unsigned done = atomic_load(&rig->probe->nr_done);
		uint64_t expect[WORDS] = { 0 };

		atomic_store(&rig->probe->last, page << 8);
		vm_resume(rig->vm);
		wait_for(rig, atomic_load(&rig->probe->nr_done) > done);
		/* also while it runs; what was there is kept */
		memset(words, 0, sizeof(words));
		words[7] = expect[7] = 1;
		assert_int_equal(vm_take_dirty(rig->vm, words, &err), 0);
		vm_pause(rig->vm);
		assert_int_equal(vm_take_dirty(rig->vm, words, &err), 0);
		assert_int_equal(rig->mem.base[page << 12], 1);
		expect[page / 64] |= UINT64_C(1) << page % 64;
		expect[0xd1 / 64] |= UINT64_C(1) << 0xd1 % 64;
		/* KVM may say a little more than what was written (here and there page 0), never less */
		assert_in_range(extra_bits(words, expect, WORDS), 0, 2);
		memset(words, 0, sizeof(words));
		assert_int_equal(vm_take_dirty(rig->vm, words, &err), 0);
		assert_memory_equal(words, none, sizeof(words));
	}
	/* forgotten: not in the next answer */
	atomic_store(&rig->probe->last, 0x9500);
	vm_resume(rig->vm);
	wait_for(rig, rig->mem.base[0x95000] == 1);
	vm_pause(rig->vm);
	assert_int_equal(vm_forget_dirty(rig->vm, &err), 0);
	assert_int_equal(vm_take_dirty(rig->vm, words, &err), 0);
	assert_memory_equal(words, none, sizeof(words));
	assert_int_equal(vm_track(rig->vm, false, &err), 0);
	assert_int_equal(vm_forget_dirty(rig->vm, &err), 0);
	rig_close(rig);
}

/* 64-bit code as a kernel finds the machine: flat segments, paging by tables of ours. */
static struct rig *open_long_mode(const uint8_t *code, size_t bytes)
{
	static const uint64_t gdt[] = {
		0, 0, UINT64_C(0x00af9b000000ffff), UINT64_C(0x00cf93000000ffff), UINT64_C(0x00008b0000000067), 0
	};
	static const uint64_t pml4 = 0x11000 | 3, pdpt = 0x12000 | 3, pd = 0x83;
	struct boot_regs regs = { .long_mode = true,
				  .rip = 0x14000,
				  .rsi = UINT64_C(0x123456789abcdef0),
				  .cr3 = 0x10000,
				  .gdt_gpa = 0x13000,
				  .gdt_bytes = sizeof(gdt) };
	struct rig *rig = rig_open(code, bytes, 1);
	struct img_error err = { 0 };

	memcpy(rig->mem.base + 0x10000, &pml4, 8);
	memcpy(rig->mem.base + 0x11000, &pdpt, 8);
	memcpy(rig->mem.base + 0x12000, &pd, 8);
	memcpy(rig->mem.base + 0x13000, gdt, sizeof(gdt));
	memcpy(rig->mem.base + 0x14000, code, bytes);
	assert_int_equal(vm_reset(rig->vm, &regs, &err), 0);
	return rig;
}

static void test_long_mode(void **unused)
{
	static const uint8_t code[] = {
		0x48, 0x89, 0x34, 0x25, 0x00, 0x20, 0x00, 0x00,		    /* mov [0x2000],rsi */
		0x8c, 0xd8, 0x66, 0xa3, 0x08, 0x20, 0,	  0,	0, 0, 0, 0, /* mov eax,ds; mov [0x2008],ax */
		0x66, 0xba, 0x0f, 0x05, 0xee,				    /* mov dx,DONE_PORT; out dx,al */
		0xf4, 0xeb, 0xfd,					    /* 1: hlt; jmp 1b */
	};
	struct rig *rig = open_long_mode(code, sizeof(code));

	(void)unused;
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->nr_done));
	assert_int_equal(peek(rig, 0x2000), 0x9abcdef0);
	assert_int_equal(peek(rig, 0x2004), 0x12345678);
	assert_int_equal(peek(rig, 0x2008) & 0xffff, 0x18);
	rig_close(rig);
}

/* An exception without a table of handlers; the reset lets the machine run again, in real mode. */
static void test_triple_fault(void **unused)
{
	static const uint8_t code[] = {
		0x0f, 0x01, 0x1c, 0x25, 0x00, 0x30, 0x00, 0x00, /* lidt [0x3000]: no table at all */
		0x0f, 0x0b,					/* ud2 */
		0xeb, 0xfe,					/* 1: jmp 1b */
	};
	static const uint8_t after[] = { PREPARE, DONE };
	struct rig *rig = open_long_mode(code, sizeof(code));
	struct boot_regs regs = { 0 };
	struct img_error err = { 0 };

	(void)unused;
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->events));
	assert_int_equal(atomic_load(&rig->events), 1u << MACHINE_RESET);
	usleep(1000);
	vm_pause(rig->vm);
	assert_int_equal(vm_reset(rig->vm, &regs, &err), 0);
	memcpy(rig->rom, after, sizeof(after));
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->nr_done));
	rig_close(rig);
}

/* What KVM cannot run is an error that says where, and no end of the program. */
static void test_error(void **unused)
{
	static const uint8_t code[] = { PREPARE, 0xea, 0x00, 0x00, 0x00, 0xa0 }; /* jmp 0xa000:0, where no memory is */
	static const uint8_t after[] = { PREPARE, DONE };
	struct rig *rig = rig_open(code, sizeof(code), 1);
	struct boot_regs regs = { 0 };
	struct img_error err = { 0 };
	uint64_t end = now_ms() + 10000;

	(void)unused;
	vm_error(rig->vm, &err);
	assert_non_null(strstr(err.msg, "no processor"));
	vm_resume(rig->vm);
	while (!atomic_load(&rig->events) && now_ms() < end)
		nap();
	assert_int_equal(atomic_load(&rig->events), 1u << MACHINE_ERROR);
	vm_pause(rig->vm);
	err = (struct img_error){ 0 };
	vm_error(rig->vm, &err);
	assert_int_equal(err.code, IMG_E_UNSUPPORTED);
	assert_non_null(strstr(err.msg, "processor 0"));
	assert_non_null(strstr(err.msg, "a000:0"));
	atomic_store(&rig->events, 0);
	memcpy(rig->rom, after, sizeof(after));
	err = (struct img_error){ 0 };
	assert_int_equal(vm_reset(rig->vm, &regs, &err), 0);
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->nr_done));
	rig_close(rig);
}

static void test_ioeventfd(void **unused)
{
	static const uint8_t code[] = {
		PREPARE, 0xb8, 0x00, 0xb8, 0x8e, 0xd8,			 /* mov ax,0xb800; mov ds,ax */
		0x66,	 0xc7, 0x06, 0x10, 0x00, 0x07, 0x00, 0x00, 0x00, /* mov dword [0x10],7 */
		0xc7,	 0x06, 0x10, 0x00, 0x07, 0x00,			 /* mov word [0x10],7 */
		DONE,
	};
	struct rig *rig = rig_open(code, sizeof(code), 1);
	int fd = eventfd(0, EFD_NONBLOCK);
	uint64_t value;

	(void)unused;
	assert_true(fd >= 0);
	assert_int_equal(vm_ioeventfd(rig->vm, 0xb8010, 4, fd, true), 0);
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->nr_done));
	assert_int_equal(read(fd, &value, sizeof(value)), sizeof(value));
	assert_int_equal(value, 1);
	/* another width is the device's */
	assert_access(&rig->probe->log[0], REGION_MMIO, true, 0xb8010 - MMIO_START, 2, 7);
	assert_int_equal(vm_ioeventfd(rig->vm, 0xb8010, 4, fd, false), 0);
	assert_true(vm_ioeventfd(rig->vm, 0xb8010, 4, fd, false) < 0);
	close(fd);
	rig_close(rig);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accesses),  cmocka_unit_test(test_pause_a_thousand_times),
		cmocka_unit_test(test_reset),	  cmocka_unit_test(test_dirty_log),
		cmocka_unit_test(test_long_mode), cmocka_unit_test(test_triple_fault),
		cmocka_unit_test(test_error),	  cmocka_unit_test(test_ioeventfd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
	return run_where_kvm_is(run);
}
