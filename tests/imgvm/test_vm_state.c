/* SPDX-License-Identifier: MIT */
/*
 * Saved processors that are cut, changed or made on a host with more than this one has: refused, and the machine is as
 * it was. Needs /dev/kvm; the guest never runs.
 *
 * Sections are changed through their layout: taken apart by code_cpu(), changed, put together again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <cmocka.h>

#include "vm_int.h"

#define STATE_BYTES (256u << 10)
#define NR_VCPUS    2u
#define TAG_CPU	    STATE_TAG('C', 'P', 'U', ' ')
#define TAG_CHIPS   STATE_TAG('I', 'R', 'Q', 'C')
#define TAG_PIT	    STATE_TAG('P', 'I', 'T', ' ')
#define TAG_CLOCK   STATE_TAG('C', 'L', 'C', 'K')

static struct memory mem;
static struct bus bus;
static struct vm *vm;

static void no_event(void *machine, enum machine_event event)
{
	(void)machine;
	(void)event;
}

static const struct machine_host host = { .event = no_event };

static int setup(void **unused)
{
	struct vm_options opts = { .mem = &mem, .nr_vcpus = NR_VCPUS, .bus = &bus, .host = &host };
	struct img_error err = { 0 };
	int kvm;

	(void)unused;
	bus_init(&bus);
	if (memory_init(&mem, MEMORY_MIN_BYTES, &err) || vm_probe(&kvm, &err) || vm_create(kvm, &opts, &vm, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		return -1;
	}
	return 0;
}

static int teardown(void **unused)
{
	(void)unused;
	vm_destroy(vm);
	bus_free(&bus);
	memory_free(&mem);
	return 0;
}

/* ---- states ---- */

struct saved {
	struct cpu_state cpu[NR_VCPUS];
	struct chips_state chips;
};

static size_t save(uint8_t *buf)
{
	struct img_error err = { 0 };
	struct state_writer w;
	size_t bytes = 0;

	state_start(&w, buf, STATE_BYTES);
	if (vm_save(vm, &w, &err) || state_finish(&w, &bytes, &err))
		fail_msg("%s", err.msg);
	return bytes;
}

static void take_apart(const uint8_t *buf, size_t bytes, struct saved *out)
{
	struct img_error err = { 0 };
	struct state_reader in;
	struct coder c = { .in = &in };
	struct state st;

	memset(out, 0, sizeof(*out));
	assert_int_equal(state_parse(&st, buf, bytes, &err), 0);
	for (unsigned i = 0; i < NR_VCPUS; i++) {
		assert_int_equal(state_open(&st, TAG_CPU, i, 1, &in, &err), 0);
		code_cpu(&c, &out->cpu[i]);
		assert_int_equal(state_done(&in, "cpu", &err), 0);
	}
	assert_int_equal(state_open(&st, TAG_CHIPS, 0, 1, &in, &err), 0);
	code_chips(&c, &out->chips);
	assert_int_equal(state_done(&in, "chips", &err), 0);
	assert_int_equal(state_open(&st, TAG_PIT, 0, 1, &in, &err), 0);
	code_pit(&c, &out->chips.pit);
	assert_int_equal(state_done(&in, "timer", &err), 0);
	assert_int_equal(state_open(&st, TAG_CLOCK, 0, 1, &in, &err), 0);
	out->chips.clock.clock = state_get64(&in);
}

static size_t put_together(struct saved *s, uint8_t *buf)
{
	struct img_error err = { 0 };
	struct state_writer w;
	struct coder c = { .out = &w };
	size_t bytes = 0;

	state_start(&w, buf, STATE_BYTES);
	for (unsigned i = 0; i < NR_VCPUS; i++) {
		state_begin(&w, TAG_CPU, i, 1);
		code_cpu(&c, &s->cpu[i]);
		state_end(&w);
	}
	state_begin(&w, TAG_CHIPS, 0, 1);
	code_chips(&c, &s->chips);
	state_end(&w);
	state_begin(&w, TAG_PIT, 0, 1);
	code_pit(&c, &s->chips.pit);
	state_end(&w);
	state_begin(&w, TAG_CLOCK, 0, 1);
	state_put64(&w, s->chips.clock.clock);
	state_end(&w);
	assert_int_equal(state_finish(&w, &bytes, &err), 0);
	return bytes;
}

static int load(const uint8_t *buf, size_t bytes, struct img_error *err)
{
	struct state st;

	*err = (struct img_error){ 0 };
	assert_int_equal(state_parse(&st, buf, bytes, err), 0);
	return vm_load(vm, &st, err);
}

