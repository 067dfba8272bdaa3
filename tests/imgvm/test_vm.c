/* SPDX-License-Identifier: MIT */
/*
 * Processors on the host's /dev/kvm: a few bytes of 16-bit code in a ROM, a test device that sees what they do.
 *
 * The device checks what the guest counts: port COUNT takes numbers that must grow by one and gives back the last one.
 * An access that is lost, or done twice, around a pause or a snapshot shows there.
 */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "vm.h"

#define RAM_BYTES   (UINT64_C(2) << 20)
#define COUNT_PORT  0x500u
#define DONE_PORT   0x50fu
#define COUNTER	    0x1000u /* the guest's copy of what it counts */
#define AP_COUNTER  0x1100u
#define MMIO_START  MEMORY_VGA_START
#define MMIO_BYTES  (MEMORY_VGA_END - MEMORY_VGA_START)
#define MAX_LOG	    32u
#define STATE_BYTES (256u << 10)

struct access {
	unsigned region;
	bool write;
	uint64_t off, value;
	unsigned bytes;
};
struct probe {
	struct device dev;
	_Atomic uint32_t last;
	_Atomic unsigned nr_wrong;
	_Atomic unsigned nr_done, done_value;
	struct access log[MAX_LOG]; /* bus lock */
	unsigned nr_log;
};
struct rig {
	struct memory mem;
	struct bus bus;
	struct probe *probe;
	struct machine_host host;
	_Atomic unsigned events;
	uint8_t *rom;
	struct vm *vm;
};

enum { REGION_PORTS, REGION_MMIO };

/* ---- the device ---- */

static void note(struct probe *p, unsigned region, bool write, uint64_t off, unsigned bytes, uint64_t value)
{
	if (p->nr_log < MAX_LOG)
		p->log[p->nr_log++] = (struct access){ region, write, off, value, bytes };
}

static uint64_t probe_read(struct device *dev, unsigned region, uint64_t off, unsigned bytes)
{
	struct probe *p = (struct probe *)dev;
	uint64_t value = region == REGION_MMIO ? 0x5a00 + off : atomic_load(&p->last);

	note(p, region, false, off, bytes, value);
	return value;
}

static void probe_write(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value)
{
	struct probe *p = (struct probe *)dev;

	note(p, region, true, off, bytes, value);
	if (region == REGION_PORTS && off == DONE_PORT - COUNT_PORT) {
		atomic_store(&p->done_value, (unsigned)value);
		atomic_fetch_add(&p->nr_done, 1);
	} else if (region == REGION_PORTS && bytes == 4) {
		if (value != atomic_load(&p->last) + 1)
			atomic_fetch_add(&p->nr_wrong, 1);
		atomic_store(&p->last, (uint32_t)value);
	}
}

static void probe_destroy(struct device *dev)
{
	free(dev);
}

static const struct device_ops probe_ops = {
	.name = "probe", .read = probe_read, .write = probe_write, .destroy = probe_destroy
};

/* ---- a machine ---- */

static void on_event(void *machine, enum machine_event event)
{
	struct rig *rig = machine;

	atomic_fetch_or(&rig->events, 1u << event);
}

static struct rig *rig_open(const uint8_t *code, size_t bytes, unsigned nr_vcpus)
{
	/* at the reset vector: jmp near to the ROM's first byte */
	static const uint8_t jump[] = { 0xe9, 0x0d, 0xf0 };
	struct rig *rig = calloc(1, sizeof(*rig));
	struct vm_options opts = { .rom_bytes = MEMORY_PAGE, .nr_vcpus = nr_vcpus };
	struct img_error err = { 0 };
	int kvm;

