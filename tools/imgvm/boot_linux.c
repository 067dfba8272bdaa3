/* SPDX-License-Identifier: MIT */
/*
 * Start a Linux kernel by its 64-bit boot protocol (Documentation/arch/x86/boot.rst, "THE REAL-MODE KERNEL HEADER" and
 * "64-bit BOOT PROTOCOL"; zero-page.rst for the page that it is handed).
 *
 * A bzImage is a real-mode part of some sectors, which we only take the header from, and the protected-mode part, which
 * unpacks itself. It goes to the address it prefers, so that it has nothing to move; what it needs there while it
 * unpacks is kept free. The initrd lies as high as the kernel can reach. Everything else is below 640 KiB:
 *
 *	0x1000	GDT
 *	0x2000	zero page
 *	0x3000	page tables: 4 GiB, each address its own
 *	0x10000	command line
 *	0xe0000	ACPI tables, taken out of RAM
 *
 * The kernel file is a stranger: each field is checked against the length of the file, against RAM and against the
 * others before it is used.
 */
#include "boot_int.h"

#include <stdlib.h>
#include <string.h>

#include "acpi.h"
#include "fail.h"

#define GDT_GPA	       UINT64_C(0x1000)
#define ZERO_PAGE_GPA  UINT64_C(0x2000)
#define PAGE_TABLE_GPA UINT64_C(0x3000)
#define CMDLINE_GPA    UINT64_C(0x10000)
#define CMDLINE_ROOM   0x10000u
#define LOW_RAM_END    UINT64_C(0x9fc00) /* where PCs have their extended BIOS data area */
#define HIGH_RAM_START UINT64_C(0x100000)

/* The setup header, offsets in the file and in the zero page alike. */
enum {
	HDR_START = 0x1f1,
	HDR_SETUP_SECTS = 0x1f1,
	HDR_BOOT_FLAG = 0x1fe,
	HDR_JUMP_LENGTH = 0x201, /* the header goes on so far behind 0x202 */
	HDR_MAGIC = 0x202,
	HDR_VERSION = 0x206,
	HDR_TYPE_OF_LOADER = 0x210,
	HDR_LOADFLAGS = 0x211,
	HDR_RAMDISK_IMAGE = 0x218,
	HDR_RAMDISK_SIZE = 0x21c,
	HDR_CMD_LINE_PTR = 0x228,
	HDR_INITRD_ADDR_MAX = 0x22c,
	HDR_XLOADFLAGS = 0x236,
	HDR_CMDLINE_SIZE = 0x238,
	HDR_SETUP_DATA = 0x250,
	HDR_PREF_ADDRESS = 0x258,
	HDR_INIT_SIZE = 0x260,
	HDR_FIELDS_END = 0x264, /* of what version 2.12 has */
};
#define BOOT_FLAG      0xaa55u
#define MAGIC	       0x53726448u /* "HdrS" */
#define VERSION_MIN    0x020cu	   /* 2.12 is the first with xloadflags; Linux 3.8 */
#define LOADED_HIGH    0x01u
#define XLF_KERNEL_64  0x0001u
#define LOADER_UNKNOWN 0xffu /* "undefined": we have no number of our own */
#define SECTOR	       512u
#define DEFAULT_SECTS  4u /* what a 0 means */
#define ENTRY_64       0x200u
#define KERNEL_GPA_MAX (UINT64_C(1) << 32)

/* The zero page beside the header. */
enum {
	ZP_ACPI_RSDP = 0x070,
	ZP_E820_ENTRIES = 0x1e8,
	ZP_E820_TABLE = 0x2d0,
	ZP_BYTES = 0x1000,
};

/* ACPI 6.4, 15.1 */
#define E820_RAM      1u
#define E820_RESERVED 2u
#define E820_MAX      5u
struct e820_entry {
	uint64_t start, bytes;
	uint32_t type;
} __attribute__((packed));

static uint64_t get(const uint8_t *head, unsigned off, unsigned bytes)
{
	uint64_t v = 0;

	memcpy(&v, head + off, bytes);
	return v;
}

