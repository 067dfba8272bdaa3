/* SPDX-License-Identifier: MIT */
/*
 * PCI: one bus with a host bridge at slot 0, reached by configuration mechanism 1 (ports 0xcf8 and 0xcfc). A function
 * is a struct pci_function inside a device; pci.c keeps its configuration space, what of it may be written, and where
 * its BAR lies. The reset control register, port 0xcf9, lies between the two and is pci.c's too.
 *
 * Every function has at most one BAR: 32-bit memory, BAR 0. It is mapped while memory decoding is on and its address is
 * inside the hole for devices (memory.h) and overlaps nothing.
 *
 * INTx: pin A of slot n is GSI PCI_GSI(n), level-triggered, active high in our interrupt controllers (ACPI says so).
 * Slots share GSIs: a function sets its pin by pci_set_intx(), never the line itself.
 */
#ifndef IMGVM_PCI_H
#define IMGVM_PCI_H

#include "bus.h"

#define PCI_MAX_SLOTS  16
#define PCI_GSI(slot)  (10u + ((((slot)-1u) & 3u) >> 1)) /* what SeaBIOS writes to the interrupt line register */
#define PCI_BAR_WINDOW UINT64_C(0xe0000000) /* where BARs are put for a guest that comes without firmware */
#define PCI_MMIO_START UINT64_C(0xc0000000) /* what ACPI gives to PCI */
#define PCI_MMIO_END   UINT64_C(0xfec00000)

struct pci; /* the host bridge, a device with the tag PCIH */

struct pci_function {
	struct device *dev; /* owner */
	uint8_t config[256];
	uint8_t writable[256]; /* a bit is 1 where the guest may change it (BAR and command handled by pci.c) */
	unsigned caps_end;     /* where pci_add_cap() goes on; 0: none yet */
	uint32_t bar_bytes;    /* 0: no BAR; else a power of two >= 16 */
	unsigned bar_region;   /* the owner's region number for it */
	unsigned slot;	       /* set by pci_attach() */
	bool mapped;	       /* the BAR is on the bus at bar_gpa */
	uint64_t bar_gpa;
	struct pci *pci; /* set by pci_attach() */
	/* After a write to the configuration space, and after (un)mapping the BAR. May be NULL. Under the bus lock. */
	void (*changed)(struct pci_function *fn);
};

struct device *pci_create(struct bus *bus, const struct machine_host *host);
/* Next free slot; pcidev is the device that pci_create() returned. Aborts when full. */
void pci_attach(struct device *pcidev, struct pci_function *fn);
/* Gives every BAR an address from PCI_BAR_WINDOW on and turns memory decoding and bus mastering on: for boot without
 * firmware. */
void pci_assign(struct device *pcidev);

/*
 * The function's INTx pin. Slots share GSIs: a line is high while any function on it asserts its pin and its command
 * register does not disable it; only pci.c calls irq_line() for them. Any thread, without the bus lock; after
 * pci_attach(). The pin is not saved: the owner sets it again in its load.
 */
void pci_set_intx(struct pci_function *fn, bool level);

/* For owners: header fields of a type 0 function, all else zero; the reset values are what config holds after it. */
void pci_function_init(struct pci_function *fn, struct device *dev, uint16_t vendor, uint16_t device,
		       uint32_t class_rev, uint16_t sub_vendor, uint16_t sub_device);
/* Appends a capability of `bytes` (with id and next) and returns its offset. */
unsigned pci_add_cap(struct pci_function *fn, uint8_t id, unsigned bytes);
/* Command, BAR and all writable bits to zero, INTx low: called from the owner's reset. */
void pci_function_reset(struct pci_function *fn);
/* The guest-writable part of it, fixed size (PCI_STATE_BYTES); load checks, then maps as the values say. */
#define PCI_STATE_BYTES 256u
void pci_function_save(const struct pci_function *fn, struct state_writer *out);
int pci_function_check(const struct pci_function *fn, const uint8_t config[256], struct img_error *err);
void pci_function_apply(struct pci_function *fn, const uint8_t config[256]);

#endif
