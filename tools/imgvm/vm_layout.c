/* SPDX-License-Identifier: MIT */
/*
 * How the sections 'CPU ', 'IRQC' and 'PIT ' spell what KVM hands out (format-spec/machine-state.md): field by field,
 * so that neither the padding of KVM's structures nor a host's byte order is in the image. Each layout is written down
 * once, for both directions.
 */
#include <stddef.h>

#include "vm_int.h"

static void raw(struct coder *c, void *data, size_t bytes)
{
	if (c->out)
		state_put(c->out, data, bytes);
	else
		state_get(c->in, data, bytes);
}

static void u8(struct coder *c, __u8 *v)
{
	raw(c, v, 1);
}

static void u16(struct coder *c, __u16 *v)
{
	if (c->out)
		state_put16(c->out, *v);
	else
		*v = state_get16(c->in);
}

static void u32(struct coder *c, __u32 *v)
{
	if (c->out)
		state_put32(c->out, *v);
	else
		*v = state_get32(c->in);
}

static void u64(struct coder *c, __u64 *v)
{
	if (c->out)
		state_put64(c->out, *v);
	else
		*v = state_get64(c->in);
}

/* A count that stands before what it counts; too large: the rest is not read. */
static bool count(struct coder *c, __u32 *nr, __u32 max)
{
	u32(c, nr);
	if (*nr <= max)
		return true;
	*nr = 0;
	if (c->in)
		c->in->bad = true;
	return false;
}

static void code_regs(struct coder *c, struct kvm_regs *r)
{
	__u64 *const all[] = { &r->rax, &r->rbx, &r->rcx, &r->rdx, &r->rsi, &r->rdi, &r->rsp, &r->rbp, &r->r8,
			       &r->r9,	&r->r10, &r->r11, &r->r12, &r->r13, &r->r14, &r->r15, &r->rip, &r->rflags };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		u64(c, all[i]);
}

static void code_segment(struct coder *c, struct kvm_segment *s)
{
	__u8 *const bits[] = { &s->type, &s->present, &s->dpl, &s->db, &s->s, &s->l, &s->g, &s->avl, &s->unusable };

	u64(c, &s->base);
	u32(c, &s->limit);
	u16(c, &s->selector);
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++)
		u8(c, bits[i]);
}

static void code_sregs(struct coder *c, struct kvm_sregs2 *s)
{
	struct kvm_segment *const segments[] = { &s->cs, &s->ds, &s->es, &s->fs, &s->gs, &s->ss, &s->tr, &s->ldt };
	__u64 *const regs[] = { &s->cr0,       &s->cr2,	  &s->cr3,	 &s->cr4,	&s->cr8,       &s->efer,
				&s->apic_base, &s->flags, &s->pdptrs[0], &s->pdptrs[1], &s->pdptrs[2], &s->pdptrs[3] };

	for (size_t i = 0; i < sizeof(segments) / sizeof(segments[0]); i++)
		code_segment(c, segments[i]);
	u64(c, &s->gdt.base);
	u16(c, &s->gdt.limit);
	u64(c, &s->idt.base);
	u16(c, &s->idt.limit);
	for (size_t i = 0; i < sizeof(regs) / sizeof(regs[0]); i++)
		u64(c, regs[i]);
}

static void code_extended(struct coder *c, struct cpu_state *s)
{
	if (count(c, &s->xsave_bytes, VM_MAX_XSAVE))
		raw(c, s->xsave, s->xsave_bytes);
	if (!count(c, &s->xcrs.nr_xcrs, KVM_MAX_XCRS))
		return;
	for (__u32 i = 0; i < s->xcrs.nr_xcrs; i++) {
		u32(c, &s->xcrs.xcrs[i].xcr);
		u64(c, &s->xcrs.xcrs[i].value);
	}
}

static void code_debug(struct coder *c, struct kvm_debugregs *d)
{
	for (size_t i = 0; i < 4; i++)
		u64(c, &d->db[i]);
	u64(c, &d->dr6);
	u64(c, &d->dr7);
}

