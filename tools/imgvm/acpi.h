/* SPDX-License-Identifier: MIT */
/*
 * ACPI tables (ACPI 6.4): RSDP, XSDT (and RSDT for what asks for it), FADT, FACS, MADT, DSDT with the PCI root
 * (PNP0A03, _CRS, _PRT), the serial port, \_S5 and the CPUs. The AML is assembled by this file from the named bytes of
 * the specification.
 */
#ifndef IMGVM_ACPI_H
#define IMGVM_ACPI_H

#include <stddef.h>
#include <stdint.h>

#include "bus.h"
#include "memory.h"

/* Where the tables lie for a guest that comes without firmware; 64 KiB, kept out of its RAM by e820. */
#define ACPI_GPA   UINT64_C(0xe0000)
#define ACPI_BYTES UINT64_C(0x10000)

/* Builds them in guest memory at ACPI_GPA, and returns the address of the RSDP. */
uint64_t acpi_install(struct memory *mem, unsigned nr_vcpus);
/* Hands them to SeaBIOS: etc/acpi/rsdp, etc/acpi/tables and etc/table-loader. */
void acpi_add_fw_cfg(struct device *fw_cfg, unsigned nr_vcpus);

#endif
