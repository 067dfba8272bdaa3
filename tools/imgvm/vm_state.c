/* SPDX-License-Identifier: MIT */
/*
 * The saved processors, interrupt controllers and timers: sections 'CPU ' of each processor, 'IRQC', 'PIT ', 'CLCK'
 * (format-spec/machine-state.md). vm_layout.c spells them, vm_regs.c knows the order in which KVM takes the values.
 *
 * Loading has three steps. All sections are taken apart; all is compared with what this host has; only then the first
 * value is set. So a state that is damaged or too much for this host leaves the machine as it was.
 */
#include <stdlib.h>
#include <sys/ioctl.h>

#include "fail.h"
#include "vm_int.h"

#define TAG_CPU	  STATE_TAG('C', 'P', 'U', ' ')
#define TAG_CHIPS STATE_TAG('I', 'R', 'Q', 'C')
#define TAG_PIT	  STATE_TAG('P', 'I', 'T', ' ')
#define TAG_CLOCK STATE_TAG('C', 'L', 'C', 'K')
#define VERSION	  1u

/* KVM takes another frequency as the same up to here (its default tsc_tolerance_ppm). */
#define TSC_TOLERANCE_PPM 250u

/* XSAVE area, standard format: SDM volume 1, 13.4 */
#define XSAVE_LEGACY_BYTES 512u
#define XSAVE_MIN_BYTES	   576u

/* What a processor's events may say, without capabilities that nobody turned on. */
#define EVENT_FLAGS                                                                                       \
	(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW | \
	 KVM_VCPUEVENT_VALID_SMM)

/* ---- saving ---- */

int vm_save(struct vm *vm, struct state_writer *out, struct img_error *err)
{
	struct coder c = { .out = out };
	struct chips_state chips;
	struct cpu_state *s = calloc(1, sizeof(*s));
	int rc = s ? 0 : fail(err, IMG_E_NOMEM, "out of memory");

	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++) {
		rc = cpu_capture(&vm->vcpu[i], s, err);
		if (rc)
			break;
		state_begin(out, TAG_CPU, i, VERSION);
		code_cpu(&c, s);
		state_end(out);
	}
	free(s);
	if (!rc)
		rc = chips_capture(vm, &chips, err);
	if (rc)
		return rc;
	state_begin(out, TAG_CHIPS, 0, VERSION);
	code_chips(&c, &chips);
	state_end(out);
	state_begin(out, TAG_PIT, 0, VERSION);
	code_pit(&c, &chips.pit);
	state_end(out);
	state_begin(out, TAG_CLOCK, 0, VERSION);
	state_put64(out, chips.clock.clock);
	state_end(out);
	return 0;
}

/* ---- loading: what does not add up ---- */

static uint64_t le64(const uint8_t *p)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < 8; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static int damaged(unsigned index, const char *what, struct img_error *err)
{
	return fail(err, IMG_E_CORRUPT, "machine state: the %s of processor %u cannot be", what, index);
}

