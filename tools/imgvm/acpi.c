/* SPDX-License-Identifier: MIT */
/*
 * See acpi.h. Section numbers are those of ACPI 6.4.
 *
 * The tables are built once as a block that says "offset in this block" where an address belongs, with a list of those
 * places and of the checksums. acpi_install() adds the address of the block and sums up; for SeaBIOS the same two lists
 * become its loader's commands.
 */
#include "acpi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aml.h"
#include "pci.h"
#include "platform.h"

#define TABLES_MAX    8192u
#define RSDP_BYTES    36u
#define HEADER_BYTES  36u
#define FACS_BYTES    64u
#define FADT_BYTES    276u
#define FACS_ALIGN    64u
#define TABLE_ALIGN   16u
#define CHECKSUM_OFF  9u /* in a table's header */
#define MAX_POINTERS  16u
#define MAX_CHECKSUMS 8u

#define LAPIC_GPA  0xfee00000u
#define IOAPIC_GPA 0xfec00000u

enum block { BLOCK_RSDP, BLOCK_TABLES, NR_BLOCKS };

struct tables {
	struct aml block[NR_BLOCKS];
	struct pointer {
		enum block block;
		uint32_t off;
		uint8_t bytes;
	} pointer[MAX_POINTERS];
	struct checksum {
		enum block block;
		uint32_t off, start, bytes;
	} checksum[MAX_CHECKSUMS];
	unsigned nr_pointers, nr_checksums;
	uint8_t rsdp[RSDP_BYTES];
	uint8_t buf[TABLES_MAX];
};

static void put16(uint8_t *p, uint16_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, sizeof(v));
}

/* The place holds the address of the table at `target`, once that is known. */
static void add_pointer(struct tables *t, enum block block, size_t off, unsigned bytes, size_t target)
{
	uint64_t v = target;

	if (t->nr_pointers == MAX_POINTERS)
		abort();
	memcpy(t->block[block].buf + off, &v, bytes);
	t->pointer[t->nr_pointers++] =
		(struct pointer){ .block = block, .off = (uint32_t)off, .bytes = (uint8_t)bytes };
}

static void add_checksum(struct tables *t, enum block block, size_t off, size_t start, size_t bytes)
{
	if (t->nr_checksums == MAX_CHECKSUMS)
		abort();
	t->checksum[t->nr_checksums++] = (struct checksum){
		.block = block, .off = (uint32_t)off, .start = (uint32_t)start, .bytes = (uint32_t)bytes
	};
}

static uint8_t *append_zeros(struct aml *aml, size_t bytes)
{
	uint8_t *at = aml->buf + aml->used;

	if (bytes > aml->cap - aml->used)
		abort();
	memset(at, 0, bytes);
	aml->used += bytes;
	return at;
}

/* Without the zero at its end. */
static void put_text(uint8_t *at, const char *text)
{
	while (*text)
		*at++ = (uint8_t)*text++;
}

/* 5.2.6 */
static size_t open_table(struct tables *t, const char *signature, uint8_t revision)
{
	struct aml *aml = &t->block[BLOCK_TABLES];
	size_t at;
	uint8_t *p;

	append_zeros(aml, -aml->used & (TABLE_ALIGN - 1));
	at = aml->used;
	p = append_zeros(aml, HEADER_BYTES);
	put_text(p, signature);
	p[8] = revision;
	put_text(p + 10, "LIBIMGIMGVM   "); /* OEM, its table */
	put32(p + 24, 1);		    /* its revision */
	put_text(p + 28, "IMGV");	    /* who made it */
	put32(p + 32, 1);
	return at;
}

static void close_table(struct tables *t, size_t at)
{
	struct aml *aml = &t->block[BLOCK_TABLES];

	put32(aml->buf + at + 4, (uint32_t)(aml->used - at));
	add_checksum(t, BLOCK_TABLES, at + CHECKSUM_OFF, at, aml->used - at);
}

/* ---- FADT, FACS -------------------------------------------------------------------------------------------------- */

