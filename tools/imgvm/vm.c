/* SPDX-License-Identifier: MIT */
/*
 * The virtual machine as KVM knows it: memory slots, interrupt controllers, the dirty log; its processors as a whole.
 *
 * Guest physical addresses: RAM as memory.h lays it out, the ROM read-only up to 4 GiB, and below the room for the
 * largest ROM four pages that KVM on Intel processors wants for itself. Interrupt lines have the kernel's default
 * routing (GSI 0 to 15 to PIC and IOAPIC pin of the same number, 16 to 23 to the IOAPIC only), which no state carries.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fail.h"
#include "vm_int.h"

#define KVM_PATH      "/dev/kvm"
#define PIT_RATE      2u /* Intel 8254, modes of a counter: rate generator, square wave */
#define PIT_SQUARE    3u
#define ROM_SLOT      MEMORY_MAX_SLOTS
#define ROM_MAX_BYTES (UINT64_C(16) << 20)
/* A task state segment of three pages and a page table, for real mode on processors that cannot run it as a guest. */
#define TSS_GPA	     (MEMORY_HIGH - ROM_MAX_BYTES - 3 * MEMORY_PAGE)
#define IDENTITY_GPA (TSS_GPA - MEMORY_PAGE)

/* ---- what KVM must have ---- */

