/* SPDX-License-Identifier: MIT */
/*
 * A processor and its thread: KVM_RUN in a loop, and what the guest's exits mean.
 *
 *            vm_resume()                    stop
 *   parked ---------------> in the guest ----------> KVM_RUN until EINTR ---> parked
 *                                |                                              ^
 *                                | triple fault, error: event, then idle -------+ stop
 *
 * How a pause reaches a processor wherever it is: the owner sets vm->stop and run->immediate_exit and sends STOP_SIGNAL
 * to the thread. In the guest, or halted in the kernel, the signal ends KVM_RUN with EINTR. Just before KVM_RUN the
 * signal is spent, but KVM_RUN sees immediate_exit. In a device, or waiting for the bus lock, the thread gets to the
 * next KVM_RUN by itself. So nothing is lost, and the loop has one place to stop: after EINTR.
 *
 * That place is also the right one: the result of an access (IN, a load from a device) reaches the guest's registers
 * only in the next KVM_RUN, and an instruction may need several accesses. With immediate_exit, KVM_RUN completes them,
 * exit by exit, and returns EINTR when the instruction has retired. State is complete only then.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fail.h"
#include "vm_int.h"

#define STOP_SIGNAL SIGUSR1
/* Of virtual memory; only what is touched counts. Devices' register files run on it. */
#define STACK_BYTES (256u << 10)

static void on_stop_signal(int sig)
{
	(void)sig; /* it has interrupted KVM_RUN, which is all it is for */
}

/* ---- parking ---- */

/* Until the machine goes on. False: the thread is to end. */
static bool park(struct vcpu *cpu)
{
	struct vm *vm = cpu->vm;
	bool go_on;

	pthread_mutex_lock(&vm->lock);
	vm->nr_parked++;
	pthread_cond_signal(&vm->parked);
	while (vm->stop && !vm->ending)
		pthread_cond_wait(&vm->wake, &vm->lock);
	vm->nr_parked--;
	go_on = !vm->ending;
	pthread_mutex_unlock(&vm->lock);
	return go_on;
}

