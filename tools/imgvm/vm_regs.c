/* SPDX-License-Identifier: MIT */
/*
 * Processors, interrupt controllers and timers from and to KVM, in the order that KVM needs.
 *
 * Out. By then every processor has retired its instruction (vcpu.c). MP_STATE goes first: asking for it makes KVM carry
 * out a pending INIT or SIPI, which changes everything else. VCPU_EVENTS goes last: reading registers may turn an
 * exception that waits into one that is delivered. The chips and the clock follow the processors.
 *
 * In:
 *  - TSC frequency and CPUID before anything that is checked against them (CR4, XCR0, MSRs);
 *  - MP_STATE first, as KVM resets what hangs on it; SREGS before the local APIC, whose layout is decided by APIC_BASE;
 *  - the local APIC before the MSRs: the deadline of its timer is refused, or lost, while the timer is in another mode;
 *  - the TSC before the deadline, which is an absolute value of it: hence MSRs in two calls;
 *  - VCPU_EVENTS after all that could inject or drop an event;
 *  - the clock before any processor runs: a guest that saw it too late would see time jump back;
 *  - PIC and IOAPIC last: a line that is pending there is delivered to the local APICs at once.
 *
 * A reset is the same with what was read when the machine was created.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "fail.h"
#include "vm_int.h"

#define MSR_TSC_DEADLINE 0x6e0u
/* Hyper-V's interface, which no CPUID of ours tells of; writing one of them, even zeros, would turn it on in KVM. */
#define MSR_HYPERV	0x40000000u
#define MSR_HYPERV_LAST 0x40000fffu
/* Calls of KVM take fewer than 256 (MAX_IO_MSRS). */
#define MSR_BATCH 128u

/* ---- MSRs ---- */

/*
 * Registers that KVM keeps but does not list: the memory types. Machine check banks are left out: KVM lets a guest
 * write nothing to them but what they hold after power-on.
 */
static const uint32_t msr_ranges[][2] = {
	{ 0x200, 0x20f },				      /* variable ranges */
	{ 0x250, 0x250 }, { 0x258, 0x259 }, { 0x268, 0x26f }, /* fixed ranges */
	{ 0x2ff, 0x2ff },				      /* default type */
};

const struct kvm_msr_entry *msr_find(const struct msr_table *t, uint32_t index)
{
	for (uint32_t i = 0; i < t->nmsrs; i++)
		if (t->entry[i].index == index)
			return &t->entry[i];
	return NULL;
}

/*
 * Reads or writes entries from `first` on, in place, as many as KVM takes: up to MSR_BATCH in a call, which stops at
 * the first one that it refuses. *done: how many; fewer than asked: the next one is refused.
 */
static int move_msrs(struct vcpu *cpu, unsigned long request, struct kvm_msr_entry *entry, uint32_t nr, uint32_t *done,
		     struct img_error *err)
{
	struct {
		uint32_t nmsrs, pad;
		struct kvm_msr_entry entry[MSR_BATCH];
	} call = { 0 };
	int n;

	*done = 0;
	while (*done < nr) {
		call.nmsrs = nr - *done < MSR_BATCH ? nr - *done : MSR_BATCH;
		memcpy(call.entry, entry + *done, call.nmsrs * sizeof(*entry));
		n = ioctl(cpu->fd, request, &call);
		if (n < 0)
			return fail_errno(err, "model-specific registers of processor %u", cpu->index);
		memcpy(entry + *done, call.entry, (size_t)n * sizeof(*entry));
		*done += (uint32_t)n;
		if ((uint32_t)n < call.nmsrs)
			break;
	}
	return 0;
}

/* Fills the values of t's entries and drops those that cannot be read. */
static int read_msrs(struct vcpu *cpu, struct msr_table *t, struct img_error *err)
{
	uint32_t at = 0, done;

	for (;;) {
		int rc = move_msrs(cpu, KVM_GET_MSRS, t->entry + at, t->nmsrs - at, &done, err);

		if (rc)
			return rc;
		at += done;
		if (at == t->nmsrs)
			return 0;
		t->nmsrs--;
		memmove(t->entry + at, t->entry + at + 1, (t->nmsrs - at) * sizeof(t->entry[0]));
	}
}

/* A register that this host refuses to set does no harm if it keeps the value that it should get. */
static int write_msrs(struct vcpu *cpu, struct msr_table *t, struct img_error *err)
{
	uint32_t at = 0, done;

	for (;;) {
		const struct kvm_msr_entry *reset;
		int rc = move_msrs(cpu, KVM_SET_MSRS, t->entry + at, t->nmsrs - at, &done, err);

		if (rc)
			return rc;
		at += done;
		if (at == t->nmsrs)
			return 0;
		reset = cpu->fresh ? msr_find(&cpu->fresh->msrs, t->entry[at].index) : NULL;
		if (t->entry[at].data != (reset ? reset->data : 0))
			return fail(err, IMG_E_UNSUPPORTED,
				    "this host refuses the value 0x%llx of register 0x%x (MSR), which the guest uses",
				    (unsigned long long)t->entry[at].data, t->entry[at].index);
		at++;
	}
}