static void put(uint8_t *page, unsigned off, unsigned bytes, uint64_t v)
{
	memcpy(page + off, &v, bytes);
}

/* The end of the RAM that begins at 1 MiB. */
static uint64_t low_end(uint64_t ram_bytes)
{
	return ram_bytes < MEMORY_HOLE ? ram_bytes : MEMORY_HOLE;
}

/* ---- the kernel file --------------------------------------------------------------------------------------------- */

static int check_header(const uint8_t *head, uint64_t bytes, struct img_error *err)
{
	if (bytes < HDR_FIELDS_END || get(head, HDR_BOOT_FLAG, 2) != BOOT_FLAG || get(head, HDR_MAGIC, 4) != MAGIC)
		return fail(err, IMG_E_FORMAT, "the kernel is no bzImage");
	if (get(head, HDR_VERSION, 2) < VERSION_MIN)
		return fail(err, IMG_E_UNSUPPORTED, "the kernel's boot protocol is %u.%u, 2.12 is needed",
			    (unsigned)get(head, HDR_VERSION + 1, 1), (unsigned)get(head, HDR_VERSION, 1));
	if (HDR_MAGIC + get(head, HDR_JUMP_LENGTH, 1) < HDR_FIELDS_END)
		return fail(err, IMG_E_CORRUPT, "the kernel's header says that it ends at 0x%x",
			    (unsigned)(HDR_MAGIC + get(head, HDR_JUMP_LENGTH, 1)));
	if (!(get(head, HDR_LOADFLAGS, 1) & LOADED_HIGH) || !(get(head, HDR_XLOADFLAGS, 2) & XLF_KERNEL_64))
		return fail(err, IMG_E_UNSUPPORTED, "the kernel has no 64-bit entry");
	return 0;
}

int linux_parse(const void *file, uint64_t bytes, uint64_t ram_bytes, struct linux_image *out, struct img_error *err)
{
	const uint8_t *head = file;
	struct linux_image k = { 0 };
	uint64_t sects, end = low_end(ram_bytes);
	int ret = check_header(head, bytes, err);

	if (ret != 0)
		return ret;
	sects = get(head, HDR_SETUP_SECTS, 1);
	k.setup_bytes = ((sects ? sects : DEFAULT_SECTS) + 1) * SECTOR;
	if (bytes <= k.setup_bytes + ENTRY_64)
		return fail(err, IMG_E_CORRUPT, "the kernel file ends before its kernel, at 0x%llx",
			    (unsigned long long)bytes);
	k.kernel_bytes = bytes - k.setup_bytes;
	k.load_gpa = get(head, HDR_PREF_ADDRESS, 8);
	k.init_bytes = get(head, HDR_INIT_SIZE, 4);
	if (k.init_bytes < k.kernel_bytes)
		k.init_bytes = k.kernel_bytes; /* the file may hold more than what runs, as debug information */
	if (k.load_gpa < HIGH_RAM_START || k.load_gpa >= KERNEL_GPA_MAX || k.load_gpa % MEMORY_PAGE)
		return fail(err, IMG_E_CORRUPT, "the kernel wants to be at 0x%llx", (unsigned long long)k.load_gpa);
	if (k.load_gpa >= end || k.init_bytes > end - k.load_gpa)
		return fail(err, IMG_E_LIMIT, "the kernel needs memory up to %llu MiB, there are %llu below the hole",
			    (unsigned long long)((k.load_gpa + k.init_bytes + 0xfffff) >> 20),
			    (unsigned long long)(end >> 20));
	k.initrd_max = get(head, HDR_INITRD_ADDR_MAX, 4);
	k.cmdline_max = (uint32_t)get(head, HDR_CMDLINE_SIZE, 4);
	*out = k;
	return 0;
}

static int read_head(const struct boot_file *kernel, uint8_t head[LINUX_HEAD_BYTES], struct img_error *err)
{
	uint64_t bytes = kernel->bytes < LINUX_HEAD_BYTES ? kernel->bytes : LINUX_HEAD_BYTES;

	memset(head, 0, LINUX_HEAD_BYTES);
	return boot_file_read(kernel, head, bytes, 0, err);
}