static const struct {
	int cap;
	const char *name;
} needed[] = {
	{ KVM_CAP_USER_MEMORY, "USER_MEMORY" },
	{ KVM_CAP_READONLY_MEM, "READONLY_MEM" },
	{ KVM_CAP_IRQCHIP, "IRQCHIP" },
	{ KVM_CAP_IRQ_ROUTING, "IRQ_ROUTING" },
	{ KVM_CAP_PIT2, "PIT2" },
	{ KVM_CAP_PIT_STATE2, "PIT_STATE2" },
	{ KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI" },
	{ KVM_CAP_IOEVENTFD, "IOEVENTFD" },
	{ KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT" },
	{ KVM_CAP_EXT_CPUID, "EXT_CPUID" },
	{ KVM_CAP_MP_STATE, "MP_STATE" },
	{ KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS" },
	{ KVM_CAP_XSAVE, "XSAVE" },
	{ KVM_CAP_XCRS, "XCRS" },
	{ KVM_CAP_DEBUGREGS, "DEBUGREGS" },
	{ KVM_CAP_SREGS2, "SREGS2" },
	{ KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK" },
	{ KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR" },
	{ KVM_CAP_SET_IDENTITY_MAP_ADDR, "SET_IDENTITY_MAP_ADDR" },
};

static int check_kvm(int fd, struct img_error *err)
{
	int version = ioctl(fd, KVM_GET_API_VERSION, 0);

	if (version != KVM_API_VERSION)
		return fail(err, IMG_E_UNSUPPORTED, KVM_PATH ": version %d of its interface, %d is needed", version,
			    KVM_API_VERSION);
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (ioctl(fd, KVM_CHECK_EXTENSION, needed[i].cap) <= 0)
			return fail(err, IMG_E_UNSUPPORTED,
				    KVM_PATH ": lacks KVM_CAP_%s; Linux 5.14 or newer on x86-64 has it",
				    needed[i].name);
	return 0;
}

int vm_probe(int *fd, struct img_error *err)
{
	int kvm = open(KVM_PATH, O_RDWR | O_CLOEXEC), rc;

	*fd = -1;
	if (kvm < 0 && (errno == ENOENT || errno == ENXIO || errno == ENODEV))
		return fail(err, IMG_E_UNSUPPORTED,
			    KVM_PATH " is not there: the processor's virtualization is off, hidden from this machine, "
				     "or the module (kvm_intel, kvm_amd) is not loaded");
	if (kvm < 0 && (errno == EACCES || errno == EPERM))
		return fail(err, IMG_E_IO, KVM_PATH " may not be opened by this user: join the group kvm");
	if (kvm < 0)
		return fail_errno(err, KVM_PATH);
	rc = check_kvm(kvm, err);
	if (rc) {
		close(kvm);
		return rc;
	}
	*fd = kvm;
	return 0;
}

/* ---- memory ---- */

static int set_slot(struct vm *vm, struct kvm_userspace_memory_region *region, struct img_error *err)
{
	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, region) < 0)
		return fail_errno(err, "guest memory at 0x%llx", (unsigned long long)region->guest_phys_addr);
	return 0;
}

static int set_ram(struct vm *vm, unsigned i, bool tracking, struct img_error *err)
{
	const struct memory_slot *slot = &vm->mem->slot[i];
	struct kvm_userspace_memory_region region = {
		.slot = i,
		.flags = tracking ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->bytes,
		.userspace_addr = (uintptr_t)(vm->mem->base + slot->linear),
	};

	return set_slot(vm, &region, err);
}

static int set_rom(struct vm *vm, const uint8_t *rom, uint64_t bytes, struct img_error *err)
{
	struct kvm_userspace_memory_region region = {
		.slot = ROM_SLOT,
		.flags = KVM_MEM_READONLY,
		.guest_phys_addr = MEMORY_HIGH - bytes,
		.memory_size = bytes,
		.userspace_addr = (uintptr_t)rom,
	};

	if (!rom)
		return 0;
	if (!bytes || bytes > ROM_MAX_BYTES || bytes % MEMORY_PAGE || (uintptr_t)rom % MEMORY_PAGE)
		return fail(err, IMG_E_INVALID, "a ROM is a multiple of 4 KiB up to 16 MiB");
	return set_slot(vm, &region, err);
}

/* ---- creation ---- */

static int create_fd(struct vm *vm, int kvm_fd, struct img_error *err)
{
	int max = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
	int run_bytes = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (max > 0 && vm->nr_vcpus > (unsigned)max)
		return fail(err, IMG_E_LIMIT, KVM_PATH ": %u processors, but it has at most %d", vm->nr_vcpus, max);
	if (run_bytes < (int)sizeof(struct kvm_run))
		return fail(err, IMG_E_UNSUPPORTED, KVM_PATH ": no memory to share with a processor");
	vm->run_bytes = (size_t)run_bytes;
	/* interrupted by signals on some kernels */
	do
		vm->fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	while (vm->fd < 0 && errno == EINTR);
	if (vm->fd < 0)
		return fail_errno(err, "creating a virtual machine");
	return 0;
}

/* What this KVM can do beyond what it must. */
static int ask_kvm(struct vm *vm, int kvm_fd, struct img_error *err)
{
	int xsave = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);

	vm->xsave_bytes = xsave > (int)sizeof(struct kvm_xsave) ? (uint32_t)xsave : (uint32_t)sizeof(struct kvm_xsave);
	if (vm->xsave_bytes > VM_MAX_XSAVE)
		return fail(err, IMG_E_UNSUPPORTED, "this processor's extended state takes %u bytes", vm->xsave_bytes);
	vm->tsc_control = ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
	vm->host_cpuid = calloc(1, sizeof(*vm->host_cpuid));
	if (!vm->host_cpuid)
		return fail(err, IMG_E_NOMEM, "out of memory");
	return cpuid_read_host(kvm_fd, vm->host_cpuid, err);
}

static int create_memory(struct vm *vm, const struct vm_options *opts, struct img_error *err)
{
	uint64_t identity = IDENTITY_GPA, largest = 0;
	int rc = 0;

	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_GPA) < 0 ||
	    ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
		return fail_errno(err, "KVM's own pages in the guest");
	for (unsigned i = 0; !rc && i < vm->mem->nr_slots; i++) {
		rc = set_ram(vm, i, opts->track, err);
		if (vm->mem->slot[i].bytes > largest)
			largest = vm->mem->slot[i].bytes;
	}
	if (!rc)
		rc = set_rom(vm, opts->rom, opts->rom_bytes, err);
	if (rc)
		return rc;
	/* touched only when the log is read */
	vm->bitmap = calloc((size_t)(largest / MEMORY_PAGE / 64 + 1), sizeof(*vm->bitmap));
	return vm->bitmap ? 0 : fail(err, IMG_E_NOMEM, "out of memory");
}

static int create_chips(struct vm *vm, struct img_error *err)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };

	if (ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
		return fail_errno(err, "the interrupt controllers");
	if (ioctl(vm->fd, KVM_CREATE_PIT2, &pit) < 0)
		return fail_errno(err, "the timer");
	return 0;
}

