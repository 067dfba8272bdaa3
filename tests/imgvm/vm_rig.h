/* SPDX-License-Identifier: MIT */
/*
 * A machine for tests of processors on the host's /dev/kvm: a few bytes of 16-bit code in a ROM, and a test device that
 * sees what they do.
 *
 * The device checks what the guest counts: port COUNT takes numbers that must grow by one and gives back the last one.
 * An access that is lost, or done twice, around a pause or a snapshot shows there.
 */
#ifndef IMGVM_TESTS_VM_RIG_H
#define IMGVM_TESTS_VM_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "vm.h"

#define RAM_BYTES  (UINT64_C(2) << 20)
#define COUNT_PORT 0x500u
#define DONE_PORT  0x50fu
#define COUNTER	   0x1000u /* the guest's copy of what it counts */
#define AP_COUNTER 0x1100u
#define MMIO_START MEMORY_VGA_START
#define MMIO_BYTES (MEMORY_VGA_END - MEMORY_VGA_START)
#define MAX_LOG	   32u

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

/* 77 and a word why where there is no KVM. */
static int run_where_kvm_is(int (*run)(void))
{
	struct img_error err = { 0 };
	int kvm;

	if (vm_probe(&kvm, &err)) {
		fprintf(stderr, "SKIP: no processor was tested: %s\n", err.msg);
		return 77;
	}
	close(kvm);
	return run();
}

#endif
