/* SPDX-License-Identifier: MIT */
/* Processors on the host's /dev/kvm that are saved, and go on elsewhere or go back: no access is lost or done twice. */
#include <sched.h>

#include "vm_rig.h"

#define STATE_BYTES (256u << 10)

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
		assert_int_equal(atomic_load(&rig->probe->last), last);
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

/* What was due while the machine stood still does not come in one go: after half a second these are fifty ticks. */
static void test_no_ticks_after_a_long_pause(void **unused)
{
	struct rig *rig = open_timers();
	uint64_t began;
	uint32_t last;

	(void)unused;
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->last) > 3);
	vm_pause(rig->vm);
	usleep(500000);
	vm_drop_ticks(rig->vm);
	last = atomic_load(&rig->probe->last);
	began = now_ms();
	vm_resume(rig->vm);
	wait_for(rig, atomic_load(&rig->probe->last) > last + 3);
	usleep(100000);
	vm_pause(rig->vm);
	/* the clock goes on, and no faster than it should */
	assert_in_range(atomic_load(&rig->probe->last) - last, 4, (now_ms() - began) / 10 + 10);
	assert_int_equal(atomic_load(&rig->probe->nr_wrong), 0);
	rig_close(rig);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_goes_on_in_a_new_machine),
		cmocka_unit_test(test_goes_back_in_place),
		cmocka_unit_test(test_goes_back_to_another_machine),
		cmocka_unit_test(test_two_processors),
		cmocka_unit_test(test_timers),
		cmocka_unit_test(test_no_ticks_after_a_long_pause),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
	return run_where_kvm_is(run);
}