/* 5.2.3.2: the register is in port space. */
static void put_gas(uint8_t *p, unsigned port, uint8_t bits)
{
	p[0] = 1;
	p[1] = bits;
	p[3] = bits == 8 ? 1 : bits == 16 ? 2 : 3;
	put32(p + 4, port);
}

/* 5.2.9. There is no SMI command port: the machine is in ACPI mode all the time. */
static size_t add_fadt(struct tables *t, size_t facs, size_t dsdt)
{
	enum {
		WBINVD = 1 << 0,
		PROC_C1 = 1 << 2,
		NO_SLEEP_BUTTON = 1 << 5,
		NO_FIXED_RTC = 1 << 6,
		TIMER_32_BITS = 1 << 8,
		RESET_REGISTER = 1 << 10,
	};
	enum { ARCH_LEGACY_DEVICES = 1 << 0, ARCH_NO_VGA = 1 << 2 }; /* and no 8042: nobody should look for keyboards */
	size_t at = open_table(t, "FACP", 6);
	uint8_t *p = t->buf + at;

	append_zeros(&t->block[BLOCK_TABLES], FADT_BYTES - HEADER_BYTES);
	add_pointer(t, BLOCK_TABLES, at + 36, 4, facs);
	add_pointer(t, BLOCK_TABLES, at + 40, 4, dsdt);
	put16(p + 46, PM_SCI);
	put32(p + 56, PM_EVT_PORT);
	put32(p + 64, PM_CNT_PORT);
	put32(p + 76, PM_TIMER_PORT);
	p[88] = 4; /* bytes of these blocks */
	p[89] = 2;
	p[91] = 4;
	put16(p + 96, 0xfff); /* C2 and C3 take so long that they are not there */
	put16(p + 98, 0xfff);
	p[108] = 0x32; /* CMOS: century */
	put16(p + 109, ARCH_LEGACY_DEVICES | ARCH_NO_VGA);
	put32(p + 112, WBINVD | PROC_C1 | NO_SLEEP_BUTTON | NO_FIXED_RTC | TIMER_32_BITS | RESET_REGISTER);
	put_gas(p + 116, PM_RESET_PORT, 8);
	p[128] = PM_RESET_VALUE;
	p[131] = 4; /* ACPI 6.4 */
	add_pointer(t, BLOCK_TABLES, at + 140, 8, dsdt);
	put_gas(p + 148, PM_EVT_PORT, 32);
	put_gas(p + 172, PM_CNT_PORT, 16);
	put_gas(p + 208, PM_TIMER_PORT, 32);
	close_table(t, at);
	return at;
}

/* 5.2.10: aligned to 64 bytes, no checksum. */
static size_t add_facs(struct tables *t)
{
	struct aml *aml = &t->block[BLOCK_TABLES];
	uint8_t *p;
	size_t at;

	append_zeros(aml, -aml->used & (FACS_ALIGN - 1));
	at = aml->used;
	p = append_zeros(aml, FACS_BYTES);
	put_text(p, "FACS");
	put32(p + 4, FACS_BYTES);
	p[32] = 2; /* version */
	return at;
}

/* ---- MADT -------------------------------------------------------------------------------------------------------- */

/* 5.2.12.5: an ISA interrupt that is level-triggered and active high on its own GSI. */
static void add_level_override(struct aml *aml, unsigned gsi)
{
	uint8_t *p = append_zeros(aml, 10);

	p[0] = 2;
	p[1] = 10;
	p[3] = (uint8_t)gsi;
	put32(p + 4, gsi);
	put16(p + 8, 0x000d);
}

