/* SPDX-License-Identifier: MIT */
/*
 * How a machine starts: with SeaBIOS, or with a Linux kernel put into its RAM. Files are opened once, before the
 * sandbox closes; boot_load() puts them into guest memory, again at every reset: a kernel and its initrd are read again
 * then, from the same open files.
 */
#ifndef IMGVM_BOOT_H
#define IMGVM_BOOT_H

#include "bus.h"
#include "memory.h"

/* A larger ROM would reach into the pages below it that KVM keeps for itself (vm.c). */
#define BOOT_ROM_MAX (UINT64_C(256) << 10)

struct boot_options {
	const char *bios;   /* ROM image; NULL: SeaBIOS where Debian puts it. Not with kernel */
	const char *kernel; /* bzImage; NULL: BIOS */
	const char *initrd; /* NULL: none */
	const char *append; /* command line; NULL: empty */
	unsigned nr_vcpus;
};

/* Registers of the first vCPU that differ from those after a processor reset. The others wait for INIT and SIPI. */
struct boot_regs {
	bool long_mode; /* else: real mode at the reset vector */
	uint64_t rip, rsi, cr3, gdt_gpa;
	uint16_t gdt_bytes; /* descriptors: null, null, code (0x10), data (0x18), TSS (0x20) */
};

struct boot; /* opaque: the files */

int boot_open(const struct boot_options *opts, struct boot **out, struct img_error *err);
void boot_free(struct boot *boot);
bool boot_is_linux(const struct boot *boot);
/* The ROM, mapped read-only so that it ends at 4 GiB: page-aligned, owned by boot; NULL where there is none. */
const uint8_t *boot_rom(const struct boot *boot, uint64_t *bytes);
/* fw_cfg entries for SeaBIOS (e820, sercon-port, screen-and-debug, ACPI); once, at creation. */
void boot_configure(const struct boot *boot, const struct memory *mem, struct device *fw_cfg);
/* Puts everything into RAM (BIOS shadow; or kernel, initrd, zero page, page tables, GDT, ACPI tables) and says how the
 * first vCPU starts. */
int boot_load(const struct boot *boot, struct memory *mem, struct boot_regs *regs, struct img_error *err);

/*
 * The parser of boot_linux.c, for its tests: a bzImage is not trusted. Where it goes and how, or the reason why it
 * cannot be started (FORMAT, CORRUPT, UNSUPPORTED, LIMIT).
 */
struct linux_image {
	uint64_t setup_bytes;  /* real-mode part at the head of the file */
	uint64_t load_gpa;     /* of the protected-mode part */
	uint64_t kernel_bytes; /* of it, in the file */
	uint64_t init_bytes;   /* RAM it needs from load_gpa on while it unpacks itself */
	uint64_t initrd_max;   /* highest address of the initrd's last byte */
	uint32_t cmdline_max;
};
#define LINUX_HEAD_BYTES 4096u /* all that is looked at */
/* file: the first LINUX_HEAD_BYTES of it, or all if there are fewer; bytes: how long it is. */
int linux_parse(const void *file, uint64_t bytes, uint64_t ram_bytes, struct linux_image *out, struct img_error *err);

#endif
