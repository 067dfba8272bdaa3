/* SPDX-License-Identifier: MIT */
/*
 * The machine's processors over the KVM API: vm.c holds the VM (memory slots, interrupt controllers, dirty log), vcpu.c
 * a processor and its thread, cpuid.c what the guest is told of them, vm_regs.c how their state moves from and to KVM,
 * vm_layout.c how it is spelled, vm_state.c what is saved of all that and when it is refused.
 *
 * The interrupt controllers (PIC, IOAPIC, local APICs) and the PIT are the kernel's. A processor's thread runs the
 * guest and hands its accesses to the bus; it stops in two ways: paused (vm_pause, any number of times) or ended.
 *
 * Threads: all functions but vm_msi(), vm_irq_line() and vm_ioeventfd() are for the thread that created the VM.
 * Functions marked "paused" need vm_pause() to have returned.
 */
#ifndef IMGVM_VM_H
#define IMGVM_VM_H

#include "boot.h"
#include "bus.h"
#include "memory.h"
#include "state.h"

#define VM_MAX_VCPUS 8

struct vm; /* opaque */

struct vm_options {
	struct memory *mem;
	const uint8_t *rom; /* boot_rom(); NULL: none */
	uint64_t rom_bytes;
	unsigned nr_vcpus; /* 1 to VM_MAX_VCPUS */
	bool track;	   /* the dirty log is on from the start: free now, 3 ms once there are processors (measured) */
	struct bus *bus;
	const struct machine_host *host; /* for MACHINE_RESET (triple fault) and MACHINE_ERROR */
};

/* /dev/kvm is there, may be opened, and has what we need. IMG_E_UNSUPPORTED or IMG_E_IO, with what to do about it. *fd:
 * open /dev/kvm. */
int vm_probe(int *fd, struct img_error *err);
/* Memory slots come before the interrupt controllers and the processors: 0.3 ms instead of 4.5 to 11 (measured).
 * kvm_fd: vm_probe()'s, owned from here on. */
int vm_create(int kvm_fd, const struct vm_options *opts, struct vm **out, struct img_error *err);
void vm_destroy(struct vm *vm); /* ends and joins the threads; NULL is allowed */

/* Starts the threads, paused. */
int vm_start(struct vm *vm, struct img_error *err);
void vm_resume(struct vm *vm);
/* Returns when every processor has left the guest, the access in flight has been retired (immediate_exit), and its
 * thread waits. */
void vm_pause(struct vm *vm);
/* Paused, after long: ticks of the PIT that were due meanwhile will not be made up for. Without it a guest that keeps
 * time by them gets all of them at once. */
void vm_drop_ticks(struct vm *vm);
/* After MACHINE_ERROR: what happened, on which processor, at which address. */
void vm_error(struct vm *vm, struct img_error *err);

/* Paused: processors, interrupt controllers and PIT as after power-on, the first processor as regs says. */
int vm_reset(struct vm *vm, const struct boot_regs *regs, struct img_error *err);

/* Paused. Sections: 'CPU ' of each processor, 'IRQC', 'PIT ', 'CLCK'. The order of saving and restoring, and why, is in
 * vm_state.c. */
int vm_save(struct vm *vm, struct state_writer *out, struct img_error *err);
/*
 * Paused, the saved RAM in place: KVM writes some of it (clock pages). UNSUPPORTED, before anything changed, where this
 * host's processor or KVM lacks what the guest has seen: a CPUID bit, an MSR, a state component, its TSC frequency.
 * CORRUPT for what does not add up. After any other failure the VM must be reset or loaded again.
 */
int vm_load(struct vm *vm, struct state *state, struct img_error *err);
/* Whether vm_load() would take it, as far as that can be told without changing anything. Also while the guest runs. */
int vm_check(struct vm *vm, struct state *state, struct img_error *err);

/* The dirty log. On: from here on KVM records which pages the guest writes; starts clean. */
int vm_track(struct vm *vm, bool on, struct img_error *err);
/* Takes what was written since the last call, or since vm_track(): a bit a page of mem->base, or-ed into words
 * (ram_bytes / 4096 bits). May run while the guest does. */
int vm_take_dirty(struct vm *vm, uint64_t *words, struct img_error *err);
/* Paused: the mapping below mem->base was replaced (revert). Nothing to do for KVM; drops what the dirty log holds. */
int vm_forget_dirty(struct vm *vm, struct img_error *err);

/* struct machine_host's members over KVM. Any thread. */
void vm_msi(struct vm *vm, uint64_t addr, uint32_t data);
void vm_irq_line(struct vm *vm, unsigned gsi, bool level);
int vm_ioeventfd(struct vm *vm, uint64_t gpa, unsigned bytes, int fd, bool on);

#endif