	assert_non_null(rig);
	assert_int_equal(memory_init(&rig->mem, RAM_BYTES, &err), 0);
	rig->rom = mmap(NULL, MEMORY_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(rig->rom, MAP_FAILED);
	memcpy(rig->rom, code, bytes);
	memcpy(rig->rom + 0xff0, jump, sizeof(jump));
	rig->probe = calloc(1, sizeof(*rig->probe));
	assert_non_null(rig->probe);
	rig->probe->dev.ops = &probe_ops;
	bus_init(&rig->bus);
	bus_add_device(&rig->bus, &rig->probe->dev);
	assert_true(bus_map(&rig->bus, BUS_PIO, COUNT_PORT, 16, &rig->probe->dev, REGION_PORTS));
	assert_true(bus_map(&rig->bus, BUS_MMIO, MMIO_START, MMIO_BYTES, &rig->probe->dev, REGION_MMIO));
	rig->host = (struct machine_host){ .machine = rig, .event = on_event };
	opts.mem = &rig->mem;
	opts.rom = rig->rom;
	opts.bus = &rig->bus;
	opts.host = &rig->host;
	if (vm_probe(&kvm, &err) || vm_create(kvm, &opts, &rig->vm, &err) || vm_start(rig->vm, &err))
		fail_msg("%s", err.msg);
	return rig;
}

static void rig_close(struct rig *rig)
{
	vm_destroy(rig->vm);
	bus_free(&rig->bus);
	munmap(rig->rom, MEMORY_PAGE);
	memory_free(&rig->mem);
	free(rig);
}

static uint32_t peek(struct rig *rig, uint64_t gpa)
{
	uint32_t value;

	memcpy(&value, rig->mem.base + gpa, sizeof(value));
	return value;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void nap(void)
{
	usleep(200);
}

/* Ten seconds are a failure. */
#define wait_for(rig, condition)                                                 \
	do {                                                                     \
		uint64_t end_ = now_ms() + 10000;                                \
		while (!(condition)) {                                           \
			if (atomic_load(&(rig)->events) & 1u << MACHINE_ERROR) { \
				struct img_error err_ = { 0 };                   \
				vm_error((rig)->vm, &err_);                      \
				fail_msg("%s", err_.msg);                        \
			}                                                        \
			if (now_ms() > end_)                                     \
				fail_msg("never came: %s", #condition);          \
			nap();                                                   \
		}                                                                \
	} while (0)

static void check_count(struct rig *rig)
{
	assert_int_equal(atomic_load(&rig->probe->nr_wrong), 0);
	assert_int_equal(atomic_load(&rig->probe->nr_done), 0);
}

/* ---- programs ---- */

#define PREPARE 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0	 /* xor ax,ax; mov ds,ax; mov es,ax */
#define DONE	0xba, 0x0f, 0x05, 0xee, 0xf4, 0xeb, 0xfd /* mov dx,DONE_PORT; out dx,al; 1: hlt; jmp 1b */

/* Counts: by memory, by a port, and checks what the port says. */
#define COUNT_LOOP                                                       \
	0xba, 0x00, 0x05,		      /* mov dx,COUNT_PORT */    \
		0x66, 0xa1, 0x00, 0x10,	      /* 1: mov eax,[COUNTER] */ \
		0x66, 0x40,		      /* inc eax */              \
		0x66, 0xa3, 0x00, 0x10,	      /* mov [COUNTER],eax */    \
		0x66, 0xef,		      /* out dx,eax */           \
		0x66, 0xed,		      /* in eax,dx */            \
		0x66, 0x3b, 0x06, 0x00, 0x10, /* cmp eax,[COUNTER] */    \
		0x74, 0xeb,		      /* je 1b */                \
		0xb0, 0xee, DONE

static const uint8_t count_code[] = { PREPARE, COUNT_LOOP };

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

static size_t save(struct rig *rig, uint8_t *buf)
{
	struct img_error err = { 0 };
	struct state_writer w;
	size_t bytes = 0;

	state_start(&w, buf, STATE_BYTES);
	if (vm_save(rig->vm, &w, &err) || state_finish(&w, &bytes, &err))
		fail_msg("%s", err.msg);
	return bytes;
}

static void load(struct rig *rig, const uint8_t *buf, size_t bytes)
{
	struct img_error err = { 0 };
	struct state st;

	if (state_parse(&st, buf, bytes, &err) || vm_load(rig->vm, &st, &err) || state_all_taken(&st, &err))
		fail_msg("%s", err.msg);
}

static void test_goes_on_in_a_new_machine(void **unused)
{
	struct rig *rig = rig_open(count_code, sizeof(count_code), 1);
	uint8_t *buf = malloc(STATE_BYTES);

	(void)unused;
	assert_non_null(buf);
	for (unsigned i = 0; i < 20; i++) {
		uint32_t last = atomic_load(&rig->probe->last);
		struct rig *next = rig_open(count_code, sizeof(count_code), 1);
		size_t bytes;

		vm_resume(rig->vm);
		wait_for(rig, atomic_load(&rig->probe->last) > last + 50);
		vm_pause(rig->vm);
		check_count(rig);
		bytes = save(rig, buf);
		memcpy(next->mem.base, rig->mem.base, RAM_BYTES);
		atomic_store(&next->probe->last, atomic_load(&rig->probe->last));
		rig_close(rig);
		rig = next;
		load(rig, buf, bytes);
	}
	rig_close(rig);
	free(buf);
}

/* Back in place, again and again to the same point: what was in between leaves nothing. */
static void test_goes_back_in_place(void **unused)
{
	struct rig *rig = rig_open(count_code, sizeof(count_code), 1);
	uint8_t *state = malloc(STATE_BYTES), *again = malloc(STATE_BYTES), *ram = malloc(RAM_BYTES);
	uint32_t last;
	size_t bytes;

	(void)unused;
	assert_true(state && again && ram);
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->last) > 50);
	vm_pause(rig->vm);
	bytes = save(rig, state);
	memcpy(ram, rig->mem.base, RAM_BYTES);
	last = atomic_load(&rig->probe->last);
	for (unsigned i = 0; i < 20; i++) {
		vm_resume(rig->vm);
		wait_for(rig, atomic_load(&rig->probe->last) > last + 20);
		vm_pause(rig->vm);
		check_count(rig);
		load(rig, state, bytes);
		memcpy(rig->mem.base, ram, RAM_BYTES);
		atomic_store(&rig->probe->last, last);
		/* all but clocks: the length shows that nothing is added from one generation to the next */
		assert_int_equal(save(rig, again), bytes);
	}
	rig_close(rig);
	free(state);
	free(again);
	free(ram);
}

/*
 * A machine that has run takes a state of another one, although KVM refuses another CPUID by then: what it tells of
 * the processor must not depend on where on the host it was asked.
 */
static struct rig *open_on(unsigned cpu)
{
	cpu_set_t before, one;
	struct rig *rig;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
	rig = rig_open(count_code, sizeof(count_code), 2);
	assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
	return rig;
}

static void test_goes_back_to_another_machine(void **unused)
{
	uint8_t *buf = malloc(STATE_BYTES);
	size_t bytes = 0;
	cpu_set_t all;

	(void)unused;
	assert_non_null(buf);
	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	for (unsigned cpu = 0, nr = 0; cpu < CPU_SETSIZE && nr < 4; cpu++) {
		struct rig *rig;

		if (!CPU_ISSET(cpu, &all))
			continue;
		nr++;
		rig = open_on(cpu);
		if (!bytes)
			bytes = save(rig, buf);
		vm_resume(rig->vm);
		wait_for(rig, atomic_load(&rig->probe->last) > 10);
		vm_pause(rig->vm);
		load(rig, buf, bytes);
		rig_close(rig);
	}
	free(buf);
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

/* The first processor starts the second by INIT and SIPI, which counts in memory as well. */
static void test_two_processors(void **unused)
{
	static const uint8_t code[] = {
		PREPARE,    0x66, 0xb9, 0x1b, 0, 0, 0,	  0x0f, 0x32, /* mov ecx,IA32_APIC_BASE; rdmsr */
		0x66,	    0x0d, 0,	0x04, 0, 0, 0x0f, 0x30,	      /* or eax,EXTD; wrmsr: x2APIC */
		0x66,	    0xb9, 0x30, 0x08, 0, 0,		      /* mov ecx,ICR */
		0x66,	    0xba, 0x01, 0,    0, 0,		      /* mov edx,1 */
		0x66,	    0xb8, 0x00, 0x45, 0, 0, 0x0f, 0x30,	      /* mov eax,INIT; wrmsr */
		0x66,	    0xb8, 0x08, 0x46, 0, 0, 0x0f, 0x30,	      /* mov eax,SIPI to 0x8000; wrmsr */
		COUNT_LOOP,
	};
	static const uint8_t ap_code[] = {
		PREPARE, 0x66, 0xff, 0x06, 0x00, 0x11, 0xeb, 0xf9, /* 1: inc dword [AP_COUNTER]; jmp 1b */
	};
	struct rig *rig = rig_open(code, sizeof(code), 2), *next;
	uint8_t *buf = malloc(STATE_BYTES);
	struct boot_regs regs = { 0 };
	struct img_error err = { 0 };
	uint32_t ap, last;
	size_t bytes;

	(void)unused;
	assert_non_null(buf);
	memcpy(rig->mem.base + 0x8000, ap_code, sizeof(ap_code));
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->last) > 50 && peek(rig, AP_COUNTER) > 1000);
	for (unsigned i = 0; i < 200; i++) {
		vm_pause(rig->vm);
		ap = peek(rig, AP_COUNTER);
		last = atomic_load(&rig->probe->last);
		if (i % 50 == 0)
			usleep(1000);
		assert_int_equal(peek(rig, AP_COUNTER), ap);
		vm_resume(rig->vm);
	}
	vm_pause(rig->vm);
	check_count(rig);
	bytes = save(rig, buf);
	ap = peek(rig, AP_COUNTER);
	last = atomic_load(&rig->probe->last);