int msrs_find(struct vm *vm, int kvm_fd, struct img_error *err)
{
	struct {
		__u32 nr;
		__u32 index[VM_MAX_MSRS];
	} list = { .nr = VM_MAX_MSRS };
	struct msr_table *t = calloc(1, sizeof(*t));

	vm->msrs = t;
	if (!t)
		return fail(err, IMG_E_NOMEM, "out of memory");
	if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &list) < 0)
		return fail_errno(err, "KVM's list of registers");
	for (__u32 i = 0; i < list.nr; i++)
		if (list.index[i] < MSR_HYPERV || list.index[i] > MSR_HYPERV_LAST)
			t->entry[t->nmsrs++].index = list.index[i];
	for (size_t i = 0; i < sizeof(msr_ranges) / sizeof(msr_ranges[0]); i++)
		for (uint32_t index = msr_ranges[i][0]; index <= msr_ranges[i][1]; index++)
			if (t->nmsrs < VM_MAX_MSRS && !msr_find(t, index))
				t->entry[t->nmsrs++].index = index;
	return read_msrs(&vm->vcpu[0], t, err);
}

/* ---- a processor from and to KVM ---- */

/* Fails with what KVM says of a piece; on the way in EINVAL means that the piece makes no sense. */
static int piece(struct vcpu *cpu, unsigned long request, void *data, const char *what, bool in, struct img_error *err)
{
	if (ioctl(cpu->fd, request, data) >= 0)
		return 0;
	if (in && errno == EINVAL)
		return fail(err, IMG_E_CORRUPT, "machine state: KVM refuses the %s of processor %u", what, cpu->index);
	return fail_errno(err, "the %s of processor %u", what, cpu->index);
}

struct step {
	unsigned long request;
	void *data;
	const char *what;
};

static int pieces(struct vcpu *cpu, const struct step *steps, size_t nr, bool in, struct img_error *err)
{
	int rc = 0;

	for (size_t i = 0; !rc && i < nr; i++)
		rc = piece(cpu, steps[i].request, steps[i].data, steps[i].what, in, err);
	return rc;
}

int cpu_capture(struct vcpu *cpu, struct cpu_state *s, struct img_error *err)
{
	/* without KVM_CAP_XSAVE2 the area has the size of the older call */
	bool large = cpu->vm->xsave_bytes > sizeof(struct kvm_xsave);
	const struct step first[] = {
		{ KVM_GET_MP_STATE, &s->mp, "activity" },
		{ KVM_GET_REGS, &s->regs, "registers" },
		{ KVM_GET_SREGS2, &s->sregs, "system registers" },
		{ large ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, s->xsave, "extended state" },
		{ KVM_GET_XCRS, &s->xcrs, "extended control registers" },
		{ KVM_GET_DEBUGREGS, &s->debugregs, "debug registers" },
		{ KVM_GET_LAPIC, &s->lapic, "local APIC" },
	};
	int rc = pieces(cpu, first, sizeof(first) / sizeof(first[0]), false, err);

	if (rc)
		return rc;
	s->xsave_bytes = cpu->vm->xsave_bytes;
	s->tsc_khz = cpu->tsc_khz;
	s->cpuid = *cpu->cpuid;
	s->msrs = *cpu->vm->msrs;
	rc = read_msrs(cpu, &s->msrs, err);
	return rc ? rc : piece(cpu, KVM_GET_VCPU_EVENTS, &s->events, "events", false, err);
}

/* Registers of s in two calls: the deadline of the timer is a value of the TSC. */
static int set_msrs(struct vcpu *cpu, const struct cpu_state *s, struct img_error *err)
{
	struct msr_table others, deadline = { 0 };
	int rc;

	others.nmsrs = others.pad = 0;
	for (uint32_t i = 0; i < s->msrs.nmsrs; i++) {
		struct msr_table *t = s->msrs.entry[i].index == MSR_TSC_DEADLINE ? &deadline : &others;

		t->entry[t->nmsrs++] = s->msrs.entry[i];
	}
	rc = write_msrs(cpu, &others, err);
	return rc ? rc : write_msrs(cpu, &deadline, err);
}

int cpu_apply(struct vcpu *cpu, struct cpu_state *s, struct img_error *err)
{
	struct kvm_mp_state pending;
	const struct step first[] = {
		/* swallows an INIT or SIPI that is under way in the machine as it was */
		{ KVM_GET_MP_STATE, &pending, "activity" },
		{ KVM_SET_MP_STATE, &s->mp, "activity" },
		{ KVM_SET_REGS, &s->regs, "registers" },
		{ KVM_SET_SREGS2, &s->sregs, "system registers" },
		{ KVM_SET_XSAVE, s->xsave, "extended state" },
		{ KVM_SET_XCRS, &s->xcrs, "extended control registers" },
		{ KVM_SET_DEBUGREGS, &s->debugregs, "debug registers" },
		{ KVM_SET_LAPIC, &s->lapic, "local APIC" },
	};
	int rc = pieces(cpu, first, sizeof(first) / sizeof(first[0]), true, err);

	if (!rc)
		rc = set_msrs(cpu, s, err);
	return rc ? rc : piece(cpu, KVM_SET_VCPU_EVENTS, &s->events, "events", true, err);
}

