/* SPDX-License-Identifier: MIT */
/* Where a ROM lies, which files are taken for one, and what firmware is told of memory. */
#include "fw_cfg_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include "boot.h"
#include "platform.h"

#define MIB UINT64_C(0x100000)

static char path[] = "/tmp/test-bios-XXXXXX";

static void write_rom(size_t bytes)
{
	uint8_t *rom = malloc(bytes + 1);
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

	assert_true(rom && fd >= 0);
	for (size_t i = 0; i < bytes; i++)
		rom[i] = (uint8_t)(i >> 8 ^ i);
	assert_int_equal(write(fd, rom, bytes), (ssize_t)bytes);
	close(fd);
	free(rom);
}

static void test_rom(void **unused)
{
	static const unsigned kib[] = { 64, 128, 256 };
	struct boot_options opts = { .bios = path, .nr_vcpus = 1 };

	(void)unused;
	for (unsigned i = 0; i < 3; i++) {
		uint64_t bytes = kib[i] * UINT64_C(1024), rom_bytes;
		struct img_error err = { 0 };
		struct boot_regs regs;
		const uint8_t *rom;
		struct memory mem;
		struct boot *boot;

		write_rom(bytes);
		assert_int_equal(memory_init(&mem, 16 * MIB, &err), 0);
		assert_int_equal(boot_open(&opts, &boot, &err), 0);
		assert_false(boot_is_linux(boot));
		rom = boot_rom(boot, &rom_bytes);
		assert_true(rom && rom_bytes == bytes && (uintptr_t)rom % MEMORY_PAGE == 0);
		for (unsigned round = 0; round < 2; round++) { /* a reset undoes what the guest did to its copy */
			assert_int_equal(boot_load(boot, &mem, &regs, &err), 0);
			assert_false(regs.long_mode);
			assert_memory_equal(memory_at(&mem, MIB - bytes, bytes), rom, bytes);
			memset(memory_at(&mem, MIB - bytes, bytes), 0, bytes);
		}
		boot_free(boot);
		memory_free(&mem);
	}
}

static void test_no_rom(void **unused)
{
	static const unsigned sizes[] = { 0, 4096, 65535, 65537, 320 * 1024 };
	struct boot_options opts = { .bios = path, .nr_vcpus = 1 };
	struct boot *boot;

	(void)unused;
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct img_error err = { 0 };

		write_rom(sizes[i]);
		assert_int_equal(boot_open(&opts, &boot, &err), IMG_E_FORMAT);
		assert_null(boot);
	}
	opts.bios = "/no/such/rom";
	assert_int_equal(boot_open(&opts, &boot, NULL), IMG_E_NOENT);
}

static void test_configure(void **unused)
{
	static const uint64_t ram_mib[] = { 64, 3072, 5120 };
	struct boot_options opts = { .bios = path, .nr_vcpus = 1 };

	(void)unused;
	write_rom(65536);
	for (unsigned i = 0; i < 3; i++) {
		struct img_error err = { 0 };
		uint64_t start, length, ram = 0;
		uint32_t bytes, type;
		struct fixture f;
		struct memory mem;
		struct device *fw;
		struct boot *boot;
		uint8_t *data;

		fixture_init(&f);
		fw = fw_cfg_create(&f.bus, &f.host, 1);
		assert_int_equal(memory_init(&mem, ram_mib[i] * MIB, &err), 0);
		assert_int_equal(boot_open(&opts, &boot, &err), 0);
		boot_configure(boot, &mem, fw);
		data = fw_file(&f, "etc/e820", &bytes);
		assert_true(data && bytes && bytes % 20 == 0);
		for (uint32_t at = 0; at < bytes; at += 20) {
			memcpy(&start, data + at, 8);
			memcpy(&length, data + at + 8, 8);
			memcpy(&type, data + at + 16, 4);
			assert_int_equal(type, 1);
			assert_non_null(memory_at(&mem, start ? start : MIB, length - (start ? 0 : MIB)));
			ram += length;
		}
		assert_true(ram == mem.ram_bytes);
		free(data);
		data = fw_file(&f, "etc/sercon-port", &bytes);
		assert_int_equal(bytes, 8);
		assert_memory_equal(data, "\xf8\3\0\0\0\0\0\0", 8);
		free(data);
		data = fw_file(&f, "etc/screen-and-debug", &bytes);
		assert_int_equal(bytes, 8);
		free(data);
		assert_int_not_equal(fw_find(&f, "etc/table-loader", &bytes), 0);
		boot_free(boot);
		memory_free(&mem);
		bus_free(&f.bus);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rom),
		cmocka_unit_test(test_no_rom),
		cmocka_unit_test(test_configure),
	};
	int fd = mkstemp(path), ret;

	if (fd < 0)
		return 1;
	close(fd);
	ret = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	return ret;
}