	next = rig_open(code, sizeof(code), 2);
	memcpy(next->mem.base, rig->mem.base, RAM_BYTES);
	atomic_store(&next->probe->last, last);
	load(next, buf, bytes);
	assert_int_equal(peek(next, AP_COUNTER), ap);
	vm_resume(next->vm);
	wait_for(next, atomic_load(&next->probe->last) > last + 50 && peek(next, AP_COUNTER) > ap + 1000);
	check_count(next);
	rig_close(next);

	/* after a reset the second one waits again until it is started */
	assert_int_equal(vm_reset(rig->vm, &regs, &err), 0);
	memset(rig->mem.base + 0x1000, 0, 0x1000);
	atomic_store(&rig->probe->last, 0);
	assert_int_equal(peek(rig, AP_COUNTER), 0);
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->last) > 50 && peek(rig, AP_COUNTER) > 1000);
	rig_close(rig);
	free(buf);
}

/*
 * A hundred ticks a second from the timer chip through the PIC, and one deadline of the local APIC's timer. Both go on
 * in a new machine; the deadline would not if it were set before the TSC or before the APIC's mode.
 */
static const uint8_t timer_code[] = {
	PREPARE, 0x8e, 0xd0, 0xbc, 0x00, 0x70,					   /* mov ss,ax; mov sp,0x7000 */
	0xb0,	 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21,			   /* PIC: ICW1, vectors from 8 on */
	0xb0,	 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,			   /* ICW3, ICW4 */
	0xb0,	 0xfe, 0xe6, 0x21,						   /* only line 0 */
	0xb0,	 0x34, 0xe6, 0x43, 0xb0, 0x9c, 0xe6, 0x40, 0xb0, 0x2e, 0xe6, 0x40, /* mode 2, 11932 clocks: 100 Hz */
	0x66,	 0xb9, 0x1b, 0,	   0,	 0,    0x0f, 0x32,			   /* mov ecx,IA32_APIC_BASE; rdmsr */
	0x66,	 0x0d, 0,    0x04, 0,	 0,    0x0f, 0x30,			   /* or eax,EXTD; wrmsr */
	0x66,	 0x31, 0xd2,							   /* xor edx,edx */
	0x66,	 0xb9, 0x0f, 0x08, 0,	 0,    0x66, 0xb8, 0xff, 0x01, 0,    0,
	0x0f,	 0x30, /* SVR: enabled */
	0x66,	 0xb9, 0x32, 0x08, 0,	 0,    0x66, 0xb8, 0x40, 0,    0x04, 0,
	0x0f,	 0x30,								/* LVT timer: deadline, vector 0x40 */
	0x0f,	 0x31, 0x66, 0x05, 0,	 0,    0,    0x60, 0x66, 0x83, 0xd2, 0, /* rdtsc; add 0x60000000 */
	0x66,	 0xb9, 0xe0, 0x06, 0,	 0,    0x0f, 0x30,			/* wrmsr IA32_TSC_DEADLINE */
	0xfb,	 0xf4, 0xeb, 0xfd,						/* sti; 1: hlt; jmp 1b */
};
static const uint8_t tick_code[] = {
	0x66, 0xff, 0x06, 0x00, 0x10, 0x66, 0xa1, 0x00, 0x10, /* inc dword [COUNTER]; mov eax,[COUNTER] */
	0xba, 0x00, 0x05, 0x66, 0xef,			      /* mov dx,COUNT_PORT; out dx,eax */
	0xb0, 0x20, 0xe6, 0x20, 0xcf,			      /* end of interrupt; iret */
};
static const uint8_t deadline_code[] = {
	0xba, 0x0f, 0x05, 0xb0, 0x77, 0xee, 0xcf, /* mov dx,DONE_PORT; mov al,0x77; out dx,al; iret */
};