static int check_cpu_values(unsigned index, const struct cpu_state *s, struct img_error *err)
{
	const struct kvm_vcpu_events *e = &s->events;

	if (s->mp.mp_state > KVM_MP_STATE_SIPI_RECEIVED)
		return damaged(index, "activity", err);
	if (s->xsave_bytes < XSAVE_MIN_BYTES)
		return damaged(index, "extended state", err);
	if (e->flags & ~(__u32)EVENT_FLAGS || e->exception.nr > 31 || e->interrupt.shadow > 3)
		return damaged(index, "events", err);
	if (!s->cpuid.nent)
		return damaged(index, "description (CPUID)", err);
	for (uint32_t i = 0; i < s->cpuid.nent; i++)
		if (s->cpuid.entry[i].flags & ~(__u32)KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
			return damaged(index, "description (CPUID)", err);
	return 0;
}

static int check_chip_values(const struct chips_state *s, struct img_error *err)
{
	for (unsigned i = 0; i < 2; i++)
		if (s->chip[i].chip.pic.priority_add > 7)
			return fail(err, IMG_E_CORRUPT, "machine state: interrupt controller %u cannot be", i);
	for (unsigned i = 0; i < 3; i++) {
		const struct kvm_pit_channel_state *ch = &s->pit.channels[i];

		/* 8254: modes 0 to 5, of which 2 and 3 have a second code (KVM's for "not set yet": 0xff); access to
		 * the low byte, the high one, both */
		if (ch->count > 65536 || (ch->mode > 7 && ch->mode != 0xff) || ch->rw_mode > 3 || ch->read_state > 4 ||
		    ch->write_state > 4 || ch->bcd > 1 || ch->gate > 1)
			return fail(err, IMG_E_CORRUPT, "machine state: timer channel %u cannot be", i);
	}
	return 0;
}

/* ---- loading: what this host does not have ---- */

/* The frequency of this processor's TSC is not changed by anybody, but by this call where KVM can. */
static bool tsc_fits(const struct vm *vm, uint32_t here, uint32_t there)
{
	uint64_t tolerance = (uint64_t)here * TSC_TOLERANCE_PPM / 1000000;

	if (!here || !there || here == there || vm->tsc_control)
		return true;
	return there > here ? there - here <= tolerance : here - there <= tolerance;
}

static int check_tsc(const struct vcpu *cpu, const struct cpu_state *s, struct img_error *err)
{
	if (!tsc_fits(cpu->vm, cpu->tsc_khz, s->tsc_khz))
		return fail(
			err, IMG_E_UNSUPPORTED,
			"this host's time stamp counter runs at %u kHz and cannot be made to run at the %u kHz that "
			"the guest has measured",
			cpu->tsc_khz, s->tsc_khz);
	return 0;
}

/* Components of the extended state that this host offers to guests. */
static uint64_t host_components(const struct vm *vm)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(vm->host_cpuid, 0xd, 0);

	/* x87 and SSE are always there */
	return 3 | (e ? e->eax | (uint64_t)e->edx << 32 : 0);
}

/*
 * The area may be longer or shorter than here: KVM's idea of it grows with what the kernel knows. Components lie at
 * the same places (cpuid_check() compares them), so that what both know fits both.
 */
static int check_xsave(const struct vcpu *cpu, const struct cpu_state *s, struct img_error *err)
{
	uint64_t in_use = le64(s->xsave + XSAVE_LEGACY_BYTES), format = le64(s->xsave + XSAVE_LEGACY_BYTES + 8);
	uint64_t missing = in_use;

	if (format) /* XCOMP_BV: KVM speaks the standard format only */
		return damaged(cpu->index, "extended state", err);
	for (__u32 i = 0; i < s->xcrs.nr_xcrs; i++) {
		if (s->xcrs.xcrs[i].xcr)
			return damaged(cpu->index, "extended control registers", err);
		missing |= s->xcrs.xcrs[i].value;
	}
	missing &= ~host_components(cpu->vm);
	for (uint32_t i = cpu->vm->xsave_bytes; i < s->xsave_bytes; i++)
		if (s->xsave[i])
			return damaged(cpu->index, "extended state", err);
	if (missing)
		return fail(err, IMG_E_UNSUPPORTED,
			    "this host's processor lacks state component %d (XCR0), which the guest uses",
			    __builtin_ctzll(missing));
	return 0;
}

static int check_msrs(const struct vcpu *cpu, const struct cpu_state *s, struct img_error *err)
{
	for (uint32_t i = 0; i < s->msrs.nmsrs; i++) {
		const struct kvm_msr_entry *e = &s->msrs.entry[i];

		if (e->data && !msr_find(cpu->vm->msrs, e->index))
			return fail(err, IMG_E_UNSUPPORTED, "this host lacks register 0x%x (MSR), which the guest uses",
				    e->index);
	}
	return 0;
}

static int check_cpu(const struct vcpu *cpu, const struct cpu_state *s, struct img_error *err)
{
	int rc = check_cpu_values(cpu->index, s, err);

	if (!rc && !cpuid_same(&s->cpuid, cpu->cpuid)) {
		rc = cpuid_check(cpu->vm->host_cpuid, &s->cpuid, err);
		if (!rc && cpu->has_run)
			rc = fail(err, IMG_E_UNSUPPORTED,
				  "the saved machine has another processor than the running one: start it anew from "
				  "the snapshot");
	}
	if (!rc)
		rc = check_tsc(cpu, s, err);
	if (!rc)
		rc = check_xsave(cpu, s, err);
	return rc ? rc : check_msrs(cpu, s, err);
}