/* 5.2.12 */
static size_t add_madt(struct tables *t, unsigned nr_vcpus)
{
	struct aml *aml = &t->block[BLOCK_TABLES];
	size_t at = open_table(t, "APIC", 5);
	uint8_t *p = append_zeros(aml, 8);

	put32(p, LAPIC_GPA);
	put32(p + 4, 1); /* there are 8259s too */
	for (unsigned i = 0; i < nr_vcpus; i++) {
		p = append_zeros(aml, 8); /* 5.2.12.2 */
		p[1] = 8;
		p[2] = p[3] = (uint8_t)i;
		put32(p + 4, 1);
	}
	p = append_zeros(aml, 12); /* 5.2.12.3, the IOAPIC */
	p[0] = 1;
	p[1] = 12;
	p[2] = (uint8_t)nr_vcpus;
	put32(p + 4, IOAPIC_GPA);
	add_level_override(aml, PM_SCI);
	add_level_override(aml, PCI_GSI(1));
	add_level_override(aml, PCI_GSI(3));
	p = append_zeros(aml, 6); /* 5.2.12.7: LINT1 of all is NMI */
	p[0] = 4;
	p[1] = 6;
	p[2] = 0xff;
	p[5] = 1;
	close_table(t, at);
	return at;
}

/* ---- DSDT -------------------------------------------------------------------------------------------------------- */

/* 6.2.13: pin A of each slot, hard-wired. */
static void add_prt(struct aml *aml)
{
	size_t list, entry;

	aml_name(aml, "_PRT");
	list = aml_open_package(aml, PCI_MAX_SLOTS - 1);
	for (uint32_t slot = 1; slot < PCI_MAX_SLOTS; slot++) {
		entry = aml_open_package(aml, 4);
		aml_int(aml, slot << 16 | 0xffff); /* any function */
		aml_int(aml, 0);		   /* pin A */
		aml_int(aml, 0);		   /* no link device: a GSI */
		aml_int(aml, PCI_GSI(slot));
		aml_close(aml, entry);
	}
	aml_close(aml, list);
}

static void add_pci_root(struct aml *aml)
{
	size_t device = aml_open_device(aml, "PCI0"), resources;

	aml_name(aml, "_HID");
	aml_eisa_id(aml, "PNP0A03");
	aml_name(aml, "_UID");
	aml_int(aml, 0);
	aml_name(aml, "_CRS");
	resources = aml_open_resources(aml);
	aml_res_bus_window(aml, 0, 0);
	aml_res_io(aml, 0xcf8, 8);
	aml_res_io_window(aml, 0, 0xcf7);
	aml_res_io_window(aml, 0xd00, 0xffff);
	aml_res_mem_window(aml, (uint32_t)PCI_MMIO_START, (uint32_t)PCI_MMIO_END - 1);
	aml_close_resources(aml, resources);
	add_prt(aml);
	aml_close(aml, device);
}

/* A device with ports and perhaps an interrupt. */
static void add_isa(struct aml *aml, const char *name, const char *id, uint16_t port, uint8_t nr_ports, unsigned irq)
{
	size_t device = aml_open_device(aml, name), resources;

	aml_name(aml, "_HID");
	aml_eisa_id(aml, id);
	aml_name(aml, "_UID");
	aml_int(aml, 1);
	aml_name(aml, "_CRS");
	resources = aml_open_resources(aml);
	aml_res_io(aml, port, nr_ports);
	if (irq)
		aml_res_irq(aml, irq);
	aml_close_resources(aml, resources);
	aml_close(aml, device);
}

static void add_processors(struct aml *aml, unsigned nr_vcpus)
{
	for (unsigned i = 0; i < nr_vcpus; i++) {
		char name[8];
		size_t device;

		snprintf(name, sizeof(name), "CP%02X", i & 0xff);
		device = aml_open_device(aml, name);
		aml_name(aml, "_HID");
		aml_string(aml, "ACPI0007");
		aml_name(aml, "_UID");
		aml_int(aml, i);
		aml_close(aml, device);
	}
}