/* Interrupts come back to real-mode segments, which do not reach the ROM's place below 4 GiB. */
static const uint8_t to_ram[] = { 0xea, 0x00, 0x80, 0x00, 0x00 }; /* jmp 0:0x8000 */

static struct rig *open_timers(void)
{
	static const uint16_t tick_vector[] = { 0x9000, 0 }, deadline_vector[] = { 0x9100, 0 };
	static const uint16_t other_vector[] = { 0x9200, 0 };
	static const uint8_t other_code[] = { 0xb0, 0xee, DONE };
	struct rig *rig = rig_open(to_ram, sizeof(to_ram), 1);

	memcpy(rig->mem.base + 0x8000, timer_code, sizeof(timer_code));
	memcpy(rig->mem.base + 0x9000, tick_code, sizeof(tick_code));
	memcpy(rig->mem.base + 0x9100, deadline_code, sizeof(deadline_code));
	memcpy(rig->mem.base + 0x9200, other_code, sizeof(other_code));
	for (unsigned i = 0; i < 256; i++)
		memcpy(rig->mem.base + 4 * i, other_vector, 4);
	memcpy(rig->mem.base + 4 * 8, tick_vector, 4);
	memcpy(rig->mem.base + 4 * 0x40, deadline_vector, 4);
	return rig;
}

