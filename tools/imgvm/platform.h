/* SPDX-License-Identifier: MIT */
/*
 * The small devices of a PC, one file each: serial.c, i8042.c, cmos.c, pm.c, fw_cfg.c, debugcon.c. Each create function
 * adds the device to the bus with its ports, in the state after power-on, and aborts if there is no memory for its few
 * bytes.
 */
#ifndef IMGVM_PLATFORM_H
#define IMGVM_PLATFORM_H

#include "bus.h"

/* 16550A at 0x3f8, GSI 4. Output and input wait in rings: the event MACHINE_SERIAL tells that output is there, or room.
 */
struct device *serial_create(struct bus *bus, const struct machine_host *host);
/* Takes up to cap bytes of output. Any thread, without the bus lock. */
size_t serial_fetch(struct device *serial, void *buf, size_t cap);
/* Hands in input; returns how much was taken (the guest reads slowly: offer the rest after the next MACHINE_SERIAL).
 * Takes the bus lock. */
size_t serial_input(struct device *serial, struct bus *bus, const void *data, size_t bytes);

/* Keyboard controller at 0x60 and 0x64: enough for POST to go on at once, the A20 gate, and the reset command. Also
 * port 0x92 and 0x61. */
struct device *i8042_create(struct bus *bus, const struct machine_host *host);

/* RTC and CMOS at 0x70 and 0x71: UTC of the host; nothing interrupts. RAM size and vCPU count where SeaBIOS looks for
 * them. */
struct device *cmos_create(struct bus *bus, const struct machine_host *host, uint64_t ram_bytes, unsigned nr_vcpus);

/*
 * ACPI power management: PM1a event and control blocks and the PM timer at PM_BASE, SCI on GSI 9, sleep type PM_S5_TYPE
 * powers off. The reset register, also the PIIX one of software that knows no ACPI, is pci.c's: it lies inside 0xcf8.
 */
#define PM_BASE	       0x600u
#define PM_EVT_PORT    (PM_BASE + 0x0u) /* 4 bytes: status, enable */
#define PM_CNT_PORT    (PM_BASE + 0x4u) /* 2 bytes */
#define PM_TIMER_PORT  (PM_BASE + 0x8u) /* 4 bytes, 3.579545 MHz, 32 bits */
#define PM_SCI	       9u
#define PM_S5_TYPE     5u
#define PM_BYTES       12u
#define PM_RESET_PORT  0xcf9u
#define PM_RESET_VALUE 0x06u /* hard reset, now */
struct device *pm_create(struct bus *bus, const struct machine_host *host);
/* Presses the power button. False if the guest does not listen (ACPI is not enabled). Takes the bus lock. */
bool pm_power_button(struct device *pm, struct bus *bus);

/* QEMU's firmware configuration at 0x510 and 0x511, for SeaBIOS; without DMA. Unknown keys read as zeros. */
struct device *fw_cfg_create(struct bus *bus, const struct machine_host *host, unsigned nr_vcpus);
/* A file; the bytes are copied. At most 24 files, names up to 55 bytes. */
void fw_cfg_add(struct device *fw_cfg, const char *name, const void *data, size_t bytes);

/* SeaBIOS's debug port 0x402; created only where somebody wants to see it (it costs thousands of exits). */
struct device *debugcon_create(struct bus *bus, const struct machine_host *host, int fd);

#endif