static int ask(const uint8_t *buf, size_t bytes)
{
	struct state st;

	assert_int_equal(state_parse(&st, buf, bytes, NULL), 0);
	return vm_check(vm, &st, NULL);
}

static struct kvm_msr_entry *find_msr(struct saved *s, unsigned cpu, uint32_t index)
{
	for (uint32_t i = 0; i < s->cpu[cpu].msrs.nmsrs; i++)
		if (s->cpu[cpu].msrs.entry[i].index == index)
			return &s->cpu[cpu].msrs.entry[i];
	return NULL;
}

/* What moves by itself. */
static void still(struct saved *s)
{
	for (unsigned i = 0; i < NR_VCPUS; i++) {
		struct kvm_msr_entry *tsc = find_msr(s, i, 0x10);

		if (tsc)
			tsc->data = 0;
	}
	s->chips.clock.clock = 0;
	for (unsigned i = 0; i < 3; i++)
		s->chips.pit.channels[i].count_load_time = 0;
}

/* The machine's state now, in *out, without what moves. */
static void look(struct saved *out)
{
	uint8_t *buf = malloc(STATE_BYTES);

	assert_non_null(buf);
	take_apart(buf, save(buf), out);
	still(out);
	free(buf);
}

/* ---- tests ---- */

/* Values unlike those after a reset, in both directions. */
static void test_values_come_back(void **unused)
{
	struct saved *s = malloc(sizeof(*s)), *after = malloc(sizeof(*after));
	uint8_t *buf = malloc(STATE_BYTES);
	struct kvm_msr_entry *msr;
	struct boot_regs regs = { 0 };
	struct img_error err = { 0 };
	size_t bytes;

	(void)unused;
	assert_true(s && after && buf);
	look(s);
	for (unsigned i = 0; i < NR_VCPUS; i++) {
		struct cpu_state *c = &s->cpu[i];
		uint64_t *r = (uint64_t *)&c->regs;

		for (unsigned j = 0; j < 16; j++)
			r[j] = UINT64_C(0x1111111100000000) * (i + 1) + j;
		c->regs.rip = 0x1234 + i;
		c->regs.rflags = 0x246;
		c->sregs.ds.base = 0x5000;
		c->sregs.ds.selector = 0x500;
		c->sregs.idt.base = 0x7000 + i;
		c->sregs.idt.limit = 0x3ff;
		c->sregs.cr2 = 0xdead0000 + i;
		c->debugregs.db[1] = 0x4321 + i;
		c->events.nmi.masked = 1;
		msr = find_msr(s, i, 0x174); /* SYSENTER_CS */
		assert_non_null(msr);
		msr->data = 0x10 + i;
		msr = find_msr(s, i, 0x200); /* a range of memory types */
		assert_non_null(msr);
		msr->data = 0xc0000006;
		/* the first XMM register: behind it are 16 bytes a register */
		memset(c->xsave + 160, 0xa5, 16);
		c->xsave[512] |= 3;
	}
	s->cpu[1].mp.mp_state = KVM_MP_STATE_HALTED;
	s->chips.chip[KVM_IRQCHIP_PIC_MASTER].chip.pic.imr = 0xfb;
	s->chips.chip[KVM_IRQCHIP_PIC_MASTER].chip.pic.irq_base = 0x20;
	s->chips.chip[KVM_IRQCHIP_IOAPIC].chip.ioapic.redirtbl[3].bits = UINT64_C(0x0100000000010031);
	s->chips.chip[KVM_IRQCHIP_IOAPIC].chip.ioapic.ioregsel = 0x13;
	s->chips.pit.channels[2].count = 0x1234;
	s->chips.pit.channels[2].mode = 3;
	bytes = put_together(s, buf);
	if (load(buf, bytes, &err))
		fail_msg("%s", err.msg);
	look(after);
	still(s);
	for (unsigned i = 0; i < NR_VCPUS; i++) {
		assert_memory_equal(&after->cpu[i].regs, &s->cpu[i].regs, sizeof(s->cpu[i].regs));
		assert_memory_equal(&after->cpu[i].sregs, &s->cpu[i].sregs, sizeof(s->cpu[i].sregs));
		assert_memory_equal(&after->cpu[i].debugregs, &s->cpu[i].debugregs, sizeof(s->cpu[i].debugregs));
		assert_memory_equal(&after->cpu[i].lapic, &s->cpu[i].lapic, sizeof(s->cpu[i].lapic));
		assert_memory_equal(&after->cpu[i].cpuid, &s->cpu[i].cpuid, sizeof(s->cpu[i].cpuid));
		assert_memory_equal(&after->cpu[i].msrs, &s->cpu[i].msrs, sizeof(s->cpu[i].msrs));
		assert_memory_equal(&after->cpu[i].events, &s->cpu[i].events, sizeof(s->cpu[i].events));
		assert_memory_equal(after->cpu[i].xsave + 160, s->cpu[i].xsave + 160, 16);
		assert_int_equal(after->cpu[i].mp.mp_state, s->cpu[i].mp.mp_state);
	}
	assert_memory_equal(after->chips.chip, s->chips.chip, sizeof(s->chips.chip));
	assert_int_equal(after->chips.pit.channels[2].count, 0x1234);
	assert_int_equal(after->chips.pit.channels[2].mode, 3);
	/* and a reset forgets all of it */
	assert_int_equal(vm_reset(vm, &regs, &err), 0);
	look(after);
	assert_int_equal(after->cpu[0].regs.rip, 0xfff0);
	assert_int_equal(after->cpu[0].regs.rax, 0);
	assert_int_equal(after->cpu[0].sregs.cs.selector, 0xf000);
	assert_int_equal(after->cpu[1].mp.mp_state, KVM_MP_STATE_UNINITIALIZED);
	assert_int_equal(find_msr(after, 0, 0x174)->data, 0);
	assert_int_equal(after->chips.chip[KVM_IRQCHIP_PIC_MASTER].chip.pic.irq_base, 0);
	free(s);
	free(after);
	free(buf);
}

