/* SPDX-License-Identifier: MIT */
/* The parser of bzImages, given none that can be trusted, and what a kernel finds when it starts. */
#include "platform_fixture.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "acpi.h"
#include "boot.h"

#define MIB	     UINT64_C(0x100000)
#define SETUP_BYTES  (16u * 512)
#define KERNEL_BYTES 20000u
#define FILE_BYTES   (SETUP_BYTES + KERNEL_BYTES)
#define PREF_ADDRESS (16 * MIB)
#define INIT_SIZE    (20 * MIB)

static void set(uint8_t *file, unsigned off, unsigned bytes, uint64_t v)
{
	memcpy(file + off, &v, bytes);
}

static uint64_t number(const void *p, unsigned off, unsigned bytes)
{
	uint64_t v = 0;

	memcpy(&v, (const uint8_t *)p + off, bytes);
	return v;
}

/* As Debian's kernels are, but smaller. */
static void make_kernel(uint8_t file[FILE_BYTES])
{
	for (unsigned i = 0; i < FILE_BYTES; i++)
		file[i] = (uint8_t)(i * 31 >> 3);
	file[0x1f1] = 15;
	set(file, 0x1fe, 2, 0xaa55);
	set(file, 0x200, 2, 0x6aeb);
	memcpy(file + 0x202, "HdrS", 4);
	set(file, 0x206, 2, 0x020f);
	file[0x211] = 1;
	set(file, 0x22c, 4, 0x7fffffff);
	set(file, 0x230, 4, 0x200000);
	file[0x234] = 1;
	set(file, 0x236, 2, 0x7f);
	set(file, 0x238, 4, 2047);
	set(file, 0x250, 8, UINT64_C(0x4141414141414141));
	set(file, 0x258, 8, PREF_ADDRESS);
	set(file, 0x260, 4, INIT_SIZE);
}

static int parse(const uint8_t *file, uint64_t bytes, uint64_t ram_bytes, struct linux_image *out)
{
	struct img_error err = { 0 };
	int ret = linux_parse(file, bytes, ram_bytes, out, &err);

	assert_int_equal(ret, err.code);
	return ret;
}

static void test_parse(void **unused)
{
	uint8_t file[FILE_BYTES];
	struct linux_image k;

	(void)unused;
	make_kernel(file);
	assert_int_equal(parse(file, FILE_BYTES, 256 * MIB, &k), 0);
	assert_int_equal(k.setup_bytes, SETUP_BYTES);
	assert_int_equal(k.kernel_bytes, KERNEL_BYTES);
	assert_int_equal(k.load_gpa, PREF_ADDRESS);
	assert_int_equal(k.init_bytes, INIT_SIZE);
	assert_int_equal(k.initrd_max, 0x7fffffff);
	assert_int_equal(k.cmdline_max, 2047);
	/* exactly as much RAM as it needs */
	assert_int_equal(parse(file, FILE_BYTES, PREF_ADDRESS + INIT_SIZE, &k), 0);
	assert_int_equal(parse(file, FILE_BYTES, PREF_ADDRESS + INIT_SIZE - 4096, &k), IMG_E_LIMIT);
	assert_int_equal(parse(file, FILE_BYTES, 2 * MIB, &k), IMG_E_LIMIT);
	file[0x1f1] = 0; /* means 4 */
	assert_int_equal(parse(file, FILE_BYTES, 256 * MIB, &k), 0);
	assert_int_equal(k.setup_bytes, 5 * 512);
	/* the file has more than what runs */
	set(file, 0x260, 4, 4096);
	assert_int_equal(parse(file, FILE_BYTES, 256 * MIB, &k), 0);
	assert_int_equal(k.init_bytes, k.kernel_bytes);
}

static void expect(unsigned off, unsigned bytes, uint64_t v, int code)
{
	uint8_t file[FILE_BYTES];
	struct linux_image k;

	make_kernel(file);
	set(file, off, bytes, v);
	assert_int_equal(parse(file, FILE_BYTES, 256 * MIB, &k), code);
}