/* ---- loading ---- */

struct loaded {
	struct chips_state chips;
	struct cpu_state cpu[]; /* vm->nr_vcpus */
};

static int take_cpu(struct state *state, unsigned index, struct cpu_state *s, struct img_error *err)
{
	struct state_reader in;
	struct coder c = { .in = &in };
	int rc = state_open(state, TAG_CPU, index, VERSION, &in, err);

	if (rc)
		return rc;
	code_cpu(&c, s);
	return state_done(&in, "a processor", err);
}

static int take_chips(struct state *state, struct chips_state *s, struct img_error *err)
{
	struct state_reader in;
	struct coder c = { .in = &in };
	int rc = state_open(state, TAG_CHIPS, 0, VERSION, &in, err);

	if (rc)
		return rc;
	code_chips(&c, s);
	rc = state_done(&in, "the interrupt controllers", err);
	if (!rc)
		rc = state_open(state, TAG_PIT, 0, VERSION, &in, err);
	if (rc)
		return rc;
	code_pit(&c, &s->pit);
	rc = state_done(&in, "the timer", err);
	if (!rc)
		rc = state_open(state, TAG_CLOCK, 0, VERSION, &in, err);
	if (rc)
		return rc;
	s->clock.clock = state_get64(&in);
	rc = state_done(&in, "the clock", err);
	return rc ? rc : check_chip_values(s, err);
}

/* What must be there before the registers are set. */
static int prepare_cpu(struct vcpu *cpu, const struct cpu_state *s, struct img_error *err)
{
	if (s->tsc_khz && cpu->tsc_khz && cpu->tsc_khz != s->tsc_khz) {
		if (ioctl(cpu->fd, KVM_SET_TSC_KHZ, (unsigned long)s->tsc_khz) < 0)
			return fail(err, IMG_E_UNSUPPORTED,
				    "KVM refuses a time stamp counter of %u kHz (it has %u kHz)", s->tsc_khz,
				    cpu->tsc_khz);
		cpu->tsc_khz = s->tsc_khz;
	}
	return cpuid_same(&s->cpuid, cpu->cpuid) ? 0 : cpu_set_cpuid(cpu, &s->cpuid, err);
}

/*
 * Processors one after the other: their TSCs were read within microseconds of each other, and KVM, which sees values
 * that fit one clock written within a second, gives them one offset. So they stay in step.
 */
static int apply(struct vm *vm, struct loaded *l, struct img_error *err)
{
	int rc = 0;

	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++)
		rc = prepare_cpu(&vm->vcpu[i], &l->cpu[i], err);
	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++)
		rc = cpu_apply(&vm->vcpu[i], &l->cpu[i], err);
	return rc ? rc : chips_apply(vm, &l->chips, err);
}

/* The first two steps: *out is the caller's (free), NULL after failure. */
static int take_and_check(struct vm *vm, struct state *state, struct loaded **out, struct img_error *err)
{
	struct loaded *l = calloc(1, sizeof(*l) + vm->nr_vcpus * sizeof(l->cpu[0]));
	int rc = l ? 0 : fail(err, IMG_E_NOMEM, "out of memory");

	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++)
		rc = take_cpu(state, i, &l->cpu[i], err);
	if (!rc)
		rc = take_chips(state, &l->chips, err);
	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++)
		rc = check_cpu(&vm->vcpu[i], &l->cpu[i], err);
	if (rc) {
		free(l);
		l = NULL;
	}
	*out = l;
	return rc;
}

int vm_check(struct vm *vm, struct state *state, struct img_error *err)
{
	struct loaded *l;
	int rc = take_and_check(vm, state, &l, err);

	free(l);
	return rc;
}

int vm_load(struct vm *vm, struct state *state, struct img_error *err)
{
	struct loaded *l;
	int rc = take_and_check(vm, state, &l, err);

	if (!rc)
		rc = apply(vm, l, err);
	free(l);
	return rc;
}