static void code_cpuid(struct coder *c, struct cpuid_table *t)
{
	if (!count(c, &t->nent, VM_MAX_CPUID))
		return;
	for (__u32 i = 0; i < t->nent; i++) {
		struct kvm_cpuid_entry2 *e = &t->entry[i];
		__u32 *const all[] = { &e->function, &e->index, &e->flags, &e->eax, &e->ebx, &e->ecx, &e->edx };

		for (size_t j = 0; j < sizeof(all) / sizeof(all[0]); j++)
			u32(c, all[j]);
	}
}

static void code_msrs(struct coder *c, struct msr_table *t)
{
	if (!count(c, &t->nmsrs, VM_MAX_MSRS))
		return;
	for (__u32 i = 0; i < t->nmsrs; i++) {
		u32(c, &t->entry[i].index);
		u64(c, &t->entry[i].data);
	}
}

static void code_events(struct coder *c, struct kvm_vcpu_events *e)
{
	u8(c, &e->exception.injected);
	u8(c, &e->exception.nr);
	u8(c, &e->exception.has_error_code);
	u8(c, &e->exception.pending);
	u32(c, &e->exception.error_code);
	u8(c, &e->interrupt.injected);
	u8(c, &e->interrupt.nr);
	u8(c, &e->interrupt.soft);
	u8(c, &e->interrupt.shadow);
	u8(c, &e->nmi.injected);
	u8(c, &e->nmi.pending);
	u8(c, &e->nmi.masked);
	u32(c, &e->sipi_vector);
	u32(c, &e->flags);
	u8(c, &e->smi.smm);
	u8(c, &e->smi.pending);
	u8(c, &e->smi.smm_inside_nmi);
	u8(c, &e->smi.latched_init);
}

void code_cpu(struct coder *c, struct cpu_state *s)
{
	u32(c, &s->mp.mp_state);
	code_regs(c, &s->regs);
	code_sregs(c, &s->sregs);
	code_extended(c, s);
	code_debug(c, &s->debugregs);
	raw(c, s->lapic.regs, sizeof(s->lapic.regs));
	u32(c, &s->tsc_khz);
	code_cpuid(c, &s->cpuid);
	code_msrs(c, &s->msrs);
	code_events(c, &s->events);
}

void code_chips(struct coder *c, struct chips_state *s)
{
	struct kvm_ioapic_state *io = &s->chip[KVM_IRQCHIP_IOAPIC].chip.ioapic;

	/* sixteen bytes, each a register */
	raw(c, &s->chip[KVM_IRQCHIP_PIC_MASTER].chip.pic, sizeof(struct kvm_pic_state));
	raw(c, &s->chip[KVM_IRQCHIP_PIC_SLAVE].chip.pic, sizeof(struct kvm_pic_state));
	u64(c, &io->base_address);
	u32(c, &io->ioregsel);
	u32(c, &io->id);
	u32(c, &io->irr);
	for (size_t i = 0; i < KVM_IOAPIC_NUM_PINS; i++) {
		__u64 bits = io->redirtbl[i].bits;

		u64(c, &bits);
		io->redirtbl[i].bits = bits;
	}
}

void code_pit(struct coder *c, struct kvm_pit_state2 *s)
{
	for (size_t i = 0; i < 3; i++) {
		struct kvm_pit_channel_state *ch = &s->channels[i];
		__u8 *const all[] = { &ch->count_latched, &ch->status_latched, &ch->status,
				      &ch->read_state,	  &ch->write_state,    &ch->write_latch,
				      &ch->rw_mode,	  &ch->mode,	       &ch->bcd,
				      &ch->gate };

		u32(c, &ch->count);
		u16(c, &ch->latched_count);
		for (size_t j = 0; j < sizeof(all) / sizeof(all[0]); j++)
			u8(c, all[j]);
		/* not the time of loading: it is of the host's clock, and KVM starts the count anew */
	}
	u32(c, &s->flags);
}