static size_t add_dsdt(struct tables *t, unsigned nr_vcpus)
{
	struct aml *aml = &t->block[BLOCK_TABLES];
	size_t at = open_table(t, "DSDT", 2), scope = aml_open_scope(aml, "\\_SB_"), package;

	add_pci_root(aml);
	add_isa(aml, "COM1", "PNP0501", 0x3f8, 8, 4);
	add_isa(aml, "RTC0", "PNP0B00", 0x70, 2, 0);
	add_isa(aml, "PMIO", "PNP0C02", PM_BASE, PM_BYTES, 0);
	add_processors(aml, nr_vcpus);
	aml_close(aml, scope);
	aml_name(aml, "\\_S5_"); /* 7.4.2: sleep type of PM1a, of PM1b */
	package = aml_open_package(aml, 4);
	aml_int(aml, PM_S5_TYPE);
	aml_int(aml, PM_S5_TYPE);
	aml_int(aml, 0);
	aml_int(aml, 0);
	aml_close(aml, package);
	close_table(t, at);
	return at;
}

/* ---- the roots --------------------------------------------------------------------------------------------------- */

/* 5.2.7, 5.2.8: they differ in the width of their pointers. */
static size_t add_root(struct tables *t, const char *signature, unsigned pointer_bytes, size_t fadt, size_t madt)
{
	size_t at = open_table(t, signature, 1);

	append_zeros(&t->block[BLOCK_TABLES], 2 * pointer_bytes);
	add_pointer(t, BLOCK_TABLES, at + HEADER_BYTES, pointer_bytes, fadt);
	add_pointer(t, BLOCK_TABLES, at + HEADER_BYTES + pointer_bytes, pointer_bytes, madt);
	close_table(t, at);
	return at;
}

/* 5.2.5.3 */
static void add_rsdp(struct tables *t, size_t rsdt, size_t xsdt)
{
	uint8_t *p = append_zeros(&t->block[BLOCK_RSDP], RSDP_BYTES);

	put_text(p, "RSD PTR ");
	put_text(p + 9, "LIBIMG");
	p[15] = 2; /* revision */
	add_pointer(t, BLOCK_RSDP, 16, 4, rsdt);
	put32(p + 20, RSDP_BYTES);
	add_pointer(t, BLOCK_RSDP, 24, 8, xsdt);
	add_checksum(t, BLOCK_RSDP, 8, 0, 20); /* of what ACPI 1.0 had; before that of all */
	add_checksum(t, BLOCK_RSDP, 32, 0, RSDP_BYTES);
}

static struct tables *build(unsigned nr_vcpus)
{
	struct tables *t = calloc(1, sizeof(*t));
	size_t facs, dsdt, fadt, madt, rsdt;

	if (!t)
		abort();
	t->block[BLOCK_RSDP] = (struct aml){ .buf = t->rsdp, .cap = sizeof(t->rsdp) };
	t->block[BLOCK_TABLES] = (struct aml){ .buf = t->buf, .cap = sizeof(t->buf) };
	facs = add_facs(t);
	dsdt = add_dsdt(t, nr_vcpus);
	fadt = add_fadt(t, facs, dsdt);
	madt = add_madt(t, nr_vcpus);
	rsdt = add_root(t, "RSDT", 4, fadt, madt);
	add_rsdp(t, rsdt, add_root(t, "XSDT", 8, fadt, madt));
	return t;
}

/* ---- route 1: into memory ---------------------------------------------------------------------------------------- */

uint64_t acpi_install(struct memory *mem, unsigned nr_vcpus)
{
	const uint64_t tables_gpa = ACPI_GPA + FACS_ALIGN;
	struct tables *t = build(nr_vcpus);
	uint8_t *area = memory_at(mem, ACPI_GPA, ACPI_BYTES);

	if (!area)
		abort(); /* below 1 MiB there is always RAM */
	for (unsigned i = 0; i < t->nr_pointers; i++) {
		uint8_t *at = t->block[t->pointer[i].block].buf + t->pointer[i].off;
		uint64_t v = 0;

		memcpy(&v, at, t->pointer[i].bytes);
		v += tables_gpa;
		memcpy(at, &v, t->pointer[i].bytes);
	}
	for (unsigned i = 0; i < t->nr_checksums; i++) {
		const struct checksum *c = &t->checksum[i];
		uint8_t *buf = t->block[c->block].buf, sum = 0;

		for (uint32_t k = 0; k < c->bytes; k++)
			sum = (uint8_t)(sum + buf[c->start + k]);
		buf[c->off] = (uint8_t)(buf[c->off] - sum);
	}
	memset(area, 0, ACPI_BYTES);
	memcpy(area, t->rsdp, sizeof(t->rsdp));
	memcpy(area + FACS_ALIGN, t->buf, t->block[BLOCK_TABLES].used);
	memory_wrote(mem, area, ACPI_BYTES);
	free(t);
	return ACPI_GPA;
}