/* The guest cannot go on here before it is reset or loaded: sleeps until the machine stops. */
static void idle(struct vcpu *cpu)
{
	struct vm *vm = cpu->vm;

	pthread_mutex_lock(&vm->lock);
	while (!vm->stop && !vm->ending)
		pthread_cond_wait(&vm->wake, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

static void raise_event(struct vcpu *cpu, enum machine_event event)
{
	const struct machine_host *host = cpu->vm->host;

	host->event(host->machine, event);
}

/* ---- what cannot go on ---- */

static void report(struct vcpu *cpu, const char *what)
{
	struct vm *vm = cpu->vm;
	struct kvm_regs regs = { 0 };
	struct kvm_sregs sregs = { 0 };

	/* may fail as well; zeros say so */
	ioctl(cpu->fd, KVM_GET_REGS, &regs);
	ioctl(cpu->fd, KVM_GET_SREGS, &sregs);
	pthread_mutex_lock(&vm->lock);
	fail(&vm->error, IMG_E_UNSUPPORTED, "processor %u: %s at %x:%llx (cr0 %llx cr3 %llx cr4 %llx efer %llx)",
	     cpu->index, what, sregs.cs.selector, (unsigned long long)regs.rip, (unsigned long long)sregs.cr0,
	     (unsigned long long)sregs.cr3, (unsigned long long)sregs.cr4, (unsigned long long)sregs.efer);
	pthread_mutex_unlock(&vm->lock);
	raise_event(cpu, MACHINE_ERROR);
}

static void report_internal(struct vcpu *cpu)
{
	const struct kvm_run *run = cpu->run;
	char text[96], *at = text;

	if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION) {
		snprintf(text, sizeof(text), "KVM gave up (internal error %u)", run->internal.suberror);
		report(cpu, text);
		return;
	}
	at += snprintf(text, sizeof(text), "KVM cannot emulate an instruction");
	/* flags and the instruction's bytes take three words of ndata */
	if (run->emulation_failure.ndata >= 3 &&
	    run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
		for (unsigned i = 0; i < run->emulation_failure.insn_size && i < 15; i++)
			at += snprintf(at, (size_t)(text + sizeof(text) - at), "%s%02x", i ? " " : ", ",
				       run->emulation_failure.insn_bytes[i]);
	report(cpu, text);
}

/* ---- exits ---- */

static void port_access(struct vcpu *cpu)
{
	const struct kvm_run *run = cpu->run;
	uint8_t *data = (uint8_t *)cpu->run + run->io.data_offset;
	unsigned bytes = run->io.size;

	/* string instructions hand over several at once */
	for (uint32_t i = 0; i < run->io.count; i++, data += bytes) {
		if (run->io.direction == KVM_EXIT_IO_OUT)
			bus_write(cpu->vm->bus, BUS_PIO, run->io.port, data, bytes);
		else
			bus_read(cpu->vm->bus, BUS_PIO, run->io.port, data, bytes);
	}
}

static void memory_access(struct vcpu *cpu)
{
	struct kvm_run *run = cpu->run;
	unsigned len = run->mmio.len <= 8 ? run->mmio.len : 8;
	/* an access across a page comes in pieces of any length */
	unsigned step = len == 1 || len == 2 || len == 4 || len == 8 ? len : 1;

	for (unsigned i = 0; i < len; i += step) {
		if (run->mmio.is_write)
			bus_write(cpu->vm->bus, BUS_MMIO, run->mmio.phys_addr + i, run->mmio.data + i, step);
		else
			bus_read(cpu->vm->bus, BUS_MMIO, run->mmio.phys_addr + i, run->mmio.data + i, step);
	}
}

/* False: the guest cannot go on. */
static bool handle_exit(struct vcpu *cpu)
{
	const struct kvm_run *run = cpu->run;
	char text[80];

	switch (run->exit_reason) {
	case KVM_EXIT_IO: port_access(cpu); return true;
	case KVM_EXIT_MMIO: memory_access(cpu); return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_HLT: /* the kernel's local APIC waits by itself */ return true;
	case KVM_EXIT_SHUTDOWN: /* triple fault: a PC resets */ raise_event(cpu, MACHINE_RESET); return false;
	case KVM_EXIT_SYSTEM_EVENT:
		if (run->system_event.type == KVM_SYSTEM_EVENT_RESET ||
		    run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN) {
			raise_event(cpu, run->system_event.type == KVM_SYSTEM_EVENT_RESET ? MACHINE_RESET :
											    MACHINE_POWEROFF);
			return false;
		}
		snprintf(text, sizeof(text), "KVM's event %u", run->system_event.type);
		break;
	case KVM_EXIT_INTERNAL_ERROR: report_internal(cpu); return false;
	case KVM_EXIT_FAIL_ENTRY:
		snprintf(text, sizeof(text), "the guest cannot be entered (reason 0x%llx)",
			 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	default: snprintf(text, sizeof(text), "KVM's exit %u, which nobody handles", run->exit_reason); break;
	}
	report(cpu, text);
	return false;
}

/* Until the machine stops and the instruction in flight has retired. */
static void run_guest(struct vcpu *cpu)
{
	char text[80];

	for (;;) {
		if (ioctl(cpu->fd, KVM_RUN, 0) == 0) {
			if (handle_exit(cpu))
				continue;
			idle(cpu);
			return;
		}
		if (errno == EINTR && atomic_load(&cpu->vm->stop))
			return;
		/* EAGAIN: a processor that waited for its start has been started */
		if (errno == EINTR || errno == EAGAIN)
			continue;
		snprintf(text, sizeof(text), "KVM_RUN: %s", strerror(errno));
		report(cpu, text);
		idle(cpu);
		return;
	}
}

static void *vcpu_main(void *arg)
{
	struct vcpu *cpu = arg;

	while (park(cpu))
		run_guest(cpu);
	return NULL;
}

/* ---- creation ---- */

int vcpu_create(struct vcpu *cpu, struct img_error *err)
{
	void *run;
	int khz;

	cpu->fd = ioctl(cpu->vm->fd, KVM_CREATE_VCPU, (unsigned long)cpu->index);
	if (cpu->fd < 0)
		return fail_errno(err, "creating processor %u", cpu->index);
	run = mmap(NULL, cpu->vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
	if (run == MAP_FAILED)
		return fail_errno(err, "creating processor %u", cpu->index);
	cpu->run = run;
	/* fails where the host's own runs unevenly */
	khz = ioctl(cpu->fd, KVM_GET_TSC_KHZ, 0);
	cpu->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
	return 0;
}

void vcpu_free(struct vcpu *cpu)
{
	assert(!cpu->started);
	if (cpu->run)
		munmap(cpu->run, cpu->vm->run_bytes);
	if (cpu->fd >= 0)
		close(cpu->fd);
	free(cpu->cpuid);
	free(cpu->fresh);
}

int vcpu_start(struct vcpu *cpu, struct img_error *err)
{
	struct sigaction sa = { .sa_handler = on_stop_signal };
	sigset_t all, before;
	pthread_attr_t attr;
	char name[16];
	int rc;

	/* not SA_RESTART: KVM_RUN must end */
	sigaction(STOP_SIGNAL, &sa, NULL);
	rc = pthread_attr_init(&attr);
	if (rc)
		return fail(err, IMG_E_NOMEM, "out of memory");
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	/* signals are for the threads that know what to do with them; this one takes only its own */
	sigfillset(&all);
	sigdelset(&all, STOP_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&cpu->thread, &attr, vcpu_main, cpu);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (rc) {
		errno = rc;
		return fail_errno(err, "a thread for processor %u", cpu->index);
	}
	cpu->started = true;
	snprintf(name, sizeof(name), "vcpu-%u", cpu->index);
	pthread_setname_np(cpu->thread, name);
	return 0;
}

void vcpu_kick(struct vcpu *cpu)
{
	__atomic_store_n(&cpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(cpu->thread, STOP_SIGNAL);
}