static void test_refused(void **unused)
{
	uint8_t file[FILE_BYTES];
	struct linux_image k;

	(void)unused;
	expect(0x1fe, 2, 0xaa56, IMG_E_FORMAT);
	expect(0x202, 1, 'h', IMG_E_FORMAT);
	expect(0x206, 2, 0x020b, IMG_E_UNSUPPORTED);
	expect(0x206, 2, 0, IMG_E_UNSUPPORTED);
	expect(0x211, 1, 0, IMG_E_UNSUPPORTED); /* zImage */
	expect(0x236, 2, 0, IMG_E_UNSUPPORTED); /* 32 bits */
	expect(0x201, 1, 0x60, IMG_E_CORRUPT);	/* header ends before what its version has */
	expect(0x1f1, 1, 255, IMG_E_CORRUPT);	/* more setup than file */
	expect(0x258, 8, 0, IMG_E_CORRUPT);
	expect(0x258, 8, 0x9000, IMG_E_CORRUPT); /* over what we put there */
	expect(0x258, 8, 16 * MIB + 1, IMG_E_CORRUPT);
	expect(0x258, 8, UINT64_MAX - 4095, IMG_E_CORRUPT);
	expect(0x258, 8, UINT64_C(1) << 32, IMG_E_CORRUPT);
	expect(0x258, 8, 0xfffff000, IMG_E_LIMIT); /* the hole */
	expect(0x258, 8, 256 * MIB, IMG_E_LIMIT);
	expect(0x260, 4, 0xffffffff, IMG_E_LIMIT);
	make_kernel(file);
	for (unsigned bytes = 0; bytes <= SETUP_BYTES + 0x200; bytes++)
		assert_int_equal(parse(file, bytes, 256 * MIB, &k), bytes < 0x264 ? IMG_E_FORMAT : IMG_E_CORRUPT);
	assert_int_equal(parse(file, SETUP_BYTES + 0x201, 256 * MIB, &k), 0);
}

/* Whatever it takes fits; it looks at nothing beyond the head of the file (the sanitizers' part). */
static void test_random_headers(void **unused)
{
	uint64_t seed = 88172645463325252;
	static uint8_t good[FILE_BYTES];
	unsigned taken = 0;

	(void)unused;
	make_kernel(good);
	for (unsigned round = 0; round < 200000; round++) {
		static const uint16_t fields[] = {
			0x1f1, 0x201, 0x206, 0x211, 0x22c, 0x236, 0x238, 0x258, 0x25c, 0x260
		};
		uint8_t *head;
		uint64_t bytes = FILE_BYTES, ram_bytes;
		struct linux_image k;

		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		ram_bytes = ((seed >> 40 & 0x3ff) + 2) << (20 + (seed >> 60 & 3));
		head = malloc(LINUX_HEAD_BYTES);
		assert_non_null(head);
		memcpy(head, good, LINUX_HEAD_BYTES);
		for (unsigned i = 0; i <= (seed >> 8 & 1); i++)
			set(head, fields[(seed >> (16 + 4 * i)) % 10], 1u << (seed >> (24 + 2 * i) & 3),
			    seed * 0x9e3779b97f4a7c15 >> (seed >> 32 & 0x3f));
		if (seed & 1)
			bytes = seed >> 16 & 0x7fff;
		if (parse(head, bytes, ram_bytes, &k) == 0) {
			uint64_t low = ram_bytes < MEMORY_HOLE ? ram_bytes : MEMORY_HOLE;

			taken++;
			assert_true(k.setup_bytes + k.kernel_bytes == bytes && k.kernel_bytes > 0x200);
			assert_true(k.load_gpa >= MIB && k.load_gpa < low);
			assert_true(k.init_bytes >= k.kernel_bytes && k.init_bytes <= low - k.load_gpa);
		}
		free(head);
	}
	assert_true(taken > 1000);
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

struct files {
	char dir[32], kernel[64], initrd[64];
};

static void write_file(const char *path, const void *data, size_t bytes)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
	close(fd);
}