static int create_processor(struct vm *vm, unsigned index, struct img_error *err)
{
	struct cpuid_table *table;
	int rc = vcpu_create(&vm->vcpu[index], err);

	if (rc)
		return rc;
	table = malloc(sizeof(*table));
	if (!table)
		return fail(err, IMG_E_NOMEM, "out of memory");
	*table = *vm->host_cpuid;
	cpuid_number(table, index, vm->nr_vcpus);
	rc = cpu_set_cpuid(&vm->vcpu[index], table, err);
	free(table);
	return rc;
}

int vm_create(int kvm_fd, const struct vm_options *opts, struct vm **out, struct img_error *err)
{
	struct vm *vm = NULL;
	int rc = 0;

	*out = NULL;
	if (!opts->nr_vcpus || opts->nr_vcpus > VM_MAX_VCPUS)
		rc = fail(err, IMG_E_INVALID, "a machine has 1 to %u processors", VM_MAX_VCPUS);
	if (!rc)
		vm = calloc(1, sizeof(*vm));
	if (!rc && !vm)
		rc = fail(err, IMG_E_NOMEM, "out of memory");
	if (rc) {
		close(kvm_fd);
		return rc;
	}
	*vm = (struct vm){ .fd = -1,
			   .mem = opts->mem,
			   .bus = opts->bus,
			   .host = opts->host,
			   .nr_vcpus = opts->nr_vcpus,
			   .tracking = opts->track,
			   .lock = PTHREAD_MUTEX_INITIALIZER,
			   .wake = PTHREAD_COND_INITIALIZER,
			   .parked = PTHREAD_COND_INITIALIZER,
			   .stop = true };
	for (unsigned i = 0; i < VM_MAX_VCPUS; i++)
		vm->vcpu[i] = (struct vcpu){ .vm = vm, .index = i, .fd = -1 };
	rc = create_fd(vm, kvm_fd, err);
	if (!rc)
		rc = ask_kvm(vm, kvm_fd, err);
	/* the order is that of cost: a change of the slots waits for readers that later steps bring (0.3 ms or 11) */
	if (!rc)
		rc = create_memory(vm, opts, err);
	if (!rc)
		rc = create_chips(vm, err);
	for (unsigned i = 0; !rc && i < vm->nr_vcpus; i++)
		rc = create_processor(vm, i, err);
	if (!rc)
		rc = msrs_find(vm, kvm_fd, err);
	if (!rc)
		rc = fresh_capture(vm, err);
	close(kvm_fd);
	if (rc)
		vm_destroy(vm);
	else
		*out = vm;
	return rc;
}

void vm_destroy(struct vm *vm)
{
	if (!vm)
		return;
	pthread_mutex_lock(&vm->lock);
	vm->ending = true;
	atomic_store(&vm->stop, true);
	pthread_cond_broadcast(&vm->wake);
	pthread_mutex_unlock(&vm->lock);
	for (unsigned i = 0; i < vm->nr_started; i++) {
		vcpu_kick(&vm->vcpu[i]);
		pthread_join(vm->vcpu[i].thread, NULL);
		vm->vcpu[i].started = false;
	}
	for (unsigned i = 0; i < VM_MAX_VCPUS; i++)
		vcpu_free(&vm->vcpu[i]);
	if (vm->fd >= 0)
		close(vm->fd);
	free(vm->host_cpuid);
	free(vm->msrs);
	free(vm->fresh);
	free(vm->bitmap);
	pthread_mutex_destroy(&vm->lock);
	pthread_cond_destroy(&vm->wake);
	pthread_cond_destroy(&vm->parked);
	free(vm);
}

/* ---- run and stop ---- */

int vm_start(struct vm *vm, struct img_error *err)
{
	for (; vm->nr_started < vm->nr_vcpus; vm->nr_started++) {
		int rc = vcpu_start(&vm->vcpu[vm->nr_started], err);

		if (rc)
			return rc;
	}
	return 0;
}