int boot_linux_open(struct boot *boot, const struct boot_options *opts, struct img_error *err)
{
	uint8_t head[LINUX_HEAD_BYTES];
	struct linux_image image;
	int ret = boot_file_open(&boot->kernel, opts->kernel, err);

	if (ret == 0)
		ret = read_head(&boot->kernel, head, err);
	/* how much RAM there will be is not known yet: here, only what is wrong with any amount */
	if (ret == 0)
		ret = linux_parse(head, boot->kernel.bytes, MEMORY_MAX_BYTES, &image, err);
	if (ret == 0 && opts->initrd)
		ret = boot_file_open(&boot->initrd, opts->initrd, err);
	if (ret != 0)
		return ret;
	boot->append = strdup(opts->append ? opts->append : "");
	if (!boot->append)
		return fail(err, IMG_E_NOMEM, "out of memory");
	if (strlen(boot->append) > image.cmdline_max || strlen(boot->append) >= CMDLINE_ROOM)
		return fail(err, IMG_E_LIMIT, "the kernel's command line has at most %u bytes", image.cmdline_max);
	return 0;
}

/* ---- what it is handed ------------------------------------------------------------------------------------------- */

/* As high as the kernel reaches, page-aligned, behind all that the kernel needs for itself. */
static int place_initrd(const struct linux_image *k, uint64_t ram_bytes, uint64_t bytes, uint64_t *gpa,
			struct img_error *err)
{
	uint64_t end = low_end(ram_bytes), first = k->load_gpa + k->init_bytes;

	if (end > k->initrd_max + 1)
		end = k->initrd_max + 1;
	if (bytes > end || (end - bytes) / MEMORY_PAGE * MEMORY_PAGE < first)
		return fail(err, IMG_E_LIMIT, "no room for an initrd of %llu KiB: give the machine more memory",
			    (unsigned long long)(bytes >> 10));
	*gpa = (end - bytes) / MEMORY_PAGE * MEMORY_PAGE;
	return 0;
}

static void put_e820(uint8_t *page, uint64_t ram_bytes)
{
	struct e820_entry map[E820_MAX];
	unsigned nr = 0;

	map[nr++] = (struct e820_entry){ 0, LOW_RAM_END, E820_RAM };
	map[nr++] = (struct e820_entry){ ACPI_GPA, ACPI_BYTES, E820_RESERVED };
	map[nr++] = (struct e820_entry){ HIGH_RAM_START, low_end(ram_bytes) - HIGH_RAM_START, E820_RAM };
	if (ram_bytes > MEMORY_HOLE)
		map[nr++] = (struct e820_entry){ MEMORY_HIGH, ram_bytes - MEMORY_HOLE, E820_RAM };
	memcpy(page + ZP_E820_TABLE, map, nr * sizeof(map[0]));
	page[ZP_E820_ENTRIES] = (uint8_t)nr;
}

static int put_zero_page(const struct boot *boot, const uint8_t *head, struct memory *mem, uint64_t initrd_gpa,
			 struct img_error *err)
{
	uint8_t page[ZP_BYTES] = { 0 };
	unsigned header_end = HDR_MAGIC + head[HDR_JUMP_LENGTH];

	/* at most up to 0x301, where nothing of the zero page but a part of the e820 table lies, which is filled after */
	memcpy(page + HDR_START, head + HDR_START, header_end - HDR_START);
	page[HDR_TYPE_OF_LOADER] = LOADER_UNKNOWN;
	put(page, HDR_CMD_LINE_PTR, 4, CMDLINE_GPA);
	put(page, HDR_RAMDISK_IMAGE, 4, initrd_gpa);
	put(page, HDR_RAMDISK_SIZE, 4, initrd_gpa ? boot->initrd.bytes : 0);
	put(page, HDR_SETUP_DATA, 8, 0); /* an address of ours, never the file's */
	put(page, ZP_ACPI_RSDP, 8, acpi_install(mem, boot->nr_vcpus));
	memset(page + ZP_E820_TABLE, 0, E820_MAX * sizeof(struct e820_entry));
	put_e820(page, mem->ram_bytes);
	return boot_put(mem, ZERO_PAGE_GPA, page, sizeof(page), err);
}

