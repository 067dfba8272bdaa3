/* SPDX-License-Identifier: MIT */
/*
 * What vm.c, vcpu.c, cpuid.c, vm_regs.c, vm_layout.c and vm_state.c share.
 *
 * Threads: the owner is the thread that created the VM. While a processor's thread is inside KVM_RUN only `stop`,
 * `run->immediate_exit` and what `lock` covers are touched by the owner; everything else of a processor is the owner's
 * while its thread is parked, and then all ioctls on the processor are issued by the owner.
 */
#ifndef IMGVM_VM_INT_H
#define IMGVM_VM_INT_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#include "vm.h"

/* CPUID entries of a processor; KVM itself has room for 256 (KVM_MAX_CPUID_ENTRIES), and reports about 60. */
#define VM_MAX_CPUID 128u
/* Saved MSRs of a processor: KVM lists about 45 on one host, 150 with PMU and MTRRs. */
#define VM_MAX_MSRS 320u
/* Extended state without AMX takes 2.7 KiB, KVM never says less than 4 KiB (KVM_CAP_XSAVE2). */
#define VM_MAX_XSAVE 16384u

/* As struct kvm_cpuid2 and struct kvm_msrs, with room. */
struct cpuid_table {
	uint32_t nent, padding;
	struct kvm_cpuid_entry2 entry[VM_MAX_CPUID];
};
struct msr_table {
	uint32_t nmsrs, pad;
	struct kvm_msr_entry entry[VM_MAX_MSRS];
};

/* All of a processor that the guest can tell, as KVM hands it out. */
struct cpu_state {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs2 sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint32_t tsc_khz; /* 0: KVM does not know */
	uint32_t xsave_bytes;
	struct cpuid_table cpuid;
	struct msr_table msrs;
	uint8_t xsave[VM_MAX_XSAVE];
};
struct chips_state {
	struct kvm_irqchip chip[3]; /* by chip_id: PIC master, PIC slave, IOAPIC */
	struct kvm_pit_state2 pit;
	struct kvm_clock_data clock;
};

struct vcpu {
	struct vm *vm;
	unsigned index; /* its APIC id */
	int fd;
	struct kvm_run *run; /* vm->run_bytes, shared with the kernel */
	pthread_t thread;
	bool started;
	bool has_run;		   /* KVM refuses another CPUID from here on; owner */
	uint32_t tsc_khz;	   /* 0: KVM does not know; owner */
	struct cpuid_table *cpuid; /* what was given to KVM, without what KVM adds while the guest runs; owner */
	struct cpu_state *fresh;   /* after creation: what a reset restores */
};

struct vm {
	int fd;
	struct memory *mem;
	struct bus *bus;
	const struct machine_host *host;
	unsigned nr_vcpus;
	struct vcpu vcpu[VM_MAX_VCPUS];
	size_t run_bytes;
	uint32_t xsave_bytes;
	bool tsc_control;		/* KVM scales the guest's TSC */
	struct cpuid_table *host_cpuid; /* what this host can give a guest */
	struct msr_table *msrs;		/* indices that can be read here; values mean nothing */
	struct chips_state *fresh;
	bool tracking;	  /* the dirty log is on */
	uint64_t *bitmap; /* room for the dirty log of the largest slot */

	pthread_mutex_t lock;
	pthread_cond_t wake;	/* vCPUs: stop or ending changed */
	pthread_cond_t parked;	/* owner: nr_parked grew */
	_Atomic bool stop;	/* written under lock; vCPUs must not enter the guest */
	bool ending;		/* lock */
	unsigned nr_started;	/* owner */
	unsigned nr_parked;	/* lock */
	struct img_error error; /* lock; of the first processor that could not go on */
};

/* ---- cpuid.c ---- */

/* What KVM supports, without what this program cannot save. */
int cpuid_read_host(int kvm_fd, struct cpuid_table *out, struct img_error *err);
/* The part of it that needs no KVM: hides features, drops entries of zeros. */
void cpuid_hide(struct cpuid_table *t);
/* The table for processor `index` of nr_vcpus: ids and topology (one package of nr_vcpus cores). */
void cpuid_number(struct cpuid_table *t, unsigned index, unsigned nr_vcpus);
/* Whether a guest that saw `guest` can live on `host`. UNSUPPORTED, naming the first bit that is missing. */
int cpuid_check(const struct cpuid_table *host, const struct cpuid_table *guest, struct img_error *err);
/* The same entries, in any order. */
bool cpuid_same(const struct cpuid_table *a, const struct cpuid_table *b);
/* NULL if there is none. */
const struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid_table *t, uint32_t function, uint32_t index);

/* ---- vcpu.c ---- */

int vcpu_create(struct vcpu *cpu, struct img_error *err);
void vcpu_free(struct vcpu *cpu);
int vcpu_start(struct vcpu *cpu, struct img_error *err);
/* Gets its thread out of the guest; vm->stop or vm->ending is set. */
void vcpu_kick(struct vcpu *cpu);

/* ---- vm_regs.c ---- */

/* Gives KVM the table and keeps it in cpu->cpuid. KVM refuses a change once the processor has run. */
int cpu_set_cpuid(struct vcpu *cpu, const struct cpuid_table *table, struct img_error *err);
/* Fills vm->msrs: what KVM lists, and of that what can be read. After the first processor has its CPUID. */
int msrs_find(struct vm *vm, int kvm_fd, struct img_error *err);
/* NULL if it is not in the table. */
const struct kvm_msr_entry *msr_find(const struct msr_table *t, uint32_t index);
/* Fills all of *s, which is zeros. */
int cpu_capture(struct vcpu *cpu, struct cpu_state *s, struct img_error *err);
/* Sets all but CPUID and the TSC's frequency. CORRUPT: KVM finds that a value cannot be; UNSUPPORTED: an MSR. */
int cpu_apply(struct vcpu *cpu, struct cpu_state *s, struct img_error *err);
int chips_capture(struct vm *vm, struct chips_state *s, struct img_error *err);
int chips_apply(struct vm *vm, struct chips_state *s, struct img_error *err);
/* vm->fresh and that of each processor. */
int fresh_capture(struct vm *vm, struct img_error *err);

/* ---- vm_layout.c ---- */

struct coder {
	struct state_writer *out; /* one of them is NULL */
	struct state_reader *in;
};

void code_cpu(struct coder *c, struct cpu_state *s);
void code_chips(struct coder *c, struct chips_state *s);
void code_pit(struct coder *c, struct kvm_pit_state2 *s);

#endif
