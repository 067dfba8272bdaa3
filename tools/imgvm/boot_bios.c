/* SPDX-License-Identifier: MIT */
/*
 * Start with SeaBIOS: the ROM ends at 4 GiB, where a processor begins, and its last part also lies below 1 MiB, in
 * plain RAM: the host bridge says that RAM is there already (pci.c), and so firmware runs from it at once. A ROM of
 * 256 KiB expects all of itself there, one of 128 KiB is alone with its own half.
 */
#include "boot_int.h"

#include <string.h>
#include <sys/mman.h>

#include "acpi.h"
#include "fail.h"
#include "platform.h"

#define ROM_MIN	     0x10000u /* 0xf0000 to 0xfffff, the least that a BIOS has */
#define ROM_MAX	     BOOT_ROM_MAX
#define SHADOW_START UINT64_C(0xc0000)
#define SHADOW_END   UINT64_C(0x100000)

/* SeaBIOS's docs/Runtime_config.md. Integers are 64 bits wide. */
#define FILE_E820      "etc/e820"
#define FILE_SERIAL    "etc/sercon-port"      /* screen text to a UART */
#define FILE_NO_SCREEN "etc/screen-and-debug" /* 0: what is on the screen does not go to the debug port too */
#define SERIAL_PORT    UINT64_C(0x3f8)

/* ACPI 6.4, 15.1. Packed: 20 bytes in the file. */
#define E820_RAM 1u
struct e820_entry {
	uint64_t start, bytes;
	uint32_t type;
} __attribute__((packed));

static const char *const usual_places[] = {
	"/usr/share/seabios/bios.bin", /* Debian, Fedora */
	"/usr/share/qemu/bios.bin",    /* Arch, Alpine, SUSE */
};

static int open_rom(struct boot_file *file, const char *path, struct img_error *err)
{
	struct img_error one;

	if (path)
		return boot_file_open(file, path, err);
	for (size_t i = 0; i < sizeof(usual_places) / sizeof(usual_places[0]); i++) {
		int ret;

		memset(&one, 0, sizeof(one));
		ret = boot_file_open(file, usual_places[i], &one);
		if (ret == 0)
			return 0;
		boot_file_close(file);
		if (ret != IMG_E_NOENT)
			return fail(err, ret, "%s", one.msg);
	}
	return fail(err, IMG_E_NOENT, "%s: no such file: install SeaBIOS (package seabios), or name its ROM",
		    usual_places[0]);
}

int boot_bios_open(struct boot *boot, const struct boot_options *opts, struct img_error *err)
{
	struct boot_file file = { .fd = -1 };
	void *rom = MAP_FAILED;
	int ret = open_rom(&file, opts->bios, err);

	if (ret == 0 && (file.bytes < ROM_MIN || file.bytes > ROM_MAX || file.bytes % ROM_MIN))
		ret = fail(err, IMG_E_FORMAT, "%.180s is no BIOS: a multiple of 64 KiB up to 256 KiB", file.path);
	if (ret == 0) {
		rom = mmap(NULL, file.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (rom == MAP_FAILED)
			ret = fail_errno(err, "memory for the BIOS");
	}
	if (ret == 0) {
		boot->rom = rom;
		boot->rom_bytes = file.bytes;
		ret = boot_file_read(&file, rom, file.bytes, 0, err);
	}
	boot_file_close(&file);
	return ret;
}

/* SeaBIOS itself takes what lies between 640 KiB and 1 MiB out of it. */
static void add_e820(const struct memory *mem, struct device *fw_cfg)
{
	struct e820_entry map[2];
	size_t nr = 0;

	map[nr++] = (struct e820_entry){ .bytes = mem->ram_bytes < MEMORY_HOLE ? mem->ram_bytes : MEMORY_HOLE,
					 .type = E820_RAM };
	if (mem->ram_bytes > MEMORY_HOLE)
		map[nr++] = (struct e820_entry){ .start = MEMORY_HIGH,
						 .bytes = mem->ram_bytes - MEMORY_HOLE,
						 .type = E820_RAM };
	fw_cfg_add(fw_cfg, FILE_E820, map, nr * sizeof(map[0]));
}

void boot_bios_configure(const struct boot *boot, const struct memory *mem, struct device *fw_cfg)
{
	static const uint64_t serial = SERIAL_PORT, off = 0;

	add_e820(mem, fw_cfg);
	fw_cfg_add(fw_cfg, FILE_SERIAL, &serial, sizeof(serial));
	fw_cfg_add(fw_cfg, FILE_NO_SCREEN, &off, sizeof(off));
	acpi_add_fw_cfg(fw_cfg, boot->nr_vcpus);
}

int boot_bios_load(const struct boot *boot, struct memory *mem, struct img_error *err)
{
	uint64_t bytes = boot->rom_bytes;

	if (bytes > SHADOW_END - SHADOW_START)
		bytes = SHADOW_END - SHADOW_START;
	return boot_put(mem, SHADOW_END - bytes, boot->rom + boot->rom_bytes - bytes, bytes, err);
}