/* False: the deadline came before the state was saved, so that this says nothing. */
static bool timers_go_on(uint8_t *buf)
{
	struct rig *rig = open_timers(), *next;
	uint32_t last = 0;

	for (unsigned generation = 0; generation < 3; generation++) {
		vm_resume(rig->vm);
		wait_for(rig, atomic_load(&rig->probe->last) > last + 3);
		vm_pause(rig->vm);
		last = atomic_load(&rig->probe->last);
		assert_int_equal(atomic_load(&rig->probe->nr_wrong), 0);
		if (atomic_load(&rig->probe->nr_done)) {
			rig_close(rig);
			return false;
		}
		next = rig_open(to_ram, sizeof(to_ram), 1);
		memcpy(next->mem.base, rig->mem.base, RAM_BYTES);
		atomic_store(&next->probe->last, last);
		load(next, buf, save(rig, buf));
		rig_close(rig);
		rig = next;
	}
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->nr_done));
	wait_for(rig, atomic_load(&rig->probe->last) > last + 10);
	assert_int_equal(atomic_load(&rig->probe->nr_done), 1);
	assert_int_equal(atomic_load(&rig->probe->done_value), 0x77);
	assert_int_equal(atomic_load(&rig->probe->nr_wrong), 0);
	rig_close(rig);
	return true;
}

static void test_timers(void **unused)
{
	uint8_t *buf = malloc(STATE_BYTES);
	unsigned tries = 0;

	(void)unused;
	assert_non_null(buf);
	while (tries < 10 && !timers_go_on(buf))
		tries++;
	assert_in_range(tries, 0, 9);
	free(buf);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accesses),
		cmocka_unit_test(test_pause_a_thousand_times),
		cmocka_unit_test(test_goes_on_in_a_new_machine),
		cmocka_unit_test(test_goes_back_in_place),
		cmocka_unit_test(test_goes_back_to_another_machine),
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_triple_fault),
		cmocka_unit_test(test_two_processors),
		cmocka_unit_test(test_timers),
		cmocka_unit_test(test_dirty_log),
		cmocka_unit_test(test_long_mode),
		cmocka_unit_test(test_error),
		cmocka_unit_test(test_ioeventfd),
	};
	struct img_error err = { 0 };
	int kvm;

	if (vm_probe(&kvm, &err)) {
		fprintf(stderr, "SKIP: no processor was tested: %s\n", err.msg);
		return 77;
	}
	close(kvm);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