static int setup(void **state)
{
	struct files *f = calloc(1, sizeof(*f));
	static uint8_t kernel[FILE_BYTES];

	strcpy(f->dir, "/tmp/test-boot-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->kernel, sizeof(f->kernel), "%s/kernel", f->dir);
	snprintf(f->initrd, sizeof(f->initrd), "%s/initrd", f->dir);
	make_kernel(kernel);
	write_file(f->kernel, kernel, sizeof(kernel));
	write_file(f->initrd, "this is the initrd", 18);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct files *f = *state;

	unlink(f->kernel);
	unlink(f->initrd);
	rmdir(f->dir);
	free(f);
	return 0;
}

static void check_e820(const uint8_t *zero_page, const struct memory *mem)
{
	unsigned nr = zero_page[0x1e8];
	uint64_t ram = 0, end = 0;
	bool acpi_reserved = false;

	assert_in_range(nr, 3, 128);
	for (unsigned i = 0; i < nr; i++) {
		unsigned at = 0x2d0 + 20 * i;
		uint64_t start = number(zero_page, at, 8), bytes = number(zero_page, at + 8, 8);
		uint64_t type = number(zero_page, at + 16, 4);

		assert_true(start >= end && bytes > 0);
		end = start + bytes;
		if (type == 1) {
			assert_non_null(memory_at(mem, start, bytes)); /* all of it is RAM */
			assert_true(end <= 0xa0000 || start >= 0x100000);
			ram += bytes;
		} else if (start <= ACPI_GPA && end >= ACPI_GPA + ACPI_BYTES) {
			acpi_reserved = true;
		}
	}
	assert_true(acpi_reserved);
	/* nothing of it is lost but what lies between 640 KiB and 1 MiB */
	assert_true(ram + MIB - 0x9fc00 == mem->ram_bytes);
	assert_int_equal(number(zero_page, 0x2d0 + 20 * nr + 16, 4), 0);
}

static void check_page_tables(const struct memory *mem, uint64_t cr3)
{
	for (uint64_t gpa = 0; gpa < UINT64_C(1) << 32; gpa += 2 * MIB) {
		uint64_t table = cr3, entry = 0;

		for (unsigned shift = 39; shift >= 21; shift -= 9) {
			const void *p = memory_at(mem, table + (gpa >> shift & 511) * 8, 8);

			assert_non_null(p);
			entry = number(p, 0, 8);
			assert_int_equal(entry & 0xfff & ~0x80u, 3);
			assert_int_equal(!!(entry & 0x80), shift == 21);
			table = entry & ~UINT64_C(0xfff);
		}
		assert_true(table == gpa);
	}
}

static void load_with(const struct files *f, uint64_t ram_bytes)
{
	struct boot_options opts = { .kernel = f->kernel, .initrd = f->initrd, .append = "a b=c", .nr_vcpus = 2 };
	struct img_error err = { 0 };
	struct boot_regs regs;
	static uint8_t kernel[FILE_BYTES];
	const uint8_t *zp, *gdt;
	uint64_t initrd, bytes, low = ram_bytes < MEMORY_HOLE ? ram_bytes : MEMORY_HOLE;
	struct memory mem;
	struct boot *boot;

	assert_int_equal(memory_init(&mem, ram_bytes, &err), 0);
	assert_int_equal(boot_open(&opts, &boot, &err), 0);
	assert_true(boot_is_linux(boot));
	assert_null(boot_rom(boot, &bytes));
	assert_int_equal(boot_load(boot, &mem, &regs, &err), 0);
	assert_true(regs.long_mode);
	assert_int_equal(regs.rip, PREF_ADDRESS + 0x200);
	make_kernel(kernel);
	assert_memory_equal(memory_at(&mem, PREF_ADDRESS, KERNEL_BYTES), kernel + SETUP_BYTES, KERNEL_BYTES);

	zp = memory_at(&mem, regs.rsi, 4096);
	assert_non_null(zp);
	assert_memory_equal(zp + 0x202, "HdrS", 4);
	assert_int_equal(zp[0x210], 0xff);
	assert_true(number(zp, 0x250, 8) == 0); /* not what the file said */
	assert_string_equal((const char *)memory_at(&mem, number(zp, 0x228, 4), 6), "a b=c");
	initrd = number(zp, 0x218, 4);
	assert_int_equal(number(zp, 0x21c, 4), 18);
	assert_memory_equal(memory_at(&mem, initrd, 18), "this is the initrd", 18);
	assert_int_equal(initrd % 4096, 0);
	assert_true(initrd >= PREF_ADDRESS + INIT_SIZE && initrd + 18 <= low && initrd + 17 <= 0x7fffffff);
	assert_memory_equal(memory_at(&mem, number(zp, 0x70, 8), 8), "RSD PTR ", 8);
	check_e820(zp, &mem);
	check_page_tables(&mem, regs.cr3);

	assert_true(regs.gdt_bytes >= 0x28);
	gdt = memory_at(&mem, regs.gdt_gpa, regs.gdt_bytes);
	assert_non_null(gdt);
	assert_int_equal(gdt[0x10 + 5], 0x9b);	      /* present, code */
	assert_int_equal(gdt[0x10 + 6] & 0x60, 0x20); /* 64 bits */
	assert_int_equal(gdt[0x18 + 5], 0x93);
	assert_int_equal(gdt[0x20 + 5], 0x8b);
	boot_free(boot);
	memory_free(&mem);
}

static void test_load(void **state)
{
	load_with(*state, 40 * MIB);
	load_with(*state, 256 * MIB);
	load_with(*state, 3072 * MIB);
	load_with(*state, 3076 * MIB);
	load_with(*state, 6144 * MIB);
}

static int try_load(const struct boot_options *opts, uint64_t ram_bytes)
{
	struct img_error err = { 0 };
	struct boot_regs regs;
	struct memory mem;
	struct boot *boot;
	int ret;

	assert_int_equal(memory_init(&mem, ram_bytes, &err), 0);
	ret = boot_open(opts, &boot, &err);
	if (ret == 0)
		ret = boot_load(boot, &mem, &regs, &err);
	else
		assert_null(boot);
	assert_int_equal(ret, err.code);
	boot_free(boot);
	memory_free(&mem);
	return ret;
}

static void test_no_room(void **state)
{
	const struct files *f = *state;
	struct boot_options opts = { .kernel = f->kernel, .initrd = f->initrd, .nr_vcpus = 1 };
	char append[3000];

	assert_int_equal(try_load(&opts, PREF_ADDRESS + INIT_SIZE + 4096), 0);
	assert_int_equal(try_load(&opts, PREF_ADDRESS + INIT_SIZE), IMG_E_LIMIT); /* the initrd */
	opts.initrd = NULL;
	assert_int_equal(try_load(&opts, PREF_ADDRESS + INIT_SIZE), 0);
	assert_int_equal(try_load(&opts, 4 * MIB), IMG_E_LIMIT);
	/* an initrd of five gibibytes */
	assert_int_equal(truncate(f->initrd, 5120 * (off_t)MIB), 0);
	opts.initrd = f->initrd;
	assert_int_equal(try_load(&opts, 8192 * MIB), IMG_E_LIMIT);
	assert_int_equal(truncate(f->initrd, 0), 0); /* none */
	assert_int_equal(try_load(&opts, 64 * MIB), 0);
	memset(append, 'x', sizeof(append));
	append[2047] = '\0';
	opts.append = append;
	assert_int_equal(try_load(&opts, 64 * MIB), 0);
	append[2047] = 'x';
	append[2048] = '\0';
	assert_int_equal(try_load(&opts, 64 * MIB), IMG_E_LIMIT);
}

static void test_files(void **state)
{
	const struct files *f = *state;
	struct boot_options opts = { .kernel = "/no/such/kernel", .nr_vcpus = 1 };

	assert_int_equal(try_load(&opts, 64 * MIB), IMG_E_NOENT);
	opts.kernel = f->dir;
	assert_int_equal(try_load(&opts, 64 * MIB), IMG_E_UNSUPPORTED);
	opts.kernel = f->initrd;
	assert_int_equal(try_load(&opts, 64 * MIB), IMG_E_FORMAT);
	opts.kernel = f->kernel;
	opts.initrd = "/no/such/initrd";
	assert_int_equal(try_load(&opts, 64 * MIB), IMG_E_NOENT);
}

/* The file changes between two resets: what is in it then is checked again. */
static void test_changed(void **state)
{
	const struct files *f = *state;
	struct boot_options opts = { .kernel = f->kernel, .initrd = f->initrd, .nr_vcpus = 1 };
	struct img_error err = { 0 };
	struct boot_regs regs;
	struct memory mem;
	struct boot *boot;
	int fd;

	assert_int_equal(memory_init(&mem, 64 * MIB, &err), 0);
	assert_int_equal(boot_open(&opts, &boot, &err), 0);
	assert_int_equal(boot_load(boot, &mem, &regs, &err), 0);
	fd = open(f->kernel, O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, 0x258), 8);
	assert_int_equal(boot_load(boot, &mem, &regs, &err), IMG_E_CORRUPT);
	assert_int_equal(pwrite(fd, "\0\0\0\1\0\0\0\0", 8, 0x258), 8);
	err = (struct img_error){ 0 };
	assert_int_equal(boot_load(boot, &mem, &regs, &err), 0);
	assert_int_equal(ftruncate(fd, FILE_BYTES - 1), 0);
	assert_int_equal(boot_load(boot, &mem, &regs, &err), IMG_E_CHANGED);
	close(fd);
	boot_free(boot);
	memory_free(&mem);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_random_headers),
		cmocka_unit_test_setup_teardown(test_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_room, setup, teardown),
		cmocka_unit_test_setup_teardown(test_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_changed, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