/* ---- route 2: SeaBIOS's loader ----------------------------------------------------------------------------------- */

/* Commands as SeaBIOS's src/fw/romfile_loader.h defines them; little-endian. */
#define LOADER_NAME_BYTES   56
#define LOADER_ALLOCATE	    1u
#define LOADER_ADD_POINTER  2u
#define LOADER_ADD_CHECKSUM 3u
#define LOADER_ZONE_HIGH    1u
#define LOADER_ZONE_FSEG    2u
struct loader_command {
	uint32_t command;
	union {
		struct {
			char file[LOADER_NAME_BYTES];
			uint32_t align;
			uint8_t zone;
		} allocate;
		struct {
			char dest_file[LOADER_NAME_BYTES], src_file[LOADER_NAME_BYTES];
			uint32_t off;
			uint8_t bytes;
		} pointer;
		struct {
			char file[LOADER_NAME_BYTES];
			uint32_t off, start, bytes;
		} checksum;
		uint8_t all[124];
	};
};
_Static_assert(sizeof(struct loader_command) == 128, "layout of the loader's commands");

static const char *const block_file[NR_BLOCKS] = { "etc/acpi/rsdp", "etc/acpi/tables" };

static size_t fill_commands(const struct tables *t, struct loader_command *commands)
{
	struct loader_command *c = commands;

	for (unsigned block = 0; block < NR_BLOCKS; block++, c++) {
		c->command = LOADER_ALLOCATE;
		strcpy(c->allocate.file, block_file[block]);
		c->allocate.align = block == BLOCK_RSDP ? TABLE_ALIGN : FACS_ALIGN;
		c->allocate.zone = block == BLOCK_RSDP ? LOADER_ZONE_FSEG : LOADER_ZONE_HIGH;
	}
	for (unsigned i = 0; i < t->nr_pointers; i++, c++) {
		c->command = LOADER_ADD_POINTER;
		strcpy(c->pointer.dest_file, block_file[t->pointer[i].block]);
		strcpy(c->pointer.src_file, block_file[BLOCK_TABLES]);
		c->pointer.off = t->pointer[i].off;
		c->pointer.bytes = t->pointer[i].bytes;
	}
	for (unsigned i = 0; i < t->nr_checksums; i++, c++) {
		c->command = LOADER_ADD_CHECKSUM;
		strcpy(c->checksum.file, block_file[t->checksum[i].block]);
		c->checksum.off = t->checksum[i].off;
		c->checksum.start = t->checksum[i].start;
		c->checksum.bytes = t->checksum[i].bytes;
	}
	return (size_t)(c - commands);
}

void acpi_add_fw_cfg(struct device *fw_cfg, unsigned nr_vcpus)
{
	struct tables *t = build(nr_vcpus);
	struct loader_command *commands = calloc(NR_BLOCKS + MAX_POINTERS + MAX_CHECKSUMS, sizeof(*commands));
	size_t nr;

	if (!commands)
		abort();
	nr = fill_commands(t, commands);
	for (unsigned block = 0; block < NR_BLOCKS; block++)
		fw_cfg_add(fw_cfg, block_file[block], t->block[block].buf, t->block[block].used);
	fw_cfg_add(fw_cfg, "etc/table-loader", commands, nr * sizeof(*commands));
	free(commands);
	free(t);
}