/* Intel SDM vol. 3, 4.5: one table of 512 pointers, one of 4, four of 512 pages of 2 MiB. */
static int put_page_tables(struct memory *mem, struct img_error *err)
{
	enum { PRESENT = 1, WRITABLE = 2, LARGE = 1 << 7, ENTRIES = 512, NR_GIB = 4 };
	uint64_t table[ENTRIES] = { 0 };
	int ret;

	table[0] = (PAGE_TABLE_GPA + MEMORY_PAGE) | PRESENT | WRITABLE;
	ret = boot_put(mem, PAGE_TABLE_GPA, table, sizeof(table), err);
	for (unsigned i = 0; i < NR_GIB; i++)
		table[i] = (PAGE_TABLE_GPA + (2 + i) * MEMORY_PAGE) | PRESENT | WRITABLE;
	if (ret == 0)
		ret = boot_put(mem, PAGE_TABLE_GPA + MEMORY_PAGE, table, sizeof(table), err);
	for (uint64_t gib = 0; ret == 0 && gib < NR_GIB; gib++) {
		for (uint64_t i = 0; i < ENTRIES; i++)
			table[i] = (gib << 30 | i << 21) | PRESENT | WRITABLE | LARGE;
		ret = boot_put(mem, PAGE_TABLE_GPA + (2 + gib) * MEMORY_PAGE, table, sizeof(table), err);
	}
	return ret;
}

/* boot.rst: selector 0x10 is code, 0x18 data, both flat. 0x20 is a TSS of no use but that processors must have one. */
static int put_gdt(struct memory *mem, struct boot_regs *regs, struct img_error *err)
{
	static const uint64_t gdt[] = {
		0,
		0,
		0x00af9b000000ffff, /* execute and read, 64 bits */
		0x00cf93000000ffff, /* read and write */
		0x008f8b000000ffff, /* busy TSS at 0: its upper half is the null that follows */
		0,
	};

	regs->gdt_gpa = GDT_GPA;
	regs->gdt_bytes = sizeof(gdt);
	return boot_put(mem, GDT_GPA, gdt, sizeof(gdt), err);
}

int boot_linux_load(const struct boot *boot, struct memory *mem, struct boot_regs *regs, struct img_error *err)
{
	uint8_t head[LINUX_HEAD_BYTES];
	struct linux_image k = { 0 };
	uint64_t initrd_gpa = 0;
	int ret = read_head(&boot->kernel, head, err);

	if (ret == 0)
		ret = linux_parse(head, boot->kernel.bytes, mem->ram_bytes, &k, err);
	if (ret == 0 && boot->initrd.bytes)
		ret = place_initrd(&k, mem->ram_bytes, boot->initrd.bytes, &initrd_gpa, err);
	if (ret == 0)
		ret = boot_file_load(&boot->kernel, mem, k.load_gpa, k.kernel_bytes, k.setup_bytes, err);
	if (ret == 0)
		ret = boot_file_load(&boot->initrd, mem, initrd_gpa, boot->initrd.bytes, 0, err);
	if (ret == 0)
		ret = boot_put(mem, CMDLINE_GPA, boot->append, strlen(boot->append) + 1, err);
	if (ret == 0)
		ret = put_zero_page(boot, head, mem, initrd_gpa, err);
	if (ret == 0)
		ret = put_page_tables(mem, err);
	if (ret == 0)
		ret = put_gdt(mem, regs, err);
	regs->long_mode = true;
	regs->rip = k.load_gpa + ENTRY_64;
	regs->rsi = ZERO_PAGE_GPA;
	regs->cr3 = PAGE_TABLE_GPA;
	return ret;
}