int cpu_set_cpuid(struct vcpu *cpu, const struct cpuid_table *table, struct img_error *err)
{
	struct cpuid_table *copy = malloc(sizeof(*copy));
	int rc;

	if (!copy)
		return fail(err, IMG_E_NOMEM, "out of memory");
	*copy = *table;
	rc = piece(cpu, KVM_SET_CPUID2, copy, "description (CPUID)", true, err);
	if (rc) {
		free(copy);
		return rc;
	}
	free(cpu->cpuid);
	cpu->cpuid = copy;
	return 0;
}

/* ---- chips and clock from and to KVM ---- */

int chips_capture(struct vm *vm, struct chips_state *s, struct img_error *err)
{
	memset(s, 0, sizeof(*s));
	if (ioctl(vm->fd, KVM_GET_PIT2, &s->pit) < 0)
		return fail_errno(err, "the timer");
	for (__u32 i = 0; i < 3; i++) {
		s->chip[i].chip_id = i;
		if (ioctl(vm->fd, KVM_GET_IRQCHIP, &s->chip[i]) < 0)
			return fail_errno(err, "interrupt controller %u", i);
	}
	if (ioctl(vm->fd, KVM_GET_CLOCK, &s->clock) < 0)
		return fail_errno(err, "the clock");
	return 0;
}

int chips_apply(struct vm *vm, struct chips_state *s, struct img_error *err)
{
	if (ioctl(vm->fd, KVM_SET_PIT2, &s->pit) < 0)
		return fail_errno(err, "the timer");
	/* without flags: the guest's time goes on from the value, however long it was stored */
	s->clock.flags = 0;
	if (ioctl(vm->fd, KVM_SET_CLOCK, &s->clock) < 0)
		return fail_errno(err, "the clock");
	for (__u32 i = 0; i < 3; i++) {
		s->chip[i].chip_id = i;
		if (ioctl(vm->fd, KVM_SET_IRQCHIP, &s->chip[i]) < 0)
			return fail_errno(err, "interrupt controller %u", i);
	}
	return 0;
}

/* ---- reset ---- */

int fresh_capture(struct vm *vm, struct img_error *err)
{
	int rc = 0;

	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++) {
		struct vcpu *cpu = &vm->vcpu[i];

		cpu->fresh = calloc(1, sizeof(*cpu->fresh));
		rc = cpu->fresh ? cpu_capture(cpu, cpu->fresh, err) : fail(err, IMG_E_NOMEM, "out of memory");
	}
	if (rc)
		return rc;
	vm->fresh = calloc(1, sizeof(*vm->fresh));
	return vm->fresh ? chips_capture(vm, vm->fresh, err) : fail(err, IMG_E_NOMEM, "out of memory");
}

/* Linux' 64-bit boot protocol: paging on, flat segments from the table that lies at gdt_gpa, interrupts off. */
static void enter_long_mode(struct cpu_state *s, const struct boot_regs *boot)
{
	const struct kvm_segment flat = { .limit = UINT32_MAX, .present = 1, .s = 1, .g = 1 };
	struct kvm_sregs2 *sr = &s->sregs;
	struct kvm_segment data = flat;

	sr->cs = flat;
	sr->cs.selector = 0x10;
	sr->cs.type = 0xb; /* execute, read, accessed */
	sr->cs.l = 1;
	data.selector = 0x18;
	data.type = 0x3; /* read, write, accessed */
	data.db = 1;
	sr->ds = sr->es = sr->fs = sr->gs = sr->ss = data;
	sr->tr = (struct kvm_segment){ .selector = 0x20, .limit = 0x67, .type = 0xb, .present = 1 };
	sr->gdt.base = boot->gdt_gpa;
	sr->gdt.limit = (uint16_t)(boot->gdt_bytes - 1);
	sr->cr0 = UINT32_C(0x80000000) | 0x33; /* PG; NE, ET, MP, PE */
	sr->cr3 = boot->cr3;
	sr->cr4 = 0x20;	  /* PAE */
	sr->efer = 0x500; /* LMA, LME */
	s->regs = (struct kvm_regs){ .rip = boot->rip, .rsi = boot->rsi, .rflags = 2 };
}

/* The TSC starts at zero as well; frequency and CPUID stay what they are. */
int vm_reset(struct vm *vm, const struct boot_regs *regs, struct img_error *err)
{
	struct cpu_state *s = malloc(sizeof(*s));
	struct chips_state chips = *vm->fresh;
	int rc = s ? 0 : fail(err, IMG_E_NOMEM, "out of memory");

	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++) {
		*s = *vm->vcpu[i].fresh;
		if (i == 0 && regs->long_mode)
			enter_long_mode(s, regs);
		rc = cpu_apply(&vm->vcpu[i], s, err);
	}
	free(s);
	return rc ? rc : chips_apply(vm, &chips, err);
}