/* Time goes on from what was saved, not from what the host's clock says. */
static void test_clock(void **unused)
{
	struct saved *s = malloc(sizeof(*s));
	uint8_t *buf = malloc(STATE_BYTES);
	struct img_error err;
	const uint64_t day = UINT64_C(86400000000000);

	(void)unused;
	assert_true(s && buf);
	take_apart(buf, save(buf), s);
	s->chips.clock.clock = day;
	assert_int_equal(load(buf, put_together(s, buf), &err), 0);
	take_apart(buf, save(buf), s);
	assert_true(s->chips.clock.clock >= day && s->chips.clock.clock < day + day / 24);
	free(s);
	free(buf);
}

static bool offset_of(unsigned cpu, uint64_t *offset)
{
	struct kvm_device_attr attr = { .group = KVM_VCPU_TSC_CTRL,
					.attr = KVM_VCPU_TSC_OFFSET,
					.addr = (uintptr_t)offset };

	return ioctl(vm->vcpu[cpu].fd, KVM_GET_DEVICE_ATTR, &attr) == 0;
}

static bool host_counts_evenly(void)
{
	FILE *f = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");
	char name[32] = "";
	bool even;

	even = f && fgets(name, sizeof(name), f) && strncmp(name, "tsc", 3) == 0;
	if (f)
		fclose(f);
	return even;
}

/* The time stamp counter goes on from its value, and those of two processors stay in step. */
static void test_counters_in_step(void **unused)
{
	struct saved *s = malloc(sizeof(*s)), *after = malloc(sizeof(*after));
	uint8_t *buf = malloc(STATE_BYTES);
	uint64_t first = 0, second = 0, start, ten_seconds;
	struct img_error err;

	(void)unused;
	assert_true(s && after && buf);
	take_apart(buf, save(buf), s);
	ten_seconds = (uint64_t)s->cpu[0].tsc_khz * 10000;
	start = find_msr(s, 0, 0x10)->data + 100 * ten_seconds;
	find_msr(s, 0, 0x10)->data = start;
	/* read a little later, as it is in a real state */
	find_msr(s, 1, 0x10)->data = start + 12345;
	assert_int_equal(load(buf, put_together(s, buf), &err), 0);
	take_apart(buf, save(buf), after);
	if (find_msr(after, 0, 0x10)->data < start) {
		/* hosts without virtualization in hardware show their own counter */
		fprintf(stderr, "SKIP: this KVM does not let a guest's time stamp counter be set\n");
	} else {
		assert_true(find_msr(after, 0, 0x10)->data - start < ten_seconds);
		assert_true(find_msr(after, 1, 0x10)->data - start < ten_seconds);
		if (host_counts_evenly() && offset_of(0, &first) && offset_of(1, &second))
			assert_true(first == second);
	}
	free(s);
	free(after);
	free(buf);
}

