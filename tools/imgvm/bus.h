/* SPDX-License-Identifier: MIT */
/*
 * Devices, and how the guest reaches them: a device owns regions of the port (PIO) or memory (MMIO) space. One lock,
 * the bus lock, is held around every read and write of a device by a vCPU, and by everybody else who touches a device's
 * registers (serial input, control commands), so that a device's register file needs no lock of its own. A device with
 * a worker thread has a lock for what the two share.
 *
 * Lock order: bus lock, a device's own lock, its interrupt lock.
 */
#ifndef IMGVM_BUS_H
#define IMGVM_BUS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libimg.h"
#include "state.h"

struct device;

/* What devices ask of the machine around them. machine.c implements it over KVM, tests without. Any thread. */
enum machine_event {
	MACHINE_RESET,	  /* the guest wants a reset: port 0xcf9, 0x64, 0x92, the ACPI register, a triple fault */
	MACHINE_POWEROFF, /* S5 */
	MACHINE_SERIAL,	  /* the serial port has output to fetch, or room for input again */
	MACHINE_ERROR,	  /* a vCPU cannot go on */
};
struct machine_host {
	void *machine;
	/* Message signalled interrupt. */
	void (*msi)(void *machine, uint64_t addr, uint32_t data);
	/* Level of a line of the interrupt controllers (PIC and IOAPIC). */
	void (*irq_line)(void *machine, unsigned gsi, bool level);
	/* Writes of `bytes` at gpa signal fd instead of leaving the kernel. add false: no longer. Returns 0 or -errno. */
	int (*ioeventfd)(void *machine, uint64_t gpa, unsigned bytes, int fd, bool add);
	/* Only notes it and wakes who handles it: the caller goes on. */
	void (*event)(void *machine, enum machine_event event);
};

struct device_ops {
	const char *name;
	/*
	 * off is inside the region; bytes is 1, 2, 4 or 8 and does not leave it. A width that the device does not have
	 * reads as all ones and is ignored in writes. Under the bus lock.
	 */
	uint64_t (*read)(struct device *dev, unsigned region, uint64_t off, unsigned bytes);
	void (*write)(struct device *dev, unsigned region, uint64_t off, unsigned bytes, uint64_t value);
	void (*reset)(struct device *dev); /* as after power-on */
	/* Writes one section of tag and instance (state.h). The machine is paused: see pause. save and load are NULL
	 * where there is nothing to keep. */
	void (*save)(struct device *dev, struct state_writer *out);
	/* The section's payload. Checks all of it before anything changes: after a failure the device is as before. */
	int (*load)(struct device *dev, struct state_reader *in, struct img_error *err);
	/* vCPUs stand still: returns when no worker touches the guest's memory or the disk, and holds them there. May
	 * be NULL. */
	void (*pause)(struct device *dev);
	/* Workers go on; after load or reset: looks at every queue as if it had been kicked. May be NULL. */
	void (*resume)(struct device *dev);
	void (*destroy)(struct device *dev); /* frees dev. Workers have ended when it returns. */
};

struct device {
	const struct device_ops *ops;
	const struct machine_host *host;
	uint32_t tag;	   /* of its section in saved state: STATE_TAG('S','E','R','L') */
	uint32_t instance; /* several devices of one tag */
	uint32_t version;  /* of the section's layout */
};

enum bus_space { BUS_PIO, BUS_MMIO };

#define BUS_MAX_REGIONS 64
#define BUS_MAX_DEVICES 32

struct bus_region {
	enum bus_space space;
	uint64_t start, bytes;
	struct device *dev;
	unsigned region; /* the device's own number for it */
};

struct bus {
	pthread_mutex_t lock;
	struct bus_region region[BUS_MAX_REGIONS]; /* lock; sorted by space and start */
	unsigned nr_regions;
	struct device *device[BUS_MAX_DEVICES]; /* in the order of saving */
	unsigned nr_devices;
};

void bus_init(struct bus *bus);
/* Destroys the devices, last first. */
void bus_free(struct bus *bus);
/* The bus owns dev from here on. Aborts past BUS_MAX_DEVICES: the caller limits what users ask for. */
void bus_add_device(struct bus *bus, struct device *dev);
/*
 * Under the bus lock once vCPUs run. False if it overlaps another region or there is no room: then nothing changed (a
 * guest that puts a BAR over another one gets its own device unreachable, nothing else).
 */
bool bus_map(struct bus *bus, enum bus_space space, uint64_t start, uint64_t bytes, struct device *dev,
	     unsigned region);
void bus_unmap(struct bus *bus, struct device *dev, unsigned region);

/*
 * An access of a vCPU: takes the lock, finds the device. What nobody owns reads as all ones; an access that is not
 * wholly inside one region is nobody's. data: bytes (1, 2, 4, 8) in the guest's order.
 */
void bus_read(struct bus *bus, enum bus_space space, uint64_t addr, void *data, unsigned bytes);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, const void *data, unsigned bytes);

#endif