void vm_resume(struct vm *vm)
{
	/* an ioctl would wait for a processor that runs */
	if (!atomic_load(&vm->stop))
		return;
	/* tells the guest's watchdogs that it stood still; EINVAL: it does not use KVM's clock */
	for (unsigned i = 0; i < vm->nr_vcpus; i++)
		ioctl(vm->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
	pthread_mutex_lock(&vm->lock);
	memset(&vm->error, 0, sizeof(vm->error));
	for (unsigned i = 0; i < vm->nr_started; i++) {
		__atomic_store_n(&vm->vcpu[i].run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		vm->vcpu[i].has_run = true;
	}
	atomic_store(&vm->stop, false);
	pthread_cond_broadcast(&vm->wake);
	pthread_mutex_unlock(&vm->lock);
}

/*
 * KVM keeps count of the ticks that the guest did not take, and delivers them one after the other. Setting the counters
 * makes it forget them, and begin a period. A single shot is left alone: it would come once more.
 */
void vm_drop_ticks(struct vm *vm)
{
	struct kvm_pit_state2 pit;
	unsigned mode;

	if (ioctl(vm->fd, KVM_GET_PIT2, &pit) < 0)
		return;
	mode = pit.channels[0].mode;
	if (mode == PIT_RATE || mode == PIT_SQUARE)
		ioctl(vm->fd, KVM_SET_PIT2, &pit);
}

void vm_pause(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	atomic_store(&vm->stop, true);
	pthread_cond_broadcast(&vm->wake);
	for (unsigned i = 0; i < vm->nr_started; i++)
		vcpu_kick(&vm->vcpu[i]);
	while (vm->nr_parked < vm->nr_started)
		pthread_cond_wait(&vm->parked, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

void vm_error(struct vm *vm, struct img_error *err)
{
	pthread_mutex_lock(&vm->lock);
	if (vm->error.code)
		*err = vm->error;
	else
		fail(err, IMG_E_UNSUPPORTED, "no processor reported an error");
	pthread_mutex_unlock(&vm->lock);
}

/* ---- the dirty log ---- */

int vm_track(struct vm *vm, bool on, struct img_error *err)
{
	int rc = 0;

	if (vm->tracking == on)
		return on ? vm_forget_dirty(vm, err) : 0;
	for (unsigned i = 0; !rc && i < vm->mem->nr_slots; i++)
		rc = set_ram(vm, i, on, err);
	if (!rc)
		vm->tracking = on;
	return rc;
}

/* A slot's bits in KVM's log fill whole words of the caller's. */
_Static_assert(MEMORY_VGA_END / MEMORY_PAGE % 64 == 0 && MEMORY_HOLE / MEMORY_PAGE % 64 == 0,
	       "slots start at whole words of bits");

int vm_take_dirty(struct vm *vm, uint64_t *words, struct img_error *err)
{
	if (!vm->tracking)
		return fail(err, IMG_E_INVALID, "nobody records what the guest writes");
	for (unsigned i = 0; i < vm->mem->nr_slots; i++) {
		const struct memory_slot *slot = &vm->mem->slot[i];
		struct kvm_dirty_log log = { .slot = i, .dirty_bitmap = vm->bitmap };

		if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) < 0)
			return fail_errno(err, "which pages the guest wrote");
		for (uint64_t w = 0; words && w < (slot->bytes / MEMORY_PAGE + 63) / 64; w++)
			words[slot->linear / MEMORY_PAGE / 64 + w] |= vm->bitmap[w];
	}
	return 0;
}

int vm_forget_dirty(struct vm *vm, struct img_error *err)
{
	return vm->tracking ? vm_take_dirty(vm, NULL, err) : 0;
}

/* ---- interrupts and notification ---- */

void vm_msi(struct vm *vm, uint64_t addr, uint32_t data)
{
	struct kvm_msi msi = { .address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data };

	/* an address or vector that reaches no processor is the guest's own mistake */
	ioctl(vm->fd, KVM_SIGNAL_MSI, &msi);
}

void vm_irq_line(struct vm *vm, unsigned gsi, bool level)
{
	struct kvm_irq_level line = { .irq = gsi, .level = level };

	ioctl(vm->fd, KVM_IRQ_LINE, &line);
}

int vm_ioeventfd(struct vm *vm, uint64_t gpa, unsigned bytes, int fd, bool on)
{
	struct kvm_ioeventfd event = {
		.addr = gpa, .len = bytes, .fd = fd, .flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN
	};

	return ioctl(vm->fd, KVM_IOEVENTFD, &event) < 0 ? -errno : 0;
}