enum {
	FINE,
	MP_STATE,
	XSAVE_SHORT,
	XSAVE_FORMAT,
	XSAVE_COMPONENT,
	XSAVE_LONG,
	XCR,
	XCR0,
	EVENTS,
	EXCEPTION,
	CPUID_FLAGS,
	CPUID_NONE,
	CPUID_BIT,
	TSC,
	MSR,
	PIT_MODE,
	PIT_COUNT,
	PIC,
};

static void damage(struct saved *s, int how)
{
	struct cpu_state *c = &s->cpu[1]; /* the last one: all others must be untouched all the same */

	switch (how) {
	case MP_STATE: c->mp.mp_state = 10; break;
	case XSAVE_SHORT: c->xsave_bytes = 512; break;
	case XSAVE_FORMAT: c->xsave[527] = 0x80; break;
	case XSAVE_COMPONENT:
		c->xsave[519] = 0x40; /* component 62 */
		break;
	case XSAVE_LONG:
		c->xsave_bytes = VM_MAX_XSAVE;
		c->xsave[VM_MAX_XSAVE - 1] = 1;
		break;
	case XCR: c->xcrs.xcrs[0].xcr = 1; break;
	case XCR0: c->xcrs.xcrs[0].value |= UINT64_C(1) << 18; break;
	case EVENTS: c->events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT; break;
	case EXCEPTION: c->events.exception.nr = 200; break;
	case CPUID_FLAGS: c->cpuid.entry[2].flags = 0x100; break;
	case CPUID_NONE: c->cpuid.nent = 0; break;
	case CPUID_BIT: c->cpuid.entry[1].ecx |= 1u << 5; break;
	case TSC: c->tsc_khz /= 2; break;
	case MSR: c->msrs.entry[c->msrs.nmsrs++] = (struct kvm_msr_entry){ .index = 0x12345, .data = 1 }; break;
	case PIT_MODE: s->chips.pit.channels[1].mode = 9; break;
	case PIT_COUNT: s->chips.pit.channels[1].count = 65537; break;
	case PIC: s->chips.chip[KVM_IRQCHIP_PIC_SLAVE].chip.pic.priority_add = 8; break;
	}
}

static void test_refused_without_change(void **unused)
{
	static const struct {
		int how, code;
		const char *word;
	} cases[] = {
		{ MP_STATE, IMG_E_CORRUPT, "activity" },
		{ XSAVE_SHORT, IMG_E_CORRUPT, "extended state" },
		{ XSAVE_FORMAT, IMG_E_CORRUPT, "extended state" },
		{ XSAVE_COMPONENT, IMG_E_UNSUPPORTED, "component 62" },
		{ XSAVE_LONG, IMG_E_CORRUPT, "extended state" },
		{ XCR, IMG_E_CORRUPT, "extended control" },
		{ XCR0, IMG_E_UNSUPPORTED, "component 18" },
		{ EVENTS, IMG_E_CORRUPT, "events" },
		{ EXCEPTION, IMG_E_CORRUPT, "events" },
		{ CPUID_FLAGS, IMG_E_CORRUPT, "CPUID" },
		{ CPUID_NONE, IMG_E_CORRUPT, "CPUID" },
		{ CPUID_BIT, IMG_E_UNSUPPORTED, "1.0:ECX bit 5" },
		{ TSC, IMG_E_UNSUPPORTED, "kHz" },
		{ MSR, IMG_E_UNSUPPORTED, "0x12345" },
		{ PIT_MODE, IMG_E_CORRUPT, "timer channel 1" },
		{ PIT_COUNT, IMG_E_CORRUPT, "timer channel 1" },
		{ PIC, IMG_E_CORRUPT, "controller 1" },
	};
	struct saved *s = malloc(sizeof(*s)), *before = malloc(sizeof(*before)), *after = malloc(sizeof(*after));
	uint8_t *buf = malloc(STATE_BYTES);
	struct img_error err;

	(void)unused;
	assert_true(s && before && after && buf);
	look(before);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int rc;

		if (cases[i].how == TSC && vm->tsc_control)
			continue; /* KVM here can make it run at any speed */
		take_apart(buf, save(buf), s);
		/* what a load that began would leave behind */
		s->cpu[0].regs.rax = 0x77;
		s->cpu[0].regs.rip = 0x77;
		damage(s, cases[i].how);
		assert_int_equal(ask(buf, put_together(s, buf)), cases[i].code);
		rc = load(buf, put_together(s, buf), &err);
		if (rc != cases[i].code || !strstr(err.msg, cases[i].word))
			fail_msg("case %d: %d, %s", cases[i].how, rc, err.msg);
		look(after);
		assert_memory_equal(after, before, sizeof(*before));
	}
	/* the same without damage is taken */
	take_apart(buf, save(buf), s);
	s->cpu[0].regs.rax = 0x77;
	damage(s, FINE);
	assert_int_equal(ask(buf, put_together(s, buf)), 0);
	look(after);
	assert_memory_equal(after, before, sizeof(*before));
	assert_int_equal(load(buf, put_together(s, buf), &err), 0);
	look(after);
	assert_int_equal(after->cpu[0].regs.rax, 0x77);
	free(s);
	free(before);
	free(after);
	free(buf);
}

