/* SPDX-License-Identifier: MIT */
/* What boot.c, boot_bios.c and boot_linux.c share. */
#ifndef IMGVM_BOOT_INT_H
#define IMGVM_BOOT_INT_H

#include "boot.h"

/*
 * A file that is held open. Its bytes may change under us: they are checked whenever they are read, and only its length
 * is relied on.
 */
struct boot_file {
	char *path;
	int fd; /* -1: none */
	uint64_t bytes;
};

struct boot {
	bool linux_boot;
	unsigned nr_vcpus;
	uint8_t *rom; /* mmap(); NULL: Linux */
	uint64_t rom_bytes;
	struct boot_file kernel, initrd;
	char *append; /* NULL: BIOS */
};

/* After a failure: boot_file_close(). */
int boot_file_open(struct boot_file *file, const char *path, struct img_error *err);
void boot_file_close(struct boot_file *file);
/* Reads exactly [off, off + bytes) of it. CHANGED: it has become shorter. */
int boot_file_read(const struct boot_file *file, void *buf, uint64_t bytes, uint64_t off, struct img_error *err);
/* The same into RAM; LIMIT: the range is not RAM. */
int boot_file_load(const struct boot_file *file, struct memory *mem, uint64_t gpa, uint64_t bytes, uint64_t off,
		   struct img_error *err);
/* Puts bytes into RAM; LIMIT: the range is not RAM. */
int boot_put(struct memory *mem, uint64_t gpa, const void *data, uint64_t bytes, struct img_error *err);

/* boot_bios.c. After a failure of open: boot_free(). */
int boot_bios_open(struct boot *boot, const struct boot_options *opts, struct img_error *err);
void boot_bios_configure(const struct boot *boot, const struct memory *mem, struct device *fw_cfg);
int boot_bios_load(const struct boot *boot, struct memory *mem, struct img_error *err);

/* boot_linux.c. After a failure of open: boot_free(). */
int boot_linux_open(struct boot *boot, const struct boot_options *opts, struct img_error *err);
int boot_linux_load(const struct boot *boot, struct memory *mem, struct boot_regs *regs, struct img_error *err);

#endif
