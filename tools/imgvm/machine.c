/* SPDX-License-Identifier: MIT */
/*
 * See machine.h. The parts are made in the order in which they need each other: images (they say whether a machine is
 * to be resumed, and its shape), firmware or kernel, memory, devices, processors. They are released in the opposite
 * order, so that no thread outlives what it works on.
 */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control.h"
#include "fail.h"
#include "platform.h"

#define DEFAULT_RAM_BYTES (UINT64_C(256) << 20)

/* ---- what devices ask of the machine ----------------------------------------------------------------------------- */

/* Devices are made, and reset, before there are processors to interrupt. */
static void host_msi(void *machine, uint64_t addr, uint32_t data)
{
	struct machine *m = machine;

	if (m->vm)
		vm_msi(m->vm, addr, data);
}

static void host_irq_line(void *machine, unsigned gsi, bool level)
{
	struct machine *m = machine;

	if (m->vm)
		vm_irq_line(m->vm, gsi, level);
}

static int host_ioeventfd(void *machine, uint64_t gpa, unsigned bytes, int fd, bool add)
{
	struct machine *m = machine;

	return m->vm ? vm_ioeventfd(m->vm, gpa, bytes, fd, add) : -ENODEV;
}

static void host_event(void *machine, enum machine_event event)
{
	struct machine *m = machine;
	unsigned bit = 1u << event;
	uint64_t one = 1;

	if (!(atomic_fetch_or(&m->events, bit) & bit) && write(m->event_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: whoever waits has been woken long ago */
}

unsigned machine_events(struct machine *m)
{
	uint64_t count;

	if (read(m->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return 0;
	return atomic_exchange(&m->events, 0);
}

/* ---- putting it together ----------------------------------------------------------------------------------------- */

static int open_disks(struct machine *m, const struct machine_options *opts, struct img_error *err)
{
	for (unsigned i = 0; i < opts->nr_disks; i++) {
		int ret = disk_open(&m->disk[i], &opts->disk[i], err);

		if (ret != 0)
			return ret;
		m->nr_disks++;
	}
	return 0;
}

/* What the machine is made of: as asked for, but a machine that is resumed is what it was. */
static int decide_shape(struct machine *m, const struct machine_options *opts, uint64_t *ram_bytes,
			struct img_error *err)
{
	struct machine_shape shape;
	struct state state;
	uint8_t *buf;
	int ret;

	*ram_bytes = opts->ram_bytes ? opts->ram_bytes : DEFAULT_RAM_BYTES;
	m->nr_vcpus = opts->nr_vcpus ? opts->nr_vcpus : 1;
	if (!m->disk[0].has_machine)
		return 0;
	ret = machine_state_read(disk_machine_image(&m->disk[0]), m->disk[0].snapshot, &buf, &state, err);
	if (ret != 0)
		return ret;
	ret = machine_shape_parse(&state, &shape, err);
	free(buf);
	if (ret != 0)
		return ret;
	if (opts->ram_bytes && opts->ram_bytes != shape.ram_bytes)
		return fail(err, IMG_E_INVALID, "the machine in the snapshot has %llu MiB of memory",
			    (unsigned long long)(shape.ram_bytes >> 20));
	if (opts->nr_vcpus && opts->nr_vcpus != shape.nr_vcpus)
		return fail(err, IMG_E_INVALID, "the machine in the snapshot has %u processors", shape.nr_vcpus);
	if (opts->nr_disks != shape.nr_disks)
		return fail(err, IMG_E_INVALID, "the machine in the snapshot has %u disks, %u were given",
			    shape.nr_disks, opts->nr_disks);
	*ram_bytes = shape.ram_bytes;
	m->nr_vcpus = shape.nr_vcpus;
	m->linux_boot = shape.linux_boot;
	return 0;
}

/* A machine that came from a kernel file, and is resumed without it, runs, but cannot be reset. */
static int open_boot(struct machine *m, const struct machine_options *opts, struct img_error *err)
{
	struct boot_options boot = opts->boot;

	boot.nr_vcpus = m->nr_vcpus;
	if (m->disk[0].has_machine) {
		if (m->linux_boot && !boot.kernel)
			return 0;
		if (!m->linux_boot && boot.kernel)
			return fail(err, IMG_E_INVALID, "the machine in the snapshot came from firmware, not a kernel");
	}
	m->linux_boot = boot.kernel != NULL;
	return boot_open(&boot, &m->boot, err);
}

/* See take_clone_lock(). Only an image that holds machines needs it. */
static int open_clone_locks(struct machine *m, struct img_error *err)
{
	char path[CONTROL_PATH_BYTES];
	int ret;

	if (!m->disk[0].holds_machine)
		return 0;
	ret = control_file("clones", path, err);
	if (ret != 0)
		return ret;
	m->clone_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
	return m->clone_fd < 0 ? fail_errno(err, "%.180s", path) : 0;
}

static int create_disk(struct machine *m, unsigned i, struct img_error *err)
{
	struct virtio_blk_options opts = {
		.img = m->disk[i].img,
		.read_only = m->disk[i].read_only,
		.throttle = m->throttle.iops || m->throttle.bps ? &m->throttle : NULL,
	};

	m->blk[i] = virtio_blk_create(&opts, &m->bus, m->pci, &m->host, &m->mem, err);
	return m->blk[i] ? 0 : IMG_E_NOMEM;
}

/* The order decides PCI slots: it is part of what a saved machine relies on. */
static int create_devices(struct machine *m, const struct machine_options *opts, struct img_error *err)
{
	struct virtio_console_options console = { .out = opts->console_out, .ctx = opts->console_ctx };
	int ret = 0;

	m->serial = serial_create(&m->bus, &m->host);
	i8042_create(&m->bus, &m->host);
	cmos_create(&m->bus, &m->host, m->mem.ram_bytes, m->nr_vcpus);
	m->pm = pm_create(&m->bus, &m->host);
	m->fw_cfg = fw_cfg_create(&m->bus, &m->host, m->nr_vcpus);
	if (opts->debug_fd >= 0)
		debugcon_create(&m->bus, &m->host, opts->debug_fd);
	m->pci = pci_create(&m->bus, &m->host);
	for (unsigned i = 0; ret == 0 && i < m->nr_disks; i++)
		ret = create_disk(m, i, err);
	if (ret != 0)
		return ret;
	m->rng = virtio_rng_create(&m->bus, m->pci, &m->host, &m->mem, err);
	if (!m->rng)
		return IMG_E_NOMEM;
	m->console = virtio_console_create(&console, &m->bus, m->pci, &m->host, &m->mem, err);
	return m->console ? 0 : IMG_E_NOMEM;
}

static int create_vm(struct machine *m, int kvm_fd, struct img_error *err)
{
	struct vm_options opts = { .mem = &m->mem, .nr_vcpus = m->nr_vcpus, .bus = &m->bus, .host = &m->host };
	int ret;

	if (m->boot)
		opts.rom = boot_rom(m->boot, &opts.rom_bytes);
	/* its memory will be what the image holds, and from there on it is known what changes */
	opts.track = m->disk[0].has_machine && !m->disk[0].transient && !m->disk[0].read_only;
	ret = vm_create(kvm_fd, &opts, &m->vm, err);
	return ret ? ret : vm_start(m->vm, err);
}

static int reset_paused(struct machine *m, struct img_error *err)
{
	struct boot_regs regs;
	int ret;

	if (!m->boot)
		return fail(err, IMG_E_UNSUPPORTED,
			    "the machine was resumed without its kernel and cannot be reset: give --kernel");
	for (unsigned i = 0; i < m->bus.nr_devices; i++)
		m->bus.device[i]->ops->reset(m->bus.device[i]);
	if (m->linux_boot)
		pci_assign(m->pci);
	ret = boot_load(m->boot, &m->mem, &regs, err);
	if (ret != 0)
		return ret;
	return vm_reset(m->vm, &regs, err);
}

static int assemble(struct machine *m, const struct machine_options *opts, struct img_error *err)
{
	uint64_t ram_bytes;
	int kvm_fd, ret = vm_probe(&kvm_fd, err);

	if (ret != 0)
		return ret;
	ret = open_disks(m, opts, err);
	if (ret == 0)
		ret = decide_shape(m, opts, &ram_bytes, err);
	if (ret == 0)
		ret = open_boot(m, opts, err);
	if (ret == 0)
		ret = open_clone_locks(m, err);
	for (unsigned i = 0; ret == 0 && i < m->nr_disks; i++)
		ret = disk_settle(&m->disk[i], err);
	if (ret == 0 && opts->opened)
		ret = opts->opened(opts->opened_ctx, err);
	if (ret == 0)
		ret = memory_init(&m->mem, ram_bytes, err);
	if (ret == 0)
		ret = create_devices(m, opts, err);
	if (ret != 0) {
		close(kvm_fd);
		return ret;
	}
	if (m->boot)
		boot_configure(m->boot, &m->mem, m->fw_cfg);
	ret = create_vm(m, kvm_fd, err);
	if (ret != 0)
		return ret;
	return saver_init(&m->saver, &m->mem, m->vm, m->disk[0].img, err);
}

int machine_create(struct machine *m, const struct machine_options *opts, struct img_error *err)
{
	int ret;

	*m = (struct machine){
		.event_fd = -1, .clone_fd = -1, .clone_off = UINT64_MAX, .allow_clone = opts->allow_clone
	};
	m->saver.pagemap_fd = -1;
	m->host = (struct machine_host){
		.machine = m,
		.msi = host_msi,
		.irq_line = host_irq_line,
		.ioeventfd = host_ioeventfd,
		.event = host_event,
	};
	bus_init(&m->bus);
	throttle_init(&m->throttle, opts->iops, opts->bps);
	if (opts->nr_disks < 1 || opts->nr_disks > DISKS_MAX || opts->nr_vcpus > VM_MAX_VCPUS)
		return fail(err, IMG_E_INVALID, "a machine has 1 to %u disks and 1 to %u processors", DISKS_MAX,
			    VM_MAX_VCPUS);
	m->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = m->event_fd < 0 ? fail_errno(err, "eventfd") : assemble(m, opts, err);
	if (ret == 0)
		ret = m->disk[0].has_machine ? machine_restore(m, err) : reset_paused(m, err);
	if (ret != 0)
		machine_destroy(m, NULL);
	return ret;
}

int machine_destroy(struct machine *m, struct img_error *err)
{
	int ret = 0;

	if (m->running)
		machine_pause(m);
	vm_destroy(m->vm);
	m->vm = NULL;
	bus_free(&m->bus);
	saver_done(&m->saver);
	for (unsigned i = 0; i < m->nr_disks; i++) {
		int one = disk_close(&m->disk[i], ret == 0 ? err : NULL);

		ret = ret ? ret : one;
	}
	m->nr_disks = 0;
	boot_free(m->boot);
	m->boot = NULL;
	memory_free(&m->mem);
	if (m->event_fd >= 0)
		close(m->event_fd);
	if (m->clone_fd >= 0)
		close(m->clone_fd);
	m->event_fd = m->clone_fd = -1;
	return ret;
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static bool is_disk(const struct machine *m, const struct device *dev)
{
	for (unsigned i = 0; i < m->nr_disks; i++)
		if (virtio_device(m->blk[i]) == dev)
			return true;
	return false;
}

static void resume_devices(struct machine *m, bool disks)
{
	for (unsigned i = 0; i < m->bus.nr_devices; i++) {
		struct device *dev = m->bus.device[i];

		if (dev->ops->resume && is_disk(m, dev) == disks)
			dev->ops->resume(dev);
	}
}

void machine_resume_but_disks(struct machine *m)
{
	m->running = true;
	resume_devices(m, false);
	vm_resume(m->vm);
}

void machine_resume_disks(struct machine *m)
{
	resume_devices(m, true);
}

void machine_resume(struct machine *m)
{
	if (m->running)
		return;
	machine_resume_but_disks(m);
	machine_resume_disks(m);
}

/* Processors first: they are what gives devices work. */
void machine_pause(struct machine *m)
{
	if (!m->running)
		return;
	vm_pause(m->vm);
	for (unsigned i = 0; i < m->bus.nr_devices; i++) {
		struct device *dev = m->bus.device[i];

		if (dev->ops->pause)
			dev->ops->pause(dev);
	}
	m->running = false;
}

int machine_reset(struct machine *m, struct img_error *err)
{
	bool was_running = m->running;
	int ret;

	machine_pause(m);
	ret = reset_paused(m, err);
	if (ret == 0 && was_running)
		machine_resume(m);
	return ret;
}