static void test_sections_that_are_cut(void **unused)
{
	static const uint32_t tags[] = { TAG_CPU, TAG_CHIPS, TAG_PIT, TAG_CLOCK };
	struct saved *before = malloc(sizeof(*before)), *after = malloc(sizeof(*after));
	uint8_t *buf = malloc(STATE_BYTES);
	struct img_error err;
	size_t bytes;

	(void)unused;
	assert_true(before && after && buf);
	bytes = save(buf);
	look(before);
	for (size_t t = 0; t < sizeof(tags) / sizeof(tags[0]); t++)
		for (size_t cut = 0;; cut += cut < 64 || t ? 1 : 61) {
			struct state st;
			unsigned at = 0;
			size_t full;

			assert_int_equal(state_parse(&st, buf, bytes, &err), 0);
			while (st.section[at].tag != tags[t] || (t == 0 && st.section[at].instance != 1))
				at++;
			full = st.section[at].bytes;
			if (cut >= full)
				break;
			st.section[at].bytes = cut;
			err = (struct img_error){ 0 };
			assert_int_equal(vm_load(vm, &st, &err), IMG_E_CORRUPT);
			/* too long: into the next section's header */
			st.section[at].bytes = full + (st.section[at].off + full < bytes);
			if (st.section[at].bytes > full)
				assert_int_equal(vm_load(vm, &st, NULL), IMG_E_CORRUPT);
			/* none, or of another version */
			st.section[at].bytes = full;
			st.section[at].version = 2;
			assert_int_equal(vm_load(vm, &st, NULL), IMG_E_UNSUPPORTED);
			st.section[at].tag = 0;
			assert_int_equal(vm_load(vm, &st, NULL), IMG_E_CORRUPT);
		}
	look(after);
	assert_memory_equal(after, before, sizeof(*before));
	free(before);
	free(after);
	free(buf);
}

/* Any bytes at all: an answer, and a machine that takes a good state afterwards. */
static void test_random_bytes(void **unused)
{
	uint8_t *good = malloc(STATE_BYTES), *bad = malloc(STATE_BYTES);
	struct boot_regs regs = { 0 };
	struct img_error err;
	uint32_t seed = 12345;
	size_t bytes;
	unsigned taken = 0;

	(void)unused;
	assert_true(good && bad);
	bytes = save(good);
	for (unsigned round = 0; round < 500; round++) {
		struct state st;

		memcpy(bad, good, bytes);
		assert_int_equal(state_parse(&st, bad, bytes, &err), 0);
		for (unsigned i = 0; i <= round % 8; i++) {
			seed = seed * 1664525 + 1013904223;
			bad[st.section[0].off + (seed >> 8) % (bytes - st.section[0].off)] ^=
				(uint8_t)(1u << (seed & 7));
		}
		/* changes of headers are seen by the parser, not asked here */
		if (state_parse(&st, bad, bytes, NULL))
			continue;
		err = (struct img_error){ 0 };
		if (vm_load(vm, &st, &err) == 0)
			taken++;
		else
			assert_true(err.msg[0] != 0);
	}
	assert_true(taken > 0 && taken < 500);
	err = (struct img_error){ 0 };
	assert_int_equal(vm_reset(vm, &regs, &err), 0);
	if (load(good, bytes, &err))
		fail_msg("%s", err.msg);
	free(good);
	free(bad);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_values_come_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_clock, setup, teardown),
		cmocka_unit_test_setup_teardown(test_counters_in_step, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused_without_change, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sections_that_are_cut, setup, teardown),
		cmocka_unit_test_setup_teardown(test_random_bytes, setup, teardown),
	};
	struct img_error err = { 0 };
	int kvm;

	if (vm_probe(&kvm, &err)) {
		fprintf(stderr, "SKIP: no saved processor was tested: %s\n", err.msg);
		return 77;
	}
	close(kvm);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
